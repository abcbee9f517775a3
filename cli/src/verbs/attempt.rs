//! `doctor RUN --try`: trains with each remedy for a while, from before the trouble began, beside the run as it was.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use plotters::coord::Shift;
use plotters::prelude::*;
use serde_json::{Value, json};
use zoo_training::config::ConfigOf;
use zoo_training::doctor::Verdict;
use zoo_training::health::Level;
use zoo_training::{Error, Event, History, Recipe, RunFiles, Trainer, spread};

use crate::arguments::{Force, Values};
use crate::device::device;
use crate::health::{Judged, name};
use crate::output::{first_line, note, print, print_json, program, quoted, table};
use crate::plot::{COLORS, Line, Paint, draw, failed, panel};
use crate::settings::run_config;
use crate::signals::{INTERRUPTED, stop_flag};
use crate::verbs::doctor::Arguments;

/// Steps of each try past the beginning of the trouble, if the time allows.
const STEPS: u64 = 300;
/// Fewest that say anything.
const FEWEST: u64 = 20;
/// Most remedies that are tried.
const MOST: usize = 5;
/// What the run does without a remedy.
const CONTROL: &str = "as it was";
/// Keys that say how long a run is, which some hundred steps cannot try.
const LENGTH: [&str; 4] = ["train.steps", "train.epochs", "train.early_stopping", "train.eval_every"];

/// A remedy that was tried.
struct Tried {
    what: String,
    /// Training losses by their steps.
    losses: Vec<(u64, f64)>,
    valid: f64,
    run: PathBuf,
    /// Why it ended before its last step, such as a loss that is not finite.
    failed: Option<String>,
}

impl Tried {
    /// The mean training loss of the second half of the steps.
    fn loss(&self) -> f64 {
        spread::mean(&self.second_half().iter().map(|p| p.1).collect::<Vec<_>>())
    }

    fn second_half(&self) -> &[(u64, f64)] {
        &self.losses[self.losses.len() / 2..]
    }

    /// By how much its training loss is above the control's on the same batches, and the standard error of that.
    fn beside(&self, control: &Self) -> Option<(f64, f64)> {
        const BLOCKS: usize = 8;
        // A step that was left out has no loss.
        let others: BTreeMap<u64, f64> = control.second_half().iter().copied().collect();
        let differences: Vec<f64> =
            self.second_half().iter().filter_map(|(step, loss)| Some(loss - others.get(step)?)).collect();
        // What one step does to the loss, the next ones still show: means of blocks depend less on each other.
        let blocks: Vec<f64> =
            differences.chunks(differences.len().div_ceil(BLOCKS).max(1)).map(spread::mean).collect();
        (blocks.len() > 2).then(|| (spread::mean(&blocks), spread::deviation(&blocks) / (blocks.len() as f64).sqrt()))
    }
}

/// A time such as 90s, 10m or 1h.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let unit = |unit: char| match unit {
        's' => Some(1),
        'm' => Some(60),
        'h' => Some(3600),
        _ => None,
    };
    let parsed = text.chars().last().and_then(unit).and_then(|seconds| {
        let number: u64 = text[..text.len() - 1].parse().ok()?;
        number.checked_mul(seconds).filter(|s| *s > 0)
    });
    parsed.map(Duration::from_secs).ok_or_else(|| "expected a time such as 90s, 10m or 1h".into())
}

/// The settings to try, by key and value, in the order of the advice.
fn remedies(judged: &Judged) -> Vec<(String, String)> {
    let Judged { report, diagnosis, config, .. } = judged;
    let findings = report.findings.iter().filter(|f| f.level >= Level::Alert).flat_map(|f| &f.remedies);
    // How far to go with a learning rate is an estimate: others beside it are tried, too.
    let beside: &[f64] = match diagnosis.verdict {
        Verdict::RateTooHigh => &[1. / 3., 0.1],
        Verdict::RateTooLow => &[3., 1. / 3.],
        _ => &[],
    };
    let mut found: Vec<(String, String)> = vec![];
    for (key, value) in diagnosis.advice.iter().chain(findings).filter_map(|a| a.set.clone()) {
        let rate = value.parse::<f64>().ok().filter(|_| key == "train.lr");
        let others = rate.into_iter().flat_map(|lr| beside.iter().map(move |by| format!("{:.1e}", lr * by)));
        for value in std::iter::once(value.clone()).chain(others) {
            let is = |v: &str| v == value || v.parse::<f64>().is_ok_and(|v| Ok(v) == value.parse());
            let now = config.pointer(&format!("/{}", key.replace('.', "/"))).map(Value::to_string).unwrap_or_default();
            let known = is(now.trim_matches('"')) || found.iter().any(|(k, v)| *k == key && is(v));
            if !known && !LENGTH.contains(&key.as_str()) && !key.starts_with("data.") {
                found.push((key.clone(), value));
            }
        }
    }
    found.truncate(MOST);
    found
}

