//! The checker of ops: kernel against `reference()`, `reference()` against central differences.
//!
//! A loss Σ ⟨output, random direction⟩ makes one scalar of all outputs. Then
//!
//! 1. the f64 reference's gradients are compared with central differences of its loss;
//! 2. the f32 kernel's outputs and gradients are compared with the f64 reference's, at every SIMD level of the
//!    machine: the error may be twice that of the plain f32 graph, which calibrates itself to the shape at hand. As
//!    one rounding may be lucky, the plain graph's error is the largest over a few inputs next to the given ones. The
//!    bits have to be the same on 1, 2, 3, 5 and 8 threads;
//! 3. the same with products in bf16, in each way that the machine has, held to what bf16 can do;
//! 4. the same for the kernels of GPUs, in f32, bf16 and f16, on every device that is compiled in. The crate
//!    `zoo-kernels-emulator` has the same check with their GPU kernels on the CPU.

use std::sync::OnceLock;

use candle_core::{DType, Device, Result, Tensor, Var, bail};
use rayon::{ThreadPool, ThreadPoolBuildError, ThreadPoolBuilder};

use crate::autograd::{Op, apply, autocast};
use crate::cpu::simd::{levels, units, with_bf16, with_level};
use crate::random::{Purpose, Stream};

/// What is accepted for a dtype.
#[derive(Clone, Copy, Debug)]
pub struct Tolerance {
    /// The fused error may be this many times the naive graph's …
    pub times_naive: f64,
    /// … or this much relative to the largest magnitude of the tensor, where the naive graph happens to be exact.
    pub relative: f64,
}

/// The one table of tolerances, by the type of the elements.
pub const fn tolerance(dtype: DType) -> Tolerance {
    let relative = match dtype {
        DType::BF16 => 1. / 256.,
        DType::F16 => 1. / 2048.,
        _ => 1.3e-6,
    };
    Tolerance { times_naive: 2., relative }
}
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

