//! What is to be in a file.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value};

use crate::input::Sink;
use crate::source::{Typed, elements};
use crate::ties::TIED;
use crate::{Dtype, Error, Result};

/// A tensor to be written.
#[derive(Clone, Debug)]
pub(crate) struct Planned {
    pub(crate) name: String,
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<usize>,
    /// The tensor, by number, that has its values.
    pub(crate) tied_to: Option<usize>,
}

impl Planned {
    pub(crate) fn bytes(&self) -> u64 {
        self.dtype.bytes(elements(&self.shape)).unwrap_or(0)
    }
}

/// Everything that a file says before its values.
#[derive(Clone, Debug, Default)]
pub(crate) struct Outline {
    pub(crate) tensors: Vec<Planned>,
    pub(crate) metadata: Map<String, Value>,
    /// The entry of a PyTorch file that is to hold the tensors, if it is not to be them.
    pub(crate) entry: Option<String>,
    pub(crate) typed: Vec<Typed>,
}

/// An entry of the metadata where only texts are kept: text as it is, anything else as JSON.
pub(crate) fn text_of(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), String::from)
}

/// Hands the values of a tensor, by number, to a sink.
pub(crate) type Streams<'a> = &'a mut dyn FnMut(usize, Sink) -> Result<()>;

impl Outline {
    /// Metadata as texts, ties among them: text as it is, anything else as JSON.
    pub(crate) fn texts(&self) -> BTreeMap<String, String> {
        let tied = self.tensors.iter().filter_map(|t| Some((t.name.clone(), self.tensors[t.tied_to?].name.clone())));
        let mut texts: BTreeMap<String, String> = self.metadata.iter().map(|(k, v)| (k.clone(), text_of(v))).collect();
        let tied: Vec<(String, String)> = tied.collect();
        if !tied.is_empty() {
            let names: Vec<&String> = tied.iter().map(|(name, _)| name).collect();
            texts.insert(TIED.into(), Value::from(names.iter().map(|n| n.as_str()).collect::<Vec<_>>()).to_string());
        }
        texts.extend(tied);
        texts
    }

    /// Refuses element types that a format lacks.
    pub(crate) fn check(&self, path: &Path, format: &str, holds: impl Fn(Dtype) -> bool) -> Result<()> {
        if self.tensors.iter().any(|t| t.name == "__metadata__") {
            let reason =
                "a tensor cannot be called __metadata__: rename it by a rule ('rename __metadata__ -> NAME')".into();
            return Err(Error::Refused { path: path.into(), reason });
        }
        let taken = |t: &&Planned| t.tied_to.is_some() && self.metadata.contains_key(&t.name);
        if let Some(t) = self.tensors.iter().find(taken) {
            let reason = format!(
                "tensor {0} and an entry of the metadata have one name: rename it by a rule ('rename {0} -> NAME')",
                t.name
            );
            return Err(Error::Refused { path: path.into(), reason });
        }
        if self.entry.as_ref().is_some_and(|e| self.metadata.contains_key(e)) {
            let reason = "its tensors and an entry of the metadata have one name".into();
            return Err(Error::Refused { path: path.into(), reason });
        }
        match self.tensors.iter().find(|t| !holds(t.dtype)) {
            None => Ok(()),
            Some(t) => {
                let reason = format!(
                    "{format} has no elements of {}, which tensor {} has; cast it by a rule ('cast NAME f32') or drop it",
                    t.dtype, t.name
                );
                Err(Error::Refused { path: path.into(), reason })
            }
        }
    }
}
