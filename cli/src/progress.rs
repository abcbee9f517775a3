//! Progress on stderr: a bar on a terminal, a line an evaluation elsewhere.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::IsTerminal;
use zoo_training::{Event, Observer, Split};

use crate::health;
use crate::output::{note, program};

pub(crate) struct Progress {
    bar: Option<ProgressBar>,
    validation: String,
}

impl Progress {
    pub(crate) fn new() -> Self {
        Self { bar: None, validation: String::new() }
    }

    pub(crate) fn finish(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }

    fn say(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| note(line)),
            None => note(line),
        }
    }
}

impl Observer for Progress {
    fn observe(&mut self, event: &Event) {
        match event {
            Event::Start { step, total } if std::io::stderr().is_terminal() => {
                let bar = ProgressBar::with_draw_target(Some(*total), ProgressDrawTarget::stderr_with_hz(10));
                if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos}/{len} {per_sec} {eta} {msg}") {
                    bar.set_style(style);
                }
                bar.set_position(*step);
                self.bar = Some(bar);
            }
            Event::Step { step, loss, .. } => {
                if let Some(bar) = &self.bar {
                    bar.set_position(*step);
                    if step.is_multiple_of(20) {
                        bar.set_message(format!("loss {loss:.5}{}", self.validation));
                    }
                }
            }
            Event::Evaluated { step, split, metrics, best } => {
                let shown: Vec<String> =
                    metrics.iter().map(|(name, value)| format!("{} {value:.5}", name.replace('_', " "))).collect();
                // Without a validation part it is the training part, or the one batch.
                let of = if *split == Split::Valid { "validation" } else { "evaluated" };
                self.validation = metrics.first().map_or(String::new(), |(_, loss)| format!(", {of} {loss:.5}"));
                if self.bar.is_none() {
                    let which = match (step, best) {
                        (0, _) => " (initial weights)",
                        (_, true) => " (best)",
                        (_, false) => "",
                    };
                    note(&format!("step {step}: {}{which}", shown.join(", ")));
                }
            }
            Event::RolledBack { step } => {
                if let Some(bar) = &self.bar {
                    bar.set_position(*step);
                }
            }
            Event::Health(finding) => self.say(&format!("{}: {}", program(), health::line(finding))),
            Event::Warning(message) => self.say(&format!("{}: warning: {message}", program())),
            _ => {}
        }
    }
}
