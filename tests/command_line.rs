//! The `zoo` binary as a user meets it.

use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use candle_core::{Device, Tensor};
use serde_json::{Value, json as value};
use zoo_checkpoint::matlab::{self, Variable};
use zoo_kernels::check::random;
use zoo_layers::{Mode, Params};

type Outcome = Result<(), Box<dyn std::error::Error>>;

fn zoo(dir: &Path, args: &[&str]) -> Output {
    zoo_with(dir, args, &[])
}

fn zoo_with(dir: &Path, args: &[&str], env: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_zoo"));
    command.current_dir(dir).args(args).envs(env.iter().copied()).output().expect("zoo starts")
}

fn json(output: &Output) -> Result<Value, Box<dyn std::error::Error>> {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// A run that takes a second.
const SMALL: [&str; 6] = ["--set", "data.simulated_days=200", "--set", "model.hidden=8", "--set", "model.window=10"];

fn train(dir: &Path, more: &[&str], env: &[(&str, &str)]) -> Output {
    zoo_with(dir, &[&["train", "stock-lstm", "--json"], &SMALL[..], more].concat(), env)
}

#[test]
fn a_model_is_trained_and_evaluated() -> Outcome {
    let dir = tempfile::tempdir()?;
    let trained = json(&train(dir.path(), &["--epochs", "3"], &[]))?;
    let run = dir.path().join("runs/stock-lstm-default");
    assert_eq!(trained["model"], "stock-lstm");
    assert_eq!(trained["gradients"]["with_gradient"], 10);
    for file in [
        "config.toml",
        "metrics.jsonl",
        "curves.svg",
        "curves.png",
        "best.safetensors",
        "last.safetensors",
        "checkpoints",
    ] {
        assert!(run.join(file).exists(), "{file}");
    }
    let lines = std::fs::read_to_string(run.join("metrics.jsonl"))?;
    assert!(lines.lines().all(|l| serde_json::from_str::<Value>(l).is_ok_and(|v| v["step"].is_u64())), "{lines}");
    let judged = json(&zoo(dir.path(), &["eval", "stock-lstm", "--checkpoint", "runs/stock-lstm-default", "--json"]))?;
    for baseline in ["last_value", "drift", "moving_average"] {
        for metric in ["rmse", "mae", "mape", "directional_accuracy"] {
            assert!(judged["baselines"][baseline][metric].is_f64() && judged["metrics"][metric].is_f64(), "{judged}");
        }
    }
    assert!(judged["remarks"].to_string().contains("simulated"), "{judged}");
    // The run's own configuration repeats it, to the byte.
    let again =
        zoo(dir.path(), &["train", "stock-lstm", "--config", "runs/stock-lstm-default/config.toml", "--out", "again"]);
    assert!(again.status.success() && again.stdout.is_empty());
    assert_eq!(std::fs::read(run.join("last.safetensors"))?, std::fs::read(dir.path().join("again/last.safetensors"))?);
    // A second run takes the next name.
    json(&train(dir.path(), &["--steps", "1"], &[]))?;
    assert!(dir.path().join("runs/stock-lstm-default-2").exists());
    Ok(())
}

#[test]
fn the_same_seed_gives_the_same_bytes_at_any_number_of_threads() -> Outcome {
    let dir = tempfile::tempdir()?;
    let mut weights = vec![];
    for (i, threads) in ["1", "2", "1", "2"].iter().enumerate() {
        let out = format!("run{i}");
        json(&train(dir.path(), &["--steps", "40", "--out", &out], &[("RAYON_NUM_THREADS", threads)]))?;
        weights.push(std::fs::read(dir.path().join(out).join("last.safetensors"))?);
    }
    assert!(weights.windows(2).all(|w| w[0] == w[1]));
    json(&train(dir.path(), &["--steps", "40", "--out", "other", "--seed", "7"], &[]))?;
    assert_ne!(weights[0], std::fs::read(dir.path().join("other/last.safetensors"))?);
    Ok(())
}

#[test]
fn products_in_bf16_train_and_judge_alike_at_any_number_of_threads() -> Outcome {
    let dir = tempfile::tempdir()?;
    let train = |out: &str, dtype: &str, threads: &str| {
        let dtype = format!("train.dtype={dtype}");
        let args = ["train", "char-gpt", "--preset", "tiny", "--steps", "30", "--set", &dtype, "--out", out, "--json"];
        json(&zoo_with(dir.path(), &args, &[("RAYON_NUM_THREADS", threads)])).map(|_| ())
    };
    let weights = |run: &str| std::fs::read(dir.path().join(run).join("last.safetensors"));
    train("one", "bf16", "1")?;
    for threads in ["2", "3"] {
        train(threads, "bf16", threads)?;
        assert_eq!(weights("one")?, weights(threads)?, "{threads} threads");
    }
    train("wide", "f32", "2")?;
    assert_ne!(weights("one")?, weights("wide")?);
    let loss = |run: &str, dtype: &str| -> Result<f64, Box<dyn std::error::Error>> {
        let found = json(&zoo(dir.path(), &["eval", "char-gpt", "--checkpoint", run, "--dtype", dtype, "--json"]))?;
        assert_eq!(found["dtype"], dtype);
        found["metrics"]["loss"].as_f64().ok_or_else(|| format!("no loss: {found}").into())
    };
    let (narrow, same, wide) = (loss("one", "f32")?, loss("one", "bf16")?, loss("wide", "f32")?);
    assert!((narrow - same).abs() < 2e-3 && narrow != same, "{narrow} {same}");
    assert!((narrow - wide).abs() < 0.02, "{narrow} {wide}");
    let wrong = zoo(dir.path(), &["eval", "char-gpt", "--checkpoint", "one", "--dtype", "half"]);
    let said = String::from_utf8(wrong.stderr)?;
    assert!(wrong.status.code() == Some(2) && said.contains("expected f32, tf32, bf16 or f16"), "{said}");
    Ok(())
}

/// Prices as a vendor might write them: newest first, dates of its own kind, a ticker in the names.
fn vendors_file(rows: usize) -> String {
    let mut text = String::from("Date,AAPL.Close,Vol.\n");
    for i in (0..rows).rev() {
        let close = 100. + 10. * (i as f64 * 0.3).sin() + 5. * (i as f64 * 0.7).cos();
        text.push_str(&format!(
            "{:02}-{}-{},{close:.2},1.5M\n",
            1 + i % 28,
            ["Jan", "Feb", "Mar"][i / 28 % 3],
            2000 + i / 84
        ));
    }
    text
}

#[test]
fn a_price_file_is_forecast_with_intervals() -> Outcome {
    let dir = tempfile::tempdir()?;
    std::fs::write(dir.path().join("prices.csv"), vendors_file(300))?;
    json(&train(dir.path(), &["--data", "prices.csv", "--epochs", "3", "--out", "run"], &[]))?;
    let args = ["predict", "stock-lstm", "--checkpoint", "run", "--input", "prices.csv"];
    let more = ["--horizon", "3", "--output", "f.csv", "--plot", "f.svg", "--json"];
    let said = json(&zoo(dir.path(), &[&args[..], &more].concat()))?;
    assert_eq!(said["rows"], 300 - 11 + 3);
    assert_eq!(said["forecasts"].as_array().map(Vec::len), Some(3));
    assert!(said["interval"]["coverage"][2].as_f64().is_some_and(|c| c > 0.5), "{said}");
    let table = std::fs::read_to_string(dir.path().join("f.csv"))?;
    let rows: Vec<Vec<&str>> = table.lines().map(|l| l.split(',').collect()).collect();
    assert_eq!(rows[0], ["date", "step", "forecast", "lower", "upper", "actual"]);
    // Days that made the intervals have none.
    assert_eq!((rows[1][3], rows[1][4]), ("", ""));
    for row in &rows[rows.len() - 40..] {
        let number = |k: usize| row[k].parse::<f64>();
        assert!(number(3)? < number(2)? && number(2)? < number(4)?, "{row:?}");
    }
    let last = &rows[rows.len() - 1];
    assert_eq!((last[0], last[1], last[5]), ("2003-02-23", "3", ""));
    assert!(std::fs::read_to_string(dir.path().join("f.svg"))?.contains("forecast"));
    // Without --output the table is what stdout holds.
    let plain = zoo(dir.path(), &args);
    assert_eq!(String::from_utf8_lossy(&plain.stdout).lines().count(), 1 + 300 - 11 + 1);
    for (more, code, expected) in [
        (vec!["--horizon", "0"], 2, "--horizon 0"),
        (vec!["--interval", "100"], 2, "--interval 100"),
        (vec!["--interval", "0.9"], 2, "from 1 to less than 100"),
        (vec!["--output", "prices.csv"], 2, "prices.csv is an input"),
        (vec!["--output", "run/best.safetensors"], 2, "best.safetensors is an input"),
        (vec!["--plot", "f.pdf"], 2, "ends in .svg or .png"),
        (vec!["--column", "Open"], 1, "no column Open"),
        (vec!["--json"], 2, "--output"),
        (vec!["--output", "none/f.csv"], 1, "none/f.csv"),
    ] {
        let output = zoo(dir.path(), &[&args[..], &more].concat());
        let message = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(code) && message.contains(expected), "{more:?}: {message}");
    }
    std::fs::write(dir.path().join("short.csv"), vendors_file(10))?;
    let short = zoo(dir.path(), &["predict", "stock-lstm", "--checkpoint", "run", "--input", "short.csv"]);
    assert!(String::from_utf8_lossy(&short.stderr).contains("short.csv: 10 days, a forecast needs at least 11"));
    // A model that sees more than closes goes one day ahead and no further.
    json(&zoo(dir.path(), &["train", "stock-lstm", "--preset", "ohlcv", "--steps", "1", "--out", "ohlcv", "--json"]))?;
    let refused =
        zoo(dir.path(), &["predict", "stock-lstm", "--checkpoint", "ohlcv", "--input", "prices.csv", "--horizon", "2"]);
    assert_eq!(refused.status.code(), Some(2), "{}", String::from_utf8_lossy(&refused.stderr));
    Ok(())
}

