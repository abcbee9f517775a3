//! Simulated EEG of spikes: background of the whole cortex, patches of it that spike, the lead field, the sensors' noise.

mod jansen_rit;
mod patch;
mod portrait;
mod waves;

pub use jansen_rit::Mass;
pub use patch::Patch;
pub use portrait::Portrait;

use std::sync::Arc;

use candle_core::Result;
use serde::{Deserialize, Serialize};
use zoo_kernels::cpu::matmul::matmul;
use zoo_kernels::cpu::product::Matrix;
use zoo_layers::random::{Purpose, Stream, layer_id};

use crate::head::Head;
pub use crate::image::RATE;
use crate::image::{centre, prepare, still};
use jansen_rit::Masses;

/// Milliseconds before what is taken, in which masses forget how they began.
const SETTLING: usize = 500;
/// Masses that are tried for a patch: one of them spikes.
const CANDIDATES: usize = 8;
/// Time steps of a trial, on top of those that are taken.
const TRIAL: usize = 1500;
/// How far above its median a potential counts as a spike, mV. Healthy masses vary by 1.3 mV, spikes reach 10.
const SPIKE: f32 = 5.;
/// Excitatory gains of spiking masses, mV, and the middle and half width of their input, 1/s.
const GAINS: [f64; 2] = [3.55, 3.75];
const INPUT: [f64; 2] = [85., 90.];
const SPREAD: f64 = 50.;
/// The seed of the first of the heads that training may see.
const FIRST_HEAD: u64 = 1000;

/// What is simulated: the table `[data.simulation]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Time steps of a sample, at 500 a second.
    pub steps: usize,
    /// The fewest and the most patches.
    pub patches: [usize; 2],
    /// The fewest and the most regions of a patch.
    pub extent: [usize; 2],
    /// Power of what the patches give over that of the cortex's background, both at the electrodes, dB: least and greatest.
    pub background: [f64; 2],
    /// Power of both over that of the sensors' noise, dB: least and greatest.
    pub snr: [f64; 2],
    /// Share of the samples whose noise is recorded, where there is any, instead of white.
    pub recorded: f64,
    /// Heads that a training sample's EEG may come from, each a little different from the one that is known; none but it if 0.
    pub heads: usize,
    /// Share of the training samples whose patches have courses of other forms than neural masses make.
    pub other_courses: f64,
}

/// Where activity comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// Neural masses; bumps and rhythms for the share that the settings give.
    Training,
    /// Neural masses over the head that is known.
    Judging,
    /// Triangles and half sines over 1/f noise.
    Other,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            steps: 500,
            patches: [1, 2],
            extent: [1, 12],
            background: [5., 20.],
            snr: [5., 20.],
            recorded: 0.,
            heads: 0,
            other_courses: 0.,
        }
    }
}

impl Settings {
    /// What cannot work about these numbers, naming the key.
    pub(crate) fn problem(&self) -> Option<String> {
        let Self { steps, patches, extent, background, snr, recorded, heads, other_courses } = self;
        let key = |name: &str, what: &str| Some(format!("data.simulation.{name} {what}"));
        if *steps < 2 || *steps > 100_000 {
            return key("steps", "must lie between 2 and 100000");
        }
        if patches[0] == 0 || patches[1] < patches[0] || patches[1] > 20 {
            return key("patches", "must be two numbers from 1 to 20, the smaller first");
        }
        if extent[0] == 0 || extent[1] < extent[0] {
            return key("extent", "must be two numbers from 1 on, the smaller first");
        }
        for (name, [low, high]) in [("background", background), ("snr", snr)] {
            if !(-100. <= *low && low <= high && *high <= 100.) {
                return key(name, "must be two numbers of decibels from -100 to 100, the smaller first");
            }
        }
        for (name, share) in [("recorded", recorded), ("other_courses", other_courses)] {
            if !(0. ..=1.).contains(share) {
                return key(name, "must be a share from 0 to 1");
            }
        }
        if *heads > 1000 {
            return key("heads", "must be at most 1000");
        }
        None
    }
}

