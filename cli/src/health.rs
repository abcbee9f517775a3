//! Verdicts on runs and gradients in words, for people and for machines.

use std::path::Path;

use serde_json::{Value, json};
use zoo_training::doctor::Verdict;
use zoo_training::health::{Check, Finding, Kind, Level, Profile, Report, judge};
use zoo_training::{Advice, History, RunFiles};

use crate::heat::HeatMap;
use crate::output::table;
use crate::settings::run_tables;

/// The curves of a run and its configuration.
pub(crate) fn read(run: &Path) -> anyhow::Result<(History, Value)> {
    let config = run_tables(run)?;
    Ok((History::read(run)?, serde_json::to_value(config)?))
}

/// What is usual of the gradients of a model, by its name.
pub(crate) type Profiles<'a> = &'a dyn Fn(&str) -> Option<Profile>;

/// What a run's checks say, by the rules of its model.
pub(crate) fn of_run(run: &Path, config: &Value, profiles: Profiles) -> anyhow::Result<(Vec<Check>, Report)> {
    let checks = Check::read(run)?;
    let profile = RunFiles::at(run).model().and_then(|model| profiles(&model)).unwrap_or_default();
    let report = judge(&checks, &profile, config);
    Ok((checks, report))
}

/// Advice on a diagnosis: what to set, and what that does.
pub(crate) fn advised(advice: &Advice) -> String {
    match &advice.set {
        Some((key, value)) => format!("--set {key}={value} ({})", advice.what),
        None => advice.what.clone(),
    }
}

/// Advice on a finding: what to do, and the setting that does it.
fn remedied(advice: &Advice) -> String {
    match &advice.set {
        Some((key, value)) => format!("{} (--set {key}={value})", advice.what),
        None => advice.what.clone(),
    }
}

pub(crate) fn name(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::TooShort => "too short to judge",
        Verdict::RateTooHigh => "learning rate too high",
        Verdict::Overfitting => "overfitting",
        Verdict::SlowConvergence => "slow convergence",
        Verdict::Collapsed => "the policy may have stopped trying",
        Verdict::Underfitting => "underfitting",
        Verdict::Healthy => "healthy",
    }
}

fn level(level: Level) -> &'static str {
    match level {
        Level::Healthy => "healthy",
        Level::Expected => "expected",
        Level::Note => "note",
        Level::Alert => "alert",
        Level::Critical => "critical",
    }
}

fn kind(kind: Kind) -> &'static str {
    match kind {
        Kind::NotFinite => "not finite",
        Kind::Detached => "no gradient",
        Kind::Dead => "dead",
        Kind::Vanishing => "small gradient",
        Kind::Exploding => "exploding gradient",
        Kind::Rate => "steps too large",
        Kind::Saturated => "saturated",
        Kind::Scale => "inputs out of scale",
        Kind::StillInputs => "inputs always zero",
        Kind::DeadUnits => "dead units",
        Kind::FrozenPooling => "pooling does not learn",
        Kind::UniformPooling => "pooling still uniform",
        Kind::Progressive => "progressive gradient death",
        Kind::Setting => "setting",
        Kind::KeyBias => "key bias",
        Kind::FirstOfLora => "first of LoRA",
        Kind::AbsentRows => "rows not looked up",
        Kind::Frozen => "frozen",
    }
}

/// A finding in one line, for a run that goes on.
pub(crate) fn line(finding: &Finding) -> String {
    let Finding { level: l, kind: k, what, since, because, remedies } = finding;
    let since = if *since > 1 { format!(" since step {since}") } else { String::new() };
    let advice = remedies.first().map_or(String::new(), |r| format!("; {}", remedied(r)));
    format!("{}: {what}: {}{since}: {because}{advice}", level(*l), kind(*k))
}

/// A finding with its remedies in words.
fn finding_value(finding: &Finding) -> Value {
    let mut value = serde_json::to_value(finding).unwrap_or_default();
    value["remedies"] = finding.remedies.iter().map(remedied).collect();
    value
}

pub(crate) fn as_value(last: &Check, report: &Report, checks: usize, heat: Option<&HeatMap>) -> Value {
    let mut value = json!({
        "verdict": report.verdict, "dead": report.dead, "norm": report.norm, "checks": checks, "step": last.step,
        "findings": report.findings.iter().map(finding_value).collect::<Vec<_>>(), "parameters": last.parameters, "probes": last.probes, "frozen": last.frozen,
    });
    if let Some(heat) = heat {
        value["zeros"] = heat.json();
    }
    value
}

/// A report for people.
pub(crate) fn described(last: &Check, report: &Report, checks: usize) -> String {
    let Report { verdict, dead, norm, findings } = report;
    let checks = if checks == 1 { "one check".into() } else { format!("{checks} checks") };
    let mut text = format!(
        "gradient health: {} ({checks}, the last at step {}): {:.1} % of the gradient elements are dead, gradient norm {norm:.4}\n",
        level(*verdict),
        last.step,
        100. * dead
    );
    for finding in findings {
        let Finding { level: l, kind: k, what, since, because, remedies } = finding;
        let since = if *since > 1 { format!(" since step {since}") } else { String::new() };
        text.push_str(&format!("  {}: {what}: {}{since}: {because}\n", level(*l), kind(*k)));
        for (i, remedy) in remedies.iter().enumerate() {
            text.push_str(&format!("     {}. {}\n", i + 1, remedied(remedy)));
        }
    }
    let percent = |v: f64| format!("{:.1}", 100. * v);
    if !last.probes.is_empty() {
        let header = ["activation", "mean", "std", "min", "max", "|x| > 3 %", "|x| < 1e-6 %", "still features"];
        let mut rows = vec![header.map(String::from).to_vec()];
        for p in &last.probes {
            let mut row = vec![p.name.clone()];
            row.extend([p.mean, p.std, p.min, p.max].map(|v| format!("{v:.4}")));
            row.extend([percent(p.saturated), percent(p.dead), format!("{} of {}", p.still.len(), p.features)]);
            rows.push(row);
            for g in &p.groups {
                let mut row = vec![format!("  {} features", g.name), String::new(), format!("{:.3e}", g.scale)];
                row.extend(["", "", ""].map(String::from));
                row.push(percent(1. - g.active));
                rows.push(row);
            }
        }
        text.push_str(&format!("\n{}", table(&rows)));
    }
    let header = ["parameter", "gradient norm", "zeros %", "relative zeros %", "dead %", "update / weight"];
    let mut rows = vec![header.map(String::from).to_vec()];
    for p in &last.parameters {
        let update = p.update.map_or("-".into(), |u| format!("{u:.1e}"));
        let shares = match p.elements == p.expected {
            true => ["-"; 3].map(String::from),
            false => [percent(p.zeros), percent(p.relative_zeros), percent(p.dead)],
        };
        let mut row = vec![p.name.clone(), if p.missing { "none".into() } else { format!("{:.3e}", p.norm) }];
        row.extend(shares);
        row.push(update);
        rows.push(row);
    }
    text.push_str(&format!("\n{}", table(&rows)));
    for (name, pooling) in last.parameters.iter().filter_map(|p| p.pooling.as_ref().map(|pooling| (&p.name, pooling))) {
        let top: Vec<String> = pooling.top.iter().map(|(i, w)| format!("{i} ({w:.4})")).collect();
        text.push_str(&format!(
            "{name}: weights {:.4} to {:.4}, std {:.4}, greatest at positions {}{}\n",
            pooling.min,
            pooling.max,
            pooling.std,
            top.join(", "),
            if pooling.uniform { ": still uniform" } else { "" }
        ));
    }
    text
}
