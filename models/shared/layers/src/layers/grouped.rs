use candle_core::{Device, Result, Tensor, bail};

use super::attention::each_behind;
use super::weight::{Weight, Weights};
use super::{KvCache, Mode, Norm};
use crate::onnx::{Graph, Past, Places, Value};
use crate::ops::{
    Activation, AttentionOptions, GatedBranch, GroupedBranch, RopePairs, RopeScaling, add_dropout, attention, gated,
    rope_angles_of, rope_frequencies, rope_heads,
};

/// Cosines and sines of positions, (t, d / 2) each.
pub type Angles = [Tensor; 2];

/// Angles of a rotary embedding, for as many positions as a model may see.
#[derive(Clone, Debug)]
pub struct Rotary {
    cos: Tensor,
    sin: Tensor,
}

impl Rotary {
    /// Those of `positions` positions for heads of `d` features; see [`rope_frequencies`].
    ///
    /// # Errors
    /// An odd `d`; more positions than can be counted.
    pub fn new(positions: usize, d: usize, base: f64, scaling: Option<RopeScaling>, device: &Device) -> Result<Self> {
        if !d.is_multiple_of(2) {
            bail!("rotary embedding: expected an even number of features, got {d}")
        }
        let (cos, sin) = rope_angles_of(0, positions, &rope_frequencies(d, base, scaling), device)?;
        Ok(Self { cos, sin })
    }

    /// Cosines and sines of `t` positions from `first` on.
    fn angles(&self, first: usize, t: usize) -> Result<Angles> {
        let known = self.cos.dim(0)?;
        if first.checked_add(t).is_none_or(|end| end > known) {
            bail!("rotary embedding: {t} positions from {first} on, known are {known}")
        }
        Ok([self.cos.narrow(0, first, t)?, self.sin.narrow(0, first, t)?])
    }

    /// The cosines and sines of places, (t, d / 2), as nodes of a graph.
    ///
    /// # Errors
    /// candle's.
    pub fn export(&self, graph: &mut Graph, places: &Places) -> Result<[Value; 2]> {
        let [cos, sin] = [graph.constant("rotary.cos", &self.cos)?, graph.constant("rotary.sin", &self.sin)?];
        Ok([graph.rows_of(&cos, places), graph.rows_of(&sin, places)])
    }

    /// The angles of new positions of several texts, one text behind the other: how many each has, and the caches of those before them.
    ///
    /// # Errors
    /// More positions than are known.
    pub fn behind(&self, texts: &[(usize, &mut [KvCache])]) -> Result<Angles> {
        let first = |caches: &[KvCache]| caches.first().map_or(0, KvCache::len);
        let each = texts.iter().map(|(t, caches)| self.angles(first(caches), *t)).collect::<Result<Vec<_>>>()?;
        let [cos, sin] = [0, 1].map(|i| each.iter().map(|angles| &angles[i]).collect::<Vec<_>>());
        Ok([Tensor::cat(&cos, 0)?, Tensor::cat(&sin, 0)?])
    }
}

/// Sizes of a [`GroupedAttention`].
#[derive(Clone, Copy, Debug)]
pub struct GroupedConfig {
    /// Features of a place.
    pub width: usize,
    /// Heads of queries.
    pub heads: usize,
    /// Heads of keys and values, each shared by the same number of heads of queries.
    pub key_heads: usize,
    /// Features of a head.
    pub head_width: usize,
}

impl GroupedConfig {
    fn check(&self) -> Result<()> {
        let &Self { heads, key_heads, head_width, .. } = self;
        if key_heads == 0 || heads % key_heads != 0 || heads.checked_mul(head_width).is_none_or(|c| c == 0) {
            bail!("attention: {heads} heads of {head_width} features cannot share {key_heads} of keys and values")
        }
        Ok(())
    }
}

/// Causal self-attention with rotary positions in which heads of queries share those of keys and values, without biases, as
/// Llama has it.
#[derive(Clone, Debug)]
pub struct GroupedAttention {
    heads: usize,
    key_heads: usize,
    /// Of queries, keys and values.
    inputs: Weights<3>,
    output: Weight,
}

