//! `manifest.json`: what a package holds, as it stands in the file.
//!
//! These types are the file format. The graph's own types are turned into them and back, so that a change there is
//! a change here that somebody has to think about.

use std::collections::BTreeMap;

use qwix_array::DType;
use qwix_graph::{
    ArrayType, KeyPath, Parameter, Path, Prep, QArrayType, Role, SliceDim, Slot, StatisticSlot, Type,
    WeightSlot,
};
use qwix_quant::{Calibration, Granularity, HowToQuantize, QType, Tile};
use serde::{Deserialize, Serialize};

/// What the first field says.
pub const FORMAT: &str = "qwix-package";
/// The version written.
pub const VERSION: u32 = 2;
/// The version before it, which is read as well.
pub const OLD_VERSION: u32 = 1;

/// The whole file.
#[derive(Serialize, Deserialize, Debug, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    pub format: String,
    pub version: u32,
    /// The tool that wrote it, with its version.
    pub tool: String,
    /// Whether only what Qwix quantizes was quantized.
    pub qwix_compat: bool,
    /// Every other file of the package, but for the shards and the manifest's own hash.
    pub files: BTreeMap<String, FileEntry>,
    /// The safetensors files that hold the parameters.
    pub shards: BTreeMap<String, ShardEntry>,
    /// The SHA-256 of each tensor's bytes in the shards, by key.
    pub tensors: BTreeMap<String, String>,
    /// Files that it was made from, by what they are (`model`, `statistics`): the SHA-256 of their bytes.
    pub inputs: BTreeMap<String, String>,
    /// The float parameters that it was made from, by path.
    pub sources: BTreeMap<String, InputEntry>,
    /// The parameters of the model's entry computation, in order.
    pub parameters: Vec<ParameterEntry>,
}

/// The whole file in version 1, which had one file of parameters.
#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields)]
pub struct OldManifest {
    #[serde(rename = "format")]
    _format: String,
    #[serde(rename = "version")]
    _version: u32,
    #[serde(rename = "tool")]
    _tool: String,
    pub qwix_compat: bool,
    pub files: BTreeMap<String, FileEntry>,
    pub parameters: Vec<ParameterEntry>,
}

#[derive(Serialize, Deserialize, Debug, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct ShardEntry {
    /// The file's length.
    pub bytes: u64,
    /// Of the eight bytes of the header's length and the header.
    pub header_sha256: String,
}

#[derive(Serialize, Deserialize, Debug, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct InputEntry {
    pub dtype: String,
    pub shape: Vec<usize>,
    /// Of its bytes, little-endian and row-major.
    pub sha256: String,
}

/// The two fields that are read before the rest, to tell another version from a damaged file.
#[derive(Deserialize)]
pub struct Heading {
    pub format: String,
    pub version: u32,
}

#[derive(Serialize, Deserialize, Debug, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct FileEntry {
    pub bytes: u64,
    pub sha256: String,
}

#[derive(Serialize, Deserialize, Debug, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct ParameterEntry {
    pub path: String,
    pub role: RoleEntry,
    /// Of the array that it is, or stands for.
    pub dtype: String,
    pub shape: Vec<usize>,
    /// As JAX wrote it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_path: Option<KeyPathEntry>,
    /// How it is quantized, when it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quantized: Option<QuantizedEntry>,
    /// What it is made from, when that is not the float parameter of its path as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub made_from: Option<SourceEntry>,
    /// What it holds of the statistics of an activation, when it is made from those.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub statistic: Option<StatisticEntry>,
}

#[derive(Serialize, Deserialize, Debug, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum RoleEntry {
    Variable,
    Input,
}

#[derive(Serialize, Deserialize, Debug, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct KeyPathEntry {
    pub argument: String,
    pub keys: Vec<String>,
}

#[derive(Serialize, Deserialize, Debug, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct QuantizedEntry {
    pub qtype: String,
    /// One entry an axis.
    pub granularity: Vec<GranularityEntry>,
    pub calibration: CalibrationEntry,
}

