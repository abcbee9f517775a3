//! Files that lie. Each is small; some would take a terabyte, or run a program, if they were believed.

use std::io::{Cursor, Write};

use serde_json::{Value, json};
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

/// A file, and whether there is something to read in it after all.
#[allow(dead_code)] // Of the two programs that have this module one does not look at all of it.
pub(crate) struct Input {
    pub(crate) format: &'static str,
    pub(crate) name: String,
    pub(crate) bytes: Vec<u8>,
    pub(crate) sound: bool,
}

fn input(format: &'static str, name: impl Into<String>, bytes: Vec<u8>) -> Input {
    Input { format, name: name.into(), bytes, sound: false }
}

/// All of them.
pub(crate) fn all() -> Vec<Input> {
    let mut all = vec![input("any", "an empty file", vec![]), input("any", "one byte", vec![b'{'])];
    // The name of the file is that of the test's.
    all.push(input("any", "an index that names itself", br#"{"weight_map":{"t":"file"}}"#.to_vec()));
    let twice = br#"{"weight_map":{"t":"a.safetensors","t":"b.safetensors"}}"#;
    all.push(input("any", "an index that names a tensor twice", twice.to_vec()));
    all.extend(safetensors());
    all.extend(pickles());
    all.extend(tensors());
    all.extend(archives());
    all.extend(arrays());
    all.extend(gguf());
    all.extend(onnx());
    all
}

/// A number of a protocol buffer.
fn varint(mut value: u64) -> Vec<u8> {
    let mut bytes = vec![];
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
    bytes
}

/// A field that is a number.
fn number(field: u64, value: u64) -> Vec<u8> {
    [varint(field << 3), varint(value)].concat()
}

/// A field that is a piece.
fn piece(field: u64, bytes: &[u8]) -> Vec<u8> {
    [varint(field << 3 | 2), varint(bytes.len() as u64), bytes.to_vec()].concat()
}

/// A model around a graph.
fn onnx_model(graph: &[u8]) -> Vec<u8> {
    [number(1, 8), piece(2, b"test"), piece(8, &number(2, 17)), piece(7, graph)].concat()
}

fn onnx() -> Vec<Input> {
    let tensor = |name: &[u8], dims: &[u64], kind: u64, values: &[u8]| {
        let dims = dims.iter().flat_map(|d| number(1, *d));
        [dims.collect(), number(2, kind), piece(8, name), piece(9, values)].concat()
    };
    let one = |tensor: &[u8]| onnx_model(&piece(5, tensor));
    let external = |entries: &[(&str, &str)]| {
        let entries =
            entries.iter().flat_map(|(k, v)| piece(13, &[piece(1, k.as_bytes()), piece(2, v.as_bytes())].concat()));
        one(&[number(1, 2), number(2, 1), piece(8, b"a"), entries.collect(), number(14, 1)].concat())
    };
    let good = tensor(b"a", &[2], 1, &[0; 8]);
    let nested = (0..100_000).fold(vec![], |inner, _| if inner.len() < 1 << 16 { piece(6, &inner) } else { inner });
    let sound = [
        ("one tensor", one(&good)),
        ("a type that is not known", one(&tensor(b"a", &[2], 99, &[0; 8]))),
        ("graphs within graphs", onnx_model(&[piece(5, &good), piece(1, &piece(5, &nested))].concat())),
        ("a hundred thousand empty nodes", onnx_model(&piece(1, b"").repeat(100_000))),
    ];
    let cases = [
        ("no graph", [number(1, 8), piece(2, b"test"), piece(8, &number(2, 17))].concat()),
        ("two graphs", [onnx_model(b""), piece(7, b"")].concat()),
        ("no version of the operators", [number(1, 8), piece(7, &piece(5, &good))].concat()),
        ("a piece of 2^63 bytes", [number(1, 8), vec![0x12], varint(1 << 63)].concat()),
        ("a graph of 2^64-1 bytes", [number(1, 8), vec![0x3a], varint(u64::MAX)].concat()),
        ("a number that never ends", [number(1, 8), vec![0x3a], vec![0xff; 64]].concat()),
        ("a group", [number(1, 8), piece(2, b"test"), vec![0x0b], piece(7, b"")].concat()),
        ("a field of type 7", [number(1, 8), piece(2, b"test"), vec![0x0f]].concat()),
        ("dimensions of 2^62", one(&tensor(b"a", &[1 << 62], 1, &[0; 8]))),
        ("dimensions whose product wraps", one(&tensor(b"a", &[1 << 32, 1 << 32], 1, b""))),
        ("a dimension of -1", one(&tensor(b"a", &[u64::MAX], 1, &[0; 4]))),
        ("a hundred dimensions", one(&tensor(b"a", &[1; 100], 1, &[0; 4]))),
        ("fewer values than its shape", one(&tensor(b"a", &[4], 1, &[0; 8]))),
        ("more values than its shape", one(&tensor(b"a", &[1], 1, &[0; 8]))),
        ("no values", one(&[number(1, 2), number(2, 1), piece(8, b"a")].concat())),
        ("values in two pieces", one(&[good.clone(), piece(9, &[0; 8])].concat())),
        ("no name", one(&tensor(b"", &[2], 1, &[0; 8]))),
        ("a name that is no UTF-8", one(&tensor(&[0xff, 0xfe], &[2], 1, &[0; 8]))),
        ("a name of 5,000 bytes", one(&tensor(&[b'a'; 5000], &[2], 1, &[0; 8]))),
        ("two tensors of one name", onnx_model(&piece(5, &good).repeat(2))),
        ("values in another folder", external(&[("location", "../a.bin")])),
        ("values at an absolute path", external(&[("location", "/etc/passwd")])),
        ("values in no file", external(&[("location", "")])),
        ("values in a file that is not there", external(&[("location", "none.bin")])),
        ("values beyond the end of their file", external(&[("location", "file"), ("offset", "18446744073709551615")])),
        ("a hundred thousand empty inputs", onnx_model(&piece(11, b"").repeat(100_000))),
        ("values at a place that is no number", external(&[("location", "file"), ("offset", "-1")])),
    ];
    let cases = cases.into_iter().map(|(name, bytes)| input("onnx", name, bytes));
    let sound = sound.into_iter().map(|(name, bytes)| Input { sound: true, ..input("onnx", name, bytes) });
    cases.chain(sound).collect()
}

fn st(header: impl AsRef<[u8]>, data: usize) -> Vec<u8> {
    let header = header.as_ref();
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header);
    bytes.resize(bytes.len() + data, 1);
    bytes
}

fn entry(dtype: &str, shape: Value, from: u64, to: u64) -> Value {
    json!({ "dtype": dtype, "shape": shape, "data_offsets": [from, to] })
}

fn safetensors() -> Vec<Input> {
    let one = |shape: Value, bytes: u64| json!({ "a": entry("F32", shape, 0, bytes) }).to_string();
    let two = |a: [u64; 2], b: [u64; 2]| {
        json!({ "a": entry("U8", json!([a[1].wrapping_sub(a[0])]), a[0], a[1]), "b": entry("U8", json!([b[1].wrapping_sub(b[0])]), b[0], b[1]) })
            .to_string()
    };
    let mut cases: Vec<(String, Vec<u8>)> = vec![];
    for n in [1u64 << 31, u64::from(u32::MAX), 100_000_001, 1 << 63, u64::MAX] {
        let mut bytes = n.to_le_bytes().to_vec();
        bytes.extend(b"{\"a\":1}");
        cases.push((format!("a header of {n} bytes"), bytes));
    }
    let text: Vec<(&str, String, usize)> = vec![
        ("a header of 0 bytes", String::new(), 8),
        ("a header that is a list", "[1]".into(), 0),
        ("a header that is no JSON", "{\"a\":".into(), 0),
        ("100,000 open brackets", format!("{{\"a\":{}", "[".repeat(100_000)), 0),
        ("a shape [2^32, 2^32]", one(json!([1u64 << 32, 1u64 << 32]), 4), 4),
        ("a shape [2^62, 4]", one(json!([1u64 << 62, 4]), 4), 4),
        ("a shape whose product wraps to 4", one(json!([4194305, 4194305, 211106198978564u64]), 16), 16),
        ("a shape [-1]", one(json!([-1]), 4), 4),
        ("a shape [1.0]", one(json!([1.0]), 4), 4),
        ("a shape [1e999]", "{\"a\":{\"dtype\":\"F32\",\"shape\":[1e999],\"data_offsets\":[0,4]}}".into(), 4),
        ("bytes that do not fit the shape", one(json!([3]), 8), 8),
        ("tensors that overlap", two([0, 8], [4, 12]), 12),
        ("tensors with a hole between them", two([0, 4], [8, 12]), 12),
        ("offsets that run backwards", json!({ "a": entry("U8", json!([4]), 4, 0) }).to_string(), 4),
        ("offsets beyond the end", two([0, 4], [4, 1 << 40]), 8),
        ("offsets of 2^64-1", two([0, u64::MAX], [u64::MAX, u64::MAX]), 8),
        ("a tail that no tensor has", one(json!([1]), 4), 100),
        ("two tensors of one name, one place", "{\"a\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]},\"a\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}}".into(), 0),
        ("two tensors of one name, two places", "{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]},\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[1,2]}}".into(), 2),
        ("an unknown dtype", json!({ "a": entry("F7", json!([1]), 0, 1) }).to_string(), 1),
        ("three elements of four bits", json!({ "a": entry("F4", json!([3]), 0, 1) }).to_string(), 1),
        ("metadata that are no texts", json!({ "__metadata__": { "a": 1 } }).to_string(), 0),
        ("a lone surrogate in a name", "{\"\\ud800\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}}".into(), 0),
    ];
    cases.extend(text.into_iter().map(|(name, header, data)| (name.to_string(), st(header, data))));
    cases.push(("a header that is no UTF-8".into(), st([b'{', 0xff, b'}'], 0)));
    cases.push(("a byte order mark".into(), st([&[0xef, 0xbb, 0xbf][..], b"{}"].concat(), 0)));
    cases.push(("junk before the header".into(), [&b"junk"[..], &st(one(json!([1]), 4), 4)].concat()));
    let mut all: Vec<Input> = cases.into_iter().map(|(name, bytes)| input("safetensors", name, bytes)).collect();
    let many: serde_json::Map<String, Value> =
        (0..100_000).map(|i| (format!("t{i}"), entry("U8", json!([0]), 0, 0))).collect();
    all.push(Input {
        sound: true,
        ..input("safetensors", "100,000 empty tensors", st(Value::Object(many).to_string(), 0))
    });
    all
}

/// A `torch.save` archive with this pickle and these storages.
fn pt(pickle: &[u8], storages: &[(&str, usize)], extra: &[(&str, &[u8])]) -> Vec<u8> {
    let mut zip = ZipWriter::new(Cursor::new(vec![]));
    let stored = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
    let mut put = |name: String, bytes: &[u8]| {
        zip.start_file(name, stored).expect("in memory");
        zip.write_all(bytes).expect("in memory");
    };
    put("archive/data.pkl".into(), pickle);
    storages.iter().for_each(|(key, n)| put(format!("archive/data/{key}"), &vec![0; *n]));
    extra.iter().for_each(|(name, bytes)| put((*name).into(), bytes));
    zip.finish().expect("in memory").into_inner()
}

fn pickles() -> Vec<Input> {
    // Whoever runs one of these leaves this file behind.
    let touch = "touch /tmp/zoo-was-here";
    let call = |module: &str, name: &str| format!("c{module}\n{name}\n(S'{touch}'\ntR.").into_bytes();
    let mut cases: Vec<(String, Vec<u8>)> = [
        ("os", "system"),
        ("posix", "system"),
        ("nt", "system"),
        ("builtins", "eval"),
        ("builtins", "exec"),
        ("builtins", "getattr"),
        ("builtins", "__import__"),
        ("runpy", "_run_code"),
        ("subprocess", "Popen"),
        ("torch.serialization", "load"),
        ("torch.storage", "_load_from_bytes"),
        ("numpy", "load"),
        ("copyreg", "_reconstructor"),
        ("operator", "attrgetter"),
    ]
    .iter()
    .map(|(m, n)| (format!("a call of {m}.{n}"), call(m, n)))
    .collect();
    let text = |t: &str| [&[0x8c, t.len() as u8][..], t.as_bytes()].concat();
    let stack_global = [&[0x80, 4][..], &text("os"), &text("system"), &[0x93], b"(", &text(touch), b"tR."].concat();
    let raw: Vec<(&str, Vec<u8>)> = vec![
        ("a call by STACK_GLOBAL", stack_global),
        (
            "a call within a dictionary",
            [&b"}S'a'\n"[..], &call("os", "system")[..call("os", "system").len() - 1], b"s."].concat(),
        ),
        ("an object by INST", format!("(S'{touch}'\nios\nsystem\n.").into_bytes()),
        ("an object by OBJ", format!("(cos\nsystem\nS'{touch}'\no.").into_bytes()),
        (
            "an object by NEWOBJ",
            format!("cos\nsystem\n(S'{touch}'\nt\u{0}")
                .into_bytes()
                .into_iter()
                .map(|b| if b == 0 { 0x81 } else { b })
                .chain(*b".")
                .collect(),
        ),
        ("a state for a class", b"cos\nsystem\n}b.".to_vec()),
        ("an extension code", vec![0x82, 1, b'.']),
        ("a persistent id of a text", b"Psomething\n.".to_vec()),
        ("a persistent id that is no storage", b"(S'module'\ncevil\nClass\nNNtQ.".to_vec()),
        ("a pickled whole model", b"(S'module'\ncevil\nModel\nS'a'\nS'b'\ntQ.".to_vec()),
        ("a memo bomb of 2^40 values", [&b"Nq\x00"[..], &b"h\x00h\x00\x86q\x00".repeat(40), b"."].concat()),
        (
            "a dictionary bomb of 2^40 entries",
            [&b"}q\x00S'a'\nNs0"[..], &b"}(S'a'\nh\x00S'b'\nh\x00uq\x000".repeat(40), b"h\x00."].concat(),
        ),
        ("a tuple 1,000,000 deep", [&b"N"[..], &vec![0x85; 1_000_000], b"."].concat()),
        ("a list that holds itself", b"]q\x00h\x00a.".to_vec()),
        ("a long integer of negative length", vec![0x8b, 0xff, 0xff, 0xff, 0xff, b'.']),
        ("a text of 4 GB", vec![b'X', 0xff, 0xff, 0xff, 0xff, b'a', b'.']),
        ("bytes of 2^63", [&[0x8e][..], &(1u64 << 63).to_le_bytes(), b"."].concat()),
        ("a line without end", [&b"c"[..], &vec![b'a'; 100_000]].concat()),
        ("a value from an empty stack", b"0.".to_vec()),
        ("a mark that is not there", b"Nt.".to_vec()),
        ("a memo that is not there", b"h\x07.".to_vec()),
        ("no STOP", b"N".to_vec()),
        ("bytes after STOP", b"}.cos\nsystem\n".to_vec()),
        ("two values at STOP", b"NN.".to_vec()),
        ("an unknown opcode", vec![0xff, b'.']),
        ("protocol 9", vec![0x80, 9, b'N', b'.']),
        ("a key without a value", b"}(S'a'\nu.".to_vec()),
        ("an append to a dictionary", b"}Na.".to_vec()),
        ("an empty pickle", vec![]),
        ("a text that is no UTF-8", b"}X\x02\x00\x00\x00\xc3\x28Ns.".to_vec()),
        ("half a character by an escape", b"}V\\ud800\nNs.".to_vec()),
        ("a frame longer than the pickle", [&b"\x80\x04\x95"[..], &99u64.to_le_bytes(), b"}."].concat()),
        ("a name of two classes that would be run", b"cos\nsystem\n(S'a'\ntRcposix\nsystem\n(S'a'\ntR.".to_vec()),
    ];
    cases.extend(raw.into_iter().map(|(n, b)| (n.to_string(), b)));
    let mut all: Vec<Input> =
        cases.into_iter().map(|(name, pickle)| input("pytorch", name, pt(&pickle, &[], &[]))).collect();
    all.push(Input {
        sound: true,
        ..input(
            "pytorch",
            "an integer of 255 bytes",
            pt(&[&b"}S'a'\n\x8a\xff"[..], &[0xfe; 255], b"s."].concat(), &[], &[]),
        )
    });
    let packed = |pickle: &[u8]| {
        let mut zip = ZipWriter::new(Cursor::new(vec![]));
        let deflated = SimpleFileOptions::default().compression_method(CompressionMethod::Deflated);
        zip.start_file("archive/data.pkl", deflated).expect("in memory");
        zip.write_all(pickle).expect("in memory");
        zip.finish().expect("in memory").into_inner()
    };
    let values = [&b"F1\n0".repeat(20_000_000)[..], b"}."].concat();
    all.push(input("pytorch", "20,000,000 values, deflated", packed(&values)));
    let names =
        [&b"X\x00\x00\x10\x00"[..], &[b'a'; 1 << 20], b"q\x000", &b"h\x00h\x00\x930".repeat(20_000), b"}."].concat();
    all.push(input("pytorch", "20,000 names of 2 MB, deflated", packed(&names)));
    let key =
        |times: usize| [&b"}X\x00\x00\x10\x00"[..], &[b'k'; 1 << 20], b"q\x010(", &b"h\x01".repeat(times)].concat();
    for (name, pickle) in [
        ("60,000,000 marks, deflated", [&b"("[..], &vec![b'('; 60 << 20], b"."].concat()),
        ("60,000,000 memories of one value, deflated", [&b"N"[..], &vec![0x94; 60 << 20], b"."].concat()),
        ("a key of 20,000 times 1 MB, deflated", [&key(20_000)[..], b"tNs."].concat()),
        (
            "a key of 1 MB a million times, deflated",
            [&b"}X\x00\x00\x10\x00"[..], &[b'k'; 1 << 20], b"q\x010(", &b"h\x01N".repeat(1_000_000), b"u."].concat(),
        ),
        (
            "an integer of 60 MB, deflated",
            [&b"\x8b"[..], &(60i32 << 20).to_le_bytes(), &vec![1; 60 << 20], b"."].concat(),
        ),
    ] {
        all.push(input("pytorch", name, packed(&pickle)));
    }
    // The first pickles of an old file: its magic number, and a protocol that never was.
    let magic =
        b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.\x80\x02M\xea\x03.\x80\x02}.\x80\x02}.\x80\x02].";
    all.push(input("pytorch", "an old file of protocol 1002", magic.to_vec()));
    all.push(input("pytorch", "a key 1 and a key '1'", pt(b"}I1\nNsS'1'\nNs.", &[], &[])));
    let inert = b"(dp0\nS'__setstate__'\ncos\nsystem\nsNb.";
    all.push(Input { sound: true, ..input("pytorch", "a class where __setstate__ would be", pt(inert, &[], &[])) });
    all.push(Input {
        sound: true,
        ..input("pytorch", "a class that is only named", pt(b"}S'a'\ncos\nsystem\ns.", &[], &[]))
    });
    all
}

