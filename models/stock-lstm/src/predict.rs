//! Forecasts with intervals for a price file.

use std::ops::Range;

use jiff::civil::Date;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use zoo_market::Days;
use zoo_training::{Error, Flag, Picture, Prediction, Request, Result};

use crate::intervals::{Conformal, FEWEST, volatilities};
use crate::{DataSettings, FeatureSet, Forecaster};

/// Days of the past that the picture shows.
const SHOWN: usize = 120;

/// What a forecast is asked for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ForecastOptions {
    /// Days to forecast beyond the end of the input.
    pub horizon: usize,
    /// Percentage of outcomes that the intervals should hold.
    pub interval: f64,
}

impl Default for ForecastOptions {
    fn default() -> Self {
        Self { horizon: 1, interval: 90. }
    }
}

/// The flags for them.
pub(crate) const FLAGS: &[Flag] = &[
    Flag::value("horizon", "N", "predict.horizon", "Days to forecast beyond the end of the input [default: 1]"),
    Flag::value(
        "interval",
        "PERCENT",
        "predict.interval",
        "Percentage of outcomes that intervals should hold [default: 90]",
    ),
];

impl ForecastOptions {
    fn problem(&self) -> Option<String> {
        let Self { horizon, interval } = self;
        match () {
            () if !(1. ..100.).contains(interval) => {
                Some(format!("predict.interval {interval}: expected a percentage, from 1 to less than 100"))
            }
            () if !(1..=10_000).contains(horizon) => Some(format!("predict.horizon {horizon}: expected 1 to 10000")),
            () => None,
        }
    }
}

/// Days with the forecasts of those that have enough days before them, and of `horizon` days after the last.
struct Forecasts<'a> {
    forecaster: &'a Forecaster,
    days: Days,
    closes: Vec<f64>,
    /// Days that a forecast is made from: the first forecast is that of this day.
    needed: usize,
    /// The forecast of every known day, one day ahead.
    known: Vec<f64>,
    /// The forecasts of the days to come.
    future: Vec<f64>,
    /// Their dates, and a sentence on how they follow.
    dates: Vec<Date>,
    steps: String,
}

impl<'a> Forecasts<'a> {
    fn new(forecaster: &'a Forecaster, source: &DataSettings, request: &Request<ForecastOptions>) -> Result<Self> {
        let (input, horizon) = (request.input, request.options.horizon);
        let simple = forecaster.features() == FeatureSet::Close;
        if !simple && horizon > 1 {
            return Err(Error::Usage(format!(
                "predict.horizon {horizon}: this model sees open, high, low and volume, which nobody forecasts for it; one day \
                 ahead is as far as it goes (models of the preset default go further)"
            )));
        }
        let days = DataSettings { features: forecaster.features(), ..source.clone() }.read(input)?;
        let (n, needed) = (days.bars.len(), forecaster.days());
        if n < needed {
            return Err(Error::Data(format!(
                "{}: {n} days, a forecast needs at least {needed} (bring more data)",
                input.display()
            )));
        }
        let closes: Vec<f64> = days.bars.iter().map(|b| b.close).collect();
        if let Some((least, most)) = forecaster.range() {
            let far = |c: &&f64| **c < least - (most - least) || **c > most + (most - least);
            let last = &closes[n - needed..];
            if 2 * last.iter().filter(far).count() > last.len() {
                let of = |f: fn(f64, f64) -> f64| last.iter().copied().reduce(f).map(text).unwrap_or_default();
                return Err(Error::Data(format!(
                    "{}: its last closes, {} to {}, lie far outside {} to {}, all that these weights of scaled prices were trained on \
                     (data.target = \"return\" works at any price)",
                    input.display(),
                    of(f64::min),
                    of(f64::max),
                    text(least),
                    text(most)
                )));
            }
        }
        let (dates, steps) = days.next_dates(horizon);
        let mut all = Self { forecaster, days, closes, needed, known: vec![], future: vec![], dates, steps };
        all.known = (needed..n).map(|d| Ok(all.ahead(d, 1)?[0])).collect::<Result<_>>()?;
        all.future = all.ahead(n, horizon)?;
        match all.known.iter().chain(&all.future).find(|p| !(p.is_finite() && **p > 0.)) {
            Some(price) => Err(Error::Data(format!(
                "{}: the model forecasts a price of {price:.4}: these prices are far from those it was trained on \
                 (data.target = \"return\" works at any price)",
                input.display()
            ))),
            None => Ok(all),
        }
    }

