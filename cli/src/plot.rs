//! Pictures: panels of lines over steps, and a model's own.

use std::path::Path;

use anyhow::anyhow;
use plotters::coord::Shift;
use plotters::prelude::*;
use zoo_training::{Error, Picture, Raster};

use crate::arguments::Force;
use crate::output::{cut, first_line, not_built};

pub(crate) const COLORS: [RGBColor; 6] = [
    RGBColor(31, 119, 180),
    RGBColor(214, 39, 40),
    RGBColor(44, 160, 44),
    RGBColor(148, 103, 189),
    RGBColor(255, 127, 14),
    RGBColor(23, 140, 150),
];

/// The colour of the line of that number, paler where the colours begin again.
pub(crate) fn color(i: usize) -> RGBAColor {
    COLORS[i % COLORS.len()].mix(if i < COLORS.len() { 1. } else { 0.4 })
}

/// One line of a panel: a name and points (step, value).
pub(crate) struct Line {
    pub(crate) name: String,
    pub(crate) points: Vec<(f64, f64)>,
    pub(crate) color: RGBAColor,
}

impl Line {
    pub(crate) fn new(name: &str, points: &[(u64, f64)], color: RGBAColor) -> Self {
        let points = points.iter().map(|p| (p.0 as f64, within(p.1))).collect();
        Self { name: cut(name, 60).into_owned(), points, color }
    }

    /// Means over equal parts where there are more points than one can see apart.
    fn smoothed(self) -> Self {
        const PARTS: usize = 100;
        if self.points.len() <= PARTS {
            return self;
        }
        let mean = |part: &[(f64, f64)]| {
            let n = part.len() as f64;
            (part[part.len() - 1].0, part.iter().map(|p| p.1).sum::<f64>() / n)
        };
        // By steps, not by points: of what a resumed run read back there are fewer.
        let (first, last) = (self.points[0].0, self.points[self.points.len() - 1].0);
        let part = |x: f64| {
            ((x - first) / (last - first).max(f64::MIN_POSITIVE) * PARTS as f64).min(PARTS as f64 - 1.) as usize
        };
        let points = self.points.chunk_by(|a, b| part(a.0) == part(b.0)).map(mean).collect();
        Self { name: format!("{} (smoothed)", self.name), points, color: self.color }
    }
}

/// A value that can be drawn: numbers beyond those of training, which is in f32, would take axes without end.
pub(crate) fn within(y: f64) -> f64 {
    match y.abs() {
        a if a < f64::from(f32::MIN_POSITIVE) => 0.,
        _ => y.clamp(f32::MIN.into(), f32::MAX.into()),
    }
}

/// Draws to an SVG text.
pub(crate) fn svg(size: (u32, u32), what: &impl Paint) -> anyhow::Result<String> {
    #[cfg(feature = "png")]
    pixels::register();
    let mut text = String::new();
    let area = SVGBackend::with_string(&mut text, size).into_drawing_area();
    what.paint(&area)?;
    area.present().map_err(failed)?;
    drop(area);
    Ok(text)
}

/// What can be drawn, as lines or as pixels.
pub(crate) trait Paint {
    /// Draws it on all of an area.
    fn paint<B: DrawingBackend>(&self, area: &DrawingArea<B, Shift>) -> anyhow::Result<()>
    where
        B::ErrorType: 'static;
}

/// Draws to a file, SVG or PNG by its ending.
pub(crate) fn draw(path: &Path, size: (u32, u32), what: &impl Paint, force: Force) -> anyhow::Result<()> {
    let drawn = match is_png(path) {
        true => png(size, what)?,
        false => svg(size, what)?.into_bytes(),
    };
    force.write(path, &drawn)
}

fn is_png(path: &Path) -> bool {
    path.extension().is_some_and(|e| e == "png")
}

/// Drawing in pixels.
#[cfg(feature = "png")]
mod pixels {
    use std::sync::Once;

    use image::codecs::png::PngEncoder;
    use image::{ColorType, ImageEncoder};
    use plotters::style::{FontStyle, register_font};

    use super::*;

    /// Draws to the bytes of a PNG file.
    pub(crate) fn png(size: (u32, u32), what: &impl Paint) -> anyhow::Result<Vec<u8>> {
        register();
        let mut pixels = vec![0; (3 * size.0 * size.1) as usize];
        let area = BitMapBackend::with_buffer(&mut pixels, size).into_drawing_area();
        what.paint(&area)?;
        area.present().map_err(failed)?;
        drop(area);
        let mut bytes = vec![];
        PngEncoder::new(&mut bytes).write_image(&pixels, size.0, size.1, ColorType::Rgb8)?;
        Ok(bytes)
    }

