//! Ops that work element by element, on arrays and on single numbers.

use qwix_array::{Array, DType};
use qwix_graph::{BinaryOp, CompareOrder, Comparison, UnaryOp};

use crate::EvalError;
use crate::cells::Cells;
use crate::lanes::Lanes;
use crate::number::{Scalar, bits, round_float, wrap_int, wrap_uint};
use crate::ops::{float, int};

fn undefined(name: &str, dtype: DType) -> EvalError {
    EvalError::reason(format!("{name} is not defined for {dtype}"))
}

fn same(what: &str, x: &Array, y: &Array) -> Result<(), EvalError> {
    if x.dtype() == y.dtype() && x.shape() == y.shape() {
        Ok(())
    } else {
        Err(EvalError::reason(format!("{what} takes operands of one type, found {x:?} and {y:?}")))
    }
}

/// One operand.
pub(crate) fn unary(op: UnaryOp, x: &Array) -> Result<Array, EvalError> {
    let dtype = x.dtype();
    if op == UnaryOp::Copy {
        return Ok(x.clone());
    }
    let none = || undefined(op.name(), dtype);
    let lanes = Lanes::read(x)?;
    if op == UnaryOp::IsFinite {
        let Lanes::Float(v) = lanes else { return Err(none()) };
        let finite = Lanes::Pred(v.into_iter().map(f64::is_finite).collect());
        return Ok(finite.write(DType::Pred, x.shape())?);
    }
    let width = bits(dtype);
    let result = match lanes {
        Lanes::Float(v) => {
            let f = float::unary(op).ok_or_else(none)?;
            Lanes::Float(v.into_iter().map(f).collect())
        }
        Lanes::Int(v) => {
            let f = int::unary_int(op).ok_or_else(none)?;
            Lanes::Int(v.into_iter().map(|x| f(x, width)).collect())
        }
        Lanes::Uint(v) => {
            let f = int::unary_uint(op).ok_or_else(none)?;
            Lanes::Uint(v.into_iter().map(|x| f(x, width)).collect())
        }
        Lanes::Pred(v) => {
            let f = int::unary_pred(op).ok_or_else(none)?;
            Lanes::Pred(v.into_iter().map(f).collect())
        }
    };
    Ok(result.write(dtype, x.shape())?)
}

/// Two operands of one type.
pub(crate) fn binary(op: BinaryOp, x: &Array, y: &Array) -> Result<Array, EvalError> {
    same(op.name(), x, y)?;
    Ok(binary_lanes(op, x.dtype(), Lanes::read(x)?, Lanes::read(y)?)?.write(x.dtype(), x.shape())?)
}

fn binary_lanes(op: BinaryOp, dtype: DType, x: Lanes, y: Lanes) -> Result<Lanes, EvalError> {
    let none = || undefined(op.name(), dtype);
    let width = bits(dtype);
    Ok(match (x, y) {
        (Lanes::Float(x), Lanes::Float(y)) => {
            let f = float::binary(op).ok_or_else(none)?;
            Lanes::Float(x.into_iter().zip(y).map(|(x, y)| f(x, y)).collect())
        }
        (Lanes::Int(x), Lanes::Int(y)) => {
            let f = int::binary_int(op).ok_or_else(none)?;
            Lanes::Int(x.into_iter().zip(y).map(|(x, y)| f(x, y, width)).collect())
        }
        (Lanes::Uint(x), Lanes::Uint(y)) => {
            let f = int::binary_uint(op).ok_or_else(none)?;
            Lanes::Uint(x.into_iter().zip(y).map(|(x, y)| f(x, y, width)).collect())
        }
        (Lanes::Pred(x), Lanes::Pred(y)) => {
            let f = int::binary_pred(op).ok_or_else(none)?;
            Lanes::Pred(x.into_iter().zip(y).map(|(x, y)| f(x, y)).collect())
        }
        (Lanes::Float(_) | Lanes::Int(_) | Lanes::Uint(_) | Lanes::Pred(_), _) => return Err(none()),
    })
}

