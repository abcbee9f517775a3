//! ONNX (<https://onnx.ai/onnx/repo-docs/IR.html>): the initializers of a graph as tensors, and what the graph computes. It is read, not
//! written: a graph is more than its tensors.
//!
//! Of the protocol buffer only what stands before values is read, from where it lies: a decoder of whole messages would take memory for
//! all of it.

use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;
use std::path::{Component, Path};
use std::sync::Arc;

use serde_json::{Map, Value, json};

use crate::archive::Record;
use crate::codec::{Codec, Probe};
use crate::format::Traits;
use crate::input::{Budget, Fault, Input, Parsed, Segment, malformed, refused};
use crate::outline::{Outline, Streams};
use crate::source::Data;
use crate::{Dtype, Error, Format, Result, Source};

/// What the format is like.
pub(crate) const FORMAT: Format = Format::new(&Traits::new("onnx", "ONNX", &["onnx"]));

/// Its codec.
pub(crate) struct Onnx;

impl Codec for Onnx {
    fn format(&self) -> Format {
        FORMAT
    }

    fn sniff(&self, probe: &Probe) -> bool {
        // The version of the format, a small number, and the tag of a field of a model.
        let known = matches!(probe.start, [0x08, 1..=63, 0x12 | 0x1a | 0x22 | 0x28 | 0x32 | 0x3a | 0x42 | 0x72, ..]);
        // As the length of a safetensors header that would be at least a million.
        known && probe.start.get(3..8).is_none_or(|rest| rest != [0; 5])
    }

    fn open(&self, input: &Arc<Input>, _: Vec<Record>) -> Parsed<Source> {
        open(input)
    }

    fn holds(&self, _: Dtype) -> bool {
        false
    }

    fn refuses(&self, _: &Outline) -> Option<String> {
        Some("ONNX files are graphs, which are made of models: tensors alone go into another format".into())
    }

    fn write(&self, _: &mut File, path: &Path, outline: &Outline, _: Streams) -> Result<()> {
        Err(Error::Refused { path: path.into(), reason: self.refuses(outline).unwrap_or_default() })
    }
}

/// Numbers of element types (`TensorProto.DataType`).
const TYPES: [(u64, Dtype); 18] = [
    (1, Dtype::F32),
    (2, Dtype::U8),
    (3, Dtype::I8),
    (4, Dtype::U16),
    (5, Dtype::I16),
    (6, Dtype::I32),
    (7, Dtype::I64),
    (9, Dtype::Bool),
    (10, Dtype::F16),
    (11, Dtype::F64),
    (12, Dtype::U32),
    (13, Dtype::U64),
    (14, Dtype::C64),
    (15, Dtype::C128),
    (16, Dtype::BF16),
    (17, Dtype::F8E4M3),
    (18, Dtype::F8E4M3Fnuz),
    (19, Dtype::F8E5M2),
];

/// Bytes that are read at once.
const BLOCK: u64 = 1 << 14;
/// Texts of a graph that are longer are no names.
const LONGEST_NAME: u64 = 4096;
/// Entries about a model that are longer are not read.
const LONGEST_ENTRY: u64 = 1 << 26;
/// Files of values that are open at once.
const MOST_FILES: usize = 256;
/// Dimensions, as elsewhere.
const MOST_DIMENSIONS: usize = 64;

/// A file with the block of it that is looked at.
struct Reader<'a> {
    input: &'a Arc<Input>,
    block: Vec<u8>,
    at: u64,
    budget: Budget,
}

/// A field of a message.
enum Field {
    Number(u64),
    /// Four or eight bytes.
    Fixed,
    Piece(Range<u64>),
}

