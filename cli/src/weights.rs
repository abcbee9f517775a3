//! Trained weights: where they lie, and the model that they make.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use candle_core::Device;
use serde_json::Value;
use zoo_checkpoint::{Description, Source};
use zoo_layers::{Outlined, Params};
use zoo_training::config::{ConfigOf, migrate};
use zoo_training::{AsIs, Config, Error, Recipe, RunFiles, Task, without_places};

use crate::arguments::Values;
use crate::output::{remark, warn};
use crate::settings::{changed_source, outline, run_config};

/// The weights that a file or a folder stands for.
///
/// # Errors
/// They are a link in a run.
pub(crate) fn weights(path: &Path) -> anyhow::Result<PathBuf> {
    if !path.is_dir() {
        return Ok(path.to_path_buf());
    }
    let run = RunFiles::at(path);
    // Those of a run, then those that others put into a folder.
    const NAMES: [&str; 6] = [
        "model.safetensors",
        "model.safetensors.index.json",
        "adapter_model.safetensors",
        "adapter_model.bin",
        "pytorch_model.bin",
        "pytorch_model.bin.index.json",
    ];
    let ours = [run.best(), run.last()].into_iter();
    let found = ours.chain(NAMES.iter().map(|n| path.join(n))).find(|p| p.exists());
    // A run without weights yet lacks its last ones; any other folder is no checkpoint.
    let found = found.unwrap_or_else(|| if run.exist() { run.last() } else { path.to_path_buf() });
    if run.exist() && std::fs::symlink_metadata(&found).is_ok_and(|f| f.is_symlink()) {
        bail!("{}: it is a link: name the file that it leads to", found.display())
    }
    Ok(found)
}

/// The key of the weights that others stand over.
pub(crate) const BASE: &str = "data.base";

/// What a flag that names the weights that others stand over sets: a file, or a run's.
pub(crate) fn base_of(flag: Option<&Path>) -> anyhow::Result<Values> {
    let mut values = Values::default();
    if let Some(base) = flag {
        values.set_path(BASE, &weights(base)?)?;
    }
    Ok(values)
}

/// Where what weights stand over lies: a file that may be anybody's does not decide what is opened.
pub(crate) struct Places<'a> {
    /// What was named: weights, or a run, which knows where its files lay.
    pub(crate) checkpoint: &'a Path,
    /// What flags set.
    pub(crate) values: &'a Values,
    /// Settings as `KEY=VALUE`.
    pub(crate) set: &'a [String],
}

impl Places<'_> {
    /// Refuses a base that was named for weights that stand over none.
    fn are_of_no_use(&self, path: &Path) -> anyhow::Result<()> {
        if self.values.has(BASE) || self.set.iter().any(|set| set.starts_with(&format!("{BASE}="))) {
            return Err(Error::Usage(format!(
                "{BASE}: {} is a whole model, which stands over no other weights (an adapter is named by --checkpoint)",
                path.display()
            ))
            .into());
        }
        Ok(())
    }

    /// The weights that are stood over, if they are named.
    pub(crate) fn base<T: Recipe>(&self) -> anyhow::Result<Option<String>> {
        let data = serde_json::to_value(self.data::<T>()?)?;
        Ok(data["base"].as_str().filter(|base| !base.is_empty()).map(String::from))
    }

    /// The table `[data]` of the run, or the defaults, with what flags set over it.
    pub(crate) fn data<T: Recipe>(&self) -> anyhow::Result<T::Data> {
        if self.checkpoint.is_dir() && RunFiles::at(self.checkpoint).exist() {
            return Ok(run_config::<T>(self.checkpoint, self.set, self.values.clone())?.data);
        }
        let (model, data, task) = Default::default();
        changed_source::<T>(&Config { model, data, train: T::training(), task }, self.set, self.values.clone())
    }
}

/// A model that is used: of weights of ours, or of another program's as they are.
pub(crate) struct Usable<T: Recipe> {
    pub(crate) model: T::Model,
    pub(crate) config: ConfigOf<T>,
    pub(crate) fitted: Value,
    /// Whether another program wrote them, so that they do not say what they were trained on.
    pub(crate) foreign: bool,
}

impl<T: Recipe> Usable<T> {
    /// The model of weights, and their path.
    pub(crate) fn read(places: &Places, device: &Device) -> anyhow::Result<(Self, PathBuf)> {
        let mut path = weights(places.checkpoint)?;
        // A run that was killed before its first evaluation.
        let run = RunFiles::at(places.checkpoint);
        if let (true, false, Some((newest, step))) = (run.exist(), path.exists(), run.newest_weights()) {
            let shown = places.checkpoint.display();
            if step == 0 {
                bail!("{shown}: nothing was trained yet: its one checkpoint has the initial weights")
            }
            remark(format!("{shown}: it has no best weights yet; these are those of its checkpoint of step {step}"));
            path = newest;
        }
        let source = zoo_checkpoint::open(&path)?;
        Ok((Self::of(&source, places, device)?, path))
    }

