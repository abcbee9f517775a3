//! `zoo train`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context;
use serde_json::json;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;
use zoo_training::config::to_toml;
use zoo_training::{End, Error, Event, Observer, Outcome, RunDirectory, Task, Trainer, model_of};

use crate::args::TrainArgs;
use crate::curves::Curves;
use crate::eval::object;
use crate::fetch;
use crate::output::{note, print, print_json};
use crate::progress::Progress;
use crate::registry::{configured, device, quoted, run_config, weights};
use crate::tensorboard::TensorBoard;

/// Exit code of a run that a signal stopped and --resume continues.
pub(crate) const INTERRUPTED: u8 = 3;

pub(crate) fn run<T: Task>(args: &TrainArgs) -> anyhow::Result<ExitCode> {
    let device = device(&args.device)?;
    let resumed = match &args.resume {
        Some(Some(path)) => Some(path.clone()),
        Some(None) => Some(newest(T::NAME)?),
        None => None,
    };
    if let Some((path, model)) = resumed.as_ref().and_then(|path| Some((path, model_of(path)?)))
        && model != T::NAME
    {
        return Err(Error::Usage(format!("{} is a run of {model}, not of {}", path.display(), T::NAME)).into());
    }
    let data = fetch::found::<T>(args.data.as_deref())?;
    let settings = settings(args, data.as_deref());
    let mut config = match &resumed {
        Some(path) => run_config::<T>(path, &settings)?,
        None => configured::<T>(&args.common, &settings)?,
    };
    if args.print_config {
        print(&to_toml(&config)?);
        return Ok(ExitCode::SUCCESS);
    }
    T::settle(&mut config)?;
    let task = T::open(&config.model, &config.data, config.train.seed, None, &device)?;
    let mut progress = Progress::new();
    let run;
    let mut trainer = match &resumed {
        Some(path) => {
            run = Some(RunDirectory::open(path)?);
            // A new length is named by its flag.
            let length = ["train.steps", "train.epochs"].map(String::from);
            let named = (args.steps.is_some() || args.epochs.is_some()).then_some(length).into_iter().flatten();
            let allowed: Vec<String> = args.allow_change.iter().cloned().chain(named).collect();
            match &run {
                Some(run) => Trainer::resume(&task, &config, &device, run, &allowed, &mut progress)?,
                None => Trainer::new(&task, &config, &device)?,
            }
        }
        None => {
            // Before anything is written, all that can be wrong with the call is found.
            let mut trainer = Trainer::new(&task, &config, &device)?;
            run = if args.fast_dev_run { None } else { Some(create::<T>(args, &to_toml(&config)?)?) };
            if let Some(run) = &run {
                trainer.keep_in(run);
            }
            trainer
        }
    };
    note(&task.describe_data());
    task.warnings().iter().for_each(|w| note(&format!("zoo: warning: {w}")));
    let mut listeners = Listeners {
        progress,
        curves: run.as_ref().map(|r| Curves::new(r.path(), args.csv)),
        board: run.as_ref().filter(|_| args.tensorboard).map(|r| TensorBoard::new(r.path())).transpose()?,
    };
    if let (Some(_), Some(run)) = (&resumed, &run) {
        if let Some(curves) = &mut listeners.curves {
            curves.replay()?;
        }
        // What was changed stays with the run.
        run.set_config(&to_toml(&config)?)?;
    }
    let stop = stop_flag()?;
    let outcome = trainer.train(&mut listeners, &|| stop.load(Ordering::Relaxed));
    listeners.progress.finish();
    let outcome = match (outcome, &run) {
        // What the system refused may be mended; the others say themselves what to do.
        (Err(e @ (Error::Io { .. } | Error::Checkpoint(_))), Some(run)) if begun(run.path()) => {
            return Err(e).context(format!("{} can be resumed from its last checkpoint", run.path().display()));
        }
        (outcome, _) => outcome?,
    };
    if let Some(curves) = &mut listeners.curves {
        curves.draw_or_warn();
    }
    report::<T>(args, &outcome, run.as_ref());
    Ok(if outcome.end == End::Interrupted { ExitCode::from(INTERRUPTED) } else { ExitCode::SUCCESS })
}

fn create<T: Task>(args: &TrainArgs, config: &str) -> anyhow::Result<RunDirectory> {
    let name = args.common.preset.as_deref().unwrap_or("default");
    let path = args.out.clone().unwrap_or_else(|| free(&format!("{}-{name}", T::NAME)));
    Ok(RunDirectory::create(&path, config)?)
}

/// A whole path as a setting: a run is resumed from anywhere.
pub(crate) fn whole(path: &Path) -> String {
    quoted(&std::path::absolute(path).unwrap_or(path.to_path_buf()))
}

