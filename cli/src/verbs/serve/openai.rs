//! Completions in the shapes of OpenAI's programs.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Map, Value, json};
use zoo_layers::{End, Sampling};

use super::engine::{Prompt, Refusal};
use super::texts::reason;
use crate::output::first_line;

/// What a request asks to be written.
pub(super) struct Asked {
    pub(super) model: Option<String>,
    /// One for each choice.
    pub(super) choices: Vec<(Arc<Prompt>, Sampling)>,
    /// Choices of a prompt.
    pub(super) each: usize,
    pub(super) stream: bool,
    /// Whether a stream is to end with the numbers of tokens.
    pub(super) usage: bool,
}

/// What a server allows.
#[derive(Clone, Copy)]
pub(super) struct Allowed {
    pub(super) tokens: usize,
    pub(super) choices: usize,
}

#[derive(Deserialize)]
#[serde(expecting = "an object")]
struct Body {
    model: Option<String>,
    prompt: Option<OneOrMany>,
    messages: Option<Vec<Message>>,
    max_tokens: Option<usize>,
    max_completion_tokens: Option<usize>,
    temperature: Option<f64>,
    top_p: Option<f64>,
    n: Option<usize>,
    stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    stop: Option<OneOrMany>,
    seed: Option<i64>,
    // Not OpenAI's; other servers call them so, too.
    top_k: Option<usize>,
    min_p: Option<f64>,
    repetition_penalty: Option<f64>,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

#[derive(Deserialize)]
struct StreamOptions {
    #[serde(default)]
    include_usage: bool,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "expected a text or a list of texts")]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl OneOrMany {
    fn all(self) -> Vec<String> {
        match self {
            Self::One(one) => vec![one],
            Self::Many(many) => many,
        }
    }
}

#[derive(Deserialize)]
struct Message {
    role: String,
    content: Option<Content>,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "expected a message's content as a text or a list of parts")]
enum Content {
    Text(String),
    Parts(Vec<Part>),
}

#[derive(Deserialize)]
struct Part {
    r#type: Option<String>,
    text: Option<String>,
}

