//! Intervals that follow volatility: errors are measured in units of what prices moved by of late.

/// Weights of yesterday's estimate in the variance of returns, and shares of the mean of all returns before: those that fit the
/// known days best are taken.
const MEMORIES: [f64; 4] = [0.85, 0.9, 0.94, 0.97];
const LASTING: [f64; 6] = [0., 0.1, 0.2, 0.3, 0.4, 0.5];
/// Those of RiskMetrics (1996), where fewer known days than this would choose.
const USUAL: (f64, f64) = (0.94, 0.);
const CHOOSING: usize = 250;
/// Returns that the first estimate is made from.
const FIRST: usize = 20;
/// How fast the share that is left outside follows how often outcomes were outside (Gibbs and Candès 2021, their γ).
const STEP: f64 = 0.01;
/// The share left outside stays between these.
const RANGE: [f64; 2] = [1e-3, 0.9];
/// Fewest errors that an interval is made from.
pub(crate) const FEWEST: usize = 30;

/// The deviation of a day's log return as the days before it show it, for each of `closes` and the day after the last: an
/// exponentially weighted mean of squares, drawn to the mean of all of them as a GARCH's variance is. Its two weights are those of the greatest
/// normal likelihood on the days before `until`. The first twenty days share the estimate that follows them; no later day looks at its own
/// close.
pub(crate) fn volatilities(closes: &[f64], until: usize) -> Vec<f64> {
    let squares: Vec<f64> = closes.windows(2).map(|w| (w[1] / w[0]).ln().powi(2)).collect();
    let variances = |memory: f64, lasting: f64| {
        let first = squares.len().min(FIRST);
        let mut sum: f64 = squares[..first].iter().sum();
        let mut recent = sum / first.max(1) as f64;
        // Prices that stood still may move: by a hundredth of what is usual at least.
        let floor = |variance: f64, mean: f64| variance.max(1e-4 * mean).max(1e-12);
        let mut all = vec![floor(recent, recent); first + 2];
        for (i, square) in squares.iter().enumerate().skip(first) {
            recent = memory * recent + (1. - memory) * square;
            sum += square;
            let mean = sum / (i + 1) as f64;
            all.push(floor((1. - lasting) * recent + lasting * mean, mean));
        }
        all.truncate(closes.len() + 1);
        all
    };
    if until.min(closes.len()) < CHOOSING {
        return variances(USUAL.0, USUAL.1).into_iter().map(f64::sqrt).collect();
    }
    let misfit = |variances: &[f64]| -> f64 {
        let days = FIRST + 1..until.min(closes.len());
        days.map(|d| variances[d].ln() + squares[d - 1] / variances[d]).sum()
    };
    let tried = MEMORIES.into_iter().flat_map(|m| LASTING.map(|l| variances(m, l)));
    let best = tried.map(|v| (misfit(&v), v)).min_by(|a, b| a.0.total_cmp(&b.0));
    best.map(|(_, v)| v).unwrap_or_default().into_iter().map(f64::sqrt).collect()
}

/// Errors in units of volatility, sorted, and the share that an interval leaves outside.
#[derive(Clone, Debug)]
pub(crate) struct Conformal {
    scores: Vec<f64>,
    wanted: f64,
    outside: f64,
}

impl Conformal {
    /// From the scores of days that the model did not learn from; none if they are too few for `share`.
    pub(crate) fn new(mut scores: Vec<f64>, share: f64) -> Option<Self> {
        scores.sort_by(f64::total_cmp);
        let new = Self { scores, wanted: 1. - share, outside: 1. - share };
        (new.scores.len() >= FEWEST && new.rank() > 0).then_some(new)
    }

    /// How many scores are left outside on each side: so that new ones fall inside with at least the given probability (as in
    /// split conformal prediction, Vovk et al. 2005).
    fn rank(&self) -> usize {
        // A hair more, so that 1 - 0.9 counts as 0.1.
        ((self.scores.len() + 1) as f64 * self.outside / 2. + 1e-9).floor() as usize
    }

