use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;

use crate::init::{self, Init};
use crate::ops::{self, Activation};

/// x Wᵀ + b with PyTorch's names: `weight` (out, in) and `bias` (out).
#[derive(Clone, Debug)]
pub struct Linear {
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Linear {
    /// Weight and bias with `torch.nn.Linear`'s initial values.
    pub fn new(input: usize, output: usize, vb: VarBuilder) -> Result<Self> {
        Self::with_init(input, output, true, init::linear(input), vb)
    }

    /// A weight from `init`; the bias, if any, starts as in [`Linear::new`].
    pub fn with_init(input: usize, output: usize, bias: bool, init: Init, vb: VarBuilder) -> Result<Self> {
        let weight = vb.get_with_hints((output, input), "weight", init)?;
        let bias = if bias { Some(vb.get_with_hints(output, "bias", init::linear(input))?) } else { None };
        Ok(Self { weight, bias })
    }

    /// (…, in) to (…, out).
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.forward_activated(x, Activation::Identity)
    }

    /// (…, in) to (…, out) with an activation in the same node of the graph.
    pub fn forward_activated(&self, x: &Tensor, activation: Activation) -> Result<Tensor> {
        ops::linear(x, &self.weight, self.bias.as_ref(), activation)
    }
}
