//! `zoo pull` and `zoo push`.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail};
use clap::Args;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Value, json};
use zoo_checkpoint::hub::{Hub, HubPath, Report};
use zoo_checkpoint::{Source, TensorInfo, open};
use zoo_training::config::migrate;
use zoo_training::{Error, RunFiles};

use crate::arguments::Json;
use crate::fetch::text_of;
use crate::output::{cut, grouped, note, print, print_json, program};
use crate::weights::weights;

fn hub_path(text: &str) -> anyhow::Result<HubPath> {
    HubPath::parse(text).map_err(|e| Error::Usage(e.to_string()).into())
}

/// A bar on a terminal, nothing elsewhere.
fn progress() -> Report {
    let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr_with_hz(10));
    if !std::io::stderr().is_terminal() {
        return Arc::new(|_, _, _| {});
    }
    if let Ok(style) = ProgressStyle::with_template("{msg} {bar:30} {bytes}/{total_bytes} {bytes_per_sec}") {
        bar.set_style(style);
    }
    Arc::new(move |name, done, total| {
        bar.set_message(name.to_string());
        bar.set_length(total);
        bar.set_position(done);
        if done >= total {
            bar.finish_and_clear();
        }
    })
}

#[derive(Args)]
pub(crate) struct Pull {
    /// OWNER/NAME, with @REVISION for a branch, tag or commit
    #[arg(value_name = "REPO[@REV]")]
    pub(crate) repository: String,
    /// One file; by default the weights (safetensors if there are any), their configuration and card
    #[arg(long, value_name = "FILE")]
    pub(crate) file: Option<String>,
    #[command(flatten)]
    pub(crate) json: Json,
}

#[derive(Args)]
pub(crate) struct Push {
    /// Weights, or a run directory (its best weights and configuration)
    #[arg(value_name = "FILE|RUN")]
    pub(crate) file: PathBuf,
    /// OWNER/NAME, with @REVISION for a branch
    #[arg(value_name = "REPO")]
    pub(crate) repository: String,
    /// A card of your own (Markdown); by default one is written from the weights and the run
    #[arg(long, value_name = "FILE")]
    pub(crate) card: Option<PathBuf>,
    /// The commit's message
    #[arg(long, value_name = "TEXT")]
    pub(crate) message: Option<String>,
    /// Make the repository private, if it is made
    #[arg(long)]
    pub(crate) private: bool,
    /// Print the card and push nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    #[command(flatten)]
    pub(crate) json: Json,
}

pub(crate) fn pull(args: &Pull) -> anyhow::Result<()> {
    let mut path = hub_path(&args.repository)?;
    path.file = args.file.clone().or(path.file);
    let files = Hub::from_environment()?.pull(&path, &progress())?;
    if args.json.json {
        let files: Vec<Value> = files
            .iter()
            .map(|f| json!({ "name": f.name, "path": f.path, "bytes": f.bytes, "sha256": f.sha256 }))
            .collect();
        print_json(&json!({ "repository": path.repository, "revision": path.revision, "files": files }));
        return Ok(());
    }
    for f in &files {
        print(&format!("{}  ({} bytes, sha256 {})\n", f.path.display(), grouped(f.bytes as usize), &f.sha256[..16]));
    }
    Ok(())
}

/// The header of a file of the hub.
pub(crate) fn inspect(name: &str) -> anyhow::Result<Source> {
    Ok(Hub::from_environment()?.inspect(&hub_path(name)?)?)
}

pub(crate) fn push(args: &Push) -> anyhow::Result<()> {
    let path = hub_path(&args.repository)?;
    if path.file.is_some() {
        return Err(Error::Usage(format!("{}: expected OWNER/NAME[@REVISION]", args.repository)).into());
    }
    let file = weights(&args.file)?;
    if file.extension().is_some_and(|e| e == "json") {
        return Err(
            Error::Usage(format!("{}: shards are not pushed: convert makes one file of them", file.display())).into()
        );
    }
    let source = open(&file)?;
    source.check()?;
    let name = match args.file.is_dir() {
        true => "model.safetensors".into(),
        false => file.file_name().map(|n| n.to_string_lossy().into_owned()).context("a file without a name")?,
    };
    if source.format != zoo_checkpoint::Format::Safetensors && args.file.is_dir() {
        bail!("{}: expected safetensors in a run", file.display())
    }
    let run = args.file.is_dir().then_some(args.file.as_path());
    let card = match &args.card {
        Some(path) => text_of(path, "a card in Markdown")?,
        None => card(&path, &source, &name, &zoo_checkpoint::sha256(&file)?, run)?,
    };
    let folder = tempfile::tempdir().context("a temporary folder")?;
    let mut files: Vec<(String, PathBuf)> = vec![(name, file)];
    let config = run.filter(|run| RunFiles::at(run).exist()).map(public_config).transpose()?;
    for (name, text) in [("README.md", Some(card.as_str())), ("config.toml", config.as_deref())] {
        let Some(text) = text else { continue };
        let path = folder.path().join(name);
        std::fs::write(&path, text).with_context(|| path.display().to_string())?;
        files.push((name.into(), path));
    }
    if args.dry_run {
        print(&card);
        for (name, path) in &files {
            let bytes = path.metadata().with_context(|| path.display().to_string())?.len();
            note(&format!("would push {name}: {} bytes", grouped(bytes as usize)));
        }
        return Ok(());
    }
    let message = args.message.clone().unwrap_or_else(|| format!("Add {}", files[0].0));
    let commit = Hub::from_environment()?.push(&path, &files, args.private, &message, &progress())?;
    let names: Vec<&str> = files.iter().map(|(n, _)| n.as_str()).collect();
    if args.json.json {
        print_json(&json!({ "repository": path.repository, "files": names, "commit": commit }));
    } else {
        print(&format!("{}: {} pushed, {commit}\n", path.repository, names.join(", ")));
    }
    Ok(())
}

