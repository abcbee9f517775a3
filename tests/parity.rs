//! Models against PyTorch in f64: output, every gradient, ten AdamW losses.
//!
//! The fixtures are what the scripts in tests/fixtures/ wrote. With ZOO_TORCH=python (a Python that has torch) the test
//! runs the scripts again and compares with that too.

use std::path::{Path, PathBuf};
use std::process::Command;

use candle_core::{DType, Device, Tensor};
use zoo_char_gpt::CharGpt;
use zoo_kernels::cpu::simd::{levels, with_level};
use zoo_layers::optim::{Moments, Optimizer, Rule, clip_factor, decay_matrices, global_norm};
use zoo_layers::{Mode, Params, ops};
use zoo_llama::{Llama, Lora, Scaling};
use zoo_stock_lstm::StockLstm;
use zoo_test_skips::skipped;
use zoo_trading_transformer::features::FEATURES;
use zoo_trading_transformer::{Head, TradingTransformer};
use zoo_training::ppo::{self, ActorCritic};

type Outcome<T = ()> = Result<T, Box<dyn std::error::Error>>;

const RELATIVE: f64 = 5e-6;
const LOSSES: f64 = 1e-6;
/// Fixtures by their script.
const FIXTURES: [(&str, &str); 11] = [
    ("stock_lstm", "stock_lstm.py"),
    ("char_gpt_seed", "char_gpt.py"),
    ("char_gpt_cpu", "char_gpt.py"),
    ("trading_transformer", "trading_transformer.py"),
    ("trading_policy", "trading_policy.py"),
    ("deepsif_transformer", "deepsif.py"),
    ("deepsif_lstm", "deepsif.py"),
    ("deepsif_post_ln", "deepsif.py"),
    ("llama", "llama.py"),
    ("llama_scaled", "llama.py"),
    ("llama_lora", "llama.py"),
];

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures").join(name)
}

/// The scripts' `numbers`.
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
    Ok(norm(&(flat(got)? - flat(expected)?)?)? / norm(&flat(expected)?)?)
}

fn norm(t: &Tensor) -> candle_core::Result<f64> {
    t.to_dtype(DType::F64)?.sqr()?.sum_all()?.sqrt()?.to_scalar()
}

/// Output and loss of the batch at hand.
type Step = Box<dyn Fn(Mode) -> candle_core::Result<(Tensor, Tensor)>>;

