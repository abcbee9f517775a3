//! The backward pass over a graph of our own ops.
//!
//! candle's own starts every gradient as zeros and adds to them, though nearly all have one contribution: two more passes
//! over memory for each tensor of the graph, and on a GPU most of a small model's launches. Here the first contribution is
//! the gradient. candle tells the order of the nodes and not what they are; ours are known by their ids, and a node that
//! shares the memory of one of ours is a view of it.

use std::collections::HashMap;
use std::sync::Arc;

use candle_core::backprop::GradStore;
use candle_core::{Layout, Result, Storage, Tensor, TensorId, bail};

use super::link::{Call, Role, nodes};

/// How a tensor with a gradient got its elements.
enum Kind {
    Variable,
    /// Something that an op of ours made, or a token between its inputs and outputs.
    Node(Arc<Call>, Role),
    Alias(Alias),
    /// An operation of candle's.
    Foreign,
}

/// Elements of another tensor, each at most once.
struct Alias {
    base: Tensor,
    part: Part,
}

enum Part {
    /// All elements: the view's dimensions from the slowest to the fastest.
    All(Vec<usize>),
    /// A shape of the base, the dimension of it in which the view is a range, and the first place there.
    Range(Vec<usize>, usize, usize),
}

/// The gradients of `loss`, a tensor of one element, by all variables that it depends on: what `loss.backward()` returns,
/// without its zeros and additions where all of the graph are ops of this library, views of their results and variables.
/// With other operations among them it is `loss.backward()`.
///
/// # Errors
/// Those of the operations' backward passes.
pub fn backward(loss: &Tensor) -> Result<GradStore> {
    backward_scaled(loss, 1.)
}

/// [`backward`] of `scale` times `loss`.
///
/// # Errors
/// As [`backward`].
pub fn backward_scaled(loss: &Tensor, scale: f64) -> Result<GradStore> {
    let kinds = kinds(loss);
    if kinds.iter().any(|(_, kind)| matches!(kind, Kind::Foreign)) {
        return if scale == 1. { loss.backward() } else { (loss * scale)?.backward() };
    }
    let gradient = Tensor::full(scale as f32, loss.shape(), loss.device())?.to_dtype(loss.dtype())?;
    pass(kinds, loss, gradient)
}

/// The gradients of a loss whose gradient by `output` is `gradient`, of the same shape, by all variables that `output` depends on.
///
/// # Errors
/// Another shape; those of the operations' backward passes.
pub fn backward_from(output: &Tensor, gradient: &Tensor) -> Result<GradStore> {
    if gradient.dims() != output.dims() {
        bail!("backward: a gradient {:?} of an output {:?}", gradient.dims(), output.dims())
    }
    let kinds = kinds(output);
    if kinds.iter().any(|(_, kind)| matches!(kind, Kind::Foreign)) {
        return (output * gradient.detach())?.sum_all()?.backward();
    }
    pass(kinds, output, gradient.detach())
}

/// From the last node, whose gradient is known, to the variables.
fn pass(kinds: Vec<(&Tensor, Kind)>, last: &Tensor, gradient: Tensor) -> Result<GradStore> {
    let views = kinds.iter().filter_map(|(t, kind)| match kind {
        Kind::Alias(view) => Some((t.id(), view)),
        _ => None,
    });
    let mut sums = Sums { views: views.collect(), grads: HashMap::new() };
    // A call's outputs come before the node that runs its backward pass.
    let mut waiting: HashMap<*const Call, Vec<Option<Tensor>>> = HashMap::new();
    sums.add(last, gradient)?;
    for (node, kind) in &kinds {
        let Kind::Node(call, role) = kind else { continue };
        let outputs = waiting.entry(Arc::as_ptr(call)).or_insert_with(|| vec![None; call.outputs()]);
        if let Some(output) = role.output {
            outputs[output] = sums.grads.remove(&node.id()).map(|sum| sum.of_shape(node)).transpose()?;
        }
        if role.runs {
            let outputs = waiting.remove(&Arc::as_ptr(call)).unwrap_or_default();
            if outputs.iter().any(Option::is_some) {
                for (arg, grad) in call.gradients(outputs)? {
                    sums.add(arg, grad)?;
                }
            }
        }
    }
    let mut found = GradStore::default();
    for (node, kind) in &kinds {
        if let (Kind::Variable, Some(sum)) = (kind, sums.grads.remove(&node.id())) {
            found.insert(node, sum.of_shape(node)?);
        }
    }
    Ok(found)
}

/// The shapes of what in the graph of `loss` is an operation of candle's: with any, [`backward`] is candle's.
pub fn foreign(loss: &Tensor) -> Vec<Vec<usize>> {
    let foreign = kinds(loss).into_iter().filter(|(_, kind)| matches!(kind, Kind::Foreign));
    foreign.map(|(t, _)| t.dims().to_vec()).collect()
}

