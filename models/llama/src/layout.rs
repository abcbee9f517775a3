//! How Hugging Face and llama.cpp name, lay out and describe the same weights.

use std::path::Path;

use candle_core::Device;
use serde_json::{Map, Value, json};
use zoo_training::{Error, Foreign, Layout, Result};

use crate::adapter::of_lora;
use crate::gguf::{self, Said, measured};
use crate::task::in_weights;
use crate::{AdapterFile, Base, Config, DataSettings, Lora, Scaling, Tokens};

const HUGGING_FACE: &str = "huggingface";
const GGUF: &str = "gguf";
const PEFT: &str = "peft";

/// Ours are Hugging Face's names. GGUF has its own, and rotary pairs as neighbours.
pub(crate) const LAYOUTS: &[Layout] = &[
    Layout {
        name: HUGGING_FACE,
        import: r"
            drop? .*\.rotary_emb\.inv_freq
            rename? ((?:embed_tokens|layers|norm)\..*) -> model.$1
            drop-equal? lm_head\.weight -> model.embed_tokens.weight
        ",
        export: "",
        entry: "",
        sidecar: "config.json",
        keeps_ours: false,
    },
    Layout {
        name: GGUF,
        import: gguf::IMPORT,
        export: r"
            rename model\.embed_tokens\.weight -> token_embd.weight
            rename? lm_head\.weight -> output.weight
            rename model\.norm\.weight -> output_norm.weight
            rename model\.layers\.(\d+)\.input_layernorm\.weight -> blk.$1.attn_norm.weight
            rename model\.layers\.(\d+)\.post_attention_layernorm\.weight -> blk.$1.ffn_norm.weight
            rename model\.layers\.(\d+)\.self_attn\.([qkv])_proj\.weight -> blk.$1.attn_$2.weight
            rename model\.layers\.(\d+)\.self_attn\.o_proj\.weight -> blk.$1.attn_output.weight
            rename model\.layers\.(\d+)\.mlp\.(gate|up|down)_proj\.weight -> blk.$1.ffn_$2.weight
        ",
        entry: "",
        sidecar: "",
        keeps_ours: false,
    },
    // LoRA's weights as PEFT has them (https://huggingface.co/docs/peft).
    Layout {
        name: PEFT,
        import: r"
            rename? (.*\.lora_[AB])\.default\.weight -> $1.weight
            rename? base_model\.model\.(.*) -> $1
        ",
        export: r"rename (.*) -> base_model.model.$1",
        entry: "",
        sidecar: "adapter_config.json",
        keeps_ours: false,
    },
];

pub(crate) fn recognize(tensors: &[(&str, &[usize])]) -> Option<&'static Layout> {
    let has = |wanted: &str| tensors.iter().any(|(name, _)| *name == wanted);
    if has("blk.0.attn_q.weight") && has("blk.0.ffn_gate.weight") && has("token_embd.weight") {
        return LAYOUTS.iter().find(|l| l.name == GGUF);
    }
    let is_adapter = |name: &str| of_lora(&name.replace(".default.weight", ".weight")).is_some();
    if tensors.iter().any(|(name, _)| is_adapter(name)) {
        return LAYOUTS.iter().find(|l| l.name == PEFT);
    }
    let prefix = ["", "model."].into_iter().find(|prefix| has(&format!("{prefix}embed_tokens.weight")))?;
    let all = ["self_attn.q_proj", "mlp.gate_proj"].iter().all(|map| has(&format!("{prefix}layers.0.{map}.weight")));
    LAYOUTS.iter().find(|l| all && l.name == HUGGING_FACE)
}

/// Rows of queries and keys, head by head.
pub(crate) fn reorder(layout: &Layout, config: &Config, back: bool) -> String {
    if layout.name != GGUF {
        return String::new();
    }
    let rule = if back { "interleave" } else { "deinterleave" };
    let of =
        |map: &str, heads: usize| format!("{rule} model\\.layers\\.\\d+\\.self_attn\\.{map}_proj\\.weight {heads}\n");
    of("q", config.heads) + &of("k", config.key_heads)
}

