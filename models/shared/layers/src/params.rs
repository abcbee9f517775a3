//! Parameters: named, in definition order, filled from a seed or from loaded tensors.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard};

use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Result, Shape, Tensor, Var, bail};
use candle_nn::var_builder::SimpleBackend;
use candle_nn::{Init, VarBuilder};

use zoo_kernels::cpu::storage_address;

use crate::optim::norm_squared;
use crate::random::{Purpose, Stream, layer_id};

/// One named tensor of a model.
#[derive(Clone, Debug)]
pub struct Param {
    /// Its path, equal to the PyTorch reference's `state_dict` key.
    pub name: String,
    /// Its value. Models hold the same storage, so a change of value in place is seen by them.
    pub var: Var,
    /// Whether an optimizer changes it: false for buffers and frozen parameters.
    pub trainable: bool,
    /// Whether it is statistics that a layer keeps itself, by PyTorch's names for them, or a constant (`constant_…`).
    pub buffer: bool,
}

/// A parameter without values: see [`Params::outline`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outlined {
    /// Its name.
    pub name: String,
    /// Its sizes.
    pub shape: Vec<usize>,
    /// Whether training changes it.
    pub trainable: bool,
}

impl Outlined {
    /// Its elements.
    pub fn count(&self) -> usize {
        self.shape.iter().product()
    }
}

enum Origin {
    /// Draw initial values from this seed.
    Seed(u64),
    /// Take loaded tensors by name.
    Loaded(BTreeMap<String, Tensor>),
    /// Make none: names and shapes are all that is asked for.
    Outline(Vec<Outlined>),
}

struct Inner {
    source: Origin,
    params: Vec<Param>,
    index: HashMap<String, usize>,
    frozen: Arc<dyn Fn(&str) -> bool + Send + Sync>,
    track: bool,
    /// Names that a builder was asked for more than once.
    shared: BTreeSet<String>,
    /// Elements that may still be made up for tensors that are not there, or of another shape: enough to name what is wrong,
    /// whatever sizes a file's configuration asks for.
    room: usize,
    /// Whether all that was loaded is there, so that nothing more can be.
    is_complete: bool,
}

/// The parameters of a model: an ordered, named list behind candle's [`VarBuilder`].
///
/// The order is that of the model's definition, so counts, norms, optimizer slots and files are the same in every
/// process. Cloning shares the list.
#[derive(Clone)]
pub struct Params {
    inner: Arc<Mutex<Inner>>,
    device: Device,
}

impl Params {
    fn new(source: Origin, device: &Device, track: bool) -> Self {
        let (params, index, frozen) = (vec![], HashMap::new(), Arc::new(|_: &str| false));
        let loaded = match &source {
            Origin::Loaded(tensors) => tensors.values().map(Tensor::elem_count).sum(),
            Origin::Seed(_) | Origin::Outline(_) => 0,
        };
        let (shared, room) = (BTreeSet::new(), SPARE + 2 * loaded);
        let inner = Inner { source, params, index, frozen, track, shared, room, is_complete: false };
        Self { inner: Arc::new(Mutex::new(inner)), device: device.clone() }
    }

    /// Trainable parameters whose initial values are drawn from `seed`, each by its own name: adding a layer does not
    /// change the others'.
    pub fn init(seed: u64, device: &Device) -> Self {
        Self::new(Origin::Seed(seed), device, true)
    }

