//! Work on several threads.

use std::cell::Cell;
use std::ops::Range;

use rayon::prelude::*;

use super::bf16;
use super::simd::{self, overriding};
use crate::autograd::autocast_apart;
use crate::gpu;

thread_local! {
    static ALONE: Cell<Option<bool>> = const { Cell::new(None) };
}

/// Runs `f` with what this thread calls on this thread alone. A thread of rayon's that waits for others takes up tasks, which must not
/// happen while it holds what those may wait for.
pub fn alone<R>(f: impl FnOnce() -> R) -> R {
    overriding(&ALONE, true, f)
}

/// Whether work is done on this thread alone.
pub fn is_alone() -> bool {
    ALONE.get().unwrap_or(false)
}

/// Runs `f`, in which this thread waits for rayon's, without what is in force on it alone (a level, a type, a device's stand-in): while it
/// waits, it takes up tasks, which may be anybody's.
pub fn apart<R>(f: impl FnOnce() -> R) -> R {
    simd::apart(|| bf16::apart(|| autocast_apart(|| gpu::apart(f))))
}

/// Calls `f` for 0..n on rayon's threads; a single piece of work runs where it is, without waking anybody.
pub fn for_each(n: usize, f: impl Fn(usize) + Sync + Send) {
    if n <= 1 || is_alone() {
        (0..n).for_each(f);
    } else {
        apart(|| (0..n).into_par_iter().for_each(f));
    }
}

/// Calls `f` for the ranges of at most `size` that 0..n falls into: whatever the threads, the same ranges. A size of 0 is one of 1.
pub fn chunks(n: usize, size: usize, f: impl Fn(Range<usize>) + Sync + Send) {
    let size = size.max(1);
    for_each(n.div_ceil(size), |i| f(i * size..n.min(i.saturating_add(1).saturating_mul(size))));
}

/// The size of ranges for [`chunks`] of 0..n that have at least `least` each and of which every thread gets as many as the others: for work
/// whose results do not depend on the ranges.
pub fn shares(n: usize, least: usize) -> usize {
    let (ranges, threads) = ((n / least.max(1)).max(1), rayon::current_num_threads());
    n.div_ceil(if ranges > threads { ranges - ranges % threads } else { ranges })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_as_many_for_each_thread() {
        let threads = rayon::current_num_threads();
        for (n, least) in [(0, 1), (1, 1), (5, 0), (576, 57), (192, 100), (1000, 1), (49_152, 57)] {
            let size = shares(n, least);
            let ranges = n.checked_div(size).map_or(0, |_| n.div_ceil(size));
            assert!(n < 2 * least.max(1) || size >= least, "{n} {least}");
            assert!(
                ranges < 2 * threads || ranges % threads == 0 || n - (ranges - 1) * size < size,
                "{n} {least} {ranges}"
            );
        }
    }
}
