//! Training for candle models: a loop in reading order, schedules, layered configuration, run directories.
//!
//! A model crate implements [`Task`]; [`Trainer`] does the rest and reports to an [`Observer`]. [`Recipe`] adds what a program
//! needs that trains and judges models by name, [`Predict`], [`Generate`] and [`Import`] what else a model can do. Nothing here
//! knows terminals, networks or plots, and messages name keys of the configuration: a program that has flags for them says
//! so itself.
//!
//! A line through the origin, from one epoch of four samples to the next:
//!
//! ```
//! use candle_core::{Device, Tensor};
//! use candle_nn::{Init, VarBuilder};
//! use zoo_layers::Mode;
//! use zoo_training::{Config, Loss, NoSettings, Silent, Split, Task, TrainConfig, Trainer};
//!
//! struct Line;
//!
//! impl Task for Line {
//!     const NAME: &'static str = "line";
//!     type Architecture = NoSettings;
//!     type Data = NoSettings;
//!     type Settings = NoSettings;
//!     type Model = Tensor;
//!     type Batch = Tensor;
//!
//!     fn build(_: &NoSettings, vb: VarBuilder) -> candle_core::Result<Tensor> {
//!         vb.get_with_hints(1, "slope", Init::Const(0.))
//!     }
//!
//!     fn samples(&self, _: Split) -> usize {
//!         4
//!     }
//!
//!     fn batch(&self, _: Split, indices: &[usize]) -> candle_core::Result<Tensor> {
//!         let x: Vec<f32> = indices.iter().map(|i| 1. + *i as f32).collect();
//!         Tensor::new(x, &Device::Cpu)
//!     }
//!
//!     fn loss(&self, slope: &Tensor, x: &Tensor, _: Mode) -> candle_core::Result<Loss> {
//!         Ok(Loss::new((x.broadcast_mul(slope)? - (x * 3.)?)?.sqr()?.mean_all()?))
//!     }
//! }
//!
//! # fn main() -> zoo_training::Result<()> {
//! let train = TrainConfig { epochs: 200, batch_size: 4, lr: 0.1, ..TrainConfig::default() };
//! let config = Config { model: NoSettings {}, data: NoSettings {}, train, task: NoSettings {} };
//! let outcome = Trainer::new(&Line, &config, &Device::Cpu)?.train(&mut Silent, &|| false)?;
//! assert!(outcome.loss < 1e-3);
//! # Ok(())
//! # }
//! ```
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
mod ranks;
mod recipe;
mod record;
mod run;
mod saver;
mod schedule;
pub mod spread;
mod state;
mod task;
pub mod text;
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
pub use ranks::{Collective, Ranks, Solo, Tree, over_batches};
pub use recipe::{
    AsIs, Dataset, Define, Encoded, Evaluation, Export, Flag, Foreign, Generate, Import, Layout, Memory, Merged, Over,
    Picture, Predict, Prediction, Preset, Raster, Recipe, Request, Table, Tokenize, Trials,
};
pub use record::{Difference, without_folders, without_places};
pub use run::{RunDirectory, RunFiles, RunState};
pub use state::{Guard, LossScale, Rollout, State};
pub use task::{Groups, Loss, Split, Task, mean_loss};
pub use trainer::{End, GradientReport, LARGE, Outcome, RateTest, Trainer, with_products};
/// candle, in the version whose types show here.
pub use {candle_core, candle_nn};
