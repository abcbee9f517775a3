//! A GPT of 21 tensors, and which of them go dark when one of its ops is swapped for a twin that cuts the graph.
//!
//! The story of a hand-made framework, in which 0, then 13, then 17, then all 21 tensors got a gradient as its ops learned
//! to pass gradients on, told with ops that candle 0.11 ships.

use std::collections::BTreeMap;

use candle_core::{D, Device, Result, Tensor, Var};
use candle_nn::attention::{AttnMask, flash_attn};
use candle_nn::ops::softmax_last_dim;
use zoo_char_gpt::{CharGpt, Config};
use zoo_layers::ops::{self, Activation, AttentionOptions, CrossEntropyOptions};
use zoo_layers::{Mode, Params};

/// What is swapped for candle's op.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cut {
    Nothing,
    /// The softmax of the loss.
    Loss,
    FinalNorm,
    Norm1,
    Norm2,
    /// The whole of attention.
    Attention,
    /// The softmax within attention.
    Weights,
}

struct Gpt {
    params: BTreeMap<String, Var>,
    cut: Cut,
}

impl Gpt {
    fn get(&self, name: &str) -> &Tensor {
        self.params[name].as_tensor()
    }

    fn linear(&self, x: &Tensor, name: &str, activation: Activation) -> Result<Tensor> {
        let (weight, bias) = (self.get(&format!("{name}.weight")), self.get(&format!("{name}.bias")));
        ops::linear(x, weight, Some(bias), activation)
    }

    fn norm(&self, x: &Tensor, name: &str, cut: Cut) -> Result<Tensor> {
        let (weight, bias) = (self.get(&format!("{name}.weight")), self.get(&format!("{name}.bias")));
        match self.cut == cut {
            true => candle_nn::ops::layer_norm(x, weight, bias, 1e-5),
            false => ops::layer_norm(x, Some(weight), Some(bias), 1e-5),
        }
    }

    fn attention(&self, x: &Tensor) -> Result<Tensor> {
        const HEADS: usize = 4;
        let (b, t, c) = x.dims3()?;
        let of = |name: &str| self.linear(x, &format!("blocks.0.self_attn.{name}"), Activation::Identity);
        let [q, k, v] = [of("q_proj")?, of("k_proj")?, of("v_proj")?];
        let split = |x: &Tensor| x.reshape((b, t, HEADS, c / HEADS));
        let y = match self.cut {
            Cut::Attention => {
                let scale = 1. / ((c / HEADS) as f32).sqrt();
                let y =
                    flash_attn::<f32>(&split(&q)?, &split(&k)?, &split(&v)?, scale, AttnMask::causal(), None, None)?;
                y.transpose(1, 2)?.reshape((b, t, c))?
            }
            Cut::Weights => {
                let heads_first = |x: &Tensor| split(x)?.transpose(1, 2)?.contiguous();
                let scores = heads_first(&q)?.matmul(&heads_first(&k)?.t()?.contiguous()?)?;
                let unseen = |e: usize| if e % t > e / t { f32::NEG_INFINITY } else { 0. };
                let mask = Tensor::from_vec((0..t * t).map(unseen).collect::<Vec<_>>(), (t, t), &Device::Cpu)?;
                let scores = (scores / ((c / HEADS) as f64).sqrt())?.broadcast_add(&mask)?;
                softmax_last_dim(&scores)?.matmul(&heads_first(&v)?)?.transpose(1, 2)?.reshape((b, t, c))?
            }
            _ => ops::attention(&q, &k, &v, HEADS, None, AttentionOptions { causal: true, ..Default::default() })?,
        };
        self.linear(&y, "blocks.0.self_attn.out_proj", Activation::Identity)
    }

    fn forward(&self, ids: &Tensor) -> Result<Tensor> {
        let positions = self.get("position_embedding.weight");
        let x = ops::embedding_with_positions(ids, self.get("token_embedding.weight"), positions, 0, None)?;
        let x = (&x + self.attention(&self.norm(&x, "blocks.0.norm1", Cut::Norm1)?)?)?;
        let h = self.linear(&self.norm(&x, "blocks.0.norm2", Cut::Norm2)?, "blocks.0.linear1", Activation::Gelu)?;
        let x = (x + self.linear(&h, "blocks.0.linear2", Activation::Identity)?)?;
        ops::linear(&self.norm(&x, "norm", Cut::FinalNorm)?, self.get("head.weight"), None, Activation::Identity)
    }

