//! A market's data, the experience that a policy is trained on, and how good it is.

use std::collections::BTreeMap;

use candle_core::{Device, Result, Tensor};
use serde_json::{Value, json};
use zoo_layers::Mode;
use zoo_layers::random::{Purpose, Stream, layer_id};
use zoo_training::config::ConfigOf;
use zoo_training::ppo::{self, ActorCritic, Collector};
use zoo_training::{Error, Evaluation, Experience, Metrics, Name, Picture, Split, Table};

use super::account::Rules;
use super::backtest::{Course, Record, replay, run};
use super::environment::{Trading, Walk};
use super::market::Market;
use super::sharpe::Sharpe;
use crate::data::{Batch, Data, TradingTask};
use crate::directions::UNTIL;
use crate::statistics::standard_errors;
use crate::{Config, DataSettings, TradingTransformer};

/// Shifts of the positions in time, at most, that timing is compared with.
const SHIFTS: usize = 100;
/// Days over which daily returns may depend on each other.
const LAGS: usize = 10;

/// A market to trade in.
pub(crate) struct Policy {
    pub(super) market: Market,
    seed: u64,
    episode: usize,
    /// The last day that the weights were fitted to, if they are loaded ones.
    seen: Option<String>,
    dropout: f64,
    device: Device,
}

impl ActorCritic for TradingTransformer {
    fn act(&self, observation: &Tensor, mode: Mode) -> Result<(ppo::Policy, Tensor)> {
        let (logits, value) = self.actor_critic(observation, mode)?;
        Ok((ppo::Policy::Choices(logits), value))
    }

    fn observed(&self, observation: &Tensor) -> Result<()> {
        self.count(observation)
    }
}

/// The chance that the policy gives each exposure, and the likeliest of them.
pub(super) fn choose(
    model: &TradingTransformer,
    market: &Market,
    walks: &[&Walk],
    device: &Device,
) -> Result<Vec<(Vec<f32>, f64)>> {
    let mut views = vec![];
    walks.iter().for_each(|w| w.view(&mut views));
    let chances = model.policy(&market.observe(&views)?.to_device(device)?)?.to_device(&Device::Cpu)?;
    let likeliest = |p: &[f32]| (0..p.len()).max_by(|a, b| p[*a].total_cmp(&p[*b])).unwrap_or_default();
    let chosen = |p: Vec<f32>| {
        let best = likeliest(&p);
        (p, market.levels[best])
    };
    Ok(chances.to_vec2::<f32>()?.into_iter().map(chosen).collect())
}

