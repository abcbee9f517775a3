//! Daily prices from files as they are found.

#[cfg(feature = "files")]
mod binary;
mod calendar;
mod columns;
mod dates;
mod file;
mod names;
mod numbers;
mod rows;
mod series;
mod table;

use std::path::Path;

use jiff::civil::{Date, Weekday};

use crate::{Bar, Error, Reading, Result};
use columns::Unclear;
use rows::{Format, Line};
use table::Sheet;

/// Trading days in time order.
#[derive(Clone, Debug, Default)]
pub struct Days {
    /// Their dates.
    pub dates: Vec<Date>,
    /// Their bars, adjusted for splits and dividends where the file says how.
    pub bars: Vec<Bar>,
    /// Columns that were not there or empty, of Open, High, Low, Volume and Adj Close; the close or zero stands for them.
    pub missing: Vec<&'static str>,
    /// What looks wrong with the prices, was decided in doubt or passed over, in words.
    pub warnings: Vec<String>,
}

/// What of a price file is needed: a reader of closes does not care what is wrong with the opens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// The closes alone.
    Closes,
    /// Whole bars.
    Bars,
}

/// Number of days that may be there twice before a file is taken for one of several series, or of several bars a day.
const FEW: usize = 3;

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

    /// The `n` dates that follow, on the days of the week or as far apart as these; and a sentence that says so.
    pub fn next_dates(&self, n: usize) -> (Vec<Date>, String) {
        calendar::next(&self.dates, n)
    }
}

/// A day's bar, and where it stands.
struct Row {
    at: dates::Moment,
    line: u64,
    bar: Bar,
    /// Shares traded, if the row says so.
    volume: Option<f64>,
}

/// Reads a daily price file: rows in any order of time, with or without a header, among titles and notes. Columns are found by the
/// names that vendors give them, by what is in them, or named by `how`; so are the forms of dates and numbers. Prices are multiplied by
/// adjusted close / close where both are there, so that splits leave no jump.
///
/// # Errors
/// What is no table; columns, dates, numbers or series that are not clear; bad rows unless `how` skips them. The message names file
/// and line, and the field of `how` that helps.
pub fn read(path: &Path, how: &Reading, need: Need) -> Result<Days> {
    let of_file = |message: String, advice| Error::Data { message: format!("{}: {message}", path.display()), advice };
    let unclear = |Unclear { message, advice, .. }: Unclear| of_file(message, advice);
    let skippable =
        |line: u64, message: String, does| of_file(format!("line {line}: {message}"), Some(("skip_bad_rows", does)));
    let Sheet { headers, mut columns, rows: mut lines, delimiter, remarks, chosen } = file::sheet(path, how)?;
    let mut days = Days { warnings: remarks, ..Days::default() };
    let of_sheet = Reading { symbol: String::new(), ..how.clone() };
    let how = if chosen { &of_sheet } else { how };
    series::choose(&headers, &columns, &mut lines, how).map_err(unclear)?;
    let format = Format::find(&headers, &mut columns, &lines, delimiter, how).map_err(unclear)?;
    days.warnings.extend(format.remarks.iter().cloned());
    let moments: Vec<Option<dates::Moment>> = lines.iter().map(|line| format.moment(line, &columns)).collect();
    let dated: Vec<Option<Date>> = moments.iter().map(|m| m.map(|m| m.day)).collect();
    if how.resample.is_empty() && how.symbol.is_empty() {
        series::unnamed(&headers, &columns, &lines, &dated, &mut days.warnings).map_err(unclear)?;
    }
    let known: Vec<Date> = dated.iter().copied().flatten().collect();
    if 2 * known.len() < lines.len() && lines.len() > 1 {
        let first = lines.iter().zip(&dated).find(|(_, day)| day.is_none()).map_or(&lines[0], |(line, _)| line);
        let message = format!(
            "line {}: {} is {:?}, and most rows are like it, in no form of dates that is known",
            first.line,
            headers[columns.date].text,
            columns::quoted(first.get(columns.date))
        );
        return Err(of_file(message, Some(("date_format", "says how to read them"))));
    }
    if dates::turned(&known) {
        days.warnings.push(
            "the dates are in no order of time, but would be with month and day exchanged below the 13th, as Excel does to dates of \
             another country: export the file again, with dates as 2008-10-14"
                .into(),
        );
    } else if !dates::in_order(&known) {
        days.warnings.push("the rows are neither in rising nor in falling order of time: they are sorted".into());
    }
    let (mut rows, mut bad) = (vec![], vec![]);
    for (line, moment) in lines.iter().zip(moments) {
        let number = line.line;
        match (Line { row: line, headers: &headers, columns: &columns, format: &format }).read(moment, need) {
            Ok(row) => rows.push(row),
            Err(message) if how.skip_bad_rows => bad.push(format!("line {number}: {message}")),
            Err(message) => return Err(skippable(number, message, "leaves such rows out")),
        }
    }
    if let Some(first) = bad.first() {
        days.warnings.push(format!("{} left out, the first at {first}", counted(bad.len(), "bad row")));
    }
    let descending = rows.first().zip(rows.last()).is_some_and(|(first, last)| first.at > last.at);
    if descending {
        rows.reverse();
    }
    rows.sort_by_key(|row| row.at);
    match how.resample.as_str() {
        "" => {}
        "daily" => rows = daily(rows, &mut days.warnings).map_err(|message| of_file(message, None))?,
        other => return Err(of_file(format!("there is no step {other:?}"), Some(("resample", "knows daily")))),
    }
    once_a_day(&mut rows, how, &mut days).map_err(|(line, message, advice)| match line {
        Some(line) => skippable(line, message, "keeps the first"),
        None => of_file(message, advice),
    })?;
    if evenings(&rows) {
        days.warnings.push(format!(
            "rows are of {}, with Sundays but no Fridays: their dates may be those of the evenings before",
            rows[0].at.time.unwrap_or_default().strftime("%H:%M")
        ));
    }
    days.fill(&columns, need, &mut rows);
    (days.dates, days.bars) = rows.into_iter().map(|row| (row.at.day, row.bar)).unzip();
    days.suspect();
    Ok(days)
}

