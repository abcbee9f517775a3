use std::sync::{Arc, Mutex};

use candle_core::{DType, Device, Result, Tensor, bail};
use candle_nn::VarBuilder;
use zoo_layers::ops::{self, Activation};
use zoo_layers::{Dropout, Linear, Mode, Norm, init};

use super::maps::{FEATURES, Mapper};
use super::neighbours::{Borders, neighbour_mean};
use crate::Config;
use crate::bayes::Cortex;

const EPS: f64 = 1e-5;
/// The most neighbours of a region that the weights keep.
const MOST: usize = 32;

/// A network over the cortex: it looks at what sparse Bayesian learning and sLORETA say of each region in three views of the EEG, and at
/// its neighbours, layer by layer, and says which regions are active. Their courses are those of sparse Bayesian learning.
///
/// Tensors: `input.weight`, `layers.0.norm.weight`, `layers.0.own.weight`, `layers.0.near.weight`, `layers.0.out.weight` …,
/// `norm.weight`, `output.weight`; and the head: `constant_field` (electrodes, regions) without its mean over the electrodes,
/// `constant_centres` (regions, 3) in millimetres, `constant_neighbours` (regions, 32) from 0, the rest -1, and `constant_rest`
/// (electrodes, electrodes), the covariance of EEG at rest, zero where it is not known.
#[derive(Clone, Debug)]
pub(crate) struct Graph {
    field: Tensor,
    centres: Tensor,
    neighbours: Tensor,
    rest: Tensor,
    input: Linear,
    layers: Vec<Layer>,
    norm: Norm,
    output: Linear,
    /// What follows from the head, once it is known.
    known: Arc<Mutex<Option<Known>>>,
}

#[derive(Clone, Debug)]
struct Known {
    mapper: Arc<Mapper>,
    borders: Arc<Borders>,
    /// Whether the data named the head, not the weights.
    #[cfg(feature = "train")]
    told: bool,
}

#[derive(Clone, Debug)]
struct Layer {
    norm: Norm,
    own: Linear,
    near: Linear,
    out: Linear,
    dropout: Dropout,
}

impl Layer {
    fn new(c: usize, dropout: f64, number: usize, vb: VarBuilder) -> Result<Self> {
        Ok(Self {
            norm: Norm::layer(c, EPS, true, vb.pp("norm"))?,
            own: Linear::new(c, c, vb.pp("own"))?,
            near: Linear::with_init(c, c, false, init::linear(c), vb.pp("near"))?,
            out: Linear::new(c, c, vb.pp("out"))?,
            dropout: Dropout::new(dropout, &format!("layers.{number}.dropout")),
        })
    }

    /// (b, regions, c) to (b, regions, c).
    fn forward(&self, x: &Tensor, borders: &Arc<Borders>, mode: Mode) -> Result<Tensor> {
        let z = self.norm.forward(x)?;
        let near = self.near.forward(&neighbour_mean(&z, borders)?)?;
        let hidden = ops::gelu(&ops::add_dropout(&self.own.forward(&z)?, &near, None)?)?;
        ops::add_dropout(x, &self.out.forward(&hidden)?, self.dropout.stream(mode))
    }
}

/// What the network says of samples.
pub(crate) struct Scores {
    /// Whether each region is inactive or active, as logits (b, regions, 2).
    pub(crate) logits: Tensor,
    /// (b, t, regions), all of the same power: how strong a region is is what the network says.
    pub(crate) courses: Tensor,
}

impl Scores {
    /// The course of each region times how sure the network is that it is active, (b, t, regions).
    pub(crate) fn activity(&self) -> Result<Tensor> {
        let active = ops::softmax(&self.logits)?.narrow(2, 1, 1)?.transpose(1, 2)?; // (b, 1, regions)
        self.courses.broadcast_mul(&active)
    }
}

impl Graph {
    pub(crate) fn new(config: &Config, vb: VarBuilder) -> Result<Self> {
        let &Config { sensors, sources, width, layers, dropout, .. } = config;
        let constant = |shape: (usize, usize), name: &str| vb.get_with_hints(shape, name, init::ZEROS);
        Ok(Self {
            field: constant((sensors, sources), "constant_field")?,
            centres: constant((sources, 3), "constant_centres")?,
            neighbours: constant((sources, MOST), "constant_neighbours")?,
            rest: constant((sensors, sensors), "constant_rest")?,
            input: Linear::new(FEATURES, width, vb.pp("input"))?,
            layers: (0..layers).map(|i| Layer::new(width, dropout, i, vb.pp("layers").pp(i))).collect::<Result<_>>()?,
            norm: Norm::layer(width, EPS, true, vb.pp("norm"))?,
            output: Linear::new(width, 2, vb.pp("output"))?,
            known: Arc::default(),
        })
    }

