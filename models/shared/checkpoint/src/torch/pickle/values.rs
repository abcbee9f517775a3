//! The values of a pickle.

use crate::Dtype;
use crate::input::{Parsed, malformed};
use crate::numpy::Descr;

/// A value's number.
pub(crate) type Id = u32;

/// More memory is not spent on the values of a pickle.
const MOST_MEMORY: u64 = 1 << 29;

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
    Storage(Storage),
    Tensor(Strided),
    NumpyType(Descr),
    /// An array of NumPy; `None` until its state comes.
    Array(Option<Array>),
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
#[derive(Debug, Default)]
pub(crate) struct Pickle {
    pub(super) nodes: Vec<Node>,
    /// Memory that they take, about.
    memory: u64,
}

impl std::ops::Index<Id> for Pickle {
    type Output = Node;

    fn index(&self, id: Id) -> &Node {
        &self.nodes[id as usize]
    }
}

impl Pickle {
    /// All values, in the order in which they were read.
    pub(crate) fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    pub(super) fn add(&mut self, node: Node) -> Parsed<Id> {
        let items = match &node {
            Node::Text(t) | Node::Global(t) | Node::Big(t) => t.len(),
            Node::Bytes(b) => b.len(),
            Node::Tuple(v) | Node::List(v) | Node::Set(v) => 4 * v.len(),
            Node::Dict { items, .. } => 8 * items.len(),
            Node::Storage(s) => s.key.len(),
            Node::Tensor(t) => t.storage.key.len() + 16 * t.shape.len(),
            Node::Array(a) => a.as_ref().map_or(0, |a| 8 * a.shape.len()),
            _ => 0,
        };
        self.memory += (size_of::<Node>() + items) as u64;
        let id = Id::try_from(self.nodes.len());
        self.nodes.push(node);
        match id {
            Ok(id) if self.memory <= MOST_MEMORY => Ok(id),
            _ => malformed("its pickle would take more than 512 MB of memory"),
        }
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

    pub(super) fn size(&self, id: Id) -> Option<usize> {
        if let Node::Int(n) = &self[id] { usize::try_from(*n).ok() } else { None }
    }

    pub(super) fn sizes(&self, id: Id) -> Option<Vec<usize>> {
        self.sequence(id)?.iter().map(|i| self.size(*i)).collect()
    }

    /// The value of a dictionary's key; the last one counts.
    pub(crate) fn get(&self, dict: Id, key: &str) -> Option<Id> {
        let Node::Dict { items, .. } = &self[dict] else { return None };
        items.iter().rev().find(|(k, _)| self.text(*k) == Some(key)).map(|(_, v)| *v)
    }
}
