//! Writing tensors that are at hand.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;

use candle_core::{Device, Tensor};

use crate::formats::fill;
use crate::outline::{Outline, Planned};
use crate::{Dtype, Error, Format, Result, atomic};

/// Writes `tensors`, in their order, with `metadata` to a safetensors file: atomically, durably, and as the same bytes
/// for the same input. `format: pt` is added to the metadata, which other readers ask for.
///
/// # Errors
/// The operating system's, or a tensor that cannot be brought to the CPU; the old file stays then.
pub fn write(path: &Path, tensors: &[(String, Tensor)], metadata: &BTreeMap<String, String>) -> Result<()> {
    let (outline, values) = on_cpu(path, tensors, metadata)?;
    atomic::replace_file(path, |file| fill_with(file, path, &outline, &values))
}

/// Writes `tensors`, in their order, to an `.npz` file, atomically.
///
/// # Errors
/// As [`write()`].
pub fn write_npz(path: &Path, tensors: &[(String, Tensor)]) -> Result<()> {
    let (outline, values) = on_cpu(path, tensors, &BTreeMap::new())?;
    atomic::replace_file(path, |file| {
        fill(Format::Npz, file, path, &outline, &mut |i, sink| sink(&::safetensors::View::data(&&values[i])))
    })
}

pub(crate) fn fill_with(file: &mut File, path: &Path, outline: &Outline, values: &[Tensor]) -> Result<()> {
    fill(Format::Safetensors, file, path, outline, &mut |i, sink| sink(&::safetensors::View::data(&&values[i])))
}

pub(crate) fn on_cpu(
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
