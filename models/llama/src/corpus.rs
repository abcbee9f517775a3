//! What a model learns from: documents as tokens.

use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{Device, Result, Tensor};
use serde::Deserialize;
use zoo_training::text::{Source, dialogue, read};
use zoo_training::{Error, Split};

use crate::shards::Shards;
use crate::{DataSettings, Message, Tokens};

/// Targets that do not count.
pub(crate) const IGNORED: i64 = -100;
/// Bytes of a file of conversations.
const LARGEST: u64 = 1 << 33;
/// Files of a folder.
const MOST_FILES: usize = 100_000;

/// A document, in pieces with whether each is to be learnt.
type Document = Vec<(String, bool)>;

/// Documents as they were read.
pub(crate) struct Documents {
    /// What they are called in messages.
    pub(crate) origin: String,
    /// What was done to them, in words.
    pub(crate) remarks: Vec<String>,
    pub(crate) texts: Vec<Document>,
    /// Whether answers alone are learnt.
    pub(crate) answers: bool,
}

/// A line of a JSONL file.
#[derive(Deserialize)]
pub(crate) struct Line {
    pub(crate) text: Option<String>,
    pub(crate) prompt: Option<String>,
    #[serde(alias = "completion")]
    pub(crate) response: Option<String>,
    pub(crate) messages: Option<Vec<Message>>,
}

/// Reads a text, the texts of a folder, a JSONL file (`text`; `prompt` and `response`; or `messages`), or makes dialogue up. Of
/// conversations, `tokens` has the template.
pub(crate) fn documents(source: &DataSettings, seed: u64, tokens: Option<&Tokens>) -> zoo_training::Result<Documents> {
    let path = Path::new(&source.path);
    let whole = |text: String| vec![(text, true)];
    if source.path.is_empty() {
        let texts = vec![whole(dialogue(source.generated, seed))];
        return Ok(Documents { origin: "generated dialogue".into(), remarks: vec![], texts, answers: false });
    }
    let origin = path.display().to_string();
    if path.is_dir() {
        let (mut texts, mut remarks, mut answers) = (vec![], vec![], false);
        for file in files(path)? {
            if is_lines(&file) {
                let lines = conversations(&file, tokens)?;
                texts.extend(lines.texts);
                answers |= lines.answers;
                continue;
            }
            let Source { text, origin, remarks: of_file } = read(&file, &source.encoding, "")?;
            texts.push(whole(text));
            remarks.extend(of_file.into_iter().map(|remark| format!("{origin}: {remark}")));
        }
        if texts.is_empty() {
            return Err(Error::Data(format!("{origin}: the folder has no files")));
        }
        return Ok(Documents { origin, remarks, texts, answers });
    }
    if is_lines(path) {
        if !source.encoding.is_empty() {
            return Err(Error::Usage(format!("data.encoding: {origin} is JSONL, which is UTF-8: leave it out")));
        }
        return conversations(path, tokens);
    }
    let Source { text, origin, remarks } = read(path, &source.encoding, "")?;
    Ok(Documents { origin, remarks, texts: vec![whole(text)], answers: false })
}

/// The mark of UTF-8 that some programs begin files with.
pub(crate) const MARK: &[u8] = "\u{feff}".as_bytes();

/// What is wrong with a line, of which the parser knows that it is the first one.
pub(crate) fn without_line(e: &serde_json::Error) -> String {
    let text = e.to_string();
    let what = text.rsplit_once(" at line").map_or(text.as_str(), |(what, _)| what);
    format!("column {}: {what}", e.column())
}

/// Whether a file has a document a line.
pub(crate) fn is_lines(path: &Path) -> bool {
    path.extension().is_some_and(|e| e.eq_ignore_ascii_case("jsonl") || e.eq_ignore_ascii_case("ndjson"))
}

/// The files of a folder by name, without hidden ones and folders.
pub(crate) fn files(folder: &Path) -> zoo_training::Result<Vec<PathBuf>> {
    let mut files = vec![];
    for entry in std::fs::read_dir(folder).map_err(Error::io(folder))? {
        let entry = entry.map_err(Error::io(folder))?;
        let hidden = entry.file_name().to_string_lossy().starts_with('.');
        if !hidden && entry.file_type().is_ok_and(|kind| kind.is_file()) {
            files.push(entry.path());
        }
        if files.len() > MOST_FILES {
            return Err(Error::Data(format!("{}: more than {MOST_FILES} files", folder.display())));
        }
    }
    files.sort();
    match files.iter().find(|file| file.file_name().is_some_and(|name| name == "tokens-00000.npy")) {
        None => Ok(files),
        Some(_) => Err(Error::Data(format!(
            "{}: there are tokens, which are no texts: name the texts, or where their description (zoo-tokens.json) is missing, write them \
             anew by zoo tokenizer encode",
            folder.display()
        ))),
    }
}

