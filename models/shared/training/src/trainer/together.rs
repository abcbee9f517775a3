//! What the processes of a run tell each other.

use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

use candle_core::{Device, Tensor};
use serde::{Deserialize, Serialize};
use serde_json::json;
use zoo_layers::Gradients;

use super::Trainer;
use crate::config::{ConfigOf, to_toml};
use crate::health::Check;
use crate::metrics::Name;
use crate::ranks::Ranks;
use crate::run::Saved;
use crate::task::scalar;
use crate::{Error, Result, State, Task};

/// The loss of a micro-batch and its terms, still on the device.
pub(super) type Losses = (Tensor, Vec<(Name, Tensor)>);

/// What is known of a micro-batch once it is computed. Numbers as their bits: there may be NaN among them.
#[derive(Serialize, Deserialize)]
pub(super) struct Leaf {
    loss: u64,
    parts: Vec<(Name, u64)>,
}

impl Leaf {
    fn of((loss, parts): &Losses) -> candle_core::Result<Self> {
        let parts = parts.iter().map(|(name, value)| Ok((name.clone(), scalar(value)?.to_bits())));
        Ok(Self { loss: scalar(loss)?.to_bits(), parts: parts.collect::<candle_core::Result<_>>()? })
    }

    pub(super) fn loss(&self) -> f64 {
        f64::from_bits(self.loss)
    }

    pub(super) fn parts(&self) -> impl Iterator<Item = (&Name, f64)> {
        self.parts.iter().map(|(name, value)| (name, f64::from_bits(*value)))
    }
}

/// What a process says of its share of a step.
#[derive(Serialize, Deserialize)]
struct Share {
    leaves: Vec<Leaf>,
    /// Which parameters got a gradient from any of them.
    reached: Vec<bool>,
    /// Whether it was asked to stop.
    stop: bool,
}

fn packed(value: &impl Serialize) -> Result<Vec<u8>> {
    serde_json::to_vec(value).map_err(|e| Error::Run(format!("what the processes of a run exchange: {e}")))
}

fn unpacked<V: for<'de> Deserialize<'de>>(bytes: &[u8]) -> Result<V> {
    serde_json::from_slice(bytes).map_err(|e| Error::Run(format!("what another process of the run sent: {e}")))
}

impl<'a, T: Task> Trainer<'a, T> {
    /// A trainer that takes its weights and state from the first of several processes.
    ///
    /// # Errors
    /// As [`Trainer::new`], but for initial weights, and as [`Trainer::among`].
    pub fn following(task: &'a T, config: &'a ConfigOf<T>, device: &Device, ranks: &Rc<Ranks>) -> Result<Self> {
        Self::untrained(task, config, device)?.among(ranks)
    }

    /// Trains this run with other processes: each has built its trainer from the same configuration and data. The first one's
    /// is new and goes on (or resumes a run: [`Trainer::resume_among`]); the others [follow](Trainer::following), and keep no files.
    ///
    /// # Errors
    /// The processes differ in program, configuration, data or processor; more of them than a step has micro-batches; a model that
    /// acts to collect its samples, or whose statistics the task cannot count ([`Task::observe`]).
    pub fn among(mut self, ranks: &Rc<Ranks>) -> Result<Self> {
        self.join(ranks)?;
        self.take_from_first()?;
        Ok(self)
    }

    /// Joins other processes that would compute the same.
    pub(super) fn join(&mut self, ranks: &Rc<Ranks>) -> Result<()> {
        self.ranks = ranks.clone();
        if ranks.is_alone() {
            return Ok(());
        }
        let train = &self.config.train;
        let (size, count) = (ranks.size(), train.accumulate);
        if self.experience.is_some() {
            return Err(Error::Usage(
                "a model that acts to collect its samples trains in one process: rollouts are not shared out yet"
                    .into(),
            ));
        }
        if (size as u64) > count {
            return Err(Error::Usage(format!(
                "{size} processes, but a step has {count} micro-batches: start at most {count}, or a new run with \
                 train.accumulate of {size} or more and the train.batch_size of a micro-batch"
            )));
        }
        let is_counted = |name: &str| !name.rsplit('.').next().unwrap_or(name).starts_with("constant_");
        self.counts = self.params.all().iter().any(|p| p.buffer && is_counted(&p.name));
        ranks.set_timeout(Duration::from_secs(train.rank_timeout));
        self.compare()
    }

