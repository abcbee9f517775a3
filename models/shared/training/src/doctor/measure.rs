//! The numbers behind a verdict.

use serde::Serialize;
use serde_json::Value;

use super::Evidence;
use crate::health::Check;

/// What the curves were measured by; means of the first or last tenth of a curve.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Numbers {
    /// Evaluations, that of the initial weights among them.
    pub evaluations: usize,
    /// Training loss at the start: in the first tenth or before the first evaluation, whichever is greater.
    pub train_start: f64,
    /// Training loss at the end.
    pub train_end: f64,
    /// Validation loss of the initial weights, if it is on record.
    pub initial: Option<f64>,
    /// The same, or that of the first evaluation.
    pub valid_start: f64,
    /// Validation loss at the end.
    pub valid_end: f64,
    /// Best validation loss, the initial weights' left out.
    pub valid_best: f64,
    /// Step of the best validation loss.
    pub valid_best_step: u64,
    /// Step of the last evaluation.
    pub valid_last_step: u64,
    /// Standard deviation of one evaluation around a smooth curve, from third differences.
    pub valid_noise: f64,
    /// Rise of the validation loss from its best to the end; 0 where later evaluations do not all lie above the best.
    pub valid_rise: f64,
    /// Validation loss that a simple rule has on the same data, and its name, if the task knows one.
    pub baseline: Option<(String, f64)>,
    /// Validation over training loss at the start, less one.
    pub gap_start: f64,
    /// Validation over training loss at the end, less one.
    pub gap: f64,
    /// Mean change between evaluations in the second half, less the lasting change, relative to the level.
    pub swing: f64,
    /// Fall of the loss (of validation, where there are evaluations enough) over the last quarter, relative to its level; 0 within chance.
    pub late: f64,
    /// The same over the third quarter, where the learning rate came down to less than half of it in the last: what is still then, need not be
    /// settled.
    pub late_before: Option<f64>,
    /// Relative fall of the training loss.
    pub fall: f64,
    /// Rise of the training loss from the first tenth, or ten values, to the last, in standard errors; below 0 where it fell.
    pub rise: f64,
    /// Rise of the training loss from its best tenth to the last, in standard errors, and relative to its level.
    pub rebound: [f64; 2],
    /// Change of the weights in a step, relative to their norm, where it was greatest: the mean of three health checks, without the first.
    pub pace: Option<f64>,
    /// The greatest such change in a single step, and the learning rate of that step, if it is on record.
    pub leap: Option<(f64, Option<f64>)>,
    /// Steps refused as not finite or as spikes.
    pub refused: u64,
    /// Parameters that are trained.
    pub parameters: Option<usize>,
    /// Training samples.
    pub samples: Option<u64>,
}

pub(super) fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

/// Means of the first and of the last tenth, or of five values where those are fewer.
pub(super) fn ends(values: &[f64]) -> (f64, f64) {
    let tenth = values.len().div_ceil(10).max(5).min(values.len());
    (mean(&values[..tenth]), mean(&values[values.len() - tenth..]))
}

/// By how many standard errors the mean of `b` is above that of `a`; 0 where either is too short to tell.
fn above(a: &[f64], b: &[f64]) -> f64 {
    if a.len() < 2 || b.len() < 2 {
        return 0.;
    }
    let variance = |part: &[f64]| {
        let m = mean(part);
        part.iter().map(|v| (v - m).powi(2)).sum::<f64>() / (part.len() - 1) as f64 / part.len() as f64
    };
    (mean(b) - mean(a)) / (variance(a) + variance(b)).sqrt().max(f64::MIN_POSITIVE)
}

/// How far single values lie from a smooth curve through them: third differences have twenty times their variance, and bends of the curve
/// add little to them.
fn noise(values: &[f64]) -> f64 {
    let mut bends: Vec<f64> = values.windows(4).map(|w| (w[0] - 3. * w[1] + 3. * w[2] - w[3]).abs()).collect();
    bends.sort_by(f64::total_cmp);
    // The median of absolute values is 0.6745 standard deviations.
    bends.get(bends.len() / 2).map_or(0., |middle| middle / (0.6745 * 20f64.sqrt()))
}

/// A change of a loss, which may be negative, relative to its level.
fn relative(change: f64, level: f64) -> f64 {
    change / level.abs().max(f64::MIN_POSITIVE)
}

/// The learning rate of a step, as far as it is on record.
fn rate_of(rates: &[(u64, f64)], step: u64) -> Option<f64> {
    rates.iter().rfind(|p| p.0 <= step).map(|p| p.1)
}

/// Change of the weights in a step: where it was greatest over three checks, and in any, with its step. A learning rate that warms up, or has come
/// down again, says nothing of how far the steps of the one that was set go.
fn pace(checks: &[Check], rates: &[(u64, f64)], lr: Option<f64>) -> (Option<f64>, Option<(f64, u64)>) {
    let all = || checks.iter().filter_map(|c| Some((c.update?, c.step)));
    let leap = all().max_by(|a, b| a.0.total_cmp(&b.0));
    let peak = rates.iter().map(|p| p.1).fold(0., f64::max);
    if lr.is_some_and(|lr| peak > 0. && peak < 0.5 * lr) {
        return (None, leap);
    }
    let at_rate = |step: u64| rate_of(rates, step).is_none_or(|rate| rate >= 0.5 * peak);
    // The first step starts from initial values, and an optimizer has no measure of gradients yet.
    let (first, settled): (Vec<_>, Vec<_>) = all().filter(|(_, step)| at_rate(*step)).partition(|(_, step)| *step <= 1);
    let updates: Vec<f64> = if settled.is_empty() { first } else { settled }.into_iter().map(|u| u.0).collect();
    (updates.windows(updates.len().clamp(1, 3)).map(mean).reduce(f64::max), leap)
}

