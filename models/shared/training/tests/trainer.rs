//! The trainer on a line fitted to points: small enough to know every answer.

use std::cell::Cell;
use std::path::Path;

use candle_core::{D, Device, Tensor};
use candle_nn::VarBuilder;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use zoo_layers::{Linear, Mode, ops};
use zoo_training::config::{AdamConfig, ConfigFile, OptimizerConfig, Overrides, resolve};
use zoo_training::{
    Config, End, Error, Loss, Metrics, NoSettings, Preset, Recipe, Result, RunFiles, Silent, Split, Task, TrainConfig,
    Trainer,
};

#[derive(Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Architecture {
    /// What the forward pass does wrong on purpose.
    fault: String,
    width: usize,
}

#[derive(Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct DataSettings {
    noise: f64,
}

struct Line {
    fault: String,
}

struct Model {
    one: Linear,
    two: Linear,
}

const SAMPLES: usize = 20;

impl Task for Line {
    const NAME: &'static str = "line";
    type Architecture = Architecture;
    type Data = DataSettings;
    type Settings = NoSettings;
    type Model = Model;
    type Batch = (Tensor, Tensor);

    fn build(_: &Architecture, vb: VarBuilder) -> candle_core::Result<Model> {
        Ok(Model { one: Linear::new(2, 4, vb.pp("one"))?, two: Linear::new(4, 1, vb.pp("two"))? })
    }

    fn samples(&self, split: Split) -> usize {
        if split == Split::Train { SAMPLES } else { 5 }
    }

    fn batch(&self, _: Split, indices: &[usize]) -> candle_core::Result<(Tensor, Tensor)> {
        let x: Vec<f32> = indices.iter().flat_map(|&i| [(i as f32 * 0.7).sin(), (i as f32 * 1.3).cos()]).collect();
        let x = Tensor::from_vec(x, (indices.len(), 2), &Device::Cpu)?;
        let y = x.sum_keepdim(D::Minus1)?;
        Ok((x, y))
    }

    fn loss(&self, model: &Model, batch: &(Tensor, Tensor), mode: Mode) -> candle_core::Result<Loss> {
        let loss = ops::mse(&self.forward(model, batch, mode)?, &batch.1)?;
        Ok(Loss::new(if self.fault == "gentle" { (loss / 64.)? } else { loss }))
    }

    fn validate(&self, model: &Model, split: Split) -> candle_core::Result<Metrics> {
        let batch = self.batch(split, &[0, 1, 2, 3, 4])?;
        let loss = self.loss(model, &batch, Mode::Eval)?.total;
        assert!(!loss.track_op(), "evaluation must not record a graph");
        Ok([("loss", f64::from(loss.to_scalar::<f32>()?))].into())
    }
}

impl Recipe for Line {
    const SUMMARY: &'static str = "a line";
    const PRESETS: &'static [Preset] = &[
        Preset { name: "default", summary: "", toml: "[train]\nlr = 0.05\n" },
        Preset { name: "wide", summary: "", toml: "[model]\nwidth = 9\n" },
    ];
    const DATA: &'static str = "nothing";

    fn training() -> TrainConfig {
        let optimizer = OptimizerConfig::AdamW(AdamConfig { weight_decay: 0., ..AdamConfig::default() });
        TrainConfig { epochs: 3, batch_size: 6, optimizer, checkpoint_every: 4, ..Default::default() }
    }

    fn open(a: &Architecture, _: &DataSettings, _: u64, _: Option<&Value>, _: &Device) -> Result<Self> {
        Ok(Self { fault: a.fault.clone() })
    }

    fn describe_data(&self) -> String {
        String::new()
    }

    fn forward(&self, model: &Model, (x, _): &(Tensor, Tensor), mode: Mode) -> candle_core::Result<Tensor> {
        let hidden = model.one.forward(x)?;
        let hidden = match (self.fault.as_str(), mode) {
            ("cut", _) => hidden.detach(),
            // For a while nothing comes through.
            ("fading", Mode::Train { step: 5..9, .. }) => (&hidden * hidden.zeros_like()?)?,
            _ => hidden,
        };
        let y = model.two.forward(&hidden)?;
        match (self.fault.as_str(), mode) {
            ("nan", Mode::Train { step: 5, .. }) => y * f64::NAN,
            ("steep", _) => y * 20.,
            // Finite loss, infinite gradient: the root of zero.
            ("infinite gradient", Mode::Train { step: 2, .. }) => y.affine(0., 0.)? + (&y - y.detach())?.sqrt()?,
            _ => Ok(y),
        }
    }
}

