//! The mean over the neighbours of each region.
//!
//! ```text
//! forward   y_i = 1/|N(i)| Σ_{j ∈ N(i)} x_j
//! backward  dx_j = Σ_{i: j ∈ N(i)} dy_i / |N(i)|
//! ```

use std::sync::Arc;

use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;
use zoo_kernels::{Backward, Forward, Op, Output, View, apply_one};

/// The neighbours of every region, and of which regions each is a neighbour.
#[derive(Clone, Debug)]
pub(crate) struct Borders {
    of: Vec<Vec<usize>>,
    to: Vec<Vec<usize>>,
}

impl Borders {
    pub(crate) fn new(of: Vec<Vec<usize>>) -> Self {
        let mut to = vec![vec![]; of.len()];
        for (i, near) in of.iter().enumerate() {
            near.iter().for_each(|j| to[*j].push(i));
        }
        Self { of, to }
    }

    fn share(&self, region: usize) -> f32 {
        1. / self.of[region].len().max(1) as f32
    }
}

#[derive(Clone)]
struct NeighbourMean(Arc<Borders>);

/// The mean over the neighbours of each region, (b, regions, c) to (b, regions, c); zeros for a region that has none.
pub(crate) fn neighbour_mean(x: &Tensor, borders: &Arc<Borders>) -> Result<Tensor> {
    match x.dims() {
        [_, m, _] if *m == borders.of.len() => apply_one(NeighbourMean(borders.clone()), &[x]),
        other => bail!("mean over neighbours: expected (b, {}, c), got {other:?}", borders.of.len()),
    }
}

/// For each sample of `x` and each region: the sum over `from` of what lies there, weighed.
fn sums(x: &[f32], c: usize, from: &[Vec<usize>], weight: impl Fn(usize, usize) -> f32 + Sync) -> Vec<f32> {
    let m = from.len();
    let mut y = vec![0f32; x.len()];
    y.par_chunks_mut((m * c).max(1)).zip(x.par_chunks((m * c).max(1))).for_each(|(y, x)| {
        for (i, (row, near)) in y.chunks_exact_mut(c).zip(from).enumerate() {
            for &j in near {
                let w = weight(i, j);
                row.iter_mut().zip(&x[j * c..]).for_each(|(y, x)| *y += w * x);
            }
        }
    });
    y
}

impl Op for NeighbourMean {
    fn name(&self) -> &'static str {
        "mean over neighbours"
    }

    fn reference(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
        let x = &inputs[0];
        let m = self.0.of.len();
        let mut matrix = vec![0f32; m * m];
        for (i, near) in self.0.of.iter().enumerate() {
            near.iter().for_each(|j| matrix[i * m + j] += self.0.share(i));
        }
        let matrix = Tensor::from_vec(matrix, (m, m), x.device())?.to_dtype(x.dtype())?;
        Ok(vec![matrix.broadcast_matmul(x)?])
    }

    fn cpu_forward(&self, x: &[View], _save: bool) -> Result<Forward> {
        let data = sums(x[0].f32()?, x[0].width(), &self.0.of, |i, _| self.0.share(i));
        Ok(Forward { outputs: vec![Output { data, shape: x[0].dims().into() }], saved: vec![] })
    }

    fn cpu_backward(&self, pass: &Backward) -> Result<Vec<Option<Vec<f32>>>> {
        let Some(grad) = &pass.grads[0] else { return Ok(vec![None]) };
        Ok(vec![Some(sums(grad.f32()?, grad.width(), &self.0.to, |_, j| self.0.share(j)))])
    }
}

#[cfg(test)]
mod tests {
    use zoo_kernels::check::{check, random, same_bits_on_any_threads};

    use super::*;

    fn borders() -> Arc<Borders> {
        // One that is a neighbour of one that is none of its own, and one without any.
        Arc::new(Borders::new(vec![vec![1, 2], vec![0], vec![0, 1, 3], vec![], vec![2]]))
    }

    #[test]
    fn kernel_and_gradient_agree_with_the_reference() -> Result<()> {
        for (b, c) in [(1, 1), (2, 3), (3, 17)] {
            check(&NeighbourMean(borders()), &[random(1, &[b, 5, c])?], &[true])?;
        }
        let wrong = neighbour_mean(&random(1, &[2, 4, 3])?, &borders()).unwrap_err().to_string();
        assert!(wrong.contains("expected (b, 5, c), got [2, 4, 3]"), "{wrong}");
        Ok(())
    }

    #[test]
    fn threads_do_not_change_a_bit() -> Result<()> {
        let x = random(1, &[4, 5, 7])?;
        same_bits_on_any_threads(|| Ok(vec![neighbour_mean(&x, &borders())?.flatten_all()?.to_vec1()?]))
    }
}
