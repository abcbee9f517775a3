//! The text that a model learns from.

use std::path::Path;

use zoo_training::Error;

use super::dialogue;
use crate::{DataSettings, Vocabulary};

/// Bytes of a text; what is longer does not fit into the memory of a training machine.
const LONGEST: u64 = 1 << 33;

/// The text at a path, or generated dialogue; and what it is.
pub(crate) fn read(source: &DataSettings, seed: u64) -> zoo_training::Result<(String, String)> {
    if source.path.is_empty() {
        return Ok((dialogue(source.generated, seed), "generated dialogue".into()));
    }
    let path = Path::new(&source.path);
    let bytes = zoo_checkpoint::bytes_of(path, "a text", LONGEST)?;
    let text = String::from_utf8(bytes).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        Error::Data(format!(
            "{}: not UTF-8 at byte {at}: convert it first (such as iconv -f latin1 -t utf-8)",
            path.display()
        ))
    })?;
    let text = text.strip_prefix('\u{feff}').map(String::from).unwrap_or(text);
    if text.is_empty() {
        return Err(Error::Data(format!("{}: the file is empty", path.display())));
    }
    Ok((text, path.display().to_string()))
}

/// The characters of the text that is there, as a vocabulary's text.
pub(crate) fn characters(source: &DataSettings) -> zoo_training::Result<String> {
    Ok(Vocabulary::of(&read(source, 0)?.0))
}
