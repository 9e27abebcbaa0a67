//! A quantized model on disk: a directory with the model, its parameters, the rules and a manifest.
//!
//! | file | what |
//! | --- | --- |
//! | `manifest.json` | format and version, the signature with how each parameter was made, sizes and hashes of the other files |
//! | `model.hlo` | the graph as text, quantized types and ops included |
//! | `params.safetensors` | `<path>`, or `<path>/qvalue`, `/scale`, `/zero_point`; dtypes narrower than a byte are packed into `U8` of rank 1 |
//! | `rules.json` | the rules, as they were understood |
//!
//! The same model, parameters and rules give the same bytes.

#[cfg(test)]
mod format_doc;
// A file that large cannot be mapped on a machine of 32 bits, nor be cheaply made where files have no holes.
#[cfg(all(test, unix, target_pointer_width = "64"))]
mod large;
mod manifest;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Read};
use std::path::{Path as FilePath, PathBuf};

use qwix_array::{Array, DType};
use qwix_eval::{Backend, Executable, Params, Value};
use qwix_graph::text::TextOptions;
use qwix_graph::{ArrayType, Graph, Parameter, Path, Role, Type};
use qwix_quant::QArray;
use sha2::{Digest, Sha256};

use crate::files::{NewDir, NewFile, read_text};
use crate::tensors::{TensorFile, TensorWriter};
use crate::{Error, Model, Result};
use manifest::{FORMAT, FileEntry, Heading, Manifest, ParameterEntry, VERSION};

const MANIFEST: &str = "manifest.json";
const MODEL: &str = "model.hlo";
const PARAMS: &str = "params.safetensors";
const RULES: &str = "rules.json";

/// The tensors that a value is stored as: key and array type each.
pub(crate) fn stored(parameter: &Parameter) -> Result<Vec<(String, ArrayType)>> {
    let path = &parameter.path;
    match &parameter.ty {
        Type::Array(array) => Ok(vec![(path.to_string(), array.clone())]),
        Type::QArray(q) => {
            let scale_shape = q.scale_shape()?;
            let storage = q.how.qtype.storage;
            let mut parts = vec![
                (format!("{path}/qvalue"), ArrayType::new(storage, q.array.shape.clone())),
                (format!("{path}/scale"), ArrayType::new(q.array.dtype, scale_shape.clone())),
            ];
            if q.has_zero_point() {
                parts.push((format!("{path}/zero_point"), ArrayType::new(storage, scale_shape)));
            }
            Ok(parts)
        }
        Type::Tuple(_) | Type::Token | Type::Opaque(_) => Err(Error::Unsupported(format!(
            "parameter `{path}` is {}; only arrays can be stored",
            parameter.ty
        ))),
    }
}

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

/// The type in the file of an array: itself, or packed bytes.
fn in_file(ty: &ArrayType) -> Result<ArrayType> {
    if !ty.dtype.is_packed() {
        return Ok(ty.clone());
    }
    let bytes = qwix_array::element_count(&ty.shape).and_then(|count| ty.dtype.byte_len(count));
    let bytes =
        bytes.ok_or_else(|| qwix_array::ArrayError::TooLarge { dtype: ty.dtype, shape: ty.shape.clone() })?;
    Ok(ArrayType::new(DType::U8, [bytes]))
}

/// The arrays of a value, in the order of [`stored`].
fn parts(value: &Value) -> Vec<&Array> {
    match value {
        Value::Array(array) => vec![array],
        Value::QArray(q) => [q.qvalue(), q.scale()].into_iter().chain(q.zero_point()).collect(),
        Value::Tuple(_) => vec![],
    }
}

/// All tensors of a graph's variables by key.
fn all_stored(graph: &Graph) -> Result<BTreeMap<String, ArrayType>> {
    let mut types = BTreeMap::new();
    for (_, parameter) in graph.variables() {
        for (key, ty) in stored(parameter)? {
            if types.insert(key.clone(), in_file(&ty)?).is_some() {
                return Err(Error::Unsupported(format!(
                    "two parameters would be stored as `{key}`; rename one"
                )));
            }
        }
    }
    Ok(types)
}

/// A package in the making. Nothing is at the target before [`PackageWriter::finish`]; dropped before, it leaves
/// nothing behind.
pub struct PackageWriter {
    dir: NewDir,
    replace: bool,
    parameters: BTreeMap<Path, Parameter>,
    model: String,
    manifest: Manifest,
    params_name: PathBuf,
    params: TensorWriter<BufWriter<File>>,
}

