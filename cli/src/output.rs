//! What goes to the user: results to stdout, one line of error to stderr, the exit code.

use std::borrow::Cow;
use std::io::{BufWriter, Write};
use std::process::ExitCode;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use serde::Serialize;
use zoo_checkpoint::Description;
use zoo_training::config::synonyms;
use zoo_training::{Error, TrainConfig};

/// The program's name and version, and the flags of the verb at work by the keys that they set.
static PROGRAM: OnceLock<(&'static str, String)> = OnceLock::new();
static FLAGS: OnceLock<Vec<(&'static str, &'static str)>> = OnceLock::new();

/// What the program is called.
pub(crate) fn program() -> &'static str {
    PROGRAM.get().map_or("zoo", |(name, _)| name)
}

/// Its version, and the commit that it was built from where that is known.
pub(crate) fn version() -> &'static str {
    PROGRAM.get().map_or(env!("CARGO_PKG_VERSION"), |(_, version)| version)
}

/// Whether another process of the same run speaks for this one.
static SILENT: AtomicBool = AtomicBool::new(false);

/// Has another process speak for this one.
pub(crate) fn be_silent() {
    SILENT.store(true, Ordering::Relaxed);
}

fn is_silent() -> bool {
    SILENT.load(Ordering::Relaxed)
}

/// Names the program and its version; the first names stay.
pub(crate) fn name_program(name: &'static str, version: String) {
    Description::name_program(format!("{name} {version}"));
    let _ = PROGRAM.set((name, version));
}

/// Has messages name these flags where they would name the keys that the flags set.
pub(crate) fn word_keys_as_flags(flags: Vec<(&'static str, &'static str)>) {
    let _ = FLAGS.set(flags);
}

/// A message with flags in place of keys that have one: libraries know no flags.
pub(crate) fn worded(message: &str) -> String {
    let part_of_name = |c: char| c.is_alphanumeric() || matches!(c, '_' | '.' | '-');
    // A rule of a conversion is given by a flag, too.
    let mut text = message.replace("by a rule ('", "by a rule (--map '");
    for (key, flag) in FLAGS.get().into_iter().flatten() {
        let mut from = 0;
        while let Some(at) = text[from..].find(key).map(|at| from + at) {
            let end = at + key.len();
            // Not a part of a longer key, and not a key of a file, which stands behind the file's name.
            let (before, after) = text.split_at(at);
            let after = &after[key.len()..];
            let part = before.ends_with(part_of_name) || after.starts_with(|c: char| c.is_alphanumeric() || c == '_');
            let of_file = before.ends_with(": ") && after.starts_with(" takes ");
            let whole = !part && !of_file;
            if whole {
                text.replace_range(at..end, &format!("--{flag}"));
            }
            from = if whole { at + flag.len() + 2 } else { end };
        }
    }
    text
}

/// The refusal of what this program was built without.
pub(crate) fn not_built(what: &str, feature: &str) -> anyhow::Error {
    let reason = format!("{what} is not built in: build {} with --features {feature} (or full)", program());
    Error::Usage(reason).into()
}

/// Warns of something, in a line on stderr.
pub(crate) fn warn(what: impl std::fmt::Display) {
    note(&format!("{}: warning: {}", program(), worded(&what.to_string())));
}

/// Remarks something, in a line on stderr.
pub(crate) fn remark(what: impl std::fmt::Display) {
    note(&format!("{}: note: {what}", program()));
}

/// Writes to stdout. A reader that went away (`| head`) is no error.
pub(crate) fn print(text: &str) {
    if is_silent() {
        return;
    }
    written(std::io::stdout().lock().write_all(shown(text).as_bytes()));
}

/// Ends the program if stdout took no more.
fn written(result: std::io::Result<()>) {
    if let Err(e) = result.and_then(|()| std::io::stdout().flush()) {
        let gone = e.kind() == std::io::ErrorKind::BrokenPipe;
        if !gone {
            note(&format!("{}: error: stdout: {e}", program()));
        }
        std::process::exit(if gone { 0 } else { 1 });
    }
}

/// Writes a JSON document to stdout, as it is made.
pub(crate) fn print_json(value: &impl Serialize) {
    if is_silent() {
        return;
    }
    let mut out = Escaped(BufWriter::new(std::io::stdout().lock()));
    let made = serde_json::to_writer_pretty(&mut out, value).map_err(std::io::Error::from);
    written(made.and_then(|()| out.0.write_all(b"\n")).and_then(|()| out.0.flush()));
}

/// JSON without control characters. JSON itself escapes the first 32 alone; others can only stand in a text of it.
struct Escaped<W>(W);

