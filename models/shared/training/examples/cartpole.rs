//! PPO in an environment of one's own: the cart and pole of Barto, Sutton and Anderson (*Neuronlike adaptive elements that can
//! solve difficult learning control problems*, IEEE Transactions on Systems, Man and Cybernetics 13, 1983), with the constants
//! and the threshold of Gym's `CartPole-v1`: solved at a mean return of 475 of 500 over 100 episodes.
//!
//! Run it with `cargo run --release -p zoo-training --example cartpole`.

use std::f64::consts::PI;

use candle_core::{Device, Tensor};
use candle_nn::VarBuilder;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use zoo_layers::random::{Purpose, Stream};
use zoo_layers::{Linear, Mode, init};
use zoo_training::config::{AdamConfig, ConfigOf, Overrides, resolve};
use zoo_training::ppo::{self, ActorCritic, Collector, End, Environment, Settings, Transition};
use zoo_training::{
    Event, Experience, Loss, Metrics, Observer, OptimizerConfig, Recipe, Result, Split, Task, TrainConfig, Trainer,
};

/// Mean return of 100 episodes from which the environment counts as solved.
pub(crate) const SOLVED: f64 = 475.;
/// Steps after which an episode is cut off.
const LONGEST: u32 = 500;

/// A cart that is pushed left or right, on it a pole that must not fall.
#[derive(Clone, Copy, Default)]
struct Cart {
    /// Position in m, velocity, angle in radians from upright, angular velocity.
    x: [f64; 4],
    steps: u32,
    total: f64,
}

impl Cart {
    /// Near rest.
    fn new(chance: &mut Stream) -> Self {
        Self { x: [(); 4].map(|()| 0.1 * chance.uniform() - 0.05), ..Self::default() }
    }

    /// Pushes for 0.02 s; whether the pole fell (12° from upright) or the cart left its track (2.4 m either way).
    fn push(&mut self, right: bool) -> bool {
        let [gravity, pole, whole, half, force, time] = [9.8, 0.1, 1.1, 0.5, 10., 0.02];
        let [x, v, angle, spin] = self.x;
        let force = if right { force } else { -force };
        let (sin, cos) = angle.sin_cos();
        let pulled = (force + pole * half * spin * spin * sin) / whole;
        let turn = (gravity * sin - cos * pulled) / (half * (4. / 3. - pole * cos * cos / whole));
        let push = pulled - pole * half * turn * cos / whole;
        self.x = [x + time * v, v + time * push, angle + time * spin, spin + time * turn];
        self.steps += 1;
        self.total += 1.;
        self.x[0].abs() > 2.4 || self.x[2].abs() > 12. * PI / 180.
    }

    fn observation(&self) -> [f32; 4] {
        self.x.map(|v| v as f32)
    }
}

struct Carts {
    carts: Vec<Cart>,
    seed: u64,
    episodes: u64,
    steps: u64,
    /// Returns of episodes since they were last asked for.
    returns: Vec<f64>,
}

impl Carts {
    fn new(n: usize, seed: u64) -> Self {
        let mut carts = Self { carts: vec![], seed, episodes: 0, steps: 0, returns: vec![] };
        for _ in 0..n {
            let cart = carts.fresh();
            carts.carts.push(cart);
        }
        carts
    }

    fn fresh(&mut self) -> Cart {
        self.episodes += 1;
        Cart::new(&mut Stream::new(self.seed, Purpose::Simulation, 0, self.episodes))
    }
}

impl Environment for Carts {
    fn actions(&self) -> usize {
        2
    }

    fn view_width(&self) -> usize {
        4
    }

    fn view(&self, views: &mut Vec<f32>) {
        views.extend(self.carts.iter().flat_map(Cart::observation));
    }

    fn observe(&self, views: &[f32]) -> candle_core::Result<Tensor> {
        Tensor::from_slice(views, (views.len() / 4, 4), &Device::Cpu)
    }

