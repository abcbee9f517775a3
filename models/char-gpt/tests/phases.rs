//! The five phases in which a transformer proves itself: architecture, data, stability, generation, full training.
//! Each is a command as well: see the crate's README.

use candle_core::{Device, IndexOp, Tensor};
use zoo_char_gpt::{CharGpt, CharTask, Config};
use zoo_layers::optim::norm_squared;
use zoo_layers::{Mode, Params};
use zoo_training::config::{ConfigOf, Overrides, resolve};
use zoo_training::{Event, Observer, Recipe, Split, Task, Trainer};

type Outcome<T = ()> = Result<T, Box<dyn std::error::Error>>;

fn configured(preset: &str, set: &[&str]) -> Outcome<ConfigOf<CharTask>> {
    let set: Vec<String> = set.iter().map(|s| s.to_string()).collect();
    let mut config = resolve::<CharTask>(&Overrides { preset: Some(preset), set: &set, ..Overrides::default() })?;
    CharTask::settle(&mut config)?;
    Ok(config)
}

fn opened(config: &ConfigOf<CharTask>) -> zoo_training::Result<CharTask> {
    CharTask::open(&config.model, &config.data, config.train.seed, None, &Device::Cpu)
}

#[test]
fn presets_have_the_documented_sizes() -> Outcome {
    for (preset, tensors, elements) in [
        ("cpu", 27, 804_096),
        ("cpu-fast", 27, 804_096),
        ("seed", 21, 62_528),
        ("baby", 39, 10_745_088),
        ("tiny", 15, 5_472),
    ] {
        let config = configured(preset, &[])?;
        let params = Params::init(1, &Device::Cpu);
        CharGpt::new(&config.model, params.builder())?;
        let count: usize = params.all().iter().map(|p| p.var.elem_count()).sum();
        assert_eq!((params.all().len(), count), (tensors, elements), "{preset}");
    }
    assert_eq!(configured("seed", &[])?.model, Config::seed());
    assert_eq!(configured("tiny", &[])?.model, Config::tiny());
    Ok(())
}

#[test]
fn weights_of_another_vocabulary_are_not_begun_with() -> Outcome {
    let dir = tempfile::tempdir()?;
    let config = configured("tiny", &["data.vocabulary=abc\n"])?;
    let description = zoo_checkpoint::Description {
        model: "char-gpt".into(),
        config: serde_json::to_value(&config)?,
        fitted: "abc\n".into(),
    };
    let weights = dir.path().join("weights.safetensors");
    zoo_checkpoint::write(&weights, &[], &description.metadata())?;
    let from = format!("train.init_from={:?}", weights.to_string_lossy());
    assert_eq!(configured("tiny", &[&from])?.data.vocabulary, "abc\n");
    let other = configured("tiny", &[&from, "data.vocabulary=xyz"]).map(|_| ()).unwrap_err().to_string();
    assert!(other.contains("data.vocabulary is not that of"), "{other}");
    Ok(())
}

/// Losses and pre-clip gradient norms of every step.
#[derive(Default)]
struct Steps(Vec<(f64, f64)>);

impl Observer for Steps {
    fn observe(&mut self, event: &Event) {
        if let Event::Step { loss, grad_norm, .. } = event {
            self.0.push((*loss, *grad_norm));
        }
    }
}

