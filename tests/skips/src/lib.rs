//! Tests that want something which may not be there: data, PyTorch, a compiler, MPI, a right.
//!
//! `ZOO_REQUIRE` names what has to be there (`data,compiler`, or `all`): a test that lacks it fails. `ZOO_SKIPPED` names a file to which each
//! test that is skipped adds a line.

use std::fmt::Display;
use std::io::Write;

/// Says that a test, or the rest of it, is skipped for want of `need`.
///
/// # Panics
/// `ZOO_REQUIRE` asks for it, or the file of `ZOO_SKIPPED` cannot be written.
pub fn skipped(need: &str, why: impl Display) {
    let required = std::env::var("ZOO_REQUIRE").unwrap_or_default();
    let is_required = required.split(',').any(|r| r.trim() == need || r.trim() == "all");
    assert!(!is_required, "ZOO_REQUIRE={required}: there is no {need}: {why}");
    println!("skipped for want of {need}: {why}");
    if let Some(path) = std::env::var_os("ZOO_SKIPPED") {
        let thread = std::thread::current();
        let line = format!("{}: {need}: {why}\n", thread.name().unwrap_or("a test"));
        let file = std::fs::OpenOptions::new().append(true).create(true).open(path);
        file.and_then(|mut file| file.write_all(line.as_bytes())).expect("the file that ZOO_SKIPPED names");
    }
}

/// A file or folder of the data that tests read, if it is there: in the folder that `ZOO_TEST_DATA` names, or beside the checkout.
pub fn data(manifest: &str, name: &str) -> Option<std::path::PathBuf> {
    let beside = |up: &str| std::path::Path::new(manifest).join(up).join("shared/data");
    // The packages with tests lie two folders deep.
    let folder = std::env::var_os("ZOO_TEST_DATA").map_or_else(|| beside("../../.."), std::path::PathBuf::from);
    let path = folder.join(name);
    if !path.exists() {
        skipped("data", format!("no {} (ZOO_TEST_DATA names the folder)", path.display()));
        return None;
    }
    Some(path)
}
