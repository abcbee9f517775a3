//! Processes that train one run together, and end in the same bytes however many there are.
//!
//! A step has `train.accumulate` micro-batches, each a pure function of its number. A process computes a contiguous share of them;
//! their gradients are added along one binary tree over micro-batch numbers (see [`tree`]), so that who computed what does not
//! show. Everything else of a run is done by every process on the same values: updates, guards, evaluations. The first process
//! alone writes and reports.

mod sum;
mod tree;

use std::cell::{Cell, RefCell};
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

use crate::{Error, Result};

pub use tree::Tree;

/// How the processes of a run exchange what they have. Every process makes the same calls in the same order.
pub trait Collective {
    /// The number of this process, from 0: its rank. The first one leads.
    fn rank(&self) -> usize;

    /// Processes in all.
    fn size(&self) -> usize;

    /// Where this process runs, for messages.
    fn place(&self) -> String {
        String::new()
    }

    /// What each process gives, of any length, to all of them, by rank.
    ///
    /// # Errors
    /// The engine's.
    fn gather(&self, own: &[u8]) -> Result<Vec<Vec<u8>>>;

    /// What the first process gives, to all of them; `bytes` of the others is replaced and has the right length.
    ///
    /// # Errors
    /// The engine's.
    fn broadcast(&self, bytes: &mut [u8]) -> Result<()>;

    /// To each process a part of `own`, one behind the other with these lengths; from each, one behind the other with the lengths
    /// `incoming`, into `into`.
    ///
    /// # Errors
    /// The engine's.
    fn exchange(&self, own: &[f32], outgoing: &[usize], into: &mut [f32], incoming: &[usize]) -> Result<()>;

    /// The parts of all processes, with these lengths, one behind the other into `all`.
    ///
    /// # Errors
    /// The engine's.
    fn join(&self, own: &[f32], all: &mut [f32], lengths: &[usize]) -> Result<()>;

    /// How long to wait for the others before the run is given up; by default for ever.
    fn set_timeout(&self, limit: Duration) {
        let _ = limit;
    }
}

/// One process.
pub struct Solo;

impl Collective for Solo {
    fn rank(&self) -> usize {
        0
    }

    fn size(&self) -> usize {
        1
    }

    fn gather(&self, own: &[u8]) -> Result<Vec<Vec<u8>>> {
        Ok(vec![own.to_vec()])
    }

    fn broadcast(&self, _: &mut [u8]) -> Result<()> {
        Ok(())
    }

    fn exchange(&self, own: &[f32], _: &[usize], into: &mut [f32], _: &[usize]) -> Result<()> {
        into.copy_from_slice(own);
        Ok(())
    }

    fn join(&self, own: &[f32], all: &mut [f32], _: &[usize]) -> Result<()> {
        all.copy_from_slice(own);
        Ok(())
    }
}

/// What an exchange of [`Ranks::agree`] begins with.
const FINE: u8 = 0;
const FAILED: u8 = 1;

/// The processes of a run, as one of them sees them. A process that fails says so at the next exchange, so that none waits for it.
pub struct Ranks {
    engine: Rc<dyn Collective>,
    /// Whether they have parted: there are no more exchanges.
    parted: Cell<bool>,
    /// Whether they did so because an exchange failed.
    broken: Cell<bool>,
    buffers: RefCell<sum::Buffers>,
}

impl Default for Ranks {
    fn default() -> Self {
        Self::new(Rc::new(Solo))
    }
}

impl Ranks {
    /// Over an engine.
    pub fn new(engine: Rc<dyn Collective>) -> Self {
        Self { engine, parted: Cell::new(false), broken: Cell::new(false), buffers: RefCell::default() }
    }

    /// The number of this process, from 0.
    pub fn rank(&self) -> usize {
        self.engine.rank()
    }

    /// Processes in all.
    pub fn size(&self) -> usize {
        self.engine.size()
    }

    /// Whether there are no others.
    pub fn is_alone(&self) -> bool {
        self.size() == 1
    }

    /// Whether this is the process that writes and reports.
    pub fn leads(&self) -> bool {
        self.rank() == 0
    }

    /// Which of `all` things a process does.
    pub fn share(&self, rank: usize, all: u64) -> Range<u64> {
        let (rank, size) = (rank as u64, self.size() as u64);
        rank * all / size..(rank + 1) * all / size
    }

    /// How long to wait for the others.
    pub(crate) fn set_timeout(&self, limit: Duration) {
        self.engine.set_timeout(limit);
    }

    /// What each process has, by rank, if all of them have something.
    ///
    /// # Errors
    /// This process's own; the first of the others that failed ([`Error::Peer`]); the engine's.
    pub fn agree(&self, own: Result<Vec<u8>>) -> Result<Vec<Vec<u8>>> {
        if self.is_alone() || self.parted.get() {
            return own.map(|own| vec![own]);
        }
        let message = match &own {
            Ok(bytes) => [&[FINE], bytes.as_slice()].concat(),
            Err(e) => {
                let (place, text) = (self.engine.place(), e.to_string());
                let place = if place.is_empty() { place } else { format!(" on {place}") };
                let line = format!("{place}: {}", text.lines().next().unwrap_or_default());
                [&[FAILED], line.as_bytes()].concat()
            }
        };
        self.parted.set(true);
        let all = self.engine.gather(&message).inspect_err(|_| self.broken.set(true))?;
        own?;
        for (rank, bytes) in all.iter().enumerate() {
            if bytes.first() != Some(&FINE) {
                let message = String::from_utf8_lossy(bytes.get(1..).unwrap_or_default()).into_owned();
                return Err(Error::Peer { rank, size: self.size(), message });
            }
        }
        self.parted.set(false);
        Ok(all.into_iter().map(|bytes| bytes[1..].to_vec()).collect())
    }

