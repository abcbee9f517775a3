use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use zoo_checkpoint::matlab::{self, Variable};
use zoo_training::{Error, Result};

use super::{Electrode, Head, Point, Surface};

/// The variables of a folder's files.
struct Folder {
    path: PathBuf,
    variables: BTreeMap<String, (PathBuf, Variable)>,
    /// Names that a file has which also has another, such as `data` beside `npower`.
    beside: BTreeMap<String, Vec<String>>,
}

struct Numbers<'a> {
    file: &'a Path,
    name: &'a str,
    shape: &'a [usize],
    values: &'a [f64],
}

impl Folder {
    fn open(path: &Path) -> Result<Self> {
        let entries = std::fs::read_dir(path).map_err(Error::io(path))?;
        let mut files: Vec<PathBuf> = entries.filter_map(|e| Some(e.ok()?.path())).collect();
        files.retain(|f| f.extension().is_some_and(|e| e.eq_ignore_ascii_case("mat")));
        files.sort();
        let (mut variables, mut beside) = (BTreeMap::new(), BTreeMap::new());
        for file in files {
            // What else lies there is not ours to judge, but a file that cannot be read may be the one that is missed.
            let found = matlab::read(&file)?;
            // Recordings are called data too; noise is known by its power.
            let noise = found.contains_key("npower");
            for (name, variable) in found {
                let name = if noise && name == "data" { "noise".to_string() } else { name };
                beside.entry(name.clone()).or_insert_with(Vec::new).push(file.display().to_string());
                variables.entry(name).or_insert((file.clone(), variable));
            }
        }
        Ok(Self { path: path.into(), variables, beside })
    }

