//! GGUF files of llama.cpp's architecture `llama`: what they say about the model, and the model with its weights in their few bits.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Device, Error, Result, Tensor, bail};
use serde_json::{Map, Value};
use zoo_checkpoint::{Codes, Plan, Source};
use zoo_layers::Weight;
use zoo_layers::ops::{Bits, Quantized, rope_frequencies};

use crate::adapter::named;
use crate::config::NAME;
use crate::{Config, Llama, Scaling, Tokens, Writer};

/// Rules from GGUF's names to ours.
pub(crate) const IMPORT: &str = r"
    rename token_embd\.weight -> model.embed_tokens.weight
    rename? output\.weight -> lm_head.weight
    rename output_norm\.weight -> model.norm.weight
    rename blk\.(\d+)\.attn_norm\.weight -> model.layers.$1.input_layernorm.weight
    rename blk\.(\d+)\.ffn_norm\.weight -> model.layers.$1.post_attention_layernorm.weight
    rename blk\.(\d+)\.attn_([qkv])\.weight -> model.layers.$1.self_attn.$2_proj.weight
    rename blk\.(\d+)\.attn_output\.weight -> model.layers.$1.self_attn.o_proj.weight
    rename blk\.(\d+)\.ffn_(gate|up|down)\.weight -> model.layers.$1.mlp.$2_proj.weight
    drop-equal? lm_head\.weight -> model.embed_tokens.weight
    drop? rope_freqs\.weight
";

/// What a checkpoint says about itself, by its keys.
pub(crate) struct Said<'a> {
    pub(crate) entries: &'a Map<String, Value>,
    pub(crate) source: &'static str,
    pub(crate) prefix: &'static str,
}

impl<'a> Said<'a> {
    pub(crate) fn get(&self, key: &str) -> Option<&'a Value> {
        self.entries.get(&format!("{}{key}", self.prefix)).filter(|v| !v.is_null())
    }

    fn missing<T>(&self, key: &str) -> Result<T> {
        bail!("{} has no {}{key}, which the model needs", self.source, self.prefix)
    }

    pub(crate) fn count(&self, key: &str) -> Result<usize> {
        match self.get(key).and_then(Value::as_u64).and_then(|n| usize::try_from(n).ok()) {
            Some(n) => Ok(n),
            None => self.missing(key),
        }
    }

    pub(crate) fn number(&self, key: &str) -> Result<f64> {
        self.get(key).and_then(Value::as_f64).map_or_else(|| self.missing(key), Ok)
    }

    pub(crate) fn lacks<T>(&self, what: String) -> Result<T> {
        bail!("{}: llama has no {what}", self.source)
    }
}

/// Tensors by our names, with their shapes.
pub(crate) type Shapes<'a> = [(&'a str, &'a [usize])];

/// Rows and columns of a matrix.
fn sizes(tensors: &Shapes, name: &str) -> Result<[usize; 2]> {
    match tensors.iter().find(|(n, _)| *n == name) {
        Some((_, [rows, columns])) => Ok([*rows, *columns]),
        _ => bail!("the checkpoint has no matrix {name}"),
    }
}

/// Sizes that the tensors tell; heads are those of a width that the caller knows.
pub(crate) fn measured(tensors: &Shapes, head_width: usize) -> Result<Config> {
    let [vocabulary, width] = sizes(tensors, "model.embed_tokens.weight")?;
    let [queries, _] = sizes(tensors, "model.layers.0.self_attn.q_proj.weight")?;
    let [keys, _] = sizes(tensors, "model.layers.0.self_attn.k_proj.weight")?;
    let [hidden, _] = sizes(tensors, "model.layers.0.mlp.gate_proj.weight")?;
    if head_width == 0 || queries % head_width != 0 || keys % head_width != 0 {
        bail!("{queries} rows of queries and {keys} of keys are no heads of {head_width} features")
    }
    let layers = tensors.iter().filter(|(n, _)| n.ends_with(".input_layernorm.weight")).count();
    let tied = !tensors.iter().any(|(n, _)| *n == "lm_head.weight");
    let (heads, key_heads) = (queries / head_width, keys / head_width);
    Ok(Config { vocabulary, layers, heads, key_heads, head_width, width, hidden, tied, ..Config::default() })
}

/// Refuses a header of another architecture.
fn is_llama(entries: &Map<String, Value>) -> Result<()> {
    match entries.get("general.architecture").and_then(Value::as_str).unwrap_or("none") {
        "llama" => Ok(()),
        other => {
            bail!("its general.architecture is {other:?}: the tensors may have a Llama's names, the model is another")
        }
    }
}