/// Two operands of one type, to pred.
pub(crate) fn compare(
    comparison: Comparison,
    order: CompareOrder,
    x: &Array,
    y: &Array,
) -> Result<Array, EvalError> {
    fn pairs<T: Ord>(x: Vec<T>, y: Vec<T>, f: fn(&T, &T) -> bool) -> Vec<bool> {
        x.iter().zip(&y).map(|(x, y)| f(x, y)).collect()
    }
    same("compare", x, y)?;
    let result = match (Lanes::read(x)?, Lanes::read(y)?) {
        (Lanes::Float(x), Lanes::Float(y)) => {
            let f = float::compare(comparison, order);
            x.into_iter().zip(y).map(|(x, y)| f(x, y)).collect()
        }
        (Lanes::Int(x), Lanes::Int(y)) => pairs(x, y, int::compare(comparison)),
        (Lanes::Uint(x), Lanes::Uint(y)) => pairs(x, y, int::compare(comparison)),
        (Lanes::Pred(x), Lanes::Pred(y)) => pairs(x, y, int::compare(comparison)),
        (Lanes::Float(_) | Lanes::Int(_) | Lanes::Uint(_) | Lanes::Pred(_), _) => {
            return Err(undefined("compare", x.dtype()));
        }
    };
    Ok(Lanes::Pred(result).write(DType::Pred, x.shape())?)
}

/// `on_true` where the predicate (one for all, or one an element) holds, else `on_false`.
pub(crate) fn select(pred: &Array, on_true: &Array, on_false: &Array) -> Result<Array, EvalError> {
    same("select", on_true, on_false)?;
    let Lanes::Pred(choose) = Lanes::read(pred)? else {
        return Err(EvalError::reason(format!("select takes a predicate, found {pred:?}")));
    };
    if pred.rank() == 0 {
        return Ok(if choose.first() == Some(&true) { on_true.clone() } else { on_false.clone() });
    }
    if pred.shape() != on_true.shape() {
        return Err(EvalError::reason(format!("select with {pred:?} between values {on_true:?}")));
    }
    let (yes, no) = (Cells::read(on_true)?, Cells::read(on_false)?);
    let mut bytes = Vec::with_capacity(no.bytes.len());
    let pairs = yes.bytes.chunks_exact(yes.width).zip(no.bytes.chunks_exact(no.width));
    for ((yes, no), choose) in pairs.zip(choose) {
        bytes.extend_from_slice(if choose { yes } else { no });
    }
    let cells = Cells { width: yes.width, bytes: bytes.into() };
    Ok(cells.write(on_true.dtype(), on_true.shape())?)
}

/// min(max(low, x), high); the bounds are one for all, or one an element.
pub(crate) fn clamp(low: &Array, x: &Array, high: &Array) -> Result<Array, EvalError> {
    let axes: [usize; 0] = [];
    let spread = |bound: &Array| -> Result<Array, EvalError> {
        Ok(if bound.rank() == 0 { bound.broadcast_in_dim(x.shape(), &axes)? } else { bound.clone() })
    };
    binary(BinaryOp::Minimum, &binary(BinaryOp::Maximum, &spread(low)?, x)?, &spread(high)?)
}

/// The same bits as another dtype and shape.
pub(crate) fn bitcast(x: &Array, dtype: DType, shape: &[usize]) -> Result<Array, EvalError> {
    let array = Array::from_bytes(dtype, shape, x.bytes().to_vec())?;
    // Trailing bits of a packed array do not count.
    if x.len().checked_mul(x.dtype().bits()) != array.len().checked_mul(dtype.bits()) {
        return Err(EvalError::reason(format!("bitcast-convert of {x:?} into {array:?}")));
    }
    Ok(array)
}

/// Exponent and mantissa bits of a float dtype.
fn fields(dtype: DType) -> Option<(u32, u32)> {
    match dtype {
        DType::F16 => Some((5, 10)),
        DType::BF16 => Some((8, 7)),
        DType::F32 => Some((8, 23)),
        DType::F64 => Some((11, 52)),
        DType::F8E4M3FN => Some((4, 3)),
        DType::F8E5M2 => Some((5, 2)),
        DType::F4E2M1FN => Some((2, 1)),
        DType::Pred
        | DType::S2
        | DType::S4
        | DType::S8
        | DType::S16
        | DType::S32
        | DType::S64
        | DType::U4
        | DType::U8
        | DType::U16
        | DType::U32
        | DType::U64 => None,
    }
}

