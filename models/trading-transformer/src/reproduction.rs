//! The gradient death of the first map, its cure, and what did not cure it: the story that the model is known for, run again.
//!
//! All arms see the same batches of the same simulated market and begin with the same weights. Nothing about the features
//! was chosen by what comes out here.

use candle_core::{DType, Device, Result, Tensor, bail};
use serde::Serialize;
use zoo_layers::ops::backward;
use zoo_layers::optim::{Moments, Optimizer, Rule, clip_factor, decay_matrices, global_norm};
use zoo_layers::random::{Purpose, Stream};
use zoo_layers::{Gradients, Mode, Params, ops};
use zoo_training::Split;
use zoo_training::health::{Check, PoolingHealth, Probe, ProbeKind, Profile, Watched, ZERO};

use crate::data::Data;
use crate::directions::Directions;
use crate::features::{FEATURES, groups};
use crate::{Config, DataSettings, InputNorm, TradingTransformer};

/// The map that died.
const PROJECTION: &str = "temporal_projection.weight";

/// One way to train.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Arm {
    /// Its name.
    pub name: &'static str,
    /// What it is.
    pub what: &'static str,
    /// What happens to the inputs.
    pub input_norm: InputNorm,
    /// Limit of the gradient norm.
    pub clip: f64,
    /// Dropout behind the projection and in the encoder.
    pub dropout: f64,
    /// What the encoder's change of its input is multiplied by.
    pub residual: f64,
    /// What the gradients of the position features' columns are multiplied by (Adam undoes a constant, but for clipping).
    pub position_gradient: f64,
    /// Features that are zero throughout, as of a feed that is not connected: every one of the first so many.
    pub silent: usize,
}

const NONE: Arm = Arm {
    name: "none",
    what: "features as they are",
    input_norm: InputNorm::None,
    clip: 1.,
    dropout: 0.1,
    residual: 1.,
    position_gradient: 1.,
    silent: 0,
};
/// Two thirds of the features.
const SILENT: usize = 86;

/// The failure, the cure, the better cure, the document's failed attempts, and a control.
pub const ARMS: [Arm; 9] = [
    NONE,
    Arm { name: "layer", what: "layer norm over each bar's features", input_norm: InputNorm::Layer, ..NONE },
    Arm {
        name: "running",
        what: "each feature by its running mean and variance",
        input_norm: InputNorm::Running,
        ..NONE
    },
    Arm { name: "clip 10", what: "as none, gradient norm clipped at 10 instead of 1", clip: 10., ..NONE },
    Arm { name: "dropout 0.3", what: "as none, dropout 0.3 instead of 0.1", dropout: 0.3, ..NONE },
    Arm { name: "residual 0.1", what: "as none, the encoder's change times 0.1", residual: 0.1, ..NONE },
    Arm {
        name: "position scaling",
        what: "as none, gradients of the position features' columns times 0.1",
        position_gradient: 0.1,
        ..NONE
    },
    Arm { name: "silent, none", what: "as none, 86 of the 129 features always zero", silent: SILENT, ..NONE },
    Arm {
        name: "silent, layer",
        what: "as layer, 86 of the 129 features always zero",
        input_norm: InputNorm::Layer,
        silent: SILENT,
        ..NONE
    },
];

/// How long and with what the arms train.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Settings {
    /// Steps of each arm.
    pub steps: u64,
    /// Samples a step.
    pub batch: usize,
    /// Adam's rate.
    pub lr: f64,
    /// Seed of market, positions, weights, order and dropout.
    pub seed: u64,
    /// Steps between readings.
    pub every: u64,
    /// Steps for which the first three arms also learn to read: to tell where the last five bars went, which their inputs say.
    pub reading: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self { steps: 2000, batch: 64, lr: 3e-4, seed: 42, every: 25, reading: 500 }
    }
}

/// What is seen of an arm at a step.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Reading {
    /// After this step.
    pub step: u64,
    /// Training loss of the batch, in nats.
    pub loss: f64,
    /// Share of |g| < 1e-8 in the projection's weights.
    pub gradient_zeros: f64,
    /// Of these zeros, the share in columns whose inputs were exactly zero throughout the batch.
    pub zeros_of_zero_inputs: f64,
    /// Share of projected values with |x| > 3.
    pub saturation: f64,
    /// Global norm before clipping.
    pub gradient_norm: f64,
    /// Norm of the gradient in the columns of market, indicator and position features.
    pub column_norms: [f64; 3],
    /// Effective rank of the projection's gradient G: (tr GGᵀ)² / tr (GGᵀ)².
    pub gradient_rank: f64,
    /// The pooling's weights.
    pub pooling: PoolingHealth,
}