/// A dictionary with one tensor, described by the arguments of `_rebuild_tensor_v2` as text opcodes.
fn one(arguments: &str) -> Vec<u8> {
    format!("}}S'a'\nctorch._utils\n_rebuild_tensor_v2\n({arguments}tRs.").into_bytes()
}

fn tensors() -> Vec<Input> {
    let storage = |n: i64| format!("(S'storage'\nctorch\nFloatStorage\nS'0'\nS'cpu'\nI{n}\ntQ");
    let tensor = |n: i64, offset: i64, size: &[i64], stride: &[i64]| {
        let list = |v: &[i64]| format!("({}t", v.iter().map(|i| format!("I{i}\n")).collect::<String>());
        one(&format!("{}I{offset}\n{}{}I00\nN", storage(n), list(size), list(stride)))
    };
    let mut cases = vec![
        ("no arguments", one("")),
        ("a tensor without its sizes", one(&storage(4))),
        ("a tensor without its last arguments", one(&format!("{}I0\n(I4\nt(I1\nt", storage(4)))),
        ("a negative size", tensor(4, 0, &[-4], &[1])),
        ("a negative stride", tensor(4, 3, &[4], &[-1])),
        ("a negative offset", tensor(4, -1, &[4], &[1])),
        ("an offset beyond the storage", tensor(4, 4, &[1], &[1])),
        ("an offset of 2^62", tensor(4, 1 << 62, &[1], &[1])),
        ("strides beyond the storage", tensor(4, 0, &[2, 2], &[4, 1])),
        ("sizes and strides of different lengths", tensor(4, 0, &[2, 2], &[1])),
        ("sizes whose product wraps to 4", tensor(4, 0, &[4194305, 4194305, 211106198978564], &[0, 0, 0])),
        ("one element expanded to 2^40", tensor(4, 0, &[1 << 40], &[0])),
        ("a value that is to be conjugated", {
            let mut p = String::from_utf8(tensor(4, 0, &[4], &[1])).expect("text");
            p = p.replace("I00\nNtR", "I00\nN}S'conj'\nI01\nstR");
            p.into_bytes()
        }),
        ("a storage said to be larger than it is", tensor(400, 0, &[400], &[1])),
        ("a storage said to be smaller than it is", tensor(2, 0, &[2], &[1])),
        ("a storage of 2^62 elements", tensor(1 << 62, 0, &[1 << 62], &[1])),
        ("65 dimensions", tensor(4, 0, &[1; 65], &[1; 65])),
        ("an item put into a tensor", {
            let mut p = tensor(4, 0, &[4], &[1]);
            p.truncate(p.len() - 2);
            p.extend(b"S'k'\nNss.");
            p
        }),
        ("a state for a tensor", {
            let mut p = tensor(4, 0, &[4], &[1]);
            p.truncate(p.len() - 2);
            p.extend(b"}bs.");
            p
        }),
    ];
    cases.push((
        "a storage that is missing",
        String::from_utf8(tensor(4, 0, &[4], &[1])).expect("text").replace("S'0'", "S'9'").into_bytes(),
    ));
    let mut all: Vec<Input> =
        cases.into_iter().map(|(name, pickle)| input("pytorch", name, pt(&pickle, &[("0", 16)], &[]))).collect();
    all.push(input(
        "pytorch",
        "big-endian values",
        pt(&tensor(4, 0, &[4], &[1]), &[("0", 16)], &[("archive/byteorder", b"big")]),
    ));
    all.push(input(
        "pytorch",
        "two data.pkl",
        pt(&tensor(4, 0, &[4], &[1]), &[("0", 16)], &[("other/data.pkl", b"N.")]),
    ));
    all.push(Input {
        sound: true,
        ..input("pytorch", "strides that overlap", pt(&tensor(4, 0, &[3, 2], &[1, 1]), &[("0", 16)], &[]))
    });
    all.push(input(
        "pytorch",
        "names that lead out of a folder",
        pt(&tensor(4, 0, &[4], &[1]), &[("0", 16)], &[("../../etc/x", b"x"), ("a\\b", b"x")]),
    ));
    all
}

