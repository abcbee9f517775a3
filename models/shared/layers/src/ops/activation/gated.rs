//! Gated linear units: one half of the features lets the other through.
//!
//! ```text
//! forward   y = f(g) u           backward  dg = dy u f'(g)      du = dy f(g)
//! ```
//!
//! (Shazeer, *GLU Variants Improve Transformer*, 2020; with SiLU it is called SwiGLU.) Nothing is kept beside g and u.

use candle_core::{Result, Tensor, bail};
use zoo_kernels::gpu::{Arg, Array, Gpu, Grid};
use zoo_kernels::{Backward, Forward, GpuForward, Op, Output, View, apply_one};

use super::{Activation, KERNELS, cpu};

#[derive(Clone)]
pub(super) struct Gated(pub(super) Activation);

/// f(`gate`) · `up`, element by element, of tensors of one shape.
///
/// # Errors
/// Different shapes.
pub fn gated(gate: &Tensor, up: &Tensor, activation: Activation) -> Result<Tensor> {
    if gate.dims() != up.dims() {
        bail!("gated: {:?} and {:?} differ in shape", gate.dims(), up.dims())
    }
    apply_one(Gated(activation), &[gate, up])
}

impl Op for Gated {
    fn name(&self) -> &'static str {
        "gated"
    }

    fn reference(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
        Ok(vec![(self.0.reference(&inputs[0])? * &inputs[1])?])
    }

    fn cpu_forward(&self, inputs: &[View], _: bool) -> Result<Forward> {
        let data = cpu::gated(inputs[0].f32()?, inputs[1].f32()?, self.0)?;
        Ok(Forward { outputs: vec![Output { data, shape: inputs[0].dims().into() }], saved: vec![] })
    }

    fn cpu_backward(&self, pass: &Backward) -> Result<Vec<Option<Vec<f32>>>> {
        let Some(grad) = &pass.grads[0] else { bail!("gated: no gradient") };
        let (gate, up) = (pass.inputs[0].f32()?, pass.inputs[1].f32()?);
        Ok(cpu::gated_back(gate, up, grad.f32()?, self.0)?.map(Some).into())
    }

    fn gpu_forward(&self, gpu: &Gpu, inputs: &[View], _: bool) -> Result<Option<GpuForward>> {
        let n = inputs[0].count();
        let mut y = gpu.array(n)?;
        let [kind, alpha] = self.0.number();
        let (gate, up) = (inputs[0].slice()?, inputs[1].slice()?);
        let args = &mut [Arg::Read(gate), Arg::Read(up), Arg::Write(&mut y), Arg::Count(n), kind, alpha];
        // SAFETY: all have n elements.
        unsafe { gpu.launch(&KERNELS, "gated_forward", Grid::each(n), args)? };
        Ok(Some(GpuForward::one(y, &inputs[0], vec![])))
    }

    fn gpu_backward(&self, gpu: &Gpu, pass: &Backward<Array>) -> Result<Vec<Option<Array>>> {
        let Some(grad) = &pass.grads[0] else { bail!("gated: no gradient") };
        let n = grad.count();
        let (mut dgate, mut dup) = (gpu.array(n)?, gpu.array(n)?);
        let [kind, alpha] = self.0.number();
        let args = &mut [
            Arg::Read(pass.inputs[0].slice()?),
            Arg::Read(pass.inputs[1].slice()?),
            Arg::Read(grad.slice()?),
            Arg::Write(&mut dgate),
            Arg::Write(&mut dup),
            Arg::Count(n),
            kind,
            alpha,
        ];
        // SAFETY: all have n elements.
        unsafe { gpu.launch(&KERNELS, "gated_backward", Grid::each(n), args)? };
        Ok(vec![Some(dgate), Some(dup)])
    }
}
