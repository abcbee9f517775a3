//! What the trainer needs: simulated EEG, loss, metrics and baselines.

use candle_core::{Device, Result, Tensor};
use candle_nn::VarBuilder;
use serde_json::{Map, Value, json};
use zoo_layers::Mode;
use zoo_layers::onnx::Graph;
use zoo_layers::ops::{CrossEntropyOptions, cross_entropy};
use zoo_training::config::{AdamConfig, ConfigOf};
use zoo_training::health::{AttentionSettings, Probe, ProbeKind, Profile, Repair, Role};
use zoo_training::{
    Error, Evaluation, Export, Flag, Foreign, Import, Layout, Loss, Metrics, OptimizerConfig, Predict, Prediction,
    Preset, Recipe, Request, ScheduleKind, Split, Table, Task, TrainConfig, over_batches,
};

use crate::data::{Batch, Samples, head};
use crate::head::Head;
use crate::image::NAME;
use crate::predict::ImageOptions;
use crate::{Config, DataSettings, DeepSif, Electrode, Kind, Montage, Network, Point, judge, layout, loss, predict};

/// Key, beside the head, of the file of samples that weights were trained on.
const TRAINED_ON: &str = "trained_on";
/// Samples of a batch when evaluating.
const BATCH: usize = 16;
/// Training samples that are looked at where one is interested in their loss.
const SOME: usize = 64;

/// Muon moves the matrices in all directions alike: EEG's few strong ones hide the many weak ones from AdamW, which stays at an
/// image of zero for thousands of steps.
macro_rules! muon {
    () => {
        "[train]\nlr = 3e-3\nbatch_size = 8\n\
         schedule = \"linear\"\nwarmup_steps = 100\neval_every = 500\nearly_stopping = 0\nprefetch = 1\n"
    };
}
macro_rules! muon_constants {
    () => {
        "[train.optimizer]\nkind = \"muon\"\nbeta2 = 0.999\nmomentum = 0.9\nweight_decay = 0.01\n"
    };
}

/// Simulated EEG over a head.
pub struct DeepSifTask {
    samples: Samples,
}

impl DeepSifTask {
    /// The samples and their head.
    pub(crate) fn opened(&self) -> &Samples {
        &self.samples
    }

    /// Sums over a split, by batches.
    fn sum(&self, split: Split, mut of: impl FnMut(&Batch) -> Result<[f64; 4]>) -> Result<[f64; 4]> {
        // Some of the training samples tell enough.
        let n = if split == Split::Train { self.samples(split).min(SOME) } else { self.samples(split) };
        let found = over_batches(n.div_ceil(BATCH), |i| {
            let indices: Vec<usize> = (i * BATCH..n.min((i + 1) * BATCH)).collect();
            let found = of(&self.samples.batch(split, &indices)?)?;
            Ok(found.map(|v| v * indices.len() as f64).to_vec())
        })?;
        let mut sums = [0.; 4];
        found.iter().for_each(|batch| sums.iter_mut().zip(batch).for_each(|(s, v)| *s += v));
        Ok(sums.map(|s| s / n.max(1) as f64))
    }
}

fn scalar(t: &Tensor) -> Result<f64> {
    Ok(f64::from(t.to_device(&Device::Cpu)?.to_scalar::<f32>()?))
}

impl Task for DeepSifTask {
    const NAME: &'static str = NAME;
    type Architecture = Config;
    type Data = DataSettings;
    type Settings = AttentionSettings;
    type Model = Network;
    type Batch = Batch;

    fn build(config: &Config, vb: VarBuilder) -> Result<Network> {
        Network::new(config, vb)
    }

    fn recomputes(config: &Config) -> bool {
        matches!(config.kind, Kind::Transformer | Kind::PostLn)
    }

    fn fingerprint(&self) -> String {
        let (head, source) = (self.samples.head(), self.samples.source());
        let mut bytes: Vec<u8> = head.lead_field.iter().flat_map(|v| v.to_le_bytes()).collect();
        bytes.extend(head.noise.iter().flatten().flat_map(|v| v.to_le_bytes()));
        let counts = [source.train, source.valid, source.test];
        let rest = json!([head.regions, head.neighbours, counts, source.simulation, self.samples.sha256()]);
        bytes.extend(rest.to_string().into_bytes());
        zoo_checkpoint::sha256_of(&bytes)
    }

