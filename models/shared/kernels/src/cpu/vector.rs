//! Functions on SIMD vectors of f32, generic over the instruction set.
//!
//! The polynomial is a least-maximum fit made for this crate; relative errors are below 3 units in the last
//! place. NaN stays NaN.

use pulp::{MemMask, Simd, WithSimd};

use super::buffer::Pointer;
use super::parallel;
use super::simd::Level;
use crate::random::{CONSTANTS, ROUNDS};

/// The mask of the first `n` lanes. (Not as a `MemMask`, which carries a pointer to be asked before every access.)
#[inline(always)]
pub fn first<S: Simd>(s: S, n: usize) -> S::m32s {
    s.mask_between_m32s(0, n as u32).mask()
}

/// Loads the lanes of `mask`; the others are zero.
///
/// # Safety
/// The enabled lanes lie within one allocation.
#[inline(always)]
pub unsafe fn load<S: Simd>(s: S, mask: S::m32s, from: *const f32) -> S::f32s {
    // SAFETY: the caller's promise.
    unsafe { s.mask_load_ptr_f32s(MemMask::new(mask), from) }
}

/// Stores the lanes of `mask`.
///
/// # Safety
/// The enabled lanes lie within one allocation that nobody else accesses.
#[inline(always)]
pub unsafe fn store<S: Simd>(s: S, mask: S::m32s, to: *mut f32, v: S::f32s) {
    // SAFETY: the caller's promise.
    unsafe { s.mask_store_ptr_f32s(MemMask::new(mask), to, v) }
}

/// Elements j, j + 1, … of a row of `n`, as many as there are lanes; zero beyond its end.
///
/// # Safety
/// `row` points to `n` elements and `j < n`.
#[inline(always)]
pub unsafe fn read<S: Simd>(s: S, row: *const f32, j: usize, n: usize) -> S::f32s {
    // SAFETY: the caller's promise; lanes beyond the row are masked off.
    unsafe {
        match j + S::F32_LANES <= n {
            true => row.add(j).cast::<S::f32s>().read_unaligned(),
            false => load(s, first(s, n - j), row.add(j)),
        }
    }
}

/// Writes what [`read`] reads.
///
/// # Safety
/// `row` points to `n` elements that nobody else accesses and `j < n`.
#[inline(always)]
pub unsafe fn write<S: Simd>(s: S, row: *mut f32, j: usize, n: usize, v: S::f32s) {
    // SAFETY: the caller's promise; lanes beyond the row are masked off.
    unsafe {
        match j + S::F32_LANES <= n {
            true => row.add(j).cast::<S::f32s>().write_unaligned(v),
            false => store(s, first(s, n - j), row.add(j), v),
        }
    }
}

/// `v` with zeros in the lanes that lie beyond element `n` of a row whose element `j` is in the first.
#[inline(always)]
pub fn within<S: Simd>(s: S, v: S::f32s, j: usize, n: usize) -> S::f32s {
    match j + S::F32_LANES <= n {
        true => v,
        false => s.select_f32s(first(s, n - j), v, s.splat_f32s(0.)),
    }
}

/// The integer n nearest to x / ln 2, as a float and (in its lowest bits) as an integer, and eʳ - 1 for r = x - n ln 2.
#[inline(always)]
fn reduced<S: Simd>(s: S, x: S::f32s) -> (S::u32s, S::f32s) {
    let c = |v: f32| s.splat_f32s(v);
    // Adding a number so large that only integers are left rounds to the nearest.
    const SHIFT: f32 = 12_582_912.; // 1.5 · 2²³
    let shifted = s.mul_add_e_f32s(x, c(std::f32::consts::LOG2_E), c(SHIFT));
    let n = s.sub_f32s(shifted, c(SHIFT));
    let r = s.mul_add_e_f32s(n, c(-0.693_359_4), x);
    let r = s.mul_add_e_f32s(n, c(2.121_944_4e-4), r);
    let mut p = c(0.001_395_060_2);
    for k in [0.008_368_953, 0.041_666_206, 0.166_665_18, 0.5] {
        p = s.mul_add_e_f32s(p, r, c(k));
    }
    (s.transmute_u32s_f32s(shifted), s.mul_add_e_f32s(p, s.mul_f32s(r, r), r))
}

/// 2ⁿ for the n of [`reduced`], from the bits of its exponent: -126 ≤ n ≤ 127.
#[inline(always)]
fn power<S: Simd>(s: S, n: S::u32s) -> S::f32s {
    let bits = s.add_u32s(n, s.splat_u32s(127));
    s.transmute_f32s_u32s(s.wrapping_dyn_shl_u32s(bits, s.splat_u32s(23)))
}

