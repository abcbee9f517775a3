//! Small dense linear algebra in f64.

/// A remainder that is shorter than this share of the longest column counts as zero.
pub(crate) const ZERO: f64 = 1e-5;

/// Σ aᵢ bᵢ.
pub(crate) fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Rows of `r` numbers, in f64.
pub(crate) fn wide(values: &[f32], r: usize) -> Vec<Vec<f64>> {
    values.chunks_exact(r.max(1)).map(|row| row.iter().map(|v| f64::from(*v)).collect()).collect()
}

/// An orthonormal basis of what vectors span, by Gram and Schmidt with the longest remainder first.
pub(crate) fn basis(mut vectors: Vec<Vec<f64>>) -> Vec<Vec<f64>> {
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

/// The lower triangle of a symmetric positive definite matrix becomes its Cholesky factor, row by row.
pub(crate) fn factor(matrix: &mut [Vec<f64>]) {
    for i in 0..matrix.len() {
        for j in 0..=i {
            let rest = matrix[i][j] - dot(&matrix[i][..j], &matrix[j][..j]);
            matrix[i][j] = if i == j { rest.max(f64::MIN_POSITIVE).sqrt() } else { rest / matrix[j][j] };
        }
    }
}

/// Directions along which noise, whose `covariance` along `directions` is given, has the same variance (its mean over them) and no covariance. A
/// hundredth of its mean variance is added to each direction: a short baseline knows some of them badly.
pub(crate) fn whitened(directions: Vec<Vec<f64>>, mut covariance: Vec<Vec<f64>>) -> Vec<Vec<f64>> {
    const ADDED: f64 = 0.01;
    let r = directions.len();
    let mean = (0..r).map(|i| covariance[i][i]).sum::<f64>() / r.max(1) as f64;
    for (i, row) in covariance.iter_mut().enumerate() {
        row.iter_mut().for_each(|v| *v /= mean.max(f64::MIN_POSITIVE));
        row[i] += ADDED;
    }
    factor(&mut covariance);
    let mut found: Vec<Vec<f64>> = vec![];
    for (i, direction) in directions.into_iter().enumerate() {
        let mut next = direction;
        for (before, share) in found.iter().zip(&covariance[i]) {
            next.iter_mut().zip(before).for_each(|(v, b)| *v -= share * b);
        }
        next.iter_mut().for_each(|v| *v /= covariance[i][i]);
        found.push(next);
    }
    found
}

/// The inverse of a symmetric positive definite matrix, by rows, from its Cholesky factor.
pub(crate) fn inverted(mut matrix: Vec<Vec<f64>>) -> Vec<Vec<f64>> {
    let n = matrix.len();
    factor(&mut matrix);
    let column = |c: usize| {
        let mut x = vec![0.; n];
        for i in c..n {
            let unit = if i == c { 1. } else { 0. };
            x[i] = (unit - dot(&matrix[i][c..i], &x[c..i])) / matrix[i][i];
        }
        for i in (0..n).rev() {
            x[i] /= matrix[i][i];
            let (value, row) = (x[i], &matrix[i]);
            x[..i].iter_mut().zip(row).for_each(|(v, l)| *v -= value * l);
        }
        x
    };
    (0..n).map(column).collect()
}

/// (Σ k kᵀ / w + λ mean eigenvalue)⁻¹ of some vectors k and weights w.
pub(crate) fn gram(columns: &[Vec<f64>], w: &[f64], lambda: f64) -> Vec<Vec<f64>> {
    let r = columns.first().map_or(0, Vec::len);
    let mut gram = vec![vec![0.; r]; r];
    for (k, w) in columns.iter().zip(w) {
        for (row, a) in gram.iter_mut().zip(k) {
            row.iter_mut().zip(k).for_each(|(g, b)| *g += a * b / w);
        }
    }
    let mean = (0..r).map(|i| gram[i][i]).sum::<f64>() / r.max(1) as f64;
    (0..r).for_each(|i| gram[i][i] += lambda * mean);
    inverted(gram)
}

/// Rows of numbers, each by a matrix: Σ_j m_ij k_j.
pub(crate) fn times(matrix: &[Vec<f64>], k: &[f64]) -> Vec<f64> {
    matrix.iter().map(|row| dot(row, k)).collect()
}

/// √(k_iᵀ M k_i) of each.
pub(crate) fn roots(matrix: &[Vec<f64>], columns: &[Vec<f64>]) -> Vec<f64> {
    let roots: Vec<f64> = columns.iter().map(|k| dot(k, &times(matrix, k)).max(0.).sqrt()).collect();
    // A region that no electrode sees has none.
    let least = ZERO * ZERO * roots.iter().copied().fold(0., f64::max);
    roots.into_iter().map(|v| v.max(least)).collect()
}
