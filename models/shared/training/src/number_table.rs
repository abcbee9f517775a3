//! Numbers of a CSV file.

use std::collections::HashSet;
use std::path::Path;

use candle_core::{Device, Tensor};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use zoo_layers::nearest;

use crate::{Error, Result, Split};

/// Mean and standard deviation of columns by their names: what trained weights are kept with.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Scaling {
    /// Names.
    pub columns: Vec<String>,
    /// Means, in the columns' units.
    pub mean: Vec<f64>,
    /// Standard deviations, in the columns' units.
    pub deviation: Vec<f64>,
}

impl Scaling {
    /// From what [`Task::fitted`](crate::Task::fitted) gave, if that was a scaling.
    ///
    /// # Errors
    /// It was something else.
    pub fn of(fitted: &Value) -> Result<Self> {
        serde_json::from_value(fitted.clone()).map_err(|e| Error::Run(format!("the scaling in the weights: {e}")))
    }
}

/// Rows of numbers under the names of their columns: all that a model needs whose data are a CSV file.
#[derive(Clone, Debug, PartialEq)]
pub struct NumberTable {
    origin: String,
    columns: Vec<String>,
    rows: Vec<Vec<f32>>,
}

impl NumberTable {
    /// A table that no file holds; `origin` is what messages call it.
    ///
    /// # Errors
    /// A row has not as many numbers as there are columns, or one that is not finite.
    pub fn new(origin: &str, columns: &[&str], rows: impl IntoIterator<Item = Vec<f32>>) -> Result<Self> {
        let columns: Vec<String> = columns.iter().map(|c| c.to_string()).collect();
        let rows: Vec<Vec<f32>> = rows.into_iter().collect();
        match rows.iter().position(|row| row.len() != columns.len() || !row.iter().all(|v| v.is_finite())) {
            None => Ok(Self { origin: origin.into(), columns, rows }),
            Some(i) => Err(Error::Data(format!("{origin}: row {i} is not {} finite numbers", columns.len()))),
        }
    }

    /// Reads a file with a header: columns separated by commas, semicolons or tabs, numbers with a decimal point.
    ///
    /// # Errors
    /// The file is no regular one, of more than a gigabyte, not UTF-8, or empty; two columns have one name; or a field is no
    /// finite number. The message names file, line and column.
    pub fn read(path: &Path) -> Result<Self> {
        let origin = path.display().to_string();
        let fail = |what: String| Err(Error::Data(format!("{origin}: {what}")));
        let Ok(text) = String::from_utf8(zoo_checkpoint::bytes_of(path, "a CSV file", 1 << 30)?) else {
            return fail("not UTF-8 text".into());
        };
        let text = text.trim_start_matches('\u{feff}');
        let header = text.lines().next().unwrap_or_default();
        let count = |separator: u8| header.bytes().filter(|b| *b == separator).count();
        let separator = [b'\t', b';', b','].into_iter().max_by_key(|s| count(*s)).unwrap_or(b',');
        let mut reader = csv::ReaderBuilder::new();
        let mut reader = reader.trim(csv::Trim::All).delimiter(separator).from_reader(text.as_bytes());
        let wrong = |e: csv::Error| {
            let line = e.position().map_or(1, csv::Position::line);
            let what = match e.kind() {
                csv::ErrorKind::UnequalLengths { expected_len, len, .. } => {
                    format!("{len} fields, the header has {expected_len}")
                }
                _ => "not separated values".into(),
            };
            Error::Data(format!("{origin}: line {line}: {what}"))
        };
        let columns: Vec<String> = reader.headers().map_err(wrong)?.iter().map(String::from).collect();
        let mut names = HashSet::new();
        if let Some(twice) = columns.iter().find(|c| !names.insert(c.as_str())) {
            return fail(format!("two columns are called {twice:.60?}"));
        }
        let mut rows = vec![];
        for record in reader.records() {
            let record = record.map_err(wrong)?;
            let mut row = vec![];
            for (field, column) in record.iter().zip(&columns) {
                match field.parse::<f32>().ok().filter(|v| v.is_finite()) {
                    Some(value) => row.push(value),
                    None => {
                        let line = record.position().map_or(0, csv::Position::line);
                        return fail(format!(
                            "line {line}: column {column:.60} is {field:.40?}, expected a finite number"
                        ));
                    }
                }
            }
            rows.push(row);
        }
        match rows.is_empty() {
            true => fail("expected a header and rows of numbers".into()),
            false => Ok(Self { origin, columns, rows }),
        }
    }

