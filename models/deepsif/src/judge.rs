//! A network beside classical methods, on the same samples.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{Device, Result, Tensor, bail};
use rayon::prelude::*;
use zoo_training::{Evaluation, Metrics, Split, Table};

use crate::data::Samples;
use crate::inverse::{Inverse, Method};
use crate::measure::{Found, Reading, Truth};
use crate::simulation::Sample;

/// Samples that are imaged at once.
const BATCH: usize = 16;
/// Validation samples that methods are tuned on, at most.
const TUNING: usize = 100;
/// λ of classical methods, tried one by one.
const LAMBDAS: [f64; 10] = [1e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1., 3., 10.];
/// The seed of the second head.
const PERTURBATION: u64 = 7;
/// Where samples are parted in the tables: decibels, and active regions.
const SNRS: [f64; 3] = [5., 10., 15.];
const EXTENTS: [usize; 4] = [1, 4, 9, 15];

/// EEG (b, t, n) to activity (b, t, sources).
type Network<'a> = dyn Fn(&Tensor) -> Result<Tensor> + 'a;

/// A classical method with what it was tuned to.
struct Tuned {
    method: Method,
    inverse: Inverse,
    lambda: f64,
    reading: Reading,
}

/// What one method says of one sample.
#[derive(Clone, Copy, Default)]
struct Row {
    found: Found,
    /// Precision and localization error at the network's recall.
    equal: [f64; 2],
}

impl Row {
    const NAMES: [&'static str; 8] = [
        "localization_error_mm",
        "peak_error_mm",
        "precision",
        "recall",
        "dispersion_mm",
        "correlation",
        "precision_at_recall",
        "error_at_recall_mm",
    ];

    fn values(&self) -> [f64; 8] {
        let Found { precision, recall, localization, peak, dispersion, correlation } = self.found;
        [localization, peak, precision, recall, dispersion, correlation, self.equal[0], self.equal[1]]
    }
}

/// Means of what method `i` says.
fn mean(judged: &[&Judged], i: usize) -> Metrics {
    let n = judged.len().max(1) as f64;
    let value = |k: usize| judged.iter().map(|j| j.rows[i].values()[k]).sum::<f64>() / n;
    Row::NAMES.into_iter().enumerate().map(|(k, name)| (name, value(k))).collect()
}

/// A sample with what all methods say of it, the network first.
struct Judged {
    snr: f64,
    active: usize,
    rows: Vec<Row>,
    /// Squared error of the network and of an image that is zero, summed over sources and averaged over time.
    errors: [f64; 2],
}

/// The network's activity for samples, each time steps × regions.
fn activity(network: &Network, samples: &Samples, of: &[Sample]) -> Result<Vec<Vec<f32>>> {
    let activity = network(&samples.tensors(of)?.eeg)?.to_device(&Device::Cpu)?;
    (0..of.len()).map(|i| activity.get(i)?.flatten_all()?.to_vec1()).collect()
}

fn batches(samples: &Samples, split: Split, n: usize) -> impl Iterator<Item = Result<Vec<Sample>>> + '_ {
    (0..n).step_by(BATCH).map(move |first| samples.samples(split, &(first..n.min(first + BATCH)).collect::<Vec<_>>()))
}