/// A simulated second.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// EEG, time steps × electrodes: without its mean over time, average-referenced, divided by its largest magnitude.
    pub eeg: Vec<f32>,
    /// What spikes, and how: the potential of the patch's centre over time, without its mean. The largest of all is one.
    pub sources: Vec<(Patch, Vec<f32>)>,
    /// Power of EEG without noise over that of the noise, dB; not a number where that is not known.
    pub snr: f64,
    /// The activity of all regions, time steps × regions, of a sample that was not simulated here.
    pub stored: Option<Vec<f32>>,
}

impl Sample {
    /// Writes the activity of every region, time steps × `regions`, over zeros.
    pub fn fill(&self, regions: usize, activity: &mut [f32]) {
        if let Some(stored) = &self.stored {
            return activity.copy_from_slice(stored);
        }
        for (patch, course) in &self.sources {
            for (row, v) in activity.chunks_exact_mut(regions).zip(course) {
                patch.regions.iter().for_each(|&(region, share)| row[region] += share * v);
            }
        }
    }
}

/// Makes samples: the same for the same head, settings, seed and number.
#[derive(Clone, Debug)]
pub struct Generator {
    head: Arc<Head>,
    settings: Settings,
    seed: u64,
    source: Source,
    resting: Masses,
    /// Of each head that EEG may come from: average-referenced, a row for each mass (zeros for those that only fill up).
    forwards: Vec<Vec<f32>>,
}

impl Generator {
    /// A generator over a head.
    pub fn new(head: Arc<Head>, settings: Settings, seed: u64) -> Self {
        Self::of(head, settings, seed, Source::Training)
    }

    pub(crate) fn of(head: Arc<Head>, settings: Settings, seed: u64, source: Source) -> Self {
        let resting = Masses::new(&vec![Mass::RESTING; head.regions.len()]);
        let (n, m) = (head.electrodes.len(), head.regions.len());
        let forward = |head: &Head| {
            let columns = referenced(head);
            let mut forward = vec![0.; resting.len() * n];
            for (i, row) in forward.chunks_exact_mut(n).take(m).enumerate() {
                row.iter_mut().enumerate().for_each(|(e, v)| *v = columns[e * m + i] as f32);
            }
            forward
        };
        let heads = if source == Source::Training { settings.heads as u64 } else { 0 };
        // Those that judge are perturbed by other seeds.
        let forwards = match heads {
            0 => vec![forward(&head)],
            _ => (0..heads).map(|i| forward(&head.perturbed(FIRST_HEAD + i))).collect(),
        };
        Self { head, settings, seed, source, resting, forwards }
    }

    /// Sample `number` of `series`, such as a split's name.
    ///
    /// # Errors
    /// `ZOO_SIMD` names a level that this machine lacks.
    pub fn sample(&self, series: &str, number: u64) -> Result<Sample> {
        let stream = |part: &str| {
            Stream::new(self.seed, Purpose::Simulation, layer_id(&format!("deepsif.{series}.{part}")), number)
        };
        let mut draw = stream("choices");
        let Settings { steps, patches: [fewest, most], extent, background, snr, recorded, other_courses, .. } =
            self.settings;
        let count = fewest + draw.below((most - fewest + 1) as u32) as usize;
        let patches = patch::draw(&self.head, count, extent, &mut draw);
        let mut other = stream("others");
        let forward = &self.forwards[other.below(self.forwards.len() as u32) as usize];
        let smooth = self.source == Source::Training && other.uniform() < other_courses;
        let mut sources = vec![];
        for (i, patch) in patches.into_iter().enumerate() {
            let mut activity = match self.source {
                Source::Other => waves::sharp(steps, &mut other),
                _ if smooth => waves::smooth(steps, &mut other),
                _ => spikes(steps, &mut draw, &stream(&format!("spikes {i}")))?,
            };
            // The first keeps its height, others are up to half as low.
            let strength = if i == 0 { 1. } else { 0.5 + 0.5 * draw.uniform() as f32 };
            activity.iter_mut().for_each(|v| *v *= strength);
            sources.push((patch, activity));
        }
        let largest = sources.iter().flat_map(|(_, a)| a).fold(f32::MIN_POSITIVE, |m, v| m.max(*v));
        for (_, activity) in &mut sources {
            activity.iter_mut().for_each(|v| *v /= largest);
        }
        let n = self.head.electrodes.len();
        let mut eeg = self.background(steps, forward, &stream("background"))?;
        let signal = self.project(&sources, forward, steps);
        bring(&mut eeg, power(&signal) / decibels(between(background, &mut draw)));
        eeg.iter_mut().zip(&signal).for_each(|(e, s)| *e += s);
        let snr = between(snr, &mut draw);
        let mut noise = self.noise(steps, recorded, &mut draw, stream("noise"));
        centre(&mut noise, n);
        bring(&mut noise, power(&eeg) / decibels(snr));
        eeg.iter_mut().zip(&noise).for_each(|(e, v)| *e += v);
        prepare(&mut eeg, n);
        Ok(Sample { eeg, sources, snr, stored: None })
    }