    /// Where electrodes and regions are, for those who have the weights alone.
    fn fitted(&self) -> Value {
        let head = self.samples.head();
        let rounded = |position: &Point| position.map(|v| (v * 10.).round() / 10.);
        let electrodes =
            head.electrodes.iter().map(|e| Electrode { position: e.position.as_ref().map(rounded), ..e.clone() });
        let mut fitted = json!(Montage {
            electrodes: electrodes.collect(),
            regions: head.regions.iter().map(rounded).collect(),
            steps: self.samples.source().simulation.steps,
        });
        if let Some(sha256) = self.samples.sha256() {
            fitted[TRAINED_ON] = json!({ "sha256": sha256, "samples": self.samples.len(Split::Train) });
        }
        fitted
    }

    fn samples(&self, split: Split) -> usize {
        self.samples.len(split)
    }

    fn batch(&self, split: Split, indices: &[usize]) -> Result<Batch> {
        self.samples.batch(split, indices)
    }

    /// Squared error, magnitude and change in time, weighted: see [`loss`]. Of a graph network, the cross-entropy of which regions
    /// are active.
    fn loss(&self, model: &Network, batch: &Batch, mode: Mode) -> Result<Loss> {
        let Batch { eeg, activity, active } = self.samples.augmented(batch, mode)?;
        model.meet(|| self.samples.cortex())?;
        if let Some(scores) = model.scores(&eeg, mode)? {
            return Ok(Loss::new(cross_entropy(&scores.logits, &active, CrossEntropyOptions::default())?));
        }
        let found = loss(&model.forward(&eeg, mode)?, &activity)?;
        let named = ["reconstruction", "sparsity", "smoothness"].into_iter().enumerate();
        let parts = named.map(|(i, name)| Ok((name.into(), found.parts.get(i)?))).collect::<Result<_>>()?;
        Ok(Loss { total: found.total, parts })
    }

    fn repair(config: &ConfigOf<Self>) -> Option<Box<dyn Repair>> {
        config.task.repair.repair(config.train.seed)
    }

    fn health() -> Profile {
        Profile { roles: vec![("positions", Role::Table)], ..Profile::default() }
    }

    fn probes(&self, model: &Network, batch: &Batch) -> Result<Vec<Probe>> {
        let kind = |name: &str| match name {
            name if name.ends_with("hidden") || name == "spatial" => ProbeKind::Activation,
            _ => ProbeKind::Output,
        };
        model.meet(|| self.samples.cortex())?;
        let all = model.activations(&batch.eeg)?;
        let input = Probe::new("eeg", ProbeKind::Raw, &batch.eeg);
        Ok(std::iter::once(input)
            .chain(all.iter().map(|(name, values)| Probe::new(name, kind(name), values)))
            .collect())
    }

    fn validate(&self, model: &Network, split: Split) -> Result<Metrics> {
        model.meet(|| self.samples.cortex())?;
        let found = self.sum(split, |batch| {
            let scores = model.scores(&batch.eeg, Mode::Eval)?;
            let activity = match &scores {
                Some(scores) => scores.activity()?,
                None => model.forward(&batch.eeg, Mode::Eval)?,
            };
            let parts = loss(&activity, &batch.activity)?;
            let total = match scores {
                Some(scores) => cross_entropy(&scores.logits, &batch.active, CrossEntropyOptions::default())?,
                None => parts.total,
            };
            let [error, sparsity, _]: [f32; 3] =
                parts.parts.to_device(&Device::Cpu)?.to_vec1::<f32>()?.try_into().unwrap_or([f32::NAN; 3]);
            let (b, t, _) = batch.activity.dims3()?;
            let none = scalar(&batch.activity.sqr()?.sum_all()?)? / (b * t) as f64;
            Ok([scalar(&total)?, f64::from(error), f64::from(sparsity), none])
        })?;
        let [loss, error, sparsity, none] = found;
        Ok([("loss", loss), ("reconstruction", error), ("sparsity", sparsity), ("of_zero", error / none)].into())
    }
}

