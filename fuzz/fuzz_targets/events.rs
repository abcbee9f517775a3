//! A table of events in text, or BrainVision's markers.
#![no_main]

mod imaged;

use std::sync::OnceLock;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    static EEG: OnceLock<String> = OnceLock::new();
    let eeg = EEG.get_or_init(|| {
        let row = |t: usize| (0..10).map(|e| ((t * (e + 3)) % 17).to_string()).collect::<Vec<_>>().join(",");
        (0..60).map(|t| row(t) + "\n").collect()
    });
    imaged::file::with("eeg.csv", eeg.as_bytes(), |path| {
        let name = if bytes.first().is_some_and(|b| b % 2 == 0) { "events.vmrk" } else { "events.tsv" };
        imaged::file::with(name, bytes.get(1..).unwrap_or_default(), |events| imaged::around(path, events));
    });
});
