//! A quantized model on disk: a directory with the model, its parameters, the rules and a manifest.
//!
//! | file | what |
//! | --- | --- |
//! | `manifest.json` | format and version, how each parameter was made, the hashes of everything else and of what it was made from |
//! | `manifest.json.sha256` | the manifest's own hash |
//! | `model.hlo` | the graph as text, quantized types and ops included; not there when it was made without a graph |
//! | `params-00001-of-0000N.safetensors` | `<path>`, or `<path>/qvalue`, `/scale`, `/zero_point`; dtypes narrower than a byte are packed into `U8` of rank 1 |
//! | `params.safetensors.index.json` | which tensor is in which of these |
//! | `rules.json` | the rules, as they were understood |
//!
//! The same model, parameters and rules give the same bytes.

#[cfg(test)]
mod format_doc;
// A file that large cannot be mapped on a machine of 32 bits, nor be cheaply made where files have no holes.
#[cfg(all(test, unix, target_pointer_width = "64"))]
mod large;
pub(crate) mod manifest;
pub(crate) mod shards;
mod verify;
mod write;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path as FilePath, PathBuf};

use qwix_array::Array;
use qwix_eval::{Backend, Executable, Params, Value};
use qwix_graph::{Graph, Parameter, Path, Role, Type};
use qwix_quant::QArray;

use crate::files::read_text;
use crate::hash::{hash_file, sha256};
use crate::tensors::TensorFile;
use crate::{Error, Model, Result};
use manifest::{FORMAT, FileEntry, Heading, Manifest, OLD_VERSION, OldManifest, ParameterEntry, VERSION};
use shards::all_stored;
pub(crate) use shards::stored;

pub use verify::{Fault, Verifying, verify_package};
pub use write::PackageWriter;
pub(crate) use write::{Contents, entries, finish_manifest, hash_line, parts, tool};

pub(crate) const MANIFEST: &str = "manifest.json";
pub(crate) const MANIFEST_HASH: &str = "manifest.json.sha256";
pub(crate) const MODEL: &str = "model.hlo";
pub(crate) const RULES: &str = "rules.json";
pub(crate) const INDEX: &str = "params.safetensors.index.json";
/// The one file of parameters that packages of version 1 have.
const OLD_PARAMS: &str = "params.safetensors";

/// The value of the arrays that [`stored`] lists.
pub(crate) fn value_of(parameter: &Parameter, arrays: Vec<Array>) -> Result<Value> {
    let mut arrays = arrays.into_iter();
    let missing = || Error::Unsupported(format!("parameter `{}` is not whole", parameter.path));
    let first = arrays.next().ok_or_else(missing)?;
    match &parameter.ty {
        Type::QArray(q) => {
            let scale = arrays.next().ok_or_else(missing)?;
            Ok(Value::QArray(QArray::new(first, scale, arrays.next(), q.how.qtype)?))
        }
        Type::Array(_) | Type::Tuple(_) | Type::Token | Type::Opaque(_) => Ok(Value::Array(first)),
    }
}

/// What a manifest of any version says.
struct Described {
    version: u32,
    qwix_compat: bool,
    parameters: Vec<ParameterEntry>,
    /// Files whose bytes are hashed whole.
    files: BTreeMap<String, FileEntry>,
    /// The files that hold the parameters.
    shards: BTreeMap<String, ShardHashes>,
}

/// How the bytes of a file of parameters are checked.
enum ShardHashes {
    /// The whole file.
    Whole(FileEntry),
    /// The header, and then each tensor by itself.
    Parts { bytes: u64, header: String },
}

impl ShardHashes {
    fn bytes(&self) -> u64 {
        match self {
            ShardHashes::Whole(entry) => entry.bytes,
            ShardHashes::Parts { bytes, .. } => *bytes,
        }
    }
}

/// A package that was opened: the model is read, its parameters are mapped when asked for. What opening takes does not
/// depend on their size.
pub struct Package {
    dir: PathBuf,
    qwix_compat: bool,
    model: Option<Model>,
    parameters: Vec<Parameter>,
    rules: String,
    shards: Vec<TensorFile>,
    /// Key → the shard that holds it.
    tensors: BTreeMap<String, usize>,
}

