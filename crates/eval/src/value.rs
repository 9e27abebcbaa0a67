//! Values and the parameters of a model.

use std::collections::BTreeMap;

use qwix_array::Array;
use qwix_graph::{ArrayType, Path, Type};
use qwix_quant::QArray;

/// What a node yields.
#[derive(Clone, PartialEq, Debug)]
pub enum Value {
    /// Plain numbers.
    Array(Array),
    /// Quantized numbers.
    QArray(QArray),
    /// Several values; none for a token.
    Tuple(Vec<Value>),
}

/// The variables of a model, by path: any subtree of them, or all.
pub type Params = BTreeMap<Path, Value>;

impl Value {
    /// Whether the value is of a type: kind, dtypes, shapes, and for quantized arrays the qtype and the shape of scales
    /// and zero points.
    pub fn is_of(&self, ty: &Type) -> bool {
        match (self, ty) {
            (Value::Array(array), Type::Array(ty)) => array.dtype() == ty.dtype && array.shape() == ty.shape,
            (Value::QArray(q), Type::QArray(ty)) => {
                q.shape() == ty.array.shape
                    && q.dtype() == ty.array.dtype
                    && q.qtype() == ty.how.qtype
                    && q.zero_point().is_some() == ty.has_zero_point()
                    && ty.scale_shape().is_ok_and(|shape| {
                        q.scale().shape() == shape && q.zero_point().is_none_or(|z| z.shape() == shape)
                    })
            }
            (Value::Tuple(values), Type::Tuple(types)) => {
                values.len() == types.len() && values.iter().zip(types).all(|(v, t)| v.is_of(t))
            }
            (Value::Tuple(values), Type::Token) => values.is_empty(),
            (Value::Array(_) | Value::QArray(_) | Value::Tuple(_), _) => false,
        }
    }

    /// The value's type in words, for messages: `f32[2,3]`, `int8 of f32[2,3] with scales [1,3]`.
    pub fn describe(&self) -> String {
        match self {
            Value::Array(array) => ArrayType::new(array.dtype(), array.shape()).to_string(),
            Value::QArray(q) => format!(
                "{} of {} with scales {:?}{}",
                q.qtype(),
                ArrayType::new(q.dtype(), q.shape()),
                q.scale().shape(),
                if q.zero_point().is_some() { " and zero points" } else { "" }
            ),
            Value::Tuple(values) => {
                format!("({})", values.iter().map(Value::describe).collect::<Vec<_>>().join(", "))
            }
        }
    }

    /// The bytes that the value takes, scales and zero points included.
    pub fn byte_len(&self) -> usize {
        match self {
            Value::Array(array) => array.bytes().len(),
            Value::QArray(q) => {
                let parts = [Some(q.qvalue()), Some(q.scale()), q.zero_point()];
                parts.into_iter().flatten().map(|part| part.bytes().len()).sum()
            }
            Value::Tuple(values) => values.iter().map(Value::byte_len).sum(),
        }
    }

    /// The arrays of the value in order, tuples flattened; a quantized array counts as one that is not plain.
    pub(crate) fn flatten(self, into: &mut Vec<Array>) -> Result<(), Box<QArray>> {
        match self {
            Value::Array(array) => into.push(array),
            Value::QArray(q) => return Err(Box::new(q)),
            Value::Tuple(values) => {
                for value in values {
                    value.flatten(into)?;
                }
            }
        }
        Ok(())
    }
}

impl From<Array> for Value {
    fn from(array: Array) -> Self {
        Value::Array(array)
    }
}

impl From<QArray> for Value {
    fn from(q: QArray) -> Self {
        Value::QArray(q)
    }
}
