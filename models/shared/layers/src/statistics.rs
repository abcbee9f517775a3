//! Sums and counts over the rows of a tensor, for those who watch gradients; computed where the tensor is.

use candle_core::{CpuStorage, DType, Device, Result, Storage, Tensor, bail};
use zoo_kernels::cpu::simd;
use zoo_kernels::gpu::{Arg, Gpu, Grid, Module};
use zoo_kernels::{View, module};

const KERNELS: Module = module!("statistics");

/// Of the elements v of a row.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Row {
    /// How many there are.
    pub len: usize,
    /// Σ v².
    pub squares: f64,
    /// Those with |v| below the limit.
    pub small: usize,
    /// Those other than zero.
    pub nonzero: usize,
    /// Those that are not finite.
    pub not_finite: usize,
}

/// Of each row of `x`, or of `x - minus`, taken as rows of `width` elements (the last may have fewer).
///
/// # Errors
/// `minus` has another shape; candle's.
pub fn rows(x: &Tensor, minus: Option<&Tensor>, width: usize, limit: f32) -> Result<Vec<Row>> {
    if let Some(other) = minus.filter(|m| m.dims() != x.dims()) {
        bail!("a difference of {:?} and {:?}", x.dims(), other.dims())
    }
    if let Some(found) = on_gpu(x, minus, width, limit)? {
        return Ok(found);
    }
    let of = |v: &[f32]| Row {
        len: v.len(),
        squares: total(v, |v| f64::from(v) * f64::from(v)),
        small: count(v, |v| v.abs() < limit),
        nonzero: count(v, |v| v != 0.),
        not_finite: count(v, |v| !v.is_finite()),
    };
    match minus {
        None => with_values(x, |x| x.chunks(width.max(1)).map(of).collect()),
        Some(minus) => with_values(&(x - minus)?, |x| x.chunks(width.max(1)).map(of).collect()),
    }
}

/// The number of elements of each such row with |v| below `limit`.
///
/// # Errors
/// candle's.
pub fn small(x: &Tensor, width: usize, limit: f32) -> Result<Vec<usize>> {
    if let Some(found) = on_gpu(x, None, width, limit)? {
        return Ok(found.into_iter().map(|row| row.small).collect());
    }
    with_values(x, |x| x.chunks(width.max(1)).map(|v| count(v, |v| v.abs() < limit)).collect())
}

/// By the kernel, where one runs.
fn on_gpu(x: &Tensor, minus: Option<&Tensor>, width: usize, limit: f32) -> Result<Option<Vec<Row>>> {
    let (differences, all, width) = (minus.is_some(), [x, minus.unwrap_or(x)], width.max(1));
    let Some(gpu) = Gpu::of(&all).filter(|_| simd::fused() && x.elem_count() > 0) else { return Ok(None) };
    let [x, minus] = [all[0].contiguous()?, all[1].contiguous()?];
    let (views, n) = ([View::new(&x), View::new(&minus)], x.elem_count());
    let mut sums = gpu.floats(5 * n.div_ceil(width))?;
    let args = &mut [
        Arg::Read(views[0].slice()?),
        Arg::Read(views[1].slice()?),
        Arg::Write(&mut sums),
        Arg::Count(n),
        Arg::Count(width),
        Arg::Word(differences.into()),
        Arg::Float(limit.into()),
    ];
    // SAFETY: both have n elements, as callers check, and there are five numbers for each row.
    unsafe { gpu.launch(&KERNELS, "row_statistics", Grid::rows(n.div_ceil(width), width), args)? };
    let sums = sums.into_tensor((n.div_ceil(width), 5))?.to_vec2::<f32>()?;
    let row = |(i, sums): (usize, &Vec<f32>)| {
        let largest = f64::from(sums[0]);
        Row {
            len: width.min(n - i * width),
            squares: if largest.is_finite() { largest * largest * f64::from(sums[1]) } else { largest },
            small: sums[2] as usize,
            nonzero: sums[3] as usize,
            not_finite: sums[4] as usize,
        }
    };
    Ok(Some(sums.iter().enumerate().map(row).collect()))
}

