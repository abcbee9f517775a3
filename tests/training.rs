//! Training from end to end through the library: every parameter learns, a seed decides every bit.

use candle_core::Device;
use zoo_char_gpt::{CharGpt, CharTask, Sampling};
use zoo_deepsif::DeepSifTask;
use zoo_llama::LlamaTask;
use zoo_market::simulate;
use zoo_stock_lstm::{Config, DataSettings, Forecaster, StockLstm, StockTask};
use zoo_training::config::{Overrides, resolve, to_toml};
use zoo_training::{End, Error, Recipe, RunFiles, Silent, Split, Task, Trainer};

type Outcome<T = ()> = Result<T, Box<dyn std::error::Error>>;

fn settings(set: &[&str]) -> Vec<String> {
    let base = ["data.simulated_days=300", "model.window=20", "model.hidden=20", "train.epochs=2"];
    base.iter().chain(set).map(|s| s.to_string()).collect()
}

#[test]
fn every_parameter_gets_a_gradient_and_moves() -> Outcome {
    for preset in StockTask::PRESETS {
        let config = resolve::<StockTask>(&Overrides {
            preset: Some(preset.name),
            set: &settings(&[]),
            ..Overrides::default()
        })?;
        let task = StockTask::open(&config.model, &config.data, 1, None, &Device::Cpu)?;
        let mut trainer = Trainer::new(&task, &config, &Device::Cpu)?;
        let before = trainer
            .params()
            .tensors()
            .into_iter()
            .map(|(n, t)| Ok((n, t.copy()?)))
            .collect::<Result<Vec<_>, candle_core::Error>>()?;
        let outcome = trainer.train(&mut Silent, &|| false)?;
        assert_eq!(outcome.gradients.with_gradient, before.len());
        for ((name, old), (_, new)) in before.iter().zip(trainer.params().tensors()) {
            let values = |t: &candle_core::Tensor| t.flatten_all()?.to_vec1::<f32>();
            let moved = values(old)?.iter().zip(values(&new)?).filter(|(a, b)| **a != *b).count();
            assert_eq!(moved, old.elem_count(), "{name}: only {moved} of {} elements moved", old.elem_count());
        }
    }
    Ok(())
}

/// Weights after some steps of a preset for tests.
fn weights_after<T: Recipe>(preset: &str, set: &[&str]) -> Outcome<Vec<(String, Vec<f32>)>> {
    let set: Vec<String> = ["train.steps=4"].iter().chain(set).map(|s| s.to_string()).collect();
    let mut config = resolve::<T>(&Overrides { preset: Some(preset), set: &set, ..Overrides::default() })?;
    T::settle(&mut config)?;
    let task = T::open(&config.model, &config.data, 1, None, &Device::Cpu)?;
    let mut trainer = Trainer::new(&task, &config, &Device::Cpu)?;
    trainer.train(&mut Silent, &|| false)?;
    let values = |(name, t): (String, candle_core::Tensor)| Ok((name, t.flatten_all()?.to_vec1::<f32>()?));
    trainer.params().tensors().into_iter().map(values).collect()
}

#[test]
fn activations_that_are_computed_again_change_no_bit() -> Outcome {
    for dtype in ["train.dtype=f32", "train.dtype=bf16"] {
        let again = [dtype, "train.recompute=true"];
        // With dropout.
        assert_eq!(weights_after::<CharTask>("tiny", &[dtype])?, weights_after::<CharTask>("tiny", &again)?, "{dtype}");
        assert_eq!(
            weights_after::<LlamaTask>("tiny", &[dtype])?,
            weights_after::<LlamaTask>("tiny", &again)?,
            "{dtype}"
        );
        assert_eq!(
            weights_after::<DeepSifTask>("tiny", &[dtype])?,
            weights_after::<DeepSifTask>("tiny", &again)?,
            "{dtype}"
        );
    }
    let message = match weights_after::<StockTask>("default", &["train.recompute=true"]) {
        Ok(_) => String::new(),
        Err(e) => e.to_string(),
    };
    assert!(message.contains("train.recompute") && message.contains("stock-lstm"), "{message}");
    Ok(())
}

