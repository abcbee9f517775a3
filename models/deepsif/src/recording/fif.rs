//! FIF, as MNE and Neuromag write it: continuous recordings and one average. Tags and blocks follow MNE-Python's
//! `mne/_fiff/constants.py`.

use super::{At, Event, Found, listed};

/// Kinds of tags.
const FILE_ID: u32 = 100;
const BLOCK_START: u32 = 104;
const BLOCK_END: u32 = 105;
const ROLE: u32 = 115;
const REFERENCE: u32 = 118;
const CHANNELS: u32 = 200;
const RATE: u32 = 201;
const CHANNEL: u32 = 203;
const COMMENT: u32 = 206;
const FIRST_SAMPLE: u32 = 208;
const LONG_NAME: u32 = 258;
const SAMPLES: u32 = 300;
const SKIPPED: [u32; 2] = [301, 303];
const AVERAGE: u32 = 302;
const NAMES: u32 = 3507;
const ONSETS: u32 = 3568;
const ENDS: u32 = 3569;
/// Kinds of blocks.
const INFO: u32 = 101;
const RAW: [u32; 3] = [102, 112, 119];
const EVOKED: u32 = 104;
const ASPECT: u32 = 105;
const NEXT_FILE: u32 = 118;
const LONG_NAMES: u32 = 113;
const BAD_CHANNELS: u32 = 359;
const EPOCHS: u32 = 373;
const ANNOTATIONS: u32 = 3810;
/// Types of numbers, and the mark of a matrix, whose dimensions follow its elements.
const SHORT: u32 = 2;
const INT: u32 = 3;
const FLOAT: u32 = 4;
const DOUBLE: u32 = 5;
const PACKED: u32 = 16;
const MATRIX: u32 = 0x4000_0000;
/// The kind of an EEG channel, and its unit: volts.
const EEG: i32 = 2;
const VOLTS: i32 = 107;
/// The role of a file that goes on where this one ends.
const NEXT: f64 = 2.;
/// Tags of a file at most.
const MOST: usize = 1 << 24;

pub(super) fn is(bytes: &[u8]) -> bool {
    // The identifier of a file, which has 20 bytes.
    bytes.starts_with(&[0, 0, 0, FILE_ID as u8, 0, 0, 0, 31, 0, 0, 0, 20])
}

struct Channel {
    name: String,
    is_eeg: bool,
    unit: i32,
    range: f64,
    calibration: f64,
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4).and_then(|b| Some(u32::from_be_bytes(b.try_into().ok()?)))
}

/// Numbers of a type.
fn numbers(kind: u32, data: &[u8]) -> Result<Vec<f64>, String> {
    macro_rules! read {
        ($type:ty) => {
            data.as_chunks::<{ size_of::<$type>() }>().0.iter().map(|b| <$type>::from_be_bytes(*b) as f64).collect()
        };
    }
    match kind {
        SHORT | PACKED => Ok(read!(i16)),
        INT => Ok(read!(i32)),
        FLOAT => Ok(read!(f32)),
        DOUBLE => Ok(read!(f64)),
        _ => Err(format!("its samples have the type {kind}: known are short, int, float and double")),
    }
}

fn text(data: &[u8]) -> String {
    data.iter().take_while(|b| **b != 0).map(|b| char::from(*b)).collect::<String>().trim().into()
}

/// Names in one text, as MNE joins them.
fn names(data: &[u8]) -> Vec<String> {
    text(data).split(':').map(|name| name.replace("{COLON}", ":")).collect()
}

/// What was met on the way through a file.
#[derive(Default)]
struct Contents {
    count: Option<usize>,
    rate: Option<f64>,
    channels: Vec<Channel>,
    long_names: Vec<String>,
    bad: Vec<String>,
    first_sample: f64,
    /// Time steps × channels of a continuous recording; steps of an average, channel by channel, for each average.
    raw: Vec<f32>,
    averages: Vec<(String, Vec<f32>)>,
    /// Blocks of the last average that hold some aspect of it.
    aspects: usize,
    onsets: Vec<f64>,
    ends: Vec<f64>,
    descriptions: Vec<String>,
    /// What part the file that is named next plays, and the one that goes on where this one ends.
    role: f64,
    next: Option<String>,
}

