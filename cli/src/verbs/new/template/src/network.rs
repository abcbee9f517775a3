//! The table `[model]` and the network: two layers on standardised features.

use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;
use serde::{Deserialize, Serialize};
use zoo_layers::{Linear, Mode, RunningNorm};

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Columns that the network sees: the data decide it.
    pub features: usize,
    pub hidden: usize,
}

pub struct Network {
    norm: RunningNorm,
    first: Linear,
    second: Linear,
}

impl Network {
    pub fn new(config: &Config, vb: VarBuilder) -> Result<Self> {
        Ok(Self {
            norm: RunningNorm::new(config.features, 1e-5, vb.pp("norm"))?,
            first: Linear::new(config.features, config.hidden, vb.pp("first"))?,
            second: Linear::new(config.hidden, 1, vb.pp("second"))?,
        })
    }

    /// Features (b, f) to the last column (b, 1).
    pub fn forward(&self, x: &Tensor, mode: Mode) -> Result<Tensor> {
        let hidden = self.first.forward(&self.norm.forward(x, mode)?)?.gelu_erf()?; // (b, h)
        self.second.forward(&hidden)
    }
}