    /// Names of the columns, in order.
    pub fn columns(&self) -> &[String] {
        &self.columns
    }

    /// The rows, as long as there are columns.
    pub fn rows(&self) -> &[Vec<f32>] {
        &self.rows
    }

    /// These columns alone, in this order.
    ///
    /// # Errors
    /// One is not there, or named twice.
    pub fn select(&self, columns: &[String]) -> Result<Self> {
        let mut names = HashSet::new();
        if let Some(twice) = columns.iter().find(|c| !names.insert(c.as_str())) {
            return Err(Error::Data(format!("{}: column {twice:.60} is asked for twice", self.origin)));
        }
        let number = |name: &String| {
            self.columns.iter().position(|c| c == name).ok_or_else(|| {
                let like = nearest(name, self.columns.iter().map(String::as_str));
                let like = like.map_or(String::new(), |like| format!(" (did you mean {like}?)"));
                Error::Data(format!("{}: there is no column {name:.60}{like}", self.origin))
            })
        };
        let numbers = columns.iter().map(number).collect::<Result<Vec<_>>>()?;
        let rows = self.rows.iter().map(|row| numbers.iter().map(|n| row[*n]).collect()).collect();
        Ok(Self { origin: self.origin.clone(), columns: columns.to_vec(), rows })
    }

    /// All columns, that one last.
    ///
    /// # Errors
    /// It is not there.
    pub fn with_last(&self, column: &str) -> Result<Self> {
        let others = self.columns.iter().filter(|c| *c != column).cloned();
        self.select(&others.chain([column.to_string()]).collect::<Vec<_>>())
    }

    /// Rows of a split: of five, three train, the next validates, the last tests.
    pub fn samples(&self, split: Split) -> usize {
        let n = self.rows.len();
        match split {
            Split::Train => n - (n + 1) / 5 - n / 5,
            Split::Valid => (n + 1) / 5,
            Split::Test => n / 5,
        }
    }

    /// Row `i` of a split.
    fn row(&self, split: Split, i: usize) -> &[f32] {
        match split {
            Split::Train => &self.rows[i / 3 * 5 + i % 3],
            Split::Valid => &self.rows[5 * i + 3],
            Split::Test => &self.rows[5 * i + 4],
        }
    }

    /// Rows `indices` of a split as a tensor (rows, columns) on the CPU.
    ///
    /// # Errors
    /// candle's.
    pub fn batch(&self, split: Split, indices: &[usize]) -> candle_core::Result<Tensor> {
        let values: Vec<f32> = indices.iter().flat_map(|i| self.row(split, *i).iter().copied()).collect();
        Tensor::from_vec(values, (indices.len(), self.columns.len()), &Device::Cpu)
    }

    /// Mean and standard deviation of each column over the training part.
    pub fn scaling(&self) -> Scaling {
        let rows: Vec<&[f32]> = (0..self.samples(Split::Train)).map(|i| self.row(Split::Train, i)).collect();
        let n = rows.len().max(1) as f64;
        let column = |k: usize| {
            let mean = rows.iter().map(|row| f64::from(row[k])).sum::<f64>() / n;
            let square = rows.iter().map(|row| (f64::from(row[k]) - mean).powi(2)).sum::<f64>() / n;
            // A column that never changes stays as it is, around zero.
            (mean, if square > 0. { square.sqrt() } else { 1. })
        };
        let (mean, deviation) = (0..self.columns.len()).map(column).unzip();
        Scaling { columns: self.columns.clone(), mean, deviation }
    }

