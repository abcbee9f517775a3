//! A linear map with a trained one of low rank beside it: LoRA (Hu et al., *LoRA: Low-Rank Adaptation of Large Language Models*,
//! ICLR 2022).
//!
//! ```text
//! forward   h = s u Aᵀ          y = x Wᵀ + h Bᵀ        u = dropout(x)
//! backward  dh = s dy B         dx = dy W + dropout(dh A)      dA = dhᵀ u      dB = dyᵀ h
//! ```
//!
//! W stays as it is as a rule, and may be quantized. Kept for the backward pass is h, of `rank` features.

mod map;
#[cfg(test)]
mod tests;

use candle_core::{D, Result, Tensor, bail};
use zoo_kernels::gpu::{Arg, Array, Factor, Gpu, Grid, Module};
use zoo_kernels::{Backward, Forward, GpuForward, Op, Output, View, apply_one, module};

pub(in crate::ops) use map::MapAt;
use map::{LoraAt, WeightAt};

use super::activation::Activation;
use super::dropout::{Dropout, on_gpu};
use super::linear::linear;
use super::quantized::{Quantized, quantized_linear};
use super::residual::cpu::Gradients;
use crate::random::Stream;

const KERNELS: Module = module!("lora");

/// The weight (out, in) of a linear map.
#[derive(Clone, Copy, Debug)]
pub enum MapWeight<'a> {
    /// Numbers.
    Plain(&'a Tensor),
    /// A few bits an element.
    Quantized(&'a Quantized),
}

impl MapWeight<'_> {
    /// (out, in), or what else it has in place of two dimensions.
    pub(in crate::ops) fn dims(&self) -> Vec<usize> {
        match self {
            Self::Plain(weight) => weight.dims().to_vec(),
            Self::Quantized(weight) => weight.dims().to_vec(),
        }
    }
}

/// The matrices of LoRA.
#[derive(Clone, Debug)]
pub struct LoraOf<'a> {
    /// (rank, in).
    pub a: &'a Tensor,
    /// (out, rank).
    pub b: &'a Tensor,
    /// Factor of their product.
    pub scale: f64,
    /// Dropout of what they are applied to.
    pub dropout: Option<(f64, Stream)>,
}

/// A linear map without a bias.
#[derive(Clone, Debug)]
pub struct Map<'a> {
    /// Its weight.
    pub weight: MapWeight<'a>,
    /// LoRA beside it.
    pub lora: Option<LoraOf<'a>>,
}

/// x Wᵀ + scale dropout(x) Aᵀ Bᵀ for `x` (…, in): (…, out).
///
/// # Errors
/// Shapes that do not fit; a share of dropout outside [0, 1).
pub fn linear_map(x: &Tensor, map: Map) -> Result<Tensor> {
    let dims = map.weight.dims();
    let (&[n, k], Some(_)) = (&dims[..], &map.lora) else {
        return match map.weight {
            MapWeight::Plain(weight) => linear(x, weight, None, Activation::Identity),
            MapWeight::Quantized(weight) => quantized_linear(x, weight),
        };
    };
    if x.rank() == 0 || x.dim(D::Minus1)? != k {
        bail!("LoRA: x {:?} does not fit weight [{n}, {k}]", x.dims())
    }
    let mut inputs = vec![x];
    let map = MapAt::of(&map, [n, k], &mut inputs)?;
    apply_one(Lora { map }, &inputs)
}

#[derive(Clone)]
struct Lora {
    map: MapAt,
}

impl Lora {
    fn shape(&self, inputs: &[View]) -> Vec<usize> {
        let mut dims = inputs[0].dims().to_vec();
        if let Some(last) = dims.last_mut() {
            *last = self.map.dims(inputs)[0];
        }
        dims
    }
}