fn conversations(path: &Path, tokens: Option<&Tokens>) -> zoo_training::Result<Documents> {
    let bytes = zoo_checkpoint::bytes_of(path, "a file of documents", LARGEST)?;
    let origin = path.display().to_string();
    let text = std::str::from_utf8(bytes.strip_prefix(MARK).unwrap_or(&bytes)).map_err(|e| {
        let line = bytes[..e.valid_up_to()].iter().filter(|b| **b == b'\n').count() + 1;
        Error::Data(format!("{origin}: line {line} is no UTF-8, which JSONL has to be"))
    })?;
    let (mut texts, mut answers) = (vec![], false);
    for (i, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let refuse = |why: String| Error::Data(format!("{origin}: line {}: {why}", i + 1));
        let said: Line = serde_json::from_str(line).map_err(|e| refuse(without_line(&e)))?;
        texts.push(match said {
            Line { text: Some(text), prompt: None, response: None, messages: None } => vec![(text, true)],
            Line { text: None, prompt: Some(prompt), response: Some(response), messages: None } => {
                answers = true;
                vec![(prompt, false), (response, true)]
            }
            Line { text: None, prompt: None, response: None, messages: Some(messages) } => {
                answers = true;
                let Some(tokens) = tokens else {
                    return Err(refuse(
                        "a conversation is written by the chat template of a tokenizer: name one by --tokenizer, or weights by --init-from"
                            .into(),
                    ));
                };
                tokens.chat_pieces(&messages).map_err(|e| refuse(e.to_string()))?
            }
            _ => return Err(refuse("expected text, or prompt and response, or messages".into())),
        });
    }
    match texts.is_empty() {
        true => Err(Error::Data(format!("{origin}: the file has no lines"))),
        false => Ok(Documents { origin, remarks: vec![], texts, answers }),
    }
}

impl Documents {
    /// The part to learn from and the last `share` of the bytes, which validates. Where it falls within a text, that is cut behind a
    /// character; conversations stay whole.
    pub(crate) fn split(&mut self, share: f64) -> zoo_training::Result<[Vec<Document>; 2]> {
        let size = |document: &Document| document.iter().map(|(text, _)| text.len()).sum::<usize>();
        let mut first = std::mem::take(&mut self.texts);
        if share == 0. {
            return Ok([first, vec![]]);
        }
        let all: usize = first.iter().map(size).sum();
        let mut left = (all as f64 * (1. - share)) as usize;
        let mut kept = 0;
        while kept < first.len() && size(&first[kept]) <= left {
            left -= size(&first[kept]);
            kept += 1;
        }
        let mut last = first.split_off(kept.min(first.len()));
        if let (false, Some(document)) = (self.answers, last.first_mut()) {
            let text: String = document.iter().map(|(piece, _)| piece.as_str()).collect();
            while !text.is_char_boundary(left) {
                left -= 1;
            }
            let (before, behind) = text.split_at(left);
            if !before.is_empty() {
                first.push(vec![(before.to_string(), true)]);
            }
            *document = vec![(behind.to_string(), true)];
        }
        if first.is_empty() {
            return Err(Error::Data(format!(
                "{}: {} documents leave none to learn from (data.valid = {share})",
                self.origin,
                last.len()
            )));
        }
        Ok([first, last])
    }
}

/// Tokens, one behind the other.
enum Ids {
    Held(Vec<u32>),
    /// So many from a first one on.
    Stored {
        shards: Arc<Shards>,
        first: usize,
        len: usize,
    },
}

/// Tokens of documents, one behind the other.
pub(crate) struct Corpus {
    ids: Ids,
    /// Whether each is to be learnt; empty if all are.
    learnt: Vec<bool>,
    /// Where documents begin; windows of several are masked. Stored tokens tell it themselves.
    pub(crate) starts: Vec<usize>,
    /// Tokens that are learnt, and the bytes that they stand for.
    pub(crate) targets: usize,
    pub(crate) bytes: usize,
    /// Whether a sample is a document, and not any window.
    is_by_document: bool,
}

