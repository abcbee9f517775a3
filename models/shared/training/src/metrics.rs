use std::borrow::Cow;
use std::ops::Deref;

use serde_json::{Map, Value};

/// A name that may be made at run time.
pub type Name = Cow<'static, str>;

/// Named numbers, in order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Metrics(Vec<(Name, f64)>);

impl Metrics {
    /// The value of that name, or NaN.
    pub fn value(&self, name: &str) -> f64 {
        self.iter().find(|(n, _)| n == name).map_or(f64::NAN, |(_, value)| *value)
    }

    /// Appends a value.
    pub fn push(&mut self, name: impl Into<Name>, value: f64) {
        self.0.push((name.into(), value));
    }

    /// Adds to the value of that name, which begins at 0.
    pub fn add(&mut self, name: &Name, value: f64) {
        match self.0.iter_mut().find(|(n, _)| n == name) {
            Some((_, sum)) => *sum += value,
            None => self.0.push((name.clone(), value)),
        }
    }

    /// As a JSON object.
    pub fn object(&self) -> Map<String, Value> {
        self.iter().map(|(name, value)| (name.to_string(), (*value).into())).collect()
    }
}

impl Deref for Metrics {
    type Target = [(Name, f64)];

    fn deref(&self) -> &[(Name, f64)] {
        &self.0
    }
}

impl<N: Into<Name>> FromIterator<(N, f64)> for Metrics {
    fn from_iter<I: IntoIterator<Item = (N, f64)>>(values: I) -> Self {
        Self(values.into_iter().map(|(name, value)| (name.into(), value)).collect())
    }
}

impl<N: Into<Name>, const K: usize> From<[(N, f64); K]> for Metrics {
    fn from(values: [(N, f64); K]) -> Self {
        values.into_iter().collect()
    }
}

impl IntoIterator for Metrics {
    type Item = (Name, f64);
    type IntoIter = std::vec::IntoIter<Self::Item>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}