    /// Tells the others, at their next exchange, that this process failed; nothing if they know.
    pub fn abandon(&self, reason: &str) {
        let _ = self.agree(Err(Error::Run(reason.into())));
    }

    /// Whether an exchange failed: the others are not where this process is, and will not come to an end with it.
    pub fn is_broken(&self) -> bool {
        self.broken.get()
    }

    /// The result of an exchange, after whose failure there are no others.
    fn whole<R>(&self, result: Result<R>) -> Result<R> {
        result.inspect_err(|_| {
            self.parted.set(true);
            self.broken.set(true);
        })
    }

    /// Whether one of them says so.
    ///
    /// # Errors
    /// As [`Ranks::agree`].
    pub fn any(&self, own: bool) -> Result<bool> {
        Ok(self.agree(Ok(vec![u8::from(own)]))?.iter().any(|bytes| bytes.first() == Some(&1)))
    }

    /// The result of something that all did, or the failure of one of them.
    ///
    /// # Errors
    /// As [`Ranks::agree`].
    pub fn settle<R>(&self, own: Result<R>) -> Result<R> {
        match own {
            Ok(value) => self.agree(Ok(vec![])).map(|_| value),
            Err(e) => {
                self.abandon(&e.to_string());
                Err(e)
            }
        }
    }

    /// What the first process has, to all; `own` is asked there alone.
    ///
    /// # Errors
    /// As [`Ranks::agree`].
    pub fn from_first(&self, own: impl FnOnce() -> Result<Vec<u8>>) -> Result<Vec<u8>> {
        let own = if self.leads() { own()? } else { vec![] };
        if self.is_alone() {
            return Ok(own);
        }
        let lengths = self.agree(Ok((own.len() as u64).to_le_bytes().to_vec()))?;
        let length = lengths.first().and_then(|l| Some(u64::from_le_bytes(l.as_slice().try_into().ok()?)));
        let mut bytes = own;
        bytes.resize(length.unwrap_or_default() as usize, 0);
        self.whole(self.engine.broadcast(&mut bytes))?;
        Ok(bytes)
    }

    /// Shares out what [`over_batches`] goes over, for as long as the result is kept.
    pub(crate) fn sharing(self: &Rc<Self>) -> Sharing {
        Sharing(CURRENT.replace(Some(self.clone())))
    }

    /// Adds what all processes have of `leaves` leaves along the tree: `own` are the nodes of this process's share, each of `n`
    /// values, and become the one sum.
    ///
    /// # Errors
    /// The engine's.
    pub fn sum(&self, leaves: u64, n: usize, own: Vec<Vec<f32>>) -> Result<Vec<f32>> {
        let shares: Vec<Range<u64>> = (0..self.size()).map(|rank| self.share(rank, leaves)).collect();
        self.whole(sum::ordered(&*self.engine, &shares, n, own, &mut self.buffers.borrow_mut()))
    }
}

thread_local! {
    /// The processes that the batches of an evaluation are shared out over.
    static CURRENT: RefCell<Option<Rc<Ranks>>> = const { RefCell::new(None) };
}

/// An evaluation that is shared out; what was before it comes back at its end.
pub(crate) struct Sharing(Option<Rc<Ranks>>);

impl Drop for Sharing {
    fn drop(&mut self) {
        CURRENT.set(self.0.take());
    }
}

/// What `of` says of each of `n` batches, in their order. In [`Task::validate`](crate::Task::validate) the batches are shared out
/// over the processes that train together, and all of them get all: what is then added up in this order has the same bits however
/// many there are.
///
/// # Errors
/// Those of `of`, here or in another process.
pub fn over_batches(
    n: usize,
    mut of: impl FnMut(usize) -> candle_core::Result<Vec<f64>>,
) -> candle_core::Result<Vec<Vec<f64>>> {
    let Some(ranks) = CURRENT.with_borrow(Clone::clone).filter(|ranks| !ranks.is_alone()) else {
        return (0..n).map(of).collect();
    };
    let mut own = vec![];
    for i in ranks.share(ranks.rank(), n as u64) {
        let values = of(i as usize)?;
        own.extend((values.len() as u64).to_le_bytes());
        values.iter().for_each(|v| own.extend(v.to_le_bytes()));
    }
    let all = ranks.agree(Ok(own)).map_err(candle_core::Error::wrap)?.concat();
    let (numbers, _) = all.as_chunks();
    let (mut rest, mut found) = (numbers, vec![]);
    while let Some((length, more)) = rest.split_first() {
        let (values, after) = more.split_at(u64::from_le_bytes(*length) as usize);
        found.push(values.iter().map(|bytes| f64::from_le_bytes(*bytes)).collect());
        rest = after;
    }
    Ok(found)
}
