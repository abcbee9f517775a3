//! What the trainer needs: windows of tokens, loss, metrics and baselines.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{Device, Result, Tensor};
use candle_nn::VarBuilder;
use serde_json::{Map, Value};
use zoo_checkpoint::Source;
use zoo_layers::onnx::Graph;
use zoo_layers::ops::CrossEntropyOptions;
use zoo_layers::{Mode, Params, Weight};
use zoo_training::config::{AdamConfig, ConfigOf, NoSettings};
use zoo_training::health::{Probe, ProbeKind, Profile};
use zoo_training::{
    AsIs, Encoded, Error, Evaluation, Export, Flag, Foreign, Generate, Import, Layout, Loss, Memory, Merged, Metrics,
    OptimizerConfig, Over, Preset, Recipe, ScheduleKind, Split, Task, Tokenize, TrainConfig, over_batches,
};

use crate::adapter::{self, of_lora};
use crate::config::NAME;
use crate::corpus::{Batch, Corpus, Documents, IGNORED, documents};
use crate::shards::{self, Shards};
use crate::{
    AdapterFile, Base, BaseFile, Config, DataSettings, Llama, Lora, Message, Tokens, TokensFile, Writer, gguf, layout,
};

/// Tokens of a batch when evaluating.
const BATCH: usize = 1024;
/// Characters that may be generated.
const MOST_GENERATED: usize = 100_000_000;
/// Windows of the training part that are looked at where one is interested in its loss.
const SOME: usize = 64;

/// Documents as tokens, and their windows.
pub struct LlamaTask {
    origin: String,
    /// What was done to the documents, and what is unusual with them.
    remarks: Vec<String>,
    tokens: Tokens,
    /// The part to learn from, and the one that validates.
    parts: [Corpus; 2],
    /// Documents, if that is known.
    documents: usize,
    window: usize,
    eval_windows: usize,
    device: Device,
    /// What `model.lora` adapts, where it is trained.
    base: Option<Base>,
    /// A text by which is told what was forgotten.
    general: Option<Corpus>,
}

impl LlamaTask {
    /// Tokens that lie in a folder; their tokenizer is that of `known`, if there is one.
    fn stored(
        config: &Config,
        source: &DataSettings,
        known: Option<Tokens>,
        device: &Device,
    ) -> zoo_training::Result<Self> {
        let shards = Shards::open(Path::new(&source.path))?;
        let origin = source.path.clone();
        if known.as_ref().is_some_and(|known| !known.agrees(shards.tokenizer())) {
            return Err(Error::Usage(format!(
                "{origin}: its tokens are of another tokenizer than the weights' or --tokenizer's: write them anew by zoo tokenizer encode"
            )));
        }
        // What weights say of ends and conversations goes on.
        let tokens = known.unwrap_or_else(|| shards.tokenizer().clone());
        known_to(config, &tokens)?;
        let parts = Corpus::stored(shards, source.valid)?;
        let (window, eval_windows) = (source.window(config), source.eval_windows);
        let [train, valid] = parts.each_ref().map(Corpus::len);
        if train <= window || (source.valid > 0. && valid <= window) {
            return Err(Error::Data(format!(
                "{origin}: {train} tokens to learn from and {valid} that validate are too few for windows of {window}: bring more text, or \
                 set data.window lower"
            )));
        }
        let device = device.clone();
        Ok(Self {
            origin,
            remarks: vec![],
            tokens,
            parts,
            documents: 0,
            window,
            eval_windows,
            device,
            base: None,
            general: None,
        })
    }

    /// The documents of a text, a folder or a JSONL file; tokens that are not `known` are trained on the part to learn from.
    fn of_texts(
        config: &Config,
        source: &DataSettings,
        seed: u64,
        known: Option<Tokens>,
        device: &Device,
    ) -> zoo_training::Result<Self> {
        let window = source.window(config);
        let mut documents = documents(source, seed, known.as_ref())?;
        let count = documents.texts.len();
        let [first, last] = documents.split(source.valid)?;
        let Documents { origin, mut remarks, answers, .. } = documents;
        let tokens = match known {
            Some(tokens) => tokens,
            None => {
                let texts = first.iter().flatten().map(|(text, _)| text.as_str());
                let tokens = Tokens::train(texts, config.vocabulary)?;
                if tokens.len() < config.vocabulary {
                    remarks.push(format!(
                        "the text yields {} tokens, fewer than model.vocabulary = {}: the others are never used",
                        tokens.len(),
                        config.vocabulary
                    ));
                }
                tokens
            }
        };
        known_to(config, &tokens)?;
        let (first, without) = Corpus::new(&first, answers, &tokens, window)?;
        let (last, more_without) = Corpus::new(&last, answers, &tokens, window)?;
        remarks.extend(without.into_iter().map(|remark| format!("to learn from: {remark}")));
        remarks.extend(more_without.into_iter().map(|remark| format!("to validate: {remark}")));
        let too_few = match answers {
            true => first.starts.is_empty() || (source.valid > 0. && last.starts.is_empty()),
            false => first.len() <= window || (source.valid > 0. && last.len() <= window),
        };
        if too_few {
            let (train, valid) = (first.len(), last.len());
            let way = match answers {
                true => "set data.window higher, or bring more documents",
                false => "bring more text, or set data.window lower",
            };
            let said = if remarks.is_empty() { String::new() } else { format!("; {}", remarks.join("; ")) };
            return Err(Error::Data(format!(
                "{origin}: {train} tokens to learn from and {valid} that validate are too few for windows of {window}: {way}{said}"
            )));
        }
        let eval_windows = source.eval_windows;
        Ok(Self {
            origin,
            remarks,
            tokens,
            parts: [first, last],
            documents: count,
            window,
            eval_windows,
            device: device.clone(),
            base: None,
            general: None,
        })
    }

