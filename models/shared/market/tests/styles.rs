//! Files in random styles are read back: what separates fields and thousands, how dates, headers and titles are written, the order of rows.

use proptest::prelude::*;
use zoo_market::{Bar, Date, Need, Reading, read};

#[derive(Clone, Debug)]
struct Style {
    separator: char,
    comma: bool,
    groups: &'static str,
    date: &'static str,
    header: Option<&'static [&'static str; 6]>,
    titles: usize,
    note: bool,
    falling: bool,
    quotes: bool,
    end: &'static str,
    scale: f64,
}

const HEADERS: [&[&str; 6]; 5] = [
    &["Date", "Open", "High", "Low", "Close", "Volume"],
    &["timestamp", "1. open", "2. high", "3. low", "4. close", "5. volume"],
    &["Datum", "Eröffnung", "Hoch", "Tief", "Schluss", "Volumen"],
    &["日期", "开盘", "最高", "最低", "收盘", "成交量"],
    &["", "ABC.Open", "ABC.High", "ABC.Low", "ABC.Close", "ABC.Volume"],
];
const DATES: [&str; 12] = [
    "%Y-%m-%d",
    "%Y/%m/%d",
    "%Y%m%d",
    "%d.%m.%Y",
    "%d/%m/%Y",
    "%m/%d/%Y",
    "%m/%d/%y",
    "%d-%b-%Y",
    "%b %d %Y",
    "%Y-%m-%d 16:00:00-05:00",
    "%m/%d/%Y 04:00:00 PM",
    "%Y-%m-%dT00:00:00Z",
];

fn styles() -> impl Strategy<Value = Style> {
    let layout = (
        prop::sample::select(vec![',', ';', '\t', '|']),
        any::<bool>(),
        prop::sample::select(vec!["", "'", "\u{a0}", ","]),
    );
    let text =
        (prop::sample::select(DATES.to_vec()), prop::option::weighted(0.8, prop::sample::select(HEADERS.to_vec())));
    let around = (0..4usize, any::<bool>(), any::<bool>(), any::<bool>(), prop::sample::select(vec!["\n", "\r\n"]));
    let scale = prop::sample::select(vec![0.01, 1., 100., 3000.]);
    (layout, text, around, scale).prop_map(
        |((separator, comma, groups), (date, header), (titles, note, falling, quotes, end), scale)| {
            let comma = comma && separator != ',';
            // A comma between thousands needs quotes where it separates fields, and is none where it separates fractions.
            let groups = match groups {
                "," if comma => ".",
                groups => groups,
            };
            let quotes = quotes || groups == "," && separator == ',';
            Style { separator, comma, groups, date, header, titles, note, falling, quotes, end, scale }
        },
    )
}

fn grouped(number: f64, decimals: usize, style: &Style) -> String {
    let text = format!("{number:.decimals$}");
    let (whole, fraction) = text.split_once('.').unwrap_or((&text, ""));
    let mut out = String::new();
    for (i, digit) in whole.chars().enumerate() {
        if i > 0 && (whole.len() - i).is_multiple_of(3) {
            out.push_str(style.groups);
        }
        out.push(digit);
    }
    if decimals > 0 {
        out.push(if style.comma { ',' } else { '.' });
        out.push_str(fraction);
    }
    out
}

fn written(days: &[(Date, Bar)], style: &Style) -> String {
    let quote = |text: String| if style.quotes { format!("\"{text}\"") } else { text };
    let join = |fields: Vec<String>| fields.join(&style.separator.to_string());
    let titles = ["Prices of a share", "Made for the reader: without any warranty", "# no comment"];
    let mut lines: Vec<String> = titles[..style.titles.min(3)].iter().map(|t| t.to_string()).collect();
    if let Some(header) = style.header {
        lines.push(join(header.iter().map(|h| quote(h.to_string())).collect()));
    }
    let row = |(date, b): &(Date, Bar)| {
        let prices = [b.open, b.high, b.low, b.close].map(|p| quote(grouped(p, 2, style)));
        let date = quote(date.strftime(style.date).to_string());
        join([date].into_iter().chain(prices).chain([quote(grouped(b.volume, 0, style))]).collect())
    };
    let rows = days.iter().map(row);
    if style.falling {
        lines.extend(rows.rev())
    } else {
        lines.extend(rows)
    }
    if style.note {
        lines.push("Downloaded some day".into());
    }
    lines.join(style.end) + style.end
}

/// Simulated weekdays of more than a month, with prices of two decimals.
fn days(n: usize, seed: u64, scale: f64) -> Vec<(Date, Bar)> {
    let simulated = zoo_market::simulate(n, seed);
    let cents = |p: f64| ((p * scale * 100.).round() / 100.).max(0.01);
    let bar = |b: &Bar| {
        let [open, high, low, close] = [b.open, b.high, b.low, b.close].map(cents);
        Bar { open, high, low, close, volume: b.volume.round() }
    };
    simulated.dates.iter().copied().zip(simulated.bars.iter().map(bar)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_file_in_any_style_is_read_back(style in styles(), n in 40..90usize, seed in 0..1000u64) {
        let days = days(n, seed, style.scale);
        let text = written(&days, &style);
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), &text).unwrap();
        let start: String = text.lines().take(6).collect::<Vec<_>>().join("\n");
        let found = read(file.path(), &Reading::default(), Need::Bars).map_err(|e| TestCaseError::fail(format!("{e}\n{start}")))?;
        let dates: Vec<Date> = days.iter().map(|d| d.0).collect();
        prop_assert_eq!(&found.dates, &dates, "{}", start);
        for (bar, (_, expected)) in found.bars.iter().zip(&days) {
            prop_assert_eq!(bar, expected, "{}\n{:?}", start, found.warnings);
        }
    }
}
