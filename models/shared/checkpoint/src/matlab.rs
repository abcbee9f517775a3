//! MATLAB's files, version 5 (written by `save -v6` and `-v7`), by the crate matrw.
//!
//! Compressed variables are unpacked here first: zlib's checksum refuses what is damaged before a parser sees it.

use std::collections::BTreeMap;
use std::io::{Cursor, Read};
use std::panic::catch_unwind;
use std::path::Path;

use candle_core::{DType, Tensor};
use flate2::read::ZlibDecoder;
use matrw::{MatFile, MatVariable, MatlabType, MatrwError, NumericArray};

use crate::{Error, Result, atomic};

const FORMAT: &str = "MATLAB";
const HEADER: usize = 128;
/// The type of a compressed variable.
const COMPRESSED: u32 = 15;
/// A file that unpacks to more is refused.
const LARGEST: u64 = 1 << 33;

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
    /// A line of characters.
    Text(String),
    /// An array of records: for each, its fields by name.
    Records(Vec<BTreeMap<String, Variable>>),
    /// Anything else: cells, sparse arrays, complex numbers, objects.
    Other,
}

/// The variables of the file at `path` by name.
///
/// # Errors
/// The file cannot be read, is not of this version, or is damaged.
pub fn read(path: &Path) -> Result<BTreeMap<String, Variable>> {
    let malformed = |reason: String| Error::Malformed { path: path.into(), format: FORMAT, reason };
    let bytes = std::fs::read(path).map_err(Error::io(path))?;
    let bytes = unpacked(&bytes, path)?;
    // The parser panics on some inconsistencies.
    let parsed = catch_unwind(|| {
        matrw::load_matfile_from_u8(&bytes)
            .map(|file| file.iter().map(|(name, variable)| (name.clone(), variable.into())).collect())
    });
    match parsed {
        Ok(Ok(variables)) => Ok(variables),
        Ok(Err(MatrwError::MatFile73Error)) => Err(newer(path)),
        Ok(Err(e)) => Err(malformed(e.to_string().lines().next().unwrap_or_default().into())),
        Err(_) => Err(malformed("its variables contradict themselves".into())),
    }
}

fn newer(path: &Path) -> Error {
    let reason = "a MATLAB file of version 7.3 (HDF5): save it with -v7, which this reads".into();
    Error::Refused { path: path.into(), reason }
}

/// The file with its compressed variables unpacked.
fn unpacked(bytes: &[u8], path: &Path) -> Result<Vec<u8>> {
    let malformed = |reason: &str| Error::Malformed { path: path.into(), format: FORMAT, reason: reason.into() };
    let damaged = |reason: String| Error::Damaged { path: path.into(), reason };
    let Some(header) = bytes.get(..HEADER) else { return Err(malformed("it is shorter than a header")) };
    if bytes.starts_with(b"MATLAB 7.3") {
        return Err(newer(path));
    }
    // Version 1.0 in the writer's byte order.
    if !matches!(header[124..], [0, 1, b'I', b'M'] | [1, 0, b'M', b'I']) {
        return Err(malformed("it does not begin with the header of version 5"));
    }
    if header[126] == b'M' {
        return Err(Error::Refused { path: path.into(), reason: "its numbers are big-endian: save it anew".into() });
    }
    let (mut out, mut rest) = (header.to_vec(), &bytes[HEADER..]);
    while !rest.is_empty() {
        let word = |at: usize| rest.get(at..at + 4).and_then(|b| Some(u32::from_le_bytes(b.try_into().ok()?)));
        let (Some(kind), Some(length)) = (word(0), word(4)) else { return Err(damaged("it ends too early".into())) };
        let end = 8 + length as usize;
        let Some(element) = rest.get(..end) else {
            return Err(damaged(format!("it ends {} bytes too early", end - rest.len())));
        };
        if kind == COMPRESSED {
            let room = LARGEST.saturating_sub(out.len() as u64);
            let read = ZlibDecoder::new(&element[8..]).take(room).read_to_end(&mut out);
            let read = read.map_err(|e| damaged(format!("a variable does not unpack: {e}")))?;
            if read as u64 == room {
                return Err(malformed("it unpacks to more than 8 GiB"));
            }
        } else {
            out.extend_from_slice(element);
        }
        rest = &rest[end..];
    }
    Ok(out)
}

