//! All threads share each step: a thread takes some of the hidden units, whose weights lie together. The products that
//! do not wait for the step before are made for all steps at once.

use std::ops::Range;

use candle_core::Result;
use pulp::{Simd, WithSimd};
use zoo_kernels::cpu::matmul::{affine_into, matmul};
use zoo_kernels::cpu::product::{Matrix, Start, Term, product};
use zoo_kernels::cpu::simd::{self, Level};
use zoo_kernels::cpu::{Buffer, Pointer, parallel, vector, with_scratch};

use super::cell::{self, Carried, Cells, Rows};
use super::{Inputs, Outputs, Size};
use crate::ops::dropout::range;

/// Units whose gates a task of the forward pass computes: whole vectors of every level.
const FORWARD: usize = 16;
/// Units whose gradient a task of the backward pass computes.
const BACKWARD: usize = 32;
/// Gates over which that gradient is summed at a time: a sum of sums errs less than a long one.
const BLOCK: usize = 512;

/// Units of part `i`, of at most `size`.
fn part(hidden: usize, size: usize, i: usize) -> Range<usize> {
    i * size..hidden.min((i + 1) * size)
}

/// `n` parts of `size` floats, each filled by `fill` from zeros.
fn panels(n: usize, size: usize, fill: impl Fn(usize, &mut [f32]) + Sync + Send) -> Vec<f32> {
    let mut all = vec![0f32; n * size];
    let to = Pointer::of(&mut all);
    // SAFETY: each call has a part of its own.
    parallel::for_each(n, |i| fill(i, unsafe { std::slice::from_raw_parts_mut(to.at(i * size), size) }));
    all
}

pub(super) fn forward(size: Size, inputs: &Inputs, sequence: bool, save: bool) -> Result<Outputs> {
    let Size { batch, time, input, hidden } = size;
    let (width, steps) = (size.gates(), batch * time);
    let level = simd::level()?;
    let mut z = Buffer::new(steps * width);
    // SAFETY: the product writes all (time · batch) rows of z.
    let mut z = unsafe {
        let x = time_first(level, size, inputs);
        affine_into([steps, width, input], &x, inputs.w_ih, Some(&inputs.bias()), z.pointer(), width)?;
        z.finish()
    };
    let parts = hidden.div_ceil(FORWARD);
    // Of part p: row k has the weights from unit k to its units' four gates.
    let weights = panels(parts, hidden * 4 * FORWARD, |p, panel| {
        for (at, unit) in part(hidden, FORWARD, p).enumerate() {
            for gate in 0..4 {
                let row = &inputs.w_hh[(gate * hidden + unit) * hidden..][..hidden];
                let to = panel[gate * FORWARD + at..].iter_mut().step_by(4 * FORWARD);
                to.zip(row).for_each(|(to, w)| *to = *w);
            }
        }
    });
    let zeros = || vec![0f32; batch * hidden];
    let (mut h, mut c) = inputs.state.map_or_else(|| (zeros(), zeros()), |(h, c)| (h.to_vec(), c.to_vec()));
    let mut next = zeros();
    let mut y = sequence.then(|| Buffer::new(steps * hidden));
    let mut cells = save.then(|| Buffer::new(steps * hidden));
    let to = ForwardTo {
        z: Pointer::of(&mut z),
        c: Pointer::of(&mut c),
        y: y.as_mut().map(Buffer::pointer),
        cells: cells.as_mut().map(Buffer::pointer),
    };
    for t in 0..time {
        let next_h = Pointer::of(&mut next);
        let before = (t > 0 || inputs.state.is_some()).then_some(&*h);
        parallel::for_each(parts, |p| {
            let panel = &weights[p * hidden * 4 * FORWARD..][..hidden * 4 * FORWARD];
            let units = part(hidden, FORWARD, p);
            with_scratch(batch * 4 * FORWARD, |tile| {
                level.run(ForwardPart { size, t, units, panel, before, tile, h: next_h, to });
            });
        });
        std::mem::swap(&mut h, &mut next);
    }
    // SAFETY: the parts cover all units, and every step and row of them was written.
    unsafe {
        let saved = cells.map_or(vec![], |cells| vec![z, cells.finish()]);
        Ok(Outputs { y: y.map(|y| y.finish()), h, c, saved })
    }
}

#[derive(Clone, Copy)]
struct ForwardTo {
    /// (time, batch, 4 hidden): z before a step, the gates after it.
    z: Pointer,
    c: Pointer,
    /// (batch, time, hidden).
    y: Option<Pointer>,
    /// (time, batch, hidden).
    cells: Option<Pointer>,
}

/// Some units at step t, for all rows of the batch.
struct ForwardPart<'a> {
    size: Size,
    t: usize,
    units: Range<usize>,
    /// (hidden, 4 units).
    panel: &'a [f32],
    /// h_{t-1}, if it is not zero.
    before: Option<&'a [f32]>,
    /// z of the units, (batch, 4 units).
    tile: &'a mut [f32],
    /// h_t.
    h: Pointer,
    to: ForwardTo,
}

