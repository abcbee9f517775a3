//! Graphs as files.
//!
//! An ONNX file is one protocol buffer, of whose wire format a writer needs numbers and pieces with their length in front. Writing it here, not by a
//! library, lets weights go from where they are to the file, one after the other.

use std::io::{self, Write};

use candle_core::{DType, Device, Tensor};

use super::{Attribute, Dim, Graph, Node, OPSET, Port};

/// The version of the format that goes with [`OPSET`].
const IR_VERSION: u64 = 8;
/// What a protocol buffer holds at most.
const LARGEST: u64 = i32::MAX as u64;
/// Weights of fewer bytes stay in the file: shapes are looked at before values are read.
const SMALL: u64 = 1024;
/// Where weights begin in a file of their own: pages of memory, so that it can be mapped.
const PAGE: u64 = 4096;

/// Fields of a message.
#[derive(Default)]
struct Fields(Vec<u8>);

impl Fields {
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn number(mut self, field: u64, value: u64) -> Self {
        self.varint(field << 3);
        self.varint(value);
        self
    }

    fn float(mut self, field: u64, value: f32) -> Self {
        self.varint(field << 3 | 5);
        self.0.extend(value.to_le_bytes());
        self
    }

    /// The beginning of a piece of so many bytes.
    fn head(mut self, field: u64, bytes: u64) -> Self {
        self.varint(field << 3 | 2);
        self.varint(bytes);
        self
    }

    fn piece(self, field: u64, bytes: &[u8]) -> Self {
        let mut all = self.head(field, bytes.len() as u64);
        all.0.extend_from_slice(bytes);
        all
    }

    fn text(self, field: u64, text: &str) -> Self {
        self.piece(field, text.as_bytes())
    }

    fn message(self, field: u64, message: Fields) -> Self {
        self.piece(field, &message.0)
    }

    fn each<T>(self, values: impl IntoIterator<Item = T>, add: impl Fn(Self, T) -> Self) -> Self {
        values.into_iter().fold(self, add)
    }

    fn entry(self, field: u64, key: &str, value: &str) -> Self {
        self.message(field, Fields::default().text(1, key).text(2, value))
    }
}

/// What stands before a tensor's values.
fn described(tensor: &Tensor) -> Fields {
    Fields::default().each(tensor.dims(), |f, d| f.number(1, *d as u64)).number(2, element(tensor).0)
}

fn node(node: &Node) -> io::Result<Fields> {
    let attribute = |(name, value): &(&str, Attribute)| {
        let named = Fields::default().text(1, name);
        Ok::<_, io::Error>(match value {
            Attribute::Float(v) => named.float(2, *v).number(20, 1),
            Attribute::Int(v) => named.number(3, *v as u64).number(20, 2),
            Attribute::Ints(all) => named.each(all, |f, v| f.number(8, *v as u64)).number(20, 7),
            Attribute::Tensor(tensor) => {
                let mut whole = described(tensor).head(9, bytes(tensor));
                values(tensor, &mut whole.0)?;
                named.message(5, whole).number(20, 4)
            }
        })
    };
    let fields = Fields::default().each(&node.inputs, |f, name| f.text(1, name));
    let fields = fields.each(&node.outputs, |f, name| f.text(2, name));
    let fields = fields.text(3, &node.outputs[0]).text(4, node.op);
    node.attributes.iter().try_fold(fields, |fields, a| Ok(fields.message(5, attribute(a)?)))
}

fn port(port: &Port) -> Fields {
    let dim = |dim: &Dim| match dim {
        Dim::Of(n) => Fields::default().number(1, *n as u64),
        Dim::Any(name) => Fields::default().text(2, name),
    };
    let shape = Fields::default().each(&port.dims, |f, d| f.message(1, dim(d)));
    let tensor = Fields::default().number(1, port.element.number()).message(2, shape);
    Fields::default().text(1, &port.name).message(2, Fields::default().message(1, tensor)).text(3, &port.help)
}

/// The number of a tensor's elements' type, and their size.
fn element(tensor: &Tensor) -> (u64, u64) {
    match tensor.dtype() {
        DType::I64 => (7, 8),
        DType::F64 => (11, 8),
        DType::U8 => (2, 1),
        _ => (1, 4),
    }
}

fn bytes(tensor: &Tensor) -> u64 {
    element(tensor).1 * tensor.elem_count() as u64
}

