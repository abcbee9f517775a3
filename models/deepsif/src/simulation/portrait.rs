//! What the simulated masses do, in numbers that the literature gives too.

use candle_core::Result;
use serde::Serialize;
use zoo_layers::random::{Purpose, Stream};

use super::jansen_rit::Masses;
use super::{Mass, RATE, SETTLING, spikes};

/// Frequencies of the spectrum, in steps of 1 Hz.
const FREQUENCIES: usize = 50;
/// Time steps of the spike's average before and behind its peak: 200 ms.
const AROUND: usize = 100;

/// Resting masses and spikes.
#[derive(Clone, Debug, Serialize)]
pub struct Portrait {
    /// Where the resting spectrum is highest, Hz.
    pub peak_hz: f64,
    /// Share of the resting power from 8 to 13 Hz, of that from 1 to 50.
    pub alpha_share: f64,
    /// The middle 99.9 % of resting potentials, mV.
    pub resting_mv: [f64; 2],
    /// Mean correlation between different resting masses.
    pub correlation: f64,
    /// Height of spikes above the median: 10th, 50th and 90th percentile, mV.
    pub height_mv: [f64; 3],
    /// Width of spikes at half their height: 10th, 50th and 90th percentile, ms.
    pub width_ms: [f64; 3],
    /// Resting power at 0, 1, …, 50 Hz, as shares of their sum from 1 Hz on.
    pub spectrum: Vec<f64>,
    /// The mean spike from 200 ms before its peak to 200 ms behind it, every 2 ms, mV above the median.
    pub spike: Vec<f64>,
    /// A resting mass as long, mV about its mean.
    pub resting: Vec<f64>,
}

impl Portrait {
    /// Of `masses` resting ones over `seconds`, and of as many spikes.
    ///
    /// # Errors
    /// `ZOO_SIMD` names a level that this machine lacks.
    pub fn draw(masses: usize, seconds: usize, seed: u64) -> Result<Self> {
        let stream = |layer, step| Stream::new(seed, Purpose::Simulation, layer, step);
        let all = Masses::new(&vec![Mass::RESTING; masses.max(2)]);
        let n = all.len();
        let rows = all.simulate(SETTLING, seconds * RATE, &stream(1, 0))?;
        let course = |c: usize| rows.iter().skip(c).step_by(n).map(|v| f64::from(*v)).collect::<Vec<_>>();
        // The last ones only fill the vectors.
        let courses: Vec<Vec<f64>> = (0..masses.max(2)).map(course).collect();
        let mut spectrum = vec![0.; FREQUENCIES + 1];
        courses.iter().flat_map(|c| c.chunks_exact(RATE)).for_each(|second| add_power(second, &mut spectrum));
        let total: f64 = spectrum[1..].iter().sum();
        spectrum.iter_mut().for_each(|p| *p /= total);
        let peak = (1..=FREQUENCIES).max_by(|a, b| spectrum[*a].total_cmp(&spectrum[*b])).unwrap_or(0);
        let pairs = courses.windows(2).map(|pair| correlation(&pair[0], &pair[1]));
        let correlation = pairs.sum::<f64>() / (courses.len() - 1) as f64;
        let mut potentials: Vec<f64> = courses.concat();
        potentials.sort_unstable_by(f64::total_cmp);
        let at = |sorted: &[f64], share: f64| sorted[((sorted.len() - 1) as f64 * share) as usize];

        let (mut heights, mut widths, mut mean) = (vec![], vec![], vec![0.; 2 * AROUND + 1]);
        let mut averaged = 0.;
        for number in 0..masses as u64 {
            let course = spikes(RATE, &mut stream(2, number), &stream(3, number))?;
            let mut sorted: Vec<f64> = course.iter().map(|v| f64::from(*v)).collect();
            let course = sorted.clone();
            sorted.sort_unstable_by(f64::total_cmp);
            let base = sorted[sorted.len() / 2];
            let top = (0..RATE).max_by(|a, b| course[*a].total_cmp(&course[*b])).unwrap_or(0);
            let height = course[top] - base;
            let above = |t: &usize| course[*t] - base > height / 2.;
            let width = (0..top).rev().take_while(above).count() + (top..RATE).take_while(above).count();
            heights.push(height);
            widths.push(width as f64 * 1e3 / RATE as f64);
            if top >= AROUND && top + AROUND < RATE {
                averaged += 1.;
                mean.iter_mut().zip(&course[top - AROUND..]).for_each(|(m, v)| *m += v - base);
            }
        }
        mean.iter_mut().for_each(|m| *m /= f64::max(averaged, 1.));
        let percentiles = |mut values: Vec<f64>| {
            values.sort_unstable_by(f64::total_cmp);
            [0.1, 0.5, 0.9].map(|share| at(&values, share))
        };
        let level = courses[0].iter().sum::<f64>() / courses[0].len() as f64;
        Ok(Self {
            peak_hz: peak as f64,
            alpha_share: spectrum[8..=13].iter().sum(),
            resting_mv: [at(&potentials, 0.0005), at(&potentials, 0.9995)],
            correlation,
            height_mv: percentiles(heights),
            width_ms: percentiles(widths),
            resting: courses[0].iter().take(mean.len()).map(|v| v - level).collect(),
            spectrum,
            spike: mean,
        })
    }
}

/// Adds the power of a second, by a Hann window.
fn add_power(second: &[f64], power: &mut [f64]) {
    let n = second.len() as f64;
    let mean = second.iter().sum::<f64>() / n;
    for (f, power) in power.iter_mut().enumerate() {
        let (mut re, mut im) = (0., 0.);
        for (t, x) in second.iter().enumerate() {
            let angle = std::f64::consts::TAU * t as f64 / n;
            let v = (x - mean) * (0.5 - 0.5 * angle.cos());
            re += v * (f as f64 * angle).cos();
            im += v * (f as f64 * angle).sin();
        }
        *power += re * re + im * im;
    }
}

fn correlation(a: &[f64], b: &[f64]) -> f64 {
    let centred = |x: &[f64]| {
        let mean = x.iter().sum::<f64>() / x.len() as f64;
        x.iter().map(|v| v - mean).collect::<Vec<_>>()
    };
    let (a, b) = (centred(a), centred(b));
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    dot(&a, &b) / (dot(&a, &a) * dot(&b, &b)).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resting_masses_give_alpha_waves_and_spiking_ones_interictal_spikes() -> Result<()> {
        let portrait = Portrait::draw(48, 4, 1)?;
        let Portrait { peak_hz, alpha_share, resting_mv: [least, most], correlation, height_mv, width_ms, .. } =
            portrait;
        assert!((8. ..=13.).contains(&peak_hz), "the peak is at {peak_hz} Hz");
        assert!(alpha_share > 0.5, "{alpha_share} of the power is alpha");
        assert!(least > 3. && most < 13., "{least} to {most} mV");
        assert!(correlation.abs() < 0.1, "different masses correlate by {correlation}");
        // Spikes last 20 to 70 ms and sharp waves to 200 (Kane et al. 2017), from foot to foot: at half height less.
        assert!(height_mv[0] > 5., "{height_mv:?} mV");
        assert!(width_ms[0] >= 10. && (20. ..=70.).contains(&width_ms[1]) && width_ms[2] <= 100., "{width_ms:?} ms");
        Ok(())
    }
}
