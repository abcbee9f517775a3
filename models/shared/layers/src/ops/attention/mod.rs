//! Scaled dot-product attention that never stores T×T, forward or backward.
//!
//! For one head, with queries Q (tq, d), keys K and values V (tk, d), scale s, additive mask M and dropout mask m:
//!
//! ```text
//! forward   S = s Q Kᵀ + M      P = softmax S      O = (m P) V       L = ln Σ exp S, a number a row
//! backward  P = exp(S - L)      D = Σ dO O, a number a row
//!           dV = (m P)ᵀ dO      dP = m (dO Vᵀ)     dS = P (dP - D)   dQ = s dS K      dK = s dSᵀ Q
//! ```
//!
//! Tiles of S live in the cache: the forward pass corrects its running maximum and sum tile by tile (Milakov and
//! Gimelshein 2018; Dao et al., *FlashAttention*, 2022), and the backward pass computes the tiles again from L. Causal
//! attention leaves out the tiles above the diagonal; with tq < tk the last query sees all keys. The dropout mask is
//! that of a (b, h, tq, tk) tensor. A row that sees nothing gives zeros and no gradient.
//!
//! There may be fewer heads of keys and values than of queries (grouped-query attention, Ainslie et al. 2023): consecutive
//! heads share one. Nothing is repeated in memory: a group's queries pass by the same keys, and dK and dV are summed there.

pub(super) mod cpu;
mod gpu;
mod narrow;
#[cfg(test)]
mod tests;
mod texts;

use candle_core::{Result, Shape, Tensor, bail};
use zoo_kernels::cpu::Pointer;
use zoo_kernels::gpu::{Array, Gpu};
use zoo_kernels::{Backward, Forward, GpuForward, Op, Output, View, apply_one};

use self::cpu::{Geometry, Heads};
pub(crate) use self::texts::attention_of_texts;
use super::dropout::{Dropout, apply_mask};
use super::softmax::exponentials;
use crate::random::Stream;

/// Options of [`attention`].
#[derive(Clone, Debug, Default)]
pub struct AttentionOptions {
    /// Whether a query sees only the keys up to its own place, the last query all of them.
    pub causal: bool,
    /// What scores are multiplied with; 1/√d if absent.
    pub scale: Option<f64>,
    /// Probability and stream of dropout on the attention weights.
    pub dropout: Option<(f64, Stream)>,
}

#[derive(Clone)]
pub(super) struct Attention {
    /// Heads of queries; those of keys are a matter of the shapes.
    heads: usize,
    causal: bool,
    scale: f64,
    dropout: Option<Dropout>,
    /// Whether queries, keys and values are one input (b, t, 3 h d), in this order.
    packed: bool,
}

/// [`attention`] of each place over the others of `qkv` (b, t, 3 h d): a place's queries, keys and values side by side, those
/// of all `heads` each.
pub(super) fn self_attention(qkv: &Tensor, heads: usize, causal: bool, dropout: Option<Dropout>) -> Result<Tensor> {
    let scale = 1. / (qkv.dim(2)? as f64 / (3 * heads) as f64).sqrt();
    apply_one(Attention { heads, causal, scale, dropout, packed: true }, &[qkv])
}

/// Attention of queries `q` over keys `k` and values `v`, with an additive `mask` that broadcasts to (b, h, tq, tk).
///
/// Tensors of four dimensions are (b, h, t, d), as in `torch.nn.functional.scaled_dot_product_attention`; of three
/// (b, t, h d), the heads of a place side by side, with `heads` of them. The result is laid out as `q`. Keys and values may
/// have fewer heads, of which consecutive ones of the queries share each. A mask that itself needs a gradient takes the
/// plain graph, which does store (b, h, tq, tk).
///
/// # Errors
/// Shapes that do not fit.
pub fn attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    heads: usize,
    mask: Option<&Tensor>,
    options: AttentionOptions,
) -> Result<Tensor> {
    let AttentionOptions { causal, scale, dropout } = options;
    let shared_by = |key_heads: usize| key_heads > 0 && heads.is_multiple_of(key_heads);
    let fits = match (q.dims(), k.dims()) {
        (&[b, h, _, d], &[kb, kh, _, kd]) => (b, d) == (kb, kd) && h == heads && shared_by(kh),
        (&[b, _, c], &[kb, _, kc]) if heads > 0 && c % heads == 0 => {
            b == kb && if c == 0 { kc == 0 } else { kc % (c / heads) == 0 && shared_by(kc / (c / heads)) }
        }
        _ => false,
    };
    if !fits || k.dims() != v.dims() {
        bail!("attention: q {:?}, k {:?} and v {:?} do not fit {heads} heads", q.dims(), k.dims(), v.dims())
    }
    let g = geometry(q.dims(), k.dims(), heads);
    if g.d == 0 {
        bail!("attention: heads without features")
    }
    if causal && g.tq > g.tk {
        bail!("attention: causal, with {} queries and only {} keys: the first queries would see none", g.tq, g.tk)
    }
    let dropout = Dropout::of(dropout)?;
    let scale = scale.unwrap_or(1. / (g.d as f64).sqrt());
    let op = Attention { heads, causal, scale, dropout, packed: false };
    let Some(mask) = mask else { return apply_one(op, &[q, k, v]) };
    let mask = full_mask(mask, [g.batch, g.heads, g.tq, g.tk])?;
    if mask.track_op() {
        return op.plain_of(&[q.clone(), k.clone(), v.clone(), mask]);
    }
    apply_one(op, &[q, k, v, &mask.to_dtype(q.dtype())?])
}

