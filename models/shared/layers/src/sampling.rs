//! Drawing tokens from the logits of a language model.

use std::cmp::Ordering;

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
pub struct Pieces {
    stop: Vec<String>,
    /// What may yet turn out to begin one of them.
    held: String,
}

impl Pieces {
    /// A text that ends before the first of `stop` (none of them empty).
    pub fn new(stop: &[String]) -> Self {
        Self { stop: stop.to_vec(), held: String::new() }
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
    pub fn rest(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

/// Bytes at the end of `text` that begin `stop`.
fn begun(text: &str, stop: &str) -> usize {
    let ends = stop.char_indices().map(|(at, _)| at).skip(1);
    ends.filter(|&at| text.ends_with(&stop[..at])).max().unwrap_or(0)
}

/// Draws tokens from logits.
pub struct Sampler {
    sampling: Sampling,
    stream: Stream,
}

impl Sampler {
    /// The draws of a sample.
    pub fn new(sampling: &Sampling) -> Self {
        Self { sampling: sampling.clone(), stream: Stream::new(sampling.seed, Purpose::Sampling, sampling.sample, 0) }
    }

    /// The number of the next token, from the logits of all and the numbers before.
    ///
    /// # Errors
    /// Logits that are not finite.
    pub fn draw(&mut self, logits: &[f32], before: &[u32]) -> Result<u32> {
        self.sampling.validate()?;
        let Sampling { temperature, top_k, top_p, min_p, repetition_penalty, .. } = self.sampling;
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
        let mut order = Order::new(&logits);
        let Some(first) = order.all.iter().copied().min_by(|a, b| likelier(&logits, a, b)) else {
            bail!("sampling: no logits")
        };
        if temperature == 0. {
            return Ok(first);
        }
        if (1..order.all.len()).contains(&top_k) {
            order.keep(top_k);
        }
        // Relative to the likeliest, whose weight is 1.
        let largest = logits[first as usize];
        let weight = |i: u32| ((logits[i as usize] - largest) / temperature).exp();
        let kept = |w: &f64| *w >= min_p;
        let total: f64 = order.all.iter().map(|i| weight(*i)).filter(kept).sum();
        let (mut most, mut mass) = (order.all.len(), total);
        if top_p < 1. {
            mass = 0.;
            for rank in 0..most {
                mass += weight(order.of_rank(rank));
                if mass >= top_p * total {
                    most = rank + 1;
                    break;
                }
            }
        }
        let (mut left, mut drawn) = (self.stream.uniform() * mass, first);
        for rank in 0..most {
            let token = order.of_rank(rank);
            let w = weight(token);
            // Rounding may leave something behind the last.
            if !kept(&w) {
                break;
            }
            drawn = token;
            left -= w;
            if left < 0. {
                break;
            }
        }
        Ok(drawn)
    }
}

/// Of equals the one with the lower number comes first.
fn likelier(logits: &[f64], a: &u32, b: &u32) -> Ordering {
    logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b))
}

/// Tokens from the likeliest down, put in order as far as somebody asks: a vocabulary has many that nobody asks for.
struct Order<'a> {
    logits: &'a [f64],
    all: Vec<u32>,
    /// So many are in order.
    sorted: usize,
}

impl<'a> Order<'a> {
    fn new(logits: &'a [f64]) -> Self {
        Self { logits, all: (0..logits.len() as u32).collect(), sorted: 0 }
    }

    /// Leaves out all but the likeliest `n`, at least one and fewer than there are.
    fn keep(&mut self, n: usize) {
        self.sort(n);
        self.all.truncate(n);
    }

    fn of_rank(&mut self, rank: usize) -> u32 {
        if rank >= self.sorted {
            self.sort((2 * rank).max(64));
        }
        self.all[rank]
    }

    /// Puts the first `n` in order.
    fn sort(&mut self, n: usize) {
        let n = n.min(self.all.len());
        let before = |a: &u32, b: &u32| likelier(self.logits, a, b);
        let rest = &mut self.all[self.sorted..];
        let new = n.saturating_sub(self.sorted);
        if (1..rest.len()).contains(&new) {
            rest.select_nth_unstable_by(new - 1, before);
        }
        rest[..new].sort_unstable_by(before);
        self.sorted = self.sorted.max(n);
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
