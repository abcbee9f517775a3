//! From text to rows: what separates fields, where the header is, and what is no data.

use std::collections::HashSet;

use super::columns::{Columns, Header, Kind, Table, Unclear, listed, quoted};
use super::dates::{self, Form};
use super::names::{self, Field, Reading, words};
use super::numbers::{self, Decimal, Evidence};
use crate::Reading as How;

/// Rows within which a header is looked for.
const HEADER_WITHIN: usize = 60;
/// Rows of a table that is none of prices.
const SMALL: usize = 5;
/// Rows that tell what a column is.
const SAMPLE: usize = 200;
/// Rows of a file, and fields of a row.
pub(super) const MOST_ROWS: usize = 10_000_000;
const MOST_FIELDS: usize = 20_000;

/// A line of fields.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) line: u64,
    pub(super) fields: csv::StringRecord,
    /// Whether a quotation mark that is not closed has swallowed rows.
    pub(super) broken: bool,
}

impl Row {
    pub(super) fn get(&self, column: usize) -> &str {
        self.fields.get(column).unwrap_or_default()
    }

    fn filled(&self) -> usize {
        self.fields.iter().filter(|f| !f.is_empty()).count()
    }

    /// Neither a date nor a price: a title, units, a note at the end.
    fn says_nothing(&self, columns: &Columns, form: Option<&Form>) -> bool {
        !dates::looks_like(self.get(columns.date), form) && !numbers::is_number(self.get(columns.close))
    }
}

/// The table of a file: its columns, its rows of data, and what was passed over.
#[derive(Debug)]
pub(super) struct Sheet {
    pub(super) headers: Vec<Header>,
    pub(super) columns: Columns,
    pub(super) rows: Vec<Row>,
    /// What separates fields, if the file is text.
    pub(super) delimiter: Option<u8>,
    pub(super) remarks: Vec<String>,
    /// Whether it is the one of several that was asked for as a symbol.
    pub(super) chosen: bool,
}

/// What is wrong with a file, and where.
#[derive(Debug)]
pub(super) struct Fault {
    pub(super) line: Option<u64>,
    pub(super) unclear: Unclear,
}

impl From<Unclear> for Fault {
    fn from(unclear: Unclear) -> Self {
        Self { line: None, unclear }
    }
}

fn plain(message: String, line: Option<u64>) -> Fault {
    Fault { line, unclear: Unclear { message, advice: None, absent: false } }
}

/// Rows of text, without those that are blank.
///
/// # Errors
/// More of them, or of their fields, than prices have.
fn rows(text: &str, delimiter: u8) -> Result<Vec<Row>, Fault> {
    let mut reader = csv::ReaderBuilder::new()
        .delimiter(delimiter)
        .trim(csv::Trim::All)
        .flexible(true)
        .has_headers(false)
        .from_reader(text.as_bytes());
    let mut rows = vec![];
    for record in reader.records() {
        let malformed = |e: csv::Error| plain("not separated values".into(), e.position().map(csv::Position::line));
        let fields = record.map_err(malformed)?;
        let line = fields.position().map_or(0, |at| {
            // Blank lines before a record count as its own.
            let before = text.as_bytes()[at.byte() as usize..].iter().take_while(|b| matches!(b, b'\r' | b'\n'));
            at.line() + before.filter(|b| **b == b'\n').count() as u64
        });
        if fields.len() > MOST_FIELDS || rows.len() == MOST_ROWS {
            let message = format!("more than {MOST_FIELDS} fields in a row, or {MOST_ROWS} rows: no table of prices");
            return Err(plain(message, Some(line)));
        }
        // Notes and names of columns may run over lines; a mark that is not closed swallows lines that look like rows.
        let row = |l: &str| {
            let mut parts = l.split(char::from(delimiter));
            dates::looks_like(parts.next().unwrap_or_default().trim_matches('"'), None) && parts.next().is_some()
        };
        let broken = fields.iter().any(|f| f.contains('\n') && f.lines().skip(1).any(row));
        if fields.iter().any(|f| !f.is_empty()) {
            rows.push(Row { line, fields, broken });
        }
    }
    Ok(rows)
}

