//! Checkpoints: the parameters of a model in safetensors files, read or mapped tensor by tensor.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path as FilePath, PathBuf};

use qwix_array::Array;
use qwix_eval::{Params, Value};
use qwix_graph::{ArrayType, Path};
use serde::Deserialize;

use crate::files::{MAX_TEXT, read_file};
use crate::tensors::TensorFile;
use crate::{Error, Result};

/// The tensors of one safetensors file, or of the shards that an `index.json` lists, by parameter path.
///
/// Opening reads headers only. Keys are paths joined with `/`, or with `.` when they hold no `/`.
#[derive(Debug)]
pub struct Checkpoint {
    name: PathBuf,
    files: Vec<TensorFile>,
    /// Path → file and key in it.
    tensors: BTreeMap<Path, (usize, String)>,
}

/// What `model.safetensors.index.json` says.
#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl Checkpoint {
    /// Opens a checkpoint: a `.safetensors` file, or the `.json` index of several.
    ///
    /// # Errors
    /// When a file cannot be read, a header is wrong, the index and its shards disagree, or two keys are one path.
    pub fn open(name: impl AsRef<FilePath>) -> Result<Self> {
        let name = name.as_ref();
        let is_index = name.extension().is_some_and(|e| e.eq_ignore_ascii_case("json"));
        let (files, keys) = if is_index { open_shards(name)? } else { open_single(name)? };
        let mut tensors = BTreeMap::new();
        for (file, key) in keys {
            let path = path_of(&key);
            if path.is_root() {
                return Err(Error::checkpoint(name, Some(&key), "the key is no path"));
            }
            if let Some((_, other)) = tensors.get(&path) {
                return Err(Error::checkpoint(
                    name,
                    Some(&key),
                    format!("and tensor `{other}` are both the parameter `{path}`; rename one"),
                ));
            }
            tensors.insert(path, (file, key));
        }
        Ok(Checkpoint { name: name.to_owned(), files, tensors })
    }

    /// The file's name, as it was given.
    pub fn name(&self) -> &FilePath {
        &self.name
    }

    /// Every parameter path, in order.
    pub fn paths(&self) -> BTreeSet<Path> {
        self.tensors.keys().cloned().collect()
    }

    /// Whether it holds a parameter.
    pub fn contains(&self, path: &Path) -> bool {
        self.tensors.contains_key(path)
    }

    /// A parameter's type, without reading it.
    pub fn type_of(&self, path: &Path) -> Option<&ArrayType> {
        let (file, key) = self.tensors.get(path)?;
        self.files.get(*file)?.get(key)
    }

    /// Which file a parameter is in, by number, and where in it.
    pub fn place(&self, path: &Path) -> Option<(usize, u64)> {
        let (file, key) = self.tensors.get(path)?;
        Some((*file, self.files.get(*file)?.offset(key)?))
    }

    /// Reads one parameter into memory.
    ///
    /// # Errors
    /// When the checkpoint does not hold it, or its file cannot be read.
    pub fn read(&self, path: &Path) -> Result<Array> {
        let (file, key) = self.find(path)?;
        file.read(key)
    }

    /// One parameter over its mapped file, as [`TensorFile::map`] has it.
    ///
    /// # Errors
    /// When the checkpoint does not hold it, or its file cannot be read or has changed.
    pub fn map(&self, path: &Path) -> Result<Array> {
        let (file, key) = self.find(path)?;
        file.map(key)
    }

    /// The file that a parameter is in, and its key there.
    fn find(&self, path: &Path) -> Result<(&TensorFile, &str)> {
        let found =
            self.tensors.get(path).and_then(|(file, key)| Some((self.files.get(*file)?, key.as_str())));
        found.ok_or_else(|| Error::checkpoint(&self.name, Some(path.as_str()), "is not in the checkpoint"))
    }

    /// Reads everything into memory. For models that fit it twice; [`Checkpoint::read`] streams, [`Checkpoint::map`]
    /// borrows.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn read_all(&self) -> Result<Params> {
        self.tensors.keys().map(|path| Ok((path.clone(), Value::Array(self.read(path)?)))).collect()
    }
}

type Keys = Vec<(usize, String)>;

fn open_single(name: &FilePath) -> Result<(Vec<TensorFile>, Keys)> {
    let file = TensorFile::open(name)?;
    let keys = file.iter().map(|(key, _)| (0, key.to_owned())).collect();
    Ok((vec![file], keys))
}

fn open_shards(name: &FilePath) -> Result<(Vec<TensorFile>, Keys)> {
    let text = read_file(name, MAX_TEXT)?;
    let index: Index = serde_json::from_slice(&text).map_err(|e| {
        Error::checkpoint(name, None, format!("is not an index (an object with a `weight_map`): {e}"))
    })?;
    let folder = name.parent().unwrap_or(FilePath::new(""));
    let shards: BTreeSet<&String> = index.weight_map.values().collect();
    let mut files = Vec::new();
    let mut keys = Vec::new();
    for (number, shard) in shards.into_iter().enumerate() {
        let mut parts = FilePath::new(shard).components();
        let plain = matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None));
        if !plain {
            return Err(Error::checkpoint(
                name,
                None,
                format!("shard `{shard}` is not a plain file name beside the index"),
            ));
        }
        let file = TensorFile::open(folder.join(shard))?;
        let listed = |key: &str| index.weight_map.get(key) == Some(shard);
        if let Some((key, _)) = file.iter().find(|(key, _)| !listed(key)) {
            return Err(Error::checkpoint(
                file.name(),
                Some(key),
                format!("is not listed for this file in `{}`", name.display()),
            ));
        }
        for (key, _) in index.weight_map.iter().filter(|(_, s)| *s == shard) {
            if file.get(key).is_none() {
                return Err(Error::checkpoint(
                    file.name(),
                    Some(key),
                    format!("is missing, though `{}` says it is here", name.display()),
                ));
            }
            keys.push((number, key.clone()));
        }
        files.push(file);
    }
    Ok((files, keys))
}

/// The parameter path of a key: split at `/`, or at `.` when there is no `/`.
fn path_of(key: &str) -> Path {
    if key.contains('/') { Path::new(key) } else { Path::new(&key.replace('.', "/")) }
}
