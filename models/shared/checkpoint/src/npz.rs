//! NumPy's arrays: `.npy` (<https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html>, versions 1 to 3), and
//! `.npz`, a zip archive of them.
//!
//! Texts of no dimension are metadata; ours are one such text, `__metadata__`, in JSON. bfloat16 is two bytes of no type
//! (`V2`), as NumPy writes that of ml_dtypes.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::sync::Arc;

use serde_json::Value;

use crate::archive::{Archive, Record};
use crate::codec::{Codec, Probe};
use crate::format::Traits;
use crate::input::{Budget, Fault, Input, Parsed, Segment, malformed, refused};
use crate::numpy::{Descr, fortran};
use crate::outline::{Outline, Planned, Streams};
use crate::source::Data;
use crate::ties::retie;
use crate::{Dtype, Error, Format, Result, Source};

/// What an archive of arrays is like.
// Those who read it by NumPy look for every name.
pub(crate) const ARCHIVE: Format = Format::new(&Traits { ties: false, ..Traits::new("npz", "NumPy", &["npz"]) });
/// What one array is like.
pub(crate) const ARRAY: Format =
    Format::new(&Traits { metadata: false, names: false, ..Traits::new("npy", "NumPy", &["npy"]) });

/// The codec of archives.
pub(crate) struct Npz;

impl Codec for Npz {
    fn format(&self) -> Format {
        ARCHIVE
    }

    fn sniff(&self, probe: &Probe) -> bool {
        probe.records.is_some_and(|records| records.iter().all(|r| r.name.ends_with(".npy")))
    }

    fn open(&self, input: &Arc<Input>, records: Vec<Record>) -> Parsed<Source> {
        open_archive(input, records)
    }

    fn holds(&self, dtype: Dtype) -> bool {
        dtype.numpy().is_some()
    }

    fn write(&self, file: &mut File, path: &Path, outline: &Outline, streams: Streams) -> Result<()> {
        write(file, path, outline, streams)
    }
}

/// The codec of single arrays.
pub(crate) struct Npy;

impl Codec for Npy {
    fn format(&self) -> Format {
        ARRAY
    }

    fn sniff(&self, probe: &Probe) -> bool {
        probe.start.starts_with(b"\x93NUMPY")
    }

    fn open(&self, input: &Arc<Input>, _: Vec<Record>) -> Parsed<Source> {
        open_one(input)
    }

    fn holds(&self, dtype: Dtype) -> bool {
        dtype.numpy().is_some()
    }

    fn refuses(&self, outline: &Outline) -> Option<String> {
        let n = outline.tensors.len();
        (n != 1).then(|| format!("an .npy holds one array, there are {n}: write an .npz"))
    }

    fn write(&self, file: &mut File, path: &Path, outline: &Outline, streams: Streams) -> Result<()> {
        write_one(file, path, outline, streams)
    }
}

/// The array that holds our metadata.
const METADATA: &str = "__metadata__";

/// NumPy itself reads 10,000 bytes of header unless told otherwise.
const LARGEST_HEADER: usize = 1 << 16;

/// Longer texts are not read as metadata.
const LONGEST_TEXT: u64 = 1 << 26;

struct Header {
    descr: Descr,
    fortran: bool,
    shape: Vec<usize>,
    /// Where the values begin.
    data: u64,
}

/// The header of an array, from the beginning of its bytes.
fn header(start: &[u8]) -> Parsed<Header> {
    let version = match start.get(..8) {
        Some([0x93, b'N', b'U', b'M', b'P', b'Y', major, _]) => *major,
        _ => return malformed("an array does not begin with \\x93NUMPY"),
    };
    let (at, length) = match (version, start.get(8..10), start.get(8..12)) {
        (1, Some(b), _) => (10, usize::from(b[0]) | usize::from(b[1]) << 8),
        (2 | 3, _, Some(b)) => (12, u32::from_le_bytes([b[0], b[1], b[2], b[3]]) as usize),
        (1..=3, ..) => return malformed("the header of an array ends too early"),
        _ => return refused(format!("an array has version {version}: known are 1 to 3")),
    };
    if length > LARGEST_HEADER {
        return malformed(format!("the header of an array has {length} bytes"));
    }
    let Some(text) = start.get(at..at + length).and_then(|t| std::str::from_utf8(t).ok()) else {
        return malformed("the header of an array ends too early or is no text");
    };
    let literal = Literal { rest: text.trim_end() }.dictionary();
    let Some((descr, fortran, shape)) = literal else {
        return match text.contains("'descr': [") {
            true => refused("it holds an array of records"),
            false => malformed("the header of an array is not {'descr': …, 'fortran_order': …, 'shape': …}"),
        };
    };
    Ok(Header { descr: Descr::parse(&descr)?, fortran, shape, data: (at + length) as u64 })
}

