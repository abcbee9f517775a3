use std::collections::HashMap;

use candle_core::{Result, bail};

/// The characters that a model knows, by number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vocabulary {
    characters: Vec<char>,
    numbers: HashMap<char, u32>,
}

impl Vocabulary {
    /// Characters in the order of their numbers.
    ///
    /// # Errors
    /// None, or one of them twice.
    pub fn new(characters: &str) -> Result<Self> {
        let characters: Vec<char> = characters.chars().collect();
        let numbers: HashMap<char, u32> = characters.iter().enumerate().map(|(i, c)| (*c, i as u32)).collect();
        if characters.is_empty() || numbers.len() != characters.len() {
            bail!("the vocabulary must have characters, and none of them twice")
        }
        Ok(Self { characters, numbers })
    }

    /// The characters of a text, sorted, as a vocabulary's text.
    pub fn of(text: &str) -> String {
        let mut characters: Vec<char> = text.chars().collect::<std::collections::HashSet<_>>().into_iter().collect();
        characters.sort_unstable();
        characters.into_iter().collect()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.characters.len()
    }

    /// Never: a vocabulary has characters.
    pub fn is_empty(&self) -> bool {
        self.characters.is_empty()
    }

    /// The characters in the order of their numbers.
    pub fn text(&self) -> String {
        self.characters.iter().collect()
    }

    /// The numbers of a text's characters.
    ///
    /// # Errors
    /// Shows the first character that is none of these, with its line and column.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let mut numbers = Vec::with_capacity(text.len());
        for (at, c) in text.char_indices() {
            let Some(number) = self.numbers.get(&c) else {
                let before = &text[..at];
                let line = before.matches('\n').count() + 1;
                let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
                const SHOWN: usize = 100;
                let known: String = self.characters.iter().take(SHOWN).collect();
                let more = if self.len() > SHOWN { " and more" } else { "" };
                bail!(
                    "the character {c:?} (line {line}, column {column}) is none of the {} that the model knows: {known:?}{more}",
                    self.len()
                )
            };
            numbers.push(*number);
        }
        Ok(numbers)
    }

    /// The character of a number.
    pub fn character(&self, number: u32) -> Option<char> {
        self.characters.get(number as usize).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_come_back_and_unknown_characters_are_shown() -> Result<()> {
        let vocabulary = Vocabulary::new(&Vocabulary::of("hé\nlo, 你"))?;
        let numbers = vocabulary.encode("hol\né你")?;
        assert_eq!(numbers.iter().filter_map(|n| vocabulary.character(*n)).collect::<String>(), "hol\né你");
        let message = vocabulary.encode("ho\nlx").map(|_| ()).map_err(|e| e.to_string()).unwrap_err();
        assert!(message.contains("'x' (line 2, column 2)"), "{message}");
        assert!(Vocabulary::new("aa").is_err() && Vocabulary::new("").is_err());
        Ok(())
    }
}
