//! Configuration: the tables `[model]`, `[data]` and `[train]`, and those that a task adds.

mod migrate;
mod optimizer;
mod resolve;

use candle_core::{DType, Device};
use regex::Regex;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::{Error, Result, Task};

pub use migrate::migrate;
pub use optimizer::{AdamConfig, MuonConfig, OptimizerConfig, RmsPropConfig, SgdConfig};
pub use resolve::{ConfigFile, Overrides, changed, overlaid, resolve, synonyms, to_toml};

/// Everything that decides a run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Config<M, D, S = NoSettings> {
    /// The model's own keys.
    pub model: M,
    /// The data's own keys.
    pub data: D,
    /// The trainer's keys.
    pub train: TrainConfig,
    /// Further tables, of the task's own.
    #[serde(flatten)]
    pub task: S,
}

/// The configuration type of a task.
pub type ConfigOf<T> = Config<<T as Task>::Architecture, <T as Task>::Data, <T as Task>::Settings>;

/// Tables of a task's own beside `[model]`, `[data]` and `[train]`: a struct whose fields are tables.
pub trait Settings: Serialize + DeserializeOwned + Default + Clone {
    /// Refuses values that cannot work, naming the key.
    ///
    /// # Errors
    /// There is one.
    fn validate(&self, train: &TrainConfig) -> Result<()> {
        let _ = train;
        Ok(())
    }
}

/// No further tables.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NoSettings {}

impl Settings for NoSettings {}

/// What the ops of a training step compute in; parameters, optimizer and losses are f32 whatever it is, and so is evaluation. On a CPU in bf16,
/// products of matrices read bf16, and everything else is f32; in f16 candle computes, slowly.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ComputeType {
    /// Single precision.
    F32,
    /// f32, but matrices are multiplied in TF32 on CUDA (eleven bits of precision, f32's range).
    Tf32,
    /// Eight bits of precision, the range of f32.
    Bf16,
    /// Eleven bits of precision, to 65,504: the loss is scaled so that gradients fit.
    F16,
}

impl ComputeType {
    /// The type of the ops' results.
    pub fn compute(self) -> DType {
        match self {
            Self::F32 | Self::Tf32 => DType::F32,
            Self::Bf16 => DType::BF16,
            Self::F16 => DType::F16,
        }
    }

    /// What somebody who asked for it has to know on `device`.
    pub(crate) fn remark(self, device: &Device) -> Option<&'static str> {
        match self {
            Self::F16 if device.is_cpu() => {
                Some("train.dtype=f16: there are no kernels for f16 on a CPU; bf16 has them, and is many times faster")
            }
            Self::Tf32 if !device.is_cuda() => {
                Some("train.dtype=tf32 changes nothing on this device: only CUDA has TF32")
            }
            _ => None,
        }
    }
}

/// How the learning rate changes over the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ScheduleKind {
    /// `lr` throughout (after the warmup).
    Constant,
    /// Half a cosine from `lr` to `min_lr`.
    Cosine,
    /// A line from `lr` to `min_lr`.
    Linear,
    /// Multiplied by `decay_factor` every `decay_every` steps.
    Step,
    /// Multiplied by `decay_factor` after `plateau_patience` evaluations without improvement.
    Plateau,
}

/// What happens at a loss or gradient that is not a finite number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnNonFinite {
    /// The run ends with an error.
    Abort,
    /// The step's update is left out.
    Skip,
    /// Back to the last checkpoint, and on with the batches after the one that failed.
    Rollback,
}

/// What happens when gradient health becomes critical.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnCritical {
    /// A warning is given; training goes on.
    Tell,
    /// The run ends with an error.
    Stop,
    /// The learning rate is halved.
    HalveLr,
    /// Back to the last checkpoint before it began, with half the learning rate.
    Rollback,
}