pub(super) fn measure(evidence: &Evidence) -> Numbers {
    let Evidence { history, checks, samples, config, .. } = evidence;
    let (train, valid) = (history.curve("loss"), history.curve("valid loss"));
    let values = |curve: &[(u64, f64)]| curve.iter().map(|p| p.1).collect::<Vec<_>>();
    let (t, v) = (values(train), values(valid));
    let few = v.len() < super::FEWEST;
    // Of the initial weights there is no course yet.
    let initial = valid.first().filter(|p| p.0 == 0).map(|p| p.1);
    let trained = &v[usize::from(initial.is_some())..];
    // The start that counts is before the first evaluation, where the losses fall most.
    let before = valid.iter().find(|p| p.0 > 0).map_or(u64::MAX, |p| p.0);
    let last_step = train.last().map_or(0, |p| p.0);
    // An evaluation that comes late says nothing of the start.
    let before = if before <= last_step / 3 { before } else { 0 };
    let early: Vec<f64> = train.iter().filter(|p| p.0 <= before).map(|p| p.1).collect();
    let (first_train, train_end) = ends(&t);
    let train_start = if early.is_empty() { first_train } else { first_train.max(mean(&early)) };
    let tenth = v.len().div_ceil(10).min(v.len());
    let (valid_start, valid_end) = (v.first().copied().unwrap_or(f64::NAN), mean(&v[v.len() - tenth..]));
    let near_first = if early.is_empty() { first_train } else { mean(&early[early.len().saturating_sub(3)..]) };
    let best = (v.len() - trained.len()..v.len()).min_by(|a, b| v[*a].total_cmp(&v[*b]));
    let (valid_best_step, valid_best) = best.map(|i| valid[i]).unwrap_or((0, f64::NAN));
    let valid_noise = noise(trained);
    // All that came later, and at least three of them, where there are so many.
    let later = best.map_or(&[][..], |i| &v[i + 1..]);
    let tail = &later[later.len() - later.len().min((v.len() / 10).max(3))..];
    let lasting = tail.len() > 1 && tail.iter().all(|l| *l > valid_best + valid_noise);
    let second = &trained[trained.len() / 2..];
    let changes = || second.windows(2).map(|w| w[1] - w[0]);
    let swing = (changes().map(f64::abs).sum::<f64>() - changes().sum::<f64>().abs()) / changes().count().max(1) as f64;
    // Fewer values tell too little of how far they scatter.
    let tenth = if t.len() < 20 { t.len() / 10 } else { (t.len() / 10).max(10) };
    let tenths: Vec<&[f64]> = t.chunks_exact(tenth.max(1)).collect();
    let last = &t[t.len() - tenth..];
    let rebound = match tenths.iter().min_by(|a, b| mean(a).total_cmp(&mean(b))) {
        Some(least) if tenth > 1 => [above(least, last), relative(mean(last) - mean(least), mean(least))],
        _ => [0.; 2],
    };
    let rates = history.curve("lr");
    let (pace, leap) = pace(checks, rates, config.pointer("/train/lr").and_then(Value::as_f64));
    let rate = |at: f64| rates.get((at * rates.len() as f64) as usize).map_or(f64::NAN, |p| p.1);
    let parameters = checks.last().map(|c| c.parameters.iter().map(|p| p.elements).sum());
    Numbers {
        evaluations: v.len(),
        train_start,
        train_end,
        initial,
        valid_start,
        valid_end,
        valid_best,
        valid_best_step,
        valid_last_step: valid.last().map_or(0, |p| p.0),
        valid_noise,
        valid_rise: if lasting { mean(tail) - valid_best } else { 0. },
        baseline: history
            .curves
            .iter()
            .find_map(|c| Some((c.name.strip_prefix("baseline ")?.into(), c.points.first()?.1))),
        gap_start: trained.first().map_or(f64::NAN, |first| relative(first - near_first, near_first)),
        gap: relative(valid_end - train_end, train_end),
        swing: swing / mean(second).abs(),
        late: late(trained, &t, valid_noise, few, 4),
        late_before: (rate(0.98) < 0.5 * rate(0.6)).then(|| {
            let part = |curve: &[f64]| curve[..curve.len() - curve.len() / 4].to_vec();
            late(&part(trained), &part(&t), valid_noise, few, 3)
        }),
        fall: relative(train_start - train_end, train_start),
        rise: above(&t[..tenth], last),
        rebound,
        pace,
        leap: leap.map(|(leap, step)| (leap, rate_of(rates, step))),
        refused: history.refused,
        parameters,
        samples: *samples,
    }
}

/// What the last part of the steps, one of so many, brought, relative to the level; nothing within chance.
fn late(valid: &[f64], train: &[f64], noise: f64, few: bool, parts: usize) -> f64 {
    if !few {
        // The mean over a half of such a part before and at the end of it: one evaluation says little.
        let half = valid.len().div_ceil(2 * parts);
        let around = |end: usize| mean(&valid[end.saturating_sub(half)..end]);
        let (before, end) = (around(valid.len() - valid.len() / parts), around(valid.len()));
        let chance = super::CHANCE * noise * (2. / half as f64).sqrt();
        return if before - end > chance { relative(before - end, end) } else { 0. };
    }
    let part = train.len() / parts;
    let (before, last) = (&train[train.len() - 2 * part..train.len() - part], &train[train.len() - part..]);
    match above(last, before) > super::CHANCE {
        true => relative(mean(before) - mean(last), mean(last)),
        false => 0.,
    }
}
