//! Types of ops that work element by element.

use qwix_array::DType;

use super::{Reason, arrays, declared_array, same};
use crate::{ArrayType, BinaryOp, Type, UnaryOp};

fn need(dtype: DType, ok: bool, what: &str) -> Result<(), Reason> {
    if ok { Ok(()) } else { Err(format!("takes {what}, found {dtype}")) }
}

pub(super) fn unary(op: UnaryOp, operands: &[&Type]) -> Result<Type, Reason> {
    use UnaryOp::*;
    let [x] = arrays(operands)?;
    let d = x.dtype;
    match op {
        Copy => {}
        Abs | Negate | Sign => need(d, d.is_float() || d.is_int(), "numbers")?,
        Clz | PopulationCount => need(d, d.is_int(), "integers")?,
        Not => need(d, d.is_int() || d == DType::Pred, "integers or pred")?,
        IsFinite => {
            need(d, d.is_float(), "floats")?;
            return Ok(Type::array(DType::Pred, x.shape.clone()));
        }
        Cbrt | Ceil | Cos | Erf | Exp | Expm1 | Floor | Log | Log1p | Logistic | RoundNearestAfz
        | RoundNearestEven | Rsqrt | Sin | Sqrt | Tan | Tanh => need(d, d.is_float(), "floats")?,
    }
    Ok(x.clone().into())
}

pub(super) fn binary(op: BinaryOp, operands: &[&Type]) -> Result<Type, Reason> {
    use BinaryOp::*;
    let [a, b] = arrays(operands)?;
    same("both operands", a, b)?;
    let d = a.dtype;
    match op {
        // On pred, add is `or` and multiply is `and`.
        Add | Multiply | Maximum | Minimum => {}
        Subtract | Divide | Remainder | Power => need(d, d != DType::Pred, "numbers")?,
        And | Or | Xor => need(d, !d.is_float(), "integers or pred")?,
        ShiftLeft | ShiftRightArithmetic | ShiftRightLogical => need(d, d.is_int(), "integers")?,
        Atan2 => need(d, d.is_float(), "floats")?,
    }
    Ok(a.clone().into())
}

pub(super) fn compare(operands: &[&Type]) -> Result<Type, Reason> {
    let [a, b] = arrays(operands)?;
    same("both operands", a, b)?;
    Ok(Type::array(DType::Pred, a.shape.clone()))
}

pub(super) fn select(operands: &[&Type]) -> Result<Type, Reason> {
    let [pred, a, b] = arrays(operands)?;
    same("operands 1 and 2", a, b)?;
    if pred.dtype != DType::Pred || !(pred.shape.is_empty() || pred.shape == a.shape) {
        return Err(format!("operand 0 should be pred of shape {:?} or a scalar, found {pred}", a.shape));
    }
    Ok(a.clone().into())
}

pub(super) fn clamp(operands: &[&Type]) -> Result<Type, Reason> {
    let [low, x, high] = arrays(operands)?;
    for bound in [low, high] {
        if bound.dtype != x.dtype || !(bound.shape.is_empty() || bound.shape == x.shape) {
            return Err(format!("bounds of {x} should be alike or scalars of {}, found {bound}", x.dtype));
        }
    }
    Ok(x.clone().into())
}

pub(super) fn convert(operands: &[&Type], declared: &Type) -> Result<Type, Reason> {
    let [x] = arrays(operands)?;
    Ok(Type::array(declared_array(declared)?.dtype, x.shape.clone()))
}

pub(super) fn bitcast_convert(operands: &[&Type], declared: &Type) -> Result<Type, Reason> {
    let [x] = arrays(operands)?;
    let to = declared_array(declared)?.dtype;
    let (from_bits, to_bits) = (x.dtype.bits(), to.bits());
    if (x.dtype == DType::Pred) != (to == DType::Pred) {
        return Err(format!("pred has no bits to share: {} to {to}", x.dtype));
    }
    let mut shape = x.shape.clone();
    if from_bits > to_bits {
        shape.push(from_bits / to_bits);
    } else if from_bits < to_bits && shape.pop() != Some(to_bits / from_bits) {
        return Err(format!("{x} to {to} needs a last axis of {}", to_bits / from_bits));
    }
    Ok(Type::Array(ArrayType::new(to, shape)))
}

pub(super) fn reduce_precision(operands: &[&Type], exponent: u32, mantissa: u32) -> Result<Type, Reason> {
    let [x] = arrays(operands)?;
    need(x.dtype, x.dtype.is_float(), "floats")?;
    if exponent == 0 || exponent > 11 || mantissa > 52 {
        return Err(format!("{exponent} exponent bits and {mantissa} of mantissa are no float"));
    }
    Ok(x.clone().into())
}
