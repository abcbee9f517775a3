use super::*;
use crate::Electrode;

/// Electrodes over the upper part of a head of 90 mm.
pub(super) fn montage(n: usize, steps: usize) -> Montage {
    let place = |i: usize| {
        let z = 1. - 1.2 * (i as f64 + 0.5) / n as f64;
        let (turn, r) = (2.4 * i as f64, (1. - z * z).sqrt());
        [90. * r * turn.cos() + 3., 90. * r * turn.sin(), 90. * z + 40.]
    };
    let names = ["Fp1", "Fp2", "T7", "T8", "P7", "P8", "Cz", "Pz", "Oz", "O1"];
    let electrode = |i: usize| Electrode { label: names[i].into(), position: Some(place(i)) };
    Montage { electrodes: (0..n).map(electrode).collect(), regions: vec![], steps }
}

/// A smooth potential at an electrode.
fn potential(montage: &Montage, e: usize, t: usize) -> f32 {
    let [x, y, z] = montage.electrodes[e].position.unwrap_or_default();
    ((x + 0.5 * y - 0.3 * z) / 90. * (t as f64 - 1.5) + 0.2 * t as f64) as f32
}

/// The first window, and what is said.
struct Read {
    values: Vec<f32>,
    seconds: Option<f64>,
    windows: usize,
    remarks: String,
}

fn recording(path: &Path, montage: &Montage, options: &ImageOptions) -> Result<Read> {
    let mut found = Recording::read(path, montage, options)?;
    let windows = found.windows(path, montage, options)?;
    let Window { seconds, values } = &windows[0];
    Ok(Read { values: values.clone(), seconds: *seconds, windows: windows.len(), remarks: found.remarks.join(" ") })
}

fn read(name: &str, text: &str, montage: &Montage, as_trained: bool) -> Result<Read> {
    let dir = tempfile::tempdir().map_err(Error::io(Path::new("temporary")))?;
    let path = dir.path().join(name);
    std::fs::write(&path, text).map_err(Error::io(&path))?;
    recording(&path, montage, &ImageOptions { as_trained, ..ImageOptions::default() })
}

/// Columns of these electrodes under these names; channels without an electrode hold the time.
fn table(montage: &Montage, columns: &[(&str, Option<usize>)], separator: &str) -> String {
    let names: Vec<&str> = columns.iter().map(|c| c.0).collect();
    let row = |t: usize| {
        let value = |(_, e): &(&str, Option<usize>)| e.map_or(t as f32, |e| potential(montage, e, t)).to_string();
        columns.iter().map(value).collect::<Vec<_>>().join(separator)
    };
    std::iter::once(names.join(separator)).chain((0..4).map(row)).map(|l| l + "\n").collect()
}

