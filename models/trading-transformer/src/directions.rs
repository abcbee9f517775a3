//! Which way the close goes: observations, directions, metrics and baselines.

use std::path::Path;

use candle_core::{Device, Result, Tensor};
use serde_json::{Value, json};
use zoo_layers::{Mode, ops};
use zoo_market::{Days, simulate};
use zoo_training::spread::verdict;
use zoo_training::{Error, Evaluation, Metrics, Name, Split, over_batches};

use crate::baseline::{Logistic, shares};
use crate::data::{Batch, Data};
use crate::features::{FEATURES, Trader, WARMUP, of_bars, windows};
use crate::statistics::standard_errors;
use crate::{Config, DIRECTIONS, DataSettings, TradingTransformer};

/// Samples of a batch when evaluating.
const BATCH: usize = 256;
/// Key of the last day that decided the weights.
pub(crate) const UNTIL: &str = "until";

/// Bars with their features, and where the close went afterwards.
pub(crate) struct Directions {
    days: Days,
    simulated: bool,
    /// 129 features a bar.
    rows: Vec<f32>,
    /// Direction after each bar that has as many bars behind it as the horizon.
    labels: Vec<i64>,
    bars: usize,
    horizon: usize,
    /// The last bars of the samples of each part.
    splits: [std::ops::Range<usize>; 3],
    /// The last day that the weights were fitted to, if they are loaded ones.
    seen: Option<String>,
    device: Device,
}

/// Where the close went `horizon` bars later: 0 down, 1 flat, 2 up, against `band` standard deviations of such moves.
fn directions(days: &Days, horizon: usize, band: f64) -> Vec<i64> {
    let log: Vec<f64> = days.bars.iter().map(|b| b.close.ln()).collect();
    let sigma = windows::rolling(&windows::changes(&log), 50, windows::deviation);
    let of = |t: usize| match (log[t + horizon] - log[t]) / (sigma[t] * (horizon as f64).sqrt()).max(1e-12) {
        z if z > band => 2,
        z if z < -band => 0,
        _ => 1,
    };
    (0..log.len().saturating_sub(horizon)).map(of).collect()
}

impl Directions {
    fn range(&self, split: Split) -> std::ops::Range<usize> {
        let [train, valid, test] = &self.splits;
        match split {
            Split::Train => train,
            Split::Valid => valid,
            Split::Test => test,
        }
        .clone()
    }

    /// Asks where the close came from instead of where it goes: what the observations say.
    pub(crate) fn look_back(&mut self) {
        // The first bars are history and no samples.
        self.labels.rotate_right(self.horizon);
    }

    /// The chances that the logits (b, 3) of observations (b, s·f) give each direction, over a split.
    fn chances(&self, split: Split, logits: impl Fn(&Tensor) -> Result<Tensor>) -> Result<Vec<Vec<f32>>> {
        const DIRECTIONS: usize = 3;
        let n = self.samples(split);
        let all = over_batches(n.div_ceil(BATCH), |i| {
            let indices: Vec<usize> = (i * BATCH..n.min((i + 1) * BATCH)).collect();
            let logits = logits(&self.windows(split, &indices)?.0)?;
            let chances = ops::softmax(&logits.to_device(&Device::Cpu)?)?.flatten_all()?.to_vec1::<f32>()?;
            Ok(chances.into_iter().map(f64::from).collect())
        })?;
        Ok(all.concat().chunks(DIRECTIONS).map(|p| p.iter().map(|v| *v as f32).collect()).collect())
    }

    /// Metrics of logits (b, 3) for observations (b, s·f), over a split.
    pub(crate) fn judge_by(&self, split: Split, logits: impl Fn(&Tensor) -> Result<Tensor>) -> Result<Metrics> {
        Ok(self.judge(split, &self.chances(split, logits)?))
    }

    /// Metrics of chances: mean -ln of what happened, the share told right, and the Brier score, the sum over directions of
    /// (chance - outcome)², from 0 to 2.
    fn judge(&self, split: Split, chances: &[Vec<f32>]) -> Metrics {
        let (mut loss, mut right, mut brier) = (0., 0., 0.);
        let labels = &self.labels[self.range(split)];
        for (p, label) in chances.iter().zip(labels) {
            let y = *label as usize;
            // Not max(), which would take a NaN for 1e-12.
            let chance = f64::from(p[y]);
            loss -= if chance < 1e-12 { 1e-12f64 } else { chance }.ln();
            let best = (0..p.len()).max_by(|a, b| p[*a].total_cmp(&p[*b]).then(b.cmp(a)));
            right += f64::from(u8::from(best == Some(y)));
            brier += self.score(p, y);
        }
        let n = labels.len().max(1) as f64;
        [("loss", loss / n), ("accuracy", 100. * right / n), ("brier", brier / n)].into()
    }

