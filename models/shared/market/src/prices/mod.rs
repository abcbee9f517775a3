//! Daily prices from comma-separated files as they are found.

mod columns;
mod dates;

use std::io::Read;
use std::path::Path;

use crate::{Bar, Error, Result};
use columns::{Columns, Unclear, quoted};
use jiff::civil::Date;

/// Trading days in time order.
#[derive(Clone, Debug, Default)]
pub struct Days {
    /// Their dates.
    pub dates: Vec<Date>,
    /// Their bars, adjusted for splits and dividends where the file says how.
    pub bars: Vec<Bar>,
    /// Columns that were not there, of Open, High, Low, Volume and Adj Close; the close or zero stands for them.
    pub missing: Vec<&'static str>,
    /// What looks wrong with the prices, in words.
    pub warnings: Vec<String>,
}

/// How a price file is read.
#[derive(Clone, Debug, Default)]
pub struct Reading {
    /// The column of closes; found by its name if empty.
    pub column: String,
    /// The column of dates; found by its name if empty.
    pub date_column: String,
    /// Leaves out rows that cannot be read, and later rows of a date that is there twice.
    pub skip_bad_rows: bool,
    /// Whether the reader needs whole bars; one who needs closes alone does not care what is wrong with the opens.
    pub bars: bool,
}

impl Days {
    /// What one should know before judging a model by these days: what looks wrong with them; whether the weights may know the
    /// outcome, `judged` being the first day that judges and `seen` the last that they were fitted to; missing adjustment.
    pub fn caveats(&self, judged: Option<usize>, seen: Option<&str>) -> Vec<String> {
        let mut caveats = self.warnings.clone();
        let first = judged.and_then(|day| self.dates.get(day)).map(|d| d.to_string());
        if let (Some(first), Some(seen)) = (first, seen)
            && *first <= *seen
        {
            caveats.push(format!(
                "the test days begin on {first}, but the weights saw days until {seen} in training: they may know the outcome"
            ));
        }
        if self.missing.contains(&"Adj Close") {
            caveats.push("the file has no column Adj Close: splits and dividends look like price moves".into());
        }
        caveats
    }
}

struct Row {
    day: Date,
    line: u64,
    bar: Bar,
}

/// The bytes of a price file: of a regular file, which does not wait or go on without end.
fn file(path: &Path) -> Result<Vec<u8>> {
    const MOST: u64 = 1 << 30;
    let found = std::fs::metadata(path).map_err(Error::io(path))?;
    if !found.is_file() || found.len() > MOST {
        let message = format!("{}: expected a regular file of at most {MOST} bytes", path.display());
        return Err(Error::Data { message, advice: None });
    }
    let (mut bytes, file) = (vec![], std::fs::File::open(path).map_err(Error::io(path))?);
    // No more than it says: what the system makes up as it is read has no length.
    file.take(found.len()).read_to_end(&mut bytes).map_err(Error::io(path))?;
    Ok(bytes)
}

