//! The network.
//!
//! Letters: b batch, t positions, c features of a position, v tokens of the vocabulary.

use std::collections::{BTreeMap, HashMap};

use candle_core::{DType, Device, Error, Result, Tensor, bail};
use candle_nn::VarBuilder;
use regex::Regex;
use zoo_layers::init::{self, Init};
use zoo_layers::onnx::Graph;
use zoo_layers::ops::CrossEntropyOptions;
use zoo_layers::{
    Angles, GatedMlp, GroupedAttention, GroupedConfig, KvCache, LoraConfig, Mode, Norm, Rotary, Weight, in_block,
    last_of_each, ops, recomputed,
};

use crate::Config;

/// Standard deviation of initial weights.
const STDEV: f64 = 0.02;

/// A Llama (Touvron et al. 2023): embedding, pre-norm blocks of grouped attention with rotary positions and a gated MLP, final
/// RMS norm, head. Parameters have the names of Hugging Face's `LlamaForCausalLM`: `model.embed_tokens.weight`,
/// `model.layers.0.self_attn.q_proj.weight`, …, `model.norm.weight`, and `lm_head.weight` unless it is tied; those of LoRA have PEFT's:
/// `model.layers.0.self_attn.q_proj.lora_A.weight` and `lora_B.weight`.
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

/// Where the matrices of a model come from.
enum Matrices<'a> {
    /// They are defined.
    New(VarBuilder<'a>),
    /// They are there, of which each is taken once.
    Given(BTreeMap<String, Weight>),
}

/// Makes the matrices of a model, with LoRA beside those that it adapts.
struct Maker<'a> {
    matrices: Matrices<'a>,
    /// Where LoRA's are defined.
    beside: VarBuilder<'a>,
    lora: LoraConfig,
    targets: Option<Regex>,
    /// Maps in order, and whether they are adapted.
    seen: Vec<(String, bool)>,
}

impl<'a> Maker<'a> {
    fn new(config: &Config, matrices: Matrices<'a>, beside: VarBuilder<'a>) -> Result<Self> {
        let targets = config.lora.pattern().map_err(Error::msg)?;
        Ok(Self { matrices, beside, lora: config.lora.config(), targets, seen: vec![] })
    }

    /// A table of rows, which is not adapted.
    fn table(&mut self, name: &str, [output, input]: [usize; 2], init: Init) -> Result<Weight> {
        match &mut self.matrices {
            Matrices::New(vb) => Weight::new(input, output, init, vb.pp(name)),
            Matrices::Given(all) => match all.remove(&format!("{name}.weight")) {
                Some(weight) if weight.dims() == [output, input] => Ok(weight),
                Some(weight) => bail!("{name}.weight is {:?}, expected {:?}", weight.dims(), [output, input]),
                None => bail!("missing {name}.weight {:?}", [output, input]),
            },
        }
    }

    /// A linear map.
    fn map(&mut self, name: &str, size: [usize; 2], init: Init) -> Result<Weight> {
        let weight = self.table(name, size, init)?;
        let is_target = self.targets.as_ref().is_some_and(|targets| targets.is_match(name));
        self.seen.push((name.to_string(), is_target));
        if is_target { weight.adapted(self.lora, self.beside.pp(name)) } else { Ok(weight) }
    }

    /// Refuses matrices that are left, and LoRA of nothing.
    fn finish(self) -> Result<()> {
        if let Matrices::Given(left) = &self.matrices
            && let Some(name) = left.keys().next()
        {
            bail!("unexpected {name}")
        }
        match (&self.targets, self.seen.first()) {
            (Some(targets), Some((first, _))) if !self.seen.iter().any(|(_, is_target)| *is_target) => {
                bail!("model.lora.targets = {:?} is found in no name of a map, such as {first}", targets.as_str())
            }
            _ => Ok(()),
        }
    }
}

