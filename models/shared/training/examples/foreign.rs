//! Gradient health of a model that knows nothing of the zoo: candle's own layers, `VarMap`, optimizer and loop.
//!
//! The model has a fault: candle-nn's fused layer norm has no backward pass, so all that lies before it gets no gradient.
//! Nothing else would tell: the loss goes down, as the last layer learns by itself.
//!
//! Run it with `cargo run -p zoo-training --example foreign`.

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::{AdamW, Module, Optimizer, ParamsAdamW, VarBuilder, VarMap, linear, ops};
use zoo_training::health::{Monitor, Probe, ProbeKind, Profile, Watched};

fn main() -> Result<()> {
    let device = Device::Cpu;
    let variables = VarMap::new();
    let vb = VarBuilder::from_varmap(&variables, DType::F32, &device);
    let (first, last) = (linear(8, 16, vb.pp("first"))?, linear(16, 1, vb.pp("last"))?);
    let (scale, shift) = (
        vb.get_with_hints(16, "norm.weight", candle_nn::init::ONE)?,
        vb.get_with_hints(16, "norm.bias", candle_nn::init::ZERO)?,
    );
    let mut optimizer = AdamW::new(variables.all_vars(), ParamsAdamW { lr: 1e-2, ..Default::default() })?;

    let mut monitor = Monitor::new(Profile::default(), serde_json::Value::Null, vec![]);
    for step in 1..=200 {
        let x = Tensor::randn(0f32, 1., (32, 8), &device)?;
        let y = x.sum_keepdim(1)?;
        let hidden = first.forward(&x)?;
        let normed = ops::layer_norm(&hidden, &scale, &shift, 1e-5)?;
        let loss = (last.forward(&normed.relu()?)? - y)?.sqr()?.mean_all()?;
        let grads = loss.backward()?;
        optimizer.step(&grads)?;
        if step % 100 != 0 {
            continue;
        }
        let named = variables.data().lock().map_err(|e| candle_core::Error::msg(e.to_string()))?.clone();
        let mut named: Vec<_> = named.iter().collect();
        named.sort_by_key(|(name, _)| name.as_str());
        let watched: Vec<Watched> = named
            .iter()
            .map(|(name, var)| Watched { name, weight: var.as_tensor(), gradient: grads.get(var), before: None })
            .collect();
        let probes = [Probe::new("x", ProbeKind::Input, &x), Probe::new("hidden", ProbeKind::Preactivation, &hidden)];
        monitor.check(step, &watched, &probes)?;
        println!("step {step}: loss {:.4}", loss.to_scalar::<f32>()?);
        for finding in monitor.news() {
            println!("  {:?}: {}: {}", finding.level, finding.what, finding.because);
            finding.remedies.iter().for_each(|r| println!("    {r}"));
        }
    }
    println!("{:?}", monitor.report().verdict);
    Ok(())
}