/// Where `needle` is.
fn find(bytes: &[u8], needle: &[u8]) -> usize {
    bytes.windows(needle.len()).position(|w| w == needle).expect("it is there")
}

/// A record of an archive, as bytes.
#[derive(Clone, Default)]
struct Raw {
    name: Vec<u8>,
    data: Vec<u8>,
    local_extra: Vec<u8>,
    central_extra: Vec<u8>,
    attributes: u32,
    /// Whether its sizes follow its data, in 64 bits.
    follow: bool,
}

/// An archive of stored records.
fn raw(records: &[Raw]) -> Vec<u8> {
    let (mut bytes, mut directory) = (vec![], vec![]);
    for r in records {
        let (at, crc, size) = (bytes.len() as u32, crc32fast::hash(&r.data), r.data.len() as u32);
        let flags = if r.follow { 8u16 } else { 0 };
        let known = if r.follow { [0; 3] } else { [crc, size, size] };
        let head = |numbers: [u32; 3], extra: &[u8]| {
            let mut head = [&20u16.to_le_bytes()[..], &flags.to_le_bytes(), &[0; 6]].concat();
            numbers.iter().for_each(|n| head.extend(n.to_le_bytes()));
            head.extend((r.name.len() as u16).to_le_bytes());
            head.extend((extra.len() as u16).to_le_bytes());
            head
        };
        bytes.extend([&b"PK\x03\x04"[..], &head(known, &r.local_extra), &r.name, &r.local_extra, &r.data].concat());
        if r.follow {
            bytes.extend([&b"PK\x07\x08"[..], &crc.to_le_bytes()].concat());
            [size, 0, size, 0].iter().for_each(|n| bytes.extend(n.to_le_bytes()));
        }
        directory.extend([&b"PK\x01\x02"[..], &[20, 0], &head([crc, size, size], &r.central_extra), &[0; 6]].concat());
        directory.extend([&r.attributes.to_le_bytes()[..], &at.to_le_bytes(), &r.name, &r.central_extra].concat());
    }
    let (at, n) = (bytes.len() as u32, records.len() as u16);
    let end = [&b"PK\x05\x06\0\0\0\0"[..], &n.to_le_bytes(), &n.to_le_bytes(), &(directory.len() as u32).to_le_bytes()];
    [&bytes[..], &directory, &end.concat(), &at.to_le_bytes(), &[0; 2]].concat()
}

