//! Judges a run by its curves, as one does by looking at them: training and validation loss together.

use serde::Serialize;
use serde_json::Value;

use crate::{Advice, History};

/// What the curves of a run say. The first that applies, in this order, is the verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// Too few evaluations to say anything.
    TooShort,
    /// The validation loss swings, or the training loss rises: the learning rate is too high.
    RateTooHigh,
    /// The validation loss stays more than 20 % above the training loss, which it did not at the start.
    Overfitting,
    /// Both losses were still falling at the end.
    SlowConvergence,
    /// A policy chooses nearly always the same after three quarters of its run: it may have stopped trying too early.
    Collapsed,
    /// Neither loss fell much.
    Underfitting,
    /// Both fell together and settled near each other.
    Healthy,
}

/// Validation loss over training loss at the end, less one: above it a run overfits.
pub const GAP: f64 = 0.2;
/// Mean change of the validation loss from one evaluation to the next in the second half, less its lasting change,
/// relative to its level: above it the learning rate is too high.
pub const SWING: f64 = 0.1;
/// Share of the whole fall that came in the last quarter: above it the run was too short.
pub const LATE: f64 = 0.05;
/// Fall of the training loss from the start, and of the validation loss from its first to its best, relative: below it
/// (or, for the training loss, within chance) the model underfits.
pub const FALL: f64 = 0.1;
/// Standard errors beyond which a change of the training loss is no chance.
pub const CHANCE: f64 = 3.;
/// Divergence of a policy from the one that acted, in nats, and share of clipped ratios: above either, the learning rate is too high.
pub const DIVERGENCE: f64 = 0.05;
/// See [`DIVERGENCE`].
pub const CLIPPED: f64 = 0.5;
/// Share of its first entropy below which a policy has stopped trying.
pub const COLLAPSE: f64 = 0.02;
/// Share of its first entropy above which a policy has hardly begun to prefer anything.
pub const UNMOVED: f64 = 0.98;
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

/// What the curves were measured by; means of the first or last tenth of a curve.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Numbers {
    /// Evaluations.
    pub evaluations: usize,
    /// Training loss at the start: in the first tenth or before the first evaluation, whichever is greater.
    pub train_start: f64,
    /// Training loss at the end.
    pub train_end: f64,
    /// Validation loss at the start.
    pub valid_start: f64,
    /// Validation loss at the end.
    pub valid_end: f64,
    /// Best validation loss.
    pub valid_best: f64,
    /// Step of the best validation loss.
    pub valid_best_step: u64,
    /// Validation over training loss at the start, less one.
    pub gap_start: f64,
    /// Validation over training loss at the end, less one.
    pub gap: f64,
    /// Mean change between evaluations in the second half, less the lasting change, relative to the level.
    pub swing: f64,
    /// Share of the validation loss's whole fall that came in the last quarter.
    pub late: f64,
    /// Relative fall of the training loss.
    pub fall: f64,
    /// Rise of the training loss from the first tenth to the last, in standard errors; below 0 where it fell.
    pub rise: f64,
    /// Steps refused as not finite or as spikes.
    pub refused: u64,
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

/// Means of the first and of the last tenth.
fn ends(values: &[f64]) -> (f64, f64) {
    let tenth = values.len().div_ceil(10).min(values.len());
    (mean(&values[..tenth]), mean(&values[values.len() - tenth..]))
}

/// By how many standard errors the mean of the last tenth is above that of the first.
fn rise(values: &[f64]) -> f64 {
    let tenth = values.len() / 10;
    if tenth < 2 {
        return 0.;
    }
    let (first, last) = (&values[..tenth], &values[values.len() - tenth..]);
    let variance = |part: &[f64]| {
        let m = mean(part);
        part.iter().map(|v| (v - m).powi(2)).sum::<f64>() / (part.len() - 1) as f64 / part.len() as f64
    };
    (mean(last) - mean(first)) / (variance(first) + variance(last)).sqrt().max(f64::MIN_POSITIVE)
}

