//! Files that lie are refused with one line: nothing panics, aborts, hangs, takes memory or writes anything.
//!
//! Each family is read in a process of its own, with 2 GiB of memory and a time limit, so that an abort is a red test.
#![cfg(unix)]

#[path = "../examples/hostile/inputs.rs"]
mod inputs;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use zoo_checkpoint::{Error, Format, Plan, TensorView, content_hash, open};

const FAMILY: &str = "ZOO_HOSTILE_FAMILY";

/// Runs `family` in a child process: this test again, with memory and time limited.
fn in_a_child(test: &str, limit: Duration, family: impl FnOnce()) {
    if std::env::var(FAMILY).is_ok() {
        return family();
    }
    let mut child = Command::new("sh")
        .args(["-c", "ulimit -v 2097152; exec \"$@\"", "sh"])
        .arg(std::env::current_exe().expect("this test"))
        .args([test, "--exact", "--nocapture"])
        .env(FAMILY, "1")
        .spawn()
        .expect("a child");
    let begun = Instant::now();
    loop {
        match child.try_wait().expect("a child") {
            Some(status) => return assert!(status.success(), "{test}: {status}"),
            None if begun.elapsed() > limit => {
                let _ = child.kill();
                panic!("{test}: not done after {limit:?}");
            }
            None => std::thread::sleep(Duration::from_millis(10)),
        }
    }
}

/// Reads everything.
fn read(path: &Path) -> Result<(), Error> {
    let source = open(path)?;
    source.tensors.iter().try_for_each(|t| source.stream(&TensorView::whole(t), t.dtype, &mut |_| Ok(())))
}

fn one_line(e: &Error, path: &Path) {
    let text = e.to_string();
    assert!(text.lines().count() == 1 && text.contains(&*path.to_string_lossy()) && text.len() < 1000, "{text}");
}

#[test]
fn files_that_lie_are_refused_in_one_line_and_nothing_runs() {
    in_a_child("files_that_lie_are_refused_in_one_line_and_nothing_runs", Duration::from_secs(120), || {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("file");
        for input in inputs::all() {
            std::fs::write(&path, &input.bytes).expect("a file");
            let begun = Instant::now();
            match read(&path) {
                Ok(()) => assert!(input.sound, "{}: {} was read", input.format, input.name),
                Err(e) => {
                    assert!(!input.sound, "{}: {}: {e}", input.format, input.name);
                    one_line(&e, &path);
                }
            }
            assert!(begun.elapsed() < Duration::from_secs(10), "{}: {}", input.format, input.name);
            // What was not read is not written either.
            let out = folder.path().join("out.safetensors");
            if !input.sound {
                let written = open(&path).and_then(|s| Plan::new(&s).write(&out, Format::Safetensors, None));
                assert!(written.is_err() && !out.exists(), "{}: {}", input.format, input.name);
            }
            let _ = std::fs::remove_file(out);
            assert!(std::fs::read_dir(folder.path()).expect("a folder").count() == 1, "{}", input.name);
        }
        assert!(!Path::new("/tmp/zoo-was-here").exists(), "something in a file was run");
    });
}

fn fixtures() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let names = [
        "odd.pt",
        "odd-legacy.pt",
        "nested.pt",
        "arrays.npz",
        "arrays-deflated.npz",
        "version2.npy",
        "expected.safetensors",
        "blocks.gguf",
        "graph.onnx",
    ];
    names.iter().map(|n| folder.join(n)).collect()
}

#[test]
fn no_truncation_is_read_and_no_panic_comes_of_it() {
    in_a_child("no_truncation_is_read_and_no_panic_comes_of_it", Duration::from_secs(300), || {
        let folder = tempfile::tempdir().expect("a folder");
        for fixture in fixtures() {
            let path = folder.path().join(fixture.file_name().expect("a name"));
            let whole = std::fs::read(&fixture).expect("a fixture");
            for cut in 0..whole.len() {
                std::fs::write(&path, &whole[..cut]).expect("a file");
                match read(&path) {
                    Err(e) => one_line(&e, &path),
                    // What GGUF has behind its last tensor is padding; what ONNX has behind its graph are entries, of which a protocol
                    // buffer does not say how many there are.
                    Ok(()) => {
                        let all = |path: &Path| content_hash(&open(path).expect("sound")).expect("sound");
                        let entries = path.extension().is_some_and(|e| e == "onnx");
                        assert!(entries || whole[cut..].iter().all(|b| *b == 0), "{} cut at {cut}", path.display());
                        assert_eq!(all(&path), all(&fixture), "{} cut at {cut}", path.display());
                    }
                }
            }
        }
    });
}