/// Archives that some readers take for others.
fn ambiguous() -> Vec<Input> {
    let array = |name: &[u8]| Raw {
        name: name.to_vec(),
        data: npy("{'descr': '<f4', 'fortran_order': False, 'shape': (4,), }", 16),
        ..Raw::default()
    };
    let pickle = |name: &str, data: &[u8]| Raw { name: name.into(), data: data.to_vec(), ..Raw::default() };
    let unicode_path = [&[0x75, 0x70, 10, 0, 1][..], &crc32fast::hash(b"x.npy").to_le_bytes(), b"w.npy"].concat();
    // What PyTorch writes of a record of 4 GB and more: sizes that follow, and room for them that stays zero.
    let room = [&[1, 0, 16, 0][..], &[0; 16]].concat();
    let mut all: Vec<Input> = [
        ("a second name by a field", vec![Raw { central_extra: unicode_path, ..array(b"x.npy") }, array(b"w.npy")]),
        ("a name that some end at a zero", vec![array(b"w.npy"), array(b"w.npy\0x.npy")]),
        ("a file that some take for a folder", vec![Raw { attributes: 0x10, ..array(b"w.npy") }]),
        ("a folder that holds bytes", vec![array(b"w.npy"), Raw { name: b"x/".to_vec(), ..array(b"") }]),
        ("an array with its ending twice", vec![array(b"w.npy"), array(b"w.npy.npy")]),
    ]
    .into_iter()
    .map(|(name, records)| input("npz", name, raw(&records)))
    .collect();
    let cases = [
        ("two pickles but for the case of letters", vec![pickle("a/data.pkl", b"}."), pickle("a/DATA.PKL", b"}.")]),
        ("a pickle in another folder than the first", vec![pickle("x/version", b"3"), pickle("a/data.pkl", b"}.")]),
        (
            "keys that read alike",
            vec![pickle("a/data.pkl", b"}cdatetime\ndate\n(K\x01tRNscdatetime\ndate\n(K\x02tRNs.")],
        ),
        ("a key 1 and a key True", vec![pickle("a/data.pkl", b"}K\x01Ns\x88Ns.")]),
        ("a number that some take for another", vec![pickle("a/data.pkl", b"}S'a'\nI010\ns.")]),
    ];
    all.extend(cases.into_iter().map(|(name, records)| input("pytorch", name, raw(&records))));
    let large = Raw { follow: true, local_extra: room, ..array(b"w.npy") };
    all.push(Input { sound: true, ..input("npz", "sizes that follow, as PyTorch has them", raw(&[large])) });
    all
}

