//! `convert`: a checkpoint in another format, other names, layouts or element types.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::time::Instant;

use anyhow::{Context, bail};
use clap::Args;
use serde_json::{Value, json};
use zoo_checkpoint::{Blocks, Converted, Dtype, Format, Plan, Rules, is_stream};
use zoo_training::Error;

use crate::arguments::{Force, Json};
use crate::fetch::text_of;
use crate::output::{grouped, note, print, print_json, program, remark, table};
use crate::signals::{STOPPED, stop_flag};
use crate::weights::weights;

/// What GGUF files are written in.
const BLOCKS: [&str; 10] = ["q8_0", "q6_k", "q5_k", "q5_1", "q5_0", "q4_k", "q4_1", "q4_0", "q3_k", "q2_k"];

fn usage(reason: impl Into<String>) -> anyhow::Error {
    Error::Usage(reason.into()).into()
}

#[derive(Args)]
pub(crate) struct Arguments {
    /// A checkpoint, the index of a sharded one, or a run directory (its best weights)
    pub(crate) input: PathBuf,
    /// What to write; its ending says the format
    pub(crate) output: PathBuf,
    /// The format to write: safetensors, pytorch, npz, npy, gguf or onnx
    #[arg(long, value_name = "NAME")]
    pub(crate) format: Option<String>,
    /// Convert another program's checkpoint to the names and layout of this model; with --to the other way
    #[arg(long, value_name = "NAME")]
    pub(crate) model: Option<String>,
    /// With --model: the other program's layout to write, such as nanogpt or huggingface
    #[arg(long, value_name = "LAYOUT", requires = "model")]
    pub(crate) to: Option<String>,
    /// With --model: data that the weights were trained on, for what a foreign file does not say (char-gpt: its text; deepsif: the head's folder)
    #[arg(long, value_name = "PATH", requires = "model")]
    pub(crate) data: Option<PathBuf>,
    /// With --model: the weights that an adapter was trained beside
    #[arg(long, value_name = "FILE", requires = "model")]
    pub(crate) base: Option<PathBuf>,
    /// Write the whole model: the weights of --base with what an adapter adds to them
    #[arg(long, requires = "base", conflicts_with_all = ["to", "map", "quantize", "dtype", "shard_size", "dry_run", "format", "data", "no_metadata", "untie"])]
    pub(crate) merge: bool,
    /// A rule, or a file of rules: rename, transpose, split, concat, cast, tie, drop, drop-equal; may be given several times
    #[arg(long, value_name = "FILE|RULE")]
    pub(crate) map: Vec<String>,
    /// With --model: a setting that the checkpoint does not say, such as model.heads=6; may be given several times
    #[arg(long, value_name = "KEY=VALUE", requires = "model")]
    pub(crate) set: Vec<String>,
    /// Write tensors that share their values (a head tied to its embedding) once for each name
    #[arg(long)]
    pub(crate) untie: bool,
    /// Leave out what is neither a tensor nor its name
    #[arg(long)]
    pub(crate) no_metadata: bool,
    /// The element type of all floating-point tensors: f32, f16, bf16 or f64
    #[arg(long, value_name = "DTYPE")]
    pub(crate) dtype: Option<String>,
    /// Write matrices as GGUF's blocks: q8_0, q6_k, q5_k, q5_1, q5_0, q4_k, q4_1, q4_0, q3_k or q2_k; ONNX: int8
    #[arg(long, value_name = "BLOCKS", conflicts_with = "dtype")]
    pub(crate) quantize: Option<String>,
    /// Write several safetensors files of at most this size, and their index: 5GB
    #[arg(long, value_name = "SIZE")]
    pub(crate) shard_size: Option<String>,
    /// ONNX: what goes from one call to the next among the inputs and outputs: keys and values of attention, h and c of an LSTM
    #[arg(long)]
    pub(crate) state: bool,
    /// ONNX: put the weights into a file beside it, OUT.data, as those of more than two gigabytes always are
    #[arg(long)]
    pub(crate) external_data: bool,
    /// Print the plan and write nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    #[command(flatten)]
    pub(crate) force: Force,
    #[command(flatten)]
    pub(crate) json: Json,
}