impl Package {
    /// Opens a package and checks that its parts fit each other. The parameters are checked by type; their bytes are
    /// checked by [`Package::verify`].
    ///
    /// # Errors
    /// [`Error::Package`] when it is not whole, damaged, or of a version not known here.
    pub fn open(dir: impl AsRef<FilePath>) -> Result<Self> {
        let dir = dir.as_ref();
        let bad = |reason: String| Error::package(dir, reason);
        let (described, _) = read_manifest(dir)?;
        let sizes = described.files.iter().map(|(name, entry)| (name, entry.bytes));
        for (name, bytes) in sizes.chain(described.shards.iter().map(|(name, shard)| (name, shard.bytes()))) {
            check_size(dir, name, bytes)?;
        }
        for (name, entry) in &described.files {
            check_hash(dir, name, entry)?;
        }
        no_other_files(dir, &described)?;
        let rules = read_text(&dir.join(RULES))?;
        let parameters = described.parameters.iter().enumerate().map(|(number, entry)| {
            entry.parameter().map_err(|e| bad(format!("parameter {number} `{}`: {e}", entry.path)))
        });
        let mut parameters = parameters.collect::<Result<Vec<_>>>()?;
        let mut model = None;
        if described.files.contains_key(MODEL) {
            let text = read_text(&dir.join(MODEL))?;
            let graph = Graph::from_text(&text).map_err(|e| bad(format!("`{MODEL}`: {e}")))?;
            if let Some((found, expected)) = differing(&graph.parameters, &parameters) {
                return Err(bad(format!(
                    "`{MODEL}` has {found} where the manifest says {expected}; quantize again"
                )));
            }
            parameters.clone_from(&graph.parameters);
            model = Some(Model::from(graph));
        }
        let mut missing = all_stored(parameters.iter().filter(|p| p.role == Role::Variable))?;
        let (mut shards, mut tensors) = (Vec::new(), BTreeMap::new());
        for name in described.shards.keys() {
            let shard = TensorFile::open(dir.join(name))?;
            for (key, found) in shard.iter() {
                let wrong = |reason: String| Error::checkpoint(shard.name(), Some(key), reason);
                match missing.remove(key) {
                    Some(expected) if expected == *found => {}
                    Some(expected) => return Err(wrong(format!("expected {expected}, found {found}"))),
                    None if tensors.contains_key(key) => {
                        return Err(wrong("is in another shard as well".into()));
                    }
                    None => return Err(wrong("is no parameter of the model".into())),
                }
                tensors.insert(key.to_owned(), shards.len());
            }
            shards.push(shard);
        }
        if let Some(key) = missing.keys().next() {
            let name = shards.first().map_or(dir, |shard| shard.name());
            return Err(Error::checkpoint(name, Some(key), "is missing"));
        }
        let qwix_compat = described.qwix_compat;
        Ok(Package { dir: dir.to_owned(), qwix_compat, model, parameters, rules, shards, tensors })
    }

    /// Checks every byte of the package against the hashes in the manifest, on all cores. [`verify_package`] says all
    /// that is wrong rather than the first, and of files with hidden names too, which are the system's.
    ///
    /// # Errors
    /// When something differs.
    pub fn verify(&self) -> Result<()> {
        let mut faults = verify_package(&self.dir, &Verifying::default())?.into_iter();
        match faults.find(|fault| !fault.file.starts_with('.')) {
            None => Ok(()),
            Some(fault) => Err(Error::package(&self.dir, format!("{fault}; quantize again"))),
        }
    }

    /// The quantized model.
    ///
    /// # Errors
    /// When the package has none, as it was quantized without a graph.
    pub fn model(&self) -> Result<&Model> {
        self.model.as_ref().ok_or_else(|| {
            Error::package(
                &self.dir,
                "has parameters and no model: it was quantized without a graph, so it cannot run; `qwix dump` \
                 writes its parameters, and `qwix quantize MODEL …` makes a package that runs",
            )
        })
    }

    /// The parameters of the model, inputs included; of a package without a model, its variables.
    pub fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    /// The rules that it was quantized with, as JSON.
    pub fn rules(&self) -> &str {
        &self.rules
    }

    /// Whether only what Qwix quantizes was quantized.
    pub fn qwix_compat(&self) -> bool {
        self.qwix_compat
    }

    /// One parameter, its arrays over the mapped file (see [`TensorFile::map`]).
    ///
    /// # Errors
    /// When it cannot be read, or its parts do not fit each other.
    pub fn read(&self, parameter: &Parameter) -> Result<Value> {
        let missing = || Error::package(&self.dir, format!("parameter `{}` is not whole", parameter.path));
        let mut parts = Vec::new();
        for (key, ty) in stored(parameter)? {
            let shard = self.tensors.get(&key).and_then(|&shard| self.shards.get(shard));
            parts.push(shard.ok_or_else(missing)?.map(&key)?.reinterpret(ty.dtype, &ty.shape)?);
        }
        value_of(parameter, parts)
    }

