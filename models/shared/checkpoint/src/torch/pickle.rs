//! A pickle as data. Python's unpickler is a machine that calls what the file names; this one builds plain values from an
//! exact list of names, and nothing is ever called, imported or looked up.
//!
//! Values lie in one vector and refer to each other by number: a value that is remembered and used again costs four
//! bytes, whatever is in it, so the memory is bounded by the length of the file; nothing here recurses. Opcodes:
//! <https://github.com/python/cpython/blob/main/Lib/pickletools.py>, protocols 0 to 5.

use std::collections::HashMap;
use std::io::{BufRead, Read};

use crate::Dtype;
use crate::input::{Parsed, malformed, refused};
use crate::npz::Descr;

/// A value's number.
pub(crate) type Id = u32;

/// More bytes of pickle, not counting tensors, are no checkpoint.
pub(crate) const LARGEST: u64 = 1 << 28;

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
    nodes: Vec<Node>,
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
    /// Reads one pickle from a stream of at most `remaining` bytes, and returns its value.
    pub(crate) fn read(&mut self, from: &mut dyn BufRead, remaining: u64) -> Parsed<Id> {
        Machine {
            values: self,
            from,
            remaining: remaining.min(LARGEST),
            stack: vec![],
            marks: vec![],
            memo: HashMap::new(),
        }
        .run()
    }

    /// All values, in the order in which they were read.
    pub(crate) fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    fn add(&mut self, node: Node) -> Parsed<Id> {
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

    pub(crate) fn text(&self, id: Id) -> Option<&str> {
        if let Node::Text(t) = &self[id] { Some(t) } else { None }
    }

    pub(crate) fn sequence(&self, id: Id) -> Option<&[Id]> {
        if let Node::Tuple(v) | Node::List(v) = &self[id] { Some(v) } else { None }
    }

    fn size(&self, id: Id) -> Option<usize> {
        if let Node::Int(n) = &self[id] { usize::try_from(*n).ok() } else { None }
    }

    fn sizes(&self, id: Id) -> Option<Vec<usize>> {
        self.sequence(id)?.iter().map(|i| self.size(*i)).collect()
    }

    /// The value of a dictionary's key; the last one counts.
    pub(crate) fn get(&self, dict: Id, key: &str) -> Option<Id> {
        let Node::Dict { items, .. } = &self[dict] else { return None };
        items.iter().rev().find(|(k, _)| self.text(*k) == Some(key)).map(|(_, v)| *v)
    }
}

struct Machine<'a> {
    values: &'a mut Pickle,
    from: &'a mut dyn BufRead,
    remaining: u64,
    stack: Vec<Id>,
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
}

