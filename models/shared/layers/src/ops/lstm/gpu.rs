use candle_core::{DType, Result, Shape, bail};
use zoo_kernels::gpu::{Arg, Array, Factor, Gpu, Grid, Module, Slice};
use zoo_kernels::{Backward, GpuForward, View, module};

use super::Lstm;
use crate::ops::dropout::{copy, on_gpu};

const KERNELS: Module = module!("lstm");
/// Up to so many units a group runs through a whole sequence; with more, all groups share each step.
const NARROW: usize = 256;

#[derive(Clone, Copy)]
struct Size {
    batch: usize,
    time: usize,
    input: usize,
    hidden: usize,
}

impl Size {
    fn of(inputs: &[View]) -> Self {
        let (x, w_hh) = (inputs[0].dims(), inputs[2].dims());
        Self { batch: x[0], time: x[1], input: x[2], hidden: w_hh[1] }
    }

    fn steps(self) -> usize {
        self.batch * self.time
    }

    /// A group a row, a thread a unit.
    fn whole_sequences(self) -> Grid {
        Grid { groups: [self.batch, 1], threads: self.hidden.div_ceil(32) * 32 }
    }
}

/// h and c before the first step, if they are given.
type State<'a> = Option<[Slice<'a>; 2]>;

fn state<'a>(inputs: &'a [View]) -> Result<State<'a>> {
    match inputs {
        [_, _, _, _, _, h, c] => Ok(Some([h.slice()?, c.slice()?])),
        _ => Ok(None),
    }
}

/// x after dropout.
fn dropped(op: &Lstm, gpu: &Gpu, x: &View) -> Result<Option<Array>> {
    op.dropout.as_ref().map(|d| on_gpu(gpu, x.slice()?, None, Some(d))).transpose()
}

/// What the steps of a layer leave behind.
struct Sequence {
    y: Array,
    cells: Array,
    h: Array,
    c: Array,
}

pub(super) fn forward(op: &Lstm, gpu: &Gpu, inputs: &[View], save: bool) -> Result<GpuForward> {
    let size = Size::of(inputs);
    let Size { batch, time, input, hidden } = size;
    let dropped = dropped(op, gpu, &inputs[0])?;
    let x = dropped.as_ref().map_or_else(|| inputs[0].slice(), |x| Ok(x.slice()))?;
    let factors = (Factor::rows(x), Factor::transposed(inputs[1].slice()?));
    let mut z = gpu.matmul([size.steps(), 4 * hidden, input], factors.0, factors.1)?;
    let mut bias = copy(gpu, inputs[3].slice()?)?;
    gpu.add_bias(&mut bias, inputs[4].slice()?)?;
    gpu.add_bias(&mut z, bias.slice())?;
    let state = state(inputs)?;
    let w_hh = inputs[2].slice()?;
    let Sequence { y, cells, h, c } = match hidden {
        ..=NARROW => whole(gpu, size, &mut z, w_hh, state)?,
        _ => steps(gpu, size, &mut z, w_hh, state)?,
    };
    let of_state = || Shape::from((batch, hidden));
    let mut outputs = vec![];
    let mut saved = vec![];
    if save {
        saved = vec![z, cells, if op.sequence { copy(gpu, y.slice())? } else { gpu.array(0)? }];
    }
    match op.sequence {
        true => outputs.push((y, Shape::from((batch, time, hidden)))),
        false if save => saved[2] = y,
        false => {}
    }
    outputs.extend([(h, of_state()), (c, of_state())]);
    Ok(GpuForward { outputs, saved })
}

fn whole(gpu: &Gpu, size: Size, z: &mut Array, w_hh: Slice, state: State) -> Result<Sequence> {
    let Size { batch, time, hidden, .. } = size;
    let mut w = gpu.array(w_hh.count())?;
    let args = &mut [Arg::Read(w_hh), Arg::Write(&mut w), Arg::Count(4 * hidden), Arg::Count(hidden)];
    // SAFETY: both have 4 x hidden rows of hidden elements.
    unsafe { gpu.launch(&KERNELS, "transposed", Grid::each(w_hh.count()), args)? };
    let (mut y, mut cells) = (gpu.array(size.steps() * hidden)?, gpu.floats(size.steps() * hidden)?);
    let (mut h, mut c) = (gpu.array(batch * hidden)?, gpu.array(batch * hidden)?);
    let [h0, c0] = state.unwrap_or([w_hh; 2]);
    let args = &mut [
        Arg::Write(z),
        Arg::Read(w.slice()),
        Arg::Read(h0),
        Arg::Read(c0),
        Arg::Write(&mut y),
        Arg::Write(&mut cells),
        Arg::Write(&mut h),
        Arg::Write(&mut c),
        Arg::Count(time),
        Arg::Count(hidden),
        Arg::Word(state.is_some().into()),
    ];
    // SAFETY: the shapes of inputs, weights and state were checked; the others were made for these sizes.
    unsafe { gpu.launch(&KERNELS, "lstm_forward", size.whole_sequences(), args)? };
    Ok(Sequence { y, cells, h, c })
}

