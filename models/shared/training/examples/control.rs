//! PPO in environments of one's own: four classics, with the constants of Gymnasium's `CartPole-v1`, `Acrobot-v1`, `Pendulum-v1` and
//! `MountainCarContinuous-v0`, beside the scores that RL Baselines3 Zoo publishes for PPO (its `benchmark.md`, one run each).
//!
//! Run it with `cargo run --release -p zoo-training --example control`, or with the names of some of them behind `--`.

use std::f64::consts::PI;
use std::marker::PhantomData;

use candle_core::{Device, Tensor};
use candle_nn::VarBuilder;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use zoo_layers::random::{Purpose, Stream};
use zoo_layers::{Linear, Mode, RunningNorm, init};
use zoo_training::config::NoSettings;
use zoo_training::config::{AdamConfig, ConfigOf, Overrides, resolve};
use zoo_training::ppo::{self, Actions, ActorCritic, Collector, End, Environment, Policy, Settings, Space, Transition};
use zoo_training::{
    Event, Experience, Loss, Metrics, Observer, OptimizerConfig, Recipe, Result, Split, Task, TrainConfig, Trainer,
};

/// A thing to control. Its state is four numbers at most.
pub(crate) trait System: 'static + Sync + Send + Clone + std::fmt::Debug {
    const NAME: &'static str;
    const SPACE: Space;
    /// Numbers that are seen of it.
    const SEEN: usize;
    /// Steps after which an episode is cut off.
    const LONGEST: u32;
    /// The published score: the mean return of the likeliest actions.
    const PUBLISHED: f64;
    /// Whether what is seen is brought to mean 0 and deviation 1.
    const NORMALIZED: bool;

    fn begin(chance: &mut Stream) -> [f64; 4];

    fn observe(x: &[f64; 4]) -> Vec<f32>;

    /// A choice, or the first number of an action; the reward, and whether it is over.
    fn step(x: &mut [f64; 4], action: f64) -> (f64, bool);

    fn settings() -> Settings;

    fn training() -> TrainConfig;
}

fn uniform(chance: &mut Stream, low: f64, high: f64) -> f64 {
    low + (high - low) * chance.uniform()
}

/// An angle as one between -π and π.
fn wrapped(angle: f64) -> f64 {
    (angle + PI).rem_euclid(2. * PI) - PI
}

fn adam(lr: f64, steps: u64) -> TrainConfig {
    TrainConfig {
        steps,
        batch_size: 256,
        lr,
        optimizer: OptimizerConfig::AdamW(AdamConfig { eps: 1e-5, weight_decay: 0., ..Default::default() }),
        clip_norm: 0.5,
        schedule: zoo_training::ScheduleKind::Linear,
        eval_every: steps / 10,
        health_every: 0,
        ..Default::default()
    }
}

/// A cart that is pushed left or right, on it a pole that must not fall (Barto, Sutton and Anderson 1983): position in m, velocity,
/// angle in radians from upright, angular velocity.
#[derive(Clone, Debug)]
pub(crate) struct CartPole;

impl System for CartPole {
    const NAME: &'static str = "cartpole";
    const SPACE: Space = Space::Choices(2);
    const SEEN: usize = 4;
    const LONGEST: u32 = 500;
    const PUBLISHED: f64 = 500.;
    const NORMALIZED: bool = false;

    fn begin(chance: &mut Stream) -> [f64; 4] {
        [(); 4].map(|()| uniform(chance, -0.05, 0.05))
    }

    fn observe(x: &[f64; 4]) -> Vec<f32> {
        x.iter().map(|v| *v as f32).collect()
    }

    /// Pushes for 0.02 s; over when the pole fell (12° from upright) or the cart left its track (2.4 m either way).
    fn step(x: &mut [f64; 4], action: f64) -> (f64, bool) {
        let [gravity, pole, whole, half, force, time] = [9.8, 0.1, 1.1, 0.5, 10., 0.02];
        let [place, v, angle, spin] = *x;
        let force = if action == 1. { force } else { -force };
        let (sin, cos) = angle.sin_cos();
        let pulled = (force + pole * half * spin * spin * sin) / whole;
        let turn = (gravity * sin - cos * pulled) / (half * (4. / 3. - pole * cos * cos / whole));
        let push = pulled - pole * half * turn * cos / whole;
        *x = [place + time * v, v + time * push, angle + time * spin, spin + time * turn];
        (1., x[0].abs() > 2.4 || x[2].abs() > 12. * PI / 180.)
    }

