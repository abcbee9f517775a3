//! What is known of a run that may be going on.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context;
use serde_json::{Value, json};
use zoo_training::doctor::{Diagnosis, Evidence, diagnose};
use zoo_training::health::{Check, Level, Profile, Report, judge};
use zoo_training::{Follower, History, RunFiles, RunState};

use crate::health::{self, Profiles, advised};
use crate::heat::HeatMap;
use crate::output::{message, shown};
use crate::settings::run_tables;

/// Judgements of long runs take a while: they are made again at most this often.
const PAUSE: Duration = Duration::from_secs(5);
/// A run without a process of this machine is taken to go on elsewhere if it was written to so lately.
const RECENT: Duration = Duration::from_secs(120);

/// A run, and what was read of it.
pub(super) struct Seen {
    path: PathBuf,
    /// Its directory's name.
    pub(super) name: String,
    pub(super) model: String,
    follower: Follower,
    config: Value,
    total: Option<u64>,
    pub(super) state: RunState,
    /// The age of the newest data when they were read, and the time of reading.
    news: (Duration, Instant),
    checks: (u64, Vec<Check>),
    report: Option<Report>,
    pub(super) heat: HeatMap,
    diagnosis: Option<(Instant, Diagnosis)>,
    /// What could not be read.
    pub(super) error: Option<String>,
}

impl Seen {
    pub(super) fn new(path: &Path) -> anyhow::Result<Self> {
        let files = RunFiles::at(path).required()?;
        let whole = std::path::absolute(path).with_context(|| path.display().to_string())?;
        let name = whole.file_name().map_or_else(String::new, |n| shown(&n.to_string_lossy()).into_owned());
        let written = std::fs::metadata(files.metrics()).and_then(|m| m.modified());
        // Another machine's clock may be ahead.
        let age = written.ok().and_then(|at| SystemTime::now().duration_since(at).ok()).unwrap_or_default();
        Ok(Self {
            path: path.into(),
            name,
            model: String::new(),
            follower: Follower::new(path),
            config: Value::Null,
            total: None,
            state: RunState::Silent,
            news: (age, Instant::now()),
            checks: (0, vec![]),
            report: None,
            heat: HeatMap::of(&[]),
            diagnosis: None,
            error: None,
        })
    }

    /// Reads what is new. What cannot be read is told, and tried again the next time.
    pub(super) fn look(&mut self, profiles: Profiles) {
        self.error = self.read(profiles).err().map(|e| shown(&message(&e)).into_owned());
    }

    fn read(&mut self, profiles: Profiles) -> anyhow::Result<()> {
        let files = RunFiles::at(&self.path).required()?;
        let first = self.config.is_null();
        let state = files.state();
        // A resumed run may have other settings, and one that just began says later how long it is to be.
        if first || state != self.state || self.total.is_none() {
            self.config = serde_json::to_value(run_tables(&self.path)?)?;
            self.model = shown(&files.model().unwrap_or_default()).into_owned();
            self.total = files.total_steps();
        }
        let ended = state != self.state;
        self.state = state;
        let new = self.follower.update()?;
        if new && !first {
            self.news = (Duration::ZERO, Instant::now());
        }
        let size = std::fs::metadata(files.health()).map_or(0, |m| m.len());
        if size != self.checks.0 {
            self.checks = (size, Check::read(&self.path)?);
            let profile = profiles(&self.model).unwrap_or_default();
            self.report = Some(judge(&self.checks.1, &profile, &self.config));
            self.heat = HeatMap::of(&self.checks.1);
        }
        if ended || new && self.diagnosis.as_ref().is_none_or(|(at, _)| at.elapsed() > PAUSE) {
            let report = self.report.get_or_insert_with(|| judge(&[], &Profile::default(), &self.config));
            let evidence = Evidence {
                history: self.follower.history(),
                checks: &self.checks.1,
                report,
                config: &self.config,
                samples: files.samples(),
            };
            self.diagnosis = Some((Instant::now(), diagnose(&evidence)));
        }
        Ok(())
    }

    pub(super) fn history(&self) -> &History {
        self.follower.history()
    }

    fn last(&self, curve: &str) -> Option<f64> {
        self.history().curve(curve).last().map(|p| p.1)
    }

    pub(super) fn step(&self) -> u64 {
        self.history().curves.iter().filter_map(|c| c.points.last()).map(|p| p.0).max().unwrap_or(0)
    }

    pub(super) fn total(&self) -> Option<u64> {
        self.total.or_else(|| self.config.pointer("/train/steps")?.as_u64().filter(|n| *n > 0))
    }

    /// How long nothing new has come.
    fn age(&self) -> Duration {
        self.news.0 + self.news.1.elapsed()
    }

    /// Whether it seems to go on.
    pub(super) fn goes_on(&self) -> bool {
        match self.state {
            RunState::Running => true,
            RunState::Ended(_) => false,
            RunState::Silent => self.age() < RECENT && !self.is_done(),
        }
    }

    /// What it is doing, in words.
    pub(super) fn doing(&self) -> String {
        let age = duration(self.age().as_secs_f64());
        match &self.state {
            RunState::Running if self.age() > RECENT => format!("training, no news for {age}"),
            RunState::Running => "training".into(),
            RunState::Ended(end) => match end.as_str() {
                "early" => "stopped early".into(),
                end => shown(end).into_owned(),
            },
            RunState::Silent if self.is_done() => "finished".into(),
            RunState::Silent if self.goes_on() => format!("training elsewhere? last news {age} ago"),
            RunState::Silent => format!("no end on record, silent for {age}: killed?"),
        }
    }

