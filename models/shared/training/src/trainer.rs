use std::path::Path;
use std::time::Instant;

use candle_core::{DType, Device, Tensor};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use zoo_layers::optim::{Optimizer, clip_factor, decay_matrices, global_norm, norm_squared};
use zoo_layers::{Gradients, Mode, Params};

use crate::config::ConfigOf;
use crate::schedule::{Plateau, rate};
use crate::{Batches, Description, Error, Event, Metrics, Observer, Result, RunDirectory, Split, Task, TrainConfig};

/// Everything about a run that is not a tensor: with the tensors of a checkpoint it decides all that follows.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// Optimizer steps done.
    pub step: u64,
    /// The best validation loss and its step.
    pub best: Option<(f64, u64)>,
    /// Evaluations since the best.
    pub stale: u64,
    /// The plateau schedule's memory.
    pub plateau: Plateau,
}

/// What a run does besides training.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Train on the first batch again and again: a model that cannot learn it by heart is broken.
    pub overfit_batch: bool,
}

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
}

/// A model in training.
pub struct Trainer<'a, T: Task> {
    task: &'a T,
    config: &'a ConfigOf<T>,
    options: Options,
    params: Params,
    model: T::Model,
    /// Over the same storage, without a graph.
    frozen: T::Model,
    optimizer: Optimizer,
    batches: Batches,
    state: State,
    /// Micro-batch of an overfitting run.
    first_batch: Option<T::Batch>,
    run: Option<&'a RunDirectory>,
    metrics: Metrics,
    gradients: GradientReport,
}

impl<'a, T: Task> Trainer<'a, T> {
    /// A new model with initial values from the seed; `run` is where it is saved, if anywhere.
    ///
    /// # Errors
    /// The training split is empty, or the model cannot be built.
    pub fn new(
        task: &'a T,
        config: &'a ConfigOf<T>,
        device: &Device,
        run: Option<&'a RunDirectory>,
        options: Options,
    ) -> Result<Self> {
        let train = &config.train;
        let samples = task.samples(Split::Train);
        if samples == 0 {
            return Err(Error::Data("the training split has no samples".into()));
        }
        let params = Params::init(train.seed, device);
        let model = T::build(&config.model, params.builder())?;
        let frozen = T::build(&config.model, params.eval_builder())?;
        let optimizer = Optimizer::new(train.rule(), &params, decay_matrices(train.weight_decay))?;
        let mut batches = Batches::new(samples, train.batch_size, train.seed);
        let first_batch = if options.overfit_batch { Some(task.batch(Split::Train, batches.at(0))?) } else { None };
        let (state, gradients) = (State::default(), GradientReport::default());
        Ok(Self {
            task,
            config,
            options,
            params,
            model,
            frozen,
            optimizer,
            batches,
            state,
            first_batch,
            run,
            metrics: vec![],
            gradients,
        })
    }

    /// Takes up the newest valid checkpoint of the run directory.
    ///
    /// # Errors
    /// There is none, or it belongs to another configuration.
    pub fn resume(&mut self, observer: &mut dyn Observer) -> Result<()> {
        let Some(run) = self.run else { return Err(Error::Run("there is no run directory to resume from".into())) };
        let (saved, warnings) = run.latest(self.params.device())?;
        warnings.iter().for_each(|w| observer.observe(&Event::Warning(w)));
        self.params.set(&saved.model)?;
        self.optimizer.load(&saved.optimizer, saved.state.step)?;
        self.state = saved.state;
        Ok(())
    }

    /// The model's parameters.
    pub fn params(&self) -> &Params {
        &self.params
    }