impl Contents {
    fn tag(&mut self, blocks: &[u32], tag: u32, kind: u32, data: &[u8]) -> Result<(), String> {
        let within = |block: &u32| blocks.contains(block);
        let one = || numbers(kind, data).ok().and_then(|v| v.first().copied());
        let evoked = within(&EVOKED);
        // Blocks within it have numbers of channels of their own.
        let info = blocks.last() == Some(&INFO);
        match tag {
            CHANNELS if info => self.count = one().filter(|n| (1. ..=65536.).contains(n)).map(|n| n as usize),
            RATE if info => self.rate = one().filter(|r| r.is_finite() && *r > 0.),
            CHANNEL if info => {
                let (Some(96), Some(unit)) = (Some(data.len()), word(data, 72)) else {
                    return Err(format!("a channel is described by {} bytes, expected 96", data.len()));
                };
                let number = |at: usize| word(data, at).unwrap_or_default();
                self.channels.push(Channel {
                    name: text(&data[80..96]),
                    is_eeg: number(8) as i32 == EEG,
                    unit: unit as i32,
                    range: f32::from_bits(number(12)).into(),
                    calibration: f32::from_bits(number(16)).into(),
                });
            }
            LONG_NAME if within(&LONG_NAMES) => self.long_names.push(text(data)),
            NAMES if within(&BAD_CHANNELS) => self.bad = names(data),
            FIRST_SAMPLE if evoked || RAW.iter().any(within) => self.first_sample = one().unwrap_or(0.),
            SAMPLES if RAW.iter().any(within) => self.raw.extend(numbers(kind, data)?.iter().map(|v| *v as f32)),
            // A recording may begin with one.
            _ if SKIPPED.contains(&tag) && RAW.iter().any(within) && !self.raw.is_empty() => {
                return Err("it has a gap: save a stretch without gaps".into());
            }
            COMMENT if within(&ANNOTATIONS) => self.descriptions = names(data),
            ONSETS if within(&ANNOTATIONS) => self.onsets = numbers(kind, data)?,
            ENDS if within(&ANNOTATIONS) => self.ends = numbers(kind, data)?,
            ROLE if within(&NEXT_FILE) => self.role = one().unwrap_or(0.),
            COMMENT if evoked => {
                if let Some((name, _)) = self.averages.last_mut().filter(|a| a.0.is_empty()) {
                    *name = text(data);
                }
            }
            AVERAGE if evoked => {
                let (kind, data) = match kind & MATRIX {
                    0 => (kind, data),
                    // Columns, rows, and the number of dimensions follow.
                    _ => {
                        let values = data.get(..data.len().saturating_sub(12)).unwrap_or_default();
                        let rows = word(data, values.len() + 4).map(|rows| rows as usize);
                        if rows != self.count {
                            return Err("its average is no matrix of channels x time steps".into());
                        }
                        (kind & 0xffff, values)
                    }
                };
                let values = numbers(kind, data)?;
                let average = self.averages.last_mut().ok_or("an average lies outside of its block")?;
                // The standard error follows in an aspect of its own.
                if self.aspects == 1 {
                    average.1.extend(values.iter().map(|v| *v as f32));
                }
            }
            REFERENCE if within(&NEXT_FILE) && self.role == NEXT => self.next = Some(text(data)),
            _ => {}
        }
        Ok(())
    }
}

/// The EEG channels in microvolts, and the annotations.
pub(super) fn parse(bytes: &[u8]) -> Result<Found, String> {
    let mut contents = Contents::default();
    let (mut at, mut blocks, mut has_end, mut tags) = (0, vec![], false, 0);
    while let Some(tag) = word(bytes, at) {
        tags += 1;
        if tags > MOST {
            return Err(format!("it has more than {MOST} tags"));
        }
        let (Some(kind), Some(len), Some(next)) = (word(bytes, at + 4), word(bytes, at + 8), word(bytes, at + 12))
        else {
            return Err("it ends within a tag".into());
        };
        let end = (at + 16).saturating_add(len as usize);
        let Some(data) = bytes.get(at + 16..end) else {
            return Err(format!("it ends {} bytes too early", end - bytes.len()));
        };
        match (tag, word(data, 0)) {
            (BLOCK_START, Some(EPOCHS)) => {
                return Err("it has epochs: save their average (epochs.average().save(\"x-ave.fif\"))".into());
            }
            (BLOCK_START, Some(block)) if blocks.len() < 64 => {
                blocks.push(block);
                match block {
                    EVOKED => {
                        contents.averages.push(Default::default());
                        contents.aspects = 0;
                    }
                    ASPECT => contents.aspects += 1,
                    _ => {}
                }
            }
            (BLOCK_START, _) => return Err("its blocks lie too deep within each other, or have no kind".into()),
            (BLOCK_END, _) => _ = blocks.pop(),
            _ => contents.tag(&blocks, tag, kind, data)?,
        }
        at = match next as i32 {
            0 => end,
            -1 => {
                has_end = true;
                break;
            }
            // Forward alone, so that it comes to an end.
            next if next > 0 && (end..=bytes.len()).contains(&(next as usize)) => next as usize,
            _ => return Err("a tag points backwards, or beyond the file".into()),
        };
    }
    let mut found = finish(contents)?;
    if !has_end {
        found.remarks.push("The file ends without its last tag: something may be missing.".into());
    }
    Ok(found)
}

