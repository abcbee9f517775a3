//! A network beside classical methods, on the same samples.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{Device, Result, Tensor, bail};
use rayon::prelude::*;
use zoo_training::{Evaluation, Metrics, Split, Table, spread};

use crate::data::Samples;
use crate::head::Head;
use crate::inverse::{Ground, Inverse, Method, Settings};
use crate::measure::{Found, Reading, Rule, Truth};
use crate::simulation::Sample;

/// Samples that are imaged at once.
const BATCH: usize = 16;
/// Validation samples that methods are tuned on, at most.
const TUNING: usize = 100;
/// λ of classical methods, tried one by one; of those that learn variances.
const LAMBDAS: [f64; 10] = [1e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1., 3., 10.];
const SHARES: [f64; 6] = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5];
/// The frequencies up to which EEG is looked at, tried one by one.
const BANDS: [f64; 3] = [f64::INFINITY, 20., 7.5];
/// Depth weighting, where there is one.
const DEPTH: f64 = 0.8;
/// The seed of the second head.
const PERTURBATION: u64 = 7;
/// Samples of another head and of another simulator, at most.
const OTHERS: usize = 300;
/// Where samples are parted in the tables: decibels, and active regions.
const SNRS: [f64; 3] = [5., 10., 15.];
const EXTENTS: [usize; 4] = [1, 4, 9, 15];

/// EEG (b, t, n) to activity (b, t, sources).
pub(crate) type Network<'a> = dyn Fn(&Tensor) -> Result<Tensor> + 'a;

/// How strengths are read out of sources, and regions out of strengths.
#[derive(Clone, Copy)]
pub(crate) struct Reader {
    reading: Reading,
    rule: Rule,
}

impl Reader {
    fn name(self) -> String {
        format!("read {}, regions {}", self.reading.name(), self.rule.name())
    }
}

/// A classical method with what it was tuned to.
pub(crate) struct Tuned {
    pub(crate) method: Method,
    inverse: Inverse,
    settings: String,
    reader: Reader,
}

/// What one method says of one sample.
#[derive(Clone, Copy, Default)]
struct Row {
    found: Found,
    /// Precision and localization error at the network's recall.
    equal: [f64; 2],
}

impl Row {
    const NAMES: [&'static str; 9] = [
        "localization_error_mm",
        "peak_error_mm",
        "precision",
        "recall",
        "f1",
        "dispersion_mm",
        "correlation",
        "precision_at_recall",
        "error_at_recall_mm",
    ];

    fn values(&self) -> [f64; 9] {
        let Found { precision, recall, localization, peak, dispersion, correlation } = self.found;
        let f1 = 2. * precision * recall / (precision + recall).max(f64::MIN_POSITIVE);
        [localization, peak, precision, recall, f1, dispersion, correlation, self.equal[0], self.equal[1]]
    }
}

/// Means of what method `i` says, the network's first.
pub(crate) fn mean(judged: &[&Judged], i: usize) -> Metrics {
    let n = judged.len().max(1) as f64;
    let value = |k: usize| judged.iter().map(|j| j.rows[i].values()[k]).sum::<f64>() / n;
    Row::NAMES.into_iter().enumerate().map(|(k, name)| (name, value(k))).collect()
}

/// A sample with what all methods say of it, the network first.
pub(crate) struct Judged {
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

/// The strengths of a sample, by each reading.
type Strengths<'a> = dyn Fn(usize) -> Result<[Vec<f64>; 2]> + Sync + 'a;

/// The reader whose regions lie closest to the true ones, and the sum of its errors.
fn best_reader(truths: &[Truth], strengths: &Strengths) -> Result<(f64, Reader)> {
    let readers = || Reading::ALL.into_iter().enumerate().flat_map(|(i, r)| Rule::all().map(move |rule| (i, r, rule)));
    let errors = |i: usize| -> Result<Vec<f64>> {
        let strengths = strengths(i)?;
        Ok(readers().map(|(k, _, rule)| truths[i].error(&strengths[k], rule)).collect())
    };
    let each = (0..truths.len()).into_par_iter().map(errors).collect::<Result<Vec<_>>>()?;
    let sums = readers().enumerate().map(|(k, (_, reading, rule))| {
        let sum: f64 = each.iter().map(|e| e[k]).sum();
        (sum, Reader { reading, rule })
    });
    let otsu = Reader { reading: Reading::Rms, rule: Rule::Otsu };
    Ok(sums.fold((f64::INFINITY, otsu), |best, next| if next.0 < best.0 { next } else { best }))
}

/// A method with settings that were tried, and the sum of its errors.
struct Attempt {
    error: f64,
    settings: Settings<'static>,
    tuned: Tuned,
}

/// What methods are tuned on: the first validation samples of a split.
pub(crate) struct Tuning {
    samples: Vec<Sample>,
}

impl Tuning {
    pub(crate) fn of(samples: &Samples) -> Result<Self> {
        let n = samples.len(Split::Valid).min(TUNING);
        if n == 0 {
            bail!(
                "data.valid is 0 in these weights: there is nothing to tune the methods on that they are compared with (zoo eval --set data.valid=100)"
            )
        }
        let all = batches(samples, Split::Valid, n).collect::<Result<Vec<_>>>()?;
        Ok(Self { samples: all.concat() })
    }

