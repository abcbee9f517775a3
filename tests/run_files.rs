//! The files that a run leaves, to be compared byte for byte.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

pub(crate) type Outcome = Result<(), Box<dyn std::error::Error>>;
pub(crate) type Files = BTreeMap<String, Vec<u8>>;

/// Files by their path in the run, without pictures and lock; `metrics.jsonl` without its wall times.
pub(crate) fn contents(run: &Path) -> Result<Files, Box<dyn std::error::Error>> {
    let (mut files, mut folders) = (BTreeMap::new(), vec![run.to_path_buf()]);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder)? {
            let path = entry?.path();
            let name = path.strip_prefix(run)?.display().to_string();
            if path.is_dir() {
                folders.push(path);
            } else if name.contains(".tmp") {
                // What a killed run was at is removed by the next.
            } else if name == "metrics.jsonl" {
                let mut text = String::new();
                for line in std::fs::read_to_string(path)?.lines() {
                    let mut line: Value = serde_json::from_str(line)?;
                    line.as_object_mut().map(|l| l.remove("seconds"));
                    text.push_str(&format!("{line}\n"));
                }
                files.insert(name, text.into_bytes());
            } else if !name.starts_with("curves") && name != ".lock" && name != "config.toml" {
                files.insert(name, std::fs::read(path)?);
            }
        }
    }
    Ok(files)
}

/// Where an extra checkpoint was taken, other old ones and other good weights are still kept: only what is newest counts.
pub(crate) fn at_the_end(mut files: Files) -> Files {
    let folder = |name: &str| name.strip_prefix("checkpoints/step-").map(|n| n[..8].to_string());
    let last = files.keys().filter_map(|n| folder(n)).max();
    files.retain(|name, _| !name.starts_with("checkpoints/best-") && (folder(name).is_none() || folder(name) == last));
    files
}

pub(crate) fn assert_same(found: Files, expected: &Files) -> Outcome {
    assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
    for (name, bytes) in expected {
        assert!(found[name] == *bytes, "{name} differs");
    }
    for name in ["last.safetensors", "best.safetensors", "metrics.jsonl"] {
        assert!(expected.contains_key(name), "{name}");
    }
    Ok(())
}