pub(crate) fn adopt(foreign: &Foreign) -> Result<(Config, DataSettings, Value)> {
    if foreign.layout == PEFT {
        return of_peft(foreign);
    }
    let (config, tokens) = match foreign.layout {
        GGUF => {
            let divisors = gguf::divisors(&zoo_checkpoint::open(foreign.path)?)?;
            gguf::described(foreign.tensors, foreign.entries, divisors.as_deref()).map_err(usage)?
        }
        _ => of_hugging_face(foreign)?,
    };
    if let Some(problem) = config.problem() {
        return Err(Error::Data(problem));
    }
    let n = tokens.len();
    if n > config.vocabulary {
        return Err(Error::Data(format!("the tokenizer has {n} tokens, the model's embedding {}", config.vocabulary)));
    }
    let data = DataSettings::of_foreign(&config);
    let fitted = serde_json::to_value(tokens.file()).map_err(|e| Error::Data(e.to_string()))?;
    Ok((config, data, fitted))
}

/// An adapter of PEFT's, whose base the user names.
fn of_peft(foreign: &Foreign) -> Result<(Config, DataSettings, Value)> {
    let said = Said { entries: foreign.entries, source: "adapter_config.json", prefix: "" };
    let theirs = said.get("base_model_name_or_path").and_then(Value::as_str).unwrap_or("a model that it does not name");
    let Some(base) = foreign.setting("data.base") else {
        return Err(Error::Usage(format!(
            "an adapter of {theirs:.200}: name its weights, as zoo has them or as a GGUF file, by --base"
        )));
    };
    let rank = said.count("r").map_err(usage)?;
    let set = |key: &str| {
        said.get(key).filter(|v| !matches!(v, Value::Bool(false)) && v.as_object().is_none_or(|v| !v.is_empty()))
    };
    // What says nothing about the values, or is looked at here.
    const KNOWN: [&str; 25] = [
        "r",
        "lora_alpha",
        "lora_dropout",
        "use_rslora",
        "target_modules",
        "peft_type",
        "task_type",
        "bias",
        "base_model_name_or_path",
        "revision",
        "inference_mode",
        "init_lora_weights",
        "auto_mapping",
        "peft_version",
        "layers_to_transform",
        "layers_pattern",
        "exclude_modules",
        "megatron_core",
        "loftq_config",
        "eva_config",
        "corda_config",
        "runtime_config",
        "lora_ga_config",
        "ensure_weight_tying",
        "qalora_group_size",
    ];
    let refused = [
        "use_dora",
        "fan_in_fan_out",
        "rank_pattern",
        "alpha_pattern",
        "modules_to_save",
        "layer_replication",
        "lora_bias",
    ];
    if let Some(key) = refused.into_iter().find(|key| set(key).is_some()) {
        return said.lacks(format!("adapter with {key}")).map_err(usage);
    }
    if let Some(key) = foreign.entries.keys().find(|key| !KNOWN.contains(&key.as_str()) && set(key).is_some()) {
        let doubt = format!(
            "adapter_config.json: {key} is not known here: if it changes what the adapter computes, results are others"
        );
        foreign.doubts.borrow_mut().push(doubt);
    }
    if said.get("use_rslora").is_some_and(|v| !v.is_boolean()) {
        return said.lacks("use_rslora that is neither true nor false".into()).map_err(usage);
    }
    if let Some(other) = said.get("bias").and_then(Value::as_str).filter(|bias| *bias != "none") {
        return said.lacks(format!("adapter with biases ({other})")).map_err(usage);
    }
    if let Some(kind) = said.get("peft_type").and_then(Value::as_str).filter(|kind| *kind != "LORA") {
        return said.lacks(format!("adapter of type {kind}")).map_err(usage);
    }
    if let Some(start) = said.get("init_lora_weights").and_then(Value::as_str).filter(|start| *start != "gaussian") {
        foreign.doubts.borrow_mut().push(format!(
            "adapter_config.json: init_lora_weights is {start:?}, which may have changed the base: this adapter fits that base alone"
        ));
    }
    let maps: Vec<&str> =
        foreign.tensors.iter().filter_map(|(name, _)| of_lora(name)).filter(|m| m.1 == "A").map(|m| m.0).collect();
    if let Some((name, shape)) = foreign.tensors.iter().find(|(name, shape)| {
        let rows = of_lora(name).map(|(_, matrix)| if matrix == "A" { 0 } else { 1 });
        rows.is_some_and(|at| shape.get(at) != Some(&rank))
    }) {
        return Err(Error::Data(format!("adapter_config.json says r = {rank}, but {name} has shape {shape:?}")));
    }
    let base = Base::read(Path::new(base), &Device::Cpu)?;
    let lora = Lora {
        rank,
        alpha: said.number("lora_alpha").map_err(usage)?,
        dropout: said.get("lora_dropout").and_then(Value::as_f64).unwrap_or(0.),
        targets: String::new(),
        rslora: said.get("use_rslora").and_then(Value::as_bool).unwrap_or(false),
    };
    let sizes = base.adapted(&lora);
    let names = names_of(&sizes, |name| maps.contains(&name));
    let config = Config { lora: Lora { targets: pattern(&names), ..lora }, ..sizes };
    let data = DataSettings {
        base: foreign.setting("data.base").unwrap_or_default().into(),
        ..DataSettings::of_foreign(&config)
    };
    let fitted = serde_json::to_value(base.file()).map_err(|e| Error::Data(e.to_string()))?;
    Ok((config, data, fitted))
}