/// The model of a fixture, and AdamW's β₂.
fn model(name: &str, params: &Params) -> candle_core::Result<(Step, f64)> {
    if name == "stock_lstm" {
        let config = zoo_stock_lstm::Config { dropout: 0., ..Default::default() };
        let model = StockLstm::new(&config, params.builder())?;
        let (x, y) = (numbers("x", &[32, 60, 1], 4.)?, numbers("y", &[32, 1], 2.)?);
        let step = move |mode| {
            let output = model.forward(&x, mode)?;
            let loss = ops::mse(&output, &y)?;
            Ok((output, loss))
        };
        return Ok((Box::new(step), 0.999));
    }
    if let Some(kind) = name.strip_prefix("deepsif_") {
        let config = match kind {
            "transformer" => zoo_deepsif::Config::default(),
            "lstm" => {
                zoo_deepsif::Config { activation: zoo_deepsif::FilterActivation::Elu, ..zoo_deepsif::Config::lstm() }
            }
            _ => zoo_deepsif::Config::post_ln(),
        };
        let config = zoo_deepsif::Config { sensors: 12, sources: 30, filter: 24, width: 16, ..config };
        let config = zoo_deepsif::Config { heads: 2, layers: 2, hidden: 32, positions: 40, dropout: 0., ..config };
        let model = zoo_deepsif::Network::new(&config, params.builder())?;
        let (x, y) = (numbers("eeg", &[3, 20, 12], 2.)?, numbers("activity", &[3, 20, 30], 2.)?);
        let step = move |mode| {
            let output = model.forward(&x, mode)?;
            let loss = zoo_deepsif::loss(&output, &y)?.total;
            Ok((output, loss))
        };
        return Ok((Box::new(step), 0.95));
    }
    let sizes =
        zoo_trading_transformer::Config { bars: 6, width: 32, hidden: 64, features_dim: 16, ..Default::default() };
    let sizes = zoo_trading_transformer::Config { dropout: 0., ..sizes };
    if name == "trading_policy" {
        let config = zoo_trading_transformer::Config { head: Head::Policy, ..sizes };
        let model = TradingTransformer::new(&config, params.builder())?;
        let of = |name: &str, scale| numbers(name, &[8], scale);
        let batch = ppo::Batch {
            observation: numbers("observation", &[8, 6 * FEATURES], 4.)?,
            action: of("action", 6.)?.abs()?.floor()?.to_dtype(DType::U32)?,
            log_prob: (of("log_prob", 0.8)? - 1.1)?,
            value: of("value", 1.)?,
            advantage: of("advantage", 2.)?,
            target: of("target", 2.)?,
            settings: ppo::Settings { clip_value: true, value_weight: 0.5, ..ppo::Settings::default() },
        };
        let step = move |mode| {
            let (policy, value) = model.act(&batch.observation, mode)?;
            let loss = ppo::loss(&policy, &value, &batch)?.total;
            Ok((policy.output().clone(), loss))
        };
        return Ok((Box::new(step), 0.999));
    }
    if name == "trading_transformer" {
        let model = TradingTransformer::new(&sizes, params.builder())?;
        let x = numbers("observation", &[5, 6 * FEATURES], 4.)?;
        let y = numbers("direction", &[5], 6.)?.abs()?.floor()?.to_dtype(DType::I64)?;
        let step = move |mode| {
            let logits = model.forward(&x, mode)?;
            let loss = ops::cross_entropy(&logits, &y, Default::default())?;
            Ok((logits, loss))
        };
        return Ok((Box::new(step), 0.999));
    }
    if name.starts_with("llama") {
        let config = zoo_llama::Config { vocabulary: 48, context: 24, layers: 2, heads: 4, ..Default::default() };
        let config = zoo_llama::Config { key_heads: 2, head_width: 16, width: 32, hidden: 80, ..config };
        let scaled = zoo_llama::Config {
            rope_scaling: Scaling::Llama3,
            rope_factor: 8.,
            rope_first_context: 16,
            ..config.clone()
        };
        let config = match name {
            "llama_scaled" => zoo_llama::Config { tied: false, rope_base: 500_000., ..scaled },
            "llama_lora" => {
                let targets = "(q|v|down)_proj$".into();
                let lora = Lora { rank: 4, alpha: 3., rslora: true, targets, ..Lora::default() };
                zoo_llama::Config { lora, ..config }
            }
            _ => config,
        };
        let model = Llama::new(&config, params.builder())?;
        let tokens = |name: &str| numbers(name, &[3, 24], 96.)?.abs()?.floor()?.to_dtype(DType::I64);
        let (ids, targets) = (tokens("ids")?, tokens("targets")?);
        let step = move |_| {
            let logits = model.forward(&ids, None)?;
            let loss = ops::cross_entropy(&logits, &targets, Default::default())?;
            Ok((logits, loss))
        };
        return Ok((Box::new(step), 0.99));
    }
    let config = match name {
        "char_gpt_seed" => zoo_char_gpt::Config::seed(),
        _ => zoo_char_gpt::Config { context: 16, layers: 2, width: 32, hidden: 128, ..Default::default() },
    };
    let model = CharGpt::new(&config, params.builder())?;
    let characters = |name: &str| numbers(name, &[3, config.context], 130.)?.abs()?.floor()?.to_dtype(DType::I64);
    let (ids, targets) = (characters("ids")?, characters("targets")?);
    let step = move |mode| {
        let logits = model.forward(&ids, mode)?;
        let loss = ops::cross_entropy(&logits, &targets, Default::default())?;
        Ok((logits, loss))
    };
    Ok((Box::new(step), 0.99))
}

fn compare(name: &str, path: &Path) -> Outcome {
    let expected = zoo_checkpoint::read(path, &Device::Cpu)?.tensors;
    // Of a model with LoRA that alone is trained.
    let (is_adapter, params) = (name.ends_with("_lora"), Params::init(0, &Device::Cpu));
    let params = params.with_frozen(move |name| is_adapter && !name.contains(".lora_"));
    let (forward, beta2) = model(name, &params)?;
    for p in params.all() {
        let start = if p.name.contains("norm") && p.name.ends_with("weight") { 1. } else { 0. };
        p.var.set(&(numbers(&p.name, p.var.dims(), 0.25)? + start)?)?;
    }
    assert_eq!(params.trainable().len(), expected.keys().filter(|k| k.starts_with("grad.")).count());
    let moments = Moments { beta2, ..Moments::default() };
    let mut optimizer = Optimizer::new(Rule::AdamW(moments), &params, decay_matrices(0.01))?;
    let losses = expected["losses"].to_vec1::<f64>()?;
    for (step, expected_loss) in losses.iter().enumerate() {
        let (output, loss) = forward(Mode::Train { seed: 0, step: step as u64 })?;
        let grads = params.gradients(&loss.backward()?);
        if step == 0 {
            let off = distance(&output, &expected["output"])?;
            assert!(off <= RELATIVE, "{name}: output: {off:e}");
            for (key, grad) in grads.iter() {
                let grad = grad.ok_or_else(|| format!("no gradient for {key}"))?;
                if key.ends_with("k_proj.bias") {
                    // Zero by mathematics, and rounding here and there.
                    let size = norm(grad)? / norm(&expected["grad.blocks.0.self_attn.q_proj.bias"])?;
                    assert!(size <= 1e-6, "{name}: gradient of {key}: {size:e} of the queries'");
                    continue;
                }
                let off = distance(grad, &expected[&format!("grad.{key}")])?;
                assert!(off <= RELATIVE, "{name}: gradient of {key}: {off:e}");
            }
        }
        let loss = f64::from(loss.to_scalar::<f32>()?);
        let off = (loss - expected_loss).abs() / expected_loss.abs().max(1.);
        assert!(off <= LOSSES, "{name}: loss of step {step}: {loss} for {expected_loss}");
        optimizer.step(&grads, 1e-3, clip_factor(global_norm(&grads)?, 1.))?;
    }
    Ok(())
}

