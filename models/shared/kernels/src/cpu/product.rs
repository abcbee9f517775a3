//! Small matrix products for kernels that cannot wait for a general one: C (+)= Σ A·B on strided f32 matrices.
//!
//! Every element of C is summed in the order of k, whatever the tiles and threads: results do not depend on how the
//! work was cut. Large products go to the `gemm` crate instead.

use pulp::Simd;

use super::vector;

/// A matrix that is read: element (i, k) is `data[i * row + k * col]`.
#[derive(Clone, Copy)]
pub struct Matrix<'a> {
    /// The elements.
    pub data: &'a [f32],
    /// Distance between rows.
    pub row: usize,
    /// Distance between columns.
    pub col: usize,
}

impl<'a> Matrix<'a> {
    /// Row-major with `width` columns.
    #[inline]
    pub fn rows(data: &'a [f32], width: usize) -> Self {
        Self { data, row: width, col: 1 }
    }

    /// The transpose of row-major data with `width` columns.
    #[inline]
    pub fn transposed(data: &'a [f32], width: usize) -> Self {
        Self { data, row: 1, col: width }
    }

    /// Whether so many rows and columns of it are there.
    #[inline]
    pub(super) fn reaches(&self, rows: usize, columns: usize) -> bool {
        rows == 0 || columns == 0 || self.last(rows, columns).is_some_and(|at| at < self.data.len())
    }

    /// The place of the last element of so many rows and columns; none of none.
    pub(super) fn last(&self, rows: usize, columns: usize) -> Option<usize> {
        if rows == 0 || columns == 0 { None } else { last([(rows, self.row), (columns, self.col)]) }
    }
}

/// The place of the last element of so many rows and columns, so far apart; none beyond what can be addressed.
#[inline]
fn last(sides: [(usize, usize); 2]) -> Option<usize> {
    let [a, b] = sides.map(|(count, apart)| (count - 1).checked_mul(apart));
    a?.checked_add(b?)
}

/// One product A·B of a sum: A is (m, k) with any strides, B is (k, n) with consecutive columns.
#[derive(Clone, Copy)]
pub struct Term<'a> {
    /// Left factor (m, k).
    pub a: Matrix<'a>,
    /// Right factor (k, n): rows `b_row` apart.
    pub b: &'a [f32],
    /// Distance between rows of the right factor.
    pub b_row: usize,
    /// Inner dimension.
    pub k: usize,
}

/// What the sum starts from.
#[derive(Clone, Copy)]
pub enum Start<'a> {
    /// Zero.
    Zero,
    /// What the result holds already.
    Result,
    /// The same row for all rows of the result.
    Row(&'a [f32]),
}

/// C = start + Σ A·B, for C of (m, n) with rows `c_row` apart and consecutive columns.
///
/// # Safety
/// `c` points to m rows of n elements that nobody else accesses; they are initialised if `start` is `Result`.
#[inline(always)]
pub unsafe fn product<S: Simd>(s: S, m: usize, n: usize, start: Start, terms: &[Term], c: *mut f32, c_row: usize) {
    if m == 0 || n == 0 {
        return;
    }
    for t in terms.iter().filter(|t| t.k > 0) {
        assert!(t.a.reaches(m, t.k), "left factor too short");
        assert!(last([(t.k, t.b_row), (n, 1)]).is_some_and(|at| at < t.b.len()), "right factor too short");
    }
    if let Start::Row(row) = start {
        assert!(n <= row.len(), "start row too short");
    }
    let lanes = S::F32_LANES;
    let wide = S::REGISTER_COUNT >= 32;
    let mut i = 0;
    while i < m {
        let rows = match m - i {
            8.. if wide => 8,
            4.. => 4,
            2.. => 2,
            _ => 1,
        };
        let mut j = 0;
        while j < n {
            let left = (n - j).div_ceil(lanes);
            // SAFETY: the tile at (i, j) has `rows` rows within m and its columns are masked to n; reads were checked.
            unsafe {
                macro_rules! go {
                    ($mr:literal, $nv:literal) => {{
                        tile::<S, $mr, $nv>(s, i, j, n, start, terms, c, c_row);
                        j += $nv * lanes;
                    }};
                }
                match (rows, left) {
                    (8, 1) => go!(8, 1),
                    (8, 2 | 4) => go!(8, 2),
                    (8, _) => go!(8, 3),
                    (4, 1) => go!(4, 1),
                    (4, 2 | 4) => go!(4, 2),
                    (4, _) => go!(4, 3),
                    (2, 1) => go!(2, 1),
                    (2, 2 | 3) => go!(2, 2),
                    (2, _) => go!(2, 4),
                    (_, 1) => go!(1, 1),
                    (_, 2) => go!(1, 2),
                    (_, 3 | 4) => go!(1, 4),
                    (_, 5) => go!(1, 5),
                    (_, 6..8) => go!(1, 7),
                    (_, _) => go!(1, 8),
                }
            }
        }
        i += rows;
    }
}