/// Windows of documents.
#[derive(Clone)]
pub struct Batch {
    /// Tokens (b, t).
    pub(crate) ids: Tensor,
    /// Those that follow each (b, t); [`IGNORED`] where none is to be learnt.
    pub(crate) targets: Tensor,
    /// Added to scores (b, 1, t, t): a place does not see other documents. Absent where no window has several.
    pub(crate) mask: Option<Tensor>,
}

/// A document's tokens, each with whether it is to be learnt. One of several pieces is tokenized as a whole, as the model will see it.
fn tokens_of(document: &Document, tokens: &Tokens) -> Result<Vec<(u32, bool)>> {
    if let [(text, learn)] = document.as_slice() {
        return Ok(tokens.encode_long(text)?.into_iter().map(|id| (id, *learn)).collect());
    }
    let text: String = document.iter().map(|(piece, _)| piece.as_str()).collect();
    let ends = document.iter().scan(0, |end, (piece, learn)| {
        *end += piece.len();
        Some((*end, *learn))
    });
    let ends: Vec<(usize, bool)> = ends.collect();
    let begin = tokens.begin().and_then(|id| tokens.text(id));
    let begun = begin.is_some_and(|begin| text.starts_with(&begin));
    let of = |(id, at): (u32, Option<usize>)| {
        let learn = at.is_some_and(|at| ends.iter().find(|(end, _)| at < *end).is_some_and(|(_, learn)| *learn));
        (id, learn)
    };
    Ok(tokens.encode_at(&text, !begun)?.into_iter().map(of).collect())
}

impl Corpus {
    /// Tokens of documents, each followed by the token that ends a text, if there is one. Of conversations, those without anything to
    /// learn within a window are left out. What was left out or cut comes beside, in words.
    pub(crate) fn new(
        documents: &[Document],
        answers: bool,
        tokens: &Tokens,
        window: usize,
    ) -> zoo_training::Result<(Self, Vec<String>)> {
        let (mut ids, mut learnt, mut starts) = (vec![], vec![], vec![]);
        let (mut bytes, mut left_out, mut longer) = (0, 0, 0);
        let several = documents.len() > 1 || answers;
        let end = tokens.file().ends.first().copied();
        for document in documents {
            let start = ids.len();
            for (id, learn) in tokens_of(document, tokens)? {
                ids.push(id);
                learnt.push(learn);
            }
            // A template may have written it, with a new line behind it.
            let ended = answers && ids[start..].iter().rev().take(2).any(|token| tokens.ends(*token));
            if let Some(end) = end.filter(|_| several && !ended) {
                ids.push(end);
                learnt.push(true);
            }
            let seen = learnt.len().min(start + window + 1);
            if answers && !learnt[(start + 1).min(seen)..seen].contains(&true) {
                left_out += 1;
                ids.truncate(start);
                learnt.truncate(start);
                continue;
            }
            bytes += document.iter().filter(|(_, learn)| *learn).map(|(text, _)| text.len()).sum::<usize>();
            longer += usize::from(answers && ids.len() > start + window + 1);
            starts.push(start);
        }
        let targets = learnt.iter().filter(|l| **l).count();
        if targets == learnt.len() {
            learnt = vec![];
        }
        let mut said = vec![];
        if left_out > 0 {
            said.push(format!(
                "{left_out} documents have no answer within their first {window} tokens (data.window), and are left out"
            ));
        }
        if longer > 0 {
            said.push(format!(
                "{longer} documents are longer than a window of {window} tokens (data.window), and what lies beyond is neither learnt nor judged"
            ));
        }
        Ok((Self { ids: Ids::Held(ids), learnt, starts, targets, bytes, is_by_document: answers }, said))
    }

