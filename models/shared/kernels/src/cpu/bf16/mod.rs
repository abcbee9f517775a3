//! Products of matrices that read bf16 and add in f32: factors are rounded on the way into the product, to nearest, ties to even;
//! subnormal numbers become zero, as the instructions of processors have it.
//!
//! With `vdpbf16ps` both factors are packed into panels of pairs, block by block of the inner dimension. Without, they are rounded and
//! multiplied as f32. Each element is summed in an order that the inner dimension alone decides: the same bits at any number of threads.

#[cfg(all(target_arch = "x86_64", feature = "x86-v4"))]
mod avx512;
mod tiles;

use std::cell::Cell;

use super::buffer::Pointer;
use super::matmul::{Blend, gemm_into, start_from};
use super::product::Matrix;
use super::simd::{self, Level, overriding, restoring};
use super::vector;

pub use tiles::Tiles;

thread_local! {
    static ON: Cell<Option<bool>> = const { Cell::new(None) };
}

/// Runs `f` with the products of matrices that this thread calls reading bf16, or f32.
pub fn products_in_bf16<R>(on: bool, f: impl FnOnce() -> R) -> R {
    overriding(&ON, on, f)
}

/// Runs `f` without what was said of products on this thread.
pub(super) fn apart<R>(f: impl FnOnce() -> R) -> R {
    restoring(&ON, None, f)
}

/// Whether products of matrices read bf16.
pub fn is_on() -> bool {
    ON.get().unwrap_or(false)
}

/// With up to so many rows, the other factor is rounded where it is read: each of its elements is needed for one sum of them.
pub(super) const FEW: usize = 4;

