use serde::Serialize;

/// Something to try.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Advice {
    /// What, in words.
    pub what: String,
    /// The setting that does it, if one does: a key of the configuration and its value.
    pub set: Option<(String, String)>,
}

/// A number with one significant digit.
pub(crate) fn neat(value: f64) -> f64 {
    format!("{value:.0e}").parse().unwrap_or(value)
}

impl Advice {
    /// Advice in words alone.
    pub fn new(what: impl Into<String>) -> Self {
        Self { what: what.into(), set: None }
    }

    /// A setting, and what it does.
    pub fn set(key: impl Into<String>, value: impl ToString, what: impl Into<String>) -> Self {
        Self { what: what.into(), set: Some((key.into(), value.to_string())) }
    }
}

impl std::fmt::Display for Advice {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str(&self.what)?;
        match &self.set {
            Some((key, value)) => write!(f, " ({key}={value})"),
            None => Ok(()),
        }
    }
}
