//! What goes to the user: results to stdout, one line of error to stderr, the exit code.

use std::io::Write;
use std::process::ExitCode;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use zoo_training::Error;

/// Writes to stdout. A reader that went away (`| head`) is no error.
pub(crate) fn print(text: &str) {
    let mut out = std::io::stdout().lock();
    if let Err(e) = out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        let gone = e.kind() == std::io::ErrorKind::BrokenPipe;
        if !gone {
            note(&format!("zoo: error: stdout: {e}"));
        }
        std::process::exit(if gone { 0 } else { 1 });
    }
}

/// Writes a JSON document to stdout.
pub(crate) fn print_json(value: &serde_json::Value) {
    print(&format!("{value:#}\n"));
}

/// Writes a line to stderr; there is nobody to tell if that fails.
pub(crate) fn note(line: &str) {
    let _ = writeln!(std::io::stderr(), "{}", shown(line));
}

/// Text of a file for a terminal: names may hold what moves its cursor or changes its colours.
fn shown(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\n' { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

/// The first line of a message: candle's errors may carry a backtrace behind it.
pub(crate) fn first_line(e: &impl std::fmt::Display) -> String {
    e.to_string().lines().next().unwrap_or_default().to_string()
}

/// A wrong command line: help as it is, errors in one line, exit code 2.
pub(crate) fn refuse_call(e: &clap::Error) -> ExitCode {
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
    let tip = tips.into_iter().next().map_or(String::new(), |t| format!(" (did you mean {t}?)"));
    note(&format!("zoo: {message}{tip}; see zoo --help"));
    ExitCode::from(2)
}

/// An error with its causes, in one line.
pub(crate) fn message(e: &anyhow::Error) -> String {
    let mut message = String::new();
    for cause in e.chain() {
        let line = first_line(&cause);
        // A transparent error repeats its cause, and some name it in their own text.
        if !message.contains(&line) {
            message = if message.is_empty() { line } else { format!("{message}: {line}") };
        }
    }
    message
}

/// Failed work (1) or a wrong call (2), in one line.
pub(crate) fn fail(e: &anyhow::Error) -> ExitCode {
    note(&format!("zoo: error: {}", message(e)));
    ExitCode::from(if matches!(e.downcast_ref(), Some(Error::Usage(_))) { 2 } else { 1 })
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

/// Rows as aligned columns: the first to the left, the others to the right.
pub(crate) fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |k: usize| rows.iter().filter_map(|r| r.get(k)).map(|c| c.chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let cell = |(k, c): (usize, &String)| {
            let c = shown(&c.replace('\n', "\u{fffd}"));
            if k == 0 { format!("{c:<w$}", w = widths[k]) } else { format!("{c:>w$}", w = widths[k]) }
        };
        let line = row.iter().enumerate().map(cell).collect::<Vec<_>>().join("  ");
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
