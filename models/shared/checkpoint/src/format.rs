use std::fmt;

/// What a format is like. A new one is a file with such a constant and a `Codec`, and a line in `formats.rs`.
pub(crate) struct Traits {
    /// As users name it: `pytorch`.
    pub(crate) name: &'static str,
    /// As messages name it: `PyTorch`.
    pub(crate) title: &'static str,
    /// Endings of files that are written in it.
    pub(crate) extensions: &'static [&'static str],
    /// Whether its files hold metadata.
    pub(crate) metadata: bool,
    /// Whether its files hold the names of tensors.
    pub(crate) names: bool,
    /// Whether it is written in shards behind an index.
    pub(crate) shards: bool,
    /// Whether it holds blocks of quantized values.
    pub(crate) blocks: bool,
    /// Whether its tensors may be within an entry of a dictionary.
    pub(crate) entries: bool,
    /// Whether tensors with the same values are stored once: else each has its own.
    pub(crate) ties: bool,
}

impl Traits {
    /// A format of tensors by name, with metadata and nothing else.
    pub(crate) const fn new(name: &'static str, title: &'static str, extensions: &'static [&'static str]) -> Self {
        Self {
            name,
            title,
            extensions,
            metadata: true,
            names: true,
            shards: false,
            blocks: false,
            entries: false,
            ties: true,
        }
    }
}

/// A file format.
#[derive(Clone, Copy)]
pub struct Format(&'static Traits);

impl Format {
    pub(crate) const fn new(traits: &'static Traits) -> Self {
        Self(traits)
    }

    /// Its name, such as `safetensors` or `pytorch`.
    pub fn name(self) -> &'static str {
        self.0.name
    }

    /// Whether its files hold metadata.
    pub fn holds_metadata(self) -> bool {
        self.0.metadata
    }

    /// Whether it is written in shards behind an index.
    pub fn holds_shards(self) -> bool {
        self.0.shards
    }

    /// Whether it holds blocks of quantized values.
    pub fn holds_blocks(self) -> bool {
        self.0.blocks
    }

    /// Whether its tensors may be within an entry of a dictionary.
    pub fn holds_entries(self) -> bool {
        self.0.entries
    }

    /// Whether tensors with the same values are stored once.
    pub fn holds_ties(self) -> bool {
        self.0.ties
    }

    pub(crate) fn holds_names(self) -> bool {
        self.0.names
    }

    pub(crate) fn title(self) -> &'static str {
        self.0.title
    }

    /// Endings of files that are written in it, the usual one first.
    pub fn extensions(self) -> &'static [&'static str] {
        self.0.extensions
    }
}

impl PartialEq for Format {
    fn eq(&self, other: &Self) -> bool {
        self.0.name == other.0.name
    }
}

impl Eq for Format {}

impl fmt::Debug for Format {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(self.0.name)
    }
}
