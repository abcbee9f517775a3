//! EEG as a table in text: fields by tabs, semicolons, commas, bars or blanks; time steps in rows with the channels' names above them, or
//! channels in rows with their names in front.

use std::io::Cursor;

use csv::StringRecord;

use super::{Found, microvolts};

/// What stands where a value is missing.
const MISSING: [&str; 6] = ["", "n/a", "na", "null", "none", "-"];
/// Columns of times, and of numbers that count the rows, by their names without a unit.
const TIMES: [&str; 16] = [
    "time",
    "times",
    "t",
    "seconds",
    "second",
    "sec",
    "s",
    "ms",
    "milliseconds",
    "timestamp",
    "timestamps",
    "latency",
    "elapsed",
    "zeit",
    "time_s",
    "time_ms",
];
const COUNTS: [&str; 8] = ["", "sample", "samples", "index", "unnamed: 0", "n", "row", "#"];
/// What stands above a column of channels' names.
const NAMES: [&str; 6] = ["", "channel", "channels", "name", "label", "electrode"];

pub(super) fn number(text: &str, comma: bool) -> Option<f64> {
    if MISSING.iter().any(|m| text.eq_ignore_ascii_case(m)) {
        return Some(f64::NAN);
    }
    text.parse().ok().or_else(|| comma.then(|| text.replacen(',', ".", 1).parse().ok())?)
}

/// Seconds of a time of day, `12:34:56.789`, also behind a date or a number of days.
pub(super) fn clock(text: &str) -> Option<f64> {
    let text = text.trim().trim_end_matches('Z');
    let day = text.rsplit([' ', 'T']).next()?;
    // Behind it may stand the distance to Greenwich.
    let day = day.split(['+']).next()?;
    let parts: Vec<f64> = day.split(':').map(|p| p.replace(',', ".").parse().ok()).collect::<Option<_>>()?;
    match parts[..] {
        [hours, minutes, seconds] => Some(3600. * hours + 60. * minutes + seconds),
        _ => None,
    }
}

/// A name in small letters without its unit, and that: `time (ms)`, `Fp1 [uV]`.
pub(super) fn named(label: &str) -> (String, Option<&str>) {
    let label = label.trim();
    match label.strip_suffix([')', ']']).and_then(|l| l.split_once(['(', '['])) {
        Some((name, unit)) => (name.trim().to_lowercase(), Some(unit.trim())),
        None => (label.to_lowercase(), None),
    }
}

/// Whether times of this name and unit are milliseconds; none if nothing says so.
pub(super) fn milliseconds(name: &str, unit: Option<&str>) -> Option<bool> {
    match (unit.map(str::to_ascii_lowercase).as_deref(), name) {
        (Some("ms" | "msec" | "milliseconds"), _) | (None, "ms" | "milliseconds" | "time_ms") => Some(true),
        (Some("s" | "sec" | "seconds"), _) | (None, "s" | "sec" | "second" | "seconds" | "time_s") => Some(false),
        _ => None,
    }
}

/// Steps a second, and the first one's time in seconds, of times that rise evenly but for their rounding.
///
/// # Errors
/// Times that do not, or that may be milliseconds as well as numbers of steps.
pub(super) fn timing(times: &[f64], milliseconds: Option<bool>) -> Result<(f64, f64), String> {
    let step = (times[times.len() - 1] - times[0]) / (times.len() - 1).max(1) as f64;
    if !(step.is_finite() && step > 0.) {
        return Err("its times do not rise, or are not all there".into());
    }
    let expected = |i: usize| times[0] + i as f64 * step;
    if let Some(i) = (0..times.len()).find(|i| times[*i].is_nan() || (times[*i] - expected(*i)).abs() > 2. * step) {
        return Err(format!(
            "its times are not even: step {i} is at {}, expected {:.4}; save a stretch without gaps",
            times[i],
            expected(i)
        ));
    }
    let unit = match milliseconds {
        Some(true) => 1000.,
        Some(false) => 1.,
        None if (step - 1.).abs() < 1e-6 => {
            return Err("its times rise by 1, which may be milliseconds or time steps".into());
        }
        None if step >= 0.5 => 1000.,
        None => 1.,
    };
    // Decimal times are not quite what they are in binary.
    let rate = unit / step;
    let whole = rate.round();
    Ok((if (rate / whole - 1.).abs() < 1e-6 { whole } else { rate }, times[0] / unit))
}

/// A text without its comments, which follow, and a reader of its records, whose numbers of fields may differ.
pub(super) struct Table<'a> {
    pub(super) comments: Vec<&'a str>,
    pub(super) reader: csv::Reader<Cursor<String>>,
    pub(super) delimiter: u8,
}

