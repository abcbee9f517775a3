//! Classical inverse methods over average-referenced EEG.
//!
//! With K the average-referenced lead field (n × m), φ the EEG (n), H = I - 11ᵀ/n and ⁺ the pseudoinverse:
//!
//! ```text
//! minimum norm  j = R Kᵀ M φ                     M = (K R Kᵀ + λ H)⁺               (Hämäläinen and Ilmoniemi 1994)
//! dSPM          j_i = k_iᵀ M φ / √(k_iᵀ M² k_i)  the same M                        (Dale et al. 2000)
//! sLORETA       j_i = k_iᵀ M φ / √(k_iᵀ M k_i)   the same M                        (Pascual-Marqui 2002)
//! eLORETA       j_i = k_iᵀ M φ / w_i             M = (K W⁻¹ Kᵀ + λ H)⁺, w_i = √(k_iᵀ M k_i)    (Pascual-Marqui 2007)
//! LCMV          j_i = k_iᵀ M φ / √(k_iᵀ M² k_i)  M = (C + λ H)⁺, C the EEG's covariance   (Van Veen et al. 1997, unit noise gain)
//! Champagne     each region has a variance that is learned from C                  (Wipf et al. 2010; the noise's power is given)
//! patches       the same of regions, of them with their neighbours, and with those of the neighbours
//! ```
//!
//! R = diag(1 / |k_i|^2d) with depth weighting d. λ is given as a share of the mean eigenvalue of the matrix that it is added to, for the last
//! two of the EEG's power. With a noise covariance, lead field and EEG are whitened by it first. Both LORETAs put the largest |j_i|
//! of noiseless EEG of one region on that region, whatever λ. Only the minimum norm's amplitudes have a unit.

use std::borrow::Cow;
use std::sync::Arc;

use candle_core::{Result, bail};
use zoo_kernels::cpu::matmul::matmul;
use zoo_kernels::cpu::product::Matrix;

use crate::algebra::{dot, gram, inverted, roots, times, wide};
use crate::band::Band;
use crate::bayes::{Atoms, Cortex, Space, covariance, fit, powers};
use crate::head::Head;
use crate::measure::{Reading, loudest};

/// A classical method.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Method {
    /// Minimum norm.
    MinimumNorm,
    /// Dynamic statistical parametric mapping.
    Dspm,
    /// Standardized low-resolution tomography.
    Sloreta,
    /// Exact low-resolution tomography.
    Eloreta,
    /// The linearly constrained minimum variance beamformer, of unit noise gain.
    Lcmv,
    /// Sparse Bayesian learning over regions.
    Champagne,
    /// Sparse Bayesian learning over regions and patches of two sizes.
    Patches,
}

impl Method {
    /// All of them.
    pub const ALL: [Self; 7] =
        [Self::MinimumNorm, Self::Dspm, Self::Sloreta, Self::Eloreta, Self::Lcmv, Self::Champagne, Self::Patches];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::MinimumNorm => "minimum_norm",
            Self::Dspm => "dSPM",
            Self::Sloreta => "sLORETA",
            Self::Eloreta => "eLORETA",
            Self::Lcmv => "LCMV",
            Self::Champagne => "Champagne",
            Self::Patches => "Bayes_patches",
        }
    }

    /// Whether it learns variances from the EEG at hand.
    pub fn is_bayesian(self) -> bool {
        matches!(self, Self::Champagne | Self::Patches)
    }

    /// Whether depth weighting changes what it says.
    pub fn has_depth(self) -> bool {
        matches!(self, Self::MinimumNorm | Self::Dspm | Self::Sloreta)
    }
}

/// What a method takes for granted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings<'a> {
    /// Weighs noise against signal: 0 or more.
    pub lambda: f64,
    /// Depth weighting, from 0 (none) to 1; 0.8 is usual.
    pub depth: f64,
    /// EEG is cut to frequencies up to so many hertz; all of them if not a finite number.
    pub band: f64,
    /// The covariance of the noise at the electrodes (n × n, by rows), such as that of a baseline; white if empty.
    pub noise: &'a [f64],
}

impl Settings<'_> {
    /// Of white noise and all frequencies.
    pub fn white(lambda: f64) -> Self {
        Self { lambda, depth: 0., band: f64::INFINITY, noise: &[] }
    }
}

