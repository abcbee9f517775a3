//! What values from several seeds say together.

/// Student's t for a two-sided interval of 95 % by degrees of freedom, from 1.
const T: [f64; 20] = [
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120,
    2.110, 2.101, 2.093, 2.086,
];

/// The mean.
pub fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// The standard deviation that values of this kind have, estimated from at least two.
pub fn deviation(values: &[f64]) -> f64 {
    let m = mean(values);
    (values.iter().map(|v| (v - m).powi(2)).sum::<f64>() / (values.len() as f64 - 1.)).sqrt()
}

/// The 95 % interval of the mean, from at least two values.
pub fn interval(values: &[f64]) -> [f64; 2] {
    // Beyond the table it is within 0.003 of this.
    let beyond = || 1.96 + 2.4 / (values.len() as f64 - 1.);
    let t = T.get(values.len().saturating_sub(2)).copied().unwrap_or_else(beyond);
    let half = t * deviation(values) / (values.len() as f64).sqrt();
    [mean(values) - half, mean(values) + half]
}

/// What a difference of so many standard errors, in favour of the first, says of two methods: below two nothing.
pub fn verdict(errors: f64) -> &'static str {
    match errors {
        e if e > 2. => "beats",
        e if e < -2. => "is worse than",
        _ => "does not clearly differ from",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interval_of_a_mean_is_students() {
        let values = [1., 2., 3., 4., 5.];
        assert_eq!((mean(&values), deviation(&values)), (3., 2.5f64.sqrt()));
        let half = 2.776 * (2.5f64 / 5.).sqrt();
        let [low, high] = interval(&values);
        assert!((low - 3. + half).abs() < 1e-9 && (high - 3. - half).abs() < 1e-9);
    }
}
