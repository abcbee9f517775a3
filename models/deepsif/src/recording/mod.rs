//! Recordings as laboratories have them: read, and brought into the electrodes, the rate and the length that weights take.

mod brainvision;
mod channels;
mod edf;
mod events;
mod fif;
mod matlab;
mod signal;
mod table;

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use zoo_checkpoint::{Dtype, TensorView};
use zoo_training::{Error, Result};

use crate::image::{Montage, RATE, still};
use crate::predict::ImageOptions;
use signal::Filter;

/// Bytes of a file at most.
const LONGEST: u64 = 1 << 32;
/// A channel that stays at its largest or smallest value for so many seconds, and time steps, is clipped; one that stays anywhere is dead.
const CLIPPED: (f64, usize) = (0.01, 5);
const DEAD: (f64, usize) = (0.1, 10);
/// The standard deviations in microvolts that EEG may have.
const BELIEVED: std::ops::Range<f64> = 0.1..1000.;
/// Sampling rates of EEG in Hz.
const SENSIBLE: std::ops::RangeInclusive<f64> = 50.0..=1e6;

/// Numbers in rows, as a file has them.
#[derive(Debug, Default)]
struct Found {
    name: String,
    rows: usize,
    columns: usize,
    values: Vec<f32>,
    /// Names of channels.
    labels: Vec<String>,
    /// Those that the file calls bad.
    bad: Vec<String>,
    /// Rows are channels, as the format says.
    in_rows: bool,
    /// Steps a second; or why what the file says of it cannot be used.
    rate: Option<f64>,
    doubt: Option<String>,
    /// The time of the first step in the file's own count, in seconds.
    begin: f64,
    /// Whether each channel's values are microvolts, as the file says; none if it says nothing.
    units: Vec<bool>,
    events: Vec<Event>,
    remarks: Vec<String>,
}

/// A stretch of time that a file names.
#[derive(Clone, Debug, PartialEq)]
struct Event {
    at: At,
    /// Seconds that it lasts.
    lasts: f64,
    /// What it is called, by the most telling of its columns first.
    names: Vec<String>,
}

/// A moment.
#[derive(Clone, Copy, Debug, PartialEq)]
enum At {
    /// A time step of the file, from 0.
    Step(f64),
    /// Seconds in the file's own count.
    Seconds(f64),
}

impl Event {
    fn named(at: At, name: impl Into<String>) -> Self {
        Self { at, lasts: 0., names: vec![name.into()] }
    }

    fn name(&self) -> &str {
        self.names.first().map_or("", String::as_str)
    }

    /// Whether it marks a gap or a bad stretch, as MNE and EEGLAB call them.
    fn is_break(&self) -> bool {
        let name = self.name().to_ascii_lowercase();
        let name = name.rsplit('/').next().unwrap_or_default().trim();
        ["bad", "edge"].iter().any(|mark| name.starts_with(mark)) || name == "boundary"
    }
}

/// What stands beside an array in its file.
#[derive(Clone, Debug)]
enum Beside {
    Numbers(Vec<f64>),
    Texts(Vec<String>),
}

/// EEG in the order of a montage's electrodes, at the rate of the weights.
#[derive(Debug, Default)]
pub(crate) struct Recording {
    /// Time steps × electrodes; NaN where one has no value.
    values: Vec<f32>,
    /// Electrodes that it lacks, or that its file calls bad.
    missing: Vec<usize>,
    events: Vec<Event>,
    /// Time steps a second in its file, and the time of the first one.
    rate: f64,
    begin: f64,
    /// What was done to it, and what is doubtful, in words.
    pub(crate) remarks: Vec<String>,
}

/// A stretch of a recording without bad electrodes.
#[derive(Debug)]
pub(crate) struct Window {
    /// Where it begins in the recording, in the file's own count; none of an average.
    pub(crate) seconds: Option<f64>,
    /// Time steps × electrodes.
    pub(crate) values: Vec<f32>,
}

