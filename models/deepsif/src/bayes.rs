//! Sparse Bayesian learning: each atom, a region or a patch of regions, has a variance of its own, and those that the EEG does
//! not ask for shrink to zero.
//!
//! With C the covariance of the EEG over time (trace 1), q_i what atom i gives at the electrodes, Q all of them, λ the noise's
//! share of the power and r the dimensions of the EEG:
//!
//! ```text
//! S = λ/r I + Q diag(γ) Qᵀ        γ_i ← γ_i √(q_iᵀ S⁻¹ C S⁻¹ q_i / q_iᵀ S⁻¹ q_i)
//! sources = W diag(γ) Qᵀ S⁻¹ EEG
//! ```
//!
//! where W (regions × atoms) holds the shares of the regions in each atom. Over regions alone this is Champagne (Wipf, Owen,
//! Attias, Sekihara and Nagarajan, NeuroImage 49, 2010) with the noise's power given instead of its covariance.

use zoo_kernels::cpu::matmul::matmul;
use zoo_kernels::cpu::product::Matrix;

use crate::algebra::{basis, dot, factor, inverted, whitened, wide};
use crate::image::{Point, distance, share_at};

/// Atoms whose power at the electrodes is below this share of the strongest's are let go.
const LEAST: f32 = 1e-4;
/// Rounds before any is let go: until then all are close to where they began.
const SETTLING: usize = 5;
/// What the power of a direction may be off by in f32, as a share of all of it.
const ROUNDING: f64 = 1e-6;

/// What is known of a head: how its regions reach the electrodes, where they are, and which border on each other.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Cortex {
    pub(crate) electrodes: usize,
    /// The lead field without its mean over the electrodes (electrodes × regions, by rows).
    pub(crate) field: Vec<f64>,
    pub(crate) centres: Vec<Point>,
    pub(crate) neighbours: Vec<Vec<usize>>,
    /// The covariance of EEG at rest (electrodes × electrodes, by rows); empty if it is not known.
    pub(crate) rest: Vec<f64>,
}

/// The space of EEG that regions can cause: at most one dimension fewer than there are electrodes.
#[derive(Clone, Debug)]
pub(crate) struct Space {
    pub(crate) electrodes: usize,
    /// From EEG to it, dimensions × electrodes: orthonormal where noise is white.
    basis: Vec<f32>,
    /// What each region causes there, regions × dimensions.
    pub(crate) regions: Vec<f32>,
    pub(crate) dimensions: usize,
    /// What the lead field was divided by, so that all is near one.
    #[cfg(feature = "train")]
    pub(crate) scale: f64,
}

impl Space {
    /// Where noise of a covariance (electrodes × electrodes, by rows) has the same power in all directions; as it is if empty.
    pub(crate) fn whitened(cortex: &Cortex, noise: &[f64]) -> Self {
        let (n, m) = (cortex.electrodes, cortex.centres.len());
        let column = |i: usize| (0..n).map(|e| cortex.field[e * m + i]).collect::<Vec<f64>>();
        let columns: Vec<Vec<f64>> = (0..m).map(column).collect();
        // Units are free: products in f32 are of numbers near one.
        let largest = cortex.field.iter().fold(f64::MIN_POSITIVE, |l, v| l.max(v.abs()));
        let mut basis = basis(columns.clone());
        if !noise.is_empty() {
            let through = |b: &Vec<f64>| noise.chunks_exact(n).map(|row| dot(row, b)).collect::<Vec<f64>>();
            let seen: Vec<Vec<f64>> = basis.iter().map(through).collect();
            let covariance = basis.iter().map(|b| seen.iter().map(|s| dot(b, s)).collect()).collect();
            basis = whitened(basis, covariance);
        }
        let along = |c: &Vec<f64>| basis.iter().map(|b| (dot(b, c) / largest) as f32).collect::<Vec<_>>();
        let regions = columns.iter().flat_map(along).collect();
        Self {
            electrodes: n,
            dimensions: basis.len(),
            basis: basis.iter().flatten().map(|v| *v as f32).collect(),
            regions,
            #[cfg(feature = "train")]
            scale: largest,
        }
    }

    /// EEG, time steps × electrodes, in this space: time steps × dimensions.
    pub(crate) fn project(&self, eeg: &[f32]) -> Vec<f32> {
        let (n, r) = (self.electrodes, self.dimensions);
        matmul([eeg.len() / n, r, n], Matrix::rows(eeg, n), Matrix::transposed(&self.basis, n))
    }
}

