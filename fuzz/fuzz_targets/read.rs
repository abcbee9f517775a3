//! Opens bytes as a file and reads every tensor.
#![allow(dead_code)] // Not every target wraps them in an archive.

#[path = "file.rs"]
mod file;

use std::io::{Cursor, Write};

use zoo_checkpoint::{Source, TensorView, open, stats};

/// Reads bytes as the first of them says, as an archive's checksums would keep a fuzzer out: odd means that the rest is a
/// whole file, even that it is the record `name` of an archive that has `others`, too.
pub fn read_wrapped(bytes: &[u8], name: &str, others: &[(&str, &[u8])]) {
    match bytes.split_first() {
        Some((first, rest)) if first % 2 == 0 => {
            let mut zip = zip::ZipWriter::new(Cursor::new(vec![]));
            for (name, content) in [&[(name, rest)], others].concat() {
                zip.start_file(name, zip::write::SimpleFileOptions::default()).expect("in memory");
                zip.write_all(content).expect("in memory");
            }
            read(zip.finish().expect("in memory").get_ref());
        }
        Some((_, rest)) => read(rest),
        None => {}
    }
}

pub fn read(bytes: &[u8]) {
    file::with("file", bytes, |path| {
        if let Ok(source) = open(path) {
            all(&source);
        }
    });
}

fn all(source: &Source) {
    let mut left = 1u64 << 24;
    for t in &source.tensors {
        // An expanded tensor may be a thousand times its file: enough is enough.
        let Some(rest) = left.checked_sub(t.bytes()) else { return };
        left = rest;
        let _ = source.stream(&TensorView::whole(t), t.dtype, &mut |_| Ok(()));
        let _ = stats(source, t);
    }
}
