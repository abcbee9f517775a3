//! Checkpoints of the published network: a dictionary with `state_dict`, `arch` and `attribute_list`.

use serde_json::{Map, Value, json};
use zoo_training::{Error, Foreign, Layout, Recipe, Result, Task};

use crate::{Config, DataSettings, DeepSifTask, FilterActivation, Kind};

const ARCH: &str = "TemporalInverseNet";
const ACTIVATIONS: [(FilterActivation, &str); 3] =
    [(FilterActivation::Relu, "ReLU"), (FilterActivation::Elu, "ELU"), (FilterActivation::Gelu, "GELU")];

/// Its tensors have our names.
pub(crate) const LAYOUTS: &[Layout] =
    &[Layout { name: "published", import: "", export: "", entry: "state_dict", sidecar: "", keeps_ours: true }];

pub(crate) fn recognize(tensors: &[(&str, &[usize])]) -> Option<&'static Layout> {
    let has = |wanted: &str| tensors.iter().any(|(name, _)| *name == wanted);
    (has("spatial.fc11.weight") && has("temporal.rnns.0.weight_ih_l0")).then(|| &LAYOUTS[0])
}

pub(crate) fn adopt(foreign: &Foreign) -> Result<(Config, DataSettings, Value)> {
    let refuse = |what: String| Err(Error::Usage(format!("the published checkpoint {what}")));
    let sizes = |wanted: &str| match foreign.tensors.iter().find(|(name, _)| *name == wanted) {
        Some((_, [a, b])) => Ok((*a, *b)),
        _ => Err(Error::Usage(format!("the published checkpoint has no matrix {wanted}"))),
    };
    let (filter, sensors) = sizes("spatial.fc21.weight")?;
    let (_, sources) = sizes("temporal.rnns.0.weight_hh_l0")?;
    let layers = foreign.tensors.iter().filter(|(name, _)| name.starts_with("temporal.rnns.0.weight_ih_l")).count();
    // Numbers, the two parts, what each hands on, their activations, and the width between them.
    let Some(attributes) = foreign.entries.get("attribute_list").and_then(Value::as_array) else {
        return refuse("has no attribute_list, which tells its activation".into());
    };
    let text = |at: usize| attributes.get(at).and_then(Value::as_str);
    if let Some(output) = text(5).filter(|o| *o != "value_activation") {
        return refuse(format!("hands {output} on to its LSTM: deepsif's filter ends with its activation"));
    }
    let Some((activation, _)) = ACTIVATIONS.iter().find(|(_, name)| text(7) == Some(name)) else {
        return refuse(format!("has the activation {}, expected ReLU, ELU or GELU", text(7).unwrap_or("unknown")));
    };
    let config = Config { sensors, sources, filter, activation: *activation, layers, ..Config::lstm() };
    let Some(data) = foreign.data else {
        return refuse("does not say where its electrodes and regions are: name the head's folder by data.path".into());
    };
    let source = DataSettings { path: data.display().to_string(), ..DataSettings::default() };
    let task = DeepSifTask::open(&config, &source, 0, None, &candle_core::Device::Cpu)?;
    Ok((config, source, task.fitted()))
}

pub(crate) fn entries(config: &Config) -> Result<Map<String, Value>> {
    if config.kind != Kind::Lstm {
        return Err(Error::Usage("the published network is model.kind = \"lstm\"".into()));
    }
    let &Config { sensors, sources, layers, filter, activation, .. } = config;
    let activation = ACTIVATIONS.iter().find(|(known, _)| *known == activation).map(|(_, name)| *name);
    let attributes = json!([
        sensors,
        sources,
        layers,
        "MLPSpatialFilter",
        "TemporalFilter",
        "value_activation",
        "rnn",
        activation,
        activation,
        filter
    ]);
    Ok(Map::from_iter([("arch".to_string(), ARCH.into()), ("attribute_list".to_string(), attributes)]))
}
