//! What a program that trains, judges and uses models needs to know of one beside its training.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{Device, Tensor};
use candle_nn::VarBuilder;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use zoo_checkpoint::Source;
use zoo_layers::onnx::Graph;
use zoo_layers::{Mode, TextModel};

use crate::config::{Config, ConfigOf, Overrides, changed};
use crate::metrics::Name;
use crate::{Error, Metrics, Result, Split, Task, TrainConfig};

/// A named set of settings over a task's defaults.
#[derive(Clone, Copy, Debug)]
pub struct Preset {
    /// Its name.
    pub name: &'static str,
    /// One line for people.
    pub summary: &'static str,
    /// TOML with the tables `model`, `data` and `train`.
    pub toml: &'static str,
}

/// A file that is fetched by name, once.
#[derive(Clone, Copy, Debug)]
pub struct Dataset {
    /// Its name.
    pub name: &'static str,
    /// Where it is.
    pub url: &'static str,
    /// Its size.
    pub bytes: u64,
    /// Its SHA-256 in hexadecimal.
    pub sha256: &'static str,
}

/// A flag of a command line that sets one key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flag {
    /// Its name, without dashes.
    pub name: &'static str,
    /// What a value of it is called; none for a switch, which sets `true`.
    pub value: Option<&'static str>,
    /// The key that it sets: of the configuration (`data.column`), or of [`Predict::Options`] behind `predict`
    /// (`predict.horizon`).
    pub key: &'static str,
    /// One line for people.
    pub help: &'static str,
}

impl Flag {
    /// A flag with a value. One that names a file or a folder calls it `PATH`, or has that, `FILE` or `DIR` in the name: requests to a server may not give it.
    pub const fn value(name: &'static str, value: &'static str, key: &'static str, help: &'static str) -> Self {
        Self { name, value: Some(value), key, help }
    }

    /// Whether its value names a file or a folder.
    pub fn names_file(&self) -> bool {
        self.value.is_some_and(|value| ["PATH", "FILE", "DIR", "FOLDER"].iter().any(|word| value.contains(word)))
    }

    /// A flag without a value, which sets `true`.
    pub const fn switch(name: &'static str, key: &'static str, help: &'static str) -> Self {
        Self { name, value: None, key, help }
    }

    /// Flags of a table: names, what values are called (none for switches), keys, and lines for people.
    pub const fn each<const N: usize>(
        rows: [(&'static str, Option<&'static str>, &'static str, &'static str); N],
    ) -> [Self; N] {
        let mut flags = [const { Self::switch("", "", "") }; N];
        let mut i = 0;
        while i < N {
            let (name, value, key, help) = rows[i];
            flags[i] = Self { name, value, key, help };
            i += 1;
        }
        flags
    }
}

/// How a model does on a split, beside baselines.
#[derive(Clone, Debug, Default)]
pub struct Evaluation {
    /// Samples of the split.
    pub samples: usize,
    /// The model's metrics.
    pub metrics: Metrics,
    /// The same metrics of each baseline.
    pub baselines: Vec<(Name, Metrics)>,
    /// What one should conclude, in words.
    pub remarks: Vec<String>,
    /// What lies behind the metrics, to be kept as files.
    pub tables: Vec<Table>,
    /// Pictures of it.
    pub pictures: Vec<Picture>,
}

/// What was tried to get at some weights, as far as the disk knows: runs of the same model on the same data in the same folder.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Trials {
    /// The run and those beside it.
    pub runs: usize,
    /// Validation losses of all of them: each is a look at the validation data that may have decided something.
    pub losses: Vec<f64>,
}

/// Rows under a header.
#[derive(Clone, Debug, Default)]
pub struct Table {
    /// What it is called.
    pub name: Name,
    /// Names of the columns.
    pub header: Vec<String>,
    /// The rows.
    pub rows: Vec<Vec<String>>,
}

/// A task with what a command line needs to train and judge it by name.
pub trait Recipe: Task {
    /// One line for people.
    const SUMMARY: &'static str;
    /// What data it takes (the key `data.path`), and what is used without them.
    const DATA: &'static str;
    /// Settings by name; the first is the default.
    const PRESETS: &'static [Preset] = &[];
    /// Files that are fetched by name.
    const DATASETS: &'static [Dataset] = &[];
    /// Flags for keys of `[data]`.
    const FLAGS: &'static [Flag] = &[];
    /// The part of the data that judges a trained model.
    const JUDGED: Split = Split::Test;

    /// The table `[train]` before presets.
    fn training() -> TrainConfig {
        TrainConfig::default()
    }

