//! `zoo inspect`, `zoo diff`, `zoo verify` and `zoo average`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::bail;
use clap::Args;
use serde::Serialize;
use serde_json::{Map, Value, json};
use zoo_checkpoint::{Source, Stats, TensorInfo, compare, content_hash, open, stats};
use zoo_layers::nearest;
use zoo_training::Error;

use super::convert::by_extension;
use crate::arguments::{Force, Json};
use crate::fetch::{SCHEME, remote_header};
use crate::output::{cut, grouped, message, print, print_json, program, remark, shown, table, version};
use crate::signals::stop_flag;
use crate::weights::weights;

fn short(value: f64) -> String {
    format!("{value:.4e}")
}

#[derive(Args)]
pub(crate) struct Inspect {
    /// A checkpoint of any format, a run directory, or hf://OWNER/NAME/FILE (its header alone is fetched)
    pub(crate) file: String,
    /// Read all values: least, largest, mean, standard deviation, norm, zeros, NaN
    #[arg(long)]
    pub(crate) stats: bool,
    /// Read all values: a hash of the tensors that is the same in every format
    #[arg(long)]
    pub(crate) hash: bool,
    #[command(flatten)]
    pub(crate) json: Json,
}

#[derive(Args)]
pub(crate) struct Diff {
    /// A checkpoint of any format, or a run directory
    pub(crate) a: String,
    /// Another
    pub(crate) b: String,
    #[command(flatten)]
    pub(crate) json: Json,
}

#[derive(Args)]
pub(crate) struct Verify {
    /// A checkpoint of any format, or a run directory
    pub(crate) file: String,
    /// The model that is to take it
    #[arg(long, value_name = "NAME")]
    pub(crate) model: Option<String>,
    #[command(flatten)]
    pub(crate) json: Json,
    /// Print a report in SARIF 2.1.0, which code scanners read
    #[arg(long, conflicts_with = "json")]
    pub(crate) sarif: bool,
}

#[derive(Args)]
pub(crate) struct Average {
    /// Checkpoints of any format, or run directories, with the same tensors
    #[arg(required = true, num_args = 2.., value_name = "FILE|RUN")]
    pub(crate) files: Vec<String>,
    /// The file to write
    #[arg(long, value_name = "PATH")]
    pub(crate) output: PathBuf,
    #[command(flatten)]
    pub(crate) force: Force,
    #[command(flatten)]
    pub(crate) json: Json,
}

/// Whether a model takes these weights.
pub(crate) type Fits = fn(&Source) -> anyhow::Result<()>;

/// What is told of a file. (Values of serde_json would take a hundred bytes for each of the file's.)
#[derive(Serialize)]
struct Document<'a> {
    format: &'static str,
    file_bytes: u64,
    tensors: Vec<Described<'a>>,
    metadata: &'a Map<String, Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    graph: Option<&'a Value>,
    total_parameters: usize,
    remarks: &'a [String],
    left_out: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    content_sha256: Option<String>,
}

/// What is told of a tensor.
#[derive(Serialize)]
struct Described<'a> {
    name: &'a str,
    shape: &'a [usize],
    dtype: String,
    bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    tied_to: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stats: Option<Stats>,
}

impl Described<'_> {
    /// Its row in a table.
    fn cells(&self) -> Vec<String> {
        let bytes = if self.tied_to.is_some() { "tied".into() } else { grouped(self.bytes as usize) };
        let mut row = vec![self.name.to_string(), format!("{:?}", self.shape), self.dtype.clone(), bytes];
        if let Some(s) = &self.stats {
            row.extend([s.min, s.max, s.mean, s.std, s.norm].map(short));
            row.extend([s.zeros, s.nan, s.infinite].map(grouped));
        }
        row
    }
}

