//! What a search has found so far, on disk.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use zoo_checkpoint::Folder;
use zoo_training::{Error, Ranks};

use super::Arguments;
use super::space::Axis;
use crate::output::{cut, print, print_json, table};
use crate::plot::number;

const PLAN: &str = "plan.json";
const RESULTS: &str = "results.jsonl";

/// One run of a search, as `results.jsonl` has it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Trial {
    pub(super) run: String,
    pub(super) settings: Vec<String>,
    /// `finished`, `early`, `behind` (the median of those before), or what went wrong.
    pub(super) end: String,
    pub(super) loss: Option<f64>,
    pub(super) step: u64,
    pub(super) steps: u64,
    pub(super) seconds: f64,
    pub(super) metrics: Map<String, Value>,
    /// Share of the run done and best validation loss until then, for every evaluation.
    pub(super) progress: Vec<(f64, f64)>,
}

/// The directory of a search: its plan, its results so far, and a run directory a trial.
pub(super) struct Results {
    pub(super) path: PathBuf,
    pub(super) trials: Vec<Trial>,
    /// The configuration of each trial, which tells it apart.
    pub(super) configs: Vec<String>,
}

impl Results {
    pub(super) fn open(path: &Path, args: &Arguments, axes: &[Axis], base: &str) -> anyhow::Result<Self> {
        let axes: Vec<Value> = axes.iter().map(|a| json!([a.key, a.values])).collect();
        let plan = json!({
            "search": format!("{:?}", args.search), "trials": args.trials, "seed": args.seed, "to_the_end": args.to_the_end,
            "axes": axes, "base": base,
        });
        let folder = path.is_dir().then(|| Folder::open(path)).transpose()?;
        let text = |name: &str| -> anyhow::Result<Option<String>> {
            let folder = folder.as_ref().filter(|f| !matches!(f.kind(name), Ok(None)));
            Ok(folder.map(|f| f.text(name, 1 << 24)).transpose()?)
        };
        if let Some(text) = text(PLAN)? {
            if serde_json::from_str::<Value>(&text).ok() != Some(plan) {
                return Err(
                    Error::Usage(format!("{} holds another search: choose another --out", path.display())).into()
                );
            }
        } else {
            std::fs::create_dir_all(path).with_context(|| path.display().to_string())?;
            Folder::open(path)?.replace(PLAN, |f| f.write_all(format!("{plan:#}").as_bytes()))?;
        }
        let (mut trials, mut configs) = (vec![], vec![]);
        let text = text(RESULTS)?.unwrap_or_default();
        // A trial that is not on record is resumed.
        for trial in text.lines().map_while(|l| serde_json::from_str::<Trial>(l).ok()) {
            let run = folder.as_ref().map(|f| f.folder(&trial.run, false)).transpose()?;
            configs.extend(run.map(|run| run.text("config.toml", 1 << 24)).transpose()?);
            trials.push(trial);
        }
        Ok(Self { path: path.to_path_buf(), trials, configs })
    }

    /// What the first process finds at `path`, for all of them.
    pub(super) fn shared(
        path: &Path,
        ranks: &Ranks,
        open: impl FnOnce() -> anyhow::Result<Self>,
    ) -> anyhow::Result<Self> {
        let own = if ranks.leads() { Some(open()?) } else { None };
        let bytes = match &own {
            Some(own) => serde_json::to_vec(&(&own.trials, &own.configs))?,
            None => vec![],
        };
        let bytes = ranks.from_first(|| Ok(bytes))?;
        if let Some(own) = own {
            return Ok(own);
        }
        let (trials, configs) = serde_json::from_slice(&bytes)?;
        Ok(Self { path: path.to_path_buf(), trials, configs })
    }

    /// Takes in a trial; with `write` on disk, too.
    pub(super) fn add(&mut self, trial: Trial, config: String, write: bool) -> anyhow::Result<()> {
        self.trials.push(trial);
        self.configs.push(config);
        if !write {
            return Ok(());
        }
        let lines = self.trials.iter().map(serde_json::to_string).collect::<Result<Vec<_>, _>>()?;
        let write = |f: &mut dyn Write| lines.iter().try_for_each(|l| writeln!(f, "{l}"));
        Ok(Folder::open(&self.path)?.replace(RESULTS, write)?)
    }

    /// The loss of the trial with that configuration; a failed one is behind all others.
    pub(super) fn loss(&self, config: &str) -> f64 {
        let at = self.configs.iter().position(|c| c == config);
        at.and_then(|i| self.trials[i].loss).unwrap_or(f64::INFINITY)
    }

    pub(super) fn report(&self, model: &str, data: &str, as_json: bool) {
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
                cut(&t.end, 60).into_owned(),
                t.run.clone(),
            ]);
            rows.push(row);
        }
        print(&table(&rows));
    }
}
