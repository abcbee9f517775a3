//! Models that write: many texts at once, a token of each in one pass.

use std::borrow::Cow;
use std::time::Instant;

use zoo_layers::{End, Text, TextModel, advance};
use zoo_training::Generate;

use super::engine::{About, Answer, Ask, Does, Job, Prompt, Refusal, Served, Waiting};
use super::front::Shared;
use super::{Opened, Spec};
use crate::arguments::Precision;
use crate::output::{first_line, worded};
use crate::weights::Usable;

/// Tokens of prompts that one pass reads at most, beside the first prompt: texts that are being written wait for it.
const READ_AT_ONCE: usize = 2048;

/// Bytes of a token at most, or nearly.
const LONGEST_TOKEN: usize = 128;

pub(crate) struct Texts<T: Generate> {
    writer: T::Writer,
    about: About,
    precision: Precision,
    at_once: usize,
    waiting: Waiting,
    at_work: Vec<(Text, Job)>,
}

pub(crate) fn open<T: Generate>(spec: &Spec) -> anyhow::Result<Opened> {
    let (Usable { model, config, fitted, .. }, checkpoint) = spec.read::<T>()?;
    let writer = T::writer(&model, &fitted, &spec.device)?;
    let does = Does::Write { context: writer.context(), chat: T::conversation(&writer, &[("user", "?")]).is_ok() };
    let about = spec.about::<T>(&config, checkpoint, does)?;
    let (precision, at_once) = (spec.precision, spec.at_once);
    Ok(Opened(Box::new(Texts::<T> { writer, about, precision, at_once, waiting: Waiting::default(), at_work: vec![] })))
}

impl<T: Generate> Texts<T> {
    /// The text that a job asks for.
    fn begin(&self, job: &Job) -> Result<Text, Refusal> {
        let Ask::Text { prompt, sampling } = &job.ask else { return Err(Refusal::bad("expected a prompt")) };
        let refuse = |e: &dyn std::fmt::Display| Refusal::bad(worded(&first_line(&e)));
        let context = self.writer.context();
        let (prompt, chat) = match &**prompt {
            Prompt::Text(text) => (Cow::from(text), false),
            Prompt::Messages(messages) => {
                let messages: Vec<(&str, &str)> = messages.iter().map(|(a, b)| (a.as_str(), b.as_str())).collect();
                (T::conversation(&self.writer, &messages).map_err(|e| refuse(&e))?.into(), true)
            }
        };
        // Before it is read.
        let longest = context.saturating_mul(LONGEST_TOKEN).max(1 << 16);
        if prompt.len() > longest {
            let said = format!(
                "the prompt has {} bytes: at most {longest} for a model that sees {context} tokens",
                prompt.len()
            );
            return Err(Refusal::bad(said));
        }
        let text = self.precision.run(|| Text::new(&self.writer, &prompt, sampling));
        let mut text = text.map_err(|e| refuse(&e))?;
        // A conversation that slid out of sight would go on from the middle of a message.
        if chat {
            text.limit((context + 1).saturating_sub(text.prompt()));
        }
        Ok(text)
    }

    /// Begins texts that wait, as many as may be at work.
    fn admit(&mut self) {
        let mut tokens = 0;
        while self.at_work.len() < self.at_once && tokens < READ_AT_ONCE {
            let Some(job) = self.waiting.next() else { break };
            match self.begin(&job) {
                Ok(text) => {
                    tokens += text.prompt();
                    job.answer(Answer::Begun(text.prompt()));
                    self.at_work.push((text, job));
                }
                Err(refusal) => {
                    job.answer(Answer::Refused(refusal));
                    // Reading it cost something, too.
                    tokens += READ_AT_ONCE / 8;
                }
            }
        }
    }
}

impl<T: Generate> Served for Texts<T> {
    fn about(&self) -> &About {
        &self.about
    }

    fn waiting(&mut self) -> &mut Waiting {
        &mut self.waiting
    }

    fn work(&mut self, shared: &Shared) {
        // Nobody computes for who has gone, or keeps room for them.
        self.at_work.retain(|(_, job)| job.is_wanted());
        self.waiting.0.retain(Job::is_wanted);
        self.admit();
        if self.at_work.is_empty() {
            return;
        }
        let started = Instant::now();
        let mut texts: Vec<&mut Text> = self.at_work.iter_mut().map(|(text, _)| text).collect();
        let pieces = self.precision.run(|| advance(&self.writer, &mut texts));
        shared.counters.step(&self.about.id, self.at_work.len(), started.elapsed());
        let failed = |e: &candle_core::Error| Answer::Refused(Refusal::new(500, first_line(e)));
        match pieces {
            Err(e) => {
                for (_, job) in self.at_work.drain(..) {
                    job.answer(failed(&e));
                }
            }
            Ok(pieces) => {
                let mut pieces = pieces.into_iter();
                self.at_work.retain(|(text, job)| match pieces.next() {
                    Some(Ok(piece)) => {
                        let heard = piece.is_empty() || job.answer(Answer::Piece(piece));
                        if let Some(end) = text.end() {
                            shared.counters.written(&self.about.id, text.written());
                            job.answer(Answer::Ended(end, text.written()));
                        }
                        heard && text.end().is_none()
                    }
                    Some(Err(e)) => {
                        job.answer(failed(&e));
                        false
                    }
                    None => false,
                });
            }
        }
    }

    fn has_work(&self) -> bool {
        !self.at_work.is_empty() || !self.waiting.0.is_empty()
    }
}

/// The reason for the end of a text as OpenAI's programs name it.
pub(super) fn reason(end: End) -> &'static str {
    match end {
        End::Model | End::Stop => "stop",
        End::Length => "length",
    }
}