#[test]
fn a_price_file_is_read_as_its_flags_say() -> Outcome {
    let dir = tempfile::tempdir()?;
    let days = zoo_market::simulate(60, 1);
    let prices = |header: &str, row: &dyn Fn(usize, f64) -> String| -> Vec<u8> {
        let rows: String = days.bars.iter().enumerate().map(|(i, b)| row(i, b.close) + "\n").collect();
        format!("{header}\n{rows}").into_bytes()
    };
    let day = |i: usize, form: &str| days.dates[i].strftime(form).to_string();
    let iso = |i: usize| day(i, "%Y-%m-%d");
    let serial = |i: usize| days.dates[i].since(zoo_market::Date::constant(1899, 12, 30)).map_or(0, |s| s.get_days());
    let latin: Vec<u8> =
        String::from_utf8(prices("Datum;Kurs;Er\u{f6}ffnung", &|i, c| format!("{};{c:.2};1", iso(i))))?
            .chars()
            .map(|c| c as u8)
            .collect();
    let bars = |i: usize, c: f64| format!("{},{c},{},{},{c},7,{}", iso(i), c + 1., c - 1., c / 2.);
    let files = [
        ("long.csv", prices("date,tic,id,close", &|i, c| format!("{0},A,9,{c}\n{0},B,9,{1}", iso(i), 3. * c))),
        ("wide.csv", prices("Date,A,B", &|i, c| format!("{},{c},{}", iso(i), 3. * c))),
        ("excel.csv", prices("Date,Close", &|i, c| format!("{},{c}", serial(i)))),
        (
            "comma.csv",
            prices("Date,Close", &|i, c| format!("{},\"{}\"", iso(i), format!("{:.3}", c + 100.).replace('.', ","))),
        ),
        ("latin.csv", latin),
        ("hours.csv", prices("Date,Close", &|i, c| format!("{0} 09:00,1\n{0} 15:00,{c}", iso(i)))),
        ("odd.csv", prices("when,a,b,c,d,e,f", &bars)),
    ];
    for (name, bytes) in files {
        std::fs::write(dir.path().join(name), bytes)?;
    }
    json(&train(dir.path(), &["--epochs", "1", "--out", "run"], &[]))?;
    json(&zoo(
        dir.path(),
        &[
            "train",
            "stock-lstm",
            "--preset",
            "ohlcv",
            "--set",
            "model.window=10",
            "--steps",
            "1",
            "--out",
            "bars",
            "--json",
        ],
    ))?;
    let last = days.bars[59].close;
    let columns = [
        "--date-column when --column d --open-column a --high-column b --low-column c --volume-column e",
        " --adjusted-column f",
    ];
    for (run, file, flags, close) in [
        ("run", "long.csv", "--symbol B", 3. * last),
        ("run", "long.csv", "--symbol A --symbol-column tic", last),
        ("run", "wide.csv", "--symbol B", 3. * last),
        ("run", "wide.csv", "--column 2", last),
        ("run", "excel.csv", "--date-format excel", last),
        ("run", "comma.csv", "--decimal ,", last + 100.),
        ("run", "latin.csv", "--encoding windows-1252", last),
        ("run", "hours.csv", "--resample daily", last),
        ("bars", "odd.csv", columns[0], last),
        ("bars", "odd.csv", &columns.concat(), last / 2.),
    ] {
        let args = ["predict", "stock-lstm", "--checkpoint", run, "--input", file];
        let flags: Vec<&str> = flags.split(' ').collect();
        let said = json(&zoo(dir.path(), &[&args[..], &flags, &["--output", "f.csv", "--force", "--json"]].concat()))?;
        let found = said["last_close"].as_f64().unwrap_or_default();
        assert!((found / close - 1.).abs() < 1e-4 && said["last_day"] == iso(59), "{file} {flags:?}: {said}");
        // What is asked without the flags names the way out.
        let asked = zoo(dir.path(), &args);
        let message = String::from_utf8_lossy(&asked.stderr).into_owned();
        assert!(!asked.status.success() && message.contains("(--"), "{file}: {message}");
    }
    let hint = zoo(dir.path(), &["train", "stock-lstm", "--set", "data.symbl=A"]);
    assert!(String::from_utf8_lossy(&hint.stderr).contains("did you mean --symbol?"));
    std::fs::write(dir.path().join("latin.txt"), b"Z\xfcrich liegt am See.\n".repeat(200))?;
    let text = ["train", "char-gpt", "--preset", "tiny", "--data", "latin.txt", "--fast-dev-run"];
    assert!(String::from_utf8_lossy(&zoo(dir.path(), &text).stderr).contains("(--encoding names its encoding)"));
    assert!(zoo(dir.path(), &[&text[..], &["--encoding", "latin1"]].concat()).status.success());
    Ok(())
}

#[test]
fn a_run_is_watched_as_text_whatever_became_of_it() -> Outcome {
    let dir = tempfile::tempdir()?;
    let watch = |args: &[&str]| zoo(dir.path(), &[&["watch"], args].concat());
    assert_eq!(watch(&[]).status.code(), Some(1));
    json(&train(dir.path(), &["--epochs", "6", "--out", "runs/whole"], &[]))?;
    let screen = |output: Output| -> Result<Vec<String>, Box<dyn std::error::Error>> {
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout)?;
        assert!(!text.contains('\u{1b}'), "no colours, no movement: {text:?}");
        Ok(text.lines().map(String::from).collect())
    };
    let whole = screen(watch(&[]))?;
    assert!(whole.len() == 24 && whole.iter().all(|line| line.chars().count() <= 80), "{whole:#?}");
    assert!(whole[0].contains("whole (stock-lstm): finished, 100 %"), "{}", whole[0]);
    let has = |screen: &[String], part: &str| screen.iter().any(|line| line.contains(part));
    for part in ["training loss", "samples a second", "gradient zeros", "lstm.weight_ih_l0", "learning rate"] {
        assert!(has(&whole, part), "{part}: {whole:#?}");
    }
    // Beside it one that fails in its middle, and one that was killed: its record has no end.
    let failing = ["--steps", "40", "--out", "runs/failing", "--set", "train.optimizer=sgd", "--set", "train.lr=1e38"];
    assert_eq!(train(dir.path(), &failing, &[]).status.code(), Some(1));
    json(&train(dir.path(), &["--steps", "10", "--out", "runs/killed"], &[]))?;
    let record = dir.path().join("runs/killed/accepted.json");
    let text = std::fs::read_to_string(&record)?;
    std::fs::write(
        &record,
        text.replace("\"finished\"", "null").replace("\"total_steps\": 10", "\"total_steps\": 99"),
    )?;
    let hour = std::time::SystemTime::now() - Duration::from_secs(3600);
    let metrics = std::fs::File::options().append(true).open(dir.path().join("runs/killed/metrics.jsonl"))?;
    metrics.set_modified(hour)?;
    let mut all = vec!["runs/whole", "runs/killed", "runs/failing", "--size", "120x40"];
    let several = screen(watch(&all))?;
    assert_eq!(several.len(), 40);
    for part in ["finished", "killed?", "failed"] {
        assert!(has(&several, part), "{part}: {several:#?}");
    }
    all.push("--json");
    let said = json(&watch(&all))?;
    assert_eq!((&said["runs"][0]["state"], &said["runs"][0]["end"]), (&value!("ended"), &value!("finished")));
    assert_eq!((&said["runs"][1]["state"], &said["runs"][1]["total_steps"]), (&value!("silent"), &value!(99)));
    for (args, code) in
        [(&["none"][..], 1), (&["runs/whole", "--size", "9x9"], 2), (&["runs/whole", "--every", "0"], 2)]
    {
        assert_eq!(watch(args).status.code(), Some(code));
    }
    Ok(())
}

