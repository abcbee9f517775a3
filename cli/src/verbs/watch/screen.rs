//! The screen: curves, numbers, the map of gradient zeros, what the doctor says.

use std::env;

use ratatui::Frame;
use ratatui::crossterm::event::KeyCode;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::symbols::Marker;
use ratatui::text::{Line, Span};
use ratatui::widgets::{Axis, Block, Chart, Dataset, GraphType, Paragraph, Wrap};

use super::seen::{Seen, duration};
use crate::output::{cut, shown};
use crate::plot::number;

/// What the user looks at.
pub(super) struct View {
    /// Which run.
    run: usize,
    /// Which curve: 0 is the loss.
    curve: usize,
    logarithmic: bool,
    colours: bool,
}

const COLOURS: [Color; 6] =
    [Color::Cyan, Color::Yellow, Color::Green, Color::Magenta, Color::LightRed, Color::LightBlue];
/// What tells lines apart where there are no colours.
const SYMBOLS: [(Marker, &str); 4] =
    [(Marker::Braille, "⠤"), (Marker::Dot, "•"), (Marker::Block, "█"), (Marker::HalfBlock, "▀")];

/// A line of the chart.
struct Shown {
    name: String,
    points: Vec<(f64, f64)>,
    style: Style,
    marker: (Marker, &'static str),
}

impl View {
    /// On a terminal, or as text.
    pub(super) fn new(terminal: bool) -> Self {
        // https://no-color.org
        let wanted = env::var_os("NO_COLOR").is_none_or(|v| v.is_empty())
            && env::var("TERM").map_or(cfg!(windows), |t| t != "dumb");
        Self { run: 0, curve: 0, logarithmic: false, colours: terminal && wanted }
    }

    /// Does what a key stands for.
    pub(super) fn press(&mut self, key: KeyCode, runs: &[Seen]) {
        let around = |at: usize, by: usize, of: usize| (at + by) % of.max(1);
        let curves = curves(runs).len();
        match key {
            KeyCode::Tab | KeyCode::Down | KeyCode::Char('j') => self.run = around(self.run, 1, runs.len()),
            KeyCode::BackTab | KeyCode::Up | KeyCode::Char('k') => {
                self.run = around(self.run, runs.len() - 1, runs.len());
            }
            KeyCode::Right | KeyCode::Char('m') => self.curve = around(self.curve, 1, curves),
            KeyCode::Left | KeyCode::Char('M') => self.curve = around(self.curve, curves - 1, curves),
            KeyCode::Char('l') => self.logarithmic = !self.logarithmic,
            _ => {}
        }
    }

    fn style(&self, color: Color) -> Style {
        if self.colours { Style::new().fg(color) } else { Style::new() }
    }

    fn marker(&self, i: usize) -> (Marker, &'static str) {
        if self.colours { SYMBOLS[0] } else { SYMBOLS[i % SYMBOLS.len()] }
    }