    fn part(&self, split: Split) -> &Corpus {
        match split {
            Split::Train => &self.parts[0],
            Split::Valid | Split::Test => &self.parts[1],
        }
    }

    /// Sum of the losses of windows of `t` tokens of a part from these places on, and the number of targets.
    fn sum(&self, model: &Llama, part: &Corpus, starts: &[usize], t: usize) -> Result<(f64, f64)> {
        let batches: Vec<&[usize]> = starts.chunks((BATCH / t).max(1)).collect();
        let sums = over_batches(batches.len(), |i| {
            let (batch, count) = part.windows(batches[i], t, true, &self.device)?;
            if count == 0 {
                return Ok(vec![0., 0.]);
            }
            let loss = self.loss(model, &batch, Mode::Eval)?.total.to_device(&Device::Cpu)?.to_scalar::<f32>()?;
            Ok(vec![f64::from(loss) * count as f64, count as f64])
        })?;
        Ok(sums.iter().fold((0., 0.), |(loss, count), sum| (loss + sum[0], count + sum[1])))
    }

    /// As [`LlamaTask::sum`], of a whole part as it is judged, or of some windows of the one to learn from.
    fn whole(&self, model: &Llama, part: &Corpus, split: Split) -> Result<(f64, f64)> {
        let n = part.samples(split, self.window);
        let starts: Vec<usize> = (0..n).map(|i| part.start(split, i, self.window)).collect();
        let (mut sum, mut targets) = self.sum(model, part, &starts, self.window)?;
        // What is left is a shorter window.
        let first = n * self.window;
        let left = (part.len().max(1) - 1).saturating_sub(first);
        if left > 0 && !part.is_by_document() && split != Split::Train {
            let (loss, count) = self.sum(model, part, &[first], left)?;
            (sum, targets) = (sum + loss, targets + count);
        }
        Ok((sum / targets.max(1.), targets))
    }

    /// Nats a token, and in units that models of other tokens share.
    fn metrics(part: &Corpus, loss: f64) -> Metrics {
        let tokens_a_byte = part.targets as f64 / part.bytes.max(1) as f64;
        let bits = loss / std::f64::consts::LN_2;
        [("loss", loss), ("perplexity", loss.exp()), ("bits_per_byte", bits * tokens_a_byte)].into()
    }

    /// The loss of how often tokens are among those learnt in training, whatever stands before them: each counted once more.
    fn frequencies(&self, of: &Corpus) -> Result<f64> {
        self.of_frequencies(of).map_err(|e| candle_core::Error::Msg(e.to_string()))
    }

    fn of_frequencies(&self, of: &Corpus) -> zoo_training::Result<f64> {
        let mut counts = vec![1f64; self.tokens.len()];
        self.parts[0].each_learnt(&mut |token| counts[token as usize] += 1.)?;
        let total: f64 = counts.iter().sum();
        let (mut sum, mut n) = (0., 0.);
        of.each_learnt(&mut |token| {
            sum -= (counts[token as usize] / total).ln();
            n += 1.;
        })?;
        Ok(sum / f64::max(n, 1.))
    }
}

/// Refuses more tokens than the model has rows for.
fn known_to(config: &Config, tokens: &Tokens) -> zoo_training::Result<()> {
    let (known, rows) = (tokens.len(), config.vocabulary);
    match known <= rows {
        true => Ok(()),
        false => Err(Error::Usage(format!("model.vocabulary is {rows}, but there are {known} tokens"))),
    }
}

/// The tokenizer of a `tokenizer.json`, or of weights.
fn tokens(path: &Path) -> zoo_training::Result<Tokens> {
    match path.extension().is_some_and(|e| e == "json") {
        true => Ok(Tokens::read(path)?),
        false => Ok(Tokens::new(adapter::sizes(path)?.1)?),
    }
}

