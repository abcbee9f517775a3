//! EEG in FIF.
#![no_main]

mod imaged;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| imaged::file::with("eeg.fif", bytes, imaged::image));
