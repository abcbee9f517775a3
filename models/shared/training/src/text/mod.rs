//! Texts to learn from: as files have them, or made up.

mod dialogue;

use std::path::Path;

pub use dialogue::dialogue;

use crate::{Error, Result};

/// Bytes of a text; what is longer does not fit into the memory of a training machine.
const LONGEST: u64 = 1 << 33;

/// A text, and where it comes from.
pub struct Source {
    /// Its characters.
    pub text: String,
    /// What it is called in messages.
    pub origin: String,
    /// What was done to its characters, in words.
    pub remarks: Vec<String>,
}

/// The text at a path, in UTF-8, in UTF-16 with its mark, or in the encoding of a name. Line ends become `\n` and byte-order
/// marks vanish, unless a model that knows them (`known` has its characters) is to read it.
///
/// # Errors
/// A file that cannot be read, is empty or no text; more than 8 GiB.
pub fn read(path: &Path, encoding: &str, known: &str) -> Result<Source> {
    let origin = path.display().to_string();
    let bytes = zoo_checkpoint::bytes_of(path, "a text", LONGEST)?;
    let decoded = zoo_checkpoint::text::decode(&bytes, encoding).map_err(|e| {
        let way = if encoding.is_empty() { " (data.encoding names its encoding)" } else { "" };
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

#[cfg(test)]
mod tests {
    use super::*;

    fn source(bytes: &[u8], encoding: &str, known: &str) -> Result<Source> {
        let file = tempfile::NamedTempFile::new().map_err(Error::io(Path::new("temporary")))?;
        std::fs::write(file.path(), bytes).map_err(Error::io(Path::new("temporary")))?;
        read(file.path(), encoding, known)
    }

    #[test]
    fn marks_and_line_ends_are_no_characters_to_learn() -> Result<()> {
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
}
