//! The market as an environment of PPO: many accounts, each somewhere in the training period.

use candle_core::{Device, Tensor};
use zoo_layers::random::{Purpose, Stream};
use zoo_market::Bar;
use zoo_training::ppo::{Actions, End, Environment, Space, Transition};
use zoo_training::{Metrics, Split};

use super::YEAR;
use super::account::{Account, Rules};
use super::market::Market;
use crate::features::{FEATURES, POSITION};

/// Stream of the positions where episodes begin.
const PLACES: u64 = 3;
/// Features of the market, which come before those of the position.
const MARKET: usize = FEATURES - POSITION;

/// An account on its way along a symbol.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Walk {
    pub(super) symbol: usize,
    /// The last bar known.
    pub(super) t: usize,
    pub(super) account: Account,
    /// Features of the position after each of the last bars, oldest first.
    history: Vec<f32>,
}

impl Walk {
    pub(super) fn new(rules: Rules, bars: usize, symbol: usize, t: usize) -> Self {
        Self { symbol, t, account: Account::new(rules), history: vec![0.; bars * POSITION] }
    }

    /// Symbol, bar and history.
    pub(super) fn view(&self, views: &mut Vec<f32>) {
        // Whole numbers below 2^24 are exact.
        views.extend([self.symbol as f32, self.t as f32]);
        views.extend_from_slice(&self.history);
    }

    /// Goes on to the next bar with this exposure; ln of the equity's growth.
    pub(super) fn advance(&mut self, market: &Market, level: f64) -> f64 {
        let symbol = &market.symbols[self.symbol];
        let range = symbol.ranges[self.t];
        self.t += 1;
        let bar: &Bar = &symbol.days.bars[self.t];
        let growth = self.account.advance(level, self.t, bar, range);
        self.history.copy_within(POSITION.., 0);
        let last = self.history.len() - POSITION;
        let features = self.account.held().map_or([0.; POSITION], |p| p.features(bar, symbol.ranges[self.t]));
        self.history[last..].copy_from_slice(&features);
        growth
    }

    /// Features of the position at the last bar that are not zero.
    fn active(&self) -> usize {
        self.history[self.history.len() - POSITION..].iter().filter(|v| **v != 0.).count()
    }

    /// Numbers of a state.
    fn state_width(market: &Market) -> usize {
        2 + Account::STATE + market.bars * POSITION
    }

    fn state(&self) -> impl Iterator<Item = f64> + '_ {
        let account = [self.symbol as f64, self.t as f64].into_iter().chain(self.account.state());
        account.chain(self.history.iter().map(|v| f64::from(*v)))
    }

    fn of(market: &Market, state: &[f64]) -> Option<Self> {
        let ([symbol, t], rest) = state.split_first_chunk()?;
        let (account, history) = rest.split_at_checked(Account::STATE)?;
        let (symbol, t) = (*symbol as usize, *t as usize);
        market.symbols.get(symbol)?.period(Split::Train).contains(&t).then_some(())?;
        let account = Account::of(market.rules, account)?;
        Some(Self { symbol, t, account, history: history.iter().map(|v| *v as f32).collect() })
    }
}

impl Market {
    /// Numbers of a view.
    pub(super) fn view_width(&self) -> usize {
        2 + self.bars * POSITION
    }

    /// Views to observations (b, s·129) on the CPU.
    pub(super) fn observe(&self, views: &[f32]) -> candle_core::Result<Tensor> {
        let (n, width) = (views.len() / self.view_width(), self.bars * FEATURES);
        let mut rows = Vec::with_capacity(n * width);
        for view in views.chunks(self.view_width()) {
            let (symbol, t) = (&self.symbols[view[0] as usize], view[1] as usize);
            let known = symbol.rows[(t + 1 - self.bars) * MARKET..(t + 1) * MARKET].chunks(MARKET);
            for (market, position) in known.zip(view[2..].chunks(POSITION)) {
                rows.extend_from_slice(market);
                rows.extend_from_slice(position);
            }
        }
        Tensor::from_vec(rows, (n, width), &Device::Cpu)
    }
}

/// What happened since it was last asked for.
#[derive(Clone, Debug, Default)]
struct Tally {
    steps: usize,
    growth: f64,
    trades: usize,
    wins: usize,
    active: usize,
    traded: f64,
    invested: usize,
}

