//! The instructions that models spend their time in, as loops that become vector code. Each function says whether it had the
//! instruction; `cold` has all others.

use bytemuck::Pod;

use super::{Binary, Compare, Lane, Num, Operand, Unary, lanes, lanes_mut};
use crate::math;

#[inline(always)]
fn map<A: Pod, R: Pod>(a: &[u8], out: &mut [u64], count: usize, f: impl Fn(A) -> R) -> bool {
    for (out, &a) in lanes_mut::<R>(out, count).iter_mut().zip(lanes::<A>(a, count)) {
        *out = f(a);
    }
    true
}

#[inline(always)]
fn zip<A: Pod, R: Pod>(
    a: Operand<'_>,
    b: Operand<'_>,
    out: &mut [u64],
    count: usize,
    f: impl Fn(A, A) -> R,
) -> bool {
    let out = lanes_mut::<R>(out, count);
    match (a, b) {
        (Operand::Lanes(a), Operand::Lanes(b)) => {
            let (a, b) = (lanes::<A>(a, count), lanes::<A>(b, count));
            for ((out, &a), &b) in out.iter_mut().zip(a).zip(b) {
                *out = f(a, b);
            }
        }
        (Operand::Lanes(a), Operand::One(b)) => {
            let b = lanes::<A>(b, 1)[0];
            for (out, &a) in out.iter_mut().zip(lanes::<A>(a, count)) {
                *out = f(a, b);
            }
        }
        (Operand::One(a), Operand::Lanes(b)) => {
            let a = lanes::<A>(a, 1)[0];
            for (out, &b) in out.iter_mut().zip(lanes::<A>(b, count)) {
                *out = f(a, b);
            }
        }
        (Operand::One(a), Operand::One(b)) => out.fill(f(lanes::<A>(a, 1)[0], lanes::<A>(b, 1)[0])),
    }
    true
}

#[inline(always)]
pub(super) fn unary(op: Unary, num: Num, a: &[u8], out: &mut [u64], count: usize) -> bool {
    if num.lane() != Lane::F32 {
        return false;
    }
    match op {
        Unary::Abs => map(a, out, count, f32::abs),
        Unary::Negate => map(a, out, count, |v: f32| -v),
        Unary::Exp => map(a, out, count, math::exp),
        Unary::Log => map(a, out, count, math::ln),
        Unary::Tanh => map(a, out, count, math::tanh),
        Unary::Logistic => map(a, out, count, math::logistic),
        Unary::Erf => map(a, out, count, math::erf),
        Unary::Sqrt => map(a, out, count, f32::sqrt),
        Unary::Rsqrt => map(a, out, count, |v: f32| 1.0 / v.sqrt()),
        Unary::RoundNearestEven => map(a, out, count, f32::round_ties_even),
        Unary::Floor => map(a, out, count, f32::floor),
        Unary::IsFinite => map(a, out, count, |v: f32| v.is_finite() as u8),
        Unary::Cbrt
        | Unary::Ceil
        | Unary::Clz
        | Unary::Cos
        | Unary::Expm1
        | Unary::Log1p
        | Unary::Not
        | Unary::PopulationCount
        | Unary::RoundNearestAfz
        | Unary::Sign
        | Unary::Sin
        | Unary::Tan => false,
    }
}

#[inline(always)]
pub(super) fn binary(
    op: Binary,
    num: Num,
    a: Operand<'_>,
    b: Operand<'_>,
    out: &mut [u64],
    count: usize,
) -> bool {
    match num.lane() {
        Lane::F32 => match op {
            Binary::Add => zip(a, b, out, count, |a: f32, b: f32| a + b),
            Binary::Subtract => zip(a, b, out, count, |a: f32, b: f32| a - b),
            Binary::Multiply => zip(a, b, out, count, |a: f32, b: f32| a * b),
            Binary::Divide => zip(a, b, out, count, |a: f32, b: f32| a / b),
            // NaN on either side is NaN.
            Binary::Maximum => {
                zip(a, b, out, count, |a: f32, b: f32| if a > b || a.is_nan() { a } else { b })
            }
            Binary::Minimum => {
                zip(a, b, out, count, |a: f32, b: f32| if a < b || a.is_nan() { a } else { b })
            }
            Binary::And
            | Binary::Atan2
            | Binary::Or
            | Binary::Power
            | Binary::Remainder
            | Binary::ShiftLeft
            | Binary::ShiftRightArithmetic
            | Binary::ShiftRightLogical
            | Binary::Xor => false,
        },
        // The same bits, signed or not.
        Lane::S32 | Lane::U32 => match op {
            Binary::Add => zip(a, b, out, count, u32::wrapping_add),
            Binary::Subtract => zip(a, b, out, count, u32::wrapping_sub),
            Binary::Multiply => zip(a, b, out, count, u32::wrapping_mul),
            Binary::And => zip(a, b, out, count, |a: u32, b: u32| a & b),
            Binary::Or => zip(a, b, out, count, |a: u32, b: u32| a | b),
            Binary::Xor => zip(a, b, out, count, |a: u32, b: u32| a ^ b),
            Binary::ShiftLeft if num.size() == 4 => {
                zip(a, b, out, count, |a: u32, b: u32| if b < 32 { a << (b & 31) } else { 0 })
            }
            Binary::ShiftRightLogical if num.size() == 4 => {
                zip(a, b, out, count, |a: u32, b: u32| if b < 32 { a >> (b & 31) } else { 0 })
            }
            Binary::ShiftLeft
            | Binary::ShiftRightLogical
            | Binary::Atan2
            | Binary::Divide
            | Binary::Maximum
            | Binary::Minimum
            | Binary::Power
            | Binary::Remainder
            | Binary::ShiftRightArithmetic => false,
        },
        Lane::Mask => match op {
            Binary::And | Binary::Multiply | Binary::Minimum => zip(a, b, out, count, |a: u8, b: u8| a & b),
            Binary::Or | Binary::Add | Binary::Maximum => zip(a, b, out, count, |a: u8, b: u8| a | b),
            Binary::Xor | Binary::Subtract => zip(a, b, out, count, |a: u8, b: u8| a ^ b),
            Binary::Atan2
            | Binary::Divide
            | Binary::Power
            | Binary::Remainder
            | Binary::ShiftLeft
            | Binary::ShiftRightArithmetic
            | Binary::ShiftRightLogical => false,
        },
        Lane::S64 | Lane::U64 | Lane::F64 => false,
    }
}

