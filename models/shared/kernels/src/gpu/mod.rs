//! Kernels on CUDA and Metal: one source for both, in the language of `dialect.h`, and one way to launch it. A [`Backend`]
//! of another crate can stand in for a GPU, as `zoo-kernels-emulator` does in tests.

#[cfg(feature = "cuda")]
mod cuda;
#[cfg(feature = "metal")]
mod metal;

use std::cell::RefCell;
use std::sync::Arc;

use candle_core::backend::BackendStorage;
use candle_core::op::BackpropOp;
use candle_core::{DType, Device, Layout, Result, Shape, Storage, Tensor, bail};

use crate::cpu::{Memory, simd};

/// The language of kernels in terms of CUDA and Metal.
pub const DIALECT: &str = include_str!("dialect.h");

/// Threads of a group where each takes an element of its own.
pub const THREADS: usize = 256;

/// The kernels of an op.
#[derive(Clone, Copy, Debug)]
pub struct Module {
    /// Their file without its ending.
    pub name: &'static str,
    /// In the language of `dialect.h`.
    pub source: &'static str,
    /// Names and texts of what nvcc made of the files of that crate; empty without the feature `cuda`.
    pub ptx: &'static [(&'static str, &'static str)],
}

/// The [`Module`] of a file beside the op, `name.cu`.
#[cfg(not(feature = "cuda"))]
#[macro_export]
macro_rules! module {
    ($name:literal) => {
        $crate::gpu::Module { name: $name, source: include_str!(concat!($name, ".cu")), ptx: &[] }
    };
}

/// The [`Module`] of a file beside the op, `name.cu`. The crate includes the table that `zoo_kernels_build::compile` wrote:
/// `include!(concat!(env!("OUT_DIR"), "/ptx.rs"));` at its root.
#[cfg(feature = "cuda")]
#[macro_export]
macro_rules! module {
    ($name:literal) => {
        $crate::gpu::Module { name: $name, source: include_str!(concat!($name, ".cu")), ptx: crate::PTX }
    };
}

const SUM: Module = module!("sum");

/// Rows that a group sums, and how many such groups there are.
pub fn row_chunks(rows: usize) -> (usize, usize) {
    let chunk = rows.div_ceil(128).max(64);
    (chunk, rows.div_ceil(chunk))
}

/// What a kernel is given.
pub enum Arg<'a, 'b> {
    /// An array to read.
    Read(Slice<'a>),
    /// An array to write.
    Write(&'a mut Array),
    /// The same one as several arguments, which begin at these elements of it.
    WriteFrom(&'a mut Array, &'a [usize]),
    /// A tensor's own memory, to change.
    Change(&'a mut Memory<'b>),
    /// A number.
    Count(usize),
    /// Bits that the kernel knows how to read.
    Word(u32),
    /// A number.
    Float(f64),
    /// The fields of a struct, of 32 bits each.
    Fields(&'a [u32]),
}

/// How many threads run.
#[derive(Clone, Copy, Debug)]
pub struct Grid {
    /// Groups along x and y.
    pub groups: [usize; 2],
    /// Threads of a group: a multiple of 32 up to 1024.
    pub threads: usize,
}

impl Grid {
    /// A thread for each of `n` elements.
    pub fn each(n: usize) -> Self {
        Self { groups: [n.div_ceil(THREADS), 1], threads: THREADS }
    }

    /// A group for each of `rows`, whose threads share `width` elements.
    pub fn rows(rows: usize, width: usize) -> Self {
        Self { groups: [rows, 1], threads: (width.div_ceil(4).div_ceil(32) * 32).clamp(32, 512) }
    }
}

/// Memory on a device that kernels write.
pub struct Array {
    storage: Storage,
    len: usize,
}

impl Array {
    /// All of it.
    pub fn slice(&self) -> Slice<'_> {
        Slice { storage: &self.storage, start: 0, len: self.len }
    }

    /// Where its elements are, from the first.
    pub fn storage(&self) -> &Storage {
        &self.storage
    }

    /// The same, to write.
    pub fn storage_mut(&mut self) -> &mut Storage {
        &mut self.storage
    }

    /// The same, to keep.
    pub fn into_storage(self) -> Storage {
        self.storage
    }

    /// A tensor without a history.
    pub fn into_tensor(self, shape: impl Into<Shape>) -> Tensor {
        Tensor::from_storage(self.storage, shape, BackpropOp::none(), false)
    }
}

/// Elements on a device, in a row.
#[derive(Clone, Copy)]
pub struct Slice<'a> {
    /// Where they are.
    pub storage: &'a Storage,
    /// The first one's place in it.
    pub start: usize,
    /// How many there are.
    pub len: usize,
}

impl<'a> Slice<'a> {
    pub(crate) fn of(storage: &'a Storage, layout: &Layout) -> Result<Self> {
        let Some((start, end)) = layout.contiguous_offsets() else { bail!("expected contiguous data") };
        Ok(Self { storage, start, len: end - start })
    }
}

/// A matrix in a product: its elements by rows, or those of its transpose.
#[derive(Clone, Copy)]
pub struct Factor<'a> {
    slice: Slice<'a>,
    transposed: bool,
}

