//! Does PPO find what is there, and nothing where there is nothing? Policies trained in markets whose returns keep a known share of
//! the return before, beside an oracle that knows the share, and in random walks.

use candle_core::Device;
use serde::Serialize;
use zoo_training::config::{ConfigOf, Overrides, resolve};
use zoo_training::health::{Check, PoolingHealth};
use zoo_training::{Event, Observer, Recipe, Split, Trainer};

use super::backtest::{Record, run as backtest};
use super::oracle::Oracle;
use crate::features::windows::mean;
use crate::{TradingTask, TradingTransformer};

/// Deviation of the simulated returns a bar.
const DEVIATION: f64 = 0.01;

/// How it is done.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Settings {
    /// Optimizer steps of a policy.
    pub steps: u64,
    /// What the planted returns keep of the return before.
    pub coefficient: f64,
    /// Policies; each has a seed and a market of its own.
    pub seeds: u64,
    /// The seed of the first; the others follow.
    pub first_seed: u64,
    /// Symbols of a market.
    pub symbols: usize,
    /// Days of a symbol.
    pub days: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self { steps: 1280, coefficient: 0.3, seeds: 5, first_seed: 1, symbols: 8, days: 3000 }
    }
}

/// How a policy did on days that it had not seen.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    /// Its seed.
    pub seed: u64,
    /// Sharpe ratio a year after costs.
    pub sharpe: f64,
    /// Return in percent after costs.
    pub net_return: f64,
    /// Its trades.
    pub trades: f64,
    /// Share of them that won, in percent.
    pub win_rate: f64,
    /// Sharpe ratio of the oracle on the same days.
    pub oracle_sharpe: f64,
    /// Its return in percent.
    pub oracle_return: f64,
    /// Days that were judged.
    pub days: usize,
    /// What the monitor saw, in means of the last tenth of the run.
    pub monitored: Monitored,
}

/// What the document watched.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Monitored {
    /// Share of zero gradients of `temporal_projection`.
    pub gradient_zeros: f64,
    /// Share of its outputs beyond 3.
    pub saturation: f64,
    /// Norm of all gradients before clipping.
    pub gradient_norm: f64,
    /// Greatest, least and standard deviation of the pooling's weights.
    pub pooling: [f64; 3],
    /// Share of the position's features that are not zero.
    pub active_features: f64,
    /// Share of the trades in training that won.
    pub win_rate: f64,
}

/// The configuration of a policy in a market of this coefficient.
fn config(settings: Settings, coefficient: f64, seed: u64) -> zoo_training::Result<ConfigOf<TradingTask>> {
    let Settings { steps, symbols, days, .. } = settings;
    let set = [
        format!("train.steps={steps}"),
        format!("train.seed={seed}"),
        "train.eval_every=1000000".into(),
        "data.simulated_market=autoregressive".into(),
        format!("data.coefficient={coefficient:?}"),
        format!("data.simulated_symbols={symbols}"),
        format!("data.simulated_days={days}"),
    ];
    resolve::<TradingTask>(&Overrides { preset: Some("ppo"), set: &set, ..Overrides::default() })
}

/// Trains a policy and judges it, unless `going` says no between two steps.
///
/// # Errors
/// candle's, or `folder`, where the run is kept, cannot be written.
pub fn run(
    settings: Settings,
    coefficient: f64,
    seed: u64,
    folder: &std::path::Path,
    going: &dyn Fn() -> bool,
) -> zoo_training::Result<Option<Outcome>> {
    let config = config(settings, coefficient, seed)?;
    let device = Device::Cpu;
    let task = TradingTask::open(&config.model, &config.data, seed, None, &device)?;
    let mut trainer = Trainer::new(&task, &config, &device)?;
    trainer.begin(folder)?;
    let mut heard = Heard { from: settings.steps - settings.steps / 10, ..Heard::default() };
    trainer.train(&mut heard, &|| !going())?;
    if !going() {
        return Ok(None);
    }
    let model = TradingTransformer::new(&config.model, trainer.params().eval_builder())?;
    let Some(policy) = task.policy() else { return Ok(None) };
    let record = policy.record(&model, Split::Test)?;
    let market = &policy.market;
    let oracle = Oracle::new(&market.levels, coefficient, DEVIATION, market.rules.friction);
    let courses = backtest(market, market.rules, Split::Test, |walks| {
        let choose = |w: &&super::environment::Walk| {
            let bars = &market.symbols[w.symbol].days.bars;
            oracle.choose((bars[w.t].close / bars[w.t - 1].close).ln(), w.account.level())
        };
        Ok(walks.iter().map(choose).collect())
    })?;
    let best = Record::of(market, Split::Test, &courses);
    Ok(Some(Outcome {
        seed,
        sharpe: record.metric("sharpe"),
        net_return: record.metric("return"),
        trades: record.metric("trades"),
        win_rate: record.metric("win_rate"),
        oracle_sharpe: best.metric("sharpe"),
        oracle_return: best.metric("return"),
        days: record.returns.len(),
        monitored: monitored(folder, &heard)?,
    }))
}

/// What a run says of its last tenth.
#[derive(Default)]
struct Heard {
    from: u64,
    norms: Vec<f64>,
    /// Step, share of active position features, share of trades that won.
    rollouts: Vec<(u64, f64, f64)>,
}

impl Observer for Heard {
    fn observe(&mut self, event: &Event) {
        match event {
            Event::Step { step, grad_norm, .. } if *step > self.from => self.norms.push(*grad_norm),
            Event::Collected { step, metrics } => {
                let of = |name: &str| metrics.value(name) / 100.;
                self.rollouts.push((*step, of("active_features"), of("win_rate")));
            }
            _ => {}
        }
    }
}

fn monitored(folder: &std::path::Path, heard: &Heard) -> zoo_training::Result<Monitored> {
    let checks = Check::read(folder)?;
    // In a short run the last check and the last rollout may lie before its last tenth.
    let since = |last: Option<u64>| heard.from.min(last.unwrap_or_default());
    let looked = since(checks.last().map(|c| c.step - 1));
    let last: Vec<&Check> = checks.iter().filter(|c| c.step > looked).collect();
    let acted = since(heard.rollouts.last().map(|r| r.0));
    let mean_of = |f: fn(&(u64, f64, f64)) -> f64| {
        mean(&heard.rollouts.iter().filter(|r| r.0 >= acted).map(f).collect::<Vec<_>>())
    };
    let of = |f: &dyn Fn(&Check) -> Option<f64>| mean(&last.iter().filter_map(|c| f(c)).collect::<Vec<_>>());
    let zeros = |c: &Check| c.parameters.iter().find(|g| g.name == "temporal_projection.weight").map(|g| g.zeros);
    let saturated = |c: &Check| c.probes.iter().find(|p| p.name == "temporal_projection").map(|p| p.saturated);
    let pooling = |f: fn(&PoolingHealth) -> f64| of(&|c| c.parameters.iter().find_map(|p| p.pooling.as_ref()).map(f));
    Ok(Monitored {
        gradient_zeros: of(&zeros),
        saturation: of(&saturated),
        gradient_norm: mean(&heard.norms),
        pooling: [pooling(|p| p.max), pooling(|p| p.min), pooling(|p| p.std)],
        active_features: mean_of(|r| r.1),
        win_rate: mean_of(|r| r.2),
    })
}
