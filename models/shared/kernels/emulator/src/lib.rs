#![doc = include_str!("../README.md")]

use std::collections::HashMap;
use std::ffi::c_void;
use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, OnceLock};

use candle_core::{CpuStorage, DType, Device, Error, Result, Storage, Tensor, bail};
use half::{bf16, f16};
use zoo_kernels::Op;
use zoo_kernels::check::{Expected, GPU_TYPES};
use zoo_kernels::cpu::{Memory, StorageMut};
use zoo_kernels::gpu::{Arg, Array, Backend, DIALECT, Grid, Module, Slice, type_number, with_stand_in};

/// Runs `f` with the ops that this thread calls on tensors on the CPU by their GPU kernels; the threads of a group take their
/// turns in order, or `backwards`.
pub fn with_emulation<R>(backwards: bool, f: impl FnOnce() -> R) -> R {
    with_stand_in(Arc::new(Emulated { backwards }), f)
}

/// [`zoo_kernels::check::check`], and the same of the GPU kernels on the CPU, with the threads of a group in two orders.
///
/// # Errors
/// Names the first output or gradient that is off, with its error and what was allowed.
pub fn check<O: Op + Clone>(op: &O, inputs: &[Tensor], wants: &[bool]) -> Result<()> {
    zoo_kernels::check::check(op, inputs, wants)?;
    if !ready() {
        return Ok(());
    }
    for dtype in GPU_TYPES {
        let expected = Expected::of(op, inputs, wants, dtype)?;
        // Kernels of their own for 16 bits are the same for both types.
        let orders: &[bool] = match dtype {
            DType::BF16 => &[false],
            DType::F16 => &[true],
            _ => &[false, true],
        };
        for &backwards in orders {
            let place = format!("{} by its GPU kernel on the CPU in {dtype:?}", op.name());
            with_emulation(backwards, || expected.compare(&place, op, &Device::Cpu))?;
        }
    }
    Ok(())
}

/// The C++ compiler: the environment's `CXX`, or `c++`. None where there is none.
fn compiler() -> Option<&'static str> {
    static COMPILER: OnceLock<Option<String>> = OnceLock::new();
    let find = || {
        let name = std::env::var("CXX").unwrap_or_else(|_| "c++".into());
        let works = Command::new(&name).arg("--version").output().is_ok_and(|o| o.status.success());
        works.then_some(name)
    };
    COMPILER.get_or_init(find).as_deref()
}

/// Whether there is a compiler; says on stdout that a test is skipped if not, and adds a line to the file that `ZOO_SKIPPED` names.
///
/// # Panics
/// There is none, and `ZOO_REQUIRE` asks for the `compiler` or for `all`.
pub fn ready() -> bool {
    if compiler().is_some() {
        return true;
    }
    let why = "no C++ compiler (CXX or c++) to run GPU kernels on the CPU with";
    let required = std::env::var("ZOO_REQUIRE").unwrap_or_default();
    assert!(!required.split(',').any(|r| matches!(r.trim(), "all" | "compiler")), "ZOO_REQUIRE={required}: {why}");
    println!("skipped: {why}");
    if let Some(path) = std::env::var_os("ZOO_SKIPPED") {
        let file = std::fs::OpenOptions::new().append(true).create(true).open(path);
        let written = file.and_then(|mut file| writeln!(file, "{:?}: compiler: {why}", std::thread::current().name()));
        written.expect("the file that ZOO_SKIPPED names");
    }
    false
}

/// Elements that are NaN until they are written.
fn alloc(dtype: DType, len: usize) -> Result<CpuStorage> {
    Ok(match dtype {
        DType::F32 => CpuStorage::F32(vec![f32::NAN; len]),
        DType::BF16 => CpuStorage::BF16(vec![bf16::NAN; len]),
        DType::F16 => CpuStorage::F16(vec![f16::NAN; len]),
        DType::I64 => CpuStorage::I64(vec![i64::MIN; len]),
        other => bail!("no arrays of {other:?}"),
    })
}

