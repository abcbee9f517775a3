//! Every thread takes rows of the batch of its own through all steps.

use candle_core::Result;
use pulp::{Simd, WithSimd};
use zoo_kernels::cpu::product::{Matrix, Start, Term, product};
use zoo_kernels::cpu::simd::{self, Level};
use zoo_kernels::cpu::{Buffer, Pointer, parallel, vector, with_scratch};

use super::cell::{self, Carried, Cells, Rows};
use super::{Inputs, Outputs, Size};
use crate::ops::dropout::range;

/// Rows of the batch that one thread takes: whole tiles of the products. As sums over the batch are made chunk by
/// chunk, it must not depend on the number of threads.
const ROWS: usize = 8;
/// Steps of a chunk whose weight gradients are summed at a time: the factors are still in the cache then.
const STEPS: usize = 32;

impl Size {
    fn chunks(self) -> usize {
        self.batch.div_ceil(ROWS)
    }

    /// First row and number of rows of chunk `i`.
    fn rows(self, i: usize) -> (usize, usize) {
        (i * ROWS, ROWS.min(self.batch - i * ROWS))
    }
}

/// Step t of rows of x, from (rows, time, input) to (rows, input).
fn gather(size: Size, x: &[f32], t: usize, to: &mut [f32]) {
    let Size { time, input, .. } = size;
    for (r, to) in to.chunks_exact_mut(input).enumerate() {
        to.copy_from_slice(&x[(r * time + t) * input..][..input]);
    }
}

/// (rows, columns) to (columns, rows).
fn transposed(level: Level, m: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    let mut out = vec![0f32; m.len()];
    level.run(Transpose { m, out: &mut out, rows, columns });
    out
}

struct Transpose<'a> {
    m: &'a [f32],
    out: &'a mut [f32],
    rows: usize,
    columns: usize,
}

impl WithSimd for Transpose<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        /// Rows and columns of a block that is turned in registers.
        const N: usize = 8;
        let Self { m, out, rows, columns } = self;
        for i0 in (0..rows).step_by(N) {
            for j0 in (0..columns).step_by(N) {
                if i0 + N <= rows && j0 + N <= columns {
                    let mut block = [[0f32; N]; N];
                    for (i, row) in block.iter_mut().enumerate() {
                        row.copy_from_slice(&m[(i0 + i) * columns + j0..][..N]);
                    }
                    for j in 0..N {
                        let column: [f32; N] = std::array::from_fn(|i| block[i][j]);
                        out[(j0 + j) * rows + i0..][..N].copy_from_slice(&column);
                    }
                    continue;
                }
                for i in i0..rows.min(i0 + N) {
                    for j in j0..columns.min(j0 + N) {
                        out[j * rows + i] = m[i * columns + j];
                    }
                }
            }
        }
    }
}

pub(super) fn forward(size: Size, inputs: &Inputs, sequence: bool, save: bool) -> Result<Outputs> {
    let Size { batch, time, input, hidden } = size;
    let level = simd::level()?;
    let turned = |w: &[f32], features| transposed(level, w, size.gates(), features);
    let (w_ih, w_hh) = (turned(inputs.w_ih, input), turned(inputs.w_hh, hidden));
    let bias = inputs.bias();
    let steps = batch * time;
    let mut y = sequence.then(|| Buffer::new(steps * hidden));
    let (mut h, mut c) = (Buffer::new(batch * hidden), Buffer::new(batch * hidden));
    let mut kept = save.then(|| [size.gates(), hidden].map(|width| Buffer::new(steps * width)));
    let to = ForwardTo {
        y: y.as_mut().map(Buffer::pointer),
        h: h.pointer(),
        c: c.pointer(),
        kept: kept.as_mut().map(|buffers| buffers.each_mut().map(Buffer::pointer)),
    };
    parallel::for_each(size.chunks(), |i| {
        let (first, rows) = size.rows(i);
        level.run(ForwardChunk { size, first, rows, inputs, w_ih: &w_ih, w_hh: &w_hh, bias: &bias, to });
    });
    // SAFETY: the chunks cover all rows of the batch, and each writes every step of its rows.
    unsafe {
        let saved = kept.map_or(vec![], |buffers| buffers.map(|b| b.finish()).into());
        Ok(Outputs { y: y.map(|y| y.finish()), h: h.finish(), c: c.finish(), saved })
    }
}

