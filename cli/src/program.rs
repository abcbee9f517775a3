//! A program: its name, its models and its experiments.

use zoo_layers::nearest;
use zoo_training::health::Profile;
use zoo_training::{Error, Experiment};

use crate::model::Model;

/// A program: its name, its models and its experiments.
pub struct Zoo {
    pub(crate) name: &'static str,
    pub(crate) version: &'static str,
    pub(crate) models: Vec<Model>,
    pub(crate) experiments: Vec<Experiment>,
}

impl Zoo {
    /// A program without models yet.
    pub fn new(name: &'static str, version: &'static str) -> Self {
        Self { name, version, models: vec![], experiments: vec![] }
    }

    /// With a model.
    pub fn model(mut self, model: impl Into<Model>) -> Self {
        self.models.push(model.into());
        self
    }

    /// With experiments, for the verb `reproduce`.
    pub fn experiments(mut self, experiments: impl IntoIterator<Item = Experiment>) -> Self {
        self.experiments.extend(experiments);
        self
    }

    /// The model of that name.
    pub(crate) fn find(&self, name: &str) -> anyhow::Result<&Model> {
        if let Some(model) = self.models.iter().find(|m| m.name == name) {
            return Ok(model);
        }
        let names: Vec<&str> = self.models.iter().map(|m| m.name).collect();
        let hint = nearest(name, names.iter().copied()).map_or(String::new(), |n| format!(" (did you mean {n}?)"));
        Err(Error::Usage(format!("there is no model {name}{hint}; the models are {}", names.join(", "))).into())
    }

    /// What is usual of a model's gradients.
    pub(crate) fn profile(&self, name: &str) -> Option<Profile> {
        self.models.iter().find(|m| m.name == name).map(|m| (m.profile)())
    }
}