/// What a report's script is given.
fn report_data(page: &str) -> Result<Value, Box<dyn std::error::Error>> {
    let data = page.split_once("type=\"application/json\">").and_then(|(_, rest)| rest.split_once("</script>"));
    Ok(serde_json::from_str(data.ok_or("no data")?.0)?)
}

#[test]
fn a_run_is_judged_and_reported_and_its_metrics_exported() -> Outcome {
    let dir = tempfile::tempdir()?;
    for (out, lr) in [("one", "train.lr=0.001"), ("two<b>", "train.lr=0.01")] {
        json(&train(dir.path(), &["--epochs", "6", "--out", out, "--set", lr, "--csv", "--tensorboard"], &[]))?;
    }
    let judged = json(&zoo(dir.path(), &["doctor", "one", "--json"]))?;
    assert!(judged["verdict"].is_string() && judged["numbers"]["evaluations"] == 7, "{judged}");
    assert!(judged["numbers"]["baseline"][0] == "best constant" && judged["numbers"]["samples"] == 132, "{judged}");
    let text = std::fs::read_to_string(dir.path().join("one/metrics.csv"))?;
    assert!(text.starts_with("step,loss,lr,grad_norm,valid loss,") && text.lines().count() > 6, "{text}");
    let board = std::fs::read_dir(dir.path().join("one"))?
        .filter(|e| e.as_ref().is_ok_and(|e| e.file_name().to_string_lossy().contains("tfevents")));
    assert_eq!(board.count(), 1);
    let tracked = zoo_with(
        dir.path(),
        &[&["train", "stock-lstm", "--steps", "20", "--out", "tracked", "--log", "mlflow"], &SMALL[..]].concat(),
        &[("MLFLOW_TRACKING_URI", "file:store")],
    );
    assert!(tracked.status.success(), "{}", String::from_utf8_lossy(&tracked.stderr));
    let more = ["train", "stock-lstm", "--resume", "tracked", "--steps", "30", "--log", "mlflow"];
    assert!(zoo_with(dir.path(), &more, &[("MLFLOW_TRACKING_URI", "file:store")]).status.success());
    let folders = |path: &Path| -> std::io::Result<Vec<_>> {
        let mut found = vec![];
        for entry in std::fs::read_dir(path)? {
            found.extend(Some(entry?.path()).filter(|p| p.is_dir()));
        }
        Ok(found)
    };
    let experiments = folders(&dir.path().join("store"))?;
    let experiment = experiments.iter().find(|p| !p.ends_with("0")).ok_or("an experiment")?;
    let runs = folders(experiment)?;
    let [run] = runs.as_slice() else { return Err(format!("one run: {runs:?}").into()) };
    assert!(std::fs::read_to_string(run.join("meta.yaml"))?.contains("\nstatus: 3\n"));
    assert_eq!(std::fs::read_to_string(run.join("params/train.steps"))?, "30");
    let steps: Vec<u64> = std::fs::read_to_string(run.join("metrics/loss/train"))?
        .lines()
        .map(|l| l.rsplit(' ').next().unwrap_or_default().parse())
        .collect::<Result<_, _>>()?;
    assert!(steps.is_sorted_by(|a, b| a < b) && steps.last() == Some(&30), "{steps:?}");
    let elsewhere = zoo_with(dir.path(), &more, &[("MLFLOW_TRACKING_URI", "http://localhost:5000")]);
    assert_eq!(elsewhere.status.code(), Some(2));
    assert!(zoo(dir.path(), &["report", "one"]).status.success());
    let page = std::fs::read_to_string(dir.path().join("one/report.html"))?;
    let data = report_data(&page)?;
    let count = |key: &str| data[key].as_array().map_or(0, Vec::len);
    assert_eq!((count("charts"), count("zeros")), (8, 1));
    assert_eq!(data["summary"]["header"][3], "best validation loss");
    let output = zoo(dir.path(), &["report", "one", "two<b>", "--output", "both.html"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let page = std::fs::read_to_string(dir.path().join("both.html"))?;
    // What a name holds is data, and no markup; nothing is fetched from elsewhere.
    assert!(!page.contains("two<b>") && page.contains("two\\u003cb>"));
    let data = report_data(&page)?;
    assert_eq!((&data["runs"][1]["name"], &data["settings"]["header"][1]), (&value!("two<b>"), &value!("train.lr")));
    assert_eq!(page.matches("://").count(), page.matches("http://www.w3.org/2000/svg").count());
    let more = ["report", "one", "--title", "a < b", "--output", "one.html", "--plot", "one.png"];
    assert!(zoo(dir.path(), &more).status.success());
    let page = std::fs::read_to_string(dir.path().join("one.html"))?;
    assert_eq!(report_data(&page)?["title"], "a < b");
    assert!(std::fs::read(dir.path().join("one.png"))?.starts_with(b"\x89PNG"));
    for (args, code, expected) in [
        (["doctor", "--json"], 2, "required"),
        (["doctor", "none"], 2, "none is neither a run directory nor a model"),
        (["doctor", "."], 1, ". is not a run directory"),
        (["report", "none"], 1, "none is not a run directory"),
    ] {
        let output = zoo(dir.path(), &args);
        assert_eq!(output.status.code(), Some(code));
        assert!(String::from_utf8_lossy(&output.stderr).contains(expected));
    }
    Ok(())
}

#[test]
fn the_doctor_says_what_the_machine_can_do_and_why_a_device_does_not_work() -> Outcome {
    let dir = tempfile::tempdir()?;
    let found = json(&zoo_with(dir.path(), &["doctor", "--system", "--json"], &[("RAYON_NUM_THREADS", "1")]))?;
    assert_eq!((&found["cpu"]["threads"], &found["fused"]), (&1.into(), &true.into()));
    assert!(found["memory"]["total_bytes"].as_u64() > Some(1 << 28), "{found}");
    let device = |name: &str| found["devices"].as_array()?.iter().find(|d| d["name"] == name);
    assert_eq!(device("cpu").map(|d| &d["usable"]), Some(&true.into()), "{found}");
    if !cfg!(feature = "metal") {
        let why = device("metal").and_then(|d| d["why_not"].as_str()).unwrap_or_default();
        assert_eq!(why, "this zoo was built without it; build with --features metal");
    }
    let text = zoo_with(dir.path(), &["doctor", "--system"], &[("ZOO_FUSED", "0"), ("ZOO_SIMD", "scalar")]);
    let text = String::from_utf8(text.stdout)?;
    for line in
        ["--device cpu    works\n", "SIMD            scalar, of scalar", "ZOO_FUSED=0 runs every op by its reference"]
    {
        assert!(text.contains(line), "{text}");
    }
    let both = zoo(dir.path(), &["doctor", "run", "--system"]);
    assert_eq!(both.status.code(), Some(2));
    Ok(())
}

#[test]
fn a_trading_transformer_is_trained_watched_judged_and_applied() -> Outcome {
    let dir = tempfile::tempdir()?;
    let tiny = ["trading-transformer", "--preset", "tiny"];
    let params = json(&zoo(dir.path(), &["params", "trading-transformer", "--preset", "running", "--json"]))?;
    assert_eq!((&params["total"], &params["trainable"]), (&224_154.into(), &223_895.into()));
    let args = [&["train"], &tiny[..], &["--set", "train.health_every=10", "--out", "run", "--json"]].concat();
    let trained = json(&zoo(dir.path(), &args))?;
    assert_eq!(trained["gradients"], serde_json::json!({ "tensors": 23, "with_gradient": 23 }));
    let judged = json(&zoo(dir.path(), &["doctor", "run", "--json"]))?;
    let health = &judged["health"];
    assert_eq!((&health["verdict"], &health["checks"]), (&"healthy".into(), &5.into()), "{health}");
    assert_eq!(health["zeros"]["steps"], serde_json::json!([1, 10, 20, 30, 40]));
    assert_eq!(health["parameters"].as_array().map(Vec::len), Some(23));
    let text = zoo(dir.path(), &["doctor", "run"]);
    let text = String::from_utf8_lossy(&text.stdout).into_owned();
    for part in
        ["gradient health: healthy (5 checks", "key bias", "position features", "zeros (|g| < 1e-8) by parameter"]
    {
        assert!(text.contains(part), "{part} in {text}");
    }
    // A model by one pass: as it begins, with a bad setting, from a checkpoint.
    let args =
        [&["doctor"], &tiny[..], &["--set", "model.input_norm=none", "--set", "train.clip_norm=1", "--json"]].concat();
    let of_model = json(&zoo(dir.path(), &args))?;
    let found: Vec<&str> =
        of_model["health"]["findings"].as_array().into_iter().flatten().filter_map(|f| f["kind"].as_str()).collect();
    assert!(["scale", "saturated", "setting"].iter().all(|k| found.contains(k)), "{found:?}");
    assert_eq!(
        json(&zoo(dir.path(), &[&["doctor"], &tiny[..], &["--checkpoint", "run", "--json"]].concat()))?["health"]["verdict"],
        "healthy"
    );
    let evaluated = json(&zoo(dir.path(), &["eval", "trading-transformer", "--checkpoint", "run", "--json"]))?;
    assert!(
        evaluated["metrics"]["brier"].is_number() && evaluated["baselines"]["logistic_regression"]["loss"].is_number()
    );
    let mut prices = String::from("Date,Open,High,Low,Close,Volume\n");
    for (date, bar) in zoo_market::simulate(230, 1).dates.iter().zip(zoo_market::simulate(230, 1).bars) {
        prices.push_str(&format!("{date},{},{},{},{},{}\n", bar.open, bar.high, bar.low, bar.close, bar.volume));
    }
    std::fs::write(dir.path().join("prices.csv"), &prices)?;
    let predict = ["predict", "trading-transformer", "--checkpoint", "run", "--input", "prices.csv", "--plot", "p.svg"];
    let output = zoo(dir.path(), &predict);
    let table = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && table.starts_with("date,down,flat,up,feature_0,feature_1,"), "{table}");
    assert_eq!(table.lines().count(), 1 + 230 - 203);
    let closes: String = prices
        .lines()
        .map(|l| l.split(',').take(2).collect::<Vec<_>>().join(",").replace("Open", "Close") + "\n")
        .collect();
    std::fs::write(dir.path().join("closes.csv"), closes)?;
    for (args, expected) in [
        (&["--input", "closes.csv"][..], "closes.csv: no column Open, which the features of a bar need"),
        (
            &["--input", "prices.csv", "--horizon", "3"],
            "trading-transformer has no flag --horizon: it is one of stock-lstm",
        ),
    ] {
        let output = zoo(dir.path(), &[&["predict", "trading-transformer", "--checkpoint", "run"], args].concat());
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && stderr.contains(expected), "{stderr}");
    }
    Ok(())
}