    /// Stored tokens: those to learn from, and the last `share` of them, at most 4,194,304, which validate.
    pub(crate) fn stored(shards: Shards, share: f64) -> zoo_training::Result<[Self; 2]> {
        const MOST: usize = 1 << 22;
        let (all, shards) = (shards.len(), Arc::new(shards));
        let valid = ((all as f64 * share).ceil() as usize).min(MOST).min(all);
        let part = |first: usize, len: usize, bytes: u64| Self {
            ids: Ids::Stored { shards: shards.clone(), first, len },
            learnt: vec![],
            starts: vec![],
            targets: len,
            bytes: bytes as usize,
            is_by_document: false,
        };
        let mut last = part(all - valid, valid, 0);
        let mut bytes = 0;
        last.each(valid, &mut |id, _| bytes += shards.tokenizer().bytes_of(id))?;
        last.bytes = bytes;
        Ok([part(0, all - valid, shards.bytes().saturating_sub(bytes as u64)), last])
    }

    /// Tokens.
    pub(crate) fn len(&self) -> usize {
        match &self.ids {
            Ids::Held(ids) => ids.len(),
            Ids::Stored { len, .. } => *len,
        }
    }

    /// The first `most` tokens, one after the other, each with whether a document begins with it.
    fn each(&self, most: usize, f: &mut dyn FnMut(u32, bool)) -> zoo_training::Result<()> {
        match &self.ids {
            Ids::Held(ids) => {
                let begins = |at: &usize| self.starts.binary_search(at).is_ok();
                ids.iter().enumerate().take(most).for_each(|(at, id)| f(*id, begins(&at)));
            }
            Ids::Stored { shards, first, len } => {
                const AT_ONCE: usize = 1 << 20;
                let most = most.min(*len);
                for at in (0..most).step_by(AT_ONCE) {
                    shards.read(first + at, AT_ONCE.min(most - at))?.into_iter().for_each(|(id, begins)| f(id, begins));
                }
            }
        }
        Ok(())
    }

    /// Tokens from `start` on, at most `n`, and the number of the document of each, counted from anywhere.
    fn part(&self, start: usize, n: usize) -> Result<(Cow<'_, [u32]>, Vec<usize>)> {
        match &self.ids {
            Ids::Held(ids) => {
                let part = &ids[start.min(ids.len())..ids.len().min(start.saturating_add(n))];
                Ok((part.into(), (start..start + part.len()).map(|at| self.document(at)).collect()))
            }
            Ids::Stored { shards, first, len } => {
                let n = n.min(len.saturating_sub(start));
                let read = shards.read(first + start, n).map_err(|e| candle_core::Error::Msg(e.to_string()))?;
                let documents = read.iter().scan(0, |document, (_, begins)| {
                    *document += usize::from(*begins);
                    Some(*document)
                });
                let documents = documents.collect();
                Ok((read.into_iter().map(|(id, _)| id).collect(), documents))
            }
        }
    }

    /// Whether a sample is a document, and not any window.
    pub(crate) fn is_by_document(&self) -> bool {
        self.is_by_document
    }

    /// Tokens that are learnt, but for those that begin a document, one after the other; of stored ones, the first 16,777,216.
    pub(crate) fn each_learnt(&self, f: &mut dyn FnMut(u32)) -> zoo_training::Result<()> {
        const MOST: usize = 1 << 24;
        let stored = matches!(self.ids, Ids::Stored { .. });
        let mut at = 0;
        self.each(if stored { MOST } else { usize::MAX }, &mut |id, begins| {
            if self.learnt.get(at).is_none_or(|l| *l) && !begins {
                f(id);
            }
            at += 1;
        })
    }

    /// Samples of windows of `t` tokens.
    pub(crate) fn samples(&self, split: Split, t: usize) -> usize {
        match split {
            _ if self.is_by_document => self.starts.len(),
            // A window may begin at any token.
            Split::Train => self.len().saturating_sub(t),
            Split::Valid | Split::Test => self.len().saturating_sub(1) / t,
        }
    }

    /// Where a sample begins.
    pub(crate) fn start(&self, split: Split, sample: usize, t: usize) -> usize {
        match split {
            _ if self.is_by_document => self.starts[sample],
            Split::Train => sample,
            Split::Valid | Split::Test => sample * t,
        }
    }

    /// The document that a token is of.
    fn document(&self, at: usize) -> usize {
        self.starts.partition_point(|start| *start <= at)
    }

