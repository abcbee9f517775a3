use std::borrow::Cow;

use candle_core::Result;
use pulp::{Simd, WithSimd};
use zoo_kernels::cpu::{Pointer, parallel, simd, vector};
use zoo_kernels::{Backward, View};

use super::{AffineAt, NormAt};
use crate::ops::dropout::{Dropout, range};
use crate::ops::linear::cpu as linear;
use crate::ops::norm::cpu as norm;

/// Elements a thread takes at a time.
const CHUNK: usize = 16 * 1024;

/// x + dropout(z), in the place of z, which has as many elements or several times as many.
pub(in crate::ops) fn add_dropped(x: &[f32], mut z: Vec<f32>, dropout: Option<&Dropout>) -> Result<Vec<f32>> {
    let (level, n, period) = (simd::level()?, z.len(), x.len().max(1));
    assert!(n.is_multiple_of(period));
    let to = Pointer::of(&mut z);
    let chunks = period.div_ceil(CHUNK);
    parallel::for_each(n / period * chunks, |task| {
        let (start, from) = (task / chunks * period, task % chunks * CHUNK);
        let x = &x[from..period.min(from + CHUNK)];
        // SAFETY: the chunk lies within z.
        level.run(AddDropped { x, z: unsafe { to.at(start + from) }, first: start + from, dropout });
    });
    Ok(z)
}

/// Elements from `first` on; z has as many as x.
struct AddDropped<'a> {
    x: &'a [f32],
    z: *mut f32,
    first: usize,
    dropout: Option<&'a Dropout>,
}

impl WithSimd for AddDropped<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        let Self { x, z, first, dropout } = self;
        let n = x.len();
        // SAFETY: x and z have n elements, and this task alone accesses those of z.
        unsafe {
            if let Some(dropout) = dropout {
                range(s, z, z, n, first, dropout);
            }
            for j in (0..n).step_by(S::F32_LANES) {
                vector::write(s, z, j, n, s.add_f32s(vector::read(s, x.as_ptr(), j, n), vector::read(s, z, j, n)));
            }
        }
    }
}

/// norm(x) and its statistics; x itself without a norm.
pub(super) fn normed<'a>(at: Option<&NormAt>, inputs: &'a [View]) -> Result<(Cow<'a, [f32]>, Vec<f32>)> {
    let x = inputs[0].f32()?;
    let Some(NormAt { op, weight, bias }) = at else { return Ok((Cow::Borrowed(x), vec![])) };
    let [weight, bias] = [weight, bias].map(|i| i.map(|i| inputs[i].f32()).transpose());
    let (y, statistics) = norm::forward(op, width(&inputs[0]), x, [weight?, bias?])?;
    Ok((Cow::Owned(y), statistics))
}

/// The last dimension.
pub(super) fn width(x: &View) -> usize {
    x.dims().last().copied().unwrap_or(1)
}

/// Sizes of an affine map of `rows` rows.
pub(super) fn size(at: &AffineAt, rows: usize, inputs: &[View]) -> linear::Size {
    let dims = inputs[at.weight].dims();
    linear::Size { m: rows, n: dims[0], k: dims[1] }
}

/// x Wᵀ + b.
pub(super) fn affine(at: &AffineAt, rows: usize, x: &[f32], inputs: &[View]) -> Result<Vec<f32>> {
    let bias = at.bias.map(|i| inputs[i].f32()).transpose()?;
    linear::forward(size(at, rows, inputs), x, inputs[at.weight].f32()?, bias)
}

/// dy behind the branch's dropout.
pub(super) fn dropped<'a>(dy: &'a [f32], dropout: Option<&Dropout>) -> Result<Cow<'a, [f32]>> {
    Ok(match dropout {
        Some(dropout) => Cow::Owned(dropout.masked(dy)?),
        None => Cow::Borrowed(dy),
    })
}

/// Gradients by input, as the backward pass finds them.
pub(in crate::ops) struct Gradients<'a, 'b> {
    pub(in crate::ops) pass: &'a Backward<'b>,
    pub(in crate::ops) found: Vec<Option<Vec<f32>>>,
}

impl<'a, 'b> Gradients<'a, 'b> {
    pub(in crate::ops) fn of(pass: &'a Backward<'b>) -> Self {
        Self { pass, found: vec![None; pass.inputs.len()] }
    }

    pub(in crate::ops) fn put(&mut self, at: usize, gradient: impl FnOnce() -> Vec<f32>) {
        if self.pass.needs[at] {
            self.found[at] = Some(gradient());
        }
    }

    /// Gradients of weight and bias from those of the output.
    pub(super) fn affine(&mut self, at: &AffineAt, rows: usize, dz: &[f32], x: &[f32]) {
        let size = size(at, rows, self.pass.inputs);
        self.put(at.weight, || linear::weight_gradient(size, dz, x));
        if let Some(bias) = at.bias {
            self.put(bias, || linear::column_sums(dz, size.n));
        }
    }

    /// Through the norm to x, whose gradient along the residual path is `dy`; needs dn, the gradient of norm(x).
    pub(super) fn finish(
        mut self,
        at: Option<&NormAt>,
        dn: Vec<f32>,
        dy: &[f32],
        statistics: Option<&Vec<f32>>,
    ) -> Result<Vec<Option<Vec<f32>>>> {
        let x = &self.pass.inputs[0];
        match (at, statistics) {
            (Some(NormAt { op, weight, bias }), Some(statistics)) => {
                let w = weight.map(|i| self.pass.inputs[i].f32()).transpose()?;
                let (dx, dw, db) = norm::backward(width(x), &dn, x.f32()?, w, statistics, op.kind, Some(dy))?;
                self.put(0, || dx);
                for (at, gradient) in [(weight, dw), (bias, db)] {
                    if let Some(at) = *at {
                        self.put(at, || gradient);
                    }
                }
            }
            _ => {
                let dx = add_dropped(dy, dn, None)?;
                self.put(0, || dx);
            }
        }
        Ok(self.found)
    }
}
