//! DeepSIF: networks that tell from EEG what the regions of the cortex do (Sun, Sohrabpour, Worrell and He, PNAS 2022,
//! <https://doi.org/10.1073/pnas.2201128119>).
//!
//! ```no_run
//! use candle_core::Device;
//! use zoo_deepsif::DeepSif;
//!
//! # fn main() -> candle_core::Result<()> {
//! let imager = DeepSif::load("weights/deepsif-small.safetensors".as_ref(), &Device::Cpu)?;
//! let eeg = vec![vec![0f32; imager.montage().electrodes.len()]; 500]; // a second of channels, in any unit
//! for (region, strength) in imager.image(&eeg)?.strongest().iter().take(10) {
//!     println!("{region}: {strength:.3}");
//! }
//! # Ok(())
//! # }
//! ```
//!
//! The crate's feature `train` (on by default) adds simulation, data, judgement and the task that `zoo train deepsif` runs.

mod algebra;
mod band;
mod bayes;
mod config;
#[cfg(feature = "train")]
mod data;
#[cfg(feature = "train")]
mod experiments;
#[cfg(feature = "train")]
pub mod head;
mod image;
#[cfg(feature = "train")]
pub mod inverse;
#[cfg(feature = "train")]
mod judge;
#[cfg(feature = "train")]
mod layout;
mod loss;
#[cfg(feature = "train")]
pub mod measure;
mod network;
#[cfg(feature = "train")]
mod predict;
#[cfg(feature = "train")]
mod recording;
#[cfg(feature = "train")]
pub mod simulation;
#[cfg(feature = "train")]
mod stored;
#[cfg(feature = "train")]
mod task;
#[cfg(feature = "train")]
mod view;

#[cfg(feature = "train")]
pub use config::DataSettings;
pub use config::{Config, FilterActivation, Kind};
#[cfg(feature = "train")]
pub use experiments::EXPERIMENTS;
pub use image::{DeepSif, Electrode, Image, Montage, Point, RATE, prepare};
pub use loss::{Parts, loss};
pub use network::Network;
#[cfg(feature = "train")]
pub use predict::ImageOptions;
#[cfg(feature = "train")]
pub use task::DeepSifTask;
/// candle, in the version whose types show here.
pub use {candle_core, candle_nn};