    fn settings() -> Settings {
        Settings {
            environments: 8,
            rollout: 32,
            passes: 20,
            gamma: 0.98,
            lambda: 0.8,
            entropy_weight: 0.,
            // The mean of a clip that falls from 0.2, as RL Baselines3 Zoo has it.
            clip: 0.1,
            ..Default::default()
        }
    }

    /// 100,000 steps of the environment.
    fn training() -> TrainConfig {
        adam(1e-3, 390 * 20)
    }
}

/// Two links that hang down; a torque between them is to swing the lower end above a line (Sutton 1996): two angles and
/// their velocities.
#[derive(Clone, Debug)]
pub(crate) struct Acrobot;

impl Acrobot {
    fn slopes([a, b, va, vb]: [f64; 4], torque: f64) -> [f64; 4] {
        // Masses and lengths of 1, centres in the middle, moments of inertia of 1.
        let (gravity, half) = (9.8, 0.5);
        let d1 = half * half + (1. + half * half + 2. * half * b.cos()) + 2.;
        let d2 = half * half + half * b.cos() + 1.;
        let phi2 = half * gravity * (a + b - PI / 2.).cos();
        let phi1 = -half * vb * vb * b.sin() - 2. * half * vb * va * b.sin()
            + (half + 1.) * gravity * (a - PI / 2.).cos()
            + phi2;
        let turn_b = (torque + d2 / d1 * phi1 - half * va * va * b.sin() - phi2) / (half * half + 1. - d2 * d2 / d1);
        [va, vb, -(d2 * turn_b + phi1) / d1, turn_b]
    }
}

impl System for Acrobot {
    const NAME: &'static str = "acrobot";
    const SPACE: Space = Space::Choices(3);
    const SEEN: usize = 6;
    const LONGEST: u32 = 500;
    const PUBLISHED: f64 = -73.5;
    const NORMALIZED: bool = true;

    fn begin(chance: &mut Stream) -> [f64; 4] {
        [(); 4].map(|()| uniform(chance, -0.1, 0.1))
    }

    fn observe([a, b, va, vb]: &[f64; 4]) -> Vec<f32> {
        [a.cos(), a.sin(), b.cos(), b.sin(), *va, *vb].map(|v| v as f32).to_vec()
    }

    /// 0.2 s by one step of Runge and Kutta's.
    fn step(x: &mut [f64; 4], action: f64) -> (f64, bool) {
        const TIME: f64 = 0.2;
        let torque = action - 1.;
        let ahead = |k: [f64; 4], share: f64| std::array::from_fn(|i| x[i] + share * TIME * k[i]);
        let k1 = Self::slopes(*x, torque);
        let k2 = Self::slopes(ahead(k1, 0.5), torque);
        let k3 = Self::slopes(ahead(k2, 0.5), torque);
        let k4 = Self::slopes(ahead(k3, 1.), torque);
        let next: [f64; 4] = std::array::from_fn(|i| x[i] + TIME / 6. * (k1[i] + 2. * k2[i] + 2. * k3[i] + k4[i]));
        *x = [wrapped(next[0]), wrapped(next[1]), next[2].clamp(-4. * PI, 4. * PI), next[3].clamp(-9. * PI, 9. * PI)];
        let over = -x[0].cos() - (x[0] + x[1]).cos() > 1.;
        (if over { 0. } else { -1. }, over)
    }

    fn settings() -> Settings {
        Settings {
            environments: 16,
            rollout: 256,
            passes: 4,
            lambda: 0.94,
            entropy_weight: 0.,
            normalize_reward: true,
            ..Default::default()
        }
    }

    /// 600,000 steps of the environment.
    fn training() -> TrainConfig {
        adam(1e-3, 147 * 64)
    }
}

/// A pendulum that is to be swung up and held, by a torque too weak to lift it at once: angle from upright and velocity.
#[derive(Clone, Debug)]
pub(crate) struct Pendulum;