/// Causal attention of (b, t, heads d) over what may have fewer heads of `d` features.
pub(super) fn of_heads(heads: usize, d: usize) -> Attention {
    Attention { heads, causal: true, scale: 1. / (d as f64).sqrt(), dropout: None, packed: false }
}

/// `mask` in rank four, with the last dimension in full, if it broadcasts to `full` (b, h, tq, tk).
pub(super) fn full_mask(mask: &Tensor, full: [usize; 4]) -> Result<Tensor> {
    let mut dims = vec![1; 4usize.saturating_sub(mask.rank())];
    dims.extend(mask.dims());
    if dims.len() != 4 || dims.iter().zip(full).any(|(m, f)| *m != 1 && *m != f) {
        bail!("attention: mask {:?} does not broadcast to {full:?}", mask.dims())
    }
    if !mask.dtype().is_float() {
        bail!("attention: the mask is added to the scores: expected floating-point numbers, got {:?}", mask.dtype())
    }
    // One row for all queries stays one.
    mask.reshape(dims.as_slice())?.broadcast_as((dims[0], dims[1], dims[2], full[3]))
}

/// Sizes of tensors that [`attention`] checked.
fn geometry(q: &[usize], k: &[usize], heads: usize) -> Geometry {
    let four = q.len() == 4;
    let (tq, tk) = if four { (q[2], k[2]) } else { (q[1], k[1]) };
    let d = if four { q[3] } else { q[2] / heads };
    let key_heads = if four { k[1] } else { k[2].checked_div(d).unwrap_or(heads) };
    Geometry { batch: q[0], heads, key_heads, tq, tk, d }
}

/// `x` (b, key heads, t, d) with each head repeated for those that share it.
fn repeated(x: &Tensor, heads: usize) -> Result<Tensor> {
    let (b, key_heads, t, d) = x.dims4()?;
    if key_heads == heads {
        return Ok(x.clone());
    }
    x.unsqueeze(2)?.broadcast_as((b, key_heads, heads / key_heads, t, d))?.reshape((b, heads, t, d))
}

/// S → O in plain candle operations, for (b, h, t, d).
pub(super) fn plain(
    [q, k, v]: [&Tensor; 3],
    mask: Option<&Tensor>,
    causal: bool,
    scale: f64,
    dropout: Option<&Dropout>,
) -> Result<Tensor> {
    let (tq, tk) = (q.dim(2)?, k.dim(2)?);
    if v.elem_count() * tq == 0 {
        return q.zeros_like();
    }
    let mut scores = (q.contiguous()?.matmul(&k.transpose(2, 3)?.contiguous()?)? * scale)?;
    if causal {
        let unseen = |i: usize, j: usize| if j > i + tk - tq { f64::NEG_INFINITY } else { 0. };
        let positions: Vec<f64> = (0..tq * tk).map(|e| unseen(e / tk, e % tk)).collect();
        let positions = Tensor::from_vec(positions, (tq, tk), &candle_core::Device::Cpu)?;
        scores = scores.broadcast_add(&positions.to_dtype(q.dtype())?.to_device(q.device())?)?;
    }
    if let Some(mask) = mask {
        scores = scores.broadcast_add(mask)?;
    }
    let (e, sum, _) = exponentials(&scores)?;
    let empty = sum.detach().eq(0.)?.to_dtype(q.dtype())?;
    let p = apply_mask(&e.broadcast_div(&(sum + empty)?)?, dropout)?;
    p.matmul(&v.contiguous()?)
}

impl Attention {
    fn geometry(&self, inputs: &[View]) -> Geometry {
        let q = inputs[0].dims();
        match self.packed {
            true => {
                let heads = self.heads;
                Geometry { batch: q[0], heads, key_heads: heads, tq: q[1], tk: q[1], d: q[2] / (3 * heads) }
            }
            false => geometry(q, inputs[1].dims(), self.heads),
        }
    }

    /// Of the result.
    fn shape(&self, inputs: &[View]) -> Shape {
        let dims = inputs[0].dims();
        if self.packed { Shape::from((dims[0], dims[1], dims[2] / 3)) } else { Shape::from(dims) }
    }

    /// Queries, keys and values.
    fn parts<'a>(&self, inputs: &'a [View]) -> Result<[Heads<'a>; 3]> {
        let g = self.geometry(inputs);
        if !self.packed {
            let [q, k, v] = [inputs[0].f32()?, inputs[1].f32()?, inputs[2].f32()?];
            return Ok([(q, 0), (k, 1), (v, 2)].map(|(data, i)| heads_of(data, inputs[i].dims(), g.d)));
        }
        let all = inputs[0].f32()?;
        let c = g.heads * g.d;
        Ok([0, 1, 2].map(|i| Heads::side_by_side(&all[(i * c).min(all.len())..], g.tq, 3 * c, g.d)))
    }
}

