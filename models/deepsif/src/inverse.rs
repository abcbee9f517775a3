//! Classical linear inverse methods over average-referenced EEG.
//!
//! With K the average-referenced lead field (n × m), φ the EEG (n), H = I - 11ᵀ/n and ⁺ the pseudoinverse:
//!
//! ```text
//! minimum norm  j = Kᵀ M φ                       M = (K Kᵀ + λ H)⁺                 (Hämäläinen and Ilmoniemi 1994)
//! sLORETA       j_i = k_iᵀ M φ / √(k_iᵀ M k_i)   the same M                        (Pascual-Marqui 2002)
//! eLORETA       j_i = k_iᵀ M φ / w_i             M = (K W⁻¹ Kᵀ + λ H)⁺, w_i = √(k_iᵀ M k_i)    (Pascual-Marqui 2007)
//! ```
//!
//! λ is given as a share of the mean eigenvalue of K Kᵀ (of K W⁻¹ Kᵀ). Both LORETAs put the largest |j_i| of noiseless EEG of one
//! region on that region, whatever λ.

use candle_core::Result;
use nalgebra::{DMatrix, DVector};
use zoo_kernels::cpu::matmul::matmul;
use zoo_kernels::cpu::product::Matrix;

use crate::head::Head;
use crate::simulation::referenced;

/// A classical method.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// Minimum norm.
    MinimumNorm,
    /// Standardized low-resolution tomography.
    Sloreta,
    /// Exact low-resolution tomography.
    Eloreta,
}

impl Method {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::MinimumNorm, Self::Sloreta, Self::Eloreta];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::MinimumNorm => "minimum_norm",
            Self::Sloreta => "sLORETA",
            Self::Eloreta => "eLORETA",
        }
    }
}

/// Rounds of eLORETA's fixed point at most, and the relative change of weights at which it is reached.
const ROUNDS: usize = 200;
const CLOSE: f64 = 1e-9;
/// Eigenvalues below this share of the largest are zero: that of the mean over electrodes is.
const ZERO: f64 = 1e-10;

/// A linear map from EEG to sources.
#[derive(Clone, Debug)]
pub struct Inverse {
    /// (m × n), row after row.
    weights: Vec<f32>,
    electrodes: usize,
}

/// (K W⁻¹ Kᵀ + λ mean eigenvalue · H)⁺ for a Gram matrix.
fn inverted(gram: DMatrix<f64>, lambda: f64) -> DMatrix<f64> {
    let mut eigen = gram.symmetric_eigen();
    let largest = eigen.eigenvalues.max();
    let kept = |v: f64| v > ZERO * largest;
    let count = eigen.eigenvalues.iter().filter(|v| kept(**v)).count().max(1);
    let mean = eigen.eigenvalues.iter().filter(|v| kept(**v)).sum::<f64>() / count as f64;
    // The eigenvectors that are left span what H projects to.
    eigen.eigenvalues.apply(|v| *v = if kept(*v) { 1. / (*v + lambda * mean) } else { 0. });
    eigen.recompose()
}

impl Inverse {
    /// A method over a head. `lambda`, 0 or more, weighs noise against signal.
    pub fn new(method: Method, head: &Head, lambda: f64) -> Self {
        let (n, m) = (head.electrodes.len(), head.regions.len());
        let k = DMatrix::from_row_slice(n, m, &referenced(head));
        let mut w = DVector::from_element(m, 1.);
        let gram = |w: &DVector<f64>| {
            let mut scaled = k.clone();
            scaled.column_iter_mut().zip(w.iter()).for_each(|(mut c, w)| c /= *w);
            scaled * k.transpose()
        };
        // √(k_iᵀ M k_i) of each.
        let roots = |inverse: &DMatrix<f64>| {
            let product = inverse * &k;
            let root = |(a, b): (nalgebra::DVectorView<f64>, nalgebra::DVectorView<f64>)| a.dot(&b).max(0.).sqrt();
            let roots = DVector::from_iterator(m, product.column_iter().zip(k.column_iter()).map(root));
            // A region that no electrode sees has none.
            let least = ZERO * roots.max();
            roots.map(|r| r.max(least))
        };
        let mut inverse = inverted(gram(&w), lambda);
        match method {
            Method::MinimumNorm => {}
            Method::Sloreta => w = roots(&inverse),
            Method::Eloreta => {
                for _ in 0..ROUNDS {
                    let mut next = roots(&inverse);
                    // Their scale is free.
                    next /= next.mean();
                    let change = (&next - &w).amax() / next.amax();
                    w = next;
                    inverse = inverted(gram(&w), lambda);
                    if change < CLOSE {
                        break;
                    }
                }
            }
        }
        let mut map = k.transpose() * inverse;
        map.row_iter_mut().zip(w.iter()).for_each(|(mut row, w)| row /= w.max(f64::MIN_POSITIVE));
        Self {
            weights: map.row_iter().flat_map(|row| row.iter().map(|v| *v as f32).collect::<Vec<_>>()).collect(),
            electrodes: n,
        }
    }

    /// Average-referenced EEG, time steps × electrodes, to sources, time steps × regions.
    ///
    /// # Errors
    /// EEG of other electrodes.
    pub fn image(&self, eeg: &[f32]) -> Result<Vec<f32>> {
        let n = self.electrodes;
        if !eeg.len().is_multiple_of(n) {
            candle_core::bail!("inverse: {} values are no time steps of {n} electrodes", eeg.len())
        }
        let size = [eeg.len() / n, self.weights.len() / n, n];
        Ok(matmul(size, Matrix::rows(eeg, n), Matrix::transposed(&self.weights, n)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loretas_find_every_noiseless_source_exactly() -> Result<()> {
        let head = Head::spherical(40, 250).unwrap();
        let (field, m) = (referenced(&head), 250);
        for method in [Method::Sloreta, Method::Eloreta] {
            for lambda in [1e-3, 0.1, 10.] {
                let inverse = Inverse::new(method, &head, lambda);
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
        let inverse = Inverse::new(Method::MinimumNorm, &head, 1e-9);
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
}
