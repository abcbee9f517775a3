//! `report`: a page about one run or several.

use std::path::{Path, PathBuf};

use clap::Args;
use maud::{DOCTYPE, Markup, PreEscaped, html};
use plotters::prelude::*;
use serde_json::Value;
use zoo_checkpoint::Folder;
use zoo_training::History;
use zoo_training::doctor::{Diagnosis, Verdict, diagnose};
use zoo_training::health::{Check, Level, Report};

use crate::arguments::Force;
use crate::curves::panels;
use crate::health::{self, Profiles, advised};
use crate::heat::HeatMap;
use crate::output::{note, program};
use crate::plot::{self, COLORS, Line, failed, number, panel};

const STYLE: &str = "
:root { color-scheme: light; --ink: #1b2430; --soft: #5b6675; --line: #e3e7ec; --back: #f6f7f9; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 28px 20px 60px; }
h1 { font-size: 24px; margin: 0 0 4px; } h2 { font-size: 16px; margin: 0 0 10px; }
p { margin: 0; color: var(--soft); }
section { background: #fff; border: 1px solid var(--line); border-radius: 10px; padding: 18px 20px; margin-top: 18px; overflow-x: auto; }
.two { display: grid; grid-template-columns: repeat(auto-fit, minmax(460px, 1fr)); gap: 18px; }
.two section { margin-top: 0; } .two { margin-top: 18px; }
svg { width: 100%; height: auto; display: block; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: 6px 10px; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { color: var(--soft); font-weight: 600; } th:first-child, td:first-child { text-align: left; }
.dot { display: inline-block; width: 10px; height: 10px; border-radius: 50%; margin-right: 8px; }
.verdict { display: inline-block; border-radius: 999px; padding: 1px 10px; font-size: 13px; font-weight: 600; }
.good { background: #e0f2e4; color: #1d6b34; } .poor { background: #fdecd9; color: #8a4b08; }
.run { margin-bottom: 14px; } .run:last-child { margin-bottom: 0; }
ul { margin: 6px 0 0; padding-left: 20px; color: var(--soft); }
code { font: 13px ui-monospace, monospace; } details { margin-top: 8px; } summary { cursor: pointer; color: var(--soft); }
pre { font: 12.5px/1.5 ui-monospace, monospace; margin: 8px 0 0; columns: 3 280px; }
@media (max-width: 560px) { .two { grid-template-columns: 1fr; } }
";

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
    #[command(flatten)]
    pub(crate) force: Force,
}

pub(crate) fn run(args: &Arguments, profiles: Profiles) -> anyhow::Result<()> {
    let read = |path: &PathBuf| -> anyhow::Result<Run> {
        let (history, config) = health::read(path)?;
        let diagnosis = diagnose(&history, &config);
        let (checks, health) = health::of_run(path, &config, profiles)?;
        let whole = std::path::absolute(path)?;
        let name = whole.file_name().map_or(path.display().to_string(), |n| n.to_string_lossy().into_owned());
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
    let runs = args.runs.iter().map(read).collect::<anyhow::Result<Vec<_>>>()?;
    let page = page(&runs)?.into_string();
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
    Ok(())
}

fn page(runs: &[Run]) -> anyhow::Result<Markup> {
    let title = match runs {
        [one] => one.name.clone(),
        several => format!("{} runs", several.len()),
    };
    let model = |run: &Run| run.history.curve("loss").last().map_or(0, |p| p.0);
    let steps = runs.iter().map(model).max().unwrap_or(0);
    Ok(html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { (program()) ": " (title) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                main {
                    h1 { (title) }
                    p { "training report, up to " (steps) " steps" }
                    section { (summary(runs)) }
                    section { @for run in runs { (judgement(run)) } }
                    div.two { @for (title, svg) in charts(runs)? { section { h2 { (title) } (PreEscaped(svg)) } } }
                    @for run in runs {
                        @if let Some(svg) = HeatMap::of(&run.checks).svg()? {
                            section { h2 { "zeros of the gradients, " (run.name) } (PreEscaped(svg)) }
                        }
                    }
                    section { h2 { @if runs.len() > 1 { "settings that differ" } @else { "settings" } } (settings(runs)?) }
                }
            }
        }
    })
}

fn color(i: usize) -> RGBColor {
    COLORS[i % COLORS.len()]
}

fn dot(i: usize) -> Markup {
    let RGBColor(r, g, b) = color(i);
    html! { span.dot style=(format!("background: rgb({r}, {g}, {b})")) {} }
}

/// One row a run: where its losses ended and the metrics of its best evaluation.
fn summary(runs: &[Run]) -> Markup {
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
    html! {
        table {
            thead {
                tr {
                    th { "run" } th { "steps" } th { "training loss" } th { "best validation loss" } th { "at step" }
                    @for metric in &metrics { th { (metric.replace('_', " ")) } }
                }
            }
            tbody {
                @for (i, run) in runs.iter().enumerate() {
                    @let numbers = &run.diagnosis.numbers;
                    tr {
                        td { (dot(i)) (run.name) }
                        td { (run.history.curve("loss").last().map_or(0, |p| p.0)) }
                        td { (number(numbers.train_end)) }
                        td { (number(numbers.valid_best)) }
                        td { (numbers.valid_best_step) }
                        @for metric in &metrics { td { (at(run, metric)) } }
                    }
                }
            }
        }
    }
}

fn judgement(run: &Run) -> Markup {
    let Diagnosis { verdict, because, advice, .. } = &run.diagnosis;
    let class = if *verdict == Verdict::Healthy { "verdict good" } else { "verdict poor" };
    html! {
        div.run {
            h2 { (run.name) " " span class=(class) { (health::name(*verdict)) } }
            p { (because) }
            @if run.history.refused > 0 { p { (run.history.refused) " steps were refused as not finite or as spikes" } }
            @if !advice.is_empty() { ul { @for line in advice { li { code { (advised(line)) } } } } }
            @let findings: Vec<_> = run.health.findings.iter().filter(|f| f.level >= Level::Alert).collect();
            @if !run.checks.is_empty() {
                p {
                    "gradient health: " (run.checks.len()) " checks, " (format!("{:.1}", 100. * run.health.dead)) " % of the elements dead"
                    @if findings.is_empty() { ", nothing to raise" }
                }
            }
            @if !findings.is_empty() { ul { @for finding in findings { li { (health::line(finding)) } } } }
        }
    }
}

/// A chart a panel; the training loss of a run is paler than its validation loss.
fn charts(runs: &[Run]) -> anyhow::Result<Vec<(String, String)>> {
    const SIZE: (u32, u32) = (620, 360);
    let mut groups: Vec<(String, Vec<String>)> = vec![];
    for (title, names) in runs.iter().flat_map(|r| panels(&r.history)) {
        // Metrics have units of their own: a chart each.
        let parts: Vec<(String, Vec<String>)> = match title {
            "validation metrics" => names.into_iter().map(|n| (n.replace('_', " "), vec![n])).collect(),
            _ => vec![(title.to_string(), names)],
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
            for (k, name) in names.iter().enumerate() {
                let points = run.history.curve(name);
                let (label, color) = match runs {
                    [_] => (name.clone(), color(k).mix(1.)),
                    _ if name == "loss" => (format!("{} train", run.name), color(i).mix(0.35)),
                    _ => (format!("{} {}", run.name, name.strip_suffix(" loss").unwrap_or_default()), color(i).mix(1.)),
                };
                if !points.is_empty() {
                    lines.push(Line::new(label.trim(), points, color));
                }
            }
        }
        if !lines.is_empty() {
            let svg = plot::svg(SIZE, |area| {
                area.fill(&WHITE).map_err(failed)?;
                panel(area, "", lines)
            })?;
            // The page scales the picture.
            let (width, height) = SIZE;
            charts.push((title, svg.replacen(&format!("<svg width=\"{width}\" height=\"{height}\""), "<svg", 1)));
        }
    }
    Ok(charts)
}

/// All settings of one run, or those in which several differ.
fn settings(runs: &[Run]) -> anyhow::Result<Markup> {
    if let [one] = runs {
        let text = toml::to_string(&one.config)?;
        return Ok(html! { pre { (text) } });
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
    Ok(html! {
        @if keys.is_empty() { p { "none" } } @else {
            table {
                thead { tr { th { "run" } @for key in &keys { th { code { (key) } } } } }
                tbody {
                    @for (i, run) in runs.iter().enumerate() {
                        tr { td { (dot(i)) (run.name) } @for key in &keys { td { (value(run, key)) } } }
                    }
                }
            }
        }
    })
}