/// What an allocator holds where blocks of many sizes come and go, as the gradients of whole models do (measured).
const SIZES: f64 = 1.4;

/// Logits that the loss has at a time (`linear_cross_entropy`).
const LOGITS: f64 = (1 << 24) as f64;

/// Bytes of the weights that LoRA leaves as they are.
fn held(config: &Config, source: &DataSettings) -> f64 {
    /// Of a GGUF file's, scales are f32 here and 16 bits there.
    const SCALES: f64 = 1.25;
    let path = Path::new(&source.base);
    if let (true, Ok(file)) = (path.extension().is_some_and(|e| e == "gguf"), std::fs::metadata(path)) {
        return SCALES * file.len() as f64;
    }
    let sizes = Config { lora: Lora::default(), ..config.clone() };
    let all = Params::outline(|vb| Llama::new(&sizes, vb)).unwrap_or_default();
    4. * all.iter().map(|p| p.count()).sum::<usize>() as f64
}

/// Floating-point operations of a window's forward pass.
struct Flops {
    /// With the model's own weights.
    weights: f64,
    /// Scores and values of attention, of the half that it sees.
    attention: f64,
    /// With LoRA's.
    lora: f64,
}

impl Flops {
    fn of(config: &Config, source: &DataSettings) -> Self {
        let &Config { vocabulary, layers, heads, key_heads, head_width, width, hidden, .. } = config;
        let (t, all) = (source.window(config), heads * head_width);
        let of_weights =
            layers * (2 * width * all + 2 * width * key_heads * head_width + 3 * width * hidden) + vocabulary * width;
        let of = |products: usize| 2. * (t * products) as f64;
        Self { weights: of(of_weights), attention: of(layers * t * all), lora: of(config.adapted()) }
    }

    fn forward(&self) -> f64 {
        self.weights + self.attention + self.lora
    }
}

const WITHOUT_BASE: &str =
    "model.lora adapts weights that stay as they are: name them by data.base (ours, or a GGUF file)";

/// The weights that are adapted.
fn base_of(source: &DataSettings, device: &Device) -> zoo_training::Result<Base> {
    match source.base.as_str() {
        "" => Err(Error::Usage(WITHOUT_BASE.into())),
        path if !Path::new(path).exists() => Err(Error::Usage(format!(
            "data.base: there is no {path}: name where the weights that the adapter stands beside lie now by data.base"
        ))),
        path => Ok(Base::read(Path::new(path), device)?),
    }
}

/// All of a text as one part, and what was done to it. It is UTF-8, or says what it is.
fn all_of(
    path: &str,
    source: &DataSettings,
    tokens: &Tokens,
    window: usize,
) -> zoo_training::Result<(Corpus, Vec<String>)> {
    let source = DataSettings { path: path.into(), encoding: String::new(), ..source.clone() };
    let mut documents = documents(&source, 0, Some(tokens))?;
    let [all, _] = documents.split(0.)?;
    let (corpus, without) = Corpus::new(&all, documents.answers, tokens, window)?;
    match corpus.samples(Split::Test, window) {
        0 => Err(Error::Data(format!("data.general: {path} has no window of {window} tokens"))),
        _ => Ok((corpus, documents.remarks.into_iter().chain(without).collect())),
    }
}

/// Sizes and tokenizer of a run with LoRA: those of its base.
fn over_base(config: &mut ConfigOf<LlamaTask>) -> zoo_training::Result<()> {
    let base = config.data.base.clone();
    if !config.model.lora.is_on() {
        return Err(Error::Usage(format!(
            "data.base: {base} would be adapted by LoRA: give it a rank (--lora 8, or --preset lora), or begin with these weights and train \
             all of them (--init-from)"
        )));
    }
    if !Path::new(&base).exists() {
        return Err(Error::Usage(format!(
            "data.base: there is no {base}: name where the weights that LoRA adapts lie by data.base"
        )));
    }
    let (theirs, file) = adapter::sizes(Path::new(&base))?;
    let named = &config.data.tokenizer;
    if !named.is_empty() && !tokens(Path::new(named))?.agrees(&Tokens::new(file)?) {
        return Err(Error::Usage(format!(
            "data.tokenizer is not that of {base}: leave it out (its tokens have other numbers)"
        )));
    }
    config.model = Config { lora: config.model.lora.clone(), ..theirs };
    if config.data.window == 0 {
        config.data.window = DataSettings::of_foreign(&config.model).window;
    }
    Ok(())
}

/// The tokenizer that weights have with them.
pub(crate) fn in_weights(fitted: &Value) -> zoo_training::Result<Tokens> {
    let file: TokensFile = serde_json::from_value(fitted.clone())
        .map_err(|e| Error::Data(format!("the tokenizer in the weights: {e}")))?;
    Ok(Tokens::new(file)?)
}

