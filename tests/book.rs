//! The book (`docs/`), the README and the other documents: flags of the command lines in them exist, blocks marked `console` are run and their
//! output is compared, links lead somewhere, and the table of settings is complete.
//!
//! In a `console` block a line `$ zoo …` is a command, and the lines behind it are what it prints, stdout and stderr together. A line `…` stands for
//! any lines, and `…` within a line for any text. Behind the word `console` may stand `steps=N` (trainings get `--steps N`) and `exit=N` (the exit
//! code of the block's commands). A chapter's blocks share a folder, which begins with weights/, prices.csv and book.txt.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

type Outcome<T = ()> = Result<T, Box<dyn std::error::Error>>;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The README, the book's chapters and the other documents: their paths from the root, and their texts.
fn documents() -> Outcome<Vec<(PathBuf, String)>> {
    let mut paths: Vec<PathBuf> =
        ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "SECURITY.md", "cli/README.md", "cli/zoo/README.md"]
            .map(PathBuf::from)
            .into();
    for folder in ["docs", "docs/models", "weights", "models", "models/shared"] {
        for entry in std::fs::read_dir(root().join(folder))? {
            let path = Path::new(folder).join(entry?.file_name());
            let readme = path.join("README.md");
            paths.extend(path.extension().is_some_and(|e| e == "md").then_some(path));
            paths.extend(root().join(&readme).exists().then_some(readme));
        }
    }
    paths.sort();
    paths.into_iter().map(|path| Ok((path.clone(), std::fs::read_to_string(root().join(path))?))).collect()
}

/// The command lines in blocks of code, those in several lines as one.
fn command_lines(chapter: &str) -> Vec<String> {
    let (mut fenced, mut lines) = (false, vec![]);
    let text = chapter.replace("\\\n", " ");
    for line in text.lines() {
        if line.starts_with("```") {
            fenced = !fenced;
        } else if fenced || line.starts_with("    ") {
            let line = line.trim().trim_start_matches("$ ").trim_start_matches("target/release/");
            lines.extend(line.starts_with("zoo ").then(|| line.to_string()));
        }
    }
    lines
}

#[test]
fn every_flag_of_a_command_line_exists() -> Outcome {
    let (mut tried, mut wrong) = (BTreeSet::new(), String::new());
    for (path, text) in documents()? {
        for line in command_lines(&text) {
            // Behind two spaces, as behind a #, is what the command does.
            let call = line.split("  ").next().unwrap_or_default();
            let words = shlex::split(call).ok_or_else(|| format!("{}: {line}: an open quote", path.display()))?;
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            // A shell's pipes and lists are not ours; nor is what a reader puts in place of an ellipsis.
            let end = words.iter().position(|w| ["|", "&&", ">", ";"].contains(w)).unwrap_or(words.len());
            if words[..end].iter().any(|w| w.contains('…')) || !tried.insert(words[1..end].join(" ")) {
                continue;
            }
            // Flags before --help are checked, and nothing is done; names of models, presets and keys are not.
            let output = Command::new(env!("CARGO_BIN_EXE_zoo")).args(&words[1..end]).arg("--help").output()?;
            if !output.status.success() {
                write!(wrong, "{}: {line}\n  {}", path.display(), String::from_utf8_lossy(&output.stderr))?;
            }
        }
    }
    assert!(tried.len() > 100, "only {} command lines were found", tried.len());
    assert!(wrong.is_empty(), "{wrong}");
    Ok(())
}

/// A block of commands that are run.
struct Block {
    steps: Option<String>,
    exit: i32,
    /// Each command with the lines that it has to print.
    commands: Vec<(String, Vec<String>)>,
}

