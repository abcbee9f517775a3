//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

use crate::registry::{self, Entry};

/// Models that train in candle.
#[derive(Parser)]
#[command(name = "zoo", version, propagate_version = true, disable_help_subcommand = true)]
pub(crate) struct Zoo {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// List models, presets, parameter counts and the data they take
    List {
        /// Print one JSON document
        #[arg(long)]
        json: bool,
    },
    /// Count a model's parameters, tensor by tensor
    Params(ParamsArgs),
    /// Train a model
    Train(Box<TrainArgs>),
    /// Train with many settings and rank them, or look for a learning rate
    Tune(Box<TuneArgs>),
    /// Judge trained weights on the test split, beside baselines
    Eval(EvalArgs),
    /// Apply trained weights to new data
    Predict(PredictArgs),
    /// Write text with trained weights
    Generate(GenerateArgs),
    /// Write a page about one run or several: curves, judgement, settings
    Report(ReportArgs),
    /// Judge a run by its curves and gradients, or a model by one pass: what is wrong and what to try
    Doctor(DoctorArgs),
    /// Run a founding document's experiment again; its figures beside ours
    Reproduce(ReproduceArgs),
    /// Write a checkpoint in another format, other names, layouts or element types
    Convert(ConvertArgs),
    /// Show what is in a checkpoint of any format
    Inspect(InspectArgs),
    /// Compare two checkpoints, tensor by tensor; exit code 1 if they differ
    Diff(DiffArgs),
    /// Check a checkpoint: its structure, checksums and values, and whether a model takes it
    Verify(VerifyArgs),
    /// Write the mean of several checkpoints
    Average(AverageArgs),
    /// Fetch a checkpoint from the hub, into the cache that Python's tools share
    Pull(PullArgs),
    /// Put weights, or a run's best ones, on the hub, with a card
    Push(PushArgs),
    /// Measure step time, inference time and the share of the machine's matmul peak
    Bench(BenchArgs),
    /// Print a completion script
    Completions {
        /// The shell to complete in
        shell: Shell,
    },
}

/// A model and its configuration.
#[derive(Args)]
pub(crate) struct Common {
    /// The model (zoo list shows them)
    pub(crate) model: String,
    /// A named set of settings
    #[arg(long, value_name = "NAME")]
    pub(crate) preset: Option<String>,
    /// A TOML file over the preset
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// One setting over everything else, such as train.lr=3e-4
    #[arg(long, value_name = "KEY=VALUE")]
    pub(crate) set: Vec<String>,
}

impl Common {
    pub(crate) fn entry(&self) -> anyhow::Result<&'static dyn Entry> {
        registry::find(&self.model)
    }
}

/// Data and how it is read.
#[derive(Args)]
pub(crate) struct DataArgs {
    /// The column of closes (data.column); found by its name by default
    #[arg(long, value_name = "NAME")]
    pub(crate) column: Option<String>,
    /// The column of dates (data.date_column); found by its name by default
    #[arg(long, value_name = "NAME")]
    pub(crate) date_column: Option<String>,
    /// Leave out rows that cannot be read (data.skip_bad_rows)
    #[arg(long)]
    pub(crate) skip_bad_rows: bool,
}

impl DataArgs {
    /// As settings.
    pub(crate) fn settings(&self) -> Vec<String> {
        let text = |key: &str, value: &Option<String>| {
            value.as_ref().map(|v| format!("data.{key}={}", serde_json::Value::from(v.as_str())))
        };
        let skip = self.skip_bad_rows.then(|| "data.skip_bad_rows=true".to_string());
        [text("column", &self.column), text("date_column", &self.date_column), skip].into_iter().flatten().collect()
    }
}

