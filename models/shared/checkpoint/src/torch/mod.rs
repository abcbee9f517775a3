//! PyTorch's files: a pickle that describes tensors, and their storages beside it. The zip archives of PyTorch 1.6 and
//! later, and the streams before them.

pub(crate) mod distributed;
mod pickle;
mod write;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::io::{BufReader, Cursor, Read};
use std::path::Path;
use std::sync::Arc;

use serde_json::{Map, Value};

use crate::archive::Record;
use crate::codec::{Codec, Probe};
use crate::format::Traits;
use crate::input::{Budget, Fault, Input, Parsed, Segment, Window, malformed, refused};
use crate::numpy::fortran;
use crate::outline::{Outline, Streams};
use crate::source::{Data, is_contiguous};
use crate::ties::retie;
use crate::{Dtype, Format, Result, Source};
pub(crate) use pickle::runs;
use pickle::{Array, Id, Node, Pickle, Storage, Strided, is_foreign, is_inert};

/// What the format is like.
pub(crate) const FORMAT: Format =
    Format::new(&Traits { entries: true, ..Traits::new("pytorch", "PyTorch", &["pt", "pth", "bin", "ckpt"]) });

/// Its codec.
pub(crate) struct Torch;

impl Codec for Torch {
    fn format(&self) -> Format {
        FORMAT
    }

    fn sniff(&self, probe: &Probe) -> bool {
        probe.records.map_or_else(|| is_legacy(probe.start), is_archive)
    }

    fn open(&self, input: &Arc<Input>, records: Vec<Record>) -> Parsed<Source> {
        // An archive that is ours holds a pickle at least.
        if records.is_empty() { open_legacy(input) } else { open_archive(input, records, Budget::of(input.len)) }
    }

    fn holds(&self, dtype: Dtype) -> bool {
        dtype.torch().is_some()
    }

    fn write(&self, file: &mut File, path: &Path, outline: &Outline, streams: Streams) -> Result<()> {
        write::write(file, path, outline, streams)
    }
}

/// What every legacy file begins with, in its first pickle.
const MAGIC: &str = "0x1950a86a20f9469cfc6c";
/// And in its second.
const PROTOCOL: i64 = 1001;

/// What is said of an object that is left out.
pub(crate) const MADE: &str = "(made by running it)";

/// A value deeper than this is an attack.
const DEEPEST: usize = 64;
/// What a value costs as JSON beside its text, and a tensor as well.
const PART: usize = 128;

/// Whether records are those of `torch.save`.
fn is_archive(records: &[Record]) -> bool {
    records.iter().any(|r| r.name == "data.pkl" || r.name.ends_with("/data.pkl"))
}

fn open_archive(input: &Arc<Input>, records: Vec<Record>, budget: Budget) -> Parsed<Source> {
    let pickles: Vec<&Record> =
        records.iter().filter(|r| r.name == "data.pkl" || r.name.ends_with("/data.pkl")).collect();
    let [main] = pickles[..] else { return malformed("it has several data.pkl") };
    let root = main.name.strip_suffix("data.pkl").unwrap_or_default().to_string();
    // PyTorch takes the folder of the first record, and looks names up whatever the case of their letters.
    let first = records[0].name.split_inclusive('/').next().filter(|f| f.ends_with('/')).unwrap_or_default();
    if first != root {
        return malformed(format!("its data.pkl is in {root:.60?}, its first record in {first:.60?}"));
    }
    let mut names = HashSet::new();
    if let Some(twice) = records.iter().find(|r| !names.insert(r.name.to_ascii_lowercase())) {
        return malformed(format!("two of its records are called {} but for the case of letters", twice.name));
    }
    let by_name: HashMap<&str, &Segment> = records.iter().map(|r| (r.name.as_str(), &r.segment)).collect();
    let small = |segment: &Segment| match segment.len > pickle::LARGEST {
        true => malformed(format!("its pickle has {} bytes", segment.len)),
        false => budget.spend(segment.len as usize).and_then(|()| Ok(segment.bytes(0..segment.len)?)),
    };
    if let Some(order) = by_name.get(format!("{root}byteorder").as_str())
        && order.len < 16
        && small(order)? != b"little"
    {
        return refused("it was written on a big-endian machine: load it in PyTorch there and save it as safetensors");
    }
    if by_name.contains_key(format!("{root}constants.pkl").as_str()) {
        return refused("it is a TorchScript archive, which holds a program: save model.state_dict() instead");
    }
    let bytes = small(&main.segment)?;
    let mut values = Pickle::new(budget);
    let len = bytes.len() as u64;
    let mut pickle = Cursor::new(bytes);
    let value = values.read(&mut pickle, len)?;
    if pickle.position() != len {
        return malformed(format!("{} bytes follow its pickle", len - pickle.position()));
    }
    let mut source = Source::new(&input.path, FORMAT, input.len);
    let storages = |storage: &Storage| match by_name.get(format!("{root}data/{}", storage.key).as_str()) {
        Some(segment) => Ok((*segment).clone()),
        None => malformed(format!("its storage {} is missing", storage.key)),
    };
    Walk::new(&values, &mut source, &storages).root(value)?;
    // What no tensor uses has a checksum, too.
    source.rest = records.into_iter().map(|r| r.segment).collect();
    Ok(source)
}

