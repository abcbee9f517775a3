//! Tokens on disk, of texts that memory does not hold: a folder of arrays of integers (`.npy`), and `zoo-tokens.json` beside them, which names
//! them and has the tokenizer. Windows are read where they lie. The highest bit of an integer marks the first token of a document.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use zoo_checkpoint::{Dtype, Source, TensorView, npy_head, replace, sha256_of};
use zoo_training::text::read;
use zoo_training::{Encoded, Error, Result};

use crate::corpus::{Line, MARK, files, is_lines, without_line};
use crate::{Tokens, TokensFile};

/// The file that makes a folder one of tokens; it is written last.
const INDEX: &str = "zoo-tokens.json";
/// The version of the index.
const VERSION: u64 = 1;
/// Bytes of an index, and of a line of a document.
const LARGEST: u64 = 1 << 28;
/// Bytes of a text that are tokenized at a time.
const PIECE: usize = 1 << 24;
/// Bytes up to which a text is read at once, in whatever encoding.
const WHOLE: u64 = 1 << 26;

/// What `zoo-tokens.json` says.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Index {
    version: u64,
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
    /// Some of them, open, by number.
    open: Mutex<Vec<(usize, Arc<Source>)>>,
    tokenizer: Tokens,
    /// Bytes of text.
    bytes: u64,
    /// The index as it was read: it has the hashes that the others had when they were written.
    index: Vec<u8>,
}

struct Part {
    path: PathBuf,
    sha256: String,
    /// Whether that was compared.
    compared: AtomicBool,
    dtype: Dtype,
    /// Of its first token.
    start: usize,
    tokens: usize,
}

/// Files that are open at a time.
const OPEN: usize = 64;

/// Tokens as they are read: number, and whether a document begins with it.
pub(crate) type Read = Vec<(u32, bool)>;

impl Shards {
    /// Whether a folder is one of tokens.
    pub(crate) fn are_in(folder: &Path) -> bool {
        !folder.as_os_str().is_empty() && folder.join(INDEX).is_file()
    }

    /// Opens a folder. Its tokens are not read.
    ///
    /// # Errors
    /// Files that are missing, or no arrays of as many integers as the index says.
    pub(crate) fn open(folder: &Path) -> Result<Self> {
        let path = folder.join(INDEX);
        let index = zoo_checkpoint::bytes_of(&path, "an index of tokens", LARGEST)?;
        let refuse = |file: &Path, why: String| Error::Data(format!("{}: {why}", file.display()));
        let said: Value = serde_json::from_slice(&index).map_err(|e| refuse(&path, e.to_string()))?;
        if let Some(version) = said.get("version").and_then(Value::as_u64).filter(|version| *version != VERSION) {
            return Err(refuse(&path, format!("version {version} is not known here: use a newer program")));
        }
        let said: Index = serde_json::from_value(said).map_err(|e| refuse(&path, e.to_string()))?;
        let (mut parts, mut start, mut bytes) = (vec![], 0usize, 0u64);
        for Shard { file, tokens, bytes: of_shard, sha256 } in &said.shards {
            let path = folder.join(file);
            // A name, and no path that leads elsewhere.
            if Path::new(file).file_name() != Some(file.as_ref()) {
                return Err(refuse(&folder.join(INDEX), format!("{file:?} is no name of a file beside it")));
            }
            let dtype = match zoo_checkpoint::open(&path)?.tensors.as_slice() {
                [array] if array.shape == [*tokens] && matches!(array.dtype, Dtype::U16 | Dtype::U32) => array.dtype,
                _ => return Err(refuse(&path, format!("no array of {tokens} integers of 16 or 32 bits"))),
            };
            let compared = AtomicBool::new(false);
            parts.push(Part { path: path.clone(), sha256: sha256.clone(), compared, dtype, start, tokens: *tokens });
            start = start.checked_add(*tokens).ok_or_else(|| refuse(&path, "too many tokens".into()))?;
            bytes = bytes.saturating_add(*of_shard);
        }
        let tokenizer = Tokens::new(said.tokenizer).map_err(|e| refuse(&path, e.to_string()))?;
        Ok(Self { folder: folder.into(), parts, open: Mutex::default(), tokenizer, bytes, index })
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

    /// What `zoo-tokens.json` says, with the hashes of the files as they were written.
    pub(crate) fn index(&self) -> &[u8] {
        &self.index
    }

    /// A part, open. Where it is read for the first time, all of it is, and compared with its hash.
    fn source(&self, part: usize) -> Result<Arc<Source>> {
        let Part { path, sha256, compared, .. } = &self.parts[part];
        if !compared.load(Ordering::Relaxed) {
            if zoo_checkpoint::sha256(path)? != *sha256 {
                let reason = "it has other tokens than were written: write the folder anew by zoo tokenizer encode";
                return Err(Error::Data(format!("{}: {reason}", path.display())));
            }
            compared.store(true, Ordering::Relaxed);
        }
        let mut open = self.open.lock().unwrap_or_else(|e| e.into_inner());
        if let Some((_, source)) = open.iter().find(|(number, _)| *number == part) {
            return Ok(source.clone());
        }
        let source = Arc::new(zoo_checkpoint::open(path)?);
        if open.len() == OPEN {
            open.remove(0);
        }
        open.push((part, source.clone()));
        Ok(source)
    }

    /// `n` tokens from `start` on, fewer at the end.
    ///
    /// # Errors
    /// A file that cannot be read, or a number that is no token.
    pub(crate) fn read(&self, start: usize, n: usize) -> Result<Read> {
        let end = start.saturating_add(n).min(self.len());
        let mut all = Read::with_capacity(end.saturating_sub(start));
        let mut part = self.parts.partition_point(|part| part.start + part.tokens <= start);
        while start + all.len() < end {
            let Part { dtype, start: first, tokens, .. } = &self.parts[part];
            let (source, first_of_document) = (self.source(part)?, highest(*dtype));
            let from = start + all.len() - first;
            let len = (tokens - from).min(end - first - from);
            let view = TensorView::whole(&source.tensors[0]).narrow(0, from, len);
            let view = view.map_err(|why| Error::Data(format!("{}: {why}", source.path.display())))?;
            source.stream(&view, Dtype::U32, &mut |piece| {
                let numbers = piece.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]));
                all.extend(numbers.map(|n| (n & !first_of_document, n & first_of_document != 0)));
                Ok(())
            })?;
            part += 1;
        }
        match all.iter().find(|(id, _)| *id as usize >= self.tokenizer.len()) {
            None => Ok(all),
            Some((id, _)) => {
                let (folder, known) = (self.folder.display(), self.tokenizer.len());
                Err(Error::Data(format!("{folder}: {id} is none of {known} tokens: write the folder anew")))
            }
        }
    }
}

