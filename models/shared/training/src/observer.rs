use crate::health::Finding;
use crate::{Metrics, Split};

/// What a run reports while it goes.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// Training begins or goes on.
    Start {
        /// Steps done before.
        step: u64,
        /// Steps of the whole run.
        total: u64,
    },
    /// A step is done.
    Step {
        /// Its number, from 1.
        step: u64,
        /// The training loss (mean over micro-steps).
        loss: f64,
        /// Named terms of the loss.
        parts: &'a Metrics,
        /// Its learning rate.
        lr: f64,
        /// Global gradient norm before clipping.
        grad_norm: f64,
    },
    /// A rollout was collected, which the next steps train on.
    Collected {
        /// Steps done before.
        step: u64,
        /// How it went.
        metrics: &'a Metrics,
    },
    /// A split was evaluated: the validation part, or the training part where there is no other.
    Evaluated {
        /// After this step; 0 for the initial weights.
        step: u64,
        /// Which.
        split: Split,
        /// The metrics.
        metrics: &'a Metrics,
        /// Whether it is the best so far.
        best: bool,
    },
    /// A checkpoint is on disk.
    Saved {
        /// After this step.
        step: u64,
    },
    /// The run went back to an earlier checkpoint; what it reported after that step counts no longer.
    RolledBack {
        /// The checkpoint's step.
        step: u64,
    },
    /// Something is wrong with the gradients that was not before.
    Health(&'a Finding),
    /// Something the user should know.
    Warning(&'a str),
}

/// Listens to a run: progress bars, curves and reports are built on it.
pub trait Observer {
    /// Something happened.
    fn observe(&mut self, event: &Event);
}

impl<F: FnMut(&Event)> Observer for F {
    fn observe(&mut self, event: &Event) {
        self(event);
    }
}

/// Listens to nothing.
pub struct Silent;

impl Observer for Silent {
    fn observe(&mut self, _: &Event) {}
}
