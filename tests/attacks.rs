//! Files and folders of somebody who wishes one harm: nothing outside is written, removed, read out or sent, and nothing takes
//! memory, time or threads out of proportion.
#![cfg(unix)]

use std::os::unix::fs::{FileTypeExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

type Outcome = Result<(), Box<dyn std::error::Error>>;

/// Runs `zoo` with 3 GiB of address space and 30 s; more is an attack that works.
fn zoo(dir: &Path, args: &[&str]) -> Output {
    let mut child = Command::new("sh")
        .args(["-c", "ulimit -v 3145728; exec \"$@\"", "sh", env!("CARGO_BIN_EXE_zoo")])
        .args(args)
        .current_dir(dir)
        .env("RAYON_NUM_THREADS", "2")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("a shell");
    let begun = Instant::now();
    // What it prints fits into a pipe's buffer.
    while child.try_wait().expect("a child").is_none() {
        if begun.elapsed() > Duration::from_secs(30) {
            let _ = child.kill();
            panic!("{args:?}: not done after 30 s");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    child.wait_with_output().expect("a child")
}

/// What it says on stderr in one line of at most 600 characters, with that exit code.
fn refused(output: &Output, code: i32, expected: &str) -> String {
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    let errors: Vec<&str> = text.lines().filter(|l| l.starts_with("zoo: error")).collect();
    assert!(output.status.code() == Some(code) && text.contains(expected), "{:?}: {text}", output.status);
    assert!(errors.len() == 1 && errors[0].chars().count() < 600, "{text}");
    assert!(text.chars().all(|c| c == '\n' || !c.is_control()), "{text:?}");
    text
}

fn done(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A run of a small model in `dir/run`.
fn run(dir: &Path) -> PathBuf {
    done(&zoo(
        dir,
        &[
            "train",
            "stock-lstm",
            "--out",
            "run",
            "--steps",
            "12",
            "--set",
            "data.simulated_days=200",
            "--set",
            "model.hidden=4",
            "--set",
            "model.window=5",
            "--set",
            "train.eval_every=4",
            "--set",
            "train.checkpoint_every=4",
            "--set",
            "train.health_every=4",
        ],
    ));
    dir.join("run")
}

const RESUME: [&str; 6] = ["train", "stock-lstm", "--resume", "run", "--steps", "16"];

/// Header and values of a safetensors file.
fn parts(path: &Path) -> (Value, Vec<u8>) {
    let bytes = std::fs::read(path).unwrap();
    let n = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    (serde_json::from_slice(&bytes[8..8 + n]).unwrap(), bytes[8 + n..].to_vec())
}

fn write(path: &Path, header: &Value, values: &[u8]) {
    let header = header.to_string();
    std::fs::write(path, [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), values].concat()).unwrap();
}

/// The trained weights in `from` with other descriptions of themselves.
fn described(from: &Path, to: &Path, change: impl FnOnce(&mut Value, &mut Value)) {
    let (mut header, values) = parts(from);
    let read = |key: &str| serde_json::from_str(header["__metadata__"][key].as_str().unwrap()).unwrap();
    let (mut config, mut fitted): (Value, Value) = (read("config"), read("fitted"));
    change(&mut config, &mut fitted);
    header["__metadata__"]["config"] = config.to_string().into();
    header["__metadata__"]["fitted"] = fitted.to_string().into();
    write(to, &header, &values);
}

/// The newest checkpoint of a run.
fn newest(run: &Path) -> PathBuf {
    let steps = std::fs::read_dir(run.join("checkpoints")).unwrap().map(|e| e.unwrap().path());
    steps.filter(|p| p.is_dir()).max().unwrap()
}

#[test]
fn names_in_a_manifest_are_no_paths() -> Outcome {
    let dir = tempfile::tempdir()?;
    let whole = run(dir.path());
    let victim = dir.path().join("victim");
    std::fs::write(&victim, "mine")?;
    let payload = b"#!/bin/sh\n";
    let record = json!({ "bytes": payload.len(), "sha256": zoo_checkpoint::sha256_of(payload) });
    let resumed = |change: &dyn Fn(&mut Value)| -> Result<String, Box<dyn std::error::Error>> {
        let evil = dir.path().join("evil");
        let _ = std::fs::remove_dir_all(&evil);
        assert!(Command::new("cp").arg("-r").args([&whole, &evil]).status()?.success());
        // What lies under the name of the best weights would take the place of the victim.
        std::fs::write(evil.join("best.safetensors"), payload)?;
        let path = newest(&evil).join("manifest.json");
        let mut manifest = serde_json::from_slice(&std::fs::read(&path)?)?;
        change(&mut manifest);
        std::fs::write(&path, manifest.to_string())?;
        let said = zoo(dir.path(), &["train", "stock-lstm", "--resume", "evil", "--steps", "16"]);
        assert_eq!(std::fs::read(&victim)?, b"mine");
        Ok(String::from_utf8_lossy(&said.stderr).into_owned())
    };
    for name in ["../../victim", &victim.to_string_lossy(), "best-step-99999999.safetensors"] {
        // The checkpoint counts as damaged; the one before it is gone back to.
        let said = resumed(&|manifest| manifest["best"][name] = record.clone())?;
        assert!(said.contains("is damaged, using step-") && said.contains("among the best weights"), "{said}");
    }
    // Files that are not listed were not checked.
    let said = resumed(&|manifest| manifest["files"] = json!({}))?;
    assert!(said.contains("it does not list model.safetensors"), "{said}");
    let said = resumed(&|manifest| manifest["files"]["../../../victim"] = record.clone())?;
    assert!(said.contains("which is no file of a checkpoint"), "{said}");
    Ok(())
}

#[test]
fn links_in_a_run_lead_nowhere() -> Outcome {
    let dir = tempfile::tempdir()?;
    let run = run(dir.path());
    let thesis = dir.path().join("thesis");
    std::fs::create_dir(&thesis)?;
    for name in ["thesis.tmp", "step-00000004", "best-step-00000004.safetensors"] {
        std::fs::write(thesis.join(name), "mine")?;
    }
    let aside = dir.path().join("aside");
    for name in ["checkpoints", "metrics.jsonl", "health.jsonl", "accepted.json", "config.toml", ".lock"] {
        std::fs::rename(run.join(name), &aside)?;
        symlink(if name == "checkpoints" { &thesis } else { Path::new("../new") }, run.join(name))?;
        refused(&zoo(dir.path(), &RESUME), 1, "or a link to one: nothing was read or changed");
        if name == "config.toml" {
            refused(&zoo(dir.path(), &["doctor", "run"]), 1, "config.toml");
            refused(&zoo(dir.path(), &["push", "run", "me/x", "--dry-run"]), 1, "config.toml");
        }
        assert!(std::fs::symlink_metadata(dir.path().join("new")).is_err(), "{name}");
        std::fs::remove_file(run.join(name))?;
        std::fs::rename(&aside, run.join(name))?;
    }
    assert_eq!(std::fs::read_dir(&thesis)?.count(), 3);
    // A picture, a page and a checkpoint that are links are not written through.
    for name in ["curves.svg", "curves.png", "report.html", "last.safetensors"] {
        let _ = std::fs::remove_file(run.join(name));
        symlink("../thesis/thesis.tmp", run.join(name))?;
    }
    refused(&zoo(dir.path(), &["report", "run"]), 1, "report.html");
    refused(&zoo(dir.path(), &RESUME), 1, "last.safetensors");
    assert_eq!(std::fs::read(thesis.join("thesis.tmp"))?, b"mine");
    // Another name of a file, elsewhere, keeps what it had.
    for name in ["curves.svg", "curves.png", "report.html", "last.safetensors"] {
        std::fs::remove_file(run.join(name))?;
    }
    std::fs::hard_link(run.join("metrics.jsonl"), dir.path().join("linked"))?;
    let before = std::fs::read(dir.path().join("linked"))?;
    done(&zoo(dir.path(), &["train", "stock-lstm", "--resume", "run", "--steps", "20"]));
    assert_eq!(std::fs::read(dir.path().join("linked"))?, before);
    assert!(std::fs::read(run.join("metrics.jsonl"))?.len() > before.len());
    // A pipe is not waited for.
    std::fs::remove_file(run.join("config.toml"))?;
    assert!(Command::new("mkfifo").arg(run.join("config.toml")).status()?.success());
    refused(&zoo(dir.path(), &["doctor", "run"]), 1, "config.toml");
    Ok(())
}

#[test]
fn a_push_tells_what_it_sends_and_no_places_of_files() -> Outcome {
    let dir = tempfile::tempdir()?;
    let run = run(dir.path());
    let config = std::fs::read_to_string(run.join("config.toml"))?;
    let placed = config.replace("path = \"\"", &format!("path = {:?}", dir.path().join("secret/prices.csv")));
    assert!(placed.contains("secret"), "{config}");
    std::fs::write(run.join("config.toml"), placed)?;
    let output = zoo(dir.path(), &["push", "run", "me/x", "--dry-run"]);
    let (card, files) = (done(&output), String::from_utf8_lossy(&output.stderr).into_owned());
    for file in ["model.safetensors", "README.md", "config.toml"] {
        assert!(files.contains(&format!("would push {file}: ")), "{files}");
    }
    assert!(!card.contains("secret") && !files.contains("secret"), "{card}{files}");
    // What a file calls its model does not become front matter.
    let (mut header, values) = parts(&run.join("best.safetensors"));
    header["__metadata__"]["model"] = "x\nlicense: mit\n---\n".into();
    write(&dir.path().join("x.safetensors"), &header, &values);
    let card = done(&zoo(dir.path(), &["push", "x.safetensors", "me/x", "--dry-run"]));
    assert!(!card.contains("license"), "{card}");
    Ok(())
}

#[test]
fn what_weights_say_of_themselves_is_checked_before_it_costs_anything() -> Outcome {
    let dir = tempfile::tempdir()?;
    let best = run(dir.path()).join("best.safetensors");
    let file = dir.path().join("x.safetensors");
    let eval = |change: &dyn Fn(&mut Value, &mut Value), code: i32, expected: &str| {
        described(&best, &file, |config, fitted| change(config, fitted));
        refused(&zoo(dir.path(), &["eval", "stock-lstm", "--checkpoint", "x.safetensors"]), code, expected)
    };
    eval(&|config, _| config["model"]["hidden"] = 8_000_000.into(), 1, "expected [32000000, 1]");
    eval(&|config, _| config["model"]["hidden"] = 1_000_000_000.into(), 1, "x.safetensors");
    eval(&|config, _| config["data"]["simulated_days"] = 100_000_000_000u64.into(), 2, "data.simulated_days");
    eval(&|_, fitted| fitted["shift"] = json!([]), 1, "the scaler does not fit the model's 1 features");
    assert_eq!(zoo(dir.path(), &["verify", "x.safetensors", "--model", "stock-lstm"]).status.code(), Some(1));
    // Data are opened where the user names them.
    for path in ["/proc/self/environ", "/dev/zero", "prices.csv"] {
        let said = eval(&|config, _| config["data"]["path"] = path.into(), 1, "name the data by --data");
        assert!(!said.contains("PATH="), "{said}");
    }
    // And then from regular files alone.
    assert!(Command::new("mkfifo").arg(dir.path().join("pipe")).status()?.success());
    for data in ["/dev/zero", "pipe", "/proc/self/environ"] {
        let said = zoo(dir.path(), &["eval", "stock-lstm", "--checkpoint", "run", "--data", data]);
        assert!(!refused(&said, 1, data).contains("PATH="));
    }
    Ok(())
}

#[test]
fn an_output_replaces_only_what_it_may() -> Outcome {
    let dir = tempfile::tempdir()?;
    let (dir, weights) = (dir.path(), run(dir.path()).join("best.safetensors"));
    let from = weights.to_string_lossy().into_owned();
    let convert = |to: &str, more: &[&str]| zoo(dir, &[&["convert", &from, to][..], more].concat());
    done(&convert("a.npz", &[]));
    refused(&convert("a.npz", &[]), 2, "a.npz is already there: replace it by --force");
    // Its mode stays its own.
    std::fs::set_permissions(dir.join("a.npz"), PermissionsExt::from_mode(0o600))?;
    done(&convert("a.npz", &["--force"]));
    assert_eq!(std::fs::metadata(dir.join("a.npz"))?.permissions().mode() & 0o777, 0o600);
    // A link is followed, and stays; one that leads nowhere is refused.
    symlink("a.npz", dir.join("link.npz"))?;
    refused(&convert("link.npz", &[]), 2, "link.npz is already there");
    done(&convert("link.npz", &["--force"]));
    assert!(std::fs::symlink_metadata(dir.join("link.npz"))?.is_symlink());
    symlink("nowhere.npz", dir.join("dangling.npz"))?;
    refused(&convert("dangling.npz", &["--force"]), 1, "a link that leads nowhere");
    assert!(!dir.join("nowhere.npz").exists());
    std::fs::create_dir(dir.join("folder.npz"))?;
    refused(&convert("folder.npz", &["--force"]), 1, "it is a folder");
    std::fs::set_permissions(dir.join("a.npz"), PermissionsExt::from_mode(0o400))?;
    refused(&convert("a.npz", &["--force"]), 1, "read-only");
    refused(&convert("none/a.npz", &[]), 1, "there is no folder");
    // Devices and pipes are written to.
    let said = done(&convert("/dev/null", &["--format", "npz"]));
    assert!(said.contains("not read back"), "{said}");
    assert!(std::fs::metadata("/dev/null")?.file_type().is_char_device());
    let written = convert("/dev/stdout", &["--format", "npz", "--json"]);
    assert!(written.status.success() && written.stdout.starts_with(b"PK\x03\x04"));
    assert!(Command::new("mkfifo").arg(dir.join("pipe.npz")).status()?.success());
    let reader = Command::new("cat").arg(dir.join("pipe.npz")).stdout(Stdio::piped()).spawn()?;
    done(&convert("pipe.npz", &[]));
    assert!(reader.wait_with_output()?.stdout.starts_with(b"PK\x03\x04"));
    assert!(std::fs::metadata(dir.join("pipe.npz"))?.file_type().is_fifo());
    // Others ask, too.
    for args in [
        &["average", "run", "run", "--output", "link.npz"][..],
        &["report", "run", "--output", "link.npz"],
        &["predict", "stock-lstm", "--checkpoint", "run", "--input", "none.csv", "--output", "link.npz"],
    ] {
        refused(&zoo(dir, args), 2, "link.npz is already there");
    }
    let left: Vec<_> =
        std::fs::read_dir(dir)?.flatten().filter(|e| e.file_name().to_string_lossy().contains(".zoo-")).collect();
    assert!(left.is_empty(), "{left:?}");
    Ok(())
}

#[test]
fn a_set_of_shards_is_replaced_as_one() -> Outcome {
    let dir = tempfile::tempdir()?;
    let (dir, weights) = (dir.path(), run(dir.path()).join("best.safetensors"));
    let from = weights.to_string_lossy().into_owned();
    std::fs::write(dir.join("out-notes.txt"), "mine")?;
    let convert =
        |more: &[&str]| zoo(dir, &[&["convert", &from, "out.safetensors", "--shard-size", "200"][..], more].concat());
    let shards = || {
        let names = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<String> = names.filter(|n| n.starts_with("out-") && n.ends_with(".safetensors")).collect();
        names.sort();
        names
    };
    done(&convert(&[]));
    let before = shards();
    refused(&convert(&[]), 2, "out.safetensors.index.json is already there");
    // What a killed process left is removed, what another is writing is not.
    std::fs::write(dir.join(".zoo-left.tmp"), "half")?;
    done(&convert(&["--force"]));
    let after = shards();
    // The new ones had names of their own until the index named them; the old ones are gone.
    assert!(before.len() == after.len() && before.iter().all(|name| !after.contains(name)), "{before:?} {after:?}");
    assert!(dir.join("out-notes.txt").exists() && !dir.join(".zoo-left.tmp").exists());
    done(&zoo(dir, &["diff", "out.safetensors.index.json", &from]));
    Ok(())
}

#[test]
fn long_names_and_escapes_reach_no_terminal() -> Outcome {
    let dir = tempfile::tempdir()?;
    let dir = dir.path();
    let tensor = |name: &str| json!({ name: { "dtype": "F32", "shape": [1], "data_offsets": [0, 4] } });
    write(&dir.join("long.safetensors"), &tensor(&"w".repeat(70_000)), &[0; 4]);
    refused(&zoo(dir, &["inspect", "long.safetensors"]), 1, "a name of 70000 bytes");
    let escape = "\u{1b}]0;x\u{7}\u{1b}[2J\u{9b}31m\u{202e}";
    let mut header = tensor(&format!("a{}", "b".repeat(500)));
    header[escape] = json!({ "dtype": "F32", "shape": [1], "data_offsets": [4, 8] });
    header["__metadata__"] = json!({ escape: escape });
    write(&dir.join("a.safetensors"), &header, &[0; 8]);
    write(&dir.join("b.safetensors"), &tensor("c"), &[0, 0, 128, 63]);
    for args in [
        &["inspect", "a.safetensors"][..],
        &["inspect", "a.safetensors", "--json"],
        &["diff", "a.safetensors", "b.safetensors"],
        &["verify", "a.safetensors", "--model", "stock-lstm"],
        &["convert", "a.safetensors", "x.npz", "--dry-run"],
    ] {
        let said = zoo(dir, args);
        let text = String::from_utf8_lossy(&said.stdout).into_owned() + &String::from_utf8_lossy(&said.stderr);
        assert!(matches!(said.status.code(), Some(0 | 1)), "{args:?}: {text}");
        assert!(text.chars().all(|c| c == '\n' || !c.is_control() && c != '\u{202e}'), "{args:?}: {text:?}");
    }
    Ok(())
}

#[test]
fn a_pickle_that_names_a_function_is_no_sound_checkpoint() -> Outcome {
    let dir = tempfile::tempdir()?;
    let dir = dir.path();
    // os.system is named beside a number, and not called.
    let pickle = b"\x80\x02}(X\x01\x00\x00\x00acos\nsystem\nX\x01\x00\x00\x00bcdatetime\ndate\nu.";
    let mut archive = zip::ZipWriter::new(std::fs::File::create(dir.join("named.pt"))?);
    archive.start_file("a/data.pkl", zip::write::SimpleFileOptions::DEFAULT)?;
    std::io::Write::write_all(&mut archive, pickle)?;
    archive.finish()?;
    let said = zoo(dir, &["verify", "named.pt"]);
    let text = String::from_utf8_lossy(&said.stdout).into_owned();
    assert!(said.status.code() == Some(1) && text.contains("unpickling it imports os.system, which"), "{text}");
    let report: Value = serde_json::from_slice(&zoo(dir, &["verify", "named.pt", "--sarif"]).stdout)?;
    let rules: Vec<&str> =
        report["runs"][0]["results"].as_array().unwrap().iter().flat_map(|r| r["ruleId"].as_str()).collect();
    assert_eq!((report["version"].as_str(), rules), (Some("2.1.0"), vec!["imports", "values"]));
    // Two archives in one file: readers differ in which they take.
    let one = std::fs::read(dir.join("named.pt"))?;
    std::fs::write(dir.join("two.pt"), [&one[..], &one].concat())?;
    refused(&zoo(dir, &["verify", "two.pt"]), 1, "zip archive");
    Ok(())
}

#[test]
fn curves_of_impossible_numbers_and_names_without_end_are_drawn() -> Outcome {
    let dir = tempfile::tempdir()?;
    let run = run(dir.path());
    let names: serde_json::Map<String, Value> = (0..100_000).map(|i| (format!("k{i}"), i.into())).collect();
    let line = |step: u64, more: Value| {
        let mut line = json!({ "step": step });
        line.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        format!("{line}\n")
    };
    for lines in [
        [
            line(1, json!({ "loss": -1e308, "grad_norm": 1e-310 })),
            line(u64::MAX, json!({ "loss": 1e308, "grad_norm": 1. })),
        ],
        [line(1, json!({ "grad_norm": 1e308, "lr": 1e-45 })), line(2, json!({ "grad_norm": 0.45, "lr": 1e38 }))],
        [line(1, Value::Object(names.clone())), line(2, Value::Object(names.clone()))],
    ] {
        std::fs::write(run.join("metrics.jsonl"), lines.concat())?;
        done(&zoo(dir.path(), &["report", "run"]));
        assert!(std::fs::metadata(run.join("report.html"))?.len() < 1 << 20);
    }
    Ok(())
}

#[test]
fn threads_without_end_are_not_started() -> Outcome {
    let dir = tempfile::tempdir()?;
    for (args, note) in [(&["--help"][..], false), (&["list"], true)] {
        let output = Command::new("sh")
            .args(["-c", "ulimit -v 4194304; exec \"$@\"", "sh", env!("CARGO_BIN_EXE_zoo")])
            .args(args)
            .current_dir(dir.path())
            .env("RAYON_NUM_THREADS", "100000")
            .output()?;
        done(&output);
        assert_eq!(String::from_utf8_lossy(&output.stderr).contains("RAYON_NUM_THREADS=100000: "), note);
    }
    Ok(())
}
