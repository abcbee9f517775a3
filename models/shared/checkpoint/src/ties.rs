//! Tied tensors in formats that hold no tensor twice.

use std::collections::{BTreeMap, HashMap};

use crate::{Source, TensorInfo};

/// The entry that lists the names of tied tensors.
pub(crate) const TIED: &str = "zoo_tied";

/// The format holds no tensor twice: a tied one is an entry of the metadata, its name with that of the tensor which has
/// its values (the convention of safetensors' own `save_model`). The other entries are returned.
pub(crate) fn retie(source: &mut Source, mut metadata: BTreeMap<String, String>) -> BTreeMap<String, String> {
    let ours: Vec<String> = metadata.remove(TIED).and_then(|t| serde_json::from_str(&t).ok()).unwrap_or_default();
    // Any text could be an entry's; those of others must look like it: `lm_head.weight` is `wte.weight`.
    let alike = |a: &str, b: &str| {
        a.rsplit_once('.').is_some_and(|(_, kind)| b.rsplit_once('.').is_some_and(|(_, k)| k == kind))
    };
    let numbers: HashMap<String, usize> = source.tensors.iter().enumerate().map(|(k, t)| (t.name.clone(), k)).collect();
    metadata.retain(|name, of| match numbers.get(of) {
        Some(&k) if !numbers.contains_key(name) && (ours.contains(name) || alike(name, of)) => {
            let tied = TensorInfo { name: name.clone(), tied_to: Some(k), ..source.tensors[k].clone() };
            source.tensors.push(tied);
            false
        }
        _ => true,
    });
    metadata
}
