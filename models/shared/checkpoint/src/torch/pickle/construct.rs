//! The list of classes and functions that tensors need, and what each would give: data, and nothing is called.

use super::values::{Array, Id, Node, Pickle, Storage, Strided};
use crate::Dtype;
use crate::input::{Parsed, malformed, refused};
use crate::numpy::Descr;

/// `("storage", type, key, location, elements[, view])`.
pub(super) fn storage(v: &Pickle, id: Id) -> Parsed<Storage> {
    let read = || {
        let parts = v.sequence(id).filter(|p| matches!(p.len(), 5 | 6) && v.text(p[0]) == Some("storage"))?;
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
                v.name(*class)
            )),
            Some(("storage", class)) => refused(format!("it holds a storage of an unknown kind, {}", v.name(*class))),
            _ => malformed("its pickle refers to something outside that is no storage"),
        },
    }
}

/// What a call gives.
pub(super) enum Made {
    /// A new value.
    Value(Node),
    /// One of its arguments.
    Argument(Id),
}

/// A part of the list of classes and functions that are known: what a call gives, `None` if the name is not in it.
type Listed = fn(&Pickle, &str, &[Id]) -> Parsed<Option<Made>>;

/// The list of what tensors need.
const LISTED: [Listed; 4] = [containers, torch, builtins, numpy];

/// Classes and functions outside of the lists, whose names are text.
pub(crate) fn is_foreign(name: &str) -> bool {
    !NAMES.contains(&name) && !is_inert(name) && storage_type(name).is_none() && !is_dtype(name)
}

/// Classes of values that mean nothing to tensors and do nothing when they are made: they are named in a remark.
pub(crate) fn is_inert(name: &str) -> bool {
    INERT.contains(&name)
}

fn is_dtype(name: &str) -> bool {
    name.strip_prefix("torch.").is_some_and(|n| Dtype::from_torch(n).is_some() || OTHER_DTYPES.contains(&n))
}

/// What a class gives that is never made.
pub(super) fn object(values: &mut Pickle, name: &str) -> Parsed<Node> {
    // Some names are enough to refuse it.
    const MOST: usize = 16;
    if !is_inert(name) && values.called.len() < MOST && !values.called.iter().any(|n| n == name) {
        values.called.push(name.into());
    }
    Ok(Node::Object { name: name.into(), state: None })
}

/// What the call of a class or function would give; `new` for a class that is made without being called.
pub(super) fn call(values: &mut Pickle, callable: Id, arguments: Id, new: bool) -> Parsed<Made> {
    match listed(values, callable, arguments, new)? {
        Some(made) => Ok(made),
        None => {
            let name = values.name(callable);
            object(values, &name).map(Made::Value)
        }
    }
}

/// What the call of a listed class or function would give; `None` for any other.
fn listed(v: &Pickle, callable: Id, arguments: Id, new: bool) -> Parsed<Option<Made>> {
    let name = v.name(callable);
    v.budget.spend(name.len())?;
    let Some(a) = v.sequence(arguments) else {
        return malformed(format!("its pickle calls {name} without a tuple of arguments"));
    };
    match (name.as_str(), a) {
        ("collections.OrderedDict", []) => return Ok(Some(Made::Value(dict(vec![])))),
        ("argparse.Namespace", []) => return Ok(Some(Made::Value(Node::Namespace))),
        _ if new => return Ok(None),
        _ => {}
    }
    for listed in LISTED {
        if let Some(made) = listed(v, &name, a)? {
            return Ok(Some(made));
        }
    }
    Ok(None)
}

fn wrong<T>(name: &str) -> Parsed<T> {
    malformed(format!("its pickle gives {name} other arguments than it takes"))
}

fn dict(items: Vec<(Id, Id)>) -> Node {
    Node::Dict { items, attributes: None }
}

/// A value, or arguments that do not fit.
fn value(name: &str, node: Option<Node>) -> Parsed<Option<Made>> {
    node.map_or_else(|| wrong(name), |node| Ok(Some(Made::Value(node))))
}

fn containers(v: &Pickle, name: &str, a: &[Id]) -> Parsed<Option<Made>> {
    match (name, a) {
        ("collections.defaultdict", [] | [_]) => value(name, Some(dict(vec![]))),
        ("collections.OrderedDict" | "collections.Counter", [items]) => match &v[*items] {
            Node::Dict { items, .. } => {
                v.budget.spend(8 * items.len())?;
                value(name, Some(dict(items.clone())))
            }
            Node::List(list) => {
                v.budget.spend(8 * list.len())?;
                let pair = |i: &Id| v.sequence(*i).filter(|p| p.len() == 2).map(|p| (p[0], p[1]));
                value(name, list.iter().map(pair).collect::<Option<_>>().map(dict))
            }
            _ => wrong(name),
        },
        _ => Ok(None),
    }
}

