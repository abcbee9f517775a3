use candle_core::{Result, Tensor};
use zoo_kernels::check::random;
use zoo_kernels_emulator::check;

use super::attention::SelfAttention;
use super::mlp::Mlp;
use super::*;
use crate::ops::activation::Activation;
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