#[test]
fn channels_are_ordered_by_their_names_and_bad_ones_are_interpolated() -> Result<()> {
    let m = montage(10, 4);
    let expected: Vec<f32> =
        (0..4).flat_map(|t| (0..10).map(move |e| (t, e))).map(|(t, e)| potential(&m, e, t)).collect();
    let names = ["O1", "EEG FP2-REF", "t3", "T4", "fp1", "T6-Ref", "cz", "PZ", "OZ.", "T5"];
    let order = [9, 1, 2, 3, 0, 5, 6, 7, 8, 4];
    let columns: Vec<(&str, Option<usize>)> = names.into_iter().zip(order.map(Some)).collect();
    for (file, separator) in [("a.csv", ","), ("a.tsv", "\t"), ("a.csv", ";")] {
        let found = read(file, &table(&m, &columns, separator), &m, false)?;
        assert_eq!(found.values, expected);
        assert!(
            found.remarks.contains("order by their names") && !found.remarks.contains("left out"),
            "{}",
            found.remarks
        );
    }
    // More of them, and a column of times.
    let more = [&[("time", None), ("EKG", None)], &columns[..]].concat();
    let text = table(&m, &more, ",");
    let ms: Vec<String> = text
        .lines()
        .enumerate()
        .map(|(i, l)| match (i, l.split_once(',')) {
            (1.., Some((_, rest))) => format!("{},{rest}", 0.002 * (i - 1) as f64),
            _ => l.into(),
        })
        .collect();
    let found = read("a.csv", &ms.join("\n"), &m, false)?;
    assert!(found.values == expected && found.remarks.contains("left out: EKG."), "{:?}", found.remarks);
    // Whole numbers may be milliseconds or steps, unless a unit is there.
    let message = read("a.csv", &text, &m, false).map(|r| r.windows).unwrap_err().to_string();
    assert!(message.contains("may be milliseconds or time steps: state the sampling rate"), "{message}");
    let text = text.replace("time,", "time [ms],");
    let message = read("a.csv", &text, &m, false).map(|r| r.windows).unwrap_err().to_string();
    assert!(message.contains("2 time steps at 500 Hz, but these weights image 4"), "{message}");
    // One electrode is missing, one flat, one beyond belief.
    for bad in [vec![9], vec![9, 4]] {
        let kept: Vec<_> = columns.iter().copied().filter(|c| c.1 != Some(bad[0])).collect();
        let text = table(&m, &kept, ",");
        let text = if bad.len() == 1 {
            text
        } else {
            text.lines()
                .enumerate()
                .map(|(i, l)| {
                    let fields: Vec<&str> = l.split(',').collect();
                    let (last, rest) = (fields[fields.len() - 1], fields[..fields.len() - 1].join(","));
                    format!("{rest},{}\n", if i == 0 { last } else { "7" })
                })
                .collect()
        };
        let found = read("a.csv", &text, &m, false)?;
        assert!(found.remarks.contains("Interpolated from the other electrodes"), "{:?}", found.remarks);
        let off = found.values.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0., f32::max);
        assert!(off > 0. && off < 0.35, "{off}");
    }
    let wild = table(&m, &columns, ",")
        .lines()
        .enumerate()
        .map(|(i, l)| match l.split_once(',') {
            Some((first, rest)) if i > 0 => format!("{}e3,{rest}\n", first),
            _ => format!("{l}\n"),
        })
        .collect::<String>();
    assert!(read("a.csv", &wild, &m, false)?.remarks.contains("30 times as strong as the middle one: O1."));
    Ok(())
}

#[test]
fn what_does_not_fit_is_refused_with_the_way_out() -> Result<()> {
    let m = montage(10, 4);
    let columns: Vec<(String, Option<usize>)> = (0..10).map(|e| (format!("E{e}"), Some(e))).collect();
    let cap: Vec<(&str, Option<usize>)> = columns.iter().map(|(n, e)| (n.as_str(), *e)).collect();
    let refused = |name: &str, text: &str| read(name, text, &m, false).map(|r| r.values.len()).unwrap_err().to_string();
    let text = table(&m, &cap, ",");
    assert!(refused("a.csv", &text).contains("lack 10 of the 10 electrodes"));
    assert_eq!(read("a.csv", &text, &m, true)?.values.len(), 40);
    let bare = text.split_once('\n').map_or("", |(_, rest)| rest);
    let doubt = read("a.csv", bare, &m, false)?.remarks;
    assert!(doubt.contains("no names of channels"), "{doubt}");
    assert_eq!(read("a.txt", &bare.replace(',', "  "), &m, false)?.values.len(), 40);
    for (name, text, expected) in [
        ("a.edf", "0", "it does not begin as EDF or BDF does"),
        ("a.xdf", "0", "XDF is not read: MNE-Python writes FIF of it"),
        ("a.eeg", "0", "name the header (.vhdr)"),
        ("a.csv", "1,2\n3,4\n5,6\n7,8\n", "take 10 channels"),
        ("a.csv", &bare.replacen("0", "x", 1), "expected a number"),
        ("a.csv", &text.replace("E1,", "Cz,").replace("E2,", "cz,"), "two channels are called cz"),
        ("a.csv", &"1,1,1,1,1,1,1,1,1,1\n".repeat(4), "the EEG never changes"),
        ("a.csv", &bare.repeat(2), "it states no sampling rate, and has 8 time steps x 10 channels"),
        ("a.csv", &bare[..40], "it states no sampling rate"),
    ] {
        let message = refused(name, text);
        assert!(message.contains(expected), "{message}");
    }
    let flat: String =
        bare.lines().map(|l| format!("{},0,0,0\n", l.split(',').take(7).collect::<Vec<_>>().join(","))).collect();
    assert!(refused("a.csv", &flat).contains("too many to interpolate"));
    Ok(())
}

