//! `generate`: text by trained weights.

use std::io::{ErrorKind, Read, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::time::Instant;

use anyhow::Context;
use clap::Args;
use serde_json::json;
use zoo_layers::{Sampling, Text};
use zoo_training::{Error, Generate};

use crate::arguments::{Checkpoint, DeviceName, Json, ModelName, Precision};
use crate::device::device;
use crate::output::{note, print_json, shown};
use crate::signals::{STOPPED, stop_flag};
use crate::weights::{Places, Usable, base_of};

#[derive(Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) model: ModelName,
    #[command(flatten)]
    pub(crate) checkpoint: Checkpoint,
    /// The weights that an adapter was trained beside
    #[arg(long, value_name = "FILE")]
    pub(crate) base: Option<PathBuf>,
    /// The text to go on from; - reads it from stdin. Nothing by default
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true, allow_hyphen_values = true)]
    pub(crate) prompt: String,
    /// The prompt is what somebody says to a model made for conversations, which answers
    #[arg(long)]
    pub(crate) chat: bool,
    /// What the model is told before the conversation
    #[arg(long, value_name = "TEXT", requires = "chat")]
    pub(crate) system: Option<String>,
    /// Characters, or tokens, to write
    #[arg(long, value_name = "N", default_value_t = 500)]
    pub(crate) tokens: usize,
    /// Below 1 safer, above 1 wilder, 0 for always the likeliest
    #[arg(long, value_name = "T", default_value_t = 1., allow_negative_numbers = true)]
    pub(crate) temperature: f64,
    /// Only the likeliest K; 0 for all
    #[arg(long, value_name = "K", default_value_t = 0)]
    pub(crate) top_k: usize,
    /// Only the likeliest that together have probability P
    #[arg(long, value_name = "P", default_value_t = 1., allow_negative_numbers = true)]
    pub(crate) top_p: f64,
    /// Only those with at least the share P of the likeliest's probability
    #[arg(long, value_name = "P", default_value_t = 0., allow_negative_numbers = true)]
    pub(crate) min_p: f64,
    /// Above 1: characters among the last 64 become less likely
    #[arg(long, value_name = "X", default_value_t = 1., allow_negative_numbers = true)]
    pub(crate) repetition_penalty: f64,
    /// End before this text; may be given several times
    #[arg(long, value_name = "TEXT")]
    pub(crate) stop: Vec<String>,
    /// How many texts to write
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) samples: u64,
    /// Same seed, same text
    #[arg(long, value_name = "S", default_value_t = 42)]
    pub(crate) seed: u64,
    /// Disable the KV cache. Slower; the text differs once the context window is full
    #[arg(long)]
    pub(crate) no_cache: bool,
    #[command(flatten)]
    pub(crate) device: DeviceName,
    #[command(flatten)]
    pub(crate) precision: Precision,
    #[command(flatten)]
    pub(crate) json: Json,
}

pub(crate) fn run<T: Generate>(args: &Arguments) -> anyhow::Result<ExitCode> {
    let device = device(&args.device.device)?;
    let sampling = Sampling {
        tokens: args.tokens,
        temperature: args.temperature,
        top_k: args.top_k,
        top_p: args.top_p,
        min_p: args.min_p,
        repetition_penalty: args.repetition_penalty,
        stop: args.stop.clone(),
        seed: args.seed,
        sample: 0,
        cache: !args.no_cache,
    };
    sampling.validate().map_err(|e| Error::Usage(format!("--{e}")))?;
    let prompt = match args.prompt.as_str() {
        "-" => {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text).context("the prompt on stdin")?;
            text
        }
        text => text.to_string(),
    };
    let values = base_of(args.base.as_deref())?;
    let places = Places { checkpoint: &args.checkpoint.checkpoint, values: &values, set: &[] };
    let (Usable { model, fitted, .. }, path) = Usable::<T>::read(&places, &device)?;
    let writer = T::writer(&model, &fitted, &device)?;
    let (prompt, asked) = match args.chat {
        true => {
            let system = args.system.as_deref().map(|text| ("system", text));
            let messages: Vec<(&str, &str)> = system.into_iter().chain([("user", prompt.as_str())]).collect();
            (T::conversation(&writer, &messages)?, String::new())
        }
        false => (prompt.clone(), prompt),
    };
    let stop = stop_flag()?;
    let stopped = || stop.load(Ordering::Relaxed);
    let mut texts = vec![];
    for sample in 0..args.samples {
        let sampling = Sampling { sample, ..sampling.clone() };
        // What stands before the text, written once there is some: a refused prompt leaves stdout empty.
        let between = if sample > 0 { "\n---\n" } else { "" };
        let mut head = (!args.json.json).then(|| format!("{between}{asked}"));
        let (started, mut text, mut failed) = (Instant::now(), String::new(), None);
        let mut write = |piece: &str| {
            text.push_str(piece);
            if !args.json.json {
                failed = out(&(head.take().unwrap_or_default() + piece)).err();
            }
            failed.is_none()
        };
        let mut writing = args.precision.run(|| Text::new(&writer, &prompt, &sampling))?;
        // The first token costs a pass over the whole prompt.
        let mut read = None;
        while writing.end().is_none() && !stopped() {
            let piece = args.precision.run(|| writing.advance(&writer))?;
            read.get_or_insert_with(|| started.elapsed().as_secs_f64());
            if !piece.is_empty() && !write(&piece) {
                break;
            }
        }
        if failed.is_none() && !args.json.json {
            failed = out(&(head.take().unwrap_or_default() + "\n")).err();
        }
        match failed {
            // Whoever read it has enough.
            Some(e) if e.kind() == ErrorKind::BrokenPipe => return Ok(ExitCode::SUCCESS),
            Some(e) => return Err(e).context("stdout"),
            None => {}
        }
        let (seconds, read, count) = (started.elapsed().as_secs_f64(), read.unwrap_or_default(), text.chars().count());
        let (tokens, of_prompt) = (writing.written(), writing.prompt());
        let plural = |n: usize| if n == 1 { "" } else { "s" };
        let behind = match tokens {
            0 | 1 => String::new(),
            _ => format!(", {:.1} tokens a second after the first", (tokens - 1) as f64 / (seconds - read)),
        };
        note(&format!(
            "{tokens} token{}, {count} character{} in {seconds:.2} s, of which {read:.3} s read a prompt of {of_prompt} token{}{behind}",
            plural(tokens),
            plural(count),
            plural(of_prompt)
        ));
        texts.push(json!({
            "text": text, "tokens": tokens, "characters": count, "seconds": seconds, "prompt_tokens": of_prompt, "prompt_seconds": read,
        }));
        if stopped() {
            break;
        }
    }
    if args.json.json {
        print_json(&json!({
            "model": T::NAME, "checkpoint": path.display().to_string(), "prompt": prompt, "seed": args.seed, "samples": texts,
        }));
    }
    Ok(if stopped() { ExitCode::from(STOPPED) } else { ExitCode::SUCCESS })
}

/// Text on stdout, at once.
fn out(text: &str) -> std::io::Result<()> {
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(shown(text).as_bytes())?;
    stdout.flush()
}