    fn score(&self, p: &[f32], y: usize) -> f64 {
        p.iter().enumerate().map(|(i, p)| (f64::from(*p) - f64::from(u8::from(i == y))).powi(2)).sum()
    }

    /// By how many standard errors the mean Brier score of `a` is below that of `b`, if that can be told. Samples overlap: the
    /// error counts covariances up to twice the horizon (Newey and West 1987).
    fn advantage(&self, split: Split, a: &[Vec<f32>], b: &[Vec<f32>]) -> Option<f64> {
        let labels = &self.labels[self.range(split)];
        let gain =
            |((a, b), y): ((&Vec<f32>, &Vec<f32>), &i64)| self.score(b, *y as usize) - self.score(a, *y as usize);
        let gains: Vec<f64> = a.iter().zip(b).zip(labels).map(gain).collect();
        standard_errors(&gains, 2 * self.horizon)
    }

    /// The shares of the directions `of` a split as the chances of each sample of another.
    fn constant(&self, of: Split, split: Split) -> Vec<Vec<f32>> {
        let shares = shares(&self.labels[self.range(of)]).map(|s| s as f32);
        vec![shares.to_vec(); self.samples(split)]
    }

    fn rows_of(&self, split: Split) -> &[f32] {
        let range = self.range(split);
        &self.rows[range.start * FEATURES..range.end * FEATURES]
    }
}

impl Directions {
    pub(crate) fn open(
        config: &Config,
        source: &DataSettings,
        seed: u64,
        fitted: Option<&Value>,
        device: &Device,
    ) -> zoo_training::Result<Self> {
        if let Some(problem) = source.problem().or_else(|| config.problem()) {
            return Err(Error::Usage(problem));
        }
        let &DataSettings { ref path, horizon, band, positions, valid, test, simulated_days, .. } = source;
        if !((1..=10_000).contains(&horizon) && band.is_finite() && band >= 0.) {
            return Err(Error::Usage(
                "data.horizon must be 1 to 10,000 bars and data.band must not be negative".into(),
            ));
        }
        let path = Some(Path::new(path)).filter(|p| !p.as_os_str().is_empty());
        if path.is_some_and(Path::is_dir) {
            return Err(Error::Usage(format!(
                "{} is a folder: directions are learned from one file, a policy (the preset ppo) from one or many",
                source.path
            )));
        }
        let days = match path {
            Some(path) => source.read(path)?,
            None => simulate(simulated_days, seed),
        };
        let origin = path.map_or("the simulation".to_string(), |p| p.display().to_string());
        // Between two parts, neither the bars of an observation nor those that its direction is told from overlap.
        let (first, gap) = (WARMUP + config.bars - 1, config.bars + horizon - 1);
        let all = days.bars.len().saturating_sub(first + horizon);
        let samples = all.saturating_sub(2 * gap);
        let count = |share: f64| (samples as f64 * share).round() as usize;
        let (n_valid, n_test) = (count(valid), count(test));
        let n_train = samples.saturating_sub(n_valid + n_test);
        // Half a sample or more of the smallest part rounds to one.
        let smallest = [valid, test].into_iter().filter(|s| *s > 0.).fold(1. - valid - test, f64::min);
        let least = (0.5 / smallest).ceil() as usize;
        if n_train == 0 || (valid > 0. && n_valid == 0) || (test > 0. && n_test == 0) {
            return Err(Error::Data(format!(
                "{origin}: {} days, at least {} are needed: {WARMUP} of history, {} an observation, {horizon} ahead, and as much \
                 between two parts (bring more data)",
                days.bars.len(),
                first + horizon + 2 * gap + least,
                config.bars
            )));
        }
        let held = if positions { Trader::default().positions(&days.bars, seed) } else { vec![] };
        let from = |start: usize, n: usize| start..start + n;
        let train = from(first, n_train);
        let valid = from(train.end + gap, n_valid);
        let test = from(valid.end + gap, n_test);
        Ok(Self {
            rows: of_bars(&days.bars, &held),
            labels: directions(&days, horizon, band),
            simulated: path.is_none(),
            days,
            bars: config.bars,
            horizon,
            splits: [train, valid, test],
            seen: fitted.and_then(|f| f[UNTIL].as_str()).map(String::from),
            device: device.clone(),
        })
    }

    /// Observations (b, s·f) and directions (b).
    pub(crate) fn windows(&self, split: Split, indices: &[usize]) -> Result<(Tensor, Tensor)> {
        let (start, width) = (self.range(split).start, self.bars * FEATURES);
        let mut x = Vec::with_capacity(indices.len() * width);
        let mut y = Vec::with_capacity(indices.len());
        for i in indices {
            let t = start + i;
            x.extend_from_slice(&self.rows[(t + 1 - self.bars) * FEATURES..(t + 1) * FEATURES]);
            y.push(self.labels[t]);
        }
        let n = indices.len();
        Ok((Tensor::from_vec(x, (n, width), &self.device)?, Tensor::from_vec(y, n, &self.device)?))
    }
}