impl Recipe for DeepSifTask {
    const SUMMARY: &'static str = "networks that image the sources of EEG on the cortex";
    const PRESETS: &'static [Preset] = &[
        Preset { name: "stable", summary: "the pre-norm transformer, 4 layers of 256", toml: "" },
        Preset {
            name: "conservative",
            summary: "stable with a third of the learning rate, more dropout and decay, tighter clipping",
            toml: "[model]\ndropout = 0.2\n[train]\nlr = 1e-4\nclip_norm = 0.5\n[train.optimizer]\nweight_decay = 1e-3\n",
        },
        Preset {
            name: "aggressive",
            summary: "stable with a higher learning rate, less dropout and decay, looser clipping",
            toml: "[model]\ndropout = 0.1\n[train]\nlr = 5e-4\nclip_norm = 2.0\n[train.optimizer]\nweight_decay = 1e-5\n",
        },
        Preset {
            name: "memory",
            summary: "3 layers of 128, batches of 8",
            toml: "[model]\nwidth = 128\nlayers = 3\nhidden = 256\n[train]\nbatch_size = 8\nwarmup_steps = 20480\n",
        },
        Preset {
            name: "muon",
            summary: "stable's network by Muon, 8,000 steps over as many new samples: it learns in a fraction of the time",
            toml: concat!("[data]\ntrain = 64000\nvalid = 128\n", muon!(), "steps = 8000\n", muon_constants!()),
        },
        Preset {
            name: "lstm",
            summary: "the published network, 3 LSTM layers of 994, by muon's recipe",
            toml: concat!(
                "[model]\nkind = \"lstm\"\nactivation = \"relu\"\nlayers = 3\ndropout = 0.0\n",
                "[data]\ntrain = 64000\nvalid = 128\n",
                muon!(),
                "steps = 8000\n",
                muon_constants!()
            ),
        },
        Preset {
            name: "post-ln",
            summary: "a transformer as first published, norms behind the sums, 4 layers of 512, ReLU, by muon's recipe",
            toml: concat!(
                "[model]\nkind = \"post-ln\"\nactivation = \"relu\"\nwidth = 512\nhidden = 1024\ndropout = 0.1\n",
                "[data]\ntrain = 64000\nvalid = 128\n",
                muon!(),
                "steps = 8000\n",
                muon_constants!()
            ),
        },
        Preset {
            name: "small",
            summary: "for a first run on a laptop: 2 layers of 128, 3,000 steps by Muon",
            toml: concat!(
                "[model]\nfilter = 128\nwidth = 128\nheads = 4\nlayers = 2\nhidden = 256\ndropout = 0.0\n",
                "[data]\ntrain = 24000\nvalid = 64\n",
                muon!(),
                "steps = 3000\n",
                muon_constants!()
            ),
        },
        Preset {
            name: "graph",
            summary: "a network of 4 layers over the cortex, from sparse Bayesian and sLORETA maps: the least error, 1,000 steps",
            toml: concat!(
                "[model]\nkind = \"graph\"\nwidth = 48\nlayers = 4\ndropout = 0.0\n",
                "[data]\ntrain = 16000\nvalid = 100\n[data.simulation]\nheads = 20\nother_courses = 0.3\n",
                "[train]\nlr = 3e-3\nbatch_size = 16\nsteps = 1000\nschedule = \"linear\"\nwarmup_steps = 20\neval_every = 200\n",
                "early_stopping = 0\n[train.optimizer]\nbeta2 = 0.99\nweight_decay = 0.01\n"
            ),
        },
        Preset {
            name: "tiny",
            summary: "for tests",
            toml: "[model]\nsensors = 8\nsources = 20\nfilter = 16\nwidth = 16\nheads = 2\nlayers = 2\nhidden = 32\npositions = 60\n\
                   [data]\ntrain = 64\nvalid = 8\ntest = 12\n[data.simulation]\nsteps = 50\nextent = [1, 3]\n\
                   [train]\nsteps = 40\nbatch_size = 4\nlr = 1e-3\nwarmup_steps = 5\neval_every = 20\nearly_stopping = 0\n",
        },
    ];
    const DATA: &'static str = "a folder with the lead field, cortex and electrodes of a head (MATLAB files); a built-in head of spheres without one";

    /// The document's recipe: ten epochs of warmup, half a cosine, batches of 16.
    fn training() -> TrainConfig {
        TrainConfig {
            epochs: 100,
            batch_size: 16,
            optimizer: OptimizerConfig::AdamW(AdamConfig { beta2: 0.95, weight_decay: 1e-4, ..AdamConfig::default() }),
            lr: 3e-4,
            clip_norm: 1.,
            schedule: ScheduleKind::Cosine,
            warmup_steps: 10_240,
            early_stopping: 15,
            ..TrainConfig::default()
        }
    }

    fn explain(config: &Config) -> String {
        let &Config { kind, sensors: n, sources: m, filter: h, width: d, layers, hidden, positions, .. } = config;
        if kind == Kind::Graph {
            let layer = 3 * d * d + 2 * d + 2 * d;
            return format!(
                "input: 40 x {d} + {d}\nlayers: 3 x {d} x {d} + 2 x {d}, norm 2 x {d} = {layer}; {layers} times = {}\nnorm: 2 x {d}; \
                 output: {d} x 2 + 2\nthe head, which no training changes: {n} x {m} + {m} x 3 + {m} x 32 + {n} x {n}",
                layers * layer
            );
        }
        let filter = 2 * (n * n + n) + 2 * (n * h + h) + 2 * (h * h + h);
        let mut parts = vec![format!(
            "spatial filter: 2 x ({n} x {n} + {n}) + 2 x ({n} x {h} + {h}) + 2 x ({h} x {h} + {h}) = {filter}"
        )];
        if kind == Kind::Lstm {
            let first = 4 * m * (h + m) + 8 * m;
            let other = 8 * m * m + 8 * m;
            parts.push(format!(
                "LSTM: 4 x {m} x ({h} + {m}) + 8 x {m} = {first}, then 4 x {m} x 2 x {m} + 8 x {m} = {other}, {} times",
                layers.saturating_sub(1)
            ));
            return parts.join("\n");
        }
        let layer = 4 * (d * d + d) + 2 * d * hidden + hidden + d + 4 * d;
        let encoder = format!(
            "encoder: attention 4 x ({d} x {d} + {d}), MLP 2 x {d} x {hidden} + {hidden} + {d}, two norms 4 x {d} = {layer}; {layers} times = {}",
            layers * layer
        );
        match kind {
            Kind::Transformer => parts.extend([
                format!(
                    "its norm: 2 x {h}; input projection: {h} x {d} + {d}, norm 2 x {d}; positions: {positions} x {d}"
                ),
                encoder,
                format!("norm: 2 x {d}; head: {d} x {half} + {half}, {half} x {m} + {m}", half = d / 2),
            ]),
            _ => {
                parts.extend([format!("input projection: {h} x {d} + {d}"), encoder, format!("head: {d} x {m} + {m}")])
            }
        }
        parts.join("\n")
    }

    fn channels(fitted: &Value) -> Option<Table> {
        let row = |(i, e): (usize, &Electrode)| {
            let place = e.position.map(|p| p.map(|v| format!("{v:.1}"))).unwrap_or_default();
            [(i + 1).to_string(), e.label.clone()].into_iter().chain(place).collect()
        };
        let header = ["channel", "electrode", "x_mm", "y_mm", "z_mm"].map(String::from).to_vec();
        let rows = montage(fitted).ok()?.electrodes.iter().enumerate().map(row).collect();
        Some(Table { name: "channels".into(), header, rows })
    }

    /// Of a second: 500 time steps.
    fn flops(config: &Config, _: &DataSettings) -> Option<f64> {
        let &Config { kind, sensors: n, sources: m, filter: h, width: d, layers, hidden, .. } = config;
        let t = crate::simulation::RATE;
        if kind == Kind::Graph {
            // The network alone; the maps cost some hundred times as much, and how much depends on the EEG.
            return Some(2. * (m * (40 * d + layers * 3 * d * d + 2 * d)) as f64);
        }
        let filter = 2 * n * n + 2 * n * h + 2 * h * h;
        let rest = match kind {
            Kind::Lstm => 4 * m * (h + m) + layers.saturating_sub(1) * 8 * m * m,
            Kind::Transformer | Kind::PostLn => {
                // Scores and values besides the weights.
                let layer = 4 * d * d + 2 * d * hidden + 2 * t * d;
                let head = if kind == Kind::Transformer { d * (d / 2) + d / 2 * m } else { d * m };
                h * d + layers * layer + head
            }
            Kind::Graph => 0,
        };
        Some(2. * (t * (filter + rest)) as f64)
    }

    fn open(
        config: &Config,
        source: &DataSettings,
        seed: u64,
        fitted: Option<&Value>,
        device: &Device,
    ) -> zoo_training::Result<Self> {
        if let Some(problem) = config.problem().or_else(|| source.problem()) {
            return Err(Error::Usage(problem));
        }
        if source.simulation.extent[1] > config.sources {
            let (extent, sources) = (source.simulation.extent[1], config.sources);
            return Err(Error::Usage(format!(
                "data.simulation.extent goes to {extent} regions, but model.sources = {sources}"
            )));
        }
        let samples = Samples::open(config, source, seed, fitted.is_some(), device)?;
        if let Some(fitted) = fitted {
            same_head(samples.head(), &montage(fitted)?)?;
            let (file, trained) = (&fitted[TRAINED_ON]["sha256"], fitted[TRAINED_ON]["samples"].as_u64());
            let kept = samples.len(Split::Train) as u64;
            if let Some(trained) = trained.filter(|n| kept < *n && file.as_str() == samples.sha256()) {
                return Err(Error::Usage(format!(
                    "data.valid and data.test reach into the first {trained} samples of this file, which the weights were trained on"
                )));
            }
        }
        let steps = samples.source().simulation.steps;
        if config.is_transformer() && steps > config.positions {
            return Err(Error::Usage(format!(
                "samples of {steps} time steps, but model.positions = {}",
                config.positions
            )));
        }
        if source.simulation.recorded > 0. && samples.head().noise.is_empty() {
            let origin = &samples.head().origin;
            return Err(Error::Usage(format!("{origin} has no recorded noise (data.simulation.recorded)")));
        }
        Ok(Self { samples })
    }

    fn check(config: &Config, fitted: &Value) -> zoo_training::Result<()> {
        montage(fitted)?.check(config).map_err(|e| Error::Data(e.to_string()))
    }

    fn describe_data(&self) -> String {
        let head = self.samples.head();
        let DataSettings { path, train, valid, test, simulation, .. } = self.samples.source();
        let [low, high] = simulation.snr;
        let what = match self.samples.sha256() {
            Some(_) => format!("samples of {path} over {}", head.origin),
            None => format!("simulated EEG over {}, {low} to {high} dB", head.origin),
        };
        format!(
            "{what}: {} electrodes, {} regions, {} time steps; {train} samples to train, {valid} to validate, {test} to judge",
            head.electrodes.len(),
            head.regions.len(),
            simulation.steps
        )
    }

    fn forward(&self, model: &Network, batch: &Batch, mode: Mode) -> Result<Tensor> {
        model.meet(|| self.samples.cortex())?;
        model.forward(&batch.eeg, mode)
    }

    fn evaluate(&self, model: &Network, split: Split) -> Result<Evaluation> {
        judge::evaluate(&|eeg| model.forward(eeg, Mode::Eval), &self.samples, split)
    }
}