/// The bit that marks the first token of a document.
fn highest(dtype: Dtype) -> u32 {
    if dtype == Dtype::U16 { 1 << 15 } else { 1 << 31 }
}

/// What is written as shards.
struct Writer<'a> {
    folder: &'a Path,
    tokens: &'a Tokens,
    /// Tokens of a shard.
    most: usize,
    ids: Read,
    /// Bytes of text of `ids`.
    bytes: u64,
    shards: Vec<Shard>,
    /// Whether the next token begins a document.
    begins: bool,
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
        if let Some(end) = self.tokens.file().ends.first() {
            self.push(*end)?;
        }
        self.begins = true;
        Ok(())
    }

    fn push(&mut self, id: u32) -> Result<()> {
        self.ids.push((id, std::mem::take(&mut self.begins)));
        self.bytes += self.tokens.bytes_of(id) as u64;
        if self.ids.len() == self.most { self.flush() } else { Ok(()) }
    }

    /// Writes a shard.
    fn flush(&mut self) -> Result<()> {
        if self.ids.is_empty() {
            return Ok(());
        }
        let file = format!("tokens-{:05}.npy", self.shards.len());
        let dtype = if self.tokens.len() <= 1 << 15 { Dtype::U16 } else { Dtype::U32 };
        let mut content = npy_head(dtype, &[self.ids.len()]);
        let numbers = self.ids.iter().map(|(id, first)| id | if *first { highest(dtype) } else { 0 });
        match dtype {
            Dtype::U16 => content.extend(numbers.flat_map(|n| (n as u16).to_le_bytes())),
            _ => content.extend(numbers.flat_map(u32::to_le_bytes)),
        }
        replace(&self.folder.join(&file), |f| f.write_all(&content))?;
        let sha256 = sha256_of(&content);
        self.shards.push(Shard { file, tokens: self.ids.len(), bytes: self.bytes, sha256 });
        (self.ids, self.bytes) = (vec![], 0);
        Ok(())
    }
}

