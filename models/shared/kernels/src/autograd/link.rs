//! Ops with any number of inputs and outputs on candle's autograd graph.
//!
//! candle's custom ops take at most three tensors and return one. Here the kernel runs first; its results are then
//! attached to the graph by links that only carry gradients:
//!
//! ```text
//!   x ──┐                         one output, at most three inputs with a gradient: a single link
//!   w ──┼─► y
//!
//!   x, w ──► t₀                   otherwise: tokens of one element chain the inputs, two or three each,
//!   t₀, u, b ──► t₁ ──► y         and each output hangs on the last token
//!                   └─► h
//! ```
//!
//! Backward visits the outputs first, which put their gradients aside, then the last token, which runs the kernel's
//! backward once and keeps what belongs to the earlier tokens. Nothing is copied, packed or stored twice.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, OnceLock, Weak};

use candle_core::op::BackpropOp;
use candle_core::{
    CpuStorage, CudaStorage, CustomOp1, CustomOp2, CustomOp3, DType, Layout, MetalStorage, Result, Shape, Storage,
    Tensor, TensorId, bail,
};

use super::autocast::narrows;
use super::op::{Backward, Op, View};
use crate::cpu::bf16::products_in_bf16;
use crate::cpu::simd;
use crate::gpu::{Array, Gpu};

type Nodes = HashMap<TensorId, (Weak<Call>, Role)>;

/// What a node of the graph stands for, by its tensor's id, as long as the graph lives.
static NODES: LazyLock<Mutex<Nodes>> = LazyLock::new(Default::default);

pub(super) fn nodes() -> MutexGuard<'static, Nodes> {
    // The lock only guards single insertions and removals.
    NODES.lock().unwrap_or_else(|e| e.into_inner())
}

/// Applies `op` to `args` as they are, recording the graph.
pub(super) fn record<O: Op>(op: O, args: Vec<Tensor>) -> Result<Vec<Tensor>> {
    // candle multiplies sizes without looking: a tensor may claim more elements than it has.
    for arg in &args {
        if arg.dims().iter().try_fold(1usize, |n, d| n.checked_mul(*d)).is_none() {
            bail!("{}: {:?} are more elements than can be counted", op.name(), arg.dims())
        }
    }
    if !simd::fused() {
        return op.reference(&args);
    }
    let all: Vec<&Tensor> = args.iter().collect();
    let (gpu, in_bf16) = (Gpu::of(&all), !op.wide() && narrows(&all));
    let on_cpu = args.iter().all(|t| t.device().is_cpu() && (t.dtype() == DType::F32 || t.dtype().is_int()));
    if gpu.is_none() && !on_cpu {
        return op.composed(&args);
    }
    let needs: Vec<bool> = args.iter().map(|t| t.track_op() && t.dtype().is_float()).collect();
    // A copy for the kernels is no part of the graph.
    let inputs = args.iter().map(|t| if t.is_contiguous() { Ok(t.clone()) } else { t.detach().contiguous() });
    let inputs = inputs.collect::<Result<Vec<_>>>()?;
    let save = needs.iter().any(|n| *n);
    let made = {
        let views: Vec<View> = inputs.iter().map(View::new).collect();
        match &gpu {
            Some(gpu) => match op.gpu_forward(gpu, &views, save)? {
                Some(made) => {
                    for (data, shape) in &made.outputs {
                        fits(&op, "a result", data.count(), shape)?;
                    }
                    let outputs = made.outputs.into_iter().map(|(data, shape)| (data.into_storage(), shape)).collect();
                    Some((outputs, Saved::Gpu(gpu.clone(), made.saved)))
                }
                None => None,
            },
            None => {
                let made = products_in_bf16(in_bf16, || op.cpu_forward(&views, save))?;
                for output in &made.outputs {
                    fits(&op, "a result", output.data.len(), &output.shape)?;
                }
                let outputs =
                    made.outputs.into_iter().map(|o| (Storage::Cpu(CpuStorage::F32(o.data)), o.shape)).collect();
                Some((outputs, Saved::Cpu { saved: made.saved, in_bf16 }))
            }
        }
    };
    let Some((outputs, saved)): Option<(Vec<Made>, Saved)> = made else { return op.composed(&args) };
    if !save {
        return Ok(outputs.into_iter().map(|(storage, shape)| tensor(storage, shape)).collect());
    }
    let grads = vec![None; outputs.len()];
    let call = Arc::new(Call {
        op: Box::new(op),
        needs,
        saved,
        outputs: OnceLock::new(),
        pending: Mutex::new(Pending { outputs: grads, inputs: vec![] }),
        args,
        inputs,
    });
    let outputs = call.clone().attach(outputs)?;
    if call.op.needs_outputs() {
        // Their memory without their history, of which the call is a part.
        call.outputs.get_or_init(|| outputs.iter().map(Tensor::detach).collect());
    }
    Ok(outputs)
}