/// Whether rows look like those of the evenings before their days: late, on Sundays but not on Fridays.
fn evenings(rows: &[Row]) -> bool {
    let late = |row: &Row| row.at.time.is_some_and(|t| t.hour() >= 14);
    let on = |day: Weekday| 10 * rows.iter().filter(|r| r.at.day.weekday() == day).count() > rows.len();
    rows.len() > 10 && rows.iter().all(late) && on(Weekday::Sunday) && !on(Weekday::Friday)
}

/// Days of several bars: the first open, the highest and the lowest price, the last close, the volumes together.
fn daily(rows: Vec<Row>, warnings: &mut Vec<String>) -> std::result::Result<Vec<Row>, String> {
    let mut days: Vec<Row> = vec![];
    let all = rows.len();
    for row in rows {
        match days.last_mut().filter(|day| day.at.day == row.at.day) {
            None => days.push(row),
            Some(day) if row.at.time.is_none() || row.at.time == day.at.time => {
                return Err(format!(
                    "line {}: {} is there several times without different times of day, so that no day can be made of its rows",
                    row.line, row.at.day
                ));
            }
            Some(day) => {
                let volume = day.volume.zip(row.volume).map(|(a, b)| a + b).or(day.volume).or(row.volume);
                day.bar = Bar {
                    open: day.bar.open,
                    high: day.bar.high.max(row.bar.high),
                    low: day.bar.low.min(row.bar.low),
                    close: row.bar.close,
                    volume: volume.unwrap_or(0.),
                };
                (day.volume, day.at.time) = (volume, row.at.time);
            }
        }
    }
    if days.len() < all {
        warnings.push(format!("{} made of {}", counted(days.len(), "day"), counted(all, "bar")));
    }
    Ok(days)
}

/// The line of a row that may be left out, what is wrong, and the field that helps where no line is given.
type Wrong = (Option<u64>, String, Option<(&'static str, &'static str)>);

