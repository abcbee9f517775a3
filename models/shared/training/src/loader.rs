use std::ops::Range;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::Scope;

use candle_core::Error;
use rayon::ThreadPoolBuilder;
use zoo_layers::random::{Purpose, Stream};

use crate::{Split, Task};

/// Which samples each micro-step takes: every epoch in a random order of its own, decided by the seed alone. There is
/// no cursor to save: a micro-step's samples are a function of its number.
#[derive(Clone, Debug)]
pub struct Batches {
    samples: usize,
    batch_size: usize,
    seed: u64,
    /// The epoch whose order is at hand.
    epoch: Option<u64>,
    /// Of many samples, the micro-step's alone.
    order: Vec<usize>,
}

/// Up to so many samples, the order of an epoch is a shuffled list (32 MiB at most).
const LISTED: usize = 1 << 22;

/// An order of 0..n of which each place is computed by itself: a Feistel network (Luby and Rackoff 1988) over the next power of four, whose
/// numbers from n on are led through it again (Black and Rogaway 2002).
struct Permutation {
    n: usize,
    /// Bits of each half of a number.
    bits: u32,
    stream: Stream,
}

impl Permutation {
    fn new(n: usize, stream: Stream) -> Self {
        Self { n, bits: (usize::BITS - n.saturating_sub(1).leading_zeros()).div_ceil(2).max(1), stream }
    }

    /// What stands at `place`, which is below n.
    fn at(&self, place: usize) -> usize {
        const ROUNDS: u64 = 8;
        let mask = (1u64 << self.bits) - 1;
        let mut number = place as u64;
        loop {
            let (mut left, mut right) = (number >> self.bits, number & mask);
            for round in 0..ROUNDS {
                let word = u64::from(self.stream.block(ROUNDS * right + round)[0]);
                (left, right) = (right, left ^ (word & mask));
            }
            number = left << self.bits | right;
            if number < self.n as u64 {
                return number as usize;
            }
        }
    }
}

impl Batches {
    /// Batches of `batch_size` (the last of an epoch may be smaller) over `samples`, both at least 1.
    pub fn new(samples: usize, batch_size: usize, seed: u64) -> Self {
        Self { samples, batch_size, seed, epoch: None, order: vec![] }
    }

    /// Micro-steps of an epoch.
    pub fn per_epoch(&self) -> u64 {
        self.samples.div_ceil(self.batch_size) as u64
    }

    /// How many samples there are.
    pub fn samples(&self) -> usize {
        self.samples
    }

    /// How many samples micro-step `number` has: the last one of an epoch may have fewer.
    pub(crate) fn size(&self, number: u64) -> usize {
        let first = (number % self.per_epoch()) as usize * self.batch_size;
        self.samples.min(first + self.batch_size) - first
    }

    /// The samples of micro-step `number`, from 0.
    pub fn at(&mut self, number: u64) -> &[usize] {
        let (epoch, within) = (number / self.per_epoch(), (number % self.per_epoch()) as usize);
        let first = within * self.batch_size;
        let places = first..self.samples.min(first + self.batch_size);
        if self.samples > LISTED {
            let all = Permutation::new(self.samples, Stream::new(self.seed, Purpose::Shuffle, 0, epoch));
            self.order.clear();
            self.order.extend(places.map(|place| all.at(place)));
            return &self.order;
        }
        if self.epoch != Some(epoch) {
            self.order = (0..self.samples).collect();
            Stream::new(self.seed, Purpose::Shuffle, 0, epoch).shuffle(&mut self.order);
            self.epoch = Some(epoch);
        }
        &self.order[places]
    }
}

/// The numbers of the micro-batches that a process computes: the same share of each step's.
#[derive(Clone, Debug)]
pub(crate) struct Numbers {
    pub(crate) share: Range<u64>,
    /// Micro-batches of a step.
    pub(crate) step: u64,
}

impl Numbers {
    /// The one after `number`, which is one of them.
    fn next(&self, number: u64) -> u64 {
        let within = number % self.step;
        match within + 1 < self.share.end {
            true => number + 1,
            false => number - within + self.step + self.share.start,
        }
    }
}

type Numbered<T> = (u64, candle_core::Result<<T as Task>::Batch>);

/// Training batches by number, prepared ahead by threads of its own if `ahead` is not 0. The order never depends on it.
pub(crate) struct Loader<'scope, 'env, T: Task> {
    scope: &'scope Scope<'scope, 'env>,
    task: &'env T,
    batches: Batches,
    numbers: Numbers,
    ahead: usize,
    prepared: Option<Receiver<Numbered<T>>>,
}

