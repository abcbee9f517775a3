use candle_core::Result;
use pulp::{Simd, WithSimd};
use zoo_kernels::cpu::{Buffer, Pointer, parallel, simd, vector};

/// Rows a thread takes at a time.
const ROWS: usize = 64;

/// The three parts, averaged over b·t.
pub(super) fn forward([b, t, c]: [usize; 3], o: &[f32], y: &[f32]) -> Result<Vec<f32>> {
    let (level, rows) = (simd::level()?, b * t);
    assert!(o.len() == rows * c && y.len() == rows * c);
    let mut sums = Buffer::new(3 * rows);
    let to = sums.pointer();
    parallel::chunks(rows, ROWS, |range| level.run(Sums { t, c, range, o, y, to }));
    // SAFETY: the tasks cover all rows, and each writes the three sums of its own.
    let sums = unsafe { sums.finish() };
    let mean = |part: usize| sums.chunks_exact(3).map(|row| f64::from(row[part])).sum::<f64>() / rows as f64;
    Ok((0..3).map(|part| mean(part) as f32).collect())
}

struct Sums<'a> {
    t: usize,
    c: usize,
    range: std::ops::Range<usize>,
    o: &'a [f32],
    y: &'a [f32],
    to: Pointer,
}

impl WithSimd for Sums<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        let Self { t, c, range, o, y, to } = self;
        for row in range {
            let (of, from) = (o[row * c..][..c].as_ptr(), y[row * c..][..c].as_ptr());
            // A sequence's first row is compared with itself.
            let before = if row % t == 0 { of } else { o[(row - 1) * c..][..c].as_ptr() };
            let mut sums = [s.splat_f32s(0.); 3];
            for j in (0..c).step_by(S::F32_LANES) {
                // SAFETY: the three rows have c elements.
                let (v, y, last) =
                    unsafe { (vector::read(s, of, j, c), vector::read(s, from, j, c), vector::read(s, before, j, c)) };
                let (e, d) = (s.sub_f32s(v, y), s.sub_f32s(v, last));
                sums[0] = s.mul_add_e_f32s(e, e, sums[0]);
                sums[1] = s.add_f32s(sums[1], s.abs_f32s(v));
                sums[2] = s.mul_add_e_f32s(d, d, sums[2]);
            }
            for (part, sum) in sums.into_iter().enumerate() {
                // SAFETY: the sums of this row belong to this task.
                unsafe { to.at(3 * row + part).write(s.reduce_sum_f32s(sum)) }
            }
        }
    }
}

/// Σ of the parts' gradients for o, by `weights`.
pub(super) fn backward([b, t, c]: [usize; 3], o: &[f32], y: &[f32], weights: [f32; 3]) -> Result<Vec<f32>> {
    let (level, rows) = (simd::level()?, b * t);
    assert!(o.len() == rows * c && y.len() == rows * c);
    let mut slopes = Buffer::new(rows * c);
    let to = slopes.pointer();
    parallel::chunks(rows, ROWS, |range| level.run(Slopes { t, c, range, o, y, weights, to }));
    // SAFETY: the tasks cover all rows, and each writes all elements of its own.
    Ok(unsafe { slopes.finish() })
}

struct Slopes<'a> {
    t: usize,
    c: usize,
    range: std::ops::Range<usize>,
    o: &'a [f32],
    y: &'a [f32],
    weights: [f32; 3],
    to: Pointer,
}

impl WithSimd for Slopes<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        let Self { t, c, range, o, y, weights: [error, sparsity, smoothness], to } = self;
        let (error, smoothness) = (s.splat_f32s(2. * error), s.splat_f32s(2. * smoothness));
        let [zero, plus, minus] = [0., sparsity, -sparsity].map(|v| s.splat_f32s(v));
        for row in range {
            let part = |row: usize| o[row * c..][..c].as_ptr();
            let (of, from) = (part(row), y[row * c..][..c].as_ptr());
            let before = if row % t == 0 { of } else { part(row - 1) };
            let behind = if row % t + 1 == t { of } else { part(row + 1) };
            for j in (0..c).step_by(S::F32_LANES) {
                // SAFETY: all rows have c elements, and that of the output belongs to this task.
                unsafe {
                    let (v, y) = (vector::read(s, of, j, c), vector::read(s, from, j, c));
                    let (last, next) = (vector::read(s, before, j, c), vector::read(s, behind, j, c));
                    let sign = s.select_f32s(s.less_than_f32s(v, zero), minus, zero);
                    let sign = s.select_f32s(s.greater_than_f32s(v, zero), plus, sign);
                    let bend = s.sub_f32s(s.sub_f32s(v, last), s.sub_f32s(next, v));
                    let slope = s.mul_add_e_f32s(error, s.sub_f32s(v, y), sign);
                    vector::write(s, to.at(row * c), j, c, s.mul_add_e_f32s(smoothness, bend, slope));
                }
            }
        }
    }
}
