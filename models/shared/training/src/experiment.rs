//! Experiments that a model's crate can repeat, and what they find.

use std::ops::RangeInclusive;
use std::path::Path;

use serde_json::Value;

use crate::metrics::Name;
use crate::{Picture, Result};

/// An experiment by its name.
#[derive(Clone, Debug)]
pub struct Experiment {
    /// Its name.
    pub name: &'static str,
    /// One line for people.
    pub summary: &'static str,
    /// What `steps` counts, and how many are usual.
    pub steps: &'static str,
    /// The steps that it can take.
    pub range: RangeInclusive<u64>,
    /// What data it takes, if any; without them it makes its own.
    pub data: &'static str,
    /// Whether it has a figure.
    pub figure: bool,
    /// Does it; `None` if it was stopped.
    pub run: fn(&Setup) -> Result<Option<Findings>>,
}

/// How an experiment is done.
pub struct Setup<'a> {
    /// Its steps; the usual number if absent.
    pub steps: Option<u64>,
    /// Its seed; the usual one if absent.
    pub seed: Option<u64>,
    /// Its data, if they were named.
    pub data: Option<&'a Path>,
    /// An empty folder for what it keeps meanwhile.
    pub folder: &'a Path,
    /// Whether to go on.
    pub going: &'a dyn Fn() -> bool,
    /// Takes a line on how far it is.
    pub progress: &'a dyn Fn(&str),
}

/// What an experiment found.
#[derive(Clone, Debug, Default)]
pub struct Findings {
    /// For machines.
    pub json: Value,
    /// For people.
    pub text: Vec<Block>,
    /// A figure, if it has one.
    pub figure: Option<Figure>,
}

/// A part of a text.
#[derive(Clone, Debug)]
pub enum Block {
    /// Lines as they are.
    Lines(String),
    /// Rows under a header.
    Table(Vec<Vec<String>>),
}

/// A figure.
#[derive(Clone, Debug)]
pub enum Figure {
    /// One picture.
    Picture(Picture),
    /// Panels of lines over steps, two beside each other.
    Panels(Vec<Panel>),
}

/// Lines over steps.
#[derive(Clone, Debug)]
pub struct Panel {
    /// What they show.
    pub title: &'static str,
    /// Lines by name.
    pub lines: Vec<(Name, Vec<(u64, f64)>)>,
}
