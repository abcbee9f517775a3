//! Samples as tensors, and their random changes in training.

use std::path::Path;
use std::sync::Arc;

use candle_core::{Device, Result, Tensor};
use rayon::prelude::*;
use zoo_layers::Mode;
use zoo_layers::random::{Purpose, Stream, layer_id};
use zoo_training::{Error, Split};

use crate::bayes::Cortex;
use crate::head::Head;
use crate::simulation::{Generator, Sample, Source};
use crate::stored::{SampleFile, Stored};
use crate::{Config, DataSettings};

/// The seed of the samples that validate and judge: the same for every run.
const SEED: u64 = 2022;
/// Standard deviation of the noise that augmentation adds to EEG whose largest magnitude is one.
const NOISE: f32 = 0.01;
/// Time steps that augmentation shifts by at most.
const SHIFT: u32 = 5;

/// EEG (b, t, n) and activity (b, t, sources).
#[derive(Clone, Debug)]
pub struct Batch {
    /// What the network sees.
    pub eeg: Tensor,
    /// What it is to tell.
    pub activity: Tensor,
    /// Which regions are active (b, sources): integers, 0 or 1.
    pub active: Tensor,
}

/// Where samples come from.
#[derive(Clone, Debug)]
enum Origin {
    /// To train, and to judge.
    Simulated(Box<[Generator; 2]>),
    Stored(Arc<Stored>),
}

/// A head and samples over it.
#[derive(Clone, Debug)]
pub(crate) struct Samples {
    head: Arc<Head>,
    origin: Origin,
    source: DataSettings,
    device: Device,
}

/// The head in a folder, or the built-in one.
pub(crate) fn head(path: &str, config: &Config) -> zoo_training::Result<Head> {
    let head = match path {
        "" => Head::spherical(config.sensors, config.sources)?,
        path => Head::read(Path::new(path))?,
    };
    head.check(config.sensors, config.sources)?;
    Ok(head)
}

/// Adds the products of the columns of EEG, time steps × `n`, to `sum` (n × n).
pub(crate) fn add_covariance(sum: &mut [f64], eeg: &[f32], n: usize) {
    for row in eeg.chunks_exact(n) {
        for (line, a) in sum.chunks_exact_mut(n).zip(row) {
            line.iter_mut().zip(row).for_each(|(s, b)| *s += f64::from(*a) * f64::from(*b));
        }
    }
}

impl Samples {
    /// Opens what `source` names. Without training (`judging`) a file may hold fewer samples than `source` sets aside.
    pub(crate) fn open(
        config: &Config,
        source: &DataSettings,
        seed: u64,
        judging: bool,
        device: &Device,
    ) -> zoo_training::Result<Self> {
        let path = Path::new(&source.path);
        if !path.is_file() {
            if !source.head.is_empty() && !path.is_dir() {
                return Err(Error::Data(format!("{}: there is no such file", path.display())));
            }
            if !source.head.is_empty() {
                let said = "data.head belongs to a file of samples: data.path names the head's folder itself";
                return Err(Error::Usage(said.into()));
            }
            return Ok(Self::simulated(Arc::new(head(&source.path, config)?), source, seed, device));
        }
        let file = SampleFile::read(path)?;
        let carried = if source.head.is_empty() { file.head()? } else { None };
        let head = match carried {
            Some(head) => head,
            None => head(&source.head, config)?,
        };
        head.check(config.sensors, config.sources)?;
        let stored = Stored::over(file, &head)?;
        let mut source = DataSettings { ..source.clone() };
        source.simulation.steps = stored.steps;
        let (all, kept) = (stored.len(), source.valid + source.test);
        match all.checked_sub(kept) {
            Some(train) if train > 0 => source.train = train,
            // A quarter tunes the methods that stand beside the network.
            _ if judging && all > 1 => {
                source.valid = source.valid.min((all / 4).max(1));
                (source.train, source.test) = (0, all - source.valid);
            }
            _ => {
                let (path, valid, test) = (path.display(), source.valid, source.test);
                return Err(Error::Data(format!(
                    "{path}: {all} samples, of which {valid} validate and {test} judge: none are left to train (set data.valid and \
                     data.test)"
                )));
            }
        }
        Ok(Self { head: Arc::new(head), origin: Origin::Stored(Arc::new(stored)), source, device: device.clone() })
    }

