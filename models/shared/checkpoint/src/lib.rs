//! Reading and writing model checkpoints: atomic, durable, and the same bytes for the same weights.
//!
//! ```
//! use std::collections::BTreeMap;
//! use candle_core::{DType, Device, Tensor};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let dir = tempfile::tempdir()?;
//! # let path = dir.path().join("model.safetensors");
//! let weights = [("linear.weight".to_string(), Tensor::zeros((1, 50), DType::F32, &Device::Cpu)?)];
//! zoo_checkpoint::write(&path, &weights, &BTreeMap::from([("model".into(), "mine".into())]))?;
//! let back = zoo_checkpoint::read(&path, &Device::Cpu)?;
//! assert_eq!(back.metadata["model"], "mine");
//! assert_eq!(back.tensors["linear.weight"].dims(), [1, 50]);
//! # Ok(())
//! # }
//! ```

mod atomic;
mod description;
mod safetensors;

pub use atomic::{create, link, replace, sha256, sha256_of, sync_directory};
pub use description::Description;
pub use safetensors::{Checkpoint, create_weights, read, write};

use std::path::{Path, PathBuf};

/// Why a checkpoint was not read or written. Every message names the file.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Its reason.
        source: std::io::Error,
    },
    /// The bytes are not a valid safetensors file.
    #[error("{}: not a valid safetensors file: {reason}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong.
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
