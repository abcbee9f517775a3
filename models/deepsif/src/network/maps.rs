//! What classical methods say of EEG, as the input of a network.

use rayon::prelude::*;

use crate::algebra::{gram, roots, times, wide};
use crate::band::Band;
use crate::bayes::{Atoms, Cortex, Space, covariance, fit, powers};

/// A way to look at EEG.
struct View {
    /// Frequencies up to so many hertz; all of them, with loud moments in front, if not finite.
    band: f64,
    /// Whether EEG at rest is taken for noise, not white noise.
    quiet: bool,
    /// Share of the power that is taken for noise.
    noise: f32,
}

/// Spikes and their slow waves are slower than the rhythm of the cortex at rest. The last view gives the courses.
const VIEWS: [View; 4] = [
    View { band: 7.5, quiet: false, noise: 0.02 },
    View { band: 7.5, quiet: true, noise: 0.05 },
    View { band: 20., quiet: true, noise: 0.05 },
    View { band: f64::INFINITY, quiet: false, noise: 0.05 },
];
/// Rounds of sparse Bayesian learning.
const ROUNDS: usize = 20;
/// λ of sLORETA, as a share of the mean eigenvalue.
const LAMBDA: f64 = 0.03;
/// Maps of each view: the power of sparse Bayesian sources, the variances of regions and of patches of two sizes, sLORETA's power.
const EACH: usize = 5;
/// A map's values below this share of its largest are all the same.
const FLOOR: f32 = 1e-4;

/// Numbers of each region.
pub(super) const FEATURES: usize = 2 * VIEWS.len() * EACH;

/// What is computed of a head only once, for one kind of noise.
#[derive(Debug)]
struct Basis {
    space: Space,
    atoms: Atoms,
    /// sLORETA, regions × dimensions.
    loreta: Vec<f32>,
}

impl Basis {
    fn new(cortex: &Cortex, noise: &[f64]) -> Self {
        let space = Space::whitened(cortex, noise);
        let (r, m) = (space.dimensions, cortex.centres.len());
        let columns = wide(&space.regions, r);
        let inverse = gram(&columns, &vec![1.; m], LAMBDA);
        let each = columns.iter().zip(roots(&inverse, &columns));
        let loreta =
            each.flat_map(|(k, root)| times(&inverse, k).into_iter().map(move |v| (v / root) as f32)).collect();
        Self { atoms: Atoms::patches(cortex, &space), space, loreta }
    }
}

/// A head, ready to map EEG.
#[derive(Debug)]
pub(super) struct Mapper {
    white: Basis,
    /// None where EEG at rest is not known: then noise is white.
    quiet: Option<Basis>,
    pub(super) regions: usize,
    pub(super) electrodes: usize,
}

/// What is said of one sample.
pub(super) struct Maps {
    /// Regions × [`FEATURES`]: each map as a share of its largest value, and its logarithm.
    pub(super) features: Vec<f32>,
    /// The course of each region, time steps × regions: all of the same power, the strongest one's largest magnitude is one.
    pub(super) courses: Vec<f32>,
}

impl Mapper {
    pub(super) fn new(cortex: &Cortex) -> Self {
        let quiet = (!cortex.rest.is_empty()).then(|| Basis::new(cortex, &cortex.rest));
        let (regions, electrodes) = (cortex.centres.len(), cortex.electrodes);
        Self { white: Basis::new(cortex, &[]), quiet, regions, electrodes }
    }

