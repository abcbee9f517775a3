//! Features and chances of each direction for a price file.

use std::path::Path;

use candle_core::{Device, Tensor};
use serde_json::Map;
use zoo_layers::{Mode, ops};
use zoo_training::{Error, Name, Picture, Prediction, Result};

use crate::features::{FEATURES, WARMUP, of_bars};
use crate::{Config, DIRECTIONS, DataSettings, TradingTransformer};

/// Bars at once.
const BATCH: usize = 256;
/// Bars that the picture shows.
const SHOWN: usize = 250;

/// A row for every bar with enough history: its date, the chances of each direction, and the features. No position is held.
pub(crate) fn predict(
    model: &TradingTransformer,
    config: &Config,
    source: &DataSettings,
    input: &Path,
    device: &Device,
) -> Result<Prediction> {
    let days = source.read(input)?;
    let input = input.display();
    let (bars, n) = (config.bars, days.bars.len());
    let first = WARMUP + bars - 1;
    if n <= first {
        return Err(Error::Data(format!("{input}: {n} days, features need at least {} (bring more data)", first + 1)));
    }
    let rows = of_bars(&days.bars, &[]);
    let mut table = Vec::with_capacity(n - first);
    let mut lines = DIRECTIONS.map(|name| (Name::from(name), vec![]));
    for start in (first..n).step_by(BATCH) {
        let positions = start..n.min(start + BATCH);
        let window = |t: usize| &rows[(t + 1 - bars) * FEATURES..(t + 1) * FEATURES];
        let x: Vec<f32> = positions.clone().flat_map(|t| window(t).iter().copied()).collect();
        let x = Tensor::from_vec(x, (positions.len(), bars * FEATURES), device)?;
        let features = model.extract(&x, Mode::Eval)?;
        let chances = ops::softmax(&model.logits(&features)?)?.to_device(&Device::Cpu)?.to_vec2::<f32>()?;
        let features = features.to_device(&Device::Cpu)?.to_vec2::<f32>()?;
        for ((t, chances), features) in positions.zip(chances).zip(features) {
            for ((_, line), chance) in lines.iter_mut().zip(&chances) {
                line.push(((t - first) as f64, f64::from(*chance)));
            }
            let numbers = chances.iter().map(|v| format!("{v:.4}")).chain(features.iter().map(f32::to_string));
            table.push(std::iter::once(days.dates[t].to_string()).chain(numbers).collect());
        }
    }
    let header = std::iter::once("date".to_string())
        .chain(DIRECTIONS.map(String::from))
        .chain((0..config.features_dim).map(|i| format!("feature_{i}")))
        .collect();
    let shown = table.len().saturating_sub(SHOWN);
    for (_, line) in &mut lines {
        line.drain(..shown);
        line.iter_mut().for_each(|p| p.0 -= shown as f64);
    }
    let labels = days.dates[first + shown..].iter().map(|d| d.to_string()).collect();
    let title = format!("chances of the next {} bars' direction", source.horizon);
    let mut remarks = days.warnings;
    remarks.push(format!("The first {first} days are history; the features are those of an account without position."));
    Ok(Prediction {
        header,
        rows: table,
        summary: Map::from_iter([("features".to_string(), config.features_dim.into())]),
        remarks,
        picture: Picture { title, labels, lines: lines.to_vec(), ..Picture::default() },
        ..Prediction::default()
    })
}
