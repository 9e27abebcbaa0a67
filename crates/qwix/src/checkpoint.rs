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
    /// Opens a checkpoint: a `.safetensors` file, the `.json` index of several, or a folder that holds one of these.
    ///
    /// # Errors
    /// When a file cannot be read, a header is wrong, the index and its shards disagree, or two keys are one path.
    pub fn open(name: impl AsRef<FilePath>) -> Result<Self> {
        let found;
        let name = match name.as_ref() {
            folder if folder.is_dir() => {
                found = in_folder(folder)?;
                found.as_path()
            }
            name => name,
        };
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

    /// Every parameter path with its type, in order, without reading any.
    pub fn types(&self) -> impl Iterator<Item = (&Path, &ArrayType)> {
        self.tensors.iter().filter_map(|(path, (file, key))| Some((path, self.files.get(*file)?.get(key)?)))
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

    /// Reads part of a parameter's bytes, from so many bytes after its first.
    ///
    /// # Errors
    /// When the checkpoint does not hold it or it has fewer bytes, or its file cannot be read.
    pub fn read_part(&self, path: &Path, from: u64, bytes: &mut [u8]) -> Result<()> {
        let (file, key) = self.find(path)?;
        file.read_part(key, from, bytes)
    }

    /// The files that it is in.
    pub(crate) fn files(&self) -> &[TensorFile] {
        &self.files
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

/// The checkpoint in a folder: its only index, or its only safetensors file.
fn in_folder(folder: &FilePath) -> Result<PathBuf> {
    let io = |e| Error::io("read", folder, e);
    let (mut indices, mut files) = (Vec::new(), Vec::new());
    for entry in std::fs::read_dir(folder).map_err(io)? {
        let file = entry.map_err(io)?.path();
        let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.ends_with(".safetensors.index.json") {
            indices.push(file);
        } else if name.ends_with(".safetensors") {
            files.push(file);
        }
    }
    let several = |what: &str| {
        let reason = format!("holds several {what}; give one of them by its name");
        Err(Error::checkpoint(folder, None, reason))
    };
    match (indices.as_slice(), files.as_slice()) {
        ([index], _) => Ok(index.clone()),
        ([_, ..], _) => several("indices of safetensors files"),
        ([], [file]) => Ok(file.clone()),
        ([], [_, ..]) => {
            several("safetensors files and no `.safetensors.index.json` that says what belongs together")
        }
        ([], []) => Err(Error::checkpoint(folder, None, "holds no safetensors file and no index of any")),
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
