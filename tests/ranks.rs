//! A run in many processes ends in the same bytes as in one, however many there are and whatever happens to them on the way.
//!
//! Takes an MPI: `mpirun` in the path (Open MPI, which lets more processes than cores wait without burning them), or
//! `ZOO_TEST_MPIRUN=PATH`. `ZOO_TEST_MPICH=PATH` names an `mpiexec` of MPICH beside it.
#![cfg(unix)]

#[path = "run_files.rs"]
mod run_files;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard};
use std::thread::sleep;
use std::time::{Duration, Instant};

use run_files::{Outcome, assert_same, at_the_end, contents};
use serde_json::Value;
use zoo_test_skips::skipped;

/// What is trained, and its settings: a micro-batch count that is no power of two, for which MPI's own sums have other bits.
type Run = (&'static str, &'static str);

/// Dropout, clipping, an average of the weights, a plateau schedule.
const STOCK: Run = (
    "stock-lstm",
    "data.simulated_days=300 model.hidden=8 model.window=10 train.steps=60 train.batch_size=2 train.accumulate=12 \
     train.schedule=plateau train.eval_every=10 train.checkpoint_every=10 train.keep=3 train.keep_best=3 train.ema=0.9 \
     train.clip_norm=0.5 train.health_every=7 train.spike_zscore=5 train.on_nonfinite=rollback",
);
const RUNS: [(&str, &str); 4] = [
    STOCK,
    (
        "char-gpt",
        "preset=tiny train.steps=9 train.batch_size=2 train.accumulate=5 model.dropout=0.1 train.eval_every=3",
    ),
    // Simulated and changed at random while it trains, made ahead.
    ("deepsif", "preset=tiny train.steps=6 train.batch_size=2 train.accumulate=5 train.prefetch=2 train.eval_every=3"),
    // Statistics that see every batch in order.
    (
        "trading-transformer",
        "preset=tiny model.input_norm=running data.simulated_days=500 train.steps=9 train.batch_size=2 train.accumulate=12 \
         train.eval_every=3",
    ),
];
/// The longest that anything here takes: more is a hang.
const LIMIT: Duration = Duration::from_secs(120);

/// Where MPI's launcher is, and the turn to use it: tests beside each other would wait for cores.
fn mpirun() -> Option<(PathBuf, MutexGuard<'static, ()>)> {
    static TURN: Mutex<()> = Mutex::new(());
    let named = std::env::var_os("ZOO_TEST_MPIRUN").map(PathBuf::from);
    let found = named.or_else(|| {
        let path = std::env::var_os("PATH")?;
        std::env::split_paths(&path).map(|folder| folder.join("mpirun")).find(|path| path.is_file())
    });
    if found.is_none() {
        skipped("mpi", "no mpirun (install Open MPI, or set ZOO_TEST_MPIRUN)");
    }
    // A test that failed leaves the turn to the next.
    found.map(|path| (path, TURN.lock().unwrap_or_else(|e| e.into_inner())))
}

fn arguments(run: Run, out: &str) -> Vec<String> {
    let mut all = vec!["train".to_string(), run.0.into(), "--out".into(), out.into(), "--seed".into(), "5".into()];
    for setting in run.1.split_whitespace() {
        match setting.strip_prefix("preset=") {
            Some(preset) => all.extend(["--preset".into(), preset.into()]),
            None => all.extend(["--set".into(), setting.into()]),
        }
    }
    all
}

/// A program in `n` processes, or alone.
fn launched(dir: &Path, mpirun: &Path, n: usize, program: &Path, args: &[String]) -> Command {
    let mut command = Command::new(if n == 1 { program } else { mpirun });
    if n > 1 {
        command.args(["-q", "-n", &n.to_string()]).arg(program);
    }
    command.args(args).current_dir(dir).stdout(Stdio::null()).stderr(Stdio::piped());
    // Processes that share a core must not wait in a loop, and Open MPI does not like to be root.
    command.env("OMPI_ALLOW_RUN_AS_ROOT", "1").env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1");
    command.env("OMPI_MCA_rmaps_base_oversubscribe", "1").env("OMPI_MCA_mpi_yield_when_idle", "1");
    command
}

/// `zoo` in `n` processes, or alone.
fn zoo(dir: &Path, mpirun: &Path, n: usize, args: &[String]) -> Command {
    launched(dir, mpirun, n, Path::new(env!("CARGO_BIN_EXE_zoo")), args)
}

