//! Trained weights: where they lie, and the model that they make.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use candle_core::Device;
use serde_json::Value;
use zoo_checkpoint::{Description, Source};
use zoo_layers::Params;
use zoo_training::config::{ConfigOf, migrate};
use zoo_training::{AsIs, Config, Recipe, RunFiles, Task};

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
    const NAMES: [&str; 4] =
        ["model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json"];
    let ours = [run.best(), run.last()].into_iter();
    let found = ours.chain(NAMES.iter().map(|n| path.join(n))).find(|p| p.exists());
    // A run without weights yet lacks its last ones; any other folder is no checkpoint.
    let found = found.unwrap_or_else(|| if run.exist() { run.last() } else { path.to_path_buf() });
    if run.exist() && std::fs::symlink_metadata(&found).is_ok_and(|f| f.is_symlink()) {
        bail!("{}: it is a link: name the file that it leads to", found.display())
    }
    Ok(found)
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
    /// The model of the weights at `path`.
    pub(crate) fn read(path: &Path, device: &Device) -> anyhow::Result<Self> {
        Self::of(&zoo_checkpoint::open(path)?, device)
    }

    /// The model of an open checkpoint.
    pub(crate) fn of(source: &Source, device: &Device) -> anyhow::Result<Self> {
        if let Some(AsIs { model, architecture, data, fitted }) = T::of_foreign(source, device)? {
            let task = <T as Task>::Settings::default();
            let config = Config { model: architecture, data, train: T::training(), task };
            return Ok(Self { model, config, fitted, foreign: true });
        }
        let Loaded { model, config, fitted, .. } = Loaded::<T>::of(source, device)?;
        Ok(Self { model, config, fitted, foreign: false })
    }
}

/// Weights with what they say about themselves.
pub(crate) struct Loaded<T: Recipe> {
    pub(crate) model: T::Model,
    pub(crate) params: Params,
    pub(crate) config: ConfigOf<T>,
    pub(crate) fitted: Value,
}

impl<T: Recipe> Loaded<T> {
    /// Reads the weights at `path`, strictly.
    pub(crate) fn read(path: &Path, device: &Device) -> anyhow::Result<Self> {
        Self::of(&zoo_checkpoint::open(path)?, device)
    }

    /// The weights in an open checkpoint.
    pub(crate) fn of(source: &Source, device: &Device) -> anyhow::Result<Self> {
        let path = &source.path;
        let file = source.read(device)?;
        let Description { config, fitted, .. } = Description::parse(&file.metadata, T::NAME, path)?;
        let shown = path.display();
        let config: ConfigOf<T> = serde_json::from_value::<Config<_, _, _>>(migrate(config)?)
            .with_context(|| format!("{shown}: its configuration"))?;
        let (model, params) = Params::restore(file.tensors, device, |vb| T::build(&config.model, vb))
            .with_context(|| shown.to_string())?;
        T::check(&config.model, &fitted).with_context(|| shown.to_string())?;
        Ok(Self { model, params, config, fitted })
    }
}
