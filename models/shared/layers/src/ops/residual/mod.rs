//! The residual branches of a transformer, each one node of the graph: y = x + dropout(f(norm(x))).
//!
//! ```text
//! MLP        h = norm(x) W₁ᵀ + b₁      a = dropout(f(h))           y = x + dropout(a W₂ᵀ + b₂)
//! attention  q, k, v = norm(x) Wᵀ + b  o = attention(q, k, v)      y = x + dropout(o W_oᵀ + b_o)
//! gated MLP  g, u = norm(x) Wᵀ         a = f(g) · u                y = x + a W₂ᵀ
//! ```
//!
//! The backward pass is the composition of those of `linear`, `activation`, `attention` and `norm`, on buffers that
//! candle never sees: on its graph every edge would be zero-filled and added. Kept are the norm's statistics, a and the
//! slopes of f (MLP), g and u (gated MLP), or q, k, v, o and the logarithms (attention); norm(x) and the a of a gated MLP are computed again,
//! where a weight asks for them: one that stays as it is does not.

mod attention;
pub(super) mod cpu;
mod gated;
mod grouped;
mod mlp;
#[cfg(test)]
mod tests;

use candle_core::{Result, Tensor, bail};
use zoo_kernels::gpu::{Array, Gpu};
use zoo_kernels::{Backward, Forward, GpuForward, Op, Output, View, apply_one};

pub use attention::{AttentionBranch, Projection};
pub use gated::GatedBranch;
pub use grouped::GroupedBranch;
pub use mlp::MlpBranch;

use super::activation::Activation;
use super::dropout::{Dropout, apply_mask, on_gpu};
use super::linear;
use super::norm::{Norm, NormKind};
use crate::random::Stream;

/// The norm before a branch.
#[derive(Clone, Copy, Debug)]
pub struct PreNorm<'a> {
    /// Which.
    pub kind: NormKind,
    /// Added to the variance or mean square.
    pub eps: f64,
    /// (c), if any.
    pub weight: Option<&'a Tensor>,
    /// (c), if any.
    pub bias: Option<&'a Tensor>,
}

/// An affine map: `weight` (out, in) and `bias` (out).
#[derive(Clone, Copy, Debug)]
pub struct Affine<'a> {
    /// (out, in).
    pub weight: &'a Tensor,
    /// (out), if any.
    pub bias: Option<&'a Tensor>,
}

/// The inputs of a branch, and where among them each is.
#[derive(Default)]
struct Inputs<'a> {
    tensors: Vec<&'a Tensor>,
}

impl<'a> Inputs<'a> {
    fn push(&mut self, tensor: &'a Tensor) -> usize {
        self.tensors.push(tensor);
        self.tensors.len() - 1
    }

    fn affine(&mut self, affine: Affine<'a>, dims: (usize, usize)) -> Result<AffineAt> {
        let Affine { weight, bias } = affine;
        if weight.dims() != [dims.0, dims.1] || bias.is_some_and(|b| b.dims() != [dims.0]) {
            let bias = bias.map(|b| b.dims());
            bail!("branch: weight {:?} and bias {bias:?}, expected {dims:?}", weight.dims())
        }
        Ok(AffineAt { weight: self.push(weight), bias: bias.map(|b| self.push(b)) })
    }

    fn norm(&mut self, norm: Option<PreNorm<'a>>, c: usize) -> Result<Option<NormAt>> {
        let Some(PreNorm { kind, eps, weight, bias }) = norm else { return Ok(None) };
        if [weight, bias].into_iter().flatten().any(|t| t.dims() != [c]) {
            bail!("branch: the norm's weight or bias does not fit {c} features")
        }
        let op = Norm { kind, eps, affine: [weight.is_some(), bias.is_some()] };
        Ok(Some(NormAt { op, weight: weight.map(|t| self.push(t)), bias: bias.map(|t| self.push(t)) }))
    }
}

/// Where an affine map's tensors are among the inputs.
#[derive(Clone, Copy)]
struct AffineAt {
    weight: usize,
    bias: Option<usize>,
}

impl AffineAt {
    /// f(x Wᵀ + b) by its own op.
    fn composed(&self, x: &Tensor, inputs: &[Tensor], f: Activation) -> Result<Tensor> {
        linear::linear(x, &inputs[self.weight], self.bias.map(|i| &inputs[i]), f)
    }

