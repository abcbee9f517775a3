//! Pictures of the cortex and of the scalp, as cells of colour.

use zoo_training::Raster;

use crate::head::{Head, Point, Surface};
use crate::image::Montage;

/// Cells of a side.
const SIDE: usize = 110;
/// What surrounds the head, as a share of its size.
const MARGIN: f64 = 1.06;

/// A direction to look from: which axes go right and up in the picture and towards the eye, with their signs.
struct Direction {
    title: &'static str,
    axes: [(usize, f64); 3],
}

const VIEWS: [Direction; 4] = [
    Direction { title: "from the left", axes: [(1, -1.), (2, 1.), (0, -1.)] },
    Direction { title: "from above, nose up", axes: [(0, 1.), (1, 1.), (2, 1.)] },
    Direction { title: "from the right", axes: [(1, 1.), (2, 1.), (0, 1.)] },
    Direction { title: "from behind", axes: [(0, 1.), (2, 1.), (1, -1.)] },
];

impl Direction {
    fn turned(&self, position: &Point) -> Point {
        self.axes.map(|(axis, sign)| sign * position[axis])
    }
}

/// The strengths on the cortex (or on its regions' centres where it is not known) from four sides, and the scalp's potentials
/// at the EEG's strongest moment.
pub(crate) fn maps(head: Option<&Head>, montage: &Montage, strengths: &[f64], eeg: &[f32]) -> Vec<Raster> {
    let largest = strengths.iter().fold(f64::MIN_POSITIVE, |m, v| m.max(*v));
    let shares: Vec<f32> = strengths.iter().map(|s| (s / largest) as f32).collect();
    let surface = head.and_then(|h| h.surface.as_ref());
    let mut maps: Vec<Raster> = VIEWS
        .iter()
        .map(|view| {
            let canvas = match surface {
                Some(surface) => cortex(view, surface, &shares),
                None => centres(view, &montage.regions, &shares),
            };
            Raster { title: view.title.into(), width: SIDE, cells: canvas.cells }
        })
        .collect();
    maps.extend(scalp(montage, eeg));
    maps
}

/// Cells with the depth of what is seen in each.
struct Canvas {
    cells: Vec<Option<(f32, f32)>>,
    depth: Vec<f64>,
    scale: f64,
    centre: Point,
}

impl Canvas {
    fn around(positions: impl Iterator<Item = Point> + Clone) -> Self {
        let edge =
            |axis: usize, pick: fn(f64, f64) -> f64, from: f64| positions.clone().map(|p| p[axis]).fold(from, pick);
        let sides: [[f64; 2]; 3] =
            std::array::from_fn(|a| [edge(a, f64::min, f64::INFINITY), edge(a, f64::max, f64::NEG_INFINITY)]);
        let size = sides[..2].iter().map(|[low, high]| high - low).fold(1e-9, f64::max);
        Self {
            cells: vec![None; SIDE * SIDE],
            depth: vec![f64::NEG_INFINITY; SIDE * SIDE],
            scale: SIDE as f64 / (MARGIN * size),
            centre: sides.map(|[low, high]| (low + high) / 2.),
        }
    }

    /// Where a position falls, in cells from the upper left corner.
    fn at(&self, position: &Point) -> [f64; 2] {
        let half = SIDE as f64 / 2.;
        [half + (position[0] - self.centre[0]) * self.scale, half - (position[1] - self.centre[1]) * self.scale]
    }

    fn paint(&mut self, x: usize, y: usize, depth: f64, colour: (f32, f32)) {
        let at = y * SIDE + x;
        if depth > self.depth[at] {
            (self.depth[at], self.cells[at]) = (depth, Some(colour));
        }
    }

    /// The cells between two edges.
    fn span(low: f64, high: f64) -> std::ops::Range<usize> {
        let cell = |v: f64| v.clamp(0., SIDE as f64) as usize;
        cell(low.floor())..cell(high.ceil())
    }
}

