//! Functions of integers and booleans. Arguments are in range for their width; callers wrap the result into it.

use qwix_graph::{BinaryOp, Comparison, UnaryOp};

use crate::number::{wrap_int, wrap_uint};

/// A function of one signed integer of a width.
pub(crate) type Int1 = fn(i64, u32) -> i64;
/// A function of two signed integers of a width.
pub(crate) type Int2 = fn(i64, i64, u32) -> i64;
/// A function of one unsigned integer of a width.
pub(crate) type Uint1 = fn(u64, u32) -> u64;
/// A function of two unsigned integers of a width.
pub(crate) type Uint2 = fn(u64, u64, u32) -> u64;

/// The function of an op on signed integers.
pub(crate) fn unary_int(op: UnaryOp) -> Option<Int1> {
    Some(match op {
        UnaryOp::Abs => |x, _| x.wrapping_abs(),
        UnaryOp::Clz => |x, bits| clz(wrap_uint(bits, x as u64), bits) as i64,
        UnaryOp::Copy => |x, _| x,
        UnaryOp::Negate => |x, _| x.wrapping_neg(),
        UnaryOp::Not => |x, _| !x,
        UnaryOp::PopulationCount => |x, bits| i64::from(wrap_uint(bits, x as u64).count_ones()),
        UnaryOp::Sign => |x, _| x.signum(),
        UnaryOp::Cbrt
        | UnaryOp::Ceil
        | UnaryOp::Cos
        | UnaryOp::Erf
        | UnaryOp::Exp
        | UnaryOp::Expm1
        | UnaryOp::Floor
        | UnaryOp::IsFinite
        | UnaryOp::Log
        | UnaryOp::Log1p
        | UnaryOp::Logistic
        | UnaryOp::RoundNearestAfz
        | UnaryOp::RoundNearestEven
        | UnaryOp::Rsqrt
        | UnaryOp::Sin
        | UnaryOp::Sqrt
        | UnaryOp::Tan
        | UnaryOp::Tanh => return None,
    })
}

/// The function of an op on unsigned integers.
pub(crate) fn unary_uint(op: UnaryOp) -> Option<Uint1> {
    Some(match op {
        UnaryOp::Abs | UnaryOp::Copy => |x, _| x,
        UnaryOp::Clz => |x, bits| clz(x, bits),
        UnaryOp::Negate => |x, _| x.wrapping_neg(),
        UnaryOp::Not => |x, _| !x,
        UnaryOp::PopulationCount => |x, _| u64::from(x.count_ones()),
        UnaryOp::Sign => |x, _| u64::from(x != 0),
        UnaryOp::Cbrt
        | UnaryOp::Ceil
        | UnaryOp::Cos
        | UnaryOp::Erf
        | UnaryOp::Exp
        | UnaryOp::Expm1
        | UnaryOp::Floor
        | UnaryOp::IsFinite
        | UnaryOp::Log
        | UnaryOp::Log1p
        | UnaryOp::Logistic
        | UnaryOp::RoundNearestAfz
        | UnaryOp::RoundNearestEven
        | UnaryOp::Rsqrt
        | UnaryOp::Sin
        | UnaryOp::Sqrt
        | UnaryOp::Tan
        | UnaryOp::Tanh => return None,
    })
}

/// The function of an op on booleans.
pub(crate) fn unary_pred(op: UnaryOp) -> Option<fn(bool) -> bool> {
    match op {
        UnaryOp::Copy => Some(|x| x),
        UnaryOp::Not => Some(|x| !x),
        UnaryOp::Abs
        | UnaryOp::Cbrt
        | UnaryOp::Ceil
        | UnaryOp::Clz
        | UnaryOp::Cos
        | UnaryOp::Erf
        | UnaryOp::Exp
        | UnaryOp::Expm1
        | UnaryOp::Floor
        | UnaryOp::IsFinite
        | UnaryOp::Log
        | UnaryOp::Log1p
        | UnaryOp::Logistic
        | UnaryOp::Negate
        | UnaryOp::PopulationCount
        | UnaryOp::RoundNearestAfz
        | UnaryOp::RoundNearestEven
        | UnaryOp::Rsqrt
        | UnaryOp::Sign
        | UnaryOp::Sin
        | UnaryOp::Sqrt
        | UnaryOp::Tan
        | UnaryOp::Tanh => None,
    }
}

