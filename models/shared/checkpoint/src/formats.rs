//! The list of formats.

use std::fs::File;
use std::path::Path;

use crate::codec::Codec;
use crate::outline::{Outline, Streams};
use crate::{Error, Format, Result, gguf, npz, onnx, safetensors, torch};

/// Every format, in the order in which a file is tried for them.
pub(crate) static CODECS: [&dyn Codec; 6] =
    [&torch::Torch, &npz::Npz, &npz::Npy, &gguf::Gguf, &onnx::Onnx, &safetensors::Safetensors];

#[allow(non_upper_case_globals)]
impl Format {
    /// <https://github.com/huggingface/safetensors>
    pub const Safetensors: Self = safetensors::FORMAT;
    /// PyTorch's `torch.save`: a zip archive, or the stream of files older than 1.6.
    pub const Torch: Self = torch::FORMAT;
    /// NumPy's archive of arrays.
    pub const Npz: Self = npz::ARCHIVE;
    /// One NumPy array.
    pub const Npy: Self = npz::ARRAY;
    /// <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>
    pub const Gguf: Self = gguf::FORMAT;
    /// <https://onnx.ai>: read alone.
    pub const Onnx: Self = onnx::FORMAT;

    /// Every format.
    pub fn all() -> impl Iterator<Item = Self> {
        CODECS.iter().map(|codec| codec.format())
    }

    /// The format of that name.
    pub fn named(name: &str) -> Option<Self> {
        Self::all().find(|format| format.name() == name)
    }

    /// The format that a file of that name is to be written in.
    pub fn by_extension(path: &Path) -> Option<Self> {
        let extension = path.extension()?.to_str()?.to_ascii_lowercase();
        Self::all().find(|format| format.extensions().contains(&extension.as_str()))
    }
}

/// Fills an open file, after checking that the format has what is to be written.
pub(crate) fn fill(format: Format, file: &mut File, path: &Path, outline: &Outline, streams: Streams) -> Result<()> {
    // Every format there is has a codec.
    let codec = CODECS.iter().find(|codec| codec.format() == format).unwrap_or(&CODECS[0]);
    if let Some(reason) = codec.refuses(outline) {
        return Err(Error::Refused { path: path.into(), reason });
    }
    outline.check(path, format.title(), |dtype| codec.holds(dtype))?;
    codec.write(file, path, outline, streams)
}
