//! Text: a file's, or generated dialogue.

mod dialogue;

pub use dialogue::dialogue;

/// The characters of the generated dialogue, and of tiny Shakespeare.
pub(crate) const ALPHABET: &str = "\n !$&',-.3:;?ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
