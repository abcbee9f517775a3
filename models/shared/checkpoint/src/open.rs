//! Opening a file of whatever format, by its content.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{Device, Tensor};
use serde::Deserialize;
use serde_json::Value;

use crate::codec::Probe;
use crate::formats::CODECS;
use crate::input::{Fault, Input, Parsed, bytes_of, refused};
use crate::once::Once;
use crate::outline::text_of;
use crate::{Error, Result, Source, archive};

/// The contents of a file.
#[derive(Clone, Debug, Default)]
pub struct Checkpoint {
    /// Tensors by name.
    pub tensors: BTreeMap<String, Tensor>,
    /// Text entries; what is not text, as JSON.
    pub metadata: BTreeMap<String, String>,
}

/// Opens a checkpoint of any format, by its content: safetensors, PyTorch, `.npz`, `.npy`, GGUF, or the index of a sharded
/// one. Only its directory is read; nothing in it is executed.
///
/// # Errors
/// The file cannot be read, is of no known format, or breaks its own.
pub fn open(path: &Path) -> Result<Source> {
    open_as(path, true)
}

/// [`open`], or a shard, which is no index itself.
fn open_as(path: &Path, index: bool) -> Result<Source> {
    open_input(&Input::open(path)?, index)
}

/// [`open`] of an open file; `index` is whether it may be the index of others.
pub(crate) fn open_input(input: &Arc<Input>, index: bool) -> Result<Source> {
    let path = &input.path;
    let start = input.bytes(0..input.len.min(512)).map_err(Error::io(path))?;
    let (format, parsed) = parse(input, &start, index);
    parsed.map_err(|fault| match fault {
        Fault::Io(e) => Error::io(path)(e),
        Fault::Malformed(reason) => Error::Malformed { path: path.into(), format, reason: shortened(&reason) },
        Fault::Refused(reason) => Error::Refused { path: path.into(), reason: shortened(&reason) },
    })
}

/// What is wrong with a file, without what it holds too much of.
fn shortened(reason: &str) -> String {
    const MOST: usize = 300;
    match reason.char_indices().nth(MOST) {
        None => reason.into(),
        Some((end, _)) => format!("{}…", &reason[..end]),
    }
}

/// What a file is taken for, and what is in it.
fn parse(input: &Arc<Input>, start: &[u8], index: bool) -> (&'static str, Parsed<Source>) {
    let zip = start.starts_with(b"PK\x03\x04") || start.starts_with(b"PK\x05\x06");
    let records = match zip.then(|| archive::records(input)).transpose() {
        Ok(records) => records,
        Err(fault) => return ("zip", Err(fault)),
    };
    let probe = Probe { start, len: input.len, records: records.as_deref() };
    match CODECS.iter().find(|codec| codec.sniff(&probe)) {
        Some(codec) => (codec.format().title(), codec.open(input, records.unwrap_or_default())),
        None if zip => ("zip", refused("it is a zip archive, but neither PyTorch's (data.pkl) nor NumPy's (.npy)")),
        None if index && start.iter().find(|b| !b.is_ascii_whitespace()) == Some(&b'{') => ("index", shards(input)),
        None => ("checkpoint", refused(unknown(input, start))),
    }
}

fn unknown(input: &Input, start: &[u8]) -> String {
    let what = if start.is_empty() {
        "it is empty"
    } else if start.starts_with(b"version https://git-lfs") {
        "it is the pointer of Git LFS, not the file: run git lfs pull"
    } else if start.starts_with(b"\x89HDF") {
        "it is an HDF5 file (Keras, MATLAB), which is not read: save it as .npz"
    } else if start.get(257..262) == Some(b"ustar") {
        "it is a tar archive (PyTorch before 0.1.10): load it in PyTorch and save it again"
    } else if start.starts_with(b"FUGG") {
        "it is a GGUF file of a big-endian machine"
    } else if start.starts_with(&[0x80]) {
        "it is a pickle, but none of torch.save: save the weights with torch.save or safetensors"
    } else if input.path.extension().is_some_and(|e| e == "safetensors") {
        return "not a valid safetensors file: it does not begin with the length of a header".into();
    } else {
        let hex: Vec<String> = start.iter().take(8).map(|b| format!("{b:02x}")).collect();
        return format!(
            "no checkpoint of a known format (safetensors, PyTorch, npz, npy, GGUF): it begins with {}",
            hex.join(" ")
        );
    };
    what.into()
}

/// The index of a sharded checkpoint: which file has which tensor.
#[derive(Deserialize)]
struct Index {
    weight_map: Once<String>,
    #[serde(default)]
    metadata: serde_json::Map<String, Value>,
}

