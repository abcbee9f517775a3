//! The command line of a program that trains, judges and uses models: one's own, those of the zoo, or both.
//!
//! A program lists its models and gets every verb: `list`, `params`, `train` (and `--resume`), `tune`, `eval`, `predict`,
//! `generate`, `report`, `watch`, `doctor`, `reproduce`, `convert`, `inspect`, `diff`, `verify`, `average`, `pull`, `push`, `bench`,
//! `new` and `completions`, with `--json` and exit codes: 0 done, 1 the work failed, 2 the call was wrong, 3 stopped by a signal and
//! resumable, 130 stopped for good.
//!
//! ```no_run
//! # use std::process::ExitCode;
//! # fn program<MyTask: zoo_training::Predict>() -> ExitCode {
//! use zoo_cli::{Model, Zoo};
//!
//! Zoo::new("mine", env!("CARGO_PKG_VERSION")).model(Model::of::<MyTask>().predicts()).main()
//! # }
//! ```

mod arguments;
mod curves;
mod device;
mod fetch;
mod health;
mod heat;
mod model;
mod output;
mod plot;
mod program;
mod progress;
mod run;
mod settings;
mod signals;
mod system;
mod table;
mod trackers;
mod verbs;
mod weights;

pub use model::{Model, ModelOf};
pub use program::Zoo;
