use std::collections::BTreeMap;

use candle_core::Tensor;
use serde_json::Value;

use crate::{Metrics, Result, Task};

/// Training samples that the model collects by acting, in rollouts: it acts, is trained on the rollout for some passes, and acts
/// anew.
pub trait Experience<T: Task> {
    /// Samples of a rollout.
    fn samples(&self) -> usize;

    /// Passes over the samples of a rollout.
    fn passes(&self) -> u64;

    /// Collects a rollout with the model as it is. It depends on nothing but the model, the rollout's number and the rollouts
    /// before. The metrics tell how it went.
    ///
    /// # Errors
    /// candle's, or the environment's.
    fn collect(&mut self, model: &T::Model, rollout: u64) -> Result<Metrics>;

    /// Runs one rollout with uniformly random actions: what the environment costs by itself.
    ///
    /// # Errors
    /// The environment's.
    fn act_randomly(&mut self) -> Result<()>;

    /// The samples of the rollout at these indices.
    ///
    /// # Errors
    /// candle's.
    fn batch(&self, indices: &[usize]) -> candle_core::Result<T::Batch>;

    /// Whether training on the current rollout should stop early, given the last step's loss terms.
    fn is_spent(&self, parts: &Metrics) -> bool;

    /// What decides what is collected, beside the data: a rollout collected under other settings is not used.
    fn settings(&self) -> Value;

    /// Everything that the rest of this rollout and the later ones depend on.
    ///
    /// # Errors
    /// candle's.
    fn state(&self) -> Result<Vec<(String, Tensor)>>;

    /// Continues from such a state.
    ///
    /// # Errors
    /// It is of other settings, or damaged.
    fn restore(&mut self, state: &BTreeMap<String, Tensor>) -> Result<()>;
}
