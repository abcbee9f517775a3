//! Judges a run by its curves, as one does by looking at them, and by how far its steps moved the weights: one judgement, with one first
//! cause.

mod advice;
mod measure;
mod policy;

use serde::Serialize;
use serde_json::Value;

use crate::health::{Check, FAST, Finding, Kind, Level, Report, SLOW, USUAL};
use crate::{Advice, History};

use advice::rate;
pub use measure::Numbers;
pub use policy::{CLIPPED, COLLAPSE, DIVERGENCE, UNMOVED};

/// What a run says of itself. The first that applies, in this order, is the verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// Steps replace the weights, and it shows; or the validation loss swings, or the training loss rises.
    RateTooHigh,
    /// Something is wrong with inputs or gradients, which explains the curves.
    Gradients,
    /// Steps hardly move the weights, and the loss has not settled.
    RateTooLow,
    /// Too few evaluations to say anything.
    TooShort,
    /// The validation loss was never clearly below what the initial weights, or a simple rule, have.
    NothingLearned,
    /// The validation loss rose above its best and stayed there, or is far above the training loss, which it was not at the start.
    Overfitting,
    /// The loss was still falling at the end.
    SlowConvergence,
    /// A policy chooses nearly always the same after three quarters of its run: it may have stopped trying too early.
    Collapsed,
    /// The loss fell little, or not to what a simple rule has.
    Underfitting,
    /// Both fell together and settled near each other.
    Healthy,
}

/// Validation over training loss at the end, less one: above it a run overfits.
pub const GAP: f64 = 0.2;
/// Lasting rise of the validation loss above its best, relative to its level: above it a run overfits.
pub const RISE: f64 = 0.02;
/// The same in standard deviations of one evaluation: the best of many is low by chance.
pub const BEST_BY_CHANCE: f64 = 4.;
/// Mean change of the validation loss from one evaluation to the next in the second half, less its lasting change,
/// relative to its level: above it the learning rate is too high.
pub const SWING: f64 = 0.1;
/// Fall of the loss over the last quarter, relative to its level: above it the run was too short.
pub const LATE: f64 = 0.01;
/// Fall of the training loss from the start, and of the validation loss from its first to its best, relative: below it
/// (or, for the training loss, within chance) the model underfits.
pub const FALL: f64 = 0.05;
/// Fall of the training loss of one batch, relative, from which on it is learnt by heart.
pub const BY_HEART: f64 = 0.9;
/// By how much the best validation loss is at least below the first, or a simple rule's, relative, where something was learnt.
pub const GAIN: f64 = 0.005;
/// Standard errors beyond which a change of the training loss is no chance.
pub const CHANCE: f64 = 3.;
/// Change of the weights in a single step, such as the first, above which the learning rate is too high, if anything else says so; of
/// several steps it is [`FAST`].
pub const LEAST_LEAP: f64 = 0.1;
/// Change of the weights in a step, relative to their norm, above which the learning rate is too high where the validation loss came less than
/// [`WAY`] down to what a simple rule has.
pub const FASTER: f64 = 2e-2;
/// See [`FASTER`].
pub const WAY: f64 = 0.6;
/// Fewest evaluations to judge.
pub const FEWEST: usize = 5;

/// A verdict with what it rests on.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Diagnosis {
    /// In one word.
    pub verdict: Verdict,
    /// In a sentence, with the numbers.
    pub because: String,
    /// The numbers behind it.
    pub numbers: Numbers,
    /// What to try, the most effective first.
    pub advice: Vec<Advice>,
}

/// What is known of a run.
#[derive(Clone, Copy, Debug)]
pub struct Evidence<'a> {
    /// Its curves.
    pub history: &'a History,
    /// Its health checks, in the order of their steps.
    pub checks: &'a [Check],
    /// What [`judge`](crate::health::judge) says of them.
    pub report: &'a Report,
    /// The tables `model`, `data` and `train`, which make advice concrete.
    pub config: &'a Value,
    /// Training samples, if that is on record.
    pub samples: Option<u64>,
}

fn percent(share: f64) -> String {
    match 100. * share {
        v if v != 0. && v.abs() < 0.1 => format!("{v:.0e} %"),
        v if v.abs() < 1. && v != 0. => format!("{v:.1} %"),
        v => format!("{v:.0} %"),
    }
}

