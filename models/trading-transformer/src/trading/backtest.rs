//! What becomes of decisions over a period, and how good that is.

use std::collections::BTreeMap;

use candle_core::Result;
use zoo_market::Date;
use zoo_training::{Metrics, Split};

use super::YEAR;
use super::account::{Rules, Trade};
use super::environment::Walk;
use super::market::Market;
use super::sharpe::Sharpe;
use crate::features::windows::mean;

/// A symbol's way through a period.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Course {
    /// The exposure that was decided on at each bar of the period.
    pub(super) decided: Vec<f64>,
    /// ln of the equity's growth on the bar after each decision.
    growth: Vec<f64>,
    /// Value of the position after that bar, as a share of the equity; negative if short.
    pub(super) exposure: Vec<f64>,
    pub(super) trades: Vec<Trade>,
    turnover: f64,
}

/// Lets `decide` choose the exposures of all symbols that are still within the period, bar by bar, under `rules`.
pub(super) fn run(
    market: &Market,
    rules: Rules,
    split: Split,
    mut decide: impl FnMut(&[&Walk]) -> Result<Vec<f64>>,
) -> Result<Vec<Course>> {
    let n = market.symbols.len();
    let ends: Vec<usize> = market.symbols.iter().map(|s| s.period(split).end).collect();
    let mut walks: Vec<Walk> =
        (0..n).map(|i| Walk::new(rules, market.bars, i, market.symbols[i].period(split).start)).collect();
    let mut courses = vec![Course::default(); n];
    loop {
        let open: Vec<usize> = (0..n).filter(|i| walks[*i].t < ends[*i]).collect();
        if open.is_empty() {
            return Ok(courses);
        }
        let levels = decide(&open.iter().map(|i| &walks[*i]).collect::<Vec<_>>())?;
        for (i, level) in open.into_iter().zip(levels) {
            let (walk, course) = (&mut walks[i], &mut courses[i]);
            let mut growth = walk.advance(market, level);
            let held = walk.account.held().map_or(0., |p| p.shares);
            let (equity, close) = (walk.account.equity(), market.symbols[i].days.bars[walk.t].close);
            course.decided.push(level);
            course.exposure.push(held * close / equity);
            if walk.t == ends[i] {
                // What it takes to get out belongs to the result.
                walk.account.finish(walk.t, close);
                growth += (walk.account.equity() / equity).ln();
                course.turnover = walk.account.turnover();
            }
            course.growth.push(growth);
            course.trades.extend(walk.account.take_trades());
        }
    }
}

/// Exposures that were decided on before, whatever happens.
pub(super) fn replay(
    market: &Market,
    rules: Rules,
    split: Split,
    decided: impl Fn(usize, usize) -> f64,
) -> Result<Vec<Course>> {
    let start = |i: usize| market.symbols[i].period(split).start;
    run(market, rules, split, |walks| Ok(walks.iter().map(|w| decided(w.symbol, w.t - start(w.symbol))).collect()))
}

/// A portfolio of all symbols with the same share of each, rebalanced daily at no cost.
#[derive(Clone, Debug, Default)]
pub(super) struct Record {
    /// Growth of the portfolio, as a share, by date.
    pub(super) returns: BTreeMap<Date, f64>,
    pub(super) metrics: Metrics,
}

