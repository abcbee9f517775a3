//! Configuration: defaults < preset < file < `key=value`, with unknown keys and wrong types refused.

use candle_core::DType;
use regex::Regex;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use toml::{Table, Value};
use zoo_layers::optim::{Group, Moments, Rule, decay_matrices, muon_groups};
use zoo_layers::{Param, nearest};

use crate::{Error, Result, Task, ppo};

/// Everything that decides a run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Config<M, D> {
    /// The model's own keys.
    pub model: M,
    /// The data's own keys.
    pub data: D,
    /// The trainer's keys.
    pub train: TrainConfig,
}

/// Which optimizer moves the parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OptimizerKind {
    /// Adam with decoupled weight decay.
    AdamW,
    /// Adam.
    Adam,
    /// Stochastic gradient descent with momentum.
    Sgd,
    /// RMSprop.
    RmsProp,
    /// Muon for matrices within the network, AdamW for the rest.
    Muon,
}

/// What the ops of a training step compute in; parameters, optimizer and losses are f32 whatever it is, and so is evaluation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ComputeType {
    /// Single precision.
    F32,
    /// f32, but matrices are multiplied in TF32 on CUDA (eleven bits of precision, f32's range).
    Tf32,
    /// Eight bits of precision, the range of f32.
    Bf16,
    /// Eleven bits of precision, to 65,504: the loss is scaled so that gradients fit.
    F16,
}

/// How the rate changes over the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ScheduleKind {
    /// `lr` throughout (after the warmup).
    Constant,
    /// Half a cosine from `lr` to `min_lr`.
    Cosine,
    /// A line from `lr` to `min_lr`.
    Linear,
    /// Multiplied by `decay_factor` every `decay_every` steps.
    Step,
    /// Multiplied by `decay_factor` after `plateau_patience` evaluations without improvement.
    Plateau,
}

/// What happens at a loss or gradient that is not a finite number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnNonFinite {
    /// The run ends with an error.
    Abort,
    /// The step's update is left out.
    Skip,
    /// Back to the last checkpoint, and on with the batches after the one that failed.
    Rollback,
}

/// What happens when gradient health becomes critical.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnCritical {
    /// It is said; training goes on.
    Tell,
    /// The run ends with an error.
    Stop,
    /// The rate is halved.
    HalveLr,
    /// Back to the last checkpoint before it began, with half the rate.
    Rollback,
}

/// The table `[train]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrainConfig {
    /// Passes over the training data, if `steps` is 0.
    pub epochs: u64,
    /// Optimizer steps; 0 lets `epochs` decide.
    pub steps: u64,
    /// Samples a micro-step.
    pub batch_size: usize,
    /// Micro-steps whose mean gradient makes a step.
    pub accumulate: u64,
    /// What the ops of a step compute in: f32, tf32, bf16 or f16.
    pub dtype: ComputeType,
    /// Decides initial values, order of samples, dropout and simulated data.
    pub seed: u64,
    /// Which optimizer.
    pub optimizer: OptimizerKind,
    /// Peak rate.
    pub lr: f64,
    /// Adam's decay of the first moment.
    pub beta1: f64,
    /// Adam's decay of the second moment; RMSprop's decay of the squares.
    pub beta2: f64,
    /// Added to the root in Adam and RMSprop.
    pub eps: f64,
    /// Momentum of SGD, RMSprop and Muon.
    pub momentum: f64,
    /// Nesterov's form of SGD's momentum.
    pub nesterov: bool,
    /// Weight decay of matrices; biases and norms have none.
    pub weight_decay: f64,
    /// Largest global norm of the gradients; 0 for no clipping.
    pub clip_norm: f64,
    /// How the rate changes.
    pub schedule: ScheduleKind,
    /// Steps over which the rate rises from 0 to `lr`.
    pub warmup_steps: u64,
    /// Where cosine and linear schedules end, and the least that plateau reduces to.
    pub min_lr: f64,
    /// Steps between reductions of the step schedule.
    pub decay_every: u64,
    /// Factor of the step and plateau schedules.
    pub decay_factor: f64,
    /// Evaluations without improvement before the plateau schedule reduces the rate.
    pub plateau_patience: u64,
    /// Evaluations without improvement before the run stops; 0 for never.
    pub early_stopping: u64,
    /// Steps between lines of `metrics.jsonl`.
    pub log_every: u64,
    /// Steps between evaluations; 0 for once an epoch.
    pub eval_every: u64,
    /// Steps between checkpoints; 0 for ten in the whole run.
    pub checkpoint_every: u64,
    /// Checkpoints that are kept.
    pub keep: usize,
    /// Weights of the best evaluations that are kept.
    pub keep_best: usize,
    /// Decay of a moving average of the weights, which is then evaluated and kept as best and last; 0 for none. Update t
    /// decays by (1 + t) / (10 + t) if that is less.
    pub ema: f64,
    /// Batches that a second thread prepares ahead; 0 for none.
    pub prefetch: usize,
    /// What happens at a loss or gradient that is not finite.
    pub on_nonfinite: OnNonFinite,
    /// Such steps that a run may have before it ends with an error all the same.
    pub nonfinite_limit: u64,
    /// Leaves out updates whose loss or gradient norm lies so many standard deviations above the mean of the last 128
    /// steps; 0 for never.
    pub spike_zscore: f64,
    /// Steps between looks at gradient health; 0 for none.
    pub health_every: u64,
    /// What happens when gradient health becomes critical.
    pub on_critical: OnCritical,
    /// Adds noise to attention's projections whose gradient is dead.
    pub revive_attention: bool,
    /// Pulls all poolings towards the last places, at every look at gradient health.
    pub pooling_nudge: bool,
    /// Trains on the first batch again and again: a model that cannot learn it by heart is broken.
    pub overfit_batch: bool,
    /// Weights to begin with instead of random ones; a file of the same model.
    pub init_from: String,
    /// Regular expression: parameters in whose names it is found stay as they are. (Statistics that a layer keeps itself
    /// follow the data all the same.)
    pub freeze: String,
    /// How a policy is trained, for tasks that can.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ppo: Option<ppo::Settings>,
}

