use zoo_layers::random::Stream;

use crate::head::Head;
use crate::image::share_at;

/// Regions that are active together, with the share of the centre's amplitude that each has.
#[derive(Clone, Debug, PartialEq)]
pub struct Patch {
    /// The region that it was grown from.
    pub centre: usize,
    /// Regions and their shares, the centre first with 1; half of it at the edge.
    pub regions: Vec<(usize, f32)>,
}

impl Patch {
    /// Grows a patch of `size` regions (fewer if the cortex has no more in one piece): from `centre` on, always the region that
    /// borders on it and lies nearest to the centre.
    pub fn grow(head: &Head, centre: usize, size: usize) -> Self {
        let (mut inside, mut border) = (vec![centre], vec![]);
        while inside.len() < size.max(1) {
            let last = inside[inside.len() - 1];
            border.extend(head.neighbours[last].iter().copied());
            border.retain(|r| !inside.contains(r));
            border.sort_unstable();
            border.dedup();
            let nearer = |a: &&usize, b: &&usize| head.distance(centre, **a).total_cmp(&head.distance(centre, **b));
            let Some(&next) = border.iter().min_by(nearer) else { break };
            inside.push(next);
        }
        let edge = inside.iter().map(|r| head.distance(centre, *r)).fold(f64::MIN_POSITIVE, f64::max);
        let share = |r: usize| share_at(head.distance(centre, r), edge);
        Self { centre, regions: inside.iter().map(|&r| (r, share(r))).collect() }
    }

    fn touches(&self, other: &Self) -> bool {
        self.regions.iter().any(|(r, _)| other.regions.iter().any(|(o, _)| o == r))
    }
}

/// Tries to find a patch that touches none of the others.
const TRIES: usize = 50;

/// Patches at random positions that share no region, as many as `count` if there is room for them.
pub(super) fn draw(head: &Head, count: usize, extent: [usize; 2], stream: &mut Stream) -> Vec<Patch> {
    let mut patches: Vec<Patch> = vec![];
    for _ in 0..count {
        for _ in 0..TRIES {
            let centre = stream.below(head.regions.len() as u32) as usize;
            let size = extent[0] + stream.below((extent[1] - extent[0] + 1) as u32) as usize;
            let patch = Patch::grow(head, centre, size);
            if !patches.iter().any(|p| p.touches(&patch)) {
                patches.push(patch);
                break;
            }
        }
    }
    patches
}