    /// The parameters that `build` defines, in their order. No values are made: what it is handed takes no memory, and is of use for
    /// nothing else.
    ///
    /// # Errors
    /// Those of `build`.
    pub fn outline<M>(build: impl FnOnce(VarBuilder<'static>) -> Result<M>) -> Result<Vec<Outlined>> {
        let params = Self::new(Origin::Outline(vec![]), &Device::Cpu, true);
        build(params.builder())?;
        let mut inner = params.lock();
        match &mut inner.source {
            Origin::Outline(all) => Ok(std::mem::take(all)),
            _ => Ok(vec![]),
        }
    }

    /// A model over `tensors`, for one that only runs: its parameters are constants, and no graph is recorded. To train on, see
    /// [`Params::fine_tune`].
    ///
    /// # Errors
    /// Those of `build`; one message that names every missing, unexpected and mis-shaped tensor and the nearest names; or the
    /// first tensor whose values are not all finite.
    pub fn restore<M>(
        tensors: BTreeMap<String, Tensor>,
        device: &Device,
        build: impl FnOnce(VarBuilder<'static>) -> Result<M>,
    ) -> Result<(M, Self)> {
        Self::loaded(tensors, device, false, build)
    }

    /// A model that begins with `tensors` and is trained on: its parameters are variables, as those of [`Params::init`].
    ///
    /// # Errors
    /// As [`Params::restore`].
    pub fn fine_tune<M>(
        tensors: BTreeMap<String, Tensor>,
        device: &Device,
        build: impl FnOnce(VarBuilder<'static>) -> Result<M>,
    ) -> Result<(M, Self)> {
        Self::loaded(tensors, device, true, build)
    }

    fn loaded<M>(
        tensors: BTreeMap<String, Tensor>,
        device: &Device,
        track: bool,
        build: impl FnOnce(VarBuilder<'static>) -> Result<M>,
    ) -> Result<(M, Self)> {
        let params = Self::new(Origin::Loaded(tensors), device, track);
        let model = build(params.builder())?;
        params.check()?;
        // What is asked for from now on has no values.
        params.lock().is_complete = true;
        Ok((model, params))
    }

    /// Compares tensors, by name and shape, with those that the model wants which `build` defines: one line for each that is
    /// missing, has another shape or is not wanted. No values are made.
    ///
    /// # Errors
    /// Those of `build`.
    pub fn mismatches<'t, M>(
        present: impl IntoIterator<Item = (&'t str, &'t [usize])>,
        build: impl FnOnce(VarBuilder<'static>) -> Result<M>,
    ) -> Result<Vec<String>> {
        let params = Self::new(Origin::Loaded(BTreeMap::new()), &Device::Cpu, false);
        let present: BTreeMap<String, &[usize]> = present.into_iter().map(|(n, dims)| (n.to_string(), dims)).collect();
        let elements = present.values().map(|dims| dims.iter().fold(1usize, |n, d| n.saturating_mul(*d)));
        let wanted = elements.fold(0usize, usize::saturating_add).saturating_mul(2);
        let mut inner = params.lock();
        inner.room = inner.room.saturating_add(wanted);
        drop(inner);
        build(params.builder())?;
        let inner = params.lock();
        Ok(mismatches(&inner.params, &present))
    }

    /// Leaves the parameters that `frozen` names as they are: they are handed out as constants and never trained.
    pub fn with_frozen(self, frozen: impl Fn(&str) -> bool + Send + Sync + 'static) -> Self {
        self.lock().frozen = Arc::new(frozen);
        self
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A poisoned lock means that another thread panicked between two whole updates: the list is still valid.
        self.inner.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// The builder to define a model with (f32).
    pub fn builder(&self) -> VarBuilder<'static> {
        VarBuilder::from_backend(
            Box::new(Backend { params: self.clone(), frozen: false }),
            DType::F32,
            self.device.clone(),
        )
    }

    /// Names that more than one layer asked [`builder`](Self::builder) for: those layers share their weights, by intention or
    /// by a slip.
    pub fn shared(&self) -> Vec<String> {
        self.lock().shared.iter().cloned().collect()
    }

    /// A builder over the same storage that hands out constants: a model built with it sees every update and records
    /// no graph.
    pub fn eval_builder(&self) -> VarBuilder<'static> {
        VarBuilder::from_backend(
            Box::new(Backend { params: self.clone(), frozen: true }),
            DType::F32,
            self.device.clone(),
        )
    }

    /// The device that the parameters live on.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Whether the two are one list.
    pub(crate) fn shares(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.inner, &other.inner)
    }

    /// All parameters in definition order.
    pub fn all(&self) -> Vec<Param> {
        self.lock().params.clone()
    }

    /// The parameters that training changes, in definition order.
    pub fn trainable(&self) -> Vec<Param> {
        self.lock().params.iter().filter(|p| p.trainable).cloned().collect()
    }

    /// The values by name, sharing storage with the parameters.
    pub fn tensors(&self) -> Vec<(String, Tensor)> {
        self.lock().params.iter().map(|p| (p.name.clone(), p.var.as_detached_tensor())).collect()
    }

    fn check(&self) -> Result<()> {
        let inner = self.lock();
        let Origin::Loaded(tensors) = &inner.source else { return Ok(()) };
        report(mismatches(&inner.params, &shapes(tensors)))?;
        for p in &inner.params {
            // The sum of squares may be beyond what can be counted where the values are not.
            if !norm_squared(&p.var)?.is_finite() && !is_finite(&p.var)? {
                bail!("{} has values that are not finite numbers: the file is damaged, or its training failed", p.name)
            }
        }
        Ok(())
    }

    /// Replaces all values by `tensors`, strictly: nothing changes unless every name and shape fits.
    pub fn set(&self, tensors: &BTreeMap<String, Tensor>) -> Result<()> {
        if zoo_kernels::reading() {
            bail!(
                "parameters were to be set within an op on the same thread, as a task of rayon's: set them outside of rayon's tasks"
            )
        }
        // Without the list's lock: others may hold the values meanwhile.
        let params = self.all();
        report(mismatches(&params, &shapes(tensors)))?;
        let own: BTreeSet<usize> = params.iter().map(|p| storage_address(&p.var)).collect();
        let value = |p: &Param| -> Result<Option<Tensor>> {
            let Some(t) = tensors.get(&p.name) else { return Ok(None) };
            let value = t.to_dtype(p.var.dtype())?.to_device(p.var.device())?;
            // One that is a parameter's own would change as they are set.
            Ok(Some(if own.contains(&storage_address(&value)) { value.copy()? } else { value }))
        };
        let values = params.iter().map(value).collect::<Result<Vec<_>>>()?;
        for (p, value) in params.iter().zip(values) {
            value.map_or(Ok(()), |value| p.var.set(&value))?;
        }
        Ok(())
    }

    /// The gradients of the trainable parameters, in definition order.
    pub fn gradients(&self, grads: &GradStore) -> Gradients {
        let entries = self.trainable().into_iter().map(|p| (p.name, grads.get(p.var.as_tensor()).cloned())).collect();
        Gradients { entries }
    }
}

fn shapes(tensors: &BTreeMap<String, Tensor>) -> BTreeMap<String, &[usize]> {
    tensors.iter().map(|(name, t)| (name.clone(), t.dims())).collect()
}

/// What is missing of a model's tensors, has another shape, or is not one of them, a line each.
fn mismatches(params: &[Param], present: &BTreeMap<String, &[usize]>) -> Vec<String> {
    let mut problems = vec![];
    for p in params {
        match present.get(&p.name) {
            None => problems.push(match nearest(&p.name, present.keys().map(String::as_str)) {
                Some(other) => format!("missing {} (did you mean {other}?)", p.name),
                None => format!("missing {}", p.name),
            }),
            Some(dims) if *dims != p.var.dims() => problems.push(misshaped(&p.name, p.var.dims(), dims)),
            Some(_) => {}
        }
    }
    let known: HashSet<&str> = params.iter().map(|p| p.name.as_str()).collect();
    let unexpected = present.keys().filter(|name| !known.contains(name.as_str()));
    problems.extend(unexpected.map(|name| format!("unexpected {name}")));
    problems
}

fn misshaped(name: &str, expected: &[usize], got: &[usize]) -> String {
    format!("{name} has shape {got:?}, expected {expected:?}")
}

fn report(mut problems: Vec<String>) -> Result<()> {
    const SHOWN: usize = 8;
    if problems.len() > SHOWN {
        let more = problems.len() - SHOWN;
        problems.truncate(SHOWN);
        problems.push(format!("and {more} more"));
    }
    if problems.is_empty() { Ok(()) } else { bail!("the tensors do not fit the model: {}", problems.join("; ")) }
}

/// The candidate that looks most like `name`, if any is close enough to be a likely slip.
pub fn nearest<'a>(name: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    // The time grows with both lengths, and names may be a file's.
    const LONGEST: usize = 80;
    const MOST: usize = 2000;
    if name.len() > LONGEST {
        return None;
    }
    let candidates = candidates.filter(|c| c.len() <= LONGEST).take(MOST);
    let scored = candidates.map(|c| (strsim::normalized_damerau_levenshtein(name, c), c));
    scored.filter(|(score, _)| *score >= 0.5).max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, c)| c)
}