/// The configuration and the tokenizer in a header, whose tensors have our names.
///
/// `divisors` are what the frequencies of its rotary pairs are divided by, if a tensor says that.
pub(crate) fn described(
    tensors: &Shapes,
    entries: &Map<String, Value>,
    divisors: Option<&[f32]>,
) -> Result<(Config, Tokens)> {
    is_llama(entries)?;
    let said = Said { entries, source: "its header", prefix: "llama." };
    let heads = said.count("attention.head_count")?;
    let [queries, _] = sizes(tensors, "model.layers.0.self_attn.q_proj.weight")?;
    let measured = measured(tensors, queries.checked_div(heads).unwrap_or(0))?;
    let key_heads = said.count("attention.head_count_kv").unwrap_or(heads);
    let known = [
        ("embedding_length", measured.width),
        ("block_count", measured.layers),
        ("feed_forward_length", measured.hidden),
        ("rope.dimension_count", measured.head_width),
    ];
    let found = known.iter().find(|(key, n)| said.get(key).and_then(Value::as_u64).is_some_and(|m| m != *n as u64));
    if let Some((key, n)) =
        found.or((key_heads != measured.key_heads).then_some(&("attention.head_count_kv", measured.key_heads)))
    {
        bail!("its header has another llama.{key} than its tensors, which have {n}")
    }
    let measured = match said.get("rope.scaling.type").and_then(Value::as_str) {
        None | Some("none") => measured,
        Some("linear") => {
            Config { rope_scaling: Scaling::Linear, rope_factor: said.number("rope.scaling.factor")?, ..measured }
        }
        Some(other) => return said.lacks(format!("scaling of rotary angles of type {other:?}")),
    };
    let config = Config {
        context: said.count("context_length")?,
        // Written in f32.
        eps: rounded(said.number("attention.layer_norm_rms_epsilon")?),
        rope_base: said.get("rope.freq_base").and_then(Value::as_f64).unwrap_or(10_000.),
        ..measured
    };
    let config = divisors.map_or(Ok(config.clone()), |divisors| scaled(config, divisors))?;
    if let Some(problem) = config.problem() {
        bail!("{problem}")
    }
    Ok((config, Tokens::of_gguf(entries)?))
}

/// The tensor that has the divisors of frequencies.
const DIVISORS: &str = "rope_freqs.weight";

/// What the frequencies of rotary pairs are divided by, if the file has that as a tensor, as those of Llama 3.1 and later do.
pub(crate) fn divisors(source: &Source) -> Result<Option<Vec<f32>>> {
    let Some(tensor) = source.find(DIVISORS) else { return Ok(None) };
    let values = source.tensor(tensor, &Device::Cpu).map_err(Error::wrap)?;
    Ok(Some(values.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?))
}

/// The configuration of which these divisors come: the parameters of Llama 3.1 and 3.2 with the factor that is the largest of them.
fn scaled(config: Config, divisors: &[f32]) -> Result<Config> {
    const NEAR: f64 = 1e-4;
    if config.rope_scaling != Scaling::None {
        bail!(
            "its rotary angles are scaled by an entry (rope.scaling.type) and by {DIVISORS}: llama has one of the two"
        )
    }
    let factor = divisors.iter().fold(1f32, |most, d| most.max(*d));
    let config = Config {
        rope_scaling: Scaling::Llama3,
        rope_factor: rounded(factor.into()),
        rope_low: 1.,
        rope_high: 4.,
        rope_first_context: 8192,
        ..config
    };
    let frequencies = |scaling| rope_frequencies(config.head_width, config.rope_base, scaling);
    let expected =
        frequencies(None).into_iter().zip(frequencies(config.scaling())).map(|(plain, scaled)| plain / scaled);
    let same = |(d, expected): (&f32, f64)| (f64::from(*d) - expected).abs() <= NEAR * expected;
    match divisors.len() == config.head_width / 2 && divisors.iter().zip(expected).all(same) {
        true => Ok(config),
        false => bail!(
            "its rotary angles are scaled by {DIVISORS}, which is not the scaling of Llama 3.1 or 3.2: convert the model from Hugging Face's \
             folder"
        ),
    }
}

/// A number of f32 as one would have written it.
fn rounded(value: f64) -> f64 {
    (value as f32).to_string().parse().unwrap_or(value)
}

/// Refuses a device for weights in a GGUF file.
pub(crate) fn on_cpu_alone(path: &Path) -> String {
    format!(
        "{}: the weights of a GGUF file are multiplied as they are on the CPU: leave --device out, or make weights of it by zoo convert \
         --model llama",
        path.display()
    )
}

impl Llama {
    /// The sizes of a GGUF file's model, and the model with its weights in their few bits and its tokenizer, for writing text on the CPU. Blocks that are no
    /// integers with scales (`IQ1` to `IQ3` and the like) become f32.
    ///
    /// # Errors
    /// The file cannot be read, or is not a Llama's.
    pub fn of_gguf(source: &Source) -> Result<(Config, Writer)> {
        let named = named(&source.path);
        let (config, tokens, weights) = read(source).map_err(&named)?;
        let model = Self::of_weights(&config, weights).map_err(&named)?;
        Ok((config, Writer::new(model, tokens, &Device::Cpu).map_err(&named)?))
    }

