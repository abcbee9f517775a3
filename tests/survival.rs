//! A run that is killed, signalled, starved of disk or finds its files damaged ends in the same bytes as one that was
//! left alone.
#![cfg(unix)]

#[path = "run_files.rs"]
mod run_files;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use run_files::{Files, Outcome, assert_same, at_the_end, contents};
use zoo_test_skips::skipped;

/// What is trained, and its settings.
type Run = (&'static str, &'static str);

/// Everything that has state: dropout, accumulation, a plateau schedule, an average of the weights, the best three.
const RUN: Run = (
    "stock-lstm",
    "data.simulated_days=300 model.hidden=8 model.window=10 train.epochs=120 train.batch_size=16 \
                   train.accumulate=2 train.schedule=plateau train.plateau_patience=0 train.eval_every=3 train.log_every=3 \
                   train.checkpoint_every=10 train.keep=3 train.keep_best=3 train.ema=0.9 train.spike_zscore=5 train.on_nonfinite=rollback",
);

/// A policy that acts for most of the time, in a round of two passes that may end early.
const POLICY: Run = (
    "trading-transformer",
    "model.head=policy model.input_norm=running model.dropout=0.0 model.bars=4 model.width=16 model.heads=2 model.hidden=32 \
     model.features_dim=8 data.simulated_days=500 data.episode=30 ppo.environments=4 ppo.rollout=128 ppo.passes=2 \
     ppo.target_kl=0.0005 train.batch_size=128 train.steps=150 train.eval_every=50 train.log_every=3 train.checkpoint_every=3 \
     train.health_every=10 train.keep=3",
);

fn zoo(dir: &Path, run: Run, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_zoo"));
    command.current_dir(dir).args(["train", run.0]).args(args);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    command
}

fn begin(run: Run) -> Vec<&'static str> {
    let set = run.1.split_whitespace().flat_map(|setting| ["--set", setting]);
    set.chain(["--out", "run", "--seed", "5"]).collect()
}

/// Trains for a few steps with batches made ahead, on `threads` of rayon's and at times on one core; too slow is an error.
fn few_steps([model, preset]: [&str; 2], threads: usize, one_core: bool) -> Outcome {
    let program = env!("CARGO_BIN_EXE_zoo");
    let mut command = Command::new(if one_core { "taskset" } else { program });
    if one_core {
        command.args(["-c", "0", program]);
    }
    command.args(["train", model, "--preset", preset, "--steps", "8", "--set", "train.prefetch=2"]);
    let dir = tempfile::tempdir()?;
    let mut child = command
        .args(["--set", "train.eval_every=4", "--set", "train.checkpoint_every=3", "--out", "run"])
        .current_dir(dir.path())
        .env("RAYON_NUM_THREADS", threads.to_string())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    let begun = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if begun.elapsed() > Duration::from_secs(120) {
            child.kill()?;
            child.wait()?;
            return Err(format!("{model} hangs on {threads} threads (one core: {one_core})").into());
        }
        sleep(Duration::from_millis(20));
    };
    assert!(status.success(), "{model} on {threads} threads (one core: {one_core}): {status}");
    Ok(())
}

#[test]
fn batches_are_made_ahead_on_any_number_of_threads_and_on_one_core() -> Outcome {
    let pins = Command::new("taskset").arg("--version").output().is_ok_and(|o| o.status.success());
    if !pins {
        skipped("taskset", "no way to run on one core");
    }
    let models = [
        ["char-gpt", "tiny"],
        ["deepsif", "tiny"],
        ["stock-lstm", "default"],
        ["trading-transformer", "tiny"],
        ["trading-transformer", "ppo-tiny"],
    ];
    for model in models {
        for threads in [1, 2, 3, 8] {
            few_steps(model, threads, false)?;
            if pins {
                few_steps(model, threads, true)?;
            }
        }
    }
    Ok(())
}

/// All files of a run that was left alone.
fn undisturbed(dir: &Path, run: Run) -> Result<Files, Box<dyn std::error::Error>> {
    assert!(zoo(dir, run, &begin(run)).status()?.success());
    let files = contents(&dir.join("run"))?;
    std::fs::rename(dir.join("run"), dir.join("undisturbed"))?;
    Ok(files)
}

