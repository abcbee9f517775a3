use candle_core::{Result, Tensor, bail};
use candle_nn::VarBuilder;

use super::{Dropout, Linear, Mode, Norm};
use crate::init::{self, Init};
use crate::onnx::{Attribute, Graph, Past, Places, Value};
use crate::ops::{Activation, Affine, AttentionBranch, AttentionOptions, Projection, attention, linear};

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

    /// Causal attention of new positions `x` (b, t, c) over those in `cache` and themselves; they are added to it. No graph is
    /// recorded: what is in the cache has none.
    ///
    /// # Errors
    /// Attention that is not causal, or more positions than the cache has room for.
    pub fn forward_cached(&self, x: &Tensor, cache: &mut KvCache) -> Result<Tensor> {
        if !self.config.causal {
            bail!("attention: only causal attention can be cached")
        }
        let [q, k, v] = self.project(x)?;
        let (k, v) = cache.append(&k, &v)?;
        let options = AttentionOptions { causal: true, ..Default::default() };
        Ok(self.output.forward(&attention(&q, &k, &v, self.config.heads, None, options)?)?.detach())
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

/// Keys and values of the positions that a causal attention has seen. It has no copies: they would share memory.
#[derive(Debug)]
pub struct KvCache {
    /// (b, capacity, c), once the first positions are there.
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

    /// Adds `k` and `v` (b, t, c) and returns all there are.
    pub(super) fn append(&mut self, k: &Tensor, v: &Tensor) -> Result<(Tensor, Tensor)> {
        let (b, t, c) = k.dims3()?;
        if t == 0 {
            bail!("cache: no new positions")
        }
        if self.len.checked_add(t).is_none_or(|len| len > self.capacity) {
            bail!("cache: room for {} positions, asked for {t} beside {}", self.capacity, self.len)
        }
        if b.checked_mul(self.capacity).and_then(|n| n.checked_mul(c)).is_none_or(|n| n > isize::MAX as usize / 16) {
            bail!("cache: {b} times {} positions of {c} features are more than can be addressed", self.capacity)
        }
        let fresh = || Tensor::zeros((b, self.capacity, c), k.dtype(), k.device());
        let (keys, values) = match &self.keys_values {
            Some((keys, values)) if keys.dim(0)? == b => (keys, values),
            Some((keys, _)) if self.len > 0 => bail!("cache: a batch of {}, then one of {b}", keys.dim(0)?),
            _ => {
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