    /// Completes a configuration by what the data decide, before the model is built: nothing, by default.
    ///
    /// # Errors
    /// The data cannot be read.
    fn settle(config: &mut ConfigOf<Self>) -> Result<()> {
        let _ = config;
        Ok(())
    }

    /// What a configuration lacks to be run, such as a file that it does not name: nothing by default.
    fn lacks(config: &ConfigOf<Self>) -> Option<String> {
        let _ = config;
        None
    }

    /// Opens the data at `source`'s path (simulated or built-in data without one). `fitted` is what [`Task::fitted`]
    /// gave when the model was trained.
    ///
    /// # Errors
    /// The data cannot be read, or do not fit the architecture.
    fn open(
        architecture: &Self::Architecture,
        source: &Self::Data,
        seed: u64,
        fitted: Option<&Value>,
        device: &Device,
    ) -> Result<Self>;

    /// Refuses weights whose `fitted` (see [`Task::fitted`]) does not fit their architecture: nothing is refused by default.
    ///
    /// # Errors
    /// It does not.
    fn check(architecture: &Self::Architecture, fitted: &Value) -> Result<()> {
        let _ = (architecture, fitted);
        Ok(())
    }

    /// One line on the data at hand; by default the number of samples.
    fn describe_data(&self) -> String {
        let [train, valid, test] = [Split::Train, Split::Valid, Split::Test].map(|split| self.samples(split));
        format!("samples: {train} train, {valid} valid, {test} test")
    }

    /// What the user should know about this data.
    fn warnings(&self) -> Vec<String> {
        vec![]
    }

    /// The model's output for a batch.
    ///
    /// # Errors
    /// candle's.
    fn forward(&self, model: &Self::Model, batch: &Self::Batch, mode: Mode) -> candle_core::Result<Tensor>;

    /// Metrics of a split beside baselines; by default [`Task::validate`]'s alone.
    ///
    /// # Errors
    /// candle's.
    fn evaluate(&self, model: &Self::Model, split: Split) -> candle_core::Result<Evaluation> {
        let (samples, metrics) = (self.samples(split), self.validate(model, split)?);
        Ok(Evaluation { samples, metrics, ..Evaluation::default() })
    }

    /// What is to be said of evaluations of several weights on the same split, or of one, by who knows how often it was tried
    /// before, which takes looking for; nothing by default.
    fn reconsider(evaluations: &[&Evaluation], trials: &dyn Fn() -> Trials) -> Vec<String> {
        let _ = (evaluations, trials);
        vec![]
    }

    /// How the number of parameters comes about, in words.
    fn explain(architecture: &Self::Architecture) -> String {
        let _ = architecture;
        String::new()
    }

    /// The channels that weights take, in their order, by what belongs to a checkpoint; nothing where input has no named channels.
    fn channels(fitted: &Value) -> Option<Table> {
        let _ = fitted;
        None
    }

    /// A model of weights that stay as another program wrote them, such as the blocks of a GGUF file; none if the model reads no such file,
    /// which is the default.
    ///
    /// # Errors
    /// The file is damaged, or another model's; such weights do not work on `device`.
    fn of_foreign(source: &Source, device: &Device) -> Result<Option<AsIs<Self>>> {
        let _ = (source, device);
        Ok(None)
    }

    /// What weights stand over that lies in another file, which `source` names, such as those that they adapt: nothing by default. `path` is
    /// the weights', for messages.
    ///
    /// # Errors
    /// There is no such file, it cannot be read, or it is another model's.
    fn over(
        architecture: &Self::Architecture,
        source: &Self::Data,
        fitted: &Value,
        path: &Path,
        device: &Device,
    ) -> Result<Option<Over<Self>>> {
        let _ = (architecture, source, fitted, path, device);
        Ok(None)
    }

    /// What passes over batches hold in memory, beside parameters and their like, if it is known.
    fn memory(architecture: &Self::Architecture, source: &Self::Data, train: &TrainConfig) -> Option<Memory> {
        let _ = (architecture, source, train);
        None
    }

    /// Floating-point operations in the matrix products of a forward pass of one sample, if they are known.
    fn flops(architecture: &Self::Architecture, source: &Self::Data) -> Option<f64> {
        let _ = (architecture, source);
        None
    }

    /// Those of a training step, a sample: the backward pass has two products for each of the forward pass, unless weights stay as they are.
    fn step_flops(architecture: &Self::Architecture, source: &Self::Data) -> Option<f64> {
        Self::flops(architecture, source).map(|forward| 3. * forward)
    }
}

