//! Recordings that lie: each is read or refused as HOSTILE.md says, within 2 GiB of memory and two minutes for all of them.
//!
//! `ZOO_WRITE=1 cargo test -p zoo-deepsif --test hostile` writes that table.
#![cfg(all(unix, feature = "train"))]

use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use candle_core::Device;
use zoo_deepsif::{Config, DataSettings, DeepSifTask, ImageOptions};
use zoo_layers::Params;
use zoo_training::{Predict, Recipe, Request, Task};

const CHANNELS: usize = 10;
const STEPS: usize = 60;

/// Files of one recording, the first of which is named, and what lies about them.
struct Lie {
    format: &'static str,
    what: String,
    files: Vec<(&'static str, Vec<u8>)>,
}

/// The names of the head's electrodes.
fn names() -> &'static [String] {
    static NAMES: OnceLock<Vec<String>> = OnceLock::new();
    NAMES.get_or_init(|| {
        let fitted = fitted();
        let name = |e: &serde_json::Value| e["label"].as_str().expect("a name").to_string();
        fitted["electrodes"].as_array().expect("electrodes").iter().map(name).collect()
    })
}

fn settings() -> (Config, DataSettings) {
    let mut data = DataSettings::default();
    data.simulation.steps = 50;
    (Config { sensors: CHANNELS, ..Config::tiny() }, data)
}

fn fitted() -> serde_json::Value {
    let (config, data) = settings();
    DeepSifTask::open(&config, &data, 1, None, &Device::Cpu).expect("simulated data").fitted()
}

fn sample(channel: usize, t: usize) -> i16 {
    ((t * (channel + 3)) % 170) as i16 - 60
}

/// The fields of an EDF file's headers, by signal where there is one.
#[derive(Clone)]
struct Edf {
    records: String,
    duration: String,
    signals: String,
    labels: Vec<String>,
    physical: [String; 2],
    digital: [String; 2],
    samples: Vec<String>,
    notes: Vec<u8>,
    data: Option<Vec<u8>>,
}

impl Edf {
    fn new() -> Self {
        let text = |s: &str| s.to_string();
        Self {
            records: text("1"),
            duration: text("0.12"),
            signals: (CHANNELS + 1).to_string(),
            labels: names().iter().cloned().chain([text("EDF Annotations")]).collect(),
            physical: ["-3200", "3200"].map(text),
            digital: ["-32000", "32000"].map(text),
            samples: vec![STEPS.to_string(); CHANNELS].into_iter().chain([text("20")]).collect(),
            notes: b"+0\x14\x14\0+0.06\x14spike\x14\0".to_vec(),
            data: None,
        }
    }

    fn bytes(&self) -> Vec<u8> {
        let n = self.labels.len();
        let mut head = String::new();
        let mut put = |text: &str, width: usize| head += &format!("{text:<width$.width$}");
        for (text, width) in [("0", 8), ("X", 80), ("X", 80), ("02.01.20", 8), ("03.04.05", 8)] {
            put(text, width);
        }
        put(&(256 * (n + 1)).to_string(), 8);
        put("EDF+C", 44);
        put(&self.records, 8);
        put(&self.duration, 8);
        put(&self.signals, 4);
        self.labels.iter().for_each(|l| put(l, 16));
        (0..n).for_each(|_| put("", 80));
        (0..n).for_each(|_| put("uV", 8));
        for text in self.physical.iter().chain(&self.digital) {
            (0..n).for_each(|_| put(text, 8));
        }
        (0..n).for_each(|_| put("", 80));
        self.samples.iter().for_each(|s| put(s, 8));
        (0..n).for_each(|_| put("", 32));
        let mut bytes = head.into_bytes();
        bytes.extend(self.data.clone().unwrap_or_else(|| {
            let each = (0..CHANNELS).flat_map(|c| (0..STEPS).map(move |t| sample(c, t)));
            let mut data: Vec<u8> = each.flat_map(i16::to_le_bytes).collect();
            let mut notes = self.notes.clone();
            notes.resize(40, 0);
            data.extend(notes);
            data
        }));
        bytes
    }
}

