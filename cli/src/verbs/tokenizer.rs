//! `tokenizer`: its training, and a text's tokens on disk.

use std::path::PathBuf;
use std::time::Instant;

use clap::{Args, Subcommand};
use serde_json::json;
use zoo_training::Tokenize;

use crate::arguments::{Force, Json};
use crate::output::{grouped, note, print_json, remark};

#[derive(Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) action: Action,
}

#[derive(Subcommand)]
pub(crate) enum Action {
    /// Train byte pairs on a text, a folder of texts, or a JSONL file, and write them as a tokenizer.json
    Train {
        /// The text
        text: PathBuf,
        /// Tokens, at most
        #[arg(long, value_name = "N", default_value_t = 4096, value_parser = clap::value_parser!(u32).range(257..=1 << 24))]
        vocab: u32,
        /// The file to write
        #[arg(long, value_name = "FILE", default_value = "tokenizer.json")]
        out: PathBuf,
        /// The encoding of a text that is not UTF-8, such as windows-1252 or gbk
        #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
        encoding: String,
        #[command(flatten)]
        force: Force,
        #[command(flatten)]
        json: Json,
    },
    /// Write the tokens of a text, a folder of texts, or a JSONL file with text, as data that --data takes
    Encode {
        /// The text
        text: PathBuf,
        /// A tokenizer.json, or weights of a model with theirs
        #[arg(long, value_name = "FILE")]
        tokenizer: PathBuf,
        /// The folder to write, new or empty
        #[arg(long, value_name = "FOLDER")]
        out: PathBuf,
        /// Tokens of a file
        #[arg(long, value_name = "N", default_value_t = 1 << 24, value_parser = clap::value_parser!(u32).range(1..))]
        shard: u32,
        /// The encoding of a text that is not UTF-8, such as windows-1252 or gbk
        #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
        encoding: String,
        #[command(flatten)]
        json: Json,
    },
}

pub(crate) fn run<T: Tokenize>(action: &Action) -> anyhow::Result<()> {
    let started = Instant::now();
    match action {
        Action::Train { text, vocab, out, encoding, force, json } => {
            force.check([out.as_path()])?;
            let (content, remarks) = T::train_tokenizer(text, encoding, *vocab as usize)?;
            remarks.into_iter().for_each(|said| remark(format!("{}: {said}", text.display())));
            force.write(out, content.as_bytes())?;
            let seconds = started.elapsed().as_secs_f64();
            note(&format!("{} written in {seconds:.1} s", out.display()));
            if json.json {
                print_json(&json!({ "tokenizer": out.display().to_string(), "seconds": seconds }));
            }
        }
        Action::Encode { text, tokenizer, out, shard, encoding, json } => {
            let said = T::encode(text, encoding, tokenizer, out, *shard as usize)?;
            said.remarks.into_iter().for_each(remark);
            let (tokens, bytes, seconds) = (said.tokens, said.bytes, started.elapsed().as_secs_f64());
            let each = bytes as f64 / tokens.max(1) as f64;
            note(&format!(
                "{}: {} tokens in {} file{}, {each:.2} bytes of text each, in {seconds:.1} s",
                out.display(),
                grouped(tokens),
                said.files,
                if said.files == 1 { "" } else { "s" }
            ));
            if json.json {
                print_json(&json!({
                    "folder": out.display().to_string(), "tokens": tokens, "bytes": bytes, "files": said.files, "seconds": seconds,
                }));
            }
        }
    }
    Ok(())
}
