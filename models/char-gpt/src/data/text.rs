//! The text that a model learns from.

use std::path::Path;

use zoo_training::Error;

use super::dialogue;
use crate::{DataSettings, Vocabulary};

/// Bytes of a text; what is longer does not fit into the memory of a training machine.
const LONGEST: u64 = 1 << 33;

/// A text, and where it comes from.
pub(crate) struct Source {
    pub(crate) text: String,
    /// What it is called in messages.
    pub(crate) origin: String,
    /// What was done to its characters, in words.
    pub(crate) remarks: Vec<String>,
}

/// The text at a path, or generated dialogue. Line ends become `\n`, unless a model that knows `\r` is to read it.
pub(crate) fn read(source: &DataSettings, seed: u64, known: &str) -> zoo_training::Result<Source> {
    if source.path.is_empty() {
        let origin = "generated dialogue".into();
        return Ok(Source { text: dialogue(source.generated, seed), origin, remarks: vec![] });
    }
    let path = Path::new(&source.path);
    let origin = path.display().to_string();
    let bytes = zoo_checkpoint::bytes_of(path, "a text", LONGEST)?;
    let decoded = zoo_checkpoint::text::decode(&bytes, &source.encoding).map_err(|e| {
        let way = if source.encoding.is_empty() { " (data.encoding names its encoding)" } else { "" };
        Error::Data(format!("{origin}: {e}{way}"))
    })?;
    if decoded.text.is_empty() {
        return Err(Error::Data(format!("{origin}: the file is empty")));
    }
    let mut remarks = vec![];
    if decoded.encoding != "UTF-8" {
        remarks.push(format!("the text is read as {}", decoded.encoding));
    }
    let mut text = decoded.text;
    if !known.contains('\r') {
        for (end, of) in [("\r\n", "of Windows (\\r\\n)"), ("\r", "of old Macs (\\r)")] {
            let n = text.matches(end).count();
            if n > 0 {
                text = text.replace(end, "\n");
                remarks.push(format!("line ends {of} are read as \\n, one character to the model: {n} of them"));
            }
        }
    }
    const MARK: char = '\u{feff}';
    let marks = text.matches(MARK).count();
    if marks > 0 && !known.contains(MARK) {
        text = text.replace(MARK, "");
        remarks.push(format!("byte-order marks within the text are left out: {marks} of them"));
    }
    Ok(Source { text, origin, remarks })
}

/// The characters of the text that is there, as a vocabulary's text, for a model that knows all of `known`.
pub(crate) fn characters(source: &DataSettings, known: &str) -> zoo_training::Result<String> {
    Ok(Vocabulary::of(&read(source, 0, known)?.text))
}

/// Different characters of a text that is not one for a model of characters.
const MANY: usize = 1000;
/// How often a character is there that can be learnt.
const OFTEN: u32 = 10;

/// What is unusual with a text for a model of characters, in words; `numbers` are those of its characters.
pub(crate) fn doubts(numbers: &[u32], vocabulary: &Vocabulary) -> Vec<String> {
    let mut counts = vec![0u32; vocabulary.len()];
    numbers.iter().for_each(|n| counts[*n as usize] += 1);
    let there = counts.iter().filter(|n| **n > 0).count();
    let rare = counts.iter().filter(|n| (1..OFTEN).contains(*n)).count();
    let mut doubts = vec![];
    if there > MANY {
        doubts.push(format!(
            "the text has {there} different characters, {rare} of them fewer than {OFTEN} times: a model of characters cannot learn \
             those, and its table and head grow with each (replace rare characters before training)"
        ));
    }
    let ends = (0..vocabulary.len()).any(|n| counts[n] > 0 && vocabulary.character(n as u32) == Some('\n'));
    if !ends {
        doubts.push("the text is a single line, so that what the model writes never ends one".into());
    }
    doubts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(bytes: &[u8], encoding: &str, known: &str) -> zoo_training::Result<Source> {
        let file = tempfile::NamedTempFile::new().map_err(Error::io(Path::new("temporary")))?;
        std::fs::write(file.path(), bytes).map_err(Error::io(Path::new("temporary")))?;
        let path = file.path().display().to_string();
        read(&DataSettings { path, encoding: encoding.into(), ..DataSettings::default() }, 0, known)
    }

    #[test]
    fn marks_and_line_ends_are_no_characters_to_learn() -> zoo_training::Result<()> {
        let read = |bytes: &[u8], known: &str| source(bytes, "", known).map(|s| (s.text, s.remarks.len()));
        assert_eq!(read(b"a\nb\n", "")?, ("a\nb\n".into(), 0));
        assert_eq!(read("\u{feff}a\r\nb\r\n".as_bytes(), "")?, ("a\nb\n".into(), 1));
        assert_eq!(read(b"a\rb\r", "")?, ("a\nb\n".into(), 1));
        assert_eq!(read("a\u{feff}b".as_bytes(), "")?, ("ab".into(), 1));
        // Weights that learnt them see them.
        assert_eq!(read(b"a\r\nb", "\r\nab")?, ("a\r\nb".into(), 0));
        assert_eq!(source(b"\xff\xfea\0", "", "")?.text, "a");
        assert_eq!(source(b"Z\xfcrich", "windows-1252", "")?.text, "Zürich");
        let message = source(b"Z\xfcrich", "", "").map(|s| s.text).unwrap_err().to_string();
        assert!(message.contains("windows-1252 would read \"Zürich\" (data.encoding names"), "{message}");
        assert!(source(b"", "", "").is_err());
        Ok(())
    }

    #[test]
    fn texts_that_characters_do_not_suit_are_warned_of() -> candle_core::Result<()> {
        let said = |text: &str| -> candle_core::Result<Vec<String>> {
            let vocabulary = Vocabulary::new(&Vocabulary::of(text))?;
            Ok(doubts(&vocabulary.encode(text)?, &vocabulary))
        };
        assert_eq!(said("a\nb")?, Vec::<String>::new());
        assert!(said("one line")?[0].contains("a single line"));
        let many: String = (0x4e00..0x4e00 + 2000).filter_map(char::from_u32).chain(['\n']).collect();
        assert!(said(&many)?[0].contains("2001 different characters, 2001 of them fewer than 10 times"));
        Ok(())
    }
}
