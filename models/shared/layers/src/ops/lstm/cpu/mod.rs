use std::borrow::Cow;

use candle_core::{Result, bail};
use pulp::Simd;
use zoo_kernels::View;
use zoo_kernels::cpu::Buffer;

use crate::ops::dropout::{Dropout, range};

mod cell;
mod chunks;
mod wide;

/// From this hidden size on a core's cache no longer holds the weights, and a step is shared by all threads; below it
/// every thread takes rows of the batch of its own.
const WIDE: usize = 256;

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

    /// Number of gates.
    fn gates(self) -> usize {
        4 * self.hidden
    }
}

pub(super) struct Inputs<'a> {
    x: &'a [f32],
    w_ih: &'a [f32],
    w_hh: &'a [f32],
    b_ih: &'a [f32],
    b_hh: &'a [f32],
    state: Option<(&'a [f32], &'a [f32])>,
    dropout: Option<&'a Dropout>,
}

impl<'a> Inputs<'a> {
    pub(super) fn new(v: &'a [View], dropout: Option<&'a Dropout>) -> Result<Self> {
        let state = if v.len() == 7 { Some((v[5].f32()?, v[6].f32()?)) } else { None };
        Ok(Self {
            x: v[0].f32()?,
            w_ih: v[1].f32()?,
            w_hh: v[2].f32()?,
            b_ih: v[3].f32()?,
            b_hh: v[4].f32()?,
            state,
            dropout,
        })
    }
}

impl Inputs<'_> {
    /// The sum of both biases, one a gate.
    fn bias(&self) -> Vec<f32> {
        self.b_ih.iter().zip(self.b_hh).map(|(a, b)| a + b).collect()
    }

    /// Some rows of x (rows, time, input), after dropout.
    #[inline(always)]
    fn rows<S: Simd>(&self, s: S, size: Size, first: usize, rows: usize) -> Cow<'_, [f32]> {
        let row = size.time * size.input;
        let x = &self.x[first * row..(first + rows) * row];
        let Some(dropout) = self.dropout else { return Cow::Borrowed(x) };
        let mut dropped = Buffer::new(x.len());
        // SAFETY: all elements of the new buffer are written.
        unsafe {
            range(s, x.as_ptr(), dropped.pointer().at(0), x.len(), first * row, dropout);
            Cow::Owned(dropped.finish())
        }
    }
}

pub(super) struct Outputs {
    pub(super) y: Option<Vec<f32>>,
    pub(super) h: Vec<f32>,
    pub(super) c: Vec<f32>,
    /// Time first, so that a step's rows lie together: gates after activation (time, batch, 4 hidden) and cell states
    /// (time, batch, hidden).
    pub(super) saved: Vec<Vec<f32>>,
}

/// Gradients of the outputs.
#[derive(Clone, Copy)]
pub(super) struct OutputGrads<'a> {
    pub(super) y: Option<&'a [f32]>,
    pub(super) h: Option<&'a [f32]>,
    pub(super) c: Option<&'a [f32]>,
}

pub(super) fn forward(size: Size, inputs: &Inputs, sequence: bool, save: bool) -> Result<Outputs> {
    match size.hidden {
        WIDE.. => wide::forward(size, inputs, sequence, save),
        _ => chunks::forward(size, inputs, sequence, save),
    }
}

/// Gradients of the inputs that need one, in their order.
pub(super) fn backward(
    size: Size,
    inputs: &Inputs,
    saved: &[Vec<f32>],
    grads: OutputGrads,
    needs: &[bool],
) -> Result<Vec<Option<Vec<f32>>>> {
    let [gates, cells] = saved else { bail!("lstm: nothing was saved for the backward pass") };
    let cells = cell::Cells { size, state: inputs.state, gates, cells, grads };
    match size.hidden {
        WIDE.. => wide::backward(inputs, cells, needs),
        _ => chunks::backward(inputs, cells, needs),
    }
}
