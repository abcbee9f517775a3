use super::Point;

/// A triangulated cortex.
#[derive(Clone, Debug)]
pub struct Surface {
    /// Vertices.
    pub positions: Vec<Point>,
    /// Triangles by their vertices.
    pub triangles: Vec<[usize; 3]>,
    /// The region of each vertex.
    pub region: Vec<usize>,
}

impl Surface {
    /// The mean place of each region's vertices; `None` for one without any.
    pub(crate) fn centres(&self, regions: usize) -> Vec<Option<Point>> {
        let mut sums = vec![([0.; 3], 0usize); regions];
        for (position, &region) in self.positions.iter().zip(&self.region) {
            let (sum, n) = &mut sums[region];
            sum.iter_mut().zip(position).for_each(|(s, p)| *s += p);
            *n += 1;
        }
        sums.into_iter().map(|(sum, n)| (n > 0).then(|| sum.map(|s| s / n as f64))).collect()
    }

    /// The regions that share an edge of the triangulation with each.
    pub(crate) fn neighbours(&self, regions: usize) -> Vec<Vec<usize>> {
        let mut all = vec![vec![]; regions];
        for [a, b, c] in &self.triangles {
            for (i, j) in [(a, b), (b, c), (c, a)] {
                let (i, j) = (self.region[*i], self.region[*j]);
                if i != j {
                    all[i].push(j);
                    all[j].push(i);
                }
            }
        }
        for list in &mut all {
            list.sort_unstable();
            list.dedup();
        }
        all
    }
}
