//! The safetensors format (<https://github.com/huggingface/safetensors>): read whole, written in one pass.
//!
//! The header is our own, because the `safetensors` crate writes metadata in random order: here the same tensors and
//! metadata give the same bytes.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use candle_core::safetensors::Load;
use candle_core::{DType, Device, Tensor};
use safetensors::tensor::{SafeTensorError, View};
use safetensors::{Dtype, SafeTensors};
use serde_json::{Map, Value, json};

use crate::{Error, Result, atomic};

/// The contents of a file.
#[derive(Clone, Debug, Default)]
pub struct Checkpoint {
    /// Tensors by name.
    pub tensors: BTreeMap<String, Tensor>,
    /// The header's text entries.
    pub metadata: BTreeMap<String, String>,
}

/// Reads all tensors of a safetensors file onto `device`.
///
/// # Errors
/// The file cannot be read, is not valid (truncated, overlapping, wrong sizes), or holds an element type that candle
/// lacks.
pub fn read(path: &Path, device: &Device) -> Result<Checkpoint> {
    let bytes = std::fs::read(path).map_err(Error::io(path))?;
    let malformed = |reason: String| Error::Malformed { path: path.to_path_buf(), reason };
    let invalid = |e: SafeTensorError| malformed(e.to_string());
    let (_, header) = SafeTensors::read_metadata(&bytes).map_err(invalid)?;
    let file = SafeTensors::deserialize(&bytes).map_err(invalid)?;
    // The parser keeps the last of two tensors of one name without a word.
    if let Some(name) = repeated_name(&bytes) {
        return Err(malformed(format!("two tensors are named {name}")));
    }
    let metadata = header.metadata().iter().flatten().map(|(k, v)| (k.clone(), v.clone())).collect();
    let mut tensors = BTreeMap::new();
    for (name, view) in file.tensors() {
        let Ok(_) = DType::try_from(view.dtype()) else {
            return Err(Error::Dtype { path: path.to_path_buf(), tensor: name, dtype: format!("{:?}", view.dtype()) });
        };
        let tensor = view.load(device).map_err(|e| Error::Tensor {
            path: path.to_path_buf(),
            tensor: name.clone(),
            source: Box::new(e),
        })?;
        tensors.insert(name, tensor);
    }
    Ok(Checkpoint { tensors, metadata })
}

/// The first name that the header's top level holds twice.
fn repeated_name(bytes: &[u8]) -> Option<String> {
    use serde::de::{IgnoredAny, MapAccess, Visitor};
    struct Names;
    impl<'de> Visitor<'de> for Names {
        type Value = Option<String>;

        fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
            f.write_str("a header")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Self::Value, A::Error> {
            let (mut seen, mut twice) = (std::collections::HashSet::new(), None);
            while let Some((name, IgnoredAny)) = map.next_entry::<String, IgnoredAny>()? {
                if !seen.insert(name.clone()) {
                    twice.get_or_insert(name);
                }
            }
            Ok(twice)
        }
    }
    let length = u64::from_le_bytes(bytes.get(..8)?.try_into().ok()?);
    let header = bytes.get(8..8usize.checked_add(usize::try_from(length).ok()?)?)?;
    serde::Deserializer::deserialize_map(&mut serde_json::Deserializer::from_slice(header), Names).ok()?
}

/// Writes `tensors`, in their order, with `metadata` to a safetensors file: atomically, durably, and as the same bytes
/// for the same input. `format: pt` is added to the metadata, which other readers ask for.
///
/// # Errors
/// The operating system's, or a tensor that cannot be brought to the CPU; the old file stays then.
pub fn write(path: &Path, tensors: &[(String, Tensor)], metadata: &BTreeMap<String, String>) -> Result<()> {
    let (header, values) = layout(path, tensors, metadata)?;
    atomic::replace(path, |file| fill(file, &header, &values))
}

/// [`write()`] for a file of a directory that is moved into place as a whole: see [`create`](atomic::create).
///
/// # Errors
/// As [`write()`]; half a file may be left.
pub fn create_weights(path: &Path, tensors: &[(String, Tensor)], metadata: &BTreeMap<String, String>) -> Result<()> {
    let (header, values) = layout(path, tensors, metadata)?;
    atomic::create(path, |file| fill(file, &header, &values))
}

fn fill(file: &mut dyn Write, header: &str, values: &[Tensor]) -> std::io::Result<()> {
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(header.as_bytes())?;
    values.iter().try_for_each(|t| file.write_all(&View::data(&t)))
}

