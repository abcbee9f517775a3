//! `zoo generate`.

use std::io::{Read, Write};
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

pub(crate) fn run<T: Task>(args: &GenerateArgs) -> anyhow::Result<()> {
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
    let stop = stop_flag()?;
    let mut texts = vec![];
    for sample in 0..args.samples {
        let Loaded { model, fitted, .. } = Loaded::<T>::read(&path, &device)?;
        let sampling = Sampling { sample, ..sampling.clone() };
        // What stands before the text, written once there is some: a refused prompt leaves stdout empty.
        let between = if sample > 0 { "\n---\n" } else { "" };
        let mut head = (!args.json).then(|| format!("{between}{}", prompt.trim_start_matches('\n')));
        let (started, mut text, mut failed) = (Instant::now(), String::new(), None);
        T::generate(model, &fitted, &prompt, &sampling, &device, &mut |piece| {
            text.push_str(piece);
            if !args.json {
                failed = out(&(head.take().unwrap_or_default() + piece)).err();
            }
            failed.is_none() && !stop.load(std::sync::atomic::Ordering::Relaxed)
        })?;
        if let Some(e) = failed {
            return Err(e);
        }
        if !args.json {
            out(&(head.take().unwrap_or_default() + "\n"))?;
        }
        let (seconds, count) = (started.elapsed().as_secs_f64(), text.chars().count());
        note(&format!("{count} characters in {seconds:.2} s, {:.0} a second", count as f64 / seconds));
        texts.push(json!({ "text": text, "characters": count, "seconds": seconds }));
        if stop.load(std::sync::atomic::Ordering::Relaxed) {
            break;
        }
    }
    if args.json {
        print_json(&json!({
            "model": T::NAME, "checkpoint": path.display().to_string(), "prompt": prompt, "seed": args.seed, "samples": texts,
        }));
    }
    Ok(())
}

/// Text on stdout, at once.
fn out(text: &str) -> anyhow::Result<()> {
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).context("stdout")
}
