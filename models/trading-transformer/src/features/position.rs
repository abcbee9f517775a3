//! 20 features of the position that is held, in its account's currency, and a trader that holds positions by chance.

use zoo_layers::random::{Purpose, Stream};
use zoo_market::Bar;

use super::average_range;

pub(super) const COUNT: usize = 20;

/// Names and definitions of the features; all are 0 while there is no position.
pub(super) const DEFINITIONS: [(&str, &str); COUNT] = [
    ("direction", "1 if long, -1 if short"),
    ("shares", "shares held, negative if short"),
    ("notional", "shares · close, in currency"),
    ("entry_price", "price of the entry"),
    ("profit", "unrealised profit after costs, in currency"),
    ("profit_percent", "profit / notional at entry, in percent"),
    ("bars_held", "bars since the entry"),
    ("bars_since_best", "bars since the profit was greatest"),
    ("stop_distance", "from close to stop, in units of the price, positive until it is reached"),
    ("target_distance", "from close to target, in units of the price, positive until it is reached"),
    ("best_profit", "greatest profit since the entry, in currency, 0 at least"),
    ("worst_profit", "least profit since the entry, in currency, 0 at most"),
    ("risk", "what the way to the stop would cost, in currency"),
    ("reward", "what the way to the target would bring, in currency"),
    ("profit_in_ranges", "profit a share / average true range of 14"),
    ("profit_change", "change of the profit on this bar, in currency"),
    ("given_back", "best_profit - profit, in currency"),
    ("exposure", "|notional| / equity, in percent"),
    ("cost", "commission of the entry, in currency"),
    ("range_value", "|shares| · average true range of 14, in currency"),
];

/// A position as it is after a bar's close.
#[derive(Clone, Debug, PartialEq)]
pub struct Position {
    /// Shares; negative if short.
    pub shares: f64,
    /// Price of the entry.
    pub entry: f64,
    /// Price at which it is given up.
    pub stop: f64,
    /// Price at which it is taken in.
    pub target: f64,
    /// Commission of the entry, in currency.
    pub cost: f64,
    /// The account's worth without it, in currency.
    pub equity: f64,
    /// Bars since the entry.
    pub bars_held: u32,
    /// Bars since the profit was greatest.
    pub bars_since_best: u32,
    /// Unrealised profit after costs at this bar's close, in currency.
    pub profit: f64,
    /// The same at the bar before.
    pub profit_before: f64,
    /// Greatest profit since the entry, 0 at least.
    pub best: f64,
    /// Least profit since the entry, 0 at most.
    pub worst: f64,
}

impl Position {
    /// A position of `shares` taken at `entry`.
    pub fn open(shares: f64, entry: f64, [stop, target]: [f64; 2], cost: f64, equity: f64) -> Self {
        Self {
            shares,
            entry,
            stop,
            target,
            cost,
            equity,
            bars_held: 0,
            bars_since_best: 0,
            profit: -cost,
            profit_before: 0.,
            best: 0.,
            worst: -cost,
        }
    }

    /// The position after another bar's close.
    pub fn hold(&mut self, close: f64) {
        self.bars_held += 1;
        self.bars_since_best += 1;
        self.profit_before = self.profit;
        self.profit = self.shares * (close - self.entry) - self.cost;
        if self.profit > self.best {
            (self.best, self.bars_since_best) = (self.profit, 0);
        }
        self.worst = self.worst.min(self.profit);
    }

    /// Whether `close` is at or beyond stop or target.
    pub fn is_over(&self, close: f64) -> bool {
        let side = self.shares.signum();
        side * (close - self.stop) <= 0. || side * (close - self.target) >= 0.
    }

