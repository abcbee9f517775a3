use candle_core::{D, Error, Result, Tensor, bail};
use candle_nn::VarBuilder;

use super::{Dropout, Mode};
use crate::init::{self, Init};
use crate::onnx::{Graph, Value};
use crate::ops::{
    Activation, CrossEntropyOptions, LoraOf, Map, MapWeight, Quantized, cross_entropy, embedding, linear,
    linear_cross_entropy, linear_map, quantized_linear,
};

/// The weight (out, in) of a linear map without a bias, or a table of rows: one to train, or one that stays as it is and may be quantized,
/// with a trained one of low rank beside it or not.
#[derive(Clone, Debug)]
pub enum Weight {
    /// Numbers.
    Plain(Tensor),
    /// A few bits an element.
    Quantized(Quantized),
    /// One of the two with LoRA.
    Adapted(Box<LowRank>),
}

/// A weight and the two matrices of LoRA beside it: see [`linear_map`].
#[derive(Clone, Debug)]
pub struct LowRank {
    weight: Weight,
    /// (rank, in).
    a: Tensor,
    /// (out, rank).
    b: Tensor,
    scale: f64,
    dropout: Dropout,
}

/// What LoRA puts beside a weight.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LoraConfig {
    /// Features between the two matrices.
    pub rank: usize,
    /// Factor of their product.
    pub scale: f64,
    /// Share of the input that they do not see in training.
    pub dropout: f64,
}

impl Weight {
    /// Defines a parameter `weight` (`output`, `input`).
    ///
    /// # Errors
    /// candle's.
    pub fn new(input: usize, output: usize, init: Init, vb: VarBuilder) -> Result<Self> {
        Ok(Self::Plain(vb.get_with_hints((output, input), "weight", init)?))
    }

    /// This weight with LoRA beside it: defines the parameters `lora_A.weight` (rank, in), uniform within 1/√in, and `lora_B.weight` (out,
    /// rank), zeros. That the weight itself is not trained is for the caller to see to.
    ///
    /// # Errors
    /// A weight that has one already, a rank of 0, a scale that is not finite or a share of dropout outside [0, 1).
    pub fn adapted(self, config: LoraConfig, vb: VarBuilder) -> Result<Self> {
        let LoraConfig { rank, scale, dropout } = config;
        let (Self::Plain(_) | Self::Quantized(_), &[n, k]) = (&self, &self.dims()[..]) else {
            bail!("LoRA: the weight is no matrix, or is adapted already")
        };
        if rank == 0 || !scale.is_finite() || !(0. ..1.).contains(&dropout) {
            bail!("LoRA: a rank of {rank}, a scale of {scale} or a dropout of {dropout} cannot work")
        }
        let a = vb.get_with_hints((rank, k), "lora_A.weight", init::linear(k))?;
        let b = vb.get_with_hints((n, rank), "lora_B.weight", init::ZEROS)?;
        let dropout = Dropout::new(dropout, &format!("{}.lora_dropout", vb.prefix()));
        Ok(Self::Adapted(Box::new(LowRank { weight: self, a, b, scale, dropout })))
    }

    /// Whether LoRA stands beside it.
    pub fn is_adapted(&self) -> bool {
        matches!(self, Self::Adapted(_))
    }

    /// Without LoRA.
    pub fn base(&self) -> &Self {
        match self {
            Self::Plain(_) | Self::Quantized(_) => self,
            Self::Adapted(low) => &low.weight,
        }
    }

    /// All of it in f32, with what LoRA adds.
    ///
    /// # Errors
    /// candle's.
    pub fn merged(&self) -> Result<Tensor> {
        match self {
            Self::Plain(weight) => Ok(weight.clone()),
            Self::Quantized(weight) => weight.dequantized(),
            Self::Adapted(low) => low.weight.merged()? + (low.b.matmul(&low.a)? * low.scale)?,
        }
    }

    /// Its dimensions.
    pub fn dims(&self) -> Vec<usize> {
        match self {
            Self::Plain(weight) => weight.dims().to_vec(),
            Self::Quantized(weight) => weight.dims().to_vec(),
            Self::Adapted(low) => low.weight.dims(),
        }
    }