/// Starts the run, or resumes it if it was begun, differently each time: threads and prefetching must not matter.
fn life(dir: &Path, run: Run, number: u64) -> std::io::Result<Child> {
    let prefetch = format!("train.prefetch={}", number % 3);
    let mut command = match dir.join("run/config.toml").exists() {
        true => zoo(dir, run, &["--resume", "run", "--set", &prefetch]),
        false => zoo(dir, run, &[&begin(run)[..], &["--set", &prefetch]].concat()),
    };
    command.env("RAYON_NUM_THREADS", if number.is_multiple_of(2) { "1" } else { "2" }).spawn()
}

/// Milliseconds that jump about.
fn moment(number: u64, most: u64) -> Duration {
    Duration::from_millis((number * 7919 + 104_729 * (number % 7)) % most)
}

/// Interrupts a run again and again, resuming it each time, and compares what comes out with an undisturbed one.
fn interrupted(
    run: Run,
    count: u64,
    of_interest: fn(Files) -> Files,
    interrupt: impl Fn(u64, &mut Child) -> Outcome,
) -> Outcome {
    let dir = tempfile::tempdir()?;
    let expected = of_interest(undisturbed(dir.path(), run)?);
    let mut finished = 0;
    for number in 0..count {
        let mut child = life(dir.path(), run, number)?;
        interrupt(number, &mut child)?;
        if child.wait()?.success() {
            // So early an end would make the rest of the test idle.
            finished += 1;
            assert_same(of_interest(contents(&dir.path().join("run"))?), &expected)?;
            std::fs::remove_dir_all(dir.path().join("run"))?;
        }
    }
    println!("{count} interruptions, of which {finished} came too late");
    assert!(finished < count / 2);
    assert!(life(dir.path(), run, 1)?.wait()?.success());
    assert_same(of_interest(contents(&dir.path().join("run"))?), &expected)
}

#[test]
fn a_run_killed_at_a_hundred_moments_ends_in_the_same_bytes() -> Outcome {
    interrupted(
        RUN,
        100,
        |files| files,
        |number, child| {
            sleep(moment(number, 400));
            Ok(child.kill()?)
        },
    )
}

#[test]
fn a_policy_killed_while_it_acts_ends_in_the_same_bytes() -> Outcome {
    interrupted(
        POLICY,
        40,
        |files| files,
        |number, child| {
            sleep(moment(number, 500));
            Ok(child.kill()?)
        },
    )
}

#[test]
fn a_run_signalled_at_twenty_moments_ends_in_the_same_bytes() -> Outcome {
    interrupted(RUN, 20, at_the_end, |number, child| {
        sleep(moment(number, 400));
        let signal = if number.is_multiple_of(2) { "-INT" } else { "-TERM" };
        Command::new("kill").args([signal, &child.id().to_string()]).stderr(Stdio::null()).status()?;
        let code = child.wait()?.code();
        // Nothing: the signal came before anything was begun.
        assert!(matches!(code, Some(0 | 3) | None), "{code:?}");
        Ok(())
    })
}

/// A run killed half-way, with three checkpoints.
fn stopped(dir: &Path) -> Result<Vec<PathBuf>, Box<dyn std::error::Error>> {
    let mut child = zoo(dir, RUN, &begin(RUN)).spawn()?;
    while !dir.join("run/checkpoints/step-00000100").exists() && child.try_wait()?.is_none() {
        sleep(Duration::from_millis(2));
    }
    child.kill()?;
    assert!(!child.wait()?.success(), "it was too fast to be killed");
    let mut checkpoints: Vec<PathBuf> = std::fs::read_dir(dir.join("run/checkpoints"))?
        .filter_map(|e| e.ok().map(|e| e.path()))
        .filter(|p| p.is_dir() && p.extension().is_none())
        .collect();
    checkpoints.sort();
    assert!(checkpoints.len() >= 3, "{checkpoints:?}");
    Ok(checkpoints)
}

fn resume(dir: &Path, more: &[&str]) -> std::io::Result<Output> {
    zoo(dir, RUN, &[&["--resume", "run"], more].concat()).stderr(Stdio::piped()).output()
}

#[test]
fn a_run_killed_before_its_first_evaluation_is_judged_by_its_newest_checkpoint() -> Outcome {
    let dir = tempfile::tempdir()?;
    let more = ["--steps", "100000", "--set", "train.eval_every=50000", "--set", "train.checkpoint_every=20"];
    let mut child = zoo(dir.path(), RUN, &[&begin(RUN)[..], &more[..]].concat()).spawn()?;
    while !dir.path().join("run/checkpoints/step-00000040").exists() && child.try_wait()?.is_none() {
        sleep(Duration::from_millis(2));
    }
    child.kill()?;
    child.wait()?;
    assert!(!dir.path().join("run/best.safetensors").exists());
    let output = Command::new(env!("CARGO_BIN_EXE_zoo"))
        .current_dir(dir.path())
        .args(["eval", RUN.0, "--checkpoint", "run", "--json"])
        .output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && said.contains("no best weights yet; these are those of its checkpoint of step"),
        "{said}"
    );
    Ok(())
}

