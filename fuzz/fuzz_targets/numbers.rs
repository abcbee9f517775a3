//! A CSV file of numbers.
#![no_main]

#[path = "file.rs"]
mod file;

use zoo_training::NumberTable;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    file::with("numbers.csv", bytes, |path| {
        if let Ok(table) = NumberTable::read(path) {
            let _ = table.scaled(&table.scaling());
            let _ = table.with_last(&table.columns()[0]);
        }
    });
});
