//! Proximal policy optimization (Schulman, Wolski, Dhariwal, Radford, Klimov 2017, arXiv:1707.06347), with the details of
//! Huang, Dossa, Raffin, Kanervisto, Wang: *The 37 implementation details of PPO*, ICLR Blog Track 2022.
//!
//! With r = π(a|s) / π_old(a|s), advantages A by GAE(γ, λ) and returns R = A + V_old, a batch's loss is
//!
//! ```text
//! policy  = mean max(-A·r, -A·clip(r, 1 - ε, 1 + ε))
//! value   = ½ mean (V - R)², or with clip_value
//!           ½ mean max((V - R)², (V_old + clip(V - V_old, -ε, ε) - R)²)
//! loss    = policy + value_weight · value - entropy_weight · mean entropy of π
//! ```
//!
//! A task whose model is an [`ActorCritic`] gives the trainer a [`Collector`] over its [`Environment`], and [`loss`] as its
//! loss; `examples/control.rs` has four. Actions are choices or numbers ([`Space`]): a [`Policy`] says how likely each is.

mod collector;
mod policy;
mod scale;

use candle_core::{DType, Result, Tensor};
use serde::{Deserialize, Serialize};
use zoo_layers::Mode;

pub use collector::{ActorCritic, Collector, End, Environment, Transition};
pub use policy::{Actions, Policy, Space};

use crate::{Error, Loss};

/// The table `[ppo]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Environments that the model acts in at the same time.
    pub environments: usize,
    /// Steps of each environment in a rollout.
    pub rollout: usize,
    /// Passes over the samples of a rollout (environments times rollout).
    pub passes: u64,
    /// Discount of rewards a step later.
    pub gamma: f64,
    /// Weight of longer returns in the advantage estimate: 0 trusts the critic after one step, 1 never.
    pub lambda: f64,
    /// How far the ratio of new to old chances may leave 1, and the value its old one.
    pub clip: f64,
    /// Whether the value is clipped too. Where rewards are divided by a deviation that still changes, the old value is of
    /// another scale than the new one, and the clip holds the critic back.
    pub clip_value: bool,
    /// Weight of the value's loss, which is half the squared error.
    pub value_weight: f64,
    /// Weight of the entropy.
    pub entropy_weight: f64,
    /// Training on a rollout ends early once the policy's estimated divergence from the one that acted exceeds 1.5 times this, in nats; 0
    /// for never.
    pub target_kl: f64,
    /// Gives the advantages of each batch mean 0 and deviation 1.
    pub normalize_advantage: bool,
    /// Divides rewards by the running deviation of discounted returns, cut at ±10.
    pub normalize_reward: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            environments: 16,
            rollout: 128,
            passes: 4,
            gamma: 0.99,
            lambda: 0.95,
            clip: 0.2,
            clip_value: false,
            value_weight: 1.,
            entropy_weight: 0.01,
            target_kl: 0.,
            normalize_advantage: true,
            normalize_reward: false,
        }
    }
}

impl Settings {
    /// Refuses numbers that cannot work, naming the key.
    ///
    /// # Errors
    /// There is one.
    pub fn validate(&self) -> crate::Result<()> {
        let positive = |v: f64| v.is_finite() && v >= 0.;
        let checks = [
            (self.environments > 0 && self.rollout > 0, "environments and rollout must be at least 1"),
            (
                self.environments.saturating_mul(self.rollout) <= 4_000_000,
                "environments times rollout must be at most 4,000,000: all of a rollout is kept in memory",
            ),
            (self.passes > 0, "passes must be at least 1"),
            ((0. ..=1.).contains(&self.gamma), "gamma must lie in [0, 1]"),
            ((0. ..=1.).contains(&self.lambda), "lambda must lie in [0, 1]"),
            (self.clip.is_finite() && self.clip > 0., "clip must be positive"),
            (
                positive(self.value_weight) && self.value_weight > 0.,
                "value_weight must be positive: the critic has to learn",
            ),
            (positive(self.entropy_weight), "entropy_weight must not be negative"),
            (positive(self.target_kl), "target_kl must not be negative (0 turns it off)"),
        ];
        match checks.into_iter().find(|(ok, _)| !ok) {
            Some((_, message)) => Err(Error::Usage(format!("ppo.{message}"))),
            None => Ok(()),
        }
    }
}

/// Samples of a rollout.
#[derive(Clone, Debug)]
pub struct Batch {
    /// (b, o)
    pub observation: Tensor,
    /// What was chosen: (b) as u32, or numbers (b, d).
    pub action: Tensor,
    /// ln of the chance, or of the density, that it had (b).
    pub log_prob: Tensor,
    /// The value that was expected (b).
    pub value: Tensor,
    /// How much better it went than expected (b).
    pub advantage: Tensor,
    /// What the value should have been (b).
    pub target: Tensor,
    /// What its loss is to be.
    pub settings: Settings,
}

