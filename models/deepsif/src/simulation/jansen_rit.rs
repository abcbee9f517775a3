//! Neural masses after Jansen and Rit (Biol. Cybern. 73, 1995): a column of the cortex by the mean potentials of its pyramidal
//! cells and of the excitatory and inhibitory cells that they drive.
//!
//! ```text
//! y0'' = A a S(y1 - y2) - 2a y0' - a² y0                      pyramidal cells, as others feel them
//! y1'' = A a (p + C2 S(C1 y0)) - 2a y1' - a² y1                excitation of pyramidal cells
//! y2'' = B b C4 S(C3 y0) - 2b y2' - b² y2                      inhibition of pyramidal cells
//! S(v) = 2 e0 / (1 + exp(r (v0 - v)))
//! ```
//!
//! y1 - y2 is the potential of pyramidal cells, which the EEG sees. The input p is drawn anew every millisecond, uniformly from a
//! range; the equations are integrated by Heun's method in f32 steps of one millisecond.

use candle_core::Result;
use pulp::{Simd, WithSimd};
use zoo_kernels::cpu::{Buffer, Pointer, parallel, simd, vector};
use zoo_layers::random::Stream;

/// Rate of the excitatory membrane, 1/s.
const A_RATE: f32 = 100.;
/// Rate of the inhibitory membrane, 1/s.
const B_RATE: f32 = 50.;
/// Inhibitory gain, mV.
const B_GAIN: f32 = 22.;
/// Synapses between the populations: C1, 0.8 C1, 0.25 C1 and 0.25 C1.
const SYNAPSES: f32 = 135.;
/// Half of the greatest firing rate, 1/s.
const RATE: f32 = 2.5;
/// The potential at which half the cells fire, mV.
const THRESHOLD: f32 = 6.;
/// How steeply the rate rises with the potential, 1/mV.
const STEEPNESS: f32 = 0.56;
/// Seconds of a step of the integration.
const STEP: f32 = 1e-3;

/// What differs between masses.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Mass {
    /// Excitatory gain A, mV: 3.25 in health.
    pub gain: f32,
    /// Range of the input, 1/s.
    pub input: [f32; 2],
}

impl Mass {
    /// A column at rest, which gives alpha waves (Jansen and Rit 1995).
    pub const RESTING: Self = Self { gain: 3.25, input: [120., 320.] };
}

/// Masses side by side, in arrays of a multiple of 16, the largest number of SIMD lanes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Masses {
    gain: Vec<f32>,
    low: Vec<f32>,
    span: Vec<f32>,
}

/// Masses that a task takes: as many as a vector has lanes at most.
const GROUP: usize = 16;

impl Masses {
    pub(crate) fn new(masses: &[Mass]) -> Self {
        let padded = || {
            let rest = masses.len().next_multiple_of(GROUP) - masses.len();
            masses.iter().chain(std::iter::repeat_n(&Mass::RESTING, rest))
        };
        Self {
            gain: padded().map(|m| m.gain).collect(),
            low: padded().map(|m| m.input[0]).collect(),
            span: padded().map(|m| m.input[1] - m.input[0]).collect(),
        }
    }

    /// Their number, with those that fill the last group.
    pub(crate) fn len(&self) -> usize {
        self.gain.len()
    }

    /// The potentials y1 - y2 in millivolts, every second step after `before` steps: `samples` rows of one for each mass. What
    /// is random is drawn from `stream`.
    pub(crate) fn simulate(&self, before: usize, samples: usize, stream: &Stream) -> Result<Vec<f32>> {
        let (level, n) = (simd::level()?, self.len());
        let mut out = Buffer::new(samples * n);
        let to = out.pointer();
        parallel::for_each(n / GROUP, |group| {
            level.run(Run { masses: self, first: group * GROUP, before, samples, stream, to });
        });
        // SAFETY: the groups cover all masses, and each writes all samples of its own.
        Ok(unsafe { out.finish() })
    }
}

struct Run<'a> {
    masses: &'a Masses,
    first: usize,
    before: usize,
    samples: usize,
    stream: &'a Stream,
    to: Pointer,
}

