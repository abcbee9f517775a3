//! Text: a file's, or generated dialogue.

mod dialogue;
mod text;

pub use dialogue::dialogue;
pub(crate) use text::{Source, characters, doubts, read};

/// The characters of the generated dialogue, and of tiny Shakespeare.
pub(crate) const ALPHABET: &str = "\n !$&',-.3:;?ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
