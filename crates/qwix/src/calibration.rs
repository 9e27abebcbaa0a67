//! Calibration's files: batches of inputs, read one by one, and statistics.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path as FilePath;

use qwix_array::{Array, DType};
use qwix_eval::{Params, Value};
use qwix_graph::{ArrayType, Path, Type};
use qwix_ptq::QuantStats;

use crate::files::write_file;
use crate::tensors::{TensorFile, narrowed, widened, write_tensors};
use crate::{Error, Model, Result};

/// Batches of a model's inputs in safetensors files: keys `<batch>/<input>`, where `<batch>` is a number and `<input>` the
/// input's position or name.
///
/// The batches come file by file, as the files are given, and in each by number. Opening reads headers alone; batches are
/// read when they are asked for.
#[derive(Debug)]
pub struct CalibrationData {
    files: Vec<TensorFile>,
    /// The types of the model's inputs.
    inputs: Vec<ArrayType>,
    batches: Vec<Batch>,
}

#[derive(Debug)]
struct Batch {
    file: usize,
    number: u64,
    /// A key for each input, in the model's order.
    keys: Vec<String>,
}

impl CalibrationData {
    /// Opens files and checks that each batch is what the model takes, so that nothing is found wrong with the last one
    /// when all others have been run; what the numbers themselves are is seen when they are read.
    ///
    /// # Errors
    /// When a file cannot be read or has no batch, or a key, an input that is missing or too many, or one of another type,
    /// by name.
    pub fn open<F: AsRef<FilePath>>(files: impl IntoIterator<Item = F>, model: &Model) -> Result<Self> {
        let mut inputs = Vec::new();
        for (number, (_, parameter)) in model.inputs().enumerate() {
            let Type::Array(ty) = &parameter.ty else {
                let reason = format!("input {number} `{}` is {}, no array", parameter.path, parameter.ty);
                return Err(Error::Unsupported(reason));
            };
            inputs.push((parameter.path.to_string(), ty.clone()));
        }
        let mut data = CalibrationData { files: Vec::new(), inputs: Vec::new(), batches: Vec::new() };
        for name in files {
            let file = TensorFile::open(name)?;
            data.batches.extend(batches(&file, data.files.len(), &inputs)?);
            data.files.push(file);
        }
        data.inputs = inputs.into_iter().map(|(_, ty)| ty).collect();
        Ok(data)
    }

    /// How many batches there are.
    pub fn len(&self) -> usize {
        self.batches.len()
    }

    /// Whether there is no batch; only so when no file was given.
    pub fn is_empty(&self) -> bool {
        self.batches.is_empty()
    }

    /// Reads a batch: the model's inputs, in their order.
    ///
    /// # Errors
    /// When there is no such batch, it cannot be read, or a number is none of the input's dtype.
    pub fn read(&self, batch: usize) -> Result<Vec<Array>> {
        let missing = || Error::Unsupported(format!("there is no batch {batch} of {}", self.batches.len()));
        let found = self.batches.get(batch).ok_or_else(missing)?;
        let file = self.files.get(found.file).ok_or_else(missing)?;
        let arrays = found.keys.iter().zip(&self.inputs).map(|(key, ty)| {
            let array = file.read(key)?;
            if array.dtype() == ty.dtype {
                return Ok(array);
            }
            let reason = || format!("holds a number that is no {}, which the model takes", ty.dtype);
            narrowed(&array, ty.dtype).ok_or_else(|| Error::checkpoint(file.name(), Some(key), reason()))
        });
        arrays.collect()
    }

    /// All batches, each read when it is its turn: what [`calibrate`](crate::calibrate) takes.
    pub fn iter(&self) -> impl Iterator<Item = Result<Vec<Array>>> {
        (0..self.len()).map(|batch| self.read(batch))
    }

    /// The error for a batch that the model cannot take: says where it comes from.
    pub fn error(&self, batch: usize, reason: impl Into<String>) -> Error {
        let found = self.batches.get(batch);
        match found.and_then(|b| Some((b, self.files.get(b.file)?))) {
            Some((b, file)) => {
                Error::Batch { file: file.name().to_owned(), batch: b.number, reason: reason.into() }
            }
            None => Error::Unsupported(reason.into()),
        }
    }
}

