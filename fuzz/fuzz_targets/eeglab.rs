//! EEG in EEGLAB's .set, whose variable stands behind a header, and its .fdt: the bytes of the first, as many as two bytes say, and the rest.
#![no_main]

mod imaged;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Some((length, rest)) = bytes.split_at_checked(2) else { return };
    let length = usize::from(u16::from_le_bytes([length[0], length[1]])).min(rest.len());
    let mut set = [b' '; 128];
    set[124..].copy_from_slice(&[0, 1, b'I', b'M']);
    imaged::file::with("beside.fdt", &rest[length..], |_| ());
    imaged::file::with("eeg.set", &[&set, &rest[..length]].concat(), imaged::image);
});
