//! Zip archives as checkpoints use them: a file is exactly one archive. Every byte belongs, once, to a record, to the
//! directory or to its end: readers that look for the directory in other ways find the same one.
//!
//! <https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT>, which the numbers in comments refer to.

use std::collections::HashSet;
use std::fs::File;
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::Arc;

use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

use crate::input::{Backing, Input, Parsed, Segment, malformed, refused};
use crate::{Error, Result};

/// A record's name and its bytes.
pub(crate) struct Record {
    pub(crate) name: String,
    pub(crate) segment: Segment,
}

/// Deflate cannot do better, so a larger claim is a lie.
const BEST_RATIO: u64 = 1032;

/// More records are no checkpoint.
const MOST_RECORDS: u64 = 1 << 20;

/// Bits of a record's flags (4.4.4): its sizes follow its data; its name is UTF-8.
const SIZES_FOLLOW: u16 = 1 << 3;
const UTF8: u16 = 1 << 11;
/// Levels of deflate, which a reader need not know.
const LEVELS: u16 = 0b110;

/// Numbers of a header, one after the other, as far as it goes.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn number(&mut self, bytes: usize) -> Parsed<u64> {
        let Some((head, rest)) = self.0.split_at_checked(bytes) else {
            return malformed("its zip archive: a header ends too early");
        };
        self.0 = rest;
        Ok(head.iter().rev().fold(0, |n, b| n << 8 | u64::from(*b)))
    }

    fn u16(&mut self) -> Parsed<u16> {
        Ok(self.number(2)? as u16)
    }

    fn u32(&mut self) -> Parsed<u64> {
        self.number(4)
    }

    fn u64(&mut self) -> Parsed<u64> {
        self.number(8)
    }
}

impl<'a> Fields<'a> {
    fn bytes(&mut self, n: usize) -> Parsed<&'a [u8]> {
        let Some((head, rest)) = self.0.split_at_checked(n) else {
            return malformed("its zip archive: a header ends too early");
        };
        self.0 = rest;
        Ok(head)
    }
}

/// Where the directory is, and of how many records.
struct Directory {
    at: u64,
    len: u64,
    records: u64,
}

/// A record, as the directory has it.
struct Entry {
    name: String,
    flags: u16,
    method: u16,
    crc: u64,
    compressed: u64,
    len: u64,
    at: u64,
}

/// The records of a file that is one archive, in the order of its directory.
pub(crate) fn records(input: &Arc<Input>) -> Parsed<Vec<Record>> {
    let directory = directory(input)?;
    let bytes = input.bytes(directory.at..directory.at + directory.len)?;
    let mut fields = Fields(&bytes);
    let mut entries = vec![];
    for _ in 0..directory.records {
        entries.push(entry(&mut fields)?);
    }
    if !fields.0.is_empty() {
        return malformed(format!("its zip archive: {} bytes of its directory are no record", fields.0.len()));
    }
    if entries.first().is_some_and(|first| first.name.ends_with('/')) {
        return malformed("its zip archive begins with a folder");
    }
    let mut names = HashSet::new();
    if let Some(twice) = entries.iter().find(|e| !names.insert(e.name.as_str())) {
        return malformed(format!("its zip archive: two records are called {}", twice.name));
    }
    let starts = follow(input, &entries, directory.at)?;
    let all = entries.into_iter().zip(starts).filter(|(entry, _)| !entry.name.ends_with('/'));
    all.map(|(entry, start)| record(input, entry, start)).collect()
}

/// What is wrong where an archive is not all of its file.
fn not_its_own(bytes: u64) -> String {
    format!("its zip archive: {bytes} bytes of the file are not its own (two files saved into one?)")
}