impl Machine<'_> {
    fn run(mut self) -> Parsed<Id> {
        loop {
            let [op] = self.array::<1>()?;
            if op == b'.' {
                return match (self.pop()?, self.stack.is_empty() && self.marks.is_empty()) {
                    (value, true) => Ok(value),
                    _ => malformed("its pickle stops with values left over"),
                };
            }
            self.step(op)?;
        }
    }

    fn step(&mut self, op: u8) -> Parsed<()> {
        let node = match op {
            0x80 => {
                let [version] = self.array()?;
                return if version <= 5 {
                    Ok(())
                } else {
                    refused(format!("its pickle has protocol {version}, known are 0 to 5"))
                };
            }
            0x95 => return self.array::<8>().map(|_| ()),
            b'(' => {
                self.marks.push(self.stack.len());
                return Ok(());
            }
            b'0' => return self.pop().map(|_| ()),
            b'1' => return self.since_mark().map(|_| ()),
            b'2' => {
                let top = self.pop()?;
                self.push(top)?;
                return self.push(top);
            }
            b'N' => Node::None,
            0x88 => Node::Bool(true),
            0x89 => Node::Bool(false),
            b'I' => {
                let line = self.line()?;
                match line.as_str() {
                    "00" => Node::Bool(false),
                    "01" => Node::Bool(true),
                    _ => self.decimal(&line)?,
                }
            }
            b'L' => {
                let line = self.line()?;
                self.decimal(line.trim_end_matches('L'))?
            }
            b'J' => Node::Int(i32::from_le_bytes(self.array()?).into()),
            b'K' => Node::Int(self.array::<1>()?[0].into()),
            b'M' => Node::Int(u16::from_le_bytes(self.array()?).into()),
            0x8a => {
                let n = self.array::<1>()?[0].into();
                integer(&self.bytes(n)?)
            }
            0x8b => match u64::try_from(i32::from_le_bytes(self.array()?)) {
                Ok(n) => integer(&self.bytes(n)?),
                Err(_) => return malformed("an integer of its pickle has a negative length"),
            },
            b'F' => match self.line()?.parse() {
                Ok(value) => Node::Float(value),
                Err(_) => return malformed("a number of its pickle is none"),
            },
            b'G' => Node::Float(f64::from_be_bytes(self.array()?)),
            b'S' => {
                let line = self.line()?;
                let quoted = line.trim();
                let inner = ['\'', '"'].iter().find_map(|q| quoted.strip_prefix(*q)?.strip_suffix(*q));
                match inner {
                    Some(text) if !text.contains('\\') => Node::Text(text.into()),
                    _ => return malformed("a string of its pickle is not quoted plainly"),
                }
            }
            b'V' => Node::Text(self.line()?),
            b'U' | 0x8c | b'C' => {
                let n = self.array::<1>()?[0].into();
                self.string(op, n)?
            }
            b'T' | b'X' | b'B' => {
                let n = u32::from_le_bytes(self.array()?).into();
                self.string(op, n)?
            }
            0x8d | 0x8e | 0x96 => {
                let n = u64::from_le_bytes(self.array()?);
                self.string(op, n)?
            }
            b']' => Node::List(vec![]),
            b'}' => Node::Dict { items: vec![], attributes: None },
            b')' => Node::Tuple(vec![]),
            0x8f => Node::Set(vec![]),
            0x85..=0x87 => {
                let mut items = vec![];
                for _ in 0x84..op {
                    items.insert(0, self.pop()?);
                }
                Node::Tuple(items)
            }
            b't' => Node::Tuple(self.since_mark()?),
            b'l' => Node::List(self.since_mark()?),
            0x91 => Node::Set(self.since_mark()?),
            b'd' => Node::Dict { items: pairs(self.since_mark()?)?, attributes: None },
            b'a' | b'e' | b's' | b'u' | 0x90 => return self.fill(op),
            b'q' | b'r' | b'p' | 0x94 => {
                let key = match op {
                    b'q' => self.array::<1>()?[0].into(),
                    b'r' => u32::from_le_bytes(self.array()?),
                    b'p' => self.number()?,
                    _ => self.memo.len() as u32,
                };
                let Some(top) =
                    self.stack.last().copied().filter(|_| self.marks.last().is_none_or(|m| *m < self.stack.len()))
                else {
                    return malformed("its pickle remembers a value that is not there");
                };
                self.memo.insert(key, top);
                return Ok(());
            }
            b'h' | b'j' | b'g' => {
                let key = match op {
                    b'h' => self.array::<1>()?[0].into(),
                    b'j' => u32::from_le_bytes(self.array()?),
                    _ => self.number()?,
                };
                let Some(value) = self.memo.get(&key) else {
                    return malformed(format!("its pickle asks for value {key}, which it did not remember"));
                };
                return self.push(*value);
            }
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                Node::Global(format!("{module}.{name}"))
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                match (self.values.text(module), self.values.text(name)) {
                    (Some(module), Some(name)) => Node::Global(format!("{module}.{name}")),
                    _ => return malformed("its pickle names a class by something that is no text"),
                }
            }
            b'Q' => {
                let id = self.pop()?;
                Node::Storage(self.storage(id)?)
            }
            b'R' | 0x81 => {
                let (arguments, callable) = (self.pop()?, self.pop()?);
                let value = self.call(callable, arguments, op == 0x81)?;
                return self.push(value);
            }
            0x92 => {
                let (keywords, arguments, callable) = (self.pop()?, self.pop()?, self.pop()?);
                if !matches!(&self.values[keywords], Node::Dict { items, .. } if items.is_empty()) {
                    return refused(format!(
                        "its pickle makes {} with keywords: nothing was executed",
                        self.name(callable)
                    ));
                }
                let value = self.call(callable, arguments, true)?;
                return self.push(value);
            }
            b'b' => {
                let (state, object) = (self.pop()?, self.top()?);
                return self.build(object, state);
            }
            b'o' => {
                let items = self.since_mark()?;
                let name = items.first().map_or("nothing".into(), |i| self.name(*i));
                return not_listed(&name);
            }
            b'i' => {
                let (module, name) = (self.line()?, self.line()?);
                return not_listed(&format!("{module}.{name}"));
            }
            b'P' => return refused("its pickle refers to something outside by a text: PyTorch writes no such thing"),
            0x82..=0x84 => return refused("its pickle refers to Python's extension registry: nothing was executed"),
            0x97 | 0x98 => return refused("its pickle refers to buffers outside the file"),
            _ => return malformed(format!("its pickle has opcode {op:#04x}, which does not exist")),
        };
        let id = self.values.add(node)?;
        self.push(id)
    }

    fn push(&mut self, id: Id) -> Parsed<()> {
        self.stack.push(id);
        Ok(())
    }

    fn array<const N: usize>(&mut self) -> Parsed<[u8; N]> {
        let mut bytes = [0; N];
        self.take(N as u64)?;
        self.from.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    /// Counts bytes before they are read: no length is believed that reaches beyond the end.
    fn take(&mut self, n: u64) -> Parsed<()> {
        match self.remaining.checked_sub(n) {
            Some(left) => {
                self.remaining = left;
                Ok(())
            }
            None => malformed("its pickle ends too early, or has more than 256 MiB"),
        }
    }

    fn bytes(&mut self, n: u64) -> Parsed<Vec<u8>> {
        self.take(n)?;
        let mut bytes = vec![];
        if (&mut *self.from).take(n).read_to_end(&mut bytes)? as u64 != n {
            return malformed("its pickle ends too early");
        }
        Ok(bytes)
    }

    fn string(&mut self, op: u8, n: u64) -> Parsed<Node> {
        let bytes = self.bytes(n)?;
        match op {
            b'B' | b'C' | 0x8e | 0x96 => Ok(Node::Bytes(bytes)),
            // Strings of Python 2 have no encoding; bytes that are no text are kept as such.
            b'T' | b'U' => Ok(String::from_utf8(bytes).map_or_else(|e| Node::Bytes(e.into_bytes()), Node::Text)),
            // Python may write lone surrogates, which no text has.
            _ => Ok(Node::Text(
                String::from_utf8(bytes).unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned()),
            )),
        }
    }

    fn line(&mut self) -> Parsed<String> {
        let mut bytes = vec![];
        let limit = self.remaining.min(1 << 16);
        (&mut *self.from).take(limit).read_until(b'\n', &mut bytes)?;
        self.take(bytes.len() as u64)?;
        if bytes.pop() != Some(b'\n') {
            return malformed("a line of its pickle has no end");
        }
        String::from_utf8(bytes).or_else(|_| malformed("a line of its pickle is no text"))
    }

    fn number(&mut self) -> Parsed<u32> {
        self.line()?.parse().or_else(|_| malformed("a number of its pickle is none"))
    }

    fn decimal(&mut self, digits: &str) -> Parsed<Node> {
        digits
            .trim()
            .parse()
            .map(Node::Int)
            .or_else(|_| malformed("an integer of its pickle is none, or has more than 64 bits"))
    }

    fn pop(&mut self) -> Parsed<Id> {
        let floor = self.marks.last().copied().unwrap_or(0);
        if self.stack.len() <= floor {
            return malformed("its pickle takes a value that is not there");
        }
        self.stack.pop().map_or_else(|| malformed("its pickle takes a value that is not there"), Ok)
    }

    fn top(&mut self) -> Parsed<Id> {
        let value = self.pop()?;
        self.stack.push(value);
        Ok(value)
    }

    fn since_mark(&mut self) -> Parsed<Vec<Id>> {
        match self.marks.pop() {
            Some(at) => Ok(self.stack.split_off(at)),
            None => malformed("its pickle goes back to a mark that is not there"),
        }
    }

    /// Puts values into the list, set or dictionary below them.
    fn fill(&mut self, op: u8) -> Parsed<()> {
        let mut values = match op {
            b'a' => vec![self.pop()?],
            b's' => {
                let value = self.pop()?;
                vec![self.pop()?, value]
            }
            _ => self.since_mark()?,
        };
        let target = self.top()?;
        match (&mut self.values.nodes[target as usize], op) {
            (Node::List(items), b'a' | b'e') | (Node::Set(items), 0x90) => items.append(&mut values),
            (Node::Dict { items, .. }, b's' | b'u') => items.append(&mut pairs(values)?),
            _ => return malformed("its pickle puts values into something that is no list, set or dictionary"),
        }
        Ok(())
    }

    fn name(&self, id: Id) -> String {
        match &self.values[id] {
            Node::Global(name) => name.clone(),
            _ => "something that is no class".into(),
        }
    }

    /// `("storage", type, key, location, elements[, view])`.
    fn storage(&self, id: Id) -> Parsed<Storage> {
        let v = &*self.values;
        let read = || {
            let parts = v.sequence(id).filter(|p| p.len() >= 5 && v.text(p[0]) == Some("storage"))?;
            let Node::Global(class) = &v[parts[1]] else { return None };
            let mut storage = Storage {
                key: v.text(parts[2])?.to_string(),
                dtype: storage_type(class)?,
                elements: v.size(parts[4])?,
                offset: 0,
            };
            if let Some(view) = parts.get(5).and_then(|p| v.sequence(*p)) {
                storage.offset = v.size(*view.get(1)?)?;
            }
            Some(storage)
        };
        match read() {
            Some(storage) => Ok(storage),
            None => match v.sequence(id).and_then(|p| Some((v.text(*p.first()?)?, p.get(1)?))) {
                Some(("module", class)) => refused(format!(
                    "it holds a whole model of class {}, not its weights: save model.state_dict() instead",
                    self.name(*class)
                )),
                Some(("storage", class)) => {
                    refused(format!("it holds a storage of an unknown kind, {}", self.name(*class)))
                }
                _ => malformed("its pickle refers to something outside that is no storage"),
            },
        }
    }

    /// What the call of a listed class or function would give.
    fn call(&mut self, callable: Id, arguments: Id, new: bool) -> Parsed<Id> {
        let name = self.name(callable);
        let Some(a) = self.values.sequence(arguments).map(<[Id]>::to_vec) else {
            return malformed(format!("its pickle calls {name} without a tuple of arguments"));
        };
        let wrong = || malformed(format!("its pickle gives {name} other arguments than it takes"));
        let v = &*self.values;
        let node = match (name.as_str(), &a[..]) {
            ("collections.OrderedDict", []) => Node::Dict { items: vec![], attributes: None },
            ("argparse.Namespace", []) => Node::Namespace,
            _ if new => return not_listed(&name),
            ("collections.defaultdict", [] | [_]) => Node::Dict { items: vec![], attributes: None },
            ("collections.OrderedDict" | "collections.Counter", [items]) => match &v[*items] {
                Node::Dict { items, .. } => Node::Dict { items: items.clone(), attributes: None },
                Node::List(list) => {
                    let pair = |i: &Id| v.sequence(*i).filter(|p| p.len() == 2).map(|p| (p[0], p[1]));
                    match list.iter().map(pair).collect() {
                        Some(items) => Node::Dict { items, attributes: None },
                        None => return wrong(),
                    }
                }
                _ => return wrong(),
            },
            ("torch._utils._rebuild_parameter" | "torch._utils._rebuild_parameter_with_state", [data, _, ..]) => {
                return match &v[*data] {
                    Node::Tensor(_) => Ok(*data),
                    _ => wrong(),
                };
            }
            ("torch._tensor._rebuild_from_type_v2", [function, class, inner, _]) => {
                let (function, class) = (self.name(*function), self.name(*class));
                if !matches!(
                    class.as_str(),
                    "torch.Tensor" | "torch.nn.parameter.Parameter" | "torch.nn.parameter.Buffer"
                ) {
                    return not_listed(&class);
                }
                match v.sequence(*inner) {
                    Some(inner) => Node::Tensor(self.tensor(&function, inner)?),
                    None => return wrong(),
                }
            }
            (n, _) if n.starts_with("torch._utils._rebuild_") => Node::Tensor(self.tensor(n, &a)?),
            ("torch.serialization._get_layout", [layout]) if v.text(*layout).is_some() => return Ok(*layout),
            ("torch.Size", [sizes]) if v.sequence(*sizes).is_some() => return Ok(*sizes),
            ("torch.device", [kind]) => Node::Text(v.text(*kind).unwrap_or_default().into()),
            ("torch.device", [kind, index]) => match (v.text(*kind), v.size(*index)) {
                (Some(kind), Some(index)) => Node::Text(format!("{kind}:{index}")),
                _ => return wrong(),
            },
            ("_codecs.encode", [text, code]) => match (v.text(*text), v.text(*code)) {
                (Some(text), Some("latin1" | "latin-1")) => {
                    match text.chars().map(|c| u8::try_from(c).ok()).collect() {
                        Some(bytes) => Node::Bytes(bytes),
                        None => return wrong(),
                    }
                }
                _ => return wrong(),
            },
            ("builtins.set" | "__builtin__.set" | "builtins.frozenset" | "__builtin__.frozenset", [items]) => {
                match v.sequence(*items) {
                    Some(items) => Node::Set(items.to_vec()),
                    None => return wrong(),
                }
            }
            ("builtins.bytearray" | "__builtin__.bytearray", [bytes]) if matches!(v[*bytes], Node::Bytes(_)) => {
                return Ok(*bytes);
            }
            ("__builtin__.bytes" | "builtins.bytes" | "builtins.bytearray" | "__builtin__.bytearray", []) => {
                Node::Bytes(vec![])
            }
            ("builtins.complex" | "__builtin__.complex", [re, im]) => match (&v[*re], &v[*im]) {
                (Node::Float(re), Node::Float(im)) => Node::Text(format!("{re}{im:+}j")),
                _ => return wrong(),
            },
            ("numpy.dtype", [descr, ..]) => match v.text(*descr) {
                Some(text) => Node::NumpyType(Descr::parse(text)?),
                None => return wrong(),
            },
            ("numpy.core.multiarray.scalar" | "numpy._core.multiarray.scalar", [descr, bytes]) => {
                match (&v[*descr], &v[*bytes]) {
                    (Node::NumpyType(descr), Node::Bytes(bytes)) => scalar(descr, bytes)?,
                    _ => return wrong(),
                }
            }
            ("numpy.core.multiarray._reconstruct" | "numpy._core.multiarray._reconstruct", [class, _, _]) => {
                match self.name(*class).as_str() {
                    "numpy.ndarray" => Node::Array(None),
                    other => return not_listed(other),
                }
            }
            ("numpy.core.numeric._frombuffer" | "numpy._core.numeric._frombuffer", [bytes, descr, shape, order]) => {
                match (&v[*descr], &v[*bytes], v.sizes(*shape), v.text(*order)) {
                    (Node::NumpyType(descr), Node::Bytes(_), Some(shape), Some(order)) => {
                        Node::Array(Some(Array { descr: descr.clone(), shape, fortran: order == "F", bytes: *bytes }))
                    }
                    _ => return wrong(),
                }
            }
            _ => return not_listed(&name),
        };
        self.values.add(node)
    }

    /// What the functions of `torch._utils` rebuild: (storage, offset, sizes, strides, …).
    fn tensor(&self, function: &str, arguments: &[Id]) -> Parsed<Strided> {
        let v = &*self.values;
        let kind = function.trim_start_matches("torch._utils.");
        if !matches!(kind, "_rebuild_tensor" | "_rebuild_tensor_v2" | "_rebuild_tensor_v3") {
            let what = match kind {
                "_rebuild_sparse_tensor" => "a sparse tensor: save tensor.to_dense() instead",
                "_rebuild_qtensor" => "a quantized tensor of PyTorch: save tensor.dequantize() instead",
                "_rebuild_meta_tensor_no_storage" => "a tensor without values (device meta)",
                "_rebuild_device_tensor_from_numpy" | "_rebuild_device_tensor_from_cpu_tensor" => {
                    "a tensor of an accelerator without storage: save tensor.cpu() instead"
                }
                "_rebuild_nested_tensor" => "a nested tensor",
                _ => return not_listed(function),
            };
            return refused(format!("it holds {what} ({function})"));
        }
        let marked = |flag: &str| {
            let metadata = arguments.get(if kind == "_rebuild_tensor_v3" { 7 } else { 6 });
            metadata.and_then(|m| v.get(*m, flag)).is_some_and(|f| matches!(v[f], Node::Bool(true)))
        };
        if marked("conj") || marked("neg") {
            return refused(
                "it holds a tensor whose values are to be conjugated or negated when read: save tensor.resolve_conj().resolve_neg()",
            );
        }
        if let Some(Node::Global(name)) = arguments.get(6).map(|d| &v[*d])
            && name.strip_prefix("torch.").and_then(Dtype::from_torch).is_none()
        {
            return refused(format!("it holds a tensor of {name}, which no other format has"));
        }
        let read = || {
            let Node::Storage(storage) = &v[*arguments.first()?] else { return None };
            let dtype = match (storage.dtype, arguments.get(6).map(|d| &v[*d])) {
                (_, Some(Node::Global(name))) if kind == "_rebuild_tensor_v3" => {
                    Dtype::from_torch(name.strip_prefix("torch.")?)?
                }
                (Some(dtype), _) => dtype,
                _ => return None,
            };
            let (shape, strides) = (v.sizes(*arguments.get(2)?)?, v.sizes(*arguments.get(3)?)?);
            let offset = v.size(*arguments.get(1)?)?.checked_add(storage.offset)?;
            (shape.len() == strides.len() && shape.len() <= 64).then(|| Strided {
                storage: storage.clone(),
                dtype,
                offset,
                shape,
                strides,
            })
        };
        read()
            .map_or_else(|| malformed("a tensor of its pickle has no storage, or sizes and strides that cannot be"), Ok)
    }

    /// Gives a value its state.
    fn build(&mut self, object: Id, state: Id) -> Parsed<()> {
        let v = &*self.values;
        let node = match &v[object] {
            Node::Dict { .. } => {
                if let Node::Dict { attributes, .. } = &mut self.values.nodes[object as usize] {
                    *attributes = Some(state);
                }
                return Ok(());
            }
            Node::Namespace => match &v[state] {
                Node::Dict { items, .. } => Node::Dict { items: items.clone(), attributes: None },
                _ => return malformed("a namespace of its pickle has a state that is no dictionary"),
            },
            Node::NumpyType(descr) => {
                match v.sequence(state).map(|s| (s.get(1).and_then(|o| v.text(*o)), s.get(3), s.get(4))) {
                    Some((Some(order @ ("<" | ">" | "|" | "=")), names, fields)) => {
                        if [names, fields].into_iter().flatten().any(|i| !matches!(v[*i], Node::None)) {
                            return refused("it holds an array of records");
                        }
                        Node::NumpyType(Descr { big_endian: order == ">", ..descr.clone() })
                    }
                    _ => return malformed("a NumPy type of its pickle has a state that cannot be"),
                }
            }
            Node::Array(None) => {
                let read = || {
                    let [_, shape, descr, fortran, bytes] = *v.sequence(state)? else { return None };
                    let (Node::NumpyType(descr), Node::Bool(fortran)) = (&v[descr], &v[fortran]) else { return None };
                    let descr = descr.clone();
                    matches!(v[bytes], Node::Bytes(_)).then_some(Array {
                        descr,
                        shape: v.sizes(shape)?,
                        fortran: *fortran,
                        bytes,
                    })
                };
                match read() {
                    Some(array) => Node::Array(Some(array)),
                    None => return refused("it holds an array of Python objects, or one with a state that cannot be"),
                }
            }
            Node::Global(name) => return not_listed(&name.clone()),
            _ => return malformed("its pickle gives a state to something that takes none: nothing was executed"),
        };
        let id = self.values.add(node)?;
        self.values.nodes.swap(object as usize, id as usize);
        Ok(())
    }
}

