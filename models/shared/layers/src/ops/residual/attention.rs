use candle_core::{Result, Tensor, bail};
use zoo_kernels::cpu::matmul::{Blend, affine_into, matmul, matmul_into};
use zoo_kernels::cpu::product::Matrix;
use zoo_kernels::cpu::{Buffer, Pointer};
use zoo_kernels::{Backward, Forward, Op, Output, View, apply_one};

use super::cpu::{self, Gradients};
use super::{AddDropout, Affine, AffineAt, Inputs, NormAt, PreNorm};
use crate::ops::activation::Activation;
use crate::ops::attention::cpu::{Geometry, Heads, Rule, Saved, backward, forward};
use crate::ops::attention::{AttentionOptions, attention, plain, self_attention};
use crate::ops::dropout::{Dropout, apply_mask};
use crate::ops::linear::cpu as linear;
use crate::random::Stream;

/// The maps to queries, keys and values.
#[derive(Clone, Copy, Debug)]
pub enum Projection<'a> {
    /// One map (3c, c), in this order.
    Packed(Affine<'a>),
    /// One map (c, c) each, in this order.
    Separate([Affine<'a>; 3]),
}

/// x + dropout(W_o attention(q, k, v) + b_o) with q, k, v from norm(x): the self-attention branch of a transformer, as
/// one node.
#[derive(Clone, Debug)]
pub struct AttentionBranch<'a> {
    /// The norm before it; none in post-norm blocks.
    pub norm: Option<PreNorm<'a>>,
    /// To queries, keys and values.
    pub input: Projection<'a>,
    /// c to c, behind the heads.
    pub output: Affine<'a>,
    /// Heads that share the c features.
    pub heads: usize,
    /// Whether a place sees only itself and those before it.
    pub causal: bool,
    /// Dropout on the attention weights.
    pub attention_dropout: Option<(f64, Stream)>,
    /// Dropout before the residual sum.
    pub dropout: Option<(f64, Stream)>,
}

impl AttentionBranch<'_> {
    /// (b, t, c) to (b, t, c).
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn apply(self, x: &Tensor) -> Result<Tensor> {
        let (_, _, c) = x.dims3()?;
        if self.heads == 0 || c == 0 || c % self.heads != 0 {
            bail!("attention: {c} features do not divide into {} heads", self.heads)
        }
        let mut inputs = Inputs { tensors: vec![x] };
        let norm = inputs.norm(self.norm, c)?;
        let input = match self.input {
            Projection::Packed(all) => vec![inputs.affine(all, (3 * c, c))?],
            Projection::Separate(each) => {
                each.into_iter().map(|one| inputs.affine(one, (c, c))).collect::<Result<_>>()?
            }
        };
        let op = SelfAttention {
            norm,
            input,
            output: inputs.affine(self.output, (c, c))?,
            heads: self.heads,
            causal: self.causal,
            weights: Dropout::of(self.attention_dropout)?,
            dropout: Dropout::of(self.dropout)?,
        };
        apply_one(op, &inputs.tensors)
    }
}

#[derive(Clone)]
pub(super) struct SelfAttention {
    pub(super) norm: Option<NormAt>,
    /// One map to queries, keys and values, or one each.
    pub(super) input: Vec<AffineAt>,
    pub(super) output: AffineAt,
    pub(super) heads: usize,
    pub(super) causal: bool,
    pub(super) weights: Option<Dropout>,
    pub(super) dropout: Option<Dropout>,
}

impl SelfAttention {
    fn rule(&self, d: usize) -> Rule<'_> {
        Rule { causal: self.causal, scale: 1. / (d as f32).sqrt(), dropout: self.weights.as_ref() }
    }

    fn geometry(&self, x: &View) -> Geometry {
        let dims = x.dims();
        Geometry {
            batch: dims[0],
            heads: self.heads,
            key_heads: self.heads,
            tq: dims[1],
            tk: dims[1],
            d: dims[2] / self.heads,
        }
    }

    /// Queries, keys and values, side by side (rows, 3c).
    fn project(&self, rows: usize, c: usize, n: &[f32], inputs: &[View]) -> Result<Vec<f32>> {
        if let [all] = self.input.as_slice() {
            return cpu::affine(all, rows, n, inputs);
        }
        let mut qkv = Buffer::new(rows * 3 * c);
        for (which, at) in self.input.iter().enumerate() {
            let w = inputs[at.weight].f32()?;
            let bias = at.bias.map(|i| inputs[i].f32()).transpose()?;
            // SAFETY: columns which·c.. of all rows, if there are any, lie within the buffer.
            unsafe { affine_into([rows, c, c], n, w, bias, qkv.pointer().part(which * c), 3 * c)? }
        }
        // SAFETY: the three products cover all columns.
        Ok(unsafe { qkv.finish() })
    }

    /// Gradients of the maps to queries, keys and values, and of norm(x).
    fn project_back(&self, rows: usize, c: usize, dqkv: &[f32], n: &[f32], grads: &mut Gradients) -> Result<Vec<f32>> {
        let inputs = grads.pass.inputs;
        if let [all] = self.input.as_slice() {
            grads.affine(all, rows, dqkv, n);
            return Ok(linear::input_gradient(cpu::size(all, rows, inputs), dqkv, inputs[all.weight].f32()?));
        }
        let mut dn = vec![0f32; rows * c];
        let sums = linear::column_sums(dqkv, 3 * c);
        for (which, at) in self.input.iter().enumerate() {
            let part = Matrix { data: &dqkv[(which * c).min(dqkv.len())..], row: 3 * c, col: 1 };
            let across = Matrix { row: 1, col: 3 * c, ..part };
            grads.put(at.weight, || matmul([c, c, rows], across, Matrix::rows(n, c)));
            if let Some(bias) = at.bias {
                grads.put(bias, || sums[which * c..][..c].to_vec());
            }
            let w = Matrix::rows(inputs[at.weight].f32()?, c);
            // SAFETY: dn has as many rows and columns, and is initialised.
            unsafe { matmul_into([rows, c, c], part, w, Pointer::of(&mut dn), c, Blend::ADD) };
        }
        Ok(dn)
    }
}