    /// Every machine draws the same text: the font is part of the binary.
    pub(super) fn register() {
        static FONT: Once = Once::new();
        FONT.call_once(|| {
            // A second registration is no error.
            let _ = register_font("sans-serif", FontStyle::Normal, epaint_default_fonts::UBUNTU_LIGHT);
        });
    }
}
#[cfg(feature = "png")]
pub(crate) use pixels::png;
#[cfg(not(feature = "png"))]
fn png(_: (u32, u32), _: &impl Paint) -> anyhow::Result<Vec<u8>> {
    Err(not_built("a picture that ends in .png", "png"))
}

/// Three digits or so, without zeros that say nothing.
pub(crate) fn number(v: f64) -> String {
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

/// A tick's number with the digits that tell it from the next, `span` being the axis's length.
fn tick(v: f64, span: f64) -> String {
    let decimals = (1. - (span / 8.).log10()).ceil();
    match decimals {
        d if (1. ..=6.).contains(&d) && v.abs() < 1e5 => {
            let text = format!("{v:.*}", d as usize);
            text.trim_end_matches('0').trim_end_matches('.').to_string()
        }
        d if !(1e-3..1e5).contains(&v.abs()) && v != 0. => {
            let digits = (d + v.abs().log10().floor()).clamp(1., 6.) as usize;
            let text = format!("{v:.digits$e}");
            let (digits, power) = text.split_once('e').unwrap_or((&text, "0"));
            let digits = digits.trim_end_matches('0');
            format!("{digits}{}e{power}", if digits.ends_with('.') { "0" } else { "" })
        }
        _ => number(v),
    }
}

pub(crate) fn failed<E: std::error::Error + Send + Sync>(e: DrawingAreaErrorKind<E>) -> anyhow::Error {
    anyhow!("drawing: {}", first_line(&e))
}

/// Writes a title and, of several lines, a legend above a chart, where it covers none of them; what is left for the chart.
fn titled<B: DrawingBackend>(
    area: &DrawingArea<B, Shift>,
    title: &str,
    lines: &[(&str, RGBAColor)],
) -> anyhow::Result<DrawingArea<B, Shift>>
where
    B::ErrorType: 'static,
{
    const LEFT: i32 = 64;
    const ROW: i32 = 18;
    let (width, height) = area.dim_in_pixel();
    let width = width as i32;
    let mut y = 10;
    if !title.is_empty() {
        area.draw(&Text::new(title.to_string(), (LEFT, y), ("sans-serif", 17).into_font())).map_err(failed)?;
        y += 24;
    }
    let mut x = LEFT;
    // However long the legend is, half of it all stays for the chart.
    let most = height as i32 / 2;
    for (i, (name, color)) in lines.iter().enumerate().filter(|_| lines.len() > 1) {
        // Wide enough for the font at hand.
        let wide = 32 + 7 * name.chars().count() as i32;
        if x > LEFT && x + wide > width {
            (x, y) = (LEFT, y + ROW);
        }
        if y + 2 * ROW > most {
            let more = format!("and {} more", lines.len() - i);
            area.draw(&Text::new(more, (x, y), ("sans-serif", 13).into_font())).map_err(failed)?;
            break;
        }
        let middle = y + 7;
        area.draw(&PathElement::new([(x, middle), (x + 15, middle)], color.stroke_width(2))).map_err(failed)?;
        area.draw(&Text::new(name.to_string(), (x + 20, y), ("sans-serif", 13).into_font())).map_err(failed)?;
        x += wide;
    }
    if lines.len() > 1 {
        y += ROW;
    }
    Ok(area.split_vertically(y).1)
}

/// Lines over steps, with a legend if there are several.
pub(crate) fn panel<B: DrawingBackend>(
    area: &DrawingArea<B, Shift>,
    title: &str,
    lines: Vec<Line>,
) -> anyhow::Result<()>
where
    B::ErrorType: 'static,
{
    let lines: Vec<Line> = lines.into_iter().map(Line::smoothed).collect();
    let points = || lines.iter().flat_map(|l| l.points.iter().copied());
    let fold = |values: &dyn Fn((f64, f64)) -> f64| {
        points().map(values).fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), v| (a.min(v), b.max(v)))
    };
    let ((x0, x1), (y0, y1)) = (fold(&|p| p.0), fold(&|p| p.1));
    let area = titled(area, title, &lines.iter().map(|l| (l.name.as_str(), l.color)).collect::<Vec<_>>())?;
    let mut chart = ChartBuilder::on(&area);
    chart.margin(10).x_label_area_size(36).y_label_area_size(64);
    if x0 > x1 {
        chart.build_cartesian_2d(0f64..1., 0f64..1.).map_err(failed)?;
        return Ok(());
    }
    // From the beginning, but for what covers only the end.
    let x = if x0 < 0.25 * x1 || x0 == x1 { 0. ..x1.max(1.) } else { x0..x1 };
    let span = x.end - x.start;
    macro_rules! draw {
        ($y:expr, $label:expr) => {{
            let mut chart = chart.build_cartesian_2d(x, $y).map_err(failed)?;
            let mut mesh = chart.configure_mesh();
            mesh.light_line_style(TRANSPARENT).bold_line_style(BLACK.mix(0.1)).axis_style(BLACK.mix(0.4));
            mesh.x_desc("step").x_labels(6).y_labels(8).label_style(("sans-serif", 13));
            mesh.x_label_formatter(&|x| tick(*x, span)).y_label_formatter(&$label).draw().map_err(failed)?;
            for Line { points, color, .. } in &lines {
                // One point is no line.
                let (style, dot) = if points.len() == 1 { (color.filled(), 3) } else { (color.stroke_width(2), 0) };
                let line = LineSeries::new(points.iter().copied(), style).point_size(dot);
                chart.draw_series(line).map_err(failed)?;
            }
        }};
    }
    let flat = y1 - y0 <= 1e-9 * y1.abs();
    let pad = if flat { 0.1 * y1.abs() } else { 0.05 * (y1 - y0) }.max(1e-12);
    // Values far apart, such as metrics in different units, share a logarithmic axis.
    if y0 > 0. && y1 > 50. * y0 {
        draw!((y0 * 0.9..y1 * 1.1).log_scale(), |y| number(*y));
    } else {
        draw!(y0 - pad..y1 + pad, |y| tick(*y, y1 - y0 + 2. * pad));
    }
    Ok(())
}

