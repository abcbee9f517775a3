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
/// A remainder that is shorter than this share of the longest column counts as zero.
const ZERO: f64 = 1e-5;

/// A linear map from EEG to sources.
#[derive(Clone, Debug)]
pub struct Inverse {
    /// (m × n), row after row.
    weights: Vec<f32>,
    electrodes: usize,
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// An orthonormal basis of what vectors span, by Gram and Schmidt with the longest remainder first.
fn basis(mut vectors: Vec<Vec<f64>>) -> Vec<Vec<f64>> {
    let mut basis: Vec<Vec<f64>> = vec![];
    let mut least = 0.;
    for _ in 0..vectors.first().map_or(0, Vec::len) {
        let longest = vectors.iter().max_by(|a, b| dot(a, a).total_cmp(&dot(b, b)));
        let Some(mut next) = longest.cloned() else { break };
        let length = dot(&next, &next).sqrt();
        if basis.is_empty() {
            least = ZERO * length;
        }
        if length <= least {
            break;
        }
        // Once more against the others: rounding errors of the remainder grow as it shrinks.
        for other in &basis {
            let share = dot(&next, other);
            next.iter_mut().zip(other).for_each(|(v, o)| *v -= share * o);
        }
        let length = dot(&next, &next).sqrt();
        next.iter_mut().for_each(|v| *v /= length);
        for vector in &mut vectors {
            let share = dot(vector, &next);
            vector.iter_mut().zip(&next).for_each(|(v, n)| *v -= share * n);
        }
        basis.push(next);
    }
    basis
}

/// The inverse of a symmetric positive definite matrix, by rows, from its Cholesky factor.
fn inverted(mut matrix: Vec<Vec<f64>>) -> Vec<Vec<f64>> {
    let n = matrix.len();
    // The lower triangle becomes the factor, row by row.
    for i in 0..n {
        for j in 0..=i {
            let rest = matrix[i][j] - dot(&matrix[i][..j], &matrix[j][..j]);
            matrix[i][j] = if i == j { rest.max(f64::MIN_POSITIVE).sqrt() } else { rest / matrix[j][j] };
        }
    }
    let column = |c: usize| {
        let mut x = vec![0.; n];
        for i in c..n {
            let unit = if i == c { 1. } else { 0. };
            x[i] = (unit - dot(&matrix[i][c..i], &x[c..i])) / matrix[i][i];
        }
        for i in (0..n).rev() {
            let later: f64 = (i + 1..n).map(|k| matrix[k][i] * x[k]).sum();
            x[i] = (x[i] - later) / matrix[i][i];
        }
        x
    };
    (0..n).map(column).collect()
}

impl Inverse {
    /// A method over a head. `lambda`, 0 or more, weighs noise against signal.
    pub fn new(method: Method, head: &Head, lambda: f64) -> Self {
        let (n, m) = (head.electrodes.len(), head.regions.len());
        let field = referenced(head);
        // All that regions can cause lies in a space of at most n - 1 dimensions, which H leaves as it is: all computation
        // happens there.
        let columns = (0..m).map(|i| (0..n).map(|e| field[e * m + i]).collect::<Vec<f64>>());
        let basis = basis(columns.clone().collect());
        let r = basis.len();
        // Of each region, what it causes along the basis.
        let k: Vec<Vec<f64>> = columns.map(|c| basis.iter().map(|b| dot(b, &c)).collect()).collect();
        // (K W⁻¹ Kᵀ + λ mean eigenvalue)⁻¹
        let inverse = |w: &[f64]| {
            let mut gram = vec![vec![0.; r]; r];
            for (k, w) in k.iter().zip(w) {
                for (row, a) in gram.iter_mut().zip(k) {
                    row.iter_mut().zip(k).for_each(|(g, b)| *g += a * b / w);
                }
            }
            let mean = (0..r).map(|i| gram[i][i]).sum::<f64>() / r.max(1) as f64;
            (0..r).for_each(|i| gram[i][i] += lambda * mean);
            inverted(gram)
        };
        let times = |inverse: &[Vec<f64>], k: &[f64]| inverse.iter().map(|row| dot(row, k)).collect::<Vec<f64>>();
        // √(k_iᵀ M k_i) of each.
        let roots = |inverse: &[Vec<f64>]| {
            let roots: Vec<f64> = k.iter().map(|k| dot(k, &times(inverse, k)).max(0.).sqrt()).collect();
            // A region that no electrode sees has none.
            let least = ZERO * ZERO * roots.iter().copied().fold(0., f64::max);
            roots.into_iter().map(|v| v.max(least)).collect::<Vec<f64>>()
        };
        let mut w = vec![1.; m];
        let mut matrix = inverse(&w);
        match method {
            Method::MinimumNorm => {}
            Method::Sloreta => w = roots(&matrix),
            Method::Eloreta => {
                for _ in 0..ROUNDS {
                    let mut next = roots(&matrix);
                    // Their scale is free.
                    let mean = next.iter().sum::<f64>() / m as f64;
                    next.iter_mut().for_each(|v| *v /= mean);
                    let largest = next.iter().copied().fold(0., f64::max);
                    let change = next.iter().zip(&w).map(|(a, b)| (a - b).abs()).fold(0., f64::max) / largest;
                    w = next;
                    matrix = inverse(&w);
                    if change < CLOSE {
                        break;
                    }
                }
            }
        }
        let mut weights = Vec::with_capacity(m * n);
        for (k, w) in k.iter().zip(&w) {
            let mut row = vec![0.; n];
            for (share, b) in times(&matrix, k).into_iter().zip(&basis) {
                row.iter_mut().zip(b).for_each(|(v, b)| *v += share * b);
            }
            weights.extend(row.iter().map(|v| (v / w.max(f64::MIN_POSITIVE)) as f32));
        }
        Self { weights, electrodes: n }
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
    use nalgebra::DMatrix;

    use super::*;

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
        let ours = Inverse::new(Method::MinimumNorm, &head, 0.05).weights;
        for (i, v) in ours.iter().enumerate() {
            let other = map[(i / 30, i % 30)];
            assert!((f64::from(*v) - other).abs() < 1e-6 * scale, "{v} for {other}");
        }
        Ok(())
    }

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
