//! Optimizers whose state has names and can be saved, and global-norm clipping.
//!
//! The formulas are PyTorch's, so a recipe moves over unchanged (but a parameter whose first gradient comes late counts
//! the optimizer's steps, not its own). With g the (clipped) gradient, lr the learning rate, λ the
//! weight decay and t the step:
//!
//! ```text
//! AdamW    p ← p - lr λ p;  m ← β₁m + (1-β₁)g;  v ← β₂v + (1-β₂)g²;  p ← p - lr/(1-β₁ᵗ) · m / (√v/√(1-β₂ᵗ) + ε)
//! Adam     g ← g + λp;      the rest as AdamW
//! SGD      g ← g + λp;      b ← μb + g;         p ← p - lr · (b, or g + μb with Nesterov's momentum)
//! RMSprop  g ← g + λp;      v ← αv + (1-α)g²;   b ← μb + g / (√v + ε);                  p ← p - lr · b
//! Muon     b ← μb + g;      p ← p - lr λ p - lr · 0.2 √max(rows, columns) · orthogonal(g + μb)
//! ```
//!
//! Muon is for matrices within a network; [`muon_groups`] leaves embeddings, heads and vectors to AdamW. Its
//! orthogonal(·) brings all singular values near 1 by five Newton-Schulz steps; the factor gives updates the size of
//! AdamW's, so that one learning rate and decay fit both (Liu et al., *Muon is scalable for LLM training*, 2025).

mod cpu;
mod gpu;
mod muon;
mod reference;

use std::collections::{BTreeMap, HashSet};

use candle_core::{DType, Result, Tensor, bail};
use zoo_kernels::cpu::simd::Level;
use zoo_kernels::cpu::{parallel, simd, slices_mut, storage_address, vector};
use zoo_kernels::gpu::Gpu;

use crate::{Gradients, Param, Params};

/// How a parameter is moved.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Rule {
    /// Adam with decoupled weight decay (Loshchilov and Hutter, ICLR 2019).
    AdamW(Moments),
    /// Adam (Kingma and Ba, ICLR 2015); weight decay is added to the gradient.
    Adam(Moments),
    /// Stochastic gradient descent.
    Sgd {
        /// Momentum μ, 0 for none.
        momentum: f64,
        /// Nesterov's form.
        nesterov: bool,
    },
    /// RMSprop (Tieleman and Hinton 2012).
    RmsProp {
        /// Decay α of the running mean of squares.
        alpha: f64,
        /// Added to the root.
        eps: f64,
        /// Momentum μ, 0 for none.
        momentum: f64,
    },
    /// Orthogonalised momentum (Jordan et al., *Muon*, 2024), with decoupled weight decay; for matrices.
    Muon {
        /// Momentum μ, in Nesterov's form.
        momentum: f64,
    },
}

/// Constants of Adam.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Moments {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
}

impl Default for Moments {
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.999, eps: 1e-8 }
    }
}

impl Rule {
    /// Refuses constants with which a step divides by zero or moves backwards.
    fn check(&self) -> Result<()> {
        let share = |v: f64| (0. ..1.).contains(&v);
        let fits = match *self {
            Self::AdamW(m) | Self::Adam(m) => share(m.beta1) && share(m.beta2) && m.eps > 0.,
            Self::Sgd { momentum, .. } | Self::Muon { momentum } => share(momentum),
            Self::RmsProp { alpha, eps, momentum } => (0. ..=1.).contains(&alpha) && eps > 0. && share(momentum),
        };
        if fits { Ok(()) } else { bail!("{self:?}: expected shares from 0 to below 1, and an eps above 0") }
    }

    /// The names of its state tensors, PyTorch's.
    pub fn state_names(&self) -> &'static [&'static str] {
        match self {
            Self::AdamW(_) | Self::Adam(_) => &["exp_avg", "exp_avg_sq"],
            Self::Sgd { momentum, .. } if *momentum == 0. => &[],
            Self::Sgd { .. } | Self::Muon { .. } => &["momentum_buffer"],
            Self::RmsProp { momentum, .. } if *momentum == 0. => &["square_avg"],
            Self::RmsProp { .. } => &["square_avg", "momentum_buffer"],
        }
    }
}

