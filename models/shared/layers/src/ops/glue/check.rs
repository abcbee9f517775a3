//! The checker of ops: kernel against `reference()`, `reference()` against central differences.
//!
//! A loss Σ ⟨output, random direction⟩ makes one scalar of all outputs. Then
//!
//! 1. the f64 reference's gradients are compared with central differences of its loss;
//! 2. the f32 kernel's outputs and gradients are compared with the f64 reference's, at every SIMD level of the
//!    machine: the error may be twice that of the plain f32 graph, which calibrates itself to the shape at hand. As
//!    one rounding may be lucky, the plain graph's error is the largest over a few inputs next to the given ones.

use candle_core::{DType, Device, Result, Tensor, Var, bail};

use super::node::{Op, apply};
use super::simd::{Level, levels, with_level};
use crate::random::{Purpose, Stream};

/// What is accepted for a dtype.
#[derive(Clone, Copy, Debug)]
pub struct Tolerance {
    /// The fused error may be this many times the naive graph's …
    pub times_naive: f64,
    /// … or this much relative to the largest magnitude of the tensor, where the naive graph happens to be exact.
    pub relative: f64,
}

/// The one table of tolerances: f32 kernels.
pub const F32: Tolerance = Tolerance { times_naive: 2., relative: 1.3e-6 };
/// Step of the central differences in f64.
pub const STEP: f64 = 1e-6;
/// Central differences: relative and absolute tolerance.
pub const DIFFERENCES: (f64, f64) = (1e-3, 1e-5);
/// How many neighbouring inputs show the plain graph's error, and how far away they are (relative).
const NEIGHBOURS: (usize, f64) = (8, 1e-3);
/// Central differences are taken of at most this many elements of an input.
const PROBES: usize = 10;

/// Standard normal numbers in the given shape, f32 on the CPU: the same for the same seed.
pub fn random(seed: u64, dims: &[usize]) -> Result<Tensor> {
    let mut stream = Stream::new(seed, Purpose::Simulation, 0, 0);
    let data: Vec<f32> = (0..dims.iter().product()).map(|_| stream.normal() as f32).collect();
    Tensor::from_vec(data, dims, &Device::Cpu)
}

struct Run {
    dims: Vec<Vec<usize>>,
    outputs: Vec<Vec<f64>>,
    grads: Vec<Option<Vec<f64>>>,
}

fn values(t: &Tensor) -> Result<Vec<f64>> {
    t.to_dtype(DType::F64)?.flatten_all()?.to_vec1()
}

/// Runs `f` on the inputs in `dtype`, with gradients of those marked in `wants`.
fn run(
    f: &dyn Fn(&[Tensor]) -> Result<Vec<Tensor>>,
    inputs: &[Tensor],
    wants: &[bool],
    dtype: DType,
) -> Result<(Run, f64)> {
    let mut tensors = vec![];
    for (t, want) in inputs.iter().zip(wants) {
        let t = if t.dtype().is_float() { t.to_dtype(dtype)? } else { t.clone() };
        tensors.push(if *want { Var::from_tensor(&t)?.into_inner() } else { t });
    }
    let outputs = f(&tensors)?;
    let mut loss = Tensor::zeros((), dtype, &Device::Cpu)?;
    for (i, o) in outputs.iter().enumerate() {
        loss = (loss + (o * random(1000 + i as u64, o.dims())?.to_dtype(dtype)?)?.sum_all()?)?;
    }
    let grads = if wants.contains(&true) { Some(loss.backward()?) } else { None };
    let grad = |t: &Tensor| grads.as_ref().and_then(|g| g.get(t)).map(values).transpose();
    let grads = tensors.iter().zip(wants).map(|(t, w)| if *w { grad(t) } else { Ok(None) }).collect::<Result<_>>()?;
    Ok((
        Run {
            dims: outputs.iter().map(|o| o.dims().to_vec()).collect(),
            outputs: outputs.iter().map(values).collect::<Result<_>>()?,
            grads,
        },
        loss.to_dtype(DType::F64)?.to_scalar()?,
    ))
}

fn error(a: &[f64], b: &[f64]) -> f64 {
    let finite = a.iter().zip(b).filter(|(_, b)| b.is_finite());
    finite.map(|(a, b)| (a - b).abs()).fold(0., f64::max)
}

