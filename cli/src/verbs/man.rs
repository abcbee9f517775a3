//! `man`: manual pages.

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{Args, Command};
use clap_mangen::Man;

use crate::arguments::Force;
use crate::output::{print, program};

#[derive(Args)]
pub(crate) struct Arguments {
    /// The folder to write them into: one of the program, and one a verb
    directory: PathBuf,
    #[command(flatten)]
    force: Force,
}

/// What follows on every page, as roff.
const EXIT: &str = ".SH \"EXIT STATUS\"
.TP
0
Done.
.TP
1
The work failed, or a difference was found.
.TP
2
The call was wrong.
.TP
3
Stopped by a signal, and resumable.
.TP
130
Stopped by a signal, and not resumable.
";

pub(crate) fn run(args: &Arguments, mut command: Command) -> anyhow::Result<()> {
    // Verbs learn their usage lines.
    command.build();
    let mut pages = vec![(format!("{}.1", program()), command.clone())];
    for verb in command.get_subcommands() {
        let name = format!("{}-{}", program(), verb.get_name());
        pages.push((format!("{name}.1"), verb.clone().name(name)));
    }
    let pages: Vec<(PathBuf, Command)> =
        pages.into_iter().map(|(file, command)| (args.directory.join(file), command)).collect();
    std::fs::create_dir_all(&args.directory).with_context(|| args.directory.display().to_string())?;
    args.force.check(pages.iter().map(|(path, _)| Path::new(path)))?;
    let count = pages.len();
    for (path, command) in pages {
        let mut page = vec![];
        Man::new(command).render(&mut page)?;
        page.extend_from_slice(EXIT.as_bytes());
        args.force.write(&path, &page)?;
    }
    print(&format!("{}: {count} pages", args.directory.display()));
    Ok(())
}
