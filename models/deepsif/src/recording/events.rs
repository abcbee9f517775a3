//! Moments of a recording that a file names.

use std::path::Path;

use super::{At, Event, LONGEST, brainvision, table};

/// Columns with the time, with the number of the time step, and with what happened, the most telling first.
const TIMES: [&str; 8] = ["onset", "time", "seconds", "t", "start", "time_s", "time_ms", "ms"];
const STEPS: [&str; 3] = ["sample", "samples", "latency"];
const KINDS: [&str; 9] = ["trial_type", "description", "annotation", "type", "name", "event", "label", "value", "code"];

/// The events of a table in text (BIDS' `events.tsv`, MNE's annotations as text, EEGLAB's list of events, or times in seconds alone), or of
/// BrainVision's `.vmrk`.
pub(super) fn read(path: &Path, remarks: &mut Vec<String>) -> Result<Vec<Event>, String> {
    if path.extension().is_some_and(|e| e.eq_ignore_ascii_case("vmrk")) {
        return brainvision::markers(path);
    }
    let named = |what: String| format!("{}: {what}", path.display());
    if path.extension().is_some_and(|e| e.eq_ignore_ascii_case("fif")) {
        return Err(named(
            "events are not read from FIF: write them as a table with the columns onset and description".into(),
        ));
    }
    let bytes = zoo_checkpoint::bytes_of(path, "a table of events", LONGEST).map_err(|e| e.to_string())?;
    let text = zoo_checkpoint::text::decode(&bytes, "").map_err(|e| named(e.to_string()))?.text;
    let table::Table { comments, mut reader, delimiter } = table::Table::of(&text);
    // MNE writes the names of columns as a comment.
    let header = comments.iter().find(|line| line.to_lowercase().contains("onset"));
    let split = |line: &&str| line.split([',', '\t', ';']).map(|f| f.trim().to_string()).collect::<Vec<_>>();
    let mut columns = header.map(split).map(|names| Columns::of(&names)).transpose().map_err(named)?;
    let (mut events, mut without) = (vec![], 0usize);
    for record in reader.records() {
        let record = record.map_err(|e| named(e.to_string()))?;
        let number = |text: &str| table::number(text, delimiter != b',').filter(|v| v.is_finite());
        if columns.is_none()
            && events.is_empty()
            && record.iter().all(|f| number(f).is_none() && table::clock(f).is_none())
        {
            let names: Vec<String> = record.iter().map(String::from).collect();
            columns = Some(Columns::of(&names).map_err(named)?);
            continue;
        }
        let line = record.position().map_or(0, csv::Position::line);
        let text = record.get(columns.as_ref().map_or(0, |c| c.at)).unwrap_or_default();
        if columns.is_some() && table::number(text, false).is_some_and(f64::is_nan) {
            without += 1;
            continue;
        }
        let dated = text.contains('-') && text.contains(':');
        let value = number(text).or_else(|| table::clock(text).filter(|_| !dated)).ok_or_else(|| {
            let way = if dated { " (MNE writes seconds into annotations of .txt, dates into .csv)" } else { "" };
            named(format!("line {line}: {text:.40?} is no time in seconds from the recording's beginning{way}"))
        })?;
        let (at, names) = match &columns {
            Some(Columns { in_steps: true, first, .. }) => (At::Step(value - first), None),
            Some(Columns { unit, .. }) => (At::Seconds(value / unit), None),
            None if record.iter().filter(|f| number(f).is_some()).count() > 1 => {
                return Err(named(format!(
                    "line {line}: several numbers, and no line that names them: write one above, such as onset,description (in seconds) or \
                     sample,description"
                )));
            }
            None => (At::Seconds(value), record.iter().rfind(|f| number(f).is_none())),
        };
        let kinds = columns.iter().flat_map(|c| c.kinds.iter().filter_map(|i| record.get(*i))).chain(names);
        let names = kinds.filter(|name| !name.is_empty() && *name != "n/a").map(String::from).collect();
        events.push(Event { at, lasts: 0., names });
    }
    if without > 0 {
        remarks.push(format!("Events without a time are passed over: {without}."));
    }
    if events.is_empty() { Err(named("it names no event".into())) } else { Ok(events) }
}

/// What the columns of a table of events hold.
struct Columns {
    /// Where the time is, whether it is a time step, the number of the first one, and units of a second.
    at: usize,
    in_steps: bool,
    first: f64,
    unit: f64,
    kinds: Vec<usize>,
}

impl Columns {
    fn of(names: &[String]) -> Result<Self, String> {
        let names: Vec<(String, Option<&str>)> = names.iter().map(|name| table::named(name)).collect();
        let place = |wanted: &[&str]| wanted.iter().find_map(|w| names.iter().position(|(name, _)| name == w));
        let kinds = KINDS.iter().filter_map(|kind| names.iter().position(|(name, _)| name == kind)).collect();
        if let Some(at) = place(&TIMES) {
            let (name, unit) = &names[at];
            let unit = if table::milliseconds(name, *unit) == Some(true) { 1000. } else { 1. };
            return Ok(Self { at, in_steps: false, first: 0., unit, kinds });
        }
        let Some(at) = place(&STEPS) else {
            let names: Vec<&str> = names.iter().map(|(name, _)| name.as_str()).collect();
            return Err(format!("its columns are {}, and none is called onset or sample", names.join(", ")));
        };
        // EEGLAB counts from 1.
        let first = if names[at].0 == "latency" { 1. } else { 0. };
        Ok(Self { at, in_steps: true, first, unit: 1., kinds })
    }
}