/// What a simple rule has, as the end of a sentence.
fn beside(numbers: &Numbers) -> String {
    numbers.baseline.as_ref().map_or(String::new(), |(name, loss)| format!("; the {name} has {loss:.4}"))
}

/// Judges a run.
pub fn diagnose(evidence: &Evidence) -> Diagnosis {
    let numbers = measure::measure(evidence);
    let config = evidence.config;
    if let Some((verdict, because)) = policy::judge(evidence.history, &numbers) {
        if let (Verdict::Healthy | Verdict::Underfitting | Verdict::TooShort, Some(finding)) =
            (verdict, ill(evidence.report))
        {
            let advice = finding.remedies.clone();
            return Diagnosis { verdict: Verdict::Gradients, because: found(finding), numbers, advice };
        }
        let advice = policy::advice(verdict, &numbers, config);
        return Diagnosis { verdict, because, numbers, advice };
    }
    let (verdict, because) = judge(evidence, &numbers);
    let advice = match (verdict, ill(evidence.report)) {
        (Verdict::Gradients, Some(finding)) => finding.remedies.clone(),
        _ => advice::advice(verdict, &numbers, config),
    };
    Diagnosis { verdict, because, numbers, advice }
}

/// What is wrong with inputs and gradients first of all; settings are no more than a warning.
fn ill(report: &Report) -> Option<&Finding> {
    report.findings.iter().find(|f| f.level >= Level::Alert && f.kind != Kind::Setting)
}

/// A finding in a sentence.
fn found(finding: &Finding) -> String {
    let since = if finding.since > 1 { format!(" since step {}", finding.since) } else { String::new() };
    format!("{}{since}: {}", finding.what, finding.because)
}

fn judge(evidence: &Evidence, numbers: &Numbers) -> (Verdict, String) {
    let Evidence { report, config, .. } = evidence;
    let text = |key: &str| config.pointer(key).and_then(Value::as_str).is_some_and(|text| !text.is_empty());
    // Weights that were trained before need not move far.
    let tuned = text("/train/init_from") || text("/data/base");
    let one_batch = config.pointer("/train/overfit_batch") == Some(&Value::Bool(true));
    let &Numbers {
        evaluations,
        train_start,
        train_end,
        valid_start,
        valid_end,
        valid_best,
        valid_best_step,
        late,
        fall,
        ..
    } = numbers;
    let few = evaluations < FEWEST;
    let (beside, rule) = (beside(numbers), numbers.baseline.as_ref().map(|(_, loss)| *loss));
    let flat = (fall < FALL || numbers.rise > -CHANCE) && (few || valid_start - valid_best < FALL * valid_start.abs());
    let nothing = if few { None } else { nothing(numbers) };
    if let Some(because) = too_fast(evidence, numbers, nothing.is_some()) {
        return (Verdict::RateTooHigh, because);
    }
    if let Some(finding) = ill(report) {
        return (Verdict::Gradients, found(finding));
    }
    let unsettled = late > 0. || flat || nothing.is_some() || rule.is_some_and(|rule| valid_best > rule);
    if let Some(pace) = numbers.pace.filter(|pace| *pace < SLOW && !tuned && unsettled) {
        let because = format!(
            "a step changes the weights by {} of their norm at most (healthy runs: about {}), and the {} loss went from {:.5} to {:.5}",
            percent(pace),
            percent(USUAL),
            if few { "training" } else { "validation" },
            if few { train_start } else { valid_start },
            if few { train_end } else { valid_end }
        );
        return (Verdict::RateTooLow, because);
    }
    let falling = || {
        format!(
            "the loss still fell by {} of its level in the last quarter of the steps, to {train_end:.4}{beside}",
            percent(late)
        )
    };
    if one_batch {
        let because = format!("the loss of the one batch went from {train_start:.4} to {train_end:.4}");
        return match () {
            () if fall > BY_HEART => (Verdict::Healthy, format!("{because}: it is learnt by heart")),
            () if late > LATE => (Verdict::SlowConvergence, falling()),
            () => (Verdict::Underfitting, format!("{because}: a sound model learns it by heart")),
        };
    }
    if few {
        let because = match evaluations {
            0 => "there is no evaluation of a validation part".to_string(),
            n => format!("evaluations of the validation part: {n}; {FEWEST} are the fewest to judge by"),
        };
        return if late > LATE { (Verdict::SlowConvergence, falling()) } else { (Verdict::TooShort, because) };
    }
    if let Some(because) = nothing {
        return (Verdict::NothingLearned, because);
    }
    if let Some(because) = overfits(numbers) {
        return (Verdict::Overfitting, because);
    }
    if late > LATE {
        let because = format!(
            "the validation loss, {valid_start:.4} at first, still fell by {} of its level in the last quarter of the steps, to \
             {valid_end:.4}{beside}",
            percent(late)
        );
        return (Verdict::SlowConvergence, because);
    }
    if let Some(before) = numbers.late_before.filter(|before| *before > 2. * LATE) {
        let because = format!(
            "the validation loss, {valid_start:.4} at first, still fell by {} of its level in the third quarter of the steps, before the \
             learning rate came down; it ends at {valid_end:.4}{beside}",
            percent(before)
        );
        return (Verdict::SlowConvergence, because);
    }
    match rule {
        Some(rule) if valid_best > rule => {
            let because =
                format!("the validation loss came down to {valid_best:.4} at best, at step {valid_best_step}{beside}");
            return (Verdict::Underfitting, because);
        }
        None if flat && !tuned => {
            let because = format!(
                "the training loss went from {train_start:.4} to {train_end:.4} (a change of {:.1} standard errors; {CHANCE} or \
                 less may be chance), the validation loss from {valid_start:.4} to {valid_best:.4} at best",
                numbers.rise.abs()
            );
            return (Verdict::Underfitting, because);
        }
        _ => {}
    }
    let because = format!(
        "training loss {train_start:.4} to {train_end:.4}, validation loss {valid_start:.4} to {valid_end:.4}{beside}; a gap of {} ({} at \
         the start)",
        percent(numbers.gap),
        percent(numbers.gap_start)
    );
    (Verdict::Healthy, because)
}

