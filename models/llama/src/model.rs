//! The network.
//!
//! Letters: b batch, t positions, c features of a position, v tokens of the vocabulary.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Result, Tensor, bail};
use candle_nn::VarBuilder;
use zoo_layers::{GatedMlp, GroupedAttention, GroupedConfig, KvCache, Norm, Rotary, Weight, init, ops, recomputed};

use crate::Config;

/// Standard deviation of initial weights.
const STDEV: f64 = 0.02;

/// A Llama (Touvron et al. 2023): embedding, pre-norm blocks of grouped attention with rotary positions and a gated MLP, final
/// RMS norm, head. Parameters have the names of Hugging Face's `LlamaForCausalLM`: `model.embed_tokens.weight`,
/// `model.layers.0.self_attn.q_proj.weight`, …, `model.norm.weight`, and `lm_head.weight` unless it is tied.
#[derive(Clone, Debug)]
pub struct Llama {
    /// A row for each token.
    table: Weight,
    blocks: Vec<Block>,
    norm: Norm,
    /// Absent if tied.
    head: Option<Weight>,
    rotary: Rotary,
    context: usize,
}

#[derive(Clone, Debug)]
struct Block {
    norms: [Norm; 2],
    attention: GroupedAttention,
    mlp: GatedMlp,
}

/// Weights by name, of which each is taken once.
struct Weights(BTreeMap<String, Weight>);

impl Weights {
    fn take(&mut self, name: &str, size: [usize; 2]) -> Result<Weight> {
        match self.0.remove(name) {
            Some(weight) if weight.dims() == size => Ok(weight),
            Some(weight) => bail!("{name} is {:?}, expected {size:?}", weight.dims()),
            None => bail!("missing {name} {size:?}"),
        }
    }
}

impl Block {
    fn new(config: &Config, vb: VarBuilder) -> Result<Self> {
        let &Config { width, hidden, .. } = config;
        let grouped = Self::grouped(config);
        Ok(Self {
            norms: Self::norms(config, &vb)?,
            attention: GroupedAttention::new(grouped, vb.pp("self_attn"))?,
            mlp: GatedMlp::new(width, hidden, ops::Activation::Silu, grouped.init, vb.pp("mlp"))?,
        })
    }

    /// With `weights`, whose names begin with `prefix`; `vb` has the norms.
    fn of_weights(config: &Config, vb: VarBuilder, weights: &mut Weights, prefix: &str) -> Result<Self> {
        let &Config { width, heads, key_heads, head_width, hidden, .. } = config;
        let (all, few) = (heads * head_width, key_heads * head_width);
        let mut take = |name: &str, size| weights.take(&format!("{prefix}{name}_proj.weight"), size);
        let attention = [
            take("self_attn.q", [all, width])?,
            take("self_attn.k", [few, width])?,
            take("self_attn.v", [few, width])?,
            take("self_attn.o", [width, all])?,
        ];
        let mlp =
            [take("mlp.gate", [hidden, width])?, take("mlp.up", [hidden, width])?, take("mlp.down", [width, hidden])?];
        Ok(Self {
            norms: Self::norms(config, &vb)?,
            attention: GroupedAttention::of_weights(Self::grouped(config), attention)?,
            mlp: GatedMlp::of_weights(ops::Activation::Silu, mlp)?,
        })
    }

    fn grouped(config: &Config) -> GroupedConfig {
        let &Config { width, heads, key_heads, head_width, .. } = config;
        // What is added to the residual stream 2·layers times starts smaller (GPT-2).
        let out = STDEV / (2. * config.layers as f64).sqrt();
        GroupedConfig { width, heads, key_heads, head_width, init: [init::normal(0., STDEV), init::normal(0., out)] }
    }

    fn norms(config: &Config, vb: &VarBuilder) -> Result<[Norm; 2]> {
        let norm = |name: &str| Norm::rms(config.width, config.eps, vb.pp(name));
        Ok([norm("input_layernorm")?, norm("post_attention_layernorm")?])
    }

    /// (b, t, c) to (b, t, c).
    fn forward(&self, x: &Tensor, rotary: &Rotary, mask: Option<&Tensor>) -> Result<Tensor> {
        let norms = self.norms.iter().flat_map(Norm::parameters);
        let params = self.attention.parameters().chain(self.mlp.parameters()).chain(norms).cloned().collect();
        let (block, rotary, mask) = (self.clone(), rotary.clone(), mask.cloned());
        recomputed(x, params, move |x| block.feed(&block.attend(x, &rotary, mask.as_ref())?))
    }

    fn attend(&self, x: &Tensor, rotary: &Rotary, mask: Option<&Tensor>) -> Result<Tensor> {
        ops::add_dropout(x, &self.attention.forward(&self.norms[0].forward(x)?, rotary, mask)?, None)
    }

