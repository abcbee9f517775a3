//! The settings that a search tries.

use std::collections::BTreeSet;

use clap::ValueEnum;
use zoo_layers::random::{Purpose, Stream};
use zoo_training::Error;

use super::Arguments;

/// The order in which settings are tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Search {
    /// Every combination
    Grid,
    /// Random combinations
    Random,
    /// One key after the other, each with the best values of those before
    InOrder,
}

/// Values to try of one key.
pub(super) struct Axis {
    pub(super) key: String,
    pub(super) values: Vec<String>,
    /// Whether the values were drawn from a range, one for each trial.
    drawn: bool,
}

/// The values of a setting if there are several; `None` for a setting of one value.
pub(super) fn axis(setting: &str, args: &Arguments) -> anyhow::Result<Option<Axis>> {
    let Some((key, text)) = setting.split_once('=') else { return Ok(None) };
    let key = key.trim().to_string();
    let number = |t: &str| t.trim().parse::<f64>().is_ok();
    if let Some((lo, hi)) = text.split_once("..").filter(|(lo, hi)| number(lo) && number(hi)) {
        if args.search != Search::Random {
            return Err(Error::Usage(format!("--set {setting}: a range needs --search random")).into());
        }
        let values = range(lo, hi, &key, args);
        let values =
            values.ok_or_else(|| Error::Usage(format!("--set {setting}: expected numbers, the first smaller")))?;
        return Ok(Some(Axis { key, values, drawn: true }));
    }
    let values: Vec<String> = text.split(',').map(|v| v.trim().to_string()).collect();
    // Text in quotes and lists are one value.
    Ok((values.len() > 1 && !text.contains(['"', '[', '\''])).then_some(Axis { key, values, drawn: false }))
}

/// As many values as there are trials, even on a logarithmic scale; whole numbers between whole numbers.
fn range(lo: &str, hi: &str, key: &str, args: &Arguments) -> Option<Vec<String>> {
    let (from, to): (f64, f64) = (lo.trim().parse().ok()?, hi.trim().parse().ok()?);
    let whole = lo.trim().parse::<i64>().is_ok() && hi.trim().parse::<i64>().is_ok();
    if !(from < to && from.is_finite() && to.is_finite()) {
        return None;
    }
    let mut stream = Stream::new(args.seed.unwrap_or(1), Purpose::Sampling, zoo_layers::random::layer_id(key), 1);
    let draw = |_| {
        let u = stream.uniform();
        let value = if from > 0. { from * (to / from).powf(u) } else { from + (to - from) * u };
        if whole { format!("{}", value.round()) } else { format!("{value:.3e}") }
    };
    Some((0..args.trials).map(draw).collect())
}

/// Every combination.
pub(super) fn grid(axes: &[Axis]) -> Vec<Vec<String>> {
    let mut all = vec![vec![]];
    for axis in axes {
        let extended = |set: &Vec<String>| {
            let with = |value: &String| [&set[..], &[format!("{}={value}", axis.key)]].concat();
            axis.values.iter().map(with).collect::<Vec<_>>()
        };
        all = all.iter().flat_map(extended).collect();
    }
    all
}

/// Combinations drawn independently, each once; of a range, every trial has a value of its own.
pub(super) fn random(axes: &[Axis], args: &Arguments) -> Vec<Vec<String>> {
    let mut stream = Stream::new(args.seed.unwrap_or(1), Purpose::Sampling, 0, 0);
    let (mut chosen, mut seen) = (vec![], BTreeSet::new());
    // Small grids run out of new combinations.
    for _ in 0..100 * args.trials {
        let set: Vec<String> = axes
            .iter()
            .map(|a| {
                let at = match a.drawn {
                    true => chosen.len(),
                    false => (stream.uniform() * a.values.len() as f64) as usize,
                };
                format!("{}={}", a.key, a.values[at.min(a.values.len() - 1)])
            })
            .collect();
        if chosen.len() < args.trials && seen.insert(set.clone()) {
            chosen.push(set);
        }
    }
    chosen
}
