//! Which column is which, in price files as they are found.

/// What a price file's columns can be, by the names that data vendors give them; the longest fitting name decides.
const NAMES: [(Field, &[&str]); 7] = [
    (Field::Date, &["date", "datetime", "timestamp", "time", "day", "trade date", "trading day", "x"]),
    (Field::Open, &["open", "open price"]),
    (Field::High, &["high", "high price"]),
    (Field::Low, &["low", "low price"]),
    (Field::Close, &["close", "close price", "closing price", "close last", "last", "price", "y"]),
    (Field::Volume, &["volume", "vol", "shares traded"]),
    (
        Field::Adjusted,
        &["adj close", "adjclose", "adjusted", "adjusted close", "adjusted close price", "close adj", "close adjusted"],
    ),
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Field {
    Date,
    Open,
    High,
    Low,
    Close,
    Volume,
    Adjusted,
}

/// A header's name with the ticker around it: `AAPL.Close`, `Close_AAPL`.
#[derive(Debug, PartialEq)]
struct Reading {
    field: Field,
    ticker: Vec<String>,
}

/// Words in lower case: `AdjClose`, `Adj_Close` and `adj. close` are the same two.
fn words(header: &str) -> Vec<String> {
    let mut words: Vec<String> = vec![String::new()];
    let mut before = ' ';
    for c in header.trim_start_matches('\u{feff}').chars() {
        let starts = !c.is_alphanumeric() || (c.is_uppercase() && before.is_lowercase());
        if starts && words.last().is_some_and(|w| !w.is_empty()) {
            words.push(String::new());
        }
        if let (true, Some(word)) = (c.is_alphanumeric(), words.last_mut()) {
            word.extend(c.to_lowercase());
        }
        before = c;
    }
    words.retain(|w| !w.is_empty());
    words
}

/// Words that make another quantity of a price.
const OTHER: [&str; 9] = ["prev", "previous", "prior", "change", "avg", "average", "target", "strike", "settle"];

/// What a header says: a known name alone, after a ticker or before one.
fn read(header: &str) -> Option<Reading> {
    let words = words(header);
    if words.iter().any(|w| OTHER.contains(&w.as_str())) {
        return None;
    }
    let known = |w: &String| NAMES.iter().any(|(_, names)| names.iter().any(|n| n.len() > 1 && n == w));
    let mut found: Option<((usize, bool), Reading)> = None;
    for (field, names) in NAMES {
        for name in names.iter() {
            let name: Vec<&str> = name.split(' ').collect();
            let Some(rest) = words.len().checked_sub(name.len()) else { continue };
            // x and y are names only behind a ticker that is none itself: Close_x is a close.
            let single = name[0].len() == 1;
            let (ticker, behind) = match () {
                () if single && (rest == 0 || words[..rest].iter().any(known)) => continue,
                () if words[rest..] == name && rest <= 2 => (&words[..rest], true),
                () if words[..name.len()] == name && rest == 1 && !single => (&words[name.len()..], false),
                () => continue,
            };
            // Of equally long names the last is meant: LOW.Close is the close of LOW.
            let rank = (name.len(), behind);
            if found.as_ref().is_none_or(|(best, _)| *best < rank) {
                found = Some((rank, Reading { field, ticker: ticker.to_vec() }));
            }
        }
    }
    found.map(|(_, reading)| reading)
}

/// Where the columns are.
#[derive(Debug, PartialEq)]
pub(super) struct Columns {
    pub(super) date: usize,
    pub(super) close: usize,
    pub(super) open: Option<usize>,
    pub(super) high: Option<usize>,
    pub(super) low: Option<usize>,
    pub(super) volume: Option<usize>,
    pub(super) adjusted: Option<usize>,
}

/// As much of a file's text as a message has.
pub(super) fn quoted(text: &str) -> String {
    match text.char_indices().nth(60) {
        None => text.into(),
        Some((end, _)) => format!("{}…", &text[..end]),
    }
}

/// Columns that cannot be told.
#[derive(Debug, PartialEq)]
pub(super) struct Unclear {
    pub(super) message: String,
    /// The field of [`crate::Reading`] that helps, and how.
    pub(super) advice: Option<(&'static str, &'static str)>,
}

impl Columns {
    /// Finds the columns by their names; `column` and `date_column` name the close and the date outright, if not empty.
    ///
    /// # Errors
    /// One line: what is missing, or could be several columns.
    pub(super) fn find(headers: &[&str], column: &str, date_column: &str) -> Result<Self, Unclear> {
        let readings: Vec<Option<Reading>> = headers.iter().map(|h| read(h)).collect();
        let shown = || quoted(&headers.join(", "));
        let unclear = |message: String, field| Err(Unclear { message, advice: Some((field, "names it")) });
        let outright = |name: &str, field| match headers.iter().position(|h| h.eq_ignore_ascii_case(name)) {
            Some(at) => Ok(at),
            None => unclear(format!("no column {name}; it has {}", shown()), field),
        };
        let candidates = |field: Field| -> Vec<usize> {
            (0..headers.len()).filter(|&i| readings[i].as_ref().is_some_and(|r| r.field == field)).collect()
        };
        let ticker = |i: usize| readings[i].as_ref().map(|r| r.ticker.as_slice()).unwrap_or_default();
        let one = |found: &[usize], what: &str, field| match found {
            [] => unclear(format!("no column {what}; it has {}", shown()), field),
            [at] => Ok(*at),
            // A name without a ticker beats those with one.
            several => match several.iter().filter(|&&i| ticker(i).is_empty()).collect::<Vec<_>>()[..] {
                [&at] => Ok(at),
                _ => {
                    let names: Vec<&str> = several.iter().map(|&i| headers[i]).collect();
                    unclear(format!("several columns could be the {what}: {}", quoted(&names.join(", "))), field)
                }
            },
        };
        let date = match date_column {
            "" => one(&candidates(Field::Date), "date", "date_column")?,
            name => outright(name, "date_column")?,
        };
        let (close, named) = match column {
            "" => {
                let close = candidates(Field::Close);
                // A file may have adjusted closes alone.
                let close = if close.is_empty() { candidates(Field::Adjusted) } else { close };
                (one(&close, "close", "column")?, false)
            }
            name => (outright(name, "column")?, true),
        };
        // The others belong to the close's ticker.
        let beside = |field: Field| {
            let found: Vec<usize> = candidates(field).into_iter().filter(|&i| ticker(i) == ticker(close)).collect();
            if let [at] = found[..] { Some(at) } else { None }
        };
        let is = |field: Field| readings[close].as_ref().is_some_and(|r| r.field == field);
        let [open, high, low, volume] = [Field::Open, Field::High, Field::Low, Field::Volume].map(beside);
        if is(Field::Adjusted) {
            // Adjusted closes do not go with raw opens: the raw close, if there is one, says how to adjust those.
            return Ok(match beside(Field::Close) {
                Some(raw) => Self { date, close: raw, open, high, low, volume, adjusted: Some(close) },
                None => Self { date, close, open: None, high: None, low: None, volume, adjusted: Some(close) },
            });
        }
        let adjusted = beside(Field::Adjusted).filter(|_| is(Field::Close) && !named);
        Ok(Self { date, close, open, high, low, volume, adjusted })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vendors_names_are_understood() {
        let find = |headers: &str| Columns::find(&headers.split('|').collect::<Vec<_>>(), "", "");
        let all = |c: Columns| [Some(c.date), c.open, c.high, c.low, Some(c.close), c.adjusted, c.volume];
        let order = |numbers: [usize; 7]| Ok(numbers.map(Some));
        // Yahoo, its R and Python clients, Nasdaq, Stooq, Alpha Vantage, Investing.com.
        for headers in [
            "Date|Open|High|Low|Close|Adj Close|Volume",
            "\u{feff}DATE|OPEN|HIGH|LOW|CLOSE|ADJ_CLOSE|VOLUME",
            "timestamp|open|high|low|close|adjusted_close|volume",
            "Date|AAPL.Open|AAPL.High|AAPL.Low|AAPL.Close|AAPL.Adjusted|AAPL.Volume",
            "Date|Open_AAPL|High_AAPL|Low_AAPL|Close_AAPL|AdjClose_AAPL|Volume_AAPL",
        ] {
            assert_eq!(find(headers).map(all), order([0, 1, 2, 3, 4, 5, 6]), "{headers}");
        }
        let close = |headers: &str| find(headers).map(|c| (c.date, c.close, c.adjusted));
        assert_eq!(close("AAPL_x|AAPL_y"), Ok((0, 1, None)));
        assert_eq!(close("Date|Close/Last|Volume"), Ok((0, 1, None)));
        assert_eq!(close("Date|Price|Open|High|Low|Vol.|Change %"), Ok((0, 1, None)));
        assert_eq!(close("Date|Adj Close"), Ok((0, 1, Some(1))));
        assert_eq!(close("|Date|Close|AAPL Close"), Ok((1, 2, None)));
        assert_eq!(close("Date|LOW.Close|LOW.Open"), Ok((0, 1, None)));
        assert_eq!(close("Date|Close_X"), Ok((0, 1, None)));
        assert_eq!(close("Date|Prev Close|Close|Price Change"), Ok((0, 2, None)));
    }

    #[test]
    fn what_is_not_clear_is_asked_for_and_can_be_named() {
        let refused = |headers: &[&str], column: &str| Columns::find(headers, column, "").unwrap_err().message;
        let merged = refused(&["Date", "Close_x", "Close_y"], "");
        assert!(merged.starts_with("several columns could be the close: Close_x, Close_y"), "{merged}");
        assert!(refused(&["Date", "Volume_y"], "").starts_with("no column close"));
        let headers = ["Date", "AAPL.Close", "AAPL.Open", "MSFT.Close", "MSFT.Open", "note"];
        let message = "several columns could be the close: AAPL.Close, MSFT.Close".into();
        let asked = Unclear { message, advice: Some(("column", "names it")) };
        assert_eq!(Columns::find(&headers, "", ""), Err(asked));
        let columns = Columns::find(&headers, "msft.close", "").map(|c| (c.close, c.open));
        assert_eq!(columns, Ok((3, Some(4))));
        assert_eq!(Columns::find(&headers, "note", "date").map(|c| (c.close, c.open)), Ok((5, None)));
        assert!(refused(&headers, "Close").starts_with("no column Close; it has Date"));
        assert!(refused(&["when", "Close"], "").starts_with("no column date; it has when, Close"));
        // Named outright, the raw close is not adjusted.
        let yahoo = ["Date", "Close", "Adj Close"];
        assert_eq!(Columns::find(&yahoo, "Close", "").map(|c| (c.close, c.adjusted)), Ok((1, None)));
        assert_eq!(Columns::find(&yahoo, "Adj Close", "").map(|c| (c.close, c.adjusted)), Ok((1, Some(2))));
    }
}