impl<W: Write> Write for Escaped<W> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let moves = |c: char| c != '\n' && moves_terminal(c);
        match std::str::from_utf8(bytes) {
            Ok(text) if text.contains(moves) => {
                for c in text.chars() {
                    match moves(c) {
                        true => write!(self.0, "\\u{:04x}", u32::from(c))?,
                        false => write!(self.0, "{c}")?,
                    }
                }
            }
            _ => self.0.write_all(bytes)?,
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.0.flush()
    }
}

/// Writes a line to stderr; there is nobody to tell if that fails.
pub(crate) fn note(line: &str) {
    if is_silent() {
        return;
    }
    let _ = writeln!(std::io::stderr(), "{}", shown(line));
}

/// Text for a terminal, which may be that of a file: see [`moves_terminal`].
pub(crate) fn shown(text: &str) -> Cow<'_, str> {
    let hides = |c: char| !matches!(c, '\n' | '\t') && moves_terminal(c);
    match text.contains(hides) {
        true => text.chars().map(|c| if hides(c) { char::REPLACEMENT_CHARACTER } else { c }).collect::<String>().into(),
        false => text.into(),
    }
}

/// Whether a character moves a terminal's cursor, changes its colours or the order of what is around it.
fn moves_terminal(c: char) -> bool {
    c.is_control() || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// At most so many characters of a text.
pub(crate) fn cut(text: &str, most: usize) -> Cow<'_, str> {
    match text.char_indices().nth(most) {
        None => text.into(),
        Some((end, _)) => format!("{}…", &text[..end]).into(),
    }
}

/// Characters of an error, or of one of its causes: a file may hold any number.
const LONGEST_ERROR: usize = 400;
/// Characters of a cell of a table.
pub(crate) const LONGEST_CELL: usize = 160;

/// The first line of a message: candle's errors may carry a backtrace behind it.
pub(crate) fn first_line(e: &impl std::fmt::Display) -> String {
    e.to_string().lines().next().unwrap_or_default().to_string()
}

/// What verbs of other programs, and flags that are keys of the configuration here, are called.
fn elsewhere(typed: &str, verb: Option<&str>) -> Option<String> {
    const VERBS: [(&str, &[&str]); 15] = [
        ("train", &["fit", "finetune", "fine-tune", "resume"]),
        ("eval", &["evaluate", "test", "validate", "score"]),
        ("predict", &["infer", "inference", "forecast"]),
        ("generate", &["sample", "chat", "complete"]),
        ("convert", &["export", "import", "quantize", "merge"]),
        ("params", &["summary", "count"]),
        ("diff", &["compare"]),
        ("report", &["plot", "curves"]),
        ("doctor", &["diagnose", "check", "health"]),
        ("tune", &["sweep", "search", "hpo", "lr-find"]),
        ("bench", &["benchmark", "profile"]),
        ("inspect", &["info", "show", "ls"]),
        ("pull", &["download", "fetch"]),
        ("push", &["upload", "publish"]),
        ("serve", &["server", "api", "deploy"]),
    ];
    let Some(flag) = typed.strip_prefix("--") else {
        return VERBS.iter().find(|(_, others)| others.contains(&typed)).map(|(ours, _)| ours.to_string());
    };
    let takes_settings = matches!(verb, Some("train" | "tune" | "params" | "doctor"));
    let name = flag.split('=').next().unwrap_or(flag).replace('-', "_");
    let own = TrainConfig::KEYS.iter().find(|key| **key == name).copied();
    let key = own.or_else(|| synonyms(&name).find(|key| TrainConfig::KEYS.contains(key)))?;
    // These have a flag of their own.
    let own = verb == Some("train") && ["steps", "epochs", "seed"].contains(&key);
    takes_settings.then(|| if own { format!("--{key}") } else { format!("--set train.{key}=VALUE") })
}

/// A wrong command line, of a verb if it names one: help as it is, errors in one line, exit code 2.
pub(crate) fn refuse_call(e: &clap::Error, verb: Option<&str>) -> ExitCode {
    if matches!(e.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        print(&e.to_string());
        return ExitCode::SUCCESS;
    }
    if e.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        note(&e.to_string());
        return ExitCode::from(2);
    }
    let text = e.to_string();
    let message: Vec<&str> = text.lines().take_while(|l| !l.trim().is_empty()).map(str::trim).collect();
    let message = message.join(" ");
    let tips = e.context().filter_map(|(kind, value)| match (kind, value) {
        (
            ContextKind::SuggestedArg | ContextKind::SuggestedSubcommand | ContextKind::SuggestedValue,
            ContextValue::String(s),
        ) => Some(s.clone()),
        (ContextKind::SuggestedSubcommand | ContextKind::SuggestedValue, ContextValue::Strings(s)) => {
            s.first().cloned()
        }
        _ => None,
    });
    let typed = e.context().find_map(|(kind, value)| match (kind, value) {
        (ContextKind::InvalidArg | ContextKind::InvalidSubcommand, ContextValue::String(s)) => Some(s.as_str()),
        _ => None,
    });
    let tip = typed.and_then(|typed| elsewhere(typed, verb)).or(tips.into_iter().next());
    let tip = tip.map_or(String::new(), |t| format!(" (did you mean {t}?)"));
    let help = verb.map_or(String::new(), |verb| format!(" {verb}"));
    note(&format!("{0}: {message}{tip}; see {0}{help} --help", program()));
    ExitCode::from(2)
}