impl<'scope, 'env, T: Task> Loader<'scope, 'env, T> {
    pub(crate) fn new(
        scope: &'scope Scope<'scope, 'env>,
        task: &'env T,
        batches: Batches,
        numbers: Numbers,
        ahead: usize,
    ) -> Loader<'scope, 'env, T> {
        Self { scope, task, batches, numbers, ahead, prepared: None }
    }

    /// Micro-batch `number`; asking in the order of the numbers is fast.
    pub(crate) fn get(&mut self, number: u64) -> candle_core::Result<T::Batch> {
        if self.ahead == 0 {
            return self.task.batch(Split::Train, self.batches.at(number));
        }
        if let Some(Ok((prepared, batch))) = self.prepared.as_ref().map(Receiver::recv)
            && prepared == number
        {
            return batch;
        }
        // The first call, or a jump: the old thread ends when its receiver is gone.
        let (sender, receiver) = sync_channel(self.ahead);
        let (task, mut batches, numbers) = (self.task, self.batches.clone(), self.numbers.clone());
        // A pool of its own: in the caller's, a batch would wait for the caller, who waits for the batch.
        let pool = ThreadPoolBuilder::new().num_threads(rayon::current_num_threads()).build().map_err(Error::wrap)?;
        self.scope.spawn(move || {
            pool.install(|| {
                let mut next = numbers.next(number);
                while sender.send((next, task.batch(Split::Train, batches.at(next)))).is_ok() {
                    next = numbers.next(next);
                }
            });
        });
        self.prepared = Some(receiver);
        self.task.batch(Split::Train, self.batches.at(number))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_takes_the_same_share_of_every_step() {
        let follow = |share: Range<u64>, step, first| {
            let numbers = Numbers { share, step };
            std::iter::successors(Some(first), |n| Some(numbers.next(*n))).take(5).collect::<Vec<u64>>()
        };
        assert_eq!(follow(0..1, 1, 7), [7, 8, 9, 10, 11]);
        assert_eq!(follow(0..5, 5, 3), [3, 4, 5, 6, 7]);
        assert_eq!(follow(1..3, 5, 11), [11, 12, 16, 17, 21]);
        assert_eq!(follow(3..5, 5, 4), [4, 8, 9, 13, 14]);
    }

    #[test]
    fn an_epoch_takes_every_sample_once_in_an_order_of_its_own() {
        let mut batches = Batches::new(10, 4, 1);
        assert_eq!(batches.per_epoch(), 3);
        let mut epoch = |e: u64| -> Vec<usize> { (0..3).flat_map(|i| batches.at(3 * e + i).to_vec()).collect() };
        let (first, second, again) = (epoch(0), epoch(1), epoch(0));
        assert_ne!(first, second);
        assert_eq!(first, again, "a micro-step's samples must not depend on what was asked before");
        for mut order in [first, second] {
            order.sort_unstable();
            assert_eq!(order, (0..10).collect::<Vec<_>>());
        }
        assert_eq!(batches.at(2).len(), 2);
    }

    #[test]
    fn computed_orders_take_every_sample_once_and_look_random() {
        for n in [1, 2, 3, 5, 64, 1000, 4097] {
            let order = |epoch: u64| -> Vec<usize> {
                let all = Permutation::new(n, Stream::new(1, Purpose::Shuffle, 0, epoch));
                (0..n).map(|place| all.at(place)).collect()
            };
            let (mut first, second) = (order(0), order(1));
            if n < 1000 {
                first.sort_unstable();
                assert_eq!(first, (0..n).collect::<Vec<_>>());
                continue;
            }
            assert_ne!(first, second);
            // Ascents, fixed points and the distance of neighbours are those of a random permutation.
            let ascents = first.windows(2).filter(|pair| pair[0] < pair[1]).count() as f64 / n as f64;
            let fixed = first.iter().enumerate().filter(|(i, v)| i == *v).count();
            let apart = first.windows(2).map(|pair| pair[0].abs_diff(pair[1])).sum::<usize>() as f64 / (n * n) as f64;
            assert!(
                (ascents - 0.5).abs() < 0.03 && fixed < 8 && (apart - 1. / 3.).abs() < 0.02,
                "{ascents} {fixed} {apart}"
            );
            first.sort_unstable();
            assert_eq!(first, (0..n).collect::<Vec<_>>());
        }
        // More samples than are listed: micro-steps do not depend on each other, and are no list.
        let mut batches = Batches::new(usize::MAX / 4, 5, 3);
        let (last, first) = (batches.at(77).to_vec(), batches.at(0).to_vec());
        assert_eq!((batches.at(77), first.len()), (&last[..], 5));
        assert_ne!(first, last);
    }
}