    fn len(&self) -> usize {
        self.closes.len()
    }

    /// Forecasts of day `d` and those after it, from the days before it.
    fn ahead(&self, d: usize, steps: usize) -> Result<Vec<f64>> {
        let history = d - self.needed..d;
        Ok(match self.forecaster.features() {
            FeatureSet::Close => self.forecaster.predict_ahead(&self.closes[history], steps)?,
            FeatureSet::Ohlcv => vec![self.forecaster.predict_bars(&self.days.bars[history])?],
        })
    }

    /// RMSE of a forecast of these days.
    fn rmse(&self, days: Range<usize>, of: impl Fn(usize) -> f64) -> f64 {
        let n = days.len() as f64;
        (days.map(|d| (of(d) - self.closes[d]).powi(2)).sum::<f64>() / n).sqrt()
    }
}

const ONE_SIDED: &str = "The errors have the same sign, so that an interval would not hold its own forecast: no intervals are given. The weights \
                         do not suit these prices.";

/// The lowest and the highest score inside an interval.
type Bounds = (f64, f64);

/// Bounds that hold no score.
const NOTHING: Bounds = (f64::INFINITY, f64::NEG_INFINITY);

/// The bounds of scores, if the forecast itself lies between them: otherwise all errors are on one side of it.
fn holding(conformal: &Conformal) -> Option<Bounds> {
    Some(conformal.bounds()).filter(|(low, high)| *low <= 0. && *high >= 0.)
}

/// Intervals from the errors of the calibration days in units of volatility, which follow how many of the days after them
/// they hold.
struct Intervals {
    calibration: Range<usize>,
    /// Where the calibration days come from.
    whence: &'static str,
    /// Of each later day, one day ahead.
    known: Vec<Option<(f64, f64)>>,
    /// Of each day to come.
    future: Vec<Option<(f64, f64)>>,
    /// `inside[h]` of `judged[h]` later days fell into their interval h + 1 days ahead.
    inside: Vec<usize>,
    judged: Vec<usize>,
    /// The same one day ahead, by thirds of the days' volatility, the calm ones first.
    by_volatility: [(usize, usize); 3],
    /// Whether an interval of a day to come is left out, as it would not hold its own forecast.
    one_sided: bool,
}