#[test]
fn no_flipped_bit_is_a_panic() {
    in_a_child("no_flipped_bit_is_a_panic", Duration::from_secs(300), || {
        let folder = tempfile::tempdir().expect("a folder");
        for fixture in fixtures() {
            let path = folder.path().join(fixture.file_name().expect("a name"));
            let whole = std::fs::read(&fixture).expect("a fixture");
            // Every bit of what may be a header, one bit of every other byte.
            for bit in (0..whole.len() * 8).filter(|bit| *bit < 4096 || bit % 8 == bit / 8 % 8) {
                let mut flipped = whole.clone();
                flipped[bit / 8] ^= 1 << (bit % 8);
                std::fs::write(&path, &flipped).expect("a file");
                if let Err(e) = read(&path) {
                    one_line(&e, &path);
                }
            }
        }
    });
}

#[test]
fn what_is_no_regular_file_or_far_too_large_is_refused_at_once() {
    in_a_child("what_is_no_regular_file_or_far_too_large_is_refused_at_once", Duration::from_secs(30), || {
        let folder = tempfile::tempdir().expect("a folder");
        let fifo = folder.path().join("fifo");
        assert!(Command::new("mkfifo").arg(&fifo).status().expect("mkfifo").success());
        assert!(open(&fifo).unwrap_err().to_string().contains("not a regular file"));
        assert!(open(folder.path()).unwrap_err().to_string().contains("it is a folder"));
        assert!(open(Path::new("/dev/zero")).unwrap_err().to_string().contains("not a regular file"));
        // A terabyte of nothing, with the beginnings of each format.
        let sparse = folder.path().join("sparse");
        for start in [
            &b"\0\0\0\0\x01\0\0\0{"[..],
            b"PK\x03\x04",
            b"GGUF\x03\0\0\0",
            b"\x08\x08\x12\x01a\x3a\xff\xff\xff\xff\x0f",
            b"\x93NUMPY\x01\0\x10\0",
            &[0x80, 2, 0x8a, 10],
            b"{",
        ] {
            std::fs::write(&sparse, start).expect("a file");
            std::fs::OpenOptions::new()
                .write(true)
                .open(&sparse)
                .and_then(|f| f.set_len(1 << 40))
                .expect("a sparse file");
            one_line(&read(&sparse).unwrap_err(), &sparse);
        }
    });
}

#[test]
fn a_shard_cannot_lead_elsewhere_nor_hide_or_repeat_tensors() {
    let folder = tempfile::tempdir().expect("a folder");
    let index = folder.path().join("model.safetensors.index.json");
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/expected.safetensors");
    std::fs::copy(&fixture, folder.path().join("a.safetensors")).expect("a copy");
    std::fs::copy(&fixture, folder.path().join("b.safetensors")).expect("a copy");
    for (map, says) in [
        (r#"{"x":"../a.safetensors"}"#, "it names the shard"),
        (r#"{"x":"/etc/passwd"}"#, "it names the shard"),
        (r#"{"x":"model.safetensors.index.json"}"#, "it names the shard"),
        (r#"{"x":"none.safetensors"}"#, "none.safetensors"),
        (r#"{"x":"a.safetensors"}"#, "tensor x is not in a.safetensors"),
        ("{}", "names no tensors"),
    ] {
        std::fs::write(&index, format!("{{\"weight_map\":{map}}}")).expect("a file");
        let error = open(&index).map(|_| ()).unwrap_err();
        one_line(&error, &index);
        assert!(error.to_string().contains(says), "{map}: {error}");
    }
    // Tensors that the index does not name in a file are left out, and said.
    std::fs::write(&index, r#"{"weight_map":{"plain":"a.safetensors","half":"b.safetensors"}}"#).expect("a file");
    let source = open(&index).expect("both are there");
    let names: Vec<&str> = source.tensors.iter().map(|t| t.name.as_str()).collect();
    assert_eq!(names, ["plain", "half"]);
    let said = |what: &str| source.remarks.iter().any(|r| r.contains(what));
    assert!(
        said("tensor plain of b.safetensors is left out: the index names that of a.safetensors"),
        "{:?}",
        source.remarks
    );
    assert!(said("of a.safetensors is left out: the index does not name it"), "{:?}", source.remarks);
    std::fs::write(&index, r#"{"weight_map":{"plain":"a.safetensors","plain":"b.safetensors"}}"#).expect("a file");
    assert!(open(&index).unwrap_err().to_string().contains("is there twice"));
}

#[test]
fn a_file_that_shrinks_while_it_is_read_is_an_error() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("file");
    std::fs::copy(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/expected.safetensors"), &path)
        .expect("a copy");
    let source = open(&path).expect("sound");
    std::fs::OpenOptions::new().write(true).open(&path).and_then(|f| f.set_len(600)).expect("shorter");
    let out = folder.path().join("out.pt");
    let error = Plan::new(&source).write(&out, Format::Torch, None).unwrap_err();
    assert!(error.to_string().contains("damaged"), "{error}");
    assert!(!out.exists());
}
