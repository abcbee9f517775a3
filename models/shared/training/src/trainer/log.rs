//! What a run writes and reports: metrics, evaluations, checkpoints.

use std::path::Path;
use std::time::Instant;

use candle_core::{Device, Tensor};
use serde_json::{Map, Value, json};
use zoo_checkpoint::Description;

use super::guard::{NonFinite, Refusal};
use super::{Step, Trainer};
use crate::run::Snapshot;
use crate::saver::Saver;
use crate::{Error, Event, Metrics, Observer, OnNonFinite, Result, Split, Task, record};

impl<T: Task> Trainer<'_, T> {
    /// Tells the observer of the step just done.
    pub(super) fn report(&self, step: &Step, refusal: &Option<Refusal>, observer: &mut dyn Observer) {
        let number = self.state.step;
        if let Some(refusal) = refusal {
            observer.observe(&Event::Warning(&format!("step {number}: {refusal}; its update was left out")));
        }
        // The loss of a policy is made of them, and nobody can change that by settings.
        if let (Some(first), None) = (step.foreign.first(), &self.experience) {
            observer.observe(&Event::Warning(&format!(
                "the graph of the loss has {} of candle's own operations (the first result has shape {first:?}), so candle \
                 does the whole backward pass: ops of zoo_layers in their place make it faster",
                step.foreign.len()
            )));
        }
        let Step { loss, ref parts, lr, norm: grad_norm, .. } = *step;
        observer.observe(&Event::Step { step: number, loss, parts, lr, grad_norm });
    }

    /// Writes the line of the step just done.
    pub(super) fn log_step(&self, step: &Step, refused: bool, started: Instant) -> Result<()> {
        let Some(run) = &self.run else { return Ok(()) };
        let mut line = Map::new();
        line.insert("step".into(), self.state.step.into());
        line.insert("loss".into(), step.loss.into());
        line.extend(step.parts.object());
        line.insert("lr".into(), step.lr.into());
        line.insert("grad_norm".into(), step.norm.into());
        if refused {
            line.insert("refused".into(), true.into());
        }
        line.insert("seconds".into(), ((started.elapsed().as_secs_f64() * 1e3).round() / 1e3).into());
        run.journal().append(&Value::Object(line))
    }

    /// The split that is evaluated while training, and its metrics now. Of several processes each has to ask.
    ///
    /// # Errors
    /// candle's.
    pub fn validate(&self) -> Result<(Split, Metrics)> {
        let overfit = self.config.train.overfit_batch || self.task.samples(Split::Valid) == 0;
        let split = if overfit { Split::Train } else { Split::Valid };
        let sharing = self.ranks.sharing();
        let metrics = self.task.validate(&self.frozen, split)?;
        drop(sharing);
        Ok((split, metrics))
    }

    /// Evaluates the initial weights, and what takes no learning: what is learnt is told by comparing with them. They are never the best.
    pub(super) fn evaluate_initial(&mut self, observer: &mut dyn Observer) -> Result<()> {
        // Of several processes, each does its share, whether it has the run or not.
        if self.run.is_none() && self.ranks.is_alone() {
            return Ok(());
        }
        let (split, metrics) = self.validate()?;
        let Some(run) = self.run.as_ref().filter(|run| !run.journal().has(0)) else { return Ok(()) };
        let mut line = json!({ "step": 0, split.name(): metrics.object() });
        if let Some((name, loss)) = self.task.baseline(split)? {
            line["baseline"] = json!({ name: loss });
        }
        run.journal().append(&line)?;
        observer.observe(&Event::Evaluated { step: 0, split, metrics: &metrics, best: false });
        Ok(())
    }

    /// Evaluates the validation split, and keeps the weights if they are among the best.
    pub(super) fn evaluate(&mut self, saver: Option<&Saver>, observer: &mut dyn Observer) -> Result<()> {
        let (split, metrics) = self.validate()?;
        let (step, train) = (self.state.step, &self.config.train);
        if !metrics.iter().any(|(name, _)| name == "loss") {
            let names: Vec<&str> = metrics.iter().map(|(name, _)| name.as_ref()).collect();
            let names = names.join(", ");
            return Err(Error::Usage(format!(
                "Task::validate gave no metric called loss, which says which weights are best; it gave {names}"
            )));
        }
        let loss = metrics.value("loss");
        if !loss.is_finite() {
            let problem = NonFinite { what: "the validation loss".into(), step, value: loss };
            if train.on_nonfinite == OnNonFinite::Abort {
                return Err(problem.into());
            }
            observer.observe(&Event::Warning(&problem.to_string()));
        }
        let (best, kept) = self.state.evaluated(loss, train.keep_best);
        self.state.plateau.observe(loss, train);
        if let Some(run) = &self.run {
            run.journal().append(&json!({ "step": step, split.name(): metrics.object() }))?;
        }
        if let (Some(saver), true) = (saver, kept) {
            let weights = self.evaluated().tensors();
            let waits = bytes(&weights) > LARGE;
            saver.best(step, handed(weights, waits)?, self.description()?.metadata(), best)?;
            if waits {
                saver.wait()?;
            }
        }
        observer.observe(&Event::Evaluated { step, split, metrics: &metrics, best });
        self.metrics = metrics;
        Ok(())
    }

    /// Writes the weights that are evaluated, as a run's `last.safetensors` has them.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write_weights(&self, path: &Path) -> Result<()> {
        Ok(zoo_checkpoint::write(path, &self.evaluated().tensors(), &self.description()?.metadata())?)
    }

    /// Hands a checkpoint to the saver.
    pub(super) fn save(&self, saver: Option<&Saver>) -> Result<()> {
        let Some(saver) = saver else { return Ok(()) };
        let (weights, optimizer) = (self.params.tensors(), self.optimizer.state());
        let average = self.average.as_ref().map(|a| a.tensors());
        let waits = bytes(&weights) + bytes(&optimizer) + average.as_deref().map_or(0, bytes) > LARGE;
        saver.checkpoint(self.snapshot(!waits)?)?;
        if waits { saver.wait() } else { Ok(()) }
    }

    /// What a checkpoint holds: with `copied` as it is now, whatever later steps do.
    pub(super) fn snapshot(&self, copied: bool) -> Result<Snapshot> {
        // Before the first rollout there is nothing to keep of it.
        let experience = self.experience.as_ref().filter(|_| self.state.rollout.is_some());
        let average = self.average.as_ref().map(|a| a.tensors());
        Ok(Snapshot {
            weights: handed(self.params.tensors(), !copied)?,
            metadata: self.description()?.metadata(),
            optimizer: handed(self.optimizer.state(), !copied)?,
            average: average.map(|tensors| handed(tensors, !copied)).transpose()?,
            experience: experience.map(|e| e.state()).transpose()?,
            state: self.state.clone(),
        })
    }

    pub(super) fn description(&self) -> Result<Description> {
        record::description(self.task, self.config)
    }
}

/// Bytes of what is saved, beyond which training waits until it is on disk: a copy, beside which it could go on, would take as much
/// memory again.
pub const LARGE: usize = 1 << 30;

fn bytes(tensors: &[(String, Tensor)]) -> usize {
    tensors.iter().map(|(_, t)| t.elem_count() * t.dtype().size_in_bytes()).sum()
}

/// What the saver gets: copies, which later steps do not change, or the tensors themselves where the saver is waited for.
fn handed(tensors: Vec<(String, Tensor)>, waits: bool) -> Result<Vec<(String, Tensor)>> {
    let of = |t: Tensor| if waits { t.to_device(&Device::Cpu) } else { t.to_device(&Device::Cpu)?.copy() };
    tensors.into_iter().map(|(name, t)| Ok((name, of(t)?))).collect()
}
