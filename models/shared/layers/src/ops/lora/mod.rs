//! A linear map with a trained one of low rank beside it: LoRA (Hu et al., *LoRA: Low-Rank Adaptation of Large Language Models*,
//! ICLR 2022).
//!
//! ```text
//! forward   h = s u Aᵀ          y = x Wᵀ + h Bᵀ
//! backward  dh = s dy B         dx = dy W      du = dh A      dA = dhᵀ u      dB = dyᵀ h
//! ```
//!
//! u is x, or what dropout left of it; W stays as it is as a rule, and may be quantized. Kept for the backward pass is h, of `rank` features.

#[cfg(test)]
mod tests;

use candle_core::{D, Result, Tensor, bail};
use zoo_kernels::cpu::Pointer;
use zoo_kernels::cpu::matmul::{Blend, matmul, matmul_into};
use zoo_kernels::cpu::product::Matrix;
use zoo_kernels::gpu::{Arg, Array, Factor, Gpu, Grid, Module};
use zoo_kernels::{Backward, Forward, GpuForward, Op, Output, View, apply_one, module};

use super::linear::cpu::{self, Size};
use super::linear::plain;
use super::quantized::Quantized;

const KERNELS: Module = module!("lora");

/// The weight that is adapted.
#[derive(Clone, Copy, Debug)]
pub enum Adapted<'a> {
    /// Numbers (out, in).
    Plain(&'a Tensor),
    /// A few bits an element.
    Quantized(&'a Quantized),
}

/// x Wᵀ + `scale` u Aᵀ Bᵀ for `x` (…, in), a weight (out, in), `a` (rank, in) and `b` (out, rank): (…, out). `u` (…, in) is
/// what dropout left of x; x itself if there is none.
///
/// # Errors
/// Shapes that do not fit.
pub fn lora(x: &Tensor, weight: Adapted, a: &Tensor, b: &Tensor, u: Option<&Tensor>, scale: f64) -> Result<Tensor> {
    let (n, k) = match weight {
        Adapted::Plain(weight) => weight.dims2()?,
        Adapted::Quantized(weight) => weight.dims().into(),
    };
    let (rank, of_a) = a.dims2()?;
    if x.rank() == 0 || x.dim(D::Minus1)? != k || of_a != k || b.dims() != [n, rank] {
        bail!("lora: x {:?}, A {:?} and B {:?} do not fit weight [{n}, {k}]", x.dims(), a.dims(), b.dims())
    }
    if u.is_some_and(|u| u.dims() != x.dims()) {
        bail!("lora: u {:?} has not the shape of x {:?}", u.map(Tensor::dims), x.dims())
    }
    let rows = x.dims().iter().rev().skip(1).try_fold(1usize, |n, d| n.checked_mul(*d));
    if rows.and_then(|rows| rows.checked_mul(n.max(rank))).is_none_or(|n| n > isize::MAX as usize / 4) {
        bail!("lora: {:?} times [{n}, {k}] are more elements than can be addressed", x.dims())
    }
    let (quantized, plain) = match weight {
        Adapted::Plain(weight) => (None, Some(weight)),
        Adapted::Quantized(weight) => (Some(weight.clone()), None),
    };
    let inputs: Vec<&Tensor> = [x, a, b].into_iter().chain(plain).chain(u).collect();
    apply_one(Lora { quantized, scale }, &inputs)
}

/// Inputs are x, A, B, the weight unless it is quantized, and u if it is not x.
#[derive(Clone)]
struct Lora {
    quantized: Option<Quantized>,
    scale: f64,
}

const X: usize = 0;
const A: usize = 1;
const B: usize = 2;
/// Where the weight is, unless it is quantized.
const W: usize = 3;

/// Sizes of the maps to the features between and from them.
struct Sizes {
    down: Size,
    up: Size,
}

impl Sizes {
    fn new(inputs: &[View]) -> Self {
        let (m, k) = (inputs[X].rows(), inputs[A].dims()[1]);
        let [n, rank] = [inputs[B].dims()[0], inputs[B].dims()[1]];
        Self { down: Size { m, n: rank, k }, up: Size { m, n, k: rank } }
    }
}

impl Lora {
    /// Where u is among `inputs` inputs.
    fn u(&self, inputs: usize) -> Option<usize> {
        let at = if self.quantized.is_some() { W } else { W + 1 };
        (at < inputs).then_some(at)
    }

    fn shape(inputs: &[View]) -> Vec<usize> {
        let mut dims = inputs[X].dims().to_vec();
        if let Some(last) = dims.last_mut() {
            *last = inputs[B].dims()[0];
        }
        dims
    }

    fn scaled(&self, mut values: Vec<f32>) -> Vec<f32> {
        values.iter_mut().for_each(|v| *v *= self.scale as f32);
        values
    }
}

impl Op for Lora {
    fn name(&self) -> &'static str {
        "lora"
    }

    fn reference(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
        let x = &inputs[X];
        let weight = match &self.quantized {
            Some(weight) => weight.dequantized()?.to_device(x.device())?.to_dtype(x.dtype())?,
            None => inputs[W].clone(),
        };
        let u = self.u(inputs.len()).map_or(x, |u| &inputs[u]);
        let beside = plain(&(plain(u, &inputs[A], None)? * self.scale)?, &inputs[B], None)?;
        Ok(vec![(plain(x, &weight, None)? + beside)?])
    }

    fn cpu_forward(&self, inputs: &[View], save: bool) -> Result<Forward> {
        let Sizes { down, up } = Sizes::new(inputs);
        let x = inputs[X].f32()?;
        let u = self.u(inputs.len()).map_or(Ok(x), |u| inputs[u].f32())?;
        let h = self.scaled(cpu::forward(down, u, inputs[A].f32()?, None)?);
        let mut y = match &self.quantized {
            Some(weight) => weight.0.product(up.m, x)?,
            None => cpu::forward(Size { k: down.k, ..up }, x, inputs[W].f32()?, None)?,
        };
        add([up.m, up.n, up.k], Matrix::rows(&h, up.k), Matrix::transposed(inputs[B].f32()?, up.k), &mut y);
        let outputs = vec![Output { data: y, shape: Self::shape(inputs).into() }];
        Ok(Forward { outputs, saved: if save { vec![h] } else { vec![] } })
    }

    fn cpu_backward(&self, pass: &Backward) -> Result<Vec<Option<Vec<f32>>>> {
        let (Some(grad), Some(h)) = (&pass.grads[0], pass.saved.first()) else { bail!("lora: no gradient") };
        let (inputs, needs, at) = (&pass.inputs, &pass.needs, self.u(pass.inputs.len()));
        let Sizes { down, up } = Sizes::new(inputs);
        let whole = Size { k: down.k, ..up };
        let (dy, x) = (grad.f32()?, inputs[X].f32()?);
        let u = at.map_or(Ok(x), |u| inputs[u].f32())?;
        let dh = self.scaled(cpu::input_gradient(up, dy, inputs[B].f32()?));
        let a = inputs[A].f32()?;
        let mut dx = match (needs[X], &self.quantized) {
            (false, _) => None,
            (true, Some(weight)) => Some(weight.0.back(up.m, dy)?),
            (true, None) => Some(cpu::input_gradient(whole, dy, inputs[W].f32()?)),
        };
        let through = [down.m, down.k, down.n];
        if let (Some(dx), None) = (&mut dx, at) {
            add(through, Matrix::rows(&dh, down.n), Matrix::rows(a, down.k), dx);
        }
        let mut grads = vec![
            dx,
            needs[A].then(|| cpu::weight_gradient(down, &dh, u)),
            needs[B].then(|| cpu::weight_gradient(up, dy, h)),
        ];
        if self.quantized.is_none() {
            grads.push(needs[W].then(|| cpu::weight_gradient(whole, dy, x)));
        }
        if let Some(at) = at {
            grads.push(needs[at].then(|| matmul(through, Matrix::rows(&dh, down.n), Matrix::rows(a, down.k))));
        }
        Ok(grads)
    }

    fn gpu_forward(&self, gpu: &Gpu, inputs: &[View], save: bool) -> Result<Option<GpuForward>> {
        if self.quantized.is_some() {
            return Ok(None);
        }
        let Sizes { down, up } = Sizes::new(inputs);
        let u = &inputs[self.u(inputs.len()).unwrap_or(X)];
        let by = |i: usize| Ok::<_, candle_core::Error>(Factor::transposed(inputs[i].slice()?));
        let mut h = gpu.matmul([down.m, down.n, down.k], Factor::rows(u.slice()?), by(A)?)?;
        blend(gpu, &mut h, None, self.scale)?;
        let mut y = gpu.matmul([up.m, up.n, down.k], Factor::rows(inputs[X].slice()?), by(W)?)?;
        let beside = gpu.matmul([up.m, up.n, up.k], Factor::rows(h.slice()), by(B)?)?;
        blend(gpu, &mut y, Some(&beside), 1.)?;
        let outputs = vec![(y, Self::shape(inputs).into())];
        Ok(Some(GpuForward { outputs, saved: if save { vec![h] } else { vec![] } }))
    }

    fn gpu_backward(&self, gpu: &Gpu, pass: &Backward<Array>) -> Result<Vec<Option<Array>>> {
        let (Some(grad), Some(h)) = (&pass.grads[0], pass.saved.first()) else { bail!("lora: no gradient") };
        let (inputs, needs, at) = (&pass.inputs, &pass.needs, self.u(pass.inputs.len()));
        let Sizes { down, up } = Sizes::new(inputs);
        let (dy, x, u) = (grad.slice()?, inputs[X].slice()?, inputs[at.unwrap_or(X)].slice()?);
        let (a, b) = (inputs[A].slice()?, inputs[B].slice()?);
        let mut dh = gpu.matmul([up.m, up.k, up.n], Factor::rows(dy), Factor::rows(b))?;
        blend(gpu, &mut dh, None, self.scale)?;
        let du = || gpu.matmul([down.m, down.k, down.n], Factor::rows(dh.slice()), Factor::rows(a));
        let mut dx = None;
        if needs[X] {
            let mut through = gpu.matmul([up.m, down.k, up.n], Factor::rows(dy), Factor::rows(inputs[W].slice()?))?;
            if at.is_none() {
                blend(gpu, &mut through, Some(&du()?), 1.)?;
            }
            dx = Some(through);
        }
        let da = || gpu.matmul([down.n, down.k, down.m], Factor::transposed(dh.slice()), Factor::rows(u));
        let db = || gpu.matmul([up.n, up.k, up.m], Factor::transposed(dy), Factor::rows(h.slice()));
        let dw = || gpu.matmul([up.n, down.k, up.m], Factor::transposed(dy), Factor::rows(x));
        let mut grads =
            vec![dx, needs[A].then(da).transpose()?, needs[B].then(db).transpose()?, needs[W].then(dw).transpose()?];
        if let Some(at) = at {
            grads.push(needs[at].then(du).transpose()?);
        }
        Ok(grads)
    }
}

/// Adds A (m, k) · B (k, n) to `to`.
fn add(size: [usize; 3], a: Matrix, b: Matrix, to: &mut Vec<f32>) {
    assert_eq!(to.len(), size[0] * size[1], "sizes do not fit");
    // SAFETY: `to` has m rows of n elements, all initialised, as was checked.
    unsafe { matmul_into(size, a, b, Pointer::of(to), size[1], Blend::ADD) }
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
