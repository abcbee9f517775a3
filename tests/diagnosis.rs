//! What `zoo doctor` says of runs with planted faults and without, what trying its remedies finds, and where two runs part.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::{Value, json};

type Outcome<T = ()> = Result<T, Box<dyn std::error::Error>>;

fn zoo(dir: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_zoo")).current_dir(dir).args(args).output().expect("zoo starts")
}

fn succeeds(dir: &Path, args: &[&str]) -> Outcome<Vec<u8>> {
    let output = zoo(dir, args);
    match output.status.success() {
        true => Ok(output.stdout),
        false => Err(format!("{args:?}: {}", String::from_utf8_lossy(&output.stderr)).into()),
    }
}

fn said(dir: &Path, args: &[&str]) -> Outcome<Value> {
    Ok(serde_json::from_slice(&succeeds(dir, args)?)?)
}

/// A character GPT on a text with something to learn, with an evaluation every 30 steps.
const WRITER: [&str; 12] = [
    "train",
    "char-gpt",
    "--preset",
    "seed",
    "--set",
    "train.eval_every=30",
    "--set",
    "train.warmup_steps=20",
    "--set",
    "train.min_lr=0",
    "--set",
    "train.health_every=20",
];

#[test]
fn a_rate_is_told_too_low_or_too_high_over_several_seeds_and_a_healthy_one_is_not() -> Outcome {
    let dir = tempfile::tempdir()?;
    for seed in ["1", "2", "3"] {
        for (lr, steps, right) in [
            ("train.lr=1e-6", "150", &["rate-too-low"][..]),
            ("train.lr=1e-5", "150", &["rate-too-low"]),
            ("train.lr=1", "150", &["rate-too-high"]),
            ("train.lr=0.005", "240", &["healthy", "slow-convergence"]),
        ] {
            let run = format!("{lr}-{seed}");
            succeeds(
                dir.path(),
                &[&WRITER[..], &["--steps", steps, "--seed", seed, "--set", lr, "--out", &run]].concat(),
            )?;
            let found = said(dir.path(), &["doctor", &run, "--json"])?;
            let verdict = found["verdict"].as_str().unwrap_or_default();
            assert!(right.contains(&verdict), "{run}: {verdict}: {}", found["because"]);
            // The remedy points the right way.
            let advice = found["advice"][0].as_str().unwrap_or_default().to_string();
            let asked = advice.strip_prefix("--set train.lr=").and_then(|a| a.split(' ').next()?.parse::<f64>().ok());
            match right[0] {
                "rate-too-low" => assert!(asked.is_some_and(|lr| lr > 3e-5 && lr < 0.05), "{run}: {advice}"),
                "rate-too-high" => assert!(asked.is_some_and(|lr| lr > 1e-5 && lr < 0.1), "{run}: {advice}"),
                _ => {}
            }
        }
    }
    Ok(())
}

#[test]
fn the_remedy_that_is_tried_and_found_best_ends_better_than_the_run_as_it_was() -> Outcome {
    let dir = tempfile::tempdir()?;
    for (run, lr) in [("low", "train.lr=1e-6"), ("high", "train.lr=0.3")] {
        succeeds(dir.path(), &[&WRITER[..], &["--steps", "150", "--set", lr, "--out", run]].concat())?;
        let attempt = ["doctor", run, "--try", "--steps", "60", "--json"];
        let tried = said(dir.path(), &attempt)?;
        let best = tried["best"].as_str().unwrap_or_default();
        assert!(best.starts_with("train.lr="), "{tried}");
        let first = &tried["tried"][0];
        let (difference, error) = (first["difference"].as_f64(), first["standard_error"].as_f64());
        assert!(difference.zip(error).is_some_and(|(d, e)| d < -3. * e), "{first}");
        // What was done is not done again.
        assert_eq!(said(dir.path(), &attempt)?["steps_trained"], 0);
        // Going on with it ends better than the run did.
        let best_run = first["run"].as_str().unwrap_or_default();
        succeeds(dir.path(), &["train", "char-gpt", "--resume", best_run])?;
        let end = |run: &str| -> Outcome<f64> {
            Ok(said(dir.path(), &["doctor", run, "--json"])?["numbers"]["valid_end"]
                .as_f64()
                .ok_or("no validation loss")?)
        };
        assert!(end(best_run)? < end(run)? - 0.1, "{run}: {} {}", end(best_run)?, end(run)?);
    }
    let refused = zoo(dir.path(), &["doctor", "low", "--try", "--budget", "10"]);
    assert!(!refused.status.success() && String::from_utf8_lossy(&refused.stderr).contains("such as 90s, 10m or 1h"));
    Ok(())
}