impl Task for LlamaTask {
    const NAME: &'static str = NAME;
    type Architecture = Config;
    type Data = DataSettings;
    type Settings = NoSettings;
    type Model = Llama;
    type Batch = Batch;

    fn build(config: &Config, vb: VarBuilder) -> Result<Llama> {
        Llama::new(config, vb)
    }

    fn define(&self, config: &Config, vb: VarBuilder) -> Result<Llama> {
        match &self.base {
            Some(base) => base.define(config, vb),
            None => Self::build(config, vb),
        }
    }

    fn trains(config: &Config, name: &str) -> bool {
        !config.lora.is_on() || of_lora(name).is_some()
    }

    fn initial(path: &Path, device: &Device) -> zoo_training::Result<BTreeMap<String, Tensor>> {
        let source = zoo_checkpoint::open(path)?;
        if !Llama::is_gguf(&source) {
            return Ok(source.read(device)?.tensors);
        }
        let (_, _, weights) = gguf::read(&source)?;
        let plain = |(name, weight): (String, Weight)| Ok((name, weight.merged()?.to_device(device)?));
        Ok(weights.into_iter().map(plain).collect::<Result<_>>()?)
    }

    fn health() -> Profile {
        // From gentle fine-tuning to the pretraining of the smallest of the family, by Muon too.
        Profile { lr: Some(1e-6..=0.05), clip: Some(0.5..=1.), units: None, ..Profile::default() }
    }

    fn recomputes(_: &Config) -> bool {
        true
    }

    fn fingerprint(&self) -> String {
        let bytes: Vec<u8> = self.parts.iter().flat_map(|part| part.bytes().into_iter().chain([255; 4])).collect();
        let tokens = self.tokens.file().tokenizer.to_string().into_bytes();
        let base = self.base.as_ref().map_or("", |base| &base.file().base.sha256).as_bytes().to_vec();
        zoo_checkpoint::sha256_of(&[bytes, tokens, base].concat())
    }

    fn fitted(&self) -> Value {
        let fitted = match &self.base {
            // An adapter is small, and a tokenizer is not: the base has it.
            Some(base) => serde_json::to_value(base.file()),
            None => serde_json::to_value(self.tokens.file()),
        };
        fitted.unwrap_or_default()
    }

    fn samples(&self, split: Split) -> usize {
        self.part(split).samples(split, self.window)
    }

    fn batch(&self, split: Split, indices: &[usize]) -> Result<Batch> {
        let part = self.part(split);
        let starts: Vec<usize> = indices.iter().map(|i| part.start(split, *i, self.window)).collect();
        Ok(part.windows(&starts, self.window, false, &self.device)?.0)
    }

    /// Cross-entropy in nats, averaged over the tokens of the batch that are to be learnt. Micro-batches (`train.accumulate`) count by their
    /// samples, not by their tokens.
    fn loss(&self, model: &Llama, batch: &Batch, mode: Mode) -> Result<Loss> {
        let options = CrossEntropyOptions { ignore_index: Some(IGNORED), ..Default::default() };
        let Batch { ids, targets, mask } = batch;
        Ok(Loss::new(model.loss(ids, targets, mask.as_ref(), options, mode)?))
    }

    fn probes(&self, model: &Llama, Batch { ids, mask, .. }: &Batch) -> Result<Vec<Probe>> {
        let kind = |name: &str| if name.ends_with("hidden") { ProbeKind::Activation } else { ProbeKind::Output };
        let all = model.activations(ids, mask.as_ref())?;
        Ok(all.iter().map(|(name, values)| Probe::new(name, kind(name), values)).collect())
    }

    fn validate(&self, model: &Llama, split: Split) -> Result<Metrics> {
        let (all, step) = match split {
            // Windows of the training part overlap: some of them tell enough.
            Split::Train => (self.samples(split), self.samples(split).div_ceil(SOME)),
            Split::Valid | Split::Test => (self.samples(split), 1),
        };
        let all = all / step.max(1);
        let n = if self.eval_windows == 0 { all } else { all.min(self.eval_windows) };
        let part = self.part(split);
        let start = |i: usize| part.start(split, i * all / n.max(1) * step, self.window);
        let starts: Vec<usize> = (0..n).map(start).collect();
        let (loss, targets) = self.sum(model, part, &starts, self.window)?;
        Ok(Self::metrics(part, loss / targets.max(1.)))
    }
}

