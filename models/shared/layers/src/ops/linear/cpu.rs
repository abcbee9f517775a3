use std::borrow::Cow;

use candle_core::Result;

use super::Activation;
use crate::ops::glue::{Buffer, View};

/// Rows of x, outputs and inputs.
#[derive(Clone, Copy)]
pub(super) struct Size {
    pub(super) m: usize,
    pub(super) n: usize,
    pub(super) k: usize,
}

impl Size {
    pub(super) fn new(x: &View, weight: &View) -> Self {
        let (n, k) = (weight.dims()[0], weight.dims()[1]);
        Self { m: x.dims()[..x.dims().len() - 1].iter().product(), n, k }
    }
}

/// A matrix with any strides, as the `gemm` crate takes it.
struct Strided<'a>(&'a [f32], usize, usize);

/// C (m, n) = A (m, k) · B (k, n), added to what `start` put there.
fn gemm(size: Size, a: Strided, b: Strided, start: impl FnOnce(&mut Buffer) -> bool) -> Vec<f32> {
    let Size { m, n, k } = size;
    let mut out = Buffer::new(m * n);
    let add = start(&mut out);
    // Below this a second thread costs more than it brings.
    let parallel = if m * n * k < 1 << 17 { gemm::Parallelism::None } else { gemm::Parallelism::Rayon(0) };
    // SAFETY: the slices hold the matrices of the stated sizes and strides (the callers pass whole tensors), the
    // output holds m · n elements, initialised if they are read, and is written by this call alone.
    unsafe {
        #[rustfmt::skip]
        gemm::gemm(
            m, n, k,
            out.pointer().at(0), 1, n as isize, add,
            a.0.as_ptr(), a.2 as isize, a.1 as isize,
            b.0.as_ptr(), b.2 as isize, b.1 as isize,
            1., 1., false, false, false, parallel,
        );
        if k == 0 && !add {
            std::slice::from_raw_parts_mut(out.pointer().at(0), m * n).fill(0.);
        }
        out.finish()
    }
}

pub(super) fn forward(size: Size, x: &[f32], w: &[f32], bias: Option<&[f32]>, f: Activation) -> Vec<f32> {
    let Size { m, n, k } = size;
    let mut y = gemm(size, Strided(x, k, 1), Strided(w, 1, k), |out| {
        if let Some(bias) = bias {
            for i in 0..m {
                // SAFETY: row i of the output has n elements, as the bias; nobody else writes yet.
                unsafe { out.pointer().at(i * n).copy_from_nonoverlapping(bias.as_ptr(), n) }
            }
        }
        bias.is_some()
    });
    match f {
        Activation::Identity => {}
        Activation::Relu => y.iter_mut().for_each(|v| *v = if *v < 0. { 0. } else { *v }),
    }
    y
}

/// dz from dy and the saved y.
pub(super) fn activation_backward<'a>(grad: &'a [f32], y: Option<&Vec<f32>>, f: Activation) -> Cow<'a, [f32]> {
    let Some(y) = y else { return Cow::Borrowed(grad) };
    match f {
        Activation::Identity => Cow::Borrowed(grad),
        Activation::Relu => Cow::Owned(grad.iter().zip(y).map(|(g, y)| if *y > 0. { *g } else { 0. }).collect()),
    }
}

pub(super) fn input_gradient(size: Size, dz: &[f32], w: &View) -> Result<Vec<f32>> {
    let Size { m, n, k } = size;
    Ok(gemm(Size { m, n: k, k: n }, Strided(dz, n, 1), Strided(w.f32()?, k, 1), |_| false))
}

pub(super) fn weight_gradient(size: Size, dz: &[f32], x: &View) -> Result<Vec<f32>> {
    let Size { m, n, k } = size;
    Ok(gemm(Size { m: n, n: k, k: m }, Strided(dz, 1, n), Strided(x.f32()?, k, 1), |_| false))
}

/// Sums over rows of n elements.
pub(super) fn column_sums(rows: &[f32], n: usize) -> Vec<f32> {
    let mut sums = vec![0f32; n];
    if n > 0 {
        for row in rows.chunks_exact(n) {
            sums.iter_mut().zip(row).for_each(|(s, v)| *s += v);
        }
    }
    sums
}