/// The header, and the tensors on the CPU in the order in which it names them.
fn layout(
    path: &Path,
    tensors: &[(String, Tensor)],
    metadata: &BTreeMap<String, String>,
) -> Result<(String, Vec<Tensor>)> {
    let failed =
        |tensor: &str, e| Error::Tensor { path: path.to_path_buf(), tensor: tensor.to_string(), source: Box::new(e) };
    // The format aligns every tensor to its element size: wider elements come first.
    let mut order: Vec<&(String, Tensor)> = tensors.iter().collect();
    order.sort_by_key(|(_, t)| std::cmp::Reverse(t.dtype().size_in_bytes()));
    let mut entries: Map<String, Value> = metadata.iter().map(|(k, v)| (k.clone(), v.clone().into())).collect();
    entries.entry("format").or_insert("pt".into());
    let mut header = Map::from_iter([("__metadata__".to_string(), Value::Object(entries))]);
    let mut end = 0;
    for (name, t) in &order {
        let start = end;
        end += t.elem_count() * t.dtype().size_in_bytes();
        let dtype =
            serde_json::to_value(Dtype::from(t.dtype())).map_err(|e| failed(name, candle_core::Error::wrap(e)))?;
        header.insert(name.clone(), json!({ "dtype": dtype, "shape": t.dims(), "data_offsets": [start, end] }));
    }
    let mut header = Value::Object(header).to_string();
    header.push_str(&" ".repeat(header.len().next_multiple_of(8) - header.len()));
    let on_cpu = |(name, t): &&(String, Tensor)| t.to_device(&Device::Cpu).map_err(|e| failed(name, e));
    let values = order.iter().map(on_cpu).collect::<Result<Vec<_>>>()?;
    Ok((header, values))
}

#[cfg(test)]
mod tests {
    use super::*;

    type Outcome = std::result::Result<(), Box<dyn std::error::Error>>;

    fn sample() -> candle_core::Result<Vec<(String, Tensor)>> {
        let values = [f32::NAN, -0., f32::INFINITY, 1e-42, 5., 6.];
        let a = Tensor::new(&values, &Device::Cpu)?.reshape((2, 3))?;
        Ok(vec![
            ("half".into(), a.to_dtype(DType::BF16)?),
            ("a".into(), a.clone()),
            ("transposed".into(), a.t()?),
            ("ids".into(), Tensor::new(&[1i64, -2], &Device::Cpu)?),
            ("scalar".into(), Tensor::new(3u8, &Device::Cpu)?),
            ("empty".into(), Tensor::zeros((0, 4), DType::F32, &Device::Cpu)?),
        ])
    }

    #[test]
    fn tensors_come_back_bit_for_bit_and_bytes_repeat() -> Outcome {
        let dir = tempfile::tempdir()?;
        let (one, two) = (dir.path().join("one"), dir.path().join("two"));
        let metadata: BTreeMap<_, _> = (0..20).map(|i| (format!("key {i}"), format!("\"{i}\" ü"))).collect();
        for path in [&one, &two] {
            write(path, &sample()?, &metadata)?;
        }
        assert_eq!(std::fs::read(&one)?, std::fs::read(&two)?);
        let back = read(&one, &Device::Cpu)?;
        assert_eq!(back.tensors.len(), sample()?.len());
        for (name, t) in sample()? {
            let b = &back.tensors[&name];
            assert_eq!((b.dims(), b.dtype()), (t.dims(), t.dtype()), "{name}");
            assert_eq!(View::data(&b), View::data(&t), "{name}");
        }
        assert_eq!(back.metadata["format"], "pt");
        assert!(metadata.iter().all(|(k, v)| &back.metadata[k] == v));
        Ok(())
    }

    #[test]
    fn every_truncation_and_header_bit_flip_is_an_error_or_a_valid_file() -> Outcome {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("model.safetensors");
        write(&path, &sample()?, &BTreeMap::new())?;
        let whole = std::fs::read(&path)?;
        for cut in 0..whole.len() {
            std::fs::write(&path, &whole[..cut])?;
            let message = read(&path, &Device::Cpu).map(|_| ()).unwrap_err().to_string();
            assert!(message.contains("model.safetensors: not a valid"), "{cut}: {message}");
        }
        let header = 8 + u64::from_le_bytes(whole[..8].try_into()?) as usize;
        for bit in 0..8 * header {
            let mut flipped = whole.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            std::fs::write(&path, &flipped)?;
            // A flip in a name or in the metadata leaves a valid file; nothing may panic or hang.
            let _ = read(&path, &Device::Cpu);
        }
        Ok(())
    }

    #[test]
    fn a_repeated_name_and_a_foreign_dtype_are_named() -> Outcome {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("odd");
        let file = |header: &str, data: usize| {
            let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
            bytes.extend(header.bytes().chain(std::iter::repeat_n(0, data)));
            std::fs::write(&path, bytes)
        };
        file(
            r#"{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}"#,
            0,
        )?;
        assert!(read(&path, &Device::Cpu).unwrap_err().to_string().contains("two tensors are named a"));
        file(r#"{"b":{"dtype":"C64","shape":[1],"data_offsets":[0,8]}}"#, 8)?;
        assert!(read(&path, &Device::Cpu).unwrap_err().to_string().contains("tensor b has dtype C64"));
        assert!(read(dir.path(), &Device::Cpu).is_err());
        assert!(read(&dir.path().join("missing"), &Device::Cpu).unwrap_err().to_string().contains("missing"));
        Ok(())
    }
}