/// The last step before the trouble, as far as the run tells.
fn before_trouble(judged: &Judged) -> u64 {
    let numbers = &judged.diagnosis.numbers;
    match judged.diagnosis.verdict {
        Verdict::Overfitting | Verdict::NothingLearned => numbers.valid_best_step,
        Verdict::RateTooHigh | Verdict::Gradients => {
            let alerts = judged.report.findings.iter().filter(|f| f.level >= Level::Alert);
            alerts.map(|f| f.since).min().unwrap_or(0).saturating_sub(1)
        }
        Verdict::SlowConvergence => judged.history.curve("loss").last().map_or(0, |p| p.0) * 3 / 4,
        _ => 0,
    }
}

pub(crate) fn run<T: Recipe>(args: &Arguments, run: &Path, judged: &Judged) -> anyhow::Result<ExitCode> {
    let remedies = remedies(judged);
    let verdict = name(judged.diagnosis.verdict);
    if remedies.is_empty() {
        let reason = match judged.diagnosis.verdict {
            Verdict::Healthy => format!("{}: healthy, there is nothing to try", run.display()),
            _ => format!("{}: {verdict}; no remedy is a setting that some hundred steps can try", run.display()),
        };
        return Err(Error::Usage(reason).into());
    }
    let device = device("cpu")?;
    let configured = |set: &[String]| -> anyhow::Result<_> {
        // Every loss is written, and none ends early: they are compared step by step.
        let set = [set, &["train.log_every=1".into(), "train.early_stopping=0".into()]].concat();
        let mut config = run_config::<T>(run, &set, Values::default())?;
        T::settle(&mut config)?;
        Ok(config)
    };
    let opened = |config: &ConfigOf<T>| serde_json::to_value((&config.model, &config.data, config.train.seed));
    let control = configured(&[])?;
    let same = opened(&control)?;
    let task = T::open(&control.model, &control.data, control.train.seed, None, &device)?;
    if RunFiles::at(run).data().is_some_and(|data| data != task.fingerprint()) {
        let reason = format!("{}: the data are not those that the run was trained on: bring them back", run.display());
        return Err(Error::Data(reason).into());
    }
    let trouble = before_trouble(judged);
    let from = Trainer::fork(&task, &control, &device, run, trouble)?;
    let (first, total) = (from.step(), from.total_steps());
    drop(from);
    let arms = remedies.len() as u64 + 1;
    let affordable = match judged.history.seconds_a_step() {
        Some(seconds) => (args.budget.as_secs_f64() / seconds / arms as f64) as u64,
        None => STEPS,
    };
    let left = total.saturating_sub(first);
    // Where no checkpoint from just before the trouble is left, the way there is trained, too.
    let wanted = trouble.saturating_sub(first) + STEPS;
    let steps = args.steps.unwrap_or(affordable.min(wanted)).min(left);
    if steps < FEWEST {
        let why = match () {
            () if left < FEWEST => format!("from step {first} on the run has {left} more: there is nothing to try"),
            () if args.steps.is_some() => format!("--steps {steps} are too few"),
            () => format!("--budget {} s is enough for {affordable} each: make it longer", args.budget.as_secs()),
        };
        return Err(Error::Usage(format!("{arms} tries take {FEWEST} steps each or more: {why}")).into());
    }
    let folder = match &args.out {
        Some(out) => out.clone(),
        None => {
            let whole = std::path::absolute(run)?;
            let mut name = whole.file_name().context("the root of a file system is no run")?.to_os_string();
            name.push("-try");
            whole.with_file_name(name)
        }
    };
    note(&format!("{verdict}: {arms} tries of {steps} steps from step {first}, in {}", folder.display()));
    let (stop, started) = (stop_flag()?, Instant::now());
    let ended = || stop.load(Ordering::Relaxed) || started.elapsed() > args.budget;
    let (mut tried, mut refused, mut taken) = (vec![], vec![], 0);
    // Others have another folder: losses of as many steps are compared.
    let folder = folder.join(format!("from-{first}-{steps}-steps"));
    let last = first + steps;
    let all = std::iter::once(None).chain(remedies.iter().map(Some));
    for remedy in all {
        let what = remedy.map_or(CONTROL.into(), |(key, value)| format!("{key}={value}"));
        if ended() {
            refused.push((what, "not tried: the time was over".to_string()));
            continue;
        }
        let set: Vec<String> = remedy.iter().map(|(key, value)| format!("{key}={value}")).collect();
        let place = folder.join(what.replace(|c: char| !(c.is_ascii_alphanumeric() || "=._-".contains(c)), "-"));
        let attempt = || -> anyhow::Result<Option<(Tried, u64)>> {
            let config = configured(&set)?;
            // Most remedies leave model and data as they are, which take a while to open.
            let other = (opened(&config)? != same)
                .then(|| T::open(&config.model, &config.data, config.train.seed, None, &device))
                .transpose()?;
            let task = other.as_ref().unwrap_or(&task);
            let mut quiet = |_: &Event| {};
            let mut trainer = match RunFiles::at(&place).has_checkpoint() {
                true => Trainer::resume(task, &config, &device, &place, &[], &mut quiet)?,
                false => {
                    let mut trainer = Trainer::fork(task, &config, &device, run, first)?;
                    trainer.begin(&place)?;
                    trainer
                }
            };
            let before = trainer.step();
            if before > last {
                bail!("{} has gone on to step {before} since: name another --out", place.display())
            }
            if trainer.total_steps() < last {
                bail!("with it the run is over at step {}, before step {last}", trainer.total_steps())
            }
            let failed = match trainer.train_to(last, &mut quiet, &ended) {
                Ok(_) if trainer.step() < last => return Ok(None),
                Ok(_) => None,
                // That is what it leads to.
                Err(e @ (Error::NonFinite { .. } | Error::Critical { .. })) => Some(first_line(&e)),
                Err(e) => return Err(e.into()),
            };
            let valid = if failed.is_some() { f64::NAN } else { trainer.validate()?.1.value("loss") };
            let losses: Vec<_> = History::read(&place)?.curve("loss").iter().copied().filter(|p| p.0 <= last).collect();
            let done = trainer.step() - before;
            Ok(Some((Tried { what: what.clone(), losses, valid, run: place.clone(), failed }, done)))
        };
        match attempt() {
            Ok(Some((arm, done))) => {
                note(&match &arm.failed {
                    Some(why) => format!("{}: {why}", arm.what),
                    None => format!("{}: training loss {:.4}, validation loss {:.4}", arm.what, arm.loss(), arm.valid),
                });
                taken += done;
                tried.push(arm);
            }
            Ok(None) if stop.load(Ordering::Relaxed) => {
                note(&format!("interrupted: the same command goes on from there ({})", folder.display()));
                return Ok(ExitCode::from(INTERRUPTED));
            }
            Ok(None) => refused.push((what, "not finished: the time was over".to_string())),
            Err(e) if remedy.is_some() => refused.push((what, format!("not tried: {}", first_line(&e)))),
            Err(e) => return Err(e),
        }
    }
    let Some(control) = tried.first().filter(|t| t.what == CONTROL) else {
        bail!("the time was over before the run as it was had trained {steps} steps: make --budget longer")
    };
    let mut ranked: Vec<&Tried> = tried.iter().collect();
    let order = |t: &&Tried| (t.valid.is_nan(), t.valid, t.loss());
    ranked.sort_by(|a, b| {
        let (a, b) = (order(a), order(b));
        a.0.cmp(&b.0).then(a.1.total_cmp(&b.1)).then(a.2.total_cmp(&b.2))
    });
    let picture = folder.join("losses.svg");
    draw(&picture, (900, 500), &Losses(&tried), Force { force: true })?;
    let best = ranked[0];
    let place = quoted(&best.run.display().to_string());
    let go_on = match last == total {
        true => format!("{} eval {} --checkpoint {place}", program(), T::NAME),
        false => format!("{} train {} --resume {place}", program(), T::NAME),
    };
    if args.json.json {
        let row = |t: &&Tried| {
            let beside = t.beside(control).filter(|_| t.what != CONTROL);
            json!({
                "remedy": t.what, "run": t.run, "loss": t.loss(), "difference": beside.map(|b| b.0), "standard_error": beside.map(|b| b.1),
                "valid_loss": t.valid, "failed": t.failed,
            })
        };
        let refused: Vec<Value> = refused.iter().map(|(what, why)| json!({ "remedy": what, "because": why })).collect();
        print_json(&json!({
            "run": run, "verdict": judged.diagnosis.verdict, "from": first, "steps": steps, "steps_trained": taken,
            "seconds": started.elapsed().as_secs_f64(), "tried": ranked.iter().map(row).collect::<Vec<_>>(), "not_tried": refused,
            "best": best.what, "picture": picture, "continue": go_on,
        }));
        return Ok(ExitCode::SUCCESS);
    }
    let header = ["remedy", "training loss", "against as it was", "validation loss"].map(String::from).to_vec();
    let mut rows = vec![header];
    for t in &ranked {
        let beside = match t.beside(control).filter(|_| t.what != CONTROL) {
            Some((difference, error)) => format!("{difference:+.4} ± {error:.4}"),
            None => String::new(),
        };
        let valid = if t.failed.is_some() { "failed".into() } else { format!("{:.4}", t.valid) };
        rows.push(vec![t.what.clone(), format!("{:.4}", t.loss()), beside, valid]);
    }
    print(&format!(
        "{verdict}: {}\n\nsteps {} to {}, on the same samples where the batch size is the same; training losses are means of the second half\n{}",
        judged.diagnosis.because,
        first + 1,
        last,
        table(&rows)
    ));
    tried
        .iter()
        .filter_map(|t| Some((&t.what, t.failed.as_ref()?)))
        .for_each(|(what, why)| print(&format!("{what}: {why}\n")));
    refused.iter().for_each(|(what, why)| print(&format!("{what}: {why}\n")));
    print(&format!("\n{taken} steps in {:.0} s; the losses: {}\n", started.elapsed().as_secs_f64(), picture.display()));
    print(&match best.what.as_str() {
        _ if best.failed.is_some() => "nothing that was tried trains to the last of these steps\n".to_string(),
        CONTROL => "nothing that was tried is better than the run as it was\n".to_string(),
        what if last == total => {
            format!("{what} has the lowest validation loss, and is trained to its end; judge it:\n  {go_on}\n")
        }
        what => format!("{what} has the lowest validation loss; go on with it:\n  {go_on}\n"),
    });
    Ok(ExitCode::SUCCESS)
}

/// Training losses over the steps.
struct Losses<'a>(&'a [Tried]);

impl Paint for Losses<'_> {
    fn paint<B: DrawingBackend>(&self, area: &DrawingArea<B, Shift>) -> anyhow::Result<()>
    where
        B::ErrorType: 'static,
    {
        area.fill(&WHITE).map_err(failed)?;
        let lines = self.0.iter().zip(COLORS.iter().cycle());
        let lines = lines.map(|(tried, color)| Line::new(&tried.what, &tried.losses, color.mix(1.))).collect();
        panel(area, "training loss", lines)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_a_unit_and_words_are_quoted_for_a_shell() {
        assert_eq!(duration("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("10m"), Ok(Duration::from_secs(600)));
        assert!(["", "10", "m", "0s", "-1m", "99999999999999999999h", "1é"].iter().all(|text| duration(text).is_err()));
        assert_eq!([quoted("runs/a-1"), quoted("my runs"), quoted("it's")], ["runs/a-1", "'my runs'", r"'it'\''s'"]);
    }
}
