//! Checkpoints as people have them: parts of a whole, files of other writers, objects beside tensors.

use std::path::{Path, PathBuf};

use zoo_checkpoint::{Format, Plan, Rules, Source, content_hash, open, open_leaving_objects};

type Outcome = Result<(), Box<dyn std::error::Error>>;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn refused(path: &Path) -> String {
    open(path).map(|_| ()).expect_err("it has to be refused").to_string()
}

fn names(source: &Source) -> Vec<&str> {
    source.tensors.iter().map(|t| t.name.as_str()).collect()
}

/// A GGUF file: entries of 16 bits, tensors of f32 by name and values, and what follows the last one.
fn gguf(entries: &[(&str, u16)], tensors: &[(&str, &[f32])], kind: u32, padded: bool, more: &[u8]) -> Vec<u8> {
    let mut bytes = b"GGUF\x03\0\0\0".to_vec();
    bytes.extend((tensors.len() as u64).to_le_bytes());
    bytes.extend((entries.len() as u64).to_le_bytes());
    let text = |bytes: &mut Vec<u8>, text: &str| {
        bytes.extend((text.len() as u64).to_le_bytes());
        bytes.extend(text.bytes());
    };
    for (key, value) in entries {
        text(&mut bytes, key);
        bytes.extend(2u32.to_le_bytes());
        bytes.extend(value.to_le_bytes());
    }
    let mut offset = 0u64;
    for (name, values) in tensors {
        text(&mut bytes, name);
        bytes.extend(1u32.to_le_bytes());
        bytes.extend((values.len() as u64).to_le_bytes());
        bytes.extend(kind.to_le_bytes());
        bytes.extend(offset.to_le_bytes());
        offset = (offset + 4 * values.len() as u64).next_multiple_of(32);
    }
    bytes.resize(bytes.len().next_multiple_of(32), 0);
    for (i, (_, values)) in tensors.iter().enumerate() {
        bytes.extend(values.iter().flat_map(|v| v.to_le_bytes()));
        if padded || i + 1 < tensors.len() {
            bytes.resize(bytes.len().next_multiple_of(32), 0);
        }
    }
    bytes.extend(more);
    bytes
}

const A: (&str, &[f32]) = ("a", &[1., 2., 3.]);
const B: (&str, &[f32]) = ("b", &[4., 5.]);

#[test]
fn zeros_behind_the_last_tensor_of_a_gguf_are_there_or_not() -> Outcome {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("model.gguf");
    let mut hashes = vec![];
    for (padded, more) in [(true, vec![]), (false, vec![]), (false, vec![0; 3]), (true, vec![0; 32])] {
        std::fs::write(&path, gguf(&[], &[A, B], 0, padded, &more))?;
        hashes.push(content_hash(&open(&path)?)?);
    }
    assert!(hashes.iter().all(|hash| *hash == hashes[0]));
    for more in [vec![1], vec![0; (1 << 16) + 1]] {
        std::fs::write(&path, gguf(&[], &[A, B], 0, true, &more))?;
        assert!(refused(&path).contains("bytes follow its tensors, which are no padding"), "{}", refused(&path));
    }
    let whole = gguf(&[], &[A, B], 0, false, &[]);
    std::fs::write(&path, &whole[..whole.len() - 1])?;
    assert!(refused(&path).contains("reach beyond"), "{}", refused(&path));
    Ok(())
}

#[test]
fn a_part_of_a_gguf_model_is_read_with_the_others_or_not_at_all() -> Outcome {
    let dir = tempfile::tempdir()?;
    let part = |no: u16, total: u16, tensors: &[(&str, &[f32])]| {
        gguf(&[("split.no", no), ("split.count", 2), ("split.tensors.count", total)], tensors, 0, true, &[])
    };
    let path = |name: &str| dir.path().join(name);
    std::fs::write(path("m-00001-of-00002.gguf"), part(0, 2, &[A]))?;
    assert!(refused(&path("m-00001-of-00002.gguf")).contains("m-00002-of-00002.gguf is missing"));
    std::fs::write(path("m-00002-of-00002.gguf"), part(1, 2, &[B]))?;
    for name in ["m-00001-of-00002.gguf", "m-00002-of-00002.gguf"] {
        let source = open(&path(name))?;
        assert_eq!(names(&source), ["a", "b"]);
        assert!(source.metadata.keys().all(|key| !key.starts_with("split.")), "{:?}", source.metadata);
        assert!(source.remarks.iter().any(|r| r.contains("2 parts")), "{:?}", source.remarks);
    }
    // As one file it is one.
    let whole = path("whole.gguf");
    Plan::new(&open(&path("m-00001-of-00002.gguf"))?).write(&whole, Format::Gguf, None)?;
    assert_eq!(names(&open(&whole)?), ["a", "b"]);
    // The first part of llama.cpp may have no tensors.
    std::fs::write(path("h-00001-of-00002.gguf"), part(0, 1, &[]))?;
    std::fs::write(path("h-00002-of-00002.gguf"), part(1, 1, &[B]))?;
    assert_eq!(names(&open(&path("h-00001-of-00002.gguf"))?), ["b"]);
    for (name, bytes, says) in [
        ("other.gguf", part(1, 2, &[B]), "its name does not end in -00002-of-00002.gguf"),
        ("m-00001-of-00002.gguf", part(1, 2, &[A]), "its name does not end in"),
        ("m-00002-of-00002.gguf", part(1, 3, &[B]), "m-00001-of-00002.gguf is not part 1 of 2, as its name says"),
    ] {
        std::fs::write(path(name), bytes)?;
        assert!(refused(&path(name)).contains(says), "{name}: {}", refused(&path(name)));
    }
    std::fs::write(path("m-00001-of-00002.gguf"), part(0, 3, &[A]))?;
    std::fs::write(path("m-00002-of-00002.gguf"), part(1, 3, &[B]))?;
    assert!(refused(&path("m-00001-of-00002.gguf")).contains("have 2 tensors together, and it says 3"));
    std::fs::write(path("m-00001-of-00002.gguf"), part(0, 2, &[A]))?;
    std::fs::write(path("m-00002-of-00002.gguf"), part(1, 2, &[A]))?;
    assert!(refused(&path("m-00001-of-00002.gguf")).contains("two tensors are named a"));
    Ok(())
}

