//! The table `[data]` and the data.

use serde::{Deserialize, Serialize};
use zoo_training::{NumberTable, Result};

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DataSettings {
    /// A CSV file of numbers with a header; points of a curve if empty.
    pub path: String,
    /// The column that is predicted from all others; the last one if empty.
    pub target: String,
}

/// All columns, the predicted one last.
pub fn read(DataSettings { path, target }: &DataSettings) -> Result<NumberTable> {
    let point = |i: u32| [i as f32 * 0.618_034 % 1.].iter().flat_map(|x| [*x, (6. * x).sin()]).collect();
    let table = match path.as_str() {
        "" => NumberTable::new("the curve", &["x", "y"], (0..400).map(point))?,
        path => NumberTable::read(path.as_ref())?,
    };
    if target.is_empty() { Ok(table) } else { table.with_last(target) }
}
