//! DeepSIF: networks that tell from EEG what the regions of the cortex do (Sun, Sohrabpour, Worrell and He, PNAS 2022,
//! <https://doi.org/10.1073/pnas.2201128119>).

mod config;
#[cfg(feature = "train")]
mod data;
#[cfg(feature = "train")]
mod experiment;
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
pub use experiment::EXPERIMENTS;
pub use image::{DeepSif, Electrode, Image, Montage, Point, prepare};
pub use loss::{Parts, loss};
pub use network::Network;
#[cfg(feature = "train")]
pub use predict::ImageOptions;
#[cfg(feature = "train")]
pub use task::DeepSifTask;