fn edf(lies: &mut Vec<Lie>) {
    let mut add = |what: &str, change: &dyn Fn(&mut Edf)| {
        let mut file = Edf::new();
        change(&mut file);
        lies.push(Lie { format: "EDF", what: what.into(), files: vec![("a.edf", file.bytes())] });
    };
    add("nothing that lies", &|_| ());
    for signals in ["0", "-1", "9999", "4096", "1e3", "nan", ""] {
        add(&format!("{signals:?} signals"), &|f| f.signals = signals.into());
    }
    for records in ["-1", "0", "99999999", "inf"] {
        add(&format!("{records} records"), &|f| f.records = records.into());
    }
    for duration in ["0", "-1", "1e-300", "1e300"] {
        add(&format!("a record of {duration} seconds"), &|f| f.duration = duration.into());
    }
    for samples in ["0", "-4", "99999999", "16777216", "0.5"] {
        add(&format!("{samples} samples of each signal"), &|f| f.samples.fill(samples.into()));
    }
    add("one signal of another rate", &|f| f.samples[3] = "59".into());
    add("an empty physical range", &|f| f.physical = ["1", "1"].map(String::from));
    add("an empty digital range", &|f| f.digital = ["0", "0"].map(String::from));
    add("a physical range of 1e308", &|f| f.physical = ["-1e308", "1e308"].map(String::from));
    add("a digital range that is no number", &|f| f.digital = ["x", "y"].map(String::from));
    add("annotations alone", &|f| f.labels.fill("EDF Annotations".into()));
    add("an annotation without a time", &|f| f.notes = b"spike\x14\x14\0".to_vec());
    add("an annotation at infinity", &|f| f.notes = b"+inf\x14spike\x14\0".to_vec());
    add("an annotation without an end", &|f| f.notes = vec![b'1'; 40]);
    add("a gap between records", &|f| {
        let one = Edf::new().bytes().split_off(256 * (CHANNELS + 2));
        let mut late = one.clone();
        late.splice(2 * CHANNELS * STEPS..2 * CHANNELS * STEPS + 2, *b"+9");
        f.data = Some([one, late].concat());
        f.records = "2".into();
    });
    add("two channels of one name", &|f| f.labels[1] = names()[0].clone());
    add("4,000 signals of annotations without a byte", &|f| {
        f.labels.extend((0..4000).map(|_| "EDF Annotations".into()));
        f.samples.extend((0..4000).map(|_| "0".into()));
        f.signals = f.labels.len().to_string();
    });
    let whole = Edf::new().bytes();
    for cut in [9, 200, 256, 300, 256 * (CHANNELS + 2), whole.len() - 1] {
        let files = vec![("a.edf", whole[..cut].to_vec())];
        lies.push(Lie { format: "EDF", what: format!("the first {cut} bytes"), files });
    }
    let mut bdf = whole.clone();
    bdf[..8].copy_from_slice(b"\xffBIOSEMI");
    lies.push(Lie { format: "BDF", what: "samples of two bytes".into(), files: vec![("a.bdf", bdf)] });
}

const VHDR: &str = "Brain Vision Data Exchange Header File Version 1.0\n[Common Infos]\nDataFile=a.eeg\nMarkerFile=a.vmrk\n\
                    DataFormat=BINARY\nNumberOfChannels=10\nSamplingInterval=2000\n[Binary Infos]\nBinaryFormat=INT_16\n[Channel Infos]\n";

