//! Trials that are stopped because they are behind.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Map, Value};
use zoo_training::{Event, Observer, RunFiles};

use super::results::Trial;
use crate::output::warn;

/// Fewest trials before one is compared with the median of those before, and the share of it that is done then.
const COMPARED: usize = 3;
const PATIENCE: f64 = 0.25;

/// Notes the best evaluation, and stops a trial that is behind the median of those before at the same share of the run
/// (the median rule of Golovin et al., Google Vizier, KDD 2017).
pub(super) struct Pruner<'a> {
    pub(super) total: u64,
    others: &'a [Trial],
    to_the_end: bool,
    pub(super) best: Option<(f64, u64, Map<String, Value>)>,
    pub(super) progress: Vec<(f64, f64)>,
    pub(super) behind: Arc<AtomicBool>,
}

impl<'a> Pruner<'a> {
    pub(super) fn new(others: &'a [Trial], to_the_end: bool) -> Self {
        let behind = Arc::new(AtomicBool::new(false));
        Self { total: 0, others, to_the_end, best: None, progress: vec![], behind }
    }

    /// Reads the evaluations of a run that is resumed.
    pub(super) fn replay(&mut self, path: &Path) {
        let text = RunFiles::at(path).metrics_text().ok().flatten().unwrap_or_default();
        for line in text.lines().filter_map(|l| serde_json::from_str::<Value>(l).ok()) {
            if let (Some(step), Some(metrics)) =
                (line["step"].as_u64(), line["valid"].as_object().or(line["train"].as_object()))
            {
                self.evaluated(step, metrics.clone());
            }
        }
    }

    fn evaluated(&mut self, step: u64, metrics: Map<String, Value>) {
        // Initial weights are no result.
        let Some(loss) = metrics.get("loss").and_then(Value::as_f64).filter(|_| step > 0) else { return };
        if self.best.as_ref().is_none_or(|(best, ..)| loss < *best) {
            self.best = Some((loss, step, metrics));
        }
        let (done, best) = (step as f64 / self.total as f64, self.best.as_ref().map_or(loss, |b| b.0));
        self.progress.push((done, best));
        let at = |t: &Trial| t.progress.iter().rev().find(|p| p.0 <= done + 1e-9).map(|p| p.1);
        let mut others: Vec<f64> = self.others.iter().filter_map(at).collect();
        others.sort_by(f64::total_cmp);
        if !self.to_the_end && done >= PATIENCE && others.len() >= COMPARED && best > others[others.len() / 2] {
            self.behind.store(true, Ordering::Relaxed);
        }
    }
}

impl Observer for Pruner<'_> {
    fn observe(&mut self, event: &Event) {
        match event {
            Event::Evaluated { step, metrics, .. } => {
                self.evaluated(*step, metrics.object());
            }
            Event::RolledBack { step } => {
                let done = *step as f64 / self.total as f64;
                self.progress.retain(|p| p.0 <= done + 1e-9);
                self.best = self.best.take().filter(|(_, at, _)| at <= step);
            }
            Event::Warning(message) => warn(message),
            _ => {}
        }
    }
}
