//! Character n-grams: what a model has to beat.

use std::collections::HashMap;

use zoo_layers::random::{Purpose, Stream};

/// An n-gram model interpolated by Witten and Bell's rule (IEEE Trans. Inf. Theory 1991).
///
/// With N(h) occurrences of the context h, T(h) different characters seen behind it, and h' its later part:
///
/// ```text
/// P(c | h) = (N(h c) + T(h) P(c | h')) / (N(h) + T(h)),      P(c) behind nothing: 1 / vocabulary
/// ```
pub struct NGram {
    vocabulary: usize,
    /// For contexts of 0, 1, … characters: how often each was seen, and what behind it.
    contexts: Vec<HashMap<u64, Seen>>,
}

#[derive(Default)]
struct Seen {
    total: u32,
    behind: HashMap<u32, u32>,
}

impl NGram {
    /// Counts of `text`, numbers below `vocabulary`, for contexts of up to `order` - 1 characters.
    pub fn fit(text: &[u32], vocabulary: usize, order: usize) -> Self {
        let contexts = (0..order).map(|length| {
            let mut seen: HashMap<u64, Seen> = HashMap::new();
            for window in text.windows(length + 1) {
                let entry = seen.entry(key(&window[..length], vocabulary)).or_default();
                entry.total += 1;
                *entry.behind.entry(window[length]).or_default() += 1;
            }
            seen
        });
        Self { vocabulary, contexts: contexts.collect() }
    }

    /// The probability of `next` behind `before`.
    pub fn probability(&self, before: &[u32], next: u32) -> f64 {
        let mut p = 1. / self.vocabulary as f64;
        for (length, contexts) in self.contexts.iter().enumerate().take(before.len() + 1) {
            let Some(seen) = contexts.get(&key(&before[before.len() - length..], self.vocabulary)) else { break };
            let count = seen.behind.get(&next).copied().unwrap_or(0);
            let kinds = seen.behind.len() as f64;
            p = (f64::from(count) + kinds * p) / (f64::from(seen.total) + kinds);
        }
        p
    }

    /// Negative log-likelihoods of the characters of `text` in nats, given those `before` it.
    pub fn losses(&self, before: &[u32], text: &[u32]) -> Vec<f64> {
        let all: Vec<u32> = before.iter().chain(text).copied().collect();
        let longest = self.contexts.len().saturating_sub(1);
        (before.len()..all.len()).map(|i| -self.probability(&all[i.saturating_sub(longest)..i], all[i]).ln()).collect()
    }

    /// Their mean.
    pub fn loss(&self, before: &[u32], text: &[u32]) -> f64 {
        self.losses(before, text).iter().sum::<f64>() / text.len().max(1) as f64
    }

    /// The probability of each character behind `before`.
    fn distribution(&self, before: &[u32]) -> Vec<f64> {
        let mut each = vec![1. / self.vocabulary as f64; self.vocabulary];
        for (length, contexts) in self.contexts.iter().enumerate().take(before.len() + 1) {
            let Some(seen) = contexts.get(&key(&before[before.len() - length..], self.vocabulary)) else { break };
            let kinds = seen.behind.len() as f64;
            let total = f64::from(seen.total) + kinds;
            each.iter_mut().for_each(|p| *p *= kinds / total);
            for (c, n) in &seen.behind {
                each[*c as usize] += f64::from(*n) / total;
            }
        }
        each
    }

    /// `n` characters drawn one after the other behind `before`.
    pub fn write(&self, before: &[u32], n: usize, seed: u64) -> Vec<u32> {
        let mut stream = Stream::new(seed, Purpose::Sampling, 0, 0);
        let longest = self.contexts.len().saturating_sub(1);
        let mut all = before.to_vec();
        for _ in 0..n {
            let mut left = stream.uniform();
            let each = self.distribution(&all[all.len().saturating_sub(longest)..]);
            let next = each.iter().position(|p| {
                left -= p;
                left < 0.
            });
            all.push(next.unwrap_or(self.vocabulary - 1) as u32);
        }
        all.split_off(before.len())
    }
}

/// A context as one number: exact for up to 64 bits, and beyond that a hash.
fn key(context: &[u32], vocabulary: usize) -> u64 {
    context.iter().fold(1, |k, c| k.wrapping_mul(vocabulary as u64 + 1).wrapping_add(u64::from(*c) + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probabilities_sum_to_one_and_follow_the_rule() {
        let text = [0, 1, 0, 1, 0, 2, 0, 1];
        let model = NGram::fit(&text, 4, 3);
        for before in [&[][..], &[0], &[1, 0], &[3, 3], &[2, 0]] {
            let all = model.distribution(before);
            assert!((all.iter().sum::<f64>() - 1.).abs() < 1e-12, "{before:?}");
            assert!((0..4).all(|c| (all[c as usize] - model.probability(before, c)).abs() < 1e-12), "{before:?}");
        }
        // Behind nothing: N = 8, T = 3, P(1) = (3 + 3/4) / 11. Behind 0: N = 4 (three 1, one 2), T = 2.
        let unigram = 3.75 / 11.;
        assert!((model.probability(&[], 1) - unigram).abs() < 1e-12);
        assert!((model.probability(&[0], 1) - (3. + 2. * unigram) / 6.).abs() < 1e-12);
        assert!(model.loss(&[], &[0, 1, 0, 1]) < model.loss(&[], &[3, 3, 3, 3]));
    }
}
