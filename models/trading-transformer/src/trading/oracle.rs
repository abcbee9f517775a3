//! What one does in an autoregressive market who knows its coefficient.

/// Steps of the grid of returns, from -4 to 4 deviations.
const GRID: usize = 161;
const REACH: f64 = 4.;
/// Discount of later growth: far ahead, but not without end.
const DISCOUNT: f64 = 0.99;

/// The exposure that maximises the expected return after costs, for every last return and every exposure held, without regard to
/// stops: the solution of
/// Bellman's equation on a grid (Puterman, *Markov Decision Processes*, 1994, section 6.3).
pub(super) struct Oracle {
    levels: Vec<f64>,
    deviation: f64,
    /// The best choice by exposure held and place on the grid.
    best: Vec<Vec<usize>>,
}

fn place(i: usize) -> f64 {
    REACH * (2. * i as f64 / (GRID - 1) as f64 - 1.)
}

impl Oracle {
    /// For returns of `deviation` a bar that are `coefficient` times the one before, plus noise; a change of exposure by 1 costs
    /// `friction`.
    pub(super) fn new(levels: &[f64], coefficient: f64, deviation: f64, friction: f64) -> Self {
        let n = levels.len();
        let noise = (1. - coefficient * coefficient).sqrt();
        // Chances of the next return, in deviations, by the last.
        let row = |i: usize| -> Vec<f64> {
            let density = |j: usize| (-0.5 * ((place(j) - coefficient * place(i)) / noise).powi(2)).exp();
            let all: Vec<f64> = (0..GRID).map(density).collect();
            let total: f64 = all.iter().sum();
            all.into_iter().map(|p| p / total).collect()
        };
        let chances: Vec<Vec<f64>> = (0..GRID).map(row).collect();
        let mut worth = vec![vec![0.; GRID]; n];
        let mut best = vec![vec![0; GRID]; n];
        loop {
            // What it is worth to hold a level after each return.
            let expected = |a: usize, i: usize| -> f64 {
                let drift = levels[a] * coefficient * place(i) * deviation;
                drift + DISCOUNT * chances[i].iter().zip(&worth[a]).map(|(p, w)| p * w).sum::<f64>()
            };
            let after: Vec<Vec<f64>> = (0..n).map(|a| (0..GRID).map(|i| expected(a, i)).collect()).collect();
            let mut next = vec![vec![0.; GRID]; n];
            for held in 0..n {
                for i in 0..GRID {
                    let value = |a: usize| after[a][i] - friction * (levels[a] - levels[held]).abs();
                    // Where nothing is to be gained, nothing is changed.
                    let order =
                        |a: &usize, b: &usize| value(*a).total_cmp(&value(*b)).then((*a == held).cmp(&(*b == held)));
                    let choice = (0..n).max_by(order).unwrap_or_default();
                    (best[held][i], next[held][i]) = (choice, value(choice));
                }
            }
            let moved =
                worth.iter().flatten().zip(next.iter().flatten()).map(|(a, b)| (a - b).abs()).fold(0., f64::max);
            worth = next;
            if moved < 1e-6 * deviation {
                return Self { levels: levels.to_vec(), deviation, best };
            }
        }
    }

    /// The exposure after a bar's log return while `held` is held.
    pub(super) fn choose(&self, change: f64, held: f64) -> f64 {
        let z = (change / self.deviation / REACH).clamp(-1., 1.);
        let i = ((z + 1.) / 2. * (GRID - 1) as f64).round() as usize;
        let held = self.levels.iter().position(|l| *l == held).unwrap_or(self.levels.len() / 2);
        self.levels[self.best[held][i]]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_costs_it_follows_the_sign_and_with_costs_it_waits() {
        let levels = [-1., 0., 1.];
        let free = Oracle::new(&levels, 0.3, 0.01, 0.);
        for (change, expected) in [(0.01, 1.), (-0.01, -1.), (0.001, 1.), (-0.001, -1.)] {
            assert_eq!(free.choose(change, 0.), expected, "{change}");
        }
        assert_eq!(Oracle::new(&levels, -0.3, 0.01, 0.).choose(0.01, 1.), -1.);
        let dear = Oracle::new(&levels, 0.3, 0.01, 0.001);
        assert_eq!((dear.choose(0.001, 0.), dear.choose(0.001, 1.), dear.choose(0.001, -1.)), (0., 1., -1.));
        assert_eq!((dear.choose(0.02, -1.), dear.choose(-0.02, 1.)), (1., -1.));
        // Nothing to know, nothing to gain.
        let none = Oracle::new(&levels, 0., 0.01, 0.001);
        assert!([-0.03, 0., 0.03].iter().all(|c| none.choose(*c, 0.) == 0.));
        assert_eq!(Oracle::new(&levels, 0., 0.01, 0.).choose(0.01, 0.), 0.);
        // The least return that makes it enter earns its cost: more than one bar's is expected of it.
        let enters = (0..400).map(|i| f64::from(i) * 1e-4).find(|c| dear.choose(*c, 0.) == 1.).unwrap_or(f64::NAN);
        assert!((0.0015..0.0035).contains(&enters), "{enters}");
    }
}
