//! A linear map without a bias, as a part of an op: its weight in numbers or quantized, and LoRA beside it or not.

use candle_core::{Result, Tensor, bail};
use zoo_kernels::View;
use zoo_kernels::cpu::Pointer;
use zoo_kernels::cpu::matmul::{Blend, matmul, matmul_into};
use zoo_kernels::cpu::product::Matrix;

use super::{LoraOf, Map, MapWeight, linear_map};
use crate::ops::dropout::{Dropout, apply_mask};
use crate::ops::linear::cpu::{Size, forward, input_gradient, weight_gradient};
use crate::ops::linear::plain;
use crate::ops::quantized::Quantized;
use crate::ops::residual::cpu::{Gradients, add_dropped};

/// Where a map's parts are among an op's inputs.
#[derive(Clone)]
pub(in crate::ops) struct MapAt {
    pub(super) weight: WeightAt,
    pub(super) lora: Option<LoraAt>,
}

#[derive(Clone)]
pub(super) enum WeightAt {
    Plain(usize),
    Quantized(Quantized),
}

#[derive(Clone)]
pub(super) struct LoraAt {
    pub(super) a: usize,
    pub(super) b: usize,
    pub(super) scale: f64,
    pub(super) dropout: Option<Dropout>,
}

impl MapAt {
    /// Puts the map's tensors behind `inputs`.
    ///
    /// # Errors
    /// A map of other sizes than `dims` (out, in), or parts that do not fit each other.
    pub(in crate::ops) fn of<'a>(map: &Map<'a>, dims: [usize; 2], inputs: &mut Vec<&'a Tensor>) -> Result<Self> {
        let [n, k] = dims;
        let found = map.weight.dims();
        if found != dims || n == 0 || k == 0 {
            bail!("linear map: a weight of {found:?}, expected {dims:?} of at least one row and column")
        }
        let rows = inputs.first().map_or(0, |x| x.elem_count() / x.dims().last().copied().unwrap_or(1).max(1));
        let widest = n.max(k).max(map.lora.as_ref().map_or(0, |lora| lora.a.dims().first().copied().unwrap_or(0)));
        if rows.checked_mul(widest).is_none_or(|n| n > isize::MAX as usize / 4) {
            bail!("linear map: {rows} rows times {dims:?} are more elements than can be addressed")
        }
        let mut push = |tensor: &'a Tensor| {
            inputs.push(tensor);
            inputs.len() - 1
        };
        let weight = match map.weight {
            MapWeight::Plain(weight) => WeightAt::Plain(push(weight)),
            MapWeight::Quantized(weight) => WeightAt::Quantized(weight.clone()),
        };
        let Some(LoraOf { a, b, scale, dropout }) = &map.lora else { return Ok(Self { weight, lora: None }) };
        let rank = a.dims().first().copied().unwrap_or(0);
        if rank == 0 || a.dims() != [rank, k] || b.dims() != [n, rank] {
            bail!("LoRA: A {:?} and B {:?} do not fit a weight of {dims:?}", a.dims(), b.dims())
        }
        let lora = LoraAt { a: push(a), b: push(b), scale: *scale, dropout: Dropout::of(dropout.clone())? };
        Ok(Self { weight, lora: Some(lora) })
    }

    /// In plain operations of candle's.
    pub(in crate::ops) fn reference(&self, x: &Tensor, inputs: &[Tensor]) -> Result<Tensor> {
        let weight = match &self.weight {
            WeightAt::Plain(at) => inputs[*at].clone(),
            WeightAt::Quantized(weight) => weight.dequantized()?.to_device(x.device())?.to_dtype(x.dtype())?,
        };
        let y = plain(x, &weight, None)?;
        let Some(LoraAt { a, b, scale, dropout }) = &self.lora else { return Ok(y) };
        let h = (plain(&apply_mask(x, dropout.as_ref())?, &inputs[*a], None)? * *scale)?;
        y + plain(&h, &inputs[*b], None)?
    }

    /// By its own op.
    pub(in crate::ops) fn composed(&self, x: &Tensor, inputs: &[Tensor]) -> Result<Tensor> {
        let weight = match &self.weight {
            WeightAt::Plain(at) => MapWeight::Plain(&inputs[*at]),
            WeightAt::Quantized(weight) => MapWeight::Quantized(weight),
        };
        let lora = self.lora.as_ref().map(|LoraAt { a, b, scale, dropout }| {
            let dropout = dropout.as_ref().map(|d| (d.p, d.stream.clone()));
            LoraOf { a: &inputs[*a], b: &inputs[*b], scale: *scale, dropout }
        });
        linear_map(x, Map { weight, lora })
    }

    /// Outputs and inputs.
    pub(in crate::ops) fn dims(&self, inputs: &[View]) -> [usize; 2] {
        match &self.weight {
            WeightAt::Plain(at) => [inputs[*at].dims()[0], inputs[*at].dims()[1]],
            WeightAt::Quantized(weight) => weight.dims(),
        }
    }

    /// Whether the backward pass asks what the map was applied to.
    pub(in crate::ops) fn asks(&self, needs: &[bool]) -> bool {
        let of_weight = matches!(self.weight, WeightAt::Plain(at) if needs[at]);
        of_weight || self.lora.as_ref().is_some_and(|lora| needs[lora.a])
    }

    /// The results of rows of x, and the features between LoRA's matrices, which the backward pass wants to see again; none without it.
    pub(in crate::ops) fn forward(&self, rows: usize, x: &[f32], inputs: &[View]) -> Result<[Vec<f32>; 2]> {
        let [n, k] = self.dims(inputs);
        let mut y = match &self.weight {
            WeightAt::Plain(at) => forward(Size { m: rows, n, k }, x, inputs[*at].f32()?, None)?,
            WeightAt::Quantized(weight) => weight.0.product(rows, x)?,
        };
        let Some(lora) = &self.lora else { return Ok([y, vec![]]) };
        let rank = inputs[lora.a].dims()[0];
        let a = inputs[lora.a].f32()?;
        let between = Size { m: rows, n: rank, k };
        let h = match &lora.dropout {
            Some(dropout) => forward(between, &dropout.masked(x)?, a, None)?,
            None => forward(between, x, a, None)?,
        };
        let h = lora.scaled(h);
        add([rows, n, rank], Matrix::rows(&h, rank), Matrix::transposed(inputs[lora.b].f32()?, rank), &mut y);
        Ok([y, h])
    }

    /// The gradients of the map's parts, and, if `wanted`, that of x (rows, in), added to `onto` if there is one. `x` is looked at if the
    /// map [asks](MapAt::asks) for it.
    pub(in crate::ops) fn back(
        &self,
        [dy, x, h]: [&[f32]; 3],
        grads: &mut Gradients,
        onto: Option<Vec<f32>>,
        wanted: bool,
    ) -> Result<Option<Vec<f32>>> {
        let inputs = grads.pass.inputs;
        let [n, k] = self.dims(inputs);
        let rows = dy.len().checked_div(n).unwrap_or(0);
        let size = Size { m: rows, n, k };
        if let WeightAt::Plain(at) = self.weight {
            grads.put(at, || weight_gradient(size, dy, x));
        }
        let mut dx = match (wanted, &self.weight, onto) {
            (false, ..) => None,
            (true, WeightAt::Plain(at), Some(mut dx)) => {
                add([rows, k, n], Matrix::rows(dy, n), Matrix::rows(inputs[*at].f32()?, k), &mut dx);
                Some(dx)
            }
            (true, WeightAt::Plain(at), None) => Some(input_gradient(size, dy, inputs[*at].f32()?)),
            (true, WeightAt::Quantized(weight), Some(dx)) => Some(add_dropped(&dx, weight.0.back(rows, dy)?, None)?),
            (true, WeightAt::Quantized(weight), None) => Some(weight.0.back(rows, dy)?),
        };
        let Some(lora) = &self.lora else { return Ok(dx) };
        let (rank, a) = (inputs[lora.a].dims()[0], inputs[lora.a].f32()?);
        let beside = Size { k: rank, ..size };
        grads.put(lora.b, || weight_gradient(beside, dy, h));
        if dx.is_none() && !grads.pass.needs[lora.a] {
            return Ok(None);
        }
        let dh = lora.scaled(input_gradient(beside, dy, inputs[lora.b].f32()?));
        let between = Size { m: rows, n: rank, k };
        if grads.pass.needs[lora.a] {
            let masked = lora.dropout.as_ref().map(|dropout| dropout.masked(x)).transpose()?;
            let u = masked.as_deref().unwrap_or(x);
            grads.put(lora.a, || weight_gradient(between, &dh, u));
        }
        if let Some(dx) = &mut dx {
            let (dh, a) = (Matrix::rows(&dh, rank), Matrix::rows(a, k));
            match &lora.dropout {
                None => add([rows, k, rank], dh, a, dx),
                Some(dropout) => {
                    let du = dropout.masked(&matmul([rows, k, rank], dh, a))?;
                    *dx = add_dropped(&du, std::mem::take(dx), None)?;
                }
            }
        }
        Ok(dx)
    }
}

impl LoraAt {
    fn scaled(&self, mut values: Vec<f32>) -> Vec<f32> {
        values.iter_mut().for_each(|v| *v *= self.scale as f32);
        values
    }
}

/// Adds A (m, k) · B (k, n) to `to`.
fn add(size: [usize; 3], a: Matrix, b: Matrix, to: &mut [f32]) {
    assert_eq!(Some(to.len()), size[0].checked_mul(size[1]), "sizes do not fit");
    // SAFETY: `to` has m rows of n elements, all initialised, as was checked.
    unsafe { matmul_into(size, a, b, Pointer::of(to), size[1], Blend::ADD) }
}
