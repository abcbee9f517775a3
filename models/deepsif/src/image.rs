//! Imaging EEG with trained weights.

use std::path::Path;

use candle_core::{Device, Result, Tensor, bail};
use serde::{Deserialize, Serialize};
use zoo_checkpoint::Description;
use zoo_layers::{Mode, Params};

use crate::{Config, Network};

/// The model's name, which its weights carry.
pub(crate) const NAME: &str = "deepsif";

/// Time steps a second.
pub const RATE: usize = 500;

/// A position in millimetres: right, front, up.
pub type Point = [f64; 3];

/// An electrode.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Electrode {
    /// Its name.
    pub label: String,
    /// Where it is, if that is known.
    #[serde(rename = "place")]
    pub position: Option<Point>,
}

/// What weights are kept with: the head that they were trained for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Montage {
    /// In the order of the EEG's channels.
    pub electrodes: Vec<Electrode>,
    /// Centres of the regions, in the order of the sources.
    pub regions: Vec<Point>,
    /// Time steps of a sample.
    pub steps: usize,
}

/// A trained [`Network`] with the head that it was trained for.
#[derive(Clone, Debug)]
pub struct DeepSif {
    network: Network,
    montage: Montage,
    device: Device,
}

/// The activity of the regions over time.
#[derive(Clone, Debug)]
pub struct Image {
    /// Time steps × regions.
    pub activity: Vec<f32>,
    /// Regions.
    pub regions: usize,
}

impl Image {
    /// Root of the mean square over time of each region.
    pub fn strengths(&self) -> Vec<f64> {
        strengths(&self.activity, self.regions)
    }

    /// The regions by falling strength.
    pub fn strongest(&self) -> Vec<(usize, f64)> {
        let mut all: Vec<(usize, f64)> = self.strengths().into_iter().enumerate().collect();
        all.sort_by(|a, b| b.1.total_cmp(&a.1));
        all
    }
}

/// The distance of two positions.
pub(crate) fn distance(a: &Point, b: &Point) -> f64 {
    a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum::<f64>().sqrt()
}

/// The share of a patch's amplitude that a region has `apart` from its centre: 1 there, a half at the `edge`.
pub(crate) fn share_at(apart: f64, edge: f64) -> f32 {
    0.5f64.powf((apart / edge).powi(2)) as f32
}

/// Root of the mean square over time of each of `regions` columns.
pub(crate) fn strengths(activity: &[f32], regions: usize) -> Vec<f64> {
    let mut sums = vec![0f64; regions];
    for row in activity.chunks_exact(regions) {
        sums.iter_mut().zip(row).for_each(|(s, v)| *s += f64::from(*v).powi(2));
    }
    let steps = (activity.len() / regions.max(1)).max(1) as f64;
    sums.iter().map(|s| (s / steps).sqrt()).collect()
}

impl Montage {
    /// Refuses the head of another model.
    pub(crate) fn check(&self, config: &Config) -> Result<()> {
        let (n, m, steps) = (self.electrodes.len(), self.regions.len(), self.steps);
        if (n, m) != (config.sensors, config.sources) {
            bail!("{n} electrodes and {m} regions do not fit a model of {} and {}", config.sensors, config.sources)
        }
        if steps == 0 || config.is_transformer() && steps > config.positions {
            bail!("{steps} time steps do not fit a model of {} positions", config.positions)
        }
        Ok(())
    }
}

impl DeepSif {
    /// Loads trained weights: weights, sizes, electrodes and regions are in the one file.
    ///
    /// # Errors
    /// The file cannot be read, is not a DeepSIF network, or its tensors do not fit its own description.
    pub fn load(path: &Path, device: &Device) -> Result<Self> {
        let (config, montage, tensors): (Config, Montage, _) =
            Description::open(path, NAME, device).map_err(candle_core::Error::wrap)?;
        let named = |e| candle_core::Error::msg(format!("{}: {e}", path.display()));
        let (network, _) = Params::restore(tensors, device, |vb| Network::new(&config, vb)).map_err(named)?;
        Self::new(network, &config, montage, device).map_err(named)
    }

    pub(crate) fn new(network: Network, config: &Config, montage: Montage, device: &Device) -> Result<Self> {
        montage.check(config)?;
        Ok(Self { network, montage, device: device.clone() })
    }

    /// The head that it was trained for.
    pub fn montage(&self) -> &Montage {
        &self.montage
    }

    /// The sources of EEG, time steps × electrodes at 500 Hz, in any unit: it is average-referenced and scaled here.
    ///
    /// # Errors
    /// Other numbers of time steps or electrodes than it was trained on, or EEG that never changes or is not finite.
    pub fn image(&self, eeg: &[Vec<f32>]) -> Result<Image> {
        let Montage { electrodes, regions, steps } = &self.montage;
        let n = electrodes.len();
        if let Some(wrong) = self.misfit(eeg.len(), eeg.iter().map(Vec::len).find(|len| *len != n).unwrap_or(n)) {
            bail!("{wrong}")
        }
        let mut values: Vec<f32> = eeg.iter().flatten().copied().collect();
        if let Some(at) = values.iter().position(|v| !v.is_finite()) {
            bail!(
                "the EEG has a value that is not finite, at time step {} of electrode {}",
                at / n,
                electrodes[at % n].label
            )
        }
        prepare(&mut values, n);
        if values.iter().all(|v| *v == 0.) {
            bail!("the EEG never changes")
        }
        let eeg = Tensor::from_vec(values, (1, *steps, n), &self.device)?;
        let activity = self.network.forward(&eeg, Mode::Eval)?.to_device(&Device::Cpu)?.flatten_all()?.to_vec1()?;
        Ok(Image { activity, regions: regions.len() })
    }

    /// Why EEG of this shape cannot be imaged.
    pub(crate) fn misfit(&self, steps: usize, electrodes: usize) -> Option<String> {
        let (wanted, n) = (self.montage.steps, self.montage.electrodes.len());
        ((steps, electrodes) != (wanted, n)).then(|| {
            format!(
                "EEG of {steps} time steps x {electrodes} channels, but these weights image {wanted} time steps (at 500 Hz) x {n} \
                 channels, in the order that they were trained with"
            )
        })
    }
}

/// Takes the mean over time of each of `n` columns away.
pub(crate) fn still(rows: &mut [f32], n: usize) {
    let steps = (rows.len() / n).max(1) as f64;
    let mut means = vec![0f64; n];
    for row in rows.chunks_exact(n) {
        means.iter_mut().zip(row).for_each(|(m, v)| *m += f64::from(*v) / steps);
    }
    for row in rows.chunks_exact_mut(n) {
        row.iter_mut().zip(&means).for_each(|(v, m)| *v -= *m as f32);
    }
}

/// Takes the means over time and over the `n` electrodes of every time step away.
pub(crate) fn centre(eeg: &mut [f32], n: usize) {
    still(eeg, n);
    for row in eeg.chunks_exact_mut(n) {
        let mean = (row.iter().map(|v| f64::from(*v)).sum::<f64>() / n as f64) as f32;
        row.iter_mut().for_each(|v| *v -= mean);
    }
}

/// Brings EEG, time steps × `n` electrodes, to what networks are trained on: without its means over time and over electrodes,
/// divided by its largest magnitude. EEG that never changes becomes zero.
pub fn prepare(eeg: &mut [f32], n: usize) {
    centre(eeg, n);
    let largest = eeg.iter().fold(f32::MIN_POSITIVE, |m, v| m.max(v.abs()));
    eeg.iter_mut().for_each(|v| *v /= largest);
}
