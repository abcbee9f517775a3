use candle_core::{Result, bail};
use zoo_kernels::gpu::{Arg, Array, Gpu, Grid, Module, row_chunks};
use zoo_kernels::{Backward, GpuForward, Op, View, module};

use super::cpu::STATISTICS;
use super::{Norm, NormKind};

const KERNELS: Module = module!("norm");

/// Where weight and bias are among the inputs; x itself stands for what is not there.
fn indices(op: &Norm) -> [usize; 2] {
    let [weighted, biased] = op.affine.map(usize::from);
    [weighted, if biased == 1 { weighted + 1 } else { 0 }]
}

pub(super) fn forward(op: &Norm, gpu: &Gpu, inputs: &[View]) -> Result<GpuForward> {
    let (x, [weight, bias]) = (&inputs[0], indices(op));
    let (rows, width) = (x.rows(), x.width());
    let (mut y, mut statistics) = (gpu.array(x.count())?, gpu.floats(STATISTICS * rows)?);
    let args = &mut [
        Arg::Read(x.slice()?),
        Arg::Read(inputs[weight].slice()?),
        Arg::Read(inputs[bias].slice()?),
        Arg::Write(&mut y),
        Arg::Write(&mut statistics),
        Arg::Count(width),
        Arg::Float(op.eps),
        Arg::Word((op.kind == NormKind::Rms).into()),
        Arg::Word(op.affine[0].into()),
        Arg::Word(op.affine[1].into()),
    ];
    // SAFETY: y is of x's shape, there are two numbers for each row; weight and bias have the width, as was checked.
    unsafe { gpu.launch(&KERNELS, "norm_forward", Grid::rows(rows, width), args)? };
    Ok(GpuForward::one(y, x, vec![statistics]))
}

pub(super) fn backward(op: &Norm, gpu: &Gpu, pass: &Backward<Array>) -> Result<Vec<Option<Array>>> {
    let Some(dy) = &pass.grads[0] else { bail!("{}: no gradient", op.name()) };
    let (x, statistics, [weight, bias]) = (&pass.inputs[0], &pass.saved[0], indices(op));
    let (rows, width) = (x.rows(), x.width());
    let mut grads: Vec<Option<Array>> = pass.inputs.iter().map(|_| None).collect();
    if pass.needs[0] {
        let mut dx = gpu.array(x.count())?;
        let args = &mut [
            Arg::Read(x.slice()?),
            Arg::Read(dy.slice()?),
            Arg::Read(pass.inputs[weight].slice()?),
            Arg::Read(statistics.slice()),
            Arg::Write(&mut dx),
            Arg::Count(width),
            Arg::Word((op.kind == NormKind::Rms).into()),
            Arg::Word(op.affine[0].into()),
        ];
        // SAFETY: gradient and result are of x's shape, there are two numbers for each row; the weight has the width.
        unsafe { gpu.launch(&KERNELS, "norm_backward", Grid::rows(rows, width), args)? };
        grads[0] = Some(dx);
    }
    if pass.needs[1..].contains(&true) {
        let (chunk, chunks) = row_chunks(rows);
        let mut sums = gpu.floats(2 * chunks * width)?;
        let args = &mut [
            Arg::Read(x.slice()?),
            Arg::Read(dy.slice()?),
            Arg::Read(statistics.slice()),
            Arg::Write(&mut sums),
            Arg::Count(rows),
            Arg::Count(width),
            Arg::Count(chunk),
        ];
        // SAFETY: gradient and x have rows of the width, and there are two sums for each chunk and column.
        unsafe {
            gpu.launch(&KERNELS, "norm_weights", Grid { groups: [width.div_ceil(32), chunks], threads: 256 }, args)?
        };
        let (mut dw, mut db) = (gpu.array(width)?, gpu.array(width)?);
        let args = &mut [
            Arg::Read(sums.slice()),
            Arg::Write(&mut dw),
            Arg::Write(&mut db),
            Arg::Count(width),
            Arg::Count(chunks),
        ];
        // SAFETY: there are two sums for each chunk and column, and a gradient for each column.
        unsafe { gpu.launch(&KERNELS, "norm_weights_total", Grid::each(width), args)? };
        for (at, gradient) in [(weight, dw), (bias, db)] {
            if at > 0 && pass.needs[at] {
                grads[at] = Some(gradient);
            }
        }
    }
    Ok(grads)
}
