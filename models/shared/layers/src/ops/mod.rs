//! Differentiable operations with kernels of their own: one folder an op, forward and backward together.
//!
//! `<op>.cu` beside an op holds its kernels for CUDA and Metal, in the language of `zoo-kernels`' `dialect.h`.
//!
//! Every op has a plain twin in candle's own operations, its `reference()`: the specification, the oracle of its
//! tests, and what runs where there is no kernel (another dtype, a device without one, `ZOO_FUSED=0`).

mod activation;
mod attention;
mod cross_entropy;
pub(crate) mod dropout;
mod embedding;
mod linear;
mod lora;
mod lstm;
mod norm;
mod pool;
mod quantized;
mod regression_loss;
mod residual;
mod rope;
mod sequence_loss;
mod softmax;

pub use activation::{Activation, elu, gated, gelu, gelu_tanh, relu, silu};
pub(crate) use attention::attention_of_texts;
pub use attention::{AttentionOptions, attention};
pub use cross_entropy::{CrossEntropyOptions, cross_entropy, linear_cross_entropy};
pub use dropout::{dropout, mask};
pub use embedding::{embedding, embedding_with_positions};
pub use linear::linear;
pub use lora::{LoraOf, Map, MapWeight, linear_map};
pub use lstm::{LstmState, LstmWeights, lstm};
pub use norm::{NormKind, layer_norm, rms_norm};
pub use pool::pool;
pub use quantized::{Bits, Quantized, quantized_linear};
pub use regression_loss::{huber, mae, mse};
pub use residual::{Affine, AttentionBranch, GatedBranch, GroupedBranch, MlpBranch, PreNorm, Projection, add_dropout};
pub use rope::{RopePairs, RopeScaling, rope, rope_angles, rope_angles_of, rope_frequencies, rope_heads};
pub use sequence_loss::sequence_loss;
pub use softmax::{log_softmax, softmax};
pub use zoo_kernels::cpu::simd::fused;
pub use zoo_kernels::{autocast, backward, backward_from, backward_scaled, foreign};