/// Whether a file may be a legacy one, by its first bytes: the pickle of the magic number.
fn is_legacy(start: &[u8]) -> bool {
    start.len() > 3
        && start[0] == 0x80
        && start[1] <= 5
        && (start[2..].starts_with(&[0x8a, 10]) || start[2..].starts_with(&[0x95]))
}

/// Whether the first 512 bytes are the header of a tar archive, which PyTorch tries first: its checksum is right.
fn is_tar(start: &[u8]) -> bool {
    let Some(header) = start.get(..512) else { return false };
    let text: String = header[148..156].iter().map(|b| char::from(*b)).collect();
    let said = u64::from_str_radix(text.trim_matches(['\0', ' ']), 8).ok();
    let sum = |of: &dyn Fn(u8) -> i64| {
        header.iter().enumerate().map(|(i, b)| if (148..156).contains(&i) { 32 } else { of(*b) }).sum::<i64>()
    };
    // Of bytes with a sign or without one.
    said.and_then(|n| i64::try_from(n).ok())
        .is_some_and(|n| n == sum(&|b| i64::from(b)) || n == sum(&|b| i64::from(b as i8)))
}

fn open_legacy(input: &Arc<Input>) -> Parsed<Source> {
    if is_tar(&input.bytes(0..input.len.min(512))?) {
        return refused("it is a pickle and a tar archive in one: readers differ in what they see in it");
    }
    let mut stream = BufReader::with_capacity(1 << 16, Window::new(input, 0..input.len));
    let mut values = Pickle::new(Budget::of(input.len));
    let mut next = |values: &mut Pickle| values.read(&mut stream, input.len);
    let magic = next(&mut values)?;
    if !matches!(&values[magic], Node::Big(n) if n == MAGIC) {
        return refused("it is a pickle, but none of torch.save: save the weights with torch.save or safetensors");
    }
    let (protocol, system) = (next(&mut values)?, next(&mut values)?);
    if !matches!(values[protocol], Node::Int(PROTOCOL)) {
        return refused(format!("it is a file of torch.save, but not of protocol {PROTOCOL}"));
    }
    if let Some(little) = values.get(system, "little_endian")?
        && !matches!(values[little], Node::Bool(true))
    {
        return refused("it was written on a big-endian machine: load it in PyTorch there and save it as safetensors");
    }
    let value = next(&mut values)?;
    let keys = next(&mut values)?;
    // The storages follow, each behind its number of elements, in the order of the keys.
    let mut at = stream.get_ref().position() - stream.buffer().len() as u64;
    let mut sizes = HashMap::new();
    for node in values.nodes() {
        if let Node::Storage(s) = node {
            sizes.insert(s.key.as_str(), s.dtype.and_then(|d| d.size()).unwrap_or(1));
        }
    }
    let mut segments = HashMap::new();
    for key in values.sequence(keys).unwrap_or_default() {
        let Some((key, size)) = values.text(*key).and_then(|k| Some((k, *sizes.get(k)?))) else {
            return malformed("its list of storages names one that no tensor has");
        };
        let mut count = [0; 8];
        Window::new(input, at..input.len).read_exact(&mut count)?;
        at += 8;
        let bytes = u64::try_from(i64::from_le_bytes(count)).ok().and_then(|n| n.checked_mul(size as u64));
        match bytes.and_then(|b| at.checked_add(b)).filter(|end| *end <= input.len) {
            Some(end) => {
                if segments.insert(key.to_string(), Segment::stored(input, at..end)).is_some() {
                    return malformed(format!("its list of storages names {key:.60} twice"));
                }
                at = end;
            }
            None => return malformed(format!("its storage {key} reaches beyond the end of the file")),
        }
    }
    if at != input.len {
        return malformed(format!("{} bytes follow its last storage", input.len - at));
    }
    let mut source = Source::new(&input.path, FORMAT, input.len);
    let storages = |storage: &Storage| match segments.get(&storage.key) {
        Some(segment) => Ok(segment.clone()),
        None => malformed(format!("its storage {} is missing", storage.key)),
    };
    Walk::new(&values, &mut source, &storages).root(value)?;
    Ok(source)
}