fn blocks(chapter: &str) -> Outcome<Vec<Block>> {
    let mut blocks = vec![];
    let mut lines = chapter.lines();
    while let Some(line) = lines.next() {
        let Some(marks) = line.strip_prefix("```console") else { continue };
        let mut block = Block { steps: None, exit: 0, commands: vec![] };
        for mark in marks.split_whitespace() {
            match mark.split_once('=') {
                Some(("steps", n)) => block.steps = Some(n.into()),
                Some(("exit", n)) => block.exit = n.parse()?,
                _ => return Err(format!("{line}: {mark} is no mark of a block").into()),
            }
        }
        for line in lines.by_ref().take_while(|line| *line != "```") {
            match (line.strip_prefix("$ "), block.commands.last_mut()) {
                (Some(command), _) => block.commands.push((command.into(), vec![])),
                (None, Some((_, output))) => output.push(line.into()),
                (None, None) => return Err(format!("{line}: no command before it").into()),
            }
        }
        blocks.push(block);
    }
    Ok(blocks)
}

/// Whether a line is as it was written, `…` for any text.
fn line_is(written: &str, line: &str) -> bool {
    match written.split_once('…') {
        None => written == line,
        Some((before, rest)) => line
            .strip_prefix(before)
            .is_some_and(|after| (0..=after.len()).any(|i| after.get(i..).is_some_and(|end| line_is(rest, end)))),
    }
}

/// Whether lines are as they were written, a line `…` for any of them.
fn lines_are(written: &[String], lines: &[&str]) -> bool {
    match written.split_first() {
        None => lines.is_empty(),
        Some((any, rest)) if any == "…" => (0..=lines.len()).any(|i| lines_are(rest, &lines[i..])),
        Some((first, rest)) => {
            lines.split_first().is_some_and(|(line, more)| line_is(first, line) && lines_are(rest, more))
        }
    }
}

/// Runs the blocks of a chapter in `folder`. What went otherwise than written, if anything.
fn played(chapter: &str, folder: &Path) -> Outcome<String> {
    let mut wrong = String::new();
    for block in blocks(chapter)? {
        for (command, written) in block.commands {
            let mut words = shlex::split(&command).ok_or("an open quote")?;
            if words.remove(0) != "zoo" {
                return Err(format!("{command}: only zoo is run").into());
            }
            if let (Some(steps), "train") = (&block.steps, words[0].as_str()) {
                words.extend(["--steps".into(), steps.clone()]);
            }
            // One file for both, so that lines stay in their order.
            let printed = folder.join("printed");
            let file = std::fs::File::create(&printed)?;
            let status = Command::new(env!("CARGO_BIN_EXE_zoo"))
                .args(words)
                .current_dir(folder)
                .env("COLUMNS", "100")
                .env_remove("ZOO_FUSED")
                .env_remove("ZOO_SIMD")
                .stdout(file.try_clone()?)
                .stderr(file)
                .status()?;
            let printed = std::fs::read_to_string(printed)?;
            let lines: Vec<&str> = printed.lines().map(str::trim_end).collect();
            if status.code() != Some(block.exit) || !lines_are(&written, &lines) {
                let code = status.code();
                write!(wrong, "$ {command}\n{printed}(exit code {code:?})\nwritten:\n{}\n\n", written.join("\n"))?;
            }
        }
    }
    Ok(wrong)
}

/// What the commands of a chapter work on.
fn prepared(folder: &Path) -> Outcome {
    std::fs::create_dir(folder.join("weights"))?;
    for entry in std::fs::read_dir(root().join("weights"))? {
        let entry = entry?;
        std::fs::copy(entry.path(), folder.join("weights").join(entry.file_name()))?;
    }
    let mut prices = String::from("Date,Close\n");
    for day in 0..400u32 {
        let (year, month, date) = (2020 + day / 336, day / 28 % 12 + 1, day % 28 + 1);
        let close = 100. + 20. * f64::from(day * 37 % 101) / 101.;
        writeln!(prices, "{year}-{month:02}-{date:02},{close:.2}")?;
    }
    std::fs::write(folder.join("prices.csv"), prices)?;
    let lines = [
        "The river keeps its stones.",
        "A lantern asks the road.",
        "Who mends the winter net?",
        "The miller counts his bread.",
    ];
    let text: String = (0..900).map(|i| format!("{}\n", lines[i * i % 7 % 4])).collect();
    std::fs::write(folder.join("book.txt"), text)?;
    Ok(())
}