#[derive(Clone, Copy)]
struct ForwardTo {
    y: Option<Pointer>,
    h: Pointer,
    c: Pointer,
    /// Gates and cell states, time first.
    kept: Option<[Pointer; 2]>,
}

/// All steps of some rows of the batch.
struct ForwardChunk<'a> {
    size: Size,
    first: usize,
    rows: usize,
    inputs: &'a Inputs<'a>,
    /// Transposed: (input, 4 hidden) and (hidden, 4 hidden).
    w_ih: &'a [f32],
    w_hh: &'a [f32],
    bias: &'a [f32],
    to: ForwardTo,
}

impl WithSimd for ForwardChunk<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        let Self { size, first, rows, inputs, to, .. } = self;
        let Size { time, input, hidden, .. } = size;
        let gates = size.gates();
        let own = first * hidden..(first + rows) * hidden;
        let zeros = || vec![0f32; rows * hidden];
        let (mut h, mut c) =
            inputs.state.map_or_else(|| (zeros(), zeros()), |(h, c)| (h[own.clone()].to_vec(), c[own].to_vec()));
        let x = inputs.rows(s, size, first, rows);
        // With few rows the products of single steps are slow: those with x are made for all steps at once.
        let ahead = rows < 4;
        let mut scratch = vec![0f32; if to.kept.is_some() { 0 } else { rows * gates * if ahead { time } else { 1 } }];
        // Where z of step t is, and the distance to the step after.
        let (z_first, z_step) = match to.kept {
            // SAFETY: the first row of this chunk in (time, batch, 4 hidden).
            Some([kept, _]) => (unsafe { kept.at(first * gates) }, size.batch * gates),
            None => (scratch.as_mut_ptr(), if ahead { rows * gates } else { 0 }),
        };
        if ahead {
            for r in 0..rows {
                let x = &x[r * time * input..(r + 1) * time * input];
                let term = Term { a: Matrix { data: x, row: input, col: 1 }, b: self.w_ih, b_row: gates, k: input };
                // SAFETY: row r of every step, which belongs to this chunk.
                unsafe { product(s, time, gates, Start::Row(self.bias), &[term], z_first.add(r * gates), z_step) };
            }
        }
        let mut x_t = vec![0f32; if ahead { 0 } else { rows * input }];
        for t in 0..time {
            let step = t * size.batch + first; // of the first row, time first
            // SAFETY: step t lies within the kept gates or the scratch.
            let z = unsafe { z_first.add(t * z_step) };
            if !ahead {
                gather(size, &x, t, &mut x_t);
            }
            let terms = [
                Term { a: Matrix { data: &x_t, row: input, col: 1 }, b: self.w_ih, b_row: gates, k: input },
                Term { a: Matrix { data: &h, row: hidden, col: 1 }, b: self.w_hh, b_row: gates, k: hidden },
            ];
            // Without an initial state the first h is zero.
            let terms = &terms[usize::from(ahead)..if t == 0 && inputs.state.is_none() { 1 } else { 2 }];
            let start = if ahead { Start::Result } else { Start::Row(self.bias) };
            // SAFETY: z points to this chunk's rows of step t, which no other chunk touches.
            unsafe { product(s, rows, gates, start, terms, z, gates) };
            for r in 0..rows {
                for u in (0..hidden).step_by(S::F32_LANES) {
                    let mask = vector::first(s, (hidden - u).min(S::F32_LANES));
                    // SAFETY: the lanes lie within row r's gates, states and outputs, which belong to this chunk.
                    unsafe {
                        let z = z.add(r * gates + u);
                        let at = r * hidden + u;
                        let c = c.as_mut_ptr().add(at);
                        let (activated, c_new, h_new) = cell::forward(s, mask, z, hidden, vector::load(s, mask, c));
                        vector::store(s, mask, c, c_new);
                        vector::store(s, mask, h.as_mut_ptr().add(at), h_new);
                        if let Some(y) = to.y {
                            vector::store(s, mask, y.at(((first + r) * time + t) * hidden + u), h_new);
                        }
                        if let Some([_, cells]) = to.kept {
                            for (k, v) in activated.into_iter().enumerate() {
                                vector::store(s, mask, z.add(k * hidden), v);
                            }
                            vector::store(s, mask, cells.at((step + r) * hidden + u), c_new);
                        }
                    }
                }
            }
        }
        // SAFETY: the final states of this chunk's rows, in buffers of (batch, hidden).
        unsafe {
            to.h.at(first * hidden).copy_from_nonoverlapping(h.as_ptr(), h.len());
            to.c.at(first * hidden).copy_from_nonoverlapping(c.as_ptr(), c.len());
        }
    }
}