/// Rounds to fewer bits of exponent and mantissa, keeping the dtype.
pub(crate) fn reduce_precision(x: &Array, exponent: u32, mantissa: u32) -> Result<Array, EvalError> {
    let own = fields(x.dtype()).ok_or_else(|| undefined("reduce-precision", x.dtype()))?;
    if exponent == 0 {
        return Err(EvalError::reason("reduce-precision needs at least one bit of exponent, found 0"));
    }
    let Lanes::Float(v) = Lanes::read(x)? else { return Err(undefined("reduce-precision", x.dtype())) };
    let v = v.into_iter().map(|x| float::reduce_precision(x, exponent, mantissa, own)).collect();
    Ok(Lanes::Float(v).write(x.dtype(), x.shape())?)
}

/// [`unary`] of one number.
pub(crate) fn unary_scalar(op: UnaryOp, dtype: DType, x: Scalar) -> Option<Scalar> {
    let width = bits(dtype);
    Some(match (op, x) {
        (UnaryOp::Copy, x) => x,
        (UnaryOp::IsFinite, Scalar::Float(x)) => Scalar::Pred(x.is_finite()),
        (_, Scalar::Float(x)) => Scalar::Float(round_float(dtype, float::unary(op)?(x))),
        (_, Scalar::Int(x)) => Scalar::Int(wrap_int(width, int::unary_int(op)?(x, width))),
        (_, Scalar::Uint(x)) => Scalar::Uint(wrap_uint(width, int::unary_uint(op)?(x, width))),
        (_, Scalar::Pred(x)) => Scalar::Pred(int::unary_pred(op)?(x)),
    })
}

/// [`binary`] of two numbers.
pub(crate) fn binary_scalar(op: BinaryOp, dtype: DType, x: Scalar, y: Scalar) -> Option<Scalar> {
    let width = bits(dtype);
    Some(match (x, y) {
        (Scalar::Float(x), Scalar::Float(y)) => Scalar::Float(round_float(dtype, float::binary(op)?(x, y))),
        (Scalar::Int(x), Scalar::Int(y)) => Scalar::Int(wrap_int(width, int::binary_int(op)?(x, y, width))),
        (Scalar::Uint(x), Scalar::Uint(y)) => {
            Scalar::Uint(wrap_uint(width, int::binary_uint(op)?(x, y, width)))
        }
        (Scalar::Pred(x), Scalar::Pred(y)) => Scalar::Pred(int::binary_pred(op)?(x, y)),
        (Scalar::Float(_) | Scalar::Int(_) | Scalar::Uint(_) | Scalar::Pred(_), _) => return None,
    })
}

/// [`compare`] of two numbers.
pub(crate) fn compare_scalar(
    comparison: Comparison,
    order: CompareOrder,
    x: Scalar,
    y: Scalar,
) -> Option<Scalar> {
    Some(Scalar::Pred(match (x, y) {
        (Scalar::Float(x), Scalar::Float(y)) => float::compare(comparison, order)(x, y),
        (Scalar::Int(x), Scalar::Int(y)) => int::compare(comparison)(&x, &y),
        (Scalar::Uint(x), Scalar::Uint(y)) => int::compare(comparison)(&x, &y),
        (Scalar::Pred(x), Scalar::Pred(y)) => int::compare(comparison)(&x, &y),
        (Scalar::Float(_) | Scalar::Int(_) | Scalar::Uint(_) | Scalar::Pred(_), _) => return None,
    }))
}

/// [`reduce_precision`] of one number.
pub(crate) fn reduce_precision_scalar(
    dtype: DType,
    x: Scalar,
    exponent: u32,
    mantissa: u32,
) -> Option<Scalar> {
    let Scalar::Float(x) = x else { return None };
    let x = float::reduce_precision(x, exponent.max(1), mantissa, fields(dtype)?);
    Some(Scalar::Float(round_float(dtype, x)))
}