impl Intervals {
    fn new(forecasts: &Forecasts, validation: &Value, share: f64) -> Result<Self> {
        let (n, horizon, closes) = (forecasts.len(), forecasts.future.len(), &forecasts.closes);
        let (calibration, whence) = calibration_days(&forecasts.days.dates, forecasts.needed, validation);
        let volatility = volatilities(closes, calibration.start);
        // A forecast made on the morning of day d knows the volatility of that day.
        let score = |d: usize, h: usize, forecast: f64| (closes[d + h] / forecast).ln() / volatility[d];
        let mut scores: Vec<Vec<f64>> = vec![vec![]; horizon];
        for d in calibration.clone() {
            for (h, forecast) in forecasts.ahead(d, horizon.min(calibration.end - d))?.into_iter().enumerate() {
                // A forecast that is no price says nothing of how far off prices are.
                if forecast > 0. && forecast.is_finite() {
                    scores[h].push(score(d, h, forecast));
                }
            }
        }
        let mut conformal: Vec<Option<Conformal>> = scores.into_iter().map(|s| Conformal::new(s, share)).collect();
        let around = |conformal: &Option<Conformal>, forecast: f64, d: usize| {
            let (low, high) = holding(conformal.as_ref()?)?;
            Some((forecast * (low * volatility[d]).exp(), forecast * (high * volatility[d]).exp()))
        };
        let later = calibration.end..n;
        let mut order: Vec<usize> = later.clone().collect();
        order.sort_by(|a, b| volatility[*a].total_cmp(&volatility[*b]));
        let mut third = vec![0; later.len()];
        order.iter().enumerate().for_each(|(rank, d)| third[d - later.start] = 3 * rank / order.len());
        let (mut inside, mut judged, mut known) = (vec![0; horizon], vec![0; horizon], vec![]);
        let mut by_volatility = [(0, 0); 3];
        // Of each later day, the forecasts made on it and the bounds that their intervals had.
        let mut open: Vec<Vec<(f64, Option<Bounds>)>> = vec![];
        for d in later.clone() {
            // What was forecast for the day before is known by now: each horizon learns from the forecast that ends there.
            let made = forecasts.ahead(d, horizon.min(n - d))?;
            known.push(around(&conformal[0], made[0], d));
            let bounds = |h: usize| conformal[h].as_ref().and_then(holding);
            open.push(made.into_iter().enumerate().map(|(h, forecast)| (forecast, bounds(h))).collect());
            for h in 0..horizon.min(open.len()) {
                let from = d - h;
                let (Some(conformal), Some(&(forecast, bounds))) = (&mut conformal[h], open[from - later.start].get(h))
                else {
                    continue;
                };
                let fits = conformal.learn(score(from, h, forecast), bounds.unwrap_or(NOTHING));
                if bounds.is_none() {
                    continue;
                }
                judged[h] += 1;
                inside[h] += usize::from(fits);
                if h == 0 {
                    let (held, of) = &mut by_volatility[third[d - later.start]];
                    *of += 1;
                    *held += usize::from(fits);
                }
            }
        }
        let future: Vec<Option<Bounds>> =
            forecasts.future.iter().zip(&conformal).map(|(forecast, c)| around(c, *forecast, n)).collect();
        let one_sided = future.iter().zip(&conformal).any(|(bounds, c)| bounds.is_none() && c.is_some());
        Ok(Self { calibration, whence, known, future, inside, judged, by_volatility, one_sided })
    }

    /// The interval of a known day, one day ahead, if it is a later one.
    fn of_day(&self, d: usize) -> Option<(f64, f64)> {
        self.known.get(d.checked_sub(self.calibration.end)?).copied().flatten()
    }

    /// The share of later days that the intervals held, `h` + 1 days ahead.
    fn coverage(&self, h: usize) -> Option<f64> {
        (self.judged[h] > 0).then(|| self.inside[h] as f64 / self.judged[h] as f64)
    }

    fn remarks(&self, percent: &str) -> Vec<String> {
        let Self { calibration, whence, future, judged, by_volatility, .. } = self;
        let horizon = future.len();
        let share = |h: usize| self.coverage(h).map(|c| format!("{:.1} % of {}", 100. * c, judged[h]));
        let made = format!("{percent} intervals from the errors of {} days ({whence})", calibration.len());
        let mut remarks = vec![match (future[0].is_some(), share(0), share(horizon - 1)) {
            (false, ..) if self.one_sided => ONE_SIDED.into(),
            (false, ..) => {
                format!("No {percent} intervals: {} days with known outcomes are too few.", calibration.len())
            }
            (true, Some(first), Some(last)) if horizon > 1 => {
                format!("{made} hold {first} later days one day ahead, {last} at {horizon} days ahead.")
            }
            (true, Some(first), _) => format!("{made} hold {first} later days."),
            (true, None, _) => format!("{made}; no later days to check them on."),
        }];
        if by_volatility.iter().all(|(_, of)| *of > 0) {
            let [calm, middle, wild] = by_volatility.map(|(held, of)| format!("{:.0}", 100. * held as f64 / of as f64));
            remarks.push(format!(
                "Intervals follow the volatility of the days before and how many outcomes they held: {calm}, {middle} and {wild} % on the \
                 calmest, the middle and the wildest third of these days."
            ));
        }
        if future[0].is_some() && self.one_sided {
            remarks.push(ONE_SIDED.into());
        } else if future[0].is_some() && future[horizon - 1].is_none() {
            let last = future.iter().take_while(|b| b.is_some()).count();
            remarks.push(format!("No intervals beyond {last} days ahead: too few days with known outcomes."));
        }
        remarks
    }
}