    fn forward_cached(&self, x: &Tensor, rotary: &Rotary, cache: &mut KvCache) -> Result<Tensor> {
        let attended = self.attention.forward_cached(&self.norms[0].forward(x)?, rotary, cache)?;
        self.feed(&ops::add_dropout(x, &attended, None)?)
    }

    fn feed(&self, x: &Tensor) -> Result<Tensor> {
        ops::add_dropout(x, &self.mlp.forward(&self.norms[1].forward(x)?)?, None)
    }
}

impl Llama {
    /// Defines the parameters.
    ///
    /// # Errors
    /// Numbers that cannot work; the message names the key.
    pub fn new(config: &Config, vb: VarBuilder) -> Result<Self> {
        if let Some(problem) = config.problem() {
            bail!("{problem}")
        }
        let &Config { vocabulary, context, layers, head_width, width, tied, eps, rope_base, .. } = config;
        let weight = init::normal(0., STDEV);
        let inner = vb.pp("model");
        Ok(Self {
            table: Weight::new(width, vocabulary, weight, inner.pp("embed_tokens"))?,
            blocks: (0..layers).map(|i| Block::new(config, inner.pp("layers").pp(i))).collect::<Result<_>>()?,
            norm: Norm::rms(width, eps, inner.pp("norm"))?,
            head: (!tied).then(|| Weight::new(width, vocabulary, weight, vb.pp("lm_head"))).transpose()?,
            rotary: Rotary::new(context, head_width, rope_base, config.scaling(), vb.device())?,
            context,
        })
    }

    /// Of these weights by their names, such as quantized ones; norms have to be plain.
    ///
    /// # Errors
    /// As [`Llama::new`]; weights that are missing, of other shapes, or not the model's.
    pub fn of_weights(config: &Config, weights: BTreeMap<String, Weight>) -> Result<Self> {
        if let Some(problem) = config.problem() {
            bail!("{problem}")
        }
        let &Config { vocabulary, context, layers, head_width, width, tied, eps, rope_base, .. } = config;
        let (norms, matrices): (BTreeMap<_, _>, _) = weights.into_iter().partition(|(_, w)| w.dims().len() == 1);
        let known = 2 * layers + 1;
        if norms.len() != known {
            bail!("{} norms, expected {known}", norms.len())
        }
        let norms = norms.into_iter().filter_map(|(name, weight)| Some((name, weight.parameter()?.clone()))).collect();
        let vb = VarBuilder::from_tensors(norms, DType::F32, &Device::Cpu);
        let (inner, mut weights) = (vb.pp("model"), Weights(matrices));
        let block = |i: usize, weights: &mut Weights| {
            Block::of_weights(config, inner.pp("layers").pp(i), weights, &format!("model.layers.{i}."))
        };
        let model = Self {
            table: weights.take("model.embed_tokens.weight", [vocabulary, width])?,
            blocks: (0..layers).map(|i| block(i, &mut weights)).collect::<Result<_>>()?,
            norm: Norm::rms(width, eps, inner.pp("norm"))?,
            head: (!tied).then(|| weights.take("lm_head.weight", [vocabulary, width])).transpose()?,
            rotary: Rotary::new(context, head_width, rope_base, config.scaling(), &Device::Cpu)?,
            context,
        };
        match weights.0.keys().next() {
            None => Ok(model),
            Some(name) => bail!("unexpected {name}"),
        }
    }

    /// Numbers of tokens (b, t) to the logits (b, t, v) of those that follow each. `mask` is added to the scores of all heads and
    /// broadcasts to (b, 1, t, t): where a window has several documents, it keeps them apart.
    ///
    /// # Errors
    /// More positions than the context has, or a mask of another shape.
    pub fn forward(&self, ids: &Tensor, mask: Option<&Tensor>) -> Result<Tensor> {
        let mut x = self.table.rows(ids)?; // (b, t, c)
        for block in &self.blocks {
            x = block.forward(&x, &self.rotary, mask)?;
        }
        self.logits(&x)
    }

    /// The logits (b, v) of what follows the new positions `ids` (b, t), behind those in `cache`.
    ///
    /// # Errors
    /// More positions than the context has.
    pub fn forward_cached(&self, ids: &Tensor, cache: &mut [KvCache]) -> Result<Tensor> {
        let mut x = self.table.rows(ids)?.detach(); // (b, t, c)
        for (block, cache) in self.blocks.iter().zip(cache) {
            x = block.forward_cached(&x, &self.rotary, cache)?;
        }
        let t = x.dim(1)?;
        self.logits(&x.narrow(1, t - 1, 1)?)?.squeeze(1) // (b, v)
    }

