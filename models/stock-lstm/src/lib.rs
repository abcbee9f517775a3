//! StockLSTM: a two-layer LSTM (Hochreiter and Schmidhuber 1997) over 60 days that forecasts the next day's price.
//!
//! ```no_run
//! use candle_core::Device;
//! use zoo_stock_lstm::StockLstm;
//!
//! # fn main() -> candle_core::Result<()> {
//! let forecaster = StockLstm::load("weights/stock-lstm.safetensors".as_ref(), &Device::Cpu)?;
//! let closes: Vec<f64> = (0..forecaster.days()).map(|day| 100. + day as f64).collect();
//! println!("tomorrow: {:.2}", forecaster.predict(&closes)?);
//! # Ok(())
//! # }
//! ```
//!
//! The crate's feature `train` (on by default) adds data and the task that `zoo train stock-lstm` runs.

#[cfg(feature = "train")]
mod classical;
mod config;
#[cfg(feature = "train")]
mod data;
mod features;
#[cfg(feature = "train")]
mod intervals;
#[cfg(feature = "train")]
mod judge;
mod model;
#[cfg(feature = "train")]
mod predict;
#[cfg(feature = "train")]
mod task;

pub use config::{Config, DataSettings, FeatureSet, Target};
#[cfg(feature = "train")]
pub use data::StockTask;
pub use features::Scaler;
pub use model::{Forecaster, StockLstm};
#[cfg(feature = "train")]
pub use predict::ForecastOptions;
pub use zoo_market::Bar;
/// candle, in the version whose types show here.
pub use {candle_core, candle_nn};