/// What shows that the learning rate is too high.
fn too_fast(evidence: &Evidence, numbers: &Numbers, nothing: bool) -> Option<String> {
    let &Numbers { train_start, train_end, swing, fall, rise, rebound: [rebound, share], .. } = numbers;
    let &Numbers { valid_start, valid_end, valid_best, .. } = numbers;
    let few = numbers.evaluations < FEWEST;
    let stuck = |(_, loss): &(String, f64)| valid_start - valid_best < WAY * (valid_start - loss);
    let stuck = numbers.baseline.as_ref().is_some_and(stuck);
    // Such a swing needs steps that are not small.
    if swing > SWING && numbers.pace.is_none_or(|pace| pace > USUAL / 4.) {
        return Some(format!(
            "in the second half the validation loss changes by {} of its level from one evaluation to the next",
            percent(swing)
        ));
    }
    // Weights that hardly move raise no loss.
    let moves = numbers.pace.is_none_or(|pace| pace > SLOW);
    if train_end - train_start > 0.2 * train_start.abs() && rise > CHANCE && moves {
        return Some(format!("the training loss rose from {train_start:.4} to {train_end:.4}"));
    }
    let (pace, leap) = (numbers.pace?, numbers.leap?.0);
    let (what, moved) = match () {
        () if leap > LEAST_LEAP => ("a step changed", leap),
        () if pace > FAST => ("steps changed", pace),
        () => return None,
    };
    let curve = |name: &str| evidence.history.curve(name).iter().copied();
    let worst = curve("valid loss").max_by(|a, b| a.1.total_cmp(&b.1)).unwrap_or((0, f64::NEG_INFINITY));
    // Where the training loss was low meanwhile, it is overfitting.
    let then: Vec<f64> = curve("loss").filter(|p| p.0 <= worst.0).map(|p| p.1).collect();
    let beginning = numbers.initial.unwrap_or(train_start);
    let then = measure::mean(&then[then.len().saturating_sub(5)..]);
    let thrown = worst.1 - beginning > 0.2 * beginning.abs() && then > beginning - 0.1 * beginning.abs();
    let caused = |f: &&Finding| f.level >= Level::Alert && f.kind.is_cured_by_lr();
    let finding = evidence.report.consequences.iter().chain(&evidence.report.findings).find(caused);
    // Five losses together, as one batch says little.
    let train: Vec<f64> = curve("loss").map(|p| p.1).collect();
    let highest = train.chunks(5).map(measure::mean).fold(f64::NEG_INFINITY, f64::max);
    let first = train.first().copied().unwrap_or(f64::NAN);
    let poor = |(_, loss): &(String, f64)| valid_best > loss - GAIN * loss.abs();
    let poor = numbers.baseline.as_ref().is_some_and(poor);
    let shows = match (finding, rebound > CHANCE && share > LATE) {
        _ if thrown => {
            format!(
                "at step {} the validation loss was {:.4}, above the {beginning:.4} of the beginning",
                worst.0, worst.1
            )
        }
        (_, true) => {
            format!("the training loss rose by {} above its best, to {train_end:.4}, and stayed there", percent(share))
        }
        _ if few && highest - first > 0.2 * first.abs() => {
            format!("the training loss rose from {first:.4} to {highest:.4}")
        }
        (Some(f), _) if f.kind == Kind::Rate => "and it went on".to_string(),
        (Some(f), _) => format!("{}: {}", f.what, f.because),
        _ if nothing && fall < FALL => {
            format!("the validation loss, {valid_end:.4} at the end, was never below what takes no learning")
        }
        _ if leap > LEAST_LEAP && poor => format!("the validation loss was {valid_best:.4} at best{}", beside(numbers)),
        _ if pace > FASTER && stuck => {
            format!("the validation loss came down to {valid_best:.4} and no further{}", beside(numbers))
        }
        _ => return None,
    };
    Some(format!(
        "{what} the weights by {} of their norm (healthy runs: about {}); {shows}",
        percent(moved),
        percent(USUAL)
    ))
}

