use serde::{Deserialize, Serialize};

/// How a price file is read; each field is empty where the file tells by itself.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Reading {
    /// The column of closes, or its number where there is no header.
    pub column: String,
    /// The column of dates.
    pub date_column: String,
    /// The column of opens.
    pub open_column: String,
    /// The column of highs.
    pub high_column: String,
    /// The column of lows.
    pub low_column: String,
    /// The column of shares traded.
    pub volume_column: String,
    /// The column of closes adjusted for splits and dividends.
    pub adjusted_column: String,
    /// The column that says which series a row belongs to.
    pub symbol_column: String,
    /// The series to read, of a file that has several: a value of that column, or a ticker in the names of columns.
    pub symbol: String,
    /// The form of dates, as of `strftime`, or `excel` for its days.
    pub date_format: String,
    /// What separates a price's fraction: `.` or `,`.
    pub decimal: String,
    /// The encoding of a text that is not UTF-8, such as `windows-1252` or `gbk`.
    pub encoding: String,
    /// `daily` makes days of the several bars that a file has of each.
    pub resample: String,
    /// Leaves out rows that cannot be read, and later rows of a date that is there a second time.
    pub skip_bad_rows: bool,
}

impl Reading {
    /// Whether nothing is asked for, as is right where there is no file.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// The name of a flag, what its value is called (none for a switch), the field that it sets, and a line for people.
pub type ReadingFlag = (&'static str, Option<&'static str>, &'static str, &'static str);

/// Flags of a command line for the fields of [`Reading`], which stand in a table `data`.
pub const READING_FLAGS: [ReadingFlag; 14] = [
    (
        "column",
        Some("NAME"),
        "data.column",
        "The column of closes, or its number in a file without a header; found by its name by default",
    ),
    ("date-column", Some("NAME"), "data.date_column", "The column of dates; found by its name by default"),
    ("open-column", Some("NAME"), "data.open_column", "The column of opens; found by its name by default"),
    ("high-column", Some("NAME"), "data.high_column", "The column of highs; found by its name by default"),
    ("low-column", Some("NAME"), "data.low_column", "The column of lows; found by its name by default"),
    ("volume-column", Some("NAME"), "data.volume_column", "The column of shares traded; found by its name by default"),
    (
        "adjusted-column",
        Some("NAME"),
        "data.adjusted_column",
        "The column of closes adjusted for splits and dividends; found by its name by default",
    ),
    (
        "symbol-column",
        Some("NAME"),
        "data.symbol_column",
        "The column that says which series a row belongs to; found by its name by default",
    ),
    ("symbol", Some("NAME"), "data.symbol", "The series to read, of a file that has several"),
    (
        "date-format",
        Some("FORM"),
        "data.date_format",
        "The form of dates, such as %d/%m/%Y, or excel for its numbers of days",
    ),
    ("decimal", Some("MARK"), "data.decimal", "What separates the fraction of a price: . or ,"),
    (
        "encoding",
        Some("NAME"),
        "data.encoding",
        "The encoding of a text that is not UTF-8, such as windows-1252 or gbk",
    ),
    ("resample", Some("STEP"), "data.resample", "daily makes days of the several bars that a file has of each"),
    ("skip-bad-rows", None, "data.skip_bad_rows", "Leave out rows that cannot be read"),
];