impl Reader<'_> {
    fn byte(&mut self, at: u64) -> Parsed<u8> {
        if at < self.at || at >= self.at + self.block.len() as u64 {
            self.block = self.input.bytes(at..self.input.len.min(at + BLOCK))?;
            self.at = at;
        }
        match self.block.get((at - self.at) as usize) {
            Some(byte) => Ok(*byte),
            None => malformed("it ends too early"),
        }
    }

    /// A number of up to ten bytes, seven bits in each; what lies within `range` is consumed.
    fn varint(&mut self, range: &mut Range<u64>) -> Parsed<u64> {
        let mut value = 0;
        for shift in (0..70).step_by(7) {
            if range.is_empty() {
                return malformed("it ends within a number");
            }
            let byte = self.byte(range.start)?;
            range.start += 1;
            value |= u64::from(byte & 0x7f).checked_shl(shift).unwrap_or(0);
            if byte < 0x80 {
                return Ok(value);
            }
        }
        malformed("a number of it has more than ten bytes")
    }

    /// The next field of a message, of which `range` is what is left.
    fn field(&mut self, range: &mut Range<u64>) -> Parsed<Option<(u64, Field)>> {
        if range.is_empty() {
            return Ok(None);
        }
        self.budget.spend(8)?;
        let key = self.varint(range)?;
        let skip = |range: &mut Range<u64>, n: u64| match range.start.checked_add(n).filter(|end| *end <= range.end) {
            Some(end) => {
                let piece = range.start..end;
                range.start = end;
                Ok(piece)
            }
            None => malformed(format!("a part of {n} bytes reaches beyond what it is a part of")),
        };
        let field = match key & 7 {
            0 => Field::Number(self.varint(range)?),
            1 => skip(range, 8).map(|_| Field::Fixed)?,
            2 => {
                let n = self.varint(range)?;
                Field::Piece(skip(range, n)?)
            }
            5 => skip(range, 4).map(|_| Field::Fixed)?,
            kind => return malformed(format!("a field has wire type {kind}, which is not valid")),
        };
        match key >> 3 {
            0 => malformed("a field has number 0, which is not valid"),
            number => Ok(Some((number, field))),
        }
    }

    /// A text of at most `most` bytes.
    fn text(&mut self, range: Range<u64>, most: u64) -> Parsed<String> {
        let n = range.end - range.start;
        if n > most {
            return malformed(format!("a text of it has {n} bytes"));
        }
        self.budget.spend(n as usize + 64)?;
        String::from_utf8(self.input.bytes(range)?).or_else(|_| malformed("a text of it is no UTF-8"))
    }

    /// Key and value of an entry.
    fn entry(&mut self, mut range: Range<u64>) -> Parsed<(String, String)> {
        let (mut key, mut value) = (String::new(), String::new());
        while let Some((number, field)) = self.field(&mut range)? {
            match (number, field) {
                (1, Field::Piece(piece)) => key = self.text(piece, LONGEST_NAME)?,
                (2, Field::Piece(piece)) => value = self.text(piece, LONGEST_ENTRY)?,
                _ => {}
            }
        }
        Ok((key, value))
    }

    /// Numbers that stand one by one or in a piece.
    fn numbers(&mut self, field: Field, to: &mut Vec<u64>) -> Parsed<()> {
        match field {
            Field::Number(n) => to.push(n),
            Field::Piece(mut piece) => {
                while !piece.is_empty() && to.len() <= MOST_DIMENSIONS {
                    to.push(self.varint(&mut piece)?);
                }
            }
            Field::Fixed => return malformed("a dimension of it is no whole number"),
        }
        match to.len() > MOST_DIMENSIONS {
            true => malformed(format!("a tensor has more than {MOST_DIMENSIONS} dimensions")),
            false => Ok(()),
        }
    }
}

/// A graph and the model around it, as far as it is told.
#[derive(Default)]
struct Seen {
    producer: [String; 2],
    opsets: Map<String, Value>,
    inputs: Vec<Value>,
    outputs: Vec<Value>,
    ops: BTreeMap<String, u64>,
    /// Values that nodes hold themselves, and graphs.
    constants: u64,
    graphs: u64,
}

