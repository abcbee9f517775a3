//! Matrix products accumulated in f32, the same bits at any number of threads: large ones by the `gemm` crate, those of few rows with a
//! transposed factor as dot products, and those of [bf16](mod@super::bf16) by kernels of their own.

use std::borrow::Cow;

use candle_core::Result;
use pulp::{Simd, WithSimd};

use super::buffer::{Buffer, Pointer};
use super::product::Matrix;
use super::{bf16, parallel, simd, vector};

/// Below this many multiplications a second thread costs more than it brings.
pub(super) const PARALLEL: usize = 1 << 17;

/// What becomes of the result that is already there: C = keep · C + scale · A B.
#[derive(Clone, Copy, Debug)]
pub struct Blend {
    /// Share of what is there; 0 does not read it.
    pub keep: f32,
    /// Factor of the product.
    pub scale: f32,
}

impl Blend {
    /// The product alone.
    pub const REPLACE: Self = Self { keep: 0., scale: 1. };
    /// The product added.
    pub const ADD: Self = Self { keep: 1., scale: 1. };
}

/// C (m, n) = A (m, k) · B (k, n), blended with what is there; the rows of C are `c_row` apart.
///
/// # Safety
/// `c` points to m rows of n elements that nobody else accesses, initialised if any of it is kept.
pub unsafe fn matmul_into([m, n, k]: [usize; 3], a: Matrix, b: Matrix, c: Pointer, c_row: usize, blend: Blend) {
    assert!(a.reaches(m, k) && b.reaches(k, n), "factor too short");
    // SAFETY: the factors reach as far, as was checked; the caller answers for C.
    unsafe {
        match bf16::is_on() && k > 0 {
            true => bf16::product_into([m, n, k], a, b, None, c, c_row, blend),
            false => gemm_into([m, n, k], a, b, c, c_row, blend),
        }
    }
}

/// As [`matmul_into`], in f32.
///
/// # Safety
/// As there; the factors reach as far as these sizes.
pub(super) unsafe fn gemm_into([m, n, k]: [usize; 3], a: Matrix, b: Matrix, c: Pointer, c_row: usize, blend: Blend) {
    let Blend { keep, scale } = blend;
    let threads = if m.saturating_mul(n).saturating_mul(k) < PARALLEL || parallel::is_alone() {
        gemm::Parallelism::None
    } else {
        gemm::Parallelism::Rayon(0)
    };
    // SAFETY: the caller's promise.
    unsafe {
        let c = c.at(0);
        if k == 0 {
            let rows = (0..m).map(|i| c.add(i * c_row));
            match keep {
                0. => rows.for_each(|row| row.write_bytes(0, n)),
                _ => rows.for_each(|row| std::slice::from_raw_parts_mut(row, n).iter_mut().for_each(|v| *v *= keep)),
            }
            return;
        }
        #[rustfmt::skip]
        let product = || gemm::gemm(
            m, n, k,
            c, 1, c_row as isize, keep != 0.,
            a.data.as_ptr(), a.col as isize, a.row as isize,
            b.data.as_ptr(), b.col as isize, b.row as isize,
            keep, scale, false, false, false, threads,
        );
        match threads {
            gemm::Parallelism::None => product(),
            _ => parallel::apart(product),
        }
    }
}

/// A (m, k) · B (k, n) in row-major order.
///
/// # Panics
/// A factor that is shorter than its size and strides say, or a product beyond what can be addressed.
pub fn matmul(size: [usize; 3], a: Matrix, b: Matrix) -> Vec<f32> {
    let mut out = Buffer::new(size[0].checked_mul(size[1]).expect("a product of more elements than can be addressed"));
    // SAFETY: the buffer has m rows of n elements, and the product writes them all.
    unsafe {
        matmul_into(size, a, b, out.pointer(), size[1], Blend::REPLACE);
        out.finish()
    }
}

/// With up to so many rows, bringing the other factor into the order that a large product wants costs more than it gains; a row of the result
/// then does not depend on how many there are.
const FEW: usize = 64;
/// Columns of the result that a task takes at least, with few rows.
const COLUMNS: usize = 32;
/// Elements of the other factor that a task reads at least, with few rows: some microseconds from memory.
const READ: usize = 1 << 15;

/// C (m, n) = x (m, k) · wᵀ (k, n) + bias, for row-major x and w (n, k); the rows of C are `c_row` apart.
///
/// # Safety
/// `c` points to m rows of n elements that nobody else accesses.
pub unsafe fn affine_into(
    [m, n, k]: [usize; 3],
    x: &[f32],
    w: &[f32],
    bias: Option<&[f32]>,
    c: Pointer,
    c_row: usize,
) -> Result<()> {
    let fits = m.checked_mul(k) == Some(x.len()) && n.checked_mul(k) == Some(w.len());
    assert!(fits && bias.is_none_or(|b| b.len() == n), "sizes do not fit");
    let rounds = bf16::is_on();
    if rounds && m > bf16::FEW && k > 0 {
        let (x, w) = (Matrix::rows(x, k), Matrix::transposed(w, k));
        // SAFETY: the caller's promise.
        unsafe { bf16::product_into([m, n, k], x, w, bias, c, c_row, Blend::REPLACE) };
        return Ok(());
    }
    if m > FEW {
        let (x, w) = (Matrix::rows(x, k), Matrix::transposed(w, k));
        // SAFETY: the caller's promise; rows start as the bias if they are added to.
        unsafe {
            if let Some(bias) = bias {
                start_from(m, n, bias, c, c_row);
            }
            let blend = if bias.is_some() { Blend::ADD } else { Blend::REPLACE };
            matmul_into([m, n, k], x, w, c, c_row, blend);
        }
        return Ok(());
    }
    let level = simd::level()?;
    let x = if rounds { Cow::Owned(vector::bf16_of(level, x)) } else { Cow::Borrowed(x) };
    let x = &*x;
    // A task has some microseconds of work, or all there is.
    let least = COLUMNS.max((PARALLEL / 2).checked_div(m * k).unwrap_or(n).min(READ.checked_div(k).unwrap_or(n)));
    /// Columns that are computed together.
    const FOUR: usize = 4;
    parallel::evenly(n.div_ceil(FOUR), least.div_ceil(FOUR), |fours| {
        let columns = FOUR * fours.start..n.min(FOUR * fours.end);
        level.run(FewRows { m, k, columns, x, w, bias, c, c_row, rounds });
    });
    Ok(())
}