/// Refuses what a kernel made where it does not fill its shape: as a tensor, it would be read beyond its end.
fn fits(op: &dyn Op, what: &str, len: usize, shape: &Shape) -> Result<()> {
    if len != shape.elem_count() {
        bail!("{}: its kernel made {len} elements for {what} of {:?}", op.name(), shape.dims())
    }
    Ok(())
}

/// A result of a kernel, where it is.
type Made = (Storage, Shape);

fn tensor(storage: Storage, shape: Shape) -> Tensor {
    Tensor::from_storage(storage, shape, BackpropOp::none(), false)
}

/// One application of an op, shared by its links.
pub(super) struct Call {
    op: Box<dyn Op>,
    /// What it was applied to.
    args: Vec<Tensor>,
    /// The same for kernels, which want it contiguous.
    inputs: Vec<Tensor>,
    needs: Vec<bool>,
    saved: Saved,
    /// If the op wants to see them again.
    outputs: OnceLock<Vec<Tensor>>,
    pending: Mutex<Pending>,
}

/// What the forward kernel kept, and with it which backward kernel is to run.
enum Saved {
    Cpu {
        saved: Vec<Vec<f32>>,
        /// Whether products read bf16.
        in_bf16: bool,
    },
    Gpu(Gpu, Vec<Array>),
}

/// Gradients on their way through a call's links.
struct Pending {
    outputs: Vec<Option<Tensor>>,
    inputs: Vec<Option<Tensor>>,
}

impl Call {
    fn attach(self: Arc<Self>, outputs: Vec<Made>) -> Result<Vec<Tensor>> {
        let tracked: Vec<usize> = (0..self.inputs.len()).filter(|&i| self.needs[i]).collect();
        if let ([_], true) = (outputs.as_slice(), tracked.len() <= 3) {
            let role = Role { slots: tracked.clone(), token: false, output: Some(0), runs: true };
            let args: Vec<&Tensor> = tracked.iter().map(|&i| &self.args[i]).collect();
            return outputs.into_iter().map(|o| Link::new(&self, role.clone(), o).attach(&args)).collect();
        }
        let mut rest = tracked.as_slice();
        let mut token: Option<Tensor> = None;
        while !rest.is_empty() {
            let (now, later) = rest.split_at(rest.len().min(3 - usize::from(token.is_some())));
            rest = later;
            let role = Role { slots: now.to_vec(), token: token.is_some(), output: None, runs: rest.is_empty() };
            let args: Vec<&Tensor> = token.iter().chain(now.iter().map(|&i| &self.args[i])).collect();
            token = Some(Link::new(&self, role, (self.token()?, Shape::from(()))).attach(&args)?);
        }
        let Some(token) = token else { bail!("{}: no input has a gradient", self.op.name()) };
        let one = |(i, o): (usize, Made)| {
            let role = Role { slots: vec![], token: true, output: Some(i), runs: false };
            Link::new(&self, role, o).attach(&[&token])
        };
        outputs.into_iter().enumerate().map(one).collect()
    }

    /// How many outputs it has.
    pub(super) fn outputs(&self) -> usize {
        self.pending().outputs.len()
    }

    /// What it was applied to and has a gradient, with that, from the gradients of the outputs.
    pub(super) fn gradients(&self, outputs: Vec<Option<Tensor>>) -> Result<Vec<(&Tensor, Tensor)>> {
        let each = self.args.iter().zip(&self.needs).zip(self.run(outputs)?);
        Ok(each.filter_map(|((arg, needed), grad)| needed.then_some((arg, grad?))).collect())
    }

