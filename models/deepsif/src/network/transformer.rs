use candle_core::{Result, Tensor, bail};
use candle_nn::VarBuilder;
use zoo_layers::onnx::{Graph, Value};
use zoo_layers::ops::{self, Activation};
use zoo_layers::{
    AttentionConfig, BlockConfig, Dropout, Linear, MlpConfig, Mode, Norm, NormPlace, Qkv, TransformerBlock, init,
    sinusoids,
};

use super::SpatialFilter;
use crate::Config;

/// Added to the variance in the norms.
const EPS: f64 = 1e-5;
/// Standard deviation of the learned positions' initial values.
const STDEV: f64 = 0.02;
/// Gain of the last map's initial values: training begins at an image of nothing, which is nearly right nearly everywhere, and
/// not with a thousand sources that have to be unlearnt.
const LAST_GAIN: f64 = 0.01;

/// The pre-norm transformer: spatial filter, norm and dropout; `input_projection` to the width, norm and GELU; learned
/// positions and dropout; encoder layers; final norm; a head of two maps.
#[derive(Clone, Debug)]
pub(crate) struct PreLn {
    filter: SpatialFilter,
    filter_norm: Norm,
    filter_dropout: Dropout,
    input_projection: Linear,
    input_norm: Norm,
    /// (positions, d)
    positions: Tensor,
    dropout: Dropout,
    layers: Vec<TransformerBlock>,
    norm: Norm,
    head: [Linear; 2],
    head_dropout: Dropout,
}

/// The layers of an encoder, named as those of `torch.nn.TransformerEncoder`.
fn encoder(config: &Config, norm: NormPlace, vb: &VarBuilder) -> Result<Vec<TransformerBlock>> {
    let &Config { width, heads, layers, hidden, dropout, .. } = config;
    let (activation, maps) = match norm {
        NormPlace::Pre => (Activation::Gelu, [init::xavier_uniform(width, hidden, 1.); 2]),
        NormPlace::Post => (Activation::Relu, [init::linear(width), init::linear(hidden)]),
    };
    let block = BlockConfig {
        attention: AttentionConfig {
            width,
            heads,
            qkv: Qkv::Packed,
            bias: true,
            causal: false,
            dropout,
            init: [init::xavier_uniform(width, 3 * width, 1.), init::xavier_uniform(width, width, 1.)],
        },
        mlp: MlpConfig { width, hidden, bias: true, activation, dropout, init: maps },
        norm,
        norm_bias: true,
        eps: EPS,
        dropout,
    };
    (0..layers).map(|i| TransformerBlock::new(block, vb.pp("encoder.layers").pp(i))).collect()
}

/// `x` (b, t, d) with the first `t` rows of positions.
fn placed(x: &Tensor, positions: &Tensor) -> Result<Tensor> {
    let (t, all) = (x.dim(1)?, positions.dim(0)?);
    if t > all {
        bail!("deepsif: {t} time steps, but the model has positions for {all} (model.positions)")
    }
    ops::add_dropout(&positions.narrow(0, 0, t)?, x, None)
}

/// [`placed`] as nodes of a graph.
fn export_placed(graph: &mut Graph, x: &Value, positions: &Value) -> Result<Value> {
    let rows = graph.first_rows(positions, x)?;
    Ok(graph.add(x, &rows))
}

impl PreLn {
    pub(crate) fn new(config: &Config, vb: VarBuilder) -> Result<Self> {
        let &Config { sources, filter, width, positions, dropout, .. } = config;
        let half = width / 2;
        let linear = |from, to, gain, name: &str| {
            Linear::with_biases(from, to, Some(init::ZEROS), init::xavier_uniform(from, to, gain), vb.pp(name))
        };
        let norm = |c, name: &str| Norm::layer(c, EPS, true, vb.pp(name));
        Ok(Self {
            filter: SpatialFilter::new(config, vb.pp("spatial"))?,
            filter_norm: norm(filter, "spatial_norm")?,
            filter_dropout: Dropout::new(dropout / 2., "spatial_dropout"),
            input_projection: linear(filter, width, 1., "input_projection")?,
            input_norm: norm(width, "input_norm")?,
            positions: vb.get_with_hints((positions, width), "positions", init::normal(0., STDEV))?,
            dropout: Dropout::new(dropout, "dropout"),
            layers: encoder(config, NormPlace::Pre, &vb)?,
            norm: norm(width, "norm")?,
            head: [linear(width, half, 1., "output.0")?, linear(half, sources, LAST_GAIN, "output.3")?],
            head_dropout: Dropout::new(dropout / 2., "head_dropout"),
        })
    }

    /// What the encoder sees of what the filter gives, (b, t, h) to (b, t, d).
    fn embed(&self, filtered: &Tensor, mode: Mode) -> Result<Tensor> {
        let x = self.filter_norm.forward(filtered)?;
        let x = self.filter_dropout.forward(&x, mode)?; // (b, t, h)
        let x = ops::gelu(&self.input_norm.forward(&self.input_projection.forward(&x)?)?)?; // (b, t, d)
        self.dropout.forward(&placed(&x, &self.positions)?, mode)
    }

