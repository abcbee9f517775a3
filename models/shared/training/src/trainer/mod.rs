//! The trainer: a run from its first step to its last.

mod guard;
mod log;
mod outcome;
mod rate_test;
mod resume;
mod step;
mod together;
mod watch;

use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::thread::scope;
use std::time::Instant;

use candle_core::{Device, Var};
use serde_json::Value;
use zoo_layers::Params;
use zoo_layers::optim::{Optimizer, average};

use crate::config::{ComputeType, ConfigOf, Settings};
use crate::doctor::FEWEST;
use crate::loader::{Loader, Numbers};
use crate::ranks::Ranks;
use crate::saver::Saver;
use crate::schedule::learning_rate;
use crate::{
    Batches, Error, Event, Experience, LossScale, Metrics, Observer, OnNonFinite, Result, RunDirectory, Split, State,
    Task, TrainConfig, record,
};

use guard::Refusal;
pub use log::LARGE;
pub use outcome::{End, GradientReport, Outcome};
pub use rate_test::RateTest;
use resume::check_frozen;
use step::Step;
pub use step::with_products;
use watch::Watch;

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
    run: Option<Arc<RunDirectory>>,
    metrics: Metrics,
    gradients: GradientReport,
    /// Whether the graph of a loss was searched for operations of candle's.
    graph_seen: bool,
    /// Whether the run was begun here, not resumed.
    begun: bool,
    watch: Watch,
    /// Statistics that layers keep: a refused step must not change them either.
    buffers: Vec<Var>,
    ranks: Rc<Ranks>,
    /// Whether every process has to see every batch, for those statistics.
    counts: bool,
    /// Whether one of the processes is to stop.
    stop: bool,
    /// Where a run stops before its end.
    until: Option<u64>,
    /// The step at which the run in its directory begins, of which another run did those before.
    begun_at: u64,
}

impl<'a, T: Task> Trainer<'a, T> {
    /// A model with initial values from the seed or from `train.init_from`. Nothing is written unless the run
    /// [begins](Self::begin) in a directory.
    ///
    /// # Errors
    /// The configuration cannot work, the training split is empty, the model cannot be built, or the initial weights or
    /// frozen names do not fit it.
    pub fn new(task: &'a T, config: &'a ConfigOf<T>, device: &Device) -> Result<Self> {
        let mut trainer = Self::untrained(task, config, device)?;
        trainer.load_initial()?;
        Ok(trainer)
    }

    /// Makes a run directory at `path`, with its `config.toml`; metrics, checkpoints and weights are written to it.
    ///
    /// # Errors
    /// There is a run already, or the directory cannot be made.
    pub fn begin(&mut self, path: &Path) -> Result<()> {
        self.run = Some(Arc::new(RunDirectory::create(path, &crate::config::to_toml(self.config)?)?));
        self.begun = true;
        if self.state.step > 0 {
            self.state.best.clear();
            self.begun_at = self.state.step;
            if let Some(run) = self.run.clone() {
                self.put_on_record(&run, record::on_record(self.task, self.config)?)?;
                // At once: it could not begin again without.
                run.save(&self.snapshot(false)?, self.config.train.keep, self.checkpoint_every())?;
            }
        }
        Ok(())
    }

