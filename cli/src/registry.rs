//! The models: one line each.

use std::marker::PhantomData;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use candle_core::Device;
use zoo_char_gpt::CharTask;
use zoo_checkpoint::{Plan, Source};
use zoo_deepsif::DeepSifTask;
use zoo_layers::{Params, nearest};
use zoo_stock_lstm::StockTask;
use zoo_trading_transformer::TradingTask;
use zoo_training::config::{ConfigOf, Layers, resolve, to_toml};
use zoo_training::health::Profile;
use zoo_training::{Error, Task};

use crate::args::{
    Common, ConvertArgs, DoctorArgs, EvalArgs, GenerateArgs, ParamsArgs, PredictArgs, TrainArgs, TuneArgs,
};
use crate::{adapt, bench, doctor, eval, generate, list, params, predict, train, tune};

/// Every model.
pub(crate) const MODELS: &[&dyn Entry] = &[
    &Of::<StockTask>(PhantomData),
    &Of::<CharTask>(PhantomData),
    &Of::<TradingTask>(PhantomData),
    &Of::<DeepSifTask>(PhantomData),
];

/// What the command line does with a model.
pub(crate) trait Entry: Sync {
    fn name(&self) -> &'static str;
    fn describe(&self) -> anyhow::Result<list::Described>;
    fn params(&self, args: &ParamsArgs) -> anyhow::Result<()>;
    fn train(&self, args: &TrainArgs) -> anyhow::Result<ExitCode>;
    fn tune(&self, args: &TuneArgs) -> anyhow::Result<ExitCode>;
    fn eval(&self, args: &EvalArgs) -> anyhow::Result<()>;
    fn predict(&self, args: &PredictArgs) -> anyhow::Result<()>;
    fn generate(&self, args: &GenerateArgs) -> anyhow::Result<ExitCode>;
    /// One forward and backward pass.
    fn examine(&self, args: &DoctorArgs) -> anyhow::Result<()>;
    /// What is usual of its gradients.
    fn profile(&self) -> Profile;
    fn bench(&self, options: &bench::Options) -> anyhow::Result<Vec<bench::Case>>;
    /// Takes a plan to the model's layout, or from it to another program's; the file to write beside it.
    fn adapt(&self, plan: &mut Plan, args: &ConvertArgs) -> anyhow::Result<Option<(PathBuf, String)>>;
    /// Whether the model takes these weights.
    fn fits(&self, source: &Source) -> anyhow::Result<()>;
}

/// A task as an entry.
struct Of<T>(PhantomData<fn() -> T>);

impl<T: Task> Entry for Of<T> {
    fn name(&self) -> &'static str {
        T::NAME
    }

    fn describe(&self) -> anyhow::Result<list::Described> {
        list::describe::<T>()
    }

    fn params(&self, args: &ParamsArgs) -> anyhow::Result<()> {
        params::run::<T>(args)
    }

    fn train(&self, args: &TrainArgs) -> anyhow::Result<ExitCode> {
        train::run::<T>(args)
    }

    fn tune(&self, args: &TuneArgs) -> anyhow::Result<ExitCode> {
        tune::run::<T>(args)
    }

    fn eval(&self, args: &EvalArgs) -> anyhow::Result<()> {
        eval::run::<T>(args)
    }

    fn predict(&self, args: &PredictArgs) -> anyhow::Result<()> {
        predict::run::<T>(args)
    }

    fn generate(&self, args: &GenerateArgs) -> anyhow::Result<ExitCode> {
        generate::run::<T>(args)
    }

    fn examine(&self, args: &DoctorArgs) -> anyhow::Result<()> {
        doctor::examine::<T>(args)
    }

    fn profile(&self) -> Profile {
        T::health()
    }

    fn bench(&self, options: &bench::Options) -> anyhow::Result<Vec<bench::Case>> {
        bench::cases::<T>(options)
    }

    fn adapt(&self, plan: &mut Plan, args: &ConvertArgs) -> anyhow::Result<Option<(PathBuf, String)>> {
        adapt::run::<T>(plan, args)
    }

    fn fits(&self, source: &Source) -> anyhow::Result<()> {
        eval::Loaded::<T>::of(source, &Device::Cpu).map(|_| ())
    }
}

/// The model of that name.
pub(crate) fn find(name: &str) -> anyhow::Result<&'static dyn Entry> {
    if let Some(entry) = MODELS.iter().find(|m| m.name() == name) {
        return Ok(*entry);
    }
    let names: Vec<&str> = MODELS.iter().map(|m| m.name()).collect();
    let hint = nearest(name, names.iter().copied()).map_or(String::new(), |n| format!(" (did you mean {n}?)"));
    Err(Error::Usage(format!("there is no model {name}{hint}; the models are {}", names.join(", "))).into())
}