    /// How the network is read best.
    pub(crate) fn reader(&self, network: &Network, samples: &Samples) -> Result<Reader> {
        let (head, all) = (samples.head(), &self.samples);
        let mut own = vec![];
        for batch in all.chunks(BATCH) {
            own.extend(activity(network, samples, batch)?);
        }
        let read = |i: usize| Ok(Reading::ALL.map(|r| r.strengths(&own[i], head.regions.len(), &all[i].eeg)));
        Ok(best_reader(&self.truths(head), &read)?.1)
    }

    fn truths<'a>(&'a self, head: &'a Head) -> Vec<Truth<'a>> {
        self.samples.iter().map(|sample| Truth::new(head, sample)).collect()
    }

    /// The settings of each classical method, and the reader of each, that localize best.
    pub(crate) fn methods(&self, samples: &Samples) -> Result<Vec<Tuned>> {
        let (cortex, baseline) = (samples.head().cortex(), samples.baseline()?);
        let truths = self.truths(samples.head());
        let white = Ground::new(&cortex, &[]);
        let known = (!baseline.is_empty()).then(|| Ground::new(&cortex, &baseline));
        let mut tuned = vec![];
        for method in Method::ALL {
            let lambdas: &[f64] = if method.is_bayesian() { &SHARES } else { &LAMBDAS };
            // All λ in these bands, with the rest of the settings as they are; a linear map is the same in all bands.
            let best = |before: Option<Attempt>, ground: &Ground, base: Settings<'static>, bands: &[f64]| {
                let mut best: Option<Attempt> = before;
                for &lambda in lambdas {
                    let inverse = Inverse::over(method, ground, &Settings { lambda, ..base });
                    for &band in bands {
                        let (settings, inverse) = (Settings { lambda, band, ..base }, inverse.clone().within(band));
                        let (error, reader) = best_reader(&truths, &|i| inverse.strengths(&self.samples[i].eeg))?;
                        if best.as_ref().is_none_or(|best| error < best.error) {
                            let text = described(&settings, !std::ptr::eq(ground, &white));
                            let tuned = Tuned { method, inverse, settings: text, reader };
                            best = Some(Attempt { error, settings, tuned });
                        }
                    }
                }
                Ok::<_, candle_core::Error>(best)
            };
            let mut found = best(None, &white, Settings::white(0.), &BANDS)?;
            // What follows is tried in the best band alone: all of it together would take an hour.
            if let (true, Some(Attempt { settings, .. })) = (method.has_depth(), &found) {
                let settings = Settings { depth: DEPTH, ..*settings };
                found = best(found, &white, settings, &[settings.band])?;
            }
            if let (Some(known), Some(Attempt { settings, .. })) = (&known, &found) {
                let settings = *settings;
                found = best(found, known, settings, &[settings.band])?;
            }
            tuned.extend(found.map(|attempt| attempt.tuned));
        }
        Ok(tuned)
    }
}

fn described(settings: &Settings, whitened: bool) -> String {
    let mut text = format!("λ {}", settings.lambda);
    if settings.band.is_finite() {
        text.push_str(&format!(", up to {} Hz", settings.band));
    }
    if settings.depth > 0. {
        text.push_str(&format!(", depth {}", settings.depth));
    }
    if whitened {
        text.push_str(", noise as in a baseline");
    }
    text
}