/// Which column is which, and where the data begin.
#[derive(Debug)]
struct Layout {
    headers: Vec<Header>,
    columns: Columns,
    /// The row behind the header.
    first: usize,
    /// Rows of the header.
    height: usize,
    headerless: bool,
}

/// What the columns of these rows are; rows of one field are titles and notes.
fn kinds(rows: &[Row], form: Option<&Form>) -> Vec<Kind> {
    let sample: Vec<&Row> = rows.iter().take(SAMPLE).filter(|r| r.filled() > 1).collect();
    let width = sample.iter().map(|r| r.fields.len()).max().unwrap_or(0);
    (0..width).map(|k| Kind::of(sample.iter().map(|r| r.get(k)), form)).collect()
}

/// yfinance's header of several lines: names of fields and tickers, one above the other, and perhaps the name of the dates.
fn stacked(rows: &[Row]) -> Option<(Vec<Header>, usize)> {
    let [a, b, ..] = rows else { return None };
    let cells = |row: &Row| -> Vec<String> { row.fields.iter().skip(1).map(String::from).collect() };
    let (mut above, mut below) = (cells(a), cells(b));
    if above.len() < 2 || above.len() != below.len() {
        return None;
    }
    // Spreadsheets name a group of columns once.
    for k in 1..above.len() {
        if above[k].is_empty() {
            above[k] = above[k - 1].clone();
        }
    }
    if above.iter().chain(&below).any(String::is_empty) {
        return None;
    }
    let price = |cell: &String| {
        let reading = names::read(cell, false).into_iter().next().filter(|r| r.ticker.is_empty());
        reading.filter(|r| !matches!(r.field, Field::Date | Field::Time | Field::Symbol))
    };
    let count = |cells: &[String]| cells.iter().filter(|c| price(c).is_some()).count();
    if count(&above) < count(&below) {
        std::mem::swap(&mut above, &mut below);
    }
    // The row of tickers holds neither names of fields nor prices, and each of them as often: units differ by field.
    let times = |ticker: &String| below.iter().filter(|t| *t == ticker).count();
    let even = below.iter().all(|ticker| times(ticker) == times(&below[0]));
    let data =
        below.iter().all(|cell| numbers::is_number(cell)) || below.iter().any(|cell| dates::looks_like(cell, None));
    if 2 * count(&above) < above.len() || count(&below) > 0 || !even || data || dates::looks_like(b.get(0), None) {
        return None;
    }
    let ends = |row: &&Row| row.filled() <= 1 && !dates::looks_like(row.get(0), None);
    let named = rows.get(2).filter(ends).map(|row| row.get(0)).filter(|t| !t.is_empty());
    let date = Header { text: named.unwrap_or("Date").into(), readings: names::read("Date", false) };
    let column = |(field, ticker): (&String, &String)| {
        let readings = price(field).map(|r| Reading { ticker: words(ticker), ..r });
        Header { text: format!("{ticker} {field}"), readings: readings.into_iter().collect() }
    };
    let headers = std::iter::once(date).chain(above.iter().zip(&below).map(column)).collect();
    Some((headers, 2 + usize::from(rows.get(2).filter(ends).is_some())))
}

/// Whether a row can be a header: it has words and no date.
fn is_header(row: &Row, form: Option<&Form>) -> bool {
    let words = row.fields.iter().any(|f| !f.is_empty() && !numbers::is_number(f));
    words && !row.fields.iter().any(|f| dates::looks_like(f, form))
}

fn headers(row: &Row) -> Vec<Header> {
    let all: HashSet<&str> = row.fields.iter().collect();
    row.fields.iter().map(|h| Header::of(h, &all)).collect()
}

/// Whether names of a date and a close are among these, or a person names the columns.
fn known(headers: &[Header], how: &How) -> bool {
    let any = |field: Field| headers.iter().any(|h| h.readings.iter().any(|r| r.field == field));
    let date = any(Field::Date) || !how.date_column.is_empty();
    date && (any(Field::Close) || any(Field::Adjusted) || !how.column.is_empty())
}

/// The layout of a table with this header; its data begin at row `first`.
fn layout_of(headers: Vec<Header>, first: usize, height: usize, kinds: &[Kind], how: &How) -> Result<Layout, Unclear> {
    let columns = Table { headers: &headers, kinds, how }.columns()?;
    Ok(Layout { headers, columns, first, height, headerless: false })
}

