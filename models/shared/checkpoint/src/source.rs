//! An open checkpoint of any format: what is in it, and its bytes on demand.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use candle_core::{Device, Tensor};
use serde_json::{Map, Value};

use crate::cast::Difference;
use crate::input::{Backing, CHUNK, Segment, Sink, room};
use crate::{Dtype, Error, Format, Result, cast};

/// A tensor of a [`Source`].
#[derive(Clone, Debug)]
pub struct TensorInfo {
    /// Its name; within nested dictionaries and lists the path, joined with dots.
    pub name: String,
    /// The type of its elements.
    pub dtype: Dtype,
    /// Its sizes, outermost first.
    pub shape: Vec<usize>,
    /// The tensor before it, by number, whose values it shares.
    pub tied_to: Option<usize>,
    pub(crate) data: Data,
}

/// A typed entry of a GGUF header, verbatim.
#[derive(Clone, Debug)]
pub(crate) struct Typed {
    pub(crate) key: String,
    pub(crate) kind: u32,
    pub(crate) bytes: Vec<u8>,
}

/// Where a tensor's values are.
#[derive(Clone, Debug)]
pub(crate) struct Data {
    pub(crate) segment: usize,
    /// In bytes.
    pub(crate) offset: u64,
    /// In elements; `None` for C order.
    pub(crate) strides: Option<Vec<usize>>,
    pub(crate) big_endian: bool,
}

impl TensorInfo {
    /// How many elements it has.
    pub fn elements(&self) -> usize {
        elements(&self.shape)
    }

    /// How many bytes its elements take, each counted once for each place.
    pub fn bytes(&self) -> u64 {
        self.dtype.bytes(self.elements()).unwrap_or(0)
    }
}

/// An open checkpoint. Nothing but its directory has been read; nothing in it has been executed.
#[derive(Debug)]
pub struct Source {
    /// The path that it was opened by.
    pub path: PathBuf,
    /// What it is.
    pub format: Format,
    /// Its tensors, in the file's order.
    pub tensors: Vec<TensorInfo>,
    /// Everything else in it: text entries, and the numbers, texts, lists and dictionaries of a pickle.
    pub metadata: Map<String, Value>,
    /// What a user should know, such as the classes that a pickle names.
    pub remarks: Vec<String>,
    /// Classes and functions that its pickle names and that neither tensors nor plain values need: unpickling it imports
    /// them.
    pub foreign: Vec<String>,
    /// Classes and functions that unpickling it would run.
    pub(crate) calls: Vec<String>,
    /// What is in the file but neither in `tensors` nor in `metadata`.
    pub left_out: Vec<String>,
    /// What an ONNX file computes: its producer, sets of operators, inputs and outputs, and how many nodes of each operator it has.
    pub graph: Option<Value>,
    /// Lists of texts, such as names of channels beside numbers, by name: of an `.npz` alone, among what is left out.
    pub texts: BTreeMap<String, Vec<String>>,
    /// Bytes of all its files.
    pub file_bytes: u64,
    pub(crate) segments: Vec<Segment>,
    /// Records that no tensor uses.
    pub(crate) rest: Vec<Segment>,
    /// Bytes that its tensors take, and that have to be inflated for them.
    pub(crate) work: u64,
    /// The typed entries of a GGUF header, for another GGUF file.
    pub(crate) typed: Vec<Typed>,
    /// Its tensors by name, once one is asked for: they do not change any more then.
    numbers: OnceLock<HashMap<String, usize>>,
}

/// Tensors cannot take more than this many times their file: deflate does not compress better than 1,032 times.
const LARGEST_GROWTH: u64 = 1032;

/// As in PyTorch; and more is no name.
const MOST_DIMENSIONS: usize = 64;
const LONGEST_NAME: usize = 4096;