fn config(set: &[&str]) -> Result<Config<Architecture, DataSettings>> {
    resolve::<Line>(&Overrides { set: &set.iter().map(|s| s.to_string()).collect::<Vec<_>>(), ..Default::default() })
}

/// A trainer whose run begins at `path`.
fn begun<'a>(task: &'a Line, config: &'a Config<Architecture, DataSettings>, path: &Path) -> Result<Trainer<'a, Line>> {
    let mut trainer = Trainer::new(task, config, &Device::Cpu)?;
    trainer.begin(path)?;
    Ok(trainer)
}

fn weights(trainer: &Trainer<Line>) -> Result<Vec<f32>> {
    let mut all = vec![];
    for (_, t) in trainer.params().tensors() {
        all.extend(t.flatten_all()?.to_vec1::<f32>()?);
    }
    Ok(all)
}

fn fault(kind: &str) -> Result<(Error, Vec<f32>, Vec<f32>)> {
    let config = config(&[&format!("model.fault={kind}")])?;
    let task = Line { fault: kind.into() };
    let mut trainer = Trainer::new(&task, &config, &Device::Cpu)?;
    let before = weights(&trainer)?;
    let error = trainer.train(&mut Silent, &|| false).map(|_| ()).unwrap_err();
    Ok((error, before, weights(&trainer)?))
}

#[test]
fn a_cut_graph_stops_the_run_and_names_the_parameters() -> Result<()> {
    let (error, before, after) = fault("cut")?;
    assert!(matches!(&error, Error::NoGradient(names) if names == &["one.weight", "one.bias"]), "{error}");
    assert_eq!(before, after);
    Ok(())
}

#[test]
fn a_run_that_comes_to_nothing_leaves_what_was_there_and_nothing_else() -> Result<()> {
    let temporary = tempfile::tempdir().map_err(Error::io(Path::new("temporary")))?;
    let (config, task) = (config(&["model.fault=cut"])?, Line { fault: "cut".into() });
    let path = temporary.path().join("run");
    assert!(begun(&task, &config, &path)?.train(&mut Silent, &|| false).is_err());
    assert!(!path.exists());
    // In a folder with something else in it, that stays.
    std::fs::create_dir(&path)
        .and_then(|()| std::fs::write(path.join("notes.txt"), "mine"))
        .map_err(Error::io(&path))?;
    assert!(begun(&task, &config, &path)?.train(&mut Silent, &|| false).is_err());
    let names = |path: &Path| std::fs::read_dir(path).map(Iterator::count).map_err(Error::io(path));
    assert_eq!(names(&path)?, 1);
    // Files of the names that a run has are nobody's to take: it does not begin there.
    for (name, is_folder) in [("metrics.jsonl", false), ("best.safetensors", false), ("checkpoints", true)] {
        let (there, other) = (path.join(name), path.join(name).join("x"));
        let made = if is_folder {
            std::fs::create_dir(&there).and_then(|()| std::fs::write(&other, "mine"))
        } else {
            std::fs::write(&there, "mine")
        };
        made.map_err(Error::io(&there))?;
        let refused = begun(&task, &config, &path).map(|_| ()).unwrap_err().to_string();
        assert!(refused.contains(&format!("holds a {name} of no run")), "{refused}");
        assert!(there.exists() && (!is_folder || other.exists()), "{name}");
        let removed = if is_folder { std::fs::remove_dir_all(&there) } else { std::fs::remove_file(&there) };
        removed.map_err(Error::io(&there))?;
    }
    Ok(())
}

#[test]
fn a_loss_or_gradient_that_is_not_finite_never_reaches_the_weights() -> Result<()> {
    let (error, _, after) = fault("nan")?;
    assert!(error.to_string().contains("the loss at step 6"), "{error}");
    assert!(after.iter().all(|w| w.is_finite()));
    let (error, _, after) = fault("infinite gradient")?;
    assert!(error.to_string().contains("the gradient of one.weight at step 3"), "{error}");
    assert!(after.iter().all(|w| w.is_finite()));
    Ok(())
}

