//! The checker of ops finds a broken GPU kernel in the tests of a crate that has ops, not in those of the kernels alone.

use candle_core::{Result, Tensor, bail};
use zoo_kernels::check::random;
use zoo_kernels::gpu::Gpu;
use zoo_kernels::{Backward, Forward, GpuForward, Op, Output, View};
use zoo_kernels_emulator::{check, ready};

/// 2x, whose GPU kernel writes nothing.
#[derive(Clone)]
struct Twice;

impl Op for Twice {
    fn name(&self) -> &'static str {
        "twice"
    }

    fn reference(&self, x: &[Tensor]) -> Result<Vec<Tensor>> {
        Ok(vec![(&x[0] * 2.)?])
    }

    fn cpu_forward(&self, x: &[View], _: bool) -> Result<Forward> {
        let data = x[0].f32()?.iter().map(|v| 2. * v).collect();
        Ok(Forward { outputs: vec![Output { data, shape: x[0].dims().into() }], saved: vec![] })
    }

    fn cpu_backward(&self, pass: &Backward) -> Result<Vec<Option<Vec<f32>>>> {
        let Some(grad) = &pass.grads[0] else { bail!("no gradient") };
        Ok(vec![Some(grad.f32()?.iter().map(|g| 2. * g).collect())])
    }

    fn gpu_forward(&self, gpu: &Gpu, x: &[View], _: bool) -> Result<Option<GpuForward>> {
        Ok(Some(GpuForward::one(gpu.array(x[0].count())?, &x[0], vec![])))
    }
}

#[test]
fn a_gpu_kernel_that_writes_nothing_is_found() -> Result<()> {
    if ready() {
        let found = check(&Twice, &[random(1, &[4, 3])?], &[false]).unwrap_err().to_string();
        assert!(found.starts_with("twice by its GPU kernel on the CPU in F32"), "{found}");
    }
    Ok(())
}
