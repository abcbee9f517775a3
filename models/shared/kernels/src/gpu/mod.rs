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
    ///
    /// # Safety
    /// What stands there afterwards has as many elements of the same type.
    pub unsafe fn storage_mut(&mut self) -> &mut Storage {
        &mut self.storage
    }

    /// How many elements it has.
    pub fn count(&self) -> usize {
        self.len
    }

    /// The same, to keep.
    pub fn into_storage(self) -> Storage {
        self.storage
    }

    /// A tensor without a history.
    ///
    /// # Errors
    /// A shape of another number of elements.
    pub fn into_tensor(self, shape: impl Into<Shape>) -> Result<Tensor> {
        let shape = shape.into();
        if shape.elem_count() != self.len {
            bail!("{} elements do not make a tensor of {:?}", self.len, shape.dims())
        }
        Ok(Tensor::from_storage(self.storage, shape, BackpropOp::none(), false))
    }
}

/// Elements on a device, in a row.
#[derive(Clone, Copy)]
pub struct Slice<'a> {
    storage: &'a Storage,
    start: usize,
    len: usize,
}

impl<'a> Slice<'a> {
    pub(crate) fn of(storage: &'a Storage, layout: &Layout) -> Result<Self> {
        let Some((start, end)) = layout.contiguous_offsets() else { bail!("expected contiguous data") };
        Ok(Self { storage, start, len: end - start })
    }

    /// Where they are.
    pub fn storage(&self) -> &'a Storage {
        self.storage
    }

    /// The first one's place in it.
    pub fn start(&self) -> usize {
        self.start
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.len
    }

    /// Those from element `from` on.
    ///
    /// # Errors
    /// There are fewer.
    pub fn after(self, from: usize) -> Result<Self> {
        match self.len.checked_sub(from) {
            Some(len) => Ok(Self { start: self.start + from, len, ..self }),
            None => bail!("element {from} of {}", self.len),
        }
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

    fn layout(&self, rows: usize, columns: usize) -> Result<Layout> {
        if rows.checked_mul(columns).is_none_or(|n| n > self.slice.len) {
            bail!("a factor of {rows} x {columns} from {} elements", self.slice.len)
        }
        let strides = if self.transposed { vec![1, rows] } else { vec![columns, 1] };
        Ok(Layout::new((rows, columns).into(), strides, self.slice.start))
    }
}