/// More is no index.
const LARGEST_INDEX: u64 = 1 << 27;

fn shards(input: &Arc<Input>) -> Parsed<Source> {
    if input.len > LARGEST_INDEX {
        return refused("it begins like JSON, but is too large for the index of a sharded checkpoint");
    }
    let index: Index = match serde_json::from_slice(&input.bytes(0..input.len)?) {
        Ok(index) => index,
        Err(e) => return refused(format!("it begins like JSON, but is no index of a sharded checkpoint: {e}")),
    };
    let (Once(weight_map), metadata) = (index.weight_map, index.metadata);
    let folder = input.path.parent().unwrap_or(Path::new("."));
    let mut all: Option<Source> = None;
    let mut found = BTreeSet::new();
    for file in weight_map.values().collect::<BTreeSet<_>>() {
        if !is_shard(file) {
            return refused(format!("it names the shard {file:?}: shards are checkpoint files beside their index"));
        }
        let shard = open_as(&folder.join(file), false).map_err(|e| Fault::Refused(e.to_string()))?;
        for t in &shard.tensors {
            if weight_map.get(&t.name).is_some_and(|named| named != file) {
                return refused(format!("tensor {} is in {file} and in {}", t.name, weight_map[&t.name]));
            }
            if !found.insert(t.name.clone()) {
                return refused(format!("tensor {} is in two shards", t.name));
            }
        }
        match &mut all {
            None => {
                let mut first = shard;
                first.path = input.path.clone();
                all = Some(first);
            }
            Some(all) => all.absorb(shard),
        }
    }
    if let Some((name, file)) = weight_map.iter().find(|(name, _)| !found.contains(*name)) {
        return refused(format!("tensor {name} is not in {file}, where the index has it"));
    }
    let Some(mut all) = all else { return refused("its index names no tensors") };
    for (key, value) in metadata {
        if key != "total_size" {
            all.metadata.entry(key).or_insert(value);
        }
    }
    Ok(all)
}

/// The plain names of the shards that an index names; none where it is no index.
pub(crate) fn shard_names(index: &Path) -> BTreeSet<PathBuf> {
    let bytes = bytes_of(index, "an index", LARGEST_INDEX).unwrap_or_default();
    let named = serde_json::from_slice::<Index>(&bytes).map_or_else(|_| BTreeMap::new(), |i| i.weight_map.0);
    named.into_values().filter(|file| is_shard(file)).map(PathBuf::from).collect()
}

/// Whether that is the plain name of a shard.
fn is_shard(file: &str) -> bool {
    !file.is_empty() && !file.contains(['/', '\\', ':', '\0']) && file != ".." && !file.ends_with(".json")
}

impl Source {
    /// [`read()`] of an open file.
    ///
    /// # Errors
    /// Damaged data, or an element type that candle lacks.
    pub fn read(&self, device: &Device) -> Result<Checkpoint> {
        let mut tensors: BTreeMap<String, Tensor> = BTreeMap::new();
        for t in &self.tensors {
            let tensor = match t.tied_to.and_then(|i| tensors.get(&self.tensors[i].name)) {
                Some(tied) => tied.clone(),
                None => self.tensor(t, device)?,
            };
            tensors.insert(t.name.clone(), tensor);
        }
        let metadata = self.metadata.iter().map(|(k, v)| (k.clone(), text_of(v))).collect();
        Ok(Checkpoint { tensors, metadata })
    }

    /// Reads every byte that a checksum covers, and every tensor.
    ///
    /// # Errors
    /// The first damage.
    pub fn check(&self) -> Result<()> {
        self.segments.iter().chain(&self.rest).try_for_each(|s| s.stream(0..s.len, 1, &mut |_| Ok(())))
    }

    /// Adds what is in another file of the same checkpoint.
    fn absorb(&mut self, other: Source) {
        let (segments, tensors) = (self.segments.len(), self.tensors.len());
        self.segments.extend(other.segments);
        self.rest.extend(other.rest);
        self.tensors.extend(other.tensors.into_iter().map(|mut t| {
            t.data.segment += segments;
            t.tied_to = t.tied_to.map(|i| i + tensors);
            t
        }));
        for (key, value) in other.metadata {
            self.metadata.entry(key).or_insert(value);
        }
        self.remarks.extend(other.remarks);
        self.foreign.extend(other.foreign);
        self.left_out.extend(other.left_out);
        self.file_bytes += other.file_bytes;
    }
}

/// Reads all tensors of a checkpoint of any format onto `device`; tied tensors share memory.
///
/// # Errors
/// What [`open`] says, damaged data, or an element type that candle lacks.
pub fn read(path: &Path, device: &Device) -> Result<Checkpoint> {
    open(path)?.read(device)
}
