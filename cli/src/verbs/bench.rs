//! `bench`: step and inference times beside the machine's matmul peak.

use std::time::{Duration, Instant};

use candle_core::{DType, Device, Tensor};
use clap::Args;
use serde_json::{Value, json};
use zoo_kernels::cpu::simd;
use zoo_layers::ops::{Activation, autocast, linear};
use zoo_layers::{Mode, Params};
use zoo_training::config::{ComputeType, ConfigOf, Overrides, resolve};
use zoo_training::{Batches, Event, Observer, Recipe, Split, Trainer, with_products};

use crate::arguments::{DeviceName, Json};
use crate::device::device;
use crate::output::{note, print, print_json, program, remark, table, version};
use crate::system::cpu_name;

pub(crate) struct Options {
    seconds: f64,
    preset: Option<String>,
    batch: Option<usize>,
    set: Vec<String>,
    device: Device,
    /// Floating-point operations a second of large products in f32.
    peak: f64,
}

pub(crate) struct Case {
    row: Vec<String>,
    /// What the columns have no place for.
    more: Option<String>,
    json: Value,
}

#[derive(Args)]
pub(crate) struct Arguments {
    /// The models; all by default
    pub(crate) models: Vec<String>,
    /// Measure ops beside their plain references instead of models
    #[arg(long, conflicts_with_all = ["models", "preset", "batch"])]
    pub(crate) ops: bool,
    /// Under mpirun: measure sums over the processes beside MPI's own, whose order is not fixed
    #[arg(long, conflicts_with_all = ["models", "preset", "batch", "ops", "set"])]
    pub(crate) ranks: bool,
    /// Only this preset
    #[arg(long, value_name = "NAME")]
    pub(crate) preset: Option<String>,
    /// Samples a step, instead of the preset's (train.batch_size)
    #[arg(long, value_name = "N")]
    pub(crate) batch: Option<usize>,
    /// One setting over everything else, such as train.dtype=bf16 (with --ops that alone)
    #[arg(long, value_name = "KEY=VALUE")]
    pub(crate) set: Vec<String>,
    /// Seconds of training steps in each case (inference and data come on top; an op takes half of it)
    #[arg(long, value_name = "S", default_value_t = 4.)]
    pub(crate) seconds: f64,
    #[command(flatten)]
    pub(crate) device: DeviceName,
    #[command(flatten)]
    pub(crate) json: Json,
}

impl Arguments {
    /// Refuses times that cannot be.
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        match self.seconds > 0. && self.seconds <= 3600. {
            true => Ok(()),
            false => Err(zoo_training::Error::Usage(format!(
                "--seconds {}: expected more than 0 and at most 3600",
                self.seconds
            ))
            .into()),
        }
    }
}

/// Measures the cases of a model.
pub(crate) type Bench = fn(&Options) -> anyhow::Result<Vec<Case>>;

/// `models` are those that are named, or all, by their names.
pub(crate) fn run(args: &Arguments, models: &[(&str, Bench)]) -> anyhow::Result<()> {
    let device = device(&args.device.device)?;
    let peak = matmul_peak(&device, DType::F32)?;
    let (preset, set) = (args.preset.clone(), args.set.clone());
    let options = Options { seconds: args.seconds, preset, batch: args.batch, set, device, peak };
    let mut cases = vec![];
    for (name, bench) in models {
        note(&format!("{name} …"));
        cases.extend(bench(&options)?);
    }
    let machine = json!({
        "cpu": cpu_name(), "threads": rayon::current_num_threads(), "simd": simd::level()?.name(), "device": args.device.device,
        "matmul_gflops": (peak / 1e8).round() / 10., "zoo_version": env!("CARGO_PKG_VERSION"), "program": format!("{} {}", program(), version()),
    });
    if args.json.json {
        print_json(&json!({ "machine": machine, "cases": cases.into_iter().map(|c| c.json).collect::<Vec<_>>() }));
        return Ok(());
    }
    let mut rows = vec![
        ["case", "data ms", "train ms", "infer ms", "samples/s", "share of peak", "peak MB"].map(String::from).to_vec(),
    ];
    let more: String = cases.iter().filter_map(|c| c.more.clone()).collect();
    rows.extend(cases.into_iter().map(|c| c.row));
    print(&format!("{}\n{more}{}", table(&rows), table(&[vec![format!("machine: {machine}")]])));
    Ok(())
}

pub(crate) fn cases<T: Recipe>(options: &Options) -> anyhow::Result<Vec<Case>> {
    match &options.preset {
        Some(preset) => Ok(vec![case::<T>(Some(preset), options)?]),
        None if T::PRESETS.is_empty() => Ok(vec![case::<T>(None, options)?]),
        None => {
            let mut cases = vec![];
            for preset in T::PRESETS {
                let over = Overrides { preset: Some(preset.name), set: &options.set, ..Overrides::default() };
                match T::lacks(&resolve::<T>(&over)?) {
                    Some(lacks) => remark(format!("{} {} is left out: {lacks}", T::NAME, preset.name)),
                    None => cases.push(case::<T>(Some(preset.name), options)?),
                }
            }
            Ok(cases)
        }
    }
}

