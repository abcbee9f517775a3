//! How good forecasts are, beside forecasts that cost nothing.

use candle_core::Result;
use zoo_layers::Mode;
use zoo_training::{Evaluation, Metrics, Name, Recipe, Split, Task};

use crate::StockLstm;
use crate::data::StockTask;

/// Forecasts that cost nothing: the close before, the close before moved by the training part's mean return, and the
/// mean of the last [`AVERAGE`] closes.
const BASELINES: [&str; 3] = ["last_value", "drift", "moving_average"];
const AVERAGE: usize = 20;

impl StockTask {
    /// Forecasts of a split in price units.
    pub(crate) fn forecasts(&self, model: &StockLstm, split: Split) -> Result<Vec<f64>> {
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
            ("directional_accuracy", 100. * right / f64::max(moves, 1.)),
        ])
    }

    /// What a baseline forecasts for each day of a split.
    pub(crate) fn baseline(&self, split: Split, name: &str) -> Vec<f64> {
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
                format!("The model is no better than {name} ({beside}): a difference this small is chance.")
            }
            _ => format!("The model is worse than {name} ({beside}): its forecasts are of no use on these days."),
        })
    }

    /// Metrics of a split beside those of the baselines.
    pub(crate) fn compare(&self, model: &StockLstm, split: Split) -> Result<Evaluation> {
        let forecasts = self.forecasts(model, split)?;
        let metrics = self.judge(split, &forecasts);
        let baselines: Vec<(Name, Metrics)> =
            BASELINES.iter().map(|name| ((*name).into(), self.judge(split, &self.baseline(split, name)))).collect();
        let mut remarks = vec![];
        if self.simulated {
            remarks.push("These are simulated prices: the figures say nothing about any market.".to_string());
        }
        remarks.extend(self.beside(split, &forecasts, metrics.value("rmse"), &baselines));
        let up = self.share_up(split);
        let majority = 100. * if self.drift >= 0. { up } else { 1. - up };
        let accuracy = metrics.value("directional_accuracy");
        let verb = if accuracy > majority { "beats" } else { "does not beat" };
        let side = if self.drift >= 0. { "up" } else { "down" };
        remarks.push(format!(
            "Its directional accuracy of {accuracy:.1} % {verb} always saying {side}, the training part's trend ({majority:.1} %)."
        ));
        Ok(Evaluation { samples: self.samples(split), metrics, baselines, remarks, ..Evaluation::default() })
    }
}
