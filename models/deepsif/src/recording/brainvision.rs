//! BrainVision's three files: header, markers, and samples
//! (<https://www.brainproducts.com/support-resources/brainvision-core-data-format-1-0/>).

use std::collections::HashMap;
use std::path::Path;

use super::{At, Event, Found, LONGEST, beside, decoded, microvolts};

pub(super) fn is(bytes: &[u8]) -> bool {
    let start = String::from_utf8_lossy(&bytes[..bytes.len().min(100)]).to_ascii_lowercase();
    let start = start.trim_start_matches('\u{feff}').trim_start();
    start.starts_with("brain vision") || start.starts_with("brainvision") || start.starts_with("; brain vision")
}

/// Keys and values of one section, in order.
fn section<'a>(text: &'a str, name: &str) -> Vec<(&'a str, &'a str)> {
    let heading = |line: &&str| line.trim().starts_with('[');
    let is = |line: &&str| line.trim().trim_matches(['[', ']']).eq_ignore_ascii_case(name);
    let mut lines = text.lines().skip_while(|line| !(heading(line) && is(line)));
    lines.next();
    let rows = lines.take_while(|line| !heading(line)).filter(|line| !line.trim_start().starts_with(';'));
    rows.filter_map(|line| line.split_once('=')).map(|(k, v)| (k.trim(), v.trim())).collect()
}

