//! `zoo predict stock-lstm`: forecasts with intervals for a price file.

use jiff::civil::{Date, Weekday};
use serde_json::{Map, Value, json};
use zoo_market::read_csv;
use zoo_training::{Error, Picture, Prediction, Request, Result};

use crate::{Bar, FeatureSet, Forecaster, Source};

/// Fewest errors that an interval is made from.
const FEWEST: usize = 30;
/// Days of the past that the picture shows.
const SHOWN: usize = 120;

/// A forecast of every day that has enough days before it, and of `horizon` days after the last. Intervals hold the
/// given share of the model's relative errors, as many days ahead, on the validation days of its training; where the
/// input does not reach back to those, on the first half of its own days. Only later days get them and are judged:
/// earlier ones the model was fitted to, or they made the intervals.
pub(crate) fn predict(
    forecaster: &Forecaster,
    source: &Source,
    validation: &Value,
    request: &Request,
) -> Result<Prediction> {
    let &Request { input, horizon, interval, truth } = request;
    if truth.is_some() {
        return Err(Error::Usage(
            "--truth: the days that the input itself has are what forecasts are held against".into(),
        ));
    }
    let simple = forecaster.features() == FeatureSet::Close;
    if !simple && horizon > 1 {
        return Err(Error::Usage(format!(
            "--horizon {horizon}: this model sees open, high, low and volume, which nobody forecasts for it; one day ahead is \
             as far as it goes (models of the preset default go further)"
        )));
    }
    let days = read_csv(input, &source.reading())?;
    let lacks = days.missing.iter().find(|c| **c != "Adj Close");
    if let (false, Some(column)) = (simple, lacks) {
        return Err(Error::Data(format!("{}: no column {column}, which this model needs", input.display())));
    }
    let (n, needed) = (days.bars.len(), forecaster.days());
    if n < needed {
        return Err(Error::Data(format!(
            "{}: {n} days, a forecast needs at least {needed} (bring more data)",
            input.display()
        )));
    }
    let closes: Vec<f64> = days.bars.iter().map(|b| b.close).collect();
    // ahead[d - needed][h - 1]: the forecast of day d - 1 + h from the days before d.
    let ahead = |d: usize, steps: usize| -> candle_core::Result<Vec<f64>> {
        let history: &[Bar] = &days.bars[d - needed..d];
        if simple {
            forecaster.predict_ahead(&closes[d - needed..d], steps)
        } else {
            Ok(vec![forecaster.predict_bars(history)?])
        }
    };
    let known: Vec<f64> = (needed..n).map(|d| Ok(ahead(d, 1)?[0])).collect::<candle_core::Result<_>>()?;
    let future = ahead(n, horizon)?;
    if let Some(price) = known.iter().chain(&future).find(|p| !(p.is_finite() && **p > 0.)) {
        return Err(Error::Data(format!(
            "{}: the model forecasts a price of {price:.4}: these prices are far from those it was trained on \
             (data.target = \"return\" works at any price)",
            input.display()
        )));
    }

    let (calibration, whence) = calibration_days(&days.dates, needed, validation);
    let mut errors: Vec<Vec<f64>> = vec![vec![]; horizon];
    for d in calibration.clone() {
        for (h, forecast) in ahead(d, horizon.min(calibration.end - d))?.into_iter().enumerate() {
            errors[h].push((closes[d + h] / forecast).ln());
        }
    }
    let bounds: Vec<Option<(f64, f64)>> = errors.into_iter().map(|e| quantiles(e, interval)).collect();
    let within = |forecast: f64, h: usize| bounds[h].map(|(lo, hi)| (forecast * lo.exp(), forecast * hi.exp()));

    let mut rows = vec![];
    // Six digits, and four decimals at least.
    let text = |v: f64| format!("{v:.*}", (5. - v.abs().log10().floor()).clamp(4., 12.) as usize);
    let both = |b: Option<(f64, f64)>| b.map_or([String::new(), String::new()], |(lo, hi)| [text(lo), text(hi)]);
    let new = calibration.end..n;
    for (d, forecast) in (needed..n).zip(&known) {
        let [lower, upper] = both(if new.contains(&d) { within(*forecast, 0) } else { None });
        rows.push(vec![days.dates[d].to_string(), "1".into(), text(*forecast), lower, upper, text(closes[d])]);
    }
    // inside[h] of judged[h] new days fell into their interval h + 1 days ahead.
    let (mut inside, mut judged) = (vec![0; horizon], vec![0; horizon]);
    for d in new.clone() {
        for (h, forecast) in ahead(d, horizon.min(n - d))?.into_iter().enumerate() {
            if let Some((lo, hi)) = within(forecast, h) {
                judged[h] += 1;
                inside[h] += usize::from((lo..=hi).contains(&closes[d + h]));
            }
        }
    }
    let mut to_come = vec![];
    let mut date = days.dates[n - 1];
    for (h, forecast) in future.iter().enumerate() {
        date = next_weekday(date);
        let bound = within(*forecast, h);
        let [lower, upper] = both(bound);
        to_come.push(json!({
            "date": date.to_string(), "step": h + 1, "forecast": forecast, "lower": bound.map(|b| b.0), "upper": bound.map(|b| b.1),
        }));
        rows.push(vec![date.to_string(), (h + 1).to_string(), text(*forecast), lower, upper, String::new()]);
    }

    let mut remarks = days.warnings.clone();
    let percent = format!("{} %", (1e6 * interval).round() / 1e4);
    let coverage = |h: usize| (judged[h] > 0).then(|| inside[h] as f64 / judged[h] as f64);
    if let Some(day) = validation[0].as_str().filter(|v| days.dates[n - 1].to_string().as_str() < *v) {
        remarks.push(format!(
            "These days lie before the validation part of the training ({day}): the model may have learnt from them."
        ));
    }
    let share = |h: usize| coverage(h).map(|c| format!("{:.1} % of {}", 100. * c, judged[h]));
    let made = format!("{percent} intervals from the errors of {} days ({whence})", calibration.len());
    remarks.push(match (bounds[0].is_some(), share(0), share(horizon - 1)) {
        (false, ..) => format!("No {percent} intervals: {} days with known outcomes are too few.", calibration.len()),
        (true, Some(first), Some(last)) if horizon > 1 => {
            format!("{made} hold {first} later days one day ahead, {last} at {horizon} days ahead.")
        }
        (true, Some(first), _) => format!("{made} hold {first} later days."),
        (true, None, _) => format!("{made}; no later days to check them on."),
    });
    if bounds[0].is_some() && bounds[horizon - 1].is_none() {
        let last = bounds.iter().take_while(|b| b.is_some()).count();
        remarks.push(format!("No intervals beyond {last} days ahead: too few days with known outcomes."));
    }
    if horizon > 1 {
        remarks.push(
            "Beyond the first day each forecast is made from forecasts; weekends are left out, holidays are not."
                .into(),
        );
    }
    if !new.is_empty() {
        let rmse = |of: &dyn Fn(usize) -> f64| {
            (new.clone().map(|d| (of(d) - closes[d]).powi(2)).sum::<f64>() / new.len() as f64).sqrt()
        };
        remarks.push(format!(
            "One day ahead on the {} later days: RMSE {}, the last value {}.",
            new.len(),
            text(rmse(&|d| known[d - needed])),
            text(rmse(&|d| closes[d - 1]))
        ));
    }
    let mut summary = Map::new();
    summary.insert("last_day".into(), days.dates[n - 1].to_string().into());
    summary.insert("last_close".into(), closes[n - 1].into());
    summary.insert("forecasts".into(), to_come.into());
    summary.insert(
        "interval".into(),
        json!({
            "share": interval, "calibration_days": calibration.len(),
            "coverage": (0..horizon).map(coverage).collect::<Vec<_>>(), "days": judged,
        }),
    );
    summary.insert("known_days".into(), known.len().into());

    let first = n.saturating_sub(SHOWN).max(needed);
    let at = |d: usize| (d - first) as f64;
    let forecasts =
        || (first..n).map(|d| (d, known[d - needed], 0)).chain(future.iter().enumerate().map(|(h, f)| (n + h, *f, h)));
    let picture = Picture {
        title: format!("close and forecast, {percent} interval"),
        labels: rows[first - needed..].iter().map(|r| r[0].clone()).collect(),
        lines: vec![
            ("close", (first..n).map(|d| (at(d), closes[d])).collect()),
            ("forecast", forecasts().map(|(d, f, _)| (at(d), f)).collect()),
        ],
        band: forecasts()
            .filter(|f| f.0 >= new.start)
            .filter_map(|(d, f, h)| within(f, h).map(|(lo, hi)| (at(d), lo, hi)))
            .collect(),
        ..Picture::default()
    };
    let header = ["date", "step", "forecast", "lower", "upper", "actual"].map(String::from).to_vec();
    Ok(Prediction { header, rows, summary, remarks, picture, ..Prediction::default() })
}

