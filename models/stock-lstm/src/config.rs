use serde::{Deserialize, Serialize};
use zoo_market::Reading;

/// The model's name, which its weights carry.
pub(crate) const NAME: &str = "stock-lstm";

/// The table `[model]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Features of a day: 1 for `data.features = "close"`, 5 for `"ohlcv"`.
    pub input: usize,
    /// Features of the LSTM's state.
    pub hidden: usize,
    /// LSTM layers.
    pub layers: usize,
    /// Dropout between layers and before the head.
    pub dropout: f64,
    /// Days that the model sees.
    pub window: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self { input: 1, hidden: 50, layers: 2, dropout: 0.2, window: 60 }
    }
}

impl Config {
    /// Small enough for tests.
    pub fn tiny() -> Self {
        Self { hidden: 4, window: 5, ..Self::default() }
    }
}

/// What a day's features are made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FeatureSet {
    /// The close alone.
    #[default]
    Close,
    /// Open, high, low, close and volume.
    Ohlcv,
}

impl FeatureSet {
    /// Features of a day.
    pub fn len(self) -> usize {
        match self {
            Self::Close => 1,
            Self::Ohlcv => 5,
        }
    }

    /// Never: a day has features.
    pub fn is_empty(self) -> bool {
        false
    }
}

/// What the model forecasts, and with it the scale of its inputs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Target {
    /// The log return of the adjusted close: the same scale at any price, through splits and trends.
    #[default]
    Return,
    /// The adjusted close between the training part's least (0) and greatest (1).
    Close,
}

/// The table `[data]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DataSettings {
    /// A daily price file; simulated prices if empty.
    pub path: String,
    /// How that file is read.
    #[serde(flatten)]
    pub reading: Reading,
    /// What the model forecasts.
    pub target: Target,
    /// What it sees of a day.
    pub features: FeatureSet,
    /// Share of the samples, in time order after the training part, that decides when to stop.
    pub valid: f64,
    /// Share at the end that judges the model.
    pub test: f64,
    /// Days to simulate where no file is given.
    pub simulated_days: usize,
}

impl Default for DataSettings {
    fn default() -> Self {
        Self {
            path: String::new(),
            reading: Reading::default(),
            target: Target::Return,
            features: FeatureSet::Close,
            valid: 0.15,
            test: 0.15,
            simulated_days: 2500,
        }
    }
}
