//! What a search has found so far, on disk.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use zoo_checkpoint::Folder;
use zoo_training::{Error, Ranks, spread};

use super::space::Axis;
use super::{Arguments, SEED};
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

/// Settings that were trained with several seeds.
struct Group {
    settings: Vec<String>,
    /// Losses by the setting of their seed.
    by_seed: BTreeMap<String, f64>,
    /// How much worse it is than the best, at 95 %: none for the best itself, and where no two seeds are common.
    beside: Option<[f64; 2]>,
}

impl Group {
    fn losses(&self) -> Vec<f64> {
        self.by_seed.values().copied().collect()
    }

    fn mean(&self) -> f64 {
        spread::mean(&self.losses())
    }

    /// Whether the best is no clearly better.
    fn is_tied(&self) -> bool {
        self.beside.is_none_or(|[low, _]| low <= 0.)
    }
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
        let mut plan = json!({
            "search": format!("{:?}", args.search), "trials": args.trials, "seed": args.seed.unwrap_or(1), "to_the_end": args.to_the_end,
            "axes": axes, "base": base,
        });
        // One that was begun before there were repeats goes on.
        if args.repeats > 1 {
            plan["repeats"] = args.repeats.into();
        }
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
        let (groups, noise) = self.groups();
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
            let groups: Vec<Value> = groups
                .iter()
                .map(|g| {
                    json!({
                        "settings": g.settings, "runs": g.by_seed.len(), "loss": g.mean(), "worse_than_best_by": g.beside,
                        "tied_with_best": g.is_tied(),
                    })
                })
                .collect();
            print_json(&json!({
                "model": model, "data": data, "out": self.path.display().to_string(), "trials": trials, "noise": noise, "groups": groups,
            }));
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
        let Some(noise) = noise else {
            if groups.len() > 1 {
                print(
                    "\nhow much of a difference is chance is not known: --repeats 3 trains each setting with three seeds\n",
                );
            }
            return;
        };
        let mut rows = vec![["settings", "seeds", "mean loss", "beside the best"].map(String::from).to_vec()];
        for group in &groups {
            let beside = match group.beside {
                _ if std::ptr::eq(group, &groups[0]) => String::new(),
                None => "of no common seeds".into(),
                Some([low, _]) if low.is_infinite() => "worse (a run failed)".into(),
                Some([low, high]) => {
                    let clear = if group.is_tied() { "no clear difference" } else { "worse" };
                    format!("{clear} ({low:+.4} to {high:+.4})")
                }
            };
            let (seeds, mean) = (group.by_seed.len().to_string(), format!("{:.4}", group.mean()));
            rows.push(vec![group.settings.join(" "), seeds, mean, beside]);
        }
        print(&format!(
            "\n{}the losses of one setting have a standard deviation of {noise:.4} over its seeds; settings are compared seed by seed, with \
             the 95 % interval of the difference (that the best was chosen by the same runs is not counted)\n",
            table(&rows)
        ));
    }

    /// Settings with the losses of their seeds, the least mean first, and the standard deviation of a loss over seeds, if any setting has
    /// several.
    fn groups(&self) -> (Vec<Group>, Option<f64>) {
        let mut groups: Vec<Group> = vec![];
        for trial in &self.trials {
            let is_seed = |s: &&String| s.starts_with(&format!("{SEED}="));
            let settings: Vec<String> = trial.settings.iter().filter(|s| !is_seed(s)).cloned().collect();
            let seed = trial.settings.iter().find(is_seed).cloned().unwrap_or_default();
            let loss = trial.loss.unwrap_or(f64::INFINITY);
            match groups.iter_mut().find(|g| g.settings == settings) {
                Some(group) => _ = group.by_seed.insert(seed, loss),
                None => groups.push(Group { settings, by_seed: [(seed, loss)].into(), beside: None }),
            }
        }
        groups.sort_by(|a, b| a.mean().total_cmp(&b.mean()));
        let several = groups.iter().filter(|g| g.by_seed.len() > 1 && g.mean().is_finite());
        let variances: Vec<f64> = several.map(|g| spread::deviation(&g.losses()).powi(2)).collect();
        if variances.is_empty() {
            return (groups, None);
        }
        let noise = spread::mean(&variances).sqrt();
        // Of one seed, the data and the initial weights are the same: the difference has less noise than the losses.
        let best = groups[0].by_seed.clone();
        for group in &mut groups[1..] {
            let pairs = group.by_seed.iter().filter_map(|(seed, loss)| Some(loss - best.get(seed)?));
            let differences: Vec<f64> = pairs.collect();
            group.beside = match differences.iter().all(|d| d.is_finite()) {
                true if differences.len() > 1 => Some(spread::interval(&differences)),
                true => None,
                // A run of it failed.
                false => Some([f64::INFINITY; 2]),
            };
        }
        (groups, Some(noise))
    }
}
