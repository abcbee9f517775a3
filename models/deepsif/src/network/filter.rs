use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;
use zoo_layers::onnx::{Graph, Value};
use zoo_layers::ops::{self, Activation, Affine, MlpBranch};
use zoo_layers::{Linear, init};

use crate::{Config, FilterActivation, Kind};

/// The spatial filter of every time step by itself (Sun et al. 2022): with f the activation,
///
/// ```text
/// x  = f(fc12 f(fc11 x) + x)
/// x  = f(fc22 f(fc21 x) + fc23 x)
/// x  = f(value x)
/// ```
#[derive(Clone, Debug)]
pub(crate) struct SpatialFilter {
    fc11: Map,
    fc12: Map,
    fc21: Linear,
    fc22: Linear,
    fc23: Linear,
    value: Linear,
    activation: Activation,
}

/// A linear map whose tensors a fused branch takes.
#[derive(Clone, Debug)]
struct Map {
    weight: Tensor,
    bias: Tensor,
}

impl Map {
    fn affine(&self) -> Affine<'_> {
        Affine { weight: &self.weight, bias: Some(&self.bias) }
    }
}

impl SpatialFilter {
    pub(crate) fn new(config: &Config, vb: VarBuilder) -> Result<Self> {
        let &Config { kind, sensors: n, filter: h, activation, .. } = config;
        // The pre-norm transformer's weights start from Glorot's values. Biases start as in PyTorch: behind zeros everything would
        // be proportional to the EEG, and the norm that follows would take away how large it is.
        let weight = |from: usize, to: usize| match kind {
            Kind::Transformer => init::xavier_uniform(from, to, 1.),
            _ => init::linear(from),
        };
        let map = |name: &str| {
            let vb = vb.pp(name);
            Ok::<_, candle_core::Error>(Map {
                weight: vb.get_with_hints((n, n), "weight", weight(n, n))?,
                bias: vb.get_with_hints(n, "bias", init::linear(n))?,
            })
        };
        let linear =
            |from: usize, to: usize, name: &str| Linear::with_init(from, to, true, weight(from, to), vb.pp(name));
        Ok(Self {
            fc11: map("fc11")?,
            fc12: map("fc12")?,
            fc21: linear(n, h, "fc21")?,
            fc22: linear(h, h, "fc22")?,
            fc23: linear(n, h, "fc23")?,
            value: linear(h, h, "value")?,
            activation: match activation {
                FilterActivation::Gelu => Activation::Gelu,
                FilterActivation::Relu => Activation::Relu,
                FilterActivation::Elu => Activation::Elu(1.),
            },
        })
    }

    /// [`SpatialFilter::forward`] as nodes of a graph.
    pub(crate) fn export(&self, graph: &mut Graph, x: &Value) -> Result<Value> {
        let f = self.activation;
        let mut map = |x: &Value, map: &Map, f| graph.linear(x, &map.weight, Some(&map.bias), f);
        let inner = map(x, &self.fc11, f)?;
        let inner = map(&inner, &self.fc12, Activation::Identity)?;
        let sum = graph.add(&inner, x);
        let x = graph.activation(&sum, f)?; // (b, t, n)
        let inner = self.fc21.export(graph, &x, f)?;
        let inner = self.fc22.export(graph, &inner, Activation::Identity)?;
        let beside = self.fc23.export(graph, &x, Activation::Identity)?;
        let sum = graph.add(&inner, &beside);
        let x = graph.activation(&sum, f)?; // (b, t, h)
        self.value.export(graph, &x, f)
    }

    /// (b, t, n) to (b, t, h).
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let f = self.activation;
        let branch = MlpBranch {
            norm: None,
            first: self.fc11.affine(),
            second: self.fc12.affine(),
            activation: f,
            hidden_dropout: None,
            dropout: None,
        };
        let x = f.apply(&branch.apply(x)?)?; // (b, t, n)
        let inner = self.fc22.forward(&self.fc21.forward_activated(&x, f)?)?;
        let x = f.apply(&ops::add_dropout(&inner, &self.fc23.forward(&x)?, None)?)?; // (b, t, h)
        self.value.forward_activated(&x, f)
    }
}
