use candle_core::{Result, bail};

use super::{Attention, geometry};
use crate::ops::dropout::{copy, draws};
use crate::ops::glue::gpu::{Arg, Array, Gpu, GpuForward, Grid, Module, module};
use crate::ops::glue::{Backward, View};

const KERNELS: Module = module!("attention");

/// The kernel for some head size, and the sizes it is told.
struct Plan {
    /// Features a head may have, and places of a tile.
    kernel: (usize, usize),
    /// Whether the kernels for tensor cores serve.
    tensor: bool,
    heads: usize,
    tq: usize,
    tk: usize,
    fields: Vec<u32>,
}

/// The most groups along y.
const ROWS: usize = 65_535;

/// Places of a tile of the kernels for tensor cores, and their threads.
const TENSOR: (usize, usize) = (64, 128);

/// None where there is no kernel: heads of more than 128 features, or too many places or weights to number.
fn plan(op: &Attention, gpu: &Gpu, inputs: &[View], more: &[View]) -> Option<Plan> {
    let g = geometry(inputs[0].dims(), inputs[1].dims(), op.heads);
    // Those read 8 elements at once.
    let aligned = |view: &View| view.slice().is_ok_and(|slice| slice.start.is_multiple_of(8));
    let tensor = gpu.tensor_cores() && g.d.is_multiple_of(8) && inputs[..3].iter().chain(more).all(aligned);
    let kernel = [(16, 32), (32, 32), (64, 32), (128, 16)].into_iter().find(|(features, _)| g.d <= *features)?;
    let heads = g.batch * g.heads;
    if g.tq.max(g.tk) > ROWS || u32::try_from(heads * g.tq * g.tk.max(g.d)).is_err() {
        return None;
    }
    // How far apart batches, heads and rows are.
    let apart = |view: &View, t: usize| match view.dims().len() {
        4 => [g.heads * t * g.d, t * g.d, g.d],
        _ => [t * g.heads * g.d, g.d, g.heads * g.d],
    };
    let mask = inputs.get(3).map_or([0; 3], |mask| {
        let (dims, one) = (mask.dims(), |n: usize, apart: usize| if n == 1 { 0 } else { apart });
        [one(dims[0], dims[1] * dims[2] * dims[3]), one(dims[1], dims[2] * dims[3]), one(dims[2], dims[3])]
    });
    let mut sizes = vec![g.heads, g.tq, g.tk, g.d];
    sizes.extend([apart(&inputs[0], g.tq), apart(&inputs[1], g.tk), mask].concat());
    let mut fields = sizes.into_iter().map(|n| u32::try_from(n).ok()).collect::<Option<Vec<_>>>()?;
    fields.extend([op.causal.into(), inputs.get(3).is_some().into(), (op.scale as f32).to_bits()]);
    fields.extend(draws(op.dropout.as_ref()));
    Some(Plan { kernel, tensor, heads, tq: g.tq, tk: g.tk, fields })
}

impl Plan {
    /// A group a tile of `t` places and a head.
    fn grid(&self, t: usize) -> Grid {
        let (places, threads) = if self.tensor { TENSOR } else { (self.kernel.1, 8 * self.kernel.1) };
        Grid { groups: [self.heads, t.div_ceil(places)], threads }
    }

    fn name(&self, pass: &str) -> String {
        format!("attention_{}{pass}_{}", if self.tensor { "tensor_" } else { "" }, self.kernel.0)
    }
}

pub(super) fn forward(op: &Attention, gpu: &Gpu, inputs: &[View], save: bool) -> Result<Option<GpuForward>> {
    let Some(plan) = plan(op, gpu, inputs, &[]) else { return Ok(None) };
    let (q, mask) = (&inputs[0], inputs.get(3).unwrap_or(&inputs[0]));
    let (mut o, mut logs) = (gpu.array(q.count())?, gpu.floats(2 * plan.heads * plan.tq)?);
    let args = &mut [
        Arg::Read(q.slice()?),
        Arg::Read(inputs[1].slice()?),
        Arg::Read(inputs[2].slice()?),
        Arg::Read(mask.slice()?),
        Arg::Write(&mut o),
        Arg::Write(&mut logs),
        Arg::Fields(&plan.fields),
    ];
    gpu.launch(&KERNELS, &plan.name("forward"), plan.grid(plan.tq), args)?;
    let saved = if save { vec![copy(gpu, o.slice())?, logs] } else { vec![] };
    Ok(Some(GpuForward::one(o, q, saved)))
}

pub(super) fn backward(op: &Attention, gpu: &Gpu, pass: &Backward<Array>) -> Result<Vec<Option<Array>>> {
    let (Some(grad), [o, logs]) = (&pass.grads[0], pass.saved) else { bail!("attention: no gradient") };
    let Some(plan) = plan(op, gpu, pass.inputs, std::slice::from_ref(grad)) else { bail!("attention: no kernel") };
    let [q, k, v] = [&pass.inputs[0], &pass.inputs[1], &pass.inputs[2]];
    let mask = pass.inputs.get(3).unwrap_or(q);
    let mut dots = gpu.floats(plan.heads * plan.tq)?;
    let args = &mut [Arg::Read(o.slice()), Arg::Read(grad.slice()?), Arg::Write(&mut dots), Arg::Fields(&plan.fields)];
    gpu.launch(&KERNELS, "attention_dots", Grid { groups: [plan.heads, plan.tq], threads: 32 }, args)?;
    let (mut dq, mut dk, mut dv) = (gpu.array(q.count())?, gpu.array(k.count())?, gpu.array(v.count())?);
    let read = || {
        let inputs = [q.slice()?, k.slice()?, v.slice()?, mask.slice()?, grad.slice()?, logs.slice(), dots.slice()];
        Ok::<_, candle_core::Error>(inputs.map(Arg::Read))
    };
    let mut args: Vec<Arg> = read()?.into();
    args.extend([Arg::Write(&mut dq), Arg::Fields(&plan.fields)]);
    gpu.launch(&KERNELS, &plan.name("queries"), plan.grid(plan.tq), &mut args)?;
    let mut args: Vec<Arg> = read()?.into();
    args.extend([Arg::Write(&mut dk), Arg::Write(&mut dv), Arg::Fields(&plan.fields)]);
    gpu.launch(&KERNELS, &plan.name("keys"), plan.grid(plan.tk), &mut args)?;
    let mut grads = vec![Some(dq), Some(dk), Some(dv)];
    grads.extend(pass.inputs.get(3).map(|_| None));
    Ok(grads)
}
