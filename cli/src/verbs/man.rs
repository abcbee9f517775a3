//! `man`: manual pages.

use std::path::PathBuf;

use anyhow::Context;
use clap::{Args, Command};
use clap_mangen::Man;

use crate::arguments::Force;
use crate::output::print;

#[derive(Args)]
pub(crate) struct Arguments {
    /// The folder to write them into: one for the program, and one for each verb
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
    // Gives the verbs their full names and usage lines.
    command.build();
    let mut pages = vec![];
    collect(command, &mut pages);
    let pages: Vec<(PathBuf, Man)> =
        pages.into_iter().map(|page| (args.directory.join(page.get_filename()), page)).collect();
    std::fs::create_dir_all(&args.directory).with_context(|| args.directory.display().to_string())?;
    args.force.check(pages.iter().map(|(path, _)| path.as_path()))?;
    for (path, page) in &pages {
        let mut text = vec![];
        page.render(&mut text)?;
        text.extend_from_slice(EXIT.as_bytes());
        args.force.write(path, &text)?;
    }
    print(&format!("{}: {} pages", args.directory.display(), pages.len()));
    Ok(())
}

/// The pages of a command and of those below it.
fn collect(command: Command, pages: &mut Vec<Man>) {
    command.get_subcommands().for_each(|below| collect(below.clone(), pages));
    pages.push(Man::new(command));
}
