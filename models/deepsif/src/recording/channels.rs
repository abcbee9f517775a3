//! A montage's electrodes in a recording: found by their names, and interpolated from each other where they are bad.

use std::collections::{BTreeSet, HashMap};

use crate::algebra::{dot, inverted, times};
use crate::image::{Electrode, Montage, Point};

use super::listed;

/// A channel is flat below this share of the middle channel's deviation, and beyond belief above this multiple.
const FLAT: f64 = 0.01;
const WILD: f64 = 30.;
/// A channel so many times weaker or stronger than the middle one is used, but spoken of.
const ODD: f64 = 10.;
/// A clipped channel comes to its largest value by so many of its smallest steps.
const COARSE: f32 = 3.;
/// One electrode of so many may be interpolated from the others.
const INTERPOLATED: usize = 5;

/// What stands before a name, and what behind it is a reference or says that this is EEG.
const BEFORE: [&str; 5] = ["eeg ", "eeg-", "eeg_", "eeg:", "pol "];
const BEHIND: [&str; 20] = [
    "ref",
    "reference",
    "avg",
    "av",
    "average",
    "le",
    "ler",
    "ar",
    "car",
    "a1",
    "a2",
    "a1a2",
    "m1",
    "m2",
    "m1m2",
    "org",
    "0",
    "eeg",
    "aa",
    "g19",
];

/// An electrode's name as all write it, without case and what stands before it, by the names of today; and the reference or the other electrode
/// behind it.
fn split(label: &str) -> (String, Option<String>) {
    let mut name = label.trim().trim_matches(['.', '\'', '"']).to_ascii_lowercase();
    for prefix in BEFORE {
        name = name.strip_prefix(prefix).map_or(name.clone(), |rest| rest.trim().into());
    }
    let mut reference = None;
    if let Some((electrode, behind)) = name.split_once(['-', ' ', '_', ':']) {
        let behind = behind.trim_matches(['-', ' ', '_', ':']).to_string();
        (name, reference) = (electrode.trim().to_string(), Some(behind).filter(|b| !b.is_empty()));
    }
    let today = |name: String| match name.as_str() {
        "t3" => "t7".into(),
        "t4" => "t8".into(),
        "t5" => "p7".into(),
        "t6" => "p8".into(),
        _ => name,
    };
    (today(name), reference.map(today))
}

