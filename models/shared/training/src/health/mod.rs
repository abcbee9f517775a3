//! Gradient health: which parameters still learn, which never did, and why.
//!
//! A [`Monitor`] is shown gradients and named activations ([`Probe`]s) every now and then and keeps a [`Check`] of each
//! look; [`judge`] says what is wrong, since when, and what to do. It works for any candle model:
//! `examples/foreign.rs` watches one that knows nothing of the zoo.
//!
//! # What counts as dead
//! A gradient element is *zero* if |g| < 1e-8 and *relatively zero* if |g| < 1e-6 of its tensor's root mean square. It is
//! *dead* if it is both: a gradient that is small everywhere is small, not dead. A tensor whose gradient is exactly zero is
//! dead as a whole.
//!
//! # What is zero by mathematics
//! These are counted, shown as expected, and left out of every verdict:
//! - The bias of attention's keys. It adds the same amount to all scores of a query, which softmax ignores. In PyTorch's
//!   packed `in_proj_bias` it is the middle third: the 33 % of zeros that look like a pattern of dying.
//! - Rows of a table that the batch did not look up: absent tokens, positions beyond the sequence. They have exactly zero
//!   gradient. A table without any other row is dead all the same.
//! - The first matrix of LoRA in the first step, in which the second is zeros.
//! - Parameters that are frozen.

mod finding;
mod judge;
mod measure;
mod monitor;
mod preflight;
mod repair;

use std::ops::{Range, RangeInclusive};

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

pub use finding::{Finding, Kind, Level, Report};
pub use judge::judge;
pub use measure::{Check, GroupHealth, ParameterHealth, PoolingHealth, ProbeHealth, Watched};
pub use monitor::Monitor;
pub use preflight::preflight;
pub use repair::{AttentionSettings, Repair, RepairConfig, pooling_nudge, revive_attention};

/// |g| below which a gradient element counts as zero.
pub const ZERO: f64 = 1e-8;
/// Share of its tensor's root mean square below which a gradient element counts as relatively zero.
pub const RELATIVE_ZERO: f64 = 1e-6;
/// |x| above which an activation counts as saturated, and an input as out of range.
pub const SATURATED: f64 = 3.;
/// |x| below which an activation counts as dead.
pub const DEAD: f64 = 1e-6;
/// |x| below which, over all it was seen with, a feature never moves.
pub const STILL: f64 = 1e-8;

/// Change of the weights in a step, relative to their norm, below which they hardly move.
pub const SLOW: f64 = 2e-4;
/// The change that steps of healthy runs bring about.
pub const USUAL: f64 = 2e-3;
/// The change above which steps are doubtful.
pub const FAST: f64 = 1e-2;

/// Checks after which initial values have passed.
pub(crate) const SETTLED: usize = 3;

/// What a parameter is there for, which decides how much of its gradient may be zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// The first map of the inputs.
    InputProjection,
    /// Maps to queries, keys and values.
    Attention,
    /// Maps within an MLP.
    Mlp,
    /// The last map of a policy, which begins small on purpose.
    Policy,
    /// Logits of a weighted mean.
    Pooling,
    /// Rows that are looked up.
    Table,
    /// All the rest.
    Other,
}

impl Role {
    /// By the names that PyTorch, GPT-2, Hugging Face and this zoo give; norms are [`Role::Other`].
    pub fn of(name: &str) -> Self {
        if name.contains("norm") || name.contains("ln_") {
            return Self::Other;
        }
        const NAMES: [(Role, &[&str]); 5] = [
            (Role::Table, &["token_embedding", "position_embedding", "word_embedding", "wte.", "wpe.", "embed_tokens"]),
            (
                Role::Attention,
                &[
                    "in_proj",
                    "q_proj",
                    "k_proj",
                    "v_proj",
                    "c_attn",
                    "qkv",
                    "attention.self.query",
                    "attention.self.key",
                    "attention.self.value",
                ],
            ),
            (Role::Mlp, &["linear1", "linear2", "mlp", "c_fc", "fc1", "fc2"]),
            (Role::Pooling, &["pooling"]),
            (Role::InputProjection, &["temporal_projection", "input_projection", "input_proj"]),
        ];
        // A table on its own, in whatever module.
        let mut parts = name.rsplit('.');
        if parts.next() == Some("weight") && matches!(parts.next(), Some("embedding" | "embeddings")) {
            return Self::Table;
        }
        NAMES
            .into_iter()
            .find(|(_, names)| names.iter().any(|n| name.contains(n)))
            .map_or(Role::Other, |(role, _)| role)
    }
}

/// What is normal for a model.
#[derive(Clone, Debug, PartialEq)]
pub struct Profile {
    /// Global gradient norm before clipping above which it explodes, and norm of any gradient below which it vanishes.
    pub norm: Range<f64>,
    /// Recommended learning rates, if known.
    pub lr: Option<RangeInclusive<f64>>,
    /// Recommended limits of the gradient norm, if known.
    pub clip: Option<RangeInclusive<f64>>,
    /// Recommended gains of Glorot's initial values, if known.
    pub gain: Option<RangeInclusive<f64>>,
    /// Roles of parameters by a part of their name, before [`Role::of`] is asked.
    pub roles: Vec<(&'static str, Role)>,
    /// A setting that normalises the inputs, such as `model.input_norm=running`, if the model has one.
    pub normalize: Option<&'static str>,
    /// What to use instead of units that die, in words; nothing where none do.
    pub units: Option<&'static str>,
}

impl Default for Profile {
    fn default() -> Self {
        let units = Some("use GELU or a leaky unit instead of ReLU");
        Self { norm: 1e-6..10., lr: None, clip: None, gain: None, roles: vec![], normalize: None, units }
    }
}

impl Profile {
    /// The role of a parameter.
    pub fn role(&self, name: &str) -> Role {
        self.roles.iter().find(|(part, _)| name.contains(part)).map_or_else(|| Role::of(name), |(_, role)| *role)
    }
}

/// What an activation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ProbeKind {
    /// What comes into the model: features that never move are judged.
    Raw,
    /// What a first map sees: its range and scales are judged, and features that never move.
    Input,
    /// What comes before a nonlinearity or norm: its saturation is judged.
    Preactivation,
    /// What comes behind a nonlinearity: its dead features are judged.
    Activation,
    /// Anything else: judged by whether its values are finite.
    Output,
}

/// A named activation to watch.
#[derive(Clone, Debug)]
pub struct Probe {
    /// Its name, such as that of the layer it comes from.
    pub name: String,
    /// What it is.
    pub kind: ProbeKind,
    /// (…, features)
    pub values: Tensor,
    /// Groups of features by name.
    pub groups: Vec<(&'static str, Range<usize>)>,
}

impl Probe {
    /// An activation without groups; `values` are (…, features).
    pub fn new(name: &str, kind: ProbeKind, values: &Tensor) -> Self {
        Self { name: name.into(), kind, values: values.detach(), groups: vec![] }
    }
}
