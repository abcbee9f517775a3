//! EEG in MATLAB's files: arrays with their channels' names, and the structures of FieldTrip and EEGLAB.

use std::collections::BTreeMap;
use std::path::Path;

use zoo_checkpoint::matlab::Variable;

use super::{At, Beside, Event, Found, LONGEST, beside, describe, matrix};

fn texts(variable: &Variable) -> Vec<String> {
    let clean = |text: &str| text.trim_end_matches('\0').trim().to_string();
    match variable {
        Variable::Text(text) if text.is_empty() => vec![String::new()],
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

/// What may stand beside an array: names of channels, and short or long vectors.
fn facts(among: &BTreeMap<String, Variable>) -> Vec<(String, Beside)> {
    let fact = |(name, variable): (&String, &Variable)| {
        let beside = match variable {
            Variable::Numbers { shape, values } if matrix(shape).is_none() => Beside::Numbers(values.clone()),
            // FieldTrip keeps the times of each trial in a cell.
            Variable::Cells(cells) if matches!(&cells[..], [Variable::Numbers { .. }]) => match &cells[0] {
                Variable::Numbers { values, .. } => Beside::Numbers(values.clone()),
                _ => return None,
            },
            variable => Beside::Texts(Some(texts(variable)).filter(|t| t.iter().any(|t| !t.is_empty()))?),
        };
        Some((name.clone(), beside))
    };
    among.iter().filter_map(fact).collect()
}

fn numbers(name: &str, variable: &Variable) -> Option<Found> {
    let Variable::Numbers { shape, values } = variable else { return None };
    let (rows, columns) = matrix(shape)?;
    let values = values.iter().map(|v| *v as f32).collect();
    Some(Found { name: name.into(), rows, columns, values, ..Found::default() })
}

/// The arrays that may be EEG, and what stands beside them.
type Parsed = (Vec<Found>, Vec<(String, Beside)>);

pub(super) fn parse(path: &Path, variables: BTreeMap<String, Variable>) -> Result<Parsed, String> {
    let has = |name: &str| variables.contains_key(name);
    // EEGLAB of today writes the fields of its structure as variables, and so do some users of FieldTrip.
    if has("data") && has("srate") || has("label") && (has("trial") || has("avg")) {
        return Ok((structure(path, "EEG", &variables)?.into_iter().collect(), vec![]));
    }
    let mut all = vec![];
    for (name, variable) in &variables {
        all.extend(numbers(name, variable));
        let Variable::Records(records) = variable else { continue };
        let [fields] = &records[..] else { continue };
        all.extend(structure(path, name, fields)?);
    }
    Ok((all, facts(&variables)))
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
        if number("trials").is_some_and(|n| n > 1.) {
            return Err(format!("{name} has several trials: leave one in the file, or their average"));
        }
        let found = match variable {
            Some(Variable::Text(file)) => Some(samples(path, file, number("nbchan"), number("pnts"))?),
            Some(variable) => numbers(&format!("{name}.{key}"), variable),
            None => None,
        };
        let Some(found) = found else { continue };
        let is_eeglab = fields.contains_key("chanlocs");
        let events = match fields.get("event") {
            Some(Variable::Records(events)) => events.iter().filter_map(event).collect(),
            _ => vec![],
        };
        // Theirs are channels × time steps, those of EEGLAB in microvolts.
        let in_rows = (is_eeglab || key != "data") && !matches!(variable, Some(Variable::Text(_)));
        let mut found = Found { events, in_rows, ..found };
        describe(&mut found, &facts(fields));
        if is_eeglab {
            found.units = vec![true; found.labels.len()];
            found.begin = number("xmin").unwrap_or(0.);
        }
        return Ok(Some(found));
    }
    Ok(None)
}

fn event(fields: &BTreeMap<String, Variable>) -> Option<Event> {
    let name = match fields.get("type")? {
        Variable::Text(text) => text.trim().to_string(),
        variable => scalar(variable)?.to_string(),
    };
    // The first sample is 1.
    Some(Event::named(At::Step(scalar(fields.get("latency")?)? - 1.), name))
}

/// The samples that lie in a `.fdt` beside EEGLAB's `.set`: f32, all channels of a time step together.
fn samples(set: &Path, name: &str, channels: Option<f64>, steps: Option<f64>) -> Result<Found, String> {
    if !name.trim().to_ascii_lowercase().ends_with(".fdt") {
        return Err(format!("its samples lie in {name:.80}, which is no .fdt: save it anew by EEGLAB of today"));
    }
    let path = beside(set, name)?;
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
