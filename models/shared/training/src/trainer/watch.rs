//! What the trainer does about gradient health.

use candle_core::Tensor;
use serde_json::json;
use zoo_layers::{Mode, Params};

use super::{NonFinite, Step, Trainer};
use crate::config::ConfigOf;
use crate::health::{Check, Finding, Level, Monitor, Profile, Watched, pooling_nudge, preflight, revive_attention};
use crate::saver::Saver;
use crate::{Error, Event, Observer, OnCritical, Result, Split, Task};

/// Most samples of the batch whose activations are watched: a look must cost next to nothing.
const SAMPLES: usize = 16;
/// Looks between two times that the rate is halved: what was done needs time to show.
const PATIENCE: u64 = 5;

/// The monitor, and samples evenly spread over the training part to see activations of.
pub(super) struct Watch<T: Task> {
    monitor: Monitor,
    batch: T::Batch,
    frozen: Vec<String>,
    every: u64,
}

impl<T: Task> Watch<T> {
    pub(super) fn new(task: &T, config: &ConfigOf<T>, params: &Params) -> Result<Self> {
        let (all, train) = (task.samples(Split::Train), &config.train);
        let n = (train.batch_size / 4).clamp(1, SAMPLES).min(all);
        let spread: Vec<usize> = (0..n).map(|i| i * all / n).collect();
        let frozen = train.frozen()?;
        let frozen = |name: &String| frozen.as_ref().is_some_and(|f| f.is_match(name));
        let tables = json!({ "model": config.model, "train": train });
        Ok(Self {
            monitor: Monitor::new(T::health(), tables, vec![]),
            batch: task.batch(Split::Train, &spread)?,
            frozen: params.all().into_iter().map(|p| p.name).filter(frozen).collect(),
            every: train.health_every,
        })
    }

    /// Whether step `number` is looked at.
    pub(super) fn is_due(&self, number: u64) -> bool {
        self.every > 0 && (number == 1 || number.is_multiple_of(self.every))
    }

    pub(super) fn cut(&mut self, step: u64) {
        self.monitor.cut(step);
    }

    pub(super) fn profile(&self) -> &Profile {
        self.monitor.profile()
    }
}