/// What a group of parameters does differently.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Group {
    /// Multiplies the learning rate.
    pub lr_scale: f64,
    /// λ.
    pub weight_decay: f64,
    /// Another rule than the optimizer's.
    pub rule: Option<Rule>,
}

/// Groups for [`Rule::Muon`]: matrices within the network are its own, each as one (a packed `in_proj_weight` too); vectors,
/// and what has `embedding` or `head` in its name, move by AdamW with `moments`. Matrices decay.
pub fn muon_groups(weight_decay: f64, moments: Moments) -> impl Fn(&Param) -> Group {
    move |p| {
        let outer = ["embedding", "head", "positions"].iter().any(|part| p.name.contains(part));
        let rule = (p.var.rank() != 2 || outer).then_some(Rule::AdamW(moments));
        Group { rule, ..decay_matrices(weight_decay)(p) }
    }
}

/// The usual groups: decay for matrices (rank 2 and more), none for biases, norms and other vectors.
pub fn decay_matrices(weight_decay: f64) -> impl Fn(&Param) -> Group {
    move |p| Group { lr_scale: 1., weight_decay: if p.var.rank() >= 2 { weight_decay } else { 0. }, rule: None }
}

struct Slot {
    param: Param,
    rule: Rule,
    group: Group,
    state: Vec<Tensor>,
}

/// An optimizer over the trainable parameters of a model.
pub struct Optimizer {
    slots: Vec<Slot>,
    steps: u64,
}

/// The numbers of one update of one parameter.
#[derive(Clone, Copy)]
struct Update {
    rule: Rule,
    lr: f64,
    weight_decay: f64,
    /// Multiplies the gradient: the clipping factor.
    scale: f64,
    /// This step's number, from 1.
    step: u64,
}

/// A parameter, the tensor that moves it, and its state.
struct Job<'a> {
    update: Update,
    grad: Tensor,
    param: &'a Param,
    state: &'a mut [Tensor],
}

/// Does all of them: on a GPU in as few launches as can be.
fn apply(jobs: Vec<Job>) -> Result<()> {
    let (level, fused) = (simd::level()?, simd::fused());
    if zoo_kernels::reading() {
        bail!(
            "parameters were to be moved within an op on the same thread, as a task of rayon's: move them outside of rayon's tasks"
        )
    }
    // The parameters of a model are on one device.
    let (mut gpu, mut there, mut here) = (None, vec![], vec![]);
    for mut job in jobs {
        let mut all = job.tensors();
        let from = storage_address(&job.grad);
        let is_own = all.iter().any(|t| storage_address(t) == from);
        all.push(&job.grad);
        let is_plain = !fused || all.iter().any(|t| t.dtype() != DType::F32);
        let found = if is_plain { None } else { Gpu::of(&all) };
        if is_own {
            // What is written cannot be read meanwhile.
            job.grad = job.grad.copy()?;
        }
        match (found, job.update.rule) {
            (Some(found), Rule::Muon { momentum }) => gpu::muon(&found, &job, momentum)?,
            (Some(found), _) => {
                gpu = Some(found);
                there.push(job);
            }
            (None, _) if is_plain || !job.grad.device().is_cpu() => {
                reference::update(job.update, &job.grad, &job.param.var, job.state)?
            }
            (None, _) => here.push(job),
        }
    }
    if let Some(gpu) = gpu {
        keep_apart(&mut there)?;
        gpu::update(&gpu, &there)?;
    }
    on_threads(here, level)
}

/// Copies the gradients that are among what jobs at the same time write.
fn keep_apart(jobs: &mut [Job]) -> Result<()> {
    let written: HashSet<usize> = jobs.iter().flat_map(Job::tensors).map(storage_address).collect();
    for job in jobs.iter_mut().filter(|job| written.contains(&storage_address(&job.grad))) {
        job.grad = job.grad.copy()?;
    }
    Ok(())
}

