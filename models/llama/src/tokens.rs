//! Text as numbers of tokens, and back.

use std::collections::HashMap;
use std::path::Path;

use candle_core::{Error, Result, bail};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, Tokenizer};

/// The token that ends a text, for tokenizers that are trained here.
const END: &str = "<|endoftext|>";
/// Bytes of a piece of a long text that is tokenized on its own.
const PIECE: usize = 1 << 20;

/// What weights keep of their tokenizer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokensFile {
    /// As a `tokenizer.json` has it.
    pub tokenizer: Value,
    /// The token that begins a text, if the model has one.
    pub begin: Option<u32>,
    /// Tokens that end a text.
    pub ends: Vec<u32>,
    /// The Jinja template by which a conversation becomes a text.
    pub chat_template: Option<String>,
}

/// A tokenizer, and what its model begins and ends texts with.
#[derive(Clone, Debug)]
pub struct Tokens {
    tokenizer: Tokenizer,
    file: TokensFile,
    /// Bytes of text that each token stands for, as many as the largest number of one, and one more.
    bytes: Vec<usize>,
}

fn said(what: &str) -> impl Fn(tokenizers::Error) -> Error + '_ {
    move |e| Error::msg(format!("{what}: {e}"))
}

impl Tokens {
    /// A tokenizer as weights keep it.
    ///
    /// # Errors
    /// It is none.
    pub fn new(mut file: TokensFile) -> Result<Self> {
        // What a training of somebody's cut texts to, or filled them up to, is no property of the tokens.
        for key in ["truncation", "padding"] {
            if let Some(value) = file.tokenizer.get_mut(key) {
                *value = Value::Null;
            }
        }
        let prefix = file.tokenizer.pointer("/model/continuing_subword_prefix").and_then(Value::as_str);
        if prefix.is_some_and(|prefix| !prefix.is_empty()) {
            bail!("tokenizer: its byte pairs have a continuing_subword_prefix, which those of Llamas have not")
        }
        // As text: some of its parts are read from borrowed texts alone.
        let tokenizer = Tokenizer::from_bytes(file.tokenizer.to_string()).map_err(said("tokenizer"))?;
        let len = tokenizer.get_vocab(true).values().max().map_or(0, |last| *last as usize + 1);
        const MOST: usize = 1 << 24;
        if len > MOST {
            bail!("tokenizer: token {} is beyond the {MOST} tokens that are read", len - 1)
        }
        let mut bytes = vec![0; len];
        let says = |part: &str| file.tokenizer.get(part).is_some_and(|v| v.to_string().contains("\"ByteLevel\""));
        let byte_level = says("pre_tokenizer") || says("decoder");
        for (token, id) in tokenizer.get_vocab(false) {
            // A character for each byte; or pieces of text with another space, and bytes by their number.
            bytes[id as usize] = match byte_level {
                true => token.chars().count(),
                false if token.len() == "<0x00>".len() && token.starts_with("<0x") => 1,
                false => token.replace('\u{2581}', " ").len(),
            };
        }
        for (id, token) in tokenizer.get_added_tokens_decoder() {
            bytes[id as usize] = if token.special { 0 } else { token.content.len() };
        }
        Self { tokenizer, file, bytes }.checked()
    }

    /// Refuses a beginning or an end that is none of the tokens.
    fn checked(self) -> Result<Self> {
        let n = self.len();
        match self.file.begin.iter().chain(&self.file.ends).find(|token| **token as usize >= n) {
            Some(token) => bail!("tokenizer: it has {n} tokens, and a text would begin or end with token {token}"),
            None => Ok(self),
        }
    }

