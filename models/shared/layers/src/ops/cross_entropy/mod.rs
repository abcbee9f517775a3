//! Cross-entropy of logits against class numbers, in one pass.
//!
//! With rows z of V logits, targets t, label smoothing ε, and N the number of rows whose target is not ignored:
//!
//! ```text
//! forward   L = 1/N Σ [ln Σ exp z - (1 - ε) z_t - ε/V Σ z]
//! backward  dz = dL/N (softmax z - (1 - ε) [j = t] - ε/V), and 0 in ignored rows
//! ```
//!
//! (Label smoothing as in Szegedy et al. 2016 and `torch.nn.CrossEntropyLoss`.) The sum over rows is in f64, in order.
//! ln Σ exp z of each row is kept; the softmax never is.

mod cpu;
mod of_linear;
#[cfg(test)]
mod tests;

use candle_core::{D, DType, Device, Result, Shape, Tensor, bail};
use zoo_kernels::gpu::{Arg, Array, Gpu, Grid, Module};
use zoo_kernels::{Backward, Forward, GpuForward, Op, Output, View, apply_one, module};

pub use of_linear::linear_cross_entropy;

use super::softmax::exponentials;

/// Options of [`cross_entropy`].
#[derive(Clone, Copy, Debug, Default)]
pub struct CrossEntropyOptions {
    /// ε: the share of the target that is spread evenly over all classes, in [0, 1].
    pub label_smoothing: f64,
    /// Rows with this target do not count.
    pub ignore_index: Option<i64>,
}

const KERNELS: Module = module!("cross_entropy");

#[derive(Clone, Copy, Debug)]
struct CrossEntropy {
    smoothing: f64,
    /// Rows that count.
    count: usize,
}

/// The target of a row that does not count.
const IGNORED: i64 = i64::MIN;

/// The mean over rows of the cross-entropy of `logits` (…, classes) against `targets` (…), integers.
///
/// # Errors
/// Shapes that do not fit, a target that is no class, or no target that counts. Where a GPU's kernel computes, nothing waits for
/// the targets: one that is no class makes the loss NaN.
pub fn cross_entropy(logits: &Tensor, targets: &Tensor, options: CrossEntropyOptions) -> Result<Tensor> {
    let Some((&classes, rows)) = logits.dims().split_last() else {
        bail!("cross-entropy: expected logits of at least one dimension")
    };
    if targets.dims() != rows || !targets.dtype().is_int() {
        bail!(
            "cross-entropy: targets {:?} of {:?} do not fit logits {:?}",
            targets.dims(),
            targets.dtype(),
            logits.dims()
        )
    }
    let smoothing = options.label_smoothing;
    if !(0. ..=1.).contains(&smoothing) {
        bail!("cross-entropy: expected label smoothing in [0, 1], got {smoothing}")
    }
    let unseen = options.ignore_index.is_none() && Gpu::runs(logits);
    let (targets, count) = match unseen {
        true => (targets.to_device(logits.device())?.to_dtype(DType::I64)?, targets.elem_count()),
        false => checked(logits, targets, classes, options.ignore_index)?,
    };
    if count == 0 {
        bail!("cross-entropy: no target counts")
    }
    apply_one(CrossEntropy { smoothing, count }, &[logits, &targets])
}

/// The targets beside the logits, and how many count.
fn checked(logits: &Tensor, targets: &Tensor, classes: usize, ignore_index: Option<i64>) -> Result<(Tensor, usize)> {
    let mut numbers = targets.to_device(&Device::Cpu)?.to_dtype(DType::I64)?.flatten_all()?.to_vec1::<i64>()?;
    let mut count = 0;
    for t in &mut numbers {
        if ignore_index == Some(*t) {
            *t = IGNORED;
        } else if *t < 0 || *t >= classes as i64 {
            bail!("cross-entropy: target {t} is none of {classes} classes")
        } else {
            count += 1;
        }
    }
    Ok((Tensor::from_vec(numbers, targets.dims(), logits.device())?, count))
}

