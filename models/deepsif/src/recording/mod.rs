//! Recordings as laboratories have them: read, and brought into the electrodes, the rate and the length that weights take.

mod brainvision;
mod channels;
mod edf;
mod events;
mod fif;
mod matlab;
mod signal;
mod table;

use std::io::Read;
use std::path::{Path, PathBuf};

use candle_core::Device;
use zoo_training::{Error, Result};

use crate::image::{Montage, RATE, still};
use crate::predict::ImageOptions;
use signal::Filter;

/// Bytes of a file.
const LONGEST: u64 = 1 << 32;
/// Seconds for which a channel stays where it is if it is clipped, or dead, and the time steps of that at least.
const CLIPPED: (f64, usize) = (0.01, 5);
const DEAD: (f64, usize) = (0.1, 10);
/// Standard deviations of EEG in microvolts that nobody would doubt.
const BELIEVED: std::ops::Range<f64> = 0.1..1000.;

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
    /// Steps a second.
    rate: Option<f64>,
    /// The values are microvolts, as the file says.
    has_unit: bool,
    events: Vec<Event>,
    remarks: Vec<String>,
}

/// A moment that a file names.
#[derive(Clone, Debug, PartialEq)]
struct Event {
    /// From the beginning of the recording.
    seconds: f64,
    name: String,
}

/// EEG in the order of a montage's electrodes, at the rate of the weights.
#[derive(Debug, Default)]
pub(crate) struct Recording {
    /// Time steps × electrodes; NaN where one has no value.
    values: Vec<f32>,
    /// Electrodes that it lacks, or that its file calls bad.
    missing: Vec<usize>,
    events: Vec<Event>,
    /// What was done to it, and what is doubtful, in words.
    pub(crate) remarks: Vec<String>,
}

/// A stretch of a recording without bad electrodes.
#[derive(Debug)]
pub(crate) struct Window {
    /// Where it begins in the recording; none of an average.
    pub(crate) seconds: Option<f64>,
    /// Time steps × electrodes.
    pub(crate) values: Vec<f32>,
}

/// Names that variables with labels and rates have.
const LABELS: [&str; 9] =
    ["label", "labels", "ch_names", "channels", "chanlabels", "channel_names", "channelnames", "electrodes", "names"];
const RATES: [&str; 7] = ["fs", "srate", "fsample", "sfreq", "sampling_rate", "samplingrate", "rate"];

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
    // Prefixes differ by their case, and micro has two signs beside the letter; volts are V or volt.
    let unit = unit.trim();
    let prefix = unit
        .strip_suffix(['V', 'v'])
        .or_else(|| unit.to_ascii_lowercase().ends_with("volts").then(|| &unit[..unit.len() - 5]))?;
    match prefix {
        "" => Some(1e6),
        "m" | "milli" => Some(1e3),
        "u" | "µ" | "μ" | "micro" => Some(1.),
        "n" | "nano" => Some(1e-3),
        _ => None,
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
    let mut start = vec![];
    let file = zoo_checkpoint::regular(path, "EEG")?;
    file.take(100).read_to_end(&mut start).map_err(Error::io(path))?;
    let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default().to_ascii_lowercase();
    let bytes = || zoo_checkpoint::bytes_of(path, "EEG", LONGEST);
    let failed = |what: String| refuse(path, what);
    if edf::is(&start) {
        return edf::parse(&bytes()?).map_err(failed);
    }
    if fif::is(&start) {
        return fif::parse(&bytes()?).map_err(failed);
    }
    if brainvision::is(&start) && extension != "vmrk" {
        return brainvision::parse(path, &bytes()?).map_err(failed);
    }
    let way = "mne.io.read_raw(…).save(\"x_raw.fif\")";
    if let Some((_, name)) = OTHERS.iter().find(|(ending, _)| *ending == extension) {
        return Err(refuse(path, format!("{name} is not read: MNE-Python writes FIF of it, which is ({way})")));
    }
    let found = match extension.as_str() {
        "mat" | "set" => matlab::parse(path, zoo_checkpoint::matlab::read(path)?).map_err(failed)?,
        "npy" | "npz" => arrays(path)?,
        "csv" | "tsv" | "txt" | "asc" => {
            let text = zoo_checkpoint::text::decode(&bytes()?, "").map_err(|e| refuse(path, e))?.text;
            vec![table::parse(&text).map_err(failed)?]
        }
        "edf" | "rec" | "bdf" => return Err(refuse(path, "it does not begin as EDF or BDF does")),
        "fif" => return Err(refuse(path, "it does not begin as FIF does")),
        "vhdr" => return Err(refuse(path, "it does not begin as BrainVision's headers do")),
        "vmrk" | "eeg" | "dat" => {
            return Err(refuse(
                path,
                "of BrainVision's three files name the header (.vhdr); other formats of this ending are not read",
            ));
        }
        "fdt" => return Err(refuse(path, "of EEGLAB's two files name the .set")),
        "gz" => return Err(refuse(path, "it is packed: unpack it first")),
        _ => {
            return Err(refuse(
                path,
                format!(
                    "EEG is read from EDF, BDF, BrainVision (.vhdr), FIF, EEGLAB (.set), .mat, .npy, .npz and .csv; MNE-Python writes FIF of others ({way})"
                ),
            ));
        }
    };
    the_eeg(path, found)
}

