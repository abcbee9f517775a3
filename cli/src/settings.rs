//! Configurations from arguments, files and run directories.

use std::path::Path;

use toml::Table;
use zoo_layers::{Outlined, Params};
use zoo_training::config::{ConfigFile, ConfigOf, Overrides, changed, resolve};
use zoo_training::{Recipe, RunFiles};

use crate::arguments::{Settings, Values};
use crate::output::remark;

/// Says of a file that keys in it were renamed.
fn noted(file: ConfigFile) -> ConfigFile {
    file.note().iter().for_each(remark);
    file
}

/// Defaults, preset, file and settings, with values on top.
pub(crate) fn configured<T: Recipe>(settings: &Settings, values: Values) -> anyhow::Result<ConfigOf<T>> {
    let file = settings.config.as_deref().map(ConfigFile::read).transpose()?.map(noted);
    let over =
        Overrides { preset: settings.preset.as_deref(), file: file.as_ref(), set: &settings.set, values: values.0 };
    Ok(resolve::<T>(&over)?)
}

/// Whether the data of a task come from a path.
pub(crate) fn has_path<T: Recipe>(config: &ConfigOf<T>) -> anyhow::Result<bool> {
    Ok(toml::Table::try_from(&config.data)?.contains_key("path"))
}

/// `[data]` of a configuration with settings and values over it.
pub(crate) fn changed_source<T: Recipe>(
    config: &ConfigOf<T>,
    set: &[String],
    values: Values,
) -> anyhow::Result<T::Data> {
    Ok(changed::<T>(config, &Overrides { set, values: values.0, ..Overrides::default() })?.data)
}

/// The configuration in a run directory, with settings and values on top.
pub(crate) fn run_config<T: Recipe>(run: &Path, set: &[String], values: Values) -> anyhow::Result<ConfigOf<T>> {
    let file = noted(RunFiles::at(run).read_config()?);
    Ok(resolve::<T>(&Overrides { file: Some(&file), set, values: values.0, ..Overrides::default() })?)
}

/// The configuration in a run directory as it is, whatever model it is of.
pub(crate) fn run_tables(run: &Path) -> anyhow::Result<Table> {
    Ok(RunFiles::at(run).read_config()?.tables)
}

/// A model's parameters, without values.
pub(crate) fn outline<T: Recipe>(config: &ConfigOf<T>) -> anyhow::Result<Vec<Outlined>> {
    let mut all = Params::outline(|vb| T::build(&config.model, vb))?;
    all.iter_mut().for_each(|p| p.trainable &= T::trains(&config.model, &p.name));
    Ok(all)
}