/// MR rows by NV vectors of the result, held in registers over all terms.
///
/// # Safety
/// As [`product`]: rows i..i+MR lie within m, `j < n`, and the factors were checked.
#[inline(always)]
unsafe fn tile<S: Simd, const MR: usize, const NV: usize>(
    s: S,
    i: usize,
    j: usize,
    n: usize,
    start: Start,
    terms: &[Term],
    c: *mut f32,
    c_row: usize,
) {
    let lanes = S::F32_LANES;
    if j + NV * lanes <= n {
        // SAFETY: the caller's promise; all lanes lie within n.
        unsafe { masked::<S, MR, NV, false>(s, i, j, n, start, terms, c, c_row) }
    } else {
        // SAFETY: the caller's promise; lanes beyond n are masked off.
        unsafe { masked::<S, MR, NV, true>(s, i, j, n, start, terms, c, c_row) }
    }
}

/// # Safety
/// As [`tile`].
#[inline(always)]
unsafe fn masked<S: Simd, const MR: usize, const NV: usize, const TAIL: bool>(
    s: S,
    i: usize,
    j: usize,
    n: usize,
    start: Start,
    terms: &[Term],
    c: *mut f32,
    c_row: usize,
) {
    let lanes = S::F32_LANES;
    // Whole vectors left before the masked one; vectors beyond the last column (only in wide tiles) are masked to none.
    let mut masks = [vector::first(s, 0); NV];
    for (v, mask) in masks.iter_mut().enumerate() {
        *mask = vector::first(s, n.saturating_sub(j + v * lanes).min(lanes));
    }
    // SAFETY: offsets stay within the matrices as checked in `product`; masked lanes are not touched.
    unsafe {
        let mut acc = [[s.splat_f32s(0.); NV]; MR];
        if let Start::Row(row) = start {
            acc = [vectors::<S, NV, TAIL>(s, &masks, row.as_ptr().add(j)); MR];
        }
        for t in terms {
            let a = t.a.data.as_ptr().wrapping_add(i * t.a.row);
            let b = t.b.as_ptr().wrapping_add(j);
            for k in 0..t.k {
                let b = vectors::<S, NV, TAIL>(s, &masks, b.wrapping_add(k * t.b_row));
                for (r, acc) in acc.iter_mut().enumerate() {
                    let a = s.splat_f32s(*a.add(r * t.a.row + k * t.a.col));
                    for (acc, b) in acc.iter_mut().zip(b) {
                        *acc = s.mul_add_e_f32s(a, b, *acc);
                    }
                }
            }
        }
        if matches!(start, Start::Result) {
            // Added last, so that each part of a long sum is summed on its own.
            for (r, acc) in acc.iter_mut().enumerate() {
                let before = vectors::<S, NV, TAIL>(s, &masks, c.add((i + r) * c_row + j));
                for (acc, before) in acc.iter_mut().zip(before) {
                    *acc = s.add_f32s(before, *acc);
                }
            }
        }
        for (r, acc) in acc.iter().enumerate() {
            let to = c.add((i + r) * c_row + j);
            for (v, acc) in acc.iter().enumerate() {
                if TAIL {
                    vector::store(s, masks[v], to.wrapping_add(v * lanes), *acc);
                } else {
                    to.add(v * lanes).cast::<S::f32s>().write_unaligned(*acc);
                }
            }
        }
    }
}

