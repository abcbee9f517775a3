//! Frequency bands of a second of EEG.

use std::f64::consts::PI;

use zoo_kernels::cpu::matmul::matmul;
use zoo_kernels::cpu::product::Matrix;

use crate::image::RATE;

/// The harmonics of a stretch of time up to a frequency; its mean is none of them.
#[derive(Clone, Debug)]
pub(crate) struct Band {
    /// Orthonormal sines and cosines, parts × time steps.
    waves: Vec<f32>,
    steps: usize,
}

impl Band {
    /// Up to `hertz`, but at least the first harmonic, and below half the sampling rate.
    pub(crate) fn below(hertz: f64, steps: usize) -> Self {
        let last = (hertz * steps as f64 / RATE as f64) as usize;
        let last = last.clamp(1, ((steps.max(1) - 1) / 2).max(1));
        let wave = |k: usize, f: fn(f64) -> f64| {
            let scale = (2. / steps as f64).sqrt();
            (0..steps).map(move |t| (scale * f(2. * PI * (k * t) as f64 / steps as f64)) as f32)
        };
        let waves = (1..=last).flat_map(|k| wave(k, f64::cos).chain(wave(k, f64::sin))).collect();
        Self { waves, steps }
    }

    /// What `rows` (time steps × `r`) are made of: parts × `r`, with the covariance of the filtered rows.
    pub(crate) fn parts(&self, rows: &[f32], r: usize) -> Vec<f32> {
        let parts = self.waves.len() / self.steps;
        matmul([parts, r, self.steps], Matrix::rows(&self.waves, self.steps), Matrix::rows(rows, r))
    }

    /// The filtered rows.
    #[cfg(feature = "train")]
    pub(crate) fn filtered(&self, rows: &[f32], r: usize) -> Vec<f32> {
        let (parts, count) = (self.parts(rows, r), self.waves.len() / self.steps);
        matmul([self.steps, r, count], Matrix::transposed(&self.waves, self.steps), Matrix::rows(&parts, r))
    }
}

#[cfg(all(test, feature = "train"))]
mod tests {
    use super::*;

    #[test]
    fn what_lies_in_the_band_stays_and_the_rest_goes() {
        let wave = |hertz: f64| (0..500).map(move |t| (2. * PI * hertz * f64::from(t) / 500. + 0.3).sin() as f32);
        let both: Vec<f32> = wave(5.).zip(wave(11.)).flat_map(|(a, b)| [a + b, b]).collect();
        let band = Band::below(7.5, 500);
        let found = band.filtered(&both, 2);
        for (pair, expected) in found.chunks_exact(2).zip(wave(5.)) {
            assert!((pair[0] - expected).abs() < 1e-4 && pair[1].abs() < 1e-4, "{pair:?} for {expected}");
        }
        let power = |rows: &[f32]| rows.iter().map(|v| v * v).sum::<f32>();
        assert!((power(&band.parts(&both, 2)) - power(&found)).abs() < 1e-2);
    }
}