/// The end record, which the file ends with; the one of 64 bits, if there is one; and what both say of the directory.
fn directory(input: &Input) -> Parsed<Directory> {
    const END: u64 = 22;
    const LOCATOR: u64 = 20;
    const END64: u64 = 56;
    let Some(end) = input.len.checked_sub(END) else { return malformed("its zip archive: it ends too early") };
    // 4.3.16
    let bytes = input.bytes(end..input.len)?;
    let mut fields = Fields(&bytes);
    if fields.bytes(4)? != b"PK\x05\x06" {
        return malformed(
            "its zip archive does not end with its end record: it was cut short, or something was put behind it",
        );
    }
    let disks = [fields.u16()?, fields.u16()?];
    let counts = [u64::from(fields.u16()?), u64::from(fields.u16()?)];
    let (len, at) = (fields.u32()?, fields.u32()?);
    let mut found = Directory { at, len, records: counts[1] };
    let mut next = end;
    let locator = end.checked_sub(LOCATOR).map(|at| input.bytes(at..end)).transpose()?.unwrap_or_default();
    if let Some(locator) = locator.strip_prefix(b"PK\x06\x07") {
        // 4.3.15
        let mut fields = Fields(locator);
        let (disk, at64, disks) = (fields.u32()?, fields.u64()?, fields.u32()?);
        if let Some(before) = at64.checked_add(END64 + LOCATOR).and_then(|own| end.checked_sub(own)).filter(|n| *n > 0)
        {
            return malformed(not_its_own(before));
        }
        if disk != 0 || disks > 1 || at64.checked_add(END64 + LOCATOR) != Some(end) {
            return malformed("its zip archive: its end record of 64 bits is not before the other");
        }
        // 4.3.14
        let bytes = input.bytes(at64..at64 + END64)?;
        let mut fields = Fields(&bytes);
        let right = fields.bytes(4)? == b"PK\x06\x06" && fields.u64()? == END64 - 12;
        let (_versions, disks) = (fields.u32()?, fields.u64()?);
        let counts64 = [fields.u64()?, fields.u64()?];
        let wide = Directory { len: fields.u64()?, at: fields.u64()?, records: counts64[1] };
        // A number that is too large for 32 or 16 bits has all of them set there.
        let same = |narrow: u64, wide: u64, most: u64| narrow == most || narrow == wide;
        let agree = same(found.at, wide.at, u32::MAX.into())
            && same(found.len, wide.len, u32::MAX.into())
            && same(found.records, wide.records, u16::MAX.into());
        if !right || disks != 0 || counts64[0] != counts64[1] || !agree {
            return malformed("its zip archive: its two end records contradict each other");
        }
        (found, next) = (wide, at64);
    }
    let comment = fields.u16()?;
    if disks != [0, 0] || counts[0] != counts[1] || comment != 0 {
        return malformed("its zip archive is in several parts, or has a comment: neither belongs into a checkpoint");
    }
    match found.at.checked_add(found.len) {
        Some(end) if end == next => {}
        Some(end) if end < next => {
            return malformed(not_its_own(next - end));
        }
        _ => return malformed("its zip archive: its directory does not lie before its end record"),
    }
    if found.records > MOST_RECORDS {
        return malformed(format!("its zip archive has {} records", found.records));
    }
    Ok(found)
}

/// Fields that a record may have beside its name (4.5): sizes of 64 bits, padding by PyTorch and by the crate zip, times and
/// owners. Others could give it another name or other contents to some readers.
const EXTRA: [u16; 7] = [0x0001, 0x4246, 0xa11e, 0x000a, 0x5455, 0x5855, 0x7875];

/// The sizes of 64 bits among a record's further fields.
fn sizes_of_64_bits(extra: &[u8]) -> Parsed<Option<&[u8]>> {
    let mut fields = Fields(extra);
    let mut wide = None;
    while !fields.0.is_empty() {
        let (id, len) = (fields.u16()?, fields.u16()?);
        let body = fields.bytes(len.into())?;
        if !EXTRA.contains(&id) {
            return malformed(format!("its zip archive: a record has a field {id:#06x}, which no checkpoint needs"));
        }
        if id == 1 && wide.replace(body).is_some() {
            return malformed("its zip archive: a record has two sizes of 64 bits");
        }
    }
    Ok(wide)
}

/// A number whose 32 bits are all set stands in the field of 64 bits (4.5.3).
fn widen(numbers: &mut [&mut u64], wide: Option<&[u8]>) -> Parsed<()> {
    let Some(wide) = wide else { return Ok(()) };
    let mut fields = Fields(wide);
    for number in numbers.iter_mut().filter(|n| ***n == u64::from(u32::MAX)) {
        **number = fields.u64()?;
    }
    match fields.0 {
        [] => Ok(()),
        _ => malformed("its zip archive: a record has a size of 64 bits beside one of 32"),
    }
}

