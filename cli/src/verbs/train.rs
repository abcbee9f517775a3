//! `train`: a model, from the first step or from a checkpoint on.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::rc::Rc;
use std::sync::atomic::Ordering;

use anyhow::Context;
use candle_core::Device;
use clap::Args;
use serde_json::json;
use zoo_training::config::{ConfigFile, ConfigOf, Overrides, resolve, to_toml};
use zoo_training::doctor::BY_HEART;
use zoo_training::{End, Error, Event, History, Observer, Outcome, Ranks, Recipe, RunFiles, Silent, Split, Trainer};

use crate::arguments::{DeviceName, Json, ModelName, Settings, Values};
use crate::curves::Curves;
use crate::device::device;
use crate::fetch;
use crate::output::{note, print, print_json, program, quoted, warn};
use crate::progress::Progress;
use crate::ranks::together;
use crate::settings::{configured, run_config};
use crate::signals::{INTERRUPTED, stop_flag};
use crate::trackers::{Ended, Log, Trackers};
use crate::weights::{BASE, weights};

#[derive(Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) model: ModelName,
    #[command(flatten)]
    pub(crate) settings: Settings,
    /// The data (data.path); without it built-in or simulated data
    #[arg(long, value_name = "PATH")]
    pub(crate) data: Option<PathBuf>,
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
    #[command(flatten)]
    pub(crate) device: DeviceName,
    /// Write the numbers for other programs, too: tensorboard, mlflow, csv, separated by commas
    #[arg(long, value_name = "WHERE", value_enum, value_delimiter = ',')]
    pub(crate) log: Vec<Log>,
    /// The same as --log tensorboard
    #[arg(long)]
    pub(crate) tensorboard: bool,
    /// The same as --log csv
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
    #[command(flatten)]
    pub(crate) json: Json,
}

pub(crate) fn run<T: Recipe>(args: &Arguments) -> anyhow::Result<ExitCode> {
    together(|ranks| train::<T>(args, ranks))
}