fn not_listed<T>(name: &str) -> Parsed<T> {
    refused(format!(
        "its pickle would run {name}, which is not on the list of what tensors need: nothing was executed. If you trust the \
         file, load it in Python and save model.state_dict()"
    ))
}

fn pairs(values: Vec<Id>) -> Parsed<Vec<(Id, Id)>> {
    match values.len() % 2 {
        0 => Ok(values.chunks_exact(2).map(|p| (p[0], p[1])).collect()),
        _ => malformed("its pickle has a dictionary with a key without a value"),
    }
}

/// Little-endian two's complement.
fn integer(bytes: &[u8]) -> Node {
    let negative = bytes.last().is_some_and(|b| *b >= 128);
    // Bytes that only repeat the sign say nothing.
    let mut bytes = bytes;
    while bytes.len() > 8
        && bytes[bytes.len() - 1] == if negative { 255 } else { 0 }
        && (bytes[bytes.len() - 2] >= 128) == negative
    {
        bytes = &bytes[..bytes.len() - 1];
    }
    if bytes.len() <= 8 {
        let mut all = [if negative { 255 } else { 0 }; 8];
        all[..bytes.len()].copy_from_slice(bytes);
        return Node::Int(i64::from_le_bytes(all));
    }
    // The amount: two's complement is one more than the inverse.
    let mut amount = bytes.to_vec();
    if negative {
        let mut carry = true;
        for b in &mut amount {
            (*b, carry) = (!*b).overflowing_add(u8::from(carry));
        }
    }
    let digits: String = amount.iter().rev().map(|b| format!("{b:02x}")).collect();
    Node::Big(format!("{}0x{}", if negative { "-" } else { "" }, digits.trim_start_matches('0')))
}

