//! `zoo convert`, `inspect`, `diff`, `verify` and `average` as a user meets them.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

type Outcome = Result<(), Box<dyn std::error::Error>>;

fn zoo(dir: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_zoo")).current_dir(dir).args(args).output().expect("zoo starts")
}

fn json(output: &Output) -> Result<Value, Box<dyn std::error::Error>> {
    Ok(serde_json::from_slice(&output.stdout)
        .map_err(|e| format!("{e}: {}", String::from_utf8_lossy(&output.stderr)))?)
}

fn failure(output: &Output, code: i32) -> String {
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(
        (output.status.code(), text.lines().filter(|l| !l.starts_with("zoo: note")).count()),
        (Some(code), 1),
        "{text}"
    );
    text
}

fn file(path: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path).to_string_lossy().into_owned()
}

fn fixture(name: &str) -> String {
    file(&format!("tests/fixtures/{name}"))
}

fn torch_fixture(name: &str) -> String {
    file(&format!("models/shared/checkpoint/tests/fixtures/{name}"))
}

/// The text of fixtures/foreign_gpt.py.
fn text(dir: &Path) -> std::io::Result<PathBuf> {
    let characters: Vec<char> = "\n !$&',-.3:;?ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz".chars().collect();
    let mut state = 7u64;
    let mut next = || {
        state = (state * 1_103_515_245 + 12345) % (1 << 31);
        characters[(state / (1 << 16)) as usize % characters.len()]
    };
    let path = dir.join("text.txt");
    std::fs::write(&path, (0..1930).map(|_| next()).collect::<String>())?;
    Ok(path)
}

fn loss(dir: &Path, checkpoint: &str, text: &Path) -> Result<f64, Box<dyn std::error::Error>> {
    let said = zoo(dir, &["eval", "char-gpt", "--checkpoint", checkpoint, "--data", &text.to_string_lossy(), "--json"]);
    json(&said)?["metrics"]["loss"].as_f64().ok_or("a loss".into())
}

#[test]
fn a_nanogpt_checkpoint_converts_in_one_command_and_gives_the_loss_that_pytorch_gives() -> Outcome {
    let dir = tempfile::tempdir()?;
    let (dir, text) = (dir.path(), text(dir.path())?);
    let converted = zoo(dir, &["convert", &fixture("nanogpt.pt"), "gpt.safetensors", "--model", "char-gpt", "--json"]);
    let said = json(&converted)?;
    assert_eq!((said["tensors"].as_u64(), said["largest_difference"].as_f64()), (Some(15), Some(0.)));
    let source = zoo_checkpoint::open(fixture("nanogpt.pt").as_ref())?;
    let best = source.find("best_val_loss").ok_or("a loss")?;
    let expected =
        source.tensor(best, &candle_core::Device::Cpu)?.to_dtype(candle_core::DType::F64)?.to_scalar::<f64>()?;
    let found = loss(dir, "gpt.safetensors", &text)?;
    assert!((found - expected).abs() < 5e-5, "{found} {expected}");
    // There and back, into formats of every kind: the same model. What it said of itself comes along.
    assert!(
        zoo(dir, &["convert", "gpt.safetensors", "back.pt", "--model", "char-gpt", "--to", "nanogpt"]).status.success()
    );
    assert!(zoo(dir, &["convert", "back.pt", "again.npz", "--model", "char-gpt"]).status.success());
    assert!(zoo(dir, &["diff", "again.npz", "gpt.safetensors"]).status.success());
    assert!((loss(dir, "again.npz", &text)? - found).abs() < 1e-12);
    // Quantized, it runs as well; the error of each tensor is said.
    let quantized = json(&zoo(dir, &["convert", "gpt.safetensors", "gpt.gguf", "--quantize", "q8_0", "--json"]))?;
    let changed = quantized["changed"].as_array().ok_or("changes")?;
    assert!(
        !changed.is_empty() && changed.iter().all(|c| c["relative_error"].as_f64().is_some_and(|e| e > 0. && e < 0.01)),
        "{quantized}"
    );
    assert!((loss(dir, "gpt.gguf", &text)? - found).abs() < 0.01);
    let written = zoo(dir, &["generate", "char-gpt", "--checkpoint", "gpt.gguf", "--tokens", "5", "--json"]);
    assert!(written.status.success());
    // Half precision is read as well.
    assert!(zoo(dir, &["convert", "gpt.safetensors", "half.safetensors", "--dtype", "bf16"]).status.success());
    assert!((loss(dir, "half.safetensors", &text)? - found).abs() < 0.01);
    Ok(())
}

