//! Files that hold several series, one below the other.

use std::collections::HashMap;

use jiff::civil::Date;

use super::columns::{Columns, Header, Kind, Unclear, listed};
use super::names::Field;
use super::table::Row;
use crate::Reading as How;

/// Values of a column that are kept to tell series apart.
const MOST_VALUES: usize = 10_000;
/// Rows of a block that may be a series of its own.
const BLOCK: usize = 20;

/// The different values of a column, in the order in which they come; none if there are too many for names of series.
fn values(rows: &[Row], column: usize) -> Vec<&str> {
    let mut seen: HashMap<&str, ()> = HashMap::new();
    let mut all = vec![];
    for value in rows.iter().map(|r| r.get(column)).filter(|v| !v.is_empty()) {
        if seen.insert(value, ()).is_none() {
            all.push(value);
        }
        if all.len() > MOST_VALUES {
            return vec![];
        }
    }
    all
}

fn several(header: &str, values: &[&str]) -> Unclear {
    let message = format!("several series, told apart by column {header}: {}", listed(values.iter().copied()));
    Unclear::new(message, "symbol", "chooses one")
}

/// Leaves the rows of the series that is asked for.
///
/// # Errors
/// Several series of which none is asked for, or one that is not there.
pub(super) fn choose(headers: &[Header], columns: &Columns, rows: &mut Vec<Row>, how: &How) -> Result<(), Unclear> {
    let named: Vec<usize> = match how.symbol_column.as_str() {
        "" => (0..headers.len()).filter(|&k| headers[k].readings.iter().any(|r| r.field == Field::Symbol)).collect(),
        name => match headers.iter().position(|h| h.text.eq_ignore_ascii_case(name)) {
            Some(at) => vec![at],
            None => {
                let all = listed(headers.iter().map(|h| h.text.as_str()));
                return Err(Unclear::new(format!("no column {name}; it has {all}"), "symbol_column", "names it"));
            }
        },
    };
    let text: Vec<usize> =
        (0..headers.len()).filter(|k| !used(columns).contains(k) && (named.contains(k) || is_text(rows, *k))).collect();
    if !how.symbol.is_empty() {
        let is = |value: &str| value.eq_ignore_ascii_case(&how.symbol);
        // A column that has the name, those that are called symbols first.
        let mut order: Vec<usize> = named.iter().copied().chain(text.iter().copied()).collect();
        order.dedup();
        if let Some(&at) = order.iter().find(|&&k| rows.iter().any(|r| is(r.get(k)))) {
            rows.retain(|r| is(r.get(at)));
        } else {
            let wanted = super::names::words(&how.symbol);
            let close = &headers[columns.adjusted.unwrap_or(columns.close)];
            let in_header =
                close.readings.iter().any(|r| r.ticker == wanted) || super::names::words(&close.text) == wanted;
            if !in_header {
                let there: Vec<&str> = order.iter().flat_map(|&k| values(rows, k)).collect();
                let message = match there.is_empty() {
                    true => format!("no series {}: the file does not say whose prices it has", how.symbol),
                    false => format!("no series {}; it has {}", how.symbol, listed(there.into_iter())),
                };
                return Err(Unclear { message, advice: None, absent: false });
            }
        }
    }
    for k in named {
        match &values(rows, k)[..] {
            [] | [_] => {}
            // The series that was asked for may have several names of another kind.
            _ if !how.symbol.is_empty() => {}
            all => return Err(several(&headers[k].text, all)),
        }
    }
    Ok(())
}

fn used(columns: &Columns) -> Vec<usize> {
    let Columns { date, time, close, open, high, low, volume, adjusted, .. } = columns;
    let others = [time, open, high, low, volume, adjusted].into_iter().flatten();
    [date, close].into_iter().chain(others).copied().collect()
}

fn is_text(rows: &[Row], column: usize) -> bool {
    Kind::of(rows.iter().take(BLOCK * BLOCK).map(|r| r.get(column))) == Kind::Text
}

/// Looks for columns of text, whatever they are called, that tell apart the rows of a day, or blocks of days.
///
/// # Errors
/// There is one, of rows on the same days.
pub(super) fn unnamed(
    headers: &[Header],
    columns: &Columns,
    rows: &[Row],
    days: &[Option<Date>],
    remarks: &mut Vec<String>,
) -> Result<(), Unclear> {
    for k in (0..headers.len()).filter(|k| !used(columns).contains(k)) {
        if !is_text(rows, k) {
            continue;
        }
        let all = values(rows, k);
        if all.len() < 2 {
            continue;
        }
        // Rows of the same day, and those among them that say something else.
        let mut first: HashMap<Date, &str> = HashMap::new();
        let (mut again, mut others) = (0, 0);
        for (row, day) in rows.iter().zip(days).filter_map(|(row, day)| Some((row, (*day)?))) {
            match first.get(&day) {
                None => _ = first.insert(day, row.get(k)),
                Some(value) => {
                    again += 1;
                    others += usize::from(*value != row.get(k));
                }
            }
        }
        if again > 3 && 10 * others >= 9 * again {
            return Err(several(&headers[k].text, &all));
        }
        let changes = rows.windows(2).filter(|w| w[0].get(k) != w[1].get(k)).count();
        if again == 0 && changes + 1 == all.len() && rows.len() >= BLOCK * all.len() {
            remarks.push(format!(
                "column {} is {} in blocks: if these are several series, choose one (symbol)",
                headers[k].text,
                listed(all.into_iter())
            ));
        }
    }
    Ok(())
}
