#![doc = include_str!("../README.md")]
#![cfg(unix)]

mod launch;
mod library;
mod mpi;

pub use launch::Launch;
pub use mpi::Mpi;