fn brainvision(lies: &mut Vec<Lie>) {
    let channels: String = (1..=CHANNELS).map(|c| format!("Ch{c}={},,0.1,uV\n", names()[c - 1])).collect();
    let header = VHDR.to_string() + &channels;
    let samples: Vec<u8> =
        (0..STEPS).flat_map(|t| (0..CHANNELS).flat_map(move |c| sample(c, t).to_le_bytes())).collect();
    let markers = "Brain Vision Data Exchange Marker File, Version 1.0\n[Marker Infos]\nMk1=Stimulus,spike,31,1,0\n";
    let mut add = |what: &str, header: &str, markers: &str, samples: &[u8]| {
        let files = [("a.vhdr", header.as_bytes()), ("a.vmrk", markers.as_bytes()), ("a.eeg", samples)];
        let files = files.into_iter().map(|(name, bytes)| (name, bytes.to_vec())).collect();
        lies.push(Lie { format: "BrainVision", what: what.into(), files });
    };
    add("nothing that lies", &header, markers, &samples);
    for (key, value) in [
        ("NumberOfChannels=10", "NumberOfChannels=0"),
        ("NumberOfChannels=10", "NumberOfChannels=-1"),
        ("NumberOfChannels=10", "NumberOfChannels=1000000000"),
        ("NumberOfChannels=10", "NumberOfChannels=11"),
        ("SamplingInterval=2000", "SamplingInterval=0"),
        ("SamplingInterval=2000", "SamplingInterval=nan"),
        ("SamplingInterval=2000", "SamplingInterval=1e-300"),
        ("DataFile=a.eeg", "DataFile=../../../../etc/passwd"),
        ("DataFile=a.eeg", "DataFile=/dev/zero"),
        ("DataFile=a.eeg", "DataFile=.."),
        ("DataFile=a.eeg", "DataFile="),
        ("DataFile=a.eeg", "DataFile=a.vhdr"),
        ("BinaryFormat=INT_16", "BinaryFormat=INT_64"),
        ("BinaryFormat=INT_16", "BinaryFormat=IEEE_FLOAT_32"),
        ("DataFormat=BINARY", "DataFormat=ASCII"),
        ("0.1,uV\nCh3", "nan,uV\nCh3"),
        ("0.1,uV\nCh3", "1e308,V\nCh3"),
        ("0.1,uV\nCh3", "x,uV\nCh3"),
        ("[Binary Infos]", "[Binary Infos]\nUseBigEndianOrder=YES"),
    ] {
        add(
            value.lines().rfind(|line| *line != "Ch3").unwrap_or_default(),
            &header.replace(key, value),
            markers,
            &samples,
        );
    }
    add("a marker without a position", &header, &markers.replace("31", "x"), &samples);
    add("a marker at 1e308", &header, &markers.replace("31", "1e308"), &samples);
    add("no samples", &header, markers, &[]);
    add("an odd number of bytes", &header, markers, &samples[..samples.len() - 1]);
    add("a header of one line", "Brain Vision Data Exchange Header File", markers, &samples);
}

/// A tag with its next one right behind it.
fn tag(kind: u32, of: u32, data: &[u8]) -> Vec<u8> {
    [kind.to_be_bytes(), of.to_be_bytes(), (data.len() as u32).to_be_bytes(), [0; 4]]
        .concat()
        .into_iter()
        .chain(data.iter().copied())
        .collect()
}

fn number(kind: u32, value: i32) -> Vec<u8> {
    tag(kind, 3, &value.to_be_bytes())
}

fn block(kind: i32, inner: &[Vec<u8>]) -> Vec<u8> {
    [number(104, kind), inner.concat(), number(105, kind)].concat()
}

fn channel(c: usize, kind: i32, calibration: f32) -> Vec<u8> {
    let mut data = [c as i32, c as i32, kind].iter().flat_map(|v| v.to_be_bytes()).collect::<Vec<u8>>();
    data.extend([1f32, calibration].iter().flat_map(|v| v.to_be_bytes()));
    data.extend([0; 52]);
    data.extend([107i32, 0].iter().flat_map(|v| v.to_be_bytes()));
    data.extend(format!("{:\0<16}", names()[c]).into_bytes());
    tag(203, 30, &data)
}