impl PackageWriter {
    /// Begins a package of a quantized model. `replace` allows the package that is at the target to be replaced.
    ///
    /// # Errors
    /// When something is in the way at the target, or it cannot be written.
    pub fn begin(target: impl AsRef<FilePath>, model: &Model, replace: bool) -> Result<Self> {
        let target = target.as_ref();
        // Only what we wrote may be replaced: a wrong name must not cost somebody a folder.
        let replace = replace && target.join(MANIFEST).is_file();
        if replace {
            no_other_files(target)?;
        }
        let types = all_stored(model)?;
        let parameters = model
            .parameters
            .iter()
            .map(|p| {
                ParameterEntry::of(p).ok_or_else(|| {
                    Error::Unsupported(format!(
                        "parameter `{}` is {}; only arrays can be stored",
                        p.path, p.ty
                    ))
                })
            })
            .collect::<Result<_>>()?;
        let manifest = Manifest {
            format: FORMAT.to_owned(),
            version: VERSION,
            tool: format!("qwix {}", env!("CARGO_PKG_VERSION")),
            qwix_compat: false,
            files: BTreeMap::new(),
            parameters,
        };
        let dir = NewDir::begin(target, replace)?;
        let file = dir.create(PARAMS)?;
        let params_name = file.name().to_owned();
        let params = TensorWriter::new(file.out, types).map_err(|e| Error::io("write", &params_name, e))?;
        Ok(PackageWriter {
            dir,
            replace,
            parameters: model.variables().map(|(_, p)| (p.path.clone(), p.clone())).collect(),
            model: model.to_text(TextOptions::default()),
            manifest,
            params_name,
            params,
        })
    }

    /// Writes one parameter.
    ///
    /// # Errors
    /// When the model has none of that path or it has another type, or writing fails.
    pub fn write(&mut self, path: &Path, value: &Value) -> Result<()> {
        let Some(parameter) = self.parameters.remove(path) else {
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
        let keys = stored(&parameter)?;
        for ((key, ty), array) in keys.iter().zip(parts(value)) {
            if array.dtype() != ty.dtype || array.shape() != ty.shape {
                return Err(wrong());
            }
            let file_type = in_file(ty)?;
            let array = array.reinterpret(file_type.dtype, &file_type.shape)?;
            self.params.write(key, &array).map_err(|e| Error::io("write", &self.params_name, e))?;
        }
        Ok(())
    }

    /// Writes the rest and puts the package at its target. `rules` is the text of `rules.json`.
    ///
    /// # Errors
    /// When a parameter was not written, or writing fails.
    pub fn finish(self, rules: &str, qwix_compat: bool) -> Result<()> {
        if let Some(parameter) = self.parameters.values().next() {
            return Err(qwix_eval::EvalError::MissingParam {
                path: parameter.path.clone(),
                expected: parameter.ty.to_string(),
            }
            .into());
        }
        let out = self.params.finish().map_err(|e| Error::io("write", &self.params_name, e))?;
        NewFile::of(self.params_name, out).finish()?;
        self.dir.write(MODEL, self.model.as_bytes())?;
        self.dir.write(RULES, rules.as_bytes())?;
        let mut manifest = self.manifest;
        manifest.qwix_compat = qwix_compat;
        for name in [MODEL, PARAMS, RULES] {
            manifest.files.insert(name.to_owned(), hash(&self.dir.file(name))?);
        }
        let mut text =
            serde_json::to_string_pretty(&manifest).map_err(|e| Error::Unsupported(e.to_string()))?;
        text.push('\n');
        self.dir.write(MANIFEST, text.as_bytes())?;
        self.dir.commit(self.replace)
    }
}

/// A package that was opened: the model is read, its parameters are mapped when asked for. What opening takes does not
/// depend on their size.
pub struct Package {
    dir: PathBuf,
    manifest: Manifest,
    model: Model,
    rules: String,
    params: TensorFile,
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
        let manifest = read_manifest(dir)?;
        for name in [MODEL, PARAMS, RULES] {
            let entry = manifest
                .files
                .get(name)
                .ok_or_else(|| bad(format!("the manifest does not list `{name}`")))?;
            let file = dir.join(name);
            let size = std::fs::metadata(&file).map_err(|e| Error::io("read", &file, e))?.len();
            if size != entry.bytes {
                return Err(bad(format!("`{name}` is {size} bytes long, the manifest says {}", entry.bytes)));
            }
            // The parameters may be large; these two are always read whole.
            if name != PARAMS {
                check_hash(dir, name, entry)?;
            }
        }
        if let Some(name) = manifest.files.keys().find(|n| ![MODEL, PARAMS, RULES].contains(&n.as_str())) {
            return Err(bad(format!("the manifest lists `{name}`, which is no part of a package")));
        }
        no_other_files(dir)?;
        let rules = read_text(&dir.join(RULES))?;
        let text = read_text(&dir.join(MODEL))?;
        let graph = Graph::from_text(&text).map_err(|e| bad(format!("`{MODEL}`: {e}")))?;
        let parameters = manifest.parameters.iter().enumerate().map(|(number, entry)| {
            entry.parameter().map_err(|e| bad(format!("parameter {number} `{}`: {e}", entry.path)))
        });
        if let Some((found, expected)) =
            differing(&graph.parameters, &parameters.collect::<Result<Vec<_>>>()?)
        {
            return Err(bad(format!(
                "`{MODEL}` has {found} where the manifest says {expected}; quantize again"
            )));
        }
        let params = TensorFile::open(dir.join(PARAMS))?;
        let expected = all_stored(&graph)?;
        for (key, ty) in &expected {
            match params.get(key) {
                Some(found) if found == ty => {}
                Some(found) => {
                    return Err(Error::checkpoint(
                        params.name(),
                        Some(key),
                        format!("expected {ty}, found {found}"),
                    ));
                }
                None => return Err(Error::checkpoint(params.name(), Some(key), "is missing")),
            }
        }
        if let Some((key, _)) = params.iter().find(|(key, _)| !expected.contains_key(*key)) {
            return Err(Error::checkpoint(params.name(), Some(key), "is no parameter of the model"));
        }
        Ok(Package { dir: dir.to_owned(), manifest, model: Model::from(graph), rules, params })
    }