/// Names that variables with names of channels, rates, and times have, in small letters.
const LABELS: [&str; 21] = [
    "label",
    "labels",
    "ch_names",
    "channels",
    "chanlabels",
    "channel_names",
    "channelnames",
    "electrodes",
    "names",
    "chanlocs",
    "chan_names",
    "chnames",
    "clab",
    "sensors",
    "ch",
    "chs",
    "columns",
    "ch_labels",
    "channel",
    "channel_labels",
    "electrode_names",
];
const RATES: [&str; 15] = [
    "fs",
    "srate",
    "fsample",
    "sfreq",
    "sampling_rate",
    "samplingrate",
    "rate",
    "samplerate",
    "sample_rate",
    "sr",
    "hz",
    "freq",
    "sampfreq",
    "f_s",
    "sampling_frequency",
];
const TIMES: [&str; 8] = ["time", "times", "t", "tvec", "timestamp", "timestamps", "time_s", "tt"];

/// Formats that are not read, by their endings, with what they are.
const OTHERS: [(&str, &str); 8] = [
    ("gdf", "GDF"),
    ("cnt", "Neuroscan CNT"),
    ("avg", "Neuroscan's average"),
    ("mff", "EGI MFF"),
    ("xdf", "XDF"),
    ("nwb", "NWB"),
    ("e", "Nicolet"),
    ("lay", "Persyst"),
];

fn refuse(path: &Path, what: impl std::fmt::Display) -> Error {
    // What is wrong with another file names that.
    let (name, what) = (path.display().to_string(), what.to_string());
    Error::Data(if what.starts_with(&name) { what } else { format!("{name}: {what}") })
}

/// Microvolts of a unit.
fn microvolts(unit: &str) -> Option<f64> {
    // Prefixes differ by their case, and micro has two signs beside the letter.
    match unit.trim() {
        "V" | "v" => Some(1e6),
        "mV" | "mv" => Some(1e3),
        "uV" | "UV" | "uv" | "µV" | "µv" | "μV" | "μv" => Some(1.),
        "nV" | "nv" => Some(1e-3),
        unit => match unit.to_ascii_lowercase().trim_end_matches('s') {
            "volt" => Some(1e6),
            "millivolt" => Some(1e3),
            "microvolt" => Some(1.),
            "nanovolt" => Some(1e-3),
            _ => None,
        },
    }
}

/// A file beside another that names it: nothing but the last part of the name counts.
fn beside(path: &Path, name: &str) -> std::result::Result<PathBuf, String> {
    let name = name.rsplit(['/', '\\']).next().unwrap_or_default().trim();
    let found = path.with_file_name(name);
    match found.is_file() && found != path {
        true => Ok(found),
        false => Err(format!(
            "its data lie in {name:.80}, which is not beside it (where files were renamed, those that name each other need the new names)"
        )),
    }
}

/// A few names.
fn listed<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let mut names: Vec<&str> = names.take(13).collect();
    if names.len() > 12 {
        names[12] = "…";
    }
    names.join(", ")
}

/// The EEG of a file, whose format its first bytes say, or its ending.
fn read(path: &Path) -> Result<Found> {
    let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default().to_ascii_lowercase();
    let way = "mne.io.read_raw(…).save(\"x_raw.fif\")";
    if let Some((_, name)) = OTHERS.iter().find(|(ending, _)| *ending == extension) {
        return Err(refuse(path, format!("{name} is not read: MNE-Python writes FIF of it, which is ({way})")));
    }
    let mut start = vec![];
    let file = zoo_checkpoint::regular(path, "EEG")?;
    file.take(100).read_to_end(&mut start).map_err(Error::io(path))?;
    let bytes = || zoo_checkpoint::bytes_of(path, "EEG", LONGEST);
    let failed = |what: String| refuse(path, what);
    match extension.as_str() {
        "csv" | "tsv" | "txt" | "asc" => {
            let bytes = bytes()?;
            let (text, remark) = decoded(&bytes).map_err(failed)?;
            drop(bytes);
            let mut found = table::parse(&text).map_err(failed)?;
            found.remarks.extend(remark);
            return Ok(found);
        }
        "mat" | "set" => {
            let (found, beside) = matlab::parse(path, zoo_checkpoint::matlab::read(path)?).map_err(failed)?;
            return the_eeg(path, found, &beside);
        }
        "npy" | "npz" => return arrays(path),
        _ => {}
    }
    if edf::is(&start) {
        return edf::parse(&bytes()?).map_err(failed);
    }
    if fif::is(&start) {
        return fif::parse(&bytes()?).map_err(failed);
    }
    if brainvision::is(&start) && extension != "vmrk" {
        return brainvision::parse(path, &bytes()?).map_err(failed);
    }
    Err(failed(match extension.as_str() {
        "edf" | "rec" | "bdf" => "it does not begin as EDF or BDF does".into(),
        "fif" => "it does not begin as FIF does".into(),
        "vhdr" => "it does not begin as BrainVision's headers do".into(),
        "vmrk" | "eeg" | "dat" => {
            "of BrainVision's three files name the header (.vhdr); other formats of this ending are not read".into()
        }
        "fdt" => "of EEGLAB's two files name the .set".into(),
        "gz" | "zip" => "it is packed: unpack it first".into(),
        _ => format!(
            "EEG is read from EDF, BDF, BrainVision (.vhdr), FIF, EEGLAB (.set), .mat, .npy, .npz and .csv; MNE-Python writes FIF of others ({way})"
        ),
    }))
}

