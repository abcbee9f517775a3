//! Layers, fused ops with gradients, parameters, randomness and optimizers for training in candle.
//!
//! candle is a fine inference library; three things are missing when one trains with it, and this crate adds them:
//! ops whose fused kernels have a backward pass ([`ops`]), parameters in definition order with strict loading
//! ([`Params`]), and random numbers that a seed repeats on the CPU ([`random`]). Optimizers whose state can be saved
//! are in [`optim`].
//!
//! Everything works on plain [`candle_core::Tensor`]s, so a single op can be used in any candle model.

pub mod init;
mod layers;
pub mod ops;
pub mod optim;
mod params;
pub mod random;
mod sampling;

pub use layers::{
    AttentionConfig, BlockConfig, Dropout, Embedding, KvCache, Linear, Lstm, LstmConfig, LstmOutput, Mlp, MlpConfig,
    Mode, MultiHeadAttention, Norm, NormPlace, Qkv, TransformerBlock,
};
pub use params::{Gradients, Param, Params, nearest};
pub use sampling::{Sampler, Sampling};
