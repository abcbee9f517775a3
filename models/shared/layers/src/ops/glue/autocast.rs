//! Mixed precision: parameters stay f32, ops compute in a narrower type.

use std::cell::Cell;

use candle_core::{DType, Result, Tensor};

use super::simd::overriding;

thread_local! {
    static COMPUTE: Cell<Option<DType>> = const { Cell::new(None) };
}

/// Runs `f` with the ops that this thread calls computing in `dtype`, bf16 or f16: each casts its floating-point inputs, so that
/// parameters, their gradients and the optimizer's state stay f32. Losses and softmax compute in f32, as they do in
/// `torch.autocast`; norms sum in f32 and write `dtype`. With f32 nothing changes. The backward pass may run outside.
pub fn autocast<R>(dtype: DType, f: impl FnOnce() -> R) -> R {
    overriding(&COMPUTE, dtype, f)
}

/// `inputs` in the type in force; `None` if they are that already, or none is.
pub(super) fn cast(inputs: &[&Tensor], wide: bool) -> Result<Option<Vec<Tensor>>> {
    let Some(compute @ (DType::BF16 | DType::F16)) = COMPUTE.get() else { return Ok(None) };
    let to = if wide { DType::F32 } else { compute };
    let differs = |t: &Tensor| matches!(t.dtype(), DType::F32 | DType::BF16 | DType::F16) && t.dtype() != to;
    if !inputs.iter().any(|t| differs(t)) {
        return Ok(None);
    }
    inputs.iter().map(|t| if differs(t) { t.to_dtype(to) } else { Ok((*t).clone()) }).collect::<Result<_>>().map(Some)
}