/// The columns of these names in the order of the electrodes; `None` where an electrode has no column.
pub(super) fn places(
    labels: &[String],
    electrodes: &[Electrode],
    remarks: &mut Vec<String>,
) -> Result<Vec<Option<usize>>, String> {
    let known: HashMap<String, usize> = electrodes.iter().enumerate().map(|(e, at)| (split(&at.label).0, e)).collect();
    let mut places: Vec<Option<usize>> = vec![None; electrodes.len()];
    let (mut references, mut bipolar) = (BTreeSet::new(), 0);
    for (column, label) in labels.iter().enumerate() {
        // An electrode may be called as a reference is, or have such a mark in its name.
        let whole = known.get(&label.trim().to_ascii_lowercase());
        let (name, reference) = split(label);
        let electrode = whole.or_else(|| known.get(&name)).copied();
        let Some(e) = electrode else { continue };
        if let Some(reference) = reference.filter(|_| whole.is_none()) {
            bipolar += usize::from(known.contains_key(&reference));
            // EDF cuts names at 16 characters.
            let is_cut = reference.len() >= 3 && "reference".starts_with(&reference);
            if !known.contains_key(&reference) && !BEHIND.contains(&reference.as_str()) && !is_cut {
                continue;
            }
            references.insert(if is_cut { "ref".into() } else { reference });
        }
        if places[e].replace(column).is_some() {
            return Err(format!("two channels are called {label}"));
        }
    }
    if bipolar > 0 && references.len() > 1 {
        return Err(format!(
            "its channels ({}) are differences of electrodes, which cannot be imaged: export it with a common reference",
            listed(labels.iter().map(String::as_str))
        ));
    }
    let missing: Vec<&str> =
        electrodes.iter().zip(&places).filter(|(_, p)| p.is_none()).map(|(e, _)| e.label.as_str()).collect();
    if missing.len() * INTERPOLATED > electrodes.len() {
        return Err(format!(
            "its channels ({}) lack {} of the {} electrodes that these weights take: {} (zoo params deepsif --checkpoint FILE --channels \
             lists them; predict.as_trained takes columns in their order whatever they are called)",
            listed(labels.iter().map(String::as_str)),
            missing.len(),
            electrodes.len(),
            listed(missing.into_iter())
        ));
    }
    if !missing.is_empty() {
        remarks.push(format!("Electrodes that the recording lacks: {}.", listed(missing.into_iter())));
    }
    let used: BTreeSet<usize> = places.iter().flatten().copied().collect();
    let left = labels.iter().enumerate().filter(|(i, _)| !used.contains(i)).map(|(_, label)| label.as_str());
    let left = listed(left);
    if !left.is_empty() {
        remarks.push(format!("Channels that are left out: {left}."));
    }
    if references.len() > 1 {
        remarks.push(format!(
            "Channels have different references ({}), which no average reference undoes: doubt the image, or export with a common one.",
            listed(references.iter().map(String::as_str))
        ));
    }
    let known: Vec<usize> = places.iter().copied().flatten().collect();
    if known.windows(2).any(|w| w[0] > w[1]) {
        remarks.push("Channels were put into the electrodes' order by their names.".into());
    }
    Ok(places)
}

/// Takes out the stretches in which a channel does not change although the others do: where it is clipped, at its largest or smallest
/// value for `clipped` time steps, or dead, for `dead` of them. They become NaN.
pub(super) fn unmoved(values: &mut [f32], montage: &Montage, [clipped, dead]: [usize; 2], remarks: &mut Vec<String>) {
    let n = montage.electrodes.len();
    let mut found: [Vec<(usize, Vec<std::ops::Range<usize>>)>; 2] = Default::default();
    for e in 0..n {
        let column: Vec<f32> = values.iter().skip(e).step_by(n).copied().collect();
        let (low, high) = column.iter().fold((f32::INFINITY, f32::NEG_INFINITY), |(l, h), v| (l.min(*v), h.max(*v)));
        // What never changes is flat, which is another matter.
        if low >= high {
            continue;
        }
        // What counts in coarse steps stands still at its peaks, too, but comes there by one of them.
        let moves = column.windows(2).map(|w| (w[1] - w[0]).abs());
        let step = moves.filter(|m| *m > 0.).fold(f32::INFINITY, f32::min);
        let far = |a: usize, b: usize| (column[a] - column[b]).abs() >= COARSE * step;
        let mut runs: [Vec<std::ops::Range<usize>>; 2] = Default::default();
        let mut from = 0;
        for to in 1..=column.len() {
            if to < column.len() && column[to] == column[from] {
                continue;
            }
            let is_extreme = column[from] == low || column[from] == high;
            let is_cut = (from > 0 && far(from - 1, from)) || (to < column.len() && far(to, from));
            if is_extreme && is_cut && to - from >= clipped {
                runs[0].push(from..to);
            } else if to - from >= dead {
                runs[1].push(from..to);
            }
            from = to;
        }
        for (found, runs) in found.iter_mut().zip(runs).filter(|(_, runs)| !runs.is_empty()) {
            found.push((e, runs));
        }
    }
    for (found, what) in found.iter().zip(["are clipped", "do not change for a while"]) {
        if found.is_empty() {
            continue;
        }
        let names = listed(found.iter().map(|(e, _)| montage.electrodes[*e].label.as_str()));
        if found.len() * INTERPOLATED > n {
            remarks.push(format!("{} of {n} channels {what} ({names}): they are taken as they are.", found.len()));
            continue;
        }
        remarks.push(format!("Channels that {what}, and are not used there: {names}."));
        for (e, runs) in found {
            runs.iter().cloned().flatten().for_each(|t| values[t * n + e] = f32::NAN);
        }
    }
}

