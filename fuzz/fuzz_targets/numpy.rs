#![no_main]

#[path = "read.rs"]
mod read;

use std::io::{Cursor, Write};

// An archive's checksums would keep a fuzzer out, so an even first byte means: the rest is one array of an archive.
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    match bytes.split_first() {
        Some((first, rest)) if first % 2 == 0 => {
            let mut zip = zip::ZipWriter::new(Cursor::new(vec![]));
            zip.start_file("a.npy", zip::write::SimpleFileOptions::default()).expect("in memory");
            zip.write_all(rest).expect("in memory");
            read::read(zip.finish().expect("in memory").get_ref());
        }
        Some((_, rest)) => read::read(rest),
        None => {}
    }
});
