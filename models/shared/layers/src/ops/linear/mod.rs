//! Affine map with optional activation: one node of the graph for product, bias and activation.
//!
//! ```text
//! forward   z = x Wᵀ + b        y = f(z)
//! backward  dz = dy · f'(z)     dx = dz W     dW = dzᵀ x     db = Σ over rows of dz
//! ```
//!
//! f'(z) is computed in the forward pass and kept in the place of z. Products are the `gemm` crate's, f32
//! accumulated in f32; db is summed in row order.

pub(super) mod cpu;
#[cfg(test)]
mod tests;

use std::borrow::Cow;

use candle_core::{D, Error, Result, Tensor, bail};
use zoo_kernels::gpu::{Array, Factor, Gpu};
use zoo_kernels::{Backward, Forward, GpuForward, Op, Output, View, apply_one};

use super::activation::Activation;
use super::activation::cpu::{apply as activate, times};

#[derive(Clone)]
struct Linear {
    activation: Activation,
}

/// f(x Wᵀ + b): `x` is (…, in), `weight` (out, in), `bias` (out); the result is (…, out).
///
/// # Errors
/// Shapes that do not fit.
pub fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, activation: Activation) -> Result<Tensor> {
    let (n, k) = weight.dims2()?;
    if x.rank() == 0 || x.dim(D::Minus1)? != k || bias.is_some_and(|b| b.dims() != [n]) {
        let bias = bias.map(|b| b.dims());
        bail!("linear: x {:?} and bias {bias:?} do not fit weight {:?}", x.dims(), weight.dims())
    }
    let rows = x.dims().iter().rev().skip(1).try_fold(1usize, |n, d| n.checked_mul(*d));
    if rows.and_then(|rows| rows.checked_mul(n)).is_none_or(|n| n > isize::MAX as usize / 4) {
        bail!("linear: {:?} times {:?} are more elements than can be addressed", x.dims(), weight.dims())
    }
    let mut inputs = vec![x, weight];
    inputs.extend(bias);
    apply_one(Linear { activation }, &inputs)
}

/// x Wᵀ + b in plain candle operations.
pub(super) fn plain(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let (n, k) = weight.dims2()?;
    let mut dims = x.dims().to_vec();
    let rows = dims.iter().take(dims.len() - 1).product::<usize>();
    let mut z = x.reshape((rows, k))?.matmul(&weight.t()?)?;
    if let Some(bias) = bias {
        z = z.broadcast_add(bias)?;
    }
    if let Some(last) = dims.last_mut() {
        *last = n;
    }
    z.reshape(dims)
}

impl Op for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn reference(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
        Ok(vec![self.activation.reference(&plain(&inputs[0], &inputs[1], inputs.get(2))?)?])
    }

    fn cpu_forward(&self, inputs: &[View], save: bool) -> Result<Forward> {
        let (x, weight) = (&inputs[0], &inputs[1]);
        let mut dims = x.dims().to_vec();
        let size = cpu::Size::new(x, weight);
        let mut data = cpu::forward(size, x.f32()?, weight.f32()?, inputs.get(2).map(View::f32).transpose()?)?;
        let slope = activate(&mut data, self.activation, save)?;
        if let Some(last) = dims.last_mut() {
            *last = size.n;
        }
        Ok(Forward { outputs: vec![Output { data, shape: dims.into() }], saved: slope.into_iter().collect() })
    }

    fn cpu_backward(&self, pass: &Backward) -> Result<Vec<Option<Vec<f32>>>> {
        let Some(grad) = &pass.grads[0] else { bail!("linear: no gradient") };
        let (x, weight) = (&pass.inputs[0], &pass.inputs[1]);
        let size = cpu::Size::new(x, weight);
        let dz = match pass.saved.first() {
            Some(slope) => Cow::Owned(times(grad.f32()?, slope)?),
            None => Cow::Borrowed(grad.f32()?),
        };
        let mut grads = vec![
            pass.needs[0].then(|| Ok::<_, Error>(cpu::input_gradient(size, &dz, weight.f32()?))).transpose()?,
            pass.needs[1].then(|| Ok::<_, Error>(cpu::weight_gradient(size, &dz, x.f32()?))).transpose()?,
        ];
        if pass.inputs.len() > 2 {
            grads.push(pass.needs[2].then(|| cpu::column_sums(&dz, size.n)));
        }
        Ok(grads)
    }

    fn gpu_forward(&self, gpu: &Gpu, inputs: &[View], save: bool) -> Result<Option<GpuForward>> {
        let (x, weight, bias) = (&inputs[0], &inputs[1], inputs.get(2).map(View::slice).transpose()?);
        let cpu::Size { m, n, k } = cpu::Size::new(x, weight);
        let mut z = gpu.matmul([m, n, k], Factor::rows(x.slice()?), Factor::transposed(weight.slice()?))?;
        let mut dims = x.dims().to_vec();
        if let Some(last) = dims.last_mut() {
            *last = n;
        }
        let (y, saved) = match (self.activation, bias) {
            (Activation::Identity, None) => (z, vec![]),
            (Activation::Identity, Some(bias)) => {
                gpu.add_bias(&mut z, bias)?;
                (z, vec![])
            }
            (f, bias) => (f.of_sum(gpu, &mut z, bias)?, if save { vec![z] } else { vec![] }),
        };
        Ok(Some(GpuForward { outputs: vec![(y, dims.into())], saved }))
    }

    fn gpu_backward(&self, gpu: &Gpu, pass: &Backward<Array>) -> Result<Vec<Option<Array>>> {
        let Some(grad) = &pass.grads[0] else { bail!("linear: no gradient") };
        let (x, weight) = (&pass.inputs[0], &pass.inputs[1]);
        let cpu::Size { m, n, k } = cpu::Size::new(x, weight);
        let through = |z: &Array| self.activation.backward(gpu, z.slice(), grad.slice()?);
        let dz = pass.saved.first().map(through).transpose()?;
        let dz = dz.as_ref().map_or_else(|| grad.slice(), |dz| Ok(dz.slice()))?;
        let dx = || gpu.matmul([m, k, n], Factor::rows(dz), Factor::rows(weight.slice()?));
        let dw = || gpu.matmul([n, k, m], Factor::transposed(dz), Factor::rows(x.slice()?));
        let mut grads = vec![pass.needs[0].then(dx).transpose()?, pass.needs[1].then(dw).transpose()?];
        if pass.inputs.len() > 2 {
            grads.push(pass.needs[2].then(|| gpu.column_sums(dz, n)).transpose()?);
        }
        Ok(grads)
    }
}