    /// EEG without any patch, such as a baseline has: background and noise with the powers that they have in samples on average (in
    /// decibels), where the patches' is one.
    pub(crate) fn rest(&self, number: u64) -> Result<Vec<f32>> {
        let stream =
            |part: &str| Stream::new(self.seed, Purpose::Simulation, layer_id(&format!("deepsif.rest.{part}")), number);
        let Settings { steps, background, snr, recorded, .. } = self.settings;
        let middle = |[low, high]: [f64; 2]| 1. / decibels(0.5 * (low + high));
        let n = self.head.electrodes.len();
        let mut eeg = self.background(steps, &self.forwards[0], &stream("background"))?;
        bring(&mut eeg, middle(background));
        let mut noise = self.noise(steps, recorded, &mut stream("choices"), stream("noise"));
        centre(&mut noise, n);
        bring(&mut noise, (1. + middle(background)) * middle(snr));
        eeg.iter_mut().zip(&noise).for_each(|(e, v)| *e += v);
        Ok(eeg)
    }

    /// EEG of the cortex at rest, centred.
    fn background(&self, steps: usize, forward: &[f32], stream: &Stream) -> Result<Vec<f32>> {
        let (n, m) = (self.head.electrodes.len(), self.resting.len());
        let potentials = match self.source {
            Source::Other => waves::pink(steps, m, &mut stream.clone()),
            _ => self.resting.simulate(SETTLING, steps, stream)?,
        };
        let mut eeg = matmul([steps, n, m], Matrix::rows(&potentials, m), Matrix::rows(forward, n));
        centre(&mut eeg, n);
        Ok(eeg)
    }

    /// EEG of the patches alone.
    fn project(&self, sources: &[(Patch, Vec<f32>)], forward: &[f32], steps: usize) -> Vec<f32> {
        let n = self.head.electrodes.len();
        let mut eeg = vec![0.; steps * n];
        for (patch, activity) in sources {
            let mut map = vec![0.; n];
            for &(region, share) in &patch.regions {
                map.iter_mut().zip(&forward[region * n..]).for_each(|(v, f)| *v += share * f);
            }
            for (row, a) in eeg.chunks_exact_mut(n).zip(activity) {
                row.iter_mut().zip(&map).for_each(|(v, m)| *v += a * m);
            }
        }
        eeg
    }

    /// White noise, or a recorded stretch begun at a random time, as long as it takes.
    fn noise(&self, steps: usize, recorded: f64, draw: &mut Stream, mut stream: Stream) -> Vec<f32> {
        let n = self.head.electrodes.len();
        let stretches = &self.head.noise;
        if draw.uniform() < recorded && !stretches.is_empty() {
            let stretch = &stretches[draw.below(stretches.len() as u32) as usize];
            let rows = stretch.len() / n;
            let first = draw.below(rows as u32) as usize;
            return (0..steps).flat_map(|t| &stretch[(first + t) % rows * n..][..n]).copied().collect();
        }
        (0..steps * n).map(|_| stream.normal() as f32).collect()
    }
}

