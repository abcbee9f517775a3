//! `curves.svg` and, with the feature `png`, `curves.png`: loss, metrics, gradient norm and learning rate over the steps; `metrics.csv` if asked for.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use plotters::coord::Shift;
use plotters::prelude::*;
use zoo_checkpoint::Folder;
use zoo_training::{Curve, Event, History, Observer, RunFiles};

use crate::output::{csv_text, warn};
use crate::plot::{self, COLORS, Line, Paint, failed, panel};

const SIZE: (u32, u32) = (1000, 800);
/// Pictures are drawn again while training at most this often.
const PAUSE: Duration = Duration::from_secs(5);

/// The curves of a run, in memory and on disk.
pub(crate) struct Curves {
    directory: PathBuf,
    history: History,
    csv: bool,
    drawn: Instant,
    broken: bool,
}

impl Curves {
    pub(crate) fn new(directory: &Path, csv: bool) -> Self {
        Self { directory: directory.into(), history: History::default(), csv, drawn: Instant::now(), broken: false }
    }

    /// Reads what a resumed run has in `metrics.jsonl`.
    pub(crate) fn replay(&mut self) -> zoo_training::Result<()> {
        if RunFiles::at(&self.directory).metrics().exists() {
            self.history = History::read(&self.directory)?;
        }
        Ok(())
    }

    fn add(&mut self, name: &str, step: u64, value: f64) {
        self.history.add(name, step, value);
        // Halving beyond what a picture can show bounds the memory of a long run.
        for curve in self.history.curves.iter_mut().filter(|c| c.points.len() > 8192) {
            let mut keep = false;
            curve.points.retain(|_| {
                keep = !keep;
                keep
            });
        }
    }

    fn draw(&mut self) -> anyhow::Result<()> {
        self.drawn = Instant::now();
        let folder = Folder::open(&self.directory)?;
        let svg = self.svg()?;
        folder.replace("curves.svg", |f| f.write_all(svg.as_bytes()))?;
        #[cfg(feature = "png")]
        {
            let png = plot::png(SIZE, self)?;
            folder.replace("curves.png", |f| f.write_all(&png))?;
        }
        if self.csv {
            let text = table(&History::read(&self.directory)?)?;
            folder.replace("metrics.csv", |f| f.write_all(text.as_bytes()))?;
        }
        Ok(())
    }

    /// Writes the pictures; curves are no reason to stop a run, so a failure is said once.
    pub(crate) fn draw_or_warn(&mut self) {
        if self.broken {
            return;
        }
        if let Err(e) = self.draw() {
            warn(format!("{e:#}"));
            self.broken = true;
        }
    }

    fn svg(&self) -> anyhow::Result<String> {
        plot::svg(SIZE, self)
    }
}

impl Paint for Curves {
    fn paint<B: DrawingBackend>(&self, area: &DrawingArea<B, Shift>) -> anyhow::Result<()>
    where
        B::ErrorType: 'static,
    {
        area.fill(&WHITE).map_err(failed)?;
        for ((title, names), part) in panels(&self.history).into_iter().zip(area.split_evenly((2, 2))) {
            let lines = names.iter().zip(COLORS.iter().cycle());
            let lines = lines.map(|(name, color)| Line::new(name, self.history.curve(name), color.mix(1.))).collect();
            panel(&part, title, lines)?;
        }
        Ok(())
    }
}

/// Lines of a panel that one can tell apart.
const MOST_LINES: usize = 24;

