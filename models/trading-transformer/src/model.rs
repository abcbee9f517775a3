//! The network.
//!
//! Letters: b batch, s bars, f features of a bar (129), d width, o features that come out.

use std::path::Path;

use candle_core::{DType, Device, Result, Tensor, bail};
use candle_nn::VarBuilder;
use zoo_checkpoint::Description;
use zoo_layers::onnx::{Dim, Element, Graph, Value};
use zoo_layers::{
    AttentionConfig, BlockConfig, Dropout, Linear, MlpConfig, Mode, Norm, NormPlace, Params, Qkv, RunningNorm,
    TransformerBlock, init, ops, sinusoids,
};

use crate::config::NAME;
use crate::features::FEATURES;
use crate::{Config, Head, InputNorm};

/// Added to the variance in the norms.
const EPS: f64 = 1e-5;
/// Added to the running variances: those of quiet markets' third moments are as small as 1e-24.
const RUNNING_EPS: f64 = 1e-30;
/// Gain of Glorot's initial values for linear maps.
pub(crate) const LINEAR_GAIN: f64 = 0.6;
/// The same for attention's maps.
pub(crate) const ATTENTION_GAIN: f64 = 0.8;
/// Gain of the actor's last map: all choices are about as likely at the start (Huang et al. 2022, detail 2).
const ACTOR_GAIN: f64 = 0.01;
/// Features within actor and critic.
pub(crate) const POLICY_WIDTH: usize = 64;
/// Directions: down, flat, up.
pub const DIRECTIONS: [&str; 3] = ["down", "flat", "up"];

#[derive(Clone, Debug)]
enum Input {
    Layer,
    None,
    Running(RunningNorm),
}

/// A linear map, tanh, a linear map; the names are those of PyTorch's `Sequential`.
#[derive(Clone, Debug)]
struct Tower {
    first: Linear,
    last: Linear,
}

impl Tower {
    fn new(from: usize, to: usize, gain: f64, vb: VarBuilder) -> Result<Self> {
        let map = |from, to, gain, name: &str| {
            Linear::with_biases(from, to, Some(init::ZEROS), init::xavier_uniform(from, to, gain), vb.pp(name))
        };
        Ok(Self { first: map(from, POLICY_WIDTH, LINEAR_GAIN, "0")?, last: map(POLICY_WIDTH, to, gain, "2")? })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.last.forward(&self.first.forward(x)?.tanh()?)
    }

    fn export(&self, graph: &mut Graph, x: &Value) -> Result<Value> {
        let hidden = self.first.export(graph, x, ops::Activation::Identity)?;
        let hidden = graph.op("Tanh", &[&hidden], &[]);
        self.last.export(graph, &hidden, ops::Activation::Identity)
    }
}

#[derive(Clone, Debug)]
enum Top {
    Directions(Linear),
    Policy { actor: Tower, critic: Tower },
}

/// What becomes of an observation (b, s·f): input norm, `temporal_projection` to the width, dropout, sinusoidal positions,
/// `norm`, pre-norm `encoder` layers, `output_norm`, a mean over the bars weighted by the softmax of `pooling`, `aggregator`.
/// On top of it either `head` tells the direction, or `actor` and `critic` make a policy. Parameters have PyTorch's names for such
/// modules.
#[derive(Clone, Debug)]
pub struct TradingTransformer {
    bars: usize,
    input: Input,
    temporal_projection: Linear,
    projection_dropout: Dropout,
    /// (s, d)
    positions: Tensor,
    norm: Norm,
    encoder: Vec<TransformerBlock>,
    output_norm: Norm,
    /// (s)
    pooling: Tensor,
    /// Added to the pooling's logits (s), if any.
    recency: Option<Tensor>,
    aggregator: Linear,
    top: Top,
}

