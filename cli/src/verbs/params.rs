//! `params`: a model's parameters, tensor by tensor.

use std::path::PathBuf;

use candle_core::Device;
use clap::Args;
use serde_json::{Map, Value, json};
use zoo_training::{Error, Recipe, Table};

use zoo_layers::Outlined;

use crate::arguments::{Json, ModelName, Settings, Values};
use crate::output::{grouped, print, print_json, table};
use crate::settings::{configured, outline};
use crate::weights::{Loaded, weights};

#[derive(Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) model: ModelName,
    #[command(flatten)]
    pub(crate) settings: Settings,
    /// Count the tensors of these weights instead
    #[arg(long, value_name = "FILE|RUN", conflicts_with_all = ["preset", "config", "set"])]
    pub(crate) checkpoint: Option<PathBuf>,
    /// The channels that these weights take, in their order
    #[arg(long, requires = "checkpoint")]
    pub(crate) channels: bool,
    #[command(flatten)]
    pub(crate) json: Json,
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
            let loaded = Loaded::<T>::read(&weights(path)?, &Device::Cpu)?;
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
            T::settle(&mut config)?;
            let preset = args.settings.preset.as_deref().or(T::PRESETS.first().map(|p| p.name));
            let all = outline::<T>(&config)?.into_iter().map(|p| (p, "f32")).collect();
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
