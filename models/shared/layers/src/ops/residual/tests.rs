use candle_core::{Result, Tensor};
use zoo_kernels::check::random;
use zoo_kernels_emulator::check;

use super::attention::SelfAttention;
use super::mlp::Mlp;
use super::*;
use crate::ops::activation::Activation;
use crate::ops::{LoraOf, Map, MapWeight, rope_angles};
use crate::random::Purpose;

fn drop_if(yes: bool, layer: u64) -> Result<Option<Dropout>> {
    Dropout::of(yes.then(|| (0.3, Stream::new(1, Purpose::Dropout, layer, 3))))
}

/// Inputs by their shapes, with where they are.
struct Made {
    tensors: Vec<Tensor>,
}

impl Made {
    fn push(&mut self, dims: &[usize]) -> Result<usize> {
        // Of the size that trained weights have.
        let scale = 1. / (dims[dims.len() - 1] as f64).sqrt();
        self.tensors.push((random(self.tensors.len() as u64, dims)? * scale)?);
        Ok(self.tensors.len() - 1)
    }

    fn affine(&mut self, out: usize, c: usize, bias: bool) -> Result<AffineAt> {
        Ok(AffineAt { weight: self.push(&[out, c])?, bias: if bias { Some(self.push(&[out])?) } else { None } })
    }

    fn norm(&mut self, kind: Option<NormKind>, bias: bool, c: usize) -> Result<Option<NormAt>> {
        let Some(kind) = kind else { return Ok(None) };
        let op = Norm { kind, eps: 1e-5, affine: [true, bias] };
        Ok(Some(NormAt { op, weight: Some(self.push(&[c])?), bias: if bias { Some(self.push(&[c])?) } else { None } }))
    }
}

const NORMS: [Option<NormKind>; 3] = [Some(NormKind::Layer), Some(NormKind::Rms), None];

#[test]
fn the_mlp_branch_agrees_with_its_reference() -> Result<()> {
    for (dims, hidden) in [(&[1, 5][..], 3), (&[2, 3, 16], 33), (&[65, 8], 17), (&[0, 4], 3)] {
        let c = dims[dims.len() - 1];
        for norm in NORMS {
            for (bias, drop) in [(true, false), (false, true), (true, true)] {
                let activation = if bias { Activation::Gelu } else { Activation::Identity };
                let mut made = Made { tensors: vec![random(100, dims)?] };
                let op = Mlp {
                    norm: made.norm(norm, bias, c)?,
                    first: made.affine(hidden, c, bias)?,
                    second: made.affine(c, hidden, bias)?,
                    activation,
                    hidden: drop_if(drop, 1)?,
                    dropout: drop_if(drop, 2)?,
                };
                let wants = vec![true; made.tensors.len()];
                check(&op, &made.tensors, &wants)?;
            }
        }
    }
    Ok(())
}

#[test]
fn the_attention_branch_agrees_with_its_reference() -> Result<()> {
    for (b, t, heads, d) in [(1, 1, 1, 2), (2, 5, 3, 4), (1, 70, 2, 8), (3, 33, 1, 16), (0, 2, 1, 2)] {
        let c = heads * d;
        for norm in NORMS {
            for (packed, bias, drop, causal) in
                [(true, true, true, true), (false, true, false, true), (false, false, true, false)]
            {
                let mut made = Made { tensors: vec![random(100, &[b, t, c])?] };
                let norm = made.norm(norm, bias, c)?;
                let input = match packed {
                    true => vec![made.affine(3 * c, c, bias)?],
                    false => (0..3).map(|_| made.affine(c, c, bias)).collect::<Result<_>>()?,
                };
                let output = made.affine(c, c, bias)?;
                let op = SelfAttention {
                    norm,
                    input: input.clone(),
                    output,
                    heads,
                    causal,
                    weights: drop_if(drop, 1)?,
                    dropout: drop_if(drop, 2)?,
                };
                let mut wants = vec![true; made.tensors.len()];
                if let [_, key, _] = input.as_slice() {
                    // The key bias has no gradient but for rounding: it moves all scores of a row by as much.
                    key.bias.into_iter().for_each(|i| wants[i] = false);
                    if t == 1 {
                        // Nor have queries and keys where there is one key.
                        input[..2].iter().for_each(|a| wants[a.weight] = false);
                        input[0].bias.into_iter().for_each(|i| wants[i] = false);
                    }
                }
                check(&op, &made.tensors, &wants)?;
            }
        }
    }
    Ok(())
}

#[test]
fn the_residual_sum_agrees_with_its_reference() -> Result<()> {
    for dims in [&[1][..], &[3, 7], &[2, 5, 33], &[0, 3], &[2, 9000]] {
        for drop in [false, true] {
            let dropout = drop_if(drop, 1)?;
            let whole = AddDropout { dropout: dropout.clone(), shared: false };
            check(&whole, &[random(1, dims)?, random(2, dims)?], &[true; 2])?;
            let shared = AddDropout { dropout, shared: true };
            let several = [&[3, 2], dims].concat();
            check(&shared, &[random(1, dims)?, random(2, &several)?], &[true; 2])?;
            check(&shared, &[random(1, dims)?, random(2, &several)?], &[false, true])?;
        }
    }
    let x = random(1, &[2])?;
    assert!(add_dropout(&x, &random(1, &[3])?, None).is_err());
    for p in [-0.1, 1., f64::NAN] {
        let stream = Stream::new(1, Purpose::Dropout, 0, 0);
        assert!(add_dropout(&x, &x, Some((p, stream))).is_err(), "{p}");
    }
    Ok(())
}

