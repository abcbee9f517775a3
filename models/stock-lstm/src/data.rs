//! Windows of daily prices, each with the day that follows it.

use std::path::Path;

use candle_core::{Device, Result, Tensor};
use serde_json::Value;
use zoo_market::{Days, Need, simulate};
use zoo_training::{Error, Name, Split, Task};

use crate::features::{Scaler, close_index, raw};
use crate::{Config, DataSettings, FeatureSet, Target};

/// Key of the first and last validation day beside the fitted scaler.
pub(crate) const VALIDATION: &str = "validation";

/// Windows of a price series, each with the day that follows it.
pub struct StockTask {
    pub(crate) days: Days,
    pub(crate) simulated: bool,
    pub(crate) scaler: Scaler,
    /// Scaled features of day d + 1 at d (the first day has no return).
    rows: Vec<f32>,
    pub(crate) window: usize,
    /// First sample of the validation and of the test split, and their number.
    pub(crate) splits: [usize; 3],
    /// Mean log return of the training part.
    pub(crate) drift: f64,
    /// The last day that the training of the weights saw, if they are loaded ones.
    seen: Option<String>,
    pub(crate) device: Device,
}

impl DataSettings {
    /// The prices of its file, or simulated ones; and what they are called in messages.
    fn days(&self, seed: u64) -> zoo_training::Result<(Days, String)> {
        let days = match self.path.as_str() {
            "" => (simulate(self.simulated_days, seed), "the simulation".into()),
            path => (self.read(Path::new(path))?, path.to_string()),
        };
        Ok(days)
    }

    /// The prices of a file, with the columns that the features need.
    pub(crate) fn read(&self, path: &Path) -> zoo_training::Result<Days> {
        let bars = self.features == FeatureSet::Ohlcv;
        let need = if bars { Need::Bars } else { Need::Closes };
        let mut days = zoo_market::read(path, &self.reading, need).map_err(|e| match e {
            zoo_market::Error::Io { path, source } => Error::Io { path, source },
            e => Error::Data(e.keyed("data")),
        })?;
        if !bars {
            return Ok(days);
        }
        if let Some(column) = days.missing.iter().find(|column| !["Adj Close", "Volume"].contains(column)) {
            let path = path.display();
            return Err(Error::Data(format!("{path}: no column {column}, which data.features = \"ohlcv\" needs")));
        }
        if days.missing.contains(&"Volume") {
            days.warnings.push("the file has no volume: its feature says nothing".into());
        }
        Ok(days)
    }

    /// The parts of so many samples: where training ends, where validation ends, all.
    fn splits(&self, days: usize, window: usize, origin: &str) -> zoo_training::Result<[usize; 3]> {
        let &Self { valid, test, .. } = self;
        let samples = days.saturating_sub(window.saturating_add(1));
        let train = (samples as f64 * (1. - valid - test)).round() as usize;
        let end_of_valid = (samples as f64 * (1. - test)).round() as usize;
        let empty = |share: f64, n: usize| share > 0. && n == 0;
        if train == 0 || empty(valid, end_of_valid.saturating_sub(train)) || empty(test, samples - end_of_valid) {
            // Half a sample or more of the smallest part rounds to one.
            let least = [valid, test].into_iter().filter(|s| *s > 0.).fold(1. - valid - test, f64::min);
            let needed = window.saturating_add(1).saturating_add((1. / least).ceil() as usize);
            return Err(Error::Data(format!(
                "{origin}: {days} days, a window of {window} needs at least {needed} (set model.window lower, or bring more data)"
            )));
        }
        Ok([train, end_of_valid, samples])
    }

    /// What cannot work, if anything.
    fn problem(&self, config: &Config) -> Option<String> {
        let Self { path, reading, features, valid, test, simulated_days, .. } = self;
        let share = |v: &f64| (0. ..1.).contains(v);
        match () {
            () if [config.hidden, config.layers, config.window].contains(&0) => {
                Some("model.hidden, model.layers and model.window must be at least 1".into())
            }
            () if !share(&config.dropout) => {
                Some(format!("model.dropout is {}, expected a share below 1", config.dropout))
            }
            () if config.input != features.len() => Some(format!(
                "model.input is {}, but data.features gives {} (the preset ohlcv sets both)",
                config.input,
                features.len()
            )),
            () if !share(valid) || !share(test) || valid + test >= 1. => {
                Some("data.valid and data.test must be shares that leave a training part".into())
            }
            () if *simulated_days > MOST_DAYS => {
                Some(format!("data.simulated_days is {simulated_days}, expected at most {MOST_DAYS}"))
            }
            () if path.is_empty() && !reading.is_default() => {
                Some("how a file is read (data.column, data.symbol, …) is about a file: name one by data.path".into())
            }
            () => None,
        }
    }
}

/// Simulated days: four thousand years.
const MOST_DAYS: usize = 1_000_000;

/// The scaler in weights, if it fits them.
pub(crate) fn scaler(config: &Config, fitted: &Value) -> zoo_training::Result<Scaler> {
    let wrong = |e: &dyn std::fmt::Display| Error::Run(format!("the checkpoint's scaler: {e}"));
    let scaler: Scaler = serde_json::from_value(fitted.clone()).map_err(|e| wrong(&e))?;
    scaler.check(config.input).map_err(|e| Error::Run(e.to_string()))?;
    Ok(scaler)
}

