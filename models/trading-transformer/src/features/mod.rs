//! The 129 features of a bar: 64 of the market, 45 indicators, 20 of the position. `FEATURES.md` lists them.
//!
//! What a feature says of a bar is made of that bar and those before it.

mod indicators;
mod market;
mod position;
pub(crate) mod windows;

use std::ops::Range;

use candle_core::{Device, Result, Tensor, bail};
use zoo_market::Bar;

pub use position::{Position, Trader};

/// Features of the position, the last of a bar.
#[cfg(feature = "train")]
pub(crate) const POSITION: usize = position::COUNT;

/// Features of a bar.
pub const FEATURES: usize = 129;
/// Bars before the first whose features have the history that they look at (exponential means have nearly all of theirs: the
/// first bar still weighs 2 % in those of 100).
pub const WARMUP: usize = 200;

/// A group of features: what it is called, and where it stands among the 129.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// market, indicator or position.
    pub name: &'static str,
    /// Places of its features.
    pub range: Range<usize>,
}

/// The three groups: the market's within [-2, 2], indicators near zero, and those of the position, which are zero while
/// there is none and large when there is.
pub fn groups() -> [Group; 3] {
    [("market", 0..64), ("indicator", 64..109), ("position", 109..FEATURES)].map(|(name, range)| Group { name, range })
}

/// Names and definitions of the 129 features, in order.
pub fn definitions() -> Vec<(String, String)> {
    let mut all = columns(&[]).into_iter().map(|c| (c.name, c.what)).collect::<Vec<_>>();
    all.extend(position::DEFINITIONS.map(|(name, what)| (name.to_string(), what.to_string())));
    all
}

/// Names of the features that are made of volumes; they are zero where there is no volume.
#[cfg(feature = "train")]
pub(crate) fn of_volume() -> Vec<String> {
    let is = |what: &str| ["volume", "flow"].iter().any(|word| what.contains(word));
    definitions().into_iter().filter(|(_, what)| is(what)).map(|(name, _)| name).collect()
}

/// What there is of the market at each bar: 109 features a bar, row by row. The first [`WARMUP`] rows lack history.
pub fn of_market(bars: &[Bar]) -> Vec<f32> {
    let columns = columns(bars);
    (0..bars.len()).flat_map(|t| columns.iter().map(move |c| c.values[t] as f32)).collect()
}

/// All 129 features of each bar, row by row; `positions` are those held after each bar's close.
pub fn of_bars(bars: &[Bar], positions: &[Option<Position>]) -> Vec<f32> {
    let market = of_market(bars);
    let ranges = average_range(bars);
    let width = FEATURES - position::COUNT;
    let mut rows = Vec::with_capacity(bars.len() * FEATURES);
    for (t, of_market) in market.chunks(width).enumerate() {
        rows.extend_from_slice(of_market);
        let position = positions.get(t).and_then(Option::as_ref);
        rows.extend(position.map_or([0.; position::COUNT], |p| p.features(&bars[t], ranges[t])));
    }
    rows
}

/// The observation (1, s·129) of the `s` bars up to bar `t`, from the rows of [`of_bars`].
///
/// # Errors
/// There are no such bars, or too few before them for their features to have history.
pub fn observation(rows: &[f32], t: usize, s: usize, device: &Device) -> Result<Tensor> {
    let (n, first) = (rows.len() / FEATURES, (t + 1).checked_sub(s));
    match first {
        Some(first) if t < n && first >= WARMUP && s > 0 => {
            Tensor::from_slice(&rows[first * FEATURES..(t + 1) * FEATURES], (1, s * FEATURES), device)
        }
        _ => bail!("an observation of {s} bars up to bar {t} of {n}: its first must be bar {WARMUP} or later"),
    }
}

/// Wilder's mean of 14 true ranges at each bar, in units of the price.
pub fn average_range(bars: &[Bar]) -> Vec<f64> {
    windows::wilder(&market::true_range(bars), 14)
}

struct Column {
    name: String,
    what: String,
    values: Vec<f64>,
}

/// The features so far, by column.
struct Columns(Vec<Column>);

