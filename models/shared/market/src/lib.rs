#![cfg_attr(feature = "data", doc = include_str!("../README.md"))]
#![cfg_attr(not(feature = "data"), doc = "Daily prices: bars.")]

mod bar;
#[cfg(feature = "data")]
mod error;
#[cfg(feature = "data")]
mod prices;
mod reading;
#[cfg(feature = "data")]
mod simulation;

pub use bar::Bar;
#[cfg(feature = "data")]
pub use error::{Error, Result};
#[cfg(feature = "data")]
pub use jiff::civil::Date;
#[cfg(feature = "data")]
pub use prices::{Days, Need, read};
pub use reading::{READING_FLAGS, Reading, ReadingFlag};
#[cfg(feature = "data")]
pub use simulation::{autoregressive, simulate};
