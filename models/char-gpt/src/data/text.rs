//! The text that a model learns from.

use std::path::Path;

use zoo_training::text::{self, Source, dialogue};

use crate::{DataSettings, Vocabulary};

/// The text at a path, or generated dialogue, for a model that knows `known`.
pub(crate) fn read(source: &DataSettings, seed: u64, known: &str) -> zoo_training::Result<Source> {
    if source.path.is_empty() {
        let origin = "generated dialogue".into();
        return Ok(Source { text: dialogue(source.generated, seed), origin, remarks: vec![] });
    }
    text::read(Path::new(&source.path), &source.encoding, known)
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