#[test]
fn matlabs_users_are_understood() -> Result<()> {
    let m = montage(10, 4);
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/recordings");
    let expected: Vec<f32> = (0..40).map(|i| (f64::from(i * i) / 7.) as f32).collect();
    for (file, said) in [
        ("fieldtrip.mat", "order by their names"),
        ("eeglab.set", "data has channels in rows: it was transposed"),
        ("names.mat", "order by their names"),
        ("lines.mat", "order by their names"),
        ("samples.mat", "no names of channels"),
        ("names.npz", "order by their names"),
        #[cfg(feature = "files")]
        ("new.mat", "EEG.data has channels in rows: it was transposed"),
    ] {
        let found = recording(&folder.join(file), &m, &ImageOptions::default())?;
        let near = found.values.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-4);
        let remarks = &found.remarks;
        assert!(found.values.len() == 40 && near && remarks.contains(said), "{file}: {remarks} {:?}", found.values);
    }
    for (file, expected) in [
        ("several.mat", "or several samples in one: take one out"),
        ("old.mat", "a MATLAB file of version 4: save it with -v7"),
        #[cfg(not(feature = "files"))]
        ("new.mat", "a MATLAB file of version 7.3 (HDF5), which this program was built without"),
    ] {
        let message = recording(&folder.join(file), &m, &ImageOptions::default())
            .map(|r| r.values.len())
            .unwrap_err()
            .to_string();
        assert!(message.contains(expected), "{message}");
    }
    Ok(())
}

fn folder() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/recordings")
}

/// The formula of tests/fixtures/recordings.py.
fn written(e: usize, t: usize) -> f32 {
    let turn = 2. * std::f64::consts::PI * (5 + e) as f64 * t as f64 / 500.;
    (40. * turn.sin() + 3. * e as f64) as f32
}

const FORMATS: [(&str, f32, &str); 6] = [
    (
        "raw.edf",
        0.01,
        "EDF: 100 time steps x 10 channels at 500 Hz, 0.200 seconds. Channels of other rates than 500 Hz are left out: ECG.",
    ),
    ("raw.bdf", 1e-4, "BDF: 100 time steps"),
    ("raw.vhdr", 0.0101, "BrainVision: 100 time steps"),
    ("raw.fif", 1e-4, "Left out, as no EEG by the file: EOG left."),
    ("average.fif", 1e-4, "FIF: 100 time steps"),
    ("beside.set", 1e-4, "data: 100 time steps"),
];

#[test]
fn formats_of_laboratories_hold_what_mne_reads() -> Result<()> {
    let m = montage(10, 100);
    for (file, step, said) in FORMATS {
        let found = recording(&folder().join(file), &m, &ImageOptions::default())?;
        assert!(found.remarks.contains(said) && !found.remarks.contains("unit"), "{file}: {}", found.remarks);
        for (e, electrode) in m.electrodes.iter().enumerate() {
            let off = (0..100).map(|t| (found.values[10 * t + e] - written(e, t)).abs()).fold(0., f32::max);
            // One channel has steps of ten microvolts, and one is bad in its file.
            let step = match (file, electrode.label.as_str()) {
                ("raw.vhdr", "Pz") => 10.,
                ("raw.fif", "Oz") => 200.,
                _ => step,
            };
            assert!(off < step, "{file}: {} is off by {off}", electrode.label);
        }
    }
    let found = recording(&folder().join("raw.fif"), &m, &ImageOptions::default())?;
    assert!(found.remarks.contains("the file calls bad: Oz.") && found.remarks.contains("by spherical splines: Oz."));
    Ok(())
}

