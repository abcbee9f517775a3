//! Policies, whose losses say little: they are judged by how far each step moves them, and whether they still try things.

use serde_json::Value;

use super::measure::{Numbers, ends, mean};
use super::{FEWEST, LEAST_LEAP, Verdict, percent, rate};
use crate::health::SLOW;
use crate::{Advice, History};

/// Divergence of a policy from the one that acted, in nats, and share of clipped ratios: above either, the learning rate is too high.
pub const DIVERGENCE: f64 = 0.05;
/// See [`DIVERGENCE`].
pub const CLIPPED: f64 = 0.5;
/// Share of its first entropy below which a policy has stopped trying.
pub const COLLAPSE: f64 = 0.02;
/// Share of its first entropy above which a policy has hardly begun to prefer anything.
pub const UNMOVED: f64 = 0.98;

/// The verdict and its reason, if the run is a policy's.
pub(super) fn judge(history: &History, numbers: &Numbers) -> Option<(Verdict, String)> {
    let values = |name: &str| history.curve(name).iter().map(|p| p.1).collect::<Vec<_>>();
    // A rate that falls to zero makes every end look calm.
    let worst = |name: &str| {
        let values = values(name);
        values.chunks(values.len().div_ceil(10).max(1)).map(mean).fold(f64::NAN, f64::max)
    };
    if history.curve("experience explained_variance").is_empty() {
        return None;
    }
    let (kl, clipped, entropies) = (worst("kl"), worst("clipped"), values("entropy"));
    let (entropy, entropy_end) = ends(&entropies);
    // Towards the end a policy may well be sure.
    let late = ends(&entropies[..3 * entropies.len() / 4]).1;
    let explained = 100. * ends(&values("experience explained_variance")).1;
    let moved = format!(
        "{kl:.4} nats from the policy that acted and {:.0} % of ratios clipped in the worst tenth",
        100. * clipped
    );
    let leap = numbers.leap.map(|(leap, _)| leap).filter(|leap| *leap > LEAST_LEAP);
    let leapt =
        leap.map_or(String::new(), |leap| format!("a step changed the weights by {} of their norm; ", percent(leap)));
    let seen = format!(
        "{leapt}{moved}; entropy {entropy:.3} to {entropy_end:.3}; in the end the critic explains {explained:.0} % of the returns' variance"
    );
    let verdict = match () {
        () if history.curve("entropy").len() < FEWEST => Verdict::TooShort,
        () if kl > DIVERGENCE || clipped > CLIPPED || leap.is_some() => Verdict::RateTooHigh,
        () if late < COLLAPSE * entropy => Verdict::Collapsed,
        () if entropy_end > UNMOVED * entropy && numbers.pace.is_some_and(|pace| pace < SLOW) => Verdict::RateTooLow,
        () if entropy_end > UNMOVED * entropy => Verdict::Underfitting,
        () => Verdict::Healthy,
    };
    Some((verdict, seen))
}

pub(super) fn advice(verdict: Verdict, numbers: &Numbers, config: &Value) -> Vec<Advice> {
    let number = |key: &str| config.pointer(key).and_then(Value::as_f64);
    let lower =
        number("/train/lr").map(|lr| Advice::set("train.lr", (lr * 0.3e9).round() / 1e9, "a lower learning rate"));
    let entropy = number("/ppo/entropy_weight")
        .map(|w| Advice::set("ppo.entropy_weight", (w * 5.).max(0.01), "explores for longer"));
    let divergence = number("/ppo/target_kl")
        .map(|_| Advice::set("ppo.target_kl", 0.02, "training on a rollout ends once the policy has moved enough"));
    match verdict {
        Verdict::RateTooHigh if numbers.leap.is_some_and(|(leap, _)| leap > LEAST_LEAP) => {
            rate(verdict, numbers, config).into_iter().chain(divergence).collect()
        }
        Verdict::RateTooHigh => lower.into_iter().chain(divergence).collect(),
        Verdict::RateTooLow => rate(verdict, numbers, config).into_iter().collect(),
        Verdict::Collapsed => entropy.into_iter().chain(lower).collect(),
        Verdict::Underfitting => {
            let longer = number("/train/steps").map(|n| Advice::set("train.steps", 2. * n, "a longer run"));
            let nothing = "there may be nothing to prefer: an evaluation beside baselines shows what the policy brings";
            longer.into_iter().chain([Advice::new(nothing)]).collect()
        }
        Verdict::TooShort => vec![Advice::new("a longer run, or lines more often by train.log_every")],
        _ => vec![],
    }
}
