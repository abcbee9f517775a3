//! Many processes that train one run: those that an MPI launcher started.

use std::process::ExitCode;
use std::rc::Rc;
use std::time::Duration;

use zoo_mpi::{Launch, Mpi};
use zoo_training::{Error, Ranks};

use crate::output::{be_silent, fail, message, note, program};
use crate::signals::hear_user_signal;

/// What a follower leaves to the first process to say it itself.
const GRACE: Duration = Duration::from_secs(2);

/// Threads for this process, of those that it may use.
pub(crate) fn threads(available: usize) -> usize {
    // A launcher may have bound this process to some of the cores already.
    let cores = || sysinfo::System::physical_core_count().unwrap_or(available).max(available);
    Launch::of_this_process().map_or(available, |launch| launch.threads(cores(), available))
}

/// The MPI that runs in many processes would use, in words.
pub(crate) fn mpi() -> Option<String> {
    Mpi::find().map(|(version, path)| format!("{version} ({})", path.display()))
}

/// The device of this process among so many of its node.
pub(crate) fn own_device(devices: usize) -> usize {
    Launch::of_this_process().map_or(0, |launch| launch.local_rank % devices)
}

/// What the processes exchange by.
pub(crate) type Engine = Mpi;

/// Does `work` with the processes of this launch, or alone. The first one speaks for all.
pub(crate) fn together(work: impl FnOnce(&Rc<Ranks>) -> anyhow::Result<ExitCode>) -> anyhow::Result<ExitCode> {
    match Launch::of_this_process() {
        Some(launch) => launched(&launch, |ranks, _| work(ranks)),
        None => work(&Rc::default()),
    }
}

/// Does `work` with the processes of this launch, which have to be several.
pub(crate) fn among_several(
    work: impl FnOnce(&Rc<Ranks>, &Engine) -> anyhow::Result<ExitCode>,
) -> anyhow::Result<ExitCode> {
    match Launch::of_this_process() {
        Some(launch) => launched(&launch, work),
        None => Err(Error::Usage("--ranks: start it as many processes, as in mpirun -n 2".into()).into()),
    }
}

fn launched(
    launch: &Launch,
    work: impl FnOnce(&Rc<Ranks>, &Engine) -> anyhow::Result<ExitCode>,
) -> anyhow::Result<ExitCode> {
    // It may come while the processes find each other.
    hear_user_signal()?;
    let leads = launch.rank == 0;
    let mpi = Mpi::join(launch, move |limit| {
        if !leads {
            std::thread::sleep(GRACE);
        }
        let seconds = limit.as_secs();
        eprintln!(
            "{}: error: another process of the run has not answered for {seconds} s (train.rank_timeout): it can be resumed from \
             its last checkpoint",
            program()
        );
        std::process::exit(1);
    })?;
    // What went wrong until here, each says itself.
    if !leads {
        be_silent();
    }
    let mpi = Rc::new(mpi);
    let ranks = Rc::new(Ranks::new(mpi.clone()));
    note(&format!("{} processes by {}, {} threads each", launch.size, mpi.version(), rayon::current_num_threads()));
    // All come to one last exchange, whatever became of their work.
    let result = match work(&ranks, &mpi) {
        Ok(code) => ranks.agree(Ok(vec![])).map_or_else(|e| fail(&e.into()), |_| code),
        Err(e) => {
            // Before the others know, whose end may be this one's, too.
            let code = fail(&e);
            ranks.abandon(&message(&e));
            code
        }
    };
    // After a failed exchange the others do not come along.
    if ranks.is_broken() {
        std::process::exit(1);
    }
    mpi.finish();
    Ok(result)
}
