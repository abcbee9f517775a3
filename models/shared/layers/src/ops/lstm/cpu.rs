use candle_core::{Result, bail};
use pulp::{Simd, WithSimd};

use crate::ops::glue::product::{Matrix, Start, Term, product};
use crate::ops::glue::simd::{self, Level};
use crate::ops::glue::{Buffer, Pointer, View, parallel, vector};

#[derive(Clone, Copy)]
pub(super) struct Size {
    pub(super) batch: usize,
    pub(super) time: usize,
    pub(super) input: usize,
    pub(super) hidden: usize,
}

impl Size {
    pub(super) fn new(inputs: &[View]) -> Self {
        let (x, w_hh) = (inputs[0].dims(), inputs[2].dims());
        Self { batch: x[0], time: x[1], input: x[2], hidden: w_hh[1] }
    }

    fn gates(self) -> usize {
        4 * self.hidden
    }

    /// Rows of the batch that one thread takes: whole tiles of the products, and work for every thread.
    fn chunk(self) -> usize {
        let share = self.batch.div_ceil(rayon::current_num_threads());
        if share > 8 { share.next_multiple_of(8).min(16) } else { share }
    }

    fn chunks(self) -> usize {
        self.batch.div_ceil(self.chunk())
    }

    /// First row and number of rows of chunk `i`.
    fn rows(self, i: usize) -> (usize, usize) {
        let first = i * self.chunk();
        (first, self.chunk().min(self.batch - first))
    }
}

pub(super) struct Inputs<'a> {
    x: &'a [f32],
    w_ih: &'a [f32],
    w_hh: &'a [f32],
    b_ih: &'a [f32],
    b_hh: &'a [f32],
    state: Option<(&'a [f32], &'a [f32])>,
}

impl<'a> Inputs<'a> {
    pub(super) fn new(v: &'a [View]) -> Result<Self> {
        let state = if v.len() == 7 { Some((v[5].f32()?, v[6].f32()?)) } else { None };
        Ok(Self { x: v[0].f32()?, w_ih: v[1].f32()?, w_hh: v[2].f32()?, b_ih: v[3].f32()?, b_hh: v[4].f32()?, state })
    }
}

pub(super) struct Outputs {
    pub(super) y: Option<Vec<f32>>,
    pub(super) h: Vec<f32>,
    pub(super) c: Vec<f32>,
    /// Gates after activation (batch, time, 4 hidden) and cell states (batch, time, hidden).
    pub(super) saved: Vec<Vec<f32>>,
}

/// (rows, columns) to (columns, rows).
fn transposed(m: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    const BLOCK: usize = 16;
    let mut out = vec![0f32; m.len()];
    for i0 in (0..rows).step_by(BLOCK) {
        for j0 in (0..columns).step_by(BLOCK) {
            for i in i0..rows.min(i0 + BLOCK) {
                for j in j0..columns.min(j0 + BLOCK) {
                    out[j * rows + i] = m[i * columns + j];
                }
            }
        }
    }
    out
}

pub(super) fn forward(size: Size, inputs: &Inputs, sequence: bool, save: bool) -> Result<Outputs> {
    let Size { batch, time, input, hidden } = size;
    let level = simd::level()?;
    let (w_ih, w_hh) = (transposed(inputs.w_ih, size.gates(), input), transposed(inputs.w_hh, size.gates(), hidden));
    let bias: Vec<f32> = inputs.b_ih.iter().zip(inputs.b_hh).map(|(a, b)| a + b).collect();
    let steps = batch * time;
    let mut y = sequence.then(|| Buffer::new(steps * hidden));
    let (mut h, mut c) = (Buffer::new(batch * hidden), Buffer::new(batch * hidden));
    let mut kept = save.then(|| (Buffer::new(steps * size.gates()), Buffer::new(steps * hidden)));
    let to = ForwardTo {
        y: y.as_mut().map(Buffer::pointer),
        h: h.pointer(),
        c: c.pointer(),
        kept: kept.as_mut().map(|(g, c)| (g.pointer(), c.pointer())),
    };
    parallel::for_each(size.chunks(), |i| {
        let (first, rows) = size.rows(i);
        level.run(ForwardChunk { size, first, rows, inputs, w_ih: &w_ih, w_hh: &w_hh, bias: &bias, to });
    });
    // SAFETY: the chunks cover all rows of the batch, and each writes every step of its rows.
    unsafe {
        let saved = kept.map_or(vec![], |(g, c)| vec![g.finish(), c.finish()]);
        Ok(Outputs { y: y.map(|y| y.finish()), h: h.finish(), c: c.finish(), saved })
    }
}