/// A model of weights that stay as another program wrote them.
pub struct AsIs<T: Recipe> {
    /// The model.
    pub model: T::Model,
    /// Its sizes.
    pub architecture: T::Architecture,
    /// How data are read for it.
    pub data: T::Data,
    /// What was fitted to its data.
    pub fitted: Value,
}

/// What defines a model's parameters.
pub type Define<M> = Box<dyn Fn(VarBuilder<'static>) -> candle_core::Result<M>>;

/// What weights stand over.
pub struct Over<T: Recipe> {
    /// Defines the parameters that the weights have.
    pub define: Define<T::Model>,
    /// What was fitted to the data that the whole was trained on.
    pub fitted: Value,
    /// What one should know, in words.
    pub remarks: Vec<String>,
}

/// Bytes that passes over batches hold.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Memory {
    /// What the forward pass of a micro-batch keeps for the backward pass.
    pub kept: f64,
    /// What is there beside it where the backward pass begins: outputs, their gradients, and what their product works in.
    pub turn: f64,
    /// What an evaluation holds.
    pub evaluated: f64,
    /// The activations that a health check looks at.
    pub probed: f64,
    /// Weights that are no parameters, such as those that an adapter leaves as they are.
    pub held: f64,
}

/// What a prediction is asked for.
#[derive(Clone, Debug)]
pub struct Request<'a, O> {
    /// The input file.
    pub input: &'a Path,
    /// The model's own options.
    pub options: O,
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
    pub lines: Vec<(Name, Vec<(f64, f64)>)>,
    /// An area between two lines: position, lower, upper.
    pub band: Vec<(f64, f64, f64)>,
}

/// A model that is applied to new data.
pub trait Predict: Recipe<Model: Sync, Data: Sync, Settings: Sync> {
    /// Options of a prediction; `()`-like if there are none.
    type Options: Serialize + DeserializeOwned + Default;
    /// Flags for them.
    const FLAGS: &'static [Flag] = &[];

    /// Applies a trained model to new data. `source` says how the input is read.
    ///
    /// # Errors
    /// Data or options that cannot be used.
    fn predict(
        model: &Self::Model,
        architecture: &Self::Architecture,
        source: &Self::Data,
        fitted: &Value,
        request: &Request<Self::Options>,
        device: &Device,
    ) -> Result<Prediction>;
}

/// A model that writes text.
pub trait Generate: Recipe {
    /// A trained model with its tokens.
    type Writer: TextModel;

    /// A trained model on `device` with the tokens in what was `fitted`.
    ///
    /// # Errors
    /// Tokens that do not fit the model.
    fn writer(model: &Self::Model, fitted: &Value, device: &Device) -> Result<Self::Writer>;

    /// The prompt by which a model made for conversations answers what `messages` say, each a role (`system`, `user`) and a text.
    /// Other models refuse, which is the default.
    ///
    /// # Errors
    /// The model was not made for conversations.
    fn conversation(writer: &Self::Writer, messages: &[(&str, &str)]) -> Result<String> {
        let _ = (writer, messages);
        Err(Error::Usage(format!("{} goes on with texts, and was not made for conversations", Self::NAME)))
    }
}

/// A model that is written as a graph of ONNX's operators, in which other programs run it.
pub trait Export: Recipe {
    /// What goes from one call of the graph to the next, if anything does, in words: `keys and values of attention`.
    const STATE: Option<&'static str> = None;

    /// Adds a model to a graph: its inputs, what it does when evaluating, and its outputs. With `state`, [`Self::STATE`] is among both.
    ///
    /// # Errors
    /// It does what no operators do; candle's.
    fn export(
        model: &Self::Model,
        architecture: &Self::Architecture,
        fitted: &Value,
        state: bool,
        graph: &mut Graph,
    ) -> candle_core::Result<()>;
}

/// What [`Tokenize::encode`] wrote.
#[derive(Clone, Debug, Default)]
pub struct Encoded {
    /// Tokens.
    pub tokens: usize,
    /// Bytes of text that they stand for.
    pub bytes: u64,
    /// Files of tokens.
    pub files: usize,
    /// What was done to the texts, in words.
    pub remarks: Vec<String>,
}

/// A model whose tokenizer is a file of its own.
pub trait Tokenize: Recipe {
    /// A tokenizer of at most `vocabulary` tokens for a text, the texts of a folder, or the documents of a JSONL file: the content of its
    /// file, and what was done to the texts, in words.
    ///
    /// # Errors
    /// Texts that cannot be read, or too few tokens.
    fn train_tokenizer(text: &Path, encoding: &str, vocabulary: usize) -> Result<(String, Vec<String>)>;

