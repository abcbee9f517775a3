//! `completions`: a script for a shell.

use clap::{Args, Command};
use clap_complete::Shell;

use crate::output::{print, program};

#[derive(Args)]
pub(crate) struct Arguments {
    /// The shell to complete in
    shell: Shell,
}

pub(crate) fn run(args: &Arguments, mut command: Command) {
    let mut script = vec![];
    clap_complete::generate(args.shell, &mut command, program(), &mut script);
    print(&String::from_utf8_lossy(&script));
}
