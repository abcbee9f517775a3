//! A program: its name, its models and its experiments.

use anyhow::ensure;
use zoo_layers::nearest;
use zoo_training::health::Profile;
use zoo_training::{Error, Experiment};

use crate::model::Model;

/// A program: its name, its models and its experiments.
#[must_use = "a program does nothing before Zoo::main"]
pub struct Zoo {
    pub(crate) name: &'static str,
    pub(crate) version: String,
    pub(crate) models: Vec<Model>,
    pub(crate) experiments: Vec<Experiment>,
}

impl Zoo {
    /// A program without models yet.
    pub fn new(name: &'static str, version: &'static str) -> Self {
        Self { name, version: version.into(), models: vec![], experiments: vec![] }
    }

    /// With the commit that it was built from, which then stands behind the version and in the metadata of weights.
    pub fn commit(mut self, commit: Option<&str>) -> Self {
        self.version.extend(commit.map(|commit| format!(" ({commit})")));
        self
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

    /// Refuses models that one command line cannot tell apart.
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        for (i, model) in self.models.iter().enumerate() {
            for before in &self.models[..i] {
                let name = model.name;
                ensure!(before.name != name, "{}: two of its models are called {name}", self.name);
                let all = |model: &Model| [model.data_flags, model.predict_flags].concat();
                for (one, other) in all(model).iter().flat_map(|a| all(before).into_iter().map(move |b| (*a, b))) {
                    ensure!(
                        one.name != other.name || one.value.is_some() == other.value.is_some(),
                        "{}: --{} takes a value with one of the models {name} and {}, and none with the other",
                        self.name,
                        one.name,
                        before.name
                    );
                }
            }
        }
        Ok(())
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
