//! One step's batches, losses and gradients.

use candle_core::DType;
use candle_core::cuda::{gemm_reduced_precision_f32, set_gemm_reduced_precision_f32};
use serde_json::json;
use zoo_layers::ops::{autocast, backward_scaled, foreign, fused};
use zoo_layers::optim::{clip_factor, global_norm};
use zoo_layers::{Gradients, Mode, with_recompute};

use super::{Fetch, Trainer};
use crate::config::ComputeType;
use crate::ranks::Tree;
use crate::{Event, Metrics, Observer, Result, Rollout, Task, TrainConfig};

/// A step's mean loss, its terms and the gradients.
pub(super) struct Step {
    /// The first micro-batch whose loss is not finite; the last one if all are.
    pub(super) micro_batch: u64,
    pub(super) loss: f64,
    pub(super) parts: Metrics,
    pub(super) grads: Gradients,
    pub(super) lr: f64,
    pub(super) norm: f64,
    /// The shapes of what candle's own operations made in the graph of the trainer's first step.
    pub(super) foreign: Vec<Vec<usize>>,
}

/// TF32 for matrix products while it is there: one switch for the process, which only CUDA devices look at. It holds what was set before.
struct Tf32(bool);

impl Tf32 {
    fn on(dtype: ComputeType) -> Self {
        let before = gemm_reduced_precision_f32();
        set_gemm_reduced_precision_f32(dtype == ComputeType::Tf32);
        Self(before)
    }
}

impl Drop for Tf32 {
    fn drop(&mut self) {
        set_gemm_reduced_precision_f32(self.0);
    }
}

/// Runs `compute` with matrix products as `dtype` says.
pub fn with_products<R>(dtype: ComputeType, compute: impl FnOnce() -> R) -> R {
    let _tf32 = Tf32::on(dtype);
    compute()
}

impl<T: Task> Trainer<'_, T> {
    /// Loss, terms and gradients of a step's micro-batches, each by its share of the samples, whichever process computes them.
    pub(super) fn micro_steps(&mut self, lr: f64, batch: Fetch<T>, interrupted: &dyn Fn() -> bool) -> Result<Step> {
        let TrainConfig { seed, accumulate: count, recompute, .. } = self.config.train;
        let compute = self.config.train.compute();
        let scale = self.state.loss_scale.map_or(1., |s| s.factor);
        let (mut losses, mut tree, mut foreign_shapes) = (vec![], Tree::new(count), vec![]);
        let share = self.ranks.share(self.ranks.rank(), count);
        // Every sample counts alike, also where the last micro-batch of an epoch has fewer.
        let sizes: Vec<u64> = (0..count).map(|m| self.batches.size(self.state.micro_batch + m) as u64).collect();
        let all = sizes.iter().sum::<u64>().max(1);
        let weights: Vec<f64> = sizes.iter().map(|n| (n * count) as f64 / all as f64).collect();
        let tf32 = Tf32::on(self.config.train.dtype);
        for micro in 0..count {
            let number = self.state.micro_batch + micro;
            if !share.contains(&micro) {
                if self.counts {
                    self.observe(&batch(number)?)?;
                }
                continue;
            }
            let samples = match &self.experience {
                Some(experience) => experience.batch(self.batches.at(number))?,
                None => batch(number)?,
            };
            let result = with_recompute(recompute, || {
                autocast(compute, || self.task.loss(&self.model, &samples, Mode::Train { seed, step: number }))
            })?;
            // Without kernels for it, all of a graph is candle's.
            let kernels = fused() && (compute != DType::F16 || !result.total.device().is_cpu());
            if !std::mem::replace(&mut self.graph_seen, true) && kernels {
                foreign_shapes = foreign(&result.total);
            }
            let of_micro = self.params.gradients(&backward_scaled(&result.total, scale * weights[micro as usize])?);
            // Neither is waited for before the whole step is under way; without their history the graph is free.
            let parts = result.parts.into_iter().map(|(name, value)| (name, value.detach()));
            losses.push((result.total.detach(), parts.collect::<Vec<_>>()));
            let add = |mut a: Gradients, b: Gradients| a.add(&b).map(|()| a);
            tree.push(micro..micro + 1, of_micro, add)?;
        }
        drop(tf32);
        let (mut grads, leaves) = self.put_together(tree.into_nodes(), losses, interrupted)?;
        if count > 1 || scale != 1. {
            grads.scale(1. / (scale * count as f64))?;
        }
        let norm = global_norm(&grads)?;
        let (mut loss, mut parts, mut micro_batch) = (0., Metrics::default(), 0);
        for (micro, leaf) in leaves.iter().enumerate() {
            if f64::is_finite(loss) {
                micro_batch = self.state.micro_batch + micro as u64;
            }
            let share = weights[micro] / count as f64;
            loss += leaf.loss() * share;
            leaf.parts().for_each(|(name, value)| parts.add(name, value * share));
        }
        Ok(Step { micro_batch, loss, parts, grads, lr, norm, foreign: foreign_shapes })
    }

    pub(super) fn clip(&self, norm: f64) -> f64 {
        clip_factor(norm, self.config.train.clip_norm)
    }

    /// Micro-steps on the samples of a rollout, at most.
    pub(super) fn per_rollout(&self) -> u64 {
        let passes = self.experience.as_ref().map_or(1, |e| e.passes());
        self.batches.per_epoch().saturating_mul(passes)
    }

    /// Collects a rollout, if the next step needs new samples.
    pub(super) fn collect(&mut self, observer: &mut dyn Observer) -> Result<()> {
        let rollout = self.state.micro_batch / self.per_rollout();
        let collected = self.state.rollout.as_ref().is_some_and(|r| r.number == rollout);
        let Some(experience) = self.experience.as_mut().filter(|_| !collected) else {
            return Ok(());
        };
        let metrics = experience.collect(&self.model, rollout)?;
        self.state.rollout = Some(Rollout { number: rollout, origin: self.origin.clone() });
        let step = self.state.step;
        if let Some(run) = &self.run {
            // With the step that it is for: a run that goes back to the one before collects again.
            run.journal().append(&json!({ "step": step + 1, "experience": metrics.object() }))?;
        }
        observer.observe(&Event::Collected { step, metrics: &metrics });
        Ok(())
    }
}
