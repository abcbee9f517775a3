//! What the trainer needs: windows of text, loss, metrics and baselines.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use candle_core::{Device, Result, Tensor};
use candle_nn::VarBuilder;
use serde_json::{Map, Value};
use zoo_checkpoint::Description;
use zoo_layers::onnx::Graph;
use zoo_layers::ops::cross_entropy;
use zoo_layers::{Mode, Sampling};
use zoo_training::config::{AdamConfig, ConfigOf};
use zoo_training::health::{AttentionSettings, Probe, ProbeKind, Profile, Repair};
use zoo_training::spread::{deviation, mean, verdict};
use zoo_training::text::Source;
use zoo_training::{
    Dataset, Error, Evaluation, Export, Flag, Foreign, Generate, Import, Layout, Loss, Metrics, Name, OptimizerConfig,
    Preset, Recipe, ScheduleKind, Split, Task, TrainConfig, over_batches,
};

use crate::config::NAME;
use crate::data::{ALPHABET, characters, doubts, read};
use crate::ngram::NGram;
use crate::{CharGpt, Config, DataSettings, Vocabulary, Writer, layout};

/// Characters of a batch when evaluating.
const BATCH: usize = 4096;
/// Blocks of the validation part from which a difference has a standard error.
const FEWEST: usize = 4;
/// Characters that the better baseline's contexts have, and one.
const ORDER: usize = 5;
/// Characters that may be generated.
const MOST_GENERATED: usize = 100_000_000;
/// Windows of the training part that are looked at where one is interested in its loss.
const SOME: usize = 256;
/// Characters that are written to count how many words are known.
const WRITTEN: usize = 4000;
/// The seed of those.
const SEED: u64 = 42;

/// A text and its windows.
pub struct CharTask {
    origin: String,
    /// What was done to the text, and what is unusual with it.
    remarks: Vec<String>,
    vocabulary: Vocabulary,
    /// Numbers of the text's characters.
    text: Vec<u32>,
    /// Where the validation part begins.
    valid: usize,
    context: usize,
    eval_windows: usize,
    device: Device,
}

impl CharTask {
    /// Windows of `t` + 1 characters from these positions on, as inputs (b, t) and targets (b, t).
    fn windows(&self, starts: &[usize], t: usize) -> Result<(Tensor, Tensor)> {
        let part = |shift: usize| {
            let ids = starts.iter().flat_map(|s| &self.text[s + shift..s + shift + t]).map(|i| i64::from(*i)).collect();
            Tensor::from_vec::<_, i64>(ids, (starts.len(), t), &self.device)
        };
        Ok((part(0)?, part(1)?))
    }

    /// How many windows the validation part has.
    fn valid_windows(&self) -> usize {
        (self.text.len() - self.valid - 1) / self.context
    }

    fn start(&self, split: Split, sample: usize) -> usize {
        match split {
            Split::Train => sample,
            Split::Valid | Split::Test => self.valid + sample * self.context,
        }
    }

    /// Sum of the losses of windows of `t` characters from these positions on.
    fn sum(&self, model: &CharGpt, starts: &[usize], t: usize) -> Result<f64> {
        Ok(self.sums(model, starts, t)?.iter().sum())
    }

    /// The same, batch by batch of [`BATCH`] characters.
    fn sums(&self, model: &CharGpt, starts: &[usize], t: usize) -> Result<Vec<f64>> {
        let batches: Vec<&[usize]> = starts.chunks((BATCH / t).max(1)).collect();
        let sums = over_batches(batches.len(), |i| {
            let batch = self.windows(batches[i], t)?;
            let loss = self.loss(model, &batch, Mode::Eval)?.total.to_device(&Device::Cpu)?.to_scalar::<f32>()?;
            Ok(vec![f64::from(loss) * (batches[i].len() * t) as f64])
        })?;
        Ok(sums.into_iter().flatten().collect())
    }