    /// (…, in) to (…, out).
    ///
    /// # Errors
    /// Other shapes.
    pub fn forward(&self, x: &Tensor, mode: Mode) -> Result<Tensor> {
        match self {
            Self::Plain(weight) => linear(x, weight, None, Activation::Identity),
            Self::Quantized(weight) => quantized_linear(x, weight),
            Self::Adapted(_) => linear_map(x, self.map(mode)?),
        }
    }

    /// [`Weight::forward`] as nodes of a graph.
    ///
    /// # Errors
    /// See [`Graph::parameter`]; weights that are quantized or have LoRA beside them, which have to be whole first.
    pub fn export(&self, graph: &mut Graph, x: &Value) -> Result<Value> {
        graph.linear(x, self.plain()?, None, Activation::Identity)
    }

    /// [`Weight::rows`] as nodes of a graph.
    ///
    /// # Errors
    /// As [`Weight::export`].
    pub fn export_rows(&self, graph: &mut Graph, ids: &Value) -> Result<Value> {
        let table = graph.parameter(self.plain()?)?;
        Ok(graph.op("Gather", &[&table, ids], &[]))
    }

    fn plain(&self) -> Result<&Tensor> {
        match self {
            Self::Plain(weight) => Ok(weight),
            Self::Quantized(_) | Self::Adapted(_) => {
                bail!("onnx: a weight is quantized or adapted: make a whole model of it first (Weight::merged)")
            }
        }
    }

    /// As the parts of an op.
    pub(super) fn map(&self, mode: Mode) -> Result<Map<'_>> {
        let (base, low) = match self {
            Self::Adapted(low) => (&low.weight, Some(low)),
            Self::Plain(_) | Self::Quantized(_) => (self, None),
        };
        let weight = match base {
            Self::Plain(weight) => MapWeight::Plain(weight),
            Self::Quantized(weight) => MapWeight::Quantized(weight),
            Self::Adapted(_) => bail!("LoRA: a weight that is adapted already"),
        };
        let lora = low.map(|low| {
            let dropout = low.dropout.stream(mode).filter(|(p, _)| *p > 0.);
            LoraOf { a: &low.a, b: &low.b, scale: low.scale, dropout }
        });
        Ok(Map { weight, lora })
    }

    /// The mean cross-entropy of the results for `x` (…, in) against `targets` (…), integers. On a CPU all logits are never there at once.
    ///
    /// # Errors
    /// As [`cross_entropy`].
    pub fn cross_entropy(
        &self,
        x: &Tensor,
        targets: &Tensor,
        options: CrossEntropyOptions,
        mode: Mode,
    ) -> Result<Tensor> {
        match self {
            Self::Plain(weight) if x.device().is_cpu() => {
                linear_cross_entropy(x, MapWeight::Plain(weight), targets, options)
            }
            Self::Quantized(weight) if x.device().is_cpu() => {
                linear_cross_entropy(x, MapWeight::Quantized(weight), targets, options)
            }
            _ => cross_entropy(&self.forward(x, mode)?, targets, options),
        }
    }

    /// Rows by `ids` (…), integers: (…, in).
    ///
    /// # Errors
    /// An id that is no row, or a weight with LoRA.
    pub fn rows(&self, ids: &Tensor) -> Result<Tensor> {
        match self {
            Self::Plain(table) => embedding(ids, table),
            Self::Quantized(table) => table.rows(ids),
            Self::Adapted(_) => bail!("embedding: a table with LoRA has no rows"),
        }
    }

    /// Its parameters: none if it is quantized, unless LoRA has some.
    pub fn parameters(&self) -> impl Iterator<Item = &Tensor> {
        let (base, low) = match self {
            Self::Adapted(low) => (&low.weight, Some([&low.a, &low.b])),
            Self::Plain(_) | Self::Quantized(_) => (self, None),
        };
        let plain = if let Self::Plain(weight) = base { Some(weight) } else { None };
        plain.into_iter().chain(low.into_iter().flatten())
    }
}

