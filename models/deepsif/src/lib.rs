//! DeepSIF: networks that tell from EEG what the regions of the cortex do (Sun, Sohrabpour, Worrell and He, PNAS 2022,
//! <https://doi.org/10.1073/pnas.2201128119>).

mod config;
#[cfg(feature = "train")]
pub mod head;
mod loss;
mod network;

pub use config::{Config, FilterActivation, Kind};
pub use loss::{Parts, loss};
pub use network::Network;
