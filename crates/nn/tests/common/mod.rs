//! The goldens' files, and their models written in Rust.
#![allow(dead_code)]

pub mod models;
pub mod parts;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use qwix_eval::{Params, Value};
use qwix_graph::Graph;
use qwix_nn::{Array, DType};

pub fn goldens() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../goldens")
}

/// A model's folder: of the models that all crates use, or of those for this one.
pub fn folder(model: &str) -> PathBuf {
    let common = goldens().join("models").join(model);
    if common.exists() { common } else { goldens().join("nn").join(model) }
}

pub fn imported(model: &str) -> Graph {
    let file = folder(model).join("model.hlo.pb");
    let bytes = std::fs::read(&file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    Graph::from_hlo_proto(&bytes).unwrap_or_else(|e| panic!("{model}: {e}"))
}

/// Every tensor of a file.
pub fn tensors(path: &Path) -> BTreeMap<String, Array> {
    use safetensors::Dtype as D;
    let bytes = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    file.iter()
        .map(|(name, view)| {
            let dtype = match view.dtype() {
                D::BOOL => DType::Pred,
                D::I32 => DType::S32,
                D::U32 => DType::U32,
                D::F16 => DType::F16,
                D::BF16 => DType::BF16,
                D::F32 => DType::F32,
                other => panic!("{name}: {other:?}"),
            };
            (name.to_owned(), Array::from_bytes(dtype, view.shape(), view.data().to_vec()).unwrap())
        })
        .collect()
}

/// The tensors `0`, `1`, … of a file.
pub fn numbered(path: &Path) -> Vec<Array> {
    let tensors = tensors(path);
    (0..tensors.len()).map(|i| tensors[&i.to_string()].clone()).collect()
}

/// The checkpoint of a model.
pub fn params(model: &str) -> Params {
    tensors(&folder(model).join("params.safetensors"))
        .into_iter()
        .map(|(path, array)| (qwix_graph::Path::new(&path), Value::Array(array)))
        .collect()
}

/// The largest difference over the largest value; infinite when dtypes or shapes differ.
pub fn relative(found: &Array, wanted: &Array) -> f64 {
    if found.dtype() != wanted.dtype() || found.shape() != wanted.shape() {
        return f64::INFINITY;
    }
    let (a, b) = (found.to_f64_vec(), wanted.to_f64_vec());
    let largest = b.iter().fold(1e-30f64, |m, x| m.max(x.abs()));
    let difference = a.iter().zip(&b).fold(0f64, |m, (x, y)| {
        let d = (x - y).abs();
        // A NaN is no small difference.
        if d.is_nan() && !(x.is_nan() && y.is_nan()) {
            f64::INFINITY
        } else {
            m.max(if d.is_nan() { 0.0 } else { d })
        }
    });
    difference / largest
}