impl<T: Task> Trainer<'_, T> {
    /// Takes up the checks of the run's earlier life.
    pub(super) fn recall_health(&mut self) -> Result<()> {
        let Some(run) = self.run else { return Ok(()) };
        for check in Check::read(run.path())? {
            self.watch.monitor.add(check);
        }
        // What was raised then is not news.
        self.watch.monitor.news();
        Ok(())
    }

    /// A forward and a backward pass of `samples` as they are, without dropout: nothing of the run changes.
    ///
    /// # Errors
    /// candle's.
    pub fn examine(&self) -> Result<(Check, Vec<Finding>)> {
        let batch = &self.watch.batch;
        let loss = self.task.loss(&self.model, batch, Mode::Eval)?.total;
        let grads = self.params.gradients(&loss.backward()?);
        let trainable = self.params.trainable();
        let watched: Vec<Watched> = (trainable.iter().zip(grads.iter()))
            .map(|(p, (name, gradient))| Watched { name, weight: p.var.as_tensor(), gradient, before: None })
            .collect();
        let probes = self.task.probes(&self.model, batch)?;
        let mut check = Check::new(self.state.step, self.watch.profile(), &watched, &probes)?;
        check.frozen = self.watch.frozen.clone();
        let config = json!({ "model": self.config.model, "train": self.config.train });
        let findings = preflight(&check, &self.params, self.watch.profile(), &config)?;
        Ok((check, findings))
    }

    /// Says what to know before the first step.
    pub(super) fn preflight(&self, observer: &mut dyn Observer) -> Result<()> {
        if self.watch.every > 0 {
            self.examine()?.1.iter().for_each(|finding| observer.observe(&Event::Health(finding)));
        }
        Ok(())
    }

    /// Says of a step that is not finite which activation shows it first.
    pub(super) fn trace(&self, batch: &T::Batch, problem: &mut NonFinite) {
        // It is no more than a hint: what fails here has been reported already.
        let check = self.task.probes(&self.model, batch).ok();
        let check = check.and_then(|probes| Check::new(0, self.watch.profile(), &[], &probes).ok());
        if let Some(first) = check.iter().flat_map(|c| &c.probes).find(|p| p.not_finite > 0) {
            problem.what +=
                &format!(" ({}, the first activation that shows it, has {} such values)", first.name, first.not_finite);
        }
    }

    /// The weights before a step that is looked at.
    pub(super) fn before_look(&mut self, step: &mut Step<T::Batch>) -> Result<Vec<Tensor>> {
        if self.config.train.pooling_nudge {
            pooling_nudge(&self.params, &mut step.grads, self.watch.monitor.profile())?;
        }
        Ok(self.params.trainable().iter().map(|p| p.var.copy()).collect::<candle_core::Result<_>>()?)
    }

    /// Looks at the step just done; whether the run went back to a checkpoint.
    ///
    /// # Errors
    /// Health is critical and stops the run, or cannot be written.
    pub(super) fn look(
        &mut self,
        step: &Step<T::Batch>,
        before: &[Tensor],
        saver: Option<&Saver>,
        observer: &mut dyn Observer,
    ) -> Result<bool> {
        let trainable = self.params.trainable();
        let watched: Vec<Watched> = (trainable.iter().zip(step.grads.iter()).zip(before))
            .map(|((p, (name, gradient)), before)| Watched {
                name,
                weight: p.var.as_tensor(),
                gradient,
                before: Some(before),
            })
            .collect();
        let probes = self.task.probes(&self.model, &self.watch.batch)?;
        let mut check = Check::new(self.state.step, self.watch.profile(), &watched, &probes)?;
        check.frozen = self.watch.frozen.clone();
        if let Some(run) = self.run {
            run.health().append(&serde_json::to_value(&check).map_err(|e| Error::Run(format!("health: {e}")))?)?;
        }
        if self.config.train.revive_attention {
            for name in revive_attention(&self.params, &check, self.watch.profile(), self.config.train.seed)? {
                observer.observe(&Event::Warning(&format!("step {}: {name} was given noise", check.step)));
            }
        }
        self.watch.monitor.add(check);
        self.watch.monitor.news().iter().for_each(|finding| observer.observe(&Event::Health(finding)));
        self.act(saver, observer)
    }

    /// What `train.on_critical` says.
    fn act(&mut self, saver: Option<&Saver>, observer: &mut dyn Observer) -> Result<bool> {
        let how = self.config.train.on_critical;
        if how == OnCritical::Tell {
            return Ok(false);
        }
        let report = self.watch.monitor.report();
        let Some(worst) = report.findings.into_iter().find(|f| f.level == Level::Critical) else { return Ok(false) };
        let Finding { what, since, because, .. } = worst;
        let step = self.state.step;
        let stop = Error::Critical { what: what.clone(), since, because, step };
        let waiting = self.state.halvings > 0 && step < self.state.halved_at + PATIENCE * self.watch.every;
        match how {
            OnCritical::Tell => Ok(false),
            OnCritical::Stop => Err(stop),
            _ if waiting => Ok(false),
            // A rate that has been halved ten times is no rate any more.
            _ if self.state.halvings >= 10 => Err(stop),
            OnCritical::HalveLr => {
                self.halve(step);
                observer.observe(&Event::Warning(&format!("step {step}: {what} is critical; the rate is halved")));
                Ok(false)
            }
            OnCritical::Rollback => {
                self.halve(step);
                let cause = format!("step {step}: {what} is critical since step {since}; the rate is halved");
                match self.roll_back(cause, |at| at < since, 0, saver, observer)? {
                    true => Ok(true),
                    false => Err(stop),
                }
            }
        }
    }

    fn halve(&mut self, step: u64) {
        self.state.halvings += 1;
        self.state.halved_at = step;
    }
}
