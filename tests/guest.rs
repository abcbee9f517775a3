//! Programs of somebody else with models of their own: `tests/guest`, and what `zoo new` writes. Both are built in this
//! workspace's target directory.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread::sleep;
use std::time::Duration;

use serde_json::Value;

type Outcome = Result<(), Box<dyn std::error::Error>>;

/// The workspace's target directory: the `zoo` under test lies in a folder of it.
fn target() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("..")
}

fn cargo(folder: &Path, args: &[&str]) -> Result<Output, Box<dyn std::error::Error>> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(args).current_dir(folder).env("CARGO_TARGET_DIR", target()).env("CARGO_NET_OFFLINE", "true");
    done(command)
}

/// What a command writes, if it succeeds.
fn done(mut command: Command) -> Result<Output, Box<dyn std::error::Error>> {
    let output = command.output()?;
    if !output.status.success() {
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        return Err(format!("{command:?}: {}: {out}{err}", output.status).into());
    }
    Ok(output)
}

/// A program in a folder.
struct Program {
    name: &'static str,
    folder: PathBuf,
}

impl Program {
    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(target().join("debug").join(self.name));
        command.args(args).current_dir(&self.folder);
        command
    }

    fn run(&self, args: &[&str]) -> Result<Output, Box<dyn std::error::Error>> {
        done(self.command(args))
    }

    fn json(&self, args: &[&str]) -> Result<Value, Box<dyn std::error::Error>> {
        Ok(serde_json::from_slice(&self.run(&[args, &["--json"]].concat())?.stdout)?)
    }

    fn read(&self, file: &str) -> std::io::Result<Vec<u8>> {
        std::fs::read(self.folder.join(file))
    }
}

/// The table that a server of the guest's weights answers for a file.
fn served(guest: &Program, weights: &str, options: &str, file: &str) -> Result<String, Box<dyn std::error::Error>> {
    let mut server = guest.command(&["serve", weights, "--port", "0"]).stdout(Stdio::piped()).spawn()?;
    let answer = guest.read(file).map_err(Into::into).and_then(|body| asked(&mut server, options, &body));
    server.kill()?;
    server.wait()?;
    answer
}

/// What a server that has just been started answers.
fn asked(server: &mut Child, options: &str, body: &[u8]) -> Result<String, Box<dyn std::error::Error>> {
    let lines = BufReader::new(server.stdout.take().ok_or("no stdout")?).lines();
    let said = lines.map_while(Result::ok).find_map(|l| l.strip_prefix("listening at http://").map(String::from));
    let address = said.as_deref().and_then(|said| said.split(' ').next()).ok_or("it does not listen")?.to_string();
    let mut stream = TcpStream::connect(&address)?;
    let head = format!("POST /predict?{options} HTTP/1.0\r\nHost: {address}\r\nAccept: text/csv\r\n");
    stream.write_all(format!("{head}Content-Length: {}\r\n\r\n", body.len()).as_bytes())?;
    stream.write_all(body)?;
    let mut response = String::new();
    stream.read_to_string(&mut response)?;
    let (head, body) = response.split_once("\r\n\r\n").ok_or("no response")?;
    if head.contains(" 200 ") { Ok(body.into()) } else { Err(response.into()) }
}

