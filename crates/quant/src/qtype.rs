//! The table of quantized types.

use std::fmt;

use qwix_array::DType;

use crate::QuantError;

/// How a stored value stands for a number.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Codec {
    /// The integer itself, clipped to these bounds.
    Int {
        /// Smallest value.
        min: i32,
        /// Largest value.
        max: i32,
    },
    /// The float itself.
    Float,
    /// An index into these ascending values.
    Codebook(&'static [f32]),
}

/// What happens to a scale before it is used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ScaleRounding {
    /// Nothing.
    None,
    /// Rounded up to a power of two.
    PowerOfTwo,
    /// Rounded to the nearest e4m3fn value.
    E4M3,
}

/// A quantized type: a row of data that encoders, decoders, lowering and kernels read.
#[derive(PartialEq, Debug)]
pub struct QType {
    /// The name in rules.
    pub name: &'static str,
    /// What is stored.
    pub storage: DType,
    /// What the stored value means.
    pub codec: Codec,
    /// The range of symmetric quantization is [−bound, bound].
    pub symmetric_bound: f64,
    /// The range of asymmetric quantization, for the types that have it.
    pub asymmetric_bounds: Option<(f64, f64)>,
    /// The only tile size that the format allows.
    pub tile: Option<usize>,
    /// How scales are rounded.
    pub scale: ScaleRounding,
}

impl QType {
    /// Whether products may be computed on stored values and scaled afterwards; not so for codebooks.
    pub fn is_uniform(&self) -> bool {
        !matches!(self.codec, Codec::Codebook(_))
    }
}

impl fmt::Display for QType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name)
    }
}

const fn int(name: &'static str, storage: DType, bits: u32, bound: f64, asymmetric: bool) -> QType {
    let min = -(1i32 << (bits - 1));
    let max = (1i32 << (bits - 1)) - 1;
    QType {
        name,
        storage,
        codec: Codec::Int { min, max },
        symmetric_bound: bound,
        asymmetric_bounds: if asymmetric { Some((min as f64, max as f64)) } else { None },
        tile: None,
        scale: ScaleRounding::None,
    }
}

const fn float(name: &'static str, storage: DType, bound: f64) -> QType {
    QType {
        name,
        storage,
        codec: Codec::Float,
        symmetric_bound: bound,
        asymmetric_bounds: None,
        tile: None,
        scale: ScaleRounding::None,
    }
}

const fn block(name: &'static str, storage: DType, bound: f64, tile: usize, scale: ScaleRounding) -> QType {
    QType { tile: Some(tile), scale, ..float(name, storage, bound) }
}

/// QLoRA's NormalFloat values, appendix E of arXiv:2305.14314.
const NF4: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

static QTYPES: [QType; 16] = [
    int("int2", DType::S4, 2, 1.5, false),
    int("int3", DType::S4, 3, 3.5, false),
    int("int4", DType::S4, 4, 7.5, true),
    int("int5", DType::S8, 5, 15.5, false),
    int("int6", DType::S8, 6, 31.5, false),
    int("int7", DType::S8, 7, 63.5, false),
    int("int8", DType::S8, 8, 127.5, true),
    int("int16", DType::S16, 16, 32768.0, true),
    QType { codec: Codec::Codebook(&NF4), ..float("nf4", DType::U4, 1.0) },
    float("float8_e4m3fn", DType::F8E4M3FN, 448.0),
    float("float8_e5m2", DType::F8E5M2, 57344.0),
    float("float4_e2m1fn", DType::F4E2M1FN, 6.0),
    block("mxfp8", DType::F8E4M3FN, 448.0, 32, ScaleRounding::PowerOfTwo),
    block("mxfp8_16", DType::F8E4M3FN, 448.0, 16, ScaleRounding::PowerOfTwo),
    block("mxfp4", DType::F4E2M1FN, 6.0, 32, ScaleRounding::PowerOfTwo),
    block("nvfp4", DType::F4E2M1FN, 6.0, 16, ScaleRounding::E4M3),
];

/// Other names for the same types.
const ALIASES: [(&str, &str); 6] = [
    ("fp8", "float8_e4m3fn"),
    ("e4m3fn", "float8_e4m3fn"),
    ("e5m2", "float8_e5m2"),
    ("fp4", "float4_e2m1fn"),
    ("e2m1fn", "float4_e2m1fn"),
    ("s8", "int8"),
];

impl QType {
    /// Every qtype there is.
    pub fn all() -> &'static [QType] {
        &QTYPES
    }

    /// The qtype that a rule names.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn by_name(name: &str) -> Result<&'static QType, QuantError> {
        let canonical = ALIASES.iter().find(|a| a.0 == name).map_or(name, |a| a.1);
        QTYPES.iter().find(|q| q.name == canonical).ok_or_else(|| QuantError::UnknownQType {
            name: name.to_owned(),
            known: QTYPES.iter().map(|q| q.name).collect::<Vec<_>>().join(", "),
        })
    }
}