/// `x` between -87 and 87, where powers of e have an exponent; NaN stays NaN.
#[inline(always)]
fn clamped<S: Simd>(s: S, x: S::f32s) -> S::f32s {
    let (lo, hi) = (s.splat_f32s(-87.), s.splat_f32s(87.));
    if S::F32_LANES == 1 {
        let x = s.select_f32s(s.less_than_f32s(x, lo), lo, x);
        s.select_f32s(s.greater_than_f32s(x, hi), hi, x)
    } else {
        // Vector instructions return the second operand if either is NaN (x86), or NaN (Arm).
        s.max_f32s(lo, s.min_f32s(hi, x))
    }
}

/// 1 / (1 + e⁻ˣ); never below 1.6e-38.
#[inline(always)]
pub fn sigmoid<S: Simd>(s: S, x: S::f32s) -> S::f32s {
    let (n, q) = reduced(s, clamped(s, s.neg_f32s(x)));
    let (power, one) = (power(s, n), s.splat_f32s(1.));
    s.div_f32s(one, s.add_f32s(one, s.mul_add_e_f32s(power, q, power)))
}

/// Hyperbolic tangent, as t / (t + 2) with t = e²ˣ - 1, which is exact to the last bits near zero too.
#[inline(always)]
pub fn tanh<S: Simd>(s: S, x: S::f32s) -> S::f32s {
    let (n, q) = reduced(s, clamped(s, s.add_f32s(x, x)));
    let power = power(s, n);
    let t = s.mul_add_e_f32s(power, q, s.sub_f32s(power, s.splat_f32s(1.)));
    s.div_f32s(t, s.add_f32s(t, s.splat_f32s(2.)))
}

/// eˣ; 0 below -87 and 6e37 above 87.
#[inline(always)]
pub fn exp<S: Simd>(s: S, x: S::f32s) -> S::f32s {
    let (n, q) = reduced(s, clamped(s, x));
    let power = power(s, n);
    let y = s.mul_add_e_f32s(power, q, power);
    s.select_f32s(s.less_than_f32s(x, s.splat_f32s(-87.)), s.splat_f32s(0.), y)
}

/// eˣ - 1, exact to the last bits near zero too.
#[inline(always)]
pub fn exp_minus_one<S: Simd>(s: S, x: S::f32s) -> S::f32s {
    let (n, q) = reduced(s, clamped(s, x));
    let power = power(s, n);
    s.mul_add_e_f32s(power, q, s.sub_f32s(power, s.splat_f32s(1.)))
}

/// The standard normal distribution at `x`: its cumulative probability, and its density times √(2π).
///
/// Φ(-a) is e^(-a²/2) times a polynomial without constant term in 1 / (1 + 0.21 a), fitted for a from 0 to 14.
#[inline(always)]
pub fn normal<S: Simd>(s: S, x: S::f32s) -> (S::f32s, S::f32s) {
    let c = |v: f32| s.splat_f32s(v);
    let a = s.abs_f32s(x);
    let density = exp(s, s.mul_f32s(s.mul_f32s(a, a), c(-0.5)));
    let t = s.div_f32s(c(1.), s.mul_add_e_f32s(c(0.21), a, c(1.)));
    let mut p = c(-0.071_656_28);
    for k in
        [0.283_588_4, -0.330_253_1, 0.349_400_7, -0.093_924_99, 0.124_872_64, 0.069_192_19, 0.085_068_71, 0.083_711_58]
    {
        p = s.mul_add_e_f32s(p, t, c(k));
    }
    let tail = s.mul_f32s(density, s.mul_f32s(p, t));
    let upper = s.greater_than_f32s(x, c(0.));
    (s.select_f32s(upper, s.sub_f32s(c(1.), tail), tail), density)
}

/// Philox4x32-10 on as many counters as there are lanes: (index, high index, step) give four vectors of words.
#[inline(always)]
pub fn philox<S: Simd>(s: S, index: S::u32s, high: u32, step: [u32; 2], key: [u32; 2]) -> [S::u32s; 4] {
    let c = |v: u32| s.splat_u32s(v);
    let [m0, m1, w0, w1] = CONSTANTS;
    let [mut c0, mut c1, mut c2, mut c3] = [index, c(high), c(step[0]), c(step[1])];
    let [mut k0, mut k1] = key;
    for _ in 0..ROUNDS {
        let (lo0, hi0) = s.widening_mul_u32s(c0, c(m0));
        let (lo1, hi1) = s.widening_mul_u32s(c2, c(m1));
        c0 = s.xor_u32s(s.xor_u32s(hi1, c1), c(k0));
        c2 = s.xor_u32s(s.xor_u32s(hi0, c3), c(k1));
        (c1, c3) = (lo1, lo0);
        (k0, k1) = (k0.wrapping_add(w0), k1.wrapping_add(w1));
    }
    [c0, c1, c2, c3]
}

