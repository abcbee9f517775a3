//! GGUF (<https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>), versions 2 and 3: typed entries, tensor
//! descriptions, values. Blocks are made and read by candle's quantizers; the header is checked here.

use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Write};
use std::path::Path;
use std::sync::Arc;

use serde_json::Value;

use crate::archive::Record;
use crate::codec::{Codec, Probe};
use crate::format::Traits;
use crate::input::{Budget, Fault, Input, Parsed, Segment, Window, malformed, refused};
use crate::outline::{Outline, Streams};
use crate::source::{Data, Typed};
use crate::ties::retie;
use crate::{Blocks, Dtype, Error, Format, Result, Source};

/// What the format is like.
pub(crate) const FORMAT: Format = Format::new(&Traits { blocks: true, ..Traits::new("gguf", "GGUF", &["gguf"]) });

/// Its codec.
pub(crate) struct Gguf;

impl Codec for Gguf {
    fn format(&self) -> Format {
        FORMAT
    }

    fn sniff(&self, probe: &Probe) -> bool {
        probe.start.starts_with(b"GGUF")
    }

    fn open(&self, input: &Arc<Input>, _: Vec<Record>) -> Parsed<Source> {
        open(input)
    }

    fn holds(&self, dtype: Dtype) -> bool {
        number_of(dtype).is_some()
    }

    fn write(&self, file: &mut File, path: &Path, outline: &Outline, streams: Streams) -> Result<()> {
        write(file, path, outline, streams)
    }
}

/// Numbers of the format's plain element types.
const TYPES: &[(u32, Dtype)] = &[
    (0, Dtype::F32),
    (1, Dtype::F16),
    (24, Dtype::I8),
    (25, Dtype::I16),
    (26, Dtype::I32),
    (27, Dtype::I64),
    (28, Dtype::F64),
    (30, Dtype::BF16),
];

/// Types that are not read, by name.
const UNREAD: &[(u32, &str)] = &[
    (4, "Q4_2"),
    (5, "Q4_3"),
    (31, "Q4_0_4_4"),
    (32, "Q4_0_4_8"),
    (33, "Q4_0_8_8"),
    (36, "IQ4_NL_4_4"),
    (37, "IQ4_NL_4_8"),
    (38, "IQ4_NL_8_8"),
    (40, "NVFP4"),
    (41, "Q1_0"),
    (42, "Q2_0"),
];
const TAKEN_BACK: [u32; 8] = [4, 5, 31, 32, 33, 36, 37, 38];

/// Zeros that may follow the last tensor, at most: some writers pad behind it, and by more than they have to.
const LONGEST_PADDING: u64 = 1 << 16;

/// What llama.cpp allows.
const MOST_DIMENSIONS: u32 = 4;
const LONGEST_NAME: u64 = 64;
const LARGEST_ENTRY: u64 = 1 << 30;
const DEEPEST: u32 = 8;
const ALIGNMENT: &str = "general.alignment";

struct Reader {
    from: BufReader<Window>,
    left: u64,
    budget: Budget,
    /// What was read since the last entry began.
    seen: Vec<u8>,
}

impl Reader {
    fn bytes(&mut self, n: u64) -> Parsed<Vec<u8>> {
        let Some(left) = self.left.checked_sub(n).filter(|_| n <= LARGEST_ENTRY) else {
            return malformed(format!("a part of its header would have {n} bytes, {} are left", self.left));
        };
        self.left = left;
        let mut bytes = vec![];
        (&mut self.from).take(n).read_to_end(&mut bytes)?;
        if bytes.len() as u64 != n {
            return malformed("it ends too early");
        }
        self.seen.extend_from_slice(&bytes);
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self) -> Parsed<[u8; N]> {
        let bytes = self.bytes(N as u64)?;
        bytes.try_into().or_else(|_| malformed("it ends too early"))
    }

    fn u32(&mut self) -> Parsed<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Parsed<u64> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    fn text(&mut self) -> Parsed<String> {
        let n = self.u64()?;
        String::from_utf8(self.bytes(n)?).or_else(|_| malformed("a text of its header is no UTF-8"))
    }