#[test]
fn a_policy_is_trained_judged_over_seeds_and_applied() -> Outcome {
    let dir = tempfile::tempdir()?;
    let mut prices = String::from("Date,Open,High,Low,Close,Volume\n");
    let days = zoo_market::simulate(700, 1);
    for (date, bar) in days.dates.iter().zip(&days.bars) {
        prices.push_str(&format!("{date},{},{},{},{},{}\n", bar.open, bar.high, bar.low, bar.close, bar.volume));
    }
    std::fs::write(dir.path().join("prices.csv"), &prices)?;
    // Where trading costs nothing, staying out is no better than anything else.
    let free = ["--set", "data.cost=0", "--set", "data.slippage=0"];
    let tiny = [&["trading-transformer", "--preset", "ppo-tiny", "--data", "prices.csv"], &free[..]].concat();
    let params = json(&zoo(dir.path(), &["params", "trading-transformer", "--preset", "ppo", "--json"]))?;
    // The extractor, two maps of 64 x 64, three exposures and a value.
    assert_eq!(params["trainable"], 223_895 - 195 + 2 * (64 * 64 + 64) + 65 * 4);
    for seed in ["1", "2", "3"] {
        let trained = json(&zoo(
            dir.path(),
            &[&["train"], &tiny[..], &["--seed", seed, "--out", seed, "--set", "train.log_every=1", "--json"]].concat(),
        ))?;
        assert_eq!(trained["gradients"], serde_json::json!({ "tensors": 29, "with_gradient": 29 }));
        assert!(trained["metrics"]["sharpe"].is_number());
    }
    let metrics = std::fs::read_to_string(dir.path().join("1/metrics.jsonl"))?;
    let lines: Vec<Value> = metrics.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    let first = &lines[0];
    // While a round begins the policy is the one that acted: eight steps make a round.
    let moved =
        |step: u64| lines.iter().find(|l| l["step"] == step && l["kl"].is_number()).and_then(|l| l["kl"].as_f64());
    assert!([1, 9, 17].iter().all(|s| moved(*s).is_some_and(|kl| kl.abs() < 1e-6)), "{lines:?}");
    assert!(moved(8).is_some_and(|kl| kl > 1e-6));
    for name in ["win_rate", "active_features", "turnover", "explained_variance", "steps"] {
        assert!(first["experience"][name].is_number(), "{first}");
    }
    let eval = ["eval", "trading-transformer", "--checkpoint"];
    let one = json(&zoo(dir.path(), &[&eval[..], &["1", "--output", "kept", "--json"]].concat()))?;
    let names = ["sharpe", "return", "max_drawdown", "win_rate", "trades", "turnover", "exposure"];
    for of in [&one["metrics"], &one["baselines"]["buy_and_hold"], &one["baselines"]["random_same_turnover"]] {
        assert!(names.iter().all(|name| of[name].is_number()), "{one}");
    }
    assert!(names.iter().all(|name| one["baselines"]["always_flat"][name] == 0.));
    let remarks = one["remarks"].to_string();
    assert!(
        ["buying and holding", "staying out of the market", "timing is"].iter().all(|w| remarks.contains(w)),
        "{remarks}"
    );
    let kept = |name: &str| std::fs::read_to_string(dir.path().join("kept").join(name));
    assert!(kept("equity.csv")?.starts_with("date,policy,buy_and_hold\n") && kept("picture.svg")?.contains("equity"));
    let trades = kept("trades.csv")?;
    assert_eq!(Some(trades.lines().count() as f64 - 1.), one["metrics"]["trades"].as_f64());
    let all = json(&zoo(dir.path(), &[&eval[..], &["1", "2", "3", "--json"]].concat()))?;
    let of = |value: &Value| value["metrics"]["sharpe"].as_f64().unwrap_or(f64::NAN);
    let each: Vec<f64> = all["checkpoints"].as_array().into_iter().flatten().map(of).collect();
    assert_eq!((each.len(), each[0]), (3, of(&one)));
    assert!((of(&all) - each.iter().sum::<f64>() / 3.).abs() < 1e-9 && all["deviations"]["sharpe"].is_number());
    assert!(all["remarks"][0].as_str().is_some_and(|r| r.contains("of 3 above buy and hold")), "{all}");
    let predict = ["predict", "trading-transformer", "--checkpoint", "1", "--input", "prices.csv"];
    let output = zoo(dir.path(), &predict);
    let table = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(table.starts_with("date,close,chance_-1,chance_0,chance_1,position,equity\n"), "{table}");
    assert_eq!(table.lines().count(), 1 + 700 - 203);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("decided the weights") && !said.contains("simulated"), "{said}");
    // What is chosen on a day does not depend on later days.
    let earlier: String = prices.lines().take(501).flat_map(|l| [l, "\n"]).collect();
    std::fs::write(dir.path().join("earlier.csv"), earlier)?;
    let output = zoo(dir.path(), &["predict", "trading-transformer", "--checkpoint", "1", "--input", "earlier.csv"]);
    assert!(table.starts_with(&*String::from_utf8_lossy(&output.stdout)) && output.status.success());
    for (args, code, expected) in [
        (&["train", "trading-transformer", "--preset", "ppo-tiny", "--overfit-batch"][..], 2, "by acting"),
        (&["train", "trading-transformer", "--preset", "ppo-tiny", "--set", "data.sizes=[1.0, 0.5]"], 2, "data.sizes"),
        (&["train", "trading-transformer", "--preset", "ppo-tiny", "--set", "data.stop=0"], 2, "data.stop"),
        (
            &["train", "trading-transformer", "--preset", "ppo-tiny", "--set", "ppo.clip=0"],
            2,
            "ppo.clip must be positive",
        ),
        (
            &["train", "trading-transformer", "--preset", "ppo-tiny", "--set", "train.ppo.clip=0.1"],
            2,
            "unknown key train.ppo.clip: it is ppo.clip now",
        ),
        (
            &["train", "trading-transformer", "--preset", "ppo-tiny", "--set", "data.walk_forward=9"],
            1,
            "data.walk_forward",
        ),
        (&["train", "trading-transformer", "--preset", "tiny", "--data", "."], 2, "is a folder"),
        (&["eval", "stock-lstm", "--checkpoint", "1"], 1, "stock-lstm"),
        (&["train", "stock-lstm", "--resume", "1"], 2, "1 is a run of trading-transformer"),
        (&["eval", "trading-transformer", "--checkpoint", "1", "1"], 2, "is named twice"),
        (&["predict", "trading-transformer", "--checkpoint", "1", "--input", "."], 2, "a folder, expected a file"),
        (
            &["train", "trading-transformer", "--preset", "ppo-tiny", "--set", "data.simulated_days=10"],
            1,
            "10 days, a symbol needs",
        ),
        (
            &["eval", "trading-transformer", "--checkpoint", "1", "--set", "data.sizes=[0.5, 1.0]"],
            2,
            "data.sizes make 5 exposures",
        ),
        (
            &["predict", "trading-transformer", "--checkpoint", "1", "--input", "prices.csv", "--horizon", "3"],
            2,
            "trading-transformer has no flag --horizon: it is one of stock-lstm",
        ),
    ] {
        let output = zoo(dir.path(), args);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(code) && said.contains(expected), "{args:?}: {said}");
    }
    Ok(())
}