impl WithSimd for ForwardPart<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        const WIDTH: usize = 4 * FORWARD;
        let Self { size, t, units, panel, before, tile, h, to } = self;
        let Size { batch, time, hidden, .. } = size;
        let lanes = S::F32_LANES;
        let gates = |r: usize, k: usize| (t * batch + r) * size.gates() + k * hidden;
        for (r, row) in tile.chunks_exact_mut(WIDTH).enumerate() {
            for (k, gate) in row.chunks_exact_mut(FORWARD).enumerate() {
                // SAFETY: these units' gates, which belong to this part.
                let from = unsafe { std::slice::from_raw_parts(to.z.at(gates(r, k) + units.start), units.len()) };
                gate[..units.len()].copy_from_slice(from);
            }
        }
        if let Some(before) = before {
            let term = Term { a: Matrix::rows(before, hidden), b: panel, b_row: WIDTH, k: hidden };
            // SAFETY: the tile is this part's own.
            unsafe { product(s, batch, WIDTH, Start::Result, &[term], tile.as_mut_ptr(), WIDTH) };
        }
        for r in 0..batch {
            for u in units.clone().step_by(lanes) {
                let mask = vector::first(s, (units.end - u).min(lanes));
                // SAFETY: the lanes lie within row r's units of this part.
                unsafe {
                    let z = tile.as_ptr().add(r * WIDTH + u - units.start);
                    let c = to.c.at(r * hidden + u);
                    let (activated, c_new, h_new) = cell::forward(s, mask, z, FORWARD, vector::load(s, mask, c));
                    vector::store(s, mask, c, c_new);
                    vector::store(s, mask, h.at(r * hidden + u), h_new);
                    if let Some(y) = to.y {
                        vector::store(s, mask, y.at((r * time + t) * hidden + u), h_new);
                    }
                    if let Some(cells) = to.cells {
                        for (k, v) in activated.into_iter().enumerate() {
                            vector::store(s, mask, to.z.at(gates(r, k) + u), v);
                        }
                        vector::store(s, mask, cells.at((t * batch + r) * hidden + u), c_new);
                    }
                }
            }
        }
    }
}

pub(super) fn backward(inputs: &Inputs, cells: Cells, needs: &[bool]) -> Result<Vec<Option<Vec<f32>>>> {
    let size = cells.size;
    let Size { batch, time, input, hidden } = size;
    let (width, steps) = (size.gates(), batch * time);
    let level = simd::level()?;
    let parts = hidden.div_ceil(BACKWARD);
    // Of part p: its columns of the weights, one row a gate.
    let weights = panels(parts, width * BACKWARD, |p, panel| {
        let units = part(hidden, BACKWARD, p);
        for (to, row) in panel.chunks_exact_mut(BACKWARD).zip(inputs.w_hh.chunks_exact(hidden)) {
            to[..units.len()].copy_from_slice(&row[units.clone()]);
        }
    });
    let given = |g: Option<&[f32]>| g.map_or_else(|| vec![0f32; batch * hidden], <[f32]>::to_vec);
    let (mut dh, mut dc, mut tanh_c) = (given(cells.grads.h), given(cells.grads.c), vec![0f32; batch * hidden]);
    let carried = Carried { dh: Pointer::of(&mut dh), dc: Pointer::of(&mut dc), tanh_c: Pointer::of(&mut tanh_c) };
    let (mut dz, mut before) = (Buffer::new(steps * width), Buffer::new(steps * hidden));
    let (dz_at, before_at) = (dz.pointer(), before.pointer());
    // From the last step's cells to the gradient of the initial state, where it is wanted.
    for next in (usize::from(inputs.state.is_none())..=time).rev() {
        parallel::for_each(parts, |p| {
            let panel = &weights[p * width * BACKWARD..][..width * BACKWARD];
            // SAFETY: all of the step after was written in the round before.
            let after = (next < time).then(|| unsafe {
                std::slice::from_raw_parts(dz_at.at(next * batch * width).cast_const(), batch * width)
            });
            let to = Rows {
                dz: dz_at.part(next.wrapping_sub(1).wrapping_mul(batch * width)),
                before: before_at.part(next.wrapping_sub(1).wrapping_mul(batch * hidden)),
                carried,
            };
            let (t, units) = (next.checked_sub(1), part(hidden, BACKWARD, p));
            with_scratch(batch * BACKWARD, |tile| {
                level.run(BackwardPart { cells, t, units, panel, after, tile, to });
            });
        });
    }
    // SAFETY: the parts cover all units, and every step and row of them was written.
    let (dz, before) = unsafe { (dz.finish(), before.finish()) };
    let dx = needs[0].then(|| {
        let dx = matmul([steps, input, width], Matrix::rows(&dz, width), Matrix::rows(inputs.w_ih, input));
        batch_first(level, size, &dx, inputs)
    });
    let over_steps = |m: &[f32], features| {
        matmul([width, features, steps], Matrix::transposed(&dz, width), Matrix::rows(m, features))
    };
    let mut result = vec![
        dx,
        needs[1].then(|| over_steps(&time_first(level, size, inputs), input)),
        needs[2].then(|| over_steps(&before, hidden)),
    ];
    let bias = (needs[3] || needs[4]).then(|| over_steps(&vec![1.; steps], 1));
    result.extend([3, 4].map(|i| bias.clone().filter(|_| needs[i])));
    if inputs.state.is_some() {
        result.extend([needs[5].then_some(dh), needs[6].then_some(dc)]);
    }
    Ok(result)
}

