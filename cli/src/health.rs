//! Verdicts on runs and gradients in words, for people and for machines.

use std::path::Path;

use serde_json::{Value, json};
use zoo_training::doctor::{Diagnosis, Evidence, Verdict, diagnose};
use zoo_training::health::{Check, Finding, Kind, Level, Profile, Report, judge};
use zoo_training::{Advice, History, RunFiles};

use crate::heat::HeatMap;
use crate::output::table;
use crate::settings::run_tables;

/// A run, and what is to be said of it.
pub(crate) struct Judged {
    pub(crate) history: History,
    pub(crate) config: Value,
    pub(crate) checks: Vec<Check>,
    pub(crate) report: Report,
    pub(crate) diagnosis: Diagnosis,
}

/// What is usual of the gradients of a model, by its name.
pub(crate) type Profiles<'a> = &'a dyn Fn(&str) -> Option<Profile>;

impl Judged {
    /// Reads a run and judges it, by the rules of its model.
    pub(crate) fn read(run: &Path, profiles: Profiles) -> anyhow::Result<Self> {
        let (config, history) = (serde_json::to_value(run_tables(run)?)?, History::read(run)?);
        let (files, checks) = (RunFiles::at(run), Check::read(run)?);
        let profile = files.model().and_then(|model| profiles(&model)).unwrap_or_default();
        let (mut report, samples) = (judge(&checks, &profile, &config), files.samples());
        let evidence = Evidence { history: &history, checks: &checks, report: &report, config: &config, samples };
        let mut diagnosis = diagnose(&evidence);
        one_rate(&mut diagnosis, &mut report);
        Ok(Self { history, config, checks, report, diagnosis })
    }
}

/// Lets the diagnosis and the findings advise one learning rate: the lower one where it is too high.
fn one_rate(diagnosis: &mut Diagnosis, report: &mut Report) {
    fn rate(advice: &mut Advice) -> Option<&mut String> {
        advice.set.as_mut().filter(|(key, _)| key == "train.lr").map(|(_, value)| value)
    }
    let verdict = diagnosis.verdict;
    if !matches!(verdict, Verdict::RateTooHigh | Verdict::RateTooLow) {
        return;
    }
    let ours = diagnosis.advice.iter_mut().find_map(rate);
    let theirs = report.findings.iter_mut().filter(|f| matches!(f.kind, Kind::Rate | Kind::Setting));
    let theirs: Vec<&mut String> = theirs.flat_map(|f| &mut f.remedies).filter_map(rate).collect();
    let Some(ours) = ours else { return };
    let number = |text: &str| text.parse::<f64>().unwrap_or(f64::INFINITY);
    if verdict == Verdict::RateTooHigh
        && let Some(least) = theirs.iter().min_by(|a, b| number(a).total_cmp(&number(b)))
        && number(least) < number(ours)
    {
        *ours = least.to_string();
    }
    theirs.into_iter().for_each(|value| value.clone_from(ours));
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
        Verdict::RateTooLow => "learning rate too low",
        Verdict::Gradients => "inputs or gradients are ill",
        Verdict::NothingLearned => "nothing learnt",
        Verdict::Overfitting => "overfitting",
        Verdict::SlowConvergence => "not finished",
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

/// What steps that are too large brought about, if anything, by its kind.
pub(crate) fn followed(report: &Report) -> Option<String> {
    let mut kinds: Vec<(Kind, Vec<&str>)> = vec![];
    for finding in &report.consequences {
        match kinds.iter_mut().find(|(k, _)| *k == finding.kind) {
            Some((_, names)) => names.push(&finding.what),
            None => kinds.push((finding.kind, vec![&finding.what])),
        }
    }
    let shown = |(k, names): &(Kind, Vec<&str>)| match names.as_slice() {
        [one] => format!("{one}: {}", kind(*k)),
        [first, .., last] => format!("{}: {first} to {last} ({} in all)", kind(*k), names.len()),
        [] => String::new(),
    };
    let shown: Vec<String> = kinds.iter().map(shown).collect();
    (!shown.is_empty()).then(|| format!("what follows from it: {}", shown.join("; ")))
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
        "findings": report.findings.iter().map(finding_value).collect::<Vec<_>>(),
        "consequences": report.consequences.iter().map(finding_value).collect::<Vec<_>>(), "parameters": last.parameters, "probes": last.probes, "frozen": last.frozen,
    });
    if let Some(heat) = heat {
        value["zeros"] = heat.json();
    }
    value
}

/// A report for people.
pub(crate) fn described(last: &Check, report: &Report, checks: usize) -> String {
    let Report { verdict, dead, norm, findings, .. } = report;
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
        if let (Kind::Rate, Some(followed)) = (k, followed(report)) {
            text.push_str(&format!("     {followed}\n"));
        }
    }
    text.push_str(&tables(last));
    text
}

/// What a run is called.
pub(crate) fn name_of(run: &Path) -> String {
    let whole = std::path::absolute(run).unwrap_or_default();
    whole.file_name().map_or(run.display().to_string(), |name| name.to_string_lossy().into_owned())
}

/// The activations and parameters of a check.
pub(crate) fn tables(last: &Check) -> String {
    let mut text = String::new();
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