#[test]
fn narrow_types_train_as_f32_does_and_f16_finds_the_scale_that_its_gradients_need() -> Result<()> {
    let trained = |fault: &str, dtype: &str| -> Result<(Vec<f32>, Warned)> {
        let config = config(&[&format!("model.fault={fault}"), &format!("train.dtype={dtype}"), "train.steps=40"])?;
        let task = Line { fault: fault.into() };
        let mut trainer = Trainer::new(&task, &config, &Device::Cpu)?;
        let mut warned = Warned::default();
        let outcome = trainer.train(&mut warned, &|| false)?;
        assert_eq!((outcome.steps, outcome.refused), (40, 0));
        assert!(trainer.params().tensors().iter().all(|(_, t)| t.dtype() == candle_core::DType::F32));
        Ok((weights(&trainer)?, warned))
    };
    // That the loss has an operation of candle's is said where kernels of ours compute.
    let (exact, Warned(said)) = trained("gentle", "f32")?;
    let slow = "train.dtype=f16: there are no kernels for f16 on a CPU; bf16 has them, and is many times faster";
    for (dtype, said) in [("bf16", said), ("f16", vec![slow.into()])] {
        let (narrow, warned) = trained("gentle", dtype)?;
        assert!(narrow != exact && warned.0 == said, "{dtype} {:?}", warned.0);
        assert!(narrow.iter().zip(&exact).all(|(a, b)| (a - b).abs() < 0.02), "{dtype}: {narrow:?} {exact:?}");
    }
    let (found, warned) = trained("steep", "f16")?;
    assert!(found.iter().all(|w| w.is_finite()) && warned.0.len() > 3, "{:?}", warned.0);
    let first = "step 1: gradients exceed f16; the loss is multiplied by 32768 from now on; its update was left out";
    assert_eq!(warned.0[..2], [slow, first]);
    let (wide, Warned(said)) = trained("steep", "f32")?;
    let (_, warned) = trained("steep", "bf16")?;
    assert_eq!(warned.0, said);
    let (same, warned) = trained("steep", "tf32")?;
    assert_eq!(warned.0[0], "train.dtype=tf32 changes nothing on this device: only CUDA has TF32");
    assert_eq!((&warned.0[1..], same), (&said[..], wide));
    Ok(())
}

/// What a run warned of.
#[derive(Default)]
struct Warned(Vec<String>);

impl zoo_training::Observer for Warned {
    fn observe(&mut self, event: &zoo_training::Event) {
        match event {
            zoo_training::Event::Warning(w) => self.0.push(w.to_string()),
            zoo_training::Event::Health(f) => {
                self.0.push(format!("{:?} {:?} {} since {}", f.level, f.kind, f.what, f.since));
            }
            _ => {}
        }
    }
}

#[test]
fn a_step_that_is_not_finite_can_be_left_out_or_gone_back_from() -> Result<()> {
    let temporary = tempfile::tempdir().map_err(Error::io(Path::new("temporary")))?;
    let task = Line { fault: "nan".into() };
    for (what, warning, micro_batch) in [
        ("skip", "step 6: the loss is NaN; its update was left out", 12),
        ("rollback", "the loss at step 6 is NaN; back to step 4", 14),
    ] {
        let config = config(&["model.fault=nan", &format!("train.on_nonfinite={what}"), "train.log_every=1"])?;
        let run = RunFiles::at(&temporary.path().join(what));
        let mut warned = Warned::default();
        let outcome = begun(&task, &config, run.path())?.train(&mut warned, &|| false)?;
        assert_eq!((outcome.end, outcome.steps, outcome.refused), (End::Finished, 12, 1), "{what}");
        assert!(warned.0.len() == 1 && warned.0[0].contains(warning), "{:?}", warned.0);
        let read = |file: &str| std::fs::read_to_string(run.path().join(file)).map_err(Error::io(run.path()));
        let state: Value = serde_json::from_str(&read("checkpoints/step-00000012/state.json")?).unwrap_or_default();
        assert_eq!((&state["micro_batch"], &state["guard"]["not_finite"]), (&micro_batch.into(), &1.into()), "{what}");
        // Every step is logged once, also those that were gone back over.
        let lines = read("metrics.jsonl")?;
        let steps: Vec<u64> = lines
            .lines()
            .filter_map(|l| serde_json::from_str::<Value>(l).ok())
            .filter(|v| v.get("lr").is_some())
            .filter_map(|v| v["step"].as_u64())
            .collect();
        assert_eq!(steps, (1..=12).collect::<Vec<_>>(), "{what}");
        assert_eq!(lines.contains("refused"), what == "skip");
    }
    // Weights that overflow at the step of a checkpoint never become one.
    let config_of = |what: &str| {
        let set = [
            "train.lr=1e38",
            "train.optimizer=sgd",
            "train.clip_norm=0",
            "train.checkpoint_every=1",
            "train.optimizer.momentum=0",
        ];
        config(&[&set[..], &[&format!("train.on_nonfinite={what}")]].concat())
    };
    let sound = Line { fault: String::new() };
    for what in ["abort", "skip", "rollback"] {
        let (run, config) = (RunFiles::at(&temporary.path().join(format!("huge {what}"))), config_of(what)?);
        let error = begun(&sound, &config, run.path())?.train(&mut Silent, &|| false).map(|_| ()).unwrap_err();
        assert!(matches!(error, Error::NonFinite { .. }), "{error}");
        let steps = std::fs::read_dir(run.path().join("checkpoints")).map_err(Error::io(run.path()))?;
        for entry in steps.flatten().filter(|e| e.path().is_dir()) {
            let file = zoo_checkpoint::read(&entry.path().join("model.safetensors"), &Device::Cpu)?;
            for t in file.tensors.values() {
                assert!(t.flatten_all()?.to_vec1::<f32>()?.iter().all(|w| w.is_finite()), "{entry:?}");
            }
        }
    }
    // A fault that comes again and again is not passed over for ever.
    let config = config(&["train.on_nonfinite=skip", "train.nonfinite_limit=3", "train.lr=1e30", "train.clip_norm=0"])?;
    let error = Trainer::new(&sound, &config, &Device::Cpu)?.train(&mut Silent, &|| false);
    assert!(matches!(error, Err(Error::NonFinite { .. })), "{error:?}");
    Ok(())
}