/// An arm's course and where it ended.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Course {
    /// The arm.
    pub arm: Arm,
    /// Looks in the order of the steps.
    pub readings: Vec<Reading>,
    /// Cross-entropy, accuracy in percent and Brier score on the validation part after the last step.
    pub valid: [f64; 3],
    /// Standard deviation of the projection's inputs by group (market, indicator, position), in bars with a position and in
    /// bars without one.
    pub input_std: [[f64; 3]; 2],
    /// Over bars without a position: how many different gradients the columns of the 20 position features have (0 if they are
    /// all zero).
    pub idle_columns: usize,
}

impl Course {
    /// The mean of what the readings of the last tenth of the run have.
    pub fn end(&self, of: impl Fn(&Reading) -> f64) -> f64 {
        let last = self.readings.last().map_or(0, |l| l.step);
        let end: Vec<f64> = self.readings.iter().filter(|l| l.step * 10 > last * 9).map(of).collect();
        end.iter().sum::<f64>() / end.len().max(1) as f64
    }
}

/// Runs one arm; `heard` is told of every reading and says whether to go on.
///
/// # Errors
/// candle's, or the market's.
pub fn run(arm: Arm, settings: Settings, heard: &mut dyn FnMut(&Reading) -> bool) -> zoo_training::Result<Course> {
    let (task, trial) = (market(settings)?, Trial::new(arm, settings)?);
    let mut readings = vec![];
    trial.fit(&task, settings, &mut |step: Pending| {
        if step.number != 1 && !step.number.is_multiple_of(settings.every) {
            return Ok(true);
        }
        let reading = trial.read(step)?;
        let go_on = heard(&reading);
        readings.push(reading);
        Ok(go_on)
    })?;
    let valid = task.judge_by(Split::Valid, |x| Ok(trial.forward(x, Mode::Eval)?.1))?;
    Ok(Course {
        arm,
        readings,
        valid: [0, 1, 2].map(|i| valid.get(i).map_or(f64::NAN, |m| m.1)),
        input_std: trial.input_std(&task)?,
        idle_columns: trial.idle_columns(&task)?,
    })
}

/// Lets one arm learn where the last five bars went, which its inputs say: the share that it tells right on the validation
/// part, for observations that end with a position and for those that end without, in percent. What gets lost on the way
/// into the model shows here; a market that cannot be forecast shows nothing.
///
/// # Errors
/// candle's, or the market's.
pub fn read(arm: Arm, settings: Settings, heard: &mut dyn FnMut() -> bool) -> zoo_training::Result<[f64; 2]> {
    let (mut task, trial) = (market(settings)?, Trial::new(arm, settings)?);
    task.look_back();
    trial.fit(&task, Settings { steps: settings.reading, ..settings }, &mut |_| Ok(heard()))?;
    let n = task.samples(Split::Valid);
    let (x, y) = task.windows(Split::Valid, &(0..n).collect::<Vec<_>>())?;
    let told = trial.forward(&x, Mode::Eval)?.1.argmax(1)?.to_vec1::<u32>()?;
    let direction = (Config::default().bars - 1) * FEATURES + groups()[2].range.start;
    let held = x.narrow(1, direction, 1)?.flatten_all()?.to_vec1::<f32>()?;
    let right = told.iter().zip(y.to_vec1::<i64>()?).map(|(a, b)| i64::from(*a) == b);
    let right: Vec<(bool, f32)> = right.zip(held).collect();
    Ok([true, false].map(|with| {
        let of: Vec<bool> = right.iter().filter(|(_, held)| (*held != 0.) == with).map(|r| r.0).collect();
        100. * of.iter().filter(|r| **r).count() as f64 / of.len().max(1) as f64
    }))
}

fn market(settings: Settings) -> zoo_training::Result<Directions> {
    Directions::open(&Config::default(), &DataSettings::default(), settings.seed, None, &Device::Cpu)
}

fn factor(feature: usize, of_position: f64) -> f32 {
    if groups()[2].range.contains(&feature) { of_position as f32 } else { 1. }
}

/// Ones, with zeros for silent features (129).
fn mask(silent: usize) -> Result<Option<Tensor>> {
    if silent == 0 {
        return Ok(None);
    }
    // Every third feature speaks.
    let speaks = |i: usize| if i.is_multiple_of(3) || i >= silent * 3 / 2 { 1f32 } else { 0. };
    Tensor::from_vec((0..FEATURES).map(speaks).collect::<Vec<_>>(), FEATURES, &Device::Cpu).map(Some)
}

