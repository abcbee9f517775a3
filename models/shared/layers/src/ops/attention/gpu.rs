use candle_core::{Result, bail};
use zoo_kernels::gpu::{Arg, Array, Gpu, Grid, Module, Slice};
use zoo_kernels::{Backward, GpuForward, View, module};

use super::Attention;
use crate::ops::dropout::draws;

const KERNELS: Module = module!("attention");

/// The kernel for some head size, and the sizes it is told.
struct Plan {
    /// Features a head may have, and positions of a tile.
    kernel: (usize, usize),
    /// Whether the kernels for tensor cores can be used.
    tensor: bool,
    heads: usize,
    /// Heads of keys and values, all of the batch.
    key_heads: usize,
    tq: usize,
    tk: usize,
    fields: Vec<u32>,
}

/// The most groups along y.
const ROWS: usize = 65_535;

/// Places of a tile of the kernels for tensor cores, and their threads.
const TENSOR: (usize, usize) = (64, 128);

/// None where there is no kernel: heads of more than 128 features, or too many positions or weights to number.
fn plan(op: &Attention, gpu: &Gpu, inputs: &[View], more: &[View]) -> Option<Plan> {
    let g = op.geometry(inputs);
    // Those read 8 elements at once.
    let aligned = |view: &View| view.slice().is_ok_and(|slice| slice.start().is_multiple_of(8));
    let tensor = gpu.tensor_cores() && g.d.is_multiple_of(8) && inputs.iter().take(3).chain(more).all(aligned);
    let kernel = [(16, 32), (32, 32), (64, 32), (128, 16)].into_iter().find(|(features, _)| g.d <= *features)?;
    let heads = g.batch * g.heads;
    if g.tq.max(g.tk) > ROWS || u32::try_from(heads * g.tq * g.tk.max(g.d)).is_err() {
        return None;
    }
    // How far apart batches, heads and rows are.
    let side_by_side = |t: usize, width: usize| [t * width, g.d, width];
    let apart = |heads: usize, t: usize| match inputs[0].dims().len() {
        4 => [heads * t * g.d, t * g.d, g.d],
        _ => side_by_side(t, heads * g.d),
    };
    let packed = side_by_side(g.tq, 3 * g.heads * g.d);
    let of_results = apart(g.heads, g.tq);
    let [of_queries, of_keys] = if op.packed { [packed; 2] } else { [of_results, apart(g.key_heads, g.tk)] };
    let mask = inputs.get(3).map_or([0; 3], |mask| {
        let (dims, one) = (mask.dims(), |n: usize, apart: usize| if n == 1 { 0 } else { apart });
        [one(dims[0], dims[1] * dims[2] * dims[3]), one(dims[1], dims[2] * dims[3]), one(dims[2], dims[3])]
    });
    let mut sizes = vec![g.heads, g.heads / g.key_heads, g.tq, g.tk, g.d];
    sizes.extend([of_queries, of_keys, of_results, mask].concat());
    let mut fields = sizes.into_iter().map(|n| u32::try_from(n).ok()).collect::<Option<Vec<_>>>()?;
    fields.extend([op.causal.into(), inputs.get(3).is_some().into(), (op.scale as f32).to_bits()]);
    fields.extend(draws(op.dropout.as_ref()));
    Some(Plan { kernel, tensor, heads, key_heads: g.batch * g.key_heads, tq: g.tq, tk: g.tk, fields })
}

impl Plan {
    /// A group a tile of `t` positions and one of `heads`.
    fn grid(&self, heads: usize, t: usize) -> Grid {
        let (positions, threads) = if self.tensor { TENSOR } else { (self.kernel.1, 8 * self.kernel.1) };
        Grid { groups: [heads, t.div_ceil(positions)], threads }
    }

    fn name(&self, pass: &str) -> String {
        format!("attention_{}{pass}_{}", if self.tensor { "tensor_" } else { "" }, self.kernel.0)
    }
}

