//! How nanoGPT and Hugging Face's GPT-2 name and lay out the same weights.

use std::path::Path;

use serde_json::{Map, Value, json};
use zoo_training::{Error, Foreign, Layout, Result};

use crate::data::characters;
use crate::{Config, DataSettings, Gelu};

/// The characters of tiny Shakespeare, in the order of their numbers: those of nanoGPT's data set `shakespeare_char`.
const SHAKESPEARE: &str = "\n !$&',-.3:;?ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

const NANOGPT: &str = "nanogpt";
const HUGGING_FACE: &str = "huggingface";

/// The names that both programs have, as ours.
macro_rules! import {
    () => {
        r"
            drop? .*\.attn\.(?:bias|masked_bias)
            rename transformer\.wte\.weight -> token_embedding.weight
            rename transformer\.wpe\.weight -> position_embedding.weight
            rename transformer\.h\.(\d+)\.ln_([12])\.(weight|bias) -> blocks.$1.norm$2.$3
            rename transformer\.h\.(\d+)\.attn\.c_attn\.(weight|bias) -> blocks.$1.self_attn.in_proj_$2
            rename transformer\.h\.(\d+)\.attn\.c_proj\.(weight|bias) -> blocks.$1.self_attn.out_proj.$2
            rename transformer\.h\.(\d+)\.mlp\.c_fc\.(weight|bias) -> blocks.$1.linear1.$2
            rename transformer\.h\.(\d+)\.mlp\.c_proj\.(weight|bias) -> blocks.$1.linear2.$2
            rename transformer\.ln_f\.(weight|bias) -> norm.$1
            drop-equal? lm_head\.weight -> token_embedding.weight
            rename? lm_head\.weight -> head.weight
        "
    };
}

/// Our names as theirs.
macro_rules! export {
    () => {
        r"
            concat? blocks\.(\d+)\.self_attn\.q_proj\.(weight|bias), blocks.$1.self_attn.k_proj.$2, blocks.$1.self_attn.v_proj.$2 0 -> blocks.$1.self_attn.in_proj_$2
            rename token_embedding\.weight -> transformer.wte.weight
            rename position_embedding\.weight -> transformer.wpe.weight
            rename blocks\.(\d+)\.norm([12])\.(weight|bias) -> transformer.h.$1.ln_$2.$3
            rename blocks\.(\d+)\.self_attn\.in_proj_(weight|bias) -> transformer.h.$1.attn.c_attn.$2
            rename blocks\.(\d+)\.self_attn\.out_proj\.(weight|bias) -> transformer.h.$1.attn.c_proj.$2
            rename blocks\.(\d+)\.linear1\.(weight|bias) -> transformer.h.$1.mlp.c_fc.$2
            rename blocks\.(\d+)\.linear2\.(weight|bias) -> transformer.h.$1.mlp.c_proj.$2
            rename norm\.(weight|bias) -> transformer.ln_f.$1
            rename? head\.weight -> lm_head.weight
            tie? lm_head.weight -> transformer.wte.weight
        "
    };
}

/// Hugging Face's linear layers (Conv1D) are transposed.
macro_rules! transpose {
    () => {
        "\ntranspose transformer\\.h\\.\\d+\\.(?:attn|mlp)\\.c_(?:attn|proj|fc)\\.weight\n"
    };
}

/// nanoGPT: linear layers as PyTorch has them, and training state. Hugging Face: transposed ones, with or without the prefix.
pub(crate) const LAYOUTS: &[Layout] = &[
    Layout {
        name: NANOGPT,
        import: concat!("drop? optimizer\\..*\ndrop? best_val_loss\n", import!()),
        export: export!(),
        entry: "model",
        sidecar: "",
        keeps_ours: true,
    },
    Layout {
        name: HUGGING_FACE,
        import: concat!("rename? ((?:wte|wpe|ln_f|h)\\..*) -> transformer.$1", transpose!(), import!()),
        export: concat!(export!(), transpose!()),
        entry: "",
        sidecar: "config.json",
        keeps_ours: true,
    },
];

/// The two have the same names, with or without a prefix; the packed queries, keys and values tell them apart.
pub(crate) fn recognize(tensors: &[(&str, &[usize])]) -> Option<&'static Layout> {
    let packed = tensors.iter().find(|(name, _)| name.ends_with("h.0.attn.c_attn.weight"))?;
    let name = match packed.1 {
        [out, width] if *out == 3 * width => NANOGPT,
        [width, out] if *out == 3 * width => HUGGING_FACE,
        _ => return None,
    };
    LAYOUTS.iter().find(|l| l.name == name)
}

