//! Rows of a table, with learned positions and dropout in the same node.
//!
//! ```text
//! forward   y[b, t] = dropout(table[ids[b, t]] + positions[first + t])
//! backward  d = masked dy      dtable[i] = Σ d[b, t] where ids[b, t] = i      dpositions[first + t] = Σ over b of d[b, t]
//! ```
//!
//! Sums are taken in the order of the tokens, by blocks of columns: the same at any number of threads.

mod cpu;
#[cfg(test)]
mod tests;

use candle_core::{DType, Device, Result, Tensor, bail};
use zoo_kernels::cpu::simd;
use zoo_kernels::gpu::{Arg, Array, Gpu, Grid, Module};
use zoo_kernels::{Backward, Forward, GpuForward, Op, Output, View, apply_one, module};

use super::dropout::{Dropout, apply_mask, draws, on_gpu};
use crate::random::Stream;

const KERNELS: Module = module!("embedding");

#[derive(Clone)]
struct Embedding {
    /// The row of the positions that the first token takes.
    first: usize,
    positions: bool,
    dropout: Option<Dropout>,
}

/// Rows of `table` (rows, c) by `ids` (…), integers: (…, c).
///
/// # Errors
/// An id that is no row. Where a GPU's kernel computes, nothing waits for the ids: its row is NaN.
pub fn embedding(ids: &Tensor, table: &Tensor) -> Result<Tensor> {
    lookup(Embedding { first: 0, positions: false, dropout: None }, ids, table, None)
}

/// Rows of `table` (rows, c) by `ids` (b, t), plus `positions` (length, c) from row `first` on, with dropout: (b, t, c).
///
/// # Errors
/// An id that is no row (as in [`embedding`]), or more tokens than positions.
pub fn embedding_with_positions(
    ids: &Tensor,
    table: &Tensor,
    positions: &Tensor,
    first: usize,
    dropout: Option<(f64, Stream)>,
) -> Result<Tensor> {
    let (_, t) = ids.dims2()?;
    let (length, c) = positions.dims2()?;
    if first.checked_add(t).is_none_or(|end| end > length) || table.dims2()?.1 != c {
        let (ids, table) = (ids.dims(), table.dims());
        bail!("embedding: ids {ids:?} from {first} and table {table:?} do not fit positions {:?}", positions.dims())
    }
    lookup(Embedding { first, positions: true, dropout: Dropout::of(dropout)? }, ids, table, Some(positions))
}

fn lookup(op: Embedding, ids: &Tensor, table: &Tensor, positions: Option<&Tensor>) -> Result<Tensor> {
    let (rows, _) = table.dims2()?;
    if !ids.dtype().is_int() {
        bail!("embedding: expected integers as ids, got {:?}", ids.dtype())
    }
    let mut ids = ids.to_dtype(DType::I64)?;
    let tables: Vec<&Tensor> = std::iter::once(table).chain(positions).collect();
    if simd::fused() && Gpu::of(&tables).is_some() {
        ids = ids.to_device(table.device())?;
    } else {
        let on_host = ids.to_device(&Device::Cpu)?.flatten_all()?.to_vec1::<i64>()?;
        if let Some(id) = on_host.iter().find(|id| !(0..rows as i64).contains(*id)) {
            bail!("embedding: id {id} is none of {rows} rows")
        }
        // The ids that were looked at, whatever becomes of a variable before the backward pass.
        ids = Tensor::from_vec(on_host, ids.shape(), ids.device())?;
    }
    let mut inputs = vec![&ids, table];
    inputs.extend(positions);
    apply_one(op, &inputs)
}

