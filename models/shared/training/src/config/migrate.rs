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

/// Gives the keys of a configuration that 0.1 wrote their names of today; the old and new names of those that it renamed.
/// Where both names are there, the new one stands.
pub(super) fn migrate_table(config: &mut Table) -> Vec<(String, String)> {
    let mut moved = vec![];
    let Some(Value::Table(train)) = config.get_mut("train") else { return moved };
    let mut optimizer = match train.get("optimizer") {
        Some(Value::Table(optimizer)) => optimizer.clone(),
        Some(Value::String(kind)) => Table::from_iter([("kind".to_string(), kind.clone().into())]),
        _ => Table::new(),
    };
    let kind = optimizer.get("kind").and_then(Value::as_str).map(String::from);
    let mut any = false;
    for (key, kinds) in OF_OPTIMIZERS {
        let Some(value) = train.remove(key) else { continue };
        any = true;
        // What the kind at hand does not have had no effect.
        if kind.as_deref().is_none_or(|kind| kinds.contains(&kind)) {
            let now = if (kind.as_deref(), key) == (Some("rmsprop"), "beta2") { "alpha" } else { key };
            moved.push((format!("train.{key}"), format!("train.optimizer.{now}")));
            optimizer.entry(now).or_insert(value);
        }
    }
    if any {
        // In the place of the name, which stands at the head of its constants now.
        train.insert("optimizer".into(), Value::Table(optimizer));
    }
    let mut repair = Table::new();
    for key in OF_REPAIR {
        let Some(value) = train.remove(key) else { continue };
        // Most tasks have nothing to switch on.
        if value != Value::Boolean(false) {
            moved.push((format!("train.{key}"), format!("repair.{key}")));
            repair.insert(key.into(), value);
        }
    }
    if let Some(Value::Table(ppo)) = train.remove("ppo") {
        moved.push(("train.ppo".into(), "ppo".into()));
        add(config, "ppo", ppo);
    }
    if !repair.is_empty() {
        add(config, "repair", repair);
    }
    moved
}

/// Adds what a table of that name does not have yet.
fn add(config: &mut Table, name: &str, more: Table) {
    if let Value::Table(table) = config.entry(name).or_insert_with(|| Table::new().into()) {
        for (key, value) in more {
            table.entry(key).or_insert(value);
        }
    }
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