impl Message {
    fn text(self) -> Result<(String, String), Refusal> {
        if let Some((key, _)) = self.rest.iter().find(|(_, value)| !value.is_null()) {
            return Err(Refusal::bad(format!("messages: {key:.60}: this server does not have it")));
        }
        let text = match self.content {
            Some(Content::Text(text)) => text,
            Some(Content::Parts(parts)) => {
                let text = |part: Part| part.text.filter(|_| part.r#type.is_none_or(|kind| kind == "text"));
                let texts = parts.into_iter().map(text).collect::<Option<Vec<_>>>();
                texts.ok_or_else(|| Refusal::bad("messages: a part that is no text cannot be read"))?.concat()
            }
            None => return Err(Refusal::bad("messages: one has no content")),
        };
        Ok((self.role, text))
    }
}

/// Texts that may end one, and the bytes of each.
const STOPS: usize = 16;
const LONGEST_STOP: usize = 256;

/// Keys that change nothing about what is written.
const WITHOUT_EFFECT: [&str; 9] = [
    "metadata",
    "parallel_tool_calls",
    "prompt_cache_key",
    "safety_identifier",
    "service_tier",
    "store",
    "tool_choice",
    "user",
    "verbosity",
];

/// Whether a key that is not known here asks for nothing.
fn asks_for_nothing(key: &str, value: &Value) -> bool {
    match key {
        key if WITHOUT_EFFECT.contains(&key) => true,
        "frequency_penalty" | "presence_penalty" => value.as_f64() == Some(0.),
        "best_of" => value.as_u64() == Some(1),
        "logprobs" | "echo" | "top_logprobs" => value == &json!(false) || value == &json!(0) && key != "logprobs",
        "response_format" => value["type"] == "text",
        "logit_bias" | "tools" | "functions" | "modalities" => {
            value.as_object().is_some_and(Map::is_empty)
                || value.as_array().is_some_and(|all| all.is_empty() || key == "modalities" && *all == [json!("text")])
        }
        _ => false,
    }
}

impl Asked {
    /// Of the body of a request, for a conversation or for a text to go on with.
    pub(super) fn parse(body: &[u8], chat: bool, allowed: Allowed) -> Result<Self, Refusal> {
        let body: Body =
            serde_json::from_slice(body).map_err(|e| Refusal::bad(format!("the body: {}", first_line(&e))))?;
        if let Some((key, _)) = body.rest.iter().find(|(key, value)| !value.is_null() && !asks_for_nothing(key, value))
        {
            return Err(Refusal::bad(format!("{key:.60}: this server does not have it")));
        }
        let prompts = match (chat, body.prompt, body.messages) {
            (true, None, Some(messages)) if !messages.is_empty() => {
                vec![messages.into_iter().map(Message::text).collect::<Result<_, _>>().map(Prompt::Messages)?]
            }
            (false, Some(prompt), None) => prompt.all().into_iter().map(Prompt::Text).collect(),
            (true, ..) => return Err(Refusal::bad("messages: expected at least one, and no prompt")),
            (false, ..) => return Err(Refusal::bad("prompt: expected a text or a list of texts, and no messages")),
        };
        let stop = body.stop.map(OneOrMany::all).unwrap_or_default();
        if stop.len() > STOPS || stop.iter().any(|stop| stop.len() > LONGEST_STOP) {
            return Err(Refusal::bad(format!("stop: at most {STOPS} of {LONGEST_STOP} bytes each")));
        }
        let n = body.n.unwrap_or(1);
        let count = prompts.len().saturating_mul(n);
        if !(1..=allowed.choices).contains(&count) {
            let asked = format!("{} prompts with {n} choices each", prompts.len());
            return Err(Refusal::bad(format!("{asked}: expected 1 to {} texts (--at-once)", allowed.choices)));
        }
        let tokens = body.max_completion_tokens.or(body.max_tokens);
        // What OpenAI's programs expect: a few tokens of a text, and a whole answer.
        let tokens = tokens.unwrap_or(if chat { allowed.tokens } else { allowed.tokens.min(16) });
        if tokens > allowed.tokens {
            return Err(Refusal::bad(format!("max_tokens {tokens}: at most {} (--max-tokens)", allowed.tokens)));
        }
        let defaults = Sampling::default();
        let sampling = Sampling {
            tokens,
            temperature: body.temperature.unwrap_or(1.),
            top_p: body.top_p.unwrap_or(1.),
            top_k: body.top_k.unwrap_or(0),
            min_p: body.min_p.unwrap_or(0.),
            repetition_penalty: body.repetition_penalty.unwrap_or(1.),
            stop,
            seed: body.seed.map_or_else(random, i64::cast_unsigned),
            ..defaults
        };
        sampling.validate().map_err(|e| Refusal::bad(first_line(&e).replace('-', "_")))?;
        let mut choices = Vec::with_capacity(count);
        for prompt in prompts.into_iter().map(Arc::new) {
            choices.extend((0..n as u64).map(|sample| (prompt.clone(), Sampling { sample, ..sampling.clone() })));
        }
        let usage = body.stream_options.is_some_and(|options| options.include_usage);
        Ok(Self { model: body.model, choices, each: n, stream: body.stream.unwrap_or(false), usage })
    }
}

/// A number that nobody asked for in particular.
pub(super) fn random() -> u64 {
    use std::hash::{BuildHasher, Hasher, RandomState};
    RandomState::new().build_hasher().finish()
}

/// Seconds since 1970.
pub(super) fn now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

/// What all parts of an answer begin with.
pub(super) struct Shape {
    chat: bool,
    id: String,
    created: u64,
    model: String,
}

impl Shape {
    pub(super) fn new(chat: bool, model: &str) -> Self {
        let id = format!("{}-{:016x}", if chat { "chatcmpl" } else { "cmpl" }, random());
        Self { chat, id, created: now(), model: model.into() }
    }

    fn object(&self, object: &str, choices: Vec<Value>) -> Value {
        json!({ "id": self.id, "object": object, "created": self.created, "model": self.model, "choices": choices })
    }

    /// All texts with the reasons for their ends, and the numbers of tokens.
    pub(super) fn whole(&self, texts: Vec<(String, End)>, [prompt, written]: [usize; 2]) -> Value {
        let choice = |(index, (text, end)): (usize, (String, End))| {
            let finish_reason = reason(end);
            match self.chat {
                true => json!({
                    "index": index, "message": { "role": "assistant", "content": text }, "logprobs": null,
                    "finish_reason": finish_reason,
                }),
                false => json!({ "index": index, "text": text, "logprobs": null, "finish_reason": finish_reason }),
            }
        };
        let choices = texts.into_iter().enumerate().map(choice).collect();
        let mut whole = self.object(if self.chat { "chat.completion" } else { "text_completion" }, choices);
        whole["usage"] = usage([prompt, written]);
        whole
    }

