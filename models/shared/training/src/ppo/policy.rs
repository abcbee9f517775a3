use std::f64::consts::{E, PI};

use candle_core::{DType, Device, Result, Tensor, bail};
use zoo_layers::ops;
use zoo_layers::random::Stream;

/// What an environment lets one do at each step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Space {
    /// One of so many choices.
    Choices(usize),
    /// So many numbers. They may be of any size: an environment that has limits cuts them.
    Numbers(usize),
}

impl Space {
    /// Numbers that an action is kept in.
    pub(super) fn width(self) -> usize {
        match self {
            Self::Choices(_) => 1,
            Self::Numbers(d) => d,
        }
    }
}

/// What each environment is to do.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Actions<'a> {
    /// A choice for each.
    Choices(&'a [u32]),
    /// Numbers for each, one environment after the other.
    Numbers(&'a [f32]),
}

impl<'a> Actions<'a> {
    /// The choices; none if there are numbers.
    pub fn choices(self) -> &'a [u32] {
        match self {
            Self::Choices(choices) => choices,
            Self::Numbers(_) => &[],
        }
    }

    /// The numbers; none if there are choices.
    pub fn numbers(self) -> &'a [f32] {
        match self {
            Self::Choices(_) => &[],
            Self::Numbers(numbers) => numbers,
        }
    }
}

/// How likely each action is after some observations.
#[derive(Clone, Debug)]
pub enum Policy {
    /// Logits of the choices (b, a).
    Choices(Tensor),
    /// Independent normal numbers.
    Numbers {
        /// Their means (b, d).
        mean: Tensor,
        /// The logarithms of their standard deviations (d).
        log_deviation: Tensor,
    },
}

impl Policy {
    /// The logarithm of the chance (or of the density) of an action of each observation, (b): choices (b) as integers, or
    /// numbers (b, d); and the mean entropy.
    ///
    /// # Errors
    /// Actions of another kind or shape.
    pub fn log_prob(&self, action: &Tensor) -> Result<(Tensor, Tensor)> {
        match self {
            Self::Choices(logits) => {
                let log_probs = ops::log_softmax(logits)?; // (b, a)
                let entropy = (log_probs.exp()? * &log_probs)?.sum(1)?.mean_all()?.neg()?;
                Ok((log_probs.gather(&action.unsqueeze(1)?, 1)?.squeeze(1)?, entropy))
            }
            Self::Numbers { mean, log_deviation } => {
                let (mean, log_deviation) = (mean.to_dtype(DType::F32)?, log_deviation.to_dtype(DType::F32)?);
                let d = log_deviation.elem_count() as f64;
                let off = (action - mean)?.broadcast_div(&log_deviation.exp()?)?; // (b, d)
                let spread = log_deviation.sum_all()?;
                let log_prob = (off.sqr()?.sum(1)? * -0.5)?.broadcast_sub(&spread)?;
                let entropy = (spread + 0.5 * d * (2. * PI * E).ln())?;
                Ok(((log_prob - 0.5 * d * (2. * PI).ln())?, entropy))
            }
        }
    }

    /// The likeliest action of each observation: choices (b) as u32, or numbers (b, d).
    ///
    /// # Errors
    /// candle's.
    pub fn likeliest(&self) -> Result<Tensor> {
        match self {
            Self::Choices(logits) => logits.argmax(1),
            Self::Numbers { mean, .. } => Ok(mean.clone()),
        }
    }

    /// The logits or means.
    pub fn output(&self) -> &Tensor {
        match self {
            Self::Choices(logits) => logits,
            Self::Numbers { mean, .. } => mean,
        }
    }

