//! The table `[train.optimizer]`: one kind, and the constants that it has.

use serde::{Deserialize, Serialize};
use zoo_layers::Param;
use zoo_layers::optim::{Group, Moments, Rule, decay_matrices, muon_groups};

use crate::{Error, Result};

/// Which optimizer moves the parameters, by its `kind`, with its constants.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum OptimizerConfig {
    /// Adam with decoupled weight decay.
    AdamW(AdamConfig),
    /// Adam; weight decay is added to the gradient.
    Adam(AdamConfig),
    /// Stochastic gradient descent with momentum.
    Sgd(SgdConfig),
    /// RMSprop.
    RmsProp(RmsPropConfig),
    /// Muon for matrices within the network, AdamW for the rest.
    Muon(MuonConfig),
}

impl OptimizerConfig {
    /// Numbers of state for each parameter; at most, where matrices have fewer.
    pub fn state(&self) -> usize {
        let momentum = |momentum: f64| usize::from(momentum != 0.);
        match self {
            Self::AdamW(_) | Self::Adam(_) | Self::Muon(_) => 2,
            Self::Sgd(config) => momentum(config.momentum),
            Self::RmsProp(config) => 1 + momentum(config.momentum),
        }
    }
}

/// Constants of Adam and AdamW.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct AdamConfig {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Weight decay of matrices; biases and norms have none.
    pub weight_decay: f64,
}

/// Constants of stochastic gradient descent.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SgdConfig {
    /// Momentum, 0 for none.
    pub momentum: f64,
    /// Nesterov's form of momentum.
    pub nesterov: bool,
    /// Weight decay of matrices; biases and norms have none.
    pub weight_decay: f64,
}

/// Constants of RMSprop.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RmsPropConfig {
    /// Decay of the running mean of squares.
    pub alpha: f64,
    /// Added to its root.
    pub eps: f64,
    /// Momentum, 0 for none.
    pub momentum: f64,
    /// Weight decay of matrices; biases and norms have none.
    pub weight_decay: f64,
}

/// Constants of Muon, and of AdamW for the parameters that are no matrices within the network.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct MuonConfig {
    /// Muon's momentum.
    pub momentum: f64,
    /// AdamW's decay of the first moment.
    pub beta1: f64,
    /// AdamW's decay of the second moment.
    pub beta2: f64,
    /// Added to the root of AdamW's second moment.
    pub eps: f64,
    /// Weight decay of matrices; biases and norms have none.
    pub weight_decay: f64,
}

impl Default for AdamConfig {
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01 }
    }
}

impl Default for SgdConfig {
    fn default() -> Self {
        Self { momentum: 0.9, nesterov: false, weight_decay: 0.01 }
    }
}

impl Default for RmsPropConfig {
    fn default() -> Self {
        Self { alpha: 0.999, eps: 1e-8, momentum: 0.9, weight_decay: 0.01 }
    }
}

impl Default for MuonConfig {
    fn default() -> Self {
        let AdamConfig { beta1, beta2, eps, weight_decay } = AdamConfig::default();
        Self { momentum: 0.9, beta1, beta2, eps, weight_decay }
    }
}

impl Default for OptimizerConfig {
    fn default() -> Self {
        Self::AdamW(AdamConfig::default())
    }
}

impl OptimizerConfig {
    /// The rule that it is.
    pub fn rule(&self) -> Rule {
        match *self {
            Self::AdamW(AdamConfig { beta1, beta2, eps, .. }) => Rule::AdamW(Moments { beta1, beta2, eps }),
            Self::Adam(AdamConfig { beta1, beta2, eps, .. }) => Rule::Adam(Moments { beta1, beta2, eps }),
            Self::Sgd(SgdConfig { momentum, nesterov, .. }) => Rule::Sgd { momentum, nesterov },
            Self::RmsProp(RmsPropConfig { alpha, eps, momentum, .. }) => Rule::RmsProp { alpha, eps, momentum },
            Self::Muon(MuonConfig { momentum, .. }) => Rule::Muon { momentum },
        }
    }

    /// What it does with a parameter.
    pub fn group(&self, param: &Param) -> Group {
        match *self {
            Self::Muon(MuonConfig { beta1, beta2, eps, weight_decay, .. }) => {
                muon_groups(weight_decay, Moments { beta1, beta2, eps })(param)
            }
            _ => decay_matrices(self.weight_decay())(param),
        }
    }

    /// Weight decay of matrices.
    pub fn weight_decay(&self) -> f64 {
        match self {
            Self::AdamW(c) | Self::Adam(c) => c.weight_decay,
            Self::Sgd(c) => c.weight_decay,
            Self::RmsProp(c) => c.weight_decay,
            Self::Muon(c) => c.weight_decay,
        }
    }

    /// Refuses numbers that cannot work, naming the key.
    ///
    /// # Errors
    /// There is one.
    pub fn validate(&self) -> Result<()> {
        let share = |v: f64| (0. ..1.).contains(&v);
        // Single precision is what updates are computed in.
        let small = |v: f64| v.is_finite() && v as f32 > 0.;
        let (shares, eps): (&[(&str, f64)], Option<f64>) = match self {
            Self::AdamW(c) | Self::Adam(c) => (&[("beta1", c.beta1), ("beta2", c.beta2)], Some(c.eps)),
            Self::Sgd(c) => (&[("momentum", c.momentum)], None),
            Self::RmsProp(c) => (&[("alpha", c.alpha), ("momentum", c.momentum)], Some(c.eps)),
            Self::Muon(c) => (&[("momentum", c.momentum), ("beta1", c.beta1), ("beta2", c.beta2)], Some(c.eps)),
        };
        let refuse = |key: &str, what: &str| Err(Error::Usage(format!("train.optimizer.{key} must {what}")));
        match shares.iter().find(|(_, v)| !share(*v)) {
            Some((key, _)) => refuse(key, "lie in [0, 1)"),
            None if eps.is_some_and(|v| !small(v)) => refuse("eps", "be positive, also in single precision"),
            None if !(self.weight_decay() >= 0. && self.weight_decay().is_finite()) => {
                refuse("weight_decay", "not be negative")
            }
            None => Ok(()),
        }
    }
}