#[derive(Clone, Copy)]
struct ForwardTo {
    y: Option<Pointer>,
    h: Pointer,
    c: Pointer,
    kept: Option<(Pointer, Pointer)>,
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
        let (mut h, mut c) = inputs.state.map_or_else(|| (zeros(), zeros()), |(h, c)| (h[own.clone()].to_vec(), c[own].to_vec()));
        let mut scratch = if to.kept.is_none() { vec![0f32; rows * gates] } else { vec![] };
        for t in 0..time {
            let step = first * time + t; // of the first row; the next row's is `time` further
            let (z, z_row) = match to.kept {
                // SAFETY: the step lies within (batch, time, 4 hidden).
                Some((kept, _)) => (unsafe { kept.at(step * gates) }, time * gates),
                None => (scratch.as_mut_ptr(), gates),
            };
            let x = Matrix { data: &inputs.x[step * input..], row: time * input, col: 1 };
            let terms = [
                Term { a: x, b: self.w_ih, b_row: gates, k: input },
                Term { a: Matrix { data: &h, row: hidden, col: 1 }, b: self.w_hh, b_row: gates, k: hidden },
            ];
            // Without an initial state the first h is zero.
            let terms = if t == 0 && inputs.state.is_none() { &terms[..1] } else { &terms };
            // SAFETY: z points to this chunk's rows of step t, which no other chunk touches.
            unsafe { product(s, rows, gates, Start::Row(self.bias), terms, z, z_row) };
            for r in 0..rows {
                for u in (0..hidden).step_by(S::F32_LANES) {
                    let mask = vector::first(s, (hidden - u).min(S::F32_LANES));
                    // SAFETY: the lanes lie within row r's gates, states and outputs, which belong to this chunk.
                    unsafe {
                        let z = z.add(r * z_row + u);
                        let gate = |k: usize| vector::load(s, mask, z.add(k * hidden));
                        let (i, f) = (vector::sigmoid(s, gate(0)), vector::sigmoid(s, gate(1)));
                        let (g, o) = (vector::tanh(s, gate(2)), vector::sigmoid(s, gate(3)));
                        let at = r * hidden + u;
                        let c = c.as_mut_ptr().add(at);
                        let c_new = s.mul_add_e_f32s(f, vector::load(s, mask, c), s.mul_f32s(i, g));
                        let h_new = s.mul_f32s(o, vector::tanh(s, c_new));
                        vector::store(s, mask, c, c_new);
                        vector::store(s, mask, h.as_mut_ptr().add(at), h_new);
                        let step_at = (step + r * time) * hidden + u;
                        if let Some(y) = to.y {
                            vector::store(s, mask, y.at(step_at), h_new);
                        }
                        if let Some((_, cells)) = to.kept {
                            for (k, v) in [i, f, g, o].into_iter().enumerate() {
                                vector::store(s, mask, z.add(k * hidden), v);
                            }
                            vector::store(s, mask, cells.at(step_at), c_new);
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

/// Gradients of the outputs.
#[derive(Clone, Copy)]
pub(super) struct OutputGrads<'a> {
    pub(super) y: Option<&'a [f32]>,
    pub(super) h: Option<&'a [f32]>,
    pub(super) c: Option<&'a [f32]>,
}

pub(super) fn backward(
    size: Size,
    inputs: &Inputs,
    saved: &[Vec<f32>],
    grads: OutputGrads,
    needs: &[bool],
) -> Result<Vec<Option<Vec<f32>>>> {
    let [gates, cells] = saved else { bail!("lstm: nothing was saved for the backward pass") };
    let Size { batch, time, input, hidden } = size;
    let level = simd::level()?;
    let steps = batch * time;
    let (mut dz, mut before) = (Buffer::new(steps * size.gates()), Buffer::new(steps * hidden));
    let mut dx = needs[0].then(|| Buffer::new(steps * input));
    let mut state = inputs.state.map(|_| (Buffer::new(batch * hidden), Buffer::new(batch * hidden)));
    let to = BackwardTo {
        dz: dz.pointer(),
        before: before.pointer(),
        dx: dx.as_mut().map(Buffer::pointer),
        state: state.as_mut().map(|(h, c)| (h.pointer(), c.pointer())),
    };
    parallel::for_each(size.chunks(), |i| {
        let (first, rows) = size.rows(i);
        level.run(BackwardChunk { size, first, rows, inputs, gates, cells, grads, to });
    });
    // SAFETY: the chunks cover all rows of the batch and write all steps of dz, h_{t-1}, dx and the state's gradients.
    let (dz, before, dx, state) = unsafe {
        (dz.finish(), before.finish(), dx.map(|b| b.finish()), state.map(|(h, c)| (h.finish(), c.finish())))
    };
    let sums = weight_gradients(level, size, inputs.x, &before, &dz, needs);
    let mut result = vec![dx, sums.w_ih, sums.w_hh];
    result.extend([3, 4].map(|i| needs[i].then(|| sums.bias.clone())));
    if let Some((dh, dc)) = state {
        result.extend([needs[5].then_some(dh), needs[6].then_some(dc)]);
    }
    Ok(result)
}

#[derive(Clone, Copy)]
struct BackwardTo {
    dz: Pointer,
    /// h_{t-1}: the right factor of dW_hh.
    before: Pointer,
    dx: Option<Pointer>,
    state: Option<(Pointer, Pointer)>,
}

struct BackwardChunk<'a> {
    size: Size,
    first: usize,
    rows: usize,
    inputs: &'a Inputs<'a>,
    gates: &'a [f32],
    cells: &'a [f32],
    grads: OutputGrads<'a>,
    to: BackwardTo,
}

impl WithSimd for BackwardChunk<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        let Self { size, first, rows, inputs, gates, cells, grads, to } = self;
        let Size { time, input, hidden, .. } = size;
        let width = size.gates();
        let own = first * hidden..(first + rows) * hidden;
        let start = |g: Option<&[f32]>| g.map_or_else(|| vec![0f32; rows * hidden], |g| g[own.clone()].to_vec());
        let (mut dh, mut dc) = (start(grads.h), start(grads.c));
        let mut dz = vec![0f32; rows * width];
        let one = s.splat_f32s(1.);
        for t in (0..time).rev() {
            for r in 0..rows {
                let step = (first + r) * time + t;
                for u in (0..hidden).step_by(S::F32_LANES) {
                    let mask = vector::first(s, (hidden - u).min(S::F32_LANES));
                    // SAFETY: the lanes lie within the row and step at hand, of inputs and of this chunk's outputs.
                    unsafe {
                        let (at, step_at) = (r * hidden + u, step * hidden + u);
                        let gate = |k: usize| vector::load(s, mask, gates.as_ptr().add(step * width + k * hidden + u));
                        let (i, f, g, o) = (gate(0), gate(1), gate(2), gate(3));
                        let c_before = match inputs.state {
                            _ if t > 0 => vector::load(s, mask, cells.as_ptr().add(step_at - hidden)),
                            Some((_, c0)) => vector::load(s, mask, c0.as_ptr().add((first + r) * hidden + u)),
                            None => s.splat_f32s(0.),
                        };
                        let tanh_c = vector::tanh(s, vector::load(s, mask, cells.as_ptr().add(step_at)));
                        let mut dh_t = vector::load(s, mask, dh.as_ptr().add(at));
                        if let Some(dy) = grads.y {
                            dh_t = s.add_f32s(dh_t, vector::load(s, mask, dy.as_ptr().add(step_at)));
                        }
                        let dc_t = vector::load(s, mask, dc.as_ptr().add(at));
                        let slope = s.negate_mul_add_e_f32s(tanh_c, tanh_c, one);
                        let dc_t = s.mul_add_e_f32s(s.mul_f32s(dh_t, o), slope, dc_t);
                        let sigmoid_slope = |y| s.mul_f32s(y, s.sub_f32s(one, y));
                        let parts = [
                            s.mul_f32s(s.mul_f32s(dc_t, g), sigmoid_slope(i)),
                            s.mul_f32s(s.mul_f32s(dc_t, c_before), sigmoid_slope(f)),
                            s.mul_f32s(s.mul_f32s(dc_t, i), s.negate_mul_add_e_f32s(g, g, one)),
                            s.mul_f32s(s.mul_f32s(dh_t, tanh_c), sigmoid_slope(o)),
                        ];
                        for (k, part) in parts.into_iter().enumerate() {
                            vector::store(s, mask, dz.as_mut_ptr().add(r * width + k * hidden + u), part);
                            vector::store(s, mask, to.dz.at(step * width + k * hidden + u), part);
                        }
                        vector::store(s, mask, dc.as_mut_ptr().add(at), s.mul_f32s(dc_t, f));
                        if t + 1 < time {
                            vector::store(s, mask, to.before.at(step_at + hidden), s.mul_f32s(o, tanh_c));
                        }
                        if t == 0 {
                            let h0 = match inputs.state {
                                Some((h0, _)) => vector::load(s, mask, h0.as_ptr().add((first + r) * hidden + u)),
                                None => s.splat_f32s(0.),
                            };
                            vector::store(s, mask, to.before.at(step_at), h0);
                        }
                    }
                }
            }
            if t > 0 || to.state.is_some() {
                let a = Matrix { data: &dz, row: width, col: 1 };
                let term = Term { a, b: inputs.w_hh, b_row: hidden, k: width };
                // SAFETY: dh is this chunk's own, rows of `hidden` elements.
                unsafe { product(s, rows, hidden, Start::Zero, &[term], dh.as_mut_ptr(), hidden) };
            }
        }
        // SAFETY: this chunk's rows, in buffers of (batch, hidden) and (batch, time, input); its dz is complete.
        unsafe {
            if let Some((h, c)) = to.state {
                h.at(first * hidden).copy_from_nonoverlapping(dh.as_ptr(), dh.len());
                c.at(first * hidden).copy_from_nonoverlapping(dc.as_ptr(), dc.len());
            }
            if let Some(dx) = to.dx {
                let data = std::slice::from_raw_parts(to.dz.at(first * time * width), rows * time * width);
                let term = Term { a: Matrix { data, row: width, col: 1 }, b: inputs.w_ih, b_row: input, k: width };
                product(s, rows * time, input, Start::Zero, &[term], dx.at(first * time * input), input);
            }
        }
    }
}

struct Sums {
    w_ih: Option<Vec<f32>>,
    w_hh: Option<Vec<f32>>,
    bias: Vec<f32>,
}

/// Rows of the sum that are multiplied at a time: they and the result's tile stay in the cache.
const ROWS: usize = 256;
/// Columns of the gates that one thread takes at a time.
const COLUMNS: usize = 48;

/// Sums over all rows and steps, as (features, 4 hidden) and then transposed: lanes run over the gates, which are many.
fn weight_gradients(level: Level, size: Size, x: &[f32], before: &[f32], dz: &[f32], needs: &[bool]) -> Sums {
    let Size { input, hidden, .. } = size;
    let width = size.gates();
    let ones = [1f32; ROWS];
    // Left factors: (features, rows), as element (feature, row) of data; the bias is a feature that is always 1.
    let left = [needs[1].then_some((x, input)), needs[2].then_some((before, hidden)), Some((&ones[..], 1))];
    let mut out = left.map(|l| l.map(|(_, features)| Buffer::new(features * width)));
    let to = out.each_mut().map(|o| o.as_mut().map(Buffer::pointer));
    let columns = width.div_ceil(COLUMNS);
    parallel::for_each(columns * left.len(), |task| {
        let (which, column) = (task % left.len(), task / left.len() * COLUMNS);
        if let (Some((data, features)), Some(to)) = (left[which], to[which]) {
            level.run(SumTask { data, features, is_bias: which == 2, dz, width, column, to });
        }
    });
    // SAFETY: the tasks cover all columns of every buffer, each task all features.
    let [w_ih, w_hh, bias] = out.map(|o| o.map(|o| unsafe { o.finish() }));
    Sums {
        w_ih: w_ih.map(|w| transposed(&w, input, width)),
        w_hh: w_hh.map(|w| transposed(&w, hidden, width)),
        bias: bias.unwrap_or_default(),
    }
}

struct SumTask<'a> {
    data: &'a [f32],
    features: usize,
    is_bias: bool,
    dz: &'a [f32],
    width: usize,
    column: usize,
    to: Pointer,
}

impl WithSimd for SumTask<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        let Self { data, features, is_bias, dz, width, column, to } = self;
        let rows = dz.len() / width;
        let n = COLUMNS.min(width - column);
        for first in (0..rows).step_by(ROWS) {
            let k = ROWS.min(rows - first);
            let a = if is_bias { Matrix { data, row: 0, col: 1 } } else { Matrix { data: &data[first * features..], row: 1, col: features } };
            let term = Term { a, b: &dz[first * width + column..], b_row: width, k };
            let start = if first == 0 { Start::Zero } else { Start::Result };
            // SAFETY: this task alone writes these columns of the (features, width) buffer.
            unsafe { product(s, features, n, start, &[term], to.at(column), width) };
        }
    }
}
