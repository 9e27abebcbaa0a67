//! Checkpoints that were quantized elsewhere, read as quantized arrays: the stored values are unpacked and moved, never
//! made floats and quantized again.
//!
//! | format | weight | scales and zero points | layout |
//! | --- | --- | --- | --- |
//! | GPTQ, 4 and 8 bits | `int4` or `int8` | a group of rows; zero points unless `sym` | \[in, out\] |
//! | AWQ (GEMM), 4 bits | `int4` | a group of rows, with zero points | \[in, out\] |
//! | compressed-tensors: `pack-quantized`, `int-quantized`, `float-quantized`, `naive-quantized`, `nvfp4-pack-quantized`, `mxfp4-pack-quantized` | `int4`, `int8`, `float8_*`, `float4_e2m1fn`, `mxfp4` | a tensor, channel, group or block | \[out, in\] |
//! | block-scaled FP8 (`weight_scale_inv`) | `float8_*` | a block of 128 × 128 | \[out, in\] |
//! | ModelOpt FP8 and NVFP4 | `float8_*`, `float4_e2m1fn` | a tensor; 16 columns | \[out, in\] |
//! | MXFP4 (`_blocks`, `_scales`) | `mxfp4` | 32 columns | \[…, out, in\] |
//! | Qwix's own (`/qvalue`, `/scale`, `/zero_point`) | what is stored | what is stored | as stored |
//!
//! A weight is the parameter `<module>/weight`, whatever the format splits it into; everything else keeps its path. Scales
//! keep the dtype that they have in the file, so that dequantizing gives what the format's own definition gives, bit for
//! bit, in that dtype. Where a format has a second scale for the whole tensor (NVFP4), the product of the two is rounded
//! to f32 once, as the format's own code does: within 2⁻²⁴ of the exact product. A last group or block that is cut short has
//! its scale repeated for smaller tiles that divide the axis. E8M0 scales are powers of two, as bf16.
//!
//! What a format can say and a quantized array cannot is refused by name.

mod awq;
mod blocks;
mod compressed_tensors;
mod fp8;
mod gptq;
mod modelopt;
mod mxfp4;
mod names;
mod nvfp4;
mod plan;
mod qwix_flat;
mod source;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io::{BufWriter, Write};
use std::path::Path as FilePath;

use qwix_array::DType;
use qwix_eval::Value;
use qwix_graph::{ArrayType, Path, QArrayType, Type};
use qwix_ptq::{
    ProcessPrequantized, QuantizationRule, RestoreRules, Template, process_prequantized_param,
    restore_quantization_rules,
};
use qwix_quant::QType;

use crate::files::write_file_in_parts;
use crate::tensors::{TensorWriter, widened};
use crate::{Error, Result};
pub use names::{NameMap, Taken};
use plan::Plan;
use source::Source;

/// The formats, in the order in which they are tried.
const FORMATS: [&dyn Format; 7] = [
    &gptq::Gptq,
    &awq::Awq,
    &compressed_tensors::CompressedTensors,
    &fp8::Fp8,
    &modelopt::ModelOpt,
    &mxfp4::Mxfp4,
    &qwix_flat::QwixFlat,
];

/// One way to keep quantized weights in safetensors.
trait Format: Sync {
    /// Its name, for people.
    fn name(&self) -> &'static str;

    /// Whether a checkpoint says that it is of this format.
    fn is(&self, source: &Source) -> bool;

    /// What the parameters are, and how each is read.
    fn plan(&self, source: &Source, options: &ImportOptions) -> Result<Plan>;
}

/// Which way round matrices are given out.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Layout {
    /// As the format has them.
    #[default]
    AsStored,
    /// Quantized weights that are stored as \[…, out, in\] have their last two axes exchanged, as a Flax kernel has
    /// them. Weights in float stay.
    InOut,
}

/// What to do where activation order has scattered the rows of a group over the matrix (`g_idx` with `desc_act`).
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum ActOrder {
    /// Refuse it by name.
    #[default]
    Refuse,
    /// Order the input features by their groups. The weight is then for inputs in that order, which the parameter
    /// `<module>/input_permutation` (s32) says: feature i of the ordered input is feature `input_permutation[i]`.
    Permute,
    /// Leave the features where they are, with a scale for each: nothing else changes for the model, and the scales
    /// take more room than the weight.
    Expand,
}

