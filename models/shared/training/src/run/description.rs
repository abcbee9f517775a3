use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

use crate::{Error, Result};

/// What a weights file says about itself, in its metadata.
#[derive(Clone, Debug)]
pub struct Description {
    /// The model's name.
    pub model: String,
    /// The tables `model`, `data` and `train`.
    pub config: Value,
    /// What was fitted to the training data.
    pub fitted: Value,
}

impl Description {
    /// As safetensors metadata.
    pub fn metadata(&self) -> BTreeMap<String, String> {
        BTreeMap::from([
            ("model".into(), self.model.clone()),
            ("config".into(), self.config.to_string()),
            ("fitted".into(), self.fitted.to_string()),
            ("zoo_version".into(), env!("CARGO_PKG_VERSION").into()),
        ])
    }

    /// From the metadata of the file at `path`.
    ///
    /// # Errors
    /// The file was not written by a training run; the message says so.
    pub fn parse(metadata: &BTreeMap<String, String>, path: &Path) -> Result<Self> {
        let get = |key: &str| {
            let missing =
                || Error::Run(format!("{}: no {key} in its metadata: not weights of zoo train", path.display()));
            metadata.get(key).ok_or_else(missing)
        };
        let json = |key: &str| {
            let text = get(key)?;
            serde_json::from_str(text)
                .map_err(|e| Error::Run(format!("{}: {key} in its metadata: {e}", path.display())))
        };
        Ok(Self { model: get("model")?.clone(), config: json("config")?, fitted: json("fitted")? })
    }
}