fn archives() -> Vec<Input> {
    let npy = npy("{'descr': '<f4', 'fortran_order': False, 'shape': (4,), }", 16);
    let zip = |method, names: &[&str]| {
        let mut zip = ZipWriter::new(Cursor::new(vec![]));
        for name in names {
            zip.start_file(*name, SimpleFileOptions::default().compression_method(method)).expect("in memory");
            zip.write_all(&npy).expect("in memory");
        }
        zip.finish().expect("in memory").into_inner()
    };
    let (stored, deflated) = (zip(CompressionMethod::Stored, &["a.npy"]), zip(CompressionMethod::Deflated, &["a.npy"]));
    // Local header: flags at 6, CRC at 14, sizes at 18 and 22; central: flags at 8, CRC at 16, sizes at 20 and 24.
    let central = find(&stored, b"PK\x01\x02");
    let patched = |of: &[u8], patches: &[(usize, &[u8])]| {
        let mut bytes = of.to_vec();
        patches.iter().for_each(|(at, with)| bytes[*at..at + with.len()].copy_from_slice(with));
        bytes
    };
    let end = find(&stored, b"PK\x05\x06");
    let packed = find(&deflated, b"PK\x01\x02");
    let mut two = zip(CompressionMethod::Stored, &["a.npy", "b.npy"]);
    let (first, second) = (find(&two, b"PK\x01\x02"), find(&two, b"PK\x01\x02") + 46 + 5);
    let at: [u8; 4] = two[first + 42..first + 46].try_into().expect("four");
    two[second + 42..second + 46].copy_from_slice(&at);
    let mut twice = zip(CompressionMethod::Stored, &["a.npy", "b.npy"]);
    let name = find(&twice[first..], b"b.npy") + first;
    twice[name] = b'a';
    let cases = vec![
        ("a wrong checksum", patched(&stored, &[(central + 16, &[1, 2, 3, 4]), (14, &[1, 2, 3, 4])])),
        ("a flag that says encrypted", patched(&stored, &[(6, &[1]), (central + 8, &[1])])),
        ("an unknown compression", patched(&stored, &[(8, &[99]), (central + 10, &[99])])),
        ("2^16 records", patched(&stored, &[(end + 8, &[0xff, 0xff, 0xff, 0xff])])),
        ("a directory of 4 GB", patched(&stored, &[(end + 12, &[0xff; 4])])),
        ("a directory beyond the end", patched(&stored, &[(end + 16, &[0xf0; 4])])),
        ("a stored record larger than its data", patched(&stored, &[(central + 24, &[0, 0, 0, 0x70])])),
        ("a deflated record of 1.9 GB", patched(&deflated, &[(packed + 24, &[0, 0, 0, 0x70])])),
        ("a record beyond the end", patched(&stored, &[(central + 42, &[0, 0, 0, 0x70])])),
        ("two records in one place", two),
        ("two records of one name", twice),
        ("an archive of something else", zip(CompressionMethod::Stored, &["a.npy", "evil.so"])),
        ("bytes of a deflated record changed", {
            let at = 30 + 5;
            patched(&deflated, &[(at, &[0xff, 0xff, 0xff, 0xff])])
        }),
        ("the end of an archive, its records gone", stored[end..].to_vec()),
        // Readers differ in where they look for the end: each of these would be another file to some.
        ("two archives, one behind the other", [&stored[..], &deflated].concat()),
        ("an archive as the comment of another", {
            let mut bytes = [&stored[..], &deflated].concat();
            bytes[end + 20..end + 22].copy_from_slice(&(deflated.len() as u16).to_le_bytes());
            bytes
        }),
        ("bytes before the archive", [&b"MZ"[..], &stored].concat()),
        ("bytes behind the archive", [&stored[..], &[0; 4]].concat()),
        ("bytes between a record and the directory", [&stored[..central], &[0; 7], &stored[central..]].concat()),
        ("a record that calls itself otherwise", patched(&stored, &[(30, b"b")])),
        ("a record that has another size in the directory", patched(&stored, &[(18, &[1]), (22, &[1])])),
        ("a directory of one record more", patched(&stored, &[(end + 8, &[2, 0, 2, 0])])),
        ("a second part", patched(&stored, &[(end + 4, &[1])])),
    ];
    let mut all: Vec<Input> = cases.into_iter().map(|(name, bytes)| input("npz", name, bytes)).collect();
    all.extend(ambiguous());
    all
}

