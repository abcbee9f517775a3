//! Bytes of files, read where they are needed and never trusted to be there.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use crate::{Error, Result};

/// A header of an array is not longer.
const HEAD: u64 = (1 << 16) + 12;

/// Bytes that are read or written at once.
pub(crate) const CHUNK: usize = 1 << 20;

/// Why a file could not be understood, before its path is known.
#[derive(Debug)]
pub(crate) enum Fault {
    Io(io::Error),
    /// The bytes break the format.
    Malformed(String),
    /// The bytes may be fine, but this is not read: what it is, and the way out.
    Refused(String),
}

impl From<io::Error> for Fault {
    fn from(e: io::Error) -> Self {
        match e.kind() {
            io::ErrorKind::UnexpectedEof => Self::Malformed("it ends too early".into()),
            io::ErrorKind::InvalidData => Self::Malformed(e.to_string()),
            _ => Self::Io(e),
        }
    }
}

impl From<Error> for Fault {
    /// Without the path, which is added when all is known.
    fn from(e: Error) -> Self {
        match e {
            Error::Io { source, .. } => source.into(),
            Error::Damaged { reason, .. } | Error::Malformed { reason, .. } => Self::Malformed(reason),
            other => Self::Refused(other.to_string()),
        }
    }
}

pub(crate) type Parsed<T> = std::result::Result<T, Fault>;

pub(crate) fn malformed<T>(reason: impl Into<String>) -> Parsed<T> {
    Err(Fault::Malformed(reason.into()))
}

pub(crate) fn refused<T>(reason: impl Into<String>) -> Parsed<T> {
    Err(Fault::Refused(reason.into()))
}

/// What the structure of a file may cost, in bytes of memory and in steps of work: 64 for each of its bytes, and 64 MB at
/// least. It is spent where something is copied or gone through, whatever the file says of its size.
#[derive(Clone, Debug)]
pub(crate) struct Budget(Rc<Cell<u64>>);

impl Budget {
    pub(crate) fn of(file_bytes: u64) -> Self {
        Self(Rc::new(Cell::new(file_bytes.saturating_mul(64).max(64 << 20))))
    }

    pub(crate) fn spend(&self, n: usize) -> Parsed<()> {
        match self.0.get().checked_sub(n as u64) {
            Some(left) => {
                self.0.set(left);
                Ok(())
            }
            None => malformed("what it describes takes more memory or time than a file of its size may"),
        }
    }
}

/// Opens a regular file to read: nothing is waited for, and nothing without an end is read. `expected` says what the file is
/// to be.
///
/// # Errors
/// It is something else, or the operating system refuses.
pub fn regular(path: &Path, expected: &str) -> Result<File> {
    // Opening a FIFO would wait for somebody to write into it.
    let kind = std::fs::metadata(path).map_err(Error::io(path))?;
    if !kind.is_file() {
        let reason = if kind.is_dir() { "it is a folder" } else { "it is not a regular file" };
        return Err(Error::Refused { path: path.into(), reason: format!("{reason}; expected {expected}") });
    }
    File::open(path).map_err(Error::io(path))
}

/// The bytes of a regular file of at most `most` bytes.
///
/// # Errors
/// As [`regular`]; or it is longer.
pub fn bytes_of(path: &Path, expected: &str, most: u64) -> Result<Vec<u8>> {
    limited(regular(path, expected)?, path, most)
}

/// The bytes of a file of at most `most`.
pub(crate) fn limited(file: File, path: &Path, most: u64) -> Result<Vec<u8>> {
    let len = file.metadata().map_err(Error::io(path))?.len();
    if len > most {
        let reason = format!("it has {len} bytes, of which at most {most} are read");
        return Err(Error::Refused { path: path.into(), reason });
    }
    let mut bytes = room(len as usize).map_err(Error::io(path))?;
    // No more than it says: what the system makes up as it is read has no length.
    file.take(len).read_to_end(&mut bytes).map_err(Error::io(path))?;
    Ok(bytes)
}

/// A regular file, read at any place by any thread.
///
/// Files are read, not mapped: a mapped file that somebody shortens ends the process.
#[derive(Debug)]
pub(crate) struct Input {
    file: Arc<File>,
    /// Where it begins in the file, if it is a part of one.
    base: u64,
    pub(crate) path: PathBuf,
    pub(crate) len: u64,
}

impl Input {
    pub(crate) fn open(path: &Path) -> Result<Arc<Self>> {
        Self::of(regular(path, "a checkpoint file")?, path.into())
    }

    /// An open file, by the path that messages have.
    pub(crate) fn of(file: File, path: PathBuf) -> Result<Arc<Self>> {
        let len = file.metadata().map_err(Error::io(&path))?.len();
        Ok(Arc::new(Self { file: file.into(), base: 0, path, len }))
    }

