//! How good forecasts are, beside forecasts that cost nothing.

use candle_core::Result;
use zoo_layers::Mode;
use zoo_training::{Evaluation, Metrics, Name, Picture, Recipe, Split, Table, Task, over_batches};

use crate::StockLstm;
use crate::classical::Classical;
use crate::data::StockTask;
use crate::intervals::{Conformal, pinball, volatilities};

/// Forecasts without parameters: the close before, the close before moved by the training part's mean return, and the
/// mean of the last [`AVERAGE`] closes.
const SIMPLE: [&str; 3] = ["last_value", "drift", "moving_average"];
const AVERAGE: usize = 20;
/// Quantiles that the continuous ranked probability score is summed over.
const LEVELS: usize = 99;
/// Quantiles whose pinball loss is told.
const TAILS: [f64; 2] = [0.05, 0.95];

impl StockTask {
    /// Forecasts of a split in price units.
    pub(crate) fn forecasts(&self, model: &StockLstm, split: Split) -> Result<Vec<f64>> {
        const BATCH: usize = 256;
        let range = self.range(split);
        let prices = over_batches(range.len().div_ceil(BATCH), |batch| {
            let indices: Vec<usize> = (batch * BATCH..range.len().min((batch + 1) * BATCH)).collect();
            let y = self.forward(model, &self.batch(split, &indices)?, Mode::Eval)?.flatten_all()?.to_vec1::<f32>()?;
            let last = |i: usize| self.days.bars[self.target_day(range.start + i) - 1].close;
            Ok(y.into_iter().zip(indices).map(|(y, i)| self.scaler.price(f64::from(y), last(i))).collect())
        })?;
        Ok(prices.concat())
    }

    /// Errors of forecasts in price units; directional accuracy over the days whose close changed, where a forecast of
    /// no change counts half.
    pub(crate) fn judge(&self, split: Split, forecasts: &[f64]) -> Metrics {
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
        Metrics::from([
            ("rmse", (squares / n).sqrt()),
            ("mae", absolute / n),
            ("mape", 100. * relative / n),
            ("mase", absolute / n / self.step()),
            ("directional_accuracy", 100. * right / f64::max(moves, 1.)),
        ])
    }

    /// The mean absolute change of the close from day to day in the training part, which errors are divided by to be comparable between series
    /// (Hyndman and Koehler 2006).
    fn step(&self) -> f64 {
        let days = 1..self.target_day(self.range(Split::Train).end - 1) + 1;
        let n = days.len().max(1) as f64;
        let sum: f64 = days.map(|d| (self.days.bars[d].close - self.days.bars[d - 1].close).abs()).sum();
        (sum / n).max(f64::MIN_POSITIVE)
    }

    /// Errors of the validation days in units of the volatility of the day, and that volatility for every day; nothing if they are too
    /// few for `share`, or a forecast is no price.
    fn errors(&self, forecasts: &[f64], validation: &[f64], share: f64) -> Option<(Conformal, Vec<f64>)> {
        if forecasts.iter().chain(validation).any(|f| !(f.is_finite() && *f > 0.)) {
            return None;
        }
        let closes: Vec<f64> = self.days.bars.iter().map(|b| b.close).collect();
        let volatility = volatilities(&closes, self.target_day(self.range(Split::Valid).start));
        let days = self.range(Split::Valid).map(|i| self.target_day(i));
        let scores = days.zip(validation).map(|(d, forecast)| (closes[d] / forecast).ln() / volatility[d]);
        Some((Conformal::new(scores.collect(), share)?, volatility))
    }

