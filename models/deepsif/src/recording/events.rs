//! Moments of a recording that a file names.

use std::path::Path;

use super::{Event, LONGEST, brainvision, table};

/// Names of columns with the time in seconds, and with what happened.
const TIMES: [&str; 5] = ["onset", "time", "seconds", "t", "start"];
const KINDS: [&str; 7] = ["trial_type", "description", "type", "name", "event", "label", "value"];

/// The events of a table in text (BIDS' `events.tsv`, MNE's annotations, or times in seconds alone), or of BrainVision's `.vmrk`, for a
/// recording of `rate` samples a second.
pub(super) fn read(path: &Path, rate: f64) -> Result<Vec<Event>, String> {
    if path.extension().is_some_and(|e| e.eq_ignore_ascii_case("vmrk")) {
        return brainvision::markers(path, rate);
    }
    let named = |what: String| format!("{}: {what}", path.display());
    let bytes = zoo_checkpoint::bytes_of(path, "a table of events", LONGEST).map_err(|e| e.to_string())?;
    let text = zoo_checkpoint::text::decode(&bytes, "").map_err(|e| named(e.to_string()))?.text;
    let (mut reader, delimiter) = table::records(&text, true);
    let (mut header, mut events): (Option<Vec<String>>, Vec<Event>) = (None, vec![]);
    for record in reader.records() {
        let record = record.map_err(|e| named(e.to_string()))?;
        let number = |text: &str| table::number(text, delimiter != b',').filter(|v| v.is_finite());
        if header.is_none() && events.is_empty() && record.iter().all(|field| number(field).is_none()) {
            header = Some(record.iter().map(str::to_ascii_lowercase).collect());
            continue;
        }
        let column = |names: &[&str]| {
            let header = header.as_ref()?;
            names.iter().find_map(|name| header.iter().position(|h| h == name))
        };
        let at = match &header {
            Some(header) => column(&TIMES)
                .ok_or_else(|| named(format!("its columns are {}, and none is called onset", header.join(", "))))?,
            None => 0,
        };
        let text = record.get(at).unwrap_or_default();
        let line = record.position().map_or(0, csv::Position::line);
        let seconds = number(text).ok_or_else(|| {
            named(format!("line {line}: {text:.40?} is no time in seconds from the recording's beginning"))
        })?;
        let name = match header {
            Some(_) => column(&KINDS).and_then(|at| record.get(at)),
            None => record.iter().rfind(|field| number(field).is_none()),
        };
        events.push(Event { seconds, name: name.unwrap_or_default().into() });
    }
    if events.is_empty() { Err(named("it names no event".into())) } else { Ok(events) }
}