/// Waits for the end, which has to come.
fn ended(mut child: Child) -> Result<Output, Box<dyn std::error::Error>> {
    let begun = Instant::now();
    while child.try_wait()?.is_none() {
        if begun.elapsed() > LIMIT {
            child.kill()?;
            return Err("it hangs".into());
        }
        sleep(Duration::from_millis(5));
    }
    Ok(child.wait_with_output()?)
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The processes of the run that a launcher started.
fn processes(launcher: &Child) -> Vec<String> {
    let of = |parent: &str| -> Vec<String> {
        let output = Command::new("pgrep").args(["-P", parent]).output();
        output
            .map(|o| String::from_utf8_lossy(&o.stdout).split_whitespace().map(String::from).collect())
            .unwrap_or_default()
    };
    let parent = launcher.id().to_string();
    of(&parent).into_iter().filter(|pid| named(pid)).collect()
}

fn named(pid: &str) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "zoo")
}

fn signal(name: &str, pid: &str) -> Outcome {
    Command::new("kill").args([name, pid]).stderr(Stdio::null()).status()?;
    Ok(())
}

#[test]
fn any_number_of_processes_ends_in_the_same_bytes() -> Outcome {
    let Some((mpirun, _turn)) = mpirun() else { return Ok(()) };
    for run in RUNS {
        let dir = tempfile::tempdir()?;
        let mut expected = None;
        for n in 1..=4 {
            let out = format!("run-{n}");
            let output = ended(zoo(dir.path(), &mpirun, n, &arguments(run, &out)).spawn()?)?;
            assert!(output.status.success(), "{} in {n} processes: {}", run.0, said(&output));
            let found = contents(&dir.path().join(out))?;
            match &expected {
                None => expected = Some(found),
                Some(expected) => assert_same(found, expected).map_err(|e| format!("{} in {n}: {e}", run.0))?,
            }
        }
    }
    Ok(())
}

#[test]
fn batches_are_split_over_processes_where_nothing_says_how() -> Outcome {
    let Some((mpirun, _turn)) = mpirun() else { return Ok(()) };
    let dir = tempfile::tempdir()?;
    let set = |text| ("stock-lstm", text);
    let whole = set("data.simulated_days=300 model.hidden=8 train.steps=5 train.batch_size=6");
    let split = set("data.simulated_days=300 model.hidden=8 train.steps=5 train.batch_size=2 train.accumulate=3");
    let output = ended(zoo(dir.path(), &mpirun, 3, &arguments(whole, "whole")).spawn()?)?;
    assert!(output.status.success(), "{}", said(&output));
    assert!(said(&output).contains("3 processes: batches of 6 are made of 3 micro-batches of 2"), "{}", said(&output));
    assert!(ended(zoo(dir.path(), &mpirun, 1, &arguments(split, "split")).spawn()?)?.status.success());
    assert_same(contents(&dir.path().join("whole"))?, &contents(&dir.path().join("split"))?)?;
    let configs = ["whole", "split"].map(|run| std::fs::read(dir.path().join(run).join("config.toml")));
    let [whole, split] = configs;
    assert_eq!(whole?, split?, "the recipe is written down");
    Ok(())
}

/// The run with so many steps that something can happen to it.
fn long(out: &str, steps: &str) -> Vec<String> {
    let mut all = arguments(STOCK, out);
    all.extend(["--steps".into(), steps.into()]);
    all
}

