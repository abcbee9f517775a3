mod rate_test;
mod watch;

use std::path::Path;
use std::thread::scope;
use std::time::Instant;

use candle_core::{DType, Device, Tensor, Var};
use regex::Regex;
use serde::Serialize;
use serde_json::{Map, Value, json};
use zoo_checkpoint::Description;
use zoo_layers::ops::{autocast, backward_scaled};
use zoo_layers::optim::{Optimizer, average, clip_factor, global_norm, norm_squared};
use zoo_layers::{Gradients, Mode, Params};

use crate::config::{ComputeType, ConfigOf};
use crate::loader::Loader;
use crate::run::{Saved, Snapshot};
use crate::saver::Saver;
use crate::schedule::rate;
use crate::{
    Batches, Error, Event, Experience, LossScale, Metrics, Observer, OnCritical, OnNonFinite, Result, Round,
    RunDirectory, Split, State, Task, TrainConfig,
};

use watch::Watch;

pub use rate_test::RateTest;

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// All steps are done.
    Finished,
    /// The validation loss stopped improving.
    Early,
    /// A signal stopped it; it can be resumed.
    Interrupted,
}

/// Which parameters got gradients in a step.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct GradientReport {
    /// Trainable tensors.
    pub tensors: usize,
    /// Those that got a gradient.
    pub with_gradient: usize,
}

/// The result of a run.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// How it ended.
    pub end: End,
    /// Steps of the whole run.
    pub steps: u64,
    /// Seconds of this process.
    pub seconds: f64,
    /// The last training loss.
    pub loss: f64,
    /// The last validation metrics.
    pub metrics: Metrics,
    /// The best validation loss and its step.
    pub best: Option<(f64, u64)>,
    /// Gradients of the last step.
    pub gradients: GradientReport,
    /// Steps whose update was refused, as not finite or as spikes.
    pub refused: u64,
    /// With `train.overfit_batch`: the least loss that any model could have on the batch, if the task knows it.
    pub least_loss: Option<f64>,
}

/// A model in training.
pub struct Trainer<'a, T: Task> {
    task: &'a T,
    config: &'a ConfigOf<T>,
    params: Params,
    model: T::Model,
    /// Moving average of the weights, if the configuration asks for one.
    average: Option<Params>,
    /// What is evaluated: over the storage of the average or else of the parameters, without a graph.
    frozen: T::Model,
    optimizer: Optimizer,
    batches: Batches,
    /// What makes the samples, if the model does.
    experience: Option<Box<dyn Experience<T> + 'a>>,
    /// Tells apart what that comes from; empty where the model makes none.
    origin: String,
    state: State,
    run: Option<&'a RunDirectory>,
    metrics: Metrics,
    gradients: GradientReport,
    watch: Watch,
    /// Statistics that layers keep: a refused step must not change them either.
    buffers: Vec<Var>,
}

/// A step's mean loss, its parts and the gradients.
struct Step {
    /// The number of the first micro-batch without a finite loss, or else of the last.
    shown: u64,
    loss: f64,
    parts: Metrics,
    grads: Gradients,
    lr: f64,
    norm: f64,
}

impl<'a, T: Task> Trainer<'a, T> {
    /// A model with initial values from the seed or from `train.init_from`. Nothing is written unless it is
    /// [kept in](Self::keep_in) a run directory.
    ///
    /// # Errors
    /// The training split is empty, the model cannot be built, or the initial weights or frozen names do not fit it.
    pub fn new(task: &'a T, config: &'a ConfigOf<T>, device: &Device) -> Result<Self> {
        let mut trainer = Self::untrained(task, config, device)?;
        trainer.load_initial()?;
        Ok(trainer)
    }

    /// [`Trainer::new`] for a run that goes on: initial weights are only read if `run` has no checkpoint yet.
    ///
    /// # Errors
    /// Those of [`Trainer::new`]; all checkpoints are damaged; or the configuration or the data are not those that the run
    /// was begun with. `changed` names the keys (`data` for the data itself) that may differ all the same.
    pub fn resume(
        task: &'a T,
        config: &'a ConfigOf<T>,
        device: &Device,
        run: &'a RunDirectory,
        changed: &[String],
        observer: &mut dyn Observer,
    ) -> Result<Self> {
        let mut trainer = Self::untrained(task, config, device)?;
        trainer.keep_in(run);
        trainer.take_up(run, changed, observer)?;
        Ok(trainer)
    }

