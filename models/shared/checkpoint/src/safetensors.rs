//! The safetensors format (<https://github.com/huggingface/safetensors>): eight bytes that count those of a JSON header,
//! the header, and the values without holes.
//!
//! The header is read and written here, not by the crate of that name: it needs the whole file in memory, keeps the last
//! of two tensors of one name without a word, and writes metadata in random order.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::sync::Arc;

use serde::de::{Deserializer, Error as _, MapAccess, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::archive::Record;
use crate::codec::{Codec, Probe};
use crate::format::Traits;
use crate::input::{Fault, Input, Parsed, Segment, malformed};
use crate::once::Once;
use crate::outline::{Outline, Streams};
use crate::source::Data;
use crate::ties::retie;
use crate::{Dtype, Format, Result, Source};

/// What the format is like.
pub(crate) const FORMAT: Format =
    Format::new(&Traits { shards: true, ..Traits::new("safetensors", "safetensors", &["safetensors"]) });

/// Its codec.
pub(crate) struct Safetensors;

impl Codec for Safetensors {
    fn format(&self) -> Format {
        FORMAT
    }

    fn sniff(&self, probe: &Probe) -> bool {
        looks_right(probe.start, probe.len)
    }

    fn open(&self, input: &Arc<Input>, _: Vec<Record>) -> Parsed<Source> {
        open(input)
    }

    fn holds(&self, dtype: Dtype) -> bool {
        dtype.safetensors().is_some()
    }

    fn write(&self, file: &mut File, path: &Path, outline: &Outline, streams: Streams) -> Result<()> {
        write(file, path, outline, streams)
    }
}

/// What the format allows.
const LARGEST_HEADER: u64 = 100_000_000;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: [u64; 2],
}

/// The header, its names in the file's order and each once.
struct Header {
    metadata: BTreeMap<String, String>,
    tensors: Vec<(String, Entry)>,
}

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(from: D) -> std::result::Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Header;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an object of tensors by name")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Header, A::Error> {
                let mut metadata = None;
                let (mut tensors, mut names) = (vec![], std::collections::HashSet::new());
                while let Some(name) = map.next_key::<String>()? {
                    if !names.insert(name.clone()) {
                        return Err(A::Error::custom(format!("two tensors are named {name}")));
                    }
                    if name == "__metadata__" {
                        let entries = map.next_value::<Option<Once<Value>>>()?.map_or_else(BTreeMap::new, |o| o.0);
                        metadata = Some(texts(entries).map_err(A::Error::custom)?);
                    } else {
                        let entry = map.next_value().map_err(|e| A::Error::custom(format!("tensor {name}: {e}")))?;
                        tensors.push((name, entry));
                    }
                }
                Ok(Header { metadata: metadata.unwrap_or_default(), tensors })
            }
        }
        from.deserialize_map(Entries)
    }
}

/// The entries of the metadata, which are texts.
fn texts(entries: BTreeMap<String, Value>) -> std::result::Result<BTreeMap<String, String>, String> {
    let text = |(key, value): (String, Value)| match value {
        Value::String(text) => Ok((key, text)),
        other => {
            let kind = match other {
                Value::Null => "null",
                Value::Bool(_) => "a truth value",
                Value::Number(_) => "a number",
                Value::Array(_) => "a list",
                _ => "an object",
            };
            Err(format!("entry {key:.60?} of its __metadata__ is {kind}: the format has texts there alone"))
        }
    };
    entries.into_iter().map(text).collect()
}

/// Whether a file may be in this format, by its first bytes.
fn looks_right(start: &[u8], len: u64) -> bool {
    start.len() > 8 && start[8] == b'{' && header_length(start).is_some_and(|n| n <= LARGEST_HEADER.max(len))
}

fn header_length(start: &[u8]) -> Option<u64> {
    Some(u64::from_le_bytes(start.get(..8)?.try_into().ok()?))
}

