//! Where the tensors of a package lie: known from names, types and the size of a shard alone.

use std::collections::BTreeMap;

use qwix_array::DType;
use qwix_graph::{ArrayType, Parameter, Type};
use serde_json::json;

use crate::tensors::Layout;
use crate::{Error, Result};

/// The tensors that a parameter's value is stored as: key and array type each.
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

/// The type in the file of an array: itself, or packed bytes.
pub(crate) fn in_file(ty: &ArrayType) -> Result<ArrayType> {
    if !ty.dtype.is_packed() {
        return Ok(ty.clone());
    }
    let bytes = qwix_array::element_count(&ty.shape).and_then(|count| ty.dtype.byte_len(count));
    let bytes =
        bytes.ok_or_else(|| qwix_array::ArrayError::TooLarge { dtype: ty.dtype, shape: ty.shape.clone() })?;
    Ok(ArrayType::new(DType::U8, [bytes]))
}

/// All tensors of parameters by key, in their types in the file.
pub(crate) fn all_stored<'a>(
    parameters: impl IntoIterator<Item = &'a Parameter>,
) -> Result<BTreeMap<String, ArrayType>> {
    let mut types = BTreeMap::new();
    for parameter in parameters {
        for (key, ty) in stored(parameter)? {
            put(&mut types, key, in_file(&ty)?)?;
        }
    }
    Ok(types)
}

fn put(types: &mut BTreeMap<String, ArrayType>, key: String, ty: ArrayType) -> Result<()> {
    if types.contains_key(&key) {
        return Err(Error::Unsupported(format!("two parameters would be stored as `{key}`; rename one")));
    }
    types.insert(key, ty);
    Ok(())
}

/// One safetensors file of a package, before any tensor is there.
#[derive(Debug)]
pub(crate) struct Shard {
    pub name: String,
    /// The file's first bytes: the length of the header, and the header.
    pub header: Vec<u8>,
    /// The file's length.
    pub bytes: u64,
}

/// Where a tensor's bytes lie.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Place {
    /// The shard, by number from 0.
    pub shard: usize,
    /// In the file.
    pub offset: u64,
    pub bytes: u64,
}

/// The shards of a package, and the place of each tensor.
#[derive(Debug)]
pub(crate) struct Shards {
    pub list: Vec<Shard>,
    pub places: BTreeMap<String, Place>,
}

impl Shards {
    /// Parameters in the order of their paths, so many bytes of tensors a shard (one that is larger alone). What one
    /// parameter is stored as stays together.
    ///
    /// # Errors
    /// When a parameter cannot be stored, or two would be stored under one key.
    pub fn plan<'a>(parameters: impl IntoIterator<Item = &'a Parameter>, shard_size: u64) -> Result<Self> {
        let mut sorted: Vec<&Parameter> = parameters.into_iter().collect();
        sorted.sort_by(|a, b| a.path.cmp(&b.path));
        all_stored(sorted.iter().copied())?;
        let mut groups: Vec<BTreeMap<String, ArrayType>> = vec![BTreeMap::new()];
        let mut filled = 0u64;
        for parameter in sorted {
            let mut parts = Vec::new();
            for (key, ty) in stored(parameter)? {
                parts.push((key, in_file(&ty)?));
            }
            let bytes = parts.iter().fold(0u64, |sum, (_, ty)| sum.saturating_add(byte_len(ty)));
            if filled > 0 && filled.saturating_add(bytes) > shard_size {
                groups.push(BTreeMap::new());
                filled = 0;
            }
            filled = filled.saturating_add(bytes);
            if let Some(group) = groups.last_mut() {
                group.extend(parts);
            }
        }
        let count = groups.len();
        let mut shards = Shards { list: Vec::new(), places: BTreeMap::new() };
        for (number, types) in groups.into_iter().enumerate() {
            let layout = Layout::new(types).map_err(|e| Error::Unsupported(e.to_string()))?;
            let start = layout.header.len() as u64;
            let mut end = start;
            for (key, ty, at) in layout.order {
                let place = Place { shard: number, offset: start + at as u64, bytes: byte_len(&ty) };
                end = end.max(place.offset.saturating_add(place.bytes));
                shards.places.insert(key, place);
            }
            let name = format!("params-{:05}-of-{count:05}.safetensors", number + 1);
            shards.list.push(Shard { name, header: layout.header, bytes: end });
        }
        Ok(shards)
    }

    /// The text of the index, as other readers of sharded safetensors expect it.
    pub fn index(&self) -> String {
        let total: u64 = self.places.values().map(|place| place.bytes).sum();
        let names = self
            .places
            .iter()
            .filter_map(|(key, place)| Some((key.clone(), self.list.get(place.shard)?.name.clone().into())));
        let map: serde_json::Map<String, serde_json::Value> = names.collect();
        let index = json!({ "metadata": { "total_size": total }, "weight_map": map });
        format!("{index:#}\n")
    }
}

fn byte_len(ty: &ArrayType) -> u64 {
    ty.byte_len().unwrap_or(usize::MAX) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use qwix_graph::{Path, Role};

    fn plain(path: &str, shape: &[usize]) -> Parameter {
        Parameter {
            path: Path::new(path),
            key_path: None,
            role: Role::Variable,
            ambiguous: false,
            ty: Type::array(DType::F32, shape),
            slot: None,
        }
    }

    #[test]
    fn shards_fill_up_in_the_order_of_paths() {
        let parameters = [plain("c", &[10]), plain("a", &[5]), plain("b", &[5]), plain("d", &[0])];
        for (size, expected) in [(1, "a|b|c|d"), (40, "a b|c d"), (60, "a b|c d"), (80, "a b c d")] {
            let shards = Shards::plan(&parameters, size).unwrap();
            let mut names = vec![vec![]; shards.list.len()];
            shards.places.iter().for_each(|(key, place)| names[place.shard].push(key.clone()));
            let found: Vec<String> = names.iter().map(|n| n.join(" ")).collect();
            assert_eq!(found.join("|"), expected, "shards of {size}");
            let last = format!("params-{0:05}-of-{0:05}.safetensors", found.len());
            assert_eq!(shards.list.last().unwrap().name, last);
        }
        let none = Shards::plan(&[], 1).unwrap();
        assert_eq!((none.list.len(), none.places.len()), (1, 0));
    }
}