/// A record's entry in the directory (4.3.12).
fn entry(fields: &mut Fields) -> Parsed<Entry> {
    if fields.bytes(4)? != b"PK\x01\x02" {
        return malformed("its zip archive: its directory holds something that is no record");
    }
    fields.u32()?;
    let (flags, method) = (fields.u16()?, fields.u16()?);
    fields.u32()?;
    let (crc, mut compressed, mut len) = (fields.u32()?, fields.u32()?, fields.u32()?);
    let [name, extra, comment] = [fields.u16()?, fields.u16()?, fields.u16()?].map(usize::from);
    let disk = fields.u16()?;
    fields.u16()?;
    let attributes = fields.u32()?;
    let mut at = fields.u32()?;
    let name = text(fields.bytes(name)?, flags)?;
    widen(&mut [&mut len, &mut compressed, &mut at], sizes_of_64_bits(fields.bytes(extra)?)?)?;
    // Some readers take a record for a folder by this bit, others by its name; a folder holds nothing.
    const FOLDER: u64 = 0x10;
    let is_folder = name.ends_with('/');
    if attributes & FOLDER != 0 && !is_folder || is_folder && [len, compressed] != [0, 0] {
        return malformed(format!("its zip archive: its record {name} is both a file and a folder"));
    }
    if disk != 0 || comment != 0 {
        return malformed(format!("its zip archive: its record {name} has a comment, or is in another part"));
    }
    Ok(Entry { name, flags, method, crc, compressed, len, at })
}

fn text(bytes: &[u8], flags: u16) -> Parsed<String> {
    match std::str::from_utf8(bytes) {
        // Other readers take a name without the flag for one of another code page.
        // Other readers end a name at a zero, or take a backslash for a slash.
        Ok(name) if name.chars().any(|c| c.is_control() || c == '\\') => {
            malformed("its zip archive: the name of a record has a control character or a backslash")
        }
        Ok(name) if flags & UTF8 != 0 || name.is_ascii() => Ok(name.to_string()),
        _ => malformed("its zip archive: the name of a record is no UTF-8"),
    }
}

/// Where the data of each record begin. The records must follow each other from the beginning of the file to its directory,
/// and each must say of itself what the directory says.
fn follow(input: &Input, entries: &[Entry], end: u64) -> Parsed<Vec<u64>> {
    let mut order: Vec<usize> = (0..entries.len()).collect();
    order.sort_by_key(|i| entries[*i].at);
    let mut starts = vec![0; entries.len()];
    let mut at = 0;
    for (k, &i) in order.iter().enumerate() {
        let (entry, next) = (&entries[i], order.get(k + 1).map_or(end, |n| entries[*n].at));
        if entry.at != at {
            return malformed(match entry.at.checked_sub(at) {
                Some(gap) => format!("its zip archive: the {gap} bytes before record {} are no record's", entry.name),
                None => format!("its zip archive: record {} lies in another", entry.name),
            });
        }
        starts[i] = local(input, entry, next)?;
        at = next;
    }
    match at == end {
        true => Ok(starts),
        false => malformed(format!("its zip archive: {} bytes before its directory are no record's", end - at)),
    }
}

/// Where the data of a record begin (4.3.7), which end, with the sizes that may follow them (4.3.9), at `next`.
fn local(input: &Input, entry: &Entry, next: u64) -> Parsed<u64> {
    const HEADER: u64 = 30;
    let name = &entry.name;
    let contradicts = || malformed(format!("its zip archive: record {name} is not what the directory says of it"));
    let within = |from: u64, len: u64| from.checked_add(len).filter(|end| *end <= next).map(|end| from..end);
    let Some(header) = within(entry.at, HEADER) else { return contradicts() };
    let bytes = input.bytes(header.clone())?;
    let mut fields = Fields(&bytes);
    let signature = fields.bytes(4)?;
    fields.u16()?;
    let (flags, method) = (fields.u16()?, fields.u16()?);
    fields.u32()?;
    let (crc, mut compressed, mut len) = (fields.u32()?, fields.u32()?, fields.u32()?);
    let (name_len, extra_len) = (usize::from(fields.u16()?), u64::from(fields.u16()?));
    let Some(rest) = within(header.end, name_len as u64 + extra_len) else { return contradicts() };
    let (start, bytes) = (rest.end, input.bytes(rest)?);
    let (own_name, extra) = bytes.split_at(name_len);
    let wide = sizes_of_64_bits(extra)?;
    // PyTorch writes a large record before it knows its sizes: zeros, and a field for what may become large, among it the
    // place of the record itself.
    let later = flags & SIZES_FOLLOW != 0 && [len, compressed] == [0, 0];
    match wide {
        Some(wide) if later => {
            let mut fields = Fields(wide);
            let sizes = matches!(wide.len(), 16 | 24);
            let known = |n: u64, value: u64| n == 0 || n == value;
            let right = !sizes || known(fields.u64()?, entry.len) && known(fields.u64()?, entry.compressed);
            if !right || !fields.0.is_empty() && fields.u64()? != entry.at || !fields.0.is_empty() {
                return contradicts();
            }
        }
        wide => widen(&mut [&mut len, &mut compressed], wide)?,
    }
    if signature != b"PK\x03\x04" || own_name != name.as_bytes() || (flags, method) != (entry.flags, entry.method) {
        return contradicts();
    }
    let Some(data) = within(start, entry.compressed) else { return contradicts() };
    let known = [crc, compressed, len] == [entry.crc, entry.compressed, entry.len];
    if flags & SIZES_FOLLOW == 0 {
        return if known && data.end == next { Ok(start) } else { contradicts() };
    }
    // The writer did not know them yet, or only that they may be large.
    let unknown = crc == 0 && [compressed, len].iter().all(|n| matches!(*n, 0 | 0xffff_ffff));
    let sizes = input.bytes(data.end..next.min(data.end + 32))?;
    let sizes = sizes.strip_prefix(b"PK\x07\x08").filter(|s| matches!(s.len(), 12 | 20)).unwrap_or(&sizes);
    let mut fields = Fields(sizes);
    let width = match sizes.len() {
        12 => 4,
        20 => 8,
        _ => return contradicts(),
    };
    let follow = [fields.u32()?, fields.number(width)?, fields.number(width)?];
    let agree = follow == [entry.crc, entry.compressed, entry.len];
    if (known || unknown) && agree { Ok(start) } else { contradicts() }
}

