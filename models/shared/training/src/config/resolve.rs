//! Defaults < preset < file < `key=value` < typed values, with unknown keys and wrong types refused.

use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;
use toml::{Table, Value};
use zoo_layers::nearest;

use super::migrate::{migrate_table, renamed};
use super::{Config, ConfigOf, OptimizerConfig, Settings};
use crate::{Error, Recipe, Result};

/// A configuration file, in today's names.
#[derive(Clone, Debug)]
pub struct ConfigFile {
    /// What it is called in messages.
    pub name: String,
    /// Its tables.
    pub tables: Table,
    /// Keys in it that have other names by now, and those.
    pub renamed: Vec<(String, String)>,
}

impl ConfigFile {
    /// Reads a file.
    ///
    /// # Errors
    /// It cannot be read, or is not TOML.
    pub fn read(path: &Path) -> Result<Self> {
        let bytes = zoo_checkpoint::bytes_of(path, "a configuration in TOML", crate::run::LONGEST_TEXT)?;
        let name = path.display().to_string();
        let text = String::from_utf8(bytes).map_err(|_| Error::Usage(format!("{name}: it is not UTF-8")))?;
        Self::parse(&text, &name)
    }

    /// The file of that name with this text.
    ///
    /// # Errors
    /// It is not TOML.
    pub fn parse(text: &str, name: &str) -> Result<Self> {
        let mut tables = parse(text, name)?;
        let renamed = migrate_table(&mut tables);
        Ok(Self { name: name.into(), tables, renamed })
    }

    /// One line on keys that were renamed, if there are any.
    pub fn note(&self) -> Option<String> {
        let Self { name, renamed: keys, .. } = self;
        let pairs: Vec<String> = keys.iter().map(|(key, now)| format!("{key} is {now} now")).collect();
        (!keys.is_empty()).then(|| format!("{name}: written by zoo 0.1, read by its new names: {}", pairs.join(", ")))
    }
}

/// What is laid over a task's defaults: each over those before it.
#[derive(Clone, Debug, Default)]
pub struct Overrides<'a> {
    /// Name of a preset; the first if absent.
    pub preset: Option<&'a str>,
    /// A file.
    pub file: Option<&'a ConfigFile>,
    /// `key=value` settings, later ones winning.
    pub set: &'a [String],
    /// Typed values, by table and key.
    pub values: Table,
}

/// Resolves a task's configuration: its defaults, then preset, file, settings and values.
///
/// # Errors
/// An unknown preset or key (with the nearest name), a value of the wrong type, or numbers that cannot work.
pub fn resolve<T: Recipe>(over: &Overrides) -> Result<ConfigOf<T>> {
    let defaults = Config {
        model: T::Architecture::default(),
        data: T::Data::default(),
        train: T::training(),
        task: T::Settings::default(),
    };
    let mut base = table(&defaults)?;
    let preset = match over.preset {
        None => T::PRESETS.first(),
        Some(name) => Some(T::PRESETS.iter().find(|p| p.name == name).ok_or_else(|| {
            let names: Vec<_> = T::PRESETS.iter().map(|p| p.name).collect();
            Error::Usage(format!("{} has no preset {name}; it has {}", T::NAME, names.join(", ")))
        })?),
    };
    if let Some(preset) = preset {
        overlay(&mut base, parse(preset.toml, preset.name)?, &format!("preset {}", preset.name), Text::Plain)?;
    }
    lay_over(&mut base, over)?;
    valid(typed(base)?)
}

/// A configuration with more laid over it (a preset of `over` is not looked at).
///
/// # Errors
/// As [`resolve`].
pub fn changed<T: Recipe>(config: &ConfigOf<T>, over: &Overrides) -> Result<ConfigOf<T>> {
    let mut base = table(config)?;
    lay_over(&mut base, over)?;
    valid(typed(base)?)
}