fn fif(lies: &mut Vec<Lie>) {
    let id = tag(100, 31, &[0; 20]);
    let info = |count: i32, rate: f32, channels: &[Vec<u8>]| {
        block(101, &[number(200, count), tag(201, 4, &rate.to_be_bytes()), channels.concat()])
    };
    let channels: Vec<Vec<u8>> = (0..CHANNELS).map(|c| channel(c, 2, 1e-7)).collect();
    let head = [id.clone(), info(CHANNELS as i32, 500., &channels)].concat();
    let samples: Vec<u8> =
        (0..STEPS).flat_map(|t| (0..CHANNELS).flat_map(move |c| sample(c, t).to_be_bytes())).collect();
    let raw = block(102, &[tag(300, 2, &samples)]);
    let last: Vec<u8> = [108, 0, 0, u32::MAX].iter().flat_map(|v| v.to_be_bytes()).collect();
    let whole = [head.clone(), raw.clone(), last].concat();
    let mut add = |what: &str, parts: &[&[u8]]| {
        lies.push(Lie { format: "FIF", what: what.into(), files: vec![("a.fif", parts.concat())] });
    };
    add("nothing that lies", &[&whole]);
    for count in [0, -1, 1_000_000_000, 9, 11] {
        add(&format!("{count} channels by its number"), &[&id, &info(count, 500., &channels), &raw]);
    }
    for rate in [0., -500., f32::NAN, f32::INFINITY, 1e-30, 1e30] {
        add(&format!("{rate} Hz"), &[&id, &info(CHANNELS as i32, rate, &channels), &raw]);
    }
    let other = |kind: i32, calibration: f32| (0..CHANNELS).map(|c| channel(c, kind, calibration)).collect::<Vec<_>>();
    add("no channel of EEG", &[&id, &info(CHANNELS as i32, 500., &other(1, 1e-7)), &raw]);
    add("a calibration of infinity", &[&id, &info(CHANNELS as i32, 500., &other(2, f32::INFINITY)), &raw]);
    add("a channel of four bytes", &[&id, &block(101, &[tag(203, 30, &[0; 4])]), &raw]);
    add("no information", &[&id, &raw]);
    add("no samples", &[&head]);
    add("samples of complex numbers", &[&head, &block(102, &[tag(300, 20, &samples)])]);
    add("samples that are no whole time steps", &[&head, &block(102, &[tag(300, 2, &samples[..samples.len() - 2])])]);
    add("a gap", &[&head, &block(102, &[tag(300, 2, &samples), number(301, 5)])]);
    add("epochs", &[&head, &block(373, &[])]);
    add("two averages", &[&head, &block(104, &[]), &block(104, &[])]);
    add("an average of a matrix without its dimensions", &[&head, &block(104, &[tag(302, 0x4000_0004, &[0; 3])])]);
    add("blocks 100 deep", &[&id, &number(104, 102).repeat(100)]);
    add("a block without a kind", &[&id, &tag(104, 3, &[])]);
    add("ends of blocks that never began", &[&head, &number(105, 102).repeat(100), &raw]);
    let mut nested = [head.clone(), number(104, 102)].concat();
    let end = (nested.len() + 16 * 20_000) as u32;
    for i in 0..20_000 {
        let at = nested.len() as u32;
        let next = if i == 19_999 { u32::MAX } else { at + 16 };
        nested.extend([300, 2, end - at - 16, next].iter().flat_map(|v| v.to_be_bytes()));
    }
    add("20,000 tags within each other", &[&nested]);
    for (what, at, word) in [
        ("a tag of 4 GB", 8, u32::MAX),
        ("a tag whose next one is itself", 12, 36),
        ("a tag whose next one lies beyond the file", 12, 1 << 30),
    ] {
        let mut bytes = whole.clone();
        bytes[36 + at..36 + at + 4].copy_from_slice(&word.to_be_bytes());
        add(what, &[&bytes]);
    }
    for cut in [13, 36, 40, whole.len() / 2, whole.len() - 1] {
        add(&format!("the first {cut} bytes"), &[&whole[..cut]]);
    }
}

/// A variable of MATLAB's: one number, or characters.
fn variable(name: &str, class: u8, inner: &[u8]) -> Vec<u8> {
    let columns = if class == 4 { inner.len() as u32 } else { 1 };
    array(name, class, [1, columns], inner)
}

fn matrix(name: &str, size: [u32; 2], values: &[u8]) -> Vec<u8> {
    array(name, 6, size, values)
}

fn array(name: &str, class: u8, size: [u32; 2], inner: &[u8]) -> Vec<u8> {
    let element = |kind: u32, data: &[u8]| {
        let mut bytes = [kind.to_le_bytes(), (data.len() as u32).to_le_bytes()].concat();
        bytes.extend_from_slice(data);
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        bytes
    };
    let sizes = size.map(u32::to_le_bytes).concat();
    let mut parts =
        [element(6, &[class, 0, 0, 0, 0, 0, 0, 0]), element(5, &sizes), element(1, name.as_bytes())].concat();
    match class {
        4 => parts.extend(element(16, inner)),
        _ => parts.extend(element(9, inner)),
    }
    element(14, &parts)
}

