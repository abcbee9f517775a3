//! `zoo tune`.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context;
use candle_core::Device;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use zoo_layers::random::{Purpose, Stream};
use zoo_training::config::{ConfigOf, to_toml};
use zoo_training::{End, Error, Event, Observer, Picture, RateTest, RunDirectory, Task, Trainer};

use crate::args::{Search, TuneArgs};
use crate::eval::object;
use crate::fetch;
use crate::output::{first_line, note, print, print_json, table};
use crate::plot::{check_name, draw_picture, number};
use crate::registry::{device, layered};
use crate::train::{INTERRUPTED, stop_flag, whole};

/// Values to try of one key.
struct Axis {
    key: String,
    values: Vec<String>,
}

/// One run of a search, as `results.jsonl` has it.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Trial {
    run: String,
    settings: Vec<String>,
    /// `finished`, `early`, `behind` (the median of those before), or what went wrong.
    end: String,
    loss: Option<f64>,
    step: u64,
    steps: u64,
    seconds: f64,
    metrics: Map<String, Value>,
    /// Share of the run done and best validation loss until then, for every evaluation.
    progress: Vec<(f64, f64)>,
}

pub(crate) fn run<T: Task>(args: &TuneArgs) -> anyhow::Result<ExitCode> {
    let device = device(&args.device)?;
    let (mut axes, mut fixed) = (vec![], args.how.settings());
    let data = fetch::found::<T>(args.data.as_deref())?;
    fixed.extend(data.as_ref().map(|d| format!("data.path={}", whole(d))));
    fixed.extend(args.steps.map(|n| format!("train.steps={n}")));
    fixed.extend(args.epochs.iter().flat_map(|n| [format!("train.epochs={n}"), "train.steps=0".into()]));
    for setting in &args.set {
        match axis(setting, args)? {
            Some(axis) => axes.push(axis),
            None => fixed.push(setting.clone()),
        }
    }
    let resolve = |set: &[String]| -> anyhow::Result<ConfigOf<T>> {
        let set: Vec<String> = fixed.iter().chain(set).cloned().collect();
        let mut config = layered::<T>(args.preset.as_deref(), args.config.as_deref(), &set)?;
        T::settle(&mut config)?;
        Ok(config)
    };
    if args.lr_find {
        return find_rate::<T>(args, &resolve(&[])?, &device);
    }
    if axes.is_empty() {
        return Err(Error::Usage("nothing to tune: give values, as in --set train.lr=0.01,0.001".into()).into());
    }
    // Before the first run, every value is known to be one.
    for axis in &axes {
        for value in &axis.values {
            resolve(&[format!("{}={value}", axis.key)])?;
        }
    }
    let out = args.out.clone().unwrap_or_else(|| Path::new("runs").join(format!("{}-tune", T::NAME)));
    let config = resolve(&[])?;
    let base = to_toml(&config)?;
    let data = T::open(&config.model, &config.data, config.train.seed, None, &device)?.describe_data();
    note(&data);
    let mut study = Study {
        device,
        stop: stop_flag()?,
        out: Results::open(&out, args, &axes, &base)?,
        to_the_end: args.to_the_end,
    };
    let done = match args.search {
        Search::Grid => grid(&axes)
            .iter()
            .try_fold(true, |on, set| Ok::<_, anyhow::Error>(on && study.trial::<T>(set, &resolve)?))?,
        Search::Random => random(&axes, args)
            .iter()
            .try_fold(true, |on, set| Ok::<_, anyhow::Error>(on && study.trial::<T>(set, &resolve)?))?,
        Search::InOrder => in_order::<T>(&axes, &mut study, &resolve)?,
    };
    study.out.report(T::NAME, &data, args.json);
    if !done {
        note(&format!("stopped; the same call goes on with {}", out.display()));
        return Ok(ExitCode::from(INTERRUPTED));
    }
    Ok(ExitCode::SUCCESS)
}