/// What the flags set.
fn settings(args: &TrainArgs, data: Option<&Path>) -> Vec<String> {
    let mut set = vec![];
    set.extend(args.common.set.iter().filter(|_| args.resume.is_some()).cloned());
    set.extend(data.map(|d| format!("data.path={}", whole(d))));
    set.extend(args.how.settings());
    set.extend(args.init_from.as_ref().map(|f| format!("train.init_from={}", whole(&weights(f)))));
    set.extend(args.freeze.as_ref().map(|f| format!("train.freeze={}", serde_json::Value::from(f.as_str()))));
    set.extend(args.on_critical.as_ref().map(|w| format!("train.on_critical={w}")));
    set.extend(args.on_nonfinite.as_ref().map(|w| format!("train.on_nonfinite={w}")));
    set.extend(args.steps.map(|n| format!("train.steps={n}")));
    set.extend(args.epochs.iter().flat_map(|n| [format!("train.epochs={n}"), "train.steps=0".into()]));
    set.extend(args.seed.map(|s| format!("train.seed={s}")));
    if args.overfit_batch {
        set.push("train.overfit_batch=true".into());
    }
    if args.fast_dev_run {
        set.push("train.steps=3".into());
    }
    set
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

/// Whether a run has a checkpoint to go on from.
fn begun(run: &Path) -> bool {
    let whole = |e: std::io::Result<std::fs::DirEntry>| e.is_ok_and(|e| e.path().extension().is_none());
    std::fs::read_dir(run.join("checkpoints")).is_ok_and(|mut all| all.any(whole))
}

/// The model's run directory that was written to last.
fn newest(model: &str) -> anyhow::Result<PathBuf> {
    let mut found = vec![];
    for entry in std::fs::read_dir("runs").into_iter().flatten().flatten() {
        let path = entry.path();
        let named = entry.file_name().to_string_lossy().starts_with(&format!("{model}-"));
        if let (true, Ok(written)) =
            (named && begun(&path), std::fs::metadata(path.join("checkpoints")).and_then(|m| m.modified()))
        {
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

/// A flag that the first SIGINT or SIGTERM sets; the second ends the process.
pub(crate) fn stop_flag() -> anyhow::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        // In this order: the second signal finds the flag set.
        flag::register_conditional_shutdown(signal, 128 + signal, stop.clone())?;
        flag::register(signal, stop.clone())?;
    }
    Ok(stop)
}

struct Listeners {
    progress: Progress,
    curves: Option<Curves>,
    board: Option<TensorBoard>,
}

impl Observer for Listeners {
    fn observe(&mut self, event: &Event) {
        self.progress.observe(event);
        if let Some(curves) = &mut self.curves {
            curves.observe(event);
        }
        if let Some(board) = &mut self.board {
            board.observe(event);
        }
    }
}

fn report<T: Task>(args: &TrainArgs, outcome: &Outcome, run: Option<&RunDirectory>) {
    let Outcome { end, steps, seconds, loss, metrics, best, gradients, refused, least_loss } = outcome;
    let shown = |path: PathBuf| path.display().to_string();
    if args.json {
        print_json(&json!({
            "model": T::NAME, "out": run.map(|r| shown(r.path().into())), "steps": steps, "seconds": seconds,
            "end": match end { End::Finished => "finished", End::Early => "early", End::Interrupted => "interrupted" },
            "loss": loss, "metrics": object(metrics),
            "best": best.map(|(loss, step)| json!({ "loss": loss, "step": step })),
            "checkpoint": run.map(|r| shown(r.last())), "gradients": gradients,
            "refused_steps": refused, "least_loss": least_loss,
        }));
    }
    let how = match end {
        End::Finished => "done",
        End::Early => "stopped early, as the validation loss no longer improves,",
        End::Interrupted => "interrupted",
    };
    if loss.is_nan() {
        note(&format!("the run was finished before, at step {steps}: --epochs or --steps makes it longer"));
    } else {
        note(&format!("{how} after {steps} steps in {seconds:.1} s, training loss {loss:.6}"));
    }
    if let Some(least) = least_loss {
        note(&format!("the least loss that a model could have on this batch is {least:.6}"));
    }
    if *refused > 0 {
        note(&format!("{refused} steps were refused (not finite, or spikes); metrics.jsonl marks those left out"));
    }
    if let Some((loss, step)) = best {
        note(&format!("best validation loss {loss:.6} at step {step}"));
    }
    let Some(run) = run else { return };
    let path = run.path().display();
    if *end == End::Interrupted {
        let device = if args.device == "cpu" { String::new() } else { format!(" --device {}", args.device) };
        note(&format!("continue with: zoo train {} --resume {path}{device}", T::NAME));
    } else {
        note(&format!("weights: {}; judge them with: zoo eval {} --checkpoint {path}", shown(run.best()), T::NAME));
    }
}
