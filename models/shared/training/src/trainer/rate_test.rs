use serde::Serialize;

use super::Trainer;
use crate::{Error, Result, Split, Task};

/// How the loss goes while the learning rate rises.
#[derive(Clone, Debug, Default, Serialize)]
pub struct RateTest {
    /// Rate, loss, and loss smoothed over about twenty steps.
    pub points: Vec<(f64, f64, f64)>,
    /// The rate at which the smoothed loss was least.
    pub least_at: f64,
    /// A tenth of it, which is still on the way down.
    pub suggestion: f64,
    /// Whether the smoothed loss fell by more than chance moves it: if not, the rates say nothing.
    pub moved: bool,
}

impl RateTest {
    /// Whether the smoothed loss came down to `least` from its first tenth by more than chance.
    fn fell(&self, least: f64) -> bool {
        let n = self.points.len();
        let first = &self.points[..n.div_ceil(10)];
        let level = first.iter().map(|p| p.1).sum::<f64>() / first.len().max(1) as f64;
        // Neighbours have nearly the same rate: what lies between them is chance.
        let pairs = first.windows(2).map(|w| (w[1].1 - w[0].1).powi(2) / 2.);
        let variance = pairs.sum::<f64>() / (first.len() as f64 - 1.).max(1.);
        let of_level = variance / first.len().max(1) as f64;
        let of_smoothed = variance * (1. - PAST) / (1. + PAST);
        // The least of many smoothed values is low by chance, too.
        level - least > 4. * (of_level + of_smoothed).sqrt()
    }
}

/// Weight of the past in the smoothed loss.
const PAST: f64 = 0.95;
/// The test ends where the smoothed loss is so many times its least.
const DIVERGED: f64 = 4.;

impl<T: Task> Trainer<'_, T> {
    /// Trains with a rate that rises geometrically from `from` to `to` in `steps` steps, until the loss diverges (Smith,
    /// Cyclical learning rates for training neural networks, WACV 2017, section 3.3). The weights are of no use
    /// afterwards.
    ///
    /// # Errors
    /// Those of training; a loss that is not finite only ends the test.
    pub fn test_rates(&mut self, from: f64, to: f64, steps: u64) -> Result<RateTest> {
        if !(from > 0. && to > from && to.is_finite() && steps >= 10) {
            return Err(Error::Usage(format!(
                "rates from {from} to {to} in {steps} steps: expected two rising positive rates and at least 10 steps"
            )));
        }
        if self.experience.is_some() {
            return Err(Error::Usage(
                "the loss of a policy says nothing of its rate: compare runs by what the policies bring".into(),
            ));
        }
        let mut test = RateTest::default();
        let (mut mean, mut least) = (0., f64::INFINITY);
        let (task, mut batches) = (self.task, self.batches.clone());
        for i in 0..steps {
            let lr = from * (to / from).powf(i as f64 / (steps - 1) as f64);
            let mut batch = |number| task.batch(Split::Train, batches.at(number));
            let step = self.micro_steps(lr, &mut batch, &|| false)?;
            if !(step.loss.is_finite() && step.norm.is_finite()) {
                break;
            }
            self.optimizer.step(&step.grads, lr, self.clip(step.norm))?;
            self.state.step += 1;
            self.state.micro_batch += self.config.train.accumulate;
            mean = PAST * mean + (1. - PAST) * step.loss;
            let smoothed = mean / (1. - PAST.powf((i + 1) as f64));
            test.points.push((lr, step.loss, smoothed));
            // The first values are hardly smoothed yet.
            if i >= steps / 10 && smoothed < least {
                (least, test.least_at) = (smoothed, lr);
            }
            if smoothed > DIVERGED * least {
                break;
            }
        }
        if test.least_at == 0. {
            return Err(Error::Data(format!(
                "the loss is not finite after {} steps at rates below {from}: there is nothing to compare",
                test.points.len()
            )));
        }
        test.suggestion = test.least_at / 10.;
        test.moved = test.fell(least);
        Ok(test)
    }
}
