//! Groups of arguments that several verbs share, and flags that the models bring.

use std::path::{Path, PathBuf};

use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Args, Command};
use serde::Deserialize;
use toml::{Table, Value};
use zoo_checkpoint::is_stream;
use zoo_layers::ops::autocast;
use zoo_training::config::ComputeType;
use zoo_training::{Error, Flag, with_products};

/// A preset, a file over it, and single settings over both.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct Settings {
    /// A named set of settings
    #[arg(long, value_name = "NAME")]
    pub(crate) preset: Option<String>,
    /// A TOML file over the preset
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// One setting over everything else, such as train.lr=3e-4
    #[arg(long, value_name = "KEY=VALUE")]
    pub(crate) set: Vec<String>,
}

/// The name of a model, and its flags that were given.
#[derive(Args, Clone, Debug)]
pub(crate) struct ModelName {
    /// The model (the verb list shows them)
    pub(crate) model: String,
    #[arg(skip)]
    pub(crate) flags: Values,
}

/// Trained weights.
#[derive(Args, Clone, Debug)]
pub(crate) struct Checkpoint {
    /// Weights, or a run directory (its best weights)
    #[arg(long, value_name = "FILE|RUN")]
    pub(crate) checkpoint: PathBuf,
}

/// Where to compute.
#[derive(Args, Clone, Debug)]
pub(crate) struct DeviceName {
    /// Where to compute: cpu, cuda, cuda:N or metal
    #[arg(long, value_name = "DEVICE", default_value = "cpu")]
    pub(crate) device: String,
}

/// What the ops compute in.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct Precision {
    /// What the ops compute in: f32, tf32 (CUDA), bf16 or f16
    #[arg(long, value_name = "TYPE", default_value = "f32", value_parser = compute_type)]
    pub(crate) dtype: ComputeType,
}

fn compute_type(name: &str) -> Result<ComputeType, String> {
    ComputeType::deserialize(Value::from(name)).map_err(|_| "expected f32, tf32, bf16 or f16".into())
}

impl Precision {
    /// Runs `f` with ops in this type.
    pub(crate) fn run<R>(self, f: impl FnOnce() -> R) -> R {
        with_products(self.dtype, || autocast(self.dtype.compute(), f))
    }
}

/// Whether results may take the place of files.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct Force {
    /// Replace files that are there
    #[arg(long)]
    pub(crate) force: bool,
}

impl Force {
    /// Refuses the name of a result that a file has already. What is written to as it is, such as a pipe, is always free.
    pub(crate) fn check<'a>(self, outputs: impl IntoIterator<Item = &'a Path>) -> anyhow::Result<()> {
        for path in outputs.into_iter().filter(|path| !self.force && !is_stream(path)) {
            // A link counts, wherever it leads.
            if std::fs::symlink_metadata(path).is_ok_and(|found| !found.is_dir()) {
                let path = path.display();
                return Err(
                    Error::Usage(format!("{path} is already there: replace it by --force, or name another")).into()
                );
            }
        }
        Ok(())
    }

    /// Writes a result, unless a file has its name by now.
    pub(crate) fn write(self, output: &Path, content: &[u8]) -> anyhow::Result<()> {
        self.check([output])?;
        Ok(zoo_checkpoint::replace(output, |f| f.write_all(content))?)
    }
}

/// Whether a machine reads the result.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct Json {
    /// Print one JSON document
    #[arg(long)]
    pub(crate) json: bool,
}

/// Typed values by table and key.
#[derive(Clone, Debug, Default)]
pub(crate) struct Values(pub(crate) Table);

impl Values {
    /// Sets `key`, such as `train.steps`.
    pub(crate) fn set(&mut self, key: &str, value: impl Into<Value>) {
        let (mut table, mut parts) = (&mut self.0, key.split('.').peekable());
        while let Some(part) = parts.next() {
            if parts.peek().is_none() {
                table.insert(part.into(), value.into());
                return;
            }
            let inner = table.entry(part).or_insert_with(|| Table::new().into());
            match inner {
                Value::Table(inner) => table = inner,
                // A value stands where a table would have to.
                _ => return,
            }
        }
    }