#[test]
fn a_damaged_newest_checkpoint_is_named_and_the_one_before_used() -> Outcome {
    let dir = tempfile::tempdir()?;
    let expected = at_the_end(undisturbed(dir.path(), RUN)?);
    type Damage = fn(&Path) -> std::io::Result<()>;
    let damages: [(&str, Damage); 4] = [
        ("optimizer.safetensors", |p| std::fs::OpenOptions::new().write(true).open(p)?.set_len(100)),
        ("model.safetensors", |p| {
            let mut bytes = std::fs::read(p)?;
            let middle = bytes.len() / 2;
            bytes[middle] ^= 4;
            std::fs::write(p, bytes)
        }),
        ("state.json", |p| std::fs::remove_file(p)),
        ("manifest.json", |p| std::fs::write(p, "{")),
    ];
    for (file, damage) in damages {
        let newest = stopped(dir.path())?.pop().ok_or("no checkpoint")?;
        damage(&newest.join(file))?;
        let output = resume(dir.path(), &[])?;
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{file}: {said}");
        let name = newest.file_name().unwrap_or_default().to_string_lossy().into_owned();
        assert!(said.contains(&format!("{name} is damaged, using step-000000")) && said.contains(file), "{said}");
        let aside = dir.path().join(format!("run/checkpoints/{name}.damaged"));
        assert!(aside.is_dir(), "the damaged checkpoint was deleted");
        std::fs::remove_dir_all(aside)?;
        assert_same(at_the_end(contents(&dir.path().join("run"))?), &expected)?;
        std::fs::remove_dir_all(dir.path().join("run"))?;
    }
    Ok(())
}

#[test]
fn weights_without_checkpoints_are_not_thrown_away() -> Outcome {
    let dir = tempfile::tempdir()?;
    for checkpoint in stopped(dir.path())? {
        std::fs::remove_dir_all(checkpoint)?;
    }
    let before = contents(&dir.path().join("run"))?;
    let output = resume(dir.path(), &[])?;
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(1) && said.contains("--init-from run"), "{said}");
    assert!(before == contents(&dir.path().join("run"))?);
    // Lost best weights are taken back from their other name.
    let dir = tempfile::tempdir()?;
    let expected = at_the_end(undisturbed(dir.path(), RUN)?);
    stopped(dir.path())?;
    for entry in std::fs::read_dir(dir.path().join("run/checkpoints"))?.flatten() {
        if entry.file_name().to_string_lossy().starts_with("best-step-") {
            std::fs::remove_file(entry.path())?;
        }
    }
    assert!(resume(dir.path(), &[])?.status.success());
    assert_same(at_the_end(contents(&dir.path().join("run"))?), &expected)
}

#[test]
fn nothing_valid_to_resume_from_is_said_and_nothing_is_deleted() -> Outcome {
    let dir = tempfile::tempdir()?;
    for checkpoint in stopped(dir.path())? {
        std::fs::write(checkpoint.join("model.safetensors"), "gone")?;
    }
    let before = contents(&dir.path().join("run"))?;
    let output = resume(dir.path(), &[])?;
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    assert!(said.contains("run has no valid checkpoint to resume from"), "{said}");
    assert!(before == contents(&dir.path().join("run"))?);
    Ok(())
}

/// Runs `zoo` in a shell after `before`, such as a limit; its stderr must be one line about the cause.
fn starved(dir: &Path, before: &str, more: &str, cause: &str) -> Outcome {
    let exe = env!("CARGO_BIN_EXE_zoo");
    let script = format!("{before}; exec {exe} train stock-lstm --resume run {more}");
    let output = Command::new("bash").current_dir(dir).args(["-c", &script]).output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    let errors: Vec<&str> = said.lines().filter(|l| l.contains("error")).collect();
    assert!(errors.len() == 1 && errors[0].contains(cause) && errors[0].contains("run/"), "{said}");
    Ok(())
}