/// The layout by the header at row `i`, if it is one by its names and, where `strict`, by what is below it.
fn header_at(rows: &[Row], i: usize, how: &How, form: Option<&Form>, strict: bool) -> Option<Result<Layout, Unclear>> {
    let (headers, height) = stacked(&rows[i..]).unwrap_or_else(|| (headers(&rows[i]), 1));
    if !known(&headers, how) || height == 1 && !is_header(&rows[i], form) {
        return None;
    }
    let kinds = kinds(&rows[i + height..], form);
    let found = match layout_of(headers, i + height, height, &kinds, how) {
        Err(unclear) if unclear.absent || (!strict || kinds.contains(&Kind::Date)) => return Some(Err(unclear)),
        Err(_) => return None,
        Ok(found) => found,
    };
    let is = |column: usize, wanted: &[Kind]| kinds.get(column).is_some_and(|kind| wanted.contains(kind));
    let fits =
        is(found.columns.date, &[Kind::Date]) && is(found.columns.close, &[Kind::Number, Kind::Count, Kind::Date]);
    // A small table may stand above the one of prices; a header that is there again begins no other.
    let near = &rows[found.first..rows.len().min(found.first + SMALL)];
    let other = |r: &Row| is_header(r, form) && r.filled() > 2 && known(&self::headers(r), how);
    let above = near.iter().any(other) && near.iter().all(|r| r.fields != rows[i].fields);
    (!strict || fits && !above).then_some(Ok(found))
}

/// Finds the header, or does without.
///
/// # Errors
/// Columns that are not there, or could be several.
fn layout(rows: &[Row], how: &How, form: Option<&Form>) -> Result<Layout, Unclear> {
    // First by names and by what is below them, then by names alone.
    let mut absent = None;
    for strict in [true, false] {
        for i in 0..rows.len().min(HEADER_WITHIN) {
            match header_at(rows, i, how, form, strict) {
                None => {}
                Some(Err(unclear)) if unclear.absent => absent = absent.or(Some(unclear)),
                Some(found) => return found,
            }
        }
    }
    // Names that are not known, or none: what is in the columns decides.
    let is_data = |row: &Row| {
        let dates = row.fields.iter().filter(|f| dates::looks_like(f, form)).count();
        let numbers = row.fields.iter().filter(|f| numbers::is_number(f) && !dates::looks_like(f, form)).count();
        dates > 1 || dates == 1 && numbers > 0
    };
    let Some(at) = rows.iter().take(HEADER_WITHIN).position(is_data) else {
        let nothing = |message: &str| Unclear { message: message.into(), advice: None, absent: true };
        return Err(match (absent, rows.iter().take(HEADER_WITHIN).rev().max_by_key(|row| row.filled())) {
            (Some(absent), _) => absent,
            (None, None) => nothing("empty, expected a header and daily prices"),
            (None, Some(row)) => match layout_of(headers(row), 1, 1, &[], how) {
                Err(unclear) => unclear,
                Ok(_) => nothing("no row has a date and a price"),
            },
        });
    };
    let kinds = kinds(&rows[at..], form);
    match at.checked_sub(1).filter(|&i| is_header(&rows[i], form) && rows[i].fields.len() > 1) {
        Some(i) => layout_of(headers(&rows[i]), at, 1, &kinds, how),
        None => headerless(&rows[at..], at, &kinds, how),
    }
}

