//! What an op is: its reference, its kernels, and what they are given and return.

use std::cell::Cell;

use candle_core::{CpuStorage, DType, Layout, Result, Shape, Storage, StorageRef, Tensor, bail};

use crate::gpu::{Array, Gpu, Slice};

/// A contiguous input of a CPU kernel.
pub struct View<'a> {
    storage: StorageRef<'a>,
    layout: &'a Layout,
    _reading: Reading,
}

thread_local! {
    static READING: Cell<usize> = const { Cell::new(0) };
}

/// A view that this thread holds, as long as it is there.
struct Reading;

impl Reading {
    fn begin() -> Self {
        READING.set(READING.get() + 1);
        Self
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        READING.set(READING.get().saturating_sub(1));
    }
}

/// Whether an op of this thread reads tensors right now: what runs within it, as a task that rayon gave the waiting thread, must not wait to
/// write them.
pub fn reading() -> bool {
    READING.get() > 0
}

impl<'a> View<'a> {
    /// Of a tensor.
    pub fn new(tensor: &'a Tensor) -> Self {
        let (storage, layout) = tensor.storage_and_layout();
        Self { storage, layout, _reading: Reading::begin() }
    }

    /// The elements in row-major order.
    pub fn f32(&self) -> Result<&[f32]> {
        let Storage::Cpu(CpuStorage::F32(data)) = &*self.storage else { bail!("expected f32 on the CPU") };
        if self.layout.shape().elem_count() == 0 {
            return Ok(&[]);
        }
        let Some((start, end)) = self.layout.contiguous_offsets() else { bail!("expected contiguous data") };
        Ok(&data[start..end])
    }

    /// The integers in row-major order.
    pub fn i64(&self) -> Result<&[i64]> {
        let Storage::Cpu(CpuStorage::I64(data)) = &*self.storage else { bail!("expected i64 on the CPU") };
        if self.layout.shape().elem_count() == 0 {
            return Ok(&[]);
        }
        let Some((start, end)) = self.layout.contiguous_offsets() else { bail!("expected contiguous data") };
        Ok(&data[start..end])
    }

    /// The elements where they are, for kernels on other devices.
    ///
    /// # Errors
    /// Integers, which a kernel of floats would read as such; elements that do not lie in a row.
    pub fn slice(&self) -> Result<Slice<'_>> {
        match self.storage.dtype() {
            dtype if dtype.is_float() => Slice::of(&self.storage, self.layout),
            dtype => bail!("expected floats, got {dtype:?}"),
        }
    }

    /// The same of integers.
    ///
    /// # Errors
    /// Other elements than i64, or ones that do not lie in a row.
    pub fn integers(&self) -> Result<Slice<'_>> {
        match self.storage.dtype() {
            DType::I64 => Slice::of(&self.storage, self.layout),
            dtype => bail!("expected i64, got {dtype:?}"),
        }
    }

    /// The dimensions.
    pub fn dims(&self) -> &[usize] {
        self.layout.dims()
    }

    /// The number of elements.
    pub fn count(&self) -> usize {
        self.layout.shape().elem_count()
    }

    /// The last dimension; 1 of a scalar.
    pub fn width(&self) -> usize {
        self.dims().last().copied().unwrap_or(1)
    }

    /// The product of the others.
    pub fn rows(&self) -> usize {
        self.dims().iter().rev().skip(1).product()
    }
}

/// One result of a kernel.
pub struct Output {
    /// The elements in row-major order.
    pub data: Vec<f32>,
    /// The dimensions.
    pub shape: Shape,
}

/// What a forward kernel returns.
pub struct Forward {
    /// The results.
    pub outputs: Vec<Output>,
    /// What the backward kernel wants to see again; dropped when no input has a gradient.
    pub saved: Vec<Vec<f32>>,
}

/// What a forward kernel on a GPU returns.
pub struct GpuForward {
    /// In the order of the reference's.
    pub outputs: Vec<(Array, Shape)>,
    /// What the backward pass wants to see again.
    pub saved: Vec<Array>,
}

impl GpuForward {
    /// One output of the shape of `like`.
    pub fn one(output: Array, like: &View, saved: Vec<Array>) -> Self {
        Self { outputs: vec![(output, like.dims().into())], saved }
    }
}

/// What a backward kernel works from.
pub struct Backward<'a, S = Vec<f32>> {
    /// The inputs of the forward pass.
    pub inputs: &'a [View<'a>],
    /// The outputs, if the op [wants](Op::needs_outputs) to see them again.
    pub outputs: &'a [View<'a>],
    /// What the forward kernel saved.
    pub saved: &'a [S],
    /// The gradient of each output, `None` where the loss does not depend on it.
    pub grads: &'a [Option<View<'a>>],
    /// Which inputs need a gradient.
    pub needs: &'a [bool],
}

/// A differentiable operation with a fused kernel.
pub trait Op: Send + Sync + 'static {
    /// Its name in messages.
    fn name(&self) -> &'static str;

    /// The same in plain candle operations: specification, oracle and fallback. Returns all outputs.
    fn reference(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>>;

    /// The CPU kernel: f32, contiguous inputs. `save` is false when no backward pass will follow.
    fn cpu_forward(&self, inputs: &[View], save: bool) -> Result<Forward>;

    /// The CPU kernel's backward pass: a gradient for each input that needs one.
    fn cpu_backward(&self, pass: &Backward) -> Result<Vec<Option<Vec<f32>>>>;

    /// Whether the backward kernels want to see the outputs.
    fn needs_outputs(&self) -> bool {
        false
    }

    /// Whether the gradient of an input is that of the first output, unchanged: no kernel is asked for it.
    fn passes(&self, _input: usize) -> bool {
        false
    }

    /// Whether it computes in f32 under [`autocast`](crate::autocast).
    fn wide(&self) -> bool {
        false
    }

    /// The kernels on CUDA and Metal: contiguous inputs of the type that `gpu` names. None where there is none, or none for
    /// these inputs: then [`composed`](Op::composed) runs.
    fn gpu_forward(&self, _gpu: &Gpu, _inputs: &[View], _save: bool) -> Result<Option<GpuForward>> {
        Ok(None)
    }

    /// Their backward pass.
    fn gpu_backward(&self, _gpu: &Gpu, _pass: &Backward<Array>) -> Result<Vec<Option<Array>>> {
        bail!("{}: no backward kernel", self.name())
    }

    /// The same by smaller ops that have kernels, where this one has none: the reference, unless there is something better.
    fn composed(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
        self.reference(inputs)
    }
}
