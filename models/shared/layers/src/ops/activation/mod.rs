//! Element-wise activation functions.
//!
//! ```text
//! forward   y = f(x)            backward  dx = dy · f'(x)
//!
//! ReLU      max(x, 0)                                     f' = 1 for x > 0, else 0
//! GELU      x Φ(x), Φ the normal distribution             f' = Φ(x) + x e^(-x²/2) / √(2π)
//! its tanh  x (1 + th) / 2, th = tanh(√(2/π) (x + 0.044715 x³))
//!                                                         f' = (1 + th)/2 + x (1 - th²)/2 · √(2/π) (1 + 0.134145 x²)
//! SiLU      x σ(x)                                        f' = σ (1 + x (1 - σ))
//! ELU       x for x > 0, else α (eˣ - 1)                  f' = 1, or α eˣ
//! ```
//!
//! (Hendrycks and Gimpel 2016 for GELU; Elfwing et al. 2017 for SiLU; Clevert et al. 2015 for ELU.) The forward pass
//! computes f' beside f, from the same exponential, and keeps only that.

pub(super) mod cpu;
mod gated;
#[cfg(test)]
mod tests;

use candle_core::{Result, Tensor, bail};
use zoo_kernels::gpu::{Arg, Array, Gpu, Grid, Module, Slice};
use zoo_kernels::{Backward, Forward, GpuForward, Op, Output, View, apply_one, module};

pub use gated::gated;

/// The function after an affine map, or on its own.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Activation {
    /// x itself.
    #[default]
    Identity,
    /// max(x, 0).
    Relu,
    /// x Φ(x), as `torch.nn.GELU()`.
    Gelu,
    /// The approximation by tanh, as `torch.nn.GELU("tanh")`.
    GeluTanh,
    /// x σ(x).
    Silu,
    /// x, or α (eˣ - 1) below zero, for this α.
    Elu(f64),
}

impl Activation {
    /// f(x) of any shape.
    pub fn apply(self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Identity => Ok(x.clone()),
            _ => apply_one(Elementwise(self), &[x]),
        }
    }

    pub(super) fn reference(self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Identity => Ok(x.clone()),
            Self::Relu => x.relu(),
            Self::Gelu => x.gelu_erf(),
            Self::GeluTanh => {
                let inner = ((x + (x.powf(3.)? * 0.044715)?)? * (2. / std::f64::consts::PI).sqrt())?;
                (x * 0.5)? * (inner.tanh()? + 1.)?
            }
            Self::Silu => x.silu(),
            Self::Elu(alpha) => x.elu(alpha),
        }
    }
}

/// max(x, 0).
pub fn relu(x: &Tensor) -> Result<Tensor> {
    Activation::Relu.apply(x)
}

/// x Φ(x), as `torch.nn.GELU()`.
pub fn gelu(x: &Tensor) -> Result<Tensor> {
    Activation::Gelu.apply(x)
}

/// GELU's approximation by tanh, as `torch.nn.GELU("tanh")`.
pub fn gelu_tanh(x: &Tensor) -> Result<Tensor> {
    Activation::GeluTanh.apply(x)
}

/// x σ(x).
pub fn silu(x: &Tensor) -> Result<Tensor> {
    Activation::Silu.apply(x)
}

/// x, or `alpha` (eˣ - 1) below zero.
pub fn elu(x: &Tensor, alpha: f64) -> Result<Tensor> {
    Activation::Elu(alpha).apply(x)
}

const KERNELS: Module = module!("activation");

#[derive(Clone)]
struct Elementwise(Activation);

impl Activation {
    /// Its number in the kernels, and α.
    fn number<'a, 'b>(self) -> [Arg<'a, 'b>; 2] {
        let (kind, alpha) = match self {
            Self::Identity => (0, 0.),
            Self::Relu => (1, 0.),
            Self::Gelu => (2, 0.),
            Self::GeluTanh => (3, 0.),
            Self::Silu => (4, 0.),
            Self::Elu(alpha) => (5, alpha),
        };
        [Arg::Word(kind), Arg::Float(alpha)]
    }

