//! Layer norm (Ba, Kiros and Hinton 2016) and RMS norm (Zhang and Sennrich 2019) over the last dimension.
//!
//! ```text
//! layer     μ = mean x    r = 1 / √(mean (x - μ)² + ε)    x̂ = (x - μ) r
//! RMS       μ = 0         r = 1 / √(mean x² + ε)          x̂ = x r
//! forward   y = x̂ w + b
//! backward  g = dy w      dx = r (g - mean g - x̂ mean (g x̂))      (RMS: without mean g)
//!           dw = Σ over rows of dy x̂      db = Σ over rows of dy
//! ```
//!
//! μ and r are kept, x̂ is computed again. μ is the sum of two numbers, the second what the first leaves when it is taken off: beside large elements
//! f32 has no number that is near enough to it. Sums within a row are f32 by blocks of lanes; those over rows are taken by blocks of 64 and then over
//! the blocks, in order.

pub(super) mod cpu;
mod gpu;
#[cfg(test)]
mod tests;

use candle_core::{D, Result, Tensor, bail};
use zoo_kernels::gpu::{Array, Gpu};
use zoo_kernels::{Backward, Forward, GpuForward, Op, Output, View, apply_one};

/// Which statistics a norm divides out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormKind {
    /// Mean and standard deviation.
    Layer,
    /// Root of the mean square.
    Rms,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Norm {
    pub(super) kind: NormKind,
    pub(super) eps: f64,
    /// Whether there is a weight, and whether there is a bias.
    pub(super) affine: [bool; 2],
}

/// Layer norm of `x` (…, c), with an optional `weight` and `bias` of c elements.
///
/// # Errors
/// Shapes that do not fit.
pub fn layer_norm(x: &Tensor, weight: Option<&Tensor>, bias: Option<&Tensor>, eps: f64) -> Result<Tensor> {
    norm(NormKind::Layer, x, weight, bias, eps)
}

/// RMS norm of `x` (…, c), with an optional `weight` of c elements.
///
/// # Errors
/// Shapes that do not fit.
pub fn rms_norm(x: &Tensor, weight: Option<&Tensor>, eps: f64) -> Result<Tensor> {
    norm(NormKind::Rms, x, weight, None, eps)
}

fn norm(kind: NormKind, x: &Tensor, weight: Option<&Tensor>, bias: Option<&Tensor>, eps: f64) -> Result<Tensor> {
    let op = Norm { kind, eps, affine: [weight.is_some(), bias.is_some()] };
    let name = op.name();
    let Some(&c) = x.dims().last() else { bail!("{name}: expected at least one dimension") };
    for t in [weight, bias].into_iter().flatten() {
        if t.dims() != [c] {
            bail!("{name}: weight or bias {:?} does not fit x {:?}", t.dims(), x.dims())
        }
    }
    let mut inputs = vec![x];
    inputs.extend(weight);
    inputs.extend(bias);
    apply_one(op, &inputs)
}

impl Norm {
    /// The plain graph, for `rest` with weight and bias as far as there are any.
    pub(super) fn plain(&self, x: &Tensor, rest: &[Tensor]) -> Result<Tensor> {
        let centred = match self.kind {
            NormKind::Layer => x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?,
            NormKind::Rms => x.clone(),
        };
        let root = (centred.sqr()?.mean_keepdim(D::Minus1)? + self.eps)?.sqrt()?;
        let mut y = centred.broadcast_div(&root)?;
        let mut rest = rest.iter();
        if self.affine[0]
            && let Some(weight) = rest.next()
        {
            y = y.broadcast_mul(weight)?;
        }
        if self.affine[1]
            && let Some(bias) = rest.next()
        {
            y = y.broadcast_add(bias)?;
        }
        Ok(y)
    }

    /// Weight and bias among what follows x.
    pub(super) fn split<'a>(&self, rest: &[&'a [f32]]) -> [Option<&'a [f32]>; 2] {
        let mut rest = rest.iter().copied();
        self.affine.map(|there| if there { rest.next() } else { None })
    }
}

impl Op for Norm {
    fn name(&self) -> &'static str {
        match self.kind {
            NormKind::Layer => "layer norm",
            NormKind::Rms => "RMS norm",
        }
    }

    fn reference(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
        Ok(vec![self.plain(&inputs[0], &inputs[1..])?])
    }

    fn cpu_forward(&self, inputs: &[View], save: bool) -> Result<Forward> {
        let rest = inputs[1..].iter().map(View::f32).collect::<Result<Vec<_>>>()?;
        let width = inputs[0].dims()[inputs[0].dims().len() - 1];
        let (data, statistics) = cpu::forward(self, width, inputs[0].f32()?, self.split(&rest))?;
        let saved = if save { vec![statistics] } else { vec![] };
        Ok(Forward { outputs: vec![Output { data, shape: inputs[0].dims().into() }], saved })
    }

    fn cpu_backward(&self, pass: &Backward) -> Result<Vec<Option<Vec<f32>>>> {
        let Some(grad) = &pass.grads[0] else { bail!("{}: no gradient", self.name()) };
        let x = &pass.inputs[0];
        let rest = pass.inputs[1..].iter().map(View::f32).collect::<Result<Vec<_>>>()?;
        let width = x.dims()[x.dims().len() - 1];
        let [weight, _] = self.split(&rest);
        let (dx, dw, db) = cpu::backward(width, grad.f32()?, x.f32()?, weight, &pass.saved[0], self.kind, None)?;
        let mut grads = vec![Some(dx)];
        grads.extend(self.affine[0].then_some(Some(dw)));
        grads.extend(self.affine[1].then_some(Some(db)));
        Ok(grads)
    }

    fn gpu_forward(&self, gpu: &Gpu, inputs: &[View], _: bool) -> Result<Option<GpuForward>> {
        gpu::forward(self, gpu, inputs).map(Some)
    }

    fn gpu_backward(&self, gpu: &Gpu, pass: &Backward<Array>) -> Result<Vec<Option<Array>>> {
        gpu::backward(self, gpu, pass)
    }
}