    /// Checks the parameters' bytes against the hash in the manifest.
    ///
    /// # Errors
    /// When they differ.
    pub fn verify(&self) -> Result<()> {
        match self.manifest.files.get(PARAMS) {
            Some(entry) => check_hash(&self.dir, PARAMS, entry),
            None => Err(Error::package(&self.dir, format!("the manifest does not list `{PARAMS}`"))),
        }
    }

    /// The quantized model.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// The rules that it was quantized with, as JSON.
    pub fn rules(&self) -> &str {
        &self.rules
    }

    /// Whether only what Qwix quantizes was quantized.
    pub fn qwix_compat(&self) -> bool {
        self.manifest.qwix_compat
    }

    /// One parameter, its arrays over the mapped file (see [`TensorFile::map`]).
    ///
    /// # Errors
    /// When it cannot be read, or its parts do not fit each other.
    pub fn read(&self, parameter: &Parameter) -> Result<Value> {
        let mut parts = Vec::new();
        for (key, ty) in stored(parameter)? {
            parts.push(self.params.map(&key)?.reinterpret(ty.dtype, &ty.shape)?);
        }
        value_of(parameter, parts)
    }

    /// Prepares the model for running; its parameters are handed on one by one, and none is kept here.
    ///
    /// # Errors
    /// When a parameter cannot be read, or the backend cannot run the model or has no room for it.
    pub fn compile(&self, backend: &dyn Backend) -> Result<Box<dyn Executable>> {
        let mut loader = backend.load(&self.model)?;
        for (_, parameter) in self.model.variables() {
            loader.put(&parameter.path, self.read(parameter)?)?;
        }
        Ok(loader.finish()?)
    }

    /// Every parameter, as [`Package::read`] has it: what this takes does not depend on their size.
    ///
    /// # Errors
    /// When one cannot be read.
    pub fn read_all(&self) -> Result<Params> {
        self.model
            .parameters
            .iter()
            .filter(|p| p.role == Role::Variable)
            .map(|p| Ok((p.path.clone(), self.read(p)?)))
            .collect()
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

/// A file that is not read would be believed to count.
fn no_other_files(dir: &FilePath) -> Result<()> {
    let io = |e| Error::io("read", dir, e);
    for entry in std::fs::read_dir(dir).map_err(io)? {
        let name = entry.map_err(io)?.file_name();
        let hidden = name.as_encoded_bytes().starts_with(b".");
        if !hidden && [MANIFEST, MODEL, PARAMS, RULES].iter().all(|known| *known != name) {
            let name = name.to_string_lossy();
            return Err(Error::package(
                dir,
                format!("holds `{name}`, which is no part of a package; move it away"),
            ));
        }
    }
    Ok(())
}

fn read_manifest(dir: &FilePath) -> Result<Manifest> {
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
    if heading.version != VERSION {
        return Err(bad(format!(
            "`{MANIFEST}`: version {} is not known to this tool, which reads version {VERSION}; quantize again",
            heading.version
        )));
    }
    serde_json::from_str(&text).map_err(|e| bad(format!("`{MANIFEST}`: {e}")))
}

fn hash(file: &FilePath) -> Result<FileEntry> {
    let io = |e| Error::io("read", file, e);
    let mut input = File::open(file).map_err(io)?;
    let mut digest = Sha256::new();
    let mut bytes = 0u64;
    let mut buffer = vec![0; 1 << 16];
    loop {
        let n = input.read(&mut buffer).map_err(io)?;
        if n == 0 {
            break;
        }
        digest.update(&buffer[..n]);
        bytes += n as u64;
    }
    let sha256 = digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(FileEntry { bytes, sha256 })
}

fn check_hash(dir: &FilePath, name: &str, entry: &FileEntry) -> Result<()> {
    if hash(&dir.join(name))? == *entry {
        return Ok(());
    }
    Err(Error::package(
        dir,
        format!("`{name}` is not as it was written (its sha256 differs); quantize again"),
    ))
}