/// Whether a name is that of statistics that a layer keeps itself, by PyTorch's names for them, or of something known that no
/// training changes (`constant_…`).
fn is_buffer(name: &str) -> bool {
    let last = name.rsplit('.').next().unwrap_or_default();
    last.starts_with("constant_")
        || matches!(last, "running_mean" | "running_var" | "num_batches_tracked" | "running_count")
}

/// Elements that are made up for tensors in any case.
const SPARE: usize = 1 << 24;

/// A parameter with more elements is a slip, and asking for its memory would end the process.
const LARGEST: usize = 1 << 31;

struct Backend {
    params: Params,
    frozen: bool,
}

impl Backend {
    fn create(
        inner: &mut Inner,
        shape: &Shape,
        name: &str,
        init: Init,
        dtype: DType,
        device: &Device,
    ) -> Result<Tensor> {
        match &mut inner.source {
            Origin::Seed(seed) => {
                draw(init, shape, Stream::new(*seed, Purpose::Init, layer_id(name), 0), device)?.to_dtype(dtype)
            }
            Origin::Outline(_) => bail!("{name} has no values"),
            Origin::Loaded(tensors) => match tensors.get_mut(name) {
                Some(t) if t.shape() == shape => {
                    // Its values are let go of where the parameter has them: of the loaded one the shape is left.
                    let left = Tensor::zeros((), dtype, &Device::Cpu)?.broadcast_as(shape)?;
                    std::mem::replace(t, left).to_dtype(dtype)?.to_device(device)
                }
                _ if inner.is_complete => bail!("{name} is not among the tensors that were loaded"),
                // A model of these is never handed out: its check refuses it.
                found => match inner.room.checked_sub(shape.elem_count()) {
                    Some(room) => {
                        inner.room = room;
                        Tensor::zeros(shape, dtype, device)
                    }
                    None => bail!(
                        "the tensors do not fit the model: {}",
                        found.map_or_else(
                            || format!("missing {name} of shape {:?}", shape.dims()),
                            |t| misshaped(name, shape.dims(), t.dims())
                        )
                    ),
                },
            },
        }
    }
}