#[test]
fn a_gpt_that_says_little_of_itself_converts_with_what_the_user_says() -> Outcome {
    let dir = tempfile::tempdir()?;
    let (dir, text) = (dir.path(), text(dir.path())?);
    let shown = text.to_string_lossy();
    let nanogpt = fixture("nanogpt.pt");
    assert!(zoo(dir, &["convert", &nanogpt, "whole.safetensors", "--model", "char-gpt"]).status.success());
    let heads = zoo_checkpoint::open(&dir.join("whole.safetensors"))?.metadata["config"].to_string();
    let heads = heads.split("heads").nth(1).and_then(|rest| rest.chars().find(char::is_ascii_digit)).ok_or("heads")?;
    let heads = format!("model.heads={heads}");
    // A bare state dict, under a name of its own.
    let bare =
        ["convert", &nanogpt, "bare.pt", "--no-metadata", "--map", r"drop? best_val_loss|iter_num|optimizer\..*"];
    let bare = [&bare[..], &["--map", r"rename (?:(?:model|_orig_mod|module)\.)*(.*) -> lit.gpt.$1"]].concat();
    assert!(zoo(dir, &bare).status.success());
    let import = |file: &str, more: &[&str]| {
        zoo(dir, &[&["convert", file, "out.safetensors", "--model", "char-gpt", "--force"][..], more].concat())
    };
    let silent = failure(&import("bare.pt", &["--data", &shown]), 2);
    assert!(silent.contains("--set model.heads=N"), "{silent}");
    let said = import("bare.pt", &["--data", &shown, "--set", &heads]);
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    assert!(zoo(dir, &["diff", "out.safetensors", "whole.safetensors"]).status.success());
    assert!((loss(dir, "out.safetensors", &text)? - loss(dir, "whole.safetensors", &text)?).abs() < 1e-12);
    // Characters by nanoGPT's own list, a pickle.
    let characters =
        zoo_checkpoint::open(&dir.join("whole.safetensors"))?.metadata["fitted"].as_str().ok_or("")?.to_string();
    let characters: String = serde_json::from_str(&characters).unwrap_or(characters);
    let mut meta = "(dp0\nVitos\n(dp1\n".to_string();
    for (i, c) in characters.chars().enumerate() {
        let shown = if c == '\n' { "\\u000a".to_string() } else { c.to_string() };
        meta.push_str(&format!("I{i}\nV{shown}\ns"));
    }
    std::fs::write(dir.join("meta.pkl"), format!("{meta}s."))?;
    let by_list = import("bare.pt", &["--data", "meta.pkl", "--set", &heads]);
    assert!(by_list.status.success(), "{}", String::from_utf8_lossy(&by_list.stderr));
    assert!((loss(dir, "out.safetensors", &text)? - loss(dir, "whole.safetensors", &text)?).abs() < 1e-12);
    // What the model has no place for is dropped by the name that the message has.
    let extra =
        ["convert", "bare.pt", "extra.pt", "--map", "tie lit.gpt.transformer.gate -> lit.gpt.transformer.wte.weight"];
    assert!(zoo(dir, &extra).status.success());
    let unexpected = failure(&import("extra.pt", &["--data", &shown, "--set", &heads]), 1);
    assert!(unexpected.contains("unexpected transformer.gate"), "{unexpected}");
    let dropped = import("extra.pt", &["--data", &shown, "--set", &heads, "--map", r"drop transformer\.gate"]);
    assert!(dropped.status.success(), "{}", String::from_utf8_lossy(&dropped.stderr));
    Ok(())
}