    fn simulated(head: Arc<Head>, source: &DataSettings, seed: u64, device: &Device) -> Self {
        Self::from(Source::Judging, head, source, seed, device)
    }

    /// Samples whose judges come from `judged`.
    fn from(judged: Source, head: Arc<Head>, source: &DataSettings, seed: u64, device: &Device) -> Self {
        let generator = |seed, kind| Generator::of(head.clone(), source.simulation.clone(), seed, kind);
        let origin = Origin::Simulated(Box::new([generator(seed, Source::Training), generator(SEED, judged)]));
        Self { origin, head, source: source.clone(), device: device.clone() }
    }

    pub(crate) fn head(&self) -> &Arc<Head> {
        &self.head
    }

    /// With the numbers that the data decided.
    pub(crate) fn source(&self) -> &DataSettings {
        &self.source
    }

    /// What tells stored samples apart; nothing if they are simulated.
    pub(crate) fn sha256(&self) -> Option<&str> {
        match &self.origin {
            Origin::Stored(stored) => Some(&stored.sha256),
            Origin::Simulated(_) => None,
        }
    }

    pub(crate) fn len(&self, split: Split) -> usize {
        match split {
            Split::Train => self.source.train,
            Split::Valid => self.source.valid,
            Split::Test => self.source.test,
        }
    }

    /// The samples of the same numbers over another head, if they are simulated.
    pub(crate) fn over(&self, head: Arc<Head>) -> Option<Self> {
        self.sha256().is_none().then(|| Self::simulated(head, &self.source, SEED, &self.device))
    }

    /// What imaging needs of the head, with EEG at rest.
    pub(crate) fn cortex(&self) -> Result<Cortex> {
        Ok(Cortex { rest: self.baseline()?, ..self.head.cortex() })
    }

    /// The covariance of simulated EEG at rest, electrodes × electrodes; nothing if the samples are not simulated.
    pub(crate) fn baseline(&self) -> Result<Vec<f64>> {
        const SECONDS: u64 = 20;
        let (Origin::Simulated(pair), n) = (&self.origin, self.head.electrodes.len()) else { return Ok(vec![]) };
        let mut sum = vec![0.; n * n];
        for number in 0..SECONDS {
            add_covariance(&mut sum, &pair[1].rest(number)?, n);
        }
        Ok(sum)
    }

    /// As many samples of another simulator, if they are simulated.
    pub(crate) fn by_another(&self) -> Option<Self> {
        let other = || Self::from(Source::Other, self.head.clone(), &self.source, SEED, &self.device);
        self.sha256().is_none().then(other)
    }

    pub(crate) fn samples(&self, split: Split, indices: &[usize]) -> Result<Vec<Sample>> {
        let first = match split {
            Split::Train => 0,
            Split::Valid => self.source.train,
            Split::Test => self.source.train + self.source.valid,
        };
        let one = |i: &usize| match &self.origin {
            Origin::Stored(stored) => Ok(stored.sample(first + i, &self.head)),
            Origin::Simulated(pair) => pair[usize::from(split != Split::Train)].sample(split.name(), *i as u64),
        };
        indices.par_iter().map(one).collect()
    }

    pub(crate) fn tensors(&self, samples: &[Sample]) -> Result<Batch> {
        let head = self.head();
        let (n, m, t, b) = (head.electrodes.len(), head.regions.len(), self.source.simulation.steps, samples.len());
        let eeg: Vec<f32> = samples.iter().flat_map(|s| &s.eeg).copied().collect();
        let mut activity = vec![0.; b * t * m];
        activity.par_chunks_mut(t * m).zip(samples).for_each(|(to, sample)| sample.fill(m, to));
        let mut active = vec![0i64; b * m];
        for (row, sample) in active.chunks_exact_mut(m.max(1)).zip(samples) {
            sample.sources.iter().flat_map(|(patch, _)| &patch.regions).for_each(|(region, _)| row[*region] = 1);
        }
        Ok(Batch {
            eeg: Tensor::from_vec(eeg, (b, t, n), &self.device)?,
            activity: Tensor::from_vec(activity, (b, t, m), &self.device)?,
            active: Tensor::from_vec(active, (b, m), &self.device)?,
        })
    }

    pub(crate) fn batch(&self, split: Split, indices: &[usize]) -> Result<Batch> {
        self.tensors(&self.samples(split, indices)?)
    }