fn montage(fitted: &Value) -> zoo_training::Result<Montage> {
    serde_json::from_value(fitted.clone())
        .map_err(|e| Error::Run(format!("the weights do not say for which head they are: {e}")))
}

/// Refuses a head whose regions are not those that the weights are for.
fn same_head(head: &Head, montage: &Montage) -> zoo_training::Result<()> {
    match head.lies_at(&montage.regions) {
        true => Ok(()),
        false => Err(Error::Usage(format!(
            "{}: its regions lie elsewhere than those of these weights (the folder of their head is data.path, or data.head \
             beside a file of samples)",
            head.origin
        ))),
    }
}

impl Predict for DeepSifTask {
    type Options = ImageOptions;
    const FLAGS: &'static [Flag] = predict::FLAGS;

    fn predict(
        model: &Network,
        config: &Config,
        source: &DataSettings,
        fitted: &Value,
        request: &Request<ImageOptions>,
        device: &Device,
    ) -> zoo_training::Result<Prediction> {
        let montage = montage(fitted)?;
        let head = if source.path.is_empty() { None } else { Some(head(&source.path, config)?) };
        head.as_ref().map_or(Ok(()), |head| same_head(head, &montage))?;
        let imager = DeepSif::new(model.clone(), config, montage, device)?;
        predict::predict(&imager, head.as_ref(), request)
    }
}

impl Export for DeepSifTask {
    fn export(model: &Network, config: &Config, _: &Value, _: bool, graph: &mut Graph) -> Result<()> {
        model.export(graph, config)
    }
}

impl Import for DeepSifTask {
    const LAYOUTS: &'static [Layout] = layout::LAYOUTS;

    fn recognize(tensors: &[(&str, &[usize])]) -> Option<&'static Layout> {
        layout::recognize(tensors)
    }

    fn adopt(foreign: &Foreign) -> zoo_training::Result<(Config, DataSettings, Value)> {
        layout::adopt(foreign)
    }

    fn entries(_: &Layout, config: &Config, _: &Value) -> zoo_training::Result<Map<String, Value>> {
        layout::entries(config)
    }
}
