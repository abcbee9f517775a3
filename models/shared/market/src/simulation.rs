use jiff::civil::{Date, Weekday};
use zoo_layers::random::{Purpose, Stream};

use crate::{Bar, Days};

/// Simulated daily bars: log returns of a GARCH(1,1) process (Bollerslev 1986) with Student-t innovations of five
/// degrees of freedom, in two regimes, calm and turbulent, that last 100 and 25 days on average. The scale is that of a
/// large stock: 0.03 % drift and 1.1 % or 2.4 % volatility a day. Like real prices, they cannot be forecast.
pub fn simulate(days: usize, seed: u64) -> Days {
    const DRIFT: f64 = 3e-4;
    const VOLATILITY: [f64; 2] = [0.011, 0.024];
    const LEAVE: [f64; 2] = [1. / 100., 1. / 25.];
    // Weights of yesterday's squared shock and variance; the rest returns to the regime's level.
    const SHOCK: f64 = 0.08;
    const MEMORY: f64 = 0.90;
    let mut s = Stream::new(seed, Purpose::Simulation, 0, 0);
    let mut result = Days::default();
    let mut date = Date::constant(2000, 1, 3);
    let (mut regime, mut close, mut variance) = (0, 100f64, VOLATILITY[0].powi(2));
    for _ in 0..days {
        if s.uniform() < LEAVE[regime] {
            regime = 1 - regime;
        }
        let shock = variance.sqrt() * student_t5(&mut s);
        let level = VOLATILITY[regime].powi(2);
        variance = (1. - SHOCK - MEMORY) * level + SHOCK * shock * shock + MEMORY * variance;
        let open = close * (0.3 * variance.sqrt() * s.normal()).exp();
        close *= (DRIFT + shock).exp();
        let mut reach = || (0.5 * variance.sqrt() * s.normal().abs()).exp();
        let (high, low) = (open.max(close) * reach(), open.min(close) / reach());
        let volume = (1e6 * (0.3 * s.normal() + 20. * shock.abs()).exp()).round();
        result.dates.push(date);
        result.bars.push(Bar { open, high, low, close, volume });
        date = next_weekday(date);
    }
    result
}

/// Simulated daily bars whose log returns are an autoregressive process: each is `coefficient` times the one before, plus normal
/// noise, with a deviation of 1 % a day in all, and no drift. At 0 they are a random walk. What a bar says of the next is said by
/// its own return; opens, highs, lows and volumes say nothing.
pub fn autoregressive(days: usize, coefficient: f64, seed: u64) -> Days {
    const DEVIATION: f64 = 0.01;
    let noise = DEVIATION * (1. - coefficient * coefficient).max(0.).sqrt();
    let mut s = Stream::new(seed, Purpose::Simulation, 2, 0);
    let mut result = Days::default();
    let mut date = Date::constant(2000, 1, 3);
    let (mut close, mut change) = (100f64, 0.);
    for _ in 0..days {
        let open = close * (0.1 * DEVIATION * s.normal()).exp();
        change = coefficient * change + noise * s.normal();
        close *= change.exp();
        let mut reach = || (0.5 * DEVIATION * s.normal().abs()).exp();
        let (high, low) = (open.max(close) * reach(), open.min(close) / reach());
        result.dates.push(date);
        result.bars.push(Bar { open, high, low, close, volume: (1e6 * (0.3 * s.normal()).exp()).round() });
        date = next_weekday(date);
    }
    result
}

fn next_weekday(date: Date) -> Date {
    let mut date = date;
    loop {
        // The calendar ends in 9999; simulations are far shorter.
        date = date.tomorrow().unwrap_or(date);
        if !matches!(date.weekday(), Weekday::Saturday | Weekday::Sunday) {
            return date;
        }
    }
}

/// Student's t with five degrees of freedom, scaled to unit variance.
fn student_t5(s: &mut Stream) -> f64 {
    let chi_squared: f64 = (0..5).map(|_| s.normal().powi(2)).sum();
    s.normal() / (chi_squared / 5.).sqrt() * (3f64 / 5.).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_autoregressive_markets_returns_keep_a_share_of_the_one_before_and_no_more() {
        for coefficient in [0.3, 0., -0.5] {
            let days = autoregressive(20_000, coefficient, 7);
            let r: Vec<f64> = days.bars.windows(2).map(|w| (w[1].close / w[0].close).ln()).collect();
            let product = |lag: usize| r.windows(lag + 1).map(|w| w[0] * w[lag]).sum::<f64>();
            let correlation = |lag: usize| product(lag) / product(0);
            assert!((correlation(1) - coefficient).abs() < 0.03, "{coefficient}: {}", correlation(1));
            assert!((correlation(2) - coefficient.powi(2)).abs() < 0.03);
            assert!(((product(0) / r.len() as f64).sqrt() / 0.01 - 1.).abs() < 0.05);
            assert!(days.bars.iter().all(|b| b.low <= b.open.min(b.close) && b.high >= b.open.max(b.close)));
        }
    }

    #[test]
    fn simulated_returns_have_heavy_tails_and_clustered_volatility() {
        let days = simulate(20_000, 1);
        let r: Vec<f64> = days.bars.windows(2).map(|w| (w[1].close / w[0].close).ln()).collect();
        let n = r.len() as f64;
        let mean = r.iter().sum::<f64>() / n;
        let moment = |k: i32| r.iter().map(|x| (x - mean).powi(k)).sum::<f64>() / n;
        let (std, kurtosis) = (moment(2).sqrt(), moment(4) / moment(2).powi(2));
        let autocorrelation = |x: &[f64]| {
            let m = x.iter().sum::<f64>() / x.len() as f64;
            let c = |lag: usize| x.windows(lag + 1).map(|w| (w[0] - m) * (w[lag] - m)).sum::<f64>();
            c(1) / c(0)
        };
        assert!((0.008..0.03).contains(&std), "{std}");
        assert!(kurtosis > 5., "{kurtosis}");
        assert!(autocorrelation(&r).abs() < 0.05, "{}", autocorrelation(&r));
        assert!(autocorrelation(&r.iter().map(|x| x.abs()).collect::<Vec<_>>()) > 0.1);
        assert!(days.bars.iter().all(|b| b.low <= b.open.min(b.close) && b.high >= b.open.max(b.close)));
        assert_eq!(days.bars[..100], simulate(100, 1).bars[..]);
        assert_ne!(days.bars[1], simulate(2, 2).bars[1]);
    }
}
