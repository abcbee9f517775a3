//! Work on several threads.

use rayon::prelude::*;

/// Calls `f` for 0..n on rayon's threads; a single piece of work runs where it is, without waking anybody.
pub fn for_each(n: usize, f: impl Fn(usize) + Sync + Send) {
    if n <= 1 {
        (0..n).for_each(f);
    } else {
        (0..n).into_par_iter().for_each(f);
    }
}
