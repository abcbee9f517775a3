//! Files that PyTorch, NumPy, safetensors and gguf wrote (fixtures/make.py) are read as they meant them, and every
//! format carries every tensor to every other.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::Device;
use zoo_checkpoint::{Dtype, Format, Plan, Rules, Source, TensorView, content_hash, open};

type Outcome = Result<(), Box<dyn std::error::Error>>;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

/// Type, shape and bytes.
type Content = (Dtype, Vec<usize>, Vec<u8>);

fn contents(source: &Source) -> Result<BTreeMap<String, Content>, zoo_checkpoint::Error> {
    let mut all = BTreeMap::new();
    for t in &source.tensors {
        let mut bytes = vec![];
        source.stream(&TensorView::whole(t), t.dtype, &mut |piece| {
            bytes.extend_from_slice(piece);
            Ok(())
        })?;
        all.insert(t.name.clone(), (t.dtype, t.shape.clone(), bytes));
    }
    Ok(all)
}

#[test]
fn pytorch_files_of_every_age_hold_what_pytorch_put_there() -> Outcome {
    let expected = contents(&open(&fixture("expected.safetensors"))?)?;
    for (file, tensors) in [("odd.pt", 27), ("odd-protocol5.pt", 27), ("odd-legacy.pt", 22)] {
        let source = open(&fixture(file))?;
        assert_eq!((source.format, source.tensors.len()), (Format::Torch, tensors), "{file}");
        for (name, found) in contents(&source)? {
            assert_eq!(&found, &expected[&name], "{file}: {name}");
        }
        let tied = source.find("tied.b").and_then(|t| t.tied_to).ok_or("tied.b is tied")?;
        assert_eq!(source.tensors[tied].name, "tied.a");
        assert_eq!(source.tensors.iter().filter(|t| t.tied_to.is_some()).count(), 1);
    }
    assert_eq!(content_hash(&open(&fixture("odd.pt"))?)?, content_hash(&open(&fixture("expected.safetensors"))?)?);
    Ok(())
}

#[test]
fn a_graph_gives_its_tensors_and_says_what_it_computes() -> Outcome {
    let source = open(&fixture("graph.onnx"))?;
    assert_eq!(source.format, Format::Onnx);
    let all = contents(&source)?;
    let bytes = |name: &str| all[name].2.clone();
    let f32s = |values: &[f32]| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
    assert_eq!(bytes("weight"), f32s(&[0.5, -1.5, 2.0, 3.25, -0.0, 1e-3]));
    assert_eq!(bytes("packed"), f32s(&[1., 2.]));
    assert_eq!(bytes("packed_doubles"), [3f64, 4.].iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>());
    let kinds: Vec<_> = all.iter().map(|(name, (dtype, shape, _))| (name.as_str(), *dtype, shape.as_slice())).collect();
    let expected: [(&str, Dtype, &[usize]); 8] = [
        ("empty", Dtype::F32, &[0, 4]),
        ("half", Dtype::F16, &[2]),
        ("integers", Dtype::I64, &[3]),
        ("packed", Dtype::F32, &[2]),
        ("packed_doubles", Dtype::F64, &[2]),
        ("scalar", Dtype::F64, &[]),
        ("truth", Dtype::Bool, &[2]),
        ("weight", Dtype::F32, &[2, 3]),
    ];
    assert_eq!(kinds, expected);
    let said = source.left_out.join("; ");
    for part in ["tensor coded, whose values stand one by one", "tensor texts, whose elements are of type 8"] {
        assert!(said.contains(part), "{said}");
    }
    assert!(source.remarks[0].starts_with("1 constants stand within the nodes"), "{:?}", source.remarks);
    assert_eq!(source.metadata["author"], "somebody");
    let graph = source.graph.ok_or("no graph")?;
    assert_eq!(graph["opsets"], serde_json::json!({ "ai.onnx": 17 }));
    assert_eq!(graph["ops"], serde_json::json!({ "Add": 1, "Constant": 1, "MatMul": 1, "Transpose": 1 }));
    assert_eq!(graph["inputs"][0]["dims"], serde_json::json!(["batch", 3]));
    assert_eq!(graph["outputs"][0]["type"], "F32");
    // With its values in a file beside it.
    let outside = open(&fixture("external.onnx"))?;
    assert_eq!(contents(&outside)?["weight"].2, f32s(&[0.5, -1.5, 2.0, 3.25, -0.0, 1e-3]));
    assert_eq!(outside.tensors.len(), 2);
    // Without that file, and with one that is elsewhere.
    let folder = tempfile::tempdir()?;
    let alone = folder.path().join("external.onnx");
    let whole = std::fs::read(fixture("external.onnx"))?;
    std::fs::write(&alone, &whole)?;
    let error = open(&alone).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("external.bin") && error.contains("tensor weight"), "{error}");
    let (from, to) = (b"external.bin", b"../ternal.bi");
    let at = |bytes: &[u8]| bytes.windows(from.len()).position(|w| w == from);
    let mut moved = whole;
    while let Some(at) = at(&moved) {
        moved[at..at + to.len()].copy_from_slice(to);
    }
    std::fs::write(&alone, &moved)?;
    let error = open(&alone).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("have to be in the folder of the graph"), "{error}");
    // It is another format that tensors alone go into.
    let error = Plan::new(&open(&fixture("external.onnx"))?).write(&folder.path().join("out.onnx"), Format::Onnx, None);
    assert!(error.is_err_and(|e| e.to_string().contains("made of models")));
    Ok(())
}

