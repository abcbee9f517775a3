//! Gradient health of the zoo's own models: nothing is raised where nothing is wrong, and the failure that the trading
//! transformer is known for is found at the first check.

use candle_core::Device;
use zoo_char_gpt::CharTask;
use zoo_deepsif::DeepSifTask;
use zoo_stock_lstm::StockTask;
use zoo_trading_transformer::reproduction::{ARMS, Settings, read, run};
use zoo_trading_transformer::{InputNorm, TradingTask};
use zoo_training::config::{Overrides, resolve};
use zoo_training::health::{Kind, Level};
use zoo_training::{Event, Observer, Recipe, Result, Trainer};

/// What was raised.
#[derive(Default)]
struct Raised(Vec<(Level, Kind, String)>);

impl Observer for Raised {
    fn observe(&mut self, event: &Event) {
        if let Event::Health(f) = event {
            self.0.push((f.level, f.kind, f.what.clone()));
        }
    }
}

fn raised<T: Recipe>(preset: &str, set: &[&str]) -> Result<Vec<(Level, Kind, String)>> {
    let set: Vec<String> =
        ["train.health_every=5", "train.steps=60"].iter().chain(set).map(|s| s.to_string()).collect();
    let mut config = resolve::<T>(&Overrides { preset: Some(preset), set: &set, ..Overrides::default() })?;
    T::settle(&mut config)?;
    let task = T::open(&config.model, &config.data, config.train.seed, None, &Device::Cpu)?;
    let mut raised = Raised::default();
    Trainer::new(&task, &config, &Device::Cpu)?.train(&mut raised, &|| false)?;
    Ok(raised.0)
}

#[test]
fn healthy_runs_of_all_models_raise_nothing() -> Result<()> {
    for seed in ["train.seed=1", "train.seed=2", "train.seed=3"] {
        let small = ["data.simulated_days=400", "model.window=20", "model.hidden=20", seed];
        assert_eq!(raised::<StockTask>("default", &small)?, [], "{seed}");
        assert_eq!(raised::<StockTask>("ohlcv", &small)?, [], "{seed}");
        assert_eq!(raised::<CharTask>("tiny", &[seed])?, [], "{seed}");
        let untied = ["model.tied=false", "model.bias=true", "model.separate_qkv=true", seed];
        assert_eq!(raised::<CharTask>("tiny", &untied)?, [], "{seed}");
        assert_eq!(raised::<TradingTask>("tiny", &[seed])?, [], "{seed}");
        assert_eq!(raised::<TradingTask>("tiny", &["model.input_norm=running", seed])?, [], "{seed}");
        // The post-norm transformer's ReLUs do die, which is found.
        for kind in ["model.kind=transformer", "model.kind=lstm"] {
            assert_eq!(raised::<DeepSifTask>("tiny", &[kind, seed])?, [], "{kind} {seed}");
        }
    }
    Ok(())
}

#[test]
fn to_look_changes_nothing() -> Result<()> {
    let weights = |set: &[&str]| -> Result<Vec<Vec<f32>>> {
        let set: Vec<String> = set.iter().map(|s| s.to_string()).collect();
        let config = resolve::<TradingTask>(&Overrides { preset: Some("tiny"), set: &set, ..Overrides::default() })?;
        let task = TradingTask::open(&config.model, &config.data, config.train.seed, None, &Device::Cpu)?;
        let mut trainer = Trainer::new(&task, &config, &Device::Cpu)?;
        trainer.train(&mut Raised::default(), &|| false)?;
        trainer.params().tensors().iter().map(|(_, t)| Ok(t.flatten_all()?.to_vec1()?)).collect()
    };
    for norm in ["model.input_norm=layer", "model.input_norm=running"] {
        assert!(weights(&["train.health_every=0", norm])? == weights(&["train.health_every=1", norm])?, "{norm}");
    }
    Ok(())
}

#[test]
fn features_as_they_are_are_found_out_before_the_first_step() -> Result<()> {
    for seed in ["train.seed=1", "train.seed=2", "train.seed=3"] {
        let found = raised::<TradingTask>("tiny", &["model.input_norm=none", "train.steps=1", seed])?;
        let alert = |kind: Kind, what: &str| found.iter().any(|f| f.0 >= Level::Alert && f.1 == kind && f.2 == what);
        assert!(
            alert(Kind::Scale, "temporal_projection.input") && alert(Kind::Saturated, "temporal_projection"),
            "{found:?}"
        );
    }
    // What the documents warn of is said before it does harm.
    let found = raised::<TradingTask>("tiny", &["train.lr=0.01", "train.clip_norm=1", "train.steps=1"])?;
    let settings: Vec<&str> = found.iter().filter(|f| f.1 == Kind::Setting).map(|f| f.2.as_str()).collect();
    // (A limit of the norm is worth a note, which the doctor shows.)
    assert_eq!(settings, ["train.lr"]);
    Ok(())
}

#[test]
fn the_gradient_death_comes_from_inputs_of_zero_and_goes_with_layer_norm() -> Result<()> {
    let settings = Settings { steps: 30, batch: 16, every: 10, reading: 30, ..Settings::default() };
    let arm = |name: &str| ARMS.into_iter().find(|a| a.name == name).unwrap_or(ARMS[0]);
    let course = |name: &str| run(arm(name), settings, &mut |_| true);
    let silent = course("silent, none")?;
    let zeros = silent.end(|l| l.gradient_zeros);
    // 86 of 129 features are silent.
    assert!((0.66..0.70).contains(&zeros), "{zeros}");
    assert!(silent.end(|l| l.zeros_of_zero_inputs) > 0.9);
    assert!(course("silent, layer")?.end(|l| l.gradient_zeros) < 0.01);
    let (none, layer, running) = (course("none")?, course("layer")?, course("running")?);
    assert!(none.end(|l| l.saturation) > 0.3 && layer.end(|l| l.saturation) < 0.1);
    // What the cure costs: without a position, the columns of its features all carry one gradient; with one, it squeezes
    // the others.
    assert_eq!((none.idle_columns, layer.idle_columns), (0, 1));
    let market = |input_std: [[f64; 3]; 2]| input_std[0][0] / input_std[1][0];
    assert!(market(layer.input_std) < 0.2 && market(running.input_std) > 0.7);
    // The same seed gives the same course.
    assert_eq!(course("layer")?.readings, layer.readings);
    assert_eq!(layer.arm.input_norm, InputNorm::Layer);
    // What lies behind running statistics can be read soon.
    let [with, without] = read(arm("running"), Settings { reading: 150, batch: 32, ..settings }, &mut || true)?;
    assert!(with > 55. && without > 55., "{with} {without}");
    Ok(())
}