#[test]
fn critical_health_is_told_stops_halves_the_rate_or_goes_back() -> Result<()> {
    let temporary = tempfile::tempdir().map_err(Error::io(Path::new("temporary")))?;
    let task = Line { fault: "fading".into() };
    // Checkpoints lie between the beginning of the fault and the check that finds it.
    let set = [
        "model.fault=fading",
        "train.health_every=2",
        "train.log_every=1",
        "train.clip_norm=0",
        "train.checkpoint_every=2",
        "train.keep=100",
    ];
    let train = |what: &str, stop_at: u64| -> Result<(RunFiles, Result<zoo_training::Outcome>, Warned)> {
        let config = config(&[&set[..], &[&format!("train.on_critical={what}")]].concat())?;
        let path = temporary.path().join(format!("{what} {stop_at}"));
        let mut warned = Warned::default();
        let steps = Cell::new(0);
        let interrupted = || {
            steps.set(steps.get() + 1);
            steps.get() == stop_at
        };
        let mut outcome = begun(&task, &config, &path)?.train(&mut warned, &interrupted);
        if stop_at > 0 {
            let mut trainer = Trainer::resume(&task, &config, &Device::Cpu, &path, &[], &mut warned)?;
            outcome = trainer.train(&mut warned, &|| false);
        }
        Ok((RunFiles::at(&path), outcome, warned))
    };
    let (run, outcome, told) = train("tell", 0)?;
    assert!(outcome.is_ok());
    let critical = "Critical Dead one.weight since 6";
    assert!(told.0.iter().any(|w| w == critical), "{:?}", told.0);
    let checks: Vec<u64> = zoo_training::health::Check::read(run.path())?.iter().map(|c| c.step).collect();
    assert_eq!(checks, [1, 2, 4, 6, 8, 10, 12]);
    // A rollback that has nothing left to go back to says so.
    let config = config(&[&set[..], &["train.on_critical=rollback", "train.keep=1"]].concat())?;
    let error = begun(&task, &config, &temporary.path().join("nothing left"))?
        .train(&mut Silent, &|| false)
        .map(|_| ())
        .unwrap_err()
        .to_string();
    assert!(error.contains("no checkpoint from before it is left (train.keep"), "{error}");
    let (run, outcome, _) = train("stop", 0)?;
    let error = outcome.map(|_| ()).unwrap_err();
    assert!(matches!(&error, Error::Critical { step, .. } if (6..=8).contains(step)), "{error}");
    assert!(!run.last().exists());
    for (what, expected) in
        [("halve-lr", "the learning rate is halved"), ("rollback", "the learning rate is halved; back to step 4")]
    {
        let (run, outcome, warned) = train(what, 0)?;
        assert!(outcome.is_ok_and(|o| o.steps == 12), "{what}");
        assert!(warned.0.iter().any(|w| w.contains(expected)), "{what}: {:?}", warned.0);
        let read = |run: &RunFiles, file: &str| std::fs::read(run.path().join(file)).map_err(Error::io(run.path()));
        let metrics = String::from_utf8_lossy(&read(&run, "metrics.jsonl")?).into_owned();
        let rates: Vec<f64> = (metrics.lines().filter_map(|l| serde_json::from_str::<Value>(l).ok()))
            .filter_map(|v| v["lr"].as_f64())
            .collect();
        assert_eq!((rates.len(), rates[0], rates[11]), (12, 0.05, 0.025), "{what}: {rates:?}");
        // An interruption changes nothing, wherever it comes.
        for stop_at in [3, 6, 7, 9, 10, 11] {
            let (again, outcome, _) = train(what, stop_at)?;
            assert!(outcome.is_ok(), "{what} {stop_at}: {outcome:?}");
            for file in ["last.safetensors", "health.jsonl", "checkpoints/step-00000012/state.json"] {
                assert!(read(&again, file)? == read(&run, file)?, "{what}, interrupted at {stop_at}: {file}");
            }
        }
    }
    Ok(())
}

