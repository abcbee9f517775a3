//! The run directory: configuration, metrics, checkpoints, weights.
//!
//! A checkpoint is written under a temporary name, its manifest with sizes and hashes last, and moved into place: it is
//! there whole or not at all.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::Write;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{Error, Result, State};

/// What a weights file says about itself, in its metadata.
#[derive(Clone, Debug)]
pub struct Description {
    /// The model's name.
    pub model: String,
    /// The tables `model`, `data` and `train`.
    pub config: Value,
    /// What was fitted to the training data.
    pub fitted: Value,
}

impl Description {
    /// As safetensors metadata.
    pub fn metadata(&self) -> BTreeMap<String, String> {
        BTreeMap::from([
            ("model".into(), self.model.clone()),
            ("config".into(), self.config.to_string()),
            ("fitted".into(), self.fitted.to_string()),
            ("zoo_version".into(), env!("CARGO_PKG_VERSION").into()),
        ])
    }

    /// From the metadata of the file at `path`.
    ///
    /// # Errors
    /// The file was not written by a training run; the message says so.
    pub fn parse(metadata: &BTreeMap<String, String>, path: &Path) -> Result<Self> {
        let get = |key: &str| {
            let missing =
                || Error::Run(format!("{}: no {key} in its metadata: not weights of zoo train", path.display()));
            metadata.get(key).ok_or_else(missing)
        };
        let json = |key: &str| {
            let text = get(key)?;
            serde_json::from_str(text)
                .map_err(|e| Error::Run(format!("{}: {key} in its metadata: {e}", path.display())))
        };
        Ok(Self { model: get("model")?.clone(), config: json("config")?, fitted: json("fitted")? })
    }
}

#[derive(Serialize, Deserialize)]
struct Manifest {
    step: u64,
    files: BTreeMap<String, FileRecord>,
}

#[derive(Serialize, Deserialize)]
struct FileRecord {
    bytes: u64,
    sha256: String,
}

const MODEL: &str = "model.safetensors";
const OPTIMIZER: &str = "optimizer.safetensors";
const STATE: &str = "state.json";
const MANIFEST: &str = "manifest.json";
const TEMPORARY: &str = ".tmp";

/// A checkpoint as it was read back.
pub(crate) struct Saved {
    pub(crate) model: BTreeMap<String, Tensor>,
    pub(crate) optimizer: BTreeMap<String, Tensor>,
    pub(crate) state: State,
}

/// A directory that belongs to one run, locked while it is open.
pub struct RunDirectory {
    path: PathBuf,
    _lock: File,
}

impl RunDirectory {
    /// Makes a new run directory and writes its `config.toml`.
    ///
    /// # Errors
    /// The directory holds a run already, or cannot be made.
    pub fn create(path: &Path, config: &str) -> Result<Self> {
        if path.join("config.toml").exists() {
            let path = path.display();
            return Err(Error::Usage(format!(
                "{path} holds a run already: continue it with --resume {path}, or choose another --out"
            )));
        }
        fs::create_dir_all(path.join("checkpoints")).map_err(Error::io(path))?;
        let run = Self::lock(path)?;
        run.set_config(config)?;
        Ok(run)
    }

    /// Replaces `config.toml`.
    ///
    /// # Errors
    /// It cannot be written; the old one stays then.
    pub fn set_config(&self, config: &str) -> Result<()> {
        Ok(zoo_checkpoint::replace(&self.path.join("config.toml"), |f| f.write_all(config.as_bytes()))?)
    }

    /// Opens a run to continue it; what an interrupted save left behind is removed.
    ///
    /// # Errors
    /// There is no run, or another process is at work in it.
    pub fn open(path: &Path) -> Result<Self> {
        if !path.join("config.toml").exists() {
            return Err(Error::Run(format!("{} is not a run directory: it has no config.toml", path.display())));
        }
        let run = Self::lock(path)?;
        for entry in run.entries()? {
            if entry.to_string_lossy().ends_with(TEMPORARY) {
                fs::remove_dir_all(&entry).map_err(Error::io(&entry))?;
            }
        }
        Ok(run)
    }

