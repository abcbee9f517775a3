use std::collections::BTreeMap;

use candle_core::{Device, Tensor};
use serde::{Deserialize, Serialize};
use zoo_checkpoint::Folder;

use super::{LONGEST_TEXT, best_name};
use crate::{Error, Result, State};

#[derive(Serialize, Deserialize)]
struct Manifest {
    /// Version of this format and of the files it lists: 0 where none is written, as by 0.1.
    #[serde(default)]
    version: u64,
    step: u64,
    files: BTreeMap<String, FileRecord>,
    /// Best weights that lie beside the checkpoint.
    best: BTreeMap<String, FileRecord>,
}

#[derive(Clone, Serialize, Deserialize, PartialEq)]
pub(crate) struct FileRecord {
    bytes: u64,
    sha256: String,
}

impl FileRecord {
    fn of(folder: &Folder, name: &str) -> Result<Self> {
        let (bytes, sha256) = folder.sha256(name)?;
        Ok(Self { bytes, sha256 })
    }

    pub(super) fn verify(&self, folder: &Folder, name: &str) -> Result<()> {
        if Self::of(folder, name)? != *self {
            let path = folder.path().join(name);
            return Err(Error::Run(format!("{} is not what was written (size or hash differ)", path.display())));
        }
        Ok(())
    }
}

/// Version of manifest and state.
const VERSION: u64 = 1;
pub(super) const MODEL: &str = "model.safetensors";
pub(super) const AVERAGE: &str = "average.safetensors";
const OPTIMIZER: &str = "optimizer.safetensors";
const STATE: &str = "state.json";
const EXPERIENCE: &str = "experience.safetensors";
const MANIFEST: &str = "manifest.json";

/// What a checkpoint holds, copied at the end of a step: it is written while training goes on.
pub(crate) struct Snapshot {
    pub(crate) weights: Vec<(String, Tensor)>,
    pub(crate) metadata: BTreeMap<String, String>,
    pub(crate) optimizer: Vec<(String, Tensor)>,
    /// Moving average of the weights, if the run has one.
    pub(crate) average: Option<Vec<(String, Tensor)>>,
    /// The samples at hand, if the model made them itself.
    pub(crate) experience: Option<Vec<(String, Tensor)>>,
    pub(crate) state: State,
}

/// A checkpoint as it was read back.
pub(crate) struct Saved {
    pub(crate) model: BTreeMap<String, Tensor>,
    pub(crate) optimizer: BTreeMap<String, Tensor>,
    pub(crate) average: Option<BTreeMap<String, Tensor>>,
    pub(crate) experience: Option<BTreeMap<String, Tensor>>,
    pub(crate) state: State,
    /// Best weights that are missing or damaged, by name.
    pub(crate) lost: Vec<(String, FileRecord)>,
}

/// Writes all files of a checkpoint to `folder`, the manifest last; `best` are files of the folder that it is in, `beside`.
pub(super) fn fill(folder: &Folder, beside: &Folder, snapshot: &Snapshot, best: &[String]) -> Result<()> {
    let Snapshot { weights, metadata, optimizer, average, experience, state } = snapshot;
    folder.create_weights(MODEL, weights, metadata)?;
    folder.create_weights(OPTIMIZER, optimizer, &BTreeMap::new())?;
    let mut names = vec![MODEL, OPTIMIZER, STATE];
    if let Some(average) = average {
        folder.create_weights(AVERAGE, average, metadata)?;
        names.push(AVERAGE);
    }
    if let Some(experience) = experience {
        folder.create_weights(EXPERIENCE, experience, &BTreeMap::new())?;
        names.push(EXPERIENCE);
    }
    let json = |name: &str, text: serde_json::Result<String>| -> Result<()> {
        let text = text.map_err(|e| Error::Run(format!("{}: {e}", folder.path().join(name).display())))?;
        Ok(folder.create(name, |f| f.write_all(text.as_bytes()))?)
    };
    json(STATE, serde_json::to_string_pretty(&State { version: VERSION, ..state.clone() }))?;
    let record = |folder: &Folder, name: &str| Ok((name.to_string(), FileRecord::of(folder, name)?));
    let manifest = Manifest {
        version: VERSION,
        step: state.step,
        files: names.iter().map(|name| record(folder, name)).collect::<Result<_>>()?,
        best: best.iter().map(|name| record(beside, name)).collect::<Result<_>>()?,
    };
    json(MANIFEST, serde_json::to_string_pretty(&manifest))
}

/// The state alone.
pub(super) fn state(folder: &Folder) -> Result<State> {
    let state: State = json(folder, STATE)?;
    check_version(folder, STATE, state.version)?;
    Ok(state)
}

/// Refuses what a newer program wrote, which may mean something else by the same names.
fn check_version(folder: &Folder, name: &str, found: u64) -> Result<()> {
    if found > VERSION {
        return Err(Error::NewerFormat { path: folder.path().join(name), found, known: VERSION });
    }
    Ok(())
}

fn json<T: serde::de::DeserializeOwned>(folder: &Folder, name: &str) -> Result<T> {
    let text = folder.text(name, LONGEST_TEXT)?;
    serde_json::from_str(&text).map_err(|e| Error::Run(format!("{}: {e}", folder.path().join(name).display())))
}

/// Reads the checkpoint in `folder`, which is in `beside`, if all of it is what was written.
pub(super) fn read(folder: &Folder, beside: &Folder, device: &Device) -> Result<Saved> {
    let manifest: Manifest = json(folder, MANIFEST)?;
    check_version(folder, MANIFEST, manifest.version)?;
    let wrong = |what: String| Err(Error::Run(format!("{}: {what}", folder.path().join(MANIFEST).display())));
    if let Some(name) = [MODEL, OPTIMIZER, STATE].iter().find(|name| !manifest.files.contains_key(**name)) {
        return wrong(format!("it does not list {name}"));
    }
    for (name, record) in &manifest.files {
        if ![MODEL, OPTIMIZER, STATE, AVERAGE, EXPERIENCE].contains(&name.as_str()) {
            return wrong(format!("it lists {name:.60?}, which is no file of a checkpoint"));
        }
        record.verify(folder, name)?;
    }
    let state = state(folder)?;
    if let Some(name) = manifest.best.keys().find(|name| !state.best.iter().any(|(_, s)| best_name(*s) == **name)) {
        return wrong(format!("it lists {name:.60?} among the best weights, which the state does not"));
    }
    let lost = manifest.best.iter().filter(|(name, record)| record.verify(beside, name).is_err());
    let lost = lost.map(|(name, record)| (name.clone(), record.clone())).collect();
    let tensors = |name: &str, device: &Device| -> Result<BTreeMap<String, Tensor>> {
        Ok(folder.checkpoint(name)?.read(device)?.tensors)
    };
    let listed = |name: &'static str| Some(name).filter(|name| manifest.files.contains_key(*name));
    Ok(Saved {
        model: tensors(MODEL, device)?,
        optimizer: tensors(OPTIMIZER, device)?,
        average: listed(AVERAGE).map(|name| tensors(name, device)).transpose()?,
        experience: listed(EXPERIENCE).map(|name| tensors(name, &Device::Cpu)).transpose()?,
        state,
        lost,
    })
}