    /// An n-gram fitted to the training part.
    fn n_gram(&self, order: usize) -> NGram {
        NGram::fit(&self.text[..self.valid], self.vocabulary.len(), order)
    }

    /// The losses of an n-gram on the characters of the validation part, and a text that it writes.
    fn n_gram_losses(&self, order: usize) -> (Vec<f64>, String) {
        let model = self.n_gram(order);
        let written = model.write(&self.text[self.valid..self.valid + 1], WRITTEN, SEED);
        (model.losses(&self.text[..=self.valid], &self.text[self.valid + 1..]), self.characters(&written))
    }

    fn characters(&self, numbers: &[u32]) -> String {
        numbers.iter().filter_map(|n| self.vocabulary.character(*n)).collect()
    }
}

/// Words: what lies between characters that are neither letters nor apostrophes, in small letters.
fn words(text: &str) -> impl Iterator<Item = String> {
    text.split(|c: char| !c.is_alphabetic() && c != '\'').filter(|w| !w.is_empty()).map(str::to_lowercase)
}

/// The share of a text's words that are among those known; its last word may be cut off and does not count.
fn share_known(text: &str, known: &HashSet<String>) -> f64 {
    let mut all: Vec<String> = words(text).collect();
    all.pop();
    all.iter().filter(|w| known.contains(*w)).count() as f64 / all.len().max(1) as f64
}

/// How a model compares with a baseline, in words: `sums` are its losses of whole blocks of so many characters, `losses` the baseline's of each
/// character. Differences of blocks are taken as independent.
fn beside(sums: &[f64], losses: &[f64], block: usize) -> (&'static str, String) {
    let gains: Vec<f64> =
        losses.chunks_exact(block).zip(sums).map(|(theirs, mine)| theirs.iter().sum::<f64>() - mine).collect();
    let spread = deviation(&gains);
    if gains.len() < FEWEST || spread == 0. {
        return ("cannot be told from", "too few different characters to tell by".into());
    }
    let errors = mean(&gains) / (spread / (gains.len() as f64).sqrt());
    (verdict(errors), format!("{errors:+.1} standard errors over blocks of {block} characters"))
}

/// Nats a character in other units.
fn metrics(loss: f64) -> Metrics {
    [("loss", loss), ("bits_per_character", loss / std::f64::consts::LN_2), ("perplexity", loss.exp())].into()
}

impl Task for CharTask {
    const NAME: &'static str = NAME;
    type Architecture = Config;
    type Data = DataSettings;
    type Settings = AttentionSettings;
    type Model = CharGpt;
    /// Characters (b, t) and those that follow each (b, t).
    type Batch = (Tensor, Tensor);

    fn build(config: &Config, vb: VarBuilder) -> Result<CharGpt> {
        CharGpt::new(config, vb)
    }

    fn recomputes(_: &Config) -> bool {
        true
    }

    fn fingerprint(&self) -> String {
        let numbers = self.text.iter().copied().chain([self.valid as u32]).flat_map(u32::to_le_bytes);
        let bytes: Vec<u8> = numbers.chain(self.vocabulary.text().into_bytes()).collect();
        zoo_checkpoint::sha256_of(&bytes)
    }

    fn fitted(&self) -> Value {
        self.vocabulary.text().into()
    }

    fn samples(&self, split: Split) -> usize {
        match split {
            // A window may begin at any character.
            Split::Train => self.valid - self.context,
            Split::Valid | Split::Test if self.text.len() == self.valid => 0,
            Split::Valid | Split::Test => self.valid_windows(),
        }
    }

    fn batch(&self, split: Split, indices: &[usize]) -> Result<(Tensor, Tensor)> {
        let starts: Vec<usize> = indices.iter().map(|i| self.start(split, *i)).collect();
        self.windows(&starts, self.context)
    }

    /// Cross-entropy in nats, averaged over all characters of the batch.
    fn loss(&self, model: &CharGpt, batch: &(Tensor, Tensor), mode: Mode) -> Result<Loss> {
        let logits = self.forward(model, batch, mode)?;
        Ok(Loss::new(cross_entropy(&logits, &batch.1, Default::default())?))
    }

