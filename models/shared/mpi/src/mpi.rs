//! The processes of an MPI job.

use std::cell::Cell;
use std::ffi::c_int;
use std::marker::PhantomData;
use std::path::{Path, PathBuf};
use std::ptr::null_mut;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use zoo_training::{Collective, Error, Result};

use crate::Launch;
use crate::library::{Abi, Found, load, text};

/// How long to wait for all processes to come.
const START: Duration = Duration::from_secs(300);
/// How often the watch looks.
const LOOK: Duration = Duration::from_millis(200);

/// Since when this process waits in MPI, and how long it may; nothing while it does something of its own.
#[derive(Default)]
struct Waiting(Mutex<Option<(Instant, Duration)>>);

impl Waiting {
    fn set(&self, waiting: Option<(Instant, Duration)>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = waiting;
    }

    /// The limit, if it is over.
    fn overdue(&self) -> Option<Duration> {
        let (since, limit) = (*self.0.lock().unwrap_or_else(PoisonError::into_inner))?;
        (since.elapsed() > limit).then_some(limit)
    }
}

/// The processes that a launcher started, over the MPI that it belongs to. All calls are made by the thread that joined.
pub struct Mpi {
    found: Found,
    rank: usize,
    size: usize,
    waiting: Arc<Waiting>,
    /// How long the others may take; 0 for as long as they like.
    limit: Cell<Duration>,
    is_finished: Cell<bool>,
    /// MPI is initialised for the thread that did it.
    _thread: PhantomData<*const ()>,
}

impl Mpi {
    /// Joins the other processes of a launch. `silent` is called, on a thread of its own, when a process has not answered for the
    /// [limit](Collective::set_timeout): it ends this process.
    ///
    /// # Errors
    /// There is no MPI, it cannot be initialised, or it knows of another number of processes than the launcher: it is another MPI's.
    pub fn join(launch: &Launch, silent: impl Fn(Duration) + Send + 'static) -> Result<Self> {
        let found = load()?;
        let waiting = Arc::new(Waiting::default());
        let watched = Arc::downgrade(&waiting);
        std::thread::spawn(move || {
            while let Some(waiting) = watched.upgrade() {
                if let Some(limit) = waiting.overdue() {
                    silent(limit);
                }
                drop(waiting);
                std::thread::sleep(LOOK);
            }
        });
        // For one that does not come; until the run says more, others may have to be waited for.
        waiting.set(Some((Instant::now(), START)));
        let mut known = [0; 2];
        let Abi { world, errors_return, funneled, .. } = found.abi;
        let mut provided = 0;
        // SAFETY: no arguments are passed on, as MPI allows; no other thread calls MPI.
        found.check("MPI_Init_thread", unsafe {
            (found.functions.init)(null_mut(), null_mut(), funneled, &mut provided)
        })?;
        // SAFETY: MPI is initialised; the handles are this library's.
        unsafe {
            found.check("MPI_Comm_set_errhandler", (found.functions.set_errhandler)(world, errors_return))?;
            found.check("MPI_Comm_size", (found.functions.size)(world, &mut known[0]))?;
            found.check("MPI_Comm_rank", (found.functions.rank)(world, &mut known[1]))?;
        }
        let [size, rank] = known.map(|n| n.max(0) as usize);
        if size != launch.size {
            return Err(Error::Usage(format!(
                "{} processes were started, but {} ({}) knows of {size}: it is not the launcher's MPI (ZOO_MPI=PATH names the library)",
                launch.size,
                found.version,
                found.path.display()
            )));
        }
        waiting.set(None);
        let (limit, is_finished) = (Cell::new(Duration::ZERO), Cell::new(false));
        Ok(Self { found, rank, size, waiting, limit, is_finished, _thread: PhantomData })
    }

    /// Name, version and place of the library that would be used, without initialising it; `None` if there is none.
    pub fn find() -> Option<(String, PathBuf)> {
        load().ok().map(|found| (found.version, found.path))
    }

    /// Name and version of the library.
    pub fn version(&self) -> &str {
        &self.found.version
    }

    /// Where the library lies.
    pub fn path(&self) -> &Path {
        &self.found.path
    }

    /// Ends MPI, once all processes do: there are no exchanges afterwards. A process that exits without it has failed, and its
    /// launcher ends the others.
    pub fn finish(&self) {
        if self.is_finished.replace(true) {
            return;
        }
        // SAFETY: MPI is initialised, and nothing is under way: all calls wait for their end. An error changes nothing.
        let _ = self.wait(|| unsafe { (self.found.functions.finalize)() });
    }

    /// The sums of what all processes have, as MPI adds them up: in an order of its own. To compare with.
    ///
    /// # Errors
    /// MPI's.
    pub fn plain_sum(&self, values: &mut [f32]) -> Result<()> {
        self.check_open()?;
        let Abi { world, float, sum, .. } = self.found.abi;
        let own = values.to_vec();
        let Ok(n) = c_int::try_from(own.len()) else {
            return Err(Error::Run("more than 2^31 values to sum at once".into()));
        };
        let (from, to) = (own.as_ptr().cast(), values.as_mut_ptr().cast());
        // SAFETY: both have n values, and are not the same memory.
        let code = self.wait(|| unsafe { (self.found.functions.allreduce)(from, to, n, float, sum, world) });
        self.found.check("MPI_Allreduce", code)
    }