/// Reads a daily price file: a header, then rows in any order of time. Columns are found by the names that vendors give
/// them, or named by `how`. Fields are separated by commas, semicolons or tabs; numbers may have thousands separators,
/// a currency sign, or a suffix K, M or B. Prices are multiplied by adjusted close / close where both are there, so that
/// splits leave no jump.
///
/// # Errors
/// Columns or dates that are not clear, and bad rows unless `how` skips them; the message names file and line.
pub fn read_csv(path: &Path, how: &Reading) -> Result<Days> {
    let bytes = file(path)?;
    let of_file = |message: String, advice| Error::Data { message: format!("{}: {message}", path.display()), advice };
    let fail = |line: u64, message: String| of_file(format!("line {line}: {message}"), None);
    let skippable =
        |line: u64, message: String, does| of_file(format!("line {line}: {message}"), Some(("skip_bad_rows", does)));
    let text = std::str::from_utf8(&bytes).map_err(|e| {
        let line = 1 + bytes[..e.valid_up_to()].iter().filter(|b| **b == b'\n').count() as u64;
        fail(line, "not UTF-8 text".into())
    })?;
    let text = text.trim_start_matches('\u{feff}');
    let first = text.lines().find(|l| !l.trim().is_empty()).unwrap_or_default();
    let count = |separator: u8| first.bytes().filter(|b| *b == separator).count();
    let delimiter = [b',', b';', b'\t'].into_iter().rev().max_by_key(|s| count(*s)).unwrap_or(b',');
    let mut reader =
        csv::ReaderBuilder::new().delimiter(delimiter).trim(csv::Trim::All).flexible(true).from_reader(text.as_bytes());
    let malformed = |e: csv::Error| fail(e.position().map_or(1, csv::Position::line), "not separated values".into());
    let header = reader.headers().map_err(malformed)?.clone();
    // More of a name says no more.
    let headers: Vec<&str> = header.iter().map(|h| h.char_indices().nth(60).map_or(h, |(end, _)| &h[..end])).collect();
    if headers.is_empty() {
        return Err(of_file("empty, expected a header and daily prices".into(), None));
    }
    let columns = Columns::find(&headers, &how.column, &how.date_column)
        .map_err(|Unclear { message, advice }| of_file(message, advice))?;
    let records: Vec<csv::StringRecord> = reader.records().collect::<csv::Result<_>>().map_err(malformed)?;
    let blank = |r: &&csv::StringRecord| r.iter().any(|field| !field.is_empty());
    let records: Vec<&csv::StringRecord> = records.iter().filter(blank).collect();
    let texts: Vec<&str> = records.iter().filter_map(|r| r.get(columns.date)).collect();
    let form = dates::form(&texts).map_err(|message| of_file(message, None))?;
    one_series(&headers, &records).map_err(|message| of_file(message, None))?;
    // A model of closes does not care what is wrong with the opens.
    let bars = how.bars;
    let mut days = Days::default();
    let (mut rows, mut bad) = (vec![], vec![]);
    for record in records {
        let line = record.position().map_or(0, |at| {
            // Blank lines before a record count as its own.
            let before = text.as_bytes()[at.byte() as usize..].iter().take_while(|b| matches!(b, b'\r' | b'\n'));
            at.line() + before.filter(|b| **b == b'\n').count() as u64
        });
        // Only text that runs over lines can hold a line break: a quote that is never closed swallows the file.
        if record.iter().any(|field| field.contains('\n')) {
            return Err(fail(line, "a quotation mark is not closed".into()));
        }
        match row(record, &headers, &columns, form, delimiter == b',', bars) {
            Ok((day, bar)) => rows.push(Row { day, line, bar }),
            Err(message) if how.skip_bad_rows => bad.push(format!("line {line}: {message}")),
            Err(message) => return Err(skippable(line, message, "leaves such rows out")),
        }
    }
    if let Some(first) = bad.first() {
        days.warnings.push(format!("{} left out, the first at {first}", counted(bad.len(), "bad row")));
    }
    rows.sort_by_key(|row| (row.day, row.line));
    let (mut twice, mut differing) = (0, None);
    rows.dedup_by(|later, earlier| {
        let same = later.day == earlier.day;
        if same && later.bar != earlier.bar {
            differing.get_or_insert((later.line, earlier.line, earlier.day));
        }
        twice += usize::from(same);
        same
    });
    if let (Some((later, earlier, day)), false) = (differing, how.skip_bad_rows) {
        let message = format!("{day} is there twice with different prices (line {earlier} too)");
        return Err(skippable(later, message, "keeps the first"));
    }
    if twice > 0 {
        days.warnings.push(format!("{} left out, as their dates were there before", counted(twice, "row")));
    }
    const OPTIONAL: [&str; 5] = ["Open", "High", "Low", "Volume", "Adj Close"];
    let there = [columns.open, columns.high, columns.low, columns.volume, columns.adjusted];
    days.missing = OPTIONAL.into_iter().zip(there).filter(|(_, at)| at.is_none()).map(|(name, _)| name).collect();
    (days.dates, days.bars) = rows.into_iter().map(|row| (row.day, row.bar)).unzip();
    days.suspect();
    Ok(days)
}

