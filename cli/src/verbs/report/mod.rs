//! `report`: a page about one run or several, which draws its curves itself and needs no network, and the same curves as a
//! picture.

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;
use plotters::coord::Shift;
use plotters::prelude::*;
use serde_json::{Value, json};
use zoo_checkpoint::Folder;
use zoo_training::History;
use zoo_training::doctor::{Diagnosis, Verdict};
use zoo_training::health::{Check, Level, Report};

use crate::arguments::Force;
use crate::curves::{by_scale, kinds};
use crate::health::{self, Judged, Profiles, advised};
use crate::heat::HeatMap;
use crate::output::{note, program};
use crate::plot::{COLORS, Line, Paint, check_name, draw, failed, number, panel, within};

/// The page without what it is about: its style and its script, which are ours.
const TEMPLATE: &str = include_str!("page.html");

/// What the page is called.
const PAGE: &str = "report.html";

/// What the page says about a run.
struct Run {
    name: String,
    history: History,
    config: Value,
    diagnosis: Diagnosis,
    checks: Vec<Check>,
    health: Report,
}

#[derive(Args)]
pub(crate) struct Arguments {
    /// Run directories
    #[arg(required = true, value_name = "RUN")]
    pub(crate) runs: Vec<PathBuf>,
    /// The page; report.html in the run, or here for several runs
    #[arg(long, value_name = "PATH")]
    pub(crate) output: Option<PathBuf>,
    /// The title of the page; the name of the run by default
    #[arg(long, value_name = "TEXT")]
    pub(crate) title: Option<String>,
    /// Draw the curves to a picture, too (.svg or .png)
    #[arg(long, value_name = "PATH")]
    pub(crate) plot: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) force: Force,
}

pub(crate) fn run(args: &Arguments, profiles: Profiles) -> anyhow::Result<()> {
    let read = |path: &PathBuf| -> anyhow::Result<Run> {
        let Judged { history, config, checks, report: health, diagnosis } = Judged::read(path, profiles)?;
        let name = health::name_of(path);
        Ok(Run { name, history, config, diagnosis, checks, health })
    };
    // In a run, its page is one of its own files.
    let own = match (&args.output, &args.runs[..]) {
        (None, [one]) => Some(one),
        _ => None,
    };
    let output = args.output.as_deref().unwrap_or(Path::new(PAGE));
    if own.is_none() {
        args.force.check([output])?;
    }
    if let Some(plot) = &args.plot {
        check_name(plot)?;
        args.force.check([plot.as_path()])?;
    }
    let runs = args.runs.iter().map(read).collect::<anyhow::Result<Vec<_>>>()?;
    let page = page(&runs, args.title.as_deref())?;
    let output = match own {
        Some(run) => {
            Folder::open(run)?.replace(PAGE, |f| f.write_all(page.as_bytes()))?;
            run.join(PAGE)
        }
        None => {
            args.force.write(output, page.as_bytes())?;
            output.into()
        }
    };
    note(&format!("report: {}", output.display()));
    if let Some(plot) = &args.plot {
        let charts = charts(&runs);
        let rows = charts.len().div_ceil(2).max(1) as u32;
        draw(plot, (1240, 380 * rows), &Charts { charts: &charts }, args.force)?;
        note(&format!("curves: {}", plot.display()));
    }
    Ok(())
}

/// The page: the template with its title and data, which are text to it whatever they hold.
fn page(runs: &[Run], title: Option<&str>) -> anyhow::Result<String> {
    let title = match (title, runs) {
        (Some(title), _) => title.to_string(),
        (None, [one]) => one.name.clone(),
        (None, several) => format!("{} runs", several.len()),
    };
    let last = |run: &Run| run.history.curve("loss").last().map_or(0, |p| p.0);
    let steps = runs.iter().map(last).max().unwrap_or(0);
    let zeros = runs.iter().filter_map(|run| {
        let mut map = HeatMap::of(&run.checks).json();
        let empty = |key: &str| map[key].as_array().is_none_or(Vec::is_empty);
        let there = !empty("steps") && !empty("parameters");
        map["run"] = run.name.clone().into();
        there.then_some(map)
    });
    let data = json!({
        "title": title, "subtitle": format!("training report, up to {steps} steps"),
        "summary": summary(runs), "runs": runs.iter().map(judgement).collect::<Vec<_>>(),
        "charts": charts(runs).iter().map(Chart::json).collect::<Vec<_>>(), "zeros": zeros.collect::<Vec<_>>(), "settings": settings(runs)?,
    });
    let heading: String = format!("{}: {title}", program())
        .chars()
        .map(|c| match c {
            '<' | '>' | '&' => ' ',
            c => c,
        })
        .collect();
    // Within a script element only "<" could end it.
    let data = data.to_string().replace('<', "\\u003c");
    let (before, rest) = TEMPLATE.split_once("__TITLE__").context("the template has no title")?;
    let (between, behind) = rest.split_once("__DATA__").context("the template has no place for data")?;
    Ok([before, &heading, between, &data, behind].concat())
}

