//! `doctor --system`: what this build and this machine can do.

use std::process::Command;

use anyhow::ensure;
use candle_core::{DType, Device, Tensor};
use serde_json::{Value, json};
use sysinfo::{CpuRefreshKind, MemoryRefreshKind, RefreshKind, System};
use zoo_kernels::cpu::simd;
use zoo_layers::ops;

use crate::device::device as device_named;
use crate::output::{message, print, print_json, program, version};
use crate::ranks::mpi;

/// A graphics card, as NVIDIA's driver describes it.
struct Gpu {
    name: String,
    memory: String,
    driver: String,
    capability: String,
}

/// A device and whether it computes; if not, why.
struct Usable {
    device: String,
    why_not: Option<String>,
}

pub(crate) fn cpu_name() -> String {
    let system = System::new_with_specifics(RefreshKind::nothing().with_cpu(CpuRefreshKind::nothing()));
    let brand = system.cpus().first().map(|cpu| cpu.brand().trim().to_string());
    brand.filter(|b| !b.is_empty()).unwrap_or_else(|| std::env::consts::ARCH.to_string())
}

pub(crate) fn run(as_json: bool) -> anyhow::Result<()> {
    let features = [("cuda", cfg!(feature = "cuda")), ("metal", cfg!(feature = "metal"))];
    let features: Vec<&str> = features.into_iter().filter(|f| f.1).map(|f| f.0).collect();
    let target = format!("{}-{}", std::env::consts::ARCH, std::env::consts::OS);
    let levels: Vec<&str> = simd::choices().into_iter().map(|(name, _)| name).collect();
    let (threads, cores) = (rayon::current_num_threads(), std::thread::available_parallelism().map_or(1, usize::from));
    let system = System::new_with_specifics(RefreshKind::nothing().with_memory(MemoryRefreshKind::everything()));
    // A container may have less than the machine.
    let limit = system.cgroup_limits().map(|l| (l.total_memory, l.free_memory)).filter(|l| l.0 < system.total_memory());
    let (memory, free) = limit.unwrap_or((system.total_memory(), system.available_memory()));
    let gpus = gpus();
    let devices = devices(gpus.as_ref().map_or(0, Vec::len));
    let level = simd::level()?.name();
    let bf16 = match (simd::bf16(), simd::units().contains(&simd::Bf16::Avx512)) {
        (simd::Bf16::Avx512, _) => "by vdpbf16ps (AVX-512 BF16)",
        (simd::Bf16::Rounded, true) => "as f32 of rounded factors, as ZOO_SIMD says; this machine has avx512bf16",
        (simd::Bf16::Rounded, false) => "as f32 of rounded factors: no instructions for them (AVX-512 BF16) here",
    };
    let bf16 = bf16.to_string();
    if as_json {
        let of = |g: &Gpu| json!({ "name": g.name, "memory": g.memory, "driver": g.driver, "compute_capability": g.capability });
        print_json(&json!({
            "program": { "name": program(), "version": version() },
            "zoo": { "version": env!("CARGO_PKG_VERSION"), "target": target, "features": features, "debug": cfg!(debug_assertions) },
            "cpu": { "name": cpu_name(), "simd": level, "simd_levels": levels, "bf16": bf16, "threads": threads, "cores": cores },
            "memory": { "total_bytes": memory, "available_bytes": free },
            "fused": simd::fused(), "mpi": mpi(),
            "gpus": gpus.iter().flatten().map(of).collect::<Vec<_>>(),
            "devices": devices.iter().map(|d| json!({ "name": d.device, "usable": d.why_not.is_none(), "why_not": d.why_not })).collect::<Value>(),
        }));
        return Ok(());
    }
    let gib = |bytes: u64| bytes as f64 / (1u64 << 30) as f64;
    let mut rows = vec![
        [program().into(), format!("{} for {target}", version())],
        ["features".into(), if features.is_empty() { "neither cuda nor metal".into() } else { features.join(", ") }],
        ["processor".into(), cpu_name()],
        ["SIMD".into(), format!("{level}, of {} (ZOO_SIMD)", levels.join(", "))],
        ["bf16 products".into(), bf16.clone()],
        ["threads".into(), format!("{threads} on {cores} cores (RAYON_NUM_THREADS)")],
        ["memory".into(), format!("{:.1} GiB, {:.1} of them free", gib(memory), gib(free))],
    ];
    let found = mpi().unwrap_or_else(|| "none found: runs are of one process (ZOO_MPI names a library)".into());
    rows.push(["MPI".into(), found]);
    if cfg!(debug_assertions) {
        rows.push(["build".into(), "with debug assertions, many times slower; build with --release".into()]);
    }
    if !simd::fused() {
        rows.push(["kernels".into(), "none: ZOO_FUSED=0 runs every op by its reference, several times slower".into()]);
    }
    match &gpus {
        None => rows.push(["GPU".into(), "NVIDIA's driver is not here, or nvidia-smi not on the path".into()]),
        Some(found) if found.is_empty() => rows.push(["GPU".into(), "NVIDIA's driver is here and finds none".into()]),
        Some(found) => rows.extend(found.iter().map(|g| {
            let Gpu { name, memory, driver, capability } = g;
            ["GPU".into(), format!("{name}, {memory}, driver {driver}, compute capability {capability}")]
        })),
    }
    rows.extend(devices.into_iter().map(|Usable { device, why_not }| {
        [format!("--device {device}"), why_not.map_or("works".into(), |why| format!("does not work: {why}"))]
    }));
    print(&rows.iter().map(|[what, says]| format!("{what:<16}{says}\n")).collect::<String>());
    Ok(())
}

/// What the driver's own tool tells; `None` without it.
fn gpus() -> Option<Vec<Gpu>> {
    let query = ["--query-gpu=name,memory.total,driver_version,compute_cap", "--format=csv,noheader"];
    let output = Command::new("nvidia-smi").args(query).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let gpu = |line: &str| match line.split(',').map(str::trim).collect::<Vec<_>>().as_slice() {
        [name, memory, driver, capability] => Some(Gpu {
            name: name.to_string(),
            memory: memory.to_string(),
            driver: driver.to_string(),
            capability: capability.to_string(),
        }),
        _ => None,
    };
    Some(if output.status.success() { text.lines().filter_map(gpu).collect() } else { vec![] })
}

/// The processor, `gpus` CUDA devices (at least the first) and Metal's.
fn devices(gpus: usize) -> Vec<Usable> {
    let cuda = (0..gpus.max(1)).map(|i| if i == 0 { "cuda".into() } else { format!("cuda:{i}") });
    let names = std::iter::once("cpu".to_string()).chain(cuda).chain(std::iter::once("metal".to_string()));
    let usable = |device: String| {
        let tried = device_named(&device).and_then(|d| computes(&d));
        let why_not = tried.err().map(|e| message(&e).replace(&format!("--device {device}: "), ""));
        Usable { device, why_not }
    };
    names.map(usable).collect()
}

/// Runs one of our kernels there.
fn computes(device: &Device) -> anyhow::Result<()> {
    let x = Tensor::ones((4, 8), DType::F32, device)?;
    let found = ops::softmax(&x)?.to_vec2::<f32>()?;
    ensure!(found.iter().flatten().all(|v| (v - 0.125).abs() < 1e-6), "softmax is wrong there: {found:?}");
    Ok(())
}