/// The λ and reading of each classical method, and the reading of the network, that localize best on validation samples.
fn tune(network: &Network, samples: &Samples) -> Result<(Vec<Tuned>, Reading)> {
    let head = samples.head();
    let regions = head.regions.len();
    let (mut all, mut own) = (vec![], vec![]);
    for batch in batches(samples, Split::Valid, samples.len(Split::Valid).min(TUNING)) {
        let batch = batch?;
        own.extend(activity(network, samples, &batch)?);
        all.extend(batch);
    }
    if all.is_empty() {
        bail!("data.valid is 0 in these weights: there is nothing to tune the methods on that they are compared with")
    }
    let error = |image: &(dyn Fn(usize) -> Result<Vec<f32>> + Sync)| -> Result<[f64; 2]> {
        let of = |i: usize| -> Result<[f64; 2]> {
            let (sources, truth) = (image(i)?, Truth::new(head, &all[i]));
            let read = |r: Reading| truth.judge(&sources, &r.strengths(&sources, regions, &all[i].eeg)).localization;
            Ok(Reading::ALL.map(read))
        };
        let each = (0..all.len()).into_par_iter().map(of).collect::<Result<Vec<_>>>()?;
        Ok([0, 1].map(|r| each.iter().map(|e| e[r]).sum()))
    };
    let better = |errors: [f64; 2]| if errors[1] < errors[0] { 1 } else { 0 };
    let reading = Reading::ALL[better(error(&|i| Ok(own[i].clone()))?)];
    let mut tuned = vec![];
    for method in Method::ALL {
        let mut best: Option<(f64, Tuned)> = None;
        for lambda in LAMBDAS {
            let inverse = Inverse::new(method, head, lambda);
            let errors = error(&|i| inverse.image(&all[i].eeg))?;
            let r = better(errors);
            if best.as_ref().is_none_or(|(least, _)| errors[r] < *least) {
                best = Some((errors[r], Tuned { method, inverse, lambda, reading: Reading::ALL[r] }));
            }
        }
        tuned.extend(best.map(|(_, tuned)| tuned));
    }
    Ok((tuned, reading))
}

fn judge(network: &Network, reading: Reading, tuned: &[Tuned], samples: &Samples, split: Split) -> Result<Vec<Judged>> {
    let head = samples.head();
    let regions = head.regions.len();
    let mut all = vec![];
    for batch in batches(samples, split, samples.len(split)) {
        let batch = batch?;
        let own = activity(network, samples, &batch)?;
        let one = |(sample, own): (&Sample, Vec<f32>)| -> Result<Judged> {
            let truth = Truth::new(head, sample);
            let strengths = reading.strengths(&own, regions, &sample.eeg);
            let found = truth.judge(&own, &strengths);
            let mut rows = vec![Row { found, equal: truth.at_recall(&strengths, found.recall) }];
            for Tuned { inverse, reading, .. } in tuned {
                let sources = inverse.image(&sample.eeg)?;
                let strengths = reading.strengths(&sources, regions, &sample.eeg);
                let equal = truth.at_recall(&strengths, found.recall);
                rows.push(Row { found: truth.judge(&sources, &strengths), equal });
            }
            let mut target = vec![0.; own.len()];
            sample.fill(regions, &mut target);
            let steps = (own.len() / regions).max(1) as f64;
            let square = |v: f32| f64::from(v).powi(2) / steps;
            let errors = own.iter().zip(&target).fold([0.; 2], |[e, z], (o, t)| [e + square(o - t), z + square(*t)]);
            let active = sample.sources.iter().map(|(p, _)| p.regions.len()).sum();
            Ok(Judged { snr: sample.snr, active, rows, errors })
        };
        all.extend(batch.par_iter().zip(own).map(one).collect::<Result<Vec<_>>>()?);
    }
    Ok(all)
}

/// The mean of differences, and how far the 95 % interval reaches to each side.
fn interval(differences: &[f64]) -> [f64; 2] {
    let n = differences.len().max(1) as f64;
    let mean = differences.iter().sum::<f64>() / n;
    let variance = differences.iter().map(|d| (d - mean).powi(2)).sum::<f64>() / (n - 1.).max(1.);
    [mean, 1.96 * (variance / n).sqrt()]
}

