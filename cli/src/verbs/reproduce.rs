//! `reproduce`: an experiment of a model's crate, its figures beside those that were published.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::Ordering;

use clap::Args;
use plotters::coord::Shift;
use plotters::prelude::*;
use zoo_training::{Block, Error, Experiment, Figure, Findings, Panel, Setup};

use crate::arguments::{Force, Json};
use crate::output::{note, print, print_json, table};
use crate::plot::{COLORS, Line, Paint, check_name, draw, draw_picture, failed, panel};
use crate::signals::{STOPPED, stop_flag};

#[derive(Args)]
pub(crate) struct Arguments {
    /// The experiment
    #[arg(value_name = "NAME")]
    name: String,
    /// How long it is, in the unit that the list of experiments gives
    #[arg(long, value_name = "N")]
    steps: Option<u64>,
    /// Seed of data, weights, order and chance
    #[arg(long, value_name = "SEED")]
    seed: Option<u64>,
    /// Real data, for an experiment that takes them
    #[arg(long, value_name = "PATH")]
    data: Option<PathBuf>,
    /// A picture to draw (.svg or .png)
    #[arg(long, value_name = "PATH")]
    plot: Option<PathBuf>,
    #[command(flatten)]
    force: Force,
    #[command(flatten)]
    json: Json,
}

/// What the help says of the experiments.
pub(crate) fn help(all: &[Experiment]) -> String {
    let line = |e: &Experiment| {
        let data = if e.data.is_empty() { String::new() } else { format!("; --data: {}", e.data) };
        format!("  {}: {}; --steps: {}{data}", e.name, e.summary, e.steps)
    };
    format!("Experiments:\n{}", all.iter().map(line).collect::<Vec<_>>().join("\n"))
}

pub(crate) fn run(args: &Arguments, all: &[Experiment]) -> anyhow::Result<ExitCode> {
    let usage = |what: String| Err(Error::Usage(what).into());
    let Some(experiment) = all.iter().find(|e| e.name == args.name) else {
        let names = all.iter().map(|e| e.name).collect::<Vec<_>>().join(", ");
        return usage(format!("there is nothing to reproduce named {}: {names}", args.name));
    };
    let Experiment { name, range, steps, data, figure, run, .. } = experiment;
    if let Some(asked) = args.steps.filter(|n| !range.contains(n)) {
        return usage(format!("--steps {asked}: at least {}; {name} counts {steps}", range.start()));
    }
    if args.data.is_some() && data.is_empty() {
        return usage(format!("--data: {name} makes its own"));
    }
    if let Some(plot) = &args.plot {
        if !figure {
            return usage(format!("--plot: {name} has no picture"));
        }
        check_name(plot)?;
        args.force.check([plot.as_path()])?;
        let folder = std::path::absolute(plot)?.parent().map(Path::to_path_buf).unwrap_or_default();
        if !folder.is_dir() {
            return usage(format!("--plot {}: there is no folder {}", plot.display(), folder.display()));
        }
    }
    let (stop, folder) = (stop_flag()?, tempfile::tempdir()?);
    let found = run(&Setup {
        steps: args.steps,
        seed: args.seed,
        data: args.data.as_deref(),
        folder: folder.path(),
        going: &|| !stop.load(Ordering::Relaxed),
        progress: &note,
    })?;
    // A short experiment runs to its end, which counts for nothing once it was to stop.
    let found = found.filter(|_| !stop.load(Ordering::Relaxed));
    let Some(Findings { json, text, figure }) = found else {
        note("interrupted: nothing was written");
        return Ok(ExitCode::from(STOPPED));
    };
    match (&args.plot, &figure) {
        (Some(path), Some(Figure::Picture(picture))) => draw_picture(path, picture, args.force)?,
        (Some(path), Some(Figure::Panels(panels))) => draw_panels(path, panels, args.force)?,
        _ => {}
    }
    if args.json.json {
        print_json(&json);
    } else {
        let shown = |block: &Block| match block {
            Block::Lines(text) => format!("{text}\n"),
            Block::Table(rows) => format!("{}\n", table(rows)),
        };
        print(&text.iter().map(shown).collect::<String>());
    }
    Ok(ExitCode::SUCCESS)
}

fn draw_panels(path: &Path, panels: &[Panel], force: Force) -> anyhow::Result<()> {
    const SIZE: (u32, u32) = (1100, 760);
    draw(path, SIZE, &Panels(panels), force)
}

struct Panels<'a>(&'a [Panel]);

impl Paint for Panels<'_> {
    fn paint<B: DrawingBackend>(&self, area: &DrawingArea<B, Shift>) -> anyhow::Result<()>
    where
        B::ErrorType: 'static,
    {
        area.fill(&WHITE).map_err(failed)?;
        for (area, Panel { title, lines }) in area.split_evenly((self.0.len().div_ceil(2), 2)).iter().zip(self.0) {
            let color = |i: usize| COLORS[i % COLORS.len()].mix(if i < COLORS.len() { 1. } else { 0.5 });
            let lines = lines.iter().enumerate().map(|(i, (name, points))| Line::new(name, points, color(i)));
            panel(area, title, lines.collect())?;
        }
        Ok(())
    }
}
