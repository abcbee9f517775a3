//! An account that follows decisions: fills, costs, stops.

use zoo_market::Bar;

use crate::features::Position;

/// What trading costs, and when a position is given up.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rules {
    /// Share of the value traded that commission and slippage take together.
    pub friction: f64,
    /// Average true ranges from the entry to the stop.
    pub stop: f64,
    /// The same to the target.
    pub target: f64,
}

/// Why a position was left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// It was decided.
    Decision,
    /// The stop was reached.
    Stop,
    /// The target was reached.
    Target,
    /// Next to nothing was left.
    Ruin,
    /// The period was over.
    End,
}

impl Reason {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Decision => "decision",
            Self::Stop => "stop",
            Self::Target => "target",
            Self::Ruin => "ruin",
            Self::End => "end",
        }
    }
}

/// A position from entry to exit; one whose size changes is left and entered.
#[derive(Clone, Debug, PartialEq)]
pub struct Trade {
    /// The bar of the entry.
    pub opened: usize,
    /// The bar of the exit.
    pub closed: usize,
    /// Shares; negative if short.
    pub shares: f64,
    /// Price of the entry.
    pub entry: f64,
    /// Price of the exit.
    pub exit: f64,
    /// Profit after all costs, in currency.
    pub profit: f64,
    /// Why it was left.
    pub reason: Reason,
}

/// What an account begins with, in currency.
pub const START: f64 = 100_000.;
/// Share of the start below which an account is ruined.
const RUIN: f64 = 0.01;
/// What a ruined account has at least, in currency: the growth has a logarithm.
const LEFT: f64 = 1.;

/// Money and at most one position.
#[derive(Clone, Debug, PartialEq)]
pub struct Account {
    rules: Rules,
    /// Worth without the position.
    cash: f64,
    /// The exposure that was decided on last, as a share of the equity; 0 after a stop.
    level: f64,
    held: Option<Position>,
    /// The bar of the entry.
    opened: usize,
    /// Value traded since the start, in shares of the equity at that time.
    turnover: f64,
    trades: Vec<Trade>,
}

impl Account {
    /// Money, and no position.
    pub fn new(rules: Rules) -> Self {
        Self { rules, cash: START, level: 0., held: None, opened: 0, turnover: 0., trades: vec![] }
    }

    /// The position after the last close.
    pub fn held(&self) -> Option<&Position> {
        self.held.as_ref()
    }

    /// The exposure at hand, as it was decided.
    pub fn level(&self) -> f64 {
        self.level
    }

    /// Its worth at the last close.
    pub fn equity(&self) -> f64 {
        self.cash + self.held.as_ref().map_or(0., |p| p.profit)
    }

    /// Value traded so far, in shares of the equity at that time.
    pub fn turnover(&self) -> f64 {
        self.turnover
    }

    /// Whether next to nothing is left.
    pub fn is_ruined(&self) -> bool {
        self.equity() < RUIN * START
    }

    /// Trades that ended since the last call.
    pub fn take_trades(&mut self) -> Vec<Trade> {
        std::mem::take(&mut self.trades)
    }

    /// Goes on by bar number `t`, before which the exposure `level` (-1 to 1 of the equity, or more) was decided on and the
    /// average true range was `range`. A change is filled at the open. Then a stop or target within the bar is filled at its
    /// price, or at the open if that lies beyond; of both in one bar, the stop counts. Who is ruined at the close leaves there,
    /// owes nothing and trades no more. ln of the equity's growth.
    pub fn advance(&mut self, level: f64, t: usize, bar: &Bar, range: f64) -> f64 {
        let before = self.equity();
        if self.is_ruined() {
            return 0.;
        }
        if level != self.level {
            self.change(level, t, bar.open, range);
        }
        if let Some((price, reason)) = self.held.as_ref().and_then(|p| reached(p, bar)) {
            self.leave(t, price, 0., reason);
            self.level = 0.;
        }
        if let Some(position) = &mut self.held {
            position.hold(bar.close);
        }
        if self.is_ruined() {
            self.leave(t, bar.close, 0., Reason::Ruin);
            (self.level, self.cash) = (0., self.cash.max(LEFT));
        }
        (self.equity() / before).ln()
    }

    /// Leaves the position at the close of bar `t`.
    pub fn finish(&mut self, t: usize, close: f64) {
        self.leave(t, close, 0., Reason::End);
        self.level = 0.;
    }