impl<'a> Table<'a> {
    pub(super) fn of(text: &'a str) -> Self {
        let is_comment = |line: &&str| line.trim_start().starts_with(['#', '%']);
        let comments =
            text.lines().take_while(is_comment).map(|l| l.trim_start().trim_start_matches(['#', '%']).trim());
        let comments: Vec<&str> = comments.collect();
        let body = text.lines().filter(|line| !is_comment(line));
        let stated = text.lines().next().and_then(|l| l.trim().strip_prefix("sep=")).and_then(|d| d.bytes().next());
        let some = body.clone().find(|l| l.bytes().any(|b| b.is_ascii_digit()) && !l.starts_with("sep="));
        let some = some.unwrap_or_default();
        let delimiter = stated.or_else(|| [b'\t', b';', b',', b'|'].into_iter().find(|d| some.as_bytes().contains(d)));
        let body = body.skip(usize::from(stated.is_some()));
        let body: String = match delimiter {
            Some(_) => body.flat_map(|line| [line, "\n"]).collect(),
            // A unit belongs to the name before it.
            None => body
                .map(|l| l.replace(" (", "(").replace(" [", "["))
                .map(|l| l.split_whitespace().collect::<Vec<_>>().join("\t") + "\n")
                .collect(),
        };
        let delimiter = delimiter.unwrap_or(b'\t');
        let mut reader = csv::ReaderBuilder::new();
        let reader = reader.has_headers(false).flexible(true).delimiter(delimiter).trim(csv::Trim::All);
        Self { comments, reader: reader.from_reader(Cursor::new(body)), delimiter }
    }
}

/// What is known of a table's columns before its first row of numbers.
#[derive(Default)]
struct Head {
    labels: Vec<String>,
    /// The row of units below them.
    units: Vec<String>,
    /// Lines above them that are none of both.
    others: usize,
    /// The times above channels in rows.
    times: Vec<f64>,
}

impl Head {
    /// Takes a line above the numbers, if it is one.
    fn takes(&mut self, record: &StringRecord, numbers: &[Option<f64>]) -> bool {
        let rest_is_numbers = numbers.len() > 2 && numbers[1..].iter().all(|n| n.is_some_and(f64::is_finite));
        let first = record.get(0).unwrap_or_default().to_lowercase();
        if rest_is_numbers && self.labels.is_empty() && NAMES.contains(&first.as_str()) && self.times.is_empty() {
            self.times = numbers[1..].iter().copied().flatten().collect();
            return true;
        }
        if !numbers.iter().all(|n| n.is_none_or(f64::is_nan)) {
            return false;
        }
        let is_unit = |field: &str| microvolts(field).is_some();
        if record.iter().any(is_unit) && record.iter().all(|f| is_unit(f) || f.is_empty() || ["s", "ms"].contains(&f)) {
            self.units = record.iter().map(String::from).collect();
            return true;
        }
        self.others += usize::from(!self.labels.is_empty());
        self.labels = record.iter().map(String::from).collect();
        true
    }
}

