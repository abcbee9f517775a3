//! Llama-family language models (Touvron et al. 2023; SmolLM2, TinyLlama, Llama 2 and 3): RMS norm, rotary positions, grouped
//! attention, SwiGLU, tokens of byte-pair encoding.
//!
//! ```no_run
//! use candle_core::Device;
//! use zoo_llama::{Llama, Sampling};
//!
//! # fn main() -> candle_core::Result<()> {
//! let writer = Llama::load("smollm2-135m.safetensors".as_ref(), &Device::Cpu)?;
//! let sampling = Sampling { tokens: 64, temperature: 0., ..Sampling::default() };
//! println!("{}", writer.generate("The capital of France is", &sampling)?);
//! # Ok(())
//! # }
//! ```
//!
//! `zoo convert --model llama` makes such weights of a folder of Hugging Face's or a GGUF file, and leads back. The crate's feature
//! `train` (on by default) adds data and the task that `zoo train llama` runs.

mod adapter;
mod chat;
mod config;
#[cfg(feature = "train")]
mod corpus;
mod generate;
mod gguf;
#[cfg(feature = "train")]
mod layout;
mod model;
#[cfg(feature = "train")]
mod shards;
#[cfg(feature = "train")]
mod task;
mod tokens;

pub use adapter::{AdapterFile, Base, BaseFile};
pub use chat::Message;
pub use config::{Config, DataSettings, Lora, Scaling};
#[cfg(feature = "train")]
pub use corpus::Batch;
pub use generate::Writer;
pub use model::Llama;
#[cfg(feature = "train")]
pub use task::LlamaTask;
pub use tokens::{Tokens, TokensFile};
pub use zoo_layers::Sampling;
/// candle, in the version whose types show here.
pub use {candle_core, candle_nn};
