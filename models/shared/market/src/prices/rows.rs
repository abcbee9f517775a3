//! From a row's fields to a bar.

use super::columns::{Columns, Header, Unclear, quoted};
use super::dates::{self, Form, Moment};
use super::numbers::{self, Decimal, Evidence};
use super::{Need, Row, table};
use crate::{Bar, Reading as How};

/// How far, relatively, open and close may lie outside low and high.
const ROUNDING: f64 = 0.01;
/// Factor between the closes of two days that no market makes; a misread separator makes one of a thousand.
const UNHEARD_OF: f64 = 30.;

/// How dates and numbers of a file are written.
#[derive(Debug)]
pub(super) struct Format {
    form: Form,
    price: Decimal,
    volume: Decimal,
    /// The middle one of the closes.
    usual: f64,
    /// Whether most rows have a field for every column.
    full: bool,
    pub(super) remarks: Vec<String>,
}

impl Format {
    /// Treats columns without any value as missing, and finds the forms of the others.
    ///
    /// # Errors
    /// Dates or prices that could be two things.
    pub(super) fn find(
        headers: &[Header],
        columns: &mut Columns,
        rows: &[table::Row],
        delimiter: Option<u8>,
        how: &How,
    ) -> Result<Self, Unclear> {
        let empty = |k: usize| rows.iter().all(|r| numbers::is_missing(r.get(k)));
        let Columns { time, open, high, low, volume, adjusted, .. } = &mut *columns;
        for column in [time, open, high, low, volume, adjusted] {
            *column = column.filter(|k| rows.is_empty() || !empty(*k));
        }
        let texts: Vec<&str> = rows.iter().map(|r| r.get(columns.date)).collect();
        let form = form(&texts, &headers[columns.date].text, how)?;
        let mut remarks = vec![];
        let evidence = |of: &[Option<usize>]| {
            let mut evidence = Evidence::default();
            for k in of.iter().flatten() {
                rows.iter().for_each(|r| evidence.add(r.get(*k)));
            }
            evidence
        };
        let prices = evidence(&[Some(columns.close), columns.open, columns.high, columns.low, columns.adjusted]);
        let price = match (how.decimal.as_str(), prices.decimal(), prices.open()) {
            (".", ..) => Decimal::Point,
            (",", ..) => Decimal::Comma,
            ("", Some(decimal), _) => decimal,
            ("", None, None) => {
                let closes = || rows.iter().map(|r| r.get(columns.close)).filter(|f| !numbers::is_missing(f));
                if closes().next().is_some() && closes().all(numbers::is_in_32nds) {
                    let example = quoted(closes().next().unwrap_or_default());
                    let message =
                        format!("prices such as {example} could have thousands or be in 32nds, which are not read");
                    return Err(Unclear::new(message, "decimal", ". takes them for thousands"));
                }
                Decimal::Point
            }
            ("", None, Some(mark)) => {
                let example = rows.iter().map(|r| r.get(columns.close)).find(|f| f.contains(mark)).unwrap_or_default();
                match settled(rows, columns.close, mark, delimiter, &texts) {
                    Some(decimal) => decimal,
                    None => {
                        let message = format!("prices such as {} could have thousands or a fraction", quoted(example));
                        return Err(Unclear::new(message, "decimal", "says what separates the fraction, . or ,"));
                    }
                }
            }
            (other, ..) => {
                let message = format!("the mark {other:?} does not separate fractions");
                return Err(Unclear::new(message, "decimal", "must be . or ,"));
            }
        };
        let own = evidence(&[columns.volume]);
        let volume = match own.decimal() {
            Some(decimal) => decimal,
            // Shares are whole: 7,000 are seven thousand.
            None if own.open() == Some(',') => Decimal::Point,
            None => price,
        };
        if price == Decimal::Comma && how.decimal.is_empty() {
            remarks.push("commas separate fractions in this file's prices".into());
        }
        if let Some(k) = columns.adjusted.filter(|k| *k != columns.close) {
            let same = |k: usize| rows.iter().all(|r| r.get(k) == rows[0].get(k));
            if rows.len() > 2 && same(k) && !same(columns.close) {
                remarks.push(format!(
                    "column {} is always {}: it is no adjusted close",
                    headers[k].text,
                    rows[0].get(k)
                ));
                columns.adjusted = None;
            }
        }
        let mut closes: Vec<f64> = rows.iter().filter_map(|r| numbers::price(r.get(columns.close), price)).collect();
        closes.sort_by(f64::total_cmp);
        let usual = closes.get(closes.len() / 2).copied().unwrap_or(1.);
        let full = 10 * rows.iter().filter(|r| r.fields.len() >= headers.len()).count() >= 9 * rows.len();
        Ok(Self { form, price, volume, usual, full, remarks })
    }