/// Runs `f` on the inputs in `dtype`, with gradients of those marked in `wants`. Inputs and the direction of the loss are
/// such as `narrow` can hold.
fn run(
    f: &dyn Fn(&[Tensor]) -> Result<Vec<Tensor>>,
    inputs: &[Tensor],
    wants: &[bool],
    dtype: DType,
    narrow: DType,
    device: &Device,
) -> Result<(Run, f64)> {
    let mut tensors = vec![];
    for (t, want) in inputs.iter().zip(wants) {
        let t = if t.dtype().is_float() { t.to_dtype(narrow)?.to_dtype(dtype)? } else { t.clone() };
        let t = t.to_device(device)?;
        tensors.push(if *want { Var::from_tensor(&t)?.into_inner() } else { t });
    }
    let outputs = f(&tensors)?;
    let mut loss = Tensor::zeros((), dtype, device)?;
    for (i, o) in outputs.iter().enumerate() {
        let direction = random(1000 + i as u64, o.dims())?.to_dtype(narrow)?.to_dtype(dtype)?.to_device(device)?;
        loss = (loss + (o * direction)?.sum_all()?)?;
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

fn compare(what: &str, fused: &[f64], plain: f64, exact: &[f64], dtype: DType) -> Result<()> {
    if fused.len() != exact.len() {
        bail!("{what}: {} elements, expected {}", fused.len(), exact.len())
    }
    let scale = exact.iter().filter(|v| v.is_finite()).fold(0f64, |m, v| m.max(v.abs()));
    let got = error(fused, exact);
    let Tolerance { times_naive, relative } = tolerance(dtype);
    let allowed = (times_naive * plain).max(relative * scale).max(1e-18);
    // A NaN would compare as no error at all; what is no finite number has to be the same.
    let same = |(f, e): (&f64, &f64)| f.is_finite() && e.is_finite() || f == e || f.is_nan() && e.is_nan();
    if got > allowed || !fused.iter().zip(exact).all(same) {
        bail!("{what}: error {got:.3e}, allowed {allowed:.3e} (plain graph {plain:.3e}, largest value {scale:.3e})")
    }
    Ok(())
}

/// Checks `op` on `inputs` (f32 or integers, on the CPU); `wants` marks those that get a gradient.
///
/// # Errors
/// Names the first output or gradient that is off, with its error and what was allowed.
pub fn check<O: Op + Clone>(op: &O, inputs: &[Tensor], wants: &[bool]) -> Result<()> {
    if inputs.len() != wants.len() {
        bail!("{}: {} inputs, and {} marks of which get a gradient", op.name(), inputs.len(), wants.len())
    }
    let expected = Expected::of(op, inputs, wants, DType::F32)?;
    differences(op, inputs, wants, &expected.exact)?;
    for level in levels() {
        let place = format!("{} at {}", op.name(), level.name());
        with_level(level, || expected.compare(&place, op, &Device::Cpu))?;
        same_bits_on_any_threads(|| with_level(level, || expected.found(op)))
            .map_err(|e| candle_core::Error::msg(format!("{place}: {e}")))?;
    }
    // Where there are many elements, few inputs show the plain graph's error.
    let neighbours = if inputs.iter().map(Tensor::elem_count).sum::<usize>() < 4096 { NEIGHBOURS.0 } else { 2 };
    let rounded = Expected::beside(op, inputs, wants, DType::BF16, neighbours)?;
    for unit in units() {
        let place = format!("{} with products in bf16 ({unit:?})", op.name());
        let compare = || rounded.compare_stored(&place, op, &Device::Cpu, DType::F32);
        with_bf16(unit, || autocast(DType::BF16, compare))?;
    }
    for device in devices()? {
        for dtype in GPU_TYPES {
            let place = format!("{} on {:?} in {dtype:?}", op.name(), device.location());
            Expected::of(op, inputs, wants, dtype)?.compare(&place, op, &device)?;
        }
    }
    Ok(())
}

/// The types that GPU kernels compute in.
pub const GPU_TYPES: [DType; 3] = [DType::F32, DType::BF16, DType::F16];

/// The GPUs that this build is for; one that is not there is an error.
fn devices() -> Result<Vec<Device>> {
    let mut devices: Vec<Device> = vec![];
    if cfg!(feature = "cuda") {
        devices.push(Device::new_cuda_with_stream(0)?);
    }
    if cfg!(feature = "metal") {
        devices.push(Device::new_metal(0)?);
    }
    Ok(devices)
}

/// What an op's outputs and gradients have to be on some inputs of one type, by its reference.
pub struct Expected<'a> {
    inputs: &'a [Tensor],
    wants: &'a [bool],
    dtype: DType,
    /// In f64.
    exact: Run,
    naive: Naive,
}

impl<'a> Expected<'a> {
    /// Of `op` on `inputs` (f32 or integers, on the CPU) as `dtype` holds them; `wants` marks those that get a gradient.
    ///
    /// # Errors
    /// Those of the reference.
    pub fn of<O: Op>(op: &O, inputs: &'a [Tensor], wants: &'a [bool], dtype: DType) -> Result<Self> {
        Self::beside(op, inputs, wants, dtype, NEIGHBOURS.0)
    }

    /// With the plain graph's error on so many inputs.
    fn beside<O: Op>(op: &O, inputs: &'a [Tensor], wants: &'a [bool], dtype: DType, neighbours: usize) -> Result<Self> {
        let reference = |x: &[Tensor]| op.reference(x);
        let run =
            |inputs: &[Tensor], wide| run(&reference, inputs, wants, wide, dtype, &Device::Cpu).map(|found| found.0);
        let exact = run(inputs, DType::F64)?;
        let mut naive = Naive { outputs: vec![0.; exact.outputs.len()], grads: vec![0.; inputs.len()] };
        // The errors of narrow types are alike from input to input.
        for n in 0..neighbours {
            let near = |(i, t): (usize, &Tensor)| -> Result<Tensor> {
                let factor = random((n * inputs.len() + i) as u64, t.dims())?.affine(NEIGHBOURS.1, 1.)?;
                if n > 0 && t.dtype().is_float() { t * factor } else { Ok(t.clone()) }
            };
            let inputs = inputs.iter().enumerate().map(near).collect::<Result<Vec<_>>>()?;
            naive.include(&run(&inputs, dtype)?, &run(&inputs, DType::F64)?);
        }
        Ok(Self { inputs, wants, dtype, exact, naive })
    }

    /// What [`apply`] gives on the CPU: outputs and gradients.
    fn found<O: Op + Clone>(&self, op: &O) -> Result<Vec<Vec<f32>>> {
        let fused = |x: &[Tensor]| apply(op.clone(), &x.iter().collect::<Vec<_>>());
        let Run { outputs, grads, .. } = run(&fused, self.inputs, self.wants, self.dtype, self.dtype, &Device::Cpu)?.0;
        let all = outputs.into_iter().chain(grads.into_iter().flatten());
        Ok(all.map(|tensor| tensor.into_iter().map(|v| v as f32).collect()).collect())
    }

    /// Compares what [`apply`] gives on `device`: outputs and gradients, and outputs without gradients, for nothing is saved
    /// then, which is a path of its own. Errors begin with `place`.
    ///
    /// # Errors
    /// Names the first output or gradient that is off, with its error and what was allowed.
    pub fn compare<O: Op + Clone>(&self, place: &str, op: &O, device: &Device) -> Result<()> {
        self.compare_stored(place, op, device, self.dtype)
    }

    /// [`Expected::compare`] with inputs as tensors of a wider type.
    fn compare_stored<O: Op + Clone>(&self, place: &str, op: &O, device: &Device, stored: DType) -> Result<()> {
        let fused = |x: &[Tensor]| apply(op.clone(), &x.iter().collect::<Vec<_>>());
        let found = run(&fused, self.inputs, self.wants, stored, self.dtype, device)?.0;
        compare_runs(place, &found, self)?;
        let none = vec![false; self.inputs.len()];
        let eval = run(&fused, self.inputs, &none, stored, self.dtype, device)?.0;
        // NaN is no number, but the same here.
        let bits =
            |run: &Run| run.outputs.iter().map(|o| o.iter().map(|v| v.to_bits()).collect()).collect::<Vec<Vec<u64>>>();
        if bits(&eval) != bits(&found) {
            bail!("{place}: outputs differ between training and inference")
        }
        Ok(())
    }
}

/// Fewer threads than a machine has and more, even numbers and odd ones.
const THREADS: [usize; 5] = [1, 2, 3, 5, 8];

/// Checks that what `run` computes is the same bits on 1, 2, 3, 5 and 8 threads.
///
/// # Errors
/// Names the number of threads that differs, or is `run`'s.
pub fn same_bits_on_any_threads(run: impl Fn() -> Result<Vec<Vec<f32>>> + Sync) -> Result<()> {
    static POOLS: OnceLock<Vec<std::result::Result<ThreadPool, ThreadPoolBuildError>>> = OnceLock::new();
    let pools = POOLS.get_or_init(|| THREADS.map(|n| ThreadPoolBuilder::new().num_threads(n).build()).into());
    let bits = |pool: &std::result::Result<ThreadPool, ThreadPoolBuildError>| -> Result<Vec<Vec<u32>>> {
        let pool = pool.as_ref().map_err(|e| candle_core::Error::msg(e.to_string()))?;
        // Bits, so that NaN is equal to itself.
        Ok(pool.install(&run)?.into_iter().map(|tensor| tensor.into_iter().map(f32::to_bits).collect()).collect())
    };
    let one = bits(&pools[0])?;
    for (pool, threads) in pools.iter().zip(THREADS).skip(1) {
        if bits(pool)? != one {
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

fn compare_runs(place: &str, fused: &Run, expected: &Expected) -> Result<()> {
    let Expected { dtype, exact, naive, .. } = expected;
    if fused.dims != exact.dims {
        bail!("{place}: outputs of shapes {:?}, expected {:?}", fused.dims, exact.dims)
    }
    for (i, exact) in exact.outputs.iter().enumerate() {
        compare(&format!("{place}: output {i}"), &fused.outputs[i], naive.outputs[i], exact, *dtype)?;
    }
    for (i, exact) in exact.grads.iter().enumerate() {
        match (&fused.grads[i], exact) {
            (Some(f), Some(e)) => compare(&format!("{place}: gradient of input {i}"), f, naive.grads[i], e, *dtype)?,
            (None, Some(_)) => bail!("{place}: no gradient for input {i}"),
            // No gradient, as of nothing, is one of zeros.
            (Some(f), None) if f.iter().any(|g| *g != 0.) => {
                bail!("{place}: a gradient for input {i}, which the reference has not")
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
            Ok(run(&|x| op.reference(x), &all, &none, DType::F64, DType::F64, &Device::Cpu)?.1)
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
    use super::*;
    use crate::autograd::{Backward, Forward, Output, View};

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