/// The arrays of NumPy's files, with names of channels and a rate beside them.
fn arrays(path: &Path) -> Result<Vec<Found>> {
    let source = zoo_checkpoint::open(path)?;
    let is = |name: &str, names: &[&str]| names.iter().any(|n| name.eq_ignore_ascii_case(n));
    let labels = source.texts.iter().find(|(name, _)| is(name, &LABELS)).map(|(_, texts)| texts.clone());
    let (mut rate, mut all) = (None, vec![]);
    for (name, tensor) in source.read(&Device::Cpu)?.tensors {
        let values: Vec<f32> = tensor.to_dtype(candle_core::DType::F32)?.flatten_all()?.to_vec1()?;
        if is(&name, &RATES) && values.len() == 1 && values[0] > 0. {
            rate = Some(f64::from(values[0]));
            continue;
        }
        let Some((rows, columns)) = matrix(tensor.dims()) else { continue };
        all.push(Found { name, rows, columns, values, labels: labels.clone().unwrap_or_default(), ..Found::default() });
    }
    all.iter_mut().for_each(|f| f.rate = rate);
    Ok(all)
}

/// Of several arrays, the one that is called eeg or data.
fn the_eeg(path: &Path, mut found: Vec<Found>) -> Result<Found> {
    // A vector of times or a rate beside the EEG.
    if found.len() > 1 {
        found.retain(|f| f.rows > 1 && f.columns > 1);
    }
    let named = found.iter().position(|r| matches!(r.name.as_str(), "eeg" | "EEG" | "data"));
    match (found.len(), named) {
        (0, _) => {
            Err(refuse(path, "it has no array of time steps and channels, or several samples in one: take one out"))
        }
        (1, _) => Ok(found.remove(0)),
        (_, Some(at)) => Ok(found.remove(at)),
        _ => {
            let names: Vec<&str> = found.iter().map(|r| r.name.as_str()).collect();
            Err(refuse(path, format!("it has the arrays {}: call the EEG eeg or data", names.join(", "))))
        }
    }
}

/// Rows and columns of an array of two dimensions, but for those of one.
fn matrix(shape: &[usize]) -> Option<(usize, usize)> {
    let long: Vec<usize> = shape.iter().copied().filter(|d| *d != 1).collect();
    match (shape, &long[..]) {
        (&[rows, columns], _) | (_, &[rows, columns]) => Some((rows, columns)),
        _ => None,
    }
}

