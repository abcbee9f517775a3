#![doc = include_str!("../README.md")]

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
#[cfg_attr(not(unix), path = "alone.rs")]
mod ranks;
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