struct Trial {
    arm: Arm,
    mask: Option<Tensor>,
    params: Params,
    model: TradingTransformer,
}

/// A step before its update.
struct Pending<'a> {
    number: u64,
    input: &'a Tensor,
    loss: f64,
    grads: &'a Gradients,
    norm: f64,
}

impl Trial {
    fn new(arm: Arm, settings: Settings) -> Result<Self> {
        let config = Config { input_norm: arm.input_norm, dropout: arm.dropout, ..Config::default() };
        let params = Params::init(settings.seed, &Device::Cpu);
        let model = TradingTransformer::new(&config, params.builder())?;
        Ok(Self { arm, mask: mask(arm.silent)?, params, model })
    }

    /// Trains; `look` sees every step before its update and says whether to go on.
    fn fit(
        &self,
        task: &Directions,
        settings: Settings,
        look: &mut dyn FnMut(Pending) -> Result<bool>,
    ) -> zoo_training::Result<()> {
        let mut optimizer = Optimizer::new(Rule::Adam(Moments::default()), &self.params, decay_matrices(0.))?;
        let samples = task.samples(Split::Train);
        for number in 1..=settings.steps {
            let mut order = Stream::new(settings.seed, Purpose::Shuffle, 0, number);
            let indices: Vec<usize> =
                (0..settings.batch).map(|_| (order.uniform() * samples as f64) as usize).collect();
            let (x, y) = task.windows(Split::Train, &indices)?;
            let (input, logits) = self.forward(&x, Mode::Train { seed: settings.seed, step: number })?;
            let loss = ops::cross_entropy(&logits, &y, Default::default())?;
            let mut grads = self.params.gradients(&backward(&loss)?);
            if self.arm.position_gradient != 1.
                && let Some(g) = projection(&grads)
            {
                let less = Tensor::from_vec(
                    (0..FEATURES).map(|i| factor(i, self.arm.position_gradient) - 1.).collect::<Vec<_>>(),
                    FEATURES,
                    &Device::Cpu,
                )?;
                grads.add_to(PROJECTION, &g.broadcast_mul(&less)?)?;
            }
            let (norm, loss) = (global_norm(&grads)?, f64::from(loss.to_scalar::<f32>()?));
            if !look(Pending { number, input: &input, loss, grads: &grads, norm })? {
                break;
            }
            optimizer.step(&grads, settings.lr, clip_factor(norm, self.arm.clip))?;
        }
        Ok(())
    }

    /// What the projection sees (b, s, f) of observations (b, s·f), and the logits (b, 3).
    fn forward(&self, x: &Tensor, mode: Mode) -> Result<(Tensor, Tensor)> {
        let x = match &self.mask {
            Some(mask) => x.reshape(((), FEATURES))?.broadcast_mul(mask)?.reshape(x.shape())?,
            None => x.clone(),
        };
        let input = self.model.normalize(&x, mode)?;
        let placed = self.model.place(&self.model.project(&input)?, mode)?;
        let mut encoded = self.model.encode(&placed, mode)?;
        if self.arm.residual != 1. {
            encoded = (&placed + ((&encoded - &placed)? * self.arm.residual)?)?;
        }
        let logits = self.model.logits(&self.model.aggregate(&encoded)?)?;
        Ok((input, logits))
    }

    /// Inputs of the projection over bars of the training part (n, f), and whether a position was held.
    fn bars(&self, task: &Directions) -> Result<(Vec<Vec<f32>>, Vec<bool>)> {
        let n = task.samples(Split::Train);
        let spread: Vec<usize> = (0..256).map(|i| i * n / 256).collect();
        let (x, _) = task.windows(Split::Train, &spread)?;
        let (input, _) = self.forward(&x, Mode::Eval)?;
        let direction = groups()[2].range.start;
        let held = x.reshape(((), FEATURES))?.narrow(1, direction, 1)?.flatten_all()?.to_vec1::<f32>()?;
        Ok((input.reshape(((), FEATURES))?.to_vec2()?, held.into_iter().map(|v| v != 0.).collect()))
    }

