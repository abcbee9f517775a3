use serde::{Deserialize, Serialize};
use zoo_market::Reading;

use crate::features::FEATURES;

/// The model's name, which its weights carry.
pub(crate) const NAME: &str = "trading-transformer";

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

/// What stands on the extracted features.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Head {
    /// One linear map to down, flat and up.
    #[default]
    Directions,
    /// An actor that chooses an exposure, and a critic that tells what it is worth.
    Policy,
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
    /// What stands on the features.
    pub head: Head,
    /// Exposures that a policy chooses from, short, flat and long; the data decide it (`data.sizes`).
    pub actions: usize,
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
            head: Head::Directions,
            actions: 3,
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
        if !(3..=1001).contains(&self.actions) || self.actions.is_multiple_of(2) {
            return Some(format!(
                "model.actions = {}: short, flat and long make 3, and each further size 2 more",
                self.actions
            ));
        }
        (!recency.is_finite()).then(|| format!("model.recency is {recency}, expected a number"))
    }
}

/// What a simulated market is like.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SimulatedMarket {
    /// Volatility that clusters, in two regimes; it cannot be forecast.
    #[default]
    Garch,
    /// Each return is `coefficient` times the one before, plus noise; a random walk at 0.
    Autoregressive,
}

/// The table `[data]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DataSettings {
    /// A daily price file with open, high, low, close and volume; a simulated market if empty. For a policy also a folder of such
    /// files, one a symbol.
    pub path: String,
    /// How such a file is read.
    #[serde(flatten)]
    pub reading: Reading,
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
    /// What is simulated for a policy.
    pub simulated_market: SimulatedMarket,
    /// How many symbols are.
    pub simulated_symbols: usize,
    /// What an autoregressive market's returns keep of the return before.
    pub coefficient: f64,
    /// Sizes of positions that a policy chooses from, long or short, as shares of the equity.
    pub sizes: Vec<f64>,
    /// Commission, as a share of the value traded.
    pub cost: f64,
    /// How much worse than the price a fill is, as a share of it.
    pub slippage: f64,
    /// Average true ranges from entry to stop.
    pub stop: f64,
    /// The same to the target.
    pub target: f64,
    /// Bars of an episode in training.
    pub episode: usize,
    /// For a policy: leaves out so many test periods at the end, so that a run each for 4, 3, 2, 1 and 0 walks forward.
    pub walk_forward: usize,
}

impl Default for DataSettings {
    fn default() -> Self {
        Self {
            path: String::new(),
            reading: Reading::default(),
            horizon: 5,
            band: 0.43,
            positions: true,
            valid: 0.15,
            test: 0.15,
            simulated_days: 6000,
            simulated_market: SimulatedMarket::Garch,
            simulated_symbols: 1,
            coefficient: 0.,
            sizes: vec![1.],
            cost: 0.0005,
            slippage: 0.0005,
            stop: 3.,
            target: 6.,
            episode: 250,
            walk_forward: 0,
        }
    }
}

#[cfg(feature = "train")]
impl DataSettings {
    /// The whole bars of a price file.
    pub(crate) fn read(&self, path: &std::path::Path) -> zoo_training::Result<zoo_market::Days> {
        if path.is_dir() {
            return Err(zoo_training::Error::Usage(format!("{}: a folder, expected a file", path.display())));
        }
        let mut days = zoo_market::read(path, &self.reading, zoo_market::Need::Bars).map_err(|e| match e {
            zoo_market::Error::Io { path, source } => zoo_training::Error::Io { path, source },
            e => zoo_training::Error::Data(e.keyed("data")),
        })?;
        if let Some(column) = days.missing.iter().find(|c| !["Adj Close", "Volume"].contains(c)) {
            let path = path.display();
            return Err(zoo_training::Error::Data(format!(
                "{path}: no column {column}, which the features of a bar need"
            )));
        }
        if days.missing.contains(&"Volume") {
            let silent = crate::features::of_volume().join(", ");
            days.warnings.push(format!("the file has no volume: these features say nothing: {silent}"));
        }
        Ok(days)
    }

    /// What trading costs, and when a position is given up.
    pub(crate) fn rules(&self) -> crate::trading::Rules {
        crate::trading::Rules { friction: self.cost + self.slippage, stop: self.stop, target: self.target }
    }

    /// Exposures to choose from, from the shortest to the longest.
    pub(crate) fn levels(&self) -> Vec<f64> {
        let sizes = self.sizes.iter().copied();
        let mut levels: Vec<f64> = sizes.clone().map(|s| -s).chain([0.]).chain(sizes).collect();
        levels.sort_by(f64::total_cmp);
        levels
    }

    /// What cannot work, if anything.
    pub(crate) fn problem(&self) -> Option<String> {
        let rising = self.sizes.windows(2).all(|w| w[0] < w[1]);
        let positive = |v: f64| v.is_finite() && v > 0.;
        let checks = [
            (
                (0. ..1.).contains(&self.valid) && (0. ..1.).contains(&self.test) && self.valid + self.test < 1.,
                "valid and data.test must be shares that leave a training part",
            ),
            (
                !self.path.is_empty() || self.reading.is_default(),
                "column, data.symbol and the like are about a file: name one by data.path",
            ),
            (
                (1..=500).contains(&self.sizes.len()) && rising && self.sizes.iter().all(|s| positive(*s) && *s <= 10.),
                "sizes must be rising positive shares of the equity, at most 10",
            ),
            ((0. ..0.1).contains(&self.cost), "cost must be a share of the value traded below 0.1"),
            ((0. ..0.1).contains(&self.slippage), "slippage must be a share of the price below 0.1"),
            (positive(self.stop), "stop must be positive (a large number is none)"),
            (positive(self.target), "target must be positive (a large number is none)"),
            (self.episode >= 2, "episode must have at least 2 bars"),
            (self.coefficient.abs() < 1., "coefficient must lie between -1 and 1"),
            (
                self.simulated_symbols > 0 && self.simulated_days.saturating_mul(self.simulated_symbols) <= 2_000_000,
                "simulated_symbols must be at least 1, and all of them have at most 2,000,000 days",
            ),
        ];
        checks.into_iter().find(|(ok, _)| !ok).map(|(_, what)| format!("data.{what}"))
    }
}