/// Does jobs of the CPU, on threads of their own if there is much to do: rayon's may wait for what is locked here.
fn on_threads(mut jobs: Vec<Job>, level: Level) -> Result<()> {
    /// Elements below which a second thread costs more than it brings; a multiplication of Muon's counts as a part of one.
    const FEW: usize = 1 << 17;
    let done = |jobs: Vec<Job>| parallel::alone(|| jobs.iter().try_for_each(|job| job.apply(level)));
    let all: usize = jobs.iter().map(Job::work).sum();
    let threads = if all < FEW { 1 } else { rayon::current_num_threads().min(jobs.len()) };
    if threads <= 1 {
        return done(jobs);
    }
    keep_apart(&mut jobs)?;
    jobs.sort_by_key(|job| std::cmp::Reverse(job.work()));
    // The longest first, each to whoever has the least.
    let mut shares: Vec<(usize, Vec<Job>)> = (0..threads).map(|_| (0, vec![])).collect();
    for job in jobs {
        if let Some(least) = shares.iter_mut().min_by_key(|share| share.0) {
            least.0 += job.work();
            least.1.push(job);
        }
    }
    let mut shares = shares.into_iter().map(|share| share.1);
    let own = shares.next().unwrap_or_default();
    std::thread::scope(|scope| {
        let others: Vec<_> = shares.map(|share| scope.spawn(move || done(share))).collect();
        let own = done(own);
        let ended = others.into_iter().map(|o| o.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        std::iter::once(own).chain(ended).collect()
    })
}

impl Job<'_> {
    /// The parameter and its state.
    fn tensors(&self) -> Vec<&Tensor> {
        std::iter::once(self.param.var.as_tensor()).chain(&*self.state).collect()
    }

    /// What it takes, in elements of a plain update.
    fn work(&self) -> usize {
        let n = self.param.var.elem_count();
        match (self.update.rule, self.param.var.dims()) {
            // Some ten products with the smaller side; a plain update of an element takes as long as some hundred multiplications.
            (Rule::Muon { .. }, &[rows, columns]) => n.saturating_mul(1 + rows.min(columns) / 10),
            _ => n,
        }
    }

    /// By the CPU's kernels, on this thread: all tensors are f32 and there.
    fn apply(&self, level: Level) -> Result<()> {
        let Job { update, grad, param, .. } = self;
        let grad = grad.contiguous()?;
        let (storage, layout) = grad.storage_and_layout();
        let (candle_core::Storage::Cpu(cpu), Some((start, end))) = (&*storage, layout.contiguous_offsets()) else {
            bail!("the gradient of {} is not on the CPU", param.name)
        };
        let grad = &cpu.as_slice::<f32>()?[start..end];
        slices_mut(&self.tensors(), &mut |slices| {
            match (update.rule, param.var.dims()) {
                (Rule::Muon { momentum }, &[rows, columns]) => {
                    muon::update(*update, momentum, [rows, columns], grad, slices)
                }
                _ => cpu::update(level, *update, grad, slices),
            }
            Ok(())
        })
    }
}

impl Optimizer {
    /// State of zeros for every trainable parameter; `group` decides the scale of the learning rate and the decay of each.
    pub fn new(rule: Rule, params: &Params, group: impl Fn(&Param) -> Group) -> Result<Self> {
        let slot = |param: Param| -> Result<Slot> {
            let group = group(&param);
            let rule = group.rule.unwrap_or(rule);
            rule.check()?;
            if param.var.dtype() != DType::F32 {
                bail!("{} is of {:?}: an optimizer moves f32", param.name, param.var.dtype())
            }
            if matches!(rule, Rule::Muon { .. }) && param.var.rank() != 2 {
                bail!("{} of shape {:?} is no matrix, which Muon needs", param.name, param.var.dims())
            }
            let state =
                rule.state_names().iter().map(|_| Tensor::zeros(param.var.shape(), DType::F32, param.var.device()));
            Ok(Slot { group, rule, state: state.collect::<Result<_>>()?, param })
        };
        let trainable = params.trainable();
        if trainable.is_empty() {
            bail!(
                "an optimizer over no parameter: those of Params::restore are constants; Params::fine_tune gives ones to train"
            )
        }
        Ok(Self { slots: trainable.into_iter().map(slot).collect::<Result<_>>()?, steps: 0 })
    }

