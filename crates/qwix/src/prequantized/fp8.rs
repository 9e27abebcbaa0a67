//! FP8 as DeepSeek and Hugging Face's `fp8` write it.
//!
//! `weight` f8e4m3fn [out, in]. In blocks: `weight_scale_inv` [⌈out / 128⌉, ⌈in / 128⌉] (the block's size is in the config);
//! otherwise `weight_scale`, one number or one a row. A weight is q · scale, in spite of the name.

use qwix_array::DType;
use qwix_eval::Value;
use qwix_graph::Path;
use qwix_quant::{QArray, QType};

use super::blocks::{Blocks, Groups};
use super::compressed_tensors::activations;
use super::plan::{Entry, Module, Plan};
use super::source::{Config, Source};
use super::{Format, ImportOptions};
use crate::{Error, Result};

pub(super) struct Fp8;

pub(super) const FLOAT8: [DType; 2] = [DType::F8E4M3FN, DType::F8E5M2];
const FLOATS: [DType; 3] = [DType::F32, DType::BF16, DType::F16];

/// `scale_fmt` and `activation_scheme` are about activations.
const FIELDS: [&str; 9] = [
    "quant_method",
    "fmt",
    "weight_block_size",
    "activation_scheme",
    "scale_fmt",
    "modules_to_not_convert",
    "ignored_layers",
    "meta",
    "dequantize",
];

impl Format for Fp8 {
    fn name(&self) -> &'static str {
        "fp8"
    }

    fn is(&self, source: &Source) -> bool {
        source.method() == Some("fp8")
    }

    fn plan(&self, source: &Source, options: &ImportOptions) -> Result<Plan> {
        let config = source.config.as_ref().ok_or_else(|| {
            Error::checkpoint(
                source.checkpoint.name(),
                None,
                "has no config beside it that says how it is quantized",
            )
        })?;
        config.only(&FIELDS, &options.ignore_config)?;
        if config.get("fmt").is_some() {
            config.one_of("fmt", None, &["e4m3", "float8_e4m3fn", "e5m2"])?;
        }
        config.one_of("activation_scheme", Some("dynamic"), &["dynamic", "static"])?;
        let block = block_size(config, "weight_block_size")?;
        Plan::by_module(source, &["weight_scale_inv", "weight_scale"], |module| {
            activations(module, options, false)?;
            if !is_float8(module, "weight") {
                return Ok(vec![]);
            }
            let weight = module.need("weight")?;
            let &[rows, columns] = source.ranked(&weight, &FLOAT8, 2)?.shape.as_slice() else {
                return Err(source.bad(&weight, "is no matrix"));
            };
            let entry = if let Some(scale) = module.take("weight_scale_inv") {
                let Some([high, wide]) = block else {
                    return Err(
                        config.bad("weight_block_size", format!("is missing, and `{scale}` is in blocks"))
                    );
                };
                in_blocks(source, weight, scale, Groups::regular(rows, high), Groups::regular(columns, wide))?
            } else if let Some(scale) = module.take("weight_scale") {
                per_row_or_tensor(source, weight, scale)?
            } else {
                return Err(source.bad(&weight, "has no `weight_scale_inv` or `weight_scale` beside it"));
            };
            Ok(vec![("weight", entry)])
        })
    }
}

/// Whether a module has an fp8 tensor of this name.
pub(super) fn is_float8(module: &Module<'_>, name: &str) -> bool {
    let ty = module.source.checkpoint.type_of(&module.at(name));
    module.has(name) && ty.is_some_and(|ty| FLOAT8.contains(&ty.dtype))
}

/// Two positive sizes.
pub(super) fn block_size(config: &Config, field: &str) -> Result<Option<[usize; 2]>> {
    let Some(value) = config.get(field) else { return Ok(None) };
    let sizes: Option<Vec<usize>> = value.as_array().and_then(|sizes| {
        sizes.iter().map(|size| usize::try_from(size.as_u64()?).ok().filter(|&size| size > 0)).collect()
    });
    match sizes.as_deref() {
        Some(&[rows, columns]) => Ok(Some([rows, columns])),
        Some(_) | None => Err(config.bad(field, format!("is {value}, not two positive sizes"))),
    }
}

/// An fp8 matrix with a scale for each block.
pub(super) fn in_blocks(
    source: &Source,
    weight: Path,
    scale: Path,
    rows: Groups,
    columns: Groups,
) -> Result<Entry> {
    let ty = source.ranked(&weight, &FLOAT8, 2)?;
    let &[high, wide] = ty.shape.as_slice() else { return Err(source.bad(&weight, "is no matrix")) };
    let qtype = QType::by_name(ty.dtype.jax_name())?;
    let blocks = Blocks { shape: [high, wide], rows, columns };
    let in_file = blocks.in_file();
    let scale_ty = source.ty(&scale)?;
    // One number, or one a row, is also written without axes of size 1.
    let squeezed: Vec<usize> = in_file.into_iter().filter(|&size| size != 1).collect();
    let found: Vec<usize> = scale_ty.shape.iter().copied().filter(|&size| size != 1).collect();
    if !FLOATS.contains(&scale_ty.dtype) || squeezed != found {
        return Err(source.bad(&scale, format!("expected floats of shape {in_file:?}, found {scale_ty}")));
    }
    let ty = blocks.ty(qtype, scale_ty.dtype, false);
    Ok(Entry::out_in(ty, move |source| {
        let scale = source.read_finite(&scale)?.reshape(&in_file)?;
        let qvalue = blocks.in_order(source.read_fp8(&weight)?)?;
        Ok(Value::QArray(QArray::new(qvalue, blocks.per_tile(&scale)?, None, qtype)?))
    }))
}

/// An fp8 matrix with one scale, or one a row, as the scale's shape says.
pub(super) fn per_row_or_tensor(source: &Source, weight: Path, scale: Path) -> Result<Entry> {
    let &[rows, columns] = source.ranked(&weight, &FLOAT8, 2)?.shape.as_slice() else {
        return Err(source.bad(&weight, "is no matrix"));
    };
    let one = source.ty(&scale)?.shape.iter().all(|&size| size == 1);
    let groups = if one { Groups::whole(rows) } else { Groups::each(rows) };
    in_blocks(source, weight, scale, groups, Groups::whole(columns))
}