#[test]
fn models_agree_with_pytorch_at_every_simd_level() -> Outcome {
    for (name, _) in FIXTURES {
        for level in levels() {
            with_level(level, || compare(name, &fixture(&format!("{name}.safetensors"))))?;
        }
    }
    Ok(())
}

#[test]
fn the_fixtures_are_what_their_scripts_write() -> Outcome {
    let Ok(python) = std::env::var("ZOO_TORCH") else {
        skipped("torch", "set ZOO_TORCH to a Python with torch to make the fixtures again");
        return Ok(());
    };
    let dir = tempfile::tempdir()?;
    let has_transformers = Command::new(&python).args(["-c", "import transformers"]).output()?.status.success();
    if !has_transformers {
        skipped("transformers", "the Python that ZOO_TORCH names has no transformers to make Llamas' fixtures again");
    }
    for (name, script) in FIXTURES {
        if script == "llama.py" && !has_transformers {
            continue;
        }
        let again = dir.path().join(format!("{name}.safetensors"));
        let status = Command::new(&python).arg(fixture(script)).arg(&again).status()?;
        assert!(status.success(), "the script failed");
        let read = |path: &Path| zoo_checkpoint::read(path, &Device::Cpu).map(|c| c.tensors);
        let (new, old) = (read(&again)?, read(&fixture(&format!("{name}.safetensors")))?);
        assert_eq!(new.keys().collect::<Vec<_>>(), old.keys().collect::<Vec<_>>());
        for (key, t) in old.iter().filter(|(key, _)| !key.ends_with("k_proj.bias")) {
            let off = distance(&new[key], t)?;
            assert!(off <= 1e-6, "{name}: {key} moved by {off:e}");
        }
        compare(name, &again)?;
    }
    Ok(())
}

/// What `deepsif_inverse.py` says of a made-up head, by formulas of its own in f64.
#[test]
fn inverse_methods_are_those_of_an_independent_program() -> Outcome {
    use zoo_deepsif::head::Head;
    use zoo_deepsif::inverse::{Inverse, Method, Settings};
    const N: usize = 12;
    const M: usize = 30;
    const STEPS: usize = 50;

    let whole = |name: &str, shape: &[usize]| -> candle_core::Result<Vec<f64>> {
        numbers(name, shape, 2.)?.to_dtype(DType::F64)?.flatten_all()?.to_vec1()
    };
    let place = |i: usize| {
        let angle = std::f64::consts::TAU * i as f64 / M as f64;
        [80. * angle.cos(), 80. * angle.sin(), 0.]
    };
    let electrode = |i: usize| zoo_deepsif::Electrode { label: format!("E{i}"), position: None };
    let head = Head {
        origin: "a ring".into(),
        electrodes: (0..N).map(electrode).collect(),
        regions: (0..M).map(place).collect(),
        neighbours: (0..M).map(|i| vec![(i + M - 1) % M, (i + 1) % M]).collect(),
        lead_field: whole("field", &[N, M])?,
        surface: None,
        noise: vec![],
    };
    let root = whole("noise", &[N, N])?;
    let product = |i: usize| (0..N).map(|k| root[i / N * N + k] * root[i % N * N + k]).sum::<f64>();
    let noise: Vec<f64> = (0..N * N).map(product).collect();
    let mut eeg: Vec<f32> = whole("eeg", &[STEPS, N])?.into_iter().map(|v| v as f32).collect();
    for row in eeg.chunks_exact_mut(N) {
        let mean = row.iter().sum::<f32>() / N as f32;
        row.iter_mut().for_each(|v| *v -= mean);
    }
    let fixture = fixture("deepsif_inverse.safetensors");
    let expected = zoo_checkpoint::read(&fixture, &Device::Cpu)?.tensors;
    for (name, noise) in [("white", &[][..]), ("baseline", &noise)] {
        for method in Method::ALL {
            let settings = Settings { depth: 0.8, noise, ..Settings::white(0.05) };
            let sources = Inverse::new(method, &head, &settings)?.image(&eeg)?;
            let sources = Tensor::from_vec(sources, (STEPS, M), &Device::Cpu)?;
            let off = distance(&sources, &expected[&format!("{name}.{}", method.name())])?;
            // Thirty rounds of roots of quotients in f32, against f64.
            let allowed = if method.is_bayesian() { 2e-4 } else { 1e-5 };
            assert!(off < allowed, "{} with {name} noise: {off:.1e}", method.name());
        }
    }
    Ok(())
}