/// One row a run: where its losses ended and the metrics of its best evaluation.
fn summary(runs: &[Run]) -> Value {
    let mut metrics: Vec<&str> = vec![];
    for name in runs.iter().flat_map(|r| r.history.curves.iter().filter_map(|c| c.name.strip_prefix("valid "))) {
        if !metrics.contains(&name) && name != "loss" {
            metrics.push(name);
        }
    }
    let at = |run: &Run, metric: &str| {
        let step = run.diagnosis.numbers.valid_best_step;
        let points = run.history.curve(&format!("valid {metric}"));
        points.iter().find(|p| p.0 == step).map_or("–".into(), |p| number(p.1))
    };
    let mut header = ["run", "steps", "training loss", "best validation loss", "at step"].map(String::from).to_vec();
    header.extend(metrics.iter().map(|m| m.replace('_', " ")));
    let row = |run: &Run| {
        let numbers = &run.diagnosis.numbers;
        let steps = run.history.curve("loss").last().map_or(0, |p| p.0);
        let mut row = vec![run.name.clone(), steps.to_string(), number(numbers.train_end), number(numbers.valid_best)];
        row.push(numbers.valid_best_step.to_string());
        row.extend(metrics.iter().map(|m| at(run, m)));
        row
    };
    json!({ "header": header, "rows": runs.iter().map(row).collect::<Vec<_>>() })
}

fn judgement(run: &Run) -> Value {
    let Diagnosis { verdict, because, advice, .. } = &run.diagnosis;
    let mut remarks = vec![because.clone()];
    if run.history.refused > 0 {
        remarks.push(format!("{} steps were refused as not finite or as spikes", run.history.refused));
    }
    let findings: Vec<_> = run.health.findings.iter().filter(|f| f.level >= Level::Alert).collect();
    let gradients = (!run.checks.is_empty()).then(|| {
        let (checks, dead) = (run.checks.len(), 100. * run.health.dead);
        let nothing = if findings.is_empty() { ", nothing to raise" } else { "" };
        format!("gradient health: {checks} checks, {dead:.1} % of the elements dead{nothing}")
    });
    json!({
        "name": run.name, "verdict": health::name(*verdict), "healthy": *verdict == Verdict::Healthy, "remarks": remarks,
        "advice": advice.iter().map(advised).collect::<Vec<_>>(), "gradients": gradients,
        "findings": findings.into_iter().map(health::line).chain(health::followed(&run.health)).collect::<Vec<_>>(),
    })
}

/// Curves that stand together.
struct Chart<'a> {
    title: String,
    lines: Vec<Shown<'a>>,
}

/// A curve of a chart.
struct Shown<'a> {
    name: String,
    /// Which of the colours.
    color: usize,
    /// Whether it is the training loss beside a validation loss of the same colour.
    dashed: bool,
    points: &'a [(u64, f64)],
}

impl Chart<'_> {
    fn json(&self) -> Value {
        let line = |line: &Shown| {
            let (points, means) = thinned(line.points);
            json!({ "name": line.name, "color": line.color, "dashed": line.dashed, "points": points, "means": means })
        };
        json!({ "title": self.title, "lines": self.lines.iter().map(line).collect::<Vec<_>>() })
    }
}

/// Points of a curve.
type Points = Vec<(u64, f64)>;

/// Of many points the least and the largest of each of equal parts, as what a curve looks like from afar, and the means of
/// the parts, to be smoothed; of few all, and no means.
fn thinned(points: &[(u64, f64)]) -> (Points, Option<Points>) {
    const PARTS: usize = 1000;
    let all: Points = points.iter().map(|p| (p.0, within(p.1))).collect();
    if points.len() <= 2 * PARTS {
        return (all, None);
    }
    let parts = || all.chunks(all.len().div_ceil(PARTS));
    let ends = |part: &[(u64, f64)]| {
        let by_value = |a: &&(u64, f64), b: &&(u64, f64)| a.1.total_cmp(&b.1);
        let mut ends: Points =
            [part.iter().min_by(by_value), part.iter().max_by(by_value)].into_iter().flatten().copied().collect();
        ends.sort_unstable_by_key(|p| p.0);
        ends.dedup();
        ends
    };
    let mean = |part: &[(u64, f64)]| {
        let n = part.len() as f64;
        (part[part.len() / 2].0, part.iter().map(|p| p.1 / n).sum::<f64>())
    };
    (parts().flat_map(ends).collect(), Some(parts().map(mean).collect()))
}

