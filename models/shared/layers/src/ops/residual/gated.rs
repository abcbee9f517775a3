use candle_core::{Result, Tensor, bail};
use zoo_kernels::{Backward, Forward, Op, Output, View, apply_one};

use super::cpu::{self, Gradients};
use super::{AddDropout, Inputs, NormAt, PreNorm};
use crate::ops::activation::cpu::{gated as gate_by, gated_back};
use crate::ops::activation::{Activation, gated};
use crate::ops::lora::{Map, MapAt};

/// x + (f(n W_gateᵀ) · n W_upᵀ) W_downᵀ with n = norm(x), the gated feed-forward branch of a transformer, as one node.
#[derive(Clone, Debug)]
pub struct GatedBranch<'a> {
    /// The norm before it.
    pub norm: PreNorm<'a>,
    /// c to the hidden width: what lets through.
    pub gate: Map<'a>,
    /// c to the hidden width: what is let through.
    pub up: Map<'a>,
    /// The hidden width to c.
    pub down: Map<'a>,
    /// f.
    pub activation: Activation,
}

impl<'a> GatedBranch<'a> {
    /// (…, c) to (…, c).
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn apply(self, x: &Tensor) -> Result<Tensor> {
        let (op, inputs) = self.of(x)?;
        apply_one(op, &inputs)
    }

    /// The op, and its inputs.
    pub(super) fn of(self, x: &'a Tensor) -> Result<(Gated, Vec<&'a Tensor>)> {
        let Some(&c) = x.dims().last() else { bail!("gated MLP: expected at least one dimension") };
        let hidden = self.gate.weight.dims().first().copied().unwrap_or(0);
        let mut inputs = Inputs { tensors: vec![x] };
        let norm = inputs.norm(Some(self.norm), c)?;
        let op = Gated {
            norm,
            gate: MapAt::of(&self.gate, [hidden, c], &mut inputs.tensors)?,
            up: MapAt::of(&self.up, [hidden, c], &mut inputs.tensors)?,
            down: MapAt::of(&self.down, [c, hidden], &mut inputs.tensors)?,
            activation: self.activation,
        };
        Ok((op, inputs.tensors))
    }
}

#[derive(Clone)]
pub(super) struct Gated {
    norm: Option<NormAt>,
    gate: MapAt,
    up: MapAt,
    down: MapAt,
    activation: Activation,
}

impl Op for Gated {
    fn name(&self) -> &'static str {
        "gated MLP"
    }

    fn reference(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
        let n = NormAt::plain(self.norm.as_ref(), inputs)?;
        let gate = self.activation.reference(&self.gate.reference(&n, inputs)?)?;
        let a = (gate * self.up.reference(&n, inputs)?)?;
        Ok(vec![(&inputs[0] + self.down.reference(&a, inputs)?)?])
    }

    fn composed(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
        let n = NormAt::composed(self.norm.as_ref(), inputs)?;
        let a = gated(&self.gate.composed(&n, inputs)?, &self.up.composed(&n, inputs)?, self.activation)?;
        let z = self.down.composed(&a, inputs)?;
        Ok(vec![apply_one(AddDropout { dropout: None, shared: false }, &[&inputs[0], &z])?])
    }

    fn cpu_forward(&self, inputs: &[View], save: bool) -> Result<Forward> {
        let (x, rows) = (inputs[0].f32()?, inputs[0].rows());
        let (n, statistics) = cpu::normed(self.norm.as_ref(), inputs)?;
        let [gate, of_gate] = self.gate.forward(rows, &n, inputs)?;
        let [up, of_up] = self.up.forward(rows, &n, inputs)?;
        drop(n);
        let [z, of_down] = self.down.forward(rows, &gate_by(&gate, &up, self.activation)?, inputs)?;
        let data = cpu::add_dropped(x, z, None)?;
        let saved = if save { vec![statistics, gate, up, of_gate, of_up, of_down] } else { vec![] };
        Ok(Forward { outputs: vec![Output { data, shape: inputs[0].dims().into() }], saved })
    }

    fn cpu_backward(&self, pass: &Backward) -> Result<Vec<Option<Vec<f32>>>> {
        let ([Some(grad)], [statistics, gate, up, of_gate, of_up, of_down]) = (pass.grads, pass.saved) else {
            bail!("gated MLP: no gradient")
        };
        let dy = grad.f32()?;
        let mut grads = Gradients::of(pass);
        let a = if self.down.asks(pass.needs) { gate_by(gate, up, self.activation)? } else { vec![] };
        let da = self.down.back([dy, &a, of_down], &mut grads, None, true)?.unwrap_or_default();
        drop(a);
        let [dgate, dup] = gated_back(gate, up, &da, self.activation)?;
        drop(da);
        let asks = self.gate.asks(pass.needs) || self.up.asks(pass.needs);
        let n = if asks { cpu::normed(self.norm.as_ref(), pass.inputs)?.0 } else { Default::default() };
        let dn = self.gate.back([&dgate, &n, of_gate], &mut grads, None, true)?;
        let dn = self.up.back([&dup, &n, of_up], &mut grads, dn, true)?.unwrap_or_default();
        drop((n, dgate, dup));
        grads.finish(self.norm.as_ref(), dn, dy, Some(statistics))
    }
}
