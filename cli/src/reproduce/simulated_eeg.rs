//! What deepsif's neural masses do, beside what the literature says.

use std::process::ExitCode;

use serde_json::json;
use zoo_deepsif::simulation::Portrait;
use zoo_training::{Error, Picture};

use crate::args::ReproduceArgs;
use crate::output::{print, print_json, table};
use crate::plot::{check_name, draw_picture};

/// Masses, and seconds of each.
const MASSES: u64 = 500;
const SECONDS: usize = 10;

pub(super) fn run(args: &ReproduceArgs) -> anyhow::Result<ExitCode> {
    let masses = args.steps.unwrap_or(MASSES);
    if !(10..=5000).contains(&masses) {
        return Err(Error::Usage(format!("--steps {masses}: 10 to 5000 masses")).into());
    }
    args.plot.as_deref().map_or(Ok(()), check_name)?;
    let portrait = Portrait::draw(masses as usize, SECONDS, args.seed.unwrap_or(42))?;
    let Portrait { peak_hz, alpha_share, resting_mv, correlation, height_mv, width_ms, spike, resting, .. } = &portrait;
    if let Some(plot) = &args.plot {
        let line = |values: &[f64]| values.iter().enumerate().map(|(i, v)| (i as f64, *v)).collect();
        let picture = Picture {
            title: "potential of pyramidal cells, mV, over milliseconds: the mean spike, and a mass at rest".into(),
            labels: (0..spike.len()).map(|i| (2 * i as i64 - spike.len() as i64 + 1).to_string()).collect(),
            lines: vec![("spike, above its median", line(spike)), ("at rest, about its mean", line(resting))],
            ..Picture::default()
        };
        draw_picture(plot, &picture)?;
    }
    if args.json {
        print_json(&json!({ "masses": masses, "seconds": SECONDS, "portrait": portrait }));
        return Ok(ExitCode::SUCCESS);
    }
    let list = |values: &[f64]| values.iter().map(|v| format!("{v:.1}")).collect::<Vec<_>>().join(", ");
    let row = |what: &str, found: String, known: &str| vec![what.to_string(), found, known.to_string()];
    print(&format!(
        "{masses} Jansen-Rit masses at rest over {SECONDS} s, and as many spikes\n\n{}\n",
        table(&[
            row("", "measured".into(), "literature"),
            row(
                "peak of the resting spectrum, Hz",
                format!("{peak_hz:.0}"),
                "8 to 13, alpha (Jansen and Rit 1995: near 10)"
            ),
            row("power from 8 to 13 Hz, %", format!("{:.0}", 100. * alpha_share), ""),
            row("resting potential, middle 99.9 %, mV", list(resting_mv), ""),
            row("correlation between masses", format!("{correlation:.3}"), "0: nothing couples them"),
            row("height of spikes, percentiles 10, 50, 90, mV", list(height_mv), ""),
            row(
                "width at half height, percentiles 10, 50, 90, ms",
                list(width_ms),
                "spikes last 20 to 70 from foot to foot, sharp waves to 200 (Kane et al. 2017)"
            ),
        ])
    ));
    Ok(ExitCode::SUCCESS)
}
