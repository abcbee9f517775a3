//! Workbooks of Excel and its like, and files of Parquet: rows of text, as a CSV file would have them.

use std::collections::BTreeMap;
use std::io::Cursor;
use std::panic::{AssertUnwindSafe, catch_unwind};

use calamine::{Data, Reader, Sheets, open_workbook_auto_from_rs};
use jiff::{Span, Timestamp, civil::Date};
use parquet::basic::{LogicalType, TimeUnit};
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::Field;

use super::table::{MOST_ROWS, Row};
use crate::{Error, Result};

/// A table of a file, by its name if it has one.
pub(super) type Named = (Option<String>, Vec<Row>);

/// Cells of a sheet.
const MOST_CELLS: usize = 50_000_000;

fn row(line: u64, fields: impl Iterator<Item = String>) -> Row {
    let fields: Vec<String> = fields.map(|f| f.trim().to_string()).collect();
    Row { line, fields: fields.into(), broken: false }
}

/// What a reader of another crate says, also where it gives up by a panic.
fn caught<T>(
    what: &str,
    refused: &dyn Fn(String) -> Error,
    read: impl FnOnce() -> std::result::Result<T, String>,
) -> Result<T> {
    match catch_unwind(AssertUnwindSafe(read)) {
        Ok(Ok(found)) => Ok(found),
        Ok(Err(e)) => Err(refused(format!("it is {what} that is not read: {e}"))),
        Err(_) => Err(refused(format!("it is {what}, and damaged"))),
    }
}

/// The sheets of a workbook that have more than one row.
pub(super) fn workbook(bytes: Vec<u8>, refused: &dyn Fn(String) -> Error) -> Result<Vec<Named>> {
    let sheets = caught("a workbook", refused, || {
        let mut book = open_workbook_auto_from_rs(Cursor::new(bytes)).map_err(|e| e.to_string())?;
        let mut sheets = vec![];
        for name in book.sheet_names() {
            // Pages of charts are no sheets of cells.
            if let Some(rows) = sheet(&mut book, &name)?.filter(|rows| rows.len() > 1) {
                sheets.push((Some(name), rows));
            }
        }
        Ok(sheets)
    })?;
    if sheets.is_empty() { Err(refused("it is a workbook without rows".into())) } else { Ok(sheets) }
}

/// The rows of a sheet, as far as cells have something in them: a sheet may claim a million rows and name two cells.
fn sheet(book: &mut Sheets<Cursor<Vec<u8>>>, name: &str) -> std::result::Result<Option<Vec<Row>>, String> {
    let mut cells: BTreeMap<u32, Vec<(u32, String)>> = BTreeMap::new();
    let mut n = 0;
    let mut add = |at: (u32, u32), text: String| {
        n += 1;
        if !text.is_empty() && at.1 < 20_000 {
            cells.entry(at.0).or_default().push((at.1, text));
        }
        if n > MOST_CELLS { Err(format!("sheet {name} has more than {MOST_CELLS} cells")) } else { Ok(()) }
    };
    match book {
        Sheets::Xlsx(book) => {
            let Ok(mut reader) = book.worksheet_cells_reader(name) else { return Ok(None) };
            while let Some(cell) = reader.next_cell().map_err(|e| e.to_string())? {
                add(cell.get_position(), text(&Data::from(cell.get_value().clone())))?;
            }
        }
        Sheets::Xlsb(book) => {
            let Ok(mut reader) = book.worksheet_cells_reader(name) else { return Ok(None) };
            while let Some(cell) = reader.next_cell().map_err(|e| e.to_string())? {
                add(cell.get_position(), text(&Data::from(cell.get_value().clone())))?;
            }
        }
        // The others have limits of their own.
        book => {
            let Ok(range) = book.worksheet_range(name) else { return Ok(None) };
            let (first_row, first_column) = range.start().unwrap_or_default();
            for (r, c, cell) in range.used_cells() {
                add((first_row + r as u32, first_column + c as u32), text(cell))?;
            }
        }
    }
    let first = cells.values().flatten().map(|(column, _)| *column).min().unwrap_or(0);
    let rows = cells.into_iter().map(|(r, cells)| {
        let mut fields = vec![String::new(); cells.iter().map(|(c, _)| (c - first) as usize + 1).max().unwrap_or(0)];
        cells.into_iter().for_each(|(c, text)| fields[(c - first) as usize] = text);
        row(u64::from(r) + 1, fields.into_iter())
    });
    Ok(Some(rows.collect()))
}