fn eeglab(lies: &mut Vec<Lie>) {
    let samples: Vec<u8> =
        (0..STEPS).flat_map(|t| (0..CHANNELS).flat_map(move |c| f32::from(sample(c, t)).to_le_bytes())).collect();
    let mut add = |what: &str, file: &str, numbers: [f64; 4], samples: &[u8]| {
        let mut set = vec![b' '; 124];
        set.extend([0, 1, b'I', b'M']);
        set.extend(variable("data", 4, file.as_bytes()));
        for (name, value) in ["nbchan", "pnts", "trials", "srate"].into_iter().zip(numbers) {
            set.extend(variable(name, 6, &value.to_le_bytes()));
        }
        let files = vec![("a.set", set), ("a.fdt", samples.to_vec())];
        lies.push(Lie { format: "EEGLAB", what: what.into(), files });
    };
    let right = [CHANNELS as f64, STEPS as f64, 1., 500.];
    add("nothing that lies", "a.fdt", right, &samples);
    for file in ["../../../../etc/passwd", "/dev/zero", "..", "", "b.fdt"] {
        add(&format!("samples in {file:?}"), file, right, &samples);
    }
    for (what, at, value) in [
        ("0 channels", 0, 0.),
        ("1e300 channels", 0, 1e300),
        ("channels that are no number", 0, f64::NAN),
        ("0.5 time steps", 1, 0.5),
        ("999999999 time steps", 1, 999_999_999.),
        ("7 trials", 2, 7.),
        ("-500 Hz", 3, -500.),
        ("1e300 Hz", 3, 1e300),
    ] {
        let mut numbers = right;
        numbers[at] = value;
        add(what, "a.fdt", numbers, &samples);
    }
    add("samples that end early", "a.fdt", right, &samples[..samples.len() - 3]);
}

/// EEGLAB's structure with its data in the file: more rows than names, and no columns.
fn structures(lies: &mut Vec<Lie>) {
    let mut add = |what: &str, rows: usize, columns: usize| {
        let mut set = vec![b' '; 124];
        set.extend([0, 1, b'I', b'M']);
        let values: Vec<u8> = (0..rows * columns).flat_map(|i| f64::from(sample(i, i)).to_le_bytes()).collect();
        set.extend(matrix("data", [rows as u32, columns as u32], &values));
        set.extend(variable("srate", 6, &500f64.to_le_bytes()));
        set.extend(variable("chanlocs", 4, names().join(",").as_bytes()));
        lies.push(Lie { format: "EEGLAB", what: what.into(), files: vec![("a.set", set)] });
    };
    add("as many names as time steps", 60, CHANNELS);
    add("10 x 60 numbers", CHANNELS, 60);
    add("0 x 10 numbers", 0, CHANNELS);
    add("10 x 0 numbers", CHANNELS, 0);
}

fn table(lies: &mut Vec<Lie>) {
    let row = |t: usize| (0..CHANNELS).map(|c| sample(c, t).to_string()).collect::<Vec<_>>().join(",") + "\n";
    let rows: String = (0..STEPS).map(row).collect();
    let mut add = |what: &str, text: String| {
        lies.push(Lie { format: "table", what: what.into(), files: vec![("a.csv", text.into_bytes())] });
    };
    add("nothing that lies", rows.clone());
    add("no line", String::new());
    add("names alone", names().join(","));
    add("rows of different lengths", rows.clone() + "1,2\n");
    add("a value of 1e999", rows.replacen("-60", "1e999", 1));
    add(
        "missing values alone",
        rows.chars().map(|c| if c == ',' || c == '\n' { c.to_string() } else { String::new() }).collect(),
    );
    add("a line of a million fields", "1,".repeat(1_000_000));
    add("a quote without an end", format!("\"{rows}"));
    let timed = |time: &dyn Fn(usize) -> String| -> String {
        let lines = rows.lines().enumerate().map(|(t, line)| format!("{},{line}\n", time(t)));
        std::iter::once(format!("time,{}\n", names().join(","))).chain(lines).collect()
    };
    add("times that fall", timed(&|t| format!("{}", -(t as f64) / 500.)));
    add("times that stand", timed(&|_| "1".into()));
    add("times with a gap", timed(&|t| format!("{}", if t > 30 { 5. } else { 0. } + t as f64 / 500.)));
    add("times of 1e308", timed(&|t| format!("{t}e306")));
}