fn case<T: Recipe>(preset: Option<&str>, options: &Options) -> anyhow::Result<Case> {
    // No evaluation and no checkpoint in between; the run goes on until the time is up.
    let set = ["train.steps=1000000000", "train.eval_every=1000000000", "train.checkpoint_every=1000000000"];
    let batch = options.batch.map(|n| format!("train.batch_size={n}"));
    let set: Vec<String> = set.into_iter().map(String::from).chain(batch).chain(options.set.iter().cloned()).collect();
    let mut config = resolve::<T>(&Overrides { preset, set: &set, ..Overrides::default() })?;
    T::settle(&mut config)?;
    let device = &options.device;
    let task = T::open(&config.model, &config.data, config.train.seed, None, device)?;
    let acts = task.experience(&config)?.is_some();
    config.train.overfit_batch = !acts;
    reset_peak_memory(device);
    let Trained { step: train, round } = train_seconds(&task, &config, options)?;
    let infer = infer_seconds(&task, &config, options, 1)?;
    let infer_batch = infer_seconds(&task, &config, options, config.train.batch_size)?;
    let memory = peak_memory_mb(device);
    let data = if acts { None } else { Some(data_seconds(&task, &config, options)?) };
    let batch = config.train.batch_size * config.train.accumulate as usize;
    let peak = match config.train.dtype {
        ComputeType::F32 => options.peak,
        of_products => with_products(of_products, || matmul_peak(device, config.train.compute()))?,
    };
    let share = T::step_flops(&config.model, &config.data).map(|flops| flops * batch as f64 / train / peak);
    let preset = preset.unwrap_or("default");
    let name = format!("{} {preset} b{batch}", T::NAME);
    let row = vec![
        name.clone(),
        data.map_or("-".into(), |s| format!("{:.3}", s * 1e3)),
        format!("{:.3}", train * 1e3),
        format!("{:.4}", infer * 1e3),
        format!("{:.0}", batch as f64 / train),
        share.map_or("-".into(), |share| format!("{:.0} %", 100. * share)),
        memory.map_or("-".into(), |m| format!("{m:.0}")),
    ];
    let acting = if acts { Some(steps_by_chance(&task, &config, options)?) } else { None };
    let more = acting.zip(round).map(|(acting, round)| {
        format!("{name}: the environment takes {acting:.0} steps a second, {round:.0} of them while a policy is trained on them\n")
    });
    let mut json = json!({
        "case": name, "model": T::NAME, "preset": preset, "batch": batch, "data_ms": data.map(|s| s * 1e3), "train_ms": train * 1e3, "infer_ms": infer * 1e3,
        "infer_batch_ms": infer_batch * 1e3,
        "samples_per_second": batch as f64 / train, "share_of_peak": share, "peak_mb": memory,
    });
    if let (Some(acting), Some(round)) = (acting, round) {
        json["environment_steps_per_second"] = acting.into();
        json["training_environment_steps_per_second"] = round.into();
    }
    Ok(Case { row, more, json })
}

/// Steps a second that an environment takes by chance, observations included.
fn steps_by_chance<T: Recipe>(task: &T, config: &ConfigOf<T>, options: &Options) -> anyhow::Result<f64> {
    let Some(mut experience) = task.experience(config)? else { return Ok(f64::NAN) };
    let (started, mut rounds) = (Instant::now(), 0);
    while started.elapsed().as_secs_f64() < options.seconds / 2. || rounds < 3 {
        experience.act_randomly()?;
        rounds += 1;
    }
    Ok((rounds * experience.samples()) as f64 / started.elapsed().as_secs_f64())
}

struct Trained {
    /// Median seconds of a step.
    step: f64,
    /// Samples a second of a policy's rounds, acting and training together.
    round: Option<f64>,
}

/// Median seconds of a training step on one batch (those of its rounds, for a policy), as the trainer runs it: forward, backward, clipping, optimizer.
fn train_seconds<T: Recipe>(task: &T, config: &ConfigOf<T>, options: &Options) -> anyhow::Result<Trained> {
    #[derive(Default)]
    struct Steps {
        steps: Vec<Instant>,
        rounds: Vec<Instant>,
    }
    impl Observer for Steps {
        fn observe(&mut self, event: &Event) {
            match event {
                Event::Step { .. } => self.steps.push(Instant::now()),
                Event::Collected { .. } => self.rounds.push(Instant::now()),
                _ => {}
            }
        }
    }
    let mut seen = Steps::default();
    let started = Instant::now();
    let limit = Duration::from_secs_f64(options.seconds);
    let count = std::cell::Cell::new(0);
    let done = || {
        count.set(count.get() + 1);
        started.elapsed() > limit && count.get() > 5
    };
    Trainer::new(task, config, &options.device)?.train(&mut seen, &done)?;
    let Steps { steps, rounds } = seen;
    let seconds = |times: &[Instant]| times.windows(2).map(|w| (w[1] - w[0]).as_secs_f64()).collect::<Vec<_>>();
    let samples = task.experience(config)?.map(|e| e.samples() as f64);
    let round = samples.filter(|_| rounds.len() > 2).map(|n| n / median(seconds(&rounds)));
    Ok(Trained { step: median(seconds(&steps[steps.len() / 10..])), round })
}

