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

/// The most memory that this process had, in kB, and its processor time, in hundredths of a second.
fn cost() -> Option<(u64, u64)> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let peak = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?.split_whitespace().next()?.parse().ok()?;
    // User and system time are fields 14 and 15; the name before them may have spaces.
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    let times: Vec<u64> =
        stat.rsplit_once(')')?.1.split_whitespace().skip(11).take(2).filter_map(|t| t.parse().ok()).collect();
    Some((peak, times.iter().sum()))
}

/// The most that a file took of each, and which one.
#[derive(Default)]
struct Most {
    memory: (u64, String),
    time: (u64, String),
}

impl Most {
    fn add(&mut self, (memory, time): (u64, u64), name: &str) {
        if memory > self.memory.0 {
            self.memory = (memory, name.into());
        }
        if time > self.time.0 {
            self.time = (time, name.into());
        }
    }
}

impl std::fmt::Display for Most {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        let Self { memory, time } = self;
        write!(f, "{} MB ({}), {:.2} s ({})", memory.0 / 1000, memory.1, time.0 as f64 / 100., time.1)
    }
}

/// What a process of its own says about a file, and what that cost where it came to an end by itself.
fn outcome(reader: &str, format: &str, path: &Path) -> (String, Option<(u64, u64)>) {
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
                return ("**hangs**".into(), None);
            }
            None => std::thread::sleep(Duration::from_millis(2)),
        }
    };
    let said = std::io::read_to_string(child.stdout.take().expect("piped")).unwrap_or_default();
    let said = match (status.code(), status.signal()) {
        (Some(0), _) => {
            let mut parts = said.rsplitn(3, '\t');
            let (time, memory) = (parts.next(), parts.next());
            let cost = || Some((memory?.parse().ok()?, time?.parse().ok()?));
            return (parts.next().unwrap_or_default().into(), cost());
        }
        (Some(101), _) => "**panic**".into(),
        (_, Some(signal)) => format!("**killed by signal {signal}**"),
        (code, _) => format!("exit {code:?}"),
    };
    (said, None)
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
        let (memory, time) = cost().unwrap_or_default();
        print!("\t{memory}\t{time}");
        return;
    }
    if let [_, flag, folder] = &arguments[..]
        && flag == "--write"
    {
        return written(Path::new(folder));
    }
    let folder = tempfile::tempdir().expect("a folder");
    println!("| format | a file with | zoo | candle 0.11.1 |\n| --- | --- | --- | --- |");
    let (mut most, mut their_most) = (Most::default(), Most::default());
    for input in inputs::all() {
        let path = folder.path().join("file");
        std::fs::write(&path, &input.bytes).expect("a file");
        let prefix = format!("{}: ", path.display());
        let place = folder.path().display().to_string();
        let shown = |text: String| text.strip_prefix(&prefix).unwrap_or(&text).replace(&place, "FOLDER");
        let (ours, cost) = outcome("ours", input.format, &path);
        most.add(cost.unwrap_or_default(), &input.name);
        let ours = shown(ours);
        // candle-core has no reader of graphs.
        let (theirs, cost) = match input.format {
            "onnx" => ("-".into(), None),
            format => outcome("candle", format, &path),
        };
        their_most.add(cost.unwrap_or_default(), &input.name);
        let theirs = match shown(theirs) {
            text if text == "-" => text,
            text if text.starts_with("**") || text.starts_with("reads") => text,
            _ => "an error".into(),
        };
        let cell = |t: &str| t.replace('|', "\\|").chars().take(140).collect::<String>();
        println!("| {} | {} | {} | {theirs} |", input.format, cell(&input.name), cell(&ours));
    }
    println!("\nMost memory and processor time of a file: zoo {most}; candle, where it ends by itself, {their_most}.");
    println!(
        "\nExecuted by a reader: {}.",
        if Path::new("/tmp/zoo-was-here").exists() { "**something was**" } else { "nothing" }
    );
}
