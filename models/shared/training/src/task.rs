use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use zoo_layers::optim::{Group, Rule};
use zoo_layers::{Mode, Param};

use crate::config::{ConfigOf, Settings};
use crate::health::{Probe, Profile, Repair};
use crate::metrics::Name;
use crate::{Experience, Metrics, Result, over_batches};

/// A part of the data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    /// What the model is fitted to.
    Train,
    /// What decides when to stop and which weights are best.
    Valid,
    /// What the model is judged by.
    Test,
}

impl Split {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Valid => "valid",
            Self::Test => "test",
        }
    }
}

/// The loss of a batch.
pub struct Loss {
    /// A scalar to differentiate.
    pub total: Tensor,
    /// Named terms of it, for the log: scalars, which are read when the step is done.
    pub parts: Vec<(Name, Tensor)>,
}

impl Loss {
    /// A loss of one term.
    pub fn new(total: Tensor) -> Self {
        Self { total, parts: vec![] }
    }

    /// With a named term for the log.
    pub fn with(mut self, name: impl Into<Name>, value: Tensor) -> Self {
        self.parts.push((name.into(), value));
        self
    }
}

/// What an optimizer does with each parameter.
pub type Groups = Box<dyn Fn(&Param) -> Group>;

/// What training needs: a model, its samples and its loss. The value of the type is opened data.
///
/// Required are five types, a name, and how to [build](Task::build) the model, [count](Task::samples) and
/// [batch](Task::batch) samples, and compute the [loss](Task::loss). Everything else has a default that works.
pub trait Task: Sized + Sync + 'static {
    /// The model's name; weights carry it, and are refused under another.
    const NAME: &'static str;
    /// The table `[model]`.
    type Architecture: Serialize + DeserializeOwned + Default + Clone + Send + Sync + 'static;
    /// The table `[data]`. A key `path`, if it has one, says where files lie: weights record the file's name alone.
    type Data: Serialize + DeserializeOwned + Default + Clone;
    /// Further tables of the task's own; [`NoSettings`](crate::config::NoSettings) for none.
    type Settings: Settings;
    /// The model.
    type Model;
    /// Samples ready for the model; tensors, which are cheap to clone.
    type Batch: Clone + Send;

    /// Defines the model's parameters.
    ///
    /// # Errors
    /// An architecture that cannot be.
    fn build(architecture: &Self::Architecture, vb: VarBuilder) -> candle_core::Result<Self::Model>;

    /// The model in training, over what the data at hand hold beside its parameters, such as weights that are adapted: as
    /// [`build`](Task::build) makes it, by default.
    ///
    /// # Errors
    /// As there.
    fn define(&self, architecture: &Self::Architecture, vb: VarBuilder) -> candle_core::Result<Self::Model> {
        Self::build(architecture, vb)
    }

    /// Whether training changes the parameter of that name that [`build`](Task::build) defines, and weights hold it: all of them, by default.
    /// `train.freeze` leaves out more, which weights do hold.
    fn trains(architecture: &Self::Architecture, name: &str) -> bool {
        let _ = (architecture, name);
        true
    }

    /// The weights at `path` for a run to begin with (`train.init_from`), by the model's own names: a checkpoint of ours, by default.
    ///
    /// # Errors
    /// They cannot be read.
    fn initial(path: &Path, device: &Device) -> Result<BTreeMap<String, Tensor>> {
        Ok(zoo_checkpoint::read(path, device)?.tensors)
    }

    /// Samples of a split.
    fn samples(&self, split: Split) -> usize;

    /// The samples of a split at these indices.
    ///
    /// # Errors
    /// candle's, or those of reading a sample ([`candle_core::Error::wrap`]).
    fn batch(&self, split: Split, indices: &[usize]) -> candle_core::Result<Self::Batch>;

    /// The loss of a batch; each task says how it is reduced.
    ///
    /// # Errors
    /// candle's.
    fn loss(&self, model: &Self::Model, batch: &Self::Batch, mode: Mode) -> candle_core::Result<Loss>;

    /// Metrics of a split while training; `loss` decides which weights are best. By default the mean loss over the split, in
    /// batches of 256. [`over_batches`] shares it out where many processes train.
    ///
    /// # Errors
    /// candle's.
    fn validate(&self, model: &Self::Model, split: Split) -> candle_core::Result<Metrics> {
        Ok([("loss", mean_loss(self, model, split)?)].into())
    }

    /// Counts a batch in the statistics that layers keep, as [`loss`](Task::loss) in training does before it computes anything:
    /// processes that train together do so with each other's batches. True if it did; a task whose layers keep none needs none.
    ///
    /// # Errors
    /// candle's.
    fn observe(&self, model: &Self::Model, batch: &Self::Batch) -> candle_core::Result<bool> {
        let _ = (model, batch);
        Ok(false)
    }

    /// Tells data apart: the same for the same samples in the same splits. A run resumes on the data it began with. By
    /// default the number of samples of each split, which misses a change of values: hash what was read, if you can.
    fn fingerprint(&self) -> String {
        counted(self)
    }

    /// What was fitted to the training data and belongs to the checkpoint, such as a scaler; nothing by default.
    fn fitted(&self) -> Value {
        Value::Null
    }

    /// The optimizer's rule, and what it does with each parameter: what `[train.optimizer]` says, by default.
    fn optimizer(&self, config: &ConfigOf<Self>) -> (Rule, Groups) {
        let optimizer = config.train.optimizer;
        (optimizer.rule(), Box::new(move |param| optimizer.group(param)))
    }

    /// Where training samples come from if the model makes them itself, by acting; nowhere by default.
    ///
    /// # Errors
    /// Settings that cannot work.
    fn experience(&self, config: &ConfigOf<Self>) -> Result<Option<Box<dyn Experience<Self> + '_>>> {
        let _ = config;
        Ok(None)
    }

    /// Whether the model has parts that `train.recompute` computes again ([`zoo_layers::recomputed`]; transformer blocks are such). It is
    /// refused for models that have none, which is the default.
    fn recomputes(architecture: &Self::Architecture) -> bool {
        let _ = architecture;
        false
    }

    /// What is usual of the model's gradients.
    fn health() -> Profile {
        Profile::default()
    }

    /// Activations to watch, from a batch in evaluation: inputs first, then in the order of the model. None by default.
    ///
    /// # Errors
    /// candle's.
    fn probes(&self, model: &Self::Model, batch: &Self::Batch) -> candle_core::Result<Vec<Probe>> {
        let _ = (model, batch);
        Ok(vec![])
    }

    /// What is done to the model at a health check beside what `train.on_critical` says; nothing by default.
    fn repair(config: &ConfigOf<Self>) -> Option<Box<dyn Repair>> {
        let _ = config;
        None
    }

    /// What a rule that takes no training, such as the mean, or an n-gram, has as the loss that [`validate`](Task::validate) gives of a split,
    /// and its name: a run that gets no further learnt nothing. None by default. It is asked once a run.
    ///
    /// # Errors
    /// candle's.
    fn baseline(&self, split: Split) -> candle_core::Result<Option<(Name, f64)>> {
        let _ = split;
        Ok(None)
    }

    /// The least loss that any model could have on a batch, where the task knows it: what `train.overfit_batch` is compared
    /// with.
    ///
    /// # Errors
    /// candle's.
    fn least_loss(&self, batch: &Self::Batch) -> candle_core::Result<Option<f64>> {
        let _ = batch;
        Ok(None)
    }
}

/// The number of samples of each split.
pub(crate) fn counted<T: Task>(task: &T) -> String {
    json!([Split::Train, Split::Valid, Split::Test].map(|split| task.samples(split))).to_string()
}

/// The mean loss over a split, in batches of 256 without dropout.
///
/// # Errors
/// candle's.
pub fn mean_loss<T: Task>(task: &T, model: &T::Model, split: Split) -> candle_core::Result<f64> {
    const BATCH: usize = 256;
    let n = task.samples(split);
    let sums = over_batches(n.div_ceil(BATCH), |i| {
        let indices: Vec<usize> = (i * BATCH..n.min((i + 1) * BATCH)).collect();
        let loss = task.loss(model, &task.batch(split, &indices)?, Mode::Eval)?.total;
        Ok(vec![scalar(&loss)? * indices.len() as f64])
    })?;
    Ok(sums.iter().flatten().sum::<f64>() / n.max(1) as f64)
}

/// The value of a scalar tensor.
pub(crate) fn scalar(t: &Tensor) -> candle_core::Result<f64> {
    // Not every device has f64.
    t.to_device(&Device::Cpu)?.to_dtype(DType::F64)?.to_scalar()
}