#[test]
fn a_file_size_limit_is_an_error_and_earlier_checkpoints_stay() -> Outcome {
    let dir = tempfile::tempdir()?;
    let expected = at_the_end(undisturbed(dir.path(), RUN)?);
    stopped(dir.path())?;
    // Of the checkpoint's files only the state fits into 2 KiB.
    starved(dir.path(), "ulimit -f 2", "", "File too large")?;
    assert!(resume(dir.path(), &[])?.status.success());
    assert_same(at_the_end(contents(&dir.path().join("run"))?), &expected)
}

#[test]
fn a_full_disk_is_an_error_and_earlier_checkpoints_stay() -> Outcome {
    let dir = tempfile::tempdir()?;
    let expected = at_the_end(undisturbed(dir.path(), RUN)?);
    stopped(dir.path())?;
    let small = dir.path().join("small");
    std::fs::create_dir(&small)?;
    // A disk of a megabyte needs the right to mount one.
    let script = "mount -t tmpfs -o size=1m none small && cp -r run small/ && cd small && exec \"$@\"";
    let exe = env!("CARGO_BIN_EXE_zoo");
    let keep = "df --output=avail . | tail -1 >&2; ls run/checkpoints >&2";
    let run = format!(
        "head -c 2M /dev/zero > filler 2>/dev/null; \"$0\" train stock-lstm --resume run; \
                       code=$?; rm filler; {keep}; cp -r run ../after; exit $code"
    );
    let output = Command::new("unshare")
        .args(["--mount", "--map-root-user", "bash", "-c", script, "bash", "bash", "-c", &run, exe])
        .current_dir(dir.path())
        .output();
    let Ok(output) = output else {
        skipped("mount", "no unshare to mount a small disk with");
        return Ok(());
    };
    let said = String::from_utf8_lossy(&output.stderr);
    if !dir.path().join("after").exists() {
        skipped("mount", format!("no right to mount a small disk ({})", said.trim()));
        return Ok(());
    }
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("No space left on device"), "{said}");
    std::fs::remove_dir_all(dir.path().join("run"))?;
    std::fs::rename(dir.path().join("after"), dir.path().join("run"))?;
    assert!(resume(dir.path(), &[])?.status.success());
    assert_same(at_the_end(contents(&dir.path().join("run"))?), &expected)
}

#[test]
fn a_run_in_use_a_changed_configuration_and_other_data_are_refused() -> Outcome {
    let dir = tempfile::tempdir()?;
    stopped(dir.path())?;
    let config = std::fs::read_to_string(dir.path().join("run/config.toml"))?;
    let best = std::fs::read(dir.path().join("run/best.safetensors"))?;
    let refused = |more: &[&str], expected: &str| -> Outcome {
        let output = resume(dir.path(), more)?;
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains(expected), "{said}");
        assert_eq!(std::fs::read_to_string(dir.path().join("run/config.toml"))?, config);
        assert!(
            std::fs::read(dir.path().join("run/best.safetensors"))? == best,
            "a refused call changed the best weights"
        );
        Ok(())
    };
    refused(&["--set", "train.lr=0.01"], "train.lr: 0.001 then, 0.01 now")?;
    refused(&["--set", "data.simulated_days=301"], "--allow-change data")?;
    refused(&["--epochs", "1"], "the new length is 7: make it longer")?;
    refused(&["--allow-change", "train.lrr"], "--allow-change train.lrr: there is no such key")?;
    refused(
        &["--set", "train.lr=0.01", "--set", "train.ema=0.5"],
        "allow it with --allow-change train.lr --allow-change train.ema",
    )?;
    let mut child = zoo(dir.path(), RUN, &["--resume", "run", "--epochs", "100000"]).spawn()?;
    sleep(Duration::from_millis(500));
    let output = resume(dir.path(), &[])?;
    child.kill()?;
    child.wait()?;
    assert!(String::from_utf8_lossy(&output.stderr).contains("run is in use by another process"));
    // What was allowed once holds for later lives, also before the next checkpoint.
    let mut child = zoo(dir.path(), RUN, &["--resume", "run"]).spawn()?;
    sleep(Duration::from_millis(300));
    assert!(child.try_wait()?.is_none(), "a run that was made longer does not go on");
    child.kill()?;
    child.wait()?;
    let allowed = ["--set", "train.lr=0.01", "--allow-change", "train.lr", "--epochs", "600"];
    assert!(resume(dir.path(), &allowed)?.status.success());
    assert!(std::fs::read_to_string(dir.path().join("run/config.toml"))?.contains("lr = 0.01"));
    Ok(())
}
