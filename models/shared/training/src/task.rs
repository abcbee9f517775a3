use std::path::Path;

use candle_core::{Device, Tensor};
use candle_nn::VarBuilder;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use zoo_layers::{Mode, Sampling};

use crate::config::ConfigOf;
use crate::health::{Probe, Profile};
use crate::{Error, Experience, Result, TrainConfig};

/// A named set of settings over a task's defaults.
#[derive(Clone, Copy, Debug)]
pub struct Preset {
    /// What `--preset` takes.
    pub name: &'static str,
    /// One line for people.
    pub summary: &'static str,
    /// TOML with the tables `model`, `data` and `train`.
    pub toml: &'static str,
}

/// A file that is fetched by name, once.
#[derive(Clone, Copy, Debug)]
pub struct Dataset {
    /// What `--data` takes.
    pub name: &'static str,
    /// Where it is.
    pub url: &'static str,
    /// Its size.
    pub bytes: u64,
    /// Its SHA-256 in hexadecimal.
    pub sha256: &'static str,
}

/// How another program names and lays out the same weights.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// What `zoo convert --to` takes.
    pub name: &'static str,
    /// Rules (see `zoo_checkpoint::Rules`) that lead from it to the model's own names and shapes.
    pub import: &'static str,
    /// Rules that lead back.
    pub export: &'static str,
    /// The entry of a PyTorch file that holds its tensors; empty if the file is them.
    pub entry: &'static str,
    /// The file beside the weights that holds their configuration; empty if the weights' file does.
    pub sidecar: &'static str,
}

/// A checkpoint of another program, its tensors already renamed.
#[derive(Clone, Copy, Debug)]
pub struct Foreign<'a> {
    /// The name of its layout.
    pub layout: &'static str,
    /// Names and shapes.
    pub tensors: &'a [(&'a str, &'a [usize])],
    /// What it says about itself.
    pub entries: &'a Map<String, Value>,
    /// The data that it was trained on, if the user named them.
    pub data: Option<&'a Path>,
}

/// A part of the data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    /// What the model is fitted to.
    Train,
    /// What decides when to stop and which weights are best.
    Valid,
    /// What the model is judged by.
    Test,
}

impl Split {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Valid => "valid",
            Self::Test => "test",
        }
    }
}

