//! Forecasts of time series that need no network, one day ahead, fitted to the training part.

/// Lags of the autoregression.
const LAGS: usize = 5;

/// What a forecast is made by.
#[derive(Clone, Debug)]
pub(crate) enum Classical {
    /// Returns by the last five: a constant and their coefficients.
    Autoregression(Vec<f64>),
    /// Simple exponential smoothing of the logarithm of the close, with this weight of the last one (Holt 1957, Brown 1959: ETS of
    /// additive errors, no trend and no season).
    Smoothing(f64),
    /// The same with half the slope of the training part's trend (Assimakopoulos and Nikolopoulos 2000, as Hyndman and Billah 2003
    /// write it).
    Theta(f64, f64),
}

impl Classical {
    pub(crate) const NAMES: [&'static str; 3] = ["autoregression", "exponential_smoothing", "theta"];

    /// The method of a name, fitted to logarithms of closes.
    pub(crate) fn fit(name: &str, logs: &[f64]) -> Option<Self> {
        match name {
            "autoregression" => Some(Self::Autoregression(autoregression(logs))),
            "exponential_smoothing" => Some(Self::Smoothing(smoothing(logs))),
            "theta" => Some(Self::Theta(smoothing(logs), 0.5 * slope(logs))),
            _ => None,
        }
    }

    /// The forecast of each day from `first` on, from the days before it.
    pub(crate) fn forecasts(&self, logs: &[f64], first: usize) -> Vec<f64> {
        match self {
            Self::Autoregression(coefficients) => {
                let ahead = |day: usize| {
                    let lags = (1..=LAGS).map(|k| day.checked_sub(k + 1).map_or(0., |d| logs[d + 1] - logs[d]));
                    let sum = coefficients[1..].iter().zip(lags).map(|(c, r)| c * r).sum::<f64>();
                    logs[day - 1] + coefficients[0] + sum
                };
                (first..logs.len()).map(ahead).collect()
            }
            Self::Smoothing(weight) => levels(logs, *weight)[first..logs.len()].to_vec(),
            Self::Theta(weight, drift) => {
                // Drift / α: the term that Hyndman and Billah's forecast tends to as the series grows longer.
                let ahead = |level: &f64| level + drift / weight.max(1e-3);
                levels(logs, *weight)[first..logs.len()].iter().map(ahead).collect()
            }
        }
    }
}

/// The smoothed level before each value, and after the last.
fn levels(logs: &[f64], weight: f64) -> Vec<f64> {
    let mut level = logs.first().copied().unwrap_or_default();
    let mut all = vec![level];
    for value in logs {
        level += weight * (value - level);
        all.push(level);
    }
    all
}

/// The weight with the least squared error one step ahead, by golden section.
fn smoothing(logs: &[f64]) -> f64 {
    let error = |weight: f64| logs.iter().zip(levels(logs, weight)).map(|(v, l)| (v - l).powi(2)).sum::<f64>();
    let ratio = 0.5 * (5f64.sqrt() - 1.);
    let (mut low, mut high) = (0.01, 1.);
    for _ in 0..40 {
        let (a, b) = (high - ratio * (high - low), low + ratio * (high - low));
        if error(a) < error(b) { high = b } else { low = a }
    }
    let middle = 0.5 * (low + high);
    if error(1.) <= error(middle) { 1. } else { middle }
}

/// The slope of the least-squares line.
fn slope(logs: &[f64]) -> f64 {
    let n = logs.len() as f64;
    let (middle, mean) = ((n - 1.) / 2., logs.iter().sum::<f64>() / n.max(1.));
    let (mut both, mut own) = (0., 0.);
    for (i, v) in logs.iter().enumerate() {
        both += (i as f64 - middle) * (v - mean);
        own += (i as f64 - middle).powi(2);
    }
    if own > 0. { both / own } else { 0. }
}

/// Constant and coefficients of the last returns, by least squares.
fn autoregression(logs: &[f64]) -> Vec<f64> {
    let returns: Vec<f64> = logs.windows(2).map(|w| w[1] - w[0]).collect();
    let size = LAGS + 1;
    let mut normal = vec![vec![0.; size + 1]; size];
    for t in LAGS..returns.len() {
        let row: Vec<f64> = std::iter::once(1.).chain((1..=LAGS).map(|k| returns[t - k])).collect();
        for i in 0..size {
            (0..size).for_each(|j| normal[i][j] += row[i] * row[j]);
            normal[i][size] += row[i] * returns[t];
        }
    }
    // Gauss and Jordan; a hair on the diagonal where returns never change.
    let scale = normal.iter().enumerate().map(|(i, row)| row[i]).fold(0., f64::max).max(f64::MIN_POSITIVE);
    (0..size).for_each(|i| normal[i][i] += 1e-12 * scale);
    for i in 0..size {
        let best = (i..size).max_by(|a, b| normal[*a][i].abs().total_cmp(&normal[*b][i].abs())).unwrap_or(i);
        normal.swap(i, best);
        let pivot = normal[i].clone();
        for (_, row) in normal.iter_mut().enumerate().filter(|(k, _)| *k != i) {
            let share = row[i] / pivot[i];
            row.iter_mut().zip(&pivot).for_each(|(v, p)| *v -= share * p);
        }
    }
    (0..size).map(|i| normal[i][size] / normal[i][i]).collect()
}

#[cfg(test)]
mod tests {
    use zoo_layers::random::{Purpose, Stream};

    use super::*;

    fn noise(n: usize) -> impl Iterator<Item = f64> {
        let mut stream = Stream::new(1, Purpose::Simulation, 4, 0);
        (0..n).map(move |_| stream.normal())
    }

    #[test]
    fn an_autoregression_finds_the_coefficients_that_made_it() {
        let (mut logs, mut last) = (vec![0., 0.01], 0.01);
        for shock in noise(20_000) {
            last = 0.002 + 0.4 * last + 0.005 * shock;
            logs.push(logs[logs.len() - 1] + last);
        }
        let found = autoregression(&logs);
        assert!((found[0] - 0.002).abs() < 3e-4 && (found[1] - 0.4).abs() < 0.02 && found[3].abs() < 0.02, "{found:?}");
        let model = Classical::fit("autoregression", &logs).unwrap();
        let next = model.forecasts(&logs, 100)[0];
        let returns = |k: usize| logs[100 - k] - logs[99 - k];
        let expected = logs[99] + found[0] + (1..=5).map(|k| found[k] * returns(k)).sum::<f64>();
        assert!((next - expected).abs() < 1e-12);
    }

    #[test]
    fn smoothing_trusts_a_walk_and_averages_noise() {
        let walk: Vec<f64> = noise(2000)
            .scan(0., |sum, v| {
                *sum += v;
                Some(*sum)
            })
            .collect();
        assert!(smoothing(&walk) > 0.9, "{}", smoothing(&walk));
        let flat: Vec<f64> = noise(2000).collect();
        assert!(smoothing(&flat) < 0.1, "{}", smoothing(&flat));
        let line: Vec<f64> = (0..500).map(|i| 0.01 * f64::from(i)).collect();
        assert!((slope(&line) - 0.01).abs() < 1e-12);
        // Half the trend of a line, on top of its last value.
        let theta = Classical::fit("theta", &line).unwrap().forecasts(&line, 499)[0];
        assert!((theta - line[498] - 0.005).abs() < 1e-9, "{theta}");
    }
}