    /// One element, which nobody reads.
    fn token(&self) -> Result<Storage> {
        match &self.saved {
            Saved::Cpu { .. } => Ok(Storage::Cpu(CpuStorage::F32(vec![0.]))),
            Saved::Gpu(gpu, _) => Ok(gpu.array(1)?.into_storage()),
        }
    }

    fn pending(&self) -> MutexGuard<'_, Pending> {
        // The lock only guards moves of whole values: a poisoned one still holds valid ones.
        self.pending.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// The kernel's backward pass: from the gradients of the outputs to those of the inputs.
    fn run(&self, grads: Vec<Option<Tensor>>) -> Result<Vec<Option<Tensor>>> {
        let grads = grads.into_iter().map(|g| g.map(|g| g.contiguous()).transpose()).collect::<Result<Vec<_>>>()?;
        let passed = |i: usize| grads[0].as_ref().filter(|_| self.op.passes(i));
        let needs: Vec<bool> = self.needs.iter().enumerate().map(|(i, n)| *n && passed(i).is_none()).collect();
        let mut found: Vec<Option<Tensor>> = (0..needs.len()).map(|i| passed(i).cloned()).collect();
        if !needs.contains(&true) {
            return Ok(found);
        }
        let inputs: Vec<View> = self.inputs.iter().map(View::new).collect();
        let outputs: Vec<View> = self.outputs.get().into_iter().flatten().map(View::new).collect();
        let grads: Vec<Option<View>> = grads.iter().map(|g| g.as_ref().map(View::new)).collect();
        let (inputs, outputs, grads, needs) = (&inputs, &outputs, &grads, &needs);
        // With their numbers of elements.
        let made: Vec<Option<(usize, Storage)>> = match &self.saved {
            Saved::Cpu { saved, in_bf16 } => {
                let pass = Backward { inputs, outputs, saved, grads, needs };
                let made = products_in_bf16(*in_bf16, || self.op.cpu_backward(&pass))?;
                made.into_iter().map(|g| g.map(|g| (g.len(), Storage::Cpu(CpuStorage::F32(g))))).collect()
            }
            Saved::Gpu(gpu, saved) => {
                let made = self.op.gpu_backward(gpu, &Backward { inputs, outputs, saved, grads, needs })?;
                made.into_iter().map(|g| g.map(|g| (g.count(), g.into_storage()))).collect()
            }
        };
        if made.len() != self.inputs.len() {
            bail!("{}: its kernel made {} gradients for {} inputs", self.op.name(), made.len(), self.inputs.len())
        }
        for ((found, made), input) in found.iter_mut().zip(made).zip(&self.inputs) {
            let Some((len, storage)) = made else { continue };
            fits(&*self.op, "a gradient", len, input.shape())?;
            *found = found.take().or_else(|| Some(tensor(storage, input.shape().clone())));
        }
        Ok(found)
    }
}

/// What a link of a call stands for.
#[derive(Clone)]
pub(super) struct Role {
    /// The inputs whose gradients it returns.
    slots: Vec<usize>,
    /// Whether its first argument is the previous token.
    token: bool,
    /// The output it carries; `None` for a token.
    pub(super) output: Option<usize>,
    /// Whether it is the one that runs the backward kernel.
    pub(super) runs: bool,
}

/// A node of candle's graph: its forward hands over a result that is already there, its backward passes gradients on.
struct Link {
    call: Arc<Call>,
    role: Role,
    result: Mutex<Option<Storage>>,
    shape: Shape,
    /// The tensor that has it as its origin.
    id: Arc<OnceLock<TensorId>>,
}

impl Drop for Link {
    fn drop(&mut self) {
        if let Some(id) = self.id.get() {
            nodes().remove(id);
        }
    }
}

impl Link {
    fn new(call: &Arc<Call>, role: Role, (result, shape): Made) -> Self {
        Self { call: call.clone(), role, result: Mutex::new(Some(result)), shape, id: Arc::default() }
    }

    fn attach(self, args: &[&Tensor]) -> Result<Tensor> {
        let (call, role, id) = (self.call.clone(), self.role.clone(), self.id.clone());
        let made = match args {
            [a] => a.apply_op1(self)?,
            [a, b] => a.apply_op2(b, self)?,
            [a, b, c] => a.apply_op3(b, c, self)?,
            _ => bail!("{}: a link takes one to three tensors", self.call.op.name()),
        };
        nodes().insert(*id.get_or_init(|| made.id()), (Arc::downgrade(&call), role));
        Ok(made)
    }

