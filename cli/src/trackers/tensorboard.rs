//! TensorBoard's event files: records of a length, a protocol buffer and their checksums.
//!
//! The framing is TFRecord's, the messages those of TensorFlow's `event.proto` and `summary.proto`; only the few fields
//! that scalars need are written.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use zoo_checkpoint::Folder;

use super::{Ended, Tracker};

/// The remainders of all bytes by Castagnoli's polynomial, its bits reversed.
const CASTAGNOLI: [u32; 256] = {
    let (mut table, mut byte) = ([0; 256], 0);
    while byte < 256 {
        let (mut remainder, mut bit) = (byte as u32, 0);
        while bit < 8 {
            remainder = (remainder >> 1) ^ if remainder & 1 == 1 { 0x82f6_3b78 } else { 0 };
            bit += 1;
        }
        table[byte] = remainder;
        byte += 1;
    }
    table
};

/// CRC-32C, which crc32fast does not have.
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc: u32, byte| (crc >> 8) ^ CASTAGNOLI[((crc ^ u32::from(*byte)) & 0xff) as usize])
}

/// Writes what happens in a run to a new event file of its directory.
pub(super) struct TensorBoard {
    file: BufWriter<File>,
    /// Seconds since 1970 when the file was begun, and the clock since then.
    began: (f64, Instant),
}

impl TensorBoard {
    pub(super) fn new(run: &Path) -> anyhow::Result<Self> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        // A run that is resumed within a second has another process.
        let name = format!("events.out.tfevents.{}.{}.zoo", now.as_secs(), std::process::id());
        let file = BufWriter::new(Folder::open(run)?.append(&name)?);
        let mut board = Self { file, began: (now.as_secs_f64(), Instant::now()) };
        board.record(0, &field(3, b"brain.Event:2"))?;
        Ok(board)
    }

    /// Writes an event with what it holds.
    fn record(&mut self, step: u64, content: &[u8]) -> std::io::Result<()> {
        let time = self.began.0 + self.began.1.elapsed().as_secs_f64();
        let mut event = [&[(1 << 3) | 1], &time.to_le_bytes()[..], &[2 << 3], &varint(step)].concat();
        event.extend_from_slice(content);
        let length = (event.len() as u64).to_le_bytes();
        self.file.write_all(&[&length[..], &masked(&length), &event, &masked(&event)].concat())
    }
}

impl Tracker for TensorBoard {
    fn scalars(&mut self, step: u64, values: &[(String, f64)]) -> std::io::Result<()> {
        let value = |(tag, v): &(String, f64)| {
            let simple = [&[(2 << 3) | 5], &(*v as f32).to_le_bytes()[..]].concat();
            field(1, &[field(1, tag.as_bytes()), simple].concat())
        };
        let summary: Vec<u8> = values.iter().flat_map(value).collect();
        self.record(step, &field(5, &summary))
    }

    /// Tells TensorBoard to forget what earlier files say from the next step on.
    fn cut(&mut self, step: u64) -> std::io::Result<()> {
        // SessionLog { status: START }
        self.record(step + 1, &field(7, &[1 << 3, 1]))
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.file.flush()
    }

    fn end(&mut self, _: Ended) -> std::io::Result<()> {
        self.flush()
    }
}

/// A field of bytes: its number with wire type 2, their length, they themselves.
fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    [&[(number << 3) | 2], &varint(bytes.len() as u64)[..], bytes].concat()
}

/// Seven bits a byte, the lowest first.
fn varint(mut v: u64) -> Vec<u8> {
    let mut bytes = vec![];
    while v >= 0x80 {
        bytes.push(v as u8 | 0x80);
        v >>= 7;
    }
    bytes.push(v as u8);
    bytes
}

/// TFRecord's masked CRC-32C.
fn masked(bytes: &[u8]) -> [u8; 4] {
    crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_framed_and_checked() -> anyhow::Result<()> {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!((varint(1), varint(300)), (vec![1], vec![0xac, 2]));
        let dir = tempfile::tempdir()?;
        let mut board = TensorBoard::new(dir.path())?;
        board.scalars(300, &[("loss/train".into(), 1.), ("rate".into(), 0.1)])?;
        board.scalars(300, &[("loss/valid".into(), 0.5), ("valid/rmse".into(), 2.)])?;
        board.flush()?;
        let entry = std::fs::read_dir(dir.path())?.next().ok_or_else(|| std::io::Error::other("no file"))?;
        let bytes = std::fs::read(entry?.path())?;
        let (mut at, mut events) = (0, vec![]);
        while at < bytes.len() {
            let length = u64::from_le_bytes(bytes[at..at + 8].try_into()?) as usize;
            assert_eq!(bytes[at + 8..at + 12], masked(&bytes[at..at + 8]));
            let event = &bytes[at + 12..at + 12 + length];
            assert_eq!(bytes[at + 12 + length..at + 16 + length], masked(event));
            events.push(event.to_vec());
            at += 16 + length;
        }
        assert_eq!(events.len(), 3);
        assert!(events[0].ends_with(b"brain.Event:2"));
        // Step 300, then the summary.
        assert_eq!(events[1][9..12], [16, 0xac, 2]);
        let rmse = [&b"\x0a\x0avalid/rmse\x15"[..], &2f32.to_le_bytes()].concat();
        assert!(events[2].windows(rmse.len()).any(|w| w == rmse));
        Ok(())
    }
}
