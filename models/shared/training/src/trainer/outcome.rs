use serde::Serialize;

use crate::Metrics;

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// All steps are done.
    Finished,
    /// The validation loss stopped improving.
    Early,
    /// A signal stopped it; it can be resumed.
    Interrupted,
}

impl End {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Finished => "finished",
            Self::Early => "early",
            Self::Interrupted => "interrupted",
        }
    }
}

/// Which parameters got gradients in a step.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct GradientReport {
    /// Trainable tensors.
    pub tensors: usize,
    /// Those that got a gradient.
    pub with_gradient: usize,
}

/// The result of a run.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// How it ended.
    pub end: End,
    /// Steps of the whole run.
    pub steps: u64,
    /// Seconds of this process.
    pub seconds: f64,
    /// The last training loss.
    pub loss: f64,
    /// The last validation metrics.
    pub metrics: Metrics,
    /// The best validation loss and its step.
    pub best: Option<(f64, u64)>,
    /// Gradients of the last step.
    pub gradients: GradientReport,
    /// Steps whose update was refused, as not finite or as spikes.
    pub refused: u64,
    /// With `train.overfit_batch`: the least loss that any model could have on the batch, if the task knows it.
    pub least_loss: Option<f64>,
}
