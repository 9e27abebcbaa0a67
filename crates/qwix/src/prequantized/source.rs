//! A checkpoint with what its config says of its quantization.

use std::path::{Path as FilePath, PathBuf};

use qwix_array::{Array, DType};
use qwix_graph::{ArrayType, Path};
use qwix_quant::check_finite;
use serde_json::{Map, Value as Json};

use crate::files::read_text;
use crate::{Checkpoint, Error, Result};

/// Where a config may say how a checkpoint is quantized: a file, and the field in it (none: the whole file).
const CONFIGS: [(&str, Option<&str>); 5] = [
    ("config.json", Some("quantization_config")),
    ("config.json", Some("compression_config")),
    ("hf_quant_config.json", Some("quantization")),
    ("quantize_config.json", None),
    ("quant_config.json", None),
];

/// The tensors of a checkpoint, and the config of its quantization when there is one.
pub(super) struct Source {
    pub checkpoint: Checkpoint,
    pub config: Option<Config>,
}

impl Source {
    /// Opens a folder as `save_pretrained` writes it, a `.safetensors` file, or an `index.json`; the config is looked
    /// for in the same folder.
    pub fn open(name: &FilePath) -> Result<Self> {
        let (folder, file) = if name.is_dir() {
            (name.to_owned(), weights_in(name)?)
        } else {
            (name.parent().unwrap_or(FilePath::new("")).to_owned(), name.to_owned())
        };
        Ok(Source { checkpoint: Checkpoint::open(file)?, config: config_in(&folder)? })
    }

    /// What `quant_method` says.
    pub fn method(&self) -> Option<&str> {
        self.config.as_ref()?.fields.get("quant_method")?.as_str()
    }

    /// An error about one tensor.
    pub fn bad(&self, path: &Path, reason: impl Into<String>) -> Error {
        Error::checkpoint(self.checkpoint.name(), Some(path.as_str()), reason)
    }

    /// The type of a tensor that must be there.
    pub fn ty(&self, path: &Path) -> Result<&ArrayType> {
        self.checkpoint.type_of(path).ok_or_else(|| self.bad(path, "is missing"))
    }

    /// The type of a tensor that must have one of these dtypes and this rank.
    pub fn ranked(&self, path: &Path, dtypes: &[DType], rank: usize) -> Result<&ArrayType> {
        let ty = self.ty(path)?;
        if dtypes.contains(&ty.dtype) && ty.shape.len() == rank {
            return Ok(ty);
        }
        let names: Vec<&str> = dtypes.iter().map(|d| d.name()).collect();
        Err(self.bad(path, format!("expected {} with {rank} axes, found {ty}", names.join(" or "))))
    }

    /// The type of a tensor that must have one of these dtypes and this shape.
    pub fn expect(&self, path: &Path, dtypes: &[DType], shape: &[usize]) -> Result<&ArrayType> {
        let ty = self.ty(path)?;
        if dtypes.contains(&ty.dtype) && ty.shape == shape {
            return Ok(ty);
        }
        let names: Vec<&str> = dtypes.iter().map(|d| d.name()).collect();
        Err(self.bad(path, format!("expected {} of shape {shape:?}, found {ty}", names.join(" or "))))
    }

    /// Reads a tensor.
    pub fn read(&self, path: &Path) -> Result<Array> {
        self.checkpoint.read(path)
    }

    /// Reads fp8 values, all of which must be finite.
    pub fn read_fp8(&self, path: &Path) -> Result<Array> {
        let array = self.read(path)?;
        // Without the sign: what is from here on is no finite number.
        let limit = if array.dtype() == DType::F8E5M2 { 0x7c } else { 0x7f };
        match array.bytes().iter().position(|byte| byte & 0x7f >= limit) {
            None => Ok(array),
            Some(at) => Err(self.bad(path, format!("element {at} is not finite"))),
        }
    }

    /// Reads floats, all of which must be finite.
    pub fn read_finite(&self, path: &Path) -> Result<Array> {
        let array = self.read(path)?;
        let wide = if array.dtype().is_wide_float() { &array } else { &array.convert(DType::F32) };
        check_finite(wide).map_err(|e| self.bad(path, e.to_string()))?;
        Ok(array)
    }
}

/// The one checkpoint of a folder: its index, or its only safetensors file.
fn weights_in(folder: &FilePath) -> Result<PathBuf> {
    let io = |e| Error::io("read", folder, e);
    let (mut indices, mut files) = (vec![], vec![]);
    for entry in std::fs::read_dir(folder).map_err(io)? {
        let file = entry.map_err(io)?.path();
        let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.ends_with(".safetensors.index.json") {
            indices.push(file);
        } else if name.ends_with(".safetensors") {
            files.push(file);
        }
    }
    let found = if indices.is_empty() { &mut files } else { &mut indices };
    found.sort();
    match found.as_slice() {
        [one] => Ok(one.clone()),
        [] => {
            Err(Error::checkpoint(folder, None, "holds no .safetensors file; expected a checkpoint's folder"))
        }
        [first, ..] => Err(Error::checkpoint(
            folder,
            None,
            format!(
                "holds {} checkpoints, `{}` among them; name the one to read",
                found.len(),
                first.display()
            ),
        )),
    }
}

