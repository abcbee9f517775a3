//! What the trainer needs, for either head: which way the close goes, or a policy.

use candle_core::{Device, Result, Tensor, bail};
use candle_nn::VarBuilder;
use serde_json::Value;
use zoo_layers::{Mode, ops};
use zoo_training::config::ConfigOf;
use zoo_training::health::{Probe, Profile, Role};
use zoo_training::ppo::{self, ActorCritic};
use zoo_training::{Evaluation, Experience, Loss, Metrics, Prediction, Preset, Request, Split, Task, TrainConfig};

use crate::directions::Directions;
use crate::features::FEATURES;
use crate::model::POLICY_WIDTH;
use crate::trading::{self, Policy};
use crate::{Config, DIRECTIONS, Head, Source, TradingTransformer, predict};

/// The data of a head.
pub struct TradingTask(Data);

enum Data {
    Directions(Box<Directions>),
    Policy(Box<Policy>),
}

impl TradingTask {
    /// The market, if it is a policy's.
    pub(crate) fn policy(&self) -> Option<&Policy> {
        match &self.0 {
            Data::Directions(_) => None,
            Data::Policy(data) => Some(data),
        }
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
    fn observation(&self) -> &Tensor {
        match self {
            Self::Directions(x, _) | Self::Seen(x) => x,
            Self::Acted(batch) => &batch.observation,
        }
    }
}

/// One expression for either kind of data.
macro_rules! either {
    ($task:expr, $data:ident => $value:expr) => {
        match &$task.0 {
            Data::Directions($data) => $value,
            Data::Policy($data) => $value,
        }
    };
}

/// Without dropout: a policy is to be the same when it acts and when it is trained. The pooling begins with the last bars, as the
/// next bar depends on them first.
const PPO: &str = "[model]
head = \"policy\"
input_norm = \"running\"
dropout = 0.0
recency = 8.0
[train]
steps = 2560
batch_size = 256
lr = 3e-4
eps = 1e-5
weight_decay = 0.0
schedule = \"linear\"
eval_every = 160
early_stopping = 0
";

impl Task for TradingTask {
    const NAME: &'static str = "trading-transformer";
    const SUMMARY: &'static str = "transformer that extracts features from 20 bars of a market and the position held";
    const PRESETS: &'static [Preset] = &[
        Preset { name: "default", summary: "layer norm over each bar's features", toml: "" },
        Preset {
            name: "running",
            summary: "each feature by its own running mean and variance",
            toml: "[model]\ninput_norm = \"running\"\n",
        },
        Preset {
            name: "none",
            summary: "features as they are: the failure that zoo reproduce gradient-death shows",
            toml: "[model]\ninput_norm = \"none\"\n",
        },
        Preset { name: "ppo", summary: "a policy that trades, trained by PPO", toml: PPO },
        Preset {
            name: "ppo-tiny",
            summary: "the same for tests",
            toml: "[model]\nhead = \"policy\"\ninput_norm = \"running\"\nbars = 4\nwidth = 16\nheads = 2\nhidden = 32\nfeatures_dim = 8\n\
                   dropout = 0.0\n[data]\nsimulated_days = 500\nepisode = 40\n[train]\nsteps = 40\nbatch_size = 32\neval_every = 20\n\
                   [train.ppo]\nenvironments = 4\nrollout = 16\n",
        },
        Preset {
            name: "tiny",
            summary: "for tests",
            toml: "[model]\nbars = 4\nwidth = 16\nheads = 2\nhidden = 32\nfeatures_dim = 8\n\
                   [data]\nsimulated_days = 500\n[train]\nsteps = 40\nbatch_size = 8\neval_every = 20\n",
        },
    ];
    const DATA: &'static str = "a daily price file (CSV with Date, Open, High, Low, Close, Volume), for a policy also a folder of them; a simulated market \
         without one";
    type Architecture = Config;
    type Source = Source;
    type Model = TradingTransformer;
    type Batch = Batch;

    fn settle(config: &mut ConfigOf<Self>) -> zoo_training::Result<()> {
        if config.model.head == Head::Policy {
            config.model.actions = config.data.levels().len();
        }
        Ok(())
    }

    fn training() -> TrainConfig {
        TrainConfig {
            epochs: 20,
            batch_size: 64,
            lr: 1e-4,
            clip_norm: 10.,
            early_stopping: 5,
            ppo: Some(ppo::Settings { gamma: 0.9, ..ppo::Settings::default() }),
            ..TrainConfig::default()
        }
    }

    fn build(config: &Config, vb: VarBuilder) -> Result<TradingTransformer> {
        TradingTransformer::new(config, vb)
    }

