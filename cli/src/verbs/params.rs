//! `params`: a model's parameters, tensor by tensor.

use std::path::PathBuf;

use candle_core::Device;
use clap::Args;
use serde_json::{Map, Value, json};
use zoo_training::config::ConfigOf;
use zoo_training::{Error, LARGE, Memory, Recipe, Table};

use zoo_layers::Outlined;

use crate::arguments::{Json, ModelName, Settings, Values};
use crate::output::{grouped, print, print_json, remark, table};
use crate::settings::{configured, outline};
use crate::weights::{Loaded, Places, base_of};

#[derive(Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) model: ModelName,
    #[command(flatten)]
    pub(crate) settings: Settings,
    /// Count the tensors of these weights instead
    #[arg(long, value_name = "FILE|RUN", conflicts_with_all = ["preset", "config", "set"])]
    pub(crate) checkpoint: Option<PathBuf>,
    /// The weights that an adapter was trained beside
    #[arg(long, value_name = "FILE", requires = "checkpoint")]
    pub(crate) base: Option<PathBuf>,
    /// The channels that these weights take, in their order
    #[arg(long, requires = "checkpoint")]
    pub(crate) channels: bool,
    /// Say what memory a training step with these settings needs
    #[arg(long, conflicts_with = "checkpoint")]
    pub(crate) memory: bool,
    #[command(flatten)]
    pub(crate) json: Json,
}

/// Bytes of a program that has read its data: code, threads, a tokenizer.
const PROGRAM: f64 = 1e8;
/// Memory that an allocator holds beside what is in use.
const HELD: f64 = 1.07;

/// What a step needs, part by part, in bytes, and the most at any moment.
fn memory<T: Recipe>(config: &ConfigOf<T>, trainable: usize, all: usize, json: Json) -> anyhow::Result<()> {
    let train = &config.train;
    let Some(Memory { kept, turn, evaluated, probed, held }) = T::memory(&config.model, &config.data, train) else {
        return Err(Error::Usage(format!("--memory: what the passes of {} hold is not known", T::NAME)).into());
    };
    const FLOAT: usize = 4;
    let of = |numbers: usize| (numbers * FLOAT) as f64;
    let averaged = if train.ema > 0. { of(all) } else { 0. };
    let (parameters, state, gradients) = (of(all) + averaged, of(trainable * train.optimizer.state()), of(trainable));
    // What is saved while training goes on is copied: the best weights, and a checkpoint.
    let small = |bytes: f64| if bytes <= LARGE as f64 { bytes } else { 0. };
    let copied = small(of(all));
    // Sums of micro-batches, along a binary tree.
    let gradients = gradients * (1. + (train.accumulate.max(1) as f64).log2().ceil());
    let checked = if train.health_every > 0 { gradients + probed } else { 0. };
    let passing = [
        ("forward and backward pass", (kept + turn).max(gradients + turn / 4.)),
        ("update and health check", gradients.max(checked)),
        ("evaluation", evaluated),
        // Written before the next forward pass is through.
        ("saving of a checkpoint", small(parameters + state) + kept / 2.),
    ];
    let most = passing.iter().map(|(_, bytes)| *bytes).fold(0., f64::max);
    let total = HELD * (PROGRAM + held + parameters + state + copied + most);
    if json.json {
        let passing: Map<String, Value> =
            passing.iter().map(|(what, bytes)| (what.replace(' ', "_"), json!(bytes.round()))).collect();
        print_json(&json!({
            "model": T::NAME, "parameters": parameters, "weights_that_stay": held, "optimizer": state, "being_saved": copied, "at_a_time": passing, "total": total.round(),
        }));
        return Ok(());
    }
    let row = |what: &str, bytes: f64| vec![what.to_string(), format!("{:.2} GB", bytes / 1e9)];
    let mut rows =
        vec![row("parameters", parameters), row("optimizer", state), row("best weights, being saved", copied)];
    if held > 0. {
        rows.insert(0, row("weights that stay as they are", held));
    }
    rows.extend(passing.iter().map(|(what, bytes)| row(&format!("{what} (one at a time)"), *bytes)));
    rows.push(row("at most, with the program", total));
    print(&table(&rows));
    Ok(())
}