/// The columns of a table without a header, by what is in them: a date, perhaps a time, then one price, or open, high, low and close,
/// and the volume. Columns that a person names by their numbers are those.
fn headerless(rows: &[Row], first: usize, kinds: &[Kind], how: &How) -> Result<Layout, Unclear> {
    let headers: Vec<Header> = (1..=kinds.len()).map(|n| Header { text: n.to_string(), readings: vec![] }).collect();
    let help = |what: &str| {
        let message = format!("the file has no header, and {what}; its columns are called 1 to {}", kinds.len());
        Unclear::new(message, "column", "names the close")
    };
    let named = |name: &str, guess: Option<usize>| match name {
        "" => Ok(guess),
        name => match headers.iter().position(|h| h.text == name) {
            None => Err(help(&format!("no column {name}"))),
            found => Ok(found),
        },
    };
    let Some(date) = named(&how.date_column, kinds.iter().position(|k| *k == Kind::Date))? else {
        return Err(help("no column of dates"));
    };
    let prices = kinds.iter().skip(date + 2).filter(|k| **k == Kind::Number).count();
    let time = kinds.get(date + 1) == Some(&Kind::Time) || prices > 3 && is_clock(rows, date);
    let time = time.then_some(date + 1);
    let is_number = |k: &usize| kinds[*k] == Kind::Number && Some(*k) != time;
    let numbers: Vec<usize> = (date + 1..kinds.len()).filter(is_number).collect();
    let mut columns = Columns { date, time, ..Columns::default() };
    let close = match numbers[..] {
        _ if !how.column.is_empty() => named(&how.column, None)?,
        [close] => Some(close),
        [a, b, c, d, ..] => {
            let sample = &rows[..rows.len().min(4 * SAMPLE)];
            let candle = candle(sample, date, [a, b, c, d], how)?;
            let [open, high, low, close] =
                candle.ok_or_else(|| help("its columns do not look like open, high, low and close"))?;
            // Another price may follow, such as an adjusted one: the volume is none.
            let price = |k: &&usize| is_price(sample, **k, low, high);
            let rest = &numbers[4..];
            if let Some(other) = rest.iter().find(price) {
                columns
                    .doubts
                    .push(format!("column {} looks like another price and is left out", headers[*other].text));
            }
            let volume = rest.iter().find(|k| !price(k)).copied();
            columns = Columns { open: Some(open), high: Some(high), low: Some(low), volume, ..columns };
            Some(close)
        }
        _ => None,
    };
    let close = close.ok_or_else(|| help("its numbers could be several things"))?;
    let (open, high, low) = (
        named(&how.open_column, columns.open)?,
        named(&how.high_column, columns.high)?,
        named(&how.low_column, columns.low)?,
    );
    let volume = named(&how.volume_column, columns.volume)?;
    let adjusted = named(&how.adjusted_column, None)?;
    let columns = Columns { close, open, high, low, volume, adjusted, ..columns };
    Ok(Layout { headers, columns, first, height: 0, headerless: true })
}

/// Whether the numbers beside dates are times, such as 1600 or 93000: always the same, or several a day.
fn is_clock(rows: &[Row], date: usize) -> bool {
    let sample = &rows[..rows.len().min(SAMPLE)];
    let different = |k: usize| sample.iter().map(|r| r.get(k)).collect::<HashSet<_>>().len();
    let clock = |r: &Row| matches!(r.get(date + 1).len(), 1 | 3..=6) && dates::time(r.get(date + 1)).is_some();
    let plain = |r: &Row| r.get(date + 1).bytes().all(|b| b.is_ascii_digit());
    let times = different(date + 1) <= 2 || 2 * different(date) < sample.len();
    sample.len() > 2 && times && sample.iter().all(|r| plain(r) && clock(r))
}

/// Whether a column's numbers are near the day's prices.
fn is_price(rows: &[Row], column: usize, low: usize, high: usize) -> bool {
    let number = |r: &Row, k: usize| numbers::price(r.get(k), Decimal::Point);
    let near = |r: &&Row| match (number(r, column), number(r, low), number(r, high)) {
        (Some(price), Some(low), Some(high)) => (0.3 * low..=1.05 * high).contains(&price),
        _ => false,
    };
    !rows.is_empty() && 10 * rows.iter().filter(near).count() >= 9 * rows.len()
}