#[test]
fn a_run_that_changes_its_processes_and_loses_them_ends_in_the_same_bytes() -> Outcome {
    let Some((mpirun, _turn)) = mpirun() else { return Ok(()) };
    let dir = tempfile::tempdir()?;
    assert!(ended(zoo(dir.path(), &mpirun, 1, &long("undisturbed", "3000")).spawn()?)?.status.success());
    let expected = at_the_end(contents(&dir.path().join("undisturbed"))?);
    let resume = ["train", "stock-lstm", "--resume", "run"].map(String::from);
    // Processes, and what is done to the run: one of them killed, all told to stop, the launcher told to pass that on.
    let lives = [(2, "KILL"), (4, "KILL"), (3, "USR1"), (1, "TERM"), (2, "USR1"), (4, "KILL"), (1, "KILL")];
    let mut stopped = 0;
    for (number, (n, what)) in lives.into_iter().enumerate() {
        let begun = dir.path().join("run/config.toml").exists();
        let child = zoo(dir.path(), &mpirun, n, &if begun { resume.to_vec() } else { long("run", "3000") }).spawn()?;
        // Until it trains, and a little longer.
        let waited = Instant::now();
        while !dir.path().join("run/checkpoints/step-00000010").exists() && number == 0 && waited.elapsed() < LIMIT {
            sleep(Duration::from_millis(2));
        }
        sleep(Duration::from_millis(700));
        let victims = if n == 1 { vec![child.id().to_string()] } else { processes(&child) };
        match what {
            "KILL" => victims.get(number % victims.len().max(1)).map_or(Ok(()), |pid| signal("-KILL", pid))?,
            signalled => signal(&format!("-{signalled}"), &child.id().to_string())?,
        }
        let output = ended(child)?;
        let code = output.status.code();
        // 138 and nothing: the signal came before anything was begun.
        let told = matches!(code, Some(0 | 3 | 138) | None);
        assert!(what == "KILL" || told, "{what} at {n}: {code:?} {}", said(&output));
        stopped += usize::from(code != Some(0));
    }
    println!("{stopped} of {} lives ended before the run did", lives.len());
    assert!(stopped >= 3, "the run was too fast for what was to happen to it");
    let output = ended(zoo(dir.path(), &mpirun, 3, &resume).spawn()?)?;
    assert!(output.status.success(), "{}", said(&output));
    assert_same(at_the_end(contents(&dir.path().join("run"))?), &expected)
}

#[test]
fn fifty_killed_processes_cost_no_run_and_no_hang() -> Outcome {
    let Some((mpirun, _turn)) = mpirun() else { return Ok(()) };
    let dir = tempfile::tempdir()?;
    assert!(ended(zoo(dir.path(), &mpirun, 1, &long("undisturbed", "600")).spawn()?)?.status.success());
    let expected = contents(&dir.path().join("undisturbed"))?;
    let (mut finished, mut late) = (0, 0);
    for number in 0..50u64 {
        let n = 2 + (number % 3) as usize;
        let args = match dir.path().join("run/config.toml").exists() {
            true => ["train", "stock-lstm", "--resume", "run"].map(String::from).to_vec(),
            false => long("run", "600"),
        };
        let child = zoo(dir.path(), &mpirun, n, &args).spawn()?;
        sleep(Duration::from_millis(300 + (number * 7919) % 900));
        let victims = processes(&child);
        match victims.get(number as usize % victims.len().max(1)) {
            Some(pid) => signal("-KILL", pid)?,
            None => late += 1,
        }
        if ended(child)?.status.success() {
            finished += 1;
            assert_same(contents(&dir.path().join("run"))?, &expected)?;
            std::fs::remove_dir_all(dir.path().join("run"))?;
        }
    }
    println!("50 kills, of which {late} came too late; {finished} runs finished in between");
    assert!(late < 25, "{late} kills hit nothing");
    Ok(())
}

