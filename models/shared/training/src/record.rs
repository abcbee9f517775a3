//! What a run keeps on record of itself: the description in its weights, and what has to stay the same when it resumes.

use std::path::Path;

use serde_json::{Value, json};
use zoo_checkpoint::Description;

use crate::config::{Config, ConfigOf, Effect, migrate};
use crate::{Error, OnCritical, OnNonFinite, Result, Task, TrainConfig};

/// Keys of a task's data that say where files lie: what is in them is told by the data's fingerprint.
const PLACES: [&str; 4] = ["data.path", "data.base", "data.tokenizer", "data.general"];

/// Leaves of the places of files in a configuration the files' names: weights travel.
pub fn without_folders(config: &mut Value) {
    for key in PLACES.into_iter().chain(["train.init_from"]) {
        if let Some(Value::String(path)) = config.pointer_mut(&pointer(key)) {
            *path = Path::new(path).file_name().unwrap_or_default().to_string_lossy().into_owned();
        }
    }
}

/// A key with another value than the run was begun with.
#[derive(Clone, Debug, PartialEq)]
pub struct Difference {
    /// The key, or `data` for the samples themselves.
    pub key: String,
    /// Its value then.
    pub was: String,
    /// Its value now.
    pub now: String,
}

impl std::fmt::Display for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "{}: {} then, {} now", self.key, self.was, self.now)
    }
}

impl Difference {
    /// The keys whose values differ between two configurations; a key that one of them lacks is null there.
    pub fn between(was: &Value, now: &Value) -> Vec<Self> {
        let (mut found, mut back) = (vec![], vec![]);
        differing("", was, now, &Value::Null, &mut found);
        differing("", now, was, &Value::Null, &mut back);
        let gone: Vec<Self> = back.into_iter().filter(|d| !found.iter().any(|f| f.key == d.key)).collect();
        found.extend(gone.into_iter().map(|Self { key, was, now }| Self { key, was: now, now: was }));
        found
    }

    /// Whether a key that may change is this one, or the table that it is in.
    pub(crate) fn is_named(&self, key: &str) -> bool {
        let whole = key.contains('.') || !matches!(key, "model" | "data" | "train");
        self.key.strip_prefix(key).is_some_and(|rest| rest.is_empty() || rest.starts_with('.') && whole)
    }
}

fn pointer(key: &str) -> String {
    format!("/{}", key.replace('.', "/"))
}

/// The value of a key in a configuration.
pub(crate) fn lookup<'a>(config: &'a Value, key: &str) -> Option<&'a Value> {
    config.pointer(&pointer(key))
}

/// The configuration as a value.
pub(crate) fn value_of<T: Task>(config: &ConfigOf<T>) -> Result<Value> {
    serde_json::to_value(config).map_err(|e| Error::Run(format!("the configuration: {e}")))
}

/// Leaves out of a file's configuration which further files it was trained with: a file that may be anybody's does not decide what is opened.
pub fn without_places(config: &mut Value) {
    for key in PLACES.into_iter().filter(|key| *key != PLACES[0]) {
        if let Some(Value::String(path)) = config.pointer_mut(&pointer(key)) {
            path.clear();
        }
    }
}

/// What weights say about themselves.
pub(crate) fn description<T: Task>(task: &T, config: &ConfigOf<T>) -> Result<Description> {
    let mut config = value_of::<T>(config)?;
    without_folders(&mut config);
    // Nor does it matter to them how fast they came to be: the same weights are the same bytes.
    for (key, value) in config["train"].as_object_mut().into_iter().flatten() {
        if TrainConfig::effect(key) == Effect::Speed {
            *value = if value.is_boolean() { false.into() } else { 0.into() };
        }
    }
    Ok(Description { model: T::NAME.into(), config, fitted: task.fitted() })
}

/// What has to stay the same over the whole run.
pub(crate) fn on_record<T: Task>(task: &T, config: &ConfigOf<T>) -> Result<Value> {
    Ok(json!({ "model": T::NAME, "config": description(task, config)?.config, "data": task.fingerprint() }))
}