#[test]
fn types_that_are_not_read_are_named() -> Outcome {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("model.gguf");
    for (kind, says) in [
        (40, "type 40 (NVFP4), which this version does not know"),
        (77, "type 77, which this version does not know"),
        (31, "type 31 (Q4_0_4_4), which llama.cpp has taken back"),
    ] {
        std::fs::write(&path, gguf(&[], &[A], kind, true, &[]))?;
        assert!(refused(&path).contains(says), "{}", refused(&path));
    }
    Ok(())
}

#[test]
fn a_distributed_checkpoint_is_read_by_its_index() -> Outcome {
    let whole = content_hash(&open(&fixture("distributed.safetensors"))?)?;
    for path in [fixture("distributed"), fixture("distributed/.metadata")] {
        let source = open(&path)?;
        source.check()?;
        assert_eq!(content_hash(&source)?, whole);
        assert_eq!((source.metadata["step"].as_i64(), source.metadata["note"].as_str()), (Some(12), Some("by two")));
    }
    assert!(refused(&fixture("distributed/__0_0.distcp")).contains("name the folder with its .metadata"));
    // Files that are not what the index says.
    let copied = || -> std::io::Result<tempfile::TempDir> {
        let dir = tempfile::tempdir()?;
        for entry in std::fs::read_dir(fixture("distributed"))? {
            let entry = entry?;
            std::fs::copy(entry.path(), dir.path().join(entry.file_name()))?;
        }
        Ok(dir)
    };
    let dir = copied()?;
    std::fs::remove_file(dir.path().join("__1_0.distcp"))?;
    assert!(refused(dir.path()).contains("__1_0.distcp"), "{}", refused(dir.path()));
    let dir = copied()?;
    let file = dir.path().join("__0_0.distcp");
    let bytes = std::fs::read(&file)?;
    std::fs::write(&file, [bytes.as_slice(), &[0]].concat())?;
    assert!(refused(dir.path()).contains("the parts in __0_0.distcp end at"), "{}", refused(dir.path()));
    std::fs::write(&file, &bytes[..bytes.len() - 1])?;
    assert!(refused(dir.path()).contains("the parts in __0_0.distcp end at"), "{}", refused(dir.path()));
    let dir = copied()?;
    std::fs::write(dir.path().join("__2_0.distcp"), "of another time")?;
    assert!(open(dir.path())?.remarks.iter().any(|r| r.starts_with("__2_0.distcp is left out")));
    // What Python would run when it reads the index is refused, and so are bytes behind it.
    let index = std::fs::read(fixture("distributed/.metadata"))?;
    let (inner, _) = index.split_at(index.len() - 1);
    std::fs::write(dir.path().join(".metadata"), [inner, b"cos\nsystem\n(S'x'\ntR0."].concat())?;
    assert!(refused(dir.path()).contains("its pickle would run os.system"), "{}", refused(dir.path()));
    let also = open_leaving_objects(dir.path()).map(|_| ()).unwrap_err().to_string();
    assert!(also.contains("its pickle would run os.system"), "{also}");
    std::fs::write(dir.path().join(".metadata"), [index.as_slice(), b"N."].concat())?;
    assert!(refused(dir.path()).contains("2 bytes follow the pickle"), "{}", refused(dir.path()));
    // A changed value does not fit its part's checksum.
    let dir = copied()?;
    let value = open(&fixture("distributed.safetensors"))?.read(&candle_core::Device::Cpu)?.tensors["model.rows"]
        .flatten_all()?
        .to_vec1::<f32>()?[0]
        .to_le_bytes();
    for name in ["__0_0.distcp", "__1_0.distcp"] {
        let file = dir.path().join(name);
        let mut bytes = std::fs::read(&file)?;
        if let Some(at) = bytes.windows(4).position(|w| w == value) {
            bytes[at] ^= 1;
            std::fs::write(&file, bytes)?;
            let source = open(dir.path())?;
            let out = dir.path().join("out.safetensors");
            let error = Plan::new(&source).write(&out, Format::Safetensors, None).map(|_| ()).unwrap_err().to_string();
            assert!(error.contains("checksum (CRC-32) is wrong"), "{error}");
            assert!(source.check().is_err() && source.read(&candle_core::Device::Cpu).is_err() && !out.exists());
        }
    }
    // Every cut and every changed byte of the index is refused, or changes no tensor in silence.
    for cut in 0..index.len() {
        std::fs::write(dir.path().join(".metadata"), &index[..cut])?;
        assert!(!refused(dir.path()).is_empty());
    }
    for at in 0..index.len() {
        let mut bytes = index.clone();
        bytes[at] ^= 1;
        std::fs::write(dir.path().join(".metadata"), bytes)?;
        if let Ok(source) = open(dir.path()) {
            let _ = source.check();
        }
    }
    Ok(())
}