#[test]
fn phase_1_every_tensor_has_a_finite_gradient_and_all_but_the_key_bias_one_that_counts() -> Outcome {
    let params = Params::init(1, &Device::Cpu);
    let model = CharGpt::new(&Config::seed(), params.builder())?;
    let config = configured("seed", &[])?;
    let task = opened(&config)?;
    let batch = task.batch(Split::Train, &[0, 1000, 2000, 3000])?;
    let logits = model.forward(&batch.0, Mode::Train { seed: 1, step: 0 })?;
    assert_eq!(logits.dims(), [4, 64, 65]);
    let loss = task.loss(&model, &batch, Mode::Train { seed: 1, step: 0 })?.total;
    let grads = params.gradients(&loss.backward()?);
    let mut norms = vec![];
    for (name, grad) in grads.iter() {
        let norm = norm_squared(grad.ok_or_else(|| format!("no gradient for {name}"))?)?.sqrt();
        assert!(norm.is_finite(), "{name}");
        norms.push((name.to_string(), norm));
    }
    let of = |name: &str| norms.iter().find(|(n, _)| n.ends_with(name)).map_or(f64::NAN, |(_, norm)| *norm);
    assert_eq!(norms.len(), 21);
    // A constant added to all keys moves all scores of a row by as much, which softmax ignores.
    assert!(of("k_proj.bias") <= 1e-6 * of("q_proj.bias"), "{} {}", of("k_proj.bias"), of("q_proj.bias"));
    let counting = norms.iter().filter(|(name, norm)| *norm > 1e-6 && !name.ends_with("k_proj.bias")).count();
    assert_eq!(counting, 20, "{norms:?}");
    // Nobody sees what comes later: a changed last character changes the last logits alone.
    let ids = batch.0.i(0..1)?;
    let changed = Tensor::new(&[[(ids.i((0, 63))?.to_scalar::<i64>()? + 1) % 65]], &Device::Cpu)?;
    let other = Tensor::cat(&[ids.i((.., ..63))?, changed], 1)?;
    let same = |a: &Tensor, b: &Tensor| -> Outcome<f32> { Ok((a - b)?.abs()?.max_all()?.to_scalar::<f32>()?) };
    let (a, b) = (model.forward(&ids, Mode::Eval)?, model.forward(&other, Mode::Eval)?);
    assert_eq!(same(&a.i((.., ..63))?, &b.i((.., ..63))?)?, 0.);
    assert!(same(&a.i((.., 63..))?, &b.i((.., 63..))?)? > 1e-3);
    Ok(())
}

#[test]
fn phase_2_windows_hold_the_text_and_what_follows_and_parts_do_not_overlap() -> Outcome {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("text.txt");
    let text: String = ('a'..='z').cycle().take(1000).collect();
    // A mark at the beginning is no character of the text.
    std::fs::write(&path, format!("\u{feff}{text}"))?;
    let at = format!("data.path={:?}", path.to_string_lossy());
    let config = configured("tiny", &[&at])?;
    assert_eq!((config.model.vocabulary, config.data.vocabulary.as_str()), (26, "abcdefghijklmnopqrstuvwxyz"));
    let task = opened(&config)?;
    // 900 characters train, 100 validate in windows of 16 and the one that follows each.
    assert_eq!([Split::Train, Split::Valid].map(|s| task.samples(s)), [900 - 16, 6]);
    let (ids, targets) = task.batch(Split::Train, &[0, 883])?;
    let (ids, targets) = (ids.to_vec2::<i64>()?, targets.to_vec2::<i64>()?);
    assert_eq!(ids[0], (0..16).collect::<Vec<i64>>());
    assert_eq!(targets[1][15], 899 % 26, "the training part's last character is a target");
    let (ids, _) = task.batch(Split::Valid, &[0, 1])?;
    assert_eq!(ids.to_vec2::<i64>()?.iter().map(|row| row[0]).collect::<Vec<_>>(), [900 % 26, 916 % 26]);

    let message = |set: &[&str]| -> Outcome<String> {
        match configured("tiny", set).and_then(|c| Ok(opened(&c)?)) {
            Err(e) => Ok(e.to_string()),
            Ok(_) => Err("it was accepted".into()),
        }
    };
    let unknown = message(&[&at, "data.vocabulary=abc"])?;
    assert!(unknown.contains("text.txt: the character 'd' (line 1, column 4)"), "{unknown}");
    assert!(message(&[&at, "model.context=200"])?.contains("more text"));
    std::fs::write(&path, [b'a', 0xff, b'b'])?;
    assert!(message(&[&at])?.contains("line 1: not UTF-8 text"));
    std::fs::write(&path, "")?;
    assert!(message(&[&at])?.contains("text.txt: the file is empty"), "{}", message(&[&at])?);
    assert!(message(&["data.path=nowhere.txt"])?.contains("nowhere.txt"));
    Ok(())
}