fn measure(history: &History) -> Numbers {
    let (train, valid) = (history.curve("loss"), history.curve("valid loss"));
    let values = |curve: &[(u64, f64)]| curve.iter().map(|p| p.1).collect::<Vec<_>>();
    let v = values(valid);
    // The start that counts is before the first evaluation, where the losses fall most.
    let before = valid.first().map_or(u64::MAX, |p| p.0);
    let early: Vec<f64> = train.iter().filter(|p| p.0 <= before).map(|p| p.1).collect();
    let (first_train, train_end) = ends(&values(train));
    let train_start = if early.is_empty() { first_train } else { first_train.max(mean(&early)) };
    let (valid_start, valid_end) = (v.first().copied().unwrap_or(f64::NAN), ends(&v).1);
    let near_first = mean(&early[early.len().saturating_sub(3)..]);
    let best = valid.iter().min_by(|a, b| a.1.total_cmp(&b.1)).copied().unwrap_or_default();
    let second = &v[v.len() / 2..];
    let changes = || second.windows(2).map(|w| w[1] - w[0]);
    let swing = (changes().map(f64::abs).sum::<f64>() - changes().sum::<f64>().abs()) / changes().count().max(1) as f64;
    // The mean over an eighth of the run before and at the end of the last quarter: one evaluation says little.
    let eighth = v.len().div_ceil(8);
    let around = |end: usize| mean(&v[end.saturating_sub(eighth)..end]);
    let whole = valid_start.max(around(eighth)) - around(v.len());
    Numbers {
        evaluations: v.len(),
        train_start,
        train_end,
        valid_start,
        valid_end,
        valid_best: best.1,
        valid_best_step: best.0,
        gap_start: valid_start / near_first - 1.,
        gap: valid_end / train_end - 1.,
        swing: swing / mean(second).abs(),
        late: if whole > 0. { (around(v.len() - v.len() / 4) - around(v.len())) / whole } else { 0. },
        fall: 1. - train_end / train_start,
        rise: rise(&values(train)),
        refused: history.refused,
    }
}

/// Judges a run. `config` (the tables `model` and `train`) makes the advice concrete.
pub fn diagnose(history: &History, config: &Value) -> Diagnosis {
    let numbers = measure(history);
    if let Some((verdict, because)) = of_policy(history) {
        return Diagnosis { verdict, because, numbers, advice: policy_advice(verdict, config) };
    }
    let Numbers { evaluations, train_start, train_end, valid_end, valid_best, valid_best_step, gap, .. } = numbers;
    let Numbers { valid_start, gap_start, swing, late, fall, .. } = numbers;
    let flat = (fall < FALL || numbers.rise > -CHANCE) && valid_start - valid_best < FALL * valid_start.abs();
    let percent = |v: f64| format!("{:.0} %", 100. * v);
    let (verdict, because) = if evaluations < FEWEST {
        let because = format!("{evaluations} evaluations of a validation split; {FEWEST} are the fewest to judge by");
        (Verdict::TooShort, because)
    } else if swing > SWING {
        let because = format!(
            "in the second half the validation loss changes by {} of its level from one evaluation to the next",
            percent(swing)
        );
        (Verdict::RateTooHigh, because)
    } else if train_end > 1.2 * train_start && numbers.rise > CHANCE {
        (Verdict::RateTooHigh, format!("the training loss rose from {train_start:.4} to {train_end:.4}"))
    } else if gap > GAP && gap > gap_start + GAP / 2. {
        let rise = valid_end / valid_best - 1.;
        let because = format!(
            "at the end the validation loss {valid_end:.4} is {} above the training loss {train_end:.4} ({} at the start); \
             it was best at step {valid_best_step} and is {} above that",
            percent(gap),
            percent(gap_start),
            percent(rise)
        );
        (Verdict::Overfitting, because)
    } else if late > LATE && !flat {
        let because = format!(
            "{} of the fall of the validation loss, from {valid_start:.4} to {valid_end:.4}, came in the last quarter",
            percent(late)
        );
        (Verdict::SlowConvergence, because)
    } else if flat {
        let because = format!(
            "the training loss went from {train_start:.4} to {train_end:.4} (a change of {:.1} standard errors; {CHANCE} or \
             less may be chance), the validation loss from {valid_start:.4} to {valid_best:.4} at best",
            numbers.rise.abs()
        );
        (Verdict::Underfitting, because)
    } else {
        let because = format!(
            "training loss {train_start:.4} to {train_end:.4}, validation loss {valid_start:.4} to {valid_end:.4}, a gap of {} ({} at the \
             start)",
            percent(gap),
            percent(gap_start)
        );
        (Verdict::Healthy, because)
    };
    Diagnosis { verdict, because, numbers, advice: advice(verdict, config) }
}

