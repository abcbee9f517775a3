//! Regression losses: summed over the outputs of a sample, averaged over the batch.
//!
//! With e = prediction - target and B the first dimension (1 for a scalar):
//!
//! ```text
//! loss      L = 1/B Σ l(e)       squared  l = e²              dl/de = 2e
//!                                absolute l = |e|             dl/de = sign(e), 0 at 0
//!                                Huber    l = e²/2            for |e| ≤ δ, else δ(|e| - δ/2);  dl/de = clamp(e, ±δ)
//! ```
//!
//! The sum is accumulated in f64, by eight lanes within chunks and over the chunks in order.

#[cfg(test)]
mod tests;

use std::sync::OnceLock;

use candle_core::{Result, Shape, Tensor, bail};

use rayon::prelude::*;
use zoo_kernels::cpu::parallel;
use zoo_kernels::gpu::{Arg, Array, Gpu, Grid, Module};
use zoo_kernels::{Backward, Forward, GpuForward, Op, Output, View, apply_one, module};

/// Elements a thread takes at a time.
const CHUNK: usize = 16 * 1024;

const KERNELS: Module = module!("regression_loss");

#[derive(Clone, Copy, Debug)]
enum Kind {
    Squared,
    Absolute,
    Huber(f64),
}

#[derive(Clone)]
struct RegressionLoss {
    kind: Kind,
}

fn loss(prediction: &Tensor, target: &Tensor, kind: Kind) -> Result<Tensor> {
    if prediction.dims() != target.dims() {
        bail!("loss: prediction {:?} and target {:?} differ in shape", prediction.dims(), target.dims())
    }
    if prediction.elem_count() == 0 {
        bail!("loss: no samples")
    }
    apply_one(RegressionLoss { kind }, &[prediction, target])
}

/// Mean squared error of (batch, …) tensors: squares summed over a sample's outputs, averaged over the batch.
pub fn mse(prediction: &Tensor, target: &Tensor) -> Result<Tensor> {
    loss(prediction, target, Kind::Squared)
}

/// Mean absolute error, reduced as [`mse`].
pub fn mae(prediction: &Tensor, target: &Tensor) -> Result<Tensor> {
    loss(prediction, target, Kind::Absolute)
}

/// Huber's loss with threshold `delta` > 0 (Huber 1964; `torch.nn.HuberLoss`), reduced as [`mse`].
pub fn huber(prediction: &Tensor, target: &Tensor, delta: f64) -> Result<Tensor> {
    if delta.is_nan() || delta <= 0. {
        bail!("huber: expected delta > 0, got {delta}")
    }
    loss(prediction, target, Kind::Huber(delta))
}

impl RegressionLoss {
    /// Its number in the kernels, and δ.
    fn number(&self) -> (u32, f64) {
        match self.kind {
            Kind::Squared => (0, 0.),
            Kind::Absolute => (1, 0.),
            Kind::Huber(delta) => (2, delta),
        }
    }

    fn value(&self, e: f64) -> f64 {
        match self.kind {
            Kind::Squared => e * e,
            Kind::Absolute => e.abs(),
            Kind::Huber(delta) if e.abs() > delta => delta * (e.abs() - 0.5 * delta),
            Kind::Huber(_) => 0.5 * e * e,
        }
    }

    /// The sum over a chunk, by eight lanes.
    fn sum(&self, p: &[f32], t: &[f32]) -> f64 {
        let value = |(p, t): (&f32, &f32)| self.value(f64::from(*p) - f64::from(*t));
        let (whole, rest) = (p.chunks_exact(8).zip(t.chunks_exact(8)), p.len() / 8 * 8);
        let mut lanes = [0f64; 8];
        for (p, t) in whole {
            lanes.iter_mut().zip(p.iter().zip(t)).for_each(|(lane, pair)| *lane += value(pair));
        }
        lanes.iter().sum::<f64>() + p[rest..].iter().zip(&t[rest..]).map(value).sum::<f64>()
    }

    fn slope(&self, e: f32) -> f32 {
        match self.kind {
            Kind::Squared => 2. * e,
            Kind::Absolute if e == 0. => 0.,
            Kind::Absolute => e.signum(),
            Kind::Huber(delta) => e.clamp(-delta as f32, delta as f32),
        }
    }
}

fn batch(dims: &[usize]) -> usize {
    dims.first().copied().unwrap_or(1)
}