impl GroupedAttention {
    /// Of these weights: of queries, keys, values and the way out.
    ///
    /// # Errors
    /// Heads of keys that do not divide those of queries; sizes of zero; weights of other sizes.
    pub fn of_weights(config: GroupedConfig, [q, k, v, output]: [Weight; 4]) -> Result<Self> {
        config.check()?;
        let GroupedConfig { width, heads, key_heads, head_width } = config;
        let (all, few) = (heads * head_width, key_heads * head_width);
        let expected = [[all, width], [few, width], [few, width], [width, all]];
        let dims = [&q, &k, &v, &output].map(Weight::dims);
        if dims != expected {
            bail!("attention: weights of {dims:?}, expected {expected:?}")
        }
        Ok(Self { heads, key_heads, inputs: Weights::Apart([q, k, v]), output })
    }

    /// As it is for text that is written token by token: quantized maps of one input become one.
    pub fn stacked(self) -> Self {
        Self { inputs: self.inputs.stacked(), ..self }
    }

    /// x + attention(norm(x)) for `x` (b, t, c), in one node of the graph; `mask` is added to the scores and broadcasts to (b, heads, t, t).
    ///
    /// # Errors
    /// Other shapes, or more positions than `rotary` knows.
    pub fn branch(
        &self,
        x: &Tensor,
        norm: &Norm,
        rotary: &Rotary,
        mask: Option<&Tensor>,
        mode: Mode,
    ) -> Result<Tensor> {
        let (_, t, _) = x.dims3()?;
        let Weights::Apart([q, k, v]) = &self.inputs else {
            let [q, k, v] = self.project(&norm.forward(x)?, rotary, 0, mode)?;
            return add_dropout(x, &self.output.forward(&self.mix(&q, &k, &v, mask)?, mode)?, None);
        };
        let [cos, sin] = &rotary.angles(0, t)?;
        let branch = GroupedBranch {
            norm: norm.before_branch(),
            input: [q.map(mode)?, k.map(mode)?, v.map(mode)?],
            output: self.output.map(mode)?,
            heads: self.heads,
            key_heads: self.key_heads,
            angles: [cos, sin],
            mask,
        };
        branch.apply(x)
    }

    /// Its heads of keys and values, and the features of one.
    pub fn key_heads(&self) -> [usize; 2] {
        [self.key_heads, self.output.dims()[1] / self.heads]
    }

    /// Attention as nodes of a graph, (b, t, c) to (b, t, c), at the `angles` of these `places`; with the keys and values of `past` and of these
    /// places.
    ///
    /// # Errors
    /// As [`Weight::export`].
    pub fn export(
        &self,
        graph: &mut Graph,
        x: &Value,
        angles: &[Value; 2],
        places: &Places,
        past: Option<&Past>,
    ) -> Result<(Value, Past)> {
        let [q, k, v] = self.inputs.apart()?;
        let [_, d] = self.key_heads();
        let mut map = |weight: &Weight, heads: usize| {
            let y = weight.export(graph, x)?;
            graph.heads(&y, heads, d)
        };
        let (q, keys, values) = (map(q, self.heads)?, map(k, self.key_heads)?, map(v, self.key_heads)?);
        let (q, keys) = (graph.turn(&q, angles), graph.turn(&keys, angles));
        let now = graph.behind(past, Past { keys, values });
        let y = graph.attend(&q, now.clone(), [self.heads, self.key_heads], d, Some(places))?;
        Ok((self.output.export(graph, &y)?, now))
    }

    /// Attention of new positions of several texts at the `angles` of [`Rotary::behind`], as
    /// [`MultiHeadAttention::forward_cached`](super::MultiHeadAttention::forward_cached) has it.
    ///
    /// # Errors
    /// Numbers that do not add up to n; more positions than a cache has room for.
    pub fn forward_cached(&self, x: &Tensor, angles: &Angles, texts: &mut [(usize, &mut KvCache)]) -> Result<Tensor> {
        let qkv = self.turn(self.inputs.forward(x, Mode::Eval)?, angles)?;
        let y = each_behind(qkv, self.heads, texts)?;
        Ok(self.output.forward(&y, Mode::Eval)?.detach())
    }

    /// Its parameters.
    pub fn parameters(&self) -> impl Iterator<Item = &Tensor> {
        self.inputs.parameters().chain(self.output.parameters())
    }

    /// Whether LoRA stands beside any of its maps.
    pub fn is_adapted(&self) -> bool {
        self.inputs.is_adapted() || self.output.is_adapted()
    }

