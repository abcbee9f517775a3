//! Every op, and every optimizer, on small odd shapes: kernels beside plain operations, forward and backward. Small enough for an interpreter
//! that looks at every access to memory (`tests/memory.sh`).

use candle_core::{DType, Device, Result, Tensor, Var};
use zoo_kernels::cpu::simd::{levels, with_fused, with_level};
use zoo_layers::ops::{
    Activation, Affine, AttentionBranch, AttentionOptions, Bits, CrossEntropyOptions, LstmState, LstmWeights,
    MlpBranch, NormKind, PreNorm, Projection, Quantized, RopePairs, add_dropout, attention, backward, cross_entropy,
    dropout, embedding_with_positions, gated, huber, layer_norm, linear, log_softmax, lstm, mae, mse, pool,
    quantized_linear, rms_norm, rope, rope_angles, rope_heads, sequence_loss, softmax,
};
use zoo_layers::optim::{Moments, Optimizer, Rule, average, decay_matrices, global_norm};
use zoo_layers::random::{Purpose, Stream};
use zoo_layers::{Gradients, Linear, Params, statistics};

const CPU: Device = Device::Cpu;

fn numbers(seed: u64, shape: &[usize]) -> Result<Var> {
    let mut stream = Stream::new(seed, Purpose::Simulation, 0, 0);
    let values: Vec<f32> = (0..shape.iter().product()).map(|_| stream.normal() as f32).collect();
    Var::from_tensor(&Tensor::from_vec(values, shape, &CPU)?)
}

fn drop() -> (f64, Stream) {
    (0.3, Stream::new(5, Purpose::Dropout, 1, 2))
}

/// The results of `op` and its gradients, of a weighted sum, flat.
fn outcome(inputs: &[Var], op: &dyn Fn(&[Var]) -> Result<Vec<Tensor>>) -> Result<Vec<f32>> {
    let outputs = op(inputs)?;
    let mut all = vec![];
    let mut loss = Tensor::zeros((), DType::F32, &CPU)?;
    for (i, output) in outputs.iter().enumerate() {
        let weights = numbers(90 + i as u64, output.dims())?;
        loss = (loss + (output * weights.as_tensor())?.sum_all()?)?;
        all.extend(output.flatten_all()?.to_vec1::<f32>()?);
    }
    let grads = backward(&loss)?;
    for input in inputs {
        let grad = grads.get(input).ok_or_else(|| candle_core::Error::msg("no gradient"))?;
        all.extend(grad.flatten_all()?.to_vec1::<f32>()?);
    }
    Ok(all)
}

/// Kernels at every level beside plain operations.
fn same(name: &str, shapes: &[&[usize]], op: &dyn Fn(&[Var]) -> Result<Vec<Tensor>>) -> Result<()> {
    let inputs = shapes.iter().zip(1..).map(|(shape, seed)| numbers(seed, shape)).collect::<Result<Vec<_>>>()?;
    let expected = with_fused(false, || outcome(&inputs, op))?;
    for level in levels() {
        let found = with_level(level, || outcome(&inputs, op))?;
        assert_eq!(found.len(), expected.len(), "{name}");
        for (at, (a, b)) in found.iter().zip(&expected).enumerate() {
            assert!((a - b).abs() <= 2e-4 * (1. + b.abs()), "{name} {level:?}: {at}: {a}, {b}");
        }
    }
    Ok(())
}

fn affine<'a>(v: &'a [Var], weight: usize, bias: usize) -> Affine<'a> {
    Affine { weight: &v[weight], bias: Some(&v[bias]) }
}

fn norm<'a>(v: &'a [Var], weight: usize, bias: usize) -> Option<PreNorm<'a>> {
    Some(PreNorm { kind: NormKind::Layer, eps: 1e-5, weight: Some(&v[weight]), bias: Some(&v[bias]) })
}

