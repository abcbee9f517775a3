use candle_core::Result;
use pulp::{Simd, WithSimd};
use zoo_kernels::cpu::vector::Sum;
use zoo_kernels::cpu::{Buffer, Pointer, parallel, simd, vector};

use super::IGNORED;
use crate::ops::softmax::largest;

/// Elements a thread takes at a time.
const CHUNK: usize = 8 * 1024;

/// The loss of each row (0 where it is ignored), and what the backward pass needs of each: the largest logit and the
/// logarithm of Σ exp of what the others are below it.
pub(super) fn forward(smoothing: f64, z: &[f32], targets: &[i64]) -> Result<(Vec<f32>, Vec<f32>)> {
    let (level, rows) = (simd::level()?, targets.len());
    let width = z.len() / rows;
    let block = (CHUNK / width).max(1);
    let (mut losses, mut logs) = (Buffer::new(rows), Buffer::new(2 * rows));
    let (to, at) = (losses.pointer(), logs.pointer());
    parallel::chunks(rows, block, |rows| {
        level.run(ForwardRows { smoothing: smoothing as f32, width, rows, z, targets, to, at });
    });
    // SAFETY: the blocks cover all rows, and the kernel writes loss and logarithm of each of its own.
    Ok(unsafe { (losses.finish(), logs.finish()) })
}

pub(super) fn backward(smoothing: f64, scale: f32, z: &[f32], targets: &[i64], logs: &[f32]) -> Result<Vec<f32>> {
    let (level, rows) = (simd::level()?, targets.len());
    let width = z.len() / rows;
    let block = (CHUNK / width).max(1);
    let mut dz = Buffer::new(z.len());
    let to = dz.pointer();
    parallel::chunks(rows, block, |rows| {
        let z = z.as_ptr();
        level.run(BackwardRows { smoothing: smoothing as f32, scale, width, rows, z, targets, logs, to });
    });
    // SAFETY: the blocks cover all rows, and the kernel writes all elements of its own.
    Ok(unsafe { dz.finish() })
}

/// As [`backward`], in the place of the logits.
pub(super) fn backward_in_place(
    smoothing: f64,
    scale: f32,
    z: &mut [f32],
    targets: &[i64],
    logs: &[f32],
) -> Result<()> {
    let (level, rows) = (simd::level()?, targets.len());
    let width = z.len() / rows;
    let block = (CHUNK / width).max(1);
    let to = Pointer::of(z);
    parallel::chunks(rows, block, |rows| {
        // SAFETY: a number alone.
        let z = unsafe { to.at(0) }.cast_const();
        level.run(BackwardRows { smoothing: smoothing as f32, scale, width, rows, z, targets, logs, to });
    });
    Ok(())
}

struct ForwardRows<'a> {
    smoothing: f32,
    width: usize,
    rows: std::ops::Range<usize>,
    z: &'a [f32],
    targets: &'a [i64],
    to: Pointer,
    at: Pointer,
}

impl WithSimd for ForwardRows<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        let Self { smoothing, width: n, rows, z, targets, to, at } = self;
        for row in rows {
            let (z, target) = (&z[row * n..][..n], targets[row]);
            let p = z.as_ptr();
            // SAFETY: z has n elements; loss and logarithm of this row belong to this task.
            unsafe {
                let max = largest(s, p, n);
                let shift = s.splat_f32s(max);
                let (mut sum, mut total) = (Sum::new(s), Sum::new(s));
                for j in (0..n).step_by(S::F32_LANES) {
                    let v = s.sub_f32s(vector::read(s, p, j, n), shift);
                    sum.add(s, vector::within(s, vector::exp(s, v), j, n));
                    total.add(s, vector::within(s, v, j, n));
                }
                let log = sum.finish(s).ln();
                let mean = if smoothing > 0. { smoothing * total.finish(s) / n as f32 } else { 0. };
                let of_target = |t: usize| log - (1. - smoothing) * (z[t] - max) - mean;
                to.at(row).write(if target == IGNORED { 0. } else { of_target(target as usize) });
                at.at(2 * row).write(max);
                at.at(2 * row + 1).write(log);
            }
        }
    }
}

struct BackwardRows<'a> {
    smoothing: f32,
    scale: f32,
    width: usize,
    rows: std::ops::Range<usize>,
    /// Of all rows; may be where the results go.
    z: *const f32,
    targets: &'a [i64],
    logs: &'a [f32],
    to: Pointer,
}

impl WithSimd for BackwardRows<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        let Self { smoothing, scale, width: n, rows, z, targets, logs, to } = self;
        let (each, factor) = (s.splat_f32s(-smoothing / n as f32), s.splat_f32s(scale));
        for row in rows {
            let target = targets[row];
            // SAFETY: the row of z and that of dz have n elements; they belong to this task, and the target lies within them. Elements of z
            // are read before those of dz in their place are written.
            unsafe {
                let z = z.add(row * n);
                let dz = to.at(row * n);
                if target == IGNORED {
                    dz.write_bytes(0, n);
                    continue;
                }
                let (max, log) = (s.splat_f32s(logs[2 * row]), s.splat_f32s(logs[2 * row + 1]));
                for j in (0..n).step_by(S::F32_LANES) {
                    let p = vector::exp(s, s.sub_f32s(s.sub_f32s(vector::read(s, z, j, n), max), log));
                    vector::write(s, dz, j, n, s.mul_f32s(factor, s.add_f32s(p, each)));
                }
                *dz.add(target as usize) -= scale * (1. - smoothing);
            }
        }
    }
}
