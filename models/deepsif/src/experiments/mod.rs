//! Experiments with simulated EEG.

mod frontier;
mod simulated_eeg;

use zoo_training::Experiment;

/// Every experiment with this model.
pub const EXPERIMENTS: [Experiment; 2] = [simulated_eeg::EXPERIMENT, frontier::EXPERIMENT];