/// A forecast of every day that has enough days before it, and of `horizon` days after the last. Intervals begin with those that hold
/// the given share of the model's relative errors in units of volatility, as many days ahead, on the validation days of its
/// training; where the input does not reach back to those, on the first half of its own days. Only later days get them and are
/// judged: earlier ones the model was fitted to, or they made the intervals. Each later day's outcome then changes the next.
pub(crate) fn predict(
    forecaster: &Forecaster,
    source: &DataSettings,
    validation: &Value,
    request: &Request<ForecastOptions>,
) -> Result<Prediction> {
    if let Some(problem) = request.options.problem() {
        return Err(Error::Usage(problem));
    }
    let share = request.options.interval / 100.;
    let percent = format!("{} %", (1e6 * share).round() / 1e4);
    let forecasts = Forecasts::new(forecaster, source, request)?;
    let intervals = Intervals::new(&forecasts, validation, share)?;
    let (rows, to_come) = rows(&forecasts, &intervals);
    let picture = picture(&forecasts, &intervals, &rows, &percent);
    let Forecasts { days, closes, known, .. } = &forecasts;
    let horizon = forecasts.future.len();
    let mut summary = Map::new();
    let interval = json!({
        "share": share, "calibration_days": intervals.calibration.len(),
        "coverage": (0..horizon).map(|h| intervals.coverage(h)).collect::<Vec<_>>(), "days": intervals.judged,
        "coverage_by_volatility": intervals.by_volatility.map(|(held, of)| (of > 0).then(|| held as f64 / of as f64)),
    });
    for (name, value) in [
        ("last_day", days.dates[closes.len() - 1].to_string().into()),
        ("last_close", closes[closes.len() - 1].into()),
        ("forecasts", to_come.into()),
        ("interval", interval),
        ("known_days", known.len().into()),
    ] {
        summary.insert(name.into(), value);
    }
    let header = ["date", "step", "forecast", "lower", "upper", "actual"].map(String::from).to_vec();
    let remarks = remarks(&forecasts, &intervals, validation, &percent);
    Ok(Prediction { header, rows, summary, remarks, picture, ..Prediction::default() })
}

/// Six digits, and four decimals at least.
fn text(v: f64) -> String {
    format!("{v:.*}", (5. - v.abs().log10().floor()).clamp(4., 12.) as usize)
}

/// The table, and the days to come for machines.
fn rows(forecasts: &Forecasts, intervals: &Intervals) -> (Vec<Vec<String>>, Vec<Value>) {
    let Forecasts { days, closes, needed, known, future, .. } = forecasts;
    let n = closes.len();
    let both = |b: Option<(f64, f64)>| b.map_or([String::new(), String::new()], |(lo, hi)| [text(lo), text(hi)]);
    let mut rows = vec![];
    for (d, forecast) in (*needed..n).zip(known) {
        let [lower, upper] = both(intervals.of_day(d));
        rows.push(vec![days.dates[d].to_string(), "1".into(), text(*forecast), lower, upper, text(closes[d])]);
    }
    let mut to_come = vec![];
    for ((h, forecast), date) in future.iter().enumerate().zip(&forecasts.dates) {
        let bound = intervals.future[h];
        let [lower, upper] = both(bound);
        to_come.push(json!({
            "date": date.to_string(), "step": h + 1, "forecast": forecast, "lower": bound.map(|b| b.0), "upper": bound.map(|b| b.1),
        }));
        rows.push(vec![date.to_string(), (h + 1).to_string(), text(*forecast), lower, upper, String::new()]);
    }
    (rows, to_come)
}