    /// Without LoRA.
    pub fn base(&self) -> Self {
        let &Self { heads, key_heads, .. } = self;
        Self { heads, key_heads, inputs: self.inputs.base(), output: self.output.base().clone() }
    }

    /// Queries, keys and values, (b, t, heads d) each, of positions from `first` on.
    fn project(&self, x: &Tensor, rotary: &Rotary, first: usize, mode: Mode) -> Result<[Tensor; 3]> {
        x.dims3()?;
        self.turn(self.inputs.forward(x, mode)?, &rotary.angles(first, x.dim(1)?)?)
    }

    fn turn(&self, [q, k, v]: [Tensor; 3], [cos, sin]: &Angles) -> Result<[Tensor; 3]> {
        let turn = |x: &Tensor, heads: usize| rope_heads(x, heads, cos, sin, RopePairs::Halves);
        Ok([turn(&q, self.heads)?, turn(&k, self.key_heads)?, v])
    }

    /// The values that queries choose, without the map behind.
    fn mix(&self, q: &Tensor, k: &Tensor, v: &Tensor, mask: Option<&Tensor>) -> Result<Tensor> {
        attention(q, k, v, self.heads, mask, AttentionOptions { causal: true, ..Default::default() })
    }
}

/// Two maps of which one lets the other through, and one back (SwiGLU with SiLU), without biases, as Llama has it.
#[derive(Clone, Debug)]
pub struct GatedMlp {
    /// The one that lets through, and the one that is let through.
    inputs: Weights<2>,
    down: Weight,
    activation: Activation,
}

impl GatedMlp {
    /// Of these weights: of gate, up and down.
    ///
    /// # Errors
    /// Weights of sizes that do not fit each other.
    pub fn of_weights(activation: Activation, [gate, up, down]: [Weight; 3]) -> Result<Self> {
        let dims = [&gate, &up, &down].map(Weight::dims);
        match dims.each_ref().map(Vec::as_slice) {
            [[a, b], [c, d], [e, f]] if (a, b) == (c, d) && (a, b) == (f, e) => {}
            _ => bail!("gated MLP: weights of {dims:?} do not fit each other"),
        }
        Ok(Self { inputs: Weights::Apart([gate, up]), down, activation })
    }

    /// Its parameters.
    pub fn parameters(&self) -> impl Iterator<Item = &Tensor> {
        self.inputs.parameters().chain(self.down.parameters())
    }

    /// Whether LoRA stands beside any of its maps.
    pub fn is_adapted(&self) -> bool {
        self.inputs.is_adapted() || self.down.is_adapted()
    }

    /// Without LoRA.
    pub fn base(&self) -> Self {
        Self { inputs: self.inputs.base(), down: self.down.base().clone(), activation: self.activation }
    }

    /// What is in between, (…, c) to (…, hidden).
    ///
    /// # Errors
    /// Other shapes.
    pub fn hidden(&self, x: &Tensor, mode: Mode) -> Result<Tensor> {
        let [gate, up] = self.inputs.forward(x, mode)?;
        gated(&gate, &up, self.activation)
    }

    /// As it is for text that is written token by token: quantized maps of one input become one.
    pub fn stacked(self) -> Self {
        Self { inputs: self.inputs.stacked(), ..self }
    }

    /// The MLP as nodes of a graph, (…, c) to (…, c).
    ///
    /// # Errors
    /// As [`Weight::export`].
    pub fn export(&self, graph: &mut Graph, x: &Value) -> Result<Value> {
        let [gate, up] = self.inputs.apart()?;
        let (gate, up) = (gate.export(graph, x)?, up.export(graph, x)?);
        let gate = graph.activation(&gate, self.activation)?;
        let hidden = graph.mul(&gate, &up);
        self.down.export(graph, &hidden)
    }

    /// x + MLP(norm(x)) for `x` (…, c), in one node of the graph.
    ///
    /// # Errors
    /// Other shapes.
    pub fn branch(&self, x: &Tensor, norm: &Norm, mode: Mode) -> Result<Tensor> {
        let Weights::Apart([gate, up]) = &self.inputs else {
            let hidden = self.hidden(&norm.forward(x)?, mode)?;
            return add_dropout(x, &self.down.forward(&hidden, mode)?, None);
        };
        let (gate, up, down) = (gate.map(mode)?, up.map(mode)?, self.down.map(mode)?);
        GatedBranch { norm: norm.before_branch(), gate, up, down, activation: self.activation }.apply(x)
    }
}