/// Judges a policy, whose losses say little: by how far each step moves it, and whether it still tries things.
fn of_policy(history: &History) -> Option<(Verdict, String)> {
    let values = |name: &str| history.curve(name).iter().map(|p| p.1).collect::<Vec<_>>();
    // A rate that falls to zero makes every end look calm.
    let worst = |name: &str| {
        let values = values(name);
        values.chunks(values.len().div_ceil(10).max(1)).map(mean).fold(f64::NAN, f64::max)
    };
    if history.curve("experience explained_variance").is_empty() {
        return None;
    }
    let (kl, clipped, entropies) = (worst("kl"), worst("clipped"), values("entropy"));
    let (entropy, entropy_end) = ends(&entropies);
    // Towards the end a policy may well be sure.
    let late = ends(&entropies[..3 * entropies.len() / 4]).1;
    let explained = 100. * ends(&values("experience explained_variance")).1;
    let moved = format!(
        "{kl:.4} nats from the policy that acted and {:.0} % of ratios clipped in the worst tenth",
        100. * clipped
    );
    let seen = format!(
        "{moved}; entropy {entropy:.3} to {entropy_end:.3}; in the end the critic explains {explained:.0} % of the returns' variance"
    );
    let verdict = match () {
        () if history.curve("entropy").len() < FEWEST => Verdict::TooShort,
        () if kl > DIVERGENCE || clipped > CLIPPED => Verdict::RateTooHigh,
        () if late < COLLAPSE * entropy => Verdict::Collapsed,
        () if entropy_end > UNMOVED * entropy => Verdict::Underfitting,
        () => Verdict::Healthy,
    };
    Some((verdict, seen))
}

fn policy_advice(verdict: Verdict, config: &Value) -> Vec<Advice> {
    let number = |key: &str| config.pointer(key).and_then(Value::as_f64);
    let lower =
        number("/train/lr").map(|lr| Advice::set("train.lr", (lr * 0.3e9).round() / 1e9, "a lower learning rate"));
    let entropy = number("/ppo/entropy_weight")
        .map(|w| Advice::set("ppo.entropy_weight", (w * 5.).max(0.01), "explores for longer"));
    let divergence = number("/ppo/target_kl")
        .map(|_| Advice::set("ppo.target_kl", 0.02, "training on a rollout ends once the policy has moved enough"));
    match verdict {
        Verdict::RateTooHigh => lower.into_iter().chain(divergence).collect(),
        Verdict::Collapsed => entropy.into_iter().chain(lower).collect(),
        Verdict::Underfitting => {
            let longer = number("/train/steps").map(|n| Advice::set("train.steps", 2. * n, "a longer run"));
            let nothing = "there may be nothing to prefer: an evaluation beside baselines shows what the policy brings";
            longer.into_iter().chain([Advice::new(nothing)]).collect()
        }
        Verdict::TooShort => vec![Advice::new("a longer run, or lines more often by train.log_every")],
        _ => vec![],
    }
}