/// Accounts that trade in the training period, each an episode at a time from a place by chance.
pub(super) struct Trading<'a> {
    market: &'a Market,
    walks: Vec<Walk>,
    /// Bars left of each episode.
    left: Vec<usize>,
    longest: usize,
    seed: u64,
    episodes: u64,
    /// Steps of all accounts so far.
    steps: u64,
    tally: Tally,
}

impl<'a> Trading<'a> {
    pub(super) fn new(market: &'a Market, n: usize, longest: usize, seed: u64) -> Self {
        let (walks, left) = (Vec::with_capacity(n), Vec::with_capacity(n));
        let mut all = Self { market, walks, left, longest, seed, episodes: 0, steps: 0, tally: Tally::default() };
        for _ in 0..n {
            let (walk, left) = all.fresh();
            all.walks.push(walk);
            all.left.push(left);
        }
        all
    }

    /// A new episode: any decision of the training period may be its first.
    fn fresh(&mut self) -> (Walk, usize) {
        let mut chance = Stream::new(self.seed, Purpose::Simulation, PLACES, self.episodes);
        self.episodes += 1;
        let mut place = (chance.uniform() * self.market.decisions(Split::Train) as f64) as usize;
        let mut symbol = 0;
        while place >= self.market.symbols[symbol].period(Split::Train).len() {
            place -= self.market.symbols[symbol].period(Split::Train).len();
            symbol += 1;
        }
        let period = self.market.symbols[symbol].period(Split::Train);
        let t = period.start + place;
        (Walk::new(self.market.rules, self.market.bars, symbol, t), self.longest.min(period.end - t))
    }
}