/// Names of maps by which those that `is_adapted` are found: the last part of a name that all blocks have adapted, or whole names.
fn names_of(config: &Config, is_adapted: impl Fn(&str) -> bool) -> Vec<String> {
    let last = |name: &str| name.rsplit('.').next().unwrap_or_default().to_string();
    let all = config.maps();
    let chosen: Vec<&String> = all.iter().filter(|name| is_adapted(name)).collect();
    let mut lasts: Vec<String> = chosen.iter().map(|name| last(name)).collect();
    lasts.sort();
    lasts.dedup();
    let complete = all.iter().filter(|name| lasts.contains(&last(name))).count() == chosen.len();
    if complete { lasts } else { chosen.into_iter().cloned().collect() }
}

/// The expression that finds maps by these names.
fn pattern(names: &[String]) -> String {
    let names: Vec<String> = names.iter().map(|name| regex::escape(name)).collect();
    format!(r"(^|\.)({})$", names.join("|"))
}

/// What PEFT wants to know of an adapter.
fn of_adapter(config: &Config, fitted: &Value) -> Result<Map<String, Value>> {
    let AdapterFile { base } = serde_json::from_value(fitted.clone())
        .map_err(|e| Error::Data(format!("what the adapter says of its base: {e}")))?;
    let Lora { rank, alpha, dropout, rslora, .. } = config.lora;
    let targets = config.lora.pattern().map_err(Error::Data)?;
    let names = names_of(config, |name| targets.as_ref().is_some_and(|targets| targets.is_match(name)));
    // As its own are written.
    let alpha = if alpha.fract() == 0. && alpha.abs() < 1e9 { json!(alpha as i64) } else { json!(alpha) };
    let value = json!({
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base.file, "revision": null, "inference_mode": true,
        "r": rank, "lora_alpha": alpha, "lora_dropout": dropout, "target_modules": names, "use_rslora": rslora, "use_dora": false,
        "bias": "none", "fan_in_fan_out": false, "init_lora_weights": true, "modules_to_save": null, "layers_to_transform": null,
        "layers_pattern": null, "rank_pattern": {}, "alpha_pattern": {},
    });
    Ok(if let Value::Object(entries) = value { entries } else { Map::new() })
}

/// What a checkpoint lacks, as the user's to mend.
fn usage(e: candle_core::Error) -> Error {
    Error::Usage(e.to_string())
}