    /// Writes the tokens of such texts into `folder`, `shard` of them to a file, as data to train on.
    ///
    /// # Errors
    /// Texts that cannot be read; a folder that has files.
    fn encode(text: &Path, encoding: &str, tokenizer: &Path, folder: &Path, shard: usize) -> Result<Encoded>;
}

/// The whole model that weights and what they stand over make.
pub struct Merged<T: Recipe> {
    /// Its sizes.
    pub architecture: T::Architecture,
    /// What was fitted to its data.
    pub fitted: Value,
    /// Its weights.
    pub tensors: Vec<(String, Tensor)>,
    /// The largest distance of a sum from what f64 gives, as a share of the largest element of its tensor.
    pub error: f64,
    /// What one should know, in words.
    pub remarks: Vec<String>,
}

/// How another program names and lays out the same weights.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// Its name.
    pub name: &'static str,
    /// Rules (see `zoo_checkpoint::Rules`) that lead from it to the model's own names and shapes.
    pub import: &'static str,
    /// Rules that lead back.
    pub export: &'static str,
    /// The entry of a PyTorch file that holds its tensors; empty if the file is them.
    pub entry: &'static str,
    /// The file beside the weights that holds their configuration; empty if the weights' file does.
    pub sidecar: &'static str,
    /// Whether its files keep our configuration, with what was fitted, beside their own. Where they do not, theirs have to say
    /// enough for [`Import::adopt`].
    pub keeps_ours: bool,
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
    /// The file, or the folder of one with others beside it.
    pub path: &'a Path,
    /// The folder that it lies in, where further files of it may be.
    pub folder: &'a Path,
    /// The data that it was trained on, if the user named them.
    pub data: Option<&'a Path>,
    /// Settings that the user gave, as `KEY=VALUE`.
    pub settings: &'a [String],
    /// Takes what was guessed, in words.
    pub doubts: &'a RefCell<Vec<String>>,
}

impl Foreign<'_> {
    /// The last value that the user gave a key, such as `model.heads`.
    pub fn setting(&self, key: &str) -> Option<&str> {
        self.settings.iter().rev().find_map(|set| set.strip_prefix(key)?.strip_prefix('='))
    }

    /// A configuration with the user's settings over it.
    ///
    /// # Errors
    /// A key that there is not, or a value of the wrong type.
    pub fn configured<T: Recipe>(&self, model: T::Architecture, data: T::Data) -> Result<ConfigOf<T>> {
        let config = Config { model, data, train: T::training(), task: <T as Task>::Settings::default() };
        changed::<T>(&config, &Overrides { set: self.settings, ..Overrides::default() })
    }
}

/// A model that takes checkpoints of other programs, and is written as theirs.
pub trait Import: Recipe {
    /// The layouts of other programs that convert to and from this model.
    const LAYOUTS: &'static [Layout];

    /// Which of the layouts a checkpoint has, by its names and shapes.
    fn recognize(tensors: &[(&str, &[usize])]) -> Option<&'static Layout>;

    /// The configuration of a checkpoint of another program, and what was fitted to its data.
    ///
    /// # Errors
    /// It does not say enough; the message says what is missing and how to give it.
    fn adopt(foreign: &Foreign) -> Result<(Self::Architecture, Self::Data, Value)>;

    /// What another program wants to find beside the tensors; `fitted` is what was fitted to the model's data.
    ///
    /// # Errors
    /// That program has no such model.
    fn entries(layout: &Layout, architecture: &Self::Architecture, fitted: &Value) -> Result<Map<String, Value>>;

    /// Rules that depend on sizes, such as those that reorder heads: behind [`Layout::import`] on the way in, before
    /// [`Layout::export`] on the way out (`back`). None by default.
    fn reorder(layout: &Layout, architecture: &Self::Architecture, back: bool) -> String {
        let _ = (layout, architecture, back);
        String::new()
    }

    /// The whole model that weights and what they stand over make, such as an adapter and its base; none if they stand over nothing, which is
    /// the default.
    ///
    /// # Errors
    /// As [`Recipe::over`].
    fn merged(
        architecture: &Self::Architecture,
        source: &Self::Data,
        fitted: &Value,
        path: &Path,
        tensors: BTreeMap<String, Tensor>,
    ) -> Result<Option<Merged<Self>>> {
        let _ = (architecture, source, fitted, path, tensors);
        Ok(None)
    }

    /// Files that another program wants to find beside the weights and [`Layout::sidecar`], by name; none by default.
    ///
    /// # Errors
    /// What was fitted is nothing that they can hold.
    fn beside(layout: &Layout, fitted: &Value) -> Result<Vec<(&'static str, String)>> {
        let _ = (layout, fitted);
        Ok(vec![])
    }
}
