//! Texts that language models write, several at once.

use candle_core::{DType, Device, Result, Tensor};
use rayon::prelude::*;

use crate::{KvCache, Pieces, Sampler, Sampling};

/// A causal language model with what turns text into its tokens and back.
pub trait TextModel: Sync {
    /// Tokens that it sees.
    fn context(&self) -> usize;

    /// The tokens of a prompt, at least one: a text has to begin with something.
    ///
    /// # Errors
    /// A prompt, or a stop in `sampling`, that the model cannot read.
    fn encode(&self, prompt: &str, sampling: &Sampling) -> Result<Vec<u32>>;

    /// The text of tokens. Bytes that are no whole character show as U+FFFD.
    ///
    /// # Errors
    /// A token that there is not.
    fn decode(&self, tokens: &[u32]) -> Result<String>;

    /// Whether the model ends a text by this token: never, by default.
    fn ends(&self, token: u32) -> bool {
        let _ = token;
        false
    }

    /// Empty caches, one for each block, with room for `positions`, or for the whole context if that is fewer.
    fn cache(&self, positions: usize) -> Vec<KvCache>;

    /// The logits (texts, v) of what follows each text. `tokens` are the new ones of all texts, one text behind the other; `texts` are how many
    /// each has, and the caches of what it had before, which take them.
    ///
    /// # Errors
    /// More positions than the caches have room for.
    fn next(&self, tokens: &[u32], texts: &mut [(usize, &mut [KvCache])]) -> Result<Tensor>;

    /// The logits (1, v) of what follows `tokens`, without a cache.
    ///
    /// # Errors
    /// More tokens than the context has.
    fn next_uncached(&self, tokens: &[u32]) -> Result<Tensor>;
}

/// Why a text ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The model ended it.
    Model,
    /// At a stop of [`Sampling::stop`].
    Stop,
    /// It has as many tokens as [`Sampling::tokens`] allows.
    Length,
}

/// A text that a model is writing.
pub struct Text {
    sampler: Sampler,
    caches: Option<Vec<KvCache>>,
    pieces: Pieces,
    tokens: Vec<u32>,
    /// Tokens of the prompt.
    prompt: usize,
    /// Tokens that it may have in all.
    most: usize,
    /// Tokens at its end that the caches have not seen.
    unseen: usize,
    /// From which token on text is decoded, and how much of it was handed out: the bytes of a character may be apart, and whether a space stands
    /// before a token may depend on the one before.
    first: usize,
    shown: String,
    end: Option<End>,
}

/// Tokens after which what is no text is shown as it is: a character has four bytes at most.
const LONGEST_CHARACTER: usize = 6;

impl Text {
    /// A text behind `prompt`.
    ///
    /// The model sees its context at most. Beyond that it goes on from the later half of it, which is read anew.
    ///
    /// # Errors
    /// As [`TextModel::encode`]; sampling numbers that make no sense.
    pub fn new(model: &impl TextModel, prompt: &str, sampling: &Sampling) -> Result<Self> {
        sampling.validate()?;
        let tokens = model.encode(prompt, sampling)?;
        let n = tokens.len();
        let first = n.saturating_sub(1);
        let most = n.saturating_add(sampling.tokens);
        Ok(Self {
            sampler: Sampler::new(sampling),
            caches: sampling.cache.then(|| model.cache(most)),
            pieces: Pieces::new(&sampling.stop),
            shown: model.decode(&tokens[first..])?,
            prompt: n,
            most,
            unseen: n,
            first,
            end: (sampling.tokens == 0).then_some(End::Length),
            tokens,
        })
    }

    /// Lets the model write `tokens` of it at most.
    pub fn limit(&mut self, tokens: usize) {
        self.most = self.most.min(self.prompt.saturating_add(tokens));
        if self.tokens.len() >= self.most {
            self.end.get_or_insert(End::Length);
        }
    }

    /// Tokens of its prompt.
    pub fn prompt(&self) -> usize {
        self.prompt
    }

    /// Tokens that the model wrote.
    pub fn written(&self) -> usize {
        self.tokens.len() - self.prompt
    }

    /// Why it has ended, if it has.
    pub fn end(&self) -> Option<End> {
        self.end
    }

    /// Has the model write one more token: what is certain of the text by it, which may be nothing yet.
    ///
    /// # Errors
    /// Logits that are not finite, and candle's.
    pub fn advance(&mut self, model: &impl TextModel) -> Result<String> {
        advance(model, &mut [self])?.remove(0)
    }