#[test]
fn a_documents_experiment_is_run_again() -> Outcome {
    let dir = tempfile::tempdir()?;
    let args = ["reproduce", "gradient-death", "--steps", "25", "--json", "--plot", "death.svg"];
    let found = json(&zoo(dir.path(), &args))?;
    for part in ["before", "after"] {
        for key in ["gradient_zeros", "saturation", "gradient_norm"] {
            assert!(found[part][key].is_number(), "{found}");
        }
        assert!(["max", "min", "std"].iter().all(|k| found[part]["pooling"][k].is_number()));
    }
    assert_eq!(found["arms"].as_array().map(Vec::len), Some(9));
    assert!(std::fs::read_to_string(dir.path().join("death.svg"))?.contains("temporal_projection"));
    let planted = json(&zoo(dir.path(), &["reproduce", "planted-signal", "--steps", "10", "--json"]))?;
    for part in ["planted", "random_walk"] {
        assert_eq!(planted[part].as_array().map(Vec::len), Some(5), "{planted}");
    }
    // The oracle knows that there is nothing, and how much there is.
    assert_eq!(planted["random_walk"][0]["oracle_sharpe"], 0.);
    assert!(planted["planted"][0]["oracle_sharpe"].as_f64().is_some_and(|s| s > 4.), "{planted}");
    assert!(planted["planted"][0]["monitored"]["active_features"].is_number());
    let wrong = zoo(dir.path(), &["reproduce", "cold-fusion"]);
    assert_eq!(wrong.status.code(), Some(2));
    Ok(())
}

#[test]
fn settings_are_tuned_and_a_search_goes_on_where_it_stopped() -> Outcome {
    let dir = tempfile::tempdir()?;
    let tune = |more: &[&str]| {
        let args = [&["tune", "stock-lstm", "--epochs", "4", "--json"], &SMALL[..], more].concat();
        zoo(dir.path(), &args)
    };
    let grid = ["--set", "train.lr=0.01,0.001", "--set", "model.layers=1,2", "--to-the-end", "--out", "grid"];
    let found = json(&tune(&grid))?;
    let losses: Vec<f64> =
        found["trials"].as_array().into_iter().flatten().filter_map(|t| t["loss"].as_f64()).collect();
    assert!(losses.len() == 4 && losses.is_sorted(), "{found}");
    assert!(dir.path().join("grid/004/best.safetensors").exists());
    // The last result lost: only that trial is resumed, and ends as it did.
    let results = dir.path().join("grid/results.jsonl");
    let text = std::fs::read_to_string(&results)?;
    let kept: Vec<&str> = text.lines().take(3).collect();
    std::fs::write(&results, format!("{}\n{{\"run\":\"00", kept.join("\n")))?;
    let again = tune(&grid);
    let said = String::from_utf8_lossy(&again.stderr).into_owned();
    assert_eq!(said.lines().filter(|l| l.starts_with("00")).count(), 1, "{said}");
    let again = json(&again)?;
    assert_eq!(again["trials"][0]["metrics"], found["trials"][0]["metrics"]);
    let other = tune(&["--set", "train.lr=0.1,0.001", "--out", "grid"]);
    assert!(String::from_utf8_lossy(&other.stderr).contains("grid holds another search"));
    let in_order =
        ["--search", "in-order", "--set", "train.lr=0.01,0.001", "--set", "model.layers=1,2", "--out", "order"];
    // The default of two layers was among the first.
    assert_eq!(json(&tune(&in_order))?["trials"].as_array().map(Vec::len), Some(3));
    let random = ["--search", "random", "--trials", "3", "--set", "train.lr=1e-4..1e-2", "--out"];
    let draws: Vec<Value> = ["a", "b"]
        .into_iter()
        .map(|out| Ok(json(&tune(&[&random[..], &[out]].concat()))?["trials"][0]["settings"].clone()))
        .collect::<Result<_, Box<dyn std::error::Error>>>()?;
    assert_eq!(draws[0], draws[1]);
    let rates = json(&tune(&["--lr-find", "--plot", "rates.png"]))?;
    assert!(rates["test"]["suggestion"].as_f64().is_some_and(|r| r > 0.) && dir.path().join("rates.png").exists());
    // Of rates that are alike only chance tells; one that learns nothing is worse by more than chance.
    let repeats = ["--repeats", "3", "--set", "train.lr=0.01,0.0101,1e-6", "--out", "repeats", "--json"];
    let writer = ["tune", "char-gpt", "--preset", "tiny", "--steps", "60", "--set", "train.min_lr=0"];
    let found = json(&zoo(dir.path(), &[&writer[..], &repeats].concat()))?;
    let groups = found["groups"].as_array().ok_or("no groups")?;
    assert_eq!(groups.iter().map(|g| &g["runs"]).collect::<Vec<_>>(), [3, 3, 3]);
    assert_eq!(groups.iter().map(|g| g["tied_with_best"] == true).collect::<Vec<_>>(), [true, true, false], "{found}");
    assert_eq!(groups[2]["settings"], serde_json::json!(["train.lr=1e-6"]));
    assert!(found["noise"].as_f64().is_some_and(|n| n > 0.), "{found}");
    let seeds: std::collections::BTreeSet<String> = found["trials"]
        .as_array()
        .into_iter()
        .flatten()
        .flat_map(|t| t["settings"].as_array().into_iter().flatten())
        .filter_map(|s| s.as_str().filter(|s| s.starts_with("train.seed=")).map(String::from))
        .collect();
    assert_eq!(seeds.len(), 3, "{found}");
    for (more, expected) in [
        (vec![], "nothing to tune"),
        (vec!["--repeats", "3", "--set", "train.seed=1,2"], "--repeats chooses the seeds"),
        (vec!["--set", "model.layers=1,x"], "model.layers takes a whole number"),
        (vec!["--set", "train.lr=0.1..0.2"], "a range needs --search random"),
        (vec!["--search", "random", "--set", "train.lr=2..1"], "the first smaller"),
        (vec!["--lr-find", "--plot", "rates.pdf"], "ends in .svg or .png"),
    ] {
        let output = tune(&more);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(2) && said.contains(expected), "{more:?}: {said}");
    }
    Ok(())
}

#[test]
fn the_weights_in_the_repository_are_those_of_their_card() -> Outcome {
    let weights = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../weights");
    for (model, name, total) in [
        ("stock-lstm", "stock-lstm", 31_051),
        ("deepsif", "deepsif-graph", 145_543),
        ("deepsif", "deepsif-small", 546_986),
        ("char-gpt", "char-gpt-cpu", 804_096),
        ("trading-transformer", "trading-transformer", 224_154),
    ] {
        let file = format!("{name}.safetensors");
        let counted = json(&zoo(&weights, &["params", model, "--checkpoint", &file, "--json"]))?;
        assert_eq!(counted["total"], total);
    }
    let mut files = 0;
    for entry in std::fs::read_dir(&weights)? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "safetensors") {
            let card = std::fs::read_to_string(path.with_extension("md"))?;
            let hash = zoo_checkpoint::content_hash(&zoo_checkpoint::open(&path)?)?;
            assert!(card.contains(&format!("| content hash | `{hash}`")), "{}: {hash}", path.display());
            files += 1;
        }
    }
    assert_eq!(files, 6);
    Ok(())
}

#[test]
fn fast_dev_run_writes_nothing_and_overfit_batch_learns_it_by_heart() -> Outcome {
    let dir = tempfile::tempdir()?;
    let quick = json(&train(dir.path(), &["--fast-dev-run"], &[]))?;
    assert_eq!((&quick["steps"], &quick["out"]), (&3.into(), &Value::Null));
    assert_eq!(std::fs::read_dir(dir.path())?.count(), 0);
    let more = [
        "--overfit-batch",
        "--steps",
        "600",
        "--set",
        "train.lr=0.01",
        "--set",
        "model.dropout=0",
        "--set",
        "train.batch_size=8",
    ];
    let learned = json(&train(dir.path(), &more, &[]))?;
    assert!(learned["loss"].as_f64().is_some_and(|l| l < 0.01), "{learned}");
    Ok(())
}

