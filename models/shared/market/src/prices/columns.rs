//! Which column is which, in price files as they are found.

use std::collections::HashSet;

use super::dates;
use super::names::{self, Field, Reading, words};
use super::numbers;
use crate::Reading as How;

/// What the fields of a column are, as far as a sample of them tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Date,
    Time,
    Number,
    /// 1, 2, 3, …
    Count,
    Text,
    /// Nothing is in it.
    Empty,
}

impl Kind {
    /// What most of these fields are; dates in the form that is asked for, if one is.
    pub(super) fn of<'a>(fields: impl Iterator<Item = &'a str>, form: Option<&dates::Form>) -> Self {
        let fields: Vec<&str> = fields.filter(|f| !numbers::is_missing(f)).collect();
        let most = |is: &dyn Fn(&str) -> bool| 10 * fields.iter().filter(|f| is(f)).count() >= 9 * fields.len();
        let counts = || {
            let numbers: Option<Vec<i64>> = fields.iter().map(|f| f.parse().ok()).collect();
            numbers.is_some_and(|n| n.len() > 2 && n.windows(2).all(|w| w[1].checked_sub(w[0]) == Some(1)))
        };
        match () {
            () if fields.is_empty() => Self::Empty,
            () if most(&|f| f.contains(':') && dates::time(f).is_some()) => Self::Time,
            () if most(&|f| dates::looks_like(f, form)) && (form.is_some() || dated(&fields)) => Self::Date,
            () if counts() => Self::Count,
            () if most(&numbers::is_number) => Self::Number,
            () => Self::Text,
        }
    }
}

/// Whether these fields, all of which could be dates, are: large numbers in no order may be volumes.
fn dated(fields: &[&str]) -> bool {
    if fields.iter().any(|f| f.bytes().any(|b| !b.is_ascii_digit() && b != b'.')) {
        return true;
    }
    let numbers: Vec<f64> = fields.iter().filter_map(|f| f.parse().ok()).collect();
    // Eight digits are a day; microseconds may follow milliseconds.
    let same = |w: &[f64]| w[0].log10().floor() == w[1].log10().floor();
    let ordered = |up: bool| numbers.windows(2).all(|w| !same(w) || if up { w[0] <= w[1] } else { w[0] >= w[1] });
    ordered(true) || ordered(false)
}

/// A column's name and what it says.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Header {
    pub(super) text: String,
    pub(super) readings: Vec<Reading>,
}

impl Header {
    pub(super) fn of(text: &str, all: &HashSet<&str>) -> Self {
        // o, h, l and c are names together, y is one beside ds.
        let there = |name: &str| all.iter().any(|h| h.eq_ignore_ascii_case(name));
        let letters = text.len() == 1 && (there("ds") || ["o", "h", "l", "c"].into_iter().all(there));
        // pandas numbers a name that is there already: Close, Close.1
        let first = text
            .rsplit_once('.')
            .filter(|(name, n)| n.parse::<u8>().is_ok() && all.contains(name))
            .map(|(name, _)| name);
        Self { text: text.into(), readings: names::read(first.unwrap_or(text), letters) }
    }

    fn reading(&self, field: Field) -> Option<&Reading> {
        self.readings.iter().find(|r| r.field == field)
    }

    fn is(&self, field: Field) -> bool {
        self.reading(field).is_some()
    }
}

/// Where the columns are.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Columns {
    pub(super) date: usize,
    pub(super) time: Option<usize>,
    pub(super) close: usize,
    pub(super) open: Option<usize>,
    pub(super) high: Option<usize>,
    pub(super) low: Option<usize>,
    pub(super) volume: Option<usize>,
    pub(super) adjusted: Option<usize>,
    /// What was decided between columns that could have been meant, in words.
    pub(super) doubts: Vec<String>,
}

/// As much of a file's text as a message has.
pub(super) fn quoted(text: &str) -> String {
    match text.char_indices().nth(60) {
        None => text.into(),
        Some((end, _)) => format!("{}…", &text[..end]),
    }
}

/// The names of several things, a few of them.
pub(super) fn listed<'a>(names: impl Iterator<Item = &'a str>) -> String {
    const MOST: usize = 8;
    let mut names: Vec<String> = names.take(MOST + 1).map(quoted).collect();
    if names.len() > MOST {
        names[MOST] = "…".into();
    }
    names.join(", ")
}

