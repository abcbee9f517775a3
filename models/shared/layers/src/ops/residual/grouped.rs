use candle_core::{Result, Tensor, bail};
use zoo_kernels::cpu::Pointer;
use zoo_kernels::{Backward, Forward, Op, Output, View, apply_one};

use super::cpu::{self, Gradients};
use super::{AddDropout, Inputs, NormAt, PreNorm};
use crate::ops::attention::cpu::{Geometry, Heads, Rule, Saved, backward, forward};
use crate::ops::attention::{AttentionOptions, attention, full_mask, mask_of, of_heads};
use crate::ops::lora::{Map, MapAt};
use crate::ops::rope::{Rope, RopePairs, rope_heads};

/// x + W_o attention(q, k, v) with q, k, v from norm(x), queries and keys turned by rotary angles, heads of queries that share those of
/// keys and values, and causal scores: the self-attention branch of a Llama, as one node.
#[derive(Clone, Debug)]
pub struct GroupedBranch<'a> {
    /// The norm before it.
    pub norm: PreNorm<'a>,
    /// To queries (heads · d, c), keys and values (key heads · d, c).
    pub input: [Map<'a>; 3],
    /// (c, heads · d).
    pub output: Map<'a>,
    /// Heads of queries.
    pub heads: usize,
    /// Heads of keys and values, each shared by the same number of heads of queries.
    pub key_heads: usize,
    /// Cosines and sines of the rotary angles of each place, (t, d / 2).
    pub angles: [&'a Tensor; 2],
    /// Added to the scores; broadcasts to (b, heads, t, t).
    pub mask: Option<&'a Tensor>,
}

impl<'a> GroupedBranch<'a> {
    /// (b, t, c) to (b, t, c).
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn apply(self, x: &Tensor) -> Result<Tensor> {
        let (b, t, _) = x.dims3()?;
        let [cos, sin] = self.angles.map(Tensor::detach);
        let mask = self.mask.map(|mask| full_mask(mask, [b, self.heads, t, t])).transpose()?;
        let whole = GroupedBranch { angles: [&cos, &sin], mask: mask.as_ref(), ..self };
        let (op, inputs) = whole.of(x)?;
        if mask.as_ref().is_some_and(Tensor::track_op) {
            // It takes the plain graph of attention.
            let inputs: Vec<Tensor> = inputs.into_iter().cloned().collect();
            return Ok(op.composed(&inputs)?.remove(0));
        }
        apply_one(op, &inputs)
    }

    /// The op, and its inputs, of a mask that is full.
    pub(super) fn of(self, x: &'a Tensor) -> Result<(Grouped, Vec<&'a Tensor>)> {
        let (_, t, c) = x.dims3()?;
        let Self { norm, input, output, heads, key_heads, angles: [cos, sin], mask } = self;
        let all = input[0].weight.dims().first().copied().unwrap_or(0);
        let d = all.checked_div(heads).unwrap_or(0);
        if key_heads == 0 || heads % key_heads != 0 || d == 0 || all % heads != 0 || !d.is_multiple_of(2) {
            bail!("attention: {all} features of queries are no {heads} heads that share {key_heads} of keys and values")
        }
        if cos.dims() != [t, d / 2] || sin.dims() != cos.dims() {
            bail!("attention: angles {:?} and {:?} of {t} places and heads of {d} features", cos.dims(), sin.dims())
        }
        let few = key_heads * d;
        let mut inputs = Inputs { tensors: vec![x] };
        let norm = inputs.norm(Some(norm), c)?;
        let [q, k, v] = &input;
        let input = [
            MapAt::of(q, [all, c], &mut inputs.tensors)?,
            MapAt::of(k, [few, c], &mut inputs.tensors)?,
            MapAt::of(v, [few, c], &mut inputs.tensors)?,
        ];
        let output = MapAt::of(&output, [c, all], &mut inputs.tensors)?;
        let angles = [inputs.push(cos), inputs.push(sin)];
        let mask = mask.map(|mask| inputs.push(mask));
        Ok((Grouped { norm, input, output, heads, key_heads, d, angles, mask }, inputs.tensors))
    }
}

#[derive(Clone)]
pub(super) struct Grouped {
    norm: Option<NormAt>,
    input: [MapAt; 3],
    output: MapAt,
    heads: usize,
    key_heads: usize,
    d: usize,
    angles: [usize; 2],
    mask: Option<usize>,
}

impl Grouped {
    fn rule(&self) -> Rule<'static> {
        Rule { causal: true, scale: 1. / (self.d as f32).sqrt(), dropout: None }
    }

    fn geometry(&self, x: &View) -> Geometry {
        let &Self { heads, key_heads, d, .. } = self;
        Geometry { batch: x.dims()[0], heads, key_heads, tq: x.dims()[1], tk: x.dims()[1], d }
    }

    /// Queries, keys and values as their heads lie.
    fn side<'a>(&self, g: Geometry, parts: [&'a [f32]; 3]) -> [Heads<'a>; 3] {
        let heads = [g.heads, g.key_heads, g.key_heads];
        let mut i = 0;
        parts.map(|data| {
            i += 1;
            Heads::side_by_side(data, g.tq, heads[i - 1] * g.d, g.d)
        })
    }

    fn rope(&self, which: usize) -> Rope {
        Rope { pairs: RopePairs::Halves, heads: if which == 0 { self.heads } else { self.key_heads } }
    }
}

