//! `tune`: many runs with other settings, ranked; or a look for a learning rate.

mod pruner;
mod results;
mod space;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use candle_core::Device;
use clap::Args;
use serde_json::{Map, json};
use zoo_training::config::{ConfigOf, to_toml};
use zoo_training::{End, Error, Picture, Ranks, RateTest, Recipe, Trainer, spread};

use crate::arguments::{DeviceName, Force, Json, ModelName, Settings, Values};
use crate::device::device;
use crate::fetch;
use crate::output::{first_line, note, print, print_json, warn};
use crate::plot::{check_name, draw_picture, number};
use crate::ranks::together;
use crate::settings::configured;
use crate::signals::{INTERRUPTED, stop_flag};
use pruner::Pruner;
use results::{Results, Trial};
use space::{Axis, Search, axis, grid, random};

#[derive(Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) model: ModelName,
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
    /// Seed of the random search (1 by default), or of the run of --lr-find
    #[arg(long, value_name = "S")]
    pub(crate) seed: Option<u64>,
    /// Train each setting with so many seeds, each to its end, and rank by the mean: what is closer than chance is told
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=100), conflicts_with = "lr_find")]
    pub(crate) repeats: u64,
    /// Let every run end by itself: without it, a run that is behind the median of those before is stopped
    #[arg(long)]
    pub(crate) to_the_end: bool,
    /// Raise the learning rate step by step until the loss diverges, and draw the loss
    #[arg(long)]
    pub(crate) lr_find: bool,
    /// Where --lr-find draws (.svg or .png)
    #[arg(long, value_name = "PATH", default_value = "lr-find.svg", requires = "lr_find")]
    pub(crate) plot: PathBuf,
    #[command(flatten)]
    pub(crate) force: Force,
    #[command(flatten)]
    pub(crate) device: DeviceName,
    #[command(flatten)]
    pub(crate) json: Json,
}

/// The key of the seed.
const SEED: &str = "train.seed";

pub(crate) fn run<T: Recipe>(args: &Arguments) -> anyhow::Result<ExitCode> {
    together(|ranks| tune::<T>(args, ranks))
}

fn tune<T: Recipe>(args: &Arguments, ranks: &Rc<Ranks>) -> anyhow::Result<ExitCode> {
    // The mean of a run that was stopped and of whole ones would say nothing.
    let to_the_end = args.to_the_end || args.repeats > 1;
    if !ranks.is_alone() && (args.lr_find || !to_the_end) {
        let what = if args.lr_find {
            "--lr-find is one training, in one process"
        } else {
            "runs of many processes are not stopped for being behind others, which end at the same time: add --to-the-end"
        };
        return Err(Error::Usage(what.into()).into());
    }
    let device = device(&args.device.device)?;
    let (mut axes, mut fixed) = (vec![], vec![]);
    for setting in &args.set {
        match axis(setting, args)? {
            Some(axis) => axes.push(axis),
            None => fixed.push(setting.clone()),
        }
    }
    let values = values::<T>(args)?;
    let resolve = |set: &[String]| -> anyhow::Result<ConfigOf<T>> {
        let mut set: Vec<String> = fixed.iter().chain(set).cloned().collect();
        // The kind of the optimizer before its constants, which it brings.
        set.sort_by_key(|setting| {
            !matches!(setting.split('=').next(), Some("train.optimizer" | "train.optimizer.kind"))
        });
        let settings = Settings { preset: args.preset.clone(), config: args.config.clone(), set };
        let mut config = configured::<T>(&settings, values.clone())?;
        T::settle(&mut config)?;
        Ok(config)
    };
    if args.lr_find {
        let seed: Vec<String> = args.seed.iter().map(|seed| format!("{SEED}={seed}")).collect();
        return find_rate::<T>(args, &resolve(&seed)?, &device);
    }
    if let (true, Some(axis)) = (args.repeats > 1, axes.iter().find(|axis| axis.key == SEED)) {
        return Err(Error::Usage(format!("{}: --repeats chooses the seeds: leave one out", axis.key)).into());
    }
    if axes.is_empty() {
        return Err(Error::Usage("nothing to tune: give values, as in --set train.lr=0.01,0.001".into()).into());
    }
    if let Some(axis) = axes.iter().find(|axis| values.has(&axis.key)) {
        let key = &axis.key;
        return Err(Error::Usage(format!("{key} is given as a value to search over, too: leave one out")).into());
    }
    // Before the first run, every value is known to be one.
    for axis in &axes {
        for value in &axis.values {
            let others = axes.iter().filter(|other| other.key != axis.key);
            let mut set: Vec<String> = others.map(|other| format!("{}={}", other.key, other.values[0])).collect();
            set.push(format!("{}={value}", axis.key));
            resolve(&set)?;
        }
    }
    let out = args.out.clone().unwrap_or_else(|| Path::new("runs").join(format!("{}-tune", T::NAME)));
    // Constants that are set belong to the optimizers that are searched over.
    let kinds = axes.iter().filter(|axis| matches!(axis.key.as_str(), "train.optimizer" | "train.optimizer.kind"));
    let config = resolve(&kinds.map(|axis| format!("{}={}", axis.key, axis.values[0])).collect::<Vec<_>>())?;
    let base = to_toml(&config)?;
    let data = T::open(&config.model, &config.data, config.train.seed, None, &device)?.describe_data();
    note(&data);
    let mut study = Study {
        device,
        stop: stop_flag()?,
        out: Results::shared(&out, ranks, || Results::open(&out, args, &axes, &base))?,
        to_the_end,
        seeds: (0..args.repeats).map(|i| config.train.seed.wrapping_add(i)).collect(),
        ranks: ranks.clone(),
    };
    let done = match args.search {
        Search::Grid => study.trials::<T>(&grid(&axes), &resolve)?,
        Search::Random => study.trials::<T>(&random(&axes, args), &resolve)?,
        Search::InOrder => in_order::<T>(&axes, &mut study, &resolve)?,
    };
    study.out.report(T::NAME, &data, args.json.json);
    if !done {
        note(&format!("stopped; the same call goes on with {}", out.display()));
        return Ok(ExitCode::from(INTERRUPTED));
    }
    Ok(ExitCode::SUCCESS)
}