/// Regions and patches that may be active.
#[derive(Clone, Debug)]
pub(crate) struct Atoms {
    /// What each gives, atoms × dimensions.
    columns: Vec<f32>,
    /// The regions of each, with their shares.
    shares: Vec<Vec<(usize, f32)>>,
}

impl Atoms {
    /// Every region alone.
    pub(crate) fn regions(space: &Space) -> Self {
        let m = space.regions.len() / space.dimensions.max(1);
        Self { columns: space.regions.clone(), shares: (0..m).map(|i| vec![(i, 1.)]).collect() }
    }

    /// Every region alone, then with its neighbours, then with theirs, too: three times as many atoms as regions. The share of a
    /// region falls from 1 at the centre to a half at the edge.
    pub(crate) fn patches(cortex: &Cortex, space: &Space) -> Self {
        let (m, r) = (cortex.centres.len(), space.dimensions);
        let mut atoms = Self::regions(space);
        let mut reach: Vec<Vec<usize>> = (0..m).map(|i| vec![i]).collect();
        for _ in 0..2 {
            for (i, patch) in reach.iter_mut().enumerate() {
                let further: Vec<usize> = patch.iter().flat_map(|p| &cortex.neighbours[*p]).copied().collect();
                patch.extend(further);
                patch.sort_unstable();
                patch.dedup();
                let apart = |p: usize| distance(&cortex.centres[i], &cortex.centres[p]);
                let edge = patch.iter().map(|p| apart(*p)).fold(f64::MIN_POSITIVE, f64::max);
                let share = |p: &usize| (*p, share_at(apart(*p), edge));
                let shares: Vec<(usize, f32)> = patch.iter().map(share).collect();
                let mut column = vec![0f32; r];
                for (p, share) in &shares {
                    column.iter_mut().zip(&space.regions[p * r..]).for_each(|(c, v)| *c += share * v);
                }
                atoms.columns.extend(column);
                atoms.shares.push(shares);
            }
        }
        atoms
    }

    pub(crate) fn len(&self) -> usize {
        self.shares.len()
    }
}

/// The covariance of `rows` of `r` numbers about zero, divided by its trace; zeros for nothing.
pub(crate) fn covariance(rows: &[f32], r: usize) -> Vec<f32> {
    let mut c = matmul([r, r, rows.len() / r.max(1)], Matrix::transposed(rows, r), Matrix::rows(rows, r));
    let trace: f32 = c.iter().step_by(r + 1).sum();
    c.iter_mut().for_each(|v| *v /= trace.max(f32::MIN_POSITIVE));
    c
}

/// At most `r` rows whose covariance is that of `rows` but for its scale: the sum of all squares is one.
fn condensed(rows: &[f32], r: usize) -> Vec<f32> {
    if rows.len() > r * r {
        let c = covariance(rows, r);
        let mut wide = wide(&c, r);
        // Some directions may have no power, and products in f32 may give them less than none.
        (0..r).for_each(|i| wide[i][i] += ROUNDING);
        factor(&mut wide);
        // Rows of the factor's transpose.
        return (0..r)
            .flat_map(|k| (0..r).map(move |i| (i, k)))
            .map(|(i, k)| if k <= i { wide[i][k] as f32 } else { 0. })
            .collect();
    }
    let length = sum_of_products(rows, rows).sqrt().max(f32::MIN_POSITIVE);
    rows.iter().map(|v| v / length).collect()
}

/// Σ aᵢ bᵢ, in lanes.
fn sum_of_products(a: &[f32], b: &[f32]) -> f32 {
    const LANES: usize = 16;
    let mut sums = [0f32; LANES];
    let (whole_a, whole_b) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let rest: f32 = whole_a.remainder().iter().zip(whole_b.remainder()).map(|(a, b)| a * b).sum();
    for (a, b) in whole_a.zip(whole_b) {
        for lane in 0..LANES {
            sums[lane] += a[lane] * b[lane];
        }
    }
    sums.iter().sum::<f32>() + rest
}

/// What was learned from one covariance.
pub(crate) struct Fit {
    /// The variance of each atom; zero of those that were let go.
    pub(crate) variances: Vec<f32>,
    /// EEG in its space to sources, regions × dimensions.
    pub(crate) maps: Vec<f32>,
}

