use zoo_kernels::cpu::Pointer;
use zoo_kernels::cpu::matmul::{Blend, matmul, matmul_into};
use zoo_kernels::cpu::product::Matrix;

use super::Update;

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

/// Brings the singular values of `x`, of norm 1, near 1: five times x ← (a + b s + c s²) x with s = x xᵀ, or the same from
/// the right with s = xᵀ x where that is smaller.
///
/// The polynomials are multiplied up before x is: all of them are symmetric and of the smaller side's size, so each
/// costs half a product, and the long side is met twice instead of ten times.
fn orthogonalise(x: &mut Vec<f32>, rows: usize, columns: usize) {
    let [a, b, c] = COEFFICIENTS;
    let n = rows.min(columns);
    let wide = rows <= columns;
    let (straight, across) = (Matrix::rows(x, columns), Matrix::transposed(x, columns));
    let (left, right, long) = if wide { (straight, across, columns) } else { (across, straight, rows) };
    let mut square = vec![0.; n * n];
    symmetric(n, long, left, right, &mut square, Blend::REPLACE);
    let mut factor = vec![];
    for step in 0..STEPS {
        let mut p = square.clone();
        symmetric(n, n, Matrix::rows(&square, n), Matrix::rows(&square, n), &mut p, Blend { keep: b, scale: c });
        p.iter_mut().step_by(n + 1).for_each(|v| *v += a);
        // All are polynomials of the first square, so they commute, and their products are symmetric.
        let times = |m: &[f32]| {
            let mut out = vec![0.; n * n];
            symmetric(n, n, Matrix::rows(&p, n), Matrix::rows(m, n), &mut out, Blend::REPLACE);
            out
        };
        if step + 1 < STEPS {
            square = times(&times(&square));
        }
        factor = if step == 0 { p } else { times(&factor) };
    }
    let f = Matrix::rows(&factor, n);
    let (left, right) = if wide { (f, straight) } else { (straight, f) };
    *x = matmul([rows, columns, n], left, right);
}

/// Rows of a symmetric product that are computed together.
const BLOCK: usize = 128;

/// out ← keep · out + scale · left (n, k) · right (k, n), which is known to be symmetric: its lower half is computed, then
/// copied.
fn symmetric(n: usize, k: usize, left: Matrix, right: Matrix, out: &mut [f32], blend: Blend) {
    assert_eq!(out.len(), n * n, "a square");
    let out_pointer = Pointer::of(out);
    for first in (0..n).step_by(BLOCK) {
        let rows = BLOCK.min(n - first);
        let block = Matrix { data: &left.data[first * left.row..], ..left };
        // SAFETY: these rows of `out`, as long as the lower half is there, which nothing else accesses.
        unsafe { matmul_into([rows, first + rows, k], block, right, out_pointer.part(first * n), n, blend) }
    }
    for i in 0..n {
        for j in i + 1..n {
            out[i * n + j] = out[j * n + i];
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Result, Tensor};

    use super::*;
    use crate::optim::reference;
    use zoo_kernels::check::random;

    /// Also where most singular values are tiny, whose squares f32 holds less exactly than themselves.
    #[test]
    fn multiplying_the_polynomials_first_gives_the_same_steps() -> Result<()> {
        for (rows, columns) in [(150, 300), (300, 150), (257, 257), (5, 1), (1, 5)] {
            let full = random(1, &[rows, columns])?;
            let low_rank = random(2, &[rows, 2])?.matmul(&random(3, &[2, columns])?)?;
            for x in [full.clone(), (&low_rank + &full * 1e-3)?, (&low_rank + &full * 1e-7)?] {
                let x = x.broadcast_div(&x.sqr()?.sum_all()?.sqrt()?)?;
                let exact = reference::orthogonal(&x.to_dtype(DType::F64)?)?;
                let size = |t: &Tensor| t.sqr()?.sum_all()?.sqrt()?.to_scalar::<f64>();
                let mut own: Vec<f32> = x.flatten_all()?.to_vec1()?;
                orthogonalise(&mut own, rows, columns);
                let own = Tensor::from_vec(own, (rows, columns), &Device::Cpu)?.to_dtype(DType::F64)?;
                let error = size(&(own - &exact)?)? / size(&exact)?;
                assert!(error < 1e-3, "{rows} × {columns}: off by {error:e} of the step");
            }
        }
        Ok(())
    }
}