#[test]
fn a_training_checkpoint_keeps_its_paths_its_entries_and_its_inert_classes() -> Outcome {
    let source = open(&fixture("nested.pt"))?;
    let names: Vec<&str> = source.tensors.iter().map(|t| t.name.as_str()).collect();
    for name in ["model.module._orig_mod.linear.weight", "optimizer.state.0.exp_avg", "array", "fortran"] {
        assert!(names.contains(&name), "{name} in {names:?}");
    }
    let head = source.find("model.module._orig_mod.head.weight").ok_or("the head")?;
    assert_eq!(head.tied_to.map(|i| names[i]), Some("model.module._orig_mod.embedding.weight"));
    let all = contents(&source)?;
    let floats: Vec<f32> = all["array"].2.chunks(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
    assert_eq!(floats, [0., 1., 2., 3., 4., 5.]);
    assert_eq!(all["fortran"].2.iter().step_by(4).copied().collect::<Vec<_>>(), [0, 1, 2, 3, 4, 5]);
    let entry = |key: &str| source.metadata[key].to_string();
    assert_eq!(entry("iter_num"), "7");
    assert_eq!((entry("best"), entry("count"), entry("flag")), ("1.5".into(), "-3".into(), "true".into()));
    assert_eq!(
        entry("config"),
        r#"{"lr":0.001,"name":"tiny","sizes":[1,2],"none":null,"nested":{"deep":[true,"0x400000000000000000"]}}"#
    );
    assert_eq!(
        (entry("arguments"), entry("device"), entry("size")),
        (r#"{"lr":0.5}"#.into(), "\"cpu\"".into(), "[2,3]".into())
    );
    assert_eq!(
        entry("attribute_list"),
        r#"["<class torch.nn.modules.linear.Linear>","<class torch.nn.functional.relu>"]"#
    );
    assert!(source.metadata["optimizer"]["param_groups"][0]["lr"].as_f64() == Some(0.001));
    assert!(source.remarks.iter().any(|r| r.contains("torch.nn.modules.linear.Linear")), "{:?}", source.remarks);
    assert!(source.left_out.is_empty(), "{:?}", source.left_out);
    let one = open(&fixture("one-tensor.pt"))?;
    assert_eq!((one.tensors.len(), one.tensors[0].name.as_str()), (1, "tensor"));
    Ok(())
}

#[test]
fn what_is_no_data_is_refused_by_name() {
    for (file, says) in [
        ("whole-model.pt", "would run __main__.Tiny"),
        ("sparse.pt", "sparse tensor: save tensor.to_dense()"),
        ("objects.npz", "array o: it holds an array of Python objects"),
        ("make.py", "no checkpoint of a known format"),
        ("", "it is a folder"),
        ("none.pt", "none.pt"),
    ] {
        let error = open(&fixture(file)).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains(says) && error.contains(file), "{file}: {error}");
        assert_eq!(error.lines().count(), 1);
    }
}

#[test]
fn numpy_arrays_are_read_in_either_order_and_endianness() -> Outcome {
    let (plain, deflated) = (open(&fixture("arrays.npz"))?, open(&fixture("arrays-deflated.npz"))?);
    assert_eq!(contents(&plain)?, contents(&deflated)?);
    assert_eq!(plain.metadata["note"], "a text, ü");
    let all = contents(&plain)?;
    let (dtype, shape, bytes) = &all["fortran"];
    assert_eq!((*dtype, &shape[..]), (Dtype::F64, &[2, 3][..]));
    let doubles: Vec<f64> = bytes.chunks(8).map(|b| f64::from_le_bytes(b.try_into().unwrap_or_default())).collect();
    assert_eq!(doubles, [0., 1., 2., 3., 4., 5.]);
    let floats = |b: &[u8]| b.chunks(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect::<Vec<_>>();
    assert_eq!((floats(&all["big"].2), floats(&all["big_complex"].2)), (vec![0., 1., 2.], vec![1., 2.]));
    assert_eq!((all["bfloat"].0, &all["bfloat"].2), (Dtype::BF16, &vec![0xc0, 0x3f, 0, 0xc0]));
    assert_eq!((all["scalar"].1.len(), all["empty"].1.clone()), (0, vec![0, 3]));
    for version in 1..=3 {
        let one = open(&fixture(&format!("version{version}.npy")))?;
        assert_eq!(contents(&one)?.into_values().next(), Some(all["fortran"].clone()));
    }
    Ok(())
}

#[test]
fn gguf_blocks_are_dequantized_as_ggml_does() -> Outcome {
    let (source, expected) =
        (open(&fixture("blocks.gguf"))?, contents(&open(&fixture("blocks-expected.safetensors"))?)?);
    assert_eq!(
        (source.metadata["test.count"].clone(), source.metadata["test.words"].clone()),
        (3.into(), serde_json::json!(["a", "b"]))
    );
    assert_eq!(source.tensors.len(), 25);
    for t in &source.tensors {
        let ours =
            source.tensor(t, &Device::Cpu)?.to_dtype(candle_core::DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
        let theirs = expected[&t.name].2.chunks(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
        for (a, b) in ours.iter().zip(theirs) {
            assert!((a - b).abs() <= 1e-6 * b.abs().max(1.), "{}: {a} {b}", t.name);
        }
    }
    Ok(())
}

#[test]
fn every_format_carries_the_same_content_to_every_other() -> Outcome {
    let dir = tempfile::tempdir()?;
    let tour = [
        ("a.safetensors", Format::Safetensors),
        ("b.pt", Format::Torch),
        ("c.safetensors", Format::Safetensors),
        ("d.gguf", Format::Gguf),
        ("e.pt", Format::Torch),
        // Has each tensor by its name: what was tied is not any more.
        ("f.npz", Format::Npz),
        ("g.safetensors", Format::Safetensors),
    ];
    let mut path = fixture("nested.pt");
    let mut hash = None;
    for (name, format) in tour {
        let source = open(&path)?;
        let mut plan = Plan::new(&source);
        // GGUF has no truth values, no empty tensors and no long names; nothing of that kind is here.
        plan.apply(&"drop? optimizer\\.param.*".parse::<Rules>()?)?;
        let next = dir.path().join(name);
        let done = plan.write(&next, format, None)?;
        let written = open(&next)?;
        assert_eq!((written.format, written.tensors.len()), (format, source.tensors.len()));
        let ties = plan.ties(format).len();
        assert_eq!(done.tensors, source.tensors.len() - ties);
        let now = content_hash(&written)?;
        assert_eq!(*hash.get_or_insert(now.clone()), now, "{name}");
        assert_eq!(ties, usize::from(!matches!(name, "f.npz" | "g.safetensors")), "{name}");
        path = next;
    }
    assert_eq!(hash, Some(content_hash(&open(&fixture("nested.pt"))?)?));
    // Types that only some formats have, NaN payloads and zeros with a sign among them.
    let odd = open(&fixture("odd.pt"))?;
    for (name, format) in [("odd.safetensors", Format::Safetensors), ("again.pt", Format::Torch)] {
        let next = dir.path().join(name);
        Plan::new(&odd).write(&next, format, None)?;
        assert_eq!(contents(&open(&next)?)?, contents(&odd)?);
    }
    let refused = Plan::new(&odd).write(&dir.path().join("odd.npz"), Format::Npz, None).unwrap_err().to_string();
    assert!(refused.contains("NumPy has no elements of F8_E4M3, which tensor float8 has"), "{refused}");
    assert!(!dir.path().join("odd.npz").exists());
    Ok(())
}

/// A safetensors file of these f32 tensors.
fn made(path: &Path, tensors: &[(&str, &[usize], Vec<f32>)]) -> Outcome {
    let make = |(name, shape, values): &(&str, &[usize], Vec<f32>)| {
        Ok::<_, candle_core::Error>((
            name.to_string(),
            candle_core::Tensor::from_vec(values.clone(), *shape, &Device::Cpu)?,
        ))
    };
    let tensors = tensors.iter().map(make).collect::<Result<Vec<_>, _>>()?;
    Ok(zoo_checkpoint::write(path, &tensors, &BTreeMap::new())?)
}

#[test]
fn tensors_are_put_together_along_any_dimension_and_only_where_that_is_right() -> Outcome {
    let dir = tempfile::tempdir()?;
    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    let wave = |n: usize, by: f32| (0..n).map(|i| (i as f32 * by).sin()).collect::<Vec<f32>>();
    made(&from, &[("a", &[4, 16], wave(64, 1.)), ("b", &[4, 16], wave(64, 2.)), ("c", &[8, 1], wave(8, 3.))])?;
    let source = open(&from)?;
    let plan = |rules: &str| {
        let mut plan = Plan::new(&source);
        plan.apply(&rules.parse::<Rules>().expect("rules"))?;
        Ok::<_, zoo_checkpoint::Error>(plan)
    };
    // A row of each in turn, as such and in blocks that go across the two.
    let mut joined = plan("concat a, b 1 -> d")?;
    joined.write(&to, Format::Safetensors, None)?;
    let read = |path: &Path, name: &str| -> Result<Vec<f32>, Box<dyn std::error::Error>> {
        let source = open(path)?;
        let t = source.find(name).ok_or("a tensor")?;
        Ok(source.tensor(t, &Device::Cpu)?.flatten_all()?.to_vec1()?)
    };
    let (a, b) = (wave(64, 1.), wave(64, 2.));
    let expected: Vec<f32> = (0..4).flat_map(|r| [&a[16 * r..16 * r + 16], &b[16 * r..16 * r + 16]].concat()).collect();
    assert_eq!(read(&to, "d")?, expected);
    joined.quantize(zoo_checkpoint::Blocks::from_name("q8_0").ok_or("blocks")?)?;
    joined.write(&to, Format::Gguf, None)?;
    let error = read(&to, "d")?.iter().zip(&expected).map(|(x, y)| (x - y).abs()).fold(0., f32::max);
    assert!(error > 0. && error < 0.01, "{error}");
    // Along one dimension and then along another is not one row of each.
    let error = plan("concat a, b 0 -> d\nconcat d, c 1 -> e").map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("put together along another"), "{error}");
    Ok(())
}

#[test]
fn casts_round_once_and_refuse_what_is_lost() -> Outcome {
    let dir = tempfile::tempdir()?;
    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    let values = [
        1. + 2f64.powi(-11) + 2f64.powi(-40),
        -1. - 2f64.powi(-11) - 2f64.powi(-40),
        1. + 2f64.powi(-11),
        f64::NAN,
        f64::INFINITY,
        -0.,
    ];
    let t = candle_core::Tensor::new(&values, &Device::Cpu)?;
    let ids = candle_core::Tensor::new(&[(1i64 << 53) + 1, 3], &Device::Cpu)?;
    zoo_checkpoint::write(&from, &[("x".into(), t), ("ids".into(), ids)], &BTreeMap::new())?;
    let source = open(&from)?;
    let mut plan = Plan::new(&source);
    plan.cast(Dtype::F16);
    plan.write(&to, Format::Safetensors, None)?;
    let all = contents(&open(&to)?)?;
    // To the nearest, ties to even, as NumPy has it; integers stay.
    assert_eq!(all["x"].2, [0x01, 0x3c, 0x01, 0xbc, 0x00, 0x3c, 0x00, 0x7e, 0x00, 0x7c, 0x00, 0x80]);
    assert_eq!(all["ids"].0, Dtype::I64);
    let mut plan = Plan::new(&source);
    plan.apply(&"cast ids f64".parse::<Rules>()?)?;
    let error = plan.write(&to, Format::Safetensors, None).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("tensor ids: 9007199254740993 is not held exactly by F64"), "{error}");
    Ok(())
}

#[test]
fn a_failed_conversion_into_shards_touches_nothing() -> Outcome {
    let dir = tempfile::tempdir()?;
    let from = dir.path().join("from.safetensors");
    made(&from, &[("a", &[600], vec![1.; 600]), ("b", &[2], vec![1., 1e30])])?;
    let source = open(&from)?;
    let out = dir.path().join("model.safetensors");
    Plan::new(&source).write(&out, Format::Safetensors, Some(2400))?;
    let listing = |dir: &Path| -> std::io::Result<BTreeMap<String, Vec<u8>>> {
        let read = |e: std::fs::DirEntry| Ok((e.file_name().to_string_lossy().into_owned(), std::fs::read(e.path())?));
        std::fs::read_dir(dir)?.map(|e| read(e?)).collect()
    };
    let before = listing(dir.path())?;
    assert_eq!(before.len(), 4);
    let shards = open(&dir.path().join("model.safetensors.index.json"))?;
    let mut plan = Plan::new(&shards);
    plan.cast(Dtype::F16);
    let error = plan.write(&out, Format::Safetensors, Some(1200)).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("no shard was written") && error.contains("tensor b: 1e30 is too large for F16"), "{error}");
    assert_eq!(listing(dir.path())?, before);
    Ok(())
}

#[test]
fn a_changed_byte_of_a_large_array_is_found_while_converting() -> Outcome {
    let dir = tempfile::tempdir()?;
    let (from, npz) = (dir.path().join("from"), dir.path().join("large.npz"));
    made(&from, &[("a", &[100_000], vec![1.; 100_000])])?;
    Plan::new(&open(&from)?).write(&npz, Format::Npz, None)?;
    let mut bytes = std::fs::read(&npz)?;
    bytes[300_000] ^= 1;
    std::fs::write(&npz, bytes)?;
    let error = Plan::new(&open(&npz)?).write(&from, Format::Safetensors, None).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("checksum"), "{error}");
    Ok(())
}