#[inline(always)]
fn compare_as<T: Pod + PartialOrd>(
    compare: Compare,
    a: Operand<'_>,
    b: Operand<'_>,
    out: &mut [u64],
    count: usize,
) -> bool {
    match compare {
        Compare::Eq => zip(a, b, out, count, |a: T, b: T| (a == b) as u8),
        Compare::Ne => zip(a, b, out, count, |a: T, b: T| (a != b) as u8),
        Compare::Lt => zip(a, b, out, count, |a: T, b: T| (a < b) as u8),
        Compare::Le => zip(a, b, out, count, |a: T, b: T| (a <= b) as u8),
        Compare::Gt => zip(a, b, out, count, |a: T, b: T| (a > b) as u8),
        Compare::Ge => zip(a, b, out, count, |a: T, b: T| (a >= b) as u8),
    }
}

#[inline(always)]
pub(super) fn compare(
    compare: Compare,
    num: Num,
    a: Operand<'_>,
    b: Operand<'_>,
    out: &mut [u64],
    count: usize,
) -> bool {
    match num.lane() {
        Lane::F32 => compare_as::<f32>(compare, a, b, out, count),
        Lane::S32 => compare_as::<i32>(compare, a, b, out, count),
        Lane::U32 | Lane::S64 | Lane::U64 | Lane::F64 | Lane::Mask => false,
    }
}

#[inline(always)]
fn select_as<T: Pod>(mask: &[u8], a: Operand<'_>, b: Operand<'_>, out: &mut [u64], count: usize) {
    let (out, mask) = (lanes_mut::<T>(out, count), &mask[..count]);
    match (a, b) {
        (Operand::Lanes(a), Operand::Lanes(b)) => {
            let (a, b) = (lanes::<T>(a, count), lanes::<T>(b, count));
            for (((out, &mask), &a), &b) in out.iter_mut().zip(mask).zip(a).zip(b) {
                *out = if mask != 0 { a } else { b };
            }
        }
        (Operand::Lanes(a), Operand::One(b)) => {
            let b = lanes::<T>(b, 1)[0];
            for ((out, &mask), &a) in out.iter_mut().zip(mask).zip(lanes::<T>(a, count)) {
                *out = if mask != 0 { a } else { b };
            }
        }
        (Operand::One(a), Operand::Lanes(b)) => {
            let a = lanes::<T>(a, 1)[0];
            for ((out, &mask), &b) in out.iter_mut().zip(mask).zip(lanes::<T>(b, count)) {
                *out = if mask != 0 { a } else { b };
            }
        }
        (Operand::One(a), Operand::One(b)) => {
            let (a, b) = (lanes::<T>(a, 1)[0], lanes::<T>(b, 1)[0]);
            for (out, &mask) in out.iter_mut().zip(mask) {
                *out = if mask != 0 { a } else { b };
            }
        }
    }
}

#[inline(always)]
pub(super) fn select(num: Num, mask: &[u8], a: Operand<'_>, b: Operand<'_>, out: &mut [u64], count: usize) {
    match num.lane() {
        Lane::F32 | Lane::S32 | Lane::U32 => select_as::<u32>(mask, a, b, out, count),
        Lane::S64 | Lane::U64 | Lane::F64 => select_as::<u64>(mask, a, b, out, count),
        Lane::Mask => select_as::<u8>(mask, a, b, out, count),
    }
}

#[inline(always)]
pub(super) fn convert(from: Num, to: Num, a: &[u8], out: &mut [u64], count: usize) -> bool {
    match (from.lane(), to.lane()) {
        (Lane::F32, Lane::F32) => map(a, out, count, |v: f32| v),
        (Lane::S32, Lane::F32) => map(a, out, count, |v: i32| v as f32),
        (Lane::Mask, Lane::F32) => map(a, out, count, |v: u8| v as f32),
        (Lane::Mask, Lane::S32 | Lane::U32) => map(a, out, count, |v: u8| v as u32),
        (Lane::S32 | Lane::U32, Lane::S32 | Lane::U32) => map(a, out, count, |v: u32| v),
        (Lane::F32, Lane::S32) if to == Num::S32 => map(a, out, count, |v: f32| v as i32),
        (Lane::F32, Lane::S32) if to == Num::S8 => map(a, out, count, |v: f32| v as i8 as i32),
        _ => false,
    }
}
