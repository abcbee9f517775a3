//! Kernels on the CPU: SIMD dispatch, vectorised functions, products, and memory that several threads write.

pub mod bf16;
mod buffer;
pub mod matmul;
pub mod packed;
pub mod parallel;
pub mod product;
pub mod simd;
pub mod vector;

pub use buffer::{Buffer, Memory, Pointer, StorageMut, memories_mut, slices_mut, storage_address, with_scratch};
