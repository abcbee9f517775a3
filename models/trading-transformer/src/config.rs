use serde::{Deserialize, Serialize};

use crate::features::FEATURES;

/// What happens to a bar's features before the first map.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum InputNorm {
    /// Layer norm over the bar's features, without affine map.
    #[default]
    Layer,
    /// Nothing.
    None,
    /// Each feature by its own running mean and variance.
    Running,
}

/// The table `[model]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Bars of an observation.
    pub bars: usize,
    /// What happens to a bar's features before the first map.
    pub input_norm: InputNorm,
    /// Features of a bar within the network.
    pub width: usize,
    /// Attention heads.
    pub heads: usize,
    /// Encoder layers.
    pub layers: usize,
    /// Features within the encoder's MLP.
    pub hidden: usize,
    /// Features that come out.
    pub features_dim: usize,
    /// Dropout behind the first map and in the encoder.
    pub dropout: f64,
    /// How much the pooling prefers the last bar over the first at the start, as a difference of logits.
    pub recency: f64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            bars: 20,
            input_norm: InputNorm::Layer,
            width: 128,
            heads: 4,
            layers: 1,
            hidden: 512,
            features_dim: 64,
            dropout: 0.1,
            recency: 0.,
        }
    }
}

impl Config {
    /// Small enough for tests.
    pub fn tiny() -> Self {
        Self { bars: 4, width: 16, heads: 2, hidden: 32, features_dim: 8, ..Self::default() }
    }

    /// Length of an observation: bars times features of a bar.
    pub fn observation(&self) -> usize {
        self.bars.saturating_mul(FEATURES)
    }

    /// What cannot work, if anything.
    pub fn problem(&self) -> Option<String> {
        let &Self { bars, width, heads, layers, hidden, features_dim, dropout, recency, .. } = self;
        if [bars, width, heads, layers, hidden, features_dim].contains(&0) {
            return Some("model.bars, width, heads, layers, hidden and features_dim must be at least 1".into());
        }
        if bars > 100_000 || layers > 1000 {
            return Some(format!(
                "model.bars = {bars} or model.layers = {layers} is too large: at most 100,000 and 1,000"
            ));
        }
        if !width.is_multiple_of(heads) {
            return Some(format!("model.width = {width} does not divide into model.heads = {heads}"));
        }
        if !width.is_multiple_of(2) {
            return Some(format!("model.width = {width} must be even: positions are pairs of sine and cosine"));
        }
        if !(0. ..1.).contains(&dropout) {
            return Some(format!("model.dropout is {dropout}, expected a share below 1"));
        }
        if bars < 2 {
            return Some("model.bars must be at least 2: attention over one bar has nothing to choose from".into());
        }
        (!recency.is_finite()).then(|| format!("model.recency is {recency}, expected a number"))
    }
}

/// The table `[data]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Source {
    /// A daily price file with open, high, low, close and volume; a simulated market if empty.
    pub path: String,
    /// The file's column of closes; found by its name if empty.
    pub column: String,
    /// The file's column of dates; found by its name if empty.
    pub date_column: String,
    /// Leaves out rows that cannot be read, and later rows of a date that is there twice.
    pub skip_bad_rows: bool,
    /// Bars ahead whose direction is to be told.
    pub horizon: usize,
    /// A move of less than this many standard deviations, either way, counts as flat.
    pub band: f64,
    /// Whether a simulated trader holds positions; without one the features of the position are zero.
    pub positions: bool,
    /// Share of the samples, in time order after the training part, that decides when to stop.
    pub valid: f64,
    /// Share at the end that judges the model.
    pub test: f64,
    /// Days to simulate where no file is given.
    pub simulated_days: usize,
}

impl Default for Source {
    fn default() -> Self {
        Self {
            path: String::new(),
            column: String::new(),
            date_column: String::new(),
            skip_bad_rows: false,
            horizon: 5,
            band: 0.43,
            positions: true,
            valid: 0.15,
            test: 0.15,
            simulated_days: 6000,
        }
    }
}

#[cfg(feature = "train")]
impl Source {
    /// How its file is read.
    pub fn reading(&self) -> zoo_market::Reading {
        zoo_market::Reading {
            column: self.column.clone(),
            date_column: self.date_column.clone(),
            skip_bad_rows: self.skip_bad_rows,
            bars: true,
        }
    }
}