fn config_in(folder: &FilePath) -> Result<Option<Config>> {
    for (name, field) in CONFIGS {
        let file = folder.join(name);
        if !file.is_file() {
            continue;
        }
        let bad = |reason: String| Error::checkpoint(&file, None, reason);
        let json: Json =
            serde_json::from_str(&read_text(&file)?).map_err(|e| bad(format!("is not JSON: {e}")))?;
        let Json::Object(mut fields) = json else { return Err(bad("is not a JSON object".into())) };
        let Some(field) = field else { return Ok(Some(Config { file, at: String::new(), fields })) };
        match fields.remove(field) {
            None | Some(Json::Null) => {}
            Some(Json::Object(inner)) => {
                return Ok(Some(Config { file, at: format!("{field}."), fields: inner }));
            }
            Some(_) => return Err(bad(format!("`{field}` is not an object"))),
        }
    }
    Ok(None)
}

/// An object of a config, with where it stands for messages.
#[derive(Clone, Debug)]
pub(super) struct Config {
    file: PathBuf,
    /// `quantization_config.` or so.
    at: String,
    fields: Map<String, Json>,
}

impl Config {
    /// An error about one field.
    pub fn bad(&self, field: &str, reason: impl AsRef<str>) -> Error {
        Error::checkpoint(&self.file, None, format!("`{}{field}` {}", self.at, reason.as_ref()))
    }

    /// A field that is there and not null.
    pub fn get(&self, field: &str) -> Option<&Json> {
        self.fields.get(field).filter(|value| !value.is_null())
    }

    fn typed<'a, T>(
        &'a self,
        field: &str,
        what: &str,
        read: impl Fn(&'a Json) -> Option<T>,
    ) -> Result<Option<T>> {
        match self.get(field) {
            None => Ok(None),
            Some(value) => match read(value) {
                Some(read) => Ok(Some(read)),
                None => Err(self.bad(field, format!("is {value}, not {what}"))),
            },
        }
    }

    pub fn text(&self, field: &str) -> Result<Option<&str>> {
        self.typed(field, "a text", Json::as_str)
    }

    pub fn integer(&self, field: &str) -> Result<Option<i64>> {
        self.typed(field, "an integer", Json::as_i64)
    }

    pub fn flag(&self, field: &str) -> Result<Option<bool>> {
        self.typed(field, "true or false", Json::as_bool)
    }

    pub fn object(&self, field: &str) -> Result<Option<Config>> {
        let fields = self.typed(field, "an object", Json::as_object)?;
        Ok(fields.map(|fields| Config {
            file: self.file.clone(),
            at: format!("{}{field}.", self.at),
            fields: fields.clone(),
        }))
    }

    pub fn texts(&self, field: &str) -> Result<Vec<String>> {
        let read = |value: &Json| -> Option<Vec<String>> {
            value.as_array()?.iter().map(|item| Some(item.as_str()?.to_owned())).collect()
        };
        Ok(self.typed(field, "a list of texts", read)?.unwrap_or_default())
    }

    /// The names of the fields.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.fields.keys().map(String::as_str)
    }

    /// A field whose value must be one of these.
    pub fn one_of(&self, field: &str, default: Option<&str>, known: &[&str]) -> Result<String> {
        let found = self.text(field)?.or(default).ok_or_else(|| self.bad(field, "is missing"))?;
        if known.contains(&found) {
            return Ok(found.to_owned());
        }
        Err(self
            .bad(field, format!("is `{found}`, which cannot be imported; known are {}", known.join(", "))))
    }

    /// A group size: a number of elements, or the whole axis for −1.
    pub fn group_size(&self, field: &str, axis: usize) -> Result<usize> {
        match self.integer(field)? {
            Some(-1) => Ok(axis.max(1)),
            Some(size) if size > 0 => usize::try_from(size).map_err(|_| self.bad(field, "is too large")),
            Some(size) => Err(self.bad(field, format!("is {size}; expected −1 or at least 1"))),
            None => Err(self.bad(field, "is missing")),
        }
    }

    /// Refuses fields that are not known: one of them may say that the numbers mean something else. What is null,
    /// false, or empty says nothing; and what the user chose to ignore.
    pub fn only(&self, known: &[&str], ignored: &[String]) -> Result<()> {
        for (name, value) in &self.fields {
            let empty = match value {
                Json::Null | Json::Bool(false) => true,
                Json::String(text) => text.is_empty(),
                Json::Array(items) => items.is_empty(),
                Json::Object(fields) => fields.is_empty(),
                Json::Bool(true) | Json::Number(_) => false,
            };
            if !empty && !known.contains(&name.as_str()) && !ignored.iter().any(|i| i == name) {
                return Err(self.bad(
                    name,
                    format!("is {value}, and is not known here: it may change what the numbers mean. If it does not, ignore it by name (--ignore-config {name})"),
                ));
            }
        }
        Ok(())
    }
}