/// Open, high, low and close among four columns, if they are there: no price is above the high or below the low, and a day opens near the last close.
fn candle(rows: &[Row], date: usize, columns: [usize; 4], how: &How) -> Result<Option<[usize; 4]>, Unclear> {
    let mut evidence = Evidence::default();
    rows.iter().for_each(|r| columns.iter().for_each(|k| evidence.add(r.get(*k))));
    let decimal = evidence.decimal().unwrap_or(Decimal::Point);
    let read = |r: &Row| -> Option<[f64; 4]> {
        let mut prices = [0.; 4];
        for (price, column) in prices.iter_mut().zip(columns) {
            *price = numbers::parse(r.get(column), decimal).filter(|p| *p > 0.)?;
        }
        Some(prices)
    };
    let mut prices: Vec<[f64; 4]> = rows.iter().filter_map(read).collect();
    let texts: Vec<&str> = rows.iter().map(|r| r.get(date)).collect();
    let form = super::rows::form(&texts, &(date + 1).to_string(), how)?;
    let days: Vec<_> = rows.iter().filter_map(|r| dates::moment(r.get(date), &form)).collect();
    if days.first() > days.last() {
        prices.reverse();
    }
    let most =
        |is: &dyn Fn(&[f64; 4]) -> bool| 100 * prices.iter().filter(|p| is(p)).count() >= 98 * prices.len().max(1);
    // As most files have them, before any other order.
    let high = [1, 2, 0, 3].into_iter().find(|&k| most(&|p| p.iter().all(|v| *v <= p[k])));
    let low = [2, 1, 0, 3].into_iter().find(|&k| Some(k) != high && most(&|p| p.iter().all(|v| *v >= p[k])));
    let (Some(high), Some(low)) = (high, low) else { return Ok(None) };
    // No price doubles within most days.
    if !most(&|p| p[high] < 2. * p[low]) {
        return Ok(None);
    }
    let rest: Vec<usize> = (0..4).filter(|&k| k != high && k != low).collect();
    let jump = |from: usize, to: usize| prices.windows(2).map(|w| (w[1][to] / w[0][from]).ln().abs()).sum::<f64>();
    // Closes stand before opens in few files: in those, days begin much nearer to the last close.
    let exchanged = 2. * jump(rest[0], rest[1]) < jump(rest[1], rest[0]);
    let (open, close) = if exchanged { (rest[1], rest[0]) } else { (rest[0], rest[1]) };
    Ok(Some([open, high, low, close].map(|k| columns[k])))
}

/// Delimiters, those first that separate most lines into the same number of fields.
fn delimiters(text: &str) -> Vec<u8> {
    let lines: Vec<&str> = text.lines().filter(|l| !l.trim().is_empty()).take(100).collect();
    let score = |delimiter: u8| {
        let counts: Vec<usize> = lines.iter().map(|l| l.bytes().filter(|b| *b == delimiter).count()).collect();
        let same = |n: usize| counts.iter().filter(|c| **c == n).count();
        counts.iter().filter(|n| **n > 0).map(|n| same(*n)).max().unwrap_or(0)
    };
    let mut all = vec![b'\t', b';', b'|', b','];
    all.sort_by_key(|d| std::cmp::Reverse(score(*d)));
    all.retain(|d| score(*d) > 0);
    if all.is_empty() { vec![b','] } else { all }
}

/// Excel's first line, which says what separates fields, taken off.
fn separator(text: &str) -> Option<(u8, &str)> {
    let (line, rest) = text.split_once('\n')?;
    let line = line.trim().trim_matches('"');
    let mark = line.get(..4).filter(|t| t.eq_ignore_ascii_case("sep=")).map(|_| &line[4..])?;
    match mark.as_bytes() {
        [mark] => Some((*mark, rest)),
        [] if line.len() == 4 => Some((b'\t', rest)),
        _ => None,
    }
}

/// The form of dates that is asked for, if one is.
pub(super) fn asked(how: &How) -> Result<Option<Form>, Unclear> {
    let form = (!how.date_format.is_empty()).then(|| dates::named(&how.date_format)).transpose();
    form.map_err(|message| Unclear { message, advice: None, absent: false })
}