    fn read(&self, step: Pending) -> Result<Reading> {
        let Pending { number, input, loss, grads, norm } = step;
        let trainable = self.params.trainable();
        let watched = Watched::of(&trainable, grads, None);
        let probe = Probe::new("projection", ProbeKind::Preactivation, &self.model.project(input)?);
        let check = Check::new(number, &Profile::default(), &watched, &[probe])?;
        let rows = input.reshape(((), FEATURES))?;
        let active = rows.abs()?.max(0)?.to_vec1::<f32>()?;
        let Some(gradient) = projection(grads) else { bail!("no gradient reached {PROJECTION}") };
        let Some(pooling) = check.parameters.iter().find_map(|p| p.pooling.clone()) else {
            bail!("there is no pooling")
        };
        let columns = gradient.t()?.contiguous()?.to_vec2::<f32>()?;
        let zero = |v: &&f32| f64::from(v.abs()) < ZERO;
        let zeros: Vec<usize> = columns.iter().map(|c| c.iter().filter(zero).count()).collect();
        let of_zero_inputs: usize = zeros.iter().zip(&active).filter(|(_, a)| **a == 0.).map(|(n, _)| n).sum();
        let all: usize = zeros.iter().sum();
        let square = |c: &Vec<f32>| c.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>();
        let g = gradient.to_dtype(DType::F64)?;
        let trace = g.sqr()?.sum_all()?.to_scalar::<f64>()?;
        let squares = g.matmul(&g.t()?)?.sqr()?.sum_all()?.to_scalar::<f64>()?;
        Ok(Reading {
            step: number,
            loss,
            gradient_zeros: all as f64 / gradient.elem_count() as f64,
            zeros_of_zero_inputs: of_zero_inputs as f64 / all.max(1) as f64,
            saturation: check.probes.first().map_or(0., |p| p.saturated),
            gradient_norm: norm,
            column_norms: groups().map(|g| columns[g.range].iter().map(square).sum::<f64>().sqrt()),
            gradient_rank: if squares > 0. { trace * trace / squares } else { 0. },
            pooling,
        })
    }

    fn input_std(&self, task: &Directions) -> Result<[[f64; 3]; 2]> {
        let (rows, held) = self.bars(task)?;
        Ok([true, false].map(|with| {
            groups().map(|g| {
                let rows: Vec<&Vec<f32>> =
                    rows.iter().zip(&held).filter(|(_, h)| **h == with).map(|(r, _)| r).collect();
                let n = rows.len().max(1) as f64;
                // The mean over the group of each feature's own deviation.
                let deviation = |i: usize| {
                    let mean = rows.iter().map(|r| f64::from(r[i])).sum::<f64>() / n;
                    (rows.iter().map(|r| (f64::from(r[i]) - mean).powi(2)).sum::<f64>() / n).sqrt()
                };
                g.range.clone().map(deviation).sum::<f64>() / g.range.len() as f64
            })
        }))
    }

    /// Different gradients among the columns of the position features, for observations without any position.
    fn idle_columns(&self, task: &Directions) -> Result<usize> {
        let direction = groups()[2].range.start;
        let mut idle = vec![];
        for i in 0..task.samples(Split::Train) {
            let (x, _) = task.windows(Split::Train, &[i])?;
            let held = x.reshape(((), FEATURES))?.narrow(1, direction, 1)?.abs()?.sum_all()?.to_scalar::<f32>()?;
            if held == 0. {
                idle.push(i);
            }
            if idle.len() == 32 {
                break;
            }
        }
        if idle.is_empty() {
            return Ok(0);
        }
        let (x, y) = task.windows(Split::Train, &idle)?;
        let loss = ops::cross_entropy(&self.forward(&x, Mode::Eval)?.1, &y, Default::default())?;
        let Some(gradient) = projection(&self.params.gradients(&backward(&loss)?)) else { return Ok(0) };
        let columns = gradient.t()?.contiguous()?.to_vec2::<f32>()?;
        let norm = |c: &[f32]| c.iter().map(|v| v * v).sum::<f32>().sqrt();
        let mut different: Vec<Vec<f32>> = vec![];
        for column in &columns[groups()[2].range.clone()] {
            let size = norm(column);
            if f64::from(size) < ZERO {
                continue;
            }
            // Up to their size: a column that is another's multiple tells nothing of its own.
            let unit: Vec<f32> = column.iter().map(|v| v / size).collect();
            let same = |other: &Vec<f32>| unit.iter().zip(other).map(|(a, b)| a * b).sum::<f32>().abs() > 0.9999;
            if !different.iter().any(same) {
                different.push(unit);
            }
        }
        Ok(different.len())
    }
}

/// The gradient of the projection's weights.
fn projection(grads: &Gradients) -> Option<Tensor> {
    grads.iter().find(|(name, _)| *name == PROJECTION).and_then(|(_, g)| g.cloned())
}