impl StockTask {
    pub(crate) fn new(
        config: &Config,
        source: &DataSettings,
        seed: u64,
        fitted: Option<&Value>,
        device: &Device,
    ) -> zoo_training::Result<Self> {
        if let Some(problem) = source.problem(config) {
            return Err(Error::Usage(problem));
        }
        let &DataSettings { target, features, .. } = source;
        let (days, origin) = source.days(seed)?;
        let splits = source.splits(days.bars.len(), config.window, &origin)?;
        let raws: Vec<Vec<f64>> = days.bars.windows(2).map(|w| raw(&w[1], &w[0], target, features)).collect();
        // The last training target is row train + window - 1.
        let part = &raws[..splits[0] + config.window];
        let scaler = match fitted {
            Some(value) => scaler(config, value)?,
            None => Scaler::fit(part, target, features),
        };
        let rows = raws.iter().flat_map(|r| scaler.apply(r).collect::<Vec<_>>()).collect();
        let closes = &days.bars[..=part.len()];
        let drift = (closes[part.len()].close / closes[0].close).ln() / part.len() as f64;
        Ok(Self {
            simulated: source.path.is_empty(),
            days,
            scaler,
            rows,
            window: config.window,
            splits,
            drift,
            seen: fitted.and_then(|f| f[VALIDATION][1].as_str()).map(String::from),
            device: device.clone(),
        })
    }

    pub(crate) fn range(&self, split: Split) -> std::ops::Range<usize> {
        let [valid, test, end] = self.splits;
        match split {
            Split::Train => 0..valid,
            Split::Valid => valid..test,
            Split::Test => test..end,
        }
    }

    /// The day that sample `i` forecasts.
    pub(crate) fn target_day(&self, i: usize) -> usize {
        i + self.window + 1
    }

    fn features(&self) -> usize {
        self.scaler.features.len()
    }

    /// The loss of a forecast that takes no learning, and its name: the mean return of the split itself, which no constant betters, or the
    /// last close where closes are forecast.
    pub(crate) fn simple(&self, split: Split) -> (Name, f64) {
        let (features, close, range) = (self.features(), close_index(self.scaler.features), self.range(split));
        let value = |row: usize| f64::from(self.rows[row * features + close]);
        let rows = || range.clone().map(|i| i + self.window);
        let n = range.len().max(1) as f64;
        let mean = rows().map(value).sum::<f64>() / n;
        let (name, forecast): (_, &dyn Fn(usize) -> f64) = match self.scaler.target {
            Target::Return => ("best constant", &|_| mean),
            Target::Close => ("last close", &|row| value(row - 1)),
        };
        (name.into(), rows().map(|row| (forecast(row) - value(row)).powi(2)).sum::<f64>() / n)
    }

    /// Scaled features (b, t, f) and scaled targets (b, 1).
    pub(crate) fn windows(&self, split: Split, indices: &[usize]) -> Result<(Tensor, Tensor)> {
        let (features, first) = (self.features(), self.range(split).start);
        let (mut x, mut y) = (vec![], vec![]);
        for i in indices {
            // Row d holds day d + 1: the window's days are i + 1 to i + window, the target is the day after.
            let (from, to) = (first + i, first + i + self.window);
            x.extend_from_slice(&self.rows[from * features..to * features]);
            y.push(self.rows[to * features + close_index(self.scaler.features)]);
        }
        let n = indices.len();
        Ok((Tensor::from_vec(x, (n, self.window, features), &self.device)?, Tensor::from_vec(y, (n, 1), &self.device)?))
    }

    /// What the user should know about these prices.
    pub(crate) fn doubts(&self) -> Vec<String> {
        let first = Some(self.target_day(self.splits[1])).filter(|day| *day < self.days.dates.len());
        let mut warnings = self.days.caveats(first, self.seen.as_deref());
        if let Some((least, most)) = self.scaler.range() {
            let outside = |i: &usize| !(least..=most).contains(&self.days.bars[self.target_day(*i)].close);
            let share =
                self.range(Split::Test).filter(outside).count() as f64 / self.samples(Split::Test).max(1) as f64;
            if share > 0. {
                warnings.push(format!(
                    "{:.0} % of the test days have a close outside the training range {least:.2} to {most:.2}: \
                     a model of scaled prices has never seen such inputs; data.target = \"return\" has no such range",
                    100. * share
                ));
            }
        }
        warnings
    }
}

impl Scaler {
    /// Fits to rows of raw features.
    pub(crate) fn fit(rows: &[Vec<f64>], target: Target, features: FeatureSet) -> Self {
        let column = |k: usize| rows.iter().map(move |r| r[k]);
        let n = rows.len().max(1) as f64;
        let (mut shift, mut scale) = (vec![], vec![]);
        for k in 0..features.len() {
            let (a, b) = match target {
                Target::Return => {
                    let mean = column(k).sum::<f64>() / n;
                    (mean, (column(k).map(|v| (v - mean).powi(2)).sum::<f64>() / n).sqrt())
                }
                Target::Close => {
                    let (least, most) =
                        (column(k).fold(f64::INFINITY, f64::min), column(k).fold(f64::NEG_INFINITY, f64::max));
                    (least, most - least)
                }
            };
            shift.push(a);
            // A constant feature is scaled to zeros.
            scale.push(if b > 0. { b } else { 1. });
        }
        Self { target, features, shift, scale }
    }
}
