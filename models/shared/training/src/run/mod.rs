//! The run directory: configuration, metrics, checkpoints, weights.
//!
//! A checkpoint is written under a temporary name, its manifest with sizes and hashes last, and moved into place: it is
//! there whole or not at all.

mod checkpoint;
mod files;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use candle_core::{Device, Tensor};
use serde_json::Value;

pub(crate) use checkpoint::{Saved, Snapshot};
pub use files::RunFiles;

use crate::{Error, Result};

const TEMPORARY: &str = ".tmp";
const BEST: &str = "best-step-";

/// A directory that belongs to one run, locked while it is open.
pub struct RunDirectory {
    files: RunFiles,
    _lock: File,
    metrics: Journal,
    health: Journal,
}

/// A file of lines in JSON, each with its step; open from its first line on.
pub(crate) struct Journal {
    path: PathBuf,
    file: Mutex<Option<File>>,
}

impl Journal {
    fn new(path: PathBuf) -> Self {
        Self { path, file: Mutex::new(None) }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<File>> {
        self.file.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Appends a line.
    pub(crate) fn append(&self, line: &Value) -> Result<()> {
        let mut file = self.lock();
        let mut append = || -> std::io::Result<()> {
            if file.is_none() {
                *file = Some(OpenOptions::new().create(true).append(true).open(&self.path)?);
            }
            // In one write: a line is there whole, or cut short by a crash and dropped on resume.
            file.as_mut().map_or(Ok(()), |f| f.write_all(format!("{line}\n").as_bytes()))
        };
        append().map_err(Error::io(&self.path))
    }

    /// Makes the lines so far durable: a checkpoint must not be there without the lines before it.
    fn sync(&self) -> Result<()> {
        // A handle of its own: waiting for the disk must not hold up the next line.
        let file = self.lock().as_ref().map(File::try_clone).transpose();
        let sync = || file?.map_or(Ok(()), |f| f.sync_data());
        sync().map_err(Error::io(&self.path))
    }

    /// Drops the lines after `step`, and a line that a crash cut short.
    fn cut(&self, step: u64) -> Result<()> {
        *self.lock() = None;
        let text = match fs::read_to_string(&self.path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            text => text.map_err(Error::io(&self.path))?,
        };
        let keep = |line: &&str| {
            let parsed = serde_json::from_str::<Value>(line).ok();
            parsed.and_then(|v| v["step"].as_u64()).is_some_and(|s| s <= step)
        };
        let kept: String = text.lines().filter(keep).flat_map(|l| [l, "\n"]).collect();
        Ok(zoo_checkpoint::replace(&self.path, |f| f.write_all(kept.as_bytes()))?)
    }
}

impl std::ops::Deref for RunDirectory {
    type Target = RunFiles;

    fn deref(&self) -> &RunFiles {
        &self.files
    }
}

impl RunDirectory {
    /// Makes a new run directory and writes its `config.toml`.
    ///
    /// # Errors
    /// The directory holds a run already, or cannot be made.
    pub fn create(path: &Path, config: &str) -> Result<Self> {
        let files = RunFiles::at(path);
        if files.exist() {
            return Err(Error::RunExists(path.into()));
        }
        fs::create_dir_all(files.checkpoints()).map_err(Error::io(path))?;
        let run = Self::lock(path)?;
        if files.exist() {
            return Err(Error::RunExists(path.into()));
        }
        run.set_config(config)?;
        Ok(run)
    }

    /// Replaces `config.toml`.
    ///
    /// # Errors
    /// It cannot be written; the old one stays then.
    pub(crate) fn set_config(&self, config: &str) -> Result<()> {
        Ok(zoo_checkpoint::replace(&self.config(), |f| f.write_all(config.as_bytes()))?)
    }

    /// Opens a run to continue it; what an interrupted save left behind is removed.
    ///
    /// # Errors
    /// There is no run, or another process is at work in it.
    pub fn open(path: &Path) -> Result<Self> {
        RunFiles::at(path).required()?;
        let run = Self::lock(path)?;
        for directory in [path.to_path_buf(), run.checkpoints()] {
            for entry in entries(&directory)?.iter().filter(|e| e.to_string_lossy().ends_with(TEMPORARY)) {
                remove(entry)?;
            }
        }
        Ok(run)
    }

    fn lock(path: &Path) -> Result<Self> {
        let files = RunFiles::at(path);
        let file = files.lock();
        let lock = OpenOptions::new().create(true).truncate(false).write(true).open(&file).map_err(Error::io(&file))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(Error::Run(format!("{} is in use by another process", path.display())));
            }
            Err(TryLockError::Error(e)) => return Err(Error::io(&file)(e)),
        }
        let (metrics, health) = (Journal::new(files.metrics()), Journal::new(files.health()));
        Ok(Self { files, _lock: lock, metrics, health })
    }