/// The lead field without its mean over the electrodes.
pub(crate) fn referenced(head: &Head) -> Vec<f64> {
    let (n, m) = (head.electrodes.len(), head.regions.len());
    let mut field = head.lead_field.clone();
    for i in 0..m {
        let mean = (0..n).map(|e| field[e * m + i]).sum::<f64>() / n as f64;
        (0..n).for_each(|e| field[e * m + i] -= mean);
    }
    field
}

/// The potential over time of a mass that spikes, without its mean, a spike somewhere within.
fn spikes(steps: usize, draw: &mut Stream, stream: &Stream) -> Result<Vec<f32>> {
    let mass = || {
        let (gain, middle) = (between(GAINS, draw) as f32, between(INPUT, draw));
        Mass { gain, input: [(middle - SPREAD) as f32, (middle + SPREAD) as f32] }
    };
    let masses: Vec<Mass> = std::iter::repeat_with(mass).take(CANDIDATES).collect();
    let masses = Masses::new(&masses);
    let samples = steps + TRIAL;
    let rows = masses.simulate(SETTLING, samples, stream)?;
    let column = |c: usize| rows.iter().skip(c).step_by(masses.len()).copied().collect::<Vec<f32>>();
    let position = (steps as f64 * (0.1 + 0.8 * draw.uniform())) as usize;
    // Peaks that can be put at that position.
    let range = position.max(1)..samples - (steps - position).max(1);
    for candidate in 0..CANDIDATES {
        let potential = column(candidate);
        let mut sorted = potential.clone();
        sorted.sort_unstable_by(f32::total_cmp);
        let least = sorted[sorted.len() / 2] + SPIKE;
        let peak = |t: &usize| {
            potential[*t] > least && potential[*t] >= potential[*t - 1] && potential[*t] > potential[*t + 1]
        };
        let peaks: Vec<usize> = range.clone().filter(peak).collect();
        if !peaks.is_empty() {
            let peak = peaks[draw.below(peaks.len() as u32) as usize];
            return Ok(taken(&potential, peak - position, steps));
        }
    }
    // None of them spiked in three seconds: the highest wave there is.
    let potential = column(0);
    let highest = range.max_by(|a, b| potential[*a].total_cmp(&potential[*b])).unwrap_or(position);
    Ok(taken(&potential, highest - position, steps))
}

fn taken(potential: &[f32], first: usize, steps: usize) -> Vec<f32> {
    let mut part = potential[first..first + steps].to_vec();
    still(&mut part, 1);
    part
}

fn between([low, high]: [f64; 2], draw: &mut Stream) -> f64 {
    low + (high - low) * draw.uniform()
}

fn decibels(db: f64) -> f64 {
    10f64.powf(db / 10.)
}

/// The mean square.
pub(crate) fn power(x: &[f32]) -> f64 {
    (x.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / x.len().max(1) as f64).max(f64::MIN_POSITIVE)
}

/// Brings `x` to a mean square, unless it is zero.
fn bring(x: &mut [f32], to: f64) {
    if x.iter().all(|v| *v == 0.) {
        return;
    }
    let factor = (to / power(x)).sqrt() as f32;
    x.iter_mut().for_each(|v| *v *= factor);
}

#[cfg(test)]
mod tests {
    use zoo_kernels::check::same_bits_on_any_threads;

    use super::*;

    fn generator(settings: Settings) -> Generator {
        Generator::new(Arc::new(Head::spherical(32, 200).unwrap()), settings, 7)
    }

