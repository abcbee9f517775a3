//! `list`: the models, what they can do, and their presets.

use serde_json::{Value, json};
use zoo_training::Recipe;
use zoo_training::config::{Overrides, resolve};

use crate::arguments::Json;
use crate::output::{grouped, print, print_json};
use zoo_layers::Outlined;

use crate::settings::outline;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    json: Json,
}

/// What a model can do beside being trained and judged.
#[derive(Clone, Debug, Default)]
pub(crate) struct Abilities {
    pub(crate) predict: bool,
    pub(crate) generate: bool,
    /// Layouts of other programs.
    pub(crate) imports: Vec<&'static str>,
    /// Whether it is written as a graph of ONNX's operators.
    pub(crate) exports: bool,
}

pub(crate) struct Described {
    text: String,
    json: Value,
}

pub(crate) fn describe<T: Recipe>(abilities: &Abilities) -> anyhow::Result<Described> {
    let Abilities { predict, generate, imports, exports } = abilities;
    let mut can = vec!["train", "tune", "eval"];
    can.extend(predict.then_some("predict"));
    can.extend(generate.then_some("generate"));
    let mut text = format!("{}: {}\n  data: {}\n  can: {}\n", T::NAME, T::SUMMARY, T::DATA, can.join(", "));
    if !imports.is_empty() {
        text.push_str(&format!("  imports: {}\n", imports.join(", ")));
    }
    if *exports {
        text.push_str("  exports: ONNX\n");
    }
    let mut presets = vec![];
    for p in T::PRESETS {
        let mut config = resolve::<T>(&Overrides { preset: Some(p.name), ..Overrides::default() })?;
        // What the built-in data decide; others may decide otherwise.
        T::settle(&mut config)?;
        let count: usize = outline::<T>(&config)?.iter().map(Outlined::count).sum();
        text.push_str(&format!("  preset {}: {}, {} parameters\n", p.name, p.summary, grouped(count)));
        presets.push(json!({ "name": p.name, "summary": p.summary, "parameters": count }));
    }
    Ok(Described {
        text,
        json: json!({
            "model": T::NAME, "summary": T::SUMMARY, "data": T::DATA, "presets": presets, "can": can, "imports": imports,
        }),
    })
}

pub(crate) fn run(args: &Arguments, models: Vec<Described>) {
    if args.json.json {
        print_json(&json!({ "models": models.into_iter().map(|d| d.json).collect::<Vec<_>>() }));
    } else {
        print(&models.into_iter().map(|d| d.text).collect::<Vec<_>>().join("\n"));
    }
}
