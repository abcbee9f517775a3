//! A file that `torch.load(weights_only=True)` reads: an `OrderedDict` of tensors by name. Metadata are an attribute of
//! that dictionary, so that it can be given to `load_state_dict` as it is.

use std::fs::File;
use std::path::Path;

use serde_json::Value;

use super::pickle::STORAGES;
use crate::Result;
use crate::archive::Archive;
use crate::outline::{Outline, Planned, Streams, text_of};

/// The attribute that holds metadata: `torch.load(path).zoo_metadata`.
pub(super) const METADATA: &str = "zoo_metadata";

pub(super) fn write(file: &mut File, path: &Path, outline: &Outline, streams: Streams) -> Result<()> {
    let mut zip = Archive::new(file, path);
    let pickle = pickle(outline);
    zip.record("archive/data.pkl", pickle.len() as u64, |sink| sink(&pickle))?;
    zip.record("archive/byteorder", 6, |sink| sink(b"little"))?;
    for (i, t) in outline.tensors.iter().enumerate().filter(|(_, t)| t.tied_to.is_none()) {
        zip.record(&format!("archive/data/{i}"), t.bytes(), |sink| streams(i, sink))?;
    }
    zip.record("archive/version", 2, |sink| sink(b"3\n"))?;
    zip.finish()
}

/// Protocol 2, which every PyTorch reads.
fn pickle(outline: &Outline) -> Vec<u8> {
    let mut p = vec![0x80, 2];
    if let Some(entry) = &outline.entry {
        p.extend(b"}(");
        text(&mut p, entry);
    }
    ordered_dict(&mut p);
    p.push(b'(');
    for (i, t) in outline.tensors.iter().enumerate() {
        text(&mut p, &t.name);
        tensor(&mut p, t, t.tied_to.unwrap_or(i));
    }
    p.push(b'u');
    if outline.entry.is_some() {
        for (key, value) in &outline.metadata {
            text(&mut p, key);
            json(&mut p, value);
        }
        p.extend(b"u.");
        return p;
    }
    let metadata: Vec<_> = outline.metadata.iter().map(|(k, v)| (k, text_of(v))).collect();
    if !metadata.is_empty() {
        p.extend(b"}(");
        text(&mut p, METADATA);
        p.extend(b"}(");
        for (key, value) in metadata {
            text(&mut p, key);
            text(&mut p, &value);
        }
        p.extend(b"uub");
    }
    p.push(b'.');
    p
}

fn tensor(p: &mut Vec<u8>, t: &Planned, storage: usize) {
    let class = STORAGES.iter().find(|(_, d)| *d == t.dtype).map(|(name, _)| *name);
    let elements = crate::source::elements(&t.shape);
    global(p, "torch._utils", if class.is_some() { "_rebuild_tensor_v2" } else { "_rebuild_tensor_v3" });
    p.extend(b"((");
    text(p, "storage");
    match class {
        Some(class) => global(p, "torch", class),
        None => global(p, "torch.storage", "UntypedStorage"),
    }
    text(p, &storage.to_string());
    text(p, "cpu");
    integer(p, if class.is_some() { elements } else { elements * t.dtype.size().unwrap_or(1) });
    p.extend(b"tQ");
    integer(p, 0);
    for sizes in [&t.shape, &crate::source::c_order(&t.shape)] {
        p.push(b'(');
        sizes.iter().for_each(|n| integer(p, *n));
        p.push(b't');
    }
    p.push(0x89);
    ordered_dict(p);
    if class.is_none() {
        global(p, "torch", t.dtype.torch().unwrap_or_default());
    }
    p.extend(b"tR");
}

/// A value as Python's own.
fn json(p: &mut Vec<u8>, value: &Value) {
    match value {
        Value::Null => p.push(b'N'),
        Value::Bool(b) => p.push(if *b { 0x88 } else { 0x89 }),
        Value::Number(n) => match (n.as_i64(), n.as_f64()) {
            (Some(n), _) => {
                p.extend([0x8a, 8]);
                p.extend(n.to_le_bytes());
            }
            (None, f) => {
                p.push(b'G');
                p.extend(f.unwrap_or(f64::NAN).to_be_bytes());
            }
        },
        Value::String(s) => text(p, s),
        Value::Array(items) => {
            p.extend(b"](");
            items.iter().for_each(|v| json(p, v));
            p.push(b'e');
        }
        Value::Object(items) => {
            p.extend(b"}(");
            for (key, value) in items {
                text(p, key);
                json(p, value);
            }
            p.push(b'u');
        }
    }
}

fn ordered_dict(p: &mut Vec<u8>) {
    global(p, "collections", "OrderedDict");
    p.extend(b")R");
}

fn global(p: &mut Vec<u8>, module: &str, name: &str) {
    p.extend(format!("c{module}\n{name}\n").bytes());
}

fn text(p: &mut Vec<u8>, text: &str) {
    p.push(b'X');
    p.extend((text.len() as u32).to_le_bytes());
    p.extend(text.bytes());
}

fn integer(p: &mut Vec<u8>, n: usize) {
    match i32::try_from(n) {
        Ok(n) => {
            p.push(b'J');
            p.extend(n.to_le_bytes());
        }
        Err(_) => {
            // Sizes fit 63 bits.
            p.extend([0x8a, 8]);
            p.extend((n as u64).to_le_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Dtype;

    #[test]
    fn every_dtype_that_pytorch_names_is_written_by_its_own_class_or_by_bytes() {
        for (_, dtype) in STORAGES {
            assert!(dtype.torch().is_some());
        }
        let mut p = vec![];
        let t = Planned { name: "x".into(), dtype: Dtype::U16, shape: vec![2], tied_to: None };
        tensor(&mut p, &t, 7);
        assert!(String::from_utf8_lossy(&p).contains("_rebuild_tensor_v3"));
    }
}