/// Queries, keys, values and mask; something else in the place of a mask that there is not.
fn parts<'a>(op: &Attention, inputs: &'a [View]) -> Result<[Slice<'a>; 4]> {
    if op.packed {
        let all = inputs[0].slice()?;
        let c = if all.count() == 0 { 0 } else { inputs[0].width() / 3 };
        return Ok([all, all.after(c)?, all.after(2 * c)?, all]);
    }
    let [q, k, v] = [&inputs[0], &inputs[1], &inputs[2]];
    Ok([q.slice()?, k.slice()?, v.slice()?, inputs.get(3).unwrap_or(q).slice()?])
}

pub(super) fn forward(op: &Attention, gpu: &Gpu, inputs: &[View], save: bool) -> Result<Option<GpuForward>> {
    let Some(plan) = plan(op, gpu, inputs, &[]) else { return Ok(None) };
    let shape = op.shape(inputs);
    let (mut o, mut logs) = (gpu.array(shape.elem_count())?, gpu.floats(2 * plan.heads * plan.tq)?);
    let mut args: Vec<Arg> = parts(op, inputs)?.map(Arg::Read).into();
    args.extend([Arg::Write(&mut o), Arg::Write(&mut logs), Arg::Fields(&plan.fields)]);
    // SAFETY: the fields are the sizes and strides of the inputs, whose shapes were checked, and of the output.
    unsafe { gpu.launch(&KERNELS, &plan.name("forward"), plan.grid(plan.heads, plan.tq), &mut args)? };
    Ok(Some(GpuForward { outputs: vec![(o, shape)], saved: if save { vec![logs] } else { vec![] } }))
}

pub(super) fn backward(op: &Attention, gpu: &Gpu, pass: &Backward<Array>) -> Result<Vec<Option<Array>>> {
    let (Some(grad), [o], [logs]) = (&pass.grads[0], pass.outputs, pass.saved) else { bail!("attention: no gradient") };
    let Some(plan) = plan(op, gpu, pass.inputs, std::slice::from_ref(grad)) else { bail!("attention: no kernel") };
    let mut dots = gpu.floats(plan.heads * plan.tq)?;
    let args = &mut [Arg::Read(o.slice()?), Arg::Read(grad.slice()?), Arg::Write(&mut dots), Arg::Fields(&plan.fields)];
    // SAFETY: output and gradient are of one shape, which the fields name; there is a dot product for each row of each head.
    unsafe { gpu.launch(&KERNELS, "attention_dots", Grid { groups: [plan.heads, plan.tq], threads: 32 }, args)? };
    let (of_queries, of_keys) = (plan.grid(plan.heads, plan.tq), plan.grid(plan.key_heads, plan.tk));
    let launch = |pass_name: &str, grid: Grid, to: Vec<Arg>| -> Result<()> {
        let mut args: Vec<Arg> = parts(op, pass.inputs)?.map(Arg::Read).into();
        args.extend([grad.slice()?, logs.slice(), dots.slice()].map(Arg::Read));
        args.extend(to);
        args.push(Arg::Fields(&plan.fields));
        // SAFETY: the fields are the sizes and strides of the inputs; gradients have their shapes, or start within the packed one.
        unsafe { gpu.launch(&KERNELS, &plan.name(pass_name), grid, &mut args) }
    };
    if op.packed {
        let c = pass.inputs[0].width() / 3;
        let mut all = gpu.array(pass.inputs[0].count())?;
        launch("queries", of_queries, vec![Arg::Write(&mut all)])?;
        launch("keys", of_keys, vec![Arg::WriteFrom(&mut all, &[c, 2 * c])])?;
        return Ok(vec![Some(all)]);
    }
    let like = |i: usize| gpu.array(pass.inputs[i].count());
    let (mut dq, mut dk, mut dv) = (like(0)?, like(1)?, like(2)?);
    launch("queries", of_queries, vec![Arg::Write(&mut dq)])?;
    launch("keys", of_keys, vec![Arg::Write(&mut dk), Arg::Write(&mut dv)])?;
    let mut grads = vec![Some(dq), Some(dk), Some(dv)];
    grads.extend(pass.inputs.get(3).map(|_| None));
    Ok(grads)
}