    /// Windows of `t` tokens from these places on, and how many targets count. Where samples are documents and windows are to be
    /// `alone`, a window ends with its document.
    pub(crate) fn windows(&self, starts: &[usize], t: usize, alone: bool, device: &Device) -> Result<(Batch, usize)> {
        let b = starts.len();
        let (mut ids, mut targets, mut count) = (vec![0i64; b * t], vec![IGNORED; b * t], 0);
        let mut documents = vec![usize::MAX; b * t];
        for (row, start) in starts.iter().enumerate() {
            let (part, of) = self.part(*start, t + 1)?;
            for i in 0..t.min(part.len()) {
                if alone && self.is_by_document && of[i] != of[0] {
                    break;
                }
                (ids[row * t + i], documents[row * t + i]) = (i64::from(part[i]), of[i]);
                let Some(next) = part.get(i + 1) else { continue };
                if self.learnt.get(start + i + 1).is_none_or(|learnt| *learnt) && of[i + 1] == of[i] {
                    targets[row * t + i] = i64::from(*next);
                    count += 1;
                }
            }
        }
        let several = documents.chunks_exact(t).any(|row| row.iter().any(|d| *d != row[0] && *d != usize::MAX));
        let mask = several.then(|| {
            let apart = |(row, i, j): (usize, usize, usize)| documents[row * t + i] != documents[row * t + j];
            let of = |e: usize| if apart((e / (t * t), e / t % t, e % t)) { f32::NEG_INFINITY } else { 0. };
            Tensor::from_vec((0..b * t * t).map(of).collect::<Vec<f32>>(), (b, 1, t, t), device)
        });
        let tensor = |values: Vec<i64>| Tensor::from_vec(values, (b, t), device);
        Ok((Batch { ids: tensor(ids)?, targets: tensor(targets)?, mask: mask.transpose()? }, count))
    }

    /// Whether all tokens are learnt.
    pub(crate) fn learns_all(&self) -> bool {
        self.learnt.is_empty()
    }

    /// Bytes that differ where what is learnt differs.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        match &self.ids {
            Ids::Held(ids) => {
                let numbers = ids.iter().copied().chain(self.starts.iter().map(|s| *s as u32));
                numbers.flat_map(u32::to_le_bytes).chain(self.learnt.iter().map(|l| u8::from(*l))).collect()
            }
            Ids::Stored { shards, first, len } => [shards.index(), &first.to_le_bytes(), &len.to_le_bytes()].concat(),
        }
    }
}

#[cfg(test)]
mod tests {
    use zoo_layers::Params;

    use super::*;
    use crate::{Config, Llama};

    fn tokens() -> Result<Tokens> {
        Tokens::train(["one two three four five six ".repeat(40).as_str()], 290)
    }

    fn values(t: &Tensor) -> Result<Vec<Vec<i64>>> {
        t.to_vec2()
    }

    #[test]
    fn a_window_over_documents_learns_nothing_across_them_and_sees_nothing_of_others() -> zoo_training::Result<()> {
        let tokens = tokens()?;
        let texts = ["one two three", "four five", "six six six six"].map(|text| vec![(text.to_string(), true)]);
        let (corpus, left_out) = Corpus::new(&texts, false, &tokens, 8)?;
        assert_eq!((left_out.len(), corpus.starts.len(), corpus.learns_all()), (0, 3, true));
        let t = corpus.len() - 1;
        let (batch, count) = corpus.windows(&[0], t, false, &Device::Cpu)?;
        let targets = &values(&batch.targets)?[0];
        // All but the first token of each document, which nothing before it tells.
        assert_eq!(count, corpus.len() - 3);
        let across: Vec<usize> = (0..t).filter(|i| targets[*i] == IGNORED).map(|i| i + 1).collect();
        assert_eq!(across, corpus.starts[1..]);
        // Within a window of several, a document's logits are those that it has alone.
        let config = Config { vocabulary: tokens.len(), context: 64, ..Config::tiny() };
        let params = Params::init(1, &Device::Cpu);
        let model = Llama::new(&config, params.builder())?;
        let whole = model.forward(&batch.ids, batch.mask.as_ref())?;
        let (start, end) = (corpus.starts[1], corpus.starts[2]);
        let alone = model.forward(&batch.ids.narrow(1, start, end - start)?, None)?;
        let off = |whole: Tensor| -> Result<f32> {
            (whole.narrow(1, start, end - start)? - &alone)?.abs()?.max_all()?.to_scalar::<f32>()
        };
        assert!(off(whole)? < 1e-5);
        assert!(off(model.forward(&batch.ids, None)?)? > 1e-3);
        Ok(())
    }