/// Declares the table `[train]`: each key with its type, its default and, where it is not [`Effect::Result`], its effect.
macro_rules! train_config {
    ($($(#[$doc:meta])+ $key:ident: $type:ty = $default:expr $(, $effect:ident)?;)+) => {
        /// The table `[train]`.
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        #[serde(deny_unknown_fields, default)]
        pub struct TrainConfig {
            $($(#[$doc])+ pub $key: $type,)+
        }

        impl Default for TrainConfig {
            fn default() -> Self {
                Self { $($key: $default,)+ }
            }
        }

        impl TrainConfig {
            /// The keys of this table.
            pub const KEYS: &'static [&'static str] = &[$(stringify!($key)),+];

            /// What the value of a key of this table has an effect on.
            pub(crate) fn effect(key: &str) -> Effect {
                match key {
                    $($(stringify!($key) => Effect::$effect,)?)+
                    _ => Effect::Result,
                }
            }
        }
    };
}

train_config! {
    /// Passes over the training data, if `steps` is 0.
    epochs: u64 = 10;
    /// Optimizer steps; 0 lets `epochs` decide.
    steps: u64 = 0;
    /// Samples a micro-step.
    batch_size: usize = 32;
    /// Micro-steps whose mean gradient makes a step.
    accumulate: u64 = 1;
    /// What the ops of a step compute in: f32, tf32, bf16 or f16.
    dtype: ComputeType = ComputeType::F32;
    /// Decides initial values, order of samples, dropout and simulated data.
    seed: u64 = 42;
    /// Peak learning rate.
    lr: f64 = 1e-3;
    /// Which optimizer, and its constants.
    optimizer: OptimizerConfig = OptimizerConfig::default();
    /// Largest global norm of the gradients; 0 for no clipping.
    clip_norm: f64 = 1.;
    /// How the learning rate changes.
    schedule: ScheduleKind = ScheduleKind::Constant;
    /// Steps over which the learning rate rises from 0 to `lr`.
    warmup_steps: u64 = 0;
    /// Where cosine and linear schedules end, and the least that plateau reduces to.
    min_lr: f64 = 0.;
    /// Steps between reductions of the step schedule.
    decay_every: u64 = 1000;
    /// Factor of the step and plateau schedules.
    decay_factor: f64 = 0.5;
    /// Evaluations without improvement before the plateau schedule reduces the learning rate.
    plateau_patience: u64 = 5;
    /// Evaluations without improvement before the run stops; 0 for never.
    early_stopping: u64 = 0;
    /// Steps between lines of `metrics.jsonl`.
    log_every: u64 = 10, Files;
    /// Steps between evaluations; 0 for once an epoch.
    eval_every: u64 = 0;
    /// Steps between checkpoints; 0 for ten in the whole run.
    checkpoint_every: u64 = 0, Rollback;
    /// Checkpoints that are kept.
    keep: usize = 2, Files;
    /// Weights of the best evaluations that are kept.
    keep_best: usize = 1;
    /// Decay of a moving average of the weights, which is then evaluated and kept as best and last; 0 for none. Update t
    /// decays by (1 + t) / (10 + t) if that is less.
    ema: f64 = 0.;
    /// Batches that a second thread prepares ahead; 0 for none.
    prefetch: usize = 0, Speed;
    /// Computes the activations of each transformer block again in the backward pass instead of keeping them, on a CPU: a step takes
    /// a third longer and less memory.
    recompute: bool = false, Speed;
    /// Seconds that the processes of a run wait for one of them that does not answer; 0 for ever.
    rank_timeout: u64 = 300, Speed;
    /// What happens at a loss or gradient that is not finite.
    on_nonfinite: OnNonFinite = OnNonFinite::Abort;
    /// Such steps that a run may have before it ends with an error all the same.
    nonfinite_limit: u64 = 10;
    /// Leaves out updates whose loss or gradient norm lies so many standard deviations above the mean of the last 128
    /// steps; 0 for never.
    spike_zscore: f64 = 0.;
    /// Steps between gradient-health checks; 0 for none.
    health_every: u64 = 100, Health;
    /// What happens when gradient health becomes critical.
    on_critical: OnCritical = OnCritical::Tell;
    /// Trains on the first batch again and again: a model that cannot learn it by heart is broken.
    overfit_batch: bool = false;
    /// Weights to begin with instead of random ones; a file of the same model.
    init_from: String = String::new(), Files;
    /// Regular expression: parameters in whose names it is found stay as they are. (Statistics that a layer keeps itself
    /// follow the data all the same.)
    freeze: String = String::new();
}

/// What the value of a key has an effect on: a run resumes with others than it was begun with where that is not its result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    /// The result.
    Result,
    /// The files that are written or read, not the result.
    Files,
    /// The checkpoints there are, and the result where a run rolls back to one.
    Rollback,
    /// The health checks there are, and the result where something is done about health.
    Health,
    /// How long it takes; weights do not record it.
    Speed,
}

impl TrainConfig {
    /// What the ops of a step compute in.
    pub fn compute(&self) -> DType {
        self.dtype.compute()
    }

    /// Samples whose activations a health check looks at: a check must cost next to nothing.
    pub fn watched(&self) -> usize {
        const FEWEST: usize = 4;
        const MOST: usize = 16;
        (self.batch_size / 4).clamp(FEWEST, MOST).min(self.batch_size)
    }

    /// The names that `freeze` stands for.
    ///
    /// # Errors
    /// It is not a regular expression.
    pub fn frozen(&self) -> Result<Option<Regex>> {
        if self.freeze.is_empty() {
            return Ok(None);
        }
        let invalid = |_| Error::Usage(format!("train.freeze = {:?} is not a regular expression", self.freeze));
        Regex::new(&self.freeze).map(Some).map_err(invalid)
    }

    /// Refuses numbers that cannot work, naming the key.
    pub fn validate(&self) -> Result<()> {
        let checks = [
            (self.batch_size > 0, "train.batch_size must be at least 1"),
            (self.accumulate > 0, "train.accumulate must be at least 1"),
            (self.steps > 0 || self.epochs > 0, "train.steps or train.epochs must be at least 1"),
            (self.lr.is_finite() && self.lr > 0., "train.lr must be a positive number"),
            (self.min_lr >= 0. && self.min_lr <= self.lr, "train.min_lr must lie between 0 and train.lr"),
            (
                self.clip_norm >= 0. && self.clip_norm.is_finite(),
                "train.clip_norm must not be negative (0 turns clipping off)",
            ),
            (self.decay_every > 0, "train.decay_every must be at least 1"),
            (self.decay_factor > 0. && self.decay_factor <= 1., "train.decay_factor must lie in (0, 1]"),
            (self.log_every > 0, "train.log_every must be at least 1"),
            (self.prefetch <= 1024, "train.prefetch must be at most 1024"),
            (self.keep > 0, "train.keep must be at least 1"),
            (self.keep_best > 0, "train.keep_best must be at least 1"),
            ((0. ..1.).contains(&self.ema), "train.ema must lie in [0, 1)"),
            (
                self.health_every > 0 || self.on_critical == OnCritical::Tell,
                "train.health_every must be at least 1 where something is done about health",
            ),
            (self.spike_zscore >= 0. && self.spike_zscore.is_finite(), "train.spike_zscore must not be negative"),
        ];
        match checks.into_iter().find(|(ok, _)| !ok) {
            Some((_, message)) => Err(Error::Usage(message.into())),
            None => self.optimizer.validate(),
        }
    }
}