fn open(input: &Arc<Input>) -> Parsed<Source> {
    let length = header_length(&input.bytes(0..8)?).unwrap_or(0);
    if length > LARGEST_HEADER || length > input.len - 8 {
        return malformed(format!("its header would have {length} bytes, the file has {}", input.len));
    }
    let data = 8 + length;
    let source = parse(input, &input.bytes(8..data)?, input.len - data)?;
    Ok(source)
}

/// A source by the bytes of its header alone; `data_len` bytes of values follow it.
pub(crate) fn parse(input: &Arc<Input>, header: &[u8], data_len: u64) -> Parsed<Source> {
    if header.first() != Some(&b'{') {
        return malformed("its header is no JSON object");
    }
    let header: Header = serde_json::from_slice(header).map_err(|e| Fault::Malformed(format!("its header: {e}")))?;
    let mut source = Source::new(&input.path, FORMAT, input.len);
    source.segments.push(Segment::stored(input, input.len.saturating_sub(data_len)..input.len));
    source.segments[0].len = data_len;
    // Every byte belongs to one tensor: nothing hides between them, or behind the last.
    let mut order: Vec<&[u64; 2]> = header.tensors.iter().map(|(_, e)| &e.data_offsets).collect();
    order.sort();
    let mut end = 0;
    for [from, to] in order {
        if *from != end || to < from {
            return malformed(format!("a tensor's values are at {from} to {to}, but those before it end at {end}"));
        }
        end = *to;
    }
    if end != data_len {
        return malformed(format!("its tensors end at {end}, its values at {data_len}"));
    }
    for (name, Entry { dtype, shape, data_offsets: [from, to] }) in header.tensors {
        let Some(dtype) = Dtype::from_safetensors(&dtype) else {
            return malformed(format!("tensor {name}: the format has no dtype {dtype}"));
        };
        let data = Data { segment: 0, offset: from, strides: None, big_endian: false };
        source.push(name, dtype, shape, data).map_err(Fault::Malformed)?;
        match source.tensors.last() {
            Some(t) if t.bytes() != to - from => {
                return malformed(format!("tensor {}: {} bytes for {:?} of {}", t.name, to - from, t.shape, t.dtype));
            }
            _ => {}
        }
    }
    let metadata = retie(&mut source, header.metadata);
    source.metadata = metadata.into_iter().map(|(k, v)| (k, v.into())).collect();
    Ok(source)
}

/// The header for these tensors, whose values follow in the order of the returned numbers.
fn header(outline: &Outline) -> (String, Vec<usize>) {
    let mut order: Vec<usize> = (0..outline.tensors.len()).filter(|i| outline.tensors[*i].tied_to.is_none()).collect();
    // The format aligns every tensor to its element size: wider elements come first.
    order.sort_by_key(|i| std::cmp::Reverse(outline.tensors[*i].dtype.size()));
    let mut entries: Map<String, Value> = outline.texts().into_iter().map(|(k, v)| (k, v.into())).collect();
    entries.entry("format").or_insert("pt".into());
    let mut header = Map::from_iter([("__metadata__".to_string(), Value::Object(entries))]);
    let mut end = 0;
    for i in &order {
        let t = &outline.tensors[*i];
        let start = end;
        end += t.bytes();
        let entry = Entry {
            dtype: t.dtype.safetensors().unwrap_or_default().into(),
            shape: t.shape.clone(),
            data_offsets: [start, end],
        };
        header.insert(t.name.clone(), serde_json::to_value(entry).unwrap_or_default());
    }
    let mut header = Value::Object(header).to_string();
    header.push_str(&" ".repeat(header.len().next_multiple_of(8) - header.len()));
    (header, order)
}

/// Writes to an open file.
fn write(file: &mut File, path: &Path, outline: &Outline, streams: Streams) -> Result<()> {
    let io = crate::Error::io;
    let (header, order) = header(outline);
    let mut file = BufWriter::with_capacity(1 << 16, file);
    file.write_all(&(header.len() as u64).to_le_bytes()).map_err(io(path))?;
    file.write_all(header.as_bytes()).map_err(io(path))?;
    for i in order {
        streams(i, &mut |piece| file.write_all(piece).map_err(io(path)))?;
    }
    file.flush().map_err(io(path))
}
