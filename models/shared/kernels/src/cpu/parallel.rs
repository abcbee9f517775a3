//! Work on several threads.

use std::ops::Range;

use rayon::prelude::*;

/// Calls `f` for 0..n on rayon's threads; a single piece of work runs where it is, without waking anybody.
pub fn for_each(n: usize, f: impl Fn(usize) + Sync + Send) {
    if n <= 1 {
        (0..n).for_each(f);
    } else {
        (0..n).into_par_iter().for_each(f);
    }
}

/// Calls `f` for the ranges of at most `size` (at least 1) that 0..n falls into: whatever the threads, the same ranges.
pub fn chunks(n: usize, size: usize, f: impl Fn(Range<usize>) + Sync + Send) {
    for_each(n.div_ceil(size), |i| f(i * size..n.min((i + 1) * size)));
}