    /// Updates taken so far.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// Moves every parameter by its gradient times `scale` (see [`clip_factor`]) at learning rate `lr`. Parameters without a
    /// gradient stay as they are.
    ///
    /// Large models are moved by several threads, none of them rayon's: those may wait, in an op, for what is locked here.
    ///
    /// # Errors
    /// `grads` are another model's, or of another type or device; it is called within an op, which a task of rayon's may be, as that holds
    /// parameters that are to be written.
    pub fn step(&mut self, grads: &Gradients, lr: f64, scale: f64) -> Result<()> {
        let differs = |((name, grad), s): ((&str, Option<&Tensor>), &Slot)| {
            let fits = |g: &Tensor| {
                let (var, device) = (&s.param.var, g.device());
                g.dims() == var.dims() && g.dtype().is_float() && device.same_device(var.device())
            };
            name != s.param.name || grad.is_some_and(|g| !fits(g))
        };
        if grads.len() != self.slots.len() || grads.iter().zip(&self.slots).any(differs) {
            bail!("the gradients are not those of the optimizer's parameters")
        }
        let step = self.steps + 1;
        let jobs = self.slots.iter_mut().zip(grads.iter()).filter_map(|(slot, (_, grad))| {
            let Group { lr_scale, weight_decay, .. } = slot.group;
            let update = Update { rule: slot.rule, lr: lr * lr_scale, weight_decay, scale, step };
            Some(Job { update, grad: grad?.clone(), param: &slot.param, state: &mut slot.state })
        });
        apply(jobs.collect())?;
        self.steps = step;
        Ok(())
    }

    /// The state by name, such as `exp_avg.linear.weight`.
    pub fn state(&self) -> Vec<(String, Tensor)> {
        let named = |s: &Slot| -> Vec<(String, Tensor)> {
            let name = |kind: &&str| format!("{kind}.{}", s.param.name);
            s.rule.state_names().iter().map(name).zip(s.state.iter().cloned()).collect()
        };
        self.slots.iter().flat_map(named).collect()
    }

    /// Takes up a saved state: all tensors of [`Optimizer::state`] and the number of updates taken.
    ///
    /// # Errors
    /// Names the first tensor that is missing, unexpected or of another shape; more steps than there can have been. Nothing changes then.
    pub fn load(&mut self, tensors: &BTreeMap<String, Tensor>, steps: u64) -> Result<()> {
        if steps >= 1 << 53 {
            bail!("the optimizer state is of {steps} steps")
        }
        let own = self.state();
        for (name, t) in &own {
            match tensors.get(name) {
                None => bail!("the optimizer state lacks {name}"),
                Some(found) if found.dims() != t.dims() => {
                    bail!("the optimizer state has {name} as {:?}, expected {:?}", found.dims(), t.dims())
                }
                Some(_) => {}
            }
        }
        if let Some(name) = tensors.keys().find(|k| own.iter().all(|(name, _)| name != *k)) {
            bail!("the optimizer state has {name}, which belongs to no parameter or another optimizer")
        }
        let loaded = |slot: &Slot| -> Result<Vec<Tensor>> {
            let device = slot.param.var.device();
            let found =
                slot.rule.state_names().iter().filter_map(|kind| tensors.get(&format!("{kind}.{}", slot.param.name)));
            found.map(|t| t.to_dtype(DType::F32)?.to_device(device)?.contiguous()?.copy()).collect()
        };
        let states = self.slots.iter().map(loaded).collect::<Result<Vec<_>>>()?;
        self.slots.iter_mut().zip(states).for_each(|(slot, state)| slot.state = state);
        self.steps = steps;
        Ok(())
    }
}

