use crate::features::windows;

/// By how many standard errors the mean of a series differs from zero, if that can be told. The error counts covariances of
/// values fewer than `lags` apart (Newey and West 1987).
pub(crate) fn standard_errors(series: &[f64], lags: usize) -> Option<f64> {
    let n = series.len();
    let mean = windows::mean(series);
    let covariance = |lag: usize| {
        let later = &series[lag.min(n)..];
        series.iter().zip(later).map(|(x, y)| (x - mean) * (y - mean)).sum::<f64>() / n.max(1) as f64
    };
    let weight = |lag: usize| 1. - lag as f64 / lags as f64;
    let variance = covariance(0) + 2. * (1..lags).map(|lag| weight(lag) * covariance(lag)).sum::<f64>();
    let told = n >= 2 * lags && variance > 1e-9 * mean * mean;
    told.then(|| mean / (variance / n as f64).sqrt())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_independent_values_are_the_usual_ones_and_those_of_repeated_ones_larger() {
        let once: Vec<f64> = (0..4000).map(|i| f64::from((i * 7919) % 1000) / 1000. - 0.48).collect();
        let mean = once.iter().sum::<f64>() / 4000.;
        let variance = once.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / 4000.;
        let usual = mean / (variance / 4000.).sqrt();
        assert!(standard_errors(&once, 1).is_some_and(|e| (e / usual - 1.).abs() < 1e-9));
        let thrice: Vec<f64> = once.iter().flat_map(|v| [*v; 3]).collect();
        let (short, long) = (standard_errors(&thrice, 1), standard_errors(&thrice, 12));
        assert!(short.is_some_and(|s| long.is_some_and(|l| s.abs() > 1.3 * l.abs())), "{short:?} {long:?}");
        assert_eq!(standard_errors(&[0.; 100], 5), None);
        assert_eq!(standard_errors(&once[..5], 5), None);
    }
}