    fn get(&self, key: &str) -> Option<&Value> {
        let mut parts = key.split('.');
        let first = parts.next().and_then(|part| self.0.get(part));
        parts.fold(first, |value, part| value?.get(part))
    }

    /// Whether `key` is set.
    pub(crate) fn has(&self, key: &str) -> bool {
        self.get(key).is_some()
    }

    /// The text that `key` is set to.
    pub(crate) fn text(&self, key: &str) -> Option<String> {
        self.get(key)?.as_str().map(String::from)
    }

    /// Sets a whole number, if there is one.
    pub(crate) fn set_count(&mut self, key: &str, value: Option<u64>) -> anyhow::Result<()> {
        if let Some(value) = value {
            let number = i64::try_from(value)
                .map_err(|_| Error::Usage(format!("{key} = {value}: at most {} is possible", i64::MAX)))?;
            self.set(key, number);
        }
        Ok(())
    }

    /// Sets a path.
    pub(crate) fn set_path(&mut self, key: &str, path: &Path) -> anyhow::Result<()> {
        let text = path.to_str().ok_or_else(|| {
            Error::Usage(format!("{}: the name is not UTF-8, and cannot be kept in a configuration", path.display()))
        })?;
        self.set(key, text);
        Ok(())
    }

    /// Sets a path so that it is found from anywhere.
    pub(crate) fn set_whole_path(&mut self, key: &str, path: &Path) -> anyhow::Result<()> {
        self.set_path(key, &std::path::absolute(path).unwrap_or(path.to_path_buf()))
    }

    /// Takes one of the tables out.
    pub(crate) fn take(&mut self, table: &str) -> Table {
        match self.0.remove(table) {
            Some(Value::Table(values)) => values,
            _ => Table::new(),
        }
    }
}

/// A model's name and its flags.
pub(crate) type Flags<'a> = (&'a str, Vec<Flag>);

/// Adds the flags of all models to a verb, each under the names of the models that have it.
pub(crate) fn add_flags(mut command: Command, models: &[Flags]) -> Command {
    let mut seen: Vec<&str> = vec![];
    for flag in models.iter().flat_map(|(_, flags)| flags) {
        // What the verb has itself is not added again.
        if seen.contains(&flag.name) || command.get_arguments().any(|a| a.get_long() == Some(flag.name)) {
            continue;
        }
        seen.push(flag.name);
        let arg = Arg::new(id(flag.name)).long(flag.name).help(flag.help);
        let arg = arg.help_heading(format!("Options of {}", owners(models, flag.name).join(" and ")));
        command = command.arg(match flag.value {
            Some(value) => arg.value_name(value).allow_negative_numbers(true),
            None => arg.action(ArgAction::SetTrue),
        });
    }
    command
}

/// Apart from the ids of a verb's own arguments, which a model's flag may be called like.
fn id(flag: &str) -> String {
    format!("flag.{flag}")
}

fn owners<'a>(models: &[Flags<'a>], flag: &str) -> Vec<&'a str> {
    models.iter().filter(|(_, flags)| flags.iter().any(|f| f.name == flag)).map(|(name, _)| *name).collect()
}

/// The flags that were given, as values of their keys.
///
/// # Errors
/// One that the model does not have.
pub(crate) fn given_flags(matches: &ArgMatches, models: &[Flags], model: &str) -> anyhow::Result<Values> {
    let mut values = Values::default();
    let Some((_, own)) = models.iter().find(|(name, _)| *name == model) else { return Ok(values) };
    let mut names: Vec<&str> = models.iter().flat_map(|(_, flags)| flags).map(|f| f.name).collect();
    names.sort_unstable();
    names.dedup();
    for name in names {
        let id = id(name);
        if matches.try_contains_id(&id).is_err() || matches.value_source(&id) != Some(ValueSource::CommandLine) {
            continue;
        }
        let Some(flag) = own.iter().find(|f| f.name == name) else {
            let owners = owners(models, name).join(" and ");
            return Err(Error::Usage(format!("{model} has no flag --{name}: it is one of {owners}")).into());
        };
        match matches.try_get_one::<String>(&id) {
            Ok(Some(text)) if flag.value.is_some() => values.set(flag.key, text.as_str()),
            _ => values.set(flag.key, true),
        }
    }
    Ok(values)
}
