//! What a price file is by its bytes, and its text.

use std::io::Read;
use std::path::Path;

use flate2::read::MultiGzDecoder;
use zoo_checkpoint::text::{Text, Undecoded, decode};

use super::columns::{listed, quoted};
use super::table::{self, Fault, Sheet};
use crate::{Error, Reading, Result};

/// Bytes of a file, and of what was compressed in it.
const MOST: u64 = 1 << 30;

/// What files of other formats begin with, and the way out.
const OTHERS: &[(&[u8], &str)] = &[
    (b"BZh", "it is compressed by bzip2: bunzip2 it"),
    (b"\xfd7zXZ", "it is compressed by xz: unxz it"),
    (b"\x28\xb5\x2f\xfd", "it is compressed by zstd: unzstd it"),
    (b"7z\xbc\xaf", "it is a 7z archive: unpack it"),
    (b"Rar!", "it is a RAR archive: unpack it"),
    (b"\x89HDF", "it is an HDF5 file: save it as CSV (pandas.read_hdf(…).to_csv(…))"),
    (b"ARROW1", "it is a Feather or Arrow file: save it as CSV (pandas.read_feather(…).to_csv(…))"),
    (b"SQLite format 3", "it is a SQLite database: save its table as CSV (sqlite3 -header -csv)"),
    (b"%PDF", "it is a PDF"),
    (b"\x80\x04\x95", PICKLE),
    (b"\x80\x05\x95", PICKLE),
    (b"RDX2\n", R_DATA),
    (b"RDX3\n", R_DATA),
    (b"\xff\xfe\0\0", UTF_32),
    (b"\0\0\xfe\xff", UTF_32),
    (b"version https://git-lfs", "it is the pointer of Git LFS, not the file: run git lfs pull"),
];
const PICKLE: &str = "it is a pickle, which is not read: save it as CSV (pandas.read_pickle(…).to_csv(…))";
const R_DATA: &str = "it is a data file of R: save it there by write.csv";
const UTF_32: &str = "it is text in UTF-32: convert it to UTF-8 (iconv -f utf-32 -t utf-8)";
const OLE: &[u8] = b"\xd0\xcf\x11\xe0";

/// What a text is that is no table.
fn no_table(text: &str) -> Option<String> {
    let start: String = text.trim_start().chars().take(400).collect();
    let lower = start.to_ascii_lowercase();
    if lower.starts_with("<?xml") || lower.starts_with("<table") {
        return Some("it is XML or a table of HTML, not CSV: open it in a spreadsheet and save it as CSV".into());
    }
    if ["<!doctype", "<html", "<head", "<body", "<div"].iter().any(|tag| lower.starts_with(tag)) {
        let title = lower.find("<title>").map(|at| start[at + 7..].split('<').next().unwrap_or_default().trim());
        let title = title.filter(|t| !t.is_empty()).map_or(String::new(), |t| format!(" ({})", quoted(t)));
        return Some(format!(
            "it is a web page{title}, not a table: the download was answered by a page (a login, a limit of requests?)"
        ));
    }
    if start.starts_with('{') || start.starts_with("[{") || start.starts_with("[[") {
        let what = "it is JSON, not CSV: save it as CSV (pandas.read_json(…).to_csv(…)), if it is no message";
        return Some(format!("{what}: {}", quoted(&start.split_whitespace().collect::<Vec<_>>().join(" "))));
    }
    None
}