    fn take<S>(&self, on_device: impl Fn(Storage) -> Option<S>) -> Result<(S, Shape)> {
        match self.result.lock().unwrap_or_else(|e| e.into_inner()).take().and_then(on_device) {
            Some(result) => Ok((result, self.shape.clone())),
            None => bail!("{}: the result was handed over before, or is elsewhere", self.call.op.name()),
        }
    }

    fn backward(&self, grad: &Tensor) -> Result<Vec<Option<Tensor>>> {
        if let Some(output) = self.role.output {
            self.call.pending().outputs[output] = Some(grad.clone());
        }
        if self.role.runs {
            // Empty, but as many: the next backward pass must not find this one's, whatever becomes of it.
            let grads = self.call.pending().outputs.iter_mut().map(Option::take).collect();
            self.call.pending().inputs = vec![];
            let inputs = self.call.run(grads)?;
            self.call.pending().inputs = inputs;
        }
        let mut pending = self.call.pending();
        let mut result = vec![];
        if self.role.token {
            result.push(Some(tensor(self.call.token()?, Shape::from(()))));
        }
        result.extend(self.role.slots.iter().map(|&i| pending.inputs.get_mut(i).and_then(Option::take)));
        Ok(result)
    }
}

macro_rules! link {
    ($trait:ident, $grads:ty, ($($s:ident $l:ident),*), ($($arg:ident),*), |$r:ident| $tuple:expr) => {
        impl $trait for Link {
            fn name(&self) -> &'static str {
                self.call.op.name()
            }

            fn cpu_fwd(&self, $($s: &CpuStorage, $l: &Layout),*) -> Result<(CpuStorage, Shape)> {
                $(let _ = ($s, $l);)*
                self.take(|s| if let Storage::Cpu(s) = s { Some(s) } else { None })
            }

            fn cuda_fwd(&self, $($s: &CudaStorage, $l: &Layout),*) -> Result<(CudaStorage, Shape)> {
                $(let _ = ($s, $l);)*
                self.take(|s| if let Storage::Cuda(s) = s { Some(s) } else { None })
            }

            fn metal_fwd(&self, $($s: &MetalStorage, $l: &Layout),*) -> Result<(MetalStorage, Shape)> {
                $(let _ = ($s, $l);)*
                self.take(|s| if let Storage::Metal(s) = s { Some(s) } else { None })
            }

            fn bwd(&self, $($arg: &Tensor,)* _: &Tensor, grad: &Tensor) -> Result<$grads> {
                $(let _ = $arg;)*
                let mut $r = self.backward(grad)?.into_iter();
                Ok($tuple)
            }
        }
    };
}
type Grad = Option<Tensor>;
link!(CustomOp1, Grad, (s1 l1), (a), |r| r.next().flatten());
link!(CustomOp2, (Grad, Grad), (s1 l1, s2 l2), (a, b), |r| (r.next().flatten(), r.next().flatten()));
link!(CustomOp3, (Grad, Grad, Grad), (s1 l1, s2 l2, s3 l3), (a, b, c), |r| (
    r.next().flatten(),
    r.next().flatten(),
    r.next().flatten()
));

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::super::op::{Forward, Output};
    use super::*;

    struct Copy;

    impl Op for Copy {
        fn name(&self) -> &'static str {
            "copy"
        }

        fn reference(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
            Ok(inputs.to_vec())
        }

        fn cpu_forward(&self, inputs: &[View], _: bool) -> Result<Forward> {
            let output = Output { data: inputs[0].f32()?.to_vec(), shape: inputs[0].dims().into() };
            Ok(Forward { outputs: vec![output], saved: vec![] })
        }

        fn cpu_backward(&self, _: &Backward) -> Result<Vec<Option<Vec<f32>>>> {
            Ok(vec![None])
        }
    }

    #[test]
    fn nothing_is_remembered_of_a_graph_that_is_gone() -> Result<()> {
        let x = Var::new(&[1f32, 2.], &Device::Cpu)?;
        let outputs = record(Copy, vec![x.as_tensor().clone()])?;
        let id = outputs[0].id();
        assert!(nodes().contains_key(&id));
        drop(outputs);
        assert!(!nodes().contains_key(&id));
        Ok(())
    }
}
