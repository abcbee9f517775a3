//! Gradient health: when it is checked, and what is done about it.

use candle_core::Tensor;
use zoo_layers::ops::backward;
use zoo_layers::optim::global_norm;
use zoo_layers::random::{Purpose, Stream};
use zoo_layers::{Gradients, Mode, Param, Params, with_recompute};

use super::guard::{NonFinite, Refusal};
use super::{Step, Trainer};
use crate::config::ConfigOf;
use crate::health::{
    Check, Finding, Level, Monitor, Probe, ProbeKind, Profile, Repair, Report, SETTLED, Watched, preflight,
};
use crate::record::value_of;
use crate::saver::Saver;
use crate::{Error, Event, Observer, OnCritical, Result, Silent, Split, Task};

/// Checks between two times that the learning rate is halved: what was done needs time to show.
const PATIENCE: u64 = 5;
/// Halvings after which there is no learning rate left to speak of.
const HALVINGS: u32 = 10;
/// Findings that are said at once.
const SHOWN: usize = 5;

/// The monitor, and when it checks.
pub(super) struct Watch {
    monitor: Monitor,
    frozen: Vec<String>,
    every: u64,
    /// A further step that is checked.
    also: Option<u64>,
    repair: Option<Box<dyn Repair>>,
}

/// What a check judges: gradients as backward gave them, and the weights before the step.
pub(super) struct Checked {
    grads: Gradients,
    before: Vec<Tensor>,
}

impl Watch {
    pub(super) fn new<T: Task>(config: &ConfigOf<T>, params: &Params) -> Result<Self> {
        let frozen = config.train.frozen()?;
        let frozen = |p: &Param| !p.buffer && frozen.as_ref().is_some_and(|f| f.is_match(&p.name));
        Ok(Self {
            monitor: Monitor::new(T::health(), value_of::<T>(config)?, vec![]),
            frozen: params.all().into_iter().filter(frozen).map(|p| p.name).collect(),
            every: config.train.health_every,
            also: None,
            repair: T::repair(config),
        })
    }

    /// Whether step `number` is checked.
    fn is_due(&self, number: u64) -> bool {
        self.also == Some(number) || self.is_scheduled(number)
    }

    fn profile(&self) -> &Profile {
        self.monitor.profile()
    }

    /// Whether the configuration has step `number` checked, not only somebody who looks on.
    fn is_scheduled(&self, number: u64) -> bool {
        self.every > 0 && (number == 1 || number.is_multiple_of(self.every))
    }

    /// The checks so far.
    pub(super) fn checks(&self) -> &[Check] {
        self.monitor.checks()
    }
}

