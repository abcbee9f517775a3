//! What the trainer needs: samples, loss, metrics and baselines.

use std::path::Path;

use candle_core::{Device, Result, Tensor};
use candle_nn::VarBuilder;
use serde_json::Value;
use zoo_layers::{Mode, ops};
use zoo_market::{Days, read_csv, simulate};
use zoo_training::health::{Probe, ProbeKind};
use zoo_training::{Error, Evaluation, Loss, Metrics, Prediction, Preset, Request, Split, Task, TrainConfig};

use crate::features::{Scaler, close_index, raw};
use crate::{Config, FeatureSet, Forecaster, Source, StockLstm, Target};

/// Forecasts that cost nothing: the close before, the close before moved by the training part's mean return, and the
/// mean of the last [`AVERAGE`] closes.
const BASELINES: [&str; 3] = ["last_value", "drift", "moving_average"];
const AVERAGE: usize = 20;
/// Key of the first and last validation day beside the fitted scaler.
pub(crate) const VALIDATION: &str = "validation";

/// Windows of a price series, each with the day that follows it.
pub struct StockTask {
    days: Days,
    simulated: bool,
    scaler: Scaler,
    /// Scaled features of day d + 1 at d (the first day has no return).
    rows: Vec<f32>,
    window: usize,
    /// First sample of the validation and of the test split, and their number.
    splits: [usize; 3],
    /// Mean log return of the training part.
    drift: f64,
    /// The last day that the training of the weights saw, if they are loaded ones.
    seen: Option<String>,
    target: Target,
    device: Device,
}

impl StockTask {
    fn range(&self, split: Split) -> std::ops::Range<usize> {
        let [valid, test, end] = self.splits;
        match split {
            Split::Train => 0..valid,
            Split::Valid => valid..test,
            Split::Test => test..end,
        }
    }

    /// The day that sample `i` forecasts.
    fn target_day(&self, i: usize) -> usize {
        i + self.window + 1
    }

    fn features(&self) -> usize {
        self.scaler.features.len()
    }

    /// Forecasts of a split in price units.
    fn forecasts(&self, model: &StockLstm, split: Split) -> Result<Vec<f64>> {
        let mut prices = vec![];
        let range = self.range(split);
        for first in (0..range.len()).step_by(256) {
            let indices: Vec<usize> = (first..range.len().min(first + 256)).collect();
            let y = self.forward(model, &self.batch(split, &indices)?, Mode::Eval)?.flatten_all()?.to_vec1::<f32>()?;
            let last = |i: usize| self.days.bars[self.target_day(range.start + i) - 1].close;
            prices.extend(y.into_iter().zip(indices).map(|(y, i)| self.scaler.price(f64::from(y), last(i))));
        }
        Ok(prices)
    }

    /// Errors of forecasts in price units; directional accuracy over the days whose close changed, where a forecast of
    /// no change counts half.
    fn judge(&self, split: Split, forecasts: &[f64]) -> Metrics {
        let close = |day: usize| self.days.bars[day].close;
        let (mut squares, mut absolute, mut relative, mut right, mut moves) = (0., 0., 0., 0., 0.);
        for (i, forecast) in self.range(split).zip(forecasts) {
            let (last, actual) = (close(self.target_day(i) - 1), close(self.target_day(i)));
            let e = forecast - actual;
            (squares, absolute, relative) = (squares + e * e, absolute + e.abs(), relative + e.abs() / actual);
            if actual != last {
                moves += 1.;
                right += match (forecast - last) * (actual - last) {
                    p if p > 0. => 1.,
                    p if p < 0. => 0.,
                    _ => 0.5,
                };
            }
        }
        let n = forecasts.len() as f64;
        vec![
            ("rmse", (squares / n).sqrt()),
            ("mae", absolute / n),
            ("mape", 100. * relative / n),
            ("directional_accuracy", 100. * right / f64::max(moves, 1.)),
        ]
    }

