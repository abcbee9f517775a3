//! What may be done to a model in training, if it is asked for.

use candle_core::{Result, Tensor};
use serde::{Deserialize, Serialize};
use zoo_layers::random::{Purpose, Stream, layer_id};
use zoo_layers::{Gradients, Params, ops};

use super::{Check, Profile, Role};
use crate::config::Settings;
use crate::{Error, TrainConfig};

/// Share of dead elements above which an attention's projection is given noise.
const DEAD_ATTENTION: f64 = 0.2;
/// Standard deviation of that noise.
const NOISE: f64 = 0.01;
/// How hard a pooling is pulled.
const PULL: f64 = 0.01;
/// Last positions that the pooling is pulled to, and their weight beside the 0.4 that the others share. As the document has it,
/// the weights sum to 2.2; they are divided by that.
const LAST: usize = 3;
const WEIGHT: f64 = 0.6;
const OTHERS: f64 = 0.4;

/// What a task does to its model at a health check.
pub trait Repair {
    /// Changes the gradients of a step that is checked, before its update; whether it did.
    ///
    /// # Errors
    /// candle's.
    fn gradients(&self, params: &Params, grads: &mut Gradients, profile: &Profile) -> Result<bool>;

    /// Changes weights after a check; what was done, a line each.
    ///
    /// # Errors
    /// candle's.
    fn weights(&self, params: &Params, check: &Check, profile: &Profile) -> Result<Vec<String>>;
}

/// The table `[repair]` of tasks with attention: what is done at a health check.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RepairConfig {
    /// Adds noise to attention's projections whose gradient is dead.
    pub revive_attention: bool,
    /// Pulls all poolings towards the last positions.
    pub pooling_nudge: bool,
}

impl RepairConfig {
    /// What it asks for, if anything; noise is drawn from `seed`.
    pub fn repair(self, seed: u64) -> Option<Box<dyn Repair>> {
        (self != Self::default()).then(|| Box::new(Repairs { config: self, seed }) as Box<dyn Repair>)
    }

    /// Refuses a repair without checks to do it at.
    ///
    /// # Errors
    /// `train.health_every` is 0.
    pub fn validate(self, train: &TrainConfig) -> crate::Result<()> {
        match self != Self::default() && train.health_every == 0 {
            true => Err(Error::Usage(
                "train.health_every must be at least 1 where something is done about health ([repair])".into(),
            )),
            false => Ok(()),
        }
    }
}

/// Settings of a task with attention: the table `[repair]`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct AttentionSettings {
    /// What is done at a health check.
    pub repair: RepairConfig,
}

impl Settings for AttentionSettings {
    fn validate(&self, train: &TrainConfig) -> crate::Result<()> {
        self.repair.validate(train)
    }
}

struct Repairs {
    config: RepairConfig,
    seed: u64,
}

impl Repair for Repairs {
    fn gradients(&self, params: &Params, grads: &mut Gradients, profile: &Profile) -> Result<bool> {
        if self.config.pooling_nudge {
            pooling_nudge(params, grads, profile)?;
        }
        Ok(self.config.pooling_nudge)
    }

    fn weights(&self, params: &Params, check: &Check, profile: &Profile) -> Result<Vec<String>> {
        if !self.config.revive_attention {
            return Ok(vec![]);
        }
        let revived = revive_attention(params, check, profile, self.seed)?;
        Ok(revived.into_iter().map(|name| format!("{name} was given noise")).collect())
    }
}

/// Adds noise to attention's projections whose gradient is dead, and sets their biases to zero; the names of those.
///
/// # Errors
/// candle's.
pub fn revive_attention(params: &Params, check: &Check, profile: &Profile, seed: u64) -> Result<Vec<String>> {
    let mut revived = vec![];
    for param in params.trainable().into_iter().filter(|p| profile.role(&p.name) == Role::Attention) {
        let dead = check.parameters.iter().any(|p| p.name == param.name && p.dead > DEAD_ATTENTION);
        if !dead {
            continue;
        }
        if param.name.ends_with("bias") {
            param.var.set(&param.var.zeros_like()?)?;
        } else {
            let mut stream = Stream::new(seed, Purpose::Repair, layer_id(&param.name), check.step);
            let noise: Vec<f32> = (0..param.var.elem_count()).map(|_| (NOISE * stream.normal()) as f32).collect();
            let noise = Tensor::from_vec(noise, param.var.shape(), param.var.device())?;
            param.var.set(&(param.var.as_tensor() + noise)?)?;
        }
        revived.push(param.name);
    }
    Ok(revived)
}

/// Pulls poolings towards the last positions: adds to the gradient of their logits that of half the squared distance between
/// their weights and a target, times 0.01. (The document adds target minus weights, which gradient descent turns into a
/// push away from it.)
///
/// # Errors
/// candle's.
pub fn pooling_nudge(params: &Params, grads: &mut Gradients, profile: &Profile) -> Result<()> {
    for param in params.trainable().into_iter().filter(|p| profile.role(&p.name) == Role::Pooling && p.var.rank() == 1)
    {
        let n = param.var.elem_count();
        let last = LAST.min(n);
        let sum = WEIGHT * last as f64 + if n > last { OTHERS } else { 0. };
        let of = |i: usize| if i + last >= n { WEIGHT } else { OTHERS / (n - last) as f64 };
        let target: Vec<f32> = (0..n).map(|i| (of(i) / sum) as f32).collect();
        let logits = param.var.as_detached_tensor();
        let weights = ops::softmax(&logits.flatten_all()?)?;
        let gap = (&weights - Tensor::from_vec(target, n, logits.device())?)?;
        // Through the softmax: w (gap - Σ w gap).
        let mean = (&weights * &gap)?.sum_all()?;
        let pull = (weights * gap.broadcast_sub(&mean)?)?.affine(PULL, 0.)?.reshape(logits.shape())?;
        grads.add_to(&param.name, &pull)?;
    }
    Ok(())
}