/// Queries, keys and values of all heads in (b, t, 3c).
fn heads_of(qkv: &[f32], g: Geometry) -> [Heads<'_>; 3] {
    let c = g.heads * g.d;
    [0, 1, 2].map(|i| Heads::side_by_side(&qkv[(i * c).min(qkv.len())..], g.tq, 3 * c, g.d))
}

impl Op for SelfAttention {
    fn name(&self) -> &'static str {
        "self-attention"
    }

    fn reference(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
        let (b, t, c) = inputs[0].dims3()?;
        let d = c / self.heads;
        let n = NormAt::plain(self.norm.as_ref(), inputs)?;
        let each = self.input.iter().map(|at| at.plain(&n, inputs)).collect::<Result<Vec<_>>>()?;
        let part = |i: usize| -> Result<Tensor> {
            let whole = if each.len() == 1 { each[0].narrow(2, i * c, c)? } else { each[i].clone() };
            whole.reshape((b, t, self.heads, d))?.transpose(1, 2)
        };
        let scale = 1. / (d as f64).sqrt();
        let o = plain([&part(0)?, &part(1)?, &part(2)?], None, self.causal, scale, self.weights.as_ref())?;
        let z = self.output.plain(&o.transpose(1, 2)?.reshape((b, t, c))?, inputs)?;
        Ok(vec![(&inputs[0] + apply_mask(&z, self.dropout.as_ref())?)?])
    }

    fn composed(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
        let n = NormAt::composed(self.norm.as_ref(), inputs)?;
        let each = self.input.iter().map(|at| at.composed(&n, inputs, Activation::Identity));
        let each = each.collect::<Result<Vec<_>>>()?;
        let o = match each.as_slice() {
            [q, k, v] => {
                let dropout = self.weights.as_ref().map(|d| (d.p, d.stream.clone()));
                attention(q, k, v, self.heads, None, AttentionOptions { causal: self.causal, scale: None, dropout })?
            }
            _ => self_attention(&each[0], self.heads, self.causal, self.weights.clone())?,
        };
        let z = self.output.composed(&o, inputs, Activation::Identity)?;
        Ok(vec![apply_one(AddDropout { dropout: self.dropout.clone(), shared: false }, &[&inputs[0], &z])?])
    }

    fn cpu_forward(&self, inputs: &[View], save: bool) -> Result<Forward> {
        let (x, c, g) = (inputs[0].f32()?, cpu::width(&inputs[0]), self.geometry(&inputs[0]));
        let rows = g.batch * g.tq;
        let (n, statistics) = cpu::normed(self.norm.as_ref(), inputs)?;
        let qkv = self.project(rows, c, &n, inputs)?;
        drop(n);
        let [q, k, v] = heads_of(&qkv, g);
        let (o, logs) = forward(g, &self.rule(g.d), q, k, v, None, Heads::side_by_side(&[], g.tq, c, g.d))?;
        let z = cpu::affine(&self.output, rows, &o, inputs)?;
        let data = cpu::add_dropped(x, z, self.dropout.as_ref())?;
        let saved = if save { vec![statistics, qkv, o, logs] } else { vec![] };
        Ok(Forward { outputs: vec![Output { data, shape: inputs[0].dims().into() }], saved })
    }

    fn cpu_backward(&self, pass: &Backward) -> Result<Vec<Option<Vec<f32>>>> {
        let ([Some(grad)], [statistics, qkv, o, logs]) = (pass.grads, pass.saved) else {
            bail!("self-attention: no gradient")
        };
        let (inputs, dy) = (pass.inputs, grad.f32()?);
        let (c, g) = (cpu::width(&inputs[0]), self.geometry(&inputs[0]));
        let rows = g.batch * g.tq;
        let mut grads = Gradients::of(pass);
        let dz = cpu::dropped(dy, self.dropout.as_ref())?;
        grads.affine(&self.output, rows, &dz, o);
        let size = cpu::size(&self.output, rows, inputs);
        let dout = linear::input_gradient(size, &dz, inputs[self.output.weight].f32()?);
        drop(dz);
        let mut dqkv = vec![0f32; qkv.len()];
        let heads = heads_of(qkv, g);
        let start = Pointer::of(&mut dqkv);
        let to = [0, 1, 2].map(|i| heads[i].onto(start.part(i * c)));
        let side = |data| Heads::side_by_side(data, g.tq, c, g.d);
        let saved = Saved { output: side(o), logs };
        backward(g, &self.rule(g.d), heads, None, saved, side(&dout), to)?;
        drop(dout);
        let (n, _) = cpu::normed(self.norm.as_ref(), inputs)?;
        let dn = self.project_back(rows, c, &dqkv, &n, &mut grads)?;
        drop((n, dqkv));
        grads.finish(self.norm.as_ref(), dn, dy, Some(statistics))
    }
}
