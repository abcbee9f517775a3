//! Names the commit that an optimised program is built from, for `zoo --version` and the metadata of weights: ZOO_COMMIT. Debug builds
//! have none, so that a commit does not link every test anew.

use std::path::Path;
use std::process::Command;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    if std::env::var("PROFILE").is_ok_and(|profile| profile == "debug") {
        return;
    }
    if let Some(commit) = of_checkout().or_else(of_package) {
        println!("cargo:rustc-env=ZOO_COMMIT={commit}");
    }
}

/// What the program is made of, from this folder.
const SOURCES: [&str; 4] = ["../../cli", "../../models", "../../Cargo.toml", "../../Cargo.lock"];

/// The checkout's commit, marked where tracked files differ from it.
fn of_checkout() -> Option<String> {
    // A package or an archive that was unpacked inside somebody's repository is not of that repository.
    if git(&["rev-parse", "--show-prefix"])? != "cli/zoo/" {
        return None;
    }
    let commit = git(&["rev-parse", "--short=9", "HEAD"])?;
    // The log grows with every commit and every change of branch; where none is kept, the commit of the last build stays.
    let log = git(&["rev-parse", "--git-path", "logs/HEAD"])?;
    for path in [log.as_str()].into_iter().filter(|log| Path::new(log).exists()).chain(SOURCES) {
        println!("cargo:rerun-if-changed={path}");
    }
    let status = ["--no-optional-locks", "status", "--porcelain", "--untracked-files=no", "--"];
    let changed = git(&[&status[..], &SOURCES, &[":(top,exclude,glob)**/*.md"]].concat())?;
    Some(if changed.is_empty() { commit } else { format!("{commit}, changed") })
}

/// The commit that cargo wrote into the package.
fn of_package() -> Option<String> {
    let written = std::fs::read_to_string(".cargo_vcs_info.json").ok()?;
    let (_, from) = written.split_once("\"sha1\":")?;
    let commit = from.split('"').nth(1)?;
    (commit.len() == 40 && commit.bytes().all(|b| b.is_ascii_hexdigit())).then(|| commit[..9].to_string())
}

fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_string())
}
