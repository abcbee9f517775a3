//! What is known of a head: electrodes, regions of the cortex, and the lead field between them.

mod folder;
mod spherical;
mod surface;

pub use spherical::{SHELLS, Shell, potential};
pub use surface::Surface;

use zoo_layers::random::{Purpose, Stream, layer_id};
use zoo_training::{Error, Result};

use crate::bayes::Cortex;
pub(crate) use crate::image::distance;
pub use crate::image::{Electrode, Point};

/// A head.
#[derive(Clone, Debug)]
pub struct Head {
    /// Where it comes from.
    pub origin: String,
    /// In the order of the lead field's rows.
    pub electrodes: Vec<Electrode>,
    /// Centres of the regions, in the order of its columns.
    pub regions: Vec<Point>,
    /// The regions that border on each.
    pub neighbours: Vec<Vec<usize>>,
    /// The potential at each electrode for unit activity of each region, row after row (electrodes × regions).
    pub lead_field: Vec<f64>,
    /// The cortex, where it is known.
    pub surface: Option<Surface>,
    /// Recorded noise: stretches of time steps × electrodes.
    pub noise: Vec<Vec<f32>>,
}

impl Head {
    /// The head in a folder of MATLAB files, found by the variables in them: `fwd` (electrodes × regions) the lead field,
    /// `pos` (mm, RAS) and `tri` (from 1) the cortex, `rm` the region of each vertex (from 0), and, where there are any,
    /// `eloc75` the electrodes in EEGLAB's frame and `npower` beside `data` (stretches × time × electrodes) recorded noise.
    ///
    /// # Errors
    /// A variable that is missing or does not fit the others, or fewer than 3 electrodes or regions; the message names file,
    /// variable and shape.
    pub fn read(folder: &std::path::Path) -> Result<Self> {
        folder::read(folder)
    }

    /// A head of four concentric shells, with electrodes over the upper two thirds of the scalp and regions over a sphere
    /// within the brain, all by fixed rules.
    ///
    /// # Errors
    /// Fewer than 3 electrodes or regions, or more than 20,000 regions.
    pub fn spherical(electrodes: usize, regions: usize) -> Result<Self> {
        spherical::head(electrodes, regions)
    }

    /// A head of which the lead field (electrodes × regions, row after row) and the centres of the regions (mm) alone are known: the
    /// neighbours of a region are the six nearest and those that it is among the six nearest of.
    pub(crate) fn of_field(origin: String, lead_field: Vec<f64>, regions: Vec<Point>) -> Self {
        const NEAREST: usize = 6;
        let (m, n) = (regions.len(), lead_field.len() / regions.len().max(1));
        let mut neighbours = vec![vec![]; m];
        for i in 0..m {
            let mut others: Vec<usize> = (0..m).filter(|j| *j != i).collect();
            let apart = |j: &usize| distance(&regions[i], &regions[*j]);
            others.sort_by(|a, b| apart(a).total_cmp(&apart(b)));
            for &j in others.iter().take(NEAREST) {
                neighbours[i].push(j);
                neighbours[j].push(i);
            }
        }
        for near in &mut neighbours {
            near.sort_unstable();
            near.dedup();
        }
        let electrodes = (0..n).map(|e| Electrode { label: format!("E{}", e + 1), position: None }).collect();
        Self { origin, electrodes, regions, neighbours, lead_field, surface: None, noise: vec![] }
    }

    /// What imaging needs of it.
    pub(crate) fn cortex(&self) -> Cortex {
        Cortex {
            electrodes: self.electrodes.len(),
            field: crate::simulation::referenced(self),
            centres: self.regions.clone(),
            neighbours: self.neighbours.clone(),
            rest: vec![],
        }
    }

    /// Whether the regions lie at `places` (mm), which may be rounded to a tenth.
    pub(crate) fn lies_at(&self, places: &[Point]) -> bool {
        const ROUNDED: f64 = 0.2;
        let near = |(a, b): (&Point, &Point)| distance(a, b) <= ROUNDED;
        places.len() == self.regions.len() && places.iter().zip(&self.regions).all(near)
    }

    /// The distance of two regions in millimetres, along a straight line between their centres.
    pub fn distance(&self, a: usize, b: usize) -> f64 {
        distance(&self.regions[a], &self.regions[b])
    }

    /// A head that is a little different, as a real one is from its model: every region's field is blended with that of a
    /// neighbour (by up to 40 %), every electrode's potential with that of the nearest electrode (by up to 20 %), and every
    /// electrode is off in gain by 5 %.
    pub fn perturbed(&self, seed: u64) -> Self {
        let (n, m) = (self.electrodes.len(), self.regions.len());
        let mut draw = Stream::new(seed, Purpose::Simulation, layer_id("deepsif.another head"), 0);
        let mut field = self.lead_field.clone();
        for i in 0..m {
            let near = &self.neighbours[i];
            let other = if near.is_empty() { i } else { near[draw.below(near.len() as u32) as usize] };
            let share = 0.4 * draw.uniform();
            (0..n).for_each(|e| field[e * m + i] += share * (self.lead_field[e * m + other] - field[e * m + i]));
        }
        let blended = field.clone();
        for e in 0..n {
            let apart = |o: &usize| match (self.electrodes[e].position, self.electrodes[*o].position) {
                (Some(a), Some(b)) => distance(&a, &b),
                _ => f64::INFINITY,
            };
            let nearest =
                (0..n).filter(|o| *o != e && apart(o).is_finite()).min_by(|a, b| apart(a).total_cmp(&apart(b)));
            // Where positions are not known nothing is near.
            let other = nearest.unwrap_or(e);
            let (share, gain) = (0.2 * draw.uniform(), 1. + 0.05 * draw.normal());
            for i in 0..m {
                let (own, others) = (blended[e * m + i], blended[other * m + i]);
                field[e * m + i] = gain * (own + share * (others - own));
            }
        }
        Self { lead_field: field, origin: format!("{}, perturbed", self.origin), ..self.clone() }
    }

    /// Refuses a head that does not fit a model.
    ///
    /// # Errors
    /// Other numbers of electrodes or regions.
    pub fn check(&self, sensors: usize, sources: usize) -> Result<()> {
        let (n, m) = (self.electrodes.len(), self.regions.len());
        match (n, m) == (sensors, sources) {
            true => Ok(()),
            false => Err(Error::Usage(format!(
                "{}: {n} electrodes and {m} regions, but model.sensors = {sensors} and model.sources = {sources}",
                self.origin
            ))),
        }
    }
}