    fn value(&mut self, kind: u32, depth: u32) -> Parsed<Value> {
        Ok(match kind {
            0 => self.array::<1>()?[0].into(),
            1 => (self.array::<1>()?[0] as i8).into(),
            2 => u16::from_le_bytes(self.array()?).into(),
            3 => i16::from_le_bytes(self.array()?).into(),
            4 => self.u32()?.into(),
            5 => i32::from_le_bytes(self.array()?).into(),
            6 => number(f32::from_le_bytes(self.array()?).into()),
            7 => match self.array::<1>()?[0] {
                0 => false.into(),
                1 => true.into(),
                other => return malformed(format!("a truth value of its header is {other}")),
            },
            8 => self.text()?.into(),
            9 if depth < DEEPEST => {
                let (kind, n) = (self.u32()?, self.u64()?);
                let least = match kind {
                    8 => 8,
                    9 => 12,
                    0 | 1 | 7 => 1,
                    2 | 3 => 2,
                    4..=6 => 4,
                    _ => 8,
                };
                if n.checked_mul(least).is_none_or(|b| b > self.left) {
                    return malformed(format!("a list of its header would have {n} values"));
                }
                // What a value takes as JSON, whatever it takes in the file.
                self.budget.spend((n as usize).saturating_mul(128))?;
                Value::Array((0..n).map(|_| self.value(kind, depth + 1)).collect::<Parsed<_>>()?)
            }
            10 => self.u64()?.into(),
            11 => i64::from_le_bytes(self.array()?).into(),
            12 => number(f64::from_le_bytes(self.array()?)),
            _ => return malformed(format!("an entry of its header has type {kind}, or is nested too deeply")),
        })
    }
}

fn number(value: f64) -> Value {
    if value.is_finite() { value.into() } else { value.to_string().into() }
}

fn open(input: &Arc<Input>) -> Parsed<Source> {
    let from = BufReader::with_capacity(1 << 16, Window::new(input, 0..input.len));
    let mut r = Reader { from, left: input.len, budget: Budget::of(input.len), seen: vec![] };
    r.array::<4>()?;
    match r.u32()? {
        2 | 3 => {}
        1 => return refused("it has version 1 of GGUF: convert it with llama.cpp"),
        v if (1..=3).contains(&v.swap_bytes()) => return refused("it was written on a big-endian machine"),
        v => return refused(format!("it has version {v} of GGUF, known are 2 and 3")),
    }
    let (tensors, entries) = (r.u64()?, r.u64()?);
    // An entry takes at least a length, a type and a byte; a tensor at least a length, counts and an offset.
    if entries.checked_mul(13).is_none_or(|n| n > r.left) || tensors.checked_mul(24).is_none_or(|n| n > r.left) {
        return malformed(format!("it would have {entries} entries and {tensors} tensors"));
    }
    let mut source = Source::new(&input.path, FORMAT, input.len);
    let alignment = self::entries(&mut r, &mut source, entries)?;
    let described = (0..tensors).map(|_| described(&mut r)).collect::<Parsed<Vec<_>>>()?;
    let data = (input.len - r.left).next_multiple_of(alignment);
    place(input, &mut source, described, data, alignment)?;
    source.settle().map_err(Fault::Malformed)?;
    let texts = source.metadata.iter().filter_map(|(k, v)| Some((k.clone(), v.as_str()?.to_string()))).collect();
    let rest = retie(&mut source, texts);
    let ties: Vec<String> = source
        .metadata
        .iter()
        .filter(|(k, v)| v.is_string() && !rest.contains_key(*k))
        .map(|(k, _)| k.clone())
        .collect();
    source.metadata.retain(|k, _| !ties.contains(k));
    source.typed.retain(|t| !ties.contains(&t.key) && t.key != ALIGNMENT);
    Ok(source)
}

/// Reads the entries of the header; the alignment that they ask for.
fn entries(r: &mut Reader, source: &mut Source, count: u64) -> Parsed<u64> {
    let mut alignment = 32;
    for _ in 0..count {
        let key = r.text()?;
        let kind = r.u32()?;
        r.seen.clear();
        let value = r.value(kind, 0)?;
        if key.is_empty() || source.metadata.contains_key(&key) {
            return malformed(format!("an entry of its header is named {key:?}, or two are"));
        }
        if key == ALIGNMENT {
            alignment = match value.as_u64() {
                Some(a) if kind == 4 && a.is_power_of_two() && (8..=1 << 20).contains(&a) => a,
                _ => return malformed(format!("{ALIGNMENT} is {value}, expected a power of two from 8 on as u32")),
            };
        }
        source.typed.push(Typed { key: key.clone(), kind, bytes: std::mem::take(&mut r.seen) });
        source.metadata.insert(key, value);
        r.seen.clear();
    }
    Ok(alignment)
}

/// A tensor as the header describes it.
struct Described {
    name: String,
    shape: Vec<usize>,
    dtype: Dtype,
    offset: u64,
}

