//! A configuration in TOML over a task's defaults; the first line is a `key=value` setting.
#![no_main]

#[path = "mini.rs"]
mod mini;

use zoo_training::config::{ConfigFile, Overrides, resolve};

libfuzzer_sys::fuzz_target!(|text: &str| {
    let (setting, rest) = text.split_once('\n').unwrap_or(("", text));
    let set = if setting.is_empty() { vec![] } else { vec![setting.to_string()] };
    if let Ok(file) = ConfigFile::parse(rest, "settings.toml") {
        let _ = file.note();
        let _ = resolve::<mini::Mini>(&Overrides { file: Some(&file), set: &set, ..Overrides::default() });
    }
});