    /// The features at a bar whose average true range of 14 is `range`.
    pub fn features(&self, bar: &Bar, range: f64) -> [f32; COUNT] {
        let (side, size) = (self.shares.signum(), self.shares.abs());
        let (to_stop, to_target) = (side * (bar.close - self.stop), side * (self.target - bar.close));
        [
            side,
            self.shares,
            self.shares * bar.close,
            self.entry,
            self.profit,
            100. * self.profit / (size * self.entry),
            f64::from(self.bars_held),
            f64::from(self.bars_since_best),
            to_stop,
            to_target,
            self.best,
            self.worst,
            size * to_stop,
            size * to_target,
            self.profit / size / range.max(1e-9 * bar.close),
            self.profit - self.profit_before,
            self.best - self.profit,
            100. * size * bar.close / self.equity,
            self.cost,
            size * range,
        ]
        .map(|v| v as f32)
    }
}

/// Enters and leaves the market by chance, at closes, with a stop at two and a target at four average true ranges.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Trader {
    /// What the account begins with, in currency.
    pub account: f64,
    /// Share of the account that a position may lose until its stop.
    pub risk: f64,
    /// Chance of an entry at a bar without position.
    pub entry: f64,
    /// Chance of an exit at a bar with one.
    pub exit: f64,
    /// Bars after which a position is left.
    pub longest: u32,
}

impl Default for Trader {
    fn default() -> Self {
        Self { account: 100_000., risk: 0.01, entry: 0.1, exit: 0.02, longest: 40 }
    }
}

impl Trader {
    /// The position after each bar's close. What comes after a bar does not change it.
    pub fn positions(&self, bars: &[Bar], seed: u64) -> Vec<Option<Position>> {
        let mut chance = Stream::new(seed, Purpose::Simulation, 1, 0);
        let (mut account, mut held): (f64, Option<Position>) = (self.account, None);
        let ranges = average_range(bars);
        let mut after = Vec::with_capacity(bars.len());
        for (bar, range) in bars.iter().zip(ranges) {
            // Both are drawn at every bar, so that chance goes on alike whatever was decided.
            let (decision, side) = (chance.uniform(), if chance.uniform() < 0.5 { 1. } else { -1. });
            held = match held.take() {
                Some(mut position) => {
                    position.hold(bar.close);
                    let over =
                        position.is_over(bar.close) || position.bars_held >= self.longest || decision < self.exit;
                    if over {
                        account = (account + position.profit).max(0.1 * self.account);
                    }
                    (!over).then_some(position)
                }
                None if decision < self.entry && range > 0. => {
                    let size = (account * self.risk / (2. * range)).min(account / bar.close).floor().max(1.);
                    let levels = [bar.close - 2. * side * range, bar.close + 4. * side * range];
                    Some(Position::open(side * size, bar.close, levels, (0.005 * size).max(1.), account))
                }
                None => None,
            };
            after.push(held.clone());
        }
        after
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_positions_features_are_those_of_its_definitions() {
        let mut p = Position::open(-10., 100., [104., 92.], 1., 1e4);
        p.hold(97.);
        p.hold(98.);
        let bar = Bar::closing(98.);
        let f = p.features(&bar, 2.).map(f64::from);
        let of = |name: &str| {
            let i = DEFINITIONS.iter().position(|d| d.0 == name).unwrap_or(usize::MAX);
            (f[i] * 1e4).round() / 1e4
        };
        let expected = [
            ("direction", -1.),
            ("shares", -10.),
            ("notional", -980.),
            ("entry_price", 100.),
            ("profit", 19.),
            ("profit_percent", 1.9),
            ("bars_held", 2.),
            ("bars_since_best", 1.),
            ("stop_distance", 6.),
            ("target_distance", 6.),
            ("best_profit", 29.),
            ("worst_profit", -1.),
            ("risk", 60.),
            ("reward", 60.),
            ("profit_in_ranges", 0.95),
            ("profit_change", -10.),
            ("given_back", 10.),
            ("exposure", 9.8),
            ("cost", 1.),
            ("range_value", 20.),
        ];
        assert_eq!(expected.map(|(name, _)| of(name)), expected.map(|(_, v)| v));
        assert!(p.is_over(104.) && p.is_over(92.) && !p.is_over(98.));
    }
}
