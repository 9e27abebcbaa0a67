//! The goldens' files.
#![allow(dead_code)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use qwix_array::{Array, DType};
use qwix_graph::Graph;
use serde_json::Value;

pub fn goldens() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../goldens")
}

/// Folders below a folder of the goldens, by name.
pub fn folders(of: &str) -> Vec<(String, PathBuf)> {
    let root = goldens().join(of);
    let mut found: Vec<_> = std::fs::read_dir(&root)
        .unwrap_or_else(|e| panic!("{}: {e}", root.display()))
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_dir())
        .map(|path| (path.file_name().unwrap().to_string_lossy().into_owned(), path))
        .collect();
    found.sort();
    assert!(!found.is_empty(), "{} is empty", root.display());
    found
}

pub fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display())))
        .unwrap()
}

pub fn model(name: &str) -> Result<Graph, String> {
    let path = goldens().join("models").join(name).join("model.hlo.pb");
    Graph::from_hlo_proto(&std::fs::read(path).unwrap()).map_err(|e| e.to_string())
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
                D::I8 => DType::S8,
                D::I16 => DType::S16,
                D::I32 => DType::S32,
                D::I64 => DType::S64,
                D::U8 => DType::U8,
                D::U16 => DType::U16,
                D::U32 => DType::U32,
                D::U64 => DType::U64,
                D::F16 => DType::F16,
                D::BF16 => DType::BF16,
                D::F32 => DType::F32,
                D::F64 => DType::F64,
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

/// Parameters of a model that its graph has.
pub fn params(name: &str) -> qwix_eval::Params {
    tensors(&goldens().join("models").join(name).join("params.safetensors"))
        .into_iter()
        .map(|(path, array)| (qwix_graph::Path::new(&path), qwix_eval::Value::Array(array)))
        .collect()
}
