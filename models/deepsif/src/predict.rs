//! The sources of a recording.

use std::path::Path;

use candle_core::{Device, Tensor};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use zoo_checkpoint::matlab::{self, Variable};
use zoo_training::{Error, Flag, Picture, Prediction, Request, Result};

use crate::data::add_covariance;
use crate::head::Head;
use crate::image::{Image, centre};
use crate::inverse::{Inverse, Method, Settings};
use crate::measure::{Reading, Rule, Truth};
use crate::recording::{Recording, Window};
use crate::simulation::{Patch, Sample};
use crate::{DeepSif, Montage, prepare, view};

/// λ of classical methods: noise has a ninth of the power (a signal-to-noise ratio of 3 in amplitude, the usual choice).
const LAMBDA: f64 = 1. / 9.;
/// The noise's share of the power for methods that learn variances.
const SHARE: f64 = 0.1;
/// Regions that the table has at least, and that the picture shows over time.
const FEWEST: usize = 10;
const SHOWN: [&str; 5] = ["strongest region", "second", "third", "fourth", "fifth"];
/// Milliseconds of a time step.
const STEP: f64 = 2.;

/// What an image is compared with.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ImageOptions {
    /// A MATLAB file of the regions that are known to be active; none if empty.
    pub truth: String,
    /// EEG of rest, whose covariance classical methods take for that of the noise; white noise if empty.
    pub baseline: String,
    /// Takes columns in the order that the weights were trained with, whatever they are called.
    pub as_trained: bool,
    /// Time steps a second of the input; what its file states if zero.
    pub rate: f64,
    /// The middle of the window to image, in seconds from the recording's beginning; all windows if empty.
    pub at: String,
    /// A file of events, around which windows are averaged; those in the recording's own file if empty.
    pub events: String,
    /// The name of the events to average.
    pub event: String,
    /// Two frequencies in Hz that a filter keeps what lies between, as in `1-40`; none if empty.
    pub band: String,
    /// A frequency in Hz that a filter takes out; none if zero.
    pub notch: f64,
}

/// The flags for it.
pub(crate) const FLAGS: &[Flag] = &[
    Flag::value(
        "truth",
        "PATH",
        "predict.truth",
        "Regions that are known to be active (a MATLAB file), to compare the image with",
    ),
    Flag::value(
        "baseline",
        "PATH",
        "predict.baseline",
        "EEG of rest in the same channels: its covariance is the noise of the classical methods beside the network (with --truth)",
    ),
    Flag::switch(
        "as-trained",
        "predict.as_trained",
        "Take channels in the order that the weights were trained with, whatever they are called",
    ),
    Flag::value("rate", "HZ", "predict.rate", "Time steps a second, where the file does not state them"),
    Flag::value("at", "SECONDS", "predict.at", "Image the window around this moment alone"),
    Flag::value(
        "events",
        "PATH",
        "predict.events",
        "Image the average of the windows around these events (seconds in a .csv, BIDS' .tsv, or .vmrk)",
    ),
    Flag::value(
        "event",
        "NAME",
        "predict.event",
        "Average around the events of this name (without --events, those in the recording's own file)",
    ),
    Flag::value("band", "LOW-HIGH", "predict.band", "Filter: keep what lies between two frequencies in Hz"),
    Flag::value("notch", "HZ", "predict.notch", "Filter: take out a frequency in Hz, such as that of the mains"),
];

/// Regions, from 0, that a file names by its variable `resection_region` or its only list.
fn regions(path: &Path, count: usize) -> Result<Vec<usize>> {
    let refuse = |what: String| Error::Data(format!("{}: {what}", path.display()));
    let mut variables = matlab::read(path)?;
    let chosen = match variables.remove("resection_region") {
        Some(v) => v,
        None if variables.len() == 1 => variables.into_values().next().unwrap_or(Variable::Other),
        None => return Err(refuse("no variable resection_region (regions, from 0)".into())),
    };
    let Variable::Numbers { values, .. } = chosen else { return Err(refuse("its regions are no numbers".into())) };
    let region = |v: &f64| {
        let fits = *v >= 0. && *v < count as f64 && v.fract() == 0.;
        fits.then_some(*v as usize).ok_or_else(|| refuse(format!("region {v}, expected 0 to {}", count - 1)))
    };
    // A mark for each region.
    if values.len() == count && values.iter().all(|v| *v == 0. || *v == 1.) && count > 2 {
        let marked: Vec<usize> = (0..count).filter(|i| values[*i] == 1.).collect();
        return if marked.is_empty() { Err(refuse("it names no region".into())) } else { Ok(marked) };
    }
    let found = values.iter().map(region).collect::<Result<Vec<_>>>()?;
    if found.iter().enumerate().any(|(i, region)| found[..i].contains(region)) {
        return Err(refuse("it names a region twice".into()));
    }
    if found.is_empty() { Err(refuse("it names no region".into())) } else { Ok(found) }
}