fn remarks(forecasts: &Forecasts, intervals: &Intervals, validation: &Value, percent: &str) -> Vec<String> {
    let Forecasts { days, closes, needed, known, future, .. } = forecasts;
    let n = closes.len();
    let mut remarks = days.warnings.clone();
    if let Some(day) = validation[0].as_str().filter(|v| days.dates[n - 1].to_string().as_str() < *v) {
        remarks.push(format!(
            "These days lie before the validation part of the training ({day}): the model may have learnt from them."
        ));
    }
    remarks.extend(intervals.remarks(percent));
    let steps = &forecasts.steps;
    remarks.push(match future.len() {
        1 => format!("{steps}."),
        _ => format!("{steps}. Beyond the first each forecast is made from forecasts."),
    });
    let new = intervals.calibration.end..n;
    if !new.is_empty() {
        remarks.push(format!(
            "One day ahead on the {} later days: RMSE {}, the last value {}.",
            new.len(),
            text(forecasts.rmse(new.clone(), |d| known[d - needed])),
            text(forecasts.rmse(new, |d| closes[d - 1]))
        ));
    }
    remarks
}

fn picture(forecasts: &Forecasts, intervals: &Intervals, rows: &[Vec<String>], percent: &str) -> Picture {
    let Forecasts { closes, needed, known, future, .. } = forecasts;
    let n = closes.len();
    let first = n.saturating_sub(SHOWN).max(*needed);
    let at = |d: usize| (d - first) as f64;
    let all =
        || (first..n).map(|d| (d, known[d - needed], 0)).chain(future.iter().enumerate().map(|(h, f)| (n + h, *f, h)));
    Picture {
        title: format!("close and forecast, {percent} interval"),
        labels: rows[first - needed..].iter().map(|r| r[0].clone()).collect(),
        lines: vec![
            ("close".into(), (first..n).map(|d| (at(d), closes[d])).collect()),
            ("forecast".into(), all().map(|(d, f, _)| (at(d), f)).collect()),
        ],
        band: all()
            .filter_map(|(d, _, h)| {
                let bounds = if d < n { intervals.of_day(d) } else { intervals.future[h] };
                bounds.map(|(lo, hi)| (at(d), lo, hi))
            })
            .collect(),
        ..Picture::default()
    }
}

/// The days whose errors make the intervals, and where they come from.
fn calibration_days(dates: &[Date], needed: usize, validation: &Value) -> (Range<usize>, &'static str) {
    let day = |k: usize| validation[k].as_str().and_then(|d| d.parse::<Date>().ok());
    if let (Some(from), Some(to)) = (day(0), day(1)) {
        let start = dates.partition_point(|d| *d < from).max(needed);
        let end = dates.partition_point(|d| *d <= to);
        if end.saturating_sub(start) >= FEWEST {
            return (start..end, "the validation part of its training");
        }
    }
    let half = needed + (dates.len() - needed).div_ceil(2);
    (needed..half, "the first half of this file")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_come_from_the_validation_days_where_they_are_there() {
        let dates: Vec<Date> =
            std::iter::successors(Some(Date::constant(2020, 1, 1)), |d| d.tomorrow().ok()).take(200).collect();
        let of = |validation: Value| calibration_days(&dates, 11, &validation);
        assert_eq!(of(json!(["2020-02-01", "2020-03-31"])).0, 31..91);
        assert_eq!(of(json!(["2020-01-05", "2020-03-31"])).0, 11..91);
        assert_eq!(of(json!(["2019-02-01", "2019-03-31"])), (11..106, "the first half of this file"));
        assert_eq!(of(Value::Null).0, 11..106);
    }
}
