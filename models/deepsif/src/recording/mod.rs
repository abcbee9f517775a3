//! Recordings as laboratories have them: read, and brought into the electrodes and the length that weights take.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::Device;
use zoo_checkpoint::matlab::{self, Variable};
use zoo_training::{Error, Result};

use crate::algebra::{dot, inverted, times};
use crate::image::{Electrode, Montage, Point, RATE};

/// Bytes of a table in text.
const LONGEST: u64 = 1 << 32;
/// A channel is flat below this share of the middle channel's deviation, and beyond belief above this multiple.
const FLAT: f64 = 1e-3;
const WILD: f64 = 30.;
/// Share of a montage's electrodes that may be interpolated from the others.
const INTERPOLATED: usize = 5;

/// Numbers in rows, as a file has them.
#[derive(Debug, Default)]
struct Found {
    name: String,
    rows: usize,
    columns: usize,
    values: Vec<f32>,
    /// Names of channels.
    labels: Vec<String>,
    /// Steps a second.
    rate: Option<f64>,
}

/// EEG in the order of a montage's electrodes.
#[derive(Debug, Default)]
pub(crate) struct Recording {
    /// What it is called in its file.
    pub(crate) name: String,
    /// Time steps × electrodes.
    pub(crate) values: Vec<f32>,
    /// What was done to it, and what is doubtful, in words.
    pub(crate) remarks: Vec<String>,
}

/// Names that variables with labels and rates have.
const LABELS: [&str; 9] =
    ["label", "labels", "ch_names", "channels", "chanlabels", "channel_names", "channelnames", "electrodes", "names"];
const RATES: [&str; 7] = ["fs", "srate", "fsample", "sfreq", "sampling_rate", "samplingrate", "rate"];

/// Formats that are not read, by their endings, and the way out.
const OTHERS: [(&str, &str); 9] = [
    ("edf", "EDF"),
    ("bdf", "BDF"),
    ("vhdr", "BrainVision"),
    ("eeg", "BrainVision"),
    ("fif", "FIF"),
    ("gdf", "GDF"),
    ("cnt", "Neuroscan CNT"),
    ("fdt", "EEGLAB's data without its .set"),
    ("mff", "EGI MFF"),
];

fn refuse(path: &Path, what: impl std::fmt::Display) -> Error {
    Error::Data(format!("{}: {what}", path.display()))
}