/// Uniform numbers in [0, 1) from random words: 23 bits as the mantissa of a number in [1, 2).
#[inline(always)]
fn uniform<S: Simd>(s: S, word: S::u32s) -> S::f32s {
    let bits = s.or_u32s(s.wrapping_dyn_shr_u32s(word, s.splat_u32s(9)), s.splat_u32s(0x3f80_0000));
    s.sub_f32s(s.transmute_f32s_u32s(bits), s.splat_f32s(1.))
}

impl WithSimd for Run<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        let Self { masses, first, before, samples, stream, to } = self;
        let n = masses.len();
        for at in (first..first + GROUP).step_by(S::F32_LANES) {
            // SAFETY: the arrays have n elements, a multiple of the lanes.
            let [gain, low, span] =
                [&masses.gain, &masses.low, &masses.span].map(|v| unsafe { vector::read(s, v.as_ptr(), at, n) });
            let index = s.add_u32s(s.splat_u32s(at as u32), vector::lanes(s));
            let words = |block: u32| vector::philox(s, index, block, stream.step(), stream.key());
            let mut y = start(s, words(0), words(1));
            let (mut block, mut drawn) = (2, words(2));
            for step in 0..before + 2 * samples {
                if step % 4 == 0 && step > 0 {
                    block += 1;
                    drawn = words(block);
                }
                let input = s.mul_add_e_f32s(uniform(s, drawn[step % 4]), span, low);
                y = heun(s, y, gain, input);
                if step >= before && (step - before) % 2 == 1 {
                    let row = (step - before) / 2;
                    // SAFETY: the row has n elements, of which these belong to this task.
                    unsafe { vector::write(s, to.at(row * n), at, n, s.sub_f32s(y[1], y[2])) };
                }
            }
        }
    }
}

/// States spread over what a resting mass goes through, so that masses do not oscillate together.
#[inline(always)]
fn start<S: Simd>(s: S, a: [S::u32s; 4], b: [S::u32s; 4]) -> [S::f32s; 6] {
    let between =
        |word, low: f32, high: f32| s.mul_add_e_f32s(uniform(s, word), s.splat_f32s(high - low), s.splat_f32s(low));
    [
        between(a[0], 0.05, 0.15),
        between(a[1], 12., 24.),
        between(a[2], 6., 16.),
        between(a[3], -2., 2.),
        between(b[0], -300., 300.),
        between(b[1], -150., 150.),
    ]
}

/// S(v).
#[inline(always)]
fn firing<S: Simd>(s: S, v: S::f32s) -> S::f32s {
    let shifted = s.mul_f32s(s.sub_f32s(v, s.splat_f32s(THRESHOLD)), s.splat_f32s(STEEPNESS));
    s.mul_f32s(vector::sigmoid(s, shifted), s.splat_f32s(2. * RATE))
}

/// y'.
#[inline(always)]
fn slope<S: Simd>(s: S, y: [S::f32s; 6], gain: S::f32s, input: S::f32s) -> [S::f32s; 6] {
    let c = |v: f32| s.splat_f32s(v);
    let driven = s.mul_f32s(gain, c(A_RATE));
    // x'' = drive - 2 rate x' - rate² x
    let second = |drive, x, speed, rate: f32| {
        s.mul_add_e_f32s(x, c(-rate * rate), s.mul_add_e_f32s(speed, c(-2. * rate), drive))
    };
    let excited = firing(s, s.mul_f32s(y[0], c(SYNAPSES)));
    let inhibited = firing(s, s.mul_f32s(y[0], c(0.25 * SYNAPSES)));
    let pyramidal = firing(s, s.sub_f32s(y[1], y[2]));
    let input = s.mul_add_e_f32s(excited, c(0.8 * SYNAPSES), input);
    [
        y[3],
        y[4],
        y[5],
        second(s.mul_f32s(driven, pyramidal), y[0], y[3], A_RATE),
        second(s.mul_f32s(driven, input), y[1], y[4], A_RATE),
        second(s.mul_f32s(inhibited, c(B_GAIN * B_RATE * 0.25 * SYNAPSES)), y[2], y[5], B_RATE),
    ]
}