impl SimpleBackend for Backend {
    fn get(&self, shape: Shape, name: &str, init: Init, dtype: DType, device: &Device) -> Result<Tensor> {
        let elements = shape.dims().iter().try_fold(1usize, |n, d| n.checked_mul(*d));
        if elements.is_none_or(|n| n > LARGEST) {
            bail!("{name} of shape {:?} would have more than {LARGEST} elements", shape.dims())
        }
        // Somebody's function may ask the list, and is called before it is locked.
        let frozen = self.params.lock().frozen.clone();
        let is_frozen = frozen(name);
        let inner = &mut *self.params.lock();
        if let Origin::Outline(all) = &mut inner.source {
            if !all.iter().any(|p| p.name == name) {
                let trainable = !is_buffer(name) && !is_frozen;
                all.push(Outlined { name: name.to_string(), shape: shape.dims().to_vec(), trainable });
            }
            return Tensor::zeros((), dtype, device)?.broadcast_as(shape);
        }
        let at = match inner.index.get(name) {
            Some(&at) => {
                if !self.frozen {
                    inner.shared.insert(name.to_string());
                }
                at
            }
            None => {
                let var = Var::from_tensor(&Self::create(inner, &shape, name, init, dtype, device)?.detach())?;
                let buffer = is_buffer(name);
                let trainable = inner.track && !buffer && !is_frozen;
                inner.params.push(Param { name: name.to_string(), var, trainable, buffer });
                inner.index.insert(name.to_string(), inner.params.len() - 1);
                inner.params.len() - 1
            }
        };
        let param = &inner.params[at];
        if param.var.shape() != &shape {
            bail!("{}", misshaped(name, shape.dims(), param.var.dims()));
        }
        Ok(if self.frozen || !param.trainable { param.var.as_detached_tensor() } else { param.var.as_tensor().clone() })
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> Result<Tensor> {
        let inner = self.params.lock();
        match inner.index.get(name) {
            Some(&at) if self.frozen || !inner.params[at].trainable => Ok(inner.params[at].var.as_detached_tensor()),
            Some(&at) => Ok(inner.params[at].var.as_tensor().clone()),
            None => bail!("{name} has no shape yet: ask for it with one first"),
        }
    }

    fn contains_tensor(&self, name: &str) -> bool {
        let inner = self.params.lock();
        match &inner.source {
            Origin::Seed(_) => inner.index.contains_key(name),
            Origin::Outline(all) => all.iter().any(|p| p.name == name),
            Origin::Loaded(tensors) => tensors.contains_key(name),
        }
    }
}

fn is_finite(t: &Tensor) -> Result<bool> {
    let values = t.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
    Ok(values.iter().all(|v| v.is_finite()))
}

fn draw(init: Init, shape: &Shape, mut stream: Stream, device: &Device) -> Result<Tensor> {
    let n = shape.elem_count();
    let values: Vec<f32> = match init {
        Init::Const(v) => vec![v as f32; n],
        Init::Uniform { lo, up } => (0..n).map(|_| (lo + (up - lo) * stream.uniform()) as f32).collect(),
        Init::Randn { mean, stdev } => (0..n).map(|_| (mean + stdev * stream.normal()) as f32).collect(),
        Init::Kaiming { dist, fan, non_linearity } => {
            let std = non_linearity.gain() / (fan.for_shape(shape) as f64).sqrt();
            let init = match dist {
                candle_nn::init::NormalOrUniform::Normal => Init::Randn { mean: 0., stdev: std },
                candle_nn::init::NormalOrUniform::Uniform => crate::init::uniform(3f64.sqrt() * std),
            };
            return draw(init, shape, stream, device);
        }
    };
    Tensor::from_vec(values, shape, device)
}

/// The gradients of a model's trainable parameters, in definition order.
#[derive(Clone, Debug)]
pub struct Gradients {
    entries: Vec<(String, Option<Tensor>)>,
}

impl Gradients {
    /// Of parameters by name, in definition order.
    pub fn new(entries: Vec<(String, Option<Tensor>)>) -> Self {
        Self { entries }
    }

