//! Samples as tensors, and their random changes in training.

use std::path::Path;
use std::sync::Arc;

use candle_core::{Device, Result, Tensor};
use rayon::prelude::*;
use zoo_layers::Mode;
use zoo_layers::random::{Purpose, Stream, layer_id};
use zoo_training::Split;

use crate::head::Head;
use crate::simulation::{Generator, Sample};
use crate::{Config, Source};

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
}

/// A head and the samples simulated over it.
#[derive(Clone, Debug)]
pub(crate) struct Samples {
    train: Generator,
    judged: Generator,
    source: Source,
    device: Device,
}

/// The head at a path, or the built-in one.
pub(crate) fn head(path: &str, config: &Config) -> zoo_training::Result<Head> {
    let head = match path {
        "" => Head::spherical(config.sensors, config.sources)?,
        path => Head::read(Path::new(path))?,
    };
    head.check(config.sensors, config.sources)?;
    Ok(head)
}

impl Samples {
    pub(crate) fn new(head: Arc<Head>, source: &Source, seed: u64, device: &Device) -> Self {
        let generator = |seed| Generator::new(head.clone(), source.simulation.clone(), seed);
        Self { train: generator(seed), judged: generator(SEED), source: source.clone(), device: device.clone() }
    }

    pub(crate) fn head(&self) -> &Arc<Head> {
        self.train.head()
    }

    pub(crate) fn source(&self) -> &Source {
        &self.source
    }

    pub(crate) fn len(&self, split: Split) -> usize {
        match split {
            Split::Train => self.source.train,
            Split::Valid => self.source.valid,
            Split::Test => self.source.test,
        }
    }

    /// The samples of the same numbers over another head.
    pub(crate) fn over(&self, head: Arc<Head>) -> Self {
        Self::new(head, &self.source, SEED, &self.device)
    }

    pub(crate) fn samples(&self, split: Split, indices: &[usize]) -> Result<Vec<Sample>> {
        let generator = if split == Split::Train { &self.train } else { &self.judged };
        indices.par_iter().map(|i| generator.sample(split.name(), *i as u64)).collect()
    }

    pub(crate) fn tensors(&self, samples: &[Sample]) -> Result<Batch> {
        let head = self.head();
        let (n, m, t, b) = (head.electrodes.len(), head.regions.len(), self.source.simulation.steps, samples.len());
        let eeg: Vec<f32> = samples.iter().flat_map(|s| &s.eeg).copied().collect();
        let mut activity = vec![0.; b * t * m];
        activity.par_chunks_mut(t * m).zip(samples).for_each(|(to, sample)| sample.fill(m, to));
        Ok(Batch {
            eeg: Tensor::from_vec(eeg, (b, t, n), &self.device)?,
            activity: Tensor::from_vec(activity, (b, t, m), &self.device)?,
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
        let mut places: Vec<u32> = Vec::with_capacity(b * t);
        let mut noise = vec![0f32; b * t * n];
        for (i, noise) in noise.chunks_exact_mut(t * n).enumerate() {
            let chosen = draw.uniform() < self.source.augment;
            let shift = i64::from(draw.below(2 * SHIFT + 1)) - i64::from(SHIFT);
            let from = |to: usize| (to as i64 - if chosen { shift } else { 0 }).clamp(0, t as i64 - 1) as usize;
            places.extend((0..t).map(|to| (i * t + from(to)) as u32));
            if chosen {
                let mut stream = Stream::new(seed, Purpose::Augmentation, layer_id("deepsif.noise") + i as u64, step);
                noise.iter_mut().for_each(|v| *v = NOISE * stream.normal() as f32);
            }
        }
        let places = Tensor::from_vec(places, b * t, &self.device)?;
        let shifted = |x: &Tensor, c: usize| x.reshape((b * t, c))?.index_select(&places, 0)?.reshape((b, t, c));
        Ok(Batch {
            eeg: (shifted(&batch.eeg, n)? + Tensor::from_vec(noise, (b, t, n), &self.device)?)?,
            activity: shifted(&batch.activity, m)?,
        })
    }
}
