//! EEG in BrainVision's three files: the header, the markers behind a first zero byte, and the samples behind a second one.
#![no_main]

mod imaged;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let mut parts = bytes.splitn(3, |b| *b == 0);
    let header = parts.next().unwrap_or_default();
    let [markers, samples] = ["raw.vmrk", "raw.eeg"].map(|name| (name, parts.next().unwrap_or_default()));
    for (name, part) in [markers, samples] {
        imaged::file::with(name, part, |_| ());
    }
    imaged::file::with("raw.vhdr", header, imaged::image);
});
