use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use candle_core::{Device, Tensor};
use serde::{Deserialize, Serialize};

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
    fn of(path: &Path) -> Result<Self> {
        let bytes = fs::metadata(path).map_err(Error::io(path))?.len();
        Ok(Self { bytes, sha256: zoo_checkpoint::sha256(path)? })
    }

    pub(super) fn verify(&self, path: &Path) -> Result<()> {
        if fs::metadata(path).map_err(Error::io(path))?.len() != self.bytes || Self::of(path)? != *self {
            return Err(Error::Run(format!("{} is not what was written (size or hash differ)", path.display())));
        }
        Ok(())
    }
}

/// Version of manifest and state.
const VERSION: u64 = 1;
const MODEL: &str = "model.safetensors";
const AVERAGE: &str = "average.safetensors";
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

/// Writes all files of a checkpoint to `directory`, the manifest last; `best` are files beside it.
pub(super) fn fill(directory: &Path, snapshot: &Snapshot, best: &[String]) -> Result<()> {
    let Snapshot { weights, metadata, optimizer, average, experience, state } = snapshot;
    zoo_checkpoint::create_weights(&directory.join(MODEL), weights, metadata)?;
    zoo_checkpoint::create_weights(&directory.join(OPTIMIZER), optimizer, &BTreeMap::new())?;
    let mut names = vec![MODEL, OPTIMIZER, STATE];
    if let Some(average) = average {
        zoo_checkpoint::create_weights(&directory.join(AVERAGE), average, metadata)?;
        names.push(AVERAGE);
    }
    if let Some(experience) = experience {
        zoo_checkpoint::create_weights(&directory.join(EXPERIENCE), experience, &BTreeMap::new())?;
        names.push(EXPERIENCE);
    }
    let json = |name: &str, text: serde_json::Result<String>| -> Result<()> {
        let path = directory.join(name);
        let text = text.map_err(|e| Error::Run(format!("{}: {e}", path.display())))?;
        Ok(zoo_checkpoint::create(&path, |f| f.write_all(text.as_bytes()))?)
    };
    json(STATE, serde_json::to_string_pretty(&State { version: VERSION, ..state.clone() }))?;
    let records = |directory: &Path, names: &[&str]| -> Result<BTreeMap<String, FileRecord>> {
        names.iter().map(|name| Ok((name.to_string(), FileRecord::of(&directory.join(name))?))).collect()
    };
    let beside = directory.parent().unwrap_or(directory);
    let best: Vec<&str> = best.iter().map(String::as_str).collect();
    let manifest = Manifest {
        version: VERSION,
        step: state.step,
        files: records(directory, &names)?,
        best: records(beside, &best)?,
    };
    json(MANIFEST, serde_json::to_string_pretty(&manifest))
}

/// The state alone.
pub(super) fn state(directory: &Path) -> Result<State> {
    let path = directory.join(STATE);
    let state: State = json(&path)?;
    check_version(&path, state.version)?;
    Ok(state)
}

/// Refuses what a newer program wrote, which may mean something else by the same names.
fn check_version(path: &Path, found: u64) -> Result<()> {
    if found > VERSION {
        return Err(Error::NewerFormat { path: path.into(), found, known: VERSION });
    }
    Ok(())
}

fn json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T> {
    let text = fs::read_to_string(path).map_err(Error::io(path))?;
    serde_json::from_str(&text).map_err(|e| Error::Run(format!("{}: {e}", path.display())))
}

/// Reads a checkpoint, if all of it is what was written.
pub(super) fn read(directory: &Path, device: &Device) -> Result<Saved> {
    let path = directory.join(MANIFEST);
    let manifest: Manifest = json(&path)?;
    check_version(&path, manifest.version)?;
    for (name, record) in &manifest.files {
        record.verify(&directory.join(name))?;
    }
    let beside = directory.parent().unwrap_or(directory);
    let lost = manifest.best.iter().filter(|(name, record)| record.verify(&beside.join(name)).is_err());
    let lost = lost.map(|(name, record)| (name.clone(), record.clone())).collect();
    let tensors = |name: &str| zoo_checkpoint::read(&directory.join(name), device).map(|c| c.tensors);
    Ok(Saved {
        model: tensors(MODEL)?,
        optimizer: tensors(OPTIMIZER)?,
        average: if manifest.files.contains_key(AVERAGE) { Some(tensors(AVERAGE)?) } else { None },
        experience: match manifest.files.contains_key(EXPERIENCE) {
            true => Some(zoo_checkpoint::read(&directory.join(EXPERIENCE), &Device::Cpu)?.tensors),
            false => None,
        },
        state: state(directory)?,
        lost,
    })
}
