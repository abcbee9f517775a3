//! Writing text, token by token.

use std::path::Path;

use candle_core::{Device, Error, Result, Tensor, bail};
use serde_json::Value;
use zoo_checkpoint::Description;
use zoo_layers::{KvCache, Params, Sampling, Text, TextModel};

use crate::config::NAME;
use crate::{AdapterFile, Config, Llama, Tokens, TokensFile};

/// A trained [`Llama`] with its tokenizer.
#[derive(Clone, Debug)]
pub struct Writer {
    model: Llama,
    tokens: Tokens,
    device: Device,
}

impl Llama {
    /// Loads trained weights: weights, sizes and tokenizer are in the one file. One of llama.cpp's (GGUF) stays in its few bits, on the
    /// CPU whatever `device` is.
    ///
    /// # Errors
    /// The file cannot be read, is not a Llama of this library's or of llama.cpp's, or its tensors do not fit its own description.
    pub fn load(path: &Path, device: &Device) -> Result<Writer> {
        let source = zoo_checkpoint::open(path).map_err(Error::wrap)?;
        if Self::is_gguf(&source) {
            return Ok(Self::of_gguf(&source)?.1);
        }
        let (config, fitted, tensors): (Config, Value, _) =
            Description::open(path, NAME, device).map_err(Error::wrap)?;
        let named = |e| Error::msg(format!("{}: {e}", path.display()));
        if let Ok(AdapterFile { base }) = serde_json::from_value(fitted.clone()) {
            bail!("{}: it is an adapter of {}: load the two by Llama::load_adapted", path.display(), base.file)
        }
        let file: TokensFile = serde_json::from_value(fitted).map_err(|e| named(Error::msg(e)))?;
        let (model, _) = Params::restore(tensors, device, |vb| Self::new(&config, vb)).map_err(named)?;
        Writer::new(model, Tokens::new(file).map_err(named)?, device).map_err(named)
    }
}

impl Writer {
    /// A model on `device` with its tokenizer.
    ///
    /// # Errors
    /// More tokens than the model knows.
    pub fn new(model: Llama, tokens: Tokens, device: &Device) -> Result<Self> {
        if tokens.len() > model.vocabulary() {
            bail!("a tokenizer of {} tokens for a model of {}", tokens.len(), model.vocabulary())
        }
        Ok(Self { model, tokens, device: device.clone() })
    }

    /// The model.
    pub fn model(&self) -> &Llama {
        &self.model
    }

    /// Its tokenizer.
    pub fn tokens(&self) -> &Tokens {
        &self.tokens
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

    /// Writes behind `prompt`, handing each piece to `sink` as it is certain; `sink` says whether to go on. The model ends the
    /// text by a token of its own, or after `sampling.tokens` of them. Returns how many tokens it wrote.
    ///
    /// The model sees its context at most. Beyond that it goes on from the later half of it, which is read anew.
    ///
    /// # Errors
    /// An empty prompt for a model that has no token to begin with, a prompt longer than the context, or sampling numbers that make no
    /// sense.
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

    fn encode(&self, prompt: &str, _: &Sampling) -> Result<Vec<u32>> {
        // A chat template may have written what begins a text.
        let begin = self.tokens.begin().and_then(|id| self.tokens.text(id));
        let begun = begin.is_some_and(|begin| prompt.starts_with(&begin));
        let mut ids = self.tokens.encode(prompt, !begun)?;
        if ids.is_empty() {
            match self.tokens.begin() {
                Some(begin) => ids.push(begin),
                None => bail!("the prompt is empty, and the model has no token that begins a text"),
            }
        }
        let context = self.model.context();
        if ids.len() > context {
            bail!("the prompt has {} tokens, and the model sees {context}: its beginning would be lost", ids.len())
        }
        Ok(ids)
    }

    fn decode(&self, tokens: &[u32]) -> Result<String> {
        self.tokens.decode(tokens)
    }

    fn ends(&self, token: u32) -> bool {
        self.tokens.ends(token)
    }

    fn cache(&self, positions: usize) -> Vec<KvCache> {
        self.model.cache(positions)
    }

    fn next(&self, tokens: &[u32], texts: &mut [(usize, &mut [KvCache])]) -> Result<Tensor> {
        self.model.forward_cached(&self.tensor(tokens)?, texts)
    }

    fn next_uncached(&self, tokens: &[u32]) -> Result<Tensor> {
        let all = self.model.forward(&self.tensor(tokens)?, None)?;
        all.narrow(1, tokens.len() - 1, 1)?.squeeze(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn writer() -> Result<Writer> {
        let tokens = Tokens::train(["to be or not to be, that is the question. ".repeat(30).as_str()], 300)?;
        let config = Config { vocabulary: tokens.len(), ..Config::tiny() };
        let model = Llama::new(&config, Params::init(3, &Device::Cpu).eval_builder())?;
        Writer::new(model, tokens, &Device::Cpu)
    }

    #[test]
    fn the_same_seed_writes_the_same_text_in_pieces_or_at_once() -> Result<()> {
        let writer = writer()?;
        // Longer than the context of 32.
        let sampling = Sampling { tokens: 80, ..Sampling::default() };
        let text = writer.generate("to be", &sampling)?;
        assert_eq!(text, writer.generate("to be", &sampling)?);
        assert_ne!(text, writer.generate("to be", &Sampling { seed: 1, ..sampling.clone() })?);
        let mut whole = String::new();
        writer.stream("to be", &sampling, &mut |piece| {
            whole.push_str(piece);
            true
        })?;
        assert_eq!(text, whole);
        // Up to the context the cache changes nothing.
        let short = Sampling { tokens: 25, ..sampling };
        assert_eq!(
            writer.generate("to be", &short)?,
            writer.generate("to be", &Sampling { cache: false, ..short.clone() })?
        );
        // An empty prompt begins with the token for that.
        assert!(!writer.generate("", &short)?.is_empty());
        Ok(())
    }

    #[test]
    fn bytes_of_a_character_are_shown_together_and_a_stop_is_not_shown() -> Result<()> {
        let writer = writer()?;
        let sampling = Sampling { tokens: 300, ..Sampling::default() };
        let mut pieces = vec![];
        writer.stream("to be", &sampling, &mut |piece| {
            pieces.push(piece.to_string());
            true
        })?;
        let text = pieces.concat();
        assert!(pieces.len() > 100);
        let stop: String = text.chars().skip(30).take(4).collect();
        let stopped = writer.generate("to be", &Sampling { stop: vec![stop.clone()], ..sampling })?;
        assert_eq!(stopped, text[..text.find(&stop).unwrap_or(0)]);
        Ok(())
    }
}