/// A chart a panel, of all runs.
fn charts(runs: &[Run]) -> Vec<Chart<'_>> {
    let mut groups: Vec<(String, Vec<String>)> = vec![];
    for (run, (title, names)) in runs.iter().flat_map(|r| kinds(&r.history).map(|kind| (r, kind))) {
        // Metrics have units of their own: a chart each.
        let parts: Vec<(String, Vec<String>)> = match title {
            "validation metrics" => names.into_iter().map(|n| (n.replace('_', " "), vec![n])).collect(),
            // Of several runs, so has each part of the loss.
            "loss" if runs.len() > 1 => {
                let (whole, parts): (Vec<_>, Vec<_>) =
                    names.into_iter().partition(|n| matches!(n.as_str(), "loss" | "valid loss"));
                let parts = parts.into_iter().map(|n| (n.replace('_', " "), vec![n]));
                [(title.to_string(), whole)].into_iter().chain(parts).collect()
            }
            _ => by_scale(&run.history, title, names),
        };
        for (title, names) in parts {
            match groups.iter_mut().find(|g| g.0 == title) {
                Some((_, all)) => names.into_iter().for_each(|n| {
                    if !all.contains(&n) {
                        all.push(n)
                    }
                }),
                None => groups.push((title, names)),
            }
        }
    }
    let mut charts = vec![];
    for (title, names) in groups {
        let mut lines = vec![];
        for (i, run) in runs.iter().enumerate() {
            for (k, curve) in names.iter().enumerate() {
                let points = run.history.curve(curve);
                let (name, color, dashed) = match (runs, curve.as_str()) {
                    ([_], _) => (curve.clone(), k, false),
                    (_, "loss") => (format!("{} train", run.name), i, true),
                    (_, "valid loss") => (format!("{} valid", run.name), i, false),
                    _ => (run.name.clone(), i, false),
                };
                if !points.is_empty() {
                    lines.push(Shown { name, color, dashed, points });
                }
            }
        }
        if !lines.is_empty() {
            charts.push(Chart { title, lines });
        }
    }
    charts
}

/// All charts as one picture.
struct Charts<'a> {
    charts: &'a [Chart<'a>],
}

impl Paint for Charts<'_> {
    fn paint<B: DrawingBackend>(&self, area: &DrawingArea<B, Shift>) -> anyhow::Result<()>
    where
        B::ErrorType: 'static,
    {
        area.fill(&WHITE).map_err(failed)?;
        let parts = area.split_evenly((self.charts.len().div_ceil(2).max(1), 2));
        for (part, chart) in parts.iter().zip(self.charts) {
            let line = |l: &Shown| {
                let opaque = if l.dashed { 0.4 } else { 1. };
                Line::new(&l.name, l.points, COLORS[l.color % COLORS.len()].mix(opaque))
            };
            panel(part, &chart.title, chart.lines.iter().map(line).collect())?;
        }
        Ok(())
    }
}

/// All settings of one run, or those in which several differ.
fn settings(runs: &[Run]) -> anyhow::Result<Value> {
    if let [one] = runs {
        return Ok(json!({ "title": "settings", "text": toml::to_string(&one.config)?, "header": [], "rows": [] }));
    }
    let mut keys: Vec<String> = vec![];
    for (table, values) in runs.iter().flat_map(|r| r.config.as_object().into_iter().flatten()) {
        for key in values.as_object().into_iter().flatten().map(|(key, _)| format!("{table}.{key}")) {
            if !keys.contains(&key) {
                keys.push(key);
            }
        }
    }
    let value = |run: &Run, key: &str| {
        run.config.pointer(&format!("/{}", key.replacen('.', "/", 1))).cloned().unwrap_or(Value::Null)
    };
    keys.retain(|key| runs.iter().any(|r| value(r, key) != value(&runs[0], key)));
    let row = |run: &Run| {
        [run.name.clone()].into_iter().chain(keys.iter().map(|key| value(run, key).to_string())).collect::<Vec<_>>()
    };
    let header: Vec<&str> = ["run"].into_iter().chain(keys.iter().map(String::as_str)).collect();
    let rows = if keys.is_empty() { vec![] } else { runs.iter().map(row).collect() };
    Ok(json!({ "title": "settings that differ", "text": null, "header": header, "rows": rows }))
}
