//! MATLAB's files, version 5 (written by `save -v6` and `-v7`), and with the feature `hdf5` version 7.3:
//! <https://www.mathworks.com/help/pdf_doc/matlab/matfile_format.pdf>.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::path::Path;

use candle_core::{DType, Tensor};
use flate2::Compression;
use flate2::read::ZlibDecoder;
use flate2::write::ZlibEncoder;

use crate::input::{CHUNK, limited, regular};
use crate::{Error, Result, atomic};

const FORMAT: &str = "MATLAB";
const HEADER: usize = 128;
/// Types of elements (table 1-1) that are not numbers.
const MATRIX: u32 = 14;
const COMPRESSED: u32 = 15;
/// Bytes of a file, and of what it unpacks to: 64 for each of its own, and a gigabyte at least.
const LARGEST: u64 = 1 << 34;
pub(crate) const SPARE: u64 = 1 << 30;
/// Variables within each other.
pub(crate) const DEEPEST: usize = 16;

/// A variable of a file.
#[derive(Clone, Debug, PartialEq)]
pub enum Variable {
    /// Numbers of any type.
    Numbers {
        /// The dimensions; MATLAB has at least two.
        shape: Vec<usize>,
        /// The elements, the last dimension running fastest.
        values: Vec<f64>,
    },
    /// Characters; of an array of several lines, with a line break between them.
    Text(String),
    /// An array of records: for each, its fields by name.
    Records(Vec<BTreeMap<String, Variable>>),
    /// Cells, the first dimension running fastest.
    Cells(Vec<Variable>),
    /// Anything else: sparse arrays, complex numbers, objects.
    Other,
}

/// The variables of the file at `path` by name.
///
/// # Errors
/// The file cannot be read, is not of this version, or is damaged; or it unpacks to more than a gigabyte and 64 times its
/// size.
pub fn read(path: &Path) -> Result<BTreeMap<String, Variable>> {
    let malformed = |reason: String| Error::Malformed { path: path.into(), format: FORMAT, reason };
    let bytes = limited(regular(path, "a MATLAB file")?, path, LARGEST)?;
    if bytes.starts_with(b"MATLAB 7.3") || bytes.starts_with(b"\x89HDF") {
        #[cfg(feature = "hdf5")]
        return crate::hdf5::read(path, bytes);
        #[cfg(not(feature = "hdf5"))]
        return Err(Error::Refused {
            path: path.into(),
            reason: "a MATLAB file of version 7.3 (HDF5), which this program was built without (the feature files of zoo): save it with -v7, \
                     or by scipy.io.savemat"
                .into(),
        });
    }
    let Some((header, body)) = bytes.split_at_checked(HEADER) else {
        return Err(malformed("it is shorter than a header".into()));
    };
    let refused = |reason: &str| Err(Error::Refused { path: path.into(), reason: reason.into() });
    // Version 4 begins with a matrix: its type below 52 (for a little-endian machine), its rows, columns, and the length of its name.
    let word = |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    if word(0) < 52 && word(4) > 0 && word(8) > 0 && (2..=64).contains(&word(16)) {
        return refused("a MATLAB file of version 4: save it with -v7, or by scipy.io.savemat, which this reads");
    }
    // Version 1.0 in the writer's byte order.
    match header[124..] {
        [0, 1, b'I', b'M'] => {}
        [1, 0, b'M', b'I'] => return refused("its numbers are big-endian: save it anew"),
        _ => return Err(malformed("it does not begin with the header of version 5".into())),
    }
    let mut parser = Parser { left: SPARE.max(64 * bytes.len() as u64) };
    let mut variables = BTreeMap::new();
    let mut read = || -> std::result::Result<(), String> {
        let mut elements = Elements { rest: body };
        while let Some((kind, data)) = elements.next()? {
            let variable = match kind {
                MATRIX => parser.matrix(data, 0)?,
                COMPRESSED => {
                    let unpacked = parser.unpack(data)?;
                    let mut inner = Elements { rest: &unpacked };
                    match (inner.next()?, inner.next()?) {
                        (Some((MATRIX, data)), None) => parser.matrix(data, 0)?,
                        _ => return Err("a compressed variable is not one variable".into()),
                    }
                }
                _ => return Err(format!("it has an element of type {kind} where a variable should be")),
            };
            let (name, variable) = variable;
            if variables.insert(name.clone(), variable).is_some() {
                return Err(format!("two variables are called {name:.60}"));
            }
        }
        Ok(())
    };
    read().map_err(malformed)?;
    Ok(variables)
}