#[test]
fn windows_lie_around_moments_and_events() -> Result<()> {
    let m = montage(10, 20);
    let read = |file: &str, options: ImageOptions| recording(&folder().join(file), &m, &options);
    let none = ImageOptions::default;
    let all = read("raw.bdf", none())?;
    assert!(
        (all.windows, all.seconds) == (5, Some(0.)) && all.remarks.contains("5 windows of 0.04 s"),
        "{}",
        all.remarks
    );
    let at = read("raw.bdf", ImageOptions { at: "0.1".into(), ..none() })?;
    assert_eq!((at.windows, at.seconds), (1, Some(0.08)));
    assert!((at.values[0] - written(0, 40)).abs() < 1e-3);
    for file in ["raw.edf", "raw.bdf", "raw.fif", "raw.vhdr", "beside.set"] {
        let name = if file == "raw.vhdr" { "S 1" } else { "spike" };
        let found = read(file, ImageOptions { event: name.into(), ..none() })?;
        assert!(
            found.seconds.is_none() && found.remarks.contains("Averaged around events (1 of 1)"),
            "{file}: {}",
            found.remarks
        );
        let mean = (40..60).map(|t| written(0, t)).sum::<f32>() / 20.;
        assert!((found.values[0] - (written(0, 40) - mean)).abs() < 0.02, "{file}");
    }
    let dir = tempfile::tempdir().map_err(Error::io(Path::new("temporary")))?;
    let path = dir.path().join("events.tsv");
    let events = |text: &str, event: &str| {
        std::fs::write(&path, text).map_err(Error::io(&path))?;
        let events = path.display().to_string();
        read("raw.bdf", ImageOptions { events, event: event.into(), ..none() })
    };
    for (text, event, said) in [
        (
            "onset\tduration\ttrial_type\n0.1\t0\tspike\n0.12\t0\tslow\n9\t0\tspike\n",
            "spike",
            "events (1 of 2): spike (2); left out too near to an end: 1.",
        ),
        ("0.08\n0.12\n", "", "Averaged around events (2 of 2)."),
        ("# onset, duration, description\n0.08,0.0,a\n0.12,0.0,b\n", "", "(2 of 2): a (1), b (1)"),
        ("Onset;type\n0,08;a\n0,12;a\n", "A", "(2 of 2): a (2)"),
    ] {
        let found = events(text, event)?;
        assert!(found.remarks.contains(said), "{}", found.remarks);
    }
    for (text, event, said) in [
        ("9\n", "", "none of the events (1) lies within 0.02 to 0.18 s"),
        ("onset\ttype\n0.1\ta\n", "b", "no event is called \"b\": there are a (1)"),
        ("when\n0.1\n", "", "none is called onset or sample"),
        ("onset\n2020-01-01 10:00:00\n", "", "is no time in seconds"),
        ("", "", "names no event"),
    ] {
        let message = events(text, event).map(|r| r.windows).unwrap_err().to_string();
        assert!(message.contains(said), "{message}");
    }
    for (options, said) in [
        (
            ImageOptions { at: "0".into(), ..none() },
            "expected the middle of a window of 0.04 s in seconds: 0.02 to 0.18 s",
        ),
        (ImageOptions { at: "x".into(), ..none() }, "predict.at is \"x\""),
        (ImageOptions { at: "0.1".into(), event: "spike".into(), ..none() }, "one of them"),
        (ImageOptions { event: "seizure".into(), ..none() }, "there are spike (1), Å wave (1)"),
        (ImageOptions { band: "40-1".into(), ..none() }, "expected two frequencies"),
        (ImageOptions { band: "1-250".into(), ..none() }, "below 250"),
        (ImageOptions { notch: 300., ..none() }, "predict.notch is 300"),
        (ImageOptions { rate: 1e9, ..none() }, "predict.rate is"),
    ] {
        let message = read("raw.bdf", options).map(|r| r.windows).unwrap_err().to_string();
        assert!(message.contains(said), "{message}");
    }
    Ok(())
}

