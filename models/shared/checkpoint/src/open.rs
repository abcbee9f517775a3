//! Opening a file of whatever format, by its content.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{Device, Tensor};
use serde::Deserialize;
use serde_json::Value;

use crate::codec::Probe;
use crate::formats::CODECS;
use crate::input::{Fault, Input, Parsed, bytes_of, malformed, refused};
use crate::once::Once;
use crate::outline::text_of;
use crate::torch::{self, distributed};
use crate::{Error, Result, Source, archive, strangers};

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
    safe(open_leaving_objects(path)?)
}

/// Refuses a file that would run something if Python read it.
pub(crate) fn safe(source: Source) -> Result<Source> {
    match source.calls.as_slice() {
        [] => Ok(source),
        calls => Err(Error::Refused { path: source.path.clone(), reason: torch::runs(calls) }),
    }
}

/// [`open`], also of a pickle with objects that would be made by running something: they are [left out](Source::left_out), each by
/// its place and class, and nothing is run. For those who look at each of them.
///
/// # Errors
/// As [`open`].
pub fn open_leaving_objects(path: &Path) -> Result<Source> {
    let mut source = match distributed::folder_of(path) {
        Some(folder) => distributed::open(&folder).map_err(|fault| told(fault, path, "distributed PyTorch"))?,
        None => open_as(path, true)?,
    };
    // What would be run and leads to nothing that can be left out is nothing that tensors lie beside.
    if !source.left_out.iter().any(|what| what.ends_with(torch::MADE)) {
        return safe(source);
    }
    let calls = source.calls.join(", ");
    source
        .remarks
        .push(format!("its pickle would run {calls}: nothing was executed, and what that would make is left out"));
    Ok(source)
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
    parsed.map_err(|fault| told(fault, path, format))
}