#[test]
fn a_persons_own_lstm_becomes_weights_that_every_verb_takes() -> Outcome {
    let dir = tempfile::tempdir()?;
    let dir = dir.path();
    let mut prices = "Date,Close\n".to_string();
    for (i, day) in (1..=12).flat_map(|m| (1..=28).map(move |d| format!("2001-{m:02}-{d:02}"))).enumerate() {
        prices.push_str(&format!("{day},{:.2}\n", 50. + (i as f64 / 9.).sin() + 0.01 * i as f64));
    }
    std::fs::write(dir.join("prices.csv"), prices)?;
    let own = ["convert", &file("weights/stock-lstm.safetensors"), "own.pt", "--no-metadata"];
    let renamed = ["--map", r"rename lstm\.(.*) -> rnn.$1", "--map", r"rename linear\.(.*) -> head.$1"];
    assert!(zoo(dir, &[&own[..], &renamed].concat()).status.success());
    let import = ["convert", "own.pt", "out.safetensors", "--model", "stock-lstm", "--set", "model.window=30"];
    let names = ["--map", r"rename rnn\.(.*) -> lstm.$1", "--map", r"rename head\.(.*) -> linear.$1"];
    let silent = failure(&zoo(dir, &[&import[..], &names].concat()), 2);
    assert!(silent.contains("name the file that it was trained on"), "{silent}");
    let said = zoo(dir, &[&import[..], &names, &["--data", "prices.csv"]].concat());
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    assert!(zoo(dir, &["verify", "out.safetensors", "--model", "stock-lstm"]).status.success());
    let judged =
        json(&zoo(dir, &["eval", "stock-lstm", "--checkpoint", "out.safetensors", "--data", "prices.csv", "--json"]))?;
    assert!(judged["metrics"]["rmse"].as_f64().is_some_and(|rmse| rmse > 0. && rmse < 5.), "{judged}");
    let forecast = zoo(dir, &["predict", "stock-lstm", "--checkpoint", "out.safetensors", "--input", "prices.csv"]);
    assert!(forecast.status.success(), "{}", String::from_utf8_lossy(&forecast.stderr));
    let same = zoo_checkpoint::open(&dir.join("out.safetensors"))?;
    let config: Value = serde_json::from_str(same.metadata["config"].as_str().ok_or("a configuration")?)?;
    assert_eq!((config["model"]["window"].as_u64(), config["model"]["hidden"].as_u64()), (Some(30), Some(50)));
    assert_eq!(zoo_checkpoint::content_hash(&same)?, {
        zoo_checkpoint::content_hash(&zoo_checkpoint::open(file("weights/stock-lstm.safetensors").as_ref())?)?
    });
    Ok(())
}

#[test]
fn a_hugging_face_gpt2_converts_with_its_transposed_matrices_and_its_gelu() -> Outcome {
    let dir = tempfile::tempdir()?;
    let (dir, text) = (dir.path(), text(dir.path())?);
    let shown = text.to_string_lossy();
    let from = fixture("huggingface");
    let unnamed = failure(&zoo(dir, &["convert", &from, "gpt.safetensors", "--model", "char-gpt"]), 2);
    assert!(unnamed.contains("name the text that it was trained on by --data"), "{unnamed}");
    assert!(zoo(dir, &["convert", &from, "gpt.safetensors", "--model", "char-gpt", "--data", &shown]).status.success());
    let config: Value = serde_json::from_str(&std::fs::read_to_string(fixture("huggingface/config.json"))?)?;
    let expected = config["loss_of_the_test"].as_f64().ok_or("a loss")?;
    let found = loss(dir, "gpt.safetensors", &text)?;
    assert!((found - expected).abs() < 5e-5, "{found} {expected}");
    std::fs::create_dir(dir.join("hf"))?;
    assert!(
        zoo(dir, &["convert", "gpt.safetensors", "hf/model.safetensors", "--model", "char-gpt", "--to", "huggingface"])
            .status
            .success()
    );
    let back: Value = serde_json::from_str(&std::fs::read_to_string(dir.join("hf/config.json"))?)?;
    for key in ["n_layer", "n_head", "n_embd", "n_positions", "vocab_size", "activation_function"] {
        assert_eq!(back[key], config[key], "{key}");
    }
    // The same tensors under the prefix that the whole model has, and the tied head.
    let plain = "rename transformer\\.(.*) -> $1";
    let head = ["--map", "drop lm_head\\.weight"];
    assert!(
        zoo(dir, &[&["convert", "hf/model.safetensors", "plain.safetensors", "--map", plain][..], &head].concat())
            .status
            .success()
    );
    assert!(zoo(dir, &["diff", "plain.safetensors", &fixture("huggingface/model.safetensors")]).status.success());
    let twice = failure(
        &zoo(dir, &["convert", "gpt.safetensors", "hf/b.safetensors", "--model", "char-gpt", "--to", "huggingface"]),
        2,
    );
    assert!(twice.contains("config.json is already there"), "{twice}");
    Ok(())
}