    fn explain(config: &Config) -> String {
        let &Config { bars, width: d, hidden, layers, features_dim, .. } = config;
        let (attention, w) = (4 * (d * d + d), POLICY_WIDTH);
        let mlp = 2 * d * hidden + hidden + d;
        let top = match config.head {
            Head::Directions => {
                let classes = DIRECTIONS.len();
                format!("head: {features_dim} x {classes} + {classes} = {}", features_dim * classes + classes)
            }
            Head::Policy => format!(
                "actor and critic: 2 x ({features_dim} x {w} + {w}) + {w} x {} + {} + {w} + 1 = {}",
                config.actions,
                config.actions,
                2 * (features_dim * w + w) + (w + 1) * (config.actions + 1)
            ),
        };
        format!(
            "temporal projection: {FEATURES} x {d} + {d} = {}\nencoder layer: attention 4 x ({d} x {d} + {d}) = {attention}, MLP 2 x {d} x \
             {hidden} + {hidden} + {d} = {mlp}, two norms {}; {layers} times = {}\nnorms before and behind: {}\npooling: {bars}\n\
             aggregator: {d} x {features_dim} + {features_dim} = {}\n{top}",
            FEATURES * d + d,
            4 * d,
            layers * (attention + mlp + 4 * d),
            4 * d,
            d * features_dim + features_dim
        )
    }

    fn flops(config: &Config) -> f64 {
        let &Config { bars, width: d, hidden, layers, features_dim, .. } = config;
        let a_bar = FEATURES * d + layers * (4 * d * d + 2 * d * hidden + 2 * bars * d) + d;
        let top = match config.head {
            Head::Directions => features_dim * DIRECTIONS.len(),
            Head::Policy => POLICY_WIDTH * (2 * features_dim + config.actions + 1),
        };
        2. * (bars * a_bar + d * features_dim + top) as f64
    }

    fn open(
        config: &Config,
        source: &Source,
        seed: u64,
        fitted: Option<&Value>,
        device: &Device,
    ) -> zoo_training::Result<Self> {
        Ok(Self(match config.head {
            Head::Directions => Data::Directions(Box::new(Directions::open(config, source, seed, fitted, device)?)),
            Head::Policy => Data::Policy(Box::new(Policy::open(config, source, seed, fitted, device)?)),
        }))
    }

    fn describe_data(&self) -> String {
        either!(self, data => data.describe_data())
    }

    fn fingerprint(&self) -> String {
        either!(self, data => data.fingerprint())
    }

    fn fitted(&self) -> Value {
        either!(self, data => data.fitted())
    }

    fn warnings(&self) -> Vec<String> {
        either!(self, data => data.warnings())
    }

    fn samples(&self, split: Split) -> usize {
        either!(self, data => data.samples(split))
    }

    fn batch(&self, split: Split, indices: &[usize]) -> Result<Batch> {
        match &self.0 {
            Data::Directions(data) => data.batch(split, indices).map(|(x, y)| Batch::Directions(x, y)),
            Data::Policy(data) => data.batch(split, indices),
        }
    }

    fn experience(&self, config: &ConfigOf<Self>) -> zoo_training::Result<Option<Box<dyn Experience<Self> + '_>>> {
        self.policy().map(|data| data.experience(config)).transpose()
    }

    /// Logits of directions or exposures (b, 3 or a).
    fn forward(&self, model: &TradingTransformer, batch: &Batch, mode: Mode) -> Result<Tensor> {
        match &self.0 {
            Data::Directions(_) => model.forward(batch.observation(), mode),
            Data::Policy(_) => Ok(model.act(batch.observation(), mode)?.0),
        }
    }

    /// Cross-entropy of the direction in nats, averaged over the batch; or [`ppo::loss`].
    fn loss(&self, model: &TradingTransformer, batch: &Batch, mode: Mode) -> Result<Loss> {
        match batch {
            Batch::Directions(x, y) => {
                let total = ops::cross_entropy(&model.forward(x, mode)?, y, Default::default())?;
                Ok(Loss { total, parts: vec![] })
            }
            Batch::Acted(batch) => {
                let (logits, value) = model.act(&batch.observation, mode)?;
                ppo::loss(&logits, &value, batch)
            }
            Batch::Seen(_) => {
                bail!("trading-transformer: a policy learns from what it did, not from observations alone")
            }
        }
    }

    fn health() -> Profile {
        Profile {
            rate: Some(2e-5..=9e-4),
            clip: Some(5. ..=10.),
            gain: Some(0.6..=0.8),
            normalize: Some("model.input_norm=running"),
            roles: vec![("actor.2.", Role::Policy), ("actor.", Role::Mlp), ("critic.", Role::Mlp)],
            ..Profile::default()
        }
    }

    fn probes(&self, model: &TradingTransformer, batch: &Batch) -> Result<Vec<Probe>> {
        model.probes(batch.observation())
    }

    fn validate(&self, model: &TradingTransformer, split: Split) -> Result<Metrics> {
        either!(self, data => data.validate(model, split))
    }

    fn evaluate(&self, model: &TradingTransformer, split: Split) -> Result<Evaluation> {
        either!(self, data => data.evaluate(model, split))
    }

    fn predict(
        model: TradingTransformer,
        config: &Config,
        source: &Source,
        fitted: &Value,
        request: &Request,
        device: &Device,
    ) -> zoo_training::Result<Prediction> {
        match config.head {
            Head::Directions => predict::predict(&model, config, source, request, device),
            Head::Policy => trading::predict(&model, config, source, fitted, request, device),
        }
    }
}
