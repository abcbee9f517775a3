//! Mixed precision: parameters stay f32, ops compute in a narrower type.

use std::cell::Cell;

use candle_core::{DType, Result, Tensor, bail};

use super::link::record;
use super::op::{Backward, Forward, GpuForward, Op, View};
use crate::cpu::simd::{fused, overriding, restoring};
use crate::gpu::{Array, Gpu, Slice};

thread_local! {
    static COMPUTE: Cell<Option<DType>> = const { Cell::new(None) };
}

/// Runs `f` with the ops that this thread calls computing in `dtype`, bf16 or f16: each casts its floating-point inputs, so that
/// parameters, their gradients and the optimizer's state stay f32. Losses and softmax compute in f32, as they do in
/// `torch.autocast`; norms sum in f32 and write `dtype`. With f32 nothing changes. The backward pass may run outside.
///
/// On the CPU in bf16, only products of matrices change: they read bf16 and add in f32, and all that they make is f32. (Those of small
/// LSTMs read f32, and where the processor has no instructions for bf16 those within attention, too.)
pub fn autocast<R>(dtype: DType, f: impl FnOnce() -> R) -> R {
    overriding(&COMPUTE, dtype, f)
}

/// Runs `f` without a type of this thread's in force.
pub(crate) fn autocast_apart<R>(f: impl FnOnce() -> R) -> R {
    restoring(&COMPUTE, None, f)
}

/// `inputs` in the type in force; `None` if they are that already, or none is.
pub(super) fn cast(inputs: &[&Tensor], wide: bool) -> Result<Option<Vec<Tensor>>> {
    let Some(compute @ (DType::BF16 | DType::F16)) = COMPUTE.get() else { return Ok(None) };
    let to = if wide { DType::F32 } else { compute };
    let differs = |t: &Tensor| matches!(t.dtype(), DType::F32 | DType::BF16 | DType::F16) && t.dtype() != to;
    if compute == DType::BF16 && narrows(inputs) {
        return Ok(None);
    }
    if !inputs.iter().any(|t| differs(t)) {
        return Ok(None);
    }
    let one = |t: &Tensor| match differs(t) {
        true if (t.dtype() == DType::F32 || to == DType::F32) && Gpu::runs(t) => {
            match record(Cast { to }, vec![t.clone()])?.pop() {
                Some(cast) => Ok(cast),
                None => bail!("cast: no output"),
            }
        }
        true => t.to_dtype(to),
        false => Ok(t.clone()),
    };
    inputs.iter().map(|t| one(t)).collect::<Result<_>>().map(Some)
}

/// Whether the products of an op on `inputs` read bf16 while its inputs stay as they are: under [`autocast`] to bf16, where the CPU's
/// kernels compute.
pub(super) fn narrows(inputs: &[&Tensor]) -> bool {
    let fits = |t: &&Tensor| t.device().is_cpu() && (t.dtype() == DType::F32 || t.dtype().is_int());
    COMPUTE.get() == Some(DType::BF16) && fused() && inputs.iter().all(fits) && Gpu::of(inputs).is_none()
}

/// Between f32 and a narrower type.
struct Cast {
    to: DType,
}

impl Cast {
    fn on_gpu(gpu: &Gpu, x: Slice, to: DType) -> Result<Array> {
        match (gpu.dtype(), to) {
            (DType::F32, narrow) => gpu.of_type(narrow).from_floats(x),
            (_, DType::F32) => gpu.to_floats(x),
            (from, to) => bail!("cast: from {from:?} to {to:?}"),
        }
    }
}

impl Op for Cast {
    fn name(&self) -> &'static str {
        "cast"
    }

    fn reference(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
        Ok(vec![inputs[0].to_dtype(self.to)?])
    }

    fn cpu_forward(&self, _: &[View], _: bool) -> Result<Forward> {
        bail!("cast: from f32 to {:?} on the CPU", self.to)
    }

    fn cpu_backward(&self, _: &Backward) -> Result<Vec<Option<Vec<f32>>>> {
        bail!("cast: no kernel on the CPU")
    }

    fn gpu_forward(&self, gpu: &Gpu, inputs: &[View], _: bool) -> Result<Option<GpuForward>> {
        Ok(Some(GpuForward::one(Self::on_gpu(gpu, inputs[0].slice()?, self.to)?, &inputs[0], vec![])))
    }

    fn gpu_backward(&self, gpu: &Gpu, pass: &Backward<Array>) -> Result<Vec<Option<Array>>> {
        let Some(grad) = &pass.grads[0] else { bail!("cast: no gradient") };
        Ok(vec![Some(Self::on_gpu(&gpu.of_type(self.to), grad.slice()?, gpu.dtype())?)])
    }
}