fn of_hugging_face(foreign: &Foreign) -> Result<(Config, Tokens)> {
    let said = Said { entries: foreign.entries, source: "config.json", prefix: "" };
    let (width, heads) = (said.count("hidden_size").map_err(usage)?, said.count("num_attention_heads").map_err(usage)?);
    if let Some(kind) = said.get("model_type").and_then(Value::as_str).filter(|k| !["llama", "mistral"].contains(k)) {
        return Err(Error::Usage(format!(
            "config.json: model_type is {kind:?}: the tensors may have a Llama's names, the model is another"
        )));
    }
    for key in ["attention_bias", "mlp_bias"] {
        if said.get(key).and_then(Value::as_bool) == Some(true) {
            return said.lacks(key.into()).map_err(usage);
        }
    }
    if let Some(f) = said.get("hidden_act").and_then(Value::as_str).filter(|f| !["silu", "swish"].contains(f)) {
        return said.lacks(format!("activation {f}")).map_err(usage);
    }
    let ties = said.get("tie_word_embeddings").and_then(Value::as_bool);
    let has_head = foreign.tensors.iter().any(|(name, _)| *name == "lm_head.weight");
    match ties {
        Some(true) if has_head => {
            return Err(Error::Data(
                "config.json ties the head to the embedding, but lm_head.weight has other values".into(),
            ));
        }
        Some(false) if !has_head => {
            return Err(Error::Data(
                "config.json has a head of its own, but lm_head.weight is missing, or has the embedding's values: set \
                 tie_word_embeddings to true if they are tied"
                    .into(),
            ));
        }
        _ => {}
    }
    let context = said.count("max_position_embeddings").map_err(usage)?;
    if let Some(window) = said.get("sliding_window").and_then(Value::as_u64).filter(|w| *w < context as u64) {
        let what = format!("sliding window (of {window}); a shorter max_position_embeddings would not need one");
        return said.lacks(what).map_err(usage);
    }
    let head_width = match said.get("head_dim") {
        Some(_) => said.count("head_dim").map_err(usage)?,
        None => width.checked_div(heads).unwrap_or(0),
    };
    let measured = measured(foreign.tensors, head_width).map_err(|e| Error::Data(e.to_string()))?;
    let known = [
        ("hidden_size", measured.width),
        ("num_attention_heads", measured.heads),
        ("num_key_value_heads", measured.key_heads),
        ("num_hidden_layers", measured.layers),
        ("intermediate_size", measured.hidden),
        ("vocab_size", measured.vocabulary),
    ];
    for (key, found) in known {
        if let Some(n) = said.get(key).and_then(Value::as_u64).filter(|n| *n != found as u64) {
            return Err(Error::Data(format!(
                "config.json says {key} = {n}, its tensors have {found}: they are not of one model"
            )));
        }
    }
    // Older files have the two apart.
    let rope = said.get("rope_parameters").or(said.get("rope_scaling"));
    let base = rope.and_then(|r| r.get("rope_theta")).or(said.get("rope_theta")).and_then(Value::as_f64);
    let config = Config {
        context,
        eps: said.number("rms_norm_eps").map_err(usage)?,
        rope_base: base.unwrap_or(10_000.),
        ..scaled(measured, rope)?
    };
    let file = foreign.folder.join("tokenizer.json");
    if !file.is_file() {
        return Err(Error::Usage(format!(
            "{}: there is no such file: the model's tokenizer belongs beside its weights",
            file.display()
        )));
    }
    Ok((config, Tokens::read(&file)?))
}

/// With the scaling of `rope_scaling`, or its like.
fn scaled(config: Config, rope: Option<&Value>) -> Result<Config> {
    let Some(rope) = rope else { return Ok(config) };
    let number = |key: &str| match rope.get(key).and_then(Value::as_f64) {
        Some(n) => Ok(n),
        None => Err(Error::Usage(format!("config.json: the scaling of its rotary embedding has no {key}"))),
    };
    Ok(match rope.get("rope_type").or(rope.get("type")).and_then(Value::as_str) {
        None | Some("default") => config,
        Some("linear") => Config { rope_scaling: Scaling::Linear, rope_factor: number("factor")?, ..config },
        Some("llama3") => Config {
            rope_scaling: Scaling::Llama3,
            rope_factor: number("factor")?,
            rope_low: number("low_freq_factor")?,
            rope_high: number("high_freq_factor")?,
            rope_first_context: number("original_max_position_embeddings")? as usize,
            ..config
        },
        Some(other) => {
            return Err(Error::Usage(format!("config.json: llama has no scaling of rotary angles of type {other:?}")));
        }
    })
}