impl TradingTransformer {
    /// Defines the parameters.
    ///
    /// # Errors
    /// Sizes of zero, or heads that do not divide the width.
    pub fn new(config: &Config, vb: VarBuilder) -> Result<Self> {
        let &Config { bars, input_norm, width, heads, layers, hidden, features_dim, dropout, recency, head, actions } =
            config;
        if let Some(problem) = config.problem() {
            bail!("{problem}")
        }
        let linear = |from, to, name: &str| {
            Linear::with_biases(from, to, Some(init::ZEROS), init::xavier_uniform(from, to, LINEAR_GAIN), vb.pp(name))
        };
        let block = BlockConfig {
            attention: AttentionConfig {
                width,
                heads,
                qkv: Qkv::Packed,
                bias: true,
                causal: false,
                dropout,
                init: [
                    init::xavier_uniform(width, 3 * width, ATTENTION_GAIN),
                    init::xavier_uniform(width, width, ATTENTION_GAIN),
                ],
            },
            mlp: MlpConfig {
                width,
                hidden,
                bias: true,
                activation: ops::Activation::Gelu,
                dropout,
                init: [init::xavier_uniform(width, hidden, LINEAR_GAIN); 2],
            },
            norm: NormPlace::Pre,
            norm_bias: true,
            eps: EPS,
            dropout,
        };
        let ramp: Vec<f32> = (0..bars).map(|s| (recency * s as f64 / (bars - 1).max(1) as f64) as f32).collect();
        Ok(Self {
            bars,
            input: match input_norm {
                InputNorm::Layer => Input::Layer,
                InputNorm::None => Input::None,
                InputNorm::Running => Input::Running(RunningNorm::new(FEATURES, RUNNING_EPS, vb.pp("input_norm"))?),
            },
            temporal_projection: linear(FEATURES, width, "temporal_projection")?,
            projection_dropout: Dropout::new(dropout, "projection_dropout"),
            positions: sinusoids(bars, width, vb.device())?,
            norm: Norm::layer(width, EPS, true, vb.pp("norm"))?,
            encoder: (0..layers)
                .map(|i| TransformerBlock::new(block, vb.pp("encoder.layers").pp(i)))
                .collect::<Result<_>>()?,
            output_norm: Norm::layer(width, EPS, true, vb.pp("output_norm"))?,
            pooling: vb.get_with_hints(bars, "pooling", init::ZEROS)?,
            recency: if recency == 0. { None } else { Some(Tensor::from_vec(ramp, bars, vb.device())?) },
            aggregator: linear(width, features_dim, "aggregator")?,
            top: match head {
                Head::Directions => Top::Directions(linear(features_dim, DIRECTIONS.len(), "head")?),
                Head::Policy => Top::Policy {
                    actor: Tower::new(features_dim, actions, ACTOR_GAIN, vb.pp("actor"))?,
                    critic: Tower::new(features_dim, 1, LINEAR_GAIN, vb.pp("critic"))?,
                },
            },
        })
    }

    /// An observation (b, s·f), bar after bar, to what the first map sees (b, s, f).
    pub(crate) fn normalize(&self, observation: &Tensor, mode: Mode) -> Result<Tensor> {
        let x = observation.reshape(((), self.bars, FEATURES))?; // (b, s, f)
        match &self.input {
            // Features differ too much in scale for narrow types.
            Input::Layer => ops::autocast(DType::F32, || ops::layer_norm(&x, None, None, EPS)),
            Input::None => Ok(x),
            Input::Running(norm) => norm.forward(&x, mode),
        }
    }

    /// (b, s, f) to (b, s, d).
    pub(crate) fn project(&self, x: &Tensor) -> Result<Tensor> {
        self.temporal_projection.forward(x)
    }

    /// What the encoder sees of projected bars, (b, s, d) to (b, s, d).
    pub(crate) fn place(&self, projected: &Tensor, mode: Mode) -> Result<Tensor> {
        let x = self.projection_dropout.forward(projected, mode)?;
        self.norm.forward(&ops::add_dropout(&self.positions, &x, None)?)
    }