impl Block {
    /// `norms` has the block's norms; the names of its maps begin with `prefix`.
    fn new(config: &Config, norms: VarBuilder, maker: &mut Maker, prefix: &str) -> Result<Self> {
        let &Config { width, heads, key_heads, head_width, hidden, .. } = config;
        let (all, few) = (heads * head_width, key_heads * head_width);
        let norms = Self::norms(config, &norms)?;
        let grouped = GroupedConfig { width, heads, key_heads, head_width };
        // What is added to the residual stream 2·layers times starts smaller (GPT-2).
        let (inner, out) = (init::normal(0., STDEV), init::normal(0., STDEV / (2. * config.layers as f64).sqrt()));
        let mut map = |name: &str, size, init| maker.map(&format!("{prefix}.{name}_proj"), size, init);
        let attention = [
            map("self_attn.q", [all, width], inner)?,
            map("self_attn.k", [few, width], inner)?,
            map("self_attn.v", [few, width], inner)?,
            map("self_attn.o", [width, all], out)?,
        ];
        let mlp = [
            map("mlp.gate", [hidden, width], inner)?,
            map("mlp.up", [hidden, width], inner)?,
            map("mlp.down", [width, hidden], out)?,
        ];
        let attention = GroupedAttention::of_weights(grouped, attention)?;
        let mlp = GatedMlp::of_weights(ops::Activation::Silu, mlp)?;
        // What is trained is one node of the graph, whose maps are apart.
        Ok(match config.lora.is_on() {
            true => Self { norms, attention, mlp },
            false => Self { norms, attention: attention.stacked(), mlp: mlp.stacked() },
        })
    }

    fn norms(config: &Config, vb: &VarBuilder) -> Result<[Norm; 2]> {
        let norm = |name: &str| Norm::rms(config.width, config.eps, vb.pp(name));
        Ok([norm("input_layernorm")?, norm("post_attention_layernorm")?])
    }

    /// (b, t, c) to (b, t, c).
    fn forward(&self, x: &Tensor, rotary: &Rotary, mask: Option<&Tensor>, mode: Mode) -> Result<Tensor> {
        let norms = self.norms.iter().flat_map(Norm::parameters);
        let params = self.attention.parameters().chain(self.mlp.parameters()).chain(norms).cloned().collect();
        let (block, rotary, mask) = (self.clone(), rotary.clone(), mask.cloned());
        recomputed(x, params, move |x| block.feed(&block.attend(x, &rotary, mask.as_ref(), mode)?, mode))
    }

    fn attend(&self, x: &Tensor, rotary: &Rotary, mask: Option<&Tensor>, mode: Mode) -> Result<Tensor> {
        self.attention.branch(x, &self.norms[0], rotary, mask, mode)
    }

    fn forward_cached(&self, x: &Tensor, angles: &Angles, texts: &mut [(usize, &mut KvCache)]) -> Result<Tensor> {
        let attended = self.attention.forward_cached(&self.norms[0].forward(x)?, angles, texts)?;
        self.feed(&ops::add_dropout(x, &attended, None)?, Mode::Eval)
    }

    fn feed(&self, x: &Tensor, mode: Mode) -> Result<Tensor> {
        self.mlp.branch(x, &self.norms[1], mode)
    }
}

impl Llama {
    /// Defines the parameters, with those of LoRA if the configuration has any.
    ///
    /// # Errors
    /// Numbers that cannot work; the message names the key.
    pub fn new(config: &Config, vb: VarBuilder) -> Result<Self> {
        let device = vb.device().clone();
        Self::build(config, vb.clone(), Matrices::New(vb.clone()), vb, &device)
    }

    /// Of these weights by their names, such as quantized ones; norms have to be plain.
    ///
    /// # Errors
    /// As [`Llama::new`]; weights that are missing, of other shapes, or not the model's.
    pub fn of_weights(config: &Config, weights: BTreeMap<String, Weight>) -> Result<Self> {
        let none = VarBuilder::from_tensors(HashMap::new(), DType::F32, &Device::Cpu);
        Self::over(config, weights, none)
    }

