//! Courses that no neural mass makes: what a network has to image that knows more than one simulator.

use std::f64::consts::PI;

use zoo_layers::random::Stream;

use super::{RATE, between};
use crate::image::still;

/// A wave of the form exp(-(t - t0)²/2σ²), seconds.
fn bump(t: f64, at: f64, width: f64) -> f64 {
    (-0.5 * ((t - at) / width).powi(2)).exp()
}

/// A spike of one or two bumps with a slow wave behind it, or a rhythm of 3 to 12 Hz that comes and goes: its largest magnitude
/// one, without its mean.
pub(super) fn smooth(steps: usize, draw: &mut Stream) -> Vec<f32> {
    let length = steps as f64 / RATE as f64;
    let at = length * between([0.1, 0.9], draw);
    let values: Vec<f64> = if draw.uniform() < 0.6 {
        let width = between([0.01, 0.04], draw);
        let (behind, wide) = (between([0.08, 0.2], draw), between([0.04, 0.12], draw));
        let (slow, before) = (between([-0.8, 0.5], draw), between([-0.5, 0.], draw));
        let wave =
            |t: f64| bump(t, at, width) + slow * bump(t, at + behind, wide) + before * bump(t, at - 2. * width, width);
        (0..steps).map(|i| wave(i as f64 / RATE as f64)).collect()
    } else {
        let (rate, drift) = (between([3., 12.], draw), between([-2., 2.], draw));
        let (sharp, phase) = (between([0., 0.5], draw), between([0., 2. * PI], draw));
        let wide = length * between([0.15, 0.6], draw);
        let wave = |t: f64| {
            let turns = 2. * PI * (rate + 0.5 * drift * (t - at)) * (t - at) + phase;
            bump(t, at, wide) * (turns.sin() + sharp * (2. * turns).sin())
        };
        (0..steps).map(|i| wave(i as f64 / RATE as f64)).collect()
    };
    scaled(values)
}

/// A triangle of 40 to 90 ms with a half sine of 150 to 300 ms behind it, the other way round: its largest magnitude one,
/// without its mean.
pub(super) fn sharp(steps: usize, draw: &mut Stream) -> Vec<f32> {
    let length = steps as f64 / RATE as f64;
    let at = length * between([0.1, 0.8], draw);
    let (half, slow) = (between([0.02, 0.045], draw), between([0.15, 0.3], draw));
    let height = between([0.2, 0.6], draw);
    let wave = |t: f64| {
        let (near, behind) = (1. - ((t - at) / half).abs(), (t - at - half) / slow);
        near.max(0.) - if (0. ..1.).contains(&behind) { height * (PI * behind).sin() } else { 0. }
    };
    scaled((0..steps).map(|i| wave(i as f64 / RATE as f64)).collect())
}

/// Noise whose power falls as 1/f from 1 Hz to 100 Hz or so, a course of its own for each of `columns`: steps × columns.
pub(super) fn pink(steps: usize, columns: usize, stream: &mut Stream) -> Vec<f32> {
    // Sums of noise that changes ever more slowly (Voss and McCartney).
    const OCTAVES: usize = 10;
    let mut rows = vec![0f32; steps * columns];
    for column in 0..columns {
        let mut held = [0f64; OCTAVES];
        for step in 0..steps {
            for (octave, value) in held.iter_mut().enumerate() {
                if step.is_multiple_of(1 << octave) {
                    *value = stream.normal();
                }
            }
            rows[step * columns + column] = held.iter().sum::<f64>() as f32;
        }
    }
    rows
}

fn scaled(values: Vec<f64>) -> Vec<f32> {
    let mut course: Vec<f32> = values.into_iter().map(|v| v as f32).collect();
    still(&mut course, 1);
    let largest = course.iter().fold(f32::MIN_POSITIVE, |m, v| m.max(v.abs()));
    course.iter_mut().for_each(|v| *v /= largest);
    course
}

#[cfg(test)]
mod tests {
    use zoo_layers::random::Purpose;

    use super::*;

    #[test]
    fn courses_are_as_large_as_one_and_rest_at_zero() {
        for number in 0..50 {
            let mut draw = Stream::new(1, Purpose::Simulation, 2, number);
            for course in [smooth(500, &mut draw), sharp(500, &mut draw)] {
                assert_eq!(course.iter().fold(0f32, |m, v| m.max(v.abs())), 1.);
                assert!(course.iter().sum::<f32>().abs() < 1e-2);
            }
        }
    }

    #[test]
    fn pink_noise_has_as_much_power_in_each_octave() {
        let rows = pink(500, 200, &mut Stream::new(1, Purpose::Simulation, 3, 0));
        let power = |from: usize, to: usize| {
            let mut sum = 0.;
            for k in from..to {
                for column in 0..200 {
                    let of = |f: fn(f64) -> f64| {
                        let turn = |t: usize| f(2. * PI * (k * t) as f64 / 500.);
                        (0..500).map(|t| turn(t) * f64::from(rows[t * 200 + column])).sum::<f64>()
                    };
                    sum += of(f64::sin).powi(2) + of(f64::cos).powi(2);
                }
            }
            sum
        };
        let [low, middle, high] = [(1, 4), (4, 16), (16, 64)].map(|(from, to)| power(from, to));
        assert!((0.6..1.7).contains(&(low / middle)) && (0.6..1.7).contains(&(middle / high)), "{low} {middle} {high}");
    }
}