/// Median seconds of making a step's batches of new samples. With `train.prefetch` it happens beside the steps.
fn data_seconds<T: Recipe>(task: &T, config: &ConfigOf<T>, options: &Options) -> anyhow::Result<f64> {
    let train = &config.train;
    let mut batches = Batches::new(task.samples(Split::Train), train.batch_size, train.seed);
    let (started, mut times) = (Instant::now(), vec![]);
    while started.elapsed().as_secs_f64() < options.seconds / 4. || times.len() < 5 {
        let start = Instant::now();
        for i in 0..train.accumulate {
            task.batch(Split::Train, batches.at(times.len() as u64 * train.accumulate + i))?;
        }
        times.push(start.elapsed().as_secs_f64());
    }
    Ok(median(times))
}

/// Median seconds of a forward pass of so many samples.
fn infer_seconds<T: Recipe>(task: &T, config: &ConfigOf<T>, options: &Options, samples: usize) -> anyhow::Result<f64> {
    let params = Params::init(config.train.seed, &options.device);
    let model = task.define(&config.model, params.eval_builder())?;
    let there = task.samples(Split::Train).max(1);
    let batch = task.batch(Split::Train, &(0..samples).map(|i| i % there).collect::<Vec<_>>())?;
    let started = Instant::now();
    let mut times = vec![];
    while started.elapsed().as_secs_f64() < options.seconds / 2. || times.len() < 5 {
        let start = Instant::now();
        let y = autocast(config.train.compute(), || task.forward(&model, &batch, Mode::Eval))?;
        y.flatten_all()?.to_device(&Device::Cpu)?;
        times.push(start.elapsed().as_secs_f64());
    }
    Ok(median(times))
}

pub(crate) fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times.get(times.len() / 2).copied().unwrap_or(f64::NAN)
}

/// The best of several large products of `dtype`, in floating-point operations a second.
fn matmul_peak(device: &Device, dtype: DType) -> anyhow::Result<f64> {
    // What fills the device.
    let n = if device.is_cpu() { 1536 } else { 8192 };
    let in_bf16 = device.is_cpu() && dtype == DType::BF16;
    let a = Tensor::ones((n, n), if in_bf16 { DType::F32 } else { dtype }, device)?;
    // candle has no fast product of bf16 there.
    let product = || match in_bf16 {
        true => autocast(dtype, || linear(&a, &a, None, Activation::Identity)),
        false => a.matmul(&a),
    };
    let mut best = f64::INFINITY;
    for _ in 0..8 {
        device.synchronize()?;
        let start = Instant::now();
        product()?;
        device.synchronize()?;
        best = best.min(start.elapsed().as_secs_f64());
    }
    Ok(2. * (n as f64).powi(3) / best)
}

/// Lets the peak of memory be counted anew.
fn reset_peak_memory(device: &Device) {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(_) => gpu_memory::reset(device),
        // Where that is not possible the peak includes what came before.
        _ => drop(std::fs::write("/proc/self/clear_refs", "5")),
    }
}

/// The peak of memory in MB (10⁶ bytes): that of a CUDA device, elsewhere the process's, where Linux tells it.
fn peak_memory_mb(device: &Device) -> Option<f64> {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(_) => Some(gpu_memory::peak(device)? as f64 / 1e6),
        _ => process_peak_mb(),
    }
}

fn process_peak_mb() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    let kib: f64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024. / 1e6)
}

/// What the driver counts of the memory that tensors are in.
#[cfg(feature = "cuda")]
mod gpu_memory {
    use candle_core::Device;
    use candle_core::cuda_backend::cudarc::driver::sys::{self, CUmemPool_attribute_enum::*, CUresult};

    const PEAK: sys::CUmemPool_attribute = CU_MEMPOOL_ATTR_USED_MEM_HIGH;

    fn pool(device: &Device) -> Option<sys::CUmemoryPool> {
        let Device::Cuda(cuda) = device else { return None };
        let (id, mut pool) = (cuda.cuda_stream().context().cu_device(), std::ptr::null_mut());
        // SAFETY: the device is open, and the pool is written before it is read.
        let found = unsafe { sys::cuDeviceGetDefaultMemPool(&raw mut pool, id) };
        (found == CUresult::CUDA_SUCCESS).then_some(pool)
    }

    pub(super) fn reset(device: &Device) {
        let Some(pool) = pool(device) else { return };
        let mut zero = 0u64;
        // SAFETY: this attribute is a number of 64 bits, and 0 is what resets it.
        unsafe { sys::cuMemPoolSetAttribute(pool, PEAK, (&raw mut zero).cast()) };
    }

    pub(super) fn peak(device: &Device) -> Option<u64> {
        let mut bytes = 0u64;
        // SAFETY: this attribute is a number of 64 bits.
        let got = unsafe { sys::cuMemPoolGetAttribute(pool(device)?, PEAK, (&raw mut bytes).cast()) };
        (got == CUresult::CUDA_SUCCESS).then_some(bytes)
    }
}