/// The covariance of EEG of rest, and what was done to it.
fn baseline(path: &Path, montage: &Montage, options: &ImageOptions) -> Result<(Vec<f64>, String)> {
    let n = montage.electrodes.len();
    let (mut values, remarks) = Recording::read(path, montage, options)?.whole(path, montage)?;
    let steps = values.len() / n;
    if steps < n {
        let path = path.display();
        return Err(Error::Data(format!("{path}: {steps} time steps, expected at least {n}")));
    }
    centre(&mut values, n);
    let mut sum = vec![0.; n * n];
    add_covariance(&mut sum, &values, n);
    Ok((sum, format!("Baseline, {}", remarks.join(" "))))
}

/// How the regions that a method finds overlap with known ones.
fn overlap(name: &str, truth: &Truth, sources: &[f32], strengths: &[f64]) -> (Value, String) {
    let found = truth.judge(sources, strengths, Rule::Otsu);
    let text = format!(
        "{name}: {:.0} % of what it finds lies there, {:.0} % of it is found; localization error {:.1} mm, strongest region {:.1} mm away",
        100. * found.precision,
        100. * found.recall,
        found.localization,
        found.peak
    );
    let value = json!({
        "method": name, "precision": found.precision, "recall": found.recall,
        "localization_error_mm": found.localization, "peak_error_mm": found.peak,
    });
    (value, text)
}

/// What is compared with known regions: an image by the network, and the recording for classical methods.
struct Compared<'a> {
    activity: &'a [f32],
    strengths: &'a [f64],
    eeg: &'a [f32],
    noise: &'a [f64],
}

/// How the network and, with a head, classical methods find the regions that the file at `path` names.
fn compared(imager: &DeepSif, head: Option<&Head>, path: &Path, with: &Compared) -> Result<(Value, Vec<String>)> {
    let montage = imager.montage();
    let m = montage.regions.len();
    let known = regions(path, m)?;
    let patch = Patch { centre: known[0], regions: known.iter().map(|r| (*r, 1.)).collect() };
    let sample = Sample { eeg: vec![], sources: vec![(patch, vec![0.; montage.steps])], snr: f64::NAN, stored: None };
    let truth = Truth::at(&montage.regions, &sample);
    let mut all = vec![overlap("deepsif", &truth, with.activity, with.strengths)];
    if let Some(head) = head {
        for method in Method::ALL {
            let lambda = if method.is_bayesian() { SHARE } else { LAMBDA };
            let settings = Settings { noise: with.noise, ..Settings::white(lambda) };
            let sources = Inverse::new(method, head, &settings)?.image(with.eeg)?;
            all.push(overlap(method.name(), &truth, &sources, &Reading::Rms.strengths(&sources, m, with.eeg)));
        }
    }
    let mut remarks = vec![format!("Compared with the {} regions of {}:", known.len(), path.display())];
    remarks.extend(all.iter().map(|(_, text)| text.replace('_', " ")));
    if head.is_none() {
        remarks.push("With the head's folder (data.path), classical methods stand beside it.".into());
    }
    Ok((all.into_iter().map(|(value, _)| value).collect(), remarks))
}

