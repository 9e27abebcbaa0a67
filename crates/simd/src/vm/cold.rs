//! Every instruction in every type, element by element.

use std::cmp::Ordering;

use bytemuck::Pod;

use super::{Binary, Compare, Lane, Num, Unary, lanes, lanes_mut};
use crate::math;

fn map<A: Pod, R: Pod>(a: &[u8], out: &mut [u64], count: usize, f: impl Fn(A) -> R) {
    for (out, &a) in lanes_mut::<R>(out, count).iter_mut().zip(lanes::<A>(a, count)) {
        *out = f(a);
    }
}

fn zip<A: Pod, R: Pod>(a: &[u8], b: &[u8], out: &mut [u64], count: usize, f: impl Fn(A, A) -> R) {
    let (a, b) = (lanes::<A>(a, count), lanes::<A>(b, count));
    for ((out, &a), &b) in lanes_mut::<R>(out, count).iter_mut().zip(a).zip(b) {
        *out = f(a, b);
    }
}

/// Away from the vector code, so that it is compiled once.
#[inline(never)]
pub(super) fn unary(op: Unary, num: Num, a: &[u8], out: &mut [u64], count: usize) {
    match num.lane() {
        Lane::F32 if op == Unary::IsFinite => map(a, out, count, |v: f32| v.is_finite() as u8),
        Lane::F64 if op == Unary::IsFinite => map(a, out, count, |v: f64| v.is_finite() as u8),
        Lane::F32 => map(a, out, count, |v: f32| unary_f32(op, v)),
        Lane::F64 => map(a, out, count, |v: f64| unary_f64(op, v)),
        Lane::S32 => map(a, out, count, |v: i32| unary_int(op, num, v as i64) as i32),
        Lane::U32 => map(a, out, count, |v: u32| unary_int(op, num, v as i64) as u32),
        Lane::S64 => map(a, out, count, |v: i64| unary_int(op, num, v)),
        Lane::U64 => map(a, out, count, |v: u64| unary_int(op, num, v as i64) as u64),
        Lane::Mask => match op {
            Unary::Not => map(a, out, count, |v: u8| v ^ 1),
            Unary::IsFinite => map(a, out, count, |_: u8| 1u8),
            _ => map(a, out, count, |v: u8| v),
        },
    }
}

fn unary_f32(op: Unary, v: f32) -> f32 {
    match op {
        Unary::Abs => v.abs(),
        Unary::Cbrt => v.cbrt(),
        Unary::Ceil => v.ceil(),
        Unary::Cos => v.cos(),
        Unary::Erf => math::erf(v),
        Unary::Exp => math::exp(v),
        Unary::Expm1 => v.exp_m1(),
        Unary::Floor => v.floor(),
        Unary::Log => math::ln(v),
        Unary::Log1p => v.ln_1p(),
        Unary::Logistic => math::logistic(v),
        Unary::Negate => -v,
        Unary::RoundNearestAfz => v.round(),
        Unary::RoundNearestEven => v.round_ties_even(),
        Unary::Rsqrt => 1.0 / v.sqrt(),
        Unary::Sign => {
            if v == 0.0 || v.is_nan() {
                v
            } else {
                v.signum()
            }
        }
        Unary::Sin => v.sin(),
        Unary::Sqrt => v.sqrt(),
        Unary::Tan => v.tan(),
        Unary::Tanh => math::tanh(v),
        // Not of floats; the planner never asks.
        Unary::Clz | Unary::Not | Unary::PopulationCount | Unary::IsFinite => v,
    }
}

fn unary_f64(op: Unary, v: f64) -> f64 {
    match op {
        Unary::Abs => v.abs(),
        Unary::Cbrt => v.cbrt(),
        Unary::Ceil => v.ceil(),
        Unary::Cos => v.cos(),
        Unary::Erf => libm::erf(v),
        Unary::Exp => v.exp(),
        Unary::Expm1 => v.exp_m1(),
        Unary::Floor => v.floor(),
        Unary::Log => v.ln(),
        Unary::Log1p => v.ln_1p(),
        Unary::Logistic => 1.0 / (1.0 + (-v).exp()),
        Unary::Negate => -v,
        Unary::RoundNearestAfz => v.round(),
        Unary::RoundNearestEven => v.round_ties_even(),
        Unary::Rsqrt => 1.0 / v.sqrt(),
        Unary::Sign => {
            if v == 0.0 || v.is_nan() {
                v
            } else {
                v.signum()
            }
        }
        Unary::Sin => v.sin(),
        Unary::Sqrt => v.sqrt(),
        Unary::Tan => v.tan(),
        Unary::Tanh => v.tanh(),
        // Not of floats; the planner never asks.
        Unary::Clz | Unary::Not | Unary::PopulationCount | Unary::IsFinite => v,
    }
}