#[test]
fn every_parameter_of_all_deepsif_networks_gets_a_gradient_and_moves() -> Outcome {
    let kinds = ["model.kind=transformer", "model.kind=lstm", "model.kind=post-ln", "model.kind=graph"];
    for (kind, optimizer) in kinds.into_iter().flat_map(|k| [(k, "adamw"), (k, "muon")]) {
        let set = [kind.to_string(), format!("train.optimizer={optimizer}"), "model.positions=50".into()];
        let config = resolve::<DeepSifTask>(&Overrides { preset: Some("tiny"), set: &set, ..Overrides::default() })?;
        assert!(to_toml(&config)?.contains(&kind.replace("model.kind=", "kind = \"")), "{kind}");
        let task = DeepSifTask::open(&config.model, &config.data, 1, None, &Device::Cpu)?;
        let mut trainer = Trainer::new(&task, &config, &Device::Cpu)?;
        let values = |t: &candle_core::Tensor| t.flatten_all()?.to_vec1::<f32>();
        let now = |trainer: &Trainer<DeepSifTask>| -> Result<Vec<(String, Vec<f32>)>, candle_core::Error> {
            let trained = trainer.params().tensors().into_iter().filter(|(name, _)| !name.starts_with("constant_"));
            trained.map(|(n, t)| Ok((n, values(&t)?))).collect()
        };
        let before = now(&trainer)?;
        let first =
            task.validate(&DeepSifTask::build(&config.model, trainer.params().eval_builder())?, Split::Valid)?[0].1;
        let outcome = trainer.train(&mut Silent, &|| false)?;
        assert_eq!(outcome.gradients.with_gradient, before.len());
        for ((name, old), (_, new)) in before.iter().zip(now(&trainer)?) {
            let moved = old.iter().zip(&new).filter(|(a, b)| a != b).count();
            // One in a thousand may be back where it was.
            let enough = moved * 1000 >= old.len() * 999;
            assert!(enough, "{kind}, {optimizer}: {name}: only {moved} of {} elements moved", old.len());
        }
        let last = outcome.best.map(|(loss, _)| loss);
        assert!(last.is_some_and(|last| last < first), "{kind}, {optimizer}: {first} became {last:?}");
    }
    Ok(())
}

#[test]
fn a_trained_model_loads_from_one_file_and_forecasts_as_it_was_judged() -> Outcome {
    let dir = tempfile::tempdir()?;
    for preset in ["default", "ohlcv"] {
        let config =
            resolve::<StockTask>(&Overrides { preset: Some(preset), set: &settings(&[]), ..Overrides::default() })?;
        let task = StockTask::open(&config.model, &config.data, config.train.seed, None, &Device::Cpu)?;
        let run = RunFiles::at(&dir.path().join(preset));
        let mut trainer = Trainer::new(&task, &config, &Device::Cpu)?;
        trainer.begin(run.path())?;
        assert_eq!(trainer.train(&mut Silent, &|| false)?.end, End::Finished);
        let forecaster: Forecaster = StockLstm::load(&run.last(), &Device::Cpu)?;
        let bars = simulate(300, config.train.seed).bars;
        let forecast = forecaster.predict_bars(&bars)?;
        assert!((forecast / bars[299].close - 1.).abs() < 0.2, "{forecast}");
        assert_eq!(forecast, forecaster.predict_bars(&bars[300 - forecaster.days()..])?, "only the window counts");
        let closes: Vec<f64> = bars.iter().map(|b| b.close).collect();
        match preset {
            "default" => assert_eq!(forecast, forecaster.predict(&closes)?),
            _ => assert!(forecaster.predict(&closes).is_err()),
        }
        assert!(forecaster.predict_bars(&bars[..5]).unwrap_err().to_string().contains("needs 21 days, got 5"));
        assert!(forecaster.predict_bars(&vec![zoo_stock_lstm::Bar::closing(-1.); 30]).is_err());
    }
    Ok(())
}

#[test]
fn the_writer_in_the_repository_writes_words() -> Outcome {
    let weights = concat!(env!("CARGO_MANIFEST_DIR"), "/../../weights/char-gpt-cpu.safetensors");
    let writer = CharGpt::load(weights.as_ref(), &Device::Cpu)?;
    let sampling = Sampling { tokens: 300, temperature: 0.5, ..Sampling::default() };
    let text = writer.generate("ROMEO:\n", &sampling)?;
    assert_eq!(text.chars().count(), 300);
    let known = ["the", "and", "to", "of", "you", "my", "is", "that", "in", "not"];
    let words: Vec<&str> = text.split_whitespace().collect();
    assert!(words.iter().filter(|w| known.contains(w)).count() * 8 > words.len(), "{text}");
    assert!(writer.generate("€", &sampling).unwrap_err().to_string().contains("'€'"));
    Ok(())
}