    /// (b, s, d) to (b, s, d).
    pub(crate) fn encode(&self, x: &Tensor, mode: Mode) -> Result<Tensor> {
        let mut x = x.clone();
        for block in &self.encoder {
            x = block.forward(&x, mode)?;
        }
        Ok(x)
    }

    /// Encoded bars (b, s, d) to features (b, o).
    pub(crate) fn aggregate(&self, x: &Tensor) -> Result<Tensor> {
        let x = self.output_norm.forward(x)?;
        self.aggregator.forward(&ops::pool(&x, &self.pooling_weights()?)?) // (b, o)
    }

    /// The weight of each bar in the mean over them, oldest first (s).
    pub fn pooling_weights(&self) -> Result<Tensor> {
        match &self.recency {
            Some(ramp) => ops::autocast(DType::F32, || ops::softmax(&ops::add_dropout(&self.pooling, ramp, None)?)),
            None => ops::softmax(&self.pooling),
        }
    }

    /// The logits (b, 3) of features (b, o).
    pub(crate) fn logits(&self, features: &Tensor) -> Result<Tensor> {
        match &self.top {
            Top::Directions(head) => head.forward(&ops::gelu(features)?),
            Top::Policy { .. } => bail!("trading-transformer: these weights are a policy: it tells no directions"),
        }
    }

    /// The logits of each exposure (b, a) and the values (b) of observations (b, s·f). Running statistics stay as they are in both
    /// modes: a policy must not change while it is trained on what it did.
    ///
    /// # Errors
    /// Observations of another length, or weights that tell directions.
    pub fn actor_critic(&self, observation: &Tensor, mode: Mode) -> Result<(Tensor, Tensor)> {
        let Top::Policy { actor, critic } = &self.top else {
            bail!("trading-transformer: these weights tell directions and are no policy (the preset ppo trains one)")
        };
        let features = ops::gelu(&self.extract_as(observation, Mode::Eval, mode)?)?;
        Ok((actor.forward(&features)?, critic.forward(&features)?.squeeze(1)?))
    }

    /// The chance (b, a) that the policy gives each exposure after observations (b, s·f), from the shortest to the longest.
    ///
    /// # Errors
    /// Observations of another length, or weights that tell directions.
    pub fn policy(&self, observation: &Tensor) -> Result<Tensor> {
        ops::softmax(&self.actor_critic(observation, Mode::Eval)?.0)
    }

    /// Counts observations (b, s·f) in the running statistics, if there are any.
    #[cfg(feature = "train")]
    pub(crate) fn count(&self, observation: &Tensor) -> Result<()> {
        if let Input::Running(_) = &self.input {
            self.normalize(observation, Mode::Train { seed: 0, step: 0 })?;
        }
        Ok(())
    }

