#![doc = include_str!("../README.md")]

pub mod init;
mod layers;
pub mod onnx;
pub mod ops;
pub mod optim;
mod params;
mod sampling;
pub mod statistics;
mod writing;

pub use layers::{
    Angles, AttentionConfig, BlockConfig, Dropout, Embedding, GatedMlp, GroupedAttention, GroupedConfig, KvCache,
    Linear, LoraConfig, LowRank, Lstm, LstmConfig, LstmOutput, Mlp, MlpConfig, Mode, MultiHeadAttention, Norm,
    NormPlace, Qkv, Rotary, RunningNorm, TransformerBlock, Weight, in_block, last_of_each, recomputed, sinusoids,
    with_recompute,
};
pub use params::{Gradients, Outlined, Param, Params, nearest};
pub use sampling::{Pieces, Sampler, Sampling};
pub use writing::{End, Text, TextModel, advance};
pub use zoo_kernels::random;
/// candle, in the version whose types show here.
pub use {candle_core, candle_nn};

#[cfg(feature = "cuda")]
include!(concat!(env!("OUT_DIR"), "/ptx.rs"));
