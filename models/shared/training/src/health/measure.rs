//! Numbers of gradients and activations.

use std::ops::Range;
use std::path::Path;

use candle_core::{Result, Tensor, bail};
use serde::{Deserialize, Deserializer, Serialize};
use zoo_layers::statistics::{self, Row, count, total, with_values};
use zoo_layers::{Gradients, Param};

use super::{DEAD, Probe, ProbeKind, Profile, RELATIVE_ZERO, Role, SATURATED, STILL, ZERO};
use crate::Error;

/// A parameter that is watched.
#[derive(Clone, Copy, Debug)]
pub struct Watched<'a> {
    /// Its path.
    pub name: &'a str,
    /// Its value.
    pub weight: &'a Tensor,
    /// Its gradient before clipping; `None` where backward did not reach it.
    pub gradient: Option<&'a Tensor>,
    /// Its value before the step, if the update is to be measured.
    pub before: Option<&'a Tensor>,
}

/// One check of all gradients and probes; a line of `health.jsonl`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Check {
    /// After this step.
    pub step: u64,
    /// Global gradient norm before clipping.
    #[serde(deserialize_with = "or_nan")]
    pub norm: f64,
    /// Norm of the step's change over that of all weights, if it was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub update: Option<f64>,
    /// Share of dead elements over all that could be alive and that backward reaches.
    pub dead: f64,
    /// Every parameter that is trained.
    pub parameters: Vec<ParameterHealth>,
    /// Every probe.
    pub probes: Vec<ProbeHealth>,
    /// Parameters that are frozen.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub frozen: Vec<String>,
}

/// A parameter's gradient.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ParameterHealth {
    /// Its path.
    pub name: String,
    /// What it is there for.
    pub role: Role,
    /// Elements.
    pub elements: usize,
    /// Elements whose gradient is zero by mathematics; the shares are over the others.
    pub expected: usize,
    /// Whether backward did not reach it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub missing: bool,
    /// Norm of the gradient.
    #[serde(deserialize_with = "or_nan")]
    pub norm: f64,
    /// Share of |g| < 1e-8.
    pub zeros: f64,
    /// Share of |g| < 1e-6 of the root mean square.
    pub relative_zeros: f64,
    /// Share of both.
    pub dead: f64,
    /// Elements that are not finite.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub not_finite: usize,
    /// Norm of the step's change over that of the weights, if it was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub update: Option<f64>,
    /// The weights of a pooling.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pooling: Option<PoolingHealth>,
}

/// The softmax of a pooling's logits.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PoolingHealth {
    /// Greatest weight.
    #[serde(deserialize_with = "or_nan")]
    pub max: f64,
    /// Least weight.
    #[serde(deserialize_with = "or_nan")]
    pub min: f64,
    /// Their standard deviation.
    #[serde(deserialize_with = "or_nan")]
    pub std: f64,
    /// The three greatest: place and weight.
    pub top: Vec<(usize, f64)>,
    /// Whether they differ by less than 2 % of their mean.
    pub uniform: bool,
}

/// A probe's values.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ProbeHealth {
    /// Its name.
    pub name: String,
    /// What it is.
    pub kind: ProbeKind,
    /// Mean.
    #[serde(deserialize_with = "or_nan")]
    pub mean: f64,
    /// Standard deviation.
    #[serde(deserialize_with = "or_nan")]
    pub std: f64,
    /// Least value.
    #[serde(deserialize_with = "or_nan")]
    pub min: f64,
    /// Greatest value.
    #[serde(deserialize_with = "or_nan")]
    pub max: f64,
    /// Share of |x| > 3: outside [-3, 3], or saturated.
    pub saturated: f64,
    /// Share of |x| < 1e-6.
    pub dead: f64,
    /// Values that are not finite.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub not_finite: usize,
    /// Features.
    pub features: usize,
    /// Features with |x| < 1e-8 throughout, by place.
    pub still: Vec<usize>,
    /// Greatest standard deviation of a feature over that of the median feature, of those that move.
    #[serde(deserialize_with = "or_nan")]
    pub spread: f64,
    /// Groups of features.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<GroupHealth>,
}