    #[test]
    fn a_sample_is_its_number_alone_on_any_threads() -> Result<()> {
        let generator = generator(Settings { steps: 100, ..Settings::default() });
        assert_ne!(generator.sample("train", 0)?, generator.sample("train", 1)?);
        assert_ne!(generator.sample("train", 0)?, generator.sample("test", 0)?);
        same_bits_on_any_threads(|| {
            let sample = generator.sample("train", 3)?;
            Ok(std::iter::once(sample.eeg).chain(sample.sources.into_iter().map(|s| s.1)).collect())
        })
    }

    #[test]
    fn samples_are_what_networks_expect() -> Result<()> {
        let generator = generator(Settings::default());
        for number in 0..20 {
            let Sample { eeg, sources, snr, .. } = generator.sample("train", number)?;
            assert_eq!(eeg.len(), 500 * 32);
            assert!((5. ..=20.).contains(&snr) && (1..=2).contains(&sources.len()));
            assert_eq!(eeg.iter().fold(0f32, |m, v| m.max(v.abs())), 1.);
            for t in [0, 250, 499] {
                assert!(eeg[t * 32..][..32].iter().sum::<f32>().abs() < 1e-4);
            }
            let over_time: f32 = eeg.iter().skip(5).step_by(32).sum();
            assert!(over_time.abs() < 1e-2, "{over_time}");
            let largest = sources.iter().flat_map(|s| &s.1).fold(f32::MIN, |m, v| m.max(*v));
            assert!((largest - 1.).abs() < 1e-6);
            for (patch, activity) in &sources {
                assert!((1..=12).contains(&patch.regions.len()) && patch.regions[0] == (patch.centre, 1.));
                assert!(patch.regions.iter().all(|(_, share)| (0.49..=1.).contains(share)));
                assert!(activity.iter().sum::<f32>().abs() < 1e-2);
            }
        }
        Ok(())
    }

    #[test]
    fn noise_and_background_have_the_power_that_is_asked_for() -> Result<()> {
        // Without background the noise is what a perfect projection leaves over.
        for snr in [0., 10.] {
            let settings = Settings { background: [90.; 2], snr: [snr; 2], ..Settings::default() };
            let generator = generator(settings);
            let mut found = 0.;
            for number in 0..5 {
                let sample = generator.sample("train", number)?;
                let signal = generator.project(&sample.sources, &generator.forwards[0], 500);
                // The scale of the EEG is unknown: the least-squares fit tells it, up to the noise's share along the signal.
                let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(a * b)).sum::<f64>();
                let factor = dot(&sample.eeg, &signal) / dot(&signal, &signal);
                let left: Vec<f32> = sample.eeg.iter().zip(&signal).map(|(e, s)| e - factor as f32 * s).collect();
                found += 10. * (factor.powi(2) * power(&signal) / power(&left)).log10() / 5.;
            }
            assert!((found - snr).abs() < 0.3, "{found} dB for {snr}");
        }
        // Without noise it is the background.
        let settings = Settings { background: [3.; 2], snr: [90.; 2], ..Settings::default() };
        let generator = generator(settings);
        let mut found = 0.;
        for number in 0..10 {
            let sample = generator.sample("train", number)?;
            let signal = generator.project(&sample.sources, &generator.forwards[0], 500);
            let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(a * b)).sum::<f64>();
            let factor = dot(&sample.eeg, &signal) / dot(&signal, &signal);
            let left: Vec<f32> = sample.eeg.iter().zip(&signal).map(|(e, s)| e - factor as f32 * s).collect();
            found += 10. * (factor.powi(2) * power(&signal) / power(&left)).log10() / 10.;
        }
        assert!((found - 3.).abs() < 1., "{found} dB for 3");
        Ok(())
    }

    #[test]
    fn patches_grow_in_one_piece() -> Result<()> {
        let head = Head::spherical(32, 200).unwrap();
        for centre in [0, 50, 199] {
            let patch = Patch::grow(&head, centre, 12);
            assert_eq!(patch.regions.len(), 12);
            for (i, (region, _)) in patch.regions.iter().enumerate().skip(1) {
                assert!(patch.regions[..i].iter().any(|(r, _)| head.neighbours[*r].contains(region)));
            }
        }
        Ok(())
    }
}