impl Recipe for LlamaTask {
    const SUMMARY: &'static str = "Llama-family language model over tokens of byte pairs";
    const PRESETS: &'static [Preset] = &[
        Preset { name: "story", summary: "8 layers of 384, 4,096 tokens, trained from nothing", toml: "" },
        Preset {
            name: "smollm2-135m",
            summary: "SmolLM2-135M's sizes, to train on from its weights (--init-from)",
            toml: "[model]\nvocabulary = 49152\ncontext = 8192\nlayers = 30\nheads = 9\nkey_heads = 3\nhead_width = 64\nwidth = 576\n\
                   hidden = 1536\ntied = true\nrope_base = 100000.0\n[data]\nwindow = 256\n\
                   [train]\nbatch_size = 2\nlr = 3e-5\nmin_lr = 3e-6\nsteps = 200\nwarmup_steps = 10\neval_every = 50\n",
        },
        Preset {
            name: "smollm2-360m",
            summary: "SmolLM2-360M's sizes",
            toml: "[model]\nvocabulary = 49152\ncontext = 8192\nlayers = 32\nheads = 15\nkey_heads = 5\nhead_width = 64\nwidth = 960\n\
                   hidden = 2560\ntied = true\nrope_base = 100000.0\n[data]\nwindow = 256\n\
                   [train]\nbatch_size = 2\nlr = 3e-5\nmin_lr = 3e-6\nsteps = 200\nwarmup_steps = 10\neval_every = 50\n",
        },
        Preset {
            name: "tinyllama-1.1b",
            summary: "TinyLlama-1.1B's sizes",
            toml: "[model]\nvocabulary = 32000\ncontext = 2048\nlayers = 22\nheads = 32\nkey_heads = 4\nhead_width = 64\nwidth = 2048\n\
                   hidden = 5632\ntied = false\nrope_base = 10000.0\n[data]\nwindow = 256\n\
                   [train]\nbatch_size = 1\nlr = 2e-5\nmin_lr = 2e-6\nsteps = 200\nwarmup_steps = 10\neval_every = 50\n",
        },
        Preset {
            name: "lora",
            summary: "LoRA of rank 8 beside the queries and values of the weights of --base",
            toml: "[model.lora]\nrank = 8\n\
                   [train]\nbatch_size = 2\nlr = 5e-4\nmin_lr = 5e-5\nsteps = 300\nwarmup_steps = 20\neval_every = 50\n",
        },
        Preset {
            name: "tiny",
            summary: "for tests",
            toml: "[model]\nvocabulary = 300\ncontext = 32\nlayers = 2\nheads = 4\nkey_heads = 2\nhead_width = 8\nwidth = 32\nhidden = 64\n\
                   [data]\ngenerated = 20000\neval_windows = 16\n\
                   [train]\nbatch_size = 8\nsteps = 40\neval_every = 20\nwarmup_steps = 10\n",
        },
    ];
    const FLAGS: &'static [Flag] = &Flag::each([
        (
            "encoding",
            Some("NAME"),
            "data.encoding",
            "The encoding of a text that is not UTF-8, such as windows-1252 or gbk",
        ),
        ("tokenizer", Some("FILE"), "data.tokenizer", "A tokenizer.json, or weights of a llama with theirs"),
        ("base", Some("FILE"), "data.base", "Weights that LoRA adapts and leaves as they are: ours, or a GGUF file"),
        ("lora", Some("RANK"), "model.lora.rank", "Train LoRA of this rank beside the weights of --base"),
        ("general", Some("PATH"), "data.general", "A text by which is told what an adapted model forgot"),
    ]);
    const DATA: &'static str = "any text, a folder of them or of tokens, or JSONL with text, prompt and response, or messages; generated dialogue without one";
    const JUDGED: Split = Split::Valid;

    fn training() -> TrainConfig {
        TrainConfig {
            steps: 1000,
            batch_size: 8,
            optimizer: OptimizerConfig::AdamW(AdamConfig { beta2: 0.95, weight_decay: 0.1, ..AdamConfig::default() }),
            lr: 1e-3,
            clip_norm: 1.,
            schedule: ScheduleKind::Cosine,
            warmup_steps: 50,
            min_lr: 1e-4,
            eval_every: 100,
            ..TrainConfig::default()
        }
    }

    fn lacks(config: &ConfigOf<Self>) -> Option<String> {
        let ConfigOf::<Self> { model, data, train, .. } = config;
        let lacks = model.lora.is_on() && data.base.is_empty() && train.init_from.is_empty();
        lacks.then(|| WITHOUT_BASE.into())
    }

    fn settle(config: &mut ConfigOf<Self>) -> zoo_training::Result<()> {
        if config.model.lora.is_on() && config.data.base.is_empty() {
            // What a run with LoRA begins with stays as it is.
            config.data.base = std::mem::take(&mut config.train.init_from);
        }
        if !config.data.base.is_empty() {
            return over_base(config);
        }
        let weights = config.train.init_from.clone();
        if !weights.is_empty() && Path::new(&weights).exists() {
            let (theirs, file) = adapter::sizes(Path::new(&weights))?;
            // What shows in no shape of theirs.
            let Config { context, layers, heads, key_heads, head_width, width, hidden, tied, .. } = config.model;
            config.model = Config { context, layers, heads, key_heads, head_width, width, hidden, tied, ..theirs };
            // Numbers of tokens mean what they meant to the weights that a run begins with.
            if config.data.tokenizer.is_empty() {
                config.data.tokenizer = weights;
            } else if !tokens(Path::new(&config.data.tokenizer))?.agrees(&Tokens::new(file)?) {
                return Err(Error::Usage(format!(
                    "data.tokenizer is not that of {weights}: leave it out (its tokens have other numbers)"
                )));
            }
        } else if Shards::are_in(Path::new(&config.data.path)) {
            let known = Shards::open(Path::new(&config.data.path))?.tokenizer().len();
            config.model.vocabulary = config.model.vocabulary.max(known);
        } else if !config.data.tokenizer.is_empty() {
            let known = tokens(Path::new(&config.data.tokenizer))?.len();
            // A table may have more rows than there are tokens.
            config.model.vocabulary = config.model.vocabulary.max(known);
        }
        Ok(())
    }

    fn explain(config: &Config) -> String {
        let &Config { vocabulary, layers, heads, key_heads, head_width, width, hidden, tied, .. } = config;
        let (all, few) = (heads * head_width, key_heads * head_width);
        let (attention, mlp) = (2 * width * all + 2 * width * few, 3 * width * hidden);
        let parts = [
            format!("embedding: {vocabulary} x {width}"),
            format!(
                "block: attention 2 x {width} x {all} + 2 x {width} x {few} = {attention}, MLP 3 x {width} x {hidden} = {mlp}, two \
                 norms {}; {layers} times = {}",
                2 * width,
                layers * (attention + mlp + 2 * width)
            ),
            format!("final norm: {width}"),
            if tied { "head: the embedding's table".into() } else { format!("head: {vocabulary} x {width}") },
        ];
        parts.join("\n")
    }

    fn over(
        config: &Config,
        source: &DataSettings,
        fitted: &Value,
        path: &Path,
        device: &Device,
    ) -> zoo_training::Result<Option<Over<Self>>> {
        let Ok(trained) = serde_json::from_value::<AdapterFile>(fitted.clone()) else { return Ok(None) };
        if source.base.is_empty() {
            let BaseFile { file, sha256 } = &trained.base;
            return Err(Error::Usage(format!(
                "{}: an adapter of {file:.80} (SHA-256 {sha256:.64}): name that file by data.base",
                path.display()
            )));
        }
        let base = base_of(source, device)?;
        let remarks = base.doubt(&trained).into_iter().collect();
        let (fitted, config) = (serde_json::to_value(base.tokens().file()).unwrap_or_default(), config.clone());
        Ok(Some(Over { fitted, remarks, define: Box::new(move |vb| base.define(&config, vb)) }))
    }

    fn of_foreign(source: &Source, device: &Device) -> zoo_training::Result<Option<AsIs<Self>>> {
        if !Llama::is_gguf(source) {
            return Ok(None);
        }
        if !device.is_cpu() {
            return Err(Error::Usage(gguf::on_cpu_alone(&source.path)));
        }
        let (architecture, writer) = Llama::of_gguf(source)?;
        let fitted = serde_json::to_value(writer.tokens().file()).unwrap_or_default();
        let data = DataSettings::of_foreign(&architecture);
        Ok(Some(AsIs { model: writer.model().clone(), architecture, data, fitted }))
    }

    fn memory(config: &Config, source: &DataSettings, train: &TrainConfig) -> Option<Memory> {
        const FLOAT: f64 = 4.;
        let &Config { vocabulary, layers, heads, key_heads, head_width, width, hidden, .. } = config;
        let window = source.window(config) as f64;
        let tokens = train.batch_size as f64 * window;
        // Inputs of both branches, queries, keys, values and what attention makes of them, and both factors of the gate.
        let block = (2 * width + 2 * (heads + key_heads) * head_width + 2 * hidden) as f64;
        // What an MLP works in beside them.
        let within = (4 * hidden) as f64;
        // A block that is computed again has its input kept, and one at a time the others.
        let blocks = if train.recompute { block + (layers * width) as f64 } else { layers as f64 * block };
        let (rows, table) = (vocabulary as f64, (vocabulary * width) as f64);
        let logits = |tokens: f64| (tokens * rows).min(LOGITS);
        let (evaluated, probed) = (BATCH.max(window as usize) as f64, train.watched() as f64 * window);
        let probe = (layers * (hidden + width)) as f64;
        Some(Memory {
            kept: FLOAT * tokens * blocks * if config.lora.is_on() { 1. } else { SIZES },
            // Some logits; where the table learns, its gradient, and both factors in the order of a product.
            turn: FLOAT * (logits(tokens) + tokens * within + if config.lora.is_on() { 0. } else { 3. * table }),
            evaluated: FLOAT * (logits(evaluated) + evaluated * (block + within)),
            probed: FLOAT * probed * (2. * rows + probe + block),
            held: if config.lora.is_on() { held(config, source) } else { 0. },
        })
    }

    fn flops(config: &Config, source: &DataSettings) -> Option<f64> {
        Some(Flops::of(config, source).forward())
    }

    fn step_flops(config: &Config, source: &DataSettings) -> Option<f64> {
        let flops = Flops::of(config, source);
        // Weights that stay as they are have no gradient.
        let frozen = if config.lora.is_on() { flops.weights } else { 0. };
        Some(3. * flops.forward() - frozen)
    }

    fn check(config: &Config, fitted: &Value) -> zoo_training::Result<()> {
        let n = in_weights(fitted)?.len();
        match n <= config.vocabulary {
            true => Ok(()),
            false => Err(Error::Data(format!("model.vocabulary is {}, but there are {n} tokens", config.vocabulary))),
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
        let window = source.window(config);
        if window > config.context {
            let context = config.context;
            return Err(Error::Usage(format!(
                "data.window is {window}, but the model sees model.context = {context} tokens"
            )));
        }
        // What is judged stands over its base already.
        let base = match fitted {
            None if config.lora.is_on() => Some(base_of(source, device)?),
            _ => None,
        };
        let known = match (fitted, &base) {
            (Some(fitted), _) => Some(in_weights(fitted)?),
            (None, Some(base)) => Some(base.tokens().clone()),
            (None, None) if source.tokenizer.is_empty() => None,
            (None, None) => Some(tokens(Path::new(&source.tokenizer))?),
        };
        let mut general_said = vec![];
        let general = match (&known, source.general.as_str()) {
            (_, "") => None,
            (Some(tokens), path) => {
                let (corpus, said) = all_of(path, source, tokens, window)?;
                general_said = said;
                Some(corpus)
            }
            (None, _) => {
                return Err(Error::Usage("data.general tells what a model forgot that begins with weights".into()));
            }
        };
        let mut task = match Shards::are_in(Path::new(&source.path)) {
            true => Self::stored(config, source, known, device)?,
            false => Self::of_texts(config, source, seed, known, device)?,
        };
        task.remarks.extend(general_said.into_iter().map(|remark| format!("data.general: {remark}")));
        Ok(Self { base, general, ..task })
    }

    fn describe_data(&self) -> String {
        let [train, valid] = &self.parts;
        let documents = match self.documents {
            0 | 1 => String::new(),
            n => format!("{n} documents, "),
        };
        let answers = if train.learns_all() {
            String::new()
        } else {
            format!(", {} of them in answers, which alone are learnt", train.targets + valid.targets)
        };
        let bytes = train.bytes as f64 / train.targets.max(1) as f64;
        format!(
            "{}, {documents}{} tokens{answers}, {bytes:.2} bytes each, {} different; the last {} validate",
            self.origin,
            train.len() + valid.len(),
            self.tokens.len(),
            valid.len()
        )
    }

    fn warnings(&self) -> Vec<String> {
        self.remarks.clone()
    }

    fn forward(&self, model: &Llama, Batch { ids, mask, .. }: &Batch, mode: Mode) -> Result<Tensor> {
        model.forward_in(ids, mask.as_ref(), mode)
    }

    fn evaluate(&self, model: &Llama, split: Split) -> Result<Evaluation> {
        let part = self.part(split);
        let (loss, targets) = self.whole(model, part, split)?;
        let base = model.is_adapted().then(|| model.base());
        // The model, what it was before, and frequencies alone.
        let all = |part: &Corpus, split: Split, own: f64| -> Result<Vec<Metrics>> {
            let before = base.as_ref().map(|base| self.whole(base, part, split)).transpose()?;
            let losses = [Some(own), before.map(|(loss, _)| loss), Some(self.frequencies(part)?)];
            Ok(losses.into_iter().flatten().map(|loss| Self::metrics(part, loss)).collect())
        };
        let mut rows = all(part, split, loss)?;
        let mut forgot = None;
        if let Some(general) = &self.general {
            let of_general = all(general, Split::Test, self.whole(model, general, Split::Test)?.0)?;
            let bits: Vec<f64> = of_general.iter().map(|row| row.value("bits_per_byte")).collect();
            rows.iter_mut().zip(&bits).for_each(|(row, bits)| row.push("general_bits_per_byte", *bits));
            forgot = base.as_ref().map(|_| bits[0] - bits[1]);
        }
        let alone = rows.last().map_or(f64::NAN, |row| row.value("loss"));
        let mut rows = rows.into_iter();
        let metrics = rows.next().unwrap_or_default();
        let names = base.iter().map(|_| "base".into()).chain(["frequencies".into()]);
        let baselines = names.zip(rows).collect();
        let (verb, of) = (if loss < alone { "beats" } else { "does not beat" }, metrics[2].1);
        let mut remarks = vec![
            format!("The model {verb} the frequencies of single tokens ({loss:.4} against {alone:.4} nats a token)."),
            format!(
                "A byte costs {of:.4} bits, by which models of other tokens can be compared; it saw the {} tokens of a window at most, and \
                 less at its beginning.",
                self.window
            ),
        ];
        if !part.learns_all() {
            remarks.push("Answers alone count; what was asked does not.".into());
        }
        if let Some(forgot) = forgot {
            remarks.push(format!(
                "Of data.general, a byte costs {forgot:+.4} bits beside the base: what is above 0 was forgotten."
            ));
        }
        Ok(Evaluation { samples: targets as usize, metrics, baselines, remarks, ..Evaluation::default() })
    }
}

