use candle_core::{Result, Tensor, bail};
use candle_nn::VarBuilder;

use super::{Dropout, Linear, Mode, Norm};
use crate::init::{self, Init};
use crate::onnx::{Attribute, Graph, Past, Places, Value};
use crate::ops::{
    Activation, Affine, AttentionBranch, AttentionOptions, Projection, attention, attention_of_texts, linear,
};

/// How queries, keys and values are projected, which decides the parameters' names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Qkv {
    /// One matrix for the three, named as in `torch.nn.MultiheadAttention`: `in_proj_weight` (3c, c), `in_proj_bias`.
    Packed,
    /// A linear layer each: `q_proj.weight` (c, c), `q_proj.bias`, `k_proj.weight`, …
    Separate,
}

/// Sizes of a [`MultiHeadAttention`].
#[derive(Clone, Copy, Debug)]
pub struct AttentionConfig {
    /// Features of a place.
    pub width: usize,
    /// Heads that share them.
    pub heads: usize,
    /// Packed or separate.
    pub qkv: Qkv,
    /// Whether the four maps have biases.
    pub bias: bool,
    /// Whether a place sees only itself and those before it.
    pub causal: bool,
    /// Dropout on the attention weights.
    pub dropout: f64,
    /// Initial values of the maps in and out.
    pub init: [Init; 2],
}

/// Multi-head self-attention (Vaswani et al. 2017), batch first; the map behind the heads is `out_proj`.
#[derive(Clone, Debug)]
pub struct MultiHeadAttention {
    config: AttentionConfig,
    input: Maps,
    output: Linear,
    dropout: Dropout,
}

#[derive(Clone, Debug)]
enum Maps {
    Packed(Tensor, Option<Tensor>),
    Separate([Linear; 3]),
}

impl MultiHeadAttention {
    /// Defines the parameters.
    ///
    /// # Errors
    /// Heads that do not divide the width.
    pub fn new(config: AttentionConfig, vb: VarBuilder) -> Result<Self> {
        let AttentionConfig { width: c, heads, qkv, bias, dropout, init, .. } = config;
        if heads == 0 || c % heads != 0 || c.checked_mul(3).is_none() {
            bail!("attention: {c} features do not divide into {heads} heads")
        }
        let one = |name: &str, init| Linear::with_biases(c, c, bias.then_some(init::ZEROS), init, vb.pp(name));
        let input = match qkv {
            Qkv::Packed => Maps::Packed(
                vb.get_with_hints((3 * c, c), "in_proj_weight", init[0])?,
                if bias { Some(vb.get_with_hints(3 * c, "in_proj_bias", init::ZEROS)?) } else { None },
            ),
            Qkv::Separate => {
                Maps::Separate([one("q_proj", init[0])?, one("k_proj", init[0])?, one("v_proj", init[0])?])
            }
        };
        let output = one("out_proj", init[1])?;
        let path = format!("{}.attention_dropout", vb.prefix());
        Ok(Self { config, input, output, dropout: Dropout::new(dropout, &path) })
    }

    /// x + dropout(attention(norm(x))), (b, t, c) to (b, t, c), in one node of the graph.
    pub fn branch(&self, x: &Tensor, norm: Option<&Norm>, dropout: &Dropout, mode: Mode) -> Result<Tensor> {
        let input = match &self.input {
            Maps::Packed(weight, bias) => Projection::Packed(Affine { weight, bias: bias.as_ref() }),
            Maps::Separate([q, k, v]) => Projection::Separate([q.affine(), k.affine(), v.affine()]),
        };
        let branch = AttentionBranch {
            norm: norm.map(Norm::before_branch),
            input,
            output: self.output.affine(),
            heads: self.config.heads,
            causal: self.config.causal,
            attention_dropout: self.dropout.stream(mode),
            dropout: dropout.stream(mode),
        };
        branch.apply(x)
    }

