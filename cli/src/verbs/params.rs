//! `params`: a model's parameters, tensor by tensor.

use std::path::PathBuf;

use candle_core::Device;
use clap::Args;
use serde_json::{Map, Value, json};
use zoo_training::{Error, Recipe, Table};

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
    let (params, architecture, preset, trainable) = match &args.checkpoint {
        Some(path) => {
            let loaded = Loaded::<T>::read(&weights(path)?, &Device::Cpu)?;
            if args.channels {
                return channels::<T>(&loaded.fitted, args.json);
            }
            (loaded.params, loaded.config.model, Value::Null, true)
        }
        None => {
            let mut config = configured::<T>(&args.settings, Values::default())?;
            T::settle(&mut config)?;
            let preset = args.settings.preset.as_deref().or(T::PRESETS.first().map(|p| p.name));
            (outline::<T>(&config)?, config.model, preset.into(), false)
        }
    };
    let all = params.all();
    // Loaded weights are constants here, but would train.
    let trains = |p: &zoo_layers::Param| p.trainable || (trainable && !p.buffer);
    let total: usize = all.iter().map(|p| p.var.elem_count()).sum();
    let of_trainable: usize = all.iter().filter(|p| trains(p)).map(|p| p.var.elem_count()).sum();
    if args.json.json {
        let tensor = |p: &zoo_layers::Param| {
            json!({
                "name": p.name, "shape": p.var.dims(), "dtype": p.var.dtype().as_str(),
                "count": p.var.elem_count(), "trainable": trains(p),
            })
        };
        let tensors: Vec<Value> = all.iter().map(tensor).collect();
        print_json(
            &json!({ "model": T::NAME, "preset": preset, "total": total, "trainable": of_trainable, "tensors": tensors }),
        );
        return Ok(());
    }
    let mut rows = vec![["tensor", "shape", "dtype", "parameters"].map(String::from).to_vec()];
    for p in &all {
        rows.push(vec![
            p.name.clone(),
            format!("{:?}", p.var.dims()),
            p.var.dtype().as_str().into(),
            grouped(p.var.elem_count()),
        ]);
    }
    rows.push(vec![format!("{} tensors", all.len()), String::new(), String::new(), grouped(total)]);
    let frozen = if of_trainable < total { format!("trainable: {}\n", grouped(of_trainable)) } else { String::new() };
    let explained = T::explain(&architecture);
    let explained = if explained.is_empty() { explained } else { format!("\n{explained}\n") };
    print(&format!("{}{frozen}{explained}", table(&rows)));
    Ok(())
}