mod properties {
    use super::*;
    use candle_core::{DType, Tensor};
    use proptest::prelude::*;

    /// Any bits at all, as one of the types that every format has.
    fn tensors() -> impl Strategy<Value = BTreeMap<String, (usize, Vec<usize>, Vec<u8>)>> {
        let shape = proptest::collection::vec(1usize..5, 0..4);
        let one = (0usize..TYPES.len(), shape).prop_flat_map(|(dtype, shape)| {
            let bytes = shape.iter().product::<usize>() * TYPES[dtype].size_in_bytes();
            (Just(dtype), Just(shape), proptest::collection::vec(any::<u8>(), bytes))
        });
        proptest::collection::btree_map("[a-zA-Zé][a-z0-9_./: -]{0,12}", one, 1..6)
    }

    const TYPES: [DType; 7] = [DType::F32, DType::F16, DType::BF16, DType::F64, DType::I64, DType::I32, DType::I16];

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn any_bits_come_back_from_every_format(tensors in tensors(), note in ".{0,40}") {
            let dir = tempfile::tempdir().expect("a folder");
            let first = dir.path().join("first");
            let made: Vec<(String, Tensor)> = tensors
                .iter()
                .map(|(name, (dtype, shape, bytes))| {
                    (name.clone(), Tensor::from_raw_buffer(bytes, TYPES[*dtype], shape, &Device::Cpu).expect("a tensor"))
                })
                .collect();
            zoo_checkpoint::write(&first, &made, &BTreeMap::from([("note".to_string(), note.clone())])).expect("written");
            let source = open(&first).expect("read");
            let before = contents(&source).expect("read");
            for (name, (_, shape, bytes)) in &tensors {
                prop_assert_eq!((&before[name].1, &before[name].2), (shape, bytes));
            }
            for (i, format) in [Format::Torch, Format::Npz, Format::Gguf, Format::Safetensors].into_iter().enumerate() {
                let next = dir.path().join(i.to_string());
                Plan::new(&source).write(&next, format, None).expect("written");
                let back = open(&next).expect("read");
                prop_assert_eq!(back.metadata.get("note").and_then(|n| n.as_str()), Some(note.as_str()), "{:?}", format);
                prop_assert_eq!(&contents(&back).expect("read"), &before, "{:?}", format);
            }
        }
    }
}