    /// Attention alone, (b, t, c) to (b, t, c); `mask` is added to the scores and broadcasts to (b, heads, t, t).
    pub fn forward(&self, x: &Tensor, mask: Option<&Tensor>, mode: Mode) -> Result<Tensor> {
        let [q, k, v] = self.project(x)?;
        let options = AttentionOptions { causal: self.config.causal, scale: None, dropout: self.dropout.stream(mode) };
        self.output.forward(&attention(&q, &k, &v, self.config.heads, mask, options)?)
    }

    /// Causal attention of new positions of several texts, which lie one behind the other in `x` (1, n, c). `texts` are how many each has, and
    /// the cache of those before them, which takes them. No graph is recorded: what is in a cache has none.
    ///
    /// # Errors
    /// Attention that is not causal, numbers that do not add up to n, or more positions than a cache has room for.
    pub fn forward_cached(&self, x: &Tensor, texts: &mut [(usize, &mut KvCache)]) -> Result<Tensor> {
        if !self.config.causal {
            bail!("attention: only causal attention can be cached")
        }
        let y = each_behind(self.project(x)?, self.config.heads, texts)?;
        Ok(self.output.forward(&y)?.detach())
    }

    /// Its heads, and the features of one.
    pub fn heads(&self) -> [usize; 2] {
        [self.config.heads, self.config.width / self.config.heads]
    }

    /// [`MultiHeadAttention::forward`] as nodes of a graph, (b, t, c) to (b, t, c). A causal one is told its `places`, and returns the keys and
    /// values of `past` and of these places.
    ///
    /// # Errors
    /// See [`Graph::parameter`].
    pub fn export(
        &self,
        graph: &mut Graph,
        x: &Value,
        places: Option<&Places>,
        past: Option<&Past>,
    ) -> Result<(Value, Past)> {
        if self.config.causal != places.is_some() {
            bail!("attention: places are for causal attention")
        }
        let [heads, d] = self.heads();
        let [q, k, v] = match &self.input {
            Maps::Packed(weight, bias) => {
                let qkv = graph.linear(x, weight, bias.as_ref(), Activation::Identity)?;
                graph.ops("Split", &[Some(&qkv)], &[("axis", Attribute::Int(-1))])
            }
            Maps::Separate([q, k, v]) => {
                let mut map = |map: &Linear| map.export(graph, x, Activation::Identity);
                [map(q)?, map(k)?, map(v)?]
            }
        };
        let [q, keys, values] = [graph.heads(&q, heads, d)?, graph.heads(&k, heads, d)?, graph.heads(&v, heads, d)?];
        let now = graph.behind(past, Past { keys, values });
        let y = graph.attend(&q, now.clone(), [heads; 2], d, places)?;
        Ok((self.output.export(graph, &y, Activation::Identity)?, now))
    }

    /// Its parameters.
    pub fn parameters(&self) -> impl Iterator<Item = &Tensor> {
        let input: Vec<&Tensor> = match &self.input {
            Maps::Packed(weight, bias) => std::iter::once(weight).chain(bias).collect(),
            Maps::Separate(maps) => maps.iter().flat_map(Linear::parameters).collect(),
        };
        input.into_iter().chain(self.output.parameters())
    }

    /// Queries, keys and values, (b, t, c) each.
    fn project(&self, x: &Tensor) -> Result<[Tensor; 3]> {
        x.dims3()?;
        match &self.input {
            Maps::Packed(weight, bias) => {
                let qkv = linear(x, weight, bias.as_ref(), Default::default())?;
                let (axis, c) = (x.rank() - 1, self.config.width);
                Ok([qkv.narrow(axis, 0, c)?, qkv.narrow(axis, c, c)?, qkv.narrow(axis, 2 * c, c)?])
            }
            Maps::Separate([q, k, v]) => Ok([q.forward(x)?, k.forward(x)?, v.forward(x)?]),
        }
    }
}