    /// What a batch leaves open: the entropy of what follows each beginning of a window, as far as beginnings repeat.
    fn least_loss(&self, (ids, targets): &(Tensor, Tensor)) -> Result<Option<f64>> {
        let (ids, targets) =
            (ids.to_device(&Device::Cpu)?.to_vec2::<i64>()?, targets.to_device(&Device::Cpu)?.to_vec2::<i64>()?);
        let mut behind: BTreeMap<&[i64], BTreeMap<i64, f64>> = BTreeMap::new();
        for (ids, targets) in ids.iter().zip(&targets) {
            for (t, target) in targets.iter().enumerate() {
                *behind.entry(&ids[..=t]).or_default().entry(*target).or_default() += 1.;
            }
        }
        let (mut sum, mut total) = (0., 0.);
        for counts in behind.values() {
            let n: f64 = counts.values().sum();
            sum -= counts.values().map(|c| c * (c / n).ln()).sum::<f64>();
            total += n;
        }
        Ok(Some(sum / total))
    }

    fn repair(config: &ConfigOf<Self>) -> Option<Box<dyn Repair>> {
        config.task.repair.repair(config.train.seed)
    }

    fn probes(&self, model: &CharGpt, (ids, _): &(Tensor, Tensor)) -> Result<Vec<Probe>> {
        let kind = |name: &str| if name.ends_with("hidden") { ProbeKind::Activation } else { ProbeKind::Output };
        let all = model.activations(ids)?;
        Ok(all.iter().map(|(name, values)| Probe::new(name, kind(name), values)).collect())
    }

    fn validate(&self, model: &CharGpt, split: Split) -> Result<Metrics> {
        let (all, step) = match split {
            // Windows of the training part overlap: some of them tell enough.
            Split::Train => (self.samples(split), self.samples(split).div_ceil(SOME)),
            Split::Valid | Split::Test => (self.samples(split), 1),
        };
        let all = all / step;
        let n = if self.eval_windows == 0 { all } else { all.min(self.eval_windows) };
        let starts: Vec<usize> = (0..n).map(|i| self.start(split, i * all / n.max(1) * step)).collect();
        Ok(metrics(self.sum(model, &starts, self.context)? / (n * self.context).max(1) as f64))
    }

    fn health() -> Profile {
        Profile { units: None, ..Profile::default() }
    }

    fn baseline(&self, split: Split) -> Result<Option<(Name, f64)>> {
        // Of the text that it is fitted to it would be too good.
        Ok((split != Split::Train).then(|| {
            let (before, text) = self.text.split_at(self.valid + 1);
            (format!("{ORDER}-gram").into(), self.n_gram(ORDER).loss(before, text))
        }))
    }
}

