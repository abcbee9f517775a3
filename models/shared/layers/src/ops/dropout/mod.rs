//! Inverted dropout (Srivastava et al., JMLR 2014).
//!
//! ```text
//! forward   y = m · x / (1 - p)        m = 0 with probability p, else 1
//! backward  dx = m · dy / (1 - p)
//! ```
//!
//! The mask is drawn in the kernel from Philox and drawn again in the backward pass: it is never stored. Element e of
//! the tensor uses word (e mod 64) / 16 of block 16 · (e / 64) + e mod 16, and is dropped if that word is below
//! p · 2³²: the same on every device and at every SIMD level.

mod cpu;
#[cfg(test)]
mod tests;

use candle_core::{DType, Result, Tensor, bail};
use zoo_kernels::gpu::{Arg, Array, Gpu, Grid, Module, Slice};
use zoo_kernels::{Backward, Forward, GpuForward, Op, Output, View, apply_one, module};

use crate::random::Stream;

#[derive(Clone)]
pub(crate) struct Dropout {
    pub(crate) p: f64,
    pub(crate) stream: Stream,
}

pub(crate) use cpu::range;

/// Drops elements of `x` (any shape) with probability `p` in [0, 1) and scales the others by 1 / (1 - p).
///
/// # Errors
/// `p` outside [0, 1).
pub fn dropout(x: &Tensor, p: f64, stream: Stream) -> Result<Tensor> {
    let op = Dropout::new(p, stream.clone())?;
    if p == 0. {
        return Ok(x.clone());
    }
    apply_one(op, &[x])
}

/// The factors that [`dropout`] multiplies `n` elements with: 0 or 1 / (1 - p).
///
/// # Errors
/// A share that is none from 0 to below 1.
pub fn mask(n: usize, p: f64, stream: &Stream) -> Result<Vec<f32>> {
    Ok(factors(n, &Dropout::new(p, stream.clone())?))
}

fn factors(n: usize, op: &Dropout) -> Vec<f32> {
    let stream = &op.stream;
    let word = |e: usize| stream.block((16 * (e / 64) + e % 16) as u64)[e % 64 / 16];
    (0..n).map(|e| if word(e) < op.threshold() { 0. } else { op.scale() }).collect()
}

/// `x` with its elements dropped, in plain candle operations; unchanged without dropout.
pub(crate) fn apply_mask(x: &Tensor, dropout: Option<&Dropout>) -> Result<Tensor> {
    let Some(dropout) = dropout else { return Ok(x.clone()) };
    let mask = Tensor::from_vec(factors(x.elem_count(), dropout), x.shape(), x.device())?;
    x * if x.dtype() == DType::F32 { mask } else { mask.to_dtype(x.dtype())? }
}

const KERNELS: Module = module!("dropout");

/// What a kernel draws its mask from: threshold, scale (its bits), step and key. Without dropout nothing lies below the
/// threshold.
pub(super) fn draws(dropout: Option<&Dropout>) -> [u32; 6] {
    let Some(d) = dropout else { return [0, 1f32.to_bits(), 0, 0, 0, 0] };
    let ([step0, step1], [key0, key1]) = (d.stream.step(), d.stream.key());
    [d.threshold(), d.scale().to_bits(), step0, step1, key0, key1]
}

/// The same elements in memory of their own.
pub(super) fn copy(gpu: &Gpu, x: Slice) -> Result<Array> {
    on_gpu(gpu, x, None, None)
}

/// `residual` + dropout(`x`) on a GPU, as far as there is either; the residual may be one for several parts of `x`.
pub(super) fn on_gpu(gpu: &Gpu, x: Slice, residual: Option<Slice>, dropout: Option<&Dropout>) -> Result<Array> {
    let mut y = gpu.array(x.count())?;
    let mut args = vec![
        Arg::Read(x),
        Arg::Read(residual.unwrap_or(x)),
        Arg::Write(&mut y),
        Arg::Count(x.count()),
        Arg::Count(residual.map_or(0, |residual| residual.count())),
    ];
    args.extend(draws(dropout).map(Arg::Word));
    // Sixteen threads, with a block of words each, for 64 elements.
    // SAFETY: x and y have as many elements as are counted, and the residual is read modulo its own count.
    unsafe { gpu.launch(&KERNELS, "dropout", Grid::each(x.count().div_ceil(64) * 16), &mut args)? };
    Ok(y)
}

impl Dropout {
    /// `x` with its elements dropped.
    pub(crate) fn masked(&self, x: &[f32]) -> Result<Vec<f32>> {
        cpu::apply(x, self)
    }

    /// That of a probability and stream, unless it drops nothing.
    pub(crate) fn of(given: Option<(f64, Stream)>) -> Result<Option<Self>> {
        let dropout = given.map(|(p, stream)| Self::new(p, stream)).transpose()?;
        Ok(dropout.filter(|d| d.p > 0.))
    }

    pub(crate) fn new(p: f64, stream: Stream) -> Result<Self> {
        if !(0. ..1.).contains(&p) {
            bail!("dropout: expected a probability in [0, 1), got {p}")
        }
        Ok(Self { p, stream })
    }

    /// Words below it drop their element.
    fn threshold(&self) -> u32 {
        (self.p * 2f64.powi(32)).round() as u32
    }

    fn scale(&self) -> f32 {
        (1. / (1. - self.p)) as f32
    }
}

impl Op for Dropout {
    fn name(&self) -> &'static str {
        "dropout"
    }

    fn reference(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
        Ok(vec![apply_mask(&inputs[0], Some(self))?])
    }

    fn cpu_forward(&self, inputs: &[View], _: bool) -> Result<Forward> {
        let data = self.masked(inputs[0].f32()?)?;
        Ok(Forward { outputs: vec![Output { data, shape: inputs[0].dims().into() }], saved: vec![] })
    }

    fn cpu_backward(&self, pass: &Backward) -> Result<Vec<Option<Vec<f32>>>> {
        let Some(grad) = &pass.grads[0] else { bail!("dropout: no gradient") };
        Ok(vec![Some(self.masked(grad.f32()?)?)])
    }

    fn gpu_forward(&self, gpu: &Gpu, inputs: &[View], _: bool) -> Result<Option<GpuForward>> {
        Ok(Some(GpuForward::one(on_gpu(gpu, inputs[0].slice()?, None, Some(self))?, &inputs[0], vec![])))
    }

    fn gpu_backward(&self, gpu: &Gpu, pass: &Backward<Array>) -> Result<Vec<Option<Array>>> {
        let Some(grad) = &pass.grads[0] else { bail!("dropout: no gradient") };
        Ok(vec![Some(on_gpu(gpu, grad.slice()?, None, Some(self))?)])
    }
}