/// A map of a branch, with what is drawn for it.
struct Drawn {
    weight: Tensor,
    lora: Option<[Tensor; 2]>,
}

impl Drawn {
    fn new(seed: u64, [n, k]: [usize; 2], lora: bool) -> Result<Self> {
        let draw = |seed: u64, dims: &[usize]| random(seed, dims)? / (dims[1] as f64).sqrt();
        let lora = if lora { Some([draw(seed + 1, &[3, k])?, draw(seed + 2, &[n, 3])?]) } else { None };
        Ok(Self { weight: draw(seed, &[n, k])?, lora })
    }

    fn map(&self, dropout: bool) -> Map<'_> {
        let dropout = dropout.then(|| (0.3, Stream::new(1, Purpose::Dropout, 9, 3)));
        let lora = self.lora.as_ref().map(|[a, b]| LoraOf { a, b, scale: 0.7, dropout });
        Map { weight: MapWeight::Plain(&self.weight), lora }
    }
}

/// Which of an op's inputs want a gradient, of a model that is trained whole, or of LoRA alone: those of three features.
fn wanted(inputs: &[&Tensor], lora: bool) -> Vec<bool> {
    let of = |t: &&Tensor| !lora || t.dims().first() == Some(&3) || t.dims().last() == Some(&3);
    inputs.iter().enumerate().map(|(i, t)| i == 0 || of(t)).collect()
}

#[test]
fn the_gated_branch_agrees_with_its_reference() -> Result<()> {
    for (dims, hidden) in [(&[1, 5][..], 4), (&[2, 4, 16], 33), (&[65, 8], 17), (&[0, 4], 5)] {
        let c = dims[dims.len() - 1];
        let (x, w) = (random(100, dims)?, (random(1, &[c])? + 1.)?);
        for lora in [[false; 3], [true, false, true], [true; 3]] {
            let sizes = [[hidden, c], [hidden, c], [c, hidden]];
            let maps = [0, 1, 2].map(|i| Drawn::new(10 * i as u64 + 3, sizes[i], lora[i]));
            let [gate, up, down] = maps;
            let (gate, up, down) = (gate?, up?, down?);
            let norm = PreNorm { kind: NormKind::Rms, eps: 1e-5, weight: Some(&w), bias: None };
            let branch = GatedBranch {
                norm,
                gate: gate.map(true),
                up: up.map(false),
                down: down.map(true),
                activation: Activation::Silu,
            };
            let (op, inputs) = branch.of(&x)?;
            let all: Vec<Tensor> = inputs.iter().map(|t| (*t).clone()).collect();
            check(&op, &all, &vec![true; all.len()])?;
            if lora[0] {
                check(&op, &all, &wanted(&inputs, true))?;
            }
        }
    }
    Ok(())
}

#[test]
fn the_grouped_branch_agrees_with_its_reference() -> Result<()> {
    for (b, t, heads, key_heads, d) in
        [(1, 6, 1, 1, 2), (2, 5, 4, 2, 4), (1, 70, 2, 1, 8), (2, 33, 3, 3, 2), (0, 4, 1, 1, 2)]
    {
        let (c, all, few) = (5, heads * d, key_heads * d);
        let (x, w) = (random(100, &[b, t, c])?, (random(1, &[c])? + 1.)?);
        let (cos, sin) = rope_angles(0, t, d, 100., &candle_core::Device::Cpu)?;
        let far = (random(7, &[b.max(1), 1, t, t])? * 2.)?;
        for (lora, masked) in [([false; 4], false), ([true, false, true, false], true), ([true; 4], false)] {
            let sizes = [[all, c], [few, c], [few, c], [c, all]];
            let maps = [0, 1, 2, 3].map(|i| Drawn::new(10 * i as u64 + 3, sizes[i], lora[i]));
            let [q, k, v, o] = maps;
            let (q, k, v, o) = (q?, k?, v?, o?);
            let branch = GroupedBranch {
                norm: PreNorm { kind: NormKind::Rms, eps: 1e-5, weight: Some(&w), bias: None },
                input: [q.map(true), k.map(false), v.map(true)],
                output: o.map(false),
                heads,
                key_heads,
                angles: [&cos, &sin],
                mask: (masked && b > 0).then_some(&far),
            };
            let (op, inputs) = branch.of(&x)?;
            let all: Vec<Tensor> = inputs.iter().map(|t| (*t).clone()).collect();
            let constant = |t: &&Tensor| [&cos, &sin, &far].iter().any(|c| c.id() == t.id());
            let differ =
                |wants: Vec<bool>| wants.iter().zip(&inputs).map(|(w, t)| *w && !constant(t)).collect::<Vec<_>>();
            check(&op, &all, &differ(vec![true; all.len()]))?;
            if lora[0] {
                check(&op, &all, &differ(wanted(&inputs, true)))?;
                let mut without_x = differ(wanted(&inputs, true));
                without_x[0] = false;
                check(&op, &all, &without_x)?;
            }
        }
    }
    Ok(())
}