pub(crate) fn told(fault: Fault, path: &Path, format: &'static str) -> Error {
    match fault {
        Fault::Io(e) => Error::io(path)(e),
        Fault::Malformed(reason) => Error::Malformed { path: path.into(), format, reason: shortened(&reason) },
        Fault::Refused(reason) => Error::Refused { path: path.into(), reason: shortened(&reason) },
    }
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
    if distributed::is_part(&input.path) {
        let reason = "it is a part of a distributed checkpoint of PyTorch: name the folder with its .metadata";
        return ("PyTorch", refused(reason));
    }
    let zip = start.starts_with(b"PK\x03\x04") || start.starts_with(b"PK\x05\x06");
    let records = match zip.then(|| archive::records(input)).transpose() {
        Ok(records) => records,
        Err(fault) => return ("zip", Err(fault)),
    };
    let probe = Probe { start, len: input.len, records: records.as_deref() };
    match CODECS.iter().find(|codec| codec.sniff(&probe)) {
        Some(codec) => {
            let opened = codec.open(input, records.unwrap_or_default());
            let whole = |source| if index { gguf_parts(input, source) } else { Ok(source) };
            (codec.format().title(), opened.and_then(whole))
        }
        None if zip => ("zip", refused(strangers::archive(records.as_deref().unwrap_or_default()))),
        None if index && start.iter().find(|b| !b.is_ascii_whitespace()) == Some(&b'{') => ("index", shards(input)),
        None => ("checkpoint", refused(strangers::file(&input.path, start))),
    }
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
    let (mut found, mut remarks) = (BTreeSet::new(), vec![]);
    for file in weight_map.values().collect::<BTreeSet<_>>() {
        if !is_shard(file) {
            return refused(format!("it names the shard {file:?}: shards are checkpoint files beside their index"));
        }
        let shard = open_as(&folder.join(file), false).map_err(|e| Fault::Refused(e.to_string()))?;
        // The index is the truth: what it does not name here is not of this checkpoint.
        let (shard, others) = named(shard, file, &weight_map);
        for name in others {
            match weight_map.get(&name) {
                Some(other) => {
                    remarks.push(format!("tensor {name} of {file} is left out: the index names that of {other}"))
                }
                None => remarks.push(format!("tensor {name} of {file} is left out: {UNNAMED}")),
            }
        }
        found.extend(shard.tensors.iter().map(|t| t.name.clone()));
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
    // Those of another file first: they are the stranger ones.
    remarks.sort_by_key(|remark| remark.ends_with(UNNAMED));
    let more = remarks.len().saturating_sub(LEFT_OUT);
    if more > 0 {
        remarks.truncate(LEFT_OUT);
        remarks.push(format!("{more} more tensors are left out that the index does not name there"));
    }
    all.remarks.extend(remarks);
    for (key, value) in metadata {
        if key != "total_size" {
            all.metadata.entry(key).or_insert(value);
        }
    }
    Ok(all)
}

const UNNAMED: &str = "the index does not name it";
/// Tensors that are named when they are left out.
const LEFT_OUT: usize = 8;

/// The tensors that the index names in a file, with those that are tied to them and are in no index; and the names of the others.
fn named(mut source: Source, file: &str, index: &BTreeMap<String, String>) -> (Source, Vec<String>) {
    let mut places = vec![None; source.tensors.len()];
    let (mut kept, mut others) = (vec![], vec![]);
    for (i, mut t) in std::mem::take(&mut source.tensors).into_iter().enumerate() {
        let tied = t.tied_to.is_some_and(|of| places[of].is_some());
        if !index.get(&t.name).map_or(tied, |named| named == file) {
            others.push(t.name);
            continue;
        }
        places[i] = Some(kept.len());
        // What it is tied to may be left out: its values are its own then.
        t.tied_to = t.tied_to.and_then(|of| places[of]);
        kept.push(t);
    }
    source.tensors = kept;
    (source, others)
}

/// The whole of a GGUF model that was split, from one of its parts.
fn gguf_parts(input: &Arc<Input>, source: Source) -> Parsed<Source> {
    const KEYS: [&str; 3] = ["split.count", "split.no", "split.tensors.count"];
    let number = |source: &Source, key: &str| source.metadata.get(key).and_then(Value::as_u64);
    let Some(count) = number(&source, KEYS[0]).filter(|n| *n > 1 && source.format.name() == "gguf") else {
        return Ok(source);
    };
    let name = input.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let own = number(&source, KEYS[1]).unwrap_or(0);
    if own >= count || count > u64::from(u16::MAX) {
        return malformed(format!("it would be part {own} (from 0) of {count}"));
    }
    let ending = |part: u64| format!("-{:05}-of-{count:05}.gguf", part + 1);
    let Some(stem) = name.strip_suffix(&ending(own)) else {
        let part = own + 1;
        return refused(format!(
            "it is part {part} of {count} of a model, and its name does not end in {}: the others cannot be found",
            ending(own)
        ));
    };
    let folder = input.path.parent().unwrap_or(Path::new("."));
    let mut all: Option<Source> = None;
    for part in 0..count {
        let path = folder.join(format!("{stem}{}", ending(part)));
        if !path.is_file() {
            return refused(format!(
                "it is part {} of {count} of a model, of which {} is missing",
                own + 1,
                path.display()
            ));
        }
        let mut found = open_as(&path, false).map_err(|e| Fault::Refused(e.to_string()))?;
        if (number(&found, KEYS[0]), number(&found, KEYS[1])) != (Some(count), Some(part)) {
            return refused(format!("{} is not part {} of {count}, as its name says", path.display(), part + 1));
        }
        match &mut all {
            None => {
                found.path = input.path.clone();
                all = Some(found);
            }
            Some(all) => all.absorb(found),
        }
    }
    let Some(mut all) = all else { return Ok(source) };
    let (said, found) = (number(&all, KEYS[2]), all.tensors.len() as u64);
    if said.is_some_and(|n| n != found) {
        return refused(format!("its {count} parts have {found} tensors together, and it says {}", said.unwrap_or(0)));
    }
    KEYS.iter().for_each(|key| {
        all.metadata.remove(*key);
    });
    all.typed.retain(|t| !KEYS.contains(&t.key.as_str()));
    all.settle().map_err(Fault::Malformed)?;
    all.remarks.push(format!("it is one of the {count} parts of a model, which are read together"));
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
        self.calls.extend(other.calls);
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