#[test]
fn phase_3_training_stays_finite_with_norms_between_a_twentieth_and_five() -> Outcome {
    let config =
        configured("seed", &["train.steps=120", "train.eval_every=60", "data.eval_windows=16", "train.log_every=1"])?;
    let task = opened(&config)?;
    let mut steps = Steps::default();
    let outcome = Trainer::new(&task, &config, &Device::Cpu)?.train(&mut steps, &|| false)?;
    assert_eq!((steps.0.len(), outcome.refused), (120, 0));
    for (i, (loss, norm)) in steps.0.iter().enumerate() {
        assert!(loss.is_finite() && (0.05..5.).contains(norm), "step {}: loss {loss}, norm {norm}", i + 1);
    }
    let (first, last) = (steps.0[0].0, steps.0[119].0);
    assert!((first - 65f64.ln()).abs() < 0.1 && last < first - 1., "{first} {last}");
    Ok(())
}

#[test]
fn phase_4_a_trained_model_writes_more_known_words_than_a_bigram() -> Outcome {
    let config = configured(
        "seed",
        &["train.steps=300", "train.eval_every=300", "data.eval_windows=16", "data.generated=100000", "train.lr=4e-3"],
    )?;
    let task = opened(&config)?;
    let mut trainer = Trainer::new(&task, &config, &Device::Cpu)?;
    trainer.train(&mut Steps::default(), &|| false)?;
    let model = CharTask::build(&config.model, trainer.params().eval_builder())?;
    let judged = task.evaluate(&model, Split::Valid)?;
    let known = |m: &zoo_training::Metrics| m.value("known_words");
    let (of_model, of_bigram, of_fivegram) =
        (known(&judged.metrics), known(&judged.baselines[0].1), known(&judged.baselines[1].1));
    assert!(of_model > of_bigram + 0.2, "{of_model} {of_bigram}");
    assert!(of_fivegram > 0.9, "{of_fivegram}");
    // Every character of the validation part is judged but its first.
    let text = zoo_char_gpt::dialogue(config.data.generated, config.train.seed);
    assert_eq!(judged.samples, text.len() - (text.len() as f64 * 0.9) as usize - 1);
    Ok(())
}

#[test]
fn phase_5_tiny_shakespeare_is_learned_better_than_a_bigram_knows_it() -> Outcome {
    let file = "shakespeare/tiny_shakespeare.txt";
    let Some(path) = zoo_test_skips::data(env!("CARGO_MANIFEST_DIR"), file) else { return Ok(()) };
    let at = format!("data.path={path:?}");
    let config = configured("seed", &[&at, "train.steps=600", "train.eval_every=600", "train.lr=4e-3"])?;
    let task = opened(&config)?;
    assert_eq!(config.model.vocabulary, 65);
    let mut trainer = Trainer::new(&task, &config, &Device::Cpu)?;
    trainer.train(&mut Steps::default(), &|| false)?;
    let model = CharTask::build(&config.model, trainer.params().eval_builder())?;
    let judged = task.evaluate(&model, Split::Valid)?;
    assert_eq!(judged.samples, 111_539);
    let loss = |m: &zoo_training::Metrics| m[0].1;
    let (bigram, fivegram) = (loss(&judged.baselines[0].1), loss(&judged.baselines[1].1));
    assert!(loss(&judged.metrics) < bigram && (bigram - 2.486).abs() < 2e-3 && (fivegram - 1.669).abs() < 2e-3);
    Ok(())
}

#[test]
fn one_batch_is_learned_down_to_what_it_leaves_open() -> Outcome {
    let set = ["train.steps=600", "train.overfit_batch=true", "train.eval_every=600", "data.eval_windows=16"];
    let config = configured("seed", &set)?;
    let task = opened(&config)?;
    let mut steps = Steps::default();
    let outcome = Trainer::new(&task, &config, &Device::Cpu)?.train(&mut steps, &|| false)?;
    let least = outcome.least_loss.ok_or("the task knows the least loss")?;
    assert!((4.0..4.4).contains(&steps.0[0].0) && outcome.loss > least, "{} {least}", steps.0[0].0);
    assert!(outcome.loss < least + 0.01, "{} {least}", outcome.loss);
    Ok(())
}