    /// Name and gradient; `None` where backward never reached the parameter.
    pub fn iter(&self) -> impl Iterator<Item = (&str, Option<&Tensor>)> {
        self.entries.iter().map(|(n, g)| (n.as_str(), g.as_ref()))
    }

    /// How many parameters there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is no trainable parameter.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The parameters that got no gradient at all: the graph between them and the loss is cut.
    pub fn missing(&self) -> Vec<&str> {
        self.iter().filter(|(_, g)| g.is_none()).map(|(n, _)| n).collect()
    }

    /// Adds another micro-step's gradients.
    ///
    /// # Errors
    /// They are another model's.
    pub fn add(&mut self, other: &Self) -> Result<()> {
        if !self.entries.iter().map(|(name, _)| name).eq(other.entries.iter().map(|(name, _)| name)) {
            bail!("the gradients are of other parameters")
        }
        for ((_, mine), (_, theirs)) in self.entries.iter_mut().zip(&other.entries) {
            *mine = match (mine.take(), theirs) {
                (Some(a), Some(b)) => Some((a + b)?),
                (a, b) => a.or_else(|| b.clone()),
            };
        }
        Ok(())
    }

    /// Adds to the gradient of one parameter.
    ///
    /// # Errors
    /// There is no such parameter, or another shape.
    pub fn add_to(&mut self, name: &str, gradient: &Tensor) -> Result<()> {
        let Some((_, mine)) = self.entries.iter_mut().find(|(n, _)| n == name) else {
            bail!("{name} has no gradient to add to")
        };
        *mine = Some(match mine.take() {
            Some(before) => (before + gradient)?,
            None => gradient.clone(),
        });
        Ok(())
    }

