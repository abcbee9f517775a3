use candle_core::{Result, Tensor, bail};
use candle_nn::VarBuilder;

use super::{AttentionConfig, Dropout, KvCache, Linear, Mode, MultiHeadAttention, Norm, recomputed};
use crate::init::{self, Init};
use crate::onnx::{Graph, Past, Places, Value};
use crate::ops::{Activation, MlpBranch};

/// Sizes of an [`Mlp`].
#[derive(Clone, Copy, Debug)]
pub struct MlpConfig {
    /// Features of a place.
    pub width: usize,
    /// Features in between.
    pub hidden: usize,
    /// Whether the two maps have biases.
    pub bias: bool,
    /// The function in between.
    pub activation: Activation,
    /// Dropout behind it.
    pub dropout: f64,
    /// Initial values of the two maps.
    pub init: [Init; 2],
}

/// Two affine maps with an activation in between: `linear1` and `linear2`.
#[derive(Clone, Debug)]
pub struct Mlp {
    first: Linear,
    second: Linear,
    activation: Activation,
    dropout: Dropout,
}

impl Mlp {
    /// Defines the parameters.
    pub fn new(config: MlpConfig, vb: VarBuilder) -> Result<Self> {
        let MlpConfig { width, hidden, bias, activation, dropout, init } = config;
        let map =
            |from, to, init, name: &str| Linear::with_biases(from, to, bias.then_some(init::ZEROS), init, vb.pp(name));
        Ok(Self {
            first: map(width, hidden, init[0], "linear1")?,
            second: map(hidden, width, init[1], "linear2")?,
            activation,
            dropout: Dropout::new(dropout, &format!("{}.hidden_dropout", vb.prefix())),
        })
    }

    fn parameters(&self) -> impl Iterator<Item = &Tensor> {
        self.first.parameters().chain(self.second.parameters())
    }

    /// What is in between, behind the activation, (…, c) to (…, hidden).
    fn hidden(&self, x: &Tensor) -> Result<Tensor> {
        self.first.forward_activated(x, self.activation)
    }

    /// (…, c) to (…, c).
    pub fn forward(&self, x: &Tensor, mode: Mode) -> Result<Tensor> {
        self.second.forward(&self.dropout.forward(&self.hidden(x)?, mode)?)
    }

    /// [`Mlp::forward`] as nodes of a graph.
    ///
    /// # Errors
    /// See [`Graph::parameter`].
    pub fn export(&self, graph: &mut Graph, x: &Value) -> Result<Value> {
        let hidden = self.first.export(graph, x, self.activation)?;
        self.second.export(graph, &hidden, Activation::Identity)
    }

    /// x + dropout(mlp(norm(x))), (…, c) to (…, c), in one node of the graph.
    pub fn branch(&self, x: &Tensor, norm: Option<&Norm>, dropout: &Dropout, mode: Mode) -> Result<Tensor> {
        let branch = MlpBranch {
            norm: norm.map(Norm::before_branch),
            first: self.first.affine(),
            second: self.second.affine(),
            activation: self.activation,
            hidden_dropout: self.dropout.stream(mode),
            dropout: dropout.stream(mode),
        };
        branch.apply(x)
    }
}

/// Where the norms of a block stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormPlace {
    /// Before attention and MLP, within their residual branches (GPT-2).
    Pre,
    /// Behind the residual sums (the first transformer).
    Post,
}

/// Sizes of a [`TransformerBlock`].
#[derive(Clone, Copy, Debug)]
pub struct BlockConfig {
    /// Its attention.
    pub attention: AttentionConfig,
    /// Its MLP.
    pub mlp: MlpConfig,
    /// Pre- or post-norm.
    pub norm: NormPlace,
    /// Whether the norms have biases.
    pub norm_bias: bool,
    /// Added to the variance in the norms.
    pub eps: f64,
    /// Dropout of both branches, before the residual sums.
    pub dropout: f64,
}

/// Attention and MLP with layer norms and residual sums, named as in `torch.nn.TransformerEncoderLayer`: `self_attn`,
/// `linear1`, `linear2`, `norm1`, `norm2`.
#[derive(Clone, Debug)]
pub struct TransformerBlock {
    place: NormPlace,
    attention: MultiHeadAttention,
    mlp: Mlp,
    norms: [Norm; 2],
    dropouts: [Dropout; 2],
}