    /// Intervals of the days of a split, each made before its day; and how many of the last days they held.
    fn intervals(&self, split: Split, forecasts: &[f64], validation: &[f64]) -> Option<(Picture, Table)> {
        const SHARE: f64 = 0.9;
        const DAYS: usize = 250;
        let (mut conformal, volatility) = self.errors(forecasts, validation, SHARE)?;
        let (mut held, mut rows, mut labels) = (vec![], vec![], vec![]);
        for (i, forecast) in self.range(split).zip(forecasts) {
            let day = self.target_day(i);
            let (close, bounds) = (self.days.bars[day].close, conformal.bounds());
            let price = |score: f64| forecast * (score * volatility[day]).exp();
            let inside = conformal.learn((close / forecast).ln() / volatility[day], bounds);
            held.push(f64::from(u8::from(inside)));
            labels.push(self.days.dates[day].to_string());
            let prices = [*forecast, price(bounds.0), price(bounds.1), close].map(|v| format!("{v:.4}"));
            let mut row = vec![self.days.dates[day].to_string()];
            row.extend(prices);
            row.push(u8::from(inside).to_string());
            rows.push(row);
        }
        let window = DAYS.min(held.len().max(1));
        let share = |days: &[f64]| 100. * days.iter().sum::<f64>() / window as f64;
        let course = held.windows(window).enumerate().map(|(i, days)| ((i + window - 1) as f64, share(days)));
        let asked = [0., (labels.len().max(1) - 1) as f64].map(|at| (at, 100. * SHARE));
        let picture = Picture {
            title: format!("closes within the interval, % of the last {window} days"),
            labels,
            lines: vec![("held".into(), course.collect()), ("asked for".into(), asked.to_vec())],
            ..Picture::default()
        };
        let header = ["date", "forecast", "low", "high", "close", "held"].map(String::from).to_vec();
        Some((picture, Table { name: "intervals".into(), header, rows }))
    }

    /// The continuous ranked probability score, as twice the mean pinball loss over 99 quantiles, and the mean pinball loss of the 5 % and
    /// the 95 % quantile, in price units. Quantiles are those of the forecasts' errors on the validation days, in units of the
    /// volatility of the day; nothing if those are too few, or a forecast is no price.
    fn scores(&self, split: Split, forecasts: &[f64], validation: &[f64]) -> Option<[f64; 2]> {
        let (errors, volatility) = self.errors(forecasts, validation, 0.5)?;
        let mut sums = [0.; 2];
        for (i, forecast) in self.range(split).zip(forecasts) {
            let day = self.target_day(i);
            let close = self.days.bars[day].close;
            let loss = |tau: f64| pinball(tau, forecast * (errors.quantile(tau) * volatility[day]).exp(), close);
            sums[0] += 2. * (1..=LEVELS).map(|k| loss(k as f64 / (LEVELS + 1) as f64)).sum::<f64>() / LEVELS as f64;
            sums[1] += TAILS.into_iter().map(loss).sum::<f64>() / TAILS.len() as f64;
        }
        Some(sums.map(|s| s / forecasts.len().max(1) as f64))
    }

    /// All metrics of forecasts, with those of their distribution.
    fn judge_all(&self, split: Split, forecasts: &[f64], validation: &[f64]) -> Metrics {
        let mut metrics = self.judge(split, forecasts);
        if let Some([crps, tails]) = self.scores(split, forecasts, validation) {
            metrics.push("crps", crps);
            metrics.push("pinball_5_95", tails);
        }
        metrics
    }