impl Columns {
    fn push(&mut self, name: &str, what: &str, values: Vec<f64>) {
        self.0.push(Column { name: name.into(), what: what.into(), values });
    }
}

/// What several features are made of, bar by bar.
struct Series<'a> {
    bars: &'a [Bar],
    log_close: Vec<f64>,
    log_volume: Vec<f64>,
    returns: Vec<f64>,
    overnight: Vec<f64>,
    /// Standard deviation of the last 50 returns.
    sigma: Vec<f64>,
}

fn columns(bars: &[Bar]) -> Vec<Column> {
    let log_close: Vec<f64> = bars.iter().map(|b| b.close.ln()).collect();
    let returns = windows::changes(&log_close);
    let overnight =
        (0..bars.len()).map(|t| bars[t].open.ln() - if t == 0 { bars[0].open.ln() } else { log_close[t - 1] });
    let series = Series {
        bars,
        log_volume: bars.iter().map(|b| (b.volume + 1.).ln()).collect(),
        overnight: overnight.collect(),
        sigma: windows::rolling(&returns, 50, windows::deviation),
        log_close,
        returns,
    };
    let mut columns = Columns(vec![]);
    market::push(&mut columns, &series);
    indicators::push(&mut columns, &series);
    columns.0
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn rows(bars: &[Bar], seed: u64) -> Vec<f32> {
        of_bars(bars, &Trader::default().positions(bars, seed))
    }

    #[test]
    #[cfg(feature = "train")]
    fn without_volume_its_features_are_zero_and_no_others_change() {
        let bars = simulated(300, 1);
        let silent: Vec<Bar> = bars.iter().map(|b| Bar { volume: 0., ..*b }).collect();
        let (with, without) = (of_market(&bars), of_market(&silent));
        let (names, width) = (of_volume(), FEATURES - position::COUNT);
        for (i, (name, _)) in definitions().iter().enumerate().take(width) {
            let column = |rows: &[f32]| (WARMUP..300).map(|t| rows[t * width + i]).collect::<Vec<_>>();
            if names.contains(name) {
                assert!(column(&without).iter().all(|v| *v == 0.), "{name}");
                assert!(column(&with).iter().any(|v| *v != 0.), "{name}");
            } else {
                assert_eq!(column(&with), column(&without), "{name}");
            }
        }
    }

    #[cfg(feature = "train")]
    fn simulated(days: usize, seed: u64) -> Vec<Bar> {
        zoo_market::simulate(days, seed).bars
    }

    #[test]
    fn there_are_129_with_names_of_their_own() {
        let definitions = definitions();
        assert_eq!(definitions.len(), FEATURES);
        assert_eq!(definitions.iter().map(|d| &d.0).collect::<HashSet<_>>().len(), FEATURES);
        assert_eq!(columns(&[]).len() + position::COUNT, FEATURES);
        let groups = groups();
        assert!(groups.windows(2).all(|g| g[0].range.end == g[1].range.start));
        assert_eq!(definitions[groups[1].range.start].0, "log_return_1");
        assert_eq!(definitions[groups[2].range.start].0, "direction");
        let table: String = groups
            .iter()
            .flat_map(|g| g.range.clone().map(|i| (i, g.name)))
            .map(|(i, group)| format!("| {i} | {} | {group} | {} |\n", definitions[i].0, definitions[i].1))
            .collect();
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/FEATURES.md");
        let documented = std::fs::read_to_string(file).unwrap_or_default();
        assert!(documented.ends_with(&table), "{file} should end with\n{table}");
    }

    #[cfg(feature = "train")]
    #[test]
    fn the_future_changes_nothing_before_it() {
        let bars = simulated(700, 1);
        let whole = rows(&bars, 2);
        for end in [201, 350, 699] {
            let mut other = bars.clone();
            for (i, bar) in other[end..].iter_mut().enumerate() {
                let factor = 1. + 0.5 * ((i * 7919) % 13) as f64;
                *bar = Bar { open: bar.low * factor, high: bar.high * 2. * factor, volume: 3. * bar.volume, ..*bar };
                (bar.low, bar.close) = (bar.low * 0.1, bar.high * 0.9);
            }
            let (other, past) = (rows(&other, 2), end * FEATURES);
            assert!(other[..past] == whole[..past], "bars from {end} on were changed");
            assert!(other[past..] != whole[past..]);
            assert!(rows(&bars[..end], 2) == whole[..past], "bars from {end} on were left out");
        }
    }

    #[cfg(feature = "train")]
    #[test]
    fn no_feature_is_constant_or_the_double_of_another() {
        let bars = simulated(3000, 1);
        let rows = rows(&bars, 1);
        let column =
            |i: usize| -> Vec<f64> { rows.chunks(FEATURES).skip(WARMUP).map(|row| f64::from(row[i])).collect() };
        let definitions = definitions();
        let columns: Vec<Vec<f64>> = (0..FEATURES).map(column).collect();
        for (i, a) in columns.iter().enumerate() {
            let name = &definitions[i].0;
            let distinct: HashSet<u64> = a.iter().map(|v| v.to_bits()).collect();
            assert!(a.iter().all(|v| v.is_finite()), "{name}");
            assert!(distinct.len() >= if name == "direction" { 3 } else { 20 }, "{name} has {} values", distinct.len());
            let most = distinct.iter().map(|v| a.iter().filter(|x| x.to_bits() == *v).count()).max();
            let group = groups().into_iter().find(|g| g.range.contains(&i)).map(|g| g.name);
            if group != Some("position") {
                assert!(most.is_some_and(|n| n < a.len() / 4), "{name} is mostly one value");
            }
            for (j, b) in columns.iter().enumerate().skip(i + 1) {
                let r = windows::ratio(windows::covariance(a, b), windows::deviation(a) * windows::deviation(b));
                assert!(r.abs() < 0.999, "{name} and {} have a correlation of {r:.5}", definitions[j].0);
            }
        }
    }

    #[cfg(feature = "train")]
    #[test]
    fn the_groups_have_the_scales_that_their_names_promise() {
        let bars = simulated(3000, 3);
        let positions = Trader::default().positions(&bars, 3);
        let rows = of_bars(&bars, &positions);
        let [market, indicator, position] = groups().map(|g| g.range);
        for (row, held) in rows.chunks(FEATURES).zip(&positions).skip(WARMUP) {
            assert!(row[market.clone()].iter().all(|v| v.abs() <= 2.));
            assert!(row[indicator.clone()].iter().all(|v| v.abs() < 1.));
            let position = &row[position.clone()];
            match held {
                None => assert!(position.iter().all(|v| *v == 0.)),
                Some(_) => assert!(position.iter().any(|v| v.abs() > 1000.)),
            }
        }
        let open = positions.iter().filter(|p| p.is_some()).count() as f64 / positions.len() as f64;
        assert!((0.3..0.9).contains(&open), "{open}");
    }

    #[test]
    fn features_of_known_bars_are_known() {
        let bar = |close: f64| Bar { open: close - 1., high: close + 1., low: close - 3., close, volume: 10. };
        let bars: Vec<Bar> = (0..300).map(|t| bar(100. + t as f64)).collect();
        let rows = rows(&bars, 1);
        let names = definitions();
        let value = |name: &str| {
            let i = names.iter().position(|d| d.0 == name).unwrap_or(usize::MAX);
            rows[299 * FEATURES + i]
        };
        let near = |name: &str, expected: f64| {
            assert!((f64::from(value(name)) - expected).abs() < 1e-6, "{name}: {} expected {expected}", value(name));
        };
        near("rsi_14", 2.);
        near("aroon_25", 2.);
        near("body", 0.5);
        near("upper_shadow", -1.);
        near("lower_shadow", 0.);
        near("close_location", 1.);
        near("channel_5", 4. * 7. / 8. - 2.);
        near("log_return_5", (399f64 / 394.).ln());
        near("overnight", 0.);
        near("intraday", (399f64 / 398.).ln());
        near("drawdown_50", 0.);
        near(
            "parkinson_5",
            (395..400).map(|c| ((f64::from(c) + 1.) / (f64::from(c) - 3.)).ln().powi(2)).sum::<f64>()
                / 5.
                / (4. * 2f64.ln()),
        );
        near("volume_20", 0.);
        near("direction_14", 2.);
    }
}