#[test]
fn the_content_hash_is_the_same_at_every_stop() -> Outcome {
    let dir = tempfile::tempdir()?;
    let dir = dir.path();
    let mut from = torch_fixture("nested.pt");
    let mut hashes = vec![];
    for to in ["a.safetensors", "b.pt", "c.npz", "d.safetensors"] {
        assert!(zoo(dir, &["convert", &from, to]).status.success(), "{to}");
        hashes.push(json(&zoo(dir, &["inspect", to, "--hash", "--json"]))?["content_sha256"].clone());
        from = to.into();
    }
    assert!(hashes.iter().all(|h| h.is_string() && *h == hashes[0]), "{hashes:?}");
    // In shards, too.
    let sharded =
        json(&zoo(dir, &["convert", "a.safetensors", "model.safetensors", "--shard-size", "500B", "--json"]))?;
    assert!(sharded["files"].as_array().is_some_and(|f| f.len() > 2), "{sharded}");
    let index = "model.safetensors.index.json";
    assert_eq!(json(&zoo(dir, &["inspect", index, "--hash", "--json"]))?["content_sha256"], hashes[0]);
    assert!(zoo(dir, &["convert", index, "whole.pt"]).status.success());
    assert!(zoo(dir, &["diff", "whole.pt", "a.safetensors"]).status.success());
    Ok(())
}

#[test]
fn rules_change_names_and_layouts_and_a_dry_run_writes_nothing() -> Outcome {
    let dir = tempfile::tempdir()?;
    let dir = dir.path();
    let from = fixture("huggingface/model.safetensors");
    std::fs::write(
        dir.join("rules"),
        "# three from one\nsplit h\\.(\\d+)\\.attn\\.c_attn\\.(weight|bias) 0 -> q.$1.$2, k.$1.$2, v.$1.$2\n",
    )?;
    let map = ["--map", "transpose .*c_attn\\.weight", "--map", "rules", "--map", "cast wte\\.weight f16"];
    let planned = json(&zoo(dir, &[&["convert", &from, "out.pt", "--dry-run", "--json"][..], &map].concat()))?;
    assert!(!dir.join("out.pt").exists());
    let of = |name: &str| {
        planned["plan"].as_array().and_then(|p| p.iter().find(|t| t["name"] == name)).cloned().ok_or(name.to_string())
    };
    assert_eq!(
        (of("k.1.weight")?["shape"].to_string(), of("v.0.bias")?["shape"].to_string()),
        ("[16,16]".into(), "[16]".into())
    );
    assert_eq!(of("wte.weight")?["dtype"], "F16");
    assert!(zoo(dir, &[&["convert", &from, "out.pt"][..], &map].concat()).status.success());
    // Back again.
    let back = [
        "concat q\\.(\\d+)\\.(weight|bias), k.$1.$2, v.$1.$2 0 -> h.$1.attn.c_attn.$2",
        "transpose .*c_attn\\.weight",
        "cast wte\\.weight f32",
    ];
    let back: Vec<&str> = back.iter().flat_map(|rule| ["--map", rule]).collect();
    assert!(zoo(dir, &[&["convert", "out.pt", "back.safetensors"][..], &back].concat()).status.success());
    let differ = zoo(dir, &["diff", "back.safetensors", &from, "--json"]);
    assert_eq!(differ.status.code(), Some(1));
    let differ = json(&differ)?;
    assert_eq!(
        (differ["different"].as_array().map(Vec::len), differ["different"][0]["name"].as_str()),
        (Some(1), Some("wte.weight"))
    );
    for (rule, code, says) in [
        ("rename nothing -> x", 1, "fits no tensor"),
        ("rename .*\\.bias -> same", 1, "two tensors named same"),
        ("transpose wte", 1, "fits no tensor"),
        ("split wte\\.weight 0 -> a, b", 1, "no 2 equal parts"),
        ("cast .* f99", 2, "no element type is called f99"),
        ("tie wte.weight -> wpe.weight", 1, "different values"),
    ] {
        let error = failure(&zoo(dir, &["convert", &from, "x.pt", "--map", rule]), code);
        assert!(error.contains(says) && !dir.join("x.pt").exists(), "{rule}: {error}");
    }
    Ok(())
}