#[derive(Serialize, Deserialize, Debug, Clone, Copy, PartialEq)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum GranularityEntry {
    Shared,
    Channelwise,
    /// So many elements a tile.
    Tile(usize),
    /// This fraction of the axis a tile.
    TileFraction(f64),
}

#[derive(Serialize, Deserialize, Debug, Clone, Copy, PartialEq)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum CalibrationEntry {
    Absmax { scale: Option<f64> },
    Minmax { scale: Option<f64> },
    Rms { scale: f64 },
    Fixed { min: f64, max: f64 },
}

#[derive(Serialize, Deserialize, Debug, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct SourceEntry {
    /// The float parameter's path.
    pub path: String,
    pub dtype: String,
    pub shape: Vec<usize>,
    /// Steps from it to the array that is quantized.
    pub steps: Vec<StepEntry>,
}

#[derive(Serialize, Deserialize, Debug, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct StatisticEntry {
    /// The statistics' path.
    pub path: String,
    /// `scale int8 symmetric`, `zero_point int8`, `count`, `sum_of_absmax`, …
    pub part: String,
}

#[derive(Serialize, Deserialize, Debug, PartialEq)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum StepEntry {
    Reshape(Vec<usize>),
    Transpose(Vec<usize>),
    /// Start, limit and stride of every axis.
    Slice(Vec<[usize; 3]>),
}

impl ParameterEntry {
    /// The entry for a parameter; `None` when its value is no array.
    pub fn of(parameter: &Parameter) -> Option<Self> {
        let array = parameter.ty.as_array()?;
        let how = match &parameter.ty {
            Type::QArray(q) => Some(&q.how),
            Type::Array(_) | Type::Tuple(_) | Type::Token | Type::Opaque(_) => None,
        };
        Some(ParameterEntry {
            path: parameter.path.to_string(),
            role: match parameter.role {
                Role::Variable => RoleEntry::Variable,
                Role::Input => RoleEntry::Input,
            },
            dtype: array.dtype.to_string(),
            shape: array.shape.clone(),
            key_path: parameter
                .key_path
                .as_ref()
                .map(|k| KeyPathEntry { argument: k.argument.clone(), keys: k.keys.clone() }),
            quantized: how.map(QuantizedEntry::of),
            made_from: parameter.slot.as_ref().and_then(Slot::as_weight).map(|slot| SourceEntry {
                path: slot.source.to_string(),
                dtype: slot.source_type.dtype.to_string(),
                shape: slot.source_type.shape.clone(),
                steps: slot.prep.iter().map(StepEntry::of).collect(),
            }),
            statistic: parameter
                .slot
                .as_ref()
                .and_then(Slot::as_statistic)
                .map(|slot| StatisticEntry { path: slot.source.to_string(), part: slot.part.to_string() }),
        })
    }

    /// The parameter that the entry describes.
    pub fn parameter(&self) -> Result<Parameter, String> {
        let array = array_type(&self.dtype, &self.shape)?;
        let how = self.quantized.as_ref().map(|q| q.how(self.shape.len())).transpose()?;
        let statistic = self.statistic.as_ref().map(|entry| {
            let part = entry.part.parse().map_err(|reason| format!("`statistic`: {reason}"))?;
            Ok::<_, String>(Slot::Statistic(StatisticSlot { source: Path::new(&entry.path), part }))
        });
        let slot = match (&self.made_from, &how) {
            (Some(_), _) if statistic.is_some() => {
                return Err("has both `made_from` and `statistic`".to_owned());
            }
            (None, _) => statistic.transpose()?,
            (Some(source), Some(how)) => Some(Slot::Weight(WeightSlot {
                source: Path::new(&source.path),
                source_type: array_type(&source.dtype, &source.shape)?,
                prep: source.steps.iter().map(StepEntry::prep).collect(),
                how: how.clone(),
            })),
            (Some(_), None) => return Err("has `made_from` but is not quantized".to_owned()),
        };
        Ok(Parameter {
            path: Path::new(&self.path),
            key_path: self
                .key_path
                .as_ref()
                .map(|k| KeyPath { argument: k.argument.clone(), keys: k.keys.clone() }),
            role: match self.role {
                RoleEntry::Variable => Role::Variable,
                RoleEntry::Input => Role::Input,
            },
            ambiguous: false,
            ty: match how {
                Some(how) => Type::QArray(QArrayType { array, how }),
                None => Type::Array(array),
            },
            slot,
        })
    }
}