    /// What a baseline forecasts for each day of a split.
    fn baseline(&self, split: Split, name: &str) -> Vec<f64> {
        let close = |day: usize| self.days.bars[day].close;
        let forecast = |day: usize| match name {
            "drift" => close(day - 1) * self.drift.exp(),
            "moving_average" => {
                let first = day.saturating_sub(AVERAGE);
                (first..day).map(close).sum::<f64>() / (day - first) as f64
            }
            _ => close(day - 1),
        };
        self.range(split).map(|i| forecast(self.target_day(i))).collect()
    }

    /// By how many standard errors the mean squared error of `forecasts` is below the baseline's on the same days
    /// (Diebold and Mariano 1995, one step ahead).
    fn advantage(&self, split: Split, forecasts: &[f64], baseline: &str) -> f64 {
        let baseline = self.baseline(split, baseline);
        let actual = self.range(split).map(|i| self.days.bars[self.target_day(i)].close);
        let gain = |(a, (f, b)): (f64, (&f64, &f64))| (b - a).powi(2) - (f - a).powi(2);
        let gains: Vec<f64> = actual.zip(forecasts.iter().zip(&baseline)).map(gain).collect();
        let n = gains.len() as f64;
        let mean = gains.iter().sum::<f64>() / n;
        let variance = gains.iter().map(|g| (g - mean).powi(2)).sum::<f64>() / (n - 1.).max(1.);
        if variance > 0. { mean / (variance / n).sqrt() } else { 0. }
    }

    /// Share of a split's days on which the close rose, of those on which it changed.
    fn share_up(&self, split: Split) -> f64 {
        let change = |i: usize| self.days.bars[self.target_day(i)].close - self.days.bars[self.target_day(i) - 1].close;
        let (up, down) = self.range(split).fold((0., 0.), |(up, down), i| match change(i) {
            c if c > 0. => (up + 1., down),
            c if c < 0. => (up, down + 1.),
            _ => (up, down),
        });
        up / f64::max(up + down, 1.)
    }
}