/// The value of a pickle of numbers, texts, lists and dictionaries, as JSON. Nothing is run.
///
/// # Errors
/// The file cannot be read, has more than 256 MB, or is no pickle of plain values.
pub fn plain_pickle(path: &Path) -> Result<Value> {
    let bytes = crate::input::bytes_of(path, "a pickle", pickle::LARGEST)?;
    let read = || -> Parsed<Value> {
        let len = bytes.len() as u64;
        let mut values = Pickle::new(Budget::of(len));
        let mut from = Cursor::new(bytes.as_slice());
        let value = values.read(&mut from, len)?;
        if from.position() != len {
            return malformed(format!("{} bytes follow its pickle", len - from.position()));
        }
        if !values.called.is_empty() {
            return refused(runs(&values.called));
        }
        let mut source = Source::new(path, FORMAT, len);
        let storages = |_: &Storage| refused("it holds tensors");
        let value = Walk::new(&values, &mut source, &storages).visit(value, "", 0)?;
        Ok(value.unwrap_or(Value::Null))
    };
    read().map_err(|fault| crate::open::told(fault, path, "pickle"))
}

/// Goes through a value, names its tensors by their paths, and keeps the rest as JSON.
struct Walk<'a> {
    values: &'a Pickle,
    source: &'a mut Source,
    storages: &'a dyn Fn(&Storage) -> Parsed<Segment>,
    /// Segments by the key of their storage.
    known: HashMap<String, usize>,
    /// Segments by the bytes of their array.
    arrays: HashMap<Id, usize>,
    classes: BTreeMap<String, usize>,
}

impl<'a> Walk<'a> {
    fn new(values: &'a Pickle, source: &'a mut Source, storages: &'a dyn Fn(&Storage) -> Parsed<Segment>) -> Self {
        Self { values, source, storages, known: HashMap::new(), arrays: HashMap::new(), classes: BTreeMap::new() }
    }

    fn root(mut self, id: Id) -> Parsed<()> {
        match &self.values[id] {
            Node::Dict { items, attributes } => {
                for (key, value) in last_of_each(self.values, items)? {
                    if let Some(json) = self.visit(value, &key, 1)? {
                        self.source.metadata.insert(key, json);
                    }
                }
                self.attributes(*attributes)?;
            }
            // One tensor, or a list of them.
            Node::Tensor(_) | Node::Array(Some(_)) => {
                self.visit(id, "tensor", 0)?;
            }
            _ => {
                if let Some(json) = self.visit(id, "", 0)? {
                    self.source.metadata.insert("value".into(), json);
                }
            }
        }
        for (class, times) in self.classes {
            self.source
                .remarks
                .push(format!("it names the class or function {class} ({times} times): kept as text, never run"));
        }
        self.source.calls.extend(self.values.called.iter().cloned());
        self.source.foreign.extend(self.values.names.keys().filter(|name| is_foreign(name)).cloned());
        self.source.settle().map_err(Fault::Malformed)
    }

