//! `zoo eval`.

use std::path::Path;

use anyhow::{Context, bail};
use candle_core::Device;
use serde_json::{Map, Value, json};
use zoo_checkpoint::{Description, Source};
use zoo_layers::Params;
use zoo_training::config::ConfigOf;
use zoo_training::{Config, Evaluation, Metrics, Task};

use crate::args::EvalArgs;
use crate::fetch;
use crate::output::{note, print, print_json, table};
use crate::registry::{changed_source, device, quoted, run_config, weights};

/// Weights with what they say about themselves.
pub(crate) struct Loaded<T: Task> {
    pub(crate) model: T::Model,
    pub(crate) params: Params,
    pub(crate) config: ConfigOf<T>,
    pub(crate) fitted: Value,
}

impl<T: Task> Loaded<T> {
    /// Reads the weights at `path`, strictly.
    pub(crate) fn read(path: &Path, device: &Device) -> anyhow::Result<Self> {
        Self::of(&zoo_checkpoint::open(path)?, device)
    }

    /// The weights in an open checkpoint.
    pub(crate) fn of(source: &Source, device: &Device) -> anyhow::Result<Self> {
        let path = &source.path;
        let file = source.read(device)?;
        let Description { config, fitted, .. } = Description::parse(&file.metadata, T::NAME, path)?;
        let shown = path.display();
        let config: ConfigOf<T> =
            serde_json::from_value::<Config<_, _>>(config).with_context(|| format!("{shown}: its configuration"))?;
        let params = Params::load(file.tensors, device);
        let model = T::build(&config.model, params.builder()).with_context(|| shown.to_string())?;
        params.check().with_context(|| shown.to_string())?;
        Ok(Self { model, params, config, fitted })
    }
}

pub(crate) fn object(metrics: &Metrics) -> Value {
    Value::Object(metrics.iter().map(|(name, value)| (name.to_string(), (*value).into())).collect())
}

pub(crate) fn run<T: Task>(args: &EvalArgs) -> anyhow::Result<()> {
    let device = device(&args.device)?;
    let path = weights(&args.checkpoint);
    let Loaded { model, config, fitted, .. } = Loaded::<T>::read(&path, &device)?;
    let mut set = args.how.settings();
    let data = fetch::found::<T>(args.data.as_deref())?;
    set.extend(data.as_ref().map(|d| format!("data.path={}", quoted(d))));
    let source = match data {
        // Weights know the file's name alone, a run directory where it lies.
        None if args.checkpoint.is_dir() => run_config::<T>(&args.checkpoint, &set)?.data,
        named => {
            let source = changed_source::<T>(&config, &set)?;
            let trained_on = serde_json::to_value(&source)?["path"].as_str().unwrap_or_default().to_string();
            if named.is_none() && !Path::new(&trained_on).exists() && !trained_on.is_empty() {
                bail!(
                    "{}: the weights were trained on {trained_on}, which is not here: name it by --data",
                    path.display()
                )
            }
            source
        }
    };
    let task = T::open(&config.model, &source, config.train.seed, Some(&fitted), &device)?;
    task.warnings().iter().for_each(|w| note(&format!("zoo: warning: {w}")));
    let split = T::JUDGED;
    if task.samples(split) == 0 {
        bail!("the {0} split has no samples (data.{0} is 0 in these weights)", split.name())
    }
    let Evaluation { samples, metrics, baselines, remarks } = task.evaluate(&model, split)?;
    if args.json {
        let baselines: Map<String, Value> = baselines.iter().map(|(name, m)| (name.to_string(), object(m))).collect();
        print_json(&json!({
            "model": T::NAME, "checkpoint": path.display().to_string(), "split": split.name(), "samples": samples,
            "data": task.describe_data(), "metrics": object(&metrics), "baselines": baselines, "remarks": remarks,
        }));
        return Ok(());
    }
    let mut rows =
        vec![std::iter::once(String::new()).chain(metrics.iter().map(|(name, _)| name.replace('_', " "))).collect()];
    let row = |name: &str, m: &Metrics| {
        std::iter::once(name.replace('_', " ")).chain(m.iter().map(|(_, v)| format!("{v:.4}"))).collect()
    };
    rows.push(row(T::NAME, &metrics));
    rows.extend(baselines.iter().map(|(name, m)| row(name, m)));
    print(&format!(
        "{}\n{} split, {samples} samples\n\n{}\n{}\n",
        task.describe_data(),
        split.name(),
        table(&rows),
        remarks.join("\n")
    ));
    Ok(())
}
