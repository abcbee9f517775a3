//! Files that are not read, by name: what they are, and the way out.

use std::path::Path;

use crate::archive::Record;

/// What a file begins with at a place, what it is, and what to do.
const BEGINNINGS: &[(usize, &[u8], &str)] = &[
    (0, b"version https://git-lfs", "it is the pointer of Git LFS, not the file: run git lfs pull"),
    (0, b"\x89HDF", "it is an HDF5 file (Keras, MATLAB), which is not read: save it as .npz"),
    (
        257,
        b"ustar",
        "it is a tar archive: unpack it (one of PyTorch before 0.1.10: load it in PyTorch and save it again)",
    ),
    (0, b"FUGG", "it is a GGUF file of a big-endian machine"),
    (0, b"lmgg", GGML),
    (0, b"fmgg", GGML),
    (0, b"tjgg", GGML),
    (0, b"algg", GGML),
    (4, b"TFL3", "it is a model of TensorFlow Lite, which is not read: take the weights that it was made from"),
    (0, b"MATLAB 5", "it is a MATLAB file, which holds data, not weights"),
    (0, b"\x1f\x8b", "it is compressed by gzip: gunzip it"),
    (0, b"BZh", "it is compressed by bzip2: bunzip2 it"),
    (0, b"\xfd7zXZ", "it is compressed by xz: unxz it"),
    (0, b"\x28\xb5\x2f\xfd", "it is compressed by zstd: unzstd it"),
    (0, b"7z\xbc\xaf", "it is a 7z archive: unpack it"),
    (0, b"Rar!", "it is a RAR archive: unpack it"),
    (0, b"PAR1", "it is a Parquet file, which holds data, not weights"),
    (0, b"%PDF", "it is a PDF"),
];
const GGML: &str = "it is a ggml file from before GGUF: convert it with llama.cpp or whisper.cpp";
const PAGE: &str = "it is a web page, not the file: the download was answered by a page (a login, a missing file?)";
const ONNX: &str = "not a valid ONNX file: it does not begin with the version of its format and what follows it";
const ORT: &str =
    "it is a model in onnxruntime's own format, which is not read: take the ONNX file that it was made from";
const TENSORFLOW: &str = "it is a checkpoint or model of TensorFlow, which is not read: save the weights as .npz (numpy.savez) or .safetensors";
const MSGPACK: &str = "it is a msgpack file (Flax, JAX), which is not read: save it by safetensors.flax.save_file";

/// What an unknown file is.
pub(crate) fn file(path: &Path, start: &[u8]) -> String {
    if start.is_empty() {
        return "it is empty".into();
    }
    let begins = |(at, bytes, _): &&(usize, &[u8], &str)| start.get(*at..).is_some_and(|rest| rest.starts_with(bytes));
    if let Some((.., what)) = BEGINNINGS.iter().find(begins) {
        return (*what).into();
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
    let ends = |endings: &[&str]| endings.iter().any(|e| name.ends_with(e));
    let text = String::from_utf8_lossy(start).trim_start().to_ascii_lowercase();
    // A map of one entry or a few.
    let msgpack = matches!(start[0], 0x81..=0x8f | 0xde | 0xdf);
    let what = match () {
        () if text.starts_with("<!doctype") || text.starts_with("<html") || text.starts_with("<?xml") => PAGE,
        () if ends(&[".onnx"]) => ONNX,
        () if ends(&[".ort"]) => ORT,
        () if name.contains(".data-0") || ends(&[".index", ".pb", ".pbtxt"]) => TENSORFLOW,
        () if ends(&[".msgpack"]) || msgpack && !ends(&[".safetensors"]) => MSGPACK,
        () if start[0] == 0x80 => {
            "it is a pickle, but none of torch.save: save the weights with torch.save or safetensors"
        }
        () if start[0] == b'{' || start[0] == b'[' => "it is JSON, and no index of a sharded checkpoint",
        () if ends(&[".tar"]) => "it is a tar archive, or was one: unpack it",
        () if ends(&[".safetensors"]) => "not a valid safetensors file: it does not begin with the length of a header",
        () => {
            let hex: Vec<String> = start.iter().take(8).map(|b| format!("{b:02x}")).collect();
            return format!(
                "no checkpoint of a known format (safetensors, PyTorch, npz, npy, GGUF, ONNX): it begins with {}",
                hex.join(" ")
            );
        }
    };
    what.into()
}

/// What a zip archive is that is neither PyTorch's nor NumPy's.
pub(crate) fn archive(records: &[Record]) -> String {
    let has = |name: &str| records.iter().any(|r| r.name == name || r.name.ends_with(&format!("/{name}")));
    let ends = |ending: &str| records.iter().find(|r| r.name.ends_with(ending));
    if has("model.weights.h5") {
        return "it is a Keras model (.keras), whose weights are HDF5, which is not read: save them as .npz".into();
    }
    if has("archive_format") || has("serialized_exported_program.json") || ends(".pt2").is_some() {
        return "it is an exported program of PyTorch (torch.export): save model.state_dict() instead".into();
    }
    for ending in [".safetensors", ".gguf", ".pt", ".pth", ".bin", ".ckpt"] {
        if let Some(record) = ends(ending) {
            return format!("it is a zip archive of other files, {:.80} among them: unpack it", record.name);
        }
    }
    "it is a zip archive, but neither PyTorch's (data.pkl) nor NumPy's (.npy)".into()
}