    /// An action by chance after each observation, each kept in `space.width()` numbers, and the logarithm of its chance.
    pub(super) fn draw(&self, space: Space, chance: &mut Stream) -> Result<(Vec<f32>, Vec<f32>)> {
        let cpu = |t: &Tensor| t.to_device(&Device::Cpu)?.to_dtype(DType::F32);
        match (self, space) {
            (Self::Choices(logits), Space::Choices(n)) if logits.dim(1)? == n => {
                let rows: Vec<Vec<f32>> = ops::log_softmax(&cpu(logits)?)?.to_vec2()?;
                let drawn: Vec<usize> = rows.iter().map(|p| choice(p, chance.uniform())).collect();
                let log_probs = rows.iter().zip(&drawn).map(|(p, a)| p[*a]).collect();
                Ok((drawn.into_iter().map(|a| a as f32).collect(), log_probs))
            }
            (Self::Numbers { mean, log_deviation }, Space::Numbers(d))
                if mean.dim(1)? == d && log_deviation.elem_count() == d =>
            {
                let (means, spread): (Vec<Vec<f32>>, Vec<f32>) =
                    (cpu(mean)?.to_vec2()?, cpu(log_deviation)?.to_vec1()?);
                let (mut actions, mut log_probs) = (vec![], vec![]);
                for row in means {
                    let mut log_prob = 0.;
                    for (mean, log_deviation) in row.iter().zip(&spread) {
                        let off = chance.normal();
                        actions.push((f64::from(*mean) + f64::from(*log_deviation).exp() * off) as f32);
                        log_prob -= 0.5 * off * off + f64::from(*log_deviation) + 0.5 * (2. * PI).ln();
                    }
                    log_probs.push(log_prob as f32);
                }
                Ok((actions, log_probs))
            }
            (policy, space) => bail!("the policy gives {:?} for actions that are {space:?}", policy.output().dims()),
        }
    }
}

/// Actions of `n` environments where nothing is known: all choices alike, or standard normal numbers.
pub(super) fn random(space: Space, n: usize, chance: &mut Stream) -> Vec<f32> {
    match space {
        Space::Choices(choices) => (0..n).map(|_| chance.below(choices as u32) as f32).collect(),
        Space::Numbers(d) => (0..n * d).map(|_| chance.normal() as f32).collect(),
    }
}

/// The choice at `u` of [0, 1) by these logarithms of chances.
fn choice(log_probs: &[f32], u: f64) -> usize {
    let mut left = u;
    for (i, p) in log_probs.iter().enumerate() {
        left -= f64::from(*p).exp();
        if left < 0. {
            return i;
        }
    }
    // Rounding may leave a rest.
    log_probs.len().saturating_sub(1)
}

#[cfg(test)]
mod tests {
    use zoo_layers::random::Purpose;

    use super::*;

    #[test]
    fn choices_are_drawn_by_their_chances() {
        let log_probs = [0.2f32, 0.5, 0.3].map(f32::ln);
        let drawn = |u| choice(&log_probs, u);
        assert_eq!([0., 0.199, 0.201, 0.699, 0.701, 0.9999999].map(drawn), [0, 0, 1, 1, 2, 2]);
        assert_eq!(choice(&[-0.1, f32::NEG_INFINITY], 0.99), 1);
    }

    #[test]
    fn numbers_are_drawn_from_the_density_that_is_said() -> Result<()> {
        let cpu = &Device::Cpu;
        let mean = Tensor::new(&[[1f32, -2.]], cpu)?.repeat((5000, 1))?;
        let policy = Policy::Numbers { mean, log_deviation: Tensor::new(&[0.5f32, -1.], cpu)? };
        let (actions, log_probs) = policy.draw(Space::Numbers(2), &mut Stream::new(1, Purpose::Sampling, 0, 0))?;
        for (d, (mean, deviation)) in [(0, (1., 0.5f64.exp())), (1, (-2., (-1f64).exp()))] {
            let of = |f: &dyn Fn(f64) -> f64| {
                actions.iter().skip(d).step_by(2).map(|a| f(f64::from(*a))).sum::<f64>() / 5000.
            };
            let found = of(&|a| a);
            assert!((found - mean).abs() < 0.06 * deviation, "{found} for {mean}");
            let found = of(&|a| (a - mean).powi(2)).sqrt();
            assert!((found / deviation - 1.).abs() < 0.03, "{found} for {deviation}");
        }
        let (again, entropy) = policy.log_prob(&Tensor::from_vec(actions, (5000, 2), cpu)?)?;
        let again: Vec<f32> = again.to_vec1()?;
        assert!(again.iter().zip(&log_probs).all(|(a, b)| (a - b).abs() < 1e-4));
        // The entropy is what the logarithm is on average.
        let mean = -log_probs.iter().map(|p| f64::from(*p)).sum::<f64>() / 5000.;
        assert!((f64::from(entropy.to_scalar::<f32>()?) - mean).abs() < 0.05);
        let wrong = policy.draw(Space::Choices(2), &mut Stream::new(1, Purpose::Sampling, 0, 0));
        assert!(wrong.is_err_and(|e| e.to_string().contains("actions that are Choices(2)")));
        Ok(())
    }
}