    fn untrained(task: &'a T, config: &'a ConfigOf<T>, device: &Device) -> Result<Self> {
        let train = &config.train;
        train.validate()?;
        config.task.validate(train)?;
        if train.recompute && !device.is_cpu() {
            return Err(Error::Usage("train.recompute is for CPUs: on other devices activations are kept".into()));
        }
        if train.recompute && !T::recomputes(&config.model) {
            return Err(Error::Usage(format!(
                "train.recompute: {} with this configuration has no transformer blocks whose activations could be computed again",
                T::NAME
            )));
        }
        let experience = task.experience(config)?;
        if experience.is_some() && (train.overfit_batch || train.accumulate != 1) {
            return Err(Error::Usage(
                "train.overfit_batch and train.accumulate are of no use where the model collects its samples itself, by \
                 acting: every rollout has others (train.batch_size makes larger steps)"
                    .into(),
            ));
        }
        let origin = match &experience {
            Some(experience) => record::origin(task, config, experience.settings())?,
            None => String::new(),
        };
        let samples = experience.as_ref().map_or_else(|| task.samples(Split::Train), |e| e.samples());
        if samples == 0 {
            return Err(Error::Data("the training split has no samples".into()));
        }
        let (named, architecture) = (train.frozen()?, config.model.clone());
        let params = Params::init(train.seed, device).with_frozen(move |name| {
            named.as_ref().is_some_and(|named| named.is_match(name)) || !T::trains(&architecture, name)
        });
        let model = task.define(&config.model, params.builder())?;
        check_frozen(&params, train.frozen()?)?;
        let average = (train.ema > 0.).then(|| Params::init(train.seed, device));
        let frozen = task.define(&config.model, average.as_ref().unwrap_or(&params).eval_builder())?;
        let (rule, group) = task.optimizer(config);
        let optimizer = Optimizer::new(rule, &params, group)?;
        let batches = Batches::new(samples, train.batch_size, train.seed);
        let loss_scale = (train.dtype == ComputeType::F16).then(LossScale::default);
        let state = State { loss_scale, ..State::default() };
        let (run, metrics, gradients) = (None, Metrics::default(), GradientReport::default());
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
            begun: false,
            graph_seen: false,
            watch,
            buffers,
            ranks: Rc::default(),
            counts: false,
            stop: false,
            until: None,
            begun_at: 0,
        })
    }

    /// The model's parameters.
    pub fn params(&self) -> &Params {
        &self.params
    }

    /// The weights that are evaluated and used: the average if there is one.
    pub fn evaluated(&self) -> &Params {
        self.average.as_ref().unwrap_or(&self.params)
    }

    /// The run's directory, if it is kept in one.
    pub fn run(&self) -> Option<&RunDirectory> {
        self.run.as_deref()
    }

    /// Steps done so far.
    pub fn step(&self) -> u64 {
        self.state.step
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

    fn eval_every(&self) -> u64 {
        let TrainConfig { eval_every: every, accumulate, .. } = self.config.train;
        if every > 0 { every } else { self.batches.per_epoch().div_ceil(accumulate) }
    }

    /// Trains until the end, reporting to `observer`; `interrupted` is asked after every step.
    ///
    /// # Errors
    /// A parameter without gradient, a loss or gradient that is not finite (unless `train.on_nonfinite` says otherwise),
    /// or a failed save. Weights are never touched by such a step. A run that fails before its first step is done leaves no
    /// directory.
    pub fn train(&mut self, observer: &mut dyn Observer, interrupted: &dyn Fn() -> bool) -> Result<Outcome> {
        let outcome = self.run_to_end(observer, interrupted);
        let outcome = self.ranks.settle(outcome);
        match (&outcome, &self.run) {
            (Err(_), Some(run)) if self.begun && self.state.step == 0 => run.abandon(),
            (outcome, Some(run)) => {
                let end = match outcome {
                    Ok(outcome) => outcome.end.name().to_string(),
                    Err(e) => format!("failed: {:.300}", e.to_string().lines().next().unwrap_or_default()),
                };
                // How it ended is there to be looked at; a full disk may not have the room.
                if let Ok(Some(mut what)) = run.accepted() {
                    what["end"] = end.into();
                    let _ = run.accept(&what);
                }
            }
            _ => {}
        }
        outcome
    }

    /// Trains until `step` is done, as [`Trainer::train`] does, or to the end if that comes before. Where it stops, a checkpoint is written, as if a
    /// signal had stopped it, and it can be called again.
    ///
    /// # Errors
    /// Those of [`Trainer::train`].
    pub fn train_to(
        &mut self,
        step: u64,
        observer: &mut dyn Observer,
        interrupted: &dyn Fn() -> bool,
    ) -> Result<Outcome> {
        self.until = Some(step);
        let outcome = self.train(observer, interrupted);
        self.until = None;
        outcome
    }

    /// Puts on record what the run goes on with, and how long it is to be.
    fn put_on_record(&self, run: &RunDirectory, mut what: Value) -> Result<()> {
        what["total_steps"] = self.total_steps().into();
        what["samples"] = self.batches.samples().into();
        if self.begun_at > 0 {
            what["begins_at"] = self.begun_at.into();
        }
        run.accept(&what)
    }

    fn run_to_end(&mut self, observer: &mut dyn Observer, interrupted: &dyn Fn() -> bool) -> Result<Outcome> {
        let (started, run, task, train) = (Instant::now(), self.run.clone(), self.task, &self.config.train);
        if let (Some(run), 0) = (&run, self.state.step) {
            self.put_on_record(run, record::on_record(task, self.config)?)?;
        }
        let every = self.checkpoint_every();
        let fixed = match train.overfit_batch {
            true => Some(task.batch(Split::Train, self.batches.at(0))?),
            false => None,
        };
        let (loss, end) = scope(|scope| {
            let numbers = Numbers { share: self.own_share(), step: train.accumulate };
            let mut loader = Loader::new(scope, task, self.batches.clone(), numbers, train.prefetch);
            let saver = run.as_deref().map(|run| Saver::new(scope, run, train.keep, every));
            let mut batch = |number| match &fixed {
                Some(batch) => Ok(batch.clone()),
                None => loader.get(number),
            };
            let around = Around { saver: saver.as_ref(), interrupted, started };
            let result = self.steps(&mut batch, &around, observer);
            match saver.map(Saver::finish) {
                // Why saving failed explains why training did.
                Some(Err(e)) => return Err(e),
                Some(Ok(steps)) => steps.iter().for_each(|&step| observer.observe(&Event::Saved { step })),
                None => {}
            }
            result
        })?;
        if let Some(run) = &run {
            run.write_last(&self.evaluated().tensors(), &self.description()?.metadata())?;
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

    /// The loop: the last training loss, and how it ended.
    fn steps(&mut self, batch: Fetch<T>, around: &Around, observer: &mut dyn Observer) -> Result<(f64, End)> {
        let total = self.total_steps();
        observer.observe(&Event::Start { step: self.state.step, total });
        if let Some(remark) = self.config.train.dtype.remark(self.params.device()) {
            observer.observe(&Event::Warning(remark));
        }
        if self.state.step == 0 {
            // What a run began with, so that it can always go back to it.
            self.save(around.saver)?;
            for name in self.params.shared() {
                let what = "is asked for twice: two layers of one name share their weights";
                observer.observe(&Event::Warning(&format!("parameter {name} {what}")));
            }
            self.preflight(observer)?;
            if total / self.eval_every() + 1 >= FEWEST as u64 {
                self.evaluate_initial(observer)?;
            }
        }
        let mut loss = f64::NAN;
        let until = self.until.unwrap_or(total);
        let mut end = if self.is_stale() { End::Early } else { End::Finished };
        if end == End::Finished && self.state.step >= until && until < total {
            end = End::Interrupted;
        }
        while self.state.step < total && end == End::Finished {
            self.collect(observer)?;
            let lr = self.learning_rate();
            let statistics = self.statistics()?;
            let mut step = self.micro_steps(lr, batch, around.interrupted)?;
            let refusal = self.guard(&step, &statistics)?;
            if let Some(Refusal::NotFinite(error)) = &refusal
                && self.config.train.on_nonfinite == OnNonFinite::Rollback
            {
                self.roll_back_from(error, around.saver, observer)?;
                end = if self.is_stopped(around.interrupted) { End::Interrupted } else { end };
                continue;
            }
            let checked = self.before_check(&mut step, &refusal)?;
            if refusal.is_none() {
                self.update(&step)?;
            }
            loss = step.loss;
            self.count(&step);
            self.report(&step, &refusal, observer);
            if let Some(checked) = checked
                && self.check_health(&checked, around.saver, observer)?
            {
                continue;
            }
            let (number, last) = (self.state.step, self.state.step == total);
            if number.is_multiple_of(self.config.train.log_every) || number == 1 || last || refusal.is_some() {
                self.log_step(&step, refusal.is_some(), around.started)?;
            }
            if number.is_multiple_of(self.eval_every()) || last {
                self.evaluate(around.saver, observer)?;
            }
            let (stop, early) = (self.is_stopped(around.interrupted) || number >= until, self.is_stale());
            let due = number.is_multiple_of(self.checkpoint_every()) || last || stop || early;
            if due && self.checkpoint(around.saver, observer)? {
                continue;
            }
            if let Some(step) = around.saver.and_then(Saver::saved) {
                observer.observe(&Event::Saved { step });
            }
            if early || (stop && !last) {
                end = if early { End::Early } else { End::Interrupted };
            }
        }
        Ok((loss, end))
    }

    /// The learning rate of the next step.
    fn learning_rate(&self) -> f64 {
        let halved = 0.5f64.powi(self.state.halvings as i32);
        learning_rate(&self.config.train, self.state.step, self.total_steps(), &self.state.plateau) * halved
    }

    /// Moves the parameters, and their average.
    fn update(&mut self, step: &Step) -> Result<()> {
        self.optimizer.step(&step.grads, step.lr, self.clip(step.norm))?;
        self.state.updates += 1;
        if let Some(ema) = &self.average {
            // A short history weighs its few updates evenly at first.
            let t = self.state.updates as f64;
            average(ema, &self.params, self.config.train.ema.min((1. + t) / (10. + t)))?;
        }
        Ok(())
    }

    /// Counts a step as done.
    fn count(&mut self, step: &Step) {
        self.state.step += 1;
        self.state.micro_batch += self.config.train.accumulate;
        if self.experience.as_ref().is_some_and(|e| e.is_spent(&step.parts)) {
            self.state.micro_batch = self.state.micro_batch.next_multiple_of(self.per_rollout());
        }
        let tensors = step.grads.len();
        self.gradients = GradientReport { tensors, with_gradient: tensors - step.grads.missing().len() };
    }

    /// Whether the validation loss has not improved for too long.
    fn is_stale(&self) -> bool {
        let patience = self.config.train.early_stopping;
        patience > 0 && self.state.stale >= patience
    }
}

/// Where the batch of a micro-step comes from, by its number.
type Fetch<'f, T> = &'f mut dyn FnMut(u64) -> candle_core::Result<<T as Task>::Batch>;

/// What stands around the loop.
struct Around<'s> {
    saver: Option<&'s Saver<'s>>,
    interrupted: &'s dyn Fn() -> bool,
    started: Instant,
}