/// Moves a running average of weights: average ← decay · average + (1 - decay) · weights, for each parameter
/// that is trained; the others are taken over.
///
/// # Errors
/// The two are not of the same model.
pub fn average(average: &Params, weights: &Params, decay: f64) -> Result<()> {
    let (all, now) = (average.all(), weights.tensors());
    let differs = |(p, (name, t)): (&Param, &(String, Tensor))| p.name != *name || p.var.dims() != t.dims();
    if all.len() != now.len() || all.iter().zip(&now).any(differs) {
        bail!("the average and the weights are not of the same model")
    }
    if average.shares(weights) {
        bail!("the average and the weights are the same parameters")
    }
    // The formula is a step of gradient descent at rate 1 - decay with the gradient average - weights.
    let rule = Rule::Sgd { momentum: 0., nesterov: false };
    let update = Update { rule, lr: 1. - decay, weight_decay: 1., scale: -1., step: 1 };
    let trained = weights.all();
    let mut jobs = vec![];
    for ((param, (_, weight)), trained) in all.iter().zip(&now).zip(&trained) {
        match trained.trainable {
            true => jobs.push(Job { update, grad: weight.clone(), param, state: &mut [] }),
            // What no optimizer moves is taken over: statistics that a layer keeps are averages already.
            false => param.var.set(weight)?,
        }
    }
    apply(jobs)
}

/// The global 2-norm of all gradients, accumulated in definition order, in f64 across blocks.
pub fn global_norm(grads: &Gradients) -> Result<f64> {
    let there: Vec<&Tensor> = grads.iter().filter_map(|(_, grad)| grad).collect();
    let plain = there.iter().any(|t| t.dtype() != DType::F32);
    if let (Some(gpu), true) = (Gpu::of(&there), simd::fused() && !plain) {
        return Ok(gpu::squares(&gpu, &there)?.sqrt());
    }
    let mut sum = 0.;
    for grad in there {
        sum += norm_squared(grad)?;
    }
    Ok(sum.sqrt())
}

/// The squared 2-norm of a tensor; infinite if it exceeds f32's range within a block of 1024 elements.
pub fn norm_squared(t: &Tensor) -> Result<f64> {
    let (storage, layout) = t.storage_and_layout();
    match (&*storage, layout.contiguous_offsets()) {
        (_, Some((start, end))) if start == end => Ok(0.),
        (candle_core::Storage::Cpu(candle_core::CpuStorage::F32(data)), Some((start, end))) => {
            Ok(vector::sum_of_squares(simd::level()?, &data[start..end]))
        }
        // Not every device has f64.
        _ => Ok(f64::from(t.to_dtype(DType::F32)?.sqr()?.sum_all()?.to_scalar::<f32>()?)),
    }
}