/// How to read a checkpoint that was quantized elsewhere.
#[derive(Clone, Default, Debug)]
pub struct ImportOptions {
    /// Which way round matrices are given out.
    pub layout: Layout,
    /// What to do with scattered groups.
    pub act_order: ActOrder,
    /// Leaves out what a checkpoint says of activations and caches and that has no counterpart here, instead of refusing
    /// it.
    pub weights_only: bool,
    /// Fields of the config to take no notice of.
    pub ignore_config: Vec<String>,
    /// The type of quantized values in Qwix's own form, where the stored dtype does not say it.
    pub qtype: Option<&'static QType>,
}

/// A checkpoint that was quantized elsewhere. Parameters are read when asked for, one by one.
pub struct Prequantized {
    source: Source,
    format: &'static str,
    plan: Plan,
}

impl fmt::Debug for Prequantized {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Prequantized({} `{}`)", self.format, self.source.checkpoint.name().display())
    }
}

impl Prequantized {
    /// Opens a folder with a checkpoint and its config, a `.safetensors` file or the `index.json` of several (the config
    /// is then looked for beside it). Reads headers, the config, and of GPTQ's act-order the index.
    ///
    /// # Errors
    /// When a file cannot be read, the format is not known, or a tensor or a field of the config is missing, wrong, or
    /// says something that has no counterpart here; the error names it.
    pub fn open(name: impl AsRef<FilePath>, options: &ImportOptions) -> Result<Self> {
        let source = Source::open(name.as_ref())?;
        let Some(format) = FORMATS.iter().find(|format| format.is(&source)) else {
            let known: Vec<&str> = FORMATS.iter().map(|format| format.name()).collect();
            let reason = match (source.method(), &source.config) {
                (Some(method), Some(config)) => {
                    return Err(config.bad(
                        "quant_method",
                        format!("is `{method}`, which cannot be imported; known are {}", known.join(", ")),
                    ));
                }
                (_, None) => "is not known to be quantized: there is no config beside it that says how",
                (None, Some(_)) => "has a config that says nothing of a known format",
            };
            return Err(Error::checkpoint(
                source.checkpoint.name(),
                None,
                format!("{reason}; known formats are {}", known.join(", ")),
            ));
        };
        let mut plan = format.plan(&source, options)?;
        if options.layout == Layout::InOut {
            plan.turn();
        }
        Ok(Prequantized { format: format.name(), source, plan })
    }