impl Data for Directions {
    fn describe_data(&self) -> String {
        let origin = if self.simulated { "a simulated market" } else { "prices" };
        let (dates, n) = (&self.days.dates, self.days.dates.len());
        let [train, valid, test] = [Split::Train, Split::Valid, Split::Test].map(|s| self.samples(s));
        format!(
            "{origin}, {n} days {} to {}; samples: {train} train, {valid} valid, {test} test, {} bars between the parts",
            dates[0],
            dates[n - 1],
            self.bars + self.horizon - 1
        )
    }

    fn fingerprint(&self) -> String {
        let splits = self.splits.iter().flat_map(|s| [s.start as i64, s.end as i64]);
        let numbers = self.labels.iter().copied().chain(splits).flat_map(i64::to_le_bytes);
        let bytes: Vec<u8> = self.rows.iter().flat_map(|v| v.to_le_bytes()).chain(numbers).collect();
        zoo_checkpoint::sha256_of(&bytes)
    }

    fn fitted(&self) -> Value {
        // Simulated days share no more than dates with real ones.
        let parts = [Split::Train, Split::Valid].map(|s| self.range(s)).into_iter().filter(|r| !r.is_empty());
        let last = parts.map(|r| r.end).max().unwrap_or_default() + self.horizon - 1;
        match self.simulated {
            true => json!({}),
            false => json!({ UNTIL: self.days.dates[last].to_string() }),
        }
    }

    fn warnings(&self) -> Vec<String> {
        let test = self.range(Split::Test);
        let first = if test.is_empty() { None } else { Some(test.start) };
        let mut warnings = self.days.caveats(first, self.seen.as_deref());
        let most =
            shares(&self.labels[self.range(Split::Train)]).into_iter().enumerate().max_by(|a, b| a.1.total_cmp(&b.1));
        if let Some((direction, share)) = most.filter(|(_, share)| *share > 0.9) {
            warnings.push(format!(
                "{:.0} % of the training part's directions are {}: there is hardly anything to tell apart (data.band, data.horizon)",
                100. * share,
                DIRECTIONS[direction]
            ));
        }
        warnings
    }

    fn samples(&self, split: Split) -> usize {
        self.range(split).len()
    }

    fn batch(&self, split: Split, indices: &[usize]) -> Result<Batch> {
        self.windows(split, indices).map(|(x, y)| Batch::Directions(x, y))
    }

    fn forward(&self, model: &TradingTransformer, batch: &Batch, mode: Mode) -> Result<Tensor> {
        model.forward(batch.observation(), mode)
    }

    fn validate(&self, model: &TradingTransformer, split: Split) -> Result<Metrics> {
        self.judge_by(split, |x| model.forward(x, Mode::Eval))
    }

    fn baseline(&self, split: Split) -> Option<(Name, f64)> {
        // Of the split itself: no constant is better, whatever way the market went meanwhile.
        Some(("best constant".into(), self.judge(split, &self.constant(split, split)).value("loss")))
    }