/// A text in UTF-8 or UTF-16, or else as Windows writes it in the west, which is said.
fn decoded(bytes: &[u8]) -> std::result::Result<(String, Option<String>), String> {
    match zoo_checkpoint::text::decode(bytes, "") {
        Ok(text) => Ok((text.text, None)),
        Err(e) => match zoo_checkpoint::text::decode(bytes, "windows-1252") {
            Ok(text) if !bytes.contains(&0) => {
                Ok((text.text, Some("The text is not UTF-8: it is taken for Windows-1252.".into())))
            }
            _ => Err(e.to_string()),
        },
    }
}

/// The EEG of NumPy's files.
fn arrays(path: &Path) -> Result<Found> {
    let source = zoo_checkpoint::open(path)?;
    let texts = source.texts.iter().map(|(name, texts)| (name.clone(), Beside::Texts(texts.clone())));
    let single = source.metadata.iter().filter_map(|(k, v)| Some((k.clone(), Beside::Texts(vec![v.as_str()?.into()]))));
    let mut beside: Vec<(String, Beside)> = texts.chain(single).collect();
    let mut all = vec![];
    for t in &source.tensors {
        let each = |take: &mut dyn FnMut(f64)| {
            source.stream(&TensorView::whole(t), Dtype::F64, &mut |piece| {
                piece.as_chunks::<8>().0.iter().for_each(|b| take(f64::from_le_bytes(*b)));
                Ok(())
            })
        };
        let name = t.name.clone();
        if let Some((rows, columns)) = matrix(&t.shape) {
            let mut values = vec![];
            each(&mut |v| values.push(v as f32))?;
            all.push(Found { name, rows, columns, values, ..Found::default() });
        } else {
            // Times need all of their digits.
            let mut values = vec![];
            each(&mut |v| values.push(v))?;
            beside.push((name, Beside::Numbers(values)));
        }
    }
    the_eeg(path, all, &beside)
}

/// Of several arrays the one that is called eeg or data, with what stands beside it.
fn the_eeg(path: &Path, mut found: Vec<Found>, beside: &[(String, Beside)]) -> Result<Found> {
    let named = found.iter().position(|r| matches!(r.name.as_str(), "eeg" | "EEG" | "data"));
    let mut eeg = match (found.len(), named) {
        (0, _) => {
            return Err(refuse(
                path,
                "it has no array of time steps and channels, or several samples in one: take one out",
            ));
        }
        (1, _) => found.remove(0),
        (_, Some(at)) => found.remove(at),
        _ => {
            let names = listed(found.iter().map(|r| r.name.as_str()));
            return Err(refuse(path, format!("it has the arrays {names}: call the EEG eeg or data")));
        }
    };
    describe(&mut eeg, beside);
    Ok(eeg)
}