fn npy(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((header.len() as u16 + 1).to_le_bytes());
    bytes.extend(header.bytes());
    bytes.push(b'\n');
    bytes.resize(bytes.len() + data, 0);
    bytes
}

fn arrays() -> Vec<Input> {
    let of = |descr: &str, shape: &str| format!("{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}");
    let long = format!("({})", "1, ".repeat(65));
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("Python objects", npy(&of("'|O'", "(1,)"), 8)),
        ("records", npy(&of("[('a', '<f4')]", "(1,)"), 4)),
        ("dates", npy(&of("'<M8[ns]'", "(1,)"), 8)),
        ("a shape (-1,)", npy(&of("'<f4'", "(-1,)"), 4)),
        ("a shape (1e3,)", npy(&of("'<f4'", "(1e3,)"), 4)),
        ("a shape (0x10,)", npy(&of("'<f4'", "(0x10,)"), 64)),
        ("a shape (2^62, 4)", npy(&of("'<f4'", "(4611686018427387904, 4)"), 4)),
        ("a shape whose product wraps to 4", npy(&of("'<f4'", "(4194305, 4194305, 211106198978564)"), 16)),
        ("65 dimensions", npy(&of("'<f4'", &long), 4)),
        ("a header that is no dictionary", npy("[1, 2]", 4)),
        ("a header that calls", npy("__import__('os').system('touch /tmp/zoo-was-here')", 4)),
        ("a key twice", npy("{'descr': '<f4', 'descr': '<f8', 'fortran_order': False, 'shape': (1,)}", 8)),
        ("an unknown key", npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1,), 'x': 'y'}", 4)),
        ("fewer bytes than the shape", npy(&of("'<f4'", "(4,)"), 8)),
        ("more bytes than the shape", npy(&of("'<f4'", "(4,)"), 32)),
        ("version 9", {
            let mut bytes = npy(&of("'<f4'", "(1,)"), 4);
            bytes[6] = 9;
            bytes
        }),
        ("a header of 4 GB", [&b"\x93NUMPY\x02\x00"[..], &[0xff; 4], b"{}"].concat()),
        ("only the magic", b"\x93NUMPY".to_vec()),
    ];
    cases.into_iter().map(|(name, bytes)| input("npy", name, bytes)).collect()
}

