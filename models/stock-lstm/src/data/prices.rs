use std::path::Path;

use jiff::civil::Date;
use zoo_training::{Error, Result};

use crate::Bar;

/// Trading days in time order.
#[derive(Clone, Debug, Default)]
pub struct Days {
    /// Their dates.
    pub dates: Vec<Date>,
    /// Their bars, adjusted for splits and dividends where the file says how.
    pub bars: Vec<Bar>,
    /// Columns that were not there, of Open, High, Low, Volume and Adj Close; the close or zero stands for them.
    pub missing: Vec<&'static str>,
}

/// Reads a daily price file: a header with Date, Close and, if present, Open, High, Low, Volume and Adj Close (any
/// case), rows in either order of time. Prices are multiplied by Adj Close / Close, so that splits leave no jump.
///
/// # Errors
/// A column that is missing, a value that is not a positive number, or a date twice; the message names file and line.
pub fn read_csv(path: &Path) -> Result<Days> {
    let fail = |line: u64, message: String| Error::Data(format!("{}: line {line}: {message}", path.display()));
    let unreadable = |e: csv::Error| {
        let line = e.position().map_or(1, csv::Position::line);
        match e.into_kind() {
            csv::ErrorKind::Io(source) => Error::Io { path: path.to_path_buf(), source },
            csv::ErrorKind::UnequalLengths { expected_len, len, .. } => {
                fail(line, format!("{len} fields, expected {expected_len}"))
            }
            csv::ErrorKind::Utf8 { .. } => fail(line, "not UTF-8 text".into()),
            _ => fail(line, "not comma-separated values".into()),
        }
    };
    let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::All).from_path(path).map_err(unreadable)?;
    let header = reader.headers().map_err(unreadable)?.clone();
    let find = |name: &str| header.iter().position(|h| h.eq_ignore_ascii_case(name));
    let need = |name: &str| {
        find(name).ok_or_else(|| {
            let columns: Vec<_> = header.iter().collect();
            fail(1, format!("no column {name}; it has {}", columns.join(", ")))
        })
    };
    let (date, close) = (need("Date")?, need("Close")?);
    const OPTIONAL: [&str; 5] = ["Open", "High", "Low", "Volume", "Adj Close"];
    let [open, high, low, volume, adjusted] = OPTIONAL.map(find);
    let missing = OPTIONAL.into_iter().filter(|name| find(name).is_none()).collect();
    let mut rows = vec![];
    for record in reader.records() {
        let record = record.map_err(unreadable)?;
        let line = record.position().map_or(0, csv::Position::line);
        let number = |column: usize, least: f64| {
            let text = &record[column];
            let value = text.parse::<f64>().ok().filter(|v| v.is_finite() && *v >= least);
            value.ok_or_else(|| fail(line, format!("{} is {text:?}, expected a positive number", &header[column])))
        };
        let price = |column: usize| number(column, f64::MIN_POSITIVE);
        let or_close = |column: Option<usize>| price(column.unwrap_or(close));
        let factor = or_close(adjusted)? / price(close)?;
        let bar = Bar {
            open: or_close(open)? * factor,
            high: or_close(high)? * factor,
            low: or_close(low)? * factor,
            close: or_close(adjusted)?,
            volume: volume.map_or(Ok(0.), |v| number(v, 0.))?,
        };
        let day: Date = record[date].parse().map_err(|_| {
            fail(line, format!("{} is {:?}, expected a date such as 2008-10-14", &header[date], &record[date]))
        })?;
        rows.push((day, line, bar));
    }
    rows.sort_by_key(|(day, line, _)| (*day, *line));
    if let Some(w) = rows.windows(2).find(|w| w[0].0 == w[1].0) {
        return Err(fail(w[1].1, format!("{} is there twice (line {} too)", w[0].0, w[0].1)));
    }
    let (dates, bars) = rows.into_iter().map(|(day, _, bar)| (day, bar)).unzip();
    Ok(Days { dates, bars, missing })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Days> {
        let dir = tempfile::tempdir().map_err(Error::io(Path::new("temporary")))?;
        let path = dir.path().join("p.csv");
        std::fs::write(&path, text).map_err(Error::io(&path))?;
        read_csv(&path)
    }

    #[test]
    fn days_are_sorted_and_adjusted() -> Result<()> {
        let days =
            read("Date,OPEN,High,Low,close,Volume,Adj Close\n2020-01-03,4,5,3,4,9,4\n2020-01-02,10,12,8,10,7,5\n")?;
        assert_eq!(days.dates.iter().map(|d| d.to_string()).collect::<Vec<_>>(), ["2020-01-02", "2020-01-03"]);
        assert_eq!(days.bars[0], Bar { open: 5., high: 6., low: 4., close: 5., volume: 7. });
        assert!(days.missing.is_empty());
        let close = read("date,close\n2020-01-02,3\n")?;
        assert_eq!(close.bars, [Bar::closing(3.)]);
        assert_eq!(close.missing, ["Open", "High", "Low", "Volume", "Adj Close"]);
        Ok(())
    }

    #[test]
    fn bad_rows_are_named_by_line_and_column() {
        for (text, expected) in [
            ("Date,Open\n", "line 1: no column Close; it has Date, Open"),
            ("Date,Close\n2020-01-02,abc\n", "line 2: Close is \"abc\""),
            ("Date,Close\n2020-01-02,-1\n", "line 2: Close is \"-1\""),
            ("Date,Close\n2020-01-02,NaN\n", "line 2: Close is \"NaN\""),
            ("Date,Close\n2020-01-02,1\nsoon,1\n", "line 3: Date is \"soon\""),
            ("Date,Close\n2020-01-02,1\n2020-01-03\n", "line 3: 1 fields, expected 2"),
            ("Date,Close\n2020-01-02,1\n2020-01-02,2\n", "line 3: 2020-01-02 is there twice (line 2 too)"),
        ] {
            let message = read(text).map(|_| ()).unwrap_err().to_string();
            assert!(message.contains("p.csv: ") && message.contains(expected), "{message}");
        }
    }
}
