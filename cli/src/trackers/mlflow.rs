//! MLflow's file store: a folder an experiment, in it one a run, with a file for each parameter, metric and tag.
//!
//! <https://mlflow.org/docs/latest/ml/tracking/backend-stores/>. MLflow 3 reads it when `MLFLOW_ALLOW_FILE_STORE=true` is set, and
//! `mlflow migrate-filestore` moves it to a database.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use serde_json::Value;
use zoo_training::{Error, RunFiles};

use super::{Ended, Tracker};
use crate::output::cut;

/// Numbers are written out at least this often.
const PAUSE: Duration = Duration::from_secs(5);
/// Characters of a parameter's value that are kept.
const LONGEST_VALUE: usize = 500;

/// A run in a file store.
pub(super) struct Mlflow {
    folder: PathBuf,
    experiment: String,
    id: String,
    name: String,
    began: u128,
    /// Lines that are still to be written, by the name of the metric.
    waiting: BTreeMap<String, String>,
    written: Instant,
}

fn now() -> u128 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis()
}

/// A text of a YAML file. JSON's are that, too.
fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

fn set(name: &str) -> Option<String> {
    env::var(name).ok().filter(|v| !v.trim().is_empty())
}

/// The folder of the store, which is made if it is not there.
pub(super) fn prepare() -> anyhow::Result<PathBuf> {
    let store = store()?;
    let made = if store.join("0").exists() { Ok(()) } else { describe(&store, "0", "Default") };
    made.with_context(|| format!("--log mlflow: {}", store.display()))?;
    Ok(store)
}

/// Where the store is.
fn store() -> anyhow::Result<PathBuf> {
    let Some(uri) = set("MLFLOW_TRACKING_URI") else { return Ok("mlruns".into()) };
    let path = uri.strip_prefix("file://").or_else(|| uri.strip_prefix("file:")).unwrap_or(&uri);
    let path = path.strip_prefix("localhost").filter(|rest| rest.starts_with('/')).unwrap_or(path);
    // Names of other kinds of stores, and addresses whose escapes would have to be undone.
    if path.contains("://") || path.contains('%') || matches!(path, "databricks" | "databricks-uc" | "uc") {
        let reason =
            format!("MLFLOW_TRACKING_URI is {uri}: only file stores are written (a folder, or file:///FOLDER)");
        return Err(Error::Usage(reason).into());
    }
    Ok(path.into())
}

/// The address of a folder.
fn address(folder: &Path) -> io::Result<String> {
    let path = std::path::absolute(folder)?.display().to_string();
    Ok(format!("file://{}", path.replace('%', "%25").replace(' ', "%20").replace('#', "%23").replace('?', "%3F")))
}

/// A name of a metric or parameter as MLflow takes it; it becomes a path.
fn plain(name: &str) -> String {
    let allowed = |c: char| if c.is_ascii_alphanumeric() || "_-. /".contains(c) { c } else { '_' };
    let part = |part: &str| match part.trim_matches('.') {
        "" => "_".to_string(),
        _ => part.chars().map(allowed).collect(),
    };
    name.split('/').map(part).collect::<Vec<_>>().join("/")
}

/// The experiment of that name, which is made if there is none; its number.
fn experiment(store: &Path, name: &str) -> io::Result<String> {
    let named = format!("name: {name}");
    for entry in fs::read_dir(store)?.flatten() {
        let meta = fs::read_to_string(entry.path().join("meta.yaml")).unwrap_or_default();
        if meta.lines().any(|line| line.replace(['"', '\''], "") == named) {
            return Ok(entry.file_name().to_string_lossy().into_owned());
        }
    }
    // As long as MLflow's own, and the same for the same name.
    let hash = zoo_checkpoint::sha256_of(name.as_bytes());
    let id = format!("{:018}", u64::from_str_radix(&hash[..15], 16).unwrap_or_default() % 10u64.pow(18));
    describe(store, &id, name)?;
    Ok(id)
}

/// Makes the folder of an experiment.
fn describe(store: &Path, id: &str, name: &str) -> io::Result<()> {
    let (folder, now) = (store.join(id), now());
    fs::create_dir_all(&folder)?;
    let text = format!(
        "artifact_location: {}\ncreation_time: {now}\nexperiment_id: '{id}'\nlast_update_time: {now}\nlifecycle_stage: active\nname: {}\n",
        quoted(&address(&folder)?),
        quoted(name),
    );
    fs::write(folder.join("meta.yaml"), text)
}