/// Takes names of channels, rate and times from what stands beside an array.
fn describe(eeg: &mut Found, beside: &[(String, Beside)]) {
    let is = |name: &str, names: &[&str]| names.contains(&name.to_ascii_lowercase().as_str());
    let named = |names: &'static [&'static str]| beside.iter().filter(move |(name, _)| is(name, names));
    let sides = [eeg.rows, eeg.columns];
    let texts = |(_, value): &(String, Beside)| match value {
        // All of them in one text.
        Beside::Texts(texts) if texts.len() == 1 => {
            Some(texts[0].split([',', ';', ' ']).map(|t| t.trim().to_string()).filter(|t| !t.is_empty()).collect())
        }
        Beside::Texts(texts) if texts.iter().any(|t| !t.is_empty()) => Some(texts.clone()),
        _ => None,
    };
    if eeg.labels.is_empty() {
        let of_a_side = |texts: &Vec<String>| texts.len() > 1 && sides.contains(&texts.len());
        let called = named(&LABELS).filter_map(texts).find(|texts| !texts.is_empty());
        eeg.labels = called.or_else(|| beside.iter().filter_map(texts).find(of_a_side)).unwrap_or_default();
    }
    if eeg.rate.is_none() {
        for (name, value) in named(&RATES) {
            let rate = match value {
                Beside::Numbers(values) => {
                    let first = values.first().copied().filter(|first| values.iter().all(|v| v == first));
                    first.filter(|_| values.len() <= 16)
                }
                Beside::Texts(texts) => texts.first().and_then(|t| t.trim().trim_end_matches("Hz").trim().parse().ok()),
            };
            eeg.rate = rate.filter(|r: &f64| r.is_finite() && *r > 0.);
            if eeg.rate.is_none() {
                eeg.doubt = Some(format!("its {name} is no sampling rate"));
            }
        }
    }
    for (name, value) in named(&TIMES) {
        if let (Beside::Numbers(times), None) = (value, eeg.rate)
            && times.len() > 1
            && sides.contains(&times.len())
        {
            match table::timing(times, None) {
                Ok((rate, begin)) => (eeg.rate, eeg.begin) = (Some(rate), begin),
                Err(what) => eeg.doubt = Some(format!("{name}: {what}")),
            }
        }
    }
}

/// Rows and columns of an array of two dimensions, but for those of one.
fn matrix(shape: &[usize]) -> Option<(usize, usize)> {
    let long: Vec<usize> = shape.iter().copied().filter(|d| *d != 1).collect();
    match long[..] {
        [rows, columns] if rows > 0 && columns > 0 => Some((rows, columns)),
        _ => None,
    }
}

/// What `--band` and `--notch` ask for, at this rate.
fn filters(options: &ImageOptions, rate: f64) -> std::result::Result<Vec<Filter>, String> {
    let fits = |frequency: &f64| *frequency >= 0.01 && *frequency < rate / 2.;
    let mut filters = vec![];
    if !options.band.is_empty() {
        let wrong = || {
            let (band, most) = (&options.band, rate / 2.);
            format!(
                "predict.band is {band:?}, expected two frequencies in Hz from 0.01 to below {most}, such as 1-40 (1- and -40 take one)"
            )
        };
        let (low, high) = options.band.split_once('-').ok_or_else(wrong)?;
        let number = |text: &str| match text.trim() {
            "" => Ok(None),
            text => text.parse().ok().filter(fits).map(Some).ok_or_else(wrong),
        };
        let (low, high) = (number(low)?, number(high)?);
        if low.is_none() && high.is_none() || low.zip(high).is_some_and(|(low, high)| low >= high) {
            return Err(wrong());
        }
        filters.extend(low.map(Filter::Above).into_iter().chain(high.map(Filter::Below)));
    }
    if options.notch != 0. {
        if !fits(&options.notch) {
            return Err(format!("predict.notch is {}, expected a frequency in Hz below {}", options.notch, rate / 2.));
        }
        filters.push(Filter::Without(options.notch));
    }
    Ok(filters)
}