    /// A part of it as a file of its own; `None` if it reaches beyond the end.
    pub(crate) fn part(&self, range: Range<u64>) -> Option<Arc<Self>> {
        let len = range.end.checked_sub(range.start).filter(|_| range.end <= self.len)?;
        Some(Arc::new(Self { file: self.file.clone(), base: self.base + range.start, path: self.path.clone(), len }))
    }

    /// Fills `buffer` from the bytes at `at`.
    pub(crate) fn read_exact_at(&self, buffer: &mut [u8], at: u64) -> io::Result<()> {
        let at = self.base.checked_add(at).ok_or(io::ErrorKind::UnexpectedEof)?;
        #[cfg(unix)]
        return std::os::unix::fs::FileExt::read_exact_at(&*self.file, buffer, at);
        #[cfg(windows)]
        {
            let mut done = 0;
            while done < buffer.len() {
                match std::os::windows::fs::FileExt::seek_read(&*self.file, &mut buffer[done..], at + done as u64)? {
                    0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                    n => done += n,
                }
            }
            Ok(())
        }
        #[cfg(not(any(unix, windows)))]
        {
            let _ = (buffer, at);
            Err(io::Error::new(io::ErrorKind::Unsupported, "this system does not read files at a place"))
        }
    }

    /// The bytes of a range, which lies within the file: no more memory is asked for than the file has.
    pub(crate) fn bytes(&self, range: Range<u64>) -> io::Result<Vec<u8>> {
        if range.end > self.len || range.start > range.end {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut buffer = room((range.end - range.start) as usize)?;
        buffer.resize((range.end - range.start) as usize, 0);
        self.read_exact_at(&mut buffer, range.start)?;
        Ok(buffer)
    }
}

/// An empty buffer for `bytes`, or an error where the system has not that much memory.
pub(crate) fn room(bytes: usize) -> io::Result<Vec<u8>> {
    let mut buffer = Vec::new();
    buffer.try_reserve_exact(bytes).map_err(|_| io::Error::other(format!("no memory for {bytes} bytes")))?;
    Ok(buffer)
}

/// Part of a file as a stream.
pub(crate) struct Window {
    input: Arc<Input>,
    start: u64,
    at: u64,
    end: u64,
}

impl Window {
    pub(crate) fn new(input: &Arc<Input>, range: Range<u64>) -> Self {
        Self { input: input.clone(), start: range.start, at: range.start, end: range.end.min(input.len) }
    }

    pub(crate) fn position(&self) -> u64 {
        self.at - self.start
    }

    pub(crate) fn remaining(&self) -> u64 {
        self.end.saturating_sub(self.at)
    }
}

impl Read for Window {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = (buffer.len() as u64).min(self.remaining()) as usize;
        self.input.read_exact_at(&mut buffer[..n], self.at)?;
        self.at += n as u64;
        Ok(n)
    }
}

impl Seek for Window {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = match to {
            SeekFrom::Start(n) => self.start.checked_add(n),
            SeekFrom::End(n) => self.end.checked_add_signed(n),
            SeekFrom::Current(n) => self.at.checked_add_signed(n),
        };
        self.at = at.filter(|a| *a >= self.start).ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.position())
    }
}

/// Where the bytes of a [`Segment`] are.
#[derive(Clone, Debug)]
pub(crate) enum Backing {
    Stored {
        input: Arc<Input>,
        at: u64,
    },
    Deflated {
        input: Arc<Input>,
        at: u64,
        compressed: u64,
    },
    Memory(Arc<[u8]>),
    /// Pieces one behind the other, and the records with checksums that they are in.
    Pieces(Arc<[Piece]>, Arc<[Segment]>),
}

/// Bytes of a file that are a piece of a [`Segment`].
#[derive(Clone, Debug)]
pub(crate) struct Piece {
    /// Where it begins in the segment; the next one begins where it ends.
    pub(crate) start: u64,
    pub(crate) input: Arc<Input>,
    pub(crate) at: u64,
}

/// Pieces as a stream.
struct Joined<'a> {
    pieces: &'a [Piece],
    at: u64,
    end: u64,
}

impl Read for Joined<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let next = self.pieces.partition_point(|piece| piece.start <= self.at);
        let (Some(piece), true) = (next.checked_sub(1).and_then(|i| self.pieces.get(i)), self.at < self.end) else {
            return Ok(0);
        };
        let end = self.pieces.get(next).map_or(self.end, |piece| piece.start.min(self.end));
        let n = (buffer.len() as u64).min(end - self.at) as usize;
        piece.input.read_exact_at(&mut buffer[..n], piece.at + (self.at - piece.start))?;
        self.at += n as u64;
        Ok(n)
    }
}

/// One run of bytes that tensors are views of: a storage, an array, the whole buffer of a file.
#[derive(Clone, Debug)]
pub(crate) struct Segment {
    pub(crate) backing: Backing,
    pub(crate) len: u64,
    /// Its checksum (CRC-32), where the format has one, and the record's name.
    pub(crate) crc: Option<(u32, String)>,
}

