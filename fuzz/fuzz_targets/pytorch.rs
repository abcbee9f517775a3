#![no_main]

#[path = "read.rs"]
mod read;

use std::io::{Cursor, Write};

// As in numpy.rs: an even first byte means that the rest is the pickle of an archive that has a storage, too.
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    match bytes.split_first() {
        Some((first, rest)) if first % 2 == 0 => {
            let mut zip = zip::ZipWriter::new(Cursor::new(vec![]));
            for (name, bytes) in [("archive/data.pkl", rest), ("archive/data/0", &[0; 16][..])] {
                zip.start_file(name, zip::write::SimpleFileOptions::default()).expect("in memory");
                zip.write_all(bytes).expect("in memory");
            }
            read::read(zip.finish().expect("in memory").get_ref());
        }
        Some((_, rest)) => read::read(rest),
        None => {}
    }
});
