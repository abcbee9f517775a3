//! Steps whose update is left out, and the way back to a checkpoint.

use candle_core::Tensor;
use zoo_layers::optim::norm_squared;

use super::{Step, Trainer};
use crate::saver::Saver;
use crate::{Error, Event, Observer, OnNonFinite, Result, Task};

/// A loss or gradient that is not a finite number.
#[derive(Clone, Debug)]
pub(super) struct NonFinite {
    pub(super) what: String,
    pub(super) step: u64,
    pub(super) value: f64,
}

impl std::fmt::Display for NonFinite {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "{} at step {} is {}", self.what, self.step, self.value)
    }
}

impl From<NonFinite> for Error {
    fn from(NonFinite { what, step, value }: NonFinite) -> Self {
        Self::NonFinite { what, step, value }
    }
}

/// Why a step's update is left out.
pub(super) enum Refusal {
    NotFinite(NonFinite),
    /// Gradients left f16; what the loss is multiplied by from now on.
    Overflow(f64),
    Spike(String),
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        match self {
            Self::NotFinite(NonFinite { what, value, .. }) => write!(f, "{what} is {value}"),
            Self::Overflow(factor) => write!(f, "gradients exceed f16; the loss is multiplied by {factor} from now on"),
            Self::Spike(what) => f.write_str(what),
        }
    }
}

impl<T: Task> Trainer<'_, T> {
    /// Copies of the statistics that layers keep.
    pub(super) fn statistics(&self) -> Result<Vec<Tensor>> {
        Ok(self.buffers.iter().map(|b| b.copy()).collect::<candle_core::Result<_>>()?)
    }

    /// Why a step must not reach the weights, if there is a reason; the layers' statistics are then as they were before it.
    ///
    /// # Errors
    /// A parameter without any gradient at the first step; what is not finite, where that ends the run.
    pub(super) fn guard(&mut self, step: &Step, statistics: &[Tensor]) -> Result<Option<Refusal>> {
        let mut refusal = self.refusal(step)?;
        if let Some(scale) = &mut self.state.loss_scale {
            let overflowed = step.loss.is_finite() && !step.norm.is_finite();
            if scale.update(overflowed) {
                refusal = Some(Refusal::Overflow(scale.factor));
            }
        }
        if refusal.is_some() {
            self.buffers.iter().zip(statistics).try_for_each(|(b, before)| b.set(before))?;
        }
        if let Some(Refusal::NotFinite(error)) = &mut refusal {
            self.trace(step.micro_batch, error);
            self.state.guard.not_finite += 1;
            let train = &self.config.train;
            if train.on_nonfinite == OnNonFinite::Abort || self.state.guard.not_finite > train.nonfinite_limit {
                return Err(error.clone().into());
            }
        }
        Ok(refusal)
    }

    fn refusal(&mut self, step: &Step) -> Result<Option<Refusal>> {
        let number = self.state.step + 1;
        let missing = step.grads.missing();
        if number == 1 && !missing.is_empty() {
            return Err(Error::NoGradient(missing.into_iter().map(String::from).collect()));
        }
        let not_finite = |what: String, value| Ok(Some(Refusal::NotFinite(NonFinite { what, step: number, value })));
        if !step.loss.is_finite() {
            return not_finite("the loss".into(), step.loss);
        }
        if step.norm.is_finite() {
            return Ok(self.state.guard.spike(step.loss, step.norm, &self.config.train).map(Refusal::Spike));
        }
        for (name, grad) in step.grads.iter() {
            let value = grad.map_or(Ok(0.), norm_squared)?;
            if !value.is_finite() {
                return not_finite(format!("the gradient of {name}"), value);
            }
        }
        not_finite("the gradient norm".into(), step.norm)
    }

    /// A weight that is not a finite number, by the name of its parameter.
    fn broken_weight(&self) -> Result<Option<NonFinite>> {
        for (name, weights) in self.params.tensors() {
            let value = norm_squared(&weights)?;
            if !value.is_finite() {
                return Ok(Some(NonFinite { what: format!("a weight of {name}"), step: self.state.step, value }));
            }
        }
        Ok(None)
    }

    /// Saves the state, unless weights are not finite; whether the run went back to a checkpoint for that.
    ///
    /// # Errors
    /// Saving failed, or broken weights end the run.
    pub(super) fn checkpoint(&mut self, saver: Option<&Saver>, observer: &mut dyn Observer) -> Result<bool> {
        // Neither a rollback nor a resume would get away from a checkpoint of broken weights.
        let Some(problem) = self.broken_weight()? else { return self.save(saver).map(|()| false) };
        self.state.guard.not_finite += 1;
        let limit = self.state.guard.not_finite > self.config.train.nonfinite_limit;
        if self.config.train.on_nonfinite != OnNonFinite::Rollback || limit {
            return Err(problem.into());
        }
        self.roll_back_from(&problem, saver, observer).map(|()| true)
    }

    /// Goes back to the last checkpoint that was written on schedule (not for a signal, so that interruptions change
    /// nothing) and that `wanted` takes, and on with the batches after `passed` more than those so far.
    pub(super) fn roll_back(
        &mut self,
        cause: String,
        wanted: impl Fn(u64) -> bool,
        passed: u64,
        saver: Option<&Saver>,
        observer: &mut dyn Observer,
    ) -> Result<bool> {
        if let Some(saver) = saver {
            saver.wait()?;
        }
        let every = self.checkpoint_every();
        let failed = self.state.clone();
        let found = match self.run.clone() {
            None => None,
            Some(run) => {
                let found = run.latest(self.params.device(), |step| step.is_multiple_of(every) && wanted(step))?;
                if found.saved.is_some() {
                    run.return_to(&found)?;
                    found.warnings.iter().for_each(|w| observer.observe(&Event::Warning(w)));
                }
                found.saved
            }
        };
        let Some(saved) = self.found_by_first(found)? else { return Ok(false) };
        self.restore(saved)?;
        self.recall_health(observer)?;
        self.state.micro_batch = failed.micro_batch + passed;
        self.state.guard.not_finite = failed.guard.not_finite;
        let step = self.state.step;
        (self.state.halvings, self.state.halved_at) = (failed.halvings, failed.halved_at.min(step));
        observer.observe(&Event::Warning(&format!("{cause}; back to step {step}, past the batches in between")));
        observer.observe(&Event::RolledBack { step });
        Ok(true)
    }

    /// [`Self::roll_back`] for what is not finite.
    ///
    /// # Errors
    /// There is nothing to go back to: the cause itself.
    pub(super) fn roll_back_from(
        &mut self,
        cause: &NonFinite,
        saver: Option<&Saver>,
        observer: &mut dyn Observer,
    ) -> Result<()> {
        let done = self.state.step;
        let passed = if cause.step > done { self.config.train.accumulate } else { 0 };
        match self.roll_back(cause.to_string(), |step| step <= done, passed, saver, observer)? {
            true => Ok(()),
            false => Err(cause.clone().into()),
        }
    }
}