    /// To another exposure at `price`.
    fn change(&mut self, level: f64, t: usize, price: f64, range: f64) {
        let (old, worth) = match &self.held {
            Some(p) => (p.shares, self.cash + p.shares * (price - p.entry) - p.cost),
            None => (0., self.cash),
        };
        let new = level * worth.max(0.) / price;
        // What stays the same is not traded.
        let kept = if old * new > 0. { old.abs().min(new.abs()) } else { 0. };
        self.leave(t, price, kept, Reason::Decision);
        self.level = level;
        if new == 0. {
            return;
        }
        let cost = self.pay(new.abs() - kept, price);
        let side = new.signum();
        // Where prices stand still, a stop must not be where they stand.
        let range = range.max(1e-4 * price);
        let (stop, target) = (self.rules.stop * range, self.rules.target * range);
        self.held = Some(Position::open(new, price, [price - side * stop, price + side * target], cost, self.cash));
        self.opened = t;
    }

    /// What trading so many shares costs, which counts as turnover.
    fn pay(&mut self, shares: f64, price: f64) -> f64 {
        self.turnover += shares * price / self.equity().max(RUIN * START);
        self.rules.friction * shares * price
    }

    /// Ends the position, if there is one, without paying for `kept` shares of it.
    fn leave(&mut self, t: usize, exit: f64, kept: f64, reason: Reason) {
        let Some(p) = &self.held else { return };
        let (shares, entry, cost) = (p.shares, p.entry, p.cost);
        let cost = cost + self.pay(shares.abs() - kept, exit);
        let profit = shares * (exit - entry) - cost;
        self.trades.push(Trade { opened: self.opened, closed: t, shares, entry, exit, profit, reason });
        self.cash += profit;
        self.held = None;
    }

    /// Everything that its future depends on.
    pub fn state(&self) -> Vec<f64> {
        let held = self.held.as_ref().map_or([0.; 12], |p| {
            let (held, best) = (f64::from(p.bars_held), f64::from(p.bars_since_best));
            [
                p.shares,
                p.entry,
                p.stop,
                p.target,
                p.cost,
                p.equity,
                held,
                best,
                p.profit,
                p.profit_before,
                p.best,
                p.worst,
            ]
        });
        [self.cash, self.level, self.opened as f64, self.turnover].into_iter().chain(held).collect()
    }

    /// Numbers of a state.
    pub const STATE: usize = 16;

    /// The account of such a state.
    pub fn of(rules: Rules, state: &[f64]) -> Option<Self> {
        let [
            cash,
            level,
            opened,
            turnover,
            shares,
            entry,
            stop,
            target,
            cost,
            equity,
            held,
            since,
            profit,
            before,
            best,
            worst,
        ] = *state
        else {
            return None;
        };
        let position = Position {
            bars_held: held as u32,
            bars_since_best: since as u32,
            profit,
            profit_before: before,
            best,
            worst,
            ..Position::open(shares, entry, [stop, target], cost, equity)
        };
        let held = (shares != 0.).then_some(position);
        Some(Self { rules, cash, level, held, opened: opened as usize, turnover, trades: vec![] })
    }
}

