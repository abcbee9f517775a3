//! From the arguments of the process to its exit code.

use std::ffi::OsString;
use std::process::ExitCode;

use zoo_training::Error;

use crate::output;
use crate::program::Zoo;
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
        // The library for MATLAB's files panics on damaged ones; what it says is caught and said in one line.
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !info.location().is_some_and(|l| l.file().contains("matrw")) {
                usual(info);
            }
        }));
        // This thread takes part in rayon's work: kernels start without waking another. Failing only costs that.
        let _ = rayon::ThreadPoolBuilder::new().use_current_thread().build_global();
        self.run(std::env::args_os())
    }

    /// Does what these arguments say, the program's own name first.
    fn run(&self, arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
        output::name_program(self.name);
        if let Err(e) = self.check() {
            return output::fail(&e);
        }
        let matches = match command(self).try_get_matches_from(arguments) {
            Ok(matches) => matches,
            Err(e) => return output::refuse_call(&e),
        };
        // A wrong ZOO_SIMD is refused before any work.
        let level = zoo_kernels::cpu::simd::level();
        if let Err(e) = level.map_err(|e| Error::Usage(output::first_line(&e))) {
            return output::fail(&e.into());
        }
        let Some((name, matches)) = matches.subcommand() else { return ExitCode::from(2) };
        let Some(verb) = VERBS.iter().find(|v| v.name == name) else { return ExitCode::from(2) };
        output::word_keys_as_flags(verb.keys(self));
        match (verb.run)(self, matches) {
            Ok(code) => code,
            Err(e) => output::fail(&e),
        }
    }
}
