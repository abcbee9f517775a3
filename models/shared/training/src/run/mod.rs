//! The run directory: configuration, metrics, checkpoints, weights.
//!
//! A checkpoint is written under a temporary name, its manifest with sizes and hashes last, and moved into place: it is
//! there whole or not at all.
//!
//! It may be somebody else's: its files have the names that are written here and no others, links in it are refused, and
//! nothing in it leads out of it (see [`Folder`]).

mod checkpoint;
mod files;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, TryLockError};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use candle_core::{Device, Tensor};
use serde_json::Value;
use zoo_checkpoint::{Folder, Kind};

pub(crate) use checkpoint::{Saved, Snapshot};
pub(crate) use files::{LONGEST_LINES, LONGEST_TEXT, METRICS};
pub use files::{RunFiles, RunState};

use crate::{Error, Result};

const TEMPORARY: &str = ".tmp";
const BEST: &str = "best-step-";
const WEIGHTS: &str = ".safetensors";

/// A directory that belongs to one run, locked while it is open.
pub struct RunDirectory {
    files: RunFiles,
    folder: Arc<Folder>,
    checkpoints: Folder,
    _lock: File,
    metrics: Journal,
    health: Journal,
}

/// A file of lines in JSON, each with its step; open from its first line on.
pub(crate) struct Journal {
    folder: Arc<Folder>,
    name: &'static str,
    file: Mutex<Option<File>>,
}