    /// What is attached to a dictionary: our own metadata. (PyTorch attaches versions of modules, which it does not need to
    /// load them.)
    fn attributes(&mut self, attributes: Option<Id>) -> Parsed<()> {
        let Some(id) = attributes else { return Ok(()) };
        if let Some(metadata) = self.values.get(id, write::METADATA)?
            && let Some(Value::Object(entries)) = self.visit(metadata, write::METADATA, 1)?
        {
            let texts = entries.iter().map(|(k, v)| Some((k.clone(), v.as_str()?.to_string()))).collect::<Option<_>>();
            match texts {
                Some(texts) => {
                    let rest = retie(self.source, texts);
                    self.source.metadata.extend(rest.into_iter().map(|(k, v)| (k, v.into())));
                }
                None => self.source.metadata.extend(entries),
            }
        }
        Ok(())
    }

    /// The value as JSON without its tensors, which are added to the source under their paths; `None` where nothing else
    /// is left.
    fn visit(&mut self, id: Id, path: &str, depth: usize) -> Parsed<Option<Value>> {
        self.values.budget.spend(PART + path.len())?;
        if depth > DEEPEST {
            return malformed(format!("{}: nested too deeply", shorten(path)));
        }
        let join = |name: &str| if path.is_empty() { name.to_string() } else { format!("{path}.{name}") };
        Ok(Some(match &self.values[id] {
            Node::Tensor(tensor) => {
                self.tensor(tensor, path)?;
                return Ok(None);
            }
            Node::Array(Some(array)) => {
                self.array(array, path)?;
                return Ok(None);
            }
            Node::Dict { items, .. } => {
                let mut object = Map::new();
                for (key, value) in last_of_each(self.values, items)? {
                    if let Some(json) = self.visit(value, &join(&key), depth + 1)? {
                        object.insert(key, json);
                    }
                }
                if object.is_empty() && !items.is_empty() {
                    return Ok(None);
                }
                Value::Object(object)
            }
            Node::Tuple(items) | Node::List(items) | Node::Set(items) => {
                let mut list = vec![];
                for (i, item) in items.iter().enumerate() {
                    list.extend(self.visit(*item, &join(&i.to_string()), depth + 1)?);
                }
                if list.is_empty() && !items.is_empty() {
                    return Ok(None);
                }
                Value::Array(list)
            }
            Node::Namespace => Value::Object(Map::new()),
            Node::None => Value::Null,
            Node::Bool(b) => (*b).into(),
            Node::Int(n) => (*n).into(),
            Node::Float(f) if f.is_finite() => (*f).into(),
            Node::Float(f) => f.to_string().into(),
            Node::Big(text) | Node::Text(text) | Node::Device(text) => {
                self.values.budget.spend(text.len())?;
                text.clone().into()
            }
            Node::Object { name, .. } if !is_inert(name) => {
                self.values.budget.spend(2 * name.len())?;
                if path.is_empty() {
                    return refused(runs(&self.values.called));
                }
                self.source.left_out.push(format!("{path}: an object of {name} {MADE}"));
                return Ok(None);
            }
            Node::Global(name) | Node::Object { name, .. } => {
                self.values.budget.spend(2 * name.len())?;
                *self.classes.entry(name.clone()).or_default() += 1;
                format!("<class {name}>").into()
            }
            Node::Bytes(bytes) => {
                self.source.left_out.push(format!("{path}: {} bytes", bytes.len()));
                return Ok(None);
            }
            Node::Storage(storage) => {
                self.source
                    .left_out
                    .push(format!("{path}: a storage of {} elements without a tensor", storage.elements));
                return Ok(None);
            }
            Node::NumpyType(_) => format!("<{path}: a NumPy type>").into(),
            Node::Array(None) => return malformed(format!("{path}: an array without its state")),
        }))
    }

    fn segment(&mut self, storage: &Storage, size: usize) -> Parsed<usize> {
        let number = match self.known.get(&storage.key) {
            Some(number) => *number,
            None => {
                self.source.segments.push((self.storages)(storage)?);
                let number = self.source.segments.len() - 1;
                self.known.insert(storage.key.clone(), number);
                number
            }
        };
        let len = self.source.segments[number].len;
        let unit = storage.dtype.map_or(1, |_| size as u64);
        match (storage.elements as u64).checked_mul(unit) {
            Some(bytes) if bytes == len => Ok(number),
            _ => malformed(format!(
                "its storage {} has {len} bytes, but its pickle says {} elements of {unit}",
                storage.key, storage.elements
            )),
        }
    }