impl Default for TrainConfig {
    fn default() -> Self {
        Self {
            epochs: 10,
            steps: 0,
            batch_size: 32,
            accumulate: 1,
            dtype: ComputeType::F32,
            seed: 42,
            optimizer: OptimizerKind::AdamW,
            lr: 1e-3,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            momentum: 0.9,
            nesterov: false,
            weight_decay: 0.01,
            clip_norm: 1.,
            schedule: ScheduleKind::Constant,
            warmup_steps: 0,
            min_lr: 0.,
            decay_every: 1000,
            decay_factor: 0.5,
            plateau_patience: 5,
            early_stopping: 0,
            log_every: 10,
            eval_every: 0,
            checkpoint_every: 0,
            keep: 2,
            keep_best: 1,
            ema: 0.,
            prefetch: 0,
            on_nonfinite: OnNonFinite::Abort,
            nonfinite_limit: 10,
            spike_zscore: 0.,
            health_every: 100,
            on_critical: OnCritical::Tell,
            revive_attention: false,
            pooling_nudge: false,
            overfit_batch: false,
            init_from: String::new(),
            freeze: String::new(),
            ppo: None,
        }
    }
}

impl TrainConfig {
    /// The optimizer's rule.
    pub fn rule(&self) -> Rule {
        let moments = Moments { beta1: self.beta1, beta2: self.beta2, eps: self.eps };
        match self.optimizer {
            OptimizerKind::AdamW => Rule::AdamW(moments),
            OptimizerKind::Adam => Rule::Adam(moments),
            OptimizerKind::Sgd => Rule::Sgd { momentum: self.momentum, nesterov: self.nesterov },
            OptimizerKind::Muon => Rule::Muon { momentum: self.momentum },
            OptimizerKind::RmsProp => Rule::RmsProp { alpha: self.beta2, eps: self.eps, momentum: self.momentum },
        }
    }

    /// What the optimizer does with a parameter.
    pub fn group(&self, param: &Param) -> Group {
        match self.optimizer {
            OptimizerKind::Muon => {
                let moments = Moments { beta1: self.beta1, beta2: self.beta2, eps: self.eps };
                muon_groups(self.weight_decay, moments)(param)
            }
            _ => decay_matrices(self.weight_decay)(param),
        }
    }

    /// What the ops of a step compute in.
    pub fn compute(&self) -> DType {
        match self.dtype {
            ComputeType::F32 | ComputeType::Tf32 => DType::F32,
            ComputeType::Bf16 => DType::BF16,
            ComputeType::F16 => DType::F16,
        }
    }