/// Elements that follow each other: a type, a length and the data.
struct Elements<'a> {
    rest: &'a [u8],
}

impl<'a> Elements<'a> {
    fn next(&mut self) -> std::result::Result<Option<(u32, &'a [u8])>, String> {
        let word = |at: usize| self.rest.get(at..at + 4).and_then(|b| Some(u32::from_le_bytes(b.try_into().ok()?)));
        if self.rest.is_empty() {
            return Ok(None);
        }
        let (Some(first), Some(second)) = (word(0), word(4)) else { return Err("it ends too early".into()) };
        let (kind, from, len, next) = match first >> 16 {
            // Up to four bytes stand where the length would.
            len @ 1..=4 => (first & 0xffff, 4, len as usize, 8),
            0 if first == COMPRESSED => (first, 8, second as usize, 8 + second as usize),
            0 => (first, 8, second as usize, 8 + (second as usize).next_multiple_of(8)),
            _ => return Err("it has an element whose type and length cannot be".into()),
        };
        let Some(data) = self.rest.get(from..from + len) else {
            return Err(format!("it ends {} bytes too early", from + len - self.rest.len()));
        };
        // The last one may lack its padding.
        self.rest = self.rest.get(next..).unwrap_or_default();
        Ok(Some((kind, data)))
    }

    fn of(&mut self, kind: u32, what: &str) -> std::result::Result<&'a [u8], String> {
        match self.next()? {
            Some((found, data)) if found == kind => Ok(data),
            _ => Err(format!("a variable lacks {what}")),
        }
    }
}

/// Goes through variables, with what may still be spent on them.
struct Parser {
    left: u64,
}

impl Parser {
    fn spend(&mut self, bytes: usize) -> std::result::Result<(), String> {
        match self.left.checked_sub(bytes as u64) {
            Some(left) => {
                self.left = left;
                Ok(())
            }
            None => Err("it unpacks to more than a file of its size may".into()),
        }
    }

    fn unpack(&mut self, packed: &[u8]) -> std::result::Result<Vec<u8>, String> {
        let (mut plain, mut decoder) = (vec![], ZlibDecoder::new(packed));
        loop {
            let before = plain.len();
            let read = (&mut decoder).take(CHUNK as u64).read_to_end(&mut plain);
            read.map_err(|e| format!("a variable does not unpack: {e}"))?;
            if plain.len() == before {
                return Ok(plain);
            }
            self.spend(plain.len() - before)?;
        }
    }

