//! What can be found, and what to do about it.

use serde::Serialize;
use serde_json::Value;

use crate::Advice;
use crate::advice::neat;

use super::{FAST, Profile, Role};

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Level {
    /// Nothing is wrong.
    Healthy,
    /// So it must be by mathematics, or was asked for.
    Expected,
    /// Worth knowing.
    Note,
    /// Something is wrong.
    Alert,
    /// Training does not work like this.
    Critical,
}

/// What was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Values that are not finite.
    NotFinite,
    /// A parameter that backward does not reach.
    Detached,
    /// Gradient elements that are zero while others are not.
    Dead,
    /// A gradient that is small everywhere.
    Vanishing,
    /// A gradient that is too large.
    Exploding,
    /// Steps that change the weights too much.
    Rate,
    /// Preactivations beyond ±3.
    Saturated,
    /// Inputs beyond ±3, or of scales that differ too much.
    Scale,
    /// Inputs that are always zero.
    StillInputs,
    /// Units that are always zero.
    DeadUnits,
    /// A pooling that does not learn.
    FrozenPooling,
    /// A pooling whose weights are still uniform.
    UniformPooling,
    /// Gradients that die progressively.
    Progressive,
    /// A clipping limit, gain or learning rate outside the recommended range.
    Setting,
    /// A key bias.
    KeyBias,
    /// The first matrix of LoRA, beside a second one of zeros.
    FirstOfLora,
    /// Rows of a table that were not looked up.
    AbsentRows,
    /// A frozen parameter.
    Frozen,
}

impl Kind {
    /// Whether the first checks may show it without anything being wrong: initial values pass, and few samples say little.
    pub(crate) fn may_pass(self) -> bool {
        use Kind::*;
        matches!(self, Dead | Vanishing | FrozenPooling | DeadUnits | StillInputs | Exploding | Progressive)
    }

    /// Whether a lower learning rate may help.
    pub(crate) fn is_cured_by_lr(self) -> bool {
        matches!(self, Self::Dead | Self::Exploding | Self::Progressive | Self::Rate | Self::DeadUnits)
    }
}

/// One thing that was found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Finding {
    /// How bad it is.
    pub level: Level,
    /// What it is.
    pub kind: Kind,
    /// The tensor, probe or setting.
    pub what: String,
    /// The step since which it has been so.
    pub since: u64,
    /// In a sentence, with the numbers and the likely cause.
    pub because: String,
    /// What to do, in the order in which it is worth trying.
    pub remedies: Vec<Advice>,
}

/// What several checks say together.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// The worst level of all findings that are not expected, or healthy.
    pub verdict: Level,
    /// Share of dead elements, the median of the last checks.
    pub dead: f64,
    /// Global gradient norm, the median of the last checks.
    pub norm: f64,
    /// The worst first; steps that are too large, which may have brought about worse, before all others.
    pub findings: Vec<Finding>,
    /// What steps that are too large brought about ([`Kind::Rate`] among the findings): it has no remedies of its own. Worst first.
    pub consequences: Vec<Finding>,
}

/// The documents' remedies that fit, in their order.
///
/// `update` is how far a step changes the weights, relative to their norm, if that is the cause.
pub(super) fn remedies(
    kind: Kind,
    role: Role,
    since: u64,
    update: Option<f64>,
    profile: &Profile,
    config: &Value,
) -> Vec<Advice> {
    let number = |key: &str| config.pointer(key).and_then(Value::as_f64);
    let normalize = match profile.normalize.and_then(|setting| setting.split_once('=')) {
        // It is set already.
        Some((key, value)) if config.pointer(&format!("/{}", key.replace('.', "/"))).is_some_and(|v| v == value) => {
            None
        }
        Some((key, value)) => {
            let what = "normalise what it sees, by a layer norm or statistics of each feature";
            Some(Advice::set(key, value, what))
        }
        None => Some(Advice::new(
            "normalise what it sees: a layer norm, or statistics of each feature, before the first map",
        )),
    };
    let rate = match number("/train/lr") {
        // If the learning rate is far above the recommended range, or steps change the weights far too much, go straight to where it should be.
        Some(lr) => {
            let most = profile.lr.as_ref().map(|r| *r.end()).filter(|most| *most < lr / 2.);
            let asked = update.map(|update| neat(lr * FAST / update)).filter(|asked| *asked < lr / 2.);
            match most.into_iter().chain(asked).reduce(f64::min) {
                Some(lower) => Advice::set("train.lr", lower, "lower the learning rate"),
                None => Advice::set("train.lr", lr / 2., "halve the learning rate"),
            }
        }
        None => Advice::new("halve the learning rate"),
    };
    let clip = match (&profile.clip, number("/train/clip_norm")) {
        (Some(range), Some(now)) if !range.contains(&now) => {
            let what = format!("clip the gradient norm at {} to {}", range.start(), range.end());
            Some(Advice::set("train.clip_norm", range.end(), what))
        }
        (None, None) => Some(Advice::new("for a transformer, clip the gradient norm at 5 to 10, not at 1")),
        _ => None,
    };
    let gain = profile.gain.as_ref().map(|_| {
        Advice::new("start from Xavier initialisation with gain 0.6 to 0.8 (0.6 linear, 0.8 attention) and zero biases")
    });
    let units = profile.units.map(Advice::new);
    let again = (since > 1).then(|| Advice::new(format!("start again from a checkpoint before step {since}")));
    let one = |text: &str| vec![Advice::new(text)];
    match kind {
        Kind::Dead if role == Role::InputProjection => {
            [normalize, Some(rate), clip, gain, again].into_iter().flatten().collect()
        }
        Kind::Dead | Kind::Progressive => [Some(rate), clip, gain, again].into_iter().flatten().collect(),
        Kind::Scale | Kind::Saturated | Kind::Vanishing => [normalize, gain].into_iter().flatten().collect(),
        Kind::DeadUnits => [Some(rate), units, again].into_iter().flatten().collect(),
        Kind::Exploding | Kind::Rate => [Some(rate), clip, again].into_iter().flatten().collect(),
        Kind::NotFinite => [Some(Advice::new("look at the input that the probes name")), Some(rate), again]
            .into_iter()
            .flatten()
            .collect(),
        Kind::Detached => one("use differentiable operations on the way to the loss, or freeze it"),
        Kind::StillInputs => one("connect them, or leave them out"),
        Kind::FrozenPooling => vec![
            Advice::new("check whether its result reaches the loss"),
            match config.pointer("/repair/pooling_nudge") {
                None => Advice::new("give it a pull (see pooling_nudge)"),
                Some(_) => Advice::set("repair.pooling_nudge", true, "give it a pull"),
            },
        ],
        _ => vec![],
    }
}