#[derive(Args)]
pub(crate) struct DoctorArgs {
    /// A run directory, or a model (zoo list shows them)
    #[arg(value_name = "RUN|MODEL", required_unless_present = "system", default_value = "", hide_default_value = true)]
    pub(crate) target: String,
    /// Instead: what this build and this machine can do, and why a device is not available
    #[arg(long, conflicts_with_all = ["target", "preset", "config", "set", "data", "checkpoint"])]
    pub(crate) system: bool,
    /// Of a model: a named set of settings
    #[arg(long, value_name = "NAME")]
    pub(crate) preset: Option<String>,
    /// Of a model: a TOML file over the preset
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Of a model: one setting over everything else
    #[arg(long, value_name = "KEY=VALUE")]
    pub(crate) set: Vec<String>,
    /// Of a model: its data
    #[arg(long, value_name = "PATH")]
    pub(crate) data: Option<PathBuf>,
    /// Of a model: weights instead of initial ones
    #[arg(long, value_name = "FILE|RUN")]
    pub(crate) checkpoint: Option<PathBuf>,
    /// Print one JSON document
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args)]
pub(crate) struct ReproduceArgs {
    /// What: gradient-death, planted-signal or simulated-eeg
    #[arg(value_name = "NAME")]
    pub(crate) name: String,
    /// Steps of each arm (2000, at least 25) or policy (1280, at least 10); masses of simulated-eeg (500, 10 to 5000)
    #[arg(long, value_name = "N")]
    pub(crate) steps: Option<u64>,
    /// Seed of data, weights, order and chance (42); of planted-signal's first policy (1)
    #[arg(long, value_name = "SEED")]
    pub(crate) seed: Option<u64>,
    /// A picture to draw (.svg or .png)
    #[arg(long, value_name = "PATH")]
    pub(crate) plot: Option<PathBuf>,
    /// Print one JSON document
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args)]
pub(crate) struct ReportArgs {
    /// Run directories
    #[arg(required = true, value_name = "RUN")]
    pub(crate) runs: Vec<PathBuf>,
    /// The page; report.html in the run, or here for several runs
    #[arg(long, value_name = "PATH")]
    pub(crate) output: Option<PathBuf>,
}

#[derive(Args)]
pub(crate) struct PredictArgs {
    /// The model (zoo list shows them)
    pub(crate) model: String,
    /// Weights, or a run directory (its best weights)
    #[arg(long, value_name = "FILE|RUN")]
    pub(crate) checkpoint: PathBuf,
    /// The data to predict from
    #[arg(long, value_name = "PATH")]
    pub(crate) input: PathBuf,
    /// The table to write; without it, it goes to stdout. For deepsif also a file of arrays (.npz or .mat)
    #[arg(long, value_name = "PATH")]
    pub(crate) output: Option<PathBuf>,
    /// What the model was trained on, where the prediction can use it (deepsif: the head's folder, for its cortex and for
    /// classical methods)
    #[arg(long, value_name = "PATH")]
    pub(crate) data: Option<PathBuf>,
    /// What is known of the input, to hold the prediction against (deepsif: regions in a MATLAB file)
    #[arg(long, value_name = "PATH")]
    pub(crate) truth: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) how: DataArgs,
    /// Steps to predict beyond the end of the input
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) horizon: usize,
    /// Percentage of outcomes that the intervals should hold
    #[arg(long, value_name = "PERCENT", default_value_t = 90.)]
    pub(crate) interval: f64,
    /// A picture to draw (.svg or .png)
    #[arg(long, value_name = "PATH")]
    pub(crate) plot: Option<PathBuf>,
    /// Where to compute: cpu, cuda, cuda:N or metal
    #[arg(long, value_name = "DEVICE", default_value = "cpu")]
    pub(crate) device: String,
    /// Print one JSON document (with --output)
    #[arg(long, requires = "output")]
    pub(crate) json: bool,
}

