use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;

use crate::init::Init;
use crate::onnx::{Graph, Value};
use crate::ops;
use crate::random::Stream;

/// A table of rows with PyTorch's name: `weight` (rows, c).
#[derive(Clone, Debug)]
pub struct Embedding {
    weight: Tensor,
}

impl Embedding {
    /// `torch.nn.Embedding(rows, c)`, with initial values from `init` (PyTorch's are standard normal).
    pub fn new(rows: usize, c: usize, init: Init, vb: VarBuilder) -> Result<Self> {
        Ok(Self { weight: vb.get_with_hints((rows, c), "weight", init)? })
    }

    /// Rows by `ids` (…), integers: (…, c).
    pub fn forward(&self, ids: &Tensor) -> Result<Tensor> {
        ops::embedding(ids, &self.weight)
    }

    /// Rows by `ids` (b, t) plus those of `positions` from `first` on, with dropout, in one node: (b, t, c).
    pub fn forward_with_positions(
        &self,
        ids: &Tensor,
        positions: &Embedding,
        first: usize,
        dropout: Option<(f64, Stream)>,
    ) -> Result<Tensor> {
        ops::embedding_with_positions(ids, &self.weight, &positions.weight, first, dropout)
    }

    /// [`Embedding::forward`] as nodes of a graph.
    ///
    /// # Errors
    /// See [`Graph::parameter`].
    pub fn export(&self, graph: &mut Graph, ids: &Value) -> Result<Value> {
        let table = graph.parameter(&self.weight)?;
        Ok(graph.op("Gather", &[&table, ids], &[]))
    }

    /// The table, as the weight of a head that is tied to it.
    pub fn weight(&self) -> &Tensor {
        &self.weight
    }
}
