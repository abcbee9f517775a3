use super::Update;
use crate::ops::glue::Pointer;
use crate::ops::glue::matmul::{Blend, matmul, matmul_into};
use crate::ops::glue::product::Matrix;

/// Newton-Schulz steps.
pub(super) const STEPS: usize = 5;
/// a, b and c of a step, which raise small singular values fastest (Jordan et al. 2024).
pub(super) const COEFFICIENTS: [f32; 3] = [3.4445, -4.7750, 2.0315];

/// Moves `slices[0]`, a (rows, columns) matrix, with the momentum in `slices[1]`.
pub(super) fn update(u: Update, momentum: f64, [rows, columns]: [usize; 2], grad: &[f32], slices: &mut [&mut [f32]]) {
    let [p, b] = slices else { return };
    let (mu, scale) = (momentum as f32, u.scale as f32);
    let mut x = Vec::with_capacity(grad.len());
    for (b, g) in b.iter_mut().zip(grad) {
        let g = g * scale;
        *b = mu * *b + g;
        x.push(g + mu * *b);
    }
    let norm = x.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt() + 1e-7;
    x.iter_mut().for_each(|v| *v /= norm as f32);
    orthogonalise(&mut x, rows, columns);
    let keep = (1. - u.lr * u.weight_decay) as f32;
    let rate = (u.lr * 0.2 * (rows.max(columns) as f64).sqrt()) as f32;
    p.iter_mut().zip(&x).for_each(|(p, x)| *p = *p * keep - rate * x);
}

/// Brings the singular values of `x`, of norm 1, near 1: five times x ← a x + (b s + c s²) x with s = x xᵀ, or the same
/// from the right with s = xᵀ x where that is smaller.
fn orthogonalise(x: &mut Vec<f32>, rows: usize, columns: usize) {
    let [a, b, c] = COEFFICIENTS;
    let n = rows.min(columns);
    for _ in 0..STEPS {
        let (straight, across) = (Matrix::rows(x, columns), Matrix::transposed(x, columns));
        let square = match rows <= columns {
            true => matmul([n, n, columns], straight, across),
            false => matmul([n, n, rows], across, straight),
        };
        let s = Matrix::rows(&square, n);
        let (mut polynomial, mut next) = (square.clone(), x.clone());
        // SAFETY: both results have the sizes of what they were copied from, which stays apart.
        unsafe {
            matmul_into([n, n, n], s, s, Pointer::of(&mut polynomial), n, Blend { keep: b, scale: c });
            let p = Matrix::rows(&polynomial, n);
            let (left, right) = if rows <= columns { (p, straight) } else { (straight, p) };
            let blend = Blend { keep: a, scale: 1. };
            matmul_into([rows, columns, n], left, right, Pointer::of(&mut next), columns, blend);
        }
        *x = next;
    }
}