    /// Takes the head of the data, once, in place of the one in the weights.
    #[cfg(feature = "train")]
    pub(crate) fn meet(&self, cortex: impl FnOnce() -> Result<Cortex>) -> Result<()> {
        let mut known = self.known.lock().unwrap_or_else(|e| e.into_inner());
        if known.as_ref().is_some_and(|k| k.told) {
            return Ok(());
        }
        let cortex = cortex()?;
        let (n, m) = (cortex.electrodes, cortex.centres.len());
        let mut near = vec![-1f32; m * MOST];
        for (i, of) in cortex.neighbours.iter().enumerate() {
            if of.len() > MOST {
                bail!("region {i} has {} neighbours, more than {MOST}", of.len())
            }
            near[i * MOST..].iter_mut().zip(of).for_each(|(slot, j)| *slot = *j as f32);
        }
        let set = |to: &Tensor, values: Vec<f32>, shape: (usize, usize)| {
            to.slice_set(&Tensor::from_vec(values, shape, to.device())?, 0, 0)
        };
        set(&self.field, cortex.field.iter().map(|v| *v as f32).collect(), (n, m))?;
        set(&self.centres, cortex.centres.iter().flatten().map(|v| *v as f32).collect(), (m, 3))?;
        set(&self.neighbours, near, (m, MOST))?;
        // Its scale is free.
        let largest = cortex.rest.iter().fold(f64::MIN_POSITIVE, |l, v| l.max(v.abs()));
        let rest = if cortex.rest.is_empty() {
            vec![0.; n * n]
        } else {
            cortex.rest.iter().map(|v| (v / largest) as f32).collect()
        };
        set(&self.rest, rest, (n, n))?;
        *known = Some(Known { told: true, ..self.follow()? });
        Ok(())
    }

    /// What follows from the head in the tensors.
    fn follow(&self) -> Result<Known> {
        let values = |t: &Tensor| t.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>();
        let (n, m) = self.field.dims2()?;
        let (field, centres, near) = (values(&self.field)?, values(&self.centres)?, values(&self.neighbours)?);
        if field.iter().all(|v| *v == 0.) {
            bail!("these weights know no head: constant_field is zero")
        }
        let mut neighbours = vec![];
        for row in near.chunks_exact(MOST) {
            let of: Vec<f32> = row.iter().copied().filter(|v| *v >= 0.).collect();
            if let Some(wrong) = of.iter().find(|v| v.fract() != 0. || **v >= m as f32) {
                bail!("constant_neighbours has {wrong}, expected numbers of regions from 0 to {}", m - 1)
            }
            neighbours.push(of.into_iter().map(|v| v as usize).collect());
        }
        let rest = values(&self.rest)?;
        if field.iter().chain(&centres).chain(&rest).any(|v| !v.is_finite()) {
            bail!("constant_field, constant_centres or constant_rest has values that are not finite")
        }
        let known = rest.iter().any(|v| *v != 0.);
        let cortex = Cortex {
            electrodes: n,
            field: field.into_iter().map(f64::from).collect(),
            centres: centres.chunks_exact(3).map(|p| [p[0].into(), p[1].into(), p[2].into()]).collect(),
            neighbours,
            rest: if known { rest.into_iter().map(f64::from).collect() } else { vec![] },
        };
        let borders = Arc::new(Borders::new(cortex.neighbours.clone()));
        Ok(Known {
            mapper: Arc::new(Mapper::new(&cortex)),
            borders,
            #[cfg(feature = "train")]
            told: false,
        })
    }

    fn known(&self) -> Result<Known> {
        let mut known = self.known.lock().unwrap_or_else(|e| e.into_inner());
        match &*known {
            Some(known) => Ok(known.clone()),
            None => Ok(known.insert(self.follow()?).clone()),
        }
    }

    /// EEG (b, t, n) to the maps (b, regions, features) and courses (b, t, regions).
    fn maps(&self, eeg: &Tensor, mapper: &Mapper) -> Result<(Tensor, Tensor)> {
        let (b, t, n) = eeg.dims3()?;
        if n != mapper.electrodes {
            bail!("deepsif: EEG of {n} electrodes for weights of {}", mapper.electrodes)
        }
        let values: Vec<f32> = eeg.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?;
        let (mut features, mut courses) = (vec![], vec![]);
        for maps in mapper.all(&values, t) {
            features.extend(maps.features);
            courses.extend(maps.courses);
        }
        let placed = |values: Vec<f32>, shape: (usize, usize, usize)| {
            Tensor::from_vec(values, shape, &Device::Cpu)?.to_device(eeg.device())?.to_dtype(eeg.dtype())
        };
        Ok((placed(features, (b, mapper.regions, FEATURES))?, placed(courses, (b, t, mapper.regions))?))
    }

    pub(crate) fn scores(&self, eeg: &Tensor, mode: Mode) -> Result<Scores> {
        let Known { mapper, borders, .. } = self.known()?;
        let (features, courses) = self.maps(eeg, &mapper)?;
        let mut x = self.input.forward_activated(&features, Activation::Gelu)?;
        for layer in &self.layers {
            x = layer.forward(&x, &borders, mode)?;
        }
        Ok(Scores { logits: self.output.forward(&self.norm.forward(&x)?)?, courses })
    }

    pub(crate) fn activations(&self, eeg: &Tensor) -> Result<Vec<(String, Tensor)>> {
        let Known { mapper, borders, .. } = self.known()?;
        let (features, _) = self.maps(eeg, &mapper)?;
        let mut x = self.input.forward_activated(&features, Activation::Gelu)?;
        let mut all = vec![("maps".to_string(), features), ("input".to_string(), x.clone())];
        for (i, layer) in self.layers.iter().enumerate() {
            x = layer.forward(&x, &borders, Mode::Eval)?;
            all.push((format!("layers.{i}"), x.clone()));
        }
        all.push(("output".into(), self.output.forward(&self.norm.forward(&x)?)?));
        Ok(all)
    }
}