/// The table of a text.
///
/// # Errors
/// Columns that are not clear, with the line where there is one.
pub(super) fn of_text(text: &str, how: &How) -> Result<Sheet, Fault> {
    let lines = text.match_indices('\n').nth(20).map_or(text.len(), |(at, _)| at);
    let most = text.char_indices().nth(100_000).map_or(text.len(), |(end, _)| text[..end].rfind('\n').unwrap_or(0));
    let sample = &text[..lines.max(most)];
    let (said, body) = separator(text).map_or((None, text), |(mark, rest)| (Some(mark), rest));
    let skipped = text[..text.len() - body.len()].matches('\n').count() as u64;
    let sample = &sample[(text.len() - body.len()).min(sample.len())..];
    let candidates = said.map_or_else(|| delimiters(sample), |mark| vec![mark]);
    let form = asked(how)?;
    let (mut chosen, mut fault) = (None, None);
    for &delimiter in &candidates {
        let tried = rows(sample, delimiter).and_then(|rows| Ok(layout(&rows, how, form.as_ref())?));
        match tried {
            Ok(_) => {
                chosen = Some(delimiter);
                break;
            }
            // What is a header in one reading decides against another in which there is none.
            Err(found) if fault.as_ref().is_none_or(|f: &(Fault, u8)| f.0.unclear.absent && !found.unclear.absent) => {
                fault = Some((found, delimiter));
            }
            Err(_) => {}
        }
    }
    let delimiter = match (chosen, fault) {
        (Some(delimiter), _) => delimiter,
        (None, Some((fault, _))) => return Err(fault),
        (None, None) => b',',
    };
    let mut all = rows(body, delimiter)?;
    all.iter_mut().for_each(|row| row.line += skipped);
    Ok(Sheet { delimiter: Some(delimiter), ..of_rows(all, how)? })
}

/// The table of rows.
///
/// # Errors
/// As [`of_text`].
pub(super) fn of_rows(mut rows: Vec<Row>, how: &How) -> Result<Sheet, Fault> {
    let form = asked(how)?;
    let form = form.as_ref();
    let Layout { headers, columns, first, height, headerless } = layout(&rows, how, form)?;
    let mut remarks = vec![];
    let mut data = rows.split_off(first);
    let before = &rows[..first - height];
    if let [only] = before {
        remarks.push(format!("line {} is passed over, as it is above the header: {}", only.line, said(only)));
    } else if let [first, .., last] = before {
        remarks.push(format!(
            "lines {} to {} are passed over, as they are above the {}: {}, …",
            first.line,
            last.line,
            if headerless { "data" } else { "header" },
            said(first)
        ));
    }
    if headerless {
        let name = |at: Option<usize>, what: &str| at.map(|k| format!("{} {what}", headers[k].text));
        let Columns { date, time, open, high, low, close, volume, .. } = columns;
        let all = [
            (Some(date), "date"),
            (time, "time"),
            (open, "open"),
            (high, "high"),
            (low, "low"),
            (Some(close), "close"),
            (volume, "volume"),
        ];
        let named: Vec<String> = all.into_iter().filter_map(|(at, what)| name(at, what)).collect();
        remarks.push(format!("the file has no header; by what is in them, its columns are {}", named.join(", ")));
    }
    let mut passed: Vec<Row> = vec![];
    // Units and the like below the header.
    let below = data.iter().take_while(|r| r.says_nothing(&columns, form)).count();
    if below < data.len() {
        passed.extend(data.drain(..below));
    }
    let again = |row: &Row| rows.last().is_some_and(|header| height > 0 && row.fields == header.fields);
    let mut kept = vec![];
    for row in data {
        if again(&row) { passed.push(row) } else { kept.push(row) }
    }
    if let Some(row) = kept.iter().find(|r| r.broken) {
        return Err(plain("a quotation mark is not closed".into(), Some(row.line)));
    }
    // Notes at the end.
    let end = kept.iter().rposition(|r| !r.says_nothing(&columns, form));
    if let Some(end) = end {
        passed.extend(kept.split_off(end + 1));
    }
    passed.sort_by_key(|row| row.line);
    if let Some(first) = passed.first() {
        let lines: Vec<String> = passed.iter().map(|r| r.line.to_string()).collect();
        let lines = listed(lines.iter().map(String::as_str));
        remarks.push(match passed.len() {
            1 => format!("line {lines} holds no data and is passed over: {}", said(first)),
            _ => format!("lines {lines} hold no data and are passed over: {}, …", said(first)),
        });
    }
    remarks.extend(columns.doubts.iter().cloned());
    Ok(Sheet { headers, columns, rows: kept, delimiter: None, remarks, chosen: false })
}

/// A row as a message has it.
fn said(row: &Row) -> String {
    let text: Vec<&str> = row.fields.iter().filter(|f| !f.is_empty()).collect();
    format!("{:?}", quoted(&text.join(", ")))
}
