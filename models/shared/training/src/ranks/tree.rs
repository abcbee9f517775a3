//! Sums along one binary tree, whoever adds which part.
//!
//! The tree over the leaves a to b, without b, adds the tree over its first leaves to that over the rest; the first are the largest
//! power of two below their number. Leaves 0 to 4: ((0 + 1) + (2 + 3)) + 4.

use std::ops::Range;

/// Sums of adjacent leaves, as far as the tree allows to add them.
pub struct Tree<V> {
    leaves: u64,
    nodes: Vec<(Range<u64>, V)>,
}

impl<V> Tree<V> {
    /// Of so many leaves in all.
    pub fn new(leaves: u64) -> Self {
        Self { leaves, nodes: vec![] }
    }

    /// Takes in the node that follows those so far; `add` adds its second argument to its first.
    ///
    /// # Errors
    /// Those of `add`.
    pub fn push<E>(&mut self, range: Range<u64>, value: V, mut add: impl FnMut(V, V) -> Result<V, E>) -> Result<(), E> {
        let mut last = (range, value);
        while let Some((range, value)) = self.nodes.pop() {
            if !are_halves(&range, &last.0, self.leaves) {
                self.nodes.push((range, value));
                break;
            }
            last = (range.start..last.0.end, add(value, last.1)?);
        }
        self.nodes.push(last);
        Ok(())
    }

    /// What could not be added yet, in order; the one sum once all leaves were taken in.
    pub fn into_nodes(self) -> Vec<V> {
        self.nodes.into_iter().map(|(_, value)| value).collect()
    }
}

/// Whether two adjacent ranges are the halves of a node of the tree.
fn are_halves(left: &Range<u64>, right: &Range<u64>, leaves: u64) -> bool {
    let mut node = 0..leaves;
    while node.end - node.start > 1 {
        let middle = split(&node);
        if node.start == left.start && node.end == right.end && middle == left.end {
            return true;
        }
        match () {
            () if right.end <= middle => node.end = middle,
            () if left.start >= middle => node.start = middle,
            () => return false,
        }
    }
    false
}

/// Where a node's second half begins.
fn split(node: &Range<u64>) -> u64 {
    let n = node.end - node.start;
    node.start + (n.next_power_of_two() / 2).max(1)
}

/// The nodes that are left of a share once all that can be added is.
pub(crate) fn nodes(share: &Range<u64>, leaves: u64) -> Vec<Range<u64>> {
    let mut tree = Tree::new(leaves);
    for leaf in share.clone() {
        let added = tree.push(leaf..leaf + 1, (), |(), ()| Ok::<_, std::convert::Infallible>(()));
        let Ok(()) = added;
    }
    tree.nodes.into_iter().map(|(range, ())| range).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The definition.
    fn sum(values: &[f32], node: Range<u64>) -> f32 {
        match node.end - node.start {
            1 => values[node.start as usize],
            _ => sum(values, node.start..split(&node)) + sum(values, split(&node)..node.end),
        }
    }

    #[test]
    fn any_cut_of_the_leaves_into_shares_gives_the_bits_of_the_whole_tree() {
        for leaves in 1..=40u64 {
            let values: Vec<f32> =
                (0..leaves).map(|i| ((i * 7919 + 13) as f32).sin() * 1e3f32.powi(i as i32 % 3)).collect();
            let expected = sum(&values, 0..leaves);
            for ranks in 1..=leaves {
                let mut whole = Tree::new(leaves);
                let add = |a: f32, b: f32| Ok::<_, ()>(a + b);
                for rank in 0..ranks {
                    let share = rank * leaves / ranks..(rank + 1) * leaves / ranks;
                    let mut own = Tree::new(leaves);
                    share.clone().for_each(|l| own.push(l..l + 1, values[l as usize], add).unwrap());
                    let ranges = nodes(&share, leaves);
                    assert_eq!(own.nodes.len(), ranges.len());
                    ranges.into_iter().zip(own.into_nodes()).for_each(|(r, v)| whole.push(r, v, add).unwrap());
                }
                assert_eq!(whole.into_nodes(), [expected], "{leaves} leaves, {ranks} ranks");
            }
        }
    }

    #[test]
    fn another_order_has_other_bits() {
        let values: Vec<f32> = (0..12u32).map(|i| ((i * 7919 + 13) as f32).sin()).collect();
        let in_order: f32 = values.iter().sum();
        assert_ne!(sum(&values, 0..12).to_bits(), in_order.to_bits(), "these leaves show no difference");
    }
}