impl Recipe for CharTask {
    const SUMMARY: &'static str = "GPT that writes text one character at a time";
    const PRESETS: &'static [Preset] = &[
        Preset { name: "cpu", summary: "nanoGPT's recipe for a CPU: 4 layers of 128, 2,000 steps", toml: "" },
        Preset {
            name: "cpu-fast",
            summary: "the same model by Muon at a linearly falling learning rate, 600 steps",
            toml: "[train]\noptimizer = \"muon\"\nlr = 0.015\nschedule = \"linear\"\nmin_lr = 0.0\n\
                   warmup_steps = 20\nsteps = 600\neval_every = 200\n",
        },
        Preset {
            name: "seed",
            summary: "one block of 64 in 21 tensors, with biases and an untied head",
            toml: "[model]\nlayers = 1\nwidth = 64\nhidden = 256\nseparate_qkv = true\ntied = false\nbias = true\n\
                   [train]\nbatch_size = 16\n",
        },
        Preset {
            name: "baby",
            summary: "nanoGPT's recipe for a GPU: 6 layers of 384, 256 characters, dropout 0.2, 5,000 steps",
            toml: "[model]\ncontext = 256\nlayers = 6\nheads = 6\nwidth = 384\nhidden = 1536\ndropout = 0.2\n\
                   [data]\neval_windows = 0\n\
                   [train]\nbatch_size = 64\nsteps = 5000\n",
        },
        Preset {
            name: "tiny",
            summary: "for tests",
            toml: "[model]\ncontext = 16\nlayers = 2\nheads = 2\nwidth = 16\nhidden = 32\ndropout = 0.1\n\
                   [data]\ngenerated = 20000\neval_windows = 16\n\
                   [train]\nsteps = 40\neval_every = 20\n",
        },
    ];
    const FLAGS: &'static [Flag] = &[Flag::value(
        "encoding",
        "NAME",
        "data.encoding",
        "The encoding of a text that is not UTF-8, such as windows-1252 or gbk",
    )];
    const DATA: &'static str = "any text, or shakespeare, which is fetched once; generated dialogue without one";
    const DATASETS: &'static [Dataset] = &[Dataset {
        name: "shakespeare",
        url: "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
        bytes: 1_115_394,
        sha256: "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
    }];
    const JUDGED: Split = Split::Valid;

    /// nanoGPT's recipe for a CPU.
    fn training() -> TrainConfig {
        TrainConfig {
            steps: 2000,
            batch_size: 12,
            optimizer: OptimizerConfig::AdamW(AdamConfig { beta2: 0.99, weight_decay: 0.1, ..AdamConfig::default() }),
            lr: 1e-3,
            clip_norm: 1.,
            schedule: ScheduleKind::Cosine,
            warmup_steps: 100,
            min_lr: 1e-4,
            eval_every: 250,
            ..TrainConfig::default()
        }
    }

    fn settle(config: &mut ConfigOf<Self>) -> zoo_training::Result<()> {
        let weights = Path::new(&config.train.init_from);
        let known = &config.data.vocabulary;
        // Numbers of characters mean what they meant to the weights that a run begins with. (One that goes on may do so
        // without them.)
        let theirs = match weights.as_os_str().is_empty() || (!known.is_empty() && !weights.exists()) {
            true => None,
            false => {
                let file = zoo_checkpoint::read(weights, &Device::Cpu)?;
                Some(Description::parse(&file.metadata, Self::NAME, weights)?.read::<Config, String>(weights)?.1)
            }
        };
        config.data.vocabulary = match theirs {
            Some(theirs) if !known.is_empty() && *known != theirs => {
                return Err(Error::Usage(format!(
                    "data.vocabulary is not that of {}: leave it out (set it to an empty text)",
                    weights.display()
                )));
            }
            Some(theirs) => theirs,
            None if !known.is_empty() => known.clone(),
            None if config.data.path.is_empty() => ALPHABET.into(),
            None => characters(&config.data, "")?,
        };
        config.model.vocabulary = config.data.vocabulary.chars().count();
        Ok(())
    }

    fn explain(config: &Config) -> String {
        let &Config { vocabulary, context, layers, width, hidden, tied, bias, .. } = config;
        let biases = |n: usize| if bias { format!(" + {n} biases") } else { String::new() };
        let b = usize::from(bias);
        let attention = 4 * width * width + b * 4 * width;
        let mlp = 2 * width * hidden + b * (hidden + width);
        let norms = 2 * width * (1 + b);
        let mut parts = vec![
            format!("embedding: {vocabulary} x {width}, positions: {context} x {width}"),
            format!(
                "block: attention 4 x {width} x {width}{} = {attention}, MLP 2 x {width} x {hidden}{} = {mlp}, two norms {norms}; {layers} times = {}",
                biases(4 * width),
                biases(hidden + width),
                layers * (attention + mlp + norms)
            ),
            format!("final norm: {}", width * (1 + b)),
        ];
        parts.push(match tied {
            true => "head: the embedding's table".into(),
            false => format!("head: {vocabulary} x {width}"),
        });
        parts.join("\n")
    }

    fn flops(config: &Config, _: &DataSettings) -> Option<f64> {
        let &Config { vocabulary, context, layers, width, hidden, .. } = config;
        let of_weights = layers * (4 * width * width + 2 * width * hidden) + vocabulary * width;
        // Scores and values of the half that causal attention sees.
        Some(2. * (context * of_weights + layers * context * context * width) as f64)
    }

    fn check(config: &Config, fitted: &Value) -> zoo_training::Result<()> {
        let n = Vocabulary::new(fitted.as_str().unwrap_or_default())?.len();
        match n == config.vocabulary {
            true => Ok(()),
            false => {
                Err(Error::Data(format!("model.vocabulary is {}, but there are {n} characters", config.vocabulary)))
            }
        }
    }

    fn open(
        config: &Config,
        source: &DataSettings,
        seed: u64,
        fitted: Option<&Value>,
        device: &Device,
    ) -> zoo_training::Result<Self> {
        if let Some(problem) = config.problem() {
            return Err(Error::Usage(problem));
        }
        if source.generated > MOST_GENERATED {
            let n = source.generated;
            return Err(Error::Usage(format!("data.generated is {n}, expected at most {MOST_GENERATED}")));
        }
        if !(0. ..1.).contains(&source.valid) {
            return Err(Error::Usage("data.valid must be a share that leaves a training part".into()));
        }
        let known = fitted.map_or(source.vocabulary.as_str(), |value| value.as_str().unwrap_or_default());
        let Source { text, origin, mut remarks } = read(source, seed, known)?;
        let characters = match (fitted, known) {
            (None, "") => Vocabulary::of(&text),
            _ => known.to_string(),
        };
        let named = |e: candle_core::Error| {
            Error::Data(format!("{origin}: {}", e.to_string().lines().next().unwrap_or_default()))
        };
        let vocabulary = Vocabulary::new(&characters).map_err(named)?;
        if vocabulary.len() != config.vocabulary {
            return Err(Error::Usage(format!(
                "model.vocabulary is {}, but there are {} characters",
                config.vocabulary,
                vocabulary.len()
            )));
        }
        let text = vocabulary.encode(&text).map_err(named)?;
        remarks.extend(doubts(&text, &vocabulary));
        // As nanoGPT splits it.
        let valid = (text.len() as f64 * (1. - source.valid)) as usize;
        let needed = config.context + 1;
        if valid < needed || (source.valid > 0. && text.len() - valid < needed) {
            return Err(Error::Data(format!(
                "{origin}: {} characters, of which {} validate: each part needs more than model.context = {} (bring more \
                 text, or set model.context lower)",
                text.len(),
                text.len() - valid,
                config.context
            )));
        }
        let (context, eval_windows) = (config.context, source.eval_windows);
        Ok(Self { origin, remarks, vocabulary, text, valid, context, eval_windows, device: device.clone() })
    }

    fn describe_data(&self) -> String {
        let (all, valid) = (self.text.len(), self.text.len() - self.valid);
        format!("{}, {all} characters, {} different; the last {valid} validate", self.origin, self.vocabulary.len())
    }

    fn warnings(&self) -> Vec<String> {
        self.remarks.clone()
    }

    fn forward(&self, model: &CharGpt, (ids, _): &(Tensor, Tensor), mode: Mode) -> Result<Tensor> {
        model.forward(ids, mode)
    }

    fn evaluate(&self, model: &CharGpt, split: Split) -> Result<Evaluation> {
        let n = self.samples(split);
        let starts: Vec<usize> = (0..n).map(|i| self.start(split, i)).collect();
        let sums = self.sums(model, &starts, self.context)?;
        let mut sum: f64 = sums.iter().sum();
        // What is left is a shorter window.
        let first = self.start(split, n);
        let left = self.text.len() - 1 - first;
        if left > 0 {
            sum += self.sum(model, &[first], left)?;
        }
        let characters = n * self.context + left;
        let known: HashSet<String> = words(&self.characters(&self.text[..self.valid])).collect();
        // Characters have one to four bytes; by bytes, models of other units can be compared.
        let per_byte = characters as f64 / self.characters(&self.text[self.valid + 1..]).len().max(1) as f64;
        let judged = |loss: f64, text: &str| {
            let mut metrics = metrics(loss);
            metrics.push("bits_per_byte", loss / std::f64::consts::LN_2 * per_byte);
            metrics.push("known_words", share_known(text, &known));
            metrics
        };
        let sampling = Sampling { tokens: WRITTEN, seed: SEED, ..Sampling::default() };
        let writer = Writer::new(model.clone(), self.vocabulary.clone(), &self.device)?;
        let prompt = self.characters(&self.text[self.valid..self.valid + 1]);
        let metrics = judged(sum / characters as f64, &writer.generate(&prompt, &sampling)?);
        let loss = metrics[0].1;
        let (mut baselines, mut remarks) = (vec![], vec![]);
        for (name, called, order) in [("bigram", "bigram", 2), ("5-gram", "interpolated 5-gram", ORDER)] {
            let (losses, text) = self.n_gram_losses(order);
            let of = mean(&losses);
            baselines.push((name.into(), judged(of, &text)));
            let (verdict, errors) = beside(&sums, &losses, (BATCH / self.context).max(1) * self.context);
            remarks.push(format!(
                "The model {verdict} the {called} ({loss:.4} against {of:.4} nats a character, {errors})."
            ));
        }
        let of_text = share_known(&self.characters(&self.text[self.valid..]), &known);
        remarks.extend([
            format!(
                "It saw the {} characters of a window at most, and less at its beginning; the n-grams always saw theirs.",
                self.context
            ),
            format!(
                "Of {WRITTEN} characters that each writes, known words are those of the training part; of the validation \
                 part's own words {:.1} % are known.",
                100. * of_text
            ),
        ]);
        Ok(Evaluation { samples: characters, metrics, baselines, remarks, ..Evaluation::default() })
    }
}