/// The values of a setting if there are several; `None` for a setting of one value.
fn axis(setting: &str, args: &TuneArgs) -> anyhow::Result<Option<Axis>> {
    let Some((key, text)) = setting.split_once('=') else { return Ok(None) };
    let key = key.trim().to_string();
    let number = |t: &str| t.trim().parse::<f64>().is_ok();
    if let Some((lo, hi)) = text.split_once("..").filter(|(lo, hi)| number(lo) && number(hi)) {
        if args.search != Search::Random {
            return Err(Error::Usage(format!("--set {setting}: a range needs --search random")).into());
        }
        let values = range(lo, hi, &key, args);
        let values =
            values.ok_or_else(|| Error::Usage(format!("--set {setting}: expected numbers, the first smaller")))?;
        return Ok(Some(Axis { key, values }));
    }
    let values: Vec<String> = text.split(',').map(|v| v.trim().to_string()).collect();
    // Text in quotes and lists are one value.
    Ok((values.len() > 1 && !text.contains(['"', '[', '\''])).then_some(Axis { key, values }))
}

/// As many values as there are trials, even on a logarithmic scale; whole numbers between whole numbers.
fn range(lo: &str, hi: &str, key: &str, args: &TuneArgs) -> Option<Vec<String>> {
    let (from, to): (f64, f64) = (lo.trim().parse().ok()?, hi.trim().parse().ok()?);
    let whole = lo.trim().parse::<i64>().is_ok() && hi.trim().parse::<i64>().is_ok();
    if !(from < to && from.is_finite() && to.is_finite()) {
        return None;
    }
    let mut stream = Stream::new(args.seed, Purpose::Sampling, zoo_layers::random::layer_id(key), 1);
    let draw = |_| {
        let u = stream.uniform();
        let value = if from > 0. { from * (to / from).powf(u) } else { from + (to - from) * u };
        if whole { format!("{}", value.round()) } else { format!("{value:.3e}") }
    };
    Some((0..args.trials).map(draw).collect())
}

fn grid(axes: &[Axis]) -> Vec<Vec<String>> {
    let mut all = vec![vec![]];
    for axis in axes {
        let extended = |set: &Vec<String>| {
            let with = |value: &String| [&set[..], &[format!("{}={value}", axis.key)]].concat();
            axis.values.iter().map(with).collect::<Vec<_>>()
        };
        all = all.iter().flat_map(extended).collect();
    }
    all
}

/// Combinations drawn independently, each once.
fn random(axes: &[Axis], args: &TuneArgs) -> Vec<Vec<String>> {
    let mut stream = Stream::new(args.seed, Purpose::Sampling, 0, 0);
    let (mut chosen, mut seen) = (vec![], BTreeSet::new());
    // Small grids run out of new combinations.
    for _ in 0..100 * args.trials {
        let set: Vec<String> = axes
            .iter()
            .map(|a| {
                let at = (stream.uniform() * a.values.len() as f64) as usize;
                format!("{}={}", a.key, a.values[at.min(a.values.len() - 1)])
            })
            .collect();
        if chosen.len() < args.trials && seen.insert(set.clone()) {
            chosen.push(set);
        }
    }
    chosen
}

/// One key after the other, as the order of `--set` says. Whether all was done.
fn in_order<T: Task>(
    axes: &[Axis],
    study: &mut Study,
    resolve: &dyn Fn(&[String]) -> anyhow::Result<ConfigOf<T>>,
) -> anyhow::Result<bool> {
    let mut best: Vec<String> = vec![];
    for axis in axes {
        let mut scores = vec![];
        for value in &axis.values {
            let set = [&best[..], &[format!("{}={value}", axis.key)]].concat();
            if !study.trial::<T>(&set, resolve)? {
                return Ok(false);
            }
            scores.push((study.out.loss(&to_toml(&resolve(&set)?)?), set));
        }
        if let Some((_, set)) = scores.into_iter().min_by(|a, b| a.0.total_cmp(&b.0)) {
            best = set;
        }
    }
    Ok(true)
}

/// The directory of a search: its plan, its results so far, and a run directory a trial.
struct Results {
    path: PathBuf,
    trials: Vec<Trial>,
    /// The configuration of each trial, which tells it apart.
    configs: Vec<String>,
}

