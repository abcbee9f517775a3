//! Every model by the kernels for GPUs, which a C++ compiler makes run on the CPU: whole trainings, not ops alone. What they
//! find is what the CPU's own kernels find.

use candle_core::Device;
use zoo_char_gpt::CharTask;
use zoo_deepsif::DeepSifTask;
use zoo_kernels::foreign;
use zoo_kernels_emulator::{ready, with_emulation};
use zoo_layers::ops::autocast;
use zoo_layers::{Mode, Params};
use zoo_stock_lstm::StockTask;
use zoo_trading_transformer::TradingTask;
use zoo_training::config::{Overrides, resolve};
use zoo_training::{Event, Observer, Recipe, Result, Split, Trainer};

const SMALL: [&str; 4] = ["data.simulated_days=200", "model.window=10", "model.hidden=12", "train.batch_size=8"];

/// Losses, gradient norms and validation metrics, in the order they came.
#[derive(Default)]
struct Numbers(Vec<(String, f64)>);

impl Observer for Numbers {
    fn observe(&mut self, event: &Event) {
        match event {
            Event::Step { step, loss, grad_norm, .. } => {
                self.0.extend([(format!("loss {step}"), *loss), (format!("gradient norm {step}"), *grad_norm)])
            }
            Event::Evaluated { metrics, .. } => self.0.extend(metrics.iter().map(|(name, v)| (name.to_string(), *v))),
            _ => {}
        }
    }
}

fn numbers<T: Recipe>(preset: &str, set: &[&str]) -> Result<Vec<(String, f64)>> {
    let always = ["train.steps=6", "train.eval_every=3", "train.health_every=2", "train.log_every=1"];
    let set: Vec<String> = always.iter().chain(set).map(|s| s.to_string()).collect();
    let mut config = resolve::<T>(&Overrides { preset: Some(preset), set: &set, ..Overrides::default() })?;
    T::settle(&mut config)?;
    let task = T::open(&config.model, &config.data, config.train.seed, None, &Device::Cpu)?;
    let mut numbers = Numbers::default();
    Trainer::new(&task, &config, &Device::Cpu)?.train(&mut numbers, &|| false)?;
    Ok(numbers.0)
}

fn same<T: Recipe>(preset: &str, set: &[&str]) -> Result<()> {
    let here = numbers::<T>(preset, set)?;
    let there = with_emulation(false, || numbers::<T>(preset, set))?;
    assert_eq!(here.len(), there.len());
    for ((name, a), (_, b)) in here.iter().zip(&there) {
        assert!((a - b).abs() <= 1e-3 * (1e-3 + a.abs()), "{} {preset} {set:?}: {name}: {a} and {b}", T::NAME);
    }
    // Other kernels, so other roundings: not the same ones twice.
    assert!(here != there, "{} {preset}: the kernels did not run", T::NAME);
    Ok(())
}

/// Losses in a narrow type beside those in f32.
fn near<T: Recipe>(preset: &str, set: &[&str]) -> Result<()> {
    let exact = numbers::<T>(preset, set)?;
    // f16 finds its scale by leaving out the first updates.
    for dtype in ["train.dtype=bf16", "train.dtype=f16"] {
        let narrow = with_emulation(false, || numbers::<T>(preset, &[set, &[dtype]].concat()))?;
        for ((name, a), (_, b)) in exact.iter().zip(&narrow).filter(|((name, _), _)| name.starts_with("loss")) {
            assert!((a - b).abs() <= 0.03 * (0.01 + a.abs()), "{} {preset} {dtype}: {name}: {a}, {b}", T::NAME);
        }
        assert!(exact != narrow, "{} {preset} {dtype}: the same numbers", T::NAME);
    }
    Ok(())
}

#[test]
fn every_model_trains_by_the_kernels_for_gpus_as_by_those_for_the_cpu() -> Result<()> {
    if !ready() {
        return Ok(());
    }
    same::<StockTask>("default", &SMALL)?;
    same::<StockTask>("ohlcv", &SMALL)?;
    same::<CharTask>("tiny", &[])?;
    same::<CharTask>("tiny", &["model.tied=false", "model.bias=true", "model.separate_qkv=true"])?;
    same::<TradingTask>("tiny", &[])?;
    same::<TradingTask>("tiny", &["model.input_norm=running"])?;
    for kind in ["model.kind=transformer", "model.kind=lstm", "model.kind=post-ln", "model.kind=graph"] {
        same::<DeepSifTask>("tiny", &[kind])?;
    }
    Ok(())
}

#[test]
fn every_model_trains_in_bf16_and_f16() -> Result<()> {
    if !ready() {
        return Ok(());
    }
    near::<StockTask>("default", &SMALL)?;
    near::<CharTask>("tiny", &[])?;
    near::<TradingTask>("tiny", &[])?;
    near::<TradingTask>("ppo-tiny", &[])?;
    for kind in ["model.kind=transformer", "model.kind=lstm", "model.kind=post-ln", "model.kind=graph"] {
        near::<DeepSifTask>("tiny", &[kind])?;
    }
    Ok(())
}

/// The shapes of operations of candle's in the graph of a training loss.
fn others<T: Recipe>(preset: &str, set: &[&str]) -> Result<Vec<Vec<usize>>> {
    let set: Vec<String> = set.iter().map(|s| s.to_string()).collect();
    let mut config = resolve::<T>(&Overrides { preset: Some(preset), set: &set, ..Overrides::default() })?;
    T::settle(&mut config)?;
    let task = T::open(&config.model, &config.data, config.train.seed, None, &Device::Cpu)?;
    let params = Params::init(1, &Device::Cpu);
    let model = T::build(&config.model, params.builder())?;
    let batch = task.batch(Split::Train, &[0, 1])?;
    let loss = || autocast(config.train.compute(), || task.loss(&model, &batch, Mode::Train { seed: 1, step: 1 }));
    Ok(foreign(&loss()?.total))
}

#[test]
fn no_operation_of_candles_is_between_a_loss_and_its_parameters() -> Result<()> {
    fn check<T: Recipe>(preset: &str, set: &[&str]) -> Result<()> {
        let none = |found: Vec<Vec<usize>>, place: &str| {
            assert!(found.is_empty(), "{} {preset} {set:?} {place}: {found:?}", T::NAME);
        };
        none(others::<T>(preset, set)?, "on the CPU");
        if ready() {
            for dtype in ["train.dtype=f32", "train.dtype=bf16"] {
                none(with_emulation(false, || others::<T>(preset, &[set, &[dtype]].concat()))?, dtype);
            }
        }
        Ok(())
    }
    check::<StockTask>("default", &SMALL)?;
    check::<CharTask>("tiny", &[])?;
    check::<CharTask>("tiny", &["model.tied=false", "model.bias=true", "model.separate_qkv=true"])?;
    check::<TradingTask>("tiny", &[])?;
    check::<TradingTask>("tiny", &["model.input_norm=running", "model.recency=1"])?;
    for kind in ["model.kind=transformer", "model.kind=lstm", "model.kind=post-ln"] {
        check::<DeepSifTask>("tiny", &[kind])?;
    }
    // On a GPU its mean over neighbours is candle's product.
    assert!(others::<DeepSifTask>("tiny", &["model.kind=graph"])?.is_empty());
    Ok(())
}