/// The rows of a window's strongest regions, those that are found and the first ten at least; and how many are found.
fn strongest(image: &Image, montage: &Montage, strengths: &[f64], order: &[(usize, f64)]) -> (Vec<Vec<String>>, usize) {
    let found = Rule::Otsu.regions(strengths);
    let row = |(rank, &(region, strength)): (usize, &(usize, f64))| {
        let peak = course(image, region).enumerate().max_by(|a, b| a.1.abs().total_cmp(&b.1.abs())).unwrap_or((0, 0.));
        let position = montage.regions[region].map(|v| format!("{v:.1}"));
        let mut row = vec![(rank + 1).to_string(), region.to_string()];
        row.extend(position);
        row.extend([format!("{strength:.5}"), format!("{:.5}", peak.1), format!("{:.0}", STEP * peak.0 as f64)]);
        row.push(u8::from(found.contains(&region)).to_string());
        row
    };
    (order.iter().take(found.len().max(FEWEST)).enumerate().map(row).collect(), found.len())
}

fn course(image: &Image, region: usize) -> impl Iterator<Item = f64> {
    image.activity.iter().skip(region).step_by(image.regions).map(|v| f64::from(*v))
}

fn array(values: Vec<f32>, shape: (usize, usize)) -> Result<Tensor> {
    Ok(Tensor::from_vec(values, shape, &Device::Cpu)?)
}

/// Where the regions are.
fn centres(montage: &Montage) -> Result<Tensor> {
    array(montage.regions.iter().flatten().map(|v| *v as f32).collect(), (montage.regions.len(), 3))
}

pub(crate) fn predict(imager: &DeepSif, head: Option<&Head>, request: &Request<ImageOptions>) -> Result<Prediction> {
    let (input, options, montage) = (request.input, &request.options, imager.montage());
    if options.truth.is_empty() && !options.baseline.is_empty() {
        return Err(Error::Usage(
            "predict.baseline: it is the noise of the methods that predict.truth compares with".into(),
        ));
    }
    let mut recording = Recording::read(input, montage, options)?;
    let mut windows = recording.windows(input, montage, options)?;
    let mut remarks = std::mem::take(&mut recording.remarks);
    drop(recording);
    remarks.push(
        "The network was trained on simulated spikes: what it says of seizures, sleep, artefacts or of any other head is outside \
         what it was judged on."
            .into(),
    );
    match &mut windows[..] {
        [window] => one(imager, head, request, window, remarks),
        _ if !options.truth.is_empty() => Err(Error::Usage(format!(
            "predict.truth: {} has {} windows: choose one by predict.at or predict.event",
            input.display(),
            windows.len()
        ))),
        _ => many(imager, head, request, windows, remarks),
    }
}

/// The image of the window, with its EEG made ready.
fn image(imager: &DeepSif, input: &Path, values: &mut [f32]) -> Result<Image> {
    let n = imager.montage().electrodes.len();
    let eeg: Vec<Vec<f32>> = values.chunks_exact(n).map(<[f32]>::to_vec).collect();
    let refuse = |e: candle_core::Error| {
        Error::Data(format!("{}: {}", input.display(), e.to_string().lines().next().unwrap_or_default()))
    };
    let image = imager.image(&eeg).map_err(refuse)?;
    prepare(values, n);
    Ok(image)
}

const HEADER: [&str; 9] = ["rank", "region", "x_mm", "y_mm", "z_mm", "strength", "peak", "peak_ms", "found"];

