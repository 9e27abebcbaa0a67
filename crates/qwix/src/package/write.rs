//! Writing a package: what stands in it beside the tensors, and packages made of values at hand.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path as FilePath;

use qwix_array::Array;
use qwix_eval::Value;
use qwix_graph::text::TextOptions;
use qwix_graph::{Parameter, Path};

use super::manifest::{FORMAT, FileEntry, InputEntry, Manifest, ParameterEntry, ShardEntry, VERSION};
use super::shards::{Shards, stored};
use super::{INDEX, MANIFEST, MANIFEST_HASH, MODEL, RULES, is_package, variables};
use crate::files::{NewDir, write_all_at};
use crate::hash::sha256;
use crate::{Error, Model, Result};

/// What a package says beside its tensors.
pub(crate) struct Contents<'a> {
    pub parameters: &'a [Parameter],
    /// `model.hlo`.
    pub model: Option<&'a str>,
    /// `rules.json`.
    pub rules: &'a str,
    pub qwix_compat: bool,
    pub inputs: BTreeMap<String, String>,
    pub sources: BTreeMap<String, InputEntry>,
    /// The hash of each tensor's bytes.
    pub tensors: BTreeMap<String, String>,
}

/// What stands in [`MANIFEST_HASH`], in the form that `sha256sum -c` reads.
pub(crate) fn hash_line(manifest: &str) -> String {
    format!("{}  {MANIFEST}\n", sha256(manifest.as_bytes()))
}

/// Entries for the manifest.
pub(crate) fn entries(parameters: &[Parameter]) -> Result<Vec<ParameterEntry>> {
    let entry = |p: &Parameter| {
        ParameterEntry::of(p).ok_or_else(|| {
            Error::Unsupported(format!("parameter `{}` is {}; only arrays can be stored", p.path, p.ty))
        })
    };
    parameters.iter().map(entry).collect()
}

/// Writes what stands beside the shards, the manifest last. Returns the manifest's hash.
pub(crate) fn finish_manifest(
    shards: &Shards,
    contents: Contents<'_>,
    write: &dyn Fn(&str, &[u8]) -> Result<()>,
) -> Result<String> {
    let mut files = BTreeMap::new();
    let index = shards.index();
    let texts = [(INDEX, Some(index.as_str())), (MODEL, contents.model), (RULES, Some(contents.rules))];
    for (name, text) in texts {
        let Some(text) = text else { continue };
        write(name, text.as_bytes())?;
        let entry = FileEntry { bytes: text.len() as u64, sha256: sha256(text.as_bytes()) };
        files.insert(name.to_owned(), entry);
    }
    let shards = shards.list.iter().map(|shard| {
        (shard.name.clone(), ShardEntry { bytes: shard.bytes, header_sha256: sha256(&shard.header) })
    });
    let manifest = Manifest {
        format: FORMAT.to_owned(),
        version: VERSION,
        tool: tool(),
        qwix_compat: contents.qwix_compat,
        files,
        shards: shards.collect(),
        tensors: contents.tensors,
        inputs: contents.inputs,
        sources: contents.sources,
        parameters: entries(contents.parameters)?,
    };
    let mut text = serde_json::to_string_pretty(&manifest).map_err(|e| Error::Unsupported(e.to_string()))?;
    text.push('\n');
    write(MANIFEST, text.as_bytes())?;
    write(MANIFEST_HASH, hash_line(&text).as_bytes())?;
    Ok(sha256(text.as_bytes()))
}

/// What writes, with its version.
pub(crate) fn tool() -> String {
    format!("qwix {}", env!("CARGO_PKG_VERSION"))
}

/// The arrays of a value, in the order of [`stored`].
pub(crate) fn parts(value: &Value) -> Vec<&Array> {
    match value {
        Value::Array(array) => vec![array],
        Value::QArray(q) => [q.qvalue(), q.scale()].into_iter().chain(q.zero_point()).collect(),
        Value::Tuple(_) => vec![],
    }
}