/// The loss of a batch for what the model says of its observations now: a policy and values (b). A mean over the batch.
/// Parts: policy, value and entropy without their weights; `kl`, the mean of r - 1 - ln r, estimates the divergence of the
/// policy from the one that acted (Schulman 2020, *Approximating KL divergence*); `clipped` is the share of samples whose
/// ratio left the range.
///
/// # Errors
/// candle's.
pub fn loss(policy: &Policy, value: &Tensor, batch: &Batch) -> Result<Loss> {
    let Settings { clip, clip_value, value_weight, entropy_weight, normalize_advantage, .. } = batch.settings;
    let value = &value.to_dtype(DType::F32)?; // (b)
    let (log_prob, entropy) = policy.log_prob(&batch.action)?; // (b), scalar
    let log_ratio = (log_prob - &batch.log_prob)?;
    let ratio = log_ratio.exp()?;
    let advantage = match normalize_advantage {
        true => normalized(&batch.advantage)?,
        false => batch.advantage.clone(),
    };
    let policy =
        (ratio.clamp(1. - clip, 1. + clip)? * &advantage)?.minimum(&(&ratio * &advantage)?)?.mean_all()?.neg()?;
    let error = (value - &batch.target)?.sqr()?;
    let error = match clip_value {
        true => {
            let near = (&batch.value + (value - &batch.value)?.clamp(-clip, clip)?)?;
            error.maximum(&(near - &batch.target)?.sqr()?)?
        }
        false => error,
    };
    let value = (error.mean_all()? * 0.5)?;
    let total = ((&policy + (&value * value_weight)?)? - (&entropy * entropy_weight)?)?;
    // Neither has a part in the gradient.
    let (ratio, log_ratio) = (ratio.detach(), log_ratio.detach());
    let kl = ((&ratio - 1.)? - log_ratio)?.mean_all()?;
    let clipped = (ratio - 1.)?.abs()?.gt(clip)?.to_dtype(DType::F32)?.mean_all()?;
    Ok(Loss {
        parts: [("policy", policy), ("value", value), ("entropy", entropy), (KL, kl), ("clipped", clipped)]
            .map(|(name, value)| (name.into(), value))
            .into(),
        total,
    })
}

/// The part of the loss that may end training on a rollout.
const KL: &str = "kl";

/// Mean 0 and deviation 1; a single value is left as it is.
fn normalized(x: &Tensor) -> Result<Tensor> {
    if x.elem_count() < 2 {
        return Ok(x.clone());
    }
    let centred = x.broadcast_sub(&x.mean_all()?)?;
    let deviation = (centred.sqr()?.mean_all()?.sqrt()? + 1e-8)?;
    centred.broadcast_div(&deviation)
}

/// Advantages of a rollout by generalized advantage estimation (Schulman et al. 2016, arXiv:1506.02438). All are (t, n), time
/// after time: `rewards` and `values`, and whether an episode `ended` with the step; `last` (n) are the values of what comes
/// after the rollout. A reward must already hold what an episode that was only cut off is worth.
pub fn advantages(rewards: &[f32], values: &[f32], ended: &[bool], last: &[f32], gamma: f64, lambda: f64) -> Vec<f32> {
    let (n, mut after) = (last.len(), vec![0f64; last.len()]);
    let mut advantages = vec![0f32; rewards.len()];
    for k in (0..rewards.len()).rev() {
        let (next, goes_on) = (values.get(k + n).unwrap_or(&last[k % n]), f64::from(u8::from(!ended[k])));
        let surprise = f64::from(rewards[k]) + goes_on * gamma * f64::from(*next) - f64::from(values[k]);
        after[k % n] = surprise + goes_on * gamma * lambda * after[k % n];
        advantages[k] = after[k % n] as f32;
    }
    advantages
}