/// What differs between two such records of runs of `T`, but for what has no effect on the result of the run now.
pub(crate) fn differences<T: Task>(before: &Value, now: &Value, config: &ConfigOf<T>) -> Result<Vec<Difference>> {
    let defaults: ConfigOf<T> = Config {
        model: T::Architecture::default(),
        data: T::Data::default(),
        train: TrainConfig::default(),
        task: T::Settings::default(),
    };
    let mut found = vec![];
    let then = migrate(before["config"].clone())?;
    differing("", &then, &now["config"], &value_of::<T>(&defaults)?, &mut found);
    let TrainConfig { on_nonfinite, on_critical, .. } = &config.train;
    let repairs = T::repair(config).is_some();
    let rolls_back = *on_nonfinite == OnNonFinite::Rollback || *on_critical == OnCritical::Rollback;
    let matters = |key: &str| match key.strip_prefix("train.").map(TrainConfig::effect) {
        Some(Effect::Files | Effect::Speed) => false,
        Some(Effect::Rollback) => rolls_back,
        Some(Effect::Health) => repairs || *on_critical != OnCritical::Tell,
        Some(Effect::Result) => true,
        // Where the data lie is no change; what they are is told by their fingerprint.
        None => !PLACES.contains(&key),
    };
    found.retain(|d| matters(&d.key));
    if before["data"] != now["data"] {
        let (was, now) = ("some samples".into(), "others".into());
        found.push(Difference { key: "data".into(), was, now });
    }
    Ok(found)
}

/// Tells the data and settings apart that decide what a model collects; where a file lies does not. (The key is called `ppo` in
/// all records so far.)
pub(crate) fn origin<T: Task>(task: &T, config: &ConfigOf<T>, settings: Value) -> Result<String> {
    let mut data = value_of::<T>(config)?["data"].take();
    data["path"] = Value::Null;
    // A text that is empty says nothing; keys that came after 0.1 begin so, and change no origin.
    const OF_0_1: [&str; 2] = ["column", "date_column"];
    if let Value::Object(data) = &mut data {
        data.retain(|key, value| value != "" || OF_0_1.contains(&key.as_str()));
    }
    let all = json!({ "data": data, "ppo": settings, "samples": task.fingerprint() });
    Ok(zoo_checkpoint::sha256_of(all.to_string().as_bytes()))
}

/// The keys of `now`, by their path, that have other values in `before`. A key that was not there yet had its default.
fn differing(path: &str, before: &Value, now: &Value, defaults: &Value, found: &mut Vec<Difference>) {
    let before = if before.is_null() { defaults } else { before };
    if let Value::Object(table) = now {
        for (key, value) in table {
            let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
            differing(&path, &before[key], value, &defaults[key], found);
        }
    } else if before != now {
        found.push(Difference { key: path.to_string(), was: before.to_string(), now: now.to_string() });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_that_one_of_two_configurations_lacks_differ_whichever_comes_first() {
        let muon = json!({ "train": { "lr": 1, "optimizer": { "kind": "muon", "momentum": 0.9, "nesterov": true } } });
        let adam = json!({ "train": { "lr": 1, "optimizer": { "kind": "adam", "beta1": 0.9 } } });
        let told = |was: &Value, now: &Value| {
            let mut all: Vec<String> = Difference::between(was, now).iter().map(Difference::to_string).collect();
            all.sort();
            all
        };
        let expected = [
            "train.optimizer.beta1: null then, 0.9 now",
            "train.optimizer.kind: \"muon\" then, \"adam\" now",
            "train.optimizer.momentum: 0.9 then, null now",
            "train.optimizer.nesterov: true then, null now",
        ];
        assert_eq!(told(&muon, &adam), expected);
        assert_eq!(told(&adam, &muon).len(), 4);
        assert!(told(&adam, &adam).is_empty());
    }
}