    /// Reads a `tokenizer.json`, and what files of Hugging Face's beside it say of beginnings, ends and conversations
    /// (`tokenizer_config.json`, `generation_config.json`, `config.json`).
    ///
    /// # Errors
    /// It cannot be read, or is no tokenizer.
    pub fn read(path: &Path) -> Result<Self> {
        const LARGEST: u64 = 1 << 28;
        let named = |e: String| Error::msg(format!("{}: {e}", path.display()));
        let bytes = zoo_checkpoint::bytes_of(path, "a tokenizer", LARGEST).map_err(Error::wrap)?;
        let tokenizer: Value = serde_json::from_slice(&bytes).map_err(|e| named(format!("no JSON: {e}")))?;
        let beside = |name: &str| -> Result<Map<String, Value>> {
            let file = path.with_file_name(name);
            if !file.exists() {
                return Ok(Map::new());
            }
            let bytes = zoo_checkpoint::bytes_of(&file, "a configuration", LARGEST).map_err(Error::wrap)?;
            serde_json::from_slice(&bytes).map_err(|e| Error::msg(format!("{}: no JSON object: {e}", file.display())))
        };
        let (names, generation) = (beside("tokenizer_config.json")?, beside("generation_config.json")?);
        let config = beside("config.json")?;
        let file = TokensFile { tokenizer, begin: None, ends: vec![], chat_template: None };
        let mut tokens = Self::new(file).map_err(|e| named(e.to_string()))?;
        let number = |key: &str| [&generation, &config].into_iter().find_map(|file| file.get(key));
        let numbers = |value: Option<&Value>| -> Vec<u32> {
            let list = match value {
                Some(Value::Array(list)) => list.clone(),
                Some(one) => vec![one.clone()],
                None => vec![],
            };
            list.iter().filter_map(Value::as_u64).filter_map(|n| u32::try_from(n).ok()).collect()
        };
        // A name, or an object with its text.
        let named_token = |key: &str| {
            let value = names.get(key)?;
            tokens.tokenizer.token_to_id(value.as_str().or_else(|| value.get("content")?.as_str())?)
        };
        let mut begin = named_token("bos_token").or(numbers(number("bos_token_id")).first().copied());
        // The tokenizer's own comes first: it is what a template writes.
        let mut ends: Vec<u32> = named_token("eos_token").into_iter().collect();
        ends.extend(numbers(number("eos_token_id")).into_iter().filter(|end| !ends.contains(end)).collect::<Vec<_>>());
        // With nothing beside it, that of GPT-2 and of the tokenizers that are trained here.
        if ends.is_empty() && begin.is_none() {
            ends.extend(tokens.tokenizer.token_to_id(END));
            begin = ends.first().copied();
        }
        // In a file of its own, in newer folders; one of several by name, in some.
        let file = path.with_file_name("chat_template.jinja");
        tokens.file.chat_template = match names.get("chat_template") {
            _ if file.exists() => {
                let bytes = zoo_checkpoint::bytes_of(&file, "a chat template", LARGEST).map_err(Error::wrap)?;
                Some(String::from_utf8(bytes).map_err(|_| Error::msg(format!("{}: no UTF-8", file.display())))?)
            }
            Some(Value::Array(several)) => {
                let default = several.iter().find(|t| t.get("name").and_then(Value::as_str) == Some("default"));
                default.and_then(|t| t.get("template")?.as_str()).map(str::to_string)
            }
            one => one.and_then(Value::as_str).map(str::to_string),
        };
        (tokens.file.begin, tokens.file.ends) = (begin, ends);
        tokens.checked().map_err(|e| named(e.to_string()))
    }

