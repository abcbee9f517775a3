//! Rotary position embedding (Su et al., *RoFormer*, 2021).
//!
//! The d features of a place form d/2 pairs (a, b), which turn by an angle θ of their own:
//!
//! ```text
//! forward   a' = a cos θ - b sin θ      b' = b cos θ + a sin θ
//! backward  da = da' cos θ + db' sin θ  db = db' cos θ - da' sin θ
//! ```
//!
//! Pairs are features i and i + d/2 (GPT-NeoX, Llama in `transformers`), or 2i and 2i + 1 (the paper, Llama in GGUF files).

#[cfg(test)]
mod tests;

use candle_core::{D, Device, Result, Tensor, bail};
use zoo_kernels::cpu::{Buffer, parallel};
use zoo_kernels::gpu::{Arg, Array, Gpu, Grid, Module};
use zoo_kernels::{Backward, Forward, GpuForward, Op, Output, View, apply_one, module};

/// Which features turn together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RopePairs {
    /// i and i + d/2.
    #[default]
    Halves,
    /// 2i and 2i + 1.
    Neighbours,
}

const KERNELS: Module = module!("rope");

#[derive(Clone, Copy, Debug)]
pub(super) struct Rope {
    pub(super) pairs: RopePairs,
    /// Heads of a place, side by side.
    pub(super) heads: usize,
}

/// How angles are made smaller, for contexts longer than those that a model was trained on first.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RopeScaling {
    /// All of them by a factor (Chen et al. 2023).
    Linear(f64),
    /// Those of slow pairs, as Llama 3.1 has it.
    Llama3 {
        /// What angles are divided by whose period is long.
        factor: f64,
        /// Periods longer than the first context by this are long: `context / low`.
        low: f64,
        /// Periods shorter than the first context by this stay as they are: `context / high`; in between, a part of both.
        high: f64,
        /// The first context, in positions.
        context: usize,
    },
}

/// How far each of the d/2 pairs of a head of `d` features turns from a place to the next: base^(-2i/d), scaled.
pub fn rope_frequencies(d: usize, base: f64, scaling: Option<RopeScaling>) -> Vec<f64> {
    let frequencies = (0..d / 2).map(|i| base.powf(-2. * i as f64 / d as f64));
    let scaled = |f: f64| match scaling {
        None => f,
        Some(RopeScaling::Linear(factor)) => f / factor,
        Some(RopeScaling::Llama3 { factor, low, high, context }) => {
            let periods = context as f64 * f / std::f64::consts::TAU;
            let kept = ((periods - low) / (high - low)).clamp(0., 1.);
            f * (kept + (1. - kept) / factor)
        }
    };
    frequencies.map(scaled).collect()
}

/// Cosines and sines (t, d/2) of the positions `first`, `first` + 1, …, `first` + t - 1 for heads of `d` features:
/// θ = place · base^(-2i/d), in f32 on `device`.
///
/// # Errors
/// An odd `d`; more positions than can be counted.
pub fn rope_angles(first: usize, t: usize, d: usize, base: f64, device: &Device) -> Result<(Tensor, Tensor)> {
    if !d.is_multiple_of(2) {
        bail!("rope: expected an even number of features, got {d}")
    }
    rope_angles_of(first, t, &rope_frequencies(d, base, None), device)
}

/// [`rope_angles`] for frequencies of one's own, one a pair: θ = place · frequency.
///
/// # Errors
/// More positions than can be counted.
pub fn rope_angles_of(first: usize, t: usize, frequencies: &[f64], device: &Device) -> Result<(Tensor, Tensor)> {
    let half = frequencies.len();
    if first.checked_add(t).is_none() || t.checked_mul(half).is_none_or(|n| n > isize::MAX as usize / 16) {
        bail!("rope: {t} positions of {} features from {first} on are more than can be counted", 2 * half)
    }
    let of = |f: fn(f64) -> f64| {
        let row = |place: usize| frequencies.iter().map(move |frequency| f(place as f64 * frequency) as f32);
        Tensor::from_vec((first..first + t).flat_map(row).collect::<Vec<f32>>(), (t, half), device)
    };
    Ok((of(f64::cos)?, of(f64::sin)?))
}

/// `x` (…, t, d) turned by the angles of `cos` and `sin` (t, d/2), which get no gradient; see [`rope_angles`].
///
/// # Errors
/// Shapes that do not fit.
pub fn rope(x: &Tensor, cos: &Tensor, sin: &Tensor, pairs: RopePairs) -> Result<Tensor> {
    let fits = match x.dims() {
        [.., t, d] => d % 2 == 0 && cos.dims() == [*t, d / 2] && sin.dims() == cos.dims(),
        _ => false,
    };
    if !fits {
        bail!("rope: x {:?} does not fit cos {:?} and sin {:?}", x.dims(), cos.dims(), sin.dims())
    }
    apply_one(Rope { pairs, heads: 1 }, &[x, &cos.detach(), &sin.detach()])
}

/// [`rope`] of `heads` heads that lie side by side: `x` is (…, t, heads d).
///
/// # Errors
/// Shapes that do not fit.
pub fn rope_heads(x: &Tensor, heads: usize, cos: &Tensor, sin: &Tensor, pairs: RopePairs) -> Result<Tensor> {
    let fits = match (x.dims(), cos.dims()) {
        ([.., t, c], [places, half]) => {
            heads > 0 && t == places && half.checked_mul(2 * heads) == Some(*c) && sin.dims() == cos.dims()
        }
        _ => false,
    };
    if !fits {
        let (x, cos, sin) = (x.dims(), cos.dims(), sin.dims());
        bail!("rope: x {x:?} of {heads} heads does not fit cos {cos:?} and sin {sin:?}")
    }
    apply_one(Rope { pairs, heads }, &[x, &cos.detach(), &sin.detach()])
}