/// The EEG of a file: `.mat` (also of FieldTrip), EEGLAB's `.set`, `.npy`, `.npz` or a table in text. Of several arrays, the one that is
/// called eeg or data.
fn read(path: &Path) -> Result<Found> {
    let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default().to_ascii_lowercase();
    if let Some((_, name)) = OTHERS.iter().find(|(ending, _)| *ending == extension) {
        let way = "mne.io.read_raw(…).to_data_frame(index=\"time\").to_csv(…)";
        return Err(refuse(path, format!("{name} is not read: save it as CSV with the channels' names ({way})")));
    }
    let mut found = match extension.as_str() {
        "mat" | "set" => of_matlab(path, matlab::read(path)?)?,
        "npy" | "npz" => {
            let mut all = vec![];
            for (name, tensor) in zoo_checkpoint::read(path, &Device::Cpu)?.tensors {
                let Some((rows, columns)) = matrix(tensor.dims()) else { continue };
                let values = tensor.to_dtype(candle_core::DType::F32)?.flatten_all()?.to_vec1()?;
                all.push(Found { name, rows, columns, values, ..Found::default() });
            }
            all
        }
        "csv" | "tsv" | "txt" | "asc" => vec![table(path)?],
        _ => return Err(refuse(path, "EEG is read from .mat, .set, .npy, .npz and .csv")),
    };
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

fn of_matlab(path: &Path, variables: BTreeMap<String, Variable>) -> Result<Vec<Found>> {
    let find = |among: &BTreeMap<String, Variable>, names: &[&str]| {
        let is = |name: &String| names.iter().any(|n| name.eq_ignore_ascii_case(n));
        among.iter().find(|(name, _)| is(name)).map(|(_, v)| texts(v)).unwrap_or_default()
    };
    let rate = |among: &BTreeMap<String, Variable>| {
        let is = |name: &String| RATES.iter().any(|n| name.eq_ignore_ascii_case(n));
        among.iter().filter(|(name, _)| is(name)).find_map(|(_, v)| match v {
            Variable::Numbers { values, .. } if values.len() == 1 && values[0] > 0. => Some(values[0]),
            _ => None,
        })
    };
    let numbers = |name: &str, variable: &Variable| match variable {
        Variable::Numbers { shape, values } => matrix(shape).map(|(rows, columns)| Found {
            name: name.into(),
            rows,
            columns,
            values: values.iter().map(|v| *v as f32).collect(),
            ..Found::default()
        }),
        _ => None,
    };
    let mut all = vec![];
    for (name, variable) in &variables {
        all.extend(numbers(name, variable).map(|f| Found {
            labels: find(&variables, &[&LABELS[..], &["chanlocs"]].concat()),
            rate: rate(&variables),
            ..f
        }));
        // A structure of FieldTrip's (label, trial or avg, fsample) or EEGLAB's (data, chanlocs, srate).
        let Variable::Records(records) = variable else { continue };
        let [fields] = &records[..] else { continue };
        for key in ["trial", "avg", "data"] {
            let value = match fields.get(key) {
                Some(Variable::Cells(trials)) if trials.len() > 1 => {
                    let n = trials.len();
                    return Err(refuse(path, format!("{name}.{key} has {n} trials: leave one in the file")));
                }
                Some(Variable::Cells(trials)) => trials.first(),
                Some(Variable::Text(file)) => {
                    let message = format!("its data lie in {file:.60}, which is not read: save it in one file");
                    return Err(refuse(path, message));
                }
                value => value,
            };
            let found = value.and_then(|v| numbers(&format!("{name}.{key}"), v));
            all.extend(found.map(|f| Found {
                labels: find(fields, &[&LABELS[..], &["chanlocs"]].concat()),
                rate: rate(fields),
                ..f
            }));
        }
    }
    Ok(all)
}

/// A table in text: fields by tabs, semicolons, commas or blanks; the first line may have the channels' names, the first column the
/// times.
fn table(path: &Path) -> Result<Found> {
    let bytes = zoo_checkpoint::bytes_of(path, "a table of numbers", LONGEST)?;
    let text = zoo_checkpoint::text::decode(&bytes, "").map_err(|e| refuse(path, e))?.text;
    drop(bytes);
    let some = text.lines().find(|l| l.bytes().any(|b| b.is_ascii_digit())).unwrap_or_default();
    let delimiter = [b'\t', b';', b','].into_iter().find(|d| some.as_bytes().contains(d));
    let text = match delimiter {
        Some(_) => text,
        None => text.lines().map(|l| l.split_whitespace().collect::<Vec<_>>().join("\t") + "\n").collect(),
    };
    let mut reader = csv::ReaderBuilder::new();
    let reader =
        reader.has_headers(false).delimiter(delimiter.unwrap_or(b'\t')).trim(csv::Trim::All).comment(Some(b'#'));
    let mut reader = reader.from_reader(text.as_bytes());
    let mut found = Found { name: "table".into(), ..Found::default() };
    for record in reader.records() {
        let record = record.map_err(|e| refuse(path, e))?;
        let numbers: Vec<_> = record.iter().map(str::parse::<f32>).collect();
        if found.rows == 0 && found.labels.is_empty() && numbers.iter().all(|n| n.is_err()) {
            found.labels = record.iter().map(String::from).collect();
            continue;
        }
        let line = record.position().map_or(0, csv::Position::line);
        if let Some(at) = numbers.iter().position(|n| n.is_err()) {
            let column = found.labels.get(at).cloned().unwrap_or_else(|| (at + 1).to_string());
            let text = record.get(at).unwrap_or_default();
            return Err(refuse(path, format!("line {line}: column {column} is {text:.40?}, expected a number")));
        }
        found.columns = numbers.len();
        found.values.extend(numbers.into_iter().flatten());
        found.rows += 1;
    }
    let is_time =
        |name: &str| matches!(name.to_ascii_lowercase().as_str(), "time" | "t" | "seconds" | "ms" | "sample" | "");
    if found.columns > 1 && found.labels.first().is_some_and(|name| is_time(name)) {
        let (columns, name) = (found.columns, found.labels.remove(0).to_ascii_lowercase());
        let times: Vec<f64> = found.values.iter().step_by(columns).map(|v| f64::from(*v)).collect();
        let step = (times[times.len() - 1] - times[0]) / (times.len() - 1).max(1) as f64;
        // Steps of half a unit and more are of milliseconds.
        let unit = if name == "ms" || step >= 0.5 { 1000. } else { 1. };
        found.rate = Some(unit / step)
            .filter(|r| matches!(name.as_str(), "time" | "t" | "seconds" | "ms") && r.is_finite() && *r > 0.);
        found.values = found.values.chunks_exact(columns).flat_map(|row| &row[1..]).copied().collect();
        found.columns -= 1;
    }
    Ok(found)
}

/// An electrode's name as all write it: without `EEG`, a reference and case, by the names of today.
fn canonical(label: &str) -> String {
    let mut name = label.trim().trim_matches('.').to_ascii_lowercase();
    for prefix in ["eeg ", "eeg-", "eeg_"] {
        name = name.strip_prefix(prefix).map_or(name.clone(), String::from);
    }
    for mark in ['-', ' ', '_'] {
        if let Some((electrode, reference)) = name.split_once(mark)
            && matches!(
                reference.trim(),
                "ref" | "avg" | "average" | "le" | "ar" | "car" | "a1" | "a2" | "a1a2" | "m1" | "m2" | "org"
            )
        {
            name = electrode.into();
        }
    }
    let today = [("t3", "t7"), ("t4", "t8"), ("t5", "p7"), ("t6", "p8")];
    today.iter().find(|(old, _)| *old == name).map_or(name, |(_, new)| (*new).into())
}

/// A few names.
fn listed<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let mut names: Vec<&str> = names.take(13).collect();
    if names.len() > 12 {
        names[12] = "…";
    }
    names.join(", ")
}