/// Lends a tensor's values, copied only where they do not lie in order on the CPU.
///
/// # Errors
/// candle's.
pub fn with_values<R>(t: &Tensor, f: impl FnOnce(&[f32]) -> R) -> Result<R> {
    {
        let (storage, layout) = t.storage_and_layout();
        if let (Storage::Cpu(CpuStorage::F32(data)), Some((start, end))) = (&*storage, layout.contiguous_offsets()) {
            return Ok(f(if start == end { &[] } else { &data[start..end] }));
        }
    }
    Ok(f(&t.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?))
}

/// Lanes of a sum: enough for the compiler to use vectors.
const LANES: usize = 16;

/// Adds up `f` of all values.
pub fn total(values: &[f32], f: impl Fn(f32) -> f64) -> f64 {
    let mut lanes = [0f64; LANES];
    let chunks = values.chunks_exact(LANES);
    let rest = chunks.remainder();
    for chunk in chunks {
        for (lane, v) in lanes.iter_mut().zip(chunk) {
            *lane += f(*v);
        }
    }
    lanes.iter().sum::<f64>() + rest.iter().map(|v| f(*v)).sum::<f64>()
}

/// How many values `f` holds for.
pub fn count(values: &[f32], f: impl Fn(f32) -> bool) -> usize {
    values.chunks(4096).map(|chunk| chunk.iter().map(|v| u32::from(f(*v))).sum::<u32>() as usize).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use zoo_kernels::check::random;
    use zoo_kernels_emulator::{ready, with_emulation};

    #[test]
    fn a_kernel_counts_as_the_cpu_does() -> Result<()> {
        let mut values = random(1, &[1000])?.to_vec1::<f32>()?;
        values[..12].copy_from_slice(&[0., -0., 1e-9, -1e-9, 1e-30, 1e30, 0., 0., 0., 0., 0., 0.]);
        values[300] = f32::NAN;
        values[400] = f32::NEG_INFINITY;
        let x = Tensor::new(values, &Device::Cpu)?;
        let y = random(2, &[1000])?;
        for width in [4, 6, 100, 999, 5000] {
            for minus in [None, Some(&y)] {
                let cpu = rows(&x, minus, width, 1e-8)?;
                assert_eq!(cpu.iter().map(|row| row.len).sum::<usize>(), 1000);
                assert_eq!(cpu.iter().map(|row| row.not_finite).sum::<usize>(), 2);
                if minus.is_none() {
                    assert_eq!(cpu.iter().map(|row| row.small).sum::<usize>(), 11);
                    assert_eq!(cpu.iter().map(|row| row.nonzero).sum::<usize>(), 992);
                    assert_eq!(small(&x, width, 1e-8)?, cpu.iter().map(|row| row.small).collect::<Vec<_>>());
                }
                if !ready() {
                    continue;
                }
                let gpu = with_emulation(false, || rows(&x, minus, width, 1e-8))?;
                for (gpu, cpu) in gpu.iter().zip(&cpu) {
                    let squares = [gpu.squares, cpu.squares];
                    let near = squares[0] == squares[1] || (squares[0] - squares[1]).abs() <= 1e-6 * squares[1];
                    assert!(near || squares[1].is_nan() && squares[0].is_nan(), "{squares:?}");
                    assert_eq!(Row { squares: 0., ..*gpu }, Row { squares: 0., ..*cpu });
                }
                assert_eq!(gpu.len(), cpu.len());
            }
        }
        assert!(rows(&x, Some(&random(1, &[5])?), 4, 1e-8).is_err());
        let across = y.reshape((10, 100))?.t()?;
        if ready() {
            let there = with_emulation(false, || rows(&across, None, 10, 1.))?;
            assert_eq!(there[3].small, rows(&across, None, 10, 1.)?[3].small);
            assert!((there[3].squares - rows(&across, None, 10, 1.)?[3].squares).abs() < 1e-5);
            assert_eq!(with_emulation(false, || rows(&y, Some(&y), 1000, 1.))?[0].squares, 0.);
        }
        Ok(())
    }
}