/// Draws a model's picture to a file, whole or not at all.
pub(crate) fn draw_picture(path: &Path, picture: &Picture, force: Force) -> anyhow::Result<()> {
    draw(path, size(picture), picture, force)
}

/// A model's picture as an SVG text.
#[cfg(feature = "serve")]
pub(crate) fn picture_svg(picture: &Picture) -> anyhow::Result<String> {
    svg(size(picture), picture)
}

fn size(picture: &Picture) -> (u32, u32) {
    (1000, if picture.maps.is_empty() { 500 } else { 420 + MAPS })
}

/// Pixels from top to bottom that maps take.
const MAPS: u32 = 260;

/// Blue through light grey to red for -1 to 1, in the light at hand.
fn colour(value: f32, light: f32) -> RGBColor {
    let v = value.clamp(-1., 1.);
    let ends: [f32; 3] = if v < 0. { [20., 60., 160.] } else { [190., 20., 20.] };
    let mix = |to: f32| ((225. + (to - 225.) * v.abs()) * light) as u8;
    RGBColor(mix(ends[0]), mix(ends[1]), mix(ends[2]))
}

fn paint_maps<B: DrawingBackend>(area: &DrawingArea<B, Shift>, maps: &[Raster]) -> anyhow::Result<()>
where
    B::ErrorType: 'static,
{
    const TITLE: i32 = 24;
    for (map, part) in maps.iter().zip(area.split_evenly((1, maps.len()))) {
        let (width, height) = part.dim_in_pixel();
        let rows = map.cells.len().checked_div(map.width).unwrap_or(0).max(1);
        let side = (f64::from(width) - 8.) / map.width.max(1) as f64;
        let side = side.min((f64::from(height) - f64::from(TITLE)) / rows as f64);
        let left = (f64::from(width) - side * map.width as f64) / 2.;
        part.draw(&Text::new(map.title.clone(), (8, 6), ("sans-serif", 14).into_font())).map_err(failed)?;
        for (y, row) in map.cells.chunks(map.width.max(1)).enumerate() {
            let mut x = 0;
            // Cells of one colour side by side are one rectangle.
            for run in row.chunk_by(|a, b| a.map(|c| colour(c.0, c.1)) == b.map(|c| colour(c.0, c.1))) {
                let edge = |x: usize| (left + side * x as f64).round() as i32;
                let line = |y: usize| TITLE + (side * y as f64).round() as i32;
                if let Some((value, light)) = run[0] {
                    let corners = [(edge(x), line(y)), (edge(x + run.len()), line(y + 1))];
                    part.draw(&Rectangle::new(corners, colour(value, light).filled())).map_err(failed)?;
                }
                x += run.len();
            }
        }
    }
    Ok(())
}

