//! The values of a pickle.

use std::collections::BTreeMap;

use crate::Dtype;
use crate::input::{Budget, Parsed, malformed};
use crate::numpy::Descr;

/// A value's number.
pub(crate) type Id = u32;

/// A value.
#[derive(Debug)]
pub(crate) enum Node {
    None,
    Bool(bool),
    Int(i64),
    /// An integer of more than 64 bits, in hexadecimal.
    Big(String),
    Float(f64),
    Text(String),
    /// A `torch.device`, by its name.
    Device(String),
    Bytes(Vec<u8>),
    Tuple(Vec<Id>),
    List(Vec<Id>),
    Set(Vec<Id>),
    Dict {
        items: Vec<(Id, Id)>,
        attributes: Option<Id>,
    },
    /// An `argparse.Namespace`, a dictionary once its state comes.
    Namespace,
    /// A class or function, by name: inert.
    Global(String),
    /// What the call of a class or function would give that is never called.
    Object {
        name: String,
        /// What it would be given as its state.
        state: Option<Id>,
    },
    Storage(Storage),
    Tensor(Box<Strided>),
    NumpyType(Descr),
    /// An array of NumPy; `None` until its state comes.
    Array(Option<Box<Array>>),
}

/// Bytes outside the pickle.
#[derive(Clone, Debug)]
pub(crate) struct Storage {
    pub(crate) key: String,
    /// The type of its elements; `None` for plain bytes.
    pub(crate) dtype: Option<Dtype>,
    pub(crate) elements: usize,
    /// Where this view of the storage begins, in elements (files older than PyTorch 1.6).
    pub(crate) offset: usize,
}

/// A tensor over a storage; offset and strides in elements.
#[derive(Clone, Debug)]
pub(crate) struct Strided {
    pub(crate) storage: Storage,
    pub(crate) dtype: Dtype,
    pub(crate) offset: usize,
    pub(crate) shape: Vec<usize>,
    pub(crate) strides: Vec<usize>,
}

/// An array within the pickle.
#[derive(Clone, Debug)]
pub(crate) struct Array {
    pub(crate) descr: Descr,
    pub(crate) shape: Vec<usize>,
    pub(crate) fortran: bool,
    pub(crate) bytes: Id,
}

/// All values of a pickle.
#[derive(Debug)]
pub(crate) struct Pickle {
    pub(super) nodes: Vec<Node>,
    pub(crate) budget: Budget,
    /// Classes and functions that it names, and how often; whether it would call one that is not on the list.
    pub(crate) names: BTreeMap<String, usize>,
    pub(crate) called: Vec<String>,
}

impl std::ops::Index<Id> for Pickle {
    type Output = Node;

    fn index(&self, id: Id) -> &Node {
        &self.nodes[id as usize]
    }
}

impl Pickle {
    pub(crate) fn new(budget: Budget) -> Self {
        Self { nodes: vec![], budget, names: BTreeMap::new(), called: vec![] }
    }

    /// All values, in the order in which they were read.
    pub(crate) fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    pub(super) fn add(&mut self, node: Node) -> Parsed<Id> {
        let items = match &node {
            Node::Text(t) | Node::Device(t) | Node::Global(t) | Node::Big(t) => t.len(),
            Node::Object { name, .. } => name.len(),
            Node::Bytes(b) => b.len(),
            Node::Tuple(v) | Node::List(v) | Node::Set(v) => 4 * v.len(),
            Node::Dict { items, .. } => 8 * items.len(),
            Node::Storage(s) => s.key.len(),
            Node::Tensor(t) => size_of::<Strided>() + t.storage.key.len() + 16 * t.shape.len(),
            Node::Array(a) => a.as_ref().map_or(0, |a| size_of::<Array>() + 8 * a.shape.len()),
            _ => 0,
        };
        self.budget.spend(size_of::<Node>() + items)?;
        let Ok(id) = Id::try_from(self.nodes.len()) else { return malformed("its pickle has too many values") };
        self.nodes.push(node);
        Ok(id)
    }

    /// A class or function that it names.
    pub(super) fn global(&mut self, name: String) -> Parsed<Node> {
        if let Some(times) = self.names.get_mut(&name) {
            *times += 1;
        } else {
            self.budget.spend(64 + name.len())?;
            self.names.insert(name.clone(), 1);
        }
        Ok(Node::Global(name))
    }

    /// The name of a class or function.
    pub(super) fn name(&self, id: Id) -> String {
        match &self[id] {
            Node::Global(name) => name.clone(),
            _ => "something that is no class".into(),
        }
    }

    pub(crate) fn text(&self, id: Id) -> Option<&str> {
        if let Node::Text(t) = &self[id] { Some(t) } else { None }
    }

    pub(crate) fn sequence(&self, id: Id) -> Option<&[Id]> {
        if let Node::Tuple(v) | Node::List(v) = &self[id] { Some(v) } else { None }
    }

    pub(crate) fn size(&self, id: Id) -> Option<usize> {
        if let Node::Int(n) = &self[id] { usize::try_from(*n).ok() } else { None }
    }

    /// Sizes or strides: of 64 dimensions at most, as in PyTorch.
    pub(crate) fn sizes(&self, id: Id) -> Option<Vec<usize>> {
        self.sequence(id).filter(|s| s.len() <= 64)?.iter().map(|i| self.size(*i)).collect()
    }

    /// An entry of the state of an object.
    pub(crate) fn attribute(&self, object: Id, key: &str) -> Parsed<Option<Id>> {
        match &self[object] {
            Node::Object { state: Some(state), .. } => self.get(*state, key),
            _ => Ok(None),
        }
    }

    /// The value of a dictionary's key; the last one counts.
    pub(crate) fn get(&self, dict: Id, key: &str) -> Parsed<Option<Id>> {
        let Node::Dict { items, .. } = &self[dict] else { return Ok(None) };
        self.budget.spend(items.len())?;
        Ok(items.iter().rev().find(|(k, _)| self.text(*k) == Some(key)).map(|(_, v)| *v))
    }
}
