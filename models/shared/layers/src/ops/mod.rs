//! Differentiable operations with kernels of their own: one folder an op, forward and backward together.
//!
//! Every op has a plain twin in candle's own operations, its `reference()`: the specification, the oracle of its
//! tests, and what runs where there is no kernel (another dtype, a device without one, `ZOO_FUSED=0`).

pub(crate) mod dropout;
pub mod glue;
mod linear;
mod lstm;
mod regression_loss;

pub use dropout::{dropout, mask};
pub use linear::{Activation, linear};
pub use lstm::{LstmState, LstmWeights, lstm};
pub use regression_loss::{huber, mae, mse};
