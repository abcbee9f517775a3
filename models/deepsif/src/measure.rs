//! How well sources are found.

use crate::head::{Head, Point, distance};
use crate::image::strengths;
use crate::simulation::{Patch, Sample};

/// How the activity over a second becomes one strength for each region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reading {
    /// Root of the mean square over time.
    Rms,
    /// Magnitude at the time step whose EEG has most power.
    Peak,
}

impl Reading {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Rms, Self::Peak];

    /// In words.
    pub fn name(self) -> &'static str {
        match self {
            Self::Rms => "over the whole time",
            Self::Peak => "at the EEG's strongest moment",
        }
    }

    /// Strengths of regions from sources, time steps × `regions`.
    pub fn strengths(self, sources: &[f32], regions: usize, eeg: &[f32]) -> Vec<f64> {
        match self {
            Self::Rms => strengths(sources, regions),
            Self::Peak => {
                let steps = (sources.len() / regions).max(1);
                let peak = loudest(eeg, eeg.len() / steps);
                sources[peak * regions..][..regions].iter().map(|v| f64::from(v.abs())).collect()
            }
        }
    }
}

/// The time step whose EEG, time steps × `n`, has most power.
pub(crate) fn loudest(eeg: &[f32], n: usize) -> usize {
    let power = |t: &usize| eeg[t * n..][..n].iter().map(|v| v * v).sum::<f32>();
    (0..eeg.len() / n.max(1)).max_by(|a, b| power(a).total_cmp(&power(b))).unwrap_or(0)
}

/// Otsu's threshold (IEEE Trans. Syst. Man Cybern. 9, 1979): it parts values into two groups whose means differ most, weighed by
/// their sizes. Of all values, not of a histogram.
pub fn otsu(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    let (n, total) = (sorted.len() as f64, sorted.iter().sum::<f64>());
    let (mut below, mut best) = (0., (f64::NEG_INFINITY, 0.));
    for (i, pair) in sorted.windows(2).enumerate() {
        below += pair[0];
        let count = i as f64 + 1.;
        let apart = (below / count - (total - below) / (n - count)).powi(2) * count * (n - count);
        if pair[1] > pair[0] && apart > best.0 {
            best = (apart, (pair[0] + pair[1]) / 2.);
        }
    }
    best.1
}

/// Which regions are said to be active.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Rule {
    /// Those above Otsu's threshold.
    Otsu,
    /// Those above a share of the strongest.
    Share(f64),
}

impl Rule {
    /// Otsu's, and shares in steps of a twentieth.
    pub fn all() -> impl Iterator<Item = Self> {
        std::iter::once(Self::Otsu).chain((1..20).map(|i| Self::Share(f64::from(i) / 20.)))
    }

    /// In words.
    pub fn name(self) -> String {
        match self {
            Self::Otsu => "above Otsu's threshold".into(),
            Self::Share(share) => format!("above {share} of the largest"),
        }
    }

    /// The regions; the strongest one where none or all would be.
    pub fn regions(self, strengths: &[f64]) -> Vec<usize> {
        let threshold = match self {
            Self::Otsu => otsu(strengths),
            Self::Share(share) => share * strengths.iter().copied().fold(0., f64::max),
        };
        let said: Vec<usize> = (0..strengths.len()).filter(|r| strengths[*r] > threshold).collect();
        if !said.is_empty() && said.len() < strengths.len() {
            return said;
        }
        (0..strengths.len()).max_by(|a, b| strengths[*a].total_cmp(&strengths[*b])).into_iter().collect()
    }
}

/// How well one sample's sources were found.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Found {
    /// Share of the regions found that are active.
    pub precision: f64,
    /// Share of the active regions that are found.
    pub recall: f64,
    /// Mean of the distances from each region found to the nearest active one, and from each active one to the nearest found,
    /// mm.
    pub localization: f64,
    /// Distance from the strongest region to the nearest active one, mm.
    pub peak: f64,
    /// Root of the mean squared distance to the nearest active region, weighed by squared strength, mm.
    pub dispersion: f64,
    /// Correlation in time with the true activity at the centre of each patch, on average.
    pub correlation: f64,
}

/// What is true of a sample.
pub struct Truth<'a> {
    regions: &'a [Point],
    sources: &'a [(Patch, Vec<f32>)],
    active: Vec<bool>,
    /// Of every region, to the nearest active one, mm.
    distance: Vec<f64>,
}

impl<'a> Truth<'a> {
    /// Of a sample over a head.
    pub fn new(head: &'a Head, sample: &'a Sample) -> Self {
        Self::at(&head.regions, sample)
    }

    /// Of a sample whose regions have these centres.
    pub fn at(regions: &'a [Point], sample: &'a Sample) -> Self {
        let mut active = vec![false; regions.len()];
        sample.sources.iter().flat_map(|(p, _)| &p.regions).for_each(|(r, _)| active[*r] = true);
        let true_ones: Vec<usize> = (0..active.len()).filter(|r| active[*r]).collect();
        let nearest =
            |r: usize| true_ones.iter().map(|t| distance(&regions[r], &regions[*t])).fold(f64::INFINITY, f64::min);
        let distance = (0..active.len()).map(nearest).collect();
        Self { regions, sources: &sample.sources, active, distance }
    }