impl Policy {
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
        if source.levels().len() != config.actions {
            return Err(Error::Usage(format!(
                "data.sizes make {} exposures to choose from, and the model has {} (model.actions)",
                source.levels().len(),
                config.actions
            )));
        }
        Ok(Self {
            market: Market::open(config, source, seed)?,
            seed,
            episode: source.episode,
            seen: fitted.and_then(|f| f[UNTIL].as_str()).map(String::from),
            dropout: config.dropout,
            device: device.clone(),
        })
    }

    pub(crate) fn experience(
        &self,
        config: &ConfigOf<TradingTask>,
    ) -> zoo_training::Result<Box<dyn Experience<TradingTask> + '_>> {
        let settings = &config.task.ppo;
        let trading = Trading::new(&self.market, settings.environments, self.episode, self.seed);
        Ok(Box::new(Collector::new(trading, settings, self.seed, &self.device)?))
    }

    fn courses(&self, model: &TradingTransformer, split: Split) -> Result<Vec<Course>> {
        run(&self.market, self.market.rules, split, |walks| {
            let chosen = choose(model, &self.market, walks, &self.device)?;
            Ok(chosen.into_iter().map(|(_, level)| level).collect())
        })
    }

    /// The record of the exposures that the policy likes best.
    pub(super) fn record(&self, model: &TradingTransformer, split: Split) -> Result<Record> {
        Ok(Record::of(&self.market, split, &self.courses(model, split)?))
    }

    /// What one should conclude, in words.
    fn conclude(&self, policy: &Record, hold: &Record, shifted: &[Record]) -> Vec<String> {
        let mut remarks = vec![];
        if self.market.simulated {
            remarks.push("This is a simulated market: the figures say nothing about any other.".to_string());
        }
        if policy.metric("trades") == 0. {
            remarks.push("The policy never trades: it stays out of the market.".into());
            return remarks;
        }
        let daily = |r: &Record| r.returns.values().copied().collect::<Vec<f64>>();
        let (own, held) = (daily(policy), daily(hold));
        let told = |errors: Option<f64>| match errors {
            Some(e) => format!("{e:+.1} standard errors of the daily difference"),
            None => "too few different days to tell by".into(),
        };
        let gains: Vec<f64> = own.iter().zip(&held).map(|(a, b)| a - b).collect();
        let errors = standard_errors(&gains, LAGS);
        let verdict = |errors: Option<f64>, better: &'static str, worse: &'static str, same: &'static str| match errors
        {
            Some(e) if e > 2. => better,
            Some(e) if e < -2. => worse,
            _ => same,
        };
        remarks.push(format!(
            "The policy {} buying and holding: Sharpe ratio {:.2} against {:.2}, return {:.1} % against {:.1} % ({}).",
            verdict(errors, "beats", "is worse than", "does not clearly beat"),
            policy.metric("sharpe"),
            hold.metric("sharpe"),
            policy.metric("return"),
            hold.metric("return"),
            told(errors)
        ));
        let errors = standard_errors(&own, LAGS);
        remarks.push(format!(
            "It {} staying out of the market ({}).",
            verdict(errors, "beats", "is worse than", "does not clearly beat"),
            told(errors)
        ));
        let better = shifted.iter().filter(|r| r.metric("sharpe") >= policy.metric("sharpe")).count();
        let spread = quantiles(shifted.iter().map(|r| r.metric("sharpe")).collect());
        // What is seen is one arrangement among those compared.
        remarks.push(format!(
            "Its own positions, shifted in time by chance, have Sharpe ratios from {:.2} to {:.2} (90 % of {} shifts); {better} are \
             as good: its timing {}.",
            spread[0],
            spread[1],
            shifted.len(),
            if (better + 1) * 20 <= shifted.len() + 1 { "is better than chance" } else { "is no better than chance" }
        ));
        remarks
    }

    fn trades(&self, courses: &[Course]) -> Table {
        let header =
            ["symbol", "side", "shares", "entry_date", "entry", "exit_date", "exit", "bars", "profit", "reason"];
        let mut rows = vec![];
        for (symbol, course) in self.market.symbols.iter().zip(courses) {
            for t in &course.trades {
                let date = |bar: usize| symbol.days.dates[bar].to_string();
                rows.push(vec![
                    symbol.name.clone(),
                    if t.shares > 0. { "long" } else { "short" }.into(),
                    format!("{:.4}", t.shares.abs()),
                    date(t.opened),
                    format!("{:.6}", t.entry),
                    date(t.closed),
                    format!("{:.6}", t.exit),
                    (t.closed - t.opened).to_string(),
                    format!("{:.2}", t.profit),
                    t.reason.name().into(),
                ]);
            }
        }
        Table { name: "trades".into(), header: header.map(String::from).to_vec(), rows }
    }
}

impl Data for Policy {
    fn describe_data(&self) -> String {
        let names: Vec<&str> = self.market.symbols.iter().map(|s| s.name.as_str()).collect();
        let names = match names.as_slice() {
            [first, .., last] if names.len() > 3 => format!("{} symbols, {first} to {last}", names.len()),
            names => names.join(", "),
        };
        let period = |split: Split| match self.market.span(split) {
            Some([first, last]) => {
                format!("{} {} decisions, {first} to {last}", split.name(), self.market.decisions(split))
            }
            None => format!("{} none", split.name()),
        };
        let periods = [Split::Train, Split::Valid, Split::Test].map(period).join("; ");
        format!("{names}: {periods}; {} bars between the periods", self.market.bars)
    }

    fn fingerprint(&self) -> String {
        let mut bytes = vec![];
        for symbol in &self.market.symbols {
            let of = |b: &crate::Bar| [b.open, b.high, b.low, b.close, b.volume];
            bytes.extend(symbol.days.bars.iter().flat_map(of).flat_map(f64::to_le_bytes));
            let periods = [Split::Train, Split::Valid, Split::Test].map(|s| symbol.period(s));
            bytes.extend(periods.iter().flat_map(|p| [p.start, p.end]).flat_map(|n| (n as u64).to_le_bytes()));
        }
        zoo_checkpoint::sha256_of(&bytes)
    }

    fn fitted(&self) -> Value {
        // The bar after the last decision was seen too.
        let last = |split: Split| {
            let ends = self.market.symbols.iter().map(move |s| (s, s.period(split)));
            ends.filter(|(_, p)| !p.is_empty()).map(|(s, p)| s.days.dates[p.end].to_string()).max()
        };
        match [Split::Train, Split::Valid].into_iter().filter_map(last).max() {
            // Simulated days share no more than dates with real ones.
            Some(last) if !self.market.simulated => json!({ UNTIL: last }),
            _ => json!({}),
        }
    }