/// The function of an op on two signed integers. Division by zero yields −1, its remainder the dividend; the smallest
/// value over −1 is itself, with remainder 0.
pub(crate) fn binary_int(op: BinaryOp) -> Option<Int2> {
    Some(match op {
        BinaryOp::Add => |x, y, _| x.wrapping_add(y),
        BinaryOp::And => |x, y, _| x & y,
        BinaryOp::Divide => |x, y, _| if y == 0 { -1 } else { x.wrapping_div(y) },
        BinaryOp::Maximum => |x, y, _| x.max(y),
        BinaryOp::Minimum => |x, y, _| x.min(y),
        BinaryOp::Multiply => |x, y, _| x.wrapping_mul(y),
        BinaryOp::Or => |x, y, _| x | y,
        BinaryOp::Power => |x, y, _| match (x, y) {
            (_, 0..) => power(x as u64, y as u64) as i64,
            (1, _) => 1,
            (-1, _) => 1 - 2 * (y & 1),
            (_, _) => 0,
        },
        BinaryOp::Remainder => |x, y, _| if y == 0 { x } else { x.wrapping_rem(y) },
        BinaryOp::ShiftLeft => |x, y, bits| shift_left(x as u64, wrap_uint(bits, y as u64), bits) as i64,
        BinaryOp::ShiftRightArithmetic => |x, y, bits| shift_right(x, wrap_uint(bits, y as u64), bits),
        BinaryOp::ShiftRightLogical => |x, y, bits| {
            shift_right_logical(wrap_uint(bits, x as u64), wrap_uint(bits, y as u64), bits) as i64
        },
        BinaryOp::Subtract => |x, y, _| x.wrapping_sub(y),
        BinaryOp::Xor => |x, y, _| x ^ y,
        BinaryOp::Atan2 => return None,
    })
}

/// The function of an op on two unsigned integers. Division by zero yields all ones, its remainder the dividend.
pub(crate) fn binary_uint(op: BinaryOp) -> Option<Uint2> {
    Some(match op {
        BinaryOp::Add => |x, y, _| x.wrapping_add(y),
        BinaryOp::And => |x, y, _| x & y,
        BinaryOp::Divide => |x, y, _| x.checked_div(y).unwrap_or(u64::MAX),
        BinaryOp::Maximum => |x, y, _| x.max(y),
        BinaryOp::Minimum => |x, y, _| x.min(y),
        BinaryOp::Multiply => |x, y, _| x.wrapping_mul(y),
        BinaryOp::Or => |x, y, _| x | y,
        BinaryOp::Power => |x, y, _| power(x, y),
        BinaryOp::Remainder => |x, y, _| x.checked_rem(y).unwrap_or(x),
        BinaryOp::ShiftLeft => shift_left,
        BinaryOp::ShiftRightArithmetic => |x, y, bits| shift_right(wrap_int(bits, x as i64), y, bits) as u64,
        BinaryOp::ShiftRightLogical => shift_right_logical,
        BinaryOp::Subtract => |x, y, _| x.wrapping_sub(y),
        BinaryOp::Xor => |x, y, _| x ^ y,
        BinaryOp::Atan2 => return None,
    })
}