    /// The model of an open checkpoint.
    pub(crate) fn of(source: &Source, places: &Places, device: &Device) -> anyhow::Result<Self> {
        if let Some(AsIs { model, architecture, data, fitted }) = T::of_foreign(source, device)? {
            places.are_of_no_use(&source.path)?;
            let task = <T as Task>::Settings::default();
            let config = Config { model: architecture, data, train: T::training(), task };
            return Ok(Self { model, config, fitted, foreign: true });
        }
        let Loaded { model, config, fitted, .. } = Loaded::<T>::of(source, places, device)?;
        Ok(Self { model, config, fitted, foreign: false })
    }
}

/// Whether a checkpoint holds what the model needs, as far as it is there: what weights stand over is not looked for.
///
/// # Errors
/// It does not.
pub(crate) fn fits<T: Recipe>(source: &Source) -> anyhow::Result<()> {
    let places = Places { checkpoint: &source.path, values: &Values::default(), set: &[] };
    if let Ok(Description { config, .. }) = Description::of(source, T::NAME)
        && let Ok(config) = serde_json::from_value::<ConfigOf<T>>(migrate(config)?)
    {
        let tensors: Vec<(&str, &[usize])> = source.tensors.iter().map(|t| (t.name.as_str(), &t.shape[..])).collect();
        let elsewhere = elsewhere::<T>(&config)?;
        if !elsewhere.is_empty() {
            let problems = mismatches::<T>(&config, &tensors, &elsewhere)?;
            return if problems.is_empty() { Ok(()) } else { bail!("{}", problems.join("; ")) };
        }
    }
    Usable::<T>::of(source, &places, &Device::Cpu).map(|_| ())
}

/// How many parameters a model has.
#[cfg(feature = "serve")]
pub(crate) fn parameters<T: Recipe>(config: &ConfigOf<T>) -> anyhow::Result<usize> {
    Ok(outline::<T>(config)?.iter().map(Outlined::count).sum())
}

/// The parameters of a model that its weights do not hold, as they stand over them.
pub(crate) fn elsewhere<T: Recipe>(config: &ConfigOf<T>) -> anyhow::Result<Vec<Outlined>> {
    let mut all = outline::<T>(config)?;
    all.retain(|p| !T::trains(&config.model, &p.name));
    Ok(all)
}

/// What is missing of a model's weights, has another shape, or is none of them, a line each.
pub(crate) fn mismatches<T: Recipe>(
    config: &ConfigOf<T>,
    tensors: &[(&str, &[usize])],
    elsewhere: &[Outlined],
) -> anyhow::Result<Vec<String>> {
    let names: HashSet<&str> = elsewhere.iter().map(|p| p.name.as_str()).collect();
    let twice = tensors.iter().filter(|(name, _)| names.contains(name));
    let mut problems: Vec<String> = twice.map(|(name, _)| format!("unexpected {name}")).collect();
    let present = tensors.iter().copied().chain(elsewhere.iter().map(|p| (p.name.as_str(), &p.shape[..])));
    problems.extend(Params::mismatches(present, |vb| T::build(&config.model, vb))?);
    Ok(problems)
}

/// Weights with what they say about themselves.
pub(crate) struct Loaded<T: Recipe> {
    pub(crate) model: T::Model,
    pub(crate) params: Params,
    pub(crate) config: ConfigOf<T>,
    pub(crate) fitted: Value,
}

impl<T: Recipe> Loaded<T> {
    /// Reads weights, strictly.
    pub(crate) fn read(places: &Places, device: &Device) -> anyhow::Result<Self> {
        let source = zoo_checkpoint::open(&weights(places.checkpoint)?)?;
        Self::of(&source, places, device)
    }

    /// The weights in an open checkpoint.
    pub(crate) fn of(source: &Source, places: &Places, device: &Device) -> anyhow::Result<Self> {
        let path = &source.path;
        // Before anything large is read.
        let Description { config, fitted, .. } = Description::of(source, T::NAME)?;
        let file = source.read(device)?;
        let shown = path.display();
        let mut config = migrate(config)?;
        without_places(&mut config);
        let config: ConfigOf<T> =
            serde_json::from_value::<Config<_, _, _>>(config).with_context(|| format!("{shown}: its configuration"))?;
        // A configuration that no model can have is told by the model itself.
        let over = match elsewhere::<T>(&config).unwrap_or_default().is_empty() {
            true => {
                places.are_of_no_use(path)?;
                None
            }
            false => T::over(&config.model, &places.data::<T>()?, &fitted, path, device)?,
        };
        let define = |vb| match &over {
            Some(over) => (over.define)(vb),
            None => T::build(&config.model, vb),
        };
        let (model, params) = Params::restore(file.tensors, device, define).with_context(|| shown.to_string())?;
        let fitted = match over {
            Some(over) => {
                over.remarks.iter().for_each(warn);
                over.fitted
            }
            None => fitted,
        };
        T::check(&config.model, &fitted).with_context(|| shown.to_string())?;
        Ok(Self { model, params, config, fitted })
    }
}