    /// Activations by name for numbers of tokens (b, t), without a graph: the embedding, what is within and behind each block, the logits.
    ///
    /// # Errors
    /// More positions than the context has.
    pub fn activations(&self, ids: &Tensor, mask: Option<&Tensor>) -> Result<Vec<(String, Tensor)>> {
        let mut x = self.table.rows(ids)?.detach();
        let mut all = vec![("embedding".to_string(), x.clone())];
        for (i, block) in self.blocks.iter().enumerate() {
            x = block.attend(&x, &self.rotary, mask)?.detach();
            all.push((format!("layers.{i}.hidden"), block.mlp.hidden(&block.norms[1].forward(&x)?)?.detach()));
            x = block.feed(&x)?.detach();
            all.push((format!("layers.{i}"), x.clone()));
        }
        all.push(("logits".to_string(), self.logits(&x)?.detach()));
        Ok(all)
    }

    /// Tokens that it sees.
    pub fn context(&self) -> usize {
        self.context
    }

    /// Tokens that it knows.
    pub fn vocabulary(&self) -> usize {
        self.table.dims()[0]
    }

    /// An empty cache for [`Llama::forward_cached`], with room for `positions`, at most the context.
    pub fn cache(&self, positions: usize) -> Vec<KvCache> {
        self.blocks.iter().map(|_| KvCache::new(positions.min(self.context))).collect()
    }

    fn logits(&self, x: &Tensor) -> Result<Tensor> {
        self.head.as_ref().unwrap_or(&self.table).forward(&self.norm.forward(x)?) // (b, t, v)
    }
}

#[cfg(test)]
mod tests {
    use zoo_layers::Params;

    use super::*;
    use crate::Scaling;

    fn ids(b: usize, t: usize) -> Result<Tensor> {
        let ids: Vec<u32> = (0..(b * t) as u32).map(|i| i * 7 % 300).collect();
        Tensor::from_vec(ids, (b, t), &Device::Cpu)
    }

    #[test]
    fn a_cache_gives_the_logits_of_the_whole() -> Result<()> {
        let scaled =
            Config { rope_scaling: Scaling::Llama3, rope_factor: 4., rope_first_context: 16, ..Config::tiny() };
        for config in [Config::tiny(), Config { tied: false, key_heads: 1, ..scaled }] {
            let params = Params::init(1, &Device::Cpu);
            let model = Llama::new(&config, params.builder())?;
            let t = config.context;
            let ids = ids(2, t)?;
            let whole = model.forward(&ids, None)?;
            let mut cache = model.cache(t);
            // A prompt at once, then one after the other.
            let mut logits = model.forward_cached(&ids.narrow(1, 0, 5)?, &mut cache)?;
            for place in 5..=t {
                let of_whole = whole.narrow(1, place - 1, 1)?.squeeze(1)?;
                let error = (logits - of_whole)?.abs()?.max_all()?.to_scalar::<f32>()?;
                assert!(error < 2e-6, "place {place}: {error}");
                if place == t {
                    break;
                }
                logits = model.forward_cached(&ids.narrow(1, place, 1)?, &mut cache)?;
            }
            assert!(model.forward_cached(&ids.narrow(1, 0, 1)?, &mut cache).is_err(), "the cache is full");
        }
        Ok(())
    }

    #[test]
    fn every_parameter_gets_a_gradient() -> Result<()> {
        for tied in [true, false] {
            let params = Params::init(1, &Device::Cpu);
            let model = Llama::new(&Config { tied, ..Config::tiny() }, params.builder())?;
            let logits = model.forward(&ids(2, 9)?, None)?;
            let grads = params.gradients(&logits.sqr()?.sum_all()?.backward()?);
            assert_eq!(grads.missing(), Vec::<&str>::new());
            let all =
                grads.iter().map(|(name, g)| Ok((name, g.map_or(Ok(0.), |g| g.abs()?.sum_all()?.to_scalar::<f32>())?)));
            for (name, size) in all.collect::<Result<Vec<_>>>()? {
                assert!(size > 0., "{name}");
            }
        }
        Ok(())
    }

    #[test]
    fn presets_have_the_published_number_of_parameters() -> Result<()> {
        let count = |config: &Config| -> Result<usize> {
            let params = Params::init(1, &Device::Cpu);
            Llama::new(config, params.builder())?;
            Ok(params.all().iter().map(|p| p.var.elem_count()).sum())
        };
        assert_eq!(count(&Config::smollm2_135m())?, 134_515_008);
        let message = count(&Config { key_heads: 4, heads: 6, ..Config::tiny() }).unwrap_err().to_string();
        assert!(message.contains("model.heads = 6 cannot share model.key_heads = 4"), "{message}");
        Ok(())
    }
}
