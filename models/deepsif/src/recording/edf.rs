//! EDF and EDF+ (<https://www.edfplus.info/specs/>) and BDF (<https://www.biosemi.com/faq/file_format.htm>).

use super::{At, Event, Found, listed, microvolts};

/// Bytes of the fixed header, and of the header of each signal.
const HEADER: usize = 256;

pub(super) fn is(bytes: &[u8]) -> bool {
    bytes.starts_with(b"0       ") || bytes.starts_with(b"\xffBIOSEMI")
}

/// A signal of every record.
struct Signal {
    label: String,
    /// Where it begins in a record, and how many samples it has there.
    at: usize,
    samples: usize,
    /// Microvolts of a step, and of zero; not numbers where the header's ranges are empty.
    gain: f64,
    offset: f64,
    has_unit: bool,
}

/// Text of a header, whose units may be in Latin-1.
fn text(bytes: &[u8]) -> String {
    let text: String = bytes.iter().map(|b| char::from(*b)).collect();
    text.trim_matches(|c: char| c.is_whitespace() || c == '\0').into()
}

fn number(bytes: &[u8], what: &str) -> Result<f64, String> {
    let text = text(bytes);
    let number = text.replace(',', ".").parse().ok().filter(|v: &f64| v.is_finite());
    number.ok_or_else(|| format!("{what} is {text:?}, expected a number"))
}

fn whole(bytes: &[u8], what: &str, most: usize) -> Result<usize, String> {
    let value = number(bytes, what)?;
    if value.fract() != 0. || value < 0. || value > most as f64 {
        return Err(format!("{what} is {value}, expected a whole number up to {most}"));
    }
    Ok(value as usize)
}

/// The signals that have the sampling rate of most, in microvolts where the file says so, and the annotations.
pub(super) fn parse(bytes: &[u8]) -> Result<Found, String> {
    let head = bytes.get(..HEADER).ok_or("it is shorter than a header")?;
    let (name, width) = if head[0] == b'0' { ("EDF", 2) } else { ("BDF", 3) };
    let reserved = text(&head[192..236]);
    let count = whole(&head[252..256], "the number of signals", 4096)?;
    let records = number(&head[236..244], "the number of records")?;
    let duration = number(&head[244..252], "the duration of a record")?;
    let begin = HEADER + HEADER * count;
    let body = bytes.get(begin..).ok_or("it ends within the headers of its signals")?;
    // Each field stands for all signals in a row.
    let mut at = HEADER;
    let mut field = |width: usize| {
        let from = at;
        at += width * count;
        move |i: usize| &bytes[from + width * i..from + width * (i + 1)]
    };
    let label = field(16);
    let _transducer = field(80);
    let (unit, low, high) = (field(8), field(8), field(8));
    let (lowest, highest) = (field(8), field(8));
    let _filter = field(80);
    let samples = field(8);

    let mut found = Found { name: name.into(), ..Found::default() };
    let (mut signals, mut notes, mut width_of_record) = (vec![], vec![], 0usize);
    for i in 0..count {
        let label = text(label(i));
        let named = |what: &str| format!("{what} of signal {label:.20}");
        let samples = whole(samples(i), &named("the samples per record"), 1 << 24)?;
        let at = width_of_record;
        width_of_record += width * samples;
        if label.to_ascii_lowercase().ends_with(" annotations") {
            notes.extend(Some((at, width * samples)).filter(|(_, len)| *len > 0));
            continue;
        }
        let range = |low: &[u8], high: &[u8], what: &str| -> Result<(f64, f64), String> {
            let low = number(low, &named(what))?;
            Ok((low, number(high, &named(what))? - low))
        };
        let (physical, span) = range(low(i), high(i), "the physical range")?;
        let (digital, steps) = range(lowest(i), highest(i), "the digital range")?;
        let scale = microvolts(&text(unit(i)));
        // NaN where the header does not say what a step is.
        let gain = if span == 0. || steps == 0. { f64::NAN } else { span / steps * scale.unwrap_or(1.) };
        let offset = physical * scale.unwrap_or(1.) - digital * gain;
        signals.push(Signal { label, at, samples, gain, offset, has_unit: scale.is_some() });
    }
    // The sampling rate that most signals have, the higher one of two.
    let rates: Vec<usize> = signals.iter().map(|s| s.samples).collect();
    let often = |rate: &usize| rates.iter().filter(|r| *r == rate).count();
    let most = rates.iter().copied().max_by_key(|r| (often(r), *r)).filter(|n| *n > 0);
    let most = most.ok_or("it has no signal but annotations")?;
    if duration <= 0. {
        return Err(format!("a record lasts {duration} seconds: write it anew with a duration"));
    }
    let whole_records = body.len() / width_of_record;
    if records >= 0. && records != whole_records as f64 {
        found
            .remarks
            .push(format!("The header counts {records} records, but {whole_records} are there, which are read."));
    } else if body.len() % width_of_record != 0 {
        found.remarks.push("The last record is not whole: it is left out.".into());
    }
    let others: Vec<&str> = signals.iter().filter(|s| s.samples != most).map(|s| s.label.as_str()).collect();
    let rate = most as f64 / duration;
    if !others.is_empty() {
        found
            .remarks
            .push(format!("Channels of other rates than {rate} Hz are left out: {}.", listed(others.into_iter())));
    }
    signals.retain(|s| s.samples == most);
    let blind = signals.iter().filter(|s| s.gain.is_nan()).map(|s| s.label.as_str());
    let blind = listed(blind);
    if !blind.is_empty() {
        found.remarks.push(format!("Channels whose physical or digital range is empty in the header: {blind}."));
    }

    let records = || body.chunks_exact(width_of_record).take(whole_records);
    annotations(records(), &notes, duration, rate, &mut found).map_err(|what| match reserved.is_empty() {
        true => what,
        false => format!("{what} ({reserved})"),
    })?;
    found.rate = Some(rate);
    found.units = signals.iter().map(|s| s.has_unit).collect();
    found.rows = whole_records * most;
    found.columns = signals.len();
    found.labels = signals.iter().map(|s| s.label.clone()).collect();
    found.values = vec![0.; found.rows * found.columns];
    for (record, to) in records().zip(found.values.chunks_exact_mut(most * signals.len())) {
        for (i, signal) in signals.iter().enumerate() {
            let from = &record[signal.at..signal.at + width * most];
            for (sample, to) in from.chunks_exact(width).zip(to.iter_mut().skip(i).step_by(signals.len())) {
                let digital = match *sample {
                    [a, b] => i32::from(i16::from_le_bytes([a, b])),
                    [a, b, c] => i32::from_le_bytes([0, a, b, c]) >> 8,
                    _ => 0,
                };
                *to = (signal.offset + signal.gain * f64::from(digital)) as f32;
            }
        }
    }
    Ok(found)
}