/// What to change, in the order in which it is worth trying: learning rate, hidden size, layers, dropout, batch size.
fn advice(verdict: Verdict, config: &Value) -> Vec<Advice> {
    let value = |key: &str| config.pointer(&format!("/{}", key.replace('.', "/")));
    let number = |key: &str| value(key).and_then(Value::as_f64);
    let times = |key: &str, factor: f64, what: &str| {
        let (now, whole) = (number(key)?, value(key)?.is_u64());
        let then = now * factor;
        let then = if whole { then.round().max(1.) } else { (then * 1e9).round() / 1e9 };
        (then != now).then(|| Advice::set(key, then, what))
    };
    let lr = |factor, what: &str| times("train.lr", factor, what);
    let hidden =
        |factor, what: &str| times("model.hidden", factor, what).or_else(|| times("model.d_model", factor, what));
    let layers = |change: f64, what: &str| {
        let now = number("model.layers")?;
        (now + change >= 1.).then(|| Advice::set("model.layers", now + change, what))
    };
    let dropout = |change: f64, what: &str| {
        let now = number("model.dropout")?;
        let then = (10. * (now + change).clamp(0., 0.5)).round() / 10.;
        (then != now).then(|| Advice::set("model.dropout", then, what))
    };
    let longer =
        |what: &str| times(if number("train.steps") == Some(0.) { "train.epochs" } else { "train.steps" }, 2., what);
    let stopping = (number("train.early_stopping") == Some(0.))
        .then(|| Advice::set("train.early_stopping", 10, "the best weights are kept either way"));
    let plateau = Advice::set("train.schedule", "plateau", "lowers the learning rate when the validation loss stalls");
    let tried = match verdict {
        Verdict::TooShort => vec![longer("a longer run, or evaluations more often by train.eval_every")],
        Verdict::RateTooHigh => {
            vec![lr(0.1, "a lower learning rate"), Some(plateau), times("train.batch_size", 2., "steadier gradients")]
        }
        Verdict::Overfitting => vec![
            hidden(0.64, "a smaller model"),
            layers(-1., "a smaller model"),
            dropout(0.1, "more regularisation"),
            stopping,
        ],
        Verdict::SlowConvergence => vec![longer("a longer run"), lr(3., "a higher learning rate")],
        Verdict::Underfitting => vec![
            lr(0.1, "a learning rate too high learns as little as one too low"),
            hidden(2., "a larger model"),
            layers(1., "a larger model"),
            dropout(-0.1, "less regularisation"),
            longer("a longer run"),
            Some(Advice::new("an evaluation beside baselines: where those do as well, there may be nothing to learn")),
        ],
        Verdict::Healthy | Verdict::Collapsed => vec![],
    };
    tried.into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

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

    fn verdict(history: &History) -> Verdict {
        diagnose(history, &Value::Null).verdict
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
            (Verdict::TooShort, run(falling(8.), |_| f64::NAN)),
        ] {
            let diagnosis = diagnose(&history, &Value::Null);
            assert_eq!(diagnosis.verdict, expected, "{diagnosis:?}");
        }
        assert_eq!(verdict(&History::default()), Verdict::TooShort);
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
            diagnose(&history, &config)
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

    #[test]
    fn advice_is_concrete_and_in_order() {
        let config = json!({
            "model": { "hidden": 50, "layers": 2, "dropout": 0.2 },
            "train": { "lr": 1e-3, "epochs": 100, "steps": 0, "batch_size": 32, "early_stopping": 0 },
        });
        let first_words = |verdict| -> Vec<String> {
            let set = |a: Advice| a.set.map_or(String::new(), |(key, value)| format!("{key}={value}"));
            advice(verdict, &config).into_iter().map(set).collect()
        };
        assert_eq!(
            first_words(Verdict::Overfitting),
            ["model.hidden=32", "model.layers=1", "model.dropout=0.3", "train.early_stopping=10"]
        );
        assert_eq!(first_words(Verdict::RateTooHigh)[0], "train.lr=0.0001");
        assert_eq!(first_words(Verdict::Underfitting)[..2], ["train.lr=0.0001", "model.hidden=100"]);
        assert_eq!(first_words(Verdict::SlowConvergence), ["train.epochs=200", "train.lr=0.003"]);
        assert!(advice(Verdict::Healthy, &config).is_empty());
    }
}
