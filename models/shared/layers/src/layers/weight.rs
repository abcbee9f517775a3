use candle_core::{D, Error, Result, Tensor};
use candle_nn::VarBuilder;

use crate::init::Init;
use crate::ops::{Activation, Quantized, embedding, linear, quantized_linear};

/// The weight (out, in) of a linear map without a bias, or a table of rows: one to train, or one that stays quantized.
#[derive(Clone, Debug)]
pub enum Weight {
    /// Numbers.
    Plain(Tensor),
    /// A few bits an element.
    Quantized(Quantized),
}

impl Weight {
    /// Defines a parameter `weight` (`output`, `input`).
    ///
    /// # Errors
    /// candle's.
    pub fn new(input: usize, output: usize, init: Init, vb: VarBuilder) -> Result<Self> {
        Ok(Self::Plain(vb.get_with_hints((output, input), "weight", init)?))
    }

    /// Its dimensions.
    pub fn dims(&self) -> Vec<usize> {
        match self {
            Self::Plain(weight) => weight.dims().to_vec(),
            Self::Quantized(weight) => weight.dims().to_vec(),
        }
    }

    /// (…, in) to (…, out).
    ///
    /// # Errors
    /// Other shapes.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Plain(weight) => linear(x, weight, None, Activation::Identity),
            Self::Quantized(weight) => quantized_linear(x, weight),
        }
    }

    /// Rows by `ids` (…), integers: (…, in).
    ///
    /// # Errors
    /// An id that is no row.
    pub fn rows(&self, ids: &Tensor) -> Result<Tensor> {
        match self {
            Self::Plain(table) => embedding(ids, table),
            Self::Quantized(table) => table.rows(ids),
        }
    }

    /// The parameter, unless it is quantized.
    pub fn parameter(&self) -> Option<&Tensor> {
        match self {
            Self::Plain(weight) => Some(weight),
            Self::Quantized(_) => None,
        }
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
    pub(super) fn new(weights: [Weight; N]) -> Self {
        let quantized = weights.iter().filter_map(|weight| match weight {
            Weight::Plain(_) => None,
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

    pub(super) fn forward(&self, x: &Tensor) -> Result<[Tensor; N]> {
        let mut all = vec![];
        match self {
            Self::Apart(weights) => {
                for weight in weights {
                    all.push(weight.forward(x)?);
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

    pub(super) fn parameters(&self) -> impl Iterator<Item = &Tensor> {
        match self {
            Self::Apart(weights) => &weights[..],
            Self::Together(..) => &[],
        }
        .iter()
        .filter_map(Weight::parameter)
    }
}
