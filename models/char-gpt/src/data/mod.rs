//! Text: a file's, or generated dialogue.

mod text;

pub(crate) use text::{characters, doubts, read};

/// The characters of the generated dialogue, and of tiny Shakespeare.
pub(crate) const ALPHABET: &str = "\n !$&',-.3:;?ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
