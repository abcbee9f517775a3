use std::path::{Path, PathBuf};

use crate::record::Difference;

/// Why training, evaluation or their preparation failed. One line each; the message says what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The call was wrong: an unknown key, a value of the wrong type, options that exclude each other.
    #[error("{0}")]
    Usage(String),
    /// Data that cannot be used; the message names file, line or column.
    #[error("{0}")]
    Data(String),
    /// The operating system refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Its reason.
        source: std::io::Error,
    },
    /// A run directory or checkpoint that cannot be used.
    #[error("{0}")]
    Run(String),
    /// A folder without a run.
    #[error("{} is not a run directory: it has no config.toml", .0.display())]
    NotARun(PathBuf),
    /// A new run was to begin where there is one.
    #[error("{} holds a run already", .0.display())]
    RunExists(PathBuf),
    /// A run without a checkpoint to resume from, but with weights.
    #[error("{} has weights but no checkpoint to resume from", .0.display())]
    OnlyWeights(PathBuf),
    /// A run was to be resumed with a configuration or with data that it was not begun with.
    #[error("{} was begun with another configuration ({})", run.display(), differences.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Changed {
        /// The run directory.
        run: PathBuf,
        /// What differs.
        differences: Vec<Difference>,
    },
    /// A key that was to be allowed to change is none.
    #[error("{0}: there is no such key")]
    NoSuchKey(String),
    /// A file that a newer version wrote.
    #[error("{} has version {found} of its format, and this program reads up to {known}: use a newer one", path.display())]
    NewerFormat {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u64,
        /// The newest that is known here.
        known: u64,
    },
    /// Reading or writing weights failed.
    #[error(transparent)]
    Checkpoint(#[from] zoo_checkpoint::Error),
    /// candle refused an operation.
    #[error(transparent)]
    Candle(Box<candle_core::Error>),
    /// Backward never reached these parameters.
    #[error(
        "no gradient reached {}: an operation between them and the loss cuts the graph (candle's fused norms, softmax \
         and rope do); use differentiable ones, or freeze the parameters",
        .0.join(", ")
    )]
    NoGradient(Vec<String>),
    /// Gradient health is critical, and that was to stop the run.
    #[error("{what} is critical since step {since}: {because}; stopped at step {step} by train.on_critical")]
    Critical {
        /// The tensor, or all parameters.
        what: String,
        /// The step since which it has been so.
        since: u64,
        /// What is wrong.
        because: String,
        /// The step after which the run stopped.
        step: u64,
    },
    /// Another process of the run failed, so that all end.
    #[error("rank {rank} of {size}{message}")]
    Peer {
        /// Which.
        rank: usize,
        /// Processes in all.
        size: usize,
        /// Where it runs, and what it said.
        message: String,
    },
    /// A loss or gradient that is not a finite number; the weights were not touched by it.
    #[error(
        "{what} at step {step} is {value}; the weights were not touched by it: lower train.lr or train.clip_norm, or pass \
         over such steps with train.on_nonfinite=skip or train.on_nonfinite=rollback"
    )]
    NonFinite {
        /// The loss or a parameter's gradient.
        what: String,
        /// The step, from 1.
        step: u64,
        /// NaN or an infinity.
        value: f64,
    },
}

impl From<candle_core::Error> for Error {
    fn from(e: candle_core::Error) -> Self {
        Self::Candle(Box::new(e))
    }
}

impl Error {
    /// Puts the path to an operating system's error.
    pub fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self + '_ {
        move |source| Self::Io { path: path.to_path_buf(), source }
    }
}

/// The result of this crate's functions.
pub type Result<T> = std::result::Result<T, Error>;