impl<'a> Factor<'a> {
    /// By rows.
    pub fn rows(slice: Slice<'a>) -> Self {
        Self { slice, transposed: false }
    }

    /// The transpose of what lies there by rows.
    pub fn transposed(slice: Slice<'a>) -> Self {
        Self { slice, transposed: true }
    }

    fn layout(&self, rows: usize, columns: usize) -> Layout {
        let strides = if self.transposed { vec![1, rows] } else { vec![columns, 1] };
        Layout::new((rows, columns).into(), strides, self.slice.start)
    }
}

/// Memory and launches of a device.
pub trait Backend: Send + Sync {
    /// Memory for `len` elements that nobody has written yet.
    ///
    /// # Errors
    /// A type that is not f32, bf16, f16 or i64; what the device says.
    fn alloc(&self, dtype: DType, len: usize) -> Result<Storage>;

    /// Whether `dialect.h` defines TENSOR_CORES here for elements of 16 bits.
    fn tensor_cores(&self) -> bool {
        true
    }

    /// Runs kernel `name` of `module`, compiled for elements of `dtype`, with `args` in the order of its parameters.
    ///
    /// # Errors
    /// What the compiler or the device says.
    fn launch(&self, module: &Module, name: &str, dtype: DType, grid: Grid, args: &mut [Arg]) -> Result<()>;
}

/// A device that runs kernels, and the type of the elements at hand.
#[derive(Clone)]
pub struct Gpu {
    device: Arc<dyn Backend>,
    dtype: DType,
}

impl Gpu {
    /// The device that all of `inputs` are on, if it runs kernels and they have one type of f32, bf16 and f16 (beside
    /// integers).
    pub fn of(inputs: &[&Tensor]) -> Option<Self> {
        let mut types = inputs.iter().map(|t| t.dtype()).filter(DType::is_float);
        let dtype = types.next()?;
        let same = inputs.iter().all(|t| t.device().same_device(inputs[0].device()));
        if !same || types.any(|t| t != dtype) || !matches!(dtype, DType::F32 | DType::BF16 | DType::F16) {
            return None;
        }
        Some(Self { device: backend(inputs[0].device())?, dtype })
    }

    /// Whether kernels will compute on what `x` is on.
    pub fn runs(x: &Tensor) -> bool {
        simd::fused() && Self::of(&[x]).is_some()
    }

    /// Whether kernels for tensor cores exist for the type at hand.
    pub fn tensor_cores(&self) -> bool {
        self.dtype != DType::F32 && self.device.tensor_cores()
    }

    /// The same device, for elements of `dtype`.
    pub fn of_type(&self, dtype: DType) -> Self {
        Self { dtype, ..self.clone() }
    }

    /// The type at hand.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Elements of the type at hand as floats.
    pub fn to_floats(&self, x: Slice) -> Result<Array> {
        let mut y = self.floats(x.len)?;
        let args = &mut [Arg::Read(x), Arg::Write(&mut y), Arg::Count(x.len)];
        self.launch(&SUM, "to_floats", Grid::each(x.len), args)?;
        Ok(y)
    }

    /// Floats as elements of the type at hand.
    pub fn from_floats(&self, x: Slice) -> Result<Array> {
        let mut y = self.array(x.len)?;
        let args = &mut [Arg::Read(x), Arg::Write(&mut y), Arg::Count(x.len)];
        self.launch(&SUM, "from_floats", Grid::each(x.len), args)?;
        Ok(y)
    }

    /// Room for `len` elements of the type at hand.
    pub fn array(&self, len: usize) -> Result<Array> {
        self.array_of(self.dtype, len)
    }

    /// Room for `len` floats, such as sums.
    pub fn floats(&self, len: usize) -> Result<Array> {
        self.array_of(DType::F32, len)
    }

    /// Room for `len` elements of `dtype`.
    pub fn array_of(&self, dtype: DType, len: usize) -> Result<Array> {
        let storage = self.device.alloc(dtype, len)?;
        Ok(Array { storage, len })
    }

    /// `scale` times the sum of each row of `parts` (rows, n), floats.
    pub fn totals(&self, parts: &Array, rows: usize, scale: f64) -> Result<Array> {
        let n = parts.len / rows.max(1);
        let mut totals = self.array(rows)?;
        let args = &mut [Arg::Read(parts.slice()), Arg::Write(&mut totals), Arg::Count(n), Arg::Float(scale)];
        self.launch(&SUM, "total", Grid { groups: [rows, 1], threads: THREADS }, args)?;
        Ok(totals)
    }

