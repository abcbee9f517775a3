//! Layers: parameters and an inherent `forward`.

mod attention;
mod dropout;
mod embedding;
mod grouped;
mod linear;
mod lstm;
mod norm;
mod positions;
mod recompute;
mod running_norm;
mod transformer;
mod weight;

pub use attention::{AttentionConfig, KvCache, MultiHeadAttention, Qkv, in_block, last_of_each};
pub use dropout::Dropout;
pub use embedding::Embedding;
pub use grouped::{Angles, GatedMlp, GroupedAttention, GroupedConfig, Rotary};
pub use linear::Linear;
pub use lstm::{Lstm, LstmConfig, LstmOutput};
pub use norm::Norm;
pub use positions::sinusoids;
pub use recompute::{recomputed, with_recompute};
pub use running_norm::RunningNorm;
pub use transformer::{BlockConfig, Mlp, MlpConfig, NormPlace, TransformerBlock};
pub use weight::{LoraConfig, LowRank, Weight};

/// Whether a forward pass trains or evaluates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Dropout is on, with the masks of this seed and step.
    Train {
        /// Seed of the run.
        seed: u64,
        /// Counts micro-steps: every forward pass of a run has its own.
        step: u64,
    },
    /// Dropout is off.
    Eval,
}
