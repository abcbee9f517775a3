use std::collections::BTreeMap;
use std::fs::TryLockError;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use serde_json::Value;
use zoo_checkpoint::{Folder, Kind};

use crate::config::ConfigFile;
use crate::{Error, Result};

pub(super) const CONFIG: &str = "config.toml";
pub(crate) const METRICS: &str = "metrics.jsonl";
pub(super) const HEALTH: &str = "health.jsonl";
pub(super) const RECORD: &str = "accepted.json";
pub(super) const BEST: &str = "best.safetensors";
pub(super) const LAST: &str = "last.safetensors";
pub(super) const CHECKPOINTS: &str = "checkpoints";
pub(super) const LOCK: &str = ".lock";
/// What the names of checkpoints begin with.
pub(super) const STEP: &str = "step-";

/// Bytes of a text that describes something, and of one of many lines; what is longer is not read.
pub(crate) const LONGEST_TEXT: u64 = 1 << 24;
pub(crate) const LONGEST_LINES: u64 = 1 << 33;

/// The names of the files in a run directory. Nothing is opened or locked.
#[derive(Clone, Debug)]
pub struct RunFiles {
    path: PathBuf,
}

/// What a run is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RunState {
    /// A process of this machine trains.
    Running,
    /// It ended: `finished`, `early`, `interrupted`, or `failed: …`.
    Ended(String),
    /// No process of this machine trains, and no end is on record: it was killed, or another machine trains.
    Silent,
}