pub(super) fn backward(inputs: &Inputs, cells: Cells, needs: &[bool]) -> Result<Vec<Option<Vec<f32>>>> {
    let size = cells.size;
    let Size { batch, time, input, hidden } = size;
    let width = size.gates();
    let level = simd::level()?;
    let mut dx = needs[0].then(|| Buffer::new(batch * time * input));
    let mut state = inputs.state.map(|_| [(); 2].map(|()| Buffer::new(batch * hidden)));
    // Each chunk's sums as (features, 4 hidden): lanes run over the gates, which are many.
    let features = [if needs[1] { input } else { 0 }, if needs[2] { hidden } else { 0 }, 1];
    let mut sums = features.map(|f| Buffer::new(size.chunks() * f * width));
    let to = BackwardTo {
        dx: dx.as_mut().map(Buffer::pointer),
        state: state.as_mut().map(|buffers| buffers.each_mut().map(Buffer::pointer)),
        sums: sums.each_mut().map(Buffer::pointer),
    };
    parallel::for_each(size.chunks(), |i| {
        let (first, rows) = size.rows(i);
        let to = BackwardTo {
            // Chunk i's part of each buffer of sums.
            sums: std::array::from_fn(|k| to.sums[k].part(i * features[k] * width)),
            ..to
        };
        let block = STEPS.min(time) * rows;
        with_scratch(block * (width + input + hidden), |scratch| {
            let (dz, rest) = scratch.split_at_mut(block * width);
            let (x, before) = rest.split_at_mut(block * input);
            let factors = Factors { dz, x, before };
            level.run(BackwardChunk { first, rows, inputs, cells, features, to, factors });
        });
    });
    // SAFETY: every chunk wrote its part of each.
    let [w_ih, w_hh, bias] = sums.map(|s| add_chunks(unsafe { s.finish() }, size.chunks()));
    // SAFETY: the chunks cover all rows of the batch and write every step of dx and the state's gradients.
    let (dx, state) = unsafe { (dx.map(|b| b.finish()), state.map(|buffers| buffers.map(|b| b.finish()))) };
    let mut result = vec![
        dx,
        needs[1].then(|| transposed(level, &w_ih, input, width)),
        needs[2].then(|| transposed(level, &w_hh, hidden, width)),
    ];
    result.extend([3, 4].map(|i| needs[i].then(|| bias.clone())));
    if let Some([dh, dc]) = state {
        result.extend([needs[5].then_some(dh), needs[6].then_some(dc)]);
    }
    Ok(result)
}

/// The chunks' sums, added in order.
fn add_chunks(mut sums: Vec<f32>, chunks: usize) -> Vec<f32> {
    let n = sums.len() / chunks;
    if n > 0 {
        let (total, others) = sums.split_at_mut(n);
        for other in others.chunks_exact(n) {
            total.iter_mut().zip(other).for_each(|(t, o)| *t += o);
        }
    }
    sums.truncate(n);
    sums
}

#[derive(Clone, Copy)]
struct BackwardTo {
    /// (batch, time, input).
    dx: Option<Pointer>,
    /// Gradients of the initial state, both (batch, hidden).
    state: Option<[Pointer; 2]>,
    /// This chunk's dW_ihᵀ, dW_hhᵀ and db.
    sums: [Pointer; 3],
}

struct BackwardChunk<'a> {
    first: usize,
    rows: usize,
    inputs: &'a Inputs<'a>,
    cells: Cells<'a>,
    features: [usize; 3],
    to: BackwardTo,
    factors: Factors<'a>,
}

