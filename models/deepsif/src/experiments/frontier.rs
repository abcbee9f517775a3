//! What minutes of training buy: the error of networks that trained for so long, beside that of methods that do not train.

use candle_core::Device;
use serde::Serialize;
use zoo_layers::Mode;
use zoo_training::config::{ConfigOf, Overrides, resolve};
use zoo_training::{Block, Experiment, Figure, Findings, Picture, Recipe, Result, Setup, Silent, Split, Task, Trainer};

use crate::judge::{Network, Tuning, judge, mean};
use crate::task::DeepSifTask;

/// The experiment.
pub(super) const EXPERIMENT: Experiment = Experiment {
    name: "eeg-frontier",
    summary: "localization error over minutes of training, beside classical methods, which take none",
    steps: "steps of the longest training of the graph network, three times as many of the small transformer (1000)",
    range: 9..=u64::MAX,
    data: "a head, as deepsif's --data",
    figure: true,
    run,
};

/// Presets that are trained, and their steps for one of the longest training.
const NETWORKS: [(&str, u64); 2] = [("graph", 1), ("small", 3)];
/// Parts of the longest training that others take: each is a training of its own, with a schedule of that length.
const PARTS: [u64; 3] = [9, 3, 1];
const STEPS: u64 = 1000;
/// Samples that tune and judge, at most.
const TUNING: u64 = 100;
const JUDGED: u64 = 300;

/// A method, or a network after some minutes of training.
#[derive(Debug, Serialize)]
struct Point {
    method: &'static str,
    steps: u64,
    minutes: f64,
    localization_error_mm: f64,
    peak_error_mm: f64,
    precision: f64,
    recall: f64,
    f1: f64,
}

impl Point {
    fn new(method: &'static str, steps: u64, seconds: f64, metrics: &zoo_training::Metrics) -> Self {
        let [precision, recall] = ["precision", "recall"].map(|name| metrics.value(name));
        Self {
            method,
            steps,
            minutes: seconds / 60.,
            localization_error_mm: metrics.value("localization_error_mm"),
            peak_error_mm: metrics.value("peak_error_mm"),
            precision,
            recall,
            f1: metrics.value("f1"),
        }
    }
}

fn config(preset: &'static str, steps: u64, longest: u64, setup: &Setup) -> Result<ConfigOf<DeepSifTask>> {
    let (valid, test) = (TUNING.min(longest), JUDGED.min(longest));
    let set = [
        format!("train.steps={steps}"),
        format!("train.seed={}", setup.seed.unwrap_or(42)),
        format!("train.warmup_steps={}", (steps / 30).clamp(1, 100)),
        "train.eval_every=1000000000".into(),
        format!("data.path={}", serde_json::json!(setup.data)),
        format!("data.valid={valid}"),
        format!("data.test={test}"),
    ];
    resolve::<DeepSifTask>(&Overrides { preset: Some(preset), set: &set, ..Overrides::default() })
}

fn run(setup: &Setup) -> Result<Option<Findings>> {
    let (longest, device) = (setup.steps.unwrap_or(STEPS), Device::Cpu);
    let open = |config: &ConfigOf<DeepSifTask>| {
        DeepSifTask::open(&config.model, &config.data, config.train.seed, None, &device)
    };
    // The samples that tune and judge are the same for all.
    let task = open(&config(NETWORKS[0].0, longest, longest, setup)?)?;
    let samples = task.opened();
    let tuning = Tuning::of(samples)?;
    let mut methods = Some(tuning.methods(samples)?);
    let mut points = vec![];
    for (preset, factor) in NETWORKS {
        for part in PARTS {
            let steps = (factor * longest / part).max(1);
            let config = config(preset, steps, longest, setup)?;
            let task = open(&config)?;
            let mut trainer = Trainer::new(&task, &config, &device)?;
            let seconds = trainer.train(&mut Silent, &|| !(setup.going)())?.seconds;
            if !(setup.going)() {
                return Ok(None);
            }
            let model = DeepSifTask::build(&config.model, trainer.evaluated().eval_builder())?;
            let network: &Network = &|eeg| model.forward(eeg, Mode::Eval);
            let classical = methods.take().unwrap_or_default();
            let judged =
                judge(network, tuning.reader(network, samples)?, &classical, samples, Split::Test, usize::MAX)?;
            let judged: Vec<_> = judged.iter().collect();
            // Classical methods are judged once, with the first network.
            for (i, tuned) in classical.iter().enumerate() {
                points.push(Point::new(tuned.method.name(), 0, 0., &mean(&judged, i + 1)));
            }
            let point = Point::new(preset, steps, seconds, &mean(&judged, 0));
            let error = point.localization_error_mm;
            (setup.progress)(&format!("{preset}: {steps} steps in {:.1} min, error {error:.2} mm", point.minutes));
            points.push(point);
        }
    }
    Ok(Some(Findings {
        json: serde_json::json!({ "samples": samples.len(Split::Test), "points": points }),
        text: vec![
            Block::Lines(format!(
                "means over {} unseen samples; settings, readings and thresholds of all are those that localize best on {} others\n",
                samples.len(Split::Test),
                samples.len(Split::Valid)
            )),
            Block::Table(rows(&points)),
        ],
        figure: Some(Figure::Picture(picture(&points))),
    }))
}

fn rows(points: &[Point]) -> Vec<Vec<String>> {
    let header = [
        "method",
        "steps",
        "minutes",
        "localization error mm",
        "strongest region off by mm",
        "precision",
        "recall",
        "F1",
    ];
    let row = |p: &Point| {
        let trained =
            if p.steps > 0 { [p.steps.to_string(), format!("{:.1}", p.minutes)] } else { ["".into(), "0".into()] };
        let errors = [p.localization_error_mm, p.peak_error_mm].map(|v| format!("{v:.2}"));
        let shares = [p.precision, p.recall, p.f1].map(|v| format!("{v:.2}"));
        [p.method.replace('_', " ")].into_iter().chain(trained).chain(errors).chain(shares).collect()
    };
    std::iter::once(header.map(String::from).to_vec()).chain(points.iter().map(row)).collect()
}

/// A line for each network; methods that do not train are level from zero on.
fn picture(points: &[Point]) -> Picture {
    let last = points.iter().map(|p| p.minutes).fold(1., f64::max).ceil();
    let names = NETWORKS.map(|n| n.0);
    let mut lines = vec![];
    for network in names {
        let of = points.iter().filter(|p| p.method == network).map(|p| (p.minutes, p.localization_error_mm));
        lines.push((network.into(), of.collect()));
    }
    for p in points.iter().filter(|p| !names.contains(&p.method)) {
        let name = p.method.replace('_', " ").into();
        lines.push((name, vec![(0., p.localization_error_mm), (last, p.localization_error_mm)]));
    }
    Picture {
        title: "localization error, mm, over minutes of training".into(),
        labels: (0..=last as u64).map(|m| m.to_string()).collect(),
        lines,
        ..Picture::default()
    }
}