fn record(input: &Arc<Input>, entry: Entry, at: u64) -> Parsed<Record> {
    let Entry { name, flags, method, crc, compressed, len, .. } = entry;
    if flags & !(SIZES_FOLLOW | UTF8 | LEVELS) != 0 {
        return refused(format!("its record {name} is encrypted, or packed in a way that is not read"));
    }
    let backing = match method {
        0 if len == compressed => Backing::Stored { input: input.clone(), at },
        8 if len / BEST_RATIO <= compressed => Backing::Deflated { input: input.clone(), at, compressed },
        0 | 8 => return malformed(format!("its record {name} claims {len} bytes, of which the file has {compressed}")),
        other => return refused(format!("its record {name} is compressed by method {other}: only deflate is read")),
    };
    let segment = Segment { backing, len, crc: Some((crc as u32, name.clone())) };
    Ok(Record { name, segment })
}

/// A file that reports its first failure and is silent afterwards: an unfinished archive is finished when it is dropped, and
/// says on stderr that it cannot be.
struct Quiet<'a> {
    file: BufWriter<&'a mut File>,
    failed: bool,
}

impl Quiet<'_> {
    fn first<T>(&mut self, done: std::io::Result<T>, otherwise: T) -> std::io::Result<T> {
        match done {
            Err(_) if self.failed => Ok(otherwise),
            done => {
                self.failed |= done.is_err();
                done
            }
        }
    }
}

impl Write for Quiet<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let done = self.file.write(bytes);
        self.first(done, bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        let done = self.file.flush();
        self.first(done, ())
    }
}

impl Seek for Quiet<'_> {
    fn seek(&mut self, to: SeekFrom) -> std::io::Result<u64> {
        let done = self.file.seek(to);
        self.first(done, 0)
    }
}

/// Writes records that are stored as they are, one after the other.
pub(crate) struct Archive<'a> {
    zip: ZipWriter<Quiet<'a>>,
    path: &'a Path,
}

impl<'a> Archive<'a> {
    pub(crate) fn new(file: &'a mut File, path: &'a Path) -> Self {
        Self { zip: ZipWriter::new(Quiet { file: BufWriter::with_capacity(1 << 20, file), failed: false }), path }
    }

    /// A record of `len` bytes, its data at a multiple of 64 bytes as PyTorch has it.
    pub(crate) fn record(
        &mut self,
        name: &str,
        len: u64,
        fill: impl FnOnce(&mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()>,
    ) -> Result<()> {
        let path = self.path;
        // No time of writing: the same content is the same bytes.
        let options = SimpleFileOptions::DEFAULT
            .compression_method(CompressionMethod::Stored)
            .large_file(len >= u64::from(u32::MAX))
            .with_alignment(64);
        let failed = |e: zip::result::ZipError| Error::io(path)(e.into());
        self.zip.start_file(name, options).map_err(failed)?;
        fill(&mut |piece| self.zip.write_all(piece).map_err(Error::io(path)))
    }

    pub(crate) fn finish(self) -> Result<()> {
        let path = self.path;
        let mut file = self.zip.finish().map_err(|e| Error::io(path)(e.into()))?;
        file.flush().map_err(Error::io(path))
    }
}
