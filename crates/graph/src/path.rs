//! Where a parameter or a module lives.

use std::fmt;

/// A path in a model's tree, joined with `/`: `Dense_0/kernel`, `layers/0/lin`. Empty is the root.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
pub struct Path(String);

impl Path {
    /// A path from its text; leading, trailing and doubled separators are dropped.
    pub fn new(text: &str) -> Self {
        Path(text.split('/').filter(|s| !s.is_empty()).collect::<Vec<_>>().join("/"))
    }

    /// The text, `/` between segments.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The segments, none for the root.
    pub fn segments(&self) -> impl DoubleEndedIterator<Item = &str> {
        self.0.split('/').filter(|s| !s.is_empty())
    }

    /// The path without its last segment; the root's is the root.
    pub fn parent(&self) -> Path {
        Path(self.0.rsplit_once('/').map_or(String::new(), |(head, _)| head.to_owned()))
    }

    /// The last segment.
    pub fn name(&self) -> &str {
        self.0.rsplit('/').next().unwrap_or("")
    }

    /// This path and one segment (or several) more.
    pub fn join(&self, tail: &str) -> Path {
        Path::new(&format!("{}/{tail}", self.0))
    }

    /// Whether this is the root.
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl From<&str> for Path {
    fn from(text: &str) -> Self {
        Path::new(text)
    }
}
