//! What columns are called.

use super::dates::folded;

/// What a column of a price file can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Field {
    Date,
    /// The time of day, beside a date.
    Time,
    Open,
    High,
    Low,
    Close,
    Volume,
    Adjusted,
    /// Which series a row belongs to.
    Symbol,
}

/// Names by field, separated by |, the likelier ones first: where a file has names of two tiers, the first tier is meant. Words are
/// in lower case and without accents; the longest fitting name decides.
const NAMES: &[(Field, u8, &str)] = &[
    (
        Field::Date,
        0,
        "date|trade date|tradedate|trading day|trading date|price date|datadate|ds|datum|data|fecha|дата|tarih|dato|tanggal\
         |日期|交易日期|日付|日付け|取引日|날짜|일자|x",
    ),
    (Field::Date, 1, "datetime|date time|日時|일시"),
    (Field::Date, 2, "timestamp|unix timestamp|snapped at"),
    (Field::Date, 3, "time|open time|time open|zeit|t|时间|時間"),
    (Field::Date, 4, "day|unix|epoch|dt|close time"),
    (Field::Time, 0, "time|hour|zeit|uhrzeit|heure|hora|ora|godzina|время|时间|時間|時刻|시간"),
    (
        Field::Open,
        0,
        "open|open price|opening|opening price|openprice|open prc|erster kurs|openprc|prcod|first|erster|eroffnung|eroeffnung\
         |eroffn|eroffnungskurs|eroeffnungskurs|ouverture|ouv|apertura|abertura|otwarcie|kurs otwarcia|oppning|abning|откр\
         |открытие|acilis|始値|시가|开盘|开盘价|開盤|開盤價|今开|o",
    ),
    (
        Field::High,
        0,
        "high|high price|highprice|highest|askhi|prchd|hoch|tageshoch|hochst|hochstkurs|hoechstkurs|plus haut|haut|max|maximum\
         |maximo|maxima|massimo|alto|najwyzszy|kurs max|hogsta|hojeste|hoog|макс|максимум|yuksek|高値|高|고가|最高|最高价\
         |最高價|h",
    ),
    (
        Field::Low,
        0,
        "low|low price|lowprice|lowest|bidlo|prcld|tief|tagestief|tiefst|tiefstkurs|plus bas|bas|min|minimum|minimo|minima|bajo\
         |najnizszy|kurs min|lagsta|laveste|laag|мин|минимум|dusuk|安値|低|저가|最低|最低价|最低價|l",
    ),
    (
        Field::Close,
        0,
        "close|close price|closeprice|closing|closing price|close last|prc|prccd|schluss|schlusskurs|cloture|clot|cierre\
         |chiusura|fechamento|zamkniecie|kurs zamkniecia|slotkoers|slutkurs|lukkekurs|закр|закрытие|kapanis|終値|종가|收盘\
         |收盘价|收盤|收盤價|c|y",
    ),
    (
        Field::Close,
        1,
        "last|last price|ltp|price|zuletzt|letzter|letzter kurs|trdprc|kurs|dernier|ultimo|ostatnio|laatste|koers|senast|цена\
         |simdi|value|nav|現在値|現値|最新价",
    ),
    (Field::Close, 2, "settle|settlement|settlement price"),
    (
        Field::Volume,
        0,
        "volume|vol|shares traded|number of shares|no of shares|total volume|trade volume|total trade quantity\
         |total traded quantity|cshtrd|stuecke|stucke|stuck|umsatz stuck|wolumen|wol|volym|объем|hacim|hac|出来高|거래량|成交量\
         |交易量|成交股數|成交股数|v",
    ),
    // In German and Spanish it is the turnover, where a column of shares is beside it.
    (Field::Volume, 1, "volumen|tickvol|tick volume|tickvolume"),
    (
        Field::Adjusted,
        0,
        "adj close|adjclose|adjusted|adjusted close|adjusted close price|close adj|close adjusted|closeadj\
         |adjusted closing price|調整後終値|조정종가|后复权收盘价",
    ),
    (
        Field::Symbol,
        0,
        "symbol|ticker|tic|code|isin|cusip|sedol|wkn|ric|figi|permno|gvkey|secid|security|company|company name|name|stock|asset\
         |instrument|contract|series|scrip|pair|coin|symbol id|id|unique id|ts code|stock code|asset id|kod|aktie|wertpapier\
         |代码|股票代码|证券代码|证券代號|证券名称|名称|股票名称|銘柄|銘柄コード|コード|종목|종목코드|종목명|futures|variable\
         |metric",
    ),
];