/// C (m, n) = keep · C + scale · A (m, k) · B (k, n) + bias for each row, for k > 0; the rows of C are `c_row` apart.
///
/// # Safety
/// The factors reach as far as these sizes, the bias has n elements, and `c` points to m rows of n elements that nobody else accesses,
/// initialised if any of it is kept.
pub(super) unsafe fn product_into(
    size: [usize; 3],
    a: Matrix,
    b: Matrix,
    bias: Option<&[f32]>,
    c: Pointer,
    c_row: usize,
    blend: Blend,
) {
    #[cfg(all(target_arch = "x86_64", feature = "x86-v4"))]
    if simd::bf16() == simd::Bf16::Avx512 {
        // SAFETY: the caller's promise; the processor has the instructions.
        return unsafe { avx512::product_into(size, a, b, bias, c, c_row, blend) };
    }
    let [m, n, k] = size;
    // A level that does not exist is refused by what is not a product.
    let level = simd::level().unwrap_or(Level::Scalar);
    let rounded = |x: Matrix, rows: usize, columns: usize| {
        let end = x.last(rows, columns).map_or(0, |last| last + 1);
        vector::bf16_of(level, &x.data[..end])
    };
    let (left, right) = (rounded(a, m, k), rounded(b, k, n));
    // SAFETY: the caller's promise; the copies reach as far as the factors.
    unsafe {
        if let Some(bias) = bias {
            start_from(m, n, bias, c, c_row);
        }
        let blend = if bias.is_some() { Blend { keep: 1., ..blend } } else { blend };
        gemm_into(size, Matrix { data: &left, ..a }, Matrix { data: &right, ..b }, c, c_row, blend);
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Result;

    use super::*;
    use crate::check::same_bits_on_any_threads;
    use crate::cpu::matmul::{affine_into, matmul_into};
    use crate::cpu::simd::{levels, units, with_bf16, with_level};
    use crate::random::{Purpose, Stream};

    fn draw(seed: u64, n: usize) -> Vec<f32> {
        let mut stream = Stream::new(seed, Purpose::Simulation, 0, 0);
        (0..n).map(|_| stream.normal() as f32).collect()
    }

    /// Rounded by the crate `half`; subnormal numbers are not among what is drawn.
    fn rounded(x: f32) -> f32 {
        half::bf16::from_f32(x).to_f32()
    }

    /// A product with the given strides in a result with a gap behind each row, and its largest error beside that of a plain sum.
    fn errors(size: [usize; 3], across: [bool; 2], blend: Blend) -> (f64, f64) {
        let [m, n, k] = size;
        let (a, b, before) = (draw(1, m * k), draw(2, k * n), draw(3, m * (n + 3)));
        let a = if across[0] { Matrix::transposed(&a, m) } else { Matrix::rows(&a, k) };
        let b = if across[1] { Matrix::transposed(&b, k) } else { Matrix::rows(&b, n) };
        let mut c = before.clone();
        // SAFETY: c has m rows of n elements, n + 3 apart.
        products_in_bf16(true, || unsafe { matmul_into(size, a, b, Pointer::of(&mut c), n + 3, blend) });
        let mut largest = (0f64, 0f64);
        for (at, (&c, &before)) in c.iter().zip(&before).enumerate() {
            let (i, j) = (at / (n + 3), at % (n + 3));
            if j >= n {
                assert_eq!(c, before, "wrote beyond the row");
                continue;
            }
            let terms = (0..k).map(|e| [a.data[i * a.row + e * a.col], b.data[e * b.row + j * b.col]].map(rounded));
            let (mut plain, mut exact) = (0f32, 0f64);
            for [x, y] in terms {
                plain += x * y;
                exact += f64::from(x) * f64::from(y);
            }
            let [keep, scale, before] = [blend.keep, blend.scale, before].map(f64::from);
            let exact = scale * exact + keep * before;
            let plain = scale * f64::from(plain) + keep * before;
            largest = (largest.0.max((f64::from(c) - exact).abs()), largest.1.max((plain - exact).abs()));
        }
        largest
    }

    #[test]
    fn products_are_those_of_rounded_factors() {
        let sizes = [[1, 1, 1], [3, 5, 7], [8, 48, 2], [17, 100, 33], [64, 65, 130], [130, 31, 2051], [5, 200, 1]];
        for unit in units() {
            for size in sizes.into_iter().chain([[40, 4100, 20], [300, 70, 64]]) {
                for across in [[false, false], [false, true], [true, false], [true, true]] {
                    for blend in [Blend::REPLACE, Blend::ADD, Blend { keep: 0.5, scale: -2. }] {
                        let (error, plain) = with_bf16(unit, || errors(size, across, blend));
                        // A short sum may be exact by luck; then the result's own rounding is left.
                        let allowed = (2. * plain).max(1e-6 * (size[2] as f64).sqrt());
                        assert!(
                            error <= allowed,
                            "{unit:?} {size:?} {across:?}: {error:e}, a plain sum's is {plain:e}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn strides_of_both_kinds_are_followed() {
        let (x, y) = (draw(1, 7 * 40), draw(2, 9 * 30));
        let size = [6, 8, 9];
        let (a, b) = (Matrix { data: &x, row: 40, col: 3 }, Matrix { data: &y, row: 30, col: 2 });
        for unit in units() {
            let mut c = vec![0f32; 48];
            // SAFETY: c has 6 rows of 8 elements.
            let product = || unsafe { matmul_into(size, a, b, Pointer::of(&mut c), 8, Blend::REPLACE) };
            with_bf16(unit, || products_in_bf16(true, product));
            for (at, c) in c.into_iter().enumerate() {
                let terms = (0..9).map(|e| rounded(x[at / 8 * 40 + e * 3]) * rounded(y[e * 30 + at % 8 * 2]));
                assert!((c - terms.sum::<f32>()).abs() < 1e-5, "{unit:?}");
            }
        }
    }

    #[test]
    fn an_affine_map_rounds_its_factors_and_not_its_bias() -> Result<()> {
        for (m, unit, level) in [1, 3, 64, 65, 200].into_iter().flat_map(|m| {
            units().into_iter().flat_map(move |unit| levels().into_iter().map(move |level| (m, unit, level)))
        }) {
            let (n, k) = (51, 70);
            let (x, w, bias) = (draw(1, m * k), draw(2, n * k), draw(3, n));
            let mut y = vec![0f32; m * n];
            // SAFETY: y has m rows of n elements.
            let affine = || unsafe { affine_into([m, n, k], &x, &w, Some(&bias), Pointer::of(&mut y), n) };
            with_level(level, || with_bf16(unit, || products_in_bf16(true, affine)))?;
            for (at, y) in y.into_iter().enumerate() {
                let (x, w) = (&x[at / n * k..][..k], &w[at % n * k..][..k]);
                let exact: f64 = x.iter().zip(w).map(|(x, w)| f64::from(rounded(*x)) * f64::from(rounded(*w))).sum();
                let exact = exact + f64::from(bias[at % n]);
                assert!((f64::from(y) - exact).abs() < 1e-5, "{unit:?} {level:?} {m}: {y} {exact}");
            }
        }
        Ok(())
    }

    #[test]
    fn the_number_of_threads_changes_no_bit() -> Result<()> {
        for unit in units() {
            for size in [[200, 300, 70], [65, 4200, 33], [96, 64, 3000]] {
                let [m, n, k] = size;
                let (a, b) = (draw(1, m * k), draw(2, k * n));
                same_bits_on_any_threads(|| {
                    let mut c = vec![0f32; m * n];
                    let (a, b) = (Matrix::rows(&a, k), Matrix::rows(&b, n));
                    let to = Pointer::of(&mut c);
                    // SAFETY: c has m rows of n elements.
                    let product = || unsafe { matmul_into(size, a, b, to, n, Blend::REPLACE) };
                    with_bf16(unit, || products_in_bf16(true, product));
                    Ok(vec![c])
                })?;
            }
        }
        Ok(())
    }

    #[test]
    fn every_number_is_rounded_as_by_others() {
        let edges = [0., -0., 1e-40, -1e-40, f32::MIN_POSITIVE, f32::MAX, f32::MIN, f32::INFINITY, f32::NEG_INFINITY];
        // 1 + 2⁻⁸, halfway between two; the same from the odd one above; a little more; negative.
        let ties = [0x3f80_8000, 0x3f81_8000, 0x3f80_8001, 0xbf80_8000].map(f32::from_bits);
        let mut x = draw(5, 1000);
        x.extend(edges.into_iter().chain(ties));
        for level in levels() {
            for (x, y) in x.iter().zip(vector::bf16_of(level, &x)) {
                let expected = if x.is_subnormal() { 0. } else { rounded(*x) };
                assert_eq!(y, expected, "{level:?}: {x}");
            }
            assert!(vector::bf16_of(level, &[f32::NAN, f32::from_bits(0x7fff_ffff)]).iter().all(|y| y.is_nan()));
        }
    }
}