pub(crate) fn entries(layout: &Layout, config: &Config, fitted: &Value) -> Result<Map<String, Value>> {
    let &Config {
        vocabulary, context, layers, heads, key_heads, head_width, width, hidden, tied, eps, rope_base, ..
    } = config;
    match (layout.name == PEFT, config.lora.is_on()) {
        (true, true) => return of_adapter(config, fitted),
        (true, false) => return Err(Error::Usage("--to peft: these are whole weights, not an adapter's".into())),
        (false, true) => {
            return Err(Error::Usage(format!(
                "--to {}: an adapter alone goes --to peft: make whole weights of it first (--merge --base FILE)",
                layout.name
            )));
        }
        (false, false) => {}
    }
    let tokens = in_weights(fitted)?;
    let value = if layout.name == GGUF {
        let mut value = json!({
            "general.architecture": "llama", "general.name": "llama", "general.quantization_version": 2,
            "llama.block_count": layers, "llama.context_length": context, "llama.embedding_length": width,
            "llama.feed_forward_length": hidden, "llama.attention.head_count": heads,
            "llama.attention.head_count_kv": key_heads, "llama.vocab_size": vocabulary,
            "llama.rope.dimension_count": head_width, "llama.attention.key_length": head_width,
            "llama.attention.value_length": head_width,
            // As f32, which llama.cpp reads them as.
            "llama.rope.freq_base": f64::from(rope_base as f32), "llama.attention.layer_norm_rms_epsilon": f64::from(eps as f32),
        });
        match config.rope_scaling {
            Scaling::None => {}
            Scaling::Linear => {
                value["llama.rope.scaling.type"] = "linear".into();
                value["llama.rope.scaling.factor"] = f64::from(config.rope_factor as f32).into();
            }
            Scaling::Llama3 => {
                return Err(Error::Usage(
                    "GGUF has Llama 3's scaling of rotary angles as a tensor (rope_freqs.weight), which is not made here: write \
                     --to huggingface, which llama.cpp converts"
                        .into(),
                ));
            }
        }
        let mut all = if let Value::Object(all) = value { all } else { Map::new() };
        all.extend(tokens.gguf(vocabulary)?);
        return Ok(all);
    } else {
        let rope = match config.rope_scaling {
            Scaling::None => Value::Null,
            Scaling::Linear => json!({ "rope_type": "linear", "factor": config.rope_factor }),
            Scaling::Llama3 => json!({
                "rope_type": "llama3", "factor": config.rope_factor, "low_freq_factor": config.rope_low,
                "high_freq_factor": config.rope_high, "original_max_position_embeddings": config.rope_first_context,
            }),
        };
        let mut value = json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": vocabulary, "hidden_size": width,
            "intermediate_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads,
            "num_key_value_heads": key_heads, "head_dim": head_width, "hidden_act": "silu",
            "max_position_embeddings": context, "initializer_range": 0.02, "rms_norm_eps": eps, "tie_word_embeddings": tied,
            "rope_theta": rope_base, "rope_scaling": rope,
            "attention_bias": false, "attention_dropout": 0.0, "mlp_bias": false, "pretraining_tp": 1, "use_cache": true,
        });
        let file = tokens.file();
        value["bos_token_id"] = file.begin.map_or(Value::Null, Value::from);
        value["eos_token_id"] = match file.ends.as_slice() {
            [] => Value::Null,
            [end] => (*end).into(),
            ends => ends.into(),
        };
        value
    };
    Ok(if let Value::Object(entries) = value { entries } else { Map::new() })
}

/// The tokenizer's files.
pub(crate) fn beside(layout: &Layout, fitted: &Value) -> Result<Vec<(&'static str, String)>> {
    if layout.name != HUGGING_FACE {
        return Ok(vec![]);
    }
    let tokens = in_weights(fitted)?;
    let file = tokens.file();
    let text = |token: Option<&u32>| token.and_then(|id| tokens.text(*id)).map_or(Value::Null, Value::from);
    let mut names = json!({
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": text(file.begin.as_ref()), "eos_token": text(file.ends.first()),
        "clean_up_tokenization_spaces": false,
    });
    if let Some(template) = &file.chat_template {
        names["chat_template"] = template.as_str().into();
    }
    Ok(vec![("tokenizer.json", format!("{:#}\n", file.tokenizer)), ("tokenizer_config.json", format!("{names:#}\n"))])
}