    /// What a baseline forecasts for each day of a split.
    pub(crate) fn baseline(&self, split: Split, name: &str) -> Vec<f64> {
        let logs = || self.days.bars.iter().map(|b| b.close.ln()).collect::<Vec<f64>>();
        let trained = |logs: &[f64]| Classical::fit(name, &logs[..=self.target_day(self.range(Split::Train).end - 1)]);
        if Classical::NAMES.contains(&name) {
            let (logs, range) = (logs(), self.range(split));
            if let (Some(classical), false) = (trained(&logs), range.is_empty()) {
                let first = self.target_day(range.start);
                return classical.forecasts(&logs, first).into_iter().take(range.len()).map(f64::exp).collect();
            }
        }
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
    pub(crate) fn advantage(&self, split: Split, forecasts: &[f64], baseline: &str) -> f64 {
        let baseline = self.baseline(split, baseline);
        let actual = self.range(split).map(|i| self.days.bars[self.target_day(i)].close);
        let gain = |(a, (f, b)): (f64, (&f64, &f64))| (b - a).powi(2) - (f - a).powi(2);
        let gains: Vec<f64> = actual.zip(forecasts.iter().zip(&baseline)).map(gain).collect();
        standard_errors(&gains).unwrap_or(0.)
    }

    /// The accuracy, in percent, of always saying the side of the training part's trend, over the days on which the close changed, and by
    /// how many standard errors the forecasts are right more often.
    fn beside_the_trend(&self, split: Split, forecasts: &[f64]) -> (f64, Option<f64>) {
        let close = |day: usize| self.days.bars[day].close;
        let right = |up: f64, change: f64| if up == 0. { 0.5 } else { f64::from(u8::from((up > 0.) == (change > 0.))) };
        let (mut trend, mut gains) = (0., vec![]);
        for (i, forecast) in self.range(split).zip(forecasts) {
            let last = close(self.target_day(i) - 1);
            let change = close(self.target_day(i)) - last;
            if change != 0. {
                let always = right(if self.drift >= 0. { 1. } else { -1. }, change);
                trend += always;
                gains.push(right(forecast - last, change) - always);
            }
        }
        (100. * trend / gains.len().max(1) as f64, standard_errors(&gains))
    }

    /// The verdict on forecasts beside the best of the baselines.
    fn beside(&self, split: Split, forecasts: &[f64], rmse: f64, baselines: &[(Name, Metrics)]) -> Option<String> {
        let of = |m: &Metrics| m.value("rmse");
        let (key, best) = baselines.iter().min_by(|a, b| of(&a.1).total_cmp(&of(&b.1)))?;
        let (name, best) = (key.replace('_', " "), of(best));
        let errors = self.advantage(split, forecasts, key);
        let beside = format!(
            "RMSE {rmse:.4} against {best:.4}, {errors:+.1} standard errors of the difference in squared error"
        );
        Some(match errors {
            e if e > 2. => {
                format!("The model beats {name}, the best baseline ({beside}); check that it does on other periods.")
            }
            e if e >= -2. => {
                format!(
                    "The model does not clearly differ from {name} ({beside}): a difference below two standard errors cannot be told from chance."
                )
            }
            _ => format!("The model is worse than {name} ({beside}): its forecasts are of no use on these days."),
        })
    }

    /// Metrics of a split beside those of the baselines.
    pub(crate) fn compare(&self, model: &StockLstm, split: Split) -> Result<Evaluation> {
        let forecasts = self.forecasts(model, split)?;
        let validation = self.forecasts(model, Split::Valid)?;
        let metrics = self.judge_all(split, &forecasts, &validation);
        let (pictures, tables) = self.intervals(split, &forecasts, &validation).into_iter().unzip();
        let baseline = |name: &&'static str| {
            let of = |split: Split| self.baseline(split, name);
            ((*name).into(), self.judge_all(split, &of(split), &of(Split::Valid)))
        };
        let baselines: Vec<(Name, Metrics)> = SIMPLE.iter().chain(&Classical::NAMES).map(baseline).collect();
        let mut remarks = vec![];
        if self.simulated {
            remarks.push("These are simulated prices: the figures say nothing about any market.".to_string());
        }
        remarks.extend(self.beside(split, &forecasts, metrics.value("rmse"), &baselines));
        let accuracy = metrics.value("directional_accuracy");
        let (majority, errors) = self.beside_the_trend(split, &forecasts);
        let verb = match errors {
            Some(e) if e > 2. => "beats",
            Some(e) if e < -2. => "is worse than",
            _ => "does not clearly beat",
        };
        let side = if self.drift >= 0. { "up" } else { "down" };
        let told = errors.map_or("too few different days to tell by".into(), |e| format!("{e:+.1} standard errors"));
        remarks.push(format!(
            "Its directional accuracy of {accuracy:.1} % {verb} always saying {side}, the training part's trend ({majority:.1} %; {told})."
        ));
        Ok(Evaluation { samples: self.samples(split), metrics, baselines, remarks, tables, pictures })
    }
}

/// By how many standard errors the mean of independent gains is above zero; nothing if they never change.
fn standard_errors(gains: &[f64]) -> Option<f64> {
    let n = gains.len() as f64;
    let mean = gains.iter().sum::<f64>() / n.max(1.);
    let variance = gains.iter().map(|g| (g - mean).powi(2)).sum::<f64>() / (n - 1.).max(1.);
    (variance > 0.).then(|| mean / (variance / n).sqrt())
}