/// Which curves stand together; the first ones where there are too many.
pub(crate) fn panels(history: &History) -> [(&'static str, Vec<String>); 4] {
    all_panels(history).map(|(title, mut names)| {
        names.truncate(MOST_LINES);
        (title, names)
    })
}

/// What each step has, then what evaluations have: those of the initial weights come first in the file.
fn ordered(history: &History) -> Vec<&Curve> {
    let mut curves: Vec<&Curve> = history.curves.iter().collect();
    curves.sort_by_key(|c| c.name.contains(' '));
    curves
}

fn all_panels(history: &History) -> [(&'static str, Vec<String>); 4] {
    // What a simple rule has is a number, not a curve.
    let names = || ordered(history).into_iter().map(|c| c.name.clone()).filter(|n| !n.starts_with("baseline "));
    let is_loss = |n: &String| n == "loss" || n.ends_with(" loss");
    let other = |n: &String| n == "lr" || n == "grad_norm";
    // Of many units: they are in metrics.jsonl, the table and TensorBoard.
    let acted = |n: &String| n.starts_with("experience ");
    [
        // Parts of the loss stand with it.
        ("loss", names().filter(|n| is_loss(n) || !n.contains(' ') && !other(n)).collect()),
        ("validation metrics", names().filter(|n| n.contains(' ') && !is_loss(n) && !acted(n)).collect()),
        ("gradient norm before clipping", names().filter(|n| n == "grad_norm").collect()),
        ("learning rate", names().filter(|n| n == "lr").collect()),
    ]
}

/// One row a step, one column a curve.
fn table(history: &History) -> anyhow::Result<String> {
    let mut rows: BTreeMap<u64, Vec<String>> = BTreeMap::new();
    let curves = ordered(history);
    let columns = curves.len();
    for (k, curve) in curves.iter().enumerate() {
        for (step, value) in &curve.points {
            rows.entry(*step).or_insert_with(|| vec![String::new(); columns])[k] = value.to_string();
        }
    }
    let header: Vec<&str> = ["step"].into_iter().chain(curves.iter().map(|c| c.name.as_str())).collect();
    let rows: Vec<Vec<String>> =
        rows.into_iter().map(|(step, values)| [vec![step.to_string()], values].concat()).collect();
    csv_text(&header, &rows)
}

impl Observer for Curves {
    fn observe(&mut self, event: &Event) {
        match event {
            Event::Step { step, loss, parts, lr, grad_norm } => {
                self.add("loss", *step, *loss);
                parts.iter().for_each(|(name, value)| self.add(name, *step, *value));
                self.add("lr", *step, *lr);
                self.add("grad_norm", *step, *grad_norm);
            }
            Event::Collected { step, metrics } => {
                metrics.iter().for_each(|(name, value)| self.add(&format!("experience {name}"), step + 1, *value));
            }
            Event::Evaluated { step, split, metrics, .. } => {
                let split = split.name();
                metrics.iter().for_each(|(name, value)| self.add(&format!("{split} {name}"), *step, *value));
                if self.drawn.elapsed() >= PAUSE {
                    self.draw_or_warn();
                }
            }
            Event::RolledBack { step } => self.history.cut(*step),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use zoo_training::Split;

    use super::*;

    #[test]
    fn pictures_are_drawn_of_anything_from_nothing_to_long_runs() -> anyhow::Result<()> {
        let mut curves = Curves::new(Path::new("unused"), false);
        assert!(curves.svg()?.contains("learning rate"));
        for step in 1..20_000 {
            let loss = if step == 7 { f64::NAN } else { 1. / step as f64 };
            curves.observe(&Event::Step { step, loss, parts: &[("a part", 1.)].into(), lr: 1e-3, grad_norm: 0. });
        }
        curves.observe(&Event::Evaluated {
            step: 5,
            split: Split::Valid,
            metrics: &[("loss", 2.), ("rmse", 3.)].into(),
            best: true,
        });
        assert!(curves.history.curves.iter().all(|c| c.points.len() <= 8192));
        let number = plot::number;
        assert_eq!(
            [0., 1e-5, 0.00123, 0.5, 12.345, 400., 123456.].map(number),
            ["0", "1.0e-5", "0.00123", "0.5", "12.3", "400", "1.2e5"]
        );
        let svg = curves.svg()?;
        assert!(svg.contains("valid loss") && svg.contains("validation metrics"), "{svg}");
        Ok(())
    }

    #[test]
    fn a_table_has_a_row_a_step() -> anyhow::Result<()> {
        let mut history = History::default();
        history.add("loss", 1, 0.5);
        history.add("valid loss", 2, 0.25);
        history.add("loss", 2, 0.125);
        assert_eq!(table(&history)?, "step,loss,valid loss\n1,0.5,\n2,0.125,0.25\n");
        Ok(())
    }
}
