//! Products with a weight that stays quantized: frozen, it takes no gradient, and lets one through.
//!
//! ```text
//! forward   y = x Wᵀ
//! backward  dx = dy W
//! ```

#[cfg(test)]
mod tests;

use std::sync::Arc;

use candle_core::{D, DType, Device, Result, Tensor, bail};
use zoo_kernels::cpu::packed::Packed;
use zoo_kernels::{Backward, Forward, Op, Output, View, apply_one};

pub use zoo_kernels::cpu::packed::Bits;

use super::linear::plain;

/// The weight (out, in) of a linear map in 4 or 8 bits an element, on the CPU. Clones share it.
#[derive(Clone, Debug)]
pub struct Quantized(pub(in crate::ops) Arc<Packed>);

impl Quantized {
    /// Of a row-major matrix (out, in): element e of group g, of [`Bits::group`] consecutive ones of a row, is
    /// `scales[g] * codes[e] + offsets[g]`. Without `offsets`, all are zero.
    ///
    /// # Errors
    /// Rows that are no whole groups, slices of other lengths, or codes of more bits.
    pub fn new(bits: Bits, size: [usize; 2], codes: &[i8], scales: &[f32], offsets: &[f32]) -> Result<Self> {
        Ok(Self(Arc::new(Packed::new(bits, size, codes, scales, offsets)?)))
    }

    /// Maps of the same input as one, whose results lie side by side.
    ///
    /// # Errors
    /// Other widths or bits; results, but for the last's, that are no multiple of four.
    pub fn side_by_side(maps: &[Self]) -> Result<Self> {
        let maps: Vec<&Packed> = maps.iter().map(|map| &*map.0).collect();
        Ok(Self(Arc::new(Packed::stacked(&maps)?)))
    }

    /// (out, in).
    pub fn dims(&self) -> [usize; 2] {
        [self.0.rows(), self.0.columns()]
    }

    /// Bytes that it takes.
    pub fn bytes(&self) -> usize {
        self.0.bytes()
    }

    /// Its elements in f32, (out, in).
    ///
    /// # Errors
    /// candle's.
    pub fn dequantized(&self) -> Result<Tensor> {
        let [n, k] = self.dims();
        Tensor::from_vec(self.0.unpacked(0..n)?, (n, k), &Device::Cpu)
    }

    /// Its rows by `ids` (…), integers, as those of a table: (…, in), without a gradient.
    ///
    /// # Errors
    /// An id that is no row.
    pub fn rows(&self, ids: &Tensor) -> Result<Tensor> {
        let [n, k] = self.dims();
        let numbers = ids.to_device(&Device::Cpu)?.to_dtype(DType::I64)?.flatten_all()?.to_vec1::<i64>()?;
        let mut rows = Vec::with_capacity(numbers.len() * k);
        for id in numbers {
            match usize::try_from(id) {
                Ok(row) if row < n => rows.extend(self.0.unpacked(row..row + 1)?),
                _ => bail!("embedding: id {id} is none of {n} rows"),
            }
        }
        let mut dims = ids.dims().to_vec();
        dims.push(k);
        Tensor::from_vec(rows, dims, ids.device())
    }
}

/// x Wᵀ for `x` (…, in) and a quantized weight (out, in): (…, out). On a GPU the weight is dequantized at every call.
///
/// # Errors
/// Shapes that do not fit.
pub fn quantized_linear(x: &Tensor, weight: &Quantized) -> Result<Tensor> {
    let [n, k] = weight.dims();
    if x.rank() == 0 || x.dim(D::Minus1)? != k {
        bail!("linear: x {:?} does not fit weight [{n}, {k}]", x.dims())
    }
    apply_one(QuantizedLinear { weight: weight.clone() }, &[x])
}

#[derive(Clone)]
struct QuantizedLinear {
    weight: Quantized,
}

impl Op for QuantizedLinear {
    fn name(&self) -> &'static str {
        "quantized linear"
    }

    fn reference(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
        let x = &inputs[0];
        let weight = self.weight.dequantized()?.to_device(x.device())?.to_dtype(x.dtype())?;
        Ok(vec![plain(x, &weight, None)?])
    }

    fn cpu_forward(&self, inputs: &[View], _: bool) -> Result<Forward> {
        let x = &inputs[0];
        let data = self.weight.0.product(x.rows(), x.f32()?)?;
        let mut dims = x.dims().to_vec();
        if let Some(last) = dims.last_mut() {
            *last = self.weight.dims()[0];
        }
        Ok(Forward { outputs: vec![Output { data, shape: dims.into() }], saved: vec![] })
    }

    fn cpu_backward(&self, pass: &Backward) -> Result<Vec<Option<Vec<f32>>>> {
        let Some(grad) = &pass.grads[0] else { bail!("quantized linear: no gradient") };
        let dx = || self.weight.0.back(grad.rows(), grad.f32()?);
        Ok(vec![pass.needs[0].then(dx).transpose()?])
    }
}