pub(crate) fn inspect(args: &Inspect) -> anyhow::Result<()> {
    let source = match args.file.starts_with(SCHEME) {
        true if args.stats || args.hash => {
            return Err(
                Error::Usage(format!("--stats and --hash need all of a file: {} pull it first", program())).into()
            );
        }
        true => remote_header(&args.file)?,
        false => opened(&args.file)?,
    };
    let parameters: usize = source.tensors.iter().filter(|t| t.tied_to.is_none()).map(TensorInfo::elements).sum();
    let mut tensors = vec![];
    for t in &source.tensors {
        tensors.push(Described {
            name: &t.name,
            shape: &t.shape,
            dtype: t.dtype.to_string(),
            bytes: t.bytes(),
            tied_to: t.tied_to.map(|i| source.tensors[i].name.as_str()),
            stats: if args.stats { stats(&source, t)? } else { None },
        });
    }
    let hash = if args.hash { Some(content_hash(&source)?) } else { None };
    if args.json.json {
        print_json(&Document {
            format: source.format.name(),
            file_bytes: source.file_bytes,
            tensors,
            metadata: &source.metadata,
            graph: source.graph.as_ref(),
            total_parameters: parameters,
            remarks: &source.remarks,
            left_out: &source.left_out,
            content_sha256: hash,
        });
        return Ok(());
    }
    let mut rows = vec![["tensor", "shape", "dtype", "bytes"].map(String::from).to_vec()];
    if args.stats {
        rows[0].extend(["min", "max", "mean", "std", "norm", "zeros", "NaN", "inf"].map(String::from));
    }
    rows.extend(tensors.iter().map(Described::cells));
    let mut text = format!("{}: {}, {} bytes\n", args.file, source.format.name(), grouped(source.file_bytes as usize));
    text += &table(&rows);
    text += &format!("{} tensors, {} parameters\n", source.tensors.len(), grouped(parameters));
    text += &source.graph.as_ref().map_or(String::new(), graph_lines);
    for (key, value) in &source.metadata {
        let value = value.as_str().map_or_else(|| value.to_string(), |s| format!("{s:?}"));
        let cut: String = value.chars().take(100).collect();
        text += &format!("{key} = {cut}{}\n", if cut.len() < value.len() { "…" } else { "" });
    }
    source.left_out.iter().for_each(|l| text += &format!("not read: {l}\n"));
    source.remarks.iter().for_each(|r| text += &format!("note: {r}\n"));
    if let Some(hash) = hash {
        text += &format!("content sha256: {hash}\n");
    }
    print(&text);
    Ok(())
}

/// What an ONNX file computes: a line each for its inputs and outputs, then its operators.
fn graph_lines(graph: &Value) -> String {
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), |s| shown(s).into_owned());
    let pairs = |key: &str, between: &str| {
        let all = graph[key].as_object().into_iter().flatten();
        all.map(|(k, v)| format!("{}{between}{v}", shown(k))).collect::<Vec<_>>().join(", ")
    };
    let mut lines = String::new();
    for (kind, key) in [("input", "inputs"), ("output", "outputs")] {
        for port in graph[key].as_array().into_iter().flatten() {
            let dims: Vec<String> = port["dims"].as_array().into_iter().flatten().map(text).collect();
            let help = port["help"]
                .as_str()
                .filter(|help| !help.is_empty())
                .map_or(String::new(), |h| format!(": {}", shown(h)));
            lines +=
                &format!("{kind:<6} {} ({}) {}{help}\n", text(&port["name"]), dims.join(", "), text(&port["type"]));
        }
    }
    lines += &format!("opset {}; {} nodes: {}\n", pairs("opsets", " "), graph["nodes"], pairs("ops", " "));
    let producer = [&graph["producer"], &graph["producer_version"]].map(text).join(" ");
    lines + &format!("written by {}\n", if producer == " " { "an unnamed program" } else { producer.trim() })
}

/// A file, or the weights of a run directory.
fn opened(name: &str) -> anyhow::Result<Source> {
    Ok(open(&weights(Path::new(name))?)?)
}

pub(crate) fn diff(args: &Diff) -> anyhow::Result<std::process::ExitCode> {
    let (a, b) = (opened(&args.a)?, opened(&args.b)?);
    let of_b: BTreeMap<&str, &TensorInfo> = b.tensors.iter().map(|t| (t.name.as_str(), t)).collect();
    let names_of_a: BTreeMap<&str, &TensorInfo> = a.tensors.iter().map(|t| (t.name.as_str(), t)).collect();
    let only = |these: &Source, others: &BTreeMap<&str, &TensorInfo>| -> Vec<String> {
        these.tensors.iter().map(|t| t.name.clone()).filter(|n| !others.contains_key(n.as_str())).collect()
    };
    let (only_a, only_b) = (only(&a, &of_b), only(&b, &names_of_a));
    let (mut same, mut differ) = (0, vec![]);
    for t in &a.tensors {
        let Some(other) = of_b.get(t.name.as_str()) else { continue };
        if t.shape != other.shape {
            differ.push(json!({ "name": t.name, "a": format!("{} {:?}", t.dtype, t.shape), "b": format!("{} {:?}", other.dtype, other.shape) }));
            continue;
        }
        match compare((&a, t), (&b, other))? {
            None => same += 1,
            Some(d) => differ.push(json!({
                "name": t.name, "a": t.dtype.to_string(), "b": other.dtype.to_string(),
                // JSON has no infinity: what is not finite on one side alone, or no number, is null.
                "largest_difference": d.largest, "relative_error": if d.largest.is_finite() { Some(d.relative()) } else { None },
            })),
        }
    }
    let entries: Vec<&String> = a.metadata.keys().filter(|k| a.metadata.get(*k) != b.metadata.get(*k)).collect();
    let entries: Vec<&String> =
        entries.into_iter().chain(b.metadata.keys().filter(|k| !a.metadata.contains_key(*k))).collect();
    let equal = only_a.is_empty() && only_b.is_empty() && differ.is_empty();
    if args.json.json {
        print_json(&json!({
            "a": args.a, "b": args.b, "equal": equal, "same": same, "different": differ, "only_a": only_a, "only_b": only_b,
            "metadata_differs": entries,
        }));
    } else {
        let mut rows = vec![["tensor", "a", "b", "largest difference", "relative error"].map(String::from).to_vec()];
        let number = |v: &Value| v.as_f64().map_or("-".into(), short);
        let text = |v: &Value| v.as_str().unwrap_or_default().to_string();
        for d in &differ {
            rows.push(vec![
                text(&d["name"]),
                text(&d["a"]),
                text(&d["b"]),
                number(&d["largest_difference"]),
                number(&d["relative_error"]),
            ]);
        }
        if rows.len() > 1 {
            print(&table(&rows));
        }
        only_a.iter().for_each(|n| print(&format!("only in {}: {n}\n", args.a)));
        only_b.iter().for_each(|n| print(&format!("only in {}: {n}\n", args.b)));
        if !entries.is_empty() {
            print(&format!("metadata differ: {}\n", entries.iter().map(|e| e.as_str()).collect::<Vec<_>>().join(", ")));
        }
        print(&format!(
            "{same} tensors are the same, bit for bit; {} differ\n",
            differ.len() + only_a.len() + only_b.len()
        ));
    }
    Ok(std::process::ExitCode::from(u8::from(!equal)))
}