/// The columns of these names in the order of the electrodes; `None` where an electrode has no column.
fn places(
    path: &Path,
    labels: &[String],
    electrodes: &[Electrode],
    remarks: &mut Vec<String>,
) -> Result<Vec<Option<usize>>> {
    let names: Vec<String> = labels.iter().map(|l| canonical(l)).collect();
    if let Some((at, _)) = names.iter().enumerate().find(|(i, name)| names[..*i].contains(name)) {
        return Err(refuse(path, format!("two channels are called {}", labels[at])));
    }
    let find = |e: &Electrode| names.iter().position(|name| *name == canonical(&e.label));
    let places: Vec<Option<usize>> = electrodes.iter().map(find).collect();
    let missing: Vec<&str> =
        electrodes.iter().zip(&places).filter(|(_, p)| p.is_none()).map(|(e, _)| e.label.as_str()).collect();
    if missing.len() * INTERPOLATED > electrodes.len() {
        return Err(refuse(
            path,
            format!(
                "its channels ({}) lack {} of the {} electrodes that these weights take: {} (zoo params deepsif --checkpoint FILE \
                 --channels lists them; predict.as_trained takes columns in their order whatever they are called)",
                listed(labels.iter().map(String::as_str)),
                missing.len(),
                electrodes.len(),
                listed(missing.into_iter())
            ),
        ));
    }
    if !missing.is_empty() {
        remarks.push(format!("Electrodes that the recording lacks: {}.", listed(missing.into_iter())));
    }
    let left: Vec<&str> =
        (0..labels.len()).filter(|i| !places.contains(&Some(*i))).map(|i| labels[i].as_str()).collect();
    if !left.is_empty() {
        remarks.push(format!("Channels that are left out: {}.", listed(left.into_iter())));
    }
    let known: Vec<usize> = places.iter().copied().flatten().collect();
    if known.windows(2).any(|w| w[0] > w[1]) {
        remarks.push("Channels were put into the electrodes' order by their names.".into());
    }
    Ok(places)
}