    fn loss(&self, ids: &Tensor, targets: &Tensor) -> Result<Tensor> {
        let logits = self.forward(ids)?;
        match self.cut {
            Cut::Loss => {
                softmax_last_dim(&logits)?.log()?.gather(&targets.unsqueeze(D::Minus1)?, D::Minus1)?.mean_all()
            }
            _ => ops::cross_entropy(&logits, targets, CrossEntropyOptions::default()),
        }
    }
}

fn batch() -> Result<(Tensor, Tensor)> {
    let ids = |shift: i64| (0..2 * 64).map(|i: i64| (i * 7 + shift) % 65).collect::<Vec<_>>();
    let of = |shift| Tensor::from_vec(ids(shift), (2, 64), &Device::Cpu);
    Ok((of(0)?, of(7)?))
}

/// Names of the tensors that get no gradient, in definition order.
fn dark(cut: Cut) -> Result<Vec<String>> {
    let params = Params::init(1, &Device::Cpu);
    CharGpt::new(&Config::seed(), params.builder())?;
    let by_name = params.all().into_iter().map(|p| (p.name, p.var)).collect();
    let (ids, targets) = batch()?;
    let loss = Gpt { params: by_name, cut }.loss(&ids, &targets)?;
    let grads = params.gradients(&loss.backward()?);
    assert_eq!(grads.len(), 21);
    Ok(grads.iter().filter(|(_, g)| g.is_none()).map(|(name, _)| name.to_string()).collect())
}

#[test]
fn zero_then_thirteen_then_seventeen_then_all_twenty_one_tensors_get_gradients() -> Result<()> {
    let lit = |cut| Ok::<_, candle_core::Error>(21 - dark(cut)?.len());
    assert_eq!(lit(Cut::Loss)?, 0, "candle's softmax in the loss");
    assert_eq!(lit(Cut::Attention)?, 13, "then candle's attention");
    assert_eq!(lit(Cut::Weights)?, 17, "then attention by hand, with candle's softmax");
    assert_eq!(lit(Cut::Nothing)?, 21);
    Ok(())
}

#[test]
fn each_swapped_op_darkens_what_lies_upstream_of_it_alone() -> Result<()> {
    let with = |names: &[&str]| -> Vec<String> {
        names.iter().flat_map(|n| [format!("blocks.0.{n}.weight"), format!("blocks.0.{n}.bias")]).collect()
    };
    let upstream = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "norm1"];
    assert_eq!(dark(Cut::Attention)?, with(&upstream));
    // Values pass their gradient on, and norm1 gets one through them.
    assert_eq!(dark(Cut::Weights)?, with(&["self_attn.q_proj", "self_attn.k_proj"]));
    // The residual sum carries gradients past a norm: only its own parameters go dark.
    assert_eq!(dark(Cut::Norm1)?, with(&["norm1"]));
    assert_eq!(dark(Cut::Norm2)?, with(&["norm2"]));
    // Nothing leads past the last one.
    let final_norm = dark(Cut::FinalNorm)?;
    assert!(final_norm.len() == 20 && !final_norm.contains(&"head.weight".to_string()));
    Ok(())
}

#[test]
fn the_model_put_together_by_hand_is_the_model() -> Result<()> {
    let params = Params::init(1, &Device::Cpu);
    let model = CharGpt::new(&Config::seed(), params.builder())?;
    let by_name = params.all().into_iter().map(|p| (p.name, p.var)).collect();
    let by_hand = Gpt { params: by_name, cut: Cut::Nothing };
    let (ids, _) = batch()?;
    let error = (model.forward(&ids, Mode::Eval)? - by_hand.forward(&ids)?)?.abs()?.max_all()?.to_scalar::<f32>()?;
    assert!(error < 1e-5, "{error}");
    Ok(())
}
