//! Files that hold several series, one below the other.

use std::collections::{HashMap, HashSet};

use jiff::civil::Date;

use super::FEW;
use super::columns::{Columns, Header, Kind, Unclear, listed};
use super::names::{Field, words};
use super::table::Row;
use crate::Reading as How;

/// Values of a column that are looked at for a message, or for names of series.
const MOST_VALUES: usize = 10_000;
/// The symbol that takes all rows for one series.
const ALL: &str = "*";
/// Rows of a block that may be a series of its own.
const BLOCK: usize = 20;

/// The different values of a column, in the order in which they come, as far as there are so many.
fn values(rows: &[Row], column: usize) -> Vec<&str> {
    let mut seen = HashSet::new();
    let all = rows.iter().map(|r| r.get(column)).filter(|v| !v.is_empty());
    all.filter(|v| seen.insert(*v)).take(MOST_VALUES).collect()
}

fn several(header: &str, values: &[&str]) -> Unclear {
    let message = format!("several series, told apart by column {header}: {}", listed(values.iter().copied()));
    Unclear::new(message, "symbol", "chooses one, * takes all for one")
}

/// Leaves the rows of the series that is asked for.
///
/// # Errors
/// Several series of which none is asked for, or one that is not there.
pub(super) fn choose(headers: &[Header], columns: &Columns, rows: &mut Vec<Row>, how: &How) -> Result<(), Unclear> {
    if how.symbol == ALL {
        return Ok(());
    }
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
    let mut order = named.clone();
    if how.symbol_column.is_empty() {
        let text = |k: &usize| !named.contains(k) && !used(columns).contains(k) && is_text(rows, *k);
        order.extend((0..headers.len()).filter(text));
    }
    let is = |value: &str| value.eq_ignore_ascii_case(&how.symbol);
    let its = order.iter().copied().find(|&k| rows.iter().any(|r| is(r.get(k)))).filter(|_| !how.symbol.is_empty());
    if let Some(at) = its {
        rows.retain(|r| is(r.get(at)));
    } else if !how.symbol.is_empty() {
        let wanted = words(&how.symbol);
        let close = &headers[columns.adjusted.unwrap_or(columns.close)];
        if close.readings.iter().all(|r| r.ticker != wanted) && words(&close.text) != wanted {
            let there: Vec<&str> = order.iter().flat_map(|&k| values(rows, k)).collect();
            let message = match there.is_empty() {
                true => format!("no series {}: the file does not say whose prices it has", how.symbol),
                false => format!("no series {}; it has {}", how.symbol, listed(there.into_iter())),
            };
            return Err(Unclear { message, advice: None, absent: false });
        }
    }
    for k in named.into_iter().filter(|k| Some(*k) != its) {
        match &values(rows, k)[..] {
            [] | [_] => {}
            // A column that was named decides alone.
            _ if its.is_some() && !how.symbol_column.is_empty() => {}
            // Names of series recur: numbers of rows do not.
            all if how.symbol_column.is_empty() && rows.len() < 2 * all.len() && all.len() > 2 => {}
            all if its.is_some() => {
                let (header, all) = (&headers[k].text, listed(all.iter().copied()));
                let message = format!("several series called {}, told apart by column {header}: {all}", how.symbol);
                return Err(Unclear::new(message, "symbol_column", "names the column that decides"));
            }
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
    Kind::of(rows.iter().take(BLOCK * BLOCK).map(|r| r.get(column)), None) == Kind::Text
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
        // Names of series recur.
        if all.len() < 2 || rows.len() < 3 * all.len() {
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
        if again > FEW && 10 * others >= 9 * again {
            return Err(several(&headers[k].text, &all));
        }
        let changes = rows.windows(2).filter(|w| w[0].get(k) != w[1].get(k)).count();
        if again <= FEW && changes + 1 == all.len() && rows.len() >= BLOCK * all.len() {
            remarks.push(format!(
                "column {} is {} in blocks: if these are several series, symbol chooses one",
                headers[k].text,
                listed(all.into_iter())
            ));
        }
    }
    Ok(())
}