/// Values laid over the defaults of `C`, such as the options of a prediction; messages name their keys behind `table`.
///
/// # Errors
/// An unknown key, or a value of the wrong type.
pub fn overlaid<C: Serialize + DeserializeOwned + Default>(values: Table, table: &str) -> Result<C> {
    let mut base = Table::from_iter([(table.to_string(), Value::Table(self::table(&C::default())?))]);
    overlay(&mut base, Table::from_iter([(table.to_string(), Value::Table(values))]), "", Text::Spells)?;
    match base.remove(table) {
        Some(Value::Table(values)) => typed(values),
        _ => typed(Table::new()),
    }
}

fn valid<M, D, S: Settings>(config: Config<M, D, S>) -> Result<Config<M, D, S>> {
    config.train.validate()?;
    config.task.validate(&config.train)?;
    Ok(config)
}

fn lay_over(base: &mut Table, over: &Overrides) -> Result<()> {
    if let Some(file) = over.file {
        let mut tables = file.tables.clone();
        // Every task had these switches in 0.1, and most nothing that they switched.
        for (_, now) in file.renamed.iter().filter(|(_, now)| now.starts_with("repair.")) {
            let key = now.trim_start_matches("repair.");
            let there = base.get("repair").and_then(|table| table.get(key)).is_some();
            if let (Some(Value::Table(repair)), false) = (tables.get_mut("repair"), there) {
                repair.remove(key);
            }
        }
        if !base.contains_key("repair") && tables.get("repair") == Some(&Value::Table(Table::new())) {
            tables.remove("repair");
        }
        overlay(base, tables, &file.name, Text::Plain)?;
    }
    for setting in over.set {
        let (upper, text) = assignment(setting)?;
        overlay(base, upper, setting, Text::Was(text))?;
    }
    overlay(base, over.values.clone(), "", Text::Spells)
}

fn table(value: &impl Serialize) -> Result<Table> {
    Table::try_from(value).map_err(|e| Error::Usage(format!("the defaults are not a table: {e}")))
}

fn typed<C: DeserializeOwned>(table: Table) -> Result<C> {
    // The long form of the error, which names the key.
    table.try_into().map_err(|e: toml::de::Error| Error::Usage(one_line(&e.to_string())))
}

fn one_line(message: &str) -> String {
    let line = message.split_whitespace().collect::<Vec<_>>().join(" ");
    // Users need not know Rust's types.
    ["usize", "u64", "u32"]
        .iter()
        .fold(line, |line, t| line.replace(&format!("expected {t}"), "expected a whole number, zero or more"))
}

fn parse(text: &str, name: &str) -> Result<Table> {
    text.parse().map_err(|e: toml::de::Error| {
        let line = e.span().map_or(1, |s| text[..s.start.min(text.len())].matches('\n').count() + 1);
        Error::Usage(format!("{name}: line {line}: {}", one_line(e.message())))
    })
}

/// `train.lr=3e-4` as nested tables, and the text of the value, which stands where it is not TOML.
fn assignment(setting: &str) -> Result<(Table, &str)> {
    let Some((key, text)) = setting.split_once('=') else {
        return Err(Error::Usage(format!("{setting}: expected key=value, such as train.lr=3e-4")));
    };
    let parsed = format!("v = {text}").parse::<Table>().ok().and_then(|mut t| t.remove("v"));
    let mut value = parsed.unwrap_or_else(|| Value::String(text.to_string()));
    let mut parts: Vec<&str> = key.trim().split('.').collect();
    let first = parts.remove(0);
    for part in parts.into_iter().rev() {
        value = Value::Table(Table::from_iter([(part.to_string(), value)]));
    }
    Ok((Table::from_iter([(first.to_string(), value)]), text))
}

/// What text is where a key takes another type.
#[derive(Clone, Copy)]
enum Text<'a> {
    /// Text, which is refused.
    Plain,
    /// The reading of this, which a key that takes text gets as it is.
    Was(&'a str),
    /// The spelling of a value: what a flag takes is text.
    Spells,
}

/// Puts `upper` over `base`, which holds every key there is.
fn overlay(base: &mut Table, upper: Table, origin: &str, text: Text) -> Result<()> {
    let mut known = vec![];
    paths(base, "", &mut known);
    merge(base, upper, "", &Origin { name: origin, text, known })
}

struct Origin<'a> {
    name: &'a str,
    text: Text<'a>,
    known: Vec<String>,
}

