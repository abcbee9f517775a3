//! The index of a sharded checkpoint, beside two shards.
#![no_main]

#[path = "file.rs"]
mod file;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    for (name, tensor) in [("a.safetensors", "a"), ("b.safetensors", "b")] {
        let header = format!(r#"{{"{tensor}":{{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}}}"#);
        let shard = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &[7]].concat();
        file::with(name, &shard, |_| ());
    }
    file::with("model.safetensors.index.json", bytes, |path| {
        let _ = zoo_checkpoint::open(path);
    });
});
