//! Zip archives as checkpoints use them: records that are stored or deflated, each once, none over another.

use std::fs::File;
use std::io::{BufReader, BufWriter, Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::Arc;

use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipArchive, ZipWriter};

use crate::input::{Backing, Fault, Input, Parsed, Segment, Window, malformed, refused};
use crate::{Error, Result};

/// A record's name and its bytes.
pub(crate) struct Record {
    pub(crate) name: String,
    pub(crate) segment: Segment,
}

/// Deflate cannot do better, so a larger claim is a lie.
const BEST_RATIO: u64 = 1032;

/// More records are no checkpoint.
const MOST_RECORDS: usize = 1 << 20;

fn broken(e: zip::result::ZipError) -> Fault {
    match e {
        zip::result::ZipError::Io(e) => e.into(),
        other => Fault::Malformed(format!("its zip archive: {other}")),
    }
}

pub(crate) fn records(input: &Arc<Input>) -> Parsed<Vec<Record>> {
    let window = BufReader::with_capacity(1 << 16, Window::new(input, 0..input.len));
    let mut zip = ZipArchive::new(window).map_err(broken)?;
    if zip.len() > MOST_RECORDS {
        return malformed(format!("its zip archive has {} records", zip.len()));
    }
    if zip.has_duplicate_names() {
        return malformed("two records of its zip archive have one name");
    }
    if zip.has_overlapping_files().map_err(broken)? {
        return malformed("records of its zip archive overlap");
    }
    let mut records = vec![];
    for i in 0..zip.len() {
        let file = zip.by_index_raw(i).map_err(broken)?;
        let name = file.name().map_err(broken)?.into_owned();
        if file.is_dir() {
            continue;
        }
        if file.encrypted() {
            return refused(format!("its record {name} is encrypted"));
        }
        let (len, compressed) = (file.size(), file.compressed_size());
        let Some(at) = file.data_start() else { return malformed(format!("its record {name} has no data")) };
        if at.checked_add(compressed).is_none_or(|end| end > input.len) {
            return malformed(format!("its record {name} reaches beyond the end of the file"));
        }
        let backing = match file.compression() {
            CompressionMethod::Stored if len == compressed => Backing::Stored { input: input.clone(), at },
            CompressionMethod::Deflated if len / BEST_RATIO <= compressed => {
                Backing::Deflated { input: input.clone(), at, compressed }
            }
            CompressionMethod::Stored | CompressionMethod::Deflated => {
                return malformed(format!("its record {name} claims {len} bytes, of which the file has {compressed}"));
            }
            other => return refused(format!("its record {name} is compressed by {other:?}: only deflate is read")),
        };
        let segment = Segment { backing, len, crc: Some((file.crc32(), name.clone())) };
        records.push(Record { name, segment });
    }
    Ok(records)
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
