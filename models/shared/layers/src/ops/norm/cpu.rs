use candle_core::Result;
use pulp::{Simd, WithSimd};
use zoo_kernels::cpu::vector::Sum;
use zoo_kernels::cpu::{Buffer, Pointer, parallel, simd, vector};

use super::{Norm, NormKind};

/// Rows a thread takes at a time; dw and db are summed over these first.
const ROWS: usize = 64;
/// Numbers of a row that the backward pass needs.
pub(super) const STATISTICS: usize = 3;

/// y, and of each row what its mean is made of, which is the sum of two numbers (one cannot be exact enough beside large elements), and r.
pub(in crate::ops) fn forward(
    op: &Norm,
    width: usize,
    x: &[f32],
    [weight, bias]: [Option<&[f32]>; 2],
) -> Result<(Vec<f32>, Vec<f32>)> {
    let level = simd::level()?;
    let rows = x.len().checked_div(width).unwrap_or(0);
    let (mut y, mut statistics) = (Buffer::new(x.len()), Buffer::new(STATISTICS * rows));
    let (to, at) = (y.pointer(), statistics.pointer());
    assert!([weight, bias].into_iter().flatten().all(|t| t.len() == width));
    parallel::chunks(rows, ROWS, |range| level.run(ForwardRows { op, width, range, x, weight, bias, to, at }));
    // SAFETY: the tasks cover all rows, and each writes all elements and statistics of its own.
    Ok(unsafe { (y.finish(), statistics.finish()) })
}

struct ForwardRows<'a> {
    op: &'a Norm,
    width: usize,
    range: std::ops::Range<usize>,
    x: &'a [f32],
    weight: Option<&'a [f32]>,
    bias: Option<&'a [f32]>,
    to: Pointer,
    at: Pointer,
}

impl WithSimd for ForwardRows<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        let Self { op, width: n, range, x, weight, bias, to, at } = self;
        let (lanes, centres) = (S::F32_LANES, op.kind == NormKind::Layer);
        for row in range {
            let x = x[row * n..][..n].as_ptr();
            // SAFETY: x, weight and bias have n elements, as the row of the output, which belongs to this task; so do
            // the statistics.
            unsafe {
                let mut mean = 0.;
                if centres {
                    // Of distances from the first element: rows of one value have exactly that mean.
                    let first = s.splat_f32s(*x);
                    let mut sum = Sum::new(s);
                    for j in (0..n).step_by(lanes) {
                        sum.add(s, vector::within(s, s.sub_f32s(vector::read(s, x, j, n), first), j, n));
                    }
                    mean = *x + sum.finish(s) / n as f32;
                }
                let centre = s.splat_f32s(mean);
                let (mut left, mut squares) = (Sum::new(s), Sum::new(s));
                for j in (0..n).step_by(lanes) {
                    let d = vector::within(s, s.sub_f32s(vector::read(s, x, j, n), centre), j, n);
                    if centres {
                        left.add(s, d);
                    }
                    squares.add_product(s, d, d);
                }
                let rest = left.finish(s) / n as f32;
                let variance = squares.finish(s) / n as f32 - rest * rest;
                // NaN stays.
                let variance = if variance < 0. { 0. } else { variance };
                let root = 1. / (variance + op.eps as f32).sqrt();
                let (shift, scale) = (s.splat_f32s(rest), s.splat_f32s(root));
                let y = to.at(row * n);
                for j in (0..n).step_by(lanes) {
                    let d = s.sub_f32s(s.sub_f32s(vector::read(s, x, j, n), centre), shift);
                    let mut v = s.mul_f32s(d, scale);
                    if let Some(weight) = weight {
                        v = s.mul_f32s(v, vector::read(s, weight.as_ptr(), j, n));
                    }
                    if let Some(bias) = bias {
                        v = s.add_f32s(v, vector::read(s, bias.as_ptr(), j, n));
                    }
                    vector::write(s, y, j, n, v);
                }
                at.at(STATISTICS * row).copy_from_nonoverlapping([mean, rest, root].as_ptr(), STATISTICS);
            }
        }
    }
}