/// Whether nothing was learnt that holds elsewhere, in words.
fn nothing(numbers: &Numbers) -> Option<String> {
    let &Numbers { valid_start, valid_best, valid_best_step: step, valid_noise, .. } = numbers;
    let known = [
        numbers.initial.map(|loss| ("the initial weights have".to_string(), loss)),
        numbers.baseline.as_ref().map(|(name, loss)| (format!("the {name} has"), *loss)),
    ];
    let (rule, loss) = known.into_iter().flatten().min_by(|a, b| a.1.total_cmp(&b.1))?;
    // What fell far from its beginning, but not to what a rule has, did learn.
    let fell = valid_start - valid_best > FALL * valid_start.abs();
    if loss - valid_best > (CHANCE * valid_noise).max(GAIN * loss.abs()) || fell {
        return None;
    }
    let since = match overfits(numbers) {
        Some(_) => {
            format!("; since step {step} it learns its training samples by heart, and the validation loss rises")
        }
        None => String::new(),
    };
    Some(format!(
        "the validation loss was {valid_best:.4} at best, {rule} {loss:.4}: nothing was learnt that holds elsewhere{since}"
    ))
}

/// Whether the validation loss left its best, or the training loss, in words.
fn overfits(numbers: &Numbers) -> Option<String> {
    let &Numbers { train_end, valid_end, valid_best, valid_best_step, valid_rise, gap, gap_start, late, .. } = numbers;
    let rises = valid_rise > RISE * valid_best.abs() && valid_rise > BEST_BY_CHANCE * numbers.valid_noise;
    // Nor did the validation loss get any better of late.
    let still = late == 0. && 4 * valid_best_step <= 3 * numbers.valid_last_step;
    let parts = gap > GAP && gap > gap_start + GAP / 2. && still;
    if !rises && !parts {
        return None;
    }
    let rose = match rises {
        true => format!(
            "the validation loss was best at step {valid_best_step} ({valid_best:.4}) and has risen by {} since",
            percent(valid_rise / valid_best.abs())
        ),
        false => format!("the validation loss no longer falls, {valid_end:.4} at the end"),
    };
    Some(format!(
        "{rose}; the training loss is {train_end:.4}, a gap of {} ({} at the start)",
        percent(gap),
        percent(gap_start)
    ))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::health::{self, Profile};

    /// A run of 50 evaluations, ten steps each, from formulas of the share done.
    fn run(train: impl Fn(f64) -> f64, valid: impl Fn(f64) -> f64) -> History {
        let mut history = History::default();
        for step in 1..=500 {
            let done = f64::from(step) / 500.;
            // What minibatches add.
            let noise = 1. + 0.05 * (f64::from(step) * 2.399).sin();
            history.add("loss", step as u64, train(done) * noise);
            if step % 10 == 0 {
                history.add("valid loss", step as u64, valid(done));
            }
        }
        history
    }

    fn of(history: &History, config: &Value, checks: &[Check]) -> Diagnosis {
        let report = health::judge(checks, &Profile::default(), config);
        diagnose(&Evidence { history, checks, report: &report, config, samples: None })
    }

    /// Checks of a model whose steps change its weights by `pace` of their norm.
    fn moved(pace: f64) -> Vec<Check> {
        let check = |step| Check { update: Some(pace), norm: 1., step, ..Check::default() };
        (1..=10).map(check).collect()
    }

    #[test]
    fn planted_curves_are_judged_rightly() {
        let falling = |rate: f64| move |x: f64| 0.1 + 0.9 * (-rate * x).exp();
        let wave = |x: f64| (x * 130.).sin();
        for (expected, history) in [
            (Verdict::Healthy, run(falling(15.), |x| 1.1 * falling(15.)(x))),
            // A validation split that is harder from the first is no overfitting.
            (Verdict::Healthy, run(falling(15.), |x| 1.5 * falling(15.)(x))),
            // Nor is one that is easier, as calm markets are.
            (Verdict::Healthy, run(falling(15.), |x| 0.6 * falling(15.)(x))),
            (Verdict::Overfitting, run(falling(8.), |x| falling(8.)(x) + 0.3 * x * x)),
            (Verdict::Overfitting, run(falling(8.), |x| falling(8.)(x).max(0.3))),
            (Verdict::Underfitting, run(|x| 1. - 0.03 * x, |x| 1.05 - 0.03 * x)),
            (Verdict::RateTooHigh, run(falling(8.), |x| falling(8.)(x) * (1.3 + 0.5 * wave(x)))),
            (Verdict::RateTooHigh, run(|x| 1. + x, |x| 1. + x)),
            (Verdict::SlowConvergence, run(|x| 1. - 0.5 * x, |x| 1.02 - 0.5 * x)),
            (Verdict::TooShort, run(falling(30.), |_| f64::NAN)),
        ] {
            let diagnosis = of(&history, &Value::Null, &[]);
            assert_eq!(diagnosis.verdict, expected, "{diagnosis:?}");
        }
        assert_eq!(of(&History::default(), &Value::Null, &[]).verdict, Verdict::TooShort);
    }

    #[test]
    fn how_far_steps_move_the_weights_tells_a_rate_too_low_from_one_too_high() {
        let slow = run(|x| 1. - 0.03 * x, |x| 1.05 - 0.03 * x);
        let verdict = |history: &History, pace| of(history, &json!({ "train": { "lr": 1e-5 } }), &moved(pace));
        let low = verdict(&slow, 2e-6);
        assert_eq!(
            (low.verdict, low.advice[0].to_string().as_str()),
            (Verdict::RateTooLow, "a higher learning rate (train.lr=0.01)")
        );
        assert_eq!(verdict(&slow, USUAL).verdict, Verdict::Underfitting);
        // Weights that were trained before need not move far.
        let tuned = json!({ "train": { "lr": 1e-5, "init_from": "a.safetensors" } });
        assert_eq!(of(&slow, &tuned, &moved(2e-6)).verdict, Verdict::Healthy);
        // Large steps that learn are no fault; such as throw the loss back are, though it falls again.
        let falling = |x: f64| 0.1 + 0.9 * (-15. * x).exp();
        assert_eq!(verdict(&run(falling, falling), 0.03).verdict, Verdict::Healthy);
        let back = |x: f64| if x < 0.1 { 3. } else { falling(x) };
        let mut thrown = run(back, back);
        thrown.curves.iter_mut().filter(|c| c.name == "valid loss").for_each(|c| c.points.insert(0, (0, 1.)));
        assert_eq!(verdict(&thrown, 0.03).verdict, Verdict::RateTooHigh);
        assert_eq!(verdict(&thrown, USUAL).verdict, Verdict::Healthy);
        let exploded = run(|x| if x < 0.4 { 1. - x } else { 0.7 }, |x| if x < 0.4 { 1. - x } else { 0.7 });
        let high = verdict(&exploded, 0.03);
        assert!(high.verdict == Verdict::RateTooHigh && high.because.contains("stayed there"), "{high:?}");
    }

    #[test]
    fn what_takes_no_learning_is_compared_with() {
        let with = |name: &str, loss: f64, mut history: History| {
            history.add(name, 0, loss);
            of(&history, &Value::Null, &moved(USUAL))
        };
        let falling = |x: f64| 0.1 + 0.9 * (-15. * x).exp();
        // As good as the rule, but no better, from near it on.
        let level = |x: f64| 1. + 0.03 * (-15. * x).exp();
        assert_eq!(with("baseline mean", 1., run(level, level)).verdict, Verdict::NothingLearned);
        let mut first = run(|x| 1. - 0.6 * x, |x| 1. + 0.06 * x * x);
        first.curves.iter_mut().filter(|c| c.name == "valid loss").for_each(|c| c.points.insert(0, (0, 1.)));
        let nothing = with("baseline mean", 1.2, first);
        assert!(nothing.verdict == Verdict::NothingLearned && nothing.because.contains("by heart"), "{nothing:?}");
        assert!(nothing.advice.iter().all(|a| !a.what.contains("larger model")), "{nothing:?}");
        assert_eq!(with("baseline 5-gram", 0.05, run(falling, falling)).verdict, Verdict::Underfitting);
        assert_eq!(with("baseline 5-gram", 0.5, run(falling, falling)).verdict, Verdict::Healthy);
    }

    #[test]
    fn a_validation_loss_that_leaves_its_best_overfits_however_small_the_gap() {
        let noisy = |x: f64| 0.65 + 0.35 * (-20. * x).exp() + 0.003 * (x * 997.).sin();
        let rising = run(|x| 1.08 - 0.37 * x, |x| noisy(x) + 0.07 * (x - 0.4).max(0.) / 0.6);
        let diagnosis = of(&rising, &Value::Null, &moved(USUAL));
        assert_eq!(diagnosis.verdict, Verdict::Overfitting, "{diagnosis:?}");
        assert_eq!(of(&run(|x| noisy(x) + 0.4, noisy), &Value::Null, &moved(USUAL)).verdict, Verdict::Healthy);
    }

    #[test]
    fn a_policy_is_judged_by_how_far_it_moves_and_whether_it_tries() {
        let config = serde_json::json!({ "train": { "lr": 3e-4 }, "ppo": { "entropy_weight": 0.01 } });
        let judge = |kl: f64, entropy: f64| {
            let mut history = History::default();
            for step in 1..=50 {
                let at = f64::from(step as u32) / 50.;
                for (name, value) in [
                    ("loss", at),
                    ("entropy", 1.1 + (entropy - 1.1) * (1.6 * at).min(1.)),
                    ("kl", 2. * kl * (1. - at)),
                    ("clipped", 0.1),
                    ("valid loss", -at),
                ] {
                    history.add(name, step, value);
                }
                history.add("experience explained_variance", step, 0.2);
            }
            of(&history, &config, &[])
        };
        assert_eq!(judge(0.01, 0.9).verdict, Verdict::Healthy);
        assert_eq!(judge(0.01, 1.09).verdict, Verdict::Underfitting);
        let fast = judge(0.2, 0.9);
        assert_eq!(
            (fast.verdict, fast.advice[0].to_string().as_str()),
            (Verdict::RateTooHigh, "a lower learning rate (train.lr=0.00009)")
        );
        let stuck = judge(0.01, 0.);
        assert_eq!(stuck.verdict, Verdict::Collapsed);
        assert!(stuck.advice[0].to_string().contains("ppo.entropy_weight=0.05") && stuck.because.contains("20 %"));
    }
}