    fn lock(path: &Path) -> Result<Self> {
        let file = path.join(".lock");
        let lock = OpenOptions::new().create(true).truncate(false).write(true).open(&file).map_err(Error::io(&file))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(Error::Run(format!("{} is in use by another process", path.display())));
            }
            Err(TryLockError::Error(e)) => return Err(Error::io(&file)(e)),
        }
        Ok(Self { path: path.to_path_buf(), _lock: lock })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The weights of the best evaluation.
    pub fn best(&self) -> PathBuf {
        self.path.join("best.safetensors")
    }

    /// The weights of the last step.
    pub fn last(&self) -> PathBuf {
        self.path.join("last.safetensors")
    }

    fn entries(&self) -> Result<Vec<PathBuf>> {
        let directory = self.path.join("checkpoints");
        let mut entries = vec![];
        for entry in fs::read_dir(&directory).map_err(Error::io(&directory))? {
            entries.push(entry.map_err(Error::io(&directory))?.path());
        }
        entries.sort();
        Ok(entries)
    }

    /// The checkpoints, oldest first.
    fn checkpoints(&self) -> Result<Vec<PathBuf>> {
        let numbered = |p: &PathBuf| {
            let name = p.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
            name.strip_prefix("step-").is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
        };
        Ok(self.entries()?.into_iter().filter(numbered).collect())
    }

    /// Appends a line to `metrics.jsonl`.
    pub(crate) fn log(&self, line: &Value) -> Result<()> {
        let path = self.path.join("metrics.jsonl");
        let append = || writeln!(OpenOptions::new().create(true).append(true).open(&path)?, "{line}");
        append().map_err(Error::io(&path))
    }

    /// Drops the lines of `metrics.jsonl` after `step`, and a line that a crash cut short.
    fn cut_log(&self, step: u64) -> Result<()> {
        let path = self.path.join("metrics.jsonl");
        let Ok(text) = fs::read_to_string(&path) else { return Ok(()) };
        let keep = |line: &&str| {
            let parsed = serde_json::from_str::<Value>(line).ok();
            parsed.and_then(|v| v["step"].as_u64()).is_some_and(|s| s <= step)
        };
        let kept: String = text.lines().filter(keep).flat_map(|l| [l, "\n"]).collect();
        Ok(zoo_checkpoint::replace(&path, |f| f.write_all(kept.as_bytes()))?)
    }

    /// Saves a checkpoint and drops old ones, but for the last `keep`.
    pub(crate) fn save(
        &self,
        weights: &[(String, Tensor)],
        metadata: &BTreeMap<String, String>,
        optimizer: &[(String, Tensor)],
        state: &State,
        keep: usize,
    ) -> Result<()> {
        let name = format!("step-{:08}", state.step);
        let directory = self.path.join("checkpoints");
        let (temporary, target) = (directory.join(format!("{name}{TEMPORARY}")), directory.join(&name));
        if target.exists() {
            return Ok(());
        }
        fs::create_dir_all(&temporary).map_err(Error::io(&temporary))?;
        zoo_checkpoint::write(&temporary.join(MODEL), weights, metadata)?;
        zoo_checkpoint::write(&temporary.join(OPTIMIZER), optimizer, &BTreeMap::new())?;
        let json = |path: PathBuf, text: serde_json::Result<String>| -> Result<()> {
            let text = text.map_err(|e| Error::Run(format!("{}: {e}", path.display())))?;
            Ok(zoo_checkpoint::replace(&path, |f| f.write_all(text.as_bytes()))?)
        };
        json(temporary.join(STATE), serde_json::to_string_pretty(state))?;
        let record = |file: &str| -> Result<(String, FileRecord)> {
            let path = temporary.join(file);
            let bytes = fs::metadata(&path).map_err(Error::io(&path))?.len();
            Ok((file.to_string(), FileRecord { bytes, sha256: zoo_checkpoint::sha256(&path)? }))
        };
        let files = [MODEL, OPTIMIZER, STATE].into_iter().map(record).collect::<Result<_>>()?;
        json(temporary.join(MANIFEST), serde_json::to_string_pretty(&Manifest { step: state.step, files }))?;
        fs::rename(&temporary, &target).map_err(Error::io(&target))?;
        zoo_checkpoint::sync_directory(&directory)?;
        let all = self.checkpoints()?;
        for old in &all[..all.len().saturating_sub(keep)] {
            fs::remove_dir_all(old).map_err(Error::io(old))?;
        }
        Ok(())
    }

    /// The newest checkpoint that is whole, with a warning for each damaged one; those are moved aside, so that they
    /// neither count as checkpoints nor stand in the way of new ones.
    pub(crate) fn latest(&self, device: &Device) -> Result<(Saved, Vec<String>)> {
        let (mut warnings, mut damaged): (Vec<String>, Vec<PathBuf>) = (vec![], vec![]);
        for path in self.checkpoints()?.into_iter().rev() {
            match Self::read(&path, device) {
                Ok(saved) => {
                    for path in damaged {
                        let mut aside = path.clone().into_os_string();
                        aside.push(".damaged");
                        if Path::new(&aside).exists() {
                            fs::remove_dir_all(&aside).map_err(Error::io(Path::new(&aside)))?;
                        }
                        fs::rename(&path, &aside).map_err(Error::io(&path))?;
                    }
                    self.cut_log(saved.state.step)?;
                    return Ok((saved, warnings));
                }
                Err(e) => {
                    warnings.push(format!("{} is damaged, using the one before: {e}", path.display()));
                    damaged.push(path);
                }
            }
        }
        let damaged = warnings.first().map_or(String::new(), |w| format!(" ({w})"));
        Err(Error::Run(format!("{} has no valid checkpoint to resume from{damaged}", self.path.display())))
    }

    fn read(path: &Path, device: &Device) -> Result<Saved> {
        let json = |name: &str| -> Result<String> {
            let path = path.join(name);
            fs::read_to_string(&path).map_err(Error::io(&path))
        };
        let invalid = |name: &str, e: serde_json::Error| Error::Run(format!("{}: {e}", path.join(name).display()));
        let manifest: Manifest = serde_json::from_str(&json(MANIFEST)?).map_err(|e| invalid(MANIFEST, e))?;
        for (name, record) in &manifest.files {
            let file = path.join(name);
            let bytes = fs::metadata(&file).map_err(Error::io(&file))?.len();
            if bytes != record.bytes || zoo_checkpoint::sha256(&file)? != record.sha256 {
                return Err(Error::Run(format!("{} is not what was written (size or hash differ)", file.display())));
            }
        }
        let state = serde_json::from_str(&json(STATE)?).map_err(|e| invalid(STATE, e))?;
        let tensors = |name: &str| zoo_checkpoint::read(&path.join(name), device).map(|c| c.tensors);
        Ok(Saved { model: tensors(MODEL)?, optimizer: tensors(OPTIMIZER)?, state })
    }
}
