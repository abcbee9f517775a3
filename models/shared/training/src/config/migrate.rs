//! Keys that had other names before.

use serde_json::Value as Json;
use toml::{Table, Value};

use crate::{Error, Result};

/// Keys of `[train]` in 0.1 that are constants of an optimizer, with the kinds that have them.
const OF_OPTIMIZERS: [(&str, &[&str]); 6] = [
    ("beta1", &["adamw", "adam", "muon"]),
    ("beta2", &["adamw", "adam", "muon", "rmsprop"]),
    ("eps", &["adamw", "adam", "muon", "rmsprop"]),
    ("momentum", &["sgd", "rmsprop", "muon"]),
    ("nesterov", &["sgd"]),
    ("weight_decay", &["adamw", "adam", "sgd", "rmsprop", "muon"]),
];
/// Switches of `[train]` in 0.1 that are a task's own now.
const OF_REPAIR: [&str; 2] = ["revive_attention", "pooling_nudge"];

/// The name that a key of 0.1 has today, if it was renamed.
pub(super) fn renamed(key: &str) -> Option<String> {
    let rest = key.strip_prefix("train.")?;
    let first = rest.split('.').next().unwrap_or_default();
    match () {
        () if OF_OPTIMIZERS.iter().any(|(old, _)| *old == rest) => Some(format!("train.optimizer.{rest}")),
        () if OF_REPAIR.contains(&rest) => Some(format!("repair.{rest}")),
        () if first == "ppo" => Some(rest.to_string()),
        () => None,
    }
}

/// Gives the keys of a configuration that 0.1 wrote their names of today; those that it renamed.
pub(super) fn migrate_table(config: &mut Table) -> Vec<String> {
    let mut moved = vec![];
    let Some(Value::Table(train)) = config.get_mut("train") else { return moved };
    let kind = train.get("optimizer").and_then(Value::as_str).map(String::from);
    let mut optimizer = Table::new();
    if let Some(kind) = &kind {
        optimizer.insert("kind".into(), kind.clone().into());
    }
    for (key, kinds) in OF_OPTIMIZERS {
        let Some(value) = train.remove(key) else { continue };
        moved.push(format!("train.{key}"));
        // What the kind at hand does not have had no effect.
        if kind.as_deref().is_none_or(|kind| kinds.contains(&kind)) {
            let key = if (kind.as_deref(), key) == (Some("rmsprop"), "beta2") { "alpha" } else { key };
            optimizer.insert(key.into(), value);
        }
    }
    if !moved.is_empty() {
        // In the place of the name, which stands at the head of its constants now.
        train.insert("optimizer".into(), Value::Table(optimizer));
    }
    let mut repair = Table::new();
    for key in OF_REPAIR {
        let Some(value) = train.remove(key) else { continue };
        moved.push(format!("train.{key}"));
        // Most tasks have nothing to switch on.
        if value != Value::Boolean(false) {
            repair.insert(key.into(), value);
        }
    }
    if let Some(ppo) = train.remove("ppo") {
        moved.push("train.ppo".into());
        config.insert("ppo".into(), ppo);
    }
    if !repair.is_empty() {
        config.insert("repair".into(), Value::Table(repair));
    }
    moved
}

/// Gives the keys of a configuration that 0.1 wrote, as a checkpoint or a record has it, their names of today.
///
/// # Errors
/// A configuration that TOML could not express.
pub fn migrate(config: Json) -> Result<Json> {
    let Some(train) = config.get("train") else { return Ok(config) };
    let of_old = |key: &str| train.get(key).is_some();
    if !OF_OPTIMIZERS.iter().map(|(key, _)| *key).chain(OF_REPAIR).chain(["ppo"]).any(of_old) {
        return Ok(config);
    }
    let wrong = |e: &dyn std::fmt::Display| Error::Run(format!("the configuration: {e}"));
    let mut table: Table = serde_json::from_value(config).map_err(|e| wrong(&e))?;
    migrate_table(&mut table);
    serde_json::to_value(table).map_err(|e| wrong(&e))
}
