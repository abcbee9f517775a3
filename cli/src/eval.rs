//! `zoo eval`.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use candle_core::Device;
use serde_json::{Map, Value, json};
use zoo_checkpoint::{Description, Source};
use zoo_layers::Params;
use zoo_training::config::ConfigOf;
use zoo_training::{Config, Error, Evaluation, Metrics, Task};

use crate::args::EvalArgs;
use crate::fetch;
use crate::output::{note, print, print_json, table};
use crate::plot::draw_picture;
use crate::predict::csv_text;
use crate::registry::{changed_source, device, quoted, run_config, weights};
use crate::spread;

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

/// Weights on their data.
struct Judged {
    path: PathBuf,
    data: String,
    /// Tells the data apart.
    fingerprint: String,
    warnings: Vec<String>,
    split: &'static str,
    evaluation: Evaluation,
}

fn judge<T: Task>(args: &EvalArgs, checkpoint: &Path) -> anyhow::Result<Judged> {
    let device = device(&args.device)?;
    let path = weights(checkpoint);
    let Loaded { model, config, fitted, .. } = Loaded::<T>::read(&path, &device)?;
    let mut set = args.how.settings();
    let data = fetch::found::<T>(args.data.as_deref())?;
    set.extend(data.as_ref().map(|d| format!("data.path={}", quoted(d))));
    let source = match data {
        // Weights know the file's name alone, a run directory where it lies.
        None if checkpoint.is_dir() => run_config::<T>(checkpoint, &set)?.data,
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
    let split = T::JUDGED;
    if task.samples(split) == 0 {
        bail!("the {0} split has no samples (data.{0} is 0 in these weights)", split.name())
    }
    let evaluation = task.evaluate(&model, split)?;
    Ok(Judged {
        path,
        data: task.describe_data(),
        fingerprint: task.fingerprint(),
        warnings: task.warnings(),
        split: split.name(),
        evaluation,
    })
}

pub(crate) fn run<T: Task>(args: &EvalArgs) -> anyhow::Result<()> {
    let several = !args.more.is_empty();
    // Seeds share their data, and so its flaws.
    let (mut all, mut said) = (vec![], HashSet::new());
    for (i, checkpoint) in std::iter::once(&args.checkpoint).chain(&args.more).enumerate() {
        let judged = judge::<T>(args, checkpoint)?;
        judged.warnings.iter().filter(|w| said.insert((*w).clone())).for_each(|w| note(&format!("zoo: warning: {w}")));
        if let Some(output) = &args.output {
            let folder = if several { output.join(format!("{}-{}", i + 1, name(checkpoint))) } else { output.clone() };
            keep(&folder, &judged.evaluation)?;
        }
        if all.iter().any(|j: &Judged| j.path == judged.path) {
            return Err(Error::Usage(format!("{} is named twice", judged.path.display())).into());
        }
        let names = |j: &Judged| -> Vec<&str> {
            let Evaluation { metrics, baselines, .. } = &j.evaluation;
            metrics.iter().map(|m| m.0).chain(baselines.iter().map(|b| b.0)).collect()
        };
        if let Some(first) = all.first().filter(|first| names(first) != names(&judged)) {
            let (a, b) = (first.path.display(), judged.path.display());
            return Err(
                Error::Usage(format!("{a} and {b} are judged by different metrics: give them one by one")).into()
            );
        }
        all.push(judged);
    }
    match all.as_slice() {
        [one] => report_one::<T>(args, one),
        all => report_several::<T>(args, all),
    }
    Ok(())
}

/// What a run or file is called.
fn name(checkpoint: &Path) -> String {
    checkpoint.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

/// Writes what lies behind the metrics.
fn keep(folder: &Path, evaluation: &Evaluation) -> anyhow::Result<()> {
    if evaluation.tables.is_empty() && evaluation.picture.lines.is_empty() {
        return Err(Error::Usage("--output: there is nothing behind this model's metrics to keep".into()).into());
    }
    std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    for table in &evaluation.tables {
        let text = csv_text(&table.header, &table.rows)?;
        zoo_checkpoint::replace(&folder.join(format!("{}.csv", table.name)), |f| f.write_all(text.as_bytes()))?;
    }
    if !evaluation.picture.lines.is_empty() {
        draw_picture(&folder.join("picture.svg"), &evaluation.picture)?;
    }
    Ok(())
}

fn baselines(all: &[(&'static str, Metrics)]) -> Map<String, Value> {
    all.iter().map(|(name, m)| (name.to_string(), object(m))).collect()
}

fn header(metrics: &Metrics) -> Vec<String> {
    std::iter::once(String::new()).chain(metrics.iter().map(|(name, _)| name.replace('_', " "))).collect()
}

fn row(name: &str, metrics: &Metrics) -> Vec<String> {
    std::iter::once(name.to_string()).chain(metrics.iter().map(|(_, v)| format!("{v:.4}"))).collect()
}

fn report_one<T: Task>(args: &EvalArgs, judged: &Judged) {
    let Judged { path, data, split, evaluation, .. } = judged;
    let Evaluation { samples, metrics, baselines: others, remarks, .. } = evaluation;
    if args.json {
        return print_json(&json!({
            "model": T::NAME, "checkpoint": path.display().to_string(), "split": split, "samples": samples,
            "data": data, "metrics": object(metrics), "baselines": baselines(others), "remarks": remarks,
        }));
    }
    let mut rows = vec![header(metrics), row(T::NAME, metrics)];
    rows.extend(others.iter().map(|(name, m)| row(&name.replace('_', " "), m)));
    print(&format!("{data}\n{split} split, {samples} samples\n\n{}\n{}\n", table(&rows), remarks.join("\n")));
}

/// Each metric over the evaluations, by `of`.
fn over(all: &[&Metrics], of: fn(&[f64]) -> f64) -> Metrics {
    let value = |i: usize| all.iter().filter_map(|m| m.get(i)).map(|m| m.1).collect::<Vec<_>>();
    all.first().into_iter().flat_map(|m| m.iter().enumerate()).map(|(i, (name, _))| (*name, of(&value(i)))).collect()
}

fn report_several<T: Task>(args: &EvalArgs, all: &[Judged]) {
    let own: Vec<&Metrics> = all.iter().map(|j| &j.evaluation.metrics).collect();
    let (means, deviations) = (over(&own, spread::mean), over(&own, spread::deviation));
    // Seeds on the same days have met the same luck.
    let same = all.iter().all(|j| j.fingerprint == all[0].fingerprint);
    let mut others = vec![];
    let mut remarks = vec![];
    for (i, (name, _)) in all[0].evaluation.baselines.iter().enumerate() {
        let of: Vec<&Metrics> = all.iter().filter_map(|j| j.evaluation.baselines.get(i)).map(|b| &b.1).collect();
        remarks.extend(compare(&own, &of, &name.replace('_', " "), same));
        others.push((*name, over(&of, spread::mean)));
    }
    let samples: usize = all.iter().map(|j| j.evaluation.samples).sum();
    let shown = |j: &Judged| j.path.display().to_string();
    if args.json {
        let each = all.iter().map(|j| {
            json!({
                "checkpoint": shown(j), "data": j.data, "samples": j.evaluation.samples,
                "metrics": object(&j.evaluation.metrics), "baselines": baselines(&j.evaluation.baselines),
                "remarks": j.evaluation.remarks,
            })
        });
        return print_json(&json!({
            "model": T::NAME, "checkpoints": each.collect::<Vec<_>>(), "split": all[0].split, "samples": samples,
            "metrics": object(&means), "deviations": object(&deviations), "baselines": baselines(&others),
            "remarks": remarks,
        }));
    }
    let mut rows = vec![header(&means)];
    for judged in all {
        rows.push(row(&shown(judged), &judged.evaluation.metrics));
        for (name, metrics) in judged.evaluation.baselines.iter().filter(|_| !same) {
            rows.push(row(&format!("  {}", name.replace('_', " ")), metrics));
        }
    }
    rows.push(row("mean", &means));
    rows.push(row("standard deviation", &deviations));
    rows.extend(others.iter().map(|(name, m)| row(&name.replace('_', " "), m)));
    let mut data: Vec<&str> = all.iter().map(|j| j.data.as_str()).collect();
    data.dedup();
    print(&format!("{}\n{} split\n\n{}\n{}\n", data.join("\n"), all[0].split, table(&rows), remarks.join("\n")));
}

/// The first metric over the evaluations beside a baseline's.
fn compare(own: &[&Metrics], others: &[&Metrics], name: &str, same: bool) -> Option<String> {
    let (metric, _) = own.first()?.first()?;
    let differences: Vec<f64> = own.iter().zip(others).filter_map(|(a, b)| Some(a.first()?.1 - b.first()?.1)).collect();
    let [low, high] = spread::interval(&differences);
    let verdict = match () {
        () if same => "which speaks of the spread over seeds, not of other data",
        () if low > 0. => "above it",
        () if high < 0. => "below it",
        () => "no clear difference",
    };
    let above = differences.iter().filter(|d| **d > 0.).count();
    Some(format!(
        "{}: {above} of {} above {name}; the mean difference lies between {low:.4} and {high:.4} (95 %), {verdict}.",
        metric.replace('_', " "),
        differences.len()
    ))
}
