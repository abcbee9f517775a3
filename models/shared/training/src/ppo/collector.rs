use std::collections::BTreeMap;

use candle_core::{DType, Device, Result as Computed, Tensor};
use serde_json::Value;
use zoo_layers::Mode;
use zoo_layers::random::{Purpose, Stream};

use super::policy::random;
use super::scale::RewardScale;
use super::{Actions, Batch, KL, Policy, Settings, Space, act, advantages};
use crate::{Error, Experience, Metrics, Result, Task};

/// Observations at once, where the model only looks at them.
const BATCH: usize = 256;
/// Stream of actions drawn before the first rollout.
const BEFORE: u64 = u64::MAX;

/// What PPO trains.
pub trait ActorCritic {
    /// The policy after observations (b, o), and their values (b).
    ///
    /// # Errors
    /// candle's.
    fn act(&self, observation: &Tensor, mode: Mode) -> Computed<(Policy, Tensor)>;

    /// Takes observations (b, o) into the statistics that it normalises them by, if it does: nothing, by default. Statistics
    /// stay as they are while a rollout is collected and trained on; those of the first rollout come from random actions.
    ///
    /// # Errors
    /// candle's.
    fn observed(&self, observation: &Tensor) -> Computed<()> {
        let _ = observation;
        Ok(())
    }
}

/// Environments of one kind that advance together.
pub trait Environment {
    /// What can be done at each step.
    fn space(&self) -> Space;

    /// Numbers that a view has.
    fn view_width(&self) -> usize;

    /// Appends a view of each environment as it is: what its observation is made of, in few numbers.
    fn view(&self, views: &mut Vec<f32>);

    /// Views, one after the other, to observations (b, o).
    ///
    /// # Errors
    /// candle's.
    fn observe(&self, views: &[f32]) -> Computed<Tensor>;

    /// Each takes its action. Those whose episode is over begin another.
    fn step(&mut self, actions: Actions) -> Vec<Transition>;

    /// How it went since the last call.
    fn metrics(&mut self) -> Metrics;

    /// Everything that the future depends on.
    fn state(&self) -> Vec<f64>;

    /// Continues from such a state; false if it is not one of theirs.
    fn restore(&mut self, state: &[f64]) -> bool;
}

/// What a step brought.
#[derive(Clone, Debug, PartialEq)]
pub struct Transition {
    /// The reward.
    pub reward: f64,
    /// Whether the episode is over.
    pub end: End,
}

/// How an episode stands after a step.
#[derive(Clone, Debug, PartialEq)]
pub enum End {
    /// It goes on.
    Open,
    /// It is over, and nothing comes after it.
    Terminal,
    /// It was cut off in this view; more would have come.
    Truncated(Vec<f32>),
}

/// Acts in environments and keeps what PPO learns from.
pub struct Collector<E> {
    environment: E,
    count: usize,
    settings: Settings,
    seed: u64,
    scale: RewardScale,
    device: Device,
    /// (t, n, width)
    views: Vec<f32>,
    /// (t, n, numbers of an action): a choice is a whole number.
    actions: Vec<f32>,
    /// (t, n), as all that follow.
    log_probs: Vec<f32>,
    values: Vec<f32>,
    advantages: Vec<f32>,
}

impl<E: Environment> Collector<E> {
    /// A collector over `settings.environments` environments; `seed` decides the actions.
    ///
    /// # Errors
    /// Settings that cannot work, or another number of environments.
    pub fn new(environment: E, settings: &Settings, seed: u64, device: &Device) -> Result<Self> {
        settings.validate()?;
        let (count, mut views) = (settings.environments, vec![]);
        environment.view(&mut views);
        if views.len() != count * environment.view_width() {
            let there = views.len() / environment.view_width().max(1);
            return Err(Error::Usage(format!("ppo.environments = {count}, but there are {there}")));
        }
        Ok(Self {
            environment,
            count,
            settings: settings.clone(),
            seed,
            scale: RewardScale::new(count),
            device: device.clone(),
            views: vec![],
            actions: vec![],
            log_probs: vec![],
            values: vec![],
            advantages: vec![],
        })
    }

