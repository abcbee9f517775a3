use zoo_layers::random::{Purpose, Stream};

/// Words with their syllables.
type Words = &'static [(&'static str, usize)];

const SPEAKERS: &[&str] =
    &["ALDRIC", "BEATHA", "CORMAC", "First Miller", "Second Miller", "ISOLDE", "The Harbour-master", "WREN"];
const NOUNS: Words = &[
    ("harbour", 2),
    ("candle", 2),
    ("river", 2),
    ("winter", 2),
    ("orchard", 2),
    ("sparrow", 2),
    ("quarrel", 2),
    ("promise", 2),
    ("lantern", 2),
    ("thunder", 2),
    ("debt", 1),
    ("road", 1),
    ("frost", 1),
    ("song", 1),
    ("bread", 1),
    ("key", 1),
    ("memory", 3),
    ("company", 3),
    ("vineyard", 2),
    ("jewel", 2),
];
const ADJECTIVES: Words = &[
    ("quiet", 2),
    ("bitter", 2),
    ("early", 2),
    ("faithful", 2),
    ("crooked", 2),
    ("cold", 1),
    ("old", 1),
    ("bright", 1),
    ("lame", 1),
    ("unlucky", 3),
    ("weather-worn", 3),
    ("exact", 2),
];
const VERBS: Words = &[
    ("remembers", 3),
    ("forgives", 2),
    ("follows", 2),
    ("betrays", 2),
    ("outlives", 2),
    ("mends", 1),
    ("keeps", 1),
    ("burns", 1),
    ("buries", 2),
    ("questions", 2),
    ("knows", 1),
    ("awakens", 3),
];
const OPENINGS: Words = &[
    ("", 0),
    ("", 0),
    ("and", 1),
    ("but", 1),
    ("so", 1),
    ("alas,", 2),
    ("good sir,", 2),
    ("my friend,", 2),
    ("I say", 2),
    ("they tell me", 3),
    ("who knows if", 3),
    ("be still:", 2),
];
const OWNERS: Words = &[("the", 1), ("my", 1), ("thy", 1), ("our", 1), ("no", 1), ("every", 2), ("this", 1)];
const ENDINGS: Words = &[
    ("", 0),
    ("at last", 2),
    ("by night", 2),
    ("again", 2),
    ("in vain", 2),
    ("before the dawn", 4),
    ("upon the hill", 4),
    ("without a word", 4),
    ("for ever", 3),
];

/// Syllables of a line of blank verse.
const SYLLABLES: usize = 10;

/// At least `characters` of dialogue in blank verse, made up from a small grammar: lines of ten syllables, spoken by
/// turns. The same for the same seed. It is made for trying things out and says nothing about language.
pub fn dialogue(characters: usize, seed: u64) -> String {
    let mut stream = Stream::new(seed, Purpose::Simulation, 0, 0);
    let mut text = String::new();
    let mut last = usize::MAX;
    while text.len() < characters {
        let mut speaker = stream.below(SPEAKERS.len() as u32) as usize;
        if speaker == last {
            speaker = (speaker + 1) % SPEAKERS.len();
        }
        last = speaker;
        text.push_str(SPEAKERS[speaker]);
        text.push_str(":\n");
        let lines = 1 + stream.below(5);
        for i in 0..lines {
            let line = line(&mut stream);
            let mut letters = line.chars();
            text.extend(letters.next().into_iter().flat_map(char::to_uppercase));
            text.push_str(letters.as_str());
            text.push(match stream.below(8) {
                0 => '!',
                1 => '?',
                2 | 3 if i + 1 < lines => ',',
                4 if i + 1 < lines => ';',
                _ if i + 1 < lines && stream.below(3) == 0 => ' ',
                _ => '.',
            });
            // A line that runs on has no mark.
            if text.ends_with(' ') {
                text.pop();
            }
            text.push('\n');
        }
        text.push('\n');
    }
    text
}

/// One clause of ten syllables, without its mark.
fn line(stream: &mut Stream) -> String {
    loop {
        let mut parts = vec![pick(stream, OPENINGS)];
        parts.extend(noun(stream));
        parts.push(pick(stream, VERBS));
        parts.extend(noun(stream));
        parts.push(pick(stream, ENDINGS));
        if parts.iter().map(|(_, n)| n).sum::<usize>() == SYLLABLES {
            return parts.iter().map(|(w, _)| *w).filter(|w| !w.is_empty()).collect::<Vec<_>>().join(" ");
        }
    }
}

/// Owner, perhaps an adjective, and noun.
fn noun(stream: &mut Stream) -> Vec<(&'static str, usize)> {
    let mut parts = vec![pick(stream, OWNERS)];
    if stream.below(2) == 0 {
        parts.push(pick(stream, ADJECTIVES));
    }
    parts.push(pick(stream, NOUNS));
    parts
}

fn pick(stream: &mut Stream, words: Words) -> (&'static str, usize) {
    words[stream.below(words.len() as u32) as usize]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The characters of tiny Shakespeare, too.
    const ALPHABET: &str = "\n !$&',-.3:;?ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

    #[test]
    fn the_same_seed_gives_the_same_dialogue_in_the_alphabet() {
        let text = dialogue(20_000, 1);
        assert_eq!(text, dialogue(20_000, 1));
        assert_ne!(text, dialogue(20_000, 2));
        assert!((20_000..21_000).contains(&text.len()));
        assert_eq!(text.chars().find(|c| !ALPHABET.contains(*c)), None);
        assert_eq!(ALPHABET.chars().count(), 65);
        let speeches = text.split("\n\n").filter(|s| !s.is_empty());
        assert!(speeches.clone().count() > 50);
        for speech in speeches {
            let (name, lines) = speech.split_once(":\n").unwrap();
            assert!(SPEAKERS.contains(&name) && !lines.is_empty());
        }
    }
}