fn address(slice: &Slice) -> Result<*const c_void> {
    fn at<T>(data: &[T], slice: &Slice) -> *const c_void {
        data[slice.start()..slice.start() + slice.count()].as_ptr().cast()
    }
    Ok(match slice.storage() {
        Storage::Cpu(CpuStorage::F32(data)) => at(data, slice),
        Storage::Cpu(CpuStorage::BF16(data)) => at(data, slice),
        Storage::Cpu(CpuStorage::F16(data)) => at(data, slice),
        Storage::Cpu(CpuStorage::I64(data)) => at(data, slice),
        _ => bail!("expected numbers on the CPU"),
    })
}

fn address_mut(array: &mut Array, start: usize) -> Result<*const c_void> {
    fn at<T>(data: &mut [T], start: usize) -> *const c_void {
        data[start..].as_mut_ptr().cast_const().cast()
    }
    // SAFETY: it is written in place.
    Ok(match unsafe { array.storage_mut() } {
        Storage::Cpu(CpuStorage::F32(data)) => at(data, start),
        Storage::Cpu(CpuStorage::BF16(data)) => at(data, start),
        Storage::Cpu(CpuStorage::F16(data)) => at(data, start),
        Storage::Cpu(CpuStorage::I64(data)) => at(data, start),
        _ => bail!("expected numbers on the CPU"),
    })
}

/// The CPU in the place of a GPU.
struct Emulated {
    /// Whether the threads of a group run from the last to the first.
    backwards: bool,
}

// SAFETY: memory is for as many elements as asked for.
unsafe impl Backend for Emulated {
    fn alloc(&self, dtype: DType, len: usize) -> Result<Storage> {
        alloc(dtype, len).map(Storage::Cpu)
    }

    unsafe fn launch(&self, module: &Module, name: &str, dtype: DType, grid: Grid, args: &mut [Arg]) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { launch(module, name, dtype, grid, args, self.backwards) }
    }
}

type Library = &'static libloading::Library;

/// The compiled module: once a process, each beside the others.
fn library(module: &Module, dtype: DType) -> Result<Library> {
    type Compiled = OnceLock<std::result::Result<Library, String>>;
    type All = HashMap<(&'static str, DType), Arc<Compiled>>;
    static LIBRARIES: Mutex<Option<All>> = Mutex::new(None);
    let mut libraries = LIBRARIES.lock().unwrap_or_else(|e| e.into_inner());
    let library = libraries.get_or_insert_default().entry((module.name, dtype)).or_default().clone();
    drop(libraries);
    match library.get_or_init(|| compile(module, dtype).map_err(|e| e.to_string())) {
        Ok(library) => Ok(library),
        Err(e) => bail!("{e}"),
    }
}

fn compile(module: &Module, dtype: DType) -> Result<Library> {
    let Some(compiler) = compiler() else { bail!("no C++ compiler") };
    let folder = tempfile::tempdir().map_err(Error::wrap)?;
    let path = folder.path().join("kernels.so");
    let mut child = Command::new(compiler)
        .args(["-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-Wno-unused-parameter", "-Wno-unused-function"])
        // The check that it adds to longjmp takes another stack for a mistake.
        .arg("-U_FORTIFY_SOURCE")
        .args(["-ffp-contract=off", "-shared", "-fPIC", "-x", "c++", "-", "-o"])
        .arg(&path)
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let source = format!(
        "#define TYPE {}\n{}\n{}\n#line 1 \"{}.cu\"\n{}",
        type_number(dtype),
        include_str!("emulator.h"),
        DIALECT,
        module.name,
        module.source
    );
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(source.as_bytes())?;
    }
    let output = child.wait_with_output()?;
    if !output.status.success() {
        bail!("{}: {}", module.name, String::from_utf8_lossy(&output.stderr))
    }
    // SAFETY: the library is our own and has no initialisers but those of C++'s headers.
    let library = unsafe { libloading::Library::new(&path) }.map_err(Error::wrap)?;
    Ok(Box::leak(Box::new(library)))
}

