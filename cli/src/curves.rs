//! `curves.svg` and, with the feature `png`, `curves.png`: loss, metrics, gradient norm and learning rate over the steps; `metrics.csv` if asked for.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use plotters::coord::Shift;
use plotters::prelude::*;
use zoo_checkpoint::Folder;
use zoo_training::{Curve, Event, Follower, History, Observer};

use crate::output::{csv_text, warn};
use crate::plot::{self, Line, Paint, color, failed, panel};

/// Pixels from left to right, and from top to bottom of each row of panels.
const WIDTH: u32 = 1000;
const ROW: u32 = 400;
/// Pictures are drawn again while training at most this often.
const PAUSE: Duration = Duration::from_secs(5);

/// The pictures of a run: what its `metrics.jsonl` holds, the same before and after a resume.
pub(crate) struct Curves {
    directory: PathBuf,
    follower: Follower,
    csv: bool,
    drawn: Instant,
    broken: bool,
}

impl Curves {
    pub(crate) fn new(directory: &Path, csv: bool) -> Self {
        let follower = Follower::new(directory);
        Self { directory: directory.into(), follower, csv, drawn: Instant::now(), broken: false }
    }

    fn draw(&mut self) -> anyhow::Result<()> {
        self.drawn = Instant::now();
        self.follower.update()?;
        let history = self.follower.history();
        let panels = Panels::of(history);
        let folder = Folder::open(&self.directory)?;
        let svg = plot::svg(panels.size(), &panels)?;
        folder.replace("curves.svg", |f| f.write_all(svg.as_bytes()))?;
        #[cfg(feature = "png")]
        {
            let png = plot::png(panels.size(), &panels)?;
            folder.replace("curves.png", |f| f.write_all(&png))?;
        }
        if self.csv {
            let text = table(history)?;
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
}

/// The panels of a picture.
struct Panels<'a> {
    history: &'a History,
    panels: Vec<(String, Vec<String>)>,
}

impl<'a> Panels<'a> {
    fn of(history: &'a History) -> Self {
        let split = |(title, names)| by_scale(history, title, names);
        Self { history, panels: kinds(history).into_iter().flat_map(split).collect() }
    }

    fn rows(&self) -> usize {
        self.panels.len().div_ceil(2)
    }

    fn size(&self) -> (u32, u32) {
        (WIDTH, ROW * self.rows() as u32)
    }
}

impl Paint for Panels<'_> {
    fn paint<B: DrawingBackend>(&self, area: &DrawingArea<B, Shift>) -> anyhow::Result<()>
    where
        B::ErrorType: 'static,
    {
        area.fill(&WHITE).map_err(failed)?;
        for ((title, names), part) in self.panels.iter().zip(area.split_evenly((self.rows(), 2))) {
            let line = |(i, name): (usize, &String)| Line::new(name, self.history.curve(name), color(i));
            panel(&part, title, names.iter().enumerate().map(line).collect())?;
        }
        Ok(())
    }
}

/// Lines of a panel that one can tell apart.
const MOST_LINES: usize = 24;

/// Curves of one kind, with what they are; the first ones where there are too many.
pub(crate) fn kinds(history: &History) -> [(&'static str, Vec<String>); 4] {
    all_kinds(history).map(|(title, mut names)| {
        names.truncate(MOST_LINES);
        (title, names)
    })
}

/// Those of the curves that are of one order of magnitude together, each with a title: on an axis with larger ones, a curve is a line along
/// its foot.
pub(crate) fn by_scale(history: &History, title: &str, names: Vec<String>) -> Vec<(String, Vec<String>)> {
    const APART: f64 = 10.;
    // What is usual: one spike of an exploding run decides nothing.
    let usual = |name: &String| {
        let points = history.curve(name);
        let mut sizes: Vec<f64> = points.iter().step_by(1 + points.len() / 1000).map(|p| p.1.abs()).collect();
        sizes.sort_by(f64::total_cmp);
        sizes.get(sizes.len() / 2).copied().unwrap_or(0.)
    };
    // Each with the least and the largest of it; what is zero fits all.
    let mut groups: Vec<([f64; 2], Vec<String>)> = vec![];
    for name in names {
        let (low, high) = match usual(&name) {
            0. => (f64::INFINITY, 0.),
            size => (size, size),
        };
        match groups.iter_mut().find(|([of_low, of_high], _)| of_high.max(high) <= APART * of_low.min(low)) {
            Some((range, group)) => {
                group.push(name);
                *range = [range[0].min(low), range[1].max(high)];
            }
            None => groups.push(([low, high], vec![name])),
        }
    }
    let named = |(i, (_, group)): (usize, ([f64; 2], Vec<String>))| match i {
        0 => (title.to_string(), group),
        _ => (group.join(", ").replace('_', " "), group),
    };
    let groups: Vec<_> = groups.into_iter().enumerate().map(named).collect();
    if groups.is_empty() { vec![(title.into(), vec![])] } else { groups }
}

/// What each step has, then what evaluations have: those of the initial weights come first in the file.
fn ordered(history: &History) -> Vec<&Curve> {
    let mut curves: Vec<&Curve> = history.curves.iter().collect();
    curves.sort_by_key(|c| c.name.contains(' '));
    curves
}

fn all_kinds(history: &History) -> [(&'static str, Vec<String>); 4] {
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
        if matches!(event, Event::Evaluated { .. }) && self.drawn.elapsed() >= PAUSE {
            self.draw_or_warn();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn svg(history: &History) -> anyhow::Result<String> {
        let panels = Panels::of(history);
        plot::svg(panels.size(), &panels)
    }

    #[test]
    fn pictures_are_drawn_of_anything_from_nothing_to_long_runs() -> anyhow::Result<()> {
        assert!(svg(&History::default())?.contains("learning rate"));
        let mut history = History::default();
        for step in 1..20_000 {
            history.add("loss", step, if step == 7 { f64::NAN } else { 1. / step as f64 });
            history.add("lr", step, 1e-3);
            history.add("grad_norm", step, 0.);
        }
        history.add("valid loss", 5, 2.);
        history.add("valid rmse", 5, 3.);
        let svg = svg(&history)?;
        assert!(svg.contains("valid loss") && svg.contains("validation metrics"), "{svg}");
        // One point is no line.
        assert!(svg.contains("<circle"), "{svg}");
        let number = plot::number;
        assert_eq!(
            [0., 1e-5, 0.00123, 0.5, 12.345, 400., 123456.].map(number),
            ["0", "1.0e-5", "0.00123", "0.5", "12.3", "400", "1.2e5"]
        );
        Ok(())
    }

    #[test]
    fn curves_of_one_order_of_magnitude_share_a_panel() {
        let mut history = History::default();
        for (name, value) in [
            ("loss", 2.),
            ("policy", 0.01),
            ("value", 300.),
            ("kl", -0.02),
            ("valid loss", 3.),
            ("share", 40.),
            ("none", 0.),
        ] {
            (1..9).for_each(|step| history.add(name, step, value));
        }
        // One step that exploded is not what is usual.
        history.add("policy", 9, 1e6);
        let names = history.curves.iter().map(|c| c.name.clone()).collect();
        let groups: Vec<_> =
            by_scale(&history, "loss", names).into_iter().map(|(title, names)| (title, names.join(" "))).collect();
        let expected = [("loss", "loss valid loss none"), ("policy, kl", "policy kl"), ("value, share", "value share")];
        assert_eq!(groups, expected.map(|(title, names)| (title.to_string(), names.to_string())));
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