impl From<&MatVariable> for Variable {
    fn from(variable: &MatVariable) -> Self {
        match variable {
            MatVariable::NumericArray(array) => numbers(array),
            MatVariable::Structure(one) => Self::Records(vec![fields(one.value.iter())]),
            MatVariable::StructureArray(array) => {
                let one = |v: &MatVariable| match v {
                    MatVariable::Structure(one) => fields(one.value.iter()),
                    _ => BTreeMap::new(),
                };
                Self::Records(array.value.iter().map(one).collect())
            }
            _ => Self::Other,
        }
    }
}

fn fields<'a>(all: impl Iterator<Item = (&'a String, &'a MatVariable)>) -> BTreeMap<String, Variable> {
    all.map(|(name, v)| (name.clone(), v.into())).collect()
}

fn numbers(array: &NumericArray) -> Variable {
    use MatlabType as T;
    if array.value_cmp.is_some() {
        return Variable::Other;
    }
    let columns: Vec<f64> = match &array.value {
        T::U8(v) => v.iter().map(|x| f64::from(*x)).collect(),
        T::I8(v) => v.iter().map(|x| f64::from(*x)).collect(),
        T::U16(v) => v.iter().map(|x| f64::from(*x)).collect(),
        T::I16(v) => v.iter().map(|x| f64::from(*x)).collect(),
        T::U32(v) => v.iter().map(|x| f64::from(*x)).collect(),
        T::I32(v) => v.iter().map(|x| f64::from(*x)).collect(),
        T::U64(v) => v.iter().map(|x| *x as f64).collect(),
        T::I64(v) => v.iter().map(|x| *x as f64).collect(),
        T::F32(v) => v.iter().map(|x| f64::from(*x)).collect(),
        T::F64(v) => v.clone(),
        T::BOOL(v) => v.iter().map(|x| f64::from(u8::from(*x))).collect(),
        T::UTF8(v) | T::UTF16(v) => return Variable::Text(v.iter().collect()),
    };
    if array.dim.iter().try_fold(1usize, |n, d| n.checked_mul(*d)) != Some(columns.len()) {
        return Variable::Other;
    }
    Variable::Numbers { values: turned(&columns, &array.dim), shape: array.dim.clone() }
}

/// Elements whose first dimension runs fastest, in the order in which the last does.
fn turned(values: &[f64], shape: &[usize]) -> Vec<f64> {
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
/// The operating system's, or a tensor of text or of a type that candle cannot bring to f64.
pub fn write(path: &Path, tensors: &[(String, Tensor)]) -> Result<()> {
    let mut file = MatFile::new();
    for (name, tensor) in tensors {
        let failed = |source| Error::Tensor { path: path.into(), tensor: name.clone(), source: Box::new(source) };
        let mut shape = tensor.dims().to_vec();
        shape.resize(shape.len().max(2), 1);
        let columns = || -> candle_core::Result<Vec<f64>> {
            // The transpose of all dimensions has the first running fastest.
            let axes: Vec<usize> = (0..tensor.rank()).rev().collect();
            tensor.permute(axes)?.to_dtype(DType::F64)?.flatten_all()?.to_vec1()
        };
        let array = NumericArray::new(shape, MatlabType::F64(columns().map_err(failed)?), None);
        let array = array.map_err(|e| Error::Refused { path: path.into(), reason: format!("{name}: {e}") })?;
        file.insert(name, MatVariable::NumericArray(array));
    }
    // The crate writes to a name of its own choice only.
    let folder = tempfile::tempdir().map_err(Error::io(path))?;
    let temporary = folder.path().join("variables.mat");
    let name = temporary.to_string_lossy();
    matrw::save_matfile_v7(&name, file, true).map_err(|e| Error::io(path)(std::io::Error::other(e.to_string())))?;
    let bytes = std::fs::read(&temporary).map_err(Error::io(path))?;
    atomic::replace(path, |to| std::io::copy(&mut Cursor::new(bytes), to).map(|_| ()))
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
}
