//! Kernels on the CPU: SIMD dispatch, vectorised functions, products, and memory that several threads write.

mod bf16;
mod buffer;
pub mod matmul;
pub mod parallel;
pub mod product;
pub mod simd;
pub mod vector;

pub use bf16::products_in_bf16;
pub use buffer::{Buffer, Memory, Pointer, StorageMut, memories_mut, share_storage, slices_mut, with_scratch};
