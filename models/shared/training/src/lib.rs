//! Training for candle models: a loop in reading order, schedules, layered configuration, run directories.
//!
//! A model crate implements [`Task`]; [`Trainer`] does the rest and reports to an [`Observer`]. [`Recipe`] adds what a program
//! needs that trains and judges models by name, [`Predict`], [`Generate`] and [`Import`] what else a model can do. Nothing here
//! knows terminals, networks or plots, and messages name keys of the configuration: a program that has flags for them says
//! so itself.
//!
//! `examples/classifier.rs` trains a network of one's own on a table of one's own; `examples/own_loop.rs` does it in a loop of
//! one's own.

mod advice;
pub mod config;
pub mod doctor;
mod error;
mod experience;
mod experiment;
pub mod health;
mod history;
mod loader;
mod metrics;
mod number_table;
mod observer;
pub mod ppo;
mod recipe;
mod record;
mod run;
mod saver;
mod schedule;
pub mod spread;
mod state;
mod task;
mod trainer;

pub use advice::Advice;
pub use config::{
    Config, ConfigOf, NoSettings, OnCritical, OnNonFinite, OptimizerConfig, ScheduleKind, Settings, TrainConfig,
};
pub use error::{Error, Result};
pub use experience::Experience;
pub use experiment::{Block, Experiment, Figure, Findings, Panel, Setup};
pub use history::{Curve, Follower, History};
pub use loader::Batches;
pub use metrics::{Metrics, Name};
pub use number_table::{NumberTable, Scaling};
pub use observer::{Event, Observer, Silent};
pub use recipe::{
    Dataset, Evaluation, Flag, Foreign, Generate, Import, Layout, Picture, Predict, Prediction, Preset, Raster, Recipe,
    Request, Table,
};
pub use record::Difference;
pub use run::{RunDirectory, RunFiles, RunState};
pub use state::{Guard, LossScale, Rollout, State};
pub use task::{Groups, Loss, Split, Task, mean_loss};
pub use trainer::{End, GradientReport, Outcome, RateTest, Trainer, with_products};