fn compare(what: &str, fused: &[f64], plain: f64, exact: &[f64]) -> Result<()> {
    if fused.len() != exact.len() {
        bail!("{what}: {} elements, expected {}", fused.len(), exact.len())
    }
    let scale = exact.iter().filter(|v| v.is_finite()).fold(0f64, |m, v| m.max(v.abs()));
    let got = error(fused, exact);
    let allowed = (F32.times_naive * plain).max(F32.relative * scale).max(1e-18);
    // A NaN would compare as no error at all; what is no finite number has to be the same.
    let same = |(f, e): (&f64, &f64)| f.is_finite() && e.is_finite() || f == e || f.is_nan() && e.is_nan();
    if got > allowed || !fused.iter().zip(exact).all(same) {
        bail!("{what}: error {got:.3e}, allowed {allowed:.3e} (plain f32 graph {plain:.3e}, largest value {scale:.3e})")
    }
    Ok(())
}

/// Checks `op` on `inputs` (f32 or integers, on the CPU); `wants` marks those that get a gradient.
///
/// # Errors
/// Names the first output or gradient that is off, with its error and what was allowed.
pub fn check<O: Op + Clone>(op: &O, inputs: &[Tensor], wants: &[bool]) -> Result<()> {
    let reference = |x: &[Tensor]| op.reference(x);
    let (exact, _) = run(&reference, inputs, wants, DType::F64)?;
    let mut naive = Naive { outputs: vec![0.; exact.outputs.len()], grads: vec![0.; inputs.len()] };
    for n in 0..NEIGHBOURS.0 {
        let near = |(i, t): (usize, &Tensor)| -> Result<Tensor> {
            let factor = random((n * inputs.len() + i) as u64, t.dims())?.affine(NEIGHBOURS.1, 1.)?;
            if n > 0 && t.dtype().is_float() { t * factor } else { Ok(t.clone()) }
        };
        let inputs = inputs.iter().enumerate().map(near).collect::<Result<Vec<_>>>()?;
        naive.include(&run(&reference, &inputs, wants, DType::F32)?.0, &run(&reference, &inputs, wants, DType::F64)?.0);
    }
    differences(op, inputs, wants, &exact)?;
    for level in levels() {
        let fused = with_level(level, || {
            run(&|x| apply(op.clone(), &x.iter().collect::<Vec<_>>()), inputs, wants, DType::F32)
        })?
        .0;
        compare_runs(op.name(), level, &fused, &naive, &exact)?;
        // Without gradients nothing is saved, which is a path of its own.
        let eval = with_level(level, || {
            run(&|x| apply(op.clone(), &x.iter().collect::<Vec<_>>()), inputs, &vec![false; inputs.len()], DType::F32)
        })?
        .0;
        if eval.outputs != fused.outputs {
            bail!("{} at {}: outputs differ between training and inference", op.name(), level.name())
        }
    }
    Ok(())
}

/// Checks that what `run` computes is the same bits on 1, 2, 3 and 8 threads.
///
/// # Errors
/// Names the number of threads that differs, or is `run`'s.
pub fn same_bits_on_any_threads(run: impl Fn() -> Result<Vec<Vec<f32>>> + Sync) -> Result<()> {
    let on = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().map_err(candle_core::Error::wrap)?;
        pool.install(&run)
    };
    let one = on(1)?;
    for threads in [2, 3, 8] {
        if on(threads)? != one {
            bail!("{threads} threads give other bits than one")
        }
    }
    Ok(())
}

/// The plain f32 graph's largest error of each output and gradient.
struct Naive {
    outputs: Vec<f64>,
    grads: Vec<f64>,
}

impl Naive {
    fn include(&mut self, plain: &Run, exact: &Run) {
        for (worst, (plain, exact)) in self.outputs.iter_mut().zip(plain.outputs.iter().zip(&exact.outputs)) {
            *worst = worst.max(error(plain, exact));
        }
        for (worst, (plain, exact)) in self.grads.iter_mut().zip(plain.grads.iter().zip(&exact.grads)) {
            if let (Some(plain), Some(exact)) = (plain, exact) {
                *worst = worst.max(error(plain, exact));
            }
        }
    }
}