impl Fit {
    /// Sources, time steps × regions, of EEG in its space (time steps × `r`).
    pub(crate) fn sources(&self, rows: &[f32], r: usize) -> Vec<f32> {
        matmul([rows.len() / r, self.maps.len() / r, r], Matrix::rows(rows, r), Matrix::transposed(&self.maps, r))
    }
}

/// Root of the mean power that `maps` (rows × r) give of EEG with covariance `c` (r × r).
pub(crate) fn powers(maps: &[f32], c: &[f32], r: usize) -> Vec<f32> {
    let through = matmul([maps.len() / r, r, r], Matrix::rows(maps, r), Matrix::rows(c, r));
    let along = |(t, m): (&[f32], &[f32])| sum_of_products(t, m).max(0.).sqrt();
    through.chunks_exact(r).zip(maps.chunks_exact(r)).map(along).collect()
}

/// The atoms' variances after some `rounds` from EEG in its space, any number of rows, with noise of `share` of its power.
pub(crate) fn fit(atoms: &Atoms, regions: usize, rows: &[f32], share: f32, rounds: usize) -> Fit {
    let all = atoms.len();
    let r = atoms.columns.len() / all.max(1);
    let rows = condensed(rows, r);
    let count = rows.len() / r.max(1);
    let mut kept: Vec<usize> = (0..all).collect();
    let mut columns = atoms.columns.clone();
    let mut lengths: Vec<f32> = columns.chunks_exact(r).map(|q| sum_of_products(q, q)).collect();
    let total: f32 = lengths.iter().sum();
    let mut variances = vec![1. / total.max(f32::MIN_POSITIVE); all];
    // (λ/r I + Q diag(γ) Qᵀ)⁻¹
    let inverse = |columns: &[f32], variances: &[f32]| -> Vec<f32> {
        let scaled: Vec<f32> =
            columns.chunks_exact(r).zip(variances).flat_map(|(q, v)| q.iter().map(move |x| v * x)).collect();
        let s = matmul([r, r, variances.len()], Matrix::transposed(columns, r), Matrix::rows(&scaled, r));
        let mut rows = wide(&s, r);
        (0..r).for_each(|i| rows[i][i] += f64::from(share) / r as f64);
        inverted(rows).into_iter().flatten().map(|v| v as f32).collect()
    };
    for round in 0..rounds {
        let inverse = inverse(&columns, &variances);
        let k = kept.len();
        let through = matmul([k, r, r], Matrix::rows(&columns, r), Matrix::rows(&inverse, r));
        let seen = matmul([k, count, r], Matrix::rows(&through, r), Matrix::transposed(&rows, r));
        for i in 0..k {
            let at = i * r..(i + 1) * r;
            let given = sum_of_products(&columns[at.clone()], &through[at]).max(f32::MIN_POSITIVE);
            let seen = &seen[i * count..(i + 1) * count];
            variances[i] *= (sum_of_products(seen, seen) / given).sqrt();
        }
        let power = |i: usize| variances[i] * lengths[i];
        let least = LEAST * (0..k).map(power).fold(0., f32::max);
        if round + 1 >= SETTLING && (0..k).any(|i| power(i) <= least) {
            let stay: Vec<usize> = (0..k).filter(|i| power(*i) > least).collect();
            columns = stay.iter().flat_map(|i| columns[i * r..(i + 1) * r].iter().copied()).collect();
            lengths = stay.iter().map(|i| lengths[*i]).collect();
            variances = stay.iter().map(|i| variances[*i]).collect();
            kept = stay.iter().map(|i| kept[*i]).collect();
        }
    }
    let inverse = inverse(&columns, &variances);
    let mut gains = vec![0f32; regions * r];
    let mut found = vec![0f32; all];
    for ((atom, variance), q) in kept.iter().zip(&variances).zip(columns.chunks_exact(r)) {
        found[*atom] = *variance;
        for (region, share) in &atoms.shares[*atom] {
            gains[region * r..][..r].iter_mut().zip(q).for_each(|(g, q)| *g += share * variance * q);
        }
    }
    let maps = matmul([regions, r, r], Matrix::rows(&gains, r), Matrix::rows(&inverse, r));
    Fit { variances: found, maps }
}