impl Source {
    pub(crate) fn new(path: &Path, format: Format, file_bytes: u64) -> Self {
        Self {
            path: path.into(),
            format,
            tensors: vec![],
            metadata: Map::new(),
            remarks: vec![],
            foreign: vec![],
            calls: vec![],
            left_out: vec![],
            graph: None,
            texts: BTreeMap::new(),
            file_bytes,
            segments: vec![],
            rest: vec![],
            work: 0,
            typed: vec![],
            numbers: OnceLock::new(),
        }
    }

    /// Adds a tensor after checking that its elements lie within its segment.
    pub(crate) fn push(
        &mut self,
        name: String,
        dtype: Dtype,
        shape: Vec<usize>,
        data: Data,
    ) -> std::result::Result<(), String> {
        if shape.len() > MOST_DIMENSIONS || name.len() > LONGEST_NAME {
            let (dimensions, bytes) = (shape.len(), name.len());
            return Err(format!(
                "tensor {name:.40}…: it has {dimensions} dimensions and a name of {bytes} bytes; at most {MOST_DIMENSIONS} and \
                 {LONGEST_NAME} are read"
            ));
        }
        let elements =
            if shape.contains(&0) { Some(0) } else { shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d)) };
        let bytes = elements.and_then(|n| dtype.bytes(n));
        let Some((elements, bytes)) = elements.zip(bytes) else {
            return Err(format!(
                "tensor {name}: {shape:?} elements of {dtype} are no whole number of bytes or blocks, or too many"
            ));
        };
        let segment = &self.segments[data.segment];
        let span = match &data.strides {
            _ if elements == 0 => Some(0),
            None => Some(bytes),
            Some(strides) => {
                let last =
                    shape.iter().zip(strides).try_fold(0usize, |n, (d, s)| n.checked_add((d - 1).checked_mul(*s)?));
                last.and_then(|n| dtype.bytes(n.checked_add(1)?))
            }
        };
        let end = span.and_then(|s| s.checked_add(data.offset));
        if end.is_none_or(|e| e > segment.len) {
            return Err(format!("tensor {name}: its elements reach beyond the {} bytes that are there", segment.len));
        }
        // What has been promised so far; a deflated record is inflated anew for each of its tensors.
        let inflated = matches!(segment.backing, Backing::Deflated { .. });
        // Elements that lie apart are read with what is between them.
        let read = bytes.max(span.unwrap_or(0));
        self.work = self.work.saturating_add(if inflated { segment.len.max(read) } else { read });
        if self.work / LARGEST_GROWTH > self.file_bytes {
            return Err(format!("tensor {name}: {} bytes to be made of a file of {}", self.work, self.file_bytes));
        }
        self.tensors.push(TensorInfo { name, dtype, shape, tied_to: None, data });
        Ok(())
    }

    /// Refuses two tensors of one name, and finds those that are the same view of the same bytes.
    pub(crate) fn settle(&mut self) -> std::result::Result<(), String> {
        let mut names = BTreeSet::new();
        if let Some(t) = self.tensors.iter().find(|t| !names.insert(t.name.as_str())) {
            return Err(format!("two tensors are named {}", t.name));
        }
        let mut views = BTreeMap::new();
        for i in 0..self.tensors.len() {
            let t = &self.tensors[i];
            let view = (t.data.segment, t.data.offset, t.dtype.to_string(), t.shape.clone(), t.data.strides.clone());
            let first = *views.entry(view).or_insert(i);
            if first != i && t.elements() > 0 && t.tied_to.is_none() {
                self.tensors[i].tied_to = Some(first);
            }
        }
        Ok(())
    }

    /// Whether its tensors are read from this file.
    pub fn reads(&self, path: &Path) -> bool {
        let Ok(path) = path.canonicalize() else { return false };
        let files = self.segments.iter().filter_map(|s| s.file());
        files.chain([self.path.as_path()]).any(|f| f.canonicalize().is_ok_and(|f| f == path))
    }

    /// The tensor of that name.
    pub fn find(&self, name: &str) -> Option<&TensorInfo> {
        self.number(name).map(|number| &self.tensors[number])
    }

    /// Its number.
    pub(crate) fn number(&self, name: &str) -> Option<usize> {
        let numbers = || self.tensors.iter().enumerate().map(|(i, t)| (t.name.clone(), i)).collect();
        self.numbers.get_or_init(numbers).get(name).copied()
    }

    /// Reads a tensor onto `device`; what GGUF has in blocks comes as f32.
    ///
    /// # Errors
    /// The file cannot be read or is damaged, or candle lacks the element type.
    pub fn tensor(&self, tensor: &TensorInfo, device: &Device) -> Result<Tensor> {
        let failed = |e| Error::Tensor { path: self.path.clone(), tensor: tensor.name.clone(), source: Box::new(e) };
        let plain = match tensor.dtype {
            Dtype::Quantized(_) => Dtype::F32,
            other => other,
        };
        let lacks =
            || Error::Dtype { path: self.path.clone(), tensor: tensor.name.clone(), dtype: tensor.dtype.to_string() };
        let dtype = plain.candle().ok_or_else(lacks)?;
        let mut bytes = room(plain.bytes(tensor.elements()).unwrap_or(0) as usize).map_err(Error::io(&self.path))?;
        self.stream(&TensorView::whole(tensor), plain, &mut |piece| {
            bytes.extend_from_slice(piece);
            Ok(())
        })?;
        Tensor::from_raw_buffer(&bytes, dtype, &tensor.shape, device).map_err(failed)
    }

    /// Hands the elements of a view, as `dtype`, to `sink`: in C order, little-endian, in pieces of whole elements.
    ///
    /// # Errors
    /// The file cannot be read or is damaged, or values do not fit `dtype`.
    pub fn stream(&self, view: &TensorView, dtype: Dtype, sink: Sink) -> Result<()> {
        self.stream_measured(view, dtype, &mut Difference::default(), sink)
    }

    /// [`Source::stream`], adding to `difference` how far the values move.
    pub(crate) fn stream_measured(
        &self,
        view: &TensorView,
        dtype: Dtype,
        difference: &mut Difference,
        sink: Sink,
    ) -> Result<()> {
        let tensor = view.tensor;
        if tensor.dtype == dtype {
            return self.raw(view, sink);
        }
        let named = |reason: String| Error::Refused {
            path: self.path.clone(),
            reason: format!("tensor {}: {reason}", tensor.name),
        };
        match tensor.dtype {
            Dtype::Quantized(q) => {
                let mut plain = cast::Cast::new(Dtype::F32, dtype).map_err(named)?;
                let whole = view.is_whole();
                let mut all = room(if whole { 0 } else { tensor.elements() * 4 }).map_err(Error::io(&self.path))?;
                self.raw(&TensorView::whole(tensor), &mut |blocks| {
                    let values = q.dequantize(blocks).map_err(named)?;
                    match whole {
                        true => plain.piece(&values, sink).map_err(|e| e.into_error(named)),
                        false => {
                            all.extend_from_slice(&values);
                            Ok(())
                        }
                    }
                })?;
                if !whole {
                    gather(&all, view.offset, &view.shape, &view.strides, 4, &mut |piece| {
                        plain.piece(piece, sink).map_err(|e| e.into_error(named))
                    })?;
                }
                plain.finish(difference).map_err(named)
            }
            from => {
                let mut plain = cast::Cast::new(from, dtype).map_err(named)?;
                self.raw(view, &mut |piece| plain.piece(piece, sink).map_err(|e| e.into_error(named)))?;
                plain.finish(difference).map_err(named)
            }
        }
    }

    /// The elements of a view as they are.
    fn raw(&self, view: &TensorView, sink: Sink) -> Result<()> {
        let t = view.tensor;
        let segment = &self.segments[t.data.segment];
        let Some(size) = t.dtype.size() else {
            // Elements that share bytes: the tensor as it is, and block by block.
            if !view.is_whole() {
                let reason =
                    format!("tensor {}: {} cannot be taken apart: cast it first (--dtype f32)", t.name, t.dtype);
                return Err(Error::Refused { path: self.path.clone(), reason });
            }
            let unit = match t.dtype {
                Dtype::Quantized(q) => q.bytes(),
                _ => 1,
            };
            return segment.stream(t.data.offset..t.data.offset + t.bytes(), unit, sink);
        };
        let elements = elements(&view.shape);
        if elements == 0 {
            return Ok(());
        }
        let start = t.data.offset + (view.offset * size) as u64;
        let little = |piece: &[u8], sink: Sink| match t.data.big_endian {
            false => sink(piece),
            true => sink(&swapped(piece, t.dtype)),
        };
        if is_contiguous(&view.shape, &view.strides) {
            return segment.stream(start..start + (elements * size) as u64, size, &mut |piece| little(piece, sink));
        }
        let last: usize = view.shape.iter().zip(&view.strides).map(|(d, s)| (d - 1) * s).sum();
        let bytes = segment.bytes(start..start + ((last + 1) * size) as u64)?;
        gather(&bytes, 0, &view.shape, &view.strides, size, &mut |piece| little(piece, sink))
    }
}

