//! Signals and the exit codes that they lead to.

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

/// Exit code of a run that a signal stopped and --resume continues.
pub(crate) const INTERRUPTED: u8 = 3;
/// Exit code of work that a signal stopped for good.
pub(crate) const STOPPED: u8 = 130;

/// A flag that the first SIGINT or SIGTERM sets; the second ends the process. SIGUSR1 sets it, too, however often it comes: what
/// starts many processes passes it on and leaves them the time to save, which it does not with the others.
pub(crate) fn stop_flag() -> anyhow::Result<Arc<AtomicBool>> {
    let stop = flag();
    for signal in [SIGINT, SIGTERM] {
        // In this order: the second signal finds the flag set.
        flag::register_conditional_shutdown(signal, 128 + signal, stop.clone())?;
        flag::register(signal, stop.clone())?;
    }
    #[cfg(unix)]
    hear_user_signal()?;
    Ok(stop)
}

/// The one flag of the process.
fn flag() -> Arc<AtomicBool> {
    static STOP: OnceLock<Arc<AtomicBool>> = OnceLock::new();
    STOP.get_or_init(Arc::default).clone()
}

/// Has SIGUSR1 set the flag of [`stop_flag`] from now on, which may be asked for later.
#[cfg(unix)]
pub(crate) fn hear_user_signal() -> anyhow::Result<()> {
    flag::register(signal_hook::consts::SIGUSR1, flag())?;
    Ok(())
}
