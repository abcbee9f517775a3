//! What other programs show of a run: event files of TensorBoard, and MLflow's file store.

mod mlflow;
mod tensorboard;

use std::path::Path;

use clap::ValueEnum;
use zoo_training::{Event, Observer, Split};

use crate::output::warn;
use mlflow::Mlflow;
use tensorboard::TensorBoard;

/// Where a run's numbers go, besides metrics.jsonl.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Log {
    /// Event files in the run directory
    Tensorboard,
    /// MLflow's file store: mlruns, or where MLFLOW_TRACKING_URI says
    Mlflow,
    /// metrics.csv in the run directory
    Csv,
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    Finished,
    Interrupted,
    Failed,
}

/// What keeps the numbers of a run for another program.
trait Tracker {
    /// Values after a step, by their tags.
    fn scalars(&mut self, step: u64, values: &[(String, f64)]) -> std::io::Result<()>;

    /// Drops the values recorded after this step.
    fn cut(&mut self, step: u64) -> std::io::Result<()>;

    /// Everything is written out.
    fn flush(&mut self) -> std::io::Result<()>;

    /// The run is over.
    fn end(&mut self, how: Ended) -> std::io::Result<()>;
}

/// The trackers of a run. They are no reason to stop it: a failure is reported once, and that tracker is dropped.
#[derive(Default)]
pub(crate) struct Trackers {
    all: Vec<(&'static str, Box<dyn Tracker>)>,
    resumed: bool,
}

impl Trackers {
    /// Those that are asked for, of a run of `model`.
    pub(crate) fn new(run: &Path, model: &str, resumed: bool, asked: &[Log]) -> anyhow::Result<Self> {
        let mut trackers = Self { all: vec![], resumed };
        if asked.contains(&Log::Tensorboard) {
            trackers.all.push(("TensorBoard", Box::new(TensorBoard::new(run)?)));
        }
        if asked.contains(&Log::Mlflow) {
            trackers.all.push(("MLflow", Box::new(Mlflow::new(run, model, resumed)?)));
        }
        Ok(trackers)
    }

    /// Refuses what cannot be written to, before a run begins.
    pub(crate) fn check(asked: &[Log]) -> anyhow::Result<()> {
        if asked.contains(&Log::Mlflow) {
            mlflow::prepare()?;
        }
        Ok(())
    }

    fn each(&mut self, mut what: impl FnMut(&mut dyn Tracker) -> std::io::Result<()>) {
        self.all.retain_mut(|(name, tracker)| match what(tracker.as_mut()) {
            Ok(()) => true,
            Err(e) => {
                warn(format!("{name} gets no more of this run: {e}"));
                false
            }
        });
    }

    /// The run is over.
    pub(crate) fn end(&mut self, how: Ended) {
        self.each(|tracker| tracker.end(how));
    }
}

impl Observer for Trackers {
    fn observe(&mut self, event: &Event) {
        let tagged = |group: &str, name: &str, v: f64| (format!("{group}/{name}"), v);
        let (step, values): (u64, Vec<(String, f64)>) = match event {
            Event::Start { step, .. } if self.resumed => return self.each(|tracker| tracker.cut(*step)),
            Event::RolledBack { step } => return self.each(|tracker| tracker.cut(*step)),
            Event::Step { step, loss, parts, lr, grad_norm } => {
                let own = [("loss/train", *loss), ("rate", *lr), ("gradient_norm", *grad_norm)];
                let own = own.into_iter().map(|(tag, v)| (tag.to_string(), v));
                (*step, own.chain(parts.iter().map(|(name, v)| tagged("parts", name, *v))).collect())
            }
            Event::Collected { step, metrics } => {
                (step + 1, metrics.iter().map(|(name, v)| tagged("experience", name, *v)).collect())
            }
            Event::Evaluated { step, split, metrics, .. } => {
                // The training loss of steps has the tag loss/train.
                let split = if *split == Split::Valid { "valid" } else { "evaluated" };
                let tag = |name: &str, v: f64| match name {
                    "loss" => (format!("loss/{split}"), v),
                    name => tagged(split, name, v),
                };
                (*step, metrics.iter().map(|(name, v)| tag(name, *v)).collect())
            }
            _ => return,
        };
        self.each(|tracker| tracker.scalars(step, &values));
        if matches!(event, Event::Evaluated { .. }) {
            self.each(|tracker| tracker.flush());
        }
    }
}