/// The one Python dictionary that a header is.
struct Literal<'a> {
    rest: &'a str,
}

impl Literal<'_> {
    fn token(&mut self, token: &str) -> Option<()> {
        self.rest = self.rest.trim_start().strip_prefix(token)?;
        Some(())
    }

    fn string(&mut self) -> Option<String> {
        self.rest = self.rest.trim_start();
        let quote = self.rest.chars().next().filter(|c| matches!(c, '\'' | '"'))?;
        let (text, rest) = self.rest[1..].split_once(quote)?;
        self.rest = rest;
        (!text.contains('\\')).then(|| text.to_string())
    }

    fn sizes(&mut self) -> Option<Vec<usize>> {
        self.token("(")?;
        let mut sizes = vec![];
        while self.token(")").is_none() {
            self.rest = self.rest.trim_start();
            let end = self.rest.find(|c: char| !c.is_ascii_digit())?;
            sizes.push(self.rest[..end].parse().ok()?);
            self.rest = self.rest[end..].strip_prefix('L').unwrap_or(&self.rest[end..]);
            if self.token(",").is_none() {
                self.token(")")?;
                break;
            }
        }
        (sizes.len() <= 64).then_some(sizes)
    }

    fn dictionary(&mut self) -> Option<(String, bool, Vec<usize>)> {
        let (mut descr, mut fortran, mut shape) = (None, None, None);
        self.token("{")?;
        while self.token("}").is_none() {
            let key = self.string()?;
            self.token(":")?;
            let twice = match key.as_str() {
                "descr" => descr.replace(self.string()?).is_some(),
                "fortran_order" => fortran
                    .replace(self.token("True").map(|()| true).or_else(|| self.token("False").map(|()| false))?)
                    .is_some(),
                "shape" => shape.replace(self.sizes()?).is_some(),
                _ => true,
            };
            if twice || self.token(",").is_none() && !self.rest.trim_start().starts_with('}') {
                return None;
            }
        }
        self.rest.trim().is_empty().then_some((descr?, fortran?, shape?))
    }
}

/// Adds an array, whose bytes with the header are a segment, to a source.
fn add(
    source: &mut Source,
    name: &str,
    segment: Segment,
    metadata: &mut BTreeMap<String, String>,
    budget: &Budget,
) -> Parsed<()> {
    let within = |f| match f {
        Fault::Malformed(reason) => Fault::Malformed(format!("array {name}: {reason}")),
        Fault::Refused(reason) => Fault::Refused(format!("array {name}: {reason}")),
        io => io,
    };
    let start = segment.bytes(0..segment.len.min(12 + LARGEST_HEADER as u64)).map_err(|e| within(e.into()))?;
    let Header { descr, fortran: reversed, shape, data: at } = header(&start).map_err(within)?;
    let bytes = shape.iter().try_fold(descr.size() as u64, |n, d| n.checked_mul(*d as u64));
    if bytes.and_then(|b| b.checked_add(at)) != Some(segment.len) {
        return malformed(format!("array {name}: {} bytes of values for {shape:?}", segment.len - at));
    }
    let Some(dtype) = descr.dtype else {
        return match shape[..] {
            [] if segment.len > LONGEST_TEXT => {
                source.left_out.push(format!("{name}: a text of {} bytes", segment.len));
                Ok(())
            }
            [] => {
                budget.spend(2 * segment.len as usize)?;
                let bytes = segment.bytes(at..segment.len)?;
                let text = text(&descr, &bytes);
                metadata.insert(name.into(), text.ok_or_else(|| Fault::Malformed(format!("array {name} is no text")))?);
                Ok(())
            }
            _ => {
                let size = descr.size();
                if shape.len() == 1 && size > 0 && segment.len <= LONGEST_TEXT {
                    budget.spend(2 * segment.len as usize + 32 * shape[0])?;
                    let bytes = segment.bytes(at..segment.len)?;
                    let texts = bytes.chunks_exact(size).map(|b| text(&descr, b)).collect::<Option<Vec<_>>>();
                    source.texts.extend(texts.map(|texts| (name.to_string(), texts)));
                }
                source.left_out.push(format!("{name}: an array of texts"));
                Ok(())
            }
        };
    };
    source.segments.push(segment);
    let data = Data {
        segment: source.segments.len() - 1,
        offset: at,
        strides: (reversed && shape.len() > 1).then(|| fortran(&shape)),
        big_endian: descr.big_endian,
    };
    source.push(name.into(), dtype, shape, data).map_err(Fault::Malformed)
}