/// The configuration of a run without the places of its files: it is for everybody.
fn public_config(run: &Path) -> anyhow::Result<String> {
    let mut tables = RunFiles::at(run).read_config()?.tables;
    for (table, key) in [("data", "path"), ("data", "head"), ("train", "init_from")] {
        let value = tables.get_mut(table).and_then(toml::Value::as_table_mut).and_then(|t| t.get_mut(key));
        if let Some(toml::Value::String(path)) = value {
            *path = Path::new(path.as_str()).file_name().unwrap_or_default().to_string_lossy().into_owned();
        }
    }
    Ok(toml::to_string(&tables)?)
}

/// What a reader of the repository should know, from what the weights and their run say.
fn card(path: &HubPath, source: &Source, file: &str, sha256: &str, run: Option<&Path>) -> anyhow::Result<String> {
    let text = |key: &str| source.metadata.get(key).and_then(Value::as_str);
    let config: Value = text("config").and_then(|c| serde_json::from_str(c).ok()).unwrap_or_default();
    let config = migrate(config)?;
    let parameters: usize = source.tensors.iter().filter(|t| t.tied_to.is_none()).map(TensorInfo::elements).sum();
    let title = path.repository.rsplit('/').next().unwrap_or_default();
    // What a file calls its model stands in the front matter and in commands only if it is a name.
    let is_name = |m: &&str| m.len() < 64 && m.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b));
    let model = text("model").filter(is_name);
    let tags = model.map_or(String::new(), |m| format!("- {m}\n"));
    let mut card = format!("---\nlibrary_name: zoo\ntags:\n- candle\n{tags}---\n\n# {title}\n\n");
    let mut rows: Vec<(&str, String)> = vec![];
    if let Some(model) = model {
        rows.push(("model", format!("`{model}`")));
    }
    rows.push(("parameters", format!("{} in {} tensors", grouped(parameters), source.tensors.len())));
    if let Some(path) = config.pointer("/data/path").and_then(Value::as_str) {
        let shown = if path.is_empty() { "simulated or built in".into() } else { format!("`{}`", one_line(path)) };
        rows.push(("data", shown));
    }
    for (key, pointer) in [
        ("seed", "/train/seed"),
        ("steps", "/train/steps"),
        ("batch_size", "/train/batch_size"),
        ("optimizer", "/train/optimizer/kind"),
        ("lr", "/train/lr"),
    ] {
        if let Some(value) = config.pointer(pointer) {
            rows.push((key, cut(&one_line(value.to_string().trim_matches('"')), 60).into_owned()));
        }
    }
    for (name, value) in run.map(best_metrics).transpose()?.unwrap_or_default() {
        rows.push((
            "metric",
            format!("{} {value:.6} (validation, best evaluation of the run)", name.replace('_', " ")),
        ));
    }
    let by_version = || text("zoo_version").map(|version| format!("zoo {}", one_line(version)));
    rows.extend(text("written_by").map(one_line).or_else(by_version).map(|program| ("written by", program)));
    rows.push(("file", format!("`{}`, {} bytes", one_line(file), grouped(source.file_bytes as usize))));
    rows.push(("sha256", format!("`{sha256}`")));
    card += "| | |\n| --- | --- |\n";
    rows.iter().for_each(|(key, value)| card += &format!("| {key} | {value} |\n"));
    if let Some(model) = model {
        card += &format!("\n    {0} pull {1}\n    {0} eval {model} --checkpoint {file}\n", program(), path.repository);
        if run.is_some() {
            card += &format!(
                "\nTrained by `{} train {model} --config config.toml`; `config.toml` is the whole configuration.\n",
                program()
            );
        }
    }
    if !config.is_null() {
        card += &format!("\n```json\n{config:#}\n```\n");
    }
    Ok(card)
}

/// Text of a file in a table of a page.
fn one_line(text: &str) -> String {
    text.replace(['\n', '\r', '`', '|', '<', '>'], " ")
}

/// The metrics of the evaluation with the least loss.
fn best_metrics(run: &Path) -> anyhow::Result<BTreeMap<String, f64>> {
    let Some(text) = RunFiles::at(run).metrics_text()? else { return Ok(BTreeMap::new()) };
    let evaluations = text.lines().filter_map(|l| serde_json::from_str::<Value>(l).ok()?.get("valid").cloned());
    let metrics = evaluations.filter_map(|v| serde_json::from_value::<BTreeMap<String, f64>>(v).ok());
    let loss = |m: &BTreeMap<String, f64>| m.get("loss").copied().unwrap_or(f64::INFINITY);
    Ok(metrics.min_by(|a, b| loss(a).total_cmp(&loss(b))).unwrap_or_default())
}