/// The first `n` samples of a split by all methods.
pub(crate) fn judge(
    network: &Network,
    reader: Reader,
    tuned: &[Tuned],
    samples: &Samples,
    split: Split,
    n: usize,
) -> Result<Vec<Judged>> {
    let head = samples.head();
    let regions = head.regions.len();
    let mut all = vec![];
    for batch in batches(samples, split, samples.len(split).min(n)) {
        let batch = batch?;
        let own = activity(network, samples, &batch)?;
        let one = |(sample, own): (&Sample, Vec<f32>)| -> Result<Judged> {
            let truth = Truth::new(head, sample);
            let strengths = reader.reading.strengths(&own, regions, &sample.eeg);
            let found = truth.judge(&own, &strengths, reader.rule);
            let mut rows = vec![Row { found, equal: truth.at_recall(&strengths, found.recall) }];
            for Tuned { inverse, reader, .. } in tuned {
                let sources = inverse.image(&sample.eeg)?;
                let strengths = reader.reading.strengths(&sources, regions, &sample.eeg);
                let equal = truth.at_recall(&strengths, found.recall);
                rows.push(Row { found: truth.judge(&sources, &strengths, reader.rule), equal });
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
    match differences {
        [] => [f64::NAN, f64::INFINITY],
        [one] => [*one, f64::INFINITY],
        all => {
            let [low, high] = spread::interval(all);
            [0.5 * (low + high), 0.5 * (high - low)]
        }
    }
}

/// A network on the samples of a split beside classical methods; then on EEG of another head than they know, and of another simulator.
pub(crate) fn evaluate(network: &Network, samples: &Samples, split: Split) -> Result<Evaluation> {
    let tuning = Tuning::of(samples)?;
    let (tuned, reader) = (tuning.methods(samples)?, tuning.reader(network, samples)?);
    let names: Vec<&'static str> = std::iter::once("deepsif").chain(tuned.iter().map(|t| t.method.name())).collect();
    let judged = judge(network, reader, &tuned, samples, split, usize::MAX)?;
    let of = |judged: &[Judged], i: usize| mean(&judged.iter().collect::<Vec<_>>(), i);
    let head = samples.over(Arc::new(samples.head().perturbed(PERTURBATION)));
    let others = [("another_head", head), ("another_simulator", samples.by_another())];
    let mut elsewhere = vec![];
    for (name, samples) in others {
        if let Some(samples) = samples {
            elsewhere.push((name, judge(network, reader, &tuned, &samples, split, OTHERS)?));
        }
    }

    let mut metrics = of(&judged, 0);
    let n = judged.len().max(1) as f64;
    let [error, zero] = judged.iter().fold([0.; 2], |[e, z], j| [e + j.errors[0] / n, z + j.errors[1] / n]);
    metrics.push("squared_error", error);
    let baselines = (1..names.len()).map(|i| (names[i].into(), of(&judged, i))).collect();

    let mut remarks = vec![format!(
        "Squared error, summed over regions: {error:.4}; {zero:.4} for an image that is zero. The network: {}.",
        reader.name()
    )];
    for (i, Tuned { method, settings, reader, .. }) in tuned.iter().enumerate() {
        let difference = |value: fn(&Row) -> f64| {
            let each: Vec<f64> = judged.iter().map(|j| value(&j.rows[0]) - value(&j.rows[i + 1])).collect();
            let [mean, reach] = interval(&each);
            let verdict = if mean.abs() > reach { "" } else { " (no clear difference)" };
            format!("{mean:+.3} ± {reach:.3}{verdict}")
        };
        remarks.push(format!(
            "Beside {} ({settings}, {}), on the same samples, ± 95 %: localization error {} mm, strongest region {} mm, precision at \
             equal recall {}, localization error at equal recall {} mm.",
            method.name().replace('_', " "),
            reader.name(),
            difference(|r| r.found.localization),
            difference(|r| r.found.peak),
            difference(|r| r.equal[0]),
            difference(|r| r.equal[1]),
        ));
    }
    for (name, judged) in &elsewhere {
        let error = |i: usize| format!("{} {:.1}", names[i].replace('_', " "), of(judged, i)[0].1);
        let all: Vec<String> = (0..names.len()).map(error).collect();
        let what = match *name {
            "another_head" => {
                "a head that differs from the one that the methods know (as heads in training may, by another seed)"
            }
            _ => "another simulator (triangles and half sines over 1/f noise)",
        };
        remarks.push(format!("Localization error on {} samples of {what}, mm: {}.", judged.len(), all.join(", ")));
    }
    remarks.push(
        "At recall: the fewest strongest regions that reach the recall of the network's own. All settings, readings and thresholds \
         are those that localize best on validation samples."
            .into(),
    );
    let mut tables = vec![
        parted("by_snr", "decibels", &names, &judged, |j| part(&SNRS, j.snr, " dB")),
        parted("by_extent", "active regions", &names, &judged, |j| {
            part(&EXTENTS.map(|e| e as f64), j.active as f64, "")
        }),
    ];
    tables
        .extend(elsewhere.iter().map(|(name, judged)| parted(name, "samples", &names, judged, |_| (0, "all".into()))));
    tables.push(by_mne_names(&names, &judged));
    Ok(Evaluation { samples: judged.len(), metrics, baselines, remarks, tables, ..Evaluation::default() })
}

/// The scores that MNE has too, by its names.
fn by_mne_names(names: &[&'static str], judged: &[Judged]) -> Table {
    const NAMES: [(&str, &str); 4] = [
        ("region_localization_error_mm", "localization_error_mm"),
        ("precision_score", "precision"),
        ("recall_score", "recall"),
        ("f1_score", "f1"),
    ];
    let all: Vec<&Judged> = judged.iter().collect();
    let row = |(i, method): (usize, &&str)| {
        let metrics = mean(&all, i);
        let values = NAMES.iter().map(|(_, ours)| format!("{:.4}", metrics.value(ours)));
        std::iter::once(method.to_string()).chain(values).collect()
    };
    let header = std::iter::once("method").chain(NAMES.map(|n| n.0)).map(String::from).collect();
    Table { name: "by_mne_names".into(), header, rows: names.iter().enumerate().map(row).collect() }
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
