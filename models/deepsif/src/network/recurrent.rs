use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;
use zoo_layers::onnx::{Graph, Value};
use zoo_layers::{Lstm, LstmConfig, Mode};

use super::SpatialFilter;
use crate::Config;

/// The published network: the spatial filter, and LSTM layers whose state is the sources themselves. Its tensors have the
/// published names, `spatial.fc11.weight` … `temporal.rnns.0.bias_hh_l2`.
#[derive(Clone, Debug)]
pub(crate) struct Recurrent {
    filter: SpatialFilter,
    lstm: Lstm,
}

impl Recurrent {
    pub(crate) fn new(config: &Config, vb: VarBuilder) -> Result<Self> {
        let &Config { sources, filter, layers, dropout, .. } = config;
        let sizes = LstmConfig { input: filter, hidden: sources, layers, dropout };
        Ok(Self {
            filter: SpatialFilter::new(config, vb.pp("spatial"))?,
            lstm: Lstm::new(sizes, vb.pp("temporal.rnns.0"))?,
        })
    }

    pub(crate) fn forward(&self, x: &Tensor, mode: Mode) -> Result<Tensor> {
        Ok(self.lstm.forward(&self.filter.forward(x)?, mode)?.outputs)
    }

    pub(crate) fn export(&self, graph: &mut Graph, x: &Value) -> Result<Value> {
        let filtered = self.filter.export(graph, x)?;
        let [outputs, _, _] = self.lstm.export(graph, &filtered, None)?;
        Ok(outputs)
    }

    pub(crate) fn activations(&self, x: &Tensor) -> Result<Vec<(String, Tensor)>> {
        let filtered = self.filter.forward(x)?;
        let sources = self.lstm.forward(&filtered, Mode::Eval)?.outputs;
        Ok(vec![("spatial".to_string(), filtered), ("sources".to_string(), sources)])
    }
}
