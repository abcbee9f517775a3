//! `curves.svg` and `curves.png`: loss, metrics, gradient norm and rate over the steps.

use std::path::{Path, PathBuf};
use std::sync::Once;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::{FontStyle, register_font};
use serde_json::Value;
use zoo_training::{Event, Observer, Picture};

use crate::output::{first_line, note};

const SIZE: (u32, u32) = (1000, 800);
/// Pictures are drawn again while training at most this often.
const PAUSE: Duration = Duration::from_secs(5);
const COLORS: [RGBColor; 4] =
    [RGBColor(31, 119, 180), RGBColor(214, 39, 40), RGBColor(44, 160, 44), RGBColor(148, 103, 189)];

/// One line of a picture: a name and points (step, value).
struct Line {
    name: String,
    points: Vec<(f64, f64)>,
}

/// The curves of a run, in memory and on disk.
pub(crate) struct Curves {
    directory: PathBuf,
    lines: Vec<Line>,
    drawn: Instant,
    broken: bool,
}

impl Curves {
    pub(crate) fn new(directory: &Path) -> Self {
        Self { directory: directory.to_path_buf(), lines: vec![], drawn: Instant::now(), broken: false }
    }

    /// Takes up what a resumed run has in `metrics.jsonl`.
    pub(crate) fn replay(&mut self) -> anyhow::Result<()> {
        let path = self.directory.join("metrics.jsonl");
        let Ok(text) = std::fs::read_to_string(&path) else { return Ok(()) };
        for line in text.lines() {
            let line: Value = serde_json::from_str(line).with_context(|| path.display().to_string())?;
            let step = line["step"].as_u64().unwrap_or_default();
            for (name, value) in line.as_object().into_iter().flatten() {
                match value {
                    Value::Number(n) if !matches!(name.as_str(), "step" | "seconds") => {
                        self.add(name, step, n.as_f64().unwrap_or(f64::NAN))
                    }
                    Value::Object(metrics) => {
                        for (metric, value) in metrics {
                            self.add(&format!("{name} {metric}"), step, value.as_f64().unwrap_or(f64::NAN));
                        }
                    }
                    _ => {}
                }
            }
        }
        Ok(())
    }

    fn add(&mut self, name: &str, step: u64, value: f64) {
        if !value.is_finite() {
            return;
        }
        let at = self.lines.iter().position(|l| l.name == name).unwrap_or_else(|| {
            self.lines.push(Line { name: name.to_string(), points: vec![] });
            self.lines.len() - 1
        });
        let points = &mut self.lines[at].points;
        points.push((step as f64, value));
        // Halving beyond what a picture can show bounds the memory of a long run.
        if points.len() > 8192 {
            let mut keep = false;
            points.retain(|_| {
                keep = !keep;
                keep
            });
        }
    }

    /// Writes both pictures.
    fn draw(&mut self) -> anyhow::Result<()> {
        self.drawn = Instant::now();
        let svg = self.svg()?;
        zoo_checkpoint::replace(&self.directory.join("curves.svg"), |f| f.write_all(svg.as_bytes()))?;
        // The bitmap backend writes by itself; a reader of a half-written picture would only see it late.
        let (temporary, png) = (self.directory.join(".curves.png"), self.directory.join("curves.png"));
        let area = BitMapBackend::new(&temporary, SIZE).into_drawing_area();
        self.paint(&area).with_context(|| png.display().to_string())?;
        drop(area);
        std::fs::rename(&temporary, &png).with_context(|| png.display().to_string())
    }

    /// [`Self::draw`]; curves are no reason to stop a run, so a failure is said once.
    pub(crate) fn draw_or_warn(&mut self) {
        if self.broken {
            return;
        }
        if let Err(e) = self.draw() {
            note(&format!("zoo: warning: {e:#}"));
            self.broken = true;
        }
    }

    fn svg(&self) -> anyhow::Result<String> {
        let mut text = String::new();
        let area = SVGBackend::with_string(&mut text, SIZE).into_drawing_area();
        self.paint(&area)?;
        drop(area);
        Ok(text)
    }

    fn paint<B: DrawingBackend>(&self, area: &DrawingArea<B, Shift>) -> anyhow::Result<()>
    where
        B::ErrorType: 'static,
    {
        register();
        area.fill(&WHITE).map_err(failed)?;
        let of = |wanted: &dyn Fn(&str) -> bool| self.lines.iter().filter(|l| wanted(&l.name)).collect::<Vec<_>>();
        let is_loss = |n: &str| n == "loss" || n.ends_with(" loss");
        let panels = [
            ("loss", of(&is_loss)),
            ("validation metrics", of(&|n| n.contains(' ') && !is_loss(n))),
            ("gradient norm before clipping", of(&|n| n == "grad_norm")),
            ("learning rate", of(&|n| n == "lr")),
        ];
        for ((title, lines), part) in panels.into_iter().zip(area.split_evenly((2, 2))) {
            panel(&part, title, &lines)?;
        }
        area.present().map_err(failed)
    }
}