impl Results {
    fn open(path: &Path, args: &TuneArgs, axes: &[Axis], base: &str) -> anyhow::Result<Self> {
        let axes: Vec<Value> = axes.iter().map(|a| json!([a.key, a.values])).collect();
        let plan = json!({
            "search": format!("{:?}", args.search), "trials": args.trials, "seed": args.seed, "to_the_end": args.to_the_end,
            "axes": axes, "base": base,
        });
        let file = path.join("plan.json");
        if file.exists() {
            let text = std::fs::read_to_string(&file).with_context(|| file.display().to_string())?;
            if serde_json::from_str::<Value>(&text).ok() != Some(plan) {
                return Err(
                    Error::Usage(format!("{} holds another search: choose another --out", path.display())).into()
                );
            }
        } else {
            std::fs::create_dir_all(path).with_context(|| path.display().to_string())?;
            zoo_checkpoint::replace(&file, |f| f.write_all(format!("{plan:#}").as_bytes()))?;
        }
        let (mut trials, mut configs) = (vec![], vec![]);
        let text = std::fs::read_to_string(path.join("results.jsonl")).unwrap_or_default();
        // A trial that is not on record is taken up again.
        for trial in text.lines().map_while(|l| serde_json::from_str::<Trial>(l).ok()) {
            let config = path.join(&trial.run).join("config.toml");
            configs.push(std::fs::read_to_string(&config).with_context(|| config.display().to_string())?);
            trials.push(trial);
        }
        Ok(Self { path: path.to_path_buf(), trials, configs })
    }

    fn add(&mut self, trial: Trial, config: String) -> anyhow::Result<()> {
        self.trials.push(trial);
        self.configs.push(config);
        let lines = self.trials.iter().map(serde_json::to_string).collect::<Result<Vec<_>, _>>()?;
        let write = |f: &mut dyn Write| lines.iter().try_for_each(|l| writeln!(f, "{l}"));
        Ok(zoo_checkpoint::replace(&self.path.join("results.jsonl"), write)?)
    }

    /// The loss of the trial with that configuration; a failed one is behind all others.
    fn loss(&self, config: &str) -> f64 {
        let at = self.configs.iter().position(|c| c == config);
        at.and_then(|i| self.trials[i].loss).unwrap_or(f64::INFINITY)
    }

    fn report(&self, model: &str, data: &str, as_json: bool) {
        let mut ranked: Vec<&Trial> = self.trials.iter().collect();
        ranked.sort_by(|a, b| a.loss.unwrap_or(f64::INFINITY).total_cmp(&b.loss.unwrap_or(f64::INFINITY)));
        if as_json {
            let trials: Vec<Value> = ranked
                .iter()
                .map(|t| {
                    let Trial { run, settings, end, loss, step, steps, seconds, metrics, .. } = t;
                    let run = self.path.join(run).display().to_string();
                    json!({
                        "run": run, "settings": settings, "end": end, "loss": loss, "step": step, "steps": steps,
                        "seconds": seconds, "metrics": metrics,
                    })
                })
                .collect();
            print_json(
                &json!({ "model": model, "data": data, "out": self.path.display().to_string(), "trials": trials }),
            );
            return;
        }
        let names: Vec<&String> =
            ranked.iter().find(|t| !t.metrics.is_empty()).map(|t| t.metrics.keys().collect()).unwrap_or_default();
        let mut header = vec!["settings".to_string()];
        header.extend(names.iter().map(|n| n.replace('_', " ")));
        header.extend(["at step", "steps", "seconds", "end", "run"].map(String::from));
        let mut rows = vec![header];
        for t in ranked {
            let mut row = vec![t.settings.join(" ")];
            row.extend(names.iter().map(|n| {
                t.metrics
                    .get(*n)
                    .and_then(Value::as_f64)
                    .map_or("-".into(), |v| if v.abs() < 1e6 { format!("{v:.4}") } else { number(v) })
            }));
            row.extend([
                t.step.to_string(),
                t.steps.to_string(),
                format!("{:.1}", t.seconds),
                t.end.clone(),
                t.run.clone(),
            ]);
            rows.push(row);
        }
        print(&table(&rows));
    }
}

