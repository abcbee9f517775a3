use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;

use crate::init;
use crate::onnx::{Graph, Value};
use crate::ops::{self, NormKind, PreNorm};

/// Layer or RMS norm over the last dimension with PyTorch's names: `weight` (c) and, if any, `bias` (c).
#[derive(Clone, Debug)]
pub struct Norm {
    kind: NormKind,
    weight: Tensor,
    bias: Option<Tensor>,
    eps: f64,
}

impl Norm {
    /// `torch.nn.LayerNorm(c, eps, bias=bias)`: weights of one, biases of zero.
    pub fn layer(c: usize, eps: f64, bias: bool, vb: VarBuilder) -> Result<Self> {
        let weight = vb.get_with_hints(c, "weight", init::ONES)?;
        let bias = if bias { Some(vb.get_with_hints(c, "bias", init::ZEROS)?) } else { None };
        Ok(Self { kind: NormKind::Layer, weight, bias, eps })
    }

    /// `torch.nn.RMSNorm(c, eps)`: weights of one.
    pub fn rms(c: usize, eps: f64, vb: VarBuilder) -> Result<Self> {
        Ok(Self { kind: NormKind::Rms, weight: vb.get_with_hints(c, "weight", init::ONES)?, bias: None, eps })
    }

    /// (…, c) to (…, c).
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match self.kind {
            NormKind::Layer => ops::layer_norm(x, Some(&self.weight), self.bias.as_ref(), self.eps),
            NormKind::Rms => ops::rms_norm(x, Some(&self.weight), self.eps),
        }
    }

    /// [`Norm::forward`] as nodes of a graph.
    ///
    /// # Errors
    /// See [`Graph::parameter`].
    pub fn export(&self, graph: &mut Graph, x: &Value) -> Result<Value> {
        let weight = graph.parameter(&self.weight)?;
        let bias = self.bias.as_ref().map(|bias| graph.parameter(bias)).transpose()?;
        match self.kind {
            NormKind::Layer => Ok(graph.layer_norm(x, &weight, bias.as_ref(), self.eps)),
            NormKind::Rms => graph.rms_norm(x, &weight, self.eps),
        }
    }

    /// Its parameters.
    pub fn parameters(&self) -> impl Iterator<Item = &Tensor> {
        std::iter::once(&self.weight).chain(&self.bias)
    }

    pub(super) fn before_branch(&self) -> PreNorm<'_> {
        PreNorm { kind: self.kind, eps: self.eps, weight: Some(&self.weight), bias: self.bias.as_ref() }
    }
}
