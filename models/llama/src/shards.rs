//! Tokens on disk, of texts that memory does not hold: a folder of arrays of integers (`.npy`), and `tokens.json` beside them, which names
//! them and has the tokenizer. Windows are read where they lie; documents end behind the tokens that end texts.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use zoo_checkpoint::{Dtype, TensorView, replace, sha256_of};
use zoo_training::text::read;
use zoo_training::{Encoded, Error, Result};

use crate::corpus::{Line, files, is_lines};
use crate::{Tokens, TokensFile};

/// The file that makes a folder one of tokens; it is written last.
const INDEX: &str = "tokens.json";
/// Bytes of an index, and of a line of a document.
const LARGEST: u64 = 1 << 28;
/// Bytes of a text that are tokenized at a time.
const PIECE: usize = 1 << 24;
/// Bytes up to which a text is read at once, in whatever encoding.
const WHOLE: u64 = 1 << 26;

/// What `tokens.json` says.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Index {
    version: u32,
    /// In the order of their texts.
    shards: Vec<Shard>,
    tokenizer: TokensFile,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Shard {
    file: String,
    tokens: usize,
    /// Of text, that they stand for.
    bytes: u64,
    sha256: String,
}

/// A folder of tokens.
pub(crate) struct Shards {
    folder: PathBuf,
    parts: Vec<Part>,
    tokenizer: Tokens,
    /// Bytes of text.
    bytes: u64,
    /// The index as it was read: it has the hashes of the others.
    index: Vec<u8>,
}

struct Part {
    source: zoo_checkpoint::Source,
    /// Of its first token.
    start: usize,
    tokens: usize,
}

impl Shards {
    /// Whether a folder is one of tokens.
    pub(crate) fn are_in(folder: &Path) -> bool {
        folder.join(INDEX).is_file()
    }

    /// Opens a folder. Its tokens are not read.
    ///
    /// # Errors
    /// Files that are missing, damaged, or no arrays of as many integers as the index says.
    pub(crate) fn open(folder: &Path) -> Result<Self> {
        let path = folder.join(INDEX);
        let index = zoo_checkpoint::bytes_of(&path, "an index of tokens", LARGEST)?;
        let refuse = |file: &Path, why: String| Error::Data(format!("{}: {why}", file.display()));
        let said: Index = serde_json::from_slice(&index).map_err(|e| refuse(&path, e.to_string()))?;
        if said.version != 1 {
            return Err(refuse(&path, format!("version {} is not known here", said.version)));
        }
        let (mut parts, mut start, mut bytes) = (vec![], 0usize, 0u64);
        for Shard { file, tokens, bytes: of_shard, .. } in &said.shards {
            let path = folder.join(file);
            // A name, and no path that leads elsewhere.
            if Path::new(file).file_name() != Some(file.as_ref()) {
                return Err(refuse(&folder.join(INDEX), format!("{file:?} is no name of a file beside it")));
            }
            let source = zoo_checkpoint::open(&path)?;
            match source.tensors.as_slice() {
                [array] if array.shape == [*tokens] && matches!(array.dtype, Dtype::U16 | Dtype::U32) => {}
                _ => return Err(refuse(&path, format!("no array of {tokens} integers of 16 or 32 bits"))),
            }
            parts.push(Part { source, start, tokens: *tokens });
            start = start.checked_add(*tokens).ok_or_else(|| refuse(&path, "too many tokens".into()))?;
            bytes = bytes.saturating_add(*of_shard);
        }
        let tokenizer = Tokens::new(said.tokenizer).map_err(|e| refuse(&path, e.to_string()))?;
        Ok(Self { folder: folder.into(), parts, tokenizer, bytes, index })
    }

    /// Tokens in all.
    pub(crate) fn len(&self) -> usize {
        self.parts.last().map_or(0, |part| part.start + part.tokens)
    }

    /// Bytes of text that they stand for.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// What made them.
    pub(crate) fn tokenizer(&self) -> &Tokens {
        &self.tokenizer
    }

    /// Differs where tokens differ.
    pub(crate) fn index(&self) -> &[u8] {
        &self.index
    }

    /// `n` tokens from `start` on, fewer at the end.
    ///
    /// # Errors
    /// A file that cannot be read, or a number that is no token.
    pub(crate) fn read(&self, start: usize, n: usize) -> Result<Vec<u32>> {
        let end = start.saturating_add(n).min(self.len());
        let mut all = Vec::with_capacity(end.saturating_sub(start));
        let mut part = self.parts.partition_point(|part| part.start + part.tokens <= start);
        while start + all.len() < end {
            let Part { source, start: first, tokens } = &self.parts[part];
            let from = start + all.len() - first;
            let len = (tokens - from).min(end - first - from);
            let view = TensorView::whole(&source.tensors[0]).narrow(0, from, len);
            let view = view.map_err(|why| Error::Data(format!("{}: {why}", source.path.display())))?;
            source.stream(&view, Dtype::U32, &mut |piece| {
                all.extend(piece.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])));
                Ok(())
            })?;
            part += 1;
        }
        match all.iter().find(|id| **id as usize >= self.tokenizer.len()) {
            None => Ok(all),
            Some(id) => {
                let (folder, known) = (self.folder.display(), self.tokenizer.len());
                Err(Error::Data(format!("{folder}: {id} is none of {known} tokens: write the folder anew")))
            }
        }
    }
}