#[test]
fn units_rates_and_filters_are_said() -> Result<()> {
    let m = montage(10, 4);
    let names: Vec<String> = m.electrodes.iter().map(|e| format!("{} (V)", e.label)).collect();
    let columns: Vec<(&str, Option<usize>)> = names.iter().enumerate().map(|(e, n)| (n.as_str(), Some(e))).collect();
    let text = table(&m, &columns, ";");
    let found = read("a.csv", &text, &m, false)?;
    assert!((found.values[1] - 1e6 * potential(&m, 1, 0)).abs() < 1.);
    assert!(found.remarks.contains("doubt its unit"), "{}", found.remarks);
    // Decimal commas, and a value that is missing.
    let plain = read("a.csv", &text.replace('.', ",").replace("(V)", ""), &m, false)?;
    assert!((plain.values[1] - potential(&m, 1, 0)).abs() < 1e-5 && plain.remarks.contains("states no unit"));
    let times: String =
        (0..400).map(|t| format!("{},{}\n", t as f64 / 1000., ["1,5,2", "2,5,2", "0,5,2", "-3,5,2"][t % 4])).collect();
    let uneven = times.replacen("\n0.2,", "\n0.9,", 1);
    let header = "time,Fp1,Fp2,T7\n";
    let message = read("a.csv", &(header.to_string() + &uneven), &m, false).map(|r| r.windows).unwrap_err().to_string();
    assert!(message.contains("its times are not even: step 200"), "{message}");

    let m = montage(10, 100);
    let rate = ImageOptions { rate: 1000., band: "2-60".into(), notch: 50., ..ImageOptions::default() };
    let message = recording(&folder().join("raw.bdf"), &m, &rate).map(|r| r.windows).unwrap_err().to_string();
    assert!(message.contains("50 time steps at 500 Hz, but these weights image 100"), "{message}");
    let found = recording(&folder().join("raw.bdf"), &montage(10, 40), &rate)?;
    for said in [
        "The file states 500 Hz: it is taken for 1000 Hz as asked.",
        "Filtered: above 2 Hz",
        "less than three periods of 2 Hz",
        "Filtered: below 60 Hz",
        "without 50 Hz by a notch of 1.67 Hz",
        "Resampled from 1000 to 500 Hz by a sinc under a Kaiser window: whole up to 200 Hz, nothing beyond 250 Hz.",
        "The last 10 time steps fill no window",
    ] {
        assert!(found.remarks.contains(said), "{said}: {}", found.remarks);
    }
    Ok(())
}

/// Files that end anywhere, or have a bit turned, are read or refused in one line.
#[test]
fn damage_is_no_panic() -> Result<()> {
    let m = montage(10, 20);
    let dir = tempfile::tempdir().map_err(Error::io(Path::new("temporary")))?;
    for (file, ..) in FORMATS {
        let whole = std::fs::read(folder().join(file)).map_err(Error::io(Path::new(file)))?;
        for other in ["raw.eeg", "raw.vmrk", "beside.fdt"] {
            std::fs::copy(folder().join(other), dir.path().join(other)).map_err(Error::io(Path::new(other)))?;
        }
        let path = dir.path().join(file);
        let check = |bytes: &[u8]| {
            std::fs::write(&path, bytes).map_err(Error::io(&path))?;
            if let Err(e) = recording(&path, &m, &ImageOptions { event: "spike".into(), ..ImageOptions::default() }) {
                let e = e.to_string();
                assert!(!e.contains('\n') && (e.contains(file) || e.starts_with("predict.event")), "{e}");
            }
            Ok::<(), Error>(())
        };
        for cut in (0..whole.len()).step_by(17) {
            check(&whole[..cut])?;
        }
        for at in (0..whole.len()).step_by(3) {
            let mut bytes = whole.clone();
            bytes[at] ^= 1 << (at % 8);
            check(&bytes)?;
        }
    }
    Ok(())
}

/// Ten channels of 4 steps, by default names and commas.
fn rows(separator: &str) -> Vec<String> {
    let m = montage(10, 4);
    (0..4).map(|t| (0..10).map(|e| potential(&m, e, t).to_string()).collect::<Vec<_>>().join(separator)).collect()
}

fn header(separator: &str) -> String {
    montage(10, 4).electrodes.iter().map(|e| e.label.clone()).collect::<Vec<_>>().join(separator)
}