/// All nodes that lead from variables to `loss`, each before those that it depends on.
fn kinds(loss: &Tensor) -> Vec<(&Tensor, Kind)> {
    let known = nodes();
    let direct = |t: &Tensor| {
        if t.is_variable() {
            return Kind::Variable;
        }
        let call = known.get(&t.id()).and_then(|(call, role)| Some((call.upgrade()?, role.clone())));
        call.map_or(Kind::Foreign, |(call, role)| Kind::Node(call, role))
    };
    let mut all: Vec<(&Tensor, Kind)> = loss.sorted_nodes().into_iter().map(|t| (t, direct(t))).collect();
    drop(known);
    let owners = all.iter().filter(|(_, kind)| !matches!(kind, Kind::Foreign)).map(|(t, _)| (memory(t), *t));
    let owners: HashMap<*const Storage, &Tensor> = owners.collect();
    for (tensor, kind) in &mut all {
        if let (Kind::Foreign, Some(base)) = (&kind, owners.get(&memory(tensor)))
            && let Some(view) = Alias::of(tensor, base)
        {
            *kind = Kind::Alias(view);
        }
    }
    all
}

/// Where a tensor's elements are: one place for all views of them.
fn memory(tensor: &Tensor) -> *const Storage {
    &raw const *tensor.storage_and_layout().0
}

impl Alias {
    /// None unless `tensor` is a reshaped or permuted `base`, or a range of it.
    fn of(tensor: &Tensor, base: &Tensor) -> Option<Self> {
        let (layout, whole) = (tensor.layout(), base.layout());
        if !whole.is_contiguous() || whole.start_offset() != 0 {
            return None;
        }
        let part = order(layout, whole).map(Part::All).or_else(|| range(layout, whole))?;
        Some(Self { base: base.clone(), part })
    }
}

/// The dimensions of a view from the slowest to the fastest, if it has all elements of `whole`.
fn order(view: &Layout, whole: &Layout) -> Option<Vec<usize>> {
    let mut order: Vec<usize> = (0..view.dims().len()).collect();
    order.sort_by_key(|&d| std::cmp::Reverse((view.stride()[d], view.dims()[d])));
    let mut expected = view.shape().elem_count();
    let complete = expected == whole.shape().elem_count() && view.start_offset() == 0;
    let steps = order.iter().all(|&d| {
        let size = view.dims()[d];
        expected /= size.max(1);
        size == 1 || view.stride()[d] == expected
    });
    (complete && steps).then_some(order)
}

fn range(view: &Layout, whole: &Layout) -> Option<Part> {
    let (dims, offset) = (view.dims(), view.start_offset());
    if view.is_contiguous() {
        return Some(Part::Range(vec![whole.shape().elem_count()], 0, offset));
    }
    if whole.stride() != view.stride() {
        return None;
    }
    let mut differing = (0..dims.len()).filter(|&d| dims[d] != whole.dims()[d]);
    let (dim, None) = (differing.next()?, differing.next()) else { return None };
    let stride = whole.stride()[dim];
    let first = offset / stride.max(1);
    let within = stride * first == offset && first + dims[dim] <= whole.dims()[dim];
    within.then(|| Part::Range(whole.dims().to_vec(), dim, first))
}

/// A gradient that may still grow.
enum Sum {
    Whole(Tensor),
    /// Memory of our own of any shape, zero but for these ranges of one dimension.
    Ranges(Tensor, usize, Vec<std::ops::Range<usize>>),
}

impl Sum {
    fn of_shape(self, tensor: &Tensor) -> Result<Tensor> {
        match self {
            Self::Whole(sum) => Ok(sum),
            Self::Ranges(sum, ..) => sum.reshape(tensor.shape()),
        }
    }
}

/// The gradients so far, of variables and of what our ops made.
struct Sums<'a> {
    views: HashMap<TensorId, &'a Alias>,
    grads: HashMap<TensorId, Sum>,
}

impl Sums<'_> {
    fn add(&mut self, tensor: &Tensor, grad: Tensor) -> Result<()> {
        let Some(&Alias { base, part }) = self.views.get(&tensor.id()) else {
            return self.add_whole(tensor, grad);
        };
        let (shape, dim, first) = match part {
            Part::All(order) => {
                return self.add_whole(base, grad.permute(order.as_slice())?.contiguous()?.reshape(base.shape())?);
            }
            Part::Range(shape, dim, first) => (shape, *dim, *first),
        };
        let grad = if shape.len() == 1 { grad.flatten_all()? } else { grad.contiguous()? };
        let range = first..first + grad.dim(dim)?;
        if let Some(Sum::Ranges(sum, of, ranges)) = self.grads.get_mut(&base.id())
            && (sum.dims(), *of) == (shape.as_slice(), dim)
            && ranges.iter().all(|r| r.end <= range.start || range.end <= r.start)
        {
            sum.slice_set(&grad, dim, first)?;
            ranges.push(range);
            return Ok(());
        }
        let sum = Tensor::zeros(shape.as_slice(), grad.dtype(), grad.device())?;
        sum.slice_set(&grad, dim, first)?;
        match self.grads.get(&base.id()) {
            Some(_) => self.add_whole(base, sum.reshape(base.shape())?),
            None => {
                self.grads.insert(base.id(), Sum::Ranges(sum, dim, vec![range]));
                Ok(())
            }
        }
    }

    fn add_whole(&mut self, tensor: &Tensor, grad: Tensor) -> Result<()> {
        let sum = match self.grads.remove(&tensor.id()) {
            Some(sum) => (sum.of_shape(tensor)? + grad)?,
            None => grad,
        };
        self.grads.insert(tensor.id(), Sum::Whole(sum));
        Ok(())
    }
}
