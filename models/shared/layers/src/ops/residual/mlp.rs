use candle_core::{Result, Tensor, bail};
use zoo_kernels::{Backward, Forward, Op, Output, View, apply_one};

use super::cpu::{self, Gradients};
use super::{AddDropout, Affine, AffineAt, Inputs, NormAt, PreNorm};
use crate::ops::activation::Activation;
use crate::ops::activation::cpu::{apply as activate, times_into};
use crate::ops::dropout::{Dropout, apply_mask};
use crate::ops::linear::cpu as linear;
use crate::random::Stream;

/// x + dropout(W₂ dropout(f(W₁ norm(x) + b₁)) + b₂), the feed-forward branch of a transformer, as one node.
#[derive(Clone, Debug)]
pub struct MlpBranch<'a> {
    /// The norm before it; none in post-norm blocks.
    pub norm: Option<PreNorm<'a>>,
    /// c to the hidden width.
    pub first: Affine<'a>,
    /// The hidden width to c.
    pub second: Affine<'a>,
    /// f.
    pub activation: Activation,
    /// Dropout behind f.
    pub hidden_dropout: Option<(f64, Stream)>,
    /// Dropout before the residual sum.
    pub dropout: Option<(f64, Stream)>,
}

impl MlpBranch<'_> {
    /// (…, c) to (…, c).
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn apply(self, x: &Tensor) -> Result<Tensor> {
        let Some(&c) = x.dims().last() else { bail!("MLP: expected at least one dimension") };
        let hidden = self.first.weight.dim(0)?;
        let mut inputs = Inputs { tensors: vec![x] };
        let op = Mlp {
            norm: inputs.norm(self.norm, c)?,
            first: inputs.affine(self.first, (hidden, c))?,
            second: inputs.affine(self.second, (c, hidden))?,
            activation: self.activation,
            hidden: Dropout::of(self.hidden_dropout)?,
            dropout: Dropout::of(self.dropout)?,
        };
        apply_one(op, &inputs.tensors)
    }
}

#[derive(Clone)]
pub(super) struct Mlp {
    pub(super) norm: Option<NormAt>,
    pub(super) first: AffineAt,
    pub(super) second: AffineAt,
    pub(super) activation: Activation,
    pub(super) hidden: Option<Dropout>,
    pub(super) dropout: Option<Dropout>,
}

impl Op for Mlp {
    fn name(&self) -> &'static str {
        "MLP"
    }

    fn reference(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
        let n = NormAt::plain(self.norm.as_ref(), inputs)?;
        let h = self.activation.reference(&self.first.plain(&n, inputs)?)?;
        let z = self.second.plain(&apply_mask(&h, self.hidden.as_ref())?, inputs)?;
        Ok(vec![(&inputs[0] + apply_mask(&z, self.dropout.as_ref())?)?])
    }

    fn composed(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
        let n = NormAt::composed(self.norm.as_ref(), inputs)?;
        let mut h = self.first.composed(&n, inputs, self.activation)?;
        if let Some(dropout) = &self.hidden {
            h = apply_one(dropout.clone(), &[&h])?;
        }
        let z = self.second.composed(&h, inputs, Activation::Identity)?;
        Ok(vec![apply_one(AddDropout { dropout: self.dropout.clone(), shared: false }, &[&inputs[0], &z])?])
    }

    fn cpu_forward(&self, inputs: &[View], save: bool) -> Result<Forward> {
        let x = inputs[0].f32()?;
        let rows = x.len() / cpu::width(&inputs[0]).max(1);
        let (n, statistics) = cpu::normed(self.norm.as_ref(), inputs)?;
        let mut a = cpu::affine(&self.first, rows, &n, inputs)?;
        drop(n);
        let mut slope = activate(&mut a, self.activation, save)?;
        if let Some(dropout) = &self.hidden {
            a = dropout.masked(&a)?;
            // What the dropout does to gradients is part of the slope from here on.
            slope = match slope {
                Some(slope) => Some(dropout.masked(&slope)?),
                None if save => Some(dropout.masked(&vec![1.; a.len()])?),
                None => None,
            };
        }
        let z = cpu::affine(&self.second, rows, &a, inputs)?;
        let data = cpu::add_dropped(x, z, self.dropout.as_ref())?;
        let saved = if save { vec![statistics, a, slope.unwrap_or_default()] } else { vec![] };
        Ok(Forward { outputs: vec![Output { data, shape: inputs[0].dims().into() }], saved })
    }

    fn cpu_backward(&self, pass: &Backward) -> Result<Vec<Option<Vec<f32>>>> {
        let ([Some(grad)], [statistics, a, slope]) = (pass.grads, pass.saved) else { bail!("MLP: no gradient") };
        let (inputs, dy) = (pass.inputs, grad.f32()?);
        let rows = dy.len() / cpu::width(&inputs[0]).max(1);
        let mut grads = Gradients::of(pass);
        let dz = cpu::dropped(dy, self.dropout.as_ref())?;
        grads.affine(&self.second, rows, &dz, a);
        let size = cpu::size(&self.second, rows, inputs);
        let mut dh = linear::input_gradient(size, &dz, inputs[self.second.weight].f32()?);
        drop(dz);
        if !slope.is_empty() {
            times_into(&mut dh, slope)?;
        }
        let (n, _) = cpu::normed(self.norm.as_ref(), inputs)?;
        grads.affine(&self.first, rows, &dh, &n);
        drop(n);
        let size = cpu::size(&self.first, rows, inputs);
        let dn = linear::input_gradient(size, &dh, inputs[self.first.weight].f32()?);
        drop(dh);
        grads.finish(self.norm.as_ref(), dn, dy, Some(statistics))
    }
}