    /// The format's name.
    pub fn format(&self) -> &'static str {
        self.format
    }

    /// The parameters and their types, in order of their paths.
    pub fn types(&self) -> impl Iterator<Item = (&Path, &Type)> {
        self.plan.entries.iter().map(|(path, entry)| (path, &entry.ty))
    }

    /// The type of one parameter.
    pub fn type_of(&self, path: &Path) -> Option<&Type> {
        self.plan.entries.get(path).map(|entry| &entry.ty)
    }

    /// How many parameters are quantized.
    pub fn count_quantized(&self) -> usize {
        self.types().filter(|(_, ty)| matches!(ty, Type::QArray(_))).count()
    }

    /// The rules that quantize a model as the weights are quantized, for modules by the names of the model; see
    /// [`restore_quantization_rules`]. Where the format says which axis is contracted, the tile is that axis's.
    ///
    /// # Errors
    /// As [`restore_quantization_rules`].
    pub fn restore_rules(&self, names: &NameMap, options: &RestoreRules) -> Result<Vec<QuantizationRule>> {
        let of = |path: &Path| self.plan.entries.get(path)?.by_rule();
        let types: Vec<(Path, QArrayType)> = match names.is_empty() {
            true => self.types().filter_map(|(path, _)| Some((path.clone(), of(path)?))).collect(),
            false => {
                names.iter().filter_map(|(path, taken)| Some((path.clone(), of(&taken.from)?))).collect()
            }
        };
        Ok(restore_quantization_rules(types.iter().map(|(path, ty)| (path, ty)), options)?)
    }

    /// Reads one parameter; a quantized one is a [`Value::QArray`].
    ///
    /// # Errors
    /// When there is none of that path, its file cannot be read, or the values have no counterpart here (a zero point out
    /// of range, a scale that is not finite); the error names the tensor.
    pub fn read(&self, path: &Path) -> Result<Value> {
        let entry =
            self.plan.entries.get(path).ok_or_else(|| self.source.bad(path, "is not in the checkpoint"))?;
        let value = (entry.read)(&self.source)?;
        let value = if entry.turned { plan::turned(value)? } else { value };
        if !value.is_of(&entry.ty) {
            let found = value.describe();
            return Err(self.source.bad(path, format!("was to be {}, and is {found}", entry.ty)));
        }
        Ok(value)
    }

    /// Every parameter, read one by one in order of the paths.
    pub fn values(&self) -> impl Iterator<Item = Result<(Path, Value)>> {
        self.plan.entries.keys().map(|path| Ok((path.clone(), self.read(path)?)))
    }

    /// Checks that the parameters, by the names of a model, fit its template, and hands them on one by one as the
    /// template has them; see [`process_prequantized_param`].
    ///
    /// # Errors
    /// When a name is not there, a parameter does not fit, or some are missing; and what `sink` returns.
    pub fn process(
        &self,
        template: &Template,
        names: &NameMap,
        options: ProcessPrequantized,
        mut sink: impl FnMut(Path, Value) -> Result<()>,
    ) -> Result<()> {
        let taken = names.resolve(self, template, options.allow_extra_params)?;
        let mut missing: BTreeSet<&Path> = template.parameters().keys().collect();
        for (target, Taken { from, transpose }) in &taken {
            let mut value = self.read(from)?;
            if *transpose {
                value = plan::turned(value)?;
            }
            for (path, value) in process_prequantized_param(template, target, &value, options)? {
                missing.remove(&path);
                sink(path, value)?;
            }
        }
        if missing.is_empty() {
            return Ok(());
        }
        let named: Vec<String> = missing.iter().take(8).map(|path| format!("`{path}`")).collect();
        let more = if missing.len() > named.len() { ", …" } else { "" };
        let total = template.parameters().len();
        let reason = format!(
            "does not give {} of the model's {total} parameters: {}{more}",
            missing.len(),
            named.join(", ")
        );
        Err(Error::checkpoint(self.source.checkpoint.name(), None, reason))
    }

    /// Writes every parameter as one flat safetensors file, one by one, with the keys and dtypes of `qwix dump`:
    /// `<path>/qvalue`, `/scale`, `/zero_point`; integers narrower than a byte as `I8`, fp8 and fp4 as `F32`.
    ///
    /// # Errors
    /// When a parameter cannot be read or the file not be written; nothing is left at the target.
    pub fn write_flat(&self, target: impl AsRef<FilePath>) -> Result<()> {
        let target = target.as_ref();
        let io = |e| Error::io("write", target, e);
        let mut types = BTreeMap::new();
        for (path, ty) in self.types() {
            for (key, part) in flat_types(path, ty)? {
                if types.insert(key.clone(), part).is_some() {
                    return Err(Error::Unsupported(format!("two parameters would be written as `{key}`")));
                }
            }
        }
        write_file_in_parts(target, |file| {
            let mut writer = TensorWriter::new(BufWriter::new(file), types).map_err(io)?;
            for item in self.values() {
                let (path, value) = item?;
                let parts = match &value {
                    Value::Array(array) => vec![(path.to_string(), array)],
                    Value::QArray(q) => {
                        let named = [
                            ("qvalue", Some(q.qvalue())),
                            ("scale", Some(q.scale())),
                            ("zero_point", q.zero_point()),
                        ];
                        named
                            .into_iter()
                            .filter_map(|(part, array)| Some((format!("{path}/{part}"), array?)))
                            .collect()
                    }
                    Value::Tuple(_) => vec![],
                };
                for (key, array) in parts {
                    writer.write(&key, &widened(array)).map_err(io)?;
                }
            }
            writer.finish().map_err(io)?.flush().map_err(io)
        })
    }

    pub(crate) fn bad(&self, path: &Path, reason: impl Into<String>) -> Error {
        self.source.bad(path, reason)
    }
}

/// Keys and types of a parameter in a flat file.
fn flat_types(path: &Path, ty: &Type) -> Result<Vec<(String, ArrayType)>> {
    let wide = |dtype: DType| match dtype {
        DType::S2 | DType::S4 | DType::U4 => DType::S8,
        DType::F8E4M3FN | DType::F8E5M2 | DType::F4E2M1FN => DType::F32,
        other => other,
    };
    Ok(match ty {
        Type::Array(array) => {
            vec![(path.to_string(), ArrayType::new(wide(array.dtype), array.shape.clone()))]
        }
        Type::QArray(q) => {
            let (storage, scale_shape) = (wide(q.how.qtype.storage), q.scale_shape()?);
            let mut parts = vec![
                (format!("{path}/qvalue"), ArrayType::new(storage, q.array.shape.clone())),
                (format!("{path}/scale"), ArrayType::new(q.array.dtype, scale_shape.clone())),
            ];
            if q.has_zero_point() {
                parts.push((format!("{path}/zero_point"), ArrayType::new(storage, scale_shape)));
            }
            parts
        }
        Type::Tuple(_) | Type::Token | Type::Opaque(_) => vec![],
    })
}