    /// Has the model write all of it, handing each piece to `sink`, which says whether to go on. Returns how many tokens the model wrote.
    ///
    /// # Errors
    /// As [`Text::advance`].
    pub fn stream(mut self, model: &impl TextModel, sink: &mut dyn FnMut(&str) -> bool) -> Result<usize> {
        while self.end.is_none() {
            let piece = self.advance(model)?;
            if !piece.is_empty() && !sink(&piece) {
                break;
            }
        }
        Ok(self.written())
    }

    /// Leaves room in the caches for what they have not seen.
    fn prepare(&mut self, context: usize) {
        let Some(caches) = &mut self.caches else { return };
        let seen = caches.first().map_or(0, KvCache::len);
        if seen + self.unseen > context {
            caches.iter_mut().for_each(KvCache::clear);
            self.unseen = (context / 2).clamp(1, self.tokens.len());
        }
    }

    /// Draws its next token from `logits` (v).
    fn take(&mut self, model: &impl TextModel, logits: &[f32]) -> Result<String> {
        self.unseen = 1;
        let next = self.sampler.draw(logits, &self.tokens)?;
        if model.ends(next) {
            self.end = Some(End::Model);
            return Ok(self.pieces.rest());
        }
        self.tokens.push(next);
        let is_full = self.tokens.len() >= self.most;
        let text = model.decode(&self.tokens[self.first..])?;
        let mut certain = String::new();
        // An unfinished character shows as a replacement.
        if !text.ends_with('\u{fffd}') || self.tokens.len() - self.first >= LONGEST_CHARACTER {
            let ended;
            (certain, ended) = self.pieces.push(text.strip_prefix(self.shown.as_str()).unwrap_or(&text));
            if ended {
                self.end = Some(End::Stop);
                return Ok(certain);
            }
            self.first = self.tokens.len() - 1;
            self.shown = model.decode(&self.tokens[self.first..])?;
        }
        if is_full {
            self.end = Some(End::Length);
            certain += &self.pieces.rest();
        }
        Ok(certain)
    }
}

/// Has the model write one more token of each text, in one pass for all that have begun, in which the weights are read once: what is certain by it
/// of each. Texts that have ended stay as they are.
///
/// # Errors
/// candle's, for all; logits that are not finite, for a text.
pub fn advance<M: TextModel>(model: &M, texts: &mut [&mut Text]) -> Result<Vec<Result<String>>> {
    texts.iter_mut().for_each(|text| text.prepare(model.context()));
    let (mut tokens, mut behind) = (vec![], vec![]);
    let mut alone = vec![];
    for text in texts.iter_mut().filter(|text| text.end.is_none()) {
        let new = &text.tokens[text.tokens.len() - text.unseen..];
        alone.push(match &mut text.caches {
            // A prompt by itself: how products round may depend on how many rows there are, if there are many.
            Some(caches) if new.len() > 1 => Some(model.next(new, &mut [(new.len(), caches)])?),
            Some(caches) => {
                tokens.extend_from_slice(new);
                behind.push((1, caches.as_mut_slice()));
                None
            }
            None => {
                let seen = text.tokens.len().saturating_sub(model.context());
                Some(model.next_uncached(&text.tokens[seen..])?)
            }
        });
    }
    let rows = if behind.is_empty() { vec![] } else { numbers(&model.next(&tokens, &mut behind)?)? };
    let (mut rows, mut alone) = (rows.into_iter(), alone.into_iter());
    let mut row = |text: &Text| match text.end {
        Some(_) => Ok(None),
        None => match alone.next().flatten() {
            Some(logits) => Ok(numbers(&logits)?.pop()),
            None => Ok(rows.next()),
        },
    };
    let all = texts.iter_mut().map(|text| (row(text), text));
    // A vocabulary has many tokens to choose from.
    let take = |(row, text): (Result<Option<Vec<f32>>>, &mut &mut Text)| match row? {
        Some(logits) => text.take(model, &logits),
        None => Ok(String::new()),
    };
    if all.len() <= 1 {
        return Ok(all.map(take).collect());
    }
    let all: Vec<_> = all.collect();
    Ok(all.into_par_iter().map(take).collect())
}

/// The rows of logits (n, v).
fn numbers(logits: &Tensor) -> Result<Vec<Vec<f32>>> {
    logits.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.to_vec2()
}
