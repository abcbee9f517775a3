//! `new`: a crate with a model of one's own that builds, passes its tests and trains at once.

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;
use zoo_training::Error;

use crate::output::print;

/// The files of the crate. In them `my-model`, `my_model` and `MyTask` stand for its names, `CHECKOUT` for where the zoo lies.
const FILES: [(&str, &str); 8] = [
    (".gitignore", "/target\n/runs\n"),
    ("Cargo.toml", include_str!("template/Cargo.toml.in")),
    ("src/main.rs", include_str!("template/src/main.rs")),
    ("src/lib.rs", include_str!("template/src/lib.rs")),
    ("src/data.rs", include_str!("template/src/data.rs")),
    ("src/network.rs", include_str!("template/src/network.rs")),
    ("src/task.rs", include_str!("template/src/task.rs")),
    ("tests/model.rs", include_str!("template/tests/model.rs")),
];
/// The version of the published crates that belong to this program.
const VERSION: &str = env!("CARGO_PKG_VERSION");
/// Words that a crate cannot be called: Rust's own, and names of what it is built from.
const TAKEN: &str = "abstract as async await become box break const continue crate do dyn else enum extern false final fn for gen \
    if impl in let loop macro main match mod move mut override priv pub ref return self static struct super trait true try type \
    typeof unsafe unsized use virtual where while yield alloc core proc-macro std test anyhow candle candle-core candle-nn clap csv \
    serde serde-json tempfile toml zoo zoo-checkpoint zoo-cli zoo-kernels zoo-layers zoo-training";

#[derive(Args)]
pub(crate) struct Arguments {
    /// What the crate and its model are called: small letters, digits and hyphens
    #[arg(value_name = "NAME")]
    name: String,
    /// A checkout of the zoo that the crate depends on; by default the one that this program was built from, or else the
    /// published crates
    #[arg(long, value_name = "DIR")]
    path: Option<PathBuf>,
}

pub(crate) fn run(args: &Arguments) -> anyhow::Result<()> {
    let name = args.name.as_str();
    let letters = name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-');
    let words = name.split('-').all(|word| !word.is_empty());
    if !letters || !words || !name.starts_with(|c: char| c.is_ascii_lowercase()) {
        return Err(Error::Usage(format!(
            "{name}: a crate's name has small letters, digits and single hyphens between them, such as my-model"
        ))
        .into());
    }
    if TAKEN.split(' ').any(|word| word == name) {
        return Err(Error::Usage(format!(
            "{name} is taken, by Rust or by a crate that it depends on: choose another name"
        ))
        .into());
    }
    let checkout = checkout(args.path.as_deref())?;
    let folder = Path::new(name);
    if folder.exists() {
        return Err(Error::Usage(format!("{name} is already there: choose another name, or another folder")).into());
    }
    let upper = |word: &str| word[..1].to_uppercase() + &word[1..];
    let task = name.split('-').map(upper).collect::<String>() + "Task";
    for (path, text) in FILES {
        let text = text.replace("my-model", name).replace("my_model", &name.replace('-', "_"));
        let text = depending(&text.replace("MyTask", &task), checkout.as_deref());
        let path = folder.join(path);
        let parent = path.parent().unwrap_or(folder);
        std::fs::create_dir_all(parent).with_context(|| parent.display().to_string())?;
        std::fs::write(&path, text).with_context(|| path.display().to_string())?;
    }
    // The versions that the zoo was tested with.
    let lock = checkout.as_ref().map(|folder| folder.join("Cargo.lock")).filter(|lock| lock.exists());
    if let Some(lock) = lock {
        std::fs::copy(&lock, folder.join("Cargo.lock")).with_context(|| lock.display().to_string())?;
    }
    let (on, others) = match &checkout {
        Some(path) => {
            let path = path.display();
            (
                path.to_string(),
                format!("; {path}/models has others to read, {path}/ARCHITECTURE.md says what belongs where,"),
            )
        }
        None => (format!("the published crates of version {VERSION}"), String::new()),
    };
    print(&format!(
        "{name} depends on {on}; next (the first build takes minutes, later ones seconds):\n  cd {name}\n  cargo test\n  \
         cargo run -- train {name}\n  cargo run -- train {name} --data YOUR.csv --set data.target=COLUMN\nsrc/data.rs, network.rs \
         and task.rs are yours to change{others} and cargo doc --open shows zoo-training and zoo-layers\n"
    ));
    Ok(())
}

/// A file of the template whose dependencies lie in a checkout, or in the registry.
fn depending(text: &str, checkout: Option<&Path>) -> String {
    match checkout {
        Some(path) => text.replace("CHECKOUT", &path.to_string_lossy()),
        None => {
            let line = |line: &str| match line.split_once(" = { path = \"CHECKOUT/") {
                Some((name, _)) => format!("{name} = \"{VERSION}\"\n"),
                None => format!("{line}\n"),
            };
            text.lines().map(line).collect()
        }
    }
}

/// Where the crates of the zoo lie, if that is known.
fn checkout(path: Option<&Path>) -> anyhow::Result<Option<PathBuf>> {
    let crates =
        |folder: &Path| folder.join("cli/Cargo.toml").is_file() && folder.join("models/shared/training").is_dir();
    match path {
        Some(path) if crates(path) => path.canonicalize().map(Some).with_context(|| path.display().to_string()),
        Some(path) => Err(Error::Usage(format!(
            "--path {}: not a checkout of the zoo (it has no cli/Cargo.toml)",
            path.display()
        ))
        .into()),
        None => {
            let built_from = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
            Ok(built_from.canonicalize().ok().filter(|folder| crates(folder)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crate_depends_on_a_checkout_or_on_published_crates() {
        let text = "tempfile = \"3\"\nzoo-cli = { path = \"CHECKOUT/cli\" }\n";
        assert_eq!(depending(text, None), format!("tempfile = \"3\"\nzoo-cli = \"{VERSION}\"\n"));
        assert_eq!(depending(text, Some("/zoo".as_ref())), "tempfile = \"3\"\nzoo-cli = { path = \"/zoo/cli\" }\n");
    }
}
