use std::collections::BTreeMap;
use std::path::Path;
use std::sync::OnceLock;

use candle_core::{Device, Tensor};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::{Error, Result, Source};

/// The program that runs, as weights record it.
static PROGRAM: OnceLock<String> = OnceLock::new();

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
    /// Names the program (with its version and commit) that weights record from now on as `written_by`; the first name stays.
    pub fn name_program(program: String) {
        let _ = PROGRAM.set(program);
    }

    /// As safetensors metadata.
    pub fn metadata(&self) -> BTreeMap<String, String> {
        let mut metadata = BTreeMap::from([
            ("model".into(), self.model.clone()),
            ("config".into(), self.config.to_string()),
            ("fitted".into(), self.fitted.to_string()),
            ("zoo_version".into(), env!("CARGO_PKG_VERSION").into()),
        ]);
        metadata.extend(PROGRAM.get().map(|program| ("written_by".into(), program.clone())));
        metadata
    }

    /// What the weights of `model` at `path` say in their metadata.
    ///
    /// # Errors
    /// The file was not written by a training run, or its weights are another model's; the message says so.
    pub fn parse(metadata: &BTreeMap<String, String>, model: &str, path: &Path) -> Result<Self> {
        let refuse = |reason: String| Error::Undescribed { path: path.into(), reason };
        let get = |key: &str| {
            let missing = || {
                refuse(format!(
                    "no {key} in its metadata: not weights of a model of this library (those of other programs have to be converted: zoo \
                     convert {} NEW.safetensors --model {model})",
                    path.display()
                ))
            };
            metadata.get(key).ok_or_else(missing)
        };
        let json =
            |key: &str| serde_json::from_str(get(key)?).map_err(|e| refuse(format!("{key} in its metadata: {e}")));
        let name = get("model")?;
        if name != model {
            return Err(refuse(format!("weights of {name}, expected {model}")));
        }
        Ok(Self { model: name.clone(), config: json("config")?, fitted: json("fitted")? })
    }

    /// What open weights of `model` say in their metadata.
    ///
    /// # Errors
    /// As [`Description::parse`].
    pub fn of(source: &Source, model: &str) -> Result<Self> {
        let texts = source.metadata.iter().filter_map(|(k, v)| Some((k.clone(), v.as_str()?.to_string()))).collect();
        Self::parse(&texts, model, &source.path)
    }

    /// Reads the weights of `model` at `path`: its table `[model]` and what was fitted, as the model's own types, and the tensors.
    ///
    /// # Errors
    /// The file cannot be read, or is not described as weights of that model.
    pub fn open<C: DeserializeOwned, F: DeserializeOwned>(
        path: &Path,
        model: &str,
        device: &Device,
    ) -> Result<(C, F, BTreeMap<String, Tensor>)> {
        let file = crate::read(path, device)?;
        let (config, fitted) = Self::parse(&file.metadata, model, path)?.read(path)?;
        Ok((config, fitted, file.tensors))
    }

    /// The table `[model]`, and what was fitted, as the model's own types.
    ///
    /// # Errors
    /// They are not; the message names `path`.
    pub fn read<C: DeserializeOwned, F: DeserializeOwned>(mut self, path: &Path) -> Result<(C, F)> {
        let refuse = |e: serde_json::Error| {
            let reason = format!("its metadata does not describe a {}: {e}", self.model);
            Error::Undescribed { path: path.into(), reason }
        };
        let config = serde_json::from_value(self.config.get_mut("model").map(Value::take).unwrap_or_default())
            .map_err(refuse)?;
        Ok((config, serde_json::from_value(self.fitted).map_err(refuse)?))
    }
}