impl Mlflow {
    /// The run that stands for a run directory: a new one, or the one that it had before.
    pub(super) fn new(run: &Path, model: &str, resumed: bool) -> anyhow::Result<Self> {
        let store = prepare()?;
        let begin = || -> io::Result<Self> {
            let experiment = experiment(&store, &set("MLFLOW_EXPERIMENT_NAME").unwrap_or_else(|| model.into()))?;
            let place = std::path::absolute(run)?;
            // The run directories that were at this place one after the other.
            let id =
                |n: u32| zoo_checkpoint::sha256_of(format!("{} {n}", place.display()).as_bytes())[..32].to_string();
            let folder = |n: u32| store.join(&experiment).join(id(n));
            let free = (0..).find(|n| !folder(*n).exists()).unwrap_or_default();
            let n = if resumed { free.saturating_sub(1) } else { free };
            let name = place.file_name().map_or_else(|| model.into(), |n| n.to_string_lossy().into_owned());
            let (folder, id) = (folder(n), id(n));
            let before = fs::read_to_string(folder.join("meta.yaml")).unwrap_or_default();
            let began = before.lines().find_map(|line| line.strip_prefix("start_time: ")?.trim().parse().ok());
            let began = began.unwrap_or_else(now);
            let this = Self { folder, experiment, id, name, began, waiting: BTreeMap::new(), written: Instant::now() };
            for part in ["artifacts", "metrics", "params", "tags"] {
                fs::create_dir_all(this.folder.join(part))?;
            }
            this.state(1, None)?;
            let note = format!("Run directory: {}", place.display());
            for (tag, text) in [
                ("mlflow.runName", this.name.as_str()),
                ("mlflow.source.name", "zoo"),
                ("mlflow.source.type", "LOCAL"),
                ("mlflow.note.content", &note),
                ("model", model),
            ] {
                fs::write(this.folder.join("tags").join(tag), text)?;
            }
            Ok(this)
        };
        let this = begin().with_context(|| store.display().to_string())?;
        let config = serde_json::to_value(RunFiles::at(run).read_config()?.tables)?;
        this.parameters("", &config).with_context(|| this.folder.display().to_string())?;
        Ok(this)
    }

    /// Settings by their keys, such as `train.lr`.
    fn parameters(&self, key: &str, value: &Value) -> io::Result<()> {
        match value {
            Value::Object(table) => table.iter().try_for_each(|(name, value)| {
                let key = if key.is_empty() { name.clone() } else { format!("{key}.{name}") };
                self.parameters(&key, value)
            }),
            value => {
                let text = value.as_str().map_or_else(|| value.to_string(), String::from);
                fs::write(self.folder.join("params").join(plain(key)), cut(&text, LONGEST_VALUE).as_ref())
            }
        }
    }

    /// What MLflow shows of the run itself; a status of 1 is running, 3 finished, 4 failed, 5 killed.
    fn state(&self, status: u8, end: Option<u128>) -> io::Result<()> {
        let Self { folder, experiment, id, name, began, .. } = self;
        let text = format!(
            "artifact_uri: {}\nend_time: {}\nentry_point_name: ''\nexperiment_id: '{experiment}'\nlifecycle_stage: active\nrun_id: '{id}'\n\
             run_name: {}\nrun_uuid: '{id}'\nsource_name: ''\nsource_type: 4\nsource_version: ''\nstart_time: {began}\nstatus: {status}\n\
             tags: []\nuser_id: {}\n",
            quoted(&address(&folder.join("artifacts"))?),
            end.map_or("null".into(), |t| t.to_string()),
            quoted(name),
            quoted(&env::var("USER").unwrap_or_default()),
        );
        // As a whole: somebody may be reading it.
        zoo_checkpoint::replace(&folder.join("meta.yaml"), |f| f.write_all(text.as_bytes())).map_err(io::Error::other)
    }

    /// Keeps the lines of metrics in a folder that are of no later step.
    fn keep_until(folder: &Path, step: u64) -> io::Result<()> {
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            if path.is_dir() {
                Self::keep_until(&path, step)?;
                continue;
            }
            let text = fs::read_to_string(&path)?;
            let of =
                |line: &&str| line.rsplit(' ').next().and_then(|s| s.parse::<u64>().ok()).is_some_and(|s| s <= step);
            fs::write(&path, text.lines().filter(of).map(|line| format!("{line}\n")).collect::<String>())?;
        }
        Ok(())
    }
}

impl Tracker for Mlflow {
    fn scalars(&mut self, step: u64, values: &[(String, f64)]) -> io::Result<()> {
        let now = now();
        for (tag, v) in values {
            let v = match v {
                v if v.is_nan() => "nan".into(),
                v if v.is_infinite() => if *v > 0. { "inf" } else { "-inf" }.into(),
                v => v.to_string(),
            };
            *self.waiting.entry(plain(tag)).or_default() += &format!("{now} {v} {step}\n");
        }
        if self.written.elapsed() > PAUSE { self.flush() } else { Ok(()) }
    }

    fn cut(&mut self, step: u64) -> io::Result<()> {
        self.flush()?;
        Self::keep_until(&self.folder.join("metrics"), step)
    }

    fn flush(&mut self) -> io::Result<()> {
        for (name, lines) in std::mem::take(&mut self.waiting) {
            let path = self.folder.join("metrics").join(name);
            fs::create_dir_all(path.parent().unwrap_or(&self.folder))?;
            fs::File::options().append(true).create(true).open(&path)?.write_all(lines.as_bytes())?;
        }
        self.written = Instant::now();
        Ok(())
    }

    fn end(&mut self, how: Ended) -> io::Result<()> {
        self.flush()?;
        let status = match how {
            Ended::Finished => 3,
            Ended::Failed => 4,
            Ended::Interrupted => 5,
        };
        self.state(status, Some(now()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_paths_that_lead_nowhere_else() {
        for (name, path) in [("loss/train", "loss/train"), ("../../x", "_/_/x"), ("/a", "_/a"), ("r²: 1", "r__ 1")] {
            assert_eq!(plain(name), path);
        }
    }

    #[test]
    fn metrics_after_a_step_are_cut() -> io::Result<()> {
        let dir = tempfile::tempdir()?;
        fs::create_dir(dir.path().join("loss"))?;
        let path = dir.path().join("loss/train");
        fs::write(&path, "1 0.5 1\n2 0.25 2\n3 nan 30\n")?;
        Mlflow::keep_until(dir.path(), 2)?;
        assert_eq!(fs::read_to_string(path)?, "1 0.5 1\n2 0.25 2\n");
        Ok(())
    }
}