/// Makes each of m rows of C the n elements of `bias`.
///
/// # Safety
/// `c` points to m rows of n elements that nobody else accesses.
pub(super) unsafe fn start_from(m: usize, n: usize, bias: &[f32], c: Pointer, c_row: usize) {
    // SAFETY: the caller's promise.
    (0..m).for_each(|i| unsafe { c.at(i * c_row).copy_from_nonoverlapping(bias[..n].as_ptr(), n) });
}

/// Some columns of the result, as dot products of rows of x and w.
struct FewRows<'a> {
    m: usize,
    k: usize,
    columns: std::ops::Range<usize>,
    x: &'a [f32],
    w: &'a [f32],
    bias: Option<&'a [f32]>,
    c: Pointer,
    c_row: usize,
    /// Whether the elements of w become bf16.
    rounds: bool,
}

impl WithSimd for FewRows<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        let (m, columns) = (self.m, self.columns.clone());
        let mut j = columns.start;
        while j < columns.end {
            // For one row, rows of w one after the other are one stream from memory, which is all that limits it.
            let wide = m > 1 && columns.end - j >= 4;
            let mut i = 0;
            while i < m {
                let tall = m - i >= 4;
                // SAFETY: rows i.. of x and j.. of w lie within them, the results within the caller's columns.
                unsafe {
                    match (tall, wide, self.rounds) {
                        (true, true, false) => self.dots::<S, 4, 4, false>(s, i, j),
                        (true, true, true) => self.dots::<S, 4, 4, true>(s, i, j),
                        (true, false, false) => self.dots::<S, 4, 1, false>(s, i, j),
                        (true, false, true) => self.dots::<S, 4, 1, true>(s, i, j),
                        (false, true, false) => self.dots::<S, 1, 4, false>(s, i, j),
                        (false, true, true) => self.dots::<S, 1, 4, true>(s, i, j),
                        (false, false, false) => self.dots::<S, 1, 1, false>(s, i, j),
                        (false, false, true) => self.dots::<S, 1, 1, true>(s, i, j),
                    }
                }
                i += if tall { 4 } else { 1 };
            }
            j += if wide { 4 } else { 1 };
        }
    }
}

impl FewRows<'_> {
    /// # Safety
    /// M rows of x from i on and N of w from j on are there.
    #[inline(always)]
    unsafe fn dots<S: Simd, const M: usize, const N: usize, const ROUNDS: bool>(&self, s: S, i: usize, j: usize) {
        let Self { k, x, w, bias, c, c_row, .. } = *self;
        let (x, w) = (x.as_ptr().wrapping_add(i * k), w.as_ptr().wrapping_add(j * k));
        let block = vector::BLOCK * S::F32_LANES;
        // SAFETY: the caller's promise.
        let mut totals = unsafe { self.block::<S, M, N, ROUNDS>(s, x, w, 0..k.min(block)) };
        for first in (block..k).step_by(block) {
            // SAFETY: the caller's promise.
            let sums = unsafe { self.block::<S, M, N, ROUNDS>(s, x, w, first..k.min(first + block)) };
            for (totals, sums) in totals.iter_mut().zip(sums) {
                for (total, sum) in totals.iter_mut().zip(sums) {
                    *total = s.add_f32s(*total, sum);
                }
            }
        }
        for (a, sums) in totals.into_iter().enumerate() {
            for (b, sum) in sums.into_iter().enumerate() {
                let start = bias.map_or(0., |bias| bias[j + b]);
                // SAFETY: the caller's promise.
                unsafe { c.at((i + a) * c_row + j + b).write(start + s.reduce_sum_f32s(sum)) }
            }
        }
    }

    /// The sums of products of some of the k elements of M rows of x and N of w, lane by lane.
    ///
    /// # Safety
    /// Such rows of k elements are there.
    #[inline(always)]
    unsafe fn block<S: Simd, const M: usize, const N: usize, const ROUNDS: bool>(
        &self,
        s: S,
        x: *const f32,
        w: *const f32,
        elements: std::ops::Range<usize>,
    ) -> [[S::f32s; N]; M] {
        let k = self.k;
        let mut sums = [[s.splat_f32s(0.); N]; M];
        for e in elements.step_by(S::F32_LANES) {
            // SAFETY: the caller's promise; rows have k elements.
            unsafe {
                let mut rows = [s.splat_f32s(0.); N];
                for (b, row) in rows.iter_mut().enumerate() {
                    *row = vector::read(s, w.add(b * k), e, k);
                    if ROUNDS {
                        *row = vector::bf16(s, *row);
                    }
                }
                for (a, sums) in sums.iter_mut().enumerate() {
                    let x = vector::read(s, x.add(a * k), e, k);
                    for (sum, w) in sums.iter_mut().zip(rows) {
                        *sum = s.mul_add_e_f32s(x, w, *sum);
                    }
                }
            }
        }
        sums
    }
}
