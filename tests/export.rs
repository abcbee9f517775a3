//! Models as ONNX graphs: what is written, what is told of it, and that the weights come back. That graphs compute what models do is for
//! `tests/onnx`, which runs them by another program.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::{Value, json};

type Outcome<T = ()> = Result<T, Box<dyn std::error::Error>>;

fn zoo(dir: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_zoo")).current_dir(dir).args(args).output().expect("zoo starts")
}

fn said(dir: &Path, args: &[&str]) -> Outcome<Value> {
    let output = zoo(dir, args);
    match output.status.success() {
        true => Ok(serde_json::from_slice(&output.stdout)?),
        false => Err(format!("{args:?}: {}", String::from_utf8_lossy(&output.stderr)).into()),
    }
}

/// Trains for a few steps.
fn train(dir: &Path, model: &str, preset: &str, more: &[&str]) -> Outcome {
    said(dir, &[&["train", model, "--preset", preset, "--steps", "3", "--out", model, "--json"], more].concat())
        .map(|_| ())
}

#[test]
fn weights_go_into_a_graph_and_come_back_the_same() -> Outcome {
    let dir = tempfile::tempdir()?;
    let dir = dir.path();
    let small = ["--set", "data.simulated_days=200", "--set", "model.hidden=8"];
    for (model, preset, more, outputs) in [
        ("char-gpt", "tiny", &[][..], json!(["logits"])),
        ("stock-lstm", "default", &small, json!(["forecast"])),
        ("trading-transformer", "tiny", &[], json!(["features", "directions"])),
        ("deepsif", "tiny", &[], json!(["activity"])),
        #[cfg(feature = "llama")]
        ("llama", "tiny", &[], json!(["logits"])),
    ] {
        train(dir, model, preset, more)?;
        let graph = format!("{model}.onnx");
        let written = said(dir, &["convert", model, &graph, "--json"])?;
        assert_eq!((&written["model"], &written["opset"]), (&json!(model), &json!(17)));
        let told = said(dir, &["inspect", &graph, "--json"])?;
        let names = |ports: &Value| Value::from_iter(ports.as_array().into_iter().flatten().map(|p| p["name"].clone()));
        assert_eq!(names(&told["graph"]["outputs"]), outputs, "{model}");
        assert_eq!(names(&written["outputs"]), outputs, "{model}");
        assert_eq!(told["graph"]["nodes"], written["nodes"]);
        assert_eq!(told["graph"]["inputs"][0]["dims"][0], "batch");
        let back = format!("{model}-back.safetensors");
        said(dir, &["convert", &graph, &back, "--json"])?;
        let best = format!("{model}/best.safetensors");
        let compared = said(dir, &["diff", &back, &best, "--json"])?;
        assert_eq!(compared["equal"], true, "{model}: {compared}");
        // With what belongs to them: they are judged as before.
        let judged = |weights: &str| {
            Ok::<_, Box<dyn std::error::Error>>(
                said(dir, &["eval", model, "--checkpoint", weights, "--json"])?["metrics"].clone(),
            )
        };
        assert_eq!(judged(&back)?, judged(&best)?, "{model}");
    }
    // The keys and values of two layers, and weights in a file of their own.
    let written = said(dir, &["convert", "char-gpt", "state.onnx", "--state", "--external-data", "--json"])?;
    let count = |key: &str| written[key].as_array().map_or(0, Vec::len);
    assert_eq!((count("inputs"), count("outputs"), count("files")), (5, 5, 2), "{written}");
    assert_eq!(said(dir, &["diff", "state.onnx", "char-gpt/best.safetensors", "--json"])?["equal"], true);
    // Eight bits a weight, but for the table of characters, to which the head is tied.
    said(dir, &["convert", "char-gpt", "small.onnx", "--quantize", "int8", "--json"])?;
    let told = said(dir, &["inspect", "small.onnx", "--json"])?;
    let tensors = || told["tensors"].as_array().into_iter().flatten();
    let of = |name: &str| tensors().find(|t| t["name"] == name).map(|t| t["dtype"].clone());
    assert_eq!(of("blocks.0.linear1.weight_int8"), Some("U8".into()), "{told}");
    assert_eq!((of("token_embedding.weight"), of("blocks.0.linear1.weight")), (Some("F32".into()), None));
    // Cut short it is damaged, and without the file of its weights it says which is missing.
    let whole = std::fs::read(dir.join("char-gpt.onnx"))?;
    std::fs::write(dir.join("cut.onnx"), &whole[..whole.len() / 2])?;
    std::fs::remove_file(dir.join("state.onnx.data"))?;
    for (file, expected) in [("cut.onnx", "not a valid ONNX file"), ("state.onnx", "state.onnx.data: No such file")] {
        let output = zoo(dir, &["inspect", file]);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && error.contains(expected) && error.lines().count() == 1, "{file}: {error}");
    }
    Ok(())
}