impl TransformerBlock {
    /// Defines the parameters.
    ///
    /// # Errors
    /// Attention and MLP of different widths, or heads that do not divide it.
    pub fn new(config: BlockConfig, vb: VarBuilder) -> Result<Self> {
        let BlockConfig { attention, mlp, norm, norm_bias, eps, dropout } = config;
        if attention.width != mlp.width {
            bail!("block: attention is {} wide, the MLP {}", attention.width, mlp.width)
        }
        let made = |i: usize| Norm::layer(mlp.width, eps, norm_bias, vb.pp(format!("norm{i}")));
        let drop = |i: usize| Dropout::new(dropout, &format!("{}.dropout{i}", vb.prefix()));
        Ok(Self {
            place: norm,
            attention: MultiHeadAttention::new(attention, vb.pp("self_attn"))?,
            mlp: Mlp::new(mlp, vb.clone())?,
            norms: [made(1)?, made(2)?],
            dropouts: [drop(1), drop(2)],
        })
    }

    /// (b, t, c) to (b, t, c). Within [`with_recompute`](crate::with_recompute) its activations are not kept.
    pub fn forward(&self, x: &Tensor, mode: Mode) -> Result<Tensor> {
        let block = self.clone();
        recomputed(x, self.parameters(), move |x| block.kept(x, mode))
    }

    fn parameters(&self) -> Vec<Tensor> {
        let norms = self.norms.iter().flat_map(Norm::parameters);
        self.attention.parameters().chain(self.mlp.parameters()).chain(norms).cloned().collect()
    }

    fn kept(&self, x: &Tensor, mode: Mode) -> Result<Tensor> {
        let ([norm1, norm2], [drop1, drop2]) = (&self.norms, &self.dropouts);
        match self.place {
            NormPlace::Pre => {
                let x = self.attention.branch(x, Some(norm1), drop1, mode)?;
                self.mlp.branch(&x, Some(norm2), drop2, mode)
            }
            NormPlace::Post => {
                let x = norm1.forward(&self.attention.branch(x, None, drop1, mode)?)?;
                norm2.forward(&self.mlp.branch(&x, None, drop2, mode)?)
            }
        }
    }

    /// The activations within the MLP when evaluating, (b, t, c) to (b, t, hidden): whether units are dead shows here.
    ///
    /// # Errors
    /// Other shapes.
    pub fn hidden(&self, x: &Tensor) -> Result<Tensor> {
        let ([norm1, norm2], [drop1, _]) = (&self.norms, &self.dropouts);
        match self.place {
            NormPlace::Pre => {
                let x = self.attention.branch(x, Some(norm1), drop1, Mode::Eval)?;
                self.mlp.hidden(&norm2.forward(&x)?)
            }
            NormPlace::Post => {
                self.mlp.hidden(&norm1.forward(&self.attention.branch(x, None, drop1, Mode::Eval)?)?)
            }
        }
    }

    /// Its attention.
    pub fn attention(&self) -> &MultiHeadAttention {
        &self.attention
    }

    /// [`TransformerBlock::forward`] as nodes of a graph; see [`MultiHeadAttention::export`].
    ///
    /// # Errors
    /// As [`MultiHeadAttention::export`].
    pub fn export(
        &self,
        graph: &mut Graph,
        x: &Value,
        places: Option<&Places>,
        past: Option<&Past>,
    ) -> Result<(Value, Past)> {
        let [norm1, norm2] = &self.norms;
        match self.place {
            NormPlace::Pre => {
                let z = norm1.export(graph, x)?;
                let (y, now) = self.attention.export(graph, &z, places, past)?;
                let x = graph.add(x, &y);
                let z = norm2.export(graph, &x)?;
                let y = self.mlp.export(graph, &z)?;
                Ok((graph.add(&x, &y), now))
            }
            NormPlace::Post => {
                let (y, now) = self.attention.export(graph, x, places, past)?;
                let sum = graph.add(x, &y);
                let x = norm1.export(graph, &sum)?;
                let y = self.mlp.export(graph, &x)?;
                let sum = graph.add(&x, &y);
                Ok((norm2.export(graph, &sum)?, now))
            }
        }
    }

