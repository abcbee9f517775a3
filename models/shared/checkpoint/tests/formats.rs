//! Files that PyTorch, NumPy, safetensors and gguf wrote (fixtures/make.py) are read as they meant them, and every
//! format carries every tensor to every other.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::Device;
use zoo_checkpoint::{Dtype, Format, Plan, Rules, Source, View, content_hash, open};

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
        source.stream(&View::whole(t), t.dtype, &mut |piece| {
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
    assert_eq!(source.tensors.len(), 18);
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
        ("c.npz", Format::Npz),
        ("d.safetensors", Format::Safetensors),
        ("e.gguf", Format::Gguf),
        ("f.pt", Format::Torch),
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
        assert_eq!(done.tensors, source.tensors.iter().filter(|t| t.tied_to.is_none()).count());
        let now = content_hash(&written)?;
        assert_eq!(*hash.get_or_insert(now.clone()), now, "{name}");
        assert_eq!(plan.ties().len(), 1, "{name}");
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