/// What is written as shards.
struct Writer<'a> {
    folder: &'a Path,
    tokens: &'a Tokens,
    /// Tokens of a shard.
    most: usize,
    ids: Vec<u32>,
    /// Bytes of text of `ids`.
    bytes: u64,
    shards: Vec<Shard>,
}

impl Writer<'_> {
    /// Adds a piece of a text.
    fn text(&mut self, text: &str) -> Result<()> {
        for id in self.tokens.encode_long(text)? {
            self.push(id)?;
        }
        Ok(())
    }

    /// Ends a document.
    fn end(&mut self) -> Result<()> {
        match self.tokens.file().ends.first() {
            Some(end) => self.push(*end),
            None => Ok(()),
        }
    }

    fn push(&mut self, id: u32) -> Result<()> {
        self.ids.push(id);
        self.bytes += self.tokens.bytes_of(id) as u64;
        if self.ids.len() == self.most { self.flush() } else { Ok(()) }
    }

    /// Writes a shard.
    fn flush(&mut self) -> Result<()> {
        if self.ids.is_empty() {
            return Ok(());
        }
        let file = format!("tokens-{:05}.npy", self.shards.len());
        let narrow = self.tokens.len() <= 1 << 16;
        let mut content = header(if narrow { "<u2" } else { "<u4" }, self.ids.len());
        match narrow {
            true => content.extend(self.ids.iter().flat_map(|id| (*id as u16).to_le_bytes())),
            false => content.extend(self.ids.iter().flat_map(|id| id.to_le_bytes())),
        }
        replace(&self.folder.join(&file), |f| f.write_all(&content))?;
        let sha256 = sha256_of(&content);
        self.shards.push(Shard { file, tokens: self.ids.len(), bytes: self.bytes, sha256 });
        (self.ids, self.bytes) = (vec![], 0);
        Ok(())
    }
}

/// What a `.npy` of so many integers begins with (version 1.0 of the format).
fn header(descr: &str, n: usize) -> Vec<u8> {
    const START: &[u8] = b"\x93NUMPY\x01\x00";
    const ALIGNED: usize = 64;
    let mut text = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({n},), }}");
    let before = START.len() + 2;
    text.push_str(&" ".repeat((before + text.len() + 1).next_multiple_of(ALIGNED) - before - text.len() - 1));
    text.push('\n');
    [START, &(text.len() as u16).to_le_bytes(), text.as_bytes()].concat()
}

/// Writes the tokens of a text, of the texts of a folder, or of a JSONL file with `text`, as shards of `most` tokens into `folder`, which is
/// new or empty. Texts are read piece by piece; those of more than 64 MiB have to be UTF-8.
///
/// # Errors
/// Texts that cannot be read; a folder that has files.
pub(crate) fn encode(path: &Path, encoding: &str, tokens: &Tokens, folder: &Path, most: usize) -> Result<Encoded> {
    std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
    if std::fs::read_dir(folder).map_err(Error::io(folder))?.next().is_some() {
        return Err(Error::Usage(format!("{}: the folder has files already: name a new one", folder.display())));
    }
    let all = if path.is_dir() { files(path)? } else { vec![path.to_path_buf()] };
    let mut writer = Writer { folder, tokens, most: most.max(1), ids: vec![], bytes: 0, shards: vec![] };
    let mut remarks = vec![];
    for file in &all {
        let length = std::fs::metadata(file).map_err(Error::io(file))?.len();
        if is_lines(file) {
            lines(file, &mut writer)?;
        } else if length > WHOLE && encoding.is_empty() {
            long(file, &mut writer)?;
        } else {
            let text = read(file, encoding, "")?;
            remarks.extend(text.remarks.iter().map(|remark| format!("{}: {remark}", text.origin)));
            writer.text(&text.text)?;
            writer.end()?;
        }
    }
    writer.flush()?;
    if writer.shards.is_empty() {
        return Err(Error::Data(format!("{}: there is no text", path.display())));
    }
    let index = Index { version: 1, shards: writer.shards, tokenizer: tokens.file().clone() };
    let (n, bytes) = index.shards.iter().fold((0, 0), |(n, bytes), shard| (n + shard.tokens, bytes + shard.bytes));
    let content = serde_json::to_vec(&index).map_err(|e| Error::Data(e.to_string()))?;
    replace(&folder.join(INDEX), |f| f.write_all(&content))?;
    Ok(Encoded { tokens: n, bytes, files: index.shards.len(), remarks })
}