impl Scaler {
    /// Fits to rows of raw features.
    fn fit(rows: &[Vec<f64>], target: Target, features: FeatureSet) -> Self {
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

fn metric(metrics: &Metrics, name: &str) -> f64 {
    metrics.iter().find(|(n, _)| *n == name).map_or(f64::NAN, |(_, v)| *v)
}

impl Task for StockTask {
    const NAME: &'static str = "stock-lstm";
    const SUMMARY: &'static str = "LSTM that forecasts the next day's closing price from 60 days";
    const PRESETS: &'static [Preset] = &[
        Preset { name: "default", summary: "close only, 2 layers of 50", toml: "" },
        Preset {
            name: "ohlcv",
            summary: "open, high, low, close and volume",
            toml: "[model]\ninput = 5\n[data]\nfeatures = \"ohlcv\"\n",
        },
    ];
    const DATA: &'static str = "a daily price file (CSV with Date and Close); simulated prices without one";
    type Architecture = Config;
    type Source = Source;
    type Model = StockLstm;
    /// Scaled features (b, t, f) and scaled targets (b, 1).
    type Batch = (Tensor, Tensor);

    fn training() -> TrainConfig {
        TrainConfig { epochs: 100, batch_size: 32, lr: 1e-3, ..TrainConfig::default() }
    }

    fn build(config: &Config, vb: VarBuilder) -> Result<StockLstm> {
        StockLstm::new(config, vb)
    }

    fn explain(config: &Config) -> String {
        let &Config { input, hidden, layers, .. } = config;
        let layer = |from: usize| 4 * (from * hidden + hidden * hidden + 2 * hidden);
        let mut parts = vec![];
        for l in 0..layers {
            let from = if l == 0 { input } else { hidden };
            parts.push(format!(
                "LSTM layer {}: 4 gates x ({from} x {hidden} input + {hidden} x {hidden} recurrent + {hidden} + {hidden}, two biases) = {}",
                l + 1,
                layer(from)
            ));
        }
        parts.push(format!("linear: {hidden} x 1 + 1 = {}", hidden + 1));
        parts.join("\n")
    }

    fn flops(config: &Config) -> f64 {
        let &Config { input, hidden, layers, window, .. } = config;
        let per_day: usize = (0..layers).map(|l| 4 * hidden * (if l == 0 { input } else { hidden } + hidden)).sum();
        2. * (window * per_day + hidden) as f64
    }

    fn open(
        config: &Config,
        source: &Source,
        seed: u64,
        fitted: Option<&Value>,
        device: &Device,
    ) -> zoo_training::Result<Self> {
        let &Source {
            ref path,
            ref column,
            ref date_column,
            ref skip_bad_rows,
            target,
            features,
            valid,
            test,
            simulated_days,
        } = source;
        let path = Some(Path::new(path)).filter(|p| !p.as_os_str().is_empty());
        if [config.hidden, config.layers, config.window].contains(&0) {
            return Err(Error::Usage("model.hidden, model.layers and model.window must be at least 1".into()));
        }
        if !(0. ..1.).contains(&config.dropout) {
            return Err(Error::Usage(format!("model.dropout is {}, expected a share below 1", config.dropout)));
        }
        if config.input != features.len() {
            let expected = features.len();
            return Err(Error::Usage(format!(
                "model.input is {}, but data.features gives {expected} (try --preset ohlcv)",
                config.input
            )));
        }
        if !(0. ..1.).contains(&valid) || !(0. ..1.).contains(&test) || valid + test >= 1. {
            return Err(Error::Usage("data.valid and data.test must be shares that leave a training part".into()));
        }
        if path.is_none() && (*skip_bad_rows || !column.is_empty() || !date_column.is_empty()) {
            return Err(Error::Usage(
                "data.column, date_column and skip_bad_rows are about a file: give one by --data".into(),
            ));
        }
        let days = match path {
            Some(path) => read_csv(path, &source.reading())?,
            None => simulate(simulated_days, seed),
        };
        let origin = path.map_or("the simulation".to_string(), |p| p.display().to_string());
        let samples = days.bars.len().saturating_sub(config.window.saturating_add(1));
        let train = (samples as f64 * (1. - valid - test)).round() as usize;
        let end_of_valid = (samples as f64 * (1. - test)).round() as usize;
        let empty = |share: f64, n: usize| share > 0. && n == 0;
        if train == 0 || empty(valid, end_of_valid.saturating_sub(train)) || empty(test, samples - end_of_valid) {
            // Half a sample or more of the smallest part rounds to one.
            let least = [valid, test].into_iter().filter(|s| *s > 0.).fold(1. - valid - test, f64::min);
            let needed = config.window.saturating_add(1).saturating_add((1. / least).ceil() as usize);
            return Err(Error::Data(format!(
                "{origin}: {} days, a window of {} needs at least {needed} (set model.window lower, or bring more data)",
                days.bars.len(),
                config.window
            )));
        }
        let lacks = days.missing.iter().find(|c| **c != "Adj Close");
        if let (FeatureSet::Ohlcv, Some(column)) = (features, lacks) {
            return Err(Error::Data(format!("{origin}: no column {column}, which data.features = \"ohlcv\" needs")));
        }
        let raws: Vec<Vec<f64>> = days.bars.windows(2).map(|w| raw(&w[1], &w[0], target, features)).collect();
        // The last training target is row train + window - 1.
        let part = &raws[..train + config.window];
        let scaler = match fitted {
            Some(value) => serde_json::from_value(value.clone())
                .map_err(|e| Error::Run(format!("the checkpoint's scaler: {e}")))?,
            None => Scaler::fit(part, target, features),
        };
        let rows = raws.iter().flat_map(|r| scaler.apply(r).collect::<Vec<_>>()).collect();
        let closes = &days.bars[..=part.len()];
        let drift = (closes[part.len()].close / closes[0].close).ln() / part.len() as f64;
        let splits = [train, end_of_valid, samples];
        Ok(Self {
            simulated: path.is_none(),
            days,
            scaler,
            rows,
            window: config.window,
            splits,
            drift,
            seen: fitted.and_then(|f| f[VALIDATION][1].as_str()).map(String::from),
            target,
            device: device.clone(),
        })
    }

    fn describe_data(&self) -> String {
        let origin = if self.simulated { "simulated prices" } else { "prices" };
        let (dates, n) = (&self.days.dates, self.days.dates.len());
        let [train, valid, test] = [Split::Train, Split::Valid, Split::Test].map(|s| self.samples(s));
        format!(
            "{origin}, {n} days {} to {}; samples: {train} train, {valid} valid, {test} test",
            dates[0],
            dates[n - 1]
        )
    }

    fn fingerprint(&self) -> String {
        let numbers = self.days.bars.iter().flat_map(|b| [b.open, b.high, b.low, b.close, b.volume]);
        let splits = self.splits.iter().map(|n| *n as u64);
        let bytes: Vec<u8> = numbers.map(f64::to_bits).chain(splits).flat_map(u64::to_le_bytes).collect();
        zoo_checkpoint::sha256_of(&bytes)
    }

    fn fitted(&self) -> Value {
        let mut fitted = serde_json::to_value(&self.scaler).unwrap_or_default();
        let range = self.range(Split::Valid);
        // Simulated days share no more than dates with real ones.
        if !range.is_empty() && !self.simulated {
            // The days that chose the weights: what intervals are made of later.
            let day = |i: usize| Value::from(self.days.dates[self.target_day(i)].to_string());
            fitted[VALIDATION] = [day(range.start), day(range.end - 1)].into_iter().collect();
        }
        fitted
    }

    fn warnings(&self) -> Vec<String> {
        let first = Some(self.target_day(self.splits[1])).filter(|day| *day < self.days.dates.len());
        let mut warnings = self.days.caveats(first, self.seen.as_deref());
        if self.target == Target::Close {
            let k = close_index(self.scaler.features);
            let (least, most) = (self.scaler.shift[k], self.scaler.shift[k] + self.scaler.scale[k]);
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

    fn samples(&self, split: Split) -> usize {
        self.range(split).len()
    }

    fn batch(&self, split: Split, indices: &[usize]) -> Result<(Tensor, Tensor)> {
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

    fn forward(&self, model: &StockLstm, (x, _): &(Tensor, Tensor), mode: Mode) -> Result<Tensor> {
        model.forward(x, mode)
    }

    /// Mean squared error of the scaled target over the batch.
    fn loss(&self, model: &StockLstm, batch: &(Tensor, Tensor), mode: Mode) -> Result<Loss> {
        Ok(Loss { total: ops::mse(&self.forward(model, batch, mode)?, &batch.1)?, parts: vec![] })
    }

    fn probes(&self, model: &StockLstm, (x, _): &(Tensor, Tensor)) -> Result<Vec<Probe>> {
        let (state, forecast) = model.activations(x)?;
        Ok(vec![
            Probe::new("window", ProbeKind::Input, x),
            Probe::new("lstm", ProbeKind::Activation, &state),
            Probe::new("forecast", ProbeKind::Output, &forecast),
        ])
    }

    fn validate(&self, model: &StockLstm, split: Split) -> Result<Metrics> {
        let n = self.samples(split);
        let mut loss = 0.;
        for first in (0..n).step_by(256) {
            let indices: Vec<usize> = (first..n.min(first + 256)).collect();
            let batch = self.batch(split, &indices)?;
            loss += f64::from(self.loss(model, &batch, Mode::Eval)?.total.to_scalar::<f32>()?) * indices.len() as f64;
        }
        let mut metrics = vec![("loss", loss / n.max(1) as f64)];
        metrics.extend(self.judge(split, &self.forecasts(model, split)?));
        Ok(metrics)
    }

    fn evaluate(&self, model: &StockLstm, split: Split) -> Result<Evaluation> {
        let forecasts = self.forecasts(model, split)?;
        let metrics = self.judge(split, &forecasts);
        let baselines: Vec<_> =
            BASELINES.iter().map(|name| (*name, self.judge(split, &self.baseline(split, name)))).collect();
        let mut remarks = vec![];
        if self.simulated {
            remarks.push("These are simulated prices: the figures say nothing about any market.".to_string());
        }
        let rmse = |m: &Metrics| metric(m, "rmse");
        if let Some((key, best)) = baselines.iter().min_by(|a, b| rmse(&a.1).total_cmp(&rmse(&b.1))) {
            let (model, name, best) = (rmse(&metrics), key.replace('_', " "), rmse(best));
            let errors = self.advantage(split, &forecasts, key);
            let beside = format!(
                "RMSE {model:.4} against {best:.4}, {errors:+.1} standard errors of the difference in squared error"
            );
            remarks.push(match errors {
                e if e > 2. => format!(
                    "The model beats {name}, the best baseline ({beside}); check that it does on other periods."
                ),
                e if e >= -2. => {
                    format!("The model is no better than {name} ({beside}): a difference this small is chance.")
                }
                _ => format!("The model is worse than {name} ({beside}): its forecasts are of no use on these days."),
            });
        }
        let up = self.share_up(split);
        let majority = 100. * if self.drift >= 0. { up } else { 1. - up };
        let accuracy = metric(&metrics, "directional_accuracy");
        let verb = if accuracy > majority { "beats" } else { "does not beat" };
        let side = if self.drift >= 0. { "up" } else { "down" };
        remarks.push(format!(
            "Its directional accuracy of {accuracy:.1} % {verb} always saying {side}, the training part's trend ({majority:.1} %)."
        ));
        Ok(Evaluation { samples: self.samples(split), metrics, baselines, remarks, ..Evaluation::default() })
    }

    fn predict(
        model: StockLstm,
        config: &Config,
        source: &Source,
        fitted: &Value,
        request: &Request,
        device: &Device,
    ) -> zoo_training::Result<Prediction> {
        let scaler: Scaler =
            serde_json::from_value(fitted.clone()).map_err(|e| Error::Run(format!("the checkpoint's scaler: {e}")))?;
        let forecaster = Forecaster::new(model, config.clone(), scaler, device)?;
        crate::predict::predict(&forecaster, source, &fitted[VALIDATION], request)
    }
}

#[cfg(test)]
mod tests {
    use zoo_layers::Params;

    use super::*;

    fn open(config: &Config, source: &Source) -> zoo_training::Result<StockTask> {
        StockTask::open(config, source, 3, None, &Device::Cpu)
    }

    #[test]
    fn the_reference_has_31051_parameters_in_10_tensors_of_pytorchs_names() -> Result<()> {
        let params = Params::init(1, &Device::Cpu);
        StockLstm::new(&Config::default(), params.builder())?;
        let all = params.all();
        assert_eq!((all.len(), all.iter().map(|p| p.var.elem_count()).sum::<usize>()), (10, 31_051));
        let names: Vec<_> = all.iter().map(|p| p.name.as_str()).collect();
        assert_eq!(names[..4], ["lstm.weight_ih_l0", "lstm.weight_hh_l0", "lstm.bias_ih_l0", "lstm.bias_hh_l0"]);
        assert_eq!(names[8..], ["linear.weight", "linear.bias"]);
        let explained = StockTask::explain(&Config::default());
        assert!(["10600", "20400", "51"].iter().all(|n| explained.contains(n)), "{explained}");
        Ok(())
    }

    #[test]
    fn splits_are_in_time_order_and_the_scaler_sees_the_training_part_alone() -> zoo_training::Result<()> {
        for (target, features) in [
            (Target::Return, FeatureSet::Close),
            (Target::Close, FeatureSet::Close),
            (Target::Return, FeatureSet::Ohlcv),
        ] {
            let source = Source { target, features, simulated_days: 300, ..Source::default() };
            let config = Config { input: features.len(), ..Config::tiny() };
            let task = open(&config, &source)?;
            let [valid, test, end] = task.splits;
            assert_eq!(task.target_day(end - 1), 299);
            assert!(0 < valid && valid < test && test < end);
            let last_train_day = task.target_day(valid - 1);
            let raws: Vec<_> =
                task.days.bars[..=last_train_day].windows(2).map(|w| raw(&w[1], &w[0], target, features)).collect();
            assert_eq!(task.scaler, Scaler::fit(&raws, target, features));
            // A sample's window ends the day before its target, whose scaled value means its price.
            let (x, y) = task.batch(Split::Valid, &[0])?;
            assert_eq!(x.dims(), [1, 5, features.len()]);
            let day = task.target_day(valid);
            let price =
                task.scaler.price(f64::from(y.flatten_all()?.to_vec1::<f32>()?[0]), task.days.bars[day - 1].close);
            assert!((price / task.days.bars[day].close - 1.).abs() < 1e-6, "{price}");
            let window = task.scaler.window(&task.days.bars[day - 6..day])?;
            assert_eq!(x.flatten_all()?.to_vec1::<f32>()?, window);
        }
        Ok(())
    }

    #[test]
    fn metrics_of_known_forecasts_are_known() -> zoo_training::Result<()> {
        let task = open(&Config::tiny(), &Source { simulated_days: 200, ..Source::default() })?;
        let days =
            |f: &dyn Fn(usize) -> f64| -> Vec<f64> { task.range(Split::Test).map(|i| f(task.target_day(i))).collect() };
        let close = |d: usize| task.days.bars[d].close;
        let perfect = task.judge(Split::Test, &days(&close));
        assert_eq!(perfect, [("rmse", 0.), ("mae", 0.), ("mape", 0.), ("directional_accuracy", 100.)]);
        let off = task.judge(Split::Test, &days(&|d| 1.01 * close(d)));
        assert!((metric(&off, "mape") - 1.).abs() < 1e-9);
        let unchanged = task.judge(Split::Test, &days(&|d| close(d - 1)));
        assert_eq!(metric(&unchanged, "directional_accuracy"), 50.);
        assert_eq!(task.judge(Split::Test, &task.baseline(Split::Test, "last_value")), unchanged);
        assert_eq!(task.advantage(Split::Test, &days(&|d| close(d - 1)), "last_value"), 0.);
        assert!(task.advantage(Split::Test, &days(&close), "last_value") > 2.);
        assert!(task.advantage(Split::Test, &days(&|d| 2. * close(d)), "last_value") < -2.);
        Ok(())
    }

    #[test]
    fn what_cannot_work_is_refused_with_the_way_out() -> zoo_training::Result<()> {
        let message = |config: &Config, source: &Source| open(config, source).map(|_| ()).unwrap_err().to_string();
        assert!(
            message(&Config::default(), &Source { simulated_days: 60, ..Source::default() })
                .contains("needs at least 68")
        );
        let task = open(&Config::default(), &Source { simulated_days: 68, ..Source::default() })?;
        assert!([Split::Train, Split::Valid, Split::Test].iter().all(|s| task.samples(*s) > 0));
        assert!(
            message(&Config::default(), &Source { features: FeatureSet::Ohlcv, ..Source::default() })
                .contains("--preset ohlcv")
        );
        assert!(
            message(&Config::default(), &Source { valid: 0.6, test: 0.4, ..Source::default() })
                .contains("training part")
        );
        let close =
            open(&Config::tiny(), &Source { target: Target::Close, simulated_days: 2000, ..Source::default() })?;
        assert!(close.warnings()[0].contains("outside the training range"), "{:?}", close.warnings());
        Ok(())
    }
}
