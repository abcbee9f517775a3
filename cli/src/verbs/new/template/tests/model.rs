use candle_core::Device;
use my_model::MyTask;
use zoo_training::config::{Overrides, resolve};
use zoo_training::{ConfigOf, End, Recipe, Result, Silent, Trainer};

fn opened(set: &[&str]) -> Result<(ConfigOf<MyTask>, MyTask)> {
    let set: Vec<String> = set.iter().map(|s| s.to_string()).collect();
    let mut config = resolve::<MyTask>(&Overrides { set: &set, ..Overrides::default() })?;
    MyTask::settle(&mut config)?;
    Ok((config.clone(), MyTask::open(&config.model, &config.data, 0, None, &Device::Cpu)?))
}

#[test]
fn every_parameter_learns() -> Result<()> {
    let (config, task) = opened(&["train.steps=1"])?;
    let gradients = Trainer::new(&task, &config, &Device::Cpu)?.train(&mut Silent, &|| false)?.gradients;
    assert_eq!(gradients.tensors, gradients.with_gradient);
    Ok(())
}

#[test]
fn one_batch_is_learned_by_heart() -> Result<()> {
    let (config, task) = opened(&["train.overfit_batch=true", "train.steps=500"])?;
    let loss = Trainer::new(&task, &config, &Device::Cpu)?.train(&mut Silent, &|| false)?.loss;
    assert!(loss < 1e-2, "{loss}");
    Ok(())
}

#[test]
fn a_run_that_was_stopped_ends_in_the_same_bytes() -> Result<()> {
    let (folder, (config, task)) = (tempfile::tempdir().expect("a folder"), opened(&["train.epochs=2"])?);
    let train = |name: &str, steps_before_it_stops: u64| -> Result<(End, Vec<u8>)> {
        let (path, steps) = (folder.path().join(name), std::cell::Cell::new(0));
        let stop = || steps.replace(steps.get() + 1) == steps_before_it_stops;
        let mut trainer = Trainer::begin_or_resume(&task, &config, &Device::Cpu, &path, &mut Silent)?;
        let end = trainer.train(&mut Silent, &stop)?.end;
        Ok((end, std::fs::read(path.join("last.safetensors")).unwrap_or_default()))
    };
    let whole = train("whole", u64::MAX)?;
    assert_eq!(train("parts", 3)?.0, End::Interrupted);
    assert!(train("parts", u64::MAX)? == whole);
    Ok(())
}
