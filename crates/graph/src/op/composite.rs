//! Calls that stand for an op.

/// What XLA calls a composite: an op that HLO has not, of which the called computation is the decomposition. Whoever does
/// not know the name inlines the call.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Composite {
    /// The op's name, with a name space: `qwix.dot`.
    pub name: String,
    /// Its attributes, a dictionary in MLIR's syntax: `{n = 1 : i32}`.
    pub attributes: String,
    /// The version of the op.
    pub version: u64,
}

const NAME: &str = "composite.name";
const ATTRIBUTES: &str = "composite.attributes";
const VERSION: &str = "composite.version";

impl Composite {
    /// As XLA's frontend attributes of the call, sorted by key.
    pub(crate) fn texts(&self) -> [(&'static str, String); 3] {
        [
            (ATTRIBUTES, self.attributes.clone()),
            (NAME, self.name.clone()),
            (VERSION, self.version.to_string()),
        ]
    }

    /// From the frontend attributes of a call; `None` without a name.
    pub(crate) fn read<'t>(text: impl Fn(&str) -> Option<&'t str>) -> Result<Option<Self>, String> {
        let Some(name) = text(NAME).filter(|name| !name.is_empty()) else { return Ok(None) };
        let version = text(VERSION).unwrap_or("0");
        let version = version
            .parse()
            .map_err(|_| format!("{VERSION}: found {version:?}, expected a number that is not negative"))?;
        let attributes = text(ATTRIBUTES).unwrap_or("{}").to_owned();
        Ok(Some(Composite { name: name.to_owned(), attributes, version }))
    }
}
