//! `watch`: runs in the terminal, as they go on.

mod screen;
mod seen;

use std::io::{IsTerminal, stdout};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Args;
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use serde_json::{Value, json};
use zoo_training::{Error, RunFiles, RunState};

use crate::arguments::Json;
use crate::health::Profiles;
use crate::output::{print, print_json};
use crate::signals::stop_flag;
use screen::View;
use seen::Seen;

#[derive(Args)]
pub(crate) struct Arguments {
    /// Run directories; by default those under runs/ that are training, or else the newest one
    #[arg(value_name = "RUN")]
    pub(crate) runs: Vec<PathBuf>,
    /// Look again after so many seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 1.)]
    pub(crate) every: f64,
    /// Print one screen as text and stop, as without a terminal
    #[arg(long)]
    pub(crate) once: bool,
    /// Columns and rows of a printed screen
    #[arg(long, value_name = "WIDTHxHEIGHT", default_value = "80x24")]
    pub(crate) size: String,
    #[command(flatten)]
    pub(crate) json: Json,
}

pub(crate) fn run(args: &Arguments, profiles: Profiles) -> anyhow::Result<()> {
    if !(0.05..=3600.).contains(&args.every) {
        return Err(Error::Usage(format!("--every {}: expected 0.05 to 3600 seconds", args.every)).into());
    }
    let size = size(&args.size)?;
    let paths = if args.runs.is_empty() { usual()? } else { args.runs.clone() };
    let mut runs = paths.iter().map(|path| Seen::new(path)).collect::<anyhow::Result<Vec<_>>>()?;
    runs.iter_mut().for_each(|run| run.look(profiles));
    if args.json.json {
        let all: Vec<Value> = runs.iter().map(Seen::json).collect();
        print_json(&json!({ "runs": all }));
        return Ok(());
    }
    let terminal = !args.once && stdout().is_terminal();
    let mut view = View::new(terminal);
    if !terminal {
        print(&text(&runs, &view, size)?);
        return Ok(());
    }
    let stop = stop_flag()?;
    // However this ends, the terminal becomes what it was.
    struct Restored;
    impl Drop for Restored {
        fn drop(&mut self) {
            ratatui::restore();
        }
    }
    let mut terminal = ratatui::try_init().context("the terminal")?;
    let _restored = Restored;
    let (every, mut looked) = (Duration::from_secs_f64(args.every), Instant::now());
    while !stop.load(Ordering::Relaxed) {
        terminal.draw(|frame| screen::draw(frame, &runs, &view)).context("the terminal")?;
        let left = every.saturating_sub(looked.elapsed()).min(Duration::from_millis(250));
        if event::poll(left).context("the terminal")? {
            match event::read().context("the terminal")? {
                Event::Key(key) if key.kind != KeyEventKind::Release && ends(key) => break,
                Event::Key(key) if key.kind != KeyEventKind::Release => view.press(key.code, &runs),
                _ => {}
            }
        }
        if looked.elapsed() >= every {
            runs.iter_mut().for_each(|run| run.look(profiles));
            looked = Instant::now();
        }
    }
    Ok(())
}

fn ends(key: KeyEvent) -> bool {
    let interrupt = key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL);
    interrupt || matches!(key.code, KeyCode::Char('q') | KeyCode::Esc)
}

/// The runs under runs/ that are training, or else the one that was written to last.
fn usual() -> anyhow::Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir("runs").into_iter().flatten().flatten().map(|entry| entry.path());
    let mut runs: Vec<PathBuf> = entries.filter(|path| RunFiles::at(path).exist()).collect();
    let written = |path: &Path| std::fs::metadata(RunFiles::at(path).metrics()).and_then(|m| m.modified()).ok();
    runs.sort_by_key(|path| (written(path), path.clone()));
    let training: Vec<PathBuf> =
        runs.iter().filter(|path| RunFiles::at(path).state() == RunState::Running).cloned().collect();
    match (training.is_empty(), runs.pop()) {
        (false, _) => Ok(training),
        (true, Some(newest)) => Ok(vec![newest]),
        (true, None) => Err(Error::Run("there is no run under runs/: name its directory".into()).into()),
    }
}

fn size(text: &str) -> anyhow::Result<(u16, u16)> {
    let parsed = text.split_once('x').and_then(|(w, h)| Some((w.parse().ok()?, h.parse().ok()?)));
    let fits = |(w, h): &(u16, u16)| (40..=500).contains(w) && (12..=200).contains(h);
    let wrong = || Error::Usage(format!("--size {text}: expected 40x12 to 500x200"));
    Ok(parsed.filter(fits).ok_or_else(wrong)?)
}

/// A screen as text.
fn text(runs: &[Seen], view: &View, (width, height): (u16, u16)) -> anyhow::Result<String> {
    let Ok(mut terminal) = Terminal::new(TestBackend::new(width, height));
    let Ok(_) = terminal.draw(|frame| screen::draw(frame, runs, view));
    let cells = terminal.backend().buffer().content().chunks(usize::from(width));
    let line = |cells: &[ratatui::buffer::Cell]| cells.iter().map(|cell| cell.symbol()).collect::<String>();
    Ok(cells.map(|cells| format!("{}\n", line(cells).trim_end())).collect())
}