#[derive(Args)]
pub(crate) struct ConvertArgs {
    /// A checkpoint, the index of a sharded one, or a run directory (its best weights)
    pub(crate) input: PathBuf,
    /// What to write; its ending says the format
    pub(crate) output: PathBuf,
    /// The format to write: safetensors, pytorch, npz, npy or gguf
    #[arg(long, value_name = "NAME")]
    pub(crate) format: Option<String>,
    /// Take names and layouts of another program to this model's; with --to the other way
    #[arg(long, value_name = "NAME")]
    pub(crate) model: Option<String>,
    /// With --model: the other program's layout to write, such as nanogpt or huggingface
    #[arg(long, value_name = "LAYOUT", requires = "model")]
    pub(crate) to: Option<String>,
    /// With --model: data that the weights were trained on, for what a foreign file does not say (char-gpt: its text)
    #[arg(long, value_name = "PATH", requires = "model")]
    pub(crate) data: Option<PathBuf>,
    /// A rule, or a file of rules: rename, transpose, split, concat, cast, tie, drop; may be given several times
    #[arg(long, value_name = "FILE|RULE")]
    pub(crate) map: Vec<String>,
    /// The element type of all floating-point tensors: f32, f16, bf16 or f64
    #[arg(long, value_name = "DTYPE")]
    pub(crate) dtype: Option<String>,
    /// Write matrices as GGUF's blocks: q8_0, q6_k, q4_k or q4_0
    #[arg(long, value_name = "BLOCKS", conflicts_with = "dtype")]
    pub(crate) quantize: Option<String>,
    /// Write several safetensors files of at most this size, and their index: 5GB
    #[arg(long, value_name = "SIZE")]
    pub(crate) shard_size: Option<String>,
    /// Print the plan and write nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Print one JSON document
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args)]
pub(crate) struct PullArgs {
    /// OWNER/NAME, with @REVISION for a branch, tag or commit
    #[arg(value_name = "REPO[@REV]")]
    pub(crate) repository: String,
    /// One file; by default the weights (safetensors if there are any), their configuration and card
    #[arg(long, value_name = "FILE")]
    pub(crate) file: Option<String>,
    /// Print one JSON document
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args)]
pub(crate) struct PushArgs {
    /// Weights, or a run directory (its best weights and configuration)
    #[arg(value_name = "FILE|RUN")]
    pub(crate) file: PathBuf,
    /// OWNER/NAME, with @REVISION for a branch
    #[arg(value_name = "REPO")]
    pub(crate) repository: String,
    /// A card of your own (Markdown); by default one is written from the weights and the run
    #[arg(long, value_name = "FILE")]
    pub(crate) card: Option<PathBuf>,
    /// The commit's message
    #[arg(long, value_name = "TEXT")]
    pub(crate) message: Option<String>,
    /// Make the repository private, if it is made
    #[arg(long)]
    pub(crate) private: bool,
    /// Print the card and push nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Print one JSON document
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args)]
pub(crate) struct InspectArgs {
    /// A checkpoint of any format, a run directory, or hf://OWNER/NAME/FILE (its header alone is fetched)
    pub(crate) file: String,
    /// Read all values: least, largest, mean, standard deviation, norm, zeros, NaN
    #[arg(long)]
    pub(crate) stats: bool,
    /// Read all values: a hash of the tensors that is the same in every format
    #[arg(long)]
    pub(crate) hash: bool,
    /// Print one JSON document
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args)]
pub(crate) struct DiffArgs {
    /// A checkpoint of any format, or a run directory
    pub(crate) a: String,
    /// Another
    pub(crate) b: String,
    /// Print one JSON document
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args)]
pub(crate) struct VerifyArgs {
    /// A checkpoint of any format, or a run directory
    pub(crate) file: String,
    /// The model that is to take it
    #[arg(long, value_name = "NAME")]
    pub(crate) model: Option<String>,
    /// Print one JSON document
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args)]
pub(crate) struct AverageArgs {
    /// Checkpoints of any format, or run directories, with the same tensors
    #[arg(required = true, num_args = 2.., value_name = "FILE|RUN")]
    pub(crate) files: Vec<String>,
    /// The file to write
    #[arg(long, value_name = "PATH")]
    pub(crate) output: PathBuf,
    /// Print one JSON document
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args)]
pub(crate) struct GenerateArgs {
    /// The model (zoo list shows them)
    pub(crate) model: String,
    /// Weights, or a run directory (its best weights)
    #[arg(long, value_name = "FILE|RUN")]
    pub(crate) checkpoint: PathBuf,
    /// The text to go on from; - reads it from stdin. A new line by default
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true, allow_hyphen_values = true)]
    pub(crate) prompt: String,
    /// Characters to write
    #[arg(long, value_name = "N", default_value_t = 500)]
    pub(crate) tokens: usize,
    /// Below 1 safer, above 1 wilder, 0 for always the likeliest
    #[arg(long, value_name = "T", default_value_t = 1., allow_negative_numbers = true)]
    pub(crate) temperature: f64,
    /// Only the likeliest K; 0 for all
    #[arg(long, value_name = "K", default_value_t = 0)]
    pub(crate) top_k: usize,
    /// Only the likeliest that together have probability P
    #[arg(long, value_name = "P", default_value_t = 1., allow_negative_numbers = true)]
    pub(crate) top_p: f64,
    /// Only those with at least the share P of the likeliest's probability
    #[arg(long, value_name = "P", default_value_t = 0., allow_negative_numbers = true)]
    pub(crate) min_p: f64,
    /// Above 1: characters among the last 64 become less likely
    #[arg(long, value_name = "X", default_value_t = 1., allow_negative_numbers = true)]
    pub(crate) repetition_penalty: f64,
    /// End before this text; may be given several times
    #[arg(long, value_name = "TEXT")]
    pub(crate) stop: Vec<String>,
    /// How many texts to write
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) samples: u64,
    /// Same seed, same text
    #[arg(long, value_name = "S", default_value_t = 42)]
    pub(crate) seed: u64,
    /// Compute every character from the whole context anew: slow, and past the context another text
    #[arg(long)]
    pub(crate) no_cache: bool,
    /// Where to compute: cpu, cuda, cuda:N or metal
    #[arg(long, value_name = "DEVICE", default_value = "cpu")]
    pub(crate) device: String,
    /// Print one JSON document at the end
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args)]
pub(crate) struct ParamsArgs {
    #[command(flatten)]
    pub(crate) common: Common,
    /// Count the tensors of these weights instead
    #[arg(long, value_name = "FILE", conflicts_with_all = ["preset", "config", "set"])]
    pub(crate) checkpoint: Option<PathBuf>,
    /// Print one JSON document
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args)]
pub(crate) struct TrainArgs {
    #[command(flatten)]
    pub(crate) common: Common,
    /// The data (data.path); without it built-in or simulated data
    #[arg(long, value_name = "PATH")]
    pub(crate) data: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) how: DataArgs,
    /// The run directory; runs/MODEL-PRESET or the next free number by default
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
    /// Go on with a run: the given one, or the model's newest under runs/
    #[arg(long, value_name = "DIR", num_args = 0..=1, conflicts_with_all = ["preset", "config", "out", "init_from", "fast_dev_run"])]
    pub(crate) resume: Option<Option<PathBuf>>,
    /// With --resume: a key that may differ from what the run was begun with (data for the data itself)
    #[arg(long, value_name = "KEY", requires = "resume")]
    pub(crate) allow_change: Vec<String>,
    /// Optimizer steps (train.steps)
    #[arg(long, value_name = "N", conflicts_with = "epochs")]
    pub(crate) steps: Option<u64>,
    /// Passes over the training data (train.epochs)
    #[arg(long, value_name = "N")]
    pub(crate) epochs: Option<u64>,
    /// Seed of everything random (train.seed)
    #[arg(long, value_name = "S")]
    pub(crate) seed: Option<u64>,
    /// Weights to begin with, of the same model (train.init_from)
    #[arg(long, value_name = "FILE|RUN")]
    pub(crate) init_from: Option<PathBuf>,
    /// Parameters in whose names the expression is found stay as they are (train.freeze)
    #[arg(long, value_name = "REGEX")]
    pub(crate) freeze: Option<String>,
    /// At a loss or gradient that is not finite: abort, skip or rollback (train.on_nonfinite)
    #[arg(long, value_name = "WHAT")]
    pub(crate) on_nonfinite: Option<String>,
    /// When gradient health becomes critical: tell, stop, halve-lr or rollback (train.on_critical)
    #[arg(long, value_name = "WHAT")]
    pub(crate) on_critical: Option<String>,
    /// Where to compute: cpu, cuda, cuda:N or metal
    #[arg(long, value_name = "DEVICE", default_value = "cpu")]
    pub(crate) device: String,
    /// Write TensorBoard event files into the run directory
    #[arg(long)]
    pub(crate) tensorboard: bool,
    /// Write metrics.csv too
    #[arg(long)]
    pub(crate) csv: bool,
    /// Train on one batch again and again: a sound model learns it by heart
    #[arg(long)]
    pub(crate) overfit_batch: bool,
    /// Three steps and one evaluation, nothing written
    #[arg(long)]
    pub(crate) fast_dev_run: bool,
    /// Print the resolved configuration and stop
    #[arg(long)]
    pub(crate) print_config: bool,
    /// Print one JSON document at the end
    #[arg(long)]
    pub(crate) json: bool,
}