#[test]
fn list_params_and_completions_answer() -> Outcome {
    let dir = tempfile::tempdir()?;
    let listed = json(&zoo(dir.path(), &["list", "--json"]))?;
    assert_eq!(listed["models"][0]["presets"][0]["parameters"], 31_051);
    let counted = json(&zoo(dir.path(), &["params", "stock-lstm", "--json"]))?;
    assert_eq!((&counted["total"], &counted["trainable"]), (&31_051.into(), &31_051.into()));
    assert_eq!(counted["tensors"].as_array().map(Vec::len), Some(10));
    assert_eq!(counted["tensors"][0]["name"], "lstm.weight_ih_l0");
    json(&train(dir.path(), &["--steps", "1", "--out", "run"], &[]))?;
    let of_file = json(&zoo(dir.path(), &["params", "stock-lstm", "--checkpoint", "run", "--json"]))?;
    assert_eq!(of_file["tensors"][1]["shape"], serde_json::json!([32, 8]));
    for shell in ["bash", "zsh", "fish"] {
        assert!(String::from_utf8_lossy(&zoo(dir.path(), &["completions", shell]).stdout).contains("zoo"));
    }
    Ok(())
}

#[test]
fn wrong_calls_and_files_are_refused_in_one_line_and_write_nothing() -> Outcome {
    let dir = tempfile::tempdir()?;
    let file = |name: &str, text: &[u8]| std::fs::write(dir.path().join(name), text);
    file("bad.csv", b"Date,Close\n2020-01-02,1\n2020-01-03,zero\n")?;
    file("short.csv", b"Date,Close\n2020-01-02,1\n2020-01-03,2\n")?;
    file("bad.toml", b"[train]\nlearning_rate = 1\n")?;
    file("cut.safetensors", &[1, 2, 3])?;
    let before = std::fs::read_dir(dir.path())?.count();
    for (args, code, expected) in [
        (vec!["train"], 2, "required"),
        (vec!["trian", "stock-lstm"], 2, "did you mean train?"),
        (vec!["train", "stock-lstm", "--epoch", "3"], 2, "did you mean --epochs?"),
        (vec!["train", "stock-lstn"], 2, "did you mean stock-lstm?"),
        (vec!["train", "stock-lstm", "--preset", "huge"], 2, "it has default, ohlcv"),
        (vec!["train", "stock-lstm", "--set", "train.learning_rate=1"], 2, "unknown key train.learning_rate"),
        (vec!["train", "stock-lstm", "--set", "train.lr=fast"], 2, "train.lr takes a number"),
        (vec!["train", "stock-lstm", "--set", "data.target=price"], 2, "unknown variant"),
        (vec!["train", "stock-lstm", "--config", "bad.toml"], 2, "bad.toml: unknown key train.learning_rate"),
        (vec!["train", "stock-lstm", "--config", "none.toml"], 1, "none.toml"),
        (vec!["train", "stock-lstm", "--data", "none.csv"], 1, "none.csv"),
        (vec!["train", "stock-lstm", "--data", "bad.csv"], 1, "bad.csv: line 3: Close is \"zero\""),
        (vec!["train", "stock-lstm", "--data", "short.csv"], 1, "short.csv: 2 days, a window of 60 needs at least 68"),
        (vec!["train", "stock-lstm", "--data", "."], 1, "."),
        (
            vec!["train", "stock-lstm", "--data", "short.csv", "--preset", "ohlcv", "--set", "model.window=1"],
            1,
            "short.csv",
        ),
        (vec!["train", "stock-lstm", "--set", "model.hidden=0"], 2, "model.hidden"),
        (vec!["train", "stock-lstm", "--set", "model.hidden=1000000000"], 1, "would have more than"),
        (
            vec!["train", "stock-lstm", "--set", "model.layers=4294967296"],
            1,
            "model.layers is 4294967296, expected at most",
        ),
        (vec!["train", "stock-lstm", "--set", "model.dropout=1.5"], 2, "model.dropout is 1.5"),
        (vec!["train", "stock-lstm", "--resume", "x", "--fast-dev-run"], 2, "cannot be used with"),
        (vec!["train", "stock-lstm", "--device", "gpu"], 2, "expected cpu, cuda"),
        (vec!["train", "stock-lstm", "--resume"], 1, "there is no run of stock-lstm"),
        (vec!["train", "stock-lstm", "--resume", "elsewhere"], 1, "elsewhere is not a run directory"),
        (vec!["train", "stock-lstm", "--resume", "x", "--preset", "ohlcv"], 2, "cannot be used with"),
        (vec!["train", "stock-lstm", "--allow-change", "train.lr"], 2, "--resume"),
        (
            vec!["train", "stock-lstm", "--freeze", "lstn"],
            2,
            "train.freeze = \"lstn\" names no parameter of lstm.weight",
        ),
        (vec!["train", "stock-lstm", "--freeze", "."], 2, "leaves no parameter to train"),
        (vec!["train", "stock-lstm", "--freeze", "("], 2, "train.freeze = \"(\" is not a regular expression"),
        (vec!["train", "stock-lstm", "--init-from", "cut.safetensors"], 1, "cut.safetensors: not a valid"),
        (vec!["train", "stock-lstm", "--on-nonfinite", "ignore"], 2, "unknown variant `ignore`"),
        (vec!["train", "stock-lstm", "--set", "train.epochs=0"], 2, "train.steps or train.epochs"),
        (vec!["train", "stock-lstm", "--steps", "0"], 2, "--steps 0: a run has at least one"),
        (vec!["train", "stock-lstm", "--batch-size", "8"], 2, "did you mean --set train.batch_size=VALUE?"),
        (vec!["train", "stock-lstm", "--num-epochs", "8"], 2, "did you mean --epochs?"),
        (vec!["train", "stock-lstm", "--set", "train.learning_rate=1"], 2, "did you mean train.lr?"),
        (vec!["train", "char-gpt", "--set", "model.n_embd=32"], 2, "did you mean model.width?"),
        (vec!["export", "a", "b"], 2, "did you mean convert?"),
        (vec!["predict", "char-gpt", "--checkpoint", "a", "--input", "b"], 2, "it writes text (zoo generate char-gpt)"),
        (vec!["eval", "stock-lstm", "--checkpoint", "none.safetensors"], 1, "none.safetensors"),
        (
            vec!["eval", "stock-lstm", "--checkpoint", "cut.safetensors"],
            1,
            "cut.safetensors: not a valid safetensors file",
        ),
        (vec!["bench", "stock-lstm", "--seconds", "0"], 2, "--seconds 0"),
    ] {
        let output = zoo(dir.path(), &args);
        let message = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {message}");
        assert!(message.contains(expected), "{args:?}: {message}");
        assert_eq!(message.trim_end().lines().count(), 1, "{args:?}: {message}");
        assert!(output.stdout.is_empty(), "{args:?}");
    }
    let output = zoo_with(dir.path(), &["list"], &[("ZOO_SIMD", "avx1024")]);
    assert_eq!(output.status.code(), Some(2), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(std::fs::read_dir(dir.path())?.count(), before, "something was written");
    Ok(())
}

#[cfg(unix)]
#[test]
fn a_signal_saves_and_resume_ends_in_the_bytes_of_an_uninterrupted_run() -> Outcome {
    let dir = tempfile::tempdir()?;
    let epochs = ["--epochs", "60"];
    json(&train(dir.path(), &[&epochs[..], &["--out", "through"]].concat(), &[]))?;
    let args = [&["train", "stock-lstm"], &SMALL[..], &epochs, &["--out", "stopped"]].concat();
    let mut child = Command::new(env!("CARGO_BIN_EXE_zoo"))
        .current_dir(dir.path())
        .args(&args)
        .stderr(std::process::Stdio::piped())
        .spawn()?;
    let started = Instant::now();
    // The first line of metrics says that training is under way.
    while !dir.path().join("stopped/metrics.jsonl").exists() && started.elapsed() < Duration::from_secs(60) {
        std::thread::sleep(Duration::from_millis(5));
    }
    Command::new("kill").args(["-INT", &child.id().to_string()]).status()?;
    let status = child.wait()?;
    let output = std::io::read_to_string(child.stderr.take().ok_or("no stderr")?)?;
    assert_eq!(status.code(), Some(3), "{output}");
    assert!(output.contains("continue with: zoo train stock-lstm --resume stopped"), "{output}");
    assert!(zoo(dir.path(), &["train", "stock-lstm", "--resume", "stopped"]).status.success());
    for file in ["last.safetensors", "best.safetensors"] {
        let read = |run: &str| std::fs::read(dir.path().join(run).join(file));
        assert_eq!(read("through")?, read("stopped")?, "{file}");
    }
    Ok(())
}

/// A character GPT that was trained for a moment, and what it was trained on.
fn writer(dir: &Path) -> Outcome {
    json(&zoo(dir, &["train", "char-gpt", "--preset", "tiny", "--out", "gpt", "--json"])).map(|_| ())
}

fn written(dir: &Path, more: &[&str]) -> Result<String, Box<dyn std::error::Error>> {
    let output = zoo(dir, &[&["generate", "char-gpt", "--checkpoint", "gpt", "--tokens", "60"], more].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

#[test]
fn text_is_written_the_same_for_the_same_seed_and_past_the_context() -> Outcome {
    let dir = tempfile::tempdir()?;
    writer(dir.path())?;
    let text = written(dir.path(), &["--prompt", "WREN:"])?;
    // The prompt, sixty characters (the context is 16), a newline.
    assert!(text.starts_with("WREN:") && text.ends_with('\n') && text.chars().count() == 66, "{text:?}");
    assert_eq!(text, written(dir.path(), &["--prompt", "WREN:"])?);
    assert_ne!(text, written(dir.path(), &["--prompt", "WREN:", "--seed", "1"])?);
    let several = written(dir.path(), &["--prompt", "WREN:", "--samples", "2"])?;
    assert!(several.starts_with(&text) && several.contains("\n---\nWREN:"), "{several}");
    let document = zoo(
        dir.path(),
        &["generate", "char-gpt", "--checkpoint", "gpt", "--tokens", "60", "--prompt", "WREN:", "--json"],
    );
    assert_eq!(format!("WREN:{}\n", json(&document)?["samples"][0]["text"].as_str().unwrap_or_default()), text);
    // A stop is not part of the text.
    let stop: String = text.chars().skip(20).take(2).collect();
    let stopped = written(dir.path(), &["--prompt", "WREN:", "--stop", &stop])?;
    assert_eq!(stopped.trim_end_matches('\n'), text[..5 + text[5..].find(&stop).unwrap_or(0)].trim_end_matches('\n'));
    Ok(())
}

#[test]
fn bad_calls_of_generate_are_one_line_each() -> Outcome {
    let dir = tempfile::tempdir()?;
    writer(dir.path())?;
    let base = ["generate", "char-gpt", "--checkpoint", "gpt"];
    for (more, code, expected) in [
        (&["--prompt", "né"][..], 1, "'é' (line 1, column 2)"),
        (&["--temperature", "-1"], 2, "--temperature"),
        (&["--top-p", "0"], 2, "--top-p"),
        (&["--stop", ""], 2, "--stop"),
    ] {
        let output = zoo(dir.path(), &[&base[..], more].concat());
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{text}");
        assert!(text.contains(expected) && output.stdout.is_empty() && text.trim().lines().count() == 1, "{text}");
    }
    let stock = concat!(env!("CARGO_MANIFEST_DIR"), "/../../weights/stock-lstm.safetensors");
    for (args, expected) in [
        (&["generate", "char-gpt", "--checkpoint", stock][..], "weights of stock-lstm, expected char-gpt"),
        (&["generate", "stock-lstm", "--checkpoint", stock], "stock-lstm does not write text"),
        (&["predict", "char-gpt", "--checkpoint", "gpt", "--input", "x"], "char-gpt has no predict"),
    ] {
        let output = zoo(dir.path(), args);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && text.contains(expected), "{text}");
    }
    Ok(())
}

/// Serves `right` at /right and five other bytes elsewhere; its address.
fn server(right: Vec<u8>) -> Result<String, Box<dyn std::error::Error>> {
    use std::io::{Read, Write};
    let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut request = [0; 1024];
            let n = stream.read(&mut request).unwrap_or(0);
            let body = if request[..n].starts_with(b"GET /right") { &right[..] } else { b"wrong" };
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
            let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body));
        }
    });
    Ok(format!("http://{address}"))
}