/// The policy after observations, and their values on the CPU.
pub(crate) fn act<M: ActorCritic>(model: &M, observation: &Tensor) -> Result<(Policy, Vec<f32>)> {
    let (policy, value) = model.act(observation, Mode::Eval)?;
    Ok((policy, value.to_device(&candle_core::Device::Cpu)?.to_dtype(DType::F32)?.to_vec1()?))
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::*;

    fn batch(ratios: [f32; 4], advantages: [f32; 4], settings: Settings) -> Result<Batch> {
        let of = |v: &[f32]| Tensor::new(v, &Device::Cpu);
        let half = 0.5f32.ln();
        Ok(Batch {
            observation: Tensor::zeros((4, 1), DType::F32, &Device::Cpu)?,
            action: Tensor::new(&[0u32, 1, 0, 1], &Device::Cpu)?,
            log_prob: of(&ratios.map(|r| half - r.ln()))?,
            value: of(&[0.; 4])?,
            advantage: of(&advantages)?,
            target: of(&[1., 1., -1., 0.1])?,
            settings,
        })
    }

    #[test]
    fn the_clipped_objective_has_the_papers_gradient() -> Result<()> {
        // Figure 1 of the paper: no gradient where the ratio has left the range in the direction of the advantage.
        let settings =
            Settings { normalize_advantage: false, value_weight: 0., entropy_weight: 0., ..Default::default() };
        let of = |ratios, advantages| -> Result<(f64, Vec<Vec<f32>>)> {
            let logits = Var::zeros((4, 2), DType::F32, &Device::Cpu)?;
            let value = Tensor::zeros(4, DType::F32, &Device::Cpu)?;
            let total = loss(
                &Policy::Choices(logits.as_tensor().clone()),
                &value,
                &batch(ratios, advantages, settings.clone())?,
            )?
            .total;
            let grads = total.backward()?;
            let grad = grads.get(&logits).map_or(Ok(vec![]), |g| g.to_vec2())?;
            Ok((f64::from(total.to_scalar::<f32>()?), grad))
        };
        let (value, grad) = of([1., 1.5, 0.5, 1.5], [1., 2., -3., -1.])?;
        // Taken: 1·1, 1.2·2, 0.8·(-3), 1.5·(-1).
        assert!((value + (1. + 2.4 - 2.4 - 1.5) / 4.).abs() < 1e-6, "{value}");
        // The ratio's gradient by the logit of the action is r (1 - π) = r / 2.
        for (got, expected) in grad.iter().zip([[-0.125, 0.125], [0., 0.], [0., 0.], [-0.1875, 0.1875]]) {
            assert!(got.iter().zip(expected).all(|(a, b)| (a - b as f32).abs() < 1e-6), "{got:?} {expected:?}");
        }
        Ok(())
    }

    #[test]
    fn values_are_clipped_and_parts_are_named() -> Result<()> {
        let value = Var::new(&[0.1f32, 0.9, 0.5, 0.], &Device::Cpu)?;
        let logits = Tensor::new(&[[0f32, 0.], [3., 3.], [-1., -1.], [9., 9.]], &Device::Cpu)?;
        let settings = Settings { clip_value: true, value_weight: 0.5, ..Settings::default() };
        let batch = batch([1., 1.1, 1.5, 1.], [1.; 4], settings)?;
        let clipped = loss(&Policy::Choices(logits), &value, &batch)?;
        let values = clipped.parts.iter().map(|(name, t)| Ok((name.as_ref(), f64::from(t.to_scalar::<f32>()?))));
        let values = values.collect::<Result<Vec<_>>>()?;
        let part = |name: &str| values.iter().find(|p| p.0 == name).map_or(f64::NAN, |p| p.1);
        // Errors 0.9, max(0.1, 0.8), max(1.5, 1.2) and 0.1, squared.
        assert!((part("value") - 0.5 * (0.81 + 0.64 + 2.25 + 0.01) / 4.).abs() < 1e-6, "{values:?}");
        assert!((part("entropy") - 2f64.ln()).abs() < 1e-6);
        assert_eq!(part("clipped"), 0.25);
        let kl: f64 = [1f64, 1.1, 1.5, 1.].iter().map(|r| (r - 1. - r.ln()) / 4.).sum();
        assert!((part("kl") - kl).abs() < 1e-6);
        // Equal advantages are no advantages.
        assert!(part("policy").abs() < 1e-6);
        let grads = clipped.total.backward()?;
        let grad = grads.get(&value).map_or(Ok(vec![]), |g| g.to_vec1::<f32>())?;
        let expected = [-0.9, 0., 1.5, -0.1].map(|e| 0.5 * e / 4.);
        assert!(grad.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6), "{grad:?}");
        Ok(())
    }

    #[test]
    fn advantages_are_weighted_sums_of_surprises_that_stop_at_an_end() {
        let (rewards, values) = ([1., 0., 2., 0., 0., 5.], [0.5, 0.1, 0.2, 0.3, 1., -1.]);
        let ended = [false, false, true, false, false, false];
        let (gamma, lambda) = (0.9, 0.8);
        // Two environments, three steps.
        let got = advantages(&rewards, &values, &ended, &[10., 20.], gamma, lambda);
        let last = [0. + 0.9 * 10. - 1., 5. + 0.9 * 20. + 1.];
        let middle = [2. - 0.2, 0. + -0.9 - 0.3 + 0.72 * last[1]];
        let first = [1. + 0.9 * 0.2 - 0.5 + 0.72 * middle[0], 0. + 0.9 * 0.3 - 0.1 + 0.72 * middle[1]];
        for (a, b) in got.iter().zip([first, middle, last].concat()) {
            assert!((f64::from(*a) - b).abs() < 1e-5, "{got:?}");
        }
        // λ = 1 sums discounted rewards; λ = 0 trusts the next value.
        let whole = advantages(&[1., 1., 1.], &[0.; 3], &[false; 3], &[0.], 0.5, 1.);
        assert_eq!(whole, [1.75, 1.5, 1.]);
        assert_eq!(advantages(&[1., 1., 1.], &[2.; 3], &[false; 3], &[4.], 0.5, 0.), [0., 0., 1.]);
    }

    #[test]
    fn settings_that_cannot_work_are_named() {
        assert!(Settings::default().validate().is_ok());
        let message = |s: Settings| s.validate().unwrap_err().to_string();
        assert!(message(Settings { gamma: 1.5, ..Default::default() }).starts_with("ppo.gamma"));
        assert!(message(Settings { clip: f64::NAN, ..Default::default() }).starts_with("ppo.clip"));
        assert!(message(Settings { environments: 0, ..Default::default() }).starts_with("ppo.environments"));
    }
}
