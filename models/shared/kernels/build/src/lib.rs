#![doc = include_str!("../README.md")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs, io, thread};

/// Types of the elements, and their numbers in `dialect.h`.
const TYPES: [(&str, u32); 3] = [("f32", 1), ("bf16", 2), ("f16", 3)];

/// Compiles the kernels and writes `ptx.rs` to `OUT_DIR`: the table `PTX`, which `zoo_kernels::module!` refers to. Each file is
/// preceded by the one at `dialect`. A failure is told to cargo, which then fails the build.
pub fn compile(dialect: &Path) {
    if let Err(message) = compile_all(dialect) {
        println!("cargo::error={}", message.replace('\n', " | "));
    }
}

fn compile_all(dialect: &Path) -> Result<(), String> {
    let mut sources = vec![];
    kernels(Path::new("src"), &mut sources).map_err(|e| e.to_string())?;
    sources.sort();
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?);
    let nvcc = nvcc();
    println!("cargo::rerun-if-changed={}", dialect.display());
    for variable in ["NVCC", "CUDA_HOME", "CUDA_PATH", "PATH"] {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    let mut table =
        String::from("/// Name and text of every compiled module.\npub(crate) static PTX: &[(&str, &str)] = &[\n");
    for source in &sources {
        println!("cargo::rerun-if-changed={}", source.display());
        let name = source.file_stem().and_then(|s| s.to_str()).ok_or("a kernel's file has no name")?;
        let target = |suffix| out.join(format!("zoo_{name}_{suffix}.ptx"));
        thread::scope(|scope| {
            let jobs = TYPES.map(|(suffix, number)| {
                let (nvcc, target) = (&nvcc, target(suffix));
                scope.spawn(move || compile_one(nvcc, [dialect, source], number, &target))
            });
            jobs.into_iter().try_for_each(|job| job.join().map_err(|_| "a thread ended".to_string())?)
        })?;
        for (suffix, _) in TYPES {
            table += &format!("(\"zoo_{name}_{suffix}\", include_str!({:?})),\n", target(suffix));
        }
    }
    fs::write(out.join("ptx.rs"), table + "];\n").map_err(|e| e.to_string())
}

/// All `.cu` files below a folder.
fn kernels(folder: &Path, found: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            kernels(&path, found)?;
        } else if path.extension().is_some_and(|e| e == "cu") {
            found.push(path);
        }
    }
    Ok(())
}

/// Where candle's own kernels look for it, too.
fn nvcc() -> PathBuf {
    if let Some(path) = env::var_os("NVCC") {
        return path.into();
    }
    let homes = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(env::var_os);
    let inside = homes.map(|home| PathBuf::from(home).join("bin/nvcc")).find(|path| path.exists());
    inside.unwrap_or_else(|| "nvcc".into())
}

fn compile_one(nvcc: &Path, [dialect, source]: [&Path; 2], number: u32, target: &Path) -> Result<(), String> {
    let output = Command::new(nvcc)
        // For any GPU from Ampere on: the driver compiles it for the one that is there.
        .args(["-ptx", "-arch=compute_80", "-O3", "-std=c++17", "-Werror", "all-warnings", "-include"])
        .arg(dialect)
        .arg(format!("-DTYPE={number}"))
        .arg(source)
        .arg("-o")
        .arg(target)
        .output()
        .map_err(|e| format!("{}: {e}: the feature cuda needs a CUDA toolkit", nvcc.display()))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!("{}: {}", source.display(), String::from_utf8_lossy(&output.stderr))),
    }
}