#[test]
fn a_file_that_is_no_model_or_damaged_is_refused_by_name() -> Outcome {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("weights.safetensors");
    zoo_checkpoint::write(&path, &[], &Default::default())?;
    let message = StockLstm::load(&path, &Device::Cpu).map(|_| ()).unwrap_err().to_string();
    assert!(message.contains("weights.safetensors: no model in its metadata"), "{message}");
    // Neither does one that says what it is, but holds no numbers.
    let mut bytes = std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/../../weights/stock-lstm.safetensors"))?;
    let last = bytes.len() - 4;
    bytes[last..].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(&path, bytes)?;
    let message = StockLstm::load(&path, &Device::Cpu).map(|_| ()).unwrap_err().to_string();
    assert!(message.contains("has values that are not finite numbers"), "{message}");
    Ok(())
}

#[test]
fn real_prices_are_read_and_adjusted() -> Outcome {
    let file = "stocks/aapl_daily_1984_2008.csv";
    let Some(path) = zoo_test_skips::data(env!("CARGO_MANIFEST_DIR"), file) else { return Ok(()) };
    let source = DataSettings { path: path.display().to_string(), ..DataSettings::default() };
    let task = StockTask::open(&Config::default(), &source, 1, None, &Device::Cpu)?;
    let counts = [Split::Train, Split::Valid, Split::Test].map(|s| task.samples(s));
    assert_eq!(counts.iter().sum::<usize>(), 6081 - 61);
    assert!(task.describe_data().contains("1984-09-07 to 2008-10-14"), "{}", task.describe_data());
    let close = DataSettings { target: zoo_stock_lstm::Target::Close, ..source };
    let warnings = StockTask::open(&Config::default(), &close, 1, None, &Device::Cpu)?.warnings();
    assert!(warnings.iter().any(|w| w.contains("outside the training range")), "{warnings:?}");
    Ok(())
}

#[test]
fn an_unusable_file_is_an_error_and_not_a_panic() {
    let source = DataSettings { path: "missing.csv".into(), ..DataSettings::default() };
    let result = StockTask::open(&Config::default(), &source, 1, None, &Device::Cpu);
    assert!(matches!(result.map(|_| ()), Err(Error::Io { .. })));
}

#[test]
fn dropout_and_augmentation_end_in_the_same_bytes_interrupted_or_not_at_any_number_of_threads() -> Outcome {
    for optimizer in ["adamw", "muon"] {
        // The tiny presets drop and change samples.
        same_bytes::<CharTask>(&[&format!("train.optimizer={optimizer}"), "train.ema=0.9"])?;
        same_bytes::<DeepSifTask>(&[&format!("train.optimizer={optimizer}"), "train.prefetch=2"])?;
        same_bytes::<DeepSifTask>(&[&format!("train.optimizer={optimizer}"), "train.prefetch=2", "model.kind=graph"])?;
    }
    Ok(())
}

fn same_bytes<T: Recipe<Architecture: Sync, Data: Sync, Settings: Sync>>(set: &[&str]) -> Outcome {
    let dir = tempfile::tempdir()?;
    let set: Vec<String> = set.iter().chain(&["train.checkpoint_every=7"]).map(|s| s.to_string()).collect();
    let mut config = resolve::<T>(&Overrides { preset: Some("tiny"), set: &set, ..Overrides::default() })?;
    T::settle(&mut config)?;
    let task = T::open(&config.model, &config.data, config.train.seed, None, &Device::Cpu)?;
    let run = |name: &str, threads: usize, interruptions: &[u64]| -> Result<Vec<u8>, Box<dyn std::error::Error>> {
        let path = dir.path().join(name);
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build()?;
        let stopped = pool.install(|| -> zoo_training::Result<()> {
            let mut trainer = Trainer::new(&task, &config, &Device::Cpu)?;
            trainer.begin(&path)?;
            for after in interruptions {
                let steps = std::cell::Cell::new(0);
                let stop = || {
                    steps.set(steps.get() + 1);
                    steps.get() == *after
                };
                assert_eq!(trainer.train(&mut Silent, &stop)?.end, End::Interrupted);
                drop(trainer);
                trainer = Trainer::resume(&task, &config, &Device::Cpu, &path, &[], &mut Silent)?;
            }
            assert_eq!(trainer.train(&mut Silent, &|| false)?.end, End::Finished);
            Ok(())
        });
        stopped?;
        Ok(std::fs::read(RunFiles::at(&path).last())?)
    };
    let whole = run("whole", 1, &[])?;
    assert_eq!(whole, run("two", 2, &[])?, "{} {set:?}", T::NAME);
    assert_eq!(whole, run("interrupted", 2, &[3, 14])?, "{} {set:?}", T::NAME);
    Ok(())
}