/// An error with its causes, in one line.
pub(crate) fn message(e: &anyhow::Error) -> String {
    let mut message = String::new();
    for cause in e.chain() {
        let line = first_line(&cause);
        let line = match cause.downcast_ref() {
            // Their keys are what --allow-change takes, all of them.
            Some(Error::Changed { .. }) => line,
            Some(Error::NoSuchKey(_)) => format!("--allow-change {line}"),
            _ => cut(&worded(&line), LONGEST_ERROR).into_owned(),
        };
        // A transparent error repeats its cause, and some name it in their own text.
        if !message.contains(&line) {
            message = if message.is_empty() { line } else { format!("{message}: {line}") };
        }
        message.push_str(&cause.downcast_ref().map_or(String::new(), way_out));
    }
    message
}

/// What to do about an error on this command line, where the error does not say it.
fn way_out(e: &Error) -> String {
    match e {
        Error::RunExists(path) => {
            format!(": continue it with --resume {}, or choose another --out", quoted(&path.display().to_string()))
        }
        Error::OnlyWeights(path) => {
            format!(": begin a new run with them by --init-from {}", quoted(&path.display().to_string()))
        }
        Error::Changed { differences, .. } => {
            let flags: String = differences.iter().map(|d| format!(" --allow-change {}", d.key)).collect();
            format!(": undo the change, or allow it with{flags}")
        }
        Error::NoSuchKey(_) => " (--print-config lists them)".into(),
        Error::Critical { .. } => {
            format!("; {} doctor says what to try, and --resume --allow-change KEY goes on with it", program())
        }
        _ => String::new(),
    }
}

/// Failed work (1) or a wrong call (2), in one line.
pub(crate) fn fail(e: &anyhow::Error) -> ExitCode {
    note(&format!("{}: error: {}", program(), message(e)));
    let wrong_call = matches!(
        e.downcast_ref(),
        Some(Error::Usage(_) | Error::RunExists(_) | Error::Changed { .. } | Error::NoSuchKey(_))
    );
    ExitCode::from(if wrong_call { 2 } else { 1 })
}

/// A word of a command as a shell takes it.
pub(crate) fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-=:,+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) { word.into() } else { format!("'{}'", word.replace('\'', r"'\''")) }
}

/// A count with a comma every three digits.
pub(crate) fn grouped(n: usize) -> String {
    let digits = n.to_string();
    let mut text = String::new();
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(c);
    }
    text
}

/// A table of comma-separated values.
pub(crate) fn csv_text(header: &[impl AsRef<[u8]>], rows: &[Vec<String>]) -> anyhow::Result<String> {
    let mut writer = csv::Writer::from_writer(vec![]);
    writer.write_record(header)?;
    for row in rows {
        writer.write_record(row)?;
    }
    let bytes = writer.into_inner().context("writing the table")?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// What a table shows of a text.
fn cell(text: &str) -> Cow<'_, str> {
    // Nearly all are short and plain.
    if text.len() <= LONGEST_CELL && text.bytes().all(|b| matches!(b, b' '..=b'~')) {
        return text.into();
    }
    shown(&cut(text, LONGEST_CELL).replace(['\n', '\t'], "\u{fffd}")).into_owned().into()
}

/// Rows as aligned columns: the first to the left, the others to the right.
pub(crate) fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |k: usize| rows.iter().filter_map(|r| r.get(k)).map(|c| cell(c).chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let padded = |(k, c): (usize, &String)| match k {
            0 => format!("{:<w$}", cell(c), w = widths[k]),
            _ => format!("{:>w$}", cell(c), w = widths[k]),
        };
        let line = row.iter().enumerate().map(padded).collect::<Vec<_>>().join("  ");
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_grouped_and_tables_aligned() {
        assert_eq!([7, 999, 1000, 31_051, 1_234_567].map(grouped), ["7", "999", "1,000", "31,051", "1,234,567"]);
        let rows = [vec!["a".to_string(), "1".into()], vec!["long".into(), "22".into()]];
        assert_eq!(table(&rows), "a      1\nlong  22\n");
    }
}