    /// Of EEG, `steps` time steps × electrodes.
    fn one(&self, eeg: &[f32], steps: usize) -> Maps {
        let m = self.regions;
        let mut features = vec![0f32; m * FEATURES];
        let mut courses = vec![];
        for (number, view) in VIEWS.iter().enumerate() {
            let ground = if view.quiet { self.quiet.as_ref().unwrap_or(&self.white) } else { &self.white };
            let Basis { space, atoms, loreta } = ground;
            let r = space.dimensions;
            let rows = space.project(eeg);
            let seen =
                if view.band.is_finite() { Band::below(view.band, steps).parts(&rows, r) } else { loud(&rows, r) };
            let found = fit(atoms, m, &seen, view.noise, ROUNDS);
            let c = covariance(&seen, r);
            let variances: Vec<f32> = found.variances.iter().map(|v| v.sqrt()).collect();
            // One scale for regions and patches: which of them it is counts.
            let largest = |map: &[f32]| map.iter().copied().fold(f32::MIN_POSITIVE, f32::max);
            let scale = largest(&variances);
            let (bayes, loreta) = (powers(&found.maps, &c, r), powers(loreta, &c, r));
            let maps = [
                (bayes.as_slice(), largest(&bayes)),
                (&variances[..m], scale),
                (&variances[m..2 * m], scale),
                (&variances[2 * m..], scale),
                (loreta.as_slice(), largest(&loreta)),
            ];
            for (k, (map, largest)) in maps.iter().enumerate() {
                for (row, v) in features.chunks_exact_mut(FEATURES).zip(*map) {
                    let share = (v / largest).clamp(FLOOR, 1.);
                    row[2 * (number * EACH + k)] = share;
                    row[2 * (number * EACH + k) + 1] = 1. + 0.5 * share.log10();
                }
            }
            if number + 1 == VIEWS.len() {
                courses = found.sources(&rows, r);
            }
        }
        level(&mut courses, m);
        Maps { features, courses }
    }

    /// Of samples of `steps` time steps.
    pub(super) fn all(&self, eeg: &[f32], steps: usize) -> Vec<Maps> {
        eeg.par_chunks((steps * self.electrodes).max(1)).map(|one| self.one(one, steps)).collect()
    }
}

/// Time steps weighed by the root of their magnitude: spikes count more than what lies between them.
fn loud(rows: &[f32], r: usize) -> Vec<f32> {
    let weighed = |row: &[f32]| {
        let weight = row.iter().map(|v| v * v).sum::<f32>().sqrt().sqrt();
        row.iter().map(|v| weight * v).collect::<Vec<_>>()
    };
    rows.chunks_exact(r).flat_map(weighed).collect()
}

/// Brings the courses of `m` regions to the same power: such that the largest magnitude of the strongest one is one.
fn level(courses: &mut [f32], m: usize) {
    let (mut powers, mut most) = (vec![0f32; m], vec![0f32; m]);
    for row in courses.chunks_exact(m) {
        for ((power, most), v) in powers.iter_mut().zip(&mut most).zip(row) {
            *power += v * v;
            *most = most.max(v.abs());
        }
    }
    let strongest = (0..m).max_by(|a, b| powers[*a].total_cmp(&powers[*b])).unwrap_or(0);
    let to = powers[strongest].sqrt() / most[strongest].max(f32::MIN_POSITIVE);
    let factors: Vec<f32> = powers.iter().map(|power| if *power > 0. { to / power.sqrt() } else { 0. }).collect();
    for row in courses.chunks_exact_mut(m) {
        row.iter_mut().zip(&factors).for_each(|(v, factor)| *v *= factor);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn courses_have_the_power_of_the_strongest_which_reaches_one() {
        let mut courses: Vec<f32> =
            (0..50).flat_map(|t| [(t as f32 / 5.).sin(), 300. * (t as f32 / 3.).cos(), 0.]).collect();
        level(&mut courses, 3);
        let of = |region: usize| courses.iter().skip(region).step_by(3).copied().collect::<Vec<f32>>();
        let power = |region: usize| of(region).iter().map(|v| v * v).sum::<f32>();
        assert!((power(0) / power(1) - 1.).abs() < 1e-5 && power(2) == 0.);
        assert!(courses.iter().all(|v| v.is_finite()));
        assert!((of(1).iter().fold(0f32, |m, v| m.max(v.abs())) - 1.).abs() < 1e-6);
    }
}