/// Named numbers, in order.
pub type Metrics = Vec<(&'static str, f64)>;

/// The loss of a batch.
pub struct Loss {
    /// A scalar to differentiate.
    pub total: Tensor,
    /// Named parts of it, for the log: scalars, which are read when the step is done.
    pub parts: Vec<(&'static str, Tensor)>,
}

/// How a model does on a split, beside baselines.
#[derive(Clone, Debug, Default)]
pub struct Evaluation {
    /// Samples of the split.
    pub samples: usize,
    /// The model's metrics.
    pub metrics: Metrics,
    /// The same metrics of each baseline.
    pub baselines: Vec<(&'static str, Metrics)>,
    /// What one should conclude, in words.
    pub remarks: Vec<String>,
    /// What lies behind the metrics, to be kept as files.
    pub tables: Vec<Table>,
    /// A picture of it; empty if it has no lines.
    pub picture: Picture,
}

/// Rows under a header.
#[derive(Clone, Debug, Default)]
pub struct Table {
    /// What it is called.
    pub name: &'static str,
    /// Names of the columns.
    pub header: Vec<String>,
    /// The rows.
    pub rows: Vec<Vec<String>>,
}

/// What `zoo predict` asks for.
#[derive(Clone, Debug)]
pub struct Request<'a> {
    /// The input file.
    pub input: &'a Path,
    /// Steps ahead of the input's end.
    pub horizon: usize,
    /// Share of the outcomes that the intervals should hold, between 0 and 1.
    pub interval: f64,
    /// What is known of the input, to hold the prediction against.
    pub truth: Option<&'a Path>,
}

/// What a model says about new data.
#[derive(Clone, Debug, Default)]
pub struct Prediction {
    /// Names of the columns.
    pub header: Vec<String>,
    /// The table.
    pub rows: Vec<Vec<String>>,
    /// Named results, for machines.
    pub summary: Map<String, Value>,
    /// What one should know, in words.
    pub remarks: Vec<String>,
    /// Results that are no table, for files of arrays.
    pub arrays: Vec<(String, Tensor)>,
    /// A picture of it.
    pub picture: Picture,
}

/// Colours in a plane.
#[derive(Clone, Debug, Default)]
pub struct Raster {
    /// What it shows.
    pub title: String,
    /// Cells of a row.
    pub width: usize,
    /// Row after row from the top: nothing, or a value between -1 and 1 and how much light falls there, between 0 and 1.
    pub cells: Vec<Option<(f32, f32)>>,
}

/// Lines over dates or steps, below maps if there are any.
#[derive(Clone, Debug, Default)]
pub struct Picture {
    /// Maps, side by side.
    pub maps: Vec<Raster>,
    /// What it shows.
    pub title: String,
    /// What stands below position 0, 1, 2, …
    pub labels: Vec<String>,
    /// Lines by name, each as positions and values.
    pub lines: Vec<(&'static str, Vec<(f64, f64)>)>,
    /// An area between two lines: position, lower, upper.
    pub band: Vec<(f64, f64, f64)>,
}

/// What a model crate gives the trainer and the command line.
///
/// The value of the type is opened data; its associated functions need none.
pub trait Task: Sized + Sync + 'static {
    /// The model's name on the command line.
    const NAME: &'static str;
    /// One line for people.
    const SUMMARY: &'static str;
    /// Settings by name; the first is the default.
    const PRESETS: &'static [Preset];
    /// What `--data` takes (it sets `data.path`), and what is used without it.
    const DATA: &'static str;
    /// Files that `--data` takes by name.
    const DATASETS: &'static [Dataset] = &[];
    /// The part of the data that judges a trained model.
    const JUDGED: Split = Split::Test;
    /// Layouts of other programs that convert to and from this model.
    const LAYOUTS: &'static [Layout] = &[];
    /// The table `[model]`.
    type Architecture: Serialize + DeserializeOwned + Default + Clone;
    /// The table `[data]`, which has a key `path`, empty by default.
    type Source: Serialize + DeserializeOwned + Default + Clone;
    /// The model.
    type Model;
    /// Samples ready for the model; tensors, which are cheap to clone.
    type Batch: Clone + Send;

    /// The table `[train]` before presets.
    fn training() -> TrainConfig;

    /// Completes a configuration by what the data decide, before the model is built: nothing, by default.
    ///
    /// # Errors
    /// The data cannot be read.
    fn settle(config: &mut ConfigOf<Self>) -> Result<()> {
        let _ = config;
        Ok(())
    }

    /// Which of the layouts a checkpoint has, by its names and shapes.
    fn recognize(tensors: &[(&str, &[usize])]) -> Option<&'static Layout> {
        let _ = tensors;
        None
    }

    /// The configuration of a checkpoint of another program, and what was fitted to its data.
    ///
    /// # Errors
    /// It does not say enough; the message says what is missing and how to give it.
    fn adopt(foreign: &Foreign) -> Result<(Self::Architecture, Self::Source, Value)> {
        Err(Error::Usage(format!("{} does not take the layout {}", Self::NAME, foreign.layout)))
    }

    /// What another program wants to find beside the tensors.
    ///
    /// # Errors
    /// That program has no such model.
    fn entries(layout: &Layout, architecture: &Self::Architecture) -> Result<Map<String, Value>> {
        let _ = architecture;
        Err(Error::Usage(format!("{} is not written in the layout {}", Self::NAME, layout.name)))
    }

    /// Defines the model's parameters.
    fn build(architecture: &Self::Architecture, vb: VarBuilder) -> candle_core::Result<Self::Model>;

    /// How the number of parameters comes about, in words.
    fn explain(architecture: &Self::Architecture) -> String;

    /// Floating-point operations in the matrix products of a forward pass of one sample.
    fn flops(architecture: &Self::Architecture) -> f64;

    /// Opens the data at `source`'s path (simulated or built-in data without one). `fitted` is what [`Task::fitted`]
    /// gave when the model was trained.
    fn open(
        architecture: &Self::Architecture,
        source: &Self::Source,
        seed: u64,
        fitted: Option<&Value>,
        device: &Device,
    ) -> Result<Self>;

    /// One line on the data at hand.
    fn describe_data(&self) -> String;

    /// Tells data apart: the same for the same samples in the same splits. A run resumes on the data it began with.
    fn fingerprint(&self) -> String;

    /// What was fitted to the training data and belongs to the checkpoint, such as a scaler.
    fn fitted(&self) -> Value;

    /// What the user should know about this data.
    fn warnings(&self) -> Vec<String> {
        vec![]
    }

    /// Samples of a split.
    fn samples(&self, split: Split) -> usize;

    /// The named samples of a split.
    fn batch(&self, split: Split, indices: &[usize]) -> candle_core::Result<Self::Batch>;

    /// The model's output for a batch.
    fn forward(&self, model: &Self::Model, batch: &Self::Batch, mode: Mode) -> candle_core::Result<Tensor>;

    /// The loss of a batch; each task says how it is reduced.
    fn loss(&self, model: &Self::Model, batch: &Self::Batch, mode: Mode) -> candle_core::Result<Loss>;

    /// Where training samples come from if the model makes them itself, by acting; none by default.
    ///
    /// # Errors
    /// Settings that cannot work.
    fn experience(&self, config: &ConfigOf<Self>) -> Result<Option<Box<dyn Experience<Self> + '_>>> {
        let _ = config;
        Ok(None)
    }

    /// What is usual of the model's gradients.
    fn health() -> Profile {
        Profile::default()
    }

    /// Activations to watch, from a batch in evaluation: inputs first, then in the order of the model.
    ///
    /// # Errors
    /// candle's.
    fn probes(&self, model: &Self::Model, batch: &Self::Batch) -> candle_core::Result<Vec<Probe>> {
        let _ = (model, batch);
        Ok(vec![])
    }

    /// The least loss that any model could have on a batch, where the task knows it: what `--overfit-batch` is held
    /// against.
    ///
    /// # Errors
    /// candle's.
    fn least_loss(&self, batch: &Self::Batch) -> candle_core::Result<Option<f64>> {
        let _ = batch;
        Ok(None)
    }

    /// Metrics of a split while training; `loss` decides which weights are best.
    fn validate(&self, model: &Self::Model, split: Split) -> candle_core::Result<Metrics>;

    /// Metrics of a split beside baselines.
    fn evaluate(&self, model: &Self::Model, split: Split) -> candle_core::Result<Evaluation>;

    /// Applies a trained model to new data. `source` says how the input is read.
    ///
    /// # Errors
    /// Data that cannot be used, or a model that has nothing to predict (the default).
    fn predict(
        model: Self::Model,
        architecture: &Self::Architecture,
        source: &Self::Source,
        fitted: &Value,
        request: &Request,
        device: &Device,
    ) -> Result<Prediction> {
        let _ = (model, architecture, source, fitted, request, device);
        Err(Error::Usage(format!("{} has no predict", Self::NAME)))
    }

    /// Writes text behind `prompt`, handing each piece to `sink`, which says whether to go on.
    ///
    /// # Errors
    /// A prompt that cannot be read, or a model that does not write (the default).
    fn generate(
        model: &Self::Model,
        fitted: &Value,
        prompt: &str,
        sampling: &Sampling,
        device: &Device,
        sink: &mut dyn FnMut(&str) -> bool,
    ) -> Result<()> {
        let _ = (model, fitted, prompt, sampling, device, sink);
        Err(Error::Usage(format!("{} does not write text", Self::NAME)))
    }
}