/// The middle of the channels' standard deviations over time, of those that change.
pub(super) fn middle_deviation(deviations: &[f64]) -> Option<f64> {
    let mut sorted: Vec<f64> = deviations.iter().copied().filter(|d| *d > 0.).collect();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied()
}

/// The standard deviation over time of each of `n` channels; NaN where one has values that are not finite.
pub(super) fn deviations(values: &[f32], n: usize) -> Vec<f64> {
    let steps = (values.len() / n).max(1) as f64;
    let mut means = vec![0.; n];
    for row in values.chunks_exact(n) {
        means.iter_mut().zip(row).for_each(|(m, v)| *m += f64::from(*v) / steps);
    }
    let mut squares = vec![0.; n];
    for row in values.chunks_exact(n) {
        squares.iter_mut().zip(row).zip(&means).for_each(|((s, v), m)| *s += (f64::from(*v) - m).powi(2));
    }
    squares.iter().map(|s| (s / steps).sqrt()).collect()
}

/// What may be wrong with a channel of a window.
const FAULTS: [&str; 3] =
    ["are not finite, clipped or dead for a while", "are flat", "are more than 30 times as strong as the middle one"];

/// The good electrodes, and their weights for each bad one.
type Splines = (Vec<usize>, Vec<Vec<f64>>);

/// Interpolates the bad electrodes of windows, and counts them.
pub(super) struct Mender<'a> {
    montage: &'a Montage,
    missing: &'a [usize],
    /// In how many windows each electrode had each of the faults, and how many were interpolated, or odd but used.
    faults: [Vec<usize>; 3],
    interpolated: Vec<usize>,
    odd: Vec<usize>,
    /// By the bad electrodes.
    weights: HashMap<Vec<usize>, Splines>,
}

impl<'a> Mender<'a> {
    /// `missing` are named elsewhere.
    pub(super) fn new(montage: &'a Montage, missing: &'a [usize]) -> Self {
        let zeros = || vec![0; montage.electrodes.len()];
        let faults = [zeros(), zeros(), zeros()];
        Self { montage, missing, faults, interpolated: zeros(), odd: zeros(), weights: HashMap::new() }
    }

    /// Interpolates the electrodes that are missing, not finite, flat or beyond belief.
    pub(super) fn mend(&mut self, values: &mut [f32]) -> Result<(), String> {
        let (n, electrodes) = (self.montage.electrodes.len(), &self.montage.electrodes);
        let deviations = deviations(values, n);
        let Some(middle) = middle_deviation(&deviations) else {
            return Err(match values.chunks_exact(n).position(|row| row.iter().all(|v| !v.is_finite())) {
                Some(t) if self.missing.len() < n => {
                    format!("no electrode has a finite value at time step {t} (of a window)")
                }
                _ => "the EEG never changes, or no electrode has finite values alone".into(),
            });
        };
        let fault = |deviation: f64| match deviation / middle {
            share if !share.is_finite() => Some(0),
            share if share < FLAT => Some(1),
            share if share > WILD => Some(2),
            _ => None,
        };
        let found: Vec<(usize, usize)> =
            (0..n).filter(|e| !self.missing.contains(e)).filter_map(|e| Some((e, fault(deviations[e])?))).collect();
        let mut bad: Vec<usize> = found.iter().map(|(e, _)| *e).chain(self.missing.iter().copied()).collect();
        bad.sort_unstable();
        let places: Option<Vec<Point>> = electrodes.iter().map(|e| e.position).collect();
        if bad.len() * INTERPOLATED > n || !bad.is_empty() && places.is_none() {
            return Err(format!(
                "{} of {n} electrodes are missing, not finite, clipped, flat or beyond belief ({}): too many to interpolate, or nobody knows \
                 where they are",
                bad.len(),
                listed(bad.iter().map(|e| electrodes[*e].label.as_str()))
            ));
        }
        if let (Some(places), false) = (places, bad.is_empty()) {
            let (good, weights) = self.weights.entry(bad.clone()).or_insert_with(|| {
                let good: Vec<usize> = (0..n).filter(|e| bad.binary_search(e).is_err()).collect();
                let weights = spline_weights(&places, &good, &bad);
                (good, weights)
            });
            for row in values.chunks_exact_mut(n) {
                let known: Vec<f64> = good.iter().map(|e| f64::from(row[*e])).collect();
                for (e, weights) in bad.iter().zip(weights.iter()) {
                    row[*e] = dot(&known, weights) as f32;
                }
            }
        }
        // What all electrodes have in common is gone after the average reference.
        if values.chunks_exact(n).all(|row| row.iter().all(|v| *v == row[0])) {
            return Err("all electrodes have the same potential".into());
        }
        for (e, fault) in found {
            self.faults[fault][e] += 1;
        }
        for e in 0..n {
            let is_bad = bad.binary_search(&e).is_ok();
            self.interpolated[e] += usize::from(is_bad);
            let share = deviations[e] / middle;
            self.odd[e] += usize::from(!is_bad && !(1. / ODD..=ODD).contains(&share));
        }
        Ok(())
    }