/// A GGUF file of parts that can be wrong.
struct Gguf {
    magic: Vec<u8>,
    version: u32,
    tensors: u64,
    entries: Vec<Vec<u8>>,
    n_entries: Option<u64>,
    described: Vec<Vec<u8>>,
    alignment: usize,
    data: usize,
}

fn gguf_text(text: &[u8]) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text].concat()
}

fn kv(key: &str, kind: u32, value: &[u8]) -> Vec<u8> {
    [&gguf_text(key.as_bytes())[..], &kind.to_le_bytes(), value].concat()
}

fn described(name: &[u8], dims: &[u64], kind: u32, offset: u64) -> Vec<u8> {
    let mut bytes = gguf_text(name);
    bytes.extend((dims.len() as u32).to_le_bytes());
    dims.iter().for_each(|d| bytes.extend(d.to_le_bytes()));
    bytes.extend(kind.to_le_bytes());
    bytes.extend(offset.to_le_bytes());
    bytes
}

impl Default for Gguf {
    fn default() -> Self {
        let entries = vec![kv("general.architecture", 8, &gguf_text(b"test"))];
        let described = vec![described(b"a", &[8], 0, 0)];
        Self {
            magic: b"GGUF".to_vec(),
            version: 3,
            tensors: 1,
            entries,
            n_entries: None,
            described,
            alignment: 32,
            data: 32,
        }
    }
}