    /// The tokenizer within a GGUF file, by its entries.
    ///
    /// # Errors
    /// It has none, or one of a kind that is not known; the message says which.
    pub fn of_gguf(entries: &Map<String, Value>) -> Result<Self> {
        let get = |key: &str| entries.get(&format!("tokenizer.{key}"));
        let Some(tokens) = texts(get("ggml.tokens")) else { bail!("it has no list of tokens (tokenizer.ggml.tokens)") };
        let kind = get("ggml.model").and_then(Value::as_str).unwrap_or("none");
        let says = |key: &str| get(key).and_then(Value::as_bool);
        let number = |key: &str| get(key).and_then(Value::as_u64).and_then(|n| u32::try_from(n).ok());
        let begin = number("ggml.bos_token_id");
        // Of a text, of what somebody says, and of a message.
        let mut ends: Vec<u32> =
            ["eos", "eot", "eom"].iter().filter_map(|end| number(&format!("ggml.{end}_token_id"))).collect();
        ends.dedup();
        let types: Vec<u64> = match get("ggml.token_type") {
            Some(Value::Array(types)) => types.iter().map(|t| t.as_u64().unwrap_or(1)).collect(),
            _ => vec![1; tokens.len()],
        };
        // Control tokens, and those that users added.
        const ADDED: [u64; 2] = [3, 4];
        let added: Vec<Value> = (0..tokens.len())
            .filter(|i| types.get(*i).is_some_and(|t| ADDED.contains(t)))
            .map(|i| {
                json!({
                    "id": i, "content": tokens[i], "single_word": false, "lstrip": false, "rstrip": false,
                    "normalized": false, "special": types[i] == 3,
                })
            })
            .collect();
        let vocabulary: Map<String, Value> = tokens.iter().enumerate().map(|(i, t)| (t.clone(), i.into())).collect();
        if vocabulary.len() != tokens.len() {
            bail!("two of its tokens have one text")
        }
        let adds_begin = says("ggml.add_bos_token").unwrap_or(kind == "llama");
        let mut parts = match kind {
            "gpt2" => {
                let pre = get("ggml.pre").and_then(Value::as_str).unwrap_or("default");
                let Some(merges) = texts(get("ggml.merges")) else { bail!("it has no tokenizer.ggml.merges") };
                let Some((_, pre_tokenizer)) = splits().into_iter().find(|(names, _)| names.contains(&pre)) else {
                    bail!("its texts are split before they are tokenized as {pre:?} has it, which is not known here")
                };
                let bytes =
                    json!({ "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true });
                json!({
                    "normalizer": null, "pre_tokenizer": pre_tokenizer, "decoder": bytes,
                    "model": {
                        "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                        "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
                        "ignore_merges": pre.starts_with("llama"), "vocab": vocabulary, "merges": merges,
                    },
                })
            }
            "llama" => {
                let scores: Vec<f64> = match get("ggml.scores") {
                    Some(Value::Array(scores)) => scores.iter().map(|s| s.as_f64().unwrap_or(0.)).collect(),
                    _ => bail!("it has no tokenizer.ggml.scores"),
                };
                let mut steps = vec![json!({ "type": "Replace", "pattern": { "String": " " }, "content": "\u{2581}" })];
                let mut back = vec![
                    json!({ "type": "Replace", "pattern": { "String": "\u{2581}" }, "content": " " }),
                    json!({ "type": "ByteFallback" }),
                    json!({ "type": "Fuse" }),
                ];
                if says("ggml.add_space_prefix").unwrap_or(true) {
                    steps.insert(0, json!({ "type": "Prepend", "prepend": "\u{2581}" }));
                    back.push(json!({ "type": "Strip", "content": " ", "start": 1, "stop": 0 }));
                }
                let unknown = number("ggml.unknown_token_id").and_then(|i| tokens.get(i as usize));
                json!({
                    "normalizer": { "type": "Sequence", "normalizers": steps },
                    "pre_tokenizer": null, "decoder": { "type": "Sequence", "decoders": back },
                    "model": {
                        "type": "BPE", "dropout": null, "unk_token": unknown, "continuing_subword_prefix": null,
                        "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
                        "merges": merges(&tokens, &scores), "vocab": vocabulary,
                    },
                })
            }
            other => bail!("its tokenizer is of kind {other:?}, known are gpt2 and llama"),
        };
        let Some(file) = parts.as_object_mut() else { bail!("no tokenizer") };
        let processor = match begin.filter(|_| adds_begin).and_then(|i| Some((i, tokens.get(i as usize)?))) {
            None => Value::Null,
            Some((id, token)) => json!({
                "type": "TemplateProcessing",
                "single": [{ "SpecialToken": { "id": token, "type_id": 0 } }, { "Sequence": { "id": "A", "type_id": 0 } }],
                "pair": [{ "Sequence": { "id": "A", "type_id": 0 } }, { "Sequence": { "id": "B", "type_id": 1 } }],
                "special_tokens": { token: { "id": token, "ids": [id], "tokens": [token] } },
            }),
        };
        file.extend([
            ("version".into(), "1.0".into()),
            ("truncation".into(), Value::Null),
            ("padding".into(), Value::Null),
            ("added_tokens".into(), added.into()),
            ("post_processor".into(), processor),
        ]);
        let chat_template = get("chat_template").and_then(Value::as_str).map(str::to_string);
        Self::new(TokensFile { tokenizer: parts, begin, ends, chat_template })
    }

    /// Entries of a GGUF file that say the same, for llama.cpp.
    ///
    /// # Errors
    /// A tokenizer that is not one of byte-level pairs, or splits texts in a way that llama.cpp has no name for.
    pub fn gguf(&self, vocabulary: usize) -> Result<Map<String, Value>> {
        let file = &self.file.tokenizer;
        let pre = file.get("pre_tokenizer").unwrap_or(&Value::Null);
        let known = splits().into_iter().find(|(_, split)| split == pre).map(|(names, _)| names[0]);
        let Some(pre) = known.filter(|_| file["normalizer"].is_null()) else {
            bail!(
                "its tokenizer splits texts in a way that llama.cpp has no name for here (known are those of GPT-2, SmolLM, Llama 3 and Qwen 2)"
            )
        };
        let merges: Option<Vec<Value>> = file["model"]["merges"].as_array().map(|all| {
            let joined = |merge: &Value| match merge.as_array().map(Vec::as_slice) {
                Some([Value::String(a), Value::String(b)]) => format!("{a} {b}").into(),
                _ => merge.clone(),
            };
            all.iter().map(joined).collect()
        });
        let Some(merges) = merges.filter(|_| file["model"]["type"] == "BPE") else {
            bail!("its tokenizer has no merges of pairs: {} is not written to GGUF", file["model"]["type"])
        };
        let added = self.tokenizer.get_added_tokens_decoder();
        let (mut tokens, mut types) = (vec![], vec![]);
        for id in 0..vocabulary as u32 {
            // A model may have more rows than its tokenizer has tokens.
            tokens.push(self.tokenizer.id_to_token(id).unwrap_or_else(|| format!("[PAD{id}]")));
            types.push(match (added.get(&id), self.tokenizer.id_to_token(id)) {
                (Some(token), _) if token.special => 3,
                (Some(_), _) => 4,
                (None, Some(_)) => 1,
                (None, None) => 5,
            });
        }
        let adds_begin = self.begin().is_some_and(|b| self.encode("a", true).is_ok_and(|ids| ids.first() == Some(&b)));
        let mut entries = json!({
            "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": pre, "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.token_type": types, "tokenizer.ggml.merges": merges,
            "tokenizer.ggml.add_bos_token": adds_begin, "tokenizer.ggml.add_space_prefix": false,
        });
        let (end, other_end) = (self.file.ends.first(), self.file.ends.get(1));
        let special = [("bos", self.file.begin.as_ref()), ("eos", end), ("eot", other_end), ("padding", end)];
        for (key, token) in special {
            if let Some(token) = token {
                entries[format!("tokenizer.ggml.{key}_token_id")] = (*token).into();
            }
        }
        if let Some(template) = &self.file.chat_template {
            entries["tokenizer.chat_template"] = template.as_str().into();
        }
        Ok(if let Value::Object(entries) = entries { entries } else { Map::new() })
    }

    /// Trains byte-level pairs (Sennrich et al. 2016, as GPT-2 splits texts) on texts: at most `vocabulary` tokens, the first of
    /// which ends texts. The same texts give the same tokens.
    ///
    /// # Errors
    /// Fewer tokens than there are bytes.
    pub fn train<'a>(texts: impl IntoIterator<Item = &'a str>, vocabulary: usize) -> Result<Self> {
        const LEAST: usize = 257;
        if vocabulary < LEAST {
            bail!("tokenizer: {vocabulary} tokens are fewer than the 256 bytes and the end of a text")
        }
        let mut tokenizer = Tokenizer::new(BPE::default());
        let bytes = ByteLevel::new(false, true, true);
        tokenizer.with_pre_tokenizer(Some(bytes)).with_decoder(Some(bytes));
        let trainer = BpeTrainer::builder()
            .vocab_size(vocabulary)
            .show_progress(false)
            .special_tokens(vec![AddedToken::from(END, true)])
            .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
            .build();
        let mut trainer = TrainerWrapper::from(trainer);
        let all: Vec<&str> = texts.into_iter().flat_map(pieces).collect();
        tokenizer.train(&mut trainer, all.into_iter()).map_err(said("tokenizer"))?;
        let written = tokenizer.to_string(false).map_err(said("tokenizer"))?;
        let tokenizer = serde_json::from_str(&written).map_err(Error::wrap)?;
        Self::new(TokensFile { tokenizer, begin: Some(0), ends: vec![0], chat_template: None })
    }

    /// One more than the largest number of a token.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The text that a tokenizer lists a token with.
    pub fn text(&self, token: u32) -> Option<String> {
        self.tokenizer.id_to_token(token)
    }

    /// What weights keep of it.
    pub fn file(&self) -> &TokensFile {
        &self.file
    }

    /// The token that begins a text, if the model has one.
    pub fn begin(&self) -> Option<u32> {
        self.file.begin
    }

    /// Whether a token ends a text.
    pub fn ends(&self, token: u32) -> bool {
        self.file.ends.contains(&token)
    }

    /// Whether two tokenizers give texts the same numbers, however their files say it: the same tokens, merges, and tokens of some hard texts.
    pub fn agrees(&self, other: &Self) -> bool {
        const TEXTS: [&str; 6] = [
            "Hello world, it's 12,345.67 — don't!",
            "  two  spaces\tand a tab\n\n\nlines\r\n ",
            "naïve e\u{301} straße 你好，世界 🦀👩‍👩‍👧 \u{200d}\u{feff}",
            "fn f(x: &[u8]) -> u32 { x.len() as u32 } // _snake_case",
            "ⅷ ½ ² 1٣4 １２３ 0x1F \0\u{1b}",
            "a<|endoftext|>b <|im_start|>",
        ];
        let merges = |of: &Self| -> Vec<String> {
            let joined = |merge: &Value| match merge {
                Value::Array(pair) => pair.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(" "),
                one => one.as_str().unwrap_or_default().to_string(),
            };
            of.file.tokenizer["model"]["merges"]
                .as_array()
                .map(|all| all.iter().map(joined).collect())
                .unwrap_or_default()
        };
        let ids = |of: &Self, text: &str| of.encode(text, false).unwrap_or_default();
        // Rows of a model without a token have names in a GGUF file.
        let knows = |a: &Self, b: &Self| {
            let known =
                |(token, id): (String, u32)| a.tokenizer.token_to_id(&token) == Some(id) || token.starts_with("[PAD");
            b.tokenizer.get_vocab(true).into_iter().all(known)
        };
        self.file.tokenizer == other.file.tokenizer
            || knows(self, other)
                && knows(other, self)
                && merges(self) == merges(other)
                && TEXTS.iter().all(|text| ids(self, text) == ids(other, text))
    }

    /// Bytes of text that a token stands for; 0 of special ones.
    pub fn bytes_of(&self, token: u32) -> usize {
        self.bytes.get(token as usize).copied().unwrap_or(0)
    }

    /// Numbers of a text's tokens; with `special`, with those that the tokenizer puts around a text.
    ///
    /// # Errors
    /// The tokenizer's.
    pub fn encode(&self, text: &str, special: bool) -> Result<Vec<u32>> {
        Ok(self.tokenizer.encode_fast(text, special).map_err(said("tokenizer"))?.get_ids().to_vec())
    }

    /// Numbers of a text's tokens as [`Tokens::encode`] gives them, each with the place of its last byte in the text; none for those that the
    /// tokenizer adds.
    ///
    /// # Errors
    /// The tokenizer's.
    #[cfg(feature = "train")]
    pub(crate) fn encode_at(&self, text: &str, special: bool) -> Result<Vec<(u32, Option<usize>)>> {
        let encoding = self.tokenizer.encode(text, special).map_err(said("tokenizer"))?;
        let all = encoding.get_ids().iter().zip(encoding.get_offsets()).zip(encoding.get_special_tokens_mask());
        Ok(all.map(|((id, (_, end)), added)| (*id, (*added == 0).then(|| end.saturating_sub(1)))).collect())
    }

    /// Numbers of the tokens of a long text, in pieces of about 1 MiB that end behind a line, in parallel.
    ///
    /// # Errors
    /// The tokenizer's.
    pub fn encode_long(&self, text: &str) -> Result<Vec<u32>> {
        let all = self.tokenizer.encode_batch_fast(pieces(text), false).map_err(said("tokenizer"))?;
        Ok(all.iter().flat_map(|piece| piece.get_ids()).copied().collect())
    }

    /// The text of tokens, without special ones.
    ///
    /// # Errors
    /// The tokenizer's.
    pub fn decode(&self, tokens: &[u32]) -> Result<String> {
        self.tokenizer.decode(tokens, true).map_err(said("tokenizer"))
    }
}

/// A text in pieces of about 1 MiB, each to the end of a line if there is one.
fn pieces(text: &str) -> Vec<&str> {
    let (mut rest, mut all) = (text, vec![]);
    while rest.len() > PIECE {
        let line = rest.as_bytes()[PIECE..].iter().position(|b| *b == b'\n');
        let (piece, more) = rest.split_at(line.map_or(rest.len(), |n| PIECE + n + 1));
        all.push(piece);
        rest = more;
    }
    if !rest.is_empty() {
        all.push(rest);
    }
    all
}

fn texts(value: Option<&Value>) -> Option<Vec<String>> {
    value?.as_array()?.iter().map(|v| v.as_str().map(str::to_string)).collect()
}

/// How texts are split before pairs are merged, by llama.cpp's names for it, and as a `tokenizer.json` has it.
fn splits() -> Vec<(&'static [&'static str], Value)> {
    const LLAMA_3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
    const QWEN_2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
    let bytes = |regex: bool| json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": regex });
    let split = |regex: &str| {
        let split = json!({ "type": "Split", "pattern": { "Regex": regex }, "behavior": "Isolated", "invert": false });
        json!({ "type": "Sequence", "pretokenizers": [split, bytes(false)] })
    };
    let digits = json!({ "type": "Digits", "individual_digits": true });
    vec![
        (&["gpt-2", "default"], bytes(true)),
        (&["smollm"], json!({ "type": "Sequence", "pretokenizers": [digits, bytes(true)] })),
        (&["llama-bpe", "llama3", "llama-v3"], split(LLAMA_3)),
        (&["qwen2"], split(QWEN_2)),
    ]
}