    /// A training batch with some of its samples changed, as seed and step decide; itself when evaluating.
    pub(crate) fn augmented(&self, batch: &Batch, mode: Mode) -> Result<Batch> {
        let (Mode::Train { seed, step }, true) = (mode, self.source.augment > 0.) else { return Ok(batch.clone()) };
        let (b, t, n) = batch.eeg.dims3()?;
        let m = batch.activity.dim(2)?;
        let mut draw = Stream::new(seed, Purpose::Augmentation, layer_id("deepsif.choices"), step);
        // Which time step each takes the place of; those shifted in are the first or last one again.
        let mut sources: Vec<u32> = Vec::with_capacity(b * t);
        let mut changed = vec![];
        for i in 0..b {
            let chosen = draw.uniform() < self.source.augment;
            let shift = i64::from(draw.below(2 * SHIFT + 1)) - i64::from(SHIFT);
            let from = |to: usize| (to as i64 - if chosen { shift } else { 0 }).clamp(0, t as i64 - 1) as usize;
            sources.extend((0..t).map(|to| (i * t + from(to)) as u32));
            changed.push(chosen);
        }
        let mut noise = vec![0f32; b * t * n];
        let each = noise.par_chunks_exact_mut((t * n).max(1)).enumerate().filter(|(i, _)| changed[*i]);
        each.for_each(|(i, noise)| {
            let mut stream = Stream::new(seed, Purpose::Augmentation, layer_id("deepsif.noise") + i as u64, step);
            noise.iter_mut().for_each(|v| *v = NOISE * stream.normal() as f32);
        });
        let sources = Tensor::from_vec(sources, b * t, &self.device)?;
        let shifted = |x: &Tensor, c: usize| x.reshape((b * t, c))?.index_select(&sources, 0)?.reshape((b, t, c));
        Ok(Batch {
            eeg: (shifted(&batch.eeg, n)? + Tensor::from_vec(noise, (b, t, n), &self.device)?)?,
            activity: shifted(&batch.activity, m)?,
            active: batch.active.clone(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn augmentation_shifts_eeg_and_activity_alike_and_leaves_evaluation_alone() -> Result<()> {
        let config = Config::tiny();
        let mut source = DataSettings { augment: 1., ..DataSettings::default() };
        source.simulation.steps = 50;
        source.simulation.extent = [1, 3];
        let samples = Samples::open(&config, &source, 1, false, &Device::Cpu).map_err(candle_core::Error::wrap)?;
        let batch = samples.batch(Split::Train, &[0, 1, 2, 3])?;
        let same = samples.augmented(&batch, Mode::Eval)?;
        assert_eq!(same.eeg.to_vec3::<f32>()?, batch.eeg.to_vec3::<f32>()?);
        let mode = Mode::Train { seed: 1, step: 7 };
        let changed = samples.augmented(&batch, mode)?;
        assert_eq!(changed.eeg.to_vec3::<f32>()?, samples.augmented(&batch, mode)?.eeg.to_vec3::<f32>()?);
        let (eeg, activity) = (batch.eeg.to_vec3::<f32>()?, batch.activity.to_vec3::<f32>()?);
        let (new, moved) = (changed.eeg.to_vec3::<f32>()?, changed.activity.to_vec3::<f32>()?);
        let mut shifts = vec![];
        for i in 0..4 {
            let by = |shift: i64| move |t: usize| (t as i64 - shift).clamp(0, 49) as usize;
            let fits = |shift: &i64| (0..50).all(|t| moved[i][t] == activity[i][by(*shift)(t)]);
            let Some(shift) = (-5..=5).find(fits) else { panic!("sample {i} was not shifted by up to 5") };
            let off: Vec<f32> = (0..50)
                .flat_map(|t| (0..8).map(move |e| (t, e)))
                .map(|(t, e)| new[i][t][e] - eeg[i][by(shift)(t)][e])
                .collect();
            let deviation = (off.iter().map(|v| v * v).sum::<f32>() / off.len() as f32).sqrt();
            assert!((0.008..0.012).contains(&deviation), "sample {i} has noise of {deviation}");
            shifts.push(shift);
        }
        assert!(shifts.iter().any(|s| *s != shifts[0]), "{shifts:?}");
        Ok(())
    }
}
