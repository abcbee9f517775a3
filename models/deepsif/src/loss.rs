use candle_core::{Result, Tensor};
use zoo_layers::ops::sequence_loss;

/// Weight of the sources' magnitude in the loss.
const SPARSITY: f32 = 0.01;
/// Weight of the sources' change from step to step.
const SMOOTHNESS: f32 = 0.001;

/// A loss and what it is made of.
#[derive(Clone, Debug)]
pub struct Parts {
    /// A scalar to differentiate.
    pub total: Tensor,
    /// Squared error, magnitude and squared change in time, unweighted (3).
    pub parts: Tensor,
}

/// Squared error + 0.01 magnitude + 0.001 squared change in time of an `activity` (b, t, sources) against the true one:
/// summed over sources, averaged over samples and time steps.
///
/// # Errors
/// Other shapes.
pub fn loss(activity: &Tensor, target: &Tensor) -> Result<Parts> {
    let (total, parts) = sequence_loss(activity, target, [1., SPARSITY, SMOOTHNESS])?;
    Ok(Parts { total, parts: parts.detach() })
}
