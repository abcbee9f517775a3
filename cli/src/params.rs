//! `zoo params`.

use candle_core::Device;
use serde_json::{Value, json};
use zoo_training::Task;

use crate::args::ParamsArgs;
use crate::eval::Loaded;
use crate::output::{grouped, print, print_json, table};
use crate::registry::{configured, initial, weights};

pub(crate) fn run<T: Task>(args: &ParamsArgs) -> anyhow::Result<()> {
    let (params, architecture, preset, trainable) = match &args.checkpoint {
        Some(path) => {
            let loaded = Loaded::<T>::read(&weights(path), &Device::Cpu)?;
            (loaded.params, loaded.config.model, Value::Null, true)
        }
        None => {
            let mut config = configured::<T>(&args.common, &[])?;
            T::settle(&mut config)?;
            let preset = args.common.preset.as_deref().or(T::PRESETS.first().map(|p| p.name));
            (initial::<T>(&config)?, config.model, preset.into(), false)
        }
    };
    let all = params.all();
    // Loaded weights are constants here, but would train.
    let trains = |p: &zoo_layers::Param| p.trainable || (trainable && !p.buffer);
    let total: usize = all.iter().map(|p| p.var.elem_count()).sum();
    let of_trainable: usize = all.iter().filter(|p| trains(p)).map(|p| p.var.elem_count()).sum();
    if args.json {
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
    print(&format!("{}{frozen}\n{}\n", table(&rows), T::explain(&architecture)));
    Ok(())
}
