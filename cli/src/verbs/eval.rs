//! `eval`: trained weights on the test split, beside baselines.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::Args;
use serde_json::{Map, Value, json};
use zoo_training::{Error, Evaluation, History, Metrics, Name, Recipe, RunFiles, Table, Trials, spread};

use crate::arguments::{Checkpoint, DeviceName, Force, Json, ModelName, Precision};
use crate::device::device;
use crate::fetch;
use crate::output::{csv_text, cut, print, print_json, table, warn};
use crate::plot::draw_picture;
use crate::settings::{changed_source, run_config};
use crate::verbs::sheet;
use crate::weights::{BASE, Places, Usable, weights};

#[derive(Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) model: ModelName,
    #[command(flatten)]
    pub(crate) checkpoint: Checkpoint,
    /// More of them, such as those of other seeds, to be judged together
    #[arg(value_name = "FILE|RUN")]
    pub(crate) more: Vec<PathBuf>,
    /// The data; by default what the model was trained on
    #[arg(long, value_name = "PATH")]
    pub(crate) data: Option<PathBuf>,
    /// A setting of the data over those of the weights, such as data.head=FOLDER
    #[arg(long, value_name = "KEY=VALUE")]
    pub(crate) set: Vec<String>,
    /// A folder for what lies behind the metrics, such as trades and equity, as tables and a picture
    #[arg(long, value_name = "DIR")]
    pub(crate) output: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) force: Force,
    #[command(flatten)]
    pub(crate) device: DeviceName,
    #[command(flatten)]
    pub(crate) precision: Precision,
    #[command(flatten)]
    pub(crate) json: Json,
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

fn judge<T: Recipe>(args: &Arguments, checkpoint: &Path) -> anyhow::Result<Judged> {
    let device = device(&args.device.device)?;
    let flags = args.model.flags.0.keys().filter(|table| *table != "data");
    let flags = flags.map(|table| format!("a flag for {table}.KEY"));
    let others = args.set.iter().filter(|set| !set.starts_with("data.")).map(|set| format!("--set {set}"));
    if let Some(other) = others.chain(flags).next() {
        let said = format!("{other}: weights are judged as they are; the data alone can be set (data.KEY=VALUE)");
        return Err(Error::Usage(said).into());
    }
    let mut values = args.model.flags.clone();
    if let Some(base) = values.text(BASE) {
        values.set_path(BASE, &weights(Path::new(&base))?)?;
    }
    let places = Places { checkpoint, values: &values, set: &args.set };
    let (usable, path) = Usable::<T>::read(&places, &device)?;
    let Usable { model, config, fitted, foreign } = usable;
    let data = fetch::found::<T>(args.data.as_deref())?;
    if let Some(data) = &data {
        values.set_path("data.path", data)?;
    }
    let source = match data {
        None if foreign => {
            bail!("{}: the weights do not say what they were trained on: name the data by --data", path.display())
        }
        // Weights know the file's name alone, a run directory where it lies.
        None if checkpoint.is_dir() && RunFiles::at(checkpoint).exist() => {
            run_config::<T>(checkpoint, &args.set, values)?.data
        }
        named => {
            let source = changed_source::<T>(&config, &args.set, values)?;
            let trained_on = serde_json::to_value(&source)?["path"].as_str().unwrap_or_default().to_string();
            // A file that may be anybody's does not decide what is opened here.
            if named.is_none() && !trained_on.is_empty() {
                let (path, trained_on) = (path.display(), cut(&trained_on, 60));
                bail!("{path}: the weights were trained on {trained_on}: name the data by --data")
            }
            source
        }
    };
    let task = T::open(&config.model, &source, config.train.seed, Some(&fitted), &device)?;
    let split = T::JUDGED;
    if task.samples(split) == 0 {
        bail!("the {0} split has no samples (data.{0} is 0 in these weights)", split.name())
    }
    let mut evaluation = args.precision.run(|| task.evaluate(&model, split))?;
    if args.more.is_empty() {
        let trials = || trials::<T>(checkpoint, &task.fingerprint());
        let said = T::reconsider(&[&evaluation], &trials);
        evaluation.remarks.extend(said);
    }
    Ok(Judged {
        path,
        data: task.describe_data(),
        fingerprint: task.fingerprint(),
        warnings: task.warnings(),
        split: split.name(),
        evaluation,
    })
}

