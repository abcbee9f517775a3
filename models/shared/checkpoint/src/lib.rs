#![doc = include_str!("../README.md")]

mod archive;
mod atomic;
mod blocks;
mod cast;
mod codec;
mod codes;
mod content;
mod convert;
mod description;
mod dtype;
#[cfg(feature = "folder")]
mod folder;
mod format;
mod formats;
mod gguf;
#[cfg(feature = "hdf5")]
mod hdf5;
#[cfg(feature = "hub")]
pub mod hub;
mod input;
#[cfg(feature = "matlab")]
pub mod matlab;
mod npz;
mod numpy;
mod once;
mod onnx;
mod open;
mod outline;
mod safetensors;
mod source;
mod strangers;
#[cfg(feature = "text")]
pub mod text;
mod ties;
mod torch;
mod write;

pub use atomic::{is_stream, replace, sha256, sha256_of};
pub use blocks::Blocks;
/// candle, in the version whose types show here.
pub use candle_core;
pub use cast::Difference;
pub use codes::Codes;
pub use content::{Stats, average, compare, content_hash, stats};
pub use convert::{Converted, Output, Plan, Rules, index_of};
pub use description::Description;
pub use dtype::Dtype;
#[cfg(feature = "folder")]
pub use folder::{Folder, Kind};
pub use format::Format;
pub use input::{bytes_of, regular};
pub use npz::npy_head;
pub use open::{Checkpoint, open, open_leaving_objects, read};
pub use source::{Source, TensorInfo, TensorView};
pub use torch::plain_pickle;
pub use write::{write, write_npz};

use std::path::{Path, PathBuf};

/// Why a checkpoint was not read or written. Every message names the file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Its reason.
        source: std::io::Error,
    },
    /// The bytes break the format.
    #[error("{}: not a valid {format} file: {reason}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What it was taken for.
        format: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// The file was valid once: its data do not fit their checksum, or end too early.
    #[error("{}: damaged: {reason}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The file may be valid, but this is not done with it; the message says what would be.
    #[error("{}: {reason}", path.display())]
    Refused {
        /// The file.
        path: PathBuf,
        /// What was refused, and the way out.
        reason: String,
    },
    /// A tensor has an element type that candle lacks.
    #[error("{}: tensor {tensor} has dtype {dtype}, which candle cannot hold", path.display())]
    Dtype {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its element type.
        dtype: String,
    },
    /// The metadata is not that of the model's weights.
    #[error("{}: {reason}", path.display())]
    Undescribed {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The hub, or the way there.
    #[error("{repository}: {reason}")]
    Hub {
        /// The repository, with the file.
        repository: String,
        /// What is wrong, and what to do.
        reason: String,
    },
    /// A checkpoint lacks a tensor that others have.
    #[error("{}: there is no tensor {tensor}", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
    },
    /// candle failed to move or convert a tensor.
    #[error("{}: tensor {tensor}: {source}", path.display())]
    Tensor {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// candle's reason.
        source: Box<candle_core::Error>,
    },
}

impl Error {
    pub(crate) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self + '_ {
        move |source| Self::Io { path: path.to_path_buf(), source }
    }
}

/// The result of this crate's functions.
pub type Result<T> = std::result::Result<T, Error>;
