//! Filters and resampling of recordings, time steps × channels.

use std::f64::consts::{FRAC_1_SQRT_2, PI};

/// Quality factors of the two halves of a Butterworth filter of order 4.
const QUALITIES: [f64; 2] = [0.541_196_100_146_197, 1.306_562_964_876_376_5];
/// A notch's frequency over its width, between the frequencies that keep half of the power.
pub(super) const NOTCH: f64 = 30.;
/// A Kaiser window of this shape leaves 1e-4 of what lies behind the stop band's edge; the transition takes a fifth of the lower
/// Nyquist frequency, and so many periods of it on both sides.
const KAISER: f64 = 8.;
const TRANSITION: f64 = 0.1;
const HALF_PERIODS: f64 = 25.;

/// What a filter keeps.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Filter {
    /// What lies above a frequency in Hz.
    Above(f64),
    /// What lies below it.
    Below(f64),
    /// All but a frequency.
    Without(f64),
}

/// Two poles and two zeros, the constant of the poles divided away.
struct Section {
    b: [f64; 3],
    a: [f64; 2],
}

impl Filter {
    /// By the bilinear transform, with the frequency where it should be.
    fn sections(self, rate: f64) -> Vec<Section> {
        let (frequency, qualities): (f64, &[f64]) = match self {
            Self::Above(f) | Self::Below(f) => (f, &QUALITIES),
            Self::Without(f) => (f, &[NOTCH]),
        };
        let angle = 2. * PI * frequency / rate;
        let (sin, cos) = angle.sin_cos();
        let section = |quality: &f64| {
            let half = sin / (2. * quality);
            let b = match self {
                Self::Above(_) => [(1. + cos) / 2., -1. - cos, (1. + cos) / 2.],
                Self::Below(_) => [(1. - cos) / 2., 1. - cos, (1. - cos) / 2.],
                Self::Without(_) => [1., -2. * cos, 1.],
            };
            Section { b: b.map(|b| b / (1. + half)), a: [-2. * cos, 1. - half].map(|a| a / (1. + half)) }
        };
        qualities.iter().map(section).collect()
    }

    /// Steps until it has forgotten how it began.
    fn memory(self, rate: f64) -> usize {
        let width = match self {
            Self::Above(f) | Self::Below(f) => f * FRAC_1_SQRT_2,
            Self::Without(f) => f / NOTCH,
        };
        (3. * rate / width).ceil() as usize
    }
}

impl Section {
    /// Filters in place, beginning as if the first value had stood there for ever.
    fn run(&self, values: &mut [f64]) {
        let [b0, b1, b2] = self.b;
        let [a1, a2] = self.a;
        let first = values.first().copied().unwrap_or(0.);
        let settled = first * (b0 + b1 + b2) / (1. + a1 + a2);
        let mut late = b2 * first - a2 * settled;
        let mut soon = b1 * first - a1 * settled + late;
        for value in values {
            let x = *value;
            let y = b0 * x + soon;
            soon = b1 * x - a1 * y + late;
            late = b2 * x - a2 * y;
            *value = y;
        }
    }
}

/// Filters a channel forwards and backwards, so that nothing is delayed; it is continued point-symmetrically at its ends. Values that
/// are not finite stay so, and the others see a straight line in their place.
fn filtered(values: &mut [f64], filter: Filter, rate: f64) {
    let known: Vec<usize> = (0..values.len()).filter(|i| values[*i].is_finite()).collect();
    let (Some(&first), Some(&last)) = (known.first(), known.last()) else { return };
    let mut line = values.to_vec();
    line[..first].fill(values[first]);
    line[last..].fill(values[last]);
    for pair in known.windows(2).filter(|w| w[1] > w[0] + 1) {
        let (from, to) = (pair[0], pair[1]);
        for i in from + 1..to {
            let share = (i - from) as f64 / (to - from) as f64;
            line[i] = values[from] * (1. - share) + values[to] * share;
        }
    }
    let pad = filter.memory(rate).min(line.len() - 1);
    let mut long: Vec<f64> = (1..=pad).rev().map(|i| 2. * line[0] - line[i]).collect();
    long.extend(&line);
    long.extend((1..=pad).map(|i| 2. * line[line.len() - 1] - line[line.len() - 1 - i]));
    for _ in 0..2 {
        filter.sections(rate).iter().for_each(|section| section.run(&mut long));
        long.reverse();
    }
    for i in known {
        values[i] = long[pad + i];
    }
}

/// Filters each of `n` channels.
pub(super) fn filter(values: &mut [f32], n: usize, filter: Filter, rate: f64) {
    for channel in 0..n {
        let mut column: Vec<f64> = values.iter().skip(channel).step_by(n).map(|v| f64::from(*v)).collect();
        filtered(&mut column, filter, rate);
        values.iter_mut().skip(channel).step_by(n).zip(column).for_each(|(to, v)| *to = v as f32);
    }
}

/// The modified Bessel function of the first kind of order 0, by its series.
fn bessel(x: f64) -> f64 {
    let (mut term, mut sum) = (1., 1.);
    for k in 1..40 {
        term *= (x / (2. * f64::from(k))).powi(2);
        sum += term;
    }
    sum
}