#[test]
fn what_the_book_shows_is_what_comes() -> Outcome {
    let (mut wrong, mut count) = (String::new(), 0);
    for (path, text) in documents()? {
        let number = blocks(&text)?.len();
        if number > 0 {
            let folder = tempfile::tempdir()?;
            prepared(folder.path())?;
            count += number;
            let found = played(&text, folder.path())?;
            if !found.is_empty() {
                write!(wrong, "{}:\n{found}", path.display())?;
            }
        }
    }
    assert!(count >= 20, "only {count} blocks were found");
    assert!(wrong.is_empty(), "{wrong}");
    Ok(())
}

#[test]
fn a_chapter_that_is_wrong_is_found() -> Outcome {
    let folder = tempfile::tempdir()?;
    let found = |block: &str| played(block, folder.path());
    let params = "$ zoo params char-gpt --preset tiny\n…\n15 tensors   …5,472\n…\n";
    assert_eq!(found(&format!("```console\n{params}```"))?, "");
    // Another number, a flag that is none, another exit code, and output that is not there.
    assert!(found(&format!("```console\n{}```", params.replace("5,472", "5,473")))?.contains("exit code Some(0)"));
    assert!(found("```console\n$ zoo params char-gpt --presets tiny\n…\n```")?.contains("exit code Some(2)"));
    assert!(!found(&format!("```console exit=1\n{params}```"))?.is_empty());
    assert!(!found("```console\n$ zoo params char-gpt --preset tiny\n```")?.is_empty());
    Ok(())
}

/// A heading's name in links, as forges and mdBook make it.
fn anchor(heading: &str) -> String {
    let kept = heading.to_lowercase().chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c)).collect::<String>();
    kept.replace(' ', "-")
}

/// Whether a path, with its `..`, lies outside of the book.
fn out_of_docs(path: &Path) -> bool {
    let mut folders = vec![];
    for part in path.iter() {
        if part != ".." {
            folders.push(part);
        } else if folders.pop().is_none() {
            return true;
        }
    }
    folders.first().is_none_or(|first| *first != "docs")
}

#[test]
fn every_setting_of_a_training_is_explained() -> Outcome {
    let output = Command::new(env!("CARGO_BIN_EXE_zoo")).args(["train", "stock-lstm", "--print-config"]).output()?;
    let printed = String::from_utf8(output.stdout)?;
    let table = printed.split("[train]\n").nth(1).ok_or("no table [train]")?.split("\n[").next().unwrap_or_default();
    let keys: Vec<&str> = table.lines().filter_map(|line| Some(line.split_once(" = ")?.0)).collect();
    let chapter = std::fs::read_to_string(root().join("docs/configuration.md"))?;
    assert!(keys.len() > 25, "{printed}");
    for key in keys {
        assert!(chapter.contains(&format!("| `train.{key}` |")), "docs/configuration.md lacks train.{key}");
    }
    Ok(())
}

#[test]
fn links_lead_somewhere() -> Outcome {
    let link = regex::Regex::new(r"\]\(([^)#\s]*)(?:#([^)\s]*))?\)")?;
    let mut wrong = String::new();
    for (path, text) in documents()? {
        let text: Vec<&str> = text.split("```").step_by(2).collect();
        for found in link.captures_iter(&text.concat()) {
            let (file, wanted) = (&found[1], found.get(2).map(|m| m.as_str()));
            if file.starts_with("http") {
                continue;
            }
            // The book is built of its folder alone.
            if path.starts_with("docs") && path.parent().is_some_and(|folder| out_of_docs(&folder.join(file))) {
                writeln!(wrong, "{}: {} leaves the book", path.display(), &found[0])?;
            }
            let from = root().join(path.parent().unwrap_or(Path::new("")));
            let to = if file.is_empty() { root().join(&path) } else { from.join(file) };
            let there = match wanted {
                Some(wanted) => std::fs::read_to_string(&to).is_ok_and(|t| {
                    t.lines().any(|l| l.starts_with('#') && anchor(l.trim_start_matches(['#', ' '])) == wanted)
                }),
                None => to.exists(),
            };
            if !there {
                writeln!(wrong, "{}: {}", path.display(), &found[0])?;
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
    Ok(())
}
