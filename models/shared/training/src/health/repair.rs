//! What may be done to a model in training, if it is asked for.

use candle_core::{Result, Tensor};
use zoo_layers::random::{Purpose, Stream, layer_id};
use zoo_layers::{Gradients, Params, ops};

use super::{Check, Profile, Role};

/// Share of dead elements above which an attention's projection is given noise.
const DEAD_ATTENTION: f64 = 0.2;
/// Standard deviation of that noise.
const NOISE: f64 = 0.01;
/// How hard a pooling is pulled.
const PULL: f64 = 0.01;
/// Last bars that the pooling is pulled to, and their weight beside the 0.4 that the others share. As the document has it,
/// the weights sum to 2.2; they are divided by that.
const LAST: usize = 3;
const WEIGHT: f64 = 0.6;
const OTHERS: f64 = 0.4;

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

/// Pulls poolings towards the last bars: adds to the gradient of their logits that of half the squared distance between
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
