//! `zoo generate`.

use std::io::{ErrorKind, Read, Write};
use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::time::Instant;

use anyhow::Context;
use serde_json::json;
use zoo_layers::Sampling;
use zoo_training::{Error, Task};

use crate::args::GenerateArgs;
use crate::eval::Loaded;
use crate::output::{note, print_json};
use crate::registry::{device, weights};
use crate::train::stop_flag;

/// Exit code of a text that a signal cut short.
const CUT_SHORT: u8 = 130;

pub(crate) fn run<T: Task>(args: &GenerateArgs) -> anyhow::Result<ExitCode> {
    let device = device(&args.device)?;
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
    let path = weights(&args.checkpoint);
    let Loaded { model, fitted, .. } = Loaded::<T>::read(&path, &device)?;
    let stop = stop_flag()?;
    let stopped = || stop.load(Ordering::Relaxed);
    let mut texts = vec![];
    for sample in 0..args.samples {
        let sampling = Sampling { sample, ..sampling.clone() };
        // What stands before the text, written once there is some: a refused prompt leaves stdout empty.
        let between = if sample > 0 { "\n---\n" } else { "" };
        let mut head = (!args.json).then(|| format!("{between}{prompt}"));
        let (started, mut text, mut failed) = (Instant::now(), String::new(), None);
        T::generate(&model, &fitted, &prompt, &sampling, &device, &mut |piece| {
            text.push_str(piece);
            if !args.json {
                failed = out(&(head.take().unwrap_or_default() + piece)).err();
            }
            failed.is_none() && !stopped()
        })?;
        if failed.is_none() && !args.json {
            failed = out(&(head.take().unwrap_or_default() + "\n")).err();
        }
        match failed {
            // Whoever read it has enough.
            Some(e) if e.kind() == ErrorKind::BrokenPipe => return Ok(ExitCode::SUCCESS),
            Some(e) => return Err(e).context("stdout"),
            None => {}
        }
        let (seconds, count) = (started.elapsed().as_secs_f64(), text.chars().count());
        note(&format!("{count} characters in {seconds:.2} s, {:.0} a second", count as f64 / seconds));
        texts.push(json!({ "text": text, "characters": count, "seconds": seconds }));
        if stopped() {
            break;
        }
    }
    if args.json {
        print_json(&json!({
            "model": T::NAME, "checkpoint": path.display().to_string(), "prompt": prompt, "seed": args.seed, "samples": texts,
        }));
    }
    Ok(if stopped() { ExitCode::from(CUT_SHORT) } else { ExitCode::SUCCESS })
}

/// Text on stdout, at once.
fn out(text: &str) -> std::io::Result<()> {
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()
}