/// The days whose errors make the intervals, and where they come from.
fn calibration_days(dates: &[Date], needed: usize, validation: &Value) -> (std::ops::Range<usize>, &'static str) {
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

/// The bounds that leave equal shares of the errors outside on both sides, so that new ones fall inside with at least the
/// given probability (as in split conformal prediction, Vovk et al. 2005); `None` if there are too few errors for that.
fn quantiles(mut errors: Vec<f64>, share: f64) -> Option<(f64, f64)> {
    let n = errors.len();
    // A hair more, so that 1 - 0.9 counts as 0.1.
    let outside = ((n + 1) as f64 * (1. - share) / 2. + 1e-9).floor() as usize;
    if n < FEWEST || outside == 0 {
        return None;
    }
    errors.sort_by(f64::total_cmp);
    Some((errors[outside - 1], errors[n - outside]))
}

fn next_weekday(mut date: Date) -> Date {
    loop {
        // The calendar ends in 9999.
        date = date.tomorrow().unwrap_or(date);
        if !matches!(date.weekday(), Weekday::Saturday | Weekday::Sunday) {
            return date;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_leave_the_stated_share_outside() {
        let errors: Vec<f64> = (0..999).map(|i| f64::from(i * 38 % 999)).collect();
        assert_eq!(quantiles(errors.clone(), 0.9), Some((49., 949.)));
        assert_eq!(quantiles(errors[..29].to_vec(), 0.9), None);
        let few: Vec<f64> = (0..39).map(f64::from).collect();
        assert_eq!((quantiles(few.clone(), 0.99), quantiles(few, 0.95)), (None, Some((0., 38.))));
    }

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