fn steps(gpu: &Gpu, size: Size, z: &mut Array, w_hh: Slice, state: State) -> Result<Sequence> {
    let Size { batch, time, hidden, .. } = size;
    let (mut y, mut cells) = (gpu.array(size.steps() * hidden)?, gpu.floats(size.steps() * hidden)?);
    let (mut h, mut c) = match state {
        Some([h, c]) => (copy(gpu, h)?, gpu.to_floats(c)?),
        None => (gpu.array(batch * hidden)?, gpu.of_type(DType::F32).zeros(batch * hidden)?),
    };
    for t in 0..time {
        let recurrent = match t > 0 || state.is_some() {
            true => Some(gpu.matmul([batch, 4 * hidden, hidden], Factor::rows(h.slice()), Factor::transposed(w_hh))?),
            false => None,
        };
        let args = &mut [
            Arg::Write(z),
            Arg::Read(recurrent.as_ref().map_or(w_hh, Array::slice)),
            Arg::Write(&mut c),
            Arg::Write(&mut h),
            Arg::Write(&mut y),
            Arg::Write(&mut cells),
            Arg::Count(batch),
            Arg::Count(time),
            Arg::Count(hidden),
            Arg::Count(t),
            Arg::Word(recurrent.is_some().into()),
        ];
        // SAFETY: the shapes of weights and state were checked; the others were made for these sizes.
        unsafe { gpu.launch(&KERNELS, "lstm_step", Grid::each(batch * hidden), args)? };
    }
    Ok(Sequence { y, cells, h, c: gpu.from_floats(c.slice())? })
}

/// What the backward pass through the steps finds.
struct Found {
    dz: Array,
    before: Array,
    dh: Array,
    dc: Array,
}

/// Gradients of the outputs y, h and c.
type OutputGrads<'a> = [Option<Slice<'a>>; 3];

pub(super) fn backward(op: &Lstm, gpu: &Gpu, pass: &Backward<Array>) -> Result<Vec<Option<Array>>> {
    let (inputs, needs) = (pass.inputs, pass.needs);
    let size = Size::of(inputs);
    let Size { input, hidden, .. } = size;
    let grad = |i: usize| pass.grads[i].as_ref().map(View::slice).transpose();
    let first = usize::from(op.sequence);
    let grads = [if op.sequence { grad(0)? } else { None }, grad(first)?, grad(first + 1)?];
    let Found { dz, before, dh, dc } = match hidden {
        ..=NARROW => whole_backward(gpu, size, pass, grads)?,
        _ => steps_backward(gpu, size, pass, grads)?,
    };
    let dropped = dropped(op, gpu, &inputs[0])?;
    let x = dropped.as_ref().map_or_else(|| inputs[0].slice(), |x| Ok(x.slice()))?;
    let dx = || {
        let dx =
            gpu.matmul([size.steps(), input, 4 * hidden], Factor::rows(dz.slice()), Factor::rows(inputs[1].slice()?))?;
        match &op.dropout {
            Some(dropout) => on_gpu(gpu, dx.slice(), None, Some(dropout)),
            None => Ok(dx),
        }
    };
    let over_steps = |m: Slice, features| {
        gpu.matmul([4 * hidden, features, size.steps()], Factor::transposed(dz.slice()), Factor::rows(m))
    };
    let mut found = vec![
        needs[0].then(dx).transpose()?,
        needs[1].then(|| over_steps(x, input)).transpose()?,
        needs[2].then(|| over_steps(before.slice(), hidden)).transpose()?,
    ];
    for needs in &needs[3..5] {
        found.push(needs.then(|| gpu.column_sums(dz.slice(), 4 * hidden)).transpose()?);
    }
    if inputs.len() == 7 {
        found.extend([needs[5].then_some(dh), needs[6].then_some(dc)]);
    }
    Ok(found)
}

