//! Types of values.

use std::fmt;

use qwix_array::{DType, element_count};
use qwix_quant::{Granularity, HowToQuantize, QuantError, Tile};

/// An array's dtype and shape.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct ArrayType {
    /// The element type.
    pub dtype: DType,
    /// The sizes of the axes.
    pub shape: Vec<usize>,
}

impl ArrayType {
    /// A type from its two parts.
    pub fn new(dtype: DType, shape: impl Into<Vec<usize>>) -> Self {
        ArrayType { dtype, shape: shape.into() }
    }

    /// The bytes of an array of this type, packed; `None` when they cannot be counted on this machine.
    pub fn byte_len(&self) -> Option<usize> {
        self.dtype.byte_len(element_count(&self.shape)?)
    }
}

impl fmt::Display for ArrayType {
    /// HLO's way: `f32[2,3]`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}[", self.dtype)?;
        for (i, dim) in self.shape.iter().enumerate() {
            write!(f, "{}{dim}", if i == 0 { "" } else { "," })?;
        }
        write!(f, "]")
    }
}

/// A quantized array's type: what it stands for, and how it is made.
#[derive(Clone, PartialEq, Debug)]
pub struct QArrayType {
    /// dtype and shape of the array that it stands for; the scale has this dtype.
    pub array: ArrayType,
    /// The qtype, the granularity of the scales, and whether there is a zero point.
    pub how: HowToQuantize,
}

impl QArrayType {
    /// The shape of the scales (and of the zero points).
    ///
    /// # Errors
    /// When the granularity is not one entry an axis, or a tile does not divide its axis.
    pub fn scale_shape(&self) -> Result<Vec<usize>, QuantError> {
        self.how.scale_shape(&self.array.shape)
    }

    /// Whether there is a zero point.
    pub fn has_zero_point(&self) -> bool {
        self.how.calibration.is_asymmetric()
    }

    /// The granularity of each axis and the calibration: `{channelwise,_} absmax`.
    pub fn how_text(&self) -> String {
        let axes: Vec<String> = self
            .how
            .granularity
            .iter()
            .map(|granularity| match granularity {
                Granularity::Shared => "_".to_owned(),
                Granularity::Channelwise => "channelwise".to_owned(),
                Granularity::Tiled(Tile::Size(size)) => format!("tile {size}"),
                Granularity::Tiled(Tile::Fraction(fraction)) => format!("tile {fraction:?}x"),
            })
            .collect();
        format!("{{{}}} {}", axes.join(","), self.how.calibration)
    }
}

/// The type of a node's value.
#[derive(Clone, PartialEq, Debug)]
pub enum Type {
    /// Plain numbers.
    Array(ArrayType),
    /// Quantized numbers.
    QArray(QArrayType),
    /// Several values.
    Tuple(Vec<Type>),
    /// HLO's token, which orders side effects and has no value.
    Token,
    /// A type without a meaning here, as HLO writes it (`c64[2]`): it can be looked at, not computed with.
    Opaque(String),
}

impl Type {
    /// An array type.
    pub fn array(dtype: DType, shape: impl Into<Vec<usize>>) -> Self {
        Type::Array(ArrayType::new(dtype, shape))
    }

    /// The array type, or for a quantized array that of the array it stands for.
    pub fn as_array(&self) -> Option<&ArrayType> {
        match self {
            Type::Array(array) => Some(array),
            Type::QArray(q) => Some(&q.array),
            Type::Tuple(_) | Type::Token | Type::Opaque(_) => None,
        }
    }
}

impl fmt::Display for QArrayType {
    /// `q[int8 f32[8,16] {channelwise,_} absmax]`: the qtype, the array that it stands for, a granularity an axis and
    /// the calibration.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "q[{} {} {}]", self.how.qtype, self.array, self.how_text())
    }
}

impl fmt::Display for Type {
    /// HLO's way, quantized arrays in ours: `(f32[2,3], s32[])`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Type::Array(array) => write!(f, "{array}"),
            Type::QArray(q) => write!(f, "{q}"),
            Type::Tuple(elements) => {
                f.write_str("(")?;
                for (i, element) in elements.iter().enumerate() {
                    write!(f, "{}{element}", if i == 0 { "" } else { ", " })?;
                }
                f.write_str(")")
            }
            Type::Token => f.write_str("token[]"),
            Type::Opaque(text) => f.write_str(text),
        }
    }
}

impl From<ArrayType> for Type {
    fn from(array: ArrayType) -> Self {
        Type::Array(array)
    }
}

impl From<QArrayType> for Type {
    fn from(q: QArrayType) -> Self {
        Type::QArray(q)
    }
}