    /// Trains until the end, reporting to `observer`; `interrupted` is asked after every step.
    ///
    /// # Errors
    /// A parameter without gradient, a loss or gradient that is not finite, or a failed save. Weights are never touched
    /// by such a step.
    pub fn train(&mut self, observer: &mut dyn Observer, interrupted: &dyn Fn() -> bool) -> Result<Outcome> {
        let train = self.config.train.clone();
        let started = Instant::now();
        let total = self.total_steps();
        let eval_every =
            if train.eval_every > 0 { train.eval_every } else { self.batches.per_epoch().div_ceil(train.accumulate) };
        let checkpoint_every = if train.checkpoint_every > 0 { train.checkpoint_every } else { total.div_ceil(10) };
        observer.observe(&Event::Start { step: self.state.step, total });
        let (mut end, mut loss) = (End::Finished, f64::NAN);
        let stale = |state: &State| train.early_stopping > 0 && state.stale >= train.early_stopping;
        if stale(&self.state) {
            end = End::Early;
        }
        while self.state.step < total && end == End::Finished {
            let lr = rate(&train, self.state.step, total, &self.state.plateau);
            let (step_loss, parts, grads) = self.micro_steps(train.accumulate)?;
            let norm = global_norm(&grads)?;
            self.refuse_broken(step_loss, norm, &grads)?;
            self.optimizer.step(&grads, lr, clip_factor(norm, train.clip_norm))?;
            self.state.step += 1;
            (loss, self.gradients) = (
                step_loss,
                GradientReport { tensors: grads.len(), with_gradient: grads.len() - grads.missing().len() },
            );

            let step = self.state.step;
            observer.observe(&Event::Step { step, loss, parts: &parts, lr, grad_norm: norm });
            if step.is_multiple_of(train.log_every) || step == 1 || step == total {
                self.log_step(loss, &parts, lr, norm, started)?;
            }
            if step.is_multiple_of(eval_every) || step == total {
                self.evaluate(observer)?;
            }
            let stop = interrupted();
            let early = stale(&self.state);
            if step.is_multiple_of(checkpoint_every) || step == total || stop || early {
                self.save(observer)?;
            }
            if early || (stop && step < total) {
                end = if early { End::Early } else { End::Interrupted };
            }
        }
        if let Some(run) = self.run {
            zoo_checkpoint::write(&run.last(), &self.params.tensors(), &self.description()?.metadata())?;
        }
        let (seconds, metrics) = (started.elapsed().as_secs_f64(), self.metrics.clone());
        Ok(Outcome {
            end,
            steps: self.state.step,
            seconds,
            loss,
            metrics,
            best: self.state.best,
            gradients: self.gradients,
        })
    }

    /// Steps of the whole run.
    pub fn total_steps(&self) -> u64 {
        let TrainConfig { steps, epochs, accumulate, .. } = self.config.train;
        if steps > 0 { steps } else { (epochs * self.batches.per_epoch()).div_ceil(accumulate) }
    }

    /// Mean loss, mean parts and mean gradients of a step's micro-batches.
    fn micro_steps(&mut self, count: u64) -> Result<(f64, Metrics, Gradients)> {
        let seed = self.config.train.seed;
        let (mut loss, mut parts, mut grads): (f64, Metrics, Option<Gradients>) = (0., vec![], None);
        for micro in 0..count {
            let number = self.state.step * count + micro;
            let fresh;
            let batch = match &self.first_batch {
                Some(batch) => batch,
                None => {
                    fresh = self.task.batch(Split::Train, self.batches.at(number))?;
                    &fresh
                }
            };
            let result = self.task.loss(&self.model, batch, Mode::Train { seed, step: number })?;
            let of_micro = self.params.gradients(&result.total.backward()?);
            loss += scalar(&result.total)? / count as f64;
            for (i, (name, value)) in result.parts.into_iter().enumerate() {
                match parts.get_mut(i) {
                    Some((_, sum)) => *sum += value / count as f64,
                    None => parts.push((name, value / count as f64)),
                }
            }
            match &mut grads {
                Some(grads) => grads.add(&of_micro)?,
                None => grads = Some(of_micro),
            }
        }
        let Some(mut grads) = grads else { return Err(Error::Usage("train.accumulate must be at least 1".into())) };
        if count > 1 {
            grads.scale(1. / count as f64)?;
        }
        Ok((loss, parts, grads))
    }

