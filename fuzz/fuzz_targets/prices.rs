//! Daily prices. The first byte says how they are read.
#![no_main]

#[path = "file.rs"]
mod file;

use zoo_market::{Reading, read_csv};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Some((first, rest)) = bytes.split_first() else { return };
    let how = Reading { skip_bad_rows: first & 1 == 1, bars: first & 2 == 2, ..Reading::default() };
    file::with("prices.csv", rest, |path| {
        let _ = read_csv(path, &how);
    });
});
