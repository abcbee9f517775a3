use std::path::{Path, PathBuf};

/// Why training, evaluation or their preparation failed. One line each; the message says what to do.
#[derive(Debug, thiserror::Error)]
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
    #[error(
        "{what} is critical since step {since}: {because}; stopped at step {step} by train.on_critical; zoo doctor says what to try, and --resume \
         --allow-change KEY goes on with it"
    )]
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
    /// A loss or gradient that is not a finite number; the weights were not touched by it.
    #[error(
        "{what} at step {step} is {value}; the weights were not touched by it: lower train.lr or train.clip_norm, or pass \
         over such steps with --on-nonfinite skip or rollback"
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