    /// Whether a number has another separator than the others, as its size tells.
    fn is_mixed(&self, text: &str, value: f64) -> bool {
        let mark = if self.price == Decimal::Point { ',' } else { '.' };
        text.contains(mark) && value > UNHEARD_OF * self.usual && value < 1000. * UNHEARD_OF * self.usual
    }

    /// The day of a row, with its time if it has one in that column or another.
    pub(super) fn moment(&self, row: &table::Row, columns: &Columns) -> Option<Moment> {
        let moment = dates::moment(row.get(columns.date), &self.form)?;
        let beside = || columns.time.and_then(|k| dates::time(row.get(k)));
        // Midnight is no time of day where another column has one.
        let time = moment.time.filter(|t| columns.time.is_none() || *t != jiff::civil::Time::midnight());
        Some(Moment { time: time.or_else(beside).or(moment.time), ..moment })
    }
}

/// The form of these dates.
///
/// # Errors
/// Dates that could be of two forms, or that Excel damaged.
pub(super) fn form(texts: &[&str], header: &str, how: &How) -> Result<Form, Unclear> {
    if let Some(form) = table::asked(how)? {
        return Ok(form);
    }
    let most =
        |is: &dyn Fn(&str) -> bool| !texts.is_empty() && 10 * texts.iter().filter(|t| is(t)).count() >= 9 * texts.len();
    if most(&dates::is_serial) {
        let day = dates::moment(texts[0], &Form::Excel).map(|m| format!(" ({})", m.day)).unwrap_or_default();
        let message = format!("{header} is {} and the like, numbers of days as Excel has them{day}", texts[0]);
        return Err(Unclear::new(message, "date_format", "excel reads them"));
    }
    if most(&|t| t.starts_with("##")) {
        let message = format!(
            "{header} is {}, as Excel shows dates in a column that is too narrow: widen it and save again",
            texts[0]
        );
        return Err(Unclear { message, advice: None, absent: false });
    }
    dates::form(texts).map_err(|message| Unclear::new(message, "date_format", "says which"))
}

/// What three digits behind the only separator are, by what separates fields and by how far prices go in a day.
fn settled(rows: &[table::Row], close: usize, mark: char, delimiter: Option<u8>, dates: &[&str]) -> Option<Decimal> {
    let jump = |decimal: Decimal| {
        let prices: Vec<f64> = rows.iter().filter_map(|r| numbers::price(r.get(close), decimal)).collect();
        prices.windows(2).map(|w| (w[1] / w[0]).max(w[0] / w[1])).fold(1., f64::max)
    };
    let (point, comma) = (jump(Decimal::Point), jump(Decimal::Comma));
    match (mark, delimiter) {
        _ if point < UNHEARD_OF && comma > UNHEARD_OF => Some(Decimal::Point),
        _ if comma < UNHEARD_OF && point > UNHEARD_OF => Some(Decimal::Comma),
        // Semicolons are for numbers with commas in them.
        (',', Some(b';')) => Some(Decimal::Comma),
        (',', _) => None,
        // Where a point stands in dates, it may separate thousands.
        (_, Some(b';')) if dates.iter().any(|d| d.contains(['.', '/'])) => None,
        _ => Some(Decimal::Point),
    }
}

/// A row with what is known of its table.
pub(super) struct Line<'a> {
    pub(super) row: &'a table::Row,
    pub(super) headers: &'a [Header],
    pub(super) columns: &'a Columns,
    pub(super) format: &'a Format,
}