/// A document a line.
fn lines(file: &Path, writer: &mut Writer) -> Result<()> {
    let mut reader = BufReader::new(File::open(file).map_err(Error::io(file))?);
    for number in 1usize.. {
        let refuse = |why: String| Error::Data(format!("{}: line {number}: {why}", file.display()));
        let Some(line) = line(&mut reader, file)? else { break };
        if line.trim_ascii().is_empty() {
            continue;
        }
        match serde_json::from_slice(&line).map_err(|e| refuse(e.to_string()))? {
            Line { text: Some(text), prompt: None, response: None, messages: None } => {
                writer.text(&text)?;
                writer.end()?;
            }
            _ => {
                let way = "conversations are learnt from the file itself (zoo train --data)";
                return Err(refuse(format!("expected text alone: {way}")));
            }
        }
    }
    Ok(())
}

/// The next line, with what ends it.
fn line(reader: &mut impl BufRead, file: &Path) -> Result<Option<Vec<u8>>> {
    let mut line = vec![];
    let n = std::io::Read::take(reader, LARGEST).read_until(b'\n', &mut line).map_err(Error::io(file))?;
    match n as u64 {
        0 => Ok(None),
        LARGEST => Err(Error::Data(format!("{}: a line of {LARGEST} bytes or more is no text", file.display()))),
        _ => Ok(Some(line)),
    }
}

/// A text that is not read at once: UTF-8, in pieces that end behind lines.
fn long(file: &Path, writer: &mut Writer) -> Result<()> {
    let mut reader = BufReader::with_capacity(1 << 20, File::open(file).map_err(Error::io(file))?);
    let mut piece = String::new();
    let mut at = 0u64;
    while let Some(line) = line(&mut reader, file)? {
        let text = std::str::from_utf8(&line).map_err(|e| {
            let at = at + e.valid_up_to() as u64;
            Error::Data(format!("{}: no UTF-8 at byte {at}: convert the text first", file.display()))
        })?;
        let text = if at == 0 { text.trim_start_matches('\u{feff}') } else { text };
        at += line.len() as u64;
        match text.strip_suffix("\r\n") {
            Some(text) => {
                piece.push_str(text);
                piece.push('\n');
            }
            None => piece.push_str(text),
        }
        if piece.len() >= PIECE {
            writer.text(&piece)?;
            piece.clear();
        }
    }
    writer.text(&piece)?;
    writer.end()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_hold_the_tokens_of_texts_and_give_any_part_of_them() -> Result<()> {
        let dir = tempfile::tempdir().map_err(Error::io(Path::new("temporary")))?;
        let dir = dir.path();
        let texts = dir.join("texts");
        let write = |name: &str, text: &str| {
            let path = texts.join(name);
            std::fs::write(&path, text).map_err(Error::io(&path))
        };
        std::fs::create_dir(&texts).map_err(Error::io(&texts))?;
        write("a.txt", "one two\nthree 🦀 four\n")?;
        write("b.jsonl", "{\"text\": \"five six\"}\n\n{\"text\": \"seven\"}\n")?;
        let tokens = Tokens::train(["one two three four five six seven\n".repeat(50).as_str()], 290)?;
        let folder = dir.join("tokens");
        let said = encode(&texts, "", &tokens, &folder, 7)?;
        let expected: Vec<u32> = ["one two\nthree 🦀 four\n", "five six", "seven"]
            .iter()
            .flat_map(|text| tokens.encode(text, false).unwrap_or_default().into_iter().chain([0]))
            .collect();
        assert_eq!((said.tokens, said.files), (expected.len(), expected.len().div_ceil(7)));
        assert_eq!(said.bytes as usize, "one two\nthree 🦀 four\nfive sixseven".len());
        let shards = Shards::open(&folder)?;
        assert_eq!((shards.len(), shards.bytes()), (said.tokens, said.bytes));
        for start in 0..=expected.len() {
            for n in [0, 1, 6, 7, 8, 20, 1000] {
                let end = expected.len().min(start + n);
                assert_eq!(shards.read(start, n)?, expected[start..end], "{start} {n}");
            }
        }
        // The same text again, in a folder that is there, or with a shard cut off.
        assert!(encode(&texts, "", &tokens, &folder, 7).is_err());
        let shard = folder.join("tokens-00001.npy");
        let bytes = std::fs::read(&shard).map_err(Error::io(&shard))?;
        std::fs::write(&shard, &bytes[..bytes.len() - 2]).map_err(Error::io(&shard))?;
        assert!(Shards::open(&folder).is_err());
        Ok(())
    }
}