    #[test]
    fn windows_of_stored_documents_are_those_of_held_ones() -> zoo_training::Result<()> {
        let tokens = tokens()?;
        // One has ends within it and behind it, which end no document.
        let texts = ["one two three", "four<|endoftext|>five six<|endoftext|>", "six six six six", "two"];
        let dir = tempfile::tempdir().map_err(Error::io(Path::new("temporary")))?;
        let lines: String = texts.iter().map(|text| serde_json::json!({ "text": text }).to_string() + "\n").collect();
        let (file, folder) = (dir.path().join("texts.jsonl"), dir.path().join("tokens"));
        std::fs::write(&file, lines).map_err(Error::io(&file))?;
        crate::shards::encode(&file, "", &tokens, &folder, 5)?;
        let [stored, _] = Corpus::stored(Shards::open(&folder)?, 0.)?;
        let documents: Vec<Document> = texts.iter().map(|text| vec![(text.to_string(), true)]).collect();
        let (held, _) = Corpus::new(&documents, false, &tokens, 8)?;
        assert_eq!(stored.len(), held.len());
        for t in [1, 3, 8, held.len() - 1] {
            for start in 0..=held.len() - t {
                let read = |corpus: &Corpus| -> Result<_> {
                    let (batch, count) = corpus.windows(&[start], t, false, &Device::Cpu)?;
                    let mask = batch.mask.map(|mask| mask.flatten_all()?.to_vec1::<f32>()).transpose()?;
                    Ok((values(&batch.ids)?, values(&batch.targets)?, mask, count))
                };
                assert_eq!(read(&stored)?, read(&held)?, "{t} from {start}");
            }
        }
        let learnt = |corpus: &Corpus| -> zoo_training::Result<Vec<u32>> {
            let mut all = vec![];
            corpus.each_learnt(&mut |id| all.push(id))?;
            Ok(all)
        };
        assert_eq!(learnt(&stored)?, learnt(&held)?);
        Ok(())
    }

    #[test]
    fn of_conversations_answers_are_learnt_and_each_is_a_sample() -> zoo_training::Result<()> {
        let tokens = tokens()?;
        let file = tempfile::Builder::new().suffix(".jsonl").tempfile().map_err(Error::io(Path::new("temporary")))?;
        let lines = "{\"prompt\": \"one two \", \"response\": \"three\"}\n\n{\"prompt\": \"four \", \"completion\": \"five six\"}\n";
        std::fs::write(file.path(), lines).map_err(Error::io(file.path()))?;
        let source = DataSettings { path: file.path().display().to_string(), ..DataSettings::default() };
        let mut all = documents(&source, 0, Some(&tokens))?;
        assert!(all.answers);
        let [first, last] = all.split(0.5)?;
        assert_eq!((first.len(), last.len()), (1, 1));
        let (corpus, _) = Corpus::new(&first, true, &tokens, 16)?;
        assert_eq!((corpus.samples(Split::Train, 16), corpus.bytes), (1, "three".len()));
        let (batch, count) = corpus.windows(&[0], 16, false, &Device::Cpu)?;
        let learnt: Vec<u32> =
            values(&batch.targets)?[0].iter().filter(|t| **t != IGNORED).map(|t| *t as u32).collect();
        // The answer, and the token that ends it.
        let mut expected = tokens.encode("one two three", false)?.split_off(tokens.encode("one two", false)?.len());
        expected.push(0);
        assert_eq!((learnt.len(), &learnt), (count, &expected));
        // An answer that no window reaches is left out, and said.
        let far = vec![vec![("one two ".repeat(30), false), ("three".to_string(), true)]];
        assert_eq!(Corpus::new(&far, true, &tokens, 16)?.1.len(), 1);
        for (line, says) in [
            ("{\"prompt\": \"a\"}", "line 1: expected text, or prompt and response"),
            ("{\"text\": \"a\"", "line 1: column 12: EOF"),
            ("{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}]}", "line 1: the conversation has no answer"),
            (
                "{\"messages\": [{\"role\": \"assistant\", \"content\": \"a\"}]}",
                "line 1: the model has no chat template",
            ),
        ] {
            std::fs::write(file.path(), line).map_err(Error::io(file.path()))?;
            let said = documents(&source, 0, Some(&tokens));
            let message = said.map(|_| ()).unwrap_err().to_string();
            assert!(message.contains(says), "{message}");
        }
        Ok(())
    }
}
