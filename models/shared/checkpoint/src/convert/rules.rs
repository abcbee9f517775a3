//! Rules by which tensors are renamed and reshaped on their way: one a line.

use std::str::FromStr;

use regex::Regex;

use crate::Dtype;

/// How a conversion changes names and layouts.
///
/// ```text
/// # Patterns are regular expressions for whole names; $1 is what the first group matched.
/// rename    transformer\.h\.(\d+)\.ln_1\.(.*) -> blocks.$1.norm1.$2
/// transpose .*\.c_attn\.weight
/// split     (.*)\.in_proj_weight 0 -> $1.q.weight, $1.k.weight, $1.v.weight
/// concat    (.*)\.q\.weight, $1.k.weight, $1.v.weight 0 -> $1.in_proj_weight
/// interleave (.*)\.q\.weight 8
/// cast      .*\.bias f32
/// tie       lm_head.weight -> transformer.wte.weight
/// drop      optimizer\..*
/// drop-equal lm_head\.weight -> transformer.wte.weight
/// ```
///
/// They apply in their order, each to what those before it left. `drop-equal` drops a tensor whose values are those of
/// another, such as a tied head that a file holds twice. A rule that finds nothing is an error, unless its first
/// word ends with `?`. `drop` takes entries of the metadata, too. `split` makes equal parts along a dimension, `transpose`
/// swaps the two last dimensions. `interleave` is for matrices whose rows are the features of so many heads that a rotary
/// embedding turns: rows i and i + d/2 of a head of d become rows 2i and 2i + 1, which is how GGUF files of Llamas have
/// them; `deinterleave` leads back to Hugging Face's order.
#[derive(Clone, Debug, Default)]
pub struct Rules(pub(super) Vec<Rule>);

impl Rules {
    /// A text as a pattern that fits it alone.
    pub fn literal(text: &str) -> String {
        regex::escape(text)
    }
}

#[derive(Clone, Debug)]
pub(super) struct Rule {
    /// As it was written.
    pub(super) text: String,
    pub(super) optional: bool,
    pub(super) pattern: Regex,
    pub(super) action: Action,
}

#[derive(Clone, Debug)]
pub(super) enum Action {
    Rename(String),
    Transpose,
    /// The rows of so many heads; from pairs to halves if `back`.
    Interleave {
        heads: usize,
        back: bool,
    },
    Split {
        dim: usize,
        names: Vec<String>,
    },
    /// The pattern is the first part; these are the others.
    Concat {
        parts: Vec<String>,
        dim: usize,
        name: String,
    },
    Cast(Dtype),
    /// To the tensor of this name. The pattern is its own name, quoted.
    Tie {
        name: String,
        to: String,
    },
    Drop,
    /// If it has the same values as this one.
    DropEqual(String),
}

impl Rules {
    /// Adds the rules of another set behind these.
    pub fn extend(&mut self, more: Rules) {
        self.0.extend(more.0);
    }
}

impl FromStr for Rules {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let lines = text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#'));
        lines.map(|l| rule(l).map_err(|e| format!("rule `{l}`: {e}"))).collect::<Result<_, _>>().map(Self)
    }
}

fn rule(line: &str) -> Result<Rule, String> {
    let (word, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
    let (word, optional) = word.strip_suffix('?').map_or((word, false), |w| (w, true));
    let (left, right) = match rest.split_once(" -> ") {
        Some((left, right)) => (left.trim(), Some(right.trim())),
        None => (rest.trim(), None),
    };
    let target = || right.filter(|r| !r.is_empty()).ok_or("expected `… -> NAME`");
    let list = |text: &str| text.split(',').map(|n| n.trim().to_string()).collect::<Vec<_>>();
    let last_word = |what: &str| left.rsplit_once(char::is_whitespace).ok_or(format!("expected a pattern and {what}"));
    let dimension =
        |text: &str| text.parse::<usize>().map_err(|_| format!("{text} is no dimension: they count from 0"));
    let (pattern, action) = match word {
        "rename" => (left.to_string(), Action::Rename(target()?.into())),
        "transpose" => (left.to_string(), Action::Transpose),
        "interleave" | "deinterleave" => {
            let (pattern, heads) = last_word("a number of heads")?;
            let heads =
                heads.parse().ok().filter(|n: &usize| *n > 0).ok_or(format!("{heads} is no number of heads"))?;
            (pattern.trim().to_string(), Action::Interleave { heads, back: word == "deinterleave" })
        }
        "split" => {
            let (pattern, dim) = last_word("a dimension")?;
            (pattern.trim().to_string(), Action::Split { dim: dimension(dim)?, names: list(target()?) })
        }
        "concat" => {
            let (parts, dim) = last_word("a dimension")?;
            let mut parts = list(parts);
            let first = parts.remove(0);
            (first, Action::Concat { parts, dim: dimension(dim)?, name: target()?.into() })
        }
        "cast" => {
            let (pattern, dtype) = last_word("an element type")?;
            (pattern.trim().to_string(), Action::Cast(dtype.parse()?))
        }
        "tie" => (regex::escape(target()?), Action::Tie { name: left.into(), to: target()?.into() }),
        "drop-equal" => (left.to_string(), Action::DropEqual(target()?.into())),
        "drop" => (left.to_string(), Action::Drop),
        other => {
            return Err(format!(
                "there is no rule {other}: there are rename, transpose, interleave, deinterleave, split, concat, cast, tie, drop and drop-equal"
            ));
        }
    };
    if pattern.is_empty() {
        return Err("expected a pattern".into());
    }
    if right.is_some()
        && matches!(action, Action::Transpose | Action::Interleave { .. } | Action::Cast(_) | Action::Drop)
    {
        return Err(format!("{word} takes no `-> NAME`"));
    }
    let pattern = Regex::new(&format!("^(?:{pattern})$")).map_err(|e| {
        let why = e.to_string();
        format!(
            "its pattern is no regular expression: {}",
            why.lines().last().unwrap_or_default().trim_start_matches("error: ")
        )
    })?;
    Ok(Rule { text: line.into(), optional, pattern, action })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_read_and_wrong_ones_named() {
        let rules: Rules = "
            # names
            rename a\\.(.*) -> b.$1
            split? (.*)\\.qkv 0 -> $1.q, $1.k
            concat (.*)\\.q, $1.k 1 -> $1.qk
            cast .* BF16
            tie head -> embedding.weight
            drop optimizer\\..*"
            .parse()
            .unwrap();
        assert_eq!(rules.0.len(), 6);
        assert!(rules.0[1].optional && !rules.0[0].optional);
        for (wrong, says) in [
            ("renam a -> b", "no rule renam"),
            ("rename a", "expected `… -> NAME`"),
            ("rename ( -> b", "no regular expression"),
            ("split a x -> b", "x is no dimension"),
            ("interleave a 0", "0 is no number of heads"),
            ("cast a f33", "no element type is called f33"),
            ("drop", "expected a pattern"),
            ("drop a -> b", "takes no"),
        ] {
            let error = wrong.parse::<Rules>().unwrap_err();
            assert!(error.contains(says) && error.contains(wrong), "{wrong}: {error}");
        }
    }
}