/// What `verify` looks for, by the names that a report in SARIF has.
const RULES: [(&str, &str); 4] = [
    ("structure", "The file is a whole checkpoint of a known format, and nothing else"),
    ("imports", "Unpickling the file imports nothing but what tensors and plain values need"),
    ("values", "The file holds tensors, and their values are finite"),
    ("model", "The tensors and what is kept with them fit the model"),
];

/// Something wrong with a file: the rule that it breaks, and what it is.
type Problem = (&'static str, String);

/// `fits` is that of the model that `--model` names.
pub(crate) fn verify(args: &Verify, fits: Option<Fits>) -> anyhow::Result<()> {
    let source = match opened(&args.file) {
        // A report is made of a file that cannot be opened, too.
        Err(e) if args.sarif => {
            print_json(&sarif(args, &[("structure", message(&e))]));
            bail!("{}: 1 problem", args.file)
        }
        source => source?,
    };
    let problems = problems(&source, fits)?;
    let texts: Vec<&str> = problems.iter().map(|(_, text)| text.as_str()).collect();
    if args.sarif {
        print_json(&sarif(args, &problems));
    } else if args.json.json {
        print_json(&json!({
            "file": args.file, "format": source.format.name(), "ok": problems.is_empty(), "tensors": source.tensors.len(),
            "problems": texts, "imports": source.foreign, "remarks": source.remarks, "left_out": source.left_out,
        }));
    } else {
        let fit = args.model.as_ref().map_or(String::new(), |m| format!(", and fits {m}"));
        match problems.is_empty() {
            true => print(&format!(
                "{}: {} with {} tensors: its structure is sound, its values are finite{fit}\n",
                args.file,
                source.format.name(),
                source.tensors.len()
            )),
            false => texts.iter().for_each(|p| print(&format!("{p}\n"))),
        }
        source.left_out.iter().for_each(|l| print(&format!("not read: {l}\n")));
        source.remarks.iter().for_each(|r| print(&format!("note: {r}\n")));
    }
    match problems.len() {
        0 => Ok(()),
        n => bail!("{}: {n} problem{}", args.file, if n == 1 { "" } else { "s" }),
    }
}

fn problems(source: &Source, fits: Option<Fits>) -> anyhow::Result<Vec<Problem>> {
    let mut problems = vec![];
    if !source.foreign.is_empty() {
        const SHOWN: usize = 8;
        let more = source.foreign.len().saturating_sub(SHOWN);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        let names: Vec<_> = source.foreign.iter().take(SHOWN).map(|name| cut(name, 60)).collect();
        problems
            .push(("imports", format!("unpickling it imports {}{more}, which tensors do not need", names.join(", "))));
    }
    if let Err(e) = source.check() {
        problems.push(("structure", e.to_string()));
        return Ok(problems);
    }
    if source.tensors.is_empty() {
        problems.push(("values", "it holds no tensors".to_string()));
    }
    for t in source.tensors.iter().filter(|t| t.tied_to.is_none()) {
        let found = match stats(source, t) {
            Ok(found) => found,
            Err(e) => {
                problems.push(("structure", e.to_string()));
                continue;
            }
        };
        let Some(s) = found else {
            remark(format!("tensor {} is of {}, whose values were not looked at", t.name, t.dtype));
            continue;
        };
        if s.nan + s.infinite > 0 {
            problems
                .push(("values", format!("tensor {} has {} NaN and {} infinite values", t.name, s.nan, s.infinite)));
        }
    }
    if let Some(Err(e)) = fits.map(|fits| fits(source)) {
        problems.push(("model", message(&e)));
    }
    Ok(problems)
}

/// Problems as code scanners read them: <https://docs.oasis-open.org/sarif/sarif/v2.1.0/sarif-v2.1.0.html>.
fn sarif(args: &Verify, problems: &[Problem]) -> Value {
    let uri = args.file.replace('\\', "/");
    let result = |(rule, text): &Problem| {
        json!({
            "ruleId": rule, "level": "error", "message": { "text": text },
            "locations": [{ "physicalLocation": { "artifactLocation": { "uri": uri } } }],
        })
    };
    let rule = |(id, text): &(&str, &str)| json!({ "id": id, "shortDescription": { "text": text } });
    json!({
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [{
            "tool": { "driver": {
                "name": program(), "version": version(), "rules": RULES.iter().map(rule).collect::<Vec<_>>(),
            } },
            "results": problems.iter().map(result).collect::<Vec<_>>(),
        }],
    })
}

/// What weights of ours say of themselves that is another than the first ones': their model, its sizes, or what was fitted to the data, such as
/// a vocabulary or a scaler.
fn other_than(first: &Source, other: &Source) -> Option<String> {
    let said = |source: &Source, key: &str| -> Option<Value> {
        let value = source.metadata.get(key)?;
        Some(match value.as_str() {
            Some(text) => serde_json::from_str(text).unwrap_or_else(|_| value.clone()),
            None => value.clone(),
        })
    };
    for key in ["model", "fitted"] {
        if said(first, key) != said(other, key) {
            return Some(if key == "fitted" {
                "vocabulary, scaler or the like (\"fitted\")".into()
            } else {
                key.into()
            });
        }
    }
    let sizes =
        |source: &Source| said(source, "config").and_then(|mut config| config.get_mut("model").map(Value::take));
    let (one, two) = (sizes(first), sizes(other));
    // What training alone has to do with, such as dropout, may differ.
    let differs = |key: &&String| {
        *key != "dropout" && one.as_ref().map(|o| &o[key.as_str()]) != two.as_ref().map(|t| &t[key.as_str()])
    };
    let keys = one.as_ref().and_then(Value::as_object).into_iter().flat_map(|map| map.keys());
    keys.into_iter().find(differs).map(|key| format!("setting model.{key}"))
}

pub(crate) fn average(args: &Average) -> anyhow::Result<()> {
    let sources = args.files.iter().map(|f| opened(f)).collect::<anyhow::Result<Vec<_>>>()?;
    let format = by_extension(&args.output)?;
    if sources.iter().any(|s| s.reads(&args.output)) {
        return Err(Error::Usage(format!("{}: it is one of those that are read", args.output.display())).into());
    }
    if let Some(adapter) = sources.iter().find(|s| s.tensors.iter().any(|t| t.name.contains(".lora_A."))) {
        let path = adapter.path.display();
        return Err(Error::Usage(format!(
            "{path}: the mean of adapters' matrices is not the mean of what they add: merge each with its base first (zoo convert … --merge)"
        ))
        .into());
    }
    if let Some((path, what)) = sources.iter().find_map(|s| Some((&s.path, other_than(&sources[0], s)?))) {
        let (path, first) = (path.display(), sources[0].path.display());
        return Err(Error::Usage(format!(
            "{path}: its {what} is not that of {first}: a mean of the two means nothing"
        ))
        .into());
    }
    args.force.check([args.output.as_path()])?;
    let names: Vec<String> = sources.iter().flat_map(|s| s.tensors.iter().map(|t| t.name.clone())).collect();
    let tensors = sources.first().map_or(0, |s| s.tensors.len());
    let stop = stop_flag()?;
    let kept = zoo_checkpoint::average(&sources, &args.output, format, &stop).map_err(|e| match &e {
        zoo_checkpoint::Error::Missing { tensor, .. } => {
            let like = nearest(tensor, names.iter().map(String::as_str).filter(|n| n != tensor));
            anyhow::anyhow!("{e}{}", like.map_or(String::new(), |l| format!(" (did you mean {l}?)")))
        }
        _ => e.into(),
    })?;
    for name in &kept {
        remark(format!("{name} holds no floating-point numbers and differs: it is that of {}", args.files[0]));
    }
    if args.json.json {
        print_json(&json!({ "output": args.output, "inputs": args.files, "tensors": tensors, "kept_of_first": kept }));
    } else {
        print(&format!("{}: the mean of {} checkpoints, {tensors} tensors\n", args.output.display(), sources.len()));
    }
    Ok(())
}