impl Line {
    /// Means over equal parts where there are more points than one can see apart.
    fn smoothed(&self) -> Line {
        const PARTS: usize = 200;
        let each = self.points.len().div_ceil(PARTS).max(1);
        let mean = |part: &[(f64, f64)]| {
            let n = part.len() as f64;
            (part[part.len() - 1].0, part.iter().map(|p| p.1).sum::<f64>() / n)
        };
        let name = if each > 1 { format!("{} (smoothed)", self.name) } else { self.name.clone() };
        Line { name, points: self.points.chunks(each).map(mean).collect() }
    }
}

/// Draws a model's picture to a file, whole or not at all.
pub(crate) fn draw_picture(path: &Path, extension: &str, picture: &Picture) -> anyhow::Result<()> {
    const SIZE: (u32, u32) = (1000, 500);
    register();
    if extension == "svg" {
        let mut text = String::new();
        let area = SVGBackend::with_string(&mut text, SIZE).into_drawing_area();
        paint_picture(&area, picture)?;
        drop(area);
        return Ok(zoo_checkpoint::replace(path, |f| f.write_all(text.as_bytes()))?);
    }
    let mut temporary = path.as_os_str().to_owned();
    // The bitmap backend decides by the extension.
    temporary.push(".tmp.png");
    let draw = || paint_picture(&BitMapBackend::new(&temporary, SIZE).into_drawing_area(), picture);
    let moved = draw().and_then(|()| Ok(std::fs::rename(&temporary, path)?));
    moved.inspect_err(|_| drop(std::fs::remove_file(&temporary))).with_context(|| path.display().to_string())
}

fn paint_picture<B: DrawingBackend>(area: &DrawingArea<B, Shift>, picture: &Picture) -> anyhow::Result<()>
where
    B::ErrorType: 'static,
{
    let Picture { title, labels, lines, band } = picture;
    area.fill(&WHITE).map_err(failed)?;
    let values = lines.iter().flat_map(|(_, points)| points.iter().map(|p| p.1));
    let values = values.chain(band.iter().flat_map(|b| [b.1, b.2])).filter(|v| v.is_finite());
    let (lo, hi) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(lo, hi), v| (lo.min(v), hi.max(v)));
    if lo > hi {
        return Err(anyhow!("there is nothing to draw"));
    }
    let pad = (0.05 * (hi - lo)).max(1e-6 * hi.abs()).max(1e-12);
    let mut chart = ChartBuilder::on(area);
    chart.caption(title, ("sans-serif", 18)).margin(12).x_label_area_size(28).y_label_area_size(64);
    let mut chart =
        chart.build_cartesian_2d(0f64..(labels.len().max(2) - 1) as f64, lo - pad..hi + pad).map_err(failed)?;
    let mut mesh = chart.configure_mesh();
    mesh.light_line_style(TRANSPARENT).x_labels(8).y_labels(8).y_label_formatter(&|y| number(*y));
    mesh.x_label_formatter(&|x| labels.get(x.round() as usize).cloned().unwrap_or_default()).draw().map_err(failed)?;
    let outline = band.iter().map(|b| (b.0, b.1)).chain(band.iter().rev().map(|b| (b.0, b.2)));
    chart.draw_series([Polygon::new(outline.collect::<Vec<_>>(), COLORS[1].mix(0.15))]).map_err(failed)?;
    for ((name, points), color) in lines.iter().zip(COLORS.iter().cycle()) {
        let legend = move |(x, y)| PathElement::new([(x, y), (x + 15, y)], color);
        let series = LineSeries::new(points.iter().copied(), color.stroke_width(2));
        chart.draw_series(series).map_err(failed)?.label(*name).legend(legend);
    }
    let mut legend = chart.configure_series_labels();
    legend.position(SeriesLabelPosition::UpperLeft).background_style(WHITE.mix(0.8)).border_style(BLACK.mix(0.3));
    legend.draw().map_err(failed)?;
    area.present().map_err(failed)
}

/// Every machine draws the same text: the font is part of the binary.
fn register() {
    static FONT: Once = Once::new();
    FONT.call_once(|| {
        // A second registration is no error.
        let _ = register_font("sans-serif", FontStyle::Normal, epaint_default_fonts::UBUNTU_LIGHT);
    });
}