    /// The columns that `scaling` knows, in its order, each standardised by it.
    ///
    /// # Errors
    /// One is not there, or the scaling contradicts itself.
    pub fn scaled(&self, scaling: &Scaling) -> Result<Self> {
        let Scaling { columns, mean, deviation } = scaling;
        if mean.len() != columns.len() || deviation.len() != columns.len() || !deviation.iter().all(|d| *d > 0.) {
            return Err(Error::Data(format!("{}: the scaling of its columns contradicts itself", self.origin)));
        }
        let mut table = self.select(columns)?;
        for row in &mut table.rows {
            for (v, (mean, deviation)) in row.iter_mut().zip(mean.iter().zip(deviation)) {
                *v = ((f64::from(*v) - mean) / deviation) as f32;
            }
        }
        Ok(table)
    }

    /// The SHA-256 of names and numbers, in hexadecimal: a [`Task::fingerprint`](crate::Task::fingerprint) that notices any
    /// change.
    pub fn sha256(&self) -> String {
        let names = self.columns.iter().flat_map(|c| [c.as_bytes(), &[0]].concat());
        let numbers = self.rows.iter().flatten().flat_map(|v| v.to_le_bytes());
        zoo_checkpoint::sha256_of(&names.chain(numbers).collect::<Vec<u8>>())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> std::result::Result<NumberTable, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t.csv");
        std::fs::write(&path, text).unwrap();
        NumberTable::read(&path).map_err(|e| e.to_string())
    }

    #[test]
    fn columns_are_found_by_their_names_in_any_order() {
        let table = read("a, b,c\n1,2,3\n4,5,6\n").unwrap();
        let other = read("c;a;b\n3;1;2\n6;4;5\n").unwrap();
        assert_eq!(table.columns(), ["a", "b", "c"]);
        assert_eq!(other.select(table.columns()).unwrap().rows(), table.rows());
        assert_eq!(table.with_last("b").unwrap().rows(), [[1., 3., 2.], [4., 6., 5.]]);
        assert_ne!(table.sha256(), other.sha256());
        let scaled = table.scaled(&table.scaling()).unwrap();
        assert_eq!(scaled.rows(), [[-1., -1., -1.], [1., 1., 1.]]);
        assert_eq!(other.scaled(&table.scaling()).unwrap().rows(), scaled.rows());
    }

    #[test]
    fn every_row_is_in_one_split() {
        for n in 1..=23 {
            let table = NumberTable::new("t", &["a"], (0..n).map(|i| vec![i as f32])).unwrap();
            let mut rows: Vec<f32> = [Split::Train, Split::Valid, Split::Test]
                .iter()
                .flat_map(|split| {
                    let all: Vec<usize> = (0..table.samples(*split)).collect();
                    table.batch(*split, &all).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap()
                })
                .collect();
            rows.sort_by(f32::total_cmp);
            assert_eq!(rows, (0..n).map(|i| i as f32).collect::<Vec<_>>());
        }
    }

    #[test]
    fn what_is_wrong_is_told_with_its_line_and_column() {
        for (text, message) in [
            ("", "expected a header and rows"),
            ("a,b\n", "expected a header and rows"),
            ("a,b\n1,2\n3,x\n", "line 3: column b is \"x\", expected a finite number"),
            ("a,b\n1,nan\n", "line 2: column b is \"nan\""),
            ("a,b\n1,\n", "line 2: column b is \"\""),
            ("a,b\n1,2,3\n", "line 2: 3 fields, the header has 2"),
            ("a,a\n1,2\n", "two columns are called \"a\""),
        ] {
            let said = read(text).unwrap_err();
            assert!(said.contains("t.csv: ") && said.contains(message), "{said}");
        }
        let absent = read("price,rooms\n1,2\n").unwrap().with_last("room").unwrap_err().to_string();
        assert!(absent.contains("there is no column room (did you mean rooms?)"), "{absent}");
    }
}