    /// The parts of all processes, with these lengths, one behind the other.
    fn put_together<V: Plain>(&self, own: &[V], all: &mut [V], lengths: &[usize]) -> Result<()> {
        let Abi { world, byte, .. } = self.found.abi;
        if lengths.len() != self.size || lengths[self.rank] != own.len() || lengths.iter().sum::<usize>() != all.len() {
            return Err(Error::Run("parts of processes whose lengths are not those that were announced".into()));
        }
        let (counts, places) = counted(lengths, size_of::<V>())?;
        // SAFETY: counts and places lie within `all`, whose length is the sum of its parts; this process's part is `own`. Any bytes
        // are a value.
        let code = self.wait(|| unsafe {
            let (to, sent) = (all.as_mut_ptr().cast(), counts[self.rank]);
            (self.found.functions.allgatherv)(
                own.as_ptr().cast(),
                sent,
                byte,
                to,
                counts.as_ptr(),
                places.as_ptr(),
                byte,
                world,
            )
        });
        self.found.check("MPI_Allgatherv", code)
    }

    /// Refuses calls behind the end.
    fn check_open(&self) -> Result<()> {
        match self.is_finished.get() {
            false => Ok(()),
            true => Err(Error::Run("an exchange between processes after the end of MPI".into())),
        }
    }

    /// Makes a call that waits for the others.
    fn wait(&self, call: impl FnOnce() -> c_int) -> c_int {
        let limit = self.limit.get();
        self.waiting.set((!limit.is_zero()).then(|| (Instant::now(), limit)));
        let result = call();
        self.waiting.set(None);
        result
    }
}

impl Found {
    fn check(&self, call: &str, code: c_int) -> Result<()> {
        if code == 0 {
            return Ok(());
        }
        // SAFETY: the buffer is longer than MPI_MAX_ERROR_STRING of every MPI.
        let what = text(|to, length| unsafe { (self.functions.error_string)(code, to, length) });
        Err(Error::Run(format!("{call} failed: {what} ({})", self.version)))
    }
}

/// Lengths in items of `bytes` as MPI counts them, and where each begins.
fn counted(lengths: &[usize], bytes: usize) -> Result<(Vec<c_int>, Vec<c_int>)> {
    let (mut counts, mut places, mut place) = (vec![], vec![], 0usize);
    for length in lengths {
        let number = |n: usize| {
            c_int::try_from(n * bytes)
                .map_err(|_| Error::Run("more than 2 GiB to exchange between processes at once".into()))
        };
        counts.push(number(*length)?);
        places.push(number(place)?);
        place += length;
    }
    Ok((counts, places))
}

const FLOAT: usize = size_of::<f32>();

/// Values that any bytes make one of.
trait Plain: Copy {}

impl Plain for u8 {}
impl Plain for f32 {}

impl Collective for Mpi {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.size
    }

    fn place(&self) -> String {
        // SAFETY: the buffer is longer than MPI_MAX_PROCESSOR_NAME of every MPI.
        text(|to, length| unsafe { (self.found.functions.processor_name)(to, length) })
    }

    fn gather(&self, own: &[u8]) -> Result<Vec<Vec<u8>>> {
        self.check_open()?;
        let Abi { world, byte, .. } = self.found.abi;
        let (mine, mut lengths) = ((own.len() as u64).to_le_bytes(), vec![0u8; 8 * self.size]);
        // SAFETY: eight bytes from each process, and room for those of all.
        let code = self.wait(|| unsafe {
            (self.found.functions.allgather)(mine.as_ptr().cast(), 8, byte, lengths.as_mut_ptr().cast(), 8, byte, world)
        });
        self.found.check("MPI_Allgather", code)?;
        let lengths: Vec<usize> =
            lengths.as_chunks().0.iter().map(|bytes| u64::from_le_bytes(*bytes) as usize).collect();
        let mut all = vec![0u8; lengths.iter().sum()];
        self.put_together(own, &mut all, &lengths)?;
        let mut rest = all.as_slice();
        Ok(lengths.iter().map(|n| rest.split_off(..*n).unwrap_or_default().to_vec()).collect())
    }

    fn broadcast(&self, bytes: &mut [u8]) -> Result<()> {
        const PIECE: usize = 1 << 28;
        self.check_open()?;
        let Abi { world, byte, .. } = self.found.abi;
        for piece in bytes.chunks_mut(PIECE) {
            let (to, length) = (piece.as_mut_ptr().cast(), piece.len() as c_int);
            // SAFETY: `piece` has that many bytes, the same number in all processes.
            let code = self.wait(|| unsafe { (self.found.functions.broadcast)(to, length, byte, 0, world) });
            self.found.check("MPI_Bcast", code)?;
        }
        Ok(())
    }

    fn exchange(&self, own: &[f32], outgoing: &[usize], into: &mut [f32], incoming: &[usize]) -> Result<()> {
        self.check_open()?;
        let Abi { world, byte, .. } = self.found.abi;
        let fits = |lengths: &[usize], n: usize| lengths.len() == self.size && lengths.iter().sum::<usize>() == n;
        if !(fits(outgoing, own.len()) && fits(incoming, into.len())) {
            return Err(Error::Run(
                "an exchange between processes whose parts are not those that were announced".into(),
            ));
        }
        let (sent, from) = counted(outgoing, FLOAT)?;
        let (received, to) = counted(incoming, FLOAT)?;
        // SAFETY: counts and places lie within `own` and `into`, whose lengths are the sums of their parts.
        let code = self.wait(|| unsafe {
            (self.found.functions.alltoallv)(
                own.as_ptr().cast(),
                sent.as_ptr(),
                from.as_ptr(),
                byte,
                into.as_mut_ptr().cast(),
                received.as_ptr(),
                to.as_ptr(),
                byte,
                world,
            )
        });
        self.found.check("MPI_Alltoallv", code)
    }

    fn join(&self, own: &[f32], all: &mut [f32], lengths: &[usize]) -> Result<()> {
        self.check_open()?;
        self.put_together(own, all, lengths)
    }

    fn set_timeout(&self, limit: Duration) {
        self.limit.set(limit);
    }
}