/// The low bits of an integer, as many as its type has.
fn bits(num: Num, v: i64) -> u64 {
    let width = num.size() as u32 * 8;
    v as u64 & (u64::MAX >> (64 - width))
}

fn unary_int(op: Unary, num: Num, v: i64) -> i64 {
    let signed = matches!(num.lane(), Lane::S32 | Lane::S64);
    match op {
        Unary::Abs if signed => v.wrapping_abs(),
        Unary::Negate => v.wrapping_neg(),
        Unary::Not => !v,
        Unary::Sign => {
            if signed {
                v.signum()
            } else {
                (v != 0) as i64
            }
        }
        Unary::PopulationCount => bits(num, v).count_ones() as i64,
        Unary::Clz => (bits(num, v).leading_zeros() - (64 - num.size() as u32 * 8)) as i64,
        // Rounding leaves integers alone, and the planner asks for no other function of them.
        _ => v,
    }
}

/// Away from the vector code, so that it is compiled once.
#[inline(never)]
pub(super) fn binary(op: Binary, num: Num, a: &[u8], b: &[u8], out: &mut [u64], count: usize) {
    match num.lane() {
        Lane::F32 => zip(a, b, out, count, |a: f32, b: f32| binary_f32(op, a, b)),
        Lane::F64 => zip(a, b, out, count, |a: f64, b: f64| binary_f64(op, a, b)),
        Lane::S32 => zip(a, b, out, count, |a: i32, b: i32| signed(op, num, a as i64, b as i64) as i32),
        Lane::S64 => zip(a, b, out, count, |a: i64, b: i64| signed(op, num, a, b)),
        Lane::U32 => zip(a, b, out, count, |a: u32, b: u32| unsigned(op, num, a as u64, b as u64) as u32),
        Lane::U64 => zip(a, b, out, count, |a: u64, b: u64| unsigned(op, num, a, b)),
        // The vector code has what preds have.
        Lane::Mask => zip(a, b, out, count, |a: u8, _: u8| a),
    }
}

fn binary_f32(op: Binary, a: f32, b: f32) -> f32 {
    match op {
        Binary::Add => a + b,
        Binary::Subtract => a - b,
        Binary::Multiply => a * b,
        Binary::Divide => a / b,
        Binary::Maximum => {
            if a > b || a.is_nan() {
                a
            } else {
                b
            }
        }
        Binary::Minimum => {
            if a < b || a.is_nan() {
                a
            } else {
                b
            }
        }
        Binary::Power => a.powf(b),
        Binary::Remainder => a % b,
        Binary::Atan2 => a.atan2(b),
        // Not of floats; the planner never asks.
        Binary::And
        | Binary::Or
        | Binary::Xor
        | Binary::ShiftLeft
        | Binary::ShiftRightArithmetic
        | Binary::ShiftRightLogical => a,
    }
}

fn binary_f64(op: Binary, a: f64, b: f64) -> f64 {
    match op {
        Binary::Add => a + b,
        Binary::Subtract => a - b,
        Binary::Multiply => a * b,
        Binary::Divide => a / b,
        Binary::Maximum => {
            if a > b || a.is_nan() {
                a
            } else {
                b
            }
        }
        Binary::Minimum => {
            if a < b || a.is_nan() {
                a
            } else {
                b
            }
        }
        Binary::Power => a.powf(b),
        Binary::Remainder => a % b,
        Binary::Atan2 => a.atan2(b),
        // Not of floats; the planner never asks.
        Binary::And
        | Binary::Or
        | Binary::Xor
        | Binary::ShiftLeft
        | Binary::ShiftRightArithmetic
        | Binary::ShiftRightLogical => a,
    }
}

