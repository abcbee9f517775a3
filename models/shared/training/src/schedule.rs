//! The learning rate of a step.

use serde::{Deserialize, Serialize};

use crate::{ScheduleKind, TrainConfig};

/// What the plateau schedule remembers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plateau {
    /// Product of the reductions so far.
    pub scale: f64,
    /// The best value seen.
    pub best: Option<f64>,
    /// Evaluations since then or since the last reduction.
    pub stale: u64,
}

impl Default for Plateau {
    fn default() -> Self {
        Self { scale: 1., best: None, stale: 0 }
    }
}

impl Plateau {
    /// Records an evaluation (lower is better).
    pub(crate) fn observe(&mut self, value: f64, config: &TrainConfig) {
        if value.is_finite() && self.best.is_none_or(|b| value < b) {
            (self.best, self.stale) = (Some(value), 0);
            return;
        }
        self.stale += 1;
        if self.stale > config.plateau_patience {
            (self.scale, self.stale) = (self.scale * config.decay_factor, 0);
        }
    }
}

/// The learning rate of step `step` (from 0) of `total`.
pub(crate) fn learning_rate(config: &TrainConfig, step: u64, total: u64, plateau: &Plateau) -> f64 {
    let &TrainConfig { lr, min_lr, warmup_steps: warmup, .. } = config;
    if step < warmup {
        return lr * (step + 1) as f64 / warmup as f64;
    }
    let done = (step - warmup) as f64 / total.saturating_sub(warmup).max(1) as f64;
    match config.schedule {
        ScheduleKind::Constant => lr,
        ScheduleKind::Cosine => min_lr + (lr - min_lr) * 0.5 * (1. + (std::f64::consts::PI * done.min(1.)).cos()),
        ScheduleKind::Linear => min_lr + (lr - min_lr) * (1. - done).max(0.),
        ScheduleKind::Step => lr * config.decay_factor.powf(((step - warmup) / config.decay_every) as f64),
        ScheduleKind::Plateau => (lr * plateau.scale).max(min_lr),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(schedule: ScheduleKind) -> TrainConfig {
        TrainConfig {
            schedule,
            lr: 1.,
            min_lr: 0.1,
            warmup_steps: 4,
            decay_every: 10,
            decay_factor: 0.5,
            ..Default::default()
        }
    }

    #[test]
    fn warmup_rises_to_the_peak_and_schedules_end_where_they_should() {
        let at = |kind, step| learning_rate(&config(kind), step, 104, &Plateau::default());
        assert_eq!([0, 1, 3].map(|s| at(ScheduleKind::Cosine, s)), [0.25, 0.5, 1.]);
        for kind in [ScheduleKind::Constant, ScheduleKind::Cosine, ScheduleKind::Linear, ScheduleKind::Step] {
            assert_eq!(at(kind, 4), 1., "{kind:?}");
        }
        assert!((at(ScheduleKind::Cosine, 54) - 0.55).abs() < 1e-12);
        assert!((at(ScheduleKind::Linear, 54) - 0.55).abs() < 1e-12);
        assert!((at(ScheduleKind::Cosine, 104) - 0.1).abs() < 1e-12);
        assert_eq!([13, 14, 34].map(|s| at(ScheduleKind::Step, s)), [1., 0.5, 0.125]);
    }

    #[test]
    fn a_plateau_reduces_the_rate_after_its_patience_and_not_below_the_least() {
        let config = TrainConfig { plateau_patience: 2, ..config(ScheduleKind::Plateau) };
        let mut plateau = Plateau::default();
        let mut rates = vec![];
        for value in [1., 0.9, 0.9, 0.95, 0.91, 0.8, 0.8, 0.8, 0.8, 0.8, 0.8, 0.8, 0.8, 0.8, 0.8] {
            plateau.observe(value, &config);
            rates.push(learning_rate(&config, 50, 100, &plateau));
        }
        assert_eq!(rates, [1., 1., 1., 1., 0.5, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25, 0.125, 0.125, 0.125, 0.1]);
    }
}