impl Recording {
    /// The recording in a file, in the order of a montage's electrodes and at the rate of its weights.
    ///
    /// # Errors
    /// What is no recording; names or numbers of channels that do not fit; a rate that nobody states.
    pub(crate) fn read(path: &Path, montage: &Montage, options: &ImageOptions) -> Result<Self> {
        let failed = |what: String| refuse(path, what);
        let mut found = read(path)?;
        if found.values.is_empty() {
            return Err(failed("it holds no numbers".into()));
        }
        let n = montage.electrodes.len();
        let mut remarks = std::mem::take(&mut found.remarks);
        transpose(&mut found, n, options.as_trained, &mut remarks).map_err(failed)?;
        let rate = rate(&found, montage, options, &mut remarks).map_err(failed)?;
        let seconds = found.rows as f64 / rate;
        let shape = format!("{} time steps x {} channels at {rate} Hz", found.rows, found.columns);
        remarks.insert(0, format!("{}: {shape}, {seconds:.3} seconds.", found.name));
        if found.begin != 0. {
            remarks.push(format!("Its times begin at {} s: moments are taken in that count.", found.begin));
        }

        let places = if !found.labels.is_empty() && !options.as_trained {
            channels::places(&found.labels, &montage.electrodes, &mut remarks).map_err(failed)?
        } else {
            if found.columns != n {
                let (name, rows, columns) = (&found.name, found.rows, found.columns);
                return Err(failed(format!(
                    "{name} is EEG of {rows} time steps x {columns} channels, but these weights take {n} channels, in the order that they were \
                     trained with, or by their names"
                )));
            }
            if !options.as_trained {
                remarks.push(
                    "The file has no names of channels: they are taken in the order that the weights were trained with."
                        .into(),
                );
            }
            (0..n).map(Some).collect()
        };
        let bad = |e: usize| places[e].is_some_and(|k| found.labels.get(k).is_some_and(|l| found.bad.contains(l)));
        let called_bad: Vec<usize> = (0..n).filter(|e| bad(*e)).collect();
        if !called_bad.is_empty() {
            let names = listed(called_bad.iter().map(|e| montage.electrodes[*e].label.as_str()));
            remarks.push(format!("Channels that the file calls bad: {names}."));
        }
        let missing: Vec<usize> = (0..n).filter(|e| places[*e].is_none() || bad(*e)).collect();
        let column = |e: usize| places[e].filter(|_| !missing.contains(&e));
        let columns: Vec<Option<usize>> = (0..n).map(column).collect();
        let mut values = Vec::with_capacity(found.rows * n);
        for row in found.values.chunks_exact(found.columns) {
            values.extend(columns.iter().map(|column| column.map_or(f32::NAN, |k| row[k])));
        }
        found.values = vec![];
        let has_unit = columns.iter().flatten().all(|k| found.units.get(*k) == Some(&true));
        doubt_unit(&values, n, has_unit, &mut remarks);
        let stretch = |(seconds, steps): (f64, usize)| ((seconds * rate) as usize).max(steps);
        channels::unmoved(&mut values, montage, [stretch(CLIPPED), stretch(DEAD)], &mut remarks);

        for filter in filters(options, rate).map_err(failed)? {
            signal::filter(&mut values, n, filter, rate);
            let what = match filter {
                Filter::Above(f) => format!("above {f} Hz by a Butterworth filter of order 4"),
                Filter::Below(f) => format!("below {f} Hz by a Butterworth filter of order 4"),
                Filter::Without(f) => format!("without {f} Hz by a notch of {:.2} Hz", f / signal::NOTCH),
            };
            remarks.push(format!("Filtered: {what}, forwards and backwards (half of the amplitude at its edges)."));
            if let Filter::Above(f) = filter
                && seconds * f < 3.
            {
                remarks.push(format!(
                    "{seconds:.3} seconds are less than three periods of {f} Hz: doubt the result of that filter."
                ));
            }
        }
        let wanted = RATE as f64;
        // Less than half a step over the whole length is rounding.
        if (rate / wanted - 1.).abs() * found.rows as f64 > 0.5 {
            values = signal::resampled(&values, n, rate, wanted);
            let [pass, stop] = signal::transition(rate, wanted);
            remarks.push(format!(
                "Resampled from {rate} to {RATE} Hz by a sinc under a Kaiser window: whole up to {pass:.0} Hz, nothing beyond {stop:.0} Hz."
            ));
        }
        remarks.push("Referenced to the average of the electrodes.".into());
        Ok(Self { values, missing, events: found.events, rate, begin: found.begin, remarks })
    }

