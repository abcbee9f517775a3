//! Samples of a file: EEG with the activity of every region, and perhaps the head that both belong to.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Device};
use zoo_checkpoint::matlab::{self, Variable};
use zoo_training::{Error, Result};

use crate::head::{Head, Point};
use crate::image::{prepare, still};
use crate::simulation::{Patch, Sample};

/// Activity below this share of a sample's largest is none.
const NONE: f32 = 0.01;
/// Correlation from which two lead fields are the same: files hold them in other precisions.
const ALIKE: f64 = 0.9999;

/// Samples as they are in a file, and what is prepared of them.
#[derive(Clone, Debug)]
pub(crate) struct Stored {
    /// EEG and activity of each sample.
    samples: Vec<(Vec<f32>, Vec<f32>)>,
    pub(crate) steps: usize,
    pub(crate) sha256: String,
}

/// A file of samples: `eeg` and `activity`, and a head's `lead_field` (electrodes, regions) and `regions_mm` (regions, 3).
pub(crate) struct SampleFile<'a> {
    path: &'a Path,
    eeg: Array,
    activity: Array,
    lead_field: Option<Array>,
    regions: Option<Vec<Point>>,
}

struct Array {
    shape: Vec<usize>,
    values: Vec<f32>,
}

/// The arrays of a file that have one of `names`.
fn arrays(path: &Path, names: &[&str]) -> Result<BTreeMap<String, Array>> {
    let mut found = BTreeMap::new();
    if path.extension().is_some_and(|e| e.eq_ignore_ascii_case("mat")) {
        for (name, variable) in matlab::read(path)? {
            if let (Variable::Numbers { shape, values }, true) = (variable, names.contains(&name.as_str())) {
                found.insert(name, Array { shape, values: values.into_iter().map(|v| v as f32).collect() });
            }
        }
        return Ok(found);
    }
    for (name, tensor) in zoo_checkpoint::read(path, &Device::Cpu)?.tensors {
        if names.contains(&name.as_str()) {
            let values = tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?;
            found.insert(name, Array { shape: tensor.dims().to_vec(), values });
        }
    }
    Ok(found)
}

impl<'a> SampleFile<'a> {
    pub(crate) fn read(path: &'a Path) -> Result<Self> {
        let refuse = |what: String| Error::Data(format!("{}: {what}", path.display()));
        let mut found = arrays(path, &["eeg", "activity", "lead_field", "regions_mm"])?;
        let mut cube = |name: &str| {
            let missing = || refuse(format!("it has no array {name}: samples are the arrays eeg and activity"));
            let array = found.remove(name).ok_or_else(missing)?;
            match array.shape.len() {
                3 => Ok(array),
                _ => Err(refuse(format!(
                    "{name} has shape {:?}, expected (samples, time steps, channels or regions)",
                    array.shape
                ))),
            }
        };
        let (eeg, activity) = (cube("eeg")?, cube("activity")?);
        let (n, m) = (eeg.shape[2], activity.shape[2]);
        let mut table = |name: &str, expected: [usize; 2]| match found.remove(name) {
            Some(array) if array.shape != expected => {
                Err(refuse(format!("{name} has shape {:?}, expected {expected:?}", array.shape)))
            }
            Some(array) if array.values.iter().any(|v| !v.is_finite()) => {
                Err(refuse(format!("{name} has values that are not finite")))
            }
            array => Ok(array),
        };
        let lead_field = table("lead_field", [n, m])?;
        let point = |p: &[f32]| [f64::from(p[0]), f64::from(p[1]), f64::from(p[2])];
        let regions = table("regions_mm", [m, 3])?.map(|a| a.values.chunks_exact(3).map(point).collect());
        Ok(Self { path, eeg, activity, lead_field, regions })
    }

    /// The head that the file carries.
    pub(crate) fn head(&self) -> Result<Option<Head>> {
        let refuse = |what: String| Err(Error::Data(format!("{}: {what}", self.path.display())));
        let (field, regions) = match (&self.lead_field, &self.regions) {
            (Some(field), Some(regions)) => (field, regions),
            (None, None) => return Ok(None),
            _ => return refuse("a head is both lead_field and regions_mm, and one is missing".into()),
        };
        let [n, m] = [field.shape[0], field.shape[1]];
        if n < 3 || m < 3 || field.values.iter().all(|v| *v == 0.) {
            return refuse(format!(
                "its lead_field of {n} electrodes and {m} regions is no head's (at least 3 of each, not all 0)"
            ));
        }
        let origin = format!("the head in {}", self.path.display());
        Ok(Some(Head::of_field(origin, field.values.iter().map(|v| f64::from(*v)).collect(), regions.clone())))
    }

    /// Refuses a head that is not the one that the file carries.
    fn check(&self, head: &Head) -> Result<()> {
        let refuse = |what: &str| Err(Error::Data(format!("{}: {what} {}", self.path.display(), head.origin)));
        if self.regions.as_ref().is_some_and(|places| !head.lies_at(places)) {
            return refuse("its regions_mm lie elsewhere than those of");
        }
        // The unit of a lead field is free.
        let share = |field: &Array| {
            let dot = |a: &dyn Fn(usize) -> f64, b: &dyn Fn(usize) -> f64| {
                (0..field.values.len()).map(|i| a(i) * b(i)).sum::<f64>()
            };
            let (own, given) = (|i: usize| f64::from(field.values[i]), |i: usize| head.lead_field[i]);
            dot(&own, &given) / (dot(&own, &own) * dot(&given, &given)).sqrt().max(f64::MIN_POSITIVE)
        };
        match self.lead_field.as_ref().map(share) {
            Some(share) if share < ALIKE => refuse("its lead_field is not that of"),
            _ => Ok(()),
        }
    }
}

