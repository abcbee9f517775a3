//! `zoo doctor`.

use std::path::Path;

use anyhow::Context;
use serde_json::{Map, Value, json};
use zoo_training::config::{Layers, resolve, to_toml};
use zoo_training::doctor::{Diagnosis, Verdict, diagnose};
use zoo_training::health::{Check, Finding, Kind, Level, Profile, Report, judge};
use zoo_training::{Curve, Error, History, Task, Trainer};

use crate::args::DoctorArgs;
use crate::eval::Loaded;
use crate::fetch;
use crate::heat::HeatMap;
use crate::output::{print, print_json, table};
use crate::registry::{self, MODELS, quoted, weights};
use crate::{spread, system};

/// The curves of a run and its configuration.
pub(crate) fn read(run: &Path) -> anyhow::Result<(History, Value)> {
    let file = run.join("config.toml");
    if !file.exists() {
        return Err(Error::Run(format!("{} is not a run directory: it has no config.toml", run.display())).into());
    }
    let text = std::fs::read_to_string(&file).with_context(|| file.display().to_string())?;
    let config: toml::Table = text.parse().with_context(|| file.display().to_string())?;
    Ok((History::read(run)?, serde_json::to_value(config)?))
}

/// What a run's checks say, by the rules of its model.
pub(crate) fn health(run: &Path, config: &Value) -> anyhow::Result<(Vec<Check>, Report)> {
    let checks = Check::read(run)?;
    let model = zoo_training::model_of(run);
    let entry = MODELS.iter().find(|m| Some(m.name()) == model.as_deref());
    let profile = entry.map_or_else(Profile::default, |entry| entry.profile());
    let report = judge(&checks, &profile, config);
    Ok((checks, report))
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
        Kind::Progressive => "dying by and by",
        Kind::Setting => "setting",
        Kind::KeyBias => "key bias",
        Kind::AbsentRows => "rows not looked up",
        Kind::Frozen => "frozen",
    }
}

/// A finding in one line, for a run that goes on.
pub(crate) fn line(finding: &Finding) -> String {
    let Finding { level: l, kind: k, what, since, because, remedies } = finding;
    let since = if *since > 1 { format!(" since step {since}") } else { String::new() };
    let advice = remedies.first().map_or(String::new(), |r| format!("; {r}"));
    format!("{}: {what}: {}{since}: {because}{advice}", level(*l), kind(*k))
}

pub(crate) fn run(args: &DoctorArgs) -> anyhow::Result<()> {
    if args.system {
        return system::run(args.json);
    }
    let path = Path::new(&args.target);
    let entry = MODELS.iter().find(|m| m.name() == args.target);
    match entry {
        Some(entry) if !path.join("config.toml").exists() => entry.examine(args),
        _ if args.preset.is_some() || args.config.is_some() || !args.set.is_empty() || args.data.is_some() => {
            // Settings belong to a model: the name is wrong.
            registry::find(&args.target)?.examine(args)
        }
        None if !path.exists() => {
            let names: Vec<&str> = MODELS.iter().map(|m| m.name()).collect();
            Err(Error::Usage(format!("{} is neither a run directory nor a model ({})", args.target, names.join(", ")))
                .into())
        }
        _ => of_run(path, args.json),
    }
}

fn of_run(run: &Path, as_json: bool) -> anyhow::Result<()> {
    let (history, config) = read(run)?;
    let diagnosis = diagnose(&history, &config);
    let (checks, report) = health(run, &config)?;
    let Diagnosis { verdict, because, numbers, advice } = &diagnosis;
    let heat = HeatMap::of(&checks);
    let acting = acting(&history);
    if as_json {
        let acting: Map<String, Value> = acting.iter().map(|(name, v)| (name.to_string(), (*v).into())).collect();
        let health = checks.last().map(|last| as_value(last, &report, checks.len(), Some(&heat)));
        print_json(&json!({
            "run": run.display().to_string(), "verdict": verdict, "because": because, "numbers": numbers, "advice": advice,
            "acting": acting, "health": health,
        }));
        return Ok(());
    }
    // What is wrong with the gradients explains the curves, not the other way round.
    let ill = report.verdict >= Level::Alert;
    if let (Some(last), true) = (checks.last(), ill) {
        print(&format!("{}\n{}\n", described(last, &report, checks.len()), heat.text()));
    }
    print(&format!("{}: {because}\n", name(*verdict)));
    if !acting.is_empty() {
        let shown: Vec<String> = acting.iter().map(|(name, v)| format!("{} {v:.2}", name.replace('_', " "))).collect();
        print(&format!("while acting, in the last tenth: {}\n", shown.join(", ")));
    }
    if numbers.refused > 0 {
        print(&format!("{} steps were refused as not finite or as spikes\n", numbers.refused));
    }
    if !advice.is_empty() && !ill {
        print(&format!(
            "to try, one at a time, in this order:\n{}",
            advice.iter().map(|a| format!("  {a}\n")).collect::<String>()
        ));
    }
    match checks.last() {
        None if config["train"]["health_every"] == 0 => {
            print("\ngradient health was not watched (train.health_every = 0)\n")
        }
        None => print("\nno look at gradient health is on record (health.jsonl)\n"),
        Some(last) if !ill => print(&format!("\n{}\n{}", described(last, &report, checks.len()), heat.text())),
        Some(_) => {}
    }
    Ok(())
}

