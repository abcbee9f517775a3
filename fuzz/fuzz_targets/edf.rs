//! EEG in EDF, EDF+ or BDF.
#![no_main]

mod imaged;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| imaged::file::with("eeg.edf", bytes, imaged::image));
