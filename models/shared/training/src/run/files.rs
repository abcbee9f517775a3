use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::config::ConfigFile;
use crate::{Error, Result};

/// What the names of checkpoints begin with.
pub(super) const STEP: &str = "step-";

/// The names of the files in a run directory. Nothing is opened or locked.
#[derive(Clone, Debug)]
pub struct RunFiles {
    path: PathBuf,
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
        self.config().exists()
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
        self.path.join("config.toml")
    }

    /// A line for every logged step, evaluation and rollout.
    pub fn metrics(&self) -> PathBuf {
        self.path.join("metrics.jsonl")
    }

    /// A line for every health check.
    pub fn health(&self) -> PathBuf {
        self.path.join("health.jsonl")
    }

    /// What the run was last begun or resumed with.
    pub fn record(&self) -> PathBuf {
        self.path.join("accepted.json")
    }

    /// The weights of the best evaluation.
    pub fn best(&self) -> PathBuf {
        self.path.join("best.safetensors")
    }

    /// The weights of the last step.
    pub fn last(&self) -> PathBuf {
        self.path.join("last.safetensors")
    }

    /// The folder of the checkpoints.
    pub fn checkpoints(&self) -> PathBuf {
        self.path.join("checkpoints")
    }

    pub(super) fn lock(&self) -> PathBuf {
        self.path.join(".lock")
    }

    /// The weights that the run stands for: its best ones, or else its last.
    pub fn weights(&self) -> PathBuf {
        if self.best().exists() { self.best() } else { self.last() }
    }

    /// Whether there is a checkpoint to resume from.
    pub fn has_checkpoint(&self) -> bool {
        let whole = |e: std::io::Result<std::fs::DirEntry>| e.is_ok_and(|e| e.path().extension().is_none());
        std::fs::read_dir(self.checkpoints()).is_ok_and(|mut all| all.any(whole))
    }

    /// The model that the run trains, if that is on record.
    pub fn model(&self) -> Option<String> {
        let record: Value = serde_json::from_str(&std::fs::read_to_string(self.record()).ok()?).ok()?;
        record["model"].as_str().map(String::from)
    }

    /// The configuration, as a file to lay over defaults.
    ///
    /// # Errors
    /// There is no run, or its `config.toml` cannot be read.
    pub fn read_config(&self) -> Result<ConfigFile> {
        self.clone().required()?;
        ConfigFile::read(&self.config())
    }
}