/// The table of a price file, by what it is: text, perhaps compressed by gzip, or a workbook or Parquet file.
pub(super) fn sheet(path: &Path, how: &Reading) -> Result<Sheet> {
    let refused = |message: String| Error::Data { message: format!("{}: {message}", path.display()), advice: None };
    let mut bytes = zoo_checkpoint::bytes_of(path, "a price file", MOST).map_err(|e| match e {
        zoo_checkpoint::Error::Io { path, source } => Error::Io { path, source },
        e => Error::Data { message: e.to_string(), advice: None },
    })?;
    while bytes.starts_with(b"\x1f\x8b") {
        let mut inflated = vec![];
        let read = MultiGzDecoder::new(&bytes[..]).take(MOST + 1).read_to_end(&mut inflated);
        read.map_err(|e| refused(format!("it is compressed by gzip, and damaged: {e}")))?;
        if inflated.len() as u64 > MOST {
            return Err(refused(format!("it is compressed by gzip, and larger than {MOST} bytes without")));
        }
        bytes = inflated;
    }
    let fault = |Fault { line, unclear }: Fault| {
        let at = line.map_or(String::new(), |line| format!("line {line}: "));
        Error::Data { message: format!("{}: {at}{}", path.display(), unclear.message), advice: unclear.advice }
    };
    if let Some((_, what)) = OTHERS.iter().find(|(start, _)| bytes.starts_with(start)) {
        return Err(refused((*what).into()));
    }
    let has = |name: &[u8]| bytes.windows(name.len()).any(|w| w == name);
    let zip = bytes.starts_with(b"PK\x03\x04");
    let read: Option<Binary> = match () {
        () if bytes.starts_with(b"PAR1") => Some(parquet),
        () if bytes.starts_with(OLE) || zip && (has(b"xl/workbook") || has(b"opendocument.spreadsheet")) => {
            Some(workbook)
        }
        () => None,
    };
    if let Some(read) = read {
        return one_of(read(bytes, &refused)?, how).map_err(fault);
    }
    if zip {
        return Err(refused("it is a zip archive: unpack it".into()));
    }
    let Text { text, encoding } = decode(&bytes, &how.encoding).map_err(|undecoded: Undecoded| {
        let advice = how.encoding.is_empty().then_some(("encoding", "names it"));
        Error::Data { message: format!("{}: {undecoded}", path.display()), advice }
    })?;
    drop(bytes);
    if let Some(what) = no_table(&text) {
        return Err(refused(what));
    }
    let mut sheet = table::of_text(&text, how).map_err(fault)?;
    if encoding != "UTF-8" {
        let why = if how.encoding.is_empty() { "by its mark" } else { "as asked" };
        sheet.remarks.insert(0, format!("the file is read as {encoding}, {why}"));
    }
    Ok(sheet)
}

/// The table of prices among several: the one that is asked for by its name, or the first that is one.
fn one_of(tables: Vec<Named>, how: &Reading) -> std::result::Result<Sheet, Fault> {
    let names: Vec<String> = tables.iter().filter_map(|(name, _)| name.clone()).collect();
    let (mut found, mut fault) = (None, None);
    for (name, rows) in tables {
        let asked = name.as_ref().is_some_and(|name| name.eq_ignore_ascii_case(&how.symbol));
        if found.is_some() && !asked {
            continue;
        }
        match table::of_rows(rows, how) {
            Ok(sheet) => found = Some((name, Sheet { chosen: asked, ..sheet })),
            Err(e) => fault = fault.or(Some(e)),
        }
        if asked {
            break;
        }
    }
    match (found, fault) {
        (Some((Some(name), mut sheet)), _) if names.len() > 1 => {
            let all = listed(names.iter().map(String::as_str));
            sheet.remarks.insert(0, format!("sheet {name} is read, of {all}"));
            Ok(sheet)
        }
        (Some((_, sheet)), _) => Ok(sheet),
        (None, Some(fault)) => Err(fault),
        (None, None) => table::of_rows(vec![], how),
    }
}

/// Reads the tables of a file that is no text.
type Binary = fn(Vec<u8>, &dyn Fn(String) -> Error) -> Result<Vec<Named>>;

#[cfg(feature = "files")]
use super::binary::{Named, parquet, workbook};

#[cfg(not(feature = "files"))]
type Named = (Option<String>, Vec<table::Row>);

#[cfg(not(feature = "files"))]
fn parquet(_: Vec<u8>, refused: &dyn Fn(String) -> Error) -> Result<Vec<Named>> {
    Err(refused(format!("it is a Parquet file, {WITH_FILES} (pandas.read_parquet(…).to_csv(…))")))
}

#[cfg(not(feature = "files"))]
fn workbook(_: Vec<u8>, refused: &dyn Fn(String) -> Error) -> Result<Vec<Named>> {
    Err(refused(format!("it is a workbook of Excel, {WITH_FILES}")))
}

#[cfg(not(feature = "files"))]
const WITH_FILES: &str = "which is read with the feature files (released binaries have it): save it as CSV";
