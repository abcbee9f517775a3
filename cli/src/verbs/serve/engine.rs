//! The thread that computes: what is served, and the orders that reach it.
//!
//! One thread has all models, the main one, on which the kernels start without waking another; the connections are another thread's.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use anyhow::bail;
use serde_json::{Map, Value};
use tokio::sync::mpsc::UnboundedSender;
use zoo_layers::{End, Sampling};
use zoo_training::Flag;

use super::Arguments;
use super::front::Shared;
use crate::output::{message, remark, warn};

/// What is known of a model that is served.
#[derive(Clone, Debug)]
pub(super) struct About {
    /// The name that requests give.
    pub(super) id: String,
    /// The model's name.
    pub(super) model: &'static str,
    pub(super) summary: &'static str,
    pub(super) checkpoint: PathBuf,
    pub(super) parameters: usize,
    /// Seconds since 1970 at which it was read.
    pub(super) created: u64,
    pub(super) does: Does,
}

/// What requests it answers.
#[derive(Clone, Debug)]
pub(super) enum Does {
    /// It writes text, seeing so many tokens, and may be one for conversations.
    Write { context: usize, chat: bool },
    /// It predicts from files, with these options.
    Predict { options: Vec<Flag> },
}

/// A request's work.
pub(super) struct Job {
    /// The number of what is asked.
    pub(super) served: usize,
    /// Which of its texts.
    pub(super) index: usize,
    pub(super) ask: Ask,
    /// Takes the answers. It is closed when the client has gone.
    pub(super) answer: UnboundedSender<(usize, Answer)>,
    /// When there is to be an answer.
    pub(super) until: Instant,
    /// The room that it takes among all.
    pub(super) _room: Arc<Room>,
}

/// The room of a request among all that wait or are being answered, and of its body.
pub(super) struct Room {
    pub(super) load: Arc<Load>,
    pub(super) bytes: usize,
}

/// Requests that wait or are being answered, and the bytes of their bodies.
#[derive(Default)]
pub(super) struct Load {
    pub(super) requests: AtomicUsize,
    pub(super) bytes: AtomicUsize,
}

impl Drop for Room {
    fn drop(&mut self) {
        self.load.requests.fetch_sub(1, Ordering::Relaxed);
        self.load.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

pub(super) enum Ask {
    Text { prompt: Arc<Prompt>, sampling: Box<Sampling> },
    Input { bytes: Vec<u8>, ending: String, options: Vec<(String, String)>, picture: bool },
}

pub(super) enum Prompt {
    Text(String),
    /// Roles and texts.
    Messages(Vec<(String, String)>),
}

#[derive(Debug)]
pub(super) enum Answer {
    /// The prompt was read, and has so many tokens.
    Begun(usize),
    Piece(String),
    /// The text has ended, after so many tokens.
    Ended(End, usize),
    Predicted(Box<Predicted>),
    Refused(Refusal),
}

/// A prediction, ready to be sent.
#[derive(Debug, Default)]
pub(super) struct Predicted {
    pub(super) summary: Map<String, Value>,
    pub(super) remarks: Vec<String>,
    pub(super) header: Vec<String>,
    pub(super) rows: Vec<Vec<String>>,
    /// As SVG, if it was asked for.
    pub(super) picture: Option<String>,
}

/// Why a request is not answered: a status of HTTP, and a line.
#[derive(Clone, Debug)]
pub(super) struct Refusal {
    pub(super) status: u16,
    pub(super) message: String,
}

impl Refusal {
    pub(super) fn new(status: u16, message: impl Into<String>) -> Self {
        Self { status, message: message.into() }
    }

    /// Of an answer that is not there in time.
    pub(super) fn late() -> Self {
        Self::new(504, "the time for an answer has passed (--timeout)")
    }

    /// Of a request that cannot be read.
    pub(super) fn bad(message: impl Into<String>) -> Self {
        Self::new(400, message)
    }
}

impl Job {
    /// Answers; whether anybody listens.
    pub(super) fn answer(&self, answer: Answer) -> bool {
        self.answer.send((self.index, answer)).is_ok()
    }

    /// Whether it is to be done: somebody listens, and its time has not passed.
    pub(super) fn is_wanted(&self) -> bool {
        if !self.answer.is_closed() && Instant::now() >= self.until {
            self.answer(Answer::Refused(Refusal::late()));
            return false;
        }
        !self.answer.is_closed()
    }
}

/// A loaded model at work.
pub(super) trait Served {
    fn about(&self) -> &About;

    /// Jobs that have not begun.
    fn waiting(&mut self) -> &mut Waiting;

    /// Does the next piece of the work at hand.
    fn work(&mut self, shared: &Shared);

    fn has_work(&self) -> bool;
}

/// Jobs that wait, the oldest first.
#[derive(Default)]
pub(super) struct Waiting(pub(super) VecDeque<Job>);

impl Waiting {
    /// The next that is still wanted.
    pub(super) fn next(&mut self) -> Option<Job> {
        std::iter::from_fn(|| self.0.pop_front()).find(Job::is_wanted)
    }
}

/// Reads a checkpoint.
pub(super) type Open<'a> = Box<dyn Fn() -> anyhow::Result<Box<dyn Served>> + 'a>;

/// What reaches the thread that computes.
pub(super) enum Order {
    Job(Job),
    /// All checkpoints are to be read again.
    Reload,
}

/// A loaded model, and the time that it was given, by which models with work get equal shares of it.
struct Turn {
    served: Box<dyn Served>,
    time: Duration,
}

/// A checkpoint that is served.
pub(super) struct Place<'a> {
    open: Open<'a>,
    now: Turn,
    /// Older states of it that have work left.
    before: Vec<Turn>,
}

impl<'a> Place<'a> {
    pub(super) fn new(open: Open<'a>) -> anyhow::Result<Self> {
        Ok(Self { now: Turn { served: open()?, time: Duration::ZERO }, open, before: vec![] })
    }