/// Writes the tokens of a text, of the texts of a folder, or of a JSONL file with `text`, as shards of `most` tokens into `folder`, which is
/// new or empty. Texts in UTF-8 of more than 64 MiB are read piece by piece; those in another `encoding` at once.
///
/// # Errors
/// Texts that cannot be read; a folder that has files. What was written is gone then.
pub(crate) fn encode(path: &Path, encoding: &str, tokens: &Tokens, folder: &Path, most: usize) -> Result<Encoded> {
    let made = !folder.exists();
    if !made && !folder.is_dir() {
        return Err(Error::Usage(format!("{}: it is a file: name a folder to write", folder.display())));
    }
    std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
    if std::fs::read_dir(folder).map_err(Error::io(folder))?.next().is_some() {
        return Err(Error::Usage(format!("{}: the folder has files already: name a new one", folder.display())));
    }
    let (most, ids, shards) = (most.max(1), vec![], vec![]);
    let mut writer = Writer { folder, tokens, most, ids, bytes: 0, shards, begins: true };
    let result = written(path, encoding, &mut writer);
    if result.is_err() {
        writer.shards.iter().for_each(|shard| drop(std::fs::remove_file(folder.join(&shard.file))));
        if made {
            let _ = std::fs::remove_dir(folder);
        }
    }
    result
}

/// [`encode`], of what `writer` is for.
fn written(path: &Path, encoding: &str, writer: &mut Writer) -> Result<Encoded> {
    let (folder, tokens) = (writer.folder, writer.tokens);
    let all = if path.is_dir() { files(path)? } else { vec![path.to_path_buf()] };
    let mut remarks = vec![];
    for file in &all {
        let length = std::fs::metadata(file).map_err(Error::io(file))?.len();
        if is_lines(file) {
            lines(file, writer)?;
        } else if length > WHOLE && encoding.is_empty() {
            remarks.extend(long(file, writer)?);
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
    let shards = std::mem::take(&mut writer.shards);
    let index = Index { version: VERSION, shards, tokenizer: tokens.file().clone() };
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
        let line = if number == 1 { line.strip_prefix(MARK).unwrap_or(&line) } else { &line };
        if line.trim_ascii().is_empty() {
            continue;
        }
        match serde_json::from_slice(line).map_err(|e| refuse(without_line(&e)))? {
            Line { text: Some(text), prompt: None, response: None, messages: None } => {
                writer.text(&text)?;
                writer.end()?;
            }
            _ => {
                let way = "prompts, answers and messages are learnt from the file itself (zoo train --data)";
                return Err(refuse(format!("expected an object with text alone; {way}")));
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
/// Line ends become `\n` and byte-order marks vanish, which is said in words.
fn long(file: &Path, writer: &mut Writer) -> Result<Option<String>> {
    const MARK: char = '\u{feff}';
    let mut reader = BufReader::with_capacity(1 << 20, File::open(file).map_err(Error::io(file))?);
    let mut piece = String::new();
    let (mut at, mut changed) = (0u64, 0usize);
    while let Some(line) = line(&mut reader, file)? {
        let text = std::str::from_utf8(&line).map_err(|e| {
            let at = at + e.valid_up_to() as u64;
            Error::Data(format!("{}: no UTF-8 at byte {at}: name its encoding by --encoding", file.display()))
        })?;
        at += line.len() as u64;
        match text.contains(['\r', MARK]) {
            true => {
                changed += 1;
                piece.push_str(&text.replace("\r\n", "\n").replace('\r', "\n").replace(MARK, ""));
            }
            false => piece.push_str(text),
        }
        if piece.len() >= PIECE {
            writer.text(&piece)?;
            piece.clear();
        }
    }
    writer.text(&piece)?;
    writer.end()?;
    let said =
        || format!("{}: line ends become \\n, and byte-order marks are left out, in {changed} lines", file.display());
    Ok((changed > 0).then(said))
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
        let expected: Read = ["one two\nthree 🦀 four\n", "five six", "seven"]
            .iter()
            .flat_map(|text| tokens.encode(text, false).unwrap_or_default().into_iter().chain([0]).enumerate())
            .map(|(i, id)| (id, i == 0))
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
        // A broken line leaves nothing; nor is a folder that has files written to, or one with a shard cut off read.
        write("c.jsonl", "{\"text\": 3}\n")?;
        let other = dir.join("other");
        assert!(encode(&texts, "", &tokens, &other, 3).is_err() && !other.exists());
        assert!(encode(&texts, "", &tokens, &folder, 7).is_err());
        let shard = folder.join("tokens-00001.npy");
        let bytes = std::fs::read(&shard).map_err(Error::io(&shard))?;
        std::fs::write(&shard, &bytes[..bytes.len() - 2]).map_err(Error::io(&shard))?;
        assert!(Shards::open(&folder).is_err());
        Ok(())
    }
}