fn finish(contents: Contents) -> Result<Found, String> {
    let Contents { mut channels, long_names, mut bad, raw, mut averages, next, .. } = contents;
    let (Some(count), Some(rate)) = (contents.count, contents.rate) else {
        return Err("it does not say how many channels it has, or how many samples a second".into());
    };
    if channels.len() != count {
        return Err(format!("it describes {} channels of {count}", channels.len()));
    }
    if long_names.len() == count {
        for (channel, name) in channels.iter_mut().zip(long_names) {
            // Bad ones are listed by their short names.
            bad.iter_mut().filter(|bad| **bad == channel.name).for_each(|bad| bad.clone_from(&name));
            channel.name = name;
        }
    }
    let mut found = Found { name: "FIF".into(), rate: Some(rate), ..Found::default() };
    let is_raw = !raw.is_empty();
    let values = match averages.len() {
        _ if is_raw => raw,
        1 => {
            found.begin = contents.first_sample / rate;
            averages.remove(0).1
        }
        0 => return Err("it has neither a continuous recording nor an average".into()),
        n => {
            let names = listed(averages.iter().map(|a| a.0.as_str()).filter(|name| !name.is_empty()));
            let names = if names.is_empty() { names } else { format!(" ({names})") };
            return Err(format!("it has {n} averages{names}: save one of them"));
        }
    };
    let rows = values.len() / count;
    if rows * count != values.len() {
        return Err(format!("it has {} numbers for {count} channels", values.len()));
    }
    let (eeg, others): (Vec<usize>, Vec<usize>) = (0..count).partition(|i| channels[*i].is_eeg);
    if eeg.is_empty() {
        return Err(format!("none of its {count} channels is EEG"));
    }
    if !others.is_empty() {
        let names = listed(others.iter().map(|i| channels[*i].name.as_str()));
        found.remarks.push(format!("Left out, as no EEG by the file: {names}."));
    }
    if let Some(next) = next {
        found.remarks.push(format!("The recording goes on in {next:.80}, which was not read."));
    }
    // -1 is no unit.
    if let Some(i) = eeg.iter().find(|i| ![VOLTS, -1].contains(&channels[**i].unit)) {
        let Channel { name, unit, .. } = &channels[*i];
        return Err(format!(
            "its channel {name} has the unit {unit}, which is not volts: current source density is not imaged"
        ));
    }
    let in_volts = |i: &usize| channels[*i].unit == VOLTS;
    found.units = eeg.iter().map(in_volts).collect();
    let scale = |i: &usize| {
        let Channel { range, calibration, .. } = channels[*i];
        calibration * if is_raw { range } else { 1. } * if in_volts(i) { 1e6 } else { 1. }
    };
    let scales: Vec<f64> = eeg.iter().map(scale).collect();
    let place = |t: usize, i: usize| if is_raw { t * count + i } else { i * rows + t };
    let each = (0..rows).flat_map(|t| eeg.iter().zip(&scales).map(move |(i, scale)| (t, *i, scale)));
    found.values = each.map(|(t, i, scale)| (f64::from(values[place(t, i)]) * scale) as f32).collect();
    (found.rows, found.columns) = (rows, eeg.len());
    found.bad = bad.into_iter().filter(|name| eeg.iter().any(|i| channels[*i].name == *name)).collect();
    // Onsets are stored with the samples before the first one, as MNE stores and reads them.
    let events = contents.onsets.iter().zip(contents.descriptions).enumerate().map(|(i, (onset, name))| {
        let lasts = contents.ends.get(i).map_or(0., |end| (end - onset).max(0.));
        Event { lasts, ..Event::named(At::Step(onset * rate - contents.first_sample), name) }
    });
    found.events = events.collect();
    found.labels = eeg.iter().map(|i| channels[*i].name.clone()).collect();
    Ok(found)
}