/// Elements of a tensor, by offset and strides (in elements).
#[derive(Clone, Debug)]
pub struct TensorView<'a> {
    /// The tensor.
    pub tensor: &'a TensorInfo,
    pub(crate) offset: usize,
    /// Sizes, outermost first.
    pub shape: Vec<usize>,
    pub(crate) strides: Vec<usize>,
}

impl<'a> TensorView<'a> {
    /// All of a tensor.
    pub fn whole(tensor: &'a TensorInfo) -> Self {
        let strides = tensor.data.strides.clone().unwrap_or_else(|| c_order(&tensor.shape));
        Self { tensor, offset: 0, shape: tensor.shape.clone(), strides }
    }

    /// The segment whose checksum is compared when this is read, if there is one.
    pub(crate) fn checks(&self, source: &Source) -> Option<usize> {
        let data = &self.tensor.data;
        let size = self.tensor.dtype.size()?;
        let from = data.offset + (self.offset * size) as u64;
        let range = from..from + (elements(&self.shape) * size) as u64;
        let plain = is_contiguous(&self.shape, &self.strides) && source.segments[data.segment].is_checked_by(&range);
        plain.then_some(data.segment)
    }

    fn is_whole(&self) -> bool {
        let whole = Self::whole(self.tensor);
        self.offset == 0 && self.shape == whole.shape && self.strides == whole.strides
    }

