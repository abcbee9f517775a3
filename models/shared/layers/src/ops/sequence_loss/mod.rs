//! The parts of a loss of sequences: how far they are off, how sparse and how smooth they are.
//!
//! With o (b, t, c) the prediction, y the target and N = b·t:
//!
//! ```text
//! error       E = 1/N Σ (o - y)²                      dE/do = 2/N (o - y)
//! sparsity    S = 1/N Σ |o|                           dS/do = 1/N sign(o), 0 at 0
//! smoothness  M = 1/N Σ over t ≥ 1 of (o_t - o_t-1)²  dM/do = 2/N ((o_t - o_t-1) - (o_t+1 - o_t)), without what is not there
//! loss        L = w · (E, S, M)
//! ```
//!
//! A row's sums are f32 by lanes, those over rows f64 in order. Nothing is kept but the inputs.

mod cpu;
#[cfg(test)]
mod tests;

use candle_core::{Result, Shape, Tensor, bail};
use zoo_kernels::gpu::{Arg, Array, Gpu, Grid, Module, THREADS};
use zoo_kernels::{Backward, Forward, GpuForward, Op, Output, View, apply_one, module};

const KERNELS: Module = module!("sequence_loss");

/// Its output (4) is L, E, S and M.
#[derive(Clone)]
struct SequenceLoss {
    weights: [f32; 3],
}

/// Squared error, magnitude and squared difference in time of a `prediction` (b, t, c), summed over features and averaged
/// over samples and time steps: their sum by `weights`, a scalar, and the three (3) in this order. `target` has the same
/// shape.
///
/// # Errors
/// Other shapes, or no elements.
pub fn sequence_loss(prediction: &Tensor, target: &Tensor, weights: [f32; 3]) -> Result<(Tensor, Tensor)> {
    let (b, t, c) = prediction.dims3()?;
    if target.dims() != prediction.dims() {
        bail!("sequence loss: prediction {:?} and target {:?} differ in shape", prediction.dims(), target.dims())
    }
    if b * t * c == 0 {
        bail!("sequence loss: no elements")
    }
    let all = apply_one(SequenceLoss { weights }, &[prediction, target])?;
    Ok((all.narrow(0, 0, 1)?.reshape(())?, all.narrow(0, 1, 3)?))
}

impl Op for SequenceLoss {
    fn name(&self) -> &'static str {
        "sequence loss"
    }

    fn wide(&self) -> bool {
        true
    }

    fn reference(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
        let (o, y) = (&inputs[0], &inputs[1]);
        let (b, t, _) = o.dims3()?;
        let error = (o - y)?.sqr()?.sum_all()?;
        // |o|, with the slope 0 at 0.
        let sparsity = (o * o.detach().sign()?)?.sum_all()?;
        let smoothness = match t {
            1 => sparsity.zeros_like()?,
            _ => (o.narrow(1, 1, t - 1)? - o.narrow(1, 0, t - 1)?)?.sqr()?.sum_all()?,
        };
        let [w0, w1, w2] = self.weights.map(f64::from);
        let total = ((&error * w0)? + (&sparsity * w1)? + (&smoothness * w2)?)?;
        Ok(vec![(Tensor::stack(&[total, error, sparsity, smoothness], 0)? / (b * t) as f64)?])
    }

    fn cpu_forward(&self, inputs: &[View], _: bool) -> Result<Forward> {
        let &[b, t, c] = inputs[0].dims() else { bail!("sequence loss: expected three dimensions") };
        let parts = cpu::forward([b, t, c], inputs[0].f32()?, inputs[1].f32()?)?;
        let total = self.weights.iter().zip(&parts).map(|(w, part)| w * part).sum();
        let data = [vec![total], parts].concat();
        Ok(Forward { outputs: vec![Output { data, shape: Shape::from(4) }], saved: vec![] })
    }

    fn cpu_backward(&self, pass: &Backward) -> Result<Vec<Option<Vec<f32>>>> {
        let &[b, t, c] = pass.inputs[0].dims() else { bail!("sequence loss: expected three dimensions") };
        let Some(grad) = &pass.grads[0] else { bail!("sequence loss: no gradient") };
        let (o, y, grad) = (pass.inputs[0].f32()?, pass.inputs[1].f32()?, grad.f32()?);
        let part = |i: usize| (grad[0] * self.weights[i] + grad[1 + i]) / (b * t) as f32;
        let of_target = || o.iter().zip(y).map(|(o, y)| 2. * part(0) * (y - o)).collect();
        Ok(vec![
            if pass.needs[0] { Some(cpu::backward([b, t, c], o, y, [part(0), part(1), part(2)])?) } else { None },
            pass.needs[1].then(of_target),
        ])
    }

    fn gpu_forward(&self, gpu: &Gpu, inputs: &[View], _: bool) -> Result<Option<GpuForward>> {
        let &[b, t, c] = inputs[0].dims() else { bail!("sequence loss: expected three dimensions") };
        let mut sums = gpu.floats(3 * b * t)?;
        let args = &mut [
            Arg::Read(inputs[0].slice()?),
            Arg::Read(inputs[1].slice()?),
            Arg::Write(&mut sums),
            Arg::Count(b * t),
            Arg::Count(t),
            Arg::Count(c),
        ];
        // SAFETY: both inputs are (b, t, c), as was checked, and there are three sums for each row.
        unsafe { gpu.launch(&KERNELS, "sequence_loss_forward", Grid::rows(b * t, c), args)? };
        let mut all = gpu.array(4)?;
        let mut args = vec![Arg::Read(sums.slice()), Arg::Write(&mut all), Arg::Count(b * t)];
        args.extend(self.weights.map(|w| Arg::Float(w.into())));
        // SAFETY: there are three sums for each row, and four results.
        unsafe { gpu.launch(&KERNELS, "sequence_loss_total", Grid { groups: [1, 1], threads: THREADS }, &mut args)? };
        Ok(Some(GpuForward { outputs: vec![(all, Shape::from(4))], saved: vec![] }))
    }

    fn gpu_backward(&self, gpu: &Gpu, pass: &Backward<Array>) -> Result<Vec<Option<Array>>> {
        let Some(grad) = &pass.grads[0] else { bail!("sequence loss: no gradient") };
        let &[b, t, c] = pass.inputs[0].dims() else { bail!("sequence loss: expected three dimensions") };
        let n = b * t * c;
        let side = |kernel: &str, grid: Grid, counts: &[usize], weights: &[f32]| {
            let mut gradient = gpu.array(n)?;
            let mut args = vec![
                Arg::Read(pass.inputs[0].slice()?),
                Arg::Read(pass.inputs[1].slice()?),
                Arg::Read(grad.slice()?),
                Arg::Write(&mut gradient),
            ];
            args.extend(counts.iter().map(|n| Arg::Count(*n)));
            args.extend(weights.iter().map(|w| Arg::Float((*w).into())));
            // SAFETY: both inputs and the gradient are (b, t, c); the gradients of the four results are four numbers.
            unsafe { gpu.launch(&KERNELS, kernel, grid, &mut args)? };
            Ok::<_, candle_core::Error>(gradient)
        };
        let prediction = || side("sequence_loss_backward", Grid::rows(b * t, c), &[b * t, t, c], &self.weights);
        let target = || side("sequence_loss_target", Grid::each(n), &[n, b * t], &self.weights[..1]);
        Ok(vec![pass.needs[0].then(prediction).transpose()?, pass.needs[1].then(target).transpose()?])
    }
}