/// Some units' dh from the step after, and their cells at step t.
struct BackwardPart<'a> {
    cells: Cells<'a>,
    /// None before the first step.
    t: Option<usize>,
    units: Range<usize>,
    /// (4 hidden, units).
    panel: &'a [f32],
    /// dz of the step after, if there is one.
    after: Option<&'a [f32]>,
    /// Sums of a block, (batch, units).
    tile: &'a mut [f32],
    to: Rows,
}

impl WithSimd for BackwardPart<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        let Self { cells, t, units, panel, after, tile, to } = self;
        let Size { batch, hidden, .. } = cells.size;
        let width = cells.size.gates();
        if let Some(after) = after {
            // SAFETY: these units of dh belong to this part.
            let dh = |r: usize| unsafe {
                std::slice::from_raw_parts_mut(to.carried.dh.at(r * hidden + units.start), units.len())
            };
            (0..batch).for_each(|r| dh(r).fill(0.));
            for from in (0..width).step_by(BLOCK) {
                let a = Matrix { data: &after[from..], row: width, col: 1 };
                let term = Term { a, b: &panel[from * BACKWARD..], b_row: BACKWARD, k: BLOCK.min(width - from) };
                // SAFETY: the tile is this part's own.
                unsafe { product(s, batch, BACKWARD, Start::Zero, &[term], tile.as_mut_ptr(), BACKWARD) };
                for (r, tile) in tile.chunks_exact(BACKWARD).enumerate() {
                    dh(r).iter_mut().zip(tile).for_each(|(dh, sum)| *dh += sum);
                }
            }
        }
        if let Some(t) = t {
            // SAFETY: `to` has the whole batch at step t, whose units belong to this part.
            unsafe { cells.backward(s, t, (0, batch), units, to) }
        }
    }
}

/// x after dropout, from (batch, time, input) to (time, batch, input).
fn time_first(level: Level, size: Size, inputs: &Inputs) -> Vec<f32> {
    let mut x = Buffer::new(size.batch * size.time * size.input);
    let to = x.pointer();
    parallel::for_each(size.batch, |row| level.run(TimeFirst { size, inputs, row, to }));
    // SAFETY: all rows were written.
    unsafe { x.finish() }
}

struct TimeFirst<'a> {
    size: Size,
    inputs: &'a Inputs<'a>,
    row: usize,
    to: Pointer,
}

impl WithSimd for TimeFirst<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        let Self { size, inputs, row, to } = self;
        for (t, x) in inputs.rows(s, size, row, 1).chunks_exact(size.input).enumerate() {
            // SAFETY: this row at step t, which nobody else writes.
            unsafe { to.at((t * size.batch + row) * size.input).copy_from_nonoverlapping(x.as_ptr(), size.input) }
        }
    }
}

/// The gradient of x, from that of what [`time_first`] gave.
fn batch_first(level: Level, size: Size, dx: &[f32], inputs: &Inputs) -> Vec<f32> {
    let mut out = Buffer::new(dx.len());
    let to = out.pointer();
    parallel::for_each(size.batch, |row| level.run(BatchFirst { size, inputs, row, dx, to }));
    // SAFETY: all rows were written.
    unsafe { out.finish() }
}

struct BatchFirst<'a> {
    size: Size,
    inputs: &'a Inputs<'a>,
    row: usize,
    dx: &'a [f32],
    to: Pointer,
}

impl WithSimd for BatchFirst<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        let Self { size: Size { batch, time, input, .. }, inputs, row, dx, to } = self;
        let (n, start) = (time * input, row * time * input);
        // SAFETY: this row of the result, which nobody else writes.
        unsafe {
            for t in 0..time {
                let from = dx[(t * batch + row) * input..][..input].as_ptr();
                to.at(start + t * input).copy_from_nonoverlapping(from, input);
            }
            if let Some(dropout) = inputs.dropout {
                range(s, to.at(start), to.at(start), n, start, dropout);
            }
        }
    }
}
