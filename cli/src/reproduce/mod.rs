//! `zoo reproduce`: a founding document's experiment, its figures beside ours.

mod gradient_death;
mod planted_signal;
mod simulated_eeg;

use std::process::ExitCode;

use zoo_training::Error;

use crate::args::ReproduceArgs;
use crate::output::note;

/// A reproduction by its name.
type Reproduction = (&'static str, fn(&ReproduceArgs) -> anyhow::Result<ExitCode>);
/// Every reproduction there is.
const ALL: [Reproduction; 3] = [
    ("gradient-death", gradient_death::run),
    ("planted-signal", planted_signal::run),
    ("simulated-eeg", simulated_eeg::run),
];
/// Exit code of a run that a signal stopped for good.
const STOPPED: u8 = 130;

pub(crate) fn run(args: &ReproduceArgs) -> anyhow::Result<ExitCode> {
    match ALL.iter().find(|(name, _)| args.name == *name) {
        Some((_, run)) => run(args),
        None => {
            let names = ALL.map(|(name, _)| name).join(", ");
            Err(Error::Usage(format!("there is nothing to reproduce named {}: {names}", args.name)).into())
        }
    }
}

fn interrupted() -> ExitCode {
    note("interrupted: nothing was written");
    ExitCode::from(STOPPED)
}