/// A group of a probe's features.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GroupHealth {
    /// Its name.
    pub name: String,
    /// Share of values with |x| >= 1e-8.
    pub active: f64,
    /// Root mean square.
    #[serde(deserialize_with = "or_nan")]
    pub scale: f64,
}

fn is_zero(n: &usize) -> bool {
    *n == 0
}

/// JSON has no NaN: it is written as null.
fn or_nan<'de, D: Deserializer<'de>>(d: D) -> std::result::Result<f64, D::Error> {
    Ok(Option::<f64>::deserialize(d)?.unwrap_or(f64::NAN))
}

/// Five significant digits: enough to judge by, and short in a file.
fn short(v: f64) -> f64 {
    if v == 0. || !v.is_finite() { v } else { format!("{v:.4e}").parse().unwrap_or(v) }
}

fn share(part: usize, all: usize) -> f64 {
    short(part as f64 / all.max(1) as f64)
}

/// Elements of a row where a tensor has no rows of its own.
const CHUNK: usize = 16 * 1024;

/// How many elements a row has, of a gradient of a parameter of such a role and shape.
fn width(name: &str, role: Role, dims: &[usize]) -> usize {
    match (role, dims) {
        (Role::Table, [_, width]) if *width > 0 => *width,
        // Queries, keys, values.
        (_, [n]) if packed_bias(name) && n.is_multiple_of(3) && *n > 0 => n / 3,
        _ => CHUNK,
    }
}

/// What the name of the first matrix of LoRA ends in.
pub(super) const FIRST_OF_LORA: &str = "lora_A.weight";

fn packed_bias(name: &str) -> bool {
    ["in_proj_bias", "c_attn.bias", "qkv.bias"].iter().any(|ending| name.ends_with(ending))
}

/// The rows whose elements may be other than zero.
fn alive(name: &str, role: Role, dims: &[usize], rows: &[Row], begins: bool) -> Vec<usize> {
    let all = || (0..rows.len()).collect();
    match rows {
        // With rotary positions, say, a key's bias has a gradient all the same.
        [q, k, v] if dims.len() == 1 && packed_bias(name) && q.len == v.len => {
            if k.squares.is_finite() && k.squares <= 1e-6 * (q.squares + v.squares) { vec![0, 2] } else { all() }
        }
        _ if ["k_proj.bias", "key.bias"].iter().any(|n| name.ends_with(n))
            && rows.iter().map(|r| r.squares).sum::<f64>()
                < 1e-10 * rows.iter().map(|r| r.len).sum::<usize>() as f64 =>
        {
            vec![]
        }
        // In the first step, the second matrix is zeros.
        _ if begins && name.ends_with(FIRST_OF_LORA) && rows.iter().all(|row| row.nonzero == 0) => vec![],
        _ if role == Role::Table && dims.len() == 2 => {
            let looked_up: Vec<usize> = (0..rows.len()).filter(|i| rows[*i].nonzero > 0).collect();
            // Nothing looked up at all is no reason for zeros.
            if looked_up.is_empty() { all() } else { looked_up }
        }
        _ => all(),
    }
}