#[test]
fn nothing_is_lost_or_changed_unasked() -> Outcome {
    let dir = tempfile::tempdir()?;
    let dir = dir.path();
    // Elements that a format lacks, values that a type does not hold, a format that cannot be told.
    let odd = torch_fixture("odd.pt");
    for (args, code, says) in [
        (vec!["odd.npz"], 1, "NumPy has no elements of F8_E4M3"),
        (vec!["odd.gguf"], 1, "GGUF has no elements of BOOL"),
        (vec!["odd.npy"], 1, "holds one array"),
        (vec!["odd.what"], 2, "what format?"),
        (vec!["odd.safetensors", "--dtype", "i64"], 2, "floating-point"),
        (vec!["odd.safetensors", "--quantize", "q8_0"], 2, "only GGUF"),
        (vec!["odd.pt", "--shard-size", "5GB"], 2, "only safetensors"),
    ] {
        let error = failure(&zoo(dir, &[&["convert", &odd][..], &args].concat()), code);
        assert!(error.contains(says), "{args:?}: {error}");
    }
    assert_eq!(std::fs::read_dir(dir)?.count(), 0);
    let error = failure(&zoo(dir, &["convert", &torch_fixture("whole-model.pt"), "x.safetensors"]), 1);
    assert!(error.contains("nothing was executed"), "{error}");
    // What is read is not written over.
    std::fs::copy(torch_fixture("nested.pt"), dir.join("same.pt"))?;
    assert!(failure(&zoo(dir, &["convert", "same.pt", "same.pt"]), 2).contains("written over what it is read from"));
    assert_eq!(std::fs::read(dir.join("same.pt"))?, std::fs::read(torch_fixture("nested.pt"))?);
    Ok(())
}