    fn untrained(task: &'a T, config: &'a ConfigOf<T>, device: &Device) -> Result<Self> {
        let train = &config.train;
        let experience = task.experience(config)?;
        if experience.is_some() && (train.overfit_batch || train.accumulate != 1) {
            return Err(Error::Usage(
                "train.overfit_batch and train.accumulate are of no use where the model makes its samples itself, by acting: \
                 every round has others (train.batch_size makes larger steps)"
                    .into(),
            ));
        }
        let origin = if experience.is_some() { origin(task, config)? } else { String::new() };
        let samples = experience.as_ref().map_or_else(|| task.samples(Split::Train), |e| e.samples());
        if samples == 0 {
            return Err(Error::Data("the training split has no samples".into()));
        }
        let params = match train.frozen()? {
            Some(frozen) => Params::init(train.seed, device).with_frozen(move |name| frozen.is_match(name)),
            None => Params::init(train.seed, device),
        };
        let model = T::build(&config.model, params.builder())?;
        check_frozen(&params, train.frozen()?)?;
        let average = (train.ema > 0.).then(|| Params::init(train.seed, device));
        let frozen = T::build(&config.model, average.as_ref().unwrap_or(&params).eval_builder())?;
        let optimizer = Optimizer::new(train.rule(), &params, |p| train.group(p))?;
        let batches = Batches::new(samples, train.batch_size, train.seed);
        let loss_scale = (train.dtype == ComputeType::F16).then(LossScale::default);
        let state = State { loss_scale, ..State::default() };
        let (run, metrics, gradients) = (None, vec![], GradientReport::default());
        let watch = Watch::new::<T>(config, &params)?;
        let buffers = params.all().into_iter().filter(|p| p.buffer).map(|p| p.var).collect();
        Ok(Self {
            task,
            config,
            params,
            model,
            average,
            frozen,
            optimizer,
            batches,
            experience,
            origin,
            state,
            run,
            metrics,
            gradients,
            watch,
            buffers,
        })
    }

    /// Writes metrics, checkpoints and weights to `run`.
    pub fn keep_in(&mut self, run: &'a RunDirectory) {
        self.run = Some(run);
    }