fn text(descr: &Descr, bytes: &[u8]) -> Option<String> {
    let text = match descr.text?.0 {
        'U' => {
            let code = |b: &[u8]| {
                let b = [b[0], b[1], b[2], b[3]];
                char::from_u32(if descr.big_endian { u32::from_be_bytes(b) } else { u32::from_le_bytes(b) })
            };
            bytes.chunks_exact(4).map(code).collect::<Option<String>>()?
        }
        _ => String::from_utf8(bytes.to_vec()).ok()?,
    };
    Some(text.trim_end_matches('\0').to_string())
}

fn open_archive(input: &Arc<Input>, records: Vec<Record>) -> Parsed<Source> {
    let mut source = Source::new(&input.path, ARCHIVE, input.len);
    let mut texts = BTreeMap::new();
    let budget = Budget::of(input.len);
    for Record { name, segment } in records {
        // NumPy looks for an array of a name with its ending first.
        if name.ends_with(".npy.npy") {
            return refused(format!("its array {name:.60} has its ending twice: readers differ in what they call it"));
        }
        add(&mut source, name.strip_suffix(".npy").unwrap_or(&name), segment, &mut texts, &budget)?;
    }
    if let Some(ours) = texts.remove(METADATA) {
        let ours = serde_json::from_str(&ours).map_err(|e| Fault::Malformed(format!("its {METADATA}: {e}")))?;
        texts.extend(retie(&mut source, ours));
    }
    source.metadata = texts.into_iter().map(|(k, v)| (k, v.into())).collect();
    source.settle().map_err(Fault::Malformed)?;
    Ok(source)
}

fn open_one(input: &Arc<Input>) -> Parsed<Source> {
    let mut source = Source::new(&input.path, ARRAY, input.len);
    let name = input.path.file_stem().map_or("array".into(), |n| n.to_string_lossy().into_owned());
    add(&mut source, &name, Segment::stored(input, 0..input.len), &mut BTreeMap::new(), &Budget::of(input.len))?;
    Ok(source)
}

/// The bytes before the values: version 1, padded to 64.
fn head(descr: &str, shape: &[usize]) -> Vec<u8> {
    let sizes: String = shape.iter().map(|d| format!("{d}, ")).collect();
    let shape = if shape.len() == 1 { sizes.trim_end() } else { sizes.trim_end_matches(", ") };
    let mut text = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({shape}), }}");
    let length = (10 + text.len() + 1).next_multiple_of(64) - 10;
    text.push_str(&" ".repeat(length - text.len() - 1));
    text.push('\n');
    let mut head = b"\x93NUMPY\x01\x00".to_vec();
    head.extend((length as u16).to_le_bytes());
    head.extend(text.bytes());
    head
}

/// What an `.npy` of little-endian elements begins with; they follow it in row-major order.
pub fn npy_head(dtype: Dtype, shape: &[usize]) -> Vec<u8> {
    let order = if dtype.size() == Some(1) { '|' } else { '<' };
    head(&format!("{order}{}", dtype.numpy().unwrap_or_default()), shape)
}

fn head_of(t: &Planned) -> Vec<u8> {
    npy_head(t.dtype, &t.shape)
}

fn write(file: &mut File, path: &Path, outline: &Outline, streams: Streams) -> Result<()> {
    let mut zip = Archive::new(file, path);
    let texts = outline.texts();
    if !texts.is_empty() {
        let json = Value::Object(texts.into_iter().map(|(k, v)| (k, v.into())).collect()).to_string();
        let characters: Vec<u8> = json.chars().flat_map(|c| u32::from(c).to_le_bytes()).collect();
        let head = head(&format!("<U{}", characters.len() / 4), &[]);
        zip.record(&format!("{METADATA}.npy"), (head.len() + characters.len()) as u64, |sink| {
            sink(&head)?;
            sink(&characters)
        })?;
    }
    for (i, t) in outline.tensors.iter().enumerate().filter(|(_, t)| t.tied_to.is_none()) {
        if t.name.contains('\0') {
            let reason = format!("an array of an .npz cannot be called {:?}: rename it by a rule", t.name);
            return Err(Error::Refused { path: path.into(), reason });
        }
        let head = head_of(t);
        zip.record(&format!("{}.npy", t.name), head.len() as u64 + t.bytes(), |sink| {
            sink(&head)?;
            streams(i, sink)
        })?;
    }
    zip.finish()
}

fn write_one(file: &mut File, path: &Path, outline: &Outline, streams: Streams) -> Result<()> {
    let tensor = &outline.tensors[0];
    let mut file = BufWriter::with_capacity(1 << 16, file);
    file.write_all(&head_of(tensor)).map_err(Error::io(path))?;
    streams(0, &mut |piece| file.write_all(piece).map_err(Error::io(path)))?;
    file.flush().map_err(Error::io(path))
}