    pub(super) fn about(&self) -> &About {
        self.now.served.about()
    }

    /// Takes a job at a moment when models with work had this time; one that had none does not catch up.
    fn take(&mut self, job: Job, time: Duration) {
        if !self.now.served.has_work() {
            self.now.time = self.now.time.max(time);
        }
        self.now.served.waiting().0.push_back(job);
    }

    /// Reads the checkpoint again. What has begun goes on with what was there; if it cannot be read, everything does.
    fn reload(&mut self) -> bool {
        let same = |new: &dyn Served| match (new.about().model, self.about().model) {
            (new, now) if new == now => Ok(()),
            (new, now) => bail!("it has weights of {new} now, and had those of {now}: start the server anew"),
        };
        match (self.open)().and_then(|new| same(&*new).map(|()| new)) {
            Ok(mut new) => {
                remark(format!("{}: read again", new.about().checkpoint.display()));
                new.waiting().0.append(&mut self.now.served.waiting().0);
                let new = Turn { served: new, time: self.now.time };
                self.before.push(std::mem::replace(&mut self.now, new));
                true
            }
            Err(e) => {
                warn(format!("{}: not read again, the one before goes on: {}", self.about().id, message(&e)));
                false
            }
        }
    }
}

/// Works until there are no more orders and no more work.
pub(super) fn work(mut places: Vec<Place>, orders: &Receiver<Order>, shared: &Shared) {
    // The time that was given to the model that had got the least.
    let mut time = Duration::ZERO;
    loop {
        let busy = places.iter().any(|place| place.now.served.has_work() || !place.before.is_empty());
        let mut next = match busy {
            true => orders.try_recv().ok(),
            false => match orders.recv() {
                Ok(order) => Some(order),
                Err(_) => return,
            },
        };
        // What came while the last piece was at work is done together.
        while let Some(order) = next {
            match order {
                Order::Job(job) => places[job.served].take(job, time),
                Order::Reload => {
                    let good = places.iter_mut().map(Place::reload).filter(|good| *good).count();
                    shared.reloaded(places.iter().map(|place| place.about().clone()).collect(), good);
                }
            }
            next = orders.try_recv().ok();
        }
        let turns = places.iter_mut().flat_map(|place| place.before.iter_mut().chain([&mut place.now]));
        if let Some(turn) = turns.filter(|turn| turn.served.has_work()).min_by_key(|turn| turn.time) {
            time = turn.time;
            let started = Instant::now();
            turn.served.work(shared);
            turn.time += started.elapsed();
        }
        places.iter_mut().for_each(|place| place.before.retain(|turn| turn.served.has_work()));
    }
}

/// The number of an own name among several, from what they are called by.
pub(super) fn ids(arguments: &Arguments) -> anyhow::Result<Vec<String>> {
    let name = |path: &PathBuf| {
        let name = if path.is_dir() {
            path.canonicalize()?.file_name().map(Into::into)
        } else {
            path.file_stem().map(PathBuf::from)
        };
        anyhow::Ok(name.unwrap_or_default().to_string_lossy().into_owned())
    };
    let names = arguments.checkpoints.iter().map(name).collect::<anyhow::Result<Vec<_>>>()?;
    if let Some(twice) = names.iter().enumerate().find(|(i, name)| names[..*i].contains(name)) {
        let said =
            format!("two checkpoints are called {}: requests tell them apart by their names; rename one", twice.1);
        return Err(zoo_training::Error::Usage(said).into());
    }
    Ok(names)
}
