//! The exposure that a policy chooses after each bar of a price file.

use std::path::Path;

use candle_core::Device;
use serde_json::{Map, Value};
use zoo_training::{Error, Picture, Prediction, Result};

use super::environment::Walk;
use super::market::{Market, Symbol, name};
use super::policy::choose;
use crate::directions::UNTIL;
use crate::features::WARMUP;
use crate::{Config, DataSettings, TradingTransformer};

/// Bars that the picture shows.
const SHOWN: usize = 250;

/// A file as a market of one symbol, and the first bar with enough history.
fn market(config: &Config, source: &DataSettings, input: &Path) -> Result<(Market, usize)> {
    if let Some(problem) = source.problem() {
        return Err(Error::Usage(problem));
    }
    let days = source.read(input)?;
    let (first, n) = (WARMUP + config.bars - 1, days.bars.len());
    if n <= first {
        let (input, least) = (input.display(), first + 1);
        return Err(Error::Data(format!("{input}: {n} days, a position needs at least {least} (bring more data)")));
    }
    let market = Market {
        symbols: vec![Symbol::new(name(input), days, config.bars)],
        rules: source.rules(),
        levels: source.levels(),
        bars: config.bars,
        simulated: false,
    };
    match market.levels.len() == config.actions {
        true => Ok((market, first)),
        false => Err(Error::Usage("data.sizes are those that the policy was trained with".into())),
    }
}

/// What was chosen, and what came of it.
struct Followed {
    rows: Vec<Vec<String>>,
    equity: Vec<f64>,
    /// Closes as multiples of the first.
    price: Vec<f64>,
    /// The last exposure.
    chosen: f64,
}

fn follow(model: &TradingTransformer, market: &Market, first: usize, device: &Device) -> Result<Followed> {
    let days = &market.symbols[0].days;
    let n = days.bars.len();
    let mut walk = Walk::new(market.rules, market.bars, 0, first);
    let mut followed = Followed { rows: vec![], equity: vec![], price: vec![], chosen: 0. };
    for t in first..n {
        let (chances, chosen) = choose(model, market, &[&walk], device)?.remove(0);
        followed.chosen = chosen;
        let worth = walk.account.equity() / super::START;
        let mut row = vec![days.dates[t].to_string(), days.bars[t].close.to_string()];
        row.extend(chances.iter().map(|p| format!("{p:.4}")));
        row.extend([chosen.to_string(), format!("{worth:.6}")]);
        followed.rows.push(row);
        followed.equity.push(worth);
        followed.price.push(days.bars[t].close / days.bars[first].close);
        if t + 1 < n {
            walk.advance(market, chosen);
        }
    }
    Ok(followed)
}

/// A row for every bar with enough history: date, close, the chance of each exposure, the one chosen, which is to be filled at the
/// next open, and the equity of an account that has followed so far.
pub(crate) fn predict(
    model: &TradingTransformer,
    config: &Config,
    source: &DataSettings,
    fitted: &Value,
    input: &Path,
    device: &Device,
) -> Result<Prediction> {
    let (market, first) = market(config, source, input)?;
    let Followed { rows, equity, price, chosen } = follow(model, &market, first, device)?;
    let days = &market.symbols[0].days;
    let last = days.dates[days.dates.len() - 1];
    let mut header = vec!["date".to_string(), "close".into()];
    header.extend(market.levels.iter().map(|l| format!("chance_{l}")));
    header.extend(["position".to_string(), "equity".into()]);
    let mut remarks = days.warnings.clone();
    remarks.push(format!(
        "The first {first} days are history. A position is a share of the equity, to be filled at the next day's open; the last row, of \
         {last}, says {chosen}."
    ));
    remarks.push(format!(
        "The account begins without position on {}, and what is chosen depends on what is held: files that begin on other days may lead \
         to other positions for a while.",
        days.dates[first]
    ));
    remarks.push(match fitted[UNTIL].as_str() {
        Some(until) => {
            format!("Days until {until} decided the weights: on those the equity says nothing of days to come.")
        }
        // Weights name the last day of the prices that they were trained on.
        None => "The policy was trained in a simulated market, not on prices.".into(),
    });
    let from = equity.len().saturating_sub(SHOWN);
    let line = |values: &[f64]| {
        values[from..].iter().enumerate().map(|(i, v)| (i as f64, v / values[from])).collect::<Vec<_>>()
    };
    let labels = days.dates[first + from..].iter().map(ToString::to_string).collect();
    Ok(Prediction {
        header,
        rows,
        summary: Map::from_iter([
            ("position".to_string(), chosen.into()),
            ("date".to_string(), last.to_string().into()),
        ]),
        remarks,
        picture: Picture {
            title: "equity and close, as multiples of the first shown".into(),
            labels,
            lines: vec![("equity".into(), line(&equity)), ("close".into(), line(&price))],
            ..Picture::default()
        },
        ..Prediction::default()
    })
}