    /// All of it, cut into windows without bad electrodes and joined again.
    ///
    /// # Errors
    /// Bad electrodes in every window.
    pub(crate) fn whole(mut self, path: &Path, montage: &Montage) -> Result<(Vec<f32>, Vec<String>)> {
        let (n, steps) = (montage.electrodes.len(), montage.steps);
        let windows: Vec<Window> = self
            .values
            .chunks(steps * n)
            .filter(|chunk| chunk.len() > n)
            .map(|chunk| Window { seconds: None, values: chunk.to_vec() })
            .collect();
        let windows = self.mended(path, montage, windows)?;
        Ok((windows.into_iter().flat_map(|w| w.values).collect(), self.remarks))
    }

    /// The windows that are asked for: the one around a moment, the average around events, or all one after the other. What was done to
    /// them joins the remarks.
    ///
    /// # Errors
    /// A recording that is too short, moments outside of it, and bad electrodes in every window.
    pub(crate) fn windows(&mut self, path: &Path, montage: &Montage, options: &ImageOptions) -> Result<Vec<Window>> {
        let failed = |what: String| refuse(path, what);
        let (n, steps) = (montage.electrodes.len(), montage.steps);
        let (rows, rate) = (self.values.len() / n, RATE as f64);
        if rows < steps {
            return Err(failed(format!(
                "{rows} time steps at {RATE} Hz, but these weights image {steps} ({} s)",
                steps as f64 / rate
            )));
        }
        let named = !options.events.is_empty() || !options.event.is_empty();
        if named && !options.at.is_empty() {
            return Err(Error::Usage("predict.at, and predict.events or predict.event: one of them".into()));
        }
        let moments = if named { self.moments(options)? } else { vec![] };
        let (half, length, begin) = (steps / 2, steps as f64 / rate, self.begin);
        // Of a window around seconds from the first step.
        let around = |seconds: f64| {
            let from = (seconds * rate).round() - half as f64;
            (from >= 0. && from + steps as f64 <= rows as f64).then_some(from as usize)
        };
        let range = format!("{} to {} s", begin + half as f64 / rate, begin + (rows - (steps - half)) as f64 / rate);
        let cut = |from: usize| self.values[from * n..(from + steps) * n].to_vec();
        let window = |from: usize| Window { seconds: Some(begin + from as f64 / rate), values: cut(from) };
        let breaks = self.breaks();
        let broken = |from: usize| {
            let (from, to) = (from as f64 / rate, (from + steps) as f64 / rate);
            breaks.iter().any(|(start, end)| *start < to && *end > from)
        };
        if !options.at.is_empty() {
            let seconds = options.at.trim().parse().ok().filter(|s: &f64| s.is_finite());
            let from = seconds.and_then(|s| around(s - begin)).ok_or_else(|| {
                let at = &options.at;
                failed(format!(
                    "predict.at is {at:?}, expected the middle of a window of {length} s in seconds: {range}"
                ))
            })?;
            let windows = vec![window(from)];
            if broken(from) {
                self.remarks.push("The file marks a gap or a bad stretch within this window: doubt it.".into());
            }
            return self.mended(path, montage, windows);
        }
        if !named {
            let starts: Vec<usize> = (0..rows / steps).map(|i| i * steps).collect();
            let windows: Vec<Window> = starts.iter().map(|from| window(*from)).collect();
            if windows.len() > 1 {
                let count = windows.len();
                self.remarks
                    .push(format!("Imaged in {count} windows of {length} s, each scaled by its own largest value."));
            }
            if rows % steps != 0 {
                self.remarks.push(format!("The last {} time steps fill no window: they are left out.", rows % steps));
            }
            let broken = starts.iter().filter(|from| broken(**from)).count();
            if broken > 0 {
                self.remarks.push(format!("The file marks gaps or bad stretches within {broken} windows: doubt them."));
            }
            return self.mended(path, montage, windows);
        }

        let places: Vec<usize> = moments.iter().filter_map(|e| around(self.seconds(e))).collect();
        if places.is_empty() {
            return Err(failed(format!("none of the events ({}) lies within {range}", moments.len())));
        }
        let late = moments.len() - places.len();
        let kept: Vec<usize> = places.iter().copied().filter(|from| !broken(*from)).collect();
        if kept.is_empty() {
            return Err(failed("the file marks a gap or a bad stretch around every event".into()));
        }
        let (bad, windows) = (places.len() - kept.len(), kept.into_iter().map(window).collect());
        let mut windows = self.mended(path, montage, windows)?;
        let count = windows.len();
        let mut sum = vec![0f32; steps * n];
        for window in &mut windows {
            still(&mut window.values, n);
            sum.iter_mut().zip(&window.values).for_each(|(s, v)| *s += v / count as f32);
        }
        let left = [(late, "too near to an end"), (bad, "in gaps or bad stretches")];
        let left: String =
            left.iter().filter(|(n, _)| *n > 0).map(|(n, why)| format!("; left out {why}: {n}")).collect();
        let of = kinds(&moments);
        let of = if of.is_empty() { of } else { format!(":{of}") };
        self.remarks.push(format!("Averaged around events ({count} of {}){of}{left}.", moments.len()));
        Ok(vec![Window { seconds: None, values: sum }])
    }