fn train<T: Recipe>(args: &Arguments, ranks: &Rc<Ranks>) -> anyhow::Result<ExitCode> {
    let device = device(&args.device.device)?;
    if !ranks.leads() {
        return if args.print_config { Ok(ExitCode::SUCCESS) } else { follow::<T>(ranks, &device) };
    }
    let resumed = match &args.resume {
        Some(Some(path)) => Some(path.clone()),
        Some(None) => Some(newest(T::NAME)?),
        None => None,
    };
    if let Some((path, model)) = resumed.as_ref().and_then(|path| Some((path, RunFiles::at(path).model()?)))
        && model != T::NAME
    {
        return Err(Error::Usage(format!("{} is a run of {model}, not of {}", path.display(), T::NAME)).into());
    }
    let values = values::<T>(args)?;
    let mut config = match &resumed {
        Some(path) => run_config::<T>(path, &args.settings.set, values)?,
        None => configured::<T>(&args.settings, values)?,
    };
    if args.print_config {
        print(&to_toml(&config)?);
        return Ok(ExitCode::SUCCESS);
    }
    let mut log = args.log.clone();
    log.extend(args.tensorboard.then_some(Log::Tensorboard).into_iter().chain(args.csv.then_some(Log::Csv)));
    Trackers::check(&log)?;
    T::settle(&mut config)?;
    // A run that goes on has the micro-batches that it began with.
    let whole = resumed.is_none();
    ranks.from_first(|| Ok([&[u8::from(whole)], to_toml(&config)?.as_bytes()].concat()))?;
    let task = T::open(&config.model, &config.data, config.train.seed, None, &device)?;
    if let Some(batch) = if whole { split(&mut config, &task, ranks)? } else { None } {
        let (size, count) = (config.train.batch_size, ranks.size());
        note(&format!("{count} processes: batches of {batch} are made of {count} micro-batches of {size}"));
    }
    let mut progress = Progress::new();
    let mut trainer = match &resumed {
        Some(path) => {
            // A new length is named by its flag.
            let length = ["train.steps", "train.epochs"].map(String::from);
            let named = (args.steps.is_some() || args.epochs.is_some()).then_some(length).into_iter().flatten();
            let allowed: Vec<String> = args.allow_change.iter().cloned().chain(named).collect();
            let trainer = Trainer::resume_among(&task, &config, &device, path, &allowed, &mut progress, ranks)?;
            note(&format!("resuming {} at step {} of {}", path.display(), trainer.step(), trainer.total_steps()));
            trainer
        }
        None => {
            // Before anything is written, all that can be wrong with the call is found.
            let mut trainer = Trainer::new(&task, &config, &device)?.among(ranks)?;
            if !args.fast_dev_run {
                let name = args.settings.preset.as_deref().unwrap_or("default");
                trainer.begin(&args.out.clone().unwrap_or_else(|| free(&format!("{}-{name}", T::NAME))))?;
            }
            trainer
        }
    };
    note(&task.describe_data());
    task.warnings().iter().for_each(warn);
    let run: Option<PathBuf> = trainer.run().map(|run| run.path().to_path_buf());
    let trackers = match &run {
        Some(run) => Trackers::new(run, T::NAME, resumed.is_some(), &log)?,
        None => Trackers::default(),
    };
    let curves = run.as_ref().map(|r| Curves::new(r, log.contains(&Log::Csv)));
    let first = match (&resumed, &run) {
        (Some(_), Some(run)) => History::read(run).ok().and_then(|h| h.curve("loss").first().map(|p| p.1)),
        _ => None,
    };
    let losses = Losses { first, ..Losses::default() };
    let mut listeners = Listeners { progress, curves, trackers, losses };
    let stop = stop_flag()?;
    let outcome = trainer.train(&mut listeners, &|| stop.load(Ordering::Relaxed));
    listeners.progress.finish();
    listeners.trackers.end(match &outcome {
        Ok(Outcome { end: End::Interrupted, .. }) => Ended::Interrupted,
        Ok(_) => Ended::Finished,
        Err(_) => Ended::Failed,
    });
    let outcome = match (outcome, &run) {
        // What the system refused may be mended; the others say themselves what to do.
        (Err(e @ (Error::Io { .. } | Error::Checkpoint(_))), Some(run)) if RunFiles::at(run).has_checkpoint() => {
            return Err(e).context(format!("{} can be resumed from its last checkpoint", run.display()));
        }
        (outcome, _) => outcome?,
    };
    if let Some(curves) = &mut listeners.curves {
        curves.draw_or_warn();
    }
    let one_batch = config.train.overfit_batch;
    let evaluated = match one_batch {
        true => "loss of the batch",
        false if task.samples(Split::Valid) == 0 => "loss of the training part",
        false => "validation loss",
    };
    let (run, processes, losses) = (run.as_deref(), ranks.size(), &listeners.losses);
    report::<T>(args, &outcome, &Ending { run, processes, losses, evaluated, one_batch });
    Ok(code(&outcome))
}

/// A process that trains with the one that leads, which writes and speaks.
fn follow<T: Recipe>(ranks: &Rc<Ranks>, device: &Device) -> anyhow::Result<ExitCode> {
    let sent = ranks.from_first(|| Ok(vec![]))?;
    let (whole, text) = sent.split_first().context("the first process sent nothing")?;
    let text = std::str::from_utf8(text)?;
    let file = ConfigFile::parse(text, "the configuration of the first process")?;
    let mut config = resolve::<T>(&Overrides { file: Some(&file), ..Overrides::default() })?;
    let task = T::open(&config.model, &config.data, config.train.seed, None, device)?;
    if *whole == 1 {
        split(&mut config, &task, ranks)?;
    }
    let mut trainer = Trainer::following(&task, &config, device, ranks)?;
    let stop = stop_flag()?;
    let outcome = trainer.train(&mut Silent, &|| stop.load(Ordering::Relaxed))?;
    Ok(code(&outcome))
}