/// Refuses files with several series, one below the other.
fn one_series(headers: &[&str], records: &[&csv::StringRecord]) -> std::result::Result<(), String> {
    const NAMES: [&str; 4] = ["symbol", "ticker", "name", "stock"];
    let Some(at) = headers.iter().position(|h| NAMES.iter().any(|n| h.eq_ignore_ascii_case(n))) else { return Ok(()) };
    let mut values = records.iter().filter_map(|r| r.get(at));
    let Some(first) = values.next() else { return Ok(()) };
    match values.find(|v| *v != first) {
        Some(other) => {
            let values = quoted(&format!("{}, {}", quoted(first), quoted(other)));
            Err(format!("column {} has several values ({values}): leave one of them in the file", headers[at]))
        }
        None => Ok(()),
    }
}

/// How far, relatively, open and close may lie outside low and high.
const ROUNDING: f64 = 0.01;

/// The day and bar of a row.
fn row(
    record: &csv::StringRecord,
    headers: &[&str],
    columns: &Columns,
    form: &str,
    thousands: bool,
    bars: bool,
) -> std::result::Result<(Date, Bar), String> {
    if record.iter().skip(headers.len()).any(|field| !field.is_empty()) {
        let hint = "a number with commas outside of quotes?";
        return Err(format!("{} fields, expected {} ({hint})", record.len(), headers.len()));
    }
    let shown = |text: &str| format!("{:?}", text.chars().take(40).collect::<String>());
    let field = |column: usize| {
        let missing = || format!("{} fields, expected {}", record.len(), headers.len());
        record.get(column).ok_or_else(missing)
    };
    let number = |column: usize, least: f64| {
        let text = field(column)?;
        let value = parse_number(text, thousands).filter(|v| v.is_finite() && *v >= least);
        let expected = match least > 0. {
            _ if text.contains(',') => "a decimal point (decimal commas are not read)",
            true => "a positive number",
            false => "zero or more",
        };
        value.ok_or_else(|| format!("{} is {}, expected {expected}", headers[column], shown(text)))
    };
    let price = |column: usize| number(column, f64::MIN_POSITIVE);
    let or_close = |column: Option<usize>| price(column.unwrap_or(columns.close));
    let text = field(columns.date)?;
    let day = dates::date(text, form)
        .ok_or_else(|| format!("{} is {}, expected a date such as 2008-10-14", headers[columns.date], shown(text)))?;
    let close = or_close(columns.adjusted)?;
    if !bars {
        return Ok((day, Bar::closing(close)));
    }
    let (last, open) = (price(columns.close)?, or_close(columns.open)?);
    let (mut high, mut low) = (or_close(columns.high)?, or_close(columns.low)?);
    // Vendors round: open and close may lie a little outside.
    let (top, bottom) = (open.max(last), open.min(last));
    if let (Some(at), true) = (columns.high, columns.low.is_some() && (high < low || high < top * (1. - ROUNDING))) {
        return Err(format!("{} is {}, below another price of its day", headers[at], shown(field(at)?)));
    }
    if let (Some(at), true) = (columns.low, columns.high.is_some() && low > bottom * (1. + ROUNDING)) {
        return Err(format!("{} is {}, above another price of its day", headers[at], shown(field(at)?)));
    }
    (high, low) = (high.max(top), low.min(bottom));
    let factor = close / last;
    let bar = Bar {
        open: open * factor,
        high: high * factor,
        low: low * factor,
        close,
        volume: columns.volume.map_or(Ok(0.), |v| number(v, 0.))?,
    };
    Ok((day, bar))
}