    /// A variable and its name.
    fn matrix(&mut self, data: &[u8], depth: usize) -> std::result::Result<(String, Variable), String> {
        const CELLS: u8 = 1;
        const RECORDS: u8 = 2;
        const TEXT: u8 = 4;
        const NUMBERS: std::ops::RangeInclusive<u8> = 6..=15;
        const COMPLEX: u8 = 0x08;
        // What is left out of a record.
        if data.is_empty() {
            return Ok((String::new(), Variable::Numbers { shape: vec![0, 0], values: vec![] }));
        }
        if depth > DEEPEST {
            return Err(format!("variables lie more than {DEEPEST} deep within each other"));
        }
        self.spend(256)?;
        let mut parts = Elements { rest: data };
        let flags = parts.of(6, "its flags")?;
        let &[class, marks, ..] = flags else { return Err("a variable has no flags".into()) };
        if !matches!(class, CELLS | RECORDS | TEXT) && !NUMBERS.contains(&class) {
            // An opaque object has no dimensions.
            let name = parts.next().ok().flatten().filter(|(kind, _)| *kind == 1).map_or(String::new(), |n| text(n.1));
            return Ok((name, Variable::Other));
        }
        let sizes = parts.of(5, "its dimensions")?;
        let shape: Vec<usize> = sizes
            .chunks_exact(4)
            .map(|b| i32::from_le_bytes([b[0], b[1], b[2], b[3]]).try_into().ok())
            .collect::<Option<_>>()
            .filter(|shape: &Vec<usize>| (2..=64).contains(&shape.len()))
            .ok_or("a variable has dimensions that cannot be")?;
        let count =
            shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d)).ok_or("a variable has too many elements")?;
        let name = text(parts.of(1, "its name")?);
        let misfit = || format!("variable {name:.60} has not the {count} elements of its dimensions {shape:?}");
        let variable = match class {
            CELLS => {
                let mut cells = vec![];
                for _ in 0..count {
                    cells.push(self.matrix(parts.of(MATRIX, "cells that it announces")?, depth + 1)?.1);
                }
                Variable::Cells(cells)
            }
            RECORDS => Variable::Records(self.records(&mut parts, count, depth)?),
            _ if marks & COMPLEX != 0 => Variable::Other,
            TEXT => {
                let (kind, data) = parts.next()?.ok_or_else(misfit)?;
                let characters = characters(kind, data).filter(|c| c.len() == count).ok_or_else(misfit)?;
                self.spend(8 * count)?;
                if count == 0 {
                    return Ok((name, Variable::Text(String::new())));
                }
                Variable::Text(lines(&characters, shape[0]))
            }
            _ => {
                let (kind, data) = parts.next()?.ok_or_else(misfit)?;
                self.spend(count.saturating_mul(16))?;
                let values = numbers(kind, data).filter(|v| v.len() == count).ok_or_else(misfit)?;
                Variable::Numbers { values: turned(&values, &shape), shape: shape.clone() }
            }
        };
        Ok((name, variable))
    }

    fn records(
        &mut self,
        parts: &mut Elements,
        count: usize,
        depth: usize,
    ) -> std::result::Result<Vec<BTreeMap<String, Variable>>, String> {
        let length = match parts.of(5, "the length of its fields' names")? {
            [a, b, c, d] => u32::from_le_bytes([*a, *b, *c, *d]) as usize,
            _ => 0,
        };
        let names = parts.of(1, "the names of its fields")?;
        if !(1..=1024).contains(&length) || !names.len().is_multiple_of(length) {
            return Err("a record has names of fields that cannot be".into());
        }
        let names: Vec<String> = names.chunks_exact(length).map(text).collect();
        let mut records = vec![];
        for _ in 0..count {
            self.spend(64 + names.iter().map(|n| 64 + n.len()).sum::<usize>())?;
            let mut fields = BTreeMap::new();
            for name in &names {
                let (_, value) = self.matrix(parts.of(MATRIX, "fields that it announces")?, depth + 1)?;
                fields.insert(name.clone(), value);
            }
            records.push(fields);
        }
        Ok(records)
    }
}

/// A name: bytes up to the first that is zero.
fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

/// Numbers of a type of element.
fn numbers(kind: u32, data: &[u8]) -> Option<Vec<f64>> {
    macro_rules! read {
        ($type:ty) => {{
            let (values, rest) = data.as_chunks::<{ size_of::<$type>() }>();
            rest.is_empty().then(|| values.iter().map(|b| <$type>::from_le_bytes(*b) as f64).collect())
        }};
    }
    match kind {
        1 => read!(i8),
        2 => read!(u8),
        3 => read!(i16),
        4 => read!(u16),
        5 => read!(i32),
        6 => read!(u32),
        7 => read!(f32),
        9 => read!(f64),
        12 => read!(i64),
        13 => read!(u64),
        _ => None,
    }
}

/// Characters of a type of element.
fn characters(kind: u32, data: &[u8]) -> Option<Vec<char>> {
    match kind {
        1 | 2 => Some(data.iter().map(|b| (*b).into()).collect()),
        4 | 17 => {
            let units = data.as_chunks::<2>().0.iter().map(|b| u16::from_le_bytes(*b));
            Some(units.map(|u| char::from_u32(u.into()).unwrap_or(char::REPLACEMENT_CHARACTER)).collect())
        }
        16 => Some(String::from_utf8_lossy(data).chars().collect()),
        _ => None,
    }
}

/// The lines of an array of characters, whose first dimension runs fastest.
pub(crate) fn lines(characters: &[char], rows: usize) -> String {
    let line = |row: usize| characters.iter().skip(row).step_by(rows.max(1)).collect::<String>();
    (0..rows).map(line).collect::<Vec<_>>().join("\n")
}

/// Elements whose first dimension runs fastest, in the order in which the last does.
pub(crate) fn turned(values: &[f64], shape: &[usize]) -> Vec<f64> {
    let strides = crate::numpy::fortran(shape);
    let mut index = vec![0; shape.len()];
    let mut out = Vec::with_capacity(values.len());
    for _ in 0..values.len() {
        out.push(values[index.iter().zip(&strides).map(|(i, s)| i * s).sum::<usize>()]);
        for (i, size) in index.iter_mut().zip(shape).rev() {
            *i += 1;
            if *i < *size {
                break;
            }
            *i = 0;
        }
    }
    out
}