/// Of a parameter whose step changed it by so much; see [`change`].
fn parameter(
    profile: &Profile,
    watched: &Watched,
    changed: Option<(f64, f64)>,
    begins: bool,
) -> Result<ParameterHealth> {
    let &Watched { name, weight, gradient, .. } = watched;
    let (role, elements) = (profile.role(name), weight.elem_count());
    // Where the first change of zeros was there is nothing to say.
    let update = match changed {
        Some((0., _)) => Some(0.),
        Some((change, norm)) if norm > 0. => Some((change / norm).sqrt()),
        _ => None,
    };
    let pooling = if role == Role::Pooling && weight.rank() == 1 { Some(pooling(weight)?) } else { None };
    let base = ParameterHealth {
        name: name.into(),
        role,
        elements,
        expected: 0,
        missing: gradient.is_none(),
        norm: 0.,
        zeros: 1.,
        relative_zeros: 1.,
        dead: 1.,
        not_finite: 0,
        update: update.map(short),
        pooling,
    };
    let Some(gradient) = gradient else { return Ok(base) };
    if gradient.dims() != weight.dims() {
        bail!("{name} is {:?}, its gradient {:?}", weight.dims(), gradient.dims())
    }
    let width = width(name, role, weight.dims());
    let rows = statistics::rows(gradient, None, width, ZERO as f32)?;
    let alive = alive(name, role, weight.dims(), &rows, begins);
    let over = |f: fn(&Row) -> usize| alive.iter().map(|i| f(&rows[*i])).sum::<usize>();
    let (n, zeros) = (over(|row| row.len), over(|row| row.small));
    let squares: f64 = alive.iter().map(|i| rows[*i].squares).sum();
    let rms = (squares / n.max(1) as f64).sqrt();
    // Below the least normal number the comparison would say nothing.
    let relative = ((RELATIVE_ZERO * rms) as f32).max(f32::MIN_POSITIVE);
    let relative_zeros = match rms > 0. {
        true => {
            let small = statistics::small(gradient, width, relative)?;
            alive.iter().map(|i| small[*i]).sum()
        }
        false => n,
    };
    Ok(ParameterHealth {
        expected: elements - n,
        norm: short(squares.sqrt()),
        zeros: share(zeros, n),
        relative_zeros: share(relative_zeros, n),
        dead: share(zeros.min(relative_zeros), n),
        not_finite: rows.iter().map(|row| row.not_finite).sum(),
        ..base
    })
}

/// ‖after - before‖² and ‖before‖².
fn change(after: &Tensor, before: &Tensor) -> Result<(f64, f64)> {
    let squares = |rows: Vec<Row>| rows.iter().map(|row| row.squares).sum::<f64>();
    let moved = statistics::rows(after, Some(before), CHUNK, 0.)?;
    Ok((squares(moved), squares(statistics::rows(before, None, CHUNK, 0.)?)))
}

fn pooling(logits: &Tensor) -> Result<PoolingHealth> {
    with_values(logits, |logits| {
        let greatest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let raised: Vec<f64> = logits.iter().map(|v| f64::from(v - greatest).exp()).collect();
        let sum: f64 = raised.iter().sum();
        let weights: Vec<f64> = raised.iter().map(|v| v / sum).collect();
        let n = weights.len().max(1) as f64;
        let mut top: Vec<(usize, f64)> = weights.iter().copied().enumerate().collect();
        top.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        let (max, min) = (top.first().map_or(0., |t| t.1), top.last().map_or(0., |t| t.1));
        let std = (weights.iter().map(|w| (w - 1. / n).powi(2)).sum::<f64>() / n).sqrt();
        top.retain(|t| t.1.is_finite());
        top.truncate(3);
        let top = top.into_iter().map(|(i, w)| (i, short(w))).collect();
        PoolingHealth { max: short(max), min: short(min), std: short(std), top, uniform: (max - min) * n < 0.02 }
    })
}

fn probe(probe: &Probe) -> Result<ProbeHealth> {
    let features = probe.values.dims().last().copied().unwrap_or(1).max(1);
    with_values(&probe.values, |x| {
        let n = x.len();
        let mean = total(x, f64::from) / n.max(1) as f64;
        let variance = total(x, |v| (f64::from(v) - mean).powi(2)) / n.max(1) as f64;
        let (mut greatest, mut means, mut squares) = (vec![0f32; features], vec![0f64; features], vec![0f64; features]);
        let rows = (n / features).max(1) as f64;
        for row in x.chunks(features) {
            for (i, v) in row.iter().enumerate() {
                greatest[i] = if v.is_nan() { f32::NAN } else { greatest[i].max(v.abs()) };
                means[i] += f64::from(*v) / rows;
            }
        }
        for row in x.chunks(features) {
            for (i, v) in row.iter().enumerate() {
                squares[i] += (f64::from(*v) - means[i]).powi(2);
            }
        }
        let still: Vec<usize> = (0..features).filter(|i| greatest[*i] < STILL as f32).collect();
        let deviation = |i: usize| Some((squares[i] / rows).sqrt()).filter(|d| *d > 1e-6 * f64::from(greatest[i]));
        let mut scales: Vec<f64> = (0..features).filter_map(deviation).collect();
        scales.sort_by(f64::total_cmp);
        let middle = scales.get(scales.len() / 2).copied().unwrap_or(1.);
        let group = |(name, range): &(&'static str, Range<usize>)| {
            let values: Vec<f32> =
                x.chunks(features).flat_map(|row| row.get(range.clone()).unwrap_or_default()).copied().collect();
            GroupHealth {
                name: name.to_string(),
                active: share(count(&values, |v| v.abs() >= STILL as f32), values.len()),
                scale: short((total(&values, |v| f64::from(v).powi(2)) / values.len().max(1) as f64).sqrt()),
            }
        };
        ProbeHealth {
            name: probe.name.clone(),
            kind: probe.kind,
            mean: short(mean),
            std: short(variance.sqrt()),
            min: short(f64::from(x.iter().copied().fold(f32::INFINITY, f32::min))),
            max: short(f64::from(x.iter().copied().fold(f32::NEG_INFINITY, f32::max))),
            saturated: share(count(x, |v| v.abs() > SATURATED as f32), n),
            dead: share(count(x, |v| v.abs() < DEAD as f32), n),
            not_finite: count(x, |v| !v.is_finite()),
            features,
            still,
            spread: short(scales.last().copied().unwrap_or(1.) / middle),
            groups: probe.groups.iter().map(group).collect(),
        }
    })
}