    fn numbers(&self, name: &'static str) -> Result<Option<Numbers<'_>>> {
        match self.variables.get(name) {
            None => Ok(None),
            Some((file, Variable::Numbers { shape, values })) => {
                if let Some(others) = self.beside.get(name).filter(|files| files.len() > 1) {
                    let files = others.join(" and ");
                    return Err(Error::Data(format!("{files} both have a variable {name}: leave one of them")));
                }
                if values.iter().any(|v| !v.is_finite()) {
                    return Err(Error::Data(format!("{}: {name} has values that are not finite", file.display())));
                }
                Ok(Some(Numbers { file, name, shape, values }))
            }
            Some((file, _)) => Err(Error::Data(format!("{}: {name} is no array of real numbers", file.display()))),
        }
    }

    fn needed(&self, name: &'static str, what: &str) -> Result<Numbers<'_>> {
        let missing =
            || Error::Data(format!("{}: no .mat file there has the variable {name} ({what})", self.path.display()));
        self.numbers(name)?.ok_or_else(missing)
    }
}

impl Numbers<'_> {
    fn wrong(&self, expected: &str) -> Error {
        Error::Data(format!("{}: {} has shape {:?}, expected {expected}", self.file.display(), self.name, self.shape))
    }

    fn triples(&self) -> Result<impl Iterator<Item = [f64; 3]>> {
        match self.shape {
            [_, 3] => Ok(self.values.chunks_exact(3).map(|c| [c[0], c[1], c[2]])),
            _ => Err(self.wrong("(n, 3)")),
        }
    }

    /// Whole numbers from `first` to below `first + n`, counted from zero.
    fn indices(&self, first: usize, n: usize) -> Result<Vec<usize>> {
        let one = |v: &f64| {
            let shifted = v - first as f64;
            (shifted >= 0. && shifted < n as f64 && shifted.fract() == 0.).then_some(shifted as usize).ok_or_else(
                || {
                    let (file, name) = (self.file.display(), self.name);
                    Error::Data(format!(
                        "{file}: {name} has {v}, expected whole numbers from {first} to {}",
                        first + n - 1
                    ))
                },
            )
        };
        self.values.iter().map(one).collect()
    }
}

pub(super) fn read(path: &Path) -> Result<Head> {
    let folder = Folder::open(path)?;
    let forward = folder.needed("fwd", "the lead field, electrodes x regions")?;
    let &[electrodes, regions] = forward.shape else { return Err(forward.wrong("(electrodes, regions)")) };
    if electrodes < 3 || regions < 3 {
        return Err(forward.wrong("at least 3 electrodes and 3 regions"));
    }
    let positions = folder.needed("pos", "the cortex's vertices in millimetres")?;
    let triangles = folder.needed("tri", "the cortex's triangles")?;
    let region = folder.needed("rm", "the region of each vertex")?;
    let vertices: Vec<Point> = positions.triples()?.collect();
    if region.values.len() != vertices.len() {
        return Err(region.wrong(&format!("one region for each of {} vertices", vertices.len())));
    }
    let _ = triangles.triples()?;
    let corners = triangles.indices(1, vertices.len())?;
    let surface = Surface {
        triangles: corners.chunks_exact(3).map(|c| [c[0], c[1], c[2]]).collect(),
        region: region.indices(0, regions)?,
        positions: vertices,
    };
    let centre = |(i, centre): (usize, Option<Point>)| {
        centre.ok_or_else(|| Error::Data(format!("{}: region {i} has no vertex", region.file.display())))
    };
    let centres = surface.centres(regions).into_iter().enumerate().map(centre).collect::<Result<_>>()?;
    Ok(Head {
        origin: path.display().to_string(),
        electrodes: places_of_electrodes(&folder, electrodes)?,
        regions: centres,
        neighbours: surface.neighbours(regions),
        lead_field: forward.values.to_vec(),
        noise: noise(&folder, electrodes)?,
        surface: Some(surface),
    })
}

/// EEGLAB's frame has the nose along x and the left ear along y.
fn places_of_electrodes(folder: &Folder, electrodes: usize) -> Result<Vec<Electrode>> {
    let Some((file, variable)) = folder.variables.iter().find(|(name, _)| name.starts_with("eloc")).map(|(_, v)| v)
    else {
        return Ok((0..electrodes).map(|i| Electrode { label: format!("E{}", i + 1), position: None }).collect());
    };
    let wrong = |what: String| Error::Data(format!("{}: {what}", file.display()));
    let Variable::Records(records) = variable else { return Err(wrong("the electrodes are no records".into())) };
    if records.len() != electrodes {
        return Err(wrong(format!("{} electrodes, but the lead field has {electrodes}", records.len())));
    }
    let one = |(i, record): (usize, &BTreeMap<String, Variable>)| {
        let number = |field: &str| match record.get(field) {
            Some(Variable::Numbers { values, .. }) if values.len() == 1 => Ok(values[0]),
            _ => Err(wrong(format!("electrode {} has no number {field}", i + 1))),
        };
        let label = match record.get("labels") {
            Some(Variable::Text(text)) => text.trim_end_matches('\0').trim().to_string(),
            _ => format!("E{}", i + 1),
        };
        Ok(Electrode { label, position: Some([-number("Y")?, number("X")?, number("Z")?]) })
    };
    records.iter().enumerate().map(one).collect()
}

fn noise(folder: &Folder, electrodes: usize) -> Result<Vec<Vec<f32>>> {
    let Some(noise) = folder.numbers("noise")? else { return Ok(vec![]) };
    match *noise.shape {
        [_, time, n] if n == electrodes && time > 0 => {
            let narrow = |part: &[f64]| part.iter().map(|v| *v as f32).collect();
            Ok(noise.values.chunks_exact(time * n).map(narrow).collect())
        }
        _ => Err(noise.wrong(&format!("(stretches, time, {electrodes})"))),
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor};

    use super::*;

    fn written(change: impl Fn(&str, Vec<f32>) -> Vec<f32>) -> (tempfile::TempDir, Result<Head>) {
        let folder = tempfile::tempdir().unwrap();
        // Four regions on a strip of eight vertices.
        let positions: Vec<f32> = (0..8).flat_map(|i| [(i / 2) as f32, (i % 2) as f32, 0.]).collect();
        let triangles: Vec<f32> = (1..7).flat_map(|i| [i as f32, i as f32 + 1., i as f32 + 2.]).collect();
        let region: Vec<f32> = (0..8).map(|i| (i / 2) as f32).collect();
        let field: Vec<f32> = (0..12).map(|i| i as f32).collect();
        let all =
            [("fwd", field, (3, 4)), ("pos", positions, (8, 3)), ("tri", triangles, (6, 3)), ("rm", region, (1, 8))];
        for (name, values, (rows, columns)) in all {
            let values = change(name, values);
            let rows = if values.len() == rows * columns { rows } else { values.len() / columns };
            let tensor = Tensor::from_vec(values, (rows, columns), &Device::Cpu).unwrap();
            matlab::write(&folder.path().join(format!("{name}.mat")), &[(name.into(), tensor)]).unwrap();
        }
        let head = Head::read(folder.path());
        (folder, head)
    }

    #[test]
    fn a_head_is_put_together_from_the_variables_of_a_folder() {
        let (_folder, head) = written(|_, values| values);
        let head = head.unwrap();
        assert_eq!((head.electrodes.len(), head.regions.len()), (3, 4));
        assert_eq!(head.regions[1], [1., 0.5, 0.]);
        assert_eq!(head.neighbours, [vec![1], vec![0, 2], vec![1, 3], vec![2]]);
        assert_eq!(head.lead_field, (0..12).map(f64::from).collect::<Vec<_>>());
    }

    #[test]
    fn what_does_not_fit_is_named_with_its_file() {
        type Change = fn(Vec<f32>) -> Vec<f32>;
        let cases: [(&str, Change, &str); 5] = [
            ("rm", |v| v.repeat(2), "one region for each of 8 vertices"),
            ("rm", |v| v.iter().map(|r| r + 2.).collect(), "rm has 4, expected whole numbers from 0 to 3"),
            ("tri", |v| v.iter().map(|r| r - 1.).collect(), "tri has 0, expected whole numbers from 1 to 8"),
            ("rm", |v| v.iter().map(|r| r.min(2.)).collect(), "region 3 has no vertex"),
            ("fwd", |v| v.iter().map(|r| r / 0.).collect(), "fwd has values that are not finite"),
        ];
        for (wrong, change, said) in cases {
            let (_folder, head) = written(|name, values| if name == wrong { change(values) } else { values });
            let message = head.err().map(|e| e.to_string()).unwrap_or_default();
            assert!(message.contains(&format!("{wrong}.mat")) && message.contains(said), "{message}");
        }
        let empty = tempfile::tempdir().unwrap();
        let message = Head::read(empty.path()).err().map(|e| e.to_string()).unwrap_or_default();
        assert!(message.contains("fwd") && message.contains("lead field"), "{message}");
    }

    #[test]
    fn the_published_head_is_read() {
        let Some(folder) = zoo_test_skips::data(env!("CARGO_MANIFEST_DIR"), "deepsif") else { return };
        let head = Head::read(&folder).unwrap();
        assert_eq!((head.electrodes.len(), head.regions.len(), head.noise.len()), (75, 994, 4));
        assert!(head.check(75, 994).is_ok() && head.check(64, 994).is_err());
        assert!(head.neighbours.iter().all(|n| (2..=20).contains(&n.len())));
        // The electrodes lie around the cortex, the frontal ones in front.
        let at = |label: &str| {
            head.electrodes.iter().find(|e| e.label == label).and_then(|e| e.position).unwrap_or_default()
        };
        assert!(at("Fpz")[1] > 60. && at("Oz")[1] < -60. && at("Cz")[2] > 60., "{:?}", at("Fpz"));
        assert!(at("T7")[0] < -50. && at("T8")[0] > 50., "{:?}", at("T7"));
        // An electrode sees regions of its own side best.
        let side = |e: usize| {
            let row = &head.lead_field[e * 994..][..994];
            let of = |sign: f64| {
                let near = (0..994).filter(|r| sign * head.regions[*r][0] > 30.);
                let seen: Vec<f64> = near.map(|r| row[r].abs()).collect();
                seen.iter().sum::<f64>() / seen.len() as f64
            };
            of(-1.) - of(1.)
        };
        let number = |label: &str| head.electrodes.iter().position(|e| e.label == label).unwrap_or(0);
        assert!(side(number("T7")) > 0. && side(number("T8")) < 0.);
    }
}
