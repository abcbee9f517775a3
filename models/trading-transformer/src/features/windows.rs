//! Functions of a series that look back only: value t is made of values 0 to t.

/// `f` of the last `k` values at each place, or of those that there are.
pub(crate) fn rolling(x: &[f64], k: usize, f: impl Fn(&[f64]) -> f64) -> Vec<f64> {
    (0..x.len()).map(|t| f(&x[(t + 1).saturating_sub(k)..=t])).collect()
}

pub(crate) fn mean(x: &[f64]) -> f64 {
    x.iter().sum::<f64>() / x.len().max(1) as f64
}

/// The mean of the `n`-th powers of the deviations from the mean.
pub(crate) fn moment(x: &[f64], n: i32) -> f64 {
    let m = mean(x);
    mean(&x.iter().map(|v| (v - m).powi(n)).collect::<Vec<_>>())
}

/// Standard deviation; 0 where it is no more than rounding.
pub(crate) fn deviation(x: &[f64]) -> f64 {
    let d = moment(x, 2).sqrt();
    if d <= 1e-12 * mean(x).abs() { 0. } else { d }
}

pub(crate) fn least(x: &[f64]) -> f64 {
    x.iter().copied().fold(f64::INFINITY, f64::min)
}

pub(crate) fn greatest(x: &[f64]) -> f64 {
    x.iter().copied().fold(f64::NEG_INFINITY, f64::max)
}

/// Covariance of a series with itself `lag` values before.
pub(crate) fn autocovariance(x: &[f64], lag: usize) -> f64 {
    if x.len() <= lag {
        return 0.;
    }
    let m = mean(x);
    x.iter().zip(&x[lag..]).map(|(a, b)| (a - m) * (b - m)).sum::<f64>() / x.len() as f64
}

pub(crate) fn covariance(x: &[f64], y: &[f64]) -> f64 {
    let (a, b) = (mean(x), mean(y));
    mean(&x.iter().zip(y).map(|(x, y)| (x - a) * (y - b)).collect::<Vec<_>>())
}

/// Correlation of a series with time.
pub(crate) fn trend(x: &[f64]) -> f64 {
    let time: Vec<f64> = (0..x.len()).map(|t| t as f64).collect();
    ratio(covariance(x, &time), deviation(x) * deviation(&time))
}

/// Exponential moving average of weight 2 / (k + 1).
pub(crate) fn exponential(x: &[f64], k: usize) -> Vec<f64> {
    smoothed(x, 2. / (k + 1) as f64)
}

/// Wilder's average: weight 1 / k.
pub(crate) fn wilder(x: &[f64], k: usize) -> Vec<f64> {
    smoothed(x, 1. / k as f64)
}

fn smoothed(x: &[f64], weight: f64) -> Vec<f64> {
    let step = |state: &mut Option<f64>, v: &f64| {
        let before = state.unwrap_or(*v);
        *state = Some(before + weight * (v - before));
        *state
    };
    x.iter().scan(None, step).collect()
}

/// a / b, or 0 where b is 0.
pub(crate) fn ratio(a: f64, b: f64) -> f64 {
    if b == 0. { 0. } else { a / b }
}

/// Change from the value before; 0 at the first.
pub(crate) fn changes(x: &[f64]) -> Vec<f64> {
    std::iter::once(0.).take(x.len()).chain(x.windows(2).map(|w| w[1] - w[0])).collect()
}

/// `f` of two series, value by value.
pub(crate) fn zip(a: &[f64], b: &[f64], f: impl Fn(f64, f64) -> f64) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| f(*a, *b)).collect()
}