    /// Multiplies all by `factor`.
    pub fn scale(&mut self, factor: f64) -> Result<()> {
        for (_, g) in &mut self.entries {
            if let Some(t) = g {
                *t = (&*t * factor)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(vb: VarBuilder) -> Result<Vec<Tensor>> {
        ["b", "a", "z.w"].iter().map(|n| vb.get_with_hints((2, 3), n, crate::init::normal(0., 1.))).collect()
    }

    #[test]
    fn order_is_the_definition_order_and_the_seed_decides_the_values() -> Result<()> {
        let values = |seed| -> Result<Vec<(String, Vec<f32>)>> {
            let params = Params::init(seed, &Device::Cpu);
            model(params.builder())?;
            params.tensors().into_iter().map(|(n, t)| Ok((n, t.flatten_all()?.to_vec1()?))).collect()
        };
        let (one, again, other) = (values(1)?, values(1)?, values(2)?);
        assert_eq!(one.iter().map(|(n, _)| n.as_str()).collect::<Vec<_>>(), ["b", "a", "z.w"]);
        assert_eq!(one, again);
        assert_ne!(one, other);
        assert_ne!(one[0].1, one[1].1);
        Ok(())
    }

    #[test]
    fn loading_reports_missing_unexpected_and_misshaped_together() -> Result<()> {
        let t = |dims: (usize, usize)| Tensor::zeros(dims, DType::F32, &Device::Cpu);
        let tensors = BTreeMap::from([("z.W".into(), t((2, 3))?), ("a".into(), t((3, 2))?), ("b".into(), t((2, 3))?)]);
        let loaded = Params::restore(tensors.clone(), &Device::Cpu, model).map(|_| ()).unwrap_err().to_string();
        let trained = Params::init(1, &Device::Cpu);
        model(trained.builder())?;
        let before = trained.tensors()[0].1.copy()?;
        let set = trained.set(&tensors).unwrap_err().to_string();
        for message in [loaded, set] {
            for part in ["missing z.w (did you mean z.W?)", "a has shape [3, 2], expected [2, 3]", "unexpected z.W"] {
                assert!(message.contains(part), "{message}");
            }
        }
        let after = trained.tensors()[0].1.clone();
        assert_eq!(before.to_vec2::<f32>()?, after.to_vec2::<f32>()?, "a refused load must change nothing");
        Ok(())
    }

    #[test]
    fn an_eval_builder_shares_values_and_records_no_graph() -> Result<()> {
        let params = Params::init(1, &Device::Cpu);
        let train = model(params.builder())?;
        let eval = model(params.eval_builder())?;
        params.all()[0].var.set(&Tensor::ones((2, 3), DType::F32, &Device::Cpu)?)?;
        assert_eq!(eval[0].to_vec2::<f32>()?, train[0].to_vec2::<f32>()?);
        assert!(train[0].track_op() && !eval[0].track_op());
        Ok(())
    }

    #[test]
    fn frozen_parameters_are_constants() -> Result<()> {
        let params = Params::init(1, &Device::Cpu).with_frozen(|name| name == "a");
        let model = model(params.builder())?;
        assert!(!model[1].track_op());
        assert_eq!(params.trainable().iter().map(|p| p.name.as_str()).collect::<Vec<_>>(), ["b", "z.w"]);
        Ok(())
    }
}