    fn step(&mut self, actions: &[u32]) -> Vec<Transition> {
        let mut steps = vec![];
        for (i, action) in actions.iter().enumerate() {
            let fell = self.carts[i].push(*action == 1);
            let cart = self.carts[i];
            let end = match fell {
                true => End::Terminal,
                false if cart.steps >= LONGEST => End::Truncated(cart.observation().to_vec()),
                false => End::Open,
            };
            if end != End::Open {
                self.returns.push(cart.total);
                self.carts[i] = self.fresh();
            }
            steps.push(Transition { reward: 1., end });
        }
        self.steps += actions.len() as u64;
        steps
    }

    fn metrics(&mut self) -> Metrics {
        let returns = std::mem::take(&mut self.returns);
        [("return", returns.iter().sum::<f64>() / returns.len() as f64), ("steps", self.steps as f64)].into()
    }

    fn state(&self) -> Vec<f64> {
        let carts = self.carts.iter().flat_map(|c| c.x.into_iter().chain([f64::from(c.steps), c.total]));
        [self.episodes as f64, self.steps as f64].into_iter().chain(carts).collect()
    }

    fn restore(&mut self, state: &[f64]) -> bool {
        let [episodes, steps, carts @ ..] = state else { return false };
        if carts.len() != 6 * self.carts.len() {
            return false;
        }
        (self.episodes, self.steps, self.returns) = (*episodes as u64, *steps as u64, vec![]);
        for (cart, saved) in self.carts.iter_mut().zip(carts.chunks(6)) {
            *cart = Cart { x: [saved[0], saved[1], saved[2], saved[3]], steps: saved[4] as u32, total: saved[5] };
        }
        true
    }
}

#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Architecture {
    width: usize,
}

impl Default for Architecture {
    fn default() -> Self {
        Self { width: 64 }
    }
}

#[derive(Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct DataSettings {}

/// Two networks of two hidden layers, as in the paper.
pub(crate) struct Model {
    actor: [Linear; 3],
    critic: [Linear; 3],
}

fn mlp(layers: &[Linear; 3], x: &Tensor) -> candle_core::Result<Tensor> {
    let [first, second, last] = layers;
    last.forward(&second.forward(&first.forward(x)?.tanh()?)?.tanh()?)
}

impl ActorCritic for Model {
    fn act(&self, observation: &Tensor, _: Mode) -> candle_core::Result<(Tensor, Tensor)> {
        Ok((mlp(&self.actor, observation)?, mlp(&self.critic, observation)?.squeeze(1)?))
    }
}

pub(crate) struct Balance;

impl Balance {
    /// Mean return of 100 episodes in which the likelier action is taken.
    fn mean_return(&self, model: &Model) -> candle_core::Result<f64> {
        let mut carts: Vec<Cart> =
            (0..100).map(|i| Cart::new(&mut Stream::new(7, Purpose::Simulation, 1, i))).collect();
        let (mut returns, mut going) = (0., carts.len());
        while going > 0 {
            let seen: Vec<f32> = carts.iter().flat_map(Cart::observation).collect();
            let (logits, _) = model.act(&Tensor::from_vec(seen, (carts.len(), 4), &Device::Cpu)?, Mode::Eval)?;
            let logits = logits.to_vec2::<f32>()?;
            let mut left = vec![];
            for (mut cart, logits) in carts.into_iter().zip(logits) {
                match cart.push(logits[1] > logits[0]) || cart.steps >= LONGEST {
                    true => returns += cart.total,
                    false => left.push(cart),
                }
            }
            carts = left;
            going = carts.len();
        }
        Ok(returns / 100.)
    }
}

/// How the policy is trained.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct PolicySettings {
    ppo: Settings,
}

impl Default for PolicySettings {
    fn default() -> Self {
        let ppo = Settings {
            environments: 8,
            rollout: 32,
            passes: 20,
            gamma: 0.98,
            lambda: 0.8,
            entropy_weight: 0.,
            ..Default::default()
        };
        Self { ppo }
    }
}

impl zoo_training::Settings for PolicySettings {
    fn validate(&self, _: &TrainConfig) -> Result<()> {
        self.ppo.validate()
    }
}

impl Task for Balance {
    const NAME: &'static str = "cartpole";
    type Architecture = Architecture;
    type Data = DataSettings;
    type Settings = PolicySettings;
    type Model = Model;
    type Batch = ppo::Batch;