/// The lane numbers 0, 1, 2, …
#[inline(always)]
pub fn lanes<S: Simd>(s: S) -> S::u32s {
    const NUMBERS: [u32; 16] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];
    s.partial_load_u32s(&NUMBERS[..S::U32_LANES])
}

/// The nearest bf16, ties to even; subnormal numbers become zero, as in the instructions that multiply bf16.
#[inline(always)]
pub fn bf16<S: Simd>(s: S, x: S::f32s) -> S::f32s {
    let c = |v: u32| s.splat_u32s(v);
    let bits = s.transmute_u32s_f32s(x);
    let odd = s.and_u32s(s.wrapping_dyn_shr_u32s(bits, c(16)), c(1));
    let nearest = s.and_u32s(s.add_u32s(s.add_u32s(bits, c(0x7fff)), odd), c(0xffff_0000));
    let tiny = s.less_than_f32s(s.abs_f32s(x), s.splat_f32s(f32::MIN_POSITIVE));
    let y = s.select_f32s(tiny, s.splat_f32s(0.), s.transmute_f32s_u32s(nearest));
    // Adding to a NaN may make a number of it.
    s.select_f32s(s.equal_f32s(x, x), y, x)
}

/// All elements as [`bf16`].
pub fn bf16_of(level: Level, x: &[f32]) -> Vec<f32> {
    struct Rounded<'a>(&'a mut [f32]);
    impl WithSimd for Rounded<'_> {
        type Output = ();

        #[inline(always)]
        fn with_simd<S: Simd>(self, s: S) {
            let (whole, rest) = S::as_mut_simd_f32s(self.0);
            for v in whole {
                *v = bf16(s, *v);
            }
            s.partial_store_f32s(rest, bf16(s, s.partial_load_f32s(rest)));
        }
    }
    /// Elements a thread takes at a time.
    const CHUNK: usize = 32 * 1024;
    let mut y = x.to_vec();
    let to = Pointer::of(&mut y);
    parallel::chunks(x.len(), CHUNK, |range| {
        // SAFETY: the chunks are disjoint and within y.
        level.run(Rounded(unsafe { std::slice::from_raw_parts_mut(to.at(range.start), range.len()) }));
    });
    y
}

/// Vectors in a block of a sum: blocks are summed first, then their sums, so that a sum of many terms loses little at one lane, too.
pub(super) const BLOCK: usize = 64;

/// A sum in two steps: of blocks of vectors, and then of their sums.
#[derive(Clone, Copy)]
pub struct Sum<S: Simd> {
    block: S::f32s,
    total: S::f32s,
    count: usize,
}

impl<S: Simd> Sum<S> {
    /// Zero.
    #[inline(always)]
    pub fn new(s: S) -> Self {
        Self { block: s.splat_f32s(0.), total: s.splat_f32s(0.), count: 0 }
    }

    /// Adds the lanes of `v`.
    #[inline(always)]
    pub fn add(&mut self, s: S, v: S::f32s) {
        self.set(s, s.add_f32s(self.block, v));
    }

    /// Adds the products of lanes.
    #[inline(always)]
    pub fn add_product(&mut self, s: S, a: S::f32s, b: S::f32s) {
        self.set(s, s.mul_add_e_f32s(a, b, self.block));
    }

    #[inline(always)]
    fn set(&mut self, s: S, block: S::f32s) {
        self.block = block;
        self.count += 1;
        if self.count == BLOCK {
            *self = Self { block: s.splat_f32s(0.), total: s.add_f32s(self.total, block), count: 0 };
        }
    }

    /// The sum of all lanes.
    #[inline(always)]
    pub fn finish(self, s: S) -> f32 {
        s.reduce_sum_f32s(s.add_f32s(self.total, self.block))
    }
}

/// Sum of squares in a fixed order: f32 within blocks of a thousand or so, f64 across them.
pub fn sum_of_squares(level: Level, x: &[f32]) -> f64 {
    level.run(SumOfSquares(x))
}

struct SumOfSquares<'a>(&'a [f32]);

