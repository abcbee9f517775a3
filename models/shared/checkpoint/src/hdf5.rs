//! Files of HDF5: MATLAB's of version 7.3, and others whose arrays stand at the top.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use std::sync::atomic::{AtomicU64, Ordering};

use hdf5_pure::{AttrValue, DType, Dataset, File, FormatError, Group, Object, Source};

use crate::matlab::{DEEPEST, SPARE, Variable, lines, turned};
use crate::{Error, Result};

type Attributes = HashMap<String, AttrValue>;

/// Members of a group: looking for one goes through all.
const MEMBERS: usize = 4096;
/// Bytes of what a reference leads to, beside its elements.
const OBJECT: u64 = 4096;

/// The bytes of a file, of which no more are read than a file of its size may cost: structures that name each other, or one thing many
/// times, would be gone through without an end.
struct Metered {
    bytes: Vec<u8>,
    left: AtomicU64,
}

impl Source for Metered {
    fn len(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> std::result::Result<(), FormatError> {
        let spent = |left: u64| left.checked_sub(64 + buffer.len() as u64);
        if self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, spent).is_err() {
            return Err(FormatError::Source("it is read more often than a file of its size may be".into()));
        }
        let from = usize::try_from(offset).ok().and_then(|from| self.bytes.get(from..)?.get(..buffer.len()));
        let missing = FormatError::UnexpectedEof { expected: buffer.len(), available: 0 };
        buffer.copy_from_slice(from.ok_or(missing)?);
        Ok(())
    }
}

/// The variables of a file by name, of these bytes of it.
pub(crate) fn read(path: &Path, bytes: Vec<u8>) -> Result<BTreeMap<String, Variable>> {
    let most = SPARE.max(64 * bytes.len() as u64);
    let mut parser = Parser { left: most };
    let source = Metered { bytes, left: AtomicU64::new(most) };
    let variables = File::from_source(source).map_err(said).and_then(|file| parser.members(&file.root(), 0));
    variables.map_err(|reason| Error::Malformed {
        path: path.into(),
        format: "MATLAB 7.3 (HDF5)",
        reason: format!("{reason}; where it opens elsewhere, save it with -v7"),
    })
}

fn said(e: hdf5_pure::Error) -> String {
    e.to_string().split_whitespace().collect::<Vec<_>>().join(" ")
}

/// What MATLAB calls the type of a variable; nothing of files that others wrote.
fn class(attributes: &Attributes) -> &str {
    match attributes.get("MATLAB_class") {
        Some(AttrValue::AsciiString(text) | AttrValue::String(text)) => text.trim_end_matches('\0'),
        Some(AttrValue::AsciiStringSized { value, .. } | AttrValue::StringSized { value, .. }) => {
            value.trim_end_matches('\0')
        }
        _ => "",
    }
}

fn deep(depth: usize) -> std::result::Result<(), String> {
    if depth > DEEPEST { Err(format!("variables lie more than {DEEPEST} deep within each other")) } else { Ok(()) }
}

/// Goes through a file, with what may still be spent on it.
struct Parser {
    left: u64,
}

impl Parser {
    fn spend(&mut self, bytes: u64) -> std::result::Result<(), String> {
        self.left = self.left.checked_sub(bytes).ok_or("it unpacks to more than a file of its size may")?;
        Ok(())
    }

    /// The members of a group by name, but for MATLAB's own, which begin with #.
    fn members(&mut self, group: &Group, depth: usize) -> std::result::Result<BTreeMap<String, Variable>, String> {
        let mut members = BTreeMap::new();
        for name in self.names(group.datasets())? {
            let dataset = group.dataset(&name).map_err(said)?;
            members.insert(name, self.array(&dataset, depth)?);
        }
        for name in self.names(group.groups())? {
            let inner = group.group(&name).map_err(said)?;
            members.insert(name, self.records(&inner, depth + 1)?);
        }
        Ok(members)
    }

    fn names(
        &mut self,
        found: std::result::Result<Vec<String>, hdf5_pure::Error>,
    ) -> std::result::Result<Vec<String>, String> {
        let mut names = found.map_err(said)?;
        names.retain(|name| !name.starts_with('#'));
        if names.len() > MEMBERS {
            return Err(format!("it has {} variables in one place, of which at most {MEMBERS} are read", names.len()));
        }
        self.spend(names.iter().map(|name| 64 + name.len() as u64).sum())?;
        Ok(names)
    }

