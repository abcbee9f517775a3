//! `convert` to ONNX: trained weights as a graph that other programs run.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use candle_core::Device;
use serde_json::{Value, json};
use zoo_checkpoint::{Description, Source};
use zoo_layers::onnx::{Graph, OPSET};
use zoo_training::config::{ConfigOf, migrate};
use zoo_training::{Error, Export};

use super::convert::Arguments;
use crate::arguments::Values;
use crate::output::{grouped, print, print_json, program, version};
use crate::weights::{Loaded, Places, elsewhere, weights};

/// Whether a graph is to be written.
pub(crate) fn is_asked_for(args: &Arguments) -> bool {
    let ending = args.output.extension().is_some_and(|e| e.eq_ignore_ascii_case("onnx"));
    args.format.as_deref().map_or(ending, |format| format == "onnx")
}

/// The model whose weights they are, as they say.
pub(crate) fn model_of(args: &Arguments) -> anyhow::Result<String> {
    if let Some(model) = &args.model {
        return Ok(model.clone());
    }
    let source = open(args)?;
    let shown = source.path.display();
    source.metadata.get("model").and_then(Value::as_str).map(String::from).with_context(|| {
        format!(
            "{shown}: it does not say which model's weights it has: convert it first ({} convert {shown} NEW.safetensors --model NAME)",
            program()
        )
    })
}

fn open(args: &Arguments) -> anyhow::Result<Source> {
    Ok(zoo_checkpoint::open(&weights(&args.input)?)?)
}

/// The flags that were given and mean nothing to a graph.
fn useless(args: &Arguments) -> Option<&'static str> {
    let given = [
        ("--to", args.to.is_some()),
        ("--data", args.data.is_some()),
        ("--base", args.base.is_some()),
        ("--merge", args.merge),
        ("--map", !args.map.is_empty()),
        ("--set", !args.set.is_empty()),
        ("--untie", args.untie),
        ("--dtype", args.dtype.is_some()),
        ("--quantize", args.quantize.as_ref().is_some_and(|to| to != "int8")),
        ("--shard-size", args.shard_size.is_some()),
    ];
    given.into_iter().find(|(_, given)| *given).map(|(flag, _)| flag)
}

/// The file of weights beside a graph.
fn beside(output: &Path) -> PathBuf {
    let mut name: OsString = output.into();
    name.push(".data");
    name.into()
}

pub(crate) fn run<T: Export>(args: &Arguments) -> anyhow::Result<ExitCode> {
    if let Some(flag) = useless(args) {
        let reason = format!(
            "{flag}: a graph is written of a model's weights as they are (or --quantize int8); convert them first"
        );
        return Err(Error::Usage(reason).into());
    }
    if args.state && T::STATE.is_none() {
        return Err(Error::Usage(format!("--state: {} has none: it sees its whole input at once", T::NAME)).into());
    }
    let source = open(args)?;
    let path = source.path.clone();
    let config = migrate(Description::of(&source, T::NAME)?.config)?;
    if let Ok(config) = serde_json::from_value::<ConfigOf<T>>(config)
        && !elsewhere::<T>(&config).unwrap_or_default().is_empty()
    {
        let shown = path.display();
        bail!(
            "{shown}: these weights stand over others: make a whole model of both first ({} convert {shown} WHOLE.safetensors --model {} \
             --base BASE --merge)",
            program(),
            T::NAME
        )
    }
    let places = Places { checkpoint: &args.input, values: &Values::default(), set: &[] };
    let Loaded { model, params, config, fitted } = Loaded::<T>::of(&source, &places, &Device::Cpu)?;
    let graph = Graph::new(params.tensors());
    let mut graph = if args.quantize.is_some() { graph.with_int8() } else { graph };
    T::export(&model, &config.model, &fitted, args.state, &mut graph).with_context(|| path.display().to_string())?;
    if let Some(name) = graph.unused().first() {
        bail!("{}: the graph of {} leaves out {name}: this is a mistake of the program", path.display(), T::NAME)
    }
    if !args.no_metadata {
        let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), String::from);
        graph.metadata.extend(source.metadata.iter().map(|(key, value)| (key.clone(), text(value))));
    }
    let weights = (args.external_data || graph.is_large()).then(|| beside(&args.output));
    let files: Vec<&Path> = weights.iter().map(PathBuf::as_path).chain([args.output.as_path()]).collect();
    if let Some(file) = files.iter().find(|file| source.reads(file)) {
        bail!("{}: it would be written over what it is read from: name another file", file.display())
    }
    let name = weights.as_deref().and_then(Path::file_name).map(|name| name.to_str());
    let name = match name {
        Some(None) => bail!("{}: a file of weights beside it needs a name in Unicode", args.output.display()),
        name => name.flatten(),
    };
    if !args.dry_run {
        args.force.check(files.iter().copied())?;
        // Its weights first: a graph never names a file that is not there.
        if let Some(file) = &weights {
            zoo_checkpoint::replace(file, |to| graph.write_weights(to))?;
        }
        let producer = [program(), version()];
        zoo_checkpoint::replace(&args.output, |to| graph.write(to, producer, name))?;
    }
    report::<T>(args, &graph, &files);
    Ok(ExitCode::SUCCESS)
}

fn report<T: Export>(args: &Arguments, graph: &Graph, files: &[&Path]) {
    let size = |file: &&Path| std::fs::metadata(file).map_or(0, |found| found.len());
    let bytes: Option<u64> = (!args.dry_run).then(|| files.iter().map(size).sum());
    if args.json.json {
        let port = |(name, element, dims, help): (&str, &str, Vec<String>, &str)| json!({ "name": name, "type": element, "dims": dims, "help": help });
        print_json(&json!({
            "input": args.input, "output": args.output, "format": "onnx", "files": files, "bytes": bytes, "dry_run": args.dry_run, "model": T::NAME, "opset": OPSET,
            "nodes": graph.nodes(), "inputs": graph.inputs().map(port).collect::<Vec<_>>(),
            "outputs": graph.outputs().map(port).collect::<Vec<_>>(),
        }));
        return;
    }
    let line = |kind: &str, (name, element, dims, help): (&str, &str, Vec<String>, &str)| {
        format!("{kind:<7} {name} ({}) {element}: {help}\n", dims.join(", "))
    };
    graph.inputs().for_each(|port| print(&line("input", port)));
    graph.outputs().for_each(|port| print(&line("output", port)));
    let names: Vec<String> = files.iter().map(|file| file.display().to_string()).collect();
    let written = bytes.map_or("not written".to_string(), |n| format!("{} bytes", grouped(n as usize)));
    print(&format!("{}: {}, {} nodes of opset {OPSET}, {written}\n", names.join(", "), T::NAME, graph.nodes()));
}