impl WithSimd for SumOfSquares<'_> {
    type Output = f64;

    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) -> f64 {
        let mut total = 0.;
        for block in self.0.chunks(1024) {
            let (whole, rest) = S::as_simd_f32s(block);
            let rest = s.partial_load_f32s(rest);
            let mut parts = [s.mul_f32s(rest, rest), s.splat_f32s(0.), s.splat_f32s(0.), s.splat_f32s(0.)];
            for four in whole.chunks(4) {
                for (part, x) in parts.iter_mut().zip(four) {
                    *part = s.mul_add_e_f32s(*x, *x, *part);
                }
            }
            total += parts.into_iter().map(|p| f64::from(s.reduce_sum_f32s(p))).sum::<f64>();
        }
        total
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::simd::levels;

    struct Map<'a>(&'a [f32], &'a mut [f32], u8);

    impl WithSimd for Map<'_> {
        type Output = ();

        #[inline(always)]
        fn with_simd<S: Simd>(self, s: S) {
            for (x, y) in self.0.chunks(S::F32_LANES).zip(self.1.chunks_mut(S::F32_LANES)) {
                let v = s.partial_load_f32s(x);
                let v = match self.2 {
                    0 => sigmoid(s, v),
                    1 => tanh(s, v),
                    2 => exp(s, v),
                    3 => exp_minus_one(s, v),
                    _ => normal(s, v).0,
                };
                s.partial_store_f32s(y, v);
            }
        }
    }

    #[test]
    fn functions_are_within_their_stated_error() {
        let x: Vec<f32> =
            (-88_000..87_000).map(|i| i as f32 * 1e-3).chain((1..2000).map(|i| i as f32 * 1e-6)).collect();
        type Exact = fn(f64) -> f64;
        // Where Φ is small it is e^(-x²/2) that limits it: its own test is that of the gelu op.
        let exact: [Exact; 4] = [|v| 1. / (1. + (-v).exp()), f64::tanh, f64::exp, f64::exp_m1];
        for level in levels() {
            for (which, f) in exact.iter().enumerate() {
                let mut y = vec![0f32; x.len()];
                level.run(Map(&x, &mut y, which as u8));
                for (&x, &y) in x.iter().zip(&y) {
                    let truth = f(f64::from(x));
                    if truth.abs() < 2e-38 {
                        assert!(f64::from(y).abs() < 2e-38);
                        continue;
                    }
                    let error = (f64::from(y) - truth).abs() / truth.abs() / f64::from(f32::EPSILON);
                    assert!(error <= 3., "{level:?} function {which} at {x}: {y} for {truth}, {error} ulp");
                }
            }
        }
    }

    #[test]
    fn extremes_and_nan_are_handled() {
        let x = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1e4, -1e4, 0.];
        for level in levels() {
            let mut y = [[0f32; 6]; 5];
            for which in 0..5 {
                level.run(Map(&x, &mut y[which], which as u8));
                assert!(y[which][0].is_nan(), "{level:?} function {which}");
            }
            assert!(y[0][1] == 1. && y[0][2] < 2e-38 && y[0][3] == 1. && y[0][4] < 2e-38 && y[0][5] == 0.5);
            assert_eq!(y[1][1..], [1., -1., 1., -1., 0.]);
            assert!(y[2][1] > 5e37 && y[2][2] == 0. && y[2][4] == 0. && y[2][5] == 1.);
            assert!(y[3][1] > 5e37 && y[3][2] == -1. && y[3][5] == 0.);
            assert!(y[4][1] == 1. && y[4][2] == 0. && y[4][4] == 0. && (y[4][5] - 0.5).abs() < 1e-6);
        }
    }

    #[test]
    fn vector_philox_equals_the_scalar_one() {
        struct Draw;
        impl WithSimd for Draw {
            type Output = Vec<u32>;

            #[inline(always)]
            fn with_simd<S: Simd>(self, s: S) -> Vec<u32> {
                let index = s.add_u32s(s.splat_u32s(5), lanes(s));
                let mut words = vec![0; S::U32_LANES * 4];
                for (v, w) in philox(s, index, 9, [7, 8], [1, 2]).into_iter().zip(words.chunks_mut(S::U32_LANES)) {
                    s.partial_store_u32s(w, v);
                }
                words
            }
        }
        for level in levels() {
            let words = level.run(Draw);
            let n = words.len() / 4;
            for (i, w) in words.iter().enumerate() {
                assert_eq!(*w, crate::random::philox([5 + (i % n) as u32, 9, 7, 8], [1, 2])[i / n], "{level:?}");
            }
        }
    }
}