/// Causal attention of queries (1, n, c) of texts, whose keys and values go into the caches first.
pub(super) fn each_behind([q, k, v]: [Tensor; 3], heads: usize, texts: &mut [(usize, &mut KvCache)]) -> Result<Tensor> {
    let (_, n, _) = k.dims3()?;
    let sum = texts.iter().try_fold(0usize, |sum, text| sum.checked_add(text.0));
    if sum != Some(n) {
        bail!("attention: {n} new positions, but not so many of the texts")
    }
    // Before any of them takes something.
    texts.iter().try_for_each(|(t, cache)| cache.check(*t))?;
    let (mut first, mut all) = (0, Vec::with_capacity(texts.len()));
    for (t, cache) in texts {
        let (k, v) = cache.append(&k.narrow(1, first, *t)?, &v.narrow(1, first, *t)?)?;
        all.push((*t, k, v));
        first += *t;
    }
    attention_of_texts(&q, heads, &all)
}

/// Of several texts, with a cache for each block of a model, those of block `i`.
///
/// # Errors
/// A text without one.
pub fn in_block<'a>(texts: &'a mut [(usize, &mut [KvCache])], i: usize) -> Result<Vec<(usize, &'a mut KvCache)>> {
    let own = |(n, caches): &'a mut (usize, &mut [KvCache])| match caches.get_mut(i) {
        Some(cache) => Ok((*n, cache)),
        None => bail!("attention: a text has no cache for block {i}"),
    };
    texts.iter_mut().map(own).collect()
}

/// The last position of each text, (1, texts, c), of `x` (1, n, c) in which texts of `counts` positions lie one behind the other.
///
/// # Errors
/// A count of zero, or counts that do not add up to n.
pub fn last_of_each(x: &Tensor, counts: impl IntoIterator<Item = usize>) -> Result<Tensor> {
    let (mut end, mut last) = (0, vec![]);
    for count in counts {
        end += count;
        match count {
            0 => bail!("a text without new positions"),
            _ => last.push(x.narrow(1, end - 1, 1)?),
        }
    }
    if end != x.dim(1)? {
        bail!("{end} positions of texts in {}", x.dim(1)?)
    }
    if last.len() == end { Ok(x.clone()) } else { Tensor::cat(&last, 1) }
}

/// Keys and values of the positions that a causal attention has seen of a text. It has no copies: they would share memory.
#[derive(Debug)]
pub struct KvCache {
    /// (1, capacity, c), once the first positions are there.
    keys_values: Option<(Tensor, Tensor)>,
    capacity: usize,
    len: usize,
}

impl KvCache {
    /// Room for `capacity` positions.
    pub fn new(capacity: usize) -> Self {
        Self { keys_values: None, capacity, len: 0 }
    }

    /// Places in it.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has seen nothing yet.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Forgets all positions.
    pub fn clear(&mut self) {
        self.len = 0;
    }

    /// Whether there is room for `t` more positions.
    fn check(&self, t: usize) -> Result<()> {
        if t == 0 {
            bail!("cache: no new positions")
        }
        if self.len.checked_add(t).is_none_or(|len| len > self.capacity) {
            bail!("cache: room for {} positions, asked for {t} beside {}", self.capacity, self.len)
        }
        Ok(())
    }

    /// Adds `k` and `v` (1, t, c) and returns all there are.
    pub(super) fn append(&mut self, k: &Tensor, v: &Tensor) -> Result<(Tensor, Tensor)> {
        let (_, t, c) = k.dims3()?;
        self.check(t)?;
        if self.capacity.checked_mul(c).is_none_or(|n| n > isize::MAX as usize / 16) {
            bail!("cache: {} positions of {c} features are more than can be addressed", self.capacity)
        }
        let fresh = || Tensor::zeros((1, self.capacity, c), k.dtype(), k.device());
        let (keys, values) = match &self.keys_values {
            Some((keys, values)) => (keys, values),
            None => {
                let made = (fresh()?, fresh()?);
                let made = self.keys_values.insert(made);
                (&made.0, &made.1)
            }
        };
        keys.slice_set(&k.detach().contiguous()?, 1, self.len)?;
        values.slice_set(&v.detach().contiguous()?, 1, self.len)?;
        self.len += t;
        Ok((keys.narrow(1, 0, self.len)?, values.narrow(1, 0, self.len)?))
    }
}
