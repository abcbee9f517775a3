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

/// Calls `f` for ranges that 0..n falls into, of at least `least` each: about as many for every thread, and of sizes that differ by one at
/// most. For work whose results do not depend on the ranges.
pub fn evenly(n: usize, least: usize, f: impl Fn(Range<usize>) + Sync + Send) {
    let ranges = counted(n, least, rayon::current_num_threads());
    let (size, longer) = (n / ranges, n % ranges);
    let start = |i: usize| i * size + i.min(longer);
    for_each(ranges, |i| f(start(i)..start(i + 1)));
}

/// How many ranges: a multiple of the threads, if there are as many.
fn counted(n: usize, least: usize, threads: usize) -> usize {
    let most = (n / least.max(1)).max(1);
    if most > threads { most - most % threads.max(1) } else { most }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[test]
    fn ranges_cover_everything_once_and_each_thread_gets_as_many() {
        for (n, least) in [(0, 1), (1, 1), (5, 0), (576, 57), (192, 100), (1000, 1), (49_152, 57)] {
            let all = Mutex::new(vec![]);
            evenly(n, least, |range| all.lock().unwrap_or_else(|e| e.into_inner()).push(range));
            let mut all = all.into_inner().unwrap_or_default();
            all.sort_by_key(|range| range.start);
            assert_eq!(all.iter().cloned().flatten().collect::<Vec<_>>(), (0..n).collect::<Vec<_>>());
            assert!(all.len() == 1 || all.iter().all(|range| range.len() >= least), "{n} {least}");
            for threads in 1..70 {
                let ranges = counted(n, least, threads);
                assert!(ranges <= threads || ranges.is_multiple_of(threads), "{n} {least} {threads}: {ranges}");
            }
        }
    }
}
