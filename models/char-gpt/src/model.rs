//! The network.
//!
//! Letters: b batch, t positions, c features of a position, v characters of the vocabulary.

use std::path::Path;

use candle_core::{Device, Result, Tensor, bail};
use candle_nn::VarBuilder;
use zoo_checkpoint::Description;
use zoo_layers::onnx::Graph;
use zoo_layers::{
    AttentionConfig, BlockConfig, Dropout, Embedding, KvCache, MlpConfig, Mode, Norm, NormPlace, Params, Qkv,
    TransformerBlock, in_block, init, last_of_each, ops,
};

use crate::config::NAME;
use crate::{Config, Gelu, Vocabulary, Writer};

/// Added to the variance in the norms.
const EPS: f64 = 1e-5;
/// Standard deviation of initial weights (GPT-2).
const STDEV: f64 = 0.02;

/// Embedding and learned positions, pre-norm blocks, final norm, head. Parameters: `token_embedding.weight`,
/// `position_embedding.weight`, `blocks.0.self_attn.…`, `blocks.0.linear1.weight`, …, `norm.weight`, and `head.weight`
/// unless it is tied.
#[derive(Clone, Debug)]
pub struct CharGpt {
    tokens: Embedding,
    positions: Embedding,
    dropout: Dropout,
    blocks: Vec<TransformerBlock>,
    norm: Norm,
    /// Absent if tied.
    head: Option<Tensor>,
    context: usize,
}

impl CharGpt {
    /// Defines the parameters.
    ///
    /// # Errors
    /// Sizes of zero, heads that do not divide the width, or a dropout that is no share.
    pub fn new(config: &Config, vb: VarBuilder) -> Result<Self> {
        let &Config { vocabulary, context, layers, heads, width, hidden, separate_qkv, tied, bias, gelu, dropout } =
            config;
        if let Some(problem) = config.problem() {
            bail!("{problem}")
        }
        let weight = init::normal(0., STDEV);
        // What is added to the residual stream 2·layers times starts smaller (GPT-2).
        let out = init::normal(0., STDEV / (2. * layers as f64).sqrt());
        let block = BlockConfig {
            attention: AttentionConfig {
                width,
                heads,
                qkv: if separate_qkv { Qkv::Separate } else { Qkv::Packed },
                bias,
                causal: true,
                dropout,
                init: [weight, out],
            },
            mlp: MlpConfig {
                width,
                hidden,
                bias,
                activation: match gelu {
                    Gelu::Erf => ops::Activation::Gelu,
                    Gelu::Tanh => ops::Activation::GeluTanh,
                },
                dropout: 0.,
                init: [weight, out],
            },
            norm: NormPlace::Pre,
            norm_bias: bias,
            eps: EPS,
            dropout,
        };
        Ok(Self {
            tokens: Embedding::new(vocabulary, width, weight, vb.pp("token_embedding"))?,
            positions: Embedding::new(context, width, weight, vb.pp("position_embedding"))?,
            dropout: Dropout::new(dropout, "dropout"),
            blocks: (0..layers).map(|i| TransformerBlock::new(block, vb.pp("blocks").pp(i))).collect::<Result<_>>()?,
            norm: Norm::layer(width, EPS, bias, vb.pp("norm"))?,
            head: if tied {
                None
            } else {
                Some(vb.pp("head").get_with_hints((vocabulary, width), "weight", weight)?)
            },
            context,
        })
    }

    /// Numbers of characters (b, t) to the logits (b, t, v) of those that follow each.
    ///
    /// # Errors
    /// More positions than the context has.
    pub fn forward(&self, ids: &Tensor, mode: Mode) -> Result<Tensor> {
        let dropout = self.dropout.stream(mode);
        let mut x = self.tokens.forward_with_positions(ids, &self.positions, 0, dropout)?; // (b, t, c)
        for block in &self.blocks {
            x = block.forward(&x, mode)?;
        }
        self.logits(&x)
    }

    /// The logits (texts, v) of what follows each of several texts. `ids` (1, n) are their new characters, one text behind the other; `texts`
    /// are how many each has, and the caches of what it had before (see [`CharGpt::cache`]).
    ///
    /// # Errors
    /// Numbers that do not add up to n; more positions than the context has.
    pub fn forward_cached(&self, ids: &Tensor, texts: &mut [(usize, &mut [KvCache])]) -> Result<Tensor> {
        let place = |(n, caches): &(usize, &mut [KvCache])| {
            let first = caches.first().map_or(0, KvCache::len);
            (first..first.saturating_add(*n)).map(|place| place as i64)
        };
        let places: Vec<i64> = texts.iter().flat_map(place).collect();
        let places = Tensor::from_vec(places, ids.shape(), ids.device())?;
        let mut x = (self.tokens.forward(ids)? + self.positions.forward(&places)?)?.detach(); // (1, n, c)
        for (i, block) in self.blocks.iter().enumerate() {
            x = block.forward_cached(&x, &mut in_block(texts, i)?)?;
        }
        self.logits(&last_of_each(&x, texts.iter().map(|text| text.0))?)?.squeeze(0) // (texts, v)
    }

