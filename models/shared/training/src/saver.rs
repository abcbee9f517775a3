use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread::{Scope, ScopedJoinHandle};

use candle_core::Tensor;

use crate::run::Snapshot;
use crate::{Error, Result, RunDirectory};

enum Job {
    Best {
        step: u64,
        weights: Vec<(String, Tensor)>,
        metadata: BTreeMap<String, String>,
        best: bool,
    },
    Checkpoint(Box<Snapshot>),
    /// Answer when everything before is done.
    Wait(Sender<()>),
}

/// Writes to a run directory on a thread of its own, in order: a disk that has to be waited for does not hold up
/// training. One write is under way at a time; the next waits for it.
pub(crate) struct Saver<'scope> {
    jobs: SyncSender<Job>,
    worker: ScopedJoinHandle<'scope, Result<()>>,
    done: Receiver<u64>,
}

impl<'scope> Saver<'scope> {
    pub(crate) fn new<'env>(
        scope: &'scope Scope<'scope, 'env>,
        run: &'env RunDirectory,
        keep: usize,
        every: u64,
    ) -> Self {
        let (jobs, waiting) = sync_channel(0);
        let (finished, done) = channel();
        let worker = scope.spawn(move || -> Result<()> {
            for job in waiting {
                match job {
                    Job::Best { step, weights, metadata, best } => run.save_best(step, &weights, &metadata, best)?,
                    Job::Checkpoint(snapshot) => {
                        run.save(&snapshot, keep, every)?;
                        // The run may have ended, and nobody listens.
                        let _ = finished.send(snapshot.state.step);
                    }
                    Job::Wait(answer) => {
                        let _ = answer.send(());
                    }
                }
            }
            Ok(())
        });
        Self { jobs, worker, done }
    }

    /// Weights of a good evaluation; the tensors must be copies, or [`Saver::wait`] is to follow.
    pub(crate) fn best(
        &self,
        step: u64,
        weights: Vec<(String, Tensor)>,
        metadata: BTreeMap<String, String>,
        best: bool,
    ) -> Result<()> {
        self.send(Job::Best { step, weights, metadata, best })
    }

    /// A checkpoint; the tensors must be copies, or [`Saver::wait`] is to follow.
    pub(crate) fn checkpoint(&self, snapshot: Snapshot) -> Result<()> {
        self.send(Job::Checkpoint(Box::new(snapshot)))
    }

    /// Returns when all that was asked for is on disk.
    pub(crate) fn wait(&self) -> Result<()> {
        let (sender, receiver) = channel();
        self.send(Job::Wait(sender))?;
        receiver.recv().map_err(|_| stopped())
    }

    /// The step of a checkpoint that came to be on disk since the last call, if any.
    pub(crate) fn saved(&self) -> Option<u64> {
        self.done.try_recv().ok()
    }

    fn send(&self, job: Job) -> Result<()> {
        self.jobs.send(job).map_err(|_| stopped())
    }

    /// Waits for the last write; the error of the first that failed. The steps of checkpoints not asked for yet.
    pub(crate) fn finish(self) -> Result<Vec<u64>> {
        drop(self.jobs);
        match self.worker.join() {
            Ok(result) => result.map(|()| self.done.try_iter().collect()),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
}

/// Never seen by the user: [`Saver::finish`] gives the reason.
fn stopped() -> Error {
    Error::Run("saving stopped".into())
}