    /// Stops before a broken step reaches the weights.
    fn refuse_broken(&self, loss: f64, norm: f64, grads: &Gradients) -> Result<()> {
        let step = self.state.step + 1;
        if step == 1 && !grads.missing().is_empty() {
            return Err(Error::NoGradient(grads.missing().into_iter().map(String::from).collect()));
        }
        if !loss.is_finite() {
            return Err(Error::NonFinite { what: "the loss".into(), step, value: loss });
        }
        if norm.is_finite() {
            return Ok(());
        }
        for (name, grad) in grads.iter() {
            let value = grad.map_or(Ok(0.), norm_squared)?;
            if !value.is_finite() {
                return Err(Error::NonFinite { what: format!("the gradient of {name}"), step, value });
            }
        }
        Err(Error::NonFinite { what: "the gradient norm".into(), step, value: norm })
    }

    fn log_step(&self, loss: f64, parts: &Metrics, lr: f64, norm: f64, started: Instant) -> Result<()> {
        let Some(run) = self.run else { return Ok(()) };
        let mut line = Map::new();
        line.insert("step".into(), self.state.step.into());
        line.insert("loss".into(), loss.into());
        line.extend(parts.iter().map(|(name, value)| (name.to_string(), (*value).into())));
        line.insert("lr".into(), lr.into());
        line.insert("grad_norm".into(), norm.into());
        line.insert("seconds".into(), ((started.elapsed().as_secs_f64() * 1e3).round() / 1e3).into());
        run.log(&Value::Object(line))
    }

    fn evaluate(&mut self, observer: &mut dyn Observer) -> Result<()> {
        let split = if self.options.overfit_batch || self.task.samples(Split::Valid) == 0 {
            Split::Train
        } else {
            Split::Valid
        };
        let metrics = self.task.validate(&self.frozen, split)?;
        let loss = metrics.iter().find(|(name, _)| *name == "loss").map_or(f64::NAN, |(_, v)| *v);
        if !loss.is_finite() {
            return Err(Error::NonFinite { what: "the validation loss".into(), step: self.state.step, value: loss });
        }
        let best = self.state.best.is_none_or(|(b, _)| loss < b);
        if best {
            (self.state.best, self.state.stale) = (Some((loss, self.state.step)), 0);
        } else {
            self.state.stale += 1;
        }
        self.state.plateau.observe(loss, &self.config.train);
        if let Some(run) = self.run {
            let values: Map<String, Value> = metrics.iter().map(|(k, v)| (k.to_string(), (*v).into())).collect();
            run.log(&json!({ "step": self.state.step, split.name(): values }))?;
            if best {
                zoo_checkpoint::write(&run.best(), &self.params.tensors(), &self.description()?.metadata())?;
            }
        }
        observer.observe(&Event::Evaluated { step: self.state.step, metrics: &metrics, best });
        self.metrics = metrics;
        Ok(())
    }

    fn save(&self, observer: &mut dyn Observer) -> Result<()> {
        let Some(run) = self.run else { return Ok(()) };
        let (weights, metadata) = (self.params.tensors(), self.description()?.metadata());
        run.save(&weights, &metadata, &self.optimizer.state(), &self.state, self.config.train.keep)?;
        observer.observe(&Event::Saved { step: self.state.step });
        Ok(())
    }

    fn description(&self) -> Result<Description> {
        let mut config =
            serde_json::to_value(self.config).map_err(|e| Error::Run(format!("the configuration: {e}")))?;
        // Weights travel: they say which file they saw, not where it lay.
        if let Some(Value::String(path)) = config.pointer_mut("/data/path") {
            *path = Path::new(path).file_name().unwrap_or_default().to_string_lossy().into_owned();
        }
        Ok(Description { model: T::NAME.into(), config, fitted: self.task.fitted() })
    }
}

fn scalar(t: &Tensor) -> Result<f64> {
    // Not every device has f64.
    Ok(t.to_device(&Device::Cpu)?.to_dtype(DType::F64)?.to_scalar()?)
}
