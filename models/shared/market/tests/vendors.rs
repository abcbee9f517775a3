//! Price files in the styles of many vendors and programs, written by `tests/fixtures/vendors.py`: all hold the same 24 days.

use std::path::Path;

use zoo_market::{Bar, Days, Need, Reading, read};

/// Open, high, low, close and volume of the first and the last day.
const PLAIN: [[f64; 5]; 2] = [[99.86, 100.28, 99.03, 99.16, 5_495_304.], [99.56, 99.8, 98.75, 98.92, 5_484_474.]];
const DEAR: [[f64; 5]; 2] =
    [[9985.91, 10028.39, 9902.67, 9916.17, 5_495_304.], [9955.67, 9979.66, 9875.32, 9892.42, 5_484_474.]];
const LAKH: [[f64; 5]; 2] = [
    [123_276.02, 123_800.52, 122_248.43, 122_415.18, 5_495_304.],
    [122_902.75, 123_198.9, 121_910.86, 122_121.93, 5_484_474.],
];

/// What a file has: all five numbers, no volume, or the close alone.
const ALL: usize = 5;
const NO_VOLUME: usize = 4;
const CLOSE: usize = 1;

/// A file, settings of `Reading`, its days, what it has of them, and what is said, in order: parts of it.
type Case = (&'static str, &'static [(&'static str, &'static str)], [[f64; 5]; 2], usize, &'static [&'static str]);