    /// Whether a file is one that [`Llama::of_gguf`] may read: of llama.cpp's names, not of ours.
    pub(crate) fn is_gguf(source: &Source) -> bool {
        let ours = source.metadata.get("model").and_then(Value::as_str) == Some(NAME);
        source.format == zoo_checkpoint::Format::Gguf && !ours
    }
}

/// The weights in a GGUF file by our names.
type Weights = BTreeMap<String, Weight>;

/// Tensors by our names, sizes and tokenizer.
pub(crate) fn header(source: &Source) -> Result<(Plan<'_>, Config, Tokens)> {
    is_llama(&source.metadata)?;
    let mut plan = Plan::new(source);
    plan.apply(&IMPORT.parse().map_err(Error::msg)?).map_err(Error::wrap)?;
    let shapes: Vec<(&str, &[usize])> = plan.outputs.iter().map(|o| (o.name.as_str(), &o.shape[..])).collect();
    let (config, tokens) = described(&shapes, &plan.metadata, divisors(source)?.as_deref())?;
    Ok((plan, config, tokens))
}

pub(crate) fn read(source: &Source) -> Result<(Config, Tokens, Weights)> {
    let (plan, config, tokens) = header(source)?;
    let mut weights = Weights::new();
    for output in &plan.outputs {
        let from = output.from();
        let Some(tensor) = from.first().and_then(|name| source.find(name)) else { continue };
        let of_heads = |map: &str| output.name.ends_with(map);
        let heads = match (of_heads(".q_proj.weight"), of_heads(".k_proj.weight")) {
            (true, _) => config.heads,
            (_, true) => config.key_heads,
            _ => 0,
        };
        if heads > 0 && tensor.shape.first() != Some(&(heads * config.head_width)) {
            bail!("{} has shape {:?}, which are no {heads} heads of {}", tensor.name, tensor.shape, config.head_width)
        }
        let weight = match source.codes(tensor).map_err(Error::wrap)? {
            Some(codes) if tensor.shape.len() == 2 => {
                let size = [tensor.shape[0], tensor.shape[1]];
                let codes = if heads > 0 { halves(&codes, size, heads) } else { codes };
                let bits = if codes.group == Bits::Four.group() { Bits::Four } else { Bits::Eight };
                Weight::Quantized(Quantized::new(bits, size, &codes.codes, &codes.scales, &codes.offsets)?)
            }
            _ => {
                let values = source.tensor(tensor, &Device::Cpu).map_err(Error::wrap)?.to_dtype(DType::F32)?;
                Weight::Plain(if heads > 0 { halves_of(&values, heads)? } else { values })
            }
        };
        weights.insert(output.name.clone(), weight);
    }
    Ok((config, tokens, weights))
}

/// Rows of queries or keys with the two features of a rotary pair half a head apart, in place of side by side.
fn halves(codes: &Codes, [rows, columns]: [usize; 2], heads: usize) -> Codes {
    let half = rows / heads / 2;
    let (all, groups) = (columns, columns / codes.group);
    let mut out = Codes { group: codes.group, ..Codes::default() };
    for row in 0..rows {
        let (head, rest) = (row / (2 * half), row % (2 * half));
        let from = head * 2 * half + 2 * (rest % half) + rest / half;
        out.codes.extend(&codes.codes[from * all..][..all]);
        out.scales.extend(&codes.scales[from * groups..][..groups]);
        out.offsets.extend(&codes.offsets[from * groups..][..groups]);
    }
    out
}

/// The same of numbers.
fn halves_of(rows: &Tensor, heads: usize) -> Result<Tensor> {
    let (n, k) = rows.dims2()?;
    rows.reshape((heads, n / heads / 2, 2, k))?.transpose(1, 2)?.contiguous()?.reshape((n, k))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn divisors_of_llama_3_tell_its_scaling_and_others_are_refused() -> Result<()> {
        let config = Config { head_width: 64, rope_base: 500_000., ..Config::default() };
        for factor in [8., 32.] {
            let of = Config { rope_scaling: Scaling::Llama3, rope_factor: factor, ..config.clone() };
            let frequencies = |scaling| rope_frequencies(64, 500_000., scaling);
            let pairs = frequencies(None).into_iter().zip(frequencies(of.scaling()));
            let mut divisors: Vec<f32> = pairs.map(|(plain, scaled)| (plain / scaled) as f32).collect();
            assert_eq!(scaled(config.clone(), &divisors)?, of);
            divisors[20] *= 1.01;
            assert!(scaled(config.clone(), &divisors).is_err());
            assert!(scaled(config.clone(), &divisors[1..]).is_err());
        }
        Ok(())
    }
}