impl Op for Lora {
    fn name(&self) -> &'static str {
        "LoRA"
    }

    fn reference(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
        Ok(vec![self.map.reference(&inputs[0], inputs)?])
    }

    fn cpu_forward(&self, inputs: &[View], save: bool) -> Result<Forward> {
        let [data, h] = self.map.forward(inputs[0].rows(), inputs[0].f32()?, inputs)?;
        let outputs = vec![Output { data, shape: self.shape(inputs).into() }];
        Ok(Forward { outputs, saved: if save { vec![h] } else { vec![] } })
    }

    fn cpu_backward(&self, pass: &Backward) -> Result<Vec<Option<Vec<f32>>>> {
        let (Some(grad), [h]) = (&pass.grads[0], pass.saved) else { bail!("LoRA: no gradient") };
        let mut grads = Gradients::of(pass);
        let dx = self.map.back([grad.f32()?, pass.inputs[0].f32()?, h], &mut grads, None, pass.needs[0])?;
        grads.found[0] = dx;
        Ok(grads.found)
    }

    fn gpu_forward(&self, gpu: &Gpu, inputs: &[View], save: bool) -> Result<Option<GpuForward>> {
        let (WeightAt::Plain(weight), Some(lora)) = (&self.map.weight, &self.map.lora) else { return Ok(None) };
        let (m, [n, k], x) = (inputs[0].rows(), self.map.dims(inputs), inputs[0].slice()?);
        let (rank, a, b) = (inputs[lora.a].dims()[0], inputs[lora.a].slice()?, inputs[lora.b].slice()?);
        let dropped = dropped(gpu, inputs, lora)?;
        let u = dropped.as_ref().map_or(x, Array::slice);
        let mut h = gpu.matmul([m, rank, k], Factor::rows(u), Factor::transposed(a))?;
        blend(gpu, &mut h, None, lora.scale)?;
        let mut y = gpu.matmul([m, n, k], Factor::rows(x), Factor::transposed(inputs[*weight].slice()?))?;
        let beside = gpu.matmul([m, n, rank], Factor::rows(h.slice()), Factor::transposed(b))?;
        blend(gpu, &mut y, Some(&beside), 1.)?;
        let outputs = vec![(y, self.shape(inputs).into())];
        Ok(Some(GpuForward { outputs, saved: if save { vec![h] } else { vec![] } }))
    }

    fn gpu_backward(&self, gpu: &Gpu, pass: &Backward<Array>) -> Result<Vec<Option<Array>>> {
        let (Some(grad), [h]) = (&pass.grads[0], pass.saved) else { bail!("LoRA: no gradient") };
        let (WeightAt::Plain(weight), Some(lora)) = (&self.map.weight, &self.map.lora) else {
            bail!("LoRA: no kernels for it")
        };
        let (inputs, needs) = (pass.inputs, pass.needs);
        let (m, [n, k], rank) = (inputs[0].rows(), self.map.dims(inputs), inputs[lora.a].dims()[0]);
        let (dy, x) = (grad.slice()?, inputs[0].slice()?);
        let dropped = dropped(gpu, inputs, lora)?;
        let u = dropped.as_ref().map_or(x, Array::slice);
        let mut dh = gpu.matmul([m, rank, n], Factor::rows(dy), Factor::rows(inputs[lora.b].slice()?))?;
        blend(gpu, &mut dh, None, lora.scale)?;
        let mut grads: Vec<Option<Array>> = inputs.iter().map(|_| None).collect();
        if needs[0] {
            let mut dx = gpu.matmul([m, k, n], Factor::rows(dy), Factor::rows(inputs[*weight].slice()?))?;
            let mut du = gpu.matmul([m, k, rank], Factor::rows(dh.slice()), Factor::rows(inputs[lora.a].slice()?))?;
            if let Some(dropout) = &lora.dropout {
                du = on_gpu(gpu, du.slice(), None, Some(dropout))?;
            }
            blend(gpu, &mut dx, Some(&du), 1.)?;
            grads[0] = Some(dx);
        }
        if needs[lora.a] {
            grads[lora.a] = Some(gpu.matmul([rank, k, m], Factor::transposed(dh.slice()), Factor::rows(u))?);
        }
        if needs[lora.b] {
            grads[lora.b] = Some(gpu.matmul([n, rank, m], Factor::transposed(dy), Factor::rows(h.slice()))?);
        }
        if needs[*weight] {
            grads[*weight] = Some(gpu.matmul([n, k, m], Factor::transposed(dy), Factor::rows(x))?);
        }
        Ok(grads)
    }
}

/// What dropout leaves of x, if there is any.
fn dropped(gpu: &Gpu, inputs: &[View], lora: &LoraAt) -> Result<Option<Array>> {
    let masked = |dropout: &Dropout| on_gpu(gpu, inputs[0].slice()?, None, Some(dropout));
    lora.dropout.as_ref().map(masked).transpose()
}

/// y = `scale` y + what is to be added.
fn blend(gpu: &Gpu, y: &mut Array, added: Option<&Array>, scale: f64) -> Result<()> {
    let n = y.count();
    // Nothing is read of an array that only has to be there.
    let (nothing, count) = (if added.is_none() { Some(gpu.array(1)?) } else { None }, added.map_or(0, Array::count));
    let Some(from) = added.or(nothing.as_ref()) else { return Ok(()) };
    let args = &mut [Arg::Write(y), Arg::Read(from.slice()), Arg::Count(n), Arg::Count(count), Arg::Float(scale)];
    // SAFETY: both have as many elements as are counted.
    unsafe { gpu.launch(&KERNELS, "lora_blend", Grid::each(n), args) }
}