/// Three digits or so, without zeros that say nothing.
fn number(v: f64) -> String {
    match v.abs() {
        0. => "0".into(),
        a if !(1e-3..1e5).contains(&a) => format!("{v:.1e}"),
        a => {
            let decimals = (2 - a.log10().floor() as i32).max(0) as usize;
            let text = format!("{v:.decimals$}");
            if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_string() } else { text }
        }
    }
}

fn failed<E: std::error::Error + Send + Sync>(e: DrawingAreaErrorKind<E>) -> anyhow::Error {
    anyhow!("drawing curves: {}", first_line(&e))
}

fn panel<B: DrawingBackend>(area: &DrawingArea<B, Shift>, title: &str, lines: &[&Line]) -> anyhow::Result<()>
where
    B::ErrorType: 'static,
{
    let lines: Vec<Line> = lines.iter().map(|l| l.smoothed()).collect();
    let points = || lines.iter().flat_map(|l| l.points.iter().copied());
    let fold = |values: &dyn Fn((f64, f64)) -> f64| {
        points().map(values).fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), v| (a.min(v), b.max(v)))
    };
    let ((x0, x1), (y0, y1)) = (fold(&|p| p.0), fold(&|p| p.1));
    let mut chart = ChartBuilder::on(area);
    chart.caption(title, ("sans-serif", 16)).margin(10).x_label_area_size(28).y_label_area_size(64);
    if x0 > x1 {
        chart.build_cartesian_2d(0f64..1., 0f64..1.).map_err(failed)?;
        return Ok(());
    }
    let x = x0..x1.max(x0 + 1.);
    macro_rules! draw {
        ($y:expr) => {{
            let mut chart = chart.build_cartesian_2d(x, $y).map_err(failed)?;
            let mut mesh = chart.configure_mesh();
            mesh.light_line_style(TRANSPARENT).x_desc("step").x_labels(6).y_labels(8);
            mesh.x_label_formatter(&|x| format!("{x:.0}")).y_label_formatter(&|y| number(*y)).draw().map_err(failed)?;
            for (line, color) in lines.iter().zip(COLORS.iter().cycle()) {
                let series = LineSeries::new(line.points.iter().copied(), color);
                let legend = move |(x, y)| PathElement::new([(x, y), (x + 15, y)], color);
                chart.draw_series(series).map_err(failed)?.label(&line.name).legend(legend);
            }
            if lines.len() > 1 {
                chart
                    .configure_series_labels()
                    .background_style(WHITE.mix(0.8))
                    .border_style(BLACK.mix(0.3))
                    .draw()
                    .map_err(failed)?;
            }
        }};
    }
    let flat = y1 - y0 <= 1e-9 * y1.abs();
    let pad = if flat { 0.1 * y1.abs() } else { 0.05 * (y1 - y0) }.max(1e-12);
    // Values far apart, such as metrics in different units, share a logarithmic axis.
    if y0 > 0. && y1 > 20. * y0 {
        draw!((y0 * 0.9..y1 * 1.1).log_scale());
    } else {
        draw!(y0 - pad..y1 + pad);
    }
    Ok(())
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
            Event::Evaluated { step, metrics, .. } => {
                metrics.iter().for_each(|(name, value)| self.add(&format!("valid {name}"), *step, *value));
                if self.drawn.elapsed() >= PAUSE {
                    self.draw_or_warn();
                }
            }
            Event::RolledBack { step } => {
                self.lines.iter_mut().for_each(|l| l.points.retain(|(at, _)| *at <= *step as f64));
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_are_drawn_of_anything_from_nothing_to_long_runs() -> anyhow::Result<()> {
        let mut curves = Curves::new(Path::new("unused"));
        assert!(curves.svg()?.contains("learning rate"));
        for step in 1..20_000 {
            let loss = if step == 7 { f64::NAN } else { 1. / step as f64 };
            curves.observe(&Event::Step { step, loss, parts: &[], lr: 1e-3, grad_norm: 0. });
        }
        curves.observe(&Event::Evaluated { step: 5, metrics: &vec![("loss", 2.), ("rmse", 3.)], best: true });
        assert!(curves.lines.iter().all(|l| l.points.len() <= 8192));
        assert_eq!(
            [0., 1e-5, 0.00123, 0.5, 12.345, 400., 123456.].map(number),
            ["0", "1.0e-5", "0.00123", "0.5", "12.3", "400", "1.2e5"]
        );
        let svg = curves.svg()?;
        assert!(svg.contains("valid loss") && svg.contains("validation metrics"), "{svg}");
        Ok(())
    }
}
