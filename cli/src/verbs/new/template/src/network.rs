//! The table `[model]` and the network: two layers.

use candle_core::{Result, Tensor, bail};
use candle_nn::VarBuilder;
use serde::{Deserialize, Serialize};
use zoo_layers::{Linear, ops};

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Columns that the network sees: the data decide it.
    pub features: usize,
    pub hidden: usize,
}

pub struct Network(Linear, Linear);

impl Network {
    pub fn new(&Config { features, hidden }: &Config, vb: VarBuilder) -> Result<Self> {
        if features == 0 || hidden == 0 {
            bail!("model.features and model.hidden must be at least 1");
        }
        // Each layer under a name of its own: two of one name would share their weights.
        Ok(Self(Linear::new(features, hidden, vb.pp("first"))?, Linear::new(hidden, 1, vb.pp("second"))?))
    }

    /// Features (b, f) to the predicted column (b, 1).
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.1.forward(&ops::gelu(&self.0.forward(x)?)?)
    }
}
