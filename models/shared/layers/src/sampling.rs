//! Drawing tokens from the logits of a language model.

use candle_core::{Result, bail};

use crate::random::{Purpose, Stream};

/// How text is drawn from a model.
#[derive(Clone, Debug)]
pub struct Sampling {
    /// Tokens to write.
    pub tokens: usize,
    /// Logits are divided by it: below 1 safer, above 1 wilder, 0 for always the likeliest token.
    pub temperature: f64,
    /// Only the likeliest so many; 0 for all.
    pub top_k: usize,
    /// Only the likeliest that together have this probability (Holtzman et al. 2020); 1 for all.
    pub top_p: f64,
    /// Only those with at least this share of the likeliest's probability; 0 for all.
    pub min_p: f64,
    /// Logits of tokens among the last 64 are divided by it (multiplied if negative: Keskar et al. 2019); 1 for none.
    pub repetition_penalty: f64,
    /// Ends at the first of these; it is not written.
    pub stop: Vec<String>,
    /// Same seed, same text.
    pub seed: u64,
    /// The number of the sample, so that several differ.
    pub sample: u64,
    /// Keys and values of the positions before are kept. Without it, every token costs a pass over the whole context.
    pub cache: bool,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            tokens: 500,
            temperature: 1.,
            top_k: 0,
            top_p: 1.,
            min_p: 0.,
            repetition_penalty: 1.,
            stop: vec![],
            seed: 42,
            sample: 0,
            cache: true,
        }
    }
}

/// Tokens that the repetition penalty looks back on.
const LOOK_BACK: usize = 64;

impl Sampling {
    /// Refuses numbers that make no sense, naming them.
    pub fn validate(&self) -> Result<()> {
        let checks = [
            (self.temperature >= 0. && self.temperature.is_finite(), "temperature must be a number of 0 or more"),
            (self.top_p > 0. && self.top_p <= 1., "top-p must lie in (0, 1]"),
            ((0. ..=1.).contains(&self.min_p), "min-p must lie in [0, 1]"),
            ((0.01..=100.).contains(&self.repetition_penalty), "repetition-penalty must lie in [0.01, 100]"),
            (self.stop.iter().all(|s| !s.is_empty()), "stop must not be empty"),
        ];
        match checks.into_iter().find(|(ok, _)| !ok) {
            Some((_, message)) => bail!("{message}"),
            None => Ok(()),
        }
    }
}

/// Text on its way to a reader, who is to see nothing of what ends it.
pub struct Pieces<'a> {
    stop: &'a [String],
    /// What may yet turn out to begin one of them.
    held: String,
}

impl<'a> Pieces<'a> {
    /// A text that ends before the first of `stop` (none of them empty).
    pub fn new(stop: &'a [String]) -> Self {
        Self { stop, held: String::new() }
    }

    /// Takes a piece of it: what is certain by now, and whether it has ended.
    pub fn push(&mut self, piece: &str) -> (String, bool) {
        self.held.push_str(piece);
        if let Some(end) = self.stop.iter().filter_map(|stop| self.held.find(stop.as_str())).min() {
            self.held.truncate(end);
            return (std::mem::take(&mut self.held), true);
        }
        let keep = self.stop.iter().map(|stop| begun(&self.held, stop)).max().unwrap_or(0);
        (self.held.drain(..self.held.len() - keep).collect(), false)
    }

    /// What is left when no more comes.
    pub fn rest(self) -> String {
        self.held
    }
}

/// Bytes at the end of `text` that begin `stop`.
fn begun(text: &str, stop: &str) -> usize {
    let ends = stop.char_indices().map(|(at, _)| at).skip(1);
    ends.filter(|&at| text.ends_with(&stop[..at])).max().unwrap_or(0)
}

/// Draws tokens from logits.
pub struct Sampler<'a> {
    sampling: &'a Sampling,
    stream: Stream,
}

impl<'a> Sampler<'a> {
    /// The draws of a sample.
    pub fn new(sampling: &'a Sampling) -> Self {
        Self { sampling, stream: Stream::new(sampling.seed, Purpose::Sampling, sampling.sample, 0) }
    }

