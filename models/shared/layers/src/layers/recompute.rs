//! Activation checkpointing (Chen et al., *Training Deep Nets with Sublinear Memory Cost*, 2016): a part of a model whose
//! activations are not kept for the backward pass, which computes them again from the part's input.

use std::cell::Cell;

use candle_core::{DType, Device, Result, Tensor, Var, bail};
use zoo_kernels::cpu::bf16;
use zoo_kernels::{Backward, Forward, Op, Output, View, apply_one, autocast, backward_from};

thread_local! {
    static ON: Cell<bool> = const { Cell::new(false) };
}

/// Runs `f` with the [`recomputed`] parts of the models that this thread calls computed again in the backward pass (`on`), or with
/// their activations kept.
pub fn with_recompute<R>(on: bool, f: impl FnOnce() -> R) -> R {
    struct Before(bool);
    impl Drop for Before {
        fn drop(&mut self) {
            ON.set(self.0);
        }
    }
    let _before = Before(ON.replace(on));
    f()
}

/// `f` of `x`. Within [`with_recompute`], on a CPU in f32, nothing of what `f` computes on the way is kept: the backward pass
/// runs it again. `params` are the variables that `f` depends on beside `x`; others get no gradient then.
///
/// # Errors
/// Those of `f`.
pub fn recomputed(
    x: &Tensor,
    params: Vec<Tensor>,
    f: impl Fn(&Tensor) -> Result<Tensor> + Send + Sync + 'static,
) -> Result<Tensor> {
    if !ON.get() || !x.device().is_cpu() || x.dtype() != DType::F32 {
        return f(x);
    }
    let inputs: Vec<Tensor> = std::iter::once(x.clone()).chain(params.iter().cloned()).collect();
    apply_one(Recomputed { f, params }, &inputs.iter().collect::<Vec<_>>())
}

struct Recomputed<F> {
    f: F,
    params: Vec<Tensor>,
}

impl<F: Fn(&Tensor) -> Result<Tensor> + Send + Sync + 'static> Op for Recomputed<F> {
    fn name(&self) -> &'static str {
        "recomputed"
    }

    fn reference(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
        Ok(vec![(self.f)(&inputs[0])?])
    }

    fn cpu_forward(&self, inputs: &[View], _: bool) -> Result<Forward> {
        let x = Tensor::from_slice(inputs[0].f32()?, inputs[0].dims(), &Device::Cpu)?;
        let y = (self.f)(&x)?;
        Ok(Forward {
            outputs: vec![Output { data: y.flatten_all()?.to_vec1()?, shape: y.shape().clone() }],
            saved: vec![],
        })
    }

    fn cpu_backward(&self, pass: &Backward) -> Result<Vec<Option<Vec<f32>>>> {
        let Some(grad) = &pass.grads[0] else { bail!("recomputed: no gradient") };
        let x = Var::from_slice(pass.inputs[0].f32()?, pass.inputs[0].dims(), &Device::Cpu)?;
        let grad = Tensor::from_slice(grad.f32()?, grad.dims(), &Device::Cpu)?;
        let again = || backward_from(&(self.f)(&x)?, &grad);
        // In the forward pass the type was in force.
        let found = if bf16::is_on() { autocast(DType::BF16, again)? } else { again()? };
        let of = |(i, t): (usize, &Tensor)| match found.get(t).filter(|_| pass.needs[i]) {
            Some(grad) => Ok(Some(grad.flatten_all()?.to_vec1()?)),
            None => Ok(None),
        };
        std::iter::once(x.as_tensor()).chain(&self.params).enumerate().map(of).collect()
    }
}

#[cfg(test)]
mod tests {
    use zoo_kernels::backward;
    use zoo_kernels::check::random;

    use super::*;
    use crate::ops::{Activation, linear};

    #[test]
    fn gradients_are_the_same_bits() -> Result<()> {
        let w = [Var::from_tensor(&random(1, &[7, 5])?)?, Var::from_tensor(&random(2, &[5, 7])?)?];
        let x = Var::from_tensor(&random(3, &[4, 5])?)?;
        let run = |on: bool, dtype: DType| -> Result<Vec<Vec<f32>>> {
            let pass = || {
                let [first, second] = [0, 1].map(|i| w[i].as_tensor().clone());
                let params = vec![first.clone(), second.clone()];
                let part = move |x: &Tensor| {
                    let h = linear(x, &first, None, Activation::Silu)?;
                    linear(&h, &second, None, Activation::Identity)
                };
                // Something before it and behind it.
                let y = recomputed(
                    &linear(&x, &w[1].t()?.contiguous()?, None, Activation::Identity)?.narrow(1, 0, 5)?,
                    params,
                    part,
                )?;
                linear(&y, &w[0], None, Activation::Gelu)?.sqr()?.sum_all()
            };
            let loss = with_recompute(on, || autocast(dtype, pass))?;
            let grads = backward(&loss)?;
            let all = [x.as_tensor(), w[0].as_tensor(), w[1].as_tensor()];
            let of = |t: &Tensor| grads.get(t).map_or(Ok(vec![]), |g| g.flatten_all()?.to_vec1());
            all.into_iter().map(of).chain([loss.reshape(1)?.to_vec1()]).collect()
        };
        for dtype in [DType::F32, DType::BF16] {
            let (kept, again) = (run(false, dtype)?, run(true, dtype)?);
            assert!(kept.iter().all(|g| !g.is_empty()), "{dtype:?}");
            assert_eq!(kept, again, "{dtype:?}");
        }
        assert_ne!(run(true, DType::F32)?, run(true, DType::BF16)?);
        Ok(())
    }

    #[test]
    fn a_frozen_parameter_gets_no_gradient_and_an_error_comes_through() -> Result<()> {
        let (frozen, x) = (random(1, &[5, 5])?, Var::from_tensor(&random(2, &[3, 5])?)?);
        let weight = frozen.clone();
        let part = move |x: &Tensor| linear(x, &weight, None, Activation::Identity);
        let y = with_recompute(true, || recomputed(&x, vec![frozen.clone()], part))?;
        let grads = backward(&y.sqr()?.sum_all()?)?;
        assert!(grads.get(&x).is_some() && grads.get(&frozen).is_none());
        let failing = |_: &Tensor| bail!("no such thing");
        assert!(with_recompute(true, || recomputed(&x, vec![], failing)).is_err());
        Ok(())
    }
}