    /// The sums of the columns of `x` (rows, width).
    pub fn column_sums(&self, x: Slice, width: usize) -> Result<Array> {
        let rows = x.len / width.max(1);
        let (chunk, chunks) = row_chunks(rows);
        let (mut sums, mut totals) = (self.floats(chunks * width)?, self.array(width)?);
        let args = &mut [Arg::Read(x), Arg::Write(&mut sums), Arg::Count(rows), Arg::Count(width), Arg::Count(chunk)];
        self.launch(&SUM, "column_sums", Grid { groups: [width.div_ceil(32), chunks], threads: 256 }, args)?;
        let args = &mut [Arg::Read(sums.slice()), Arg::Write(&mut totals), Arg::Count(width), Arg::Count(chunks)];
        self.launch(&SUM, "column_totals", Grid::each(width), args)?;
        Ok(totals)
    }

    /// Adds `bias` to each row of `z`.
    pub fn add_bias(&self, z: &mut Array, bias: Slice) -> Result<()> {
        let n = z.len;
        let args = &mut [Arg::Write(z), Arg::Read(bias), Arg::Count(n), Arg::Count(bias.len)];
        self.launch(&SUM, "add_bias", Grid::each(n), args)
    }

    /// A (m, k) · B (k, n), by the device's library.
    pub fn matmul(&self, [m, n, k]: [usize; 3], a: Factor, b: Factor) -> Result<Array> {
        if m * n * k == 0 {
            return self.zeros(m * n);
        }
        let size = (1, m, n, k);
        let (la, lb) = (a.layout(m, k), b.layout(k, n));
        let storage = match (a.slice.storage, b.slice.storage) {
            (Storage::Cpu(a), Storage::Cpu(b)) => Storage::Cpu(a.matmul(b, size, &la, &lb)?),
            (Storage::Cuda(a), Storage::Cuda(b)) => Storage::Cuda(a.matmul(b, size, &la, &lb)?),
            (Storage::Metal(a), Storage::Metal(b)) => Storage::Metal(a.matmul(b, size, &la, &lb)?),
            _ => bail!("factors on different devices"),
        };
        Ok(Array { storage, len: m * n })
    }

    /// `len` zeros of the type at hand.
    pub fn zeros(&self, len: usize) -> Result<Array> {
        let mut zeros = self.array(len)?;
        let args = &mut [Arg::Write(&mut zeros), Arg::Count(len), Arg::Float(0.)];
        self.launch(&SUM, "fill", Grid::each(len), args)?;
        Ok(zeros)
    }

    /// Runs kernel `name` of `module` with `args`, in the order of its parameters. Nothing happens for an empty grid.
    ///
    /// # Errors
    /// What the device says; a size that does not fit 32 bits.
    pub fn launch(&self, module: &Module, name: &str, grid: Grid, args: &mut [Arg]) -> Result<()> {
        if grid.groups.contains(&0) {
            return Ok(());
        }
        for arg in args.iter() {
            let n = match arg {
                Arg::Count(n) => *n,
                Arg::Read(slice) => slice.len,
                Arg::Write(array) | Arg::WriteFrom(array, _) => array.len,
                Arg::Change(memory) => memory.len,
                Arg::Word(_) | Arg::Float(_) | Arg::Fields(_) => 0,
            };
            if u32::try_from(n).is_err() {
                bail!("{name}: {n} elements, more than its numbers can count")
            }
        }
        self.device.launch(module, name, self.dtype, grid, args)
    }
}

thread_local! {
    static STAND_IN: RefCell<Option<Arc<dyn Backend>>> = const { RefCell::new(None) };
}

/// Runs `f` with the ops that this thread calls on tensors on the CPU by their GPU kernels, on `backend` (for tests).
pub fn with_stand_in<R>(backend: Arc<dyn Backend>, f: impl FnOnce() -> R) -> R {
    struct Restore(Option<Arc<dyn Backend>>);
    impl Drop for Restore {
        fn drop(&mut self) {
            STAND_IN.set(self.0.take());
        }
    }
    let _restore = Restore(STAND_IN.replace(Some(backend)));
    f()
}

fn backend(device: &Device) -> Option<Arc<dyn Backend>> {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(device) => Some(Arc::new(device.clone())),
        #[cfg(feature = "metal")]
        Device::Metal(device) => Some(Arc::new(device.clone())),
        Device::Cpu => STAND_IN.with_borrow(Clone::clone),
        _ => None,
    }
}

/// What [`DIALECT`] calls `dtype`.
pub fn type_number(dtype: DType) -> u32 {
    match dtype {
        DType::BF16 => 2,
        DType::F16 => 3,
        _ => 1,
    }
}