fn text(cell: &Data) -> String {
    match cell {
        Data::Empty | Data::Error(_) => String::new(),
        Data::DateTime(at) if at.is_datetime() => {
            let (year, month, day, h, m, s, _) = at.to_ymd_hms_milli();
            match (h, m, s) {
                _ if at.as_f64() < 1. => format!("{h:02}:{m:02}:{s:02}"),
                (0, 0, 0) => format!("{year:04}-{month:02}-{day:02}"),
                _ => format!("{year:04}-{month:02}-{day:02} {h:02}:{m:02}:{s:02}"),
            }
        }
        other => other.to_string(),
    }
}

/// The rows of a Parquet file, its header first.
pub(super) fn parquet(bytes: Vec<u8>, refused: &dyn Fn(String) -> Error) -> Result<Vec<Named>> {
    caught("a Parquet file", refused, || {
        let wrong = |e: parquet::errors::ParquetError| match e.to_string() {
            e if e.contains("Disabled feature") => format!("{e} (write it with snappy or zstd)"),
            e => e,
        };
        let reader = SerializedFileReader::new(bytes::Bytes::from(bytes)).map_err(wrong)?;
        let about = reader.metadata().file_metadata();
        let fields = about.schema().get_fields();
        if let Some(field) = fields.iter().find(|f| !f.is_primitive()) {
            return Err(format!("column {} is none of single values", field.name()));
        }
        let n = about.num_rows();
        if n < 0 || n as u64 > MOST_ROWS as u64 {
            return Err(format!("it has {n} rows, of which at most {MOST_ROWS} are read"));
        }
        let nanoseconds = |k: usize| {
            let logical = fields[k].get_basic_info().logical_type_ref();
            matches!(logical, Some(LogicalType::Timestamp(time)) if time.unit == TimeUnit::NANOS)
        };
        let mut rows = vec![row(1, fields.iter().map(|f| f.name().to_string()))];
        for (record, line) in reader.get_row_iter(None).map_err(wrong)?.zip(2..) {
            let record = record.map_err(wrong)?;
            let fields = record.get_column_iter().enumerate().map(|(k, (_, field))| match field {
                Field::Long(v) if nanoseconds(k) => moment(Timestamp::from_nanosecond(i128::from(*v)).ok()),
                field => field_text(field),
            });
            rows.push(row(line, fields));
            if rows.len() > MOST_ROWS {
                return Err(format!("it has more than {MOST_ROWS} rows"));
            }
        }
        Ok(vec![(None, rows)])
    })
}

/// A time in UTC, as Parquet has them.
fn moment(at: Option<Timestamp>) -> String {
    at.map_or(String::new(), |at| at.strftime("%Y-%m-%d %H:%M:%S").to_string())
}

fn field_text(field: &Field) -> String {
    match field {
        Field::Null => String::new(),
        Field::Str(text) => text.clone(),
        Field::Float(v) => v.to_string(),
        Field::Double(v) => v.to_string(),
        Field::Date(days) => {
            let day = Span::new().try_days(*days).and_then(|span| Date::constant(1970, 1, 1).checked_add(span));
            day.map_or(String::new(), |day| day.to_string())
        }
        Field::TimestampMillis(v) => moment(Timestamp::from_millisecond(*v).ok()),
        Field::TimestampMicros(v) => moment(Timestamp::from_microsecond(*v).ok()),
        other => other.to_string(),
    }
}