/// What the disk knows of what was tried: the run and those of the same model on the same data beside it.
fn trials<T: Recipe>(checkpoint: &Path, data: &str) -> Trials {
    const MOST: usize = 10_000;
    let mut trials = Trials::default();
    let whole = std::path::absolute(checkpoint).unwrap_or(checkpoint.to_path_buf());
    let Some(beside) = whole.parent().filter(|_| checkpoint.is_dir() && RunFiles::at(checkpoint).exist()) else {
        return trials;
    };
    let entries = std::fs::read_dir(beside).into_iter().flatten().flatten().take(MOST);
    for run in entries.map(|e| e.path()).filter(|p| p.is_dir() && RunFiles::at(p).exist()) {
        let files = RunFiles::at(&run);
        let same = files.model().is_some_and(|model| model == T::NAME) && files.data().is_some_and(|of| of == data);
        if !same && run != whole {
            continue;
        }
        let Ok(history) = History::read(&run) else { continue };
        trials.runs += 1;
        let losses = history.curves.iter().filter(|c| c.name == "valid loss").flat_map(|c| &c.points);
        // Initial weights are chosen by nobody.
        trials.losses.extend(losses.filter(|(step, _)| *step > 0).map(|(_, loss)| *loss));
    }
    trials
}

pub(crate) fn run<T: Recipe>(args: &Arguments) -> anyhow::Result<()> {
    let several = !args.more.is_empty();
    // Seeds share their data, and so its flaws.
    let (mut all, mut said) = (vec![], HashSet::new());
    for (i, checkpoint) in std::iter::once(&args.checkpoint.checkpoint).chain(&args.more).enumerate() {
        let judged = judge::<T>(args, checkpoint)?;
        judged.warnings.iter().filter(|w| said.insert((*w).clone())).for_each(warn);
        if let Some(output) = &args.output {
            let folder = if several { output.join(format!("{}-{}", i + 1, name(checkpoint))) } else { output.clone() };
            let title = format!("{} on the {} split: {}", name(checkpoint), judged.split, judged.data);
            keep(&folder, args.force, &title, &judged.evaluation)?;
        }
        if all.iter().any(|j: &Judged| j.path == judged.path) {
            return Err(Error::Usage(format!("{} is named twice", judged.path.display())).into());
        }
        let names = |j: &Judged| -> Vec<Name> {
            let Evaluation { metrics, baselines, .. } = &j.evaluation;
            metrics.iter().map(|m| m.0.clone()).chain(baselines.iter().map(|b| b.0.clone())).collect()
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
fn keep(folder: &Path, force: Force, title: &str, evaluation: &Evaluation) -> anyhow::Result<()> {
    let Evaluation { tables, pictures, .. } = evaluation;
    if tables.is_empty() && pictures.is_empty() {
        return Err(Error::Usage("--output: there is nothing behind this model's metrics to keep".into()).into());
    }
    let file = |table: &Table| folder.join(format!("{}.csv", table.name));
    let drawn = |i: usize| if i == 0 { "picture.svg".into() } else { format!("picture-{}.svg", i + 1) };
    let drawn: Vec<String> = (0..pictures.len()).map(drawn).collect();
    let page = folder.join(sheet::PAGE);
    let files: Vec<PathBuf> =
        tables.iter().map(file).chain(drawn.iter().map(|name| folder.join(name))).chain([page.clone()]).collect();
    force.check(files.iter().map(PathBuf::as_path))?;
    std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    for table in tables {
        let text = csv_text(&table.header, &table.rows)?;
        force.write(&file(table), text.as_bytes())?;
    }
    for (picture, name) in pictures.iter().zip(&drawn) {
        draw_picture(&folder.join(name), picture, force)?;
    }
    force.write(&page, sheet::page(title, evaluation, &drawn).as_bytes())?;
    Ok(())
}

fn baselines(all: &[(Name, Metrics)]) -> Map<String, Value> {
    all.iter().map(|(name, m)| (name.to_string(), m.object().into())).collect()
}

fn header(metrics: &Metrics) -> Vec<String> {
    std::iter::once(String::new()).chain(metrics.iter().map(|(name, _)| name.replace('_', " "))).collect()
}

fn row(name: &str, metrics: &Metrics) -> Vec<String> {
    std::iter::once(name.to_string()).chain(metrics.iter().map(|(_, v)| format!("{v:.4}"))).collect()
}

fn report_one<T: Recipe>(args: &Arguments, judged: &Judged) {
    let Judged { path, data, split, evaluation, .. } = judged;
    let Evaluation { samples, metrics, baselines: others, remarks, .. } = evaluation;
    if args.json.json {
        return print_json(&json!({
            "model": T::NAME, "checkpoint": path.display().to_string(), "split": split, "samples": samples,
            "dtype": args.precision.dtype, "data": data, "metrics": metrics.object(), "baselines": baselines(others), "remarks": remarks,
        }));
    }
    let mut rows = vec![header(metrics), row(T::NAME, metrics)];
    rows.extend(others.iter().map(|(name, m)| row(&name.replace('_', " "), m)));
    print(&format!("{data}\n{split} split, {samples} samples\n\n{}\n{}\n", table(&rows), remarks.join("\n")));
}

/// Each metric over the evaluations, by `of`.
fn over(all: &[&Metrics], of: fn(&[f64]) -> f64) -> Metrics {
    let value = |i: usize| all.iter().filter_map(|m| m.get(i)).map(|m| m.1).collect::<Vec<_>>();
    all.first()
        .into_iter()
        .flat_map(|m| m.iter().enumerate())
        .map(|(i, (name, _))| (name.clone(), of(&value(i))))
        .collect()
}

fn report_several<T: Recipe>(args: &Arguments, all: &[Judged]) {
    let own: Vec<&Metrics> = all.iter().map(|j| &j.evaluation.metrics).collect();
    let (means, deviations) = (over(&own, spread::mean), over(&own, spread::deviation));
    // Seeds on the same days have met the same luck.
    let same = all.iter().all(|j| j.fingerprint == all[0].fingerprint);
    let mut others = vec![];
    let mut remarks = vec![];
    for (i, (name, _)) in all[0].evaluation.baselines.iter().enumerate() {
        let of: Vec<&Metrics> = all.iter().filter_map(|j| j.evaluation.baselines.get(i)).map(|b| &b.1).collect();
        remarks.extend(compare(&own, &of, &name.replace('_', " "), same));
        others.push((name.clone(), over(&of, spread::mean)));
    }
    let evaluations: Vec<&Evaluation> = all.iter().map(|j| &j.evaluation).collect();
    remarks.extend(T::reconsider(&evaluations, &Trials::default));
    let samples: usize = all.iter().map(|j| j.evaluation.samples).sum();
    let shown = |j: &Judged| j.path.display().to_string();
    if args.json.json {
        let each = all.iter().map(|j| {
            json!({
                "checkpoint": shown(j), "data": j.data, "samples": j.evaluation.samples,
                "metrics": j.evaluation.metrics.object(), "baselines": baselines(&j.evaluation.baselines),
                "remarks": j.evaluation.remarks,
            })
        });
        return print_json(&json!({
            "model": T::NAME, "checkpoints": each.collect::<Vec<_>>(), "split": all[0].split, "samples": samples,
            "metrics": means.object(), "deviations": deviations.object(), "baselines": baselines(&others),
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