/// Leaves one row of each day.
fn once_a_day(rows: &mut Vec<Row>, how: &Reading, days: &mut Days) -> std::result::Result<(), Wrong> {
    let (mut twice, mut differing): (usize, Vec<(u64, u64, Date)>) = (0, vec![]);
    let mut times: Option<[dates::Moment; 2]> = None;
    let mut all = 0;
    rows.sort_by_key(|row| (row.at.day, row.at.time, row.line));
    let mut of_day: Option<Date> = None;
    for pair in rows.windows(2) {
        all += usize::from(pair[0].at.day != pair[1].at.day);
        if pair[0].at.day != pair[1].at.day {
            continue;
        }
        if pair[0].at.time != pair[1].at.time {
            times = times.or(Some([pair[0].at, pair[1].at]));
        }
        if pair[0].bar != pair[1].bar && of_day != Some(pair[0].at.day) {
            of_day = Some(pair[0].at.day);
            differing.push((pair[0].line.max(pair[1].line), pair[0].line.min(pair[1].line), pair[0].at.day));
        }
    }
    all += usize::from(!rows.is_empty());
    if differing.len() > FEW && 100 * differing.len() > all {
        let (several, day) = (differing.len(), differing[0].2);
        return Err(
            match times.map(|t| t.map(|m| m.time.map_or("00:00".into(), |t| t.strftime("%H:%M").to_string()))) {
                Some([first, second]) => (
                    None,
                    format!("several bars a day, such as {day} at {first} and {second}, where one is expected"),
                    Some(("resample", "daily makes days of them")),
                ),
                None => (
                    None,
                    format!(
                        "{several} of {} are there several times with different prices, such as {day} (lines {} and {}): several series, or \
                     several bars a day, in one file",
                        counted(all, "day"),
                        differing[0].1,
                        differing[0].0
                    ),
                    None,
                ),
            },
        );
    }
    if let (Some((later, earlier, day)), false) = (differing.first(), how.skip_bad_rows) {
        return Err((Some(*later), format!("{day} is there twice with different prices (line {earlier} too)"), None));
    }
    rows.sort_by_key(|row| (row.at.day, row.line));
    rows.dedup_by(|later, earlier| {
        let same = later.at.day == earlier.at.day;
        twice += usize::from(same);
        same
    });
    if twice > 0 {
        days.warnings.push(format!("{} left out, as their dates were there before", counted(twice, "row")));
    }
    Ok(())
}

impl Days {
    /// Says which columns are missing, and gives every bar a volume.
    fn fill(&mut self, columns: &columns::Columns, need: Need, rows: &mut [Row]) {
        const OPTIONAL: [&str; 5] = ["Open", "High", "Low", "Volume", "Adj Close"];
        let silent = need == Need::Bars && rows.iter().all(|r| r.volume.is_none_or(|v| v == 0.));
        let volume = columns.volume.filter(|_| !silent);
        let there = [columns.open, columns.high, columns.low, volume, columns.adjusted];
        self.missing = OPTIONAL.into_iter().zip(there).filter(|(_, at)| at.is_none()).map(|(name, _)| name).collect();
        let none = rows.iter().filter(|r| r.volume.is_none()).count();
        if need == Need::Closes || volume.is_none() || none == 0 {
            return;
        }
        let mut last = rows.iter().find_map(|r| r.volume).unwrap_or(0.);
        for row in rows {
            last = row.volume.unwrap_or(last);
            row.bar.volume = last;
        }
        self.warnings.push(format!(
            "{} without volume: that of the row before stands for it, or the first one that is there",
            counted(none, "row")
        ));
    }