impl Stored {
    /// The samples of a file over a head.
    pub(crate) fn over(file: SampleFile, head: &Head) -> Result<Self> {
        let refuse = |what: String| Error::Data(format!("{}: {what}", file.path.display()));
        let SampleFile { eeg, activity, .. } = &file;
        let (steps, n, m) = (eeg.shape[1], eeg.shape[2], activity.shape[2]);
        let fits = (n, m) == (head.electrodes.len(), head.regions.len()) && eeg.shape[..2] == activity.shape[..2];
        if !fits || steps < 2 {
            return Err(refuse(format!(
                "eeg {:?} and activity {:?} do not fit each other or {} ({} electrodes, {} regions)",
                eeg.shape,
                activity.shape,
                head.origin,
                head.electrodes.len(),
                head.regions.len()
            )));
        }
        file.check(head)?;
        if let Some(at) = eeg.values.iter().position(|v| !v.is_finite()) {
            return Err(refuse(format!("eeg of sample {} has values that are not finite", at / (steps * n))));
        }
        if let Some(at) = activity.values.iter().position(|v| !v.is_finite()) {
            return Err(refuse(format!("activity of sample {} has values that are not finite", at / (steps * m))));
        }
        let bytes: Vec<u8> = eeg.values.iter().chain(&activity.values).flat_map(|v| v.to_le_bytes()).collect();
        let samples = eeg.values.chunks_exact(steps * n).zip(activity.values.chunks_exact(steps * m)).enumerate();
        let one = |(i, (eeg, activity)): (usize, (&[f32], &[f32]))| {
            prepared(eeg.to_vec(), activity.to_vec(), [n, m])
                .ok_or_else(|| refuse(format!("the activity of sample {i} never changes: there is nothing to find")))
        };
        Ok(Self { samples: samples.map(one).collect::<Result<_>>()?, steps, sha256: zoo_checkpoint::sha256_of(&bytes) })
    }

    pub(crate) fn len(&self) -> usize {
        self.samples.len()
    }

    /// Sample `at`, its active regions parted into patches that hang together.
    pub(crate) fn sample(&self, at: usize, head: &Head) -> Sample {
        let (eeg, activity) = &self.samples[at];
        let m = head.regions.len();
        let strength = |r: usize| activity.iter().skip(r).step_by(m).fold(0f32, |s, v| s.max(v.abs()));
        let strengths: Vec<f32> = (0..m).map(strength).collect();
        let least = NONE * strengths.iter().fold(0f32, |s, v| s.max(*v));
        let mut left: Vec<usize> = (0..m).filter(|r| strengths[*r] > least).collect();
        let mut sources = vec![];
        while let Some(first) = left.pop() {
            let mut patch = vec![first];
            let mut seen = 0;
            while seen < patch.len() {
                let border = &head.neighbours[patch[seen]];
                let (inside, outside): (Vec<usize>, Vec<usize>) = left.iter().partition(|r| border.contains(r));
                patch.extend(inside);
                left = outside;
                seen += 1;
            }
            patch.sort_by(|a, b| strengths[*b].total_cmp(&strengths[*a]));
            let centre = patch[0];
            let regions = patch.iter().map(|&r| (r, strengths[r] / strengths[centre])).collect();
            let course = activity.iter().skip(centre).step_by(m).copied().collect();
            sources.push((Patch { centre, regions }, course));
        }
        Sample { eeg: eeg.clone(), sources, snr: f64::NAN, stored: Some(activity.clone()) }
    }
}

/// As simulated samples are: EEG centred and scaled, activity without its means over time and divided by its largest value.
/// Nothing if there is no activity.
fn prepared(mut eeg: Vec<f32>, mut activity: Vec<f32>, [n, m]: [usize; 2]) -> Option<(Vec<f32>, Vec<f32>)> {
    prepare(&mut eeg, n);
    still(&mut activity, m);
    let largest = activity.iter().fold(0f32, |most, v| most.max(*v));
    activity.iter_mut().for_each(|v| *v /= largest);
    (largest > 0.).then_some((eeg, activity))
}

#[cfg(test)]
mod tests {
    use candle_core::Tensor;

    use super::*;

    #[test]
    fn active_regions_that_hang_together_are_one_patch() {
        let head = Head::spherical(8, 20).unwrap();
        let far = (0..20).max_by(|a, b| head.distance(3, *a).total_cmp(&head.distance(3, *b))).unwrap();
        let near = head.neighbours[3][0];
        let mut activity = vec![0f32; 10 * 20];
        for (region, height) in [(3, 2.), (near, 1.), (far, 4.)] {
            activity[4 * 20 + region] = height;
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("samples.npz");
        let write = |activity: Vec<f32>| {
            let eeg: Vec<f32> = (0..80).map(|i| (i as f32).sin()).collect();
            let eeg = Tensor::from_vec(eeg, (1, 10, 8), &Device::Cpu).unwrap();
            let activity = Tensor::from_vec(activity, (1, 10, 20), &Device::Cpu).unwrap();
            zoo_checkpoint::write_npz(&path, &[("eeg".into(), eeg), ("activity".into(), activity)]).unwrap();
            Stored::over(SampleFile::read(&path)?, &head)
        };
        let sample = write(activity).unwrap().sample(0, &head);
        let mut patches: Vec<Vec<usize>> =
            sample.sources.iter().map(|(p, _)| p.regions.iter().map(|r| r.0).collect()).collect();
        patches.sort();
        let mut expected = vec![vec![3, near], vec![far]];
        expected.sort();
        assert_eq!(patches, expected);
        let message = write(vec![1.; 200]).err().map(|e| e.to_string()).unwrap_or_default();
        assert!(message.contains("samples.npz") && message.contains("sample 0 never changes"), "{message}");
    }
}
