//! Training for candle models: a loop in reading order, schedules, layered configuration, run directories.
//!
//! A model crate implements [`Task`]; [`Trainer`] does the rest and reports to an [`Observer`]. Nothing here knows
//! terminals, networks or plots.

mod batches;
pub mod config;
mod error;
mod observer;
mod run;
mod schedule;
mod task;
mod trainer;

pub use batches::Batches;
pub use config::{Config, OptimizerKind, ScheduleKind, TrainConfig};
pub use error::{Error, Result};
pub use observer::{Event, Observer, Silent};
pub use run::{Description, RunDirectory};
pub use task::{Evaluation, Loss, Metrics, Preset, Split, Task};
pub use trainer::{End, GradientReport, Options, Outcome, State, Trainer};
