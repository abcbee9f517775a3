use std::collections::HashMap;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use serde_json::Value;
use zoo_checkpoint::Folder;

use crate::run::{LONGEST_LINES, METRICS};
use crate::{Error, Result, RunFiles};

/// The curves of a run, as its `metrics.jsonl` has them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct History {
    /// Curves by name, in the order in which they first appear: `loss`, parts of the loss, `lr`, `grad_norm`, and
    /// `valid loss`, `valid rmse`, … of the evaluations, `experience …` of what a model that acts brought.
    pub curves: Vec<Curve>,
    /// Steps whose update was refused.
    pub refused: u64,
    /// Seconds since training was begun or resumed, after a step.
    pub seconds: Vec<(u64, f64)>,
    /// Where each curve is, by name.
    numbers: HashMap<String, usize>,
}

/// Curves that are kept; further ones are not.
const MOST_CURVES: usize = 10_000;

/// Values over steps.
#[derive(Clone, Debug, PartialEq)]
pub struct Curve {
    /// What they are.
    pub name: String,
    /// Step and value, in the order of the steps.
    pub points: Vec<(u64, f64)>,
}

impl History {
    /// Reads a run directory.
    ///
    /// # Errors
    /// There is no `metrics.jsonl`, or a line of it (but for the last, which a crash may have cut) is not JSON.
    pub fn read(run: &Path) -> Result<Self> {
        let files = RunFiles::at(run);
        let path = files.metrics();
        let absent = || match files.exist() {
            true => Error::Run(format!("{}: no step is on record yet", run.display())),
            false => Error::io(&path)(std::io::ErrorKind::NotFound.into()),
        };
        let text = files.metrics_text()?.ok_or_else(absent)?;
        let mut history = Self::default();
        let lines = text.lines().count();
        for (i, line) in text.lines().enumerate() {
            match serde_json::from_str::<Value>(line) {
                Ok(line) => history.add_line(&line),
                Err(_) if i + 1 == lines => {}
                Err(e) => return Err(Error::Run(format!("{}: line {}: {e}", path.display(), i + 1))),
            }
        }
        Ok(history)
    }

    fn add_line(&mut self, line: &Value) {
        let step = line["step"].as_u64().unwrap_or_default();
        self.refused += u64::from(line["refused"] == true);
        self.seconds.extend(line["seconds"].as_f64().map(|seconds| (step, seconds)));
        for (name, value) in line.as_object().into_iter().flatten() {
            match value {
                Value::Number(n) if !matches!(name.as_str(), "step" | "seconds") => {
                    self.add(name, step, n.as_f64().unwrap_or(f64::NAN));
                }
                Value::Object(metrics) => {
                    for (metric, value) in metrics {
                        self.add(&format!("{name} {metric}"), step, value.as_f64().unwrap_or(f64::NAN));
                    }
                }
                _ => {}
            }
        }
    }

    /// Appends a value; one that is not finite is no point of a curve. Of more than 10,000 names the first are kept.
    pub fn add(&mut self, name: &str, step: u64, value: f64) {
        if !value.is_finite() {
            return;
        }
        match self.numbers.get(name) {
            Some(number) => self.curves[*number].points.push((step, value)),
            None => {
                // More is no training run: a file of other names would take memory for each.
                if self.curves.len() == MOST_CURVES {
                    return;
                }
                self.numbers.insert(name.into(), self.curves.len());
                self.curves.push(Curve { name: name.into(), points: vec![(step, value)] });
            }
        }
    }

    /// The curve of that name; empty if there is none.
    pub fn curve(&self, name: &str) -> &[(u64, f64)] {
        self.numbers.get(name).map(|number| self.curves[*number].points.as_slice()).unwrap_or_default()
    }

    /// Seconds a step, over the parts between which training was resumed, if any has two lines.
    pub fn seconds_a_step(&self) -> Option<f64> {
        // The clock begins anew where a run is resumed.
        let pairs = || self.seconds.windows(2).filter(|w| w[1].1 >= w[0].1 && w[1].0 > w[0].0);
        let (steps, seconds) = pairs().fold((0, 0.), |(n, s), w| (n + w[1].0 - w[0].0, s + w[1].1 - w[0].1));
        (steps > 0).then(|| seconds / steps as f64)
    }

    /// Drops what came after `step`.
    pub fn cut(&mut self, step: u64) {
        self.curves.iter_mut().for_each(|c| c.points.retain(|(at, _)| *at <= step));
        self.seconds.retain(|(at, _)| *at <= step);
    }
}

