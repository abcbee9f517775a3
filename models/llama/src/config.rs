use regex::Regex;
use serde::{Deserialize, Serialize};
use zoo_layers::LoraConfig;
use zoo_layers::ops::RopeScaling;

/// The model's name, which its weights carry.
pub(crate) const NAME: &str = "llama";

/// The table `[model]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Tokens that the model knows.
    pub vocabulary: usize,
    /// Tokens that it sees.
    pub context: usize,
    /// Blocks.
    pub layers: usize,
    /// Heads of queries in a block.
    pub heads: usize,
    /// Heads of keys and values, each shared by the same number of heads of queries.
    pub key_heads: usize,
    /// Features of a head.
    pub head_width: usize,
    /// Features of a place.
    pub width: usize,
    /// Features within the MLP of a block.
    pub hidden: usize,
    /// Whether the head is the embedding's table.
    pub tied: bool,
    /// Added to the mean square in the norms.
    pub eps: f64,
    /// The base of the rotary embedding's angles.
    pub rope_base: f64,
    /// How the angles are made smaller.
    #[serde(default)]
    pub rope_scaling: Scaling,
    /// What they are divided by: all of them (`linear`), or those with a long period (`llama3`).
    #[serde(default = "one")]
    pub rope_factor: f64,
    /// `llama3`: periods that fit fewer times than this into the first context are long.
    #[serde(default = "one")]
    pub rope_low: f64,
    /// `llama3`: periods that fit more often than this stay as they are.
    #[serde(default = "four")]
    pub rope_high: f64,
    /// `llama3`: the context that the model was trained on first, in tokens.
    #[serde(default = "first_context")]
    pub rope_first_context: usize,
    /// What is trained beside weights that stay as they are.
    #[serde(default)]
    pub lora: Lora,
}

/// The table `[model.lora]`: LoRA (Hu et al., ICLR 2022) beside the maps of a model whose own weights stay as they are.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Lora {
    /// Features between the two matrices beside a map; 0 for a model without LoRA.
    pub rank: usize,
    /// Their product counts `alpha / rank` times.
    pub alpha: f64,
    /// Share of a map's input that they do not see in training.
    pub dropout: f64,
    /// A regular expression that is found in the names of the maps, such as `model.layers.0.self_attn.q_proj`.
    pub targets: String,
    /// `alpha / √rank` in place of `alpha / rank` (rank-stabilised; Kalajdzievski 2023).
    pub rslora: bool,
}

impl Default for Lora {
    fn default() -> Self {
        Self { rank: 0, alpha: 16., dropout: 0., targets: r"\.(q|v)_proj$".into(), rslora: false }
    }
}

impl Lora {
    /// Whether there is any.
    pub fn is_on(&self) -> bool {
        self.rank > 0
    }

    /// What the layers take.
    pub(crate) fn config(&self) -> LoraConfig {
        let rank = self.rank as f64;
        let scale = self.alpha / if self.rslora { rank.sqrt() } else { rank };
        LoraConfig { rank: self.rank, scale, dropout: self.dropout }
    }

    /// Finds the maps; nothing without LoRA.
    pub(crate) fn pattern(&self) -> Result<Option<Regex>, String> {
        const LONGEST: usize = 100_000;
        if !self.is_on() {
            return Ok(None);
        }
        if self.targets.len() > LONGEST {
            return Err(format!("model.lora.targets has {} bytes, expected at most {LONGEST}", self.targets.len()));
        }
        Regex::new(&self.targets).map(Some).map_err(|e| {
            let reason = e.to_string().lines().last().unwrap_or_default().trim().to_string();
            format!("model.lora.targets = {:?} is no regular expression: {reason}", self.targets)
        })
    }