fn torch(v: &Pickle, name: &str, a: &[Id]) -> Parsed<Option<Made>> {
    match (name, a) {
        ("torch._utils._rebuild_parameter", [data, _, _])
        | ("torch._utils._rebuild_parameter_with_state", [data, _, _, _]) => match &v[*data] {
            Node::Tensor(_) => Ok(Some(Made::Argument(*data))),
            _ => wrong(name),
        },
        ("torch._utils._rebuild_parameter" | "torch._utils._rebuild_parameter_with_state", _) => wrong(name),
        ("torch._tensor._rebuild_from_type_v2", [function, class, inner, _]) => {
            const PLAIN: [&str; 3] = ["torch.Tensor", "torch.nn.parameter.Parameter", "torch.nn.parameter.Buffer"];
            let (function, class) = (v.name(*function), v.name(*class));
            match v.sequence(*inner) {
                _ if !PLAIN.contains(&class.as_str()) => not_listed(&[class]),
                Some(inner) => value(name, Some(Node::Tensor(tensor(v, &function, inner)?.into()))),
                None => wrong(name),
            }
        }
        (n, _) if n.starts_with("torch._utils._rebuild_") => value(name, Some(Node::Tensor(tensor(v, n, a)?.into()))),
        ("torch.serialization._get_layout", [layout]) if v.text(*layout).is_some() => Ok(Some(Made::Argument(*layout))),
        ("torch.Size", [sizes]) if v.sequence(*sizes).is_some() => Ok(Some(Made::Argument(*sizes))),
        ("torch.device", [kind]) => value(name, v.text(*kind).map(|kind| Node::Device(kind.into()))),
        ("torch.device", [kind, index]) => {
            let device = v.text(*kind).zip(v.size(*index)).map(|(kind, index)| format!("{kind}:{index}"));
            value(name, device.map(Node::Device))
        }
        _ => Ok(None),
    }
}

fn builtins(v: &Pickle, name: &str, a: &[Id]) -> Parsed<Option<Made>> {
    match (name, a) {
        ("_codecs.encode", [text, code]) => match (v.text(*text), v.text(*code)) {
            (Some(text), Some("latin1" | "latin-1")) => {
                v.budget.spend(text.len())?;
                value(name, text.chars().map(|c| u8::try_from(c).ok()).collect::<Option<_>>().map(Node::Bytes))
            }
            _ => wrong(name),
        },
        ("builtins.set" | "__builtin__.set" | "builtins.frozenset" | "__builtin__.frozenset", [items]) => {
            v.budget.spend(v.sequence(*items).map_or(0, |i| 4 * i.len()))?;
            value(name, v.sequence(*items).map(|items| Node::Set(items.to_vec())))
        }
        ("builtins.bytearray" | "__builtin__.bytearray", [bytes]) if matches!(v[*bytes], Node::Bytes(_)) => {
            Ok(Some(Made::Argument(*bytes)))
        }
        ("__builtin__.bytes" | "builtins.bytes" | "builtins.bytearray" | "__builtin__.bytearray", []) => {
            value(name, Some(Node::Bytes(vec![])))
        }
        ("builtins.complex" | "__builtin__.complex", [re, im]) => match (&v[*re], &v[*im]) {
            (Node::Float(re), Node::Float(im)) => value(name, Some(Node::Text(format!("{re}{im:+}j")))),
            _ => wrong(name),
        },
        _ => Ok(None),
    }
}

fn numpy(v: &Pickle, name: &str, a: &[Id]) -> Parsed<Option<Made>> {
    match (name, a) {
        ("numpy.dtype", [descr, ..]) => match v.text(*descr) {
            Some(text) => value(name, Some(Node::NumpyType(Descr::parse(text)?))),
            None => wrong(name),
        },
        ("numpy.core.multiarray.scalar" | "numpy._core.multiarray.scalar", [descr, bytes]) => {
            match (&v[*descr], &v[*bytes]) {
                (Node::NumpyType(descr), Node::Bytes(bytes)) => value(name, Some(scalar(descr, bytes)?)),
                _ => wrong(name),
            }
        }
        ("numpy.core.multiarray._reconstruct" | "numpy._core.multiarray._reconstruct", [class, _, _]) => {
            match v.name(*class).as_str() {
                "numpy.ndarray" => value(name, Some(Node::Array(None))),
                other => not_listed(&[other.into()]),
            }
        }
        ("numpy.core.numeric._frombuffer" | "numpy._core.numeric._frombuffer", [bytes, descr, shape, order]) => {
            match (&v[*descr], &v[*bytes], v.sizes(*shape), v.text(*order)) {
                (Node::NumpyType(descr), Node::Bytes(_), Some(shape), Some(order)) => {
                    let array = Array { descr: descr.clone(), shape, fortran: order == "F", bytes: *bytes };
                    value(name, Some(Node::Array(Some(array.into()))))
                }
                _ => wrong(name),
            }
        }
        _ => Ok(None),
    }
}

