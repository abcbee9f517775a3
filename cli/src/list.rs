//! `zoo list`.

use serde_json::{Value, json};
use zoo_training::Task;
use zoo_training::config::{Layers, resolve};

use crate::output::{grouped, print, print_json};
use crate::registry::{self, MODELS};

pub(crate) struct Described {
    text: String,
    json: Value,
}

pub(crate) fn describe<T: Task>() -> anyhow::Result<Described> {
    let mut text = format!("{}: {}\n  data: {}\n", T::NAME, T::SUMMARY, T::DATA);
    let mut presets = vec![];
    for p in T::PRESETS {
        let config = resolve::<T>(&Layers { preset: Some(p.name), ..Layers::default() })?;
        let count: usize = registry::initial::<T>(&config)?.all().iter().map(|p| p.var.elem_count()).sum();
        text.push_str(&format!("  preset {}: {}, {} parameters\n", p.name, p.summary, grouped(count)));
        presets.push(json!({ "name": p.name, "summary": p.summary, "parameters": count }));
    }
    Ok(Described {
        text,
        json: json!({ "model": T::NAME, "summary": T::SUMMARY, "data": T::DATA, "presets": presets }),
    })
}

pub(crate) fn run(json: bool) -> anyhow::Result<()> {
    let described = MODELS.iter().map(|m| m.describe()).collect::<anyhow::Result<Vec<_>>>()?;
    if json {
        print_json(&json!({ "models": described.into_iter().map(|d| d.json).collect::<Vec<_>>() }));
    } else {
        print(&described.into_iter().map(|d| d.text).collect::<Vec<_>>().join("\n"));
    }
    Ok(())
}
