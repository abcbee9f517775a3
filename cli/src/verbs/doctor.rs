//! `doctor`: what is wrong with a run or a model, and what to try.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use serde_json::{Map, Value, json};
use zoo_training::config::{ConfigFile, Overrides, resolve, to_toml};
use zoo_training::doctor::Diagnosis;
use zoo_training::{Advice, Curve, History, Recipe, RunFiles, RunState, Trainer, spread};

use crate::arguments::{Json, Settings, Values};
use crate::device::device;
use crate::fetch;
use crate::health::{Judged, advised, as_value, described, name};
use crate::heat::HeatMap;
use crate::output::{print, print_json, program, quoted};
use crate::settings::{configured, has_path};
use crate::verbs::attempt::duration;
use crate::weights::{BASE, Loaded, Places, weights};

#[derive(Args)]
pub(crate) struct Arguments {
    /// A run directory, or a model (the verb list shows them)
    #[arg(value_name = "RUN|MODEL", required_unless_present = "system", default_value = "", hide_default_value = true)]
    pub(crate) target: String,
    /// Instead: what this build and this machine can do, and why a device is not available
    #[arg(long, conflicts_with_all = ["target", "preset", "config", "set", "data", "checkpoint"])]
    pub(crate) system: bool,
    /// Of a run: train with each remedy for a while, from before the trouble began, beside the run as it was
    #[arg(long = "try", conflicts_with_all = ["system", "preset", "config", "set", "data", "checkpoint"])]
    pub(crate) attempt: bool,
    /// With --try: the time for all of them, such as 90s, 10m or 1h
    #[arg(long, value_name = "TIME", requires = "attempt", default_value = "10m", value_parser = duration)]
    pub(crate) budget: Duration,
    /// With --try: the steps of each; by default 300 past the beginning of the trouble, if the time allows
    #[arg(long, value_name = "N", requires = "attempt")]
    pub(crate) steps: Option<u64>,
    /// With --try: the folder for its runs; RUN-try by default
    #[arg(long, value_name = "DIR", requires = "attempt")]
    pub(crate) out: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) settings: Settings,
    /// Of a model: its data
    #[arg(long, value_name = "PATH")]
    pub(crate) data: Option<PathBuf>,
    /// Of a model: weights instead of initial ones
    #[arg(long, value_name = "FILE|RUN")]
    pub(crate) checkpoint: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) json: Json,
}

impl Arguments {
    /// Whether something is said that only a model has.
    pub(crate) fn of_model(&self) -> bool {
        let Settings { preset, config, set } = &self.settings;
        preset.is_some() || config.is_some() || !set.is_empty() || self.data.is_some()
    }
}

