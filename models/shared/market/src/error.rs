use std::path::PathBuf;

/// Why a price file cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Its reason.
        source: std::io::Error,
    },
    /// What is in it; the message names file and line.
    #[error("{message}{}", in_words(advice, ""))]
    Data {
        /// What is wrong.
        message: String,
        /// The field of [`Reading`](crate::Reading) that may help, and what it does.
        advice: Option<(&'static str, &'static str)>,
    },
}

fn in_words(advice: &Option<(&'static str, &'static str)>, prefix: &str) -> String {
    advice.map_or(String::new(), |(field, does)| format!(" ({prefix}{field} {does})"))
}

impl Error {
    /// The message, for a program that sets the fields of [`Reading`](crate::Reading) by keys of that table.
    pub fn keyed(&self, table: &str) -> String {
        match self {
            Self::Data { message, advice } => format!("{message}{}", in_words(advice, &format!("{table}."))),
            other => other.to_string(),
        }
    }
}

/// The result of this crate's functions.
pub type Result<T> = std::result::Result<T, Error>;