/// The order in which settings are tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Search {
    /// Every combination
    Grid,
    /// Random combinations
    Random,
    /// One key after the other, each with the best values of those before
    InOrder,
}

#[derive(Args)]
pub(crate) struct TuneArgs {
    /// The model (zoo list shows them)
    pub(crate) model: String,
    /// A named set of settings
    #[arg(long, value_name = "NAME")]
    pub(crate) preset: Option<String>,
    /// A TOML file over the preset
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// One value for all runs, values to try (train.lr=0.01,0.001), or a range for --search random (train.lr=1e-4..1e-2)
    #[arg(long, value_name = "KEY=VALUES")]
    pub(crate) set: Vec<String>,
    /// The data (data.path)
    #[arg(long, value_name = "PATH")]
    pub(crate) data: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) how: DataArgs,
    /// Where the runs go; the same call goes on where it was stopped. runs/MODEL-tune by default
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
    /// Optimizer steps of a run (train.steps)
    #[arg(long, value_name = "N", conflicts_with = "epochs")]
    pub(crate) steps: Option<u64>,
    /// Passes over the training data of a run (train.epochs)
    #[arg(long, value_name = "N")]
    pub(crate) epochs: Option<u64>,
    /// How settings are chosen
    #[arg(long, value_enum, default_value_t = Search::Grid)]
    pub(crate) search: Search,
    /// Runs of a random search
    #[arg(long, value_name = "N", default_value_t = 20)]
    pub(crate) trials: usize,
    /// Seed of the random search
    #[arg(long, value_name = "S", default_value_t = 1)]
    pub(crate) seed: u64,
    /// Let every run end by itself: without it, a run that is behind the median of those before is stopped
    #[arg(long)]
    pub(crate) to_the_end: bool,
    /// Raise the learning rate step by step until the loss diverges, and draw the loss
    #[arg(long)]
    pub(crate) lr_find: bool,
    /// Where --lr-find draws (.svg or .png)
    #[arg(long, value_name = "PATH", default_value = "lr-find.svg", requires = "lr_find")]
    pub(crate) plot: PathBuf,
    /// Where to compute: cpu, cuda, cuda:N or metal
    #[arg(long, value_name = "DEVICE", default_value = "cpu")]
    pub(crate) device: String,
    /// Print one JSON document at the end
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args)]
pub(crate) struct EvalArgs {
    /// The model (zoo list shows them)
    pub(crate) model: String,
    /// Weights, or a run directory (its best weights)
    #[arg(long, value_name = "FILE|RUN")]
    pub(crate) checkpoint: PathBuf,
    /// More of them, such as those of other seeds, to be judged together
    #[arg(value_name = "FILE|RUN")]
    pub(crate) more: Vec<PathBuf>,
    /// The data; by default what the model was trained on
    #[arg(long, value_name = "PATH")]
    pub(crate) data: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) how: DataArgs,
    /// A folder for what lies behind the metrics, such as trades and equity, as tables and a picture
    #[arg(long, value_name = "DIR")]
    pub(crate) output: Option<PathBuf>,
    /// Where to compute: cpu, cuda, cuda:N or metal
    #[arg(long, value_name = "DEVICE", default_value = "cpu")]
    pub(crate) device: String,
    /// Print one JSON document
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args)]
pub(crate) struct BenchArgs {
    /// The models; all by default
    pub(crate) models: Vec<String>,
    /// Measure ops beside their plain references instead of models
    #[arg(long, conflicts_with_all = ["models", "preset", "batch"])]
    pub(crate) ops: bool,
    /// Only this preset
    #[arg(long, value_name = "NAME")]
    pub(crate) preset: Option<String>,
    /// Samples a step, instead of the preset's (train.batch_size)
    #[arg(long, value_name = "N")]
    pub(crate) batch: Option<usize>,
    /// One setting over everything else, such as train.dtype=bf16 (with --ops that alone)
    #[arg(long, value_name = "KEY=VALUE")]
    pub(crate) set: Vec<String>,
    /// Seconds for each case (an op takes half of it)
    #[arg(long, value_name = "S", default_value_t = 4.)]
    pub(crate) seconds: f64,
    /// Where to compute: cpu, cuda, cuda:N or metal
    #[arg(long, value_name = "DEVICE", default_value = "cpu")]
    pub(crate) device: String,
    /// Print one JSON document
    #[arg(long)]
    pub(crate) json: bool,
}