    /// The lines that the chart shows.
    fn lines(&self, runs: &[Seen], curve: &str) -> Vec<Shown> {
        let mut lines = vec![];
        let mut add = |name: String, run: &Seen, curve: &str, color: usize| {
            let points = run.history().curve(curve).iter().map(|p| (p.0 as f64, p.1));
            let kept = |p: &(f64, f64)| !self.logarithmic || p.1 > 0.;
            let log = |p: (f64, f64)| if self.logarithmic { (p.0, p.1.log10()) } else { p };
            let points: Vec<_> = points.filter(kept).map(log).collect();
            if !points.is_empty() {
                let style = self.style(COLOURS[color % COLOURS.len()]);
                lines.push(Shown { name: shown(&name).into_owned(), points, style, marker: self.marker(color) });
            }
        };
        for (i, run) in runs.iter().enumerate() {
            match (runs.len(), curve) {
                (1, "loss") => {
                    add("training".into(), run, "loss", 0);
                    add("validation".into(), run, "valid loss", 1);
                }
                (1, curve) => add(curve.into(), run, curve, 0),
                // Of several runs the validation loss tells more, where there is one.
                (_, "loss") if !run.history().curve("valid loss").is_empty() => {
                    add(run.name.clone(), run, "valid loss", i);
                }
                (_, curve) => add(run.name.clone(), run, curve, i),
            }
        }
        lines
    }
}

/// What can be shown: the loss, and every other curve but the validation loss, which stands with it.
fn curves(runs: &[Seen]) -> Vec<&str> {
    let mut names = vec!["loss"];
    for curve in runs.iter().flat_map(|run| &run.history().curves) {
        if curve.name != "valid loss" && !names.contains(&curve.name.as_str()) && names.len() < 200 {
            names.push(&curve.name);
        }
    }
    names
}

/// Draws everything.
pub(super) fn draw(frame: &mut Frame, runs: &[Seen], view: &View) {
    let run = &runs[view.run.min(runs.len() - 1)];
    let several = runs.len() > 1;
    let all = frame.area();
    let heat = run.heat.lines(all.width as usize);
    let text = match &run.error {
        Some(error) => vec![Line::styled(error.clone(), view.style(Color::Red))],
        None => run.sentences().into_iter().map(Line::raw).collect(),
    };
    // What the doctor says takes what it needs, a third of the screen at most; so does the map.
    let lines: usize = text.iter().map(|line| line.width().div_ceil(usize::from(all.width.max(20)) - 8).max(1)).sum();
    let words = (lines as u16).clamp(3, (all.height / 3).max(3));
    let map = match several {
        true => 0,
        false => (heat.len() as u16).min(all.height.saturating_sub(14)).min(all.height / 3),
    };
    let above = if several { (runs.len() as u16 + 1).min(all.height / 3) } else { 0 };
    let rows = [
        Constraint::Length(1),
        Constraint::Length(above),
        Constraint::Min(6),
        Constraint::Length(map),
        Constraint::Length(words),
        Constraint::Length(1),
    ];
    let [head, list, middle, below, said, keys] = Layout::vertical(rows).areas(all);
    title(frame, head, run, view);
    if several {
        table(frame, list, runs, view);
    }
    let [left, right] = Layout::horizontal([Constraint::Min(30), Constraint::Length(30)]).areas(middle);
    chart(frame, left, runs, view);
    numbers(frame, right, run);
    let shades = heat.into_iter().take(map as usize).map(Line::raw);
    frame.render_widget(Paragraph::new(shades.collect::<Vec<_>>()), below);
    frame.render_widget(Paragraph::new(text).wrap(Wrap { trim: true }), said);
    let more = if several { "tab run   " } else { "" };
    frame.render_widget(Paragraph::new(format!(" q leave   ← → curve   {more}l logarithmic")).style(dim(view)), keys);
}

fn dim(view: &View) -> Style {
    if view.colours { Style::new().add_modifier(Modifier::DIM) } else { Style::new() }
}

fn title(frame: &mut Frame, area: Rect, run: &Seen, view: &View) {
    let color = match () {
        () if run.goes_on() => Color::Green,
        () if run.doing().starts_with("failed") => Color::Red,
        () => Color::Yellow,
    };
    let model = if run.model.is_empty() { String::new() } else { format!(" ({})", run.model) };
    let mut spans = vec![
        Span::styled(format!(" {}", cut(&run.name, 40)), Style::new().add_modifier(Modifier::BOLD)),
        Span::raw(format!("{}: ", cut(&model, 40))),
        Span::styled(run.doing(), view.style(color)),
    ];
    if let (Some(total), step) = (run.total().filter(|n| *n > 0), run.step()) {
        let left = run.left().map_or(String::new(), |s| format!(", {} left", duration(s)));
        spans.push(Span::raw(format!(", {:.0} %{left}", 100. * step as f64 / total as f64)));
    }
    frame.render_widget(Line::from(spans), area);
}

/// A row a run.
fn table(frame: &mut Frame, area: Rect, runs: &[Seen], view: &View) {
    let width = runs.iter().map(|r| r.name.chars().count()).max().unwrap_or(0).clamp(3, 24);
    let header = format!("    {:<width$} {:>9} {:>10} {:>20}  {}", "run", "step", "loss", "best validation", "state");
    let mut lines = vec![Line::styled(header, dim(view))];
    // The selected one is always among those that fit.
    let rows = (area.height as usize).saturating_sub(1);
    let first = (view.run + 1).saturating_sub(rows);
    for (i, run) in runs.iter().enumerate().skip(first) {
        let best = run.best().map_or("–".into(), |(step, v)| format!("{} at {step}", number(v)));
        let loss = run.history().curve("loss").last().map_or("–".into(), |p| number(p.1));
        let mark = if i == view.run { '>' } else { ' ' };
        let symbol = Span::styled(view.marker(i).1, view.style(COLOURS[i % COLOURS.len()]));
        let most = if run.name.chars().count() > width { width - 1 } else { width };
        let name = cut(&run.name, most);
        let rest = format!(" {name:<width$} {:>9} {loss:>10} {best:>20}  {}", run.step(), run.briefly());
        lines.push(Line::from(vec![Span::raw(format!("{mark} ")), symbol, Span::raw(rest)]));
    }
    frame.render_widget(Paragraph::new(lines), area);
}

fn chart(frame: &mut Frame, area: Rect, runs: &[Seen], view: &View) {
    let names = curves(runs);
    let name = names[view.curve % names.len()];
    let mut lines = view.lines(runs, name);
    // Two points a column are what one can tell apart.
    let most = 2 * usize::from(area.width).max(20);
    for line in &mut lines {
        let each = line.points.len().div_ceil(most).max(1);
        let mean = |part: &[(f64, f64)]| {
            let n = part.len() as f64;
            (part.iter().map(|p| p.0).sum::<f64>() / n, part.iter().map(|p| p.1).sum::<f64>() / n)
        };
        line.points = line.points.chunks(each).map(mean).collect();
    }
    let bounds = |of: fn(&(f64, f64)) -> f64| {
        let values = lines.iter().flat_map(|l| &l.points).map(of);
        values.fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), v| (a.min(v), b.max(v)))
    };
    let ((x0, x1), (y0, y1)) = (bounds(|p| p.0), bounds(|p| p.1));
    let mut title = vec![Span::raw(format!(" {} ", shown(cut(name, 40).as_ref())))];
    if view.logarithmic {
        title.push(Span::raw("(log) "));
    }
    if lines.len() > 1 && runs.len() == 1 {
        for line in &lines {
            title.push(Span::styled(format!("{} {}  ", line.marker.1, line.name), line.style));
        }
    }
    let block = Block::bordered().title(Line::from(title)).border_style(dim(view));
    if x0 > x1 {
        frame.render_widget(Paragraph::new("\n  no step is on record yet").block(block), area);
        return;
    }
    let pad = (0.05 * (y1 - y0)).max(1e-9 * y1.abs()).max(1e-12);
    // What is never negative has no axis below zero.
    let least = if y0 >= 0. && !view.logarithmic { (y0 - pad).max(0.) } else { y0 - pad };
    let (y0, y1) = (least, y1 + pad);
    let back = |v: f64| number(if view.logarithmic { 10f64.powf(v) } else { v });
    let sets = lines.iter().map(|l| {
        let set = Dataset::default().marker(l.marker.0).style(l.style).data(&l.points);
        set.graph_type(if l.points.len() > 1 { GraphType::Line } else { GraphType::Scatter })
    });
    let x_labels = [format!("{x0:.0}"), format!("{:.0}", (x0 + x1) / 2.), format!("{x1:.0}")];
    let y_labels = [back(y0), back((y0 + y1) / 2.), back(y1)];
    let chart = Chart::new(sets.collect())
        .block(block)
        .legend_position(None)
        .x_axis(Axis::default().bounds([x0, x1.max(x0 + 1.)]).labels(x_labels).style(dim(view)))
        .y_axis(Axis::default().bounds([y0, y1]).labels(y_labels).style(dim(view)));
    frame.render_widget(chart, area);
}

fn numbers(frame: &mut Frame, area: Rect, run: &Seen) {
    let rows = run.numbers();
    let line = |(name, value): (&str, String)| Line::raw(format!(" {name:<16} {value}"));
    frame.render_widget(Paragraph::new(rows.into_iter().map(line).collect::<Vec<_>>()), area);
}