/// What the flags set.
fn values<T: Recipe>(args: &Arguments) -> anyhow::Result<Values> {
    let mut values = args.model.flags.clone();
    if let Some(data) = fetch::found::<T>(args.data.as_deref())? {
        values.set_whole_path("data.path", &data)?;
    }
    values.set_count("train.epochs", args.epochs)?;
    // Steps of 0 let the epochs decide.
    values.set_count("train.steps", args.steps.or(args.epochs.map(|_| 0)))?;
    Ok(values)
}

/// One key after the other, as the order of `--set` says. Whether all was done.
fn in_order<T: Recipe>(
    axes: &[Axis],
    study: &mut Study,
    resolve: &dyn Fn(&[String]) -> anyhow::Result<ConfigOf<T>>,
) -> anyhow::Result<bool> {
    let mut best: Vec<String> = vec![];
    for axis in axes {
        let sets: Vec<Vec<String>> =
            axis.values.iter().map(|value| [&best[..], &[format!("{}={value}", axis.key)]].concat()).collect();
        if !study.trials::<T>(&sets, resolve)? {
            return Ok(false);
        }
        let mut scores = vec![];
        for set in sets {
            let each = study.repeated(&set);
            let losses = each.iter().map(|set| Ok(study.out.loss(&to_toml(&resolve(set)?)?)));
            let losses = losses.collect::<anyhow::Result<Vec<f64>>>()?;
            scores.push((spread::mean(&losses), set));
        }
        if let Some((_, set)) = scores.into_iter().min_by(|a, b| a.0.total_cmp(&b.0)) {
            best = set;
        }
    }
    Ok(true)
}

/// A search under way.
struct Study {
    device: Device,
    stop: Arc<AtomicBool>,
    out: Results,
    to_the_end: bool,
    /// The seeds that each setting is trained with.
    seeds: Vec<u64>,
    ranks: Rc<Ranks>,
}

impl Study {
    /// Settings with each of the seeds; as they are where there is one.
    fn repeated(&self, set: &[String]) -> Vec<Vec<String>> {
        match self.seeds.as_slice() {
            [_] => vec![set.to_vec()],
            seeds => seeds.iter().map(|seed| [set, &[format!("{SEED}={seed}")]].concat()).collect(),
        }
    }

    /// Trains with each of these settings, unless that was done; false if a signal came first. Many processes train beside each
    /// other, each with settings of its own.
    fn trials<T: Recipe>(
        &mut self,
        sets: &[Vec<String>],
        resolve: &dyn Fn(&[String]) -> anyhow::Result<ConfigOf<T>>,
    ) -> anyhow::Result<bool> {
        let mut pending: Vec<(&[String], ConfigOf<T>, String)> = vec![];
        let sets: Vec<Vec<String>> = sets.iter().flat_map(|set| self.repeated(set)).collect();
        for set in &sets {
            let config = resolve(set)?;
            let text = to_toml(&config)?;
            if !self.out.configs.contains(&text) && !pending.iter().any(|(.., other)| *other == text) {
                pending.push((set, config, text));
            }
        }
        for wave in pending.chunks(self.ranks.size()) {
            let rank = self.ranks.rank();
            let name = format!("{:03}", self.out.trials.len() + 1 + rank);
            let own = match wave.get(rank) {
                Some((set, config, _)) => self.trial::<T>(name, set, config)?,
                None => None,
            };
            let all = self.ranks.agree(Ok(serde_json::to_vec(&own)?))?;
            for ((set, _, text), trial) in wave.iter().zip(all) {
                // Those behind one that was stopped are resumed with it, at their ends.
                let Some(trial) = serde_json::from_slice::<Option<Trial>>(&trial)? else { return Ok(false) };
                tell(&trial, set);
                self.out.add(trial, text.clone(), self.ranks.leads())?;
            }
        }
        Ok(true)
    }