/// The configuration that the arguments describe, with more settings on top.
pub(crate) fn configured<T: Task>(common: &Common, more: &[String]) -> anyhow::Result<ConfigOf<T>> {
    let set: Vec<String> = common.set.iter().chain(more).cloned().collect();
    layered::<T>(common.preset.as_deref(), common.config.as_deref(), &set)
}

/// Defaults, preset, file and settings.
pub(crate) fn layered<T: Task>(
    preset: Option<&str>,
    config: Option<&Path>,
    set: &[String],
) -> anyhow::Result<ConfigOf<T>> {
    let text = match config {
        Some(path) => Some((
            std::fs::read_to_string(path).with_context(|| path.display().to_string())?,
            path.display().to_string(),
        )),
        None => None,
    };
    let file = text.as_ref().map(|(text, name)| (text.as_str(), name.as_str()));
    Ok(resolve::<T>(&Layers { preset, file, set })?)
}

/// `[data]` with the settings `data.KEY=VALUE` over it.
pub(crate) fn changed_source<T: Task>(config: &ConfigOf<T>, set: &[String]) -> anyhow::Result<T::Source> {
    let text = to_toml(config)?;
    Ok(resolve::<T>(&Layers { preset: None, file: Some((&text, "the checkpoint's configuration")), set })?.data)
}

/// The configuration in a run directory, with settings on top.
pub(crate) fn run_config<T: Task>(run: &Path, set: &[String]) -> anyhow::Result<ConfigOf<T>> {
    let file = run.join("config.toml");
    if !file.exists() {
        return Err(Error::Run(format!("{} is not a run directory: it has no config.toml", run.display())).into());
    }
    let name = file.display().to_string();
    let text = std::fs::read_to_string(&file).with_context(|| name.clone())?;
    Ok(resolve::<T>(&Layers { preset: None, file: Some((&text, &name)), set })?)
}

/// A model's parameters with initial values.
pub(crate) fn initial<T: Task>(config: &ConfigOf<T>) -> anyhow::Result<Params> {
    let params = Params::init(config.train.seed, &Device::Cpu);
    T::build(&config.model, params.builder())?;
    Ok(params)
}

/// `path` as a quoted TOML value.
pub(crate) fn quoted(path: &Path) -> String {
    serde_json::Value::from(path.to_string_lossy()).to_string()
}

/// The device of that name.
pub(crate) fn device(name: &str) -> anyhow::Result<Device> {
    let (kind, ordinal) = name.split_once(':').unwrap_or((name, "0"));
    let unknown = || Error::Usage(format!("--device {name}: expected cpu, cuda, cuda:N or metal"));
    let ordinal: usize = ordinal.parse().map_err(|_| unknown())?;
    let built = |with: bool, feature: &str| match with {
        true => Ok(()),
        false => Err(Error::Usage(format!(
            "--device {name}: this zoo was built without it; build with --features {feature}"
        ))),
    };
    match kind {
        "cpu" if !name.contains(':') => Ok(Device::Cpu),
        "cuda" => {
            built(candle_core::utils::cuda_is_available(), "cuda")?;
            // One stream for all threads: candle's usual ones are the threads' own, and would not wait for each other.
            let device = Device::new_cuda_with_stream(ordinal).with_context(|| format!("--device {name}"))?;
            #[cfg(feature = "cuda")]
            if let Device::Cuda(cuda) = &device {
                // SAFETY: everything that is computed on this device is on its one stream, in order.
                unsafe { cuda.disable_event_tracking() }
            }
            Ok(device)
        }
        "metal" => {
            built(candle_core::utils::metal_is_available(), "metal")?;
            Device::new_metal(ordinal).with_context(|| format!("--device {name}"))
        }
        _ => Err(unknown().into()),
    }
}

/// The weights that a file or run directory stands for.
pub(crate) fn weights(path: &Path) -> PathBuf {
    if !path.is_dir() {
        return path.to_path_buf();
    }
    // Ours, then those that others put into a folder.
    const NAMES: [&str; 6] = [
        "best.safetensors",
        "last.safetensors",
        "model.safetensors",
        "model.safetensors.index.json",
        "pytorch_model.bin",
        "pytorch_model.bin.index.json",
    ];
    let found = NAMES.iter().map(|n| path.join(n)).find(|p| p.exists());
    // A run without weights yet lacks its last ones; any other folder is no checkpoint.
    found.unwrap_or_else(|| if path.join("config.toml").exists() { path.join(NAMES[1]) } else { path.to_path_buf() })
}