#[test]
fn a_guest_gets_every_verb_for_a_model_of_its_own() -> Outcome {
    cargo(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/guest"), &["build", "--locked"])?;
    let dir = tempfile::tempdir()?;
    let guest = Program { name: "guest", folder: dir.path().into() };
    let listed = guest.json(&["list"])?;
    assert_eq!(listed["models"][0]["model"], "tides");
    assert_eq!(listed["models"][0]["can"], serde_json::json!(["train", "tune", "eval", "predict"]));
    assert_eq!(guest.json(&["params", "tides"])?["total"], 8 * 3 + 8 + 8 * 16 + 1);

    // Killed at any moment, it resumes to the bytes of a run that was left alone.
    let train = ["train", "tides", "--length", "300", "--steps", "4000", "--set", "train.checkpoint_every=20"];
    let whole = guest.json(&[&train[..], &["--out", "whole"]].concat())?;
    assert_eq!(whole["gradients"], serde_json::json!({ "tensors": 4, "with_gradient": 4 }));
    let mut child = guest.command(&[&train[..], &["--out", "parts"]].concat());
    let mut child = child.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    for _ in 0..1000 {
        let steps = std::fs::read_dir(dir.path().join("parts/checkpoints")).into_iter().flatten().flatten();
        if steps.filter(|e| e.file_name() > *"step-00000040").count() > 0 || child.try_wait()?.is_some() {
            break;
        }
        sleep(Duration::from_millis(5));
    }
    child.kill()?;
    child.wait()?;
    assert!(guest.read("parts/last.safetensors").is_err(), "it was to be killed before its end");
    guest.run(&["train", "tides", "--resume", "parts"])?;
    assert!(guest.read("parts/last.safetensors")? == guest.read("whole/last.safetensors")?);

    let doctor = guest.json(&["doctor", "whole"])?;
    assert!(doctor["verdict"].is_string() && doctor["health"]["probes"][1]["name"] == "hidden", "{doctor}");
    assert!(guest.json(&["doctor", "tides"])?["health"]["verdict"].is_string());
    let judged = guest.json(&["eval", "tides", "--checkpoint", "whole"])?;
    let of = |value: &Value| value["loss"].as_f64().unwrap_or(f64::NAN);
    assert!(of(&judged["metrics"]) < 0.2 * of(&judged["baselines"]["last_value"]), "{judged}");
    let tuned = guest.json(&["tune", "tides", "--set", "train.lr=0.01,1e-6", "--steps", "60", "--out", "tuned"])?;
    assert_eq!(tuned["trials"][0]["settings"][0], "train.lr=0.01");
    guest.run(&["report", "whole", "parts", "--output", "page.html"])?;
    assert!(String::from_utf8(guest.read("page.html")?)?.contains("guest: "));

    let values: String = (0..40).map(|t| format!("{}\n", (0.3 * t as f32).sin())).collect();
    std::fs::write(dir.path().join("series.txt"), values)?;
    let predict = ["predict", "tides", "--checkpoint", "whole", "--input", "series.txt"];
    let table = String::from_utf8(guest.run(&[&predict[..], &["--ahead", "3"]].concat())?.stdout)?;
    assert!(table.starts_with("step,value\n1,") && table.lines().count() == 4, "{table}");
    assert_eq!(served(&guest, "whole", "ahead=3&format=txt", "series.txt")?, table);
    guest.run(&["convert", "whole", "weights.pt"])?;
    assert_eq!(guest.json(&["verify", "weights.pt"])?["ok"], true);
    guest.run(&["convert", "whole", "tides.onnx"])?;
    let graph = &guest.json(&["inspect", "tides.onnx"])?["graph"];
    assert_eq!((&graph["ops"]["Conv"], &graph["inputs"][0]["dims"]), (&1.into(), &serde_json::json!(["batch", 16])));
    assert!(guest.json(&["bench", "tides", "--seconds", "0.1"])?["cases"][0]["train_ms"].as_f64() > Some(0.));

    // What it has not, it says in one line, under its own name.
    for (args, expected) in [
        (&["train", "stock-lstm"][..], "guest: error: there is no model stock-lstm; the models are tides"),
        (&["generate", "tides", "--checkpoint", "whole"], "guest: error: tides does not write text; no model does"),
        (&["train", "tides", "--column", "x"], "guest: error: unexpected argument '--column' found"),
        (&["train", "tides", "--length", "many"], "guest: error: --length takes a whole number, got \"many\""),
        (&["train", "tides", "--data", "missing.txt"], "missing.txt: No such file or directory"),
        (&["reproduce", "anything"], "guest: error: there is nothing to reproduce named anything"),
    ] {
        let output = guest.command(args).output()?;
        let error = String::from_utf8(output.stderr)?;
        assert!(
            !output.status.success() && error.contains(expected) && error.lines().count() == 1,
            "{args:?}: {error}"
        );
    }
    Ok(())
}

#[test]
fn a_new_crate_builds_passes_its_tests_and_trains_on_a_table() -> Outcome {
    let dir = tempfile::tempdir()?;
    let zoo = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_zoo"));
        command.args(args).current_dir(dir.path());
        command
    };
    done(zoo(&["new", "house-prices"]))?;
    let folder = dir.path().join("house-prices");
    let mut lines = 0;
    for file in ["main", "lib", "data", "network", "task"]
        .map(|f| format!("src/{f}.rs"))
        .into_iter()
        .chain(["tests/model.rs".into()])
    {
        lines += std::fs::read_to_string(folder.join(file))?.lines().count();
    }
    assert!(lines <= 200, "{lines} lines");
    // With all features, as the tests of the workspace have them.
    cargo(&folder, &["test", "--features", "full"])?;
    let program = Program { name: "house-prices", folder: dir.path().into() };
    let rows: String = (0..200)
        .map(|i| (f64::from(i % 17), f64::from(i % 5)))
        .map(|(a, b)| format!("{a}, {b}, {}\n", 3. * a - b))
        .collect();
    std::fs::write(dir.path().join("table.csv"), format!("rooms,floor,price\n{rows}"))?;
    let trained = program.json(&["train", "house-prices", "--data", "table.csv", "--out", "run", "--epochs", "60"])?;
    // The prices, of a standard deviation of 15, are explained nearly as a whole.
    assert!(
        trained["best"]["loss"].as_f64() < Some(0.02) && trained["metrics"]["rmse"].as_f64() < Some(2.),
        "{trained}"
    );
    program.run(&["train", "house-prices", "--resume", "run", "--epochs", "61"])?;
    // Columns are known by their names; other values are other data.
    let judged = |file: &str| program.json(&["eval", "house-prices", "--checkpoint", "run", "--data", file]);
    let turned: String = rows
        .lines()
        .map(|l| l.splitn(3, ", ").collect::<Vec<_>>())
        .map(|f| format!("{},{},{}\n", f[2], f[0], f[1]))
        .collect();
    std::fs::write(dir.path().join("turned.csv"), format!("price,rooms,floor\n{turned}"))?;
    assert_eq!(judged("turned.csv")?["metrics"], judged("table.csv")?["metrics"]);
    std::fs::write(dir.path().join("other.csv"), format!("rooms,level,price\n{rows}"))?;
    let absent = program.command(&["eval", "house-prices", "--checkpoint", "run", "--data", "other.csv"]).output()?;
    let absent = String::from_utf8(absent.stderr)?;
    assert!(absent.contains("other.csv: there is no column floor"), "{absent}");
    std::fs::write(dir.path().join("table.csv"), format!("rooms,floor,price\n{}", rows.replace("16, ", "17, ")))?;
    let changed = program.command(&["train", "house-prices", "--resume", "run", "--epochs", "62"]).output()?;
    let changed = String::from_utf8(changed.stderr)?;
    assert!(changed.contains("data: some samples then, others now"), "{changed}");
    assert!(program.json(&["doctor", "run"])?["verdict"].is_string());
    // Nothing is written over, and what cannot be a name is refused.
    for (args, expected) in [
        (&["new", "house-prices"][..], "house-prices is already there"),
        (&["new", "House"], "a crate's name has small letters"),
        (&["new", "test"], "test is taken"),
        (&["new", "zoo-layers"], "zoo-layers is taken"),
        (&["new", "../out"], "a crate's name has small letters"),
        (&["new", "other", "--path", "table.csv"], "--path table.csv: not a checkout of the zoo"),
    ] {
        let output = zoo(args).output()?;
        let error = String::from_utf8(output.stderr)?;
        assert!(output.status.code() == Some(2) && error.contains(expected) && error.lines().count() == 1, "{error}");
    }
    assert!(!dir.path().join("other").exists());
    Ok(())
}
