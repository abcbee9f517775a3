//! Training for candle models: a loop in reading order, schedules, layered configuration, run directories.
//!
//! A model crate implements [`Task`]; [`Trainer`] does the rest and reports to an [`Observer`]. Nothing here knows
//! terminals, networks or plots.

pub mod config;
pub mod doctor;
mod error;
mod experience;
pub mod health;
mod history;
mod loader;
mod observer;
pub mod ppo;
mod run;
mod saver;
mod schedule;
mod state;
mod task;
mod trainer;

pub use config::{Config, OnCritical, OnNonFinite, OptimizerKind, ScheduleKind, TrainConfig};
pub use error::{Error, Result};
pub use experience::Experience;
pub use history::{Curve, History};
pub use loader::Batches;
pub use observer::{Event, Observer, Silent};
pub use run::{RunDirectory, model_of};
pub use state::{Guard, LossScale, Round, State};
pub use task::{
    Dataset, Evaluation, Foreign, Layout, Loss, Metrics, Picture, Prediction, Preset, Raster, Request, Split, Table,
    Task,
};
pub use trainer::{End, GradientReport, Outcome, RateTest, Trainer};