/// The factor that brings gradients of norm `norm` to at most `max_norm`; 1 without a limit (`max_norm` = 0), and not a number for a norm that
/// is none. As in PyTorch, 1e-6 is added to the norm.
pub fn clip_factor(norm: f64, max_norm: f64) -> f64 {
    if norm.is_nan() || max_norm.is_nan() {
        return f64::NAN;
    }
    if max_norm > 0. { (max_norm / (norm + 1e-6)).min(1.) } else { 1. }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::*;
    use crate::init;
    use zoo_kernels::check::random;
    use zoo_kernels::cpu::simd::{levels, with_level};
    use zoo_kernels_emulator::{ready, with_emulation};

    #[test]
    fn loaded_weights_are_trained_on_or_refused() -> Result<()> {
        let dims = (2, 3);
        let build = |vb: candle_nn::VarBuilder<'static>| vb.get_with_hints(dims, "w", init::ZEROS);
        let tensors = || -> Result<_> { Ok([("w".to_string(), random(1, &[2, 3])?)].into()) };
        let rule = Rule::AdamW(Moments::default());
        let (_, constants) = Params::restore(tensors()?, &Device::Cpu, build)?;
        let refused = Optimizer::new(rule, &constants, decay_matrices(0.)).map(|_| ()).unwrap_err().to_string();
        assert!(refused.contains("Params::fine_tune"), "{refused}");
        let (w, params) = Params::fine_tune(tensors()?, &Device::Cpu, build)?;
        let mut optimizer = Optimizer::new(rule, &params, decay_matrices(0.))?;
        let mut losses = vec![];
        for _ in 0..20 {
            let loss = w.sqr()?.sum_all()?;
            losses.push(loss.to_scalar::<f32>()?);
            optimizer.step(&params.gradients(&loss.backward()?), 0.05, 1.)?;
        }
        assert!(losses[0] > 0. && losses[19] < 0.5 * losses[0], "{losses:?}");
        let missing = Params::fine_tune(Default::default(), &Device::Cpu, build).map(|_| ()).unwrap_err().to_string();
        assert!(missing.contains("missing w"), "{missing}");
        Ok(())
    }

    const RULES: [Rule; 8] = [
        Rule::AdamW(Moments { beta1: 0.9, beta2: 0.95, eps: 1e-8 }),
        Rule::Adam(Moments { beta1: 0.9, beta2: 0.999, eps: 1e-8 }),
        Rule::Sgd { momentum: 0., nesterov: false },
        Rule::Sgd { momentum: 0.9, nesterov: false },
        Rule::Sgd { momentum: 0.9, nesterov: true },
        Rule::RmsProp { alpha: 0.99, eps: 1e-8, momentum: 0. },
        Rule::RmsProp { alpha: 0.99, eps: 1e-8, momentum: 0.5 },
        Rule::AdamW(Moments { beta1: 0., beta2: 0.5, eps: 1e-3 }),
    ];

    fn params() -> Result<Params> {
        let params = Params::init(4, &Device::Cpu);
        let vb = params.builder();
        vb.get_with_hints((7, 9), "weight", init::normal(0., 1.))?;
        vb.get_with_hints(3, "bias", init::normal(0., 1.))?;
        Ok(params)
    }

    fn gradients(params: &Params, seed: u64) -> Result<Gradients> {
        let mut loss = Tensor::new(0f32, &Device::Cpu)?;
        for (i, p) in params.trainable().iter().enumerate() {
            loss = (loss + (p.var.as_tensor() * random(seed + i as u64, p.var.dims())?)?.sum_all()?)?;
        }
        Ok(params.gradients(&loss.backward()?))
    }

    fn values(params: &Params) -> Result<Vec<f32>> {
        params
            .tensors()
            .iter()
            .map(|(_, t)| t.flatten_all()?.to_vec1::<f32>())
            .collect::<Result<Vec<_>>>()
            .map(|v| v.concat())
    }

    #[test]
    fn kernels_agree_with_the_reference() -> Result<()> {
        for rule in RULES {
            let exact = params()?;
            let vars: Vec<Var> = exact.trainable().into_iter().map(|p| p.var).collect();
            let mut state: Vec<Vec<Tensor>> = vars
                .iter()
                .map(|v| rule.state_names().iter().map(|_| v.zeros_like()).collect::<Result<_>>())
                .collect::<Result<_>>()?;
            for step in 1..=5 {
                for (i, (_, g)) in gradients(&exact, 10 * step)?.iter().enumerate() {
                    let g = g.ok_or_else(|| candle_core::Error::msg("no gradient"))?;
                    let weight_decay = if vars[i].rank() > 1 { 0.1 } else { 0. };
                    let update = Update { rule, lr: 0.01, weight_decay, scale: 0.5, step };
                    reference::update(update, g, &vars[i], &mut state[i])?;
                }
            }
            let train = || {
                let params = params()?;
                let mut optimizer = Optimizer::new(rule, &params, decay_matrices(0.1))?;
                for step in 1..=5 {
                    optimizer.step(&gradients(&params, 10 * step)?, 0.01, 0.5)?;
                }
                values(&params)
            };
            let mut found = vec![];
            for level in levels() {
                found.push((level.name(), with_level(level, train)?));
            }
            if ready() {
                found.push(("GPU kernels on the CPU", with_emulation(false, train)?));
            }
            for (place, values_there) in found {
                for (a, b) in values_there.iter().zip(values(&exact)?) {
                    assert!((a - b).abs() <= 2e-6 * b.abs().max(1.), "{rule:?} {place}: {a} {b}");
                }
            }
        }
        Ok(())
    }

    #[test]
    fn muon_moves_matrices_by_nearly_orthogonal_steps_and_leaves_the_rest_to_adamw() -> Result<()> {
        let params = Params::init(4, &Device::Cpu);
        let vb = params.builder();
        for (dims, name) in [((7, 20), "wide"), ((20, 7), "tall"), ((9, 9), "token_embedding.weight")] {
            vb.get_with_hints(dims, name, init::normal(0., 1.))?;
        }
        vb.get_with_hints(3, "bias", init::normal(0., 1.))?;
        let moments = Moments::default();
        let rule = Rule::Muon { momentum: 0.95 };
        let mut muon = Optimizer::new(rule, &params, muon_groups(0., moments))?;
        let states: Vec<String> = muon.state().into_iter().map(|(name, _)| name).collect();
        assert_eq!(states[..3], ["momentum_buffer.wide", "momentum_buffer.tall", "exp_avg.token_embedding.weight"]);
        let before: Vec<Tensor> = params.tensors().iter().map(|(_, t)| t.copy()).collect::<Result<_>>()?;
        let grads = gradients(&params, 3)?;
        muon.step(&grads, 0.1, 1.)?;
        for (i, grad) in grads.iter().enumerate().take(2).map(|(i, (_, g))| (i, g.cloned())) {
            let grad = grad.ok_or_else(|| candle_core::Error::msg("no gradient"))?;
            let step = ((&before[i] - &params.tensors()[i].1)? / (0.1 * 0.2 * 20f64.sqrt()))?;
            // Of 7 singular values, all near 1.
            let square = if i == 0 { step.matmul(&step.t()?)? } else { step.t()?.matmul(&step)? }.to_vec2::<f32>()?;
            let trace: f32 = (0..7).map(|k| square[k][k]).sum();
            let of_squares: f32 = square.iter().flatten().map(|v| v * v).sum();
            assert!((0.7..1.3).contains(&(trace / 7.)), "{trace}");
            assert!((0.5..1.7).contains(&(of_squares / 7.)), "{of_squares}");
            // As the reference has it.
            let var = candle_core::Var::from_tensor(&before[i])?;
            let update = Update { rule, lr: 0.1, weight_decay: 0., scale: 1., step: 1 };
            reference::update(update, &grad, &var, &mut [before[i].zeros_like()?])?;
            let error = (var.as_tensor() - &params.tensors()[i].1)?.abs()?.max_all()?.to_scalar::<f32>()?;
            assert!(error < 1e-5, "{error}");
            // And it goes down.
            assert!((step * grad)?.sum_all()?.to_scalar::<f32>()? > 0.);
        }
        assert!(Optimizer::new(rule, &params, decay_matrices(0.)).is_err(), "a vector is no matrix");
        Ok(())
    }

    #[test]
    fn muon_moves_by_gpu_kernels_as_by_those_of_the_cpu() -> Result<()> {
        if !ready() {
            return Ok(());
        }
        let train = || -> Result<Vec<f32>> {
            let params = Params::init(4, &Device::Cpu);
            for (dims, name) in [((7, 20), "wide"), ((200, 150), "tall"), ((9, 9), "square")] {
                params.builder().get_with_hints(dims, name, init::normal(0., 1.))?;
            }
            let group = |_: &Param| Group { lr_scale: 1., weight_decay: 0.1, rule: None };
            let mut muon = Optimizer::new(Rule::Muon { momentum: 0.95 }, &params, group)?;
            (0..3).try_for_each(|step| muon.step(&gradients(&params, step)?, 0.1, 0.3))?;
            let state = muon.state().into_iter().map(|(_, t)| t.flatten_all()?.to_vec1::<f32>());
            Ok([values(&params)?, state.collect::<Result<Vec<_>>>()?.concat()].concat())
        };
        let (here, there) = (train()?, with_emulation(false, train)?);
        assert!(here.iter().zip(&there).all(|(a, b)| (a - b).abs() < 2e-4 * a.abs().max(1.)));
        assert!(here != there, "the kernels did not run");
        Ok(())
    }

    #[test]
    fn a_saved_state_continues_to_the_bit() -> Result<()> {
        for rule in RULES {
            let through = params()?;
            let mut one = Optimizer::new(rule, &through, decay_matrices(0.1))?;
            let resumed = params()?;
            let mut first = Optimizer::new(rule, &resumed, decay_matrices(0.1))?;
            for step in 0..3 {
                one.step(&gradients(&through, step)?, 0.01, 1.)?;
                first.step(&gradients(&resumed, step)?, 0.01, 1.)?;
            }
            let saved =
                first.state().into_iter().map(|(n, t)| Ok((n, t.copy()?))).collect::<Result<BTreeMap<_, _>>>()?;
            let mut second = Optimizer::new(rule, &resumed, decay_matrices(0.1))?;
            second.load(&saved, first.steps())?;
            for step in 3..6 {
                one.step(&gradients(&through, step)?, 0.01, 1.)?;
                second.step(&gradients(&resumed, step)?, 0.01, 1.)?;
            }
            assert_eq!(values(&through)?, values(&resumed)?, "{rule:?}");
            let mut missing = saved.clone();
            if missing.pop_first().is_some() {
                assert!(second.load(&missing, 3).is_err());
            }
        }
        Ok(())
    }

    #[test]
    fn an_average_follows_the_weights() -> Result<()> {
        for level in levels() {
            let (weights, mean) = (params()?, params()?);
            let mut optimizer = Optimizer::new(RULES[2], &weights, decay_matrices(0.))?;
            optimizer.step(&gradients(&weights, 3)?, 0.5, 1.)?;
            let (before, now) = (values(&mean)?, values(&weights)?);
            with_level(level, || average(&mean, &weights, 0.9))?;
            for (m, (b, w)) in values(&mean)?.iter().zip(before.iter().zip(&now)) {
                assert!((m - (0.9 * b + 0.1 * w)).abs() < 1e-6, "{level:?}: {m} of {b} and {w}");
            }
        }
        let other = Params::init(1, &Device::Cpu);
        assert!(average(&other, &params()?, 0.9).is_err());
        let same = params()?;
        assert!(average(&same.clone(), &same, 0.9).is_err());
        Ok(())
    }

    #[test]
    fn clipping_keeps_small_norms_and_bounds_large_ones() -> Result<()> {
        let params = params()?;
        let grads = gradients(&params, 3)?;
        let norm = global_norm(&grads)?;
        let each = grads
            .iter()
            .map(|(_, g)| g.map_or(Ok(0.), |g| g.to_dtype(DType::F64)?.sqr()?.sum_all()?.to_scalar::<f64>()));
        let exact = each.sum::<Result<f64>>()?.sqrt();
        assert!((norm - exact).abs() < 1e-6 * exact);
        if ready() {
            let there = with_emulation(false, || global_norm(&grads))?;
            assert!((there - exact).abs() < 1e-6 * exact);
        }
        assert_eq!((clip_factor(norm, 0.), clip_factor(norm, norm + 1.)), (1., 1.));
        assert!((clip_factor(norm, 1.) * norm - 1.).abs() < 1e-5);
        Ok(())
    }
}