    /// Windows without bad electrodes, but for those that have too many.
    fn mended(&mut self, path: &Path, montage: &Montage, mut windows: Vec<Window>) -> Result<Vec<Window>> {
        let (all, mut mender) = (windows.len(), channels::Mender::new(montage, &self.missing));
        let mut refused: BTreeMap<String, usize> = BTreeMap::new();
        windows.retain_mut(|window| match mender.mend(&mut window.values) {
            Ok(()) => true,
            Err(what) => {
                *refused.entry(what).or_default() += 1;
                false
            }
        });
        if windows.is_empty() {
            let what = refused.into_keys().next().unwrap_or_else(|| "it has no window".into());
            return Err(refuse(path, what));
        }
        self.remarks.extend(mender.remarks(all));
        let left: usize = refused.values().sum();
        if let Some((what, _)) = refused.first_key_value() {
            self.remarks.push(format!("Windows that are left out: {left} of {all} ({what})."));
        }
        Ok(windows)
    }

    /// The events that are asked for.
    fn moments(&mut self, options: &ImageOptions) -> Result<Vec<Event>> {
        let mut events = match options.events.as_str() {
            "" => self.events.iter().filter(|e| !e.is_break()).cloned().collect(),
            file => events::read(Path::new(file), &mut self.remarks).map_err(Error::Data)?,
        };
        let squeezed = |name: &str| name.split_whitespace().collect::<Vec<_>>().join(" ").to_lowercase();
        let (wanted, known) = (squeezed(&options.event), kinds(&events));
        if !wanted.is_empty() {
            // BrainVision's have their type in front.
            let is = |name: &String| {
                let name = squeezed(name);
                name == wanted || name.split_once('/').is_some_and(|(_, description)| description.trim() == wanted)
            };
            events.retain(|e| e.names.iter().any(is));
        }
        if events.is_empty() {
            let known = if known.is_empty() { "there are none".into() } else { format!("there are{known}") };
            let event = &options.event;
            return Err(Error::Usage(format!(
                "predict.event: no event is called {event:?}: {known} (triggers in a channel of numbers are not read: name a file of events)"
            )));
        }
        Ok(events)
    }

    /// Seconds from the first step.
    fn seconds(&self, event: &Event) -> f64 {
        match event.at {
            At::Step(step) => step / self.rate,
            At::Seconds(seconds) => seconds - self.begin,
        }
    }

    /// Gaps and bad stretches, in seconds from the first step; a gap has no length, but belongs to what it lies in.
    fn breaks(&self) -> Vec<(f64, f64)> {
        let breaks = self.events.iter().filter(|e| e.is_break()).map(|e| {
            let at = self.seconds(e);
            (at, at + e.lasts.max(1e-6))
        });
        breaks.collect()
    }
}