/// The recording in a file, in the order of a montage's electrodes; `as_trained` takes its columns in that order, whatever they are
/// called. Electrodes that are missing, flat or beyond belief are interpolated from the others where there are few of them.
///
/// # Errors
/// What is no recording; names, a rate, or channels that do not fit.
pub(crate) fn recording(path: &Path, montage: &Montage, as_trained: bool) -> Result<Recording> {
    let mut found = read(path)?;
    let n = montage.electrodes.len();
    let mut remarks = vec![];
    if let Some(rate) = found.rate.filter(|r| (r / RATE as f64 - 1.).abs() > 0.01) {
        return Err(refuse(path, format!("it has {rate} steps a second, but these weights take {RATE}: resample it")));
    }
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
    if named || counted {
        let (rows, columns) = (found.rows, found.columns);
        found.values = (0..columns)
            .flat_map(|t| (0..rows).map(move |e| (e, t)))
            .map(|(e, t)| found.values[e * columns + t])
            .collect();
        (found.rows, found.columns) = (columns, rows);
        remarks.push(format!("{} has channels in rows: it was transposed.", found.name));
    }
    let by_name = !found.labels.is_empty() && !as_trained;
    let places = if by_name {
        places(path, &found.labels, &montage.electrodes, &mut remarks)?
    } else {
        if found.columns != n {
            let (name, rows, columns) = (&found.name, found.rows, found.columns);
            let message = format!(
                "{name} is EEG of {rows} time steps x {columns} channels, but these weights take {n} channels, in the order that they were \
                 trained with, or by their names"
            );
            return Err(refuse(path, message));
        }
        if !as_trained {
            remarks.push(
                "The file has no names of channels: they are taken in the order that the weights were trained with."
                    .into(),
            );
        }
        (0..n).map(Some).collect()
    };
    let mut values = vec![0f32; found.rows * n];
    for (row, to) in found.values.chunks_exact(found.columns).zip(values.chunks_exact_mut(n)) {
        to.iter_mut().zip(&places).for_each(|(v, place)| *v = place.map_or(0., |k| row[k]));
    }
    let missing = |e: usize| places[e].is_none();
    mend(path, &mut values, montage, missing, &mut remarks)?;
    Ok(Recording { name: found.name, values, remarks })
}

/// Interpolates the electrodes that are missing, flat or beyond belief.
fn mend(
    path: &Path,
    values: &mut [f32],
    montage: &Montage,
    missing: impl Fn(usize) -> bool,
    remarks: &mut Vec<String>,
) -> Result<()> {
    let electrodes = &montage.electrodes;
    let (n, label) = (electrodes.len(), |e: &usize| electrodes[*e].label.as_str());
    if let Some(at) = values.iter().position(|v| !v.is_finite()) {
        let message = format!(
            "the EEG has a value that is not finite, at time step {} of electrode {}",
            at / n,
            label(&(at % n))
        );
        return Err(refuse(path, message));
    }
    let steps = (values.len() / n).max(1) as f64;
    let deviation = |e: usize| {
        let column = || values.iter().skip(e).step_by(n).map(|v| f64::from(*v));
        let mean = column().sum::<f64>() / steps;
        (column().map(|v| (v - mean).powi(2)).sum::<f64>() / steps).sqrt()
    };
    let deviations: Vec<f64> = (0..n).map(deviation).collect();
    let mut sorted: Vec<f64> = (0..n).filter(|e| !missing(*e) && deviations[*e] > 0.).map(|e| deviations[e]).collect();
    sorted.sort_by(f64::total_cmp);
    let Some(&middle) = sorted.get(sorted.len() / 2) else {
        return Err(refuse(path, "the EEG never changes"));
    };
    let flat: Vec<usize> = (0..n).filter(|e| !missing(*e) && deviations[*e] < FLAT * middle).collect();
    let wild: Vec<usize> = (0..n).filter(|e| deviations[*e] > WILD * middle).collect();
    for (bad, what) in [(&flat, "flat"), (&wild, "more than 30 times as strong as the middle one")] {
        if !bad.is_empty() {
            remarks.push(format!("Channels that are {what}: {}.", listed(bad.iter().map(label))));
        }
    }
    let bad: Vec<usize> = (0..n).filter(|e| missing(*e) || flat.contains(e) || wild.contains(e)).collect();
    if bad.is_empty() {
        return Ok(());
    }
    let names = listed(bad.iter().map(label));
    let places: Option<Vec<Point>> = electrodes.iter().map(|e| e.position).collect();
    let Some(places) = places.filter(|_| bad.len() * INTERPOLATED <= n) else {
        return Err(refuse(
            path,
            format!(
                "{} of {n} electrodes are missing, flat or beyond belief ({names}): too many to interpolate, or nobody knows where they are",
                bad.len()
            ),
        ));
    };
    interpolate(values, &places, &bad);
    remarks.push(format!("Interpolated from the other electrodes by spherical splines: {names}."));
    Ok(())
}