/// Weights of maps of one input.
#[derive(Clone, Debug)]
pub(super) enum Weights<const N: usize> {
    Apart([Weight; N]),
    /// As one, whose results of these widths lie side by side.
    Together(Quantized, [usize; N]),
}

impl<const N: usize> Weights<N> {
    /// Quantized ones become one map where they can: a product of few rows costs mostly its beginning and its end.
    pub(super) fn stacked(self) -> Self {
        let Self::Apart(weights) = self else { return self };
        let quantized = weights.iter().filter_map(|weight| match weight {
            Weight::Plain(_) | Weight::Adapted(_) => None,
            Weight::Quantized(weight) => Some(weight.clone()),
        });
        let quantized: Vec<Quantized> = quantized.collect();
        let Ok(all) = <[Quantized; N]>::try_from(quantized) else { return Self::Apart(weights) };
        match Quantized::side_by_side(&all) {
            Ok(one) => Self::Together(one, all.map(|weight| weight.dims()[0])),
            // Of several numbers of bits.
            Err(_) => Self::Apart(weights),
        }
    }

    pub(super) fn forward(&self, x: &Tensor, mode: Mode) -> Result<[Tensor; N]> {
        let mut all = vec![];
        match self {
            Self::Apart(weights) => {
                for weight in weights {
                    all.push(weight.forward(x, mode)?);
                }
            }
            Self::Together(weight, widths) => {
                let (y, mut first) = (quantized_linear(x, weight)?, 0);
                for width in widths {
                    all.push(y.narrow(D::Minus1, first, *width)?);
                    first += width;
                }
            }
        }
        all.try_into().map_err(|_| Error::Msg("as many results as weights".into()))
    }

    pub(super) fn apart(&self) -> Result<&[Weight; N]> {
        match self {
            Self::Apart(weights) => Ok(weights),
            Self::Together(..) => {
                bail!("onnx: weights are quantized: make a whole model of them first (Weight::merged)")
            }
        }
    }

    /// Whether LoRA stands beside any.
    pub(super) fn is_adapted(&self) -> bool {
        matches!(self, Self::Apart(weights) if weights.iter().any(Weight::is_adapted))
    }

    /// Without LoRA.
    pub(super) fn base(&self) -> Self {
        match self {
            Self::Apart(weights) => Self::Apart(weights.each_ref().map(|weight| weight.base().clone())),
            Self::Together(..) => self.clone(),
        }
    }

    pub(super) fn parameters(&self) -> impl Iterator<Item = &Tensor> {
        match self {
            Self::Apart(weights) => &weights[..],
            Self::Together(..) => &[],
        }
        .iter()
        .flat_map(Weight::parameters)
    }
}

#[cfg(test)]
mod tests {
    use zoo_kernels::check::random;

    use super::*;
    use crate::Params;
    use candle_core::Device;

    #[test]
    fn merged_it_is_the_same_map() -> Result<()> {
        let params = Params::init(1, &Device::Cpu);
        let config = LoraConfig { rank: 3, scale: 0.5, dropout: 0.2 };
        let weight = Weight::Plain(random(1, &[5, 8])?).adapted(config, params.builder())?;
        // It begins with zeros, which would say nothing.
        params.all()[1].var.set(&random(2, &[5, 3])?)?;
        let x = random(3, &[4, 8])?;
        let y = weight.forward(&x, Mode::Eval)?;
        let off = |other: &Tensor| (&y - other)?.abs()?.max_all()?.to_scalar::<f32>();
        assert!(off(&x.matmul(&weight.merged()?.t()?)?)? < 1e-5);
        assert!(off(&weight.base().forward(&x, Mode::Eval)?)? > 1e-2);
        // What is dropped differs from step to step.
        let trained = |step| weight.forward(&x, Mode::Train { seed: 1, step });
        assert!(off(&trained(1)?)? > 1e-3 && (trained(1)? - trained(2)?)?.abs()?.max_all()?.to_scalar::<f32>()? > 1e-3);
        assert!(weight.adapted(config, params.builder()).is_err());
        Ok(())
    }
}
