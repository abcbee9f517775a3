//! Workbooks of Excel and its like, and files of Parquet: rows of text, as a CSV file would have them.

use std::io::Cursor;

use calamine::{Data, Reader, open_workbook_auto_from_rs};
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::Field;

use super::columns::listed;
use super::table::Row;
use crate::{Error, Result};

fn row(line: u64, fields: impl Iterator<Item = String>) -> Row {
    Row { line, fields: fields.map(|f| f.trim().to_string()).collect::<Vec<_>>().into() }
}

/// The rows of a workbook's first sheet with anything in it, and what is said of the others.
pub(super) fn workbook(bytes: Vec<u8>, refused: &dyn Fn(String) -> Error) -> Result<(Vec<Row>, Vec<String>)> {
    let wrong = |e: calamine::Error| refused(format!("it is a workbook, but no valid one: {e}"));
    let mut book = open_workbook_auto_from_rs(Cursor::new(bytes)).map_err(wrong)?;
    let mut sheets = vec![];
    for name in book.sheet_names() {
        let range = book.worksheet_range(&name).map_err(wrong)?;
        if range.height() > 1 {
            sheets.push((name, range));
        }
    }
    let Some((name, range)) = sheets.first() else { return Err(refused("it is a workbook without rows".into())) };
    let mut remarks = vec![];
    if sheets.len() > 1 {
        remarks.push(format!("sheet {name} is read, of {}", listed(sheets.iter().map(|(name, _)| name.as_str()))));
    }
    let first = u64::from(range.start().map_or(0, |(row, _)| row)) + 1;
    let rows = range.rows().zip(first..).map(|(cells, line)| row(line, cells.iter().map(cell)));
    Ok((rows.filter(|r| r.fields.iter().any(|f| !f.is_empty())).collect(), remarks))
}

fn cell(cell: &Data) -> String {
    match cell {
        Data::Empty | Data::Error(_) => String::new(),
        Data::DateTime(at) if at.is_datetime() => {
            let (year, month, day, h, m, s, _) = at.to_ymd_hms_milli();
            match (h, m, s) {
                (0, 0, 0) => format!("{year:04}-{month:02}-{day:02}"),
                _ => format!("{year:04}-{month:02}-{day:02} {h:02}:{m:02}:{s:02}"),
            }
        }
        other => other.to_string(),
    }
}

/// The rows of a Parquet file, its header first.
pub(super) fn parquet(bytes: Vec<u8>, refused: &dyn Fn(String) -> Error) -> Result<(Vec<Row>, Vec<String>)> {
    let wrong = |e: parquet::errors::ParquetError| refused(format!("it is a Parquet file that is not read: {e}"));
    let reader = SerializedFileReader::new(bytes::Bytes::from(bytes)).map_err(wrong)?;
    let names = reader.metadata().file_metadata().schema().get_fields().iter().map(|f| f.name().to_string());
    let mut rows = vec![row(1, names)];
    for (record, line) in reader.get_row_iter(None).map_err(wrong)?.zip(2..) {
        let record = record.map_err(wrong)?;
        let fields = record.get_column_iter().map(|(_, field)| field_text(field));
        rows.push(row(line, fields));
    }
    Ok((rows, vec![]))
}

fn field_text(field: &Field) -> String {
    match field {
        Field::Null => String::new(),
        Field::Str(text) => text.clone(),
        Field::Float(v) => v.to_string(),
        Field::Double(v) => v.to_string(),
        // Numbers since 1970, told apart by their size as in other files.
        Field::TimestampMillis(v) | Field::TimestampMicros(v) => v.to_string(),
        other => other.to_string(),
    }
}