    fn warnings(&self) -> Vec<String> {
        let of = |symbol: &super::market::Symbol| {
            let test = symbol.period(Split::Test);
            let first = (!test.is_empty()).then_some(test.start);
            let name = |warning: String| match self.market.symbols.len() {
                1 => warning,
                _ => format!("{}: {warning}", symbol.name),
            };
            symbol.days.caveats(first, self.seen.as_deref()).into_iter().map(name).collect::<Vec<_>>()
        };
        let mut warnings: Vec<String> = self.market.symbols.iter().flat_map(of).collect();
        if self.dropout > 0. {
            warnings.push(format!(
                "model.dropout = {}: the policy that is trained is not the one that acts (0 is usual)",
                self.dropout
            ));
        }
        warnings
    }

    fn samples(&self, split: Split) -> usize {
        self.market.decisions(split)
    }

    /// Observations without position; what is learned from comes from acting.
    fn batch(&self, split: Split, indices: &[usize]) -> Result<Batch> {
        let mut views = vec![];
        for place in indices {
            let mut left = *place;
            for (i, symbol) in self.market.symbols.iter().enumerate() {
                let period = symbol.period(split);
                if left < period.len() {
                    Walk::new(self.market.rules, self.market.bars, i, period.start + left).view(&mut views);
                    break;
                }
                left -= period.len();
            }
        }
        Ok(Batch::Seen(self.market.observe(&views)?.to_device(&self.device)?))
    }

    fn forward(&self, model: &TradingTransformer, batch: &Batch, mode: Mode) -> Result<Tensor> {
        Ok(model.act(batch.observation(), mode)?.0.output().clone())
    }

    /// The loss is the Sharpe ratio turned round.
    fn validate(&self, model: &TradingTransformer, split: Split) -> Result<Metrics> {
        let record = self.record(model, split)?;
        Ok([("loss".into(), 0. - record.metric("sharpe"))].into_iter().chain(record.metrics).collect())
    }

    fn evaluate(&self, model: &TradingTransformer, split: Split) -> Result<Evaluation> {
        let market = &self.market;
        let of = |courses: &[Course]| Record::of(market, split, courses);
        let courses = self.courses(model, split)?;
        let policy = of(&courses);
        let endless = Rules { stop: 1e9, target: 1e9, ..market.rules };
        let hold = of(&replay(market, endless, split, |_, _| 1.)?);
        let flat = of(&replay(market, endless, split, |_, _| 0.)?);
        let longest = courses.iter().map(|c| c.decided.len()).max().unwrap_or_default();
        let mut shifts: Vec<usize> = (1..longest).collect();
        Stream::new(self.seed, Purpose::Sampling, layer_id("shift"), 0).shuffle(&mut shifts);
        shifts.truncate(SHIFTS);
        let mut shifted = vec![];
        for shift in shifts {
            let later = |i: usize, k: usize| courses[i].decided[(k + shift) % courses[i].decided.len()];
            shifted.push(of(&replay(market, market.rules, split, later)?));
        }
        let mean = |(i, (name, _)): (usize, &(Name, f64))| {
            (name.clone(), shifted.iter().map(|r| r.metrics[i].1).sum::<f64>() / shifted.len().max(1) as f64)
        };
        let random: Metrics = policy.metrics.iter().enumerate().map(mean).collect();
        let remarks = self.conclude(&policy, &hold, &shifted);
        let (pictures, equity) = curves(&policy, &hold);
        let tables = vec![months(&policy), falls(&policy), self.trades(&courses), equity];
        Ok(Evaluation {
            samples: market.decisions(split),
            metrics: policy.metrics,
            baselines: vec![
                ("buy_and_hold".into(), hold.metrics),
                ("always_flat".into(), flat.metrics),
                ("random_same_turnover".into(), random),
            ],
            remarks,
            tables,
            pictures,
        })
    }

    fn policy(&self) -> Option<&Policy> {
        Some(self)
    }
}

/// The 5 % and 95 % quantiles.
fn quantiles(mut values: Vec<f64>) -> [f64; 2] {
    values.sort_by(f64::total_cmp);
    [0.05, 0.95].map(|q| values.get((q * (values.len() - 1) as f64).round() as usize).copied().unwrap_or(f64::NAN))
}

/// Days over which the Sharpe ratio of a moment is taken: half a year.
const ROLLING: usize = 126;
/// Falls from a peak that are told.
const FALLS: usize = 5;

/// Equity after each day, as a multiple of the start.
fn worth(record: &Record) -> Vec<f64> {
    let grow = |worth: &mut f64, r: &f64| {
        *worth *= 1. + r;
        Some(*worth)
    };
    record.returns.values().scan(1., grow).collect()
}