/// The pairs that pieces of a unigram-like vocabulary are merged from: by score from the best on, of one piece in the order of its parts.
fn merges(tokens: &[String], scores: &[f64]) -> Vec<Value> {
    let numbers: HashMap<&str, usize> = tokens.iter().enumerate().map(|(i, t)| (t.as_str(), i)).collect();
    let mut all: Vec<(f64, usize, usize)> = vec![];
    // Longer ones are no words, and would take long.
    const LONGEST: usize = 512;
    for (token, score) in tokens.iter().zip(scores).filter(|(token, _)| token.len() <= LONGEST) {
        let cuts = token.char_indices().skip(1).map(|(at, _)| token.split_at(at));
        let mut found: Vec<_> = cuts.filter_map(|(a, b)| Some((*numbers.get(a)?, *numbers.get(b)?))).collect();
        found.sort_unstable();
        all.extend(found.into_iter().map(|(a, b)| (*score, a, b)));
    }
    all.sort_by(|a, b| b.0.total_cmp(&a.0));
    all.into_iter().map(|(_, a, b)| json!([tokens[a], tokens[b]])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "the cat sat on the mat, and the other cat sat there\n";

    #[test]
    fn trained_tokens_are_the_same_again_and_keep_any_text() -> Result<()> {
        let text = TEXT.repeat(50);
        let tokens = Tokens::train([text.as_str()], 300)?;
        assert_eq!(tokens.file(), Tokens::train([text.as_str()], 300)?.file());
        for text in ["the cat", "", " \n\t ", "Zürich 你好 🦀\u{301}", "a\0b", "<|endoftext|> is a token"] {
            let ids = tokens.encode(text, false)?;
            assert_eq!(tokens.decode(&ids)?, text.replace(END, ""));
        }
        assert!(tokens.encode("the cat", false)?.len() < 7);
        assert_eq!(tokens.encode(&text, false)?, tokens.encode_long(&text)?);
        assert!(Tokens::train([text.as_str()], 256).is_err());
        Ok(())
    }

    #[test]
    fn a_gguf_says_the_same_as_the_tokenizer_it_was_written_from() -> Result<()> {
        let tokens = Tokens::train([TEXT.repeat(50).as_str()], 300)?;
        let n = tokens.len();
        let entries = tokens.gguf(n + 2)?;
        let again = Tokens::of_gguf(&entries)?;
        assert!(again.agrees(&tokens) && tokens.agrees(&again));
        assert!(!again.agrees(&Tokens::train(["another text".repeat(9).as_str()], 300)?));
        for text in ["the cat sat", "42 <|endoftext|>", "Ünïcode\n\n  indented"] {
            assert_eq!(again.encode(text, true)?, tokens.encode(text, true)?, "{text}");
        }
        assert_eq!((again.begin(), again.ends(0)), (Some(0), true));
        let mut other = entries.clone();
        other.insert("tokenizer.ggml.pre".into(), "chameleon".into());
        let message = Tokens::of_gguf(&other).map(|_| ()).unwrap_err().to_string();
        assert!(message.contains("\"chameleon\""), "{message}");
        Ok(())
    }

    #[test]
    fn pieces_end_behind_lines_and_lose_nothing() {
        let line = "x".repeat(1000) + "\n";
        let text = line.repeat(3000);
        let all = pieces(&text);
        assert_eq!((all.len(), all.concat()), (3, text.clone()));
        assert!(all.iter().all(|p| p.ends_with('\n')));
        assert_eq!(pieces(&"é".repeat(PIECE)).len(), 1);
    }
}