#[test]
fn rows_of_rotary_heads_are_reordered_and_led_back() -> Outcome {
    let dir = tempfile::tempdir()?;
    let path = |name: &str| dir.path().join(name);
    let rows = candle_core::Tensor::arange(0f32, 24., &Device::Cpu)?.reshape((8, 3))?;
    zoo_checkpoint::write(&path("q.safetensors"), &[("q".into(), rows.clone())], &BTreeMap::new())?;
    let source = open(&path("q.safetensors"))?;
    let converted = |rules: &str, name: &str| -> Result<Vec<f32>, Box<dyn std::error::Error>> {
        let mut plan = Plan::new(&source);
        plan.apply(&rules.parse::<Rules>()?)?;
        let format = Format::by_extension(&path(name)).ok_or("a format")?;
        plan.write(&path(name), format, None)?;
        let file = zoo_checkpoint::read(&path(name), &Device::Cpu)?;
        Ok(file.tensors["q"].narrow(1, 0, 1)?.flatten_all()?.to_vec1::<f32>()?.into_iter().map(|v| v / 3.).collect())
    };
    let whole = [0., 1., 2., 3., 4., 5., 6., 7.];
    // Two heads of four: halves become neighbours.
    assert_eq!(converted("interleave q 2", "pairs.gguf")?, [0., 2., 1., 3., 4., 6., 5., 7.]);
    assert_eq!(converted("deinterleave q 1", "halves.npz")?, [0., 2., 4., 6., 1., 3., 5., 7.]);
    for (i, back) in ["interleave q 2\ndeinterleave q 2", "deinterleave q 4\ninterleave q 4"].iter().enumerate() {
        assert_eq!(converted(back, &format!("back-{i}.gguf"))?, whole);
    }
    for (rules, says) in [
        ("interleave q 3", "no rows of 3 heads"),
        ("interleave q 2\ninterleave q 1", "reordered by a rule before"),
        ("interleave q 2\ntranspose q", "has to come last"),
        ("interleave q 9223372036854775809", "no rows of 9223372036854775809 heads"),
    ] {
        let said = converted(rules, "never.gguf").map(|_| String::new()).unwrap_or_else(|e| e.to_string());
        assert!(said.contains(says) && !path("never.gguf").exists(), "{rules}: {said}");
    }
    Ok(())
}

