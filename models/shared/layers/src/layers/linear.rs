use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;

use crate::init::{self, Init};
use crate::onnx::{Graph, Value};
use crate::ops::{self, Activation, Affine};

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
        Self::with_biases(input, output, bias.then(|| init::linear(input)), init, vb)
    }

    /// A weight from `init` and a bias from `bias`, if there is to be one.
    pub fn with_biases(input: usize, output: usize, bias: Option<Init>, init: Init, vb: VarBuilder) -> Result<Self> {
        let weight = vb.get_with_hints((output, input), "weight", init)?;
        let bias = bias.map(|bias| vb.get_with_hints(output, "bias", bias)).transpose()?;
        Ok(Self { weight, bias })
    }

    /// Features that come out.
    pub fn width(&self) -> usize {
        self.weight.dims()[0]
    }

    /// Its parameters.
    pub fn parameters(&self) -> impl Iterator<Item = &Tensor> {
        std::iter::once(&self.weight).chain(&self.bias)
    }

    pub(super) fn affine(&self) -> Affine<'_> {
        Affine { weight: &self.weight, bias: self.bias.as_ref() }
    }

    /// (…, in) to (…, out).
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.forward_activated(x, Activation::Identity)
    }

    /// (…, in) to (…, out) with an activation in the same node of the graph.
    pub fn forward_activated(&self, x: &Tensor, activation: Activation) -> Result<Tensor> {
        ops::linear(x, &self.weight, self.bias.as_ref(), activation)
    }

    /// [`Linear::forward_activated`] as nodes of a graph.
    ///
    /// # Errors
    /// See [`Graph::parameter`].
    pub fn export(&self, graph: &mut Graph, x: &Value, activation: Activation) -> Result<Value> {
        graph.linear(x, &self.weight, self.bias.as_ref(), activation)
    }
}
