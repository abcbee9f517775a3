//! What reads and writes a format.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use crate::archive::Record;
use crate::input::{Input, Parsed};
use crate::outline::{Outline, Streams};
use crate::{Dtype, Format, Result, Source};

/// What is known of a file before it is opened in a format.
pub(crate) struct Probe<'a> {
    /// Its first bytes, at most 512.
    pub(crate) start: &'a [u8],
    /// Its length.
    pub(crate) len: u64,
    /// What it holds, if it is a zip archive.
    pub(crate) records: Option<&'a [Record]>,
}

/// Reads and writes a format.
pub(crate) trait Codec: Sync {
    /// What it is like.
    fn format(&self) -> Format;

    /// Whether a file is of this format, by what it begins with or holds.
    fn sniff(&self, probe: &Probe) -> bool;

    /// Reads the directory of a file that [`sniff`](Codec::sniff) took; `records` are those of a zip archive.
    fn open(&self, input: &Arc<Input>, records: Vec<Record>) -> Parsed<Source>;

    /// Whether it has elements of this type.
    fn holds(&self, dtype: Dtype) -> bool;

    /// Why tensors as these cannot be in one file, if they cannot.
    fn refuses(&self, outline: &Outline) -> Option<String> {
        let _ = outline;
        None
    }

    /// Fills an open file; element types and names were checked.
    fn write(&self, file: &mut File, path: &Path, outline: &Outline, streams: Streams) -> Result<()>;
}