/// A tensor as it stands in the file.
#[derive(Default)]
struct Found {
    name: String,
    kind: u64,
    dims: Vec<u64>,
    /// Values as they are in memory.
    raw: Option<Range<u64>>,
    /// Whether values stand as numbers, one by one.
    coded: bool,
    /// Where else they are.
    external: BTreeMap<String, String>,
}

fn open(input: &Arc<Input>) -> Parsed<Source> {
    let mut reader = Reader { input, block: vec![], at: 0, budget: Budget::of(input.len) };
    let mut source = Source::new(&input.path, FORMAT, input.len);
    source.segments.push(Segment::stored(input, 0..input.len));
    let (mut seen, mut whole, mut graphs) = (Seen::default(), 0..input.len, 0);
    let mut files = BTreeMap::new();
    while let Some((number, field)) = reader.field(&mut whole)? {
        match (number, field) {
            (2, Field::Piece(piece)) => seen.producer[0] = reader.text(piece, LONGEST_NAME)?,
            (3, Field::Piece(piece)) => seen.producer[1] = reader.text(piece, LONGEST_NAME)?,
            (7, Field::Piece(piece)) => {
                graphs += 1;
                graph(&mut reader, piece, &mut source, &mut seen, &mut files)?;
            }
            (8, Field::Piece(piece)) => opset(&mut reader, piece, &mut seen)?,
            (14, Field::Piece(piece)) => {
                let (key, value) = reader.entry(piece)?;
                source.metadata.insert(key, value.into());
            }
            _ => {}
        }
    }
    if graphs != 1 {
        return malformed(format!("it has {graphs} graphs, expected one"));
    }
    if seen.opsets.is_empty() {
        return malformed("it does not say which version of the operators it has");
    }
    source.settle().map_err(Fault::Malformed)?;
    let Seen { producer, opsets, inputs, outputs, ops, constants, graphs } = seen;
    for (n, what) in [(constants, "constants"), (graphs, "graphs with tensors of their own")] {
        if n > 0 {
            source
                .remarks
                .push(format!("{n} {what} stand within the nodes of its graph, and are not among its tensors"));
        }
    }
    source.graph = Some(json!({
        "producer": producer[0], "producer_version": producer[1], "opsets": opsets, "inputs": inputs, "outputs": outputs,
        "nodes": ops.values().sum::<u64>(), "ops": ops,
    }));
    Ok(source)
}

fn opset(reader: &mut Reader, mut range: Range<u64>, seen: &mut Seen) -> Parsed<()> {
    let (mut domain, mut version) = (String::new(), 0);
    while let Some((number, field)) = reader.field(&mut range)? {
        match (number, field) {
            (1, Field::Piece(piece)) => domain = reader.text(piece, LONGEST_NAME)?,
            (2, Field::Number(n)) => version = n,
            _ => {}
        }
    }
    let domain = if domain.is_empty() { "ai.onnx".to_string() } else { domain };
    seen.opsets.insert(domain, version.into());
    Ok(())
}

/// Open files of values by their names.
type Files = BTreeMap<String, (usize, u64)>;

fn graph(
    reader: &mut Reader,
    mut range: Range<u64>,
    source: &mut Source,
    seen: &mut Seen,
    files: &mut Files,
) -> Parsed<()> {
    while let Some((number, field)) = reader.field(&mut range)? {
        match (number, field) {
            (1, Field::Piece(piece)) => node(reader, piece, seen)?,
            (5, Field::Piece(piece)) => {
                let found = tensor(reader, piece)?;
                place(found, source, files)?;
            }
            (11, Field::Piece(piece)) => seen.inputs.push(port(reader, piece)?),
            (12, Field::Piece(piece)) => seen.outputs.push(port(reader, piece)?),
            (15, Field::Piece(_)) => source.left_out.push("a sparse tensor".into()),
            _ => {}
        }
    }
    Ok(())
}

