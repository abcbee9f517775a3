//! The sum of what all processes have, along the tree.

use std::convert::Infallible;
use std::ops::Range;

use super::Collective;
use super::tree::{Tree, nodes};
use crate::Result;

/// Values that a process sends at a time, at most: engines count bytes in 32 bits.
const PIECE: usize = 1 << 26;

/// Values of all processes together that are exchanged at once.
const SMALL: usize = 1 << 18;

/// Memory that is used again at every step.
#[derive(Default)]
pub(super) struct Buffers {
    outgoing: Vec<f32>,
    incoming: Vec<f32>,
}

/// The part of `n` values that a rank adds up.
fn part(rank: usize, size: usize, n: usize) -> Range<usize> {
    // Of 64-bit numbers, which no n overflows.
    let at = |rank: usize| (rank as u64 * n as u64 / size as u64) as usize;
    at(rank)..at(rank + 1)
}

fn add<'a>(a: &'a mut [f32], b: &'a mut [f32]) -> std::result::Result<&'a mut [f32], Infallible> {
    a.iter_mut().zip(b.iter()).for_each(|(a, b)| *a += b);
    Ok(a)
}

/// The sum of nodes of `n` values that lie one behind the other, in place.
fn added<'a>(leaves: u64, nodes: &[Vec<Range<u64>>], values: &'a mut [f32], n: usize) -> &'a [f32] {
    let mut tree = Tree::new(leaves);
    // Without values there is nothing to add.
    for (range, values) in nodes.iter().flatten().zip(values.chunks_exact_mut(n.max(1))) {
        let Ok(()) = tree.push(range.clone(), values, add);
    }
    tree.into_nodes().into_iter().next().map_or(&[], |sum| &*sum)
}

/// Each process adds up a part of the values of all, and the parts are put together: what a ring would move, in an order that does
/// not depend on the number of processes.
pub(super) fn ordered(
    engine: &dyn Collective,
    shares: &[Range<u64>],
    n: usize,
    mut own: Vec<Vec<f32>>,
    buffers: &mut Buffers,
) -> Result<Vec<f32>> {
    let (rank, size) = (engine.rank(), engine.size());
    if size == 1 && own.len() == 1 {
        return Ok(own.remove(0));
    }
    let leaves = shares.last().map_or(0, |s| s.end);
    let all: Vec<Vec<Range<u64>>> = shares.iter().map(|share| nodes(share, leaves)).collect();
    let count: usize = all.iter().map(Vec::len).sum();
    if n * count <= SMALL {
        // One exchange of everything takes less time than two of parts.
        let lengths: Vec<usize> = all.iter().map(|nodes| n * nodes.len()).collect();
        let own = if own.len() == 1 { own.remove(0) } else { own.concat() };
        let mut values = vec![0.; n * count];
        engine.join(&own, &mut values, &lengths)?;
        // The sum is where the first node was.
        added(leaves, &all, &mut values, n);
        values.truncate(n);
        return Ok(values);
    }
    let mut sum = vec![0.; n];
    // The same for all, whoever has most nodes to send.
    let longest = (PIECE / all.iter().map(Vec::len).max().unwrap_or(1).max(1)).max(1);
    for first in (0..n).step_by(longest) {
        let piece = first..n.min(first + longest);
        let part = |rank: usize| part(rank, size, piece.len());
        let mine = part(rank).len();
        let outgoing: Vec<usize> = (0..size).map(|r| own.len() * part(r).len()).collect();
        let incoming: Vec<usize> = all.iter().map(|nodes| nodes.len() * mine).collect();
        buffers.incoming.resize(incoming.iter().sum(), 0.);
        // One node lies as it is sent.
        let sent = match own.as_slice() {
            [one] => &one[piece.clone()],
            several => {
                buffers.outgoing.clear();
                for part in (0..size).map(part) {
                    let place = piece.start + part.start..piece.start + part.end;
                    several.iter().for_each(|node| buffers.outgoing.extend_from_slice(&node[place.clone()]));
                }
                &buffers.outgoing
            }
        };
        engine.exchange(sent, &outgoing, &mut buffers.incoming, &incoming)?;
        let added = added(leaves, &all, &mut buffers.incoming, mine);
        let lengths: Vec<usize> = (0..size).map(|r| part(r).len()).collect();
        engine.join(added, &mut sum[piece], &lengths)?;
    }
    Ok(sum)
}