fn described(r: &mut Reader) -> Parsed<Described> {
    let name = r.text()?;
    let dimensions = r.u32()?;
    if dimensions > MOST_DIMENSIONS || name.len() as u64 > LARGEST_ENTRY {
        return malformed(format!("tensor {name} has {dimensions} dimensions"));
    }
    let mut shape = (0..dimensions).map(|_| r.u64()).collect::<Parsed<Vec<u64>>>()?;
    shape.reverse();
    let shape: Vec<usize> = match shape.iter().map(|d| usize::try_from(*d).ok().filter(|d| *d > 0)).collect() {
        Some(shape) => shape,
        None => return malformed(format!("tensor {name} has shape {shape:?}")),
    };
    let kind = r.u32()?;
    let dtype = match (dtype_of(kind), UNREAD.iter().find(|(n, _)| *n == kind)) {
        (Some(dtype), _) => dtype,
        (None, Some((_, called))) if TAKEN_BACK.contains(&kind) => {
            return refused(format!(
                "tensor {name} is of type {kind} ({called}), which llama.cpp has taken back: quantize the model anew"
            ));
        }
        (None, called) => {
            let called = called.map_or(String::new(), |(_, called)| format!(" ({called})"));
            return refused(format!("tensor {name} is of type {kind}{called}, which this version does not know"));
        }
    };
    if let Dtype::Quantized(q) = dtype
        && shape.last().is_none_or(|n| n % q.elements() != 0)
    {
        return malformed(format!("tensor {name}: rows of {shape:?} are no whole blocks of {dtype}"));
    }
    let offset = r.u64()?;
    r.seen.clear();
    Ok(Described { name, shape, dtype, offset })
}

/// Adds the tensors, whose values begin at `data`: every one begins where the one before it ends, padded.
fn place(input: &Arc<Input>, source: &mut Source, described: Vec<Described>, data: u64, alignment: u64) -> Parsed<()> {
    let any = !described.is_empty();
    if any && data > input.len {
        return malformed("it ends before its tensors");
    }
    source.segments.push(Segment::stored(input, data.min(input.len)..input.len));
    let (mut expected, mut end) = (0u64, 0u64);
    for Described { name, shape, dtype, offset } in described {
        if offset != expected {
            return malformed(format!("tensor {name} begins at {offset}, expected {expected}"));
        }
        let at = Data { segment: 0, offset, strides: None, big_endian: false };
        source.push(name, dtype, shape, at).map_err(Fault::Malformed)?;
        let bytes = source.tensors.last().map_or(0, crate::TensorInfo::bytes);
        end = offset + bytes;
        expected = end.next_multiple_of(alignment);
    }
    let end = data.saturating_add(end);
    match input.len.checked_sub(end) {
        None if any => malformed("it ends within its last tensor"),
        Some(rest) if rest > LONGEST_PADDING || input.bytes(end..input.len)?.iter().any(|b| *b != 0) => {
            malformed(format!("{rest} bytes follow its tensors, which are no padding"))
        }
        _ => Ok(()),
    }
}

fn dtype_of(kind: u32) -> Option<Dtype> {
    let plain = TYPES.iter().find(|(n, _)| *n == kind).map(|(_, dtype)| *dtype);
    plain.or_else(|| Blocks::from_number(kind).map(Dtype::Quantized))
}

fn number_of(dtype: Dtype) -> Option<u32> {
    match dtype {
        Dtype::Quantized(blocks) => Some(blocks.number()),
        plain => TYPES.iter().find(|(_, d)| *d == plain).map(|(n, _)| *n),
    }
}

