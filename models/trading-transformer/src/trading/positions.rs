//! `zoo predict trading-transformer` with a policy: the exposure that it chooses after each bar of a price file.

use candle_core::Device;
use serde_json::{Map, Value};
use zoo_training::{Error, Picture, Prediction, Request, Result};

use super::environment::Walk;
use super::market::{Market, Symbol, name};
use super::policy::choose;
use crate::directions::UNTIL;
use crate::features::WARMUP;
use crate::{Config, Source, TradingTransformer};

/// Bars that the picture shows.
const SHOWN: usize = 250;

/// A row for every bar with enough history: date, close, the chance of each exposure, the one chosen, which is to be filled at the
/// next open, and the equity of an account that has followed so far.
pub(crate) fn predict(
    model: &TradingTransformer,
    config: &Config,
    source: &Source,
    fitted: &Value,
    request: &Request,
    device: &Device,
) -> Result<Prediction> {
    if request.horizon != 1 || request.interval != 0.9 {
        return Err(Error::Usage(
            "--horizon and --interval: these weights are a policy, which chooses the next bar's exposure".into(),
        ));
    }
    if let Some(problem) = source.problem() {
        return Err(Error::Usage(problem));
    }
    let days = source.read(request.input)?;
    let (first, n) = (WARMUP + config.bars - 1, days.bars.len());
    if n <= first {
        let input = request.input.display();
        return Err(Error::Data(format!(
            "{input}: {n} days, a position needs at least {} (bring more data)",
            first + 1
        )));
    }
    let mut remarks = days.warnings.clone();
    let market = Market {
        symbols: vec![Symbol::new(name(request.input), days, config.bars)],
        rules: source.rules(),
        levels: source.levels(),
        bars: config.bars,
        simulated: false,
    };
    if market.levels.len() != config.actions {
        return Err(Error::Usage("data.sizes are those that the policy was trained with".into()));
    }
    let days = &market.symbols[0].days;
    let mut walk = Walk::new(market.rules, market.bars, 0, first);
    let (mut rows, mut equity, mut price) = (Vec::with_capacity(n - first), vec![], vec![]);
    let mut chosen = 0.;
    for t in first..n {
        let (chances, level) = choose(model, &market, &[&walk], device)?.remove(0);
        chosen = level;
        let worth = walk.account.equity() / super::START;
        let mut row = vec![days.dates[t].to_string(), days.bars[t].close.to_string()];
        row.extend(chances.iter().map(|p| format!("{p:.4}")));
        row.extend([chosen.to_string(), format!("{worth:.6}")]);
        rows.push(row);
        equity.push(worth);
        price.push(days.bars[t].close / days.bars[first].close);
        if t + 1 < n {
            walk.advance(&market, chosen);
        }
    }
    let mut header = vec!["date".to_string(), "close".into()];
    header.extend(market.levels.iter().map(|l| format!("chance_{l}")));
    header.extend(["position".to_string(), "equity".into()]);
    let from = equity.len().saturating_sub(SHOWN);
    let line = |values: &[f64]| {
        values[from..].iter().enumerate().map(|(i, v)| (i as f64, v / values[from])).collect::<Vec<_>>()
    };
    let labels = days.dates[first + from..].iter().map(ToString::to_string).collect();
    remarks.push(format!(
        "The first {first} days are history. A position is a share of the equity, to be filled at the next day's open; the last row, of \
         {}, says {chosen}.",
        days.dates[n - 1]
    ));
    remarks.push(format!(
        "The account begins without position on {}, and what is chosen depends on what is held: files that begin on other days may lead \
         to other positions for a while.",
        days.dates[first]
    ));
    if source.path.is_empty() {
        remarks.push("The policy was trained in a simulated market, not on prices.".into());
    }
    if let Some(until) = fitted[UNTIL].as_str() {
        remarks
            .push(format!("Days until {until} decided the weights: on those the equity says nothing of days to come."));
    }
    Ok(Prediction {
        header,
        rows,
        summary: Map::from_iter([
            ("position".to_string(), chosen.into()),
            ("date".to_string(), days.dates[n - 1].to_string().into()),
        ]),
        remarks,
        picture: Picture {
            title: "equity and close, as multiples of the first shown".into(),
            labels,
            lines: vec![("equity", line(&equity)), ("close", line(&price))],
            ..Picture::default()
        },
        ..Prediction::default()
    })
}
