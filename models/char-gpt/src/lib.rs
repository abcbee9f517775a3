//! A character GPT (Radford et al. 2019, at the size of Karpathy's nanoGPT recipes): learned positions, pre-norm blocks,
//! a final norm and a head that may be tied to the embedding.
//!
//! ```no_run
//! use candle_core::Device;
//! use zoo_char_gpt::{CharGpt, Sampling};
//!
//! # fn main() -> candle_core::Result<()> {
//! let writer = CharGpt::load("weights/char-gpt-cpu.safetensors".as_ref(), &Device::Cpu)?;
//! let sampling = Sampling { tokens: 200, temperature: 0.8, ..Sampling::default() };
//! println!("{}", writer.generate("ROMEO:", &sampling)?);
//! # Ok(())
//! # }
//! ```
//!
//! The crate's feature `train` (on by default) adds data and the task that `zoo train char-gpt` runs.

mod config;
#[cfg(feature = "train")]
mod data;
mod generate;
#[cfg(feature = "train")]
mod layout;
mod model;
#[cfg(feature = "train")]
mod ngram;
#[cfg(feature = "train")]
mod task;
mod vocabulary;

pub use config::{Config, DataSettings, Gelu};
pub use generate::Writer;
pub use model::CharGpt;
#[cfg(feature = "train")]
pub use ngram::NGram;
#[cfg(feature = "train")]
pub use task::CharTask;
pub use vocabulary::Vocabulary;
pub use zoo_layers::Sampling;
#[cfg(feature = "train")]
pub use zoo_training::text::dialogue;
/// candle, in the version whose types show here.
pub use {candle_core, candle_nn};
