//! EEG as a table in text, and a table of events.
#![no_main]

mod imaged;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| imaged::file::with("eeg.csv", bytes, imaged::image));
