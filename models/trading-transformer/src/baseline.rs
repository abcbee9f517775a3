//! What a direction can be told from without a network: how often each came before, and logistic regression.

use std::collections::BTreeMap;

use candle_core::{Device, Result, Tensor};
use zoo_layers::ops::backward;
use zoo_layers::optim::{Moments, Optimizer, Rule, decay_matrices};
use zoo_layers::{Linear, Params, init, ops};

use crate::DIRECTIONS;
use crate::features::FEATURES;

/// Steps over the whole training part, their rate, and the steps between two looks at the validation part.
const STEPS: u64 = 300;
const RATE: f64 = 0.002;
const EVERY: u64 = 5;
/// Standard deviations beyond which a feature is cut.
const LIMIT: f32 = 5.;
const CLASSES: usize = DIRECTIONS.len();

/// Shares of each direction.
pub(crate) fn shares(labels: &[i64]) -> [f64; CLASSES] {
    let mut shares = [0.; CLASSES];
    for label in labels {
        shares[*label as usize] += 1. / labels.len() as f64;
    }
    shares
}

/// Multinomial logistic regression on the standardised features of the last bar alone.
pub(crate) struct Logistic {
    /// Mean and standard deviation of each feature.
    scale: Vec<(f32, f32)>,
    model: Linear,
}

impl Logistic {
    /// Fits to rows (n, 129) with their directions; `valid` decides when to stop, as it does for the network.
    ///
    /// # Errors
    /// candle's.
    pub(crate) fn fit((rows, labels): (&[f32], &[i64]), valid: (&[f32], &[i64])) -> Result<Self> {
        let n = labels.len().max(1) as f64;
        let column = |i: usize| rows.iter().skip(i).step_by(FEATURES).map(|v| f64::from(*v));
        let scale = (0..FEATURES).map(|i| {
            let mean = column(i).sum::<f64>() / n;
            let std = (column(i).map(|v| (v - mean).powi(2)).sum::<f64>() / n).sqrt();
            (mean as f32, if std > 0. { std as f32 } else { 1. })
        });
        let params = Params::init(0, &Device::Cpu);
        let vb = params.builder();
        let model = Linear::with_biases(FEATURES, CLASSES, Some(init::ZEROS), init::ZEROS, vb)?;
        let fitted = Self { scale: scale.collect(), model };
        let tensors = |(rows, labels): (&[f32], &[i64])| -> Result<(Tensor, Tensor)> {
            Ok((fitted.scaled(rows)?, Tensor::from_slice(labels, labels.len(), &Device::Cpu)?))
        };
        let loss = |(x, y): &(Tensor, Tensor)| ops::cross_entropy(&fitted.model.forward(x)?, y, Default::default());
        let (train, valid) = (tensors((rows, labels))?, if valid.1.is_empty() { None } else { Some(tensors(valid)?) });
        let rule = Rule::AdamW(Moments::default());
        let mut optimizer = Optimizer::new(rule, &params, decay_matrices(0.))?;
        // It begins with how often each came: to know nothing is to know that.
        let shares = shares(labels).map(|s| s.max(1e-6).ln() as f32);
        let start = params.all().into_iter().map(|p| {
            let value = if p.var.rank() == 1 { Tensor::new(&shares, &Device::Cpu)? } else { p.var.zeros_like()? };
            Ok((p.name, value))
        });
        params.set(&start.collect::<Result<_>>()?)?;
        let mut best: Option<(f32, BTreeMap<String, Tensor>)> = None;
        for step in 0..=STEPS {
            if let (Some(valid), true) = (&valid, step.is_multiple_of(EVERY)) {
                let now = loss(valid)?.to_scalar::<f32>()?;
                if best.as_ref().is_none_or(|(before, _)| now < *before) {
                    let copies = params.tensors().into_iter().map(|(name, t)| Ok((name, t.copy()?)));
                    best = Some((now, copies.collect::<Result<_>>()?));
                }
            }
            optimizer.step(&params.gradients(&backward(&loss(&train)?)?), RATE, 1.)?;
        }
        if let Some((_, best)) = &best {
            params.set(best)?;
        }
        Ok(fitted)
    }

    fn scaled(&self, rows: &[f32]) -> Result<Tensor> {
        let values = rows.iter().zip(self.scale.iter().cycle());
        let values: Vec<f32> = values.map(|(v, (mean, std))| ((v - mean) / std).clamp(-LIMIT, LIMIT)).collect();
        Tensor::from_vec(values, (rows.len() / FEATURES, FEATURES), &Device::Cpu)
    }

    /// The chances of each direction for rows (n, 129).
    ///
    /// # Errors
    /// candle's.
    pub(crate) fn chances(&self, rows: &[f32]) -> Result<Vec<Vec<f32>>> {
        ops::softmax(&self.model.forward(&self.scaled(rows)?)?)?.to_vec2()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_learns_what_a_feature_says_and_no_more() -> Result<()> {
        let n = 600;
        let mut rows = vec![0f32; n * FEATURES];
        let labels: Vec<i64> = (0..n as i64).map(|i| i * 7 % 3).collect();
        for (i, label) in labels.iter().enumerate() {
            // Nine of ten say the direction.
            rows[i * FEATURES + 5] = if i % 10 == 0 { 0. } else { (*label - 1) as f32 * 100. };
        }
        let chances = Logistic::fit((&rows, &labels), (&[], &[]))?.chances(&rows)?;
        let best = |p: &[f32]| (0..3).max_by(|a, b| p[*a].total_cmp(&p[*b])).unwrap_or_default() as i64;
        let right = chances.iter().zip(&labels).filter(|(p, y)| best(p) == **y).count();
        assert!((0.85..0.98).contains(&(right as f64 / n as f64)), "{right} of {n}");
        // A validation part that says the opposite leaves it at the shares of each, which are equal.
        let other: Vec<i64> = labels.iter().map(|y| 2 - y).collect();
        let stopped = Logistic::fit((&rows, &labels), (&rows, &other))?.chances(&rows)?;
        assert!(stopped.iter().flatten().all(|p| (p - 1. / 3.).abs() < 0.05));
        Ok(())
    }
}