    fn build(&Architecture { width: w }: &Architecture, vb: VarBuilder) -> candle_core::Result<Model> {
        let net = |name: &str, out: usize, gain: f64| -> candle_core::Result<[Linear; 3]> {
            let layer = |i: usize, from, to, gain| {
                let name = vb.pp(name).pp(i);
                Linear::with_biases(from, to, Some(init::ZEROS), init::xavier_uniform(from, to, gain), name)
            };
            Ok([layer(0, 4, w, 2f64.sqrt())?, layer(1, w, w, 2f64.sqrt())?, layer(2, w, out, gain)?])
        };
        Ok(Model { actor: net("actor", 2, 0.01)?, critic: net("critic", 1, 1.)? })
    }

    fn samples(&self, _: Split) -> usize {
        100
    }

    fn batch(&self, _: Split, _: &[usize]) -> candle_core::Result<ppo::Batch> {
        candle_core::bail!("cartpole: its samples come from acting")
    }

    fn experience(&self, config: &ConfigOf<Self>) -> Result<Option<Box<dyn Experience<Self> + '_>>> {
        let (settings, seed) = (&config.task.ppo, config.train.seed);
        let carts = Carts::new(settings.environments, seed);
        Ok(Some(Box::new(Collector::new(carts, settings, seed, &Device::Cpu)?)))
    }

    fn loss(&self, model: &Model, batch: &ppo::Batch, mode: Mode) -> candle_core::Result<Loss> {
        let (logits, value) = model.act(&batch.observation, mode)?;
        ppo::loss(&logits, &value, batch)
    }

    /// The loss is what is missing of the longest return.
    fn validate(&self, model: &Model, _: Split) -> candle_core::Result<Metrics> {
        let mean = self.mean_return(model)?;
        Ok([("loss", f64::from(LONGEST) - mean), ("return", mean)].into())
    }
}

impl Recipe for Balance {
    const SUMMARY: &'static str = "balances a pole on a cart";
    const DATA: &'static str = "nothing";

    fn training() -> TrainConfig {
        TrainConfig {
            // 100,000 steps of the environment.
            steps: 390 * 20,
            batch_size: 256,
            lr: 1e-3,
            optimizer: OptimizerConfig::AdamW(AdamConfig { eps: 1e-5, weight_decay: 0., ..Default::default() }),
            clip_norm: 0.5,
            schedule: zoo_training::ScheduleKind::Linear,
            eval_every: 1000,
            health_every: 0,
            ..Default::default()
        }
    }

    fn open(_: &Architecture, _: &DataSettings, _: u64, _: Option<&Value>, _: &Device) -> Result<Self> {
        Ok(Self)
    }

    fn describe_data(&self) -> String {
        "a cart and a pole".into()
    }

    fn forward(&self, model: &Model, batch: &ppo::Batch, mode: Mode) -> candle_core::Result<Tensor> {
        Ok(model.act(&batch.observation, mode)?.0)
    }
}

/// Mean returns of the final policy and of the best on the way.
pub(crate) fn train(seed: u64, observer: &mut dyn Observer) -> Result<(f64, f64)> {
    let set = [format!("train.seed={seed}")];
    let config = resolve::<Balance>(&Overrides { set: &set, ..Default::default() })?;
    let outcome = Trainer::new(&Balance, &config, &Device::Cpu)?.train(observer, &|| false)?;
    let last = outcome.metrics.value("return");
    Ok((last, outcome.best.map_or(f64::NAN, |(loss, _)| f64::from(LONGEST) - loss)))
}

struct Print(f64);

impl Observer for Print {
    fn observe(&mut self, event: &Event) {
        match event {
            Event::Collected { metrics, .. } => self.0 = metrics.value("steps"),
            Event::Evaluated { metrics, .. } => {
                println!("  {:>6} steps: mean return {:.1}", self.0, metrics.value("return"))
            }
            _ => {}
        }
    }
}

fn main() -> Result<()> {
    for seed in 1..=5 {
        println!("seed {seed}");
        let (last, _) = train(seed, &mut Print(0.))?;
        println!("  {}", if last >= SOLVED { "solved" } else { "not solved" });
    }
    Ok(())
}