/// Counts a node by its operator.
fn node(reader: &mut Reader, mut range: Range<u64>, seen: &mut Seen) -> Parsed<()> {
    let (mut op, mut domain) = (String::new(), String::new());
    while let Some((number, field)) = reader.field(&mut range)? {
        match (number, field) {
            (4, Field::Piece(piece)) => op = reader.text(piece, LONGEST_NAME)?,
            (5, Field::Piece(mut attribute)) => {
                while let Some((number, _)) = reader.field(&mut attribute)? {
                    seen.constants += u64::from(matches!(number, 5 | 10));
                    seen.graphs += u64::from(matches!(number, 6 | 11));
                }
            }
            (7, Field::Piece(piece)) => domain = reader.text(piece, LONGEST_NAME)?,
            _ => {}
        }
    }
    let named = if domain.is_empty() || domain == "ai.onnx" { op } else { format!("{domain}.{op}") };
    *seen.ops.entry(named).or_default() += 1;
    Ok(())
}

/// An input or an output: its name, type and dimensions.
fn port(reader: &mut Reader, mut range: Range<u64>) -> Parsed<Value> {
    // What it takes as JSON.
    reader.budget.spend(1024)?;
    let (mut name, mut kind, mut dims, mut help) = (String::new(), Value::Null, Value::Null, String::new());
    while let Some((number, field)) = reader.field(&mut range)? {
        match (number, field) {
            (1, Field::Piece(piece)) => name = reader.text(piece, LONGEST_NAME)?,
            (2, Field::Piece(mut whole)) => {
                while let Some((number, field)) = reader.field(&mut whole)? {
                    // Sequences, maps and optional values have no shape.
                    if let (1, Field::Piece(piece)) = (number, field) {
                        (kind, dims) = shape(reader, piece)?;
                    }
                }
            }
            (3, Field::Piece(piece)) => help = reader.text(piece, LONGEST_ENTRY)?,
            _ => {}
        }
    }
    Ok(json!({ "name": name, "type": kind, "dims": dims, "help": help }))
}

/// The element type and the dimensions of a tensor's type: numbers, names, or nothing where neither is known.
fn shape(reader: &mut Reader, mut range: Range<u64>) -> Parsed<(Value, Value)> {
    let (mut kind, mut dims) = (Value::Null, Value::Null);
    while let Some((number, field)) = reader.field(&mut range)? {
        match (number, field) {
            (1, Field::Number(n)) => {
                let known = TYPES.iter().find(|t| t.0 == n).map(|t| t.1.to_string());
                kind = known.unwrap_or_else(|| format!("type {n}")).into();
            }
            (2, Field::Piece(mut piece)) => {
                let mut all = vec![];
                while let Some((number, field)) = reader.field(&mut piece)? {
                    let (1, Field::Piece(mut dim)) = (number, field) else { continue };
                    let mut value = Value::Null;
                    while let Some((number, field)) = reader.field(&mut dim)? {
                        match (number, field) {
                            (1, Field::Number(n)) => value = (n as i64).into(),
                            (2, Field::Piece(piece)) => value = reader.text(piece, LONGEST_NAME)?.into(),
                            _ => {}
                        }
                    }
                    reader.budget.spend(64)?;
                    all.push(value);
                }
                dims = all.into();
            }
            _ => {}
        }
    }
    Ok((kind, dims))
}

fn tensor(reader: &mut Reader, mut range: Range<u64>) -> Parsed<Found> {
    let mut found = Found::default();
    let mut pieces = 0;
    while let Some((number, field)) = reader.field(&mut range)? {
        match (number, field) {
            (1, field) => reader.numbers(field, &mut found.dims)?,
            (2, Field::Number(n)) => found.kind = n,
            (8, Field::Piece(piece)) => found.name = reader.text(piece, LONGEST_NAME)?,
            // Packed numbers of four and eight bytes lie as they do in memory.
            (4 | 9 | 10, Field::Piece(piece)) => {
                pieces += 1;
                found.raw = Some(piece);
            }
            (4 | 10, Field::Fixed) | (5..=7 | 11, _) => found.coded = true,
            (13, Field::Piece(piece)) => {
                let (key, value) = reader.entry(piece)?;
                found.external.insert(key, value);
            }
            _ => {}
        }
    }
    match pieces > 1 {
        true => malformed(format!("tensor {} has its values in {pieces} pieces", found.name)),
        false => Ok(found),
    }
}

