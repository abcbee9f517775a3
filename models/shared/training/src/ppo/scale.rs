/// Deviation of the discounted returns so far, by which rewards are divided.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct RewardScale {
    /// The discounted return of each environment's episode.
    returns: Vec<f64>,
    count: f64,
    mean: f64,
    /// Sum of squared deviations.
    squares: f64,
}

/// Deviations beyond which a reward is cut.
const LIMIT: f64 = 10.;

impl RewardScale {
    pub(super) fn new(environments: usize) -> Self {
        Self { returns: vec![0.; environments], count: 0., mean: 0., squares: 0. }
    }

    /// The rewards of a step as the critic shall see them; `ended` says whose episode is over.
    pub(super) fn scale(&mut self, rewards: &[f64], ended: &[bool], gamma: f64) -> Vec<f64> {
        for (total, reward) in self.returns.iter_mut().zip(rewards) {
            *total = gamma * *total + reward;
            // Welford's update.
            self.count += 1.;
            let before = *total - self.mean;
            self.mean += before / self.count;
            self.squares += before * (*total - self.mean);
        }
        for (total, _) in self.returns.iter_mut().zip(ended).filter(|(_, ended)| **ended) {
            *total = 0.;
        }
        let deviation = (self.squares / self.count.max(1.)).sqrt();
        // The first returns of all may be equal.
        let deviation = if deviation > 1e-12 { deviation } else { 1. };
        rewards.iter().map(|r| (r / deviation).clamp(-LIMIT, LIMIT)).collect()
    }

    /// State to restore later.
    pub(super) fn state(&self) -> Vec<f64> {
        [self.count, self.mean, self.squares].into_iter().chain(self.returns.iter().copied()).collect()
    }

    /// The scale of such a state, if it is of so many environments.
    pub(super) fn of(state: &[f64], environments: usize) -> Option<Self> {
        match state {
            [count, mean, squares, returns @ ..] if returns.len() == environments => {
                Some(Self { returns: returns.to_vec(), count: *count, mean: *mean, squares: *squares })
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rewards_are_divided_by_the_deviation_of_discounted_returns() {
        let (gamma, mut scale) = (0.5, RewardScale::new(2));
        let rewards = [[1., 2.], [3., -1.], [0., 4.]];
        let ended = [[false, false], [true, false], [false, false]];
        // Returns: 1, 2; 3.5, 0 and the first ends; 0, 4.
        let returns = [1., 2., 3.5, 0., 0., 4.];
        for (t, (r, e)) in rewards.iter().zip(&ended).enumerate() {
            let scaled = scale.scale(r, e, gamma);
            let seen = &returns[..2 * (t + 1)];
            let mean = seen.iter().sum::<f64>() / seen.len() as f64;
            let deviation = (seen.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / seen.len() as f64).sqrt();
            assert!(scaled.iter().zip(r).all(|(a, b)| (a - b / deviation).abs() < 1e-12), "{scaled:?} {deviation}");
        }
        assert_eq!(RewardScale::of(&scale.state(), 2), Some(scale.clone()));
        assert_eq!(RewardScale::of(&scale.state(), 3), None);
        assert_eq!(scale.scale(&[1e9, 0.], &[false; 2], gamma)[1], 0.);
        assert_eq!(RewardScale::new(1).scale(&[5.], &[false], gamma), [5.]);
    }
}
