//! Large matrix products, by the `gemm` crate: f32 accumulated in f32, the same bits at any number of threads.

use super::product::Matrix;
use super::{Buffer, Pointer};

/// Below this many multiplications a second thread costs more than it brings.
const PARALLEL: usize = 1 << 17;

/// C (m, n) = A (m, k) · B (k, n), or C + A · B; the rows of C are `c_row` apart.
///
/// # Safety
/// `c` points to m rows of n elements that nobody else accesses, initialised if `add`.
pub unsafe fn matmul_into([m, n, k]: [usize; 3], a: Matrix, b: Matrix, c: Pointer, c_row: usize, add: bool) {
    for (matrix, rows, cols) in [(&a, m, k), (&b, k, n)] {
        let last = rows.saturating_sub(1) * matrix.row + cols.saturating_sub(1) * matrix.col;
        assert!(rows * cols == 0 || last < matrix.data.len(), "factor too short");
    }
    let parallel = if m * n * k < PARALLEL { gemm::Parallelism::None } else { gemm::Parallelism::Rayon(0) };
    // SAFETY: the factors hold the matrices of the stated sizes and strides, as was checked; the caller answers for C.
    unsafe {
        let c = c.at(0);
        if k == 0 && !add {
            (0..m).for_each(|i| std::slice::from_raw_parts_mut(c.add(i * c_row), n).fill(0.));
        }
        #[rustfmt::skip]
        gemm::gemm(
            m, n, k,
            c, 1, c_row as isize, add,
            a.data.as_ptr(), a.col as isize, a.row as isize,
            b.data.as_ptr(), b.col as isize, b.row as isize,
            1., 1., false, false, false, parallel,
        );
    }
}

/// A (m, k) · B (k, n) in row-major order.
pub fn matmul(size: [usize; 3], a: Matrix, b: Matrix) -> Vec<f32> {
    let mut out = Buffer::new(size[0] * size[1]);
    // SAFETY: the buffer has m rows of n elements, and the product writes them all.
    unsafe {
        matmul_into(size, a, b, out.pointer(), size[1], false);
        out.finish()
    }
}