    fn observe(&self, views: &[f32]) -> Computed<Tensor> {
        self.environment.observe(views)?.to_device(&self.device)
    }

    /// A rollout; without a model actions are random, and only the views are of use.
    fn roll_out<M: ActorCritic>(&mut self, model: Option<&M>, number: u64) -> Result<()> {
        let Settings { rollout, gamma, lambda, normalize_reward, .. } = self.settings;
        let (n, space) = (self.count, self.environment.space());
        let (mut rewards, mut ended) = (Vec::with_capacity(n * rollout), Vec::with_capacity(n * rollout));
        for kept in [&mut self.log_probs, &mut self.values, &mut self.views, &mut self.actions] {
            kept.clear();
        }
        let say = |this: &Self, views: &[f32]| -> Computed<(Option<Policy>, Vec<f32>)> {
            let observation = this.observe(views)?;
            Ok(match model {
                Some(model) => act(model, &observation).map(|(policy, values)| (Some(policy), values))?,
                None => (None, vec![0.; n]),
            })
        };
        let mut views = vec![];
        for t in 0..rollout {
            views.clear();
            self.environment.view(&mut views);
            let (policy, values) = say(self, &views)?;
            let mut chance = Stream::new(self.seed, Purpose::Sampling, number, t as u64);
            let (actions, log_probs) = match policy {
                Some(policy) => policy.draw(space, &mut chance)?,
                None => (random(space, n, &mut chance), vec![0.; n]),
            };
            let steps = match space {
                Space::Choices(_) => self.environment.step(Actions::Choices(&whole(&actions))),
                Space::Numbers(_) => self.environment.step(Actions::Numbers(&actions)),
            };
            let over: Vec<bool> = steps.iter().map(|s| s.end != End::Open).collect();
            let raw: Vec<f64> = steps.iter().map(|s| s.reward).collect();
            let mut scaled = match normalize_reward {
                true => self.scale.scale(&raw, &over, gamma),
                false => raw,
            };
            // Truncated episodes are bootstrapped with the critic's value.
            let cut = |s: &Transition| if let End::Truncated(view) = &s.end { Some(view.clone()) } else { None };
            let (indices, last): (Vec<usize>, Vec<Vec<f32>>) =
                steps.iter().enumerate().filter_map(|(i, s)| Some((i, cut(s)?))).unzip();
            if let (Some(model), false) = (model, indices.is_empty()) {
                let (_, worth) = act(model, &self.observe(&last.concat())?)?;
                indices.iter().zip(worth).for_each(|(i, v)| scaled[*i] += gamma * f64::from(v));
            }
            self.log_probs.extend(log_probs);
            self.values.extend(values);
            self.actions.extend(actions);
            self.views.extend_from_slice(&views);
            rewards.extend(scaled.iter().map(|r| *r as f32));
            ended.extend(over);
        }
        views.clear();
        self.environment.view(&mut views);
        let (_, last) = say(self, &views)?;
        self.advantages = advantages(&rewards, &self.values, &ended, &last, gamma, lambda);
        Ok(())
    }

    /// Shows the model what was seen of late.
    fn show<M: ActorCritic>(&self, model: &M) -> Computed<()> {
        let width = self.environment.view_width();
        self.views.chunks(BATCH * width).try_for_each(|views| model.observed(&self.observe(views)?))
    }

    fn kept_actions(&self) -> Computed<Tensor> {
        match self.environment.space() {
            Space::Choices(_) => Tensor::new(whole(&self.actions).as_slice(), &Device::Cpu),
            Space::Numbers(_) => Tensor::new(self.actions.as_slice(), &Device::Cpu),
        }
    }

    /// Explained variance of returns: 1 is perfect, 0 is no better than predicting their mean.
    fn explained(&self) -> f64 {
        let of = |f: &dyn Fn(usize) -> f64| {
            let n = self.values.len().max(1) as f64;
            let mean = (0..self.values.len()).map(f).sum::<f64>() / n;
            (0..self.values.len()).map(|i| (f(i) - mean).powi(2)).sum::<f64>() / n
        };
        let total = of(&|i| f64::from(self.values[i] + self.advantages[i]));
        if total > 0. { 1. - of(&|i| f64::from(self.advantages[i])) / total } else { 0. }
    }
}