#[test]
fn failures_end_all_processes_in_one_line() -> Outcome {
    let Some((mpirun, _turn)) = mpirun() else { return Ok(()) };
    let dir = tempfile::tempdir()?;
    let errors = |output: &Output| -> Vec<String> {
        said(output).lines().filter(|l| l.contains("error:")).map(String::from).collect()
    };
    let cases = [
        (4, "stock-lstm", "train.accumulate=2", "4 processes, but a step has 2 micro-batches"),
        (3, "stock-lstm", "train.batch_size=32", "3 processes cannot share a batch of 32 evenly"),
        (2, "trading-transformer", "preset=ppo-tiny", "trains in one process"),
        (2, "stock-lstm", "train.accumulate=2 train.lr=1e30 train.optimizer=sgd", "the loss at step 2 is"),
        (2, "stock-lstm", "data.path=nowhere.csv", "nowhere.csv"),
    ];
    for (n, model, settings, expected) in cases {
        let output = ended(zoo(dir.path(), &mpirun, n, &arguments((model, settings), "failed")).spawn()?)?;
        assert!(!output.status.success(), "{settings}");
        let errors = errors(&output);
        assert!(errors.len() == 1 && errors[0].contains(expected), "{settings}: {}", said(&output));
        // What fails before its first step leaves nothing.
        let began = dir.path().join("failed").exists();
        assert!(
            began == settings.contains("lr") && (!began || std::fs::remove_dir_all(dir.path().join("failed")).is_ok())
        );
    }
    // The first one alone knows of a wrong call; the others are done before.
    let wrong = ["train", "stock-lstm", "--print-config", "--set", "train.nope=1"].map(String::from);
    let output = ended(zoo(dir.path(), &mpirun, 2, &wrong).spawn()?)?;
    assert!(!output.status.success() && errors(&output).len() == 1, "{}", said(&output));
    // A run is not resumed by more processes than it has micro-batches, and stays as it is.
    let run = ("stock-lstm", "data.simulated_days=300 model.hidden=4 train.steps=4 train.batch_size=8");
    assert!(ended(zoo(dir.path(), &mpirun, 1, &arguments(run, "alone")).spawn()?)?.status.success());
    let before = std::fs::read(dir.path().join("alone/config.toml"))?;
    let resume = ["train", "stock-lstm", "--resume", "alone", "--steps", "8"].map(String::from);
    let output = ended(zoo(dir.path(), &mpirun, 2, &resume).spawn()?)?;
    let refused = errors(&output);
    assert!(refused.len() == 1 && refused[0].contains("start at most 1"), "{}", said(&output));
    assert_eq!(std::fs::read(dir.path().join("alone/config.toml"))?, before);
    // One of them differs: by its instructions, or by what it finds.
    std::fs::create_dir(dir.path().join("elsewhere"))?;
    let days: String = (1..=28)
        .flat_map(|day| (1..=12).map(move |month| (month, day)))
        .map(|(m, d)| format!("2000-{m:02}-{d:02},10\n"))
        .collect();
    std::fs::write(dir.path().join("prices.csv"), format!("Date,Close\n{days}"))?;
    let second = [
        ("export ZOO_SIMD=scalar", "the processor's vector instructions of rank 1 (scalar"),
        ("cd elsewhere", "rank 1 of 2 on "),
    ];
    for (command, expected) in second {
        let script = format!(
            "[ \"$OMPI_COMM_WORLD_RANK$PMI_RANK\" = 1 ] && {command}; exec \"$0\" train stock-lstm --set train.accumulate=2 \
             --set data.path=prices.csv --steps 3 --out differs"
        );
        let args = ["-c", &script, env!("CARGO_BIN_EXE_zoo")].map(String::from);
        let output = ended(launched(dir.path(), &mpirun, 2, Path::new("sh"), &args).spawn()?)?;
        assert!(!output.status.success(), "{command}");
        let errors = errors(&output);
        assert!(errors.len() == 1 && errors[0].contains(expected), "{command}: {}", said(&output));
    }
    // One that does not answer.
    let run = ("stock-lstm", "data.simulated_days=300 train.steps=100000 train.accumulate=2 train.rank_timeout=2");
    let child = zoo(dir.path(), &mpirun, 2, &arguments(run, "stopped")).spawn()?;
    while !dir.path().join("stopped/checkpoints/step-00000000").exists() {
        sleep(Duration::from_millis(10));
    }
    let victims = processes(&child);
    let frozen = victims.last().ok_or("no process")?;
    signal("-STOP", frozen)?;
    let output = ended(child);
    signal("-KILL", frozen)?;
    let output = output?;
    assert_eq!(output.status.code(), Some(1));
    assert!(said(&output).contains("has not answered for 2 s (train.rank_timeout)"), "{}", said(&output));
    Ok(())
}

#[test]
fn another_launchers_mpi_is_refused_and_a_process_alone_opens_none() -> Outcome {
    let dir = tempfile::tempdir()?;
    let by = |envs: &[(&str, &str)]| {
        let run = ("stock-lstm", "data.simulated_days=300 train.steps=2 train.accumulate=2");
        let mut command = Command::new(env!("CARGO_BIN_EXE_zoo"));
        command.args(arguments(run, "run")).current_dir(dir.path()).envs(envs.iter().copied()).output()
    };
    let launched = [("OMPI_COMM_WORLD_SIZE", "2"), ("OMPI_COMM_WORLD_RANK", "0")];
    let named = by(&[launched.as_slice(), &[("ZOO_MPI", "/nowhere/libmpi.so")]].concat())?;
    assert!(
        named.status.code() == Some(2) && said(&named).contains("ZOO_MPI=/nowhere/libmpi.so: "),
        "{}",
        said(&named)
    );
    if mpirun().is_some() {
        // The library is there, its launcher is not.
        let output = by(&launched)?;
        assert_eq!(output.status.code(), Some(2), "{}", said(&output));
        assert!(said(&output).contains("knows of 1: it is not the launcher's MPI"), "{}", said(&output));
    }
    let off = by(&[launched.as_slice(), &[("ZOO_MPI", "off")]].concat())?;
    assert!(off.status.success(), "{}", said(&off));
    Ok(())
}