    /// Refuses processes that would compute something else.
    fn compare(&self) -> Result<()> {
        let program = std::env::current_exe().and_then(std::fs::read).map(|bytes| zoo_checkpoint::sha256_of(&bytes));
        let own = json!({
            "the program": program.unwrap_or_default(),
            "the processor's vector instructions": instructions()?,
            "the device": format!("{:?}", self.params.device().location()).split_whitespace().next(),
            "the model": T::NAME,
            "the configuration": to_toml(self.config)?,
            "the data": self.task.fingerprint(),
        });
        let all = self.ranks.agree(packed(&own))?;
        for (rank, other) in all.iter().enumerate() {
            let other: serde_json::Value = unpacked(other)?;
            let differs = own.as_object().into_iter().flatten().find(|(what, value)| other[what.as_str()] != **value);
            // All come to the same end, each by its own comparison; the first one tells.
            if let Some((what, value)) = differs {
                let shown = |v: &serde_json::Value| match v.as_str() {
                    Some(text) if text.len() <= 100 => format!(" ({text})"),
                    _ => String::new(),
                };
                let (here, there, own) = (shown(value), shown(&other[what.as_str()]), self.ranks.rank());
                return Err(Error::Usage(format!(
                    "{what} of rank {rank}{there} is not that of rank {own}{here}: all processes of a run need the same"
                )));
            }
        }
        Ok(())
    }

    /// Takes over weights, optimizer, state and health of the first process.
    pub(super) fn take_from_first(&mut self) -> Result<()> {
        if self.ranks.is_alone() {
            return Ok(());
        }
        let own = || {
            let optimizer = self.optimizer.state();
            let average = self.average.as_ref().map(|a| a.tensors());
            pack_saved(&self.params.tensors(), &optimizer, average.as_deref(), &self.state)
        };
        let bytes = self.ranks.from_first(own)?;
        let checks = self.ranks.from_first(|| packed(&self.watch.checks()))?;
        if !self.ranks.leads() {
            self.restore(unpack_saved(&bytes, self.params.device())?)?;
            self.recall(unpacked(&checks)?)?;
        }
        Ok(())
    }

    /// A checkpoint that the first process found, or did not.
    pub(super) fn found_by_first(&self, found: Option<Saved>) -> Result<Option<Saved>> {
        if self.ranks.is_alone() {
            return Ok(found);
        }
        let own = || match &found {
            None => Ok(vec![]),
            Some(Saved { model, optimizer, average, state, .. }) => {
                let list = |of: &BTreeMap<String, Tensor>| -> Vec<(String, Tensor)> {
                    of.iter().map(|(name, t)| (name.clone(), t.clone())).collect()
                };
                pack_saved(&list(model), &list(optimizer), average.as_ref().map(list).as_deref(), state)
            }
        };
        let bytes = self.ranks.from_first(own)?;
        match found {
            Some(found) => Ok(Some(found)),
            None if bytes.is_empty() => Ok(None),
            None => unpack_saved(&bytes, self.params.device()).map(Some),
        }
    }

    /// The checks of the run so far, from the first process.
    pub(super) fn checks_of_first(&self, own: Vec<Check>) -> Result<Vec<Check>> {
        if self.ranks.is_alone() {
            return Ok(own);
        }
        let bytes = self.ranks.from_first(|| packed(&own))?;
        if self.ranks.leads() { Ok(own) } else { unpacked(&bytes) }
    }

    /// The micro-batches of a step whose batches this process needs.
    pub(super) fn own_share(&self) -> Range<u64> {
        match self.counts {
            true => 0..self.config.train.accumulate,
            false => self.ranks.share(self.ranks.rank(), self.config.train.accumulate),
        }
    }

    /// Counts another process's batch.
    pub(super) fn observe(&self, batch: &T::Batch) -> Result<()> {
        match self.task.observe(&self.model, batch)? {
            true => Ok(()),
            false => Err(Error::Usage(format!(
                "layers of {} keep statistics, which Task::observe of this task does not count: it trains in one process",
                T::NAME
            ))),
        }
    }

    /// Whether the run is to stop: of several processes, as all of them knew in the last step.
    pub(super) fn is_stopped(&self, interrupted: &dyn Fn() -> bool) -> bool {
        if self.ranks.is_alone() { interrupted() } else { self.stop }
    }