/// What `--band` and `--notch` ask for, at this rate.
fn filters(options: &ImageOptions, rate: f64) -> std::result::Result<Vec<Filter>, String> {
    let fits = |frequency: &f64| *frequency > 0. && *frequency < rate / 2.;
    let mut filters = vec![];
    if !options.band.is_empty() {
        let wrong = || {
            let (band, most) = (&options.band, rate / 2.);
            format!(
                "predict.band is {band:?}, expected two frequencies in Hz below {most}, such as 1-40 (1- and -40 take one)"
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
        let n = montage.electrodes.len();
        let mut remarks = std::mem::take(&mut found.remarks);
        transpose(&mut found, n, &mut remarks);
        let rate = rate(&found, montage, options, &mut remarks).map_err(failed)?;
        let shape = format!("{} time steps x {} channels at {rate} Hz", found.rows, found.columns);
        remarks.insert(0, format!("{}: {shape}, {:.3} seconds.", found.name, found.rows as f64 / rate));

        let by_name = !found.labels.is_empty() && !options.as_trained;
        let places = if by_name {
            channels::places(&found.labels, &montage.electrodes, &mut remarks).map_err(failed)?
        } else {
            if found.columns != n {
                let (name, rows, columns) = (&found.name, found.rows, found.columns);
                return Err(refuse(
                    path,
                    format!(
                        "{name} is EEG of {rows} time steps x {columns} channels, but these weights take {n} channels, in the order that they \
                         were trained with, or by their names"
                    ),
                ));
            }
            if !options.as_trained {
                remarks.push(
                    "The file has no names of channels: they are taken in the order that the weights were trained with."
                        .into(),
                );
            }
            (0..n).map(Some).collect()
        };
        let mut values = vec![f32::NAN; found.rows * n];
        for (row, to) in found.values.chunks_exact(found.columns).zip(values.chunks_exact_mut(n)) {
            to.iter_mut().zip(&places).for_each(|(v, place)| *v = place.map_or(f32::NAN, |k| row[k]));
        }
        let bad = |e: usize| places[e].is_some_and(|k| found.labels.get(k).is_some_and(|l| found.bad.contains(l)));
        let called_bad: Vec<usize> = (0..n).filter(|e| bad(*e)).collect();
        if !called_bad.is_empty() {
            let names = listed(called_bad.iter().map(|e| montage.electrodes[*e].label.as_str()));
            remarks.push(format!("Channels that the file calls bad: {names}."));
        }
        let missing: Vec<usize> = (0..n).filter(|e| places[*e].is_none() || bad(*e)).collect();
        for row in values.chunks_exact_mut(n) {
            missing.iter().for_each(|e| row[*e] = f32::NAN);
        }
        doubt_unit(&values, n, found.has_unit, &mut remarks);
        let stretch = |(seconds, steps): (f64, usize)| ((seconds * rate) as usize).max(steps);
        channels::unmoved(&mut values, montage, [stretch(CLIPPED), stretch(DEAD)], &mut remarks);

        let seconds = found.rows as f64 / rate;
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
        Ok(Self { values, missing, events: found.events, remarks })
    }

    /// All of it as one window.
    ///
    /// # Errors
    /// Too many bad electrodes.
    pub(crate) fn whole(mut self, path: &Path, montage: &Montage) -> Result<Vec<f32>> {
        channels::mend(&mut self.values, montage, &self.missing).map_err(|what| refuse(path, what))?;
        Ok(self.values)
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
            let message =
                format!("{rows} time steps at {RATE} Hz, but these weights image {steps} ({} s)", steps as f64 / rate);
            return Err(failed(message));
        }
        let half = steps / 2;
        let around = |seconds: f64| {
            let middle = (seconds * rate).round();
            let from = middle - half as f64;
            (from >= 0. && from + steps as f64 <= rows as f64).then_some(from as usize)
        };
        let range = format!("{} to {} s", half as f64 / rate, (rows - (steps - half)) as f64 / rate);
        let cut = |from: usize| self.values[from * n..(from + steps) * n].to_vec();
        let named = !options.events.is_empty() || !options.event.is_empty();
        let mut windows = if !options.at.is_empty() {
            if named {
                return Err(Error::Usage("predict.at, and predict.events or predict.event: one of them".into()));
            }
            let seconds = options.at.trim().parse().ok().filter(|s: &f64| s.is_finite());
            let at = seconds.and_then(around).ok_or_else(|| {
                let (at, length) = (&options.at, steps as f64 / rate);
                failed(format!(
                    "predict.at is {at:?}, expected the middle of a window of {length} s in seconds: {range}"
                ))
            })?;
            vec![Window { seconds: Some(at as f64 / rate), values: cut(at) }]
        } else if named {
            let moments = self.moments(options)?;
            let places: Vec<usize> = moments.iter().filter_map(|e| around(e.seconds)).collect();
            if places.is_empty() {
                return Err(failed(format!("none of {} events lies within {range}", moments.len())));
            }
            let mut sum = vec![0f32; steps * n];
            for at in &places {
                let mut window = cut(*at);
                still(&mut window, n);
                sum.iter_mut().zip(window).for_each(|(s, v)| *s += v / places.len() as f32);
            }
            let left = moments.len() - places.len();
            let left = if left > 0 { format!("; {left} too near to an end are left out") } else { String::new() };
            self.remarks.push(format!("Averaged over {} events{}{left}.", places.len(), kinds(&moments)));
            vec![Window { seconds: None, values: sum }]
        } else {
            let all = (0..rows / steps).map(|i| i * steps);
            all.map(|at| Window { seconds: Some(at as f64 / rate), values: cut(at) }).collect()
        };
        if windows.len() > 1 {
            let length = steps as f64 / rate;
            self.remarks.push(format!(
                "Imaged in {} windows of {length} s, each scaled by its own largest value.",
                windows.len()
            ));
        }
        if options.at.is_empty() && !named && rows % steps != 0 {
            self.remarks.push(format!("The last {} time steps fill no window: they are left out.", rows % steps));
        }

        // The same remark of several windows is said once.
        let (all, mut said, mut first) = (windows.len(), Vec::<(String, usize)>::new(), None);
        windows.retain_mut(|window| {
            let (remarks, fits) = match channels::mend(&mut window.values, montage, &self.missing) {
                Ok(remarks) => (remarks, true),
                Err(what) => {
                    first = first.take().or(Some(what.clone()));
                    (vec![format!("Left out: {what}.")], false)
                }
            };
            for remark in remarks {
                match said.iter_mut().find(|(text, _)| *text == remark) {
                    Some((_, count)) => *count += 1,
                    None => said.push((remark, 1)),
                }
            }
            fits
        });
        if let (true, Some(what)) = (windows.is_empty(), first) {
            return Err(failed(what));
        }
        let where_said = |(text, count): (String, usize)| match count == all {
            true => text,
            false => format!("{} (in {count} of {all} windows).", text.trim_end_matches('.')),
        };
        self.remarks.extend(said.into_iter().map(where_said));
        Ok(windows)
    }

    /// The events that are asked for.
    fn moments(&self, options: &ImageOptions) -> Result<Vec<Event>> {
        let mut events = match options.events.as_str() {
            "" => self.events.clone(),
            file => events::read(Path::new(file), RATE as f64).map_err(Error::Data)?,
        };
        let squeezed = |name: &str| name.split_whitespace().collect::<Vec<_>>().join(" ").to_lowercase();
        let (wanted, known) = (squeezed(&options.event), kinds(&events));
        if !wanted.is_empty() {
            // BrainVision's have their type in front.
            events.retain(|e| {
                let name = squeezed(&e.name);
                name == wanted || name.split_once('/').is_some_and(|(_, description)| description.trim() == wanted)
            });
        }
        if events.is_empty() {
            let known = if known.is_empty() { "there are none".into() } else { format!("there are{known}") };
            return Err(Error::Usage(format!("predict.event: no event is called {:?}: {known}", options.event)));
        }
        Ok(events)
    }
}

/// How many events of each name there are; nothing if they have none.
fn kinds(events: &[Event]) -> String {
    let mut counts: Vec<(&str, usize)> = vec![];
    for event in events.iter().filter(|e| !e.name.is_empty()) {
        match counts.iter_mut().find(|(name, _)| *name == event.name) {
            Some((_, count)) => *count += 1,
            None => counts.push((&event.name, 1)),
        }
    }
    let texts: Vec<String> = counts.iter().map(|(name, count)| format!("{name} ({count})")).collect();
    if texts.is_empty() { String::new() } else { format!(" {}", listed(texts.iter().map(String::as_str))) }
}

/// Brings channels into columns.
fn transpose(found: &mut Found, n: usize, remarks: &mut Vec<String>) {
    if !found.labels.is_empty() && ![found.rows, found.columns].contains(&found.labels.len()) {
        let (names, shape) = (found.labels.len(), (found.rows, found.columns));
        remarks.push(format!(
            "{names} names of channels do not fit {} x {} numbers: they are passed over.",
            shape.0, shape.1
        ));
        found.labels.clear();
    }
    let named = !found.labels.is_empty() && found.labels.len() == found.rows && found.rows != found.columns;
    let counted = found.labels.is_empty() && found.rows == n && found.columns != n;
    if found.in_rows || named || counted {
        let (rows, columns) = (found.rows, found.columns);
        found.values = (0..columns)
            .flat_map(|t| (0..rows).map(move |e| (e, t)))
            .map(|(e, t)| found.values[e * columns + t])
            .collect();
        (found.rows, found.columns) = (columns, rows);
        remarks.push(format!("{} has channels in rows: it was transposed.", found.name));
    }
}

/// The sampling rate that the file states, or the user.
fn rate(
    found: &Found,
    montage: &Montage,
    options: &ImageOptions,
    remarks: &mut Vec<String>,
) -> std::result::Result<f64, String> {
    const SENSIBLE: std::ops::RangeInclusive<f64> = 50.0..=1e6;
    if options.rate != 0. {
        if !SENSIBLE.contains(&options.rate) {
            return Err(format!("predict.rate is {}, expected time steps a second, from 50 to 1000000", options.rate));
        }
        if let Some(stated) = found.rate.filter(|r| (r / options.rate - 1.).abs() > 1e-3) {
            remarks.push(format!("The file states {stated} Hz: it is taken for {} Hz as asked.", options.rate));
        }
        return Ok(options.rate);
    }
    match found.rate {
        Some(rate) if SENSIBLE.contains(&rate) => Ok(rate),
        Some(rate) => Err(format!(
            "it has {rate:.3e} time steps a second, expected 50 to 1000000: state the right rate by predict.rate"
        )),
        None if found.rows == montage.steps => {
            remarks.push(format!("The file states no rate: its time steps are taken for those of {RATE} Hz."));
            Ok(RATE as f64)
        }
        None => Err(format!(
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