    /// Adds warnings about what daily prices seldom do.
    fn suspect(&mut self) {
        let apart = |w: &[Date]| w[1].since(w[0]).map(|s| s.get_days()).unwrap_or(0);
        let median = dates::apart(&self.dates);
        let gaps: Vec<_> = self.dates.windows(2).filter(|w| apart(w) > 7.max(2 * median)).collect();
        if let Some(longest) = gaps.iter().max_by_key(|w| apart(w)) {
            let (from, to, days) = (longest[0], longest[1], apart(longest));
            self.warnings.push(format!(
                "{} of more than {}, the longest of {days} days, {from} to {to}",
                counted(gaps.len(), "gap"),
                if median > 3 { "two steps" } else { "a week" }
            ));
        }
        if median > 3 {
            self.warnings.push(format!("rows are {median} days apart, where daily prices are expected"));
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

    fn read_with(text: &str, how: &Reading, need: Need) -> Result<Days> {
        let io = |source| Error::Io { path: "temporary".into(), source };
        let dir = tempfile::tempdir().map_err(io)?;
        let path = dir.path().join("p.csv");
        std::fs::write(&path, text).map_err(io)?;
        super::read(&path, how, need)
    }

    fn read(text: &str) -> Result<Days> {
        read_with(text, &Reading::default(), Need::Closes)
    }

    fn bars(text: &str) -> Result<Days> {
        read_with(text, &Reading::default(), Need::Bars)
    }

    #[test]
    fn days_are_sorted_and_adjusted() -> Result<()> {
        let days =
            bars("Date,OPEN,High,Low,close,Volume,Adj Close\n2020-01-03,4,5,3,4,9,4\n2020-01-02,10,12,8,10,7,5\n")?;
        assert_eq!(days.dates.iter().map(|d| d.to_string()).collect::<Vec<_>>(), ["2020-01-02", "2020-01-03"]);
        assert_eq!(days.bars[0], Bar { open: 5., high: 6., low: 4., close: 5., volume: 7. });
        assert!(days.missing.is_empty() && days.warnings.is_empty());
        // A model of closes reads no more than it needs.
        let gap = read("Date,Open,Close,Volume\n2020-01-03,,4,\n")?;
        assert_eq!(gap.bars, [Bar::closing(4.)]);
        let adjusted = bars("Date,Open,Adj Close\n2020-01-03,8,4\n")?;
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
            let days = bars(text)?;
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
            (
                "Date,Close\n2020-01-02,\"12,5\"\n2020-01-03,12.5\n",
                "line 2: Close is \"12,5\", expected a positive number with a decimal point, as others have",
            ),
            ("Date,Close,Volume\n2020-01-02,1,234.50,7\n", "line 2: 4 fields, expected 3 (a number with commas"),
            ("Date,Close\n2020-01-02,1\n\nsoon,1\n", "line 4: Date is \"soon\""),
            ("Date,Close\n2020-01-02,1\n2020-01-03\n", "line 3: 1 field, expected 2"),
            (
                "Date,Close\n2020-01-02,1\n2020-01-02,2\n",
                "line 3: 2020-01-02 is there twice with different prices (line 2 too)",
            ),
        ] {
            let message = read(text).map(|_| ()).unwrap_err().to_string();
            assert!(message.contains("p.csv: ") && message.contains(expected), "{message}");
            assert!(message.contains("(skip_bad_rows "), "{message}");
            let days = read_with(text, &skip, Need::Closes)?;
            assert!(days.bars.len() <= 1 && days.warnings.len() == 1, "{text}: {:?}", days.warnings);
        }
        for (text, expected) in [
            ("", "empty"),
            ("Date,Open\n", "no column close; it has Date, Open (column names it)"),
            ("Date,Close,Note\n2020-01-02,1,\"see\n2020-01-03,1,\n", "line 2: a quotation mark is not closed"),
            (
                "Date,Close,Name\n2020-01-02,1,A\n2020-01-02,2,B\n",
                "told apart by column Name: A, B (symbol chooses one, * takes all for one)",
            ),
            (
                "Date,Close\n2020-01-02,\"99,900\"\n2020-01-03,\"100,420\"\n",
                "prices such as 99,900 could have thousands or",
            ),
            ("Date;Close\n02.01.2020;11.056\n13.01.2020;11.080\n", "prices such as 11.056 could have thousands or"),
            (
                "Date,Close\n########,1\n########,2\n",
                "Date is ########, as Excel shows dates in a column that is too narrow",
            ),
            ("<!DOCTYPE html><html><head><title>Too many</title>", "it is a web page (Too many), not a table"),
            (
                "{\n \"Note\": \"Thank you\"}",
                "it is JSON, not CSV: save it as CSV (pandas.read_json(…).to_csv(…)), if it is no message: {",
            ),
            ("PK\u{3}\u{4} prices.csv", "it is a zip archive: unpack it"),
            ("SQLite format 3\0", "it is a SQLite database"),
            ("title\nunits\n", "no column date"),
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

    /// Weekdays of 2019 with the fields that a row has of each, `i` being its number.
    fn table(header: &str, n: usize, row: impl Fn(usize, &str) -> String) -> String {
        let weekdays = std::iter::successors(Some(Date::constant(2019, 1, 2)), |d| d.tomorrow().ok())
            .filter(|d| !matches!(d.weekday(), Weekday::Saturday | Weekday::Sunday));
        let rows = weekdays.take(n).enumerate().map(|(i, day)| row(i, &day.to_string()) + "\n");
        std::iter::once(header.to_string()).chain(rows).collect()
    }

    fn price(i: usize) -> f64 {
        100. + (i % 7) as f64 / 4.
    }

    #[test]
    fn what_could_be_something_else_is_not_read_in_silence() {
        let of = |header: &str, row: fn(usize, &str) -> String| table(header, 30, row);
        for (text, need, expected) in [
            (
                of("Date,AAPL,C,MSFT\n", |i, d| format!("{d},{0},7,{0}", price(i))),
                Need::Closes,
                "each of AAPL, C, MSFT could",
            ),
            (of("Date;Close\n", |i, d| format!("{d};{} b", price(i))), Need::Closes, "Close is \"100 b\""),
            (of("", |i, d| format!("{d},100'{}5", 10 + i % 20)), Need::Closes, "could have thousands or be in 32nds"),
            (
                of("Date,Open,Close,Volume\n", |i, d| if i == 9 { format!("{d},1,7") } else { format!("{d},1,2,3") }),
                Need::Closes,
                "line 11: 3 fields, expected 4",
            ),
            (
                of("Date,Close,,\n", |i, d| format!("{d},2,{},", 100 + i)),
                Need::Closes,
                "column 3 has no name, but holds 100",
            ),
            (
                of(
                    "Date;Close\n",
                    |i, d| if i % 9 == 4 { format!("{d};100,641") } else { format!("{d};100.6{}", i % 10) },
                ),
                Need::Closes,
                "line 6: Close is \"100,641\"",
            ),
            (of("Date,Close\n", |_, d| format!("{}M{},5", &d[..4], &d[5..7])), Need::Closes, "most rows are like it"),
            (
                of("Date,Close\n", |i, d| format!("{d},\"{}\n2019-01-02,1\"", i)),
                Need::Closes,
                "a quotation mark is not closed",
            ),
            (
                of("Date,Close,Adj Close\n", |_, d| format!("{d},1e300,1e-300")),
                Need::Bars,
                "a price near that of its day",
            ),
        ] {
            let message = read_with(&text, &Reading::default(), need).map(|d| d.bars.len()).unwrap_err().to_string();
            assert!(message.contains(expected), "{message}\n{}", &text[..60]);
        }
    }

    #[test]
    fn odd_files_are_read_with_a_word_about_them() -> Result<()> {
        let bars = |text: &str| read_with(text, &Reading::default(), Need::Bars);
        let all = |text: &str, n: usize, said: &str| -> Result<Days> {
            let days = bars(text)?;
            let warnings = days.warnings.join("; ");
            assert!(days.bars.len() == n && warnings.contains(said), "{} {warnings}", days.bars.len());
            assert!(days.bars.iter().enumerate().all(|(i, b)| b.close == price(i)), "{:?}", days.bars[1]);
            Ok(days)
        };
        let p = price;
        // R's row names, a small table above, names over two lines, a repeated header, a note, units, sep=.
        all(
            &table("\"\",\"DATE\",\"SP500\"\n", 30, |i, d| format!("\"{}\",\"{d}\",{}", i + 1, p(i))),
            30,
            "SP500 is taken",
        )?;
        all(
            &table("Date,Last,Volume\n2019-03-01,7,7\nDate,Open,Close\n", 30, |i, d| format!("{d},{0},{0}", p(i))),
            30,
            "lines 1 to 2",
        )?;
        all(&table("\"Date\n(day)\",\"Close\n(USD)\"\n", 30, |i, d| format!("{d},{}", p(i))), 30, "")?;
        let again =
            table("Date,Close\n", 30, |i, d| format!("{d},{}{}", p(i), if i == 9 { "\nDate,Close" } else { "" }));
        all(&again, 30, "line 12 holds no data and is passed over: \"Date, Close\"")?;
        all(&table("sep=;\r\nDate;Close\n-;USD\n", 30, |i, d| format!("{d};{}", p(i))), 30, "line 3 holds no data")?;
        all(
            &table("Date,Close,Adjusted\n", 30, |i, d| format!("{d},{},1", p(i))),
            30,
            "column Adjusted is always 1: it is no",
        )?;
        all(
            &table("Date,close_x1\n", 30, |i, d| format!("{d},{}", p(i))),
            30,
            "column close_x1 is taken for the close",
        )?;
        // Without a header: numbers that are times, and another price in front of the volume.
        let clock =
            all(&table("", 30, |i, d| format!("{d},1600,{0},{1},{0},{0},7", p(i), p(i) + 1.)), 30, "2 time, 3 open")?;
        assert_eq!((clock.bars[3].high, clock.bars[3].volume), (p(3) + 1., 7.));
        let adjusted = table("", 30, |i, d| format!("{d},{0},{1},{0},{0},{2},7000", p(i), p(i) + 1., p(i) / 2.));
        assert_eq!(all(&adjusted, 30, "column 6 looks like another price and is left out")?.bars[3].volume, 7000.);
        // Gaps of the volume.
        let gaps = table("Date,Open,High,Low,Close,Volume\n", 30, |i, d| {
            format!("{d},{0},{0},{0},{0},{1}", p(i), if i < 2 || i == 9 { "-".into() } else { i.to_string() })
        });
        let gaps = all(&gaps, 30, "3 rows without volume")?;
        assert_eq!([0, 1, 2, 8, 9, 10].map(|i| gaps.bars[i].volume), [2., 2., 2., 8., 8., 10.]);
        // Blocks of text that may be series.
        let blocks = table("Date,Close,Source\n", 60, |i, d| format!("{d},{},{}", p(i), ["A", "B"][i / 30]));
        all(&blocks, 60, "column Source is A, B in blocks: if these are several series, symbol chooses one")?;
        // Evenings before the days, in UTC.
        let evenings = table("Date,Close\n", 30, |i, d| {
            let day = d.parse::<Date>().and_then(|d| d.yesterday()).map(|d| d.to_string()).unwrap_or_default();
            format!("{day}T22:00:00Z,{}", p(i))
        });
        all(&evenings, 30, "may be those of the evenings before")?;
        Ok(())
    }

    #[test]
    fn a_person_chooses_series_columns_and_steps() -> Result<()> {
        let closes =
            |text: &str, how: Reading| read_with(text, &how, Need::Bars).map(|d| (d.bars.len(), d.bars[1].close));
        let two = table("Date,Sym,Kind,Close,Mid\n", 30, |i, d| {
            format!("{d},A,x,{0},{1}\n{d},A,y,{2},{2}\n{d},B,x,{2},{2}", price(i), price(i) + 1., 3. * price(i))
        });
        let how = |symbol: &str, column: &str| Reading {
            symbol: symbol.into(),
            symbol_column: column.into(),
            ..Reading::default()
        };
        assert!(closes(&two, how("", "")).is_err() && closes(&two, how("A", "Sym")).is_err());
        assert_eq!(closes(&two.replace(",A,y,", ",C,y,"), how("A", "Sym"))?, (30, price(1)));
        assert_eq!(
            closes(&two.replace(",A,y,", ",C,y,"), Reading { column: "Mid".into(), ..how("A", "") })?,
            (30, price(1) + 1.)
        );
        let roll = table("Date,Contract,Close\n", 40, |i, d| format!("{d},F{},{}", i / 20, price(i)));
        assert!(closes(&roll, how("", "")).unwrap_err().to_string().contains("* takes all for one"));
        assert_eq!(closes(&roll, how("*", ""))?, (40, price(1)));
        assert!(closes(&roll, how("", "Sym")).unwrap_err().to_string().contains("no column Sym"));
        let hours = table("Date,Time,Open,High,Low,Close,Volume\n", 30, |i, d| {
            let day = format!("{}/{}/{}", &d[8..], &d[5..7], &d[..4]);
            format!(
                "{day},15:00,{0},{1},{0},{0},2\n{day},9:00,{2},{2},{2},{0},1",
                price(i),
                price(i) + 2.,
                price(i) - 1.
            )
        });
        let daily = Reading { date_format: "%d/%m/%Y".into(), resample: "daily".into(), ..Reading::default() };
        let days = read_with(&hours, &daily, Need::Bars)?;
        let p = price(3);
        assert_eq!(days.bars[3], Bar { open: p - 1., high: p + 2., low: p - 1., close: p, volume: 3. });
        let untimed = hours.replace("15:00,", ",").replace("9:00,", ",");
        assert!(closes(&untimed, daily.clone()).unwrap_err().to_string().contains("without different times of day"));
        assert!(closes(&hours, Reading { resample: "weekly".into(), ..daily }).is_err());
        Ok(())
    }
}
