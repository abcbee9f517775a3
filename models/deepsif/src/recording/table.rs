//! EEG as a table in text: fields by tabs, semicolons, commas or blanks; the first line may have the channels' names, the first column
//! the times.

use super::{Found, microvolts};

/// What stands where a value is missing.
const MISSING: [&str; 6] = ["", "n/a", "na", "null", "none", "-"];

pub(super) fn number(text: &str, comma: bool) -> Option<f64> {
    if MISSING.iter().any(|m| text.eq_ignore_ascii_case(m)) {
        return Some(f64::NAN);
    }
    text.parse().ok().or_else(|| comma.then(|| text.replacen(',', ".", 1).parse().ok())?)
}

/// A name without its unit, and microvolts of that: `Fp1 (mV)`, `Fp1 [uV]`.
fn unit(label: &str) -> Option<(&str, f64)> {
    let (name, unit) = label.trim().strip_suffix([')', ']'])?.split_once(['(', '['])?;
    Some((name.trim(), microvolts(unit)?))
}

pub(super) fn delimiter(text: &str) -> Option<u8> {
    let some = text.lines().find(|l| !l.starts_with('#') && l.bytes().any(|b| b.is_ascii_digit())).unwrap_or_default();
    [b'\t', b';', b','].into_iter().find(|d| some.as_bytes().contains(d))
}

/// Records of a table, with its delimiter; `ragged` ones may have other numbers of fields.
pub(super) fn records(text: &str, ragged: bool) -> (csv::Reader<std::io::Cursor<String>>, u8) {
    let delimiter = delimiter(text);
    let text = match delimiter {
        Some(_) => text.to_string(),
        None => text.lines().map(|l| l.split_whitespace().collect::<Vec<_>>().join("\t") + "\n").collect(),
    };
    let delimiter = delimiter.unwrap_or(b'\t');
    let mut reader = csv::ReaderBuilder::new();
    let reader =
        reader.has_headers(false).flexible(ragged).delimiter(delimiter).trim(csv::Trim::All).comment(Some(b'#'));
    (reader.from_reader(std::io::Cursor::new(text)), delimiter)
}

pub(super) fn parse(text: &str) -> Result<Found, String> {
    let (mut reader, delimiter) = records(text, false);
    let mut found = Found { name: "table".into(), ..Found::default() };
    let mut times = vec![];
    let mut time: Option<String> = None;
    for record in reader.records() {
        let record = record.map_err(|e| e.to_string())?;
        let numbers: Vec<_> = record.iter().map(|field| number(field, delimiter != b',')).collect();
        if found.rows == 0 && found.labels.is_empty() && numbers.iter().all(|n| n.is_none_or(f64::is_nan)) {
            found.labels = record.iter().map(String::from).collect();
            let first = found.labels[0].to_ascii_lowercase();
            let first = first.split(['(', '[']).next().unwrap_or_default().trim().to_string();
            let is_time =
                matches!(first.as_str(), "time" | "times" | "t" | "seconds" | "sec" | "ms" | "sample" | "samples" | "");
            time = Some(first).filter(|_| is_time && found.labels.len() > 1);
            continue;
        }
        let line = record.position().map_or(0, csv::Position::line);
        if let Some(at) = numbers.iter().position(Option::is_none) {
            let column = found.labels.get(at).cloned().unwrap_or_else(|| (at + 1).to_string());
            let text = record.get(at).unwrap_or_default();
            return Err(format!("line {line}: column {column} is {text:.40?}, expected a number"));
        }
        let mut numbers = numbers.into_iter().flatten();
        if time.is_some() {
            times.extend(numbers.next());
        }
        let before = found.values.len();
        found.values.extend(numbers.map(|v| v as f32));
        found.columns = found.values.len() - before;
        found.rows += 1;
    }
    if let Some(name) = time {
        let label = found.labels.remove(0).to_ascii_lowercase();
        if !matches!(name.as_str(), "sample" | "samples" | "") && times.len() > 1 {
            found.rate = Some(rate(&times, name == "ms" || label.contains("ms"))?);
        }
    }
    let units: Vec<_> = found.labels.iter().map(|l| unit(l)).collect();
    if !units.is_empty() && units.iter().all(Option::is_some) {
        let (names, scales): (Vec<String>, Vec<f64>) =
            units.into_iter().flatten().map(|(n, s)| (n.to_string(), s)).unzip();
        for row in found.values.chunks_exact_mut(found.columns.max(1)) {
            row.iter_mut().zip(&scales).for_each(|(v, scale)| *v = (f64::from(*v) * scale) as f32);
        }
        (found.labels, found.has_unit) = (names, true);
    }
    Ok(found)
}

/// Steps a second of times that rise evenly, but for their rounding.
fn rate(times: &[f64], milliseconds: bool) -> Result<f64, String> {
    let step = (times[times.len() - 1] - times[0]) / (times.len() - 1) as f64;
    if !(step.is_finite() && step > 0.) {
        return Err("its times do not rise, or are not all there".into());
    }
    let expected = |i: usize| times[0] + i as f64 * step;
    if let Some(i) = (0..times.len()).find(|i| (times[*i] - expected(*i)).abs() > 2. * step) {
        return Err(format!(
            "its times are not even: step {i} is at {}, expected {:.4}; save a stretch without gaps",
            times[i],
            expected(i)
        ));
    }
    // Steps of half a unit and more are of milliseconds.
    Ok(if milliseconds || step >= 0.5 { 1000. } else { 1. } / step)
}