    /// Of regions that are said to be active: precision, recall, localization error.
    fn set(&self, said: &[usize]) -> [f64; 3] {
        let all = self.active.iter().filter(|a| **a).count();
        let right = said.iter().filter(|r| self.active[**r]).count();
        let to_true = said.iter().map(|r| self.distance[*r]).sum::<f64>() / said.len().max(1) as f64;
        let to_said =
            |t: usize| said.iter().map(|r| distance(&self.regions[t], &self.regions[*r])).fold(f64::INFINITY, f64::min);
        let from_true =
            (0..self.active.len()).filter(|t| self.active[*t]).map(to_said).sum::<f64>() / all.max(1) as f64;
        let share = |of: usize| right as f64 / of.max(1) as f64;
        [share(said.len()), share(all), (to_true + from_true) / 2.]
    }

    /// The localization error, mm, of the regions that `rule` finds.
    pub fn error(&self, strengths: &[f64], rule: Rule) -> f64 {
        self.set(&rule.regions(strengths))[2]
    }

    /// Judges sources, time steps × regions, whose strengths are read out of them.
    pub fn judge(&self, sources: &[f32], strengths: &[f64], rule: Rule) -> Found {
        let said = rule.regions(strengths);
        let strongest = (0..strengths.len()).max_by(|a, b| strengths[*a].total_cmp(&strengths[*b])).unwrap_or(0);
        let [precision, recall, localization] = self.set(&said);
        let (mut power, mut spread) = (0., 0.);
        for (s, d) in strengths.iter().zip(&self.distance) {
            power += s * s;
            spread += s * s * d * d;
        }
        let regions = strengths.len();
        let alike = |(patch, course): &(Patch, Vec<f32>)| {
            correlation(course.iter().copied(), sources.iter().skip(patch.centre).step_by(regions).copied())
        };
        let correlation = self.sources.iter().map(alike).sum::<f64>() / self.sources.len().max(1) as f64;
        let dispersion = (spread / power.max(f64::MIN_POSITIVE)).sqrt();
        Found { precision, recall, localization, peak: self.distance[strongest], dispersion, correlation }
    }

    /// Precision and localization error of the fewest strongest regions that reach a recall.
    pub fn at_recall(&self, strengths: &[f64], recall: f64) -> [f64; 2] {
        let mut order: Vec<usize> = (0..strengths.len()).collect();
        order.sort_by(|a, b| strengths[*b].total_cmp(&strengths[*a]));
        let all = self.active.iter().filter(|a| **a).count();
        let mut right = 0;
        let enough = |r: &usize| {
            right += usize::from(self.active[*r]);
            right as f64 + 1e-9 >= recall * all as f64
        };
        let last = order.iter().position(enough).unwrap_or(order.len() - 1);
        let [precision, _, localization] = self.set(&order[..=last]);
        [precision, localization]
    }
}

/// Pearson's correlation; 0 where one of them never changes.
fn correlation(a: impl Iterator<Item = f32> + Clone, b: impl Iterator<Item = f32> + Clone) -> f64 {
    let pairs = || a.clone().zip(b.clone()).map(|(a, b)| (f64::from(a), f64::from(b)));
    let n = pairs().count().max(1) as f64;
    let (ma, mb) = pairs().fold((0., 0.), |(ma, mb), (a, b)| (ma + a / n, mb + b / n));
    let (mut ab, mut aa, mut bb) = (0., 0., 0.);
    for (a, b) in pairs() {
        ab += (a - ma) * (b - mb);
        aa += (a - ma).powi(2);
        bb += (b - mb).powi(2);
    }
    if aa * bb > 0. { ab / (aa * bb).sqrt() } else { 0. }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn otsu_parts_what_lies_apart() {
        let values = [0.1, 0.2, 0.15, 0.12, 5., 5.5];
        assert!((0.2..5.).contains(&otsu(&values)));
        assert_eq!(otsu(&[1., 1., 1.]), 0.);
    }

    #[test]
    fn a_perfect_image_is_judged_perfect_and_a_shifted_one_by_its_distance() {
        let head = Head::spherical(20, 100).unwrap();
        let patch = Patch { centre: 40, regions: vec![(40, 1.)] };
        let course: Vec<f32> = (0..50).map(|t| (t as f32 / 5.).sin()).collect();
        let sample = Sample { eeg: vec![], sources: vec![(patch, course.clone())], snr: 10., stored: None };
        let truth = Truth::new(&head, &sample);
        let image = |region: usize| {
            let mut sources = vec![0f32; 50 * 100];
            course.iter().enumerate().for_each(|(t, v)| sources[t * 100 + region] = 2. * v);
            let strengths = Reading::Rms.strengths(&sources, 100, &[]);
            (truth.judge(&sources, &strengths, Rule::Otsu), strengths)
        };
        let (right, _) = image(40);
        let perfect = Found { precision: 1., recall: 1., correlation: 1., ..Found::default() };
        assert_eq!(Found { correlation: (right.correlation * 1e9).round() / 1e9, ..right }, perfect);
        let (wrong, strengths) = image(60);
        let off = head.distance(40, 60);
        let all = [wrong.localization, wrong.peak, wrong.dispersion];
        assert!(all.iter().all(|d| (d - off).abs() < 1e-9), "{all:?} for {off}");
        assert_eq!((wrong.precision, wrong.recall, wrong.correlation), (0., 0., 0.));
        // To find it, everything has to be said.
        let [precision, _] = truth.at_recall(&strengths, 1.);
        assert_eq!(precision, 1. / 42.);
    }
}
