//! From daily bars to what the model sees, and from what it says back to a price.

use candle_core::{Device, Result, Tensor, bail};
use serde::{Deserialize, Serialize};
use zoo_layers::onnx::{Attribute, Element, Graph, Value};

use crate::{Bar, FeatureSet, Target};

/// The unscaled features of `day`, which follows `before`. As log ratios: open, high, low and close over the close
/// before, volume over the volume before.
pub(crate) fn raw(day: &Bar, before: &Bar, target: Target, features: FeatureSet) -> Vec<f64> {
    let of = |v: f64| match target {
        Target::Return => (v / before.close).ln(),
        Target::Close => v,
    };
    match (features, target) {
        (FeatureSet::Close, _) => vec![of(day.close)],
        (FeatureSet::Ohlcv, Target::Return) => {
            let volume = ((day.volume + 1.) / (before.volume + 1.)).ln();
            vec![of(day.open), of(day.high), of(day.low), of(day.close), volume]
        }
        (FeatureSet::Ohlcv, Target::Close) => vec![day.open, day.high, day.low, day.close, day.volume],
    }
}

/// Where the close stands among a day's features.
pub(crate) fn close_index(features: FeatureSet) -> usize {
    match features {
        FeatureSet::Close => 0,
        FeatureSet::Ohlcv => 3,
    }
}

/// (value - shift) / scale, per feature, fitted to the training part alone. Part of the checkpoint.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Scaler {
    /// What the scaled features are.
    pub target: Target,
    /// Which features there are.
    pub features: FeatureSet,
    /// Mean (returns) or least value (prices) of each feature.
    pub shift: Vec<f64>,
    /// Standard deviation (returns) or range (prices) of each feature.
    pub scale: Vec<f64>,
}

impl Scaler {
    /// Refuses a scaler that is not one of so many features.
    pub(crate) fn check(&self, features: usize) -> Result<()> {
        let Self { shift, scale, features: set, .. } = self;
        if [shift.len(), scale.len(), set.len()] != [features; 3] {
            bail!("the scaler does not fit the model's {features} features")
        }
        if !shift.iter().chain(scale).all(|v| v.is_finite()) || scale.iter().any(|v| *v <= 0.) {
            bail!("the scaler has a shift that is not finite, or a scale that is not positive")
        }
        Ok(())
    }

    /// The lowest and the highest close that a model of scaled prices was fitted to.
    #[cfg(feature = "train")]
    pub(crate) fn range(&self) -> Option<(f64, f64)> {
        let k = close_index(self.features);
        (self.target == Target::Close).then(|| (self.shift[k], self.shift[k] + self.scale[k]))
    }

    /// Scaled features of raw ones.
    pub(crate) fn apply(&self, raw: &[f64]) -> impl Iterator<Item = f32> {
        raw.iter().zip(self.shift.iter().zip(&self.scale)).map(|(v, (shift, scale))| ((v - shift) / scale) as f32)
    }

    /// The price that the model's output `y` means when the last close was `last`.
    pub(crate) fn price(&self, y: f64, last: f64) -> f64 {
        let k = close_index(self.features);
        let value = y * self.scale[k] + self.shift[k];
        match self.target {
            Target::Return => last * value.exp(),
            Target::Close => value,
        }
    }

    /// [`Scaler::window`] as nodes of a graph: bars (b, days, f) of doubles to scaled features (b, days - 1, f).
    pub(crate) fn export(&self, graph: &mut Graph, bars: &Value) -> Result<Value> {
        let f = self.shift.len();
        let (days, before) = (graph.part(bars, 1, 1, i64::MAX)?, graph.part(bars, 1, 0, -1)?);
        let raw = match self.target {
            Target::Close => days,
            Target::Return => {
                let k = close_index(self.features) as i64;
                let close = graph.part(&before, 2, k, k + 1)?;
                let ratio = graph.op("Div", &[&days, &close], &[]);
                let ratio = match self.features {
                    FeatureSet::Close => ratio,
                    FeatureSet::Ohlcv => {
                        let one = graph.number(1., Element::F64)?;
                        let [now, last] = [&days, &before].map(|x| graph.part(x, 2, 4, 5));
                        let [now, last] = [graph.add(&now?, &one), graph.add(&last?, &one)];
                        let volume = graph.op("Div", &[&now, &last], &[]);
                        let prices = graph.part(&ratio, 2, 0, 4)?;
                        graph.op("Concat", &[&prices, &volume], &[("axis", Attribute::Int(2))])
                    }
                };
                graph.op("Log", &[&ratio], &[])
            }
        };
        let vector = |values: &[f64]| Tensor::from_slice(values, f, &Device::Cpu);
        let shift = graph.constant("scaler.shift", &vector(&self.shift)?)?;
        let scale = graph.constant("scaler.scale", &vector(&self.scale)?)?;
        let centred = graph.op("Sub", &[&raw, &shift], &[]);
        let scaled = graph.op("Div", &[&centred, &scale], &[]);
        Ok(graph.cast(&scaled, Element::F32))
    }

    /// [`Scaler::price`] as nodes of a graph: the model's output (b, 1) and the bars (b, days, f) to closes (b).
    pub(crate) fn export_price(&self, graph: &mut Graph, y: &Value, bars: &Value) -> Result<Value> {
        let k = close_index(self.features);
        let (scale, shift) = (graph.number(self.scale[k], Element::F64)?, graph.number(self.shift[k], Element::F64)?);
        let y = graph.cast(y, Element::F64);
        let y = graph.mul(&y, &scale);
        let mut value = graph.add(&y, &shift); // (b, 1)
        if self.target == Target::Return {
            let last = graph.part(bars, 1, -1, i64::MAX)?;
            let close = graph.part(&last, 2, k as i64, k as i64 + 1)?;
            let close = graph.squeeze(&close, &[2])?; // (b, 1)
            let growth = graph.op("Exp", &[&value], &[]);
            value = graph.mul(&close, &growth);
        }
        graph.squeeze(&value, &[1])
    }

    /// Scaled features (days - 1, features) of consecutive bars; the first bar only serves the second's returns.
    pub(crate) fn window(&self, bars: &[Bar]) -> Result<Vec<f32>> {
        if let Some(day) = bars.iter().position(|b| !b.is_valid()) {
            bail!("day {day} of the window has a price that is not a positive number, or a negative volume")
        }
        Ok(bars
            .windows(2)
            .flat_map(|w| self.apply(&raw(&w[1], &w[0], self.target, self.features)).collect::<Vec<_>>())
            .collect())
    }
}