    /// Adds the model to a graph: `tokens` (batch, length), numbers of characters, to `logits` (batch, length, v) of those that follow each. With
    /// `state` it goes on from `past_keys.0`, `past_values.0`, …, and gives `present_keys.0`, ….
    ///
    /// # Errors
    /// See [`Graph::parameter`].
    pub fn export(&self, graph: &mut Graph, state: bool) -> Result<()> {
        let heads = self.blocks.iter().map(|block| block.attention().heads());
        let (tokens, past, places) = graph.tokens(self.vocabulary(), self.context, heads, state)?;
        let embedded = self.tokens.export(graph, &tokens)?;
        let table = graph.parameter(self.positions.weight())?;
        let positions = graph.rows_of(&table, &places);
        let mut x = graph.add(&embedded, &positions); // (b, t, c)
        for (i, block) in self.blocks.iter().enumerate() {
            let (y, now) = block.export(graph, &x, Some(&places), past.get(i))?;
            if state {
                let [heads, d] = block.attention().heads();
                graph.present(i, &now, heads, d)?;
            }
            x = y;
        }
        let x = self.norm.export(graph, &x)?;
        let head = self.head.as_ref().unwrap_or(self.tokens.weight());
        let logits = graph.linear(&x, head, None, ops::Activation::Identity)?;
        graph.logits(&logits, self.vocabulary())
    }

    /// Activations by name for numbers of characters (b, t), when evaluating: the sum of embeddings, what is within and
    /// behind each block, the logits.
    ///
    /// # Errors
    /// More positions than the context has.
    pub fn activations(&self, ids: &Tensor) -> Result<Vec<(String, Tensor)>> {
        let mut x = self.tokens.forward_with_positions(ids, &self.positions, 0, None)?;
        let mut all = vec![("embedding".to_string(), x.clone())];
        for (i, block) in self.blocks.iter().enumerate() {
            all.push((format!("blocks.{i}.hidden"), block.hidden(&x)?));
            x = block.forward(&x, Mode::Eval)?;
            all.push((format!("blocks.{i}"), x.clone()));
        }
        all.push(("logits".to_string(), self.logits(&x)?));
        Ok(all)
    }

    /// Characters that it sees.
    pub fn context(&self) -> usize {
        self.context
    }

    /// Characters that it knows.
    pub fn vocabulary(&self) -> usize {
        self.tokens.weight().dims()[0]
    }

    /// An empty cache for [`CharGpt::forward_cached`].
    pub fn cache(&self) -> Vec<KvCache> {
        self.blocks.iter().map(|_| KvCache::new(self.context)).collect()
    }

    fn logits(&self, x: &Tensor) -> Result<Tensor> {
        let head = self.head.as_ref().unwrap_or(self.tokens.weight());
        ops::linear(&self.norm.forward(x)?, head, None, ops::Activation::Identity) // (b, t, v)
    }

    /// Loads trained weights: weights, sizes and vocabulary are in the one file.
    ///
    /// # Errors
    /// The file cannot be read, is not a character GPT, or its tensors do not fit its own description.
    pub fn load(path: &Path, device: &Device) -> Result<Writer> {
        let (config, vocabulary, tensors): (Config, String, _) =
            Description::open(path, NAME, device).map_err(candle_core::Error::wrap)?;
        let named = |e| candle_core::Error::msg(format!("{}: {e}", path.display()));
        let (model, _) = Params::restore(tensors, device, |vb| Self::new(&config, vb)).map_err(named)?;
        Writer::new(model, Vocabulary::new(&vocabulary)?, device).map_err(named)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cache_gives_the_logits_of_the_whole() -> Result<()> {
        for config in [Config::tiny(), Config { context: 24, ..Config::seed() }] {
            let params = Params::init(1, &Device::Cpu);
            let model = CharGpt::new(&config, params.builder())?;
            let t = config.context;
            let ids: Vec<u32> = (0..2 * t as u32).map(|i| i * 7 % 65).collect();
            let ids = Tensor::from_vec(ids, (2, t), &Device::Cpu)?;
            let whole = model.forward(&ids, Mode::Eval)?;
            // Two texts at once: a prompt of each, then one character after the other.
            let mut caches = [model.cache(), model.cache()];
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
    fn a_text_does_not_depend_on_those_beside_it() -> Result<()> {
        let config = Config { context: 32, layers: 2, width: 384, heads: 6, hidden: 1536, ..Config::tiny() };
        let params = Params::init(1, &Device::Cpu);
        let model = CharGpt::new(&config, params.builder())?;
        // Of each text a prompt, then one character after the other, alone and beside the others.
        let texts: Vec<Vec<u32>> = (0..19).map(|i| (0..9 + i).map(|j| (7 * i + 3 * j) % 60).collect()).collect();
        let ids = |ids: &[u32]| Tensor::from_slice(ids, (1, ids.len()), &Device::Cpu);
        let mut alone = vec![];
        for text in &texts {
            let mut cache = model.cache();
            for part in [&text[..6], &text[6..7], &text[7..8]] {
                alone.push(
                    model.forward_cached(&ids(part)?, &mut [(part.len(), &mut cache)])?.to_vec2::<f32>()?.remove(0),
                );
            }
        }
        let mut caches: Vec<_> = texts.iter().map(|_| model.cache()).collect();
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