impl<'a> Watched<'a> {
    /// Parameters with their gradients, in their common order; `before` are the values before the step.
    pub fn of(params: &'a [Param], grads: &'a Gradients, before: Option<&'a [Tensor]>) -> Vec<Self> {
        let pairs = params.iter().zip(grads.iter()).enumerate();
        pairs
            .map(|(i, (p, (name, gradient)))| Self {
                name,
                weight: p.var.as_tensor(),
                gradient,
                before: before.and_then(|b| b.get(i)),
            })
            .collect()
    }
}

impl Check {
    /// Those of a run directory, oldest first; none where health was not watched.
    ///
    /// # Errors
    /// A line of `health.jsonl` (but for the last, which a crash may have cut) is no check.
    pub fn read(run: &Path) -> crate::Result<Vec<Self>> {
        let files = crate::RunFiles::at(run);
        let (path, Some(text)) = (files.health(), files.health_text()?) else { return Ok(vec![]) };
        let (lines, cut) = (text.lines().count(), !text.ends_with('\n'));
        let mut checks = vec![];
        for (i, line) in text.lines().enumerate() {
            match serde_json::from_str(line) {
                Ok(check) => checks.push(check),
                Err(_) if cut && i + 1 == lines => {}
                Err(e) => return Err(Error::Run(format!("{}: line {}: {e}", path.display(), i + 1))),
            }
        }
        Ok(checks)
    }

    /// Looks at gradients and probes.
    ///
    /// # Errors
    /// Gradients that do not fit their weights; candle's.
    pub fn new(step: u64, profile: &Profile, watched: &[Watched], probes: &[Probe]) -> Result<Self> {
        let changes = watched.iter().map(|w| w.before.map(|before| change(w.weight, before)).transpose());
        let changes = changes.collect::<Result<Vec<_>>>()?;
        let pairs = watched.iter().zip(&changes);
        let parameters =
            pairs.map(|(w, changed)| parameter(profile, w, *changed, step <= 1)).collect::<Result<Vec<_>>>()?;
        // What backward does not reach is said of each by itself.
        let reached = || parameters.iter().filter(|p| !p.missing);
        let alive: usize = reached().map(|p| p.elements - p.expected).sum();
        let dead: f64 = reached().map(|p| p.dead * (p.elements - p.expected) as f64).sum();
        let (moved, norm) = changes.iter().flatten().fold((0., 0.), |(a, b), (change, norm)| (a + change, b + norm));
        Ok(Self {
            step,
            update: (norm > 0.).then(|| short((moved / norm).sqrt())),
            norm: short(parameters.iter().map(|p| p.norm * p.norm).sum::<f64>().sqrt()),
            dead: short(dead / alive.max(1) as f64),
            parameters,
            probes: probes.iter().map(probe).collect::<Result<_>>()?,
            frozen: vec![],
        })
    }
}