/// The curves of a run that may still be going on: only what is new is read.
#[derive(Debug)]
pub struct Follower {
    run: PathBuf,
    history: History,
    /// Bytes that were read, up to the end of a line, and the last of them.
    read: u64,
    last: Vec<u8>,
}

impl Follower {
    /// Of the run at `run`, which need not be there yet.
    pub fn new(run: &Path) -> Self {
        Self { run: run.into(), history: History::default(), read: 0, last: vec![] }
    }

    /// What was read so far.
    pub fn history(&self) -> &History {
        &self.history
    }

    /// Reads new lines and returns whether there were any. A file that was replaced, as by a resume, is read from its
    /// beginning.
    ///
    /// # Errors
    /// As [`History::read`], but for a file that is not there yet.
    pub fn update(&mut self) -> Result<bool> {
        /// Bytes that are compared to see that it is the same file.
        const TAIL: usize = 256;
        let path = RunFiles::at(&self.run).metrics();
        let folder = Folder::open(&self.run)?;
        if folder.kind(METRICS)?.is_none() {
            return Ok(false);
        }
        let mut file = folder.file(METRICS)?;
        let mut part = |from: u64, length: u64| -> std::io::Result<Vec<u8>> {
            let mut bytes = vec![];
            file.seek(SeekFrom::Start(from))?;
            (&mut file).take(length).read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        let before = self.last.len() as u64;
        let anew = part(self.read - before, before).map_err(Error::io(&path))? != self.last;
        if anew {
            *self = Self::new(&self.run);
        }
        let bytes = part(self.read, LONGEST_LINES).map_err(Error::io(&path))?;
        let whole = bytes.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
        let lines = bytes[..whole].split(|b| *b == b'\n').filter(|line| !line.is_empty());
        // All of them before any is added: what fails is read again the next time.
        let lines = lines.map(serde_json::from_slice).collect::<std::result::Result<Vec<Value>, _>>();
        let lines = lines.map_err(|e| Error::Run(format!("{}: {e}", path.display())))?;
        lines.iter().for_each(|line| self.history.add_line(line));
        self.read += whole as u64;
        self.last = [&self.last, &bytes[..whole]].concat();
        self.last.drain(..self.last.len().saturating_sub(TAIL));
        Ok(anew || whole > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_become_curves_and_a_cut_last_line_is_passed_over() -> Result<()> {
        let dir = tempfile::tempdir().map_err(Error::io(Path::new("temporary")))?;
        let path = dir.path().join("metrics.jsonl");
        let write = |text: &str| std::fs::write(&path, text).map_err(Error::io(&path));
        let good = "{\"step\":1,\"loss\":2,\"lr\":0.1,\"seconds\":3}\n{\"step\":2,\"loss\":null,\"refused\":true}\n\
                    {\"step\":2,\"valid\":{\"loss\":1.5,\"rmse\":4}}\n";
        write(&format!("{good}{{\"step\":3,\"lo"))?;
        let mut history = History::read(dir.path())?;
        assert_eq!((history.curve("loss"), history.curve("valid loss")), (&[(1, 2.)][..], &[(2, 1.5)][..]));
        let names: Vec<_> = history.curves.iter().map(|c| c.name.as_str()).collect();
        assert_eq!((names, history.refused), (vec!["loss", "lr", "valid loss", "valid rmse"], 1));
        history.cut(1);
        assert!(history.curve("valid rmse").is_empty());
        let mut follower = Follower::new(dir.path());
        write(good)?;
        assert!(follower.update()? && !follower.update()?);
        write(&format!("{good}{{\"step\":3,\"loss\":1,\"seconds\":4}}\n{{\"step\":4,"))?;
        assert!(follower.update()?);
        assert_eq!(follower.history().curve("loss"), &[(1, 2.), (3, 1.)]);
        assert_eq!(follower.history().seconds, [(1, 3.), (3, 4.)]);
        // Another file, as a resume leaves it.
        write("{\"step\":1,\"loss\":5}\n")?;
        assert!(follower.update()?);
        assert_eq!(follower.history().curve("loss"), &[(1, 5.)]);
        // A line that is damaged adds nothing, however often it is looked at.
        write("{\"step\":1,\"loss\":5}\n{\"step\":2,\"loss\":6}\n{\"step\":3,\"lo\n")?;
        assert!(follower.update().is_err() && follower.update().is_err());
        assert_eq!(follower.history().curve("loss"), &[(1, 5.)]);
        write(&format!("{{\"step\":3,\"lo\n{good}"))?;
        assert!(History::read(dir.path()).unwrap_err().to_string().contains("metrics.jsonl: line 1: "));
        Ok(())
    }
}
