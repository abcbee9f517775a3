//! A montage's electrodes in a recording: found by their names, and interpolated from each other where they are bad.

use crate::algebra::{dot, inverted, times};
use crate::image::{Electrode, Montage, Point};

use super::listed;

/// A channel is flat below this share of the middle channel's deviation, and beyond belief above this multiple.
const FLAT: f64 = 1e-3;
const WILD: f64 = 30.;
/// A clipped channel comes to its largest value by so many of its smallest steps.
const COARSE: f32 = 3.;
/// One electrode of so many may be interpolated from the others.
pub(super) const INTERPOLATED: usize = 5;

/// An electrode's name as all write it: without `EEG`, a reference and case, by the names of today.
pub(super) fn canonical(label: &str) -> String {
    let mut name = label.trim().trim_matches(['.', '\'', '"']).to_ascii_lowercase();
    for prefix in ["eeg ", "eeg-", "eeg_"] {
        name = name.strip_prefix(prefix).map_or(name.clone(), String::from);
    }
    for mark in ['-', ' ', '_'] {
        if let Some((electrode, reference)) = name.split_once(mark)
            && matches!(
                reference.trim(),
                "ref" | "avg" | "average" | "le" | "ar" | "car" | "a1" | "a2" | "a1a2" | "m1" | "m2" | "org"
            )
        {
            name = electrode.into();
        }
    }
    let today = [("t3", "t7"), ("t4", "t8"), ("t5", "p7"), ("t6", "p8")];
    today.iter().find(|(old, _)| *old == name).map_or(name, |(_, new)| (*new).into())
}

/// The columns of these names in the order of the electrodes; `None` where an electrode has no column.
pub(super) fn places(
    labels: &[String],
    electrodes: &[Electrode],
    remarks: &mut Vec<String>,
) -> Result<Vec<Option<usize>>, String> {
    let names: Vec<String> = labels.iter().map(|l| canonical(l)).collect();
    let electrode = |name: &String| electrodes.iter().any(|e| canonical(&e.label) == *name);
    let twice = |(i, name): &(usize, &String)| names[..*i].contains(name) && electrode(name);
    if let Some((at, _)) = names.iter().enumerate().find(twice) {
        return Err(format!("two channels are called {}", labels[at]));
    }
    let find = |e: &Electrode| names.iter().position(|name| *name == canonical(&e.label));
    let places: Vec<Option<usize>> = electrodes.iter().map(find).collect();
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
    let left: Vec<&str> =
        (0..labels.len()).filter(|i| !places.contains(&Some(*i))).map(|i| labels[i].as_str()).collect();
    if !left.is_empty() {
        remarks.push(format!("Channels that are left out: {}.", listed(left.into_iter())));
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

/// Interpolates the electrodes that have values that are not finite (as those have that are missing), are flat or beyond belief; says
/// which. `missing` are named elsewhere.
pub(super) fn mend(values: &mut [f32], montage: &Montage, missing: &[usize]) -> Result<Vec<String>, String> {
    let electrodes = &montage.electrodes;
    let (n, label) = (electrodes.len(), |e: &usize| electrodes[*e].label.as_str());
    let deviations = deviations(values, n);
    let Some(middle) = middle_deviation(&deviations) else {
        return Err("the EEG never changes, or no electrode has finite values alone".into());
    };
    let among = |is: &dyn Fn(usize) -> bool| (0..n).filter(|e| !missing.contains(e) && is(*e)).collect::<Vec<usize>>();
    let broken = among(&|e| !deviations[e].is_finite());
    let flat = among(&|e| deviations[e] < FLAT * middle);
    let wild = among(&|e| deviations[e].is_finite() && deviations[e] > WILD * middle);
    let mut remarks = vec![];
    for (bad, what) in [
        (&broken, "not finite, clipped or dead for a while"),
        (&flat, "flat"),
        (&wild, "more than 30 times as strong as the middle one"),
    ] {
        if !bad.is_empty() {
            remarks.push(format!("Channels that are {what}: {}.", listed(bad.iter().map(label))));
        }
    }
    let mut bad: Vec<usize> = [missing, &broken, &flat, &wild].concat();
    bad.sort_unstable();
    if bad.is_empty() {
        return Ok(remarks);
    }
    let names = listed(bad.iter().map(label));
    let places: Option<Vec<Point>> = electrodes.iter().map(|e| e.position).collect();
    let Some(places) = places.filter(|_| bad.len() * INTERPOLATED <= n) else {
        return Err(format!(
            "{} of {n} electrodes are missing, not finite, clipped, flat or beyond belief ({names}): too many to interpolate, or nobody \
             knows where they are",
            bad.len()
        ));
    };
    interpolate(values, &places, &bad);
    remarks.push(format!("Interpolated from the other electrodes by spherical splines: {names}."));
    Ok(remarks)
}

fn interpolate(values: &mut [f32], places: &[Point], bad: &[usize]) {
    let n = places.len();
    let good: Vec<usize> = (0..n).filter(|e| !bad.contains(e)).collect();
    let weights = spline_weights(places, &good, bad);
    for row in values.chunks_exact_mut(n) {
        let known: Vec<f64> = good.iter().map(|e| f64::from(row[*e])).collect();
        for (e, weights) in bad.iter().zip(&weights) {
            row[*e] = dot(&known, weights) as f32;
        }
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
