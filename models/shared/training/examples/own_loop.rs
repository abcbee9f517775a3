//! The classifier of `classifier.rs` in a loop of one's own: our parameters, optimizer, clipping, learning rates and health
//! monitor, and nothing else.
//!
//! Run it with `cargo run --release -p zoo-training --example own_loop`.

use std::collections::BTreeMap;

use candle_core::{Device, Result, Tensor};
use zoo_layers::ops::{self, backward};
use zoo_layers::optim::{Moments, Optimizer, Rule, clip_factor, decay_matrices, global_norm};
use zoo_layers::{Linear, Params};
use zoo_training::Batches;
use zoo_training::health::{Monitor, Probe, ProbeKind, Profile, Watched};

const STEPS: u64 = 600;

fn main() -> Result<()> {
    let device = Device::Cpu;
    let rows: Vec<(Vec<f32>, i64)> = (0..500).map(spiral).collect();
    let batch = |indices: &[usize]| -> Result<(Tensor, Tensor)> {
        let x: Vec<f32> = indices.iter().flat_map(|i| rows[*i].0.clone()).collect();
        let y: Vec<i64> = indices.iter().map(|i| rows[*i].1).collect();
        Ok((Tensor::from_vec(x, (indices.len(), 2), &device)?, Tensor::new(y, &device)?))
    };

    // Parameters have names and an order, and their initial values are drawn from a seed.
    let params = Params::init(1, &device);
    let vb = params.builder();
    let (first, second) = (Linear::new(2, 64, vb.pp("first"))?, Linear::new(64, 2, vb.pp("second"))?);
    let mut optimizer = Optimizer::new(Rule::AdamW(Moments::default()), &params, decay_matrices(0.01))?;
    let mut batches = Batches::new(rows.len(), 32, 1);
    let mut monitor = Monitor::new(Profile::default(), serde_json::Value::Null, vec![]);

    for step in 0..STEPS {
        let (x, y) = batch(batches.at(step))?;
        let hidden = first.forward(&x)?;
        let loss = ops::cross_entropy(&second.forward(&hidden.gelu_erf()?)?, &y, Default::default())?;
        let grads = params.gradients(&backward(&loss)?);
        let lr = 1e-2 * (1. - step as f64 / STEPS as f64);
        let before: Vec<Tensor> = params.trainable().iter().map(|p| p.var.copy()).collect::<Result<_>>()?;
        optimizer.step(&grads, lr, clip_factor(global_norm(&grads)?, 1.))?;
        if step % 100 == 0 {
            let trainable = params.trainable();
            let watched = Watched::of(&trainable, &grads, Some(&before));
            let probes =
                [Probe::new("x", ProbeKind::Input, &x), Probe::new("hidden", ProbeKind::Preactivation, &hidden)];
            monitor.check(step + 1, &watched, &probes)?;
            println!("step {step}: loss {:.4}", loss.to_scalar::<f32>()?);
            monitor.news().iter().for_each(|finding| println!("  {}: {}", finding.what, finding.because));
        }
    }

    // Weights and optimizer are tensors by name: save them as you like.
    zoo_checkpoint::write("own_loop.safetensors".as_ref(), &params.tensors(), &BTreeMap::new())
        .map_err(candle_core::Error::wrap)?;
    println!("gradient health: {:?}; weights: own_loop.safetensors", monitor.report().verdict);
    Ok(())
}

fn spiral(i: u32) -> (Vec<f32>, i64) {
    let (t, side) = (0.5 + 5. * (i as f32 * 0.618_034).fract(), if i.is_multiple_of(2) { 1. } else { -1. });
    (vec![side * t * t.cos(), side * t * t.sin()], i64::from(i % 2))
}