    /// [`Seen::doing`] in a word or two.
    pub(super) fn briefly(&self) -> String {
        match &self.state {
            RunState::Silent if self.is_done() => "finished".into(),
            RunState::Silent if self.goes_on() => "elsewhere?".into(),
            RunState::Silent => "killed?".into(),
            RunState::Running | RunState::Ended(_) => self.doing().split([':', ',']).next().unwrap_or_default().into(),
        }
    }

    /// Whether all its steps are done.
    fn is_done(&self) -> bool {
        self.total().is_some_and(|total| self.step() >= total)
    }

    /// Steps a second, over the latest lines of this sitting.
    fn rate(&self) -> Option<f64> {
        const LINES: usize = 20;
        let seconds = &self.history().seconds;
        let last = seconds.last()?;
        let since = seconds.windows(2).rev().take(LINES).take_while(|w| w[0].1 < w[1].1).last()?[0];
        Some((last.0 - since.0) as f64 / (last.1 - since.1))
    }

    fn samples_per_second(&self) -> Option<f64> {
        let count = |key: &str| self.config.pointer(key)?.as_f64();
        Some(self.rate()? * count("/train/batch_size")? * count("/train/accumulate").unwrap_or(1.))
    }

    /// Seconds that are left, at the pace of the latest lines.
    pub(super) fn left(&self) -> Option<f64> {
        let left = self.total()?.saturating_sub(self.step()) as f64 / self.rate()?;
        (left.is_finite() && self.goes_on()).then_some(left)
    }

    /// The least validation loss and its step.
    pub(super) fn best(&self) -> Option<(u64, f64)> {
        self.history().curve("valid loss").iter().copied().filter(|p| p.0 > 0).min_by(|a, b| a.1.total_cmp(&b.1))
    }

    /// What stands beside the curves: names and values.
    pub(super) fn numbers(&self) -> Vec<(&'static str, String)> {
        use crate::plot::number;
        let shown = |value: Option<f64>| value.map_or("–".into(), number);
        let total = self.total().map_or(String::new(), |n| format!(" of {n}"));
        let best = self.best().map_or("–".into(), |(step, v)| format!("{} at {step}", number(v)));
        let elapsed = self.history().seconds.last().map(|p| p.1);
        let mut all = vec![
            ("step", format!("{}{total}", self.step())),
            ("training loss", shown(self.last("loss"))),
            ("validation loss", shown(self.last("valid loss"))),
            ("best", best),
            ("learning rate", shown(self.last("lr"))),
            ("gradient norm", shown(self.last("grad_norm"))),
            ("samples a second", shown(self.samples_per_second())),
            ("time", elapsed.map_or("–".into(), duration)),
        ];
        if let Some(left) = self.left() {
            all.push(("left", duration(left)));
        }
        all
    }

    /// What is wrong, or that nothing is: the judgement with its first cause, and what else was found.
    pub(super) fn sentences(&self) -> Vec<String> {
        let mut lines = vec![];
        if let Some((_, diagnosis)) = &self.diagnosis {
            let Diagnosis { verdict, because, advice, .. } = diagnosis;
            lines.push(format!("{}: {because}", health::name(*verdict)));
            lines.extend(advice.iter().map(|a| format!("try {}", advised(a))));
        }
        let report = self.report.iter().flat_map(|r| &r.findings).filter(|f| f.level >= Level::Alert);
        lines.extend(report.map(health::line));
        lines.extend(self.report.iter().filter_map(health::followed));
        lines.iter().map(|line| shown(line).into_owned()).collect()
    }

    pub(super) fn json(&self) -> Value {
        let (state, end) = match &self.state {
            RunState::Running => ("training", None),
            RunState::Silent if self.is_done() => ("ended", None),
            RunState::Silent if self.goes_on() => ("elsewhere", None),
            RunState::Silent => ("silent", None),
            RunState::Ended(end) => ("ended", Some(end)),
        };
        let verdict = self.diagnosis.as_ref().map(|(_, d)| json!({ "verdict": d.verdict, "because": d.because }));
        json!({
            "run": self.path.display().to_string(), "model": self.model, "state": state, "end": end, "step": self.step(),
            "total_steps": self.total(), "loss": self.last("loss"), "valid_loss": self.last("valid loss"),
            "best": self.best().map(|(step, loss)| json!({ "step": step, "loss": loss })), "lr": self.last("lr"),
            "grad_norm": self.last("grad_norm"), "samples_per_second": self.samples_per_second(),
            "seconds": self.history().seconds.last().map(|p| p.1), "seconds_left": self.left(),
            "seconds_since_news": self.age().as_secs_f64(), "judgement": verdict, "error": self.error,
        })
    }
}

/// A length of time in words as short as they get.
pub(super) fn duration(seconds: f64) -> String {
    let s = seconds.round() as u64;
    match s {
        0..60 => format!("{s} s"),
        60..3600 => format!("{}:{:02} min", s / 60, s % 60),
        3600..86400 => format!("{}:{:02} h", s / 3600, s % 3600 / 60),
        _ => format!("{} d {} h", s / 86400, s % 86400 / 3600),
    }
}