    /// The number of the next token, from the logits of all and the numbers before.
    ///
    /// # Errors
    /// Logits that are not finite.
    pub fn draw(&mut self, logits: &[f32], before: &[u32]) -> Result<u32> {
        self.sampling.validate()?;
        let Sampling { temperature, top_k, top_p, min_p, repetition_penalty, .. } = *self.sampling;
        let mut logits: Vec<f64> = logits.iter().map(|l| f64::from(*l)).collect();
        if logits.iter().any(|l| !l.is_finite()) {
            bail!("sampling: the model's logits are not finite numbers")
        }
        if repetition_penalty != 1. {
            let mut recent = before[before.len().saturating_sub(LOOK_BACK)..].to_vec();
            recent.sort_unstable();
            recent.dedup();
            for i in recent {
                if let Some(l) = logits.get_mut(i as usize) {
                    *l = if *l > 0. { *l / repetition_penalty } else { *l * repetition_penalty };
                }
            }
        }
        // From the likeliest down; of equals the one with the lower number first.
        let before = |a: &usize, b: &usize| logits[*b].total_cmp(&logits[*a]).then(a.cmp(b));
        let mut order: Vec<usize> = (0..logits.len()).collect();
        let Some(first) = order.iter().copied().min_by(before) else { bail!("sampling: no logits") };
        if temperature == 0. {
            return Ok(first as u32);
        }
        if (1..order.len()).contains(&top_k) {
            order.select_nth_unstable_by(top_k - 1, before);
            order.truncate(top_k);
        }
        order.sort_unstable_by(before);
        let weights: Vec<f64> = order.iter().map(|&i| ((logits[i] - logits[first]) / temperature).exp()).collect();
        // Relative to the likeliest, whose weight is 1.
        let mut kept = weights.iter().take_while(|w| **w >= min_p).count();
        let total: f64 = weights[..kept].iter().sum();
        let mut sum = 0.;
        for (i, w) in weights[..kept].iter().enumerate() {
            sum += w;
            if sum >= top_p * total {
                kept = i + 1;
                break;
            }
        }
        let kept = kept.max(1);
        let mut left = self.stream.uniform() * weights[..kept].iter().sum::<f64>();
        for (i, w) in order.iter().zip(&weights[..kept]) {
            left -= w;
            if left < 0. {
                return Ok(*i as u32);
            }
        }
        Ok(order[kept - 1] as u32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_sees_nothing_of_what_ends_a_text() {
        let stop = ["</s>".to_string(), "\n\n".to_string()];
        for pieces in [&["a <", "b> ", "end</", "s> more"][..], &["a <b> end</s> more"], &["a <b> end\n", "\nmore"]] {
            let (mut out, mut text, mut ended) = (Pieces::new(&stop), String::new(), false);
            for piece in pieces {
                let (certain, end) = out.push(piece);
                text.push_str(&certain);
                ended = end;
            }
            assert_eq!((text.as_str(), ended), ("a <b> end", true));
        }
        let mut out = Pieces::new(&stop);
        assert_eq!((out.push("no end<"), out.rest()), (("no end".into(), false), "<".into()));
    }

    #[test]
    fn filters_leave_what_they_say() -> Result<()> {
        // Probabilities 0.5, 0.25, 0.125, 0.125.
        let logits = [0.125f32.ln(), 0.5f32.ln(), 0.25f32.ln(), 0.125f32.ln()];
        let drawn = |sampling: Sampling, before: &[u32]| -> Result<Vec<u32>> {
            let mut sampler = Sampler::new(&sampling);
            let mut all = (0..400).map(|_| sampler.draw(&logits, before)).collect::<Result<Vec<_>>>()?;
            all.sort_unstable();
            all.dedup();
            Ok(all)
        };
        let plain = Sampling::default;
        assert_eq!(drawn(plain(), &[])?, [0, 1, 2, 3]);
        assert_eq!(drawn(Sampling { temperature: 0., ..plain() }, &[])?, [1]);
        assert_eq!(drawn(Sampling { top_k: 2, ..plain() }, &[])?, [1, 2]);
        assert_eq!(drawn(Sampling { top_p: 0.7, ..plain() }, &[])?, [1, 2]);
        assert_eq!(drawn(Sampling { min_p: 0.4, ..plain() }, &[])?, [1, 2]);
        // Logits are negative here: the penalty makes them lower.
        assert_eq!(drawn(Sampling { temperature: 0., repetition_penalty: 10., ..plain() }, &[1])?, [2]);
        let bad = Sampling { top_p: 0., ..plain() };
        assert!(bad.validate().unwrap_err().to_string().contains("top-p"));
        assert!(Sampling { repetition_penalty: 1e-308, ..plain() }.validate().is_err());
        assert!(
            Sampler::new(&plain()).draw(&[f32::NAN], &[]).is_err() && Sampler::new(&plain()).draw(&[], &[]).is_err()
        );
        // The extremes that are allowed.
        assert_eq!(drawn(Sampling { temperature: 1e-300, repetition_penalty: 0.01, ..plain() }, &[])?, [1]);
        assert_eq!(drawn(Sampling { min_p: 1., top_p: 1e-300, ..plain() }, &[])?, [1]);
        Ok(())
    }

    #[test]
    fn draws_have_the_probabilities_of_the_logits() -> Result<()> {
        let sampling = Sampling { temperature: 2., ..Sampling::default() };
        let mut sampler = Sampler::new(&sampling);
        // At temperature 2, probabilities in the proportion 4 : 1 become 2 : 1.
        let n = 6000;
        let draws = (0..n).map(|_| sampler.draw(&[4f32.ln(), 0.], &[])).collect::<Result<Vec<_>>>()?;
        let share = draws.iter().filter(|d| **d == 0).count() as f64 / f64::from(n);
        assert!((share - 2. / 3.).abs() < 0.02, "{share}");
        Ok(())
    }
}
