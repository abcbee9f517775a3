//! Policies in a market with a signal that is known, and in one without any.

use std::process::ExitCode;
use std::sync::atomic::Ordering;

use serde_json::json;
use zoo_trading_transformer::trading::signal::{Monitored, Outcome, Settings, run as train};
use zoo_training::Error;

use super::interrupted;
use crate::args::ReproduceArgs;
use crate::output::{note, print, print_json, table};
use crate::spread::{interval, mean as mean_of};
use crate::train::stop_flag;

pub(super) fn run(args: &ReproduceArgs) -> anyhow::Result<ExitCode> {
    if args.plot.is_some() {
        return Err(Error::Usage("--plot: planted-signal has no picture".into()).into());
    }
    let settings = Settings {
        steps: args.steps.unwrap_or(Settings::default().steps),
        first_seed: args.seed.unwrap_or(Settings::default().first_seed),
        ..Settings::default()
    };
    if settings.steps < 10 {
        return Err(Error::Usage(format!("--steps {}: at least 10", settings.steps)).into());
    }
    let stop = stop_flag()?;
    let going = || !stop.load(Ordering::Relaxed);
    let folder = tempfile::tempdir()?;
    let mut found = [vec![], vec![]];
    for (outcomes, coefficient) in found.iter_mut().zip([settings.coefficient, 0.]) {
        for i in 0..settings.seeds {
            let started = std::time::Instant::now();
            let seed = settings.first_seed.wrapping_add(i);
            let kept = folder.path().join(format!("{coefficient}-{seed}"));
            let Some(outcome) = train(settings, coefficient, seed, &kept, &going)? else { return Ok(interrupted()) };
            let Outcome { sharpe, oracle_sharpe, .. } = outcome;
            note(&format!(
                "coefficient {coefficient}, seed {seed}: Sharpe ratio {sharpe:.2}, oracle {oracle_sharpe:.2}, in {:.0} s",
                started.elapsed().as_secs_f64()
            ));
            outcomes.push(outcome);
        }
    }
    let [planted, walk] = &found;
    let interval = interval(&walk.iter().map(|o| o.net_return).collect::<Vec<_>>());
    let conclusions = conclusions(planted, interval);
    if args.json {
        print_json(&json!({
            "settings": settings, "planted": planted, "random_walk": walk, "random_walk_interval": interval,
            "conclusions": conclusions,
            "document": { "gradient_zeros": [0.0037, 0.0164], "saturation": [0.023, 0.047], "gradient_norm": [3.75, 4.23],
                "pooling": [0.053, 0.047, 0.002], "active_features": 0.154, "win_rate": [0.35, 0.42] },
        }));
    } else {
        print(&text(settings, planted, walk, &conclusions));
    }
    Ok(ExitCode::SUCCESS)
}

fn conclusions(planted: &[Outcome], [low, high]: [f64; 2]) -> Vec<String> {
    let shares: Vec<f64> = planted.iter().map(|o| o.sharpe / o.oracle_sharpe).collect();
    let least = shares.iter().copied().fold(f64::INFINITY, f64::min);
    let enough = shares.iter().filter(|s| **s >= 0.5).count();
    let verdict = match () {
        () if low > 0. => "it seems to find what is not there",
        () if high < 0. => "there is nothing to find, and it pays for trading all the same",
        () => "there is nothing to find, and it finds nothing",
    };
    vec![
        format!(
            "planted: on unseen days {enough} of {} seeds have at least half of the oracle's Sharpe ratio after costs, the least {:.0} %",
            shares.len(),
            100. * least
        ),
        format!("random walk: the mean net return lies between {low:.1} and {high:.1} % (95 %): {verdict}"),
    ]
}

fn text(settings: Settings, planted: &[Outcome], walk: &[Outcome], conclusions: &[String]) -> String {
    let header = ["market", "seed", "Sharpe", "oracle", "share %", "return %", "oracle %", "trades", "win rate %"]
        .map(String::from);
    let mut rows = vec![header.to_vec()];
    for (name, outcomes) in [("planted", planted), ("random walk", walk)] {
        for o in outcomes {
            let share =
                if o.oracle_sharpe > 0. { format!("{:.0}", 100. * o.sharpe / o.oracle_sharpe) } else { "-".into() };
            rows.push(vec![
                name.into(),
                o.seed.to_string(),
                format!("{:.2}", o.sharpe),
                format!("{:.2}", o.oracle_sharpe),
                share,
                format!("{:.1}", o.net_return),
                format!("{:.1}", o.oracle_return),
                format!("{:.0}", o.trades),
                format!("{:.1}", o.win_rate),
            ]);
        }
    }
    let mut text = format!(
        "returns that keep {} of the one before, and random walks; {} symbols of {} days, {} steps a policy; unseen days, after costs\n\n{}\n",
        settings.coefficient,
        settings.symbols,
        settings.days,
        settings.steps,
        table(&rows)
    );
    let header =
        ["last tenth of training", "zeros %", "saturated %", "norm", "pooling max", "min", "active %", "win rate %"];
    let mut rows = vec![header.map(String::from).to_vec()];
    for (name, outcomes) in [("planted", planted), ("random walk", walk)] {
        let mean =
            |f: &dyn Fn(&Monitored) -> f64| mean_of(&outcomes.iter().map(|o| f(&o.monitored)).collect::<Vec<_>>());
        let percent = |f: &dyn Fn(&Monitored) -> f64| format!("{:.2}", 100. * mean(f));
        rows.push(vec![
            name.into(),
            percent(&|m| m.gradient_zeros),
            percent(&|m| m.saturation),
            format!("{:.2}", mean(&|m| m.gradient_norm)),
            format!("{:.4}", mean(&|m| m.pooling[0])),
            format!("{:.4}", mean(&|m| m.pooling[1])),
            percent(&|m| m.active_features),
            percent(&|m| m.win_rate),
        ]);
    }
    let document = ["document", "0.37-1.64", "2.3-4.7", "3.75-4.23", "0.053", "0.047", "15.4", "35-42"];
    rows.push(document.map(String::from).to_vec());
    text.push_str(&format!(
        "what the document watched: temporal_projection, pooling, position features, trades\n\n{}\n",
        table(&rows)
    ));
    conclusions.iter().for_each(|line| text.push_str(&format!("- {line}\n")));
    text
}
