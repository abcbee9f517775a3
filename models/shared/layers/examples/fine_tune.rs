//! Trains a model, saves its weights, loads them elsewhere and trains on: `cargo run --release -p zoo-layers --example fine_tune`.

use candle_core::{Device, Result, Tensor};
use candle_nn::VarBuilder;
use zoo_layers::optim::{Moments, Optimizer, Rule, decay_matrices};
use zoo_layers::random::{Purpose, Stream};
use zoo_layers::{Linear, Lstm, LstmConfig, Mode, Params, ops};

/// An LSTM that tells the sum of what it saw.
struct Adder {
    lstm: Lstm,
    head: Linear,
}

impl Adder {
    fn new(vb: VarBuilder<'static>) -> Result<Self> {
        let config = LstmConfig { input: 1, hidden: 8, layers: 1, dropout: 0. };
        Ok(Self { lstm: Lstm::new(config, vb.pp("lstm"))?, head: Linear::new(8, 1, vb.pp("head"))? })
    }

    fn loss(&self, x: &Tensor, step: u64) -> Result<Tensor> {
        let seen = self.lstm.forward_last(x, Mode::Train { seed: 0, step })?;
        ops::mse(&self.head.forward(&seen)?, &x.sum(1)?)
    }
}

fn train(model: &Adder, params: &Params, x: &Tensor) -> Result<()> {
    let mut optimizer = Optimizer::new(Rule::AdamW(Moments::default()), params, decay_matrices(0.))?;
    for step in 0..100 {
        let loss = model.loss(x, step)?;
        if step == 0 {
            println!("  begins at a loss of {:.6}", loss.to_scalar::<f32>()?);
        }
        optimizer.step(&params.gradients(&ops::backward(&loss)?), 1e-2, 1.)?;
    }
    println!("  ends at {:.6}", model.loss(x, 100)?.to_scalar::<f32>()?);
    Ok(())
}

fn main() -> Result<()> {
    let device = Device::Cpu;
    let mut stream = Stream::new(1, Purpose::Sampling, 0, 0);
    let values: Vec<f32> = (0..16 * 5).map(|_| stream.uniform() as f32 - 0.5).collect();
    let x = Tensor::from_vec(values, (16, 5, 1), &device)?;

    println!("from initial values");
    let params = Params::init(1, &device);
    let model = Adder::new(params.builder())?;
    train(&model, &params, &x)?;
    let file = std::env::temp_dir().join("adder.safetensors");
    candle_core::safetensors::save(&params.tensors().into_iter().collect(), &file)?;

    println!("from the file, trained on");
    let tensors = candle_core::safetensors::load(&file, &device)?.into_iter().collect();
    let (model, params) = Params::fine_tune(tensors, &device, Adder::new)?;
    train(&model, &params, &x)
}
