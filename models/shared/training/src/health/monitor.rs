use std::collections::HashMap;

use candle_core::Result;
use serde_json::Value;

use super::{Check, Finding, Kind, Level, Probe, Profile, Report, SETTLED, Watched, judge};

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
        let mut monitor = Self { profile, config, checks: vec![], raised: HashMap::new() };
        for check in checks {
            monitor.add(check);
        }
        monitor
    }

    /// What is usual of the model.
    pub fn profile(&self) -> &Profile {
        &self.profile
    }

    /// Looks at gradients and probes after step `step`.
    ///
    /// # Errors
    /// Gradients that do not fit their weights; candle's.
    pub fn check(&mut self, step: u64, watched: &[Watched], probes: &[Probe]) -> Result<&Check> {
        let check = Check::new(step, &self.profile, watched, probes)?;
        Ok(self.add(check))
    }

    /// Takes up a check.
    pub fn add(&mut self, check: Check) -> &Check {
        self.checks.push(check);
        // Every second one of the older half goes, always the same ones: a record read again thins out alike.
        if self.checks.len() == KEPT {
            let mut i = 0;
            self.checks.retain(|_| {
                i += 1;
                i > KEPT / 2 || i % 2 == 1
            });
        }
        &self.checks[self.checks.len() - 1]
    }

    /// Counts findings as raised.
    pub(crate) fn know(&mut self, findings: &[Finding]) {
        self.raised.extend(findings.iter().map(|f| ((f.kind, f.what.clone()), f.level)));
    }

    /// Checks so far, oldest first.
    pub fn checks(&self) -> &[Check] {
        &self.checks
    }

    /// What all checks say together.
    pub fn report(&self) -> Report {
        judge(&self.checks, &self.profile, &self.config)
    }

    /// Alerts that were not there before, or have become worse; what has passed may be raised again. What initial values may
    /// bring about is held back until the third check.
    pub fn news(&mut self) -> Vec<Finding> {
        let early = self.checks.len() < SETTLED;
        let alert = |f: &Finding| f.level >= Level::Alert && !(early && f.kind.may_pass());
        let found: Vec<Finding> = self.report().findings.into_iter().filter(alert).collect();
        let now: HashMap<(Kind, String), Level> = found.iter().map(|f| ((f.kind, f.what.clone()), f.level)).collect();
        let before = std::mem::replace(&mut self.raised, now);
        found
            .into_iter()
            .filter(|f| before.get(&(f.kind, f.what.clone())).is_none_or(|level| *level < f.level))
            .collect()
    }
}