    /// What was done to `all` windows.
    pub(super) fn remarks(&self, all: usize) -> Vec<String> {
        let names = |counts: &[usize]| {
            let of = |(e, count): (usize, &usize)| {
                let name = &self.montage.electrodes[e].label;
                if *count == all { name.clone() } else { format!("{name} (in {count} of {all} windows)") }
            };
            let texts: Vec<String> = counts.iter().enumerate().filter(|(_, count)| **count > 0).map(of).collect();
            listed(texts.iter().map(String::as_str))
        };
        let faults = self.faults.iter().zip(FAULTS).map(|(counts, what)| (counts, format!("Channels that {what}: ")));
        let rest = [
            (&self.interpolated, "Interpolated from the other electrodes by spherical splines: ".to_string()),
            (
                &self.odd,
                "Channels that are used, but more than 10 times weaker or stronger than the middle one: ".to_string(),
            ),
        ];
        let said = faults.chain(rest).map(|(counts, what)| (names(counts), what));
        said.filter(|(names, _)| !names.is_empty()).map(|(names, what)| format!("{what}{names}.")).collect()
    }
}

/// The weights of the good electrodes for each bad one, by spherical splines of order 4 (Perrin et al. 1989), with the terms and the
/// regularisation that MNE takes.
fn spline_weights(places: &[Point], good: &[usize], bad: &[usize]) -> Vec<Vec<f64>> {
    const TERMS: usize = 50;
    const REGULARISATION: f64 = 1e-5;
    let centre = sphere(places);
    let unit: Vec<Point> = places
        .iter()
        .map(|p| {
            let from: Point = [0, 1, 2].map(|k| p[k] - centre[k]);
            let length = dot(&from, &from).sqrt().max(1e-9);
            from.map(|v| v / length)
        })
        .collect();
    let spline = |a: &Point, b: &Point| {
        let x = dot(a, b).clamp(-1., 1.);
        let (mut before, mut legendre, mut sum) = (1., x, 0.);
        for k in 1..=TERMS {
            let k = k as f64;
            sum += (2. * k + 1.) / (k * (k + 1.)).powi(4) * legendre;
            (before, legendre) = (legendre, ((2. * k + 1.) * x * legendre - k * before) / (k + 1.));
        }
        sum / (4. * std::f64::consts::PI)
    };
    let between = |a: &usize| good.iter().map(|b| spline(&unit[*a], &unit[*b])).collect::<Vec<f64>>();
    let mut system: Vec<Vec<f64>> = good.iter().map(between).collect();
    (0..good.len()).for_each(|i| system[i][i] += REGULARISATION);
    let inverse = inverted(system);
    // A constant is added to the splines, whose coefficients sum to zero.
    let ones: Vec<f64> = inverse.iter().map(|line| line.iter().sum()).collect();
    let all: f64 = ones.iter().sum();
    let weights = |to: &usize| -> Vec<f64> {
        let from = between(to);
        let of_spline = times(&inverse, &from);
        let rest = 1. - of_spline.iter().sum::<f64>();
        of_spline.iter().zip(&ones).map(|(w, one)| w + rest * one / all).collect()
    };
    bad.iter().map(weights).collect()
}