/// Takes a plan to a model's layout, by the user's rules first, or from it to another program's; the files to write beside it.
pub(crate) type Adapt = fn(&mut Plan, &Arguments, &[Rules]) -> anyhow::Result<Vec<(PathBuf, String)>>;

/// What a model brings to the verb.
#[derive(Clone, Copy)]
pub(crate) struct Converter {
    pub(crate) adapt: Adapt,
    pub(crate) merge: fn(&Arguments) -> anyhow::Result<()>,
}

/// `converter` is that of the model that `--model` names.
pub(crate) fn run(args: &Arguments, converter: Option<Converter>) -> anyhow::Result<ExitCode> {
    if let (true, Some(converter)) = (args.merge, converter) {
        return (converter.merge)(args).map(|()| ExitCode::SUCCESS);
    }
    if args.state || args.external_data {
        return Err(usage("--state and --external-data are for a graph: end OUT in .onnx"));
    }
    let adapt = converter.map(|converter| converter.adapt);
    let begun = Instant::now();
    let input = weights(&args.input)?;
    let format = match &args.format {
        Some(name) => format_named(name)?,
        None => by_extension(&args.output)?,
    };
    let shard_size = args.shard_size.as_deref().map(bytes).transpose()?;
    if shard_size.is_some() && !format.holds_shards() {
        return Err(usage("--shard-size: only safetensors are written in shards"));
    }
    if shard_size.is_some() && args.output.exists() {
        let shown = args.output.display();
        return Err(usage(format!(
            "{shown} is there: beside shards of that name others would read it; name another, or remove it"
        )));
    }
    // What its objects are is said where no rule drops them.
    let source = zoo_checkpoint::open_leaving_objects(&input)?;
    if source.reads(&args.output) {
        return Err(usage(format!(
            "{}: it would be written over what it is read from: name another file",
            args.output.display()
        )));
    }
    if !args.dry_run {
        let index = shard_size.map(|_| zoo_checkpoint::index_of(&args.output));
        args.force.check([index.as_deref().unwrap_or(&args.output)])?;
    }
    source.remarks.iter().for_each(|r| remark(format!("{}: {r}", input.display())));
    let mut plan = Plan::new(&source);
    plan.untied = args.untie;
    // Rules know the names that are read; those of a layout that is written they follow.
    let all = args.map.iter().map(|map| rules(map)).collect::<anyhow::Result<Vec<_>>>()?;
    let sidecars = match adapt {
        Some(adapt) if args.to.is_none() => adapt(&mut plan, args, &all)?,
        Some(adapt) => {
            let sidecars = adapt(&mut plan, args, &[])?;
            all.iter().try_for_each(|rules| plan.apply(rules))?;
            sidecars
        }
        None => {
            all.iter().try_for_each(|rules| plan.apply(rules))?;
            vec![]
        }
    };
    if args.no_metadata {
        plan.metadata.clear();
        plan.lost.clear();
    }
    if let Some(dtype) = &args.dtype {
        match dtype.parse() {
            Ok(Dtype::Quantized(_)) => return Err(usage(format!("--dtype {dtype}: blocks are made by --quantize"))),
            Ok(dtype) if dtype.is_float() => plan.cast(dtype),
            Ok(dtype) => {
                return Err(usage(format!("--dtype {dtype} is for floating-point tensors: f32, f16, bf16 or f64")));
            }
            Err(e) => return Err(usage(format!("--dtype: {e}"))),
        }
    }
    if let Some(name) = &args.quantize {
        if !format.holds_blocks() {
            return Err(usage("--quantize: only GGUF files hold blocks; end OUT in .gguf"));
        }
        let known = BLOCKS.iter().find(|b| b.eq_ignore_ascii_case(name)).and_then(|b| Blocks::from_name(b));
        let Some(to) = known else {
            return Err(usage(format!("--quantize {name}: there are {}", BLOCKS.join(", "))));
        };
        plan.quantize(to)?;
    }
    plan.fit(format);
    if source.format == format && format.holds_entries() && plan.entry.is_none() && !plan.metadata.is_empty() {
        remark(
            "the file is one dictionary of tensors by their dotted names; other entries are its attribute zoo_metadata",
        );
    }
    if args.dry_run {
        return show(&plan, args, format).map(|()| ExitCode::SUCCESS);
    }
    plan.stop = stop_flag()?;
    let done = match plan.write(&args.output, format, shard_size) {
        Err(e) if plan.stop.load(Ordering::Relaxed) => {
            note(&format!("{}: {e}", program()));
            return Ok(ExitCode::from(STOPPED));
        }
        done => done?,
    };
    for (path, text) in &sidecars {
        args.force.write(path, text.as_bytes())?;
        remark(format!("wrote {} beside it", path.display()));
    }
    report(&plan, &done, args, format, begun).map(|()| ExitCode::SUCCESS)
}

