//! Ops on candle's graph: what one is, how it is attached, and the backward pass over them.

mod apply;
mod autocast;
mod backward;
mod link;
mod op;

pub use apply::{apply, apply_one};
pub use autocast::autocast;
pub(crate) use autocast::autocast_apart;
pub use backward::{backward, backward_from, backward_scaled, foreign};
pub use op::{Backward, Forward, GpuForward, Op, Output, View, reading};