#[test]
fn frozen_parameters_stay_and_initial_weights_are_taken_up() -> Result<()> {
    let temporary = tempfile::tempdir().map_err(Error::io(Path::new("temporary")))?;
    let task = Line { fault: String::new() };
    let first = RunFiles::at(&temporary.path().join("first"));
    let plain = config(&[])?;
    begun(&task, &plain, first.path())?.train(&mut Silent, &|| false)?;
    let init = format!("train.init_from={:?}", first.last().display().to_string());
    let config = config(&[&init, "train.freeze=^one[.]", "train.seed=7"])?;
    let mut trainer = Trainer::new(&task, &config, &Device::Cpu)?;
    let before = weights(&trainer)?;
    let saved = zoo_checkpoint::read(&first.last(), &Device::Cpu)?;
    let of_file = |name: &str| saved.tensors[name].flatten_all()?.to_vec1::<f32>();
    assert_eq!(before[..8], of_file("one.weight")?);
    let outcome = trainer.train(&mut Silent, &|| false)?;
    assert_eq!((outcome.gradients.tensors, outcome.gradients.with_gradient), (2, 2));
    let after = weights(&trainer)?;
    assert_eq!((&after[..12], after.len()), (&before[..12], 17));
    assert_ne!(after[12..], before[12..]);
    Ok(())
}

#[test]
fn an_average_of_the_weights_is_evaluated_and_kept() -> Result<()> {
    let temporary = tempfile::tempdir().map_err(Error::io(Path::new("temporary")))?;
    let task = Line { fault: String::new() };
    let run = RunFiles::at(&temporary.path().join("run"));
    let config = config(&["train.ema=0.99", "train.keep_best=2", "train.prefetch=2"])?;
    let mut trainer = begun(&task, &config, run.path())?;
    trainer.train(&mut Silent, &|| false)?;
    let read = |path: &Path| -> Result<Vec<f32>> {
        let file = zoo_checkpoint::read(path, &Device::Cpu)?;
        let order = ["one.weight", "one.bias", "two.weight", "two.bias"];
        Ok(order
            .map(|n| file.tensors[n].flatten_all()?.to_vec1::<f32>())
            .into_iter()
            .collect::<candle_core::Result<Vec<_>>>()?
            .concat())
    };
    let checkpoint = run.path().join("checkpoints/step-00000012");
    assert_eq!(read(&checkpoint.join("model.safetensors"))?, weights(&trainer)?);
    let average = read(&checkpoint.join("average.safetensors"))?;
    assert_ne!(average, weights(&trainer)?);
    assert_eq!(read(&run.last())?, average);
    let kept = std::fs::read_dir(run.path().join("checkpoints")).map_err(Error::io(run.path()))?;
    let kept = kept.flatten().filter(|e| e.file_name().to_string_lossy().starts_with("best-step-")).count();
    assert!((2..=4).contains(&kept), "{kept}");
    Ok(())
}