    /// With its dimensions in the order of their strides, for what does not depend on the order of the elements: a tensor
    /// in Fortran order is read in pieces then, as one in C order is.
    pub(crate) fn in_storage_order(mut self) -> Self {
        if self.tensor.data.strides.is_some() {
            let mut order: Vec<usize> = (0..self.shape.len()).collect();
            order.sort_by_key(|k| std::cmp::Reverse(self.strides[*k]));
            self.shape = order.iter().map(|k| self.shape[*k]).collect();
            self.strides = order.iter().map(|k| self.strides[*k]).collect();
        }
        self
    }

    /// With two dimensions swapped.
    ///
    /// # Errors
    /// It has not that many.
    pub fn transpose(mut self, a: usize, b: usize) -> std::result::Result<Self, String> {
        if a.max(b) >= self.shape.len() {
            return Err(format!(
                "{} has {} dimensions: {a} and {b} cannot be swapped",
                self.tensor.name,
                self.shape.len()
            ));
        }
        self.shape.swap(a, b);
        self.strides.swap(a, b);
        Ok(self)
    }

    /// With the first dimension as three, whose product it is.
    pub(crate) fn unfold(mut self, sizes: [usize; 3]) -> Self {
        let row = self.strides[0];
        self.shape.splice(0..1, sizes);
        self.strides.splice(0..1, [sizes[1] * sizes[2] * row, sizes[2] * row, row]);
        self
    }

    /// The first three dimensions as one again, where its rows follow each other.
    pub(crate) fn fold(mut self) -> Option<Self> {
        let ([a, b, c], row) = (self.shape.first_chunk::<3>().copied()?, *self.strides.get(2)?);
        if self.strides[..3] != [b * c * row, c * row, row] {
            return None;
        }
        self.shape.splice(0..3, [a * b * c]);
        self.strides.splice(0..3, [row]);
        Some(self)
    }

