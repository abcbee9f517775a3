use candle_core::Result;
use zoo_kernels::View;
use zoo_kernels::cpu::matmul::{affine_into, matmul};
use zoo_kernels::cpu::product::Matrix;
use zoo_kernels::cpu::{Buffer, parallel};

/// Rows of x, outputs and inputs.
#[derive(Clone, Copy)]
pub(in crate::ops) struct Size {
    pub(in crate::ops) m: usize,
    pub(in crate::ops) n: usize,
    pub(in crate::ops) k: usize,
}

impl Size {
    pub(super) fn new(x: &View, weight: &View) -> Self {
        let (n, k) = (weight.dims()[0], weight.dims()[1]);
        Self { m: x.dims()[..x.dims().len() - 1].iter().product(), n, k }
    }
}

/// x Wᵀ + b.
pub(in crate::ops) fn forward(size: Size, x: &[f32], w: &[f32], bias: Option<&[f32]>) -> Result<Vec<f32>> {
    let Size { m, n, k } = size;
    let mut out = Buffer::new(m * n);
    // SAFETY: the output has m rows of n elements, all of which are written.
    unsafe {
        affine_into([m, n, k], x, w, bias, out.pointer(), n)?;
        Ok(out.finish())
    }
}

/// dz W.
pub(in crate::ops) fn input_gradient(size: Size, dz: &[f32], w: &[f32]) -> Vec<f32> {
    let Size { m, n, k } = size;
    matmul([m, k, n], Matrix::rows(dz, n), Matrix::rows(w, k))
}

/// dzᵀ x.
pub(in crate::ops) fn weight_gradient(size: Size, dz: &[f32], x: &[f32]) -> Vec<f32> {
    let Size { m, n, k } = size;
    matmul([n, k, m], Matrix::transposed(dz, n), Matrix::rows(x, k))
}

/// Sums over rows of n elements, in the order of the rows.
pub(in crate::ops) fn column_sums(rows: &[f32], n: usize) -> Vec<f32> {
    /// Columns a thread takes at a time.
    const COLUMNS: usize = 128;
    let mut sums = Buffer::new(n);
    let to = sums.pointer();
    parallel::chunks(n, COLUMNS, |columns| {
        // SAFETY: these columns lie within the buffer and belong to this task alone; they are zeroed before use.
        let sums = unsafe {
            to.at(columns.start).write_bytes(0, columns.len());
            std::slice::from_raw_parts_mut(to.at(columns.start), columns.len())
        };
        for row in rows.chunks_exact(n) {
            sums.iter_mut().zip(&row[columns.clone()]).for_each(|(s, v)| *s += v);
        }
    });
    // SAFETY: the tasks cover all columns.
    unsafe { sums.finish() }
}