/// Memory and launches of a device.
///
/// # Safety
/// `alloc` returns memory for as many elements of the type as it was asked for.
pub unsafe trait Backend: Send + Sync {
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
    /// # Safety
    /// As [`Gpu::launch`].
    ///
    /// # Errors
    /// What the compiler or the device says.
    unsafe fn launch(&self, module: &Module, name: &str, dtype: DType, grid: Grid, args: &mut [Arg]) -> Result<()>;
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
        expect(x.storage, self.dtype)?;
        let mut y = self.floats(x.len)?;
        let args = &mut [Arg::Read(x), Arg::Write(&mut y), Arg::Count(x.len)];
        // SAFETY: both have as many elements as are counted, of the types that it reads and writes.
        unsafe { self.launch(&SUM, "to_floats", Grid::each(x.len), args)? };
        Ok(y)
    }

    /// Floats as elements of the type at hand.
    pub fn from_floats(&self, x: Slice) -> Result<Array> {
        expect(x.storage, DType::F32)?;
        let mut y = self.array(x.len)?;
        let args = &mut [Arg::Read(x), Arg::Write(&mut y), Arg::Count(x.len)];
        // SAFETY: both have as many elements as are counted, of the types that it reads and writes.
        unsafe { self.launch(&SUM, "from_floats", Grid::each(x.len), args)? };
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
        expect(&parts.storage, DType::F32)?;
        let n = parts.len / rows.max(1);
        let mut totals = self.array(rows)?;
        let args = &mut [Arg::Read(parts.slice()), Arg::Write(&mut totals), Arg::Count(n), Arg::Float(scale)];
        // SAFETY: `parts` has `rows` rows of n floats, and there is a total for each.
        unsafe { self.launch(&SUM, "total", Grid { groups: [rows, 1], threads: THREADS }, args)? };
        Ok(totals)
    }

    /// The sums of the columns of `x` (rows, width).
    pub fn column_sums(&self, x: Slice, width: usize) -> Result<Array> {
        expect(x.storage, self.dtype)?;
        let rows = x.len / width.max(1);
        let (chunk, chunks) = row_chunks(rows);
        let (mut sums, mut totals) = (self.floats(chunks * width)?, self.array(width)?);
        let args = &mut [Arg::Read(x), Arg::Write(&mut sums), Arg::Count(rows), Arg::Count(width), Arg::Count(chunk)];
        let grid = Grid { groups: [width.div_ceil(32), chunks], threads: 256 };
        // SAFETY: x has rows x width elements, and there is a sum for each chunk of the rows and each column.
        unsafe { self.launch(&SUM, "column_sums", grid, args)? };
        let args = &mut [Arg::Read(sums.slice()), Arg::Write(&mut totals), Arg::Count(width), Arg::Count(chunks)];
        // SAFETY: as before, and there is a total for each column.
        unsafe { self.launch(&SUM, "column_totals", Grid::each(width), args)? };
        Ok(totals)
    }

    /// Adds `bias` to each row of `z`.
    pub fn add_bias(&self, z: &mut Array, bias: Slice) -> Result<()> {
        expect(&z.storage, self.dtype)?;
        expect(bias.storage, self.dtype)?;
        if bias.len == 0 && z.len > 0 {
            bail!("a bias of no element")
        }
        let n = z.len;
        let args = &mut [Arg::Write(z), Arg::Read(bias), Arg::Count(n), Arg::Count(bias.len)];
        // SAFETY: both have as many elements as are counted.
        unsafe { self.launch(&SUM, "add_bias", Grid::each(n), args) }
    }

    /// A (m, k) · B (k, n), by the device's library.
    pub fn matmul(&self, [m, n, k]: [usize; 3], a: Factor, b: Factor) -> Result<Array> {
        let Some(len) = m.checked_mul(n) else { bail!("a product of {m} x {n} elements") };
        if len == 0 || k == 0 {
            return self.zeros(len);
        }
        let size = (1, m, n, k);
        let (la, lb) = (a.layout(m, k)?, b.layout(k, n)?);
        let storage = match (a.slice.storage, b.slice.storage) {
            (Storage::Cpu(a), Storage::Cpu(b)) => Storage::Cpu(a.matmul(b, size, &la, &lb)?),
            (Storage::Cuda(a), Storage::Cuda(b)) => Storage::Cuda(a.matmul(b, size, &la, &lb)?),
            (Storage::Metal(a), Storage::Metal(b)) => Storage::Metal(a.matmul(b, size, &la, &lb)?),
            _ => bail!("factors on different devices"),
        };
        Ok(Array { storage, len })
    }

    /// `len` zeros of the type at hand.
    pub fn zeros(&self, len: usize) -> Result<Array> {
        let mut zeros = self.array(len)?;
        let args = &mut [Arg::Write(&mut zeros), Arg::Count(len), Arg::Float(0.)];
        // SAFETY: it has as many elements as are counted.
        unsafe { self.launch(&SUM, "fill", Grid::each(len), args)? };
        Ok(zeros)
    }

    /// Runs kernel `name` of `module` with `args`, in the order of its parameters. Nothing happens for an empty grid.
    ///
    /// # Safety
    /// The arguments are those that the kernel declares, of the types that it reads and writes, and each array has every element that the
    /// kernel touches for this grid and these numbers.
    ///
    /// # Errors
    /// What the device says; a size that does not fit 32 bits.
    pub unsafe fn launch(&self, module: &Module, name: &str, grid: Grid, args: &mut [Arg]) -> Result<()> {
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
        // SAFETY: the caller's promise.
        unsafe { self.device.launch(module, name, self.dtype, grid, args) }
    }
}

/// Refuses elements of another type.
fn expect(storage: &Storage, dtype: DType) -> Result<()> {
    match storage.dtype() {
        found if found == dtype => Ok(()),
        found => bail!("elements of {found:?}, expected {dtype:?}"),
    }
}

thread_local! {
    static STAND_IN: RefCell<Option<Arc<dyn Backend>>> = const { RefCell::new(None) };
}

/// Runs `f` with the ops that this thread calls on tensors on the CPU by their GPU kernels, on `backend` (for tests).
pub fn with_stand_in<R>(backend: Arc<dyn Backend>, f: impl FnOnce() -> R) -> R {
    standing_in(Some(backend), f)
}

/// Runs `f` without a stand-in.
pub(crate) fn apart<R>(f: impl FnOnce() -> R) -> R {
    match STAND_IN.with_borrow(Option::is_some) {
        true => standing_in(None, f),
        false => f(),
    }
}

fn standing_in<R>(backend: Option<Arc<dyn Backend>>, f: impl FnOnce() -> R) -> R {
    struct Restore(Option<Arc<dyn Backend>>);
    impl Drop for Restore {
        fn drop(&mut self) {
            STAND_IN.set(self.0.take());
        }
    }
    let _restore = Restore(STAND_IN.replace(backend));
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