    /// The names that `freeze` stands for.
    ///
    /// # Errors
    /// It is not a regular expression.
    pub fn frozen(&self) -> Result<Option<Regex>> {
        if self.freeze.is_empty() {
            return Ok(None);
        }
        let invalid = |_| Error::Usage(format!("train.freeze = {:?} is not a regular expression", self.freeze));
        Regex::new(&self.freeze).map(Some).map_err(invalid)
    }

    /// Whether gradient health changes the training.
    pub fn acts_on_health(&self) -> bool {
        self.on_critical != OnCritical::Tell || self.revive_attention || self.pooling_nudge
    }

    /// Refuses numbers that cannot work, naming the key.
    pub fn validate(&self) -> Result<()> {
        let checks = [
            (self.batch_size > 0, "train.batch_size must be at least 1"),
            (self.accumulate > 0, "train.accumulate must be at least 1"),
            (self.steps > 0 || self.epochs > 0, "train.steps or train.epochs must be at least 1"),
            (self.lr.is_finite() && self.lr > 0., "train.lr must be a positive number"),
            (self.min_lr >= 0. && self.min_lr <= self.lr, "train.min_lr must lie between 0 and train.lr"),
            (
                (0. ..1.).contains(&self.beta1) && (0. ..1.).contains(&self.beta2),
                "train.beta1 and beta2 must lie in [0, 1)",
            ),
            (self.eps.is_finite() && self.eps as f32 > 0., "train.eps must be positive, also in single precision"),
            ((0. ..1.).contains(&self.momentum), "train.momentum must lie in [0, 1)"),
            (self.weight_decay >= 0. && self.weight_decay.is_finite(), "train.weight_decay must not be negative"),
            (
                self.clip_norm >= 0. && self.clip_norm.is_finite(),
                "train.clip_norm must not be negative (0 turns clipping off)",
            ),
            (self.decay_every > 0, "train.decay_every must be at least 1"),
            (self.decay_factor > 0. && self.decay_factor <= 1., "train.decay_factor must lie in (0, 1]"),
            (self.log_every > 0, "train.log_every must be at least 1"),
            (self.prefetch <= 1024, "train.prefetch must be at most 1024"),
            (self.keep > 0, "train.keep must be at least 1"),
            (self.keep_best > 0, "train.keep_best must be at least 1"),
            ((0. ..1.).contains(&self.ema), "train.ema must lie in [0, 1)"),
            (
                self.health_every > 0 || !self.acts_on_health(),
                "train.health_every must be at least 1 where something is done about health",
            ),
            (self.spike_zscore >= 0. && self.spike_zscore.is_finite(), "train.spike_zscore must not be negative"),
        ];
        match checks.into_iter().find(|(ok, _)| !ok) {
            Some((_, message)) => Err(Error::Usage(message.into())),
            None => self.ppo.as_ref().map_or(Ok(()), ppo::Settings::validate),
        }
    }
}

/// What the layers over a task's defaults are.
#[derive(Clone, Debug, Default)]
pub struct Layers<'a> {
    /// Name of a preset; the first if absent.
    pub preset: Option<&'a str>,
    /// The text of a TOML file and its name for messages.
    pub file: Option<(&'a str, &'a str)>,
    /// `key=value` settings, later ones winning.
    pub set: &'a [String],
}

/// The configuration type of a task.
pub type ConfigOf<T> = Config<<T as Task>::Architecture, <T as Task>::Source>;

/// Resolves a task's configuration: its defaults, then preset, file and settings.
///
/// # Errors
/// An unknown preset or key (with the nearest name), a value of the wrong type, or numbers that cannot work.
pub fn resolve<T: Task>(layers: &Layers) -> Result<ConfigOf<T>> {
    let defaults = Config { model: T::Architecture::default(), data: T::Source::default(), train: T::training() };
    let mut table = table(&defaults)?;
    let preset = match layers.preset {
        None => T::PRESETS.first(),
        Some(name) => Some(T::PRESETS.iter().find(|p| p.name == name).ok_or_else(|| {
            let names: Vec<_> = T::PRESETS.iter().map(|p| p.name).collect();
            Error::Usage(format!("{} has no preset {name}; it has {}", T::NAME, names.join(", ")))
        })?),
    };
    if let Some(preset) = preset {
        overlay(&mut table, parse(preset.toml, preset.name)?, &format!("preset {}", preset.name), None)?;
    }
    if let Some((text, name)) = layers.file {
        overlay(&mut table, parse(text, name)?, name, None)?;
    }
    for setting in layers.set {
        let (upper, text) = assignment(setting)?;
        overlay(&mut table, upper, &format!("--set {setting}"), Some(text))?;
    }
    let config: ConfigOf<T> = typed(table)?;
    config.train.validate()?;
    Ok(config)
}