/// Spherical splines of order 4 (Perrin et al. 1989), with the terms and the regularisation that MNE takes.
fn interpolate(values: &mut [f32], places: &[Point], bad: &[usize]) {
    const TERMS: usize = 50;
    const REGULARISATION: f64 = 1e-5;
    let n = places.len();
    let centre = sphere(places);
    let unit: Vec<Point> = places
        .iter()
        .map(|p| {
            let from: Point = [0, 1, 2].map(|k| p[k] - centre[k]);
            let length = dot(&from, &from).sqrt().max(1e-9);
            from.map(|v| v / length)
        })
        .collect();
    let spline = |a: &Point, b: &Point| {
        let x = dot(a, b).clamp(-1., 1.);
        let (mut before, mut legendre, mut sum) = (1., x, 0.);
        for k in 1..=TERMS {
            let k = k as f64;
            sum += (2. * k + 1.) / (k * (k + 1.)).powi(4) * legendre;
            (before, legendre) = (legendre, ((2. * k + 1.) * x * legendre - k * before) / (k + 1.));
        }
        sum / (4. * std::f64::consts::PI)
    };
    let good: Vec<usize> = (0..n).filter(|e| !bad.contains(e)).collect();
    let between = |a: &usize| good.iter().map(|b| spline(&unit[*a], &unit[*b])).collect::<Vec<f64>>();
    let mut system: Vec<Vec<f64>> = good.iter().map(between).collect();
    (0..good.len()).for_each(|i| system[i][i] += REGULARISATION);
    let inverse = inverted(system);
    // A constant is added to the splines, whose coefficients sum to zero.
    let ones: Vec<f64> = inverse.iter().map(|line| line.iter().sum()).collect();
    let all: f64 = ones.iter().sum();
    let weights = |to: &usize| -> Vec<f64> {
        let from = between(to);
        let of_spline = times(&inverse, &from);
        let rest = 1. - of_spline.iter().sum::<f64>();
        of_spline.iter().zip(&ones).map(|(w, one)| w + rest * one / all).collect()
    };
    let weights: Vec<Vec<f64>> = bad.iter().map(weights).collect();
    for row in values.chunks_exact_mut(n) {
        let known: Vec<f64> = good.iter().map(|e| f64::from(row[*e])).collect();
        for (e, weights) in bad.iter().zip(&weights) {
            row[*e] = dot(&known, weights) as f32;
        }
    }
}