/// Choices that are kept as numbers.
fn whole(actions: &[f32]) -> Vec<u32> {
    actions.iter().map(|a| *a as u32).collect()
}

impl<T, E> Experience<T> for Collector<E>
where
    T: Task,
    T::Model: ActorCritic,
    T::Batch: From<Batch>,
    E: Environment,
{
    fn samples(&self) -> usize {
        self.count * self.settings.rollout
    }

    fn passes(&self) -> u64 {
        self.settings.passes
    }

    fn collect(&mut self, model: &T::Model, rollout: u64) -> Result<Metrics> {
        if self.views.is_empty() {
            Experience::<T>::act_randomly(self)?;
        }
        self.show(model)?;
        self.roll_out(Some(model), rollout)?;
        let mut metrics = self.environment.metrics();
        metrics.push("explained_variance", self.explained());
        Ok(metrics)
    }

    fn act_randomly(&mut self) -> Result<()> {
        self.roll_out::<T::Model>(None, BEFORE)?;
        self.environment.metrics();
        Ok(())
    }

    fn batch(&self, indices: &[usize]) -> Computed<T::Batch> {
        let width = self.environment.view_width();
        let views: Vec<f32> =
            indices.iter().flat_map(|i| self.views[i * width..(i + 1) * width].iter().copied()).collect();
        let of = |all: &[f32]| Tensor::from_vec(indices.iter().map(|i| all[*i]).collect(), indices.len(), &self.device);
        let space = self.environment.space();
        let d = space.width();
        let action: Vec<f32> = indices.iter().flat_map(|i| self.actions[i * d..(i + 1) * d].iter().copied()).collect();
        let action = match space {
            Space::Choices(_) => Tensor::from_vec(whole(&action), indices.len(), &self.device)?,
            Space::Numbers(_) => Tensor::from_vec(action, (indices.len(), d), &self.device)?,
        };
        let (value, advantage) = (of(&self.values)?, of(&self.advantages)?);
        let batch = Batch {
            observation: self.observe(&views)?,
            action,
            log_prob: of(&self.log_probs)?,
            target: (&value + &advantage)?,
            value,
            advantage,
            settings: self.settings.clone(),
        };
        Ok(batch.into())
    }

    fn settings(&self) -> Value {
        // Plain numbers and switches, which JSON holds.
        serde_json::to_value(&self.settings).unwrap_or_default()
    }

    fn is_spent(&self, parts: &Metrics) -> bool {
        let target = self.settings.target_kl;
        target > 0. && parts.value(KL) > 1.5 * target
    }

    fn state(&self) -> Result<Vec<(String, Tensor)>> {
        let cpu = &Device::Cpu;
        let tensors = [
            ("views", Tensor::new(self.views.as_slice(), cpu)),
            ("actions", self.kept_actions()),
            ("log_probs", Tensor::new(self.log_probs.as_slice(), cpu)),
            ("values", Tensor::new(self.values.as_slice(), cpu)),
            ("advantages", Tensor::new(self.advantages.as_slice(), cpu)),
            ("reward_scale", Tensor::new(self.scale.state().as_slice(), cpu)),
            ("environments", Tensor::new(self.environment.state().as_slice(), cpu)),
        ];
        tensors.into_iter().map(|(name, t)| Ok((name.to_string(), t?))).collect()
    }

    fn restore(&mut self, state: &BTreeMap<String, Tensor>) -> Result<()> {
        let other = |name: &str| {
            Error::Run(format!("the checkpoint's experience does not fit: {name} is of other environments"))
        };
        let find = |name: &str, dtype| match state.get(name) {
            Some(t) if t.dtype() == dtype => Ok(t.to_device(&Device::Cpu)?),
            _ => Err(other(name)),
        };
        let (n, width) = (self.count * self.settings.rollout, self.environment.view_width());
        let floats = |name: &str, n: usize| match find(name, DType::F32)?.to_vec1::<f32>()? {
            v if v.len() == n => Ok(v),
            _ => Err(other(name)),
        };
        let actions = match self.environment.space() {
            Space::Choices(choices) => {
                let actions = find("actions", DType::U32)?.to_vec1::<u32>()?;
                if actions.len() != n || actions.iter().any(|a| *a as usize >= choices) {
                    return Err(other("actions"));
                }
                actions.into_iter().map(|a| a as f32).collect()
            }
            Space::Numbers(d) => floats("actions", n * d)?,
        };
        let scale = RewardScale::of(&find("reward_scale", DType::F64)?.to_vec1::<f64>()?, self.count);
        let (views, log_probs) = (floats("views", n * width)?, floats("log_probs", n)?);
        let (values, advantages) = (floats("values", n)?, floats("advantages", n)?);
        let scale = scale.ok_or_else(|| other("reward_scale"))?;
        if !self.environment.restore(&find("environments", DType::F64)?.to_vec1::<f64>()?) {
            return Err(other("environments"));
        }
        (self.views, self.actions, self.log_probs, self.values) = (views, actions, log_probs, values);
        (self.advantages, self.scale) = (advantages, scale);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two counters; an episode is cut off after three steps, or over if the action is 1 on its last.
    struct Counters([f32; 2]);

    impl Environment for Counters {
        fn space(&self) -> Space {
            Space::Choices(2)
        }

        fn view_width(&self) -> usize {
            1
        }

        fn view(&self, views: &mut Vec<f32>) {
            views.extend(self.0);
        }

        fn observe(&self, views: &[f32]) -> Computed<Tensor> {
            Tensor::from_slice(views, (views.len(), 1), &Device::Cpu)
        }

        fn step(&mut self, actions: Actions) -> Vec<Transition> {
            let one = |(count, action): (&mut f32, &u32)| {
                *count += 1.;
                let over = *count == 3.;
                let end = match (over, action) {
                    (false, _) => End::Open,
                    (true, 1) => End::Terminal,
                    (true, _) => End::Truncated(vec![*count]),
                };
                *count = if over { 0. } else { *count };
                Transition { reward: 1., end }
            };
            self.0.iter_mut().zip(actions.choices()).map(one).collect()
        }

        fn metrics(&mut self) -> Metrics {
            Metrics::default()
        }

        fn state(&self) -> Vec<f64> {
            self.0.map(f64::from).to_vec()
        }

        fn restore(&mut self, _: &[f64]) -> bool {
            false
        }
    }

    /// Values an observation at ten times itself; always takes `action`.
    struct Sure(usize);

    impl ActorCritic for Sure {
        fn act(&self, observation: &Tensor, _: Mode) -> Computed<(Policy, Tensor)> {
            let row = if self.0 == 0 { [0f32, -100.] } else { [-100., 0.] };
            let logits = Tensor::new(&[row], &Device::Cpu)?.broadcast_as((observation.dim(0)?, 2))?;
            Ok((Policy::Choices(logits.contiguous()?), (observation.squeeze(1)? * 10.)?))
        }
    }

    #[test]
    fn an_episode_that_is_cut_off_is_worth_what_the_critic_expects_and_one_that_is_over_nothing() -> Result<()> {
        let settings = Settings {
            environments: 2,
            rollout: 4,
            gamma: 0.5,
            lambda: 0.,
            normalize_reward: false,
            ..Settings::default()
        };
        for (action, last) in [(0, 1. + 0.5 * 30. - 20.), (1, 1. - 20.)] {
            let mut collector = Collector::new(Counters([0., 0.]), &settings, 1, &Device::Cpu)?;
            collector.roll_out(Some(&Sure(action)), 0)?;
            // One step ahead: 1 + γ·10·(k + 1) - 10·k, the last of the episode as it ended, then the first again.
            let expected = [1. + 5., 1. + 10. - 10., last, 1. + 5.].map(|a| [a as f32; 2]).concat();
            assert_eq!(collector.advantages, expected);
            assert!(collector.log_probs.iter().all(|p| p.abs() < 1e-6));
        }
        let settings = Settings { environments: 3, ..settings };
        let refused = Collector::new(Counters([0.; 2]), &settings, 1, &Device::Cpu).err().map(|e| e.to_string());
        assert!(refused.is_some_and(|e| e.contains("there are 2")));
        Ok(())
    }
}
