//! With the feature `cuda`: compiles the kernels beside the ops to PTX, which the crate embeds.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    #[cfg(feature = "cuda")]
    match std::env::var_os("DEP_ZOO_KERNELS_DIALECT") {
        Some(dialect) => zoo_kernels_build::compile(dialect.as_ref()),
        None => println!("cargo::error=zoo-kernels does not say where dialect.h is"),
    }
}