#[test]
fn training_learns_and_overfits_a_batch() -> Result<()> {
    for overfit_batch in [false, true] {
        let config = config(&["train.steps=300", &format!("train.overfit_batch={overfit_batch}")])?;
        let task = Line { fault: String::new() };
        let mut trainer = Trainer::new(&task, &config, &Device::Cpu)?;
        let outcome = trainer.train(&mut Silent, &|| false)?;
        assert!(outcome.loss < 1e-3, "{outcome:?}");
        assert_eq!((outcome.end, outcome.steps), (End::Finished, 300));
        assert_eq!((outcome.gradients.tensors, outcome.gradients.with_gradient), (4, 4));
    }
    Ok(())
}

#[test]
fn accumulated_micro_steps_equal_one_large_batch() -> Result<()> {
    let run = |set: &[&str]| -> Result<Vec<f32>> {
        let config = config(set)?;
        let task = Line { fault: String::new() };
        let mut trainer = Trainer::new(&task, &config, &Device::Cpu)?;
        trainer.train(&mut Silent, &|| false)?;
        weights(&trainer)
    };
    // One epoch either way: the same twenty samples, in one batch or in several, of which the last may have fewer.
    let whole = run(&["train.batch_size=20", "train.steps=1", "train.optimizer=sgd"])?;
    for (size, count) in [(5, 4), (6, 4), (19, 2)] {
        let (size, count) = (format!("train.batch_size={size}"), format!("train.accumulate={count}"));
        let parts = run(&[&size, &count, "train.steps=1", "train.optimizer=sgd"])?;
        assert!(whole.iter().zip(&parts).all(|(a, b)| (a - b).abs() < 1e-6), "{size}: {whole:?} {parts:?}");
    }
    Ok(())
}

#[test]
fn an_interrupted_and_resumed_run_ends_in_the_same_bytes() -> Result<()> {
    let temporary = tempfile::tempdir().map_err(Error::io(Path::new("temporary")))?;
    let config = config(&["train.schedule=plateau", "train.plateau_patience=0", "train.eval_every=2"])?;
    let task = Line { fault: String::new() };
    let through = temporary.path().join("through");
    let stopped = temporary.path().join("stopped");
    begun(&task, &config, &through)?.train(&mut Silent, &|| false)?;
    let steps = Cell::new(0);
    let first = {
        let stop = || steps.replace(steps.get() + 1) == 4;
        let mut trainer = begun(&task, &config, &stopped)?;
        trainer.train(&mut Silent, &stop)?
    };
    assert_eq!((first.end, first.steps), (End::Interrupted, 5));
    let mut trainer = Trainer::begin_or_resume(&task, &config, &Device::Cpu, &stopped, &mut Silent)?;
    // Seven steps are left of twelve: it did not start again.
    let taken = Cell::new(0);
    let count = || {
        taken.set(taken.get() + 1);
        false
    };
    assert_eq!(trainer.train(&mut Silent, &count)?.end, End::Finished);
    assert_eq!(taken.get(), 7);
    for file in [
        "last.safetensors",
        "best.safetensors",
        "checkpoints/step-00000012/state.json",
        "checkpoints/step-00000012/optimizer.safetensors",
    ] {
        let read = |dir: &Path| std::fs::read(dir.join(file)).map_err(Error::io(dir));
        assert_eq!(read(&through)?, read(&stopped)?, "{file}");
    }
    let taken = begun(&task, &config, &stopped).err();
    assert!(matches!(taken, Some(Error::RunExists(_))), "a run must not be overwritten: {taken:?}");
    let used = Trainer::resume(&task, &config, &Device::Cpu, &stopped, &[], &mut Silent).err().map(|e| e.to_string());
    assert!(used.is_some_and(|e| e.contains("in use")), "a run in use must be refused");
    Ok(())
}

#[test]
fn a_damaged_checkpoint_is_passed_over_and_replaced() -> Result<()> {
    let temporary = tempfile::tempdir().map_err(Error::io(Path::new("temporary")))?;
    let path = temporary.path().join("run");
    let config = config(&["train.keep=5"])?;
    let task = Line { fault: String::new() };
    begun(&task, &config, &path)?.train(&mut Silent, &|| false)?;
    let read = |file: &str| std::fs::read(path.join(file)).map_err(Error::io(&path));
    let (last, newest) = (read("last.safetensors")?, "checkpoints/step-00000012/model.safetensors");
    let mut bytes = read(newest)?;
    let middle = bytes.len() - 9;
    bytes[middle] ^= 1;
    std::fs::write(path.join(newest), bytes).map_err(Error::io(&path))?;

    let mut warned = Warned::default();
    let mut trainer = Trainer::resume(&task, &config, &Device::Cpu, &path, &[], &mut warned)?;
    assert!(warned.0[0].contains("step-00000012 is damaged"), "{:?}", warned.0);
    assert_eq!(trainer.train(&mut warned, &|| false)?.steps, 12);
    assert_eq!(read("last.safetensors")?, last);
    assert_eq!(read(newest)?, last, "the damaged checkpoint was not made again");
    assert!(path.join("checkpoints/step-00000012.damaged").exists());
    Ok(())
}

