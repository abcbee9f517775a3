//! The document's experiments, done again.

mod gradient_death;
mod planted_signal;

use zoo_training::Experiment;

/// Every experiment with this model.
pub const EXPERIMENTS: [Experiment; 2] = [gradient_death::EXPERIMENT, planted_signal::EXPERIMENT];