impl Op for Embedding {
    fn name(&self) -> &'static str {
        "embedding"
    }

    fn reference(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
        let (ids, table) = (&inputs[0], &inputs[1]);
        let mut dims = ids.dims().to_vec();
        dims.push(table.dim(1)?);
        let mut y = table.index_select(&ids.flatten_all()?, 0)?.reshape(dims)?;
        if self.positions {
            y = y.broadcast_add(&inputs[2].narrow(0, self.first, y.dim(1)?)?)?;
        }
        Ok(vec![apply_mask(&y, self.dropout.as_ref())?])
    }

    fn cpu_forward(&self, inputs: &[View], _: bool) -> Result<Forward> {
        let (ids, table) = (inputs[0].i64()?, inputs[1].f32()?);
        let mut dims = inputs[0].dims().to_vec();
        let c = inputs[1].dims()[1];
        let positions = inputs.get(2).map(View::f32).transpose()?.map(|p| &p[self.first * c..]);
        let t = dims.last().copied().unwrap_or(1);
        let data = cpu::forward(ids, table, positions, t, c, self.dropout.as_ref())?;
        dims.push(c);
        Ok(Forward { outputs: vec![Output { data, shape: dims.into() }], saved: vec![] })
    }

    fn cpu_backward(&self, pass: &Backward) -> Result<Vec<Option<Vec<f32>>>> {
        let Some(grad) = &pass.grads[0] else { bail!("embedding: no gradient") };
        let (ids, table) = (pass.inputs[0].i64()?, pass.inputs[1].dims());
        let (rows, c) = (table[0], table[1]);
        let masked = self.dropout.as_ref().map(|d| d.masked(grad.f32()?)).transpose()?;
        let dy = masked.as_deref().map_or_else(|| grad.f32(), Ok)?;
        let mut grads = vec![None, pass.needs[1].then(|| cpu::add_rows(rows, c, dy, |i| ids[i] as usize))];
        if let Some(positions) = pass.inputs.get(2) {
            let (t, length) = (pass.inputs[0].dims()[1], positions.dims()[0]);
            grads.push(pass.needs[2].then(|| cpu::add_rows(length, c, dy, |i| self.first + i % t)));
        }
        Ok(grads)
    }

    fn gpu_forward(&self, gpu: &Gpu, inputs: &[View], _: bool) -> Result<Option<GpuForward>> {
        let (ids, table) = (&inputs[0], &inputs[1]);
        let (tokens, c) = (ids.count(), table.width());
        let mut y = gpu.array(tokens * c)?;
        let mut args = vec![
            Arg::Read(ids.integers()?),
            Arg::Read(table.slice()?),
            Arg::Read(inputs.get(2).unwrap_or(table).slice()?),
            Arg::Write(&mut y),
            Arg::Count(table.rows()),
            Arg::Count(c),
            Arg::Count(ids.width()),
            Arg::Count(self.first),
            Arg::Word(self.positions.into()),
        ];
        args.extend(draws(self.dropout.as_ref()).map(Arg::Word));
        // SAFETY: there is a row of y for each token; ids outside of the table, and positions beyond theirs, give NaN or were refused.
        unsafe { gpu.launch(&KERNELS, "embedding_forward", Grid::rows(tokens, c), &mut args)? };
        drop(args);
        let mut dims = ids.dims().to_vec();
        dims.push(c);
        Ok(Some(GpuForward { outputs: vec![(y, dims.into())], saved: vec![] }))
    }

    fn gpu_backward(&self, gpu: &Gpu, pass: &Backward<Array>) -> Result<Vec<Option<Array>>> {
        let Some(grad) = &pass.grads[0] else { bail!("embedding: no gradient") };
        let (ids, table) = (&pass.inputs[0], &pass.inputs[1]);
        let (tokens, c) = (ids.count(), table.width());
        let masked = self.dropout.as_ref().map(|d| on_gpu(gpu, grad.slice()?, None, Some(d))).transpose()?;
        let dy = masked.as_ref().map_or_else(|| grad.slice(), |m| Ok(m.slice()))?;
        let mut grads: Vec<Option<Array>> = pass.inputs.iter().map(|_| None).collect();
        if pass.needs[1] {
            let (mut next, mut starts) = (gpu.array_of(DType::I64, tokens)?, gpu.array_of(DType::I64, tokens)?);
            let args =
                &mut [Arg::Read(ids.integers()?), Arg::Write(&mut next), Arg::Write(&mut starts), Arg::Count(tokens)];
            // SAFETY: there is a link and a start for each token.
            unsafe { gpu.launch(&KERNELS, "embedding_chains", Grid::each(tokens), args)? };
            let mut dtable = gpu.zeros(table.count())?;
            let args = &mut [
                Arg::Read(ids.integers()?),
                Arg::Read(dy),
                Arg::Read(next.slice()),
                Arg::Read(starts.slice()),
                Arg::Write(&mut dtable),
                Arg::Count(table.rows()),
                Arg::Count(tokens),
                Arg::Count(c),
            ];
            // SAFETY: as in the forward pass: a row of dy, a link and a start for each token; ids outside of the table are left alone.
            unsafe { gpu.launch(&KERNELS, "embedding_backward", Grid::rows(tokens, c), args)? };
            grads[1] = Some(dtable);
        }
        if let Some(positions) = pass.inputs.get(2).filter(|_| pass.needs[2]) {
            let mut dpositions = gpu.array(positions.count())?;
            let args = &mut [
                Arg::Read(dy),
                Arg::Write(&mut dpositions),
                Arg::Count(ids.rows()),
                Arg::Count(ids.width()),
                Arg::Count(self.first),
                Arg::Count(c),
            ];
            // SAFETY: dy has the counted rows and width, and there is a row of the result for each position.
            unsafe { gpu.launch(&KERNELS, "embedding_positions", Grid::rows(positions.rows(), c), args)? };
            grads[2] = Some(dpositions);
        }
        Ok(grads)
    }
}