/// A search under way.
struct Study {
    device: Device,
    stop: std::sync::Arc<AtomicBool>,
    out: Results,
    to_the_end: bool,
}

impl Study {
    /// Trains with these settings, unless that was done; false if a signal came first.
    fn trial<T: Task>(
        &mut self,
        set: &[String],
        resolve: &dyn Fn(&[String]) -> anyhow::Result<ConfigOf<T>>,
    ) -> anyhow::Result<bool> {
        let config = resolve(set)?;
        let text = to_toml(&config)?;
        if self.out.configs.contains(&text) {
            return Ok(true);
        }
        if self.stop.load(Ordering::Relaxed) {
            return Ok(false);
        }
        let name = format!("{:03}", self.out.trials.len() + 1);
        let path = self.out.path.join(&name);
        let mut watch = Watch::new(&self.out.trials, self.to_the_end);
        let (end, steps, seconds) = match train::<T>(&config, &text, &path, &self.device, &self.stop, &mut watch) {
            Ok(Some((end, steps, seconds))) => (end.to_string(), steps, seconds),
            Ok(None) => return Ok(false),
            // The directory cannot be used: so it would be for the next.
            Err(e @ (Error::Io { .. } | Error::Checkpoint(_) | Error::Run(_))) => return Err(e.into()),
            Err(e) => {
                watch.best = None;
                (format!("failed: {}", first_line(&e)), 0, 0.)
            }
        };
        let Watch { best, progress, .. } = watch;
        let (loss, step, metrics) = best.map_or((None, 0, Map::new()), |(l, s, m)| (Some(l), s, m));
        note(&format!(
            "{name}: {}: {}, {end} after {steps} steps, {seconds:.1} s",
            set.join(" "),
            loss.map_or("no validation loss".into(), |l| format!(
                "validation loss {} at step {step}",
                if l < 1e6 { format!("{l:.6}") } else { number(l) }
            ))
        ));
        self.out.add(
            Trial { run: name, settings: set.to_vec(), end, loss, step, steps, seconds, metrics, progress },
            text,
        )?;
        Ok(true)
    }
}

/// Begins or resumes the run at `path`: how it ended, its steps and its seconds; `None` if a signal came first.
fn train<T: Task>(
    config: &ConfigOf<T>,
    text: &str,
    path: &Path,
    device: &Device,
    stop: &AtomicBool,
    watch: &mut Watch,
) -> zoo_training::Result<Option<(&'static str, u64, f64)>> {
    let task = T::open(&config.model, &config.data, config.train.seed, None, device)?;
    let run;
    let mut trainer = if path.join("config.toml").exists() {
        run = RunDirectory::open(path)?;
        let trainer = Trainer::resume(&task, config, device, &run, &[], watch)?;
        watch.total = trainer.total_steps();
        watch.replay(path);
        trainer
    } else {
        let mut trainer = Trainer::new(&task, config, device)?;
        run = RunDirectory::create(path, text)?;
        trainer.keep_in(&run);
        watch.total = trainer.total_steps();
        trainer
    };
    let behind = watch.behind.clone();
    let outcome = trainer.train(watch, &|| stop.load(Ordering::Relaxed) || behind.load(Ordering::Relaxed))?;
    let end = match outcome.end {
        End::Finished => "finished",
        End::Early => "early",
        End::Interrupted if behind.load(Ordering::Relaxed) => "behind",
        End::Interrupted => return Ok(None),
    };
    Ok(Some((end, outcome.steps, outcome.seconds)))
}

/// Fewest trials before one is compared with the median of those before, and the share of it that is done then.
const COMPARED: usize = 3;
const PATIENCE: f64 = 0.25;