/// Adds a tensor to those of the file.
fn place(found: Found, source: &mut Source, files: &mut Files) -> Parsed<()> {
    let Found { name, kind, dims, raw, coded, external } = found;
    let Some(dtype) = TYPES.iter().find(|t| t.0 == kind).map(|t| t.1) else {
        source.left_out.push(format!("tensor {name}, whose elements are of type {kind}"));
        return Ok(());
    };
    let shape: Option<Vec<usize>> = dims.iter().map(|d| usize::try_from(*d).ok().filter(|d| *d < 1 << 48)).collect();
    let Some(shape) = shape else {
        return malformed(format!("tensor {name} has shape {dims:?}"));
    };
    if coded {
        source.left_out.push(format!("tensor {name}, whose values stand one by one and not as they are in memory"));
        return Ok(());
    }
    let (segment, offset, length) = match external.get("location") {
        Some(location) => {
            let number = |key: &str| match external.get(key).map(|text| text.parse::<u64>()) {
                None => Ok(None),
                Some(Ok(n)) => Ok(Some(n)),
                Some(Err(_)) => malformed(format!("tensor {name}: {key} of its values is no number")),
            };
            let (segment, len) = opened(location, &name, source, files)?;
            let offset = number("offset")?.unwrap_or(0);
            let length = number("length")?.unwrap_or_else(|| len.saturating_sub(offset));
            if offset.checked_add(length).is_none_or(|end| end > len) {
                return malformed(format!("tensor {name}: its values reach beyond the {len} bytes of {location}"));
            }
            (segment, offset, length)
        }
        None => {
            // A tensor without values has no piece.
            let raw = raw.unwrap_or(0..0);
            (0, raw.start, raw.end - raw.start)
        }
    };
    if name.is_empty() {
        return malformed("a tensor has no name");
    }
    let elements = shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d));
    if let Some(bytes) = elements.and_then(|n| dtype.bytes(n)).filter(|bytes| *bytes != length) {
        return malformed(format!(
            "tensor {name}: {shape:?} elements of {dtype} are {bytes} bytes, but it has {length}"
        ));
    }
    let at = Data { segment, offset, strides: None, big_endian: false };
    source.push(name, dtype, shape, at).map_err(Fault::Malformed)
}

/// A file of values beside the graph: the number of its segment, and its length.
fn opened(location: &str, tensor: &str, source: &mut Source, files: &mut Files) -> Parsed<(usize, u64)> {
    if let Some(known) = files.get(location) {
        return Ok(*known);
    }
    let inner = Path::new(location);
    if location.is_empty() || !inner.components().all(|c| matches!(c, Component::Normal(_))) {
        return refused(format!(
            "tensor {tensor} has its values in {location:?}: they have to be in the folder of the graph"
        ));
    }
    if files.len() >= MOST_FILES {
        return refused(format!(
            "its values are in more than {MOST_FILES} files: save them in one (onnx.save_model with all_tensors_to_one_file=True)"
        ));
    }
    let path = source.path.parent().unwrap_or(Path::new("")).join(inner);
    let input = Input::open(&path).map_err(|e| Fault::Refused(format!("the values of tensor {tensor}: {e}")))?;
    source.file_bytes = source.file_bytes.saturating_add(input.len);
    source.segments.push(Segment::stored(&input, 0..input.len));
    let known = (source.segments.len() - 1, input.len);
    files.insert(location.into(), known);
    Ok(known)
}
