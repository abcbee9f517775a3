//! Writing: what is to be in a file, and the way there that leaves either all of it or nothing.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;

use candle_core::{Device, Tensor};

use serde_json::{Map, Value};

use crate::input::Sink;
use crate::{Dtype, Error, Format, Result, atomic, gguf, npz, safetensors, torch};

/// A tensor to be written.
#[derive(Clone, Debug)]
pub(crate) struct Planned {
    pub(crate) name: String,
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<usize>,
    /// The tensor, by number, that has its values.
    pub(crate) tied_to: Option<usize>,
}

impl Planned {
    pub(crate) fn bytes(&self) -> u64 {
        self.dtype.bytes(crate::source::elements(&self.shape)).unwrap_or(0)
    }
}

/// Everything that a file says before its values.
#[derive(Clone, Debug, Default)]
pub(crate) struct Outline {
    pub(crate) tensors: Vec<Planned>,
    pub(crate) metadata: Map<String, Value>,
    /// The entry of a PyTorch file that is to hold the tensors, if it is not to be them.
    pub(crate) entry: Option<String>,
    pub(crate) typed: Vec<gguf::Typed>,
}

/// An entry of the metadata where only texts are kept: text as it is, anything else as JSON.
pub(crate) fn text_of(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), String::from)
}

/// Hands the values of a tensor, by number, to a sink.
pub(crate) type Streams<'a> = &'a mut dyn FnMut(usize, Sink) -> Result<()>;

impl Outline {
    /// Metadata as texts, ties among them: text as it is, anything else as JSON.
    pub(crate) fn texts(&self) -> BTreeMap<String, String> {
        let tied = self.tensors.iter().filter_map(|t| Some((t.name.clone(), self.tensors[t.tied_to?].name.clone())));
        let mut texts: BTreeMap<String, String> = self.metadata.iter().map(|(k, v)| (k.clone(), text_of(v))).collect();
        let tied: Vec<(String, String)> = tied.collect();
        if !tied.is_empty() {
            let names: Vec<&String> = tied.iter().map(|(name, _)| name).collect();
            texts.insert(
                safetensors::TIED.into(),
                Value::from(names.iter().map(|n| n.as_str()).collect::<Vec<_>>()).to_string(),
            );
        }
        texts.extend(tied);
        texts
    }

    /// Refuses element types that a format lacks.
    pub(crate) fn check(&self, path: &Path, format: &str, holds: impl Fn(Dtype) -> bool) -> Result<()> {
        if self.tensors.iter().any(|t| t.name == "__metadata__") {
            let reason =
                "a tensor cannot be called __metadata__: rename it (--map 'rename __metadata__ -> NAME')".into();
            return Err(Error::Refused { path: path.into(), reason });
        }
        let taken = |t: &&Planned| t.tied_to.is_some() && self.metadata.contains_key(&t.name);
        if let Some(t) = self.tensors.iter().find(taken) {
            let reason = format!(
                "tensor {0} and an entry of the metadata have one name: rename it (--map 'rename {0} -> NAME')",
                t.name
            );
            return Err(Error::Refused { path: path.into(), reason });
        }
        if self.entry.as_ref().is_some_and(|e| self.metadata.contains_key(e)) {
            let reason = "its tensors and an entry of the metadata have one name".into();
            return Err(Error::Refused { path: path.into(), reason });
        }
        match self.tensors.iter().find(|t| !holds(t.dtype)) {
            None => Ok(()),
            Some(t) => {
                let reason = format!(
                    "{format} has no elements of {}, which tensor {} has; cast it (--map 'cast NAME f32') or drop it",
                    t.dtype, t.name
                );
                Err(Error::Refused { path: path.into(), reason })
            }
        }
    }
}

/// Fills an open file.
pub(crate) fn fill(format: Format, file: &mut File, path: &Path, outline: &Outline, streams: Streams) -> Result<()> {
    match format {
        Format::Safetensors => safetensors::write(file, path, outline, streams),
        Format::Torch => torch::write(file, path, outline, streams),
        Format::Npz => npz::write(file, path, outline, streams),
        Format::Npy => npz::write_one(file, path, outline, streams),
        Format::Gguf => gguf::write(file, path, outline, streams),
    }
}

/// Writes `tensors`, in their order, with `metadata` to a safetensors file: atomically, durably, and as the same bytes
/// for the same input. `format: pt` is added to the metadata, which other readers ask for.
///
/// # Errors
/// The operating system's, or a tensor that cannot be brought to the CPU; the old file stays then.
pub fn write(path: &Path, tensors: &[(String, Tensor)], metadata: &BTreeMap<String, String>) -> Result<()> {
    let (outline, values) = on_cpu(path, tensors, metadata)?;
    atomic::replace_file(path, |file| fill_with(file, path, &outline, &values))
}

/// [`write()`] for a file of a directory that is moved into place as a whole: see [`create`](atomic::create).
///
/// # Errors
/// As [`write()`]; half a file may be left.
pub fn create_weights(path: &Path, tensors: &[(String, Tensor)], metadata: &BTreeMap<String, String>) -> Result<()> {
    let (outline, values) = on_cpu(path, tensors, metadata)?;
    let mut file = File::create(path).map_err(Error::io(path))?;
    fill_with(&mut file, path, &outline, &values)?;
    file.sync_all().map_err(Error::io(path))
}

/// Writes `tensors`, in their order, to an `.npz` file, atomically.
///
/// # Errors
/// As [`write()`].
pub fn write_npz(path: &Path, tensors: &[(String, Tensor)]) -> Result<()> {
    let (outline, values) = on_cpu(path, tensors, &BTreeMap::new())?;
    atomic::replace_file(path, |file| {
        npz::write(file, path, &outline, &mut |i, sink| sink(&::safetensors::View::data(&&values[i])))
    })
}

fn fill_with(file: &mut File, path: &Path, outline: &Outline, values: &[Tensor]) -> Result<()> {
    safetensors::write(file, path, outline, &mut |i, sink| sink(&::safetensors::View::data(&&values[i])))
}

fn on_cpu(
    path: &Path,
    tensors: &[(String, Tensor)],
    metadata: &BTreeMap<String, String>,
) -> Result<(Outline, Vec<Tensor>)> {
    let failed = |tensor: &str, e| Error::Tensor { path: path.into(), tensor: tensor.into(), source: Box::new(e) };
    let metadata = metadata.iter().map(|(k, v)| (k.clone(), v.clone().into())).collect();
    let mut outline = Outline { metadata, ..Outline::default() };
    let mut values = vec![];
    for (name, t) in tensors {
        let lacks = || Error::Dtype { path: path.into(), tensor: name.clone(), dtype: t.dtype().as_str().into() };
        let dtype = Dtype::of(t.dtype()).ok_or_else(lacks)?;
        outline.tensors.push(Planned { name: name.clone(), dtype, shape: t.dims().to_vec(), tied_to: None });
        values.push(t.to_device(&Device::Cpu).map_err(|e| failed(name, e))?);
    }
    Ok((outline, values))
}
