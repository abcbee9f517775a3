//! The networks.
//!
//! Letters: b batch, t time steps, n sensors, h features of the spatial filter, d width.

mod filter;
mod graph;
mod maps;
mod neighbours;
mod recurrent;
mod transformer;

use candle_core::{Result, Tensor, bail};
use candle_nn::VarBuilder;
use zoo_layers::Mode;
use zoo_layers::onnx::{Attribute, Dim, Element, Graph as Onnx, Value};

#[cfg(feature = "train")]
use crate::bayes::Cortex;
use crate::{Config, Kind, RATE};
use filter::SpatialFilter;
use graph::Graph;
#[cfg(feature = "train")]
pub(crate) use graph::Scores;
use recurrent::Recurrent;
use transformer::{PostLn, PreLn};

/// EEG to the activity of the cortex's regions. Tensors: `spatial.fc11.weight` … `spatial.value.bias`; a transformer's
/// `input_projection.weight`, `encoder.layers.0.self_attn.…` …, its `positions`, `norm` and `output.0`, `output.3` if it is the
/// pre-norm one, or `output`; the LSTM's `temporal.rnns.0.weight_ih_l0` …; a graph network's `input.weight`, `layers.0.own.weight` …, and the head as
/// `constant_field`, `constant_centres`, `constant_neighbours` and `constant_rest`.
#[derive(Clone, Debug)]
pub struct Network(Inner);

#[derive(Clone, Debug)]
enum Inner {
    PreLn(Box<PreLn>),
    PostLn(Box<PostLn>),
    Recurrent(Box<Recurrent>),
    Graph(Box<Graph>),
}

impl Network {
    /// Defines the parameters.
    ///
    /// # Errors
    /// Sizes of zero, heads that do not divide the width, or a dropout that is no share.
    pub fn new(config: &Config, vb: VarBuilder) -> Result<Self> {
        if let Some(problem) = config.problem() {
            bail!("{problem}")
        }
        Ok(Self(match config.kind {
            Kind::Transformer => Inner::PreLn(Box::new(PreLn::new(config, vb)?)),
            Kind::PostLn => Inner::PostLn(Box::new(PostLn::new(config, vb)?)),
            Kind::Lstm => Inner::Recurrent(Box::new(Recurrent::new(config, vb)?)),
            Kind::Graph => Inner::Graph(Box::new(Graph::new(config, vb)?)),
        }))
    }

    /// EEG (b, t, n), each sample without its means over time and over sensors and divided by its largest magnitude, to
    /// activity (b, t, sources).
    ///
    /// # Errors
    /// Other shapes, more time steps than a transformer has positions, or a graph network that knows no head.
    pub fn forward(&self, eeg: &Tensor, mode: Mode) -> Result<Tensor> {
        match &self.0 {
            Inner::PreLn(network) => network.forward(eeg, mode),
            Inner::PostLn(network) => network.forward(eeg, mode),
            Inner::Recurrent(network) => network.forward(eeg, mode),
            Inner::Graph(network) => network.scores(eeg, mode)?.activity(),
        }
    }

    /// Adds the network to a graph: `eeg` (batch, time, n) in any unit, which is centred and scaled here, to `activity` (batch, time, sources).
    ///
    /// # Errors
    /// A graph network, whose maps no operators make; see [`Onnx::parameter`].
    pub fn export(&self, graph: &mut Onnx, config: &Config) -> Result<()> {
        let (batch, time) = (Dim::Any("batch"), Dim::Any("time"));
        let help = format!("EEG of {} electrodes at {RATE} Hz, in any unit", config.sensors);
        let dims = [batch.clone(), time.clone(), Dim::Of(config.sensors)];
        let eeg = graph.input("eeg", Element::F32, &dims, &help)?;
        let x = prepared(graph, &eeg)?;
        let activity = match &self.0 {
            Inner::PreLn(network) => network.export(graph, &x)?,
            Inner::PostLn(network) => network.export(graph, &x)?,
            Inner::Recurrent(network) => network.export(graph, &x)?,
            Inner::Graph(_) => bail!(
                "deepsif: a graph network (model.kind = \"graph\") begins with sparse Bayesian learning, which ONNX has no operators for: a \
                 transformer or an LSTM can be written"
            ),
        };
        let dims = [batch, time, Dim::Of(config.sources)];
        graph.output("activity", &activity, Element::F32, &dims, "Activity of the regions of the cortex")
    }

