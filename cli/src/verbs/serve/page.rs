//! The page about what is served, with a form that tries it.

use serde_json::{Value, json};

use super::engine::{About, Does};
use crate::output::program;

const TEMPLATE: &str = include_str!("page.html");

/// A model as `/v1/models` lists it.
pub(super) fn described(about: &About) -> Value {
    let About { id, model, summary, checkpoint, parameters, created, does } = about;
    let mut of = json!({
        "id": id, "object": "model", "created": created, "owned_by": program(), "architecture": model, "summary": summary,
        "checkpoint": checkpoint.file_name().unwrap_or_default().to_string_lossy(), "parameters": parameters,
    });
    match does {
        Does::Write { context, chat } => {
            of["does"] = "write".into();
            of["context"] = (*context).into();
            of["chat"] = (*chat).into();
        }
        Does::Predict { options } => {
            let option = |o: &zoo_training::Flag| {
                let of = if o.key.starts_with("predict.") { "prediction" } else { "input" };
                json!({ "name": o.name, "value": o.value, "of": of, "help": o.help })
            };
            of["does"] = "predict".into();
            of["options"] = options.iter().map(option).collect();
        }
    }
    of
}

/// The page, with what is known of the models; without it where that takes a token.
pub(super) fn of(abouts: Option<&[About]>) -> String {
    let models = abouts.map(|abouts| abouts.iter().map(described).collect::<Vec<_>>());
    let data = json!({ "program": program(), "models": models });
    // Within a script element only "<" could end it.
    TEMPLATE.replace("__DATA__", &data.to_string().replace('<', "\\u003c"))
}