/// How far each value lies below the largest before it, as a share.
fn below_peak(worth: &[f64]) -> Vec<f64> {
    let fall = |peak: &mut f64, w: &f64| {
        *peak = peak.max(*w);
        Some(1. - w / *peak)
    };
    worth.iter().scan(1., fall).collect()
}

/// Returns of the months, and of the years in the last column, in percent.
fn months(policy: &Record) -> Table {
    let mut years: BTreeMap<i16, [Option<f64>; 13]> = BTreeMap::new();
    for (date, r) in &policy.returns {
        let of = years.entry(date.year()).or_default();
        for place in [date.month() as usize - 1, 12] {
            of[place] = Some((1. + of[place].unwrap_or(0.)) * (1. + r) - 1.);
        }
    }
    let text = |r: &Option<f64>| r.map_or(String::new(), |r| format!("{:.2}", 100. * r));
    let row =
        |(year, of): (&i16, &[Option<f64>; 13])| std::iter::once(year.to_string()).chain(of.iter().map(text)).collect();
    let header = "year Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec all";
    Table {
        name: "months".into(),
        header: header.split(' ').map(String::from).collect(),
        rows: years.iter().map(row).collect(),
    }
}

/// The deepest falls from a peak: when they began, were deepest and were made good, if they were.
fn falls(policy: &Record) -> Table {
    let dates: Vec<String> = policy.returns.keys().map(ToString::to_string).collect();
    let below = below_peak(&worth(policy));
    let (mut all, mut first) = (vec![], None);
    for (i, share) in below.iter().enumerate() {
        match first {
            None if *share > 0. => first = Some(i),
            Some(begun) if *share == 0. => {
                all.push((begun, Some(i)));
                first = None;
            }
            _ => {}
        }
    }
    all.extend(first.map(|begun| (begun, None)));
    let deepest = |&(begun, end): &(usize, Option<usize>)| {
        let days = begun..end.unwrap_or(below.len());
        days.max_by(|a, b| below[*a].total_cmp(&below[*b])).unwrap_or(begun)
    };
    all.sort_by(|a, b| below[deepest(b)].total_cmp(&below[deepest(a)]));
    let row = |fall: &(usize, Option<usize>)| {
        let (at, end) = (deepest(fall), fall.1.map_or(String::new(), |end| dates[end].clone()));
        let days = fall.1.unwrap_or(below.len()) - fall.0;
        vec![format!("{:.2}", 100. * below[at]), dates[fall.0].clone(), dates[at].clone(), end, days.to_string()]
    };
    let header = ["fall_percent", "first_day", "deepest", "made_good", "days"];
    Table {
        name: "drawdowns".into(),
        header: header.map(String::from).to_vec(),
        rows: all.iter().take(FALLS).map(row).collect(),
    }
}

/// Equity of the policy and of buying and holding, as multiples of the start; their falls from a peak and Sharpe ratios over time.
fn curves(policy: &Record, hold: &Record) -> (Vec<Picture>, Table) {
    let [own, held] = [policy, hold].map(worth);
    let labels: Vec<String> = policy.returns.keys().map(ToString::to_string).collect();
    let rows = labels.iter().zip(own.iter().zip(&held));
    let rows = rows.map(|(date, (a, b))| vec![date.clone(), format!("{a:.6}"), format!("{b:.6}")]).collect();
    let header = ["date", "policy", "buy_and_hold"].map(String::from).to_vec();
    let line = |name: &'static str, first: usize, values: &[f64]| {
        (name.into(), values.iter().enumerate().map(|(i, v)| ((first + i) as f64, *v)).collect())
    };
    let picture = |title: &str, first: usize, [own, held]: [&[f64]; 2]| Picture {
        title: title.into(),
        labels: labels.clone(),
        lines: vec![line("policy", first, own), line("buy and hold", first, held)],
        ..Picture::default()
    };
    let percent = |worth: &[f64]| below_peak(worth).into_iter().map(|share| -100. * share).collect::<Vec<_>>();
    let sharpe = |record: &Record| -> Vec<f64> {
        let daily: Vec<f64> = record.returns.values().copied().collect();
        daily.windows(ROLLING).map(|days| Sharpe::of(days).map_or(0., Sharpe::yearly)).collect()
    };
    let mut pictures = vec![
        picture("equity as a multiple of the start", 0, [&own, &held]),
        picture("below the highest equity so far, %", 0, [&percent(&own), &percent(&held)]),
    ];
    if labels.len() > ROLLING {
        let title = format!("Sharpe ratio a year over the last {ROLLING} days");
        pictures.push(picture(&title, ROLLING - 1, [&sharpe(policy), &sharpe(hold)]));
    }
    (pictures, Table { name: "equity".into(), header, rows })
}
