use candle_core::Result;
use pulp::{Simd, WithSimd};
use zoo_kernels::cpu::vector::Sum;
use zoo_kernels::cpu::{Buffer, Pointer, parallel, simd, vector};

/// Elements a thread takes at a time.
const CHUNK: usize = 8 * 1024;

/// Runs `kernel` over blocks of rows, for one result of the size of `x`.
fn by_rows(width: usize, n: usize, run: impl Fn(std::ops::Range<usize>, Pointer) + Sync + Send) -> Vec<f32> {
    let rows = n.checked_div(width).unwrap_or(0);
    let block = CHUNK.checked_div(width).unwrap_or(1).max(1);
    let mut out = Buffer::new(n);
    let to = out.pointer();
    parallel::chunks(rows, block, |rows| run(rows, to));
    // SAFETY: the blocks cover all rows, and the kernels write every element of theirs.
    unsafe { out.finish() }
}

pub(super) fn forward(log: bool, width: usize, x: &[f32]) -> Result<Vec<f32>> {
    let level = simd::level()?;
    Ok(by_rows(width, x.len(), |rows, to| level.run(ForwardRows { log, width, rows, x, to })))
}

pub(super) fn backward(log: bool, width: usize, dy: &[f32], y: &[f32]) -> Result<Vec<f32>> {
    let level = simd::level()?;
    Ok(by_rows(width, y.len(), |rows, to| level.run(BackwardRows { log, width, rows, dy, y, to })))
}

/// The largest of `n` elements, NaN if one is.
///
/// # Safety
/// `x` points to n elements, at least one.
#[inline(always)]
pub(in crate::ops) unsafe fn largest<S: Simd>(s: S, x: *const f32, n: usize) -> f32 {
    let low = s.splat_f32s(f32::NEG_INFINITY);
    let (mut max, mut sum) = (low, s.splat_f32s(0.));
    for j in (0..n).step_by(S::F32_LANES) {
        // SAFETY: the caller's promise.
        let v = unsafe { vector::read(s, x, j, n) };
        // Zero for every number, NaN for NaN (and infinity, which leads there anyway).
        sum = s.add_f32s(sum, s.mul_f32s(v, s.splat_f32s(0.)));
        let v = match j + S::F32_LANES <= n {
            true => v,
            false => s.select_f32s(vector::first(s, n - j), v, low),
        };
        max = s.select_f32s(s.greater_than_f32s(v, max), v, max);
    }
    let (max, nan) = (s.reduce_max_f32s(max), s.reduce_sum_f32s(sum).is_nan());
    // Minus infinity times zero is NaN as well: look again, slowly.
    // SAFETY: the caller's promise.
    let really = || unsafe { std::slice::from_raw_parts(x, n) }.iter().any(|v| v.is_nan());
    if nan && really() { f32::NAN } else { max }
}

struct ForwardRows<'a> {
    log: bool,
    width: usize,
    rows: std::ops::Range<usize>,
    x: &'a [f32],
    to: Pointer,
}

impl WithSimd for ForwardRows<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        let Self { log, width: n, rows, x, to } = self;
        for row in rows {
            let x = x[row * n..][..n].as_ptr();
            // SAFETY: x and the row of the output have n elements; the latter belongs to this task.
            unsafe {
                let y = to.at(row * n);
                let max = largest(s, x, n);
                let max = if max == f32::NEG_INFINITY { 0. } else { max };
                let shift = s.splat_f32s(max);
                let mut sum = Sum::new(s);
                for j in (0..n).step_by(S::F32_LANES) {
                    let e = vector::exp(s, s.sub_f32s(vector::read(s, x, j, n), shift));
                    sum.add(s, vector::within(s, e, j, n));
                    vector::write(s, y, j, n, e);
                }
                let sum = sum.finish(s);
                let sum = if sum == 0. { 1. } else { sum };
                let (scale, log_sum) = (s.splat_f32s(1. / sum), s.splat_f32s(sum.ln()));
                for j in (0..n).step_by(S::F32_LANES) {
                    let v = match log {
                        true => s.sub_f32s(s.sub_f32s(vector::read(s, x, j, n), shift), log_sum),
                        false => s.mul_f32s(vector::read(s, y, j, n), scale),
                    };
                    vector::write(s, y, j, n, v);
                }
            }
        }
    }
}

struct BackwardRows<'a> {
    log: bool,
    width: usize,
    rows: std::ops::Range<usize>,
    dy: &'a [f32],
    y: &'a [f32],
    to: Pointer,
}

impl WithSimd for BackwardRows<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        let Self { log, width: n, rows, dy, y, to } = self;
        for row in rows {
            let (dy, y) = (dy[row * n..][..n].as_ptr(), y[row * n..][..n].as_ptr());
            // SAFETY: the rows have n elements; that of the output belongs to this task.
            unsafe {
                let dx = to.at(row * n);
                let mut sum = s.splat_f32s(0.);
                for j in (0..n).step_by(S::F32_LANES) {
                    let d = vector::read(s, dy, j, n);
                    let weight = if log { s.splat_f32s(1.) } else { vector::read(s, y, j, n) };
                    sum = s.mul_add_e_f32s(d, weight, sum);
                }
                let sum = s.splat_f32s(s.reduce_sum_f32s(sum));
                for j in (0..n).step_by(S::F32_LANES) {
                    let (d, y) = (vector::read(s, dy, j, n), vector::read(s, y, j, n));
                    let v = match log {
                        true => s.negate_mul_add_e_f32s(vector::exp(s, y), sum, d),
                        false => s.mul_f32s(y, s.sub_f32s(d, sum)),
                    };
                    vector::write(s, dx, j, n, v);
                }
            }
        }
    }
}