impl Generate for CharTask {
    type Writer = Writer;

    fn writer(model: &CharGpt, fitted: &Value, device: &Device) -> zoo_training::Result<Writer> {
        let vocabulary = Vocabulary::new(fitted.as_str().unwrap_or_default())?;
        Ok(Writer::new(model.clone(), vocabulary, device)?)
    }
}

impl Export for CharTask {
    const STATE: Option<&'static str> = Some("keys and values of attention");

    fn export(model: &CharGpt, _: &Config, _: &Value, state: bool, graph: &mut Graph) -> Result<()> {
        model.export(graph, state)
    }
}

impl Import for CharTask {
    const LAYOUTS: &'static [Layout] = layout::LAYOUTS;

    fn recognize(tensors: &[(&str, &[usize])]) -> Option<&'static Layout> {
        layout::recognize(tensors)
    }

    fn adopt(foreign: &Foreign) -> zoo_training::Result<(Config, DataSettings, Value)> {
        layout::adopt(foreign)
    }

    fn entries(layout: &Layout, config: &Config, _: &Value) -> zoo_training::Result<Map<String, Value>> {
        layout::entries(layout, config)
    }
}

#[cfg(test)]
mod tests {
    use super::beside;

    #[test]
    fn a_difference_that_chance_explains_is_called_none() {
        let losses = vec![1.; 50];
        let of = |sums: &[f64]| beside(sums, &losses, 10).0;
        assert_eq!(of(&[9., 8.5, 9.2, 8.8, 9.1]), "beats");
        assert_eq!(of(&[11., 11.5, 11.2, 10.8, 11.1]), "is worse than");
        assert_eq!(of(&[9., 11.5, 9.2, 10.8, 10.1]), "does not clearly differ from");
        assert_eq!(of(&[9., 8.5]), "cannot be told from");
    }
}