    /// Prepares the model for running; its parameters are handed on one by one, and none is kept here.
    ///
    /// # Errors
    /// When a parameter cannot be read, or the backend cannot run the model or has no room for it.
    pub fn compile(&self, backend: &dyn Backend) -> Result<Box<dyn Executable>> {
        let mut loader = backend.load(self.model()?)?;
        for parameter in self.parameters.iter().filter(|p| p.role == Role::Variable) {
            loader.put(&parameter.path, self.read(parameter)?)?;
        }
        Ok(loader.finish()?)
    }

    /// Every parameter, as [`Package::read`] has it: what this takes does not depend on their size.
    ///
    /// # Errors
    /// When one cannot be read.
    pub fn read_all(&self) -> Result<Params> {
        let variables = self.parameters.iter().filter(|p| p.role == Role::Variable);
        variables.map(|p| Ok((p.path.clone(), self.read(p)?))).collect()
    }
}

/// The first parameter that differs, as found and as expected, in words.
fn differing(found: &[Parameter], expected: &[Parameter]) -> Option<(String, String)> {
    let say = |p: Option<&Parameter>| p.map_or("nothing".to_owned(), |p| format!("`{}` {}", p.path, p.ty));
    let same =
        |a: &Parameter, b: &Parameter| (&a.path, a.role, &a.ty, &a.slot) == (&b.path, b.role, &b.ty, &b.slot);
    let count = found.len().max(expected.len());
    let at = (0..count).find(|&i| !found.get(i).zip(expected.get(i)).is_some_and(|(a, b)| same(a, b)))?;
    Some((say(found.get(at)), say(expected.get(at))))
}

/// The names that the files of a package have.
fn known_files(described: &Described) -> BTreeSet<&str> {
    let listed = described.files.keys().chain(described.shards.keys()).map(String::as_str);
    let own: &[&str] =
        if described.version == OLD_VERSION { &[MANIFEST] } else { &[MANIFEST, MANIFEST_HASH] };
    listed.chain(own.iter().copied()).collect()
}

/// A file that is not read would be believed to count.
fn no_other_files(dir: &FilePath, described: &Described) -> Result<()> {
    let io = |e| Error::io("read", dir, e);
    let known = known_files(described);
    for entry in std::fs::read_dir(dir).map_err(io)? {
        let name = entry.map_err(io)?.file_name();
        let hidden = name.as_encoded_bytes().starts_with(b".");
        if !hidden && !name.to_str().is_some_and(|name| known.contains(name)) {
            let name = name.to_string_lossy();
            return Err(Error::package(
                dir,
                format!("holds `{name}`, which is no part of a package; move it away"),
            ));
        }
    }
    Ok(())
}

/// Whether a directory holds a package and nothing else, so that it may be replaced.
pub(crate) fn is_package(dir: &FilePath) -> Result<bool> {
    if !dir.join(MANIFEST).is_file() {
        return Ok(false);
    }
    match read_manifest(dir) {
        Ok((described, _)) => no_other_files(dir, &described).map(|()| true),
        // It says that it is one, but not what belongs to it.
        Err(_) => {
            let io = |e| Error::io("read", dir, e);
            for entry in std::fs::read_dir(dir).map_err(io)? {
                let name = entry.map_err(io)?.file_name().to_string_lossy().into_owned();
                let shard = name.starts_with("params") && name.ends_with(".safetensors");
                if !shard && ![MANIFEST, MANIFEST_HASH, MODEL, RULES, INDEX].contains(&name.as_str()) {
                    return Err(Error::package(
                        dir,
                        format!("holds `{name}`, which is no part of a package; move it away"),
                    ));
                }
            }
            Ok(true)
        }
    }
}