fn all() -> Vec<Lie> {
    let mut lies = vec![];
    edf(&mut lies);
    brainvision(&mut lies);
    fif(&mut lies);
    eeglab(&mut lies);
    structures(&mut lies);
    table(&mut lies);
    lies
}

/// What comes of each lie, as a table.
fn outcomes() -> String {
    let folder = tempfile::tempdir().expect("a folder");
    let ((config, data), fitted) = (settings(), fitted());
    let mut rows = String::new();
    for Lie { format, what, files } in all() {
        for (name, bytes) in &files {
            std::fs::write(folder.path().join(name), bytes).expect("a file");
        }
        let path = folder.path().join(files[0].0);
        let model = DeepSifTask::build(&config, Params::init(1, &Device::Cpu).builder()).expect("a model");
        let rate = if format == "table" && !what.contains("time") { 500. } else { 0. };
        // By their names where the format has them, else in the order of the weights.
        let options =
            ImageOptions { as_trained: format == "table" && !what.contains("time"), rate, ..ImageOptions::default() };
        let request = Request { input: Path::new(&path), options };
        let begun = Instant::now();
        let outcome = match DeepSifTask::predict(&model, &config, &data, &fitted, &request, &Device::Cpu) {
            Ok(prediction) => {
                let usual = |r: &str| {
                    ["Referenced", "The network was", "The last 10", "20 of 20", "The file states no unit"]
                        .iter()
                        .any(|u| r.starts_with(u))
                        || r.contains("Otsu")
                };
                let said: Vec<&str> = prediction.remarks.iter().map(String::as_str).filter(|r| !usual(r)).collect();
                format!("read; {}", said.join(" "))
            }
            Err(e) => {
                let (text, name) = (e.to_string(), folder.path().display().to_string());
                assert!(
                    text.lines().count() == 1 && text.contains(&name) && text.len() < 600,
                    "{format}, {what}: {text}"
                );
                text.replace(&format!("{}: ", path.display()), "").replace(&name, "FOLDER")
            }
        };
        assert!(begun.elapsed() < Duration::from_secs(10), "{format}, {what}: {:?}", begun.elapsed());
        rows += &format!("| {format} | {what} | {} |\n", outcome.replace('|', "\\|"));
    }
    rows
}

const CHILD: &str = "ZOO_HOSTILE_CHILD";

#[test]
fn recordings_that_lie_are_read_or_refused_in_one_line() {
    if let Ok(out) = std::env::var(CHILD) {
        return std::fs::write(out, outcomes()).expect("a file");
    }
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().join("rows");
    let child = Command::new("sh")
        .args(["-c", "ulimit -v 2097152; exec timeout 120 \"$@\"", "sh"])
        .arg(std::env::current_exe().expect("this test"))
        .args(["recordings_that_lie_are_read_or_refused_in_one_line", "--exact", "--nocapture"])
        .env(CHILD, &out)
        .env("RAYON_NUM_THREADS", "2")
        .status()
        .expect("a child");
    assert!(child.success(), "{child}");
    let rows = std::fs::read_to_string(out).expect("rows");
    let head = "# Recordings that lie\n\nWhat `zoo predict deepsif` makes of each, in 2 GiB of memory and less than ten seconds: it is refused in one line, or \
                read with a word about it.\n\n    cargo test -p zoo-deepsif --test hostile\n\ncompares this table with what comes; with `ZOO_WRITE=1` it writes it. \
                Fuzz targets for the same readers: `edf`, `brainvision`, `fif`, `eeglab`, `eeg` and `events` (fuzz/README.md).\n\n\
                | format | a file with | outcome |\n| --- | --- | --- |\n";
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("HOSTILE.md");
    if std::env::var("ZOO_WRITE").is_ok() {
        std::fs::write(&path, format!("{head}{rows}")).expect("the table");
    }
    let expected = std::fs::read_to_string(&path).expect("HOSTILE.md");
    for (found, expected) in rows.lines().zip(expected.lines().skip_while(|l| !l.starts_with("| ---")).skip(1)) {
        assert_eq!(found, expected, "HOSTILE.md");
    }
    assert_eq!(expected, format!("{head}{rows}"), "HOSTILE.md");
}