fn whole_backward(gpu: &Gpu, size: Size, pass: &Backward<Array>, grads: OutputGrads) -> Result<Found> {
    let Size { batch, time, hidden, .. } = size;
    let [gates, cells, y] = pass.saved else { bail!("lstm: nothing was saved for the backward pass") };
    let w = pass.inputs[2].slice()?;
    let state = state(pass.inputs)?;
    let [h0, c0] = state.unwrap_or([w; 2]);
    let (mut dz, mut before) = (gpu.array(size.steps() * 4 * hidden)?, gpu.array(size.steps() * hidden)?);
    let (mut dh, mut dc) = (gpu.array(batch * hidden)?, gpu.array(batch * hidden)?);
    let there = grads.iter().enumerate().map(|(i, g)| u32::from(g.is_some()) << i).sum();
    let [dy, dh_end, dc_end] = grads.map(|g| g.unwrap_or(w));
    let args = &mut [
        Arg::Read(gates.slice()),
        Arg::Read(cells.slice()),
        Arg::Read(y.slice()),
        Arg::Read(w),
        Arg::Read(h0),
        Arg::Read(c0),
        Arg::Read(dy),
        Arg::Read(dh_end),
        Arg::Read(dc_end),
        Arg::Write(&mut dz),
        Arg::Write(&mut before),
        Arg::Write(&mut dh),
        Arg::Write(&mut dc),
        Arg::Count(time),
        Arg::Count(hidden),
        Arg::Word(state.is_some().into()),
        Arg::Word(there),
    ];
    // SAFETY: the forward pass checked the shapes and saved these arrays; the others were made for these sizes.
    unsafe { gpu.launch(&KERNELS, "lstm_backward", size.whole_sequences(), args)? };
    Ok(Found { dz, before, dh, dc })
}

fn steps_backward(gpu: &Gpu, size: Size, pass: &Backward<Array>, [dy, dh_end, dc_end]: OutputGrads) -> Result<Found> {
    let Size { batch, time, hidden, .. } = size;
    let [gates, cells, y] = pass.saved else { bail!("lstm: nothing was saved for the backward pass") };
    let w = pass.inputs[2].slice()?;
    let state = state(pass.inputs)?;
    let [h0, c0] = state.unwrap_or([w; 2]);
    let (mut dz, mut before) = (gpu.array(size.steps() * 4 * hidden)?, gpu.array(size.steps() * hidden)?);
    let mut step_dz = gpu.array(batch * 4 * hidden)?;
    let mut dc = dc_end.map_or_else(|| gpu.of_type(DType::F32).zeros(batch * hidden), |dc| gpu.to_floats(dc))?;
    let mut recurrent = dh_end.map(|dh| copy(gpu, dh)).transpose()?;
    for t in (0..time).rev() {
        let args = &mut [
            Arg::Read(gates.slice()),
            Arg::Read(cells.slice()),
            Arg::Read(y.slice()),
            Arg::Read(h0),
            Arg::Read(c0),
            Arg::Read(dy.unwrap_or(w)),
            Arg::Read(recurrent.as_ref().map_or(w, Array::slice)),
            Arg::Write(&mut dc),
            Arg::Write(&mut dz),
            Arg::Write(&mut step_dz),
            Arg::Write(&mut before),
            Arg::Count(batch),
            Arg::Count(time),
            Arg::Count(hidden),
            Arg::Count(t),
            Arg::Word(state.is_some().into()),
            Arg::Word(recurrent.is_some().into()),
            Arg::Word(dy.is_some().into()),
        ];
        // SAFETY: the forward pass checked the shapes and saved these arrays; the others were made for these sizes.
        unsafe { gpu.launch(&KERNELS, "lstm_step_backward", Grid::each(batch * hidden), args)? };
        let through = (Factor::rows(step_dz.slice()), Factor::rows(w));
        recurrent = Some(gpu.matmul([batch, hidden, 4 * hidden], through.0, through.1)?);
    }
    let Some(dh) = recurrent else { bail!("lstm: no steps") };
    Ok(Found { dz, before, dh, dc: gpu.from_floats(dc.slice())? })
}
