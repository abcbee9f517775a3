use std::collections::BTreeMap;

use candle_core::Tensor;

use crate::{Metrics, Result, Task};

/// Training samples that a model makes itself, by acting. In rounds: it acts, is trained on what came of it for some passes,
/// and acts anew.
pub trait Experience<T: Task> {
    /// Samples of a round.
    fn samples(&self) -> usize;

    /// Passes over the samples of a round.
    fn passes(&self) -> u64;

    /// Has the model act as it is. What is collected depends on nothing but the model, the round's number and the rounds
    /// before. The metrics tell how it went.
    ///
    /// # Errors
    /// candle's, or the environment's.
    fn collect(&mut self, model: &T::Model, round: u64) -> Result<Metrics>;

    /// Takes as many steps as a round has, by chance and without a model, and makes their observations: what acting costs by itself.
    ///
    /// # Errors
    /// The environment's.
    fn act_by_chance(&mut self) -> Result<()>;

    /// The named samples of the round.
    ///
    /// # Errors
    /// candle's.
    fn batch(&self, indices: &[usize]) -> candle_core::Result<T::Batch>;

    /// Whether a step whose loss had these parts was the last on the samples of this round.
    fn is_spent(&self, parts: &Metrics) -> bool;

    /// Everything that the rest of this round and the later rounds depend on.
    ///
    /// # Errors
    /// candle's.
    fn state(&self) -> Result<Vec<(String, Tensor)>>;

    /// Takes up such a state.
    ///
    /// # Errors
    /// It is of other settings, or damaged.
    fn restore(&mut self, state: &BTreeMap<String, Tensor>) -> Result<()>;
}