    fn problem(&self) -> Option<String> {
        const HIGHEST: usize = 4096;
        let &Self { rank, alpha, dropout, .. } = self;
        if rank == 0 && *self != Self::default() {
            return Some("model.lora: without a rank its other keys are of no use (model.lora.rank=8)".into());
        }
        if rank > HIGHEST {
            return Some(format!("model.lora.rank is {rank}, expected at most {HIGHEST}"));
        }
        if !alpha.is_finite() || alpha == 0. {
            return Some(format!("model.lora.alpha is {alpha}, expected a number such as twice the rank"));
        }
        if !(0. ..1.).contains(&dropout) {
            return Some(format!("model.lora.dropout is {dropout}, expected a share from 0 to below 1"));
        }
        self.pattern().err()
    }
}

fn one() -> f64 {
    1.
}

fn four() -> f64 {
    4.
}

fn first_context() -> usize {
    8192
}

/// How rotary angles are made smaller.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scaling {
    /// Not at all.
    #[default]
    None,
    /// All of them.
    Linear,
    /// Those of slow pairs, as Llama 3.1 has it.
    Llama3,
}

impl Default for Config {
    /// 14 million parameters, to be trained from nothing on a text of one's own.
    fn default() -> Self {
        Self {
            vocabulary: 4096,
            context: 256,
            layers: 8,
            heads: 6,
            key_heads: 2,
            head_width: 64,
            width: 384,
            hidden: 1024,
            tied: true,
            eps: 1e-5,
            rope_base: 10_000.,
            rope_scaling: Scaling::None,
            rope_factor: one(),
            rope_low: one(),
            rope_high: four(),
            rope_first_context: first_context(),
            lora: Lora::default(),
        }
    }
}

impl Config {
    /// SmolLM2-135M.
    pub fn smollm2_135m() -> Self {
        Self {
            vocabulary: 49_152,
            context: 8192,
            layers: 30,
            heads: 9,
            key_heads: 3,
            head_width: 64,
            width: 576,
            hidden: 1536,
            rope_base: 100_000.,
            ..Self::default()
        }
    }

    /// Small enough for tests.
    pub fn tiny() -> Self {
        Self {
            vocabulary: 300,
            context: 32,
            layers: 2,
            heads: 4,
            key_heads: 2,
            head_width: 8,
            width: 32,
            hidden: 64,
            ..Self::default()
        }
    }

    /// The names of the linear maps, in their order.
    #[cfg(feature = "train")]
    pub(crate) fn maps(&self) -> Vec<String> {
        const OF_BLOCK: [&str; 7] =
            ["self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o", "mlp.gate", "mlp.up", "mlp.down"];
        let of_block = |i: usize| OF_BLOCK.map(|map| format!("model.layers.{i}.{map}_proj"));
        let head = (!self.tied).then(|| "lm_head".to_string());
        (0..self.layers).flat_map(of_block).chain(head).collect()
    }

    /// Elements of LoRA's matrices.
    #[cfg(feature = "train")]
    pub(crate) fn adapted(&self) -> usize {
        let Ok(Some(targets)) = self.lora.pattern() else { return 0 };
        let &Self { vocabulary, heads, key_heads, head_width, width, hidden, .. } = self;
        let sides = |map: &str| match map.rsplit('.').next().unwrap_or_default() {
            "q_proj" | "o_proj" => width + heads * head_width,
            "k_proj" | "v_proj" => width + key_heads * head_width,
            "lm_head" => width + vocabulary,
            _ => width + hidden,
        };
        self.maps().iter().filter(|map| targets.is_match(map)).map(|map| self.lora.rank * sides(map)).sum()
    }

    /// How rotary angles are scaled, as the layers take it.
    pub(crate) fn scaling(&self) -> Option<RopeScaling> {
        let (factor, context) = (self.rope_factor, self.rope_first_context);
        match self.rope_scaling {
            Scaling::None => None,
            Scaling::Linear => Some(RopeScaling::Linear(factor)),
            Scaling::Llama3 => Some(RopeScaling::Llama3 { factor, low: self.rope_low, high: self.rope_high, context }),
        }
    }