#[test]
fn tables_are_read_as_programs_write_them() -> Result<()> {
    let m = montage(10, 4);
    let expected: Vec<f32> =
        (0..4).flat_map(|t| (0..10).map(move |e| (t, e))).map(|(t, e)| potential(&m, e, t)).collect();
    let (names, plain) = (header(","), rows(","));
    let each =
        |f: &dyn Fn(usize, &String) -> String| plain.iter().enumerate().map(|(t, r)| f(t, r)).collect::<Vec<_>>();
    let joined = |head: &[&str], rows: Vec<String>| {
        head.iter().map(|h| h.to_string()).chain(rows).collect::<Vec<_>>().join("\n")
    };
    let turned = |e: usize| (0..4).map(|t| potential(&m, e, t).to_string()).collect::<Vec<_>>().join(",");
    let in_rows: Vec<String> =
        m.electrodes.iter().enumerate().map(|(e, at)| format!("{},{}", at.label, turned(e))).collect();
    for (text, said) in [
        (joined(&["Exported by a program", &names], plain.clone()), "Lines above the names are passed over: 1."),
        (joined(&[&names, &["uV"; 10].join(",")], plain.clone()), "10 channels at 500 Hz"),
        (joined(&["% a comment", &names], plain.clone()), "states no rate"),
        (joined(&[&format!("# {names}")], plain.clone()), "states no rate"),
        (joined(&["sep=,", &names], plain.clone()), "states no rate"),
        (joined(&[&names], each(&|_, r| format!("{r},"))), "states no rate"),
        (joined(&[&names], [plain.clone(), vec!["1,2".into()]].concat()), "The last line is not whole"),
        (joined(&[&header("|")], rows("|")), "states no rate"),
        (joined(&[], in_rows.clone()), "channels in rows"),
        (joined(&["channel,0,0.002,0.004,0.006"], in_rows), "at 500 Hz"),
        (joined(&[&format!(",time,{names}")], each(&|t, r| format!("{t},{},{r}", 0.002 * t as f64))), "at 500 Hz"),
        (
            joined(&[&format!("timestamp,{names}")], each(&|t, r| format!("12:00:0{:.3},{r}", 0.002 * t as f64))),
            "begin at 43200 s",
        ),
        (joined(&[&format!("time_ms,{names}")], each(&|t, r| format!("{},{r}", 2 * t))), "at 500 Hz"),
        (joined(&[&format!("sample,{names}")], each(&|t, r| format!("{t},{r}"))), "states no rate"),
    ] {
        let found = read("a.csv", &text, &m, false)?;
        assert!(found.remarks.contains(said), "{said}: {}", found.remarks);
        let off = found.values.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0., f32::max);
        assert!(off < 1e-6 && found.values.len() == 40, "{said}: {off}");
    }
    for (text, said) in [
        (joined(&[&format!("time,{names}")], each(&|t, r| format!("{t},{r}"))), "may be milliseconds or time steps"),
        (
            joined(&[&names], [plain[..2].to_vec(), vec!["1,2".into()], plain[2..].to_vec()].concat()),
            "fewer than the 10 fields",
        ),
        (String::new(), "it holds no numbers"),
    ] {
        let outcome = read("a.csv", &text, &m, false).map_or_else(|e| e.to_string(), |found| found.remarks);
        assert!(outcome.contains(said), "{said}: {outcome}");
    }
    Ok(())
}

#[test]
fn names_of_clinics_are_electrodes_and_differences_are_not() {
    let m = montage(10, 4);
    let places = |format: &dyn Fn(&str, usize) -> String| {
        let labels: Vec<String> = m.electrodes.iter().enumerate().map(|(e, at)| format(&at.label, e)).collect();
        let mut remarks = vec![];
        channels::places(&labels, &m.electrodes, &mut remarks).map(|places| (places, remarks.join(" ")))
    };
    type Naming<'a> = &'a dyn Fn(&str, usize) -> String;
    let formats: [Naming; 9] = [
        &|name, _| format!("EEG {name}-LE"),
        &|name, _| format!("{name} - Ref"),
        &|name, _| format!("POL {name}"),
        &|name, _| format!("EEG {name}-Av"),
        &|name, _| format!("{name}:REF"),
        &|name, _| format!("EEG {name} Referenc"),
        &|name, _| format!("{name}-0"),
        &|name, _| format!("{name}_EEG"),
        &|name, _| format!("{name}-Cz"),
    ];
    for format in formats {
        let (found, remarks) = places(format).unwrap_or_else(|e| panic!("{}: {e}", format("Pz", 0)));
        assert!(found == (0..10).map(Some).collect::<Vec<_>>() && remarks.is_empty(), "{}: {remarks}", format("Pz", 0));
    }
    let (_, remarks) = places(&|name, e| format!("{name}-A{}", 1 + e % 2)).expect("ears");
    assert!(remarks.contains("different references (a1, a2)"), "{remarks}");
    let next = |e: usize| m.electrodes[(e + 1) % 10].label.clone();
    let message = places(&|name, e| format!("{name}-{}", next(e))).expect_err("differences");
    assert!(message.contains("are differences of electrodes"), "{message}");
}