/// The format that the name of a file asks for.
pub(crate) fn by_extension(path: &Path) -> anyhow::Result<Format> {
    Format::by_extension(path).ok_or_else(|| {
        let endings: Vec<String> = Format::all().map(|f| format!(".{}", f.extensions()[0])).collect();
        usage(format!("{}: what format? End it in one of {}", path.display(), endings.join(", ")))
    })
}

fn format_named(name: &str) -> anyhow::Result<Format> {
    let names = || Format::all().map(Format::name).collect::<Vec<_>>().join(", ");
    Format::named(name).ok_or_else(|| usage(format!("--format {name}: there are {}", names())))
}

/// A rule, or the rules in a file of that name.
fn rules(map: &str) -> anyhow::Result<Rules> {
    let path = Path::new(map);
    let text = match path.is_file() {
        true => text_of(path, "a file of rules").context("--map")?,
        false if !map.contains(char::is_whitespace) => {
            return Err(usage(format!("--map {map}: there is no such file")));
        }
        false => map.to_string(),
    };
    text.parse().map_err(|e| usage(format!("--map: {e}")))
}

/// `5GB`, `500MB`, `1GiB` or a number of bytes.
fn bytes(text: &str) -> anyhow::Result<u64> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let unit = match text[digits..].trim().to_ascii_uppercase().as_str() {
        "" | "B" => 1u64,
        "KB" => 1000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "KIB" => 1 << 10,
        "MIB" => 1 << 20,
        "GIB" => 1 << 30,
        _ => 0,
    };
    match text[..digits].parse::<u64>().ok().and_then(|n| n.checked_mul(unit)).filter(|n| *n > 0) {
        Some(n) => Ok(n),
        None => Err(usage(format!("--shard-size {text}: expected something like 5GB, 500MB or 1GiB"))),
    }
}

/// Every output with where it comes from.
fn lines(plan: &Plan, format: Format) -> Vec<Value> {
    let ties = plan.ties(format);
    let line = |o: &zoo_checkpoint::Output| {
        json!({
            "name": o.name, "from": o.from(), "shape": o.shape, "dtype": o.dtype.to_string(),
            "source_dtype": o.source_dtype().to_string(), "tied_to": ties.get(&o.name),
        })
    };
    plan.outputs.iter().map(line).collect()
}

fn show(plan: &Plan, args: &Arguments, format: Format) -> anyhow::Result<()> {
    if args.json.json {
        print_json(&json!({
            "input": args.input, "output": args.output, "format": format.name(), "dry_run": true, "plan": lines(plan, format),
            "metadata": plan.metadata.keys().collect::<Vec<_>>(), "dropped": plan.dropped, "lost": plan.lost,
        }));
    } else {
        let ties = plan.ties(format);
        let mut rows = vec![["tensor", "from", "shape", "dtype"].map(String::from).to_vec()];
        for o in &plan.outputs {
            let from = match (&o.from()[..], ties.get(&o.name)) {
                (_, Some(tied)) => format!("tied to {tied}"),
                ([one], _) if *one == o.name => "as it is".into(),
                (names, _) => names.join(" + "),
            };
            let dtype = match o.source_dtype() == o.dtype {
                true => o.dtype.to_string(),
                false => format!("{} to {}", o.source_dtype(), o.dtype),
            };
            rows.push(vec![o.name.clone(), from, format!("{:?}", o.shape), dtype]);
        }
        print(&table(&rows));
        if !plan.metadata.is_empty() {
            print(&format!("metadata: {}\n", plan.metadata.keys().cloned().collect::<Vec<_>>().join(", ")));
        }
        print(&notes(plan));
    }
    match plan.lost.first() {
        Some(lost) => {
            bail!("{}: {lost} cannot be kept: drop it by a rule (--map '{}')", args.input.display(), plan.drops(lost))
        }
        None => Ok(()),
    }
}

