//! A run that goes on: from initial weights, or from a checkpoint.

use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use candle_core::Device;
use regex::Regex;
use zoo_layers::Params;
use zoo_layers::optim::norm_squared;

use super::Trainer;
use crate::config::{ComputeType, ConfigOf, to_toml};
use crate::health::Check;
use crate::run::{Saved, nearest};
use crate::task::counted;
use crate::{Difference, Error, Event, Observer, Ranks, Result, RunDirectory, Task, record};

impl<'a, T: Task> Trainer<'a, T> {
    /// The run in the directory `path`, from its newest checkpoint on. `changed` names the keys (`data` for the data itself)
    /// that may differ from what it was begun with; what did stays with the run.
    ///
    /// # Errors
    /// Those of [`Trainer::new`]; there is no run, it is another model's, or all of its checkpoints are damaged; or the
    /// configuration or the data are not those that it was begun with.
    pub fn resume(
        task: &'a T,
        config: &'a ConfigOf<T>,
        device: &Device,
        path: &Path,
        changed: &[String],
        observer: &mut dyn Observer,
    ) -> Result<Self> {
        Self::resume_among(task, config, device, path, changed, observer, &Rc::default())
    }

    /// [`Trainer::resume`] by the first of several processes, which the others [follow](Trainer::following).
    ///
    /// # Errors
    /// As [`Trainer::resume`] and [`Trainer::among`]; the run is then as it was.
    pub fn resume_among(
        task: &'a T,
        config: &'a ConfigOf<T>,
        device: &Device,
        path: &Path,
        changed: &[String],
        observer: &mut dyn Observer,
        ranks: &Rc<Ranks>,
    ) -> Result<Self> {
        let run = Arc::new(RunDirectory::open(path)?);
        let mut trainer = Self::untrained(task, config, device)?;
        trainer.join(ranks)?;
        // What it takes up, it takes up alone, and hands out once.
        trainer.ranks = Rc::default();
        trainer.run = Some(run.clone());
        trainer.take_up(&run, changed, observer)?;
        run.set_config(&to_toml(config)?)?;
        trainer.ranks = ranks.clone();
        trainer.take_from_first()?;
        Ok(trainer)
    }

    /// Begins a run in `path`, or resumes the one that is there.
    ///
    /// # Errors
    /// Those of [`Trainer::new`], [`Trainer::begin`] and [`Trainer::resume`].
    pub fn begin_or_resume(
        task: &'a T,
        config: &'a ConfigOf<T>,
        device: &Device,
        path: &Path,
        observer: &mut dyn Observer,
    ) -> Result<Self> {
        if crate::RunFiles::at(path).exist() {
            return Self::resume(task, config, device, path, &[], observer);
        }
        let mut trainer = Self::new(task, config, device)?;
        trainer.begin(path)?;
        Ok(trainer)
    }

    /// A trainer at the newest checkpoint of the run at `path` up to `step`, or at the beginning where there is none, which goes on by `config`,
    /// whatever the run's own says. The run is only read. Where `config` is the run's own, the steps are the run's, to the bit. What was best
    /// so far counts no longer in a directory of its own, which has no such weights.
    ///
    /// # Errors
    /// There is no such run, or it is another model's; the model of `config` does not fit the checkpoint; those of [`Trainer::new`].
    pub fn fork(task: &'a T, config: &'a ConfigOf<T>, device: &Device, path: &Path, step: u64) -> Result<Self> {
        let files = crate::RunFiles::at(path).required()?;
        if let Some(model) = files.model().filter(|model| model != T::NAME) {
            return Err(Error::Usage(format!("{} is a run of {model}, not of {}", path.display(), T::NAME)));
        }
        let mut trainer = Self::untrained(task, config, device)?;
        // Initial weights are computed: a model of another size begins there, too.
        let saved = if step == 0 { None } else { nearest(path, step, device)? };
        let begins = files.begins_at();
        if begins > saved.as_ref().map_or(0, |s| s.state.step) {
            return Err(Error::Run(format!(
                "{}: it begins at step {begins}, with the weights of another run, and no checkpoint up to step {step} is left",
                path.display()
            )));
        }
        match saved {
            Some(saved) => {
                let at = saved.state.step;
                trainer
                    .restore(saved)
                    .map_err(|e| Error::Run(format!("{}: its checkpoint of step {at}: {e}", path.display())))?;
                let mut checks = Check::read(path)?;
                checks.retain(|c| c.step <= at);
                trainer.recall(checks)?;
            }
            None => trainer.load_initial()?,
        }
        Ok(trainer)
    }

    /// Sets the weights to those of `train.init_from`, if there is one.
    pub(super) fn load_initial(&mut self) -> Result<()> {
        let path = Path::new(&self.config.train.init_from);
        if path.as_os_str().is_empty() {
            return Ok(());
        }
        let tensors = T::initial(path, self.params.device())?;
        for params in [Some(&self.params), self.average.as_ref()].into_iter().flatten() {
            let fits = params.set(&tensors);
            fits.map_err(|e| Error::Run(format!("{}: {}", path.display(), first_line(&e))))?;
        }
        for (name, tensor) in self.params.tensors() {
            if !norm_squared(&tensor)?.is_finite() {
                let path = path.display();
                return Err(Error::Run(format!(
                    "{path}: {name} has values that are not finite numbers: it is damaged"
                )));
            }
        }
        Ok(())
    }