fn compare_runs(name: &str, level: Level, fused: &Run, naive: &Naive, exact: &Run) -> Result<()> {
    let level = level.name();
    if fused.dims != exact.dims {
        bail!("{name} at {level}: outputs of shapes {:?}, expected {:?}", fused.dims, exact.dims)
    }
    for (i, exact) in exact.outputs.iter().enumerate() {
        compare(&format!("{name} at {level}: output {i}"), &fused.outputs[i], naive.outputs[i], exact)?;
    }
    for (i, exact) in exact.grads.iter().enumerate() {
        match (&fused.grads[i], exact) {
            (Some(f), Some(e)) => compare(&format!("{name} at {level}: gradient of input {i}"), f, naive.grads[i], e)?,
            (None, Some(_)) => bail!("{name} at {level}: no gradient for input {i}"),
            // No gradient, as of nothing, is one of zeros.
            (Some(f), None) if f.iter().any(|g| *g != 0.) => {
                bail!("{name} at {level}: a gradient for input {i}, which the reference has not")
            }
            _ => {}
        }
    }
    Ok(())
}

fn differences<O: Op>(op: &O, inputs: &[Tensor], wants: &[bool], exact: &Run) -> Result<()> {
    let none = vec![false; inputs.len()];
    for (i, want) in wants.iter().enumerate() {
        let (true, Some(grad)) = (*want, &exact.grads[i]) else { continue };
        let (dims, base) = (inputs[i].dims(), values(&inputs[i])?);
        let loss = |at: usize, delta: f64| -> Result<f64> {
            let mut moved = base.clone();
            moved[at] += delta;
            let mut all: Vec<Tensor> = inputs.to_vec();
            all[i] = Tensor::from_vec(moved, dims, &Device::Cpu)?;
            Ok(run(&|x| op.reference(x), &all, &none, DType::F64)?.1)
        };
        let stride = base.len().div_ceil(PROBES).max(1);
        for at in (0..base.len()).step_by(stride) {
            let slope = (loss(at, STEP)? - loss(at, -STEP)?) / (2. * STEP);
            let (rtol, atol) = DIFFERENCES;
            // A NaN is not close.
            let close = (grad[at] - slope).abs() <= atol + rtol * slope.abs();
            if !close {
                let name = op.name();
                bail!("{name}: reference gradient of input {i} at {at} is {}, central difference {slope}", grad[at])
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::node::{Backward, Forward, Output, View};
    use super::*;

    /// x², whose backward is off by the given factor.
    #[derive(Clone)]
    struct Square {
        backward: f32,
        reference_cut: bool,
    }

    impl Op for Square {
        fn name(&self) -> &'static str {
            "square"
        }

        fn reference(&self, x: &[Tensor]) -> Result<Vec<Tensor>> {
            let x = &x[0];
            Ok(vec![if self.reference_cut { (x * x.detach())? } else { x.sqr()? }])
        }

        fn cpu_forward(&self, x: &[View], _: bool) -> Result<Forward> {
            let data = x[0].f32()?.iter().map(|v| v * v).collect();
            Ok(Forward { outputs: vec![Output { data, shape: x[0].dims().into() }], saved: vec![] })
        }

        fn cpu_backward(&self, pass: &Backward) -> Result<Vec<Option<Vec<f32>>>> {
            let Some(grad) = &pass.grads[0] else { bail!("no gradient") };
            let dx = pass.inputs[0].f32()?.iter().zip(grad.f32()?).map(|(x, g)| self.backward * x * g).collect();
            Ok(vec![Some(dx)])
        }
    }

    #[test]
    fn a_right_backward_passes_and_a_broken_one_fails() -> Result<()> {
        let x = [random(1, &[5, 3])?];
        check(&Square { backward: 2., reference_cut: false }, &x, &[true])?;
        let slightly_off = check(&Square { backward: 2. + 1e-5, reference_cut: false }, &x, &[true]);
        assert!(slightly_off.unwrap_err().to_string().contains("gradient of input 0"));
        let cut = check(&Square { backward: 1., reference_cut: true }, &x, &[true]);
        assert!(cut.unwrap_err().to_string().contains("central difference"));
        Ok(())
    }
}