/// # Safety
/// As [`Gpu::launch`](zoo_kernels::gpu::Gpu::launch).
unsafe fn launch(
    module: &Module,
    name: &str,
    dtype: DType,
    grid: Grid,
    args: &mut [Arg],
    backwards: bool,
) -> Result<()> {
    type Launch = unsafe extern "C" fn(*const c_void, *mut *const c_void, *const u32, u32, i32) -> i32;
    enum Value<'a> {
        Pointer(*const c_void),
        Word(u32),
        Float(f32),
        Fields(&'a [u32]),
    }
    let library = library(module, dtype)?;
    let mut values = vec![];
    for arg in args.iter_mut() {
        let value = match arg {
            Arg::Read(slice) => Value::Pointer(address(slice)?),
            Arg::Write(array) => Value::Pointer(address_mut(array, 0)?),
            Arg::WriteFrom(array, starts) => {
                for start in starts.iter() {
                    values.push(Value::Pointer(address_mut(array, *start)?));
                }
                continue;
            }
            Arg::Change(Memory { storage: StorageMut::Cpu(CpuStorage::F32(data)), start, .. }) => {
                Value::Pointer(data[*start..].as_mut_ptr().cast_const().cast())
            }
            Arg::Change(_) => bail!("{name}: expected f32 on the CPU"),
            Arg::Count(n) => Value::Word(*n as u32),
            Arg::Word(w) => Value::Word(*w),
            Arg::Float(f) => Value::Float(*f as f32),
            Arg::Fields(words) => Value::Fields(words),
        };
        values.push(value);
    }

    let mut pointers: Vec<*const c_void> = values
        .iter()
        .map(|v| match v {
            Value::Pointer(p) => std::ptr::from_ref(p).cast(),
            Value::Word(w) => std::ptr::from_ref(w).cast(),
            Value::Float(f) => std::ptr::from_ref(f).cast(),
            Value::Fields(words) => words.as_ptr().cast(),
        })
        .collect();
    let groups = [grid.groups[0] as u32, grid.groups[1] as u32, 1];
    // SAFETY: the symbols have these types by the macros of emulator.h; the arguments outlive the call, and match the kernel's
    // parameters as the caller promises.
    let status = unsafe {
        let kernel = library.get::<unsafe extern "C" fn()>(name).map_err(Error::wrap)?;
        let run = library.get::<Launch>("zoo_launch").map_err(Error::wrap)?;
        let kernel: *const c_void = *kernel as *const c_void;
        run(kernel, pointers.as_mut_ptr(), groups.as_ptr(), grid.threads as u32, backwards.into())
    };
    match status {
        0 => Ok(()),
        _ => bail!("{}'s {name}: a barrier that not all threads reach", module.name),
    }
}

#[cfg(test)]
mod tests {
    use zoo_kernels::View;
    use zoo_kernels::gpu::{Gpu, THREADS};

    use super::*;

    const PROBE: Module = Module {
        name: "probe",
        ptx: &[],
        source: r"
            // Each thread gets what its neighbour wrote.
            KERNEL(neighbours, WRITE(float, y, 0), VALUE(uint, with_barrier, 1)) {
                SHARED(float, v, 1024);
                v[THREAD] = THREAD;
                if (with_barrier)
                    BARRIER();
                y[THREAD] = v[(THREAD + 1) % THREADS];
            }
            KERNEL(half_of_a_barrier, WRITE(float, y, 0)) {
                if (THREAD < 32)
                    BARRIER();
                y[THREAD] = 1;
            }
            KERNEL(sums, READ(float, x, 0), WRITE(float, y, 1)) {
                SUMS;
                const float sum = group_sum(x[THREAD]), max = group_max(x[THREAD]);
                y[THREAD] = THREAD % 2 ? sum : max;
            }
            KERNEL(rounded, READ(float, x, 0), WRITE(T, y, 1)) {
                y[THREAD] = T(x[THREAD]);
            }
        ",
    };

    fn gpu(dtype: DType, backwards: bool) -> Result<Gpu> {
        let of = Tensor::zeros(1, dtype, &Device::Cpu)?;
        with_emulation(backwards, || Gpu::of(&[&of])).ok_or_else(|| Error::Msg("no emulated GPU".into()))
    }