    /// Trains with these settings; `None` if a signal came first.
    fn trial<T: Recipe>(&self, name: String, set: &[String], config: &ConfigOf<T>) -> anyhow::Result<Option<Trial>> {
        if self.stop.load(Ordering::Relaxed) {
            return Ok(None);
        }
        let path = self.out.path.join(&name);
        let mut pruner = Pruner::new(&self.out.trials, self.to_the_end);
        let (end, steps, seconds) = match train::<T>(config, &path, &self.device, &self.stop, &mut pruner) {
            Ok(Some((end, steps, seconds))) => (end.to_string(), steps, seconds),
            Ok(None) => return Ok(None),
            // The directory cannot be used: so it would be for the next.
            Err(
                e @ (Error::Io { .. }
                | Error::Checkpoint(_)
                | Error::Run(_)
                | Error::Changed { .. }
                | Error::OnlyWeights(_)),
            ) => {
                return Err(e.into());
            }
            Err(e) => {
                pruner.best = None;
                (format!("failed: {}", first_line(&e)), 0, 0.)
            }
        };
        let Pruner { best, progress, .. } = pruner;
        let (loss, step, metrics) = best.map_or((None, 0, Map::new()), |(l, s, m)| (Some(l), s, m));
        Ok(Some(Trial { run: name, settings: set.to_vec(), end, loss, step, steps, seconds, metrics, progress }))
    }
}

fn tell(trial: &Trial, set: &[String]) {
    let Trial { run, end, loss, step, steps, seconds, .. } = trial;
    note(&format!(
        "{run}: {}: {}, {end} after {steps} steps, {seconds:.1} s",
        set.join(" "),
        loss.map_or("no validation loss".into(), |l| format!(
            "validation loss {} at step {step}",
            if l < 1e6 { format!("{l:.6}") } else { number(l) }
        ))
    ));
}

/// Begins or resumes the run at `path`: how it ended, its steps and its seconds; `None` if a signal came first.
fn train<T: Recipe>(
    config: &ConfigOf<T>,
    path: &Path,
    device: &Device,
    stop: &AtomicBool,
    pruner: &mut Pruner,
) -> zoo_training::Result<Option<(&'static str, u64, f64)>> {
    let task = T::open(&config.model, &config.data, config.train.seed, None, device)?;
    let mut trainer = Trainer::begin_or_resume(&task, config, device, path, pruner)?;
    pruner.total = trainer.total_steps();
    pruner.replay(path);
    let behind = pruner.behind.clone();
    let outcome = trainer.train(pruner, &|| stop.load(Ordering::Relaxed) || behind.load(Ordering::Relaxed))?;
    let end = match outcome.end {
        End::Finished => "finished",
        End::Early => "early",
        End::Interrupted if behind.load(Ordering::Relaxed) => "behind",
        End::Interrupted => return Ok(None),
    };
    Ok(Some((end, outcome.steps, outcome.seconds)))
}

/// `--lr-find`.
fn find_rate<T: Recipe>(args: &Arguments, config: &ConfigOf<T>, device: &Device) -> anyhow::Result<ExitCode> {
    const STEPS: u64 = 300;
    check_name(&args.plot)?;
    args.force.check([args.plot.as_path()])?;
    let task = T::open(&config.model, &config.data, config.train.seed, None, device)?;
    let test = Trainer::new(&task, config, device)?.test_rates(1e-6, 1., STEPS)?;
    let RateTest { points, least_at, suggestion, moved } = &test;
    if !moved {
        warn(
            "the loss never fell by more than chance moves it: the rate says nothing (more samples a step, train.batch_size, make it clearer)",
        );
    }
    let line =
        |value: fn(&(f64, f64, f64)) -> f64| points.iter().enumerate().map(|(i, p)| (i as f64, value(p))).collect();
    let picture = Picture {
        title: format!("loss while the learning rate rises; least at {}", number(*least_at)),
        labels: points.iter().map(|p| number(p.0)).collect(),
        lines: vec![("loss".into(), line(|p| p.1)), ("smoothed".into(), line(|p| p.2))],
        ..Picture::default()
    };
    draw_picture(&args.plot, &picture, args.force)?;
    if args.json.json {
        print_json(&json!({ "model": T::NAME, "plot": args.plot.display().to_string(), "test": test }));
        return Ok(ExitCode::SUCCESS);
    }
    if !moved {
        print(&format!("picture: {}\n", args.plot.display()));
        return Ok(ExitCode::SUCCESS);
    }
    print(&format!(
        "the smoothed loss is least at a learning rate of {}; try --set train.lr={}\npicture: {}\n",
        number(*least_at),
        number(*suggestion),
        args.plot.display()
    ));
    Ok(ExitCode::SUCCESS)
}