/// A file, settings of `Reading`, and a part of what is asked.
type Question = (&'static str, &'static [(&'static str, &'static str)], &'static str);

const HEADERLESS: &str = "has no header; by what is in them, its columns are";
const COMMAS: &str = "commas separate fractions";

const CASES: &[Case] = &[
    ("yahoo.csv", &[], PLAIN, ALL, &[]),
    ("yfinance_history.csv", &[], PLAIN, ALL, &[]),
    ("yfinance_download.csv", &[], PLAIN, ALL, &[]),
    ("yfinance_group_by.csv", &[], PLAIN, ALL, &[]),
    ("yfinance_raw.csv", &[], PLAIN, ALL, &[]),
    ("yfinance_reset_index.csv", &[], PLAIN, ALL, &[]),
    ("yfinance_two.csv", &[("symbol", "abc")], PLAIN, ALL, &[]),
    ("yfinance_tuples.csv", &[], PLAIN, ALL, &[]),
    ("quantmod.csv", &[], PLAIN, ALL, &[]),
    ("pandas_index.csv", &[], PLAIN, ALL, &[]),
    ("alpha_vantage.csv", &[], PLAIN, ALL, &[]),
    ("alpha_vantage_numbered.csv", &[], PLAIN, ALL, &[]),
    ("nasdaq.csv", &[], PLAIN, ALL, &[]),
    ("stooq.csv", &[], PLAIN, ALL, &[]),
    ("stooq_bulk.txt", &[], PLAIN, ALL, &[]),
    ("stooq_pl.csv", &[], PLAIN, ALL, &[]),
    (
        "macrotrends.csv",
        &[],
        PLAIN,
        ALL,
        &["lines 1 to 6 are passed over, as they are above the header: \"Macro data\""],
    ),
    ("cboe.csv", &[], PLAIN, ALL, &["line 1 is passed over, as it is above the header: \"Data is compiled"]),
    ("fred.csv", &[], PLAIN, CLOSE, &["column SP500 is taken for the close"]),
    ("quandl_wiki.csv", &[], PLAIN, ALL, &[]),
    ("tiingo.csv", &[], PLAIN, ALL, &[]),
    ("eod.csv", &[], PLAIN, ALL, &[]),
    ("polygon.csv", &[], PLAIN, ALL, &[]),
    ("marketstack.csv", &[], PLAIN, ALL, &[]),
    ("wsj.csv", &[], PLAIN, NO_VOLUME, &[]),
    ("barchart.csv", &[], PLAIN, ALL, &["line 26 holds no data and is passed over: \"Downloaded from a vendor"]),
    ("crsp.csv", &[], PLAIN, ALL, &[]),
    ("compustat.csv", &[], PLAIN, ALL, &[]),
    ("bloomberg.csv", &[], PLAIN, ALL, &["lines 1 to 3 are passed over"]),
    ("refinitiv.csv", &[], PLAIN, ALL, &[]),
    ("tradingview.csv", &[], PLAIN, ALL, &[]),
    ("google_sheets.csv", &[], PLAIN, ALL, &[]),
    ("thinkorswim.csv", &[], PLAIN, ALL, &["line 1 is passed over"]),
    ("interactive_brokers.csv", &[], PLAIN, ALL, &[]),
    ("norgate.csv", &[], PLAIN, ALL, &[]),
    ("kaggle_name.csv", &[], PLAIN, ALL, &[]),
    ("investing_en.csv", &[], PLAIN, ALL, &[]),
    ("investing_de.csv", &[], PLAIN, ALL, &[COMMAS]),
    ("investing_fr.csv", &[], PLAIN, ALL, &[COMMAS]),
    ("investing_es.csv", &[], PLAIN, ALL, &[COMMAS]),
    ("investing_it.csv", &[], PLAIN, ALL, &[COMMAS]),
    ("investing_pt.csv", &[], PLAIN, ALL, &[COMMAS]),
    ("investing_ru.csv", &[], PLAIN, ALL, &[COMMAS]),
    ("investing_tr.csv", &[], PLAIN, ALL, &[COMMAS]),
    ("investing_jp.csv", &[], PLAIN, ALL, &[]),
    ("investing_kr.csv", &[], PLAIN, ALL, &[]),
    ("investing_cn.csv", &[], PLAIN, ALL, &[]),
    ("ariva.csv", &[], DEAR, ALL, &[COMMAS]),
    ("finanzen.csv", &[], DEAR, NO_VOLUME, &[COMMAS]),
    ("windows_1252.csv", &[("encoding", "windows-1252")], DEAR, NO_VOLUME, &["read as windows-1252, as asked", COMMAS]),
    ("euronext.csv", &[], PLAIN, ALL, &["lines 1 to 3 are passed over"]),
    ("boursorama.txt", &[], PLAIN, ALL, &[COMMAS]),
    ("abc_bourse.txt", &[], PLAIN, ALL, &[HEADERLESS, COMMAS]),
    ("nordic.csv", &[], DEAR, ALL, &[COMMAS]),
    ("gpw.csv", &[], PLAIN, ALL, &[COMMAS]),
    ("swiss.csv", &[], DEAR, ALL, &[]),
    ("finam.txt", &[], PLAIN, ALL, &[]),
    ("moex.csv", &[], PLAIN, ALL, &["line 1 is passed over, as it is above the header: \"history\""]),
    ("nse.csv", &[], LAKH, ALL, &[]),
    ("bse.csv", &[], PLAIN, ALL, &[]),
    ("twse.csv", &[], PLAIN, ALL, &["line 1 is passed over", "lines 27, 28 hold no data"]),
    ("jpx_shift_jis.csv", &[("encoding", "shift_jis")], PLAIN, ALL, &["read as Shift_JIS"]),
    ("krx.csv", &[], PLAIN, ALL, &[]),
    (
        "tdx_gbk.txt",
        &[("encoding", "gbk")],
        PLAIN,
        ALL,
        &["read as GBK", "line 1 is passed over", "line 27 holds no data"],
    ),
    ("tushare.csv", &[], PLAIN, ALL, &[]),
    ("binance.csv", &[], PLAIN, ALL, &[HEADERLESS]),
    ("binance_micro.csv", &[], PLAIN, ALL, &[]),
    (
        "cryptodatadownload.csv",
        &[],
        PLAIN,
        ALL,
        &["line 1 is passed over", "the volume is Volume BTC, of Volume BTC, Volume USD"],
    ),
    ("kraken.csv", &[], PLAIN, ALL, &[HEADERLESS]),
    ("coinbase.csv", &[], PLAIN, ALL, &["columns are 1 date, 4 open, 3 high, 2 low, 5 close, 6 volume"]),
    ("coingecko.csv", &[], PLAIN, CLOSE, &["column price is taken for the close"]),
    ("coinmarketcap.csv", &[], PLAIN, ALL, &[]),
    ("mt4.csv", &[], PLAIN, ALL, &["1 date, 2 time, 3 open, 4 high, 5 low, 6 close, 7 volume"]),
    ("mt5_utf16.csv", &[], PLAIN, ALL, &["read as UTF-16LE, by its mark"]),
    ("dukascopy.csv", &[], PLAIN, ALL, &[]),
    ("histdata.csv", &[], PLAIN, NO_VOLUME, &[HEADERLESS]),
    ("kibot.txt", &[], PLAIN, ALL, &[HEADERLESS]),
    ("index_dash.csv", &[], PLAIN, NO_VOLUME, &[]),
    ("prophet.csv", &[], PLAIN, CLOSE, &[]),
    ("finrl.csv", &[("symbol", "ABC")], PLAIN, ALL, &[]),
    ("wide.csv", &[("symbol", "ABC")], PLAIN, CLOSE, &[]),
    ("wide.csv", &[("column", "ABC")], PLAIN, CLOSE, &[]),
    ("side_by_side.csv", &[("symbol", "ABC")], PLAIN, ALL, &[]),
    ("hours.csv", &[("resample", "daily")], PLAIN, ALL, &["24 days made of 72 bars"]),
    ("excel_serial.csv", &[("date_format", "excel")], PLAIN, CLOSE, &[]),
    ("gzip.csv.gz", &[], PLAIN, ALL, &[]),
    #[cfg(feature = "files")]
    ("excel.xlsx", &[], PLAIN, ALL, &["line 1 is passed over"]),
    #[cfg(feature = "files")]
    ("pandas.parquet", &[], PLAIN, ALL, &[]),
];

/// Files that are asked about, with what is asked.
const ASKED: &[Question] = &[
    ("yfinance_two.csv", &[], "could be the close: ABC Close, XYZ Close (symbol chooses one by its ticker)"),
    ("finrl.csv", &[], "several series, told apart by column tic: ABC, XYZ (symbol chooses one, * takes all for one)"),
    ("finrl.csv", &[("symbol", "QQQ")], "no series QQQ; it has ABC, XYZ"),
    ("wide.csv", &[], "each of ABC, XYZ could be a series of its own (symbol chooses one)"),
    ("yahoo.csv", &[("symbol", "ABC")], "no series ABC: the file does not say whose prices it has"),
    (
        "hours.csv",
        &[],
        "several bars a day, such as 2019-01-02 at 09:30 and 12:30, where one is expected (resample daily makes days",
    ),
    ("hours.csv", &[("skip_bad_rows", "")], "several bars a day"),
    (
        "excel_serial.csv",
        &[],
        "Date is 43467 and the like, numbers of days as Excel has them (2019-01-02) (date_format excel reads them)",
    ),
    ("windows_1252.csv", &[], "line 1: not UTF-8 text; windows-1252 would read \"Eröffnung;Ta\" (encoding names it)"),
    ("tdx_gbk.txt", &[], "GBK would read"),
    ("jpx_shift_jis.csv", &[], "Shift_JIS would read \"日付,始値"),
    #[cfg(not(feature = "files"))]
    ("excel.xlsx", &[], "it is a workbook of Excel, which is read with the feature files"),
    #[cfg(not(feature = "files"))]
    ("pandas.parquet", &[], "it is a Parquet file, which is read with the feature files"),
];

fn read_with(file: &str, settings: &[(&str, &str)], need: Need) -> zoo_market::Result<Days> {
    let mut how = Reading::default();
    for (key, value) in settings {
        let field = match *key {
            "column" => &mut how.column,
            "symbol" => &mut how.symbol,
            "date_format" => &mut how.date_format,
            "encoding" => &mut how.encoding,
            "resample" => &mut how.resample,
            _ => {
                how.skip_bad_rows = true;
                continue;
            }
        };
        *field = value.to_string();
    }
    read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vendors").join(file), &how, need)
}

#[test]
fn files_of_many_vendors_are_read_alike() {
    let mut wrong = vec![];
    for (file, settings, expected, has, said) in CASES {
        let days = match read_with(file, settings, Need::Bars) {
            Ok(days) => days,
            Err(e) => {
                wrong.push(e.to_string());
                continue;
            }
        };
        let coins = ["binance", "crypto", "kraken", "coin"].iter().any(|name| file.starts_with(name));
        let last = if coins { "2019-01-25" } else { "2019-02-04" };
        let ends = [days.dates.first(), days.dates.last()].map(|d| d.map(|d| d.to_string()).unwrap_or_default());
        let numbers = |bar: Option<&Bar>| bar.map(|b| [b.open, b.high, b.low, b.close, b.volume]).unwrap_or_default();
        let found = [numbers(days.bars.first()), numbers(days.bars.last())];
        let same = |found: &[f64; 5], expected: &[f64; 5]| match *has {
            CLOSE => (found[3] / expected[3] - 1.).abs() < 1e-9,
            n => found[..n].iter().zip(&expected[..n]).all(|(a, b)| (a / b - 1.).abs() < 1e-6),
        };
        let numbers_fit = found.iter().zip(expected).all(|(a, b)| same(a, b));
        let missing = |name: &str| days.missing.contains(&name);
        let has_fits =
            missing("Open") == (*has == CLOSE) && missing("Volume") == (*has < ALL) || file.starts_with("coingecko");
        let all_said = days.warnings.len() == said.len() && days.warnings.iter().zip(*said).all(|(w, s)| w.contains(s));
        if days.bars.len() != 24 || ends != ["2019-01-02", last] || !numbers_fit || !has_fits || !all_said {
            wrong.push(format!(
                "{file}: {} days {ends:?}, {found:?}, missing {:?}, says {:?}",
                days.bars.len(),
                days.missing,
                days.warnings
            ));
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), CASES.len(), wrong.join("\n"));
}

#[test]
fn what_a_file_leaves_open_is_asked_with_the_way_out() {
    for (file, settings, expected) in ASKED {
        for need in [Need::Bars, Need::Closes] {
            let message = read_with(file, settings, need).map(|days| days.dates.len()).unwrap_err().to_string();
            assert!(message.contains(expected), "{message}");
        }
    }
}