impl Journal {
    fn new(folder: &Arc<Folder>, name: &'static str) -> Self {
        Self { folder: folder.clone(), name, file: Mutex::new(None) }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join(self.name)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<File>> {
        self.file.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Appends a line.
    pub(crate) fn append(&self, line: &Value) -> Result<()> {
        let mut file = self.lock();
        if file.is_none() {
            *file = Some(self.folder.append(self.name)?);
        }
        // In one write: a line is there whole, or cut short by a crash and dropped on resume.
        let append = file.as_mut().map_or(Ok(()), |f| f.write_all(format!("{line}\n").as_bytes()));
        append.map_err(Error::io(&self.path()))
    }

    /// Whether it has a line of that step.
    pub(crate) fn has(&self, step: u64) -> bool {
        let of_step = |line: &str| serde_json::from_str::<Value>(line).is_ok_and(|v| v["step"] == step);
        self.folder.text(self.name, LONGEST_LINES).is_ok_and(|text| text.lines().any(of_step))
    }

    /// Makes the lines so far durable: a checkpoint must not be there without the lines before it.
    fn sync(&self) -> Result<()> {
        // A handle of its own: waiting for the disk must not hold up the next line.
        let file = self.lock().as_ref().map(File::try_clone).transpose();
        let sync = || file?.map_or(Ok(()), |f| f.sync_data());
        sync().map_err(Error::io(&self.path()))
    }

    /// Drops the lines after `step`, and a line that a crash cut short.
    fn cut(&self, step: u64) -> Result<()> {
        *self.lock() = None;
        if self.folder.kind(self.name)?.is_none() {
            return Ok(());
        }
        let text = self.folder.text(self.name, LONGEST_LINES)?;
        let keep = |line: &&str| {
            let parsed = serde_json::from_str::<Value>(line).ok();
            parsed.and_then(|v| v["step"].as_u64()).is_some_and(|s| s <= step)
        };
        let kept: String = text.lines().filter(keep).flat_map(|l| [l, "\n"]).collect();
        Ok(self.folder.replace(self.name, |f| f.write_all(kept.as_bytes()))?)
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
        std::fs::create_dir_all(path).map_err(Error::io(path))?;
        if let Some(name) = taken(&Folder::open(path)?)? {
            let path = path.display();
            return Err(Error::Usage(format!("{path} holds a {name} of no run: choose another directory")));
        }
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
        Ok(self.folder.replace(files::CONFIG, |f| f.write_all(config.as_bytes()))?)
    }

    /// Writes the weights of the last step.
    pub(crate) fn write_last(&self, weights: &[(String, Tensor)], metadata: &BTreeMap<String, String>) -> Result<()> {
        Ok(self.folder.write(files::LAST, weights, metadata)?)
    }

    /// Removes what a run has that was begun and came to nothing, and the directory if nothing else is in it. Failing only
    /// leaves it.
    pub(crate) fn abandon(&self) {
        for name in [files::CONFIG, files::METRICS, files::HEALTH, files::RECORD, files::CHECKPOINTS, files::LOCK] {
            let _ = self.folder.remove(name);
        }
        let _ = std::fs::remove_dir(self.path());
    }

    /// Opens a run to continue it; what an interrupted save left behind is removed.
    ///
    /// # Errors
    /// There is no run, one of its files is a link, or another process is at work in it.
    pub fn open(path: &Path) -> Result<Self> {
        RunFiles::at(path).required()?;
        let run = Self::lock(path)?;
        run.folder.clear()?;
        run.checkpoints.clear()?;
        for name in run.checkpoints.names()? {
            let half = name.strip_suffix(TEMPORARY).is_some_and(|n| step_of(n).is_some());
            if half && run.checkpoints.kind(&name)? == Some(Kind::Folder) {
                run.checkpoints.remove(&name)?;
            }
        }
        Ok(run)
    }

    fn lock(path: &Path) -> Result<Self> {
        let (files, folder) = (RunFiles::at(path), Arc::new(Folder::open(path)?));
        let lock = folder.lock(files::LOCK)?;
        // A process that checks the lock holds it briefly.
        let taken = lock.try_lock().or_else(|_| {
            std::thread::sleep(std::time::Duration::from_millis(50));
            lock.try_lock()
        });
        match taken {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(Error::Run(format!("{} is in use by another process", path.display())));
            }
            Err(TryLockError::Error(e)) => return Err(Error::io(&path.join(files::LOCK))(e)),
        }
        let checkpoints = folder.folder(files::CHECKPOINTS, true)?;
        let (metrics, health) = (Journal::new(&folder, files::METRICS), Journal::new(&folder, files::HEALTH));
        Ok(Self { files, folder, checkpoints, _lock: lock, metrics, health })
    }

    /// The steps of the checkpoints, in order.
    fn numbered(&self) -> Result<Vec<u64>> {
        numbered(&self.checkpoints)
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
        let name = best_name(step);
        self.checkpoints.write(&name, weights, metadata)?;
        if best {
            self.folder.link(&self.checkpoints, &name, files::BEST)?;
        }
        Ok(())
    }

    /// Commits a checkpoint, then drops what is no longer needed.
    pub(crate) fn save(&self, snapshot: &Snapshot, keep: usize, every: u64) -> Result<()> {
        let target = step_name(snapshot.state.step);
        let temporary = format!("{target}{TEMPORARY}");
        if self.checkpoints.kind(&target)?.is_none() {
            let best: Vec<String> = snapshot.state.best.iter().map(|(_, step)| best_name(*step)).collect();
            let commit = || -> Result<()> {
                self.metrics.sync()?;
                self.health.sync()?;
                let half = self.checkpoints.folder(&temporary, true)?;
                checkpoint::fill(&half, &self.checkpoints, snapshot, &best)?;
                half.sync()?;
                self.checkpoints.rename(&temporary, &target)?;
                Ok(self.checkpoints.sync()?)
            };
            if let Err(e) = commit() {
                // On a full disk, at least what was written of it is given back.
                let _ = self.checkpoints.remove(&temporary);
                return Err(e);
            }
        }
        self.prune(keep, every)
    }

    /// Drops old checkpoints but for the last `keep` and the last of a step that `every` divides, which is what a rollback
    /// goes back to, and best weights that none of these names.
    pub(crate) fn prune(&self, keep: usize, every: u64) -> Result<()> {
        let all = self.numbered()?;
        let regular = all.iter().rev().find(|step| step.is_multiple_of(every)).copied();
        let old = all.len().saturating_sub(keep);
        let (leaving, kept): (Vec<_>, Vec<_>) =
            all.into_iter().enumerate().partition(|(i, step)| *i < old && Some(*step) != regular);
        for (_, old) in leaving {
            self.discard(old)?;
        }
        let state = |step: u64| checkpoint::state(&self.checkpoints.folder(&step_name(step), false)?);
        let named: BTreeSet<String> = kept
            .into_iter()
            .filter_map(|(_, step)| state(step).ok())
            .flat_map(|state| state.best.into_iter().map(|(_, step)| best_name(step)))
            .collect();
        for name in self.checkpoints.names()? {
            let ours = number_between(&name, BEST, WEIGHTS).is_some_and(|step| best_name(step) == name);
            if ours && !named.contains(&name) {
                self.checkpoints.remove(&name)?;
            }
        }
        Ok(())
    }

    /// Removes a checkpoint, under another name first: half of one must not look like a damaged one.
    fn discard(&self, step: u64) -> Result<()> {
        let leaving = format!("{}{TEMPORARY}", step_name(step));
        self.checkpoints.rename(&step_name(step), &leaving)?;
        Ok(self.checkpoints.remove(&leaving)?)
    }

    /// The newest whole checkpoint among those of the steps that are `wanted`. Nothing is changed yet: see
    /// [`RunDirectory::return_to`].
    ///
    /// # Errors
    /// All are damaged, one is of a newer format, or there are weights without any checkpoint.
    pub(crate) fn latest(&self, device: &Device, wanted: impl Fn(u64) -> bool) -> Result<Found> {
        let mut found = Found { saved: None, damaged: vec![], warnings: vec![] };
        for step in self.numbered()?.into_iter().rev().filter(|step| wanted(*step)) {
            let name = step_name(step);
            let saved = || checkpoint::read(&self.checkpoints.folder(&name, false)?, &self.checkpoints, device);
            match saved() {
                Ok(mut saved) => {
                    for (name, record) in std::mem::take(&mut saved.lost) {
                        // The same weights may still lie there under their other name.
                        if record.verify(&self.folder, files::BEST).is_ok()
                            && self.checkpoints.link(&self.folder, files::BEST, &name).is_ok()
                        {
                            continue;
                        }
                        let path = self.checkpoints.path().join(&name);
                        let warning = format!("{} is missing or damaged and is no longer counted", path.display());
                        found.warnings.push(warning);
                        saved.state.best.retain(|(_, step)| best_name(*step) != name);
                    }
                    for (damaged, e) in &found.damaged {
                        let damaged = self.checkpoints.path().join(step_name(*damaged));
                        found.warnings.push(format!("{} is damaged, using {name}: {e}", damaged.display()));
                    }
                    found.saved = Some(saved);
                    return Ok(found);
                }
                // It is whole, and only a newer program knows what is in it.
                Err(e @ Error::NewerFormat { .. }) => return Err(e),
                Err(e) => found.damaged.push((step, e.to_string())),
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
        for (step, _) in &found.damaged {
            let (name, aside) = (step_name(*step), format!("{}.damaged", step_name(*step)));
            if self.checkpoints.kind(&aside)?.is_some() {
                self.checkpoints.remove(&aside)?;
            }
            self.checkpoints.rename(&name, &aside)?;
        }
        let state = found.saved.as_ref().map(|s| s.state.clone()).unwrap_or_default();
        for later in self.numbered()?.into_iter().filter(|step| *step > state.step) {
            self.discard(later)?;
        }
        self.metrics.cut(state.step)?;
        self.health.cut(state.step)?;
        match state.best.first() {
            Some((_, step)) => Ok(self.folder.link(&self.checkpoints, &best_name(*step), files::BEST)?),
            None if self.folder.kind(files::BEST)?.is_some() => Ok(self.folder.remove(files::BEST)?),
            None => Ok(()),
        }
    }

    /// What the run was last begun or resumed with, if that is on record.
    pub(crate) fn accepted(&self) -> Result<Option<Value>> {
        let Some(text) = self.files.text(files::RECORD, LONGEST_TEXT)? else { return Ok(None) };
        let value = serde_json::from_str(&text);
        value.map(Some).map_err(|e| Error::Run(format!("{}: {e}", self.record().display())))
    }

    /// Puts on record what the run goes on with.
    pub(crate) fn accept(&self, what: &Value) -> Result<()> {
        Ok(self.folder.replace(files::RECORD, |f| write!(f, "{what:#}"))?)
    }
}

/// The steps of the checkpoints in a folder of them, in order.
fn numbered(checkpoints: &Folder) -> Result<Vec<u64>> {
    let mut found: Vec<u64> = checkpoints.names()?.iter().filter_map(|name| step_of(name)).collect();
    found.sort_unstable();
    Ok(found)
}

/// The newest whole checkpoint of the run at `path` up to `step`, if there is one. Nothing is locked or changed.
pub(crate) fn nearest(path: &Path, step: u64, device: &Device) -> Result<Option<Saved>> {
    let folder = Folder::open(path)?;
    if folder.kind(files::CHECKPOINTS)?.is_none() {
        return Ok(None);
    }
    let checkpoints = folder.folder(files::CHECKPOINTS, false)?;
    for step in numbered(&checkpoints)?.into_iter().rev().filter(|s| *s <= step) {
        match checkpoints
            .folder(&step_name(step), false)
            .map_err(Error::from)
            .and_then(|f| checkpoint::read(&f, &checkpoints, device))
        {
            Ok(saved) => return Ok(Some(saved)),
            Err(e @ Error::NewerFormat { .. }) => return Err(e),
            // Damaged, or dropped meanwhile by a run that goes on.
            Err(_) => {}
        }
    }
    Ok(None)
}

/// A name of a run's that something else in a folder has: a run that comes to nothing would take it along.
fn taken(folder: &Folder) -> Result<Option<&'static str>> {
    for name in [files::METRICS, files::HEALTH, files::RECORD, files::BEST, files::LAST] {
        if folder.kind(name)?.is_some() {
            return Ok(Some(name));
        }
    }
    Ok(match folder.kind(files::CHECKPOINTS)? {
        Some(Kind::Folder) if folder.folder(files::CHECKPOINTS, false)?.is_empty()? => None,
        None => None,
        Some(_) => Some(files::CHECKPOINTS),
    })
}

/// What [`RunDirectory::latest`] found.
pub(crate) struct Found {
    pub(crate) saved: Option<Saved>,
    /// Steps of damaged checkpoints after it, with what is wrong with them.
    damaged: Vec<(u64, String)>,
    pub(crate) warnings: Vec<String>,
}

fn best_name(step: u64) -> String {
    format!("{BEST}{step:08}{WEIGHTS}")
}

fn step_name(step: u64) -> String {
    format!("{}{step:08}", files::STEP)
}

/// The step of the checkpoint of that name, if it is the name of one.
fn step_of(name: &str) -> Option<u64> {
    number_between(name, files::STEP, "").filter(|step| step_name(*step) == name)
}

fn number_between(name: &str, before: &str, behind: &str) -> Option<u64> {
    name.strip_prefix(before)?.strip_suffix(behind)?.parse().ok()
}