/// `1,234.5`, `$12`, `70.7M`. Commas separate thousands, strictly; where they also could be decimal points (`thousands`
/// is false) they are refused.
fn parse_number(text: &str, thousands: bool) -> Option<f64> {
    let text = text.trim_start_matches(['$', '€', '£', '¥']).trim();
    let (digits, unit) = match text.char_indices().last()? {
        (at, 'K' | 'k') => (&text[..at], 1e3),
        (at, 'M' | 'm') => (&text[..at], 1e6),
        (at, 'B' | 'b') => (&text[..at], 1e9),
        _ => (text, 1.),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let mut groups = whole.split(',');
    let leading = groups.next()?;
    let rest: Vec<&str> = groups.collect();
    if fraction.contains(',') {
        return None;
    }
    if !rest.is_empty() && (!thousands || leading.is_empty() || leading.len() > 3 || rest.iter().any(|g| g.len() != 3))
    {
        return None;
    }
    Some(digits.replace(',', "").parse::<f64>().ok()? * unit)
}

impl Days {
    /// Adds warnings about what daily prices seldom do.
    fn suspect(&mut self) {
        let apart = |w: &[Date]| w[1].since(w[0]).map(|s| s.get_days()).unwrap_or(0);
        let gaps: Vec<_> = self.dates.windows(2).filter(|w| apart(w) > 7).collect();
        if let Some(longest) = gaps.iter().max_by_key(|w| apart(w)) {
            let (from, to, days) = (longest[0], longest[1], apart(longest));
            self.warnings.push(format!(
                "{} of more than a week, the longest of {days} days, {from} to {to}",
                counted(gaps.len(), "gap")
            ));
        }
        let mut spaces: Vec<_> = self.dates.windows(2).map(apart).collect();
        spaces.sort_unstable();
        if let Some(&median) = spaces.get(spaces.len() / 2).filter(|m| **m > 3) {
            self.warnings.push(format!("rows are {median} days apart, this model is made for daily prices"));
        }
        let factor = |i: usize| self.bars[i + 1].close / self.bars[i].close;
        let jumps: Vec<usize> =
            (0..self.bars.len().saturating_sub(1)).filter(|&i| !(0.7..1.45).contains(&factor(i))).collect();
        if let Some(&first) = jumps.first() {
            self.warnings.push(format!(
                "the close changes like after a split on {}, first by a factor of {:.3} on {}: if no crash explains it, use \
                 adjusted prices",
                counted(jumps.len(), "day"),
                factor(first),
                self.dates[first + 1]
            ));
        }
    }
}

fn counted(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_with(text: &str, how: &Reading) -> Result<Days> {
        let dir = tempfile::tempdir().map_err(Error::io(Path::new("temporary")))?;
        let path = dir.path().join("p.csv");
        std::fs::write(&path, text).map_err(Error::io(&path))?;
        read_csv(&path, how)
    }

    fn read(text: &str) -> Result<Days> {
        read_with(text, &Reading::default())
    }

    #[test]
    fn days_are_sorted_and_adjusted() -> Result<()> {
        let bars = Reading { bars: true, ..Reading::default() };
        let days = read_with(
            "Date,OPEN,High,Low,close,Volume,Adj Close\n2020-01-03,4,5,3,4,9,4\n2020-01-02,10,12,8,10,7,5\n",
            &bars,
        )?;
        assert_eq!(days.dates.iter().map(|d| d.to_string()).collect::<Vec<_>>(), ["2020-01-02", "2020-01-03"]);
        assert_eq!(days.bars[0], Bar { open: 5., high: 6., low: 4., close: 5., volume: 7. });
        assert!(days.missing.is_empty() && days.warnings.is_empty());
        // A model of closes reads no more than it needs.
        let gap = read("Date,Open,Close,Volume\n2020-01-03,,4,\n")?;
        assert_eq!(gap.bars, [Bar::closing(4.)]);
        let adjusted = read_with("Date,Open,Adj Close\n2020-01-03,8,4\n", &bars)?;
        assert!(adjusted.missing.contains(&"Open") && !adjusted.missing.contains(&"Adj Close"));
        let close = read("date,close\n2020-01-02,3\n")?;
        assert_eq!(close.bars, [Bar::closing(3.)]);
        assert_eq!(close.missing, ["Open", "High", "Low", "Volume", "Adj Close"]);
        Ok(())
    }

    #[test]
    fn files_as_they_are_found_are_read() -> Result<()> {
        for text in [
            "\u{feff}Date,Close,Volume\r\n\r\n2020-01-02,\"1,234.50\",\"7,000\"\r\n,,\r\n2020-01-03,$1235,7K\r\n",
            "Date;Close;Volume\n02.01.2020;1234.5;7000\n13.01.2020;1235;7000\n",
            "Date\tClose\tVolume\n\"Jan 2, 2020\"\t1234.5\t0.007M\n\"Jan 3, 2020\"\t1235\t7000\n",
        ] {
            let days = read_with(text, &Reading { bars: true, ..Reading::default() })?;
            let bars: Vec<_> = days.bars.iter().map(|b| (b.close, b.volume)).collect();
            assert_eq!(bars, [(1234.5, 7000.), (1235., 7000.)], "{text}");
            assert_eq!(days.dates[0], Date::constant(2020, 1, 2), "{text}");
        }
        Ok(())
    }

    #[test]
    fn bad_rows_are_named_by_line_and_column_and_can_be_left_out() -> Result<()> {
        let skip = Reading { skip_bad_rows: true, ..Reading::default() };
        for (text, expected) in [
            ("Date,Close\n2020-01-02,abc\n", "line 2: Close is \"abc\""),
            ("Date,Close\n2020-01-02,-1\n", "line 2: Close is \"-1\""),
            ("Date,Close\n2020-01-02,NaN\n", "line 2: Close is \"NaN\""),
            ("Date,Close\n2020-01-02,\"12,5\"\n", "line 2: Close is \"12,5\""),
            ("Date;Close\n2020-01-02;1,234\n", "line 2: Close is \"1,234\""),
            ("Date;Close\n2020-01-02;1.234,56\n", "line 2: Close is \"1.234,56\", expected a decimal point"),
            ("Date,Close,Volume\n2020-01-02,1,234.50,7\n", "line 2: 4 fields, expected 3 (a number with commas"),
            ("Date,Close\n2020-01-02,1\n\nsoon,1\n", "line 4: Date is \"soon\""),
            ("Date,Close\n2020-01-02,1\n2020-01-03\n", "line 3: 1 fields, expected 2"),
            (
                "Date,Close\n2020-01-02,1\n2020-01-02,2\n",
                "line 3: 2020-01-02 is there twice with different prices (line 2 too)",
            ),
        ] {
            let message = read(text).map(|_| ()).unwrap_err().to_string();
            assert!(message.contains("p.csv: ") && message.contains(expected), "{message}");
            assert!(message.contains("(skip_bad_rows "), "{message}");
            let days = read_with(text, &skip)?;
            assert!(days.bars.len() <= 1 && days.warnings.len() == 1, "{text}: {:?}", days.warnings);
        }
        for (text, expected) in [
            ("", "empty"),
            ("Date,Open\n", "no column close; it has Date, Open (column names it)"),
            ("Date,Close,Note\n2020-01-02,1,\"see\n2020-01-03,1,\n", "line 2: a quotation mark is not closed"),
            ("Date,Close,Name\n2020-01-02,1,A\n2020-01-02,2,B\n", "column Name has several values (A, B)"),
            ("Date,Close\n03/04/2008,1\n05/06/2008,1\n", "could be month/day/year or day/month/year"),
        ] {
            let message = read(text).map(|_| ()).unwrap_err().to_string();
            assert!(message.contains("p.csv: ") && message.contains(expected), "{message}");
        }
        Ok(())
    }

    #[test]
    fn what_looks_wrong_is_warned_of() -> Result<()> {
        let warnings = |text: &str| -> Result<String> { Ok(read(text)?.warnings.join("; ")) };
        let text =
            "Date,Close\n2020-01-02,10\n2020-01-02,10\n2020-01-03,10\n2020-03-02,10\n2020-03-03,5\n2020-03-04,10.5\n";
        let said = warnings(text)?;
        assert!(said.contains("1 row left out, as"), "{said}");
        assert!(said.contains("1 gap of more than a week, the longest of 59 days, 2020-01-03 to 2020-03-02"), "{said}");
        assert!(said.contains("on 2 days, first by a factor of 0.500 on 2020-03-03"), "{said}");
        assert_eq!(warnings("Date,Close\n2020-01-02,10\n2020-01-03,11\n")?, "");
        Ok(())
    }
}