    /// The sum of all gradients, and what is known of all micro-batches, from the sums of this process's share.
    pub(super) fn put_together(
        &mut self,
        nodes: Vec<Gradients>,
        losses: Vec<Losses>,
        interrupted: &dyn Fn() -> bool,
    ) -> Result<(Gradients, Vec<Leaf>)> {
        let leaves = || losses.iter().map(Leaf::of).collect::<candle_core::Result<Vec<_>>>();
        if self.ranks.is_alone() {
            let Some(sum) = nodes.into_iter().next() else {
                return Err(Error::Usage("train.accumulate must be at least 1".into()));
            };
            return Ok((sum, leaves()?));
        }
        let trainable = self.params.trainable();
        let mut reached = vec![false; trainable.len()];
        for node in &nodes {
            reached.iter_mut().zip(node.iter()).for_each(|(r, (_, g))| *r |= g.is_some());
        }
        let own = Share { leaves: leaves()?, reached, stop: interrupted() };
        let all = self.ranks.agree(packed(&own))?;
        let all = all.iter().map(|bytes| unpacked(bytes)).collect::<Result<Vec<Share>>>()?;
        self.stop = all.iter().any(|share| share.stop);

        let n = trainable.iter().map(|p| p.var.elem_count()).sum();
        let flat = nodes.iter().map(|node| flattened(node, &trainable, n)).collect::<Result<_>>()?;
        let sum = self.ranks.sum(self.config.train.accumulate, n, flat)?;
        let (mut entries, mut first) = (vec![], 0);
        for (i, p) in trainable.iter().enumerate() {
            let values = &sum[first..first + p.var.elem_count()];
            first += values.len();
            let is_reached = all.iter().any(|share| share.reached.get(i) == Some(&true));
            let gradient = || Tensor::from_slice(values, p.var.shape(), p.var.device());
            entries.push((p.name.clone(), is_reached.then(gradient).transpose()?));
        }
        Ok((Gradients::new(entries), all.into_iter().flat_map(|share| share.leaves).collect()))
    }
}

/// All values of some gradients, one behind the other. What has none is filled by -0, which changes no number that it is added to.
fn flattened(gradients: &Gradients, of: &[zoo_layers::Param], n: usize) -> Result<Vec<f32>> {
    let mut flat = Vec::with_capacity(n);
    for ((_, gradient), p) in gradients.iter().zip(of) {
        match gradient {
            Some(g) => flat.extend(g.to_device(&Device::Cpu)?.flatten_all()?.to_vec1::<f32>()?),
            None => flat.resize(flat.len() + p.var.elem_count(), -0.),
        }
    }
    Ok(flat)
}

/// The vector instructions that kernels and matrix products choose by: others add up in another order.
fn instructions() -> Result<String> {
    let mut all = vec![zoo_kernels::cpu::simd::level()?.name()];
    #[cfg(target_arch = "x86_64")]
    for (name, is_there) in [
        ("fma", std::arch::is_x86_feature_detected!("fma")),
        ("avx2", std::arch::is_x86_feature_detected!("avx2")),
        ("avx512f", std::arch::is_x86_feature_detected!("avx512f")),
    ] {
        if is_there {
            all.push(name);
        }
    }
    Ok(all.join(" "))
}

fn pack_saved(
    model: &[(String, Tensor)],
    optimizer: &[(String, Tensor)],
    average: Option<&[(String, Tensor)]>,
    state: &State,
) -> Result<Vec<u8>> {
    let tensors = |list: &[(String, Tensor)]| -> Result<Vec<u8>> {
        let on_cpu = list.iter().map(|(name, t)| Ok((name.clone(), t.to_device(&Device::Cpu)?.contiguous()?)));
        let on_cpu = on_cpu.collect::<candle_core::Result<Vec<_>>>()?;
        safetensors::serialize(on_cpu.iter().map(|(name, t)| (name, t)), None)
            .map_err(|e| candle_core::Error::wrap(e).into())
    };
    let parts = [packed(state)?, tensors(model)?, tensors(optimizer)?, average.map_or(Ok(vec![]), tensors)?];
    Ok(parts
        .iter()
        .flat_map(|part| (part.len() as u64).to_le_bytes().into_iter().chain(part.iter().copied()))
        .collect())
}

fn unpack_saved(mut bytes: &[u8], device: &Device) -> Result<Saved> {
    let mut part = || -> Option<&[u8]> {
        let (length, rest) = bytes.split_first_chunk()?;
        let part = rest.get(..u64::from_le_bytes(*length) as usize)?;
        bytes = &rest[part.len()..];
        Some(part)
    };
    let (Some(state), Some(model), Some(optimizer), Some(average)) = (part(), part(), part(), part()) else {
        return Err(Error::Run("what the first process of the run sent has an end too early".into()));
    };
    let tensors = |part: &[u8]| -> candle_core::Result<BTreeMap<String, Tensor>> {
        Ok(candle_core::safetensors::load_buffer(part, device)?.into_iter().collect())
    };
    Ok(Saved {
        state: unpacked(state)?,
        model: tensors(model)?,
        optimizer: tensors(optimizer)?,
        average: (!average.is_empty()).then(|| tensors(average)).transpose()?,
        experience: None,
        lost: vec![],
    })
}