pub(crate) fn adopt(foreign: &Foreign) -> Result<(Config, DataSettings, Value)> {
    let shape = |wanted: &str| foreign.tensors.iter().find(|(name, _)| *name == wanted).map(|(_, shape)| *shape);
    let missing = |what: &str| Error::Usage(format!("the {} checkpoint has no {what}", foreign.layout));
    let sizes = |name: &str| match shape(name) {
        Some([a, b]) => Ok((*a, *b)),
        _ => Err(missing(name)),
    };
    let (vocabulary, width) = sizes("token_embedding.weight")?;
    let (context, _) = sizes("position_embedding.weight")?;
    let (hidden, _) = sizes("blocks.0.linear1.weight")?;
    let arguments = arguments(foreign.entries, DEEPEST);
    let (said, where_from) = match foreign.layout {
        NANOGPT => (arguments.as_ref(), "model_args"),
        _ => (Some(foreign.entries), "config.json"),
    };
    let said = |key: &str| said.and_then(|s| s.get(key));
    let given = foreign.setting("model.heads").and_then(|text| text.parse().ok());
    let Some(heads) = given.or_else(|| ["n_head", "num_attention_heads"].iter().find_map(|k| said(k)?.as_u64())) else {
        return Err(missing(&format!(
            "n_head, which its tensors do not tell: {where_from} has it in a whole checkpoint; say it by --set model.heads=N"
        )));
    };
    let biased = shape("norm.bias").is_some();
    let gelu = match said("activation_function").and_then(Value::as_str) {
        // Those who have the same names and biases besides take the approximation.
        None if foreign.layout == NANOGPT && arguments.is_none() && biased => {
            if foreign.setting("model.gelu").is_none() {
                foreign.doubts.borrow_mut().push(
                    "its tensors do not tell its GELU, which is taken as that by tanh (minGPT, build-nanogpt); nanoGPT's own is \
                     --set model.gelu=erf"
                        .into(),
                );
            }
            Gelu::Tanh
        }
        // nanoGPT has no choice.
        None if foreign.layout == NANOGPT => Gelu::Erf,
        Some("gelu") => Gelu::Erf,
        None | Some("gelu_new" | "gelu_pytorch_tanh") => Gelu::Tanh,
        Some(other) => return Err(Error::Usage(format!("{where_from}: char-gpt has no activation {other}"))),
    };
    if said("layer_norm_epsilon").and_then(Value::as_f64).is_some_and(|e| e != 1e-5) {
        return Err(Error::Usage(format!("{where_from}: char-gpt's norms have layer_norm_epsilon 1e-5")));
    }
    for key in ["scale_attn_by_inverse_layer_idx", "reorder_and_upcast_attn", "add_cross_attention"] {
        if said(key).and_then(Value::as_bool) == Some(true) {
            return Err(Error::Usage(format!("{where_from}: char-gpt has no {key}")));
        }
    }
    if said("scale_attn_weights").and_then(Value::as_bool) == Some(false) {
        return Err(Error::Usage(format!("{where_from}: char-gpt scales its attention (scale_attn_weights)")));
    }
    // What it says of sizes is what the tensors have, or one of the two is another model's.
    for (key, found) in [("n_embd", width), ("block_size", context), ("vocab_size", vocabulary)] {
        if let Some(other) = said(key).and_then(Value::as_u64).filter(|n| *n != found as u64) {
            return Err(Error::Usage(format!(
                "{where_from} says {key} = {other}, its tensors have {found}: they are not of one model"
            )));
        }
    }
    let blocks = foreign.tensors.iter().filter(|(name, _)| name.ends_with(".norm1.weight")).count();
    let config = Config {
        vocabulary,
        context,
        layers: blocks,
        heads: heads as usize,
        width,
        hidden,
        separate_qkv: false,
        tied: shape("head.weight").is_none(),
        bias: biased,
        gelu,
        dropout: ["dropout", "resid_pdrop"].iter().find_map(|k| said(k)?.as_f64()).unwrap_or(0.),
    };
    let data_set = foreign.entries.get("config").and_then(|c| c.get("dataset")).and_then(Value::as_str);
    let source = DataSettings {
        path: foreign.data.map_or(String::new(), |p| p.display().to_string()),
        ..DataSettings::default()
    };
    let known = match foreign.data {
        Some(path) if path.extension().is_some_and(|e| e == "pkl") => listed(path)?,
        // Python reads line ends as one character, unless it is told not to.
        Some(_) => match characters(&source, "")? {
            known if known.chars().count() + 1 == vocabulary => characters(&source, "\r")?,
            known => known,
        },
        None if data_set == Some("shakespeare_char") => SHAKESPEARE.to_string(),
        None => {
            return Err(Error::Usage(format!(
                "the {} checkpoint does not say which characters its {vocabulary} numbers mean: name the text that it was \
                 trained on by data.path (char-gpt takes models of characters, not of tokens)",
                foreign.layout
            )));
        }
    };
    let n = known.chars().count();
    if n != vocabulary {
        return Err(Error::Usage(format!(
            "the {} checkpoint has {vocabulary} numbers, but its text has {n} different characters{}",
            foreign.layout,
            if n < vocabulary {
                ": it was trained on tokens, on another text, or its vocabulary was padded"
            } else {
                ""
            }
        )));
    }
    Ok((config, DataSettings { vocabulary: known.clone(), ..source }, known.into()))
}