impl Record {
    /// Sharpe ratio a year without a riskless rate, and its standard error; return, deepest fall from a peak, share of trades that won and mean
    /// exposure in percent; trades; value traded a year in shares of the equity.
    pub(super) fn of(market: &Market, split: Split, courses: &[Course]) -> Self {
        let mut by_date: BTreeMap<Date, Vec<f64>> = BTreeMap::new();
        for (symbol, course) in market.symbols.iter().zip(courses) {
            let dates = symbol.period(split).map(|t| symbol.days.dates[t + 1]);
            dates.zip(&course.growth).for_each(|(date, g)| by_date.entry(date).or_default().push(g.exp() - 1.));
        }
        let returns: BTreeMap<Date, f64> = by_date.into_iter().map(|(date, all)| (date, mean(&all))).collect();
        let daily: Vec<f64> = returns.values().copied().collect();
        let sharpe = Sharpe::of(&daily);
        let (mut worth, mut peak, mut fall) = (1f64, 1f64, 0f64);
        for r in &daily {
            worth *= 1. + r;
            peak = peak.max(worth);
            fall = fall.max(1. - worth / peak);
        }
        let trades: Vec<&Trade> = courses.iter().flat_map(|c| &c.trades).collect();
        let wins = trades.iter().filter(|t| t.profit > 0.).count();
        let exposure: Vec<f64> = courses.iter().flat_map(|c| &c.exposure).map(|e| e.abs()).collect();
        let decisions = exposure.len().max(1) as f64;
        let turnover = courses.iter().map(|c| c.turnover).sum::<f64>();
        let metrics = Metrics::from([
            ("sharpe", sharpe.map_or(0., Sharpe::yearly)),
            ("sharpe_error", sharpe.map_or(0., Sharpe::error)),
            ("return", 100. * (worth - 1.)),
            ("max_drawdown", 100. * fall),
            ("win_rate", if trades.is_empty() { 0. } else { 100. * wins as f64 / trades.len() as f64 }),
            ("trades", trades.len() as f64),
            ("turnover", turnover / decisions * YEAR),
            ("exposure", 100. * mean(&exposure)),
        ]);
        Self { returns, metrics }
    }

    /// A metric by its name.
    pub(super) fn metric(&self, name: &str) -> f64 {
        self.metrics.value(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Config, DataSettings};

    fn market(rules: Rules) -> zoo_training::Result<Market> {
        let source = DataSettings { simulated_days: 700, ..DataSettings::default() };
        let market = Market::open(&Config::default(), &source, 3)?;
        Ok(Market { rules, ..market })
    }

    #[test]
    fn holding_without_costs_grows_like_the_price_and_flat_does_not_grow() -> zoo_training::Result<()> {
        let market = market(Rules { friction: 0., stop: 1e9, target: 1e9 })?;
        let split = Split::Test;
        let hold = Record::of(&market, split, &replay(&market, market.rules, split, |_, _| 1.)?);
        let (bars, period) = (&market.symbols[0].days.bars, market.symbols[0].period(split));
        let grown = 100. * (bars[period.end].close / bars[period.start + 1].open - 1.);
        assert!((hold.metric("return") - grown).abs() < 1e-6, "{} {grown}", hold.metric("return"));
        assert_eq!((hold.metric("trades"), hold.returns.len()), (1., period.len()));
        assert!((hold.metric("exposure") - 100.).abs() < 1e-9);
        let flat = Record::of(&market, split, &replay(&market, market.rules, split, |_, _| 0.)?);
        assert_eq!(flat.metrics.iter().map(|m| m.1).collect::<Vec<_>>(), [0.; 8]);
        Ok(())
    }

    #[test]
    fn measures_are_those_of_the_daily_returns() -> zoo_training::Result<()> {
        let market = market(Rules { friction: 0.002, stop: 1e9, target: 1e9 })?;
        let split = Split::Valid;
        let courses = replay(&market, market.rules, split, |_, k| if k % 10 < 5 { 1. } else { -1. })?;
        let record = Record::of(&market, split, &courses);
        let daily: Vec<f64> = record.returns.values().copied().collect();
        let n = daily.len() as f64;
        let mean = daily.iter().sum::<f64>() / n;
        let deviation = (daily.iter().map(|r| (r - mean).powi(2)).sum::<f64>() / n).sqrt();
        assert!((record.metric("sharpe") - mean / deviation * 252f64.sqrt()).abs() < 1e-9);
        let worth: Vec<f64> = daily
            .iter()
            .scan(1., |w, r| {
                *w *= 1. + r;
                Some(*w)
            })
            .collect();
        let fall =
            (0..worth.len()).flat_map(|j| (0..=j).map(move |i| (i, j))).map(|(i, j)| 1. - worth[j] / worth[i].max(1.));
        assert!((record.metric("max_drawdown") - 100. * fall.fold(0., f64::max)).abs() < 1e-9);
        // The profits of the trades are what the account has gained.
        let profit: f64 = courses[0].trades.iter().map(|t| t.profit).sum();
        assert!((profit / 1000. - record.metric("return")).abs() < 1e-6);
        assert!(record.metric("trades") >= n / 5.);
        let by_hand = 252. / n * (2. * (record.metric("trades") - 1.) + 2.);
        assert!((record.metric("turnover") / by_hand - 1.).abs() < 0.05, "{} {by_hand}", record.metric("turnover"));
        Ok(())
    }
}
