//! Policies in a market with a signal that is known, and in one without any.

use serde_json::json;
use zoo_training::spread::{interval, mean as mean_of};
use zoo_training::{Block, Experiment, Findings, Result, Setup};

use crate::trading::signal::{Monitored, Outcome, Settings, run as train};

/// The experiment.
pub(super) const EXPERIMENT: Experiment = Experiment {
    name: "planted-signal",
    summary: "policies by PPO in markets with a known signal, beside an oracle, and in random walks",
    steps: "steps of each policy (1280)",
    range: 10..=u64::MAX,
    data: "",
    figure: false,
    run,
};

fn run(setup: &Setup) -> Result<Option<Findings>> {
    let settings = Settings {
        steps: setup.steps.unwrap_or(Settings::default().steps),
        first_seed: setup.seed.unwrap_or(Settings::default().first_seed),
        ..Settings::default()
    };
    let mut found = [vec![], vec![]];
    for (outcomes, coefficient) in found.iter_mut().zip([settings.coefficient, 0.]) {
        for i in 0..settings.seeds {
            let started = std::time::Instant::now();
            let seed = settings.first_seed.wrapping_add(i);
            let kept = setup.folder.join(format!("{coefficient}-{seed}"));
            let Some(outcome) = train(settings, coefficient, seed, &kept, setup.going)? else { return Ok(None) };
            let Outcome { sharpe, oracle_sharpe, .. } = outcome;
            (setup.progress)(&format!(
                "coefficient {coefficient}, seed {seed}: Sharpe ratio {sharpe:.2}, oracle {oracle_sharpe:.2}, in {:.0} s",
                started.elapsed().as_secs_f64()
            ));
            outcomes.push(outcome);
        }
    }
    let [planted, walk] = &found;
    let interval = interval(&walk.iter().map(|o| o.net_return).collect::<Vec<_>>());
    let conclusions = conclusions(planted, interval);
    let json = json!({
        "settings": settings, "planted": planted, "random_walk": walk, "random_walk_interval": interval,
        "conclusions": conclusions,
        "document": { "gradient_zeros": [0.0037, 0.0164], "saturation": [0.023, 0.047], "gradient_norm": [3.75, 4.23],
            "pooling": [0.053, 0.047, 0.002], "active_features": 0.154, "win_rate": [0.35, 0.42] },
    });
    Ok(Some(Findings { json, text: text(settings, planted, walk, &conclusions), figure: None }))
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

fn text(settings: Settings, planted: &[Outcome], walk: &[Outcome], conclusions: &[String]) -> Vec<Block> {
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
    let Settings { coefficient, symbols, days, steps, .. } = settings;
    let mut text = vec![
        Block::Lines(format!(
            "returns that keep {coefficient} of the one before, and random walks; {symbols} symbols of {days} days, {steps} steps a \
             policy; unseen days, after costs\n"
        )),
        Block::Table(rows),
    ];
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
    let watched = "what the document watched: temporal_projection, pooling, position features, trades\n";
    text.extend([Block::Lines(watched.into()), Block::Table(rows)]);
    text.push(Block::Lines(conclusions.iter().map(|line| format!("- {line}\n")).collect()));
    text
}