    /// [`TransformerBlock::forward`] for new positions `x` (1, n, c) of several texts, when evaluating; see [`MultiHeadAttention::forward_cached`].
    ///
    /// # Errors
    /// As [`MultiHeadAttention::forward_cached`].
    pub fn forward_cached(&self, x: &Tensor, texts: &mut [(usize, &mut KvCache)]) -> Result<Tensor> {
        let ([norm1, norm2], [_, drop2]) = (&self.norms, &self.dropouts);
        match self.place {
            NormPlace::Pre => {
                let x = (x + self.attention.forward_cached(&norm1.forward(x)?, texts)?)?;
                self.mlp.branch(&x, Some(norm2), drop2, Mode::Eval)
            }
            NormPlace::Post => {
                let x = norm1.forward(&(x + self.attention.forward_cached(x, texts)?)?)?;
                norm2.forward(&self.mlp.branch(&x, None, drop2, Mode::Eval)?)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::{Params, Qkv};
    use zoo_kernels::check::random;

    fn config(norm: NormPlace, qkv: Qkv, bias: bool, dropout: f64) -> BlockConfig {
        let init = [init::normal(0., 0.3); 2];
        let attention = AttentionConfig { width: 12, heads: 3, qkv, bias, causal: true, dropout, init };
        let mlp = MlpConfig { width: 12, hidden: 20, bias, activation: Activation::Gelu, dropout, init };
        BlockConfig { attention, mlp, norm, norm_bias: bias, eps: 1e-5, dropout }
    }

    #[test]
    fn a_block_is_what_its_parts_make_and_a_cache_changes_nothing() -> Result<()> {
        for norm in [NormPlace::Pre, NormPlace::Post] {
            for (qkv, bias) in [(Qkv::Packed, true), (Qkv::Separate, true), (Qkv::Packed, false)] {
                let params = Params::init(1, &Device::Cpu);
                let block = TransformerBlock::new(config(norm, qkv, bias, 0.), params.builder())?;
                let x = random(1, &[2, 7, 12])?;
                let [norm1, norm2] = &block.norms;
                let attention = |x: &Tensor| block.attention.forward(x, None, Mode::Eval);
                let mlp = |x: &Tensor| block.mlp.forward(x, Mode::Eval);
                let by_hand = match norm {
                    NormPlace::Pre => {
                        let x = (&x + attention(&norm1.forward(&x)?)?)?;
                        (&x + mlp(&norm2.forward(&x)?)?)?
                    }
                    NormPlace::Post => {
                        let x = norm1.forward(&(&x + attention(&x)?)?)?;
                        norm2.forward(&(&x + mlp(&x)?)?)?
                    }
                };
                let same = |a: &Tensor, b: &Tensor| (a - b)?.abs()?.max_all()?.to_scalar::<f32>();
                let whole = block.forward(&x, Mode::Eval)?;
                assert!(same(&whole, &by_hand)? < 2e-6, "{norm:?} {qkv:?}");
                // Two texts at once, each in pieces of its own.
                let [mut a, mut b] = [KvCache::new(7), KvCache::new(7)];
                for pieces in [[(0, 3), (0, 1)], [(3, 1), (1, 4)], [(4, 3), (5, 2)]] {
                    let of = |all: &Tensor| {
                        let own = |(i, (first, n))| all.narrow(0, i, 1)?.narrow(1, first, n);
                        Tensor::cat(&pieces.into_iter().enumerate().map(own).collect::<Result<Vec<_>>>()?, 1)
                    };
                    let y = block.forward_cached(&of(&x)?, &mut [(pieces[0].1, &mut a), (pieces[1].1, &mut b)])?;
                    assert!(same(&y, &of(&whole)?)? < 2e-6, "{norm:?} {qkv:?}");
                }
                let one = x.narrow(0, 0, 1)?;
                let full = block.forward_cached(&one.narrow(1, 0, 1)?, &mut [(1, &mut a)]).unwrap_err();
                assert!(full.to_string().contains("room for 7 positions"), "{full}");
                let mut new = KvCache::new(7);
                assert!(block.forward_cached(&one, &mut [(6, &mut new)]).is_err() && new.is_empty());
            }
        }
        Ok(())
    }

    #[test]
    fn with_dropout_every_parameter_gets_a_gradient_and_a_seed_decides_the_masks() -> Result<()> {
        for norm in [NormPlace::Pre, NormPlace::Post] {
            let params = Params::init(1, &Device::Cpu);
            let block = TransformerBlock::new(config(norm, Qkv::Separate, true, 0.3), params.builder())?;
            let x = random(1, &[2, 7, 12])?;
            let of = |seed, step| block.forward(&x, Mode::Train { seed, step })?.flatten_all()?.to_vec1::<f32>();
            assert_eq!(of(1, 2)?, of(1, 2)?);
            assert!(of(1, 2)? != of(1, 3)? && of(1, 2)? != of(2, 2)?);
            let y = block.forward(&x, Mode::Train { seed: 1, step: 0 })?;
            // Not the plain sum, which a last norm makes constant.
            let loss = (y * random(2, &[2, 7, 12])?)?.sum_all()?;
            assert!(params.gradients(&loss.backward()?).missing().is_empty(), "{norm:?}");
        }
        Ok(())
    }
}