/// Splits the batches of a step over the processes, if the configuration does not: the size that they had.
fn split<T: Recipe>(config: &mut ConfigOf<T>, task: &T, ranks: &Ranks) -> anyhow::Result<Option<usize>> {
    let (count, batch) = (ranks.size(), config.train.batch_size);
    if ranks.is_alone() || config.train.accumulate != 1 || task.experience(config)?.is_some() {
        return Ok(None);
    }
    if !batch.is_multiple_of(count) {
        return Err(Error::Usage(format!(
            "{count} processes cannot share a batch of {batch} evenly: set train.batch_size to a multiple of {count}, or \
             train.accumulate to the micro-batches of a step and train.batch_size to their size"
        ))
        .into());
    }
    (config.train.batch_size, config.train.accumulate) = (batch / count, count as u64);
    Ok(Some(batch))
}

/// The exit code of a run that came to an end.
fn code(outcome: &Outcome) -> ExitCode {
    if outcome.end == End::Interrupted { ExitCode::from(INTERRUPTED) } else { ExitCode::SUCCESS }
}

/// What the flags set.
fn values<T: Recipe>(args: &Arguments) -> anyhow::Result<Values> {
    let mut values = args.model.flags.clone();
    if let Some(data) = fetch::found::<T>(args.data.as_deref())? {
        values.set_whole_path("data.path", &data)?;
    }
    // As those of --data and --init-from: a run is resumed and judged from anywhere.
    for key in ["data.base", "data.general", "data.tokenizer"] {
        if let Some(file) = values.text(key).filter(|file| !file.is_empty()) {
            values.set_whole_path(key, &if key == BASE { weights(Path::new(&file))? } else { file.into() })?;
        }
    }
    if let Some(file) = &args.init_from {
        values.set_whole_path("train.init_from", &weights(file)?)?;
    }
    for (key, text) in [
        ("train.freeze", &args.freeze),
        ("train.on_critical", &args.on_critical),
        ("train.on_nonfinite", &args.on_nonfinite),
    ] {
        if let Some(text) = text {
            values.set(key, text.as_str());
        }
    }
    if args.steps == Some(0) || args.epochs == Some(0) {
        let flag = if args.epochs == Some(0) { "epochs" } else { "steps" };
        return Err(
            Error::Usage(format!("--{flag} 0: a run has at least one: leave --{flag} out for the preset's")).into()
        );
    }
    values.set_count("train.epochs", args.epochs)?;
    // Steps of 0 let the epochs decide.
    let steps = if args.fast_dev_run { Some(3) } else { args.steps.or(args.epochs.map(|_| 0)) };
    values.set_count("train.steps", steps)?;
    values.set_count("train.seed", args.seed)?;
    if args.overfit_batch {
        values.set("train.overfit_batch", true);
    }
    Ok(values)
}

/// runs/NAME, or runs/NAME-2 and so on where that is taken.
fn free(name: &str) -> PathBuf {
    let path = |n: usize| Path::new("runs").join(if n == 1 { name.to_string() } else { format!("{name}-{n}") });
    // Directories are finite: some number is free.
    let mut n = 1;
    while path(n).exists() {
        n += 1;
    }
    path(n)
}

/// The model's run directory that was written to last.
fn newest(model: &str) -> anyhow::Result<PathBuf> {
    let mut found = vec![];
    for entry in std::fs::read_dir("runs").into_iter().flatten().flatten() {
        let path = entry.path();
        let files = RunFiles::at(&path);
        let ours = files.model().as_deref() == Some(model) && files.has_checkpoint();
        if let (true, Ok(written)) = (ours, std::fs::metadata(files.checkpoints()).and_then(|m| m.modified())) {
            found.push((written, path));
        }
    }
    match found.into_iter().max() {
        Some((_, path)) => Ok(path),
        None => {
            Err(Error::Run(format!("there is no run of {model} under runs/ to resume; name one with --resume DIR"))
                .into())
        }
    }
}

/// The training losses of a run: the first, and the last ones.
#[derive(Default)]
struct Losses {
    first: Option<f64>,
    last: VecDeque<f64>,
}

impl Losses {
    /// A mean says more than one batch.
    const MEAN: usize = 50;

