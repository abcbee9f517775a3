//! Cross-entropy of a linear map's results, which are never there all at once: some rows at a time, the forward pass makes their logits, the
//! loss and, where there will be a backward pass, the gradients of the input and the weight, which it keeps in place of the logits.
//!
//! ```text
//! forward   z = x Wᵀ     L of z     dz of z, in its place     dx = dz W     dW = dzᵀ x
//! backward  dx and dW times the gradient of L
//! ```

use candle_core::{D, DType, Result, Shape, Tensor, bail};
use zoo_kernels::cpu::Pointer;
use zoo_kernels::cpu::matmul::{Blend, matmul_into};
use zoo_kernels::cpu::product::Matrix;
use zoo_kernels::{Backward, Forward, Op, Output, View, apply_one};

use super::{CrossEntropy, CrossEntropyOptions, checked, cpu};
use crate::ops::MapWeight;
use crate::ops::linear::cpu::{Size, forward, input_gradient};
use crate::ops::linear::plain;
use crate::ops::quantized::Quantized;

/// Logits that are there at a time.
const LOGITS: usize = 1 << 24;

/// The mean over rows of the cross-entropy of x Wᵀ for `x` (…, in) and a weight (classes, in) against `targets` (…), integers.
///
/// # Errors
/// As [`cross_entropy`](super::cross_entropy).
pub fn linear_cross_entropy(
    x: &Tensor,
    weight: MapWeight,
    targets: &Tensor,
    options: CrossEntropyOptions,
) -> Result<Tensor> {
    let (classes, k) = match weight {
        MapWeight::Plain(weight) => weight.dims2()?,
        MapWeight::Quantized(weight) => weight.dims().into(),
    };
    let rows = x.dims().split_last().map_or(&[][..], |(_, rows)| rows);
    if x.rank() == 0 || x.dim(D::Minus1)? != k || targets.dims() != rows || !targets.dtype().is_int() {
        let (t, dtype) = (targets.dims(), targets.dtype());
        bail!("cross-entropy: x {:?} and targets {t:?} of {dtype:?} do not fit weight [{classes}, {k}]", x.dims())
    }
    if k == 0 || classes == 0 {
        bail!("cross-entropy: a weight of [{classes}, {k}]")
    }
    let smoothing = options.label_smoothing;
    if !(0. ..=1.).contains(&smoothing) {
        bail!("cross-entropy: expected label smoothing in [0, 1], got {smoothing}")
    }
    let (targets, count) = checked(x, targets, classes, options.ignore_index)?;
    if count == 0 {
        bail!("cross-entropy: no target counts")
    }
    let (quantized, plain) = match weight {
        MapWeight::Plain(weight) => (None, Some(weight)),
        MapWeight::Quantized(weight) => (Some(weight.clone()), None),
    };
    let learns = plain.is_some_and(|weight| weight.track_op());
    let op = LinearCrossEntropy { loss: CrossEntropy { smoothing, count }, quantized, learns };
    let inputs: Vec<&Tensor> = [x, &targets].into_iter().chain(plain).collect();
    apply_one(op, &inputs)
}

/// Inputs are x, targets, and the weight unless it is quantized.
#[derive(Clone)]
struct LinearCrossEntropy {
    loss: CrossEntropy,
    quantized: Option<Quantized>,
    /// Whether the weight takes a gradient.
    learns: bool,
}