#[test]
fn early_stopping_ends_a_run_that_no_longer_improves() -> Result<()> {
    let config = config(&["train.lr=1e-30", "train.epochs=50", "train.early_stopping=3"])?;
    let task = Line { fault: String::new() };
    let mut trainer = Trainer::new(&task, &config, &Device::Cpu)?;
    let outcome = trainer.train(&mut Silent, &|| false)?;
    assert_eq!((outcome.end, outcome.steps), (End::Early, 16));
    Ok(())
}

#[test]
fn configuration_is_layered_and_refuses_what_it_does_not_know() -> Result<()> {
    let wide = |file: Option<(&str, &str)>, set: &[&str]| {
        let file = file.map(|(text, name)| ConfigFile::parse(text, name)).transpose()?;
        let set: Vec<String> = set.iter().map(|s| s.to_string()).collect();
        resolve::<Line>(&Overrides { preset: Some("wide"), file: file.as_ref(), set: &set, ..Default::default() })
    };
    let c = wide(Some(("[train]\nlr = 1\nepochs = 7\n", "my.toml")), &["train.epochs=8", "model.fault=none"])?;
    assert_eq!((c.model.width, c.train.lr, c.train.epochs, c.model.fault.as_str()), (9, 1., 8, "none"));
    assert_eq!(resolve::<Line>(&Overrides::default())?.train.lr, 0.05);
    let refused = |set: &str| wide(None, &[set]).map(|_| ()).unwrap_err().to_string();
    for (set, expected) in [
        ("train.learning_rate=1", "unknown key train.learning_rate"),
        ("lr=1", "unknown key lr (did you mean train.lr?)"),
        ("train.batchsize=1", "did you mean train.batch_size?"),
        ("train.batch_size=big", "train.batch_size takes a whole number, got \"big\""),
        ("train.batch_size=1.5", "train.batch_size takes a whole number, got 1.5"),
        ("train.batch_size=0", "train.batch_size must be at least 1"),
        ("train.batch_size=-1", "train.batch_size"),
        ("train.lr=nan", "train.lr must be a positive number"),
        ("train.optimizer=adamm", "unknown variant `adamm`"),
        ("nothing", "expected key=value"),
        ("train.beta1=0.5", "unknown key train.beta1: it is train.optimizer.beta1 now"),
        ("train.ppo.gamma=0.5", "unknown key train.ppo.gamma"),
        (
            "train.optimizer.nesterov=true",
            "unknown key train.optimizer.nesterov: adamw has beta1, beta2, eps, weight_decay",
        ),
        ("train.optimizer.eps=0", "train.optimizer.eps must be positive"),
    ] {
        let message = refused(set);
        assert!(message.contains(expected) && !message.contains('\n'), "{set}: {message}");
    }
    let message = wide(Some(("[train]\nlr = = 1", "my.toml")), &[]).map(|_| ()).unwrap_err().to_string();
    assert!(message.starts_with("my.toml: line 2:"), "{message}");
    assert!(resolve::<Line>(&Overrides { preset: Some("narrow"), ..Default::default() }).is_err());
    let text = zoo_training::config::to_toml(&c)?;
    let printed = ConfigFile::parse(&text, "printed")?;
    let again = resolve::<Line>(&Overrides { file: Some(&printed), ..Default::default() })?;
    assert_eq!(zoo_training::config::to_toml(&again)?, text);
    Ok(())
}

