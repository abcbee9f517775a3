//! How much a Sharpe ratio says: its standard error, what is left of it after many trials, and how often the best of some
//! policies is the best by luck.

use std::f64::consts::E;

use zoo_training::{Evaluation, Trials};

use super::YEAR;
use crate::features::windows::{deviation, mean, moment};

/// Euler's constant.
const EULER: f64 = 0.577_215_664_901_532_9;
/// Parts of the days that are dealt out to choose by and to judge by.
const PARTS: usize = 10;

/// Sharpe ratio of daily returns, a day, with the shape of their distribution.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sharpe {
    days: usize,
    daily: f64,
    skewness: f64,
    kurtosis: f64,
}

impl Sharpe {
    /// Nothing if the returns never change.
    pub(super) fn of(returns: &[f64]) -> Option<Self> {
        let deviation = deviation(returns);
        // Rounding makes no deviation.
        (returns.len() > 1 && deviation > 1e-12).then(|| Self {
            days: returns.len(),
            daily: mean(returns) / deviation,
            skewness: moment(returns, 3) / deviation.powi(3),
            kurtosis: moment(returns, 4) / deviation.powi(4),
        })
    }

    /// The ratio a year.
    pub(super) fn yearly(self) -> f64 {
        self.daily * YEAR.sqrt()
    }

    /// The standard error of the ratio a day, of independent returns of any distribution (Mertens 2002).
    fn daily_error(self) -> f64 {
        let Self { days, daily, skewness, kurtosis } = self;
        let factor = 1. - skewness * daily + 0.25 * (kurtosis - 1.) * daily * daily;
        (factor.max(0.) / (days as f64 - 1.)).sqrt()
    }

    /// The standard error of the ratio a year.
    pub(super) fn error(self) -> f64 {
        self.daily_error() * YEAR.sqrt()
    }

    /// The chance that the true ratio is above `other` a year (Bailey and López de Prado 2012).
    pub(super) fn chance_above(self, other: f64) -> f64 {
        normal((self.daily - other / YEAR.sqrt()) / self.daily_error().max(f64::MIN_POSITIVE))
    }
}

/// The Sharpe ratio a year that the best of `trials` without any skill can be expected to reach, where theirs have this standard
/// deviation (Bailey and López de Prado, *The deflated Sharpe ratio*, 2014).
pub(super) fn best_by_luck(trials: usize, deviation: f64) -> f64 {
    if trials < 2 {
        return 0.;
    }
    let n = trials as f64;
    deviation * ((1. - EULER) * normal_quantile(1. - 1. / n) + EULER * normal_quantile(1. - 1. / (n * E)))
}

/// The probability of backtest overfitting by combinatorially symmetric cross-validation (Bailey, Borwein, López de Prado and Zhu
/// 2017): the days are cut into ten parts; of all ways to choose by five of them, the share in which the policy that is best there
/// is in the worse half of all on the other five. `returns` are those of each policy on the same days; nothing of fewer than
/// two policies, or than twenty days a part.
pub(super) fn overfitting(returns: &[Vec<f64>]) -> Option<f64> {
    let days = returns.iter().map(Vec::len).min()?;
    if returns.len() < 2 || days < 20 * PARTS {
        return None;
    }
    let part = |k: usize| k * days / PARTS..(k + 1) * days / PARTS;
    let ratio = |policy: &[f64], chosen: u32| {
        let kept: Vec<f64> =
            (0..PARTS).filter(|k| chosen >> k & 1 == 1).flat_map(|k| policy[part(k)].to_vec()).collect();
        Sharpe::of(&kept).map_or(0., Sharpe::yearly)
    };
    let halves = (0..1u32 << PARTS).filter(|chosen| chosen.count_ones() as usize == PARTS / 2);
    let (mut worse, mut all) = (0., 0.);
    for chosen in halves {
        let seen: Vec<f64> = returns.iter().map(|r| ratio(r, chosen)).collect();
        let unseen: Vec<f64> = returns.iter().map(|r| ratio(r, !chosen)).collect();
        let best = (0..seen.len()).max_by(|a, b| seen[*a].total_cmp(&seen[*b]))?;
        // Its rank among all of them, in (0, 1); equals count half.
        let below = unseen.iter().filter(|u| **u < unseen[best]).count() as f64;
        let equal = unseen.iter().filter(|u| **u == unseen[best]).count() as f64;
        let rank = (below + 0.5 * (equal + 1.)) / (unseen.len() as f64 + 1.);
        worse += if rank < 0.5 {
            1.
        } else if rank == 0.5 {
            0.5
        } else {
            0.
        };
        all += 1.;
    }
    Some(worse / all)
}

/// The daily returns of a policy, as the table of its equity has them, and the first day.
fn returns(evaluation: &Evaluation) -> Option<(String, Vec<f64>)> {
    let table = evaluation.tables.iter().find(|t| t.name == "equity")?;
    let worth = |row: &Vec<String>| row.get(1)?.parse::<f64>().ok();
    let worths: Vec<f64> = table.rows.iter().map(worth).collect::<Option<_>>()?;
    let before = std::iter::once(1.).chain(worths.iter().copied());
    let returns = before.zip(&worths).map(|(before, after)| after / before - 1.).collect();
    Some((table.rows.first()?.first()?.clone(), returns))
}

