#![doc = include_str!("../README.md")]

mod autograd;
pub mod check;
pub mod cpu;
pub mod gpu;
pub mod random;

pub use autograd::{
    Backward, Forward, GpuForward, Op, Output, View, apply, apply_one, autocast, backward, backward_from,
    backward_scaled, foreign, reading,
};
/// candle, in the version whose types show here.
pub use candle_core;

#[cfg(feature = "cuda")]
include!(concat!(env!("OUT_DIR"), "/ptx.rs"));
