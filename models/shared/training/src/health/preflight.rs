use serde_json::Value;
use zoo_layers::Params;
use zoo_layers::optim::norm_squared;

use crate::Advice;

use super::{Check, Finding, Kind, Level, Profile, Report, Role, judge};
use crate::Result;

/// How far a measured gain may be from the recommended range, and how many standard errors of it: values are drawn by chance.
const TOLERANCE: f64 = 0.1;
const ERRORS: f64 = 4.;

/// What to know before the first step: scales of the inputs, clipping, gains, rate. `check` is a check of the model.
///
/// # Errors
/// candle's.
pub fn preflight(check: &Check, params: &Params, profile: &Profile, config: &Value) -> Result<Report> {
    let mut report = judge(std::slice::from_ref(check), profile, config);
    if let (Some(range), true) = (&profile.gain, config.pointer("/train/init_from").is_none_or(|v| v == "")) {
        for param in params.trainable().into_iter().filter(|p| profile.role(&p.name) != Role::Policy) {
            let &[to, from] = param.var.dims() else { continue };
            let rms = (norm_squared(&param.var)? / (to * from).max(1) as f64).sqrt();
            let gain = rms / (2. / (to + from) as f64).sqrt();
            // The square of a uniform number has a relative deviation of 0.9, its root half of that.
            let tolerance = TOLERANCE.max(ERRORS * 0.45 / ((to * from).max(1) as f64).sqrt());
            if gain < range.start() * (1. - tolerance) || gain > range.end() * (1. + tolerance) {
                let (least, most) = (range.start(), range.end());
                let because = format!("its initial values have a gain of {gain:.2}, not {least} to {most}");
                let remedies =
                    vec![Advice::new("Xavier initialisation with gain 0.6 for linear maps, 0.8 for attention")];
                let (level, kind, what) = (Level::Alert, Kind::Setting, param.name);
                report.findings.push(Finding { level, kind, what, since: 0, because, remedies });
            }
        }
    }
    report.findings.sort_by_key(|f| std::cmp::Reverse(f.level));
    report.verdict = report.findings.first().map_or(Level::Healthy, |f| f.level);
    if report.verdict < Level::Alert {
        report.verdict = Level::Healthy;
    }
    Ok(report)
}
