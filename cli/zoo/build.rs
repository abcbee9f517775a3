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

/// The checkout's commit, marked where tracked files differ from it.
fn of_checkout() -> Option<String> {
    // A package unpacked inside somebody's repository is not of that repository.
    if !Path::new("../../models/shared/kernels").is_dir() {
        return None;
    }
    let commit = git(&["rev-parse", "--short=9", "HEAD"])?;
    // The log grows with every commit and every change of branch.
    for path in
        [git(&["rev-parse", "--git-path", "logs/HEAD"])?.as_str(), "src", "../src", "../../models", "../../Cargo.lock"]
    {
        println!("cargo:rerun-if-changed={path}");
    }
    let changed = git(&[
        "--no-optional-locks",
        "status",
        "--porcelain",
        "--untracked-files=no",
        "--",
        "../../cli",
        "../../models",
        "../../Cargo.lock",
        ":(top,exclude,glob)**/*.md",
    ])?;
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