    /// The checkpoints by step, oldest first.
    fn numbered(&self) -> Result<Vec<(u64, PathBuf)>> {
        let mut found = vec![];
        for path in entries(&self.checkpoints())? {
            let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
            found.extend(name.strip_prefix(files::STEP).and_then(|n| n.parse().ok()).map(|step| (step, path)));
        }
        found.sort();
        Ok(found)
    }

    /// The journal `metrics.jsonl`.
    pub(crate) fn journal(&self) -> &Journal {
        &self.metrics
    }

    /// The journal `health.jsonl`.
    pub(crate) fn health_journal(&self) -> &Journal {
        &self.health
    }

    /// Writes the weights of a good evaluation; `best.safetensors` becomes another name of them if they are the best.
    pub(crate) fn save_best(
        &self,
        step: u64,
        weights: &[(String, Tensor)],
        metadata: &BTreeMap<String, String>,
        best: bool,
    ) -> Result<()> {
        let path = self.checkpoints().join(best_name(step));
        zoo_checkpoint::write(&path, weights, metadata)?;
        if best {
            zoo_checkpoint::link(&path, &self.best())?;
        }
        Ok(())
    }

    /// Commits a checkpoint, then drops what is no longer needed.
    pub(crate) fn save(&self, snapshot: &Snapshot, keep: usize, every: u64) -> Result<()> {
        let (directory, step) = (self.checkpoints(), snapshot.state.step);
        let target = directory.join(format!("{}{step:08}", files::STEP));
        let temporary = directory.join(format!("{}{step:08}{TEMPORARY}", files::STEP));
        if !target.exists() {
            let best: Vec<String> = snapshot.state.best.iter().map(|(_, step)| best_name(*step)).collect();
            let commit = || -> Result<()> {
                self.metrics.sync()?;
                self.health.sync()?;
                fs::create_dir_all(&temporary).map_err(Error::io(&temporary))?;
                checkpoint::fill(&temporary, snapshot, &best)?;
                zoo_checkpoint::sync_directory(&temporary)?;
                fs::rename(&temporary, &target).map_err(Error::io(&target))?;
                Ok(zoo_checkpoint::sync_directory(&directory)?)
            };
            if let Err(e) = commit() {
                // On a full disk, at least what was written of it is given back.
                let _ = fs::remove_dir_all(&temporary);
                return Err(e);
            }
        }
        self.prune(keep, every)
    }

    /// Drops old checkpoints but for the last `keep` and the last of a step that `every` divides, which is what a rollback
    /// goes back to, and best weights that none of these names.
    pub(crate) fn prune(&self, keep: usize, every: u64) -> Result<()> {
        let all = self.numbered()?;
        let regular = all.iter().rev().find(|(step, _)| step.is_multiple_of(every)).map(|(step, _)| *step);
        let old = all.len().saturating_sub(keep);
        let (leaving, kept): (Vec<_>, Vec<_>) =
            all.into_iter().enumerate().partition(|(i, (step, _))| *i < old && Some(*step) != regular);
        for (_, (_, old)) in leaving {
            discard(&old)?;
        }
        let named: BTreeSet<String> = kept
            .iter()
            .filter_map(|(_, (_, path))| checkpoint::state(path).ok())
            .flat_map(|state| state.best.into_iter().map(|(_, step)| best_name(step)))
            .collect();
        for path in entries(&self.checkpoints())? {
            let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
            if name.starts_with(BEST) && !named.contains(&name) {
                remove(&path)?;
            }
        }
        Ok(())
    }

