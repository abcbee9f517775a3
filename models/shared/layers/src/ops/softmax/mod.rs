//! Softmax and log-softmax over the last dimension.
//!
//! ```text
//! forward   m = max x    l = ln Σ exp(x - m)    softmax y = exp(x - m) / exp l    log-softmax y = x - m - l
//! backward  softmax      dx = y (dy - Σ dy y)
//!           log-softmax  dx = dy - exp(y) Σ dy
//! ```
//!
//! A row of -∞ alone gives zeros and no gradient (softmax), or -∞ and dy (log-softmax); NaN anywhere makes its whole row NaN.

mod cpu;
#[cfg(test)]
mod tests;

pub(super) use cpu::largest;

use candle_core::{D, Result, Tensor, bail};
use zoo_kernels::gpu::{Arg, Array, Gpu, Grid, Module};
use zoo_kernels::{Backward, Forward, GpuForward, Op, Output, View, apply_one, module};

const KERNELS: Module = module!("softmax");

#[derive(Clone, Copy, Debug)]
struct Softmax {
    log: bool,
}

/// Softmax of `x` (…, c) over c.
pub fn softmax(x: &Tensor) -> Result<Tensor> {
    of(x, false)
}

/// The logarithm of [`softmax`].
pub fn log_softmax(x: &Tensor) -> Result<Tensor> {
    of(x, true)
}

fn of(x: &Tensor, log: bool) -> Result<Tensor> {
    if x.rank() == 0 {
        bail!("softmax: expected at least one dimension")
    }
    apply_one(Softmax { log }, &[x])
}

/// exp(x - max x) over the last dimension and its sum, in plain candle operations; rows of -∞ become zeros.
pub(super) fn exponentials(x: &Tensor) -> Result<(Tensor, Tensor, Tensor)> {
    // The result does not depend on what is subtracted: no gradient goes there.
    let max = x.detach().max_keepdim(D::Minus1)?;
    let max = max.eq(f64::NEG_INFINITY)?.where_cond(&max.zeros_like()?, &max)?;
    let e = x.broadcast_sub(&max)?.exp()?;
    let sum = e.sum_keepdim(D::Minus1)?;
    Ok((e, sum, max))
}

impl Softmax {
    fn on_gpu(&self, gpu: &Gpu, x: &View) -> Result<Array> {
        let mut y = gpu.array(x.count())?;
        let args = &mut [Arg::Read(x.slice()?), Arg::Write(&mut y), Arg::Count(x.width()), Arg::Word(self.log.into())];
        // SAFETY: x and y have the rows of the grid, of the counted width.
        unsafe { gpu.launch(&KERNELS, "softmax_forward", Grid::rows(x.rows(), x.width()), args)? };
        Ok(y)
    }
}

impl Op for Softmax {
    fn name(&self) -> &'static str {
        if self.log { "log-softmax" } else { "softmax" }
    }

    fn wide(&self) -> bool {
        true
    }

    fn reference(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
        let x = &inputs[0];
        if x.elem_count() == 0 {
            return Ok(vec![x.clone()]);
        }
        let (e, sum, max) = exponentials(x)?;
        let empty = sum.detach().eq(0.)?.to_dtype(x.dtype())?;
        Ok(vec![match self.log {
            true => x.broadcast_sub(&max)?.broadcast_sub(&(sum + empty)?.log()?)?,
            false => e.broadcast_div(&(sum + empty)?)?,
        }])
    }

    fn needs_outputs(&self) -> bool {
        true
    }

    fn cpu_forward(&self, inputs: &[View], _: bool) -> Result<Forward> {
        let dims = inputs[0].dims();
        let data = cpu::forward(self.log, dims[dims.len() - 1], inputs[0].f32()?)?;
        Ok(Forward { outputs: vec![Output { data, shape: dims.into() }], saved: vec![] })
    }

    fn cpu_backward(&self, pass: &Backward) -> Result<Vec<Option<Vec<f32>>>> {
        let Some(grad) = &pass.grads[0] else { bail!("{}: no gradient", self.name()) };
        let dims = pass.inputs[0].dims();
        Ok(vec![Some(cpu::backward(self.log, dims[dims.len() - 1], grad.f32()?, pass.outputs[0].f32()?)?)])
    }

    fn gpu_forward(&self, gpu: &Gpu, inputs: &[View], _: bool) -> Result<Option<GpuForward>> {
        Ok(Some(GpuForward::one(self.on_gpu(gpu, &inputs[0])?, &inputs[0], vec![])))
    }

    fn gpu_backward(&self, gpu: &Gpu, pass: &Backward<Array>) -> Result<Vec<Option<Array>>> {
        let Some(grad) = &pass.grads[0] else { bail!("{}: no gradient", self.name()) };
        let mut dx = gpu.array(grad.count())?;
        let args = &mut [
            Arg::Read(pass.outputs[0].slice()?),
            Arg::Read(grad.slice()?),
            Arg::Write(&mut dx),
            Arg::Count(grad.width()),
            Arg::Word(self.log.into()),
        ];
        // SAFETY: output, gradient and result have the rows of the grid, of the counted width.
        unsafe { gpu.launch(&KERNELS, "softmax_backward", Grid::rows(grad.rows(), grad.width()), args)? };
        Ok(vec![Some(dx)])
    }
}
