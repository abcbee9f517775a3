//! EEG in MATLAB's files: arrays with their channels' names, and the structures of FieldTrip and EEGLAB.

use std::collections::BTreeMap;
use std::path::Path;

use zoo_checkpoint::matlab::Variable;

use super::{Event, Found, LABELS, LONGEST, RATES, matrix};

fn texts(variable: &Variable) -> Vec<String> {
    let clean = |text: &str| text.trim_end_matches('\0').trim().to_string();
    match variable {
        Variable::Text(text) => text.lines().map(clean).collect(),
        Variable::Cells(cells) => cells.iter().flat_map(texts).collect(),
        // EEGLAB's chanlocs.
        Variable::Records(records) => records.iter().filter_map(|r| r.get("labels")).flat_map(texts).collect(),
        _ => vec![],
    }
}

fn scalar(variable: &Variable) -> Option<f64> {
    match variable {
        Variable::Numbers { values, .. } if values.len() == 1 && values[0].is_finite() => Some(values[0]),
        _ => None,
    }
}

/// The names of channels beside an array.
fn find(among: &BTreeMap<String, Variable>) -> Vec<String> {
    let is = |name: &String| LABELS.iter().chain(&["chanlocs"]).any(|n| name.eq_ignore_ascii_case(n));
    among.iter().filter(|(name, _)| is(name)).map(|(_, v)| texts(v)).find(|t| !t.is_empty()).unwrap_or_default()
}

fn rate(among: &BTreeMap<String, Variable>) -> Option<f64> {
    let is = |name: &String| RATES.iter().any(|n| name.eq_ignore_ascii_case(n));
    among.iter().filter(|(name, _)| is(name)).find_map(|(_, v)| scalar(v)).filter(|rate| *rate > 0.)
}

fn numbers(name: &str, variable: &Variable) -> Option<Found> {
    let Variable::Numbers { shape, values } = variable else { return None };
    let (rows, columns) = matrix(shape)?;
    let values = values.iter().map(|v| *v as f32).collect();
    Some(Found { name: name.into(), rows, columns, values, ..Found::default() })
}

/// The arrays that may be EEG.
pub(super) fn parse(path: &Path, variables: BTreeMap<String, Variable>) -> Result<Vec<Found>, String> {
    let mut all = vec![];
    // EEGLAB of today writes the fields of its structure as variables.
    let bare = variables.contains_key("data") && variables.contains_key("srate");
    if bare {
        all.extend(structure(path, "EEG", &variables)?);
    }
    for (name, variable) in &variables {
        if bare && name == "data" {
            continue;
        }
        all.extend(numbers(name, variable).map(|f| Found { labels: find(&variables), rate: rate(&variables), ..f }));
        let Variable::Records(records) = variable else { continue };
        let [fields] = &records[..] else { continue };
        all.extend(structure(path, name, fields)?);
    }
    Ok(all)
}

/// The EEG of a structure of FieldTrip's (label, trial or avg, fsample) or EEGLAB's (data, chanlocs, srate, event).
fn structure(path: &Path, name: &str, fields: &BTreeMap<String, Variable>) -> Result<Option<Found>, String> {
    let number = |key: &str| scalar(fields.get(key)?);
    for key in ["trial", "avg", "data"] {
        let variable = match fields.get(key) {
            Some(Variable::Cells(trials)) if trials.len() > 1 => {
                let n = trials.len();
                return Err(format!("{name}.{key} has {n} trials: leave one in the file, or their average"));
            }
            Some(Variable::Cells(trials)) => trials.first(),
            value => value,
        };
        let found = match variable {
            Some(Variable::Text(file)) => Some(beside(path, file, number("nbchan"), number("pnts"), number("trials"))?),
            Some(variable) => numbers(&format!("{name}.{key}"), variable),
            None => None,
        };
        let Some(found) = found else { continue };
        let is_eeglab = fields.contains_key("chanlocs");
        let rate = rate(fields);
        let events = match fields.get("event") {
            Some(Variable::Records(events)) => events.iter().filter_map(|e| event(e, rate?)).collect(),
            _ => vec![],
        };
        let labels = find(fields);
        // Theirs are channels × time steps, those of EEGLAB in microvolts.
        let in_rows = (is_eeglab || key != "data") && !matches!(variable, Some(Variable::Text(_)));
        return Ok(Some(Found { labels, rate, events, has_unit: is_eeglab, in_rows, ..found }));
    }
    Ok(None)
}

fn event(fields: &BTreeMap<String, Variable>, rate: f64) -> Option<Event> {
    let name = match fields.get("type")? {
        Variable::Text(text) => text.trim().to_string(),
        variable => scalar(variable)?.to_string(),
    };
    // The first sample is 1.
    Some(Event { seconds: (scalar(fields.get("latency")?)? - 1.) / rate, name })
}

/// The samples that lie in a `.fdt` beside EEGLAB's `.set`: f32, all channels of a time step together.
fn beside(
    set: &Path,
    name: &str,
    channels: Option<f64>,
    steps: Option<f64>,
    trials: Option<f64>,
) -> Result<Found, String> {
    let path = super::beside(set, name)?;
    if trials.is_some_and(|n| n > 1.) {
        return Err("it has several trials: leave one in the file, or their average".into());
    }
    let whole = |v: Option<f64>| v.filter(|v| v.fract() == 0. && (1. ..1e9).contains(v)).map(|v| v as usize);
    let (Some(columns), Some(rows)) = (whole(channels), whole(steps)) else {
        return Err("it does not say how many channels and time steps its samples have (nbchan, pnts)".into());
    };
    let bytes = zoo_checkpoint::bytes_of(&path, "EEGLAB's samples", LONGEST).map_err(|e| e.to_string())?;
    if rows.checked_mul(4 * columns) != Some(bytes.len()) {
        return Err(format!("{name:.80} has {} bytes, expected those of {rows} x {columns} numbers", bytes.len()));
    }
    let values = bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
    Ok(Found { name: "data".into(), rows, columns, values, ..Found::default() })
}