/// Rounds of eLORETA's fixed point at most, and the relative change of weights at which it is reached.
const ROUNDS: usize = 200;
const CLOSE: f64 = 1e-9;
/// Rounds of sparse Bayesian learning.
const LEARNING: usize = 30;

/// A head as methods see it: the same for all settings but the noise.
#[derive(Clone, Debug)]
pub(crate) struct Ground {
    space: Space,
    regions: usize,
    /// What each region causes, in f64.
    columns: Vec<Vec<f64>>,
    single: Arc<Atoms>,
    patches: Arc<Atoms>,
}

impl Ground {
    pub(crate) fn new(cortex: &Cortex, noise: &[f64]) -> Self {
        let space = Space::whitened(cortex, noise);
        Self {
            regions: cortex.centres.len(),
            columns: wide(&space.regions, space.dimensions),
            single: Arc::new(Atoms::regions(&space)),
            patches: Arc::new(Atoms::patches(cortex, &space)),
            space,
        }
    }
}

/// A method over a head.
#[derive(Clone, Debug)]
pub struct Inverse {
    space: Space,
    regions: usize,
    band: f64,
    kind: Kind,
}

#[derive(Clone, Debug)]
enum Kind {
    /// Regions × dimensions.
    Linear(Vec<f32>),
    Beamformer {
        columns: Vec<f32>,
        lambda: f64,
    },
    Bayes {
        atoms: Arc<Atoms>,
        share: f32,
    },
}

impl Inverse {
    /// A method over a head.
    ///
    /// # Errors
    /// A noise covariance that is not of the head's electrodes; a λ or depth that cannot be.
    pub fn new(method: Method, head: &Head, settings: &Settings) -> Result<Self> {
        let n = head.electrodes.len();
        if !settings.noise.is_empty() && settings.noise.len() != n * n {
            bail!("inverse: a noise covariance of {} numbers, expected {n} x {n}", settings.noise.len())
        }
        let Settings { lambda, depth, .. } = settings;
        if !(lambda.is_finite() && *lambda >= 0. && (0. ..=1.).contains(depth)) {
            bail!("inverse: λ {lambda} and depth {depth}, expected 0 or more and a share from 0 to 1")
        }
        Ok(Self::over(method, &Ground::new(&head.cortex(), settings.noise), settings))
    }

    /// The same where the head was prepared, with the noise of `settings`.
    pub(crate) fn over(method: Method, ground: &Ground, settings: &Settings) -> Self {
        let Ground { space, regions, columns, .. } = ground;
        let &Settings { lambda, depth, band, .. } = settings;
        let bayes = |atoms: &Arc<Atoms>| Kind::Bayes { atoms: atoms.clone(), share: lambda.max(1e-6) as f32 };
        let kind = match method {
            Method::Lcmv => Kind::Beamformer { columns: space.regions.clone(), lambda },
            Method::Champagne => bayes(&ground.single),
            Method::Patches => bayes(&ground.patches),
            _ => Kind::Linear(linear(method, columns, lambda, depth, space.scale)),
        };
        Self { space: space.clone(), regions: *regions, band, kind }
    }

    /// The same for frequencies up to `band` hertz.
    pub(crate) fn within(self, band: f64) -> Self {
        Self { band, ..self }
    }

    /// EEG in the space of the regions, within the band: time steps × dimensions.
    fn rows(&self, eeg: &[f32]) -> Result<Vec<f32>> {
        let (n, r) = (self.space.electrodes, self.space.dimensions);
        if !eeg.len().is_multiple_of(n) {
            bail!("inverse: {} values are no time steps of {n} electrodes", eeg.len())
        }
        let rows = self.space.project(eeg);
        Ok(if self.band.is_finite() { Band::below(self.band, eeg.len() / n).filtered(&rows, r) } else { rows })
    }