/// Columns that cannot be told.
#[derive(Debug, PartialEq)]
pub(super) struct Unclear {
    pub(super) message: String,
    /// The field of [`crate::Reading`] that helps, and how.
    pub(super) advice: Option<(&'static str, &'static str)>,
    /// Whether a date or a close is not there at all, so that these may be no headers.
    pub(super) absent: bool,
}

impl Unclear {
    pub(super) fn new(message: String, advice: &'static str, does: &'static str) -> Self {
        Self { message, advice: Some((advice, does)), absent: false }
    }
}

/// A table's columns: their names, and what a sample of their fields is.
pub(super) struct Table<'a> {
    pub(super) headers: &'a [Header],
    pub(super) kinds: &'a [Kind],
    pub(super) how: &'a How,
}

impl Table<'_> {
    fn shown(&self) -> String {
        quoted(&self.headers.iter().map(|h| h.text.as_str()).collect::<Vec<_>>().join(", "))
    }

    fn kind(&self, i: usize) -> Kind {
        self.kinds.get(i).copied().unwrap_or(Kind::Empty)
    }

    /// The words around a column's name of this field.
    fn ticker(&self, i: usize, field: Field) -> &[String] {
        self.headers[i].reading(field).map_or(&[], |r| &r.ticker)
    }

    fn tier(&self, i: usize, field: Field) -> u8 {
        self.headers[i].reading(field).map_or(u8::MAX, |r| r.tier)
    }

    fn candidates(&self, field: Field) -> Vec<usize> {
        (0..self.headers.len()).filter(|&i| self.headers[i].is(field) && !self.is_adjusted(i, field)).collect()
    }

    /// Whether a column is one of opens, highs, … that are adjusted as the closes are.
    fn is_adjusted(&self, i: usize, field: Field) -> bool {
        self.ticker(i, field).iter().any(|w| matches!(w.as_str(), "adj" | "adjusted"))
    }

    fn adjusted_one(&self, field: Field) -> Option<usize> {
        (0..self.headers.len()).find(|&i| self.headers[i].is(field) && self.is_adjusted(i, field))
    }

    /// The column that a person names.
    fn outright(&self, name: &str, advice: &'static str) -> Result<usize, Unclear> {
        let found = self.headers.iter().position(|h| h.text == name);
        let found = found.or_else(|| self.headers.iter().position(|h| h.text.eq_ignore_ascii_case(name)));
        let number = name.parse::<usize>().ok().filter(|n| (1..=self.headers.len()).contains(n)).map(|n| n - 1);
        found.or(number).ok_or_else(|| Unclear {
            absent: true,
            ..Unclear::new(format!("no column {name}; it has {}", self.shown()), advice, "names it")
        })
    }

    /// The columns of the likeliest names among these: without a ticker before those with one.
    fn likeliest(&self, found: &[usize], field: Field) -> Vec<usize> {
        let bare: Vec<usize> = found.iter().copied().filter(|&i| self.ticker(i, field).is_empty()).collect();
        let pool = if bare.is_empty() { found.to_vec() } else { bare };
        let best = pool.iter().map(|&i| self.tier(i, field)).min();
        pool.into_iter().filter(|&i| Some(self.tier(i, field)) == best).collect()
    }

    fn one(&self, found: &[usize], field: Field, what: &str, advice: &'static str) -> Result<usize, Unclear> {
        match self.likeliest(found, field)[..] {
            [] => Err(Unclear {
                absent: true,
                ..Unclear::new(format!("no column {what}; it has {}", self.shown()), advice, "names it")
            }),
            [at] => Ok(at),
            ref several => {
                let names = listed(several.iter().map(|&i| self.headers[i].text.as_str()));
                let tickers = several.iter().all(|&i| !self.ticker(i, field).is_empty());
                let message = format!("several columns could be the {what}: {names}");
                Err(match tickers && self.how.symbol.is_empty() && field == Field::Close {
                    true => Unclear::new(message, "symbol", "chooses one by its ticker"),
                    false => Unclear::new(message, advice, "names it"),
                })
            }
        }
    }

    fn date(&self) -> Result<usize, Unclear> {
        if !self.how.date_column.is_empty() {
            return self.outright(&self.how.date_column, "date_column");
        }
        let named = self.candidates(Field::Date);
        let dated: Vec<usize> = named.iter().copied().filter(|&i| self.kind(i) == Kind::Date).collect();
        // The rows of R and pandas have dates for names, in a column that has none.
        let all =
            || (0..self.headers.len()).filter(|&i| self.kind(i) == Kind::Date && self.headers[i].readings.is_empty());
        match (named.is_empty(), dated.is_empty(), all().next()) {
            (true, _, Some(first)) if all().count() == 1 || first == 0 => Ok(first),
            (_, true, _) => self.one(&named, Field::Date, "date", "date_column"),
            _ => self.one(&dated, Field::Date, "date", "date_column"),
        }
    }

    /// The close, and whether a person named it.
    fn close(&self, date: usize, doubts: &mut Vec<String>) -> Result<(usize, bool), Unclear> {
        if !self.how.column.is_empty() {
            return Ok((self.outright(&self.how.column, "column")?, true));
        }
        let wanted = words(&self.how.symbol);
        let of_symbol = |found: Vec<usize>, field| match wanted.is_empty() {
            true => found,
            false => {
                let its: Vec<usize> = found.iter().copied().filter(|&i| self.ticker(i, field) == wanted).collect();
                if its.is_empty() { found } else { its }
            }
        };
        let close = of_symbol(self.candidates(Field::Close), Field::Close);
        if !close.is_empty() {
            let at = self.one(&close, Field::Close, "close", "column")?;
            // A name among words that no other column has, or one of several things, may be that of another quantity.
            let (ticker, others) = (self.ticker(at, Field::Close), [Field::Open, Field::High, Field::Low]);
            let shared = |field: &Field| self.candidates(*field).iter().any(|&i| self.ticker(i, *field) == ticker);
            let unknown = |i: usize| i != date && self.kind(i) == Kind::Number && self.headers[i].readings.is_empty();
            let vague = self.tier(at, Field::Close) > 0 && (0..self.headers.len()).any(unknown);
            let plain = self.ticker(at, Field::Close).is_empty() && !vague || !wanted.is_empty() && wanted == ticker;
            if !plain && !others.iter().any(shared) {
                doubts.push(format!("column {} is taken for the close", self.headers[at].text));
            }
            return Ok((at, false));
        }
        // A file may have adjusted closes alone.
        let adjusted = of_symbol(self.candidates(Field::Adjusted), Field::Adjusted);
        if !adjusted.is_empty() {
            return Ok((self.one(&adjusted, Field::Adjusted, "close", "column")?, false));
        }
        // Or columns that are called by what they are prices of.
        let nameless = |i: &usize| *i != date && self.kind(*i) == Kind::Number && self.headers[*i].readings.is_empty();
        let numbers: Vec<usize> = (0..self.headers.len()).filter(nameless).collect();
        let prices = (0..self.headers.len()).all(|i| {
            let kind = self.kind(i);
            i == date || matches!(kind, Kind::Number | Kind::Count | Kind::Empty) && self.headers[i].readings.is_empty()
        });
        let names = listed(numbers.iter().map(|&i| self.headers[i].text.as_str()));
        let its = |i: &&usize| !wanted.is_empty() && words(&self.headers[**i].text) == wanted;
        match numbers.iter().find(its) {
            Some(&at) => Ok((at, false)),
            None if prices && numbers.len() == 1 => {
                doubts.push(format!(
                    "column {} is taken for the close, as the only one of numbers",
                    self.headers[numbers[0]].text
                ));
                Ok((numbers[0], false))
            }
            None if prices && numbers.len() > 1 => Err(Unclear {
                absent: true,
                ..Unclear::new(
                    format!("no column is called a close: each of {names} could be a series of its own"),
                    "symbol",
                    "chooses one",
                )
            }),
            None => self.one(&[], Field::Close, "close", "column").map(|at| (at, false)),
        }
    }

    /// The column of a field that belongs to the close.
    fn beside(&self, field: Field, close: usize, of: Field, doubts: &mut Vec<String>) -> Option<usize> {
        let ticker = self.ticker(close, of);
        let all: Vec<usize> = self.candidates(field).into_iter().filter(|&i| i != close).collect();
        let its: Vec<usize> = all.iter().copied().filter(|&i| self.ticker(i, field) == ticker).collect();
        let name = |i: &usize| self.headers[*i].text.as_str();
        let what = format!("{field:?}").to_lowercase();
        let its = match &all[..] {
            _ if !its.is_empty() => self.likeliest(&its, field),
            // 시가(오픈) beside 종가: words of another kind.
            [only] if ticker.is_empty() || self.ticker(*only, field).is_empty() => {
                doubts.push(format!("column {} is taken for the {what} beside {}", name(only), name(&close)));
                vec![*only]
            }
            several if field == Field::Volume && ticker.is_empty() => self.likeliest(several, field),
            _ => vec![],
        };
        match its[..] {
            [] => None,
            [at] => Some(at),
            [first, ..] => {
                let names = listed(its.iter().map(name));
                let key = if field == Field::Close { "column".into() } else { format!("{what}_column") };
                doubts.push(format!("the {what} is {}, of {names} ({key} names it)", name(&first)));
                Some(first)
            }
        }
    }

    /// Finds the columns by their names, by the names that a person gives, and where those do not tell, by what is in them.
    ///
    /// # Errors
    /// One line: what is missing, or could be several columns.
    pub(super) fn columns(&self) -> Result<Columns, Unclear> {
        let mut doubts = vec![];
        let date = self.date()?;
        let (close, named) = self.close(date, &mut doubts)?;
        let is = |field: Field| self.headers[close].is(field);
        let of = if is(Field::Adjusted) { Field::Adjusted } else { Field::Close };
        let how = self.how;
        let mut pick = |field: Field, name: &str, advice| match name {
            "" => Ok(self.beside(field, close, of, &mut doubts)),
            name => self.outright(name, advice).map(Some),
        };
        let open = pick(Field::Open, &how.open_column, "open_column")?;
        let high = pick(Field::High, &how.high_column, "high_column")?;
        let low = pick(Field::Low, &how.low_column, "low_column")?;
        let volume = pick(Field::Volume, &how.volume_column, "volume_column")?;
        let adjusted = pick(Field::Adjusted, &how.adjusted_column, "adjusted_column")?;
        let raw = if of == Field::Adjusted { pick(Field::Close, "", "column")? } else { None };
        let time = self
            .candidates(Field::Time)
            .into_iter()
            .find(|&i| i != date && matches!(self.kind(i), Kind::Time | Kind::Number));
        let all = Columns { date, time, close, open, high, low, volume, adjusted, doubts };
        Ok(match (of, raw) {
            // Adjusted closes do not go with raw opens: the raw close, if there is one, says how to adjust those.
            (Field::Adjusted, Some(raw)) => Columns { close: raw, adjusted: Some(close), ..all },
            (Field::Adjusted, None) => {
                let named = |at: Option<usize>, name: &str, field: Field| match name {
                    "" => self.adjusted_one(field),
                    _ => at,
                };
                Columns {
                    open: named(open, &how.open_column, Field::Open),
                    high: named(high, &how.high_column, Field::High),
                    low: named(low, &how.low_column, Field::Low),
                    adjusted: Some(close),
                    ..all
                }
            }
            _ if is(Field::Close) && !named || !how.adjusted_column.is_empty() => all,
            _ => Columns { adjusted: None, ..all },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(headers: &str, how: &How) -> Result<Columns, Unclear> {
        let all: HashSet<&str> = headers.split('|').collect();
        let headers: Vec<Header> = headers.split('|').map(|h| Header::of(h, &all)).collect();
        Table { headers: &headers, kinds: &[], how }.columns()
    }

    fn by_names(headers: &str) -> Result<Columns, Unclear> {
        find(headers, &How::default())
    }

    #[test]
    fn vendors_names_are_understood() {
        let all = |c: Columns| [Some(c.date), c.open, c.high, c.low, Some(c.close), c.adjusted, c.volume];
        // Yahoo, its R and Python clients, Nasdaq, Alpha Vantage, Quandl, and names in other languages.
        for headers in [
            "Date|Open|High|Low|Close|Adj Close|Volume",
            "\u{feff}DATE|OPEN|HIGH|LOW|CLOSE|ADJ_CLOSE|VOLUME",
            "timestamp|open|high|low|close|adjusted_close|volume",
            "Date|AAPL.Open|AAPL.High|AAPL.Low|AAPL.Close|AAPL.Adjusted|AAPL.Volume",
            "Date|Open_AAPL|High_AAPL|Low_AAPL|Close_AAPL|AdjClose_AAPL|Volume_AAPL",
            "date|1. open|2. high|3. low|4. close|5. adjusted close|6. volume|7. dividend amount|8. split coefficient",
            "Date|BRK-B Open|BRK-B High|BRK-B Low|BRK-B Close|BRK-B Adj Close|BRK-B Volume",
            "datadate|prcod|prchd|prcld|prccd|adj close|cshtrd",
        ] {
            assert_eq!(by_names(headers).map(all), Ok([0, 1, 2, 3, 4, 5, 6].map(Some)), "{headers}");
        }
        let five = |c: Columns| [Some(c.date), c.open, c.high, c.low, Some(c.close), c.volume];
        for headers in [
            "Date|Open|High|Low|Last|Volume|Change %",
            "Date|Open|High|Low|Close|Volume BTC",
            "Datum|Erster|Hoch|Tief|Schlusskurs|Stuecke|Volumen",
            "Datum|Eröffnung|Tageshoch|Tagestief|Schluss|Volumen",
            "date|ouv|haut|bas|clot|vol|devise",
            "Fecha|Apertura|Máximo|Mínimo|Último|Vol.|% var.",
            "Data|Abertura|Máxima|Mínima|Último|Vol.|Var%",
            "Data|Otwarcie|Najwyższy|Najniższy|Zamknięcie|Wolumen",
            "Дата|Откр.|Макс.|Мин.|Цена|Объём|Изм. %",
            "Tarih|Açılış|Yüksek|Düşük|Şimdi|Hac.|Fark %",
            "日付け|始値|高値|安値|終値|出来高|変化率 %",
            "날짜|시가(오픈)|고가|저가|종가|거래량|변동 %",
            "日期|开盘|最高|最低|收盘|成交量|成交额",
            "<DATE>|<OPEN>|<HIGH>|<LOW>|<CLOSE>|<VOL>|<SPREAD>",
            "t|o|h|l|c|v|vw|n",
            "open_time|open|high|low|close|volume|close_time|quote_volume|count|taker_buy_volume|taker_buy_quote_volume|ignore",
            "Trade Date|Opening price|High price|Low price|Closing price|Total volume|Turnover|Open Interest",
            "Date|PX_OPEN|PX_HIGH|PX_LOW|PX_LAST|PX_VOLUME",
        ] {
            assert_eq!(by_names(headers).map(five), Ok([0, 1, 2, 3, 4, 5].map(Some)), "{headers}");
        }
        let close = |headers: &str| by_names(headers).map(|c| (c.date, c.close, c.adjusted));
        assert_eq!(close("AAPL_x|AAPL_y"), Ok((0, 1, None)));
        assert_eq!(close("ds|y"), Ok((0, 1, None)));
        assert_eq!(close("Date|Close/Last|Volume"), Ok((0, 1, None)));
        assert_eq!(close("Date|Price|Open|High|Low|Vol.|Change %"), Ok((0, 1, None)));
        assert_eq!(close("Date|Open|High|Low|Last|Close|Total Trade Quantity|Turnover (Lacs)"), Ok((0, 5, None)));
        assert_eq!(close("Date|Adj Close"), Ok((0, 1, Some(1))));
        assert_eq!(close("|Date|Close|AAPL Close"), Ok((1, 2, None)));
        assert_eq!(close("Date|LOW.Close|LOW.Open"), Ok((0, 1, None)));
        assert_eq!(close("Date|Close_X"), Ok((0, 1, None)));
        assert_eq!(close("Date|Prev Close|Close|Price Change"), Ok((0, 2, None)));
        assert_eq!(close("date|open|close|tic|day"), Ok((0, 2, None)));
        assert_eq!(close("unix|date|symbol|open|close"), Ok((1, 4, None)));
        assert_eq!(by_names("Date|Time|Open|Close").map(|c| (c.date, c.close)), Ok((0, 3)));
        // Another program's quantities are none of these.
        let tiingo =
            by_names("date|close|high|low|open|volume|adjClose|adjHigh|adjLow|adjOpen|adjVolume|divCash|splitFactor");
        assert_eq!(tiingo.map(|c| (c.open, c.high, c.volume, c.adjusted)), Ok((Some(4), Some(2), Some(5), Some(6))));
        let volumes = by_names("date|open|high|low|close|Volume BTC|Volume USD").map(|c| (c.volume, c.doubts.len()));
        assert_eq!(volumes, Ok((Some(5), 1)));
        for (headers, said) in [
            ("Date|Last Size|Mid", "no column close"),
            ("Date|OPEN_PRC|HIGH_1|LOW_1|TRDPRC_1", "column OPEN_PRC is taken for the open beside TRDPRC_1"),
            ("Date|Value|Growth", ""),
            ("Date|Close|Split Adjusted Close", "column Split Adjusted Close is taken for the adjusted beside Close"),
            ("Date|C|AAPL|MSFT", "no column close"),
        ] {
            let found = by_names(headers).map_or_else(|unclear| unclear.message, |c| c.doubts.join(""));
            assert!(found.starts_with(said), "{headers}: {found}");
        }
        let odd = by_names("Date|Close|SPY Open").map(|c| c.doubts.join(""));
        assert_eq!(odd.as_deref(), Ok("column SPY Open is taken for the open beside Close"));
    }

    #[test]
    fn what_is_not_clear_is_asked_for_and_can_be_named() {
        let refused = |headers: &str, how: &How| find(headers, how).unwrap_err();
        let plain = How::default();
        let named = |column: &str| How { column: column.into(), ..How::default() };
        let merged = refused("Date|Close_x|Close_y", &plain);
        assert!(merged.message.starts_with("several columns could be the close: Close_x, Close_y"), "{merged:?}");
        let twice = refused("Date|Close|Close.1", &plain);
        assert_eq!(
            (twice.message.as_str(), twice.absent),
            ("several columns could be the close: Close, Close.1", false)
        );
        assert!(refused("Date|Volume_y", &plain).message.starts_with("no column close"));
        let headers = "Date|AAPL.Close|AAPL.Open|MSFT.Close|MSFT.Open|note";
        let asked = refused(headers, &plain);
        assert_eq!(asked.message, "several columns could be the close: AAPL.Close, MSFT.Close");
        assert_eq!(asked.advice, Some(("symbol", "chooses one by its ticker")));
        let columns = |how: &How| find(headers, how).map(|c| (c.close, c.open));
        assert_eq!(columns(&named("msft.close")), Ok((3, Some(4))));
        assert_eq!(columns(&How { symbol: "MSFT".into(), ..How::default() }), Ok((3, Some(4))));
        assert_eq!(columns(&named("note")), Ok((5, None)));
        let open = How { column: "note".into(), open_column: "AAPL.Open".into(), ..How::default() };
        assert_eq!(columns(&open), Ok((5, Some(2))));
        assert!(refused(headers, &named("Close")).message.starts_with("no column Close; it has Date"));
        assert!(refused("when|Close", &plain).message.starts_with("no column date; it has when, Close"));
        let crypto = "date|1a. open (CNY)|1b. open (USD)|4a. close (CNY)|4b. close (USD)|5. volume";
        assert!(refused(crypto, &plain).message.contains("4a. close (CNY), 4b. close (USD)"));
        let dollars = find(crypto, &How { symbol: "USD".into(), ..How::default() });
        assert_eq!(dollars.map(|c| (c.close, c.open, c.volume)), Ok((4, Some(2), Some(5))));
        // Named outright, the raw close is not adjusted.
        let yahoo = "Date|Close|Adj Close";
        assert_eq!(find(yahoo, &named("Close")).map(|c| (c.close, c.adjusted)), Ok((1, None)));
        assert_eq!(find(yahoo, &named("Adj Close")).map(|c| (c.close, c.adjusted)), Ok((1, Some(2))));
    }
}
