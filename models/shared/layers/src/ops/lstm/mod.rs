//! One layer of an LSTM over a whole sequence as one node of the graph (Hochreiter and Schmidhuber 1997, with the
//! forget gate of Gers et al. 2000, in PyTorch's gate order i, f, g, o).
//!
//! ```text
//! forward, for t = 1 … T
//!   z = x_t W_ihᵀ + b_ih + h_{t-1} W_hhᵀ + b_hh
//!   i, f, o = σ(z_i), σ(z_f), σ(z_o)      g = tanh(z_g)
//!   c_t = f · c_{t-1} + i · g             h_t = o · tanh(c_t)
//!
//! backward, for t = T … 1, with dh and dc carried from t+1
//!   dh += dy_t                            dc += dh · o · (1 - tanh²c_t)
//!   dz_i = dc · g · i(1-i)                dz_f = dc · c_{t-1} · f(1-f)
//!   dz_g = dc · i · (1-g²)                dz_o = dh · tanh(c_t) · o(1-o)
//!   dh = dz W_hh                          dc = dc · f
//!   then over all rows at once            dx = dz W_ih    dW_ih = dzᵀ x    dW_hh = dzᵀ h_{t-1}    db = Σ dz
//! ```
//!
//! Saved for backward: the gates and c_t; tanh(c_t) and h_t are computed again. Everything is f32. Small layers are cut
//! into rows of the batch, large ones (256 units or more) into units; sums over batch and time are made in an order that
//! the sizes fix, so the bits do not depend on the number of threads.

mod cpu;
mod gpu;
#[cfg(test)]
mod tests;

use candle_core::{IndexOp, Result, Tensor, bail};
use zoo_kernels::gpu::{Array, Gpu};
use zoo_kernels::{Backward, Forward, GpuForward, Op, Output, View, apply};

use super::dropout::Dropout;
use crate::random::Stream;

/// The four tensors of a layer, under PyTorch's names.
#[derive(Clone, Debug)]
pub struct LstmWeights {
    /// (4 · hidden, input).
    pub weight_ih: Tensor,
    /// (4 · hidden, hidden).
    pub weight_hh: Tensor,
    /// (4 · hidden).
    pub bias_ih: Tensor,
    /// (4 · hidden).
    pub bias_hh: Tensor,
}

/// The state of a layer: both (batch, hidden).
#[derive(Clone, Debug)]
pub struct LstmState {
    /// Hidden state.
    pub h: Tensor,
    /// Cell state.
    pub c: Tensor,
}

#[derive(Clone)]
struct Lstm {
    /// Whether the outputs of all steps are wanted, or only the last state.
    sequence: bool,
    /// Dropout on x: in here it costs no pass over memory of its own.
    dropout: Option<Dropout>,
}

/// Runs one layer over `x` (batch, time, input) from `state` (zeros if absent). `dropout` is applied to `x` first, with
/// its probability and its stream, as [`dropout`](crate::ops::dropout()) would.
///
/// Returns the outputs of all steps (batch, time, hidden), if `sequence` asks for them, and the final state; all carry
/// gradients. Where only the last output is of use, `sequence = false` saves the memory and the gradient of the others.
///
/// # Errors
/// Shapes that do not fit; an empty batch or sequence.
pub fn lstm(
    x: &Tensor,
    w: &LstmWeights,
    state: Option<&LstmState>,
    dropout: Option<(f64, Stream)>,
    sequence: bool,
) -> Result<(Option<Tensor>, LstmState)> {
    let (batch, time, input) = x.dims3()?;
    let (gates, hidden) = w.weight_hh.dims2()?;
    let fits = Some(gates) == hidden.checked_mul(4)
        && w.weight_ih.dims() == [gates, input]
        && [&w.bias_ih, &w.bias_hh].iter().all(|b| b.dims() == [gates])
        && state.is_none_or(|s| [&s.h, &s.c].iter().all(|t| t.dims() == [batch, hidden]));
    if !fits {
        bail!(
            "lstm: x {:?}, weights {:?} and {:?}, biases or state do not fit",
            x.dims(),
            w.weight_ih.dims(),
            w.weight_hh.dims()
        )
    }
    if batch * time * input * hidden == 0 {
        bail!("lstm: x {:?} has no steps or features", x.dims())
    }
    let dropout = dropout.map(|(p, stream)| Dropout::new(p, stream)).transpose()?.filter(|d| d.p > 0.);
    let mut inputs = vec![x, &w.weight_ih, &w.weight_hh, &w.bias_ih, &w.bias_hh];
    if let Some(state) = state {
        inputs.extend([&state.h, &state.c]);
    }
    let mut outputs = apply(Lstm { sequence, dropout }, &inputs)?;
    let (Some(c), Some(h)) = (outputs.pop(), outputs.pop()) else { bail!("lstm: no output") };
    Ok((outputs.pop(), LstmState { h, c }))
}