    /// The lowest and the highest score inside.
    pub(crate) fn bounds(&self) -> (f64, f64) {
        let (n, outside) = (self.scores.len(), self.rank().max(1));
        (self.scores[outside - 1], self.scores[n - outside])
    }

    /// The score that a share `tau` lies below.
    pub(crate) fn quantile(&self, tau: f64) -> f64 {
        let at = tau * (self.scores.len() + 1) as f64 - 1.;
        let (low, share) = (at.floor().clamp(0., self.scores.len() as f64 - 1.), at.fract().max(0.));
        let high = (low as usize + 1).min(self.scores.len() - 1);
        self.scores[low as usize] * (1. - share) + self.scores[high] * share
    }

    /// Takes the score of an outcome in: whether it was inside the bounds that were given when it was forecast, and what follows for
    /// the next. A score that is not finite was outside and tells no more.
    pub(crate) fn learn(&mut self, score: f64, (low, high): (f64, f64)) -> bool {
        let inside = (low..=high).contains(&score);
        let missed = if inside { 0. } else { 1. };
        self.outside = (self.outside + STEP * (self.wanted - missed)).clamp(RANGE[0], RANGE[1]);
        if score.is_finite() {
            let at = self.scores.partition_point(|s| *s < score);
            self.scores.insert(at, score);
        }
        inside
    }
}

/// The pinball loss of a forecast of the quantile `tau`.
pub(crate) fn pinball(tau: f64, forecast: f64, actual: f64) -> f64 {
    let above = actual - forecast;
    if above >= 0. { tau * above } else { (tau - 1.) * above }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_leave_the_stated_share_outside() {
        let scores: Vec<f64> = (0..999).map(|i| f64::from(i * 38 % 999)).collect();
        let of = |scores: &[f64], share| Conformal::new(scores.to_vec(), share).map(|c| c.bounds());
        assert_eq!(of(&scores, 0.9), Some((49., 949.)));
        assert_eq!(of(&scores[..29], 0.9), None);
        let few: Vec<f64> = (0..39).map(f64::from).collect();
        assert_eq!((of(&few, 0.99), of(&few, 0.95)), (None, Some((0., 38.))));
        let median = Conformal::new(few, 0.9).map(|c| c.quantile(0.5));
        assert_eq!(median, Some(19.));
    }

    #[test]
    fn volatility_knows_the_days_before_alone() {
        let mut closes: Vec<f64> = (0..100).map(|i| 100. * if i % 2 == 0 { 1. } else { 1.01 }).collect();
        let before = volatilities(&closes, 50);
        assert!(before.len() == 101 && before.iter().all(|v| (v / 1.01f64.ln() - 1.).abs() < 1e-9));
        closes[60] = 150.;
        let after = volatilities(&closes, 50);
        assert!(after[..=60] == before[..=60] && after[61] > 3. * before[61] && after[100] > before[100]);
        assert_eq!(volatilities(&[5.], 0).len(), 2);
    }

    #[test]
    fn an_interval_widens_where_outcomes_fall_outside() {
        let scores: Vec<f64> = (0..200).map(|i| f64::from(i) / 100. - 1.).collect();
        let mut adaptive = Conformal::new(scores, 0.9).unwrap();
        let (low, high) = adaptive.bounds();
        let mut inside = 0;
        // Three times as wide as what was known.
        for k in 0..2000u32 {
            let score = 6. * (f64::from(k * 7919 % 1000) / 1000. - 0.5);
            let bounds = adaptive.bounds();
            inside += usize::from(adaptive.learn(score, bounds));
        }
        let (wider, higher) = adaptive.bounds();
        assert!(wider < 2. * low && higher > 2. * high, "{wider} {higher}");
        assert!((1700..1900).contains(&inside), "{inside}");
    }

    #[test]
    fn the_pinball_loss_is_least_at_the_quantile() {
        let outcomes: Vec<f64> = (0..1000).map(f64::from).collect();
        let mean = |at: f64| outcomes.iter().map(|o| pinball(0.9, at, *o)).sum::<f64>();
        assert!(mean(900.) < mean(850.) && mean(900.) < mean(950.));
    }
}