/// Words that make another quantity of a price or a volume.
const OTHER: &str = "prev|previous|prior|yesterday|change|chg|avg|average|target|strike|interest|quote|taker|buy|sell|52w|52|week|weeks\
                     |year|ytd|limit|count|number|trades|turnover|amount|cap|ratio|split|dividend|return|returns|pct|percent|percentage\
                     |unadjusted|weighted|vwap|ma|sma|ema|std|rank|score|id|currency|size|traded|days|log|norm|normalized|book|earnings\
                     |market|shares";

/// What a header says: a known name alone, after a ticker or before one.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Reading {
    pub(super) field: Field,
    /// How likely the name is, 0 the likeliest.
    pub(super) tier: u8,
    /// The words around the name: `AAPL.Close`, `Close_AAPL`.
    pub(super) ticker: Vec<String>,
}

/// Words in lower case: `AdjClose`, `Adj_Close` and `adj. close` are the same two.
pub(super) fn words(header: &str) -> Vec<String> {
    let mut words: Vec<String> = vec![String::new()];
    let mut before = ' ';
    for c in header.trim_start_matches('\u{feff}').chars() {
        let starts = !c.is_alphanumeric() || (c.is_uppercase() && before.is_lowercase());
        if starts && words.last().is_some_and(|w| !w.is_empty()) {
            words.push(String::new());
        }
        if let (true, Some(word)) = (c.is_alphanumeric(), words.last_mut()) {
            word.push(c);
        }
        before = c;
    }
    words.retain(|w| !w.is_empty());
    words.iter().map(|w| folded(w)).collect()
}

/// Alpha Vantage's numbers in front of names: `1. open`, `4a. close (CNY)`.
fn unnumbered(header: &str) -> &str {
    let Some((number, rest)) = header.split_once(". ") else { return header };
    let digits = number.trim_end_matches(|c: char| c.is_ascii_lowercase());
    let is_one = (1..=2).contains(&digits.len())
        && digits.bytes().all(|b| b.is_ascii_digit())
        && number.len() <= digits.len() + 1;
    if is_one { rest } else { header }
}

/// Whether the words around a name make it that of another quantity.
fn is_other(field: Field, name: &[&str], ticker: &[String]) -> bool {
    let any = |is: &dyn Fn(&str) -> bool| ticker.iter().any(|w| is(w));
    let of = |w: &str, fields: &[Field]| {
        NAMES.iter().any(|(f, _, names)| fields.contains(f) && names.split('|').any(|n| n == w))
    };
    let other = |w: &str| OTHER.split('|').any(|o| o == w) || w.starts_with("lag");
    match field {
        Field::Date | Field::Time | Field::Symbol => false,
        Field::Adjusted => any(&|w| other(w) && !matches!(w, "split" | "dividend")),
        // OPEN_PRC is none of a close, unlike LOW.Close, which is that of a company.
        Field::Close if !matches!(name, ["close"]) && any(&|w| of(w, &[Field::Open, Field::High, Field::Low])) => true,
        _ => any(&|w| other(w) || matches!(w, "time" | "date")),
    }
}

/// What a header can say: mostly one thing or nothing. Single letters are names if `letters` says so.
pub(super) fn read(header: &str, letters: bool) -> Vec<Reading> {
    let words = words(unnumbered(header));
    let is_known =
        |w: &String| NAMES.iter().any(|(_, _, names)| names.split('|').any(|n| n.chars().count() > 1 && n == w));
    let mut found: Vec<((usize, bool), Reading)> = vec![];
    for &(field, tier, names) in NAMES {
        for name in names.split('|') {
            let name: Vec<&str> = name.split(' ').collect();
            let Some(rest) = words.len().checked_sub(name.len()) else { continue };
            let letter = name[0].len() == 1;
            let (ticker, behind) = match () {
                // Letters are names by themselves, x and y behind a ticker that is no name: Close_x is a close.
                () if letter && rest == 0 && !letters => continue,
                () if letter && rest > 0 && (!matches!(name[0], "x" | "y") || words[..rest].iter().any(is_known)) => {
                    continue;
                }
                () if words[rest..] == name && rest <= 2 => (&words[..rest], true),
                () if words[..name.len()] == name && rest <= 2 && !letter => (&words[name.len()..], false),
                () => continue,
            };
            let exact = ticker.is_empty();
            // The name of a time, a symbol or a letter is one alone.
            let alone = matches!(field, Field::Time | Field::Symbol) || name[0] == "first" || tier == 4;
            if is_other(field, &name, ticker) || alone && !exact {
                continue;
            }
            found.push(((name.len(), behind), Reading { field, tier, ticker: ticker.to_vec() }));
        }
    }
    // Of equally long names the last is meant: LOW.Close is the close of LOW.
    found.sort_by_key(|(rank, reading)| (std::cmp::Reverse(*rank), reading.ticker.len(), reading.tier));
    let best = found.first().map(|(rank, _)| *rank);
    found.into_iter().filter(|(rank, _)| Some(*rank) == best).map(|(_, reading)| reading).collect()
}