#[test]
fn data_is_fetched_by_name_once_and_checked() -> Outcome {
    let (dir, cache) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let path = zoo_test_skips::data(env!("CARGO_MANIFEST_DIR"), "shakespeare/tiny_shakespeare.txt");
    let right = path.map(std::fs::read).transpose()?;
    let address = server(right.clone().unwrap_or_default())?;
    let home = cache.path().display().to_string();
    let fetch = |url: &str| {
        let env = [("XDG_CACHE_HOME", home.as_str()), ("HOME", home.as_str()), ("ZOO_DATA_URL", url)];
        let args = ["train", "char-gpt", "--preset", "tiny", "--data", "shakespeare", "--fast-dev-run"];
        let output = zoo_with(dir.path(), &args, &env);
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (code, text) = fetch(&format!("{address}/wrong"));
    assert!(code == Some(1) && text.contains("is not the file it should be (1115394 bytes"), "{text}");
    let nowhere = "http://127.0.0.1:1/none";
    let (code, text) = fetch(nowhere);
    assert!(code == Some(1) && text.contains("offline, bring that file along and give its path to --data"), "{text}");
    assert!(std::fs::read_dir(cache.path())?.next().is_none(), "nothing was kept");
    if right.is_none() {
        return Ok(());
    }
    let (code, text) = fetch(&format!("{address}/right"));
    assert!(code == Some(0) && text.contains("fetching") && text.contains("1115394 characters"), "{text}");
    // From then on it is there.
    let (code, text) = fetch(nowhere);
    assert!(code == Some(0) && !text.contains("fetching"), "{text}");
    Ok(())
}

#[test]
fn deepsif_images_what_fits_and_refuses_the_rest_in_one_line() -> Outcome {
    let dir = tempfile::tempdir()?;
    let dir = dir.path();
    json(&zoo(dir, &["train", "deepsif", "--preset", "tiny", "--out", "run", "--json"]))?;
    let judged = json(&zoo(dir, &["eval", "deepsif", "--checkpoint", "run", "--output", "judged", "--json"]))?;
    for method in ["minimum_norm", "sLORETA", "eLORETA"] {
        assert!(judged["baselines"][method]["localization_error_mm"].as_f64().is_some_and(|e| e >= 0.), "{judged}");
    }
    for table in ["by_snr", "by_extent", "another_head"] {
        assert!(dir.join(format!("judged/{table}.csv")).exists(), "{table}");
    }
    let eeg = |steps: usize, channels: usize| {
        let row = |t: usize| (0..channels).map(|c| ((t * (c + 1)) as f64 / 7.).sin().to_string()).collect::<Vec<_>>();
        (0..steps).map(|t| row(t).join(",") + "\n").collect::<String>()
    };
    std::fs::write(dir.join("eeg.csv"), eeg(50, 8))?;
    let base = ["predict", "deepsif", "--checkpoint", "run", "--input"];
    for output in ["sources.npz", "sources.mat"] {
        let more = ["eeg.csv", "--output", output, "--plot", "cortex.svg", "--force", "--json"];
        let said = json(&zoo(dir, &[&base[..], &more].concat()))?;
        assert!(said["regions_found"].as_u64().is_some_and(|n| (1..=20).contains(&n)), "{said}");
    }
    let arrays = zoo_checkpoint::read(&dir.join("sources.npz"), &Device::Cpu)?.tensors;
    assert_eq!(arrays["activity"].dims(), [50, 20]);
    let Variable::Numbers { shape, .. } = &matlab::read(&dir.join("sources.mat"))?["activity"] else {
        return Err("activity is no array".into());
    };
    assert_eq!(shape[..], [50, 20]);
    matlab::write(&dir.join("known.mat"), &[("resection_region".into(), Tensor::new(&[3f32, 4.], &Device::Cpu)?)])?;
    let held = [&base[..], &["eeg.csv", "--truth", "known.mat", "--json", "--output"]].concat();
    let said = json(&zoo(dir, &[&held[..], &["table.csv"]].concat()))?;
    assert!(said["overlap"][0]["method"] == "deepsif" && said["overlap"][0]["recall"].is_f64(), "{said}");
    assert!(said["remarks"].to_string().contains("the 2 regions of known.mat"), "{said}");
    assert_eq!(zoo(dir, &[&held[..], &["known.mat"]].concat()).status.code(), Some(2), "what is known is an input");
    std::fs::write(dir.join("long.csv"), eeg(51, 8))?;
    std::fs::write(dir.join("wide.csv"), eeg(50, 9))?;
    std::fs::write(dir.join("words.csv"), "a,b\n1,d\n")?;
    std::fs::write(dir.join("cut.mat"), &std::fs::read(dir.join("sources.mat"))?[..300])?;
    for (file, said) in [
        ("long.csv", "51 time steps x 8 channels"),
        ("wide.csv", "50 time steps x 9 channels"),
        ("words.csv", "line 2: column b is \"d\", expected a number"),
        ("cut.mat", "ends"),
        ("sources.npz", "call the EEG eeg or data"),
        ("missing.mat", "missing.mat"),
    ] {
        let output = zoo(dir, &[&base[..], &[file]].concat());
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{file}: {text}");
        assert!(text.lines().count() == 1 && text.contains(file) && text.contains(said), "{file}: {text}");
    }
    Ok(())
}

#[test]
fn deepsif_trains_on_samples_of_a_file() -> Outcome {
    let dir = tempfile::tempdir()?;
    let dir = dir.path();
    let (eeg, activity) = (random(1, &[20, 30, 8])?, random(2, &[20, 30, 20])?);
    zoo_checkpoint::write_npz(&dir.join("samples.npz"), &[("eeg".into(), eeg), ("activity".into(), activity)])?;
    let base = ["train", "deepsif", "--preset", "tiny", "--data", "samples.npz", "--json"];
    let few = ["--set", "data.valid=4", "--set", "data.test=4", "--out", "run"];
    let said = json(&zoo(dir, &[&base[..], &few].concat()))?;
    assert_eq!(said["steps"].as_u64(), Some(40), "{said}");
    let judged = zoo(dir, &["eval", "deepsif", "--checkpoint", "run"]);
    assert!(String::from_utf8_lossy(&judged.stdout).contains("12 samples to train, 4 to validate, 4 to judge"));
    let wider = zoo(dir, &["eval", "deepsif", "--checkpoint", "run", "--set", "data.test=9"]);
    let text = String::from_utf8_lossy(&wider.stderr);
    assert!(wider.status.code() == Some(2) && text.contains("reach into the first 12 samples of this file"), "{text}");
    let none = zoo(dir, &[&base[..], &["--out", "other"]].concat());
    let text = String::from_utf8_lossy(&none.stderr);
    assert!(none.status.code() == Some(1) && text.contains("none are left to train"), "{text}");
    Ok(())
}

#[test]
fn a_graph_network_carries_its_head_and_stands_beside_all_methods() -> Outcome {
    let dir = tempfile::tempdir()?;
    let dir = dir.path();
    let graph = ["--preset", "tiny", "--set", "model.kind=graph", "--set", "data.simulation.heads=3"];
    json(&zoo(dir, &[&["train", "deepsif"], &graph[..], &["--out", "run", "--json"]].concat()))?;
    let judged = json(&zoo(dir, &["eval", "deepsif", "--checkpoint", "run", "--output", "judged", "--json"]))?;
    for method in ["minimum_norm", "dSPM", "sLORETA", "eLORETA", "LCMV", "Champagne", "Bayes_patches"] {
        assert!(judged["baselines"][method]["peak_error_mm"].is_f64(), "{method}: {judged}");
    }
    assert!(dir.join("judged/another_simulator.csv").is_file() && dir.join("judged/another_head.csv").is_file());
    let channels = json(&zoo(dir, &["params", "deepsif", "--checkpoint", "run", "--channels", "--json"]))?;
    assert_eq!(
        (&channels["channels"][7]["channel"], &channels["channels"][7]["electrode"]),
        (&"8".into(), &"E8".into())
    );
    // The weights are enough.
    let weights = dir.join("run/best.safetensors");
    let imager = zoo_deepsif::DeepSif::load(&weights, &Device::Cpu)?;
    let eeg: Vec<Vec<f32>> = random(1, &[50, 8])?.to_vec2()?;
    let image = imager.image(&eeg)?;
    assert!(image.activity.len() == 50 * 20 && image.activity.iter().all(|v| v.is_finite()));
    // Without a head in them they are refused in words.
    let (tensors, description) = (zoo_checkpoint::read(&weights, &Device::Cpu)?, "constant_field");
    let empty = tensors.tensors[description].zeros_like()?;
    let mut all: Vec<(String, Tensor)> = tensors.tensors.into_iter().collect();
    all.iter_mut().filter(|(name, _)| name == description).for_each(|(_, t)| *t = empty.clone());
    let metadata = tensors.metadata;
    zoo_checkpoint::write(&dir.join("empty.safetensors"), &all, &metadata)?;
    let refused = zoo_deepsif::DeepSif::load(&dir.join("empty.safetensors"), &Device::Cpu)?.image(&eeg);
    assert!(refused.is_err_and(|e| e.to_string().contains("these weights know no head")));
    Ok(())
}

#[test]
fn deepsif_judges_samples_over_the_head_of_its_weights_alone() -> Outcome {
    let dir = tempfile::tempdir()?;
    let dir = dir.path();
    json(&zoo(dir, &["train", "deepsif", "--preset", "tiny", "--out", "run", "--json"]))?;
    let head = zoo_deepsif::head::Head::spherical(8, 20)?;
    let field = Tensor::from_vec(head.lead_field.clone(), (8, 20), &Device::Cpu)?;
    let samples = |name: &str, apart: f64| -> Outcome {
        let places: Vec<f64> = head.regions.iter().flat_map(|[x, y, z]| [x + apart, *y, *z]).collect();
        let places = Tensor::from_vec(places, (20, 3), &Device::Cpu)?;
        let arrays = [
            ("eeg".into(), random(1, &[10, 50, 8])?),
            ("activity".into(), random(2, &[10, 50, 20])?),
            ("lead_field".into(), field.clone()),
            ("regions_mm".into(), places),
        ];
        Ok(zoo_checkpoint::write_npz(&dir.join(name), &arrays)?)
    };
    samples("own.npz", 0.)?;
    samples("other.npz", 5.)?;
    let eval = |more: &[&str]| zoo(dir, &[&["eval", "deepsif", "--checkpoint", "run"], more].concat());
    // Weights set more samples aside than the file has.
    let few = json(&eval(&["--data", "own.npz", "--json"]))?;
    assert_eq!(few["samples"], 8, "{few}");
    assert!(few["data"].as_str().is_some_and(|d| d.contains("the head in") && d.contains("2 to validate")), "{few}");
    let set = json(&eval(&["--data", "own.npz", "--set", "data.valid=3", "--set", "data.test=4", "--json"]))?;
    assert_eq!(set["samples"], 4, "{set}");
    for (more, said) in [
        (["--data", "other.npz"], "the head in other.npz: its regions lie elsewhere than those of these weights"),
        (["--set", "model.width=8"], "weights are judged as they are"),
    ] {
        let refused = eval(&more);
        let text = String::from_utf8_lossy(&refused.stderr);
        assert!(refused.status.code() == Some(2) && text.contains(said), "{text}");
    }
    Ok(())
}

#[test]
fn a_published_deepsif_checkpoint_gives_what_pytorch_says() -> Outcome {
    let dir = tempfile::tempdir()?;
    let dir = dir.path();
    let fixture = |name: &str| format!("{}/../../tests/fixtures/{name}", env!("CARGO_MANIFEST_DIR"));
    let published = fixture("deepsif_published.pth");
    let convert = ["convert", &published, "imported.safetensors", "--model", "deepsif"];
    let refused = zoo(dir, &convert);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("name the head's folder by --data"), "{refused:?}");
    // A head of 8 electrodes and 20 regions, a vertex each.
    std::fs::create_dir(dir.join("head"))?;
    let corners: Vec<f32> = (1..=18).flat_map(|i| [i as f32, i as f32 + 1., i as f32 + 2.]).collect();
    let vertices: Vec<f32> = (0..20).map(|i| i as f32).collect();
    let variables = [
        ("fwd".to_string(), random(3, &[8, 20])?),
        ("pos".to_string(), random(4, &[20, 3])?),
        ("tri".to_string(), Tensor::from_vec(corners, (18, 3), &Device::Cpu)?),
        ("rm".to_string(), Tensor::from_vec(vertices, 20, &Device::Cpu)?),
    ];
    matlab::write(&dir.join("head/head.mat"), &variables)?;
    let done = zoo(dir, &[&convert[..], &["--data", "head"]].concat());
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let checkpoint = zoo_checkpoint::read(&dir.join("imported.safetensors"), &Device::Cpu)?;
    let config: Value = serde_json::from_str(&checkpoint.metadata["config"])?;
    let config: zoo_deepsif::Config = serde_json::from_value(config["model"].clone())?;
    let (network, _) = Params::restore(checkpoint.tensors, &Device::Cpu, |vb| zoo_deepsif::Network::new(&config, vb))?;
    let expected = zoo_checkpoint::read(fixture("deepsif_published.safetensors").as_ref(), &Device::Cpu)?.tensors;
    let off = (network.forward(&expected["eeg"], Mode::Eval)? - &expected["activity"])?;
    let off = off.abs()?.max_all()?.to_scalar::<f32>()?;
    assert!(off < 2e-6, "{off}");
    // And back: a dictionary with the entries that the published program reads.
    let back = zoo(dir, &["convert", "imported.safetensors", "back.pt", "--model", "deepsif", "--to", "published"]);
    assert!(back.status.success(), "{}", String::from_utf8_lossy(&back.stderr));
    let said = json(&zoo(dir, &["inspect", "back.pt", "--json"]))?.to_string();
    assert!(said.contains("TemporalInverseNet") && said.contains("value_activation"), "{said}");
    Ok(())
}