impl Gguf {
    fn bytes(self) -> Vec<u8> {
        let mut bytes = self.magic;
        bytes.extend(self.version.to_le_bytes());
        bytes.extend(self.tensors.to_le_bytes());
        bytes.extend(self.n_entries.unwrap_or(self.entries.len() as u64).to_le_bytes());
        bytes.extend(self.entries.concat());
        bytes.extend(self.described.concat());
        bytes.resize(bytes.len().next_multiple_of(self.alignment), 0);
        bytes.resize(bytes.len() + self.data, 0);
        bytes
    }
}

fn gguf() -> Vec<Input> {
    let with = |change: &dyn Fn(&mut Gguf)| {
        let mut file = Gguf::default();
        change(&mut file);
        file.bytes()
    };
    let entry = |e: Vec<u8>| with(&|g| g.entries.push(e.clone()));
    let tensor = |t: Vec<u8>, data: usize| {
        with(&|g| {
            g.described = vec![t.clone()];
            g.data = data;
        })
    };
    let list = |kind: u32, n: u64, rest: &[u8]| [&kind.to_le_bytes()[..], &n.to_le_bytes(), rest].concat();
    let nested: Vec<u8> = (0..70).flat_map(|_| list(9, 1, &[])).collect();
    let mut cases: Vec<(String, Vec<u8>)> = vec![
        ("another magic".into(), with(&|g| g.magic = b"GGUX".to_vec())),
        ("version 0".into(), with(&|g| g.version = 0)),
        ("version 1".into(), with(&|g| g.version = 1)),
        ("version 4".into(), with(&|g| g.version = 4)),
        ("a big-endian version".into(), with(&|g| g.version = 3u32.swap_bytes())),
        ("2^63 tensors".into(), with(&|g| g.tensors = 1 << 63)),
        ("2^64-1 entries".into(), with(&|g| g.n_entries = Some(u64::MAX))),
        ("an empty key".into(), entry(kv("", 4, &[1, 0, 0, 0]))),
        ("a key twice".into(), entry(kv("general.architecture", 8, &gguf_text(b"again")))),
        ("an unknown kind of entry".into(), entry(kv("x", 13, &[0; 8]))),
        ("a truth value of 2".into(), entry(kv("x", 7, &[2]))),
        ("a text of 2^63 bytes".into(), entry(kv("x", 8, &(1u64 << 63).to_le_bytes()))),
        ("a list of 2^62 values".into(), entry(kv("x", 9, &list(0, 1 << 62, &[])))),
        ("lists 70 deep".into(), entry(kv("x", 9, &[&nested[..], &list(0, 0, &[])].concat()))),
        ("an alignment of another type".into(), entry(kv("general.alignment", 10, &32u64.to_le_bytes()))),
        ("a name of 2^63 bytes".into(), tensor([&(1u64 << 63).to_le_bytes()[..], b"a"].concat(), 32)),
        ("five dimensions".into(), tensor(described(b"a", &[1; 5], 0, 0), 32)),
        ("a dimension of 0".into(), tensor(described(b"a", &[0], 0, 0), 0)),
        ("dimensions whose product wraps".into(), tensor(described(b"a", &[1 << 32, 1 << 32], 0, 0), 32)),
        ("2^62 elements".into(), tensor(described(b"a", &[1 << 62], 0, 0), 32)),
        ("more elements than data".into(), tensor(described(b"a", &[64], 0, 0), 32)),
        ("an unknown type".into(), tensor(described(b"a", &[8], 4, 0), 32)),
        ("a type that was removed".into(), tensor(described(b"a", &[256], 36, 0), 96)),
        ("rows that are no whole blocks".into(), tensor(described(b"a", &[8], 2, 0), 32)),
        ("an offset that is not aligned".into(), tensor(described(b"a", &[8], 0, 4), 64)),
        ("an offset beyond the end".into(), tensor(described(b"a", &[8], 0, 1 << 40), 32)),
        (
            "two tensors of one name".into(),
            with(&|g| {
                g.tensors = 2;
                g.described = vec![described(b"a", &[8], 0, 0), described(b"a", &[8], 0, 32)];
                g.data = 64;
            }),
        ),
        (
            "two tensors in one place".into(),
            with(&|g| {
                g.tensors = 2;
                g.described = vec![described(b"a", &[8], 0, 0), described(b"b", &[8], 0, 0)];
                g.data = 64;
            }),
        ),
        ("a name that is no UTF-8".into(), tensor(described(&[0xff, 0xfe], &[8], 0, 0), 32)),
    ];
    for a in [0u32, 1, 3, 13, 1 << 31] {
        cases.push((format!("an alignment of {a}"), entry(kv("general.alignment", 4, &a.to_le_bytes()))));
    }
    let mut all: Vec<Input> = cases.into_iter().map(|(name, bytes)| input("gguf", name, bytes)).collect();
    let aligned = with(&|g| {
        g.entries.push(kv("general.alignment", 4, &64u32.to_le_bytes()));
        g.alignment = 64;
        g.data = 64;
    });
    all.push(Input { sound: true, ..input("gguf", "an alignment of 64", aligned) });
    all
}