#[test]
fn a_search_in_many_processes_finds_what_one_does() -> Outcome {
    let Some((mpirun, _turn)) = mpirun() else { return Ok(()) };
    let dir = tempfile::tempdir()?;
    let search = |n: usize, out: &str, more: &[&str]| -> Result<Output, Box<dyn std::error::Error>> {
        let args = "tune stock-lstm --set train.lr=0.01,0.001,0.0001 --set model.hidden=4,8 --set data.simulated_days=300 --steps 6";
        let args =
            args.split(' ').chain(["--out", out]).chain(more.iter().copied()).map(String::from).collect::<Vec<_>>();
        ended(zoo(dir.path(), &mpirun, n, &args).spawn()?)
    };
    let results = |out: &str| -> Result<Vec<Value>, Box<dyn std::error::Error>> {
        let text = std::fs::read_to_string(dir.path().join(out).join("results.jsonl"))?;
        let mut all = text.lines().map(serde_json::from_str).collect::<Result<Vec<Value>, _>>()?;
        all.iter_mut().for_each(|trial| trial["seconds"] = Value::Null);
        Ok(all)
    };
    for how in ["grid", "in-order"] {
        let more = ["--to-the-end", "--search", how];
        for (n, out) in [(1, "alone"), (4, "many")] {
            let output = search(n, &format!("{how}-{out}"), &more)?;
            assert!(output.status.success(), "{how} in {n}: {}", said(&output));
        }
        let (alone, many) = (results(&format!("{how}-alone"))?, results(&format!("{how}-many"))?);
        assert!(alone.len() >= 4 && alone == many, "{how}: {alone:?} alone, {many:?} in four processes");
    }
    let output = search(2, "behind", &[])?;
    assert!(said(&output).contains("add --to-the-end"), "{}", said(&output));
    Ok(())
}

/// Were these the same, the tests above would say nothing of the order of sums.
#[test]
fn sums_in_order_have_the_bits_of_one_process_and_mpis_own_have_not() -> Outcome {
    let Some((mpirun, _turn)) = mpirun() else { return Ok(()) };
    let dir = tempfile::tempdir()?;
    let args = ["bench", "--ranks", "--seconds", "0.01", "--json"].map(String::from);
    let mut command = zoo(dir.path(), &mpirun, 3, &args);
    let output = ended(command.stdout(Stdio::piped()).spawn()?)?;
    assert!(output.status.success(), "{}", said(&output));
    let found: Value = serde_json::from_slice(&output.stdout)?;
    assert_eq!(found["differing"]["in_order"], 0.);
    assert!(found["differing"]["mpi"].as_f64() > Some(0.), "{found}");
    Ok(())
}

#[test]
fn mpich_by_both_of_its_abis_ends_in_the_same_bytes() -> Outcome {
    let Some(mpiexec) = std::env::var_os("ZOO_TEST_MPICH").map(PathBuf::from) else {
        skipped("mpich", "ZOO_TEST_MPICH names no mpiexec");
        return Ok(());
    };
    let lib = mpiexec.parent().and_then(Path::parent).ok_or("mpiexec lies in no bin")?.join("lib");
    let dir = tempfile::tempdir()?;
    let run = RUNS[3];
    assert!(ended(zoo(dir.path(), &mpiexec, 1, &arguments(run, "alone")).spawn()?)?.status.success());
    let expected = contents(&dir.path().join("alone"))?;
    for library in ["libmpi.so.12", "libmpi_abi.so.1"] {
        let mut command = Command::new(&mpiexec);
        command.args(["-n", "2", env!("CARGO_BIN_EXE_zoo")]).args(arguments(run, library)).current_dir(dir.path());
        command.env("ZOO_MPI", lib.join(library)).stdout(Stdio::null()).stderr(Stdio::piped());
        let output = ended(command.spawn()?)?;
        assert!(output.status.success(), "{library}: {}", said(&output));
        assert_same(contents(&dir.path().join(library))?, &expected)?;
    }
    Ok(())
}
