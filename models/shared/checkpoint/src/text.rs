//! Text files as they are found: in what encoding.

use encoding_rs::{Encoding, UTF_8, UTF_16BE, UTF_16LE};

/// A text, without its byte-order mark.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Text {
    /// Its characters.
    pub text: String,
    /// The encoding that it was in, by the name that the Encoding Standard gives it.
    pub encoding: &'static str,
}

/// Why bytes are no text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Undecoded {
    /// What is wrong, and where.
    pub message: String,
    /// Encodings in which they would be text, the likelier ones first, with how that begins where it is not ASCII.
    pub candidates: Vec<(&'static str, String)>,
}

impl std::fmt::Display for Undecoded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)?;
        for (i, (name, sample)) in self.candidates.iter().enumerate() {
            write!(f, "{} {name} would read {sample:?}", if i == 0 { ";" } else { "," })?;
        }
        Ok(())
    }
}

/// Characters of another encoding that a message shows.
const SHOWN: usize = 12;

/// The text of bytes: in UTF-8, or in UTF-16 if they begin with its mark. With `encoding` (`windows-1252`, `gbk`, `utf-16le`, …: the labels
/// of the Encoding Standard) in that one, unless a mark says otherwise.
///
/// # Errors
/// An encoding of no such name, or bytes that are no text in it.
pub fn decode(bytes: &[u8], encoding: &str) -> Result<Text, Undecoded> {
    let fail = |message: String, candidates| Err(Undecoded { message, candidates });
    let asked = match encoding {
        "" => None,
        label => match labelled(label) {
            None => {
                return fail(format!("there is no encoding {label}, such as utf-16le, windows-1252 or gbk"), vec![]);
            }
            known => known,
        },
    };
    let marked = Encoding::for_bom(bytes);
    let (chosen, rest) = match (marked, asked) {
        (Some((marked, n)), _) => (marked, &bytes[n..]),
        (None, asked) => (asked.unwrap_or(UTF_8), bytes),
    };
    if let Some(text) = chosen.decode_without_bom_handling_and_without_replacement(rest) {
        // Text in ASCII of UTF-16 without its mark is valid UTF-8, with a zero beside every letter.
        let start = &bytes[..bytes.len().min(1000)];
        let zeros = |at: usize| start.iter().skip(at).step_by(2).filter(|b| **b == 0).count();
        let guess = if zeros(0) > zeros(1) { UTF_16BE } else { UTF_16LE };
        if asked.is_none() && chosen == UTF_8 && zeros(0) + zeros(1) > 0 {
            return fail("it holds zero bytes, as UTF-16 without its mark does".into(), candidates(bytes, &[guess]));
        }
        return Ok(Text { text: text.into_owned(), encoding: chosen.name() });
    }
    let name = chosen.name();
    if chosen != UTF_8 {
        return fail(format!("not {name} text"), vec![]);
    }
    let at = std::str::from_utf8(rest).map_or_else(|e| e.valid_up_to(), str::len);
    let line = 1 + rest[..at].iter().filter(|b| **b == b'\n').count();
    let all = ["windows-1252", "gbk", "shift_jis", "euc-kr", "big5"].map(|l| Encoding::for_label(l.as_bytes()));
    let mut all: Vec<&'static Encoding> = all.into_iter().flatten().collect();
    // Where most bytes beyond ASCII have such a neighbour, two are a character.
    let high: Vec<usize> = (0..rest.len().min(100_000)).filter(|i| rest[*i] >= 0x80).collect();
    let paired = high.iter().filter(|i| {
        let is_high = |at: Option<usize>| at.and_then(|at| rest.get(at)).is_some_and(|b| *b >= 0x80);
        is_high(i.checked_sub(1)) || is_high(Some(**i + 1))
    });
    if 3 * paired.count() > 2 * high.len() {
        all.rotate_left(1);
    } else {
        all.truncate(1);
    }
    fail(format!("line {line}: not UTF-8 text"), candidates(rest, &all))
}

/// The encoding of a label, or of a name that Windows and Python have for it.
fn labelled(label: &str) -> Option<&'static Encoding> {
    const OTHERS: [(&str, &str); 5] =
        [("cp932", "shift_jis"), ("cp936", "gbk"), ("cp949", "euc-kr"), ("cp950", "big5"), ("latin-1", "latin1")];
    let other = OTHERS.iter().find(|(name, _)| label.eq_ignore_ascii_case(name));
    Encoding::for_label(other.map_or(label, |(_, known)| known).as_bytes())
}

/// Those encodings in which all bytes are text, and how the first of it that is not ASCII reads.
fn candidates(bytes: &[u8], encodings: &[&'static Encoding]) -> Vec<(&'static str, String)> {
    let read = |encoding: &&'static Encoding| {
        let text = encoding.decode_without_bom_handling_and_without_replacement(bytes)?;
        let from = text.find(|c: char| !c.is_ascii()).unwrap_or(0);
        let from = text[..from].rfind(|c: char| !c.is_alphanumeric()).map_or(0, |at| at + 1);
        let sample: String = text[from..].chars().take_while(|c| !c.is_control()).take(SHOWN).collect();
        Some((encoding.name(), sample))
    };
    encodings.iter().filter_map(read).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_read_by_their_mark_or_by_the_encoding_that_is_named() {
        let text = |bytes: &[u8], encoding: &str| decode(bytes, encoding).map(|t| t.text).map_err(|e| e.to_string());
        let utf16 = |text: &str, big: bool| -> Vec<u8> {
            text.encode_utf16().flat_map(|u| if big { u.to_be_bytes() } else { u.to_le_bytes() }).collect()
        };
        assert_eq!(text("Zürich".as_bytes(), "").as_deref(), Ok("Zürich"));
        assert_eq!(text("\u{feff}Zürich".as_bytes(), "").as_deref(), Ok("Zürich"));
        assert_eq!(text(&utf16("\u{feff}Zürich", true), "").as_deref(), Ok("Zürich"));
        assert_eq!(text(&utf16("\u{feff}Zürich", false), "windows-1252").as_deref(), Ok("Zürich"));
        assert_eq!(text(&utf16("Zürich", false), "utf-16le").as_deref(), Ok("Zürich"));
        assert_eq!(text(b"Z\xfcrich", "latin1").as_deref(), Ok("Zürich"));
        assert_eq!(text(b"\xc8\xd5\xc6\xda", "gbk").as_deref(), Ok("日期"));
        assert_eq!(text(b"\x93\xfa", "cp932").as_deref(), Ok("日"));
        let refused = |bytes: &[u8], encoding: &str| text(bytes, encoding).unwrap_err();
        assert_eq!(refused(b"a\nin Z\xfcrich", ""), "line 2: not UTF-8 text; windows-1252 would read \"Zürich\"");
        assert!(refused(b"\xc8\xd5\xc6\xda,\xbf\xaa\xc5\xcc\n", "").contains("GBK would read \"日期,开盘\""));
        assert!(refused(&utf16("Date", false), "").contains("UTF-16LE would read \"Date\""));
        assert!(refused(&utf16("Date", true), "").contains("UTF-16BE would read \"Date\""));
        assert_eq!(refused(b"\xff\xfe\x00", ""), "not UTF-16LE text");
        assert!(refused(b"a", "utf-99").starts_with("there is no encoding utf-99"));
        assert_eq!(text(b"", "").as_deref(), Ok(""));
    }
}