fn cortex(view: &Direction, surface: &Surface, shares: &[f32]) -> Canvas {
    let turned: Vec<Point> = surface.positions.iter().map(|p| view.turned(p)).collect();
    let mut canvas = Canvas::around(turned.iter().copied());
    for corners in &surface.triangles {
        let [a, b, c] = corners.map(|i| turned[i]);
        let [p, q, r] = [a, b, c].map(|v| canvas.at(&v));
        let area = (q[0] - p[0]) * (r[1] - p[1]) - (r[0] - p[0]) * (q[1] - p[1]);
        if area.abs() < 1e-12 {
            continue;
        }
        let side = |i: usize| ([b[i] - a[i]], [c[i] - a[i]]);
        let cross = |i: usize, j: usize| side(i).0[0] * side(j).1[0] - side(j).0[0] * side(i).1[0];
        let normal = [cross(1, 2), cross(2, 0), cross(0, 1)];
        let length = normal.iter().map(|v| v * v).sum::<f64>().sqrt().max(1e-12);
        let light = 0.45 + 0.55 * (normal[2] / length).abs() as f32;
        let colour = (shares[surface.region[corners[0]]], light);
        let ends =
            |i: usize| [p[i], q[i], r[i]].into_iter().fold((f64::MAX, f64::MIN), |(l, h), v| (l.min(v), h.max(v)));
        let ((left, right), (top, bottom)) = (ends(0), ends(1));
        for y in Canvas::span(top - 0.5, bottom + 0.5) {
            for x in Canvas::span(left - 0.5, right + 0.5) {
                let (dx, dy) = (x as f64 + 0.5 - p[0], y as f64 + 0.5 - p[1]);
                let s = (dx * (r[1] - p[1]) - dy * (r[0] - p[0])) / area;
                let t = (dy * (q[0] - p[0]) - dx * (q[1] - p[1])) / area;
                if s >= 0. && t >= 0. && s + t <= 1. {
                    canvas.paint(x, y, a[2] + s * (b[2] - a[2]) + t * (c[2] - a[2]), colour);
                }
            }
        }
    }
    canvas
}

/// A disc for each region, as large as its share of the sphere.
fn centres(view: &Direction, regions: &[Point], shares: &[f32]) -> Canvas {
    let turned: Vec<Point> = regions.iter().map(|p| view.turned(p)).collect();
    let mut canvas = Canvas::around(turned.iter().copied());
    let radius = 0.9 * SIDE as f64 / (regions.len() as f64).sqrt();
    for (position, share) in turned.iter().zip(shares) {
        let [cx, cy] = canvas.at(position);
        for y in Canvas::span(cy - radius, cy + radius) {
            for x in Canvas::span(cx - radius, cx + radius) {
                if (x as f64 + 0.5 - cx).hypot(y as f64 + 0.5 - cy) <= radius {
                    let light =
                        0.7 + 0.3 * ((position[2] - canvas.centre[2]) * canvas.scale / SIDE as f64 + 0.5) as f32;
                    canvas.paint(x, y, position[2], (*share, light.clamp(0., 1.)));
                }
            }
        }
    }
    canvas
}

/// Potentials at the strongest moment over the scalp, seen from above with the nose up: the distance from the top along the
/// scalp becomes the distance from the middle, and values between electrodes are weighed by the inverse of cubed distances.
fn scalp(montage: &Montage, eeg: &[f32]) -> Option<Raster> {
    let n = montage.electrodes.len();
    let positions = montage.electrodes.iter().map(|e| e.position).collect::<Option<Vec<Point>>>()?;
    let power = |row: &&[f32]| row.iter().map(|v| v * v).sum::<f32>();
    let (at, row) = eeg.chunks_exact(n).enumerate().max_by(|a, b| power(&a.1).total_cmp(&power(&b.1)))?;
    let largest = row.iter().fold(f32::MIN_POSITIVE, |m, v| m.max(v.abs()));
    let mean: Point = std::array::from_fn(|a| positions.iter().map(|p| p[a]).sum::<f64>() / n as f64);
    // The middle of the head is below the mean of what sits on its upper part.
    let lowest = positions.iter().map(|p| p[2]).fold(f64::INFINITY, f64::min);
    let flat = |p: &Point| {
        let (x, y, z) = (p[0] - mean[0], p[1] - mean[1], p[2] - (lowest + mean[2]) / 2.);
        let along = x.hypot(y).max(1e-9);
        let angle = along.atan2(z) / std::f64::consts::FRAC_PI_2;
        [angle * x / along, angle * y / along]
    };
    let flat: Vec<[f64; 2]> = positions.iter().map(flat).collect();
    let reach = flat.iter().map(|p| p[0].hypot(p[1])).fold(1e-9, f64::max) * MARGIN;
    let cell = |i: usize| {
        let coordinate = |k: usize| ((k as f64 + 0.5) / SIDE as f64 * 2. - 1.) * reach;
        let (x, y) = (coordinate(i % SIDE), -coordinate(i / SIDE));
        if x.hypot(y) > reach {
            return None;
        }
        let (mut sum, mut weights) = (0., 0.);
        for (p, v) in flat.iter().zip(row) {
            let weight = (x - p[0]).hypot(y - p[1]).max(1e-3).powi(-3);
            sum += weight * f64::from(*v);
            weights += weight;
        }
        Some(((sum / weights) as f32 / largest, 1.))
    };
    let title = format!("EEG at {} ms, nose up", 2 * at);
    Some(Raster { title, width: SIDE, cells: (0..SIDE * SIDE).map(cell).collect() })
}