    /// A structure. Of an array of them, each field is a list of references that is called no cell.
    fn records(&mut self, group: &Group, depth: usize) -> std::result::Result<Variable, String> {
        deep(depth)?;
        self.spend(256)?;
        if class(&group.attrs().map_err(said)?) != "struct" {
            return Ok(Variable::Records(vec![self.members(group, depth)?]));
        }
        let mut fields: BTreeMap<String, Vec<Variable>> = BTreeMap::new();
        for name in self.names(group.datasets())? {
            let dataset = group.dataset(&name).map_err(said)?;
            let is_list = matches!(dataset.dtype().map_err(said)?, DType::ObjectReference)
                && class(&dataset.attrs().map_err(said)?).is_empty();
            let values = match self.array(&dataset, depth)? {
                Variable::Cells(values) if is_list => values,
                variable => vec![variable],
            };
            fields.insert(name, values);
        }
        for name in self.names(group.groups())? {
            let inner = group.group(&name).map_err(said)?;
            fields.insert(name, vec![self.records(&inner, depth + 1)?]);
        }
        let count = fields.values().map(Vec::len).max().unwrap_or(0);
        let names: usize = fields.keys().map(|name| 64 + name.len()).sum();
        self.spend((count as u64).saturating_mul(names as u64))?;
        let mut records: Vec<BTreeMap<String, Variable>> = vec![BTreeMap::new(); count];
        for (name, values) in fields {
            for (record, value) in records.iter_mut().zip(values) {
                record.insert(name.clone(), value);
            }
        }
        Ok(Variable::Records(records))
    }

    fn object(&mut self, object: Object, depth: usize) -> std::result::Result<Variable, String> {
        match object {
            Object::Group(group) => self.records(&group, depth),
            Object::Dataset(dataset) => self.array(&dataset, depth),
            _ => Ok(Variable::Other),
        }
    }

    fn array(&mut self, dataset: &Dataset, depth: usize) -> std::result::Result<Variable, String> {
        deep(depth)?;
        let sizes = dataset.shape().map_err(said)?;
        let product = |sizes: &[u64]| sizes.iter().try_fold(1u64, |n, d| n.checked_mul(*d)).unwrap_or(u64::MAX);
        let (count, size) = (product(&sizes), dataset.element_size().map_err(said)?);
        let chunk = dataset.chunk_shape().map_err(said)?.map_or(0, |chunk| product(&chunk));
        self.spend(
            count
                .saturating_mul(size.saturating_add(16))
                .saturating_add(chunk.saturating_mul(size))
                .saturating_add(256),
        )?;
        let attributes = dataset.attrs().map_err(said)?;
        let class = class(&attributes);
        if attributes.contains_key("MATLAB_empty") {
            // The elements are the dimensions.
            return Ok(Variable::Numbers { shape: vec![0, 0], values: vec![] });
        }
        let shape: Vec<usize> = sizes.iter().map(|d| *d as usize).collect();
        match dataset.dtype().map_err(said)? {
            DType::ObjectReference => {
                self.spend(count.saturating_mul(OBJECT))?;
                let objects = dataset.dereference().map_err(said)?;
                let cells = objects.into_iter().map(|object| self.object(object, depth + 1));
                Ok(Variable::Cells(cells.collect::<std::result::Result<_, _>>()?))
            }
            DType::String | DType::VariableLengthString => {
                let most = dataset.vlen_string_payload_size().unwrap_or(0);
                self.spend(most)?;
                let texts = dataset.read_string().map_err(said)?;
                let texts = texts.into_iter().map(|text| Variable::Text(text.trim_end_matches('\0').into()));
                Ok(Variable::Cells(texts.collect()))
            }
            DType::F32
            | DType::F64
            | DType::I8
            | DType::I16
            | DType::I32
            | DType::I64
            | DType::U8
            | DType::U16
            | DType::U32
            | DType::U64 => {
                let values = dataset.read_f64().map_err(said)?;
                if values.len() as u64 != count {
                    return Err(format!("a variable has {} elements of {count}", values.len()));
                }
                if !matches!(
                    class,
                    "" | "char"
                        | "double"
                        | "single"
                        | "logical"
                        | "int8"
                        | "uint8"
                        | "int16"
                        | "uint16"
                        | "int32"
                        | "uint32"
                        | "int64"
                        | "uint64"
                ) {
                    // Strings, tables and dates are numbers whose meaning lies elsewhere.
                    return Ok(Variable::Other);
                }
                if class == "char" {
                    let letter = |v: &f64| char::from_u32(*v as u32).unwrap_or(char::REPLACEMENT_CHARACTER);
                    let letters: Vec<char> = values.iter().map(letter).collect();
                    let rows = shape.last().copied().unwrap_or(1);
                    return Ok(Variable::Text(if letters.is_empty() { String::new() } else { lines(&letters, rows) }));
                }
                if class.is_empty() {
                    // Of others, the last dimension runs fastest, as here.
                    return Ok(Variable::Numbers { shape, values });
                }
                let shape: Vec<usize> = shape.into_iter().rev().collect();
                Ok(Variable::Numbers { values: turned(&values, &shape), shape })
            }
            _ => Ok(Variable::Other),
        }
    }
}