/// Notes the best evaluation, and stops a trial that is behind the median of those before at the same share of the run
/// (the median rule of Golovin et al., Google Vizier, KDD 2017).
struct Watch<'a> {
    total: u64,
    others: &'a [Trial],
    to_the_end: bool,
    best: Option<(f64, u64, Map<String, Value>)>,
    progress: Vec<(f64, f64)>,
    behind: std::sync::Arc<AtomicBool>,
}

impl<'a> Watch<'a> {
    fn new(others: &'a [Trial], to_the_end: bool) -> Self {
        let behind = std::sync::Arc::new(AtomicBool::new(false));
        Self { total: 0, others, to_the_end, best: None, progress: vec![], behind }
    }

    /// Takes up the evaluations of a run that goes on.
    fn replay(&mut self, path: &Path) {
        let text = std::fs::read_to_string(path.join("metrics.jsonl")).unwrap_or_default();
        for line in text.lines().filter_map(|l| serde_json::from_str::<Value>(l).ok()) {
            if let (Some(step), Some(metrics)) =
                (line["step"].as_u64(), line["valid"].as_object().or(line["train"].as_object()))
            {
                self.evaluated(step, metrics.clone());
            }
        }
    }

    fn evaluated(&mut self, step: u64, metrics: Map<String, Value>) {
        let Some(loss) = metrics.get("loss").and_then(Value::as_f64) else { return };
        if self.best.as_ref().is_none_or(|(best, ..)| loss < *best) {
            self.best = Some((loss, step, metrics));
        }
        let (done, best) = (step as f64 / self.total as f64, self.best.as_ref().map_or(loss, |b| b.0));
        self.progress.push((done, best));
        let at = |t: &Trial| t.progress.iter().rev().find(|p| p.0 <= done + 1e-9).map(|p| p.1);
        let mut others: Vec<f64> = self.others.iter().filter_map(at).collect();
        others.sort_by(f64::total_cmp);
        if !self.to_the_end && done >= PATIENCE && others.len() >= COMPARED && best > others[others.len() / 2] {
            self.behind.store(true, Ordering::Relaxed);
        }
    }
}

impl Observer for Watch<'_> {
    fn observe(&mut self, event: &Event) {
        match event {
            Event::Evaluated { step, metrics, .. } => {
                if let Value::Object(metrics) = object(metrics) {
                    self.evaluated(*step, metrics);
                }
            }
            Event::RolledBack { step } => {
                let done = *step as f64 / self.total as f64;
                self.progress.retain(|p| p.0 <= done + 1e-9);
                self.best = self.best.take().filter(|(_, at, _)| at <= step);
            }
            Event::Warning(message) => note(&format!("zoo: warning: {message}")),
            _ => {}
        }
    }
}

/// `--lr-find`.
fn find_rate<T: Task>(args: &TuneArgs, config: &ConfigOf<T>, device: &Device) -> anyhow::Result<ExitCode> {
    const STEPS: u64 = 300;
    check_name(&args.plot)?;
    let task = T::open(&config.model, &config.data, config.train.seed, None, device)?;
    let test = Trainer::new(&task, config, device)?.test_rates(1e-6, 1., STEPS)?;
    let RateTest { points, least_at, suggestion } = &test;
    let line =
        |value: fn(&(f64, f64, f64)) -> f64| points.iter().enumerate().map(|(i, p)| (i as f64, value(p))).collect();
    let picture = Picture {
        title: format!("loss while the learning rate rises; least at {}", number(*least_at)),
        labels: points.iter().map(|p| number(p.0)).collect(),
        lines: vec![("loss", line(|p| p.1)), ("smoothed", line(|p| p.2))],
        ..Picture::default()
    };
    draw_picture(&args.plot, &picture)?;
    if args.json {
        print_json(&json!({ "model": T::NAME, "plot": args.plot.display().to_string(), "test": test }));
        return Ok(ExitCode::SUCCESS);
    }
    print(&format!(
        "the smoothed loss is least at a rate of {}; try --set train.lr={}\npicture: {}\n",
        number(*least_at),
        number(*suggestion),
        args.plot.display()
    ));
    Ok(ExitCode::SUCCESS)
}