#[test]
fn what_cannot_be_a_graph_is_refused_in_one_line_and_nothing_is_written() -> Outcome {
    let dir = tempfile::tempdir()?;
    let dir = dir.path();
    train(dir, "char-gpt", "tiny", &[])?;
    train(dir, "deepsif", "tiny", &[])?;
    train(dir, "stock-lstm", "default", &["--set", "data.simulated_days=200"])?;
    said(dir, &["convert", "char-gpt", "plain.npz", "--no-metadata", "--json"])?;
    std::fs::write(dir.join("there.onnx"), "mine")?;
    std::fs::write(dir.join("there.onnx.data"), "mine, too")?;
    for (args, expected) in [
        (&["deepsif", "x.onnx", "--state"][..], "--state: deepsif has none"),
        (&["char-gpt", "x.onnx", "--dtype", "f16"], "--dtype: a graph is written of a model's weights as they are"),
        (&["char-gpt", "x.onnx", "--quantize", "q8_0"], "--quantize: a graph is written"),
        (&["char-gpt", "x.onnx", "--map", "drop norm"], "--map: a graph is written"),
        (&["char-gpt", "there.onnx"], "there.onnx is already there"),
        (&["plain.npz", "x.onnx"], "does not say which model's weights it has"),
        (&["plain.npz", "x.onnx", "--model", "char-gpt"], "not weights of a model of this library"),
        (&["char-gpt", "x.onnx", "--model", "stock-lstm"], "weights of char-gpt, expected stock-lstm"),
        (&["missing", "x.onnx"], "No such file"),
        (&["char-gpt", "x.safetensors", "--state"], "--state and --external-data are for a graph"),
        (&["char-gpt", "no/folder/x.onnx"], "there is no folder no/folder"),
        (&["there.onnx.data", "there.onnx", "--external-data"], "no checkpoint of a known format"),
    ] {
        let output = zoo(dir, &[&["convert"], args].concat());
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            !output.status.success() && error.contains(expected) && error.lines().count() == 1,
            "{args:?}: {error}"
        );
        assert!(!dir.join("x.onnx").exists() && !dir.join("x.safetensors").exists(), "{args:?}");
    }
    assert_eq!(std::fs::read_to_string(dir.join("there.onnx"))?, "mine");
    // The weights of one graph are not written over by those of another of its name.
    said(dir, &["convert", "char-gpt", "a.onnx", "--external-data", "--json"])?;
    std::fs::rename(dir.join("a.onnx"), dir.join("b.onnx"))?;
    let output = zoo(dir, &["convert", "b.onnx", "a.onnx", "--external-data", "--force"]);
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("a.onnx.data: it would be written over what it is read from")
    );
    let planned = said(dir, &["convert", "char-gpt", "x.onnx", "--dry-run", "--json"])?;
    assert!(planned["nodes"].as_u64() > Some(0) && !dir.join("x.onnx").exists(), "{planned}");
    assert_eq!((&planned["dry_run"], &planned["bytes"]), (&json!(true), &Value::Null));
    Ok(())
}