fn paths(table: &Table, prefix: &str, known: &mut Vec<String>) {
    for (key, value) in table {
        match value {
            Value::Table(inner) => paths(inner, &format!("{prefix}{key}."), known),
            _ => known.push(format!("{prefix}{key}")),
        }
    }
}

/// The table whose keys depend on its `kind`.
const TAGGED: &str = "train.optimizer";

/// Makes the table at [`TAGGED`] one of another kind: what both kinds have stays.
fn switch_kind(table: &mut Table, kind: &Value) -> std::result::Result<(), String> {
    let chosen: Result<OptimizerConfig> = typed(Table::from_iter([("kind".to_string(), kind.clone())]));
    let others = chosen.and_then(|chosen| self::table(&chosen));
    let mut others = others.map_err(|e| format!("{TAGGED} = {kind}: {e}"))?;
    for (key, value) in others.iter_mut().filter(|(key, _)| *key != "kind") {
        // RMSprop calls the decay of its second moment so.
        let other_name = match key.as_str() {
            "alpha" => "beta2",
            "beta2" => "alpha",
            key => key,
        };
        let before = table.get(key).or_else(|| table.get(other_name));
        if let Some(before) = before.filter(|b| b.same_type(value)) {
            *value = before.clone();
        }
    }
    *table = others;
    Ok(())
}

fn merge(base: &mut Table, upper: Table, prefix: &str, origin: &Origin) -> Result<()> {
    for (key, value) in upper {
        let path = format!("{prefix}{key}");
        let from = if origin.name.is_empty() { String::new() } else { format!("{}: ", origin.name) };
        let fail = |message: String| Err(Error::Usage(format!("{from}{message}")));
        let Some(slot) = base.get_mut(&key) else {
            return fail(unknown(base, &deepest(path, &value), prefix, &origin.known));
        };
        match (slot, value) {
            // The name of a kind stands for its table.
            (Value::Table(base), kind @ Value::String(_)) if path == TAGGED => {
                switch_kind(base, &kind).or_else(fail)?
            }
            (Value::Table(base), Value::Table(mut upper)) => {
                if path == TAGGED
                    && let Some(kind) = upper.remove("kind")
                {
                    switch_kind(base, &kind).or_else(fail)?;
                }
                merge(base, upper, &format!("{path}."), origin)?;
            }
            (Value::Float(f), Value::Integer(i)) => *f = i as f64,
            (slot, value) if slot.same_type(&value) => *slot = value,
            (slot, value) => match (slot, origin.text, read(&value)) {
                (Value::String(s), Text::Was(text), _) => *s = text.to_string(),
                (slot, Text::Spells, Some(read)) if slot.same_type(&read) => *slot = read,
                (Value::Float(f), Text::Spells, Some(Value::Integer(i))) => *f = i as f64,
                (slot, ..) => return fail(format!("{path} takes {}, got {value}", kind(slot))),
            },
        }
    }
    Ok(())
}

/// The value that a text spells, if it does.
fn read(value: &Value) -> Option<Value> {
    format!("v = {}", value.as_str()?).parse::<Table>().ok()?.remove("v")
}

/// The path of the first value in `value`, which stands at `path`.
fn deepest(path: String, value: &Value) -> String {
    match value.as_table().and_then(|table| table.iter().next()) {
        Some((key, inner)) => deepest(format!("{path}.{key}"), inner),
        None => path,
    }
}

