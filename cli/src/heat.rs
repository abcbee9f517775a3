//! A picture of zeros by parameter and step, in characters and as a drawing.

use plotters::prelude::*;
use serde_json::{Value, json};
use zoo_training::health::Check;

use crate::output::{LONGEST_CELL, cut};
use crate::plot::{self, failed};

/// Columns that fit beside the names on a terminal.
const COLUMNS: usize = 60;

/// Shares of |g| < 1e-8; means over equal numbers of checks where there are more than columns.
pub(crate) struct HeatMap {
    steps: Vec<u64>,
    rows: Vec<(String, Vec<f64>)>,
}

impl HeatMap {
    pub(crate) fn of(checks: &[Check]) -> Self {
        let each = checks.len().div_ceil(COLUMNS).max(1);
        let parts: Vec<&[Check]> = checks.chunks(each).collect();
        let names = checks.last().into_iter().flat_map(|c| &c.parameters).filter(|p| p.elements > p.expected);
        let row = |name: &str| {
            let mean = |part: &&[Check]| {
                let zeros = part.iter().flat_map(|c| c.parameters.iter().find(|p| p.name == name)).map(|p| p.zeros);
                zeros.clone().sum::<f64>() / zeros.count().max(1) as f64
            };
            (name.to_string(), parts.iter().map(mean).collect())
        };
        Self {
            steps: parts.iter().filter_map(|part| part.last().map(|c| c.step)).collect(),
            rows: names.map(|p| row(&p.name)).collect(),
        }
    }

    pub(crate) fn json(&self) -> Value {
        let rows: Vec<Value> = self.rows.iter().map(|(name, zeros)| json!({ "name": name, "zeros": zeros })).collect();
        json!({ "steps": self.steps, "parameters": rows })
    }

    pub(crate) fn text(&self) -> String {
        let shade = |v: &f64| match *v {
            v if v < 0.001 => '·',
            v if v < 0.05 => '░',
            v if v < 0.1 => '▒',
            v if v < 0.5 => '▓',
            _ => '█',
        };
        let (Some(first), Some(last)) = (self.steps.first(), self.steps.last()) else { return String::new() };
        let names: Vec<_> = self.rows.iter().map(|r| cut(&r.0, LONGEST_CELL)).collect();
        let width = names.iter().map(|name| name.chars().count()).max().unwrap_or(0);
        let mut text = format!(
            "zeros (|g| < 1e-8) by parameter, steps {first} to {last}: · none, ░ below 5 %, ▒ below 10 %, ▓ below half, █ more\n"
        );
        for (name, (_, zeros)) in names.iter().zip(&self.rows) {
            text.push_str(&format!("{name:<width$}  {}\n", zeros.iter().map(shade).collect::<String>()));
        }
        text
    }

    /// An SVG, if there is something to draw.
    pub(crate) fn svg(&self) -> anyhow::Result<Option<String>> {
        const CELL: u32 = 16;
        const NAMES: u32 = 330;
        let (columns, rows) = (self.steps.len() as u32, self.rows.len() as u32);
        if columns == 0 || rows == 0 {
            return Ok(None);
        }
        let cell = (880 / columns).clamp(4, 60);
        let (width, height) = (NAMES + columns * cell + 20, (rows + 2) * CELL + 8);
        let drawing = plot::svg((width, height), |area| {
            area.fill(&WHITE).map_err(failed)?;
            let font = ("sans-serif", 12).into_font();
            for (j, (name, zeros)) in self.rows.iter().enumerate() {
                let y = (j as u32 * CELL) as i32 + 4;
                area.draw(&Text::new(name.clone(), (4, y + 2), font.clone())).map_err(failed)?;
                for (i, v) in zeros.iter().enumerate() {
                    // White through orange to dark red.
                    let mix = |from: f64, to: f64| (from + (to - from) * v.sqrt()) as u8;
                    let color = RGBColor(mix(246., 150.), mix(246., 20.), mix(246., 10.));
                    let x = (NAMES + i as u32 * cell) as i32;
                    let corners = [(x, y), (x + cell as i32 - 1, y + CELL as i32 - 1)];
                    area.draw(&Rectangle::new(corners, color.filled())).map_err(failed)?;
                }
            }
            let y = (rows * CELL) as i32 + 8;
            for (i, step) in [(0, self.steps.first()), (columns.saturating_sub(1), self.steps.last())] {
                let step = step.map_or(String::new(), |s| format!("step {s}"));
                let x = if i == 0 { NAMES } else { (NAMES + i * cell).saturating_sub(50) };
                area.draw(&Text::new(step, (x as i32, y), font.clone())).map_err(failed)?;
            }
            Ok(())
        })?;
        Ok(Some(drawing.replacen(&format!("<svg width=\"{width}\" height=\"{height}\""), "<svg", 1)))
    }
}