impl Op for Grouped {
    fn name(&self) -> &'static str {
        "grouped attention"
    }

    fn reference(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
        let n = NormAt::plain(self.norm.as_ref(), inputs)?;
        let [cos, sin] = self.angles.map(|at| inputs[at].clone());
        let map = |i: usize| self.input[i].reference(&n, inputs);
        let turned = |i: usize| {
            Ok::<_, candle_core::Error>(self.rope(i).reference(&[map(i)?, cos.clone(), sin.clone()])?.remove(0))
        };
        let mut all = vec![turned(0)?, turned(1)?, map(2)?];
        all.extend(self.mask.map(|at| inputs[at].clone()));
        let o = of_heads(self.heads, self.d).reference(&all)?.remove(0);
        Ok(vec![(&inputs[0] + self.output.reference(&o, inputs)?)?])
    }

    fn composed(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
        let n = NormAt::composed(self.norm.as_ref(), inputs)?;
        let [cos, sin] = self.angles.map(|at| &inputs[at]);
        let map = |i: usize| self.input[i].composed(&n, inputs);
        let turned = |i: usize| rope_heads(&map(i)?, self.rope(i).heads, cos, sin, RopePairs::Halves);
        let options = AttentionOptions { causal: true, ..Default::default() };
        let mask = self.mask.map(|at| &inputs[at]);
        let o = attention(&turned(0)?, &turned(1)?, &map(2)?, self.heads, mask, options)?;
        let z = self.output.composed(&o, inputs)?;
        Ok(vec![apply_one(AddDropout { dropout: None, shared: false }, &[&inputs[0], &z])?])
    }

    fn cpu_forward(&self, inputs: &[View], save: bool) -> Result<Forward> {
        let (x, rows, g) = (inputs[0].f32()?, inputs[0].rows(), self.geometry(&inputs[0]));
        let [cos, sin] = [inputs[self.angles[0]].f32()?, inputs[self.angles[1]].f32()?];
        let (n, statistics) = cpu::normed(self.norm.as_ref(), inputs)?;
        let [q, of_q] = self.input[0].forward(rows, &n, inputs)?;
        let [k, of_k] = self.input[1].forward(rows, &n, inputs)?;
        let [v, of_v] = self.input[2].forward(rows, &n, inputs)?;
        drop(n);
        let (q, k) = (self.rope(0).turn(&q, cos, sin, g.d, false), self.rope(1).turn(&k, cos, sin, g.d, false));
        let heads = self.side(g, [&q, &k, &v]);
        let mask = mask_of(self.mask.map(|at| &inputs[at]))?;
        let like = Heads::side_by_side(&[], g.tq, g.heads * g.d, g.d);
        let (o, logs) = forward(g, &self.rule(), heads[0], heads[1], heads[2], mask, like)?;
        let [z, of_o] = self.output.forward(rows, &o, inputs)?;
        let data = cpu::add_dropped(x, z, None)?;
        let saved = if save { vec![statistics, q, k, v, o, logs, of_q, of_k, of_v, of_o] } else { vec![] };
        Ok(Forward { outputs: vec![Output { data, shape: inputs[0].dims().into() }], saved })
    }

    fn cpu_backward(&self, pass: &Backward) -> Result<Vec<Option<Vec<f32>>>> {
        let ([Some(grad)], [statistics, q, k, v, o, logs, of_q, of_k, of_v, of_o]) = (pass.grads, pass.saved) else {
            bail!("grouped attention: no gradient")
        };
        let (inputs, dy) = (pass.inputs, grad.f32()?);
        let g = self.geometry(&inputs[0]);
        let [cos, sin] = [inputs[self.angles[0]].f32()?, inputs[self.angles[1]].f32()?];
        let mut grads = Gradients::of(pass);
        let dout = self.output.back([dy, o, of_o], &mut grads, None, true)?.unwrap_or_default();
        let mut parts = [vec![0f32; q.len()], vec![0f32; k.len()], vec![0f32; v.len()]];
        let heads = self.side(g, [q, k, v]);
        let [dq, dk, dv] = &mut parts;
        let to = [heads[0].onto(Pointer::of(dq)), heads[1].onto(Pointer::of(dk)), heads[2].onto(Pointer::of(dv))];
        let side = |data| Heads::side_by_side(data, g.tq, g.heads * g.d, g.d);
        let saved = Saved { output: side(o), logs };
        backward(g, &self.rule(), heads, mask_of(self.mask.map(|at| &inputs[at]))?, saved, side(&dout), to)?;
        drop(dout);
        let [dq, dk, dv] = parts;
        let (dq, dk) = (self.rope(0).turn(&dq, cos, sin, g.d, true), self.rope(1).turn(&dk, cos, sin, g.d, true));
        let asks = self.input.iter().any(|map| map.asks(pass.needs));
        let n = if asks { cpu::normed(self.norm.as_ref(), inputs)?.0 } else { Default::default() };
        // Below the first block of a model whose weights stay as they are, nothing waits for a gradient.
        let of_norm = self.norm.as_ref().map(|norm| [norm.weight, norm.bias]).unwrap_or_default();
        let wanted = pass.needs[0] || of_norm.into_iter().flatten().any(|at| pass.needs[at]);
        let dn = self.input[0].back([&dq, &n, of_q], &mut grads, None, wanted)?;
        let dn = self.input[1].back([&dk, &n, of_k], &mut grads, dn, wanted)?;
        let dn = self.input[2].back([&dv, &n, of_v], &mut grads, dn, wanted)?;
        drop((n, dq, dk, dv));
        match dn {
            Some(dn) => grads.finish(self.norm.as_ref(), dn, dy, Some(statistics)),
            None => Ok(grads.found),
        }
    }
}
