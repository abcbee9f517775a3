//! Runs and weights that 0.1.0 wrote resume, are judged and load as they did then.

use std::path::{Path, PathBuf};
use std::process::Command;

use candle_core::{Device, Tensor};
use serde_json::Value;

type Outcome = Result<(), Box<dyn std::error::Error>>;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/run-0.1.0").join(name)
}

fn copied(from: &Path, to: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let path = entry?.path();
        let target = to.join(path.file_name().unwrap_or_default());
        if path.is_dir() { copied(&path, &target)? } else { std::fs::copy(&path, &target).map(|_| ())? }
    }
    Ok(())
}

fn zoo(dir: &Path, args: &[&str]) -> Result<(String, String), Box<dyn std::error::Error>> {
    let output = Command::new(env!("CARGO_BIN_EXE_zoo")).args(args).current_dir(dir).output()?;
    let error = String::from_utf8(output.stderr)?;
    if !output.status.success() {
        return Err(format!("{args:?}: {error}").into());
    }
    Ok((String::from_utf8(output.stdout)?, error))
}

fn values(t: &Tensor) -> candle_core::Result<Vec<f32>> {
    t.flatten_all()?.to_dtype(candle_core::DType::F32)?.to_vec1()
}

/// The same but for how another processor rounds.
fn close(a: f64, b: f64) -> bool {
    (a - b).abs() <= 1e-4 * (1. + b.abs())
}

/// Whether what was said then is said now, numbers but for their rounding; more may be said.
fn holds(now: &Value, then: &Value) -> bool {
    match (now, then) {
        (Value::Object(now), Value::Object(then)) => {
            then.iter().all(|(key, value)| now.get(key).is_some_and(|other| holds(other, value)))
        }
        (Value::Number(a), Value::Number(b)) => a.as_f64().zip(b.as_f64()).is_some_and(|(a, b)| close(a, b)),
        _ => now == then,
    }
}

#[test]
fn a_run_of_0_1_0_resumes_to_the_weights_of_0_1_0() -> Outcome {
    for (model, run, note) in [
        ("stock-lstm", "stock-lstm", "train.momentum is train.optimizer.momentum now"),
        ("trading-transformer", "policy", "train.pooling_nudge is repair.pooling_nudge now, train.ppo is ppo now"),
    ] {
        let dir = tempfile::tempdir()?;
        copied(&fixture(run), &dir.path().join("run"))?;
        let (_, error) = zoo(dir.path(), &["train", model, "--resume", "run", "--steps", "12"])?;
        let said = "config.toml: written by zoo 0.1, read by its new names: ";
        assert!(error.contains(said) && error.contains(note), "{error}");
        // 0.1.0 went on from the same checkpoint to the same step.
        let last = zoo_checkpoint::read(&dir.path().join("run/last.safetensors"), &Device::Cpu)?;
        let expected = zoo_checkpoint::read(&fixture(&format!("{run}-12.safetensors")), &Device::Cpu)?;
        assert_eq!(last.tensors.len(), expected.tensors.len());
        for (name, tensor) in &expected.tensors {
            let (now, then) = (values(&last.tensors[name])?, values(tensor)?);
            assert!(
                now.iter().zip(&then).all(|(a, b)| close(f64::from(*a), f64::from(*b))),
                "{name}: {now:?} {then:?}"
            );
        }
        // From now on the run has today's names, and nothing is said of it.
        let (_, error) = zoo(dir.path(), &["train", model, "--resume", "run", "--steps", "13"])?;
        assert!(!error.contains("written by zoo 0.1"), "{error}");
    }
    Ok(())
}

#[test]
fn weights_of_0_1_0_are_judged_as_they_were() -> Outcome {
    let dir = tempfile::tempdir()?;
    for (model, run) in [("stock-lstm", "stock-lstm"), ("trading-transformer", "policy")] {
        copied(&fixture(run), &dir.path().join(run))?;
        let then: Value = serde_json::from_str(&std::fs::read_to_string(fixture(&format!("{run}-eval.json")))?)?;
        for checkpoint in [run.to_string(), format!("{run}/best.safetensors")] {
            let (text, _) = zoo(dir.path(), &["eval", model, "--checkpoint", &checkpoint, "--json"])?;
            let now: Value = serde_json::from_str(&text)?;
            for key in ["metrics", "baselines", "samples", "split", "data"] {
                assert!(holds(&now[key], &then[key]), "{model}: {key}: {} then {}", now[key], then[key]);
            }
        }
        zoo(dir.path(), &["doctor", run])?;
        zoo(dir.path(), &["report", run])?;
    }
    zoo_stock_lstm::StockLstm::load(&fixture("stock-lstm/best.safetensors"), &Device::Cpu)?;
    zoo_trading_transformer::TradingTransformer::load(&fixture("policy/best.safetensors"), &Device::Cpu)?;
    Ok(())
}
