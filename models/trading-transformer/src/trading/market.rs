//! Symbols with their features, and the periods of training, validation and test.

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::{Path, PathBuf};

use zoo_market::{Days, autoregressive, simulate};
use zoo_training::{Error, Result, Split};

use super::account::Rules;
use crate::features::{self, WARMUP};
use crate::{Config, DataSettings, SimulatedMarket};

/// What is traded, with what is known of it bar by bar.
pub(crate) struct Symbol {
    pub(crate) name: String,
    pub(crate) days: Days,
    /// The features of the market, row by row.
    pub(crate) rows: Vec<f32>,
    /// Average true range of 14.
    pub(crate) ranges: Vec<f64>,
    /// Bars at whose close is decided, in the periods of training, validation and test. Each has a bar behind it.
    periods: [Range<usize>; 3],
}

impl Symbol {
    /// A symbol all of whose bars with enough history, but for the last, are of every period; there is at least one.
    pub(crate) fn new(name: String, days: Days, bars: usize) -> Self {
        let all = WARMUP + bars - 1..days.bars.len().saturating_sub(1);
        Self {
            name,
            rows: features::of_market(&days.bars),
            ranges: features::average_range(&days.bars),
            days,
            periods: [(); 3].map(|()| all.clone()),
        }
    }

    /// The bars at whose close is decided.
    pub(crate) fn period(&self, split: Split) -> Range<usize> {
        self.periods[split as usize].clone()
    }
}

/// Symbols that are traded under the same rules.
pub(crate) struct Market {
    pub(crate) symbols: Vec<Symbol>,
    pub(crate) rules: Rules,
    /// Exposures that can be chosen, from the shortest to the longest, with 0 in the middle.
    pub(crate) levels: Vec<f64>,
    /// Bars of an observation.
    pub(crate) bars: usize,
    pub(crate) simulated: bool,
}

impl Market {
    /// Reads the file or the folder of files that `source` names, or simulates.
    pub(crate) fn open(config: &Config, source: &DataSettings, seed: u64) -> Result<Self> {
        let path = Path::new(&source.path);
        let simulated = path.as_os_str().is_empty();
        let series = match simulated {
            true => simulations(source, seed),
            false => {
                files(path)?.into_iter().map(|file| Ok((name(&file), source.read(&file)?))).collect::<Result<_>>()?
            }
        };
        let least = WARMUP + config.bars + 1;
        if let Some((name, days)) = series.iter().find(|(_, days)| days.bars.len() < least) {
            return Err(Error::Data(format!(
                "{name}: {} days, a symbol needs at least {least} (bring more data, or leave it out)",
                days.bars.len()
            )));
        }
        let mut symbols: Vec<Symbol> =
            series.into_iter().map(|(name, days)| Symbol::new(name, days, config.bars)).collect();
        let origin = if simulated { "the simulation".to_string() } else { path.display().to_string() };
        divide(&mut symbols, source, config.bars).map_err(|why| Error::Data(format!("{origin}: {why}")))?;
        let market = Self { symbols, rules: source.rules(), levels: source.levels(), bars: config.bars, simulated };
        if market.decisions(Split::Train) == 0 {
            return Err(Error::Data(format!("{origin}: no symbol is traded often enough to learn from")));
        }
        Ok(market)
    }

    /// Decisions in a period, over all symbols.
    pub(crate) fn decisions(&self, split: Split) -> usize {
        self.symbols.iter().map(|s| s.period(split).len()).sum()
    }

    /// First and last date of a period's decisions.
    pub(crate) fn span(&self, split: Split) -> Option<[String; 2]> {
        let dates = self.symbols.iter().filter_map(|s| {
            let p = s.period(split);
            (!p.is_empty()).then(|| (s.days.dates[p.start], s.days.dates[p.end - 1]))
        });
        let span = dates.reduce(|(a, b), (c, d)| (a.min(c), b.max(d)))?;
        Some([span.0.to_string(), span.1.to_string()])
    }
}

/// What a file's symbol is called.
pub(crate) fn name(path: &Path) -> String {
    path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

/// The file, or the CSV files in a folder by name.
fn files(path: &Path) -> Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_path_buf()]);
    }
    let io = |source| Error::Io { path: path.into(), source };
    let mut files = vec![];
    for entry in std::fs::read_dir(path).map_err(io)? {
        let file = entry.map_err(io)?.path();
        if file.is_file() && file.extension().is_some_and(|e| e.eq_ignore_ascii_case("csv")) {
            files.push(file);
        }
    }
    files.sort();
    match files.is_empty() {
        true => Err(Error::Data(format!("{}: no CSV files in this folder", path.display()))),
        false => Ok(files),
    }
}

fn simulations(source: &DataSettings, seed: u64) -> Vec<(String, Days)> {
    let one = |i: usize| {
        // Far from each other, so that seeds in a row share no symbol.
        let seed = seed.wrapping_add((i as u64) << 32);
        let days = match source.simulated_market {
            SimulatedMarket::Garch => simulate(source.simulated_days, seed),
            SimulatedMarket::Autoregressive => autoregressive(source.simulated_days, source.coefficient, seed),
        };
        (format!("simulated-{}", i + 1), days)
    };
    (0..source.simulated_symbols).map(one).collect()
}

