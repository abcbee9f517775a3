//! Signals and the exit codes that they lead to.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

/// Exit code of a run that a signal stopped and --resume continues.
pub(crate) const INTERRUPTED: u8 = 3;
/// Exit code of work that a signal stopped for good.
pub(crate) const STOPPED: u8 = 130;

/// A flag that the first SIGINT or SIGTERM sets; the second ends the process. SIGUSR1 sets it, too, however often it comes: what
/// starts many processes passes it on and leaves them the time to save, which it does not with the others.
pub(crate) fn stop_flag() -> anyhow::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        // In this order: the second signal finds the flag set.
        flag::register_conditional_shutdown(signal, 128 + signal, stop.clone())?;
        flag::register(signal, stop.clone())?;
    }
    #[cfg(unix)]
    flag::register(signal_hook::consts::SIGUSR1, stop.clone())?;
    Ok(stop)
}