/// The frequencies in Hz, between which resampling lets less and less through.
pub(super) fn transition(from: f64, to: f64) -> [f64; 2] {
    let nyquist = 0.5 * from.min(to);
    [nyquist * (1. - 2. * TRANSITION), nyquist]
}

/// `n` channels at another rate: a sinc under a Kaiser window, without delay; at their ends they are continued point-symmetrically.
pub(super) fn resampled(values: &[f32], n: usize, from: f64, to: f64) -> Vec<f32> {
    let rows = values.len() / n;
    if rows == 0 {
        return vec![];
    }
    let lower = from.min(to);
    // Cycles a step of the input, in the middle of the transition.
    let cutoff = 0.5 * (1. - TRANSITION) * lower / from;
    let reach = HALF_PERIODS * from / lower;
    let count = (rows as f64 * to / from).round().max(1.) as usize;
    let mut out = Vec::with_capacity(count * n);
    let mut sums = vec![0f64; n];
    let peak = bessel(KAISER);
    for k in 0..count {
        let at = k as f64 * from / to;
        let near = (at - reach).ceil() as i64..=(at + reach).floor() as i64;
        sums.fill(0.);
        let mut all = 0.;
        for i in near {
            let apart = i as f64 - at;
            let angle = 2. * PI * cutoff * apart;
            let sinc = if angle.abs() < 1e-9 { 1. } else { angle.sin() / angle };
            let weight = sinc * bessel(KAISER * (1. - (apart / reach).powi(2)).max(0.).sqrt()) / peak;
            all += weight;
            let last = rows as i64 - 1;
            // Beyond an end: twice the end less what lies as far within.
            let (end, inner) = match i {
                _ if i < 0 => (Some(0), (-i).min(last)),
                _ if i > last => (Some(last), (2 * last - i).max(0)),
                _ => (None, i),
            };
            let row = |i: i64| &values[i as usize * n..(i as usize + 1) * n];
            match end {
                None => sums.iter_mut().zip(row(inner)).for_each(|(s, v)| *s += weight * f64::from(*v)),
                Some(end) => {
                    let pairs = row(end).iter().zip(row(inner));
                    sums.iter_mut()
                        .zip(pairs)
                        .for_each(|(s, (end, v))| *s += weight * (2. * f64::from(*end) - f64::from(*v)));
                }
            }
        }
        out.extend(sums.iter().map(|s| (s / all) as f32));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wave(frequency: f64, rate: f64, rows: usize) -> Vec<f32> {
        (0..rows).map(|t| (2. * PI * frequency * t as f64 / rate).sin() as f32).collect()
    }

    /// The largest magnitude away from the ends.
    fn largest(values: &[f32]) -> f32 {
        let quarter = values.len() / 4;
        values[quarter..values.len() - quarter].iter().fold(0., |m, v| m.max(v.abs()))
    }

    #[test]
    fn resampling_keeps_what_is_slow_and_drops_what_is_fast() {
        for (from, to) in [(1024., 500.), (250., 500.), (999.41, 500.), (2000., 500.), (512., 500.)] {
            let [pass, stop] = transition(from, to);
            let rows = from as usize * 2;
            let found = resampled(&wave(0.95 * pass, from, rows), 1, from, to);
            let expected = wave(0.95 * pass, to, found.len());
            let middle = found.len() / 4..3 * found.len() / 4;
            let off = middle.map(|i| (found[i] - expected[i]).abs()).fold(0., f32::max);
            assert!(off < 1e-3, "{from} to {to}: {off}");
            assert_eq!(found.len(), (rows as f64 * to / from).round() as usize);
            if from > to {
                let gone = largest(&resampled(&wave(1.05 * stop, from, rows), 1, from, to));
                assert!(gone < 1e-3, "{from} to {to}: {gone}");
            }
        }
        assert!(resampled(&[3.; 40], 2, 1024., 500.).iter().all(|v| (v - 3.).abs() < 1e-6));
    }

    #[test]
    fn filters_keep_their_bands_without_delay() {
        let rate = 500.;
        for (filter_by, frequency, expected) in [
            (Filter::Below(40.), 10., 1.),
            (Filter::Below(40.), 40., 0.5),
            (Filter::Below(40.), 120., 0.),
            (Filter::Above(4.), 30., 1.),
            (Filter::Above(4.), 4., 0.5),
            (Filter::Above(4.), 0.5, 0.),
            (Filter::Without(50.), 50., 0.),
            (Filter::Without(50.), 40., 1.),
        ] {
            let before = wave(frequency, rate, 4000);
            let mut after = before.clone();
            filter(&mut after, 1, filter_by, rate);
            let off = (1000..3000).map(|i| (after[i] - expected * before[i]).abs()).fold(0., f32::max);
            assert!(off < 0.012, "{filter_by:?} at {frequency} Hz: {off}");
        }
        let mut gap = wave(10., rate, 1000);
        gap[500] = f32::NAN;
        filter(&mut gap, 1, Filter::Below(40.), rate);
        assert!(gap[500].is_nan() && gap.iter().filter(|v| v.is_nan()).count() == 1);
    }
}
