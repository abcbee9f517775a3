//! The data of either head: which way the close goes, or a market to trade in.

use candle_core::{Result, Tensor};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use zoo_layers::Mode;
use zoo_training::health::RepairConfig;
use zoo_training::{Evaluation, Metrics, Name, Split, TrainConfig, ppo};

use crate::TradingTransformer;
use crate::trading::Policy;

/// The data of a head.
pub struct TradingTask(pub(crate) Box<dyn Data>);

/// What the two kinds of data do: directions, and a market to trade in.
pub(crate) trait Data: Send + Sync {
    fn describe_data(&self) -> String;
    fn fingerprint(&self) -> String;
    fn fitted(&self) -> Value;
    fn warnings(&self) -> Vec<String>;
    fn samples(&self, split: Split) -> usize;
    fn batch(&self, split: Split, indices: &[usize]) -> Result<Batch>;
    /// Logits of directions or exposures (b, 3 or a).
    fn forward(&self, model: &TradingTransformer, batch: &Batch, mode: Mode) -> Result<Tensor>;
    fn validate(&self, model: &TradingTransformer, split: Split) -> Result<Metrics>;
    fn evaluate(&self, model: &TradingTransformer, split: Split) -> Result<Evaluation>;

    /// The loss of a rule that takes no training, and its name.
    fn baseline(&self, split: Split) -> Option<(Name, f64)> {
        let _ = split;
        None
    }

    /// The market, if it is a policy's.
    fn policy(&self) -> Option<&Policy> {
        None
    }
}

impl TradingTask {
    /// The market, if it is a policy's.
    pub(crate) fn policy(&self) -> Option<&Policy> {
        self.0.policy()
    }
}

/// Observations (b, s·f), and what is to be learned of them.
#[derive(Clone)]
pub enum Batch {
    /// Directions (b).
    Directions(Tensor, Tensor),
    /// What a policy did.
    Acted(ppo::Batch),
    /// Nothing.
    Seen(Tensor),
}

impl From<ppo::Batch> for Batch {
    fn from(batch: ppo::Batch) -> Self {
        Self::Acted(batch)
    }
}

impl Batch {
    pub(crate) fn observation(&self) -> &Tensor {
        match self {
            Self::Directions(x, _) | Self::Seen(x) => x,
            Self::Acted(batch) => &batch.observation,
        }
    }
}

/// Tables beside `[model]`, `[data]` and `[train]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Settings {
    /// How a policy is trained.
    pub ppo: ppo::Settings,
    /// What is done at a health check.
    pub repair: RepairConfig,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            ppo: ppo::Settings { gamma: 0.9, normalize_reward: true, ..ppo::Settings::default() },
            repair: RepairConfig::default(),
        }
    }
}

impl zoo_training::Settings for Settings {
    fn validate(&self, train: &TrainConfig) -> zoo_training::Result<()> {
        self.ppo.validate()?;
        self.repair.validate(train)
    }
}
