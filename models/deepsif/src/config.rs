use serde::{Deserialize, Serialize};

/// Which network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// The pre-norm transformer.
    #[default]
    Transformer,
    /// The published network: a stack of LSTMs behind the spatial filter.
    Lstm,
    /// A transformer as first published: norms behind the residual sums, fixed positions.
    PostLn,
    /// A network over the cortex, which looks at sparse Bayesian and sLORETA maps.
    Graph,
}

/// The activation of the spatial filter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FilterActivation {
    /// x Φ(x).
    #[default]
    Gelu,
    /// max(x, 0).
    Relu,
    /// x, or eˣ - 1 below zero.
    Elu,
}

/// The table `[model]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Which network.
    pub kind: Kind,
    /// EEG channels.
    pub sensors: usize,
    /// Regions of the cortex.
    pub sources: usize,
    /// Features that the spatial filter makes of a time step (no graph network has one).
    pub filter: usize,
    /// The activation of the spatial filter.
    pub activation: FilterActivation,
    /// Features of a time step within a transformer, of a region within a graph network.
    pub width: usize,
    /// Attention heads of a transformer.
    pub heads: usize,
    /// Layers of the transformer, the LSTM or the graph network.
    pub layers: usize,
    /// Features within the MLPs of a transformer.
    pub hidden: usize,
    /// Time steps that a transformer takes at most: it has as many positions.
    pub positions: usize,
    /// Dropout within the layers of a transformer or a graph network; the pre-norm one has half of it behind the spatial filter and in the head.
    pub dropout: f64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            kind: Kind::Transformer,
            sensors: 75,
            sources: 994,
            filter: 500,
            activation: FilterActivation::Gelu,
            width: 256,
            heads: 8,
            layers: 4,
            hidden: 512,
            positions: 1000,
            dropout: 0.15,
        }
    }
}

impl Config {
    /// The published network.
    pub fn lstm() -> Self {
        Self { kind: Kind::Lstm, activation: FilterActivation::Relu, layers: 3, dropout: 0., ..Self::default() }
    }

    /// The post-norm transformer.
    pub fn post_ln() -> Self {
        Self {
            kind: Kind::PostLn,
            activation: FilterActivation::Relu,
            width: 512,
            hidden: 1024,
            dropout: 0.1,
            ..Self::default()
        }
    }

    /// Small enough for tests.
    pub fn tiny() -> Self {
        Self {
            sensors: 8,
            sources: 20,
            filter: 16,
            width: 16,
            heads: 2,
            layers: 2,
            hidden: 32,
            positions: 60,
            ..Self::default()
        }
    }

    /// Whether it is a transformer, which has attention heads and positions.
    pub(crate) fn is_transformer(&self) -> bool {
        matches!(self.kind, Kind::Transformer | Kind::PostLn)
    }

    /// What cannot work about these numbers, naming the key.
    pub(crate) fn problem(&self) -> Option<String> {
        let &Self { kind, sensors, sources, filter, width, heads, layers, hidden, positions, dropout, .. } = self;
        if [sensors, sources, filter, width, heads, layers, hidden, positions].contains(&0) {
            return Some(
                "model.sensors, sources, filter, width, heads, layers, hidden and positions must be at least 1".into(),
            );
        }
        if [sensors, sources, filter, width, hidden, positions].into_iter().any(|size| size > 1_000_000) {
            return Some("model.sensors, sources, filter, width, hidden and positions must be at most 1000000".into());
        }
        if layers > 1000 {
            return Some(format!("model.layers is {layers}, expected at most 1000"));
        }
        if self.is_transformer() && width % heads != 0 {
            return Some(format!("model.width = {width} does not divide into model.heads = {heads}"));
        }
        if kind == Kind::Transformer && width < 2 {
            return Some("model.width must be at least 2: the head has half of it".into());
        }
        if kind == Kind::PostLn && width % 2 != 0 {
            return Some(format!("model.width = {width}: sines and cosines of positions need an even number"));
        }
        if !(0. ..1.).contains(&dropout) {
            return Some(format!("model.dropout is {dropout}, expected a share from 0 to below 1"));
        }
        None
    }
}

/// The table `[data]`.
#[cfg(feature = "train")]
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DataSettings {
    /// A folder with a head's MATLAB files (see [`Head::read`](crate::head::Head::read)) to simulate with, or a file of samples
    /// (`.npz` or `.mat`): `eeg` (samples, time steps, electrodes) and `activity` (samples, time steps, regions). The built-in
    /// head if empty.
    pub path: String,
    /// The folder of the head that a file of samples belongs to; the built-in head if empty.
    pub head: String,
    /// Simulated samples of an epoch; the same ones every epoch, but for augmentation. Of a file, all that are left.
    pub train: usize,
    /// Samples that decide when to stop, and that classical methods are tuned on; of a file, those before the last.
    pub valid: usize,
    /// Samples that judge; of a file, the last ones.
    pub test: usize,
    /// Share of the training samples that are changed each time: shifted by up to 5 time steps, with noise of 0.01 added.
    pub augment: f64,
    /// What is simulated.
    pub simulation: crate::simulation::Settings,
}

#[cfg(feature = "train")]
impl Default for DataSettings {
    fn default() -> Self {
        Self {
            path: String::new(),
            head: String::new(),
            train: 16_384,
            valid: 256,
            test: 1000,
            augment: 0.5,
            simulation: crate::simulation::Settings::default(),
        }
    }
}

#[cfg(feature = "train")]
impl DataSettings {
    /// What cannot work about these numbers, naming the key.
    pub(crate) fn problem(&self) -> Option<String> {
        if self.train == 0 {
            return Some("data.train must be at least 1".into());
        }
        const MOST: u64 = 1_000_000_000;
        const MOST_JUDGED: u64 = 1_000_000;
        let [train, valid, test] = [self.train, self.valid, self.test].map(|n| n as u64);
        if train > MOST || valid > MOST_JUDGED || test > MOST_JUDGED {
            return Some(format!(
                "data.train, valid and test are {train}, {valid} and {test}: expected at most {MOST}, {MOST_JUDGED} and {MOST_JUDGED}"
            ));
        }
        if !(0. ..=1.).contains(&self.augment) {
            return Some("data.augment must be a share from 0 to 1".into());
        }
        self.simulation.problem()
    }
}
