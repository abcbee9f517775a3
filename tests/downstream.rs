//! A program outside the workspace that uses model crates alone.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Instant;

type Outcome = Result<(), Box<dyn std::error::Error>>;

fn program() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/downstream")
}

/// Cargo on that program, without network and with its own target directory.
fn cargo(args: &[&str]) -> Result<Output, Box<dyn std::error::Error>> {
    let output = Command::new(env!("CARGO"))
        .current_dir(program())
        .args(args)
        .env("CARGO_TARGET_DIR", Path::new(env!("CARGO_TARGET_TMPDIR")).join("downstream"))
        .env("CARGO_NET_OFFLINE", "true")
        .output()?;
    if !output.status.success() {
        return Err(format!("cargo {args:?}: {}", String::from_utf8_lossy(&output.stderr)).into());
    }
    Ok(output)
}

/// The crates that `of` is built from, itself included.
fn tree(of: &str) -> Result<BTreeSet<String>, Box<dyn std::error::Error>> {
    let output = cargo(&["tree", "--locked", "-p", of, "-e", "normal,build", "--prefix", "none"])?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok(text.lines().filter_map(|l| l.split_whitespace().next().map(String::from)).collect())
}

#[test]
fn a_program_with_the_model_crates_alone_forecasts_and_writes_from_the_weights() -> Outcome {
    let (own, candle) = (tree("downstream")?, tree("candle-core")?);
    let more: Vec<&String> = own.difference(&candle).collect();
    let unwelcome = [
        "clap",
        "indicatif",
        "plotters",
        "console",
        "crossterm",
        "csv",
        "jiff",
        "toml",
        "reqwest",
        "hyper",
        "tokio",
        "ureq",
        "hf-hub",
        "zoo-training",
    ];
    assert!(!own.iter().any(|c| unwelcome.contains(&c.as_str())), "{own:?}");

    cargo(&["build", "--locked"])?;
    let clean: Vec<&str> = more.iter().flat_map(|c| ["-p", c.as_str()]).collect();
    cargo(&[&["clean"], &clean[..]].concat())?;
    let started = Instant::now();
    cargo(&["build", "--locked"])?;
    let seconds = started.elapsed().as_secs_f64();
    println!("beyond candle-core: {} crates, {seconds:.1} s to build ({more:?})", more.len());
    assert!(more.len() <= 20, "{more:?}");

    let weights = |name: &str| program().join("../../weights").join(name);
    let exe = Path::new(env!("CARGO_TARGET_TMPDIR")).join("downstream/debug/downstream");
    let run = |task: &str, name: &str, n: &str, input: &str| -> Result<(bool, String), Box<dyn std::error::Error>> {
        let mut child = Command::new(&exe)
            .arg(task)
            .arg(weights(name))
            .arg(n)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        child.stdin.take().ok_or("no stdin")?.write_all(input.as_bytes())?;
        let output = child.wait_with_output()?;
        let text = if output.status.success() { output.stdout } else { output.stderr };
        Ok((output.status.success(), String::from_utf8(text)?))
    };
    let closes: Vec<String> = (0..70).map(|day| format!("{}\n", 100. + (f64::from(day) * 0.5).sin())).collect();
    let (done, text) = run("forecast", "stock-lstm.safetensors", "3", &closes.concat())?;
    assert!(done, "{text}");
    let next: Vec<f64> = text.lines().map(str::parse).collect::<Result<_, _>>()?;
    assert_eq!(next.len(), 3);
    assert!(next.iter().all(|p| (95.0..105.).contains(p)), "{next:?}");
    let (done, text) = run("forecast", "stock-lstm.safetensors", "3", &closes[..20].concat())?;
    assert!(!done && text.contains("a forecast needs 61 days, got 20"), "{text}");
    let (done, text) = run("write", "char-gpt-cpu.safetensors", "100", "ROMEO:\n")?;
    assert!(done && text.chars().count() == 101 && text.split_whitespace().count() > 10, "{text}");
    let bars: Vec<String> = (zoo_market::simulate(260, 1).bars.iter())
        .map(|b| format!("{} {} {} {} {}\n", b.open, b.high, b.low, b.close, b.volume))
        .collect();
    let (done, text) = run("features", "trading-transformer.safetensors", "64", &bars.concat())?;
    let features: Vec<f64> =
        text.lines().map(str::parse).collect::<Result<_, _>>().map_err(|e| format!("{e}: {text}"))?;
    assert!(done && features.len() == 64 && features.iter().all(|f| f.is_finite() && f.abs() < 50.), "{text}");
    let (done, text) = run("features", "trading-transformer.safetensors", "64", &bars[..210].concat())?;
    assert!(!done && text.contains("its first must be bar 200 or later"), "{text}");
    let eeg = |steps: usize| {
        let row = |t: usize| (0..75).map(|c| format!("{} ", ((t * (c + 3)) as f64 / 90.).sin())).collect::<String>();
        (0..steps).map(|t| row(t) + "\n").collect::<String>()
    };
    let (done, text) = run("image", "deepsif-small.safetensors", "5", &eeg(500))?;
    let regions: Vec<usize> = text.lines().filter_map(|l| l.split(' ').next()?.parse().ok()).collect();
    assert!(done && regions.len() == 5 && regions.iter().all(|r| *r < 994), "{text}");
    let (done, text) = run("image", "deepsif-small.safetensors", "5", &eeg(499))?;
    assert!(!done && text.contains("EEG of 499 time steps x 75 channels"), "{text}");
    let (done, text) = run("write", "stock-lstm.safetensors", "100", "ROMEO:\n")?;
    assert!(!done && text.contains("weights of stock-lstm, expected char-gpt"), "{text}");
    Ok(())
}