/// Reads a manifest and checks that it is whole; with the hashes of the tensors, which version 1 does not have.
fn read_manifest(dir: &FilePath) -> Result<(Described, BTreeMap<String, String>)> {
    let bad = |reason: String| Error::package(dir, reason);
    if !dir.is_dir() {
        return Err(bad("is not a directory; expected one that `qwix quantize` wrote".into()));
    }
    let file = dir.join(MANIFEST);
    if !file.exists() {
        return Err(bad(format!("has no `{MANIFEST}`; expected a directory that `qwix quantize` wrote")));
    }
    let text = read_text(&file)?;
    let heading: Heading = serde_json::from_str(&text).map_err(|e| bad(format!("`{MANIFEST}`: {e}")))?;
    if heading.format != FORMAT {
        return Err(bad(format!("`{MANIFEST}`: format is `{}`, expected `{FORMAT}`", heading.format)));
    }
    match heading.version {
        OLD_VERSION => {
            let manifest: OldManifest =
                serde_json::from_str(&text).map_err(|e| bad(format!("`{MANIFEST}`: {e}")))?;
            let mut files = manifest.files;
            let allowed = [MODEL, OLD_PARAMS, RULES];
            check_names(dir, files.keys(), &allowed, &allowed)?;
            let params = files.remove(OLD_PARAMS);
            let params = params.map(|entry| (OLD_PARAMS.to_owned(), ShardHashes::Whole(entry)));
            let described = Described {
                version: OLD_VERSION,
                qwix_compat: manifest.qwix_compat,
                parameters: manifest.parameters,
                files,
                shards: params.into_iter().collect(),
            };
            Ok((described, BTreeMap::new()))
        }
        VERSION => {
            let manifest: Manifest =
                serde_json::from_str(&text).map_err(|e| bad(format!("`{MANIFEST}`: {e}")))?;
            let said = read_text(&dir.join(MANIFEST_HASH))?;
            if said != hash_line(&text) {
                return Err(bad(format!(
                    "`{MANIFEST}` is not as it was written: its sha256 is {}, `{MANIFEST_HASH}` says otherwise; \
                     quantize again",
                    sha256(text.as_bytes())
                )));
            }
            check_names(dir, manifest.files.keys(), &[MODEL, RULES, INDEX], &[RULES, INDEX])?;
            let plain = |name: &String| {
                name.starts_with("params-") && name.ends_with(".safetensors") && !name.contains(['/', '\\'])
            };
            if let Some(name) = manifest.shards.keys().find(|name| !plain(name)) {
                return Err(bad(format!("the manifest lists `{name}`, which is no name of a shard")));
            }
            let shards = manifest.shards.into_iter().map(|(name, entry)| {
                (name, ShardHashes::Parts { bytes: entry.bytes, header: entry.header_sha256 })
            });
            let described = Described {
                version: VERSION,
                qwix_compat: manifest.qwix_compat,
                parameters: manifest.parameters,
                files: manifest.files,
                shards: shards.collect(),
            };
            Ok((described, manifest.tensors))
        }
        version => Err(bad(format!(
            "`{MANIFEST}`: version {version} is not known to this tool, which reads versions {OLD_VERSION} and \
             {VERSION}; quantize again"
        ))),
    }
}

fn check_names<'a>(
    dir: &FilePath,
    listed: impl Iterator<Item = &'a String> + Clone,
    allowed: &[&str],
    wanted: &[&str],
) -> Result<()> {
    if let Some(name) = listed.clone().find(|name| !allowed.contains(&name.as_str())) {
        let reason = format!("the manifest lists `{name}`, which is no part of a package");
        return Err(Error::package(dir, reason));
    }
    match wanted.iter().find(|&&name| !listed.clone().any(|n| n == name)) {
        Some(name) => Err(Error::package(dir, format!("the manifest does not list `{name}`"))),
        None => Ok(()),
    }
}

fn check_size(dir: &FilePath, name: &str, bytes: u64) -> Result<()> {
    let file = dir.join(name);
    let size = std::fs::metadata(&file).map_err(|e| Error::io("read", &file, e))?.len();
    if size == bytes {
        return Ok(());
    }
    Err(Error::package(dir, format!("`{name}` is {size} bytes long, the manifest says {bytes}")))
}

fn check_hash(dir: &FilePath, name: &str, entry: &FileEntry) -> Result<()> {
    let (bytes, sha256) = hash_file(&dir.join(name))?;
    if (bytes, &sha256) == (entry.bytes, &entry.sha256) {
        return Ok(());
    }
    Err(Error::package(
        dir,
        format!("`{name}` is not as it was written (its sha256 differs); quantize again"),
    ))
}

/// The paths of the variables among parameters.
pub(crate) fn variables(parameters: &[Parameter]) -> BTreeMap<Path, Parameter> {
    let variables = parameters.iter().filter(|p| p.role == Role::Variable);
    variables.map(|p| (p.path.clone(), p.clone())).collect()
}
