use std::collections::HashMap;

use candle_core::Result;
use serde_json::Value;

use super::{Check, Finding, Kind, Level, Probe, Profile, Report, Watched, judge};

/// Checks that are kept in memory; of more, older ones are thinned out.
const KEPT: usize = 2000;

/// Watches a model: shown its gradients every now and then, it says what is new.
#[derive(Clone, Debug)]
pub struct Monitor {
    profile: Profile,
    config: Value,
    checks: Vec<Check>,
    raised: HashMap<(Kind, String), Level>,
}

impl Monitor {
    /// `config` (the tables `model` and `train`, or null) makes advice concrete; `checks` are those of an earlier life.
    pub fn new(profile: Profile, config: Value, checks: Vec<Check>) -> Self {
        Self { profile, config, checks, raised: HashMap::new() }
    }

    /// What is usual of the model.
    pub fn profile(&self) -> &Profile {
        &self.profile
    }

    /// Looks at gradients and probes after step `step`.
    ///
    /// # Errors
    /// Gradients that do not fit their weights; candle's.
    pub fn look(&mut self, step: u64, watched: &[Watched], probes: &[Probe]) -> Result<&Check> {
        let check = Check::new(step, &self.profile, watched, probes)?;
        Ok(self.add(check))
    }

    /// Takes up a check.
    pub fn add(&mut self, check: Check) -> &Check {
        if self.checks.len() >= KEPT {
            let half = self.checks.len() / 2;
            let mut i = 0;
            self.checks.retain(|_| {
                i += 1;
                i > half || i % 2 == 1
            });
        }
        self.checks.push(check);
        &self.checks[self.checks.len() - 1]
    }

    /// Forgets checks after `step`, to which the run went back.
    pub fn cut(&mut self, step: u64) {
        self.checks.retain(|c| c.step <= step);
        self.raised.clear();
    }

    /// Checks so far, oldest first.
    pub fn checks(&self) -> &[Check] {
        &self.checks
    }

    /// What all checks say together.
    pub fn report(&self) -> Report {
        judge(&self.checks, &self.profile, &self.config)
    }

    /// Alerts that were not there before, or have become worse; what has passed may be raised again.
    pub fn news(&mut self) -> Vec<Finding> {
        let found: Vec<Finding> = self.report().findings.into_iter().filter(|f| f.level >= Level::Alert).collect();
        let now: HashMap<(Kind, String), Level> = found.iter().map(|f| ((f.kind, f.what.clone()), f.level)).collect();
        let before = std::mem::replace(&mut self.raised, now);
        found
            .into_iter()
            .filter(|f| before.get(&(f.kind, f.what.clone())).is_none_or(|level| *level < f.level))
            .collect()
    }
}