/// What acting brought over the last tenth of the rounds, if the model acts.
fn acting(history: &History) -> Vec<(&str, f64)> {
    let of = |curve: &'_ Curve| {
        let last = &curve.points[curve.points.len() - curve.points.len().div_ceil(10)..];
        spread::mean(&last.iter().map(|p| p.1).collect::<Vec<_>>())
    };
    // Steps are counted up, and are no measure of how it went.
    let named = history.curves.iter().filter_map(|c| Some((c.name.strip_prefix("experience ")?, c)));
    named.filter(|(name, _)| *name != "steps").map(|(name, c)| (name, of(c))).collect()
}

/// One forward and backward pass of a model: as it begins, or of a checkpoint.
pub(crate) fn examine<T: Task>(args: &DoctorArgs) -> anyhow::Result<()> {
    let device = registry::device("cpu")?;
    let data = fetch::found::<T>(args.data.as_deref())?;
    let mut set = vec![];
    let mut file = args
        .config
        .clone()
        .map(|path| {
            std::fs::read_to_string(&path)
                .map(|text| (text, path.display().to_string()))
                .with_context(|| path.display().to_string())
        })
        .transpose()?;
    if let (Some(checkpoint), None, None) = (&args.checkpoint, &args.preset, &file) {
        // Weights bring their own configuration, but not their data's place.
        let loaded = Loaded::<T>::read(&weights(checkpoint), &device)?;
        file = Some((to_toml(&loaded.config)?, checkpoint.display().to_string()));
        set.push("data.path=".into());
    }
    set.extend(args.set.iter().cloned());
    set.extend(data.map(|d| format!("data.path={}", quoted(&d))));
    set.extend(args.checkpoint.as_ref().map(|c| format!("train.init_from={}", quoted(&weights(c)))));
    let file = file.as_ref().map(|(text, name)| (text.as_str(), name.as_str()));
    let mut config = resolve::<T>(&Layers { preset: args.preset.as_deref(), file, set: &set })?;
    T::settle(&mut config)?;
    let task = T::open(&config.model, &config.data, config.train.seed, None, &device)?;
    let (check, report) = Trainer::new(&task, &config, &device)?.examine()?;
    if args.json {
        print_json(&json!({ "model": T::NAME, "health": as_value(&check, &report, 1, None) }));
    } else {
        print(&described(&check, &report, 1));
    }
    Ok(())
}

fn as_value(last: &Check, report: &Report, checks: usize, heat: Option<&HeatMap>) -> Value {
    let mut value = json!({
        "verdict": report.verdict, "dead": report.dead, "norm": report.norm, "checks": checks, "step": last.step,
        "findings": report.findings, "parameters": last.parameters, "probes": last.probes, "frozen": last.frozen,
    });
    if let Some(heat) = heat {
        value["zeros"] = heat.json();
    }
    value
}

/// A report for people.
fn described(last: &Check, report: &Report, checks: usize) -> String {
    let Report { verdict, dead, norm, findings } = report;
    let looks = if checks == 1 { "one look".into() } else { format!("{checks} looks") };
    let mut text = format!(
        "gradient health: {} ({looks}, the last at step {}): {:.1} % of the gradient elements are dead, gradient norm {norm:.4}\n",
        level(*verdict),
        last.step,
        100. * dead
    );
    for finding in findings {
        let Finding { level: l, kind: k, what, since, because, remedies } = finding;
        let since = if *since > 1 { format!(" since step {since}") } else { String::new() };
        text.push_str(&format!("  {}: {what}: {}{since}: {because}\n", level(*l), kind(*k)));
        for (i, remedy) in remedies.iter().enumerate() {
            text.push_str(&format!("     {}. {remedy}\n", i + 1));
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
            "{name}: weights {:.4} to {:.4}, std {:.4}, greatest at places {}{}\n",
            pooling.min,
            pooling.max,
            pooling.std,
            top.join(", "),
            if pooling.uniform { ": still uniform" } else { "" }
        ));
    }
    text
}