    fn values(array: Array) -> Vec<f32> {
        match array.into_storage() {
            Storage::Cpu(CpuStorage::F32(data)) => data,
            Storage::Cpu(CpuStorage::BF16(data)) => data.iter().map(|v| v.to_f32()).collect(),
            Storage::Cpu(CpuStorage::F16(data)) => data.iter().map(|v| v.to_f32()).collect(),
            _ => vec![],
        }
    }

    fn one_group(threads: usize) -> Grid {
        Grid { groups: [1, 1], threads }
    }

    #[test]
    fn a_missing_barrier_shows_in_one_of_the_orders_and_half_a_barrier_is_an_error() -> Result<()> {
        if !ready() {
            return Ok(());
        }
        let run = |with_barrier: u32, backwards| {
            let gpu = gpu(DType::F32, backwards)?;
            let mut y = gpu.floats(64)?;
            let args = &mut [Arg::Write(&mut y), Arg::Word(with_barrier)];
            // SAFETY: the arrays have an element for each thread.
            unsafe { gpu.launch(&PROBE, "neighbours", one_group(64), args)? };
            Ok::<_, Error>(values(y))
        };
        let right: Vec<f32> = (0..64).map(|i| ((i + 1) % 64) as f32).collect();
        assert_eq!(run(1, false)?, right);
        assert_eq!(run(1, true)?, right);
        assert!(run(0, false)? != right && run(0, true)? != right);
        let gpu = gpu(DType::F32, false)?;
        let mut y = gpu.floats(64)?;
        // SAFETY: the array has an element for each thread.
        let stuck = unsafe { gpu.launch(&PROBE, "half_of_a_barrier", one_group(64), &mut [Arg::Write(&mut y)]) };
        assert!(stuck.is_err_and(|e| e.to_string().contains("a barrier that not all threads reach")));
        Ok(())
    }

    #[test]
    fn every_thread_of_a_group_gets_its_sum_and_its_largest_value() -> Result<()> {
        if !ready() {
            return Ok(());
        }
        let gpu = gpu(DType::F32, false)?;
        for threads in [32, 96, THREADS, 1024] {
            let x: Vec<f32> = (0..threads).map(|i| ((7 * i) % threads) as f32).collect();
            let x = Tensor::new(x, &Device::Cpu)?;
            let mut y = gpu.floats(threads)?;
            let view = View::new(&x);
            let x = view.slice()?;
            // SAFETY: the arrays have an element for each thread.
            unsafe { gpu.launch(&PROBE, "sums", one_group(threads), &mut [Arg::Read(x), Arg::Write(&mut y)])? };
            let (sum, max) = ((threads * (threads - 1) / 2) as f32, (threads - 1) as f32);
            assert!(values(y).iter().enumerate().all(|(i, v)| *v == if i % 2 == 1 { sum } else { max }));
        }
        Ok(())
    }

    #[test]
    fn narrow_types_are_rounded_as_elsewhere() -> Result<()> {
        if !ready() {
            return Ok(());
        }
        let x: Vec<f32> = (0..1024u32).map(|i| f32::from_bits(i.wrapping_mul(0x0041_0043) ^ 0x3f80_0000)).collect();
        let x: Vec<f32> = x.into_iter().map(|v| if v.is_finite() { v % 1e4 } else { f32::INFINITY }).collect();
        for dtype in [DType::BF16, DType::F16] {
            let gpu = gpu(dtype, false)?;
            let mut y = gpu.array(1024)?;
            let floats = Tensor::new(x.clone(), &Device::Cpu)?;
            let view = View::new(&floats);
            let args = &mut [Arg::Read(view.slice()?), Arg::Write(&mut y)];
            // SAFETY: the arrays have an element for each thread.
            unsafe { gpu.launch(&PROBE, "rounded", one_group(1024), args)? };
            let rounded =
                |v: &f32| if dtype == DType::F16 { f16::from_f32(*v).to_f32() } else { bf16::from_f32(*v).to_f32() };
            assert_eq!(values(y), x.iter().map(rounded).collect::<Vec<_>>());
        }
        Ok(())
    }
}