/// Refuses a name of a picture that says neither SVG nor PNG.
pub(crate) fn check_name(path: &Path) -> anyhow::Result<()> {
    match path.extension().and_then(|e| e.to_str()) {
        Some("png") if cfg!(not(feature = "png")) => Err(not_built("--plot with a name that ends in .png", "png")),
        Some("svg" | "png") => Ok(()),
        _ => {
            let message = format!("--plot {}: expected a name that ends in .svg or .png", path.display());
            Err(Error::Usage(message).into())
        }
    }
}

impl Paint for Picture {
    fn paint<B: DrawingBackend>(&self, area: &DrawingArea<B, Shift>) -> anyhow::Result<()>
    where
        B::ErrorType: 'static,
    {
        area.fill(&WHITE).map_err(failed)?;
        if self.maps.is_empty() {
            return paint_lines(area, self);
        }
        let (above, below) = area.split_vertically(MAPS);
        paint_maps(&above, &self.maps)?;
        paint_lines(&below, self)
    }
}

fn paint_lines<B: DrawingBackend>(area: &DrawingArea<B, Shift>, picture: &Picture) -> anyhow::Result<()>
where
    B::ErrorType: 'static,
{
    let Picture { title, labels, lines, band, .. } = picture;
    let values = lines.iter().flat_map(|(_, points)| points.iter().map(|p| p.1));
    let values = values.chain(band.iter().flat_map(|b| [b.1, b.2])).filter(|v| v.is_finite());
    let (lo, hi) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(lo, hi), v| (lo.min(v), hi.max(v)));
    if lo > hi {
        return Err(anyhow!("there is nothing to draw"));
    }
    let pad = (0.05 * (hi - lo)).max(1e-6 * hi.abs()).max(1e-12);
    let names: Vec<_> = lines.iter().enumerate().map(|(i, l)| (l.0.as_ref(), color(i))).collect();
    let area = titled(area, title, &names)?;
    let mut chart = ChartBuilder::on(&area);
    chart.margin(12).x_label_area_size(36).y_label_area_size(64);
    let mut chart =
        chart.build_cartesian_2d(0f64..(labels.len().max(2) - 1) as f64, lo - pad..hi + pad).map_err(failed)?;
    let mut mesh = chart.configure_mesh();
    mesh.light_line_style(TRANSPARENT).bold_line_style(BLACK.mix(0.1)).x_labels(8).y_labels(8);
    let label = |y: &f64| tick(*y, hi - lo + 2. * pad);
    mesh.y_label_formatter(&label).label_style(("sans-serif", 13));
    mesh.x_label_formatter(&|x| labels.get(x.round() as usize).cloned().unwrap_or_default()).draw().map_err(failed)?;
    let outline = band.iter().map(|b| (b.0, b.1)).chain(band.iter().rev().map(|b| (b.0, b.2)));
    chart.draw_series([Polygon::new(outline.collect::<Vec<_>>(), COLORS[1].mix(0.15))]).map_err(failed)?;
    for (i, (_, points)) in lines.iter().enumerate() {
        chart.draw_series(LineSeries::new(points.iter().copied(), color(i).stroke_width(2))).map_err(failed)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_have_the_digits_that_tell_them_apart() {
        assert_eq!([1.9951, 1.9976].map(|v| tick(v, 0.01)), ["1.9951", "1.9976"]);
        assert_eq!([0.1, 0.25].map(|v| tick(v, 0.8)), ["0.1", "0.25"]);
        assert_eq!([60., 180.].map(|v| tick(v, 150.)), ["60", "180"]);
        assert_eq!(tick(0.001, 1e-9), "0.001");
        assert_eq!(tick(2e6, 1.), "2.0e6");
        assert_eq!([1e-4, 1.05e-4].map(|v| tick(v, 2e-5)), ["1.0e-4", "1.05e-4"]);
    }
}
