//! Which parameter of a checkpoint is which of a model.

use std::collections::BTreeMap;
use std::path::Path as FilePath;

use qwix_graph::Path;
use qwix_ptq::Template;
use serde::Deserialize;

use super::Prequantized;
use crate::files::read_text;
use crate::{Error, Result};

/// Where one parameter of a model comes from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Taken {
    /// The parameter of the checkpoint.
    pub from: Path,
    /// Whether its last two axes are exchanged on the way.
    pub transpose: bool,
}

/// The names that a model has for the parameters of a checkpoint. An empty map leaves every name as it is.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct NameMap {
    /// The model's path → where it comes from.
    names: BTreeMap<Path, Taken>,
}

/// One value of the file.
#[derive(Deserialize)]
#[serde(untagged)]
enum InFile {
    Path(String),
    Turned(Turned),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Turned {
    from: String,
    #[serde(default)]
    transpose: bool,
}

impl NameMap {
    /// Takes `from` of the checkpoint for `target` of the model.
    pub fn take(mut self, target: &str, from: &str, transpose: bool) -> Self {
        self.names.insert(Path::new(target), Taken { from: Path::new(from), transpose });
        self
    }

    /// Reads a map: JSON, `{"Dense_0/kernel": "fc1/weight"}`, or
    /// `{"Dense_0/kernel": {"from": "fc1/weight", "transpose": true}}`.
    ///
    /// # Errors
    /// When the file cannot be read or is something else.
    pub fn read(file: impl AsRef<FilePath>) -> Result<Self> {
        let file = file.as_ref();
        let text = read_text(file)?;
        let map: BTreeMap<String, InFile> = serde_json::from_str(&text).map_err(|e| {
            Error::checkpoint(
                file,
                None,
                format!("is no map of the model's names to the checkpoint's, or to objects with `from` and `transpose`: {e}"),
            )
        })?;
        Ok(map.into_iter().fold(NameMap::default(), |names, (target, taken)| match taken {
            InFile::Path(from) => names.take(&target, &from, false),
            InFile::Turned(Turned { from, transpose }) => names.take(&target, &from, transpose),
        }))
    }

    /// Whether every name stays as it is.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// The model's paths, and where each comes from.
    pub fn iter(&self) -> impl Iterator<Item = (&Path, &Taken)> {
        self.names.iter()
    }

    /// Every name that is taken, in order, checked against a checkpoint.
    ///
    /// Parameters of the checkpoint that go nowhere are refused unless `allow_extra`. So is, in any case, a weight with its
    /// inputs in another order without the parameter that says in which.
    pub(super) fn resolve(
        &self,
        checkpoint: &Prequantized,
        template: &Template,
        allow_extra: bool,
    ) -> Result<BTreeMap<Path, Taken>> {
        let mut taken = self.names.clone();
        if taken.is_empty() {
            let same = |path: &Path| (path.clone(), Taken { from: path.clone(), transpose: false });
            taken.extend(checkpoint.types().map(|(path, _)| same(path)));
            if allow_extra {
                let known = |path: &Path| {
                    template.made_of(path).next().is_some() || template.parameters().contains_key(path)
                };
                taken.retain(|path, _| known(path));
            }
        }
        let used = |path: &Path| taken.values().any(|taken| taken.from == *path);
        for Taken { from, .. } in taken.values() {
            if checkpoint.type_of(from).is_none() {
                return Err(
                    checkpoint.bad(from, "is not in the checkpoint, though the map of names asks for it")
                );
            }
        }
        for (path, _) in checkpoint.types() {
            if path.name() == "input_permutation" && used(&path.parent().join("weight")) && !used(path) {
                return Err(checkpoint.bad(
                    path,
                    "is the order of the inputs of the weight beside it, and the model does not take it: its outputs would be wrong (--act-order expand needs no other order)",
                ));
            }
            if !used(path) && !allow_extra {
                return Err(checkpoint.bad(
                    path,
                    "goes into no parameter of the model; map it to one, or allow extra parameters",
                ));
            }
        }
        Ok(taken)
    }
}