#[test]
fn what_stands_beside_an_array_names_and_times_it() {
    let beside = |name: &str, value: Beside| (name.to_string(), value);
    let numbers = |values: &[f64]| Beside::Numbers(values.to_vec());
    let texts = |texts: &[&str]| Beside::Texts(texts.iter().map(|t| t.to_string()).collect());
    let described = |beside: &[(String, Beside)]| {
        let mut eeg = Found { rows: 4, columns: 3, ..Found::default() };
        describe(&mut eeg, beside);
        eeg
    };
    for facts in [
        [beside("SampleRate", numbers(&[250.])), beside("clab", texts(&["a", "b", "c"]))],
        [beside("fs", texts(&["250 Hz"])), beside("arr_1", texts(&["a", "b", "c"]))],
        [beside("times", numbers(&[1., 1.004, 1.008, 1.012])), beside("ch_names", texts(&["a, b, c"]))],
        [beside("sr", numbers(&[250., 250.])), beside("Channels", texts(&["a", "b", "c"]))],
    ] {
        let found = described(&facts);
        assert_eq!((found.rate, found.labels.len()), (Some(250.), 3), "{facts:?}");
    }
    for (fact, said) in [
        (numbers(&[f64::NAN]), "its fs is no sampling rate"),
        (numbers(&[0.]), "its fs is no sampling rate"),
        (texts(&["fast"]), "its fs is no sampling rate"),
    ] {
        assert_eq!(described(&[beside("fs", fact)]).doubt.as_deref(), Some(said));
    }
    let names = |count: usize| {
        let mut eeg = Found { rows: 4, columns: 10, labels: vec!["x".into(); count], ..Found::default() };
        transpose(&mut eeg, 10, false, &mut vec![])
    };
    assert!(names(9).is_err_and(|e| e.contains("9 names of channels do not fit")) && names(2).is_ok());
}

#[test]
fn events_are_where_their_files_say() -> Result<()> {
    let dir = tempfile::tempdir().map_err(Error::io(Path::new("temporary")))?;
    let path = dir.path().join("events.csv");
    let read = |text: &str| {
        std::fs::write(&path, text).map_err(Error::io(&path))?;
        events::read(&path, &mut vec![]).map_err(Error::Data)
    };
    for (text, at) in [
        ("onset (ms)\n20\n", At::Seconds(0.02)),
        ("Onset,Duration,Annotation\n1.5,,spike\n", At::Seconds(1.5)),
        ("sample\n750\n", At::Step(750.)),
        ("latency,type\n751,spike\n", At::Step(750.)),
        ("00:00:01.5\n", At::Seconds(1.5)),
        ("onset\ttype\nn/a\tx\n1.5\tspike\n", At::Seconds(1.5)),
        ("# MNE-Annotations\n# onset, duration, description\n1.5,0.0,spike\n", At::Seconds(1.5)),
        ("1,5;spike\n", At::Seconds(1.5)),
    ] {
        let found = read(text)?;
        assert_eq!((found.len(), found[0].at), (1, at), "{text}");
    }
    for (text, said) in [
        ("1,5\n", "several numbers, and no line that names them"),
        ("   20      0   1\n", "several numbers"),
        ("onset,description\n2020-01-01 10:00:00+00:00,x\n", "MNE writes seconds into annotations of .txt"),
    ] {
        let message = read(text).map(|e| e.len()).unwrap_err().to_string();
        assert!(message.contains(said) && message.contains("events.csv"), "{message}");
    }
    Ok(())
}
