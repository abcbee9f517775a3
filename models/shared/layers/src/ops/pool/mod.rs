//! A weighted sum over positions.
//!
//! With x (b, s, c), weights w (s) and g = dL/dy:
//!
//! ```text
//! forward   y[b, c] = Σ_s w[s] x[b, s, c]
//! backward  dx[b, s, c] = w[s] g[b, c]      dw[s] = Σ_b,c g[b, c] x[b, s, c]
//! ```

mod cpu;
#[cfg(test)]
mod tests;

use candle_core::{Result, Tensor, bail};
use zoo_kernels::gpu::{Arg, Array, Gpu, Grid, Module, Slice};
use zoo_kernels::{Backward, Forward, GpuForward, Op, Output, View, apply_one, module};

use super::linear::cpu::column_sums;

const KERNELS: Module = module!("pool");

#[derive(Clone)]
struct Pool;

/// The sum of the positions of `x` (b, s, c), each times its number in `weights` (s): (b, c).
///
/// # Errors
/// Other shapes.
pub fn pool(x: &Tensor, weights: &Tensor) -> Result<Tensor> {
    let (b, s, c) = x.dims3()?;
    if b.checked_mul(c).is_none() {
        bail!("pool: {:?} have more sums than can be counted", x.dims())
    }
    if weights.dims() != [s] {
        bail!("pool: weights {:?} for {:?}, expected ({s})", weights.dims(), x.dims())
    }
    apply_one(Pool, &[x, weights])
}

fn size(x: &View) -> [usize; 3] {
    let dims = x.dims();
    [dims[0], dims[1], dims[2]]
}

impl Op for Pool {
    fn name(&self) -> &'static str {
        "pool"
    }

    fn reference(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
        let s = inputs[1].elem_count();
        Ok(vec![inputs[0].broadcast_mul(&inputs[1].reshape((1, s, 1))?)?.sum(1)?])
    }

    fn cpu_forward(&self, inputs: &[View], _: bool) -> Result<Forward> {
        let size @ [b, _, c] = size(&inputs[0]);
        let data = cpu::forward(size, inputs[0].f32()?, inputs[1].f32()?)?;
        Ok(Forward { outputs: vec![Output { data, shape: (b, c).into() }], saved: vec![] })
    }

    fn cpu_backward(&self, pass: &Backward) -> Result<Vec<Option<Vec<f32>>>> {
        let Some(grad) = &pass.grads[0] else { bail!("pool: no gradient") };
        let (size, x, w) = (size(&pass.inputs[0]), pass.inputs[0].f32()?, pass.inputs[1].f32()?);
        let (dx, dw) = cpu::backward(size, x, w, grad.f32()?)?;
        Ok(vec![Some(dx), pass.needs[1].then(|| column_sums(&dw, w.len()))])
    }

    fn gpu_forward(&self, gpu: &Gpu, inputs: &[View], _: bool) -> Result<Option<GpuForward>> {
        let [b, s, c] = size(&inputs[0]);
        let mut y = gpu.array(b * c)?;
        let (x, w) = (inputs[0].slice()?, inputs[1].slice()?);
        let args =
            &mut [Arg::Read(x), Arg::Read(w), Arg::Write(&mut y), Arg::Count(b * c), Arg::Count(s), Arg::Count(c)];
        // SAFETY: x is (b, s, c) and there are s weights, as was checked.
        unsafe { gpu.launch(&KERNELS, "pool_forward", Grid::each(b * c), args)? };
        Ok(Some(GpuForward { outputs: vec![(y, (b, c).into())], saved: vec![] }))
    }

    fn gpu_backward(&self, gpu: &Gpu, pass: &Backward<Array>) -> Result<Vec<Option<Array>>> {
        let Some(grad) = &pass.grads[0] else { bail!("pool: no gradient") };
        let ([b, s, c], g) = (size(&pass.inputs[0]), grad.slice()?);
        let (x, w) = (pass.inputs[0].slice()?, pass.inputs[1].slice()?);
        let side = |kernel: &str, grid: Grid, other: Slice, len: usize, count: usize| {
            let mut gradient = gpu.array(len)?;
            let mut args = vec![Arg::Read(other), Arg::Read(g), Arg::Write(&mut gradient)];
            args.extend([count, s, c].map(Arg::Count));
            // SAFETY: x is (b, s, c), there are s weights, and the gradient is (b, c).
            unsafe { gpu.launch(&KERNELS, kernel, grid, &mut args)? };
            Ok::<_, candle_core::Error>(gradient)
        };
        let of_x = || side("pool_backward", Grid::each(x.count()), w, x.count(), x.count());
        let of_weights = || side("pool_weights", Grid::rows(s, b * c), x, s, b);
        Ok(vec![pass.needs[0].then(of_x).transpose()?, pass.needs[1].then(of_weights).transpose()?])
    }
}
