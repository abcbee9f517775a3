//! The sources of a recording.

use std::path::Path;

use candle_core::{Device, Tensor};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use zoo_checkpoint::matlab::{self, Variable};
use zoo_training::{Error, Flag, Picture, Prediction, Request, Result};

use crate::data::add_covariance;
use crate::head::Head;
use crate::image::centre;
use crate::inverse::{Inverse, Method, Settings};
use crate::measure::{Reading, Rule, Truth};
use crate::recording::{Recording, recording};
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
    let found = values.iter().map(region).collect::<Result<Vec<_>>>()?;
    if found.is_empty() { Err(refuse("it names no region".into())) } else { Ok(found) }
}

/// The covariance of EEG of rest.
fn baseline(path: &Path, montage: &Montage, as_trained: bool) -> Result<Vec<f64>> {
    let (n, Recording { mut values, .. }) = (montage.electrodes.len(), recording(path, montage, as_trained)?);
    let steps = values.len() / n;
    if steps < n {
        let path = path.display();
        return Err(Error::Data(format!("{path}: {steps} time steps, expected at least {n}")));
    }
    centre(&mut values, n);
    let mut sum = vec![0.; n * n];
    add_covariance(&mut sum, &values, n);
    Ok(sum)
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

pub(crate) fn predict(imager: &DeepSif, head: Option<&Head>, request: &Request<ImageOptions>) -> Result<Prediction> {
    let input = request.input;
    let refuse = |what: String| Error::Data(format!("{}: {what}", input.display()));
    let montage = imager.montage();
    let as_trained = request.options.as_trained;
    let Recording { name, mut values, mut remarks } = recording(input, montage, as_trained)?;
    let (n, steps, m) = (montage.electrodes.len(), montage.steps, montage.regions.len());
    if let Some(wrong) = imager.misfit(values.len() / n, n) {
        return Err(refuse(format!("{name} is {wrong}")));
    }
    let eeg: Vec<Vec<f32>> = values.chunks_exact(n).map(<[f32]>::to_vec).collect();
    let image = imager.image(&eeg).map_err(|e| refuse(e.to_string().lines().next().unwrap_or_default().into()))?;
    prepare(&mut values, n);

    let strengths = image.strengths();
    let found = Rule::Otsu.regions(&strengths);
    let order = image.strongest();
    let course = |region: usize| image.activity.iter().skip(region).step_by(m).map(|v| f64::from(*v));
    let row = |(rank, &(region, strength)): (usize, &(usize, f64))| {
        let peak = course(region).enumerate().max_by(|a, b| a.1.abs().total_cmp(&b.1.abs())).unwrap_or((0, 0.));
        let position = montage.regions[region].map(|v| format!("{v:.1}"));
        let mut row = vec![(rank + 1).to_string(), region.to_string()];
        row.extend(position);
        row.extend([format!("{strength:.5}"), format!("{:.5}", peak.1), format!("{:.0}", STEP * peak.0 as f64)]);
        row.push(u8::from(found.contains(&region)).to_string());
        row
    };
    let table = order.iter().take(found.len().max(FEWEST)).enumerate().map(row).collect();
    remarks.push(format!(
        "{} of {m} regions lie above Otsu's threshold; strengths are roots of mean squares over the time.",
        found.len()
    ));
    remarks.push(
        "The network was trained on simulated spikes: what it says of seizures, sleep, artefacts or of any other head is outside \
         what it was judged on."
            .into(),
    );
    let mut summary = Map::from_iter([
        ("regions_found".to_string(), found.len().into()),
        ("strongest_region".to_string(), order[0].0.into()),
    ]);
    let truth = Some(Path::new(&request.options.truth)).filter(|path| !path.as_os_str().is_empty());
    if let Some(path) = truth {
        let baseline = match request.options.baseline.as_str() {
            "" => vec![],
            path => baseline(Path::new(path), montage, as_trained)?,
        };
        let with = Compared { activity: &image.activity, strengths: &strengths, eeg: &values, noise: &baseline };
        let (overlap, found) = compared(imager, head, path, &with)?;
        remarks.extend(found);
        summary.insert("overlap".into(), overlap);
    }
    let lines = SHOWN
        .into_iter()
        .zip(&order)
        .map(|(name, (region, _))| (name.into(), course(*region).enumerate().map(|(t, v)| (t as f64, v)).collect()));
    let picture = Picture {
        maps: view::maps(head, montage, &strengths, &values),
        title: "activity over milliseconds".into(),
        labels: (0..steps).map(|t| format!("{:.0}", STEP * t as f64)).collect(),
        lines: lines.collect(),
        ..Picture::default()
    };
    let array = |values: Vec<f32>, shape: (usize, usize)| Tensor::from_vec(values, shape, &Device::Cpu);
    let positions: Vec<f32> = montage.regions.iter().flatten().map(|v| *v as f32).collect();
    let arrays = vec![
        ("activity".to_string(), array(image.activity.clone(), (steps, m))?),
        ("strength".to_string(), array(strengths.iter().map(|s| *s as f32).collect(), (m, 1))?),
        ("regions_mm".to_string(), array(positions, (m, 3))?),
    ];
    let header = ["rank", "region", "x_mm", "y_mm", "z_mm", "strength", "peak", "peak_ms", "found"];
    let header = header.map(String::from).to_vec();
    Ok(Prediction { header, rows: table, summary, remarks, arrays, picture })
}