#[test]
fn weights_are_verified_and_averaged() -> Outcome {
    let dir = tempfile::tempdir()?;
    let dir = dir.path();
    let weights = file("weights/stock-lstm.safetensors");
    assert!(zoo(dir, &["verify", &weights, "--model", "stock-lstm"]).status.success());
    let wrong = failure(&zoo(dir, &["verify", &weights, "--model", "char-gpt"]), 1);
    assert!(wrong.contains("1 problem"), "{wrong}");
    assert!(
        zoo(dir, &["convert", &weights, "renamed.safetensors", "--map", "rename linear\\.weight -> linear.wieght"])
            .status
            .success()
    );
    let renamed = json(&zoo(dir, &["verify", "renamed.safetensors", "--model", "stock-lstm", "--json"]))?;
    assert!(
        renamed["ok"] == false
            && renamed["problems"][0].as_str().is_some_and(|p| p.contains("did you mean linear.wieght?")),
        "{renamed}"
    );
    let odd = json(&zoo(dir, &["verify", &torch_fixture("odd.pt"), "--json"]))?;
    assert!(odd["problems"][0].as_str().is_some_and(|p| p.contains("special has 1 NaN and 2 infinite")), "{odd}");
    // A changed byte of a storage does not fit its checksum.
    let mut bytes = std::fs::read(torch_fixture("nested.pt"))?;
    let at = bytes.windows(4).position(|w| w == 1f32.to_le_bytes()).ok_or("a value")?;
    bytes[at] ^= 1;
    std::fs::write(dir.join("flipped.pt"), bytes)?;
    let flipped = json(&zoo(dir, &["verify", "flipped.pt", "--json"]))?;
    let problems: Vec<&str> =
        flipped["problems"].as_array().ok_or("problems")?.iter().filter_map(Value::as_str).collect();
    assert!(problems.iter().any(|p| p.contains("checksum")), "{flipped}");
    assert!(failure(&zoo(dir, &["convert", "flipped.pt", "x.safetensors"]), 1).contains("damaged"));
    let days = |i: u32| {
        format!("{}-{:02}-{:02},{:.2}\n", 2000 + i / 336, 1 + i / 28 % 12, 1 + i % 28, 50. + f64::from(i * i % 97) / 9.)
    };
    std::fs::write(dir.join("prices.csv"), format!("Date,Close\n{}", (0..200).map(days).collect::<String>()))?;
    // The mean of two runs lies between them, and a model takes it.
    for (seed, out) in [("1", "one"), ("2", "two")] {
        let args =
            ["train", "stock-lstm", "--steps", "2", "--set", "model.hidden=8", "--data", "prices.csv", "--seed", seed];
        assert!(zoo(dir, &[&args[..], &["--out", out]].concat()).status.success());
    }
    assert!(zoo(dir, &["average", "one", "two", "--output", "mean.safetensors"]).status.success());
    // Scaled by other data, or of another size, they have no mean that means anything.
    for (out, other) in [("scaled", ["--set", "data.simulated_days=200"]), ("narrow", ["--set", "model.window=30"])] {
        let data = if out == "narrow" { vec!["--data", "prices.csv"] } else { vec![] };
        let args =
            [&["train", "stock-lstm", "--steps", "2", "--set", "model.hidden=8", "--out", out][..], &other, &data]
                .concat();
        assert!(zoo(dir, &args).status.success());
        let refused = failure(&zoo(dir, &["average", "one", out, "--output", "none.safetensors"]), 2);
        assert!(refused.contains("is not that of one/best.safetensors"), "{refused}");
    }
    let read = |path: &str| zoo_checkpoint::read(&dir.join(path), &candle_core::Device::Cpu).map(|c| c.tensors);
    let (one, two, mean) = (read("one/best.safetensors")?, read("two/best.safetensors")?, read("mean.safetensors")?);
    for (name, m) in &mean {
        let expected = ((&one[name] + &two[name])? / 2.)?;
        let error = (m - expected)?.abs()?.max_all()?.to_scalar::<f32>()?;
        assert!(error < 1e-7, "{name}: {error}");
    }
    assert!(zoo(dir, &["verify", "mean.safetensors", "--model", "stock-lstm"]).status.success());
    let error = failure(&zoo(dir, &["average", "one", &weights, "--output", "x.safetensors"]), 2);
    assert!(error.contains("is not that of one"), "{error}");
    Ok(())
}

#[cfg(unix)]
#[test]
fn a_conversion_that_is_interrupted_leaves_nothing() -> Outcome {
    let dir = tempfile::tempdir()?;
    let dir = dir.path();
    // A gigabyte of zeros that takes no room.
    let header = r#"{"a":{"dtype":"F32","shape":[268435456],"data_offsets":[0,1073741824]}}"#;
    let mut start = (header.len() as u64).to_le_bytes().to_vec();
    start.extend(header.bytes());
    std::fs::write(dir.join("big.safetensors"), &start)?;
    let file = std::fs::OpenOptions::new().write(true).open(dir.join("big.safetensors"))?;
    file.set_len(start.len() as u64 + (1 << 30))?;
    let mut child = Command::new(env!("CARGO_BIN_EXE_zoo"))
        .current_dir(dir)
        .args(["convert", "big.safetensors", "big.pt"])
        .stderr(std::process::Stdio::piped())
        .spawn()?;
    // Once it writes.
    while std::fs::read_dir(dir)?.count() == 1 {
        assert!(child.try_wait()?.is_none());
    }
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status()?.success());
    let output = child.wait_with_output()?;
    assert_eq!(output.status.code(), Some(130), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(std::fs::read_dir(dir)?.count(), 1);
    Ok(())
}