/// What a policy's Sharpe ratio is worth after what was tried, or how far one of several policies on the same days may be chosen.
pub(crate) fn reconsider(evaluations: &[&Evaluation], trials: &dyn Fn() -> Trials) -> Vec<String> {
    let all: Option<Vec<(String, Vec<f64>)>> = evaluations.iter().map(|e| returns(e)).collect();
    match all.unwrap_or_default().as_slice() {
        [] => vec![],
        [(_, one)] => Vec::from_iter(deflated(one, &trials())),
        [first, others @ ..] => {
            // Days that differ cannot be dealt out alike.
            if others.iter().any(|(day, days)| *day != first.0 || days.len() != first.1.len()) {
                return vec![];
            }
            let all: Vec<Vec<f64>> = std::iter::once(first).chain(others).map(|(_, days)| days.clone()).collect();
            let said = |p: f64| {
                format!(
                    "Probability of backtest overfitting: {:.0} % (of 252 ways to choose among these {} by half of the days, the share in \
                     which the chosen one is in the worse half on the others; 50 % is chance).",
                    100. * p,
                    all.len()
                )
            };
            Vec::from_iter(overfitting(&all).map(said))
        }
    }
}

fn deflated(days: &[f64], trials: &Trials) -> Option<String> {
    let sharpe = Sharpe::of(days)?;
    let (ratio, error) = (sharpe.yearly(), sharpe.error());
    // The loss of a policy is its Sharpe ratio turned round.
    let ratios: Vec<f64> = trials.losses.iter().map(|loss| -loss).collect();
    if ratios.len() < 2 {
        return Some(format!(
            "Sharpe ratio {ratio:.2} with a standard error of {error:.2}. Fewer than two looks at validation data are known \
             (those of a run directory given as --checkpoint, and of the runs beside it): the ratio is not deflated."
        ));
    }
    let spread = deviation(&ratios);
    let luck = best_by_luck(ratios.len(), spread);
    Some(format!(
        "Sharpe ratio {ratio:.2} with a standard error of {error:.2}. {} looks at validation data in {} of this folder decided, whose ratios \
         have a standard deviation of {spread:.2}: the best of as many without skill can be expected to reach {luck:.2} there. The chance that the true ratio is \
         above that is {:.0} % (deflated Sharpe ratio, with validation's spread; above 0: {:.0} %).",
        ratios.len(),
        if trials.runs == 1 { "1 run".to_string() } else { format!("{} runs", trials.runs) },
        100. * sharpe.chance_above(luck),
        100. * sharpe.chance_above(0.),
    ))
}

/// The standard normal distribution, to 1e-7 (Abramowitz and Stegun 7.1.26, of erf).
fn normal(x: f64) -> f64 {
    let z = x.abs() / 2f64.sqrt();
    let t = 1. / (1. + 0.327_591_1 * z);
    let terms = [0.254_829_592, -0.284_496_736, 1.421_413_741, -1.453_152_027, 1.061_405_429];
    let tail = terms.iter().rev().fold(0., |sum, a| (sum + a) * t) * (-z * z).exp();
    if x >= 0. { 1. - 0.5 * tail } else { 0.5 * tail }
}

/// Its quantile, by bisection.
fn normal_quantile(p: f64) -> f64 {
    let (mut low, mut high) = (-10., 10.);
    for _ in 0..60 {
        let middle = 0.5 * (low + high);
        if normal(middle) < p { low = middle } else { high = middle }
    }
    0.5 * (low + high)
}

#[cfg(test)]
mod tests {
    use zoo_layers::random::{Purpose, Stream};

    use super::*;

    fn returns(seed: u64, days: usize, drift: f64) -> Vec<f64> {
        let mut stream = Stream::new(seed, Purpose::Simulation, 1, 0);
        (0..days).map(|_| 0.01 * (drift + stream.normal())).collect()
    }

    #[test]
    fn the_error_is_the_spread_of_ratios_of_the_same_kind() {
        let ratios: Vec<f64> =
            (0..400).filter_map(|seed| Sharpe::of(&returns(seed, 500, 0.1))).map(Sharpe::yearly).collect();
        let spread = deviation(&ratios);
        let said = Sharpe::of(&returns(1, 500, 0.1)).map_or(0., Sharpe::error);
        assert!((said / spread - 1.).abs() < 0.1, "{said} for {spread}");
        assert!(Sharpe::of(&[0.; 100]).is_none());
    }

    #[test]
    fn the_normal_distribution_is_the_known_one() {
        for (x, p) in [(0., 0.5), (1.96, 0.975_002_1), (-1., 0.158_655_3), (3., 0.998_650_1)] {
            assert!((normal(x) - p).abs() < 2e-7 && (normal_quantile(p) - x).abs() < 1e-4, "{x}");
        }
    }

    #[test]
    fn luck_grows_with_the_trials() {
        // The mean of the largest of 100 standard normal numbers is 2.508.
        assert!((best_by_luck(100, 1.) - 2.508).abs() < 0.03, "{}", best_by_luck(100, 1.));
        assert_eq!(best_by_luck(1, 1.), 0.);
        let sharpe = Sharpe::of(&returns(3, 1000, 0.08)).unwrap();
        let yearly = sharpe.yearly();
        assert!((sharpe.chance_above(yearly) - 0.5).abs() < 1e-6 && sharpe.chance_above(0.) > 0.5);
    }

    #[test]
    fn policies_without_skill_are_best_by_luck_and_a_skilled_one_is_not() {
        let noise: Vec<Vec<f64>> = (0..20).map(|seed| returns(seed, 1000, 0.)).collect();
        let by_luck = overfitting(&noise).unwrap();
        assert!((0.25..0.9).contains(&by_luck), "{by_luck}");
        let mut skilled = noise.clone();
        skilled.push(returns(99, 1000, 0.3));
        assert!(overfitting(&skilled).unwrap() < 0.02);
        assert!(overfitting(&noise[..1]).is_none() && overfitting(&[vec![0.; 50], vec![0.; 50]]).is_none());
    }
}