/// Writes `tensors` as variables of type double, atomically. A vector becomes a column.
///
/// # Errors
/// The operating system's, or a tensor of text, of a type that candle cannot bring to f64, or of more than 4 GB.
pub fn write(path: &Path, tensors: &[(String, Tensor)]) -> Result<()> {
    let mut elements = vec![];
    for (name, tensor) in tensors {
        let failed = |source| Error::Tensor { path: path.into(), tensor: name.clone(), source: Box::new(source) };
        let mut shape = tensor.dims().to_vec();
        shape.resize(shape.len().max(2), 1);
        let columns = || -> candle_core::Result<Vec<f64>> {
            // The transpose of all dimensions has the first running fastest.
            let axes: Vec<usize> = (0..tensor.rank()).rev().collect();
            tensor.permute(axes)?.to_dtype(DType::F64)?.flatten_all()?.to_vec1()
        };
        let values: Vec<u8> = columns().map_err(failed)?.iter().flat_map(|v| v.to_le_bytes()).collect();
        let sizes: Vec<u8> = shape.iter().flat_map(|d| (*d as i32).to_le_bytes()).collect();
        if values.len() as u64 > u64::from(u32::MAX) - (1 << 16) {
            let reason = format!("{name} has more than 4 GB, which a MATLAB file cannot hold: write an .npz");
            return Err(Error::Refused { path: path.into(), reason });
        }
        const DOUBLE: [u8; 8] = [6, 0, 0, 0, 0, 0, 0, 0];
        let parts = [element(6, &DOUBLE), element(5, &sizes), element(1, name.as_bytes()), element(9, &values)];
        elements.push(element(MATRIX, &parts.concat()));
    }
    let mut header = [b' '; HEADER];
    header[..29].copy_from_slice(b"MATLAB 5.0 MAT-file, from zoo");
    header[116..].copy_from_slice(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 1, b'I', b'M']);
    atomic::replace(path, |to| {
        to.write_all(&header)?;
        for element in &elements {
            let mut packed = ZlibEncoder::new(vec![], Compression::default());
            packed.write_all(element)?;
            let packed = packed.finish()?;
            to.write_all(&COMPRESSED.to_le_bytes())?;
            let length =
                u32::try_from(packed.len()).map_err(|_| std::io::Error::other("an array does not fit into 4 GB"))?;
            to.write_all(&length.to_le_bytes())?;
            to.write_all(&packed)?;
        }
        Ok(())
    })
}