impl Segment {
    pub(crate) fn stored(input: &Arc<Input>, range: Range<u64>) -> Self {
        let len = range.end - range.start;
        Self { backing: Backing::Stored { input: input.clone(), at: range.start }, len, crc: None }
    }

    /// Hands the bytes of `range` to `sink` in pieces whose lengths are multiples of `unit`. If that is all of them, their
    /// checksum is compared.
    pub(crate) fn stream(&self, range: Range<u64>, unit: usize, sink: Sink) -> Result<()> {
        if let (Backing::Pieces(_, records), true) = (&self.backing, range == (0..self.len)) {
            records.iter().try_for_each(|record| record.stream(0..record.len, 1, &mut |_| Ok(())))?;
        }
        let path = self.path().to_path_buf();
        let piece = (CHUNK / unit).max(1) * unit;
        // What lies before, such as the header of an array, is read along so that the checksum can be compared.
        let skipped = range.start.min(HEAD);
        let all = self.crc.is_some() && range.end == self.len && range.start == skipped;
        let mut hash = all.then(crc32fast::Hasher::new);
        let from = if all { 0 } else { range.start };
        let mut reader = self.reader(&(from..range.end)).map_err(Error::io(&path))?;
        if let Some(h) = &mut hash {
            let mut before = vec![0; skipped as usize];
            reader.read_exact(&mut before).map_err(|_| self.damaged("its data end too early or do not decompress"))?;
            h.update(&before);
        }
        let mut left = range.end - range.start;
        let mut buffer = vec![0; piece.min(left as usize)];
        while left > 0 {
            let n = left.min(piece as u64) as usize;
            reader.read_exact(&mut buffer[..n]).map_err(|e| match e.kind() {
                io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput => {
                    self.damaged("its data end too early or do not decompress")
                }
                _ => Error::io(&path)(e),
            })?;
            if let Some(h) = &mut hash {
                h.update(&buffer[..n]);
            }
            sink(&buffer[..n])?;
            left -= n as u64;
        }
        match hash.map(crc32fast::Hasher::finalize).zip(self.crc.as_ref()) {
            Some((found, (crc, _))) if found != *crc => Err(self.damaged("its checksum (CRC-32) is wrong")),
            _ => Ok(()),
        }
    }

    fn damaged(&self, what: &str) -> Error {
        let name = self.crc.as_ref().map_or(String::new(), |(_, name)| format!("record {name}: "));
        Error::Damaged { path: self.path().into(), reason: format!("{name}{what}") }
    }

    /// The file that it is in.
    pub(crate) fn file(&self) -> Option<&Path> {
        match &self.backing {
            Backing::Stored { input, .. } | Backing::Deflated { input, .. } => Some(&input.path),
            Backing::Pieces(pieces, _) => pieces.first().map(|piece| piece.input.path.as_path()),
            Backing::Memory(_) => None,
        }
    }

    fn path(&self) -> &Path {
        self.file().unwrap_or(Path::new("memory"))
    }

    fn reader(&self, range: &Range<u64>) -> io::Result<Box<dyn Read + '_>> {
        if range.end > self.len {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(match &self.backing {
            Backing::Stored { input, at } => Box::new(Window::new(input, at + range.start..at + range.end)),
            Backing::Pieces(pieces, _) => Box::new(Joined { pieces, at: range.start, end: range.end }),
            Backing::Memory(bytes) => Box::new(&bytes[range.start as usize..range.end as usize]),
            Backing::Deflated { input, at, compressed } => {
                let packed = io::BufReader::with_capacity(1 << 16, Window::new(input, *at..at + compressed));
                let mut plain = flate2::bufread::DeflateDecoder::new(packed);
                io::copy(&mut (&mut plain).take(range.start), &mut io::sink())?;
                Box::new(plain)
            }
        })
    }

    /// Whether reading this range compares the checksum, or there is none.
    pub(crate) fn is_checked_by(&self, range: &Range<u64>) -> bool {
        if let Backing::Pieces(..) = self.backing {
            return *range == (0..self.len);
        }
        self.crc.is_none() || range.end == self.len && range.start <= HEAD
    }

    /// Whether there is a checksum to compare.
    pub(crate) fn has_checksum(&self) -> bool {
        self.crc.is_some() || matches!(self.backing, Backing::Pieces(..))
    }

    /// The bytes of a range in memory.
    pub(crate) fn bytes(&self, range: Range<u64>) -> Result<Vec<u8>> {
        let mut all = room((range.end - range.start) as usize).map_err(Error::io(self.path()))?;
        self.stream(range, 1, &mut |piece| {
            all.extend_from_slice(piece);
            Ok(())
        })?;
        Ok(all)
    }
}

/// What takes bytes in pieces.
pub(crate) type Sink<'a> = &'a mut dyn FnMut(&[u8]) -> Result<()>;