fn array_type(dtype: &str, shape: &[usize]) -> Result<ArrayType, String> {
    let dtype: DType = dtype.parse().map_err(|e: qwix_array::ArrayError| e.to_string())?;
    if qwix_array::element_count(shape).and_then(|count| dtype.byte_len(count)).is_none() {
        return Err(format!("shape {shape:?} of {dtype} is too large for this machine"));
    }
    Ok(ArrayType::new(dtype, shape))
}

impl QuantizedEntry {
    fn of(how: &HowToQuantize) -> Self {
        QuantizedEntry {
            qtype: how.qtype.name.to_owned(),
            granularity: how
                .granularity
                .iter()
                .map(|g| match *g {
                    Granularity::Shared => GranularityEntry::Shared,
                    Granularity::Channelwise => GranularityEntry::Channelwise,
                    Granularity::Tiled(Tile::Size(size)) => GranularityEntry::Tile(size),
                    Granularity::Tiled(Tile::Fraction(fraction)) => GranularityEntry::TileFraction(fraction),
                })
                .collect(),
            calibration: match how.calibration {
                Calibration::AbsMax { scale } => CalibrationEntry::Absmax { scale },
                Calibration::MinMax { scale } => CalibrationEntry::Minmax { scale },
                Calibration::Rms { scale } => CalibrationEntry::Rms { scale },
                Calibration::Fixed { min, max } => CalibrationEntry::Fixed { min, max },
            },
        }
    }

    fn how(&self, rank: usize) -> Result<HowToQuantize, String> {
        if self.granularity.len() != rank {
            return Err(format!("granularity has {} entries for {rank} axes", self.granularity.len()));
        }
        Ok(HowToQuantize {
            qtype: QType::by_name(&self.qtype).map_err(|e| e.to_string())?,
            granularity: self
                .granularity
                .iter()
                .map(|g| match *g {
                    GranularityEntry::Shared => Granularity::Shared,
                    GranularityEntry::Channelwise => Granularity::Channelwise,
                    GranularityEntry::Tile(size) => Granularity::Tiled(Tile::Size(size)),
                    GranularityEntry::TileFraction(fraction) => Granularity::Tiled(Tile::Fraction(fraction)),
                })
                .collect(),
            calibration: match self.calibration {
                CalibrationEntry::Absmax { scale } => Calibration::AbsMax { scale },
                CalibrationEntry::Minmax { scale } => Calibration::MinMax { scale },
                CalibrationEntry::Rms { scale } => Calibration::Rms { scale },
                CalibrationEntry::Fixed { min, max } => Calibration::Fixed { min, max },
            },
        })
    }
}

impl StepEntry {
    fn of(prep: &Prep) -> Self {
        match prep {
            Prep::Reshape(shape) => StepEntry::Reshape(shape.clone()),
            Prep::Transpose(permutation) => StepEntry::Transpose(permutation.clone()),
            Prep::Slice(dims) => {
                StepEntry::Slice(dims.iter().map(|d| [d.start, d.limit, d.stride]).collect())
            }
        }
    }

    fn prep(&self) -> Prep {
        match self {
            StepEntry::Reshape(shape) => Prep::Reshape(shape.clone()),
            StepEntry::Transpose(permutation) => Prep::Transpose(permutation.clone()),
            StepEntry::Slice(dims) => Prep::Slice(
                dims.iter().map(|&[start, limit, stride]| SliceDim { start, limit, stride }).collect(),
            ),
        }
    }
}