impl System for Pendulum {
    const NAME: &'static str = "pendulum";
    const SPACE: Space = Space::Numbers(1);
    const SEEN: usize = 3;
    const LONGEST: u32 = 200;
    const PUBLISHED: f64 = -172.2;
    const NORMALIZED: bool = false;

    fn begin(chance: &mut Stream) -> [f64; 4] {
        [uniform(chance, -PI, PI), uniform(chance, -1., 1.), 0., 0.]
    }

    fn observe([angle, spin, ..]: &[f64; 4]) -> Vec<f32> {
        [angle.cos(), angle.sin(), *spin].map(|v| v as f32).to_vec()
    }

    fn step(x: &mut [f64; 4], action: f64) -> (f64, bool) {
        const TIME: f64 = 0.05;
        // The action is a share of the greatest torque.
        let torque = 2. * action.clamp(-1., 1.);
        let [angle, spin, ..] = *x;
        let cost = wrapped(angle).powi(2) + 0.1 * spin * spin + 0.001 * torque * torque;
        let spin = (spin + TIME * (15. * angle.sin() + 3. * torque)).clamp(-8., 8.);
        *x = [angle + TIME * spin, spin, 0., 0.];
        (-cost, false)
    }

    fn settings() -> Settings {
        Settings {
            environments: 4,
            rollout: 1024,
            passes: 10,
            gamma: 0.9,
            entropy_weight: 0.,
            normalize_reward: true,
            ..Default::default()
        }
    }

    /// 200,000 steps of the environment.
    fn training() -> TrainConfig {
        adam(1e-3, 49 * 160)
    }
}

/// A car in a valley whose engine is too weak for the hill (Moore 1990): position and velocity.
#[derive(Clone, Debug)]
pub(crate) struct MountainCar;

impl System for MountainCar {
    const NAME: &'static str = "mountain-car";
    const SPACE: Space = Space::Numbers(1);
    const SEEN: usize = 2;
    const LONGEST: u32 = 999;
    const PUBLISHED: f64 = 88.3;
    const NORMALIZED: bool = true;

    fn begin(chance: &mut Stream) -> [f64; 4] {
        [uniform(chance, -0.6, -0.4), 0., 0., 0.]
    }

    fn observe([place, v, ..]: &[f64; 4]) -> Vec<f32> {
        [*place, *v].map(|v| v as f32).to_vec()
    }

    fn step(x: &mut [f64; 4], action: f64) -> (f64, bool) {
        let force = action.clamp(-1., 1.);
        let [place, v, ..] = *x;
        let v = (v + 0.0015 * force - 0.0025 * (3. * place).cos()).clamp(-0.07, 0.07);
        let place = (place + v).clamp(-1.2, 0.6);
        *x = [place, if place == -1.2 { v.max(0.) } else { v }, 0., 0.];
        let over = place >= 0.45 && v >= 0.;
        (if over { 100. } else { 0. } - 0.1 * force * force, over)
    }

    fn settings() -> Settings {
        Settings {
            environments: 16,
            rollout: 256,
            passes: 10,
            gamma: 0.9999,
            lambda: 0.9,
            entropy_weight: 0.,
            normalize_reward: true,
            ..Default::default()
        }
    }

    /// 200,000 steps of the environment.
    fn training() -> TrainConfig {
        adam(1e-3, 49 * 160)
    }
}

/// One of the systems, on its way.
#[derive(Clone, Copy, Default)]
struct Episode {
    x: [f64; 4],
    steps: u32,
    total: f64,
}

impl Episode {
    fn new<S: System>(chance: &mut Stream) -> Self {
        Self { x: S::begin(chance), ..Self::default() }
    }

    fn step<S: System>(&mut self, action: f64) -> (f64, bool) {
        let (reward, over) = S::step(&mut self.x, action);
        self.steps += 1;
        self.total += reward;
        (reward, over)
    }
}

struct Many<S> {
    episodes: Vec<Episode>,
    seed: u64,
    begun: u64,
    steps: u64,
    /// Returns of episodes since they were last asked for.
    returns: Vec<f64>,
    system: PhantomData<S>,
}