impl Environment for Trading<'_> {
    fn space(&self) -> Space {
        Space::Choices(self.market.levels.len())
    }

    fn view_width(&self) -> usize {
        self.market.view_width()
    }

    fn view(&self, views: &mut Vec<f32>) {
        self.walks.iter().for_each(|w| w.view(views));
    }

    fn observe(&self, views: &[f32]) -> candle_core::Result<Tensor> {
        self.market.observe(views)
    }

    fn step(&mut self, actions: Actions) -> Vec<Transition> {
        let actions = actions.choices();
        let mut steps = Vec::with_capacity(actions.len());
        for (i, action) in actions.iter().enumerate() {
            let walk = &mut self.walks[i];
            let before = walk.account.turnover();
            let reward = walk.advance(self.market, self.market.levels[*action as usize]);
            self.left[i] -= 1;
            let trades = walk.account.take_trades();
            self.tally.trades += trades.len();
            self.tally.wins += trades.iter().filter(|t| t.profit > 0.).count();
            self.tally.traded += walk.account.turnover() - before;
            self.tally.active += walk.active();
            self.tally.invested += usize::from(walk.account.held().is_some());
            self.tally.growth += reward;
            let end = match walk.account.is_ruined() {
                true => End::Terminal,
                false if self.left[i] == 0 => {
                    let mut view = Vec::with_capacity(self.market.view_width());
                    walk.view(&mut view);
                    End::Truncated(view)
                }
                false => End::Open,
            };
            if end != End::Open {
                (self.walks[i], self.left[i]) = self.fresh();
            }
            steps.push(Transition { reward, end });
        }
        self.steps += actions.len() as u64;
        self.tally.steps += actions.len();
        steps
    }

    /// Mean reward a year in percent of the equity's logarithm, closed trades and the share that won, the share of
    /// bars with a position, the share of the 20 position features that are not zero, value traded a year, and steps so far.
    fn metrics(&mut self) -> Metrics {
        let Tally { steps, growth, trades, wins, active, traded, invested } = std::mem::take(&mut self.tally);
        let a_step = |v: f64| v / steps.max(1) as f64;
        Metrics::from([
            ("growth", 100. * YEAR * a_step(growth)),
            ("win_rate", 100. * wins as f64 / trades.max(1) as f64),
            ("trades", trades as f64),
            ("turnover", YEAR * a_step(traded)),
            ("invested", 100. * a_step(invested as f64)),
            ("active_features", 100. * a_step(active as f64) / POSITION as f64),
            ("steps", self.steps as f64),
        ])
    }

    fn state(&self) -> Vec<f64> {
        let left = self.left.iter().map(|n| *n as f64);
        let walks = self.walks.iter().flat_map(Walk::state);
        [self.episodes as f64, self.steps as f64].into_iter().chain(left).chain(walks).collect()
    }

    fn restore(&mut self, state: &[f64]) -> bool {
        let n = self.walks.len();
        let Some(([episodes, steps], rest)) = state.split_first_chunk() else { return false };
        let Some((left, walks)) = rest.split_at_checked(n) else { return false };
        let width = Walk::state_width(self.market);
        let walks: Option<Vec<Walk>> = walks.chunks(width).map(|w| Walk::of(self.market, w)).collect();
        let within = |(w, left): (&Walk, &f64)| {
            *left >= 1. && w.t as f64 + left <= self.market.symbols[w.symbol].period(Split::Train).end as f64
        };
        let whole = rest.len() == n * (1 + width);
        match walks.filter(|w| whole && w.len() == n && w.iter().zip(left).all(within)) {
            Some(walks) => self.walks = walks,
            None => return false,
        }
        self.left = left.iter().map(|v| *v as usize).collect();
        (self.episodes, self.steps, self.tally) = (*episodes as u64, *steps as u64, Tally::default());
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::features::of_bars;
    use crate::{Config, DataSettings};

    fn market() -> zoo_training::Result<Market> {
        let source = DataSettings { simulated_days: 600, simulated_symbols: 2, ..DataSettings::default() };
        Market::open(&Config { bars: 5, ..Config::default() }, &source, 1)
    }

    #[test]
    fn an_observation_is_what_the_features_of_bars_and_positions_are() -> zoo_training::Result<()> {
        let market = market()?;
        let mut walk = Walk::new(market.rules, market.bars, 1, 250);
        let bars = &market.symbols[1].days.bars;
        let mut positions = vec![None; bars.len()];
        for t in 251..300 {
            walk.advance(&market, [1., 1., 1., -1., -1., 0.][t % 6]);
            positions[t] = walk.account.held().cloned();
        }
        let mut view = vec![];
        walk.view(&mut view);
        let expected = of_bars(bars, &positions)[295 * FEATURES..300 * FEATURES].to_vec();
        assert_eq!(market.observe(&view)?.to_vec2::<f32>()?, [expected]);
        // What comes later is not in it.
        let mut other = self::market()?;
        other.symbols[1].days.bars[300..].iter_mut().for_each(|b| b.close *= 2.);
        other.symbols[1].rows = crate::features::of_market(&other.symbols[1].days.bars);
        assert_eq!(other.observe(&view)?.to_vec2::<f32>()?, market.observe(&view)?.to_vec2::<f32>()?);
        Ok(())
    }

    #[test]
    fn episodes_stay_in_the_training_period_and_repeat_by_seed() -> zoo_training::Result<()> {
        let market = market()?;
        let course = |seed: u64, steps: usize| {
            let mut all = Trading::new(&market, 3, 40, seed);
            let mut seen = vec![];
            for k in 0..steps {
                let results = all.step(Actions::Choices(&[0, 2, (k % 3) as u32]));
                assert!(all.walks.iter().all(|w| market.symbols[w.symbol].period(Split::Train).contains(&w.t)));
                for result in &results {
                    if let End::Truncated(view) = &result.end {
                        assert!((view[1] as usize) <= market.symbols[view[0] as usize].period(Split::Train).end);
                    }
                }
                seen.push(results);
            }
            (seen, all)
        };
        let (first, after) = course(1, 300);
        assert!(first == course(1, 300).0 && first != course(2, 300).0);
        assert!(first.iter().flatten().filter(|s| s.end != End::Open).count() > 15);
        // Taken up in the middle it goes the same way.
        let (_, middle) = course(1, 120);
        let mut resumed = Trading::new(&market, 3, 40, 1);
        assert!(resumed.restore(&middle.state()) && resumed.state() == middle.state());
        for (k, expected) in first.iter().enumerate().skip(120) {
            assert_eq!(resumed.step(Actions::Choices(&[0, 2, (k % 3) as u32])), *expected);
        }
        assert_eq!(resumed.state(), after.state());
        assert!(!Trading::new(&market, 4, 40, 1).restore(&middle.state()));
        assert!(!resumed.restore(&[]) && !resumed.restore(&middle.state()[1..]));
        Ok(())
    }
}