fn table(value: &impl Serialize) -> Result<Table> {
    Table::try_from(value).map_err(|e| Error::Usage(format!("the defaults are not a table: {e}")))
}

fn typed<C: DeserializeOwned>(table: Table) -> Result<C> {
    // The long form of the error, which names the key.
    table.try_into().map_err(|e: toml::de::Error| Error::Usage(one_line(&e.to_string())))
}

fn one_line(message: &str) -> String {
    message.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn parse(text: &str, name: &str) -> Result<Table> {
    text.parse().map_err(|e: toml::de::Error| {
        let line = e.span().map_or(1, |s| text[..s.start.min(text.len())].matches('\n').count() + 1);
        Error::Usage(format!("{name}: line {line}: {}", one_line(e.message())))
    })
}

/// `train.lr=3e-4` as nested tables, and the text of the value, which stands where it is not TOML.
fn assignment(setting: &str) -> Result<(Table, &str)> {
    let Some((key, text)) = setting.split_once('=') else {
        return Err(Error::Usage(format!("--set {setting}: expected key=value, such as train.lr=3e-4")));
    };
    let parsed = format!("v = {text}").parse::<Table>().ok().and_then(|mut t| t.remove("v"));
    let mut value = parsed.unwrap_or_else(|| Value::String(text.to_string()));
    let mut parts: Vec<&str> = key.trim().split('.').collect();
    let first = parts.remove(0);
    for part in parts.into_iter().rev() {
        value = Value::Table(Table::from_iter([(part.to_string(), value)]));
    }
    Ok((Table::from_iter([(first.to_string(), value)]), text))
}

/// Puts `upper` over `base`, which holds every key there is; `text` is what a key that takes text gets from `--set`.
fn overlay(base: &mut Table, upper: Table, origin: &str, text: Option<&str>) -> Result<()> {
    let mut known = vec![];
    paths(base, "", &mut known);
    merge(base, upper, "", &Origin { name: origin, text, known })
}

struct Origin<'a> {
    name: &'a str,
    text: Option<&'a str>,
    known: Vec<String>,
}

fn paths(table: &Table, prefix: &str, known: &mut Vec<String>) {
    for (key, value) in table {
        match value {
            Value::Table(inner) => paths(inner, &format!("{prefix}{key}."), known),
            _ => known.push(format!("{prefix}{key}")),
        }
    }
}

fn merge(base: &mut Table, upper: Table, prefix: &str, origin: &Origin) -> Result<()> {
    let known = &origin.known;
    for (key, value) in upper {
        let path = format!("{prefix}{key}");
        let fail = |message: String| Err(Error::Usage(format!("{}: {message}", origin.name)));
        let Some(slot) = base.get_mut(&key) else {
            // A key given without its table, such as lr for train.lr, is the likeliest slip.
            let ends = known.iter().find(|k| k.ends_with(&format!(".{path}"))).map(String::as_str);
            let hint = ends.or_else(|| nearest(&path, known.iter().map(String::as_str)));
            return fail(match hint {
                Some(hint) => format!("unknown key {path} (did you mean {hint}?)"),
                None => format!("unknown key {path}; --print-config lists all keys"),
            });
        };
        match (slot, value) {
            (Value::Table(base), Value::Table(upper)) => merge(base, upper, &format!("{path}."), origin)?,
            (Value::Float(f), Value::Integer(i)) => *f = i as f64,
            (slot, value) if slot.same_type(&value) => *slot = value,
            (slot, value) => match (slot, origin.text) {
                (Value::String(s), Some(text)) => *s = text.to_string(),
                (slot, _) => return fail(format!("{path} takes {}, got {value}", kind(slot))),
            },
        }
    }
    Ok(())
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::String(_) => "text",
        Value::Integer(_) => "a whole number",
        Value::Float(_) => "a number",
        Value::Boolean(_) => "true or false",
        Value::Datetime(_) => "a date",
        Value::Array(_) => "a list",
        Value::Table(_) => "a table",
    }
}

/// The whole configuration as TOML.
///
/// # Errors
/// A value that TOML cannot express.
pub fn to_toml<M: Serialize, D: Serialize>(config: &Config<M, D>) -> Result<String> {
    toml::to_string(config).map_err(|e| Error::Usage(format!("the configuration is not expressible as TOML: {e}")))
}