fn scalar(descr: &Descr, bytes: &[u8]) -> Parsed<Node> {
    let Some(dtype) = descr.dtype else { return refused("it holds a NumPy scalar that is no number") };
    if dtype.size() != Some(bytes.len()) {
        return malformed("a NumPy scalar of its pickle has the wrong size");
    }
    let mut bytes = bytes.to_vec();
    if descr.big_endian {
        bytes.reverse();
    }
    Ok(match dtype {
        Dtype::Bool => Node::Bool(bytes[0] != 0),
        Dtype::C64 | Dtype::C128 => return refused("it holds a complex NumPy scalar"),
        d if d.is_float() => Node::Float(crate::cast::floats(d, &bytes).next().unwrap_or(f64::NAN)),
        d => match crate::cast::integers(d, &bytes).next() {
            Some(n) => i64::try_from(n).map_or_else(|_| Node::Big(format!("{n:#x}")), Node::Int),
            None => Node::None,
        },
    })
}

/// The element type of a storage class; `Some(None)` for plain bytes.
fn storage_type(class: &str) -> Option<Option<Dtype>> {
    let name = class.strip_prefix("torch.").map(|n| n.trim_start_matches("cuda.").trim_start_matches("storage."))?;
    if name == "UntypedStorage" {
        return Some(None);
    }
    STORAGES.iter().find(|(n, _)| *n == name).map(|(_, d)| Some(*d))
}

/// PyTorch's storage classes.
pub(crate) const STORAGES: &[(&str, Dtype)] = &[
    ("FloatStorage", Dtype::F32),
    ("DoubleStorage", Dtype::F64),
    ("HalfStorage", Dtype::F16),
    ("BFloat16Storage", Dtype::BF16),
    ("LongStorage", Dtype::I64),
    ("IntStorage", Dtype::I32),
    ("ShortStorage", Dtype::I16),
    ("CharStorage", Dtype::I8),
    ("ByteStorage", Dtype::U8),
    ("BoolStorage", Dtype::Bool),
    ("ComplexFloatStorage", Dtype::C64),
    ("ComplexDoubleStorage", Dtype::C128),
];