#[test]
fn entries_of_a_gguf_file_have_the_types_of_their_values() -> Outcome {
    let dir = tempfile::tempdir()?;
    let path = |name: &str| dir.path().join(name);
    let ones = candle_core::Tensor::ones((2, 2), candle_core::DType::F32, &Device::Cpu)?;
    zoo_checkpoint::write(&path("a.safetensors"), &[("a".into(), ones)], &BTreeMap::new())?;
    let source = open(&path("a.safetensors"))?;
    let mut plan = Plan::new(&source);
    let entries = serde_json::json!({
        "general.architecture": "some", "count": 3, "large": 3_000_000_000_000u64, "less": -3, "half": 0.5, "tenth": 0.1, "yes": true,
        "counts": [1, 2], "wide": [1, 3_000_000_000u64], "floats": [0.5, 0.1], "texts": ["a", "b"], "none": [],
    });
    plan.metadata = entries.as_object().cloned().ok_or("entries")?;
    plan.write(&path("a.gguf"), Format::by_extension(&path("a.gguf")).ok_or("a format")?, None)?;
    let source = open(&path("a.gguf"))?;
    assert_eq!(source.metadata, plan.metadata);
    // To another of the format: what changed has its new value, and the rest its old type.
    let mut plan = Plan::new(&source);
    plan.metadata.insert("general.architecture".into(), "another".into());
    plan.metadata.insert("count".into(), 4.into());
    plan.write(&path("b.gguf"), source.format, None)?;
    assert_eq!(open(&path("b.gguf"))?.metadata, plan.metadata);
    Ok(())
}