/// Integers wrap. Division by zero is −1 and its remainder the dividend, as XLA has it.
fn signed(op: Binary, num: Num, a: i64, b: i64) -> i64 {
    let width = num.size() as u64 * 8;
    let shift = b as u64;
    match op {
        Binary::Add => a.wrapping_add(b),
        Binary::Subtract => a.wrapping_sub(b),
        Binary::Multiply => a.wrapping_mul(b),
        Binary::Divide if b == 0 => -1,
        Binary::Divide => a.wrapping_div(b),
        Binary::Remainder if b == 0 => a,
        Binary::Remainder => a.wrapping_rem(b),
        Binary::Maximum => a.max(b),
        Binary::Minimum => a.min(b),
        Binary::And => a & b,
        Binary::Or => a | b,
        Binary::Xor => a ^ b,
        Binary::ShiftLeft => {
            if shift < width {
                a << shift
            } else {
                0
            }
        }
        Binary::ShiftRightArithmetic => a >> shift.min(width - 1),
        Binary::ShiftRightLogical => {
            if shift < width {
                (bits(num, a) >> shift) as i64
            } else {
                0
            }
        }
        Binary::Power if b < 0 => match a {
            1 => 1,
            -1 => {
                if b % 2 == 0 {
                    1
                } else {
                    -1
                }
            }
            _ => 0,
        },
        Binary::Power => power(a as u64, b as u64) as i64,
        // Of floats only; the planner never asks.
        Binary::Atan2 => a,
    }
}

fn unsigned(op: Binary, num: Num, a: u64, b: u64) -> u64 {
    let width = num.size() as u64 * 8;
    match op {
        Binary::Add => a.wrapping_add(b),
        Binary::Subtract => a.wrapping_sub(b),
        Binary::Multiply => a.wrapping_mul(b),
        Binary::Divide => a.checked_div(b).unwrap_or(u64::MAX),
        Binary::Remainder => a.checked_rem(b).unwrap_or(a),
        Binary::Maximum => a.max(b),
        Binary::Minimum => a.min(b),
        Binary::And => a & b,
        Binary::Or => a | b,
        Binary::Xor => a ^ b,
        Binary::ShiftLeft => {
            if b < width {
                a << b
            } else {
                0
            }
        }
        Binary::ShiftRightLogical => {
            if b < width {
                a >> b
            } else {
                0
            }
        }
        // The highest bit of the type is the sign.
        Binary::ShiftRightArithmetic => {
            let up = 64 - width;
            (((a << up) as i64) >> up >> b.min(width - 1)) as u64
        }
        Binary::Power => power(a, b),
        // Of floats only; the planner never asks.
        Binary::Atan2 => a,
    }
}

/// By squaring; wraps.
fn power(mut base: u64, mut exponent: u64) -> u64 {
    let mut result = 1u64;
    while exponent > 0 {
        if exponent & 1 == 1 {
            result = result.wrapping_mul(base);
        }
        base = base.wrapping_mul(base);
        exponent >>= 1;
    }
    result
}

/// Away from the vector code, so that it is compiled once.
#[inline(never)]
pub(super) fn compare(
    compare: Compare,
    total: bool,
    num: Num,
    a: &[u8],
    b: &[u8],
    out: &mut [u64],
    count: usize,
) {
    let said = move |order: Option<Ordering>| -> u8 {
        let yes = match (compare, order) {
            (Compare::Ne, None) => true,
            (_, None) => false,
            (Compare::Eq, Some(o)) => o.is_eq(),
            (Compare::Ne, Some(o)) => o.is_ne(),
            (Compare::Lt, Some(o)) => o.is_lt(),
            (Compare::Le, Some(o)) => o.is_le(),
            (Compare::Gt, Some(o)) => o.is_gt(),
            (Compare::Ge, Some(o)) => o.is_ge(),
        };
        yes as u8
    };
    match num.lane() {
        Lane::F32 if total => zip(a, b, out, count, |a: f32, b: f32| said(Some(a.total_cmp(&b)))),
        Lane::F64 if total => zip(a, b, out, count, |a: f64, b: f64| said(Some(a.total_cmp(&b)))),
        Lane::F32 => zip(a, b, out, count, |a: f32, b: f32| said(a.partial_cmp(&b))),
        Lane::F64 => zip(a, b, out, count, |a: f64, b: f64| said(a.partial_cmp(&b))),
        Lane::S32 => zip(a, b, out, count, |a: i32, b: i32| said(Some(a.cmp(&b)))),
        Lane::U32 => zip(a, b, out, count, |a: u32, b: u32| said(Some(a.cmp(&b)))),
        Lane::S64 => zip(a, b, out, count, |a: i64, b: i64| said(Some(a.cmp(&b)))),
        Lane::U64 => zip(a, b, out, count, |a: u64, b: u64| said(Some(a.cmp(&b)))),
        Lane::Mask => zip(a, b, out, count, |a: u8, b: u8| said(Some(a.cmp(&b)))),
    }
}

