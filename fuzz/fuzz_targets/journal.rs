//! `metrics.jsonl` and `health.jsonl` of a run, and its judgement.
#![no_main]

#[path = "file.rs"]
mod file;

use zoo_training::doctor::diagnose;
use zoo_training::health::Check;
use zoo_training::History;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    file::with("metrics.jsonl", bytes, |path| {
        let run = path.parent().expect("a folder");
        if let Ok(history) = History::read(run) {
            let _ = diagnose(&history, &Default::default());
        }
    });
    file::with("health.jsonl", bytes, |path| {
        let _ = Check::read(path.parent().expect("a folder"));
    });
});
