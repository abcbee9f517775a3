//! Graphs of [ONNX](https://onnx.ai) operators, in which other programs run a trained model.
//!
//! A layer adds itself to a [`Graph`] by `export`, which stands beside its `forward` and does the same when evaluating. Weights keep the names,
//! shapes and values that they have in a checkpoint: what an operator wants otherwise, it gets by a node, which runtimes compute once.

mod math;
mod write;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor, bail};

pub use math::{Past, Places};

/// The version of the operators: the first with `LayerNormalization`.
pub const OPSET: u64 = 17;

/// What a graph computes: inputs, weights and nodes have one, and outputs are some of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Value(Arc<str>);

impl Value {
    /// Its name in the file.
    pub fn name(&self) -> &str {
        &self.0
    }
}

/// Types of elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Element {
    /// 32-bit floating point.
    F32,
    /// 64-bit floating point.
    F64,
    /// 64-bit integers.
    I64,
}

impl Element {
    /// ONNX's number of it (`TensorProto.DataType`).
    fn number(self) -> u64 {
        match self {
            Self::F32 => 1,
            Self::I64 => 7,
            Self::F64 => 11,
        }
    }
}

/// A dimension of an input or an output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Dim {
    /// Always this many.
    Of(usize),
    /// As many as the caller has; the same name is the same number.
    Any(&'static str),
}

/// What a node is told beside its inputs.
#[derive(Clone, Debug)]
pub enum Attribute {
    /// A whole number.
    Int(i64),
    /// Whole numbers.
    Ints(Vec<i64>),
    /// A number.
    Float(f32),
    /// Values.
    Tensor(Tensor),
}

#[derive(Clone, Debug)]
struct Node {
    op: &'static str,
    /// The empty name stands for one that is left out.
    inputs: Vec<Arc<str>>,
    outputs: Vec<Arc<str>>,
    attributes: Vec<(&'static str, Attribute)>,
}

/// An input or an output.
#[derive(Clone, Debug)]
struct Port {
    name: Arc<str>,
    element: Element,
    dims: Vec<Dim>,
    help: String,
}

impl Port {
    fn described(&self) -> (&str, &'static str, Vec<String>, &str) {
        let element = match self.element {
            Element::F32 => "float32",
            Element::F64 => "float64",
            Element::I64 => "int64",
        };
        let dim = |dim: &Dim| match dim {
            Dim::Of(n) => n.to_string(),
            Dim::Any(name) => (*name).to_string(),
        };
        (&self.name, element, self.dims.iter().map(dim).collect(), &self.help)
    }
}

/// A graph that is being made. See the [module](self).
#[derive(Debug)]
pub struct Graph {
    /// The parameters with their names, by where their values are.
    names: HashMap<usize, (String, Tensor)>,
    tensors: Vec<(Arc<str>, Tensor)>,
    nodes: Vec<Node>,
    inputs: Vec<Port>,
    outputs: Vec<Port>,
    /// Entries of the file about the model, such as how it came about.
    pub metadata: BTreeMap<String, String>,
    /// Values that are there already, by what they are.
    known: HashMap<String, Value>,
    count: usize,
    int8: bool,
}

/// Where a tensor's values are: two tensors share them or not.
fn place(tensor: &Tensor) -> usize {
    std::ptr::from_ref(&*tensor.storage_and_layout().0).addr()
}

impl Graph {
    /// An empty graph of a model with these parameters.
    pub fn new(parameters: Vec<(String, Tensor)>) -> Self {
        Self {
            names: parameters.into_iter().map(|(name, tensor)| (place(&tensor), (name, tensor))).collect(),
            tensors: vec![],
            nodes: vec![],
            inputs: vec![],
            outputs: vec![],
            metadata: BTreeMap::new(),
            known: HashMap::new(),
            count: 0,
            int8: false,
        }
    }

    /// With the weights of linear maps as whole numbers of eight bits, a scale for each of their rows, and products of whole numbers: what they
    /// multiply is rounded to eight bits, too, with one scale for all of it. Tables of rows, and maps tied to them, stay as they are.
    pub fn with_int8(self) -> Self {
        Self { int8: true, ..self }
    }

    /// Adds an input; `help` says what it is to those who use the model.
    ///
    /// # Errors
    /// A name that is taken.
    pub fn input(&mut self, name: &str, element: Element, dims: &[Dim], help: &str) -> Result<Value> {
        let value = self.claim(name)?;
        self.inputs.push(Port { name: value.0.clone(), element, dims: dims.into(), help: help.into() });
        Ok(value)
    }

    /// Makes a value an output of that name.
    ///
    /// # Errors
    /// A name that is taken.
    pub fn output(&mut self, name: &str, value: &Value, element: Element, dims: &[Dim], help: &str) -> Result<()> {
        let named = self.claim(name)?;
        self.nodes.push(Node {
            op: "Identity",
            inputs: vec![value.0.clone()],
            outputs: vec![named.0.clone()],
            attributes: vec![],
        });
        self.outputs.push(Port { name: named.0, element, dims: dims.into(), help: help.into() });
        Ok(())
    }