/// An element with its type, its length and its padding.
fn element(kind: u32, data: &[u8]) -> Vec<u8> {
    let mut element = [kind.to_le_bytes(), (data.len() as u32).to_le_bytes()].concat();
    element.extend_from_slice(data);
    element.resize(element.len().next_multiple_of(8), 0);
    element
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    fn written() -> (tempfile::TempDir, std::path::PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.mat");
        let matrix = Tensor::arange(0f32, 24., &Device::Cpu).unwrap().reshape((2, 3, 4)).unwrap();
        let vector = Tensor::new(&[1u32, 2, 3], &Device::Cpu).unwrap();
        write(&path, &[("cube".into(), matrix), ("list".into(), vector)]).unwrap();
        (folder, path)
    }

    #[test]
    fn what_is_written_is_read_in_the_same_order() {
        let (_folder, path) = written();
        let read = read(&path).unwrap();
        let cube = Variable::Numbers { shape: vec![2, 3, 4], values: (0..24).map(f64::from).collect() };
        assert_eq!(read["cube"], cube);
        assert_eq!(read["list"], Variable::Numbers { shape: vec![3, 1], values: vec![1., 2., 3.] });
    }

    #[test]
    fn damage_is_an_error_that_names_the_file() {
        let (folder, path) = written();
        let whole = std::fs::read(&path).unwrap();
        let other = folder.path().join("b.mat");
        for cut in [0, 5, 127, 128, 131, 140, whole.len() / 2, whole.len() - 1] {
            std::fs::write(&other, &whole[..cut]).unwrap();
            match read(&other) {
                // A header alone is a file without variables.
                Ok(variables) => assert!(cut == 128 && variables.is_empty()),
                Err(e) => assert!(e.to_string().contains("b.mat"), "{e}"),
            }
        }
        for at in (128..whole.len()).step_by(7) {
            let mut bytes = whole.clone();
            bytes[at] ^= 1 << (at % 8);
            std::fs::write(&other, bytes).unwrap();
            // Whether it is noticed is zlib's to say; it must not be a panic.
            let _ = read(&other);
        }
    }

    #[test]
    fn other_versions_are_refused_with_the_way_out() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("c.mat");
        let mut bytes = vec![b' '; 600];
        bytes[..10].copy_from_slice(b"MATLAB 7.3");
        std::fs::write(&path, bytes).unwrap();
        assert!(read(&path).unwrap_err().to_string().contains("-v7"));
        std::fs::write(&path, [0; 600]).unwrap();
        assert!(read(&path).unwrap_err().to_string().contains("header of version 5"));
    }

    fn file(elements: &[Vec<u8>]) -> (tempfile::TempDir, std::path::PathBuf) {
        let (folder, path) = written();
        let header = std::fs::read(&path).unwrap()[..HEADER].to_vec();
        std::fs::write(&path, [header, elements.concat()].concat()).unwrap();
        (folder, path)
    }

    fn matrix(class: u8, name: &str, sizes: [i32; 2], rest: &[Vec<u8>]) -> Vec<u8> {
        let sizes: Vec<u8> = sizes.iter().flat_map(|d| d.to_le_bytes()).collect();
        let head = [element(6, &[class, 0, 0, 0, 0, 0, 0, 0]), element(5, &sizes), element(1, name.as_bytes())];
        element(MATRIX, &[head.concat(), rest.concat()].concat())
    }

    fn packed(inner: &[u8]) -> Vec<u8> {
        let mut to = ZlibEncoder::new(vec![], Compression::best());
        to.write_all(inner).unwrap();
        let data = to.finish().unwrap();
        [&COMPRESSED.to_le_bytes()[..], &(data.len() as u32).to_le_bytes(), &data].concat()
    }

    #[test]
    fn records_texts_and_small_elements_are_read() {
        let number = matrix(6, "", [1, 1], &[element(2, &[7])]);
        let characters: Vec<u8> = "abcd".encode_utf16().flat_map(u16::to_le_bytes).collect();
        let lines = matrix(4, "", [2, 2], &[element(4, &characters)]);
        let names = [element(5, &4i32.to_le_bytes()), element(1, b"x\0\0\0y\0\0\0")];
        let record = matrix(2, "r", [1, 1], &[names.concat(), number, lines]);
        let small = [&0x0001_0002u32.to_le_bytes()[..], &[9, 0, 0, 0]].concat();
        let (_folder, path) = file(&[packed(&record), matrix(8, "s", [1, 1], &[small])]);
        let read = read(&path).unwrap();
        let one = |v: f64| Variable::Numbers { shape: vec![1, 1], values: vec![v] };
        // Two lines of two characters each, down the columns.
        let fields = [("x".to_string(), one(7.)), ("y".to_string(), Variable::Text("ac\nbd".into()))];
        assert_eq!(read["r"], Variable::Records(vec![fields.into()]));
        assert_eq!(read["s"], one(9.));
    }

    #[test]
    fn what_would_take_memory_time_or_stack_out_of_proportion_is_refused() {
        let refuses = |elements: &[Vec<u8>], why: &str| {
            let (_folder, path) = file(elements);
            let said = read(&path).unwrap_err().to_string();
            assert!(said.contains(why), "{said}");
        };
        let mut deep = matrix(6, "", [1, 1], &[element(2, &[7])]);
        for _ in 0..500 {
            deep = matrix(1, "", [1, 1], &[deep]);
        }
        refuses(&[packed(&deep)], "deep within each other");
        let zeros = packed(&matrix(6, "", [1, 1 << 20], &[element(2, &vec![0; 1 << 20])]));
        refuses(&[packed(&matrix(1, "x", [1, 3], &[zeros.clone(), zeros.clone(), zeros]))], "cells");
        refuses(
            &[matrix(2, "r", [i32::MAX, 1], &[element(5, &4i32.to_le_bytes()), element(1, &[])])],
            "unpacks to more",
        );
        refuses(&[matrix(6, "n", [i32::MAX, i32::MAX], &[element(2, &[7])])], "unpacks to more");
        refuses(&[matrix(6, "n", [1, 2], &[element(2, &[7])])], "variable n has not the 2 elements");
        refuses(&[packed(&packed(&matrix(6, "n", [1, 1], &[element(2, &[7])])))], "not one variable");
        let one = matrix(6, "n", [1, 1], &[element(2, &[7])]);
        refuses(&[one.clone(), one], "two variables are called n");
    }
}