/// Divides time into periods, the same for all symbols, with as many days of all symbols' calendar between two as an
/// observation has bars.
fn divide(symbols: &mut [Symbol], source: &DataSettings, bars: usize) -> std::result::Result<(), String> {
    let &DataSettings { valid, test, walk_forward, .. } = source;
    let decided = symbols.iter().flat_map(|s| s.days.dates[s.period(Split::Train)].iter().copied());
    let dates: Vec<_> = decided.collect::<BTreeSet<_>>().into_iter().collect();
    let share = |share: f64| (dates.len() as f64 * share).round() as usize;
    let (n_valid, n_test) = (share(valid), share(test));
    let gaps = bars * [n_valid, n_test].into_iter().filter(|n| *n > 0).count();
    let later = walk_forward.saturating_mul(n_test);
    let n_train = dates.len().saturating_sub(later + n_valid + n_test + gaps);
    if walk_forward > 0 && n_test == 0 {
        return Err("data.walk_forward needs test periods (data.test)".into());
    }
    // Half a day or more of the smallest part rounds to one.
    if n_train < 2 || (valid > 0. && n_valid < 2) || (test > 0. && n_test < 2) {
        let earlier =
            if walk_forward > 0 { format!(" before the last {later} (data.walk_forward)") } else { String::new() };
        return Err(format!(
            "{} days to decide on{earlier} do not make periods of at least two days for training, validation and test, {bars} days \
             apart; the first {} are history (bring more data, or change data.valid and data.test)",
            dates.len(),
            WARMUP + bars - 1
        ));
    }
    let mut next = 0;
    let ranges = [n_train, n_valid, n_test].map(|n| {
        let range = next..next + n;
        next += if n > 0 { n + bars } else { 0 };
        range
    });
    for symbol in symbols {
        let all = symbol.period(Split::Train);
        let first = all.start;
        let own = &symbol.days.dates[all];
        symbol.periods = ranges.clone().map(|r| {
            let place = |i: usize| dates.get(i).map_or(own.len(), |date| own.partition_point(|d| d < date));
            // Where a symbol is traded seldom, the bar behind a decision must not lie in the next period.
            let next = dates.get(r.end + bars);
            let reaches = |k: &usize| next.is_none_or(|next| symbol.days.dates[first + k + 1] < *next);
            let end = (place(r.start)..place(r.end)).rev().find(reaches).map_or(place(r.start), |k| k + 1);
            first + place(r.start)..first + end
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn market(source: &DataSettings) -> Result<Market> {
        Market::open(&Config::default(), source, 1)
    }

    #[test]
    fn periods_follow_each_other_with_a_gap() -> Result<()> {
        let source = DataSettings { simulated_days: 1219 + 1, simulated_symbols: 2, ..DataSettings::default() };
        let of =
            |m: &Market, s: usize| [Split::Train, Split::Valid, Split::Test].map(|split| m.symbols[s].period(split));
        let market_of = |walk_forward| market(&DataSettings { walk_forward, ..source.clone() });
        let whole = market_of(0)?;
        // 1000 decisions, of which 40 lie in gaps.
        assert_eq!(of(&whole, 0), [219..879, 899..1049, 1069..1219]);
        assert_eq!(of(&whole, 0), of(&whole, 1));
        assert_ne!(whole.symbols[0].days.bars, whole.symbols[1].days.bars);
        let earlier = market_of(2)?;
        assert_eq!(of(&earlier, 0), [219..579, 599..749, 769..919]);
        assert_eq!(of(&market_of(1)?, 1)[2], 919..1069, "test periods adjoin");
        let message = market_of(5).err().map(|e| e.to_string()).unwrap_or_default();
        assert!(message.contains("data.walk_forward"), "{message}");
        let none = market(&DataSettings { valid: 0., test: 0., ..source })?;
        assert_eq!(of(&none, 0), [219..1219, 1219..1219, 1219..1219]);
        Ok(())
    }

    #[test]
    fn symbols_of_different_length_are_divided_by_date() -> std::result::Result<(), Box<dyn std::error::Error>> {
        let dir = tempfile::tempdir()?;
        let days = simulate(1220, 4);
        for (name, first) in [("long.csv", 0), ("short.CSV", 500)] {
            let mut text = "Date,Open,High,Low,Close,Volume\n".to_string();
            for (date, b) in days.dates.iter().zip(&days.bars).skip(first) {
                text += &format!("{date},{},{},{},{},{}\n", b.open, b.high, b.low, b.close, b.volume);
            }
            std::fs::write(dir.path().join(name), text)?;
        }
        std::fs::write(dir.path().join("notes.txt"), "no prices")?;
        let source = DataSettings { path: dir.path().display().to_string(), ..DataSettings::default() };
        let market = market(&source)?;
        assert_eq!(market.symbols.iter().map(|s| s.name.as_str()).collect::<Vec<_>>(), ["long", "short"]);
        for split in [Split::Train, Split::Valid, Split::Test] {
            let [long, short] = [0, 1].map(|i| market.symbols[i].period(split));
            assert_eq!(long.end, short.end + 500, "{split:?}");
            assert_eq!(long.start.max(719), short.start + 500, "{split:?}");
        }
        std::fs::write(dir.path().join("new.csv"), "Date,Open,High,Low,Close,Volume\n2000-01-03,1,1,1,1,1\n")?;
        let message = self::market(&source).err().map(|e| e.to_string()).unwrap_or_default();
        assert!(message.starts_with("new: 1 days, a symbol needs at least 221"), "{message}");
        let empty = tempfile::tempdir()?;
        let source = DataSettings { path: empty.path().display().to_string(), ..DataSettings::default() };
        let message = self::market(&source).err().map(|e| e.to_string()).unwrap_or_default();
        assert!(message.contains("no CSV files"), "{message}");
        Ok(())
    }
}