    /// A piece of a text in a stream; without one where a text begins, with the reason where it ends.
    pub(super) fn piece(&self, index: usize, text: Option<&str>, end: Option<End>) -> Value {
        let finish_reason = end.map(reason);
        let choice = match self.chat {
            true => {
                let delta = match (text, end) {
                    (Some(text), _) => json!({ "content": text }),
                    (None, None) => json!({ "role": "assistant", "content": "" }),
                    (None, Some(_)) => json!({}),
                };
                json!({ "index": index, "delta": delta, "logprobs": null, "finish_reason": finish_reason })
            }
            false => {
                json!({ "index": index, "text": text.unwrap_or(""), "logprobs": null, "finish_reason": finish_reason })
            }
        };
        self.object(self.stream(), vec![choice])
    }

    /// The end of a stream that was to tell the numbers of tokens.
    pub(super) fn usage(&self, tokens: [usize; 2]) -> Value {
        let mut last = self.object(self.stream(), vec![]);
        last["usage"] = usage(tokens);
        last
    }

    fn stream(&self) -> &'static str {
        if self.chat { "chat.completion.chunk" } else { "text_completion" }
    }
}

fn usage([prompt, written]: [usize; 2]) -> Value {
    json!({ "prompt_tokens": prompt, "completion_tokens": written, "total_tokens": prompt + written })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(body: &str, chat: bool) -> Result<Asked, String> {
        Asked::parse(body.as_bytes(), chat, Allowed { tokens: 100, choices: 4 }).map_err(|refusal| refusal.message)
    }

    #[test]
    fn what_changes_the_text_is_understood_or_refused() {
        let of =
            asked(r#"{"prompt": ["a", "b"], "n": 2, "seed": -1, "stop": "x", "user": "u", "logprobs": null}"#, false);
        let choices = of.unwrap().choices;
        let samples: Vec<u64> = choices.iter().map(|(_, sampling)| sampling.sample).collect();
        assert_eq!((samples, choices[0].1.tokens, choices[3].1.seed), (vec![0, 1, 0, 1], 16, u64::MAX));
        let chat = r#"{"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"text": "b"}]}], "tools": []}"#;
        let Prompt::Messages(messages) = &*asked(chat, true).unwrap().choices[0].0 else { panic!("no messages") };
        assert_eq!(messages, &[("user".to_string(), "ab".to_string())]);
        for (body, chat, reason) in [
            (r#"{"prompt": "a", "logprobs": 0}"#, false, "logprobs"),
            (r#"{"prompt": "a", "response_format": {"type": "json_object"}}"#, false, "response_format"),
            (r#"{"prompt": "a", "max_token": 3}"#, false, "max_token"),
            (r#"{"prompt": "a", "max_tokens": 101}"#, false, "at most 100"),
            (r#"{"prompt": "a", "n": 5}"#, false, "--at-once"),
            (r#"{"prompt": [1, 2]}"#, false, "the body"),
            (
                r#"{"prompt": "a", "stop": ["1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11", "12", "13", "14", "15", "16", "17"]}"#,
                false,
                "stop: at most 16",
            ),
            (r#"{"messages": [{"role": "assistant", "content": null}]}"#, true, "one has no content"),
            (r#"{"messages": [{"role": "user", "content": "a", "name": "b"}]}"#, true, "messages: name"),
            (r#"{"prompt": "a", "top_p": 0}"#, false, "top_p must lie in (0, 1]"),
            (r#"{"prompt": "a"}"#, true, "messages"),
            (r#"{"messages": [{"role": "user", "content": [{"image_url": "x"}]}]}"#, true, "no text"),
            ("{", false, "the body"),
        ] {
            let refused = asked(body, chat).err().unwrap_or_else(|| panic!("{body} is taken"));
            assert!(refused.contains(reason), "{body}: {refused}");
        }
        let deep = format!("{}{}", r#"{"user": "#, "[".repeat(100_000));
        assert!(asked(&deep, false).err().is_some_and(|e| e.contains("recursion")));
    }
}