fn one(
    imager: &DeepSif,
    head: Option<&Head>,
    request: &Request<ImageOptions>,
    window: &mut Window,
    mut remarks: Vec<String>,
) -> Result<Prediction> {
    let (montage, options) = (imager.montage(), &request.options);
    let (steps, m) = (montage.steps, montage.regions.len());
    let image = image(imager, request.input, &mut window.values)?;
    let (strengths, order) = (image.strengths(), image.strongest());
    let (rows, found) = strongest(&image, montage, &strengths, &order);
    remarks.push(format!(
        "{found} of {m} regions lie above Otsu's threshold; strengths are roots of mean squares over the time."
    ));
    let mut summary = Map::from_iter([
        ("regions_found".to_string(), found.into()),
        ("strongest_region".to_string(), order[0].0.into()),
    ]);
    summary.extend(window.seconds.filter(|_| !options.at.is_empty()).map(|s| ("from_s".to_string(), s.into())));
    let truth = Some(Path::new(&options.truth)).filter(|path| !path.as_os_str().is_empty());
    if let Some(path) = truth {
        let baseline = match options.baseline.as_str() {
            "" => vec![],
            path => {
                let (covariance, said) = baseline(Path::new(path), montage, options)?;
                remarks.push(said);
                covariance
            }
        };
        let with = Compared { activity: &image.activity, strengths: &strengths, eeg: &window.values, noise: &baseline };
        let (overlap, found) = compared(imager, head, path, &with)?;
        remarks.extend(found);
        summary.insert("overlap".into(), overlap);
    }
    let lines = SHOWN.into_iter().zip(&order).map(|(name, (region, _))| {
        (name.into(), course(&image, *region).enumerate().map(|(t, v)| (t as f64, v)).collect())
    });
    let picture = Picture {
        title: "activity over milliseconds".into(),
        labels: (0..steps).map(|t| format!("{:.0}", STEP * t as f64)).collect(),
        lines: lines.collect(),
        maps: view::maps(head, montage, &strengths, &window.values),
        ..Picture::default()
    };
    let arrays = vec![
        ("strength".to_string(), array(strengths.iter().map(|s| *s as f32).collect(), (m, 1))?),
        ("activity".to_string(), array(image.activity, (steps, m))?),
        ("regions_mm".to_string(), centres(montage)?),
    ];
    let header = HEADER.map(String::from).to_vec();
    Ok(Prediction { header, rows, summary, remarks, arrays, picture })
}

/// Windows one after the other: the strongest regions of each, and no activity over time, which would take gigabytes.
fn many(
    imager: &DeepSif,
    head: Option<&Head>,
    request: &Request<ImageOptions>,
    windows: Vec<Window>,
    mut remarks: Vec<String>,
) -> Result<Prediction> {
    let montage = imager.montage();
    let m = montage.regions.len();
    let (mut rows, mut listed, mut all, mut mean) = (vec![], vec![], vec![], vec![0.; m]);
    let (mut starts, mut strongest_eeg): (Vec<f32>, (f32, Vec<f32>)) = (vec![], (0., vec![]));
    let count = windows.len();
    for mut window in windows {
        let mut centred = window.values.clone();
        centre(&mut centred, montage.electrodes.len());
        let loudest = centred.iter().fold(0f32, |most, v| most.max(v.abs()));
        let image = image(imager, request.input, &mut window.values)?;
        let (strengths, order) = (image.strengths(), image.strongest());
        let (of_window, found) = strongest(&image, montage, &strengths, &order);
        let from = window.seconds.unwrap_or_default();
        rows.extend(of_window.into_iter().map(|row| [vec![format!("{from:.3}")], row].concat()));
        listed.push(json!({ "from_s": from, "regions_found": found, "strongest_region": order[0].0 }));
        mean.iter_mut().zip(&strengths).for_each(|(sum, s)| *sum += s / count as f64);
        all.extend(strengths.iter().map(|s| *s as f32));
        starts.push(from as f32);
        if loudest > strongest_eeg.0 {
            strongest_eeg = (loudest, window.values);
        }
    }
    remarks.push(
        "Strengths are roots of mean squares over a window; a region is found above its window's Otsu threshold."
            .into(),
    );
    let mut order: Vec<usize> = (0..m).collect();
    order.sort_by(|a, b| mean[*b].total_cmp(&mean[*a]));
    let course = |region: usize| all.iter().skip(region).step_by(m).enumerate().map(|(w, v)| (w as f64, f64::from(*v)));
    let picture = Picture {
        title: "strength by window, over seconds; maps of the mean".into(),
        labels: starts.iter().map(|s| format!("{s:.0}")).collect(),
        lines: SHOWN.into_iter().zip(&order).map(|(name, region)| (name.into(), course(*region).collect())).collect(),
        maps: view::maps(head, montage, &mean, &strongest_eeg.1),
        ..Picture::default()
    };
    let arrays = vec![
        ("strength".to_string(), array(all, (count, m))?),
        ("from_s".to_string(), array(starts, (count, 1))?),
        ("regions_mm".to_string(), centres(montage)?),
    ];
    let summary =
        Map::from_iter([("strongest_region".to_string(), order[0].into()), ("windows".to_string(), listed.into())]);
    let header = std::iter::once("from_s").chain(HEADER).map(String::from).collect();
    Ok(Prediction { header, rows, summary, remarks, arrays, picture })
}