#[test]
fn several_archives_in_one_file_are_no_checkpoint() -> Outcome {
    let dir = tempfile::tempdir()?;
    for (name, fixture_name) in [("two.pt", "one-tensor.pt"), ("two.npz", "arrays.npz")] {
        let one = std::fs::read(fixture(fixture_name))?;
        let path = dir.path().join(name);
        std::fs::write(&path, [one.as_slice(), &one].concat())?;
        assert!(refused(&path).contains("of the file are not its own"), "{}", refused(&path));
    }
    Ok(())
}

#[test]
fn objects_beside_tensors_cost_themselves_alone_when_asked() -> Outcome {
    let path = fixture("objects.ckpt");
    assert!(refused(&path).contains("its pickle would run mylib.Config"), "{}", refused(&path));
    let source = open_leaving_objects(&path)?;
    assert_eq!(names(&source), ["state_dict.layer.weight"]);
    assert_eq!(source.left_out, ["hyper_parameters.config: an object of mylib.Config (made by running it)"]);
    let dir = tempfile::tempdir()?;
    let out = dir.path().join("out.safetensors");
    let mut plan = Plan::new(&source);
    let kept = plan.write(&out, Format::Safetensors, None).map(|_| ()).unwrap_err().to_string();
    assert!(kept.contains("('drop hyper_parameters\\.config')"), "{kept}");
    plan.apply(&r"drop hyper_parameters\.config".parse::<Rules>()?)?;
    plan.write(&out, Format::Safetensors, None)?;
    let written = open(&out)?;
    assert_eq!(names(&written), ["state_dict.layer.weight"]);
    assert!(written.metadata.keys().any(|key| key == "hyper_parameters"), "{:?}", written.metadata);
    Ok(())
}

#[test]
fn an_npz_has_every_name_and_no_metadata_of_ours() -> Outcome {
    let dir = tempfile::tempdir()?;
    let source = open(&fixture("one-tensor.pt"))?;
    let mut plan = Plan::new(&source);
    let name = &source.tensors[0].name;
    plan.apply(&format!("tie head -> {name}").parse::<Rules>()?)?;
    assert_eq!(plan.ties(Format::Safetensors).len(), 1);
    let path = dir.path().join("both.npz");
    plan.write(&path, Format::Npz, None)?;
    let bytes = std::fs::read(&path)?;
    assert!(!bytes.windows(12).any(|w| w == b"__metadata__"), "nothing was to be kept");
    assert_eq!(names(&open(&path)?), [name.as_str(), "head"]);
    // Where a format keeps ties, they can be undone.
    plan.untied = true;
    let path = dir.path().join("both.safetensors");
    plan.write(&path, Format::Safetensors, None)?;
    assert!(open(&path)?.tensors.iter().all(|t| t.tied_to.is_none()));
    Ok(())
}

#[test]
fn what_is_no_checkpoint_is_called_by_its_name() -> Outcome {
    let dir = tempfile::tempdir()?;
    for (name, bytes, says) in [
        ("model.onnx", &b"\x08\x07\x12\x07pytorch"[..], "ONNX"),
        ("flax_model.msgpack", b"\x81\xa6params\x81", "msgpack"),
        ("ckpt-1.index", b"\0\0\x08\x01\x08\x01\x1a\x02", "TensorFlow"),
        ("ckpt-1.data-00000-of-00001", b"\x73\xf0\xeb\x3f", "TensorFlow"),
        ("old.bin", b"tjgg\x03\0\0\0", "ggml file from before GGUF"),
        ("model.tflite", b"\x1c\0\0\0TFL3", "TensorFlow Lite"),
        ("model.pt.gz", b"\x1f\x8b\x08\0", "gunzip"),
        ("model.safetensors", b"<!DOCTYPE html><html>", "a web page"),
        ("data.mat", b"MATLAB 5.0 MAT-file", "MATLAB"),
        ("model.h5", b"\x89HDF\r\n\x1a\n", "HDF5"),
        ("what", b"hello", "it begins with 68 65 6c 6c 6f"),
    ] {
        let path = dir.path().join(name);
        std::fs::write(&path, bytes)?;
        assert!(refused(&path).contains(says), "{name}: {}", refused(&path));
    }
    Ok(())
}
