//! Opens bytes as a file and reads every tensor.

#[path = "file.rs"]
mod file;

use zoo_checkpoint::{Source, TensorView, open, stats};

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