impl<S: System> Many<S> {
    fn new(n: usize, seed: u64) -> Self {
        let mut many = Self { episodes: vec![], seed, begun: 0, steps: 0, returns: vec![], system: PhantomData };
        for _ in 0..n {
            let episode = many.fresh();
            many.episodes.push(episode);
        }
        many
    }

    fn fresh(&mut self) -> Episode {
        self.begun += 1;
        Episode::new::<S>(&mut Stream::new(self.seed, Purpose::Simulation, 0, self.begun))
    }
}

fn tensor<S: System>(views: Vec<f32>) -> candle_core::Result<Tensor> {
    let rows = views.len() / S::SEEN;
    Tensor::from_vec(views, (rows, S::SEEN), &Device::Cpu)
}

impl<S: System> Environment for Many<S> {
    fn space(&self) -> Space {
        S::SPACE
    }

    fn view_width(&self) -> usize {
        S::SEEN
    }

    fn view(&self, views: &mut Vec<f32>) {
        views.extend(self.episodes.iter().flat_map(|e| S::observe(&e.x)));
    }

    fn observe(&self, views: &[f32]) -> candle_core::Result<Tensor> {
        tensor::<S>(views.to_vec())
    }

    fn step(&mut self, actions: Actions) -> Vec<Transition> {
        let actions: Vec<f64> = match actions {
            Actions::Choices(choices) => choices.iter().map(|a| f64::from(*a)).collect(),
            Actions::Numbers(numbers) => numbers.iter().map(|a| f64::from(*a)).collect(),
        };
        let mut steps = vec![];
        for (i, action) in actions.iter().enumerate() {
            let (reward, over) = self.episodes[i].step::<S>(*action);
            let episode = self.episodes[i];
            let end = match over {
                true => End::Terminal,
                false if episode.steps >= S::LONGEST => End::Truncated(S::observe(&episode.x)),
                false => End::Open,
            };
            if end != End::Open {
                self.returns.push(episode.total);
                self.episodes[i] = self.fresh();
            }
            steps.push(Transition { reward, end });
        }
        self.steps += actions.len() as u64;
        steps
    }

    fn metrics(&mut self) -> Metrics {
        let returns = std::mem::take(&mut self.returns);
        [("return", returns.iter().sum::<f64>() / returns.len() as f64), ("steps", self.steps as f64)].into()
    }

    fn state(&self) -> Vec<f64> {
        let all = self.episodes.iter().flat_map(|e| e.x.into_iter().chain([f64::from(e.steps), e.total]));
        [self.begun as f64, self.steps as f64].into_iter().chain(all).collect()
    }