/// The centre of the sphere that fits points best: least squares of |p|² = 2 c·p + d.
fn sphere(points: &[Point]) -> Point {
    let mut normal = vec![vec![0.; 4]; 4];
    let mut right = [0.; 4];
    for p in points {
        let row = [2. * p[0], 2. * p[1], 2. * p[2], 1.];
        let square = dot(p, p);
        for i in 0..4 {
            right[i] += row[i] * square;
            (0..4).for_each(|j| normal[i][j] += row[i] * row[j]);
        }
    }
    let inverse = inverted(normal);
    [0, 1, 2].map(|i| dot(&inverse[i], &right))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `splines` of tests/fixtures/recordings.py.
    #[test]
    fn splines_are_those_of_mne() {
        let montage = super::super::tests::montage(10, 4);
        let places: Vec<Point> = montage.electrodes.iter().filter_map(|e| e.position).collect();
        let expected = [
            [0.0757954, 0.9340366, -0.0833389, -0.5144969, -0.2514007, 0.0340239, 0.5569911, 0.2483894],
            [0.79002, 0.1904425, -0.8598026, -1.2652711, -0.034057, 1.1301386, 0.7652762, 0.2832534],
        ];
        let found = spline_weights(&places, &[0, 1, 2, 3, 5, 6, 7, 8], &[4, 9]);
        for (found, expected) in found.iter().flatten().zip(expected.iter().flatten()) {
            assert!((found - expected).abs() < 2e-5, "{found} {expected}");
        }
    }

    #[test]
    fn what_stands_still_is_taken_out() {
        let montage = super::super::tests::montage(10, 4);
        let wave = |t: usize, e: usize| (0.1 * (t + 3 * e) as f32).sin();
        let mut values: Vec<f32> = (0..200).flat_map(|t| (0..10).map(move |e| wave(t, e))).collect();
        // One is clipped, one dead for a while, one at both its ends alone.
        for t in 0..200 {
            values[10 * t + 2] = values[10 * t + 2].min(0.8);
            if (50..80).contains(&t) {
                values[10 * t + 5] = 0.3;
            }
        }
        let mut remarks = vec![];
        unmoved(&mut values, &montage, [5, 20], &mut remarks);
        assert_eq!(remarks.len(), 2, "{remarks:?}");
        assert!(remarks[0].contains("are clipped, and are not used there: T7.") && remarks[1].contains(": P8."));
        let gone = |e: usize| values.iter().skip(e).step_by(10).filter(|v| v.is_nan()).count();
        let gone: Vec<usize> = (0..10).map(gone).collect();
        assert!(gone[2] > 20 && gone[5] == 30 && gone.iter().sum::<usize>() == gone[2] + 30, "{gone:?}");
        // All of them at once is a pause of the whole recording, which is left as it is.
        let mut pause = vec![0f32; 2000];
        pause[..1000].copy_from_slice(&(0..1000).map(|i| wave(i / 10, i % 10)).collect::<Vec<_>>());
        let (before, mut remarks) = (pause.clone(), vec![]);
        unmoved(&mut pause, &montage, [5, 20], &mut remarks);
        assert!(pause == before && remarks.join("").contains("taken as they are"), "{remarks:?}");
    }
}