/// Turns one bit of a weight in a checkpoint, as if that were what was written.
fn turn_a_bit(checkpoint: &Path, tensor: &str) -> Outcome {
    let (path, manifest) = (checkpoint.join("model.safetensors"), checkpoint.join("manifest.json"));
    let mut bytes = std::fs::read(&path)?;
    let length = u64::from_le_bytes(bytes[..8].try_into()?) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..8 + length])?;
    let start = header[tensor]["data_offsets"][0].as_u64().ok_or("no such tensor")? as usize;
    bytes[8 + length + start + 4] ^= 1;
    std::fs::write(&path, &bytes)?;
    let mut listed: Value = serde_json::from_slice(&std::fs::read(&manifest)?)?;
    listed["files"]["model.safetensors"]["sha256"] = zoo_checkpoint::sha256_of(&bytes).into();
    Ok(std::fs::write(&manifest, listed.to_string())?)
}

#[test]
fn one_bit_of_one_weight_at_one_step_is_found() -> Outcome {
    let dir = tempfile::tempdir()?;
    for (model, preset, tensor) in
        [("char-gpt", "tiny", "blocks.0.linear1.weight"), ("trading-transformer", "ppo-tiny", "actor.0.weight")]
    {
        let of = |name: &str| format!("{model}-{name}");
        let (one, other, lost) = (of("one"), of("other"), of("lost"));
        let set = ["train.log_every=1", "train.checkpoint_every=8", "train.keep=20"].map(|s| ["--set", s]).concat();
        let begin = |out: &str, steps: &str| -> Outcome {
            let args = ["train", model, "--preset", preset, "--steps", steps, "--out", out];
            succeeds(dir.path(), &[&args[..], &set].concat()).map(|_| ())
        };
        begin(&one, "32")?;
        begin(&other, "32")?;
        assert_eq!(said(dir.path(), &["bisect", &one, &other, "--json"])?["first_difference"], Value::Null);
        // As if the run had been stopped at step 16, and a weight changed.
        let checkpoints = dir.path().join(&other).join("checkpoints");
        for step in [24, 32] {
            std::fs::remove_dir_all(checkpoints.join(format!("step-{step:08}")))?;
        }
        turn_a_bit(&checkpoints.join("step-00000016"), tensor)?;
        succeeds(dir.path(), &["train", model, "--resume", &other])?;
        let found = |run: &str| -> Outcome<Value> {
            let output = zoo(dir.path(), &["bisect", &one, run, "--json"]);
            assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stderr));
            Ok(serde_json::from_slice(&output.stdout)?)
        };
        let changed = found(&other)?;
        assert_eq!(
            (&changed["first_difference"], &changed["tensors"][0]["name"], &changed["tensors"][0]["differ"]),
            (&json!(16), &json!(tensor), &json!(1)),
            "{changed}"
        );
        // Without that checkpoint the record alone tells, and no later than the next step whose loss shows it.
        copy(&dir.path().join(&other), &dir.path().join(&lost))?;
        for step in [0, 8, 16] {
            std::fs::remove_dir_all(dir.path().join(&lost).join(format!("checkpoints/step-{step:08}")))?;
        }
        let changed = found(&lost)?;
        let (same, first) = (changed["same_through"].as_u64(), changed["first_difference"].as_u64());
        assert!(same >= Some(16) && first > same && first <= Some(24), "{changed}");
        // A run computed again is the run, and one that was changed is said not to be.
        let again =
            said(dir.path(), &["replay", &one, "--step", "21", "--save", &format!("{one}.safetensors"), "--json"])?;
        let compared = (&again["from"], &again["as_on_record"], &again["compared_with_record"]);
        assert_eq!(compared, (&json!(16), &json!(true), &json!(5)), "{again}");
        // (A policy's loss shows one bit only later.)
        if model == "char-gpt" {
            assert_eq!(said(dir.path(), &["replay", &lost, "--step", "22", "--json"])?["as_on_record"], false);
        }
        let verified = zoo(dir.path(), &["verify", &format!("{one}.safetensors"), "--model", model]);
        assert!(verified.status.success(), "{}", String::from_utf8_lossy(&verified.stderr));
        // Other settings part them where they first matter.
        let faster = of("faster");
        let args = ["train", model, "--preset", preset, "--steps", "32", "--out", &faster, "--set", "train.lr=0.0007"];
        succeeds(dir.path(), &[&args[..], &set].concat())?;
        let parted = found(&faster)?;
        assert_eq!(parted["first_difference"], 1, "{parted}");
        assert!(parted["settings"].to_string().contains("train.lr"), "{parted}");
    }
    Ok(())
}

fn copy(from: &Path, to: &Path) -> Outcome {
    std::fs::create_dir(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &target)?;
        } else {
            std::fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}