impl Generate for LlamaTask {
    type Writer = Writer;

    fn writer(model: &Llama, fitted: &Value, device: &Device) -> zoo_training::Result<Writer> {
        Ok(Writer::new(model.clone(), in_weights(fitted)?, device)?)
    }

    fn conversation(writer: &Writer, messages: &[(&str, &str)]) -> zoo_training::Result<String> {
        let messages: Vec<Message> = messages.iter().map(|(role, content)| Message::new(role, content)).collect();
        Ok(writer.tokens().chat(&messages, true)?)
    }
}

impl Export for LlamaTask {
    const STATE: Option<&'static str> = Some("keys and values of attention");

    fn export(model: &Llama, _: &Config, _: &Value, state: bool, graph: &mut Graph) -> Result<()> {
        model.export(graph, state)
    }
}

impl Import for LlamaTask {
    const LAYOUTS: &'static [Layout] = layout::LAYOUTS;

    fn recognize(tensors: &[(&str, &[usize])]) -> Option<&'static Layout> {
        layout::recognize(tensors)
    }

    fn adopt(foreign: &Foreign) -> zoo_training::Result<(Config, DataSettings, Value)> {
        layout::adopt(foreign)
    }

    fn merged(
        config: &Config,
        source: &DataSettings,
        fitted: &Value,
        path: &Path,
        tensors: BTreeMap<String, Tensor>,
    ) -> zoo_training::Result<Option<Merged<Self>>> {
        let Ok(trained) = serde_json::from_value::<AdapterFile>(fitted.clone()) else { return Ok(None) };
        let base = base_of(source, &Device::Cpu)?;
        let named = |e: candle_core::Error| Error::Data(format!("{}: {e}", path.display()));
        // Whether the two fit each other.
        Params::restore(tensors.clone(), &Device::Cpu, |vb| base.define(config, vb)).map_err(named)?;
        let (tensors, error) = base.merged(&config.lora, &tensors).map_err(named)?;
        Ok(Some(Merged {
            architecture: Config { lora: Lora::default(), ..config.clone() },
            fitted: serde_json::to_value(base.tokens().file()).unwrap_or_default(),
            tensors,
            error,
            remarks: base.doubt(&trained).into_iter().collect(),
        }))
    }

    fn entries(layout: &Layout, config: &Config, fitted: &Value) -> zoo_training::Result<Map<String, Value>> {
        layout::entries(layout, config, fitted)
    }

    fn reorder(layout: &Layout, config: &Config, back: bool) -> String {
        layout::reorder(layout, config, back)
    }

    fn beside(layout: &Layout, fitted: &Value) -> zoo_training::Result<Vec<(&'static str, String)>> {
        layout::beside(layout, fitted)
    }
}

impl Tokenize for LlamaTask {
    fn train_tokenizer(text: &Path, encoding: &str, vocabulary: usize) -> zoo_training::Result<(String, Vec<String>)> {
        // Without a path, dialogue would be made up.
        if text.as_os_str().is_empty() {
            return Err(Error::Usage("the name of the text is empty".into()));
        }
        let source =
            DataSettings { path: text.display().to_string(), encoding: encoding.into(), ..DataSettings::default() };
        let Documents { texts, mut remarks, .. } = documents(&source, 0, None)?;
        let tokens = Tokens::train(texts.iter().flatten().map(|(text, _)| text.as_str()), vocabulary)?;
        if tokens.len() < vocabulary {
            remarks.push(format!("the text yields {} tokens, fewer than {vocabulary}", tokens.len()));
        }
        Ok((format!("{:#}\n", tokens.file().tokenizer), remarks))
    }

    fn encode(
        text: &Path,
        encoding: &str,
        tokenizer: &Path,
        folder: &Path,
        shard: usize,
    ) -> zoo_training::Result<Encoded> {
        shards::encode(text, encoding, &tokens(tokenizer)?, folder, shard)
    }
}