/// NV vectors from `p` on. A loop, as a closure may be compiled without the instructions of `S` where there is no link-time
/// optimisation: an LSTM took 1.4 times as long.
///
/// # Safety
/// The lanes, or with TAIL those of `masks`, lie within one allocation.
#[inline(always)]
unsafe fn vectors<S: Simd, const NV: usize, const TAIL: bool>(
    s: S,
    masks: &[S::m32s; NV],
    p: *const f32,
) -> [S::f32s; NV] {
    let mut vectors = [s.splat_f32s(0.); NV];
    for (v, vector) in vectors.iter_mut().enumerate() {
        // SAFETY: the caller's promise.
        *vector = unsafe {
            match TAIL {
                true => vector::load(s, masks[v], p.wrapping_add(v * S::F32_LANES)),
                false => p.add(v * S::F32_LANES).cast::<S::f32s>().read_unaligned(),
            }
        };
    }
    vectors
}

#[cfg(test)]
mod tests {
    use pulp::WithSimd;

    use super::*;
    use crate::cpu::simd::levels;
    use crate::random::{Purpose, Stream};

    struct Case<'a>(usize, usize, Start<'a>, &'a [Term<'a>], &'a mut [f32], usize);

    impl WithSimd for Case<'_> {
        type Output = ();

        #[inline(always)]
        fn with_simd<S: Simd>(self, s: S) {
            let Self(m, n, start, terms, c, c_row) = self;
            assert!(m == 0 || c.len() >= (m - 1) * c_row + n);
            // SAFETY: c holds m initialised rows of n elements and is borrowed exclusively.
            unsafe { product(s, m, n, start, terms, c.as_mut_ptr(), c_row) }
        }
    }

    #[test]
    fn products_of_every_tile_shape_equal_plain_sums() {
        let mut stream = Stream::new(1, Purpose::Simulation, 0, 0);
        let mut draw = |n: usize| -> Vec<f32> { (0..n).map(|_| stream.normal() as f32).collect() };
        for (m, n) in [(1, 1), (1, 50), (2, 17), (3, 200), (4, 33), (7, 49), (8, 48), (13, 113), (16, 200), (5, 130)] {
            let (k1, k2, c_row) = (7, 3, n + 2);
            let (a1, b1, a2, b2) = (draw(m * k1), draw(k1 * n), draw(k2 * m), draw(k2 * (n + 1)));
            let (row, c0) = (draw(n), draw(m * c_row));
            // The second left factor is read transposed, the second right factor has a gap between rows.
            let terms = [
                Term { a: Matrix { data: &a1, row: k1, col: 1 }, b: &b1, b_row: n, k: k1 },
                Term { a: Matrix { data: &a2, row: 1, col: m }, b: &b2, b_row: n + 1, k: k2 },
            ];
            for start in [Start::Zero, Start::Result, Start::Row(&row)] {
                for level in levels() {
                    let mut c = c0.clone();
                    level.run(Case(m, n, start, &terms, &mut c, c_row));
                    for i in 0..m {
                        for j in 0..c_row.min(c.len() - i * c_row) {
                            let got = c[i * c_row + j];
                            if j >= n {
                                assert_eq!(got, c0[i * c_row + j], "wrote beyond the row");
                                continue;
                            }
                            let mut want = match start {
                                Start::Zero => 0.,
                                Start::Result => f64::from(c0[i * c_row + j]),
                                Start::Row(row) => f64::from(row[j]),
                            };
                            want += (0..k1).map(|k| f64::from(a1[i * k1 + k]) * f64::from(b1[k * n + j])).sum::<f64>();
                            want +=
                                (0..k2).map(|k| f64::from(a2[k * m + i]) * f64::from(b2[k * (n + 1) + j])).sum::<f64>();
                            assert!((f64::from(got) - want).abs() < 1e-5, "{level:?} {m}x{n} at {i},{j}: {got} {want}");
                        }
                    }
                }
            }
        }
    }
}