/// The centre of the sphere that fits points best: least squares of |p|² = 2 c·p + d.
fn sphere(points: &[Point]) -> Point {
    let mut normal = vec![vec![0.; 4]; 4];
    let mut right = [0.; 4];
    for p in points {
        let row = [2. * p[0], 2. * p[1], 2. * p[2], 1.];
        let square = dot(p, p);
        for i in 0..4 {
            right[i] += row[i] * square;
            (0..4).for_each(|j| normal[i][j] += row[i] * row[j]);
        }
    }
    let inverse = inverted(normal);
    [0, 1, 2].map(|i| dot(&inverse[i], &right))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Electrodes over the upper part of a head of 90 mm.
    fn montage(n: usize) -> Montage {
        let place = |i: usize| {
            let z = 1. - 1.2 * (i as f64 + 0.5) / n as f64;
            let (turn, r) = (2.4 * i as f64, (1. - z * z).sqrt());
            [90. * r * turn.cos() + 3., 90. * r * turn.sin(), 90. * z + 40.]
        };
        let names = ["Fp1", "Fp2", "T7", "T8", "P7", "P8", "Cz", "Pz", "Oz", "O1"];
        let electrode = |i: usize| Electrode { label: names[i].into(), position: Some(place(i)) };
        Montage { electrodes: (0..n).map(electrode).collect(), regions: vec![], steps: 4 }
    }

    /// A smooth potential at an electrode.
    fn potential(montage: &Montage, e: usize, t: usize) -> f32 {
        let [x, y, z] = montage.electrodes[e].position.unwrap_or_default();
        ((x + 0.5 * y - 0.3 * z) / 90. * (t as f64 - 1.5) + 0.2 * t as f64) as f32
    }

    fn read(name: &str, text: &str, montage: &Montage, as_trained: bool) -> Result<Recording> {
        let dir = tempfile::tempdir().map_err(Error::io(Path::new("temporary")))?;
        let path = dir.path().join(name);
        std::fs::write(&path, text).map_err(Error::io(&path))?;
        recording(&path, montage, as_trained)
    }

    /// Columns of these electrodes under these names; channels without an electrode hold the time.
    fn table(montage: &Montage, columns: &[(&str, Option<usize>)], separator: &str) -> String {
        let names: Vec<&str> = columns.iter().map(|c| c.0).collect();
        let row = |t: usize| {
            let value = |(_, e): &(&str, Option<usize>)| e.map_or(t as f32, |e| potential(montage, e, t)).to_string();
            columns.iter().map(value).collect::<Vec<_>>().join(separator)
        };
        std::iter::once(names.join(separator)).chain((0..4).map(row)).map(|l| l + "\n").collect()
    }

    #[test]
    fn channels_are_ordered_by_their_names_and_bad_ones_are_interpolated() -> Result<()> {
        let m = montage(10);
        let expected: Vec<f32> =
            (0..4).flat_map(|t| (0..10).map(move |e| (t, e))).map(|(t, e)| potential(&m, e, t)).collect();
        let names = ["O1", "EEG FP2-REF", "t3", "T4", "fp1", "T6-Ref", "cz", "PZ", "OZ.", "T5"];
        let order = [9, 1, 2, 3, 0, 5, 6, 7, 8, 4];
        let columns: Vec<(&str, Option<usize>)> = names.into_iter().zip(order.map(Some)).collect();
        for (file, separator) in [("a.csv", ","), ("a.tsv", "\t"), ("a.csv", ";")] {
            let found = read(file, &table(&m, &columns, separator), &m, false)?;
            assert_eq!((found.values.as_slice(), found.remarks.len()), (expected.as_slice(), 1), "{:?}", found.remarks);
        }
        // More of them, and a column of times.
        let more = [&[("time", None), ("EKG", None)], &columns[..]].concat();
        let text = table(&m, &more, ",");
        let ms: Vec<String> = text
            .lines()
            .enumerate()
            .map(|(i, l)| match (i, l.split_once(',')) {
                (1.., Some((_, rest))) => format!("{},{rest}", 0.002 * (i - 1) as f64),
                _ => l.into(),
            })
            .collect();
        let found = read("a.csv", &ms.join("\n"), &m, false)?;
        assert!(found.values == expected && found.remarks.join("").contains("left out: EKG."), "{:?}", found.remarks);
        assert!(read("a.csv", &text, &m, false).unwrap_err().to_string().contains("steps a second"), "milliseconds");
        // One electrode is missing, one flat, one beyond belief.
        for bad in [vec![9], vec![9, 4]] {
            let kept: Vec<_> = columns.iter().copied().filter(|c| c.1 != Some(bad[0])).collect();
            let text = table(&m, &kept, ",");
            let text = if bad.len() == 1 {
                text
            } else {
                text.lines()
                    .enumerate()
                    .map(|(i, l)| {
                        let fields: Vec<&str> = l.split(',').collect();
                        let (last, rest) = (fields[fields.len() - 1], fields[..fields.len() - 1].join(","));
                        format!("{rest},{}\n", if i == 0 { last } else { "7" })
                    })
                    .collect()
            };
            let found = read("a.csv", &text, &m, false)?;
            assert!(found.remarks.join("").contains("Interpolated from the other electrodes"), "{:?}", found.remarks);
            let off = found.values.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0., f32::max);
            assert!(off > 0. && off < 0.35, "{off}");
        }
        let wild = table(&m, &columns, ",")
            .lines()
            .enumerate()
            .map(|(i, l)| match l.split_once(',') {
                Some((first, rest)) if i > 0 => format!("{}e3,{rest}\n", first),
                _ => format!("{l}\n"),
            })
            .collect::<String>();
        assert!(
            read("a.csv", &wild, &m, false)?.remarks.join("").contains("30 times as strong as the middle one: O1.")
        );
        Ok(())
    }

    #[test]
    fn what_does_not_fit_is_refused_with_the_way_out() -> Result<()> {
        let m = montage(10);
        let columns: Vec<(String, Option<usize>)> = (0..10).map(|e| (format!("E{e}"), Some(e))).collect();
        let cap: Vec<(&str, Option<usize>)> = columns.iter().map(|(n, e)| (n.as_str(), *e)).collect();
        let refused =
            |name: &str, text: &str| read(name, text, &m, false).map(|r| r.values.len()).unwrap_err().to_string();
        let text = table(&m, &cap, ",");
        assert!(refused("a.csv", &text).contains("lack 10 of the 10 electrodes"));
        assert_eq!(read("a.csv", &text, &m, true)?.values.len(), 40);
        let bare = text.split_once('\n').map_or("", |(_, rest)| rest);
        let doubt = read("a.csv", bare, &m, false)?.remarks.join("");
        assert!(doubt.contains("no names of channels"), "{doubt}");
        assert_eq!(read("a.txt", &bare.replace(',', "  "), &m, false)?.values.len(), 40);
        for (name, text, expected) in [
            ("a.edf", "0", "EDF is not read"),
            ("a.csv", "1,2\n3,4\n", "take 10 channels"),
            ("a.csv", &bare.replacen("0", "x", 1), "expected a number"),
            ("a.csv", &text.replace("E1,", "E0,"), "two channels are called E0"),
            ("a.csv", "1,1,1,1,1,1,1,1,1,1\n", "the EEG never changes"),
        ] {
            let message = refused(name, text);
            assert!(message.contains(expected), "{message}");
        }
        let flat: String =
            bare.lines().map(|l| format!("{},0,0,0\n", l.split(',').take(7).collect::<Vec<_>>().join(","))).collect();
        assert!(refused("a.csv", &flat).contains("too many to interpolate"));
        Ok(())
    }

    #[test]
    fn matlabs_users_are_understood() -> Result<()> {
        let m = montage(10);
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/recordings");
        let expected: Vec<f32> = (0..40).map(|i| (f64::from(i * i) / 7.) as f32).collect();
        for (file, said) in [
            ("fieldtrip.mat", "order by their names"),
            ("eeglab.set", "data has channels in rows: it was transposed"),
            ("names.mat", "order by their names"),
            ("lines.mat", "order by their names"),
            ("samples.mat", "no names of channels"),
        ] {
            let found = recording(&folder.join(file), &m, false)?;
            let near = found.values.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-4);
            let remarks = found.remarks.join(" ");
            assert!(found.values.len() == 40 && near && remarks.contains(said), "{file}: {remarks} {:?}", found.values);
        }
        for (file, expected) in [
            ("fast.mat", "it has 1024 steps a second, but these weights take 500: resample it"),
            ("several.mat", "or several samples in one: take one out"),
            ("old.mat", "a MATLAB file of version 4: save it with -v7"),
            ("new.mat", "a MATLAB file of version 7.3 (HDF5): save it with -v7"),
        ] {
            let message = recording(&folder.join(file), &m, false).map(|r| r.values.len()).unwrap_err().to_string();
            assert!(message.contains(expected), "{message}");
        }
        Ok(())
    }
}