/// What keys are called here that PyTorch, Lightning, Hugging Face or nanoGPT call otherwise, the likelier first.
pub fn synonyms(name: &str) -> impl Iterator<Item = &'static str> {
    const NAMES: [(&str, &[&str]); 23] = [
        ("lr", &["learning_rate", "max_lr", "base_lr"]),
        ("clip_norm", &["grad_clip", "max_grad_norm", "gradient_clip_val", "clip_grad", "clip_grad_norm", "clip"]),
        ("batch_size", &["batch", "bs", "per_device_train_batch_size", "train_batch_size"]),
        ("layers", &["n_layers", "n_layer", "num_layers", "num_hidden_layers", "depth"]),
        ("heads", &["n_heads", "n_head", "num_heads", "num_attention_heads", "nhead"]),
        ("width", &["n_embd", "hidden_size", "d_model", "embed_dim", "embedding_dim", "dim", "n_embed"]),
        ("hidden", &["intermediate_size", "dim_feedforward", "ffn_dim", "d_ff", "hidden_size", "hidden_dim"]),
        ("context", &["block_size", "seq_len", "max_seq_len", "context_length", "max_position_embeddings"]),
        ("window", &["seq_len", "sequence_length", "lookback"]),
        ("vocabulary", &["vocab_size", "vocab"]),
        ("dropout", &["dropout_rate", "drop", "resid_pdrop"]),
        ("steps", &["max_iters", "max_steps", "num_steps", "n_steps", "iterations", "iters"]),
        ("epochs", &["num_epochs", "max_epochs", "n_epochs", "num_train_epochs", "epoch"]),
        ("warmup_steps", &["warmup", "warmup_iters", "num_warmup_steps"]),
        ("weight_decay", &["wd", "decay"]),
        ("accumulate", &["accumulate_grad_batches", "gradient_accumulation_steps", "grad_accum", "accum"]),
        ("seed", &["random_seed", "manual_seed"]),
        ("early_stopping", &["patience"]),
        ("eval_every", &["eval_interval", "eval_steps", "val_check_interval", "eval_freq"]),
        ("log_every", &["log_interval", "logging_steps", "log_every_n_steps"]),
        ("checkpoint_every", &["save_steps", "save_every", "save_interval", "checkpoint_interval"]),
        ("dtype", &["precision", "mixed_precision", "amp"]),
        ("kind", &["optim", "optimizer_name"]),
    ];
    NAMES.into_iter().filter(move |(_, others)| others.contains(&name)).map(|(ours, _)| ours)
}

/// What to say of a key that is not there.
fn unknown(table: &Table, path: &str, prefix: &str, known: &[String]) -> String {
    match renamed(path) {
        Some(now) if known.contains(&now) => return format!("unknown key {path}: it is {now} now"),
        Some(now) if now.starts_with(TAGGED) => {
            let keys: Vec<&str> = known.iter().filter(|k| k.starts_with(TAGGED)).map(String::as_str).collect();
            return format!("unknown key {path}: constants of the optimizer are {} now", keys.join(", "));
        }
        _ => {}
    }
    // A key given without its table, such as lr for train.lr, is the likeliest slip.
    let ends = |name: &str| known.iter().find(|k| k.ends_with(&format!(".{name}"))).map(String::as_str);
    let last = path.rsplit('.').next().unwrap_or(path);
    match ends(path)
        .or_else(|| synonyms(last).find_map(ends))
        .or_else(|| nearest(path, known.iter().map(String::as_str)))
    {
        _ if prefix.strip_suffix('.') == Some(TAGGED) => {
            let keys: Vec<&str> = table.keys().map(String::as_str).filter(|k| *k != "kind").collect();
            let kind = table.get("kind").and_then(Value::as_str).unwrap_or_default();
            format!("unknown key {path}: {kind} has {}", keys.join(", "))
        }
        Some(hint) => format!("unknown key {path} (did you mean {hint}?)"),
        None => {
            let (at, keys) = (prefix.trim_end_matches('.'), table.keys().map(String::as_str).collect::<Vec<_>>());
            let at = if at.is_empty() { "the configuration" } else { at };
            format!("unknown key {path}: {at} has {}", keys.join(", "))
        }
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::String(_) => "text",
        Value::Integer(_) => "a whole number",
        Value::Float(_) => "a number",
        Value::Boolean(_) => "true or false",
        Value::Datetime(_) => "a date",
        Value::Array(_) => "a list",
        Value::Table(_) => "a table",
    }
}

/// The whole configuration as TOML.
///
/// # Errors
/// A value that TOML cannot express.
pub fn to_toml<M: Serialize, D: Serialize, S: Serialize>(config: &Config<M, D, S>) -> Result<String> {
    toml::to_string(config).map_err(|e| Error::Usage(format!("the configuration is not expressible as TOML: {e}")))
}