/// Where a bar takes a position out, and why.
fn reached(p: &Position, bar: &Bar) -> Option<(f64, Reason)> {
    let long = p.shares > 0.;
    let (worst, best) = if long { (bar.low, bar.high) } else { (bar.high, bar.low) };
    let side = p.shares.signum();
    // A price beyond a level by the open is filled there, before anything else happens.
    if side * (bar.open - p.target) >= 0. {
        return Some((bar.open, Reason::Target));
    }
    if side * (worst - p.stop) <= 0. {
        return Some((if long { p.stop.min(bar.open) } else { p.stop.max(bar.open) }, Reason::Stop));
    }
    if side * (best - p.target) >= 0. {
        return Some((p.target, Reason::Target));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: Rules = Rules { friction: 0.001, stop: 2., target: 5. };

    fn bar(open: f64, high: f64, low: f64, close: f64) -> Bar {
        Bar { open, high, low, close, volume: 1. }
    }

    fn near(a: f64, b: f64) {
        assert!((a - b).abs() < 1e-6 * b.abs().max(1.), "{a} expected {b}");
    }

    #[test]
    fn a_change_is_filled_at_the_open_and_costs_its_friction() {
        let mut a = Account::new(RULES);
        let growth = a.advance(1., 5, &bar(100., 103., 99., 102.), 1.5);
        // 1000 shares at 100 cost 100; then 2 a share.
        near(a.equity(), 101_900.);
        near(growth, 1.019f64.ln());
        near(a.turnover(), 1.);
        // Held on: nothing is traded, though the exposure has grown.
        a.advance(1., 6, &bar(102., 102.5, 101., 101.5), 1.5);
        near(a.equity(), 101_400.);
        // Turned at 101: the old one leaves for 101, 1000 shares short would be too many: 100,899 / 101.
        a.advance(-1., 7, &bar(101., 101.5, 100., 100.), 1.5);
        let left = 100_000. + 1000. - 100. - 101.;
        let shares = (100_000. + 1000. - 100.) / 101.;
        near(a.equity(), left - 0.1 * shares * 1.01 + shares);
        let trades = a.take_trades();
        assert_eq!((trades.len(), trades[0].opened, trades[0].closed, trades[0].reason), (1, 5, 7, Reason::Decision));
        near(trades[0].profit, 799.);
        assert!(a.take_trades().is_empty() && a.level() == -1.);
        a.finish(7, 100.);
        near(a.equity(), left + a.take_trades()[0].profit);
        assert!(a.held().is_none());
    }

    #[test]
    fn half_a_position_more_costs_half_as_much() {
        let mut a = Account::new(Rules { friction: 0.01, stop: 1e9, target: 1e9 });
        let flat = bar(100., 100., 100., 100.);
        a.advance(0.5, 0, &flat, 1.);
        near(a.equity(), 99_500.);
        a.advance(1., 1, &flat, 1.);
        // To 995 shares from 500.
        near(a.equity(), 99_500. - 495.);
        a.advance(0.5, 2, &flat, 1.);
        near(a.equity(), 99_005. - (995. - 0.5 * 990.05));
        let profits: Vec<f64> = a.take_trades().iter().map(|t| t.profit).collect();
        near(profits[0], -500.);
        near(profits[1], -495. - (995. - 0.5 * 990.05));
    }

    #[test]
    fn stops_and_targets_are_filled_at_their_price_or_at_a_worse_or_better_open() {
        let enter = |side: f64| {
            let mut a = Account::new(Rules { friction: 0., ..RULES });
            a.advance(side, 0, &bar(100., 100., 100., 100.), 1.);
            a
        };
        let out = |side: f64, next: Bar| {
            let mut a = enter(side);
            a.advance(side, 1, &next, 1.);
            (a.held().is_none().then(|| a.take_trades()[0].clone()).map(|t| (t.exit, t.reason)), a.level())
        };
        assert_eq!(out(1., bar(99., 104., 98., 103.)), (Some((98., Reason::Stop)), 0.));
        assert_eq!(out(1., bar(95., 96., 94., 95.)), (Some((95., Reason::Stop)), 0.));
        assert_eq!(out(1., bar(101., 106., 97., 99.)), (Some((98., Reason::Stop)), 0.), "both in one bar");
        assert_eq!(out(1., bar(101., 106., 99., 99.)), (Some((105., Reason::Target)), 0.));
        assert_eq!(out(1., bar(107., 108., 97., 99.)), (Some((107., Reason::Target)), 0.));
        assert_eq!(out(-1., bar(101., 102., 99., 99.)), (Some((102., Reason::Stop)), 0.));
        assert_eq!(out(-1., bar(103., 104., 99., 99.)), (Some((103., Reason::Stop)), 0.));
        assert_eq!(out(-1., bar(99., 100., 94., 96.)), (Some((95., Reason::Target)), 0.));
        assert_eq!(out(1., bar(99., 104., 98.1, 103.)), (None, 1.));
        // After a stop the same decision enters anew.
        let mut a = enter(1.);
        a.advance(1., 1, &bar(99., 99., 90., 91.), 1.);
        a.advance(1., 2, &bar(91., 92., 90., 92.), 1.);
        assert_eq!(a.held().map(|p| p.entry), Some(91.));
    }

    #[test]
    fn an_account_is_its_state_and_ruin_is_seen() {
        let mut a = Account::new(RULES);
        assert_eq!(Account::of(RULES, &a.state()), Some(a.clone()));
        a.advance(-1., 3, &bar(100., 101., 99., 99.), 3.);
        a.advance(-1., 4, &bar(99., 101., 97., 98.), 3.);
        assert_eq!((a.state().len(), Account::of(RULES, &a.state())), (Account::STATE, Some(a.clone())));
        assert!(Account::of(RULES, &[0.; 3]).is_none());
        let growth = a.advance(-1., 5, &bar(400., 400., 400., 400.), 3.);
        assert!(a.is_ruined() && growth.is_finite() && growth < -5., "{growth}");
        // Nothing comes back.
        for close in [90., 500.] {
            assert_eq!(a.advance(1., 6, &bar(close, close, close, close), 3.), 0.);
        }
        assert!(a.equity() == 1. && a.held().is_none());
    }
}
