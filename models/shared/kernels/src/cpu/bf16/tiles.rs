//! Products of small matrices for kernels that cannot wait for a general one, such as those of attention's tiles.

use super::is_on;
use crate::cpu::product::Matrix;
use crate::cpu::simd::{Bf16, bf16};

/// Lines of a panel of a left factor.
const LEFT: usize = 8;

/// Products of packed factors; it is there where products read bf16 and the processor has instructions for them. Panels are kept in memory for
/// f32, whose values mean nothing.
#[derive(Clone, Copy, Debug)]
pub struct Tiles(());

impl Tiles {
    /// Columns of a panel of a right factor.
    pub const PANEL: usize = 64;

    /// None where products read f32, or bf16 without instructions.
    pub fn new() -> Option<Self> {
        (is_on() && bf16() == Bf16::Avx512).then_some(Self(()))
    }

    /// The elements that a left factor of so many rows and columns takes.
    ///
    /// # Panics
    /// They are more than can be addressed.
    pub fn left_len(rows: usize, columns: usize) -> usize {
        Self::len(rows, LEFT, columns)
    }

    /// The elements that a right factor of so many rows and columns takes.
    ///
    /// # Panics
    /// As [`Tiles::left_len`].
    pub fn right_len(rows: usize, columns: usize) -> usize {
        Self::len(columns, Self::PANEL, rows)
    }

    fn len(lines: usize, panel: usize, inner: usize) -> usize {
        let len = lines.checked_next_multiple_of(panel).and_then(|lines| lines.checked_mul(inner.div_ceil(2)));
        len.expect("a factor of more elements than can be addressed")
    }

    /// Rounds and packs a left factor of so many rows and columns.
    ///
    /// # Panics
    /// The matrix is smaller, or `to` has less than [`Tiles::left_len`].
    pub fn left(self, from: Matrix, [rows, columns]: [usize; 2], to: &mut [f32]) {
        assert!(to.len() >= Self::left_len(rows, columns), "too little room for a left factor");
        self.pack(from, [rows, columns], LEFT, to);
    }

    /// Rounds and packs a right factor of so many rows and columns.
    ///
    /// # Panics
    /// The matrix is smaller, or `to` has less than [`Tiles::right_len`].
    pub fn right(self, from: Matrix, [rows, columns]: [usize; 2], to: &mut [f32]) {
        assert!(to.len() >= Self::right_len(rows, columns), "too little room for a right factor");
        self.pack(Matrix { row: from.col, col: from.row, ..from }, [columns, rows], Self::PANEL, to);
    }

    /// Columns `from` on, a multiple of [`Tiles::PANEL`], of a right factor of so many rows.
    pub fn part(right: &[f32], rows: usize, from: usize) -> &[f32] {
        &right[Self::right_len(rows, from)..]
    }

    #[cfg(all(target_arch = "x86_64", feature = "x86-v4"))]
    fn pack(self, from: Matrix, [lines, inner]: [usize; 2], width: usize, to: &mut [f32]) {
        assert!(from.reaches(lines, inner), "factor too short");
        // SAFETY: the processor has the instructions, the matrix has these lines, and the callers looked at the room.
        unsafe { super::avx512::pack(from, 0..lines, 0..inner, width, to.as_mut_ptr().cast()) }
    }

    /// C (m, n) = A (m, k) · B (k, n), or that added to it, from packed factors; the rows of C are `c_row` apart.
    ///
    /// # Safety
    /// `c` points to m rows of n elements that nobody else accesses, initialised if they are added to.
    ///
    /// # Panics
    /// The factors are shorter.
    #[cfg(all(target_arch = "x86_64", feature = "x86-v4"))]
    pub unsafe fn product(
        self,
        [m, n, k]: [usize; 3],
        left: &[f32],
        right: &[f32],
        adds: bool,
        c: *mut f32,
        c_row: usize,
    ) {
        assert!(left.len() >= Self::left_len(m, k) && right.len() >= Self::right_len(k, n), "factor too short");
        let (left, right) = (left.as_ptr().cast(), right.as_ptr().cast());
        let end = (if adds { 1. } else { 0. }, 1., None);
        // SAFETY: the processor has the instructions, the panels are there, and the caller answers for C.
        unsafe { super::avx512::block(k.div_ceil(2), left, right, Self::PANEL, (c, c_row), [m, n], end) }
    }

    #[cfg(not(all(target_arch = "x86_64", feature = "x86-v4")))]
    fn pack(self, _: Matrix, _: [usize; 2], _: usize, _: &mut [f32]) {
        unreachable!("there are no tiles here")
    }

    /// There are no tiles here.
    ///
    /// # Safety
    /// It is not called.
    #[cfg(not(all(target_arch = "x86_64", feature = "x86-v4")))]
    pub unsafe fn product(self, _: [usize; 3], _: &[f32], _: &[f32], _: bool, _: *mut f32, _: usize) {
        unreachable!("there are no tiles here")
    }
}

#[cfg(all(test, target_arch = "x86_64", feature = "x86-v4"))]
mod tests {
    use super::*;
    use crate::cpu::bf16::products_in_bf16;
    use crate::cpu::simd::{units, with_bf16};
    use crate::random::{Purpose, Stream};

    #[test]
    fn packed_products_are_those_of_rounded_factors() {
        assert!(Tiles::new().is_none(), "products read f32 unless they are told");
        if !units().contains(&Bf16::Avx512) {
            return;
        }
        let Some(tiles) = with_bf16(Bf16::Avx512, || products_in_bf16(true, Tiles::new)) else { unreachable!() };
        let mut stream = Stream::new(1, Purpose::Simulation, 0, 0);
        let mut draw =
            |n: usize| -> Vec<f32> { (0..n).map(|_| half::bf16::from_f64(stream.normal()).to_f32()).collect() };
        for [m, n, k] in [[1, 1, 1], [32, 64, 64], [31, 63, 65], [5, 130, 3], [4, 64, 2], [64, 48, 32], [9, 20, 7]] {
            let (a, b) = (draw(m * k), draw(k * n));
            for across in [false, true] {
                let a = if across { Matrix::transposed(&a, m) } else { Matrix::rows(&a, k) };
                let b = if across { Matrix::transposed(&b, k) } else { Matrix::rows(&b, n) };
                let (mut left, mut right) =
                    (vec![f32::NAN; Tiles::left_len(m, k)], vec![f32::NAN; Tiles::right_len(k, n)]);
                tiles.left(a, [m, k], &mut left);
                tiles.right(b, [k, n], &mut right);
                let mut c = vec![0.5f32; m * (n + 1)];
                // SAFETY: c has m rows of n elements.
                unsafe { tiles.product([m, n, k], &left, &right, true, c.as_mut_ptr(), n + 1) };
                for (at, c) in c.into_iter().enumerate() {
                    let (i, j) = (at / (n + 1), at % (n + 1));
                    let product = |e: usize| a.data[i * a.row + e * a.col] * b.data[e * b.row + j * b.col];
                    let sum = if j < n { (0..k).map(product).sum::<f32>() } else { 0. };
                    assert!((c - 0.5 - sum).abs() < 1e-4, "{m} {n} {k} {across} at {i}, {j}: {c}, {sum}");
                }
            }
        }
    }
}