fn channels<T: Recipe>(fitted: &Value, json: Json) -> anyhow::Result<()> {
    let Some(Table { header, rows, .. }) = T::channels(fitted) else {
        return Err(Error::Usage(format!("--channels: the input of {} has no named channels", T::NAME)).into());
    };
    if json.json {
        let object =
            |row: &Vec<String>| header.iter().cloned().zip(row.iter().map(|v| json!(v))).collect::<Map<_, _>>();
        print_json(&json!({ "model": T::NAME, "channels": rows.iter().map(object).collect::<Vec<_>>() }));
    } else {
        print(&table(&std::iter::once(header).chain(rows).collect::<Vec<_>>()));
    }
    Ok(())
}

pub(crate) fn run<T: Recipe>(args: &Arguments) -> anyhow::Result<()> {
    let (all, architecture, preset) = match &args.checkpoint {
        Some(path) => {
            let values = base_of(args.base.as_deref())?;
            let places = Places { checkpoint: path, values: &values, set: &[] };
            let loaded = Loaded::<T>::read(&places, &Device::Cpu)?;
            if args.channels {
                return channels::<T>(&loaded.fitted, args.json);
            }
            // Loaded weights are constants here, but would train.
            let of = |p: zoo_layers::Param| {
                let dtype = p.var.dtype().as_str();
                (Outlined { name: p.name, shape: p.var.dims().to_vec(), trainable: !p.buffer }, dtype)
            };
            (loaded.params.all().into_iter().map(of).collect::<Vec<_>>(), loaded.config.model, Value::Null)
        }
        None => {
            let mut config = configured::<T>(&args.settings, Values::default())?;
            if let Some(lacks) = T::lacks(&config) {
                remark(lacks);
            }
            T::settle(&mut config)?;
            let preset = args.settings.preset.as_deref().or(T::PRESETS.first().map(|p| p.name));
            let all: Vec<_> = outline::<T>(&config)?.into_iter().map(|p| (p, "f32")).collect();
            if args.memory {
                let trained = all.iter().filter(|(p, _)| p.trainable).map(|(p, _)| p.count()).sum();
                // What stands elsewhere is no parameter.
                let own = all.iter().filter(|(p, _)| T::trains(&config.model, &p.name));
                let all = own.map(|(p, _)| p.count()).sum();
                return memory::<T>(&config, trained, all, args.json);
            }
            (all, config.model, preset.into())
        }
    };
    let total: usize = all.iter().map(|(p, _)| p.count()).sum();
    let of_trainable: usize = all.iter().filter(|(p, _)| p.trainable).map(|(p, _)| p.count()).sum();
    if args.json.json {
        let tensor = |(p, dtype): &(Outlined, &str)| json!({ "name": p.name, "shape": p.shape, "dtype": dtype, "count": p.count(), "trainable": p.trainable });
        let tensors: Vec<Value> = all.iter().map(tensor).collect();
        print_json(
            &json!({ "model": T::NAME, "preset": preset, "total": total, "trainable": of_trainable, "tensors": tensors }),
        );
        return Ok(());
    }
    let mut rows = vec![["tensor", "shape", "dtype", "parameters"].map(String::from).to_vec()];
    for (p, dtype) in &all {
        rows.push(vec![p.name.clone(), format!("{:?}", p.shape), dtype.to_string(), grouped(p.count())]);
    }
    rows.push(vec![format!("{} tensors", all.len()), String::new(), String::new(), grouped(total)]);
    let frozen = if of_trainable < total { format!("trainable: {}\n", grouped(of_trainable)) } else { String::new() };
    let explained = T::explain(&architecture);
    let explained = if explained.is_empty() { explained } else { format!("\n{explained}\n") };
    print(&format!("{}{frozen}{explained}", table(&rows)));
    Ok(())
}
