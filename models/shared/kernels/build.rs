//! Tells the build scripts of crates with kernels where the dialect is, and compiles the ones here.

use std::path::Path;

const DIALECT: &str = "src/gpu/dialect.h";

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if let Ok(path) = Path::new(DIALECT).canonicalize() {
        println!("cargo::metadata=dialect={}", path.display());
    }
    #[cfg(feature = "cuda")]
    zoo_kernels_build::compile(Path::new(DIALECT));
}