/// What the functions of `torch._utils` rebuild: (storage, offset, sizes, strides, …).
fn tensor(v: &Pickle, function: &str, arguments: &[Id]) -> Parsed<Strided> {
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
            _ => return not_listed(&[function.into()]),
        };
        return refused(format!("it holds {what} ({function})"));
    }
    // Those that Python's function takes.
    let (least, most) = match kind {
        "_rebuild_tensor" => (4, 4),
        "_rebuild_tensor_v2" => (6, 7),
        _ => (7, 8),
    };
    if !(least..=most).contains(&arguments.len()) {
        return wrong(function);
    }
    let marked = |flag: &str| -> Parsed<bool> {
        let metadata = arguments.get(if kind == "_rebuild_tensor_v3" { 7 } else { 6 });
        let found = metadata.map(|m| v.get(*m, flag)).transpose()?.flatten();
        Ok(found.is_some_and(|f| matches!(v[f], Node::Bool(true))))
    };
    if marked("conj")? || marked("neg")? {
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
    read().map_or_else(|| malformed("a tensor of its pickle has no storage, or sizes and strides that cannot be"), Ok)
}

/// Gives a value its state.
pub(super) fn build(values: &mut Pickle, object: Id, state: Id) -> Parsed<()> {
    let v = &*values;
    let node = match &v[object] {
        Node::Dict { .. } => {
            if let Node::Dict { attributes, .. } = &mut values.nodes[object as usize] {
                *attributes = Some(state);
            }
            return Ok(());
        }
        Node::Object { .. } => {
            if let Node::Object { state: of, .. } = &mut values.nodes[object as usize] {
                *of = Some(state);
            }
            return Ok(());
        }
        Node::Namespace => match &v[state] {
            Node::Dict { items, .. } => {
                v.budget.spend(8 * items.len())?;
                Node::Dict { items: items.clone(), attributes: None }
            }
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
                Some(array) => Node::Array(Some(array.into())),
                None => return refused("it holds an array of Python objects, or one with a state that cannot be"),
            }
        }
        Node::Global(name) => {
            let name = name.clone();
            return self::object(values, &name).map(|_| ());
        }
        _ => return malformed("its pickle gives a state to something that takes none: nothing was executed"),
    };
    let id = values.add(node)?;
    values.nodes.swap(object as usize, id as usize);
    Ok(())
}

/// Refuses what would run code, by all its names.
pub(super) fn not_listed<T>(names: &[String]) -> Parsed<T> {
    refused(runs(names))
}

