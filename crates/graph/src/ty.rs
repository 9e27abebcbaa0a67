//! Types of values.

use std::fmt;

use qwix_array::DType;
use qwix_quant::HowToQuantize;

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
            Type::Tuple(_) | Type::Token => None,
        }
    }
}