    fn add(&mut self, loss: f64) {
        // A step that was left out.
        if !loss.is_finite() {
            return;
        }
        self.first.get_or_insert(loss);
        if self.last.len() == Self::MEAN {
            self.last.pop_front();
        }
        self.last.push_back(loss);
    }

    /// The mean of the last ones, in words.
    fn mean(&self) -> String {
        let n = self.last.len();
        let mean = self.last.iter().sum::<f64>() / n.max(1) as f64;
        if n > 1 { format!("{mean:.6} (mean of the last {n} steps)") } else { format!("{mean:.6}") }
    }
}

/// What is to be said of a run at its end, beside its outcome.
struct Ending<'a> {
    run: Option<&'a Path>,
    processes: usize,
    losses: &'a Losses,
    /// What is evaluated while it trains.
    evaluated: &'a str,
    one_batch: bool,
}

struct Listeners {
    progress: Progress,
    curves: Option<Curves>,
    trackers: Trackers,
    losses: Losses,
}

impl Observer for Listeners {
    fn observe(&mut self, event: &Event) {
        self.progress.observe(event);
        if let Event::Step { loss, .. } = event {
            self.losses.add(*loss);
        }
        if let Some(curves) = &mut self.curves {
            curves.observe(event);
        }
        self.trackers.observe(event);
    }
}

fn report<T: Recipe>(args: &Arguments, outcome: &Outcome, ending: &Ending) {
    let &Ending { run, processes, losses, evaluated, one_batch } = ending;
    let run = run.map(RunFiles::at);
    let Outcome { end, steps, seconds, loss, metrics, best, gradients, refused, least_loss } = outcome;
    let shown = |path: PathBuf| path.display().to_string();
    if args.json.json {
        print_json(&json!({
            "model": T::NAME, "out": run.as_ref().map(|r| shown(r.path().into())), "steps": steps, "seconds": seconds,
            "end": end.name(),
            "loss": loss, "metrics": metrics.object(),
            "best": best.map(|(loss, step)| json!({ "loss": loss, "step": step })),
            "checkpoint": run.as_ref().map(|r| shown(r.last())), "gradients": gradients,
            "refused_steps": refused, "least_loss": least_loss,
        }));
    }
    let how = match end {
        End::Finished => "done",
        End::Early => "stopped early, as the evaluated loss no longer improves,",
        End::Interrupted => "interrupted",
    };
    if loss.is_nan() {
        note(&format!("the run was finished before, at step {steps}: --epochs or --steps makes it longer"));
    } else {
        note(&format!("{how} after {steps} steps in {seconds:.1} s, training loss {}", losses.mean()));
    }
    if let (true, Some(first)) = (one_batch, losses.first) {
        let least = least_loss.unwrap_or(0.);
        let possible = least_loss.map_or(String::new(), |least| format!(", the least possible is {least:.6}"));
        let course = format!("its loss went from {first:.6} to {loss:.6}{possible}");
        note(&match loss - least < (1. - BY_HEART) * (first - least) {
            true => format!("the batch is learnt by heart: {course}"),
            false => format!(
                "the batch is not learnt by heart: {course}; if more steps do not change that, a part of the model gets no gradient or \
                 the learning rate is wrong (zoo doctor)"
            ),
        });
    }
    if *refused > 0 {
        note(&format!("{refused} steps were refused (not finite, or spikes); metrics.jsonl marks those left out"));
    }
    if let Some((loss, step)) = best {
        note(&format!("best {evaluated} {loss:.6} at step {step}"));
    }
    let Some(run) = run else { return };
    let path = quoted(&run.path().display().to_string());
    if *end == End::Interrupted {
        let device =
            if args.device.device == "cpu" { String::new() } else { format!(" --device {}", args.device.device) };
        let launcher = if processes > 1 { "mpirun -n N " } else { "" };
        let any = if processes > 1 { ", with any number N of processes" } else { "" };
        note(&format!("continue with: {launcher}{} train {} --resume {path}{device}{any}", program(), T::NAME));
    } else {
        let (best, program) = (quoted(&shown(run.best())), program());
        note(&format!("weights: {best}; judge them with: {program} eval {} --checkpoint {path}", T::NAME));
    }
}
