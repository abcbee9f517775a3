//! What the neural masses of the simulation do, beside what the literature says.

use serde_json::json;
use zoo_training::{Block, Experiment, Figure, Findings, Picture, Result, Setup};

use crate::simulation::Portrait;

/// The experiment.
pub(super) const EXPERIMENT: Experiment = Experiment {
    name: "simulated-eeg",
    summary: "Jansen-Rit masses at rest and in spikes, beside the literature's figures",
    steps: "masses (500, at most 5000)",
    range: 10..=5000,
    data: "",
    figure: true,
    run,
};

/// Masses, and seconds of each.
const MASSES: u64 = 500;
const SECONDS: usize = 10;

fn run(setup: &Setup) -> Result<Option<Findings>> {
    let masses = setup.steps.unwrap_or(MASSES);
    let portrait = Portrait::draw(masses as usize, SECONDS, setup.seed.unwrap_or(42))?;
    let Portrait { peak_hz, alpha_share, resting_mv, correlation, height_mv, width_ms, spike, resting, .. } = &portrait;
    let line = |values: &[f64]| values.iter().enumerate().map(|(i, v)| (i as f64, *v)).collect();
    let picture = Picture {
        title: "potential of pyramidal cells, mV, over milliseconds: the mean spike, and a mass at rest".into(),
        labels: (0..spike.len()).map(|i| (2 * i as i64 - spike.len() as i64 + 1).to_string()).collect(),
        lines: vec![("spike, above its median".into(), line(spike)), ("at rest, about its mean".into(), line(resting))],
        ..Picture::default()
    };
    let list = |values: &[f64]| values.iter().map(|v| format!("{v:.1}")).collect::<Vec<_>>().join(", ");
    let row = |what: &str, found: String, known: &str| vec![what.to_string(), found, known.to_string()];
    let rows = vec![
        row("", "measured".into(), "literature"),
        row(
            "peak of the resting spectrum, Hz",
            format!("{peak_hz:.0}"),
            "8 to 13, alpha (Jansen and Rit 1995: near 10)",
        ),
        row("power from 8 to 13 Hz, %", format!("{:.0}", 100. * alpha_share), ""),
        row("resting potential, middle 99.9 %, mV", list(resting_mv), ""),
        row("correlation between masses", format!("{correlation:.3}"), "0: nothing couples them"),
        row("height of spikes, percentiles 10, 50, 90, mV", list(height_mv), ""),
        row(
            "width at half height, percentiles 10, 50, 90, ms",
            list(width_ms),
            "spikes last 20 to 70 from foot to foot, sharp waves to 200 (Kane et al. 2017)",
        ),
    ];
    Ok(Some(Findings {
        json: json!({ "masses": masses, "seconds": SECONDS, "portrait": portrait }),
        text: vec![
            Block::Lines(format!("{masses} Jansen-Rit masses at rest over {SECONDS} s, and as many spikes\n")),
            Block::Table(rows),
        ],
        figure: Some(Figure::Picture(picture)),
    }))
}