/// What a pickle is refused for that would run code.
pub(crate) fn runs(names: &[String]) -> String {
    const SHOWN: usize = 4;
    let more = match names.len().saturating_sub(SHOWN) {
        0 => String::new(),
        n => format!(" and {n} more"),
    };
    let shown = names[..names.len().min(SHOWN)].join(", ");
    let is = if names.len() == 1 { "is" } else { "are" };
    format!(
        "its pickle would run {shown}{more}, which {is} not on the list of what tensors need: nothing was executed. If you \
         trust the file, load it in Python and save model.state_dict()"
    )
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

/// The classes and functions that tensors need, but for storages and element types.
const NAMES: &[&str] = &[
    "__builtin__.bytearray",
    "__builtin__.bytes",
    "__builtin__.complex",
    "__builtin__.frozenset",
    "__builtin__.set",
    "_codecs.encode",
    "argparse.Namespace",
    "builtins.bytearray",
    "builtins.bytes",
    "builtins.complex",
    "builtins.frozenset",
    "builtins.set",
    "collections.Counter",
    "collections.OrderedDict",
    "collections.defaultdict",
    "numpy._core.multiarray._reconstruct",
    "numpy._core.multiarray.scalar",
    "numpy._core.numeric._frombuffer",
    "numpy.core.multiarray._reconstruct",
    "numpy.core.multiarray.scalar",
    "numpy.core.numeric._frombuffer",
    "numpy.dtype",
    "numpy.ndarray",
    "torch.Size",
    "torch.Tensor",
    "torch._tensor._rebuild_from_type_v2",
    "torch._utils._rebuild_device_tensor_from_cpu_tensor",
    "torch._utils._rebuild_device_tensor_from_numpy",
    "torch._utils._rebuild_meta_tensor_no_storage",
    "torch._utils._rebuild_nested_tensor",
    "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_parameter_with_state",
    "torch._utils._rebuild_qtensor",
    "torch._utils._rebuild_sparse_tensor",
    "torch._utils._rebuild_tensor",
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_tensor_v3",
    "torch.device",
    "torch.nn.parameter.Buffer",
    "torch.nn.parameter.Parameter",
    "torch.serialization._get_layout",
];

/// Element types that only PyTorch has.
const OTHER_DTYPES: &[&str] = &["qint8", "quint8", "qint32", "quint4x2", "quint2x4", "complex32"];

/// Classes of plain values, among them those by which PyTorch's distributed checkpoints describe themselves.
const INERT: &[&str] = &[
    "__builtin__.bool",
    "__builtin__.dict",
    "__builtin__.float",
    "__builtin__.int",
    "__builtin__.list",
    "__builtin__.long",
    "__builtin__.object",
    "__builtin__.slice",
    "__builtin__.str",
    "__builtin__.tuple",
    "__builtin__.unicode",
    "__builtin__.xrange",
    "builtins.bool",
    "builtins.dict",
    "builtins.float",
    "builtins.int",
    "builtins.list",
    "builtins.object",
    "builtins.range",
    "builtins.slice",
    "builtins.str",
    "builtins.tuple",
    "collections.deque",
    "datetime.date",
    "datetime.datetime",
    "datetime.time",
    "datetime.timedelta",
    "datetime.timezone",
    "decimal.Decimal",
    "fractions.Fraction",
    "numpy.bool",
    "numpy.bool_",
    "numpy.dtypes.BoolDType",
    "numpy.dtypes.Float16DType",
    "numpy.dtypes.Float32DType",
    "numpy.dtypes.Float64DType",
    "numpy.dtypes.Int32DType",
    "numpy.dtypes.Int64DType",
    "numpy.float16",
    "numpy.float32",
    "numpy.float64",
    "numpy.int16",
    "numpy.int32",
    "numpy.int64",
    "numpy.int8",
    "numpy.uint16",
    "numpy.uint32",
    "numpy.uint64",
    "numpy.uint8",
    "omegaconf.base.ContainerMetadata",
    "omegaconf.base.Metadata",
    "omegaconf.dictconfig.DictConfig",
    "omegaconf.listconfig.ListConfig",
    "omegaconf.nodes.AnyNode",
    "pathlib.Path",
    "pathlib.PosixPath",
    "pathlib.PurePath",
    "pathlib.PurePosixPath",
    "pathlib.PureWindowsPath",
    "pathlib.WindowsPath",
    "pathlib._local.Path",
    "pathlib._local.PosixPath",
    "pathlib._local.PurePath",
    "pathlib._local.PurePosixPath",
    "pathlib._local.PureWindowsPath",
    "pathlib._local.WindowsPath",
    "torch.distributed._shard.metadata.ShardMetadata",
    "torch.distributed._shard.sharded_tensor.metadata.MEM_FORMAT_ENCODING",
    "torch.distributed._shard.sharded_tensor.metadata.ShardedTensorMetadata",
    "torch.distributed._shard.sharded_tensor.metadata.TensorProperties",
    "torch.distributed.checkpoint.filesystem._StorageInfo",
    "torch.distributed.checkpoint.metadata.BytesStorageMetadata",
    "torch.distributed.checkpoint.metadata.ChunkStorageMetadata",
    "torch.distributed.checkpoint.metadata.Metadata",
    "torch.distributed.checkpoint.metadata.MetadataIndex",
    "torch.distributed.checkpoint.metadata.StorageMeta",
    "torch.distributed.checkpoint.metadata.TensorProperties",
    "torch.distributed.checkpoint.metadata.TensorStorageMetadata",
    "torch.distributed.checkpoint.metadata._MEM_FORMAT_ENCODING",
    "torch.torch_version.TorchVersion",
    "types.SimpleNamespace",
    "typing.Any",
    "uuid.SafeUUID",
    "uuid.UUID",
];

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
