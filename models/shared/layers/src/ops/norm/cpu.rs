use candle_core::Result;
use pulp::{Simd, WithSimd};
use zoo_kernels::cpu::{Buffer, Pointer, parallel, simd, vector};

use super::{Norm, NormKind};

/// Rows a thread takes at a time; dw and db are summed over these first.
const ROWS: usize = 64;

/// y, and μ and r of each row.
pub(in crate::ops) fn forward(
    op: &Norm,
    width: usize,
    x: &[f32],
    [weight, bias]: [Option<&[f32]>; 2],
) -> Result<(Vec<f32>, Vec<f32>)> {
    let level = simd::level()?;
    let rows = x.len().checked_div(width).unwrap_or(0);
    let (mut y, mut statistics) = (Buffer::new(x.len()), Buffer::new(2 * rows));
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
            // the two statistics.
            unsafe {
                let mut mean = 0.;
                if centres {
                    let mut sum = s.splat_f32s(0.);
                    for j in (0..n).step_by(lanes) {
                        sum = s.add_f32s(sum, vector::read(s, x, j, n));
                    }
                    mean = s.reduce_sum_f32s(sum) / n as f32;
                }
                let centre = s.splat_f32s(mean);
                let mut squares = s.splat_f32s(0.);
                for j in (0..n).step_by(lanes) {
                    let d = vector::within(s, s.sub_f32s(vector::read(s, x, j, n), centre), j, n);
                    squares = s.mul_add_e_f32s(d, d, squares);
                }
                let root = 1. / (s.reduce_sum_f32s(squares) / n as f32 + op.eps as f32).sqrt();
                let scale = s.splat_f32s(root);
                let y = to.at(row * n);
                for j in (0..n).step_by(lanes) {
                    let mut v = s.mul_f32s(s.sub_f32s(vector::read(s, x, j, n), centre), scale);
                    if let Some(weight) = weight {
                        v = s.mul_f32s(v, vector::read(s, weight.as_ptr(), j, n));
                    }
                    if let Some(bias) = bias {
                        v = s.add_f32s(v, vector::read(s, bias.as_ptr(), j, n));
                    }
                    vector::write(s, y, j, n, v);
                }
                at.at(2 * row).write(mean);
                at.at(2 * row + 1).write(root);
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
    assert!(dy.len() == x.len() && statistics.len() == 2 * rows && residual.is_none_or(|r| r.len() == x.len()));
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
            let (centre, scale) = (s.splat_f32s(statistics[2 * row]), s.splat_f32s(statistics[2 * row + 1]));
            // SAFETY: all rows have n elements; dx's row and the sums belong to this task.
            unsafe {
                let (mut sum, mut product) = (s.splat_f32s(0.), s.splat_f32s(0.));
                for j in (0..n).step_by(lanes) {
                    let hat = s.mul_f32s(s.sub_f32s(vector::read(s, x, j, n), centre), scale);
                    let d = vector::read(s, dy, j, n);
                    vector::write(s, dw, j, n, s.mul_add_e_f32s(d, hat, vector::read(s, dw, j, n)));
                    vector::write(s, db, j, n, s.add_f32s(d, vector::read(s, db, j, n)));
                    let g = match weight {
                        Some(weight) => s.mul_f32s(d, vector::read(s, weight.as_ptr(), j, n)),
                        None => d,
                    };
                    sum = s.add_f32s(sum, g);
                    product = s.mul_add_e_f32s(g, hat, product);
                }
                let mean = if kind == NormKind::Layer { s.reduce_sum_f32s(sum) / n as f32 } else { 0. };
                let (mean, slant) = (s.splat_f32s(mean), s.splat_f32s(s.reduce_sum_f32s(product) / n as f32));
                let dx = to.at(row * n);
                for j in (0..n).step_by(lanes) {
                    let hat = s.mul_f32s(s.sub_f32s(vector::read(s, x, j, n), centre), scale);
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