impl Rope {
    /// [`Self::turn`] on a GPU.
    fn on_gpu(&self, gpu: &Gpu, x: &View, [cos, sin]: [&View; 2], back: bool) -> Result<Array> {
        let (half, pairs) = (cos.width(), x.count() / 2);
        let mut y = gpu.array(x.count())?;
        let args = &mut [
            Arg::Read(x.slice()?),
            Arg::Read(cos.slice()?),
            Arg::Read(sin.slice()?),
            Arg::Write(&mut y),
            Arg::Count(pairs),
            Arg::Count(half),
            Arg::Count(cos.rows()),
            Arg::Count(self.heads),
            Arg::Word((self.pairs == RopePairs::Neighbours).into()),
            Arg::Float(if back { -1. } else { 1. }),
        ];
        // SAFETY: x and y have twice as many elements as pairs are counted; cos and sin have the counted rows, as was checked.
        unsafe { gpu.launch(&KERNELS, "rope", Grid::each(pairs), args)? };
        Ok(y)
    }

    /// Turns every row of `x`, by the opposite angles if `back`.
    pub(super) fn turn(&self, x: &[f32], cos: &[f32], sin: &[f32], d: usize, back: bool) -> Vec<f32> {
        const ROWS: usize = 64;
        let (half, rows) = (d / 2, x.len().checked_div(d).unwrap_or(0));
        let positions = cos.len().checked_div(half).unwrap_or(1).max(1);
        let sign = if back { -1. } else { 1. };
        let mut y = Buffer::new(x.len());
        let to = y.pointer();
        let (next, step) = if self.pairs == RopePairs::Halves { (half, 1) } else { (1, 2) };
        parallel::for_each(rows.div_ceil(ROWS), |task| {
            for row in task * ROWS..rows.min((task + 1) * ROWS) {
                let angles = row / self.heads % positions * half..;
                let (x, cos, sin) = (&x[row * d..][..d], &cos[angles.clone()][..half], &sin[angles][..half]);
                // SAFETY: the row lies within the buffer and belongs to this task, and both features of a pair within it.
                unsafe {
                    let y = to.at(row * d);
                    for i in 0..half {
                        let (a, b, s) = (x[i * step], x[i * step + next], sign * sin[i]);
                        y.add(i * step).write(a * cos[i] - b * s);
                        y.add(i * step + next).write(b * cos[i] + a * s);
                    }
                }
            }
        });
        // SAFETY: the tasks cover all rows, and the pairs all features.
        unsafe { y.finish() }
    }
}

impl Op for Rope {
    fn name(&self) -> &'static str {
        "rope"
    }

    fn reference(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
        let (x, cos, sin) = (&inputs[0], &inputs[1], &inputs[2]);
        let (dims, half) = (x.dims().to_vec(), cos.dim(D::Minus1)?);
        let (cos, sin) = (&cos.unsqueeze(1)?, &sin.unsqueeze(1)?);
        // (…, t, heads, 2, d/2) or (…, t, heads, d/2, 2).
        let (shape, axis) = match self.pairs {
            RopePairs::Halves => ([self.heads, 2, half], dims.len()),
            RopePairs::Neighbours => ([self.heads, half, 2], dims.len() + 1),
        };
        let pairs = x.reshape([&dims[..dims.len() - 1], &shape].concat())?;
        let part = |i: usize| pairs.narrow(axis, i, 1)?.squeeze(axis);
        let (a, b) = (part(0)?, part(1)?);
        let turned =
            [(a.broadcast_mul(cos)? - b.broadcast_mul(sin)?)?, (b.broadcast_mul(cos)? + a.broadcast_mul(sin)?)?];
        Ok(vec![Tensor::stack(&turned, axis)?.reshape(dims)?])
    }

    fn cpu_forward(&self, inputs: &[View], _: bool) -> Result<Forward> {
        let dims = inputs[0].dims();
        let d = dims[dims.len() - 1] / self.heads;
        let data = self.turn(inputs[0].f32()?, inputs[1].f32()?, inputs[2].f32()?, d, false);
        Ok(Forward { outputs: vec![Output { data, shape: dims.into() }], saved: vec![] })
    }

    fn cpu_backward(&self, pass: &Backward) -> Result<Vec<Option<Vec<f32>>>> {
        let Some(grad) = &pass.grads[0] else { bail!("rope: no gradient") };
        let dims = grad.dims();
        let (cos, sin) = (pass.inputs[1].f32()?, pass.inputs[2].f32()?);
        Ok(vec![Some(self.turn(grad.f32()?, cos, sin, dims[dims.len() - 1] / self.heads, true)), None, None])
    }

    fn gpu_forward(&self, gpu: &Gpu, inputs: &[View], _: bool) -> Result<Option<GpuForward>> {
        let y = self.on_gpu(gpu, &inputs[0], [&inputs[1], &inputs[2]], false)?;
        Ok(Some(GpuForward::one(y, &inputs[0], vec![])))
    }

    fn gpu_backward(&self, gpu: &Gpu, pass: &Backward<Array>) -> Result<Vec<Option<Array>>> {
        let Some(grad) = &pass.grads[0] else { bail!("rope: no gradient") };
        Ok(vec![Some(self.on_gpu(gpu, grad, [&pass.inputs[1], &pass.inputs[2]], true)?), None, None])
    }
}
