//! From the arguments of the process to its exit code.

use std::ffi::OsString;
use std::process::ExitCode;

use zoo_training::Error;

use crate::output;
use crate::program::Zoo;
use crate::ranks;
use crate::table::{VERBS, command};

impl Zoo {
    /// Does what the command line says: call it first in `main`, while no other thread runs.
    pub fn main(self) -> ExitCode {
        if std::env::var_os("CANDLE_NUM_THREADS").is_none() {
            // candle's own element-wise threads spin between operations and take the cores from rayon's, which run the
            // kernels and the matrix products.
            // SAFETY: the caller has started no other thread yet, as the documentation asks.
            unsafe { std::env::set_var("CANDLE_NUM_THREADS", "1") };
        }
        #[cfg(unix)]
        {
            // A file that may grow no further is an error to report, not a signal to die of. Failing only costs that.
            let flag = std::sync::Arc::default();
            let _ = signal_hook::flag::register(signal_hook::consts::SIGXFSZ, flag);
        }
        self.run(std::env::args_os())
    }

    /// Does what these arguments say, the program's own name first.
    fn run(&self, arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
        output::name_program(self.name, self.version.clone());
        if let Err(e) = self.check() {
            return output::fail(&e);
        }
        let arguments: Vec<OsString> = arguments.into_iter().collect();
        let verb = arguments.get(1).and_then(|named| VERBS.iter().map(|v| v.name).find(|name| named == name));
        let matches = match command(self).try_get_matches_from(arguments) {
            Ok(matches) => matches,
            Err(e) => return output::refuse_call(&e, verb),
        };
        // A wrong ZOO_SIMD is refused before any work.
        let level = zoo_kernels::cpu::simd::level();
        if let Err(e) = level.map_err(|e| Error::Usage(output::first_line(&e))) {
            return output::fail(&e.into());
        }
        let Some((name, matches)) = matches.subcommand() else { return ExitCode::from(2) };
        let Some(verb) = VERBS.iter().find(|v| v.name == name) else { return ExitCode::from(2) };
        output::word_keys_as_flags(verb.keys(self));
        start_threads();
        match (verb.run)(self, matches) {
            Ok(code) => code,
            Err(e) => output::fail(&e),
        }
    }
}

/// Starts rayon's threads: as many as the environment asks for, but no more than the machine can make use of.
fn start_threads() {
    const EACH: usize = 8;
    let available = std::thread::available_parallelism().map_or(1, usize::from);
    let cores = ranks::threads(available);
    let asked: Option<usize> = std::env::var("RAYON_NUM_THREADS").ok().and_then(|n| n.trim().parse().ok());
    let most = EACH * cores;
    // This thread takes part in rayon's work: kernels start without waking another. Failing only costs that.
    let mut pool = rayon::ThreadPoolBuilder::new().use_current_thread();
    if let Some(asked) = asked.filter(|n| *n > most) {
        output::remark(format!("RAYON_NUM_THREADS={asked}: {most} threads are used, {EACH} for each of {cores} cores"));
        pool = pool.num_threads(most);
    } else if asked.is_none() && cores < available {
        pool = pool.num_threads(cores);
    }
    let _ = pool.build_global();
}