    fn restore(&mut self, state: &[f64]) -> bool {
        let [begun, steps, all @ ..] = state else { return false };
        if all.len() != 6 * self.episodes.len() {
            return false;
        }
        (self.begun, self.steps, self.returns) = (*begun as u64, *steps as u64, vec![]);
        for (episode, saved) in self.episodes.iter_mut().zip(all.chunks(6)) {
            *episode = Episode { x: [saved[0], saved[1], saved[2], saved[3]], steps: saved[4] as u32, total: saved[5] };
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

/// Two networks of two hidden layers, as in the paper.
pub(crate) struct Model {
    norm: Option<RunningNorm>,
    actor: [Linear; 3],
    critic: [Linear; 3],
    /// Of numbers; nothing where there are choices.
    log_deviation: Option<Tensor>,
}

fn mlp(layers: &[Linear; 3], x: &Tensor) -> candle_core::Result<Tensor> {
    let [first, second, last] = layers;
    last.forward(&second.forward(&first.forward(x)?.tanh()?)?.tanh()?)
}

impl ActorCritic for Model {
    fn act(&self, observation: &Tensor, _: Mode) -> candle_core::Result<(Policy, Tensor)> {
        let x = match &self.norm {
            Some(norm) => norm.forward(observation, Mode::Eval)?,
            None => observation.clone(),
        };
        let (output, value) = (mlp(&self.actor, &x)?, mlp(&self.critic, &x)?.squeeze(1)?);
        let policy = match &self.log_deviation {
            Some(log_deviation) => Policy::Numbers { mean: output, log_deviation: log_deviation.clone() },
            None => Policy::Choices(output),
        };
        Ok((policy, value))
    }

    fn observed(&self, observation: &Tensor) -> candle_core::Result<()> {
        let Some(norm) = &self.norm else { return Ok(()) };
        norm.forward(observation, Mode::Train { seed: 0, step: 0 }).map(|_| ())
    }
}

pub(crate) struct Control<S>(PhantomData<S>);

impl<S: System> Control<S> {
    pub(crate) fn new() -> Self {
        Self(PhantomData)
    }

    /// Mean return of 100 episodes in which the likeliest action is taken.
    fn mean_return(&self, model: &Model) -> candle_core::Result<f64> {
        let fresh = |i| Episode::new::<S>(&mut Stream::new(7, Purpose::Simulation, 1, i));
        let mut episodes: Vec<Episode> = (0..100).map(fresh).collect();
        let mut returns = 0.;
        while !episodes.is_empty() {
            let seen = episodes.iter().flat_map(|e| S::observe(&e.x)).collect();
            let action = model.act(&tensor::<S>(seen)?, Mode::Eval)?.0.likeliest()?.flatten_all()?;
            let action = action.to_dtype(candle_core::DType::F64)?.to_vec1::<f64>()?;
            let mut left = vec![];
            for (mut episode, action) in episodes.into_iter().zip(action) {
                match episode.step::<S>(action).1 || episode.steps >= S::LONGEST {
                    true => returns += episode.total,
                    false => left.push(episode),
                }
            }
            episodes = left;
        }
        Ok(returns / 100.)
    }
}

/// How the policy is trained.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, bound = "")]
pub(crate) struct PolicySettings<S: System> {
    ppo: Settings,
    #[serde(skip)]
    system: PhantomData<S>,
}

impl<S: System> Default for PolicySettings<S> {
    fn default() -> Self {
        Self { ppo: S::settings(), system: PhantomData }
    }
}

impl<S: System> zoo_training::Settings for PolicySettings<S> {
    fn validate(&self, _: &TrainConfig) -> Result<()> {
        self.ppo.validate()
    }
}

impl<S: System> Task for Control<S> {
    const NAME: &'static str = S::NAME;
    type Architecture = Architecture;
    type Data = NoSettings;
    type Settings = PolicySettings<S>;
    type Model = Model;
    type Batch = ppo::Batch;

    fn build(&Architecture { width: w }: &Architecture, vb: VarBuilder) -> candle_core::Result<Model> {
        let net = |name: &str, out: usize, gain: f64| -> candle_core::Result<[Linear; 3]> {
            let layer = |i: usize, from: usize, to: usize, gain: f64| {
                let name = vb.pp(name).pp(i);
                // As large as an orthogonal matrix of that gain, which other implementations begin with.
                let weight = init::normal(0., gain / (from.max(to) as f64).sqrt());
                Linear::with_biases(from, to, Some(init::ZEROS), weight, name)
            };
            Ok([layer(0, S::SEEN, w, 2f64.sqrt())?, layer(1, w, w, 2f64.sqrt())?, layer(2, w, out, gain)?])
        };
        let (out, log_deviation) = match S::SPACE {
            Space::Choices(n) => (n, None),
            Space::Numbers(d) => (d, Some(vb.get_with_hints(d, "log_deviation", init::ZEROS)?)),
        };
        let norm = S::NORMALIZED.then(|| RunningNorm::new(S::SEEN, 1e-8, vb.pp("norm"))).transpose()?;
        Ok(Model { norm, actor: net("actor", out, 0.01)?, critic: net("critic", 1, 1.)?, log_deviation })
    }

    fn samples(&self, _: Split) -> usize {
        100
    }

    fn batch(&self, _: Split, _: &[usize]) -> candle_core::Result<ppo::Batch> {
        candle_core::bail!("{}: its samples come from acting", S::NAME)
    }

    fn experience(&self, config: &ConfigOf<Self>) -> Result<Option<Box<dyn Experience<Self> + '_>>> {
        let (settings, seed) = (&config.task.ppo, config.train.seed);
        let many = Many::<S>::new(settings.environments, seed);
        Ok(Some(Box::new(Collector::new(many, settings, seed, &Device::Cpu)?)))
    }

    fn loss(&self, model: &Model, batch: &ppo::Batch, mode: Mode) -> candle_core::Result<Loss> {
        let (policy, value) = model.act(&batch.observation, mode)?;
        ppo::loss(&policy, &value, batch)
    }

    /// The loss is what is missing of a return that nobody reaches.
    fn validate(&self, model: &Model, _: Split) -> candle_core::Result<Metrics> {
        let mean = self.mean_return(model)?;
        Ok([("loss", NOBODY - mean), ("return", mean)].into())
    }
}

const NOBODY: f64 = 1000.;

impl<S: System> Recipe for Control<S> {
    const SUMMARY: &'static str = "controls a classic system";
    const DATA: &'static str = "nothing";

    fn training() -> TrainConfig {
        S::training()
    }

    fn open(_: &Architecture, _: &NoSettings, _: u64, _: Option<&Value>, _: &Device) -> Result<Self> {
        Ok(Self::new())
    }

    fn describe_data(&self) -> String {
        S::NAME.into()
    }

    fn forward(&self, model: &Model, batch: &ppo::Batch, mode: Mode) -> candle_core::Result<Tensor> {
        Ok(model.act(&batch.observation, mode)?.0.output().clone())
    }
}

/// Mean returns of the final policy and of the best on the way.
pub(crate) fn train<S: System>(seed: u64, more: &[String], observer: &mut dyn Observer) -> Result<(f64, f64)> {
    let set: Vec<String> = more.iter().cloned().chain([format!("train.seed={seed}")]).collect();
    let config = resolve::<Control<S>>(&Overrides { set: &set, ..Default::default() })?;
    let task = Control::<S>::new();
    let outcome = Trainer::new(&task, &config, &Device::Cpu)?.train(observer, &|| false)?;
    let last = outcome.metrics.value("return");
    Ok((last, outcome.best.map_or(f64::NAN, |(loss, _)| NOBODY - loss)))
}

/// The steps so far, and the curve of mean returns.
#[derive(Default)]
struct Curve(f64, Vec<(f64, f64)>);

impl Observer for Curve {
    fn observe(&mut self, event: &Event) {
        match event {
            Event::Collected { metrics, .. } => self.0 = metrics.value("steps"),
            Event::Evaluated { metrics, .. } => self.1.push((self.0, metrics.value("return"))),
            _ => {}
        }
    }
}

/// Five seeds of a system, as rows of a table.
fn show<S: System>(more: &[String]) -> Result<()> {
    println!("{}: mean return of 100 episodes by the likeliest actions; published {}", S::NAME, S::PUBLISHED);
    let mut curves = vec![];
    for seed in 1..=5 {
        let mut curve = Curve::default();
        train::<S>(seed, more, &mut curve)?;
        let returns: Vec<String> = curve.1.iter().map(|(_, mean)| format!("{mean:7.1}")).collect();
        println!("  seed {seed}  {}", returns.join(" "));
        curves.push(curve.1);
    }
    let mean = |k: usize| curves.iter().map(|c| c[k].1).sum::<f64>() / curves.len() as f64;
    let points = 0..curves.iter().map(Vec::len).min().unwrap_or(0);
    println!("  mean    {}", points.clone().map(|k| format!("{:7.1}", mean(k))).collect::<Vec<_>>().join(" "));
    println!("  steps   {}", points.map(|k| format!("{:7}", curves[0][k].0)).collect::<Vec<_>>().join(" "));
    Ok(())
}

fn main() -> Result<()> {
    let (set, names): (Vec<String>, Vec<String>) = std::env::args().skip(1).partition(|a| a.contains('='));
    let wanted = |name: &str| names.is_empty() || names.iter().any(|n| n == name);
    type Show = fn(&[String]) -> Result<()>;
    let all: [(&str, Show); 4] = [
        (CartPole::NAME, show::<CartPole>),
        (Acrobot::NAME, show::<Acrobot>),
        (Pendulum::NAME, show::<Pendulum>),
        (MountainCar::NAME, show::<MountainCar>),
    ];
    all.into_iter().filter(|(name, _)| wanted(name)).try_for_each(|(_, show)| show(&set))
}