    /// Of a graph network, what it says of each region; nothing of the others, which tell activity alone.
    #[cfg(feature = "train")]
    pub(crate) fn scores(&self, eeg: &Tensor, mode: Mode) -> Result<Option<Scores>> {
        match &self.0 {
            Inner::Graph(network) => network.scores(eeg, mode).map(Some),
            _ => Ok(None),
        }
    }

    /// Tells a graph network the head of the data, which its weights keep; the others learn it.
    #[cfg(feature = "train")]
    pub(crate) fn meet(&self, cortex: impl FnOnce() -> Result<Cortex>) -> Result<()> {
        match &self.0 {
            Inner::Graph(network) => network.meet(cortex),
            _ => Ok(()),
        }
    }

    /// Activations by name when evaluating: what the spatial filter gives, what is within and behind each layer, the sources.
    ///
    /// # Errors
    /// As [`Network::forward`].
    pub fn activations(&self, eeg: &Tensor) -> Result<Vec<(String, Tensor)>> {
        match &self.0 {
            Inner::PreLn(network) => network.activations(eeg),
            Inner::PostLn(network) => network.activations(eeg),
            Inner::Recurrent(network) => network.activations(eeg),
            Inner::Graph(network) => network.activations(eeg),
        }
    }
}

/// [`prepare`](crate::prepare) as nodes of a graph.
fn prepared(graph: &mut Onnx, eeg: &Value) -> Result<Value> {
    let mut x = eeg.clone();
    for axis in [1, 2] {
        // Amplifiers have offsets that are large beside what they measure.
        let wide = graph.cast(&x, Element::F64);
        let over = [("axes", Attribute::Ints(vec![axis])), ("keepdims", Attribute::Int(1))];
        let mean = graph.op("ReduceMean", &[&wide], &over);
        let mean = graph.cast(&mean, Element::F32);
        x = graph.op("Sub", &[&x, &mean], &[]);
    }
    let size = graph.op("Abs", &[&x], &[]);
    let over = [("axes", Attribute::Ints(vec![1, 2])), ("keepdims", Attribute::Int(1))];
    let largest = graph.op("ReduceMax", &[&size], &over);
    let least = graph.number(f32::MIN_POSITIVE.into(), Element::F32)?;
    let largest = graph.op("Max", &[&largest, &least], &[]);
    Ok(graph.op("Div", &[&x, &largest], &[]))
}

#[cfg(test)]
mod tests {
    use candle_core::Device;
    use zoo_layers::Params;

    use super::*;

    fn count(config: &Config) -> Result<(usize, usize)> {
        let params = Params::init(1, &Device::Cpu);
        Network::new(config, params.builder())?;
        let all = params.all();
        Ok((all.len(), all.iter().map(|p| p.var.elem_count()).sum()))
    }

    #[test]
    fn the_networks_have_the_published_numbers_of_parameters() -> Result<()> {
        assert_eq!(count(&Config::default())?, (73, 3_244_218));
        assert_eq!(count(&Config::lstm())?, (24, 22_360_976));
        assert_eq!(count(&Config::post_ln())?, (64, 9_765_970));
        Ok(())
    }

    #[test]
    fn too_many_time_steps_are_refused_in_words() -> Result<()> {
        let params = Params::init(1, &Device::Cpu);
        let network = Network::new(&Config::tiny(), params.builder())?;
        let x = Tensor::zeros((1, 61, 8), candle_core::DType::F32, &Device::Cpu)?;
        let said = network.forward(&x, Mode::Eval).unwrap_err().to_string();
        assert!(said.contains("61 time steps") && said.contains("model.positions"), "{said}");
        Ok(())
    }
}