/// How many events of each name there are; nothing if they have none.
fn kinds(events: &[Event]) -> String {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    events.iter().filter(|e| !e.name().is_empty()).for_each(|e| *counts.entry(e.name()).or_default() += 1);
    let texts: Vec<String> = counts.iter().map(|(name, count)| format!("{name} ({count})")).collect();
    if texts.is_empty() { String::new() } else { format!(" {}", listed(texts.iter().map(String::as_str))) }
}

/// Brings channels into columns.
fn transpose(
    found: &mut Found,
    n: usize,
    as_trained: bool,
    remarks: &mut Vec<String>,
) -> std::result::Result<(), String> {
    let (rows, columns, names) = (found.rows, found.columns, found.labels.len());
    if names > 0 && ![rows, columns].contains(&names) {
        if 2 * names >= n && !as_trained {
            return Err(format!(
                "{names} names of channels do not fit {rows} x {columns} numbers (predict.as_trained takes columns in the weights' order, \
                 whatever they are called)"
            ));
        }
        remarks.push(format!("{names} names do not fit {rows} x {columns} numbers: they are passed over."));
        found.labels.clear();
    }
    let named = !found.labels.is_empty() && names == rows && rows != columns;
    let counted = found.labels.is_empty() && rows == n && columns != n;
    if found.in_rows || named || counted {
        let values = (0..columns).flat_map(|t| (0..rows).map(move |e| (e, t)));
        found.values = values.map(|(e, t)| found.values[e * columns + t]).collect();
        (found.rows, found.columns) = (columns, rows);
        if found.labels.len() != rows {
            found.labels.clear();
        }
        remarks.push(format!("{} has channels in rows: it was transposed.", found.name));
    } else if rows == columns {
        remarks.push(format!("{} has as many rows as columns: rows are taken for time steps.", found.name));
    }
    Ok(())
}

/// The sampling rate that the file states, or the user.
fn rate(
    found: &Found,
    montage: &Montage,
    options: &ImageOptions,
    remarks: &mut Vec<String>,
) -> std::result::Result<f64, String> {
    if options.rate != 0. {
        if !SENSIBLE.contains(&options.rate) {
            return Err(format!(
                "predict.rate is {:e}, expected time steps a second, from 50 to 1000000",
                options.rate
            ));
        }
        if let Some(stated) = found.rate.filter(|r| (r / options.rate - 1.).abs() > 1e-3) {
            remarks.push(format!("The file states {stated} Hz: it is taken for {} Hz as asked.", options.rate));
        }
        return Ok(options.rate);
    }
    match (found.rate, &found.doubt) {
        (Some(rate), _) if SENSIBLE.contains(&rate) => Ok(rate),
        (Some(rate), _) => Err(format!(
            "it has {rate:.3e} time steps a second, expected 50 to 1000000: state the right rate by predict.rate"
        )),
        (None, Some(doubt)) => Err(format!("{doubt}: state the sampling rate by predict.rate")),
        (None, None) if found.rows == montage.steps => {
            remarks.push(format!("The file states no rate: its time steps are taken for those of {RATE} Hz."));
            Ok(RATE as f64)
        }
        (None, None) => Err(format!(
            "it states no sampling rate, and has {} time steps x {} channels where these weights image {} time steps (at {RATE} Hz) x {} \
             channels: with its rate (predict.rate) it is resampled and imaged window by window",
            found.rows,
            found.columns,
            montage.steps,
            montage.electrodes.len()
        )),
    }
}

/// Says of which unit values without one look, and where those with one are hard to believe.
fn doubt_unit(values: &[f32], n: usize, has_unit: bool, remarks: &mut Vec<String>) {
    let Some(middle) = channels::middle_deviation(&channels::deviations(values, n)) else { return };
    if has_unit {
        if !BELIEVED.contains(&middle) {
            remarks.push(format!(
                "The middle channel has a standard deviation of {middle:.3e} microvolts by the file's unit, which EEG has not: doubt its unit."
            ));
        }
        return;
    }
    let unit = match middle {
        1e-7..1e-3 => "volts",
        1e-3..1. => "millivolts, or scaled",
        1.0..1e3 => "microvolts",
        _ => "of no unit of EEG",
    };
    remarks.push(format!(
        "The file states no unit: by their size its values are {unit}; the image does not depend on it."
    ));
}

#[cfg(test)]
mod tests;
