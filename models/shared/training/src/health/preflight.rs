use serde_json::Value;
use zoo_layers::Params;
use zoo_layers::optim::norm_squared;

use super::{Check, Finding, Kind, Level, Profile, judge};
use crate::Result;

/// How far a measured gain may be from those that serve: initial values are drawn by chance.
const TOLERANCE: f64 = 0.1;

/// What to know before the first step: scales of the inputs, clipping, gains, rate. `check` is a look at the untrained model.
///
/// # Errors
/// candle's.
pub fn preflight(check: &Check, params: &Params, profile: &Profile, config: &Value) -> Result<Vec<Finding>> {
    let mut findings = judge(std::slice::from_ref(check), profile, config).findings;
    // One batch shows no inputs that are always zero.
    findings.retain(|f| f.level >= Level::Alert && f.kind != Kind::StillInputs);
    let mut found = |what: &str, because: String, remedy: String| {
        let (level, kind) = (Level::Alert, Kind::Setting);
        findings.push(Finding { level, kind, what: what.into(), since: 0, because, remedies: vec![remedy] });
    };
    let number = |key: &str| config.pointer(key).and_then(Value::as_f64);
    if let (Some(range), Some(lr)) = (&profile.rate, number("/train/lr"))
        && !(range.start..=range.end).contains(&lr)
    {
        let because = format!("{lr} is not within {} to {}, where such models learn", range.start, range.end);
        found("train.lr", because, format!("--set train.lr={}", lr.clamp(range.start, range.end)));
    }
    if let (Some(range), Some(clip)) = (&profile.clip, number("/train/clip_norm"))
        && !(range.start..=range.end).contains(&clip)
    {
        let because =
            format!("{clip} is not within {} to {}, the limits that serve such models", range.start, range.end);
        found("train.clip_norm", because, format!("--set train.clip_norm={}", range.end));
    }
    if let (Some(range), true) = (&profile.gain, config.pointer("/train/init_from").is_none_or(|v| v == "")) {
        for param in params.trainable() {
            let &[to, from] = param.var.dims() else { continue };
            let rms = (norm_squared(&param.var)? / (to * from).max(1) as f64).sqrt();
            let gain = rms / (2. / (to + from) as f64).sqrt();
            if gain < range.start * (1. - TOLERANCE) || gain > range.end * (1. + TOLERANCE) {
                let because =
                    format!("its initial values have a gain of {gain:.2}, not {} to {}", range.start, range.end);
                found(&param.name, because, "Xavier's values: 0.6 for linear maps, 0.8 for attention".into());
            }
        }
    }
    Ok(findings)
}