impl RunFiles {
    /// Those of the run at `path`, which need not be there.
    pub fn at(path: &Path) -> Self {
        Self { path: path.to_path_buf() }
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether there is a run.
    pub fn exist(&self) -> bool {
        std::fs::symlink_metadata(self.config()).is_ok()
    }

    /// The same files, if there is a run.
    ///
    /// # Errors
    /// There is none.
    pub fn required(self) -> Result<Self> {
        if self.exist() { Ok(self) } else { Err(Error::NotARun(self.path)) }
    }

    /// The resolved configuration.
    pub fn config(&self) -> PathBuf {
        self.path.join(CONFIG)
    }

    /// A line for every logged step, evaluation and rollout.
    pub fn metrics(&self) -> PathBuf {
        self.path.join(METRICS)
    }

    /// A line for every health check.
    pub fn health(&self) -> PathBuf {
        self.path.join(HEALTH)
    }

    /// What the run was last begun or resumed with.
    pub fn record(&self) -> PathBuf {
        self.path.join(RECORD)
    }

    /// The weights of the best evaluation.
    pub fn best(&self) -> PathBuf {
        self.path.join(BEST)
    }

    /// The weights of the last step.
    pub fn last(&self) -> PathBuf {
        self.path.join(LAST)
    }

    /// The folder of the checkpoints.
    pub fn checkpoints(&self) -> PathBuf {
        self.path.join(CHECKPOINTS)
    }

    /// The weights in the newest checkpoint, and its step: the average of them where the run keeps one.
    pub fn newest_weights(&self) -> Option<(PathBuf, u64)> {
        let step = self.checkpoint_steps().ok()?.pop()?;
        let folder = Folder::open(&self.path).ok()?.folder(CHECKPOINTS, false).ok()?;
        let folder = folder.folder(&super::step_name(step), false).ok()?;
        let there = |name: &&str| folder.kind(name).is_ok_and(|kind| kind == Some(Kind::File));
        let name = [super::checkpoint::AVERAGE, super::checkpoint::MODEL].into_iter().find(there)?;
        Some((folder.path().join(name), step))
    }

    /// Whether there is a checkpoint to resume from.
    pub fn has_checkpoint(&self) -> bool {
        self.checkpoint_steps().is_ok_and(|steps| !steps.is_empty())
    }

    /// The steps of its checkpoints, in order.
    ///
    /// # Errors
    /// The folder of the checkpoints is a link, or cannot be read.
    pub fn checkpoint_steps(&self) -> Result<Vec<u64>> {
        let folder = Folder::open(&self.path)?;
        match folder.kind(CHECKPOINTS)? {
            None => Ok(vec![]),
            Some(_) => super::numbered(&folder.folder(CHECKPOINTS, false)?),
        }
    }

    /// The tensors of the checkpoint of a step: the weights by their names, and the optimizer's state, as the file has it.
    ///
    /// # Errors
    /// There is none, or it is damaged.
    pub fn checkpoint(&self, step: u64) -> Result<[BTreeMap<String, Tensor>; 2]> {
        let checkpoints = Folder::open(&self.path)?.folder(CHECKPOINTS, false)?;
        let folder = checkpoints.folder(&super::step_name(step), false)?;
        let saved = super::checkpoint::read(&folder, &checkpoints, &Device::Cpu)?;
        Ok([saved.model, saved.optimizer])
    }

    /// The text of one of its files, if it is there.
    ///
    /// # Errors
    /// It is a link or no regular file, longer than `most` bytes, or not UTF-8.
    pub(crate) fn text(&self, name: &str, most: u64) -> Result<Option<String>> {
        if !self.path.is_dir() {
            return Ok(None);
        }
        let folder = Folder::open(&self.path)?;
        Ok(match folder.kind(name)? {
            None => None,
            Some(_) => Some(folder.text(name, most)?),
        })
    }

    /// The lines of `metrics.jsonl`; none where it is not there.
    ///
    /// # Errors
    /// It is a link or no regular file, longer than 8 GiB, or not UTF-8.
    pub fn metrics_text(&self) -> Result<Option<String>> {
        self.text(METRICS, LONGEST_LINES)
    }

    /// Those of `health.jsonl`.
    ///
    /// # Errors
    /// As [`RunFiles::metrics_text`].
    pub fn health_text(&self) -> Result<Option<String>> {
        self.text(HEALTH, LONGEST_LINES)
    }

    /// What the run was last begun or resumed with, if that is on record.
    fn on_record(&self) -> Option<Value> {
        serde_json::from_str(&self.text(RECORD, LONGEST_TEXT).ok()??).ok()
    }

    /// The model that the run trains, if that is on record.
    pub fn model(&self) -> Option<String> {
        self.on_record()?["model"].as_str().map(String::from)
    }

    /// The [fingerprint](crate::Task::fingerprint) of its data, if that is on record.
    pub fn data(&self) -> Option<String> {
        self.on_record()?["data"].as_str().map(String::from)
    }

    /// How many steps the run is to have in all, if that is on record (from 0.2 on).
    pub fn total_steps(&self) -> Option<u64> {
        self.on_record()?["total_steps"].as_u64()
    }

    /// How many training samples it has, if that is on record (from 0.2 on).
    pub fn samples(&self) -> Option<u64> {
        self.on_record()?["samples"].as_u64()
    }

    /// The step at which the run begins, if another run did those before (see [`Trainer::fork`](crate::Trainer::fork)); 0 otherwise.
    pub fn begins_at(&self) -> u64 {
        self.on_record().and_then(|record| record["begins_at"].as_u64()).unwrap_or(0)
    }

    /// What the run is doing, as far as its files tell.
    pub fn state(&self) -> RunState {
        if let Some(end) = self.on_record().and_then(|record| record["end"].as_str().map(String::from)) {
            return RunState::Ended(end);
        }
        // Held for a moment only; a process that begins to train meanwhile tries again. A file system without locks tells
        // nothing.
        let lock = Folder::open(&self.path).and_then(|folder| folder.file(LOCK));
        match lock.map(|lock| lock.try_lock_shared()) {
            Ok(Err(TryLockError::WouldBlock)) => RunState::Running,
            _ => RunState::Silent,
        }
    }

    /// The configuration, as a file to lay over defaults.
    ///
    /// # Errors
    /// There is no run, or its `config.toml` cannot be read.
    pub fn read_config(&self) -> Result<ConfigFile> {
        let absent = || Error::NotARun(self.path.clone());
        let text = self.text(CONFIG, LONGEST_TEXT)?.ok_or_else(absent)?;
        ConfigFile::parse(&text, &self.config().display().to_string())
    }
}