/// Prints what is to be said of a run.
pub(crate) fn of_run(run: &Path, as_json: bool, judged: &Judged) {
    let Judged { history, config, checks, report, diagnosis } = judged;
    let files = RunFiles::at(run);
    let (done, total) = (history.curve("loss").last().map_or(0, |p| p.0), files.total_steps().unwrap_or(0));
    let left = done < total && files.state() != RunState::Ended("early".into());
    // The steps that are left come before more of them.
    let longer = |advice: &Advice| {
        advice.set.as_ref().is_some_and(|(key, _)| ["train.steps", "train.epochs"].contains(&key.as_str()))
    };
    let advice: Vec<&Advice> = diagnosis.advice.iter().filter(|advice| !left || !longer(advice)).collect();
    let settable = advice.iter().any(|advice| advice.set.is_some());
    let advice: Vec<String> = advice.into_iter().map(advised).collect();
    let Diagnosis { verdict, because, numbers, .. } = diagnosis;
    let heat = HeatMap::of(checks);
    let acting = acting(history);
    if as_json {
        let acting: Map<String, Value> = acting.iter().map(|(name, v)| (name.to_string(), (*v).into())).collect();
        let health = checks.last().map(|last| as_value(last, report, checks.len(), Some(&heat)));
        print_json(&json!({
            "run": run.display().to_string(), "verdict": verdict, "because": because, "numbers": numbers, "advice": advice,
            "acting": acting, "health": health,
        }));
        return;
    }
    print(&format!("{}: {because}\n", name(*verdict)));
    if !acting.is_empty() {
        let shown: Vec<String> = acting.iter().map(|(name, v)| format!("{} {v:.2}", name.replace('_', " "))).collect();
        print(&format!("while acting, in the last tenth: {}\n", shown.join(", ")));
    }
    if numbers.refused > 0 {
        print(&format!("{} steps were refused as not finite or as spikes\n", numbers.refused));
    }
    let (shown, model) = (quoted(&run.display().to_string()), files.model().unwrap_or_default());
    if left {
        let how = match files.state() {
            RunState::Running => "it is still training".to_string(),
            _ => format!("go on with it: {} train {model} --resume {shown}", program()),
        };
        print(&format!("{done} of {total} steps are done; {how}\n"));
    }
    if !advice.is_empty() {
        let list = advice.iter().map(|a| format!("  {a}\n")).collect::<String>();
        print(&format!("to try, one at a time, in this order:\n{list}"));
        if settable {
            let config = quoted(&files.config().display().to_string());
            print(&format!(
                "  ({} train {model} --config {config} --set …, or all of them: {0} doctor {shown} --try)\n",
                program()
            ));
        }
    }
    match checks.last() {
        None if config["train"]["health_every"] == 0 => {
            print("\ngradient health was not watched (train.health_every = 0)\n")
        }
        None => print("\nno check of gradient health is on record (health.jsonl)\n"),
        Some(last) => print(&format!("\n{}\n{}", described(last, report, checks.len()), heat.text())),
    }
}

/// What acting brought over the last tenth of the rounds, if the model acts.
fn acting(history: &History) -> Vec<(&str, f64)> {
    let of = |curve: &'_ Curve| {
        let last = &curve.points[curve.points.len() - curve.points.len().div_ceil(10)..];
        spread::mean(&last.iter().map(|p| p.1).collect::<Vec<_>>())
    };
    // Steps are counted up, and are no measure of how it went.
    let named = history.curves.iter().filter_map(|c| Some((c.name.strip_prefix("experience ")?, c)));
    named.filter(|(name, _)| *name != "steps").map(|(name, c)| (name, of(c))).collect()
}

/// One forward and backward pass of a model: as it begins, or of a checkpoint.
pub(crate) fn examine<T: Recipe>(args: &Arguments) -> anyhow::Result<()> {
    let device = device("cpu")?;
    let (mut settings, mut values) = (args.settings.clone(), Values::default());
    let loaded = match (&args.checkpoint, &settings.preset, &settings.config) {
        (Some(checkpoint), None, None) => {
            let places = Places { checkpoint, values: &Values::default(), set: &args.settings.set };
            if let Some(base) = places.base::<T>()? {
                settings.set.insert(0, format!("{BASE}={base}"));
            }
            Some((checkpoint, Loaded::<T>::read(&places, &device)?))
        }
        _ => None,
    };
    if let Some(data) = fetch::found::<T>(args.data.as_deref())? {
        values.set_path("data.path", &data)?;
    } else if let Some((_, loaded)) = &loaded
        && has_path::<T>(&loaded.config)?
    {
        // Weights bring their own configuration, but not their data's place.
        settings.set.insert(0, "data.path=".into());
    }
    if let Some(checkpoint) = &args.checkpoint {
        values.set_path("train.init_from", &weights(checkpoint)?)?;
    }
    let mut config = match loaded {
        Some((checkpoint, loaded)) => {
            let file = ConfigFile::parse(&to_toml(&loaded.config)?, &checkpoint.display().to_string())?;
            resolve::<T>(&Overrides { file: Some(&file), set: &settings.set, values: values.0, ..Default::default() })?
        }
        None => configured::<T>(&settings, values)?,
    };
    T::settle(&mut config)?;
    let task = T::open(&config.model, &config.data, config.train.seed, None, &device)?;
    let (check, report) = Trainer::new(&task, &config, &device)?.examine()?;
    if args.json.json {
        print_json(&json!({ "model": T::NAME, "health": as_value(&check, &report, 1, None) }));
    } else {
        print(&described(&check, &report, 1));
    }
    Ok(())
}