#[test]
fn elementwise_ops_products_and_norms() -> Result<()> {
    for f in [Activation::Relu, Activation::Gelu, Activation::GeluTanh, Activation::Silu, Activation::Elu(0.7)] {
        same("activation", &[&[3, 5]], &|v| Ok(vec![f.apply(&v[0])?]))?;
        same("linear", &[&[3, 5], &[7, 5], &[7]], &|v| Ok(vec![linear(&v[0], &v[1], Some(&v[2]), f)?]))?;
    }
    same("gated", &[&[3, 5], &[3, 5]], &|v| Ok(vec![gated(&v[0], &v[1], Activation::Silu)?]))?;
    same("large linear", &[&[70, 9], &[6, 9]], &|v| Ok(vec![linear(&v[0], &v[1], None, Activation::Identity)?]))?;
    same("linear of one row", &[&[1, 70], &[6, 70]], &|v| Ok(vec![linear(&v[0], &v[1], None, Activation::Identity)?]))?;
    for bits in [Bits::Four, Bits::Eight] {
        let codes: Vec<i8> = (0..7 * 64).map(|e| (e % 16) as i8 - 8).collect();
        let scales: Vec<f32> = (0..codes.len() / bits.group()).map(|g| 0.01 * g as f32 - 0.1).collect();
        let weight = Quantized::new(bits, [7, 64], &codes, &scales, &scales)?;
        for rows in [1, 6, 33] {
            same("quantized linear", &[&[rows, 64]], &|v| Ok(vec![quantized_linear(&v[0], &weight)?]))?;
        }
    }
    same("layer norm", &[&[3, 9], &[9], &[9]], &|v| Ok(vec![layer_norm(&v[0], Some(&v[1]), Some(&v[2]), 1e-5)?]))?;
    same("rms norm", &[&[3, 9], &[9]], &|v| Ok(vec![rms_norm(&v[0], Some(&v[1]), 1e-5)?]))?;
    same("softmax", &[&[3, 9]], &|v| Ok(vec![softmax(&v[0])?]))?;
    same("log softmax", &[&[3, 9]], &|v| Ok(vec![log_softmax(&v[0])?]))?;
    same("dropout", &[&[7, 19]], &|v| Ok(vec![dropout(&v[0], 0.3, drop().1)?]))?;
    same("add dropout", &[&[3, 9], &[3, 9]], &|v| Ok(vec![add_dropout(&v[0], &v[1], Some(drop()))?]))?;
    same("pool", &[&[2, 3, 5], &[3]], &|v| Ok(vec![pool(&v[0], &v[1])?]))?;
    for pairs in [RopePairs::Neighbours, RopePairs::Halves] {
        let (cos, sin) = rope_angles(1, 3, 6, 1e4, &CPU)?;
        same("rope", &[&[2, 3, 6]], &|v| Ok(vec![rope(&v[0], &cos, &sin, pairs)?]))?;
        same("rope of heads", &[&[2, 3, 12]], &|v| Ok(vec![rope_heads(&v[0], 2, &cos, &sin, pairs)?]))?;
    }
    Ok(())
}

#[test]
fn losses_and_embeddings() -> Result<()> {
    let ids = Tensor::new(&[[0i64, 4, 2], [2, 2, 1]], &CPU)?;
    same("embedding", &[&[5, 7], &[6, 7]], &|v| {
        Ok(vec![embedding_with_positions(&ids, &v[0], &v[1], 2, Some(drop()))?])
    })?;
    let targets = Tensor::new(&[1i64, -1, 4], &CPU)?;
    let options = CrossEntropyOptions { label_smoothing: 0.1, ignore_index: Some(-1) };
    same("cross-entropy", &[&[3, 5]], &|v| Ok(vec![cross_entropy(&v[0], &targets, options)?]))?;
    same("mse", &[&[3, 5], &[3, 5]], &|v| Ok(vec![mse(&v[0], &v[1])?]))?;
    same("mae", &[&[3, 5], &[3, 5]], &|v| Ok(vec![mae(&v[0], &v[1])?]))?;
    same("huber", &[&[3, 5], &[3, 5]], &|v| Ok(vec![huber(&v[0], &v[1], 0.8)?]))?;
    same("sequence loss", &[&[2, 4, 5], &[2, 4, 5]], &|v| {
        let (total, parts) = sequence_loss(&v[0], &v[1], [1., 0.1, 0.2])?;
        Ok(vec![total, parts])
    })
}

