use candle_core::{Result, Tensor, bail};
use candle_nn::VarBuilder;

use super::Mode;
use crate::init;
use crate::onnx::{Element, Graph, Value};

/// Rows beyond which older ones count less: statistics follow data that change.
const MEMORY: f64 = 1e6;
/// Standard deviations beyond which a value is cut.
const LIMIT: f64 = 10.;

/// Standardises each feature by statistics of all rows that training has shown: (x - mean) / √(variance + eps), cut at
/// ±10, in both modes. Buffers: `running_mean` (c), `running_var` (c) and `running_count` (1), the
/// rows seen, or a million and the last batch's.
///
/// Unlike batch norm it never looks at the batch at hand alone, and unlike layer norm a large feature takes nothing from
/// the others. It is what reinforcement learning calls observation normalisation.
#[derive(Clone, Debug)]
pub struct RunningNorm {
    mean: Tensor,
    variance: Tensor,
    count: Tensor,
    eps: f64,
}

impl RunningNorm {
    /// For rows of `c` features; until the first batch the statistics are zero and one.
    pub fn new(c: usize, eps: f64, vb: VarBuilder) -> Result<Self> {
        Ok(Self {
            mean: vb.get_with_hints(c, "running_mean", init::ZEROS)?,
            variance: vb.get_with_hints(c, "running_var", init::ONES)?,
            count: vb.get_with_hints(1, "running_count", init::ZEROS)?,
            eps,
        })
    }

    /// (…, c) to (…, c). In training the batch is counted first, unless it holds values that are not finite.
    pub fn forward(&self, x: &Tensor, mode: Mode) -> Result<Tensor> {
        let c = self.mean.elem_count();
        if x.dims().last() != Some(&c) {
            bail!("running norm: expected (…, {c}), got {:?}", x.dims())
        }
        if let Mode::Train { .. } = mode {
            self.update(&x.detach())?;
        }
        // Copies: what a graph holds must not change under it.
        let (mean, scale) = (self.mean.copy()?, (&self.variance + self.eps)?.sqrt()?.recip()?);
        x.broadcast_sub(&mean)?.broadcast_mul(&scale)?.clamp(-LIMIT, LIMIT)
    }

    /// [`RunningNorm::forward`], when evaluating, as nodes of a graph.
    ///
    /// # Errors
    /// See [`Graph::parameter`].
    pub fn export(&self, graph: &mut Graph, x: &Value) -> Result<Value> {
        let (mean, variance) = (graph.parameter(&self.mean)?, graph.parameter(&self.variance)?);
        // No node needs it, but it belongs to the weights: runtimes may say that they leave it out.
        graph.parameter(&self.count)?;
        let (eps, low, high) = (
            graph.number(self.eps, Element::F32)?,
            graph.number(-LIMIT, Element::F32)?,
            graph.number(LIMIT, Element::F32)?,
        );
        let variance = graph.add(&variance, &eps);
        let deviation = graph.op("Sqrt", &[&variance], &[]);
        let scale = graph.op("Reciprocal", &[&deviation], &[]);
        let centred = graph.op("Sub", &[x, &mean], &[]);
        let scaled = graph.mul(&centred, &scale);
        Ok(graph.op("Clip", &[&scaled, &low, &high], &[]))
    }

    /// Rows that training has shown, at most a million and a batch.
    ///
    /// # Errors
    /// candle's.
    pub fn rows(&self) -> Result<f64> {
        Ok(f64::from(self.count.to_vec1::<f32>()?[0]))
    }

    /// Merges the rows of a batch into the statistics (Chan, Golub and LeVeque 1979).
    fn update(&self, x: &Tensor) -> Result<()> {
        let c = self.mean.elem_count();
        let rows = x.reshape(((), c))?;
        let n = rows.dim(0)? as f64;
        let mean = rows.mean(0)?;
        let variance = rows.broadcast_sub(&mean)?.sqr()?.mean(0)?;
        let seen = self.rows()?.min(MEMORY);
        let share = n / (seen + n);
        let delta = (&mean - &self.mean)?;
        let merged =
            ((&self.variance * (1. - share))? + (variance * share)? + (delta.sqr()? * (share * (1. - share)))?)?;
        let mean = (&self.mean + (delta * share)?)?;
        if !(merged.sum_all()?.to_scalar::<f32>()? + mean.sum_all()?.to_scalar::<f32>()?).is_finite() {
            return Ok(());
        }
        self.mean.slice_set(&mean, 0, 0)?;
        self.variance.slice_set(&merged, 0, 0)?;
        self.count.slice_set(&Tensor::new(&[(seen + n) as f32], self.count.device())?, 0, 0)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::Params;
    use zoo_kernels::check::random;

    #[test]
    fn batches_together_have_the_statistics_of_all_rows_and_no_batch_of_nan_counts() -> Result<()> {
        let params = Params::init(1, &Device::Cpu);
        let norm = RunningNorm::new(3, 1e-5, params.builder().pp("n"))?;
        assert!(params.trainable().is_empty(), "statistics are no parameters");
        let scale = Tensor::new(&[1f32, 100., 1e-3], &Device::Cpu)?;
        let x = (random(1, &[60, 3])?.broadcast_mul(&scale)? + 5.)?;
        let train = Mode::Train { seed: 1, step: 0 };
        for (first, n) in [(0, 10), (10, 1), (11, 49)] {
            norm.forward(&x.narrow(0, first, n)?, train)?;
        }
        let by_hand = |t: &Tensor| t.to_vec1::<f32>();
        let mean = x.mean(0)?;
        let variance = x.broadcast_sub(&mean)?.sqr()?.mean(0)?;
        let stored = params.tensors();
        for (a, b) in by_hand(&stored[0].1)?.into_iter().zip(by_hand(&mean)?) {
            assert!((a - b).abs() < 1e-4 * b.abs(), "{a} {b}");
        }
        for (a, b) in by_hand(&stored[1].1)?.into_iter().zip(by_hand(&variance)?) {
            assert!((a / b - 1.).abs() < 1e-2, "{a} {b}");
        }
        let evaluated = norm.forward(&x, Mode::Eval)?;
        assert!(evaluated.narrow(1, 0, 2)?.mean_all()?.to_scalar::<f32>()?.abs() < 1e-4);
        norm.forward(&(&x * f64::NAN)?, train)?;
        assert_eq!(by_hand(&params.tensors()[2].1)?, [60.]);
        assert!(norm.forward(&Tensor::zeros((2, 4), x.dtype(), x.device())?, train).is_err());
        Ok(())
    }

    #[test]
    fn gradients_flow_through_it() -> Result<()> {
        let params = Params::init(1, &Device::Cpu);
        let norm = RunningNorm::new(3, 0., params.builder())?;
        let x = candle_core::Var::from_tensor(&random(1, &[4, 3])?)?;
        let grads = norm.forward(&x, Mode::Eval)?.sum_all()?.backward()?;
        let grad = grads.get(&x).map(|g| g.flatten_all()?.to_vec1::<f32>()).transpose()?;
        assert_eq!(grad, Some(vec![1.; 12]), "statistics of zero and one change nothing");
        Ok(())
    }
}