    /// Adds `bias` to z, if there is any, and gives f(z).
    pub(super) fn of_sum(self, gpu: &Gpu, z: &mut Array, bias: Option<Slice>) -> Result<Array> {
        let n = z.slice().count();
        let mut y = gpu.array(n)?;
        let [kind, alpha] = self.number();
        let nothing = if bias.is_none() { Some(gpu.array(1)?) } else { None };
        let Some(read) = bias.or(nothing.as_ref().map(Array::slice)) else { bail!("no bias") };
        let args = &mut [
            Arg::Write(z),
            Arg::Read(read),
            Arg::Write(&mut y),
            Arg::Count(n),
            Arg::Count(bias.map_or(1, |b| b.count())),
            Arg::Word(bias.is_some().into()),
            kind,
            alpha,
        ];
        // SAFETY: y has as many elements as z, and the bias as many as are counted.
        unsafe { gpu.launch(&KERNELS, "activation_of_sum", Grid::each(n), args)? };
        Ok(y)
    }

    /// dy · f'(x).
    pub(super) fn backward(self, gpu: &Gpu, x: Slice, dy: Slice) -> Result<Array> {
        let mut dx = gpu.array(dy.count())?;
        let [kind, alpha] = self.number();
        let args = &mut [Arg::Read(x), Arg::Read(dy), Arg::Write(&mut dx), Arg::Count(dy.count()), kind, alpha];
        // SAFETY: x and dy are of one shape, and so is dx.
        unsafe { gpu.launch(&KERNELS, "activation_backward", Grid::each(dy.count()), args)? };
        Ok(dx)
    }
}

impl Op for Elementwise {
    fn name(&self) -> &'static str {
        match self.0 {
            Activation::Identity => "identity",
            Activation::Relu => "relu",
            Activation::Gelu => "gelu",
            Activation::GeluTanh => "gelu (tanh)",
            Activation::Silu => "silu",
            Activation::Elu(_) => "elu",
        }
    }

    fn reference(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
        Ok(vec![self.0.reference(&inputs[0])?])
    }

    fn cpu_forward(&self, inputs: &[View], save: bool) -> Result<Forward> {
        let mut data = inputs[0].f32()?.to_vec();
        let slope = cpu::apply(&mut data, self.0, save)?;
        Ok(Forward {
            outputs: vec![Output { data, shape: inputs[0].dims().into() }],
            saved: slope.into_iter().collect(),
        })
    }

    fn cpu_backward(&self, pass: &Backward) -> Result<Vec<Option<Vec<f32>>>> {
        let (Some(grad), Some(slope)) = (&pass.grads[0], pass.saved.first()) else {
            bail!("{}: no gradient", self.name())
        };
        Ok(vec![Some(cpu::times(grad.f32()?, slope)?)])
    }

    fn gpu_forward(&self, gpu: &Gpu, inputs: &[View], _: bool) -> Result<Option<GpuForward>> {
        let (x, n) = (&inputs[0], inputs[0].count());
        let mut y = gpu.array(n)?;
        let [kind, alpha] = self.0.number();
        let args = &mut [Arg::Read(x.slice()?), Arg::Write(&mut y), Arg::Count(n), kind, alpha];
        // SAFETY: x and y have n elements.
        unsafe { gpu.launch(&KERNELS, "activation_forward", Grid::each(n), args)? };
        Ok(Some(GpuForward::one(y, x, vec![])))
    }

    fn gpu_backward(&self, gpu: &Gpu, pass: &Backward<Array>) -> Result<Vec<Option<Array>>> {
        let Some(grad) = &pass.grads[0] else { bail!("{}: no gradient", self.name()) };
        Ok(vec![Some(self.0.backward(gpu, pass.inputs[0].slice()?, grad.slice()?)?)])
    }
}