/// dx (to which `residual` is added, if given), dw and db; the last two also where there is no weight or bias.
pub(in crate::ops) fn backward(
    width: usize,
    dy: &[f32],
    x: &[f32],
    weight: Option<&[f32]>,
    statistics: &[f32],
    kind: NormKind,
    residual: Option<&[f32]>,
) -> Result<(Vec<f32>, Vec<f32>, Vec<f32>)> {
    let level = simd::level()?;
    let rows = x.len().checked_div(width).unwrap_or(0);
    let tasks = rows.div_ceil(ROWS);
    assert!(
        dy.len() == x.len() && statistics.len() == STATISTICS * rows && residual.is_none_or(|r| r.len() == x.len())
    );
    let mut dx = Buffer::new(x.len());
    let mut sums = vec![0f32; 2 * width * tasks.max(1)];
    let (to, parts) = (dx.pointer(), Pointer::of(&mut sums));
    parallel::for_each(tasks, |task| {
        let range = task * ROWS..rows.min((task + 1) * ROWS);
        // SAFETY: this task's part of the sums, which no other touches.
        let sums = unsafe { std::slice::from_raw_parts_mut(parts.at(2 * width * task), 2 * width) };
        level.run(BackwardRows { width, range, dy, x, weight, statistics, kind, residual, to, sums });
    });
    let (total, others) = sums.split_at_mut(2 * width);
    for part in others.chunks_exact(2 * width.max(1)) {
        total.iter_mut().zip(part).for_each(|(t, p)| *t += p);
    }
    let db = total[width..].to_vec();
    sums.truncate(width);
    // SAFETY: the tasks cover all rows, and each writes all elements of its own.
    Ok((unsafe { dx.finish() }, sums, db))
}

struct BackwardRows<'a> {
    width: usize,
    range: std::ops::Range<usize>,
    dy: &'a [f32],
    x: &'a [f32],
    weight: Option<&'a [f32]>,
    statistics: &'a [f32],
    kind: NormKind,
    residual: Option<&'a [f32]>,
    to: Pointer,
    /// dw, then db.
    sums: &'a mut [f32],
}

impl WithSimd for BackwardRows<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        let Self { width: n, range, dy, x, weight, statistics, kind, residual, to, sums } = self;
        let lanes = S::F32_LANES;
        let (dw, db) = sums.split_at_mut(n);
        let (dw, db) = (dw.as_mut_ptr(), db.as_mut_ptr());
        for row in range {
            let (x, dy) = (x[row * n..][..n].as_ptr(), dy[row * n..][..n].as_ptr());
            let residual = residual.map(|r| r[row * n..][..n].as_ptr());
            let [centre, shift, scale] = [0, 1, 2].map(|i| s.splat_f32s(statistics[STATISTICS * row + i]));
            // SAFETY: all rows have n elements; dx's row and the sums belong to this task.
            unsafe {
                let (mut sum, mut product) = (Sum::new(s), Sum::new(s));
                for j in (0..n).step_by(lanes) {
                    let d = s.sub_f32s(s.sub_f32s(vector::read(s, x, j, n), centre), shift);
                    let hat = s.mul_f32s(d, scale);
                    let d = vector::read(s, dy, j, n);
                    vector::write(s, dw, j, n, s.mul_add_e_f32s(d, hat, vector::read(s, dw, j, n)));
                    vector::write(s, db, j, n, s.add_f32s(d, vector::read(s, db, j, n)));
                    let g = match weight {
                        Some(weight) => s.mul_f32s(d, vector::read(s, weight.as_ptr(), j, n)),
                        None => d,
                    };
                    sum.add(s, g);
                    product.add_product(s, g, hat);
                }
                let mean = if kind == NormKind::Layer { sum.finish(s) / n as f32 } else { 0. };
                let (mean, slant) = (s.splat_f32s(mean), s.splat_f32s(product.finish(s) / n as f32));
                let dx = to.at(row * n);
                for j in (0..n).step_by(lanes) {
                    let d = s.sub_f32s(s.sub_f32s(vector::read(s, x, j, n), centre), shift);
                    let hat = s.mul_f32s(d, scale);
                    let mut g = vector::read(s, dy, j, n);
                    if let Some(weight) = weight {
                        g = s.mul_f32s(g, vector::read(s, weight.as_ptr(), j, n));
                    }
                    let mut v = s.mul_f32s(scale, s.negate_mul_add_e_f32s(hat, slant, s.sub_f32s(g, mean)));
                    if let Some(residual) = residual {
                        v = s.add_f32s(v, vector::read(s, residual, j, n));
                    }
                    vector::write(s, dx, j, n, v);
                }
            }
        }
    }
}