/// What was not carried over as it is.
fn notes(plan: &Plan) -> String {
    let mut text = String::new();
    if !plan.dropped.is_empty() {
        const SHOWN: usize = 4;
        let more = plan.dropped.len().saturating_sub(SHOWN);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        let shown = &plan.dropped[..plan.dropped.len().min(SHOWN)];
        text += &format!("dropped by rules: {}{more}\n", shown.join(", "));
    }
    let mut instead: Vec<Blocks> = plan.instead.iter().map(|(_, blocks)| *blocks).collect();
    instead.dedup();
    for blocks in instead {
        let n = plan.instead.iter().filter(|(_, b)| *b == blocks).count();
        text += &format!("{} for {n} tensors whose rows are no whole blocks of 256\n", blocks.name());
    }
    for (name, why) in &plan.kept {
        text += &format!("not quantized: {name} ({why})\n");
    }
    text
}

fn report(plan: &Plan, done: &Converted, args: &Arguments, format: Format, begun: Instant) -> anyhow::Result<()> {
    let largest = done.changed.iter().map(|(_, d)| d.largest).fold(0., f64::max);
    let seconds = begun.elapsed().as_secs_f64();
    if args.json.json {
        let changed: Vec<Value> = done
            .changed
            .iter()
            .map(|(name, d)| json!({ "name": name, "largest_difference": d.largest, "relative_error": d.relative() }))
            .collect();
        print_json(&json!({
            "input": args.input, "output": args.output, "format": format.name(), "files": done.files,
            "tensors": done.tensors, "bytes": done.bytes, "largest_difference": largest, "changed": changed,
            "tied": plan.ties(format), "dropped": plan.dropped, "seconds": seconds,
            "quantized_otherwise": plan.instead.iter().map(|(name, b)| json!({ "name": name, "blocks": b.name() })).collect::<Vec<_>>(),
            "not_quantized": plan.kept.iter().map(|(name, why)| json!({ "name": name, "why": why })).collect::<Vec<_>>(),
        }));
        return Ok(());
    }
    if !done.changed.is_empty() {
        let mut rows = vec![["tensor", "largest difference", "relative error"].map(String::from).to_vec()];
        for (name, d) in done.changed.iter().filter(|(_, d)| d.largest > 0.) {
            rows.push(vec![name.clone(), format!("{:.3e}", d.largest), format!("{:.3e}", d.relative())]);
        }
        if rows.len() > 1 {
            print(&table(&rows));
        }
        let exact = done.changed.len() + 1 - rows.len();
        if exact > 0 {
            print(&format!("{exact} tensors have another element type, and the same values\n"));
        }
    }
    print(&notes(plan));
    for (name, to) in plan.ties(format) {
        print(&format!("{name} is tied to {to}: stored once (--untie writes both)\n"));
    }
    let files: Vec<PathBuf> = done.files.clone();
    let compared = match is_stream(&args.output) {
        true => "compared before they went there, not read back from it",
        false => "read back and compared",
    };
    print(&format!(
        "{}: {} tensors, {} bytes, {compared}; largest difference {largest:e}\n",
        files.iter().map(|f| f.display().to_string()).collect::<Vec<_>>().join(", "),
        grouped(done.tensors),
        grouped(done.bytes as usize)
    ));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_with_their_units() {
        let read = |t| bytes(t).ok();
        assert_eq!((read("5GB"), read("1GiB"), read("12")), (Some(5_000_000_000), Some(1 << 30), Some(12)));
        assert_eq!((read("GB"), read("0"), read("5 apples"), read("99999999999GB")), (None, None, None, None));
    }
}