    fn evaluate(&self, model: &TradingTransformer, split: Split) -> Result<Evaluation> {
        let chances = self.chances(split, |x| model.forward(x, Mode::Eval))?;
        let n = self.samples(split);
        let labels = |split: Split| &self.labels[self.range(split)];
        let prior = self.constant(Split::Train, split);
        let part = |split: Split| (self.rows_of(split), labels(split));
        let logistic = Logistic::fit(part(Split::Train), part(Split::Valid))?.chances(self.rows_of(split))?;
        let metrics = self.judge(split, &chances);
        let baselines: [(Name, Metrics); 2] = [("majority_class", &prior), ("logistic_regression", &logistic)]
            .map(|(n, c)| (n.into(), self.judge(split, c)));
        let mut remarks = vec![];
        if self.simulated {
            remarks.push("This is a simulated market: the figures say nothing about any other.".to_string());
        }
        for ((name, of), others) in baselines.iter().zip([&prior, &logistic]) {
            let errors = self.advantage(split, &chances, others);
            let verdict = verdict(errors.unwrap_or(0.));
            let errors = errors.map_or("too few different samples to tell by".into(), |e| {
                format!("{e:+.1} standard errors, counting that samples overlap")
            });
            let (mine, theirs, name) = (metrics.value("brier"), of.value("brier"), name.replace('_', " "));
            remarks.push(format!("The model {verdict} {name} (Brier score {mine:.4} against {theirs:.4}, {errors})."));
        }
        let happened = shares(labels(split)).map(|s| format!("{:.1}", 100. * s));
        remarks.push(format!("Of the directions {} % were down, flat and up.", happened.join(", ")));
        Ok(Evaluation { samples: n, metrics, baselines: baselines.into(), remarks, ..Evaluation::default() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(source: &DataSettings) -> zoo_training::Result<Directions> {
        Directions::open(&Config::default(), source, 3, None, &Device::Cpu)
    }

    #[test]
    fn parts_are_in_time_order_and_share_no_bar() -> zoo_training::Result<()> {
        let task = open(&DataSettings { simulated_days: 800, ..DataSettings::default() })?;
        let [train, valid, test] = &task.splits;
        assert_eq!(train.start, WARMUP + 19);
        for (before, after) in [(train, valid), (valid, test)] {
            let last_used = before.end - 1 + task.horizon;
            let first_used = after.start + 1 - task.bars;
            assert_eq!(first_used, last_used + 1);
        }
        assert_eq!(test.end - 1 + task.horizon, 799);
        let (x, y) = task.windows(Split::Valid, &[0, 7])?;
        assert_eq!((x.dims(), y.dims()), (&[2, 2580][..], &[2][..]));
        let last: Vec<f32> = x.get(1)?.narrow(0, 19 * FEATURES, FEATURES)?.to_vec1()?;
        assert_eq!(last, task.rows[(valid.start + 7) * FEATURES..(valid.start + 8) * FEATURES]);
        Ok(())
    }

    #[test]
    fn directions_are_where_the_close_went() {
        let mut days = simulate(400, 1);
        for (t, bar) in days.bars.iter_mut().enumerate() {
            bar.close = 100. * (1. + 0.001 * (t % 7) as f64);
        }
        days.bars[304].close = 120.;
        days.bars[311].close = 80.;
        days.bars[312].close = days.bars[307].close;
        let labels = directions(&days, 5, 0.43);
        assert_eq!((labels.len(), labels[299], labels[306], labels[307]), (395, 2, 0, 1));
    }

    #[test]
    fn metrics_of_known_chances_are_known() -> zoo_training::Result<()> {
        let task = open(&DataSettings { simulated_days: 900, ..DataSettings::default() })?;
        let labels = &task.labels[task.range(Split::Test)];
        let sure = |f: &dyn Fn(i64) -> i64| -> Vec<Vec<f32>> {
            let one = |y: i64| (0..3).map(|i| if i == f(y) { 1. } else { 0. }).collect();
            labels.iter().map(|y| one(*y)).collect()
        };
        let (perfect, wrong) = (sure(&|y| y), sure(&|y| (y + 1) % 3));
        let best = Metrics::from([("loss", 0.), ("accuracy", 100.), ("brier", 0.)]);
        assert_eq!(task.judge(Split::Test, &perfect), best);
        assert_eq!(task.judge(Split::Test, &wrong)[1..], Metrics::from([("accuracy", 0.), ("brier", 2.)])[..]);
        let third = vec![vec![1f32 / 3.; 3]; labels.len()];
        let of_third = task.judge(Split::Test, &third);
        assert!((of_third[0].1 - 3f64.ln()).abs() < 1e-6 && (of_third[2].1 - 2. / 3.).abs() < 1e-6);
        assert_eq!(task.advantage(Split::Test, &third, &third), None);
        let half: Vec<Vec<f32>> =
            perfect.iter().zip(&wrong).enumerate().map(|(i, (p, w))| if i % 9 == 0 { w } else { p }.clone()).collect();
        assert!(
            task.advantage(Split::Test, &half, &third) > Some(2.)
                && task.advantage(Split::Test, &third, &half) < Some(-2.)
        );
        Ok(())
    }

    #[test]
    fn what_cannot_work_is_refused_with_the_way_out() {
        let message = |source: &DataSettings| open(source).map(|_| ()).unwrap_err().to_string();
        let short = message(&DataSettings { simulated_days: 250, ..DataSettings::default() });
        assert!(short.contains("250 days, at least 276 are needed"), "{short}");
        assert!(open(&DataSettings { simulated_days: 276, ..DataSettings::default() }).is_ok());
        assert!(open(&DataSettings { simulated_days: 275, ..DataSettings::default() }).is_err());
        assert!(
            open(&DataSettings { band: 100., ..DataSettings::default() })
                .is_ok_and(|t| t.warnings()[0].contains("100 % of the"))
        );
        assert!(message(&DataSettings { horizon: 0, ..DataSettings::default() }).contains("data.horizon"));
        assert!(message(&DataSettings { valid: 0.6, test: 0.4, ..DataSettings::default() }).contains("training part"));
        let reading = zoo_market::Reading { column: "x".into(), ..Default::default() };
        assert!(message(&DataSettings { reading, ..DataSettings::default() }).contains("data.path"));
    }
}