/// Writes a tensor's values, little-endian; what is narrower than f32 as f32.
fn values(tensor: &Tensor, to: &mut dyn Write) -> io::Result<()> {
    let failed = io::Error::other::<candle_core::Error>;
    let flat = tensor.to_device(&Device::Cpu).and_then(|t| t.flatten_all()).map_err(failed)?;
    let mut write = |bytes: &[u8]| to.write_all(bytes);
    match tensor.dtype() {
        DType::I64 => flat.to_vec1::<i64>().map_err(failed)?.iter().try_for_each(|v| write(&v.to_le_bytes())),
        DType::U8 => write(&flat.to_vec1::<u8>().map_err(failed)?),
        DType::F64 => flat.to_vec1::<f64>().map_err(failed)?.iter().try_for_each(|v| write(&v.to_le_bytes())),
        _ => {
            let values = flat.to_dtype(DType::F32).and_then(|t| t.to_vec1::<f32>()).map_err(failed)?;
            values.iter().try_for_each(|v| write(&v.to_le_bytes()))
        }
    }
}

impl Graph {
    /// Bytes of all weights and constants.
    pub fn bytes(&self) -> u64 {
        let attributes = self.nodes.iter().flat_map(|n| &n.attributes);
        let constants = attributes.filter_map(|(_, a)| if let Attribute::Tensor(t) = a { Some(t) } else { None });
        self.tensors.iter().map(|(_, t)| t).chain(constants).map(bytes).sum()
    }

    /// Whether the weights need a file of their own: a protocol buffer holds two gigabytes.
    pub fn is_large(&self) -> bool {
        self.bytes() > LARGEST - (1 << 24)
    }

    /// Writes the file. `producer` and `version` are of the program that writes it. With the name of another file, weights are left to
    /// [`Graph::write_weights`] of that file.
    ///
    /// # Errors
    /// The writer's; more than two gigabytes in one file.
    pub fn write(&self, to: &mut dyn Write, [producer, version]: [&str; 2], beside: Option<&str>) -> io::Result<()> {
        let mut offset = 0;
        let mut tensors = vec![];
        for (name, tensor) in &self.tensors {
            let mut fields = described(tensor).text(8, name);
            let length = bytes(tensor);
            let inside = match beside.filter(|_| length >= SMALL) {
                None => Some(length),
                Some(file) => {
                    for (key, value) in
                        [("location", file.to_string()), ("offset", offset.to_string()), ("length", length.to_string())]
                    {
                        fields = fields.entry(13, key, &value);
                    }
                    fields = fields.number(14, 1);
                    offset = (offset + length).next_multiple_of(PAGE);
                    None
                }
            };
            if let Some(length) = inside {
                fields = fields.head(9, length);
            }
            tensors.push((fields, inside.unwrap_or(0), tensor));
        }
        let mut graph = Fields::default();
        for one in &self.nodes {
            graph = graph.message(1, node(one)?);
        }
        let graph = graph.text(2, "zoo").each(&self.inputs, |f, p| f.message(11, port(p)));
        let graph = graph.each(&self.outputs, |f, p| f.message(12, port(p)));
        let model = Fields::default().number(1, IR_VERSION).text(2, producer).text(3, version);
        let model = model.message(8, Fields::default().text(1, "").number(2, OPSET));
        let model = model.each(&self.metadata, |f, (key, value)| f.entry(14, key, value));
        let head =
            |(fields, inside, _): &(Fields, u64, &Tensor)| Fields::default().head(5, fields.0.len() as u64 + inside);
        let of_tensors: u64 = tensors.iter().map(|t| head(t).0.len() as u64 + t.0.0.len() as u64 + t.1).sum();
        let length = graph.0.len() as u64 + of_tensors;
        if length > LARGEST {
            return Err(io::Error::other(
                "more than two gigabytes in one file: the weights have to go into a file of their own",
            ));
        }
        to.write_all(&model.head(7, length).0)?;
        to.write_all(&graph.0)?;
        for tensor in &tensors {
            to.write_all(&head(tensor).0)?;
            to.write_all(&tensor.0.0)?;
            if tensor.1 > 0 {
                values(tensor.2, to)?;
            }
        }
        Ok(())
    }

    /// Writes the file of weights that [`Graph::write`] names.
    ///
    /// # Errors
    /// The writer's.
    pub fn write_weights(&self, to: &mut dyn Write) -> io::Result<()> {
        let mut written = 0u64;
        for (_, tensor) in self.tensors.iter().filter(|(_, t)| bytes(t) >= SMALL) {
            let gap = written.next_multiple_of(PAGE) - written;
            to.write_all(&vec![0; gap as usize])?;
            values(tensor, to)?;
            written += gap + bytes(tensor);
        }
        Ok(())
    }
}
