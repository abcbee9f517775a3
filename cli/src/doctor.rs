//! `zoo doctor`.

use std::path::Path;

use anyhow::Context;
use serde_json::json;
use zoo_training::doctor::{Diagnosis, Verdict, diagnose};
use zoo_training::{Error, History};

use crate::output::{print, print_json};

/// The curves of a run and its configuration.
pub(crate) fn read(run: &Path) -> anyhow::Result<(History, serde_json::Value)> {
    let file = run.join("config.toml");
    if !file.exists() {
        return Err(Error::Run(format!("{} is not a run directory: it has no config.toml", run.display())).into());
    }
    let text = std::fs::read_to_string(&file).with_context(|| file.display().to_string())?;
    let config: toml::Table = text.parse().with_context(|| file.display().to_string())?;
    Ok((History::read(run)?, serde_json::to_value(config)?))
}

pub(crate) fn name(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::TooShort => "too short to judge",
        Verdict::RateTooHigh => "learning rate too high",
        Verdict::Overfitting => "overfitting",
        Verdict::SlowConvergence => "slow convergence",
        Verdict::Underfitting => "underfitting",
        Verdict::Healthy => "healthy",
    }
}

pub(crate) fn run(run: &Path, as_json: bool) -> anyhow::Result<()> {
    let (history, config) = read(run)?;
    let diagnosis = diagnose(&history, &config);
    let Diagnosis { verdict, because, numbers, advice } = &diagnosis;
    if as_json {
        print_json(&json!({
            "run": run.display().to_string(), "verdict": verdict, "because": because, "numbers": numbers, "advice": advice,
        }));
        return Ok(());
    }
    print(&format!("{}: {because}\n", name(*verdict)));
    if numbers.refused > 0 {
        print(&format!("{} steps were refused as not finite or as spikes\n", numbers.refused));
    }
    if !advice.is_empty() {
        print(&format!(
            "to try, one at a time, in this order:\n{}",
            advice.iter().map(|a| format!("  {a}\n")).collect::<String>()
        ));
    }
    Ok(())
}