/// Takes the lists of annotations in these bytes of every record: those with text, and those that say when a record begins.
fn annotations<'a>(
    records: impl Iterator<Item = &'a [u8]>,
    places: &[(usize, usize)],
    duration: f64,
    rate: f64,
    found: &mut Found,
) -> Result<(), String> {
    let (mut first, mut last, mut malformed) = (None, None, 0usize);
    let mut events = vec![];
    for (number, record) in records.enumerate() {
        for (i, &(at, len)) in places.iter().enumerate() {
            for (j, list) in record[at..at + len].split(|b| *b == 0).filter(|list| !list.is_empty()).enumerate() {
                let mut parts = list.split(|b| *b == 0x14);
                let mut when = parts.next().unwrap_or_default().split(|b| *b == 0x15);
                let mut seconds = || {
                    let text = std::str::from_utf8(when.next()?).ok()?;
                    text.trim().parse().ok().filter(|s: &f64| s.is_finite())
                };
                let (Some(start), lasts) = (seconds(), seconds().unwrap_or(0.)) else {
                    malformed += 1;
                    continue;
                };
                let texts: Vec<&[u8]> = parts.filter(|p| !p.is_empty()).collect();
                // The first one of a record, without a text, says when the record begins.
                if i == 0 && j == 0 && texts.is_empty() {
                    if let Some((before, at)) = last {
                        let expected: f64 = at + (number - before) as f64 * duration;
                        if (start - expected).abs() > 0.5 / rate {
                            return Err(format!(
                                "it has a gap: record {} begins at {start} s, expected {expected} s; save a stretch without gaps",
                                number + 1
                            ));
                        }
                    }
                    first = first.or(Some(start));
                    last = Some((number, start));
                }
                for name in texts {
                    events.push((start, lasts, String::from_utf8_lossy(name).trim().to_string()));
                }
            }
        }
    }
    if malformed > 0 {
        found.remarks.push(format!("Annotations without a time are passed over: {malformed}."));
    }
    let begin = first.unwrap_or(0.);
    let event = |(start, lasts, name): (f64, f64, String)| Event {
        lasts,
        ..Event::named(At::Step((start - begin) * rate), name)
    };
    found.events = events.into_iter().map(event).collect();
    Ok(())
}