impl Op for Lstm {
    fn name(&self) -> &'static str {
        "lstm"
    }

    fn reference(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
        let [x, w_ih, w_hh, b_ih, b_hh] = &inputs[..5] else { bail!("lstm: expected five inputs or seven") };
        let x = &match &self.dropout {
            Some(dropout) => dropout.reference(std::slice::from_ref(x))?.remove(0),
            None => x.clone(),
        };
        let (batch, time, _) = x.dims3()?;
        let hidden = w_hh.dim(1)?;
        let zeros = Tensor::zeros((batch, hidden), x.dtype(), x.device())?;
        let (mut h, mut c) = match &inputs[5..] {
            [h, c] => (h.clone(), c.clone()),
            _ => (zeros.clone(), zeros),
        };
        let sigmoid = |z: &Tensor| (z.neg()?.exp()? + 1.)?.recip();
        let mut outputs = vec![];
        for t in 0..time {
            let z = x.i((.., t, ..))?.contiguous()?.matmul(&w_ih.t()?)?.broadcast_add(b_ih)?; // (batch, 4 hidden)
            let z = (z + h.matmul(&w_hh.t()?)?.broadcast_add(b_hh)?)?;
            let gate = |k: usize| z.narrow(1, k * hidden, hidden)?.contiguous(); // (batch, hidden)
            let (i, f, g, o) = (sigmoid(&gate(0)?)?, sigmoid(&gate(1)?)?, gate(2)?.tanh()?, sigmoid(&gate(3)?)?);
            c = ((f * c)? + (i * g)?)?;
            h = (o * c.tanh()?)?;
            outputs.push(h.clone());
        }
        let mut result = if self.sequence { vec![Tensor::stack(&outputs, 1)?] } else { vec![] };
        result.extend([h, c]);
        Ok(result)
    }

    fn cpu_forward(&self, inputs: &[View], save: bool) -> Result<Forward> {
        let size = cpu::Size::new(inputs);
        let result = cpu::forward(size, &cpu::Inputs::new(inputs, self.dropout.as_ref())?, self.sequence, save)?;
        let cpu::Size { batch, time, hidden, .. } = size;
        let mut outputs = vec![];
        outputs.extend(result.y.map(|data| Output { data, shape: (batch, time, hidden).into() }));
        outputs.extend([result.h, result.c].map(|data| Output { data, shape: (batch, hidden).into() }));
        Ok(Forward { outputs, saved: result.saved })
    }

    fn cpu_backward(&self, pass: &Backward) -> Result<Vec<Option<Vec<f32>>>> {
        let grad = |i: usize| pass.grads[i].as_ref().map(View::f32).transpose();
        let first = usize::from(self.sequence);
        let grads =
            cpu::OutputGrads { y: if self.sequence { grad(0)? } else { None }, h: grad(first)?, c: grad(first + 1)? };
        cpu::backward(
            cpu::Size::new(pass.inputs),
            &cpu::Inputs::new(pass.inputs, self.dropout.as_ref())?,
            pass.saved,
            grads,
            pass.needs,
        )
    }

    fn gpu_forward(&self, gpu: &Gpu, inputs: &[View], save: bool) -> Result<Option<GpuForward>> {
        gpu::forward(self, gpu, inputs, save).map(Some)
    }

    fn gpu_backward(&self, gpu: &Gpu, pass: &Backward<Array>) -> Result<Vec<Option<Array>>> {
        gpu::backward(self, gpu, pass)
    }
}
