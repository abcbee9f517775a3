use candle_core::{Result, Tensor};

use super::Mode;
use crate::ops;
use crate::random::{Purpose, Stream, layer_id};

/// Dropout that knows its place in the model, so that its masks differ from those of other layers.
#[derive(Clone, Debug)]
pub struct Dropout {
    p: f64,
    layer: u64,
}

impl Dropout {
    /// Drops with probability `p`; `path` names the layer within the model.
    pub fn new(p: f64, path: &str) -> Self {
        Self { p, layer: layer_id(path) }
    }

    /// `x` of any shape; unchanged when evaluating.
    pub fn forward(&self, x: &Tensor, mode: Mode) -> Result<Tensor> {
        match self.stream(mode) {
            Some((p, stream)) => ops::dropout(x, p, stream),
            None => Ok(x.clone()),
        }
    }

    /// What an op that drops its input itself needs: probability and stream, unless evaluating.
    pub fn stream(&self, mode: Mode) -> Option<(f64, Stream)> {
        match mode {
            Mode::Train { seed, step } => Some((self.p, Stream::new(seed, Purpose::Dropout, self.layer, step))),
            Mode::Eval => None,
        }
    }
}
