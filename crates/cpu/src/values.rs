//! Small things about values and types that all steps need.

use std::borrow::Cow;

use qwix_array::{Array, DType, Element};
use qwix_eval::{EvalError, Value};
use qwix_quant::QArray;
use qwix_simd::vm::Num;

/// An error of a node whose name the runner fills in.
pub(crate) fn fail(reason: impl Into<String>) -> EvalError {
    EvalError::Node { instruction: String::new(), reason: reason.into() }
}

/// Names the node that an error came from, unless it names one already.
pub(crate) fn named(error: EvalError, node: &str) -> EvalError {
    match error {
        EvalError::Node { instruction, reason } if instruction.is_empty() => {
            EvalError::Node { instruction: node.to_owned(), reason }
        }
        EvalError::Array(e) => EvalError::Node { instruction: node.to_owned(), reason: e.to_string() },
        EvalError::Quant(e) => EvalError::Node { instruction: node.to_owned(), reason: e.to_string() },
        other => other,
    }
}

/// The number type of a dtype that element-wise programs know.
pub(crate) fn num(dtype: DType) -> Option<Num> {
    Some(match dtype {
        DType::Pred => Num::Pred,
        DType::S8 => Num::S8,
        DType::S16 => Num::S16,
        DType::S32 => Num::S32,
        DType::S64 => Num::S64,
        DType::U8 => Num::U8,
        DType::U16 => Num::U16,
        DType::U32 => Num::U32,
        DType::U64 => Num::U64,
        DType::F16 => Num::F16,
        DType::BF16 => Num::BF16,
        DType::F32 => Num::F32,
        DType::F64 => Num::F64,
        DType::S2 | DType::S4 | DType::U4 | DType::F8E4M3FN | DType::F8E5M2 | DType::F4E2M1FN => return None,
    })
}

/// Bytes of an element of a dtype that takes whole bytes.
pub(crate) fn element_size(dtype: DType) -> Option<usize> {
    (!dtype.is_packed()).then(|| dtype.bits() / 8)
}

/// The array of a value that a step knows to be one.
pub(crate) fn array(value: &Value) -> Result<&Array, EvalError> {
    match value {
        Value::Array(array) => Ok(array),
        Value::QArray(_) | Value::Tuple(_) => {
            Err(fail(format!("expected an array, found {}", value.describe())))
        }
    }
}

/// The array of operand `index`.
pub(crate) fn operand(operands: &[Value], index: usize) -> Result<&Array, EvalError> {
    operands.get(index).ok_or_else(|| fail("an operand is missing")).and_then(array)
}

/// The first operand's array, taken out.
pub(crate) fn take(operands: &mut [Value], index: usize) -> Result<Array, EvalError> {
    let value = operands.get_mut(index).ok_or_else(|| fail("an operand is missing"))?;
    match std::mem::replace(value, Value::Tuple(Vec::new())) {
        Value::Array(array) => Ok(array),
        other => Err(fail(format!("expected an array, found {}", other.describe()))),
    }
}

/// The elements of an array as f32: borrowed for f32, widened for bf16 and f16.
pub(crate) fn as_f32(array: &Array) -> Result<Cow<'_, [f32]>, EvalError> {
    match array.dtype() {
        DType::F32 => Ok(array.values::<f32>()?),
        DType::BF16 => {
            let mut out = vec![0.0; array.len()];
            qwix_simd::widen_bf16(&array.values()?, &mut out);
            Ok(Cow::Owned(out))
        }
        DType::F16 => {
            let mut out = vec![0.0; array.len()];
            qwix_simd::widen_f16(&array.values()?, &mut out);
            Ok(Cow::Owned(out))
        }
        _ => Ok(Cow::Owned(array.convert(DType::F32).values::<f32>()?.into_owned())),
    }
}

/// Copies an array whose bytes do not lie as its elements need them, a mapped file's for one; so that kernels can borrow.
pub(crate) fn aligned(value: Value) -> Result<Value, EvalError> {
    Ok(match value {
        Value::Array(array) => Value::Array(aligned_array(array)?),
        Value::QArray(q) => {
            let zero_point = q.zero_point().cloned().map(aligned_array).transpose()?;
            let (qvalue, scale) = (aligned_array(q.qvalue().clone())?, aligned_array(q.scale().clone())?);
            Value::QArray(QArray::new(qvalue, scale, zero_point, q.qtype())?)
        }
        Value::Tuple(values) => Value::Tuple(values.into_iter().map(aligned).collect::<Result<_, _>>()?),
    })
}

fn aligned_array(array: Array) -> Result<Array, EvalError> {
    fn copy<T: Element>(array: &Array) -> Result<Array, EvalError> {
        let values: Vec<T> =
            array.bytes().chunks_exact(size_of::<T>()).map(bytemuck::pod_read_unaligned).collect();
        Ok(Array::from_vec(array.shape(), values)?)
    }
    let size = element_size(array.dtype()).unwrap_or(1);
    if (array.bytes().as_ptr() as usize).is_multiple_of(size) {
        return Ok(array);
    }
    match array.dtype() {
        DType::S16 => copy::<i16>(&array),
        DType::S32 => copy::<i32>(&array),
        DType::S64 => copy::<i64>(&array),
        DType::U16 => copy::<u16>(&array),
        DType::U32 => copy::<u32>(&array),
        DType::U64 => copy::<u64>(&array),
        DType::F16 => copy::<qwix_array::f16>(&array),
        DType::BF16 => copy::<qwix_array::bf16>(&array),
        DType::F32 => copy::<f32>(&array),
        DType::F64 => copy::<f64>(&array),
        DType::Pred
        | DType::S2
        | DType::S4
        | DType::S8
        | DType::U4
        | DType::U8
        | DType::F8E4M3FN
        | DType::F8E5M2
        | DType::F4E2M1FN => Ok(array),
    }
}