    /// `len` indices of dimension `dim`, from `start` on.
    ///
    /// # Errors
    /// There are not that many.
    pub fn narrow(mut self, dim: usize, start: usize, len: usize) -> std::result::Result<Self, String> {
        if self.shape.get(dim).is_none_or(|d| start.checked_add(len).is_none_or(|end| end > *d)) {
            return Err(format!(
                "{} {:?} has no indices {start} to {start}+{len} in dimension {dim}",
                self.tensor.name, self.shape
            ));
        }
        self.offset += start * self.strides[dim];
        self.shape[dim] = len;
        Ok(self)
    }
}

/// The elements of a shape; those of sources can be counted.
pub(crate) fn elements(shape: &[usize]) -> usize {
    // A 0 anywhere makes it 0, however large the others are.
    if shape.contains(&0) { 0 } else { shape.iter().product() }
}

/// The strides of C order.
pub(crate) fn c_order(shape: &[usize]) -> Vec<usize> {
    let mut strides = vec![1usize; shape.len()];
    for k in (1..shape.len()).rev() {
        strides[k - 1] = strides[k].saturating_mul(shape[k]);
    }
    strides
}

pub(crate) fn is_contiguous(shape: &[usize], strides: &[usize]) -> bool {
    let mut expected = 1usize;
    shape.iter().zip(strides).rev().filter(|(d, _)| **d != 1).all(|(d, s)| {
        let fits = *s == expected;
        expected = expected.saturating_mul(*d);
        fits
    })
}

/// Copies elements of `size` bytes out of `bytes`, in C order of `shape`.
fn gather(bytes: &[u8], offset: usize, shape: &[usize], strides: &[usize], size: usize, sink: Sink) -> Result<()> {
    let mut out = Vec::with_capacity(CHUNK);
    let mut index = vec![0; shape.len()];
    let (inner, outer) = (shape.len().saturating_sub(1), shape.iter().rev().skip(1).product::<usize>());
    let (run, step) = (shape.last().copied().unwrap_or(1), strides.last().copied().unwrap_or(1));
    for _ in 0..outer {
        let first = offset + index.iter().zip(strides).take(inner).map(|(i, s)| i * s).sum::<usize>();
        let mut done = 0;
        while done < run {
            let n = (run - done).min(CHUNK / size);
            let from = (first + done * step) * size;
            match (step, size) {
                (1, _) => out.extend_from_slice(&bytes[from..from + n * size]),
                (_, 2) => copy::<2>(&bytes[from..], n, step, &mut out),
                (_, 4) => copy::<4>(&bytes[from..], n, step, &mut out),
                (_, 8) => copy::<8>(&bytes[from..], n, step, &mut out),
                _ => (0..n).for_each(|k| out.extend_from_slice(&bytes[from + k * step * size..][..size])),
            }
            done += n;
            if out.len() >= CHUNK {
                sink(&out)?;
                out.clear();
            }
        }
        for k in (0..inner).rev() {
            index[k] += 1;
            if index[k] < shape[k] {
                break;
            }
            index[k] = 0;
        }
    }
    if out.is_empty() { Ok(()) } else { sink(&out) }
}

fn copy<const SIZE: usize>(bytes: &[u8], n: usize, step: usize, out: &mut Vec<u8>) {
    out.extend((0..n).flat_map(|k| {
        let mut element = [0; SIZE];
        element.copy_from_slice(&bytes[k * step * SIZE..][..SIZE]);
        element
    }));
}

/// Big-endian elements as little-endian ones; a complex number is two.
fn swapped(bytes: &[u8], dtype: Dtype) -> Vec<u8> {
    let size = dtype.size().unwrap_or(1) / if matches!(dtype, Dtype::C64 | Dtype::C128) { 2 } else { 1 };
    let mut out = bytes.to_vec();
    out.chunks_exact_mut(size).for_each(<[u8]>::reverse);
    out
}