impl Op for CrossEntropy {
    fn name(&self) -> &'static str {
        "cross-entropy"
    }

    fn wide(&self) -> bool {
        true
    }

    fn reference(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
        let (z, targets) = (&inputs[0], inputs[1].flatten_all()?);
        let classes = z.dim(D::Minus1)?;
        let z = z.reshape((targets.elem_count(), classes))?;
        // Whatever stands in an ignored row, it does not count.
        let counted = targets.ge(0i64)?;
        let z = counted.unsqueeze(1)?.broadcast_as(z.shape())?.where_cond(&z, &z.zeros_like()?)?;
        let (_, sum, max) = exponentials(&z)?;
        let counts = counted.to_dtype(z.dtype())?;
        let index = targets.maximum(&targets.zeros_like()?)?.unsqueeze(1)?;
        // The largest logit is taken away first, so that nothing is lost to a common offset.
        let z = z.broadcast_sub(&max)?;
        let target = (z.gather(&index, 1)? * (1. - self.smoothing))?;
        let mut each = (sum.log()? - target)?;
        if self.smoothing > 0. {
            each = (each - (z.mean_keepdim(1)? * self.smoothing)?)?;
        }
        let each = each.squeeze(1)?;
        Ok(vec![((each * counts)?.sum_all()? / self.count as f64)?])
    }

    fn cpu_forward(&self, inputs: &[View], _: bool) -> Result<Forward> {
        let (losses, logs) = cpu::forward(self.smoothing, inputs[0].f32()?, inputs[1].i64()?)?;
        let mean = losses.iter().map(|l| f64::from(*l)).sum::<f64>() / self.count as f64;
        Ok(Forward { outputs: vec![Output { data: vec![mean as f32], shape: Shape::from(()) }], saved: vec![logs] })
    }

    fn cpu_backward(&self, pass: &Backward) -> Result<Vec<Option<Vec<f32>>>> {
        let Some(grad) = &pass.grads[0] else { bail!("cross-entropy: no gradient") };
        let scale = grad.f32()?[0] / self.count as f32;
        let (z, targets) = (pass.inputs[0].f32()?, pass.inputs[1].i64()?);
        Ok(vec![Some(cpu::backward(self.smoothing, scale, z, targets, &pass.saved[0])?), None])
    }

    fn gpu_forward(&self, gpu: &Gpu, inputs: &[View], _: bool) -> Result<Option<GpuForward>> {
        let (logits, targets) = (&inputs[0], &inputs[1]);
        let (rows, width) = (logits.rows(), logits.width());
        let (mut losses, mut logs) = (gpu.floats(rows)?, gpu.floats(2 * rows)?);
        let args = &mut [
            Arg::Read(logits.slice()?),
            Arg::Read(targets.integers()?),
            Arg::Write(&mut losses),
            Arg::Write(&mut logs),
            Arg::Count(width),
            Arg::Float(self.smoothing),
        ];
        // SAFETY: there is a target for each row, as was checked, and a loss and two logarithms; targets outside of a row are left alone.
        unsafe { gpu.launch(&KERNELS, "cross_entropy_forward", Grid::rows(rows, width), args)? };
        let mean = gpu.totals(&losses, 1, 1. / self.count as f64)?;
        Ok(Some(GpuForward { outputs: vec![(mean, Shape::from(()))], saved: vec![logs] }))
    }

    fn gpu_backward(&self, gpu: &Gpu, pass: &Backward<Array>) -> Result<Vec<Option<Array>>> {
        let Some(grad) = &pass.grads[0] else { bail!("cross-entropy: no gradient") };
        let logits = &pass.inputs[0];
        let mut dlogits = gpu.array(logits.count())?;
        let args = &mut [
            Arg::Read(logits.slice()?),
            Arg::Read(pass.inputs[1].integers()?),
            Arg::Read(pass.saved[0].slice()),
            Arg::Read(grad.slice()?),
            Arg::Write(&mut dlogits),
            Arg::Count(logits.width()),
            Arg::Count(self.count),
            Arg::Float(self.smoothing),
        ];
        // SAFETY: as in the forward pass; the gradient of the loss is one number.
        unsafe { gpu.launch(&KERNELS, "cross_entropy_backward", Grid::rows(logits.rows(), logits.width()), args)? };
        Ok(vec![Some(dlogits), None])
    }
}