fn write(file: &mut File, path: &Path, outline: &Outline, streams: Streams) -> Result<()> {
    let stored: Vec<usize> = (0..outline.tensors.len()).filter(|i| outline.tensors[*i].tied_to.is_none()).collect();
    for i in &stored {
        let t = &outline.tensors[*i];
        let refuse =
            |reason: String| Err(Error::Refused { path: path.into(), reason: format!("tensor {}: {reason}", t.name) });
        if t.shape.len() > MOST_DIMENSIONS as usize || t.shape.contains(&0) {
            return refuse(format!("GGUF has one to four dimensions of at least 1, not {:?}", t.shape));
        }
        if t.name.len() as u64 >= LONGEST_NAME {
            return refuse(format!("GGUF names have fewer than {LONGEST_NAME} bytes: rename it by a rule"));
        }
    }
    let mut head = b"GGUF\x03\0\0\0".to_vec();
    let text = |head: &mut Vec<u8>, t: &str| {
        head.extend((t.len() as u64).to_le_bytes());
        head.extend(t.bytes());
    };
    // Entries that came from a GGUF file keep their types; others get those of their values.
    let mut texts = outline.texts();
    if outline.typed.is_empty() && !texts.contains_key("general.architecture") {
        let model = texts.get("model").cloned().unwrap_or_else(|| "zoo".into());
        texts.insert("general.architecture".into(), model);
    }
    texts.retain(|key, _| key != ALIGNMENT && !outline.typed.iter().any(|t| &t.key == key));
    head.extend((stored.len() as u64).to_le_bytes());
    head.extend(((outline.typed.len() + texts.len()) as u64).to_le_bytes());
    for Typed { key, kind, bytes } in &outline.typed {
        text(&mut head, key);
        head.extend(kind.to_le_bytes());
        head.extend(bytes);
    }
    for (key, value) in &texts {
        text(&mut head, key);
        match outline.metadata.get(key).and_then(typed) {
            Some((kind, bytes)) => {
                head.extend(kind.to_le_bytes());
                head.extend(bytes);
            }
            None => {
                head.extend(8u32.to_le_bytes());
                text(&mut head, value);
            }
        }
    }
    let mut offset = 0u64;
    for i in &stored {
        let t = &outline.tensors[*i];
        text(&mut head, &t.name);
        head.extend((t.shape.len() as u32).to_le_bytes());
        t.shape.iter().rev().for_each(|d| head.extend((*d as u64).to_le_bytes()));
        head.extend(number_of(t.dtype).unwrap_or(0).to_le_bytes());
        head.extend(offset.to_le_bytes());
        offset += t.bytes().next_multiple_of(32);
    }
    head.resize(head.len().next_multiple_of(32), 0);
    let mut file = BufWriter::with_capacity(1 << 16, file);
    file.write_all(&head).map_err(Error::io(path))?;
    for i in stored {
        streams(i, &mut |piece| file.write_all(piece).map_err(Error::io(path)))?;
        let bytes = outline.tensors[i].bytes();
        let padding = (bytes.next_multiple_of(32) - bytes) as usize;
        file.write_all(&[0; 32][..padding]).map_err(Error::io(path))?;
    }
    file.flush().map_err(Error::io(path))
}

/// The type and the bytes of a number, a truth value, or a list of texts, truth values or numbers. Numbers take the narrowest type that
/// programs expect and that holds them, all of a list the same: u32 (in lists i32) or f32. Anything else is a text.
fn typed(value: &Value) -> Option<(u32, Vec<u8>)> {
    let Value::Array(list) = value else {
        let kind = kind_of(value, false).filter(|kind| *kind != 8)?;
        return Some((kind, bytes_as(value, kind)?));
    };
    let kinds = list.iter().map(|item| kind_of(item, true)).collect::<Option<Vec<u32>>>()?;
    let kind = match kinds.as_slice() {
        [] => 8,
        [first, ..] if kinds.iter().all(|k| k == first) => *first,
        _ if kinds.iter().all(|k| matches!(k, 5 | 11)) => 11,
        _ if kinds.iter().all(|k| matches!(k, 6 | 12)) => 12,
        _ => return None,
    };
    let mut bytes = [&kind.to_le_bytes()[..], &(list.len() as u64).to_le_bytes()].concat();
    for item in list {
        bytes.extend(bytes_as(item, kind)?);
    }
    Some((9, bytes))
}

fn kind_of(value: &Value, listed: bool) -> Option<u32> {
    Some(match value {
        Value::Bool(_) => 7,
        Value::String(_) => 8,
        Value::Number(n) if n.is_f64() => {
            let wide = n.as_f64()?;
            if f64::from(wide as f32) == wide { 6 } else { 12 }
        }
        Value::Number(n) => match n.as_i64() {
            Some(n) if listed || n < 0 => {
                if i32::try_from(n).is_ok() {
                    5
                } else {
                    11
                }
            }
            _ => {
                if u32::try_from(n.as_u64()?).is_ok() {
                    4
                } else {
                    10
                }
            }
        },
        _ => return None,
    })
}

fn bytes_as(value: &Value, kind: u32) -> Option<Vec<u8>> {
    Some(match kind {
        4 => u32::try_from(value.as_u64()?).ok()?.to_le_bytes().into(),
        5 => i32::try_from(value.as_i64()?).ok()?.to_le_bytes().into(),
        6 => (value.as_f64()? as f32).to_le_bytes().into(),
        7 => vec![u8::from(value.as_bool()?)],
        8 => {
            let text = value.as_str()?;
            [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
        }
        10 => value.as_u64()?.to_le_bytes().into(),
        11 => value.as_i64()?.to_le_bytes().into(),
        12 => value.as_f64()?.to_le_bytes().into(),
        _ => return None,
    })
}
