//! What the trainer needs, for either head: which way the close goes, or a policy.

use candle_core::{Device, Result, Tensor, bail};
use candle_nn::VarBuilder;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use zoo_layers::onnx::Graph;
use zoo_layers::{Mode, ops};
use zoo_training::config::ConfigOf;
use zoo_training::health::{Probe, Profile, Repair, Role};
use zoo_training::ppo::{self, ActorCritic};
use zoo_training::{
    Evaluation, Experience, Export, Flag, Loss, Metrics, Name, Predict, Prediction, Preset, Recipe, Request, Split,
    Task, TrainConfig, Trials,
};

use crate::config::NAME;
use crate::data::{Batch, Settings, TradingTask};
use crate::directions::Directions;
use crate::features::FEATURES;
use crate::model::POLICY_WIDTH;
use crate::trading::{self, Policy};
use crate::{Config, DIRECTIONS, DataSettings, Head, TradingTransformer, predict};

/// Flags for how a price file is read.
const FLAGS: &[Flag] = &Flag::each(zoo_market::READING_FLAGS);

/// A prediction has no options: what is told ahead was decided when the model was trained.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PositionOptions {}

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
schedule = \"linear\"
eval_every = 160
early_stopping = 0
[train.optimizer]
eps = 1e-5
weight_decay = 0.0
";

impl Task for TradingTask {
    const NAME: &'static str = NAME;
    type Architecture = Config;
    type Data = DataSettings;
    type Settings = Settings;
    type Model = TradingTransformer;
    type Batch = Batch;

    fn build(config: &Config, vb: VarBuilder) -> Result<TradingTransformer> {
        TradingTransformer::new(config, vb)
    }

    fn recomputes(_: &Config) -> bool {
        true
    }

    fn fingerprint(&self) -> String {
        self.0.fingerprint()
    }

    fn fitted(&self) -> Value {
        self.0.fitted()
    }

    fn samples(&self, split: Split) -> usize {
        self.0.samples(split)
    }

    fn batch(&self, split: Split, indices: &[usize]) -> Result<Batch> {
        self.0.batch(split, indices)
    }

    fn experience(&self, config: &ConfigOf<Self>) -> zoo_training::Result<Option<Box<dyn Experience<Self> + '_>>> {
        self.policy().map(|data| data.experience(config)).transpose()
    }

    /// Cross-entropy of the direction in nats, averaged over the batch; or [`ppo::loss`].
    fn loss(&self, model: &TradingTransformer, batch: &Batch, mode: Mode) -> Result<Loss> {
        match batch {
            Batch::Directions(x, y) => {
                Ok(Loss::new(ops::cross_entropy(&model.forward(x, mode)?, y, Default::default())?))
            }
            Batch::Acted(batch) => {
                let (policy, value) = model.act(&batch.observation, mode)?;
                ppo::loss(&policy, &value, batch)
            }
            Batch::Seen(_) => {
                bail!("trading-transformer: a policy learns from what it did, not from observations alone")
            }
        }
    }

    fn observe(&self, model: &TradingTransformer, batch: &Batch) -> Result<bool> {
        model.count(batch.observation()).map(|()| true)
    }

    fn repair(config: &ConfigOf<Self>) -> Option<Box<dyn Repair>> {
        config.task.repair.repair(config.train.seed)
    }

    fn health() -> Profile {
        Profile {
            lr: Some(2e-5..=9e-4),
            clip: Some(5. ..=10.),
            gain: Some(0.6..=0.8),
            normalize: Some("model.input_norm=running"),
            units: None,
            roles: vec![("actor.2.", Role::Policy), ("actor.", Role::Mlp), ("critic.", Role::Mlp)],
            ..Profile::default()
        }
    }

    fn probes(&self, model: &TradingTransformer, batch: &Batch) -> Result<Vec<Probe>> {
        model.probes(batch.observation())
    }

    fn validate(&self, model: &TradingTransformer, split: Split) -> Result<Metrics> {
        self.0.validate(model, split)
    }

    fn baseline(&self, split: Split) -> Result<Option<(Name, f64)>> {
        Ok(self.0.baseline(split))
    }
}