    /// Sets the weights to those of `train.init_from`, if there is one.
    fn load_initial(&mut self) -> Result<()> {
        let path = Path::new(&self.config.train.init_from);
        if path.as_os_str().is_empty() {
            return Ok(());
        }
        let file = zoo_checkpoint::read(path, self.params.device())?;
        for params in [Some(&self.params), self.average.as_ref()].into_iter().flatten() {
            let fits = params.set(&file.tensors);
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
        let found = run.latest(self.params.device(), |_| true)?;
        let now = self.on_record()?;
        let differs = run.accepted()?.map(|before| self.differences(&before, &now)).unwrap_or_default();
        let refused: Vec<&Difference> = differs.iter().filter(|d| !changed.iter().any(|key| d.is_named(key))).collect();
        if !refused.is_empty() {
            let shown: Vec<String> =
                refused.iter().map(|d| format!("{}: {} then, {} now", d.key, d.was, d.now)).collect();
            let flags: String = refused.iter().map(|d| format!(" --allow-change {}", d.key)).collect();
            return Err(Error::Usage(format!(
                "{} was begun with another configuration ({}): undo the change, or allow it with{flags}",
                run.path().display(),
                shown.join("; ")
            )));
        }
        let unknown = |key: &String| now["config"].pointer(&format!("/{}", key.replace('.', "/"))).is_none();
        if let Some(key) = changed.iter().find(|key| *key != "data" && unknown(key)) {
            return Err(Error::Usage(format!(
                "--allow-change {key}: there is no such key (--print-config lists them)"
            )));
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
        if differs.iter().any(|d| d.key.starts_with("data")) {
            observer.observe(&Event::Warning("the data are others: what was best so far is no longer counted"));
            self.state.forget_losses();
        }
        run.accept(&now)?;
        // A crash may have come before the last checkpoint's predecessors were dropped.
        run.prune(self.config.train.keep, self.checkpoint_every())
    }

    fn restore(&mut self, saved: Saved) -> Result<()> {
        self.params.set(&saved.model)?;
        if let Some(average) = &self.average {
            // A run that takes up averaging starts it at its weights.
            average.set(saved.average.as_ref().unwrap_or(&saved.model))?;
        }
        self.optimizer.load(&saved.optimizer, saved.state.updates)?;
        self.state = saved.state;
        let scale = self.state.loss_scale.unwrap_or_default();
        self.state.loss_scale = (self.config.train.dtype == ComputeType::F16).then_some(scale);
        // What was collected elsewhere, or in other rounds, is of no use.
        let fits = self.state.round.as_ref().is_some_and(|r| r.origin == self.origin);
        match (&mut self.experience, &saved.experience) {
            (Some(experience), Some(saved)) if fits => experience.restore(saved)?,
            _ => {
                self.experience = self.task.experience(self.config)?;
                self.state.round = None;
            }
        }
        Ok(())
    }

    /// Micro-steps that the samples of a round serve at most.
    fn per_round(&self) -> u64 {
        let passes = self.experience.as_ref().map_or(1, |e| e.passes());
        self.batches.per_epoch().saturating_mul(passes)
    }

    /// Has the model act, if the next step needs new samples.
    fn gather(&mut self, observer: &mut dyn Observer) -> Result<()> {
        let round = self.state.micro_batch / self.per_round();
        let at_hand = self.state.round.as_ref().is_some_and(|r| r.number == round);
        let Some(experience) = self.experience.as_mut().filter(|_| !at_hand) else {
            return Ok(());
        };
        let metrics = experience.collect(&self.model, round)?;
        self.state.round = Some(Round { number: round, origin: self.origin.clone() });
        let step = self.state.step;
        if let Some(run) = self.run {
            // With the step that it is for: a run that goes back to the one before collects again.
            run.metrics().append(&json!({ "step": step + 1, "experience": object(&metrics) }))?;
        }
        observer.observe(&Event::Collected { step, metrics: &metrics });
        Ok(())
    }

    /// What has to stay the same over the whole run.
    fn on_record(&self) -> Result<Value> {
        Ok(json!({ "model": T::NAME, "config": self.description()?.config, "data": self.task.fingerprint() }))
    }

    /// What differs between two such records, but for what has no effect on the result.
    fn differences(&self, before: &Value, now: &Value) -> Vec<Difference> {
        let mut found = vec![];
        differing("", &before["config"], &now["config"], &mut found);
        // A rollback goes back to a checkpoint: there it matters when they are written.
        let TrainConfig { on_nonfinite, on_critical, .. } = self.config.train;
        let rolls_back = on_nonfinite == OnNonFinite::Rollback || on_critical == OnCritical::Rollback;
        let matters = |key: &str| match key {
            "train.checkpoint_every" => rolls_back,
            "train.health_every" => self.config.train.acts_on_health(),
            _ => false,
        };
        found.retain(|d| matters(&d.key) || !WITHOUT_EFFECT.contains(&d.key.as_str()));
        if before["data"] != now["data"] {
            let (was, now) = ("some samples".into(), "others".into());
            found.push(Difference { key: "data".into(), was, now });
        }
        found
    }

    /// The model's parameters.
    pub fn params(&self) -> &Params {
        &self.params
    }

    /// Steps of the whole run.
    pub fn total_steps(&self) -> u64 {
        let TrainConfig { steps, epochs, accumulate, .. } = self.config.train;
        if steps > 0 { steps } else { epochs.saturating_mul(self.batches.per_epoch()).div_ceil(accumulate) }
    }

    fn checkpoint_every(&self) -> u64 {
        let every = self.config.train.checkpoint_every;
        if every > 0 { every } else { self.total_steps().div_ceil(10) }
    }

    /// Trains until the end, reporting to `observer`; `interrupted` is asked after every step.
    ///
    /// # Errors
    /// A parameter without gradient, a loss or gradient that is not finite (unless `train.on_nonfinite` says otherwise),
    /// or a failed save. Weights are never touched by such a step.
    pub fn train(&mut self, observer: &mut dyn Observer, interrupted: &dyn Fn() -> bool) -> Result<Outcome> {
        let (started, run, task, train) = (Instant::now(), self.run, self.task, &self.config.train);
        if let (Some(run), 0) = (run, self.state.step) {
            run.accept(&self.on_record()?)?;
        }
        let every = self.checkpoint_every();
        let fixed = match train.overfit_batch {
            true => Some(task.batch(Split::Train, self.batches.at(0))?),
            false => None,
        };
        let (loss, end) = scope(|scope| {
            let mut loader = Loader::new(scope, task, self.batches.clone(), train.prefetch);
            let saver = run.map(|run| Saver::new(scope, run, train.keep, every));
            let mut batch = |number| match &fixed {
                Some(batch) => Ok(batch.clone()),
                None => loader.get(number),
            };
            let result = self.steps(&mut batch, saver.as_ref(), observer, interrupted, started);
            match saver.map(Saver::finish) {
                // Why saving failed explains why training did.
                Some(Err(e)) => return Err(e),
                Some(Ok(steps)) => steps.iter().for_each(|&step| observer.observe(&Event::Saved { step })),
                None => {}
            }
            result
        })?;
        if let Some(run) = run {
            zoo_checkpoint::write(&run.last(), &self.evaluated().tensors(), &self.description()?.metadata())?;
        }
        Ok(Outcome {
            end,
            steps: self.state.step,
            seconds: started.elapsed().as_secs_f64(),
            loss,
            metrics: self.metrics.clone(),
            best: self.state.best.first().copied(),
            gradients: self.gradients,
            refused: self.state.guard.not_finite + self.state.guard.spikes,
            least_loss: fixed.as_ref().map(|batch| task.least_loss(batch)).transpose()?.flatten(),
        })
    }

    fn steps(
        &mut self,
        batch: &mut dyn FnMut(u64) -> candle_core::Result<T::Batch>,
        saver: Option<&Saver>,
        observer: &mut dyn Observer,
        interrupted: &dyn Fn() -> bool,
        started: Instant,
    ) -> Result<(f64, End)> {
        let train = &self.config.train;
        let total = self.total_steps();
        let eval_every =
            if train.eval_every > 0 { train.eval_every } else { self.batches.per_epoch().div_ceil(train.accumulate) };
        let checkpoint_every = self.checkpoint_every();
        observer.observe(&Event::Start { step: self.state.step, total });
        if self.state.step == 0 {
            // What a run began with, so that it can always go back to it.
            self.save(saver)?;
            self.preflight(observer)?;
        }
        let stale = |state: &State| train.early_stopping > 0 && state.stale >= train.early_stopping;
        let (mut end, mut loss) = (if stale(&self.state) { End::Early } else { End::Finished }, f64::NAN);
        while self.state.step < total && end == End::Finished {
            self.gather(observer)?;
            let halved = 0.5f64.powi(self.state.halvings as i32);
            let lr = rate(train, self.state.step, total, &self.state.plateau) * halved;
            let statistics = self.buffers.iter().map(|b| b.copy()).collect::<candle_core::Result<Vec<_>>>()?;
            let mut step = self.micro_steps(lr, batch)?;
            let mut refusal = self.refusal(&step)?;
            if let Some(scale) = &mut self.state.loss_scale {
                let overflowed = step.loss.is_finite() && !step.norm.is_finite();
                if scale.took(overflowed) {
                    refusal = Some(Refusal::Overflow(scale.factor));
                }
            }
            if refusal.is_some() {
                self.buffers.iter().zip(&statistics).try_for_each(|(b, before)| b.set(before))?;
            }
            if let Some(Refusal::NotFinite(error)) = &mut refusal {
                self.trace(step.shown, error);
                self.state.guard.not_finite += 1;
                if train.on_nonfinite == OnNonFinite::Abort || self.state.guard.not_finite > train.nonfinite_limit {
                    return Err(error.clone().into());
                }
                if train.on_nonfinite == OnNonFinite::Rollback {
                    self.roll_back_from(error, saver, observer)?;
                    if interrupted() {
                        end = End::Interrupted;
                    }
                    continue;
                }
            }
            let look = self.watch.is_due(self.state.step + 1) && refusal.is_none();
            let seen = if look { Some(self.before_look(&mut step)?) } else { None };
            if refusal.is_none() {
                self.optimizer.step(&step.grads, lr, self.clip(step.norm))?;
                self.state.updates += 1;
                if let Some(ema) = &self.average {
                    // A short history weighs its few updates evenly at first.
                    let t = self.state.updates as f64;
                    average(ema, &self.params, train.ema.min((1. + t) / (10. + t)))?;
                }
            }
            self.state.step += 1;
            self.state.micro_batch += train.accumulate;
            if self.experience.as_ref().is_some_and(|e| e.is_spent(&step.parts)) {
                self.state.micro_batch = self.state.micro_batch.next_multiple_of(self.per_round());
            }
            let number = self.state.step;
            loss = step.loss;
            self.gradients = GradientReport {
                tensors: step.grads.len(),
                with_gradient: step.grads.len() - step.grads.missing().len(),
            };
            if let Some(refusal) = &refusal {
                observer.observe(&Event::Warning(&format!("step {number}: {refusal}; its update was left out")));
            }
            observer.observe(&Event::Step { step: number, loss, parts: &step.parts, lr, grad_norm: step.norm });
            if let Some(seen) = seen
                && self.look(&seen, saver, observer)?
            {
                continue;
            }
            if number.is_multiple_of(train.log_every) || number == 1 || number == total || refusal.is_some() {
                self.log_step(&step, refusal.is_some(), started)?;
            }
            if number.is_multiple_of(eval_every) || number == total {
                self.evaluate(saver, observer)?;
            }
            let (stop, early) = (interrupted(), stale(&self.state));
            if number.is_multiple_of(checkpoint_every) || number == total || stop || early {
                // Neither a rollback nor a resume would get away from a checkpoint of broken weights.
                if let Some(problem) = self.broken_weight()? {
                    self.state.guard.not_finite += 1;
                    let limit = self.state.guard.not_finite > train.nonfinite_limit;
                    if train.on_nonfinite != OnNonFinite::Rollback || limit {
                        return Err(problem.into());
                    }
                    self.roll_back_from(&problem, saver, observer)?;
                    continue;
                }
                self.save(saver)?;
            }
            if let Some(step) = saver.and_then(Saver::saved) {
                observer.observe(&Event::Saved { step });
            }
            if early || (stop && number < total) {
                end = if early { End::Early } else { End::Interrupted };
            }
        }
        Ok((loss, end))
    }

    fn clip(&self, norm: f64) -> f64 {
        clip_factor(norm, self.config.train.clip_norm)
    }

    /// Mean loss, mean parts and mean gradients of a step's micro-batches.
    fn micro_steps(&mut self, lr: f64, batch: &mut dyn FnMut(u64) -> candle_core::Result<T::Batch>) -> Result<Step> {
        let TrainConfig { seed, accumulate: count, .. } = self.config.train;
        let compute = self.config.train.compute();
        let scale = self.state.loss_scale.map_or(1., |s| s.factor);
        let (mut losses, mut grads) = (vec![], None::<Gradients>);
        // One switch for the process, which other devices have no use for.
        candle_core::cuda::set_gemm_reduced_precision_f32(self.config.train.dtype == ComputeType::Tf32);
        for micro in 0..count {
            let number = self.state.micro_batch + micro;
            let samples = match &self.experience {
                Some(experience) => experience.batch(self.batches.at(number))?,
                None => batch(number)?,
            };
            let result =
                autocast(compute, || self.task.loss(&self.model, &samples, Mode::Train { seed, step: number }))?;
            let of_micro = self.params.gradients(&backward_scaled(&result.total, scale)?);
            // Neither is waited for before the whole step is under way; without their history the graph is free.
            let parts = result.parts.into_iter().map(|(name, value)| (name, value.detach()));
            losses.push((result.total.detach(), parts.collect::<Vec<_>>()));
            match &mut grads {
                Some(grads) => grads.add(&of_micro)?,
                None => grads = Some(of_micro),
            }
        }
        candle_core::cuda::set_gemm_reduced_precision_f32(false);
        let Some(mut grads) = grads else {
            return Err(Error::Usage("train.accumulate must be at least 1".into()));
        };
        if count > 1 || scale != 1. {
            grads.scale(1. / (scale * count as f64))?;
        }
        let norm = global_norm(&grads)?;
        let (mut loss, mut parts, mut shown) = (0., Metrics::new(), 0);
        for (micro, (of_micro, named)) in losses.iter().enumerate() {
            if f64::is_finite(loss) {
                shown = self.state.micro_batch + micro as u64;
            }
            loss += scalar(of_micro)? / count as f64;
            for (i, (name, value)) in named.iter().enumerate() {
                let value = scalar(value)? / count as f64;
                match parts.get_mut(i) {
                    Some((_, sum)) => *sum += value,
                    None => parts.push((*name, value)),
                }
            }
        }
        Ok(Step { shown, loss, parts, grads, lr, norm })
    }

    /// Why a step must not reach the weights, if there is a reason.
    ///
    /// # Errors
    /// A parameter without any gradient at the first step.
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

    /// Goes back to the last checkpoint that was written on schedule (not for a signal, so that interruptions change
    /// nothing) and that `wanted` takes, and on with the batches after `passed` more than those so far.
    fn roll_back(
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
        let (Some(run), failed) = (self.run, self.state.clone()) else { return Ok(false) };
        let found = run.latest(self.params.device(), |step| step.is_multiple_of(every) && wanted(step))?;
        if found.saved.is_none() {
            return Ok(false);
        }
        run.return_to(&found)?;
        found.warnings.iter().for_each(|w| observer.observe(&Event::Warning(w)));
        let Some(saved) = found.saved else { return Ok(false) };
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
    fn roll_back_from(&mut self, cause: &NonFinite, saver: Option<&Saver>, observer: &mut dyn Observer) -> Result<()> {
        let done = self.state.step;
        let passed = if cause.step > done { self.config.train.accumulate } else { 0 };
        match self.roll_back(cause.to_string(), |step| step <= done, passed, saver, observer)? {
            true => Ok(()),
            false => Err(cause.clone().into()),
        }
    }

    fn log_step(&self, step: &Step, refused: bool, started: Instant) -> Result<()> {
        let Some(run) = self.run else { return Ok(()) };
        let mut line = Map::new();
        line.insert("step".into(), self.state.step.into());
        line.insert("loss".into(), step.loss.into());
        line.extend(step.parts.iter().map(|(name, value)| (name.to_string(), (*value).into())));
        line.insert("lr".into(), step.lr.into());
        line.insert("grad_norm".into(), step.norm.into());
        if refused {
            line.insert("refused".into(), true.into());
        }
        line.insert("seconds".into(), ((started.elapsed().as_secs_f64() * 1e3).round() / 1e3).into());
        run.metrics().append(&Value::Object(line))
    }

    fn evaluate(&mut self, saver: Option<&Saver>, observer: &mut dyn Observer) -> Result<()> {
        let overfit = self.config.train.overfit_batch || self.task.samples(Split::Valid) == 0;
        let split = if overfit { Split::Train } else { Split::Valid };
        let metrics = self.task.validate(&self.frozen, split)?;
        let (step, train) = (self.state.step, &self.config.train);
        let loss = metrics.iter().find(|(name, _)| *name == "loss").map_or(f64::NAN, |(_, v)| *v);
        if !loss.is_finite() {
            let problem = NonFinite { what: "the validation loss".into(), step, value: loss };
            if train.on_nonfinite == OnNonFinite::Abort {
                return Err(problem.into());
            }
            observer.observe(&Event::Warning(&problem.to_string()));
        }
        let (best, kept) = self.state.evaluated(loss, train.keep_best);
        self.state.plateau.observe(loss, train);
        if let Some(run) = self.run {
            run.metrics().append(&json!({ "step": step, split.name(): object(&metrics) }))?;
        }
        if let (Some(saver), true) = (saver, kept) {
            saver.best(step, copies(self.evaluated().tensors())?, self.description()?.metadata(), best)?;
        }
        observer.observe(&Event::Evaluated { step, metrics: &metrics, best });
        self.metrics = metrics;
        Ok(())
    }

    fn save(&self, saver: Option<&Saver>) -> Result<()> {
        let Some(saver) = saver else { return Ok(()) };
        saver.checkpoint(Snapshot {
            weights: copies(self.params.tensors())?,
            metadata: self.description()?.metadata(),
            optimizer: copies(self.optimizer.state())?,
            average: self.average.as_ref().map(|a| copies(a.tensors())).transpose()?,
            // Before the first round there is nothing to keep.
            experience: self
                .experience
                .as_ref()
                .filter(|_| self.state.round.is_some())
                .map(|e| e.state())
                .transpose()?,
            state: self.state.clone(),
        })
    }

    /// The weights that are evaluated and used: the average if there is one.
    fn evaluated(&self) -> &Params {
        self.average.as_ref().unwrap_or(&self.params)
    }

    fn description(&self) -> Result<Description> {
        let mut config =
            serde_json::to_value(self.config).map_err(|e| Error::Run(format!("the configuration: {e}")))?;
        // Weights travel: they say which files they saw, not where those lay.
        for key in ["/data/path", "/train/init_from"] {
            if let Some(Value::String(path)) = config.pointer_mut(key) {
                *path = Path::new(path).file_name().unwrap_or_default().to_string_lossy().into_owned();
            }
        }
        // Nor does it matter to them who prepared the batches: the same weights are the same bytes.
        if let Some(prefetch) = config.pointer_mut("/train/prefetch") {
            *prefetch = 0.into();
        }
        Ok(Description { model: T::NAME.into(), config, fitted: self.task.fitted() })
    }
}

fn object(metrics: &Metrics) -> Map<String, Value> {
    metrics.iter().map(|(name, value)| (name.to_string(), (*value).into())).collect()
}

/// Keys that change how a run is kept, not what it computes; the file's place is no change either (its contents are).
const WITHOUT_EFFECT: [&str; 6] =
    ["data.path", "train.checkpoint_every", "train.health_every", "train.init_from", "train.keep", "train.log_every"];

/// Tells the data and settings apart that decide what a model collects; where a file lies does not.
fn origin<T: Task>(task: &T, config: &ConfigOf<T>) -> Result<String> {
    let value = |e: serde_json::Error| Error::Run(format!("the configuration: {e}"));
    let mut data = serde_json::to_value(&config.data).map_err(value)?;
    data["path"] = Value::Null;
    let all = json!({ "data": data, "ppo": config.train.ppo, "samples": task.fingerprint() });
    Ok(zoo_checkpoint::sha256_of(all.to_string().as_bytes()))
}

/// A key with another value than the run was begun with.
struct Difference {
    key: String,
    was: String,
    now: String,
}

impl Difference {
    /// Whether a key that may change is this one, or the table that it is in.
    fn is_named(&self, key: &str) -> bool {
        self.key.strip_prefix(key).is_some_and(|rest| rest.is_empty() || rest.starts_with('.') && key.contains('.'))
    }
}

/// The keys of `now`, by their path, that have other values in `before`.
fn differing(path: &str, before: &Value, now: &Value, found: &mut Vec<Difference>) {
    if let Value::Object(table) = now {
        for (key, value) in table {
            let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
            differing(&path, &before[key], value, found);
        }
    } else if before != now {
        found.push(Difference { key: path.to_string(), was: before.to_string(), now: now.to_string() });
    }
}

/// Refuses a `train.freeze` that names no parameter, or all of them.
fn check_frozen(params: &Params, frozen: Option<Regex>) -> Result<()> {
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

/// A loss or gradient that is not a finite number.
#[derive(Clone, Debug)]
struct NonFinite {
    what: String,
    step: u64,
    value: f64,
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
enum Refusal {
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

/// Copies that later steps do not change.
fn copies(tensors: Vec<(String, Tensor)>) -> Result<Vec<(String, Tensor)>> {
    tensors.into_iter().map(|(name, t)| Ok((name, t.to_device(&Device::Cpu)?.copy()?))).collect()
}

fn scalar(t: &Tensor) -> Result<f64> {
    // Not every device has f64.
    Ok(t.to_device(&Device::Cpu)?.to_dtype(DType::F64)?.to_scalar()?)
}

/// The first line of candle's message: a backtrace may follow.
fn first_line(e: &candle_core::Error) -> String {
    e.to_string().lines().next().unwrap_or_default().to_string()
}
