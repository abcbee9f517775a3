//! The table `[data]` and the data: numbers in a CSV file, the last column to be told from the others.

use candle_core::{Device, Tensor};
use serde::{Deserialize, Serialize};
use zoo_training::{Error, Result};

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DataSettings {
    /// A CSV file with a header; points of a curve if empty.
    pub path: String,
}

pub struct Table {
    pub rows: Vec<Vec<f32>>,
}

impl Table {
    pub fn read(DataSettings { path }: &DataSettings) -> Result<Self> {
        let fail = |what: String| Error::Data(format!("{path}: {what}"));
        let rows: Vec<Vec<f32>> = if path.is_empty() {
            (0..400).map(|i| i as f32 * 0.618_034 % 1.).map(|x| vec![x, (6. * x).sin()]).collect()
        } else {
            let reader = csv::ReaderBuilder::new().trim(csv::Trim::All).from_path(path);
            let rows = reader.map_err(|e| fail(e.to_string()))?.into_deserialize().collect::<csv::Result<_>>();
            rows.map_err(|e| fail(e.to_string()))?
        };
        match rows.first() {
            Some(row) if row.len() > 1 && rows.len() > 9 => Ok(Self { rows }),
            _ => Err(fail("expected at least ten rows of two numbers or more".into())),
        }
    }

    /// Features (b, f) and last column (b, 1) of some rows.
    pub fn batch(&self, rows: impl Iterator<Item = usize>) -> candle_core::Result<(Tensor, Tensor)> {
        let rows: Vec<&Vec<f32>> = rows.map(|i| &self.rows[i]).collect();
        let (n, last) = (rows.len(), self.rows[0].len() - 1);
        let all = Tensor::from_iter(rows.iter().flat_map(|row| row.iter().copied()), &Device::Cpu)?.reshape((n, last + 1))?;
        Ok((all.narrow(1, 0, last)?.contiguous()?, all.narrow(1, last, 1)?.contiguous()?))
    }
}