    /// A value by this name.
    fn claim(&mut self, name: &str) -> Result<Value> {
        if name.starts_with('/') || name.is_empty() {
            bail!("onnx: {name:?} is no name: names that begin with / are those of nodes")
        }
        let value = Value(name.into());
        match self.known.insert(format!("name {name}"), value.clone()) {
            Some(_) => bail!("onnx: two values are named {name}"),
            None => Ok(value),
        }
    }

    /// What one node computes.
    pub fn op(&mut self, op: &'static str, inputs: &[&Value], attributes: &[(&'static str, Attribute)]) -> Value {
        let inputs: Vec<Option<&Value>> = inputs.iter().copied().map(Some).collect();
        let [value] = self.ops(op, &inputs, attributes);
        value
    }

    /// What one node computes of inputs that may be left out.
    pub fn ops<const N: usize>(
        &mut self,
        op: &'static str,
        inputs: &[Option<&Value>],
        attributes: &[(&'static str, Attribute)],
    ) -> [Value; N] {
        let named = |value: &Option<&Value>| value.map_or_else(|| Arc::from(""), |v| v.0.clone());
        let inputs: Vec<Arc<str>> = inputs.iter().map(named).collect();
        self.count += 1;
        // No parameter has a name like this.
        let outputs: [Value; N] = std::array::from_fn(|i| {
            let which = if N > 1 { format!(".{i}") } else { String::new() };
            Value(format!("/{}_{}{which}", op.to_lowercase(), self.count).into())
        });
        let attributes = attributes.to_vec();
        self.nodes.push(Node { op, inputs, outputs: outputs.each_ref().map(|v| v.0.clone()).into(), attributes });
        outputs
    }

    /// A parameter, by the name that it has in a checkpoint.
    ///
    /// # Errors
    /// It is none of those that the graph was made with.
    pub fn parameter(&mut self, tensor: &Tensor) -> Result<Value> {
        let (name, whole) = self.named(tensor)?;
        if let Some(value) = self.known.get(&format!("parameter {name}")) {
            return Ok(value.clone());
        }
        let value = self.claim(&name)?;
        self.tensors.push((value.0.clone(), whole));
        self.known.insert(format!("parameter {name}"), value.clone());
        Ok(value)
    }

    /// The values of eight bits of a weight (out, in), 128 for zero, and the scale of each row (out); none if they are not asked for, or the weight
    /// is there as it is.
    fn int8(&mut self, weight: &Tensor) -> Result<Option<[Value; 2]>> {
        let (name, whole) = self.named(weight)?;
        if !self.int8 || self.known.contains_key(&format!("parameter {name}")) {
            return Ok(None);
        }
        let names = [format!("{name}_int8"), format!("{name}_scale")];
        if let [Some(values), Some(scale)] = names.each_ref().map(|name| self.known.get(&format!("parameter {name}"))) {
            return Ok(Some([values.clone(), scale.clone()]));
        }
        let whole = whole.to_device(&Device::Cpu)?.to_dtype(DType::F32)?;
        // A row of zeros has any scale.
        let scale = (whole.abs()?.max_keepdim(1)? / 127.)?.maximum(f32::MIN_POSITIVE)?; // (out, 1)
        let values = (whole.broadcast_div(&scale)?.round()? + 128.)?.to_dtype(DType::U8)?;
        let [values, scale] = [(0, values), (1, scale.squeeze(1)?)].map(|(i, tensor)| {
            let value = self.claim(&names[i])?;
            self.tensors.push((value.0.clone(), tensor));
            self.known.insert(format!("parameter {}", names[i]), value.clone());
            Ok::<_, candle_core::Error>(value)
        });
        Ok(Some([values?, scale?]))
    }

    /// The name of a parameter, and all of it.
    fn named(&self, tensor: &Tensor) -> Result<(String, Tensor)> {
        match self.names.get(&place(tensor)).cloned() {
            Some((name, whole)) if tensor.dims() != whole.dims() || tensor.stride() != whole.stride() => {
                bail!(
                    "onnx: {name} has shape {:?}, and a slice or transpose of it with shape {:?} was given: give all of it, and add a node",
                    whole.dims(),
                    tensor.dims()
                )
            }
            Some(named) => Ok(named),
            None => bail!("onnx: a tensor of shape {:?} is no parameter of the model", tensor.dims()),
        }
    }

    /// A tensor that is no parameter: the weights of the file are those of a checkpoint, without it.
    ///
    /// # Errors
    /// The name is taken.
    pub fn constant(&mut self, name: &str, tensor: &Tensor) -> Result<Value> {
        if !matches!(tensor.dtype(), DType::I64 | DType::F64 | DType::F32 | DType::F16 | DType::BF16 | DType::U8) {
            bail!("onnx: {name} is of type {}: make it of i64, f64, f32 or u8", tensor.dtype().as_str())
        }
        let value = self.claim(name)?;
        self.nodes.push(Node {
            op: "Constant",
            inputs: vec![],
            outputs: vec![value.0.clone()],
            attributes: vec![("value", Attribute::Tensor(tensor.clone()))],
        });
        Ok(value)
    }

    /// A small constant, once.
    fn small(&mut self, name: &str, tensor: impl FnOnce() -> Result<Tensor>) -> Result<Value> {
        match self.known.get(&format!("name {name}")) {
            Some(value) => Ok(value.clone()),
            None => self.constant(name, &tensor()?),
        }
    }

    /// Whole numbers in a row.
    ///
    /// # Errors
    /// candle's.
    pub fn ints(&mut self, values: &[i64]) -> Result<Value> {
        let name: Vec<String> = values.iter().map(i64::to_string).collect();
        self.small(&format!("ints_{}", name.join("_")), || Tensor::new(values, &Device::Cpu))
    }

    /// A whole number.
    ///
    /// # Errors
    /// candle's.
    pub fn int(&mut self, value: i64) -> Result<Value> {
        self.small(&format!("int_{value}"), || Tensor::new(value, &Device::Cpu))
    }

    /// A number, of a type.
    ///
    /// # Errors
    /// candle's.
    pub fn number(&mut self, value: f64, element: Element) -> Result<Value> {
        let dtype = match element {
            Element::F32 => DType::F32,
            Element::F64 => DType::F64,
            Element::I64 => bail!("onnx: Graph::int makes whole numbers"),
        };
        let name = format!("{}_{value:e}", if dtype == DType::F32 { "float" } else { "double" });
        self.small(&name, || Tensor::new(value, &Device::Cpu)?.to_dtype(dtype))
    }

    /// The inputs: name, type as NumPy has it, dimensions and help of each.
    pub fn inputs(&self) -> impl Iterator<Item = (&str, &'static str, Vec<String>, &str)> {
        self.inputs.iter().map(Port::described)
    }

    /// The same of the outputs.
    pub fn outputs(&self) -> impl Iterator<Item = (&str, &'static str, Vec<String>, &str)> {
        self.outputs.iter().map(Port::described)
    }

    /// How many nodes there are.
    pub fn nodes(&self) -> usize {
        self.nodes.len()
    }

    /// Names of the parameters that are not in the file.
    pub fn unused(&self) -> Vec<&str> {
        let known = |name: String| self.known.contains_key(&format!("parameter {name}"));
        let used = |name: &str| known(name.into()) || known(format!("{name}_int8"));
        let mut names: Vec<&str> =
            self.names.values().map(|(name, _)| name.as_str()).filter(|name| !used(name)).collect();
        names.sort_unstable();
        names
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Params;

    #[test]
    fn parameters_are_known_by_their_values_and_views_of_them_are_refused() -> Result<()> {
        let params = Params::init(1, &Device::Cpu);
        let a = params.builder().get_with_hints((2, 3), "a", crate::init::ONES)?;
        let mut graph = Graph::new(params.tensors());
        assert_eq!(graph.unused(), ["a"]);
        let value = graph.parameter(&a)?;
        assert_eq!((value.name(), &graph.parameter(&a.clone())?), ("a", &value));
        assert!(graph.unused().is_empty());
        for view in [a.t()?, a.narrow(0, 0, 1)?] {
            assert!(graph.parameter(&view).is_err_and(|e| e.to_string().contains("a slice or transpose of it")));
        }
        let other = graph.parameter(&Tensor::ones((2, 3), DType::F32, &Device::Cpu)?);
        assert!(other.is_err_and(|e| e.to_string().contains("no parameter")));
        assert!(graph.input("a", Element::F32, &[], "").is_err(), "the name is taken");
        // A constant is there once, a node as often as it is asked for.
        assert_eq!(graph.ints(&[1, 2])?, graph.ints(&[1, 2])?);
        let nodes = graph.nodes();
        let sum = graph.add(&value, &value);
        graph.output("sum", &sum, Element::F32, &[Dim::Of(2), Dim::Any("n")], "")?;
        assert_eq!(graph.nodes(), nodes + 2);
        Ok(())
    }

    #[test]
    fn a_file_has_the_same_bytes_with_weights_within_and_beside_it_but_for_where_they_are() -> Result<()> {
        let params = Params::init(1, &Device::Cpu);
        let a = params.builder().get_with_hints((32, 16), "a", crate::init::ONES)?;
        let b = params.builder().get_with_hints(3, "b", crate::init::ONES)?;
        let mut graph = Graph::new(params.tensors());
        let (a, b) = (graph.parameter(&a)?, graph.parameter(&b)?);
        let sum = graph.add(&a, &b);
        graph.output("sum", &sum, Element::F32, &[], "")?;
        let (mut within, mut outside, mut weights) = (vec![], vec![], vec![]);
        graph.write(&mut within, ["test", "1"], None)?;
        graph.write(&mut outside, ["test", "1"], Some("w"))?;
        graph.write_weights(&mut weights)?;
        // Small ones stay: their values decide shapes.
        assert_eq!(weights, 1f32.to_le_bytes().repeat(32 * 16));
        assert!(within.len() > weights.len() && outside.len() < weights.len() / 4);
        assert_eq!(graph.bytes(), 4 * (32 * 16 + 3));
        Ok(())
    }
}