    /// (b, t, d) to (b, t, sources).
    fn read(&self, x: &Tensor, mode: Mode) -> Result<Tensor> {
        let x = self.head[0].forward_activated(&self.norm.forward(x)?, Activation::Gelu)?;
        self.head[1].forward(&self.head_dropout.forward(&x, mode)?)
    }

    pub(crate) fn forward(&self, x: &Tensor, mode: Mode) -> Result<Tensor> {
        let mut x = self.embed(&self.filter.forward(x)?, mode)?;
        for layer in &self.layers {
            x = layer.forward(&x, mode)?;
        }
        self.read(&x, mode)
    }

    pub(crate) fn export(&self, graph: &mut Graph, x: &Value) -> Result<Value> {
        let x = self.filter.export(graph, x)?;
        let x = self.filter_norm.export(graph, &x)?; // (b, t, h)
        let x = self.input_projection.export(graph, &x, Activation::Identity)?;
        let x = self.input_norm.export(graph, &x)?;
        let x = graph.activation(&x, Activation::Gelu)?; // (b, t, d)
        let positions = graph.parameter(&self.positions)?;
        let mut x = export_placed(graph, &x, &positions)?;
        for layer in &self.layers {
            x = layer.export(graph, &x, None, None)?.0;
        }
        let x = self.norm.export(graph, &x)?;
        let x = self.head[0].export(graph, &x, Activation::Gelu)?;
        self.head[1].export(graph, &x, Activation::Identity)
    }

    pub(crate) fn activations(&self, x: &Tensor) -> Result<Vec<(String, Tensor)>> {
        let filtered = self.filter.forward(x)?;
        let x = self.embed(&filtered, Mode::Eval)?;
        let mut all = vec![("spatial".to_string(), filtered), ("embedding".to_string(), x.clone())];
        let x = within(&self.layers, x, &mut all)?;
        all.push(("sources".to_string(), self.read(&x, Mode::Eval)?));
        Ok(all)
    }
}

/// Adds what is within and behind each layer.
fn within(layers: &[TransformerBlock], mut x: Tensor, all: &mut Vec<(String, Tensor)>) -> Result<Tensor> {
    for (i, layer) in layers.iter().enumerate() {
        all.push((format!("encoder.layers.{i}.hidden"), layer.hidden(&x)?));
        x = layer.forward(&x, Mode::Eval)?;
        all.push((format!("encoder.layers.{i}"), x.clone()));
    }
    Ok(x)
}

/// The post-norm transformer: spatial filter, `input_projection`, sines and cosines of positions, dropout, encoder layers,
/// one map to the sources.
#[derive(Clone, Debug)]
pub(crate) struct PostLn {
    filter: SpatialFilter,
    input_projection: Linear,
    /// (positions, d)
    positions: Tensor,
    dropout: Dropout,
    layers: Vec<TransformerBlock>,
    head: Linear,
}

impl PostLn {
    pub(crate) fn new(config: &Config, vb: VarBuilder) -> Result<Self> {
        let &Config { sources, filter, width, positions, dropout, .. } = config;
        Ok(Self {
            filter: SpatialFilter::new(config, vb.pp("spatial"))?,
            input_projection: Linear::new(filter, width, vb.pp("input_projection"))?,
            positions: sinusoids(positions, width, vb.device())?,
            dropout: Dropout::new(dropout, "dropout"),
            layers: encoder(config, NormPlace::Post, &vb)?,
            head: Linear::with_biases(
                width,
                sources,
                Some(init::ZEROS),
                init::xavier_uniform(width, sources, LAST_GAIN),
                vb.pp("output"),
            )?,
        })
    }

    fn embed(&self, filtered: &Tensor, mode: Mode) -> Result<Tensor> {
        let x = self.input_projection.forward(filtered)?;
        self.dropout.forward(&placed(&x, &self.positions)?, mode)
    }

    pub(crate) fn forward(&self, x: &Tensor, mode: Mode) -> Result<Tensor> {
        let mut x = self.embed(&self.filter.forward(x)?, mode)?;
        for layer in &self.layers {
            x = layer.forward(&x, mode)?;
        }
        self.head.forward(&x)
    }

    pub(crate) fn export(&self, graph: &mut Graph, x: &Value) -> Result<Value> {
        let x = self.filter.export(graph, x)?;
        let x = self.input_projection.export(graph, &x, Activation::Identity)?;
        let positions = graph.constant("positions", &self.positions)?;
        let mut x = export_placed(graph, &x, &positions)?;
        for layer in &self.layers {
            x = layer.export(graph, &x, None, None)?.0;
        }
        self.head.export(graph, &x, Activation::Identity)
    }

    pub(crate) fn activations(&self, x: &Tensor) -> Result<Vec<(String, Tensor)>> {
        let filtered = self.filter.forward(x)?;
        let x = self.embed(&filtered, Mode::Eval)?;
        let mut all = vec![("spatial".to_string(), filtered), ("embedding".to_string(), x.clone())];
        let x = within(&self.layers, x, &mut all)?;
        all.push(("sources".to_string(), self.head.forward(&x)?));
        Ok(all)
    }
}