impl<T: Task> Trainer<'_, T> {
    /// Reads the checks of the run so far.
    pub(super) fn recall_health(&mut self, observer: &mut dyn Observer) -> Result<()> {
        let read = match &self.run {
            Some(run) => Check::read(run.path()),
            None => Ok(vec![]),
        };
        let checks = match read {
            // Where nothing depends on it, a broken record is no reason not to go on.
            Err(e) if self.watch.repair.is_none() && self.config.train.on_critical == OnCritical::Tell => {
                observer.observe(&Event::Warning(&format!("{e}; gradient health begins anew")));
                vec![]
            }
            read => read?,
        };
        let checks = self.checks_of_first(checks)?;
        self.recall(checks)
    }

    /// Goes on from these checks.
    pub(super) fn recall(&mut self, checks: Vec<Check>) -> Result<()> {
        self.watch.monitor = Monitor::new(T::health(), value_of::<T>(self.config)?, checks);
        // What was raised then is not news.
        self.watch.monitor.news();
        Ok(())
    }

    /// `n` samples spread over the training part, others at every step.
    fn spread(&self, n: usize) -> candle_core::Result<T::Batch> {
        let all = self.experience.as_ref().map_or_else(|| self.task.samples(Split::Train), |e| e.samples());
        let n = n.clamp(1, all);
        let first = Stream::new(self.config.train.seed, Purpose::Shuffle, 1, self.state.step).uniform();
        let spread: Vec<usize> =
            (0..n).map(|i| (((i as f64 + first) * all as f64 / n as f64) as usize).min(all - 1)).collect();
        match &self.experience {
            Some(experience) => experience.batch(&spread),
            None => self.task.batch(Split::Train, &spread),
        }
    }

    /// Trains until `step` is done, which is checked, and returns the check. Nothing is done about what it shows that the run would not have
    /// done. Of initial weights, which no step made, it is that of [`Trainer::examine`].
    ///
    /// # Errors
    /// Those of [`Trainer::train`]; the step is done already, is not reached, or its update was refused.
    pub fn replay(&mut self, step: u64, observer: &mut dyn Observer, interrupted: &dyn Fn() -> bool) -> Result<Check> {
        if step == 0 && self.state.step == 0 {
            return Ok(self.examine()?.0);
        }
        if step <= self.state.step {
            return Err(Error::Run(format!(
                "step {step} is done already: the checkpoint is of step {}",
                self.state.step
            )));
        }
        self.watch.also = Some(step);
        let outcome = self.train_to(step, observer, interrupted);
        self.watch.also = None;
        outcome?;
        match self.watch.monitor.checks().last() {
            Some(check) if check.step == step => Ok(check.clone()),
            _ if self.state.step == step => Err(Error::Run(format!("step {step}: its update was refused"))),
            _ => Err(Error::Run(format!("the run stopped at step {}, before step {step}", self.state.step))),
        }
    }

    /// Activations of a few samples.
    fn activations(&self) -> candle_core::Result<Vec<Probe>> {
        self.task.probes(&self.model, &self.spread(self.config.train.watched())?)
    }

    /// Diagnoses the model by one forward and one backward pass without dropout. Does not change the run, except that a task
    /// that collects its samples collects its first rollout.
    ///
    /// # Errors
    /// candle's.
    pub fn examine(&mut self) -> Result<(Check, Report)> {
        self.collect(&mut Silent)?;
        let batch = self.spread(self.config.train.batch_size)?;
        let again = self.config.train.recompute;
        let loss = with_recompute(again, || self.task.loss(&self.model, &batch, Mode::Eval))?.total;
        let grads = self.params.gradients(&backward(&loss)?);
        drop(loss);
        let trainable = self.params.trainable();
        let probes = self.task.probes(&self.model, &batch)?;
        let watched = Watched::of(&trainable, &grads, None);
        let mut check = Check::new(self.state.step, self.watch.profile(), &watched, &probes)?;
        check.frozen = self.watch.frozen.clone();
        // Gains are those of initial values.
        let fresh = self.state.step == 0;
        let profile =
            Profile { gain: self.watch.profile().gain.clone().filter(|_| fresh), ..self.watch.profile().clone() };
        let report = preflight(&check, &self.params, &profile, &value_of::<T>(self.config)?)?;
        Ok((check, report))
    }

    /// Says what to know before the first step.
    pub(super) fn preflight(&mut self, observer: &mut dyn Observer) -> Result<()> {
        if self.watch.every == 0 {
            return Ok(());
        }
        // What initial values make of gradients passes; what is wrong with inputs and settings does not.
        let lasting = |f: &&Finding| f.level >= Level::Alert && !f.kind.may_pass();
        self.collect(observer)?;
        let findings: Vec<Finding> = self.examine()?.1.findings.iter().filter(lasting).cloned().collect();
        findings.iter().for_each(|finding| observer.observe(&Event::Health(finding)));
        self.watch.monitor.know(&findings);
        Ok(())
    }

    /// Says of a step that is not finite which activation shows it first, on a micro-batch.
    pub(super) fn trace(&mut self, number: u64, problem: &mut NonFinite) {
        let samples = self.batches.at(if self.config.train.overfit_batch { 0 } else { number });
        let batch = match &self.experience {
            Some(experience) => experience.batch(samples),
            None => self.task.batch(Split::Train, samples),
        };
        // It is no more than a hint: what fails here has been reported already.
        let check = batch.and_then(|batch| self.task.probes(&self.model, &batch)).ok();
        let check = check.and_then(|probes| Check::new(0, self.watch.profile(), &[], &probes).ok());
        if let Some(first) = check.iter().flat_map(|c| &c.probes).find(|p| p.not_finite > 0) {
            problem.what += &match first.kind {
                ProbeKind::Raw | ProbeKind::Input => {
                    format!(" ({} itself has {} such values: look at the data)", first.name, first.not_finite)
                }
                _ => format!(
                    " ({}, the first activation that shows it, has {} such values)",
                    first.name, first.not_finite
                ),
            };
        }
    }

    /// What the check of the coming update needs, if it is due; the task may change the step's gradients.
    pub(super) fn before_check(&self, step: &mut Step, refusal: &Option<Refusal>) -> Result<Option<Checked>> {
        if refusal.is_some() || !self.watch.is_due(self.state.step + 1) {
            return Ok(None);
        }
        let grads = step.grads.clone();
        if let (Some(repair), true) = (&self.watch.repair, self.watch.is_scheduled(self.state.step + 1))
            && repair.gradients(&self.params, &mut step.grads, self.watch.profile())?
        {
            step.norm = global_norm(&step.grads)?;
        }
        let before = self.params.trainable().iter().map(|p| p.var.copy()).collect::<candle_core::Result<_>>()?;
        Ok(Some(Checked { grads, before }))
    }

    /// Checks the step just done; whether the run went back to a checkpoint.
    ///
    /// # Errors
    /// Health is critical and stops the run, or cannot be written.
    pub(super) fn check_health(
        &mut self,
        checked: &Checked,
        saver: Option<&Saver>,
        observer: &mut dyn Observer,
    ) -> Result<bool> {
        let trainable = self.params.trainable();
        let watched = Watched::of(&trainable, &checked.grads, Some(&checked.before));
        let mut check = Check::new(self.state.step, self.watch.profile(), &watched, &self.activations()?)?;
        check.frozen = self.watch.frozen.clone();
        if !self.watch.is_scheduled(self.state.step) {
            self.watch.monitor.add(check);
            return Ok(false);
        }
        if let Some(run) = &self.run {
            run.health_journal()
                .append(&serde_json::to_value(&check).map_err(|e| Error::Run(format!("health: {e}")))?)?;
        }
        if let Some(repair) = &self.watch.repair {
            for what in repair.weights(&self.params, &check, self.watch.profile())? {
                observer.observe(&Event::Warning(&format!("step {}: {what}", check.step)));
            }
        }
        self.watch.monitor.add(check);
        let news = self.watch.monitor.news();
        news.iter().take(SHOWN).for_each(|finding| observer.observe(&Event::Health(finding)));
        if news.len() > SHOWN {
            let more = news.len() - SHOWN;
            observer.observe(&Event::Warning(&format!("and {more} more about gradient health, in health.jsonl")));
        }
        self.act(saver, observer)
    }

    /// What `train.on_critical` says.
    fn act(&mut self, saver: Option<&Saver>, observer: &mut dyn Observer) -> Result<bool> {
        let how = self.config.train.on_critical;
        if how == OnCritical::Tell {
            return Ok(false);
        }
        let report = self.watch.monitor.report();
        let curable = |f: &Finding| how == OnCritical::Stop || f.kind.is_cured_by_lr();
        let all = report.findings.into_iter().chain(report.consequences);
        let worst = all.into_iter().find(|f| f.level == Level::Critical && curable(f));
        let Some(worst) = worst.filter(|_| self.watch.monitor.checks().len() >= SETTLED) else { return Ok(false) };
        let Finding { what, since, because, .. } = worst;
        let step = self.state.step;
        let stop = Error::Critical { what: what.clone(), since, because: because.clone(), step };
        let waiting = self.state.halvings > 0 && step < self.state.halved_at + PATIENCE * self.watch.every;
        match how {
            OnCritical::Tell => Ok(false),
            OnCritical::Stop => Err(stop),
            _ if waiting => Ok(false),
            _ if self.state.halvings >= HALVINGS => Err(stop),
            OnCritical::HalveLr => {
                self.halve(step);
                observer
                    .observe(&Event::Warning(&format!("step {step}: {what} is critical; the learning rate is halved")));
                Ok(false)
            }
            OnCritical::Rollback => {
                self.halve(step);
                let cause = format!("step {step}: {what} is critical since step {since}; the learning rate is halved");
                match self.roll_back(cause, |at| at < since, 0, saver, observer)? {
                    true => Ok(true),
                    false => {
                        let because =
                            format!("{because}; no checkpoint from before it is left (train.keep says how many are)");
                        Err(Error::Critical { what, since, because, step })
                    }
                }
            }
        }
    }

    fn halve(&mut self, step: u64) {
        self.state.halvings += 1;
        self.state.halved_at = step;
    }
}
