use serde::{Deserialize, Serialize};

/// The model's name, which its weights carry.
pub(crate) const NAME: &str = "char-gpt";

/// The table `[model]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Characters that the model knows; when training, those of `data.vocabulary`.
    pub vocabulary: usize,
    /// Characters that it sees.
    pub context: usize,
    /// Transformer blocks.
    pub layers: usize,
    /// Attention heads of a block.
    pub heads: usize,
    /// Features of a place.
    pub width: usize,
    /// Features within the MLP of a block.
    pub hidden: usize,
    /// Whether queries, keys and values have a matrix each, instead of one for the three.
    pub separate_qkv: bool,
    /// Whether the head is the embedding's table.
    pub tied: bool,
    /// Whether linear layers and norms have biases (the head never has).
    pub bias: bool,
    /// The MLPs' activation: GELU by the error function (nanoGPT) or by tanh (OpenAI's GPT-2).
    #[serde(default)]
    pub gelu: Gelu,
    /// Dropout of the embedding, of attention weights and of both branches of a block.
    pub dropout: f64,
}

/// A form of GELU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Gelu {
    /// x Φ(x).
    #[default]
    Erf,
    /// Its approximation by tanh.
    Tanh,
}

impl Default for Config {
    /// nanoGPT's recipe for a CPU.
    fn default() -> Self {
        Self {
            vocabulary: 65,
            context: 64,
            layers: 4,
            heads: 4,
            width: 128,
            hidden: 512,
            separate_qkv: false,
            tied: true,
            bias: false,
            gelu: Gelu::Erf,
            dropout: 0.,
        }
    }
}

impl Config {
    /// One block of width 64: the 21 tensors with separate queries, keys and values.
    pub fn seed() -> Self {
        Self { layers: 1, width: 64, hidden: 256, separate_qkv: true, tied: false, bias: true, ..Self::default() }
    }

    /// What cannot work about these numbers, naming the key.
    pub(crate) fn problem(&self) -> Option<String> {
        let &Self { vocabulary, context, layers, heads, width, hidden, dropout, .. } = self;
        if [vocabulary, context, layers, heads, width, hidden].contains(&0) {
            return Some("model.vocabulary, context, layers, heads, width and hidden must be at least 1".into());
        }
        if layers > 1000 {
            return Some(format!("model.layers is {layers}, expected at most 1000"));
        }
        if width % heads != 0 {
            return Some(format!("model.width = {width} does not divide into model.heads = {heads}"));
        }
        if !(0. ..1.).contains(&dropout) {
            return Some(format!("model.dropout is {dropout}, expected a share from 0 to below 1"));
        }
        None
    }

    /// Small enough for tests.
    pub fn tiny() -> Self {
        Self { context: 16, layers: 2, heads: 2, width: 16, hidden: 32, dropout: 0.1, ..Self::default() }
    }
}

/// The table `[data]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DataSettings {
    /// A text; generated dialogue if empty.
    pub path: String,
    /// The encoding of a text that is not UTF-8, such as `windows-1252`.
    pub encoding: String,
    /// The characters that the model knows, in the order of their numbers; those of the text (or of `train.init_from`)
    /// if empty.
    pub vocabulary: String,
    /// Share of the text, at its end, that validates and judges.
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
            vocabulary: String::new(),
            valid: 0.1,
            eval_windows: 256,
            generated: 400_000,
        }
    }
}