    /// What cannot work about these numbers, naming the key.
    pub(crate) fn problem(&self) -> Option<String> {
        let &Self { vocabulary, context, layers, heads, key_heads, head_width, width, hidden, eps, .. } = self;
        if [vocabulary, context, layers, heads, key_heads, head_width, width, hidden].contains(&0) {
            return Some(
                "model.vocabulary, context, layers, heads, key_heads, head_width, width and hidden must be at least 1"
                    .into(),
            );
        }
        if layers > 1000 {
            return Some(format!("model.layers is {layers}, expected at most 1000"));
        }
        const LONGEST: usize = 1 << 20;
        if context > LONGEST {
            return Some(format!("model.context is {context}, expected at most {LONGEST}"));
        }
        if heads % key_heads != 0 {
            return Some(format!("model.heads = {heads} cannot share model.key_heads = {key_heads} evenly"));
        }
        if head_width % 2 != 0 {
            return Some(format!("model.head_width is {head_width}: rotary embedding turns pairs of features"));
        }
        if !(eps > 0. && eps.is_finite()) {
            return Some(format!("model.eps is {eps}, expected a small number above 0"));
        }
        if !(self.rope_base > 0. && self.rope_base.is_finite()) {
            return Some(format!("model.rope_base is {}, expected a number above 0", self.rope_base));
        }
        let &Self { rope_scaling, rope_factor, rope_low, rope_high, rope_first_context, .. } = self;
        if rope_scaling != Scaling::None && !(rope_factor > 0. && rope_factor.is_finite()) {
            return Some(format!("model.rope_factor is {rope_factor}, expected a number above 0"));
        }
        let ordered = rope_low > 0. && rope_high > rope_low && rope_high.is_finite() && rope_first_context > 0;
        if rope_scaling == Scaling::Llama3 && !ordered {
            return Some(
                "model.rope_low and rope_first_context must be above 0, and model.rope_high above model.rope_low"
                    .into(),
            );
        }
        self.lora.problem()
    }
}

/// The table `[data]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DataSettings {
    /// A text, a folder of texts or of tokens (`zoo tokenizer encode`), or a JSONL file with `text`, `prompt` and `response`, or `messages`; generated dialogue if empty.
    pub path: String,
    /// The encoding of a text that is not UTF-8, such as `windows-1252`.
    pub encoding: String,
    /// The tokenizer: a `tokenizer.json`, or weights of a Llama with theirs. Without one, that of `train.init_from`, or one of
    /// `model.vocabulary` tokens that is trained on the training part.
    pub tokenizer: String,
    /// The weights that `model.lora` adapts, ours or a GGUF file, which stay as they are.
    pub base: String,
    /// A text, beside that of `path`, by which `zoo eval` says what an adapted model forgot.
    pub general: String,
    /// Tokens of a window to learn from; if 0, `model.context`, or 256 at most with `model.lora`.
    pub window: usize,
    /// Share of the text, or of the documents, at its end, that validates and judges; of stored tokens at most 4,194,304.
    pub valid: f64,
    /// Windows of the validation part, evenly spaced, that are looked at while training; 0 for all. `zoo eval` looks at all.
    pub eval_windows: usize,
    /// Characters to generate where no file is given.
    pub generated: usize,
}

impl Default for DataSettings {
    fn default() -> Self {
        Self {
            path: String::new(),
            encoding: String::new(),
            tokenizer: String::new(),
            base: String::new(),
            general: String::new(),
            window: 0,
            valid: 0.1,
            eval_windows: 64,
            generated: 400_000,
        }
    }
}

#[cfg(feature = "train")]
impl DataSettings {
    /// For weights of others: windows of what a computer without a GPU can train on.
    pub(crate) fn of_foreign(model: &Config) -> Self {
        const WINDOW: usize = 256;
        Self { window: WINDOW.min(model.context), ..Self::default() }
    }

    /// Tokens of a window for a model.
    pub(crate) fn window(&self, model: &Config) -> usize {
        if self.window == 0 { model.context } else { self.window }
    }
}
