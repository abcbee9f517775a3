//! Writing text, character by character.

use candle_core::{Device, Result, Tensor, bail};
use zoo_layers::{KvCache, Mode, Sampling, Text, TextModel};

use crate::{CharGpt, Vocabulary};

/// A trained [`CharGpt`] with the characters it knows.
#[derive(Clone, Debug)]
pub struct Writer {
    model: CharGpt,
    vocabulary: Vocabulary,
    device: Device,
}

impl Writer {
    /// A model on `device` with the characters that it knows.
    ///
    /// # Errors
    /// More or fewer characters than the model has.
    pub fn new(model: CharGpt, vocabulary: Vocabulary, device: &Device) -> Result<Self> {
        if vocabulary.len() != model.vocabulary() {
            bail!("a vocabulary of {} characters for a model of {}", vocabulary.len(), model.vocabulary())
        }
        Ok(Self { model, vocabulary, device: device.clone() })
    }

    /// What the model writes behind `prompt`.
    ///
    /// # Errors
    /// As [`Writer::stream`].
    pub fn generate(&self, prompt: &str, sampling: &Sampling) -> Result<String> {
        let mut text = String::new();
        self.stream(prompt, sampling, &mut |piece| {
            text.push_str(piece);
            true
        })?;
        Ok(text)
    }

    /// Writes behind `prompt`, handing each piece to `sink` as it is certain; `sink` says whether to go on. Returns how many
    /// characters the model wrote.
    ///
    /// The model sees its context at most. Beyond that it goes on from the later half of it: positions are learned for
    /// positions 0 to context - 1, so what is kept has to be read anew, which costs a pass over half a context every half
    /// context, and the model then sees between half of its context and all of it. An empty prompt starts from a newline
    /// (the vocabulary's first character, where it has none).
    ///
    /// # Errors
    /// A character of the prompt or of a stop that the model does not know, or sampling numbers that make no sense.
    pub fn stream(&self, prompt: &str, sampling: &Sampling, sink: &mut dyn FnMut(&str) -> bool) -> Result<usize> {
        Text::new(self, prompt, sampling)?.stream(self, sink)
    }

    fn tensor(&self, ids: &[u32]) -> Result<Tensor> {
        let ids: Vec<i64> = ids.iter().map(|i| i64::from(*i)).collect();
        let n = ids.len();
        Tensor::from_vec(ids, (1, n), &self.device)
    }
}

impl TextModel for Writer {
    fn context(&self) -> usize {
        self.model.context()
    }

    fn encode(&self, prompt: &str, sampling: &Sampling) -> Result<Vec<u32>> {
        sampling.stop.iter().try_for_each(|stop| self.vocabulary.encode(stop).map(drop))?;
        let mut ids = self.vocabulary.encode(prompt)?;
        if ids.is_empty() {
            ids.push(self.vocabulary.encode("\n").map_or(0, |n| n[0]));
        }
        Ok(ids)
    }

    fn decode(&self, tokens: &[u32]) -> Result<String> {
        let character = |id: &u32| match self.vocabulary.character(*id) {
            Some(c) => Ok(c),
            None => bail!("character {id} is not in the vocabulary"),
        };
        tokens.iter().map(character).collect()
    }

    fn cache(&self, _: usize) -> Vec<KvCache> {
        self.model.cache()
    }

    fn next(&self, tokens: &[u32], texts: &mut [(usize, &mut [KvCache])]) -> Result<Tensor> {
        self.model.forward_cached(&self.tensor(tokens)?, texts)
    }

    fn next_uncached(&self, tokens: &[u32]) -> Result<Tensor> {
        let all = self.model.forward(&self.tensor(tokens)?, Mode::Eval)?;
        all.narrow(1, tokens.len() - 1, 1)?.squeeze(1)
    }
}

#[cfg(test)]
mod tests {
    use zoo_layers::Params;

    use super::*;
    use crate::Config;

    fn writer() -> Result<Writer> {
        let config = Config { vocabulary: 4, ..Config::tiny() };
        let params = Params::init(3, &Device::Cpu);
        let model = CharGpt::new(&config, params.eval_builder())?;
        Writer::new(model, Vocabulary::new("ab\nc")?, &Device::Cpu)
    }

    #[test]
    fn the_same_seed_writes_the_same_text_in_pieces_or_at_once() -> Result<()> {
        let writer = writer()?;
        // Longer than the context of 16.
        let sampling = Sampling { tokens: 50, ..Sampling::default() };
        let text = writer.generate("ab", &sampling)?;
        assert_eq!((text.chars().count(), &text), (50, &writer.generate("ab", &sampling)?));
        assert_ne!(text, writer.generate("ab", &Sampling { seed: 1, ..sampling.clone() })?);
        assert_ne!(text, writer.generate("ab", &Sampling { sample: 1, ..sampling.clone() })?);
        let mut pieces = 0;
        writer.stream("ab", &sampling, &mut |_| {
            pieces += 1;
            true
        })?;
        assert_eq!(pieces, 50);
        // Up to the context the cache changes nothing.
        let short = Sampling { tokens: 14, ..sampling };
        assert_eq!(writer.generate("ab", &short)?, writer.generate("ab", &Sampling { cache: false, ..short.clone() })?);
        Ok(())
    }

    #[test]
    fn a_stop_ends_the_text_and_is_not_part_of_it() -> Result<()> {
        let writer = writer()?;
        let sampling = Sampling { tokens: 200, ..Sampling::default() };
        let text = writer.generate("", &sampling)?;
        let stop: String = text.chars().skip(30).take(3).collect();
        let end = text.find(&stop).unwrap();
        let stopped = writer.generate("", &Sampling { stop: vec![stop, "abcabcabcabc".into()], ..sampling })?;
        assert_eq!(stopped, text[..end]);
        Ok(())
    }
}