    /// Over these weights by their names, which stay as they are: the parameters of LoRA alone are defined.
    ///
    /// # Errors
    /// As [`Llama::of_weights`].
    pub fn over(config: &Config, weights: BTreeMap<String, Weight>, vb: VarBuilder) -> Result<Self> {
        if let Some(problem) = config.problem() {
            bail!("{problem}")
        }
        let (norms, matrices): (BTreeMap<_, _>, _) = weights.into_iter().partition(|(_, w)| w.dims().len() == 1);
        let known = 2 * config.layers + 1;
        if norms.len() != known {
            bail!("{} norms, expected {known}", norms.len())
        }
        let norms: HashMap<String, Tensor> =
            norms.into_iter().filter_map(|(name, w)| Some((name, w.parameters().next()?.clone()))).collect();
        let device = norms.values().next().map_or(Device::Cpu, |norm| norm.device().clone());
        let norms = VarBuilder::from_tensors(norms, DType::F32, &device);
        Self::build(config, norms, Matrices::Given(matrices), vb, &device)
    }

    fn build<'a>(
        config: &Config,
        norms: VarBuilder<'a>,
        matrices: Matrices<'a>,
        beside: VarBuilder<'a>,
        device: &Device,
    ) -> Result<Self> {
        if let Some(problem) = config.problem() {
            bail!("{problem}")
        }
        let &Config { vocabulary, context, layers, head_width, width, tied, eps, rope_base, .. } = config;
        let (weight, size) = (init::normal(0., STDEV), [vocabulary, width]);
        let (mut maker, inner) = (Maker::new(config, matrices, beside)?, norms.pp("model"));
        let table = maker.table("model.embed_tokens", size, weight)?;
        let block = |i: usize| {
            let prefix = format!("model.layers.{i}");
            Block::new(config, inner.pp("layers").pp(i), &mut maker, &prefix)
        };
        let blocks = (0..layers).map(block).collect::<Result<_>>()?;
        let norm = Norm::rms(width, eps, inner.pp("norm"))?;
        let head = (!tied).then(|| maker.map("lm_head", size, weight)).transpose()?;
        maker.finish()?;
        let rotary = Rotary::new(context, head_width, rope_base, config.scaling(), device)?;
        Ok(Self { table, blocks, norm, head, rotary, context })
    }

    /// Whether LoRA stands beside any of its weights.
    pub fn is_adapted(&self) -> bool {
        let of_block = |b: &Block| b.attention.is_adapted() || b.mlp.is_adapted();
        self.blocks.iter().any(of_block) || self.head.as_ref().is_some_and(Weight::is_adapted)
    }

    /// Without LoRA: the weights that it stands beside.
    pub fn base(&self) -> Self {
        let block = |b: &Block| Block { norms: b.norms.clone(), attention: b.attention.base(), mlp: b.mlp.base() };
        let blocks = self.blocks.iter().map(block).collect();
        Self { blocks, head: self.head.as_ref().map(|head| head.base().clone()), ..self.clone() }
    }

    /// Numbers of tokens (b, t) to the logits (b, t, v) of those that follow each, without dropout. `mask` is added to the scores of all heads and
    /// broadcasts to (b, 1, t, t): where a window has several documents, it keeps them apart.
    ///
    /// # Errors
    /// More positions than the context has, or a mask of another shape.
    pub fn forward(&self, ids: &Tensor, mask: Option<&Tensor>) -> Result<Tensor> {
        self.forward_in(ids, mask, Mode::Eval)
    }

    /// As [`Llama::forward`], with LoRA's dropout in training.
    ///
    /// # Errors
    /// As there.
    pub fn forward_in(&self, ids: &Tensor, mask: Option<&Tensor>, mode: Mode) -> Result<Tensor> {
        self.logits(&self.features(ids, mask, mode)?, mode)
    }

    /// The mean cross-entropy in nats of the logits of [`Llama::forward_in`] against `targets` (b, t).
    ///
    /// # Errors
    /// As there; targets that are no tokens, or none that counts.
    pub fn loss(
        &self,
        ids: &Tensor,
        targets: &Tensor,
        mask: Option<&Tensor>,
        options: CrossEntropyOptions,
        mode: Mode,
    ) -> Result<Tensor> {
        let x = self.norm.forward(&self.features(ids, mask, mode)?)?;
        self.head.as_ref().unwrap_or(&self.table).cross_entropy(&x, targets, options, mode)
    }

    /// What the last block makes of numbers of tokens: (b, t, c).
    fn features(&self, ids: &Tensor, mask: Option<&Tensor>, mode: Mode) -> Result<Tensor> {
        let mut x = self.table.rows(ids)?; // (b, t, c)
        for block in &self.blocks {
            x = block.forward(&x, &self.rotary, mask, mode)?;
        }
        Ok(x)
    }

    /// The logits (texts, v) of what follows each of several texts. `ids` (1, n) are their new tokens, one text behind the other; `texts` are
    /// how many each has, and the caches of what it had before (see [`Llama::cache`]).
    ///
    /// # Errors
    /// Numbers that do not add up to n; more positions than the context, or a cache, has.
    pub fn forward_cached(&self, ids: &Tensor, texts: &mut [(usize, &mut [KvCache])]) -> Result<Tensor> {
        let mut x = self.table.rows(ids)?.detach(); // (1, n, c)
        // Before the caches take anything.
        let angles = self.rotary.behind(texts)?;
        for (i, block) in self.blocks.iter().enumerate() {
            x = block.forward_cached(&x, &angles, &mut in_block(texts, i)?)?;
        }
        let last = last_of_each(&x, texts.iter().map(|text| text.0))?;
        self.logits(&last, Mode::Eval)?.squeeze(0) // (texts, v)
    }

    /// Adds the model to a graph: `tokens` (batch, length) to `logits` (batch, length, v) of those that follow each. With `state` it goes on
    /// from `past_keys.0`, `past_values.0`, …, and gives `present_keys.0`, ….
    ///
    /// # Errors
    /// See [`Weight::export`].
    pub fn export(&self, graph: &mut Graph, state: bool) -> Result<()> {
        let heads = self.blocks.iter().map(|block| block.attention.key_heads());
        let (tokens, past, places) = graph.tokens(self.vocabulary(), self.context, heads, state)?;
        let angles = self.rotary.export(graph, &places)?;
        let mut x = self.table.export_rows(graph, &tokens)?; // (b, t, c)
        for (i, block) in self.blocks.iter().enumerate() {
            let z = block.norms[0].export(graph, &x)?;
            let (y, now) = block.attention.export(graph, &z, &angles, &places, past.get(i))?;
            x = graph.add(&x, &y);
            let z = block.norms[1].export(graph, &x)?;
            let y = block.mlp.export(graph, &z)?;
            x = graph.add(&x, &y);
            if state {
                let [heads, d] = block.attention.key_heads();
                graph.present(i, &now, heads, d)?;
            }
        }
        let x = self.norm.export(graph, &x)?;
        let logits = self.head.as_ref().unwrap_or(&self.table).export(graph, &x)?;
        graph.logits(&logits, self.vocabulary())
    }

    /// Activations by name for numbers of tokens (b, t), without a graph: the embedding, what is within and behind each block, the logits.
    ///
    /// # Errors
    /// More positions than the context has.
    pub fn activations(&self, ids: &Tensor, mask: Option<&Tensor>) -> Result<Vec<(String, Tensor)>> {
        let mut x = self.table.rows(ids)?.detach();
        let mut all = vec![("embedding".to_string(), x.clone())];
        for (i, block) in self.blocks.iter().enumerate() {
            x = block.attend(&x, &self.rotary, mask, Mode::Eval)?.detach();
            let hidden = block.mlp.hidden(&block.norms[1].forward(&x)?, Mode::Eval)?;
            all.push((format!("layers.{i}.hidden"), hidden.detach()));
            x = block.feed(&x, Mode::Eval)?.detach();
            all.push((format!("layers.{i}"), x.clone()));
        }
        all.push(("logits".to_string(), self.logits(&x, Mode::Eval)?.detach()));
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

    fn logits(&self, x: &Tensor, mode: Mode) -> Result<Tensor> {
        self.head.as_ref().unwrap_or(&self.table).forward(&self.norm.forward(x)?, mode) // (b, t, v)
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
            // Two texts at once: a prompt of each, then one token after the other.
            let mut caches = [model.cache(t), model.cache(t)];
            let mut step = |from: [usize; 2], to: [usize; 2]| {
                let own = |i: usize| ids.narrow(0, i, 1)?.narrow(1, from[i], to[i] - from[i]);
                let new = Tensor::cat(&[own(0)?, own(1)?], 1)?;
                let [a, b] = &mut caches;
                model.forward_cached(&new, &mut [(to[0] - from[0], &mut a[..]), (to[1] - from[1], &mut b[..])])
            };
            let mut from = [0, 0];
            for end in 5..t {
                let to = [end + 1, end - 3];
                let logits = step(from, to)?;
                for i in 0..2 {
                    let of_whole = whole.narrow(0, i, 1)?.narrow(1, to[i] - 1, 1)?.squeeze(1)?;
                    let error = (logits.narrow(0, i, 1)? - of_whole)?.abs()?.max_all()?.to_scalar::<f32>()?;
                    assert!(error < 2e-6, "text {i}, place {}: {error}", to[i]);
                }
                from = to;
            }
            assert!(step(from, [t + 1, t]).is_err(), "the first cache is full");
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

    #[test]
    fn a_text_does_not_depend_on_those_beside_it() -> Result<()> {
        let config = Config { width: 192, heads: 6, key_heads: 2, hidden: 512, ..Config::tiny() };
        let params = Params::init(1, &Device::Cpu);
        let model = Llama::new(&config, params.builder())?;
        // Of each text a prompt, then one token after the other, alone and beside the others.
        let texts: Vec<Vec<u32>> = (0..19).map(|i| (0..9 + i).map(|j| (7 * i + 3 * j) % 60).collect()).collect();
        let ids = |ids: &[u32]| Tensor::from_slice(ids, (1, ids.len()), &Device::Cpu);
        let mut alone = vec![];
        for text in &texts {
            let mut cache = model.cache(32);
            for part in [&text[..6], &text[6..7], &text[7..8]] {
                alone.push(
                    model.forward_cached(&ids(part)?, &mut [(part.len(), &mut cache)])?.to_vec2::<f32>()?.remove(0),
                );
            }
        }
        let mut caches: Vec<_> = texts.iter().map(|_| model.cache(32)).collect();
        for (step, range) in [0..6, 6..7, 7..8].into_iter().enumerate() {
            // Few rows in all: how products of many round may depend on how many there are.
            let (few, first) = if step == 0 { (2, 7) } else { (texts.len(), 0) };
            let chosen = first..first + few;
            let new: Vec<u32> = texts[chosen.clone()].iter().flat_map(|text| text[range.clone()].to_vec()).collect();
            let behind = caches[chosen.clone()].iter_mut().map(|cache| (range.len(), cache.as_mut_slice()));
            let together = model.forward_cached(&ids(&new)?, &mut behind.collect::<Vec<_>>())?.to_vec2::<f32>()?;
            for (i, logits) in chosen.clone().zip(&together) {
                assert!(*logits == alone[3 * i + step], "text {i}, step {step}");
            }
            // The others of the prompts.
            for (text, cache) in texts.iter().zip(&mut caches).filter(|(_, cache)| cache[0].len() < range.end) {
                model.forward_cached(&ids(&text[range.clone()])?, &mut [(range.len(), cache)])?;
            }
        }
        Ok(())
    }
}
