//! What every op needs and none should write again: attaching a kernel to candle's graph, SIMD dispatch, products,
//! vectorised functions, and the checker of gradients.

mod autocast;
mod backward;
mod buffer;
pub mod check;
pub mod gpu;
pub mod matmul;
mod node;
pub mod parallel;
pub mod product;
pub mod simd;
pub mod vector;

pub use autocast::autocast;
pub use backward::{backward, backward_scaled, foreign};
pub use buffer::{Buffer, Memory, Pointer, StorageMut, memories_mut, slices_mut, with_scratch};
pub use node::{Backward, Forward, Op, Output, View, apply, apply_one};
