//! Daily prices. The first byte says how they are read.
#![no_main]

#[path = "file.rs"]
mod file;

use zoo_market::{Need, Reading, read};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Some((first, rest)) = bytes.split_first() else { return };
    let said = |bit: u8, value: &str| if first & bit == bit { value.into() } else { String::new() };
    let how = Reading {
        skip_bad_rows: first & 1 == 1,
        resample: said(4, "daily"),
        symbol: said(8, "A"),
        date_format: said(16, "%d/%m/%Y"),
        decimal: said(32, ","),
        encoding: said(64, "gbk"),
        ..Reading::default()
    };
    let need = if first & 2 == 2 { Need::Bars } else { Need::Closes };
    file::with("prices.csv", rest, |path| {
        let _ = read(path, &how, need);
    });
});