    fn take_up(&mut self, run: &RunDirectory, changed: &[String], observer: &mut dyn Observer) -> Result<()> {
        self.begun_at = run.begins_at();
        let found = run.latest(self.params.device(), |_| true)?;
        if found.saved.is_none() && self.begun_at > 0 {
            return Err(Error::Run(format!(
                "{}: no checkpoint is left, and it did not begin at step 0",
                run.path().display()
            )));
        }
        let now = record::on_record(self.task, self.config)?;
        let before = run.accepted()?;
        if let Some(model) = before.as_ref().and_then(|b| b["model"].as_str()).filter(|model| *model != T::NAME) {
            let (path, name) = (run.path().display(), T::NAME);
            return Err(Error::Usage(format!("{path} is a run of {model}, not of {name}")));
        }
        let differs = match &before {
            Some(before) => record::differences::<T>(before, &now, self.config)?,
            None => vec![],
        };
        let refused = |d: &&Difference| !changed.iter().any(|key| d.is_named(key));
        let refused: Vec<Difference> = differs.iter().filter(refused).cloned().collect();
        if !refused.is_empty() {
            return Err(Error::Changed { run: run.path().into(), differences: refused });
        }
        let unknown = |key: &&String| *key != "data" && record::lookup(&now["config"], key).is_none();
        if let Some(key) = changed.iter().find(unknown) {
            return Err(Error::NoSuchKey(key.clone()));
        }
        let (done, total) = (found.saved.as_ref().map_or(0, |s| s.state.step), self.total_steps());
        if done > total {
            return Err(Error::Usage(format!(
                "{} has done {done} steps already, and the new length is {total}: make it longer",
                run.path().display()
            )));
        }
        run.return_to(&found)?;
        found.warnings.iter().for_each(|w| observer.observe(&Event::Warning(w)));
        match found.saved {
            Some(saved) => {
                self.restore(saved)?;
                self.recall_health(observer)?;
            }
            None => {
                observer.observe(&Event::Warning("no checkpoint was written yet: starting at the beginning"));
                self.load_initial()?;
            }
        }
        if self.task.fingerprint() == counted(self.task) {
            let what = "whether the data are those that the run began with is told by the number of samples alone";
            observer.observe(&Event::Warning(&format!("{what}: the task has no Task::fingerprint of its own")));
        }
        if differs.iter().any(|d| d.key.starts_with("data")) {
            observer.observe(&Event::Warning("the data are others: what was best so far is no longer counted"));
            self.state.forget_losses();
        }
        self.put_on_record(run, now)?;
        // A crash may have come before the last checkpoint's predecessors were dropped.
        run.prune(self.config.train.keep, self.checkpoint_every())
    }

    /// Sets everything to what a checkpoint holds.
    pub(super) fn restore(&mut self, saved: Saved) -> Result<()> {
        self.params.set(&saved.model)?;
        if let Some(average) = &self.average {
            // A run that begins to average starts with its current weights.
            average.set(saved.average.as_ref().unwrap_or(&saved.model))?;
        }
        self.optimizer.load(&saved.optimizer, saved.state.updates)?;
        self.state = saved.state;
        let scale = self.state.loss_scale.unwrap_or_default();
        self.state.loss_scale = (self.config.train.dtype == ComputeType::F16).then_some(scale);
        // What was collected elsewhere, or in other rollouts, is of no use.
        let fits = self.state.rollout.as_ref().is_some_and(|r| r.origin == self.origin);
        match (&mut self.experience, &saved.experience) {
            (Some(experience), Some(saved)) if fits => experience.restore(saved)?,
            _ => {
                self.experience = self.task.experience(self.config)?;
                self.state.rollout = None;
            }
        }
        Ok(())
    }
}

/// Refuses a `train.freeze` that names no parameter, or all of them.
pub(super) fn check_frozen(params: &Params, frozen: Option<Regex>) -> Result<()> {
    let Some(frozen) = frozen else { return Ok(()) };
    let (all, pattern) = (params.all(), frozen.as_str());
    if params.trainable().is_empty() {
        return Err(Error::Usage(format!("train.freeze = {pattern:?} leaves no parameter to train")));
    }
    if !all.iter().any(|p| !p.buffer && frozen.is_match(&p.name)) {
        let names: Vec<_> = all.iter().map(|p| p.name.as_str()).collect();
        return Err(Error::Usage(format!("train.freeze = {pattern:?} names no parameter of {}", names.join(", "))));
    }
    Ok(())
}

/// The first line of candle's message: a backtrace may follow.
fn first_line(e: &candle_core::Error) -> String {
    e.to_string().lines().next().unwrap_or_default().to_string()
}
