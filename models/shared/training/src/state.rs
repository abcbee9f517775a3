use serde::{Deserialize, Serialize};

use crate::TrainConfig;
use crate::schedule::Plateau;

/// Everything about a run that is not a tensor: with the tensors of a checkpoint it decides all that follows.
///
/// Checkpoints lie between steps, so no micro-step is ever half accumulated; the order of the samples, dropout and every
/// other random number are functions of the seed and these counts.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// Version of this format: 0 where none is written, as by 0.1.
    #[serde(default)]
    pub version: u64,
    /// Steps done.
    pub step: u64,
    /// Updates of the weights: steps without the refused ones.
    pub updates: u64,
    /// The number of the next micro-batch; rollbacks pass over some.
    pub micro_batch: u64,
    /// The current rollout, where the model collects its samples by acting.
    #[serde(rename = "round", default, skip_serializing_if = "Option::is_none")]
    pub rollout: Option<Rollout>,
    /// The best evaluations, best first: validation loss and step.
    pub best: Vec<(f64, u64)>,
    /// Evaluations since the best.
    pub stale: u64,
    /// State of the plateau schedule.
    pub plateau: Plateau,
    /// Refused steps, and statistics of recent ones.
    pub guard: Guard,
    /// What the loss is multiplied by where gradients are f16.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss_scale: Option<LossScale>,
    /// How often critical health halved the learning rate.
    #[serde(default)]
    pub halvings: u32,
    /// The step at which that happened last.
    #[serde(default)]
    pub halved_at: u64,
}

/// A factor that keeps gradients within f16 on their way back (Micikevicius et al., *Mixed precision training*, ICLR 2018): halved
/// when they leave it, doubled after many steps in which they did not. Always a power of two, so that it changes no bit of what
/// fits.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LossScale {
    /// The factor.
    pub factor: f64,
    /// Steps since it changed.
    pub steps: u64,
}

impl Default for LossScale {
    fn default() -> Self {
        Self { factor: 65536., steps: 0 }
    }
}

impl LossScale {
    /// Steps without an overflow after which it doubles.
    const PATIENCE: u64 = 2000;

    /// Updates the scale after a step; true if it was reduced because gradients overflowed.
    pub(crate) fn update(&mut self, overflowed: bool) -> bool {
        self.steps += 1;
        let factor = match overflowed {
            true => (self.factor / 2.).max(1.),
            false if self.steps >= Self::PATIENCE => (self.factor * 2.).min(16_777_216.),
            false => return false,
        };
        let reduced = overflowed && factor != self.factor;
        *self = Self { factor, steps: 0 };
        reduced
    }
}

/// A rollout: samples that the model collected by acting.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rollout {
    /// Its number, from 0.
    pub number: u64,
    /// Tells the data and settings apart that it was collected with.
    pub origin: String,
}

impl State {
    /// Drops statistics of earlier losses, which those to come cannot be compared with.
    pub(crate) fn forget_losses(&mut self) {
        let guard = Guard { recent: vec![], ..std::mem::take(&mut self.guard) };
        *self = Self { best: vec![], stale: 0, plateau: Plateau::default(), guard, ..std::mem::take(self) };
    }

    /// Records an evaluation; whether it is the best, and whether it is among the best `keep`.
    pub(crate) fn evaluated(&mut self, loss: f64, keep: usize) -> (bool, bool) {
        let rank = self.best.iter().take_while(|(b, _)| *b <= loss).count();
        let (best, kept) = (rank == 0 && loss.is_finite(), rank < keep && loss.is_finite());
        if kept {
            self.best.insert(rank, (loss, self.step));
            self.best.truncate(keep);
        }
        self.stale = if best { 0 } else { self.stale + 1 };
        (best, kept)
    }
}

/// Steps that are compared with when looking for spikes.
const WINDOW: usize = 128;

/// Counts refused steps, and keeps the losses and gradient norms of recent steps.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Guard {
    /// Steps refused because the loss or a gradient was not finite.
    pub not_finite: u64,
    /// Steps refused as spikes.
    pub spikes: u64,
    /// Loss and gradient norm of the last [`WINDOW`] steps, oldest first; empty unless spikes are looked for.
    recent: Vec<(f64, f64)>,
}

impl Guard {
    /// Records a finite step; a description if its loss or gradient norm is an outlier, more than `train.spike_zscore` standard
    /// deviations above the mean of the last 128 steps.
    pub(crate) fn spike(&mut self, loss: f64, norm: f64, config: &TrainConfig) -> Option<String> {
        if config.spike_zscore == 0. {
            return None;
        }
        let score = |value: f64, of: &dyn Fn(&(f64, f64)) -> f64| {
            let n = WINDOW as f64;
            let mean = self.recent.iter().map(of).sum::<f64>() / n;
            let variance = self.recent.iter().map(|r| (of(r) - mean).powi(2)).sum::<f64>() / n;
            (value - mean) / variance.sqrt()
        };
        let mut found = None;
        if self.recent.len() == WINDOW {
            for (what, value, z) in
                [("loss", loss, score(loss, &|r| r.0)), ("gradient norm", norm, score(norm, &|r| r.1))]
            {
                if z > config.spike_zscore {
                    found.get_or_insert(format!("{what} {value:.4} is {z:.1} standard deviations above its mean"));
                }
            }
            self.recent.remove(0);
        }
        // A spike counts too: after a lasting change of level it is no spike any more.
        self.recent.push((loss, norm));
        self.spikes += u64::from(found.is_some());
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loss_scale_halves_at_once_and_doubles_after_a_while() {
        let mut scale = LossScale::default();
        assert!(scale.update(true) && scale.factor == 32768.);
        for _ in 1..LossScale::PATIENCE {
            scale.update(false);
        }
        assert_eq!(scale.factor, 32768.);
        assert!(!scale.update(false) && scale == LossScale { factor: 65536., steps: 0 });
        let mut least = LossScale { factor: 1., steps: 7 };
        assert!(!least.update(true), "nothing smaller would help");
    }

    #[test]
    fn the_best_evaluations_are_kept_in_order() {
        let mut state = State::default();
        let seen = [3., 2., 2.5, 2., f64::NAN, 1., 9.];
        let outcomes: Vec<_> = seen
            .iter()
            .enumerate()
            .map(|(i, loss)| {
                state.step = i as u64;
                state.evaluated(*loss, 3)
            })
            .collect();
        assert_eq!(state.best, [(1., 5), (2., 1), (2., 3)]);
        assert_eq!(state.stale, 1);
        let kept = [(true, true), (true, true), (false, true), (false, true), (false, false), (true, true)];
        assert_eq!(outcomes[..6], kept);
        assert_eq!(outcomes[6], (false, false));
    }

    #[test]
    fn a_spike_is_far_above_what_was_usual() {
        let config = TrainConfig { spike_zscore: 4., ..Default::default() };
        let (mut guard, mut off) = (Guard::default(), Guard::default());
        for i in 0..200 {
            let wobble = (i as f64).sin();
            assert_eq!(guard.spike(2. + 0.1 * wobble, 1. + 0.1 * wobble, &config), None, "step {i}");
            assert_eq!(off.spike(1e9, 1e9, &TrainConfig::default()), None);
        }
        assert!(guard.clone().spike(4., 1., &config).is_some_and(|s| s.starts_with("loss 4.0000 is 2")));
        assert!(guard.spike(2., 9., &config).is_some_and(|s| s.starts_with("gradient norm 9")));
        assert_eq!((guard.spikes, guard.recent.len(), off), (1, WINDOW, Guard::default()));
    }
}
