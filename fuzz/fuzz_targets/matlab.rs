//! MATLAB's files. If the first byte is even, the rest is a variable that is wrapped in a header.
#![no_main]

#[path = "file.rs"]
mod file;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Some((first, rest)) = bytes.split_first() else { return };
    let mut header = [b' '; 128];
    header[116..].copy_from_slice(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 1, b'I', b'M']);
    let whole = if first % 2 == 0 { [&header[..], rest].concat() } else { rest.to_vec() };
    file::with("file.mat", &whole, |path| {
        let _ = zoo_checkpoint::matlab::read(path);
    });
});