impl Op for LinearCrossEntropy {
    fn name(&self) -> &'static str {
        "linear cross-entropy"
    }

    fn reference(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
        let x = &inputs[0];
        let weight = match &self.quantized {
            Some(weight) => weight.dequantized()?.to_device(x.device())?.to_dtype(x.dtype())?,
            None => inputs[2].clone(),
        };
        let logits = plain(x, &weight, None)?;
        // f16 does not hold the sum of a large vocabulary's logits.
        let wide = if logits.dtype() == DType::F16 { logits.to_dtype(DType::F32)? } else { logits };
        let losses = self.loss.reference(&[wide, inputs[1].clone()])?;
        losses.iter().map(|loss| loss.to_dtype(x.dtype())).collect()
    }

    fn cpu_forward(&self, inputs: &[View], save: bool) -> Result<Forward> {
        let (x, targets) = (inputs[0].f32()?, inputs[1].i64()?);
        let (classes, k) = match &self.quantized {
            Some(weight) => weight.dims().into(),
            None => (inputs[2].dims()[0], inputs[2].dims()[1]),
        };
        let weight = self.quantized.is_none().then(|| inputs[2].f32()).transpose()?;
        let CrossEntropy { smoothing, count } = self.loss;
        let scale = 1. / count as f32;
        let mut dx = Vec::with_capacity(if save { x.len() } else { 0 });
        let mut dw = vec![0.; if save && self.learns { classes * k } else { 0 }];
        // As even as can be: a product costs its beginning, too.
        let parts = targets.len().div_ceil((LOGITS / classes.max(1)).max(1));
        let rows = targets.len().div_ceil(parts.max(1));
        let mut total = 0.;
        for (x, targets) in x.chunks((rows * k).max(1)).zip(targets.chunks(rows.max(1))) {
            let size = Size { m: targets.len(), n: classes, k };
            let mut z = match (&self.quantized, weight) {
                (Some(weight), _) => weight.0.product(size.m, x)?,
                (None, Some(weight)) => forward(size, x, weight, None)?,
                (None, None) => bail!("cross-entropy: no weight"),
            };
            let (losses, logs) = cpu::forward(smoothing, &z, targets)?;
            total += losses.iter().map(|l| f64::from(*l)).sum::<f64>();
            if !save {
                continue;
            }
            cpu::backward_in_place(smoothing, scale, &mut z, targets, &logs)?;
            dx.extend(match (&self.quantized, weight) {
                (Some(weight), _) => weight.0.back(size.m, &z)?,
                (_, weight) => input_gradient(size, &z, weight.unwrap_or_default()),
            });
            if self.learns {
                let (dz, x) = (Matrix::transposed(&z, classes), Matrix::rows(x, k));
                // SAFETY: the gradient has a row of k elements for each class, all initialised.
                unsafe { matmul_into([classes, k, size.m], dz, x, Pointer::of(&mut dw), k, Blend::ADD) };
            }
        }
        let mean = Output { data: vec![(total / count as f64) as f32], shape: Shape::from(()) };
        Ok(Forward { outputs: vec![mean], saved: if save { vec![dx, dw] } else { vec![] } })
    }

    fn cpu_backward(&self, pass: &Backward) -> Result<Vec<Option<Vec<f32>>>> {
        let Some(grad) = &pass.grads[0] else { bail!("cross-entropy: no gradient") };
        let factor = grad.f32()?[0];
        let times = |of: &Vec<f32>| of.iter().map(|v| v * factor).collect();
        let mut grads = vec![pass.needs[0].then(|| times(&pass.saved[0])), None];
        if self.quantized.is_none() {
            if pass.needs[2] && !self.learns {
                bail!("cross-entropy: a weight that takes no gradient is to have one")
            }
            grads.push(pass.needs[2].then(|| times(&pass.saved[1])));
        }
        Ok(grads)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};
    use zoo_kernels::check::{random, same_bits_on_any_threads};
    use zoo_kernels_emulator::check;

    use super::*;
    use crate::ops::{Activation, Bits, cross_entropy, linear};

    #[test]
    fn kernel_and_gradients_agree_with_the_reference() -> Result<()> {
        for (dims, classes) in [(vec![1, 16], 1), (vec![2, 3, 32], 7), (vec![33, 16], 50), (vec![3, 16], 50_257)] {
            let k = dims[dims.len() - 1];
            let rows: usize = dims.iter().rev().skip(1).product();
            let targets: Vec<i64> =
                (0..rows as i64).map(|i| if i == 2 { super::super::IGNORED } else { i * 5 % classes }).collect();
            let targets = Tensor::from_vec(targets, &dims[..dims.len() - 1], &Device::Cpu)?;
            let (x, w) = (random(1, &dims)?, random(2, &[classes as usize, k])?);
            let count = if rows > 2 { rows - 1 } else { rows };
            for (smoothing, learns) in [(0., true), (0.1, true), (0., false)] {
                let op = LinearCrossEntropy { loss: CrossEntropy { smoothing, count }, quantized: None, learns };
                check(&op, &[x.clone(), targets.clone(), w.clone()], &[true, false, learns])?;
            }
            let codes: Vec<i8> = (0..classes as usize * k).map(|i| (i * 37 % 251) as u8 as i8).collect();
            let groups = codes.len() / Bits::Eight.group();
            let scales = random(3, &[groups])?.to_vec1::<f32>()?.iter().map(|v| v / 100.).collect::<Vec<_>>();
            let quantized = Quantized::new(Bits::Eight, [classes as usize, k], &codes, &scales, &[])?;
            let loss = CrossEntropy { smoothing: 0., count };
            check(
                &LinearCrossEntropy { loss, quantized: Some(quantized), learns: false },
                &[x, targets],
                &[true, false],
            )?;
        }
        Ok(())
    }

    #[test]
    fn it_is_the_loss_of_the_logits_whatever_the_pieces() -> Result<()> {
        // More logits than are there at a time.
        let (rows, classes, k) = (700, 60_000, 4);
        let x = Var::from_tensor(&random(1, &[rows, k])?)?;
        let w = Var::from_tensor(&random(2, &[classes, k])?)?;
        let targets: Vec<i64> = (0..rows as i64).map(|i| if i % 5 == 0 { -100 } else { i * 83 }).collect();
        let targets = Tensor::new(targets, &Device::Cpu)?;
        let options = CrossEntropyOptions { ignore_index: Some(-100), ..Default::default() };
        let of = |loss: Tensor| -> Result<[Vec<f32>; 3]> {
            let grads = (loss.clone() * 3.)?.backward()?;
            let grad = |v: &Var| grads.get(v).map_or(Ok(vec![]), |g| g.flatten_all()?.to_vec1());
            Ok([loss.reshape(1)?.to_vec1()?, grad(&x)?, grad(&w)?])
        };
        let whole = of(cross_entropy(&linear(&x, &w, None, Activation::Identity)?, &targets, options)?)?;
        let pieces = of(linear_cross_entropy(&x, MapWeight::Plain(&w), &targets, options)?)?;
        for (a, b) in whole.iter().zip(&pieces) {
            let largest = a.iter().fold(0f32, |m, v| m.max(v.abs()));
            assert!(a.len() == b.len() && largest > 0.);
            assert!(a.iter().zip(b).all(|(a, b)| (a - b).abs() < 2e-6 * largest));
        }
        assert!(linear_cross_entropy(&x, MapWeight::Plain(&w), &targets.narrow(0, 0, 9)?, options).is_err());
        let nothing = (targets.zeros_like()? - 100.)?;
        assert!(linear_cross_entropy(&x, MapWeight::Plain(&w), &nothing, options).is_err());
        Ok(())
    }

    #[test]
    fn bits_do_not_depend_on_the_number_of_threads() -> Result<()> {
        same_bits_on_any_threads(|| {
            let x = Var::from_tensor(&random(1, &[130, 64])?)?;
            let w = Var::from_tensor(&random(2, &[300, 64])?)?;
            let targets = Tensor::from_vec((0..130i64).collect::<Vec<_>>(), 130, &Device::Cpu)?;
            let loss = linear_cross_entropy(&x, MapWeight::Plain(&w), &targets, Default::default())?;
            let grads = loss.backward()?;
            let grad = |v: &Var| grads.get(v).map_or(Ok(vec![]), |g| g.flatten_all()?.to_vec1());
            Ok(vec![loss.reshape(1)?.to_vec1()?, grad(&x)?, grad(&w)?])
        })
    }
}