impl Op for RegressionLoss {
    fn name(&self) -> &'static str {
        "regression loss"
    }

    fn wide(&self) -> bool {
        true
    }

    fn reference(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
        let e = (&inputs[0] - &inputs[1])?;
        let each = match self.kind {
            Kind::Squared => e.sqr()?,
            // The slope of abs() at 0 is not 0.
            Kind::Absolute => (&e * e.detach().sign()?)?,
            // With c = clamp(|e|, 0, δ): c (|e| - c/2) is e²/2 up to δ and δ(|e| - δ/2) beyond.
            Kind::Huber(delta) => {
                let a = e.abs()?;
                let c = a.minimum(delta)?;
                (&c * (&a - (&c * 0.5)?)?)?
            }
        };
        Ok(vec![(each.sum_all()? / batch(e.dims()) as f64)?])
    }

    fn cpu_forward(&self, inputs: &[View], _: bool) -> Result<Forward> {
        let (p, t) = (inputs[0].f32()?, inputs[1].f32()?);
        // Chunks by themselves, then their sums in order.
        let sums: Vec<OnceLock<f64>> = vec![OnceLock::new(); p.len().div_ceil(CHUNK)];
        parallel::for_each(sums.len(), |i| {
            let of = i * CHUNK..p.len().min((i + 1) * CHUNK);
            sums[i].get_or_init(|| self.sum(&p[of.clone()], &t[of]));
        });
        let sum: f64 = sums.iter().filter_map(OnceLock::get).sum();
        let mean = (sum / batch(inputs[0].dims()) as f64) as f32;
        Ok(Forward { outputs: vec![Output { data: vec![mean], shape: Shape::from(()) }], saved: vec![] })
    }

    fn cpu_backward(&self, pass: &Backward) -> Result<Vec<Option<Vec<f32>>>> {
        let Some(grad) = &pass.grads[0] else { bail!("regression loss: no gradient") };
        let scale = grad.f32()?[0] / batch(pass.inputs[0].dims()) as f32;
        let (p, t) = (pass.inputs[0].f32()?, pass.inputs[1].f32()?);
        let side = |sign: f32| {
            let mut slopes = vec![0f32; p.len()];
            let each = slopes.par_chunks_mut(CHUNK).zip(p.par_chunks(CHUNK).zip(t.par_chunks(CHUNK)));
            each.for_each(|(slopes, (p, t))| {
                slopes.iter_mut().zip(p.iter().zip(t)).for_each(|(s, (p, t))| *s = sign * scale * self.slope(p - t));
            });
            slopes
        };
        Ok(vec![pass.needs[0].then(|| side(1.)), pass.needs[1].then(|| side(-1.))])
    }

    fn gpu_forward(&self, gpu: &Gpu, inputs: &[View], _: bool) -> Result<Option<GpuForward>> {
        let (n, (kind, delta)) = (inputs[0].count(), self.number());
        let chunks = n.div_ceil(CHUNK);
        let mut sums = gpu.floats(chunks)?;
        let args = &mut [
            Arg::Read(inputs[0].slice()?),
            Arg::Read(inputs[1].slice()?),
            Arg::Write(&mut sums),
            Arg::Count(n),
            Arg::Word(kind),
            Arg::Float(delta),
            Arg::Count(CHUNK),
        ];
        // SAFETY: both inputs have n elements, as was checked, and there is a sum for each chunk.
        unsafe { gpu.launch(&KERNELS, "regression_loss_forward", Grid::rows(chunks, CHUNK), args)? };
        let loss = gpu.totals(&sums, 1, 1. / batch(inputs[0].dims()) as f64)?;
        Ok(Some(GpuForward { outputs: vec![(loss, Shape::from(()))], saved: vec![] }))
    }

    fn gpu_backward(&self, gpu: &Gpu, pass: &Backward<Array>) -> Result<Vec<Option<Array>>> {
        let Some(grad) = &pass.grads[0] else { bail!("regression loss: no gradient") };
        let (n, (kind, delta)) = (pass.inputs[0].count(), self.number());
        let side = |sign: f64| {
            let mut gradient = gpu.array(n)?;
            let args = &mut [
                Arg::Read(pass.inputs[0].slice()?),
                Arg::Read(pass.inputs[1].slice()?),
                Arg::Read(grad.slice()?),
                Arg::Write(&mut gradient),
                Arg::Count(n),
                Arg::Word(kind),
                Arg::Float(delta),
                Arg::Float(sign / batch(pass.inputs[0].dims()) as f64),
            ];
            // SAFETY: both inputs and the result have n elements; the gradient of the loss is one number.
            unsafe { gpu.launch(&KERNELS, "regression_loss_backward", Grid::each(n), args)? };
            Ok(gradient)
        };
        [1., -1.].into_iter().zip(pass.needs).map(|(sign, needs)| needs.then(|| side(sign)).transpose()).collect()
    }
}