impl Recipe for TradingTask {
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
            summary: "features as they are: the failure of the experiment gradient-death",
            toml: "[model]\ninput_norm = \"none\"\n",
        },
        Preset { name: "ppo", summary: "a policy that trades, trained by PPO", toml: PPO },
        Preset {
            name: "ppo-tiny",
            summary: "the same for tests",
            toml: "[model]\nhead = \"policy\"\ninput_norm = \"running\"\nbars = 4\nwidth = 16\nheads = 2\nhidden = 32\nfeatures_dim = 8\n\
                   dropout = 0.0\n[data]\nsimulated_days = 500\nepisode = 40\n[train]\nsteps = 40\nbatch_size = 32\neval_every = 20\n\
                   [ppo]\nenvironments = 4\nrollout = 16\n",
        },
        Preset {
            name: "tiny",
            summary: "for tests",
            toml: "[model]\nbars = 4\nwidth = 16\nheads = 2\nhidden = 32\nfeatures_dim = 8\n\
                   [data]\nsimulated_days = 500\n[train]\nsteps = 40\nbatch_size = 8\neval_every = 20\n",
        },
    ];
    const FLAGS: &'static [Flag] = FLAGS;
    const DATA: &'static str = "a daily price file (CSV with Date, Open, High, Low, Close, Volume), for a policy also a folder of them; a simulated market \
         without one";

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
            ..TrainConfig::default()
        }
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

    fn flops(config: &Config, _: &DataSettings) -> Option<f64> {
        let &Config { bars, width: d, hidden, layers, features_dim, .. } = config;
        let a_bar = FEATURES * d + layers * (4 * d * d + 2 * d * hidden + 2 * bars * d) + d;
        let top = match config.head {
            Head::Directions => features_dim * DIRECTIONS.len(),
            Head::Policy => POLICY_WIDTH * (2 * features_dim + config.actions + 1),
        };
        Some(2. * (bars * a_bar + d * features_dim + top) as f64)
    }

    fn open(
        config: &Config,
        source: &DataSettings,
        seed: u64,
        fitted: Option<&Value>,
        device: &Device,
    ) -> zoo_training::Result<Self> {
        Ok(Self(match config.head {
            Head::Directions => Box::new(Directions::open(config, source, seed, fitted, device)?),
            Head::Policy => Box::new(Policy::open(config, source, seed, fitted, device)?),
        }))
    }

    fn describe_data(&self) -> String {
        self.0.describe_data()
    }

    fn warnings(&self) -> Vec<String> {
        self.0.warnings()
    }

    /// Logits of directions or exposures (b, 3 or a).
    fn forward(&self, model: &TradingTransformer, batch: &Batch, mode: Mode) -> Result<Tensor> {
        self.0.forward(model, batch, mode)
    }

    fn evaluate(&self, model: &TradingTransformer, split: Split) -> Result<Evaluation> {
        self.0.evaluate(model, split)
    }

    fn reconsider(evaluations: &[&Evaluation], trials: &dyn Fn() -> Trials) -> Vec<String> {
        trading::reconsider(evaluations, trials)
    }
}

impl Export for TradingTask {
    fn export(model: &TradingTransformer, _: &Config, _: &Value, _: bool, graph: &mut Graph) -> Result<()> {
        model.export(graph)
    }
}

impl Predict for TradingTask {
    type Options = PositionOptions;

    fn predict(
        model: &TradingTransformer,
        config: &Config,
        source: &DataSettings,
        fitted: &Value,
        request: &Request<PositionOptions>,
        device: &Device,
    ) -> zoo_training::Result<Prediction> {
        match config.head {
            Head::Directions => predict::predict(model, config, source, request.input, device),
            Head::Policy => trading::predict(model, config, source, fitted, request.input, device),
        }
    }
}
