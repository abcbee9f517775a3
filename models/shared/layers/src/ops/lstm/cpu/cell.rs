//! What happens in the cells, once the products are made.

use std::ops::Range;

use pulp::Simd;
use zoo_kernels::cpu::{Pointer, vector};

use super::{OutputGrads, Size};

/// The gates i, f, g, o after activation, c_t and h_t of some units, from z, whose four parts lie `apart`, and c_{t-1}.
///
/// # Safety
/// The lanes of the mask lie within each part of `z`.
#[inline(always)]
pub(super) unsafe fn forward<S: Simd>(
    s: S,
    mask: S::m32s,
    z: *const f32,
    apart: usize,
    c: S::f32s,
) -> ([S::f32s; 4], S::f32s, S::f32s) {
    // SAFETY: the caller's promise.
    let gate = |k: usize| unsafe { vector::load(s, mask, z.add(k * apart)) };
    let (i, f) = (vector::sigmoid(s, gate(0)), vector::sigmoid(s, gate(1)));
    let (g, o) = (vector::tanh(s, gate(2)), vector::sigmoid(s, gate(3)));
    let c = s.mul_add_e_f32s(f, c, s.mul_f32s(i, g));
    ([i, f, g, o], c, s.mul_f32s(o, vector::tanh(s, c)))
}

/// What the cells' backward pass reads.
#[derive(Clone, Copy)]
pub(super) struct Cells<'a> {
    pub(super) size: Size,
    /// Initial state.
    pub(super) state: Option<(&'a [f32], &'a [f32])>,
    /// After activation, (time, batch, 4 hidden).
    pub(super) gates: &'a [f32],
    /// c_t, (time, batch, hidden).
    pub(super) cells: &'a [f32],
    pub(super) grads: OutputGrads<'a>,
}

/// Rows of a step from the first one on: of 4 hidden for dz, otherwise of hidden.
#[derive(Clone, Copy)]
pub(super) struct Rows {
    pub(super) dz: Pointer,
    /// h_{t-1}.
    pub(super) before: Pointer,
    pub(super) carried: Carried,
}

/// What goes from a step to the one before.
#[derive(Clone, Copy)]
pub(super) struct Carried {
    pub(super) dh: Pointer,
    pub(super) dc: Pointer,
    /// tanh(c_t), which the step after needed first.
    pub(super) tanh_c: Pointer,
}

impl Cells<'_> {
    /// Some units of rows `first..first + rows` at step t, from dh and dc: dz and h_{t-1}, and dc and tanh(c) for the
    /// step before.
    ///
    /// # Safety
    /// `to` has that many rows, and nobody else accesses these units of them.
    #[inline(always)]
    pub(super) unsafe fn backward<S: Simd>(
        &self,
        s: S,
        t: usize,
        (first, rows): (usize, usize),
        units: Range<usize>,
        to: Rows,
    ) {
        let Self { size, state, gates, cells, grads } = *self;
        let Rows { dz, before, carried: Carried { dh, dc, tanh_c: kept_tanh } } = to;
        let Size { batch, time, hidden, .. } = size;
        let width = size.gates();
        let one = s.splat_f32s(1.);
        for r in 0..rows {
            let row = t * batch + first + r; // time first
            for u in units.clone().step_by(S::F32_LANES) {
                let mask = vector::first(s, (units.end - u).min(S::F32_LANES));
                // SAFETY: the lanes lie within the row and step at hand of what was saved, and within the caller's rows.
                unsafe {
                    let (at, own_at) = (r * hidden + u, (first + r) * hidden + u);
                    let gate =
                        |row: usize, k: usize| vector::load(s, mask, gates.as_ptr().add(row * width + k * hidden + u));
                    let cell = |row: usize| vector::load(s, mask, cells.as_ptr().add(row * hidden + u));
                    let (i, f, g, o) = (gate(row, 0), gate(row, 1), gate(row, 2), gate(row, 3));
                    let kept_tanh = kept_tanh.at(at);
                    let tanh_c =
                        if t + 1 == time { vector::tanh(s, cell(row)) } else { vector::load(s, mask, kept_tanh) };
                    let (c_before, h_before) = match state {
                        _ if t > 0 => {
                            let c = cell(row - batch);
                            let tanh = vector::tanh(s, c);
                            vector::store(s, mask, kept_tanh, tanh);
                            (c, s.mul_f32s(gate(row - batch, 3), tanh))
                        }
                        Some((h0, c0)) => {
                            let state = |v: &[f32]| vector::load(s, mask, v.as_ptr().add(own_at));
                            (state(c0), state(h0))
                        }
                        None => (s.splat_f32s(0.), s.splat_f32s(0.)),
                    };
                    vector::store(s, mask, before.at(at), h_before);
                    let mut dh_t = vector::load(s, mask, dh.at(at));
                    if let Some(dy) = grads.y {
                        let dy = dy.as_ptr().add(((first + r) * time + t) * hidden + u);
                        dh_t = s.add_f32s(dh_t, vector::load(s, mask, dy));
                    }
                    let slope = |y| s.negate_mul_add_e_f32s(y, y, one); // of tanh
                    let sigmoid_slope = |y| s.mul_f32s(y, s.sub_f32s(one, y));
                    let dc_t = vector::load(s, mask, dc.at(at));
                    let dc_t = s.mul_add_e_f32s(s.mul_f32s(dh_t, o), slope(tanh_c), dc_t);
                    let parts = [
                        s.mul_f32s(s.mul_f32s(dc_t, g), sigmoid_slope(i)),
                        s.mul_f32s(s.mul_f32s(dc_t, c_before), sigmoid_slope(f)),
                        s.mul_f32s(s.mul_f32s(dc_t, i), slope(g)),
                        s.mul_f32s(s.mul_f32s(dh_t, tanh_c), sigmoid_slope(o)),
                    ];
                    for (k, part) in parts.into_iter().enumerate() {
                        vector::store(s, mask, dz.at(r * width + k * hidden + u), part);
                    }
                    vector::store(s, mask, dc.at(at), s.mul_f32s(dc_t, f));
                }
            }
        }
    }
}