/// A network on the samples of a split beside minimum norm, sLORETA and eLORETA; then on EEG of another head than they know.
pub(crate) fn evaluate(network: &Network, samples: &Samples, split: Split) -> Result<Evaluation> {
    let (tuned, reading) = tune(network, samples)?;
    let names: Vec<&'static str> = std::iter::once("deepsif").chain(tuned.iter().map(|t| t.method.name())).collect();
    let judged = judge(network, reading, &tuned, samples, split)?;
    let of = |judged: &[Judged], i: usize| mean(&judged.iter().collect::<Vec<_>>(), i);
    let other = samples.over(Arc::new(samples.head().perturbed(PERTURBATION)));
    let perturbed = other.map(|other| judge(network, reading, &tuned, &other, split)).transpose()?;

    let mut metrics = of(&judged, 0);
    let n = judged.len().max(1) as f64;
    let [error, zero] = judged.iter().fold([0.; 2], |[e, z], j| [e + j.errors[0] / n, z + j.errors[1] / n]);
    metrics.push("squared_error", error);
    let baselines = (1..names.len()).map(|i| (names[i].into(), of(&judged, i))).collect();

    let mut remarks = vec![format!(
        "Squared error, summed over regions: {error:.4}; {zero:.4} for an image that is zero. The network is read {}.",
        reading.name()
    )];
    for (i, Tuned { method, lambda, reading, .. }) in tuned.iter().enumerate() {
        let difference = |value: fn(&Row) -> f64| {
            let each: Vec<f64> = judged.iter().map(|j| value(&j.rows[0]) - value(&j.rows[i + 1])).collect();
            let [mean, reach] = interval(&each);
            let verdict = if mean.abs() > reach { "" } else { " (no clear difference)" };
            format!("{mean:+.3} ± {reach:.3}{verdict}")
        };
        remarks.push(format!(
            "Beside {} (λ {lambda}, read {}), on the same samples: localization error {} mm, precision at equal recall {}, \
             localization error at equal recall {} mm.",
            method.name().replace('_', " "),
            reading.name(),
            difference(|r| r.found.localization),
            difference(|r| r.equal[0]),
            difference(|r| r.equal[1]),
        ));
    }
    if let Some(perturbed) = &perturbed {
        let error = |i: usize| format!("{} {:.1}", names[i].replace('_', " "), of(perturbed, i)[0].1);
        let all: Vec<String> = (0..names.len()).map(error).collect();
        remarks.push(format!(
            "Localization error on EEG of a head that differs from the one they know, mm: {}.",
            all.join(", ")
        ));
    }
    remarks.push(
        "Regions found are those above Otsu's threshold. At recall: the fewest strongest regions that reach the recall of the \
         network's own. λ and reading of each method are those that localize best on validation samples."
            .into(),
    );
    let mut tables = vec![
        parted("by_snr", "decibels", &names, &judged, |j| part(&SNRS, j.snr, " dB")),
        parted("by_extent", "active regions", &names, &judged, |j| {
            part(&EXTENTS.map(|e| e as f64), j.active as f64, "")
        }),
    ];
    tables.extend(perturbed.map(|judged| parted("another_head", "samples", &names, &judged, |_| (0, "all".into()))));
    Ok(Evaluation { samples: judged.len(), metrics, baselines, remarks, tables, ..Evaluation::default() })
}

/// The part between two of `edges` that a value falls into: its number and name.
fn part(edges: &[f64], value: f64, unit: &str) -> (usize, String) {
    let below = edges.iter().filter(|e| value >= **e).count();
    let name = match (below.checked_sub(1).map(|i| edges[i]), edges.get(below)) {
        _ if value.is_nan() => "unknown".into(),
        (Some(from), Some(to)) => format!("{from} to below {to}{unit}"),
        (Some(from), None) => format!("from {from}{unit}"),
        (None, to) => format!("below {}{unit}", to.copied().unwrap_or(f64::INFINITY)),
    };
    (below, name)
}

/// Means over the samples that belong together.
fn parted(
    name: &'static str,
    what: &str,
    names: &[&'static str],
    judged: &[Judged],
    key: impl Fn(&Judged) -> (usize, String),
) -> Table {
    let mut parts: BTreeMap<(usize, String), Vec<&Judged>> = BTreeMap::new();
    judged.iter().for_each(|j| parts.entry(key(j)).or_default().push(j));
    let mut rows = vec![];
    for ((_, key), judged) in &parts {
        for (i, method) in names.iter().enumerate() {
            let mut row = vec![key.clone(), method.to_string(), judged.len().to_string()];
            row.extend(mean(judged, i).iter().map(|(_, v)| format!("{v:.4}")));
            rows.push(row);
        }
    }
    let header = [what, "method", "samples"].into_iter().chain(Row::NAMES).map(String::from).collect();
    Table { name: name.into(), header, rows }
}