    /// An observation of the right length.
    fn checked<'a>(&self, observation: &'a Tensor) -> Result<&'a Tensor> {
        let (b, n) = observation.dims2()?;
        if b == 0 || n != self.bars * FEATURES {
            bail!(
                "trading-transformer: expected observations (b, {}), got {:?}",
                self.bars * FEATURES,
                observation.dims()
            )
        }
        Ok(observation)
    }

    /// Observations (b, s·f) to features (b, o).
    ///
    /// # Errors
    /// Observations of another length.
    pub fn extract(&self, observation: &Tensor, mode: Mode) -> Result<Tensor> {
        self.extract_as(observation, mode, mode)
    }

    /// [`Self::extract`] with a mode of its own for the running statistics.
    fn extract_as(&self, observation: &Tensor, statistics: Mode, mode: Mode) -> Result<Tensor> {
        let x = self.project(&self.normalize(self.checked(observation)?, statistics)?)?; // (b, s, d)
        self.aggregate(&self.encode(&self.place(&x, mode)?, mode)?)
    }

    /// Observations (b, s·f) to the logits (b, 3) of down, flat and up.
    ///
    /// # Errors
    /// Observations of another length.
    pub fn forward(&self, observation: &Tensor, mode: Mode) -> Result<Tensor> {
        self.logits(&self.extract(observation, mode)?)
    }

    /// The features (b, o) of observations (b, s·f).
    ///
    /// # Errors
    /// Observations of another length.
    pub fn features(&self, observation: &Tensor) -> Result<Tensor> {
        self.extract(observation, Mode::Eval)
    }

    /// The chances (b, 3) of down, flat and up after observations (b, s·f).
    ///
    /// # Errors
    /// Observations of another length.
    pub fn directions(&self, observation: &Tensor) -> Result<Tensor> {
        ops::softmax(&self.forward(observation, Mode::Eval)?)
    }

    /// Adds the model to a graph: `observation` (batch, s·f) to `features` (batch, o), and to `directions` (batch, 3), the chances of down, flat and
    /// up, or to `policy` (batch, a), the chances of the exposures from the shortest to the longest, and `value` (batch, 1).
    ///
    /// # Errors
    /// See [`Graph::parameter`].
    pub fn export(&self, graph: &mut Graph) -> Result<()> {
        let batch = Dim::Any("batch");
        let help = format!("{} bars of {FEATURES} features, oldest first", self.bars);
        let dims = [batch.clone(), Dim::Of(self.bars * FEATURES)];
        let observation = graph.input("observation", Element::F32, &dims, &help)?;
        let x = graph.reshape(&observation, &[-1, self.bars as i64, FEATURES as i64])?; // (b, s, f)
        let x = match &self.input {
            Input::Layer => {
                let ones = graph.constant("input_norm.ones", &Tensor::ones(FEATURES, DType::F32, &Device::Cpu)?)?;
                graph.layer_norm(&x, &ones, None, EPS)
            }
            Input::None => x,
            Input::Running(norm) => norm.export(graph, &x)?,
        };
        let x = self.temporal_projection.export(graph, &x, ops::Activation::Identity)?; // (b, s, d)
        let positions = graph.constant("positions", &self.positions)?;
        let x = graph.add(&x, &positions);
        let mut x = self.norm.export(graph, &x)?;
        for block in &self.encoder {
            x = block.export(graph, &x, None, None)?.0;
        }
        let x = self.output_norm.export(graph, &x)?;
        let mut pooling = graph.parameter(&self.pooling)?;
        if let Some(ramp) = &self.recency {
            let ramp = graph.constant("recency", ramp)?;
            pooling = graph.add(&pooling, &ramp);
        }
        let weights = graph.softmax(&pooling);
        let pooled = graph.op("MatMul", &[&weights, &x], &[]); // (b, d)
        let features = self.aggregator.export(graph, &pooled, ops::Activation::Identity)?; // (b, o)
        let active = graph.activation(&features, ops::Activation::Gelu)?;
        let mut outputs = vec![("features", features, self.aggregator.width(), "Features of the market")];
        match &self.top {
            Top::Directions(head) => {
                let logits = head.export(graph, &active, ops::Activation::Identity)?;
                outputs.push(("directions", graph.softmax(&logits), DIRECTIONS.len(), "Chances of down, flat and up"));
            }
            Top::Policy { actor, critic } => {
                let logits = actor.export(graph, &active)?;
                let help = "Chances of the exposures, from the shortest to the longest";
                outputs.push(("policy", graph.softmax(&logits), actor.last.width(), help));
                let value = critic.export(graph, &active)?;
                outputs.push(("value", value, 1, "What the policy expects to earn, as it was rewarded"));
            }
        }
        for (name, value, width, help) in outputs {
            graph.output(name, &value, Element::F32, &[batch.clone(), Dim::Of(width)], help)?;
        }
        Ok(())
    }

    /// What happens to observations (b, s·f) on their way, when evaluating.
    #[cfg(feature = "train")]
    pub(crate) fn probes(&self, observation: &Tensor) -> Result<Vec<zoo_training::health::Probe>> {
        use zoo_training::health::{Probe, ProbeKind};
        let groups = || crate::features::groups().into_iter().map(|g| (g.name, g.range)).collect();
        let normalized = self.normalize(observation, Mode::Eval)?;
        let projected = self.project(&normalized)?;
        let encoded = self.encode(&self.place(&projected, Mode::Eval)?, Mode::Eval)?;
        let features = self.aggregate(&encoded)?;
        let raw = observation.reshape(((), FEATURES))?;
        // Running statistics that have seen nothing say nothing about what the projection will see.
        let seen = match &self.input {
            Input::Running(norm) => norm.rows()? > 0.,
            Input::Layer | Input::None => true,
        };
        let kind = if seen { ProbeKind::Input } else { ProbeKind::Output };
        let judged = if seen { ProbeKind::Preactivation } else { ProbeKind::Output };
        Ok(vec![
            Probe { groups: groups(), ..Probe::new("observation", ProbeKind::Raw, &raw) },
            Probe { groups: groups(), ..Probe::new("temporal_projection.input", kind, &normalized) },
            Probe::new("temporal_projection", judged, &projected),
            Probe::new("encoder", ProbeKind::Output, &encoded),
            Probe::new("features", ProbeKind::Output, &features),
        ])
    }

    /// Bars of an observation.
    pub fn bars(&self) -> usize {
        self.bars
    }

    /// Loads trained weights: weights and sizes are in the one file.
    ///
    /// # Errors
    /// The file cannot be read, is not a trading transformer, or its tensors do not fit its own description.
    pub fn load(path: &Path, device: &Device) -> Result<Self> {
        let (config, _, tensors): (Config, serde_json::Value, _) =
            Description::open(path, NAME, device).map_err(candle_core::Error::wrap)?;
        let restored = Params::restore(tensors, device, |vb| Self::new(&config, vb));
        restored.map(|(model, _)| model).map_err(|e| candle_core::Error::msg(format!("{}: {e}", path.display())))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::D;

    use super::*;

    #[test]
    fn the_reference_has_223_895_parameters_in_23_tensors() -> Result<()> {
        let params = Params::init(1, &Device::Cpu);
        TradingTransformer::new(&Config::default(), params.builder())?;
        let all = params.all();
        assert_eq!((all.len(), all.iter().map(|p| p.var.elem_count()).sum::<usize>()), (23, 223_895));
        Ok(())
    }

    #[test]
    fn pooling_starts_uniform_and_recency_leans_to_the_last_bar() -> Result<()> {
        for (recency, ratio) in [(0., 1f64), (2., 2f64.exp())] {
            let params = Params::init(1, &Device::Cpu);
            let config = Config { recency, ..Config::tiny() };
            let weights = TradingTransformer::new(&config, params.builder())?.pooling_weights()?.to_vec1::<f32>()?;
            assert!((f64::from(weights[3] / weights[0]) / ratio - 1.).abs() < 1e-5, "{weights:?}");
            assert!((weights.iter().sum::<f32>() - 1.).abs() < 1e-6);
        }
        Ok(())
    }

    #[test]
    fn every_parameter_learns_under_every_input_norm_and_wrong_observations_are_refused() -> Result<()> {
        for input_norm in [InputNorm::Layer, InputNorm::None, InputNorm::Running] {
            let params = Params::init(1, &Device::Cpu);
            let config = Config { input_norm, ..Config::tiny() };
            let model = TradingTransformer::new(&config, params.builder())?;
            let x = Tensor::randn(0f32, 1., (3, config.observation()), &Device::Cpu)?;
            let logits = model.forward(&x, Mode::Train { seed: 1, step: 0 })?;
            assert_eq!(logits.dims(), [3, 3]);
            let loss = logits.narrow(D::Minus1, 0, 1)?.sqr()?.sum_all()?;
            assert!(params.gradients(&loss.backward()?).missing().is_empty(), "{input_norm:?}");
            assert_eq!(model.features(&x)?.dims(), [3, 8]);
            let e = model.features(&x.narrow(1, 0, 100)?).unwrap_err().to_string();
            assert!(e.starts_with("trading-transformer: expected observations (b, 516), got [3, 100]"), "{e}");
        }
        Ok(())
    }
}
