//! A map of zeros by parameter and step, in characters and as numbers.

use serde_json::{Value, json};
use zoo_training::health::Check;

#[cfg(feature = "watch")]
use crate::output::shown;
use crate::output::{LONGEST_CELL, cut};

/// Columns that fit beside the names on a terminal.
const COLUMNS: usize = 60;

/// A character that is as dark as a share is large.
fn shade(share: &f64) -> char {
    match *share {
        v if v < 0.001 => '·',
        v if v < 0.05 => '░',
        v if v < 0.1 => '▒',
        v if v < 0.5 => '▓',
        _ => '█',
    }
}

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

    /// A line of characters a parameter, the latest checks of each, under a heading.
    #[cfg(feature = "watch")]
    pub(crate) fn lines(&self, width: usize) -> Vec<String> {
        let Some(last) = self.steps.last() else { return vec![] };
        let name = self.rows.iter().map(|r| r.0.chars().count()).max().unwrap_or(0).min(width / 2);
        let first = self.steps.len().saturating_sub(width.saturating_sub(name + 3).max(1));
        let mut lines = vec![format!(
            " gradient zeros, steps {} to {last}: · none ░ <5 % ▒ <10 % ▓ <half █ more",
            self.steps[first]
        )];
        lines.extend(self.rows.iter().map(|(parameter, zeros)| {
            let zeros: String = zeros[first..].iter().map(shade).collect();
            let parameter = shown(parameter);
            let most = if parameter.chars().count() > name { name.saturating_sub(1) } else { name };
            format!(" {:<name$} {zeros}", cut(&parameter, most))
        }));
        lines
    }

    pub(crate) fn text(&self) -> String {
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
}