/// The factors of the weight gradients over some steps, each (steps · rows, …), with the last step first. The memory
/// is the thread's own, which stays in its cache.
struct Factors<'a> {
    dz: &'a mut [f32],
    x: &'a mut [f32],
    /// h_{t-1}.
    before: &'a mut [f32],
}

impl WithSimd for BackwardChunk<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        let Self { first, rows, inputs, cells: Cells { size, grads, .. }, to, .. } = self;
        let Size { time, input, hidden, .. } = size;
        let width = size.gates();
        let own = first * hidden..(first + rows) * hidden;
        let given = |g: Option<&[f32]>| g.map_or_else(|| vec![0f32; rows * hidden], |g| g[own.clone()].to_vec());
        let (mut dh, mut dc, mut tanh_c) = (given(grads.h), given(grads.c), vec![0f32; rows * hidden]);
        let carried = Carried { dh: Pointer::of(&mut dh), dc: Pointer::of(&mut dc), tanh_c: Pointer::of(&mut tanh_c) };
        let block = STEPS.min(time) * rows;
        let x = inputs.rows(s, size, first, rows);
        let mut done = 0; // rows of the factors that are filled
        let mut start = Start::Zero; // of the weight gradients' next sum
        for t in (0..time).rev() {
            let step = Rows {
                dz: Pointer::of(&mut self.factors.dz[done * width..]),
                before: Pointer::of(&mut self.factors.before[done * hidden..]),
                carried,
            };
            // SAFETY: factors and vectors are this chunk's own, with room for its rows.
            unsafe { self.cells.backward(s, t, (first, rows), 0..hidden, step) }
            let a = Matrix { data: &self.factors.dz[done * width..], row: width, col: 1 };
            // SAFETY: dh is this chunk's own; its rows of dx are `time` steps apart.
            unsafe {
                if t > 0 || to.state.is_some() {
                    let term = Term { a, b: inputs.w_hh, b_row: hidden, k: width };
                    product(s, rows, hidden, Start::Zero, &[term], carried.dh.at(0), hidden);
                }
                if let Some(dx) = to.dx {
                    let term = Term { a, b: inputs.w_ih, b_row: input, k: width };
                    product(s, rows, input, Start::Zero, &[term], dx.at((first * time + t) * input), time * input);
                }
            }
            gather(size, &x, t, &mut self.factors.x[done * input..(done + rows) * input]);
            done += rows;
            if done == block || t == 0 {
                self.add_weight_gradients(s, done, start);
                (done, start) = (0, Start::Result);
            }
        }
        if let (Some(dx), Some(dropout)) = (to.dx, inputs.dropout) {
            let start = first * time * input;
            // SAFETY: this chunk's rows of dx, which are complete.
            unsafe { range(s, dx.at(start), dx.at(start), rows * time * input, start, dropout) }
        }
        if let Some([h, c]) = to.state {
            // SAFETY: this chunk's rows, in buffers of (batch, hidden).
            unsafe {
                h.at(first * hidden).copy_from_nonoverlapping(carried.dh.at(0), rows * hidden);
                c.at(first * hidden).copy_from_nonoverlapping(carried.dc.at(0), rows * hidden);
            }
        }
    }
}

impl BackwardChunk<'_> {
    /// The sums over the first `k` rows of the factors; the bias is a feature that is always 1.
    #[inline(always)]
    fn add_weight_gradients<S: Simd>(&self, s: S, k: usize, start: Start) {
        let (size, factors) = (self.cells.size, &self.factors);
        let width = size.gates();
        let ones = [1f32; STEPS * ROWS];
        let lefts = [(&*factors.x, size.input), (&*factors.before, size.hidden), (&ones, 1)];
        for (which, (data, col)) in lefts.into_iter().enumerate() {
            let a = Matrix { data, row: usize::from(which < 2), col };
            let term = Term { a, b: factors.dz, b_row: width, k };
            // SAFETY: this chunk's own (features, 4 hidden), written from zero first.
            unsafe { product(s, self.features[which], width, start, &[term], self.to.sums[which].at(0), width) };
        }
    }
}