/// Heads of `d` features in (b, h, t, d) or (b, t, h d).
fn heads_of<'a>(data: &'a [f32], dims: &[usize], d: usize) -> Heads<'a> {
    match dims {
        [_, h, t, d] => Heads { data, batch: h * t * d, head: t * d, row: *d },
        _ => Heads::side_by_side(data, dims[1], dims[2], d),
    }
}

/// The mask, and how far apart its batches, heads and rows are: 0 where they share it.
pub(super) fn mask_of<'a>(mask: Option<&'a View>) -> Result<Option<Heads<'a>>> {
    let Some(mask) = mask else { return Ok(None) };
    let &[b, h, rows, tk] = mask.dims() else { bail!("attention: mask of {:?}", mask.dims()) };
    let apart = |n: usize, by: usize| if n == 1 { 0 } else { by };
    let (batch, head, row) = (apart(b, h * rows * tk), apart(h, rows * tk), apart(rows, tk));
    Ok(Some(Heads { data: mask.f32()?, batch, head, row }))
}

impl Op for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn reference(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
        Ok(vec![self.plain_of(inputs)?])
    }

    fn needs_outputs(&self) -> bool {
        true
    }

    fn cpu_forward(&self, inputs: &[View], save: bool) -> Result<Forward> {
        let (g, [q, k, v], shape) = (self.geometry(inputs), self.parts(inputs)?, self.shape(inputs));
        let to = heads_of(&[], shape.dims(), g.d);
        let (data, logs) = cpu::forward(g, &self.rule(), q, k, v, mask_of(inputs.get(3))?, to)?;
        Ok(Forward { outputs: vec![Output { data, shape }], saved: if save { vec![logs] } else { vec![] } })
    }

    fn cpu_backward(&self, pass: &Backward) -> Result<Vec<Option<Vec<f32>>>> {
        let (Some(grad), [output]) = (&pass.grads[0], pass.outputs) else { bail!("attention: no gradient") };
        let (inputs, dims) = (pass.inputs, output.dims());
        let (g, parts) = (self.geometry(inputs), self.parts(inputs)?);
        let saved = cpu::Saved { output: heads_of(output.f32()?, dims, g.d), logs: &pass.saved[0] };
        let dout = heads_of(grad.f32()?, dims, g.d);
        let mut grads: Vec<Vec<f32>> = inputs.iter().take(3).map(|input| vec![0.; input.count()]).collect();
        let c = g.heads * g.d;
        let to = match grads.as_mut_slice() {
            [all] => [0, 1, 2].map(|i| parts[i].onto(Pointer::of(all).part(i * c))),
            [dq, dk, dv] => {
                let [q, k, v] = parts;
                [q.onto(Pointer::of(dq)), k.onto(Pointer::of(dk)), v.onto(Pointer::of(dv))]
            }
            _ => bail!("attention: {} inputs", inputs.len()),
        };
        cpu::backward(g, &self.rule(), parts, mask_of(inputs.get(3))?, saved, dout, to)?;
        // None of a mask.
        Ok(grads.into_iter().map(Some).chain(inputs.get(3).map(|_| None)).collect())
    }

    fn gpu_forward(&self, gpu: &Gpu, inputs: &[View], save: bool) -> Result<Option<GpuForward>> {
        gpu::forward(self, gpu, inputs, save)
    }

    fn gpu_backward(&self, gpu: &Gpu, pass: &Backward<Array>) -> Result<Vec<Option<Array>>> {
        gpu::backward(self, gpu, pass)
    }
}

impl Attention {
    /// O in plain candle operations.
    fn plain_of(&self, inputs: &[Tensor]) -> Result<Tensor> {
        if let ([qkv], true) = (inputs, self.packed) {
            let c = qkv.dim(2)? / 3;
            let part = |i: usize| qkv.narrow(2, i * c, c)?.contiguous();
            return Self { packed: false, ..self.clone() }.plain_of(&[part(0)?, part(1)?, part(2)?]);
        }
        let four = inputs[0].rank() == 4;
        let d = geometry(inputs[0].dims(), inputs[1].dims(), self.heads).d;
        let split = |x: &Tensor| -> Result<Tensor> {
            let &[b, t, c] = x.dims() else { return Ok(x.clone()) };
            x.reshape((b, t, c / d, d))?.transpose(1, 2)
        };
        let whole = |x: &Tensor| repeated(&split(x)?, self.heads);
        let (q, k, v) = (split(&inputs[0])?, whole(&inputs[1])?, whole(&inputs[2])?);
        let o = plain([&q, &k, &v], inputs.get(3), self.causal, self.scale, self.dropout.as_ref())?;
        if four { Ok(o) } else { o.transpose(1, 2)?.reshape(inputs[0].shape()) }
    }

    fn rule(&self) -> cpu::Rule<'_> {
        cpu::Rule { causal: self.causal, scale: self.scale as f32, dropout: self.dropout.as_ref() }
    }
}