/// What conversions pass through.
#[derive(Clone, Copy)]
enum Wide {
    Int(i128),
    Float(f64),
}

/// Away from the vector code, so that it is compiled once.
#[inline(never)]
pub(super) fn convert(from: Num, to: Num, a: &[u8], out: &mut [u64], count: usize) {
    match from.lane() {
        Lane::Mask => convert_to(to, a, out, count, |v: u8| Wide::Int(v as i128)),
        Lane::S32 => convert_to(to, a, out, count, |v: i32| Wide::Int(v as i128)),
        Lane::U32 => convert_to(to, a, out, count, |v: u32| Wide::Int(v as i128)),
        Lane::S64 => convert_to(to, a, out, count, |v: i64| Wide::Int(v as i128)),
        Lane::U64 => convert_to(to, a, out, count, |v: u64| Wide::Int(v as i128)),
        Lane::F32 => convert_to(to, a, out, count, |v: f32| Wide::Float(v as f64)),
        Lane::F64 => convert_to(to, a, out, count, |v: f64| Wide::Float(v)),
    }
}

fn convert_to<A: Pod>(to: Num, a: &[u8], out: &mut [u64], count: usize, wide: impl Fn(A) -> Wide) {
    match to {
        Num::Pred => map(a, out, count, |v: A| match wide(v) {
            Wide::Int(v) => (v != 0) as u8,
            Wide::Float(v) => (v != 0.0) as u8,
        }),
        Num::S8 => map(a, out, count, |v: A| match wide(v) {
            Wide::Int(v) => v as i8 as i32,
            Wide::Float(v) => v as i8 as i32,
        }),
        Num::S16 => map(a, out, count, |v: A| match wide(v) {
            Wide::Int(v) => v as i16 as i32,
            Wide::Float(v) => v as i16 as i32,
        }),
        Num::S32 => map(a, out, count, |v: A| match wide(v) {
            Wide::Int(v) => v as i32,
            Wide::Float(v) => v as i32,
        }),
        Num::S64 => map(a, out, count, |v: A| match wide(v) {
            Wide::Int(v) => v as i64,
            Wide::Float(v) => v as i64,
        }),
        Num::U8 => map(a, out, count, |v: A| match wide(v) {
            Wide::Int(v) => v as u8 as u32,
            Wide::Float(v) => v as u8 as u32,
        }),
        Num::U16 => map(a, out, count, |v: A| match wide(v) {
            Wide::Int(v) => v as u16 as u32,
            Wide::Float(v) => v as u16 as u32,
        }),
        Num::U32 => map(a, out, count, |v: A| match wide(v) {
            Wide::Int(v) => v as u32,
            Wide::Float(v) => v as u32,
        }),
        Num::U64 => map(a, out, count, |v: A| match wide(v) {
            Wide::Int(v) => v as u64,
            Wide::Float(v) => v as u64,
        }),
        // The narrow ones by way of f32, as XLA does; the caller rounds on.
        Num::F16 | Num::BF16 | Num::F32 => map(a, out, count, |v: A| match wide(v) {
            Wide::Int(v) => v as f32,
            Wide::Float(v) => v as f32,
        }),
        Num::F64 => map(a, out, count, |v: A| match wide(v) {
            Wide::Int(v) => v as f64,
            Wide::Float(v) => v,
        }),
    }
}
