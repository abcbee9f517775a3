//! A transformer that extracts features from 20 bars of a market and the position held.
//!
//! ```no_run
//! use candle_core::Device;
//! use zoo_trading_transformer::{TradingTransformer, features};
//!
//! # fn main() -> candle_core::Result<()> {
//! # let bars: Vec<zoo_trading_transformer::Bar> = vec![];
//! let device = Device::Cpu;
//! let model = TradingTransformer::load("weights/trading-transformer.safetensors".as_ref(), &device)?;
//! // Adjusted bars, oldest first, 200 and more before the ones that are looked at; no position is held.
//! let rows = features::of_bars(&bars, &[]);
//! let observation = features::observation(&rows, bars.len() - 1, model.bars(), &device)?; // (1, 2580)
//! let features = model.features(&observation)?; // (1, 64)
//! # Ok(())
//! # }
//! ```
//!
//! The crate's feature `train` (on by default) adds data, the task that `zoo train trading-transformer` runs, and the
//! reproduction of the gradient death that the model is known for.

#[cfg(feature = "train")]
mod baseline;
mod config;
#[cfg(feature = "train")]
mod data;
#[cfg(feature = "train")]
mod directions;
#[cfg(feature = "train")]
mod experiments;
pub mod features;
mod model;
#[cfg(feature = "train")]
mod predict;
#[cfg(feature = "train")]
pub mod reproduction;
#[cfg(feature = "train")]
mod statistics;
#[cfg(feature = "train")]
mod task;
#[cfg(feature = "train")]
pub mod trading;

pub use config::{Config, DataSettings, Head, InputNorm, SimulatedMarket};
#[cfg(feature = "train")]
pub use data::{Batch, Settings, TradingTask};
#[cfg(feature = "train")]
pub use experiments::EXPERIMENTS;
pub use model::{DIRECTIONS, TradingTransformer};
#[cfg(feature = "train")]
pub use task::PositionOptions;
pub use zoo_market::Bar;
/// candle, in the version whose types show here.
pub use {candle_core, candle_nn};