#[test]
fn attention_branches_and_lstm() -> Result<()> {
    for causal in [false, true] {
        let options = || AttentionOptions { causal, scale: None, dropout: Some(drop()) };
        same("attention", &[&[2, 3, 8], &[2, 5, 8], &[2, 5, 8]], &|v| {
            Ok(vec![attention(&v[0], &v[1], &v[2], 2, None, options())?])
        })?;
        same("grouped attention", &[&[2, 3, 8], &[2, 5, 4], &[2, 5, 4]], &|v| {
            Ok(vec![attention(&v[0], &v[1], &v[2], 4, None, options())?])
        })?;
        same("branch", &[&[2, 3, 8], &[24, 8], &[24], &[8, 8], &[8], &[8], &[8]], &|v| {
            let branch = AttentionBranch {
                norm: norm(v, 5, 6),
                input: Projection::Packed(affine(v, 1, 2)),
                output: affine(v, 3, 4),
                heads: 2,
                causal,
                attention_dropout: Some(drop()),
                dropout: Some(drop()),
            };
            Ok(vec![branch.apply(&v[0])?])
        })?;
    }
    same("mlp", &[&[2, 3, 8], &[12, 8], &[12], &[8, 12], &[8], &[8], &[8]], &|v| {
        let branch = MlpBranch {
            norm: norm(v, 5, 6),
            first: affine(v, 1, 2),
            second: affine(v, 3, 4),
            activation: Activation::Gelu,
            hidden_dropout: Some(drop()),
            dropout: Some(drop()),
        };
        Ok(vec![branch.apply(&v[0])?])
    })?;
    same("lstm", &[&[2, 3, 4], &[20, 4], &[20, 5], &[20], &[20], &[2, 5], &[2, 5]], &|v| {
        let of = |i: usize| v[i].as_tensor().clone();
        let weights = LstmWeights { weight_ih: of(1), weight_hh: of(2), bias_ih: of(3), bias_hh: of(4) };
        let (y, state) = lstm(&v[0], &weights, Some(&LstmState { h: of(5), c: of(6) }), Some(drop()), true)?;
        Ok(y.into_iter().chain([state.h, state.c]).collect())
    })
}

#[test]
fn optimizers_and_statistics() -> Result<()> {
    let moments = Moments::default();
    for rule in [
        Rule::AdamW(moments),
        Rule::Adam(moments),
        Rule::Sgd { momentum: 0.9, nesterov: true },
        Rule::RmsProp { alpha: 0.9, eps: 1e-6, momentum: 0.5 },
        Rule::Muon { momentum: 0.9 },
    ] {
        let moved = |fused: bool| -> Result<Vec<f32>> {
            let params = Params::init(3, &CPU);
            let no_bias = matches!(rule, Rule::Muon { .. });
            Linear::new(5, 3, params.builder())?;
            let groups = |p: &zoo_layers::Param| zoo_layers::optim::Group {
                rule: (no_bias && p.var.rank() != 2).then_some(Rule::AdamW(moments)),
                ..decay_matrices(0.1)(p)
            };
            let mut optimizer = Optimizer::new(rule, &params, groups)?;
            for step in 0..3 {
                let grads = params.trainable().into_iter().zip(10..).map(|(p, seed)| {
                    Ok((p.name.clone(), Some(numbers(seed + 10 * step, p.var.dims())?.as_tensor().clone())))
                });
                let grads = Gradients::new(grads.collect::<Result<_>>()?);
                assert!(global_norm(&grads)? > 0.);
                with_fused(fused, || optimizer.step(&grads, 1e-2, 0.5))?;
            }
            let (all, copy) = (params.all(), Params::init(4, &CPU));
            Linear::new(5, 3, copy.builder())?;
            average(&copy, &params, 0.9)?;
            let values = all
                .iter()
                .chain(&copy.all())
                .map(|p| p.var.flatten_all()?.to_vec1::<f32>())
                .collect::<Result<Vec<_>>>()?;
            Ok(values.concat())
        };
        let (fused, plain) = (moved(true)?, moved(false)?);
        assert!(fused.iter().zip(&plain).all(|(a, b)| (a - b).abs() < 1e-4), "{rule:?}");
    }
    let x = numbers(1, &[4, 9])?;
    assert_eq!(statistics::rows(&x, None, 9, 0.1)?.len(), 4);
    Ok(())
}