/// The recording of a header and of the files beside it.
pub(super) fn parse(path: &Path, bytes: &[u8]) -> Result<Found, String> {
    let (text, remark) = decoded(bytes)?;
    let common = section(&text, "Common Infos");
    let value = |key: &str| {
        let found = common.iter().find(|(k, _)| k.eq_ignore_ascii_case(key)).map(|(_, v)| *v);
        found.filter(|v| !v.is_empty())
    };
    let wanted = |key: &str| value(key).ok_or_else(|| format!("its header lacks {key}"));
    let data = wanted("DataFile")?;
    let format = value("DataFormat").unwrap_or("BINARY").to_ascii_uppercase();
    let domain = value("DataType").unwrap_or("TIMEDOMAIN").to_ascii_uppercase();
    if format != "BINARY" || domain != "TIMEDOMAIN" {
        return Err(format!("its samples are {format:.20}, {domain:.20}: expected BINARY, TIMEDOMAIN; export it so"));
    }
    let count: usize = wanted("NumberOfChannels")?
        .parse()
        .ok()
        .filter(|n| (1..=65536).contains(n))
        .ok_or("its NumberOfChannels is no number of channels")?;
    let interval = wanted("SamplingInterval")?;
    let microseconds: f64 = interval.replace(',', ".").parse().unwrap_or(f64::NAN);
    if !(microseconds.is_finite() && microseconds > 0.) {
        return Err(format!("its SamplingInterval is {interval:.40}, expected microseconds"));
    }
    let binary = section(&text, "Binary Infos");
    let binary =
        |key: &str| binary.iter().find(|(k, _)| k.eq_ignore_ascii_case(key)).map(|(_, v)| v.to_ascii_uppercase());
    if binary("UseBigEndianOrder").is_some_and(|v| v == "YES") {
        return Err("its samples are big-endian: export it anew".into());
    }
    let kind = binary("BinaryFormat").unwrap_or_else(|| "INT_16".into());
    let width = match kind.as_str() {
        "INT_16" | "UINT_16" => 2,
        "INT_32" | "IEEE_FLOAT_32" => 4,
        _ => return Err(format!("its samples are {kind:.20}: expected INT_16, INT_32 or IEEE_FLOAT_32")),
    };

    let mut found =
        Found { name: "BrainVision".into(), rate: Some(1e6 / microseconds), columns: count, ..Found::default() };
    found.remarks.extend(remark);
    let mut scales = vec![];
    let channels = section(&text, "Channel Infos");
    let channels: HashMap<String, &str> = channels.into_iter().map(|(k, v)| (k.to_ascii_lowercase(), v)).collect();
    if channels.contains_key(&format!("ch{}", count + 1)) {
        return Err(format!("its header describes more channels than its NumberOfChannels={count}"));
    }
    for i in 1..=count {
        let line = channels.get(&format!("ch{i}")).ok_or_else(|| format!("its header lacks channel {i} of {count}"))?;
        let mut fields = line.split(',').map(|f| f.trim().replace("\\1", ","));
        let (name, _reference) = (fields.next().unwrap_or_default(), fields.next());
        let resolution = fields.next().filter(|r| !r.is_empty()).unwrap_or_else(|| "1".into());
        let resolution: f64 = resolution
            .parse()
            .map_err(|_| format!("channel {name:.20} has the resolution {resolution:.20}, expected a number"))?;
        let scale = match fields.next().filter(|unit| !unit.is_empty()) {
            Some(unit) => microvolts(&unit),
            None => Some(1.),
        };
        found.units.push(scale.is_some());
        scales.push(resolution * scale.unwrap_or(1.));
        found.labels.push(name);
    }

    // The name of the header is written so, too.
    let own = |name: &str| name.replace("$b", &path.file_stem().unwrap_or_default().to_string_lossy());
    let data = beside(path, &own(data))?;
    let samples = zoo_checkpoint::bytes_of(&data, "BrainVision's samples", LONGEST).map_err(|e| e.to_string())?;
    found.rows = samples.len() / (width * count);
    if !samples.len().is_multiple_of(width * count) {
        found.remarks.push("Its samples end within a time step, which is left out.".into());
    }
    let by_channel = match value("DataOrientation").unwrap_or("MULTIPLEXED").to_ascii_uppercase().as_str() {
        "MULTIPLEXED" => false,
        "VECTORIZED" => true,
        other => return Err(format!("its DataOrientation is {other:.20}: expected MULTIPLEXED or VECTORIZED")),
    };
    let number = |at: usize| match (kind.as_str(), &samples[width * at..width * (at + 1)]) {
        ("INT_16", &[a, b]) => f64::from(i16::from_le_bytes([a, b])),
        ("UINT_16", &[a, b]) => f64::from(u16::from_le_bytes([a, b])),
        ("INT_32", &[a, b, c, d]) => f64::from(i32::from_le_bytes([a, b, c, d])),
        (_, &[a, b, c, d]) => f64::from(f32::from_le_bytes([a, b, c, d])),
        _ => f64::NAN,
    };
    found.values = (0..found.rows)
        .flat_map(|t| (0..count).map(move |i| (t, i)))
        .map(|(t, i)| (scales[i] * number(if by_channel { i * found.rows + t } else { t * count + i })) as f32)
        .collect();

    // Renamed files keep their endings.
    let sibling = path.with_extension("vmrk");
    let marked = value("MarkerFile").map(|name| beside(path, &own(name)));
    match marked {
        Some(Err(_)) if sibling.is_file() => {
            found.remarks.push(
                "The marker file that the header names is not there: the one of the header's name is read.".into(),
            );
            found.events = markers(&sibling)?;
        }
        Some(Err(_)) => found.remarks.push("The marker file that the header names is not there: no markers.".into()),
        Some(Ok(path)) => found.events = markers(&path)?,
        None => {}
    }
    Ok(found)
}

/// The markers of a `.vmrk` file, called by type and description as in `Stimulus/S  1`. A new segment behind the first step is a boundary.
pub(super) fn markers(path: &Path) -> Result<Vec<Event>, String> {
    let named = |what: String| format!("{}: {what}", path.display());
    let bytes = zoo_checkpoint::bytes_of(path, "BrainVision's markers", LONGEST).map_err(|e| e.to_string())?;
    let (text, _) = decoded(&bytes).map_err(named)?;
    let event = |(key, line): &(&str, &str)| {
        let mut fields = line.split(',').map(|f| f.trim().replace("\\1", ","));
        let (kind, description) = (fields.next().unwrap_or_default(), fields.next().unwrap_or_default());
        let position: Option<f64> = fields.next().and_then(|p| p.parse().ok()).filter(|p: &f64| p.is_finite());
        let position = position.ok_or_else(|| named(format!("marker {key:.20} has no position")))?;
        let name = match kind.as_str() {
            "New Segment" if position > 1. => "boundary".into(),
            _ => format!("{kind}/{description}"),
        };
        Ok(Event::named(At::Step(position - 1.), name))
    };
    section(&text, "Marker Infos").iter().map(event).collect()
}