/// The function of an op on two booleans; a sum is "or", a product "and".
pub(crate) fn binary_pred(op: BinaryOp) -> Option<fn(bool, bool) -> bool> {
    Some(match op {
        BinaryOp::And | BinaryOp::Minimum | BinaryOp::Multiply => |x, y| x & y,
        BinaryOp::Or | BinaryOp::Maximum | BinaryOp::Add => |x, y| x | y,
        BinaryOp::Xor => |x, y| x ^ y,
        BinaryOp::Atan2
        | BinaryOp::Divide
        | BinaryOp::Power
        | BinaryOp::Remainder
        | BinaryOp::ShiftLeft
        | BinaryOp::ShiftRightArithmetic
        | BinaryOp::ShiftRightLogical
        | BinaryOp::Subtract => return None,
    })
}

/// Whether a comparison of ordered values holds.
pub(crate) fn compare<T: Ord>(comparison: Comparison) -> fn(&T, &T) -> bool {
    match comparison {
        Comparison::Eq => |x, y| x == y,
        Comparison::Ne => |x, y| x != y,
        Comparison::Lt => |x, y| x < y,
        Comparison::Le => |x, y| x <= y,
        Comparison::Gt => |x, y| x > y,
        Comparison::Ge => |x, y| x >= y,
    }
}

fn clz(x: u64, bits: u32) -> u64 {
    u64::from(x.leading_zeros() - (64 - bits))
}

/// By squaring, modulo 2^64 and therefore modulo any smaller power of two.
fn power(mut base: u64, mut exponent: u64) -> u64 {
    let mut result = 1u64;
    while exponent != 0 {
        if exponent & 1 == 1 {
            result = result.wrapping_mul(base);
        }
        base = base.wrapping_mul(base);
        exponent >>= 1;
    }
    result
}

/// Amounts of at least the width leave nothing.
fn shift_left(x: u64, amount: u64, bits: u32) -> u64 {
    if amount >= u64::from(bits) { 0 } else { x << amount }
}

fn shift_right_logical(x: u64, amount: u64, bits: u32) -> u64 {
    if amount >= u64::from(bits) { 0 } else { x >> amount }
}

/// Amounts of at least the width leave the sign.
fn shift_right(x: i64, amount: u64, bits: u32) -> i64 {
    x >> amount.min(u64::from(bits) - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edges_of_integer_arithmetic() {
        use BinaryOp::*;
        let min = i64::from(i32::MIN);
        // op, x, y, XLA's answer for s32
        let rows = [
            (Divide, 5, 0, -1),
            (Divide, 0, 0, -1),
            (Divide, -7, 2, -3),
            (Divide, min, -1, min),
            (Remainder, 5, 0, 5),
            (Remainder, -7, 2, -1),
            (Remainder, min, -1, 0),
            (ShiftLeft, 1, 32, 0),
            (ShiftLeft, 1, -1, 0),
            (ShiftLeft, 3, 31, min),
            (ShiftRightArithmetic, -8, 40, -1),
            (ShiftRightArithmetic, -8, -1, -1),
            (ShiftRightArithmetic, -8, 1, -4),
            (ShiftRightLogical, -8, 32, 0),
            (ShiftRightLogical, -8, 1, 0x7fff_fffc),
            (Power, -2, 31, min),
            (Power, 3, 0, 1),
            (Power, -1, -3, -1),
            (Power, 1, -3, 1),
            (Power, 2, -3, 0),
        ];
        let wrong: Vec<_> = rows
            .into_iter()
            .filter_map(|(op, x, y, want)| {
                let found = wrap_int(32, binary_int(op).unwrap()(x, y, 32));
                (found != want).then_some((op, x, y, found, want))
            })
            .collect();
        assert!(wrong.is_empty(), "{wrong:?}");
        assert_eq!(wrap_int(8, unary_int(UnaryOp::Abs).unwrap()(-128, 8)), -128);
        assert_eq!(unary_int(UnaryOp::Clz).unwrap()(1, 4), 3);
        assert_eq!(unary_int(UnaryOp::PopulationCount).unwrap()(-1, 4), 4);
        assert_eq!(unary_uint(UnaryOp::Clz).unwrap()(0, 16), 16);
    }
}