    /// The newest whole checkpoint among those of the steps that are `wanted`. Nothing is changed yet: see
    /// [`RunDirectory::return_to`].
    ///
    /// # Errors
    /// All are damaged, one is of a newer format, or there are weights without any checkpoint.
    pub(crate) fn latest(&self, device: &Device, wanted: impl Fn(u64) -> bool) -> Result<Found> {
        let mut found = Found { saved: None, damaged: vec![], warnings: vec![] };
        for (_, path) in self.numbered()?.into_iter().rev().filter(|(step, _)| wanted(*step)) {
            match checkpoint::read(&path, device) {
                Ok(mut saved) => {
                    for (name, record) in std::mem::take(&mut saved.lost) {
                        let path = self.checkpoints().join(&name);
                        // The same weights may still lie there under their other name.
                        if record.verify(&self.best()).is_ok() && zoo_checkpoint::link(&self.best(), &path).is_ok() {
                            continue;
                        }
                        let warning = format!("{} is missing or damaged and is no longer counted", path.display());
                        found.warnings.push(warning);
                        saved.state.best.retain(|(_, step)| best_name(*step) != name);
                    }
                    let used = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                    for (damaged, e) in &found.damaged {
                        found.warnings.push(format!("{} is damaged, using {used}: {e}", damaged.display()));
                    }
                    found.saved = Some(saved);
                    return Ok(found);
                }
                // It is whole, and only a newer program knows what is in it.
                Err(e @ Error::NewerFormat { .. }) => return Err(e),
                Err(e) => found.damaged.push((path, e.to_string())),
            }
        }
        let path = self.path().display();
        if let Some((_, e)) = found.damaged.first() {
            return Err(Error::Run(format!("{path} has no valid checkpoint to resume from ({e})")));
        }
        if self.numbered()?.is_empty() && (self.best().exists() || self.last().exists()) {
            return Err(Error::OnlyWeights(self.path().into()));
        }
        Ok(found)
    }

    /// Makes the directory what it was at the checkpoint found: damaged ones after it are moved aside, so that they
    /// neither count nor stand in the way of new ones; later checkpoints and metrics are dropped, and `best.safetensors` is
    /// what it was.
    pub(crate) fn return_to(&self, found: &Found) -> Result<()> {
        for (path, _) in &found.damaged {
            let mut aside = path.clone().into_os_string();
            aside.push(".damaged");
            if Path::new(&aside).exists() {
                remove(Path::new(&aside))?;
            }
            fs::rename(path, &aside).map_err(Error::io(path))?;
        }
        let state = found.saved.as_ref().map(|s| s.state.clone()).unwrap_or_default();
        for (_, later) in self.numbered()?.into_iter().filter(|(step, _)| *step > state.step) {
            discard(&later)?;
        }
        self.metrics.cut(state.step)?;
        self.health.cut(state.step)?;
        match state.best.first() {
            Some((_, step)) => Ok(zoo_checkpoint::link(&self.checkpoints().join(best_name(*step)), &self.best())?),
            None if self.best().exists() => remove(&self.best()),
            None => Ok(()),
        }
    }

    /// What the run was last begun or resumed with, if that is on record.
    pub(crate) fn accepted(&self) -> Result<Option<Value>> {
        let path = self.record();
        match fs::read_to_string(&path) {
            Ok(text) => {
                let value = serde_json::from_str(&text);
                value.map(Some).map_err(|e| Error::Run(format!("{}: {e}", path.display())))
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(Error::io(&path)(e)),
        }
    }

    /// Puts on record what the run goes on with.
    pub(crate) fn accept(&self, what: &Value) -> Result<()> {
        Ok(zoo_checkpoint::replace(&self.record(), |f| write!(f, "{what:#}"))?)
    }
}

/// What [`RunDirectory::latest`] found.
pub(crate) struct Found {
    pub(crate) saved: Option<Saved>,
    /// Damaged checkpoints after it, with what is wrong with them.
    damaged: Vec<(PathBuf, String)>,
    pub(crate) warnings: Vec<String>,
}

fn best_name(step: u64) -> String {
    format!("{BEST}{step:08}.safetensors")
}

fn entries(directory: &Path) -> Result<Vec<PathBuf>> {
    let read = || -> std::io::Result<Vec<PathBuf>> { fs::read_dir(directory)?.map(|e| e.map(|e| e.path())).collect() };
    read().map_err(Error::io(directory))
}

/// Removes a checkpoint, under another name first: half of one must not look like a damaged one.
fn discard(checkpoint: &Path) -> Result<()> {
    let mut leaving = checkpoint.to_path_buf().into_os_string();
    leaving.push(TEMPORARY);
    fs::rename(checkpoint, &leaving).map_err(Error::io(checkpoint))?;
    remove(Path::new(&leaving))
}

fn remove(path: &Path) -> Result<()> {
    let removed = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    removed.map_err(Error::io(path))
}