    fn tensor(&mut self, t: &Strided, path: &str) -> Parsed<()> {
        self.values.budget.spend(512 + 32 * t.shape.len())?;
        let size = t.dtype.size().unwrap_or(1);
        let segment = self.segment(&t.storage, size)?;
        let Some(offset) = t.offset.checked_mul(size) else {
            return malformed(format!("tensor {path}: an impossible offset"));
        };
        let plain = is_contiguous(&t.shape, &t.strides);
        let strides = (!plain).then(|| t.strides.clone());
        let data = Data { segment, offset: offset as u64, strides, big_endian: false };
        self.source.push(path.into(), t.dtype, t.shape.clone(), data).map_err(Fault::Malformed)
    }

    fn array(&mut self, array: &Array, path: &str) -> Parsed<()> {
        let (Some(dtype), Node::Bytes(bytes)) = (array.descr.dtype, &self.values[array.bytes]) else {
            return refused(format!("{path}: an array of texts"));
        };
        // Once, however often it is used.
        let segment = *self.arrays.entry(array.bytes).or_insert_with(|| {
            let (backing, len) = (crate::input::Backing::Memory(bytes.as_slice().into()), bytes.len() as u64);
            self.source.segments.push(Segment { backing, len, crc: None });
            self.source.segments.len() - 1
        });
        let data = Data {
            segment,
            offset: 0,
            strides: array.fortran.then(|| fortran(&array.shape)),
            big_endian: array.descr.big_endian,
        };
        self.source.push(path.into(), dtype, array.shape.clone(), data).map_err(Fault::Malformed)
    }
}

/// The items of a dictionary by the text of their keys, each at its first place with its last value.
fn last_of_each(values: &Pickle, items: &[(Id, Id)]) -> Parsed<Vec<(String, Id)>> {
    let mut positions: HashMap<String, (usize, std::mem::Discriminant<Node>)> = HashMap::new();
    let mut out: Vec<(String, Id)> = vec![];
    for (key, value) in items {
        values.budget.spend(PART)?;
        let (text, kind) = (key_text(values, *key)?, std::mem::discriminant(&values[*key]));
        match positions.get(&text) {
            // The same key again: the last value counts, as in Python.
            Some((place, same)) if *same == kind && is_exact(&values[*key]) => out[*place].1 = *value,
            Some(_) => {
                let text = shorten(&text);
                return refused(format!("a dictionary has two keys that both read {text}: rename one in Python"));
            }
            None => {
                positions.insert(text.clone(), (out.len(), kind));
                out.push((text, *value));
            }
        }
    }
    // Python takes 1, 1.0 and True for one key.
    let numbers = items.iter().map(|(key, _)| match values[*key] {
        Node::Int(_) | Node::Big(_) => 1,
        Node::Bool(_) => 2,
        Node::Float(_) => 4,
        _ => 0,
    });
    if numbers.fold(0u8, |all, kind| all | kind).count_ones() > 1 {
        return refused("a dictionary has keys that are numbers of several kinds: rename them in Python");
    }
    Ok(out)
}

/// Whether keys of this kind are the same if their texts are.
fn is_exact(key: &Node) -> bool {
    match key {
        // Half of a pair of surrogates reads like any other.
        Node::Text(text) => !text.contains(char::REPLACEMENT_CHARACTER),
        Node::Int(_) | Node::Big(_) | Node::Bool(_) | Node::None | Node::Global(_) => true,
        _ => false,
    }
}

fn key_text(values: &Pickle, key: Id) -> Parsed<String> {
    let text = |text: &String| values.budget.spend(2 * text.len()).map(|()| text.clone());
    Ok(match &values[key] {
        Node::Text(t) | Node::Global(t) | Node::Big(t) | Node::Device(t) => text(t)?,
        Node::Int(n) => n.to_string(),
        Node::Bool(b) => b.to_string(),
        Node::Float(f) => f.to_string(),
        Node::None => "None".into(),
        Node::Tuple(parts) => {
            let plain = |id: &Id| match &values[*id] {
                Node::Tuple(_) => Ok("(…)".into()),
                _ => key_text(values, *id),
            };
            values.budget.spend(PART * parts.len())?;
            format!("({})", parts.iter().map(plain).collect::<Parsed<Vec<_>>>()?.join(", "))
        }
        _ => "?".into(),
    })
}

fn shorten(path: &str) -> String {
    path.chars().take(80).collect()
}
