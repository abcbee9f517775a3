//! What happens to files that lie: here, and in candle's own readers. Prints the table of `HOSTILE.md`.
//!
//!     cargo run --release -p zoo-checkpoint --example hostile
//!     cargo run --release -p zoo-checkpoint --example hostile -- --write FOLDER      # the files, for other programs
//!
//! Every file is read in a process of its own with 2 GiB of memory (`ulimit -v`) and ten seconds.

mod inputs;

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use candle_core::quantized::gguf_file;
use candle_core::{Device, Tensor};

type Outcome = Result<usize, Box<dyn std::error::Error>>;

/// Opens the file and reads every tensor.
fn ours(path: &Path) -> Outcome {
    let source = zoo_checkpoint::open(path)?;
    for t in &source.tensors {
        source.stream(&zoo_checkpoint::TensorView::whole(t), t.dtype, &mut |_| Ok(()))?;
    }
    Ok(source.tensors.len())
}

fn candle(path: &Path, format: &str) -> Outcome {
    Ok(match format {
        "pytorch" => candle_core::pickle::read_all(path)?.len(),
        "npz" => Tensor::read_npz(path)?.len(),
        "npy" => Tensor::read_npy(path).map(|_| 1)?,
        "gguf" => {
            let mut file = std::fs::File::open(path)?;
            let content = gguf_file::Content::read(&mut file)?;
            for name in content.tensor_infos.keys() {
                content.tensor(&mut file, name, &Device::Cpu)?.dequantize(&Device::Cpu)?;
            }
            content.tensor_infos.len()
        }
        _ => candle_core::safetensors::load(path, &Device::Cpu)?.len(),
    })
}

/// What a process of its own says about a file.
fn outcome(reader: &str, format: &str, path: &Path) -> String {
    let exe = std::env::current_exe().expect("this program");
    let mut child = Command::new("sh")
        .args(["-c", "ulimit -v 2097152; exec \"$@\"", "sh"])
        .args([exe.as_os_str(), reader.as_ref(), format.as_ref(), path.as_os_str()])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("a shell");
    let begun = Instant::now();
    let status = loop {
        match child.try_wait().expect("a child") {
            Some(status) => break status,
            None if begun.elapsed() > Duration::from_secs(10) => {
                let _ = child.kill();
                let _ = child.wait();
                return "**hangs**".into();
            }
            None => std::thread::sleep(Duration::from_millis(2)),
        }
    };
    let said = std::io::read_to_string(child.stdout.take().expect("piped")).unwrap_or_default();
    match (status.code(), status.signal()) {
        (Some(0), _) => said,
        (Some(101), _) => "**panic**".into(),
        (_, Some(signal)) => format!("**killed by signal {signal}**"),
        (code, _) => format!("exit {code:?}"),
    }
}

/// Writes the files, and prints the name of each with what it holds.
fn written(folder: &Path) {
    for (i, input) in inputs::all().iter().enumerate() {
        let extension = if input.format == "pytorch" { "pt" } else { input.format };
        let name = format!("{i:03}.{extension}");
        std::fs::write(folder.join(&name), &input.bytes).expect("a folder to write to");
        println!("{name}\t{}", input.name);
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    if let [_, reader, format, path] = &arguments[..] {
        let path = Path::new(path);
        match if reader == "ours" { ours(path) } else { candle(path, format) } {
            Ok(n) => print!("reads {n} tensors"),
            Err(e) => print!("{}", e.to_string().lines().next().unwrap_or_default()),
        }
        return;
    }
    if let [_, flag, folder] = &arguments[..]
        && flag == "--write"
    {
        return written(Path::new(folder));
    }
    let folder = tempfile::tempdir().expect("a folder");
    println!("| format | a file with | zoo | candle 0.11.1 |\n| --- | --- | --- | --- |");
    for (i, input) in inputs::all().iter().enumerate() {
        let path = folder.path().join(format!("{i}"));
        std::fs::write(&path, &input.bytes).expect("a file");
        let prefix = format!("{}: ", path.display());
        let shown = |text: String| match text.strip_prefix(&prefix) {
            Some(reason) => reason.to_string(),
            None => text,
        };
        let ours = shown(outcome("ours", input.format, &path));
        let theirs = match shown(outcome("candle", input.format, &path)) {
            text if text.starts_with("**") || text.starts_with("reads") => text,
            _ => "an error".into(),
        };
        let cell = |t: &str| t.replace('|', "\\|").chars().take(140).collect::<String>();
        println!("| {} | {} | {} | {theirs} |", input.format, cell(&input.name), cell(&ours));
    }
    println!(
        "\nExecuted by a reader: {}.",
        if Path::new("/tmp/zoo-was-here").exists() { "**something was**" } else { "nothing" }
    );
}
