//! Models that predict: inputs that came together are predicted from together, on all cores.

use std::path::{Path, PathBuf};

use candle_core::Device;
use rayon::prelude::*;
use serde_json::Value;
use tempfile::TempDir;
use zoo_training::config::{ConfigOf, overlaid};
use zoo_training::{Error, Flag, Predict, Prediction, Recipe, Request};

use super::engine::{About, Answer, Ask, Does, Job, Predicted, Refusal, Served, Waiting};
use super::front::Shared;
use super::{Opened, Spec};
use crate::arguments::{Precision, Values};
use crate::output::{message, worded};
use crate::plot::picture_svg;
use crate::settings::{changed_source, has_path};
use crate::weights::Usable;

pub(crate) struct Predictions<T: Predict> {
    model: T::Model,
    config: ConfigOf<T>,
    fitted: Value,
    device: Device,
    /// What `--data` names.
    data: Option<PathBuf>,
    about: About,
    precision: Precision,
    at_once: usize,
    waiting: Waiting,
}

pub(crate) fn open<T: Predict>(spec: &Spec) -> anyhow::Result<Opened> {
    if let Some(data) = spec.data.as_deref().filter(|data| !data.exists()) {
        return Err(Error::Usage(format!("--data {}: there is no such file", data.display())).into());
    }
    let (Usable { model, config, fitted, .. }, checkpoint) = spec.read::<T>()?;
    let about = spec.about::<T>(&config, checkpoint, Does::Predict { options: options::<T>() })?;
    Ok(Opened(Box::new(Predictions::<T> {
        model,
        config,
        fitted,
        device: spec.device.clone(),
        data: spec.data.clone(),
        about,
        precision: spec.precision,
        at_once: spec.at_once,
        waiting: Waiting::default(),
    })))
}

/// The options that a request may give: those of `predict` that name no file of this machine (see [`Flag::value`]).
fn options<T: Predict>() -> Vec<Flag> {
    let all = [<T as Recipe>::FLAGS, <T as Predict>::FLAGS].concat();
    all.into_iter().filter(|flag| !flag.names_file()).collect()
}

impl<T: Predict> Predictions<T> {
    fn predict(&self, job: &Job) -> Result<Predicted, Refusal> {
        let Ask::Input { bytes, ending, options, picture } = &job.ask else {
            return Err(Refusal::bad("expected an input to predict from"));
        };
        let mut values = Values::default();
        for (name, text) in options {
            values = self.with_option(values, name, text)?;
        }
        // A folder of its own: a file that names others finds none.
        let internal = |e: std::io::Error| Refusal::new(500, format!("the input could not be kept: {}", e.kind()));
        let folder = TempDir::new().map_err(internal)?;
        let input = folder.path().join(format!("input.{ending}"));
        std::fs::write(&input, bytes).map_err(internal)?;
        let prediction = self.of_file(&input, values).map_err(|e| self.refusal(&e, &input))?;
        let Prediction { header, rows, summary, remarks, picture: drawn, .. } = prediction;
        let picture = picture.then(|| picture_svg(&drawn)).transpose();
        Ok(Predicted {
            summary,
            remarks: remarks.iter().map(|remark| self.shown(remark, &input)).collect(),
            header,
            rows,
            picture: picture.map_err(|e| Refusal::new(500, message(&e)))?,
        })
    }

    fn with_option(&self, mut values: Values, name: &str, text: &str) -> Result<Values, Refusal> {
        let Does::Predict { options } = &self.about.does else { return Ok(values) };
        let Some(flag) = options.iter().find(|flag| flag.name == name) else {
            let names: Vec<&str> = options.iter().map(|flag| flag.name).collect();
            let known = if names.is_empty() { "it has none".into() } else { format!("it has {}", names.join(", ")) };
            let known = format!("{known} (and the server last, picture and format)");
            return Err(Refusal::bad(format!("{}: there is no option {name:.60}; {known}", self.about.id)));
        };
        match (flag.value, text) {
            (Some(_), text) => values.set(flag.key, text),
            (None, "true" | "1" | "") => values.set(flag.key, true),
            (None, "false" | "0") => {}
            (None, other) => return Err(Refusal::bad(format!("{name}: expected true or false, got {other:.40}"))),
        }
        Ok(values)
    }

    fn of_file(&self, input: &Path, mut values: Values) -> anyhow::Result<Prediction> {
        let options = overlaid::<T::Options>(values.take("predict"), "predict")?;
        if self.data.is_some() || has_path::<T>(&self.config)? {
            values.set_path("data.path", self.data.as_deref().unwrap_or(Path::new("")))?;
        }
        let source = changed_source::<T>(&self.config, &[], values)?;
        let request = Request { input, options };
        let (model, config) = (&self.model, &self.config.model);
        Ok(self.precision.run(|| T::predict(model, config, &source, &self.fitted, &request, &self.device))?)
    }

    /// A message without the name of the file, and with options by their names.
    fn shown(&self, text: &str, input: &Path) -> String {
        let mut text = worded(text).replace(&input.display().to_string(), "the input");
        if let Some(data) = &self.data {
            text = text.replace(&data.display().to_string(), "--data");
        }
        if let Does::Predict { options } = &self.about.does {
            options.iter().for_each(|flag| text = text.replace(flag.key, flag.name));
        }
        text
    }

    fn refusal(&self, e: &anyhow::Error, input: &Path) -> Refusal {
        // What the input or an option is to blame for: reading it, and what the model says of it.
        let of_request = matches!(e.downcast_ref(), Some(Error::Usage(_) | Error::Data(_) | Error::Checkpoint(_)));
        Refusal::new(if of_request { 400 } else { 500 }, self.shown(&message(e), input))
    }
}

impl<T: Predict> Served for Predictions<T> {
    fn about(&self) -> &About {
        &self.about
    }

    fn waiting(&mut self) -> &mut Waiting {
        &mut self.waiting
    }

    fn work(&mut self, shared: &Shared) {
        let jobs: Vec<Job> = std::iter::from_fn(|| self.waiting.next()).take(self.at_once).collect();
        if jobs.is_empty() {
            return;
        }
        let started = std::time::Instant::now();
        jobs.par_iter().for_each(|job| {
            // A mistake of a model that shows with one input is not to end the others.
            let predicted = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.predict(job)));
            job.answer(match predicted {
                Ok(Ok(predicted)) => Answer::Predicted(Box::new(predicted)),
                Ok(Err(refusal)) => Answer::Refused(refusal),
                Err(_) => Answer::Refused(Refusal::new(500, "the prediction failed by a mistake of the program")),
            });
        });
        shared.counters.step(&self.about.id, jobs.len(), started.elapsed());
    }

    fn has_work(&self) -> bool {
        !self.waiting.0.is_empty()
    }
}
