//! StockLSTM against PyTorch in f64: output, every gradient, ten AdamW losses.
//!
//! The fixture is what tests/fixtures/stock_lstm.py wrote. With ZOO_TORCH=python (a Python that has torch) the test
//! runs the script again and compares with that too.

use std::path::{Path, PathBuf};
use std::process::Command;

use candle_core::{DType, Device, Tensor};
use zoo_layers::ops::glue::simd::{levels, with_level};
use zoo_layers::optim::{Moments, Optimizer, Rule, clip_factor, decay_matrices, global_norm};
use zoo_layers::{Mode, Params, ops};
use zoo_stock_lstm::{Config, StockLstm};

type Outcome<T = ()> = Result<T, Box<dyn std::error::Error>>;

const RELATIVE: f64 = 5e-6;
const LOSSES: f64 = 1e-6;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures").join(name)
}

/// The script's `numbers`.
fn numbers(name: &str, shape: &[usize], scale: f64) -> candle_core::Result<Tensor> {
    let start = name.bytes().map(u64::from).sum::<u64>() * 40503;
    let value = |i: u64| {
        let word = ((i + start) * 2_654_435_761) % (1 << 32);
        (((word >> 16) as f64 / 65536. - 0.5) * scale) as f32
    };
    let n: usize = shape.iter().product();
    Tensor::from_vec((0..n as u64).map(value).collect(), shape, &Device::Cpu)
}

fn distance(got: &Tensor, expected: &Tensor) -> candle_core::Result<f64> {
    let flat = |t: &Tensor| t.to_dtype(DType::F64)?.flatten_all();
    let norm = |t: Tensor| t.sqr()?.sum_all()?.sqrt()?.to_scalar::<f64>();
    Ok(norm((flat(got)? - flat(expected)?)?)? / norm(flat(expected)?)?)
}

fn compare(path: &Path) -> Outcome {
    let expected = zoo_checkpoint::read(path, &Device::Cpu)?.tensors;
    let params = Params::init(0, &Device::Cpu);
    let model = StockLstm::new(&Config { dropout: 0., ..Config::default() }, params.builder())?;
    for p in params.all() {
        p.var.set(&numbers(&p.name, p.var.dims(), 0.25)?)?;
    }
    let (x, y) = (numbers("x", &[32, 60, 1], 4.)?, numbers("y", &[32, 1], 2.)?);
    let mut optimizer = Optimizer::new(Rule::AdamW(Moments::default()), &params, decay_matrices(0.01))?;
    let losses = expected["losses"].to_vec1::<f64>()?;
    for (step, expected_loss) in losses.iter().enumerate() {
        let output = model.forward(&x, Mode::Train { seed: 0, step: step as u64 })?;
        let loss = ops::mse(&output, &y)?;
        let grads = params.gradients(&loss.backward()?);
        if step == 0 {
            let off = distance(&output, &expected["output"])?;
            assert!(off <= RELATIVE, "output: {off:e}");
            for (name, grad) in grads.iter() {
                let grad = grad.ok_or_else(|| format!("no gradient for {name}"))?;
                let off = distance(grad, &expected[&format!("grad.{name}")])?;
                assert!(off <= RELATIVE, "gradient of {name}: {off:e}");
            }
        }
        let loss = f64::from(loss.to_scalar::<f32>()?);
        assert!((loss - expected_loss).abs() <= LOSSES, "loss of step {step}: {loss} for {expected_loss}");
        optimizer.step(&grads, 1e-3, clip_factor(global_norm(&grads)?, 1.))?;
    }
    Ok(())
}

#[test]
fn stock_lstm_agrees_with_pytorch_at_every_simd_level() -> Outcome {
    for level in levels() {
        with_level(level, || compare(&fixture("stock_lstm.safetensors")))?;
    }
    Ok(())
}

#[test]
fn the_fixture_is_what_its_script_writes() -> Outcome {
    let Ok(python) = std::env::var("ZOO_TORCH") else {
        println!("skipped: set ZOO_TORCH to a Python with torch to make the fixture again");
        return Ok(());
    };
    let dir = tempfile::tempdir()?;
    let again = dir.path().join("again.safetensors");
    let status = Command::new(python).arg(fixture("stock_lstm.py")).arg(&again).status()?;
    assert!(status.success(), "the script failed");
    let read = |path: &Path| zoo_checkpoint::read(path, &Device::Cpu).map(|c| c.tensors);
    let (new, old) = (read(&again)?, read(&fixture("stock_lstm.safetensors"))?);
    assert_eq!(new.keys().collect::<Vec<_>>(), old.keys().collect::<Vec<_>>());
    for (name, t) in &old {
        let off = distance(&new[name], t)?;
        assert!(off <= 1e-6, "{name} moved by {off:e}");
    }
    compare(&again)
}