    /// The linear map for this EEG, regions × dimensions.
    fn maps(&self, rows: &[f32]) -> Cow<'_, [f32]> {
        let r = self.space.dimensions;
        match &self.kind {
            Kind::Linear(maps) => Cow::Borrowed(maps),
            Kind::Bayes { atoms, share } => Cow::Owned(fit(atoms, self.regions, rows, *share, LEARNING).maps),
            Kind::Beamformer { columns, lambda } => {
                let mut matrix = wide(&covariance(rows, r), r);
                // The trace is one.
                (0..r).for_each(|i| matrix[i][i] += lambda.max(1e-9) / r as f64);
                let inverse: Vec<f32> = inverted(matrix).iter().flatten().map(|v| *v as f32).collect();
                let size = [self.regions, r, r];
                let mut maps = matmul(size, Matrix::rows(columns, r), Matrix::rows(&inverse, r));
                for row in maps.chunks_exact_mut(r) {
                    let length = row.iter().map(|v| v * v).sum::<f32>().sqrt().max(f32::MIN_POSITIVE);
                    row.iter_mut().for_each(|v| *v /= length);
                }
                Cow::Owned(maps)
            }
        }
    }

    /// Average-referenced EEG, time steps × electrodes, to sources, time steps × regions.
    ///
    /// # Errors
    /// EEG of other electrodes.
    pub fn image(&self, eeg: &[f32]) -> Result<Vec<f32>> {
        let (rows, r) = (self.rows(eeg)?, self.space.dimensions);
        let maps = self.maps(&rows);
        Ok(matmul([rows.len() / r, self.regions, r], Matrix::rows(&rows, r), Matrix::transposed(&maps, r)))
    }

    /// What each of [`Reading::ALL`] reads out of the image, but for its scale, without the image itself.
    pub(crate) fn strengths(&self, eeg: &[f32]) -> Result<[Vec<f64>; 2]> {
        let (rows, r) = (self.rows(eeg)?, self.space.dimensions);
        let maps = self.maps(&rows);
        let moment = loudest(eeg, self.space.electrodes);
        let at = &rows[moment * r..][..r];
        let there = |map: &[f32]| f64::from(map.iter().zip(at).map(|(m, v)| m * v).sum::<f32>().abs());
        let rms = powers(&maps, &covariance(&rows, r), r).into_iter().map(f64::from).collect();
        debug_assert_eq!(Reading::ALL, [Reading::Rms, Reading::Peak]);
        Ok([rms, maps.chunks_exact(r).map(there).collect()])
    }
}

/// Regions × dimensions, for what was divided by `scale`.
fn linear(method: Method, columns: &[Vec<f64>], lambda: f64, depth: f64, scale: f64) -> Vec<f32> {
    let m = columns.len();
    let mut w = vec![1.; m];
    if method.has_depth() && depth > 0. {
        let powers: Vec<f64> = columns.iter().map(|k| dot(k, k)).collect();
        let largest = powers.iter().copied().fold(f64::MIN_POSITIVE, f64::max);
        // No region counts for more than a hundred times another, as usual.
        const LIMIT: f64 = 100.;
        let least = powers.iter().copied().filter(|p| *p > 0.).fold(largest, f64::min);
        w = powers.iter().map(|p| (p.max(least) / least).powf(depth).min(LIMIT)).collect();
    }
    let mut matrix = gram(columns, &w, lambda);
    let mut divisors = w.clone();
    match method {
        Method::Dspm => divisors = columns.iter().map(|k| dot(&times(&matrix, k), &times(&matrix, k)).sqrt()).collect(),
        Method::Sloreta => divisors = roots(&matrix, columns),
        Method::Eloreta => {
            for _ in 0..ROUNDS {
                let mut next = roots(&matrix, columns);
                // Their scale is free.
                let mean = next.iter().sum::<f64>() / m as f64;
                next.iter_mut().for_each(|v| *v /= mean);
                let largest = next.iter().copied().fold(0., f64::max);
                let change = next.iter().zip(&divisors).map(|(a, b)| (a - b).abs()).fold(0., f64::max) / largest;
                divisors = next;
                matrix = gram(columns, &divisors, lambda);
                if change < CLOSE {
                    break;
                }
            }
        }
        _ => {}
    }
    let rows = columns.iter().zip(&divisors);
    rows.flat_map(|(k, w)| times(&matrix, k).into_iter().map(move |v| (v / w.max(f64::MIN_POSITIVE) / scale) as f32))
        .collect()
}

#[cfg(test)]
mod tests {
    use nalgebra::DMatrix;

    use super::*;
    use crate::simulation::referenced;

    /// The whole map, regions × electrodes.
    fn weights(inverse: &Inverse, n: usize) -> Vec<f32> {
        let units: Vec<f32> = (0..n * n).map(|i| if i / n == i % n { 1. } else { 0. }).collect();
        let by_electrode = inverse.image(&units).unwrap();
        let m = by_electrode.len() / n;
        (0..m).flat_map(|i| (0..n).map(move |e| (i, e))).map(|(i, e)| by_electrode[e * m + i]).collect()
    }

