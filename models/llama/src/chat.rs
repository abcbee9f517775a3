//! Conversations as texts, by a model's own template.

use candle_core::{Error, Result, bail};
use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, ErrorKind, Value, context};
use serde::{Deserialize, Serialize};

use crate::Tokens;

/// What somebody says in a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Who: `system`, `user` or `assistant`.
    pub role: String,
    /// What.
    pub content: String,
}

impl Message {
    /// What `role` says.
    pub fn new(role: &str, content: &str) -> Self {
        Self { role: role.into(), content: content.into() }
    }
}

/// Steps that a template may take.
const STEPS: u64 = 10_000_000;

impl Tokens {
    /// A conversation as the model was trained to read it; with `answer`, up to where the model is to go on.
    ///
    /// # Errors
    /// The model has no template, or the template refuses the conversation.
    pub fn chat(&self, messages: &[Message], answer: bool) -> Result<String> {
        let Some(template) = &self.file().chat_template else {
            bail!("the model has no chat template: it goes on with texts, and was not made for conversations")
        };
        let failed = |e: minijinja::Error| {
            Error::msg(format!("chat template: {}", e.to_string().lines().next().unwrap_or_default()))
        };
        let mut jinja = Environment::new();
        jinja.set_fuel(Some(STEPS));
        // As transformers has it.
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        jinja.set_syntax(syntax.map_err(failed)?);
        jinja.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        jinja.add_function("raise_exception", |text: String| -> std::result::Result<String, minijinja::Error> {
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, text))
        });
        let text = |token: Option<u32>| token.and_then(|id| self.text(id)).unwrap_or_default();
        let (begin, end) = (text(self.begin()), text(self.file().ends.first().copied()));
        let template = jinja.template_from_str(template).map_err(failed)?;
        let messages = messages.iter().map(|m| context! { role => m.role.as_str(), content => m.content.as_str() });
        let messages: Vec<Value> = messages.collect();
        let values = context! {
            messages => messages, add_generation_prompt => answer, bos_token => begin, eos_token => end,
        };
        template.render(values).map_err(failed)
    }

    /// A conversation in pieces, each with whether it is the model's answer: what a model learns from it.
    ///
    /// # Errors
    /// As [`Tokens::chat`], a conversation without an answer, or a template that rewrites what was said before.
    pub fn chat_pieces(&self, messages: &[Message]) -> Result<Vec<(String, bool)>> {
        let mut pieces = vec![];
        let mut done = String::new();
        for (i, message) in messages.iter().enumerate().filter(|(_, m)| m.role == "assistant") {
            let asked = self.chat(&messages[..i], true)?;
            let answered = self.chat(&messages[..=i], false)?;
            match (asked.strip_prefix(&done), answered.strip_prefix(&asked)) {
                _ if message.content.is_empty() => bail!("answer {} of the conversation is empty", i + 1),
                (Some(question), Some(answer)) => {
                    pieces.extend([(question.to_string(), false), (answer.to_string(), true)]);
                }
                _ => bail!("the chat template does not write answer {} behind what was said before it", i + 1),
            }
            done = answered;
        }
        if pieces.is_empty() {
            bail!("the conversation has no answer (a message of role assistant)")
        }
        Ok(pieces)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::TokensFile;

    const TEMPLATE: &str = "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}\
        {{ '<s>system\nBe kind.</s>\n' }}{% endif %}{{'<s>' + message['role'] + '\n' + message['content'].strip() + '</s>' + '\n'}}\
        {% endfor %}{% if add_generation_prompt %}{{ '<s>assistant\n' }}{% endif %}";

    fn tokens(template: Option<&str>) -> Result<Tokens> {
        let tokens = Tokens::train(["hello there ".repeat(30).as_str()], 280)?;
        Tokens::new(TokensFile { chat_template: template.map(Into::into), ..tokens.file().clone() })
    }

    #[test]
    fn a_conversation_is_written_by_the_template_and_its_answers_are_told_apart() -> Result<()> {
        let tokens = tokens(Some(TEMPLATE))?;
        let messages = [
            Message::new("user", " Hello "),
            Message::new("assistant", "Hi."),
            Message::new("user", "And?"),
            Message::new("assistant", "Well."),
        ];
        let asked = tokens.chat(&messages[..1], true)?;
        assert_eq!(asked, "<s>system\nBe kind.</s>\n<s>user\nHello</s>\n<s>assistant\n");
        let pieces = tokens.chat_pieces(&messages)?;
        let whole: String = pieces.iter().map(|(text, _)| text.as_str()).collect();
        assert_eq!(whole, tokens.chat(&messages, false)?);
        let answers: Vec<&str> = pieces.iter().filter(|(_, learnt)| *learnt).map(|(text, _)| text.as_str()).collect();
        assert_eq!(answers, ["Hi.</s>\n", "Well.</s>\n"]);
        assert!(tokens.chat_pieces(&messages[..1]).is_err());
        Ok(())
    }

    #[test]
    fn what_a_template_refuses_and_a_model_without_one_are_errors_in_words() -> Result<()> {
        let message = |template: Option<&str>| -> Result<String> {
            let said = tokens(template)?.chat(&[Message::new("user", "Hello")], true);
            Ok(said.map(|_| ()).unwrap_err().to_string())
        };
        let refusing = "{{ raise_exception('roles must alternate') }}";
        assert!(message(Some(refusing))?.contains("roles must alternate"));
        assert!(message(Some("{% for %}"))?.contains("chat template"));
        assert!(message(None)?.contains("no chat template"));
        Ok(())
    }
}