    fn plain(&self, x: &Tensor, inputs: &[Tensor]) -> Result<Tensor> {
        linear::plain(x, &inputs[self.weight], self.bias.map(|i| &inputs[i]))
    }
}

/// Where a norm's tensors are among the inputs.
#[derive(Clone, Copy)]
struct NormAt {
    op: Norm,
    weight: Option<usize>,
    bias: Option<usize>,
}

impl NormAt {
    /// norm(x) by its own op; x without a norm.
    fn composed(at: Option<&Self>, inputs: &[Tensor]) -> Result<Tensor> {
        let Some(Self { op, weight, bias }) = at else { return Ok(inputs[0].clone()) };
        let mut all = vec![&inputs[0]];
        all.extend([weight, bias].into_iter().flatten().map(|&i| &inputs[i]));
        apply_one(*op, &all)
    }

    fn plain(at: Option<&Self>, inputs: &[Tensor]) -> Result<Tensor> {
        let Some(Self { op, weight, bias }) = at else { return Ok(inputs[0].clone()) };
        let rest: Vec<Tensor> = [weight, bias].into_iter().flatten().map(|&i| inputs[i].clone()).collect();
        op.plain(&inputs[0], &rest)
    }
}

#[derive(Clone)]
struct AddDropout {
    dropout: Option<Dropout>,
    /// Whether x is one for several parts of the branch.
    shared: bool,
}

/// `x` + dropout(`branch`), in one node. `x` has the shape of `branch` or of its last dimensions, such as positions (t, c) for
/// (b, t, c).
///
/// # Errors
/// Other shapes, or a probability outside [0, 1).
pub fn add_dropout(x: &Tensor, branch: &Tensor, drop: Option<(f64, Stream)>) -> Result<Tensor> {
    if !branch.dims().ends_with(x.dims()) {
        bail!("residual: x {:?} and branch {:?} differ in shape", x.dims(), branch.dims())
    }
    apply_one(AddDropout { dropout: Dropout::of(drop)?, shared: x.rank() < branch.rank() }, &[x, branch])
}

impl Op for AddDropout {
    fn name(&self) -> &'static str {
        "residual"
    }

    fn reference(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
        Ok(vec![apply_mask(&inputs[1], self.dropout.as_ref())?.broadcast_add(&inputs[0])?])
    }

    fn passes(&self, input: usize) -> bool {
        if input == 0 { !self.shared } else { self.dropout.is_none() }
    }

    fn cpu_forward(&self, inputs: &[View], _: bool) -> Result<Forward> {
        let data = cpu::add_dropped(inputs[0].f32()?, inputs[1].f32()?.to_vec(), self.dropout.as_ref())?;
        Ok(Forward { outputs: vec![Output { data, shape: inputs[1].dims().into() }], saved: vec![] })
    }

    fn cpu_backward(&self, pass: &Backward) -> Result<Vec<Option<Vec<f32>>>> {
        let Some(grad) = &pass.grads[0] else { bail!("residual: no gradient") };
        let dy = grad.f32()?;
        let x = pass.needs[0].then(|| linear::cpu::column_sums(dy, pass.inputs[0].count()));
        let dropout = self.dropout.as_ref().filter(|_| pass.needs[1]);
        Ok(vec![x, dropout.map(|d| d.masked(dy)).transpose()?])
    }

    fn gpu_forward(&self, gpu: &Gpu, inputs: &[View], _: bool) -> Result<Option<GpuForward>> {
        let y = on_gpu(gpu, inputs[1].slice()?, Some(inputs[0].slice()?), self.dropout.as_ref())?;
        Ok(Some(GpuForward::one(y, &inputs[1], vec![])))
    }

    fn gpu_backward(&self, gpu: &Gpu, pass: &Backward<Array>) -> Result<Vec<Option<Array>>> {
        let Some(grad) = &pass.grads[0] else { bail!("residual: no gradient") };
        let x = pass.needs[0].then(|| gpu.column_sums(grad.slice()?, pass.inputs[0].count())).transpose()?;
        let dropout = self.dropout.as_ref().filter(|_| pass.needs[1]);
        Ok(vec![x, dropout.map(|d| on_gpu(gpu, grad.slice()?, None, Some(d))).transpose()?])
    }
}