    #[test]
    fn minimum_norm_is_the_pseudoinverse_of_another_library() -> Result<()> {
        let head = Head::spherical(30, 120).unwrap();
        let k = DMatrix::from_row_slice(30, 120, &referenced(&head));
        let mut eigen = (&k * k.transpose()).symmetric_eigen();
        let (largest, mut kept) = (eigen.eigenvalues.max(), vec![]);
        kept.extend(eigen.eigenvalues.iter().copied().filter(|v| *v > 1e-10 * largest));
        assert_eq!(kept.len(), 29, "all but the mean over electrodes");
        let mean = kept.iter().sum::<f64>() / 29.;
        eigen.eigenvalues.apply(|v| *v = if *v > 1e-10 * largest { 1. / (*v + 0.05 * mean) } else { 0. });
        let map = k.transpose() * eigen.recompose();
        let scale = map.amax();
        let ours = weights(&Inverse::new(Method::MinimumNorm, &head, &Settings::white(0.05))?, 30);
        for (i, v) in ours.iter().enumerate() {
            let other = map[(i / 30, i % 30)];
            assert!((f64::from(*v) - other).abs() < 2e-6 * scale, "{v} for {other}");
        }
        Ok(())
    }

    #[test]
    fn loretas_find_every_noiseless_source_exactly() -> Result<()> {
        let head = Head::spherical(40, 250).unwrap();
        let (field, m) = (referenced(&head), 250);
        for method in [Method::Sloreta, Method::Eloreta] {
            for lambda in [1e-3, 0.1, 10.] {
                let inverse = Inverse::new(method, &head, &Settings::white(lambda))?;
                let largest = field.iter().fold(0f64, |m, v| m.max(v.abs()));
                for region in 0..m {
                    let eeg: Vec<f32> = (0..40).map(|e| (field[e * m + region] / largest) as f32).collect();
                    let sources = inverse.image(&eeg)?;
                    let best = (0..m).max_by(|a, b| sources[*a].abs().total_cmp(&sources[*b].abs()));
                    assert_eq!(best, Some(region), "{} at λ {lambda}", method.name());
                }
            }
        }
        Ok(())
    }

    #[test]
    fn minimum_norm_explains_the_eeg_with_the_least_activity() -> Result<()> {
        let head = Head::spherical(20, 100).unwrap();
        let (field, m) = (referenced(&head), 100);
        let inverse = Inverse::new(Method::MinimumNorm, &head, &Settings::white(1e-9))?;
        let scale = field.iter().fold(0f64, |m, v| m.max(v.abs()));
        let eeg: Vec<f32> = (0..20).map(|e| (field[e * m + 7] / scale) as f32).collect();
        let sources = inverse.image(&eeg)?;
        for e in 0..20 {
            let again: f64 = (0..m).map(|i| field[e * m + i] * f64::from(sources[i])).sum::<f64>();
            assert!((again - f64::from(eeg[e])).abs() < 1e-3, "{again} for {}", eeg[e]);
        }
        let norm: f32 = sources.iter().map(|v| v * v).sum();
        assert!(norm < (1. / scale as f32).powi(2), "{norm} is no less than the source itself");
        Ok(())
    }

    #[test]
    fn strengths_are_those_of_the_image() -> Result<()> {
        let head = Head::spherical(20, 100).unwrap();
        let eeg: Vec<f32> = (0..50 * 20).map(|i| ((i * i) as f32 * 0.37).sin()).collect();
        for method in Method::ALL {
            let inverse = Inverse::new(method, &head, &Settings { band: 40., ..Settings::white(0.1) })?;
            let (sources, found) = (inverse.image(&eeg)?, inverse.strengths(&eeg)?);
            // The powers are of EEG whose own is one.
            let rows = inverse.rows(&eeg)?;
            let power = (rows.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / 50.).sqrt();
            for (reading, found, scale) in [(Reading::Rms, &found[0], power), (Reading::Peak, &found[1], 1.)] {
                let expected = reading.strengths(&sources, 100, &eeg);
                let largest = expected.iter().copied().fold(0., f64::max);
                for (a, b) in found.iter().zip(&expected) {
                    assert!((scale * a - b).abs() < 1e-4 * largest, "{}: {a} for {b}", method.name());
                }
            }
        }
        Ok(())
    }
}