/// One step: the mean of the slopes here and where the first would lead.
#[inline(always)]
fn heun<S: Simd>(s: S, y: [S::f32s; 6], gain: S::f32s, input: S::f32s) -> [S::f32s; 6] {
    let (h, half) = (s.splat_f32s(STEP), s.splat_f32s(0.5 * STEP));
    let here = slope(s, y, gain, input);
    let mut ahead = y;
    for (a, k) in ahead.iter_mut().zip(here) {
        *a = s.mul_add_e_f32s(h, k, *a);
    }
    let there = slope(s, ahead, gain, input);
    let mut next = y;
    for (i, x) in next.iter_mut().enumerate() {
        *x = s.mul_add_e_f32s(half, s.add_f32s(here[i], there[i]), *x);
    }
    next
}

#[cfg(test)]
mod tests {
    use zoo_kernels::cpu::simd::{levels, with_level};
    use zoo_layers::random::Purpose;

    use super::*;

    fn stream(seed: u64) -> Stream {
        Stream::new(seed, Purpose::Simulation, 1, 2)
    }

    /// The equations in f64 with the same input, by steps as many times smaller as `finer`.
    fn exact(mass: Mass, samples: usize, stream: &Stream, finer: usize) -> Vec<f64> {
        let word = |index: u64, part: usize| stream.block(index << 32)[part];
        let uniform = |word: u32| f64::from(word >> 9) / f64::from(1 << 23);
        let between = |w: u32, low: f64, high: f64| low + uniform(w) * (high - low);
        let mut y = [
            between(word(0, 0), 0.05, 0.15),
            between(word(0, 1), 12., 24.),
            between(word(0, 2), 6., 16.),
            between(word(0, 3), -2., 2.),
            between(word(1, 0), -300., 300.),
            between(word(1, 1), -150., 150.),
        ];
        let [a, b, c] = [A_RATE, B_RATE, SYNAPSES].map(f64::from);
        let firing = |v: f64| 2. * f64::from(RATE) / (1. + (f64::from(STEEPNESS) * (f64::from(THRESHOLD) - v)).exp());
        let gain = f64::from(mass.gain);
        let slope = |y: &[f64; 6], p: f64| {
            let second = |drive: f64, x: f64, v: f64, rate: f64| drive - 2. * rate * v - rate * rate * x;
            [
                y[3],
                y[4],
                y[5],
                second(gain * a * firing(y[1] - y[2]), y[0], y[3], a),
                second(gain * a * (p + 0.8 * c * firing(c * y[0])), y[1], y[4], a),
                second(f64::from(B_GAIN) * b * 0.25 * c * firing(0.25 * c * y[0]), y[2], y[5], b),
            ]
        };
        let h = f64::from(STEP) / finer as f64;
        let mut out = vec![];
        for step in 0..2 * samples {
            let [low, high] = mass.input.map(f64::from);
            let p = between(word(2 + step as u64 / 4, step % 4), low, high);
            for _ in 0..finer {
                let here = slope(&y, p);
                let there = slope(&std::array::from_fn(|i| y[i] + h * here[i]), p);
                y = std::array::from_fn(|i| y[i] + 0.5 * h * (here[i] + there[i]));
            }
            if step % 2 == 1 {
                out.push(y[1] - y[2]);
            }
        }
        out
    }

    #[test]
    fn every_simd_level_follows_the_equations() -> Result<()> {
        for mass in [Mass::RESTING, Mass { gain: 3.65, input: [60., 120.] }] {
            let steps = exact(mass, 250, &stream(3), 1);
            let fine = exact(mass, 250, &stream(3), 50);
            for level in levels() {
                let rows = with_level(level, || Masses::new(&[mass; 5]).simulate(0, 250, &stream(3)))?;
                for (t, (steps, fine)) in steps.iter().zip(&fine).enumerate() {
                    let got = f64::from(rows[t * 16]);
                    assert!((got - steps).abs() < 0.01, "{level:?} at {t}: {got} mV, in f64 {steps}");
                    // The step of a millisecond is small enough for the waves at hand.
                    assert!((got - fine).abs() < 0.6, "{level:?} at {t}: {got} mV, by small steps {fine}");
                }
            }
        }
        Ok(())
    }
}