#[test]
fn an_optimizer_has_its_own_constants_and_keeps_those_that_it_shares() -> Result<()> {
    let of = |set: &[&str]| -> Result<String> {
        Ok(format!("{:?}", config(set)?.train.optimizer).replace("Config ", " ").replace("OptimizerConfig::", ""))
    };
    let decayed = "train.optimizer.weight_decay=0.5";
    assert_eq!(
        of(&[decayed, "train.optimizer=sgd"])?,
        "Sgd(Sgd { momentum: 0.9, nesterov: false, weight_decay: 0.5 })"
    );
    let muon = of(&["train.optimizer.beta2=0.9", "train.optimizer.kind=muon", "train.optimizer.momentum=0.8"])?;
    assert_eq!(muon, "Muon(Muon { momentum: 0.8, beta1: 0.9, beta2: 0.9, eps: 1e-8, weight_decay: 0.0 })");
    // As 0.1 wrote it: flat keys, of which most had no effect.
    let old = "[train]\noptimizer = \"rmsprop\"\nlr = 0.1\nbeta1 = 0.9\nbeta2 = 0.7\neps = 1e-5\nmomentum = 0.0\nnesterov = false\n\
               weight_decay = 0.2\nrevive_attention = false\npooling_nudge = false\n";
    let file = ConfigFile::parse(old, "config.toml")?;
    let read = resolve::<Line>(&Overrides { file: Some(&file), ..Default::default() })?;
    assert_eq!(
        format!("{:?}", read.train.optimizer),
        "RmsProp(RmsPropConfig { alpha: 0.7, eps: 1e-5, momentum: 0.0, weight_decay: 0.2 })"
    );
    let note = file.note().unwrap_or_default();
    assert!(
        note.starts_with("config.toml: written by zoo 0.1")
            && note.contains("train.beta2 is train.optimizer.alpha now")
            && !note.contains("beta1")
    );
    // Of an old and a new name the new one stands, and the table keeps its kind.
    let both = "[train]\nbeta2 = 0.95\nmomentum = 0.5\n[train.optimizer]\nkind = \"muon\"\nbeta2 = 0.7\n";
    let file = ConfigFile::parse(both, "both.toml")?;
    let read = resolve::<Line>(&Overrides { file: Some(&file), ..Default::default() })?;
    let muon = format!("{:?}", read.train.optimizer);
    assert!(muon.contains("Muon") && muon.contains("beta2: 0.7") && muon.contains("momentum: 0.5"), "{muon}");
    let alpha = of(&["train.optimizer.beta2=0.6", "train.optimizer=rmsprop"])?;
    assert!(alpha.contains("alpha: 0.6"), "{alpha}");
    Ok(())
}

#[test]
fn a_run_keeps_its_configuration_and_refuses_another_one_or_a_newer_format() -> Result<()> {
    let temporary = tempfile::tempdir().map_err(Error::io(Path::new("temporary")))?;
    let (task, run) = (Line { fault: String::new() }, RunFiles::at(&temporary.path().join("run")));
    let first = config(&[])?;
    begun(&task, &first, run.path())?.train(&mut Silent, &|| false)?;
    let other = config(&["train.optimizer.beta1=0.5", "train.epochs=4", "train.log_every=1"])?;
    let resume = |changed: &[&str]| {
        let changed: Vec<String> = changed.iter().map(|s| s.to_string()).collect();
        Trainer::resume(&task, &other, &Device::Cpu, run.path(), &changed, &mut Silent).map(|_| ())
    };
    match resume(&["train.epochs"]) {
        Err(Error::Changed { differences, .. }) => {
            assert_eq!(differences.iter().map(|d| d.key.as_str()).collect::<Vec<_>>(), ["train.optimizer.beta1"]);
        }
        other => panic!("{other:?}"),
    }
    assert!(
        matches!(resume(&["train.epochs", "train.optimizer", "train.speed"]), Err(Error::NoSuchKey(key)) if key == "train.speed")
    );
    let read = |path: &Path| std::fs::read_to_string(path).map_err(Error::io(path));
    assert!(read(&run.config())?.contains("beta1 = 0.9"));
    resume(&["train.epochs", "train.optimizer"])?;
    // What was allowed is the run's configuration from then on.
    assert!(read(&run.config())?.contains("beta1 = 0.5"));
    // An older checkpoint lies beside it, and still the newer one is neither passed over nor moved.
    let path = run.checkpoints().join("step-00000012").join("manifest.json");
    let text = read(&path)?;
    assert!(text.contains("\"version\": 1") && run.checkpoints().join("step-00000008").is_dir(), "{text}");
    std::fs::write(&path, text.replace("\"version\": 1", "\"version\": 99")).map_err(Error::io(&path))?;
    let refused = resume(&[]).unwrap_err().to_string();
    assert!(refused.contains("has version 99 of its format"), "{refused}");
    std::fs::write(&path, text).map_err(Error::io(&path))?;
    resume(&[])?;
    Ok(())
}