/// A package in the making, of values at hand. Nothing is at the target before [`PackageWriter::finish`]; dropped
/// before, it leaves nothing behind. [`QuantizeJob`](crate::QuantizeJob) makes one of a checkpoint of any size, and goes
/// on where it was interrupted.
pub struct PackageWriter {
    dir: NewDir,
    replace: bool,
    model: Model,
    /// Those still to come.
    missing: BTreeMap<Path, Parameter>,
    shards: Shards,
    files: Vec<File>,
    tensors: BTreeMap<String, String>,
}

impl PackageWriter {
    /// Begins a package of a quantized model. `replace` allows the package that is at the target to be replaced.
    ///
    /// # Errors
    /// When something is in the way at the target, or it cannot be written.
    pub fn begin(target: impl AsRef<FilePath>, model: &Model, replace: bool) -> Result<Self> {
        let target = target.as_ref();
        // Only what we wrote may be replaced: a wrong name must not cost somebody a folder.
        let replace = replace && is_package(target)?;
        let missing = variables(&model.parameters);
        entries(&model.parameters)?;
        let shards = Shards::plan(missing.values(), crate::DEFAULT_SHARD_SIZE)?;
        let dir = NewDir::begin(target, replace)?;
        let mut files = Vec::new();
        for shard in &shards.list {
            let file = dir.create(&shard.name)?.into_file();
            let made = file.set_len(shard.bytes).and_then(|()| write_all_at(&file, &shard.header, 0));
            made.map_err(|e| Error::io("write", &target.join(&shard.name), e))?;
            files.push(file);
        }
        Ok(PackageWriter {
            dir,
            replace,
            model: model.clone(),
            missing,
            shards,
            files,
            tensors: BTreeMap::new(),
        })
    }

    /// Writes one parameter.
    ///
    /// # Errors
    /// When the model has none of that path or it has another type, or writing fails.
    pub fn write(&mut self, path: &Path, value: &Value) -> Result<()> {
        let Some(parameter) = self.missing.remove(path) else {
            let hint = String::new();
            return Err(qwix_eval::EvalError::ExtraParam { path: path.clone(), hint }.into());
        };
        let wrong = || {
            Error::Eval(qwix_eval::EvalError::WrongType {
                what: format!("parameter `{path}`"),
                expected: parameter.ty.to_string(),
                found: value.describe(),
            })
        };
        if !value.is_of(&parameter.ty) {
            return Err(wrong());
        }
        for ((key, ty), array) in stored(&parameter)?.iter().zip(parts(value)) {
            if array.dtype() != ty.dtype || array.shape() != ty.shape {
                return Err(wrong());
            }
            let place = self.shards.places.get(key);
            let found = place.and_then(|place| Some((place, self.files.get(place.shard)?)));
            let (place, file) = found.ok_or_else(wrong)?;
            let name = self.shards.list.get(place.shard).map_or("", |shard| shard.name.as_str());
            write_all_at(file, array.bytes(), place.offset)
                .map_err(|e| Error::io("write", &self.dir.shown(name), e))?;
            self.tensors.insert(key.clone(), sha256(array.bytes()));
        }
        Ok(())
    }

    /// Writes the rest and puts the package at its target. `rules` is the text of `rules.json`.
    ///
    /// # Errors
    /// When a parameter was not written, or writing fails.
    pub fn finish(self, rules: &str, qwix_compat: bool) -> Result<()> {
        if let Some(parameter) = self.missing.values().next() {
            return Err(qwix_eval::EvalError::MissingParam {
                path: parameter.path.clone(),
                expected: parameter.ty.to_string(),
            }
            .into());
        }
        for (file, shard) in self.files.iter().zip(&self.shards.list) {
            file.sync_all().map_err(|e| Error::io("write", &self.dir.shown(&shard.name), e))?;
        }
        let contents = Contents {
            parameters: &self.model.parameters,
            model: Some(&self.model.to_text(TextOptions::default())),
            rules,
            qwix_compat,
            inputs: BTreeMap::new(),
            sources: BTreeMap::new(),
            tensors: self.tensors,
        };
        finish_manifest(&self.shards, contents, &|name, bytes| self.dir.write(name, bytes))?;
        self.dir.commit(self.replace)
    }
}