/// The batches of a file, in order.
fn batches(file: &TensorFile, index: usize, inputs: &[(String, ArrayType)]) -> Result<Vec<Batch>> {
    let bad = |key: &str, reason: String| Error::checkpoint(file.name(), Some(key), reason);
    // For each batch the rest of its keys, and the keys.
    let mut found: BTreeMap<u64, BTreeMap<&str, &str>> = BTreeMap::new();
    for (key, _) in file.iter() {
        let parts = key.split_once('/').and_then(|(batch, input)| Some((batch.parse().ok()?, input)));
        let Some((batch, input)) = parts else {
            return Err(bad(key, "is no `<batch>/<input>`, such as `0/0` or `0/x`".to_owned()));
        };
        if let Some(other) = found.entry(batch).or_default().insert(input, key) {
            return Err(bad(key, format!("and `{other}` are the same input of the same batch")));
        }
    }
    if found.is_empty() {
        return Err(Error::checkpoint(file.name(), None, "holds no batch; expected keys `<batch>/<input>`"));
    }
    found
        .into_iter()
        .map(|(number, rest)| {
            let fail = |reason| Error::Batch { file: file.name().to_owned(), batch: number, reason };
            let by_number = rest.keys().all(|key| key.parse::<usize>().is_ok_and(|n| n < inputs.len()));
            let mut keys: Vec<String> = Vec::with_capacity(inputs.len());
            for (position, (name, expected)) in inputs.iter().enumerate() {
                let names = [position.to_string(), name.clone(), name.replace('/', ".")];
                let mut candidates = names.iter().take(if by_number { 1 } else { 3 });
                let Some(key) = candidates.find_map(|name| rest.get(name.as_str())) else {
                    return Err(fail(format!("input {position} `{name}`, {expected}, is missing")));
                };
                let ty = file.get(key).filter(|ty| {
                    ty.shape == expected.shape
                        && (ty.dtype == expected.dtype || Some(ty.dtype) == wide(expected.dtype))
                });
                if ty.is_none() {
                    let found = file.get(key).map_or("nothing".to_owned(), ArrayType::to_string);
                    return Err(fail(format!(
                        "input {position} `{name}`: expected {expected}, found {found}"
                    )));
                }
                keys.push((*key).to_owned());
            }
            let used: BTreeSet<&str> = keys.iter().map(String::as_str).collect();
            if let Some(key) = rest.values().find(|key| !used.contains(*key)) {
                let names: Vec<String> = inputs.iter().map(|(name, _)| format!("`{name}`")).collect();
                return Err(bad(key, format!("is no input of the model, which takes {}", names.join(", "))));
            }
            Ok(Batch { file: index, number, keys })
        })
        .collect()
}

/// The dtype in which files have one that they know not.
fn wide(dtype: DType) -> Option<DType> {
    Array::zeros(dtype, &[0]).ok().map(|empty| widened(&empty).dtype())
}

/// Reads statistics: what [`write_stats`] writes.
///
/// # Errors
/// When the file cannot be read, or holds something else.
pub fn read_stats(file: impl AsRef<FilePath>) -> Result<QuantStats> {
    let file = TensorFile::open(file)?;
    let mut params = Params::new();
    for (key, _) in file.iter() {
        if params.insert(Path::new(key), Value::Array(file.read(key)?)).is_some() {
            return Err(Error::checkpoint(
                file.name(),
                Some(key),
                "stands in the file twice, written differently",
            ));
        }
    }
    QuantStats::from_params(&params)
        .map_err(|source| Error::Stats { file: file.name().to_owned(), source: Box::new(source) })
}

/// Writes statistics as safetensors, whole or not at all: keys `<path>/count`, `<path>/sum_of_absmax`,
/// `<path>/sum_of_min`, `<path>/sum_of_max`.
///
/// # Errors
/// When the file cannot be written.
pub fn write_stats(file: impl AsRef<FilePath>, stats: &QuantStats) -> Result<()> {
    let tensors: BTreeMap<String, Array> = stats
        .to_params()
        .into_iter()
        .filter_map(|(path, value)| match value {
            Value::Array(array) => Some((path.to_string(), array)),
            Value::QArray(_) | Value::Tuple(_) => None,
        })
        .collect();
    write_file(file.as_ref(), |out| write_tensors(out, &tensors))
}