pub(super) fn parse(text: &str) -> Result<Found, String> {
    let Table { comments, mut reader, delimiter } = Table::of(text);
    let mut found = Found { name: "table".into(), ..Found::default() };
    let (mut head, mut times, mut rows) = (Head::default(), vec![], Vec::<String>::new());
    // Columns that are no channels: the first that may be times, and all of them.
    let (mut clocks, mut dropped): (Option<usize>, Vec<usize>) = (None, vec![]);
    let (mut width, mut short) = (0, None);
    for record in reader.records() {
        let record = record.map_err(|e| e.to_string())?;
        let line = record.position().map_or(0, csv::Position::line);
        let mut fields: Vec<&str> = record.iter().collect();
        let mut numbers: Vec<Option<f64>> = fields.iter().map(|field| number(field, delimiter != b',')).collect();
        if found.rows == 0 && head.takes(&record, &numbers) {
            continue;
        }
        if let Some(line) = short {
            return Err(format!("line {line}: fewer than the {width} fields of the lines before"));
        }
        if found.rows == 0 {
            let other = |i: &usize| {
                let name = named(head.labels.get(*i).map_or("-", String::as_str)).0;
                TIMES.contains(&name.as_str()) || COUNTS.contains(&name.as_str())
            };
            dropped = (0..fields.len().min(head.labels.len())).filter(other).collect();
            let is_time = |i: &&usize| TIMES.contains(&named(&head.labels[**i]).0.as_str());
            clocks = dropped.iter().find(is_time).or(dropped.first()).copied();
            // A comma behind the last value, or none behind the last name.
            let ends_empty = fields.len() > 1 && fields.last() == Some(&"");
            let fits = head.labels.is_empty() || head.labels.len() == fields.len();
            width = fields.len() - usize::from(ends_empty && !fits);
        }
        if fields.len() == width + 1 && fields.last() == Some(&"") {
            fields.pop();
            numbers.pop();
        }
        if fields.len() != width {
            if fields.len() < width && found.rows > 0 {
                short = Some(line);
                continue;
            }
            return Err(format!("line {line}: {} fields, expected the {width} of the lines before", fields.len()));
        }
        // Channels in rows have their names in front.
        let in_rows = width > 2 && numbers[0].is_none() && dropped.is_empty() && clock(fields[0]).is_none();
        let in_rows = in_rows && (found.rows == 0 || !rows.is_empty()) && numbers[1..].iter().all(Option::is_some);
        if in_rows {
            rows.push(fields[0].into());
        } else if let Some(first) = rows.first() {
            let (line, text) = if found.rows == 1 { (line - 1, first.as_str()) } else { (line, fields[0]) };
            return Err(format!(
                "line {line}: column 1 is {text:.40?}, expected a number, or a channel's name in every line"
            ));
        }
        let before = found.values.len();
        for (i, value) in numbers.iter().enumerate().skip(usize::from(in_rows)) {
            let value = value.or_else(|| clock(fields[i]).filter(|_| dropped.contains(&i)));
            if clocks == Some(i) {
                times.push(value.unwrap_or(f64::NAN));
            }
            match value {
                _ if dropped.contains(&i) => {}
                Some(value) => found.values.push(value as f32),
                None => {
                    let column = head.labels.get(i).cloned().unwrap_or_else(|| (i + 1).to_string());
                    return Err(format!("line {line}: column {column} is {:.40?}, expected a number", fields[i]));
                }
            }
        }
        found.columns = found.values.len() - before;
        found.rows += 1;
    }
    if short.is_some() {
        found.remarks.push("The last line is not whole: it is left out.".into());
    }
    if head.others > 0 {
        found.remarks.push(format!("Lines above the names are passed over: {}.", head.others));
    }
    if !rows.is_empty() {
        (found.labels, found.in_rows) = (rows, true);
        (times, clocks) = (head.times, Some(0));
        head.labels = vec!["time".into()];
    } else if !head.times.is_empty() {
        return Err("its first line is numbers behind a name, but no line below it is".into());
    } else {
        if head.labels.is_empty() {
            // NumPy writes names as a comment.
            let split = |line: &&str| -> Vec<String> {
                match delimiter {
                    b'\t' => line.split_whitespace().map(String::from).collect(),
                    _ => line.split(char::from(delimiter)).map(|f| f.trim().to_string()).collect(),
                }
            };
            let fits = |names: &Vec<String>| names.len() == width && width > 1;
            head.labels = comments.iter().rev().map(split).find(fits).unwrap_or_default();
        }
        name_columns(&mut found, &head, &dropped);
    }
    if let Some(at) = clocks.filter(|_| times.len() > 1) {
        let (name, unit) = named(&head.labels[at]);
        let counts = COUNTS.contains(&name.as_str()) && times.iter().all(|t| t.fract() == 0.);
        match timing(&times, milliseconds(&name, unit)) {
            _ if counts => {}
            Ok((rate, begin)) => (found.rate, found.begin) = (Some(rate), begin),
            Err(what) => found.doubt = Some(what),
        }
    }
    Ok(found)
}

/// Gives columns their names and brings those with a unit to microvolts.
fn name_columns(found: &mut Found, head: &Head, dropped: &[usize]) {
    let kept = |i: &usize| !dropped.contains(i);
    let mut scales = vec![];
    for i in (0..head.labels.len()).filter(kept) {
        let label = head.labels[i].trim();
        let unit = named(label).1.and_then(microvolts);
        let scale = unit.or_else(|| head.units.get(i).and_then(|u| microvolts(u)));
        found.labels.push(if unit.is_some() {
            label[..label.rfind(['(', '[']).unwrap_or(0)].trim().into()
        } else {
            label.into()
        });
        found.units.push(scale.is_some());
        scales.push(scale.unwrap_or(1.));
    }
    if found.units.contains(&true) && scales.len() == found.columns {
        for row in found.values.chunks_exact_mut(found.columns) {
            row.iter_mut().zip(&scales).for_each(|(v, scale)| *v = (f64::from(*v) * scale) as f32);
        }
    }
}
