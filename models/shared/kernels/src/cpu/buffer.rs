//! Output memory that is written by several threads, and in-place access to the elements of tensors.

use candle_core::{CpuStorage, CudaStorage, InplaceOp1, Layout, MetalStorage, Result, Tensor, bail};
use std::cell::RefCell;
use std::sync::Mutex;

/// Memory for `n` f32 that starts uninitialised: zeroing it would cost as much as a small kernel.
/// Threads write disjoint parts through [`Buffer::pointer`].
pub struct Buffer {
    data: Vec<f32>,
    n: usize,
}

/// A pointer that may cross threads; whoever dereferences it answers for bounds and for disjointness.
#[derive(Clone, Copy)]
pub struct Pointer(*mut f32);

// SAFETY: the pointer itself is only a number; every dereference states why it is in bounds and not shared.
unsafe impl Send for Pointer {}
// SAFETY: as above.
unsafe impl Sync for Pointer {}

impl Pointer {
    /// The start of a slice.
    #[inline]
    pub fn of(slice: &mut [f32]) -> Self {
        Self(slice.as_mut_ptr())
    }

    /// The pointer to the element at `offset`, which may lie outside: only what is accessed has to be inside.
    #[inline]
    pub fn part(self, offset: usize) -> Self {
        Self(self.0.wrapping_add(offset))
    }

    /// The element at `offset`.
    ///
    /// # Safety
    /// `offset` lies within the buffer.
    pub unsafe fn at(self, offset: usize) -> *mut f32 {
        // SAFETY: the caller's promise.
        unsafe { self.0.add(offset) }
    }
}

impl Buffer {
    /// Memory for `n` elements.
    pub fn new(n: usize) -> Self {
        Self { data: Vec::with_capacity(n), n }
    }

    /// Where it starts.
    #[inline]
    pub fn pointer(&mut self) -> Pointer {
        Pointer(self.data.as_mut_ptr())
    }

    /// The finished vector.
    ///
    /// # Safety
    /// Every one of the `n` elements was written.
    pub unsafe fn finish(mut self) -> Vec<f32> {
        // SAFETY: capacity is at least n; the caller promises that n elements are initialised.
        unsafe { self.data.set_len(self.n) };
        self.data
    }
}

/// The elements of a tensor where they are, to change in place.
pub struct Memory<'a> {
    /// Where.
    pub storage: StorageMut<'a>,
    /// The first one's place.
    pub start: usize,
    /// How many.
    pub len: usize,
}

/// Storage that is open to changes.
pub enum StorageMut<'a> {
    /// On the CPU.
    Cpu(&'a mut CpuStorage),
    /// On CUDA.
    Cuda(&'a mut CudaStorage),
    /// On Metal.
    Metal(&'a mut MetalStorage),
}

struct WithMemory<F>(Mutex<Option<F>>);

impl<F: FnOnce(Memory) -> Result<()>> WithMemory<F> {
    fn call(&self, storage: StorageMut, layout: &Layout) -> Result<()> {
        let Some((start, end)) = layout.contiguous_offsets() else {
            bail!("in-place update: expected contiguous data")
        };
        match self.0.lock().unwrap_or_else(|e| e.into_inner()).take() {
            Some(f) => f(Memory { storage, start, len: end - start }),
            None => bail!("in-place update: called twice"),
        }
    }
}

impl<F: FnOnce(Memory) -> Result<()>> InplaceOp1 for WithMemory<F> {
    fn name(&self) -> &'static str {
        "in-place update"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        self.call(StorageMut::Cpu(storage), layout)
    }

    fn cuda_fwd(&self, storage: &mut CudaStorage, layout: &Layout) -> Result<()> {
        self.call(StorageMut::Cuda(storage), layout)
    }

    fn metal_fwd(&self, storage: &mut MetalStorage, layout: &Layout) -> Result<()> {
        self.call(StorageMut::Metal(storage), layout)
    }
}

/// The same for tensors that share their storage, as long as they live: one of them cannot be read while another is written.
pub fn storage_address(tensor: &Tensor) -> usize {
    std::ptr::from_ref(&*tensor.storage_and_layout().0).addr()
}

/// Calls `f` with the memory of tensors, to change in place, which is locked as long as `f` runs. It is locked in the order of its addresses,
/// so that two threads that change the same tensors wait for each other and not for ever.
///
/// # Errors
/// Two tensors that share storage; one that is not contiguous; what `f` says.
pub fn memories_mut(tensors: &[&Tensor], f: &mut dyn FnMut(&mut [Memory]) -> Result<()>) -> Result<()> {
    type Got<'a> = Vec<(usize, Memory<'a>)>;
    type Rest<'a> = [(usize, usize, &'a Tensor)];
    fn go(rest: &Rest, got: Got, f: &mut dyn FnMut(&mut [Memory]) -> Result<()>) -> Result<()> {
        let Some(((_, place, first), rest)) = rest.split_first() else {
            let mut got = got;
            got.sort_by_key(|(place, _)| *place);
            return f(&mut got.into_iter().map(|(_, memory)| memory).collect::<Vec<_>>());
        };
        let op = WithMemory(Mutex::new(Some(|memory: Memory| {
            let mut all: Got = got;
            all.push((*place, memory));
            go(rest, all, f)
        })));
        first.inplace_op1(&op)
    }
    let mut order: Vec<(usize, usize, &Tensor)> =
        tensors.iter().enumerate().map(|(place, t)| (storage_address(t), place, *t)).collect();
    order.sort_unstable_by_key(|(address, ..)| *address);
    if order.windows(2).any(|pair| pair[0].0 == pair[1].0) {
        bail!("in-place update: two of the tensors share their storage")
    }
    go(&order, Vec::with_capacity(order.len()), f)
}

/// [`memories_mut`] of f32 CPU tensors, as slices.
///
/// # Errors
/// As there; or another type or device.
pub fn slices_mut(tensors: &[&Tensor], f: &mut dyn FnMut(&mut [&mut [f32]]) -> Result<()>) -> Result<()> {
    fn slice<'a>(memory: &'a mut Memory) -> Result<&'a mut [f32]> {
        match memory {
            Memory { storage: StorageMut::Cpu(CpuStorage::F32(data)), start, len } => {
                Ok(&mut data[*start..*start + *len])
            }
            _ => bail!("in-place update: expected f32 on the CPU"),
        }
    }
    memories_mut(tensors, &mut |memories| f(&mut memories.iter_mut().map(slice).collect::<Result<Vec<_>>>()?))
}

/// Calls `f` with `n` elements of memory that this thread keeps for the next call. What is in them is left over from
/// the last: write before you read.
pub fn with_scratch<R>(n: usize, f: impl FnOnce(&mut [f32]) -> R) -> R {
    thread_local! {
        static SCRATCH: RefCell<Vec<Vec<f32>>> = const { RefCell::new(Vec::new()) };
    }
    // Taken out, so that a call within `f` gets memory of its own, the same each time.
    let mut scratch = SCRATCH.with_borrow_mut(Vec::pop).unwrap_or_default();
    if scratch.len() < n {
        scratch.resize(n, 0.);
    }
    let result = f(&mut scratch[..n]);
    SCRATCH.with_borrow_mut(|kept| kept.push(scratch));
    result
}