/// Dictionaries that nanoGPT's `model_args` may be within.
const DEEPEST: usize = 3;

/// The dictionary that says `n_head`: nanoGPT's `model_args`, or what a training program calls its hyperparameters. Formats that keep
/// texts alone have it as JSON.
fn arguments(entries: &Map<String, Value>, depth: usize) -> Option<Map<String, Value>> {
    if entries.contains_key("n_head") {
        return Some(entries.clone());
    }
    entries.values().find_map(|value| match value {
        Value::Object(inner) if depth > 0 => arguments(inner, depth - 1),
        Value::String(text) if depth > 0 && text.starts_with('{') => {
            arguments(&serde_json::from_str(text).ok()?, depth - 1)
        }
        _ => None,
    })
}

/// The characters in the order of their numbers, as nanoGPT's `meta.pkl` has them (`itos`).
fn listed(path: &Path) -> Result<String> {
    let refuse = |what: String| Err(Error::Data(format!("{}: {what}", path.display())));
    let meta = zoo_checkpoint::plain_pickle(path)?;
    let Some(itos) = meta["itos"].as_object() else {
        return refuse("it has no itos, nanoGPT's list of characters by their numbers".into());
    };
    let mut known = String::new();
    for number in 0..itos.len() {
        match itos.get(&number.to_string()).and_then(Value::as_str).filter(|text| text.chars().count() == 1) {
            Some(character) => known.push_str(character),
            None => {
                return refuse(format!(
                    "number {number} of its itos is no character: it lists tokens, or leaves one out"
                ));
            }
        }
    }
    Ok(known)
}

pub(crate) fn entries(layout: &Layout, config: &Config) -> Result<Map<String, Value>> {
    let &Config { vocabulary, context, layers, heads, width, hidden, tied, bias, gelu, dropout, .. } = config;
    let lacks = |what: &str| Err(Error::Usage(format!("{} has no GPT {what}", layout.name)));
    match layout.name {
        NANOGPT if !tied => return lacks("whose head is not its embedding (model.tied = false)"),
        NANOGPT if hidden != 4 * width => return lacks("whose MLPs are not four times as wide as the model"),
        NANOGPT if gelu != Gelu::Erf => return lacks("with GELU by tanh (model.gelu)"),
        HUGGING_FACE if !bias => return lacks("without biases (model.bias = false)"),
        _ => {}
    }
    let value = match layout.name {
        NANOGPT => json!({
            "model_args": {
                "n_layer": layers, "n_head": heads, "n_embd": width, "block_size": context, "bias": bias,
                "vocab_size": vocabulary, "dropout": dropout,
            },
        }),
        _ => json!({
            "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "vocab_size": vocabulary, "n_positions": context,
            "n_embd": width, "n_layer": layers, "n_head": heads, "n_inner": hidden, "layer_norm_epsilon": 1e-5,
            "activation_function": match gelu { Gelu::Erf => "gelu", Gelu::Tanh => "gelu_new" },
            "tie_word_embeddings": tied, "resid_pdrop": dropout, "embd_pdrop": dropout, "attn_pdrop": dropout,
        }),
    };
    Ok(if let Value::Object(entries) = value { entries } else { Map::new() })
}