impl Line<'_> {
    fn field(&self, column: usize) -> Result<&str, String> {
        let fields = &self.row.fields;
        let missing = || format!("{}, expected {}", super::counted(fields.len(), "field"), self.headers.len());
        fields.get(column).ok_or_else(missing)
    }

    fn wrong(&self, column: usize, expected: &str) -> String {
        format!("{} is {:?}, expected {expected}", self.headers[column].text, quoted(self.row.get(column)))
    }

    fn price(&self, column: usize) -> Result<f64, String> {
        let text = self.field(column)?;
        let value = numbers::price(text, self.format.price).filter(|v| !self.format.is_mixed(text, *v));
        value.ok_or_else(|| {
            let other = [Decimal::Point, Decimal::Comma].iter().any(|d| numbers::price(text, *d).is_some());
            let expected = match (other, self.format.price) {
                (false, _) => "a positive number",
                (true, Decimal::Point) => "a positive number with a decimal point, as others have",
                (true, Decimal::Comma) => "a positive number with a decimal comma, as others have",
            };
            self.wrong(column, expected)
        })
    }

    fn volume(&self) -> Result<Option<f64>, String> {
        let Some(column) = self.columns.volume else { return Ok(None) };
        let text = self.field(column)?;
        if numbers::is_missing(text) {
            return Ok(None);
        }
        let value = numbers::parse(text, self.format.volume).filter(|v| v.is_finite() && *v >= 0.);
        value.map(Some).ok_or_else(|| self.wrong(column, "zero or more"))
    }

    /// The bar of a row, adjusted; its highest price is none below another, its lowest none above.
    pub(super) fn read(&self, moment: Option<Moment>, need: Need) -> Result<Row, String> {
        let &Self { row, headers, columns, .. } = self;
        if self.format.full && row.fields.len() < headers.len() {
            return Err(format!("{}, expected {}", super::counted(row.fields.len(), "field"), headers.len()));
        }
        let nameless = |k: &usize| headers[*k].text.is_empty() && numbers::is_number(row.get(*k));
        if let Some(k) = (1..headers.len()).find(nameless) {
            let hint = "a number with commas outside of quotes?";
            return Err(format!("column {} has no name, but holds {} ({hint})", k + 1, quoted(row.get(k))));
        }
        if row.fields.iter().skip(headers.len()).any(|field| !field.is_empty()) {
            let hint = "a number with commas outside of quotes?";
            return Err(format!("{} fields, expected {} ({hint})", row.fields.len(), headers.len()));
        }
        self.field(columns.date)?;
        let at = moment.ok_or_else(|| self.wrong(columns.date, "a date such as 2008-10-14"))?;
        let or_close = |column: Option<usize>| self.price(column.unwrap_or(columns.close));
        let close = or_close(columns.adjusted)?;
        if need == Need::Closes {
            return Ok(Row { at, line: row.line, bar: Bar::closing(close), volume: None });
        }
        let (last, open) = (self.price(columns.close)?, or_close(columns.open)?);
        let (mut high, mut low) = (or_close(columns.high)?, or_close(columns.low)?);
        // Vendors round: open and close may lie a little outside.
        let (top, bottom) = (open.max(last), open.min(last));
        if let (Some(at), true) = (columns.high, columns.low.is_some() && (high < low || high < top * (1. - ROUNDING)))
        {
            return Err(self.wrong(at, "no price of its day above it"));
        }
        if let (Some(at), true) = (columns.low, columns.high.is_some() && low > bottom * (1. + ROUNDING)) {
            return Err(self.wrong(at, "no price of its day below it"));
        }
        (high, low) = (high.max(top), low.min(bottom));
        let factor = close / last;
        let volume = self.volume()?;
        if [open, high, low].iter().any(|p| !(p * factor).is_normal()) {
            return Err(self.wrong(columns.adjusted.unwrap_or(columns.close), "a price near that of its day"));
        }
        let bar =
            Bar { open: open * factor, high: high * factor, low: low * factor, close, volume: volume.unwrap_or(0.) };
        Ok(Row { at, line: row.line, bar, volume })
    }
}
